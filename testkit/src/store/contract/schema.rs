//! Checks of the schema: `ensure_schema`, `plan_schema`, changed declarations, a missing or newer schema, `close`.

use futures::future::join_all;
use qi_core::Datasets;
use qi_core::record::{Column, ColumnType, Dataset, Description, Owner, Row, SeriesKey, SeriesType, Value};
use qi_core::store::{
    BarQuery, InsertReport, PriceStore, PriceStoreExt, RangeRequest, SeriesRequest, StatsQuery,
};
use qi_core::{Decimal, ErrorKind, Interval, PriceTick, Result, TimeRange};

use super::dataset_ops::{DatasetOps, LatestParams, RangeParams, minute};
use super::expect::{expect_error, expect_same_rows, expect_true};
use super::{CheckResult, Sample, TestContext, instrument_no, promises};

promises! { "schema";
    every ensure_schema_is_idempotent_and_keeps_the_data: "ensure_schema is idempotent and never destructive",
    once ensure_schema_runs_concurrently: "concurrent calls of ensure_schema succeed",
    every missing_schema_is_rejected: "record calls before ensure_schema fail with SchemaMismatch",
    once bars_and_stats_need_a_schema: "derived_bars and stats before ensure_schema fail with SchemaMismatch",
    once plan_schema_changes_nothing: "plan_schema lists the steps of ensure_schema and changes nothing",
    once added_column_reads_as_absent:
        "ensure_schema adds an optional column, which is absent in older records",
    once enumeration_accepts_appended_variants: "ensure_schema adds variants at the end of an enumeration",
    once older_declaration_continues_to_work:
        "a program with a prefix of the stored columns continues to work",
    once incompatible_declaration_is_rejected:
        "any other difference of a declaration is rejected and changes nothing",
    once newer_schema_is_rejected: "a schema of a later version is rejected",
    once unreachable_server_is_retryable: "a server that refuses connections is Unavailable, which is retryable",
    once ping_needs_no_schema: "ping succeeds before and after ensure_schema",
    every closed_store_rejects_every_call:
        "after close every call fails with Closed, and close is idempotent",
}

async fn ensure_schema_is_idempotent_and_keeps_the_data<D: Sample>(context: &TestContext) -> CheckResult {
    let (store, record) = (context.store(), D::at(0, 0, 1));
    D::insert(store, std::slice::from_ref(&record)).await?;
    let report = store.ensure_schema().await?;
    expect_true("the second ensure_schema applies nothing", report.applied.is_empty())?;
    expect_same_rows(
        "the series after the second ensure_schema",
        &D::all(store, &record.series()).await?,
        &[record],
    )
}

async fn ensure_schema_runs_concurrently(context: &TestContext) -> CheckResult {
    let store = context.without_schema().await?;
    let tasks = (0..8).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { store.ensure_schema().await })
    });
    let mut versions = Vec::new();
    for report in join_all(tasks).await {
        versions.push(report.expect("ensure_schema does not panic")?.version);
    }
    expect_true(format_args!("one version, found {versions:?}"), versions.iter().all(|v| *v == versions[0]))?;
    let tick = PriceTick::at(0, 0, 1);
    store.insert_ticks(std::slice::from_ref(&tick)).await?;
    expect_same_rows(
        "the series after ensure_schema",
        &PriceTick::all(&*store, tick.instrument()).await?,
        &[tick],
    )
}

async fn missing_schema_is_rejected<D: Sample>(context: &TestContext) -> CheckResult {
    const KIND: ErrorKind = ErrorKind::SchemaMismatch;
    let (store, record) = (context.without_schema().await?, D::at(0, 0, 1));
    let store = &*store;
    expect_error("insert", D::insert(store, std::slice::from_ref(&record)).await, KIND)?;
    expect_error("a range", D::page(store, &RangeParams::all(&record.series())).await, KIND)?;
    expect_error("latest", D::latest(store, &LatestParams::all()).await, KIND)?;
    expect_error("series", store.series(&SeriesRequest::new(D::DATASET)).await, KIND)?;
    expect_error("delete_range", store.delete_range(&D::deletion(None, TimeRange::ALL)).await, KIND)?;
    expect_error("purge_before", store.purge_before(D::DATASET, minute(0)).await, KIND)?;
    Ok(())
}

async fn bars_and_stats_need_a_schema(context: &TestContext) -> CheckResult {
    const KIND: ErrorKind = ErrorKind::SchemaMismatch;
    let store = context.without_schema().await?;
    let instrument = PriceTick::series_no(0);
    let bars = BarQuery::new(instrument.clone(), Interval::M1, TimeRange::ALL);
    expect_error("derived_bars", store.derived_bars(&bars).await, KIND)?;
    expect_error("stats", store.stats(&StatsQuery::new(instrument, TimeRange::ALL)).await, KIND)?;
    Ok(())
}

