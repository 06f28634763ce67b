//! Datasets that a program declares: their tables, their values, and changes of their declarations.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod declared;
mod sqlite_rig;

use declared::{Everything, Heartbeat, Signal, decimal, everything, time};
use futures::TryStreamExt as _;
use qi_adapters::sqlite::{SqliteConfig, SqliteStore};
use qi_core::record::{
    Column, ColumnType, Dataset, Description, Owner, Row, SeriesKey, SeriesType, Text, Value,
};
use qi_core::store::{DeleteQuery, LatestQuery, RangeQuery, RangeRequest, SeriesRequest};
use qi_core::{
    Datasets, Decimal, ErrorKind, Instrument, Interval, PriceStore, PriceStoreExt, PriceTick, Record,
    Selection, TimeRange, Timestamp,
};
use sqlite_rig::{Folder, connect, execute};
use sqlx::Row as _;

/// Returns a store of these datasets with its schema.
async fn created(config: &SqliteConfig, datasets: Datasets) -> SqliteStore {
    let store = SqliteStore::open(config.clone().with_datasets(datasets)).unwrap();
    store.ensure_schema().await.unwrap();
    store
}

async fn all<R: Record>(store: &SqliteStore, series: R::Series) -> Vec<R> {
    let query = RangeQuery::new(series, TimeRange::ALL).with_limit(7).unwrap();
    store.range_stream(&query).try_collect().await.unwrap()
}

#[tokio::test]
async fn every_column_type_round_trips() {
    let folder = Folder::new();
    let store = created(&folder.config(), Datasets::built_in().with::<Everything>().unwrap()).await;
    let name: Instrument = "x:Y".parse().unwrap();
    let mut records: Vec<_> = (0..900).map(everything).collect();
    store.insert_records(&records).await.unwrap();
    assert_eq!(all::<Everything>(&store, name.clone()).await, records);
    // Replaced values, values that become absent, and absent values that become present.
    for record in &mut records {
        *record = Everything { n: record.n, time: record.time, ..everything(record.n + 1) };
    }
    store.insert_records(&records).await.unwrap();
    store.insert_records(&records[..500]).await.unwrap();
    assert_eq!(all::<Everything>(&store, name).await, records);
    let latest = store.latest_of::<Everything>(&LatestQuery::new(Selection::All)).await.unwrap();
    assert_eq!(latest.items, records[899..]);
}

fn signal(strategy: &str, interval: Interval, day: u64, score: &str) -> Signal {
    let open_time = Interval::D1.floor(time(day * 86_400));
    Signal { strategy: strategy.parse().unwrap(), interval, open_time, score: decimal(score) }
}

/// SQLite reads an unknown name in double quotes as a text, which would be a value of the record.
#[tokio::test]
async fn a_column_that_does_not_exist_yet_is_a_schema_mismatch() {
    #[derive(Debug, Clone, PartialEq, Record)]
    #[record(name = "notes")]
    struct Older {
        #[series]
        instrument: Instrument,
        #[time]
        ts: Timestamp,
        score: Decimal,
    }
    #[derive(Debug, Clone, PartialEq, Record)]
    #[record(name = "notes")]
    struct Newer {
        #[series]
        instrument: Instrument,
        #[time]
        ts: Timestamp,
        score: Decimal,
        author: Option<Text<32>>,
    }
    let folder = Folder::new();
    let config = folder.config();
    let older = created(&config, Datasets::none().with::<Older>().unwrap()).await;
    let name: Instrument = "x:Y".parse().unwrap();
    let record = Older { instrument: name.clone(), ts: time(0), score: decimal("1") };
    older.insert_record(&record).await.unwrap();
    let newer = config.clone().with_datasets(Datasets::none().with::<Newer>().unwrap());
    let newer = SqliteStore::open(newer).unwrap();
    let query = RangeQuery::new(name, TimeRange::ALL);
    let errors = [
        newer.range_of::<Newer>(&query).await.unwrap_err(),
        newer.latest_of::<Newer>(&LatestQuery::new(Selection::All)).await.unwrap_err(),
    ];
    assert_eq!(errors.map(|error| error.kind()), [ErrorKind::SchemaMismatch; 2]);
    newer.ensure_schema().await.unwrap();
    assert_eq!(newer.range_of::<Newer>(&query).await.unwrap().items[0].author, None);
}

