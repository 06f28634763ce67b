//! Failures of real brokers and readers. No acknowledged message is lost, and all clients recover without intervention.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod redpanda_rig;
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use qi_adapters::redpanda::{RedpandaBus, RedpandaConfig};
use qi_core::bus::{
    CleanupPolicy, DeadLetters, DeliveryError, DeliveryState, GroupId, GroupInstanceId, GroupQuery, Message,
    MessageBus, MessageBusExt, OffsetReset, Offsets, PublishOptions, ReaderRequest, ReceivedMessage, SeekTo,
    SubscribeRequest, Subscription, SubscriptionEvent, TopicName, TopicPartition, TopicSpec, header,
};
use qi_core::{Error, ErrorKind, Ingest, IngestConfig, PriceStore as _, PriceTick, Result, Selection};
use qi_testkit::kafka::{self, Codec, RawBatch, RawMessage};
use qi_testkit::store::MemoryStore;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use redpanda_rig::load::{Counter, all_of, assert_ordered, create, follow, number, numbered};
use redpanda_rig::tools::{table, tool};
use redpanda_rig::{Brokers, config};
use servers::{Spare, namespace, spare_trial, trial, trial_on};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);
/// The environment variable that makes a child process read: addresses, topic and group.
const READER: &str = "QI_TEST_READER";

fn main() {
    if let Ok(arguments) = std::env::var(READER) {
        child_reader(&arguments);
        return;
    }
    let brokers = Brokers::redpanda();
    let mut arguments = Arguments::from_args();
    // Most of the time of a trial is spent waiting for brokers to start and stop.
    arguments.test_threads = arguments.test_threads.or(Some(4));
    let trials: Vec<Trial> = vec![
        trial_on(&brokers, "cluster", "a_cluster_loses_one_node_and_two_nodes", nodes_lost),
        trial_on(&brokers, "cluster", "a_group_coordinator_is_killed", killed_coordinator),
        spare_trial(&brokers, "killed_broker_causes_no_loss_of_100_000_messages", killed_broker),
        spare_trial(
            &brokers,
            "outage_beyond_the_delivery_timeout_reports_unknown_messages",
            down_beyond_delivery_timeout,
        ),
        spare_trial(
            &brokers,
            "outage_beyond_the_session_timeout_redelivers_uncommitted_messages",
            down_beyond_session_timeout,
        ),
        spare_trial(
            &brokers,
            "calls_without_a_broker_at_the_start_are_unavailable_in_time",
            no_broker_reachable,
        ),
        spare_trial(&brokers, "close_and_drop_without_a_broker_end_in_time", close_and_drop_without_broker),
        spare_trial(&brokers, "retention_removes_unread_messages", retention),
        trial(&brokers, "uncommitted_messages_of_a_killed_reader_are_redelivered", killed_reader),
        trial(&brokers, "a_stuck_reader_loses_its_partitions_and_rejoins", |b| stuck_reader(b, None)),
        trial(&brokers, "a_stuck_static_member_loses_its_partitions_and_rejoins", |b| {
            stuck_reader(b, Some("one"))
        }),
        trial(&brokers, "members_without_partitions_leave_during_a_rebalance", idle_members),
        trial(&brokers, "transaction_markers_and_aborted_messages_leave_no_lag", markers),
        trial(
            &brokers,
            "aborted_messages_before_an_open_transaction_count_as_lag",
            aborted_before_an_open_transaction,
        ),
        trial(&brokers, "compacted_gaps_leave_no_lag", compacted),
        trial(&brokers, "a_zstd_batch_of_more_than_100_mb_is_read", large_zstd_batch),
        trial(&brokers, "an_unreadable_batch_becomes_a_dead_letter", unreadable_batch),
        trial(&brokers, "a_batch_of_2_6_gb_is_skipped_within_seconds", large_unreadable_batch),
        trial(&brokers, "a_readable_batch_between_two_unreadable_ones_is_read", readable_between_unreadable),
        trial(&brokers, "batches_that_only_java_can_decompress_become_dead_letters", other_codecs),
        trial(&brokers, "a_gzip_batch_of_300_mb_is_read", large_gzip_batch),
        trial(
            &brokers,
            "a_topic_with_a_compression_type_has_no_gzip_batch_of_several_members",
            recompressed_gzip_members,
        ),
        trial(&brokers, "a_deleted_dead_letter_topic_is_created_again", deleted_dead_letters),
        trial(&brokers, "transaction_markers_in_two_topics_leave_no_lag", markers_of_two_topics),
        trial(&brokers, "an_invalid_header_name_stops_no_reader", header_names),
        trial(&brokers, "topics_are_listed_during_deletions", list_during_deletions),
    ];
    libtest_mimic::run(&arguments, trials).exit()
}

fn open(brokers: &Brokers, change: impl FnOnce(&mut RedpandaConfig)) -> Arc<RedpandaBus> {
    let mut config = brokers.config();
    change(&mut config);
    Arc::new(RedpandaBus::open(config).unwrap())
}

fn spec(partitions: u32) -> TopicSpec {
    TopicSpec::new(TopicName::new(namespace()).unwrap(), partitions).unwrap()
}

