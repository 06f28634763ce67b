//! Random records of all datasets go out and come back without a difference.
#![allow(clippy::unwrap_used, reason = "a test")]

mod rig;

use std::sync::Arc;

use arrow_array::Array;
use arrow_array::cast::AsArray as _;
use arrow_array::types::{Decimal128Type, Float64Type};
use arrow_schema::DataType;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::{ParquetMetaDataReader, RowGroupMetaData};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use qi_arrow::{Archive, Decimals, Encoder, ParquetReader, ParquetWriter, PeriodLength, decode, encode};
use qi_core::record::{
    Column, ColumnType, Dataset, Description, Level, Owner, RecordVec, Row, SeriesKey, SeriesType, Value,
};
use qi_core::{Datasets, Decimal, Interval, Price, PriceStoreExt as _, Quantity};
use qi_testkit::store::model::{descriptions, value_of};
use rig::Draw;

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

/// Exports the records into a folder and into an object store, and imports both.
async fn through_archives(datasets: Datasets, records: &[RecordVec]) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let memory = Arc::new(object_store::memory::InMemory::new());
    let archives = [Archive::folder(&folder).unwrap(), Archive::in_store(memory, "a/b").unwrap()];
    for (archive, period) in archives.iter().zip([PeriodLength::Day, PeriodLength::Month]) {
        let found = rig::through_archive(&datasets, records, archive, period).await;
        found.map_err(TestCaseError::fail)?;
    }
    Ok(())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn records_of_every_dataset_are_equal_after_a_round_trip(draws in rig::draws()) {
        for records in rig::of_every_dataset(&draws) {
            there_and_back(&records)?;
        }
    }

    #[test]
    fn records_of_random_declarations_are_equal_after_a_round_trip(
        description in descriptions(),
        draws in rig::draws(),
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
    fn archives_of_every_dataset_are_imported_without_a_difference(draws in rig::draws()) {
        let records = rig::of_every_dataset(&draws);
        runtime().block_on(through_archives(rig::datasets(), &records))?;
    }
}

type Doubles = Vec<Option<f64>>;

/// Returns the doubles of a column, or of the levels in it, and the nearest doubles of the exact decimals.
fn doubles(found: &dyn Array, exact: &dyn Array) -> Option<(Doubles, Doubles)> {
    let nearest = |units: i128| Decimal::from_units(units).unwrap().to_string().parse::<f64>().unwrap();
    match exact.data_type() {
        DataType::Decimal128(..) => Some((
            found.as_primitive::<Float64Type>().iter().collect(),
            exact.as_primitive::<Decimal128Type>().iter().map(|units| units.map(nearest)).collect(),
        )),
        DataType::List(_) => {
            let (found, exact) = (found.as_list::<i32>(), exact.as_list::<i32>());
            assert_eq!(found.offsets(), exact.offsets());
            let columns =
                found.values().as_struct().columns().iter().zip(exact.values().as_struct().columns());
            let (mut all, mut expected) = (Vec::new(), Vec::new());
            for (found, exact) in columns {
                let (found, exact) = doubles(found, exact).unwrap();
                all.extend(found);
                expected.extend(exact);
            }
            Some((all, expected))
        }
        _ => None,
    }
}

#[test]
fn doubles_are_the_nearest_of_each_decimal() {
    let draws: Vec<Draw> = (0..50).map(|n| (0, n, u64::from(n), n * 331 % 30_000)).collect();
    let mut all = rig::of_every_dataset(&draws);
    let mut random = fastrand::Rng::with_seed(3);
    let mut ticks = rig::ticks("binance:BTC-USDT", 1, 1_000);
    for tick in ticks.iter_mut().step_by(2) {
        // From one digit to the 38 digits of a decimal.
        let largest = 10_u128.pow(random.u32(1..=38)) - 1;
        let units = random.u128(1..=largest).try_into().unwrap();
        *tick = tick.clone().with_quantity(Quantity::from_units(units).unwrap());
    }
    all.push(RecordVec::from_vec(ticks));
    for records in all {
        let dataset = records.as_records().dataset();
        let file = tempfile::tempfile().unwrap();
        let mut writer = ParquetWriter::new(dataset, Decimals::Float64, file).unwrap();
        writer.write(records.as_records()).unwrap();
        let (file, content) = writer.finish().unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file.try_clone().unwrap()).unwrap();
        let batch = reader.with_batch_size(10_000).build().unwrap().next().unwrap().unwrap();
        let exact = encode(records.as_records()).unwrap();
        assert_eq!(batch.num_columns(), exact.num_columns());
        let mut compared = 0;
        for (found, exact) in batch.columns().iter().zip(exact.columns()) {
            if let Some((found, expected)) = doubles(found, exact) {
                assert_eq!(found, expected, "{dataset}");
                compared += found.len();
            }
        }
        assert!(compared > 0 && content.records == records.len() as u64, "{dataset}");
        let error = ParquetReader::new(dataset, file).unwrap().next().unwrap().unwrap_err();
        assert_eq!(error.code(), "arrow.column.type", "{dataset}");
    }
}

/// A dataset declares the largest size of its records, which bounds the memory of a file.
#[test]
fn wide_records_have_smaller_row_groups_and_batches() {
    const LEVELS: ColumnType = ColumnType::Levels { max: 1_000 };
    const VALUES: [Column; 2] = [
        Column { name: "bids", ty: LEVELS, optional: false },
        Column { name: "asks", ty: LEVELS, optional: false },
    ];
    let books = Dataset::declare(Description {
        name: "books",
        version: 1,
        message: "book",
        topic: "books",
        series: SeriesType::Name { column: "name", max: 20 },
        interval: None,
        time: "ts",
        seq: None,
        values: &VALUES,
        new_vec: |dataset| dataset.new_vec(),
    })
    .unwrap();
    let series = SeriesKey { owner: Owner::Name("BTC".into()), interval: None };
    let mut random = fastrand::Rng::with_seed(1);
    let mut levels = || -> Vec<Level> {
        // No byte can be compressed.
        let mut number = || (i128::from(random.u64(1..)) << 60) + i128::from(random.u64(..));
        let mut level = || -> qi_core::Result<Level> {
            Ok(Level { price: Price::from_units(number())?, quantity: Quantity::from_units(number())? })
        };
        (0..1_000).map(|_| level().unwrap()).collect()
    };
    let mut row = |n: i64| {
        let values = vec![Value::Levels(levels()), Value::Levels(levels())];
        Row::new(books, series.clone(), (rig::time(rig::DAY + n), 0), values).unwrap()
    };
    let records = Row::collect(books, (0..1_300).map(&mut row).collect()).unwrap();
    let ticks = RecordVec::from_vec(rig::ticks("binance:BTC-USDT", 1, 131_073));
    for (records, groups, batch) in [(records, 2, 261), (ticks, 2, 8_192)] {
        let file = file_of(&records);
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&file).unwrap();
        let found: Vec<i64> = metadata.row_groups().iter().map(RowGroupMetaData::num_rows).collect();
        assert_eq!(found.len(), groups, "{found:?}");
        let dataset = records.as_records().dataset();
        let batches: Vec<_> = ParquetReader::new(dataset, file).unwrap().map(Result::unwrap).collect();
        assert_eq!(batches[0].len(), batch, "{dataset}");
        assert!(batches.iter().all(|records| records.len() <= batch), "{dataset}");
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
