//! Materialized bars on real servers: the contract and the model with maintenance before each call, statements without
//! stale marks, and concurrent writers, maintainers and readers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bars_rig;
mod servers;
mod timescale_rig;

use std::sync::Arc;
use std::time::Duration;

use bars_rig::{Plan, seed};
use libtest_mimic::{Completion, Trial};
use qi_adapters::timescale::TimescaleStore;
use qi_core::store::{BarQuery, MaintainRequest, PriceStoreExt as _};
use qi_core::{ErrorKind, Instrument, Interval, PriceStore, PriceTick, TimeRange, Timestamp};
use qi_testkit::presence;
use qi_testkit::store::contract::{StoreFactory, Suite, Wrapper};
use qi_testkit::store::model::{cases, check_histories};
use servers::{Spare, runs_long_tests, spare_trial, trial};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use timescale_rig::{Server, drop_schema};

fn main() {
    let mut suite = Suite::new().at_once(4);
    for server in [Server::timescale(), Server::postgres()] {
        let server = server.with_materialized_bars();
        suite = if runs_long_tests() {
            suite.on(server.clone(), [Wrapper::MAINTAINED, Wrapper::FULL_STACK_OVER_MAINTAINED])
        } else {
            suite.on_datasets(server.clone(), [Wrapper::FULL_STACK_OVER_MAINTAINED], &["ticks"])
        };
        suite = suite
            .with_trial(histories(&server))
            .with_trial(trial(&server, "a_statement_without_marks_is_rejected", unmarked))
            .with_trial(trial(&server, "a_mark_makes_a_manual_change_visible", manual_change))
            .with_trial(trial(&server, "maintenance_waits_for_older_writers", older_writer))
            .with_trial(trial(&server, "concurrent_histories_have_no_wrong_bar", concurrent))
            .with_trial(spare_trial(&server, "killed_servers_leave_no_wrong_bar", killed))
            .with_trial(trial(&server, "bars_are_switched_on_and_off_beside_a_writer", switched));
    }
    suite.main();
}

fn histories(server: &Server) -> Trial {
    let (backend, absent) = (server.name().to_owned(), server.absent());
    let factory: Arc<dyn StoreFactory> = Arc::new(server.clone());
    presence::trial(format!("{backend}/equals_the_model_with_maintenance"), &backend, absent, move || {
        check_histories(&factory, Wrapper::MAINTAINED, cases(24)).map_err(|failure| failure.to_string())?;
        Ok(Completion::Completed)
    })
}

fn instrument() -> Instrument {
    Instrument::from_static("x:Y")
}

/// A Monday, 00:00.
const BASE: i64 = 1_699_833_600;

fn tick(seconds: i64, price: &str) -> PriceTick {
    let ts = Timestamp::from_secs(BASE + seconds).unwrap();
    let tick = PriceTick::new(instrument(), ts, 0, price.parse().unwrap()).unwrap();
    tick.with_quantity(Some("2".parse().unwrap()))
}

async fn open(server: &Server) -> (TimescaleStore, String) {
    let (store, schema) = server.open().unwrap();
    store.ensure_schema().await.unwrap();
    (store, schema)
}

async fn maintain_all(store: &TimescaleStore) {
    let report = store.maintain(&MaintainRequest::default().with_until(Timestamp::MAX)).await.unwrap();
    assert!(report.is_complete(), "{report:?}");
}

/// Returns the high of each bar.
async fn highs(store: &dyn PriceStore, interval: Interval) -> Vec<String> {
    let page = store.derived_bars(&BarQuery::new(instrument(), interval, TimeRange::ALL)).await.unwrap();
    page.items.iter().map(|bar| bar.values().high.to_string()).collect()
}

async fn execute(connection: &mut PgConnection, sql: String) -> Result<u64, sqlx::Error> {
    Ok(sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?.rows_affected())
}

async fn unmarked(server: Server) {
    let (store, schema) = open(&server).await;
    store.insert_ticks(&[tick(0, "1")]).await.unwrap();
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    for sql in [
        "UPDATE {s}.ticks SET price = 2",
        "DELETE FROM {s}.ticks",
        "TRUNCATE {s}.ticks",
        "INSERT INTO {s}.ticks (instrument_id, ts, seq, price) VALUES (1, now(), 1, 1)",
        // The statement of an earlier version of the library.
        "/*qi:series*/ INSERT INTO {s}.ticks (instrument_id, ts, seq, price) VALUES (1, now(), 1, 1)",
    ] {
        let error = execute(&mut connection, sql.replace("{s}", &schema)).await.unwrap_err();
        let state = error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code)
            .unwrap_or_default()
            .into_owned();
        assert_eq!(state, "QI001", "{sql}: {error}");
    }
    assert_eq!(highs(&store, Interval::M1).await, ["1"]);
    drop_schema(server.direct_url(), &schema).await;
}