/// Sends messages in a transaction of another program and leaves the transaction open.
fn send_in_open_transaction(
    brokers: &Brokers,
    topic: &TopicName,
    partition: i32,
    numbers: std::ops::Range<usize>,
) -> BaseProducer {
    let mut config = rdkafka::ClientConfig::new();
    let addresses = brokers.config().brokers.unwrap();
    config.set("bootstrap.servers", addresses).set("transactional.id", namespace());
    let producer: BaseProducer = config.create().unwrap();
    producer.init_transactions(30 * SECOND).unwrap();
    producer.begin_transaction().unwrap();
    for n in numbers {
        let (key, payload) = (format!("k{}", n % 16), n.to_string());
        let record = BaseRecord::to(topic.as_str()).partition(partition).key(&key).payload(&payload);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(30 * SECOND).unwrap();
    producer
}

/// Sends messages of 1 MB in one zstd batch, then a small message.
fn send_zstd(brokers: &Brokers, topic: &TopicName, count: usize) {
    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", brokers.config().brokers.unwrap()).set("compression.type", "zstd");
    config.set("linger.ms", "2000").set("message.max.bytes", "1000000000").set("batch.size", "1000000000");
    let producer: BaseProducer = config.create().unwrap();
    let zeros = vec![0; 1_000_000];
    for (payload, count) in [(&zeros[..], count), (&b"1"[..], 1)] {
        for _ in 0..count {
            let record = BaseRecord::<(), [u8]>::to(topic.as_str()).partition(0).payload(payload);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(60 * SECOND).unwrap();
    }
}

async fn large_zstd_batch(brokers: Brokers) {
    const MESSAGES: usize = 150;
    let bus = open(&brokers, |_| {});
    let topic = create(&bus, spec(1)).await;
    send_zstd(&brokers, &topic, MESSAGES);
    let from = [(TopicPartition::new(topic.clone(), 0), SeekTo::Earliest)];
    let mut reader =
        bus.open_reader(ReaderRequest::new(from).unwrap().with_max_buffered_bytes(4 << 20)).await.unwrap();
    let deadline = Instant::now() + 60 * SECOND;
    let mut received = 0;
    while received <= MESSAGES {
        assert!(Instant::now() < deadline, "{received} messages received");
        received += reader.recv(10, SECOND).await.unwrap().len();
    }
    reader.close().await.unwrap();
}

async fn unreadable_batch(brokers: Brokers) {
    let bus = open(&brokers, |config| {
        config.properties.insert("receive.message.max.bytes".to_owned(), "2000000".into());
        config.properties.insert("fetch.max.bytes".to_owned(), "1000000".into());
    });
    let topic = create(&bus, spec(2)).await;
    let dead = TopicSpec::new(DeadLetters::default().topic_for(&topic).unwrap(), 1).unwrap();
    let dead = create(&bus, dead).await;
    // Offsets 0 to 9 are unreadable, and offset 10 is readable.
    send_zstd(&brokers, &topic, 10);
    let group = GroupId::new(namespace()).unwrap();
    let request =
        || SubscribeRequest::new(group.clone(), [topic.clone()]).unwrap().with_max_buffered_bytes(1 << 20);
    let mut sub = bus.subscribe(request()).await.unwrap();
    let deadline = Instant::now() + 60 * SECOND;
    let (mut bad, mut good, mut other) = (Vec::new(), Vec::new(), 0);
    for n in 0.. {
        assert!(Instant::now() < deadline, "{bad:?} {good:?} {other}");
        // The other partition continues in the meantime.
        let message = Message::new(topic.clone(), format!("{n}")).with_partition(1);
        bus.send(&[message]).await.unwrap();
        let batch = sub.recv(10, SECOND).await.unwrap();
        for message in &batch {
            match message.unreadable() {
                Some((first, code)) => bad.push((first.to_owned(), message.offset, code.to_owned())),
                None if message.partition == 0 => good.push(message.offset),
                None => other += 1,
            }
        }
        bus.send_dead_letters(&batch.decode::<PriceTick>().rejected, &DeadLetters::default()).await.unwrap();
        sub.commit(batch.offsets()).await.unwrap();
        if !good.is_empty() && other > n {
            break;
        }
    }
    assert_eq!(bad, [("0".to_owned(), 9, "bus.redpanda.message.compression".to_owned())]);
    assert_eq!(good, [10]);
    sub.close().await.unwrap();
    let query = GroupQuery::one(group.clone());
    assert_eq!(bus.groups(&query).await.unwrap()[0].lag(), Some(0));
    let letters = all_of(&open(&brokers, |_| {}), &dead).await;
    let letter = letters.iter().find(|letter| letter.headers.get(header::UNREADABLE_FROM).is_some()).unwrap();
    for (name, text) in [
        (header::ORIGIN_PARTITION, "0"),
        (header::UNREADABLE_FROM, "0"),
        (header::ORIGIN_OFFSET, "9"),
        (header::ERROR_CODE, "bus.codec.unreadable"),
        (header::UNREADABLE_CODE, "bus.redpanda.message.compression"),
    ] {
        assert_eq!(letter.headers.get(name).map(|value| &value[..]), Some(text.as_bytes()), "{name}");
    }
    // After a restart, the batch is not received again. A reader without a group skips it as well.
    let mut sub = bus.subscribe(request()).await.unwrap();
    assert!(sub.recv(10, 2 * SECOND).await.unwrap().is_empty());
    sub.close().await.unwrap();
    let from = [(TopicPartition::new(topic, 0), SeekTo::Earliest)];
    let mut reader =
        bus.open_reader(ReaderRequest::new(from).unwrap().with_max_buffered_bytes(1 << 20)).await.unwrap();
    let mut offsets = Vec::new();
    while offsets.len() < 2 {
        assert!(Instant::now() < deadline + 60 * SECOND, "{offsets:?}");
        offsets.extend(reader.recv(10, SECOND).await.unwrap().iter().map(|message| message.offset));
    }
    assert_eq!(offsets, [9, 10]);
    reader.close().await.unwrap();
    bus.close().await.unwrap();
}

/// Sends an encoded batch to partition 0 and returns its first offset.
async fn produce(brokers: &Brokers, topic: &TopicName, batch: &RawBatch) -> u64 {
    let addresses = brokers.config().brokers.unwrap();
    let (address, topic) = (addresses.split(',').next().unwrap().to_owned(), topic.to_string());
    let batch = batch.encode().unwrap();
    let producing = move || {
        // A topic that was created just now may have no leader yet.
        let mut attempts = (0..50).map(|_| {
            let result = kafka::produce(&address, &topic, 0, &batch);
            if result.is_err() {
                std::thread::sleep(SECOND / 10);
            }
            result
        });
        attempts.find(|result| result.as_ref().map_or_else(|e| e.to_string() != "error code 6", |_| true))
    };
    tokio::task::spawn_blocking(producing).await.unwrap().unwrap().unwrap()
}

/// The first and last offset of each unreadable range, and the offsets of the readable messages.
type Ranges = (Vec<(u64, u64)>, Vec<u64>);

/// Reads partition 0 of a topic up to `end`, while messages are sent to partition 1. Returns the ranges of partition 0,
/// and the longest time without a message of partition 1.
async fn skip_unreadable(
    bus: &RedpandaBus,
    topic: &TopicName,
    end: u64,
    limit: Duration,
) -> (Ranges, Duration) {
    let request = member(topic, 10 * SECOND, 60 * SECOND).with_max_buffered_bytes(2 << 20);
    let mut sub = bus.subscribe(request).await.unwrap();
    let (began, mut last, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
    let (mut bad, mut good) = (Vec::new(), Vec::new());
    let mut next = 0;
    while next < end {
        assert!(began.elapsed() < limit, "{bad:?} {good:?}");
        bus.send(&[Message::new(topic.clone(), "1").with_partition(1)]).await.unwrap();
        let batch = sub.recv(1_000, SECOND / 5).await.unwrap();
        for message in &batch {
            if message.partition == 1 {
                longest = longest.max(last.elapsed());
                last = Instant::now();
                continue;
            }
            match message.unreadable() {
                Some((first, _)) => bad.push((first.parse().unwrap(), message.offset)),
                None => good.push(message.offset),
            }
            next = message.offset + 1;
        }
        sub.commit(batch.offsets()).await.unwrap();
    }
    sub.close().await.unwrap();
    eprintln!("{:?} to the end, {longest:?} without a message of partition 1", began.elapsed());
    ((bad, good), longest.max(last.elapsed()))
}

async fn large_unreadable_batch(brokers: Brokers) {
    const RECORDS: u64 = 2_600;
    let bus = open(&brokers, |_| {});
    let topic = create(&bus, spec(2)).await;
    bus.send(&[Message::new(topic.clone(), "0").with_partition(0)]).await.unwrap();
    let bomb = RawBatch::zeros(Codec::Zstd, RECORDS.try_into().unwrap(), 1_000_000).unwrap();
    assert_eq!(produce(&brokers, &topic, &bomb).await, 1);
    bus.send(&[Message::new(topic.clone(), "2").with_partition(0)]).await.unwrap();
    let (received, longest) = skip_unreadable(&bus, &topic, RECORDS + 2, 60 * SECOND).await;
    assert_eq!(received, (vec![(1, RECORDS)], vec![0, RECORDS + 1]));
    assert!(longest < 15 * SECOND, "the other partition waited for {longest:?}");
}

async fn readable_between_unreadable(brokers: Brokers) {
    let bus = open(&brokers, |config| {
        config.properties.insert("receive.message.max.bytes".to_owned(), "2000000".into());
        config.properties.insert("fetch.max.bytes".to_owned(), "1000000".into());
    });
    let topic = create(&bus, spec(2)).await;
    let bomb = RawBatch::zeros(Codec::Zstd, 300, 10_000).unwrap();
    produce(&brokers, &topic, &bomb).await;
    bus.send(&[Message::new(topic.clone(), "1").with_partition(0)]).await.unwrap();
    for _ in 0..2 {
        produce(&brokers, &topic, &bomb).await;
    }
    bus.send(&[Message::new(topic.clone(), "2").with_partition(0)]).await.unwrap();
    let (received, _) = skip_unreadable(&bus, &topic, 902, 60 * SECOND).await;
    assert_eq!(received, (vec![(0, 299), (301, 600), (601, 900)], vec![300, 901]));
}

async fn other_codecs(brokers: Brokers) {
    let bus = open(&brokers, |_| {});
    let topic = create(&bus, spec(2)).await;
    for codec in [Codec::Lz4, Codec::Snappy] {
        let mut batch = RawBatch::zeros(codec, 3, 10).unwrap();
        produce(&brokers, &topic, &batch).await;
        // Java reads one LZ4 frame and ignores the bytes after it. Java reads every Snappy stream, librdkafka only one.
        let empty = RawBatch::zeros(codec, 0, 0).unwrap();
        batch.records.extend(empty.records);
        produce(&brokers, &topic, &batch).await;
    }
    bus.send(&[Message::new(topic.clone(), "1").with_partition(0)]).await.unwrap();
    let (received, _) = skip_unreadable(&bus, &topic, 13, 60 * SECOND).await;
    assert_eq!(received, (vec![(3, 5), (9, 11)], vec![0, 1, 2, 6, 7, 8, 12]));
}

async fn large_gzip_batch(brokers: Brokers) {
    let bus = open(&brokers, |_| {});
    let topic = create(&bus, spec(2)).await;
    produce(&brokers, &topic, &RawBatch::zeros(Codec::Gzip, 300, 1_000_000).unwrap()).await;
    let (received, _) = skip_unreadable(&bus, &topic, 300, 60 * SECOND).await;
    assert_eq!(received, (vec![], (0..300).collect()));
}

/// The broker compresses the batches again, so the batch that would abort this process never reaches it.
async fn recompressed_gzip_members(brokers: Brokers) {
    let bus = open(&brokers, |_| {});
    for compression in ["lz4", "zstd"] {
        let topic = create(&bus, spec(2).with_setting("compression.type", compression)).await;
        let mut batch = RawBatch::zeros(Codec::Gzip, 3, 10).unwrap();
        let empty = RawBatch::zeros(Codec::Gzip, 0, 0).unwrap();
        batch.records = [empty.records, batch.records].concat();
        produce(&brokers, &topic, &batch).await;
        bus.send(&[Message::new(topic.clone(), "1").with_partition(0)]).await.unwrap();
        let (received, _) = skip_unreadable(&bus, &topic, 4, 60 * SECOND).await;
        assert_eq!(received, (vec![], vec![0, 1, 2, 3]), "{compression}");
    }
}

async fn deleted_dead_letters(brokers: Brokers) {
    let bus = open(&brokers, |_| {});
    let topic = create(&bus, spec(1)).await;
    let dead = TopicSpec::new(DeadLetters::default().topic_for(&topic).unwrap(), 1).unwrap();
    let name = create(&bus, dead.clone()).await;
    let store = Arc::new(MemoryStore::default());
    store.ensure_schema().await.unwrap();
    let config = IngestConfig::default().with_dead_letter_topic(dead);
    let request = member(&topic, 10 * SECOND, 60 * SECOND);
    let mut ingest = Ingest::open(bus.clone(), store, PriceTick::DATASET, request, config).await.unwrap();
    let progress = ingest.progress().clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(async move {
        let result = ingest.run_until(async { drop(stopped.await) }).await;
        ingest.close().await?;
        result
    });
    for letters in 1..=2 {
        let deadline = Instant::now() + 60 * SECOND;
        bus.send(&[Message::new(topic.clone(), "no record")]).await.unwrap();
        while progress.dead_letters() < letters {
            assert!(!running.is_finished() && Instant::now() < deadline, "{:?}", running.await);
            tokio::time::sleep(SECOND / 10).await;
        }
        if letters == 1 {
            let outcomes = bus.delete_topics(std::slice::from_ref(&name)).await.unwrap();
            for outcome in outcomes {
                outcome.result.unwrap();
            }
        }
    }
    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
    assert_eq!(all_of(&bus, &name).await.len(), 1);
}

/// Sends messages in a transaction and ends the transaction, which writes a marker. Readers see nothing of an aborted
/// transaction.
fn send_in_transaction(
    brokers: &Brokers,
    topic: &TopicName,
    partition: i32,
    numbers: std::ops::Range<usize>,
    commits: bool,
) {
    let producer = send_in_open_transaction(brokers, topic, partition, numbers);
    if commits {
        producer.commit_transaction(30 * SECOND).unwrap();
    } else {
        producer.abort_transaction(30 * SECOND).unwrap();
    }
}

/// Reads and commits until the lag of the group is 0. Returns the received messages.
async fn drain(bus: &RedpandaBus, sub: &mut dyn Subscription, group: &str) -> Vec<ReceivedMessage> {
    let query = GroupQuery::one(GroupId::new(group).unwrap());
    let deadline = Instant::now() + 60 * SECOND;
    let mut all = Vec::new();
    loop {
        let batch = sub.recv(1_000, SECOND).await.unwrap();
        sub.commit(batch.offsets()).await.unwrap();
        all.extend(batch.into_messages());
        let groups = bus.groups(&query).await.unwrap();
        if groups[0].lag() == Some(0) && sub.assignment().await.unwrap().lag() == 0 {
            return all;
        }
        assert!(Instant::now() < deadline, "{} messages received: {groups:?}", all.len());
    }
}

async fn markers(brokers: Brokers) {
    let bus = open(&brokers, |_| {});
    let topic = create(&bus, spec(3)).await;
    send_in_transaction(&brokers, &topic, 0, 0..10, true);
    send_in_transaction(&brokers, &topic, 1, 0..10, false);
    let mut sub = bus.subscribe(member(&topic, 10 * SECOND, 60 * SECOND)).await.unwrap();
    let mut numbers: Vec<_> = drain(&bus, &mut *sub, topic.as_str()).await.iter().map(number).collect();
    assert_eq!(numbers, (0..10).collect::<Vec<_>>());
    // The group also receives messages after the markers.
    let behind: Vec<_> =
        (0..3).map(|p| Message::new(topic.clone(), (10 + p).to_string()).with_partition(p)).collect();
    bus.send(&behind).await.unwrap();
    send_in_transaction(&brokers, &topic, 2, 0..5, false);
    numbers = drain(&bus, &mut *sub, topic.as_str()).await.iter().map(number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [10, 11, 12]);
    // A reader without a group reaches the ends as well.
    assert_eq!(all_of(&bus, &topic).await.len(), 13);
    sub.close().await.unwrap();
}

async fn aborted_before_an_open_transaction(brokers: Brokers) {
    let bus = open(&brokers, |_| {});
    let topic = create(&bus, spec(1)).await;
    let aborted = send_in_open_transaction(&brokers, &topic, 0, 0..5);
    let open_one = send_in_open_transaction(&brokers, &topic, 0, 5..8);
    aborted.abort_transaction(30 * SECOND).unwrap();
    let mut sub = bus.subscribe(member(&topic, 10 * SECOND, 60 * SECOND)).await.unwrap();
    let query = GroupQuery::one(GroupId::new(topic.as_str()).unwrap());
    // The reader skips the aborted messages. The open transaction counts in the lag and in the end of the log.
    for _ in 0..4 {
        let batch = sub.recv(10, SECOND).await.unwrap();
        assert!(batch.is_empty());
        sub.commit(batch.offsets()).await.unwrap();
        let group = bus.groups(&query).await.unwrap().remove(0);
        let lag = group.lag();
        assert!(lag.is_some_and(|lag| lag >= 3), "the lag is {lag:?}");
        assert_eq!(group.partitions[0].last_stable, Some(5));
        let listed = bus.topics().await.unwrap();
        let high = listed.iter().find(|info| info.name == topic).unwrap().partitions[0].high;
        assert!(high >= 8, "the end is {high}");
    }
    open_one.commit_transaction(30 * SECOND).unwrap();
    let numbers: Vec<_> = drain(&bus, &mut *sub, topic.as_str()).await.iter().map(number).collect();
    assert_eq!(numbers, [5, 6, 7], "no message of the open transaction was skipped");
    // An aborted transaction leaves no lag either.
    let open_one = send_in_open_transaction(&brokers, &topic, 0, 8..11);
    let lag = bus.groups(&query).await.unwrap()[0].lag();
    assert!(lag.is_some_and(|lag| lag >= 3), "the lag is {lag:?}");
    open_one.abort_transaction(30 * SECOND).unwrap();
    assert!(drain(&bus, &mut *sub, topic.as_str()).await.is_empty());
    sub.close().await.unwrap();
}

async fn compacted(brokers: Brokers) {
    let bus = open(&brokers, |_| {});
    let settings =
        [("segment.ms", "100"), ("min.cleanable.dirty.ratio", "0.01"), ("max.compaction.lag.ms", "100")];
    let spec =
        settings.into_iter().fold(spec(1).with_cleanup(CleanupPolicy::Compact), |spec, (name, value)| {
            spec.with_setting(name, value)
        });
    let topic = create(&bus, spec).await;
    for part in 0..20 {
        // The last message is in a segment that is not compacted.
        let batch: Vec<_> = (part * 10..part * 10 + 10)
            .map(|n| Message::new(topic.clone(), n.to_string()).with_key(format!("k{}", n % 2)))
            .collect();
        bus.send(&batch).await.unwrap();
        tokio::time::sleep(SECOND / 5).await;
    }
    let deadline = Instant::now() + 90 * SECOND;
    let mut left = 200;
    while left > 100 {
        assert!(Instant::now() < deadline, "nothing was compacted");
        tokio::time::sleep(SECOND).await;
        left = all_of(&bus, &topic).await.len();
    }
    let mut sub = bus.subscribe(member(&topic, 10 * SECOND, 60 * SECOND)).await.unwrap();
    let numbers: Vec<_> = drain(&bus, &mut *sub, topic.as_str()).await.iter().map(number).collect();
    assert!(numbers.len() <= left && numbers.ends_with(&[198, 199]), "{numbers:?}");
    sub.close().await.unwrap();
}

async fn markers_of_two_topics(brokers: Brokers) {
    let bus = open(&brokers, |_| {});
    let (first, second) = (create(&bus, spec(2)).await, create(&bus, spec(2)).await);
    let group = GroupId::new(first.as_str()).unwrap();
    let request = SubscribeRequest::new(group, [first.clone(), second.clone()]).unwrap();
    let mut sub = bus.subscribe(request).await.unwrap();
    let mut received = Vec::new();
    for round in 0..6 {
        // One topic ends with a marker, while the other topic receives messages in the partition with the same number.
        let (marked, other) = if round % 2 == 0 { (&first, &second) } else { (&second, &first) };
        let numbers = round * 10..round * 10 + 5;
        send_in_transaction(&brokers, marked, 0, numbers.clone(), round % 3 != 0);
        let batch: Vec<_> = (round * 10 + 5..round * 10 + 10)
            .map(|n| Message::new(other.clone(), n.to_string()).with_partition(0))
            .collect();
        bus.send(&batch).await.unwrap();
        if round % 2 == 1 {
            received.extend(drain(&bus, &mut *sub, first.as_str()).await);
        }
    }
    let mut numbers: Vec<_> = received.iter().map(number).collect();
    numbers.sort_unstable();
    let wanted: Vec<_> = (0..60).filter(|n| n % 10 >= 5 || (n / 10) % 3 != 0).collect();
    assert_eq!(numbers, wanted);
    sub.close().await.unwrap();
}

async fn header_names(brokers: Brokers) {
    let bus = open(&brokers, |_| {});
    let topic = create(&bus, spec(1)).await;
    let addresses = brokers.config().brokers.unwrap();
    let address = addresses.split(',').next().unwrap().to_owned();
    bus.send(&[numbered(&topic, 0)]).await.unwrap();
    let name = topic.clone();
    let poison = RawMessage::new("1").with_header([0xff, 0xfe], "v").with_header("good", "w");
    let batch = poison.encode().unwrap();
    tokio::task::spawn_blocking(move || kafka::produce(&address, name.as_str(), 0, &batch))
        .await
        .unwrap()
        .unwrap();
    bus.send(&[numbered(&topic, 2)]).await.unwrap();
    let received = all_of(&bus, &topic).await;
    assert_eq!(received.len(), 3);
    assert_eq!(received.iter().map(|m| m.headers_unreadable).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(received[1].headers.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>(), ["good"]);
}

/// Returns a request for a member of the group with the name of the topic.
fn member(topic: &TopicName, session: Duration, max_poll_interval: Duration) -> SubscribeRequest {
    let group = GroupId::new(topic.as_str()).unwrap();
    SubscribeRequest::new(group, [topic.clone()]).unwrap().with_timeouts(session, max_poll_interval).unwrap()
}

fn expect<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind) -> Error {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{}", error.report());
    error
}

async fn killed_broker(brokers: Brokers, spare: Spare) {
    const COUNT: usize = 100_000;
    let bus = open(&brokers, |config| config.delivery_timeout = Duration::from_mins(1));
    let topic = create(&bus, spec(6)).await;
    let mut sub = bus.subscribe(member(&topic, 20 * SECOND, 60 * SECOND)).await.unwrap();
    let counter = Arc::new(Counter::default());
    // On a fast machine, all messages would be sent before the kill.
    counter.hold.store(COUNT * 9 / 10, Ordering::Relaxed);
    let sending = counter.send_all(&bus, &topic, COUNT);
    let killing = async {
        counter.reached(COUNT / 3).await;
        let spare = spare.run_action("kill").await;
        counter.hold.store(0, Ordering::Relaxed);
        assert!(counter.acknowledged.load(Ordering::Relaxed) < COUNT, "it was killed too late");
        spare.run_action("start").await
    };
    let reading = follow(&mut *sub, COUNT, 120 * SECOND);
    let ((), spare, read) = tokio::join!(sending, killing, reading);
    // The client resent all messages without intervention, and none of them twice.
    assert_eq!((counter.not_sent.load(Ordering::Relaxed), counter.unknown()), (0, BTreeMap::new()));
    let log = all_of(&bus, &topic).await;
    counter.check(&log, COUNT);
    assert_eq!(log.len(), COUNT);
    assert_ordered(&read);
    sub.close().await.unwrap();
    assert_eq!(bus.close().await.unwrap().unknown, 0);
    drop(spare);
}

async fn down_beyond_delivery_timeout(brokers: Brokers, spare: Spare) {
    const COUNT: usize = 40_000;
    let bus = open(&brokers, |config| config.delivery_timeout = Duration::from_millis(1500));
    let topic = create(&bus, spec(6)).await;
    let counter = Arc::new(Counter::default());
    // On a fast machine, all messages would be sent before the kills.
    counter.hold.store(COUNT / 2, Ordering::Relaxed);
    let sending = counter.send_all(&bus, &topic, COUNT);
    let killing = async {
        let mut spare = spare;
        for part in 1..=2 {
            counter.reached(COUNT * part / 3).await;
            spare = spare.run_action("kill").await;
            counter.hold.store(if part == 1 { COUNT * 5 / 6 } else { 0 }, Ordering::Relaxed);
            tokio::time::sleep(3 * SECOND).await;
            spare = spare.run_action("start").await;
        }
        spare
    };
    let ((), spare) = tokio::join!(sending, killing);
    let (unknown, not_sent) = (counter.unknown(), counter.not_sent.load(Ordering::Relaxed));
    assert!(
        !unknown.is_empty(),
        "the delivery timeout passed, {not_sent} were not sent, and none was unknown"
    );
    counter.check(&all_of(&bus, &topic).await, COUNT);
    bus.close().await.unwrap();
    drop(spare);
}

async fn down_beyond_session_timeout(brokers: Brokers, spare: Spare) {
    let session = 3 * SECOND;
    let bus = open(&brokers, |config| {
        (config.delivery_timeout, config.commit_timeout) = (Duration::from_secs(30), Duration::from_secs(2));
    });
    let topic = create(&bus, spec(3)).await;
    let counter = Arc::new(Counter::default());
    counter.send(&bus, &topic, (0..300).collect()).await;
    let mut sub = bus.subscribe(member(&topic, session, 60 * SECOND)).await.unwrap();
    let mut got: Vec<ReceivedMessage> = Vec::new();
    let mut committed = Offsets::new();
    while got.len() < 200 {
        let batch = sub.recv(50, SECOND).await.unwrap();
        got.extend(batch.iter().cloned());
        if got.len() <= 100 {
            committed.merge(&sub.commit(batch.offsets()).await.unwrap().stored);
        }
    }
    let spare = spare.run_action("kill").await;
    // Without the broker, `assignment` and `commit` fail within their timeouts.
    let owned = sub.assignment();
    let began = Instant::now();
    expect(owned.await, ErrorKind::Unavailable);
    assert!(began.elapsed() < 4 * SECOND, "assignment took {:?}", began.elapsed());
    let began = Instant::now();
    let error = sub.commit(&committed).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{}", error.report());
    assert!(error.retry().is_retryable() && began.elapsed() < 4 * SECOND, "{:?}", began.elapsed());
    // For longer than the session timeout, each `recv` returns the error after its wait, and the subscription stays
    // open.
    let (began, mut rejected) = (Instant::now(), 0);
    while began.elapsed() < 2 * session {
        let began = Instant::now();
        match sub.recv(50, SECOND / 2).await {
            Ok(batch) => got.extend(batch.iter().cloned()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.report());
                assert!(error.retry().is_retryable());
                rejected += 1;
            }
        }
        assert!(began.elapsed() < 2 * SECOND, "a recv of half a second took {:?}", began.elapsed());
    }
    assert!(rejected >= 5, "recv returned {rejected} errors while the broker was down");
    let spare = spare.run_action("start").await;
    counter.send(&bus, &topic, (300..400).collect()).await;
    let distinct = |got: &[ReceivedMessage]| got.iter().map(number).collect::<BTreeSet<_>>().len();
    let deadline = Instant::now() + 40 * SECOND;
    while distinct(&got) < 400 {
        assert!(Instant::now() < deadline, "{} messages received", distinct(&got));
        match sub.recv(50, SECOND).await {
            Ok(batch) => got.extend(batch.iter().cloned()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.report()),
        }
    }
    // Only uncommitted messages were redelivered.
    let mut known = BTreeSet::new();
    for message in &got {
        let place = TopicPartition::new(topic.clone(), message.partition);
        let before = committed.get(&place).is_some_and(|next| message.offset < next);
        assert!(known.insert(number(message)) || !before, "{message:?} was committed but received again");
    }
    assert_ordered(&got);
    let assignment = sub.assignment().await.unwrap();
    let ends: Offsets = assignment.partitions.into_iter().map(|p| (p.partition, p.position)).collect();
    let stored = sub.commit(&ends).await.unwrap();
    assert_eq!((stored.stored, stored.lost), (ends, vec![]));
    sub.close().await.unwrap();
    bus.close().await.unwrap();
    drop(spare);
}

async fn no_broker_reachable(brokers: Brokers, spare: Spare) {
    let spare = spare.run_action("kill").await;
    let limit = SECOND;
    let bus = open(&brokers, |config| config.request_timeout = Duration::from_secs(1));
    let began = Instant::now();
    let topic = TopicName::new(namespace()).unwrap();
    let measured = |what: &'static str, began: Instant| {
        assert!(began.elapsed() < 3 * limit + SECOND, "{what} took {:?}", began.elapsed());
        Instant::now()
    };
    expect(bus.ping().await, ErrorKind::Unavailable);
    let began = measured("ping", began);
    let batch = [Message::new(topic.clone(), "x")];
    let report = bus.publish(&batch, PublishOptions::NONE).await.unwrap();
    let failure = report.into_outcomes().pop().unwrap().unwrap_err();
    assert_eq!((failure.state, failure.error.kind()), (DeliveryState::NotSent, ErrorKind::Unavailable));
    let began = measured("publish", began);
    expect(bus.subscribe(member(&topic, 6 * SECOND, 60 * SECOND)).await, ErrorKind::Unavailable);
    let began = measured("subscribe", began);
    let place = (TopicPartition::new(topic.clone(), 0), SeekTo::Earliest);
    expect(bus.open_reader(ReaderRequest::new([place]).unwrap()).await, ErrorKind::Unavailable);
    let began = measured("open_reader", began);
    expect(bus.topics().await, ErrorKind::Unavailable);
    let began = measured("topics", began);
    expect(bus.groups(&GroupQuery::new(Selection::All)).await, ErrorKind::Unavailable);
    let began = measured("groups", began);
    let group = GroupQuery::one(GroupId::new("g").unwrap());
    expect(bus.groups(&group).await, ErrorKind::Unavailable);
    let began = measured("groups of one", began);
    let new = TopicSpec::new(topic.clone(), 2).unwrap();
    expect(bus.create_topics(std::slice::from_ref(&new)).await, ErrorKind::Unavailable);
    let began = measured("create_topics", began);
    expect(bus.delete_topics(std::slice::from_ref(&topic)).await, ErrorKind::Unavailable);
    let began = measured("delete_topics", began);
    expect(bus.wait_ready(2 * limit).await, ErrorKind::Unavailable);
    measured("wait_ready", began);
    // The same bus works as soon as a broker is available.
    let ready = tokio::spawn({
        let bus = bus.clone();
        async move { bus.wait_ready(60 * SECOND).await }
    });
    let spare = spare.run_action("start").await;
    ready.await.unwrap().unwrap();
    create(&bus, new).await;
    bus.send(&batch).await.unwrap();
    let mut sub = bus.subscribe(member(&topic, 6 * SECOND, 60 * SECOND)).await.unwrap();
    assert_eq!(sub.recv(10, 10 * SECOND).await.unwrap().len(), 1);
    bus.close().await.unwrap();
    drop(spare);
}

async fn close_and_drop_without_broker(brokers: Brokers, spare: Spare) {
    const OPEN: usize = 50;
    let change = |config: &mut RedpandaConfig| {
        (config.delivery_timeout, config.close_timeout) =
            (Duration::from_mins(1), Duration::from_millis(1500));
    };
    let (bus, dropped) = (open(&brokers, change), open(&brokers, change));
    let topic = create(&bus, spec(2)).await;
    for bus in [&bus, &dropped] {
        bus.send(&[numbered(&topic, 0)]).await.unwrap();
    }
    let subscribed = async |bus: &RedpandaBus| {
        let mut sub = bus.subscribe(member(&topic, 6 * SECOND, 60 * SECOND)).await.unwrap();
        let _ = sub.recv(1, SECOND / 10).await.unwrap();
        sub
    };
    let mut sub = subscribed(&bus).await;
    let group = member(&TopicName::new(namespace()).unwrap(), 6 * SECOND, 60 * SECOND).group;
    let mut request = member(&topic, 6 * SECOND, 60 * SECOND);
    request.group = group;
    let dropped_sub = dropped.subscribe(request).await.unwrap();
    let spare = spare.run_action("kill").await;
    let publish = |bus: &Arc<RedpandaBus>| {
        let (bus, topic) = (bus.clone(), topic.clone());
        tokio::spawn(async move {
            let batch: Vec<_> = (0..OPEN).map(|n| numbered(&topic, n)).collect();
            bus.publish(&batch, PublishOptions::NONE).await
        })
    };
    // Close the bus.
    let publishing = publish(&bus);
    tokio::time::sleep(SECOND / 2).await;
    let began = Instant::now();
    let report = bus.close().await.unwrap();
    assert!(began.elapsed() < 5 * SECOND, "close took {:?}", began.elapsed());
    assert_eq!(report.unknown, OPEN);
    let report = publishing.await.unwrap().unwrap();
    assert_eq!((report.len(), report.failed(DeliveryState::Unknown).count()), (OPEN, OPEN), "{report:?}");
    // `close` purged the messages. Otherwise, they would wait for the delivery timeout.
    let purged = |failure: &DeliveryError| failure.error.code() == "bus.redpanda.purged";
    assert!(report.into_outcomes().iter().all(|outcome| outcome.as_ref().is_err_and(purged)));
    expect(sub.recv(1, SECOND).await, ErrorKind::Closed);
    expect(bus.ping().await, ErrorKind::Closed);
    // Drop the bus.
    let publishing = publish(&dropped);
    tokio::time::sleep(SECOND / 2).await;
    publishing.abort();
    let _ = publishing.await;
    let began = Instant::now();
    drop(dropped_sub);
    drop(sub);
    assert_eq!(Arc::strong_count(&dropped), 1);
    drop(dropped);
    drop(bus);
    assert!(began.elapsed() < SECOND / 2, "dropping took {:?}", began.elapsed());
    drop(spare);
}

async fn retention(brokers: Brokers, spare: Spare) {
    let bus = open(&brokers, |_| {});
    let spec = spec(1).with_setting("segment.bytes", "1048576");
    let topic = create(&bus, spec).await;
    // Incompressible data. Otherwise an entire batch would fit into the reader's buffer.
    let noise = |_| std::iter::repeat_with(|| fastrand::u8(..)).take(20_000).collect::<Vec<_>>();
    let big = |n: usize| Message::new(topic.clone(), noise(n)).with_partition(0);
    let low = async || {
        let info = bus.topics().await.unwrap().into_iter().find(|info| info.name == topic).unwrap();
        info.partitions[0].low
    };
    bus.send(&(0..300).map(big).collect::<Vec<_>>()).await.unwrap();
    let small = |start: OffsetReset, name: &str| {
        let mut request =
            member(&topic, 6 * SECOND, 60 * SECOND).with_offset_reset(start).with_max_buffered_bytes(40_000);
        request.group = GroupId::new(format!("{topic}-{name}")).unwrap();
        request
    };
    let mut sub = bus.subscribe(small(OffsetReset::Earliest, "earliest")).await.unwrap();
    let mut strict = bus.subscribe(small(OffsetReset::Earliest, "fail")).await.unwrap();
    let first = sub.recv(5, 5 * SECOND).await.unwrap();
    sub.commit(first.offsets()).await.unwrap();
    let read = strict.recv(5, 5 * SECOND).await.unwrap();
    strict.commit(read.offsets()).await.unwrap();
    strict.close().await.unwrap();
    assert_eq!((first.len(), read.len()), (5, 5));
    // All messages are removed, whether they were read or not.
    let options =
        format!("--alter --entity-type topics --entity-name {topic} --add-config retention.ms=1000");
    tool(&brokers, "kafka.admin.ConfigCommand", &options, "").await;
    let deadline = Instant::now() + 60 * SECOND;
    while low().await < 300 {
        assert!(Instant::now() < deadline, "the oldest message is {}", low().await);
        tokio::time::sleep(SECOND / 4).await;
    }
    let options = format!("--alter --entity-type topics --entity-name {topic} --delete-config retention.ms");
    tool(&brokers, "kafka.admin.ConfigCommand", &options, "").await;
    bus.send(&(300..305).map(big).collect::<Vec<_>>()).await.unwrap();
    let (mut got, mut resets) = (Vec::new(), Vec::new());
    let deadline = Instant::now() + 20 * SECOND;
    while got.last() != Some(&304) {
        assert!(Instant::now() < deadline, "received {got:?}, resets {resets:?}");
        let batch = sub.recv(100, SECOND).await.unwrap();
        resets.extend(batch.events().iter().filter_map(|event| match event {
            SubscriptionEvent::Reset { from, to, .. } => Some((*from, *to)),
            _ => None,
        }));
        got.extend(batch.iter().map(|message| message.offset));
    }
    let [(from, to)] = resets[..] else { panic!("resets {resets:?}, received {got:?}") };
    assert!((5..300).contains(&from) && (300..=304).contains(&to), "{from} to {to}");
    assert!(got.is_sorted() && got.iter().all(|offset| *offset < from || *offset >= to), "{got:?}");
    // With `OffsetReset::Error`, `recv` returns an error.
    let rejected = async {
        let mut strict = bus.subscribe(small(OffsetReset::Error, "fail")).await?;
        strict.recv(1, 10 * SECOND).await
    };
    let error = expect(rejected.await, ErrorKind::NotFound);
    assert_eq!(error.code(), "bus.redpanda.position");
    bus.close().await.unwrap();
    drop(spare);
}

async fn nodes_lost(brokers: Brokers, spare: Spare) {
    let bus = open(&brokers, |config| config.delivery_timeout = Duration::from_secs(15));
    let spec = spec(6).with_replication(3).with_setting("min.insync.replicas", "2");
    let topic = create(&bus, spec).await;
    let counter = Arc::new(Counter::default());
    counter.send(&bus, &topic, (0..500).collect()).await;
    // The bus continues to work without one node.
    let spare = spare.run_action("kill 1").await;
    for n in (500..1_500).step_by(100) {
        counter.send(&bus, &topic, (n..n + 100).collect()).await;
    }
    assert_eq!((counter.not_sent.load(Ordering::Relaxed), counter.unknown()), (0, BTreeMap::new()));
    // Without two nodes, no message is acknowledged.
    let spare = spare.run_action("kill 2").await;
    let hasty = open(&brokers, |config| config.delivery_timeout = Duration::from_secs(4));
    let batch: Vec<_> = (1_500..1_600).map(|n| numbered(&topic, n)).collect();
    let mut uncertain = BTreeMap::new();
    for bus in [&bus, &hasty] {
        let report = bus.publish(&batch, PublishOptions::NONE).await.unwrap();
        assert_eq!(report.len(), batch.len());
        for (n, outcome) in (1_500..1_600).zip(report.into_outcomes()) {
            let failure = outcome.unwrap_err();
            assert!(failure.error.retry().is_retryable(), "{}", failure.error.report());
            if failure.state == DeliveryState::Unknown {
                *uncertain.entry(n).or_insert(0) += 1;
            }
        }
    }
    let spare = spare.run_action("start").await;
    counter.send(&bus, &topic, (1_500..2_000).collect()).await;
    let log = all_of(&bus, &topic).await;
    let mut times: BTreeMap<usize, usize> = BTreeMap::new();
    for message in &log {
        *times.entry(number(message)).or_default() += 1;
    }
    let unknown = counter.unknown();
    for n in 0..2_000 {
        let explained = [&uncertain, &unknown].iter().filter_map(|map| map.get(&n)).sum::<usize>();
        let found = times.get(&n).copied().unwrap_or(0);
        assert!(
            (1..=1 + explained).contains(&found),
            "{n} is there {found} times, {explained} of them uncertain"
        );
    }
    assert_ordered(&log);
    for bus in [bus, hasty] {
        bus.close().await.unwrap();
    }
    drop(spare);
}

async fn killed_coordinator(brokers: Brokers, spare: Spare) {
    const COUNT: usize = 20_000;
    let bus = open(&brokers, |config| {
        (config.delivery_timeout, config.commit_timeout) = (Duration::from_mins(1), Duration::from_secs(20));
    });
    let topic = create(&bus, spec(6).with_replication(3)).await;
    let request = member(&topic, 20 * SECOND, 60 * SECOND);
    let group = request.group.clone();
    let mut sub = bus.subscribe(request).await.unwrap();
    let coordinator = async || {
        let options = format!("--describe --group {group} --state");
        let states = table(&tool(&brokers, "consumer.group.ConsumerGroupCommand", &options, "").await);
        // The header of the table has one word more than its rows: COORDINATOR (ID).
        let id = states[0].values().find(|word| word.starts_with('(')).unwrap();
        id.trim_matches(['(', ')']).to_owned()
    };
    let first = coordinator().await;
    let counter = Arc::new(Counter::default());
    let sending = async {
        for n in (0..COUNT).step_by(200) {
            counter.send(&bus, &topic, (n..n + 200).collect()).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let killing = async {
        counter.reached(COUNT / 5).await;
        spare.run_action(format!("kill {first}")).await
    };
    let reading = async {
        let (mut seen, mut events) = (Vec::new(), Vec::new());
        let deadline = Instant::now() + 90 * SECOND;
        while seen.len() < COUNT {
            assert!(Instant::now() < deadline, "{} messages received", seen.len());
            // No failure of the coordinator is an error for `recv`, so the loop of a writer continues.
            let batch = sub.recv(500, SECOND).await.unwrap();
            seen.extend(batch.iter().cloned());
            events.extend_from_slice(batch.events());
            sub.commit(batch.offsets()).await.unwrap();
        }
        (seen, events)
    };
    let ((), spare, (seen, events)) = tokio::join!(sending, killing, reading);
    assert_eq!((counter.not_sent.load(Ordering::Relaxed), counter.unknown()), (0, BTreeMap::new()));
    // All messages were committed, so no message was redelivered.
    counter.check(&seen, COUNT);
    assert!(events.is_empty(), "the membership stays: {events:?}");
    let second = coordinator().await;
    assert_ne!(first, second);
    let info = bus.groups(&GroupQuery::one(group)).await.unwrap().pop().unwrap();
    assert_eq!((info.members.len(), info.lag()), (1, Some(0)), "{info:?}");
    sub.close().await.unwrap();
    bus.close().await.unwrap();
    drop(spare);
}

/// Runs in a separate process: writes received messages to the output, commits three batches, receives a fourth batch,
/// and waits to be killed.
fn child_reader(arguments: &str) {
    let [addresses, topic, group] = arguments.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{arguments}")
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let bus = RedpandaBus::open(config(addresses)).unwrap();
        let topic = TopicName::new(topic).unwrap();
        let request = SubscribeRequest::new(GroupId::new(group).unwrap(), [topic]).unwrap();
        let mut sub = bus.subscribe(request.with_timeouts(3 * SECOND, 60 * SECOND).unwrap()).await.unwrap();
        let mut batches = 0;
        loop {
            let batch = sub.recv(70, SECOND).await.unwrap();
            if batch.is_empty() {
                continue;
            }
            let mut out = std::io::stdout().lock();
            for message in &batch {
                writeln!(out, "wrote {} {}", message.partition, message.offset).unwrap();
            }
            out.flush().unwrap();
            drop(out);
            batches += 1;
            if batches > 3 {
                println!("hangs");
                std::future::pending::<()>().await;
            }
            for (partition, next) in sub.commit(batch.offsets()).await.unwrap().stored.iter() {
                println!("committed {} {next}", partition.partition);
            }
        }
    });
}

async fn killed_reader(brokers: Brokers) {
    const COUNT: usize = 1_000;
    let bus = open(&brokers, |_| {});
    let topic = create(&bus, spec(3)).await;
    let counter = Counter::default();
    counter.send(&bus, &topic, (0..COUNT).collect()).await;
    let arguments = format!("{} {topic} {topic}", brokers.addresses());
    let (written, committed) = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.env(READER, arguments).stdout(Stdio::piped()).spawn().unwrap();
        let (mut written, mut committed) = (BTreeSet::new(), BTreeMap::new());
        for line in BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap()) {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["wrote", partition, offset] => {
                    written.insert((partition.parse::<u32>().unwrap(), offset.parse::<u64>().unwrap()));
                }
                ["committed", partition, next] => {
                    committed.insert(partition.parse::<u32>().unwrap(), next.parse::<u64>().unwrap());
                }
                _ => break,
            }
        }
        // Sends SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
        (written, committed)
    })
    .await
    .unwrap();
    let mut sub = bus.subscribe(member(&topic, 3 * SECOND, 60 * SECOND)).await.unwrap();
    let left = |place: &(u32, u64)| committed.get(&place.0).is_none_or(|next| place.1 >= *next);
    let wanted: BTreeSet<_> =
        all_of(&bus, &topic).await.iter().map(|m| (m.partition, m.offset)).filter(left).collect();
    assert!(written.iter().any(left) && wanted.len() < COUNT, "{} written, {committed:?}", written.len());
    let mut got = Vec::new();
    let deadline = Instant::now() + 40 * SECOND;
    while got.len() < wanted.len() {
        assert!(Instant::now() < deadline, "{} of {} messages received", got.len(), wanted.len());
        got.extend(sub.recv(500, SECOND).await.unwrap().iter().map(|m| (m.partition, m.offset)));
    }
    got.extend(sub.recv(500, SECOND).await.unwrap().iter().map(|m| (m.partition, m.offset)));
    // Exactly the uncommitted messages are redelivered, each once.
    assert_eq!((got.len(), got.into_iter().collect::<BTreeSet<_>>()), (wanted.len(), wanted));
    sub.close().await.unwrap();
    delete_topic(&bus, topic).await;
}

