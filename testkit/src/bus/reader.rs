//! The memory bus's reader without a group. It keeps its own positions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use qi_core::bus::{
    AssignedPartition, Assignment, Batch, Committed, OffsetReset, Offsets, ReaderRequest, SeekTo,
    TopicPartition,
};
use qi_core::{Result, Subscription};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::error;
use super::group::{OwnedPartition, PendingEvents, Start, start};
use super::memory::Client;
use super::receive::{BatchBuilder, Limits};
use super::state::{Log, State, cooperate};
use super::subscription::resolve;

/// The longest wait. It keeps `Duration::MAX` from overflowing a deadline.
const MAX_WAIT: Duration = Duration::from_hours(24 * 365);

#[derive(Debug)]
struct ReaderPartition {
    /// The id of the topic. A later topic with the same name has another id.
    topic: u64,
    owned: OwnedPartition,
    deleted: bool,
}

/// A reader of partitions from any position, without commits.
#[derive(Debug)]
pub(super) struct MemoryReader {
    log: Arc<Log>,
    client: Arc<Client>,
    assigned: BTreeMap<TopicPartition, ReaderPartition>,
    pending: PendingEvents,
    max_bytes: usize,
    /// The index of the partition with which the next read begins.
    turn: usize,
    notify: Arc<Notify>,
    closed: bool,
}

impl MemoryReader {
    /// Opens a reader at the positions of the request.
    pub(super) fn open(log: Arc<Log>, client: Arc<Client>, request: &ReaderRequest) -> Result<Self> {
        let notify = Arc::new(Notify::new());
        let mut assigned = BTreeMap::new();
        {
            let mut state = log.lock();
            for (partition, to) in &request.from {
                let topic = state
                    .topic(&partition.topic)
                    .ok_or_else(|| error::unknown_topic(&partition.topic, "open_reader"))?;
                let at = topic.partition(partition.partition).ok_or_else(|| {
                    error::unknown_partition(&partition.topic, partition.partition, "open_reader")
                })?;
                let owned = OwnedPartition::new(Some(resolve(at, *to)));
                assigned
                    .insert(partition.clone(), ReaderPartition { topic: topic.id, owned, deleted: false });
            }
            for name in request.from.iter().map(|(partition, _)| &partition.topic) {
                if let Some(topic) = state.topics.get_mut(name) {
                    // A topic with several partitions is watched once.
                    topic.unwatch(&notify);
                    topic.watch(&notify);
                }
            }
        }
        Ok(Self {
            log,
            client,
            assigned,
            pending: PendingEvents::default(),
            max_bytes: request.max_buffered_bytes,
            turn: 0,
            notify,
            closed: false,
        })
    }

    fn check(&self, operation: &'static str) -> Result<()> {
        if self.closed || self.client.is_closed() { Err(error::closed(operation)) } else { Ok(()) }
    }

    async fn enter(&self, operation: &'static str) -> Result<()> {
        cooperate().await;
        self.check(operation)?;
        if self.client.is_disconnected() { Err(error::unavailable(operation)) } else { Ok(()) }
    }

    /// Reads the log once. Returns None if there are no messages, unless `last` is set. Events alone do not end a
    /// wait.
    fn read_once(&mut self, max: usize, last: bool) -> Result<Option<Batch>> {
        let mut state = self.log.lock();
        let State { topics, used, .. } = &mut *state;
        let time = self.log.clock.now();
        let mut builder = BatchBuilder::new(Limits { messages: max, bytes: self.max_bytes });
        let mut any_exists = false;
        for (partition, entry) in &mut self.assigned {
            let topic = topics.get_mut(&partition.topic).filter(|topic| topic.id == entry.topic);
            entry.deleted = topic.is_none();
            let Some(topic) = topic else {
                self.pending.delete(&partition.topic);
                continue;
            };
            any_exists = true;
            *used -= topic.expire(time);
            // A reader without a group has no `offset_reset`. If its position no longer exists, it continues
            // at the low watermark.
            if let Some(log) = topic.partition(partition.partition)
                && let Start::Reset { from, to } = start(log, entry.owned.position, OffsetReset::Earliest)
            {
                self.pending.reset(partition.clone(), from, to);
                entry.owned.position = Some(to);
            }
        }
        if let Some((partition, _)) = self.assigned.first_key_value().filter(|_| !any_exists) {
            return Err(error::unknown_topic(&partition.topic, "recv"));
        }
        let count = self.assigned.len();
        for step in 0..count {
            if builder.is_full() {
                break;
            }
            let at = (self.turn + step) % count;
            if let Some((partition, entry)) = self.assigned.iter_mut().nth(at)
                && let Some(position) = entry.owned.position
                && !entry.owned.paused
                && !entry.deleted
            {
                entry.owned.position = Some(builder.fill(topics, partition, position));
                if builder.is_full() {
                    self.turn = (at + 1) % count;
                }
            }
        }
        Ok((last || !builder.is_empty()).then(|| builder.finish(&mut self.pending)))
    }

