//! Numbered messages, which are sent while brokers start and stop, and the checks of the resulting log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use qi_adapters::redpanda::RedpandaBus;
use qi_core::bus::{
    DeliveryState, Message, MessageBus, PublishOptions, ReaderRequest, ReceivedMessage, SeekTo, Subscription,
    TopicName, TopicPartition, TopicSpec, TopicState,
};
use tokio::time::Instant;

/// The number of keys of the load. Each key belongs to one task, so that its order is known.
const KEYS: usize = 16;

/// Creates a new topic with this specification.
pub(crate) async fn create(bus: &RedpandaBus, spec: TopicSpec) -> TopicName {
    let name = spec.name.clone();
    let outcome = bus.create_topics(&[spec]).await.unwrap().pop().unwrap();
    assert_eq!(outcome.result.unwrap(), TopicState::Created);
    name
}

/// Returns message `n` for a topic.
pub(crate) fn numbered(topic: &TopicName, n: usize) -> Message {
    Message::new(topic.clone(), n.to_string()).with_key(format!("k{}", n % KEYS))
}

/// Returns the number of a message.
pub(crate) fn number(message: &ReceivedMessage) -> usize {
    std::str::from_utf8(message.payload.as_deref().unwrap()).unwrap().parse().unwrap()
}

/// A sender of numbered messages. It sends each message until it is acknowledged, and counts the outcomes.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    /// The number of acknowledged messages.
    pub(crate) acknowledged: AtomicUsize,
    /// The number of messages reported as not sent.
    pub(crate) not_sent: AtomicUsize,
    /// The number of acknowledged messages at which `send_all` waits until this is 0 again. 0 is no bound.
    pub(crate) hold: AtomicUsize,
    /// The number of unknown outcomes of each message. Such a message was sent again.
    unknown: std::sync::Mutex<BTreeMap<usize, usize>>,
}

impl Counter {
    /// Returns the number of unknown outcomes of each message.
    pub(crate) fn unknown(&self) -> BTreeMap<usize, usize> {
        self.unknown.lock().unwrap().clone()
    }

