//! Queries for offsets: the ends of logs, offsets by time, and committed offsets. Usually one request per query. A request
//! that fails because of one partition is divided until that partition is found.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use qi_core::Timestamp;
use qi_core::bus::{OffsetReset, TopicName, TopicPartition};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};

use super::error;

/// The offset to look up.
#[derive(Debug, Clone, Copy)]
pub(super) enum OffsetSpec {
    Earliest,
    Latest,
    At(Timestamp),
}

/// Returns partitions as a list of the driver.
pub(super) fn list<'a>(
    partitions: impl IntoIterator<Item = (&'a TopicPartition, Offset)>,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in partitions {
        list.add_partition_offset(partition.topic.as_str(), partition.partition.cast_signed(), offset)?;
    }
    Ok(list)
}

pub(super) fn offset(offset: u64) -> Offset {
    Offset::Offset(offset.cast_signed())
}

/// Returns the partitions of a list.
pub(super) fn partitions(list: &TopicPartitionList) -> Vec<TopicPartition> {
    let elements = list.elements();
    let partitions = elements.iter().filter_map(|element| {
        let topic = TopicName::new(element.topic()).ok()?;
        Some(TopicPartition::new(topic, u32::try_from(element.partition()).ok()?))
    });
    partitions.collect()
}

/// The response of the brokers for each partition.
type PartitionResults<T> = BTreeMap<TopicPartition, KafkaResult<T>>;

fn offsets_of(list: &TopicPartitionList) -> PartitionResults<Offset> {
    let elements = list.elements();
    let results = elements.iter().map(|element| element.error().map(|()| element.offset()));
    partitions(list).into_iter().zip(results).collect()
}

/// Returns one offset of each partition, or its error. For a time without a message at that time or later, returns the
/// end of the partition.
pub(super) fn find_each<'a, C: ConsumerContext>(
    client: &BaseConsumer<C>,
    partitions: impl IntoIterator<Item = &'a TopicPartition>,
    spec: OffsetSpec,
    limit: Duration,
) -> KafkaResult<PartitionResults<u64>> {
    let requested = match spec {
        OffsetSpec::Earliest => Offset::Beginning,
        OffsetSpec::Latest => Offset::End,
        // The timestamps of messages are truncated to milliseconds as well.
        OffsetSpec::At(time) => Offset::Offset(time.as_millis_floor()),
    };
    let partitions: Vec<_> = partitions.into_iter().collect();
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let list = list(partitions.iter().map(|partition| (*partition, requested)))?;
    let results = match client.offsets_for_times(list, limit) {
        Ok(list) => offsets_of(&list),
        // librdkafka also returns this error for partitions without leaders.
        Err(error) if error::code_of(&error) == Some(Code::UnknownPartition) => {
            return without_leaders(client, &partitions, limit);
        }
        // A single partition that is deleted, unauthorized or without a leader can fail the entire request. The recursion
        // finds it by bisection.
        Err(error)
            if error::is_missing(&error)
                || error::is_unauthorized(&error)
                || error::is_leaderless(&error) =>
        {
            let (left, right) = partitions.split_at(partitions.len() / 2);
            if left.is_empty() {
                return Ok(right
                    .iter()
                    .map(|partition| ((*partition).clone(), Err(error.clone())))
                    .collect());
            }
            let mut offsets = find_each(client, left.iter().copied(), spec, limit)?;
            offsets.extend(find_each(client, right.iter().copied(), spec, limit)?);
            return Ok(offsets);
        }
        Err(error) => return Err(error),
    };
    let mut offsets = PartitionResults::new();
    let mut after_last = Vec::new();
    for (partition, result) in results {
        match result {
            Ok(Offset::Offset(offset)) => drop(offsets.insert(partition, Ok(offset.cast_unsigned()))),
            Ok(_) => after_last.push(partition),
            Err(error) => drop(offsets.insert(partition, Err(error))),
        }
    }
    if !after_last.is_empty() && matches!(spec, OffsetSpec::At(_)) {
        offsets.extend(find_each(client, &after_last, OffsetSpec::Latest, limit)?);
    }
    Ok(offsets)
}

