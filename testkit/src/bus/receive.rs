//! Reads from the log, for members of groups and for readers without a group.

use qi_core::bus::{Batch, GroupId, OffsetReset, Offsets, ReceivedMessage, TopicPartition};
use qi_core::{Result, Timestamp};
use tokio::time::Instant;

use super::error;
use super::group::{OwnedPartition, PendingEvents, Start, Topics, start};
use super::state::State;

/// The result of one read of the log.
#[derive(Debug)]
pub(super) enum ReadOutcome {
    /// A batch for the caller.
    Batch(Batch),
    /// No messages. The time is the earliest deadline of any member of the group, if there is one.
    Empty(Option<Instant>),
}

/// The limits of one batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

/// A batch under construction.
#[derive(Debug)]
pub(super) struct BatchBuilder {
    messages: Vec<ReceivedMessage>,
    positions: Offsets,
    limits: Limits,
    bytes: usize,
}

impl BatchBuilder {
    pub(super) fn new(limits: Limits) -> Self {
        Self { messages: Vec::new(), positions: Offsets::new(), limits, bytes: 0 }
    }

    pub(super) fn is_full(&self) -> bool {
        self.messages.len() >= self.limits.messages || self.bytes >= self.limits.bytes.max(1)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(super) fn finish(self, pending: &mut PendingEvents) -> Batch {
        Batch::new(self.messages, self.positions, pending.take())
    }

    /// Copies messages of `partition` from `position` on, up to the limits, and returns the next position. A batch gets
    /// at least one message regardless of its size.
    pub(super) fn fill(&mut self, topics: &Topics, partition: &TopicPartition, position: u64) -> u64 {
        let Some(log) = topics.get(&partition.topic).and_then(|topic| topic.partition(partition.partition))
        else {
            return position;
        };
        let first = log.index_of(position);
        let room = self.limits.messages - self.messages.len();
        let mut next = position;
        self.messages.reserve(room.min(log.records.len() - first));
        for record in log.records.range(first..).take(room) {
            let mut message =
                ReceivedMessage::new(partition.topic.clone(), partition.partition, record.offset);
            message.timestamp = Some(record.at);
            message.key.clone_from(&record.key);
            message.payload.clone_from(&record.payload);
            message.headers.clone_from(&record.headers);
            let size = message.weight();
            if self.bytes > 0 && self.bytes + size > self.limits.bytes {
                self.bytes = self.limits.bytes;
                break;
            }
            // An empty message counts as 1 byte, so that empty messages reach the byte limit too.
            self.bytes += size.max(1);
            next = record.offset + 1;
            self.messages.push(message);
        }
        if next > position {
            self.positions.set(partition.clone(), next);
        }
        next
    }
}

/// The identity of a group member in `recv`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MemberRef {
    pub(super) group: GroupId,
    pub(super) key: u64,
}

impl State {
    /// Reads once for a member: applies the target assignment and fills a batch. With `last`, returns a batch even if
    /// there are no messages.
    pub(super) fn read_once(
        &mut self,
        member_ref: &MemberRef,
        messages: usize,
        time: Timestamp,
        now: Instant,
        last: bool,
    ) -> Result<ReadOutcome> {
        let Self { topics, groups, used, .. } = self;
        let group = groups.get_mut(&member_ref.group).ok_or_else(|| error::fenced("recv"))?;
        // Deadlines are applied first, so a call after the maximum poll interval does not count as one in time.
        group.expire(now, topics);
        group.rejoin(member_ref.key, now, topics);
        let member = group.members.get_mut(&member_ref.key).ok_or_else(|| error::fenced("recv"))?;
        member.last_poll = now;
        if !member.request.topics.iter().any(|name| topics.contains_key(name)) {
            return Err(error::unknown_topic(&member.request.topics[0], "recv"));
        }
        for name in &member.request.topics {
            match topics.get_mut(name) {
                Some(topic) => *used -= topic.expire(time),
                None => member.pending.delete(name),
            }
        }
        member.pending.clear_recreated(topics);
        if let Some(batch) = group.announce_revocation(member_ref.key) {
            return Ok(ReadOutcome::Batch(batch));
        }
        group.apply_target(member_ref.key, topics);
        let event = group.next_event();
        let member = group.members.get_mut(&member_ref.key).ok_or_else(|| error::fenced("recv"))?;
        for (partition, owned) in &mut member.owned {
            reset_lost_position(
                topics,
                partition,
                owned,
                member.request.offset_reset,
                &mut member.pending,
                &mut group.commits,
            )?;
        }
        let limits = Limits { messages, bytes: member.request.max_buffered_bytes };
        let mut builder = BatchBuilder::new(limits);
        let count = member.owned.len();
        for place in 0..count {
            if builder.is_full() {
                break;
            }
            let at = (member.turn + place) % count;
            if let Some((partition, owned)) = member.owned.iter_mut().nth(at)
                && let Some(position) = owned.position
                && !owned.paused
            {
                owned.position = Some(builder.fill(topics, partition, position));
                if builder.is_full() {
                    // The next batch begins with the next partition.
                    member.turn = (at + 1) % count;
                }
            }
        }
        if last || !builder.is_empty() {
            member.polling = false;
            return Ok(ReadOutcome::Batch(builder.finish(&mut member.pending)));
        }
        member.polling = true;
        Ok(ReadOutcome::Empty(event))
    }
}

/// Resets a position that no longer exists by `offset_reset`, and reports the reset. Commits the new position, unless the
/// group has a valid commit.
fn reset_lost_position(
    topics: &Topics,
    partition: &TopicPartition,
    owned: &mut OwnedPartition,
    offset_reset: OffsetReset,
    pending: &mut PendingEvents,
    commits: &mut std::collections::BTreeMap<TopicPartition, u64>,
) -> Result<()> {
    let Some(log) = topics.get(&partition.topic).and_then(|topic| topic.partition(partition.partition))
    else {
        return Ok(());
    };
    match start(log, owned.position, offset_reset) {
        Start::Committed(_) => {}
        Start::Fail => {
            owned.floor = log.start;
            return Err(error::no_valid_position(partition, "recv"));
        }
        Start::Initial(to) => {
            commits.insert(partition.clone(), to);
            owned.position = Some(to);
        }
        Start::Reset { from, to } => {
            // A commit that is still valid remains, even if the position of the reader is not.
            if commits.get(partition).is_none_or(|commit| !log.holds(*commit)) {
                commits.insert(partition.clone(), to);
            }
            pending.reset(partition.clone(), from, to);
            (owned.position, owned.floor) = (Some(to), log.start);
        }
    }
    Ok(())
}
