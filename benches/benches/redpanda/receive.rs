//! Reads 1,000,000 stored messages of 100 bytes from the beginning: with a reader without a group, and with the only
//! member of a new group, where joining the group is measured too.

use std::hint::black_box;
use std::time::{Duration, Instant};

use qi_adapters::config::Profile;
use qi_benches::ratio;
use qi_core::bus::{
    GroupId, MessageBus, MessageBusExt, ReaderRequest, SeekTo, SubscribeRequest, Subscription, TopicName,
    TopicPartition,
};
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Offset, TopicPartitionList};

use crate::setup::{MESSAGES, PARTITIONS, Setup, batches, name};

const BATCH: usize = 1_000;

/// Properties of librdkafka.
type Settings = &'static [(&'static str, &'static str)];

/// The settings of the adapter for a reader with the profile `Balanced` and its defaults.
const SETTINGS: Settings = &[
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("auto.offset.reset", "error"),
    ("isolation.level", "read_committed"),
    ("message.max.bytes", "4194304"),
    ("fetch.max.bytes", "4194304"),
    ("max.partition.fetch.bytes", "1048576"),
    ("queued.max.messages.kbytes", "8192"),
    ("queued.min.messages", "1000000"),
    ("fetch.wait.max.ms", "100"),
    ("fetch.queue.backoff.ms", "5"),
    ("socket.nagle.disable", "true"),
];

pub(crate) fn run(setup: &Setup) {
    let topic = setup.topic(PARTITIONS);
    let bus = setup.bus(Profile::HighThroughput);
    setup.block_on(async {
        for batch in batches(&topic.name, 50_000) {
            bus.send(&batch).await.expect("brokers that answer");
        }
        bus.close().await.expect("an open bus");
    });
    let baselines: [(&str, Settings, Look); 3] = [
        ("a BaseConsumer with the same settings", SETTINGS, length),
        ("the same, each message detached", SETTINGS, detached),
        ("a BaseConsumer with librdkafka's defaults", &[], length),
    ];
    for (name, settings, look) in baselines {
        let baseline = || bare(setup, &topic.name, settings, look, false);
        report("receive", name, &ratio(setup.rounds, || ours(setup, &topic.name, false), baseline));
    }
    let baseline = || bare(setup, &topic.name, SETTINGS, length, true);
    let times = ratio(setup.rounds, || ours(setup, &topic.name, true), baseline);
    report("receive, joining a group", "a BaseConsumer with the same settings", &times);
}

fn report(what: &str, baseline: &str, times: &qi_benches::Ratio) {
    let rate = |time: Duration| MESSAGES as f64 / time.as_secs_f64() / 1e6;
    println!(
        "{what}: adapter {:.2} M msg/s, {baseline} {:.2} M msg/s, rate ratio {:.2}; {times}",
        rate(times.ours),
        rate(times.baseline),
        1.0 / times.median
    );
}

fn ours(setup: &Setup, topic: &TopicName, joins: bool) -> Duration {
    let bus = setup.bus(Profile::Balanced);
    setup.block_on(async {
        bus.ping().await.expect("brokers that answer");
        let from = (0..PARTITIONS).map(|p| (TopicPartition::new(topic.clone(), p), SeekTo::Offset(0)));
        let start = Instant::now();
        let mut reader: Box<dyn Subscription> = if joins {
            let group = GroupId::new(name()).expect("a valid name");
            bus.subscribe(SubscribeRequest::new(group, [topic.clone()]).expect("a topic"))
                .await
                .expect("a topic")
        } else {
            bus.open_reader(ReaderRequest::new(from).expect("partitions")).await.expect("a topic")
        };
        let (mut count, mut bytes) = (0, 0);
        while count < MESSAGES {
            let batch = reader.recv(BATCH, Duration::from_secs(10)).await.expect("brokers that answer");
            for message in &batch {
                bytes += black_box(message.payload.as_ref()).map_or(0, bytes::Bytes::len);
            }
            count += batch.len();
        }
        let took = start.elapsed();
        assert_eq!((count, bytes), (MESSAGES, 100 * MESSAGES));
        bus.close().await.expect("an open bus");
        took
    })
}

/// The baseline's processing of a message. Returns the length of the payload.
type Look = fn(&BorrowedMessage<'_>) -> usize;

/// Reads only the payload, like the shortest loop.
fn length(message: &BorrowedMessage<'_>) -> usize {
    black_box(message.payload()).map_or(0, <[u8]>::len)
}

/// Copies the message with its headers, as the adapter does and as is necessary to keep a message.
fn detached(message: &BorrowedMessage<'_>) -> usize {
    black_box(message.detach()).payload().map_or(0, <[u8]>::len)
}

fn bare(setup: &Setup, topic: &TopicName, settings: Settings, look: Look, joins: bool) -> Duration {
    let start = Instant::now();
    let mut config = setup.client(settings);
    config.set("group.id", name());
    if joins {
        config
            .set("auto.offset.reset", "earliest")
            .set("partition.assignment.strategy", "cooperative-sticky");
    }
    let consumer: BaseConsumer = config.create().expect("valid settings");
    if joins {
        consumer.subscribe(&[topic.as_str()]).expect("a topic");
    } else {
        let mut list = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            let added = list.add_partition_offset(topic.as_str(), partition.cast_signed(), Offset::Offset(0));
            added.expect("a partition");
        }
        consumer.assign(&list).expect("partitions");
    }
    let (mut count, mut bytes) = (0, 0);
    while count < MESSAGES {
        // A served event, such as a rebalance, also returns None.
        let Some(message) = consumer.poll(Duration::from_secs(10)) else {
            assert!(start.elapsed() < Duration::from_mins(1), "the brokers do not answer");
            continue;
        };
        let message = message.expect("brokers that answer");
        bytes += look(&message);
        count += 1;
    }
    let took = start.elapsed();
    assert_eq!((count, bytes), (MESSAGES, 100 * MESSAGES));
    took
}
