//! `qi replay`: from a topic by time into a store.

use std::collections::BTreeMap;
use std::time::Duration;

use qi_core::bus::{
    Batch, Json, MessageBus, Payload, Read, Received, SeekTo, TopicName, TopicPartition, decode_message,
    header,
};
use qi_core::{
    Backoff, Error, ErrorKind, MarketSnapshot, Ohlcv, PriceStore, PriceTick, Quote, Result, TimeRange,
    Timestamp,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How many messages are stored at once.
const BATCH: usize = 10_000;
/// How long one receive waits.
const WAIT: Duration = Duration::from_millis(200);
/// For how long the brokers may be away.
const PATIENCE: Duration = Duration::from_mins(1);
/// After so long without a message the rest is taken for offsets that hold none.
const QUIET: Duration = Duration::from_secs(30);
/// How many errors of messages are kept to be shown.
const SHOWN: usize = 10;

/// Which messages.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Of this topic.
    pub topic: TopicName,
    /// From this message time on.
    pub since: Timestamp,
    /// Up to this message time, exclusive; else up to the end that the topic has when it begins.
    pub until: Option<Timestamp>,
}

/// What was replayed.
#[derive(Debug, Clone, Default)]
pub struct Replayed {
    /// Records that the store has now.
    pub stored: u64,
    /// Messages that are no records: they were passed over.
    pub unreadable: u64,
    /// What was wrong with the first of them.
    pub errors: Vec<Error>,
    /// Partitions that gave nothing for 30 s before their end, with the position and that end. The offsets there may
    /// hold no message, such as the marks of transactions.
    pub unreached: Vec<(TopicPartition, u64, u64)>,
    /// Whether it was stopped before the end.
    pub interrupted: bool,
}

/// Stores the records of a topic's messages: ticks, quotes, bars and snapshots, as the header `qi-type` says; those
/// without one are ticks. Nothing is committed and no group is joined, so that a replay disturbs nobody, and since
/// records are written by key it can be repeated.
///
/// # Errors
/// `NotFound` for an unknown topic; `InvalidInput` for an end before the beginning; of the bus, if it has been away for a
/// minute, or the store.
pub async fn run(
    bus: &dyn MessageBus,
    store: &dyn PriceStore,
    plan: &Plan,
    stop: &CancellationToken,
    progress: impl Fn(u64),
) -> Result<Replayed> {
    TimeRange::new(plan.since, plan.until.unwrap_or(Timestamp::MAX))?;
    let mut replayed = Replayed::default();
    let mut ends = ends(bus, &plan.topic).await?;
    if ends.is_empty() {
        return Ok(replayed);
    }
    let from = ends.keys().map(|partition| (partition.clone(), SeekTo::At(plan.since)));
    let mut reader = bus.read(Read::new(from)?).await?;
    let mut heard = Instant::now();
    let outcome = loop {
        if stop.is_cancelled() {
            replayed.interrupted = true;
            break Ok(());
        }
        let batch = match patiently(stop, async || reader.recv(BATCH, WAIT).await).await {
            Ok(Some(batch)) => batch,
            Ok(None) => continue,
            Err(error) => break Err(error),
        };
        if let Err(error) = keep(&batch, store, plan, &ends, &mut replayed).await {
            break Err(error);
        }
        progress(replayed.stored);
        // Positions, because offsets need not be dense.
        let at = match patiently(stop, async || reader.assignment().await).await {
            Ok(Some(assignment)) => assignment.partitions,
            Ok(None) => continue,
            Err(error) => break Err(error),
        };
        for at in &at {
            if ends.get(&at.partition).is_some_and(|end| at.position >= *end) {
                ends.remove(&at.partition);
            }
        }
        if ends.is_empty() {
            break Ok(());
        }
        if !batch.is_empty() {
            heard = Instant::now();
        } else if heard.elapsed() >= QUIET {
            let rest = at.into_iter().filter_map(|at| {
                let end = ends.remove(&at.partition)?;
                Some((at.partition, at.position, end))
            });
            replayed.unreached = rest.collect();
            break Ok(());
        }
    };
    // What went wrong before says more than what goes wrong now.
    let closed = reader.close().await;
    outcome.and(closed)?;
    Ok(replayed)
}

