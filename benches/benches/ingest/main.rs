//! The complete pipeline over real servers, compared with the slowest of its parts and with a hand-written loop; its
//! delay and its backlog at a fixed rate; and the two message formats.
//!
//! ```sh
//! scripts/backends up && eval "$(scripts/backends env)"
//! cargo bench -p qi-benches --bench ingest                         # all sections
//! cargo bench -p qi-benches --bench ingest -- codec                # no server
//! cargo bench -p qi-benches --bench ingest -- --rounds 1 pipeline
//! ```
//!
//! The market has 100 instruments and repeats one tick in a hundred, like feeds after a reconnect. Brokers, databases
//! and the program share the machine.
#![allow(missing_docs, reason = "a benchmark has no public items")]
#![allow(clippy::cast_precision_loss, reason = "rates and ratios have three digits")]

mod baseline;
mod codec;
mod load;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qi_adapters::clickhouse::{ClickHouseConfig, ClickHouseStore};
use qi_adapters::redpanda::{RedpandaBus, RedpandaConfig};
use qi_adapters::timescale::{TimescaleConfig, TimescaleStore};
use qi_benches::{Section, median, processor_time, ratio, unique, variable};
use qi_core::bus::{
    Encoding, GroupId, MessageBus, MessageBusExt as _, SeekTo, SubscribeRequest, TopicName, TopicPartition,
    TopicSpec, encode_records,
};
use qi_core::record::Slice;
use qi_core::store::PriceStoreExt as _;
use qi_core::{Ingest, IngestConfig, IngestProgress, PriceStore, PriceTick};
use qi_testkit::market::{Market, MarketConfig};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SECTIONS: [Section<Setup>; 5] = [
    ("codec", codec::run),
    ("pipeline", pipeline),
    ("baseline", baseline::run),
    ("delay", load::delay),
    ("sustained", load::sustained),
];
const TICKS: usize = 1_000_000;
const PARTITIONS: u32 = 12;
const BATCH: usize = 4_096;

fn main() {
    qi_benches::sections(SECTIONS, 3, |rounds| Some(Setup::new(rounds)));
}

pub(crate) struct Setup {
    pub(crate) rounds: usize,
    pub(crate) ticks: Vec<PriceTick>,
    runtime: Runtime,
}

impl Setup {
    fn new(rounds: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let market =
            Market::new(MarketConfig::new(1, 100).expect("a hundred instruments")).expect("a market");
        Self { rounds, ticks: market.take(TICKS).collect(), runtime: runtime.expect("a runtime") }
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub(crate) fn bus(&self, brokers: &str) -> Arc<dyn MessageBus> {
        let _inside = self.runtime.enter();
        Arc::new(RedpandaBus::open(RedpandaConfig::from_brokers(brokers)).expect("a valid configuration"))
    }
}

/// Returns a store with new tables.
pub(crate) async fn create(database: &str, url: &str) -> Arc<dyn PriceStore> {
    let store: Arc<dyn PriceStore> = if database == "clickhouse" {
        let mut config = ClickHouseConfig::from_url(url);
        config.table_prefix = unique() + "_";
        Arc::new(ClickHouseStore::open(config).expect("a valid configuration"))
    } else {
        let mut config = TimescaleConfig::from_url(url);
        config.schema = unique();
        Arc::new(TimescaleStore::open(config).expect("a valid configuration"))
    };
    store.ensure_schema().await.expect("a schema");
    store
}

/// The databases that the environment names, with their addresses.
pub(crate) fn databases() -> impl Iterator<Item = (&'static str, String)> {
    let known = [("timescale", "QI_TIMESCALE_URL"), ("clickhouse", "QI_CLICKHOUSE_URL")];
    known.into_iter().filter_map(|(database, name)| Some((database, variable(name)?)))
}

pub(crate) async fn topic(bus: &dyn MessageBus, partitions: u32) -> TopicName {
    let name = TopicName::new(unique()).expect("a valid name");
    let spec = TopicSpec::new(name.clone(), partitions).expect("a valid number");
    for outcome in bus.create_topics(&[spec]).await.expect("brokers that answer") {
        outcome.result.expect("a new topic");
    }
    name
}

pub(crate) async fn publish(
    bus: Arc<dyn MessageBus>,
    topic: TopicName,
    ticks: &[PriceTick],
    encoding: Encoding,
) -> Duration {
    let began = Instant::now();
    let mut sending = None;
    for chunk in ticks.chunks(BATCH) {
        let batch = encode_records(&encoding, &Slice::new(chunk).expect("valid ticks"), Some(&topic));
        let batch = batch.expect("messages");
        if let Some(sending) = sending.take() {
            let sent: JoinHandle<_> = sending;
            sent.await.expect("no panic");
        }
        let bus = bus.clone();
        sending = Some(tokio::spawn(async move {
            bus.send(&batch).await.expect("brokers that answer");
        }));
    }
    if let Some(sending) = sending {
        sending.await.expect("no panic");
    }
    began.elapsed()
}

/// Receives and decodes a topic.
async fn receive(bus: &dyn MessageBus, topic: &TopicName, count: usize) -> Duration {
    let from = (0..PARTITIONS).map(|id| (TopicPartition::new(topic.clone(), id), SeekTo::Earliest));
    let request = qi_core::bus::ReaderRequest::new(from).expect("partitions");
    let mut reader = bus.open_reader(request).await.expect("a topic");
    let (began, mut found) = (Instant::now(), 0);
    while found < count {
        let batch = reader.recv(1_000, Duration::from_secs(5)).await.expect("brokers that answer");
        found += batch.decode::<PriceTick>().records.len();
    }
    let took = began.elapsed();
    reader.close().await.expect("a reader that closes");
    took
}

async fn insert(store: &dyn PriceStore, ticks: &[PriceTick]) -> Duration {
    let began = Instant::now();
    for chunk in ticks.chunks(50_000) {
        store.insert_ticks(chunk).await.expect("a store that answers");
    }
    began.elapsed()
}

/// An ingest in a task.
pub(crate) struct Running {
    pub(crate) progress: Arc<IngestProgress>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn start(
        bus: Arc<dyn MessageBus>,
        store: Arc<dyn PriceStore>,
        topic: &TopicName,
    ) -> Self {
        let request = SubscribeRequest::new(GroupId::new(unique()).expect("a group"), [topic.clone()])
            .expect("a topic");
        let config = IngestConfig::default();
        let mut ingest =
            Ingest::open(bus, store, PriceTick::DATASET, request, config).await.expect("an ingest");
        let (progress, stop) = (ingest.progress().clone(), CancellationToken::new());
        let stopped = stop.clone().cancelled_owned();
        let task = tokio::spawn(async move {
            ingest.run_until(stopped).await.expect("servers that answer");
            ingest.close().await.expect("a group");
        });
        Self { progress, stop, task }
    }

