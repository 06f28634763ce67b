//! Subscriptions: requests of a reader, and the batches, offsets and assignments that it receives.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tracing::Span;

use super::{Decoded, GroupId, GroupInstanceId, ReceivedMessage, RejectedMessage, TopicName, decode_record};
use crate::domain::{duration, from_text, text_conversions};
use crate::record::{Record, RecordVec};
use crate::{Error, Result, Timestamp};

/// One partition of one topic. Displayed and serialised as `crypto-prices/0`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic of the partition.
    pub topic: TopicName,
    /// The partition's number, from 0.
    pub partition: u32,
}

impl TopicPartition {
    /// Creates the identifier of a partition of `topic`.
    pub fn new(topic: TopicName, partition: u32) -> Self {
        Self { topic, partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

impl FromStr for TopicPartition {
    type Err = Error;

    /// Parses the format of `Display`, `topic/partition`. The name of a topic contains no slash.
    fn from_str(text: &str) -> Result<Self> {
        let (topic, partition) = text
            .split_once('/')
            .and_then(|(topic, number)| Some((topic, number.parse().ok()?)))
            .ok_or_else(|| Error::invalid("bus.partition", "partition", text, "must be TOPIC/NUMBER"))?;
        Ok(Self::new(TopicName::new(topic)?, partition))
    }
}

text_conversions!(TopicPartition);

impl Serialize for TopicPartition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TopicPartition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a partition such as crypto-prices/0")
    }
}

impl fmt::Debug for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The start position in a partition for which the group has no valid commit.
///
/// The enum is closed on purpose, because every bus must support each variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OffsetReset {
    /// The oldest message that still exists.
    #[default]
    Earliest,
    /// The first message published after the subscription.
    Latest,
    /// The first message with this time or a later time.
    At(Timestamp),
    /// No position: the subscription returns an error.
    Error,
}

/// A target position in a partition. The enum is closed on purpose, because every bus must support each variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeekTo {
    /// This offset. The next message has this offset or a higher offset.
    Offset(u64),
    /// The first message with this time or a later time; the end if there is no such message.
    At(Timestamp),
    /// The oldest message that still exists.
    Earliest,
    /// The end of the partition.
    Latest,
}

/// A request to read topics as a member of a group. The member continues from the group's commits. `offset_reset` is
/// the start position of a partition without a valid commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawSubscribeRequest")]
#[non_exhaustive]
pub struct SubscribeRequest {
    /// The topics: at least one, sorted, without duplicates.
    pub topics: Vec<TopicName>,
    /// The consumer group to join.
    pub group: GroupId,
    /// The start position in a partition without a valid commit.
    pub offset_reset: OffsetReset,
    /// The maximum number of bytes that are fetched ahead of `recv`. Defaults to 16 MiB.
    pub max_buffered_bytes: usize,
    /// The time without a heartbeat after which the member counts as dead. Defaults to 30 s.
    #[serde(with = "duration")]
    pub session_timeout: Duration,
    /// The longest time between calls of `recv`. After it the member loses its partitions to others. Defaults
    /// to 5 minutes.
    #[serde(with = "duration")]
    pub max_poll_interval: Duration,
    /// The name of a static member, which keeps its partitions during a quick restart. None for a dynamic member.
    pub group_instance_id: Option<GroupInstanceId>,
    /// Announces a revocation with [`SubscriptionEvent::RevocationPending`] one `recv` before it takes effect. Defaults
    /// to false.
    ///
    /// Set it for a member that receives ahead of its processing. The member then stores the records of a partition
    /// before the next owner does.
    pub announce_revocations: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSubscribeRequest {
    topics: Vec<TopicName>,
    group: GroupId,
    #[serde(default)]
    offset_reset: OffsetReset,
    max_buffered_bytes: Option<usize>,
    #[serde(default, with = "duration::option")]
    session_timeout: Option<Duration>,
    #[serde(default, with = "duration::option")]
    max_poll_interval: Option<Duration>,
    group_instance_id: Option<GroupInstanceId>,
    #[serde(default)]
    announce_revocations: bool,
}

impl TryFrom<RawSubscribeRequest> for SubscribeRequest {
    type Error = Error;
    fn try_from(raw: RawSubscribeRequest) -> Result<Self> {
        let new = Self::new(raw.group, raw.topics)?;
        let session_timeout = raw.session_timeout.unwrap_or(new.session_timeout);
        let max_poll_interval = raw.max_poll_interval.unwrap_or(new.max_poll_interval);
        Ok(Self {
            offset_reset: raw.offset_reset,
            max_buffered_bytes: raw.max_buffered_bytes.unwrap_or(new.max_buffered_bytes),
            group_instance_id: raw.group_instance_id,
            announce_revocations: raw.announce_revocations,
            ..new.with_timeouts(session_timeout, max_poll_interval)?
        })
    }
}

impl SubscribeRequest {
    /// The default of [`SubscribeRequest::max_buffered_bytes`]: 16 MiB.
    pub const DEFAULT_MAX_BUFFERED_BYTES: usize = 16 << 20;

