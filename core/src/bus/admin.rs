//! Topics, groups and brokers as an operator sees them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Encoding, GroupId, TopicName, TopicPartition};
use crate::{Error, Result, Selection};

/// What is known of a bus without asking it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BusInfo {
    /// The backend's word in the configuration: `memory`, `redpanda`, ...
    pub backend: &'static str,
    /// The broker's version.
    pub version: Option<String>,
    /// How long `publish` waits for space, and again for delivery, before messages fail.
    pub delivery_timeout: Duration,
    /// The largest message that the client takes, in bytes; a topic may allow less.
    pub max_message_bytes: usize,
    /// The format of records that [`super::MessageBusExt::send_records`] publishes. Defaults to JSON.
    pub encoding: Encoding,
}

impl BusInfo {
    /// The info of a backend that was not asked yet.
    pub fn new(backend: &'static str, delivery_timeout: Duration, max_message_bytes: usize) -> Self {
        Self { backend, version: None, delivery_timeout, max_message_bytes, encoding: Encoding::default() }
    }

    /// Sets the format of published records.
    #[must_use]
    pub fn with_encoding(mut self, encoding: Encoding) -> Self {
        self.encoding = encoding;
        self
    }
}

/// The answer to `ping`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BusStatus {
    /// The cluster's id, where it says one.
    pub cluster_id: Option<String>,
    /// How many brokers answered.
    pub brokers: usize,
    /// How long the round trip took.
    pub round_trip: Duration,
}

impl BusStatus {
    /// A cluster of `brokers` that answered after `round_trip`.
    pub fn new(cluster_id: Option<String>, brokers: usize, round_trip: Duration) -> Self {
        Self { cluster_id, brokers, round_trip }
    }
}

/// What `close` left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CloseReport {
    /// How many messages were neither acknowledged nor refused when the limit of the drain passed.
    pub unknown: usize,
}

impl CloseReport {
    /// `unknown` messages had no answer.
    pub fn new(unknown: usize) -> Self {
        Self { unknown }
    }
}

/// What a topic does with old messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CleanupPolicy {
    /// Removes what is older than the retention.
    #[default]
    Delete,
    /// Keeps the newest message of each key.
    Compact,
}

/// A topic to create.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicSpec {
    /// Its name.
    pub name: TopicName,
    /// How many partitions, at least 1.
    pub partitions: u32,
    /// How many copies; None is the broker's default.
    pub replication: Option<u16>,
    /// How long messages stay; None is the broker's default.
    pub retention: Option<Duration>,
    /// The largest message in bytes; None is the broker's default.
    pub max_message_bytes: Option<usize>,
    /// What happens to old messages.
    pub cleanup: CleanupPolicy,
    /// Any other setting of the broker, as text.
    pub settings: BTreeMap<String, String>,
}

impl TopicSpec {
    /// A topic of so many partitions, with the broker's defaults.
    ///
    /// # Errors
    /// `InvalidInput` unless `partitions` lies in 1 to 10,000.
    pub fn new(name: TopicName, partitions: u32) -> Result<Self> {
        if !(1..=10_000).contains(&partitions) {
            return Err(Error::invalid(
                "bus.topic.partitions",
                "partitions",
                partitions,
                "must lie from 1 to 10000",
            ));
        }
        Ok(Self {
            name,
            partitions,
            replication: None,
            retention: None,
            max_message_bytes: None,
            cleanup: CleanupPolicy::Delete,
            settings: BTreeMap::new(),
        })
    }

    /// With so many copies.
    #[must_use]
    pub fn with_replication(mut self, copies: u16) -> Self {
        self.replication = Some(copies);
        self
    }

    /// With messages that stay this long.
    #[must_use]
    pub fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = Some(retention);
        self
    }

    /// With messages of at most so many bytes.
    #[must_use]
    pub fn with_max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = Some(bytes);
        self
    }

    /// With another cleanup policy.
    #[must_use]
    pub fn with_cleanup(mut self, cleanup: CleanupPolicy) -> Self {
        self.cleanup = cleanup;
        self
    }

    /// With any other setting of the broker.
    #[must_use]
    pub fn with_setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.insert(name.into(), value.into());
        self
    }
}

