//! Behaviour that only the memory bus has: its capacity, eviction, its clock, and cooperation with other tasks.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use qi_core::bus::{
    Batch, CleanupPolicy, Committed, DeliveryState, GroupId, HeaderName, Message, MessageBus, MessageBusExt,
    Messages, PublishOptions, ReaderRequest, ReceivedMessage, SeekTo, SubscribeRequest, SubscriptionEvent,
    TopicName, TopicPartition, TopicSpec,
};
use qi_core::{Clock, ErrorKind, RetryAdvice, Timestamp};
use qi_testkit::ManualClock;
use qi_testkit::bus::{MemoryBus, MemoryBusConfig};
use qi_testkit::mock::MockReader;
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

fn topic() -> TopicName {
    TopicName::new("t").unwrap()
}

fn at(partition: u32) -> TopicPartition {
    TopicPartition::new(topic(), partition)
}

fn request(group: &str) -> SubscribeRequest {
    SubscribeRequest::new(GroupId::new(group).unwrap(), [topic()]).unwrap()
}

/// Returns a bus with a capacity of 100 kB and one partition, which waits 3 s for space.
async fn small() -> MemoryBus {
    small_with(TopicSpec::new(topic(), 1).unwrap(), Arc::new(ManualClock::default())).await
}

async fn small_with(spec: TopicSpec, clock: Arc<dyn Clock>) -> MemoryBus {
    let mut config = MemoryBusConfig::default();
    (config.max_bytes, config.max_message_bytes) = (100_000, 10_000);
    config.delivery_timeout = Duration::from_secs(3);
    let bus = MemoryBus::new(config, clock).unwrap();
    bus.create_topics(&[spec]).await.unwrap().remove(0).result.unwrap();
    bus
}

/// Returns numbered messages of 1 kB. The key is the number modulo 3.
fn kilobytes(numbers: std::ops::Range<usize>) -> Vec<Message> {
    numbers.map(|n| Message::new(topic(), format!("{n:01000}")).with_key(format!("k{}", n % 3))).collect()
}

async fn low_and_high(bus: &MemoryBus) -> (u64, u64) {
    let topics = bus.topics().await.unwrap();
    (topics[0].partitions[0].low, topics[0].partitions[0].high)
}

#[tokio::test(start_paused = true)]
async fn topic_without_groups_evicts_nothing_and_further_messages_are_not_sent() {
    let bus = small().await;
    let began = Instant::now();
    let report = bus.publish(&kilobytes(0..200), PublishOptions::NONE).await.unwrap();
    assert_eq!(began.elapsed(), Duration::from_secs(3), "the publish waited for space");
    let rejected: Vec<_> = report.failed(DeliveryState::NotSent).collect();
    let delivered = 200 - rejected.len();
    assert!((80..100).contains(&delivered), "{delivered} fitted");
    assert_eq!(
        rejected,
        (delivered..200).collect::<Vec<_>>(),
        "the messages without space are the end of the batch"
    );
    assert!(bus.used_bytes() <= 100_000);
    let error = report.into_result().unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Overloaded, "bus.memory.full"));
    assert_eq!((error.retry(), error.backend()), (RetryAdvice::Backoff, Some("memory")));
    assert_eq!(low_and_high(&bus).await, (0, delivered as u64));
}

#[tokio::test(start_paused = true)]
async fn messages_committed_by_every_group_are_evicted_first() {
    let bus = small().await;
    let (mut quick, mut slow) =
        (bus.subscribe(request("quick")).await.unwrap(), bus.subscribe(request("slow")).await.unwrap());
    bus.send(&kilobytes(0..80)).await.unwrap();
    for (reader, count) in [(&mut quick, 80), (&mut slow, 30)] {
        let batch = reader.recv(count, SECOND).await.unwrap();
        reader.commit(batch.offsets()).await.unwrap();
    }
    let began = Instant::now();
    bus.send(&kilobytes(80..105)).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO, "messages were evicted");
    let (low, high) = low_and_high(&bus).await;
    assert!((1..=30).contains(&low), "only what both have committed may go, and {low} went");
    assert_eq!(high, 105);
    let error = bus.send(&kilobytes(105..200)).await.unwrap_err();
    assert_eq!(error.context_value("group"), Some("slow"), "the slowest group is named: {error}");
    assert_eq!(low_and_high(&bus).await.0, 30, "the messages committed by both groups are evicted");
    let next = slow.recv(1, SECOND).await.unwrap();
    assert_eq!(next.messages()[0].offset, 30, "uncommitted messages are not evicted");
}

