//! Materialized bars on a real server: the contract and the model with maintenance before each call, inserts without
//! stale marks, and concurrent writers, maintainers and readers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bars_rig;
mod clickhouse_rig;
mod servers;

use std::sync::Arc;
use std::time::Duration;

use bars_rig::{Plan, seed};
use clickhouse_rig::Server;
use libtest_mimic::{Completion, Trial};
use qi_adapters::clickhouse::ClickHouseStore;
use qi_core::store::{BarQuery, MaintainRequest};
use qi_core::{
    Datasets, ErrorKind, Instrument, Interval, PriceStore, PriceStoreExt as _, PriceTick, TimeRange,
    Timestamp,
};
use qi_testkit::presence;
use qi_testkit::store::contract::{StoreFactory, Suite, Wrapper};
use qi_testkit::store::model::{cases, check_histories};
use servers::{Spare, runs_long_tests, spare_trial, trial};

fn main() {
    let server = Server::clickhouse().with_materialized_bars();
    let suite = Suite::new().at_once(4);
    let suite = if runs_long_tests() {
        suite.on(server.clone(), [Wrapper::MAINTAINED, Wrapper::FULL_STACK_OVER_MAINTAINED])
    } else {
        suite.on_datasets(server.clone(), [Wrapper::FULL_STACK_OVER_MAINTAINED], &["ticks"])
    };
    // Every call of the wrapper maintains the bars, which takes a second on the development server.
    let of_bars = |name: &str| name.contains("/bars::");
    let suite = if runs_long_tests() { suite } else { suite.filtered(of_bars) };
    suite
        .with_trial(histories(&server))
        .with_trial(trial(&server, "an_insert_without_marks_is_rejected", unmarked))
        .with_trial(trial(&server, "bars_are_switched_on_and_off_while_a_writer_runs", switched))
        .with_trial(trial(&server, "an_interrupted_switch_is_completed", interrupted))
        .with_trial(trial(&server, "only_the_holder_of_the_lease_builds_bars", leased))
        .with_trial(trial(&server, "marks_wait_for_running_deletions", deleting))
        .with_trial(trial(&server, "a_purge_drops_the_bars_of_complete_months", purged))
        .with_trial(trial(&server, "concurrent_histories_have_no_wrong_bar", concurrent))
        .with_trial(spare_trial(&server, "a_killed_server_leaves_no_wrong_bar", killed))
        .main();
}

fn histories(server: &Server) -> Trial {
    let (backend, absent) = (server.name().to_owned(), server.absent());
    let factory: Arc<dyn StoreFactory> = Arc::new(server.clone());
    presence::trial(format!("{backend}/equals_the_model_with_maintenance"), &backend, absent, move || {
        check_histories(&factory, Wrapper::MAINTAINED, cases(6)).map_err(|failure| failure.to_string())?;
        Ok(Completion::Completed)
    })
}

fn tick(seconds: i64) -> PriceTick {
    let ts = Timestamp::from_secs(1_699_833_600 + seconds).unwrap();
    PriceTick::new(Instrument::from_static("x:Y"), ts, 0, "1".parse().unwrap()).unwrap()
}

async fn open(server: &Server) -> (ClickHouseStore, String) {
    let (store, prefix) = server.open(&Datasets::none().with::<PriceTick>().unwrap()).unwrap();
    store.ensure_schema().await.unwrap();
    (store, prefix)
}

/// The insert of an earlier version, or of another program.
async fn unmarked(server: Server) {
    let (store, prefix) = open(&server).await;
    let insert = format!(
        "INSERT INTO {prefix}ticks (exchange, symbol, ts, seq, price) VALUES ('x', 'Y', '2024-01-01 00:00:00', 0, 1)"
    );
    let error = store.client().query_raw(&insert).execute().await.unwrap_err();
    assert!(error.to_string().contains("Constraint `qi_bars`"), "{error}");
    server.drop_tables(&prefix).await;
}

