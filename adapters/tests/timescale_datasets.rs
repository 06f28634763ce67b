//! Datasets that a program declares: their tables, their values, and changes of their declarations.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod declared;
mod servers;
mod timescale_rig;

use std::time::Duration;

use declared::{Everything, Heartbeat, Signal, decimal, everything, level, time};
use futures::TryStreamExt;
use libtest_mimic::Arguments;
use qi_adapters::config::Hypertables;
use qi_adapters::timescale::{Pg, TimescaleConfig, TimescaleStore};
use qi_core::Datasets;
use qi_core::record::{
    Column, ColumnType, Dataset, Description, Levels, Owner, Row, SeriesKey, SeriesType, Text, Value,
};
use qi_core::store::{
    DeleteQuery, InstrumentQuery, LatestQuery, RangeQuery, RangeRequest, Retention, SeriesRequest,
    SnapshotQuery,
};
use qi_core::{
    Decimal, ErrorKind, Instrument, Interval, PriceStore, PriceStoreExt, PriceTick, Record, Scope, Selection,
    Side, TimeRange, Timestamp,
};
use servers::{namespace, trial};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use timescale_rig::{Server, drop_schema};

fn main() {
    let mut trials = Vec::new();
    for server in [Server::timescale(), Server::postgres()] {
        trials.push(trial(&server, "every_column_type_round_trips", every_type));
        trials.push(trial(&server, "a_dataset_has_named_series", names));
        trials.push(trial(&server, "dataset_without_value_columns_is_stored", no_value_columns));
        trials.push(trial(&server, "unregistered_datasets_are_rejected_before_io", unregistered));
        trials.push(trial(&server, "an_optional_column_is_added_while_an_older_version_runs", added_column));
        trials.push(trial(&server, "other_changes_are_rejected", rejected_changes));
        trials.push(trial(&server, "an_enumeration_gains_names", extended_enumeration));
        trials.push(trial(&server, "a_built_in_dataset_gains_columns", extended_ticks));
        trials.push(trial(&server, "two_versions_create_one_schema", two_versions));
        trials.push(trial(&server, "version_0_1_database_is_accepted", first_version));
        trials.push(trial(&server, "the_plan_matches_the_executed_statements", plan));
        trials.push(trial(&server, "foreign_and_manually_changed_tables_are_rejected", manually_changed));
    }
    trials.push(trial(
        &Server::timescale(),
        "a_dataset_has_a_chunk_interval_and_a_retention",
        chunks_and_ages,
    ));
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

/// Runs a check with a store of these datasets and its schema, which is dropped at the end.
async fn with_store<R: Future<Output = ()>>(
    server: &Server,
    datasets: Datasets,
    change: impl FnOnce(&mut TimescaleConfig),
    check: impl FnOnce(TimescaleStore, TimescaleConfig) -> R,
) {
    let mut config = server.config(&namespace()).with_datasets(datasets);
    change(&mut config);
    let store = TimescaleStore::open(config.clone()).unwrap();
    store.ensure_schema().await.unwrap();
    check(store.clone(), config.clone()).await;
    store.close().await.unwrap();
    drop_schema(server.url(), &config.schema).await;
}

async fn all<R: Record>(store: &TimescaleStore, series: R::Series) -> Vec<R> {
    let query = RangeQuery::new(series, TimeRange::ALL).with_limit(7).unwrap();
    store.range_stream(&query).try_collect().await.unwrap()
}

fn is_community(store: &TimescaleStore) -> bool {
    store.info().edition.as_deref() == Some("timescaledb community")
}

async fn every_type(server: Server) {
    let datasets = Datasets::standard().with::<Everything>().unwrap();
    for copy_from in [1, 1_000] {
        with_store(
            &server,
            datasets.clone(),
            |config| {
                config.write.copy_from = copy_from;
                config.write.max_statement_records = 400;
            },
            |store, _| async move {
                let name: Instrument = "x:Y".parse().unwrap();
                let mut records: Vec<_> = (0..900).map(everything).collect();
                store.insert_records(&records).await.unwrap();
                assert_eq!(all::<Everything>(&store, name.clone()).await, records);
                let expected = TimescaleStore::expected_columns(Everything::DATASET);
                assert_eq!(store.columns(Everything::DATASET).await.unwrap(), expected);
                // Replaced values, values that become absent, and absent values that become present.
                for record in &mut records {
                    *record = Everything { n: record.n, time: record.time, ..everything(record.n + 1) };
                }
                store.insert_records(&records).await.unwrap();
                store.insert_records(&records[..500]).await.unwrap();
                assert_eq!(all::<Everything>(&store, name.clone()).await, records);
                if is_community(&store) {
                    store.convert_to_columnstore(Everything::DATASET).await.unwrap();
                    assert_eq!(all::<Everything>(&store, name.clone()).await, records);
                    records[450] = Everything { bids: Levels::default(), ..records[450].clone() };
                    records[451] = Everything {
                        bids: Levels::new(vec![level("7", "8")]).unwrap(),
                        ..records[451].clone()
                    };
                    store.insert_records(&records).await.unwrap();
                    assert_eq!(all::<Everything>(&store, name.clone()).await, records);
                }
                let rows: Vec<Pg<Everything>> = sqlx::query_as("SELECT * FROM order_view ORDER BY time, n")
                    .fetch_all(store.pool())
                    .await
                    .unwrap();
                assert_eq!(rows.into_iter().map(|row| row.0).collect::<Vec<_>>(), records);
                let latest = store.latest_of::<Everything>(&LatestQuery::new(Selection::All)).await.unwrap();
                assert_eq!(latest.items, records[899..]);
                let known = store.instruments(&InstrumentQuery::new(Everything::DATASET)).await.unwrap();
                assert_eq!((known.items.len(), known.items[0].last), (1, records[899].time));
                // Values that no record can have are corrupt.
                sqlx::query("UPDATE \"order\" SET mood = 3 WHERE n = 0").execute(store.pool()).await.unwrap();
                let query = RangeQuery::new(name, TimeRange::ALL);
                let error = store.range_of::<Everything>(&query).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::CorruptData, "{error}");
            },
        )
        .await;
    }
}

