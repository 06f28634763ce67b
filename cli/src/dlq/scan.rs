//! Reads topics from given positions to the ends that they had at the start.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use qi_core::bus::{
    MessageBus, Offsets, ReaderRequest, ReceivedMessage, SeekTo, Subscription, TopicName, TopicPartition,
};
use qi_core::{Backoff, Error, ErrorKind, Result};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The largest number of messages of one receive.
const BATCH: usize = 500;
/// The longest wait of one receive.
const WAIT: Duration = Duration::from_millis(200);
/// The longest wait for a leader, and for the next message of a partition before its end.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// The interval between two requests for the leaders.
const RECHECK: Duration = Duration::from_secs(1);
/// The longest time for which a failing call is repeated.
const MAX_RETRY: Duration = Duration::from_mins(1);

/// A partition that was not read up to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadPartition {
    /// The partition.
    pub partition: TopicPartition,
    /// The next offset and the end offset. None if the partition has no responding leader.
    pub position: Option<(u64, u64)>,
}

impl fmt::Display for UnreadPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (partition, seconds) = (&self.partition, MAX_WAIT.as_secs());
        match self.position {
            None => write!(f, "{partition} was not read: no leader for {seconds} s"),
            Some((next, end)) => {
                write!(f, "{partition} was read up to offset {next} of {end}: no message for {seconds} s")
            }
        }
    }
}

/// The partitions of some topics.
#[derive(Debug, Default)]
pub(super) struct Partitions {
    /// Every topic of the bus.
    pub(super) topics: BTreeSet<TopicName>,
    /// The first offset and the end offset of each partition.
    pub(super) offsets: BTreeMap<TopicPartition, (u64, u64)>,
    pub(super) unread: Vec<UnreadPartition>,
}

impl Partitions {
    /// Finds the partitions of the topics that `wanted` selects. Waits up to 30 s for leaders. The end of a partition
    /// comes from the first response in which the partition has a leader.
    pub(super) async fn find(
        bus: &dyn MessageBus,
        stop: &CancellationToken,
        wanted: impl Fn(&TopicName) -> bool,
    ) -> Result<Self> {
        let (mut found, since) = (Self::default(), Instant::now());
        loop {
            let Some(topics) = with_retries(stop, async || bus.topics().await).await? else {
                return Ok(found);
            };
            found.unread.clear();
            for topic in topics {
                for info in topic.partitions.iter().filter(|_| wanted(&topic.name)) {
                    let partition = TopicPartition::new(topic.name.clone(), info.id);
                    if info.leader.is_some() {
                        found.offsets.entry(partition).or_insert((info.low, info.high));
                    } else if !found.offsets.contains_key(&partition) {
                        found.unread.push(UnreadPartition { partition, position: None });
                    }
                }
                found.topics.insert(topic.name);
            }
            if found.unread.is_empty() || since.elapsed() >= MAX_WAIT {
                return Ok(found);
            }
            stop.run_until_cancelled(tokio::time::sleep(RECHECK)).await;
        }
    }

    /// Finds the partitions of one topic.
    ///
    /// # Errors
    /// `NotFound` for an unknown topic.
    pub(super) async fn of(
        bus: &dyn MessageBus,
        stop: &CancellationToken,
        topic: &TopicName,
    ) -> Result<Self> {
        let found = Self::find(bus, stop, |name| name == topic).await?;
        if found.topics.contains(topic) || stop.is_cancelled() {
            return Ok(found);
        }
        Err(Error::new(ErrorKind::NotFound, "dlq.topic", "dlq")
            .with_message("no topic has this name")
            .with_context("topic", topic))
    }

    /// Reads every partition from `from` to its end.
    pub(super) async fn read<'a>(
        &self,
        bus: &dyn MessageBus,
        stop: &'a CancellationToken,
        from: SeekTo,
    ) -> Result<Scan<'a>> {
        let parts = self.offsets.iter().map(|(partition, (low, end))| (partition.clone(), from, *low, *end));
        Scan::open(bus, stop, parts).await
    }
}