    /// Creates a request to read `topics` as a member of `group`. A partition without a commit starts at the earliest
    /// message. The session timeout is 30 s, and the maximum poll interval is 5 minutes.
    ///
    /// # Errors
    /// `InvalidInput` for an empty list of topics.
    pub fn new(group: GroupId, topics: impl IntoIterator<Item = TopicName>) -> Result<Self> {
        let mut topics: Vec<_> = topics.into_iter().collect();
        topics.sort_unstable();
        topics.dedup();
        if topics.is_empty() {
            return Err(Error::invalid(
                "bus.subscribe.topics",
                "topics",
                "[]",
                "must name at least one topic",
            ));
        }
        Ok(Self {
            topics,
            group,
            offset_reset: OffsetReset::default(),
            max_buffered_bytes: Self::DEFAULT_MAX_BUFFERED_BYTES,
            session_timeout: Duration::from_secs(30),
            max_poll_interval: Duration::from_mins(5),
            group_instance_id: None,
            announce_revocations: false,
        })
    }

    /// Sets the start position for partitions without a valid commit.
    #[must_use]
    pub fn with_offset_reset(mut self, offset_reset: OffsetReset) -> Self {
        self.offset_reset = offset_reset;
        self
    }

    /// Sets the largest number of bytes that may be fetched ahead. At least one message is buffered, whatever its size.
    #[must_use]
    pub fn with_max_buffered_bytes(mut self, bytes: usize) -> Self {
        self.max_buffered_bytes = bytes;
        self
    }

    /// Sets the session timeout and the maximum poll interval.
    ///
    /// # Errors
    /// `InvalidInput` if the session timeout is zero or longer than the maximum poll interval. Brokers require this
    /// order.
    pub fn with_timeouts(mut self, session_timeout: Duration, max_poll_interval: Duration) -> Result<Self> {
        if session_timeout.is_zero() || session_timeout > max_poll_interval {
            return Err(Error::invalid(
                "bus.subscribe.session",
                "session_timeout",
                format_args!("{session_timeout:?}"),
                format_args!(
                    "must lie above 0 and not exceed the maximum poll interval of {max_poll_interval:?}"
                ),
            ));
        }
        self.session_timeout = session_timeout;
        self.max_poll_interval = max_poll_interval;
        Ok(self)
    }

    /// Enables [`SubscribeRequest::announce_revocations`].
    #[must_use]
    pub fn with_announced_revocations(mut self) -> Self {
        self.announce_revocations = true;
        self
    }

    /// Joins as this static member.
    #[must_use]
    pub fn with_group_instance_id(mut self, id: GroupInstanceId) -> Self {
        self.group_instance_id = Some(id);
        self
    }
}

/// A request to read partitions without a group, from given positions. The reader commits nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawReaderRequest")]
#[non_exhaustive]
pub struct ReaderRequest {
    /// The partitions, without duplicates, and their start positions.
    pub from: Vec<(TopicPartition, SeekTo)>,
    /// The maximum number of bytes that are fetched ahead of `recv`. Defaults to 16 MiB.
    pub max_buffered_bytes: usize,
}

/// A deserialised request, before its validation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReaderRequest {
    from: Vec<(TopicPartition, SeekTo)>,
    max_buffered_bytes: Option<usize>,
}

