//! Datasets: every declared column is stored and read back.

use qi_core::record::{
    Column, ColumnType, Dataset, Description, Level, Owner, RecordVec, Row, Series, Slice, Value,
};
use qi_core::store::{LatestRequest, PriceStore, RangeRequest, SeriesRequest};
use qi_core::{Decimal, ErrorKind, Price, Quantity, Record, Result, Selection, TimeRange};

use super::dataset_ops::{DatasetOps, LatestParams, minute};
use super::expect::{expect_error, expect_same, expect_same_rows};
use super::{CheckResult, NamedSignal, Sample, TestContext, promises};
use crate::store::rows::records_of;

promises! { "datasets";
    every every_column_keeps_its_values: "values of every type are read from their own column",
    every absent_values_stay_absent: "an absent value is read as absent; zero and the empty text are not",
    every level_lists_keep_every_level:
        "lists of levels are complete and in order, including the empty and the longest list",
    once named_series_are_ordered_by_bytes: "series by name are listed in byte order for any characters",
    every unregistered_dataset_is_rejected:
        "a dataset that the store was not opened with is rejected with SchemaMismatch",
}

/// Returns the rows of a series in the order of their times.
async fn rows_of<D: Sample>(store: &dyn PriceStore) -> Result<Vec<Row>> {
    let request = RangeRequest::new(D::DATASET, D::series_no(0).key(), TimeRange::ALL);
    Row::copy_of(store.range(&request).await?.records.as_records())
}

/// Writes records, reads them back and compares them by column.
pub(super) async fn expect_round_trip<D: Sample>(store: &dyn PriceStore, records: &RecordVec) -> CheckResult {
    store.insert(records.as_records()).await?;
    let expected = Row::copy_of(records.as_records())?;
    let found = rows_of::<D>(store).await?;
    expect_same("the number of records", &found.len(), &expected.len())?;
    for (found, expected) in found.iter().zip(&expected) {
        expect_same("the sort key", &found.sort_key(), &expected.sort_key())?;
        for (at, column) in D::DATASET.values().iter().enumerate() {
            let what = format!("{} at {}", column.name, expected.sort_key().0);
            expect_same(&what, &found.values()[at], &expected.values()[at])?;
        }
    }
    expect_same("the records", &found, &expected)
}

async fn every_column_keeps_its_values<D: Sample>(context: &TestContext) -> CheckResult {
    let batch: Vec<D> = (0..40).map(|n| D::at(0, n.into(), n)).collect();
    expect_round_trip::<D>(context.store(), &RecordVec::from_vec(batch)).await
}

/// Returns the n-th record with altered values, or None if the record's own rules reject the values.
pub(super) fn altered<D: Sample>(
    n: usize,
    mut alter: impl FnMut(usize, &Column, &mut Value),
) -> Result<Option<Row>> {
    let n = u32::try_from(n).expect("few records");
    let record = D::at(0, n.into(), n);
    let row = Row::copy_of(&Slice::new(std::slice::from_ref(&record))?)?.remove(0);
    let mut values = row.values().to_vec();
    for (at, (column, value)) in D::DATASET.values().iter().zip(&mut values).enumerate() {
        alter(at, column, value);
    }
    let row = Row::new(D::DATASET, row.series().clone(), row.sort_key(), values)?;
    Ok(records_of(D::DATASET, [&row]).is_ok().then_some(row))
}

async fn absent_values_stay_absent<D: Sample>(context: &TestContext) -> CheckResult {
    let columns = D::DATASET.values();
    let mut rows = Vec::new();
    // Either one optional column is absent, or only one is present. In the last round, all are present
    // or all are absent.
    for chosen in 0..=columns.len() {
        for alone in [false, true] {
            rows.extend(altered::<D>(rows.len(), |at, column, value| {
                if column.optional && (at == chosen) != alone {
                    *value = Value::Absent;
                }
            })?);
        }
        // A value that a store could confuse with an absent one.
        rows.extend(altered::<D>(rows.len(), |at, column, value| {
            if column.optional && at == chosen {
                *value = match column.ty {
                    ColumnType::Decimal => Value::Decimal(Decimal::ZERO),
                    ColumnType::Counter => Value::Counter(0),
                    ColumnType::Integer => Value::Integer(0),
                    ColumnType::Boolean => Value::Boolean(false),
                    ColumnType::Text { .. } => Value::Text(String::new()),
                    _ => return,
                };
            }
        })?);
    }
    expect_round_trip::<D>(context.store(), &records_of(D::DATASET, &rows)?).await
}

