//! The `MessageBus` and `Subscription` traits.

use std::fmt::{Debug, Display};
use std::time::Duration;

use async_trait::async_trait;
use auto_impl::auto_impl;

use super::{
    Assignment, Batch, BusInfo, BusPingReport, CloseReport, Committed, GroupInfo, GroupQuery, Headers,
    Message, Offsets, PublishReport, ReaderRequest, SeekTo, SubscribeRequest, TopicInfo, TopicName,
    TopicOutcome, TopicPartition, TopicSpec,
};
use crate::Result;

/// The settings of a publish call, for every message of its batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PublishOptions {
    /// Headers that are added after each message's own headers.
    pub headers: Headers,
}

impl PublishOptions {
    /// Options that add nothing.
    pub const NONE: &'static Self = &Self { headers: Headers::new() };

    /// Creates options that add these headers after each message's own headers.
    pub fn with_headers(headers: Headers) -> Self {
        Self { headers }
    }
}

/// A log of partitioned topics with consumer groups.
///
/// Typed records, dead letters and single messages are in [`super::MessageBusExt`].
///
/// # Guarantees of every bus
/// - **At least once.** An acknowledged message is replicated as configured, and every group receives it. The client
///   never duplicates a message. A message with an unknown outcome may be in the log, and only the
///   caller may send it again.
/// - **Order.** Messages of a partition are in the order of publishing, within a batch and across consecutive batches.
///   Keys map to partitions by murmur2, as in Kafka's Java client.
/// - **Groups.** Every group receives all messages. Within a group each partition has one owner. When a member leaves
///   or fails, other members continue from the last commit, so uncommitted messages are redelivered.
/// - **No accidental topics.** An unknown topic is `NotFound`.
/// - **Bounded memory.** A full buffer makes `publish` wait, up to the delivery timeout. Messages that still have no
///   space are not sent.
/// - **Outages.** `publish` ends within twice [`BusInfo::delivery_timeout`]: once for buffer space and once for delivery.
///   The layer `Retry` adds at most its `max_elapsed`. A message that never left the client is reported as not sent, and
///   any other message without an outcome as unknown. `recv` returns `Unavailable` after its wait and keeps its position,
///   so the caller repeats the call. [`crate::Ingest`] does this without a limit.
///   [`guide::operations`](crate::guide::operations#outages) lists the wait of each call.
/// - **After [`MessageBus::close`]** every call is `Closed`, including the calls of its subscriptions.
///
/// # Differences between buses
/// The partition of a message without a key, the boundaries of batches, and gaps between offsets.
///
/// # Later versions
/// A method that is added later has a default body, so that an implementation still compiles. The same applies to
/// [`Subscription`].
///
/// # Non-goals
/// The bus is not a queue: there is no "nack" and no redelivery of single messages. Progress is an offset.
///
/// # Signatures
/// Read every method that returns a `Pin<Box<dyn Future<..>>>` as an `async fn`.
///
/// # Example
/// A writer takes five lines. A retryable error of an outage ends the function too. [`Subscription::recv`] shows a loop
/// that continues.
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
///     sub.commit(batch.offsets()).await?;
///     Ok(())
/// }
/// ```
///
/// [`guide::bus`](crate::guide::bus) has the full contract with its reasons.
#[async_trait]
#[auto_impl(Arc, Box)]
pub trait MessageBus: Debug + Display + Send + Sync + 'static {
    /// Returns metadata about the bus. Performs no I/O.
    fn info(&self) -> BusInfo;

    /// Publishes a batch and returns the outcome of every message, by index. `MessageBusExt::send` turns a failed
    /// message into an error.
    ///
    /// If the future is dropped, the outcome of messages in flight is unknown.
    ///
    /// # Errors
    /// `Closed` if the bus is closed. Errors of single messages are in the report.
    async fn publish(&self, batch: &[Message], options: &PublishOptions) -> Result<PublishReport>;

    /// Joins a group, and returns after the first assignment, which may be empty. The start offset of each partition is
    /// resolved and committed before the call returns. Thus a takeover before the first commit of
    /// the caller loses no message.
    ///
    /// # Errors
    /// - `NotFound` for an unknown topic.
    /// - `Unavailable` if the brokers cannot be reached, or `Timeout` if the outage begins during the join. Both are
    ///   retryable. [`guide::operations`](crate::guide::operations#outages) lists the longest wait.
    async fn subscribe(&self, request: SubscribeRequest) -> Result<Box<dyn Subscription>>;

    /// Reads partitions without a group, from any offset, for example for a replay. Such a reader cannot commit.
    ///
    /// # Errors
    /// `NotFound` for an unknown topic, `InvalidInput` for an unknown partition. During an outage, the retryable errors
    /// of [`MessageBus::subscribe`].
    async fn open_reader(&self, request: ReaderRequest) -> Result<Box<dyn Subscription>>;

    /// Creates topics and returns one outcome for each. An existing topic with the same number of partitions is
    /// `Existed`; with another number it is a `Conflict` that is not retryable. If the principal may not create topics,
    /// an existing topic is `Existed` and a missing topic is `Unauthorized`.
    ///
    /// # Errors
    /// An error if the call attempted nothing. Errors of single topics are in the outcomes.
    async fn create_topics(&self, specs: &[TopicSpec]) -> Result<Vec<TopicOutcome>>;

    /// Deletes topics with all their messages and returns one outcome for each. An unknown topic is `NotFound`.
    ///
    /// # Errors
    /// An error if the call attempted nothing. Errors of single topics are in the outcomes.
    async fn delete_topics(&self, names: &[TopicName]) -> Result<Vec<TopicOutcome>>;

    /// Returns every topic that the principal may describe, in the order of the names. Settings that the principal may
    /// not read are hidden.
    async fn topics(&self) -> Result<Vec<TopicInfo>>;

    /// Returns groups with their members, commits and lag, in the order of the names. An unknown group is absent. A
    /// failed look-up is an error. A group that cannot be described, or that the principal may not describe, is
    /// returned with that state and does not fail the others. Topics that the principal may not describe are left out.
    ///
    /// # Errors
    /// `Unauthorized` if the query names a topic that the principal may not describe.
    async fn groups(&self, query: &GroupQuery) -> Result<Vec<GroupInfo>>;

    /// Sends a request to the brokers and returns the round-trip time.
    async fn ping(&self) -> Result<BusPingReport>;

    /// Waits for messages in flight, up to a limit, and ends all subscriptions. Idempotent.
    async fn close(&self) -> Result<CloseReport>;
}

