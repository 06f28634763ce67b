//! Offsets without a message at the end of a partition: transaction markers, aborted transactions, and gaps from
//! compaction. librdkafka returns no message there, so without this module the position would stay before them, and the
//! lag would never be 0.
//!
//! The event for the end of a partition is the trigger. It contains only the number of the partition, neither its topic
//! nor an offset, so the event does not change a position. A separate client, the probe, reads from the position. Its
//! statistics contain the topic and the partition, and prove that a partition holds no message before an offset:
//!
//! - The probe begins at the position and never seeks, so `next_offset` is the offset up to which the log was read without
//!   a gap.
//! - librdkafka puts messages on the queue before it raises `next_offset`. It reads `next_offset` before it counts the
//!   queue. Therefore, if the queue is empty (`fetchq_cnt`), the probe's poll has returned every message before
//!   `next_offset`.
//! - The thread that polls is the thread that receives the statistics, and it has received no message.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qi_core::bus::TopicPartition;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::message::Message as _;
use rdkafka::statistics::Statistics;
use rdkafka::{ClientConfig, ClientContext};

use super::assignment::Assignment;
use super::check::Check;
use crate::redpanda::error;
use crate::redpanda::offsets::{self, OffsetSpec};

/// The minimum delay between the first end event and the probe.
const SETTLE_TIME: Duration = Duration::from_millis(200);
/// The pause between two probes of a consumer.
const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// The maximum duration of a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval of a probe's statistics.
const STATISTICS_INTERVAL: Duration = Duration::from_millis(50);

/// The fetch offset of a partition when librdkafka reached its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EndPosition {
    generation: u64,
    fetch_offset: u64,
}

/// The partitions to probe, with their end positions.
pub(super) type EndPositions = BTreeMap<TopicPartition, EndPosition>;

/// The partitions of a consumer that reached their ends.
#[derive(Debug, Default)]
pub(super) struct EndProbe {
    positions: EndPositions,
    check: Check,
    /// The time at which the last probe finished.
    last_finished: Option<Instant>,
}

impl EndProbe {
    /// Records that librdkafka reached the end of a partition with this number, in any topic.
    pub(super) fn reached(&mut self, assignment: &Assignment, number: i32) {
        for (partition, state) in &assignment.partitions {
            if partition.partition.cast_signed() == number {
                let position = EndPosition { generation: state.generation, fetch_offset: state.fetch_offset };
                self.positions.insert(partition.clone(), position);
            }
        }
        let pause = self
            .last_finished
            .map_or(Duration::ZERO, |last_finished| PROBE_PAUSE.saturating_sub(last_finished.elapsed()));
        self.check.request(pause.max(SETTLE_TIME));
    }

    /// Returns the partitions to probe now, if they are still at their ends. Returns None if no probe is due.
    pub(super) fn start(&mut self, assignment: &Assignment) -> Option<EndPositions> {
        if !self.check.start() {
            return None;
        }
        let mut positions = std::mem::take(&mut self.positions);
        positions.retain(|partition, position| {
            assignment.partitions.get(partition).is_some_and(|state| {
                (state.generation, state.fetch_offset) == (position.generation, position.fetch_offset)
                    && !state.needs_reassign
                    && state.failed.is_none()
            })
        });
        if positions.is_empty() {
            self.check.finish();
            return None;
        }
        Some(positions)
    }

    /// Ends a probe. Partitions whose ends are still unknown are probed again.
    pub(super) fn finish(&mut self, unknown: EndPositions) {
        for (partition, position) in unknown {
            self.positions.entry(partition).or_insert(position);
        }
        self.check.finish();
        self.last_finished = Some(Instant::now());
        if !self.positions.is_empty() {
            self.check.request(PROBE_PAUSE);
        }
    }
}

/// Reads the ends of partitions. Calls `skip` with a partition, its generation, and a range of offsets without a
/// message. Returns the partitions whose ends were not reached, each with the offset that the probe reached.
pub(super) fn probe<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    config: &ClientConfig,
    mut positions: EndPositions,
    limit: Duration,
    is_closing: impl Fn() -> bool,
    skip: impl Fn(&TopicPartition, u64, u64, u64),
) -> EndPositions {
    // A partition without a leader can fail the entire query. The probe then uses the last stable offsets of its own
    // statistics.
    let ends = offsets::find_each(client, positions.keys(), OffsetSpec::Latest, limit).unwrap_or_default();
    positions.retain(|partition, position| match ends.get(partition) {
        Some(Ok(end)) => *end > position.fetch_offset,
        Some(Err(error)) => !(error::is_missing(error) || error::is_unauthorized(error)),
        None => true,
    });
    if positions.is_empty() {
        return positions;
    }
    let reader = match open_probe(config, &positions) {
        Ok(reader) => reader,
        Err(error) => {
            tracing::warn!(%error, "cannot probe the ends of partitions");
            return positions;
        }
    };
    let deadline = Instant::now() + PROBE_TIMEOUT;
    while !positions.is_empty() && Instant::now() < deadline && !is_closing() {
        match reader.poll(STATISTICS_INTERVAL) {
            // The partition has a message at this position, which the consumer will receive.
            Some(Ok(message)) => positions.retain(|partition, _| {
                partition.topic.as_str() != message.topic()
                    || partition.partition.cast_signed() != message.partition()
            }),
            Some(Err(error)) => tracing::debug!(%error, "end probe error"),
            None => {}
        }
        let progress = std::mem::take(&mut *reader.context().lock());
        positions.retain(|partition, position| {
            let key = (partition.topic.to_string(), partition.partition.cast_signed());
            let Some(FetchProgress { to, end: seen_end }) = progress.get(&key).copied() else { return true };
            let end = ends.get(partition).and_then(|end| end.as_ref().ok()).copied();
            // A long range without messages needs several probes. Each probe begins where the previous probe ended.
            if to > position.fetch_offset {
                tracing::debug!(%partition, from = position.fetch_offset, to, "skipped offsets without a message");
                skip(partition, position.generation, position.fetch_offset, to);
                position.fetch_offset = to;
            }
            to < end.unwrap_or(seen_end)
        });
    }
    positions
}