fn signal(strategy: &str, interval: Interval, day: u64, score: &str) -> Signal {
    let open_time = Interval::D1.floor(time(day * 86_400));
    Signal { strategy: strategy.parse().unwrap(), interval, open_time, score: decimal(score) }
}

async fn names(server: Server) {
    let datasets = Datasets::standard().with::<Signal>().unwrap().with::<Heartbeat>().unwrap();
    with_store(
        &server,
        datasets,
        |_| (),
        |store, _| async move {
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
                let owners: Vec<_> =
                    found.iter().map(|summary| summary.owner.name().unwrap().to_owned()).collect();
                assert_eq!(owners, order);
                assert_eq!(found[4].first, signal("", Interval::D1, 0, "1").open_time);
                assert_eq!(found[4].last, signal("", Interval::D1, 1_600, "1").open_time);
                let query =
                    LatestQuery::new(Selection::All).of_interval(Interval::H1).with_limit(limit).unwrap();
                let latest: Vec<Signal> = store.latest_stream(&query).try_collect().await.unwrap();
                assert_eq!(latest.iter().map(|record| record.strategy.clone()).collect::<Vec<_>>(), texts);
                assert_eq!(latest[4], signal("ä'", Interval::H1, 1_600, "-2"));
            }
            // A bar is known after it has closed.
            let close =
                signal("", Interval::D1, 1, "1").open_time.checked_add(Interval::D1.duration()).unwrap();
            let some =
                Selection::only(["nobody".parse().unwrap(), texts[1].clone(), texts[2].clone()]).unwrap();
            for (as_of, day) in [(close, 1), (Timestamp::from_micros(close.as_micros() - 1).unwrap(), 0)] {
                let query = LatestQuery::new(some.clone()).of_interval(Interval::D1).as_of(as_of);
                let page = store.latest_of::<Signal>(&query).await.unwrap();
                assert_eq!(page.items, ["Beta", "alpha"].map(|name| signal(name, Interval::D1, day, "1.5")));
            }
            let stored = all::<Signal>(&store, (texts[1].clone(), Interval::D1)).await;
            assert_eq!(stored, [0, 1, 400].map(|day| signal("Beta", Interval::D1, day, "1.5")));

            let query =
                DeleteQuery::of::<Signal>(&Selection::one(texts[1].clone()), TimeRange::before(time(86_400)));
            store.delete_range(&query.clone().of_interval(Interval::D1)).await.unwrap();
            assert_eq!(store.delete_range(&query).await.unwrap_err().kind(), ErrorKind::InvalidInput);
            assert_eq!(all::<Signal>(&store, (texts[1].clone(), Interval::D1)).await.len(), 1);
            assert_eq!(all::<Signal>(&store, (texts[1].clone(), Interval::H1)).await.len(), 3);
            store.purge_before(Signal::DATASET, time(2 * 86_400)).await.unwrap();
            let left = store.series(&SeriesRequest::new(Signal::DATASET)).await.unwrap().items;
            assert_eq!(
                left.iter().map(|summary| summary.owner.name().unwrap()).collect::<Vec<_>>(),
                order[1..]
            );

            // Owners of another kind.
            let wrong =
                SeriesKey { owner: Owner::Instrument("x:Y".parse().unwrap()), interval: Some(Interval::D1) };
            let error =
                store.range(&RangeRequest::new(Signal::DATASET, wrong, TimeRange::ALL)).await.unwrap_err();
            assert_eq!((error.kind(), error.operation()), (ErrorKind::InvalidInput, "range"));
        },
    )
    .await;
}