#[tokio::test]
async fn a_dataset_has_named_series() {
    let folder = Folder::new();
    let datasets = Datasets::standard().with::<Signal>().unwrap().with::<Heartbeat>().unwrap();
    let store = created(&folder.config(), datasets).await;
    // Sorted by bytes: upper case comes first, whatever the collation of the database is.
    let order = ["", "Beta", "alpha", "beta", "ä'"];
    let mut records = Vec::new();
    for (at, strategy) in order.iter().enumerate().rev() {
        for day in [0, 1, 400 * at as u64] {
            records.push(signal(strategy, Interval::D1, day, "1.5"));
            records.push(signal(strategy, Interval::H1, day, "-2"));
        }
    }
    store.insert_records(&records).await.unwrap();
    store.insert_records(&records).await.unwrap();
    let texts: Vec<Text<32>> = order.iter().map(|text| text.parse().unwrap()).collect();
    for limit in [2, 100] {
        let request = SeriesRequest::new(Signal::DATASET).with_limit(limit).unwrap();
        let mut found = Vec::new();
        let mut next = Some(request);
        while let Some(request) = next {
            let page = store.series(&request).await.unwrap();
            found.extend(page.items);
            next = page.next.map(|cursor| request.after(cursor));
        }
        let owners: Vec<_> = found.iter().map(|summary| summary.owner.name().unwrap().to_owned()).collect();
        assert_eq!(owners, order);
        assert_eq!(found[4].first, signal("", Interval::D1, 0, "1").open_time);
        assert_eq!(found[4].last, signal("", Interval::D1, 1_600, "1").open_time);
        let query = LatestQuery::new(Selection::All).of_interval(Interval::H1).with_limit(limit).unwrap();
        let latest: Vec<Signal> = store.latest_stream(&query).try_collect().await.unwrap();
        assert_eq!(latest.iter().map(|record| record.strategy.clone()).collect::<Vec<_>>(), texts);
        assert_eq!(latest[4], signal("ä'", Interval::H1, 1_600, "-2"));
    }
    // A bar is known after it has closed.
    let close = signal("", Interval::D1, 1, "1").open_time.checked_add(Interval::D1.duration()).unwrap();
    let some = Selection::only(["nobody".parse().unwrap(), texts[1].clone(), texts[2].clone()]).unwrap();
    for (as_of, day) in [(close, 1), (Timestamp::from_micros(close.as_micros() - 1).unwrap(), 0)] {
        let query = LatestQuery::new(some.clone()).of_interval(Interval::D1).as_of(as_of);
        let page = store.latest_of::<Signal>(&query).await.unwrap();
        assert_eq!(page.items, ["Beta", "alpha"].map(|name| signal(name, Interval::D1, day, "1.5")));
    }
    let stored = all::<Signal>(&store, (texts[1].clone(), Interval::D1)).await;
    assert_eq!(stored, [0, 1, 400].map(|day| signal("Beta", Interval::D1, day, "1.5")));

    let query = DeleteQuery::of::<Signal>(&Selection::one(texts[1].clone()), TimeRange::before(time(86_400)));
    store.delete_range(&query.clone().of_interval(Interval::D1)).await.unwrap();
    assert_eq!(store.delete_range(&query).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(all::<Signal>(&store, (texts[1].clone(), Interval::D1)).await.len(), 1);
    assert_eq!(all::<Signal>(&store, (texts[1].clone(), Interval::H1)).await.len(), 3);
    store.purge_before(Signal::DATASET, time(2 * 86_400)).await.unwrap();
    let left = store.series(&SeriesRequest::new(Signal::DATASET)).await.unwrap().items;
    assert_eq!(left.iter().map(|summary| summary.owner.name().unwrap()).collect::<Vec<_>>(), order[1..]);
}

#[tokio::test]
async fn dataset_without_value_columns_is_stored() {
    let folder = Folder::new();
    let store = created(&folder.config(), Datasets::none().with::<Heartbeat>().unwrap()).await;
    let beat = |n: u64| Heartbeat { process: "a".parse().unwrap(), ts: time(n), seq: n };
    let beats: Vec<_> = (0..400).map(beat).collect();
    store.insert_records(&beats[..10]).await.unwrap();
    store.insert_records(&beats).await.unwrap();
    assert_eq!(all::<Heartbeat>(&store, "a".parse().unwrap()).await, beats);
}

const DECIMAL: ColumnType = ColumnType::Decimal;

fn column(name: &'static str, ty: ColumnType, optional: bool) -> Column {
    Column { name, ty, optional }
}

/// Returns a version of a dataset with these columns.
fn version(columns: &[Column]) -> Dataset {
    Dataset::declare(description(columns)).unwrap()
}

fn description(columns: &[Column]) -> Description {
    Description {
        name: "funding",
        version: 1,
        message: "funding",
        topic: "funding",
        series: SeriesType::Instrument,
        interval: None,
        time: "ts",
        seq: None,
        values: columns.to_vec().leak(),
        // `declare` replaces this function.
        new_vec: qi_core::record::RecordVec::of::<PriceTick>,
    }
}

fn row(dataset: Dataset, secs: u64, values: Vec<Value>) -> Row {
    let series = SeriesKey { owner: Owner::Instrument("x:Y".parse().unwrap()), interval: None };
    Row::new(dataset, series, (time(secs), 0), values).unwrap()
}

async fn opened(config: &SqliteConfig, dataset: Dataset) -> SqliteStore {
    created(config, Datasets::standard().with_dataset(dataset).unwrap()).await
}

async fn write(store: &SqliteStore, dataset: Dataset, rows: Vec<Row>) {
    store.insert(Row::collect(dataset, rows).unwrap().as_records()).await.unwrap();
}

async fn read(store: &SqliteStore, dataset: Dataset) -> Vec<Vec<Value>> {
    let series = SeriesKey { owner: Owner::Instrument("x:Y".parse().unwrap()), interval: None };
    let page = store.range(&RangeRequest::new(dataset, series, TimeRange::ALL)).await.unwrap();
    Row::copy_of(page.records.as_records()).unwrap().iter().map(|row| row.values().to_vec()).collect()
}

#[tokio::test]
async fn an_optional_column_is_added_while_an_older_version_runs() {
    let folder = Folder::new();
    let config = folder.config();
    let old = version(&[column("rate", DECIMAL, false)]);
    let new = version(&[column("rate", DECIMAL, false), column("mark", DECIMAL, true)]);
    let (rate, mark) = (Value::Decimal(decimal("0.01")), Value::Decimal(decimal("2")));
    let first = opened(&config, old).await;
    write(&first, old, vec![row(old, 0, vec![rate.clone()])]).await;
    let second =
        SqliteStore::open(config.clone().with_datasets(Datasets::standard().with_dataset(new).unwrap()))
            .unwrap();
    let applied = second.ensure_schema().await.unwrap().applied;
    assert_eq!(applied, ["column funding.mark"]);
    write(&second, new, vec![row(new, 1, vec![rate.clone(), mark.clone()])]).await;
    // The connections of the older version have prepared their statements before the change.
    write(&first, old, vec![row(old, 2, vec![rate.clone()])]).await;
    assert_eq!(read(&first, old).await, vec![vec![rate.clone()]; 3]);
    let values = |mark: Value| vec![rate.clone(), mark];
    let expected = [values(Value::Absent), values(mark), values(Value::Absent)];
    assert_eq!(read(&second, new).await, expected);
    // A record that an older version replaces has no value in the newer column.
    write(&first, old, vec![row(old, 1, vec![rate.clone()])]).await;
    assert_eq!(read(&second, new).await, vec![values(Value::Absent); 3]);
    assert!(first.ensure_schema().await.unwrap().applied.is_empty());
}

#[tokio::test]
async fn an_enumeration_gains_names() {
    let folder = Folder::new();
    let config = folder.config();
    let enumeration = |names| version(&[column("state", ColumnType::Enumeration(names), false)]);
    let (old, new) = (enumeration(&["on", "off"]), enumeration(&["on", "off", "unknown"]));
    let first = opened(&config, old).await;
    write(&first, old, vec![row(old, 0, vec![Value::Enumeration(2)])]).await;
    let second =
        SqliteStore::open(config.clone().with_datasets(Datasets::standard().with_dataset(new).unwrap()))
            .unwrap();
    assert_eq!(second.ensure_schema().await.unwrap().applied, ["enumeration names of funding.state"]);
    write(&second, new, vec![row(new, 1, vec![Value::Enumeration(3)])]).await;
    assert_eq!(read(&second, new).await, [[Value::Enumeration(2)], [Value::Enumeration(3)]]);
    let series = SeriesKey { owner: Owner::Instrument("x:Y".parse().unwrap()), interval: None };
    let error = first.range(&RangeRequest::new(old, series, TimeRange::ALL)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CorruptData, "an older version does not know the name");
}

#[tokio::test]
async fn concurrent_versions_create_one_schema() {
    let folder = Folder::new();
    let old = version(&[column("rate", DECIMAL, false)]);
    let new = version(&[column("rate", DECIMAL, false), column("mark", DECIMAL, true)]);
    for _ in 0..10 {
        let config = folder.config();
        let mut tasks = tokio::task::JoinSet::new();
        for dataset in [old, new, old, new] {
            let datasets = Datasets::standard().with_dataset(dataset).unwrap();
            let store = SqliteStore::open(config.clone().with_datasets(datasets)).unwrap();
            tasks.spawn(async move { store.ensure_schema().await });
        }
        for result in tasks.join_all().await {
            result.unwrap();
        }
        let rows = sqlx::query("SELECT line FROM _datasets WHERE dataset = 'funding' ORDER BY position");
        let rows = rows.fetch_all(&mut connect(&config.path).await).await.unwrap();
        let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(lines, ["instrument, ts", "rate decimal", "mark decimal optional"]);
    }
}

#[tokio::test]
async fn a_dataset_has_one_hundred_columns_with_the_names_of_keywords() {
    let folder = Folder::new();
    let mut columns = vec![];
    for name in ["select", "from", "where", "at", "id", "name", "rowid", "values", "index", "wanted", "found"]
    {
        columns.push(column(name, ColumnType::Integer, true));
    }
    while columns.len() < 100 {
        let name = format!("c{}", columns.len()).leak();
        columns.push(column(name, ColumnType::Text { max: 20 }, true));
    }
    let dataset = Dataset::declare(Description { name: "table", ..description(&columns) }).unwrap();
    let store = opened(&folder.config(), dataset).await;
    let values = |n: i64| {
        let value = |column: &Column| match column.ty {
            ColumnType::Integer => Value::Integer(n),
            _ => Value::Text(format!("{n} {}", column.name)),
        };
        columns.iter().map(value).collect::<Vec<_>>()
    };
    let rows: Vec<_> = (0..600).map(|n| row(dataset, n, values(n.cast_signed()))).collect();
    write(&store, dataset, rows).await;
    let expected: Vec<_> = (0..600).map(values).collect();
    assert_eq!(read(&store, dataset).await, expected);
    let request = qi_core::store::LatestRequest::new(dataset, Selection::All);
    let latest = store.latest(&request).await.unwrap();
    assert_eq!(Row::copy_of(latest.records.as_records()).unwrap()[0].values(), expected[599]);
    assert_eq!(store.series(&SeriesRequest::new(dataset)).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn foreign_and_missing_tables_are_found() {
    let folder = Folder::new();
    let config = folder.config();
    let dataset = version(&[column("rate", DECIMAL, false)]);
    created(&config, Datasets::standard()).await.close().await.unwrap();
    execute(&config.path, "CREATE TABLE funding (a)").await;
    let datasets = Datasets::standard().with_dataset(dataset).unwrap();
    let store = SqliteStore::open(config.clone().with_datasets(datasets)).unwrap();
    let error = store.ensure_schema().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaMismatch);
    assert!(error.to_string().contains("table funding was not created by this library"), "{error}");
    execute(&config.path, "DROP TABLE funding; DROP TABLE ticks").await;
    assert_eq!(store.ensure_schema().await.unwrap().applied, ["table ticks", "table funding"]);
    assert!(store.plan_schema().await.unwrap().is_empty());
    store.latest_tick(&"x:Y".parse().unwrap()).await.unwrap();
}

#[test]
fn a_reserved_name_of_a_dataset_is_rejected_before_io() {
    let dataset = Dataset::declare(Description { name: "sqlite_ticks", ..description(&[]) }).unwrap();
    let datasets = Datasets::none().with_dataset(dataset).unwrap();
    let error = SqliteStore::open(SqliteConfig::from_path("x.db").with_datasets(datasets)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("sqlite_ticks"), "{error}");
}

#[tokio::test]
async fn a_long_deletion_removes_exactly_the_range() {
    let folder = Folder::new();
    let store = created(&folder.config(), Datasets::standard()).await;
    let name: Instrument = "x:Y".parse().unwrap();
    let tick = |n: u64| PriceTick::new(name.clone(), time(n / 10), n, "1".parse().unwrap()).unwrap();
    let ticks: Vec<_> = (0..120_000).map(tick).collect();
    for part in ticks.chunks(30_000) {
        store.insert_ticks(part).await.unwrap();
    }
    let range = TimeRange::new(time(100), time(11_900)).unwrap();
    store.delete_range(&DeleteQuery::ticks(Selection::one(name.clone()), range)).await.unwrap();
    let query = RangeQuery::new(name, TimeRange::ALL).with_limit(50_000).unwrap();
    let left = store.ticks(&query).await.unwrap().items;
    assert_eq!(left, [&ticks[..1_000], &ticks[119_000..]].concat());
}