async fn newer_schema_is_rejected(context: &TestContext) -> CheckResult {
    let store = context.newer_schema().await?;
    expect_error("ensure_schema", store.ensure_schema().await, ErrorKind::SchemaMismatch)?;
    Ok(())
}

async fn unreachable_server_is_retryable(context: &TestContext) -> CheckResult {
    let store = context.unreachable().await?;
    let tick = PriceTick::at(0, 0, 1);
    for (what, result) in [
        ("ping", store.ping().await.map(drop)),
        ("ensure_schema", store.ensure_schema().await.map(drop)),
        ("insert", store.insert_ticks(std::slice::from_ref(&tick)).await.map(drop)),
        ("range", PriceTick::page(&*store, &RangeParams::all(tick.instrument())).await.map(drop)),
    ] {
        let error = expect_error(what, result, ErrorKind::Unavailable)?;
        expect_true(format_args!("the error of {what} is retryable"), error.retry().is_retryable())?;
    }
    Ok(())
}

async fn ping_needs_no_schema(context: &TestContext) -> CheckResult {
    context.store().ping().await?;
    context.without_schema().await?.ping().await?;
    Ok(())
}

async fn closed_store_rejects_every_call<D: Sample>(context: &TestContext) -> CheckResult {
    const KIND: ErrorKind = ErrorKind::Closed;
    // A separate store, because the check runs on several datasets with the same context.
    let (store, record) = (context.without_schema().await?, D::at(0, 0, 1));
    store.ensure_schema().await?;
    D::insert(&*store, std::slice::from_ref(&record)).await?;
    store.close().await?;
    store.close().await?;
    let store = &*store;
    expect_error("insert", D::insert(store, std::slice::from_ref(&record)).await, KIND)?;
    expect_error("an empty insert", D::insert(store, &[]).await, KIND)?;
    expect_error("a range", D::page(store, &RangeParams::all(&record.series())).await, KIND)?;
    expect_error("latest", D::latest(store, &LatestParams::all()).await, KIND)?;
    expect_error("series", store.series(&SeriesRequest::new(D::DATASET)).await, KIND)?;
    expect_error("delete_range", store.delete_range(&D::deletion(None, TimeRange::ALL)).await, KIND)?;
    expect_error("purge_before", store.purge_before(D::DATASET, minute(0)).await, KIND)?;
    expect_error("ping", store.ping().await, KIND)?;
    expect_error("ensure_schema", store.ensure_schema().await, KIND)?;
    let instrument = PriceTick::series_no(0);
    let bars = BarQuery::new(instrument.clone(), Interval::M1, TimeRange::ALL);
    expect_error("derived_bars", store.derived_bars(&bars).await, KIND)?;
    expect_error("stats", store.stats(&StatsQuery::new(instrument, TimeRange::ALL)).await, KIND)?;
    expect_error("plan_schema", store.plan_schema().await, KIND)?;
    Ok(())
}

async fn plan_schema_changes_nothing(context: &TestContext) -> CheckResult {
    let store = context.without_schema().await?;
    for _ in 0..2 {
        expect_true("the plan of an empty namespace is not empty", !store.plan_schema().await?.is_empty())?;
    }
    let tick = PriceTick::at(0, 0, 1);
    let early = store.insert_ticks(std::slice::from_ref(&tick)).await;
    expect_error("an insert after the plan", early, ErrorKind::SchemaMismatch)?;
    store.ensure_schema().await?;
    expect_same_rows("the plan of a complete schema", &store.plan_schema().await?, &[])?;
    store.insert_ticks(std::slice::from_ref(&tick)).await?;
    expect_same_rows(
        "the series after ensure_schema",
        &PriceTick::all(&*store, tick.instrument()).await?,
        &[tick],
    )
}

const A: Column = Column { name: "a", ty: ColumnType::Decimal, optional: false };
const B: Column = Column { name: "b", ty: ColumnType::Text { max: 20 }, optional: true };
const C: Column = Column { name: "c", ty: ColumnType::Enumeration(&["one", "two"]), optional: true };

/// Returns the declaration of the dataset `evolving` with these columns.
fn declaration(values: Vec<Column>) -> Description {
    Description {
        name: "evolving",
        version: 1,
        message: "evolving",
        topic: "evolving",
        series: SeriesType::Instrument,
        interval: None,
        time: "ts",
        seq: None,
        values: values.leak(),
        new_vec: |dataset| dataset.new_vec(),
    }
}

