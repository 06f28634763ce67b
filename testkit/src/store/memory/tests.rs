//! Tests of behaviour that only the memory store has: its bounds, its retention, and its cooperation with other tasks.

use std::sync::atomic::{AtomicI64, AtomicUsize};
use std::time::Duration;

use qi_core::store::{InstrumentQuery, LatestQuery, PriceStoreExt, RangeQuery, Retention};
use qi_core::{Instrument, MarketSnapshot, Quote, Scope, Selection, SnapshotValues, TimeRange};

use super::super::{MemoryStoreConfig, RetentionConfig, RetentionRule};
use super::*;

/// A clock that the test sets, in seconds.
#[derive(Debug)]
struct SettableClock(AtomicI64);

impl SettableClock {
    fn at(secs: i64) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(secs)))
    }
}

impl Clock for SettableClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_secs(self.0.load(Ordering::SeqCst)).unwrap()
    }
}

fn instrument(n: usize) -> Instrument {
    format!("x:S{n}").parse().unwrap()
}

fn tick(of: usize, secs: i64) -> PriceTick {
    PriceTick::new(instrument(of), Timestamp::from_secs(secs).unwrap(), 0, "1".parse().unwrap()).unwrap()
}

async fn ready(config: MemoryStoreConfig) -> MemoryStore {
    let store = MemoryStore::new(config).unwrap();
    store.ensure_schema().await.unwrap();
    store
}

fn retention_of_ticks(keep: RetentionRule) -> MemoryStoreConfig {
    let retention = RetentionConfig::default().with_rule("ticks", keep);
    MemoryStoreConfig::default().with_retention(retention)
}

/// Returns the times of an instrument's stored ticks in seconds.
async fn seconds(store: &MemoryStore, of: usize) -> Vec<i64> {
    let query = RangeQuery::new(instrument(of), TimeRange::ALL).with_limit(10_000).unwrap();
    let page = store.ticks(&query).await.unwrap();
    page.items.iter().map(|tick| tick.ts().as_micros() / 1_000_000).collect()
}

const T: i64 = 1_000_000;

#[tokio::test]
async fn full_store_rejects_new_keys_without_retry() {
    let store = ready(MemoryStoreConfig::default().with_max_rows(3)).await;
    store.insert_ticks(&[tick(0, T), tick(1, T)]).await.unwrap();
    let error = store.insert_ticks(&[tick(2, T), tick(3, T), tick(4, T)]).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Overloaded, "store.memory.full"));
    assert_eq!((error.retry(), error.operation()), (RetryAdvice::Never, "insert"));
    assert_eq!(error.context_value("max_rows"), Some("3"));
    assert_eq!(store.rows(), 3, "the records before the rejected record are stored");
    assert!(seconds(&store, 3).await.is_empty());
    let list = InstrumentQuery::new(PriceTick::DATASET);
    assert_eq!(store.instruments(&list).await.unwrap().items.len(), 3, "no empty series remains");
}

#[tokio::test]
async fn full_store_replaces_known_keys_and_accepts_new_keys_after_a_deletion() {
    let store = ready(MemoryStoreConfig::default().with_max_rows(2)).await;
    store.insert_ticks(&[tick(0, T), tick(0, T + 1)]).await.unwrap();
    let corrected = tick(0, T).with_quantity(qi_core::Quantity::ZERO);
    store.insert_ticks(std::slice::from_ref(&corrected)).await.unwrap();
    assert_eq!(store.rows(), 2);
    let query = RangeQuery::new(instrument(0), TimeRange::ALL);
    assert_eq!(store.ticks(&query).await.unwrap().items[0], corrected);
    store.purge_before(PriceTick::DATASET, Timestamp::from_secs(T + 1).unwrap()).await.unwrap();
    assert_eq!(store.rows(), 1);
    store.insert_ticks(&[tick(5, T)]).await.unwrap();
}

#[tokio::test]
async fn all_datasets_share_max_rows() {
    let store = ready(MemoryStoreConfig::default().with_max_rows(1)).await;
    store.insert_ticks(&[tick(0, T)]).await.unwrap();
    let values = SnapshotValues { markets: Some(1), ..SnapshotValues::default() };
    let snapshot = MarketSnapshot::new(Scope::Global, Timestamp::from_secs(T).unwrap(), values).unwrap();
    let error = store.insert_snapshots(&[snapshot]).await.unwrap_err();
    assert_eq!((error.code(), error.operation()), ("store.memory.full", "insert"));
}

