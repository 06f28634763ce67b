//! Consumer groups: members, assignments and commits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use qi_core::Timestamp;
use qi_core::bus::{
    Batch, OffsetReset, Offsets, SubscribeRequest, SubscriptionEvent, TopicName, TopicPartition,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::assign::assign;
use super::topic::{Partition, Topic};

pub(super) type Topics = BTreeMap<TopicName, Topic>;

/// A partition that a member owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnedPartition {
    /// The offset of the next message for `recv`. None if `OffsetReset::Error` finds no valid position.
    pub(super) position: Option<u64>,
    pub(super) paused: bool,
    /// The low watermark at the last reset of the position. Older offsets no longer existed at that time.
    pub(super) floor: u64,
}

impl OwnedPartition {
    pub(super) fn new(position: Option<u64>) -> Self {
        Self { position, paused: false, floor: 0 }
    }

    /// Returns the offset that a commit of `next` stores. A batch from before a reset must not undo the reset. So if
    /// `next` is below the floor, a commit of the group at the floor or above remains.
    pub(super) fn stored(&self, next: u64, committed: Option<u64>) -> u64 {
        let settled = committed.filter(|_| next < self.floor).filter(|commit| *commit >= self.floor);
        settled.unwrap_or(next)
    }
}

/// The state of a membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Membership {
    Active,
    /// The member was unreachable for longer than its session timeout.
    SessionExpired,
    /// The member did not call `recv` within its maximum poll interval.
    MaxPollIntervalExceeded,
}

/// The events of a member's next batch. The size is bounded, because it holds each partition at most once.
#[derive(Debug, Default)]
pub(super) struct PendingEvents {
    gained: BTreeSet<TopicPartition>,
    lost: BTreeSet<TopicPartition>,
    resets: BTreeMap<TopicPartition, (u64, u64)>,
    /// The deleted topics, each with true if a batch has reported the deletion.
    deleted: BTreeMap<TopicName, bool>,
    max_poll_interval: bool,
}

impl PendingEvents {
    fn lose(&mut self, partition: TopicPartition) {
        self.resets.remove(&partition);
        // A partition that was gained and lost between two batches is not reported.
        if !self.gained.remove(&partition) {
            self.lost.insert(partition);
        }
    }

    /// Records the reset of a position. Several resets become one, from the first `from` to the last `to`.
    pub(super) fn reset(&mut self, partition: TopicPartition, from: u64, to: u64) {
        self.resets.entry(partition).and_modify(|known| known.1 = to).or_insert((from, to));
    }

    /// Records the deletion of a topic.
    pub(super) fn delete(&mut self, topic: &TopicName) {
        if !self.deleted.contains_key(topic) {
            self.deleted.insert(topic.clone(), false);
        }
    }

    /// Removes reported deletions of topics that exist again.
    pub(super) fn clear_recreated(&mut self, topics: &Topics) {
        self.deleted.retain(|topic, reported| !*reported || !topics.contains_key(topic));
    }

    /// Discards the gained partitions. The result of `subscribe` is the first assignment, not a change for
    /// a batch to report.
    pub(super) fn clear_gained(&mut self) {
        self.gained.clear();
    }

    /// Takes the events. Each event is reported once.
    pub(super) fn take(&mut self) -> Vec<SubscriptionEvent> {
        let mut deleted = std::mem::take(&mut self.deleted);
        let Self { gained, lost, resets, max_poll_interval, .. } = std::mem::take(self);
        let mut events = Vec::new();
        for (topic, reported) in &mut deleted {
            if !std::mem::replace(reported, true) {
                events.push(SubscriptionEvent::TopicDeleted { topic: topic.clone() });
            }
        }
        self.deleted = deleted;
        if max_poll_interval {
            events.push(SubscriptionEvent::MaxPollIntervalExceeded);
        }
        if !gained.is_empty() || !lost.is_empty() {
            let (gained, lost) = (gained.into_iter().collect(), lost.into_iter().collect());
            events.push(SubscriptionEvent::AssignmentChanged { gained, lost });
        }
        events.extend(resets.into_iter().map(|(partition, (from, to))| SubscriptionEvent::Reset {
            partition,
            from,
            to,
        }));
        events
    }
}