/// Deletes the topic of a trial on shared brokers, and closes the bus.
async fn delete_topic(bus: &RedpandaBus, topic: TopicName) {
    bus.delete_topics(&[topic]).await.unwrap();
    bus.close().await.unwrap();
}

/// Members without messages also receive every change, and leave immediately.
async fn idle_members(brokers: Brokers) {
    let bus = open(&brokers, |_| {});
    let topic = create(&bus, spec(1)).await;
    let mut owner = bus.subscribe(member(&topic, 6 * SECOND, 30 * SECOND)).await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut joining = Box::pin(bus.subscribe(member(&topic, 6 * SECOND, 30 * SECOND)));
        // The owner is polled, as in a real program, and so takes part in the rebalance.
        let joined = loop {
            tokio::select! {
                joined = &mut joining => break joined.unwrap(),
                batch = owner.recv(1, SECOND / 5) => drop(batch.unwrap()),
            }
        };
        drop(joining);
        idle.push(joined);
    }
    for mut leaving in idle {
        leaving.recv(1, SECOND / 10).await.unwrap();
        tokio::time::sleep(SECOND / 2).await;
        let began = Instant::now();
        leaving.close().await.unwrap();
        assert!(began.elapsed() < 5 * SECOND, "leaving took {:?}", began.elapsed());
    }
    owner.close().await.unwrap();
    drop(bus.delete_topics(std::slice::from_ref(&topic)).await.unwrap());
    bus.close().await.unwrap();
}

