//! What a reader asks for, and what it is given.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tracing::Span;

use super::{Decoded, GroupId, MemberId, Received, RejectedMessage, TopicName, decode_record};
use crate::record::{Record, RecordVec};
use crate::{Error, Result, Timestamp};

/// One partition of one topic.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicName,
    /// The partition's number, from 0.
    pub partition: u32,
}

impl TopicPartition {
    /// Partition `partition` of `topic`.
    pub fn new(topic: TopicName, partition: u32) -> Self {
        Self { topic, partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

impl fmt::Debug for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a partition starts for a group that has no valid commit of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartFrom {
    /// With the oldest message that is still there.
    #[default]
    Earliest,
    /// With what comes after the subscription.
    Latest,
    /// With the first message of this time or later.
    At(Timestamp),
    /// Nowhere: it is an error.
    Fail,
}

/// Where to go in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    /// To this offset: the next message has it, or a higher one.
    Offset(u64),
    /// To the first message of this time or later; to the end if there is none.
    At(Timestamp),
    /// To the oldest message that is still there.
    Earliest,
    /// To the end.
    Latest,
}

/// A subscription as a member of a group. It goes on from the group's commits; `otherwise` says where a partition
/// without a valid one starts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Subscribe {
    /// The topics, at least one, sorted and each once.
    pub topics: Vec<TopicName>,
    /// The group.
    pub group: GroupId,
    /// Where a partition without a valid commit starts.
    pub otherwise: StartFrom,
    /// How many bytes may be fetched ahead of `recv`.
    pub max_buffered_bytes: usize,
    /// How long a member may be silent before it counts as dead.
    pub session_timeout: Duration,
    /// How long a member may stay without calling `recv` before it loses its partitions to others.
    pub poll_limit: Duration,
    /// A static member keeps its partitions over a quick restart.
    pub member: Option<MemberId>,
    /// Announces a revocation with [`Notice::RevocationPending`] one `recv` before it takes effect. A member that
    /// receives ahead of its processing sets it, so that records of a partition are never stored after those of the next
    /// owner. Defaults to false.
    pub announce_revocations: bool,
}

impl Subscribe {
    /// The default of [`Subscribe::max_buffered_bytes`]: 16 MiB.
    pub const MAX_BUFFERED_BYTES: usize = 16 << 20;

    /// A member of `group` that reads `topics`: from the earliest message where nothing is committed, a session
    /// of 30 s, a poll limit of 5 minutes.
    ///
    /// # Errors
    /// `InvalidInput` for no topics.
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
            otherwise: StartFrom::default(),
            max_buffered_bytes: Self::MAX_BUFFERED_BYTES,
            session_timeout: Duration::from_secs(30),
            poll_limit: Duration::from_mins(5),
            member: None,
            announce_revocations: false,
        })
    }

    /// With another start for partitions without a valid commit.
    #[must_use]
    pub fn otherwise(mut self, start: StartFrom) -> Self {
        self.otherwise = start;
        self
    }

    /// With another bound on what is fetched ahead; at least one message is held whatever its size.
    #[must_use]
    pub fn with_max_buffered_bytes(mut self, bytes: usize) -> Self {
        self.max_buffered_bytes = bytes;
        self
    }

    /// With another session timeout and poll limit.
    ///
    /// # Errors
    /// `InvalidInput` if the session is zero or longer than the poll limit, as brokers demand.
    pub fn with_limits(mut self, session_timeout: Duration, poll_limit: Duration) -> Result<Self> {
        if session_timeout.is_zero() || session_timeout > poll_limit {
            return Err(Error::invalid(
                "bus.subscribe.session",
                "session_timeout",
                format_args!("{session_timeout:?}"),
                format_args!("must lie above 0 and not exceed the poll limit of {poll_limit:?}"),
            ));
        }
        self.session_timeout = session_timeout;
        self.poll_limit = poll_limit;
        Ok(self)
    }

    /// Announces revocations.
    #[must_use]
    pub fn with_announced_revocations(mut self) -> Self {
        self.announce_revocations = true;
        self
    }

    /// As this static member.
    #[must_use]
    pub fn as_member(mut self, member: MemberId) -> Self {
        self.member = Some(member);
        self
    }
}

