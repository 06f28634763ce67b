//! The memory store, compared with a plain `BTreeMap` of the same keys and with itself behind `Arc<dyn PriceStore>`.
//!
//! `cargo bench -p qi-benches --bench store` measures interleaved pairs and prints each ratio with its goal. Then
//! criterion measures the store alone. The argument `ratios` omits criterion. The variable `ROUNDS` sets the number of
//! pairs of inserts, and `INPUT` selects the inputs whose name contains it.
#![allow(missing_docs, reason = "a benchmark has no public items")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput};
use qi_benches::{ratio, timed};
use qi_core::store::{PriceStore, PriceStoreExt, RangeQuery};
use qi_core::{Instrument, PriceTick, Quantity, TimeRange, Timestamp};
use qi_testkit::store::MemoryStore;
use tokio::runtime::Runtime;

const MILLION: usize = 1_000_000;

type Map = BTreeMap<(Instrument, Timestamp, u64), PriceTick>;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(9);
    let inputs = [
        ("1 instrument in time order", ticks(1)),
        ("100 instruments interleaved", ticks(100)),
        ("100 instruments in random order", shuffled(ticks(100))),
        ("1 instrument in random order", shuffled(ticks(1))),
    ];
    let chosen = std::env::var("INPUT").unwrap_or_default();
    for (name, ticks) in inputs.iter().filter(|(name, _)| name.contains(&chosen)) {
        // Feeds are almost in the order of time. Random order is measured without a goal.
        let goal = if name.contains("random") { "no goal" } else { "goal 1.0" };
        for (batch, words) in [(1_000, "batches of 1,000"), (MILLION, "one batch")] {
            let measured =
                ratio(rounds, || store_insert(&runtime, ticks, batch), || map_insert(ticks, batch));
            println!("insert 1,000,000 ticks / BTreeMap, {name}, {words} ({goal}): {measured}");
        }
    }
    for (name, ticks) in &inputs[..2] {
        let (store, map) = (filled(&runtime, ticks), map_of(ticks));
        let (query, from, to) = range_of_10_000(ticks);
        let measured = ratio(
            101,
            || timed(|| runtime.block_on(store.ticks(&query)).expect("a page")),
            || {
                timed(|| {
                    map.range(from.clone()..to.clone()).map(|(_, tick)| tick.clone()).collect::<Vec<_>>()
                })
            },
        );
        println!("read 10,000 of 1,000,000 / BTreeMap range, {name} (goal 1.0): {measured}");
    }
    let ticks = &inputs[0].1;
    let measured = ratio(
        30,
        || insert_batches(&runtime, fresh_dyn(&runtime), &ticks[..100_000]),
        || insert_batches(&runtime, fresh(&runtime), &ticks[..100_000]),
    );
    println!("Arc<dyn PriceStore> / MemoryStore, batches of 1,000 (goal 1.05): {measured}");
    if !std::env::args().any(|argument| argument == "ratios") {
        criterion_times(&runtime, &inputs);
    }
}

/// Returns a million ticks, one millisecond apart, of this number of instruments in turn.
fn ticks(instruments: usize) -> Vec<PriceTick> {
    let names: Vec<Instrument> =
        (0..instruments).map(|n| format!("binance:COIN{n:03}-USDT").parse().expect("a valid name")).collect();
    let quantity: Quantity = "0.000263".parse().expect("a quantity");
    (0..MILLION)
        .map(|n| {
            let millis = 1_700_000_000_000 + i64::try_from(n).expect("below a million");
            let ts = Timestamp::from_millis(millis).expect("a time of 2023");
            let price = format!("{}.5", 39_000 + n % 500).parse().expect("a price");
            PriceTick::new(names[n % instruments].clone(), ts, n as u64, price)
                .expect("a valid tick")
                .with_quantity(quantity)
        })
        .collect()
}

