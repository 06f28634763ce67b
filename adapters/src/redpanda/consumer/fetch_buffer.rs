//! Messages that librdkafka returned and `recv` has not returned yet.

use std::collections::{BTreeSet, VecDeque};

use qi_core::bus::{Batch, Offsets, SubscriptionEvent, TopicPartition};

use super::assignment::Assignment;
use super::record_batch::RecordBatch;

/// The fetched record batches, in the order of their arrival.
#[derive(Debug, Default)]
pub(super) struct FetchBuffer {
    batches: VecDeque<RecordBatch>,
    /// Partitions that moved over offsets without a message since the last batch.
    skipped: BTreeSet<TopicPartition>,
}

/// The result of one `recv`. The caller creates the messages from it.
#[derive(Debug, Default)]
pub(super) struct PolledBatch {
    /// The taken parts of record batches, each with the previous position of its partition.
    parts: Vec<(u64, RecordBatch)>,
    offsets: Offsets,
    skipped: Vec<TopicPartition>,
    pub(super) events: Vec<SubscriptionEvent>,
}

impl PolledBatch {
    pub(super) fn into_batch(self) -> Batch {
        let mut messages = Vec::with_capacity(self.parts.iter().map(|(_, part)| part.len()).sum());
        for (_, part) in self.parts {
            part.into_messages(&mut messages);
        }
        Batch::new(messages, self.offsets, self.events)
    }
}

impl FetchBuffer {
    /// Appends fetched messages, unless their partition has another generation now.
    pub(super) fn push(&mut self, assignment: &mut Assignment, batch: RecordBatch) {
        if let Some(state) = assignment.current(&batch.partition, batch.generation) {
            if let Some(last) = batch.last_offset() {
                state.fetch_offset = last + 1;
            }
            state.buffered_bytes += batch.weight();
            self.batches.push_back(batch);
        }
    }

    /// Takes up to `max` messages in the order of their arrival. Returns None if there are no messages.
    pub(super) fn take(&mut self, assignment: &mut Assignment, max: usize) -> Option<PolledBatch> {
        let mut polled = PolledBatch::default();
        let (mut at, mut left) = (0, max);
        while at < self.batches.len() && left > 0 {
            let batch = &mut self.batches[at];
            let Some(state) = assignment.current(&batch.partition, batch.generation) else {
                self.batches.remove(at);
                continue;
            };
            if state.paused || state.pending_commit.is_some() || state.failed.is_some() {
                at += 1;
                continue;
            }
            let part = if batch.len() <= left {
                let Some(whole) = self.batches.remove(at) else { break };
                whole
            } else {
                batch.take(left)
            };
            let Some(last) = part.last_offset() else { continue };
            left -= part.len();
            state.buffered_bytes = state.buffered_bytes.saturating_sub(part.weight());
            polled.offsets.set(part.partition.clone(), last + 1);
            polled.parts.push((state.position, part));
            // After the last buffered message the position is the fetch offset, which a reset may have changed.
            state.position = if state.buffered_bytes == 0 { state.fetch_offset } else { last + 1 };
        }
        if polled.parts.is_empty() {
            return None;
        }
        self.finish(assignment, &mut polled);
        Some(polled)
    }

    /// Returns a batch without messages, with the events and the positions of skipped offsets.
    pub(super) fn take_none(&mut self, assignment: &mut Assignment) -> PolledBatch {
        let mut polled = PolledBatch::default();
        self.finish(assignment, &mut polled);
        polled
    }

    /// Adds the events, and the positions of partitions that moved over offsets without a message. A position is added
    /// only after the messages before it were taken.
    fn finish(&mut self, assignment: &mut Assignment, polled: &mut PolledBatch) {
        self.skipped.retain(|partition| {
            let Some(state) = assignment.partitions.get(partition) else { return false };
            let waits = state.buffered_bytes > 0 || state.pending_commit.is_some() || state.failed.is_some();
            if !waits {
                polled.offsets.set(partition.clone(), state.position);
                polled.skipped.push(partition.clone());
            }
            waits
        });
        polled.events = assignment.take_events();
    }

