//! Runs a history step by step, in parallel with the model.

use std::collections::BTreeMap;

use bytes::Bytes;
use qi_core::bus::{
    GroupId, GroupQuery, HeaderName, Message, MessageBus, MessageBusExt, OffsetReset, Offsets, SeekTo,
    SubscribeRequest, Subscription, TopicName, TopicPartition, TopicSpec,
};
use qi_core::{ErrorKind, Result};

use super::Step;
use super::history::{GROUPS, MEMBERS, TOPICS, partitions};
use super::state::{Group, Log, Logs, Member};
use crate::bus::contract::{BusEnv, CheckResult, Client, Connection, Failure, ensure, ensure_eq};

/// A member of a group with its client.
pub(super) struct Actor {
    pub(super) client: Client,
    pub(super) sub: Box<dyn Subscription>,
}

/// The state of a history that runs on a bus.
pub(super) struct Stage<'a> {
    pub(super) env: &'a dyn BusEnv,
    pub(super) bus: std::sync::Arc<dyn MessageBus>,
    /// Kept, because the drop of a wire disconnects its client.
    _wire: std::sync::Arc<dyn Connection>,
    pub(super) topics: Vec<TopicName>,
    pub(super) groups: Vec<GroupId>,
    /// The present members by group and number.
    pub(super) actors: Vec<BTreeMap<usize, Actor>>,
    joined: usize,
    sent: usize,
}

impl<'a> Stage<'a> {
    pub(super) async fn open(env: &'a dyn BusEnv) -> Result<Self> {
        let Client { bus, connection } = env.connect().await?;
        let name = |n: usize| TopicName::new(format!("{}-model-{n}", env.prefix()));
        let topics: Vec<_> = (0..TOPICS).map(name).collect::<Result<_>>()?;
        let groups = (0..GROUPS)
            .map(|n| GroupId::new(format!("{}-model-{n}", env.prefix())))
            .collect::<Result<_>>()?;
        let actors = (0..GROUPS).map(|_| BTreeMap::new()).collect();
        let stage = Self { env, bus, _wire: wire, topics, groups, actors, joined: 0, sent: 0 };
        for topic in 0..TOPICS {
            stage.create(topic).await?;
        }
        Ok(stage)
    }

    pub(super) async fn create(&self, topic: usize) -> Result<()> {
        let spec = TopicSpec::new(self.topics[topic].clone(), partitions(topic))?;
        self.bus.create_topics(&[spec]).await?.remove(0).result.map(drop)
    }

    pub(super) async fn delete(&self, topic: usize) -> Result<()> {
        self.bus.delete_topics(&self.topics[topic..=topic]).await?.remove(0).result.map(drop)
    }

    /// Returns the messages of a step: with and without keys, payloads and headers.
    pub(super) fn messages(&mut self, topic: usize, partition: u32, count: usize) -> Result<Vec<Message>> {
        (0..count)
            .zip(partition..)
            .map(|(_, place)| {
                self.sent += 1;
                let n = self.sent;
                let mut message = Message::new(self.topics[topic].clone(), format!("message {n}"))
                    .with_partition(place % partitions(topic));
                if n.is_multiple_of(2) {
                    message = message.with_key(format!("k{}", n % 5));
                }
                if n.is_multiple_of(3) {
                    message = message.with_header(HeaderName::new("n")?, n.to_string());
                }
                if n.is_multiple_of(7) {
                    message.payload = (n.is_multiple_of(2)).then(Bytes::new);
                }
                Ok(message)
            })
            .collect()
    }

    /// Adds a member to a group. Returns None if the group is full.
    pub(super) async fn join(&mut self, group: usize, latest: bool) -> Result<Option<(usize, OffsetReset)>> {
        let Some((client, request)) = self.invite(group, latest).await? else { return Ok(None) };
        let offset_reset = request.offset_reset;
        let sub = client.bus.subscribe(request).await?;
        Ok(Some((self.take_in(group, Actor { client, sub }), offset_reset)))
    }

    /// Returns a client and a request for a new member, or None if the group is full.
    pub(super) async fn invite(
        &self,
        group: usize,
        latest: bool,
    ) -> Result<Option<(Client, SubscribeRequest)>> {
        if self.actors[group].len() >= MEMBERS {
            return Ok(None);
        }
        let timing = self.env.timing();
        let offset_reset = if latest { OffsetReset::Latest } else { OffsetReset::Earliest };
        let request = SubscribeRequest::new(self.groups[group].clone(), self.topics.clone())?
            .with_timeouts(timing.session_timeout, timing.max_poll_interval)?
            .with_offset_reset(offset_reset);
        Ok(Some((self.env.connect().await?, request)))
    }

