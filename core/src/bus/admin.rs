//! Metadata and administration of topics, groups and brokers.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Encoding, GroupId, TopicName, TopicPartition};
use crate::domain::duration;
use crate::{Error, Result, Selection};

/// Metadata about a bus.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BusInfo {
    /// The backend's name in the configuration: `memory`, `redpanda`, ...
    pub backend: &'static str,
    /// The broker's version.
    pub version: Option<String>,
    /// The longest time that `publish` waits for buffer space, and then again for delivery, before messages fail.
    pub delivery_timeout: Duration,
    /// The largest message that the client accepts, in bytes. A topic may have a smaller limit.
    pub max_message_bytes: usize,
    /// The format of records that [`super::MessageBusExt::send_records`] publishes. Defaults to JSON.
    pub encoding: Encoding,
}

impl BusInfo {
    /// Creates the info of a backend that no call has reached yet.
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

/// The result of `ping`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BusPingReport {
    /// The cluster's id, if the cluster reports one.
    pub cluster_id: Option<String>,
    /// The number of brokers that answered.
    pub brokers: usize,
    /// The duration of the round trip.
    pub round_trip: Duration,
}

impl BusPingReport {
    /// Creates the report of a ping that `brokers` brokers answered after `round_trip`.
    pub fn new(cluster_id: Option<String>, brokers: usize, round_trip: Duration) -> Self {
        Self { cluster_id, brokers, round_trip }
    }
}

/// The result of `close`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CloseReport {
    /// The number of messages that were neither acknowledged nor rejected when the time limit of `close` expired.
    pub unknown: usize,
}

impl CloseReport {
    /// Creates a report in which `unknown` messages had no acknowledgement.
    pub fn new(unknown: usize) -> Self {
        Self { unknown }
    }
}

/// The policy by which a topic removes old messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CleanupPolicy {
    /// Removes messages that are older than the retention time.
    #[default]
    Delete,
    /// Keeps the newest message of each key.
    Compact,
}

impl CleanupPolicy {
    /// Returns the value of Kafka's setting `cleanup.policy`: `delete` or `compact`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Compact => "compact",
        }
    }
}

/// A topic to create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawTopicSpec")]
#[non_exhaustive]
pub struct TopicSpec {
    /// The topic's name.
    pub name: TopicName,
    /// The number of partitions, at least 1.
    pub partitions: u32,
    /// The number of replicas of each partition. None selects the broker's default.
    pub replication: Option<u16>,
    /// The retention time of messages. None selects the broker's default.
    #[serde(with = "duration::option")]
    pub retention: Option<Duration>,
    /// The largest message, in bytes. None selects the broker's default.
    pub max_message_bytes: Option<usize>,
    /// The policy by which the topic removes old messages.
    pub cleanup: CleanupPolicy,
    /// Further settings of the broker, as text.
    pub settings: BTreeMap<String, String>,
}

/// A deserialised specification, before its validation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTopicSpec {
    name: TopicName,
    partitions: u32,
    replication: Option<u16>,
    #[serde(default, with = "duration::option")]
    retention: Option<Duration>,
    max_message_bytes: Option<usize>,
    #[serde(default)]
    cleanup: CleanupPolicy,
    #[serde(default)]
    settings: BTreeMap<String, String>,
}

impl TryFrom<RawTopicSpec> for TopicSpec {
    type Error = Error;

    fn try_from(raw: RawTopicSpec) -> Result<Self> {
        let RawTopicSpec { name, partitions, replication, retention, max_message_bytes, cleanup, settings } =
            raw;
        Ok(Self {
            replication,
            retention,
            max_message_bytes,
            cleanup,
            settings,
            ..Self::new(name, partitions)?
        })
    }
}

impl TopicSpec {
    /// Creates the description of a topic with this number of partitions and the broker's defaults.
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

    /// Sets the number of replicas of each partition.
    #[must_use]
    pub fn with_replication(mut self, copies: u16) -> Self {
        self.replication = Some(copies);
        self
    }

    /// Sets the retention time of messages.
    #[must_use]
    pub fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = Some(retention);
        self
    }

    /// Sets the largest message, in bytes.
    #[must_use]
    pub fn with_max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = Some(bytes);
        self
    }

    /// Sets the cleanup policy.
    #[must_use]
    pub fn with_cleanup(mut self, cleanup: CleanupPolicy) -> Self {
        self.cleanup = cleanup;
        self
    }

    /// Sets a further setting of the broker.
    #[must_use]
    pub fn with_setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.insert(name.into(), value.into());
        self
    }
}

/// A setting of an existing topic that differs from the requested setting.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SettingDiff {
    /// The setting's name.
    pub name: String,
    /// The requested value.
    pub wanted: String,
    /// The value of the existing topic.
    pub found: String,
}

impl SettingDiff {
    /// Creates the difference of a setting, for authors of bus adapters.
    pub fn new(name: impl Into<String>, wanted: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), wanted: wanted.into(), found: found.into() }
    }
}

/// The outcome of a request for one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopicState {
    /// The topic was created.
    Created,
    /// The topic existed with the same number of partitions. Its settings may differ and were not changed.
    Existed {
        /// The settings that differ. Empty if they are hidden.
        differs: Vec<SettingDiff>,
        /// True if the principal may not read the topic's settings, so that nothing was compared.
        settings_hidden: bool,
    },
    /// The topic was deleted.
    Deleted,
}

/// The outcome for one topic of a request.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TopicOutcome {
    /// The topic's name.
    pub topic: TopicName,
    /// The outcome, or the error of this topic.
    pub result: Result<TopicState>,
}

impl TopicOutcome {
    /// Creates the outcome for a topic, for authors of bus adapters.
    pub fn new(topic: TopicName, result: Result<TopicState>) -> Self {
        Self { topic, result }
    }
}

