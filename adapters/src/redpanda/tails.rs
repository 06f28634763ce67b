//! Offsets without a message at the end of a partition: transaction markers, aborted transactions, and what compaction
//! removed. librdkafka gives no message there, so the position of `recv` would stay before them, and the lag would
//! never be 0.
//!
//! The event for the end of a partition says when to look. It names the number of the partition only, neither topic nor
//! offset, so it moves nothing. A client of its own, the probe, reads from the position and tells by its statistics how
//! far it came. Its statistics name topic and partition. They prove that a partition holds no message before an offset:
//!
//! - The probe begins at the position and is never sent elsewhere, so `next_offset` is the offset up to which the brokers
//!   were read without a gap.
//! - librdkafka puts messages on the queue before it raises `next_offset`. It reads `next_offset` before it counts the
//!   queue. So if the queue is empty (`fetchq_cnt`), the probe's poll has returned every message before `next_offset`.
//! - The thread that polls is the one that receives the statistics, and it has taken no message.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qi_core::bus::TopicPartition;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::message::Message as _;
use rdkafka::statistics::Statistics;
use rdkafka::{ClientConfig, ClientContext};

use super::error;
use super::feed::Feed;
use super::inbox::Client;
use super::offsets::{self, Place};

/// A partition has been at its end for this long before the brokers are asked.
const SETTLE: Duration = Duration::from_millis(200);
/// The pause between two looks of a reader.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest time that a probe reads.
const LIMIT: Duration = Duration::from_secs(10);
/// The interval of a probe's statistics.
const STATISTICS: Duration = Duration::from_millis(50);

/// Where a partition was when librdkafka reached its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tail {
    key: u64,
    fetched: u64,
}

type Waiting = BTreeMap<TopicPartition, Tail>;

/// The partitions of a reader whose ends are to be looked at.
#[derive(Debug, Default)]
pub(super) struct Tails(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: Waiting,
    due: Option<Instant>,
    looking: bool,
    /// When the last look ended.
    ended: Option<Instant>,
}

impl Tails {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that librdkafka reached the end of a partition with this number, of whichever topic.
    pub(super) fn reached(&self, feed: &Feed, number: i32) {
        let mut state = self.lock();
        for (partition, owned) in feed.state().shelf.owned() {
            if partition.partition.cast_signed() == number {
                state.waiting.insert(partition.clone(), Tail { key: owned.key, fetched: owned.fetched });
            }
        }
        let settled = Instant::now() + SETTLE;
        let due = state.ended.map_or(settled, |ended| settled.max(ended + PAUSE));
        state.due.get_or_insert(due);
    }

    /// Begins to look, if it is time to. The thread that polls does not wait for the answers.
    pub(super) fn look(self: &Arc<Self>, feed: &Arc<Feed>, client: &Arc<Client>) {
        let mut state = self.lock();
        if state.looking || state.due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        state.due = None;
        let mut waiting = std::mem::take(&mut state.waiting);
        waiting.retain(|partition, tail| is_at(feed, partition, *tail));
        if waiting.is_empty() {
            return;
        }
        state.looking = true;
        drop(state);
        let (tails, feed, client) = (self.clone(), feed.clone(), client.clone());
        let thread = std::thread::Builder::new().name("qi-redpanda-tail".to_owned());
        let kept = waiting.clone();
        let looking = move || {
            let unknown = answer(&feed, client, waiting);
            tails.end(unknown);
        };
        if let Err(error) = thread.spawn(looking) {
            tracing::warn!(%error, "no thread for the ends of partitions");
            self.end(kept);
        }
    }

    /// Ends a look. Partitions whose ends are still unknown are looked at again.
    fn end(&self, unknown: Waiting) {
        let mut state = self.lock();
        for (partition, tail) in unknown {
            state.waiting.entry(partition).or_insert(tail);
        }
        let now = Instant::now();
        (state.looking, state.ended) = (false, Some(now));
        state.due = (!state.waiting.is_empty()).then(|| now + PAUSE);
    }
}

/// Whether a partition is still there.
fn is_at(feed: &Feed, partition: &TopicPartition, tail: Tail) -> bool {
    let state = feed.state();
    let owned = state.shelf.owned().get(partition);
    owned.is_some_and(|owned| {
        (owned.key, owned.fetched) == (tail.key, tail.fetched) && !owned.astray && owned.failed.is_none()
    })
}

