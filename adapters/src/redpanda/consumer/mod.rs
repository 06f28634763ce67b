//! Consumers: members of groups, and readers without a group.
//!
//! One thread owns the state of a consumer: its assignment, its fetch buffer and its client. The calls of a
//! subscription are commands to this thread, each with a reply. The thread never waits for a broker. Blocking requests
//! run on separate threads and send their results as commands.

mod assignment;
mod check;
mod end_probe;
mod fetch_buffer;
mod rebalance;
mod record_batch;
mod subscription;
mod thread;
mod unreadable;

pub(super) use subscription::RedpandaSubscription;
pub(super) use thread::{ConsumerHandle, ConsumerSettings, PartitionSource, start};
