//! Publishes 1,000,000 keyed messages of 100 bytes, acknowledged by all replicas.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use qi_adapters::config::Profile;
use qi_benches::ratio;
use qi_core::bus::{Message, MessageBus, MessageBusExt};
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{
    BaseRecord, FutureProducer, FutureRecord, Producer, ProducerContext, ThreadedProducer,
};

use crate::setup::{MESSAGES, PARTITIONS, Setup, batches};

const BATCH: usize = 10_000;
/// The number of calls in progress.
const CALLS: usize = 8;
/// The number of futures of the baseline in progress.
const FUTURES: usize = 100_000;

/// The settings of a producer of the adapter with the profile `Balanced` and its defaults.
const SETTINGS: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("linger.ms", "2"),
    ("compression.type", "lz4"),
    ("batch.size", "1000000"),
    ("batch.num.messages", "1000000"),
    ("message.max.bytes", "4194816"),
    ("message.timeout.ms", "120000"),
    ("queue.buffering.max.messages", "0"),
    ("queue.buffering.max.kbytes", "2147483647"),
    ("partitioner", "murmur2_random"),
    ("sticky.partitioning.linger.ms", "10"),
    ("socket.nagle.disable", "true"),
    ("statistics.interval.ms", "1000"),
];

pub(crate) fn run(setup: &Setup) {
    let threaded = ratio(setup.rounds, || ours(setup), || threaded(setup));
    report("ThreadedProducer, one loop", &threaded);
    let futures = ratio(setup.rounds, || ours(setup), || futures_each(setup));
    report("FutureProducer, a future for each message", &futures);
}

fn report(baseline: &str, times: &qi_benches::Ratio) {
    let rate = |time: Duration| MESSAGES as f64 / time.as_secs_f64() / 1e6;
    println!(
        "publish: adapter {:.2} M msg/s, {baseline} {:.2} M msg/s, rate ratio {:.2}; {times}",
        rate(times.ours),
        rate(times.baseline),
        1.0 / times.median
    );
}

fn ours(setup: &Setup) -> Duration {
    let topic = setup.topic(PARTITIONS);
    let batches = batches(&topic.name, BATCH);
    let bus = Arc::new(setup.bus(Profile::Balanced));
    setup.block_on(async {
        // Every variant first sends one message, so that connecting and metadata are not measured.
        bus.send(&batches[0][..1]).await.expect("brokers that answer");
        let start = Instant::now();
        let calls = stream::iter(&batches).map(|batch| bus.send(batch)).buffered(CALLS);
        let sent: usize =
            calls.map(|sent| sent.expect("brokers that answer").len()).fold(0, async |a, b| a + b).await;
        let took = start.elapsed();
        assert_eq!(sent, MESSAGES);
        bus.close().await.expect("an open bus");
        took
    })
}

#[derive(Default)]
struct Counting(AtomicUsize);

impl ClientContext for Counting {
    fn stats(&self, _: rdkafka::Statistics) {}
}

impl ProducerContext for Counting {
    type DeliveryOpaque = ();
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        assert!(result.is_ok());
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn threaded(setup: &Setup) -> Duration {
    let topic = setup.topic(PARTITIONS);
    let batches = batches(&topic.name, BATCH);
    let producer: ThreadedProducer<Counting> =
        setup.client(SETTINGS).create_with_context(Counting::default()).expect("valid settings");
    let send = |message: &Message| {
        let mut record = BaseRecord::to(topic.name.as_str())
            .key(message.key.as_deref().unwrap_or_default())
            .payload(message.payload.as_deref().unwrap_or_default());
        while let Err((error, back)) = producer.send(record) {
            assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
            record = back;
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    send(&batches[0][0]);
    producer.flush(Duration::from_mins(1)).expect("brokers that answer");
    let start = Instant::now();
    batches.iter().flatten().for_each(send);
    producer.flush(Duration::from_mins(1)).expect("brokers that answer");
    let took = start.elapsed();
    assert_eq!(producer.context().0.load(Ordering::Relaxed), MESSAGES + 1);
    took
}

/// Publishes one message and waits for its acknowledgement.
async fn send(producer: &FutureProducer, topic: &str, message: &Message) {
    let record = FutureRecord::to(topic)
        .key(message.key.as_deref().unwrap_or_default())
        .payload(message.payload.as_deref().unwrap_or_default());
    producer.send(record, Duration::from_mins(1)).await.expect("brokers that answer");
}

fn futures_each(setup: &Setup) -> Duration {
    let topic = setup.topic(PARTITIONS);
    let batches = batches(&topic.name, BATCH);
    let producer: FutureProducer = setup.client(SETTINGS).create().expect("valid settings");
    setup.block_on(async {
        send(&producer, topic.name.as_str(), &batches[0][0]).await;
        let start = Instant::now();
        let sent = stream::iter(batches.iter().flatten())
            .map(|message| send(&producer, topic.name.as_str(), message))
            .buffered(FUTURES)
            .fold(0, async |count, ()| count + 1)
            .await;
        let took = start.elapsed();
        assert_eq!(sent, MESSAGES);
        took
    })
}