/// A member of a group, from the group's view.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) client: u64,
    pub(super) request: SubscribeRequest,
    pub(super) owned: BTreeMap<TopicPartition, OwnedPartition>,
    pub(super) epoch: u64,
    pub(super) pending: PendingEvents,
    pub(super) notify: Arc<Notify>,
    pub(super) membership: Membership,
    /// True while a `recv` waits.
    pub(super) polling: bool,
    pub(super) last_poll: Instant,
    /// The time since which the member sends no heartbeats.
    pub(super) unreachable_since: Option<Instant>,
    /// True if the subscription was dropped, so the member cannot return.
    pub(super) dropped: bool,
    /// The index of the partition at which the next batch begins, so that no partition starves.
    pub(super) turn: usize,
    /// True if a batch has announced the revocation of partitions by the next `recv`.
    announced: bool,
}

impl Member {
    pub(super) fn new(client: u64, request: SubscribeRequest, notify: Arc<Notify>, now: Instant) -> Self {
        Self {
            client,
            request,
            owned: BTreeMap::new(),
            epoch: 0,
            pending: PendingEvents::default(),
            notify,
            membership: Membership::Active,
            polling: false,
            last_poll: now,
            unreachable_since: None,
            dropped: false,
            turn: 0,
            announced: false,
        }
    }

    /// Returns whether the group reserves the partitions of this member after its departure. The group reserves them
    /// for a static member, and for an unreachable member, whose departure it cannot notice.
    fn keeps_partitions_after_departure(&self) -> bool {
        self.request.group_instance_id.is_some() || self.unreachable_since.is_some()
    }

    /// Returns the next deadline: the end of the session or of the maximum poll interval.
    fn expires(&self) -> Option<Instant> {
        if self.membership != Membership::Active {
            return None;
        }
        let session =
            self.unreachable_since.and_then(|since| since.checked_add(self.request.session_timeout));
        let poll =
            if self.polling { None } else { self.last_poll.checked_add(self.request.max_poll_interval) };
        session.into_iter().chain(poll).min()
    }
}

/// A consumer group with its members and commits.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) members: BTreeMap<u64, Member>,
    pub(super) commits: BTreeMap<TopicPartition, u64>,
    /// The member that should own each partition.
    pub(super) target: BTreeMap<TopicPartition, u64>,
    /// The member that owns each partition now.
    pub(super) owners: BTreeMap<TopicPartition, u64>,
    /// The time since which the group has had no members.
    empty_since: Option<Timestamp>,
    /// The time since which no member has subscribed to a topic, for topics with commits of the group.
    left_since: BTreeMap<TopicName, Timestamp>,
}

/// The start position of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// The requested position, which is valid.
    Committed(u64),
    /// A position by `offset_reset`, because none was requested.
    Initial(u64),
    /// A position by `offset_reset`, because the requested position no longer exists.
    Reset { from: u64, to: u64 },
    /// No position, by `OffsetReset::Error`.
    Fail,
}

/// Returns the position at which a reader starts that requests `position` of `partition`.
pub(super) fn start(partition: &Partition, position: Option<u64>, offset_reset: OffsetReset) -> Start {
    if let Some(position) = position.filter(|position| partition.holds(*position)) {
        return Start::Committed(position);
    }
    let to = match offset_reset {
        OffsetReset::Earliest => partition.start,
        OffsetReset::Latest => partition.end,
        OffsetReset::At(time) => partition.first_at(time),
        OffsetReset::Error => return Start::Fail,
    };
    position.map_or(Start::Initial(to), |from| Start::Reset { from, to })
}

impl Group {
    /// Returns whether the group has commits or members on a topic.
    pub(super) fn reads(&self, topic: &TopicName) -> bool {
        self.commits.keys().any(|partition| partition.topic == *topic)
            || self.members.values().any(|member| member.request.topics.contains(topic))
    }