    /// Sends these numbers in order, each until it is acknowledged. Sends no number of a later batch earlier.
    pub(crate) async fn send(&self, bus: &RedpandaBus, topic: &TopicName, numbers: Vec<usize>) {
        let mut open = numbers;
        while !open.is_empty() {
            let batch: Vec<_> = open.iter().map(|n| numbered(topic, *n)).collect();
            let report = bus.publish(&batch, PublishOptions::NONE).await.unwrap();
            let mut again = Vec::new();
            for (n, outcome) in open.into_iter().zip(report.into_outcomes()) {
                match outcome {
                    Ok(_) => drop(self.acknowledged.fetch_add(1, Ordering::Relaxed)),
                    Err(failure) => {
                        assert!(failure.error.retry().is_retryable(), "{}", failure.error.report());
                        if failure.state == DeliveryState::NotSent {
                            self.not_sent.fetch_add(1, Ordering::Relaxed);
                        } else {
                            *self.unknown.lock().unwrap().entry(n).or_default() += 1;
                        }
                        again.push(n);
                    }
                }
            }
            open = again;
            if !open.is_empty() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// Sends the numbers below `count` with four tasks, each of which has separate keys.
    pub(crate) async fn send_all(self: &Arc<Self>, bus: &Arc<RedpandaBus>, topic: &TopicName, count: usize) {
        const TASKS: usize = 4;
        let tasks = (0..TASKS).map(|task| {
            let (counter, bus, topic) = (self.clone(), bus.clone(), topic.clone());
            tokio::spawn(async move {
                let numbers: Vec<_> = (0..count).filter(|n| n % TASKS == task).collect();
                for batch in numbers.chunks(500) {
                    while (1..=counter.acknowledged.load(Ordering::Relaxed))
                        .contains(&counter.hold.load(Ordering::Relaxed))
                    {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    counter.send(&bus, &topic, batch.to_vec()).await;
                }
            })
        });
        for task in futures::future::join_all(tasks).await {
            task.unwrap();
        }
    }

    /// Waits until this number of messages is acknowledged.
    pub(crate) async fn reached(&self, count: usize) {
        while self.acknowledged.load(Ordering::Relaxed) < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Asserts that the log contains every number below `count` at least once. A number may occur once more
    /// for each of its unknown outcomes. The numbers of each key rise, whether the first or the last
    /// occurrence of a repeated number counts.
    pub(crate) fn check(&self, log: &[ReceivedMessage], count: usize) {
        let unknown = self.unknown();
        let mut seen: BTreeMap<usize, usize> = BTreeMap::new();
        for message in log {
            *seen.entry(number(message)).or_default() += 1;
        }
        let missing: Vec<_> = (0..count).filter(|n| !seen.contains_key(n)).take(10).collect();
        assert!(missing.is_empty(), "lost: {missing:?}");
        for (n, times) in &seen {
            let allowed = 1 + unknown.get(n).copied().unwrap_or(0);
            assert!(*n < count && *times <= allowed, "{n} is there {times} times, {allowed} are explained");
        }
        assert_ordered(log);
        let reversed: Vec<_> = log.iter().rev().cloned().collect();
        let last: Vec<_> = first_of_each(&reversed).into_iter().rev().collect();
        assert_rising(&last);
    }
}

/// Asserts that the numbers of each key rise, by their first occurrence.
pub(crate) fn assert_ordered(log: &[ReceivedMessage]) {
    assert_rising(&first_of_each(log));
}

fn first_of_each(log: &[ReceivedMessage]) -> Vec<usize> {
    let mut known = std::collections::BTreeSet::new();
    log.iter().map(number).filter(|n| known.insert(*n)).collect()
}

fn assert_rising(numbers: &[usize]) {
    let mut last = [None; KEYS];
    for n in numbers {
        let before = last[n % KEYS].replace(*n);
        assert!(before.is_none_or(|before| before < *n), "{n} comes after {before:?}");
    }
}

/// Returns all messages in a topic, by partition and offset. The brokers must be available.
pub(crate) async fn all_of(bus: &RedpandaBus, topic: &TopicName) -> Vec<ReceivedMessage> {
    let info = bus.topics().await.unwrap().into_iter().find(|info| info.name == *topic).unwrap();
    let places: BTreeMap<_, _> =
        info.partitions.iter().map(|p| (TopicPartition::new(topic.clone(), p.id), p.high)).collect();
    let from = places.keys().map(|partition| (partition.clone(), SeekTo::Earliest));
    let mut reader = bus.open_reader(ReaderRequest::new(from).unwrap()).await.unwrap();
    let mut all = Vec::new();
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let assignment = reader.assignment().await.unwrap();
        if assignment.partitions.iter().all(|p| p.position >= places[&p.partition]) {
            break;
        }
        assert!(Instant::now() < deadline, "{} messages received: {assignment:?}", all.len());
        all.extend(reader.recv(10_000, Duration::from_secs(1)).await.unwrap().into_messages());
    }
    reader.close().await.unwrap();
    all.sort_by_key(|message| (message.partition, message.offset));
    all
}

/// Reads this number of different messages, whatever the brokers do, and commits each batch. Returns the
/// received messages in order.
pub(crate) async fn follow(
    sub: &mut dyn Subscription,
    count: usize,
    limit: Duration,
) -> Vec<ReceivedMessage> {
    let (mut all, mut known) = (Vec::new(), std::collections::BTreeSet::new());
    let deadline = Instant::now() + limit;
    while known.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} messages received", known.len());
        match sub.recv(2_000, Duration::from_millis(500)).await {
            Ok(batch) => {
                known.extend(batch.iter().map(number));
                all.extend(batch.iter().cloned());
                if let Err(error) = sub.commit(batch.offsets()).await {
                    assert!(error.retry().is_retryable(), "{}", error.report());
                }
            }
            Err(error) => assert!(error.retry().is_retryable(), "{}", error.report()),
        }
    }
    all
}