impl TryFrom<RawReaderRequest> for ReaderRequest {
    type Error = Error;

    fn try_from(raw: RawReaderRequest) -> Result<Self> {
        let request = Self::new(raw.from)?;
        Ok(match raw.max_buffered_bytes {
            Some(bytes) => request.with_max_buffered_bytes(bytes),
            None => request,
        })
    }
}

impl ReaderRequest {
    /// Creates a request to read these partitions from these positions. The last position
    /// of a repeated partition counts.
    ///
    /// # Errors
    /// `InvalidInput` for an empty list of partitions.
    pub fn new(from: impl IntoIterator<Item = (TopicPartition, SeekTo)>) -> Result<Self> {
        let from: BTreeMap<_, _> = from.into_iter().collect();
        if from.is_empty() {
            return Err(Error::invalid(
                "bus.open_reader.partitions",
                "from",
                "[]",
                "must name at least one partition",
            ));
        }
        Ok(Self {
            from: from.into_iter().collect(),
            max_buffered_bytes: SubscribeRequest::DEFAULT_MAX_BUFFERED_BYTES,
        })
    }

    /// Sets the largest number of bytes that may be fetched ahead.
    #[must_use]
    pub fn with_max_buffered_bytes(mut self, bytes: usize) -> Self {
        self.max_buffered_bytes = bytes;
        self
    }
}

/// Offsets to commit: the next offset to read of each partition. Serialised as a map, so that a program can store its
/// offsets together with its results.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offsets(BTreeMap<TopicPartition, u64>);

impl Offsets {
    /// Creates an empty set of offsets.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the next offset to read of a partition, if the set has one.
    pub fn get(&self, partition: &TopicPartition) -> Option<u64> {
        self.0.get(partition).copied()
    }

    /// Sets the next offset to read of a partition.
    pub fn set(&mut self, partition: TopicPartition, next: u64) {
        self.0.insert(partition, next);
    }

    /// Merges `later` into this set. The higher offset of each partition counts.
    pub fn merge(&mut self, later: &Self) {
        for (partition, next) in &later.0 {
            let own = self.0.entry(partition.clone()).or_insert(*next);
            *own = (*own).max(*next);
        }
    }

    /// Marks a message as processed.
    pub fn mark_processed(&mut self, message: &ReceivedMessage) {
        let next = message.offset + 1;
        // A partition that is already present, the common case, needs no clone.
        match self.0.iter_mut().find(|(p, _)| p.partition == message.partition && p.topic == message.topic) {
            Some((_, own)) => *own = (*own).max(next),
            None => self.set(TopicPartition::new(message.topic.clone(), message.partition), next),
        }
    }

    /// Keeps only the partitions for which `keep` returns true.
    pub fn retain(&mut self, mut keep: impl FnMut(&TopicPartition) -> bool) {
        self.0.retain(|partition, _| keep(partition));
    }

    /// Returns every partition with its next offset.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&TopicPartition, u64)> {
        self.0.iter().map(|(partition, next)| (partition, *next))
    }

    /// Returns the number of partitions.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if there are no partitions.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(TopicPartition, u64)> for Offsets {
    fn from_iter<I: IntoIterator<Item = (TopicPartition, u64)>>(positions: I) -> Self {
        Self(positions.into_iter().collect())
    }
}

impl Extend<(TopicPartition, u64)> for Offsets {
    fn extend<I: IntoIterator<Item = (TopicPartition, u64)>>(&mut self, positions: I) {
        self.0.extend(positions);
    }
}

