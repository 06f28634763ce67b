//! Record batches that librdkafka cannot decompress. It reports an error without the partition and the offset, and fetches
//! the same batch again for ever.
//!
//! A client of its own, the probe, reads one partition from one offset, and either gets a message, the end or the error.
//! By such probes the partition is found, and then the first readable offset behind the batch. The offsets between become
//! one message without a payload, which no codec accepts, so that it becomes a dead letter.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use qi_core::bus::TopicPartition;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::assignment::Assignment;
use crate::redpanda::error;
use crate::redpanda::offsets::{self, OffsetSpec};

/// The longest time of one probe. A batch of 2 GiB takes some seconds.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// One wait for an answer of a probe.
const POLL: Duration = Duration::from_millis(100);
/// The number of offsets of a range that are probed again before it is passed over.
const SAMPLES: u64 = 8;

/// A partition that may have an unreadable batch at its fetch offset.
#[derive(Debug, Clone)]
pub(super) struct Suspect {
    pub(super) partition: TopicPartition,
    pub(super) generation: u64,
    pub(super) fetch_offset: u64,
}

/// Offsets that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u64,
    /// The next readable offset, or the end of the partition.
    pub(super) next: u64,
}

/// Returns whether librdkafka met a batch that it cannot decompress.
pub(super) fn is_unreadable(error: &KafkaError) -> bool {
    matches!(error, KafkaError::MessageConsumption(Code::BadCompression))
}

/// Returns the partitions that librdkafka reads.
pub(super) fn suspects(assignment: &Assignment) -> Vec<Suspect> {
    let read = assignment.partitions.iter().filter(|(_, state)| !state.paused && state.failed.is_none());
    read.map(|(partition, state)| Suspect {
        partition: partition.clone(),
        generation: state.generation,
        fetch_offset: state.fetch_offset,
    })
    .collect()
}

/// Finds the unreadable ranges at the fetch offsets. `found` is called for a partition as soon as its batch is known to be
/// unreadable, `passed` with its range. Returns whether all partitions were probed.
pub(super) fn find<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    config: &ClientConfig,
    suspects: &[Suspect],
    limit: Duration,
    is_closing: impl Fn() -> bool,
    found: impl Fn(&Suspect),
    passed: impl Fn(&Suspect, Option<Range>),
) -> bool {
    // The end of an open transaction is behind the last offset that can be read.
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

/// Returns whether a partition can be read from an offset. None if that is not known.
fn is_readable(config: &ClientConfig, partition: &TopicPartition, offset: u64) -> Option<bool> {
    let mut config = config.clone();
    config
        .remove("group.instance.id")
        .set("enable.partition.eof", "true")
        .set("statistics.interval.ms", "0")
        .set("queued.max.messages.kbytes", "1024")
        .set("max.partition.fetch.bytes", "1024");
    // One client for each offset: what another offset was answered is not taken for this one.
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

/// Returns the first readable offset behind `first`, which is not readable, or `end`. None if a probe has no answer.
///
/// Offsets between two unreadable batches are found if one of the probes meets them: the steps double, and the range that
/// they leave is halved, and then sampled.
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
