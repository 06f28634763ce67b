//! What the six wrappers cost a call: the full stack beside the bare memory backend, with an exporter for metrics
//! that really counts, and once without and once with a subscriber that takes every span.
//!
//! `cargo bench -p qi-benches --bench wrappers` prints interleaved pairs; in the environment `ROUNDS` sets how many.
#![allow(missing_docs, reason = "a benchmark has no public items")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use qi_benches::{Ratio, ratio, timed};
use qi_core::bus::{MessageBus, PublishOptions};
use qi_core::layer::Wrappers;
use qi_core::store::{PriceStore, RangeQuery};
use qi_core::{Instrument, PriceTick, TimeRange, Timestamp};
use qi_testkit::bus::MemoryBus;
use qi_testkit::store::MemoryStore;
use tokio::runtime::Runtime;

/// What all six may cost a call.
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
    let wrappers = Wrappers::default();
    let bare: Arc<dyn PriceStore> = Arc::new(MemoryStore::default());
    runtime.block_on(bare.ensure_schema()).expect("a schema");
    let full = wrappers.around_store(bare.clone()).expect("valid policies");
    let ticks = ticks(1_000);
    for (records, calls) in [(0, 20_000), (1, 20_000), (1_000, 200)] {
        let batch = &ticks[..records];
        let insert = |store: &Arc<dyn PriceStore>| {
            timed(|| {
                runtime.block_on(async {
                    for _ in 0..calls {
                        black_box(store.insert_ticks(batch).await.expect("room"));
                    }
                });
            })
        };
        show(
            &format!("insert {records} ticks, {spans}"),
            calls,
            &ratio(rounds, || insert(&full), || insert(&bare)),
        );
    }
    let range = TimeRange::new(ticks[0].ts(), Timestamp::MAX).expect("in order");
    let query = RangeQuery::new(ticks[0].instrument().clone(), range).with_limit(1_000).expect("a page");
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

    let bare: Arc<dyn MessageBus> = Arc::new(MemoryBus::default());
    let full = wrappers.around_bus(bare.clone()).expect("valid policies");
    let publish = |bus: &Arc<dyn MessageBus>| {
        timed(|| {
            runtime.block_on(async {
                for _ in 0..20_000 {
                    let _ = black_box(bus.publish(&[], PublishOptions::NONE).await.expect("an open bus"));
                }
            });
        })
    };
    show(&format!("publish nothing, {spans}"), 20_000, &ratio(rounds, || publish(&full), || publish(&bare)));
}

fn show(what: &str, calls: u32, measured: &Ratio) {
    let more = measured.ours.saturating_sub(measured.rival) / calls;
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