#[tokio::test]
async fn retention_by_rows_keeps_the_newest_of_each_series() {
    let store = ready(retention_of_ticks(RetentionRule::by_rows(3))).await;
    for secs in [5, 1, 4, 2, 3, 9] {
        store.insert_ticks(&[tick(0, T + secs), tick(1, T + 10 * secs)]).await.unwrap();
    }
    assert_eq!(seconds(&store, 0).await, [T + 4, T + 5, T + 9]);
    assert_eq!(seconds(&store, 1).await, [T + 40, T + 50, T + 90]);
    let many: Vec<_> = (100..25_000).map(|n| tick(0, T + n)).collect();
    store.insert_ticks(&many).await.unwrap();
    assert_eq!(seconds(&store, 0).await, [T + 24_997, T + 24_998, T + 24_999]);
    assert_eq!(store.rows(), 6);
    store.insert_ticks(&[tick(0, T)]).await.unwrap();
    assert_eq!(store.rows(), 6, "a record older than all kept records is removed immediately");
    assert_eq!(store.info().retention, [Retention::RowsPerSeries(PriceTick::DATASET, 3)]);
}

#[tokio::test]
async fn retention_by_rows_frees_space_in_a_full_store() {
    let store = ready(retention_of_ticks(RetentionRule::by_rows(2)).with_max_rows(2)).await;
    for secs in 0..10 {
        store.insert_ticks(&[tick(0, T + secs)]).await.unwrap();
    }
    let batch: Vec<_> = (5..20).map(|n| tick(0, T + n)).collect();
    store.insert_ticks(&batch).await.unwrap();
    assert_eq!(seconds(&store, 0).await, [T + 18, T + 19]);
    store.insert_ticks(&[tick(0, T)]).await.unwrap();
    assert_eq!(seconds(&store, 0).await, [T + 18, T + 19]);
    let error = store.insert_ticks(&[tick(1, T)]).await.unwrap_err();
    assert_eq!(error.code(), "store.memory.full", "another series has no record to evict");
}

#[tokio::test]
async fn retention_by_age_uses_the_clock() {
    let clock = SettableClock::at(T);
    let store = MemoryStore::with_clock(
        retention_of_ticks(RetentionRule::by_age(Duration::from_mins(1))),
        clock.clone(),
    )
    .unwrap();
    store.ensure_schema().await.unwrap();
    store.insert_ticks(&[tick(0, T - 61), tick(0, T - 60), tick(0, T), tick(1, T - 30)]).await.unwrap();
    assert_eq!(seconds(&store, 0).await, [T - 60, T], "records older than one minute are expired");
    clock.0.store(T + 31, Ordering::SeqCst);
    store.insert_ticks(&[tick(2, T)]).await.unwrap();
    assert_eq!(seconds(&store, 0).await, [T]);
    assert!(seconds(&store, 1).await.is_empty(), "records of other series expire too");
    clock.0.store(T + 1_000, Ordering::SeqCst);
    assert_eq!(store.rows(), 2, "only an insert removes records");
    store.insert_ticks(&[]).await.unwrap();
    assert_eq!(store.rows(), 2, "an empty batch changes nothing");
    store.insert_ticks(&[tick(3, T + 1_000)]).await.unwrap();
    assert_eq!(store.rows(), 1);
    assert_eq!(store.info().retention, [Retention::Age(PriceTick::DATASET, Duration::from_mins(1))]);
}

