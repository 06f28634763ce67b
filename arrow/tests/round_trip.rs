//! Random records of all datasets go out and come back without a difference.
#![allow(clippy::unwrap_used, reason = "a test")]

mod rig;

use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use qi_arrow::{
    Archive, Decimals, Encoder, ExportOptions, ImportOptions, ParquetReader, ParquetWriter, PeriodLength,
    decode, encode, export, import,
};
use qi_core::record::{Dataset, Owner, RecordVec, Row, SeriesKey, SeriesType};
use qi_core::{Datasets, Interval, PriceStoreExt as _};
use qi_testkit::store::model::{descriptions, value_of};
use rig::Draw;

fn draws() -> impl Strategy<Value = Vec<Draw>> {
    prop::collection::vec((0..3usize, 0..60u32, 0..5u64, 0..30_000u32), 0..60)
}

fn file_of(records: &RecordVec) -> std::fs::File {
    let file = tempfile::tempfile().unwrap();
    let dataset = records.as_records().dataset();
    let mut writer = ParquetWriter::new(dataset, Decimals::Exact, file).unwrap();
    writer.write(records.as_records()).unwrap();
    writer.finish().unwrap().0
}

fn read(dataset: Dataset, file: std::fs::File) -> RecordVec {
    let mut all = dataset.new_vec();
    for records in ParquetReader::new(dataset, file).unwrap() {
        let records = records.unwrap();
        records.as_records().append_to(0..records.len(), &mut all).unwrap();
    }
    all
}

fn there_and_back(records: &RecordVec) -> Result<(), TestCaseError> {
    let dataset = records.as_records().dataset();
    prop_assert_eq!(&decode(dataset, &encode(records.as_records()).unwrap()).unwrap(), records);
    // A builder that is used again starts without rows.
    let mut encoder = Encoder::new(dataset, Decimals::Exact);
    for _ in 0..2 {
        encoder.append(records.as_records(), 0..records.len()).unwrap();
        prop_assert_eq!(&decode(dataset, &encoder.finish().unwrap()).unwrap(), records);
    }
    prop_assert_eq!(&read(dataset, file_of(records)), records);
    Ok(())
}

/// Returns a random record of a dataset that was declared at run time.
fn row(dataset: Dataset, (series, step, seq, value): Draw) -> Row {
    let owner = match dataset.series() {
        SeriesType::Instrument => Owner::Instrument(format!("alpha:S{series}").parse().unwrap()),
        SeriesType::Name { .. } => Owner::Name(["", "global", "it's \u{1f600}"][series].into()),
    };
    let interval = dataset.interval().map(|_| Interval::ALL[series % 2]);
    let columns = (0u32..).zip(dataset.values());
    let values =
        columns.map(|(n, column)| value_of(column, value.wrapping_mul(2_654_435_761).rotate_left(7 * n)));
    let seq = if dataset.seq().is_some() { seq } else { 0 };
    let key = (rig::time(rig::DAY + i64::from(step) * 3_600_000_000), seq);
    Row::new(dataset, SeriesKey { owner, interval }, key, values.collect()).unwrap()
}

/// Exports all datasets of a store, imports them into another store, and compares both.
async fn through_archives(datasets: Datasets, records: &[RecordVec]) -> Result<(), TestCaseError> {
    let source = rig::store_of(datasets.clone()).await;
    for records in records {
        rig::insert(&source, records.as_records()).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let memory = Arc::new(object_store::memory::InMemory::new());
    let archives = [Archive::folder(&folder).unwrap(), Archive::in_store(memory, "a/b").unwrap()];
    let expected = rig::content(&source, &datasets).await;
    for (archive, period) in archives.iter().zip([PeriodLength::Day, PeriodLength::Month]) {
        let mut options = ExportOptions::new(datasets.iter());
        options.period = period;
        let first = export(&source, archive, &options).await.unwrap();
        let again = export(&source, archive, &options).await.unwrap();
        for (first, again) in first.series.iter().zip(&again.series) {
            prop_assert_eq!((again.written, again.unchanged), (0, first.written));
            prop_assert_eq!(again.records, first.records);
        }
        let target = rig::store_of(datasets.clone()).await;
        let report = import(&target, archive, &ImportOptions::new(datasets.clone())).await.unwrap();
        prop_assert!(report.is_good(), "{:?}", report.failures);
        prop_assert_eq!(
            report.records(),
            expected.iter().map(|(_, records)| records.len() as u64).sum::<u64>()
        );
        prop_assert_eq!(&rig::content(&target, &datasets).await, &expected);
    }
    Ok(())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn records_of_every_dataset_are_equal_after_a_round_trip(draws in draws()) {
        for records in rig::of_every_dataset(&draws) {
            there_and_back(&records)?;
        }
    }

    #[test]
    fn records_of_random_declarations_are_equal_after_a_round_trip(
        description in descriptions(),
        draws in draws(),
    ) {
        let dataset = Dataset::declare(description).unwrap();
        let rows: Vec<Row> = draws.into_iter().map(|draw| row(dataset, draw)).collect();
        let records = Row::collect(dataset, rows).unwrap();
        there_and_back(&records)?;
        let datasets = Datasets::none().with_dataset(dataset).unwrap();
        runtime().block_on(through_archives(datasets, &[records]))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn archives_of_every_dataset_are_imported_without_a_difference(draws in draws()) {
        let records = rig::of_every_dataset(&draws);
        runtime().block_on(through_archives(rig::datasets(), &records))?;
    }
}

#[test]
fn all_series_lists_the_series_of_every_interval() {
    runtime().block_on(async {
        let store = rig::store().await;
        let draws: Vec<Draw> = (0..3).map(|series| (series, 0, 0, 1)).collect();
        for records in rig::of_every_dataset(&draws) {
            rig::insert(&store, records.as_records()).await;
        }
        for dataset in rig::datasets().iter() {
            assert_eq!(store.all_series(dataset).await.unwrap().len(), 3, "{dataset}");
        }
    });
}
