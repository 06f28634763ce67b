//! Commits. At most one commit is in flight, and partitions are revoked only when no commit is in flight.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use qi_core::bus::{Committed, Offsets, TopicPartition};
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaResult, RDKafkaErrorCode as Code};

use super::{Check, Client, ConsumerThread, RETRY_BACKOFF, Reply, error, offsets};
use crate::redpanda::offsets::OffsetSpec;

/// The backoff before a commit is retried during a rebalance or a change of the coordinator.
const COMMIT_RETRY_BACKOFF: Duration = Duration::from_millis(50);

/// The commits of a consumer.
#[derive(Default)]
pub(super) struct Commits {
    waiting: VecDeque<PendingCommit>,
    pub(super) in_flight: bool,
    /// Schedules the commit of start offsets.
    starts: Check,
    /// True if the commit of start offsets was tried since the last assignment.
    pub(super) starts_tried: bool,
}

/// A call of `commit`.
struct PendingCommit {
    offsets: Offsets,
    deadline: Instant,
    reply: Reply<Committed>,
}

impl ConsumerThread {
    pub(in crate::redpanda) fn commit(&mut self, offsets: Offsets, reply: Reply<Committed>) {
        let deadline = Instant::now() + self.settings.commit_timeout;
        let beyond = |(partition, next): (&TopicPartition, u64)| {
            let state = self.assignment.partitions.get(partition).filter(|_| !self.is_overdue())?;
            let beyond = state.is_beyond_position(next);
            beyond.then(|| error::beyond_position(partition, next, state.position))
        };
        let rejected = self.fatal.clone().or_else(|| offsets.iter().find_map(beyond));
        match rejected {
            Some(rejected) => drop(reply.send(Err(rejected))),
            None => self.commits.waiting.push_back(PendingCommit { offsets, deadline, reply }),
        }
        self.next_commit();
    }

    /// Sends the next commit if no commit is in flight. The commit contains the partitions that are still assigned. An
    /// offset that no longer exists is replaced by the valid commit.
    fn next_commit(&mut self) {
        if self.commits.in_flight {
            return;
        }
        let Some(PendingCommit { offsets, mut deadline, reply }) = self.commits.waiting.pop_front() else {
            return;
        };
        // No offset is committed if the maximum poll interval has passed or the caller dropped the future.
        let skip = self.is_overdue() || reply.is_closed();
        let (mut assigned, mut lost) = (Offsets::new(), Vec::new());
        for (partition, next) in offsets.iter() {
            match self.assignment.partitions.get(partition).filter(|_| !skip) {
                Some(state) => assigned.set(partition.clone(), state.commit_offset(next)),
                None => lost.push(partition.clone()),
            }
        }
        if assigned.is_empty() {
            let _ = reply.send(Ok(Committed::new(assigned, lost)));
            return self.next_commit();
        }
        if let Some(limit) = self.settings.max_poll_interval {
            // Other members may own the partitions after the interval.
            deadline = deadline.min(self.last_poll + limit);
        }
        self.commits.in_flight = true;
        let limit = self.settings.request_timeout;
        let commit = move |client: &Client| {
            let result = commit_with_retries(client, &mut assigned, &mut lost, deadline, limit);
            result.map(|()| Committed::new(assigned, lost))
        };
        self.request(commit, move |thread, result| {
            for (partition, next) in result.iter().flat_map(|committed| committed.stored.iter()) {
                if let Some(state) = thread.assignment.partitions.get_mut(partition) {
                    state.commit_stored(next);
                }
            }
            let failed = |e| thread.client.context().connection.auth_error_or(error::from_kafka(e, "commit"));
            let _ = reply.send(result.map_err(failed));
            thread.commits.in_flight = false;
            thread.next_commit();
        });
    }

    /// Commits start offsets before their first messages are returned, so that a takeover begins at the same offsets.
    pub(super) fn commit_starts(&mut self) {
        let pending = self.assignment.partitions.iter();
        let starts: Vec<_> = pending
            .filter_map(|(partition, state)| {
                Some((partition.clone(), state.generation, state.pending_commit?))
            })
            .collect();
        if starts.is_empty() {
            self.commits.starts_tried = true;
            return;
        }
        self.commits.starts.request(Duration::ZERO);
        if self.commits.in_flight || !self.commits.starts.start() {
            return;
        }
        self.commits.in_flight = true;
        let offsets: Offsets =
            starts.iter().map(|(partition, _, start)| (partition.clone(), *start)).collect();
        self.request(
            move |client| commit_sync(client, &offsets),
            move |thread, result| {
                thread.commits.starts.finish();
                (thread.commits.in_flight, thread.commits.starts_tried) = (false, true);
                if let Err(error) = result {
                    thread.request_failed(error);
                    thread.commits.starts.request(RETRY_BACKOFF);
                } else {
                    for (partition, generation, start) in starts {
                        // If a reset changed the start during the commit, the new start is committed next.
                        if let Some(state) = thread.assignment.current(&partition, generation)
                            && state.pending_commit == Some(start)
                        {
                            (state.committed, state.pending_commit) = (Some(start), None);
                        }
                    }
                }
                thread.next_commit();
            },
        );
    }
}

fn commit_sync(client: &Client, offsets: &Offsets) -> KafkaResult<()> {
    let list = offsets::list(offsets.iter().map(|(partition, next)| (partition, offsets::offset(next))))?;
    client.commit(&list, CommitMode::Sync)
}

/// Commits offsets. Retries until the deadline while the group rebalances or its coordinator is unavailable. Moves lost
/// partitions to `lost`.
fn commit_with_retries(
    client: &Client,
    offsets: &mut Offsets,
    lost: &mut Vec<TopicPartition>,
    deadline: Instant,
    limit: Duration,
) -> KafkaResult<()> {
    while !offsets.is_empty() {
        let Err(rejected) = commit_sync(client, offsets) else { break };
        let ends = match error::code_of(&rejected) {
            // The broker no longer knows this member. Other members own its partitions.
            Some(Code::UnknownMemberId | Code::AssignmentLost) => None,
            Some(
                Code::RebalanceInProgress
                | Code::IllegalGeneration
                | Code::CoordinatorLoadInProgress
                | Code::CoordinatorNotAvailable
                | Code::NotCoordinator
                | Code::WaitingForCoordinator,
            ) if Instant::now() < deadline => {
                std::thread::sleep(COMMIT_RETRY_BACKOFF);
                continue;
            }
            // Offsets in a deleted topic cannot be stored.
            _ if error::is_missing(&rejected) => {
                let partitions = offsets.iter().map(|(partition, _)| partition);
                Some(offsets::find_each(client, partitions, OffsetSpec::Latest, limit).unwrap_or_default())
            }
            _ => return Err(rejected),
        };
        let is_lost = |partition: &TopicPartition| match &ends {
            None => true,
            Some(ends) => matches!(ends.get(partition), Some(Err(error)) if error::is_missing(error)),
        };
        let before = lost.len();
        lost.extend(offsets.iter().map(|(partition, _)| partition).filter(|p| is_lost(p)).cloned());
        if lost.len() == before {
            return Err(rejected);
        }
        let left = offsets.iter().filter(|(partition, _)| !is_lost(partition));
        *offsets = left.map(|(partition, next)| (partition.clone(), next)).collect();
    }
    Ok(())
}
