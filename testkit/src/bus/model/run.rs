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
pub(super) struct MemberClient {
    pub(super) client: Client,
    pub(super) sub: Box<dyn Subscription>,
}

/// The state of a history that runs on a bus.
pub(super) struct HistoryState<'a> {
    pub(super) env: &'a dyn BusEnv,
    pub(super) bus: std::sync::Arc<dyn MessageBus>,
    /// Kept, because the drop of a connection disconnects its client.
    _connection: std::sync::Arc<dyn Connection>,
    pub(super) topics: Vec<TopicName>,
    pub(super) groups: Vec<GroupId>,
    /// The present members by group and number.
    pub(super) clients: Vec<BTreeMap<usize, MemberClient>>,
    joined: usize,
    sent: usize,
}

impl<'a> HistoryState<'a> {
    pub(super) async fn open(env: &'a dyn BusEnv) -> Result<Self> {
        let Client { bus, connection } = env.connect().await?;
        let name = |n: usize| TopicName::new(format!("{}-model-{n}", env.prefix()));
        let topics: Vec<_> = (0..TOPICS).map(name).collect::<Result<_>>()?;
        let groups = (0..GROUPS)
            .map(|n| GroupId::new(format!("{}-model-{n}", env.prefix())))
            .collect::<Result<_>>()?;
        let clients = (0..GROUPS).map(|_| BTreeMap::new()).collect();
        let state = Self { env, bus, _connection: connection, topics, groups, clients, joined: 0, sent: 0 };
        for topic in 0..TOPICS {
            state.create(topic).await?;
        }
        Ok(state)
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
            .map(|(_, index)| {
                self.sent += 1;
                let n = self.sent;
                let mut message = Message::new(self.topics[topic].clone(), format!("message {n}"))
                    .with_partition(index % partitions(topic));
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
        let Some((client, request)) = self.new_member(group, latest).await? else { return Ok(None) };
        let offset_reset = request.offset_reset;
        let sub = client.bus.subscribe(request).await?;
        Ok(Some((self.add_member(group, MemberClient { client, sub }), offset_reset)))
    }

    /// Returns a client and a request for a new member, or None if the group is full.
    pub(super) async fn new_member(
        &self,
        group: usize,
        latest: bool,
    ) -> Result<Option<(Client, SubscribeRequest)>> {
        if self.clients[group].len() >= MEMBERS {
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
    pub(super) fn add_member(&mut self, group: usize, client: MemberClient) -> usize {
        self.joined += 1;
        self.clients[group].insert(self.joined, client);
        self.joined
    }

    /// Returns the member at an index among the present members.
    pub(super) fn client(&mut self, group: usize, index: usize) -> Option<(usize, &mut MemberClient)> {
        let count = self.clients[group].len().max(1);
        self.clients[group].iter_mut().nth(index % count).map(|(at, client)| (*at, client))
    }
}

struct Run<'a> {
    state: HistoryState<'a>,
    logs: Logs,
    groups: Vec<Group>,
}

/// Runs a history on a bus and compares every response with the model. The model needs exact times, so this
/// is for paused time.
///
/// # Errors
/// The first response that the model does not allow, with its step.
pub async fn run_history(env: &dyn BusEnv, history: &[Step]) -> CheckResult {
    let state = HistoryState::open(env).await?;
    let groups = (0..GROUPS).map(|_| Group::default()).collect();
    let mut run = Run { state, logs: Logs::new(), groups };
    (0..TOPICS).for_each(|topic| run.add_logs(topic));
    for (n, step) in history.iter().enumerate() {
        run.step(step).await.map_err(|e| Failure::new(format_args!("step {n}, {step:?}: {e}")))?;
    }
    run.check_final_state().await.map_err(|e| Failure::new(format_args!("final state: {e}")))
}

impl Run<'_> {
    fn add_logs(&mut self, topic: usize) {
        for partition in 0..partitions(topic) {
            let partition = TopicPartition::new(self.state.topics[topic].clone(), partition);
            self.logs.insert(partition, Log::default());
        }
    }

    fn exists(&self, topic: usize) -> bool {
        self.logs.keys().any(|partition| partition.topic == self.state.topics[topic])
    }

    fn all_exist(&self) -> bool {
        (0..TOPICS).all(|topic| self.exists(topic))
    }

    fn expire(&mut self) {
        let timing = self.state.env.timing();
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
            Step::Commit { group, member, uncommitted } => self.commit(group, member, uncommitted).await,
            Step::CommitAbovePosition { group, member } => self.commit_above_position(group, member).await,
            Step::Seek { group, member, to } => self.seek(group, member, to).await,
            Step::Pause { group, member, pause } => self.pause(group, member, pause).await,
            Step::Leave { group, member } => self.leave(group, member).await,
            Step::Disconnect { group, member } => self.disconnect(group, member).await,
            Step::DeleteRecords { topic, partition, percent } => {
                self.delete_records(topic, partition, percent).await
            }
            Step::Delete { topic, recreate } => self.delete(topic, recreate).await,
            Step::WaitForExpiry => {
                let timing = self.state.env.timing();
                tokio::time::sleep(timing.session_timeout + timing.max_poll_interval).await;
                Ok(())
            }
        }
    }

    async fn publish(&mut self, topic: usize, partition: u32, count: usize) -> CheckResult {
        let batch = self.state.messages(topic, partition, count)?;
        let sent = self.state.bus.send(&batch).await;
        if !self.exists(topic) {
            ensure_eq!(
                sent.err().map(|e| e.kind()),
                Some(ErrorKind::NotFound),
                "the error of a publish to a deleted topic"
            );
            return Ok(());
        }
        for (delivery, mut message) in sent?.into_iter().zip(batch) {
            let partition = TopicPartition::new(message.topic.clone(), delivery.partition);
            ensure_eq!(message.partition.take(), Some(delivery.partition), "the partition");
            let log = self.logs.entry(partition).or_default();
            ensure_eq!(delivery.offset, log.end(), "the offset of a message");
            log.messages.push(message);
        }
        Ok(())
    }

    async fn join(&mut self, group: usize, latest: bool) -> CheckResult {
        let joined = self.state.join(group, latest).await;
        if !self.all_exist() {
            let full = matches!(joined, Ok(None));
            ensure!(
                full || joined.is_err_and(|e| e.kind() == ErrorKind::NotFound),
                "a member joined without its topic"
            );
            return Ok(());
        }
        let Some((at, offset_reset)) = joined? else { return Ok(()) };
        self.groups[group].members.insert(at, Member::new(offset_reset));
        let Some(client) = self.state.clients[group].get_mut(&at) else { return Ok(()) };
        for assigned in client.sub.assignment().await?.partitions {
            self.groups[group].take(&self.logs, at, &assigned.partition)?;
            if let Some(member) = self.groups[group].members.get_mut(&at) {
                member.reported.insert(assigned.partition);
            }
        }
        self.compare(group, at).await
    }

    /// Compares the assignment of a member on the bus with the model.
    async fn compare(&mut self, group: usize, at: usize) -> CheckResult {
        let Some(client) = self.state.clients[group].get_mut(&at) else { return Ok(()) };
        let assignment = client.sub.assignment().await?;
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

    async fn recv(&mut self, group: usize, index: usize, max: usize) -> CheckResult {
        let any = (0..TOPICS).any(|topic| self.exists(topic));
        let short = self.state.env.timing().receive_timeout;
        let Some((at, client)) = self.state.client(group, index) else { return Ok(()) };
        let received = client.sub.recv(max, short).await;
        if !any {
            ensure_eq!(
                received.err().map(|e| e.kind()),
                Some(ErrorKind::NotFound),
                "the error of recv after all topics were deleted"
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

    async fn commit(&mut self, group: usize, index: usize, uncommitted: u64) -> CheckResult {
        let Some((at, client)) = self.state.client(group, index) else { return Ok(()) };
        let Some(member) = self.groups[group].members.get(&at) else { return Ok(()) };
        let mut upto: Offsets = member
            .positions
            .iter()
            .map(|(p, position)| (p.clone(), position.saturating_sub(uncommitted)))
            .collect();
        let stored: Offsets =
            upto.iter().map(|(p, next)| (p.clone(), self.groups[group].stored(at, p, next))).collect();
        let lost: Vec<_> =
            member.reported.iter().filter(|p| !member.positions.contains_key(*p)).cloned().collect();
        upto.extend(lost.iter().map(|partition| (partition.clone(), 1)));
        let committed = client.sub.commit(&upto).await?;
        ensure_eq!(committed.stored, stored, "stored offsets");
        ensure_eq!(committed.lost, lost, "lost partitions");
        self.groups[group].commits.extend(stored.iter().map(|(partition, next)| (partition.clone(), next)));
        self.compare(group, at).await
    }

    async fn commit_above_position(&mut self, group: usize, index: usize) -> CheckResult {
        let Some((at, client)) = self.state.client(group, index) else { return Ok(()) };
        let Some(member) = self.groups[group].members.get(&at) else { return Ok(()) };
        let Some((partition, position)) = member.positions.iter().next() else { return Ok(()) };
        let rejected =
            client.sub.commit(&[(partition.clone(), position + 1)].into_iter().collect()).await.err();
        ensure_eq!(
            rejected.map(|e| e.kind()),
            Some(ErrorKind::InvalidInput),
            "the error of a commit above the position"
        );
        self.compare(group, at).await
    }

    async fn seek(&mut self, group: usize, index: usize, to: u64) -> CheckResult {
        let Some((at, client)) = self.state.client(group, index) else { return Ok(()) };
        let Some(member) = self.groups[group].members.get_mut(&at) else { return Ok(()) };
        let Some((partition, position)) = member.positions.iter_mut().next() else { return Ok(()) };
        let log = self.logs.get(partition).ok_or_else(|| Failure::new("the partition has no log"))?;
        let (to, wanted) = match to {
            0 => (SeekTo::Earliest, log.start),
            1 => (SeekTo::Latest, log.end()),
            other => (SeekTo::Offset(other - 2), other - 2),
        };
        client.sub.seek(&[(partition.clone(), to)]).await?;
        *position = wanted;
        self.compare(group, at).await
    }

    async fn pause(&mut self, group: usize, index: usize, pause: bool) -> CheckResult {
        let Some((at, client)) = self.state.client(group, index) else { return Ok(()) };
        let Some(member) = self.groups[group].members.get_mut(&at) else { return Ok(()) };
        let Some(first) = member.positions.keys().next().cloned() else { return Ok(()) };
        if pause {
            client.sub.pause(std::slice::from_ref(&first)).await?;
            member.paused.insert(first);
        } else {
            let all: Vec<_> = member.positions.keys().cloned().collect();
            client.sub.resume(&all).await?;
            member.paused.clear();
        }
        self.compare(group, at).await
    }

    async fn leave(&mut self, group: usize, index: usize) -> CheckResult {
        let Some((at, client)) = self.state.client(group, index) else { return Ok(()) };
        client.sub.close().await?;
        self.state.clients[group].remove(&at);
        self.groups[group].members.remove(&at);
        Ok(())
    }

    async fn disconnect(&mut self, group: usize, index: usize) -> CheckResult {
        let Some((at, client)) = self.state.client(group, index) else { return Ok(()) };
        client.client.connection.interrupt().await;
        self.state.clients[group].remove(&at);
        if let Some(member) = self.groups[group].members.get_mut(&at) {
            member.disconnected_since = Some(tokio::time::Instant::now());
        }
        Ok(())
    }

    async fn delete_records(&mut self, topic: usize, partition: u32, percent: u64) -> CheckResult {
        let partition = TopicPartition::new(self.state.topics[topic].clone(), partition % partitions(topic));
        let Some(log) = self.logs.get_mut(&partition) else { return Ok(()) };
        let offset = log.start + (log.end() - log.start) * percent / 100;
        self.state.env.delete_records(&partition, offset).await?;
        log.start = offset;
        Ok(())
    }

    async fn delete(&mut self, topic: usize, recreate: bool) -> CheckResult {
        if self.exists(topic) {
            self.state.delete(topic).await?;
            let name = self.state.topics[topic].clone();
            self.logs.retain(|partition, _| partition.topic != name);
            self.groups.iter_mut().for_each(|group| group.forget(&name));
        }
        if recreate {
            self.state.create(topic).await?;
            self.add_logs(topic);
        }
        Ok(())
    }

    /// Checks the final state. After some rounds of `recv`, each group owns every partition once, in even shares, and
    /// its commits equal those of the model.
    async fn check_final_state(&mut self) -> CheckResult {
        for topic in 0..TOPICS {
            if !self.exists(topic) {
                self.delete(topic, true).await?;
            }
        }
        tokio::time::sleep(self.state.env.timing().session_timeout).await;
        self.expire();
        for _ in 0..4 {
            for group in 0..GROUPS {
                for index in 0..self.state.clients[group].len() {
                    self.expire();
                    self.recv(group, index, 50).await?;
                }
            }
        }
        for group in 0..GROUPS {
            let sizes: Vec<_> = self.groups[group].members.values().map(|m| m.positions.len()).collect();
            if let (Some(most), Some(least)) = (sizes.iter().max(), sizes.iter().min()) {
                ensure_eq!(
                    sizes.iter().sum::<usize>(),
                    self.logs.len(),
                    "owned partitions, by member {sizes:?}"
                );
                ensure!(most - least <= 1, "the assignment is not balanced: {sizes:?}");
            }
            let known = self.state.bus.groups(&GroupQuery::one(self.state.groups[group].clone())).await?;
            let rows = known.first().map_or(&[][..], |info| &info.partitions[..]);
            let found: BTreeMap<_, _> =
                rows.iter().filter_map(|r| Some((r.partition.clone(), r.committed?))).collect();
            ensure_eq!(found, self.groups[group].commits, "commits of group {group}");
        }
        Ok(())
    }
}
