//! A consumer group: members, who owns what, and what is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use qi_core::Timestamp;
use qi_core::bus::{Batch, Notice, Positions, StartFrom, Subscribe, TopicName, TopicPartition};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::assign::assign;
use super::topic::{Partition, Topic};

pub(super) type Topics = BTreeMap<TopicName, Topic>;

/// A partition that a member owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owned {
    /// What `recv` returns next; None while `StartFrom::Fail` finds no start.
    pub(super) position: Option<u64>,
    pub(super) paused: bool,
    /// What lies before it had gone when the position was reset.
    pub(super) floor: u64,
}

impl Owned {
    pub(super) fn new(position: Option<u64>) -> Self {
        Self { position, paused: false, floor: 0 }
    }

    /// What a commit of `next` stores. What has gone is no way back, or the commit of a batch from before a reset would
    /// undo it; then the valid commit that the group has stays.
    pub(super) fn stored(&self, next: u64, committed: Option<u64>) -> u64 {
        let settled = committed.filter(|_| next < self.floor).filter(|commit| *commit >= self.floor);
        settled.unwrap_or(next)
    }
}

/// Whether a member takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    In,
    /// It was out of reach for longer than its session.
    SessionPassed,
    /// It did not call `recv` for longer than its poll limit.
    PollLimitPassed,
}

/// What a member's next batch tells it. It holds each partition at most once, so it is bounded.
#[derive(Debug, Default)]
pub(super) struct Pending {
    gained: BTreeSet<TopicPartition>,
    lost: BTreeSet<TopicPartition>,
    resets: BTreeMap<TopicPartition, (u64, u64)>,
    /// Topics that were deleted, and whether a batch has said so.
    deleted: BTreeMap<TopicName, bool>,
    poll_limit: bool,
}

impl Pending {
    fn lose(&mut self, partition: TopicPartition) {
        self.resets.remove(&partition);
        // What came and went between two batches is not worth a word.
        if !self.gained.remove(&partition) {
            self.lost.insert(partition);
        }
    }

    /// Notes that a position had gone. Of several the first `from` and the last `to` count.
    pub(super) fn reset(&mut self, partition: TopicPartition, from: u64, to: u64) {
        self.resets.entry(partition).and_modify(|known| known.1 = to).or_insert((from, to));
    }

    /// Notes that a topic was deleted.
    pub(super) fn delete(&mut self, topic: &TopicName) {
        if !self.deleted.contains_key(topic) {
            self.deleted.insert(topic.clone(), false);
        }
    }

    /// Forgets deleted topics that were created again.
    pub(super) fn forget_deleted(&mut self, topics: &Topics) {
        self.deleted.retain(|topic, told| !*told || !topics.contains_key(topic));
    }

    /// What `subscribe` returns is the first assignment, and no change that a batch has to tell.
    pub(super) fn forget_gains(&mut self) {
        self.gained.clear();
    }

    /// The notices, which are told once.
    pub(super) fn take(&mut self) -> Vec<Notice> {
        let mut deleted = std::mem::take(&mut self.deleted);
        let Self { gained, lost, resets, poll_limit, .. } = std::mem::take(self);
        let mut notices = Vec::new();
        for (topic, told) in &mut deleted {
            if !std::mem::replace(told, true) {
                notices.push(Notice::TopicDeleted { topic: topic.clone() });
            }
        }
        self.deleted = deleted;
        if poll_limit {
            notices.push(Notice::PollLimitPassed);
        }
        if !gained.is_empty() || !lost.is_empty() {
            let (gained, lost) = (gained.into_iter().collect(), lost.into_iter().collect());
            notices.push(Notice::AssignmentChanged { gained, lost });
        }
        notices.extend(resets.into_iter().map(|(partition, (from, to))| Notice::Reset {
            partition,
            from,
            to,
        }));
        notices
    }
}

/// A member of a group, as the group sees it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) client: u64,
    pub(super) request: Subscribe,
    pub(super) owned: BTreeMap<TopicPartition, Owned>,
    pub(super) epoch: u64,
    pub(super) pending: Pending,
    pub(super) notify: Arc<Notify>,
    pub(super) standing: Standing,
    /// A `recv` is waiting at present.
    pub(super) polling: bool,
    pub(super) last_poll: Instant,
    /// Since when no heartbeat has come.
    pub(super) away_since: Option<Instant>,
    /// Its subscription is gone, so nobody can bring it back.
    pub(super) orphan: bool,
    /// Where the next batch begins, so that no partition starves.
    pub(super) turn: usize,
    /// The member knows that partitions are revoked with its next `recv`.
    announced: bool,
}

impl Member {
    pub(super) fn new(client: u64, request: Subscribe, notify: Arc<Notify>, now: Instant) -> Self {
        Self {
            client,
            request,
            owned: BTreeMap::new(),
            epoch: 0,
            pending: Pending::default(),
            notify,
            standing: Standing::In,
            polling: false,
            last_poll: now,
            away_since: None,
            orphan: false,
            turn: 0,
            announced: false,
        }
    }

    /// Whether its partitions wait for it: it is static, or nobody can know yet that it is gone.
    fn keeps_its_seat(&self) -> bool {
        self.request.member.is_some() || self.away_since.is_some()
    }

    /// The next moment at which silence has a consequence.
    fn expires(&self) -> Option<Instant> {
        if self.standing != Standing::In {
            return None;
        }
        let session = self.away_since.and_then(|since| since.checked_add(self.request.session_timeout));
        let poll = if self.polling { None } else { self.last_poll.checked_add(self.request.poll_limit) };
        session.into_iter().chain(poll).min()
    }
}

