//! `qi replay`: stores the records of a topic, by message time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use qi_core::Datasets;
use qi_core::bus::{
    Batch, MessageBus, Offsets, ReaderRequest, ReceivedMessage, SeekTo, Subscription, SubscriptionEvent,
    TopicName, TopicPartition, decode_record, header,
};
use qi_core::record::{Dataset, RecordVec};
use qi_core::{Backoff, Error, ErrorKind, PriceStore, PriceTick, Result, TimeRange, Timestamp};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The maximum number of messages of one insert.
const BATCH: usize = 10_000;
/// The wait of one receive.
const WAIT: Duration = Duration::from_millis(200);
/// The interval between two requests for the ends of partitions.
const RECHECK: Duration = Duration::from_secs(1);
/// The maximum number of message errors that are kept for display.
const MAX_SHOWN: usize = 10;

/// The messages to replay.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The topic.
    pub topic: TopicName,
    /// The datasets whose records are stored.
    pub datasets: Datasets,
    /// The start of the message times, inclusive.
    pub since: Timestamp,
    /// The end of the message times, exclusive. None is the end that the topic has when the replay begins.
    pub until: Option<Timestamp>,
    /// The longest wait for unavailable brokers, and for a partition without a leader or without a message before its
    /// end.
    pub wait: Duration,
}

/// A partition that was not read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadPartition {
    /// The partition.
    pub partition: TopicPartition,
    /// The next offset to read. None if nothing was read, because the partition had no responding leader.
    pub position: Option<u64>,
    /// The end of the partition when the replay began. None if it is unknown, because the partition had no responding
    /// leader.
    pub end: Option<u64>,
}

impl fmt::Display for UnreadPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offset = |offset: Option<u64>| offset.map_or("unknown".to_owned(), |offset| offset.to_string());
        let (position, end) = (offset(self.position), offset(self.end));
        write!(f, "{}: not read to the end (position {position}, end {end})", self.partition)
    }
}

/// The result of a replay.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ReplayReport {
    /// The number of stored records.
    pub stored: u64,
    /// The number of messages without a valid record, which were skipped.
    pub unreadable: u64,
    /// The errors of the first of these messages.
    pub errors: Vec<Error>,
    /// Partitions that were not read to their ends within [`Plan::wait`].
    pub unreached: Vec<UnreadPartition>,
    /// True if the replay was stopped before the end.
    pub interrupted: bool,
}

impl ReplayReport {
    /// Returns true if every message was read and stored.
    pub fn is_complete(&self) -> bool {
        self.unreadable == 0 && self.unreached.is_empty() && !self.interrupted
    }
}

/// Stores the records of a topic's messages. The header `qi-type` names the dataset; a message without it is a tick. A
/// replay joins no group and commits nothing, so it does not affect consumers. Records are written by key, so a replay
/// can be repeated.
///
/// The replay waits for a partition without a responding leader. [`ReplayReport::unreached`] has the partitions that were
/// not read to their end.
///
/// # Errors
/// `NotFound` for an unknown topic; `InvalidInput` for an end before the start; errors of the bus that last for
/// [`Plan::wait`]; errors of the store.
pub async fn run(
    bus: &dyn MessageBus,
    store: &dyn PriceStore,
    plan: &Plan,
    stop: &CancellationToken,
    progress: impl Fn(u64),
) -> Result<ReplayReport> {
    TimeRange::new(plan.since, plan.until.unwrap_or(Timestamp::MAX))?;
    let began = Instant::now();
    let mut replay = Replay { bus, store, plan, stop, progress, replayed: ReplayReport::default() };
    let mut done = BTreeSet::new();
    // The time of the first failure to open the partitions, and their number at the last attempt.
    let mut failed: Option<(Instant, usize)> = None;
    loop {
        let Some(ends) = replay.with_retries(async || ends(bus, &plan.topic).await).await? else { break };
        let (mut known, mut unknown) = (Ends::new(), Vec::new());
        for (partition, end) in ends {
            match end {
                _ if done.contains(&partition) => {}
                // An empty partition has nothing to read.
                Some(0) => drop(done.insert(partition)),
                Some(end) => drop(known.insert(partition, end)),
                None => unknown.push(UnreadPartition { partition, position: None, end: None }),
            }
        }
        if !known.is_empty() {
            let count = known.len();
            done.extend(known.keys().cloned());
            match replay.open(&known).await {
                Ok(Some((reader, positions))) => {
                    failed = None;
                    replay.drain(reader, positions, known).await?;
                }
                Ok(None) => break,
                // A leader may have died after it returned the end. The next metadata will not contain this leader.
                Err(error) if error.retry().is_retryable() => {
                    if failed.is_some_and(|(since, before)| count >= before && since.elapsed() >= plan.wait) {
                        return Err(error);
                    }
                    failed = Some((failed.map_or_else(Instant::now, |(since, _)| since), count));
                    done.retain(|partition| !known.contains_key(partition));
                }
                Err(error) => return Err(error),
            }
        }
        if (unknown.is_empty() && failed.is_none()) || replay.replayed.interrupted {
            break;
        }
        if began.elapsed() >= plan.wait && failed.is_none() {
            replay.replayed.unreached.extend(unknown);
            break;
        }
        stop.run_until_cancelled(tokio::time::sleep(RECHECK.min(plan.wait))).await;
    }
    Ok(replay.replayed)
}