async fn no_value_columns(server: Server) {
    let datasets = Datasets::none().with::<Heartbeat>().unwrap();
    with_store(
        &server,
        datasets,
        |config| config.write.copy_from = 2,
        |store, _| async move {
            let beat = |n: u64| Heartbeat { process: "a".parse().unwrap(), ts: time(n), seq: n };
            let beats: Vec<_> = (0..20).map(beat).collect();
            store.insert_records(&beats[..10]).await.unwrap();
            store.insert_records(&beats).await.unwrap();
            store.insert_record(&beats[3]).await.unwrap();
            assert_eq!(all::<Heartbeat>(&store, "a".parse().unwrap()).await, beats);
        },
    )
    .await;
}

async fn unregistered(server: Server) {
    // No server listens on port 1.
    let mut config = server.config("x").with_datasets(Datasets::none().with::<Signal>().unwrap());
    config.url = TimescaleConfig::from_url("postgres://qi:x@127.0.0.1:1/qi").url;
    let store = TimescaleStore::open(config).unwrap();
    let name: Instrument = "x:Y".parse().unwrap();
    let errors = [
        store.insert_records(&[everything(0)]).await.map(drop).unwrap_err(),
        store.insert_records::<Everything>(&[]).await.map(drop).unwrap_err(),
        store.latest_tick(&name).await.map(drop).unwrap_err(),
        store
            .range_of::<PriceTick>(&RangeQuery::new(name.clone(), TimeRange::ALL))
            .await
            .map(drop)
            .unwrap_err(),
        store.series(&SeriesRequest::new(Everything::DATASET)).await.map(drop).unwrap_err(),
        store.purge_before(Everything::DATASET, Timestamp::MAX).await.unwrap_err(),
        store.stats(&qi_core::store::StatsQuery::new(name, TimeRange::ALL)).await.map(drop).unwrap_err(),
        store.chunks(Everything::DATASET).await.map(drop).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::SchemaMismatch, "store.dataset.unknown"),
            "{error}"
        );
        assert_eq!(error.backend(), Some("timescale"));
    }
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

fn open(config: &TimescaleConfig, dataset: Dataset) -> TimescaleStore {
    let datasets = Datasets::standard().with_dataset(dataset).unwrap();
    TimescaleStore::open(config.clone().with_datasets(datasets)).unwrap()
}

async fn write(store: &TimescaleStore, dataset: Dataset, rows: Vec<Row>) {
    store.insert(Row::collect(dataset, rows).unwrap().as_records()).await.unwrap();
}

async fn read(store: &TimescaleStore, dataset: Dataset) -> Vec<Vec<Value>> {
    let series = SeriesKey { owner: Owner::Instrument("x:Y".parse().unwrap()), interval: None };
    let page = store.range(&RangeRequest::new(dataset, series, TimeRange::ALL)).await.unwrap();
    Row::copy_of(page.records.as_records()).unwrap().iter().map(|row| row.values().to_vec()).collect()
}

/// Runs a check with an empty schema, which is dropped at the end.
async fn with_config<R: Future<Output = ()>>(server: &Server, check: impl FnOnce(TimescaleConfig) -> R) {
    let config = server.config(&namespace());
    check(config.clone()).await;
    drop_schema(server.url(), &config.schema).await;
}