/// Returns the reason why librdkafka knows no leader of these partitions, with one metadata request for each topic: the
/// partition has no leader, it does not exist, or the principal may not describe the topic.
fn without_leaders<C: ConsumerContext, T>(
    client: &BaseConsumer<C>,
    partitions: &[&TopicPartition],
    limit: Duration,
) -> KafkaResult<PartitionResults<T>> {
    let mut results = PartitionResults::new();
    let topics: BTreeSet<_> = partitions.iter().map(|partition| &partition.topic).collect();
    for topic in topics {
        let metadata = client.fetch_metadata(Some(topic.as_str()), limit)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic.as_str());
        for partition in partitions.iter().filter(|partition| partition.topic == *topic) {
            let id = partition.partition.cast_signed();
            let exists = found.is_some_and(|found| found.partitions().iter().any(|part| part.id() == id));
            let topic_error = found.and_then(rdkafka::metadata::MetadataTopic::error).map(Code::from);
            let code =
                if exists { Code::LeaderNotAvailable } else { topic_error.unwrap_or(Code::UnknownPartition) };
            results.insert((*partition).clone(), Err(KafkaError::OffsetFetch(code)));
        }
    }
    Ok(results)
}

/// Returns one offset of each partition. The first error of a partition fails the call.
pub(super) fn find<'a, C: ConsumerContext>(
    client: &BaseConsumer<C>,
    partitions: impl IntoIterator<Item = &'a TopicPartition>,
    spec: OffsetSpec,
    limit: Duration,
) -> KafkaResult<BTreeMap<TopicPartition, u64>> {
    let found = find_each(client, partitions, spec, limit)?;
    found.into_iter().map(|(partition, result)| Ok((partition, result?))).collect()
}

/// Returns the existing commits of the client's group. A deleted or hidden partition has no commit.
pub(super) fn committed<'a, C: ConsumerContext>(
    client: &BaseConsumer<C>,
    partitions: impl IntoIterator<Item = &'a TopicPartition>,
    limit: Duration,
) -> KafkaResult<BTreeMap<TopicPartition, u64>> {
    let requested = list(partitions.into_iter().map(|partition| (partition, Offset::Invalid)))?;
    if requested.count() == 0 {
        return Ok(BTreeMap::new());
    }
    let mut commits = BTreeMap::new();
    for (partition, result) in offsets_of(&client.committed_offsets(requested, limit)?) {
        match result {
            Ok(Offset::Offset(offset)) => drop(commits.insert(partition, offset.cast_unsigned())),
            Ok(_) => {}
            Err(error) if error::is_missing(&error) || error::is_unauthorized(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(commits)
}

/// Returns the offset to look up for a partition without a valid commit, or None if the reset policy is an error.
pub(super) fn reset_spec(offset_reset: OffsetReset) -> Option<OffsetSpec> {
    match offset_reset {
        OffsetReset::Earliest => Some(OffsetSpec::Earliest),
        OffsetReset::Latest => Some(OffsetSpec::Latest),
        OffsetReset::At(time) => Some(OffsetSpec::At(time)),
        OffsetReset::Error => None,
    }
}

#[cfg(test)]
mod tests {
    use qi_core::bus::TopicName;
    use rdkafka::ClientConfig;
    use rdkafka::mocking::MockCluster;

    use super::*;

    #[test]
    fn a_leaderless_partition_fails_no_other_partition() {
        let limit = Duration::from_secs(10);
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 2, 1).unwrap();
        cluster.partition_leader("t", 1, None).unwrap();
        let client: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).create().unwrap();
        let at = |number| TopicPartition::new(TopicName::new("t").unwrap(), number);
        let leaderless =
            |found: &PartitionResults<u64>| error::is_leaderless(found[&at(1)].as_ref().unwrap_err());
        let found = find_each(&client, &[at(0), at(1)], OffsetSpec::Latest, limit).unwrap();
        assert_eq!(found[&at(0)], Ok(0));
        assert!(leaderless(&found), "{found:?}");
        let found = find_each(&client, &[at(1), at(7)], OffsetSpec::Latest, limit).unwrap();
        assert!(leaderless(&found), "{found:?}");
        assert!(error::is_missing(found[&at(7)].as_ref().unwrap_err()), "{found:?}");
    }
}
