//! `persist_bars` and `PurgeGuard` over the memory store.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use qi_core::layer::{Layered, PurgeGuard};
use qi_core::store::{BarQuery, BarSource, DeleteQuery, PersistRequest, RangeQuery};
use qi_core::{
    Bar, BarValues, Error, ErrorKind, Instrument, Interval, Operation, PriceStore, PriceStoreExt, PriceTick,
    Quantity, Quote, Selection, TimeRange, Timestamp,
};
use qi_testkit::chaos::{Chaos, Fault, Rule};
use qi_testkit::recording::Recording;
use qi_testkit::store::{MemoryStore, MemoryStoreConfig};

const MINUTE: i64 = 60;

fn instrument() -> Instrument {
    "binance:BTC-USDT".parse().unwrap()
}

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_secs(1_704_067_200 + seconds).unwrap()
}

fn tick(of: &Instrument, seconds: i64, price: i64) -> PriceTick {
    let price = price.to_string().parse().unwrap();
    PriceTick::new(of.clone(), time(seconds), 1, price)
        .unwrap()
        .with_quantity("1".parse::<Quantity>().unwrap())
}

/// Returns a store with a tick in each of these minutes.
async fn filled(minutes: impl IntoIterator<Item = i64>) -> Arc<MemoryStore> {
    let mut config = MemoryStoreConfig::default();
    // Small batches give small pages.
    config.max_batch = 10;
    let store = Arc::new(MemoryStore::new(config).unwrap());
    store.ensure_schema().await.unwrap();
    for minute in minutes {
        store.insert_tick(&tick(&instrument(), minute * MINUTE, 100 + minute)).await.unwrap();
    }
    store
}

fn request(until: i64) -> PersistRequest {
    PersistRequest::new(instrument(), Interval::M1, time(until))
}

async fn bars(store: &dyn PriceStore, source: BarSource) -> Vec<Bar> {
    let query = BarQuery::new(instrument(), Interval::M1, TimeRange::ALL);
    store.bar_stream(query, source).try_collect().await.unwrap()
}

/// Returns the counts of a report: derived, written, kept.
async fn persist(store: &dyn PriceStore, request: PersistRequest) -> (u64, u64, u64) {
    let report = store.persist_bars(request).await.unwrap();
    (report.derived, report.written, report.kept)
}

#[tokio::test]
async fn only_closed_bars_of_the_range_are_written() {
    let store = filled(0..35).await;
    // The bar of minute 33 closes exactly at the end, the bar of minute 34 later.
    let first = store.persist_bars(request(34 * MINUTE + 59)).await.unwrap();
    assert_eq!((first.derived, first.written, first.kept, first.resume), (34, 34, 0, time(34 * MINUTE)));
    let derived = bars(&store, BarSource::Derived).await;
    assert_eq!(bars(&store, BarSource::Stored).await, derived[..34]);
    assert_eq!(persist(&store, request(35 * MINUTE).with_since(time(34 * MINUTE))).await, (1, 1, 0));
    assert_eq!(bars(&store, BarSource::Stored).await, derived);
    // The bar that opens before the start is not part of the request.
    assert_eq!(persist(&store, request(35 * MINUTE).with_since(time(33 * MINUTE + 1))).await, (1, 0, 0));
    // A request without a complete bucket, and an instrument without ticks.
    let empty = store.persist_bars(request(MINUTE - 1).with_since(time(0))).await.unwrap();
    assert_eq!((empty.derived, empty.resume), (0, time(0)));
    let after = store.persist_bars(request(0).with_since(time(5 * MINUTE))).await.unwrap();
    assert_eq!((after.derived, after.resume), (0, time(5 * MINUTE)));
    let other = PersistRequest::new("x:Y".parse().unwrap(), Interval::M1, Timestamp::MAX);
    assert_eq!(persist(&store, other).await, (0, 0, 0));
}

#[tokio::test]
async fn a_repeated_request_writes_only_differences() {
    let store = filled((0..40).filter(|minute| minute % 3 != 1)).await;
    let recording = Recording::new(1_000);
    let recorded = Layered::new(store.clone(), recording.clone());
    let count = bars(&store, BarSource::Derived).await.len() as u64;
    assert_eq!(persist(&recorded, request(40 * MINUTE)).await, (count, count, 0));
    let inserts = recording.count(Operation::Insert);
    assert_eq!(persist(&recorded, request(40 * MINUTE)).await, (count, 0, 0));
    assert_eq!(recording.count(Operation::Insert), inserts, "an unchanged range is not written");
    // A late tick, a corrected tick, and stored bars of other programs between the derived ones.
    store.insert_tick(&tick(&instrument(), MINUTE, 7)).await.unwrap();
    store.insert_tick(&tick(&instrument(), 9 * MINUTE, 8)).await.unwrap();
    let imported = BarValues::flat("5".parse().unwrap());
    let mut own = Vec::new();
    for minute in [4, 21, 200] {
        own.push(Bar::new(instrument(), Interval::M1, time(minute * MINUTE), imported).unwrap());
    }
    store.insert_bars(&own).await.unwrap();
    assert_eq!(persist(&recorded, request(40 * MINUTE)).await, (count + 1, 3, 0));
    let stored = bars(&store, BarSource::Stored).await;
    assert_eq!(stored.iter().filter(|bar| own.contains(bar)).count(), 2, "bars without ticks are unchanged");
    let derived = bars(&store, BarSource::Derived).await;
    assert!(derived.iter().all(|bar| stored.contains(bar)));
}