    /// Puts back a batch that no caller received, and restores the positions.
    pub(super) fn put_back(&mut self, assignment: &mut Assignment, polled: PolledBatch) {
        for (position, part) in polled.parts.into_iter().rev() {
            if let Some(state) = assignment.current(&part.partition, part.generation) {
                state.position = position;
                state.buffered_bytes += part.weight();
                self.batches.push_front(part);
            }
        }
        self.skipped.extend(polled.skipped);
        assignment.events.splice(..0, polled.events);
    }

    /// Drops the messages of partitions that are no longer assigned.
    pub(super) fn drop_lost(&mut self, assignment: &Assignment) {
        self.batches.retain(|batch| assignment.partitions.contains_key(&batch.partition));
        self.skipped.retain(|partition| assignment.partitions.contains_key(partition));
    }

    /// Continues at another offset. Drops the buffered messages of the partition.
    pub(super) fn seek(&mut self, assignment: &mut Assignment, partition: &TopicPartition, to: u64) {
        self.batches.retain(|batch| batch.partition != *partition);
        self.skipped.remove(partition);
        assignment.seek(partition, to);
    }

    /// Continues at `to` after the buffered messages, because the fetch offset no longer exists. The log begins at
    /// `log_start`.
    pub(super) fn reset(
        &mut self,
        assignment: &mut Assignment,
        partition: &TopicPartition,
        to: u64,
        log_start: u64,
        commit: bool,
    ) {
        let Some(state) = assignment.partitions.get_mut(partition) else { return };
        // Buffered messages from `to` on are fetched again, or no longer exist in the log. Committing them would skip
        // the messages that now have their offsets.
        let mut ends = false;
        let mut buffered_bytes = 0;
        self.batches.retain_mut(|batch| {
            if batch.partition != *partition {
                return true;
            }
            let kept = if ends { 0 } else { batch.count_before(to) };
            if kept < batch.len() {
                ends = true;
                *batch = batch.take(kept);
            }
            buffered_bytes += batch.weight();
            kept > 0
        });
        let from = state.fetch_offset;
        state.truncate(to);
        (state.fetch_offset, state.log_start, state.buffered_bytes) = (to, log_start, buffered_bytes);
        if buffered_bytes == 0 {
            state.position = to;
        }
        if commit {
            state.pending_commit = Some(to);
        }
        self.skipped.remove(partition);
        assignment.events.push(SubscriptionEvent::Reset { partition: partition.clone(), from, to });
    }

    /// Moves a partition to `to`, because the offsets from `from` on contain no message. Has no effect if the fetch
    /// offset or the generation changed.
    pub(super) fn skip(
        &mut self,
        assignment: &mut Assignment,
        partition: &TopicPartition,
        generation: u64,
        from: u64,
        to: u64,
    ) {
        let state = assignment.current(partition, generation);
        let Some(state) = state.filter(|state| state.fetch_offset == from && to > from) else { return };
        state.fetch_offset = to;
        if state.buffered_bytes == 0 {
            state.position = to;
        }
        self.skipped.insert(partition.clone());
    }
}

#[cfg(test)]
mod tests {
    use qi_core::bus::TopicName;

    use super::*;

    fn at(partition: u32) -> TopicPartition {
        TopicPartition::new(TopicName::new("t").unwrap(), partition)
    }

    /// A buffer with its assignment.
    struct Consumer {
        buffer: FetchBuffer,
        assignment: Assignment,
    }

    impl Consumer {
        fn new(partitions: u32) -> Self {
            let mut assignment = Assignment::default();
            for partition in 0..partitions {
                assignment.gain(at(partition), 0, None);
            }
            assignment.forget_gained();
            Self { buffer: FetchBuffer::default(), assignment }
        }

        fn state(&mut self, partition: u32) -> &mut crate::redpanda::consumer::assignment::PartitionState {
            self.assignment.partitions.get_mut(&at(partition)).unwrap()
        }

        fn position(&mut self, partition: u32) -> u64 {
            self.state(partition).position
        }

        fn generation(&mut self, partition: u32) -> u64 {
            self.state(partition).generation
        }

        fn batch(&mut self, partition: u32, offsets: std::ops::Range<u8>) -> RecordBatch {
            let lengths: Vec<_> = offsets.clone().map(|_| 1).collect();
            RecordBatch::of(at(partition), self.generation(partition), offsets.start, &lengths, false)
        }