/// A reader without a group: these partitions, from these places. It commits nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Read {
    /// The partitions, each once, and where to begin.
    pub from: Vec<(TopicPartition, SeekTo)>,
    /// How many bytes may be fetched ahead of `recv`.
    pub max_buffered_bytes: usize,
}

impl Read {
    /// These partitions from these places; of a repeated partition the last place counts.
    ///
    /// # Errors
    /// `InvalidInput` for no partitions.
    pub fn new(from: impl IntoIterator<Item = (TopicPartition, SeekTo)>) -> Result<Self> {
        let from: BTreeMap<_, _> = from.into_iter().collect();
        if from.is_empty() {
            return Err(Error::invalid(
                "bus.read.partitions",
                "from",
                "[]",
                "must name at least one partition",
            ));
        }
        Ok(Self { from: from.into_iter().collect(), max_buffered_bytes: Subscribe::MAX_BUFFERED_BYTES })
    }

    /// With another bound on what is fetched ahead.
    #[must_use]
    pub fn with_max_buffered_bytes(mut self, bytes: usize) -> Self {
        self.max_buffered_bytes = bytes;
        self
    }
}

/// Next offsets to read, by partition: what is committed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Positions(BTreeMap<TopicPartition, u64>);

impl Positions {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next offset to read of a partition.
    pub fn get(&self, partition: &TopicPartition) -> Option<u64> {
        self.0.get(partition).copied()
    }

    /// Sets the next offset to read of a partition.
    pub fn set(&mut self, partition: TopicPartition, next: u64) {
        self.0.insert(partition, next);
    }

    /// Moves every partition of `later` to where it stands there, if that is further on.
    pub fn advance(&mut self, later: &Self) {
        for (partition, next) in &later.0 {
            let mine = self.0.entry(partition.clone()).or_insert(*next);
            *mine = (*mine).max(*next);
        }
    }

    /// Marks a message as processed.
    pub fn pass(&mut self, message: &Received) {
        let next = message.offset + 1;
        // The common case, a partition that is there already, clones nothing.
        match self.0.iter_mut().find(|(p, _)| p.partition == message.partition && p.topic == message.topic) {
            Some((_, mine)) => *mine = (*mine).max(next),
            None => self.set(TopicPartition::new(message.topic.clone(), message.partition), next),
        }
    }

    /// Keeps only the partitions for which a function returns true.
    pub fn retain(&mut self, mut keep: impl FnMut(&TopicPartition) -> bool) {
        self.0.retain(|partition, _| keep(partition));
    }

    /// Every partition with its next offset.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&TopicPartition, u64)> {
        self.0.iter().map(|(partition, next)| (partition, *next))
    }

    /// How many partitions.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(TopicPartition, u64)> for Positions {
    fn from_iter<I: IntoIterator<Item = (TopicPartition, u64)>>(positions: I) -> Self {
        Self(positions.into_iter().collect())
    }
}

impl Extend<(TopicPartition, u64)> for Positions {
    fn extend<I: IntoIterator<Item = (TopicPartition, u64)>>(&mut self, positions: I) {
        self.0.extend(positions);
    }
}

/// What happened to a reader that its next batch tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// Partitions came or went.
    AssignmentChanged {
        /// New ones.
        gained: Vec<TopicPartition>,
        /// Those that others have now.
        lost: Vec<TopicPartition>,
    },
    /// A rebalance is about to revoke partitions. The next call of `recv` gives them away, so store and commit first what
    /// was received. Sent only with [`Subscribe::announce_revocations`].
    RevocationPending,
    /// The position had gone (retention), and `otherwise` answered.
    Reset {
        /// Of which partition.
        partition: TopicPartition,
        /// Where it stood.
        from: u64,
        /// Where it stands.
        to: u64,
    },
    /// `recv` was not called for longer than the poll limit, and the partitions went to others meanwhile.
    PollLimitPassed,
    /// A topic of the subscription was deleted, and other topics of the subscription remain. Its partitions are lost.
    /// If the topic is created again, it is read again.
    TopicDeleted {
        /// The topic's name.
        topic: TopicName,
    },
}

