//! The subscription of a group member.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use qi_core::bus::{
    AssignedPartition, Assignment, Batch, Committed, OffsetReset, Offsets, SeekTo, SubscribeRequest,
    TopicPartition,
};
use qi_core::{Result, Subscription};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::error;
use super::group::{Member, Topics};
use super::memory::Client;
use super::receive::{MemberRef, ReadOutcome};
use super::state::{Log, State, cooperate};
use super::topic::Partition;

/// The longest wait. It keeps `Duration::MAX` from overflowing a deadline.
const MAX_WAIT: Duration = Duration::from_hours(24 * 365);

/// A group member in memory. Its partitions and positions are stored in the group, so a dropped future
/// loses none of them.
#[derive(Debug)]
pub(super) struct MemorySubscription {
    log: Arc<Log>,
    client: Arc<Client>,
    member_ref: MemberRef,
    notify: Arc<Notify>,
    closed: bool,
}

impl MemorySubscription {
    /// Joins the group and takes free partitions.
    pub(super) fn join(log: Arc<Log>, client: Arc<Client>, request: SubscribeRequest) -> Result<Self> {
        let now = Instant::now();
        let notify = Arc::new(Notify::new());
        let member_ref = {
            let mut state = log.lock();
            if let Some(unknown) = request.topics.iter().find(|name| !state.topics.contains_key(*name)) {
                return Err(error::unknown_topic(unknown, "subscribe"));
            }
            state.expire(&log.config, log.clock.now(), now);
            let key = state.next_id();
            let member_ref = MemberRef { group: request.group.clone(), key };
            let State { topics, groups, .. } = &mut *state;
            let group = groups.entry(request.group.clone()).or_default();
            let (names, strict) = (request.topics.clone(), request.offset_reset == OffsetReset::Error);
            group.insert_member(key, Member::new(client.id, request, notify.clone(), now));
            group.rebalance(topics);
            group.apply_target(key, topics);
            if let Some(member) = group.members.get_mut(&key) {
                member.pending.clear_gained();
                let lost = member.owned.iter().find(|(_, owned)| owned.position.is_none());
                if let Some((partition, _)) = lost.filter(|_| strict) {
                    let error = error::no_valid_position(partition, "subscribe");
                    group.leave(key, topics);
                    let unused = group.members.is_empty() && group.commits.is_empty();
                    if unused {
                        groups.remove(&member_ref.group);
                    }
                    return Err(error);
                }
            }
            for name in &names {
                if let Some(topic) = topics.get_mut(name) {
                    topic.watch(&notify);
                }
            }
            member_ref
        };
        Ok(Self { log, client, member_ref, notify, closed: false })
    }

    fn check(&self, operation: &'static str) -> Result<()> {
        if self.closed || self.client.is_closed() { Err(error::closed(operation)) } else { Ok(()) }
    }