/// Moves partitions over the offsets at their ends that hold no message, and returns those whose ends were not reached,
/// each with the offset that the probe reached.
fn answer(feed: &Feed, client: Arc<Client>, mut waiting: Waiting) -> Waiting {
    // A partition without a leader can be the error of all. The probe then finds the ends itself.
    let ends = offsets::find_each(&*client, waiting.keys(), Place::End, feed.plan.limit).unwrap_or_default();
    drop(client);
    waiting.retain(|partition, tail| match ends.get(partition) {
        Some(Ok(end)) => *end > tail.fetched,
        Some(Err(error)) => !(error::is_gone(error) || error::is_hidden(error)),
        None => true,
    });
    if waiting.is_empty() {
        return waiting;
    }
    let probe = match Probe::start(&feed.config, &waiting) {
        Ok(probe) => probe,
        Err(error) => {
            tracing::warn!(%error, "the ends of partitions cannot be looked at");
            return waiting;
        }
    };
    let deadline = Instant::now() + LIMIT;
    while !waiting.is_empty() && Instant::now() < deadline && !feed.state().closing {
        match probe.poll(STATISTICS) {
            // The reader gets this message, too, or has got it.
            Some(Ok(message)) => waiting.retain(|partition, _| {
                partition.topic.as_str() != message.topic()
                    || partition.partition.cast_signed() != message.partition()
            }),
            Some(Err(error)) => tracing::debug!(%error, "a probe goes on after an error"),
            None => {}
        }
        let read = std::mem::take(&mut *probe.context().lock());
        waiting.retain(|partition, tail| {
            let place = (partition.topic.to_string(), partition.partition.cast_signed());
            let Some(Read { to, end: seen }) = read.get(&place).copied() else { return true };
            let end = ends.get(partition).and_then(|end| end.as_ref().ok()).copied();
            // A tail may take longer than one probe: the next one begins where this one ends.
            if to > tail.fetched {
                tracing::debug!(%partition, from = tail.fetched, to, "offsets without a message");
                feed.state().shelf.skip(partition, tail.key, tail.fetched, to);
                feed.changed.notify_waiters();
                tail.fetched = to;
            }
            to < end.unwrap_or(seen)
        });
    }
    waiting
}

/// How far a probe has read a partition of which nothing is queued.
#[derive(Debug, Clone, Copy)]
struct Read {
    to: u64,
    /// The end of the partition in the last answer.
    end: u64,
}

type ReadTo = BTreeMap<(String, i32), Read>;

/// The context of a probe.
#[derive(Debug, Default)]
struct Probe(Mutex<ReadTo>);

impl Probe {
    /// Reads these partitions from where they are.
    fn start(config: &ClientConfig, waiting: &Waiting) -> KafkaResult<BaseConsumer<Self>> {
        let mut config = config.clone();
        config
            .remove("group.instance.id")
            .set("enable.partition.eof", "false")
            .set("statistics.interval.ms", STATISTICS.as_millis().to_string())
            .set("queued.max.messages.kbytes", "1024")
            .set("max.partition.fetch.bytes", "1024");
        let probe: BaseConsumer<Self> = config.create_with_context(Self::default())?;
        let places = waiting.iter().map(|(partition, tail)| (partition, offsets::offset(tail.fetched)));
        probe.assign(&offsets::list(places)?)?;
        Ok(probe)
    }

    fn lock(&self) -> MutexGuard<'_, ReadTo> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Probe {
    fn stats(&self, statistics: Statistics) {
        let mut read = self.lock();
        for topic in statistics.topics.into_values() {
            for partition in topic.partitions.into_values() {
                let offsets = (u64::try_from(partition.next_offset), u64::try_from(partition.ls_offset));
                if let (0, (Ok(to), Ok(end))) = (partition.fetchq_cnt, offsets) {
                    read.insert((topic.topic.clone(), partition.partition), Read { to, end });
                }
            }
        }
    }
}

impl ConsumerContext for Probe {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redpanda::feed::nowhere;

    #[test]
    fn a_look_that_ended_is_followed_by_a_pause() {
        let feed = nowhere();
        let partition = TopicPartition::new(feed.plan.topics[0].clone(), 0);
        feed.state().shelf.gain(partition, 0, None);
        let tails = Tails::default();
        tails.end(Waiting::new());
        tails.reached(&feed, 0);
        let state = tails.lock();
        assert!(state.due >= state.ended.map(|ended| ended + PAUSE));
    }

    #[test]
    fn partitions_wait_while_no_probe_can_be_made() {
        let feed = nowhere();
        let partition = TopicPartition::new(feed.plan.topics[0].clone(), 0);
        let waiting = Waiting::from([(partition, Tail { key: 0, fetched: 3 })]);
        let mut feed = Arc::into_inner(feed).unwrap();
        feed.config.set("no.such.property", "1");
        let client = feed.client("recv").unwrap();
        assert_eq!(answer(&feed, client, waiting.clone()), waiting);
    }
}
