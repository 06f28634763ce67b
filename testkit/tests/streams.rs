//! Streams that own their store.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use futures::TryStreamExt;
use qi_core::prelude::*;
use qi_testkit::store::MemoryStore;

const START: i64 = 1_700_000_040;

fn tick(at: i64) -> PriceTick {
    let ts = Timestamp::from_secs(START + at).unwrap();
    PriceTick::new(Instrument::from_static("x:A"), ts, 0, Price::from_static("1.5")).unwrap()
}

#[tokio::test]
async fn owned_streams_outlive_the_handle_of_their_caller() {
    let store: Arc<dyn PriceStore> = Arc::new(MemoryStore::default());
    store.ensure_schema().await.unwrap();
    let ticks: Vec<_> = (0..250).map(tick).collect();
    store.insert_ticks(&ticks).await.unwrap();

    let range = TimeRange::since(ticks[0].ts());
    let query = RangeQuery::new(Instrument::from_static("x:A"), range).order(Order::Descending);
    let records = store.clone().into_range_stream::<PriceTick>(&query.with_limit(100).unwrap());
    let latest = store.clone().into_latest_stream::<PriceTick>(&LatestQuery::new(Selection::All));
    let bars = BarQuery::new(Instrument::from_static("x:A"), Interval::M1, range).with_limit(2).unwrap();
    let derived = store.clone().into_bar_stream(bars.clone(), BarSource::Derived);
    let filled = store.clone().into_bars_filled(bars.clone(), BarSource::Derived).unwrap();
    let gaps = store.clone().into_gaps(bars.clone(), BarSource::Stored).unwrap();
    assert!(store.clone().into_gaps(bars.descending(), BarSource::Stored).is_err());
    drop(store);

    let records = tokio::spawn(records.try_collect::<Vec<_>>()).await.unwrap().unwrap();
    assert!(records.iter().rev().eq(&ticks));
    assert_eq!(tokio::spawn(latest.try_collect::<Vec<_>>()).await.unwrap().unwrap(), ticks[249..]);
    assert_eq!(tokio::spawn(derived.try_collect::<Vec<_>>()).await.unwrap().unwrap().len(), 5);
    assert_eq!(tokio::spawn(filled.try_collect::<Vec<_>>()).await.unwrap().unwrap().len(), 5);
    // No bar is stored, so the complete range is one gap.
    assert_eq!(tokio::spawn(gaps.try_collect::<Vec<_>>()).await.unwrap().unwrap().len(), 1);
}
