//! The ports themselves.

use std::fmt::{Debug, Display};
use std::time::Duration;

use async_trait::async_trait;
use auto_impl::auto_impl;

use super::{
    Assignment, Batch, BusInfo, BusStatus, CloseReport, Committed, GroupInfo, GroupQuery, Headers, Message,
    Positions, PublishReport, Read, SeekTo, Subscribe, TopicInfo, TopicName, TopicOutcome, TopicPartition,
    TopicSpec,
};
use crate::Result;

/// What a publish adds to every message of its batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PublishOptions {
    /// Added behind each message's own headers.
    pub headers: Headers,
}

impl PublishOptions {
    /// Nothing added.
    pub const NONE: &'static Self = &Self { headers: Headers::new() };

    /// With these headers behind each message's own.
    pub fn with_headers(headers: Headers) -> Self {
        Self { headers }
    }
}

/// A log of partitioned topics with consumer groups.
///
/// Conveniences (typed records, dead letters, single messages) are in [`super::MessageBusExt`].
///
/// # What every bus guarantees
/// - **At least once.** A delivery that is acknowledged is replicated as configured, and every group gets it. The
///   client doubles nothing by itself; a message whose outcome is unknown may be in the log, and only the caller
///   may send it again.
/// - **Order** within a partition is the order of publishing, in a batch and over consecutive ones. Keys map to
///   partitions by murmur2 as in Java.
/// - **Groups**: every group sees all; within a group each partition has one owner. When a member leaves or dies,
///   others go on from the last commit, so that what was not committed comes again.
/// - **Nothing is created by accident**: an unknown topic is `NotFound`.
/// - **Bounded**: a full buffer makes `publish` wait, up to the delivery timeout; then the rest is not sent.
/// - **After [`MessageBus::close`]** every call is `Closed`, on its subscriptions too.
///
/// # What varies
/// Which partition a message without a key goes to, where batches end, and whether offsets are dense.
///
/// # What it is not
/// A queue: there is no "nack" and no redelivery of single messages; progress is an offset.
///
/// The full text with its reasons stands in `docs/bus.md`. A writer is five lines:
///
/// ```
/// # use qi_core::bus::{DeadLetters, MessageBus, MessageBusExt, Subscription};
/// # use qi_core::{PriceStore, PriceStoreExt, PriceTick, Result};
/// # use std::time::Duration;
/// async fn write(bus: &dyn MessageBus, sub: &mut dyn Subscription, store: &dyn PriceStore) -> Result<()> {
///     let batch = sub.recv(1_000, Duration::from_secs(1)).await?;
///     let decoded = batch.decode::<PriceTick>();
///     store.insert_ticks(&decoded.records).await?;
///     bus.send_dead_letters(&decoded.rejected, &DeadLetters::default()).await?;
///     sub.commit(batch.positions()).await?;
///     Ok(())
/// }
/// ```
#[async_trait]
#[auto_impl(Arc, Box)]
pub trait MessageBus: Debug + Display + Send + Sync + 'static {
    /// What is known of the bus without asking it.
    fn info(&self) -> BusInfo;

    /// Sends a batch and answers for every message, by index. `MessageBusExt::send` makes an error of a failed
    /// one.
    ///
    /// Dropping the future leaves the outcome of what was under way unknown.
    ///
    /// # Errors
    /// Only when nothing was tried: the bus is closed.
    async fn publish(&self, batch: &[Message], options: &PublishOptions) -> Result<PublishReport>;

    /// Joins a group, and returns after the first assignment (which may be empty). Where a partition starts is
    /// resolved and committed before, so that a takeover before the first commit loses nothing.
    ///
    /// # Errors
    /// `NotFound` for an unknown topic.
    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>>;

    /// Reads partitions without a group, from anywhere: for replays. Such a reader cannot commit.
    ///
    /// # Errors
    /// `NotFound` for an unknown topic, `InvalidInput` for an unknown partition.
    async fn read(&self, request: Read) -> Result<Box<dyn Subscription>>;

    /// Creates topics; one answer for each. The same number of partitions is `Existed`, another one a `Conflict`
    /// that is not retryable. An existing topic is `Existed` for a principal that may not create topics, too; a missing
    /// one is `Unauthorized` then.
    ///
    /// # Errors
    /// Only when nothing was tried.
    async fn create_topics(&self, specs: &[TopicSpec]) -> Result<Vec<TopicOutcome>>;

    /// Deletes topics with all their messages; one answer for each, `NotFound` for an unknown one.
    ///
    /// # Errors
    /// Only when nothing was tried.
    async fn delete_topics(&self, names: &[TopicName]) -> Result<Vec<TopicOutcome>>;

    /// Returns every topic that the principal may describe, in the order of the names. Settings that the principal may
    /// not read are hidden.
    async fn topics(&self) -> Result<Vec<TopicInfo>>;

    /// Returns groups with their members, commits and lag, in the order of the names. An unknown group is absent; a
    /// failed look-up is an error. A group that cannot be described, or that the principal may not describe, is
    /// returned with that state and does not fail the others. Of topics that the principal may not describe nothing is
    /// returned.
    ///
    /// # Errors
    /// `Unauthorized` if the query names a topic that the principal may not describe.
    async fn groups(&self, query: &GroupQuery) -> Result<Vec<GroupInfo>>;

    /// Asks the brokers whether they answer.
    async fn ping(&self) -> Result<BusStatus>;

    /// Drains what is under way, up to a limit, and ends all subscriptions. Idempotent.
    async fn close(&self) -> Result<CloseReport>;
}