fn one() -> Value {
    Value::Decimal(decimal("1"))
}

async fn added_column(server: Server) {
    let old = version(&[column("rate", DECIMAL, false)]);
    let new = version(&[
        column("rate", DECIMAL, false),
        column("mark", DECIMAL, true),
        column("next", ColumnType::Timestamp, true),
    ]);
    with_config(&server, |config| async move {
        let first = open(&config, old);
        first.ensure_schema().await.unwrap();
        write(&first, old, vec![row(old, 0, vec![one()])]).await;

        let second = open(&config, new);
        let plan = second.plan_schema().await.unwrap();
        let added: Vec<_> = plan.iter().filter(|sql| sql.starts_with("ALTER")).collect();
        assert_eq!(
            added,
            [
                format!("ALTER TABLE \"{}\".\"funding\" ADD COLUMN \"mark\" numeric(38,18)", config.schema),
                format!("ALTER TABLE \"{}\".\"funding\" ADD COLUMN \"next\" timestamptz", config.schema)
            ]
            .iter()
            .collect::<Vec<_>>()
        );
        let report = second.ensure_schema().await.unwrap();
        assert_eq!(report.applied, ["column funding.mark", "column funding.next"]);
        assert!(second.ensure_schema().await.unwrap().applied.is_empty());
        assert!(second.plan_schema().await.unwrap().is_empty());
        assert_eq!(second.columns(new).await.unwrap(), TimescaleStore::expected_columns(new));
        assert_eq!(read(&second, new).await, [[one(), Value::Absent, Value::Absent]]);
        let full = vec![one(), one(), Value::Timestamp(time(9))];
        write(&second, new, vec![row(new, 1, full)]).await;

        // The older version continues to work, before and after it ensures its schema, and does not
        // change the new columns.
        for at in [2, 3] {
            let two = Value::Decimal(decimal("2"));
            write(&first, old, vec![row(old, 1, vec![two.clone()]), row(old, at, vec![one()])]).await;
            assert_eq!(read(&first, old).await[1], *std::slice::from_ref(&two));
            let kept = [two, one(), Value::Timestamp(time(9))];
            assert_eq!(read(&second, new).await[1], kept);
            assert!(first.plan_schema().await.unwrap().is_empty());
            assert!(first.ensure_schema().await.unwrap().applied.is_empty());
        }
        let shown: Vec<(String, Option<Pg<Decimal>>)> =
            sqlx::query_as("SELECT symbol, mark FROM funding_view ORDER BY ts")
                .fetch_all(second.pool())
                .await
                .unwrap();
        assert_eq!(shown[1], ("Y".to_owned(), Some(Pg(decimal("1")))));
        assert_eq!(shown.len(), 4);
        for store in [first, second] {
            store.close().await.unwrap();
        }
    })
    .await;
}

async fn rejected_changes(server: Server) {
    let text = |max| ColumnType::Text { max };
    let mood = |names| ColumnType::Enumeration(names);
    let stored = [
        column("rate", DECIMAL, false),
        column("note", text(20), true),
        column("mood", mood(&["calm", "wild"]), true),
    ];
    let [rate, note, feeling] = stored;
    let changes: Vec<(Vec<Column>, &str)> = vec![
        (vec![column("rate", ColumnType::Integer, false), note, feeling], "declared=rate integer"),
        (vec![column("rate", DECIMAL, true), note, feeling], "declared=rate decimal optional"),
        (vec![rate, column("note", text(20), false), feeling], "declared=note text(20)"),
        (vec![rate, column("note", text(21), true), feeling], "declared=note text(21) optional"),
        (vec![column("price", DECIMAL, false), note, feeling], "declared=price decimal"),
        (vec![rate, feeling, note], "stored=note text(20) optional"),
        (vec![rate, note, feeling, column("x", DECIMAL, false)], "declared=x decimal"),
        (vec![rate, note, column("mood", mood(&["wild", "calm"]), true)], "enumeration(wild, calm)"),
        (vec![rate, feeling], "declared=mood enumeration(calm, wild) optional"),
        (vec![], "stored=rate decimal"),
    ];
    with_config(&server, |config| async move {
        let before = open(&config, version(&stored));
        before.ensure_schema().await.unwrap();
        let mut datasets: Vec<_> =
            changes.into_iter().map(|(columns, what)| (version(&columns), what)).collect();
        let other = |change: fn(&mut Description)| {
            let mut description = description(&stored);
            change(&mut description);
            Dataset::declare(description).unwrap()
        };
        datasets.push((other(|d| d.seq = Some("seq")), "declared=instrument, ts, seq"));
        datasets.push((other(|d| d.time = "at"), "declared=instrument, at"));
        datasets.push((other(|d| d.interval = Some("every")), "declared=instrument, every, ts"));
        datasets.push((
            other(|d| d.series = SeriesType::Name { column: "who", max: 9 }),
            "declared=who text(9), ts",
        ));
        for (dataset, what) in datasets {
            let store = open(&config, dataset);
            for error in [store.ensure_schema().await.map(drop), store.plan_schema().await.map(drop)] {
                let error = error.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::SchemaMismatch, "{error}");
                let message = error.report();
                assert!(message.contains(what), "{message} names {what}");
                assert!(message.contains("give the dataset a new name"), "no advice in: {message}");
            }
            store.close().await.unwrap();
        }
        assert!(before.plan_schema().await.unwrap().is_empty(), "nothing was changed");
        before.close().await.unwrap();
    })
    .await;
}