#[tokio::test(start_paused = true)]
async fn commit_unblocks_a_waiting_publish() {
    let bus = Arc::new(small().await);
    let mut reader = bus.subscribe(request("g")).await.unwrap();
    let sending = tokio::spawn({
        let bus = bus.clone();
        async move { bus.send(&kilobytes(0..150)).await }
    });
    tokio::time::sleep(SECOND).await;
    assert!(!sending.is_finished(), "the bus is full");
    let batch = reader.recv(70, SECOND).await.unwrap();
    reader.commit(batch.offsets()).await.unwrap();
    let deliveries = sending.await.unwrap().unwrap();
    assert_eq!(deliveries.last().map(|d| d.offset), Some(149));
}

#[tokio::test(start_paused = true)]
async fn retention_by_age_removes_unread_messages_by_the_injected_clock() {
    let clock = Arc::new(ManualClock::default());
    let spec = TopicSpec::new(topic(), 1).unwrap().with_retention(Duration::from_hours(1));
    let bus = small_with(spec, clock.clone()).await;
    let mut reader = bus.subscribe(request("g")).await.unwrap();
    bus.send(&kilobytes(0..5)).await.unwrap();
    clock.advance(Duration::from_mins(30));
    bus.send(&kilobytes(5..8)).await.unwrap();
    clock.advance(Duration::from_mins(31));
    assert_eq!(low_and_high(&bus).await, (5, 8));
    let batch = reader.recv(10, SECOND).await.unwrap();
    assert_eq!(batch.events(), [SubscriptionEvent::Reset { partition: at(0), from: 0, to: 5 }]);
    assert_eq!(batch.messages()[0].offset, 5);
    // The retention counts from the message's own timestamp, so an old event time makes a message old.
    let old = Message::new(topic(), "x").with_timestamp(Timestamp::MIN);
    bus.publish_one(&old).await.unwrap();
    clock.advance(Duration::from_mins(30));
    assert_eq!(low_and_high(&bus).await, (9, 9));
    assert_eq!(bus.used_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn compacted_topic_evicts_only_replaced_messages() {
    let spec = TopicSpec::new(topic(), 1).unwrap().with_cleanup(CleanupPolicy::Compact);
    let bus = small_with(spec, Arc::new(ManualClock::default())).await;
    let mut reader = bus.subscribe(request("g")).await.unwrap();
    for round in 0..5 {
        bus.send(&kilobytes(round * 40..(round + 1) * 40)).await.unwrap();
        let mut count = 0;
        while count < 40 {
            let batch = reader.recv(40, SECOND).await.unwrap();
            reader.commit(batch.offsets()).await.unwrap();
            count += batch.len();
        }
    }
    let mut all = bus.open_reader(ReaderRequest::new([(at(0), SeekTo::Earliest)]).unwrap()).await.unwrap();
    let batch = all.recv(1_000, SECOND).await.unwrap();
    let offsets: Vec<_> = batch.iter().map(|m| m.offset).collect();
    assert!(offsets.len() < 200 && offsets.is_sorted(), "{offsets:?}");
    assert!(offsets.ends_with(&[197, 198, 199]), "the newest of each key stays");
    all.seek(&[(at(0), SeekTo::Offset(0))]).await.unwrap();
    let again = all.recv(1_000, SECOND).await.unwrap();
    assert_eq!(again.len(), batch.len(), "a position in a gap reads the next message");
}

#[tokio::test(start_paused = true)]
async fn deleted_topic_frees_its_bytes() {
    let bus = small().await;
    bus.send(&kilobytes(0..50)).await.unwrap();
    assert!(bus.used_bytes() > 50_000);
    bus.delete_topics(&[topic()]).await.unwrap().remove(0).result.unwrap();
    assert_eq!(bus.used_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_a_publish_and_reports_the_rest_as_not_sent() {
    let mut config = MemoryBusConfig::default();
    (config.max_bytes, config.max_message_bytes) = (20_000, 10_000);
    config.close_timeout = Duration::from_secs(1);
    let bus = Arc::new(MemoryBus::new(config, Arc::new(ManualClock::default())).unwrap());
    bus.create_topics(&[TopicSpec::new(topic(), 1).unwrap()]).await.unwrap().remove(0).result.unwrap();
    let sending = tokio::spawn({
        let bus = bus.clone();
        async move { bus.publish(&kilobytes(0..50), PublishOptions::NONE).await }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let began = Instant::now();
    assert_eq!(bus.close().await.unwrap().unknown, 0);
    assert_eq!(began.elapsed(), SECOND, "close returns at its timeout");
    let error = sending.await.unwrap().unwrap().into_result().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_delivered_once_close_has_returned() {
    let bus = small().await;
    let mut reader = bus.connect().subscribe(request("g")).await.unwrap();
    bus.send(&kilobytes(0..80)).await.unwrap();
    let late = kilobytes(80..120);
    let mut waiting = Box::pin(bus.publish(&late, PublishOptions::NONE));
    assert!((&mut waiting).now_or_never().is_none(), "the bus is full");
    let (_, high) = low_and_high(&bus).await;
    bus.close().await.unwrap();
    // The commit frees space for the rest.
    let batch = reader.recv(1_000, SECOND).await.unwrap();
    reader.commit(batch.offsets()).await.unwrap();
    let report = waiting.await.unwrap();
    let rejected: Vec<_> = report.failed(DeliveryState::NotSent).collect();
    let delivered = usize::try_from(high).unwrap() - 80;
    assert!(delivered < 40);
    assert_eq!(rejected, (delivered..40).collect::<Vec<_>>(), "the waiting messages were not sent");
    assert_eq!(report.into_result().unwrap_err().kind(), ErrorKind::Closed);
    assert!(reader.recv(1_000, SECOND).await.unwrap().is_empty(), "the message is not in the log");
}

#[tokio::test(start_paused = true)]
async fn group_without_members_expires_after_its_retention() {
    let clock = Arc::new(ManualClock::default());
    let bus = small_with(TopicSpec::new(topic(), 1).unwrap(), clock.clone()).await;
    let mut reader = bus.subscribe(request("g")).await.unwrap();
    bus.send(&kilobytes(0..1)).await.unwrap();
    let batch = reader.recv(1, SECOND).await.unwrap();
    reader.commit(batch.offsets()).await.unwrap();
    reader.close().await.unwrap();
    let all = qi_core::bus::GroupQuery::new(qi_core::Selection::All);
    assert_eq!(bus.groups(&all).await.unwrap().len(), 1);
    clock.advance(Duration::from_hours(7 * 24 + 1));
    assert!(bus.groups(&all).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn commits_of_an_unsubscribed_topic_expire_after_the_retention() {
    let clock = Arc::new(ManualClock::default());
    let month = Duration::from_hours(30 * 24);
    let bus = small_with(TopicSpec::new(topic(), 1).unwrap().with_retention(month), clock.clone()).await;
    let other = TopicName::new("u").unwrap();
    let spec = TopicSpec::new(other.clone(), 1).unwrap();
    bus.create_topics(&[spec]).await.unwrap().remove(0).result.unwrap();
    bus.subscribe(request("g")).await.unwrap().close().await.unwrap();
    let elsewhere = SubscribeRequest::new(GroupId::new("g").unwrap(), [other]).unwrap();
    let _moved = bus.subscribe(elsewhere).await.unwrap();
    let mut reader = bus.subscribe(request("h")).await.unwrap();
    bus.send(&kilobytes(0..80)).await.unwrap();
    let batch = reader.recv(80, SECOND).await.unwrap();
    reader.commit(batch.offsets()).await.unwrap();
    let error = bus.send(&kilobytes(80..150)).await.unwrap_err();
    assert_eq!(error.context_value("group"), Some("g"), "the error is retryable: {error}");
    clock.advance(Duration::from_hours(7 * 24 + 1));
    bus.send(&kilobytes(150..200)).await.unwrap();
    assert!(low_and_high(&bus).await.0 > 0, "the messages committed by the other group are evicted");
    let all = qi_core::bus::GroupQuery::new(qi_core::Selection::All);
    assert_eq!(bus.groups(&all).await.unwrap().len(), 2, "the group remains on its new topic");
}

/// Checks that another task makes progress while `work` never waits, and that `work` can be aborted.
async fn expect_another_task_to_run<F: Future<Output = ()> + Send + 'static>(work: F) {
    let beats = Arc::new(AtomicUsize::new(0));
    let busy = tokio::spawn(work);
    let beating = tokio::spawn({
        let beats = beats.clone();
        async move {
            for _ in 0..100 {
                beats.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
        }
    });
    beating.await.unwrap();
    assert!(!busy.is_finished(), "the busy task still runs");
    busy.abort();
    assert!(busy.await.unwrap_err().is_cancelled(), "the task was aborted");
    assert_eq!(beats.load(Ordering::SeqCst), 100);
}

#[tokio::test]
async fn loop_of_ready_calls_yields_and_can_be_aborted() {
    let bus = Arc::new(small().await);
    bus.send(&kilobytes(0..3)).await.unwrap();
    let publisher = bus.clone();
    expect_another_task_to_run(async move {
        loop {
            publisher.send(&[]).await.unwrap();
        }
    })
    .await;
    let mut reader = bus.subscribe(request("g")).await.unwrap();
    expect_another_task_to_run(async move {
        loop {
            reader.recv(1, SECOND).await.unwrap();
            reader.seek(&[(at(0), SeekTo::Earliest)]).await.unwrap();
        }
    })
    .await;
    let mut reader = bus.subscribe(request("h")).await.unwrap();
    expect_another_task_to_run(async move {
        loop {
            reader.assignment().await.unwrap();
        }
    })
    .await;
    expect_another_task_to_run(async move {
        loop {
            bus.topics().await.unwrap();
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn single_messages_commit_the_returned_messages() {
    let bus = small().await;
    bus.send(&kilobytes(0..10)).await.unwrap();
    let mut messages = Messages::new(bus.subscribe(request("g")).await.unwrap(), 5);
    for n in 0..7 {
        assert_eq!(messages.next(SECOND).await.unwrap().unwrap().offset, n);
    }
    let committed = messages.commit().await.unwrap();
    assert_eq!(committed.stored.get(&at(0)), Some(7), "not the three that wait in the second batch");
    messages.close().await.unwrap();
    let mut messages = Messages::new(bus.subscribe(request("g")).await.unwrap(), 5);
    let mut stream = messages.stream();
    for n in 7..10 {
        let next = futures::StreamExt::next(&mut stream).await.unwrap().unwrap();
        assert_eq!(next.offset, n);
    }
    drop(stream);
    assert!(messages.next(SECOND).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn duplicate_static_member_fences_the_older_member() {
    let bus = small().await;
    let member = || request("g").with_group_instance_id(qi_core::bus::GroupInstanceId::new("one").unwrap());
    let mut old = bus.subscribe(member()).await.unwrap();
    let mut new = bus.subscribe(member()).await.unwrap();
    bus.send(&kilobytes(0..1)).await.unwrap();
    let fenced = old.recv(1, SECOND).await.unwrap_err();
    assert_eq!((fenced.kind(), fenced.retry()), (ErrorKind::Conflict, RetryAdvice::Never));
    assert_eq!(new.recv(1, SECOND).await.unwrap().len(), 1);
    drop(old);
    assert_eq!(
        new.assignment().await.unwrap().partitions.len(),
        1,
        "the end of the old member changes no assignment"
    );
}

/// Members join and leave while four tasks publish, with real threads and on real time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_rebalances_lose_no_message() {
    const EACH: usize = 2_500;
    let bus = Arc::new(MemoryBus::default());
    bus.create_topics(&[TopicSpec::new(topic(), 6).unwrap()]).await.unwrap().remove(0).result.unwrap();
    let mut senders = tokio::task::JoinSet::new();
    for task in 0..4 {
        let bus = bus.clone();
        senders.spawn(async move {
            for round in 0..EACH / 50 {
                let batch: Vec<_> = (0..50)
                    .map(|n| Message::new(topic(), (round * 50 + n).to_string()).with_key(format!("t{task}")))
                    .collect();
                bus.send(&batch).await.unwrap();
            }
        });
    }
    let seen = Arc::new(std::sync::Mutex::new(std::collections::BTreeSet::new()));
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..3 {
        let (bus, seen) = (bus.clone(), seen.clone());
        readers.spawn(async move {
            // Each membership ends after some batches. Its uncommitted messages are redelivered to other members.
            for life in 0.. {
                let mut sub = bus.subscribe(request("g")).await.unwrap();
                for turn in 0..(20 + 7 * reader + life) {
                    let batch = sub.recv(97, Duration::from_millis(20)).await.unwrap();
                    let count = {
                        let mut seen = seen.lock().unwrap();
                        seen.extend(batch.iter().map(|m| (m.key.clone(), m.payload.clone())));
                        seen.len()
                    };
                    if count == 4 * EACH {
                        return;
                    }
                    if turn % 3 != 0 {
                        sub.commit(batch.offsets()).await.unwrap();
                    }
                }
            }
        });
    }
    let all = async {
        while senders.join_next().await.transpose().unwrap().is_some() {}
        while readers.join_next().await.transpose().unwrap().is_some() {}
    };
    tokio::time::timeout(Duration::from_mins(1), all).await.expect("all messages arrive within one minute");
}

#[test]
fn capacity_below_one_message_is_a_configuration_error() {
    let mut config = MemoryBusConfig::default();
    config.max_bytes = 1_000;
    let error = MemoryBus::new(config, Arc::new(qi_core::SystemClock)).unwrap_err();
    assert_eq!((error.kind(), error.context_value("key")), (ErrorKind::Config, Some("bus.memory.max_bytes")));
}

#[tokio::test(start_paused = true)]
async fn many_short_headers_count_towards_the_receive_buffer() {
    let bus = MemoryBus::default();
    bus.create_topics(&[TopicSpec::new(topic(), 1).unwrap()]).await.unwrap();
    let mut message = Message::new(topic(), "x");
    for _ in 0..1_000 {
        message.headers.push(HeaderName::new("h").unwrap(), bytes::Bytes::new());
    }
    assert_eq!((message.size(), message.weight()), (1_001, 1_001 + 128 * 1_000));
    bus.send(&vec![message; 10]).await.unwrap();
    let mut reader = bus.subscribe(request("g").with_max_buffered_bytes(300_000)).await.unwrap();
    let batch = reader.recv(10, Duration::from_secs(1)).await.unwrap();
    assert_eq!(batch.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn commit_of_single_messages_includes_offsets_without_messages() {
    let (committed, seen) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let kept = committed.clone();
    let mut subscription = MockReader::new();
    subscription.expect_recv().returning(move |_, _| {
        // Transaction markers follow the messages.
        let positions = [(at(0), 5)].into_iter().collect();
        let messages = match seen.fetch_add(1, Ordering::Relaxed) {
            0 => vec![ReceivedMessage::new(topic(), 0, 0), ReceivedMessage::new(topic(), 0, 1)],
            _ => vec![],
        };
        Ok(Batch::new(messages, positions, vec![]))
    });
    subscription.expect_commit().returning(move |positions| {
        kept.lock().unwrap().push(positions.get(&at(0)));
        Ok(Committed::new(positions.clone(), vec![]))
    });
    let mut messages = Messages::new(Box::new(subscription), 10);
    for offset in [Some(0), Some(1), None] {
        let message = messages.next(Duration::from_secs(1)).await.unwrap();
        assert_eq!(message.map(|message| message.offset), offset);
        messages.commit().await.unwrap();
    }
    assert_eq!(*committed.lock().unwrap(), [Some(1), Some(5), Some(5)]);
}