/// The ends of partitions.
type Ends = BTreeMap<TopicPartition, u64>;

/// Returns the present end of each partition of a topic: 0 if it is empty, None if it has no responding leader.
async fn ends(bus: &dyn MessageBus, topic: &TopicName) -> Result<BTreeMap<TopicPartition, Option<u64>>> {
    let found = bus.topics().await?.into_iter().find(|info| info.name == *topic).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "replay.topic", "replay")
            .with_message("no topic has this name")
            .with_context("topic", topic)
    })?;
    let partitions = found.partitions.into_iter().map(|found| {
        let end = if found.high > found.low { found.high } else { 0 };
        (TopicPartition::new(topic.clone(), found.id), found.leader.map(|_| end))
    });
    Ok(partitions.collect())
}

/// A replay in progress.
struct Replay<'a, P> {
    bus: &'a dyn MessageBus,
    store: &'a dyn PriceStore,
    plan: &'a Plan,
    stop: &'a CancellationToken,
    progress: P,
    replayed: ReplayReport,
}

impl<P: Fn(u64)> Replay<'_, P> {
    /// Opens a reader of these partitions. Returns None if the replay was stopped.
    async fn open(&mut self, ends: &Ends) -> Result<Option<(Box<dyn Subscription>, Offsets)>> {
        let from = ends.keys().map(|partition| (partition.clone(), SeekTo::At(self.plan.since)));
        let request = ReaderRequest::new(from)?;
        let opening = async {
            let mut reader = self.bus.open_reader(request).await?;
            match reader.assignment().await {
                Ok(assignment) => Ok((reader, assignment)),
                Err(error) => {
                    // The first error is more useful than an error of `close`.
                    let _ = reader.close().await;
                    Err(error)
                }
            }
        };
        let Some(opened) = self.stop.run_until_cancelled(opening).await else {
            self.replayed.interrupted = true;
            return Ok(None);
        };
        let (reader, assignment) = opened?;
        let at = assignment.partitions.into_iter().map(|at| (at.partition, at.position));
        Ok(Some((reader, at.collect())))
    }

    /// Reads partitions up to these ends.
    async fn drain(
        &mut self,
        mut reader: Box<dyn Subscription>,
        positions: Offsets,
        ends: Ends,
    ) -> Result<()> {
        let outcome = self.receive(&mut *reader, positions, ends).await;
        // `and` returns the first error, which is more useful than an error of `close`.
        let closed = reader.close().await;
        outcome.and(closed)
    }

    async fn receive(
        &mut self,
        reader: &mut dyn Subscription,
        mut positions: Offsets,
        mut ends: Ends,
    ) -> Result<()> {
        let mut last_progress = Instant::now();
        loop {
            ends.retain(|partition, end| positions.get(partition).is_none_or(|position| position < *end));
            if ends.is_empty() {
                return Ok(());
            }
            if last_progress.elapsed() >= self.plan.wait {
                self.replayed.unreached.extend(ends.into_iter().map(|(partition, end)| {
                    let position = positions.get(&partition);
                    UnreadPartition { partition, position, end: Some(end) }
                }));
                return Ok(());
            }
            let Some(batch) = self.with_retries(async || reader.recv(BATCH, WAIT).await).await? else {
                return Ok(());
            };
            store_batch(&batch, self.store, self.plan, &ends, &mut self.replayed).await?;
            (self.progress)(self.replayed.stored);
            for (partition, next) in positions_after(&batch) {
                if ends.contains_key(&partition) && positions.get(&partition) != Some(next) {
                    last_progress = Instant::now();
                }
                positions.set(partition, next);
            }
        }
    }

    /// Repeats a call while its error is retryable, up to [`Plan::wait`]. Returns None if the replay was stopped. The
    /// loop is necessary because no layer retries `recv`.
    async fn with_retries<T>(&mut self, mut call: impl AsyncFnMut() -> Result<T>) -> Result<Option<T>> {
        let (since, stop) = (Instant::now(), self.stop);
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        for failures in 1.. {
            let error = match stop.run_until_cancelled(call()).await {
                None => break,
                Some(Ok(value)) => return Ok(Some(value)),
                Some(Err(error)) => error,
            };
            if !error.retry().is_retryable() || since.elapsed() >= self.plan.wait {
                return Err(error);
            }
            stop.run_until_cancelled(tokio::time::sleep(backoff.delay(failures, 0.0))).await;
        }
        self.replayed.interrupted = true;
        Ok(None)
    }
}