async fn extended_enumeration(server: Server) {
    let of = |names| version(&[column("mood", ColumnType::Enumeration(names), false)]);
    let (old, new) = (of(&["calm", "wild"]), of(&["calm", "wild", "mad"]));
    with_config(&server, |config| async move {
        let (first, second) = (open(&config, old), open(&config, new));
        first.ensure_schema().await.unwrap();
        assert_eq!(second.ensure_schema().await.unwrap().applied, ["enumeration names of funding.mood"]);
        assert!(second.plan_schema().await.unwrap().is_empty());
        // A version that cannot read the name continues to work until it ensures its schema.
        assert_eq!(first.ensure_schema().await.unwrap_err().kind(), ErrorKind::SchemaMismatch);
        write(&second, new, vec![row(new, 0, vec![Value::Enumeration(3)])]).await;
        assert_eq!(read(&second, new).await, [[Value::Enumeration(3)]]);
        let shown: String =
            sqlx::query_scalar("SELECT mood FROM funding_view").fetch_one(second.pool()).await.unwrap();
        assert_eq!(shown, "mad");
        let series = SeriesKey { owner: Owner::Instrument("x:Y".parse().unwrap()), interval: None };
        let error = first.range(&RangeRequest::new(old, series, TimeRange::ALL)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptData, "{error}");
        for store in [first, second] {
            store.close().await.unwrap();
        }
    })
    .await;
}

/// The ticks of a later version of the library.
async fn extended_ticks(server: Server) {
    let ticks = PriceTick::DATASET;
    let mut columns = ticks.values().to_vec();
    columns.push(column("fee", DECIMAL, true));
    let mut later = description(&columns);
    (later.name, later.seq) = ("ticks", Some("seq"));
    (later.message, later.topic) = (ticks.message(), ticks.topic());
    let later = Dataset::declare(later).unwrap();
    with_config(&server, |config| async move {
        let library = TimescaleStore::open(config.clone()).unwrap();
        library.ensure_schema().await.unwrap();
        let tick = PriceTick::new("x:Y".parse().unwrap(), time(0), 7, "1".parse().unwrap()).unwrap();
        let tick = tick.with_side(Side::Sell);
        library.insert_tick(&tick).await.unwrap();
        let grown = config.clone().with_datasets(Datasets::none().with_dataset(later).unwrap());
        let grown = TimescaleStore::open(grown).unwrap();
        assert_eq!(grown.ensure_schema().await.unwrap().applied, ["table qi_datasets", "column ticks.fee"]);
        assert!(grown.plan_schema().await.unwrap().is_empty());
        assert!(library.ensure_schema().await.unwrap().applied.is_empty());
        assert_eq!(read(&grown, later).await, [[one(), Value::Absent, Value::Enumeration(2), Value::Absent]]);
        let shown: Pg<PriceTick> =
            sqlx::query_as("SELECT * FROM ticks_view").fetch_one(library.pool()).await.unwrap();
        assert_eq!(shown.0, tick);
        for store in [library, grown] {
            store.close().await.unwrap();
        }
    })
    .await;
}