#[tokio::test]
async fn a_bucket_that_lost_ticks_is_kept_unless_it_is_overwritten() {
    let store = filled(0..3).await;
    for second in 1..5 {
        store.insert_tick(&tick(&instrument(), MINUTE + second, 50)).await.unwrap();
    }
    persist(&store, request(3 * MINUTE)).await;
    let complete = bars(&store, BarSource::Stored).await;
    // The cutoff is inside the bucket of minute 1.
    store.purge_before(PriceTick::DATASET, time(MINUTE + 3)).await.unwrap();
    assert_eq!(persist(&store, request(3 * MINUTE)).await, (2, 0, 1));
    assert_eq!(bars(&store, BarSource::Stored).await, complete);
    assert_eq!(persist(&store, request(3 * MINUTE).with_overwrite(true)).await, (2, 1, 0));
    assert_ne!(bars(&store, BarSource::Stored).await, complete);
}

#[tokio::test]
async fn an_interrupted_run_continues() {
    let store = filled(0..60).await;
    let wanted = bars(&store, BarSource::Derived).await;
    let mut pages = store.persist_bar_pages(request(60 * MINUTE));
    let first = pages.next().await.unwrap().unwrap();
    assert_eq!((first.written, first.resume), (10, time(10 * MINUTE)));
    drop(pages);
    let rest = store.persist_bars(request(60 * MINUTE).with_since(first.resume)).await.unwrap();
    assert_eq!((rest.derived, rest.written, rest.resume), (50, 50, time(60 * MINUTE)));
    assert_eq!(bars(&store, BarSource::Stored).await, wanted);
}

/// A store may commit the end of a page before its start.
#[tokio::test]
async fn a_page_that_was_stored_in_part_is_completed() {
    let store = filled(0..60).await;
    let wanted = bars(&store, BarSource::Derived).await;
    assert_eq!(store.persist_start(&instrument(), Interval::M1).await.unwrap(), Timestamp::MIN);
    store.insert_bars(&wanted[..10]).await.unwrap();
    store.insert_bars(&wanted[15..20]).await.unwrap();
    let since = store.persist_start(&instrument(), Interval::M1).await.unwrap();
    assert_eq!(since, time(10 * MINUTE));
    let rest = store.persist_bars(request(60 * MINUTE).with_since(since)).await.unwrap();
    assert_eq!((rest.derived, rest.written), (50, 45));
    assert_eq!(bars(&store, BarSource::Stored).await, wanted);
}

#[tokio::test]
async fn faults_at_every_call_lose_nothing_and_write_no_wrong_bar() {
    for seed in 0..50 {
        let store = filled((0..60).filter(|minute| minute % 7 != 3)).await;
        let wanted = bars(&store, BarSource::Derived).await;
        let faults = [Fault::Error, Fault::LostResponse];
        let chaos = Chaos::seeded(seed).everywhere(Rule::new(0.2, faults));
        let disturbed = Layered::new(store.clone(), chaos.clone());
        let mut runs = 0;
        while let Err(error) = disturbed.persist_bars(request(60 * MINUTE)).await {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            let stored = bars(&store, BarSource::Stored).await;
            assert_eq!(stored, wanted[..stored.len()], "complete pages in order");
            runs += 1;
            assert!(runs < 10_000, "seed {seed}");
        }
        assert_eq!(bars(&store, BarSource::Stored).await, wanted, "seed {seed}");
        assert!(chaos.injected() > 0 || runs == 0);
    }
}

fn rejection(error: &Error) -> (&str, &str, &str) {
    assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "layer.purge_guard.bars"), "{error}");
    let of = |key| error.context_value(key).unwrap();
    (of("instrument"), of("interval"), of("open_time"))
}

async fn ticks(store: &dyn PriceStore) -> usize {
    let query = RangeQuery::new(instrument(), TimeRange::ALL);
    store.tick_stream(query).try_collect::<Vec<_>>().await.unwrap().len()
}

