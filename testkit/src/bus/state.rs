//! The state that the clients of one log share, behind one lock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qi_core::bus::{
    GroupId, GroupInfo, GroupMember, GroupPartition, GroupQuery, GroupState, PartitionInfo, TopicInfo,
    TopicName, TopicOutcome, TopicPartition, TopicSpec, TopicState,
};
use qi_core::{Clock, Selection, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::group::{Group, Membership, Topics};
use super::topic::Topic;
use super::{MemoryBusConfig, error};

/// A log with its clients' shared state: the counterpart of a broker.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) config: MemoryBusConfig,
    pub(super) clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Notifies blocked calls of `publish` of freed space.
    pub(super) space: Notify,
}

impl Log {
    pub(super) fn new(config: MemoryBusConfig, clock: Arc<dyn Clock>) -> Self {
        Self { config, clock, state: Mutex::new(State::default()), space: Notify::new() }
    }

    /// Locks the state. Ignores poisoning, because a panic inside the lock leaves the state as it
    /// was between two messages.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Consumes tokio's cooperative budget. A loop of calls that are always ready still lets other tasks run
/// and can be aborted.
pub(super) async fn cooperate() {
    tokio::task::coop::consume_budget().await;
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) topics: Topics,
    pub(super) groups: BTreeMap<GroupId, Group>,
    /// The number of bytes that the topics hold.
    pub(super) used: usize,
    last_id: u64,
}

impl State {
    /// Returns a number that is unique in this log.
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn topic(&self, name: &TopicName) -> Option<&Topic> {
        self.topics.get(name)
    }

    /// Applies retention and timeouts to all groups and topics.
    pub(super) fn expire(&mut self, config: &MemoryBusConfig, time: Timestamp, now: Instant) {
        let Self { topics, groups, used, .. } = self;
        for topic in topics.values_mut() {
            *used -= topic.expire(time);
        }
        let keep = config.group_retention;
        groups.retain(|_, group| {
            group.expire(now, topics);
            group.expire_unsubscribed_commits(time, keep);
            group.idle_for(time) < keep
        });
    }

    pub(super) fn create(&mut self, spec: &TopicSpec, config: &MemoryBusConfig) -> TopicOutcome {
        let result = match self.topics.get(&spec.name) {
            Some(topic) if topic.partitions.len() != spec.partitions as usize => {
                Err(error::partitions_differ(&spec.name, spec.partitions, topic.partitions.len()))
            }
            Some(topic) => Ok(TopicState::Existed { differs: topic.differs(spec), settings_hidden: false }),
            None => {
                let id = self.next_id();
                self.topics.insert(spec.name.clone(), Topic::new(id, spec, config));
                self.watch_recreated(&spec.name);
                Ok(TopicState::Created)
            }
        };
        TopicOutcome::new(spec.name.clone(), result)
    }

    /// Attaches members that subscribed to a deleted topic to the new topic with the same name.
    fn watch_recreated(&mut self, name: &TopicName) {
        let Self { topics, groups, .. } = self;
        for group in groups.values_mut().filter(|group| group.reads(name)) {
            if let Some(topic) = topics.get_mut(name) {
                for member in group.members.values().filter(|m| m.request.topics.contains(name)) {
                    topic.watch(&member.notify);
                }
            }
            group.rebalance(topics);
        }
    }

    pub(super) fn delete(&mut self, name: &TopicName) -> TopicOutcome {
        let result = match self.topics.remove(name) {
            None => Err(error::unknown_topic(name, "delete_topics")),
            Some(topic) => {
                self.used -= topic.cost();
                for group in self.groups.values_mut().filter(|group| group.reads(name)) {
                    group.remove_topic(name, &self.topics);
                }
                topic.wake();
                Ok(TopicState::Deleted)
            }
        };
        TopicOutcome::new(name.clone(), result)
    }

    pub(super) fn describe_topics(&self) -> Vec<TopicInfo> {
        self.topics
            .iter()
            .map(|(name, topic)| {
                let partitions = topic.partitions.iter().zip(0..);
                let infos = partitions.map(|(log, id)| PartitionInfo::new(id, log.start, log.end)).collect();
                TopicInfo::new(name.clone(), infos).with_settings(topic.settings())
            })
            .collect()
    }

    pub(super) fn describe_groups(&self, query: &GroupQuery) -> Vec<GroupInfo> {
        let known = |info: &GroupInfo| {
            query.topics == Selection::All || !info.members.is_empty() || !info.partitions.is_empty()
        };
        let wanted = self.groups.iter().filter(|(id, _)| query.groups.contains(id));
        wanted.map(|(id, group)| self.describe_group(id, group, &query.topics)).filter(known).collect()
    }

    fn describe_group(&self, id: &GroupId, group: &Group, topics: &Selection<TopicName>) -> GroupInfo {
        let present: Vec<_> =
            group.members.iter().filter(|(_, member)| member.membership == Membership::Active).collect();
        let state = if present.is_empty() {
            GroupState::Empty
        } else if group.target == group.owners {
            GroupState::Stable
        } else {
            GroupState::Rebalancing
        };
        let members = present
            .into_iter()
            .map(|(key, member)| {
                let name = member
                    .request
                    .group_instance_id
                    .as_ref()
                    .map_or(format!("member-{key}"), ToString::to_string);
                let partitions = member.owned.keys().cloned().collect();
                GroupMember::new(name, format!("memory-{}", member.client), partitions)
            })
            .collect();
        let mut known: Vec<&TopicPartition> = group.commits.keys().chain(group.owners.keys()).collect();
        known.retain(|partition| topics.contains(&partition.topic));
        known.sort_unstable();
        known.dedup();
        let partitions = known
            .into_iter()
            .filter_map(|partition| {
                let log = self.topic(&partition.topic)?.partition(partition.partition)?;
                let commit = group.commits.get(partition).copied();
                Some(GroupPartition::new(partition.clone(), commit, log.end))
            })
            .collect();
        GroupInfo::new(id.clone(), state, members, partitions)
    }

    /// Ends all memberships of a client.
    pub(super) fn end_client(&mut self, client: u64, now: Instant) {
        let Self { topics, groups, .. } = self;
        for group in groups.values_mut() {
            let mine: Vec<u64> =
                group.members.iter().filter(|(_, m)| m.client == client).map(|(key, _)| *key).collect();
            for key in mine {
                if let Some(member) = group.members.get(&key) {
                    member.notify.notify_one();
                    for topic in topics.values_mut() {
                        topic.unwatch(&member.notify);
                    }
                }
                group.end_subscription(key, now, topics);
            }
        }
    }

    /// Marks the members of a client as unreachable since a time, or as reachable again.
    pub(super) fn set_unreachable(&mut self, client: u64, away: Option<Instant>) {
        for group in self.groups.values_mut() {
            for member in group.members.values_mut().filter(|member| member.client == client) {
                member.unreachable_since = away;
            }
            group.wake();
        }
    }
}