#[tokio::test]
async fn expired_record_needs_no_space() {
    let config = retention_of_ticks(RetentionRule::by_age(Duration::from_mins(1))).with_max_rows(2);
    let store = MemoryStore::with_clock(config, SettableClock::at(T)).unwrap();
    store.ensure_schema().await.unwrap();
    store.insert_ticks(&[tick(0, T - 1), tick(0, T - 2)]).await.unwrap();
    let corrected = tick(0, T - 1).with_quantity(qi_core::Quantity::ZERO);
    let batch = [tick(0, T - 100), tick(1, T - 61), corrected.clone()];
    assert_eq!(store.insert_ticks(&batch).await.unwrap().received, 3);
    assert_eq!(seconds(&store, 0).await, [T - 2, T - 1]);
    let query = RangeQuery::new(instrument(0), TimeRange::ALL).descending();
    assert_eq!(
        store.ticks(&query).await.unwrap().items[0],
        corrected,
        "the later records of the batch are stored"
    );
    let list = InstrumentQuery::new(PriceTick::DATASET);
    assert_eq!(store.instruments(&list).await.unwrap().items.len(), 1, "no empty series remains");
    let error = store.insert_ticks(&[tick(1, T - 60)]).await.unwrap_err();
    assert_eq!(error.code(), "store.memory.full", "a record within the retention needs space");
}

#[tokio::test]
async fn full_store_first_expires_every_dataset() {
    let clock = SettableClock::at(T);
    let config = retention_of_ticks(RetentionRule::by_age(Duration::from_mins(1))).with_max_rows(2);
    let store = MemoryStore::with_clock(config, clock.clone()).unwrap();
    store.ensure_schema().await.unwrap();
    store.insert_ticks(&[tick(0, T), tick(1, T + 30)]).await.unwrap();
    clock.0.store(T + 61, Ordering::SeqCst);
    let quote = |secs| {
        let values = qi_core::QuoteValues { bid_price: "1".parse().ok(), ..Default::default() };
        Quote::new(instrument(0), Timestamp::from_secs(secs).unwrap(), 0, values).unwrap()
    };
    store.insert_quotes(&[quote(T)]).await.unwrap();
    assert!(seconds(&store, 0).await.is_empty(), "the expired tick was removed");
    assert_eq!(seconds(&store, 1).await, [T + 30]);
    let error = store.insert_quotes(&[quote(T + 1)]).await.unwrap_err();
    assert_eq!((error.code(), store.rows()), ("store.memory.full", 2), "no other record is removed");
}

#[tokio::test]
async fn retention_of_one_dataset_does_not_affect_others() {
    let store = ready(retention_of_ticks(RetentionRule {
        max_age: Some(Duration::from_secs(1)),
        max_rows_per_series: Some(1),
    }))
    .await;
    let quote = qi_core::Quote::new(
        instrument(0),
        Timestamp::from_secs(T).unwrap(),
        0,
        qi_core::QuoteValues { bid_price: "1".parse().ok(), ..Default::default() },
    );
    store.insert_quotes(&[quote.unwrap()]).await.unwrap();
    store.insert_ticks(&[tick(0, T)]).await.unwrap();
    assert_eq!(store.rows(), 1, "the tick is expired and the quote is kept");
}

#[tokio::test]
async fn without_retention_no_record_is_removed() {
    let store = ready(MemoryStoreConfig::default()).await;
    assert!(store.info().retention.is_empty());
    let batch: Vec<_> = (0..30_000).map(|n| tick(0, T + n)).collect();
    store.insert_ticks(&batch).await.unwrap();
    assert_eq!(store.rows(), 30_000);
}

#[tokio::test]
async fn tight_loop_of_ready_calls_yields() {
    let store = Arc::new(ready(MemoryStoreConfig::default()).await);
    let turns = Arc::new(AtomicUsize::new(0));
    let other = turns.clone();
    let counter = tokio::spawn(async move {
        loop {
            other.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
        }
    });
    // The runtime has one thread. Without the budget, only this loop would run.
    let looping = tokio::spawn(async move {
        let query = RangeQuery::new(instrument(0), TimeRange::ALL);
        loop {
            store.ticks(&query).await.unwrap();
        }
    });
    while turns.load(Ordering::SeqCst) < 100 {
        tokio::task::yield_now().await;
    }
    looping.abort();
    assert!(looping.await.unwrap_err().is_cancelled(), "the loop was cancelled");
    counter.abort();
}