async fn two_versions(server: Server) {
    let old = version(&[column("rate", DECIMAL, false)]);
    let new = version(&[column("rate", DECIMAL, false), column("mark", DECIMAL, true)]);
    for round in 0..8 {
        with_config(&server, |config| async move {
            let stores: Vec<_> =
                (0..4).map(|at| open(&config, if at % 2 == 0 { old } else { new })).collect();
            if round % 2 == 1 {
                stores[0].ensure_schema().await.unwrap();
            }
            let reports = futures::future::join_all(stores.iter().map(TimescaleStore::ensure_schema)).await;
            for report in reports {
                report.unwrap();
            }
            assert_eq!(stores[0].columns(new).await.unwrap(), TimescaleStore::expected_columns(new));
            for store in stores {
                assert!(store.plan_schema().await.unwrap().is_empty());
                store.close().await.unwrap();
            }
        })
        .await;
    }
}

async fn sql(url: &str, text: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let done = sqlx::raw_sql(AssertSqlSafe(text.to_owned())).execute(&mut connection).await;
    done.unwrap_or_else(|error| panic!("{text}: {error}"));
    connection.close().await.unwrap();
}

/// Returns the statements of version 0.1.0, with its checksums.
fn first_database(schema: &str, hypertables: bool) -> String {
    let tables = include_str!("../src/timescale/migrations/0001_tables.sql");
    let views = include_str!("../src/timescale/migrations/0002_views.sql");
    let convert = |table: &str, column: &str, hours: u64| {
        format!(
            "SELECT public.create_hypertable('{schema}.{table}'::regclass, '{column}'::name, chunk_time_interval => \
             {}::bigint, create_default_indexes => false);",
            hours * 3_600_000_000
        )
    };
    let hypertables = if hypertables {
        [
            convert("ticks", "ts", 168),
            convert("quotes", "ts", 168),
            convert("bars", "open_time", 8_760),
            convert("snapshots", "ts", 8_760),
        ]
        .concat()
    } else {
        String::new()
    };
    format!(
        "CREATE SCHEMA {schema}; SET search_path = {schema}; {tables} {views} \
         CREATE TABLE qi_migrations (version BIGINT PRIMARY KEY, description TEXT NOT NULL, \
         installed_on TIMESTAMPTZ NOT NULL DEFAULT now(), success BOOLEAN NOT NULL, checksum BYTEA NOT NULL, \
         execution_time BIGINT NOT NULL); \
         INSERT INTO qi_migrations (version, description, success, checksum, execution_time) VALUES \
         (1, 'tables', true, '\\xc455f6f4d2e6bc6615f378e388dc78968da9985c38f1f764100bc38004422f67f7b54c191a91c47e47e9ebbdd3fe5155', 1), \
         (2, 'views', true, '\\xa161548d2495ce081c692c3baef4378fdbdff24fc0e7f71347e4d17b48406e2ef80377a9ffc431ec0b12a0166cd3258a', 1); \
         {hypertables} \
         INSERT INTO instruments (exchange, symbol) VALUES ('x', 'Y'); \
         INSERT INTO ticks VALUES (1, '2023-11-14 22:13:20+00', 7, 1.5, NULL, 2); \
         INSERT INTO bars VALUES (1, '1h', '2023-11-14 22:00:00+00', 1, 2, 0.5, 1.5, 3, NULL, 4); \
         INSERT INTO snapshots (scope, ts, markets, source) VALUES ('asset:BTC', '2023-11-14 22:13:20+00', 3, 's');"
    )
}