#[tokio::test]
async fn a_purge_without_stored_bars_is_rejected() {
    let store = filled(0..30).await;
    let guard = PurgeGuard::new(store.clone(), Interval::M1);
    assert_eq!(guard.to_string(), "PurgeGuard(memory)");
    let purge = async |minute: i64| guard.purge_before(PriceTick::DATASET, time(minute * MINUTE)).await;
    let missing = purge(30).await.unwrap_err();
    assert_eq!(rejection(&missing), ("binance:BTC-USDT", "1m", "2024-01-01T00:00:00Z"));
    assert!(missing.message().unwrap().contains("a stored bar is missing"), "{missing}");
    let remedy = "qi bars persist --instrument binance:BTC-USDT --interval 1m --since 2024-01-01T00:00:00Z";
    assert_eq!(missing.context_value("remedy"), Some(remedy));
    assert_eq!(ticks(&guard).await, 30, "nothing was purged");

    persist(&guard, request(20 * MINUTE)).await;
    assert_eq!(rejection(&purge(21).await.unwrap_err()).2, "2024-01-01T00:20:00Z");
    purge(15).await.unwrap();
    assert_eq!((ticks(&guard).await, bars(&guard, BarSource::Stored).await.len()), (15, 20));
    // Nothing is left before the cutoff.
    purge(15).await.unwrap();

    // A late tick, and a deleted tick.
    store.insert_tick(&tick(&instrument(), 16 * MINUTE + 1, 1)).await.unwrap();
    let late = purge(20).await.unwrap_err();
    assert!(late.message().unwrap().contains("a stored bar differs from its ticks"), "{late}");
    assert_eq!(rejection(&late).2, "2024-01-01T00:16:00Z");
    persist(&guard, request(20 * MINUTE)).await;
    let range = TimeRange::new(time(16 * MINUTE), time(16 * MINUTE + 1)).unwrap();
    guard.delete_range(&DeleteQuery::ticks(Selection::one(instrument()), range)).await.unwrap();
    let deleted = purge(20).await.unwrap_err();
    assert!(deleted.message().unwrap().contains("counts more ticks than the store has"), "{deleted}");
    assert!(deleted.context_value("remedy").unwrap().ends_with(" --overwrite"), "{deleted}");
    persist(&guard, request(20 * MINUTE).with_overwrite(true)).await;
    purge(20).await.unwrap();
    assert_eq!(ticks(&guard).await, 10);
}

#[tokio::test]
async fn a_purge_is_rejected_for_any_instrument() {
    let store = filled(0..5).await;
    for number in 0..25 {
        let other = format!("x:C{number:02}").parse().unwrap();
        store.insert_tick(&tick(&other, 0, 1)).await.unwrap();
        persist(&store, PersistRequest::new(other, Interval::H1, time(3_600))).await;
    }
    let guard = PurgeGuard::new(store.clone(), Interval::H1);
    let error = guard.purge_before(PriceTick::DATASET, time(3_600)).await.unwrap_err();
    assert_eq!(rejection(&error), ("binance:BTC-USDT", "1h", "2024-01-01T00:00:00Z"));
    persist(&store, PersistRequest::new(instrument(), Interval::H1, time(3_600))).await;
    guard.purge_before(PriceTick::DATASET, time(3_600)).await.unwrap();
    assert_eq!(ticks(&guard).await, 0);
}

#[tokio::test]
async fn the_cutoff_is_rounded_down_to_a_bucket() {
    let store = filled(0..5).await;
    let guard = PurgeGuard::new(store.clone(), Interval::M1);
    store.insert_tick(&tick(&instrument(), 3 * MINUTE + 50, 1)).await.unwrap();
    persist(&store, request(5 * MINUTE)).await;
    let complete = bars(&store, BarSource::Stored).await;
    guard.purge_before(PriceTick::DATASET, time(3 * MINUTE + 30)).await.unwrap();
    assert_eq!(ticks(&guard).await, 3, "the bucket of the cutoff is complete");
    // The guard and persistence still agree.
    assert_eq!(persist(&store, request(5 * MINUTE)).await, (2, 0, 0));
    guard.purge_before(PriceTick::DATASET, Timestamp::MAX).await.unwrap();
    assert_eq!((ticks(&guard).await, bars(&store, BarSource::Stored).await), (0, complete));
}

#[tokio::test]
async fn other_calls_pass_the_guard() {
    let store = filled(0..5).await;
    let guard = PurgeGuard::new(store.clone(), Interval::M1);
    guard.purge_before(Quote::DATASET, Timestamp::MAX).await.unwrap();
    let all = DeleteQuery::ticks(Selection::one(instrument()), TimeRange::ALL);
    guard.delete_range(&all).await.unwrap();
    assert_eq!(ticks(&guard).await, 0);
    // An error of the comparison is an error of the purge.
    let store = filled(0..5).await;
    for operation in [Operation::Series, Operation::DerivedBars, Operation::Range] {
        persist(&store, request(5 * MINUTE)).await;
        let chaos = Chaos::seeded(1);
        chaos.inject_next(operation, Fault::Error);
        let guard = PurgeGuard::new(Layered::new(store.clone(), chaos), Interval::M1);
        let error = guard.purge_before(PriceTick::DATASET, time(5 * MINUTE)).await.unwrap_err();
        assert_eq!((error.kind(), ticks(&guard).await), (ErrorKind::Unavailable, 5), "{operation}");
    }
}
