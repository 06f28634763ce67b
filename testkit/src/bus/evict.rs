//! Eviction from a full bus. Only messages that every group of their topic has committed are removed.

use std::collections::BTreeMap;

use qi_core::bus::{GroupId, TopicName, TopicPartition};

use super::group::{Group, Topics};
use super::state::State;

/// The largest number of records removed from a partition before the partition with the oldest record is chosen again.
const EVICTION_BATCH: usize = 256;

impl State {
    /// Frees at least `need` bytes if possible, oldest messages first. Frees 1/16 of `max_bytes` more, so that a full
    /// bus does not search for space at every publish.
    pub(super) fn free_space(&mut self, need: usize, max_bytes: usize) {
        let goal = need + max_bytes / 16;
        let Self { topics, groups, used, .. } = self;
        let floors = floors(topics, groups);
        let mut freed = 0;
        while freed < goal {
            let oldest = floors
                .iter()
                .filter_map(|(partition, floor)| {
                    let topic = topics.get(&partition.topic).filter(|topic| !topic.compacted())?;
                    let first = topic.partition(partition.partition)?.records.front()?;
                    (first.offset < *floor).then_some((first.at, partition, *floor))
                })
                .min_by_key(|(at, ..)| *at);
            let Some((_, partition, floor)) = oldest else { break };
            let Some(log) = topics
                .get_mut(&partition.topic)
                .and_then(|topic| topic.partitions.get_mut(partition.partition as usize))
            else {
                break;
            };
            let run_end = log.records.get(EVICTION_BATCH).map_or(log.end, |record| record.offset);
            freed += log.drop_below(floor.min(run_end));
        }
        for (partition, floor) in &floors {
            if let Some(topic) = topics.get_mut(&partition.topic)
                && freed < goal
                && topic.compacted()
                && let Some(log) = topic.partitions.get_mut(partition.partition as usize)
            {
                freed += log.compact_below(*floor);
            }
        }
        *used -= freed;
    }

    /// Returns the group with the largest lag, and its lag.
    pub(super) fn largest_lag(&self) -> Option<(&str, u64)> {
        self.groups
            .iter()
            .map(|(id, group)| (id.as_str(), group.lag(&self.topics)))
            .max_by_key(|(_, lag)| *lag)
            .filter(|(_, lag)| *lag > 0)
    }
}

/// Returns the lowest commit of the topic's groups for each partition. Omits topics without groups, and partitions that
/// a group has not committed.
fn floors(topics: &Topics, groups: &BTreeMap<GroupId, Group>) -> Vec<(TopicPartition, u64)> {
    topics
        .iter()
        .flat_map(|(name, topic)| {
            let readers: Vec<_> = groups.values().filter(|group| group.reads(name)).collect();
            (0..topic.count().get()).filter_map(move |id| floor(name, id, &readers))
        })
        .collect()
}

fn floor(topic: &TopicName, id: u32, readers: &[&Group]) -> Option<(TopicPartition, u64)> {
    let partition = TopicPartition::new(topic.clone(), id);
    let commits: Option<Vec<u64>> =
        readers.iter().map(|group| group.commits.get(&partition).copied()).collect();
    let lowest = commits?.into_iter().min()?;
    Some((partition, lowest))
}
