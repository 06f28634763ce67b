//! [`MessageBus`] and [`Subscription`]: the port for a log of partitioned topics with consumer groups.
//!
//! [`guide::bus`](crate::guide::bus) describes the contract point by point. The contract suite of `qi-testkit` checks
//! every point on every implementation.
//!
//! The bus is a log, not a queue. There is no "nack", order is per partition, and progress is an offset.

mod admin;
mod catalogue;
mod codec;
mod dead_letter;
mod ext;
pub mod header;
mod message;
mod messages;
mod name;
mod partitioner;
mod port;
mod report;
mod subscription;

pub use admin::{
    BusInfo, BusPingReport, CleanupPolicy, CloseReport, GroupInfo, GroupMember, GroupPartition, GroupQuery,
    GroupState, PartitionInfo, SettingDiff, TopicInfo, TopicOutcome, TopicSpec, TopicState,
};
pub use catalogue::TopicCatalogue;
pub use codec::{
    Codec, Encoding, decode_message, decode_record, decode_record_with, encode_message, encode_record,
    encode_records, protobuf,
};
pub use dead_letter::{DeadLetters, Decoded, RejectedMessage};
pub use ext::MessageBusExt;
pub use message::{Headers, Message, ReceivedMessage};
pub use messages::Messages;
pub use name::{GroupId, GroupInstanceId, HeaderName, TopicName};
pub use partitioner::{murmur2, partition_for_key};
pub use port::{MessageBus, PublishOptions, Subscription};
pub use report::{Delivery, DeliveryError, DeliveryState, PublishReport};
pub use subscription::{
    AssignedPartition, Assignment, Batch, Committed, OffsetReset, Offsets, ReaderRequest, SeekTo,
    SubscribeRequest, SubscriptionEvent, TopicPartition,
};