async fn switched(server: Server) {
    let (store, prefix) = open(&server).await;
    let config = |on| {
        let mut config = server.config(&prefix).with_datasets(Datasets::none().with::<PriceTick>().unwrap());
        config.materialized_bars = Some(on);
        ClickHouseStore::open(config).unwrap()
    };
    let (off, on) = (config(false), config(true));
    let writing = tokio::spawn(async move {
        for n in 0..60 {
            while let Err(error) = store.insert_ticks(&[tick(n)]).await {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{}", error.report());
                assert!(error.retry().is_retryable());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        store
    });
    let everything = MaintainRequest::default().with_until(Timestamp::MAX);
    for _ in 0..2 {
        assert_eq!(off.migrate_schema().await.unwrap().applied, ["materialized bars off"]);
        assert_eq!(off.maintain(&everything).await.unwrap().watermark, None);
        assert_eq!(on.migrate_schema().await.unwrap().applied, ["materialized bars on"]);
        on.maintain(&everything).await.unwrap();
    }
    let store = writing.await.unwrap();
    assert!(on.maintain(&everything).await.unwrap().is_complete());
    let query = BarQuery::new(Instrument::from_static("x:Y"), Interval::D1, TimeRange::ALL);
    assert_eq!(store.derived_bars(&query).await.unwrap().items[0].values().count, Some(60));
    server.drop_tables(&prefix).await;
}

async fn interrupted(server: Server) {
    let (store, prefix) = open(&server).await;
    let client = store.client();
    client.query_raw(&format!("DROP TABLE {prefix}qi_bars_state SYNC")).execute().await.unwrap();
    let error = store.insert_ticks(&[tick(0)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{}", error.report());
    let mut config = server.config(&prefix).with_datasets(Datasets::none().with::<PriceTick>().unwrap());
    config.materialized_bars = Some(false);
    let off = ClickHouseStore::open(config).unwrap();
    assert_eq!(off.migrate_schema().await.unwrap().applied, ["materialized bars off"]);
    off.insert_ticks(&[tick(0)]).await.unwrap();
    server.drop_tables(&prefix).await;
}

async fn leased(server: Server) {
    let (store, prefix) = open(&server).await;
    store.insert_ticks(&[tick(0)]).await.unwrap();
    let lease = |expires: &str| {
        let sql = format!("INSERT INTO {prefix}qi_bars_lease SELECT 1, 1, now64(6, 'UTC') + {expires}");
        let client = store.client().clone();
        async move { client.query_raw(&sql).execute().await.unwrap() }
    };
    let request = MaintainRequest::default().with_until(tick(86_400).ts()).with_budget(Duration::ZERO);
    lease("toIntervalMinute(10)").await;
    let report = store.maintain(&request).await.unwrap();
    assert!(report.ticks == 0 && !report.is_complete(), "{report:?}");
    lease("toIntervalMinute(-1)").await;
    let report = store.maintain(&request.with_budget(Duration::from_secs(20))).await.unwrap();
    assert!(report.ticks == 1 && report.is_complete(), "{report:?}");
    // A dropped call ends its lease after its step.
    let dropped = store.maintain(&request);
    assert!(tokio::time::timeout(Duration::from_millis(5), dropped).await.is_err());
    store.insert_ticks(&[tick(1)]).await.unwrap();
    let report = store.maintain(&request.with_budget(Duration::from_secs(20))).await.unwrap();
    assert!(report.is_complete(), "{report:?}");
    server.drop_tables(&prefix).await;
}

async fn deleting(server: Server) {
    let (store, prefix) = open(&server).await;
    let ticks = format!("{prefix}ticks");
    let run = |sql: String| {
        let client = store.client().clone();
        async move { client.query_raw(&sql).execute().await.unwrap() }
    };
    let everything = MaintainRequest::default().with_until(tick(86_400).ts());
    store.insert_ticks(&[tick(0), tick(1)]).await.unwrap();
    assert!(store.maintain(&everything).await.unwrap().is_complete());
    run(format!("SYSTEM STOP MERGES {ticks}")).await;
    store.insert_ticks(&[tick(2)]).await.unwrap();
    run(format!("ALTER TABLE {ticks} DELETE WHERE seq = 9 SETTINGS mutations_sync = 0")).await;
    let report = store.maintain(&everything).await.unwrap();
    assert!(report.rebuilt == 0 && report.stale > 0, "{report:?}");
    run(format!("SYSTEM START MERGES {ticks}")).await;
    for _ in 0..100 {
        if store.maintain(&everything).await.unwrap().is_complete() {
            server.drop_tables(&prefix).await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the mark is not removed");
}

async fn purged(server: Server) {
    const MONTH: i64 = 31 * 86_400;
    let (store, prefix) = open(&server).await;
    let everything = MaintainRequest::default().with_until(tick(12 * MONTH).ts());
    store.insert_ticks(&(0..10).map(|n| tick(n * MONTH)).collect::<Vec<_>>()).await.unwrap();
    assert!(store.maintain(&everything).await.unwrap().is_complete());
    store.purge_before(PriceTick::DATASET, tick(8 * MONTH).ts()).await.unwrap();
    assert!(store.maintain(&everything).await.unwrap().is_complete());
    for level in ["1m", "1h", "1d"] {
        let sql = format!("SELECT count() FROM {prefix}qi_bars_{level} FINAL");
        let rows = store.client().query_raw(&sql).fetch_one::<u64>().await.unwrap();
        assert!((2..=3).contains(&rows), "{rows} bars of {level}: those of complete months are left");
    }
    let query = BarQuery::new(Instrument::from_static("x:Y"), Interval::D1, TimeRange::ALL);
    assert_eq!(store.derived_bars(&query).await.unwrap().items.len(), 2);
    server.drop_tables(&prefix).await;
}

/// Runs with marks that settle at once, which adds the marks of each write twice, and with marks that settle later.
async fn concurrent(server: Server) {
    for settle in [Duration::ZERO, Duration::from_secs(2)] {
        let prefix = format!("{}_", servers::namespace());
        let mut config = server.config(&prefix).with_datasets(Datasets::none().with::<PriceTick>().unwrap());
        config.bars_settle = settle;
        let store = ClickHouseStore::open(config).unwrap();
        store.ensure_schema().await.unwrap();
        let histories = if runs_long_tests() { 1_000 } else { 6 };
        let plan = Plan { histories, at_once: 4, seed: seed() };
        bars_rig::run(Arc::new(store), plan, std::future::pending()).await;
        server.drop_tables(&prefix).await;
    }
}

async fn killed(server: Server, spare: Spare) {
    let mut config = server.config("").with_datasets(Datasets::none().with::<PriceTick>().unwrap());
    // A killed call leaves its lease for this time.
    config.server_limits.bulk_timeout = Duration::from_secs(5);
    let store = ClickHouseStore::open(config).unwrap();
    store.ensure_schema().await.unwrap();
    let kill = async move {
        tokio::time::sleep(Duration::from_secs(6)).await;
        let _spare = spare.run_action("kill").await.run_action("start").await;
        std::future::pending::<()>().await;
    };
    let plan = Plan { histories: if runs_long_tests() { 200 } else { 3 }, at_once: 3, seed: seed() };
    bars_rig::run(Arc::new(store), plan, kill).await;
}