/// Returns the position of each partition after a batch. Positions also cover offsets without a message, such as
/// transaction markers.
fn positions_after(batch: &Batch) -> BTreeMap<TopicPartition, u64> {
    let resets = batch.events().iter().filter_map(|event| match event {
        SubscriptionEvent::Reset { partition, to, .. } => Some((partition.clone(), *to)),
        _ => None,
    });
    let mut positions_after: BTreeMap<_, _> = resets.collect();
    // Messages from before a reset have lower positions than its target, later messages have higher ones.
    for (partition, next) in batch.offsets().iter() {
        let position = positions_after.entry(partition.clone()).or_insert(next);
        *position = next.max(*position);
    }
    positions_after
}

/// Stores one batch.
async fn store_batch(
    batch: &Batch,
    store: &dyn PriceStore,
    plan: &Plan,
    ends: &Ends,
    replayed: &mut ReplayReport,
) -> Result<()> {
    let mut sorted: BTreeMap<&str, RecordVec> = BTreeMap::new();
    for message in batch {
        let partition = TopicPartition::new(message.topic.clone(), message.partition);
        let Some(end) = ends.get(&partition) else { continue };
        let late = plan.until.is_some_and(|until| message.timestamp.is_some_and(|time| time >= until));
        // A late message does not end the replay: message times need not rise, and an earlier time may follow.
        if late || message.offset >= *end {
            continue;
        }
        let dataset = dataset_of(message, &plan.datasets);
        let records = sorted.entry(dataset.name()).or_insert_with(|| dataset.new_vec());
        if let Err(error) = decode_record(message, records) {
            replayed.unreadable += 1;
            if replayed.errors.len() < MAX_SHOWN {
                replayed.errors.push(error);
            }
        }
    }
    for records in sorted.into_values().filter(|records| !records.is_empty()) {
        store.insert(records.as_records()).await?;
        replayed.stored += records.len() as u64;
    }
    Ok(())
}

/// Returns the dataset of the header `qi-type`, or ticks without the header. For an unknown type returns ticks too, and
/// then decoding rejects the message.
fn dataset_of(message: &ReceivedMessage, datasets: &Datasets) -> Dataset {
    let kind = message.headers.get(header::TYPE);
    let named = datasets.iter().find(|dataset| kind.is_some_and(|kind| kind == dataset.message().as_bytes()));
    named.unwrap_or(PriceTick::DATASET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_skips_the_messages_before_it() {
        let partition = TopicPartition::new(TopicName::new("t").unwrap(), 0);
        for (next, expected) in [(5, 9), (12, 12)] {
            let positions = [(partition.clone(), next)].into_iter().collect();
            let reset = SubscriptionEvent::Reset { partition: partition.clone(), from: 5, to: 9 };
            let batch = Batch::new(Vec::new(), positions, vec![reset]);
            assert_eq!(positions_after(&batch), [(partition.clone(), expected)].into());
        }
    }
}