async fn first_version(server: Server) {
    let server = &server;
    with_config(server, |config| async move {
        let hypertables = config.hypertables == Hypertables::On;
        if hypertables {
            // This store makes sure that the extension is installed.
            let any = server.config(&namespace());
            let store = TimescaleStore::open(any.clone()).unwrap();
            store.ensure_schema().await.unwrap();
            store.close().await.unwrap();
            drop_schema(server.url(), &any.schema).await;
        }
        sql(server.url(), &first_database(&config.schema, hypertables)).await;
        let store = TimescaleStore::open(config.clone()).unwrap();
        let files = || async {
            let files: Vec<String> = sqlx::query_scalar(
                "SELECT relname || relfilenode FROM pg_class WHERE relnamespace = to_regnamespace($1) ORDER BY relname",
            )
            .bind(&config.schema)
            .fetch_all(store.pool())
            .await
            .unwrap();
            files
        };
        let before = files().await;
        let report = store.ensure_schema().await.unwrap();
        let catalogs = ["ticks", "quotes", "bars"].map(|table| format!("series catalog of {table}"));
        assert_eq!((report.version, &*report.applied[0]), (3, "migration step 3: series"), "{report:?}");
        assert_eq!(report.applied[1..], catalogs);
        assert_eq!(report.differs[..2], ["constraint ticks_side", "validation of constraint ticks_side"]);
        let after = files().await;
        assert!(before.iter().all(|file| after.contains(file)), "no table was rewritten");
        let name: Instrument = "x:Y".parse().unwrap();
        let tick = store.latest_tick(&name).await.unwrap().unwrap();
        assert_eq!((tick.ts(), tick.seq(), tick.side()), (time(0), 7, Some(Side::Sell)));
        assert_eq!(store.migrate_schema().await.unwrap().applied, report.differs);
        assert!(store.plan_schema().await.unwrap().is_empty());
        let bar = store.latest_bar(&name, Interval::H1).await.unwrap().unwrap();
        assert_eq!((bar.close().to_string(), bar.values().count), ("1.5".to_owned(), Some(4)));
        let query = SnapshotQuery::new("asset:BTC".parse::<Scope>().unwrap(), TimeRange::ALL);
        assert_eq!(store.snapshots(&query).await.unwrap().items[0].values().markets, Some(3));
        store.insert_tick(&tick.clone().with_side(None)).await.unwrap();
        assert_eq!(store.latest_tick(&name).await.unwrap(), Some(tick.with_side(None)));
        // A dataset in addition to the four built-in datasets.
        let dataset = version(&[column("rate", DECIMAL, false)]);
        let more = open(&config, dataset);
        let applied = more.ensure_schema().await.unwrap().applied;
        assert_eq!(applied[..2], ["table qi_datasets", "dataset funding"]);
        assert_eq!(applied.len(), if hypertables { 4 } else { 3 });
        assert!(store.ensure_schema().await.unwrap().applied.is_empty());
        for store in [store, more] {
            store.close().await.unwrap();
        }
    })
    .await;
}

async fn plan(server: Server) {
    let server = &server;
    with_config(server, |config| async move {
        let dataset =
            version(&[column("rate", DECIMAL, false), column("bids", ColumnType::Levels { max: 3 }, false)]);
        let store = open(&config, dataset);
        let plan = store.plan_schema().await.unwrap();
        assert!(plan.iter().any(|sql| sql.contains("\"funding\" (\"instrument_id\"")), "{plan:?}");
        assert!(plan.iter().any(|sql| sql.contains("CREATE TABLE ticks")), "{plan:?}");
        assert_eq!(store.plan_schema().await.unwrap(), plan, "nothing was changed");
        let there: bool = sqlx::query_scalar("SELECT to_regnamespace($1) IS NOT NULL")
            .bind(&config.schema)
            .fetch_one(store.pool())
            .await
            .unwrap();
        assert!(!there);

        // Running the plan of a dataset manually completes the schema.
        TimescaleStore::open(config.clone()).unwrap().ensure_schema().await.unwrap();
        let plan = store.plan_schema().await.unwrap();
        assert!(!plan.is_empty());
        sql(server.url(), &format!("SET search_path = {}; {}", config.schema, plan.join(";\n"))).await;
        assert!(store.plan_schema().await.unwrap().is_empty());
        assert!(store.ensure_schema().await.unwrap().applied.is_empty());
        let values = vec![one(), Value::Levels(vec![level("1", "2")])];
        write(&store, dataset, vec![row(dataset, 0, values.clone())]).await;
        assert_eq!(read(&store, dataset).await, [values]);
        store.close().await.unwrap();
    })
    .await;
}

