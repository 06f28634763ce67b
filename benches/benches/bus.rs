//! Publishes and receives 1,000,000 keyed messages of 100 bytes through the memory bus, in batches of 1,000 with a
//! commit after each. The baseline is a bounded tokio channel of the same messages, which are sent one by one and received
//! by `recv_many(1000)`.
//!
//! `cargo bench -p qi-benches --bench bus` measures each side alone with criterion, then prints the ratio of
//! interleaved pairs. The argument `ratios` omits criterion.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use criterion::Criterion;
use qi_benches::ratio;
use qi_core::bus::{GroupId, Message, MessageBus, MessageBusExt, SubscribeRequest, TopicName, TopicSpec};
use qi_testkit::bus::{MemoryBus, MemoryBusConfig};
use tokio::runtime::Runtime;

const MESSAGES: usize = 1_000_000;
const BATCH: usize = 1_000;
const ROUNDS: usize = 15;
const INSTRUMENTS: usize = 50;

/// Returns the messages in batches. The payloads of a batch are parts of one buffer, as a codec or a network client
/// makes them. The keys are those of fifty instruments.
fn batches(topic: &TopicName) -> Vec<Vec<Message>> {
    let keys: Vec<Bytes> =
        (0..INSTRUMENTS).map(|n| Bytes::from(format!("exchange:COIN{n}-USDT").into_bytes())).collect();
    (0..MESSAGES / BATCH)
        .map(|_| {
            let mut buffer = BytesMut::with_capacity(100 * BATCH);
            (0..BATCH)
                .map(|n| {
                    buffer.put_bytes(b'x', 100);
                    Message::new(topic.clone(), buffer.split().freeze())
                        .with_key(keys[n % INSTRUMENTS].clone())
                })
                .collect()
        })
        .collect()
}

fn bus(runtime: &Runtime) -> Duration {
    let topic = TopicName::new("crypto-prices").expect("a valid name");
    let batches = batches(&topic);
    runtime.block_on(async {
        let mut config = MemoryBusConfig::default();
        config.max_bytes = 1 << 30;
        let bus = Arc::new(
            MemoryBus::new(config, Arc::new(qi_core::SystemClock)).expect("the settings are in order"),
        );
        let spec = TopicSpec::new(topic.clone(), 12).expect("twelve partitions are allowed");
        bus.create_topics(&[spec]).await.expect("the bus is open");
        let group = GroupId::new("writer").expect("a valid name");
        let request = SubscribeRequest::new(group, [topic]).expect("there is a topic");
        let mut reader = bus.subscribe(request).await.expect("the topic exists");

        let start = Instant::now();
        let writer = tokio::spawn(async move {
            for batch in &batches {
                bus.send(batch).await.expect("there is room for all");
            }
        });
        let mut received = 0;
        while received < MESSAGES {
            let batch = reader.recv(BATCH, Duration::from_secs(1)).await.expect("the topic exists");
            received += black_box(batch.messages()).len();
            reader.commit(batch.offsets()).await.expect("the partitions are ours");
        }
        writer.await.expect("the writer does not panic");
        start.elapsed()
    })
}

fn channel(runtime: &Runtime) -> Duration {
    let topic = TopicName::new("crypto-prices").expect("a valid name");
    let batches = batches(&topic);
    runtime.block_on(async {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(BATCH);
        let start = Instant::now();
        let writer = tokio::spawn(async move {
            for message in batches.into_iter().flatten() {
                sender.send(message).await.expect("the reader is there");
            }
        });
        let (mut count, mut buffer) = (0, Vec::with_capacity(BATCH));
        while count < MESSAGES {
            buffer.clear();
            count += receiver.recv_many(&mut buffer, BATCH).await;
            black_box(&buffer);
        }
        writer.await.expect("the writer does not panic");
        start.elapsed()
    })
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("a runtime can be built");
    if !std::env::args().any(|argument| argument == "ratios") {
        let mut criterion = Criterion::default().configure_from_args().sample_size(10);
        let mut group = criterion.benchmark_group("a million messages");
        group.bench_function("memory bus", |b| b.iter_custom(|n| (0..n).map(|_| bus(&runtime)).sum()));
        group.bench_function("tokio channel", |b| b.iter_custom(|n| (0..n).map(|_| channel(&runtime)).sum()));
        group.finish();
        criterion.final_summary();
    }
    println!("memory bus over tokio channel: {}", ratio(ROUNDS, || bus(&runtime), || channel(&runtime)));
}