/// A reader: a member of a group, or one without a group.
///
/// - A rebalance takes effect only inside [`Subscription::recv`], or when the poll limit or the session passes:
///   what a batch holds stays owned until the next `recv`.
/// - Dropping a future of `recv` loses no message and commits nothing.
/// - No error of a healthy cluster ends the loop around `recv`; what happened stands in `Batch::notices`.
#[async_trait]
#[auto_impl(Box)]
pub trait Subscription: Debug + Send {
    /// At least one and at most `max` messages, or an empty batch after `wait`.
    ///
    /// # Errors
    /// `InvalidInput` for a `max` of 0; `NotFound` when the last topic of the subscription was deleted (a deleted topic
    /// beside others is a [`Notice::TopicDeleted`](super::Notice), and the others go on); `Unavailable` once `wait` has passed
    /// with no broker connected (the position stays, and a later call goes on).
    async fn recv(&mut self, max: usize, wait: Duration) -> Result<Batch>;

    /// Stores the next offsets to read. Ok: the broker has them, except those of `Committed::lost`. What had gone when
    /// a position was reset is no way back: a valid commit of the group stays then, and `Committed::stored` names it.
    ///
    /// # Errors
    /// `InvalidInput` above the position of `recv` (below is allowed), `Unsupported` without a group.
    async fn commit(&mut self, upto: &Positions) -> Result<Committed>;

    /// Moves the position of owned partitions. It commits nothing.
    ///
    /// # Errors
    /// `InvalidInput` for a partition that is not owned.
    async fn seek(&mut self, to: &[(TopicPartition, SeekTo)]) -> Result<()>;

    /// Holds back partitions; others go on. A pause ends when the partition is lost.
    ///
    /// # Errors
    /// `InvalidInput` for a partition that is not owned.
    async fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()>;

    /// Lets paused partitions go on.
    ///
    /// # Errors
    /// `InvalidInput` for a partition that is not owned.
    async fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()>;

    /// What is read at present, with position, commit and lag.
    async fn assignment(&mut self) -> Result<Assignment>;

    /// Leaves the group at once, so that others take over. Idempotent. A static member keeps its partitions until its
    /// session passes, so that a quick restart moves none.
    async fn close(&mut self) -> Result<()>;
}