    /// Computes a new target assignment. Owners change later: members give up and take partitions inside `recv`.
    pub(super) fn rebalance(&mut self, topics: &Topics) {
        let members: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| member.membership == Membership::Active)
            .map(|(key, member)| (*key, &member.request.topics[..]))
            .collect();
        let wanted: BTreeSet<_> = members
            .iter()
            .flat_map(|(_, names)| names.iter())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .filter_map(|name| Some((name, topics.get(name)?)))
            .flat_map(|(name, topic)| {
                (0..topic.count().get()).map(move |partition| TopicPartition::new(name.clone(), partition))
            })
            .collect();
        // Owners take precedence over earlier targets, so a target that its member never took does
        // not move a partition.
        let mut before = self.target.clone();
        before.extend(self.owners.iter().map(|(partition, owner)| (partition.clone(), *owner)));
        self.target = assign(&members, &wanted, &before);
        self.wake();
    }

    pub(super) fn wake(&self) {
        for member in self.members.values() {
            member.notify.notify_one();
        }
    }

    /// Ends the membership of members whose session or maximum poll interval has passed.
    pub(super) fn expire(&mut self, now: Instant, topics: &Topics) {
        let silent: Vec<u64> = self
            .members
            .iter()
            .filter(|(_, member)| member.expires().is_some_and(|at| at <= now))
            .map(|(key, _)| *key)
            .collect();
        if silent.is_empty() {
            return;
        }
        for key in silent {
            self.release_all(key);
            if let Some(member) = self.members.get_mut(&key) {
                let session = member
                    .unreachable_since
                    .and_then(|since| since.checked_add(member.request.session_timeout))
                    .is_some_and(|at| at <= now);
                if session && member.dropped {
                    self.members.remove(&key);
                } else if session {
                    member.membership = Membership::SessionExpired;
                } else {
                    member.membership = Membership::MaxPollIntervalExceeded;
                    member.pending.max_poll_interval = true;
                }
            }
        }
        self.rebalance(topics);
    }

    /// Returns the next deadline of a member, at which the group changes.
    pub(super) fn next_event(&self) -> Option<Instant> {
        self.members.values().filter_map(Member::expires).min()
    }

    /// Readmits an expired member.
    pub(super) fn rejoin(&mut self, key: u64, now: Instant, topics: &Topics) {
        if let Some(member) = self.members.get_mut(&key)
            && member.membership != Membership::Active
        {
            member.membership = Membership::Active;
            member.last_poll = now;
            self.rebalance(topics);
        }
    }

    /// Removes a member immediately.
    pub(super) fn leave(&mut self, key: u64, topics: &Topics) {
        self.release_all(key);
        if self.members.remove(&key).is_some() {
            self.rebalance(topics);
        }
    }

    /// Ends the subscription of a member. A static member keeps its partitions until its session passes, so a quick
    /// restart moves no partition. Other members leave immediately.
    pub(super) fn end_subscription(&mut self, key: u64, now: Instant, topics: &Topics) {
        match self.members.get_mut(&key) {
            Some(member)
                if member.membership == Membership::Active && member.keeps_partitions_after_departure() =>
            {
                member.dropped = true;
                member.polling = false;
                member.unreachable_since.get_or_insert(now);
            }
            _ => self.leave(key, topics),
        }
    }

    /// Inserts a new member. If a member with the same static id exists, the new member replaces it.
    pub(super) fn insert_member(&mut self, key: u64, member: Member) {
        let old = member.request.group_instance_id.as_ref().and_then(|id| {
            self.members
                .iter()
                .find(|(_, m)| m.request.group_instance_id.as_ref() == Some(id))
                .map(|(old, _)| *old)
        });
        if let Some(old) = old {
            self.owners.retain(|_, owner| *owner != old);
            for owner in self.target.values_mut().filter(|owner| **owner == old) {
                *owner = key;
            }
            if let Some(gone) = self.members.remove(&old) {
                gone.notify.notify_one();
            }
        }
        self.empty_since = None;
        self.left_since.retain(|topic, _| !member.request.topics.contains(topic));
        self.members.insert(key, member);
    }

    fn release_all(&mut self, key: u64) {
        self.owners.retain(|_, owner| *owner != key);
        if let Some(member) = self.members.get_mut(&key) {
            let owned = std::mem::take(&mut member.owned);
            if !owned.is_empty() {
                member.epoch += 1;
            }
            for partition in owned.into_keys() {
                member.pending.lose(partition);
            }
        }
    }

    /// Returns the announcement of a revocation, once, to a member that requested announcements.
    pub(super) fn announce_revocation(&mut self, key: u64) -> Option<Batch> {
        let member = self.members.get_mut(&key).filter(|member| member.request.announce_revocations)?;
        let revokes = member.owned.keys().any(|partition| self.target.get(partition) != Some(&key));
        if !revokes || std::mem::replace(&mut member.announced, revokes) {
            member.announced = false;
            return None;
        }
        member.polling = false;
        let mut events = member.pending.take();
        events.push(SubscriptionEvent::RevocationPending);
        Some(Batch::new(Vec::new(), Offsets::new(), events))
    }

    /// Applies the target assignment to a member inside `recv`: releases partitions of other members
    /// and takes free partitions.
    pub(super) fn apply_target(&mut self, key: u64, topics: &Topics) {
        let Some(member) = self.members.get_mut(&key) else { return };
        let given: Vec<_> = member
            .owned
            .keys()
            .filter(|partition| self.target.get(*partition) != Some(&key))
            .cloned()
            .collect();
        for partition in &given {
            member.owned.remove(partition);
            member.pending.lose(partition.clone());
            self.owners.remove(partition);
        }
        let taken: Vec<_> = self
            .target
            .iter()
            .filter(|(partition, owner)| **owner == key && !self.owners.contains_key(*partition))
            .map(|(partition, _)| partition.clone())
            .collect();
        for partition in &taken {
            let Some(log) =
                topics.get(&partition.topic).and_then(|topic| topic.partition(partition.partition))
            else {
                continue;
            };
            let mut owned = OwnedPartition::new(None);
            owned.position =
                match start(log, self.commits.get(partition).copied(), member.request.offset_reset) {
                    Start::Committed(at) => Some(at),
                    // The start is committed before the first message is delivered, so a takeover before the reader's
                    // first commit begins at the same position.
                    Start::Initial(at) => {
                        self.commits.insert(partition.clone(), at);
                        Some(at)
                    }
                    Start::Reset { from, to } => {
                        self.commits.insert(partition.clone(), to);
                        member.pending.reset(partition.clone(), from, to);
                        owned.floor = log.start;
                        Some(to)
                    }
                    Start::Fail => None,
                };
            member.owned.insert(partition.clone(), owned);
            member.pending.gained.insert(partition.clone());
            self.owners.insert(partition.clone(), key);
        }
        if !given.is_empty() || !taken.is_empty() {
            member.epoch += 1;
        }
        if !given.is_empty() {
            self.wake();
        }
    }

    /// Removes the state of a deleted topic and of its partitions.
    pub(super) fn remove_topic(&mut self, topic: &TopicName, topics: &Topics) {
        self.commits.retain(|partition, _| partition.topic != *topic);
        self.left_since.remove(topic);
        self.owners.retain(|partition, _| partition.topic != *topic);
        for member in self.members.values_mut() {
            let gone: Vec<_> = member.owned.keys().filter(|p| p.topic == *topic).cloned().collect();
            for partition in gone {
                member.owned.remove(&partition);
                member.pending.lose(partition);
                member.epoch += 1;
            }
        }
        self.rebalance(topics);
    }

    /// Returns the number of uncommitted messages in all topics of the group.
    pub(super) fn lag(&self, topics: &Topics) -> u64 {
        topics
            .iter()
            .filter(|(name, _)| self.reads(name))
            .flat_map(|(name, topic)| {
                topic.partitions.iter().zip(0_u32..).map(|(log, id)| {
                    let commit = self.commits.get(&TopicPartition::new(name.clone(), id));
                    log.end.saturating_sub(commit.copied().unwrap_or(log.start))
                })
            })
            .sum()
    }

    /// Removes the commits in topics to which no member has subscribed for `keep`. Otherwise these commits would
    /// prevent the eviction of messages that the group no longer reads.
    pub(super) fn expire_unsubscribed_commits(&mut self, now: Timestamp, keep: Duration) {
        let Self { members, commits, left_since, .. } = self;
        let left: BTreeSet<TopicName> = commits
            .keys()
            .map(|partition| &partition.topic)
            .filter(|topic| !members.values().any(|member| member.request.topics.contains(topic)))
            .cloned()
            .collect();
        left_since.retain(|topic, _| left.contains(topic));
        for topic in left {
            let since = *left_since.entry(topic.clone()).or_insert(now);
            if now.duration_since(since) >= keep {
                commits.retain(|partition, _| partition.topic != topic);
                left_since.remove(&topic);
            }
        }
    }

    /// Returns the time for which the group has had no members.
    pub(super) fn idle_for(&mut self, now: Timestamp) -> Duration {
        if self.members.is_empty() {
            now.duration_since(*self.empty_since.get_or_insert(now))
        } else {
            self.empty_since = None;
            Duration::ZERO
        }
    }
}
