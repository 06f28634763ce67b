//! The search for record batches that librdkafka cannot decompress. librdkafka fetches such a batch repeatedly.
//!
//! The text of librdkafka's error contains the first offset and the size of the batch, but not the partition. A
//! separate client, the probe, therefore reads a partition from an offset. The result is a message, the end of the
//! partition, or an error that names the batch at this offset. The probe first finds the partition, and then the first
//! offset after the batch. The offsets of the batch become one message without a payload. No codec accepts this
//! message, so it becomes a dead letter.
//!
//! A probe has a low limit for decompressed batches, so its error names a large batch within milliseconds. Such an
//! error does not prove that the consumer cannot read the batch. A second probe with the consumer's limit confirms the
//! error once for each batch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use qi_core::bus::TopicPartition;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message as _;
use rdkafka::{ClientConfig, ClientContext};

use super::assignment::Assignment;
use crate::redpanda::error;
use crate::redpanda::offsets::{self, OffsetSpec};

/// The maximum duration of the read of one offset with the low limit.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum duration of the read of one offset with the consumer's limit. A batch of 2 GiB takes some seconds.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum duration of one poll while a probe waits for its result.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The smallest value of a probe's low limit. It bounds a response, and a zstd batch after decompression.
const MIN_PROBE_BYTES: u64 = 16 << 20;
/// The maximum number of consecutive batches that one search skips in a partition.
const MAX_RANGES: usize = 32;

/// A batch that librdkafka cannot decompress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct UnreadableBatch {
    /// The first offset of the batch.
    first: u64,
    /// The size of the compressed records in bytes.
    bytes: u64,
}

impl UnreadableBatch {
    /// Parses the batch from the text of a librdkafka error.
    pub(super) fn of(reason: &str) -> Option<Self> {
        let (_, rest) = reason.strip_prefix("Decompression (codec ")?.split_once(") of message at ")?;
        let (first, rest) = rest.split_once(" of ")?;
        let (bytes, _) = rest.split_once(" bytes failed")?;
        Some(Self { first: first.parse().ok()?, bytes: bytes.parse().ok()? })
    }
}

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
    /// The first offset after the range.
    pub(super) next: u64,
}

/// Returns the partitions that librdkafka fetches. A partition whose fetch offset is close to the first offset of a batch
/// comes first.
pub(super) fn suspects(assignment: &Assignment, batches: &BTreeSet<UnreadableBatch>) -> Vec<Suspect> {
    let read = assignment.partitions.iter().filter(|(_, state)| !state.paused && state.failed.is_none());
    let mut suspects: Vec<_> = read
        .map(|(partition, state)| Suspect {
            partition: partition.clone(),
            generation: state.generation,
            fetch_offset: state.fetch_offset,
        })
        .collect();
    suspects.sort_by_key(|suspect| {
        batches.iter().map(|batch| batch.first.abs_diff(suspect.fetch_offset)).min().unwrap_or(u64::MAX)
    });
    suspects
}

/// The state of an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProbeResult {
    /// The first message at or after the offset can be read, or there is no such message.
    Readable,
    /// The offset lies in this batch, or before this batch with no message between.
    Unreadable(UnreadableBatch),
}

/// A search for unreadable batches.
pub(super) struct Search<'a> {
    pub(super) config: &'a ClientConfig,
    /// The reported batches, whose partitions are unknown.
    pub(super) batches: &'a BTreeSet<UnreadableBatch>,
    pub(super) is_closing: &'a dyn Fn() -> bool,
}

