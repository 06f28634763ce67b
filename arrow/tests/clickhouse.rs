//! The columnar read of ClickHouse returns the same records as its pages, for every dataset and through all layers.
//!
//! The trials need the server of `QI_CLICKHOUSE_URL`, and are ignored without it.
#![allow(clippy::unwrap_used, reason = "a test")]

mod rig;

use std::process::ExitCode;

use futures::TryStreamExt as _;
use libtest_mimic::{Arguments, Completion, Failed, run};
use qi_adapters::clickhouse::{ClickHouseConfig, ClickHouseStore};
use qi_arrow::{decode, range_batches};
use qi_core::layer::LayerStack;
use qi_core::record::{Dataset, RecordVec, SeriesKey};
use qi_core::store::{PageRequest, PriceStore, PriceStoreExt as _, RangeRequest};
use qi_core::{ErrorKind, PriceTick, TimeRange};
use qi_testkit::presence;

/// Returns a store with new tables, and their prefix.
fn open(url: &str) -> (ClickHouseStore, String) {
    let mut config = ClickHouseConfig::from_url(url);
    let prefix = format!("arrow_{}_{:08x}_", std::process::id(), fastrand::u32(..));
    config.table_prefix.clone_from(&prefix);
    config.datasets = rig::datasets();
    (ClickHouseStore::open(config).unwrap(), prefix)
}

async fn close(store: ClickHouseStore, prefix: &str) -> Result<(), Failed> {
    for dataset in rig::datasets().iter().map(Dataset::name).chain(["qi_migrations"]) {
        store.client().query_raw(&format!("DROP TABLE IF EXISTS {prefix}{dataset} SYNC")).execute().await?;
    }
    store.close().await?;
    Ok(())
}

async fn columnar(store: &dyn PriceStore, request: &RangeRequest) -> Result<RecordVec, Failed> {
    let mut all = request.dataset.new_vec();
    let mut batches = range_batches(store, request.clone());
    while let Some(batch) = batches.try_next().await? {
        let records = decode(request.dataset, &batch)?;
        records.as_records().append_to(0..records.len(), &mut all)?;
    }
    Ok(all)
}

fn all_of(dataset: Dataset, series: &SeriesKey) -> RangeRequest {
    RangeRequest::new(dataset, series.clone(), TimeRange::ALL).with_page(PageRequest::bulk(dataset))
}

/// Compares all series of all datasets, directly and through all layers.
async fn datasets(url: String) -> Result<(), Failed> {
    let draws: Vec<rig::Draw> =
        (0..200u32).map(|n| (n as usize % 3, n % 90, u64::from(n), n * 331 % 30_000)).collect();
    let (store, prefix) = open(&url);
    store.ensure_schema().await?;
    let layered = LayerStack::default().wrap_store(store.clone());
    for records in rig::of_every_dataset(&draws) {
        rig::insert(&store, records.as_records()).await;
        // The second version of each row replaces the first.
        rig::insert(&store, records.as_records()).await;
    }
    for dataset in rig::datasets().iter() {
        let all = store.all_series(dataset).await?;
        if all.len() != 3 {
            return Err(format!("{dataset} has {} series", all.len()).into());
        }
        for series in all {
            let expected = rig::all_of(&store, dataset, &series).await;
            let request = all_of(dataset, &series);
            if store.range_arrow(&request).await?.is_none() || layered.range_arrow(&request).await?.is_none()
            {
                return Err("there is no columnar read".into());
            }
            for store in [&store as &dyn PriceStore, &*layered] {
                if columnar(store, &request).await? != expected {
                    return Err(format!("{dataset} {series} differs").into());
                }
            }
            let descending = request.clone().descending();
            if store.range_arrow(&descending).await?.is_some() {
                return Err("a descending request has no columnar read".into());
            }
        }
    }
    close(store, &prefix).await
}

/// Reads more records than one columnar page has, from the middle, with a cursor, and with gaps of deleted records.
async fn pages(url: String) -> Result<(), Failed> {
    let (store, prefix) = open(&url);
    store.ensure_schema().await?;
    let ticks = rig::ticks("binance:BTC-USDT", 7, 100_000);
    store.insert_ticks_chunked(&ticks, 100_000).await?;
    rig::insert_ticks(&store, &rig::ticks("binance:ETH-USDT", 1, 10)).await;
    let (dataset, series) = (PriceTick::DATASET, qi_core::record::Series::key(ticks[0].instrument()));
    let request = all_of(dataset, &series);
    let equal = |found: RecordVec, expected: &[PriceTick]| {
        let found = found.into_vec::<PriceTick>().unwrap();
        if found == expected {
            Ok(())
        } else {
            Err(Failed::from(format!("{} of {} records", found.len(), expected.len())))
        }
    };
    let first = store.range_arrow(&request).await?.ok_or("there is no columnar read")?;
    if first.next.is_none() {
        return Err("700,000 ticks fit into one page".into());
    }
    equal(columnar(&store, &request).await?, &ticks)?;
    let page = store.range(&request).await?;
    let after = request.clone().after(page.next.ok_or("one page")?);
    equal(columnar(&store, &after).await?, &ticks[page.records.len()..])?;
    let range = TimeRange::new(ticks[150_000].ts(), ticks[450_001].ts())?;
    let middle = RangeRequest::new(dataset, series.clone(), range);
    equal(columnar(&store, &middle).await?, &ticks[150_000..450_001])?;
    let empty = RangeRequest::new(dataset, series.clone(), TimeRange::before(ticks[0].ts()));
    equal(columnar(&store, &empty).await?, &[])?;
    // A cursor of another query is rejected as in `range`.
    let other = RangeRequest::new(dataset, series, range).after(store.range(&request).await?.resume);
    if store.range_arrow(&other).await.map_err(|e| e.kind()) != Err(ErrorKind::InvalidInput) {
        return Err("the cursor of another query was accepted".into());
    }
    store.purge_before(dataset, ticks[300_000].ts()).await?;
    equal(columnar(&store, &request).await?, &ticks[300_000..])?;
    close(store, &prefix).await
}

fn main() -> ExitCode {
    let url = std::env::var("QI_CLICKHOUSE_URL").ok().filter(|url| !url.is_empty());
    let absent = url.is_none().then(|| "QI_CLICKHOUSE_URL is not set".to_owned());
    let url = url.unwrap_or_default();
    let block_on = |work: std::pin::Pin<Box<dyn Future<Output = Result<(), Failed>> + Send>>| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(work)?;
        Ok(Completion::Completed)
    };
    let (first, second) = (url.clone(), url);
    let trials = vec![
        presence::trial(
            "columnar_reads_of_every_dataset_equal_its_pages".to_owned(),
            "clickhouse",
            absent.clone(),
            move || block_on(Box::pin(datasets(first))),
        ),
        presence::trial(
            "columnar_reads_continue_after_a_page_and_a_cursor".to_owned(),
            "clickhouse",
            absent,
            move || block_on(Box::pin(pages(second))),
        ),
    ];
    run(&Arguments::from_args(), trials).exit_code()
}
