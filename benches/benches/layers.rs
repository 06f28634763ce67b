//! The cost of the six layers per call: the full stack against the bare memory backend, with a metrics exporter.
//! The benchmark runs once without a subscriber and once with a subscriber that takes every span.
//!
//! `cargo bench -p qi-benches --bench layers` prints interleaved pairs. The variable `ROUNDS` sets their number.
#![allow(missing_docs, reason = "a benchmark has no public items")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use qi_benches::{Ratio, ratio, timed};
use qi_core::bus::{Message, MessageBus, MessageBusExt, PublishOptions, TopicName, TopicSpec};
use qi_core::layer::LayerStack;
use qi_core::store::{PriceStore, PriceStoreExt, RangeQuery};
use qi_core::{Instrument, PriceTick, TimeRange, Timestamp};
use qi_testkit::bus::MemoryBus;
use qi_testkit::store::MemoryStore;
use tokio::runtime::Runtime;

/// The maximum cost of all six layers per call.
const GOAL: Duration = Duration::from_micros(2);

fn main() {
    let _exporter = PrometheusBuilder::new().install_recorder().expect("the first exporter");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(31);
    measure(&runtime, rounds, "no subscriber");
    let taken = tracing_subscriber::registry();
    tracing::subscriber::with_default(taken, || measure(&runtime, rounds, "every span taken"));
}

fn measure(runtime: &Runtime, rounds: usize, spans: &str) {
    stores(runtime, rounds, spans);
    buses(runtime, rounds, spans);
}

fn stores(runtime: &Runtime, rounds: usize, spans: &str) {
    let bare: Arc<dyn PriceStore> = Arc::new(MemoryStore::default());
    runtime.block_on(bare.ensure_schema()).expect("a schema");
    let full = LayerStack::default().wrap_store(bare.clone());
    let many = ticks(200_000);
    for (records, calls) in [(0, 20_000), (1, 20_000), (1_000, 200)] {
        let insert = |store: &Arc<dyn PriceStore>| {
            timed(|| {
                runtime.block_on(async {
                    for _ in 0..calls {
                        black_box(store.insert_ticks(&many[..records]).await.expect("room"));
                    }
                });
            })
        };
        let measured = ratio(rounds, || insert(&full), || insert(&bare));
        show(&format!("insert the same {records} ticks again, {spans}"), calls, &measured);
    }
    let range = TimeRange::new(many[0].ts(), Timestamp::MAX).expect("in order");
    let query = RangeQuery::new(many[0].instrument().clone(), range).with_limit(1_000).expect("a page");
    let read = |store: &Arc<dyn PriceStore>| {
        timed(|| {
            runtime.block_on(async {
                for _ in 0..200 {
                    black_box(store.ticks(&query).await.expect("a page"));
                }
            });
        })
    };
    show(&format!("read 1000 ticks, {spans}"), 200, &ratio(rounds, || read(&full), || read(&bare)));
    let new = |stack: &LayerStack| {
        let store = MemoryStore::default();
        runtime.block_on(store.ensure_schema()).expect("a schema");
        let store = stack.wrap_store(store);
        timed(|| {
            runtime.block_on(async {
                for batch in many.chunks(1_000) {
                    black_box(store.insert_ticks(batch).await.expect("room"));
                }
            });
            store
        })
    };
    let measured = ratio(rounds, || new(&LayerStack::default()), || new(&LayerStack::none()));
    show(&format!("insert 1000 new ticks, {spans}"), 200, &measured);
}

fn buses(runtime: &Runtime, rounds: usize, spans: &str) {
    let bare: Arc<dyn MessageBus> = Arc::new(MemoryBus::default());
    let full = LayerStack::default().wrap_bus(bare.clone());
    let nothing = |bus: &Arc<dyn MessageBus>| {
        timed(|| {
            runtime.block_on(async {
                for _ in 0..20_000 {
                    let _ = black_box(bus.publish(&[], PublishOptions::NONE).await.expect("an open bus"));
                }
            });
        })
    };
    let measured = ratio(rounds, || nothing(&full), || nothing(&bare));
    show(&format!("publish nothing, {spans}"), 20_000, &measured);

    let topic = TopicName::new("t").expect("a valid name");
    let message = |n: usize| Message::new(topic.clone(), vec![0; 100]).with_key(format!("key {}", n % 100));
    let batch: Vec<_> = (0..1_000).map(message).collect();
    let thousand = |stack: &LayerStack| {
        let bus = MemoryBus::default();
        let spec = TopicSpec::new(topic.clone(), 12).expect("valid");
        runtime.block_on(bus.create_topics(&[spec])).expect("a topic");
        let bus = stack.wrap_bus(bus);
        timed(|| {
            runtime.block_on(async {
                for _ in 0..200 {
                    black_box(bus.send(&batch).await.expect("room"));
                }
            });
            bus
        })
    };
    let measured = ratio(rounds, || thousand(&LayerStack::default()), || thousand(&LayerStack::none()));
    show(&format!("publish 1000 messages, {spans}"), 200, &measured);
}

fn show(what: &str, calls: u32, measured: &Ratio) {
    let more = measured.ours.saturating_sub(measured.baseline) / calls;
    println!("{what}: {more:?} more a call (goal {GOAL:?}); full stack / bare {measured}");
}

fn ticks(count: usize) -> Vec<PriceTick> {
    let name: Instrument = "binance:BTC-USDT".parse().expect("a valid name");
    let price = "39000.5".parse().expect("a price");
    (0..count)
        .map(|n| {
            let millis = 1_700_000_000_000 + i64::try_from(n).expect("a small number");
            let ts = Timestamp::from_millis(millis).expect("a time of 2023");
            PriceTick::new(name.clone(), ts, n as u64, price).expect("a valid tick")
        })
        .collect()
}