/// Where each partition ends now. Empty ones are left out.
async fn ends(bus: &dyn MessageBus, topic: &TopicName) -> Result<BTreeMap<TopicPartition, u64>> {
    let found = bus.topics().await?.into_iter().find(|info| info.name == *topic).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "replay.topic", "replay")
            .with_message("no topic has this name")
            .with_context("topic", topic)
    })?;
    let partitions = found.partitions.into_iter().filter(|p| p.high > p.low);
    Ok(partitions.map(|p| (TopicPartition::new(topic.clone(), p.id), p.high)).collect())
}

/// What a reader answers, or None if it was stopped. Receives are not tried again by any wrapper, because the loop around
/// them does it: this one, for a while.
async fn patiently<T>(
    stop: &CancellationToken,
    mut ask: impl AsyncFnMut() -> Result<T>,
) -> Result<Option<T>> {
    let (since, backoff) = (Instant::now(), Backoff::new(Duration::from_millis(200), Duration::from_secs(5)));
    for failures in 1.. {
        let error = match stop.run_until_cancelled(ask()).await {
            None => return Ok(None),
            Some(Ok(answer)) => return Ok(Some(answer)),
            Some(Err(error)) => error,
        };
        if !error.retry().is_retryable() || since.elapsed() >= PATIENCE {
            return Err(error);
        }
        stop.run_until_cancelled(tokio::time::sleep(backoff.delay(failures, 0.0))).await;
    }
    Ok(None)
}

/// Stores one batch.
async fn keep(
    batch: &Batch,
    store: &dyn PriceStore,
    plan: &Plan,
    ends: &BTreeMap<TopicPartition, u64>,
    replayed: &mut Replayed,
) -> Result<()> {
    let mut sorted = Sorted::default();
    for message in batch {
        let partition = TopicPartition::new(message.topic.clone(), message.partition);
        let Some(end) = ends.get(&partition) else { continue };
        let late = plan.until.is_some_and(|until| message.timestamp.is_some_and(|time| time >= until));
        // A late one ends nothing: times may go back and forth within a partition, and an earlier one may follow.
        if late || message.offset >= *end {
            continue;
        }
        if let Err(error) = sorted.push(message) {
            replayed.unreadable += 1;
            if replayed.errors.len() < SHOWN {
                replayed.errors.push(error);
            }
        }
    }
    replayed.stored += sorted.insert(store).await?;
    Ok(())
}

/// The records of a batch by their dataset.
#[derive(Default)]
struct Sorted {
    ticks: Vec<PriceTick>,
    quotes: Vec<Quote>,
    bars: Vec<Ohlcv>,
    snapshots: Vec<MarketSnapshot>,
}

impl Sorted {
    fn push(&mut self, message: &Received) -> Result<()> {
        let kind = message.headers.get(header::TYPE).map_or(PriceTick::TYPE.as_bytes(), |value| value);
        if kind == Quote::TYPE.as_bytes() {
            self.quotes.push(decode_message::<Json, _>(message)?);
        } else if kind == Ohlcv::TYPE.as_bytes() {
            self.bars.push(decode_message::<Json, _>(message)?);
        } else if kind == MarketSnapshot::TYPE.as_bytes() {
            self.snapshots.push(decode_message::<Json, _>(message)?);
        } else {
            self.ticks.push(decode_message::<Json, _>(message)?);
        }
        Ok(())
    }

    async fn insert(self, store: &dyn PriceStore) -> Result<u64> {
        let Self { ticks, quotes, bars, snapshots } = self;
        if !ticks.is_empty() {
            store.insert_ticks(&ticks).await?;
        }
        if !quotes.is_empty() {
            store.insert_quotes(&quotes).await?;
        }
        if !bars.is_empty() {
            store.insert_bars(&bars).await?;
        }
        if !snapshots.is_empty() {
            store.insert_snapshots(&snapshots).await?;
        }
        Ok((ticks.len() + quotes.len() + bars.len() + snapshots.len()) as u64)
    }
}