/// The progress of a probe in a partition without queued messages.
#[derive(Debug, Clone, Copy)]
struct FetchProgress {
    to: u64,
    /// The last stable offset of the partition in the last response.
    end: u64,
}

/// The context of a probe's client.
#[derive(Debug, Default)]
struct ProbeContext(Mutex<BTreeMap<(String, i32), FetchProgress>>);

impl ProbeContext {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, i32), FetchProgress>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a client that reads these partitions.
fn open_probe(config: &ClientConfig, positions: &EndPositions) -> KafkaResult<BaseConsumer<ProbeContext>> {
    let mut config = config.clone();
    config
        .remove("group.instance.id")
        .set("enable.partition.eof", "false")
        .set("statistics.interval.ms", STATISTICS_INTERVAL.as_millis().to_string())
        .set("queued.max.messages.kbytes", "1024")
        .set("max.partition.fetch.bytes", "1024");
    let reader: BaseConsumer<ProbeContext> = config.create_with_context(ProbeContext::default())?;
    let starts =
        positions.iter().map(|(partition, position)| (partition, offsets::offset(position.fetch_offset)));
    reader.assign(&offsets::list(starts)?)?;
    Ok(reader)
}

impl ClientContext for ProbeContext {
    fn stats(&self, statistics: Statistics) {
        let mut progress = self.lock();
        for topic in statistics.topics.into_values() {
            for partition in topic.partitions.into_values() {
                let offsets = (u64::try_from(partition.next_offset), u64::try_from(partition.ls_offset));
                if let (0, (Ok(to), Ok(end))) = (partition.fetchq_cnt, offsets) {
                    progress.insert((topic.topic.clone(), partition.partition), FetchProgress { to, end });
                }
            }
        }
    }
}

impl ConsumerContext for ProbeContext {}

#[cfg(test)]
mod tests {
    use qi_core::bus::TopicName;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

    use super::*;

    fn partition() -> TopicPartition {
        TopicPartition::new(TopicName::new("t").unwrap(), 0)
    }

    #[test]
    fn a_probe_is_followed_by_a_pause() {
        let mut assignment = Assignment::default();
        assignment.gain(partition(), 0, None);
        let mut probe = EndProbe::default();
        probe.finish(EndPositions::new());
        let last_finished = probe.last_finished.unwrap();
        probe.reached(&assignment, 0);
        assert!(probe.check.due.unwrap() >= last_finished + PROBE_PAUSE);
    }

    #[test]
    fn partitions_stay_pending_if_no_probe_can_be_created() {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1").set("group.id", "g");
        let client: BaseConsumer = config.create().unwrap();
        config.set("no.such.property", "1");
        let positions = EndPositions::from([(partition(), EndPosition { generation: 0, fetch_offset: 3 })]);
        let limit = Duration::from_millis(100);
        let skip = |_: &TopicPartition, _, _, _| panic!("nothing was probed");
        assert_eq!(probe(&client, &config, positions.clone(), limit, || false, skip), positions);
    }

    #[test]
    fn a_probe_skips_no_message() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers()).set("auto.offset.reset", "error");
        let producer: BaseProducer = config.create().unwrap();
        for _ in 0..3 {
            producer.send(BaseRecord::<(), str>::to("t").partition(0).payload("x")).unwrap();
        }
        producer.flush(Duration::from_secs(10)).unwrap();
        config.set("group.id", "g");
        let client: BaseConsumer = config.create().unwrap();
        for fetch_offset in 0..3 {
            let positions = EndPositions::from([(partition(), EndPosition { generation: 0, fetch_offset })]);
            let skip = |_: &TopicPartition, _, from, to| panic!("skipped the messages from {from} to {to}");
            let unknown = probe(&client, &config, positions, Duration::from_secs(10), || false, skip);
            assert!(unknown.is_empty(), "a partition with a message needs no further probe");
        }
    }
}