/// A group.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) members: BTreeMap<u64, Member>,
    pub(super) commits: BTreeMap<TopicPartition, u64>,
    /// Who should own what.
    pub(super) target: BTreeMap<TopicPartition, u64>,
    /// Who does.
    pub(super) owners: BTreeMap<TopicPartition, u64>,
    /// Since when it has had no members.
    empty_since: Option<Timestamp>,
    /// Since when no member has subscribed to a topic in which something is committed.
    left_since: BTreeMap<TopicName, Timestamp>,
}

/// Where a partition starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// At the commit.
    Committed(u64),
    /// Nothing was committed: here.
    Fresh(u64),
    /// What was wanted has gone: here.
    Reset { from: u64, to: u64 },
    /// Nowhere.
    Fail,
}

/// Where a reader goes on that wants `position` of `partition`.
pub(super) fn start(partition: &Partition, position: Option<u64>, otherwise: StartFrom) -> Start {
    if let Some(position) = position.filter(|position| partition.holds(*position)) {
        return Start::Committed(position);
    }
    let to = match otherwise {
        StartFrom::Earliest => partition.start,
        StartFrom::Latest => partition.end,
        StartFrom::At(time) => partition.first_at(time),
        StartFrom::Fail => return Start::Fail,
    };
    position.map_or(Start::Fresh(to), |from| Start::Reset { from, to })
}

impl Group {
    /// Whether this group has anything to do with a topic.
    pub(super) fn reads(&self, topic: &TopicName) -> bool {
        self.commits.keys().any(|partition| partition.topic == *topic)
            || self.members.values().any(|member| member.request.topics.contains(topic))
    }

    /// Shares the partitions out anew. It changes who *should* own what; owners give up and take inside `recv`.
    pub(super) fn rebalance(&mut self, topics: &Topics) {
        let members: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| member.standing == Standing::In)
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
        // Owners count before targets: a target that was never taken is no reason to move anything.
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

    /// Ends the membership of those whose session or poll limit has passed.
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
                    .away_since
                    .and_then(|since| since.checked_add(member.request.session_timeout))
                    .is_some_and(|at| at <= now);
                if session && member.orphan {
                    self.members.remove(&key);
                } else if session {
                    member.standing = Standing::SessionPassed;
                } else {
                    member.standing = Standing::PollLimitPassed;
                    member.pending.poll_limit = true;
                }
            }
        }
        self.rebalance(topics);
    }

    /// The next moment at which somebody's silence changes this group.
    pub(super) fn next_event(&self) -> Option<Instant> {
        self.members.values().filter_map(Member::expires).min()
    }

    /// Takes a member back that was out.
    pub(super) fn rejoin(&mut self, key: u64, now: Instant, topics: &Topics) {
        if let Some(member) = self.members.get_mut(&key)
            && member.standing != Standing::In
        {
            member.standing = Standing::In;
            member.last_poll = now;
            self.rebalance(topics);
        }
    }

    /// Removes a member at once.
    pub(super) fn leave(&mut self, key: u64, topics: &Topics) {
        self.release_all(key);
        if self.members.remove(&key).is_some() {
            self.rebalance(topics);
        }
    }

    /// A member whose subscription ends. A static one keeps its partitions until its session passes, so that a
    /// quick restart moves nothing; any other leaves at once.
    pub(super) fn depart(&mut self, key: u64, now: Instant, topics: &Topics) {
        match self.members.get_mut(&key) {
            Some(member) if member.standing == Standing::In && member.keeps_its_seat() => {
                member.orphan = true;
                member.polling = false;
                member.away_since.get_or_insert(now);
            }
            _ => self.leave(key, topics),
        }
    }

    /// Puts a new subscription in the place of one with the same static member id.
    pub(super) fn succeed(&mut self, key: u64, member: Member) {
        let old = member.request.member.as_ref().and_then(|id| {
            self.members.iter().find(|(_, m)| m.request.member.as_ref() == Some(id)).map(|(old, _)| *old)
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
        let mut notices = member.pending.take();
        notices.push(Notice::RevocationPending);
        Some(Batch::new(Vec::new(), Positions::new(), notices))
    }

    /// What takes effect inside `recv`: gives up what others should have, takes what is free.
    pub(super) fn settle(&mut self, key: u64, topics: &Topics) {
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
            let mut owned = Owned::new(None);
            owned.position = match start(log, self.commits.get(partition).copied(), member.request.otherwise)
            {
                Start::Committed(at) => Some(at),
                // A start is committed before its first message is delivered, so that a takeover before the
                // first commit of the reader begins at the same place.
                Start::Fresh(at) => {
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

    /// A topic is gone, and with it everything that was known of its partitions.
    pub(super) fn forget(&mut self, topic: &TopicName, topics: &Topics) {
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

    /// How many messages lie before the end and are not committed.
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

    /// Forgets the commits in topics to which no member has subscribed for `keep`: they would hold back what these
    /// topics have to give up, for a group that does not read it any more.
    pub(super) fn forget_left(&mut self, now: Timestamp, keep: Duration) {
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
            if now.since(since) >= keep {
                commits.retain(|partition, _| partition.topic != topic);
                left_since.remove(&topic);
            }
        }
    }

    /// How long the group has been without members.
    pub(super) fn idle_for(&mut self, now: Timestamp) -> Duration {
        if self.members.is_empty() {
            now.since(*self.empty_since.get_or_insert(now))
        } else {
            self.empty_since = None;
            Duration::ZERO
        }
    }
}
