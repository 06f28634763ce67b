//! The assigned partitions of a consumer: positions, commit rules, and the events of the next batch. This module
//! performs no I/O.

use std::collections::BTreeMap;

use qi_core::Error;
use qi_core::bus::{SubscriptionEvent, TopicPartition};

/// The state of one assigned partition.
#[derive(Debug)]
pub(super) struct PartitionState {
    /// The number of this assignment or seek. Messages of another generation are dropped.
    pub(super) generation: u64,
    /// The next offset that `recv` returns.
    pub(super) position: u64,
    /// The next offset that librdkafka returns.
    pub(super) fetch_offset: u64,
    /// True if librdkafka does not fetch from `fetch_offset`. The partition must then be assigned again.
    pub(super) needs_reassign: bool,
    pub(super) committed: Option<u64>,
    /// A start offset that must be committed before the first message is returned.
    pub(super) pending_commit: Option<u64>,
    /// The first offset of the log at the last reset.
    pub(super) log_start: u64,
    /// The position before a truncation of the log moved it back.
    truncated_from: u64,
    pub(super) paused: bool,
    /// The error of an offset that does not exist, if the reset policy is an error. A seek clears it.
    pub(super) failed: Option<Error>,
    pub(super) buffered_bytes: usize,
}

impl PartitionState {
    /// Returns whether a message before `next` has not been returned to the caller.
    pub(super) fn is_beyond_position(&self, next: u64) -> bool {
        next > self.position.max(self.truncated_from)
    }

    /// Returns the offset to store for a commit of `next`. A commit of a batch from before a reset must not undo the
    /// reset. Therefore an offset that no longer exists is replaced by the valid commit.
    pub(super) fn commit_offset(&self, next: u64) -> u64 {
        self.replacement(next).unwrap_or(next)
    }

    /// Records that the broker stored the commit `next`.
    pub(super) fn commit_stored(&mut self, next: u64) {
        if let Some(valid) = self.replacement(next) {
            // The reset happened while the commit was in flight.
            self.pending_commit = Some(valid);
        } else {
            (self.committed, self.pending_commit) = (Some(next), None);
        }
    }

    /// Returns the offset that replaces the commit of an offset that no longer exists.
    fn replacement(&self, next: u64) -> Option<u64> {
        let valid = self.pending_commit.or(self.committed).filter(|valid| *valid >= self.log_start);
        if (self.position + 1..=self.truncated_from).contains(&next) {
            // Every message before the position was returned, and the caller commits all of them.
            return valid.or(Some(self.position));
        }
        valid.filter(|_| next < self.log_start)
    }

    /// Moves the position back if the log was truncated to `to`.
    pub(super) fn truncate(&mut self, to: u64) {
        if to < self.position {
            self.truncated_from = self.truncated_from.max(self.position);
            self.position = to;
        }
    }
}

/// The assigned partitions, and the events of the next batch.
#[derive(Debug, Default)]
pub(super) struct Assignment {
    pub(super) partitions: BTreeMap<TopicPartition, PartitionState>,
    /// The number of changes so far.
    pub(super) epoch: u64,
    generations: u64,
    /// The events of the next batch.
    pub(super) events: Vec<SubscriptionEvent>,
    gained: Vec<TopicPartition>,
    lost: Vec<TopicPartition>,
}

impl Assignment {
    /// Returns the partition if it still has this generation.
    pub(super) fn current(
        &mut self,
        partition: &TopicPartition,
        generation: u64,
    ) -> Option<&mut PartitionState> {
        self.partitions.get_mut(partition).filter(|state| state.generation == generation)
    }

    /// Adds a partition that begins at `start`.
    pub(super) fn gain(&mut self, partition: TopicPartition, start: u64, committed: Option<u64>) {
        let state = PartitionState {
            generation: self.next_generation(),
            position: start,
            fetch_offset: start,
            needs_reassign: false,
            committed,
            pending_commit: None,
            log_start: 0,
            truncated_from: 0,
            paused: false,
            failed: None,
            buffered_bytes: 0,
        };
        self.partitions.insert(partition.clone(), state);
        self.gained.push(partition);
    }

    fn next_generation(&mut self) -> u64 {
        self.generations += 1;
        self.generations
    }

    /// Removes partitions from the assignment.
    pub(super) fn lose(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            if self.partitions.remove(partition).is_some() {
                // A partition that was gained and lost between two batches appears in no event.
                match self.gained.iter().position(|gained| gained == partition) {
                    Some(at) => drop(self.gained.remove(at)),
                    None => self.lost.push(partition.clone()),
                }
            }
        }
    }

    /// Removes all partitions from the assignment.
    pub(super) fn lose_all(&mut self) {
        if !self.partitions.is_empty() {
            let all: Vec<_> = self.partitions.keys().cloned().collect();
            self.lose(&all);
            self.epoch += 1;
        }
    }

    /// Removes the event of the first assignment, which is the result of `subscribe`.
    pub(super) fn forget_gained(&mut self) {
        self.gained.clear();
    }

    /// Sets the position and the fetch offset of a partition after a seek.
    pub(super) fn seek(&mut self, partition: &TopicPartition, to: u64) {
        let generation = self.next_generation();
        if let Some(state) = self.partitions.get_mut(partition) {
            (state.generation, state.position, state.fetch_offset) = (generation, to, to);
            (state.buffered_bytes, state.truncated_from, state.failed) = (0, 0, None);
        }
    }

    /// Records whether librdkafka fetches from the fetch offset.
    pub(super) fn finish_seek(&mut self, partition: &TopicPartition, done: bool) {
        if let Some(state) = self.partitions.get_mut(partition) {
            state.needs_reassign = !done;
        }
    }

    /// Returns the buffered bytes of partitions that are not paused. Messages of paused partitions do not block others.
    pub(super) fn buffered_bytes(&self) -> usize {
        let read = self.partitions.values().filter(|state| !state.paused);
        read.map(|state| state.buffered_bytes).sum()
    }

    /// Returns the error of the first partition that failed and is not paused.
    pub(super) fn failure(&self) -> Option<Error> {
        self.partitions.values().filter(|state| !state.paused).find_map(|state| state.failed.clone())
    }

    /// Takes the events of the next batch.
    pub(super) fn take_events(&mut self) -> Vec<SubscriptionEvent> {
        let mut events = std::mem::take(&mut self.events);
        if !self.gained.is_empty() || !self.lost.is_empty() {
            let (gained, lost) = (std::mem::take(&mut self.gained), std::mem::take(&mut self.lost));
            events.push(SubscriptionEvent::AssignmentChanged { gained, lost });
        }
        events
    }
}