async fn manually_changed(server: Server) {
    let server = &server;
    let rejected = |store: TimescaleStore, what: &'static str| async move {
        for answer in [store.plan_schema().await.map(drop), store.ensure_schema().await.map(drop)] {
            let error = answer.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::SchemaMismatch, "{error}");
            assert!(error.to_string().contains(what), "{error} names {what}");
        }
        store.close().await.unwrap();
    };
    let dataset = version(&[column("rate", DECIMAL, false)]);
    let foreign = "CREATE TABLE funding (instrument_id int, ts timestamptz, rate numeric)";
    for (made, change, what) in [
        (false, foreign, "no dataset of this library created it"),
        (true, "DROP TABLE funding CASCADE", "table funding: is missing"),
        (true, "UPDATE qi_datasets SET text = 'rate integer' WHERE line = 1", "line 1 of dataset funding"),
        (true, "DELETE FROM qi_datasets WHERE line = 0", "line 1 of dataset funding"),
        (
            true,
            "DROP VIEW funding_view; ALTER TABLE funding ALTER rate TYPE text",
            "has type text, expected numeric",
        ),
        (true, "ALTER TABLE funding RENAME rate TO price", "table funding: column rate is missing"),
        (
            true,
            "DROP VIEW ticks_view; ALTER TABLE ticks ALTER side SET NOT NULL",
            "is NOT NULL, expected nullable",
        ),
    ] {
        with_config(server, |config| async move {
            let store =
                if made { open(&config, dataset) } else { TimescaleStore::open(config.clone()).unwrap() };
            store.ensure_schema().await.unwrap();
            store.close().await.unwrap();
            sql(server.url(), &format!("SET search_path = {}; {change}", config.schema)).await;
            rejected(open(&config, dataset), what).await;
        })
        .await;
    }
    // A column that another program added is kept.
    with_config(server, |config| async move {
        let store = open(&config, dataset);
        store.ensure_schema().await.unwrap();
        sql(server.url(), &format!("ALTER TABLE {}.funding ADD COLUMN mine text", config.schema)).await;
        assert!(store.ensure_schema().await.unwrap().applied.is_empty());
        write(&store, dataset, vec![row(dataset, 0, vec![one()])]).await;
        assert_eq!(read(&store, dataset).await, [[one()]]);
        store.close().await.unwrap();
    })
    .await;
}

async fn chunks_and_ages(server: Server) {
    let datasets = Datasets::standard().with::<Everything>().unwrap().with::<Signal>().unwrap();
    let micros = |config: &TimescaleConfig, table: &'static str| {
        let (url, schema) = (server.url().to_owned(), config.schema.clone());
        async move {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            let micros: i64 = sqlx::query_scalar(
                "SELECT (extract(epoch FROM time_interval) * 1000000)::bigint \
                 FROM timescaledb_information.dimensions WHERE hypertable_schema = $1 AND hypertable_name = $2",
            )
            .bind(&schema)
            .bind(table)
            .fetch_one(&mut connection)
            .await
            .unwrap();
            connection.close().await.unwrap();
            micros / 3_600_000_000
        }
    };
    with_store(
        &server,
        datasets,
        |config| config.chunks.set("order", Duration::from_hours(24)),
        |store, config| async move {
            assert_eq!(micros(&config, "order").await, 24);
            assert_eq!(micros(&config, "signals").await, 365 * 24);
            store.insert_records(&(0..9).map(everything).collect::<Vec<_>>()).await.unwrap();
            assert_eq!(store.chunks(Everything::DATASET).await.unwrap().len(), 3);
            store.purge_before(Everything::DATASET, time(86_400)).await.unwrap();
            assert_eq!(store.chunks(Everything::DATASET).await.unwrap().len(), 2);
            if is_community(&store) {
                let mut aged = config.clone();
                aged.columnstore.set("order", Duration::from_hours(48));
                aged.retention.set("signals", Duration::from_hours(100));
                let other = TimescaleStore::open(aged).unwrap();
                assert_eq!(
                    other.info().retention,
                    [Retention::Age(Signal::DATASET, Duration::from_hours(100))]
                );
                let plan = other.plan_schema().await.unwrap();
                assert_eq!(plan.len(), 5, "{plan:?}");
                assert!(other.ensure_schema().await.unwrap().applied.is_empty());
                let applied = other.migrate_schema().await.unwrap().applied;
                assert_eq!(
                    applied,
                    ["columnstore policy of order after 2d", "retention policy of signals after 100h"]
                );
                assert!(other.plan_schema().await.unwrap().is_empty());
                other.close().await.unwrap();
            }
            let mut unknown = config.clone();
            unknown.chunks.set("nothing", Duration::from_hours(1));
            let error = TimescaleStore::open(unknown).unwrap_err();
            assert_eq!(error.context_value("key"), Some("store.timescale.chunks.nothing"));
        },
    )
    .await;
}