/// A setting of an existing topic that differs from what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingDiff {
    /// The setting.
    pub name: String,
    /// What was asked for.
    pub wanted: String,
    /// What the topic has.
    pub found: String,
}

/// What became of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopicState {
    /// It is new.
    Created,
    /// It was there, with the same number of partitions; its settings may differ and were left alone.
    Existed {
        /// The settings that differ. Empty if they are hidden.
        differs: Vec<SettingDiff>,
        /// Whether the principal may not read the topic's settings, so that nothing was compared.
        settings_hidden: bool,
    },
    /// It is gone.
    Deleted,
}

/// The answer for one topic of a request.
#[derive(Debug, Clone)]
pub struct TopicOutcome {
    /// Which.
    pub topic: TopicName,
    /// What became of it.
    pub result: Result<TopicState>,
}

/// One partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionInfo {
    /// Its number.
    pub id: u32,
    /// The broker that leads it. None while there is none, or it does not answer: `low` and `high` are then unknown, and 0.
    pub leader: Option<i32>,
    /// The brokers that have a copy.
    pub replicas: Vec<i32>,
    /// Those of them that are up to date.
    pub in_sync: Vec<i32>,
    /// The first offset that is still there.
    pub low: u64,
    /// The offset that the next message gets.
    pub high: u64,
}

impl PartitionInfo {
    /// Returns the number of offsets between `low` and `high`: an upper bound of the messages. It is 0 where retention
    /// moved `low` past a `high` that was read before.
    pub fn offsets(&self) -> u64 {
        self.high.saturating_sub(self.low)
    }

    /// Partition `id`, led and held by broker 0, from `low` to `high`.
    pub fn new(id: u32, low: u64, high: u64) -> Self {
        Self { id, leader: Some(0), replicas: vec![0], in_sync: vec![0], low, high }
    }
}

/// A topic as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicInfo {
    /// Its name.
    pub name: TopicName,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionInfo>,
    /// The settings by the broker's names. None if they are hidden: the principal may not read them, or the broker
    /// shows none.
    pub settings: Option<BTreeMap<String, String>>,
}

impl TopicInfo {
    /// A topic as it is, for those who implement a bus. [`TopicInfo::settings`] is hidden until it is set.
    pub fn new(name: TopicName, partitions: Vec<PartitionInfo>) -> Self {
        Self { name, partitions, settings: None }
    }

    /// Sets the settings.
    #[must_use]
    pub fn with_settings(mut self, settings: BTreeMap<String, String>) -> Self {
        self.settings = Some(settings);
        self
    }
}

/// The groups to describe, and the topics to describe them on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupQuery {
    /// These, or all.
    pub groups: Selection<GroupId>,
    /// The topics whose commits and lag are returned. Defaults to all topics.
    pub topics: Selection<TopicName>,
}

impl GroupQuery {
    /// These groups, on all topics.
    pub fn new(groups: Selection<GroupId>) -> Self {
        Self { groups, topics: Selection::All }
    }

    /// Restricts commits and lag to these topics. A commit in another topic, for example in one that the group has
    /// left, does not count. A group without members and without a commit in these topics is absent.
    #[must_use]
    pub fn with_topics(mut self, topics: Selection<TopicName>) -> Self {
        self.topics = topics;
        self
    }

    /// One group.
    pub fn one(group: GroupId) -> Self {
        Self::new(Selection::one(group))
    }
}

/// In what state a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GroupState {
    /// It has commits and no members.
    Empty,
    /// Its partitions are being shared out.
    Rebalancing,
    /// Every partition has its owner.
    Stable,
    /// The group exists, and the client cannot describe its members, for example because it uses another group
    /// protocol. [`GroupInfo::partitions`] holds the commits.
    NotDescribed,
    /// The principal may not describe the group. Neither members nor commits are known. A group that the query names
    /// may not exist.
    Hidden,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupMember {
    /// Its id.
    pub id: String,
    /// The name of its client.
    pub client_id: String,
    /// What it owns.
    pub partitions: Vec<TopicPartition>,
}

impl GroupMember {
    /// A member, for those who implement a bus.
    pub fn new(id: String, client_id: String, partitions: Vec<TopicPartition>) -> Self {
        Self { id, client_id, partitions }
    }
}