        fn push(&mut self, partition: u32, offsets: std::ops::Range<u8>) {
            let batch = self.batch(partition, offsets);
            self.buffer.push(&mut self.assignment, batch);
        }

        fn poll(&mut self, max: usize) -> Option<PolledBatch> {
            self.buffer.take(&mut self.assignment, max)
        }

        fn take(&mut self, max: usize) -> Vec<(u32, u64)> {
            let batch = self.poll(max).map(PolledBatch::into_batch).unwrap_or_default();
            batch.iter().map(|m| (m.partition, m.offset)).collect()
        }

        fn none(&mut self) -> Batch {
            self.buffer.take_none(&mut self.assignment).into_batch()
        }

        fn buffered(&self) -> usize {
            self.assignment.buffered_bytes()
        }

        fn reset(&mut self, to: u64, log_start: u64, commit: bool) {
            self.buffer.reset(&mut self.assignment, &at(0), to, log_start, commit);
        }

        fn seek(&mut self, partition: u32, to: u64) {
            self.buffer.seek(&mut self.assignment, &at(partition), to);
        }

        fn skip(&mut self, partition: u32, generation: u64, from: u64, to: u64) {
            self.buffer.skip(&mut self.assignment, &at(partition), generation, from, to);
        }
    }

    #[test]
    fn batches_are_split_and_positions_advance() {
        let mut consumer = Consumer::new(2);
        for (partition, offsets) in [(0, 0..5), (1, 0..3)] {
            consumer.push(partition, offsets);
        }
        assert_eq!(consumer.take(3), [(0, 0), (0, 1), (0, 2)]);
        assert_eq!((consumer.position(0), consumer.state(0).fetch_offset), (3, 5));
        assert_eq!(consumer.take(3), [(0, 3), (0, 4), (1, 0)]);
        assert_eq!((consumer.position(1), consumer.state(1).fetch_offset), (1, 3));
        assert_eq!(consumer.take(10), [(1, 1), (1, 2)]);
        assert_eq!((consumer.buffered(), consumer.poll(1).is_none()), (0, true));
    }

    #[test]
    fn a_paused_partition_blocks_no_other_partition() {
        let mut consumer = Consumer::new(2);
        for (partition, offsets) in [(0, 0..2), (1, 0..2)] {
            consumer.push(partition, offsets);
        }
        consumer.state(0).paused = true;
        let one = consumer.buffered();
        assert_eq!(consumer.take(10), [(1, 0), (1, 1)]);
        assert_eq!(consumer.buffered(), 0);
        consumer.state(0).paused = false;
        assert_eq!((consumer.buffered(), consumer.take(10)), (one, vec![(0, 0), (0, 1)]));
    }

    #[test]
    fn a_revocation_or_a_seek_discards_buffered_messages() {
        let mut consumer = Consumer::new(2);
        let (old, other) = (consumer.batch(0, 0..2), consumer.batch(1, 0..2));
        consumer.seek(0, 7);
        consumer.buffer.push(&mut consumer.assignment, old);
        consumer.buffer.push(&mut consumer.assignment, other);
        consumer.assignment.lose(&[at(1)]);
        consumer.buffer.drop_lost(&consumer.assignment);
        assert!(consumer.poll(10).is_none());
        assert_eq!((consumer.position(0), consumer.buffered()), (7, 0));
        let news = consumer.none();
        assert_eq!(
            news.events(),
            [SubscriptionEvent::AssignmentChanged { gained: vec![], lost: vec![at(1)] }]
        );
    }

    #[test]
    fn a_reset_after_buffered_messages_is_reported_after_them() {
        let mut consumer = Consumer::new(1);
        consumer.push(0, 0..3);
        consumer.reset(9, 6, false);
        assert_eq!(consumer.take(2), [(0, 0), (0, 1)]);
        assert_eq!(consumer.position(0), 2);
        let batch = consumer.poll(2).unwrap().into_batch();
        assert_eq!(batch.offsets().get(&at(0)), Some(3), "the offsets of this batch");
        assert_eq!(consumer.position(0), 9, "the next position");
    }