    /// Waits until this number of records is stored.
    pub(crate) async fn stored(&self, count: usize) {
        while self.progress.stored() < count as u64 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("no panic");
    }
}

pub(crate) fn rate(took: Duration) -> String {
    format!("{:.0} ticks/s", TICKS as f64 / took.as_secs_f64())
}

fn pipeline(setup: &Setup) {
    let Some(brokers) = variable("QI_KAFKA_BROKERS") else {
        return println!("pipeline: QI_KAFKA_BROKERS is not set, so nothing was measured");
    };
    for (database, url) in databases() {
        let bus = setup.bus(&brokers);
        for encoding in Encoding::ALL {
            let mut rounds: [Vec<Duration>; 5] = Default::default();
            let mut ratios = Vec::new();
            for _ in 0..setup.rounds {
                let took = setup.block_on(async {
                    let (first, second) = (topic(&*bus, PARTITIONS).await, topic(&*bus, PARTITIONS).await);
                    let published = publish(bus.clone(), first.clone(), &setup.ticks, encoding).await;
                    let received = receive(&*bus, &first, TICKS).await;
                    let stored = insert(&*create(database, &url).await, &setup.ticks).await;
                    let store = create(database, &url).await;
                    let running = Running::start(bus.clone(), store, &second).await;
                    // The first tick arrives when the group has assigned the partitions.
                    publish(bus.clone(), second.clone(), &setup.ticks[..1], encoding).await;
                    running.stored(1).await;
                    let (began, processor) = (Instant::now(), processor_time());
                    publish(bus.clone(), second.clone(), &setup.ticks[1..], encoding).await;
                    running.stored(TICKS).await;
                    let (whole, processor) = (began.elapsed(), processor_time().saturating_sub(processor));
                    running.stop().await;
                    let _ = bus.delete_topics(&[first, second]).await;
                    [published, received, stored, whole, processor]
                });
                let slowest = took[..3].iter().max().copied().unwrap_or_default();
                ratios.push(slowest.as_secs_f64() / took[3].as_secs_f64());
                for (all, took) in rounds.iter_mut().zip(took) {
                    all.push(took);
                }
            }
            ratios.sort_by(f64::total_cmp);
            let [published, received, stored, whole, processor] = rounds.map(median);
            let [published, received, stored, whole] = [published, received, stored, whole].map(rate);
            println!(
                "{database}, {encoding}: pipeline {whole}; alone: publish {published}, receive and decode {received}, \
                 store {stored}; share of the slowest part {:.2} (median of {} rounds); processor time of the \
                 pipeline {:.1} us a tick",
                ratios[ratios.len() / 2],
                setup.rounds,
                processor.as_secs_f64() * 1e6 / TICKS as f64
            );
        }
    }
}

/// Returns the ratios of both sides of a comparison as text.
pub(crate) fn compare(
    setup: &Setup,
    ours: impl FnMut() -> Duration,
    theirs: impl FnMut() -> Duration,
) -> qi_benches::Ratio {
    ratio(setup.rounds, ours, theirs)
}