async fn stuck_reader(brokers: Brokers, name: Option<&str>) {
    let (session, max_poll_interval) = (3 * SECOND, 4 * SECOND);
    let (bus, other) = (open(&brokers, |_| {}), open(&brokers, |_| {}));
    let topic = create(&bus, spec(4)).await;
    let counter = Counter::default();
    counter.send(&bus, &topic, (0..400).collect()).await;
    let mut request = member(&topic, session, max_poll_interval);
    if let Some(name) = name {
        request = request.with_group_instance_id(GroupInstanceId::new(name).unwrap());
    }
    let mut one = bus.subscribe(request).await.unwrap();
    let held = one.recv(100, 5 * SECOND).await.unwrap();
    assert!(!held.is_empty());
    // The member hangs. Another member joins, and owns all partitions as soon as the maximum poll interval has passed.
    let began = Instant::now();
    let mut two = other.subscribe(member(&topic, session, max_poll_interval)).await.unwrap();
    let taken = follow(&mut *two, 400, 20 * SECOND).await;
    assert!(began.elapsed() < max_poll_interval + 8 * SECOND, "taken over after {:?}", began.elapsed());
    assert!(taken.len() == 400, "{} messages: each once", taken.len());
    // The member returns. It no longer owns its partitions, and receives the reason.
    let late = one.commit(held.offsets()).await.unwrap();
    let lost: Vec<_> = held.offsets().iter().map(|(partition, _)| partition.clone()).collect();
    assert_eq!((late.stored.is_empty(), late.lost), (true, lost));
    let back = tokio::spawn(async move {
        let mut events = Vec::new();
        let mut got = Vec::new();
        let deadline = Instant::now() + 30 * SECOND;
        while Instant::now() < deadline {
            let batch = one.recv(100, SECOND / 4).await.unwrap();
            events.extend_from_slice(batch.events());
            got.extend(batch.iter().map(number));
            one.commit(batch.offsets()).await.unwrap();
            if !got.is_empty() {
                break;
            }
        }
        (one, events, got)
    });
    let shared = Mutex::new(BTreeSet::new());
    let mut next = 400;
    while !back.is_finished() {
        counter.send(&bus, &topic, (next..next + 40).collect()).await;
        next += 40;
        let batch = two.recv(100, SECOND / 4).await.unwrap();
        shared.lock().unwrap().extend(batch.iter().map(number));
        two.commit(batch.offsets()).await.unwrap();
    }
    let (mut one, events, got) = back.await.unwrap();
    assert!(events.contains(&SubscriptionEvent::MaxPollIntervalExceeded), "{events:?}");
    let gained = events
        .iter()
        .any(|n| matches!(n, SubscriptionEvent::AssignmentChanged { gained, .. } if !gained.is_empty()));
    assert!(gained, "it has partitions again: {events:?}");
    assert!(got.iter().all(|n| *n >= 400), "the member received committed messages: {got:?}");
    // Together, the members have received all messages.
    let mut all = shared.into_inner().unwrap();
    all.extend(got);
    let deadline = Instant::now() + 20 * SECOND;
    while all.len() < next - 400 {
        assert!(Instant::now() < deadline, "{} of {} messages received", all.len(), next - 400);
        for sub in [&mut one, &mut two] {
            all.extend(sub.recv(100, SECOND / 4).await.unwrap().iter().map(number));
        }
    }
    one.close().await.unwrap();
    two.close().await.unwrap();
    other.close().await.unwrap();
    delete_topic(&bus, topic).await;
}

async fn list_during_deletions(brokers: Brokers) {
    let bus = open(&brokers, |config| config.request_timeout = Duration::from_secs(20));
    let kept = create(&bus, spec(2)).await;
    let churn = async {
        for _ in 0..8 {
            let specs: Vec<_> = (0..5).map(|_| spec(3)).collect();
            let names: Vec<_> = specs.iter().map(|spec| spec.name.clone()).collect();
            bus.create_topics(&specs).await.unwrap();
            bus.delete_topics(&names).await.unwrap();
        }
    };
    let listing = async {
        loop {
            let topics = bus.topics().await.unwrap();
            assert!(topics.iter().any(|info| info.name == kept && info.partitions.len() == 2));
        }
    };
    tokio::select! {
        () = churn => {}
        () = listing => {}
    }
    delete_topic(&bus, kept).await;
}
