//! Commits. One is in flight at a time, and partitions are revoked only when none is.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use qi_core::Result;
use qi_core::bus::{Committed, Positions, TopicPartition};
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};

use super::{Check, Client, ConsumerThread, RETRY_BACKOFF, Reply, error, offsets};
use crate::redpanda::offsets::OffsetSpec;

/// The pause before a commit that a rebalance rejected is repeated.
const COMMIT_RETRY_BACKOFF: Duration = Duration::from_millis(50);

/// The commits of a consumer.
#[derive(Default)]
pub(super) struct Commits {
    waiting: VecDeque<PendingCommit>,
    in_flight: bool,
    /// The commit of start offsets.
    pub(super) starts: Check,
    /// The commit of start offsets was tried since the last assignment.
    pub(super) starts_tried: bool,
}

/// A call of `commit`.
struct PendingCommit {
    offsets: Positions,
    lost: Vec<TopicPartition>,
    deadline: Instant,
    reply: Reply<Committed>,
}

impl Commits {
    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight
    }
}

fn store(client: &Client, offsets: &[(TopicPartition, u64)]) -> KafkaResult<()> {
    let list = offsets::list(offsets.iter().map(|(partition, next)| (partition, offsets::offset(*next))))?;
    client.commit(&list, CommitMode::Sync)
}

impl ConsumerThread {
    pub(super) fn begin_commit(&mut self, offsets: &Positions, reply: Reply<Committed>) {
        let deadline = Instant::now() + self.settings.commit_timeout;
        let mut commit = PendingCommit { offsets: Positions::new(), lost: Vec::new(), deadline, reply };
        if let Some(fatal) = &self.fatal {
            let _ = commit.reply.send(Err(fatal.clone()));
            return;
        }
        let overdue = self.is_overdue();
        for (partition, next) in offsets.iter() {
            match self.assignment.get(partition).filter(|_| !overdue) {
                Some(state) if state.is_beyond_position(next) => {
                    let refused = error::beyond_position(partition, next, state.position);
                    let _ = commit.reply.send(Err(refused));
                    return;
                }
                Some(_) => commit.offsets.set(partition.clone(), next),
                None => commit.lost.push(partition.clone()),
            }
        }
        self.commits.waiting.push_back(commit);
        self.next_commit();
    }

    /// Sends the next commit if none is in flight.
    fn next_commit(&mut self) {
        while !self.commits.in_flight
            && let Some(commit) = self.commits.waiting.pop_front()
        {
            // The caller gave it up before it was sent.
            if !commit.reply.is_closed() {
                self.send_commit(commit, Duration::ZERO);
            }
        }
    }

    /// Sends a commit of the partitions that are still assigned.
    fn send_commit(&mut self, mut commit: PendingCommit, delay: Duration) {
        let overdue = self.is_overdue();
        let mut assigned = Vec::with_capacity(commit.offsets.len());
        for (partition, next) in std::mem::take(&mut commit.offsets).iter() {
            match self.assignment.get(partition).filter(|_| !overdue) {
                Some(state) => assigned.push((partition.clone(), state.commit_offset(next))),
                None => commit.lost.push(partition.clone()),
            }
        }
        if assigned.is_empty() {
            return self.finish_commit(commit, Ok(()));
        }
        commit.offsets = assigned.iter().cloned().collect();
        self.commits.in_flight = true;
        let send = move |client: &Client| {
            std::thread::sleep(delay);
            store(client, &assigned)
        };
        self.request(send, |thread, result| thread.commit_answered(commit, result));
    }

    fn commit_answered(&mut self, mut commit: PendingCommit, result: KafkaResult<()>) {
        let Err(refused) = result else { return self.finish_commit(commit, Ok(())) };
        match error::code_of(&refused) {
            // The broker does not know this member any more: others have its partitions.
            Some(Code::UnknownMemberId | Code::AssignmentLost) => {
                let offsets = std::mem::take(&mut commit.offsets);
                commit.lost.extend(offsets.iter().map(|(partition, _)| partition.clone()));
                self.finish_commit(commit, Ok(()));
            }
            Some(
                Code::RebalanceInProgress
                | Code::IllegalGeneration
                | Code::CoordinatorLoadInProgress
                | Code::CoordinatorNotAvailable
                | Code::NotCoordinator
                | Code::WaitingForCoordinator,
            ) if Instant::now() < commit.deadline => self.send_commit(commit, COMMIT_RETRY_BACKOFF),
            _ if error::is_gone(&refused) => self.commit_without_deleted(commit, refused),
            _ => self.finish_commit(commit, Err(refused)),
        }
    }

    /// Repeats a commit without the partitions of deleted topics.
    fn commit_without_deleted(&mut self, mut commit: PendingCommit, refused: KafkaError) {
        let limit = self.settings.request_timeout;
        let asked: Vec<_> = commit.offsets.iter().map(|(partition, _)| partition.clone()).collect();
        let ends = move |client: &Client| {
            offsets::find_each(client, &asked, OffsetSpec::Latest, limit).unwrap_or_default()
        };
        self.request(ends, move |thread, ends: BTreeMap<_, _>| {
            let is_gone = |partition| matches!(ends.get(partition), Some(Err(e)) if error::is_gone(e));
            let (gone, left): (Vec<_>, Vec<_>) =
                commit.offsets.iter().partition(|(partition, _)| is_gone(*partition));
            if gone.is_empty() {
                return thread.finish_commit(commit, Err(refused));
            }
            commit.lost.extend(gone.into_iter().map(|(partition, _)| partition.clone()));
            commit.offsets = left.into_iter().map(|(partition, next)| (partition.clone(), next)).collect();
            thread.send_commit(commit, Duration::ZERO);
        });
    }

    fn finish_commit(&mut self, commit: PendingCommit, result: KafkaResult<()>) {
        let PendingCommit { offsets, lost, reply, .. } = commit;
        let result: Result<Committed> = match result {
            Ok(()) => {
                for (partition, next) in offsets.iter() {
                    if let Some(state) = self.assignment.get_mut(partition) {
                        state.commit_stored(next);
                    }
                }
                Ok(Committed::new(offsets, lost))
            }
            Err(error) => Err(self.client.context().connection.explain(error::of(error, "commit"))),
        };
        let _ = reply.send(result);
        self.commits.in_flight = false;
        self.next_commit();
    }

    /// Commits start offsets before their first messages are handed out, so that a takeover begins there, too.
    pub(super) fn commit_starts(&mut self) {
        let pending = self.assignment.partitions().iter();
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
        let offsets: Vec<_> =
            starts.iter().map(|(partition, _, start)| (partition.clone(), *start)).collect();
        let send = move |client: &Client| store(client, &offsets);
        self.request(send, move |thread, result| {
            thread.commits.starts.finish();
            (thread.commits.in_flight, thread.commits.starts_tried) = (false, true);
            match result {
                Ok(()) => {
                    for (partition, generation, start) in starts {
                        if let Some(state) = thread.assignment.current(&partition, generation) {
                            (state.committed, state.pending_commit) = (Some(start), None);
                        }
                    }
                }
                Err(error) => {
                    thread.request_failed(error);
                    thread.commits.starts.request(RETRY_BACKOFF);
                }
            }
            thread.next_commit();
        });
    }
}