async fn level_lists_keep_every_level<D: Sample>(context: &TestContext) -> CheckResult {
    let longest = D::DATASET.values().iter().filter_map(|column| match column.ty {
        ColumnType::Levels { max } => Some(max),
        _ => None,
    });
    let Some(longest) = longest.max() else { return Ok(()) };
    let level = |n: usize| -> Result<Level> {
        let units = (n + 1) as i128 * 1_000_000_000_000_000_001;
        Ok(Level { price: Price::from_units(units)?, quantity: Quantity::from_units(units - 1)? })
    };
    let rising: Vec<Level> = (0..longest).map(level).collect::<Result<_>>()?;
    let falling: Vec<Level> = rising.iter().rev().copied().collect();
    // Neither rising nor falling, with some levels twice.
    let mixed: Vec<Level> = (0..longest).map(|n| level(n * 7 % 5)).collect::<Result<_>>()?;
    let mut rows = Vec::new();
    for count in [0, 1, 2, longest - 1, longest, 0] {
        // A record may have rules for the order of its levels, such as an order book.
        for orders in [[&mixed, &mixed], [&falling, &rising]] {
            let mut orders = orders.into_iter().cycle();
            rows.extend(altered::<D>(rows.len(), |_, column, value| {
                if let (ColumnType::Levels { max }, Some(levels)) = (column.ty, orders.next()) {
                    *value = Value::Levels(levels[..count.min(max)].to_vec());
                }
            })?);
        }
    }
    expect_round_trip::<D>(context.store(), &records_of(D::DATASET, &rows)?).await
}

async fn named_series_are_ordered_by_bytes(context: &TestContext) -> CheckResult {
    // The order is by bytes. Language, case and length do not affect it.
    let mut names = vec![
        " ",
        "A",
        "AB",
        "B",
        "a",
        "a b",
        "a'b",
        "a\"b",
        "a\\b",
        "a\tb",
        "a%_b",
        "\u{e9}",
        "z",
        "\u{1f600}",
    ];
    let longest = "x".repeat(40);
    names.push(&longest);
    names.sort_unstable();
    let store = context.store();
    let mut records: Vec<NamedSignal> = (0..)
        .zip(&names)
        .map(|(n, name)| Ok(NamedSignal::make(&name.parse()?, minute(i64::from(n)), 0, n)))
        .collect::<Result<_>>()?;
    let sorted = records.clone();
    records.reverse();
    records.swap(2, 9);
    NamedSignal::insert(store, &records).await?;
    expect_same_rows(
        "latest",
        &NamedSignal::scan_latest(store, LatestParams::all().limit(4)).await?,
        &sorted,
    )?;
    let params = LatestParams::only(sorted.iter().map(Record::series).collect());
    expect_same_rows("latest by name", &NamedSignal::scan_latest(store, params.limit(4)).await?, &sorted)?;
    let (mut request, mut found) = (SeriesRequest::new(NamedSignal::DATASET).with_limit(4)?, Vec::new());
    loop {
        let page = store.series(&request).await?;
        found.extend(page.items.into_iter().map(|summary| summary.owner));
        let Some(next) = page.next else { break };
        request = request.after(next);
    }
    let expected: Vec<Owner> = names.iter().map(|name| Owner::Name((*name).into())).collect();
    expect_same_rows("the series", &found, &expected)?;
    for record in sorted {
        expect_same_rows("one series", &NamedSignal::all(store, &record.series()).await?, &[record])?;
    }
    Ok(())
}

async fn unregistered_dataset_is_rejected<D: Sample>(context: &TestContext) -> CheckResult {
    let of = D::DATASET;
    let more = Column { name: "not_declared_there", ty: ColumnType::Boolean, optional: true };
    let other = |name, values: Vec<Column>| {
        Dataset::declare(Description {
            name,
            version: of.version(),
            message: of.message(),
            topic: of.topic(),
            series: of.series(),
            interval: of.interval(),
            time: of.time(),
            seq: of.seq(),
            values: values.leak(),
            new_vec: |dataset| dataset.new_vec(),
        })
    };
    let unknown = other("unregistered", of.values().to_vec())?;
    let changed = other(of.name(), [of.values(), &[more]].concat())?;
    for (what, dataset) in [("an unknown name", unknown), ("another declaration", changed)] {
        expect_every_call_rejected(context.store(), dataset, &D::at(0, 0, 1))
            .await
            .map_err(|failure| failure.within(what))?;
    }
    D::insert(context.store(), &[D::at(0, 0, 1)]).await?;
    Ok(())
}

/// Checks that every call for a dataset is rejected.
async fn expect_every_call_rejected<D: Sample>(
    store: &dyn PriceStore,
    dataset: Dataset,
    like: &D,
) -> CheckResult {
    const KIND: ErrorKind = ErrorKind::SchemaMismatch;
    let row = Row::copy_of(&Slice::new(std::slice::from_ref(like))?)?.remove(0);
    let mut values = row.values().to_vec();
    values.resize(dataset.values().len(), Value::Absent);
    let (series, sort_key) = (row.series().clone(), row.sort_key());
    let rows = Row::collect(dataset, vec![Row::new(dataset, series.clone(), sort_key, values)?])?;
    expect_error("insert", store.insert(rows.as_records()).await, KIND)?;
    expect_error(
        "range",
        store.range(&RangeRequest::new(dataset, series.clone(), TimeRange::ALL)).await,
        KIND,
    )?;
    let mut latest = LatestRequest::new(dataset, Selection::All);
    latest.interval = series.interval;
    expect_error("latest", store.latest(&latest).await, KIND)?;
    expect_error("series", store.series(&SeriesRequest::new(dataset)).await, KIND)?;
    let mut gone = D::deletion(None, TimeRange::ALL);
    gone.dataset = dataset;
    expect_error("delete_range", store.delete_range(&gone).await, KIND)?;
    let error = expect_error("purge_before", store.purge_before(dataset, minute(0)).await, KIND)?;
    expect_same("the dataset of the error", &error.context_value("dataset"), &Some(dataset.name()))
}