/// A subscription: a member of a consumer group, or a reader without a group.
///
/// - A rebalance takes effect only inside [`Subscription::recv`], or when the maximum poll interval or the session
///   timeout expires. The member keeps the partitions of a batch until its next `recv`.
/// - Dropping a future of `recv` loses no message and commits nothing.
/// - In a healthy cluster `recv` returns no error that must end the caller's loop. Events such as rebalances are in
///   `Batch::events`.
///
/// Read every method as an `async fn`.
#[async_trait]
#[auto_impl(Box)]
pub trait Subscription: Debug + Send {
    /// Returns at least one and at most `max` messages, or an empty batch after `wait`.
    ///
    /// # Errors
    /// - `InvalidInput` for a `max` of 0.
    /// - `NotFound` if the last topic of the subscription was deleted. If other topics remain, a deleted topic is a
    ///   [`SubscriptionEvent::TopicDeleted`](super::SubscriptionEvent::TopicDeleted) and the reader continues with the
    ///   others.
    /// - `Unavailable` if no broker is connected when `wait` expires. The position stays, and a
    ///   later call continues from it.
    ///
    /// A loop repeats the call after a retryable error:
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use qi_core::Result;
    /// # use qi_core::bus::{Batch, Subscription};
    /// async fn next_batch(subscription: &mut dyn Subscription) -> Result<Batch> {
    ///     loop {
    ///         match subscription.recv(1_000, Duration::from_secs(1)).await {
    ///             Err(error) if error.retry().is_retryable() => {
    ///                 tokio::time::sleep(Duration::from_secs(1)).await;
    ///             }
    ///             result => return result,
    ///         }
    ///     }
    /// }
    /// ```
    async fn recv(&mut self, max: usize, wait: Duration) -> Result<Batch>;

    /// Commits the next offsets to read. After `Ok` the broker has stored them, except those in `Committed::lost`. A
    /// commit cannot move a valid commit of the group back to offsets that retention had removed when the position was
    /// reset. The valid commit then stays, and `Committed::stored` has it.
    ///
    /// # Errors
    /// `InvalidInput` above the position of `recv` (below is allowed), `Unsupported` without a group.
    async fn commit(&mut self, offsets: &Offsets) -> Result<Committed>;

    /// Moves the position of owned partitions. Commits nothing.
    ///
    /// # Errors
    /// `InvalidInput` for a partition that is not owned.
    async fn seek(&mut self, to: &[(TopicPartition, SeekTo)]) -> Result<()>;

    /// Stops fetching from these partitions; other partitions continue. The pause ends when the partition is lost.
    ///
    /// # Errors
    /// `InvalidInput` for a partition that is not owned.
    async fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()>;

    /// Resumes paused partitions.
    ///
    /// # Errors
    /// `InvalidInput` for a partition that is not owned.
    async fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()>;

    /// Returns the currently assigned partitions with position, commit and lag.
    async fn assignment(&mut self) -> Result<Assignment>;

    /// Leaves the group immediately, so that other members take over. Idempotent. A static member keeps its partitions
    /// until its session timeout expires, so a quick restart moves no partition.
    async fn close(&mut self) -> Result<()>;
}