/// Messages in order, what to commit when all of them are processed, and what happened meanwhile.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    messages: Vec<Received>,
    positions: Positions,
    notices: Vec<Notice>,
    span: Option<Span>,
}

impl Batch {
    /// A batch, for those who implement a bus.
    pub fn new(messages: Vec<Received>, positions: Positions, notices: Vec<Notice>) -> Self {
        Self { messages, positions, notices, span: None }
    }

    /// Sets the span of the processing, for authors of layers.
    #[must_use]
    pub fn with_span(mut self, span: Span) -> Self {
        self.span = Some(span);
        self
    }

    /// The span of its processing, which goes on with the trace that the messages came with: what the consumer does
    /// inside it belongs to that trace. It ends when the batch and every clone of the span are dropped. Without the
    /// layer `Traced` it is disabled, and being inside it changes nothing.
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
    ///     sub.commit(batch.positions()).await
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
    /// A writer stores the records, then passes the rejected messages to
    /// [`super::MessageBusExt::send_dead_letters`], and then commits. In this order, an outage of the store repeats
    /// no dead letters.
    pub fn decode<R: Record>(&self) -> Decoded<R> {
        let (mut records, mut rejected) =
            (RecordVec::from_vec(Vec::<R>::with_capacity(self.len())), Vec::new());
        for message in self {
            if let Err(error) = decode_record(message, &mut records) {
                rejected.push(RejectedMessage::new(message.clone(), error));
            }
        }
        // The vector was made for this type.
        Decoded { records: records.into_vec().unwrap_or_default(), rejected }
    }

    /// The messages; per partition in the order of their offsets.
    pub fn messages(&self) -> &[Received] {
        &self.messages
    }

    /// The messages, to keep or change.
    pub fn messages_mut(&mut self) -> &mut Vec<Received> {
        &mut self.messages
    }

    /// The messages, to keep.
    pub fn into_messages(self) -> Vec<Received> {
        self.messages
    }

    /// The offsets to commit when all messages are processed.
    ///
    /// A position may lie more than one offset behind the last message, and an empty batch may hold positions: the end
    /// of a partition may hold offsets without a message, such as transaction markers, and the commit of these
    /// positions moves the group past them. So commit the positions of an empty batch too.
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// What happened since the batch before.
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }

    /// The messages, one by one.
    pub fn iter(&self) -> std::slice::Iter<'_, Received> {
        self.messages.iter()
    }

    /// How many messages.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether there are no messages. There may be notices.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

impl<'a> IntoIterator for &'a Batch {
    type Item = &'a Received;
    type IntoIter = std::slice::Iter<'a, Received>;
    fn into_iter(self) -> Self::IntoIter {
        self.messages.iter()
    }
}

/// What a commit stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Committed {
    /// What the broker has now.
    pub stored: Positions,
    /// Partitions that this member does not own any more: nothing was stored for them, and their owner gets the
    /// messages again. It is no error.
    pub lost: Vec<TopicPartition>,
}

impl Committed {
    /// `stored` is on the broker, `lost` belong to others.
    pub fn new(stored: Positions, lost: Vec<TopicPartition>) -> Self {
        Self { stored, lost }
    }
}

/// One partition of an [`Assignment`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AssignedPartition {
    /// Which.
    pub partition: TopicPartition,
    /// What `recv` returns next.
    pub position: u64,
    /// The group's commit.
    pub committed: Option<u64>,
    /// The end of the log minus the position.
    pub lag: u64,
    /// Whether it is paused.
    pub paused: bool,
}

impl AssignedPartition {
    /// An assigned partition, for those who implement a bus.
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

/// What a subscription reads at present.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Assignment {
    /// Rises with every change of the assignment.
    pub epoch: u64,
    /// The partitions, in order.
    pub partitions: Vec<AssignedPartition>,
}

impl Assignment {
    /// The assignment of `epoch`.
    pub fn new(epoch: u64, partitions: Vec<AssignedPartition>) -> Self {
        Self { epoch, partitions }
    }

    /// The end of the log minus the position, over all partitions.
    pub fn lag(&self) -> u64 {
        self.partitions.iter().fold(0, |sum, p| sum.saturating_add(p.lag))
    }
}