async fn manual_change(server: Server) {
    let (store, schema) = open(&server).await;
    store.insert_ticks(&[tick(0, "1"), tick(90_000, "3")]).await.unwrap();
    maintain_all(&store).await;
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    let change = format!(
        "BEGIN; SELECT {schema}.qi_mark_stale(to_timestamp({BASE}), to_timestamp({BASE} + 1)); \
         UPDATE {schema}.ticks SET price = 5 WHERE price = 1; COMMIT"
    );
    execute(&mut connection, change).await.unwrap();
    for maintained in [false, true] {
        assert_eq!(highs(&store, Interval::M1).await, ["5", "3"], "maintained: {maintained}");
        assert_eq!(highs(&store, Interval::W1).await, ["5"]);
        maintain_all(&store).await;
    }
    // The permission ends with the transaction.
    let error = execute(&mut connection, format!("DELETE FROM {schema}.ticks")).await.unwrap_err();
    assert!(error.to_string().contains("materialized bars"), "{error}");
    drop_schema(server.direct_url(), &schema).await;
}

/// A writer reads the announced watermark before it moves, and commits after the announcement.
async fn older_writer(server: Server) {
    let (store, schema) = open(&server).await;
    store.insert_ticks(&[tick(0, "1")]).await.unwrap();
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    // The form of the library's own statements.
    let insert = format!(
        "BEGIN; \
         INSERT INTO {schema}.qi_bars_stale SELECT 1, to_timestamp({BASE}), to_timestamp({BASE} + 3600) \
         FROM {schema}.qi_bars_state WHERE to_timestamp({BASE}) < announced"
    );
    execute(&mut connection, insert).await.unwrap();
    let maintaining = tokio::spawn({
        let store = store.clone();
        async move { maintain_all(&store).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!maintaining.is_finished(), "maintenance does not wait");
    let ts = Timestamp::from_secs(BASE).unwrap();
    let insert = format!(
        "/*qi:series*/ /*qi:bars*/ INSERT INTO {schema}.ticks (instrument_id, ts, seq, price) VALUES (1, '{ts}', 1, 7)"
    );
    execute(&mut connection, insert).await.unwrap();
    execute(&mut connection, "COMMIT".to_owned()).await.unwrap();
    maintaining.await.unwrap();
    assert_eq!(highs(&store, Interval::M1).await, ["7"]);
    drop_schema(server.direct_url(), &schema).await;
}

async fn concurrent(server: Server) {
    let (store, schema) = open(&server).await;
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    let name = schema.clone();
    // Ends the session of a maintainer or a writer, as if its process had died.
    let kills = async move {
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM (SELECT DISTINCT pid FROM pg_locks \
             WHERE relation IN ('{name}.qi_bars_state'::regclass, '{name}.qi_bars_stale'::regclass) \
             AND pid <> pg_backend_pid()) x WHERE random() < 0.2"
        );
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            sqlx::query(AssertSqlSafe(sql.clone())).fetch_all(&mut connection).await.unwrap();
        }
    };
    let histories = if runs_long_tests() { 2_000 } else { 60 };
    let plan = Plan { histories, at_once: 4, seed: seed() };
    bars_rig::run(Arc::new(store), plan, kills).await;
    drop_schema(server.direct_url(), &schema).await;
}

async fn killed(server: Server, spare: Spare) {
    let (store, _) = open(&server).await;
    let kills = async move {
        let mut spare = spare;
        loop {
            tokio::time::sleep(Duration::from_secs(3)).await;
            spare = spare.run_action("kill").await;
            spare = spare.run_action("start").await;
        }
    };
    let histories = if runs_long_tests() { 400 } else { 24 };
    let plan = Plan { histories, at_once: 4, seed: seed() };
    bars_rig::run(Arc::new(store), plan, kills).await;
}

async fn switched(server: Server) {
    let (store, schema) = open(&server).await;
    let mut off = server.config(&schema);
    off.materialized_bars = Some(false);
    let (off, on) =
        (TimescaleStore::open(off).unwrap(), TimescaleStore::open(server.config(&schema)).unwrap());
    let writing = tokio::spawn(async move {
        let mut conflicts = 0;
        for n in 0..200 {
            while let Err(error) = store.insert_ticks(&[tick(n, "1")]).await {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{}", error.report());
                assert!(error.retry().is_retryable());
                conflicts += 1;
            }
        }
        (store, conflicts)
    });
    for _ in 0..3 {
        assert_eq!(off.migrate_schema().await.unwrap().applied, ["materialized bars off"]);
        assert_eq!(off.maintain(&MaintainRequest::default()).await.unwrap().watermark, None);
        assert_eq!(on.migrate_schema().await.unwrap().applied, ["materialized bars on"]);
        on.maintain(&MaintainRequest::default().with_until(Timestamp::MAX)).await.unwrap();
    }
    let (store, _conflicts) = writing.await.unwrap();
    maintain_all(&on).await;
    let page = store.derived_bars(&BarQuery::new(instrument(), Interval::D1, TimeRange::ALL)).await.unwrap();
    assert_eq!(page.items[0].values().count, Some(200));
    drop_schema(server.direct_url(), &schema).await;
}