#[tokio::test]
async fn every_method_yields() {
    let store = ready(MemoryStoreConfig::default()).await;
    let latest = LatestQuery::new(Selection::All);
    let stats = StatsQuery::new(instrument(0), TimeRange::ALL);
    let tick = tick(0, T);
    for method in 0..6 {
        // This consumes the budget, so the next call in the same poll must yield before it returns.
        let first = futures::poll!(std::pin::pin!(async {
            while tokio::task::coop::has_budget_remaining() {
                tokio::task::coop::consume_budget().await;
            }
            let answer: Result<()> = match method {
                0 => store.ping().await.map(drop),
                1 => store.insert_tick(&tick).await,
                2 => store.latest_ticks(&latest).await.map(drop),
                3 => store.stats(&stats).await.map(drop),
                4 => store.ensure_schema().await.map(drop),
                _ => store.purge_before(PriceTick::DATASET, Timestamp::MIN).await,
            };
            answer
        }));
        assert!(first.is_pending(), "method {method}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn large_batch_yields_to_readers() {
    let store = ready(MemoryStoreConfig::default()).await;
    let batch: Vec<_> = (0..50_000).map(|n| tick(0, T + n)).collect();
    let mut insert = Box::pin(store.insert_ticks(&batch));
    assert!(futures::poll!(&mut insert).is_pending());
    assert_eq!(store.rows(), INSERT_SLICE);
    drop(insert);
    assert_eq!(store.rows(), INSERT_SLICE, "a dropped insert keeps its written records");
    let report = store.insert_ticks(&batch).await.unwrap();
    assert_eq!((report.received, report.duplicates_in_batch, store.rows()), (50_000, 0, 50_000));
}

#[tokio::test]
async fn duplicates_are_counted_across_the_slices_of_a_batch() {
    let store = ready(MemoryStoreConfig::default()).await;
    let mut batch: Vec<_> = (0..25_000).map(|n| tick(0, T + n)).collect();
    batch.extend_from_within(..100);
    for _ in 0..2 {
        assert_eq!(store.insert_ticks(&batch).await.unwrap().duplicates_in_batch, 100);
    }
}

#[tokio::test]
async fn close_waits_for_pending_calls_and_frees_all_records() {
    let store = ready(MemoryStoreConfig::default()).await;
    let batch: Vec<_> = (0..50_000).map(|n| tick(0, T + n)).collect();
    let mut insert = Box::pin(store.insert_ticks(&batch));
    assert!(futures::poll!(&mut insert).is_pending());
    let mut close = Box::pin(store.close());
    assert!(futures::poll!(&mut close).is_pending(), "an insert is pending");
    let ping = store.ping().await.unwrap_err();
    assert_eq!((ping.kind(), ping.code()), (ErrorKind::Closed, "store.memory.closed"));
    assert_eq!(insert.await.unwrap().received, 50_000, "the pending insert completes");
    close.await.unwrap();
    assert_eq!(store.rows(), 0);
    store.close().await.unwrap();
}

#[tokio::test]
async fn close_does_not_wait_for_a_dropped_call() {
    let store = ready(MemoryStoreConfig::default()).await;
    let batch: Vec<_> = (0..50_000).map(|n| tick(0, T + n)).collect();
    let mut insert = Box::pin(store.insert_ticks(&batch));
    assert!(futures::poll!(&mut insert).is_pending());
    drop(insert);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_readers_see_complete_records_in_order() {
    let store = Arc::new(ready(retention_of_ticks(RetentionRule::by_rows(500))).await);
    let writers = (0..2).map(|of| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..2_000 {
                store.insert_ticks(&[tick(of, T + n), tick(2, T + n)]).await.unwrap();
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    while writers.iter().any(|writer| !writer.is_finished()) {
        for of in 0..3 {
            let found = seconds(&store, of).await;
            assert!(found.is_sorted() && found.len() <= 500, "{} of {of}", found.len());
        }
        tokio::task::yield_now().await;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(store.rows(), 1_500);
}

#[tokio::test]
async fn empty_batch_needs_no_schema_and_no_space() {
    let store = MemoryStore::new(MemoryStoreConfig::default().with_max_rows(1)).unwrap();
    store.insert_ticks(&[]).await.unwrap();
    assert_eq!(store.insert_tick(&tick(0, T)).await.unwrap_err().code(), "store.memory.no_schema");
    store.ensure_schema().await.unwrap();
    store.insert_tick(&tick(0, T)).await.unwrap();
    store.insert_ticks(&[]).await.unwrap();
}
