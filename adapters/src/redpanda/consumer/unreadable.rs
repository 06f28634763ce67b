//! Record batches that librdkafka cannot decompress. librdkafka reports an error without the partition and the offset,
//! and fetches the same batch again indefinitely.
//!
//! A separate client, the probe, reads one partition from one offset. It receives a message, the end of the partition
//! or the error. Probes first find the partition, and then the first readable offset after the batch. The offsets in
//! between become one message without a payload. No codec accepts this message, so it becomes a dead letter.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use qi_core::bus::TopicPartition;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::assignment::Assignment;
use crate::redpanda::error;
use crate::redpanda::offsets::{self, OffsetSpec};

/// The maximum duration of one probe. A batch of 2 GiB takes some seconds.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum wait of one poll of a probe.
const POLL: Duration = Duration::from_millis(100);
/// The number of offsets in a range that are probed again before the range is skipped.
const SAMPLES: u64 = 8;

/// A partition that may have an unreadable batch at its fetch offset.
#[derive(Debug, Clone)]
pub(super) struct Suspect {
    pub(super) partition: TopicPartition,
    pub(super) generation: u64,
    pub(super) fetch_offset: u64,
}

/// A range of offsets that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u64,
    /// The next readable offset, or the end of the partition.
    pub(super) next: u64,
}

/// Returns whether librdkafka received a batch that it cannot decompress.
pub(super) fn is_unreadable(error: &KafkaError) -> bool {
    matches!(error, KafkaError::MessageConsumption(Code::BadCompression))
}

/// Returns the partitions that librdkafka fetches.
pub(super) fn suspects(assignment: &Assignment) -> Vec<Suspect> {
    let read = assignment.partitions.iter().filter(|(_, state)| !state.paused && state.failed.is_none());
    read.map(|(partition, state)| Suspect {
        partition: partition.clone(),
        generation: state.generation,
        fetch_offset: state.fetch_offset,
    })
    .collect()
}

/// Finds the unreadable ranges at the fetch offsets. Calls `found` as soon as the batch of a partition is known to be
/// unreadable, and later `passed` with its range. Returns whether all partitions were probed.
pub(super) fn find<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    config: &ClientConfig,
    suspects: &[Suspect],
    limit: Duration,
    is_closing: impl Fn() -> bool,
    found: impl Fn(&Suspect),
    passed: impl Fn(&Suspect, Option<Range>),
) -> bool {
    // The messages of an open transaction are after the last offset that can be read.
    let partitions = suspects.iter().map(|suspect| &suspect.partition);
    let ends = offsets::find_each(client, partitions, OffsetSpec::Latest, limit).unwrap_or_else(|error| {
        tracing::debug!(%error, "the ends of partitions are not known");
        BTreeMap::new()
    });
    let mut all = true;
    for suspect in suspects {
        let end = match ends.get(&suspect.partition) {
            Some(Ok(end)) => *end,
            Some(Err(error)) if error::is_gone(error) || error::is_hidden(error) => continue,
            _ => {
                all = false;
                continue;
            }
        };
        if end <= suspect.fetch_offset {
            continue;
        }
        let readable = |offset| {
            if is_closing() { None } else { is_readable(config, &suspect.partition, offset) }
        };
        match readable(suspect.fetch_offset) {
            Some(true) => {}
            None => all = false,
            Some(false) => {
                found(suspect);
                let next = first_readable(suspect.fetch_offset, end, readable);
                all &= next.is_some();
                passed(suspect, next.map(|next| Range { first: suspect.fetch_offset, next }));
            }
        }
    }
    all
}

/// Returns whether a partition can be read from an offset, or None if this is unknown.
fn is_readable(config: &ClientConfig, partition: &TopicPartition, offset: u64) -> Option<bool> {
    let mut config = config.clone();
    config
        .remove("group.instance.id")
        .set("enable.partition.eof", "true")
        .set("statistics.interval.ms", "0")
        .set("queued.max.messages.kbytes", "1024")
        .set("max.partition.fetch.bytes", "1024");
    // A separate client for each offset, because a late response for another offset must not count for this offset.
    let probe: BaseConsumer = config.create().ok()?;
    probe.assign(&offsets::list([(partition, offsets::offset(offset))]).ok()?).ok()?;
    let deadline = Instant::now() + PROBE_TIMEOUT;
    while Instant::now() < deadline {
        match probe.poll(POLL) {
            Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Some(true),
            Some(Err(error)) if is_unreadable(&error) => return Some(false),
            Some(Err(error)) => tracing::debug!(%error, "a probe continues after an error"),
            None => {}
        }
    }
    None
}

/// Returns the first readable offset after `first`, which is not readable, or `end`. Returns None if a
/// probe has no result.
///
/// Readable offsets between two unreadable batches are found if a probe hits them. The steps double, the remaining
/// range is halved, and then it is sampled.
fn first_readable(first: u64, end: u64, readable: impl Fn(u64) -> Option<bool>) -> Option<u64> {
    let (mut unreadable, mut next, mut step) = (first, end, 1);
    while let Some(offset) = first.checked_add(step).filter(|offset| *offset < end) {
        if readable(offset)? {
            next = offset;
            break;
        }
        (unreadable, step) = (offset, step.saturating_mul(2));
    }
    loop {
        while next - unreadable > 1 {
            let middle = unreadable + (next - unreadable) / 2;
            if readable(middle)? { next = middle } else { unreadable = middle }
        }
        let stride = (next - first).div_ceil(SAMPLES + 1).max(1);
        let mut samples = (1..=SAMPLES).map(|n| first + n * stride).filter(|offset| *offset < next);
        let (mut before, mut met) = (first, None);
        for offset in samples.by_ref() {
            if readable(offset)? {
                met = Some(offset);
                break;
            }
            before = offset;
        }
        match met {
            Some(offset) => (unreadable, next) = (before, offset),
            None => return Some(next),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_first_offset_behind_an_unreadable_batch_is_found_in_few_probes() {
        for (first, next, end) in
            [(0, 1, 2), (0, 1, 1), (7, 2_607, 2_608), (7, 2_607, 1 << 40), (5, 9, 9), (0, 1 << 30, 1 << 31)]
        {
            let probes = Cell::new(0);
            let readable = |offset| {
                probes.set(probes.get() + 1);
                assert!(offset > first && offset < end);
                Some(offset >= next)
            };
            assert_eq!(first_readable(first, end, readable), Some(next));
            assert!(probes.get() <= 72, "{probes:?}");
        }
    }

    #[test]
    fn a_readable_batch_between_unreadable_ones_is_kept() {
        let readable = |offset| Some((10..13).contains(&offset) || (100..=150).contains(&offset));
        assert_eq!(first_readable(0, 1_000, readable), Some(10), "a sample meets it");
        assert_eq!(first_readable(9, 1_000, readable), Some(10));
        assert_eq!(first_readable(13, 1_000, readable), Some(100));
    }

    #[test]
    fn nothing_is_passed_over_without_an_answer() {
        let readable = |offset| (offset != 4).then_some(offset > 5);
        assert_eq!(first_readable(0, 9, readable), None);
    }
}