/// One partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionInfo {
    /// The partition's number.
    pub id: u32,
    /// The broker that leads the partition. None if there is no leader, or if the leader does not answer. `low` and
    /// `high` are then unknown, and 0.
    pub leader: Option<i32>,
    /// The brokers that hold a replica.
    pub replicas: Vec<i32>,
    /// The replicas that are in sync.
    pub in_sync: Vec<i32>,
    /// The log start offset: the first offset that still exists.
    pub low: u64,
    /// The high watermark: the offset of the next message.
    pub high: u64,
}

impl PartitionInfo {
    /// Returns the number of offsets between `low` and `high`, an upper bound of the number of messages. Returns 0 if
    /// retention moved `low` past a `high` that was read earlier.
    pub fn offsets(&self) -> u64 {
        self.high.saturating_sub(self.low)
    }

    /// Creates partition `id`, led and held by broker 0, with offsets from `low` to `high`.
    pub fn new(id: u32, low: u64, high: u64) -> Self {
        Self { id, leader: Some(0), replicas: vec![0], in_sync: vec![0], low, high }
    }
}

/// The description of an existing topic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicInfo {
    /// The topic's name.
    pub name: TopicName,
    /// The topic's partitions, by number.
    pub partitions: Vec<PartitionInfo>,
    /// The settings by the broker's names. None if they are hidden, because the principal may not read them or the
    /// broker does not show them.
    pub settings: Option<BTreeMap<String, String>>,
}

impl TopicInfo {
    /// Creates the description of a topic, for authors of bus adapters. [`TopicInfo::settings`] is
    /// hidden until it is set.
    pub fn new(name: TopicName, partitions: Vec<PartitionInfo>) -> Self {
        Self { name, partitions, settings: None }
    }

    /// Sets the topic's settings by the broker's names.
    #[must_use]
    pub fn with_settings(mut self, settings: BTreeMap<String, String>) -> Self {
        self.settings = Some(settings);
        self
    }
}

/// The groups to describe, and the topics to describe them on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct GroupQuery {
    /// The groups to describe.
    pub groups: Selection<GroupId>,
    /// The topics whose commits and lag are returned. Defaults to all topics.
    #[serde(default = "all_topics")]
    pub topics: Selection<TopicName>,
}

fn all_topics() -> Selection<TopicName> {
    Selection::All
}

impl GroupQuery {
    /// Creates a query of these groups, on all topics.
    pub fn new(groups: Selection<GroupId>) -> Self {
        Self { groups, topics: Selection::All }
    }

    /// Restricts commits and lag to these topics. A commit in another topic does not count, for example in a topic that
    /// the group no longer reads. A group without members and without a commit in these topics is absent.
    #[must_use]
    pub fn with_topics(mut self, topics: Selection<TopicName>) -> Self {
        self.topics = topics;
        self
    }

    /// Creates a query of one group, on all topics.
    pub fn one(group: GroupId) -> Self {
        Self::new(Selection::one(group))
    }
}

/// The state of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GroupState {
    /// The group has commits and no members.
    Empty,
    /// A rebalance is in progress.
    Rebalancing,
    /// Every partition has an owner.
    Stable,
    /// The group exists, but the client cannot describe its members, for example because the group uses another
    /// protocol. [`GroupInfo::partitions`] holds the commits.
    NotDescribed,
    /// The principal may not describe the group. Its members and commits are unknown. A group that the
    /// query names may not exist.
    Hidden,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupMember {
    /// The member's id.
    pub id: String,
    /// The name of the member's client.
    pub client_id: String,
    /// The partitions that the member owns.
    pub partitions: Vec<TopicPartition>,
}

impl GroupMember {
    /// Creates the description of a member, for authors of bus adapters.
    pub fn new(id: String, client_id: String, partitions: Vec<TopicPartition>) -> Self {
        Self { id, client_id, partitions }
    }
}

/// The progress of a group in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupPartition {
    /// The partition.
    pub partition: TopicPartition,
    /// The group's commit, if it has one.
    pub committed: Option<u64>,
    /// The high watermark: the offset of the next message. None if it is unknown, because the partition has no leader.
    pub end: Option<u64>,
    /// The last stable offset: a reader receives the message at this offset, and later ones, after the first open
    /// transaction has ended. Equal to `end` without an open transaction. None while it is unknown.
    pub last_stable: Option<u64>,
    /// The high watermark minus the commit, including messages of open transactions. None without a commit or a known
    /// high watermark.
    pub lag: Option<u64>,
}

impl GroupPartition {
    /// Creates the progress of a group in a partition, and computes the lag.
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

/// The description of an existing group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupInfo {
    /// The group's name.
    pub id: GroupId,
    /// The group's state.
    pub state: GroupState,
    /// The group's members.
    pub members: Vec<GroupMember>,
    /// The partitions that the group has committed or owns, in order.
    pub partitions: Vec<GroupPartition>,
}

impl GroupInfo {
    /// Creates the description of a group, for authors of bus adapters.
    pub fn new(
        id: GroupId,
        state: GroupState,
        members: Vec<GroupMember>,
        partitions: Vec<GroupPartition>,
    ) -> Self {
        Self { id, state, members, partitions }
    }

    /// Returns true if members and all partitions are known: the group is neither `NotDescribed` nor `Hidden`.
    pub fn is_described(&self) -> bool {
        !matches!(self.state, GroupState::NotDescribed | GroupState::Hidden)
    }

    /// Returns the lag over all partitions. Returns None if a partition has no commit or no known high watermark. Also
    /// returns None if the group is not described, because it may own unknown partitions.
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
    fn offset_differences_saturate() {
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