impl Search<'_> {
    /// Probes the fetch offset of each suspect, to find the partition of each batch. When it has found one, calls
    /// `on_found`, then searches for the ranges to skip, and calls `on_ranges`. Returns true if it found the partition of
    /// each batch, or if it probed each suspect.
    pub(super) fn run<C: ConsumerContext>(
        &self,
        client: &BaseConsumer<C>,
        suspects: &[Suspect],
        limit: Duration,
        on_found: impl Fn(&Suspect),
        on_ranges: impl Fn(&Suspect, Vec<Range>),
    ) -> bool {
        let partitions = suspects.iter().map(|suspect| &suspect.partition);
        // The consumer's client has `read_committed`, so these are the last stable offsets. Probes cannot read beyond
        // an open transaction.
        let ends =
            offsets::find_each(client, partitions, OffsetSpec::Latest, limit).unwrap_or_else(|error| {
                tracing::debug!(%error, "cannot query the ends of partitions");
                BTreeMap::new()
            });
        let Some(probe) = self.probe(true) else { return false };
        let (mut complete, mut unresolved) = (true, self.batches.clone());
        for suspect in suspects {
            if unresolved.is_empty() {
                return true;
            }
            let end = match ends.get(&suspect.partition) {
                Some(Ok(end)) => *end,
                Some(Err(error)) if error::is_missing(error) || error::is_unauthorized(error) => continue,
                _ => {
                    complete = false;
                    continue;
                }
            };
            if end <= suspect.fetch_offset {
                continue;
            }
            match self.probe_offset(&probe, &suspect.partition, suspect.fetch_offset) {
                None => complete = false,
                Some(ProbeResult::Unreadable(batch)) if unresolved.contains(&batch) => {
                    on_found(suspect);
                    let probe_offset = |offset| self.probe_offset(&probe, &suspect.partition, offset);
                    let confirm = |offset| self.confirm(&suspect.partition, offset);
                    let ranges = ranges(suspect.fetch_offset, end, probe_offset, confirm);
                    if !ranges.is_empty() {
                        unresolved.remove(&batch);
                    }
                    on_ranges(suspect, ranges);
                }
                // librdkafka has not reported an unreadable batch here. Either the consumer can read it, or its error
                // follows.
                Some(ProbeResult::Readable | ProbeResult::Unreadable(_)) => {}
            }
        }
        complete
    }

    /// Creates a probe, with the low limit or with the consumer's limit. Returns None if that fails.
    fn probe(&self, is_limited: bool) -> Option<BaseConsumer<ProbeContext>> {
        ProbeContext::client(self.config, self.batches, is_limited)
            .inspect_err(|error| tracing::warn!(%error, "cannot probe unreadable batches"))
            .ok()
    }

    fn probe_offset(
        &self,
        probe: &BaseConsumer<ProbeContext>,
        partition: &TopicPartition,
        offset: u64,
    ) -> Option<ProbeResult> {
        probe_offset(probe, partition, offset, PROBE_TIMEOUT, self.is_closing)
    }

    /// Reads an offset with the consumer's limit, in a new probe.
    fn confirm(&self, partition: &TopicPartition, offset: u64) -> Option<ProbeResult> {
        let probe = self.probe(false)?;
        probe_offset(&probe, partition, offset, CONFIRM_TIMEOUT, self.is_closing)
    }
}

/// Returns the consecutive unreadable ranges from `first` on, one for each batch. Stops at a readable offset, at a
/// batch that `confirm` can read, and at a batch whose end cannot be found.
fn ranges(
    first: u64,
    end: u64,
    probe_offset: impl Fn(u64) -> Option<ProbeResult>,
    confirm: impl Fn(u64) -> Option<ProbeResult>,
) -> Vec<Range> {
    let (mut ranges, mut at) = (Vec::new(), first);
    while at < end && ranges.len() < MAX_RANGES {
        let Some(result @ ProbeResult::Unreadable(batch)) = probe_offset(at) else { break };
        if confirm(at) != Some(result) {
            break;
        }
        let begin = at.max(batch.first);
        let Some(next) = end_of(batch, begin, end, &probe_offset) else { break };
        ranges.push(Range { first: begin, next });
        at = next;
    }
    ranges
}

/// Returns the first offset after the batch that contains the offset `at`, or `end` if the batch extends to the end.
/// Returns None if a probe has no response. Doubles the step until an offset is outside the batch, and then uses binary
/// search.
fn end_of(
    batch: UnreadableBatch,
    at: u64,
    end: u64,
    probe_offset: impl Fn(u64) -> Option<ProbeResult>,
) -> Option<u64> {
    let is_in_batch = |offset| probe_offset(offset).map(|result| result == ProbeResult::Unreadable(batch));
    let (mut inside, mut next, mut step) = (at, end, 1);
    while let Some(offset) = at.checked_add(step).filter(|offset| *offset < end) {
        if !is_in_batch(offset)? {
            next = offset;
            break;
        }
        (inside, step) = (offset, step.saturating_mul(2));
    }
    while next - inside > 1 {
        let middle = inside + (next - inside) / 2;
        if is_in_batch(middle)? { inside = middle } else { next = middle }
    }
    Some(next)
}

/// The context of a probe: the batch that the last error names.
#[derive(Debug, Default)]
struct ProbeContext(Mutex<Option<UnreadableBatch>>);

impl ProbeContext {
    fn client(
        config: &ClientConfig,
        batches: &BTreeSet<UnreadableBatch>,
        is_limited: bool,
    ) -> KafkaResult<BaseConsumer<Self>> {
        let mut config = config.clone();
        config
            .remove("group.instance.id")
            .set("enable.partition.eof", "true")
            .set("statistics.interval.ms", "0")
            .set("queued.max.messages.kbytes", "1024")
            .set("max.partition.fetch.bytes", "1024");
        if is_limited {
            let allowed = config.get("receive.message.max.bytes").and_then(|bytes| bytes.parse().ok());
            // A response contains a complete batch, even if the batch is larger than the limit of the request.
            let largest = batches.iter().map(|batch| batch.bytes).max().unwrap_or_default();
            let received = MIN_PROBE_BYTES.max(largest.saturating_mul(2)).min(allowed.unwrap_or(u64::MAX));
            let fetched = received.saturating_sub(512).min(1 << 20);
            config
                .set("receive.message.max.bytes", received.to_string())
                .set("fetch.max.bytes", fetched.to_string())
                .set("message.max.bytes", fetched.to_string())
                .set("fetch.error.backoff.ms", "0");
        }
        config.create_with_context(Self::default())
    }