/// An event of a subscription, delivered with its next batch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscriptionEvent {
    /// The assignment of partitions to members changed.
    AssignmentChanged {
        /// The partitions that the member gained.
        gained: Vec<TopicPartition>,
        /// The partitions that the member lost to others.
        lost: Vec<TopicPartition>,
    },
    /// A rebalance is about to revoke partitions. The next call of `recv` gives them up, so store and commit the
    /// received messages first. Sent only with [`SubscribeRequest::announce_revocations`].
    RevocationPending,
    /// The offset no longer exists, for example after retention, so the position was reset by `offset_reset`.
    Reset {
        /// The partition.
        partition: TopicPartition,
        /// The position before the reset.
        from: u64,
        /// The position after the reset.
        to: u64,
    },
    /// `recv` was not called within the maximum poll interval, so the partitions went to other members.
    MaxPollIntervalExceeded,
    /// A topic of the subscription was deleted, and other topics of the subscription remain. The member loses its
    /// partitions. If the topic is created again, the subscription reads it again.
    TopicDeleted {
        /// The topic's name.
        topic: TopicName,
    },
}

/// Messages in order, the offsets to commit after processing, and the events since the previous batch.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    messages: Vec<ReceivedMessage>,
    offsets: Offsets,
    events: Vec<SubscriptionEvent>,
    span: Option<Span>,
}

impl Batch {
    /// Creates a batch, for authors of bus adapters.
    pub fn new(messages: Vec<ReceivedMessage>, offsets: Offsets, events: Vec<SubscriptionEvent>) -> Self {
        Self { messages, offsets, events, span: None }
    }

    /// Sets the span of the batch's processing, for authors of layers.
    #[must_use]
    pub fn with_span(mut self, span: Span) -> Self {
        self.span = Some(span);
        self
    }

    /// Returns the span of the batch's processing, which continues the trace of the messages. Work inside the span
    /// belongs to that trace. The span ends when the batch and every clone of the span are dropped. Without the layer
    /// `Traced` the span is disabled, and entering it has no effect.
    ///
    /// ```
    /// # use qi_core::bus::{DeadLetters, MessageBus, MessageBusExt, Subscription};
    /// # use qi_core::{PriceStore, PriceStoreExt, PriceTick, Result};
    /// # use std::time::Duration;
    /// use tracing::Instrument;
    ///
    /// # async fn write(bus: &dyn MessageBus, sub: &mut dyn Subscription, store: &dyn PriceStore) -> Result<()> {
    /// let batch = sub.recv(1_000, Duration::from_secs(1)).await?;
    /// let span = batch.span();
    /// async {
    ///     let decoded = batch.decode::<PriceTick>();
    ///     store.insert_ticks(&decoded.records).await?;
    ///     bus.send_dead_letters(&decoded.rejected, &DeadLetters::default()).await?;
    ///     sub.commit(batch.offsets()).await
    /// }
    /// .instrument(span)
    /// .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn span(&self) -> Span {
        self.span.clone().unwrap_or_else(Span::none)
    }

    /// Decodes each message, in any format of [`super::Encoding`]. Performs no I/O.
    ///
    /// A writer stores the records, then passes the rejected messages to [`super::MessageBusExt::send_dead_letters`],
    /// and then commits. In this order, an outage of the store repeats no dead letters.
    pub fn decode<R: Record>(&self) -> Decoded<R> {
        let (mut records, mut rejected) =
            (RecordVec::from_vec(Vec::<R>::with_capacity(self.len())), Vec::new());
        for message in self {
            if let Err(error) = decode_record(message, &mut records) {
                rejected.push(RejectedMessage::new(message.clone(), error));
            }
        }
        // The vector was created with this record type, so the conversion succeeds.
        Decoded { records: records.into_vec().unwrap_or_default(), rejected }
    }

    /// Returns the messages. The messages of a partition are in the order of their offsets.
    pub fn messages(&self) -> &[ReceivedMessage] {
        &self.messages
    }

    /// Returns the messages for modification.
    pub fn messages_mut(&mut self) -> &mut Vec<ReceivedMessage> {
        &mut self.messages
    }

    /// Returns the messages and consumes the batch.
    pub fn into_messages(self) -> Vec<ReceivedMessage> {
        self.messages
    }

    /// Returns the offsets to commit when all messages are processed.
    ///
    /// A position may lie more than one offset after the last message, and an empty batch may have positions. The end
    /// of a partition may have offsets without a message, such as transaction markers. Committing these positions moves
    /// the group past them, so commit the positions of an empty batch too.
    pub fn offsets(&self) -> &Offsets {
        &self.offsets
    }

    /// Returns the events since the previous batch.
    pub fn events(&self) -> &[SubscriptionEvent] {
        &self.events
    }

    /// Returns an iterator over the messages.
    pub fn iter(&self) -> std::slice::Iter<'_, ReceivedMessage> {
        self.messages.iter()
    }

    /// Returns the number of messages.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Returns true if there are no messages. The batch may still have events.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