fn declared(description: Description) -> Result<(Dataset, Datasets)> {
    let dataset = Dataset::declare(description)?;
    Ok((dataset, Datasets::none().with_dataset(dataset)?))
}

/// Returns the n-th record, with `more` as the values after `a`, `b` and `c`.
fn row(dataset: Dataset, n: i64, more: Vec<Value>) -> Result<Row> {
    let series = SeriesKey { owner: Owner::Instrument(instrument_no(0)), interval: None };
    let mut values =
        vec![Value::Decimal(Decimal::from_int(n)), Value::Text(format!("text {n}")), Value::Enumeration(2)];
    values.extend(more);
    Row::new(dataset, series, (minute(n), 0), values)
}

async fn insert(store: &dyn PriceStore, dataset: Dataset, rows: Vec<Row>) -> Result<InsertReport> {
    store.insert(Row::collect(dataset, rows)?.as_records()).await
}

async fn stored(store: &dyn PriceStore, dataset: Dataset) -> Result<Vec<Row>> {
    let series = SeriesKey { owner: Owner::Instrument(instrument_no(0)), interval: None };
    let page = store.range(&RangeRequest::new(dataset, series, TimeRange::ALL)).await?;
    Row::copy_of(page.records.as_records())
}

/// Returns an optional column of every type except levels, and a value for each column.
fn additions() -> (Vec<Column>, Vec<Value>) {
    let column = |name, ty| Column { name, ty, optional: true };
    [
        (column("d", ColumnType::Decimal), Value::Decimal(Decimal::from_int(-3))),
        (column("e", ColumnType::Counter), Value::Counter(4)),
        (column("f", ColumnType::Integer), Value::Integer(-5)),
        (column("g", ColumnType::Boolean), Value::Boolean(false)),
        (column("h", ColumnType::Text { max: 9 }), Value::Text("it's".to_owned())),
        (column("i", ColumnType::Enumeration(&["x", "y"])), Value::Enumeration(1)),
        (column("j", ColumnType::Timestamp), Value::Timestamp(minute(7))),
        (column("k", ColumnType::Interval), Value::Interval(Interval::H4)),
    ]
    .into_iter()
    .unzip()
}

async fn added_column_reads_as_absent(context: &TestContext) -> CheckResult {
    let (old, old_datasets) = declared(declaration(vec![A, B, C]))?;
    let (older, reopen) = context.open_reopenable(&old_datasets).await?;
    older.ensure_schema().await?;
    insert(&*older, old, vec![row(old, 0, vec![])?, row(old, 1, vec![])?]).await?;

    let (columns, values) = additions();
    let (new, new_datasets) = declared(declaration([vec![A, B, C], columns].concat()))?;
    let newer = context.reopen_with(&reopen, &new_datasets).await?;
    expect_true("the plan lists the missing columns", !newer.plan_schema().await?.is_empty())?;
    expect_true("ensure_schema reports the applied steps", !newer.ensure_schema().await?.applied.is_empty())?;
    expect_same_rows("the plan after ensure_schema", &newer.plan_schema().await?, &[])?;
    expect_same_rows("the steps of the second ensure_schema", &newer.ensure_schema().await?.applied, &[])?;
    let absent = vec![Value::Absent; values.len()];
    let mut expected = vec![row(new, 0, absent.clone())?, row(new, 1, absent)?];
    expect_same_rows("the older records", &stored(&*newer, new).await?, &expected)?;

    // The first row replaces an older row, and the second row is new.
    expected[1] = row(new, 1, values.clone())?;
    expected.push(row(new, 2, values)?);
    insert(&*newer, new, expected[1..].to_vec()).await?;
    expect_same_rows("the older and newer records", &stored(&*newer, new).await?, &expected)
}

async fn enumeration_accepts_appended_variants(context: &TestContext) -> CheckResult {
    let (old, old_datasets) = declared(declaration(vec![A, B, C]))?;
    let (older, reopen) = context.open_reopenable(&old_datasets).await?;
    older.ensure_schema().await?;
    insert(&*older, old, vec![row(old, 0, vec![])?]).await?;
    let longer = Column { ty: ColumnType::Enumeration(&["one", "two", "three"]), ..C };
    let (new, new_datasets) = declared(declaration(vec![A, B, longer]))?;
    let newer = context.reopen_with(&reopen, &new_datasets).await?;
    newer.ensure_schema().await?;
    expect_same_rows("the plan after ensure_schema", &newer.plan_schema().await?, &[])?;
    let mut third = row(new, 1, vec![])?.values().to_vec();
    third[2] = Value::Enumeration(3);
    let series = SeriesKey { owner: Owner::Instrument(instrument_no(0)), interval: None };
    let third = Row::new(new, series, (minute(1), 0), third)?;
    insert(&*newer, new, vec![third.clone()]).await?;
    expect_same_rows(
        "the records with old and new variants",
        &stored(&*newer, new).await?,
        &[row(new, 0, vec![])?, third],
    )
}