    fn take(&self) -> Option<UnreadableBatch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ClientContext for ProbeContext {
    fn error(&self, _: KafkaError, reason: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = UnreadableBatch::of(reason);
    }
}

impl ConsumerContext for ProbeContext {}

/// Reads a partition from an offset. Returns None if no response arrives before the timeout. librdkafka drops responses
/// to an earlier assignment, so one client can probe many offsets.
fn probe_offset(
    probe: &BaseConsumer<ProbeContext>,
    partition: &TopicPartition,
    offset: u64,
    timeout: Duration,
    is_closing: &dyn Fn() -> bool,
) -> Option<ProbeResult> {
    probe.assign(&offsets::list([(partition, offsets::offset(offset))]).ok()?).ok()?;
    let deadline = Instant::now() + timeout;
    let result = loop {
        if Instant::now() >= deadline || is_closing() {
            break None;
        }
        match probe.poll(POLL_INTERVAL) {
            Some(Ok(message)) if message.offset().cast_unsigned() >= offset => {
                break Some(ProbeResult::Readable);
            }
            Some(Err(KafkaError::PartitionEOF(_))) => break Some(ProbeResult::Readable),
            Some(Err(error)) => {
                if let Some(batch) = probe.context().take() {
                    break Some(ProbeResult::Unreadable(batch));
                }
                tracing::debug!(%error, "unreadable-batch probe error");
            }
            Some(Ok(_)) | None => {}
        }
    };
    if let Err(error) = probe.unassign() {
        tracing::debug!(%error, "cannot unassign the probe");
    }
    result
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Returns the result of a probe from an offset of a log. The log is a list of adjacent batches, each with its first offset and
    /// true if the batch can be read.
    fn probe_result(log: &[(u64, bool)], offset: u64) -> ProbeResult {
        let at = log.partition_point(|(first, _)| *first <= offset) - 1;
        let (first, readable) = log[at];
        if readable {
            ProbeResult::Readable
        } else {
            ProbeResult::Unreadable(UnreadableBatch { first, bytes: 7 })
        }
    }

    #[test]
    fn offset_and_size_are_parsed_from_the_error() {
        let reason =
            "Decompression (codec 0x4) of message at 12 of 345 bytes failed: Local: Invalid compressed data";
        assert_eq!(UnreadableBatch::of(reason), Some(UnreadableBatch { first: 12, bytes: 345 }));
        for other in
            ["", "Message at offset 5 (7 bytes) failed CRC32 check", "Decompression (codec 0x4) of x"]
        {
            assert_eq!(UnreadableBatch::of(other), None);
        }
    }

    #[test]
    fn the_end_of_a_batch_is_found_in_few_probes() {
        for (first, next, end) in
            [(0, 1, 2), (0, 1, 1), (7, 2_607, 2_608), (7, 2_607, 1 << 40), (5, 9, 9), (0, 1 << 30, 1 << 31)]
        {
            let (probes, log) = (Cell::new(0), [(first, false), (next, true)]);
            let probe_offset = |offset| {
                probes.set(probes.get() + 1);
                assert!(offset < end);
                Some(probe_result(&log, offset))
            };
            assert_eq!(
                ranges(first, end, probe_offset, |offset| Some(probe_result(&log, offset))),
                [Range { first, next }]
            );
            assert!(probes.get() <= 64, "{probes:?}");
        }
    }

    #[test]
    fn readable_batches_are_not_skipped() {
        let log = [(0, false), (10, true), (13, false), (100, false), (400, true), (450, false)];
        let probe_offset = |offset| Some(probe_result(&log, offset));
        let range = |first, next| Range { first, next };
        assert_eq!(
            ranges(4, 1_000, probe_offset, probe_offset),
            [range(4, 10)],
            "from the middle of a batch"
        );
        assert_eq!(ranges(13, 1_000, probe_offset, probe_offset), [range(13, 100), range(100, 400)]);
        assert_eq!(ranges(450, 451, probe_offset, probe_offset), [range(450, 451)]);
        assert_eq!(ranges(11, 1_000, probe_offset, probe_offset), []);
    }

    #[test]
    fn a_batch_rejected_only_by_the_probe_limit_is_not_skipped() {
        let log = [(0, false), (10, false), (20, true)];
        let confirm =
            |offset| Some(if offset < 10 { probe_result(&log, offset) } else { ProbeResult::Readable });
        assert_eq!(
            ranges(0, 30, |offset| Some(probe_result(&log, offset)), confirm),
            [Range { first: 0, next: 10 }]
        );
    }

    #[test]
    fn no_batch_is_skipped_without_a_response() {
        let log = [(0, false), (6, true)];
        let probe_offset = |offset| (offset != 4).then(|| probe_result(&log, offset));
        assert_eq!(ranges(0, 9, probe_offset, probe_offset), []);
        assert_eq!(ranges(0, 9, |offset| Some(probe_result(&log, offset)), |_| None), []);
    }
}
