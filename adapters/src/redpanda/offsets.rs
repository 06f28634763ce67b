//! Questions about offsets, each one call for all partitions: the ends of logs, offsets by time, commits.

use std::collections::BTreeMap;
use std::time::Duration;

use qi_core::Timestamp;
use qi_core::bus::{StartFrom, TopicPartition};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

/// Which offset of a partition is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    Beginning,
    End,
    At(Timestamp),
}

/// Partitions as the driver takes them.
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

/// The offsets of a list by partition; the first error of a partition is the error of all.
fn read(list: &TopicPartitionList) -> KafkaResult<BTreeMap<TopicPartition, Offset>> {
    let mut found = BTreeMap::new();
    let elements = list.elements();
    for (element, partition) in elements.iter().zip(super::inbox::partitions(list)) {
        element.error()?;
        found.insert(partition, element.offset());
    }
    Ok(found)
}

/// One offset of each partition. The end where there is no message of that time or later.
pub(super) fn find<'a, C: ConsumerContext>(
    client: &BaseConsumer<C>,
    partitions: impl IntoIterator<Item = &'a TopicPartition>,
    place: Place,
    limit: Duration,
) -> KafkaResult<BTreeMap<TopicPartition, u64>> {
    let asked = match place {
        Place::Beginning => Offset::Beginning,
        Place::End => Offset::End,
        // Logs keep milliseconds, and a message before the moment is none of it or later.
        Place::At(time) => Offset::Offset((time.as_micros() + 999).div_euclid(1_000)),
    };
    let partitions: Vec<_> = partitions.into_iter().collect();
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let answer = client.offsets_for_times(list(partitions.iter().map(|p| (*p, asked)))?, limit)?;
    let found = read(&answer)?;
    drop(answer);
    let mut offsets = BTreeMap::new();
    let mut beyond = Vec::new();
    for (partition, offset) in found {
        match offset {
            Offset::Offset(offset) => drop(offsets.insert(partition, offset.cast_unsigned())),
            _ => beyond.push(partition),
        }
    }
    if !beyond.is_empty() && matches!(place, Place::At(_)) {
        offsets.extend(find(client, &beyond, Place::End, limit)?);
    }
    Ok(offsets)
}

/// The commits of the client's group, where there are any.
pub(super) fn committed<'a, C: ConsumerContext>(
    client: &BaseConsumer<C>,
    partitions: impl IntoIterator<Item = &'a TopicPartition>,
    limit: Duration,
) -> KafkaResult<BTreeMap<TopicPartition, u64>> {
    let asked = list(partitions.into_iter().map(|partition| (partition, Offset::Invalid)))?;
    if asked.count() == 0 {
        return Ok(BTreeMap::new());
    }
    let found = read(&client.committed_offsets(asked, limit)?)?;
    let valid = found.into_iter().filter_map(|(partition, offset)| match offset {
        Offset::Offset(offset) => Some((partition, offset.cast_unsigned())),
        _ => None,
    });
    Ok(valid.collect())
}

/// Where partitions without a valid commit begin. None where it is to fail.
pub(super) fn starts<'a, C: ConsumerContext>(
    client: &BaseConsumer<C>,
    partitions: impl IntoIterator<Item = &'a TopicPartition>,
    otherwise: StartFrom,
    limit: Duration,
) -> KafkaResult<Option<BTreeMap<TopicPartition, u64>>> {
    let place = match otherwise {
        StartFrom::Earliest => Place::Beginning,
        StartFrom::Latest => Place::End,
        StartFrom::At(time) => Place::At(time),
        StartFrom::Fail => return Ok(None),
    };
    find(client, partitions, place, limit).map(Some)
}