    /// Stores a new member and returns its number.
    pub(super) fn take_in(&mut self, group: usize, actor: Actor) -> usize {
        self.joined += 1;
        self.actors[group].insert(self.joined, actor);
        self.joined
    }

    /// Returns the member at an index among the present members.
    pub(super) fn actor(&mut self, group: usize, place: usize) -> Option<(usize, &mut Actor)> {
        let count = self.actors[group].len().max(1);
        self.actors[group].iter_mut().nth(place % count).map(|(at, actor)| (*at, actor))
    }
}

struct Run<'a> {
    stage: Stage<'a>,
    logs: Logs,
    groups: Vec<Group>,
}

/// Runs a history on a bus and compares every response with the model. The model needs exact times, so this
/// is for paused time.
///
/// # Errors
/// The first response that the model does not allow, with its step.
pub async fn follow(env: &dyn BusEnv, history: &[Step]) -> CheckResult {
    let stage = Stage::open(env).await?;
    let groups = (0..GROUPS).map(|_| Group::default()).collect();
    let mut run = Run { stage, logs: Logs::new(), groups };
    (0..TOPICS).for_each(|topic| run.add_logs(topic));
    for (n, step) in history.iter().enumerate() {
        run.step(step).await.map_err(|e| Failure::new(format_args!("step {n}, {step:?}: {e}")))?;
    }
    run.come_to_rest().await.map_err(|e| Failure::new(format_args!("at rest: {e}")))
}