/// A reader of partitions up to fixed ends.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    /// None if there is nothing to read.
    reader: Option<Box<dyn Subscription>>,
    stop: &'a CancellationToken,
    /// The ends of the partitions that are not read completely.
    remaining: BTreeMap<TopicPartition, u64>,
    /// The next offset of each partition, after the messages that `next` returned.
    pub(super) offsets: Offsets,
    last_progress: Instant,
    pub(super) unread: Vec<UnreadPartition>,
    pub(super) interrupted: bool,
}

impl<'a> Scan<'a> {
    /// Opens a reader. Each part is a partition, its start, its first offset and its end. Empty parts are skipped.
    pub(super) async fn open(
        bus: &dyn MessageBus,
        stop: &'a CancellationToken,
        parts: impl IntoIterator<Item = (TopicPartition, SeekTo, u64, u64)>,
    ) -> Result<Self> {
        let (mut from, mut remaining, mut offsets) = (Vec::new(), BTreeMap::new(), Offsets::new());
        for (partition, start, low, end) in parts {
            if low < end {
                from.push((partition.clone(), start));
                remaining.insert(partition, end);
            } else {
                offsets.set(partition, end);
            }
        }
        let reader =
            if from.is_empty() { None } else { Some(bus.open_reader(ReaderRequest::new(from)?).await?) };
        let (last_progress, unread) = (Instant::now(), Vec::new());
        Ok(Self { reader, stop, remaining, offsets, last_progress, unread, interrupted: false })
    }

    /// Returns the next messages, or None after the last one or after a stop.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<ReceivedMessage>>> {
        let Self { reader: Some(reader), stop, .. } = self else { return Ok(None) };
        while !self.remaining.is_empty() {
            if stop.is_cancelled() {
                self.interrupted = true;
                break;
            }
            let Some(batch) = with_retries(stop, async || reader.recv(BATCH, WAIT).await).await? else {
                continue;
            };
            let Some(assignment) = stop.run_until_cancelled(reader.assignment()).await else { continue };
            // The positions also cover offsets without a message, such as transaction markers.
            let positions: Vec<_> = match assignment {
                Ok(assignment) => {
                    assignment.partitions.into_iter().map(|at| (at.partition, at.position)).collect()
                }
                // A leader does not respond. The other partitions are read.
                Err(error) if error.retry().is_retryable() => {
                    batch.offsets().iter().map(|(partition, next)| (partition.clone(), next)).collect()
                }
                Err(error) => return Err(error),
            };
            let mut messages = batch.into_messages();
            messages.retain(|message| {
                let partition = TopicPartition::new(message.topic.clone(), message.partition);
                self.remaining.get(&partition).is_some_and(|end| message.offset < *end)
            });
            for (partition, position) in positions {
                let Some(end) = self.remaining.get(&partition).copied() else { continue };
                if position >= end {
                    self.remaining.remove(&partition);
                }
                if self.offsets.get(&partition).is_some_and(|before| position > before) {
                    self.last_progress = Instant::now();
                }
                self.offsets.set(partition, position.min(end));
            }
            if !messages.is_empty() {
                self.last_progress = Instant::now();
                return Ok(Some(messages));
            }
            if self.last_progress.elapsed() >= MAX_WAIT {
                for (partition, end) in std::mem::take(&mut self.remaining) {
                    let position = Some((self.offsets.get(&partition).unwrap_or(0), end));
                    self.unread.push(UnreadPartition { partition, position });
                }
            }
        }
        Ok(None)
    }

    pub(super) async fn close(self) -> Result<()> {
        match self.reader {
            Some(mut reader) => reader.close().await,
            None => Ok(()),
        }
    }
}

/// Repeats a call while its error is retryable, for a minute. Returns None after a stop.
pub(super) async fn with_retries<T>(
    stop: &CancellationToken,
    mut call: impl AsyncFnMut() -> Result<T>,
) -> Result<Option<T>> {
    let (since, backoff) = (Instant::now(), Backoff::new(Duration::from_millis(200), Duration::from_secs(5)));
    for failures in 1.. {
        let error = match stop.run_until_cancelled(call()).await {
            None => break,
            Some(Ok(value)) => return Ok(Some(value)),
            Some(Err(error)) => error,
        };
        if !error.retry().is_retryable() || since.elapsed() >= MAX_RETRY {
            return Err(error);
        }
        stop.run_until_cancelled(tokio::time::sleep(backoff.delay(failures, 0.0))).await;
    }
    Ok(None)
}