impl<'a> IntoIterator for &'a Batch {
    type Item = &'a ReceivedMessage;
    type IntoIter = std::slice::Iter<'a, ReceivedMessage>;
    fn into_iter(self) -> Self::IntoIter {
        self.messages.iter()
    }
}

/// The result of a commit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Committed {
    /// The offsets that the broker has stored now.
    pub stored: Offsets,
    /// The partitions that this member no longer owns. Nothing was stored for them, and their owner receives the
    /// messages again. The commit is still `Ok`.
    pub lost: Vec<TopicPartition>,
}

impl Committed {
    /// Creates a result with the stored offsets and the partitions that belong to other members.
    pub fn new(stored: Offsets, lost: Vec<TopicPartition>) -> Self {
        Self { stored, lost }
    }
}

/// One partition of an [`Assignment`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AssignedPartition {
    /// The partition.
    pub partition: TopicPartition,
    /// The offset that `recv` returns next.
    pub position: u64,
    /// The group's commit, if it has one.
    pub committed: Option<u64>,
    /// The high watermark minus the position.
    pub lag: u64,
    /// True if the partition is paused.
    pub paused: bool,
}

impl AssignedPartition {
    /// Creates an assigned partition, for authors of bus adapters.
    pub fn new(
        partition: TopicPartition,
        position: u64,
        committed: Option<u64>,
        lag: u64,
        paused: bool,
    ) -> Self {
        Self { partition, position, committed, lag, paused }
    }
}

/// The current assignment of a subscription.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Assignment {
    /// A number that rises with every change of the assignment.
    pub epoch: u64,
    /// The partitions, in order.
    pub partitions: Vec<AssignedPartition>,
}

impl Assignment {
    /// Creates the assignment of `epoch`.
    pub fn new(epoch: u64, partitions: Vec<AssignedPartition>) -> Self {
        Self { epoch, partitions }
    }

    /// Returns the lag (high watermark minus position) summed over all partitions.
    pub fn lag(&self) -> u64 {
        self.partitions.iter().fold(0, |sum, p| sum.saturating_add(p.lag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_offsets_deserialise_with_validation() {
        let read = |text: &str| serde_json::from_str::<SubscribeRequest>(text);
        let request =
            read("{\"topics\":[\"b\",\"a\",\"b\"],\"group\":\"g\",\"session_timeout\":\"10s\"}").unwrap();
        let expected =
            SubscribeRequest::new(GroupId::from_static("g"), ["a", "b"].map(TopicName::from_static))
                .and_then(|request| request.with_timeouts(Duration::from_secs(10), Duration::from_mins(5)))
                .unwrap();
        assert_eq!(request, expected);
        assert_eq!(read(&serde_json::to_string(&request).unwrap()).unwrap(), request);
        for bad in [
            "{\"topics\":[],\"group\":\"g\"}",
            "{\"topics\":[\"a\"],\"group\":\"g\",\"session_timeout\":\"6m\"}",
            "{\"topics\":[\"a\"],\"group\":\"g\",\"sesion_timeout\":\"1s\"}",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let offsets: Offsets = serde_json::from_str("{\"t/3\":7}").unwrap();
        assert_eq!(offsets.get(&TopicPartition::new(TopicName::from_static("t"), 3)), Some(7));
        assert_eq!(serde_json::to_string(&offsets).unwrap(), "{\"t/3\":7}");
        for bad in ["t", "t/", "t/-1", "t/1/2", "/1"] {
            assert!(bad.parse::<TopicPartition>().is_err(), "{bad}");
        }
    }
}