/// How far a group is in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupPartition {
    /// Which.
    pub partition: TopicPartition,
    /// The group's commit, if it has one.
    pub committed: Option<u64>,
    /// The offset that the next message gets. None while it is unknown, because the partition has no leader.
    pub end: Option<u64>,
    /// The last stable offset: a reader receives the message at this offset, and later ones, after the first open
    /// transaction has ended. Equal to `end` without an open transaction. None while it is unknown.
    pub last_stable: Option<u64>,
    /// The end minus the commit; None without a commit or a known end.
    pub lag: Option<u64>,
}

impl GroupPartition {
    /// How far a group is, with the lag that follows.
    pub fn new(partition: TopicPartition, committed: Option<u64>, end: impl Into<Option<u64>>) -> Self {
        let end = end.into();
        let lag = committed.zip(end).map(|(next, end)| end.saturating_sub(next));
        Self { partition, committed, end, last_stable: end, lag }
    }

    /// Sets the last stable offset of a partition, which is `end` by default.
    #[must_use]
    pub fn with_last_stable(mut self, offset: Option<u64>) -> Self {
        self.last_stable = offset;
        self
    }
}

/// A group as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupInfo {
    /// Its name.
    pub id: GroupId,
    /// Its state.
    pub state: GroupState,
    /// Its members.
    pub members: Vec<GroupMember>,
    /// The partitions that it has committed or owns, in order.
    pub partitions: Vec<GroupPartition>,
}

impl GroupInfo {
    /// A group as it is, for those who implement a bus.
    pub fn new(
        id: GroupId,
        state: GroupState,
        members: Vec<GroupMember>,
        partitions: Vec<GroupPartition>,
    ) -> Self {
        Self { id, state, members, partitions }
    }

    /// Whether members and all partitions are known: the group is neither `NotDescribed` nor `Hidden`.
    pub fn is_described(&self) -> bool {
        !matches!(self.state, GroupState::NotDescribed | GroupState::Hidden)
    }

    /// The lag over all partitions. None if one of them has no commit or no known end, or if the group is not described: it may own
    /// partitions that are not known.
    pub fn lag(&self) -> Option<u64> {
        let lag = self.partitions.iter().try_fold(0_u64, |sum, p| Some(sum.saturating_add(p.lag?)));
        lag.filter(|_| self.is_described())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{AssignedPartition, Assignment};

    #[test]
    fn offsets_of_two_answers_never_wrap() {
        assert_eq!(PartitionInfo::new(0, 3, 10).offsets(), 7);
        assert_eq!(PartitionInfo::new(0, 10, 3).offsets(), 0);
        assert_eq!(PartitionInfo::new(0, u64::MAX, 0).offsets(), 0);
        let partition = TopicPartition::new(TopicName::new("t").unwrap(), 0);
        assert_eq!(GroupPartition::new(partition.clone(), Some(10), 3).lag, Some(0));
        let assigned = AssignedPartition::new(partition, 0, None, u64::MAX, false);
        assert_eq!(Assignment::new(1, vec![assigned.clone(), assigned]).lag(), u64::MAX);
    }

    #[test]
    fn lag_of_a_group_that_is_not_described_is_unknown() {
        let partition = TopicPartition::new(TopicName::new("t").unwrap(), 0);
        let row = |committed| GroupPartition::new(partition.clone(), committed, u64::MAX);
        let group = |state, partitions| {
            GroupInfo::new(GroupId::new("g").unwrap(), state, Vec::new(), partitions).lag()
        };
        assert_eq!(group(GroupState::Empty, vec![row(Some(u64::MAX)), row(Some(u64::MAX - 3))]), Some(3));
        assert_eq!(group(GroupState::Empty, vec![row(Some(0)), row(Some(0))]), Some(u64::MAX));
        assert_eq!(group(GroupState::Empty, vec![row(Some(0)), row(None)]), None);
        let unknown = GroupPartition::new(partition.clone(), Some(0), None);
        assert_eq!(group(GroupState::Empty, vec![row(Some(0)), unknown]), None);
        assert_eq!(group(GroupState::NotDescribed, vec![row(Some(u64::MAX))]), None);
        assert_eq!(group(GroupState::Hidden, vec![]), None);
    }
}
