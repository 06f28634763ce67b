//! Declared datasets on a server: every type of column, names as series, and changing schemas.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod clickhouse_rig;
mod servers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clickhouse_rig::Server;
use futures::future::try_join_all;
use libtest_mimic::Arguments;
use qi_adapters::clickhouse::ClickHouseStore;
use qi_core::Datasets;
use qi_core::record::{
    Column, ColumnType, Dataset, Description, Enumeration, Level, Levels, Owner, Record, Row, SeriesKey,
    SeriesType, Text, Value,
};
use qi_core::store::{
    DeleteQuery, LatestQuery, LatestRequest, RangeQuery, RangeRequest, SeriesRequest, StatsQuery,
};
use qi_core::{
    Bytes, Decimal, ErrorKind, Instrument, Interval, PriceStore, PriceStoreExt, PriceTick, Selection,
    TimeRange, Timestamp,
};
use servers::{namespace, trial};

fn main() {
    let server = Server::clickhouse();
    let trials = vec![
        trial(&server, "every_column_type_round_trips", every_type),
        trial(&server, "a_dataset_may_have_named_series", names),
        trial(&server, "an_unregistered_dataset_is_rejected", unregistered),
        trial(&server, "a_declared_dataset_has_its_own_retention", ages),
        trial(&server, "an_optional_column_is_added", added),
        trial(&server, "an_enumeration_gains_names_while_an_older_version_runs", wider_enumeration),
        trial(&server, "a_manually_changed_table_is_rejected", changed_table),
        trial(&server, "concurrent_versions_create_one_schema", concurrent_versions),
        trial(&server, "version_0_1_database_is_accepted", first_version),
        trial(&server, "version_0_1_writer_continues_during_the_upgrade", first_version_writes),
        trial(&server, "the_plan_matches_the_executed_statements", plan),
        trial(&server, "a_manually_changed_declaration_is_rejected", changed_record),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

fn time(secs: i64) -> Timestamp {
    Timestamp::from_secs(1_700_000_000 + secs).unwrap()
}

fn open(server: &Server, prefix: &str, datasets: Datasets) -> ClickHouseStore {
    ClickHouseStore::open(server.config(prefix).with_datasets(datasets)).unwrap()
}

/// Runs a check with a unique prefix. The tables with this prefix are dropped at the end.
async fn with_prefix<R: Future<Output = ()>>(server: &Server, check: impl FnOnce(String) -> R) {
    let prefix = format!("{}_", namespace());
    check(prefix.clone()).await;
    server.drop_tables(&prefix).await;
}

async fn sql(store: &ClickHouseStore, text: &str) {
    store.client().query_raw(text).execute().await.unwrap_or_else(|error| panic!("{text}: {error}"));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration, serde::Serialize, serde::Deserialize)]
enum Kind {
    Open,
    PartFilled,
    Closed,
}

/// The names are SQL keywords where possible.
#[derive(Debug, Clone, PartialEq, Record)]
#[record(name = "select")]
struct Every {
    #[series]
    instrument: Instrument,
    #[time]
    timestamp: Timestamp,
    #[seq]
    index: u64,
    order: Decimal,
    group: u64,
    limit: i64,
    null: bool,
    having: Text<32>,
    primary: Kind,
    date: Timestamp,
    interval: Interval,
    array: Levels<8>,
    maybe_decimal: Option<Decimal>,
    maybe_counter: Option<u64>,
    maybe_integer: Option<i64>,
    maybe_boolean: Option<bool>,
    maybe_text: Option<Text<4096>>,
    maybe_kind: Option<Kind>,
    maybe_time: Option<Timestamp>,
    maybe_interval: Option<Interval>,
}

impl Every {
    fn new(n: u64, kind: Kind) -> Self {
        let level =
            |n: u64| Level { price: (n + 1).to_string().parse().unwrap(), quantity: "0.5".parse().unwrap() };
        let full = n.is_multiple_of(2);
        let text = "it's \\ 🦀\n\t`{x:String}`";
        Self {
            instrument: "x:Y".parse().unwrap(),
            timestamp: time(i64::try_from(n / 3).unwrap()),
            index: n,
            order: "-99999999999999999999.999999999999999999".parse().unwrap(),
            group: i64::MAX.unsigned_abs(),
            limit: i64::MIN,
            null: full,
            having: if full { text.parse().unwrap() } else { "".parse().unwrap() },
            primary: kind,
            date: Timestamp::MAX_RECORD,
            interval: Interval::H4,
            array: Levels::new((0..n % 9).map(level).collect()).unwrap(),
            maybe_decimal: full.then(|| "0.000000000000000001".parse().unwrap()),
            maybe_counter: full.then_some(n),
            maybe_integer: full.then_some(-1),
            maybe_boolean: full.then_some(false),
            maybe_text: full.then(|| "x".repeat(4096).parse().unwrap()),
            maybe_kind: full.then_some(Kind::Closed),
            maybe_time: full.then_some(Timestamp::MIN),
            maybe_interval: full.then_some(Interval::W1),
        }
    }
}

async fn every_type(server: Server) {
    with_prefix(&server, async |prefix| {
        let store = open(&server, &prefix, Datasets::none().with::<Every>().unwrap());
        assert_eq!(
            store.insert_record(&Every::new(0, Kind::Open)).await.unwrap_err().kind(),
            ErrorKind::SchemaMismatch
        );
        store.ensure_schema().await.unwrap();
        let expected = ClickHouseStore::expected_columns(Every::DATASET);
        assert_eq!(store.columns(Every::DATASET).await.unwrap(), expected);
        let mut batch: Vec<_> = (0..60).map(|n| Every::new(n, Kind::PartFilled)).collect();
        store.insert_records(&batch).await.unwrap();
        let query = RangeQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
        assert_eq!(store.range_of::<Every>(&query).await.unwrap().items, batch);
        // A replacing record keeps its absent values and gets no older values.
        for (n, record) in (0..).zip(&mut batch) {
            let Every { instrument, timestamp, index, .. } = record.clone();
            *record = Every { instrument, timestamp, index, ..Every::new(n + 1, Kind::Closed) };
        }
        store.insert_records(&batch).await.unwrap();
        assert_eq!(store.range_of::<Every>(&query).await.unwrap().items, batch);
        let (mut paged, mut page) = (Vec::new(), query.clone().descending().with_limit(7).unwrap());
        loop {
            let part = store.range_of::<Every>(&page).await.unwrap();
            paged.extend(part.items);
            let Some(next) = part.next else { break };
            page = page.after(next);
        }
        paged.reverse();
        assert_eq!(paged, batch);
        let latest = LatestQuery::new(Selection::All);
        assert_eq!(store.latest_of::<Every>(&latest).await.unwrap().items, batch[59..]);
        let latest = latest.as_of(time(3));
        assert_eq!(store.latest_of::<Every>(&latest).await.unwrap().items, batch[11..12]);
        let range = TimeRange::new(time(1), Timestamp::MAX).unwrap();
        store
            .delete_range(&DeleteQuery::of::<Every>(&Selection::one("x:Y".parse().unwrap()), range))
            .await
            .unwrap();
        assert_eq!(store.range_of::<Every>(&query).await.unwrap().items, batch[..3]);
        store.purge_before(Every::DATASET, time(1)).await.unwrap();
        assert!(store.range_of::<Every>(&query).await.unwrap().items.is_empty());
    })
    .await;
}

/// A signal of a strategy for an interval.
#[derive(Debug, Clone, PartialEq, Record)]
#[record(name = "order")]
struct Signal {
    #[series]
    group: Text<64>,
    #[interval]
    length: Interval,
    #[time]
    open_time: Timestamp,
    strength: Decimal,
}

async fn names(server: Server) {
    with_prefix(&server, async |prefix| {
        let store = open(&server, &prefix, Datasets::standard().with::<Signal>().unwrap());
        store.ensure_schema().await.unwrap();
        let texts = ["", "a", "a'b", "a,b", "a\\", "é", "🦀"].map(|text| text.parse::<Text<64>>().unwrap());
        let signal = |group: &Text<64>, length: Interval, n: u32| {
            let open_time = length.floor(time(i64::from(n) * 86_400));
            Signal { group: group.clone(), length, open_time, strength: n.to_string().parse().unwrap() }
        };
        let mut batch = Vec::new();
        for (n, text) in (1..).zip(&texts) {
            batch.extend((0..n).map(|n| signal(text, Interval::H1, n)));
            batch.push(signal(text, Interval::D1, 100 + n));
        }
        store.insert_records(&batch).await.unwrap();
        for text in &texts {
            let of: Vec<_> =
                batch.iter().filter(|s| s.group == *text && s.length == Interval::H1).cloned().collect();
            let query = RangeQuery::new((text.clone(), Interval::H1), TimeRange::ALL);
            assert_eq!(store.range_of::<Signal>(&query).await.unwrap().items, of, "{text}");
            let latest = LatestQuery::new(Selection::one(text.clone())).of_interval(Interval::H1);
            assert_eq!(store.latest_of::<Signal>(&latest).await.unwrap().items, of[of.len() - 1..]);
        }
        let latest = LatestQuery::new(Selection::All).of_interval(Interval::D1);
        let days: Vec<_> = batch.iter().filter(|s| s.length == Interval::D1).cloned().collect();
        assert_eq!(store.latest_of::<Signal>(&latest).await.unwrap().items, days);
        // A bar is known after it has closed.
        let closed = days[6].open_time.checked_add(Interval::D1.duration()).unwrap();
        let before = Timestamp::from_micros(closed.as_micros() - 1).unwrap();
        let items =
            async |as_of| store.latest_of::<Signal>(&latest.clone().as_of(as_of)).await.unwrap().items;
        assert_eq!((items(closed).await.len(), items(before).await.len()), (7, 6));
        let (mut listed, mut request) =
            (Vec::new(), SeriesRequest::new(Signal::DATASET).with_limit(3).unwrap());
        loop {
            let page = store.series(&request).await.unwrap();
            listed.extend(page.items.into_iter().map(|summary| summary.owner));
            let Some(next) = page.next else { break };
            request = request.after(next);
        }
        assert_eq!(listed, texts.clone().map(|text| Owner::Name(text.as_str().into())));
        let some = Selection::only(texts[1..4].iter().cloned()).unwrap();
        let query = DeleteQuery::of::<Signal>(&some, TimeRange::ALL).of_interval(Interval::D1);
        store.delete_range(&query).await.unwrap();
        assert_eq!(store.latest_of::<Signal>(&latest).await.unwrap().items.len(), 4);
        // Owners and series of a kind that the dataset does not have.
        let instrument = Owner::Instrument("x:Y".parse().unwrap());
        let series = SeriesKey { owner: instrument.clone(), interval: Some(Interval::D1) };
        let nameless = SeriesKey { owner: Owner::Name("a".into()), interval: None };
        let error = |result: qi_core::Result<()>| result.unwrap_err().kind();
        for series in [series, nameless] {
            let request = RangeRequest::new(Signal::DATASET, series, TimeRange::ALL);
            assert_eq!(error(store.range(&request).await.map(drop)), ErrorKind::InvalidInput);
        }
        let request =
            LatestRequest::new(Signal::DATASET, Selection::one(instrument)).of_interval(Interval::D1);
        assert_eq!(error(store.latest(&request).await.map(drop)), ErrorKind::InvalidInput);
        let mut request = SeriesRequest::new(Signal::DATASET);
        request.exchange = Some("x".parse().unwrap());
        assert!(store.series(&request).await.unwrap().items.is_empty(), "no name belongs to an exchange");
    })
    .await;
}

async fn unregistered(server: Server) {
    let store = open(&server, "", Datasets::none().with::<Every>().unwrap());
    let tick = PriceTick::new("x:Y".parse().unwrap(), time(0), 1, "1".parse().unwrap()).unwrap();
    let figures = StatsQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
    for error in [
        store.insert_tick(&tick).await.unwrap_err(),
        store.latest_tick(tick.instrument()).await.unwrap_err(),
        store.stats(&figures).await.unwrap_err(),
        store.purge_before(PriceTick::DATASET, time(0)).await.unwrap_err(),
        store.columns(PriceTick::DATASET).await.unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.code()), (ErrorKind::SchemaMismatch, "store.dataset.unknown"));
    }
}