    fn set_paused(
        &mut self,
        partitions: &[TopicPartition],
        paused: bool,
        operation: &'static str,
    ) -> Result<()> {
        if let Some(other) = partitions.iter().find(|partition| !self.assigned.contains_key(*partition)) {
            return Err(error::not_owned(other, operation));
        }
        for partition in partitions {
            if let Some(entry) = self.assigned.get_mut(partition) {
                entry.owned.paused = paused;
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        let mut state = self.log.lock();
        for partition in self.assigned.keys() {
            if let Some(topic) = state.topics.get_mut(&partition.topic) {
                topic.unwatch(&self.notify);
            }
        }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Subscription for MemoryReader {
    async fn recv(&mut self, max: usize, wait: Duration) -> Result<Batch> {
        cooperate().await;
        self.check("recv")?;
        if max == 0 {
            return Err(error::zero_max());
        }
        let deadline = Instant::now() + wait.min(MAX_WAIT);
        loop {
            let last = Instant::now() >= deadline;
            self.check("recv")?;
            if self.client.is_disconnected() {
                if last {
                    return Err(error::unavailable("recv"));
                }
            } else if let Some(batch) = self.read_once(max, last)? {
                return Ok(batch);
            }
            // A reader is not a member, so a close or reconnect of its client does not wake it. It checks every 100 ms.
            let until = deadline.min(Instant::now() + Duration::from_millis(100));
            let _ = timeout_at(until, self.notify.notified()).await;
        }
    }

    async fn commit(&mut self, _offsets: &Offsets) -> Result<Committed> {
        self.enter("commit").await?;
        Err(error::no_group())
    }

    async fn seek(&mut self, to: &[(TopicPartition, SeekTo)]) -> Result<()> {
        self.enter("seek").await?;
        let state = self.log.lock();
        let mut found = Vec::with_capacity(to.len());
        for (partition, target) in to {
            if !self.assigned.contains_key(partition) {
                return Err(error::not_owned(partition, "seek"));
            }
            let log = state
                .topic(&partition.topic)
                .and_then(|topic| topic.partition(partition.partition))
                .ok_or_else(|| error::unknown_topic(&partition.topic, "seek"))?;
            found.push((partition, resolve(log, *target)));
        }
        for (partition, position) in found {
            if let Some(entry) = self.assigned.get_mut(partition) {
                entry.owned.position = Some(position);
            }
        }
        Ok(())
    }

    async fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.enter("pause").await?;
        self.set_paused(partitions, true, "pause")
    }

    async fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.enter("resume").await?;
        self.set_paused(partitions, false, "resume")
    }

    async fn assignment(&mut self) -> Result<Assignment> {
        self.enter("assignment").await?;
        let state = self.log.lock();
        let partitions = self
            .assigned
            .iter()
            .filter_map(|(partition, entry)| {
                let log = state.topic(&partition.topic)?.partition(partition.partition)?;
                let position = entry.owned.position.unwrap_or(log.start);
                let lag = log.end.saturating_sub(position);
                Some(AssignedPartition::new(partition.clone(), position, None, lag, entry.owned.paused))
            })
            .collect();
        // The partitions of a reader never change, and neither does the epoch.
        Ok(Assignment::new(1, partitions))
    }

    async fn close(&mut self) -> Result<()> {
        cooperate().await;
        self.end();
        Ok(())
    }
}

impl Drop for MemoryReader {
    fn drop(&mut self) {
        self.end();
    }
}