async fn older_declaration_continues_to_work(context: &TestContext) -> CheckResult {
    let (columns, values) = additions();
    let (new, new_datasets) = declared(declaration([vec![A, B, C], columns].concat()))?;
    let (newer, reopen) = context.open_reopenable(&new_datasets).await?;
    newer.ensure_schema().await?;
    insert(&*newer, new, vec![row(new, 0, values.clone())?]).await?;

    let (old, old_datasets) = declared(declaration(vec![A, B, C]))?;
    let older = context.reopen_with(&reopen, &old_datasets).await?;
    expect_same_rows("the plan of the older version", &older.plan_schema().await?, &[])?;
    expect_same_rows("the steps of the older version", &older.ensure_schema().await?.applied, &[])?;
    insert(&*older, old, vec![row(old, 1, vec![])?]).await?;
    let expected = [row(old, 0, vec![])?, row(old, 1, vec![])?];
    expect_same_rows("the records that the older version reads", &stored(&*older, old).await?, &expected)?;
    let absent = vec![Value::Absent; values.len()];
    let expected = [row(new, 0, values)?, row(new, 1, absent)?];
    expect_same_rows("the records that the newer version reads", &stored(&*newer, new).await?, &expected)
}

async fn incompatible_declaration_is_rejected(context: &TestContext) -> CheckResult {
    let (old, old_datasets) = declared(declaration(vec![A, B, C]))?;
    let (first, reopen) = context.open_reopenable(&old_datasets).await?;
    first.ensure_schema().await?;
    insert(&*first, old, vec![row(old, 0, vec![])?]).await?;
    let required = Column { name: "d", ty: ColumnType::Decimal, optional: false };
    let name = SeriesType::Name { column: "strategy", max: 20 };
    let same_columns = || declaration(vec![A, B, C]);
    let differences = [
        ("another type", "a", declaration(vec![Column { ty: ColumnType::Integer, ..A }, B, C])),
        ("a required column made optional", "a", declaration(vec![Column { optional: true, ..A }, B, C])),
        ("an optional column made required", "b", declaration(vec![A, Column { optional: false, ..B }, C])),
        ("another order", "b", declaration(vec![B, A, C])),
        ("a longer text", "b", declaration(vec![A, Column { ty: ColumnType::Text { max: 21 }, ..B }, C])),
        ("a shorter text", "b", declaration(vec![A, Column { ty: ColumnType::Text { max: 19 }, ..B }, C])),
        ("a removed column", "b", declaration(vec![A, C])),
        ("a renamed column", "b", declaration(vec![A, Column { name: "z", ..B }, C])),
        (
            "a new column between others",
            "d",
            declaration(vec![A, Column { optional: true, ..required }, B, C]),
        ),
        ("a new required column", "d", declaration(vec![A, B, C, required])),
        (
            "a renamed variant",
            "c",
            declaration(vec![A, B, Column { ty: ColumnType::Enumeration(&["one", "deux"]), ..C }]),
        ),
        (
            "a removed variant",
            "c",
            declaration(vec![A, B, Column { ty: ColumnType::Enumeration(&["one"]), ..C }]),
        ),
        ("a sequence number in the key", "seq", Description { seq: Some("seq"), ..same_columns() }),
        ("an interval in the key", "interval", Description { interval: Some("interval"), ..same_columns() }),
        ("another time column", "at", Description { time: "at", ..same_columns() }),
        ("another series", "strategy", Description { series: name, ..same_columns() }),
    ];
    for (what, says, description) in differences {
        let (_, datasets) = declared(description)?;
        let other = context.reopen_with(&reopen, &datasets).await?;
        let error = expect_error(what, other.ensure_schema().await, ErrorKind::SchemaMismatch)?;
        let report = error.report();
        for word in ["evolving", says] {
            expect_true(format_args!("{what}: {word} in the report: {report}"), report.contains(word))?;
        }
        expect_error(&format!("{what}, the plan"), other.plan_schema().await, ErrorKind::SchemaMismatch)?;
    }
    first.ensure_schema().await?;
    insert(&*first, old, vec![row(old, 1, vec![])?]).await?;
    let expected = [row(old, 0, vec![])?, row(old, 1, vec![])?];
    expect_same_rows("the records of the first version", &stored(&*first, old).await?, &expected)
}