    #[test]
    fn a_reset_is_reported_immediately_if_the_buffer_is_empty() {
        let mut consumer = Consumer::new(1);
        consumer.push(0, 0..3);
        assert_eq!(consumer.take(3).len(), 3);
        consumer.reset(9, 6, false);
        assert_eq!(consumer.position(0), 9);
    }

    #[test]
    fn a_late_commit_does_not_undo_a_reset() {
        let mut consumer = Consumer::new(1);
        consumer.state(0).commit_stored(3);
        consumer.reset(9, 6, true);
        let state = consumer.state(0);
        assert_eq!(
            (state.commit_offset(3), state.commit_offset(6), state.commit_offset(9)),
            (9, 6, 9),
            "before the initial commit"
        );
        // The commit was in flight during the reset, so the start must be committed after it.
        state.commit_stored(3);
        assert_eq!((state.committed, state.pending_commit), (Some(3), Some(9)));
        state.commit_stored(9);
        assert_eq!((state.committed, state.pending_commit), (Some(9), None));
        assert_eq!((state.commit_offset(5), state.commit_offset(7)), (9, 7), "after the initial commit");
        state.commit_stored(5);
        assert_eq!(state.pending_commit, Some(9), "again, with a valid commit that was overtaken");
        // Without a valid commit, the offset is stored as requested.
        (state.committed, state.pending_commit) = (Some(2), None);
        assert_eq!(state.commit_offset(3), 3);
    }

    #[test]
    fn a_commit_of_truncated_offsets_keeps_the_new_start() {
        let mut consumer = Consumer::new(1);
        consumer.state(0).commit_stored(2);
        consumer.push(0, 0..8);
        assert_eq!(consumer.take(8).len(), 8);
        // The log now ends at 5, and the reader continues there. The commit still exists in the log.
        consumer.reset(5, 0, false);
        let state = consumer.state(0);
        assert!(!state.is_beyond_position(8) && state.is_beyond_position(9));
        assert_eq!(
            (state.commit_offset(8), state.commit_offset(6), state.commit_offset(5), state.commit_offset(4)),
            (2, 2, 5, 4)
        );
        // The commit was in flight during the truncation, so the valid commit must be stored again.
        state.commit_stored(8);
        assert_eq!((state.committed, state.pending_commit), (Some(2), Some(2)));
        state.commit_stored(5);
        assert_eq!((state.committed, state.pending_commit), (Some(5), None));
        consumer.seek(0, 5);
        assert!(consumer.state(0).is_beyond_position(6), "a seek by the caller is not a truncation");
    }

    #[test]
    fn truncated_buffered_messages_are_dropped() {
        // The log was truncated at 5. The reader continues there, or at the beginning of the log.
        for (read, to, rest, position) in [(2, 5, 3, 5), (4, 5, 1, 5), (7, 5, 0, 5), (2, 0, 0, 0)] {
            let mut consumer = Consumer::new(2);
            consumer.state(0).commit_stored(1);
            for (partition, offsets) in [(0, 0..4), (0, 4..8)] {
                consumer.push(partition, offsets);
            }
            assert_eq!(consumer.take(read).len(), read);
            consumer.reset(u64::from(to), 0, false);
            let state = consumer.state(0);
            let next = read as u64;
            assert!(
                !state.is_beyond_position(next) && state.is_beyond_position(8),
                "{read} {to}: the delivered messages are known"
            );
            assert_eq!(state.commit_offset(next), if next > u64::from(to) { 1 } else { next }, "{read} {to}");
            consumer.push(1, 0..1);
            consumer.push(0, to..9);
            assert_eq!(consumer.take(rest).len(), rest);
            let commit = consumer.position(0);
            assert_eq!(
                (commit, consumer.state(0).commit_offset(commit)),
                (position, position),
                "{read} {to}"
            );
            let new: Vec<_> = (to..9).map(|offset| (0, u64::from(offset))).collect();
            assert_eq!(consumer.take(20), [vec![(1, 0)], new].concat(), "{read} {to}");
            assert_eq!((consumer.position(0), consumer.buffered()), (9, 0));
        }
    }