async fn ages(server: Server) {
    with_prefix(&server, async |prefix| {
        let mut config = server.config(&prefix).with_datasets(Datasets::none().with::<Signal>().unwrap());
        config.retention.set("order", std::time::Duration::from_hours(48));
        let store = ClickHouseStore::open(config).unwrap();
        assert_eq!(store.info().retention.len(), 1);
        let made = store.ensure_schema().await.unwrap().applied;
        assert_eq!(made, ["table order", "retention of order after 2d", "declaration of order"]);
        assert!(store.plan_schema().await.unwrap().is_empty());
    })
    .await;
}

/// Returns a version of the dataset `flows` with these value columns.
fn version(columns: &[(&'static str, ColumnType, bool)]) -> Dataset {
    let column = |(name, ty, optional): &(&'static str, ColumnType, bool)| Column {
        name,
        ty: *ty,
        optional: *optional,
    };
    let values: Vec<_> = columns.iter().map(column).collect();
    let description = Description {
        name: "flows",
        version: 1,
        message: "flow",
        topic: "flows",
        series: SeriesType::Instrument,
        interval: None,
        time: "ts",
        seq: Some("seq"),
        values: values.leak(),
        new_vec: |dataset| dataset.new_vec(),
    };
    Dataset::declare(description).unwrap()
}

const A: (&str, ColumnType, bool) = ("amount", ColumnType::Decimal, false);
const B: (&str, ColumnType, bool) = ("kind", ColumnType::Enumeration(&["buy", "sell"]), true);
const C: (&str, ColumnType, bool) = ("note", ColumnType::Text { max: 9 }, true);
const D: (&str, ColumnType, bool) = ("trades", ColumnType::Counter, true);

fn of(dataset: Dataset) -> Datasets {
    Datasets::standard().with_dataset(dataset).unwrap()
}

fn series() -> SeriesKey {
    SeriesKey { owner: Owner::Instrument("x:Y".parse().unwrap()), interval: None }
}

fn row(dataset: Dataset, seq: u64, values: Vec<Value>) -> Row {
    Row::new(dataset, series(), (time(0), seq), values).unwrap()
}

async fn insert(store: &ClickHouseStore, row: Row) -> qi_core::Result<()> {
    let records = Row::collect(row.dataset(), vec![row]).unwrap();
    store.insert(records.as_records()).await.map(drop)
}

async fn stored(store: &ClickHouseStore, dataset: Dataset) -> qi_core::Result<Vec<Vec<Value>>> {
    let page = store.range(&RangeRequest::new(dataset, series(), TimeRange::ALL)).await?;
    let rows = Row::copy_of(page.records.as_records())?;
    Ok(rows.iter().map(|row| row.values().to_vec()).collect())
}

fn amount(text: &str) -> Value {
    Value::Decimal(text.parse().unwrap())
}

async fn added(server: Server) {
    with_prefix(&server, async |prefix| {
        let (one, two) = (version(&[A, B]), version(&[A, B, C, D]));
        let (old, new) = (open(&server, &prefix, of(one)), open(&server, &prefix, of(two)));
        assert_eq!(
            old.ensure_schema().await.unwrap().applied,
            ["migration step 1: tables", "table flows", "declaration of flows"]
        );
        insert(&old, row(one, 1, vec![amount("1"), Value::Absent])).await.unwrap();
        insert(&old, row(one, 2, vec![amount("2"), Value::Absent])).await.unwrap();
        assert_eq!(
            new.ensure_schema().await.unwrap().applied,
            ["column flows.note", "column flows.trades", "declaration of flows"]
        );
        assert_eq!(new.columns(two).await.unwrap(), ClickHouseStore::expected_columns(two));
        // Existing rows have none of the new values.
        let absent = |text: &str| vec![amount(text), Value::Absent, Value::Absent, Value::Absent];
        assert_eq!(stored(&new, two).await.unwrap(), [absent("1"), absent("2")]);
        let full = vec![amount("3"), Value::Enumeration(2), Value::Text("x".to_owned()), Value::Counter(7)];
        insert(&new, row(two, 1, full.clone())).await.unwrap();
        insert(&new, row(two, 2, full.clone())).await.unwrap();
        assert_eq!(stored(&new, two).await.unwrap(), [full.clone(), full.clone()]);
        // The older version continues to work, before and after it checks the schema. It reads its own columns, and its
        // writes replace the entire row.
        for text in ["4", "5"] {
            insert(&old, row(one, 2, vec![amount(text), Value::Absent])).await.unwrap();
            assert_eq!(stored(&old, one).await.unwrap()[0], full[..2]);
            assert_eq!(stored(&new, two).await.unwrap(), [full.clone(), absent(text)]);
            assert!(old.ensure_schema().await.unwrap().applied.is_empty());
        }
        assert_eq!(new.columns(two).await.unwrap(), ClickHouseStore::expected_columns(two));
        let recorded = format!("SELECT count() FROM {prefix}qi_datasets FINAL WHERE dataset = 'flows'");
        assert_eq!(new.client().query_raw(&recorded).fetch_one::<u64>().await.unwrap(), 2);
    })
    .await;
}

async fn wider_enumeration(server: Server) {
    with_prefix(&server, async |prefix| {
        let wide = ("kind", ColumnType::Enumeration(&["buy", "sell", "both"]), true);
        let (one, two) = (version(&[A, B]), version(&[A, wide, C]));
        let (old, new) = (open(&server, &prefix, of(one)), open(&server, &prefix, of(two)));
        old.ensure_schema().await.unwrap();
        insert(&old, row(one, 1, vec![amount("1"), Value::Enumeration(2)])).await.unwrap();
        assert_eq!(
            new.ensure_schema().await.unwrap().applied,
            ["enumeration names of flows.kind", "column flows.note", "declaration of flows"]
        );
        // The older version detects the wider type during a write and continues.
        insert(&old, row(one, 2, vec![amount("2"), Value::Enumeration(1)])).await.unwrap();
        let third = open(&server, &prefix, of(one));
        insert(&third, row(one, 3, vec![amount("3"), Value::Absent])).await.unwrap();
        for old in [&old, &third] {
            insert(old, row(one, 4, vec![amount("4"), Value::Absent])).await.unwrap();
            assert_eq!(stored(old, one).await.unwrap().len(), 4);
            // A store that starts now must know all names.
            assert_eq!(old.ensure_schema().await.unwrap_err().kind(), ErrorKind::SchemaMismatch);
        }
        // The older version cannot read an unknown name.
        insert(&new, row(two, 5, vec![amount("5"), Value::Enumeration(3), Value::Absent])).await.unwrap();
        assert_eq!(stored(&new, two).await.unwrap()[4][1], Value::Enumeration(3));
        assert_eq!(stored(&old, one).await.unwrap_err().kind(), ErrorKind::CorruptData);
    })
    .await;
}

async fn changed_table(server: Server) {
    with_prefix(&server, async |prefix| {
        let dataset = version(&[A, B, C]);
        let store = open(&server, &prefix, of(dataset));
        store.ensure_schema().await.unwrap();
        // A column that another program added contains the default of its type.
        sql(&store, &format!("ALTER TABLE {prefix}flows ADD COLUMN extra UInt64 AFTER amount")).await;
        assert!(store.ensure_schema().await.unwrap().applied.is_empty());
        insert(&store, row(dataset, 1, vec![amount("1"), Value::Absent, Value::Absent])).await.unwrap();
        assert_eq!(stored(&store, dataset).await.unwrap().len(), 1);
        for (change, words) in [
            (
                "MODIFY COLUMN note Nullable(FixedString(9))",
                "column note has type Nullable(FixedString(9)), expected Nullable(String)",
            ),
            ("DROP COLUMN amount", "column amount is missing, expected"),
        ] {
            sql(&store, &format!("ALTER TABLE {prefix}flows {change}")).await;
            for error in [store.ensure_schema().await.unwrap_err(), store.plan_schema().await.unwrap_err()] {
                assert_eq!(error.kind(), ErrorKind::SchemaMismatch);
                let text = error.message().unwrap();
                assert!(text.contains(words), "{text}");
            }
        }
    })
    .await;
}

async fn concurrent_versions(server: Server) {
    let wide = ("kind", ColumnType::Enumeration(&["buy", "sell", "both"]), true);
    let (narrow, wide) = ([A, B, C, D], [A, wide, C, D]);
    for round in 0..8 {
        // In the last rounds, the versions have one more name than the existing schema.
        let columns = if round < 6 { narrow } else { wide };
        let versions = [version(&columns[..2]), version(&columns[..3]), version(&columns)];
        with_prefix(&server, async |prefix| {
            // Some rounds start from an older schema.
            if round % 2 == 1 || round >= 6 {
                open(&server, &prefix, of(version(&narrow[..2]))).ensure_schema().await.unwrap();
            }
            let all: Vec<_> = (0..6).map(|n| open(&server, &prefix, of(versions[n % 3]))).collect();
            let calls = all.iter().map(|store| {
                let store = store.clone();
                tokio::spawn(async move {
                    store.ensure_schema().await.unwrap_or_else(|error| panic!("{}", error.report()));
                })
            });
            try_join_all(calls.collect::<Vec<_>>()).await.unwrap();
            for (n, store) in all.iter().enumerate() {
                assert_eq!(store.plan_schema().await.unwrap(), [""; 0], "version {}", n % 3);
                let values = [amount("1"), Value::Enumeration(1), Value::Absent, Value::Absent];
                let dataset = versions[n % 3];
                let values = values[..dataset.values().len()].to_vec();
                insert(store, row(dataset, n as u64, values)).await.unwrap();
            }
            let found = all[2].columns(versions[2]).await.unwrap();
            assert_eq!(found, ClickHouseStore::expected_columns(versions[2]));
            assert_eq!(stored(&all[0], versions[0]).await.unwrap().len(), 6);
        })
        .await;
    }
}

/// The statements of version 0.1.0 of the library.
const FIRST: [&str; 6] = [
    "CREATE TABLE IF NOT EXISTS qi_migrations (version UInt32, name String, applied_at DateTime64(6, 'UTC')) ENGINE = ReplacingMergeTree ORDER BY version",
    "CREATE TABLE IF NOT EXISTS ticks (
    exchange LowCardinality(String),
    symbol LowCardinality(String),
    ts DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    seq UInt64 CODEC(Delta, ZSTD(1)),
    price Decimal(38, 18) CODEC(ZSTD(1)),
    quantity Nullable(Decimal(38, 18)) CODEC(ZSTD(1)),
    side Nullable(Enum8('buy' = 1, 'sell' = 2))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (exchange, symbol, ts, seq)",
    "CREATE TABLE IF NOT EXISTS quotes (
    exchange LowCardinality(String),
    symbol LowCardinality(String),
    ts DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    seq UInt64 CODEC(Delta, ZSTD(1)),
    bid_price Nullable(Decimal(38, 18)) CODEC(ZSTD(1)),
    bid_size Nullable(Decimal(38, 18)) CODEC(ZSTD(1)),
    ask_price Nullable(Decimal(38, 18)) CODEC(ZSTD(1)),
    ask_size Nullable(Decimal(38, 18)) CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (exchange, symbol, ts, seq)",
    "CREATE TABLE IF NOT EXISTS bars (
    exchange LowCardinality(String),
    symbol LowCardinality(String),
    interval LowCardinality(String),
    open_time DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    open Decimal(38, 18) CODEC(ZSTD(1)),
    high Decimal(38, 18) CODEC(ZSTD(1)),
    low Decimal(38, 18) CODEC(ZSTD(1)),
    close Decimal(38, 18) CODEC(ZSTD(1)),
    volume Nullable(Decimal(38, 18)) CODEC(ZSTD(1)),
    quote_volume Nullable(Decimal(38, 18)) CODEC(ZSTD(1)),
    count Nullable(UInt64) CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYear(open_time)
ORDER BY (exchange, symbol, interval, open_time)",
    "CREATE TABLE IF NOT EXISTS snapshots (
    scope LowCardinality(String),
    ts DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    market_cap_usd Nullable(Decimal(38, 18)) CODEC(ZSTD(1)),
    volume_24h_usd Nullable(Decimal(38, 18)) CODEC(ZSTD(1)),
    btc_dominance Nullable(Decimal(38, 18)) CODEC(ZSTD(1)),
    eth_dominance Nullable(Decimal(38, 18)) CODEC(ZSTD(1)),
    active_currencies Nullable(UInt64) CODEC(ZSTD(1)),
    markets Nullable(UInt64) CODEC(ZSTD(1)),
    change_24h Nullable(Decimal(38, 18)) CODEC(ZSTD(1)),
    change_7d Nullable(Decimal(38, 18)) CODEC(ZSTD(1)),
    source Nullable(String) CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYear(ts)
ORDER BY (scope, ts)",
    "INSERT INTO qi_migrations SELECT 1, 'tables', now64(6, 'UTC')",
];

/// Creates the database of a store, with the tables of version 0.1.0.
async fn create_first_version(server: &Server, store: &ClickHouseStore, database: &str) {
    let creator = ClickHouseStore::open(server.config("")).unwrap();
    sql(&creator, &format!("CREATE DATABASE IF NOT EXISTS `{database}`")).await;
    for statement in FIRST {
        sql(store, statement).await;
    }
}

async fn first_version(server: Server) {
    let database = namespace();
    let mut config = server.config("");
    config.database.clone_from(&database);
    let store = ClickHouseStore::open(config.clone()).unwrap();
    // The statements are the same, except for the creation of the database and for the projections.
    let planned = store.plan_schema().await.unwrap();
    assert_eq!(planned[0], format!("CREATE DATABASE IF NOT EXISTS `{database}`"));
    let without_projection = |statement: &String| {
        let lines = statement.lines();
        let kept = lines.filter(|line| !line.starts_with("    PROJECTION") && !line.starts_with("SETTINGS"));
        kept.collect::<Vec<_>>().join("\n").replace(",\n)", "\n)")
    };
    assert_eq!(planned[1..].iter().map(without_projection).collect::<Vec<_>>(), FIRST);
    create_first_version(&server, &store, &database).await;
    let made =
        "SELECT name, create_table_query FROM system.tables WHERE database = currentDatabase() ORDER BY name";
    let tables = async || store.client().query_raw(made).fetch_all::<(String, String)>().await.unwrap();
    // The tables get a projection, which reads the parts of the first version until the server has written it for them.
    let tick = |n: i64| {
        let time = Timestamp::from_secs(1_700_000_000 + n).unwrap();
        PriceTick::new("x:Y".parse().unwrap(), time, 1, "1.5".parse().unwrap()).unwrap()
    };
    store.insert_ticks(&[tick(1), tick(2)]).await.unwrap();
    let ensured = ["ticks", "quotes", "bars", "snapshots"].map(|table| format!("projection of {table}"));
    assert_eq!(store.ensure_schema().await.unwrap().applied, ensured);
    let series = async || {
        let page = store.series(&SeriesRequest::new(PriceTick::DATASET)).await.unwrap();
        page.items.iter().map(|series| (series.first, series.last)).collect::<Vec<_>>()
    };
    assert_eq!(series().await, [(tick(1).ts(), tick(2).ts())]);
    store.insert_ticks(&[tick(0), tick(9)]).await.unwrap();
    assert_eq!(series().await, [(tick(0).ts(), tick(9).ts())]);
    assert_eq!(store.latest_tick(tick(0).instrument()).await.unwrap(), Some(tick(9)));
    let materialized = "SELECT toString(countIf(NOT has(projections, 'qi_series'))) FROM system.parts \
        WHERE active AND rows > 0 AND database = currentDatabase() AND table IN ('ticks', 'quotes', 'bars', 'snapshots')";
    while store.client().query_raw(materialized).fetch_one::<String>().await.unwrap() != "0" {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(series().await, [(tick(0).ts(), tick(9).ts())]);
    let before = tables().await;
    assert_eq!(store.plan_schema().await.unwrap(), [""; 0]);
    assert!(store.ensure_schema().await.unwrap().applied.is_empty());
    assert_eq!(tables().await, before);
    // They stay unchanged with a further dataset.
    let more = ClickHouseStore::open(config.with_datasets(of(version(&[A])))).unwrap();
    assert_eq!(more.ensure_schema().await.unwrap().applied, ["table flows", "declaration of flows"]);
    assert_eq!(tables().await.len(), before.len() + 2);
    assert!(tables().await.iter().filter(|table| before.contains(table)).count() == before.len());
    sql(&store, &format!("DROP DATABASE {database} SYNC")).await;
}

/// The columns of `ticks` in version 0.1.0.
const FIRST_TICKS: [(&str, &str); 7] = [
    ("exchange", "LowCardinality(String)"),
    ("symbol", "LowCardinality(String)"),
    ("ts", "DateTime64(6, 'UTC')"),
    ("seq", "UInt64"),
    ("price", "Decimal(38, 18)"),
    ("quantity", "Nullable(Decimal(38, 18))"),
    ("side", "Nullable(Enum8('buy' = 1, 'sell' = 2))"),
];

/// Sends the request of version 0.1.0 that inserts a tick of `x:W`.
async fn insert_as_first_version(store: &ClickHouseStore, n: u64) {
    let (names, types) = (FIRST_TICKS.map(|(name, _)| name), FIRST_TICKS.map(|(_, ty)| ty));
    let mut body = vec![7];
    for text in names.into_iter().chain(types).chain(["x", "W"]) {
        body.push(u8::try_from(text.len()).unwrap());
        body.extend_from_slice(text.as_bytes());
    }
    body.extend_from_slice(&time(i64::try_from(n).unwrap()).as_micros().to_le_bytes());
    body.extend_from_slice(&n.to_le_bytes());
    body.extend_from_slice(&1_000_000_000_000_000_000_i128.to_le_bytes());
    // No quantity and no side.
    body.extend_from_slice(&[1, 1]);
    let insert = format!("INSERT INTO ticks ({}) FORMAT RowBinaryWithNamesAndTypes", names.join(", "));
    let mut insert = store.client().insert_formatted_with(insert);
    insert.send(Bytes::from(body)).await.unwrap();
    insert.end().await.unwrap();
}

/// A writer of version 0.1.0 inserts before, during and after the change of the schema and the materialization of the
/// projection.
async fn first_version_writes(server: Server) {
    let database = namespace();
    let mut config = server.config("");
    config.database.clone_from(&database);
    let store = ClickHouseStore::open(config).unwrap();
    create_first_version(&server, &store, &database).await;
    let old = "INSERT INTO ticks SELECT 'x', 'OLD', \
        fromUnixTimestamp64Micro(toInt64(1700000000000000 + number * 1000000), 'UTC'), number, 1, NULL, NULL \
        FROM numbers(1000000)";
    sql(&store, old).await;
    let (written, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
    let writer = tokio::spawn({
        let (store, written, stop) = (store.clone(), written.clone(), stop.clone());
        async move {
            while !stop.load(Ordering::SeqCst) {
                insert_as_first_version(&store, written.load(Ordering::SeqCst)).await;
                written.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let ten_more = async || {
        let end = written.load(Ordering::SeqCst) + 10;
        while written.load(Ordering::SeqCst) < end {
            assert!(!writer.is_finished(), "the writer failed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    ten_more().await;
    store.ensure_schema().await.unwrap();
    ten_more().await;
    let unfinished =
        "SELECT count() FROM system.mutations WHERE database = currentDatabase() AND NOT is_done";
    while store.client().query_raw(unfinished).fetch_one::<u64>().await.unwrap() > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ten_more().await;
    stop.store(true, Ordering::SeqCst);
    writer.await.unwrap();
    let written = written.load(Ordering::SeqCst);
    let query = StatsQuery::new("x:W".parse().unwrap(), TimeRange::ALL);
    assert_eq!(store.stats(&query).await.unwrap().map_or(0, |stats| stats.count()), written);
    let page = store.series(&SeriesRequest::new(PriceTick::DATASET)).await.unwrap();
    let bounds: Vec<_> = page.items.iter().map(|series| (series.first, series.last)).collect();
    let last = i64::try_from(written - 1).unwrap();
    assert_eq!(bounds, [(time(0), time(999_999)), (time(0), time(last))]);
    sql(&store, &format!("DROP DATABASE {database} SYNC")).await;
}

async fn plan(server: Server) {
    with_prefix(&server, async |prefix| {
        for (columns, count) in [(&[A, B][..], 9), (&[A, B, C, D], 4)] {
            let store = open(&server, &prefix, of(version(columns)));
            let statements = store.plan_schema().await.unwrap();
            assert_eq!(statements.len(), count, "{statements:#?}");
            assert_eq!(store.plan_schema().await.unwrap(), statements, "it changes nothing");
            for statement in &statements {
                sql(&store, statement).await;
            }
            assert_eq!(store.plan_schema().await.unwrap(), [""; 0]);
            assert!(store.ensure_schema().await.unwrap().applied.is_empty());
        }
    })
    .await;
}

async fn changed_record(server: Server) {
    with_prefix(&server, async |prefix| {
        let store = open(&server, &prefix, of(version(&[A])));
        store.ensure_schema().await.unwrap();
        let change = format!(
            "INSERT INTO {prefix}qi_datasets SELECT dataset, 'amount String', checksum, applied_at FROM {prefix}qi_datasets"
        );
        sql(&store, &change).await;
        let error = store.ensure_schema().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SchemaMismatch, "{error}");
    })
    .await;
}