    /// Runs `work` on this member's state in the group, after expired members are removed.
    async fn with_member<T>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&mut Member, &Topics, &mut std::collections::BTreeMap<TopicPartition, u64>) -> Result<T>,
    ) -> Result<T> {
        cooperate().await;
        self.check(operation)?;
        if self.client.is_disconnected() {
            return Err(error::unavailable(operation));
        }
        let mut state = self.log.lock();
        let State { topics, groups, .. } = &mut *state;
        let group = groups.get_mut(&self.member_ref.group).ok_or_else(|| error::fenced(operation))?;
        group.expire(Instant::now(), topics);
        let member = group.members.get_mut(&self.member_ref.key).ok_or_else(|| error::fenced(operation))?;
        work(member, topics, &mut group.commits)
    }

    async fn set_paused(
        &self,
        partitions: &[TopicPartition],
        paused: bool,
        operation: &'static str,
    ) -> Result<()> {
        self.with_member(operation, |member, _, _| {
            for partition in partitions {
                if !member.owned.contains_key(partition) {
                    return Err(error::not_owned(partition, operation));
                }
            }
            for partition in partitions {
                if let Some(owned) = member.owned.get_mut(partition) {
                    owned.paused = paused;
                }
            }
            Ok(())
        })
        .await
    }

    /// Ends the membership. Other members continue from the last commit.
    fn end(&mut self) {
        if std::mem::replace(&mut self.closed, true) || self.client.is_closed() {
            return;
        }
        let mut state = self.log.lock();
        let State { topics, groups, .. } = &mut *state;
        for topic in topics.values_mut() {
            topic.unwatch(&self.notify);
        }
        if let Some(group) = groups.get_mut(&self.member_ref.group) {
            group.end_subscription(self.member_ref.key, Instant::now(), topics);
        }
        drop(state);
        self.log.space.notify_waiters();
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Subscription for MemorySubscription {
    async fn recv(&mut self, max: usize, wait: Duration) -> Result<Batch> {
        cooperate().await;
        self.check("recv")?;
        if max == 0 {
            return Err(error::zero_max());
        }
        let deadline = Instant::now() + wait.min(MAX_WAIT);
        loop {
            let now = Instant::now();
            let last = now >= deadline;
            self.check("recv")?;
            let event = if self.client.is_disconnected() {
                if last {
                    return Err(error::unavailable("recv"));
                }
                None
            } else {
                let time = self.log.clock.now();
                match self.log.lock().read_once(&self.member_ref, max, time, now, last)? {
                    ReadOutcome::Batch(batch) => return Ok(batch),
                    ReadOutcome::Empty(event) => event,
                }
            };
            let until = event.map_or(deadline, |event| event.min(deadline));
            let _guard = PollGuard { log: &self.log, member_ref: &self.member_ref };
            let _ = timeout_at(until, self.notify.notified()).await;
        }
    }

    async fn commit(&mut self, offsets: &Offsets) -> Result<Committed> {
        let committed = self
            .with_member("commit", |member, _, commits| {
                let (mut stored, mut lost) = (Offsets::new(), Vec::new());
                for (partition, next) in offsets.iter() {
                    match member.owned.get(partition) {
                        None => lost.push(partition.clone()),
                        Some(owned) if owned.position.is_none_or(|position| next > position) => {
                            let position = owned.position.unwrap_or_default();
                            return Err(error::beyond_position(partition, next, position));
                        }
                        Some(owned) => {
                            let next = owned.stored(next, commits.get(partition).copied());
                            stored.set(partition.clone(), next);
                        }
                    }
                }
                commits.extend(stored.iter().map(|(partition, next)| (partition.clone(), next)));
                Ok(Committed::new(stored, lost))
            })
            .await?;
        self.log.space.notify_waiters();
        Ok(committed)
    }

    async fn seek(&mut self, to: &[(TopicPartition, SeekTo)]) -> Result<()> {
        self.with_member("seek", |member, topics, _| {
            let mut found = Vec::with_capacity(to.len());
            for (partition, place) in to {
                let log = topics
                    .get(&partition.topic)
                    .and_then(|topic| topic.partition(partition.partition))
                    .filter(|_| member.owned.contains_key(partition))
                    .ok_or_else(|| error::not_owned(partition, "seek"))?;
                found.push((partition, resolve(log, *place)));
            }
            for (partition, position) in found {
                if let Some(owned) = member.owned.get_mut(partition) {
                    owned.position = Some(position);
                }
            }
            Ok(())
        })
        .await
    }

    async fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.set_paused(partitions, true, "pause").await
    }

    async fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.set_paused(partitions, false, "resume").await
    }

    async fn assignment(&mut self) -> Result<Assignment> {
        self.with_member("assignment", |member, topics, commits| {
            let partitions = member
                .owned
                .iter()
                .filter_map(|(partition, owned)| {
                    let log = topics.get(&partition.topic)?.partition(partition.partition)?;
                    let position = owned.position.unwrap_or(log.start);
                    let committed = commits.get(partition).copied();
                    Some(AssignedPartition::new(
                        partition.clone(),
                        position,
                        committed,
                        log.end.saturating_sub(position),
                        owned.paused,
                    ))
                })
                .collect();
            Ok(Assignment::new(member.epoch, partitions))
        })
        .await
    }

    async fn close(&mut self) -> Result<()> {
        cooperate().await;
        self.end();
        Ok(())
    }
}

impl Drop for MemorySubscription {
    /// Leaves the group like `close`, without waiting.
    fn drop(&mut self) {
        if !self.closed && !self.client.is_closed() {
            tracing::debug!(
                group = %self.member_ref.group,
                "subscription dropped without close; uncommitted messages will be redelivered"
            );
        }
        self.end();
    }
}

/// Returns the current offset of a seek target.
pub(super) fn resolve(log: &Partition, to: SeekTo) -> u64 {
    match to {
        SeekTo::Offset(offset) => offset,
        SeekTo::At(time) => log.first_at(time),
        SeekTo::Earliest => log.start,
        SeekTo::Latest => log.end,
    }
}

/// A `recv` that waits. The member counts as polling until the drop, which a wake-up or the drop of the future causes.
struct PollGuard<'a> {
    log: &'a Log,
    member_ref: &'a MemberRef,
}

impl Drop for PollGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.log.lock();
        let member = state
            .groups
            .get_mut(&self.member_ref.group)
            .and_then(|group| group.members.get_mut(&self.member_ref.key));
        if let Some(member) = member {
            member.polling = false;
            member.last_poll = Instant::now();
        }
    }
}
