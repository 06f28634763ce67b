//! Stores with records of every dataset.
#![allow(dead_code, reason = "each test uses a part")]

use std::path::{Path, PathBuf};

use proptest::strategy::Strategy;
use qi_core::record::{Dataset, RecordVec, Records, SeriesKey, Slice};
use qi_core::store::{MAX_PAGE, PriceStore, PriceStoreExt as _, RangeRequest};
use qi_core::{
    Bar, BookSnapshot, Datasets, FundingRate, Liquidation, MarkPrice, MarketSnapshot, OpenInterest,
    PriceTick, Quote, TimeRange, Timestamp,
};
use qi_testkit::store::contract::{Everything, NamedSignal, Sample};
use qi_testkit::store::{MemoryStore, MemoryStoreConfig};

/// 2024-01-31T00:00:00Z.
pub(crate) const DAY: i64 = 1_706_659_200_000_000;
pub(crate) const DAY_MICROS: i64 = 86_400_000_000;

/// Returns all datasets of the library, and datasets with a column of every type and with names.
pub(crate) fn datasets() -> Datasets {
    Datasets::built_in()
        .with::<Everything>()
        .and_then(Datasets::with::<NamedSignal>)
        .expect("different names")
}

pub(crate) async fn store_of(datasets: Datasets) -> MemoryStore {
    let mut config = MemoryStoreConfig::default();
    config.datasets = datasets;
    let store = MemoryStore::new(config).expect("a valid configuration");
    store.ensure_schema().await.expect("memory");
    store
}

pub(crate) async fn store() -> MemoryStore {
    store_of(datasets()).await
}

pub(crate) fn time(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros).expect("within the domain")
}

/// The key and the value of a record: its series, its time in steps, its sequence number and its value.
pub(crate) type Draw = (usize, u32, u64, u32);

pub(crate) fn draws() -> impl Strategy<Value = Vec<Draw>> {
    proptest::collection::vec((0..3usize, 0..60u32, 0..5u64, 0..30_000u32), 0..60)
}

pub(crate) fn records<R: Sample>(draws: &[Draw]) -> Vec<R> {
    let record = |(series, step, seq, value): &Draw| {
        let at = time(DAY + i64::from(*step) * 3_600_000_000 / R::STEP.max(1) * R::STEP.max(1));
        R::make(&R::series_no(*series), at, *seq, *value)
    };
    draws.iter().map(record).collect()
}

/// Returns records of every dataset.
pub(crate) fn of_every_dataset(draws: &[Draw]) -> Vec<RecordVec> {
    macro_rules! all {
        ($($record:ident),*) => { vec![$(RecordVec::from_vec(records::<$record>(draws))),*] };
    }
    all!(
        PriceTick,
        Quote,
        Bar,
        MarketSnapshot,
        FundingRate,
        OpenInterest,
        Liquidation,
        MarkPrice,
        BookSnapshot,
        Everything,
        NamedSignal
    )
}

/// Returns ticks of an instrument, `count` on each of `days` days.
pub(crate) fn ticks(instrument: &str, days: i64, count: i64) -> Vec<PriceTick> {
    let instrument: qi_core::Instrument = instrument.parse().expect("an instrument");
    let tick = |n: i64| {
        let at = DAY + n / count * DAY_MICROS + n % count * (DAY_MICROS / count);
        let price = qi_core::Price::from_units(1_000_000_000_000_000_000 + i128::from(n)).expect("positive");
        PriceTick::new(instrument.clone(), time(at), n.unsigned_abs(), price).expect("a valid tick")
    };
    (0..days * count).map(tick).collect()
}

pub(crate) async fn insert(store: &dyn PriceStore, records: &dyn Records) {
    store.insert(records).await.expect("an insert");
}

pub(crate) async fn insert_ticks(store: &dyn PriceStore, ticks: &[PriceTick]) {
    store.insert(&Slice::new(ticks).expect("valid ticks")).await.expect("an insert");
}

/// Returns all records of a series.
pub(crate) async fn all_of(store: &dyn PriceStore, dataset: Dataset, series: &SeriesKey) -> RecordVec {
    let range = TimeRange::since(Timestamp::MIN);
    let mut request =
        RangeRequest::new(dataset, series.clone(), range).with_limit(MAX_PAGE).expect("a limit");
    let mut all = dataset.new_vec();
    loop {
        let page = store.range(&request).await.expect("a page");
        page.records.as_records().append_to(0..page.records.len(), &mut all).expect("the same dataset");
        match page.next {
            Some(next) => request = request.after(next),
            None => return all,
        }
    }
}

/// Returns the records of all series of all datasets.
pub(crate) async fn content(store: &dyn PriceStore, datasets: &Datasets) -> Vec<(String, RecordVec)> {
    let mut all = Vec::new();
    for dataset in datasets.iter() {
        for series in store.all_series(dataset).await.expect("series") {
            all.push((format!("{dataset} {series}"), all_of(store, dataset, &series).await));
        }
    }
    all
}

/// Returns the files below a folder, relative to it, in order.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                all.push(path.strip_prefix(folder).expect("below the folder").to_owned());
            }
        }
    }
    all.sort();
    all
}

/// Returns the Python of the tests, which `scripts/test` installs.
pub(crate) fn python() -> PathBuf {
    let installed = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/python/bin/python"));
    if installed.is_file() { installed } else { "python3".into() }
}

/// Returns why the modules of Python are not usable, or None.
pub(crate) fn absent(modules: &str) -> Option<String> {
    let found = std::process::Command::new(python()).args(["-c", &format!("import {modules}")]).output();
    let there = found.is_ok_and(|output| output.status.success());
    (!there).then(|| format!("python3 does not have all of the modules {modules}"))
}

/// Exports all datasets of a store, imports them into another store, and compares both.
#[cfg(feature = "archive")]
pub(crate) async fn through_archive(
    datasets: &Datasets,
    records: &[RecordVec],
    archive: &qi_arrow::Archive,
    period: qi_arrow::PeriodLength,
) -> Result<(), String> {
    let source = store_of(datasets.clone()).await;
    for records in records {
        insert(&source, records.as_records()).await;
    }
    let expected = content(&source, datasets).await;
    let mut options = qi_arrow::ExportOptions::new(datasets.iter());
    options.period = Some(period);
    let text = |error: qi_core::Error| error.report();
    let first = qi_arrow::export(&source, archive, &options).await.map_err(text)?;
    let again = qi_arrow::export(&source, archive, &options).await.map_err(text)?;
    let numbers = |(first, again): (&qi_arrow::ExportedSeries, &qi_arrow::ExportedSeries)| {
        (again.written, again.unchanged, again.records) == (0, first.written, first.records)
    };
    if first.series.len() != expected.len() || !first.series.iter().zip(&again.series).all(numbers) {
        return Err(format!("the second export wrote files: {again:?}"));
    }
    let target = store_of(datasets.clone()).await;
    let options = qi_arrow::ImportOptions::new(datasets.clone());
    let report = qi_arrow::import(&target, archive, &options).await.map_err(text)?;
    let count: usize = expected.iter().map(|(_, records)| records.len()).sum();
    if !report.is_good() || report.records() != count as u64 {
        return Err(format!("{count} records: {report:?}"));
    }
    if content(&target, datasets).await != expected {
        return Err("the imported records differ".to_owned());
    }
    Ok(())
}