impl Run<'_> {
    fn add_logs(&mut self, topic: usize) {
        for partition in 0..partitions(topic) {
            let place = TopicPartition::new(self.stage.topics[topic].clone(), partition);
            self.logs.insert(place, Log::default());
        }
    }

    fn exists(&self, topic: usize) -> bool {
        self.logs.keys().any(|partition| partition.topic == self.stage.topics[topic])
    }

    fn all_exist(&self) -> bool {
        (0..TOPICS).all(|topic| self.exists(topic))
    }

    fn expire(&mut self) {
        let timing = self.stage.env.timing();
        self.groups
            .iter_mut()
            .for_each(|group| group.expire(timing.session_timeout, timing.max_poll_interval));
    }

    async fn step(&mut self, step: &Step) -> CheckResult {
        self.expire();
        match *step {
            Step::Publish { topic, partition, count } => self.publish(topic, partition, count).await,
            Step::Join { group, latest } => self.join(group, latest).await,
            Step::Recv { group, member, max } => self.recv(group, member, max).await,
            Step::Commit { group, member, short_of } => self.commit(group, member, short_of).await,
            Step::CommitTooFar { group, member } => self.commit_too_far(group, member).await,
            Step::Seek { group, member, to } => self.seek(group, member, to).await,
            Step::Pause { group, member, pause } => self.pause(group, member, pause).await,
            Step::Leave { group, member } => self.leave(group, member).await,
            Step::Kill { group, member } => self.kill(group, member).await,
            Step::Trim { topic, partition, percent } => self.trim(topic, partition, percent).await,
            Step::Delete { topic, again } => self.delete(topic, again).await,
            Step::Silence => {
                let timing = self.stage.env.timing();
                tokio::time::sleep(timing.session_timeout + timing.max_poll_interval).await;
                Ok(())
            }
        }
    }

    async fn publish(&mut self, topic: usize, partition: u32, count: usize) -> CheckResult {
        let batch = self.stage.messages(topic, partition, count)?;
        let sent = self.stage.bus.send(&batch).await;
        if !self.exists(topic) {
            ensure_eq!(sent.err().map(|e| e.kind()), Some(ErrorKind::NotFound), "publishing to nothing");
            return Ok(());
        }
        for (delivery, mut message) in sent?.into_iter().zip(batch) {
            let place = TopicPartition::new(message.topic.clone(), delivery.partition);
            ensure_eq!(message.partition.take(), Some(delivery.partition), "the partition");
            let log = self.logs.entry(place).or_default();
            ensure_eq!(delivery.offset, log.end(), "the offset of a message");
            log.messages.push(message);
        }
        Ok(())
    }

    async fn join(&mut self, group: usize, latest: bool) -> CheckResult {
        let joined = self.stage.join(group, latest).await;
        if !self.all_exist() {
            let full = matches!(joined, Ok(None));
            ensure!(full || joined.is_err_and(|e| e.kind() == ErrorKind::NotFound), "joined without a topic");
            return Ok(());
        }
        let Some((at, offset_reset)) = joined? else { return Ok(()) };
        self.groups[group].members.insert(at, Member::new(offset_reset));
        let Some(actor) = self.stage.actors[group].get_mut(&at) else { return Ok(()) };
        for assigned in actor.sub.assignment().await?.partitions {
            self.groups[group].take(&self.logs, at, &assigned.partition)?;
            if let Some(member) = self.groups[group].members.get_mut(&at) {
                member.told.insert(assigned.partition);
            }
        }
        self.compare(group, at).await
    }

    /// Compares the assignment of a member on the bus with the model.
    async fn compare(&mut self, group: usize, at: usize) -> CheckResult {
        let Some(actor) = self.stage.actors[group].get_mut(&at) else { return Ok(()) };
        let assignment = actor.sub.assignment().await?;
        let Some(member) = self.groups[group].members.get(&at) else { return Ok(()) };
        let found: Vec<_> = assignment
            .partitions
            .into_iter()
            .map(|p| (p.partition, p.position, p.lag, p.committed, p.paused))
            .collect();
        let wanted: Vec<_> = member
            .positions
            .iter()
            .map(|(partition, position)| {
                let end = self.logs.get(partition).map_or(0, Log::end);
                let commit = self.groups[group].commits.get(partition).copied();
                let (lag, paused) = (end.saturating_sub(*position), member.paused.contains(partition));
                (partition.clone(), *position, lag, commit, paused)
            })
            .collect();
        ensure_eq!(found, wanted, "the assignment of member {at}");
        Ok(())
    }

    async fn recv(&mut self, group: usize, place: usize, max: usize) -> CheckResult {
        let any = (0..TOPICS).any(|topic| self.exists(topic));
        let short = self.stage.env.timing().receive_timeout;
        let Some((at, actor)) = self.stage.actor(group, place) else { return Ok(()) };
        let received = actor.sub.recv(max, short).await;
        if !any {
            ensure_eq!(
                received.err().map(|e| e.kind()),
                Some(ErrorKind::NotFound),
                "reading deleted topics only"
            );
            if let Some(member) = self.groups[group].members.get_mut(&at) {
                member.polled();
            }
            return Ok(());
        }
        let batch = received?;
        self.expire();
        self.groups[group].receive(&self.logs, at, &batch, max)?;
        self.compare(group, at).await
    }

    async fn commit(&mut self, group: usize, place: usize, short_of: u64) -> CheckResult {
        let Some((at, actor)) = self.stage.actor(group, place) else { return Ok(()) };
        let Some(member) = self.groups[group].members.get(&at) else { return Ok(()) };
        let mut upto: Offsets = member
            .positions
            .iter()
            .map(|(p, position)| (p.clone(), position.saturating_sub(short_of)))
            .collect();
        let stored: Offsets =
            upto.iter().map(|(p, next)| (p.clone(), self.groups[group].stored(at, p, next))).collect();
        let lost: Vec<_> =
            member.told.iter().filter(|p| !member.positions.contains_key(*p)).cloned().collect();
        upto.extend(lost.iter().map(|partition| (partition.clone(), 1)));
        let committed = actor.sub.commit(&upto).await?;
        ensure_eq!(committed.stored, stored, "what was stored");
        ensure_eq!(committed.lost, lost, "what was lost");
        self.groups[group].commits.extend(stored.iter().map(|(partition, next)| (partition.clone(), next)));
        self.compare(group, at).await
    }

    async fn commit_too_far(&mut self, group: usize, place: usize) -> CheckResult {
        let Some((at, actor)) = self.stage.actor(group, place) else { return Ok(()) };
        let Some(member) = self.groups[group].members.get(&at) else { return Ok(()) };
        let Some((partition, position)) = member.positions.iter().next() else { return Ok(()) };
        let refused =
            actor.sub.commit(&[(partition.clone(), position + 1)].into_iter().collect()).await.err();
        ensure_eq!(refused.map(|e| e.kind()), Some(ErrorKind::InvalidInput), "a commit above the position");
        self.compare(group, at).await
    }

    async fn seek(&mut self, group: usize, place: usize, to: u64) -> CheckResult {
        let Some((at, actor)) = self.stage.actor(group, place) else { return Ok(()) };
        let Some(member) = self.groups[group].members.get_mut(&at) else { return Ok(()) };
        let Some((partition, position)) = member.positions.iter_mut().next() else { return Ok(()) };
        let log = self.logs.get(partition).ok_or_else(|| Failure::new("no log"))?;
        let (to, wanted) = match to {
            0 => (SeekTo::Earliest, log.start),
            1 => (SeekTo::Latest, log.end()),
            other => (SeekTo::Offset(other - 2), other - 2),
        };
        actor.sub.seek(&[(partition.clone(), to)]).await?;
        *position = wanted;
        self.compare(group, at).await
    }

    async fn pause(&mut self, group: usize, place: usize, pause: bool) -> CheckResult {
        let Some((at, actor)) = self.stage.actor(group, place) else { return Ok(()) };
        let Some(member) = self.groups[group].members.get_mut(&at) else { return Ok(()) };
        let Some(first) = member.positions.keys().next().cloned() else { return Ok(()) };
        if pause {
            actor.sub.pause(std::slice::from_ref(&first)).await?;
            member.paused.insert(first);
        } else {
            let all: Vec<_> = member.positions.keys().cloned().collect();
            actor.sub.resume(&all).await?;
            member.paused.clear();
        }
        self.compare(group, at).await
    }

    async fn leave(&mut self, group: usize, place: usize) -> CheckResult {
        let Some((at, actor)) = self.stage.actor(group, place) else { return Ok(()) };
        actor.sub.close().await?;
        self.stage.actors[group].remove(&at);
        self.groups[group].members.remove(&at);
        Ok(())
    }

    async fn kill(&mut self, group: usize, place: usize) -> CheckResult {
        let Some((at, actor)) = self.stage.actor(group, place) else { return Ok(()) };
        actor.client.connection.interrupt().await;
        self.stage.actors[group].remove(&at);
        if let Some(member) = self.groups[group].members.get_mut(&at) {
            member.dead_since = Some(tokio::time::Instant::now());
        }
        Ok(())
    }

    async fn delete_records(&mut self, topic: usize, partition: u32, percent: u64) -> CheckResult {
        let place = TopicPartition::new(self.stage.topics[topic].clone(), partition % partitions(topic));
        let Some(log) = self.logs.get_mut(&place) else { return Ok(()) };
        let offset = log.start + (log.end() - log.start) * percent / 100;
        self.stage.env.delete_records(&place, offset).await?;
        log.start = offset;
        Ok(())
    }

    async fn delete(&mut self, topic: usize, again: bool) -> CheckResult {
        if self.exists(topic) {
            self.stage.delete(topic).await?;
            let name = self.stage.topics[topic].clone();
            self.logs.retain(|partition, _| partition.topic != name);
            self.groups.iter_mut().for_each(|group| group.forget(&name));
        }
        if again {
            self.stage.create(topic).await?;
            self.add_logs(topic);
        }
        Ok(())
    }

    /// Checks the final state. After some rounds of `recv`, each group owns every partition once, in even shares, and
    /// its commits equal those of the model.
    async fn come_to_rest(&mut self) -> CheckResult {
        for topic in 0..TOPICS {
            if !self.exists(topic) {
                self.delete(topic, true).await?;
            }
        }
        tokio::time::sleep(self.stage.env.timing().session_timeout).await;
        self.expire();
        for _ in 0..4 {
            for group in 0..GROUPS {
                for place in 0..self.stage.actors[group].len() {
                    self.expire();
                    self.recv(group, place, 50).await?;
                }
            }
        }
        for group in 0..GROUPS {
            let sizes: Vec<_> = self.groups[group].members.values().map(|m| m.positions.len()).collect();
            if let (Some(most), Some(least)) = (sizes.iter().max(), sizes.iter().min()) {
                ensure_eq!(
                    sizes.iter().sum::<usize>(),
                    self.logs.len(),
                    "partitions that have an owner: {sizes:?}"
                );
                ensure!(most - least <= 1, "uneven shares: {sizes:?}");
            }
            let known = self.stage.bus.groups(&GroupQuery::one(self.stage.groups[group].clone())).await?;
            let rows = known.first().map_or(&[][..], |info| &info.partitions[..]);
            let found: BTreeMap<_, _> =
                rows.iter().filter_map(|r| Some((r.partition.clone(), r.committed?))).collect();
            ensure_eq!(found, self.groups[group].commits, "the commits of group {group}");
        }
        Ok(())
    }
}
