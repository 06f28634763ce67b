//! `Ingest` on paused time, over a bus and a store in memory: overlap, batch sizes, order, bounds, retries, rebalances.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use qi_core::agent::{AgentRuntime, AgentSpec};
use qi_core::bus::{
    Batch, Encoding, GroupId, GroupQuery, Message, MessageBusExt, ReceivedMessage, SubscribeRequest,
    Subscription, TopicCatalogue, TopicName, encode_records,
};
use qi_core::layer::{Call, Layer, Layered};
use qi_core::record::Slice;
use qi_core::store::RangeQuery;
use qi_core::{
    Backoff, Error, ErrorKind, Ingest, IngestConfig, Instrument, MessageBus, Operation, PriceStore,
    PriceStoreExt, PriceTick, Quantity, Result, TimeRange, Timestamp,
};
use qi_testkit::bus::MemoryBus;
use qi_testkit::store::{MemoryStore, MemoryStoreConfig};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const SECOND: Duration = Duration::from_secs(1);

/// A layer that admits one insert for each permit and records the sizes of batches. Planned errors
/// fail the first inserts.
#[derive(Debug, Clone)]
struct GatedStore {
    permits: Arc<Semaphore>,
    errors: Arc<Mutex<Vec<ErrorKind>>>,
    sizes: Arc<Mutex<Vec<usize>>>,
}

impl GatedStore {
    fn new(permits: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(permits)), errors: Arc::default(), sizes: Arc::default() }
    }

    fn open(&self) {
        self.permits.add_permits(1_000_000);
    }

    fn sizes(&self) -> Vec<usize> {
        self.sizes.lock().unwrap().clone()
    }
}

impl Layer for GatedStore {
    fn name(&self) -> &'static str {
        "GatedStore"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        if call.operation != Operation::Insert {
            return future;
        }
        Box::pin(async move {
            self.sizes.lock().unwrap().push(call.records.unwrap_or_default());
            self.permits.acquire().await.unwrap().forget();
            let planned = self.errors.lock().unwrap().pop();
            match planned {
                Some(kind) => Err(Error::new(kind, "test.gate", "insert")),
                None => future.await,
            }
        })
    }
}

struct IngestTest {
    bus: MemoryBus,
    gate: GatedStore,
    plain: Arc<MemoryStore>,
    store: Arc<dyn PriceStore>,
}

impl IngestTest {
    async fn new(permits: usize) -> Self {
        let (bus, gate) = (MemoryBus::default(), GatedStore::new(permits));
        bus.create_catalogue(&TopicCatalogue::standard().unwrap()).await.unwrap();
        let plain = Arc::new(MemoryStore::new(MemoryStoreConfig::default()).unwrap());
        plain.ensure_schema().await.unwrap();
        let store = Arc::new(Layered::new(plain.clone(), gate.clone()));
        Self { bus, gate, plain, store }
    }

    async fn ingest(&self, config: IngestConfig) -> Ingest {
        let request = SubscribeRequest::new(GroupId::new("writer").unwrap(), [topic()]).unwrap();
        let bus: Arc<dyn MessageBus> = Arc::new(self.bus.connect());
        Ingest::open(bus, self.store.clone(), PriceTick::DATASET, request, config).await.unwrap()
    }

    /// Runs an ingest until the token is cancelled, and then leaves the group.
    async fn start(&self, config: IngestConfig) -> (CancellationToken, JoinHandle<Result<()>>) {
        let mut ingest = self.ingest(config).await;
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let run = tokio::spawn(async move {
            let result = ingest.run_until(stopped).await;
            ingest.close().await?;
            result
        });
        (stop, run)
    }

    async fn stored(&self) -> Vec<PriceTick> {
        let query = RangeQuery::new(instrument(), TimeRange::ALL).with_limit(10_000).unwrap();
        self.plain.ticks(&query).await.unwrap().items
    }

    async fn lag(&self) -> Option<u64> {
        let groups = self.bus.groups(&GroupQuery::one(GroupId::new("writer").unwrap())).await.unwrap();
        groups[0].lag()
    }

    async fn letters(&self) -> Vec<ReceivedMessage> {
        let topic = TopicName::new("crypto-prices.dlq").unwrap();
        let request = SubscribeRequest::new(GroupId::new("letters").unwrap(), [topic]).unwrap();
        let mut subscription = self.bus.subscribe(request).await.unwrap();
        subscription.recv(1_000, Duration::from_millis(10)).await.unwrap().into_messages()
    }
}

fn topic() -> TopicName {
    TopicName::new("crypto-prices").unwrap()
}

fn instrument() -> Instrument {
    "binance:BTC-USDT".parse().unwrap()
}