    #[test]
    fn a_truncation_without_a_valid_commit_keeps_existing_messages() {
        let mut consumer = Consumer::new(1);
        consumer.push(0, 0..8);
        assert_eq!(consumer.take(8).len(), 8);
        let state = consumer.state(0);
        state.truncate(5);
        assert_eq!(
            (
                state.commit_offset(8),
                state.commit_offset(5),
                state.commit_offset(3),
                state.is_beyond_position(9)
            ),
            (5, 5, 3, true)
        );
        // The log is truncated twice. Then retention removes the rest, and the reset moves forward.
        consumer.reset(3, 0, false);
        assert_eq!(consumer.state(0).commit_offset(8), 3);
        consumer.reset(20, 15, true);
        let state = consumer.state(0);
        assert_eq!(
            (state.commit_offset(8), state.commit_offset(18), state.is_beyond_position(21)),
            (20, 18, true)
        );
    }

    #[test]
    fn skipped_offsets_enter_the_position_after_earlier_messages() {
        let mut consumer = Consumer::new(2);
        consumer.push(0, 0..3);
        let (first, second) = (consumer.generation(0), consumer.generation(1));
        consumer.skip(0, first, 3, 5);
        consumer.skip(1, second, 0, 2);
        assert_eq!((consumer.position(0), consumer.position(1)), (0, 2));
        let batch = consumer.poll(2).unwrap().into_batch();
        let places =
            |batch: &Batch| batch.offsets().iter().map(|(p, at)| (p.partition, at)).collect::<Vec<_>>();
        assert_eq!(places(&batch), [(0, 2), (1, 2)]);
        assert_eq!(
            places(&consumer.poll(2).unwrap().into_batch()),
            [(0, 5)],
            "the end after the last message"
        );
        assert!(!consumer.state(0).is_beyond_position(5));
        assert!(places(&consumer.none()).is_empty(), "only once");
        // A result for another offset or another generation moves nothing.
        consumer.skip(0, first, 3, 9);
        consumer.seek(1, 0);
        consumer.skip(1, second, 0, 2);
        assert_eq!((consumer.position(0), consumer.position(1)), (5, 0));
        consumer.skip(0, first, 5, 6);
        consumer.seek(0, 1);
        assert!(places(&consumer.none()).is_empty(), "a seek is not a position to commit");
    }

    #[test]
    fn an_undelivered_batch_is_delivered_again() {
        let mut consumer = Consumer::new(2);
        consumer.push(0, 2..5);
        consumer.push(1, 0..3);
        let generation = consumer.generation(1);
        consumer.skip(1, generation, 3, 5);
        consumer.assignment.gain(at(2), 7, None);
        let buffered = consumer.buffered();
        let before = (consumer.position(0), consumer.position(1));
        for max in [1, 2, 4, 6, 9] {
            let polled = consumer.poll(max).unwrap();
            assert!(consumer.position(0) > before.0);
            consumer.buffer.put_back(&mut consumer.assignment, polled);
            assert_eq!((consumer.position(0), consumer.position(1)), before, "{max}");
            assert_eq!(consumer.buffered(), buffered, "{max}");
        }
        let batch = consumer.poll(9).unwrap().into_batch();
        let all: Vec<_> = batch.iter().map(|m| (m.partition, m.offset)).collect();
        assert_eq!(all, [(0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2)]);
        assert_eq!((batch.offsets().get(&at(0)), batch.offsets().get(&at(1))), (Some(5), Some(5)));
        assert_eq!(
            batch.events(),
            [SubscriptionEvent::AssignmentChanged { gained: vec![at(2)], lost: vec![] }]
        );
    }

    #[test]
    fn an_undelivered_batch_of_a_revoked_partition_is_dropped() {
        let mut consumer = Consumer::new(2);
        consumer.push(0, 0..2);
        consumer.push(1, 0..2);
        let polled = consumer.poll(4).unwrap();
        consumer.assignment.lose(&[at(0)]);
        consumer.seek(1, 1);
        consumer.buffer.put_back(&mut consumer.assignment, polled);
        assert!(consumer.poll(4).is_none());
        assert_eq!((consumer.position(1), consumer.buffered()), (1, 0));
    }
}