/// Returns the ticks in a fixed random order. Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
/// Generators" (`SplitMix64`), with the shuffle of Fisher and Yates.
fn shuffled(mut ticks: Vec<PriceTick>) -> Vec<PriceTick> {
    let mut state: u64 = 42;
    for n in (1..ticks.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let at = (z ^ (z >> 31)) % (n as u64 + 1);
        ticks.swap(n, usize::try_from(at).expect("an index below a million"));
    }
    ticks
}

fn fresh(runtime: &Runtime) -> MemoryStore {
    let store = MemoryStore::default();
    runtime.block_on(store.ensure_schema()).expect("a schema");
    store
}

fn fresh_dyn(runtime: &Runtime) -> Arc<dyn PriceStore> {
    Arc::new(fresh(runtime))
}

fn filled(runtime: &Runtime, ticks: &[PriceTick]) -> MemoryStore {
    let store = fresh(runtime);
    runtime.block_on(store.insert_ticks(ticks)).expect("room for a million");
    store
}

/// Returns the time of the inserts. The store is dropped after the measurement.
fn store_insert(runtime: &Runtime, ticks: &[PriceTick], batch: usize) -> Duration {
    let store = fresh(runtime);
    timed(|| {
        runtime.block_on(async {
            for part in ticks.chunks(batch) {
                black_box(store.insert_ticks(part).await.expect("room for a million"));
            }
        });
        store
    })
}

fn insert_batches(runtime: &Runtime, store: impl PriceStore, ticks: &[PriceTick]) -> Duration {
    timed(|| {
        runtime.block_on(async {
            for part in ticks.chunks(1_000) {
                black_box(store.insert_ticks(part).await.expect("room"));
            }
        });
        store
    })
}

fn map_insert(ticks: &[PriceTick], batch: usize) -> Duration {
    timed(|| {
        let mut map = Map::new();
        for part in ticks.chunks(batch) {
            for tick in part {
                map.insert((tick.instrument().clone(), tick.ts(), tick.seq()), tick.clone());
            }
        }
        map
    })
}

fn map_of(ticks: &[PriceTick]) -> Map {
    ticks.iter().map(|tick| ((tick.instrument().clone(), tick.ts(), tick.seq()), tick.clone())).collect()
}

type Key = (Instrument, Timestamp, u64);

/// Selects the middle 10,000 ticks of the first tick's instrument.
fn range_of_10_000(ticks: &[PriceTick]) -> (RangeQuery, Key, Key) {
    let own: Vec<&PriceTick> = ticks.iter().filter(|t| t.instrument() == ticks[0].instrument()).collect();
    let start = (own.len() - 10_000) / 2;
    let from = own[start].ts();
    let to = own.get(start + 10_000).map_or(Timestamp::MAX, |tick| tick.ts());
    let instrument = own[0].instrument().clone();
    let range = TimeRange::new(from, to).expect("in order");
    let query = RangeQuery::new(instrument.clone(), range).with_limit(10_000).expect("the largest page");
    (query, (instrument.clone(), from, 0), (instrument, to, 0))
}

fn criterion_times(runtime: &Runtime, inputs: &[(&str, Vec<PriceTick>)]) {
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let mut group = criterion.benchmark_group("memory_store");
    group.throughput(Throughput::Elements(MILLION as u64));
    for (name, ticks) in inputs {
        group.bench_function(format!("insert 1,000 at a time, {name}"), |bench| {
            bench.iter_batched(
                || fresh(runtime),
                |store| insert_batches(runtime, store, ticks),
                BatchSize::PerIteration,
            );
        });
    }
    let (query, ..) = range_of_10_000(&inputs[0].1);
    let store = filled(runtime, &inputs[0].1);
    group.throughput(Throughput::Elements(10_000));
    group.bench_function("read 10,000 of 1,000,000", |bench| {
        bench.iter(|| runtime.block_on(store.ticks(&query)).expect("a page"));
    });
    group.finish();
    criterion.final_summary();
}