/// Returns a tick of a key. Its quantity distinguishes the versions of the key.
fn tick(seq: u64, version: u64) -> PriceTick {
    let time = Timestamp::from_secs(1_704_067_200).unwrap();
    let quantity: Quantity = version.to_string().parse().unwrap();
    PriceTick::new(instrument(), time, seq, "1".parse().unwrap()).unwrap().with_quantity(quantity)
}

fn ticks(seqs: std::ops::Range<u64>) -> Vec<PriceTick> {
    seqs.map(|seq| tick(seq, 1)).collect()
}

async fn sleep(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_dead_letter_topic_is_created_again_if_the_ingest_has_its_settings() {
    let dead = TopicName::new("crypto-prices.dlq").unwrap();
    let specs = TopicCatalogue::standard().unwrap().specs().unwrap();
    let spec = specs.into_iter().find(|spec| spec.name == dead).unwrap();
    for (topic_again, letters) in [(Some(spec), 1), (None, 0)] {
        let world = IngestTest::new(1_000).await;
        let mut config = IngestConfig::default();
        config.dead_letter_topic = topic_again;
        let (stop, run) = world.start(config).await;
        let outcomes = world.bus.delete_topics(std::slice::from_ref(&dead)).await.unwrap();
        assert!(outcomes[0].result.is_ok());
        world.bus.publish_one(&Message::new(topic(), "no record")).await.unwrap();
        sleep(30 * SECOND).await;
        if letters == 0 {
            assert_eq!(run.await.unwrap().unwrap_err().kind(), ErrorKind::NotFound);
            continue;
        }
        assert_eq!((world.letters().await.len(), world.lag().await), (letters, Some(0)));
        stop.cancel();
        run.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn batch_contains_messages_received_during_the_previous_insert() {
    let world = IngestTest::new(0).await;
    let (stop, run) = world.start(IngestConfig::default()).await;
    world.bus.send_records(&ticks(0..1), None).await.unwrap();
    sleep(SECOND).await;
    world.bus.send_records(&ticks(1..3_000), None).await.unwrap();
    sleep(SECOND).await;
    assert_eq!(
        (world.gate.sizes(), world.lag().await),
        (vec![1], Some(3_000)),
        "nothing is committed before it is stored"
    );
    world.gate.permits.add_permits(1);
    sleep(SECOND).await;
    assert_eq!((world.gate.sizes(), world.lag().await), (vec![1, 2_999], Some(2_999)));
    world.gate.open();
    sleep(SECOND).await;
    assert_eq!((world.stored().await, world.lag().await), (ticks(0..3_000), Some(0)));
    // On an idle topic, each record is stored alone and immediately.
    for seq in 3_000..3_003 {
        world.bus.send_records(&ticks(seq..seq + 1), None).await.unwrap();
        sleep(Duration::from_millis(1)).await;
        assert_eq!(world.stored().await.len() as u64, seq + 1);
    }
    stop.cancel();
    run.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn limits_bound_the_received_messages() {
    let world = IngestTest::new(0).await;
    let config = IngestConfig::default();
    let by_records = world.start(config.clone().with_max_records(100)).await;
    world.bus.send_records(&ticks(0..10_000), None).await.unwrap();
    sleep(Duration::from_mins(1)).await;
    // The first batch is being stored, the second is full, and the third is still on the bus.
    world.gate.permits.add_permits(1);
    sleep(SECOND).await;
    assert_eq!(world.gate.sizes(), [100, 100]);
    world.gate.open();
    sleep(SECOND).await;
    by_records.0.cancel();
    by_records.1.await.unwrap().unwrap();
    assert!(world.gate.sizes().iter().all(|size| *size <= 100), "{:?}", world.gate.sizes());
    assert_eq!(world.stored().await, ticks(0..10_000));

    let world = IngestTest::new(0).await;
    let by_bytes = world.start(config.with_max_bytes(1)).await;
    let large = Message::new(topic(), vec![b'x'; 1 << 20]);
    for seq in 0..5 {
        world.bus.send_records(&ticks(seq..seq + 1), None).await.unwrap();
        world.bus.publish_one(&large).await.unwrap();
        sleep(SECOND).await;
    }
    assert_eq!(world.gate.sizes().len(), 1, "a full batch receives nothing");
    world.gate.open();
    sleep(Duration::from_mins(1)).await;
    assert_eq!((world.stored().await.len(), world.letters().await.len(), world.lag().await), (5, 5, Some(0)));
    by_bytes.0.cancel();
    by_bytes.1.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn outage_keeps_key_order_and_the_order_store_dead_letters_commit() {
    let world = IngestTest::new(usize::MAX >> 4).await;
    world.gate.errors.lock().unwrap().extend([ErrorKind::Unavailable; 20]);
    let backoff = Backoff::new(SECOND, SECOND);
    let mut ingest = world.ingest(IngestConfig::default().with_backoff(backoff)).await;
    let mut run = pin!(ingest.run_until(std::future::pending()));
    for version in 1..=50 {
        world.bus.send_records(&[tick(1, version)], None).await.unwrap();
        world
            .bus
            .publish_one(&Message::new(topic(), "no record").with_key("binance:BTC-USDT"))
            .await
            .unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(100), &mut run).await;
    }
    assert_eq!(
        (world.stored().await.len(), world.letters().await.len(), world.lag().await),
        (0, 0, Some(100))
    );
    let _ = tokio::time::timeout(Duration::from_mins(1), &mut run).await;
    assert_eq!(world.stored().await, [tick(1, 50)], "the last version of the key");
    assert_eq!((world.letters().await.len(), world.lag().await), (50, Some(0)));
}

#[tokio::test(start_paused = true)]
async fn permanent_error_ends_the_run_without_a_commit_of_its_batch() {
    let world = IngestTest::new(0).await;
    let (_stop, run) = world.start(IngestConfig::default()).await;
    world.bus.send_records(&ticks(0..1), None).await.unwrap();
    sleep(SECOND).await;
    world.gate.permits.add_permits(1);
    sleep(SECOND).await;
    assert_eq!(world.lag().await, Some(0));
    world.bus.send_records(&ticks(1..2), None).await.unwrap();
    sleep(SECOND).await;
    world.bus.send_records(&ticks(2..3), None).await.unwrap();
    sleep(SECOND).await;
    world.gate.errors.lock().unwrap().push(ErrorKind::SchemaMismatch);
    world.gate.open();
    let error = run.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaMismatch);
    assert_eq!(
        (world.stored().await, world.lag().await),
        (ticks(0..1), Some(2)),
        "later batches are not stored either"
    );
}

#[tokio::test(start_paused = true)]
async fn stop_stores_and_commits_received_messages() {
    let world = IngestTest::new(0).await;
    let (stop, run) = world.start(IngestConfig::default().with_max_records(1_000)).await;
    world.bus.send_records(&ticks(0..2_000), None).await.unwrap();
    sleep(SECOND).await;
    stop.cancel();
    sleep(SECOND).await;
    assert!(!run.is_finished());
    world.gate.open();
    run.await.unwrap().unwrap();
    assert_eq!((world.stored().await, world.lag().await), (ticks(0..2_000), Some(0)));
    // During an outage, the stop does not wait for the store.
    let world = IngestTest::new(usize::MAX >> 4).await;
    world.gate.errors.lock().unwrap().extend([ErrorKind::Unavailable; 1_000]);
    let (stop, run) = world.start(IngestConfig::default()).await;
    world.bus.send_records(&ticks(0..1), None).await.unwrap();
    sleep(SECOND).await;
    stop.cancel();
    let ended = tokio::time::timeout(SECOND, run).await.unwrap().unwrap();
    assert_eq!((ended.unwrap_err().kind(), world.lag().await), (ErrorKind::Unavailable, Some(1)));
}

/// A second member joins while the first one receives, stores, or has stored and not committed. An older record from
/// the first member never replaces a newer record from the second member.
#[tokio::test(start_paused = true)]
async fn rebalance_in_every_stage_loses_nothing_and_keeps_key_order() {
    for (stage, commit) in [("receive", 0), ("store", 0), ("commit", 3_600)] {
        let world = IngestTest::new(if stage == "commit" { usize::MAX >> 4 } else { 0 }).await;
        let config = IngestConfig::default().with_commit_interval(Duration::from_secs(commit));
        let (stop_first, first) = world.start(config.clone()).await;
        let send = |version| {
            let records: Vec<_> = (0..100).map(|seq| tick(seq, version)).collect();
            // Every partition has messages.
            let mut messages =
                encode_records(&Encoding::Protobuf, &Slice::new(&records).unwrap(), None).unwrap();
            for (message, partition) in messages.iter_mut().zip((0..12).cycle()) {
                message.partition = Some(partition);
            }
            let bus = world.bus.connect();
            async move { drop(bus.send(&messages).await.unwrap()) }
        };
        send(1).await;
        sleep(SECOND).await;
        if stage == "receive" {
            send(2).await;
        }
        let (second, ()) = tokio::join!(world.start(config), async {
            sleep(SECOND).await;
            send(3).await;
            sleep(SECOND).await;
            world.gate.open();
        });
        sleep(Duration::from_mins(1)).await;
        send(4).await;
        sleep(Duration::from_mins(1)).await;
        for (stop, run) in [(stop_first, first), second] {
            stop.cancel();
            run.await.unwrap().unwrap();
        }
        let expected: Vec<_> = (0..100).map(|seq| tick(seq, 4)).collect();
        assert_eq!((world.stored().await, world.lag().await), (expected, Some(0)), "{stage}");
        let total: usize = world.gate.sizes().iter().sum();
        let published = if stage == "receive" { 400 } else { 300 };
        assert_eq!(total, published, "{stage}: what was stored was committed before its partitions went");
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_run_stops_commits_and_loses_nothing() {
    let world = IngestTest::new(0).await;
    let mut ingest = world.ingest(IngestConfig::default()).await;
    world.bus.send_records(&ticks(0..100), None).await.unwrap();
    let _ = tokio::time::timeout(SECOND, ingest.run_until(std::future::pending())).await;
    // The subscription has passed the messages of the dropped run.
    let again = ingest.run_until(std::future::ready(())).await.unwrap_err();
    assert_eq!((again.kind(), again.code()), (ErrorKind::Closed, "ingest.ended"));
    drop(ingest);
    world.gate.open();
    sleep(SECOND).await;
    assert_eq!((world.stored().await.len(), world.lag().await), (0, Some(100)));
    let (stop, run) = world.start(IngestConfig::default()).await;
    sleep(SECOND).await;
    stop.cancel();
    run.await.unwrap().unwrap();
    assert_eq!((world.stored().await, world.lag().await), (ticks(0..100), Some(0)));
}

/// A repeated call is a heartbeat: an outage may last longer than the watchdog's limit.
#[tokio::test(start_paused = true)]
async fn a_watchdog_outlasts_an_outage_of_the_store() {
    let world = IngestTest::new(1_000).await;
    world.gate.errors.lock().unwrap().extend([ErrorKind::Unavailable; 20]);
    world.bus.send_records(&ticks(0..100), None).await.unwrap();
    // With full batches, nothing else succeeds during the outage.
    let config = IngestConfig::default().with_max_records(10).with_backoff(Backoff::new(SECOND, SECOND));
    let spec = AgentSpec::once("writer", world.ingest(config).await).watchdog(5 * SECOND);
    let runtime = AgentRuntime::builder().agent(spec).build().unwrap();
    runtime.run_until(sleep(60 * SECOND)).await.result().unwrap();
    assert_eq!((world.stored().await, world.lag().await), (ticks(0..100), Some(0)));
}

/// A layer that hides messages without a key, like a broker hides transaction markers. Only the position advances.
#[derive(Debug)]
struct HiddenMarkers;

impl Layer for HiddenMarkers {
    fn name(&self) -> &'static str {
        "HiddenMarkers"
    }

    fn recv<'a>(
        &'a self,
        subscription: &'a mut dyn Subscription,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Batch>> {
        Box::pin(async move {
            let mut batch = subscription.recv(max, wait).await?;
            batch.messages_mut().retain(|message| message.key.is_some());
            Ok(batch)
        })
    }
}

#[tokio::test(start_paused = true)]
async fn positions_without_messages_are_committed_after_the_messages_before_them() {
    let world = IngestTest::new(0).await;
    let bus: Arc<dyn MessageBus> = Arc::new(Layered::new(world.bus.connect(), HiddenMarkers));
    let request = SubscribeRequest::new(GroupId::new("writer").unwrap(), [topic()]).unwrap();
    let config = IngestConfig::default();
    let mut ingest =
        Ingest::open(bus, world.store.clone(), PriceTick::DATASET, request, config).await.unwrap();
    let run = tokio::spawn(async move { ingest.run_until(std::future::pending()).await });
    let marker = || Message::new(topic(), "marker");
    world.bus.publish_one(&marker()).await.unwrap();
    sleep(SECOND).await;
    assert_eq!(world.lag().await, Some(0), "nothing is stored at the moment");
    world.bus.send_records(&ticks(0..1), None).await.unwrap();
    sleep(SECOND).await;
    world.bus.publish_one(&marker()).await.unwrap();
    sleep(SECOND).await;
    assert_eq!(world.lag().await, Some(2), "the record before the marker is not stored");
    world.gate.open();
    sleep(SECOND).await;
    assert_eq!((world.stored().await, world.lag().await), (ticks(0..1), Some(0)));
    run.abort();
}

#[tokio::test(start_paused = true)]
async fn batch_does_not_exceed_max_batch_of_the_store() {
    let mut world = IngestTest::new(usize::MAX >> 4).await;
    let mut config = MemoryStoreConfig::default();
    config.max_batch = 10;
    let store = MemoryStore::new(config).unwrap();
    world.plain = Arc::new(store);
    world.plain.ensure_schema().await.unwrap();
    world.store = Arc::new(Layered::new(world.plain.clone(), world.gate.clone()));
    world.bus.send_records(&ticks(0..100), None).await.unwrap();
    let (stop, run) = world.start(IngestConfig::default()).await;
    sleep(SECOND).await;
    stop.cancel();
    run.await.unwrap().unwrap();
    assert_eq!((world.stored().await, world.lag().await), (ticks(0..100), Some(0)));
    assert!(world.gate.sizes().iter().all(|size| *size <= 10), "{:?}", world.gate.sizes());
}
