//! Materialized bars on a real server: the contract and the model with maintenance before each call, inserts without
//! stale marks, and concurrent writers, maintainers and readers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bars_rig;
mod clickhouse_rig;
mod servers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bars_rig::{Plan, Reads, seed};
use clickhouse_rig::Server;
use qi_adapters::clickhouse::{ClickHouseConfig, ClickHouseStore};
use qi_adapters::config::Config;
use qi_core::store::{BarQuery, DeleteQuery, MaintainRequest};
use qi_core::{
    Datasets, ErrorKind, Instrument, Interval, PriceStore, PriceStoreExt as _, PriceTick, Selection,
    TimeRange, Timestamp,
};
use qi_testkit::store::contract::{Suite, Wrapper};
use servers::{Spare, TestServer as _, runs_long_tests, spare_trial, trial};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::oneshot;
use tokio::time::timeout;

fn main() {
    let server = Server::clickhouse().with_materialized_bars();
    let suite = Suite::new().at_once(4);
    let suite = if runs_long_tests() {
        suite.on(server.clone(), [Wrapper::MAINTAINED, Wrapper::FULL_STACK_OVER_MAINTAINED])
    } else {
        suite.on_datasets(server.clone(), [Wrapper::FULL_STACK_OVER_MAINTAINED], &["ticks"])
    };
    // Every call of the wrapper maintains the bars, which takes a second on the development server.
    let of_bars = |name: &str| name.starts_with("bars::");
    let suite = if runs_long_tests() { suite } else { suite.filtered(of_bars) };
    let models = bars_rig::model_trials(Arc::new(server.clone()), 6);
    let suite = models.into_iter().fold(suite, Suite::with_trial);
    let settling = "a_killed_server_leaves_no_wrong_bar_with_settling_marks";
    let settling =
        spare_trial(&server, settling, |server, spare| killed(server, spare, Duration::from_secs(6)));
    let suite = if runs_long_tests() { suite.with_trial(settling) } else { suite };
    suite
        .with_trial(trial(&server, "an_insert_without_marks_is_rejected", unmarked))
        .with_trial(trial(&server, "bars_are_switched_on_and_off_while_a_writer_runs", switched))
        .with_trial(trial(&server, "an_interrupted_switch_is_completed", interrupted))
        .with_trial(trial(&server, "only_the_holder_of_the_lease_builds_bars", leased))
        .with_trial(trial(&server, "a_call_that_loses_its_lease_fails_and_builds_no_bar", overtaken))
        .with_trial(trial(&server, "many_marks_of_an_hour_need_one_row_and_few_steps", repeated_marks))
        .with_trial(trial(&server, "a_deletion_of_one_instrument_skips_times_without_bars", short_history))
        .with_trial(trial(&server, "a_failed_rebuild_does_not_stop_the_watermark", failed_rebuild))
        .with_trial(trial(&server, "marks_wait_for_running_deletions", deleting))
        .with_trial(trial(&server, "bars_wait_for_a_deletion_from_before_the_switch_on", deleting_at_switch))
        .with_trial(trial(&server, "only_stale_bars_wait_for_a_later_deletion", deleting_later))
        .with_trial(trial(&server, "a_purge_drops_the_bars_of_complete_months", purged))
        .with_trial(trial(&server, "a_deletion_over_many_years_is_rebuilt_in_steps", long_deletion))
        .with_trial(trial(&server, "a_mark_makes_a_manual_change_visible", manual_change))
        .with_trial(trial(&server, "a_read_skips_the_marks_of_other_instruments", many_marks))
        .with_trial(trial(&server, "a_step_reads_only_its_own_ticks", one_step))
        .with_trial(trial(&server, "a_bar_of_several_sources_is_one_state", several_sources))
        .with_trial(trial(&server, "an_interrupted_announcement_is_repeated", announced))
        .with_trial(trial(&server, "a_ttl_is_rejected", ttl))
        .with_trial(trial(&server, "maintenance_waits_for_the_recorded_time", recorded_settle))
        .with_trial(trial(&server, "rebuilds_do_not_stop_the_watermark", both_steps))
        .with_trial(trial(&server, "concurrent_histories_have_no_wrong_bar", concurrent))
        .with_trial(spare_trial(&server, "a_killed_server_leaves_no_wrong_bar", |server, spare| {
            killed(server, spare, Duration::ZERO)
        }))
        .with_trial(trial(&server, "an_insert_after_its_deadline_is_rejected", deadlines))
        .with_trial(trial(&server, "a_late_insert_marks_its_hours_again", late_writer))
        .with_trial(trial(&server, "a_migration_replaces_the_earlier_constraint", earlier_constraint))
        .with_trial(trial(&server, "each_statement_of_a_purge_has_its_own_marks", purge_marks))
        .with_trial(spare_trial(&server, "a_user_without_the_state_changes_no_ticks", without_state))
        .main();
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
    assert!(error.to_string().contains("Constraint `qi_bars_marked`"), "{error}");
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
    assert!(timeout(Duration::from_millis(5), dropped).await.is_err());
    store.insert_ticks(&[tick(1)]).await.unwrap();
    let report = store.maintain(&request.with_budget(Duration::from_secs(20))).await.unwrap();
    assert!(report.is_complete(), "{report:?}");
    server.drop_tables(&prefix).await;
}

/// A later call takes the lease before a build of the first call begins on the server.
async fn overtaken(server: Server) {
    let (store, prefix) = open(&server).await;
    store.insert_ticks(&[tick(0)]).await.unwrap();
    let (address, mut held) = hold_reads_of_ticks(&server).await;
    let first = ClickHouseStore::open(config(&server.clone().with_address(address), &prefix)).unwrap();
    let request = MaintainRequest::default().with_until(tick(86_400).ts()).with_budget(Duration::ZERO);
    let call = tokio::spawn(async move { first.maintain(&request).await });
    let limit = Duration::from_secs(30);
    let build = timeout(limit, held.recv()).await.expect("the call builds bars").unwrap();
    let lease = format!(
        "INSERT INTO {prefix}qi_bars_lease SELECT 1, max(generation) + 1, now64(6, 'UTC') FROM {prefix}qi_bars_lease"
    );
    run(&store, &lease).await;
    build.send(()).unwrap();
    let error = timeout(limit, call).await.expect("the call ends").unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{}", error.report());
    assert!(error.retry().is_retryable());
    let bars = format!("SELECT count() FROM {prefix}qi_bars_1m");
    assert_eq!(store.client().query_raw(&bars).fetch_one::<u64>().await.unwrap(), 0);
    // The failed call has ended its lease.
    let report = store.maintain(&request.with_budget(Duration::from_secs(20))).await.unwrap();
    assert!(report.ticks == 1 && report.is_complete(), "{report:?}");
    server.drop_tables(&prefix).await;
}

/// Each write of late ticks adds a mark for its hour.
async fn repeated_marks(server: Server) {
    let (store, prefix) = open(&server).await;
    store.insert_ticks(&[tick(0)]).await.unwrap();
    maintain_all(&store).await;
    let marks = format!(
        "INSERT INTO {prefix}qi_bars_stale (id, exchange, symbol, first, until) \
         SELECT number, 'x', 'Y', {}, {} FROM numbers(10000)",
        tick(0).ts().as_micros(),
        tick(3_600).ts().as_micros()
    );
    run(&store, &marks).await;
    let mut limited = config(&server, &prefix);
    limited.settings.insert("max_result_rows".to_owned(), "100".to_owned());
    assert_eq!(counts(&ClickHouseStore::open(limited).unwrap(), Interval::D1).await, [1]);
    let step = MaintainRequest::default().with_budget(Duration::ZERO);
    let report = store.maintain(&step).await.unwrap();
    assert_eq!((report.rebuilt, report.stale), (4_096, 10_000 - 4_096));
    maintain_all(&store).await;
    assert_eq!(counts(&store, Interval::D1).await, [1]);
    server.drop_tables(&prefix).await;
}

async fn short_history(server: Server) {
    const MONTH: i64 = 31 * 86_400;
    let (store, prefix) = open(&server).await;
    let other = |n: i64| {
        PriceTick::new(Instrument::from_static("x:Z"), tick(n * MONTH).ts(), 0, "1".parse().unwrap()).unwrap()
    };
    store.insert_ticks(&(0..24).map(other).collect::<Vec<_>>()).await.unwrap();
    store.insert_ticks(&[tick(12 * MONTH)]).await.unwrap();
    maintain_all(&store).await;
    let own = Selection::only([Instrument::from_static("x:Y")]).unwrap();
    store.delete_range(&DeleteQuery::ticks(own, TimeRange::ALL)).await.unwrap();
    let step = MaintainRequest::default().with_budget(Duration::ZERO);
    let mut steps = 1;
    while !store.maintain(&step).await.unwrap().is_complete() {
        steps += 1;
        assert!(steps < 6, "the mark walks through the bars of the other instrument");
    }
    for interval in [Interval::M1, Interval::H1, Interval::D1] {
        assert!(counts(&store, interval).await.is_empty());
    }
    let query = BarQuery::new(Instrument::from_static("x:Z"), Interval::D1, TimeRange::ALL);
    assert_eq!(store.derived_bars(&query).await.unwrap().items.len(), 24);
    server.drop_tables(&prefix).await;
}

/// A stale hour has more ticks than the server may read in a statement.
async fn failed_rebuild(server: Server) {
    let (store, prefix) = open(&server).await;
    let until = |hours: i64| MaintainRequest::default().with_until(tick(hours * 3_600).ts());
    store.insert_ticks(&[tick(0), tick(7_200)]).await.unwrap();
    assert!(store.maintain(&until(1)).await.unwrap().is_complete());
    let (first, end) = (tick(0).ts().as_micros(), tick(3_600).ts().as_micros());
    let ticks = format!(
        "INSERT INTO {prefix}ticks (exchange, symbol, ts, seq, price) \
         SELECT 'x', 'Y', fromUnixTimestamp64Micro({first} + number * 30000, 'UTC'), 0, 1 FROM numbers(100000)"
    );
    let client = store.client().clone().with_setting("log_comment", format!("qi:bars:{}", i64::MAX));
    client.query_raw(&ticks).execute().await.unwrap();
    let mark = format!(
        "INSERT INTO {prefix}qi_bars_stale (id, exchange, symbol, first, until) SELECT 1, 'x', 'Y', {first}, {end}"
    );
    run(&store, &mark).await;
    let mut limited = config(&server, &prefix);
    limited.settings.insert("max_rows_to_read".to_owned(), "50000".to_owned());
    let error = ClickHouseStore::open(limited).unwrap().maintain(&until(3)).await.unwrap_err();
    assert_eq!(error.context_value("code"), Some("158"), "{}", error.report());
    let watermark = format!("SELECT max(watermark) FROM {prefix}qi_bars_state");
    let watermark = store.client().query_raw(&watermark).fetch_one::<i64>().await.unwrap();
    assert_eq!(watermark, tick(10_800).ts().as_micros());
    let report = store.maintain(&until(3)).await.unwrap();
    assert!(report.rebuilt == 1 && report.is_complete(), "{report:?}");
    assert_eq!(counts(&store, Interval::H1).await, [100_000, 1]);
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

/// The deletion of another program, or of a call that was dropped.
async fn deleting_at_switch(server: Server) {
    let (_, prefix) = server.open(&Datasets::none()).unwrap();
    let with = |on| {
        let mut config = config(&server, &prefix);
        config.materialized_bars = Some(on);
        ClickHouseStore::open(config).unwrap()
    };
    let (off, on) = (with(false), with(true));
    off.ensure_schema().await.unwrap();
    off.insert_ticks(&[tick(0), tick(1), tick(7_200)]).await.unwrap();
    run(&off, &format!("SYSTEM STOP MERGES {prefix}ticks")).await;
    let delete = format!("ALTER TABLE {prefix}ticks DELETE WHERE ts < '2023-11-13 00:00:01'");
    run(&off, &format!("{delete} SETTINGS mutations_sync = 0")).await;
    on.migrate_schema().await.unwrap();
    let everything = MaintainRequest::default().with_until(tick(86_400).ts());
    for _ in 0..2 {
        let report = on.maintain(&everything).await.unwrap();
        assert!(report.ticks == 0 && !report.is_complete(), "{report:?}");
    }
    run(&off, &format!("SYSTEM START MERGES {prefix}ticks")).await;
    let complete = async {
        while !on.maintain(&everything).await.unwrap().is_complete() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(30), complete).await.unwrap();
    assert_eq!(counts(&on, Interval::H1).await, [1, 1]);
    server.drop_tables(&prefix).await;
}

/// A deletion after the first maintenance has marks.
async fn deleting_later(server: Server) {
    let (store, prefix) = open(&server).await;
    let until = |hours: i64| MaintainRequest::default().with_until(tick(hours * 3_600).ts());
    store.insert_ticks(&[tick(0), tick(7_200)]).await.unwrap();
    assert!(store.maintain(&until(1)).await.unwrap().is_complete());
    // The server records the start of a deletion in full seconds.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    store.insert_ticks(&[tick(1)]).await.unwrap();
    run(&store, &format!("SYSTEM STOP MERGES {prefix}ticks")).await;
    let mark = format!(
        "INSERT INTO {prefix}qi_bars_stale (id, first, until, wait) SELECT 1, {}, {}, 600 * 1000000",
        tick(7_200).ts().as_micros(),
        tick(10_800).ts().as_micros()
    );
    run(&store, &mark).await;
    let delete = format!("ALTER TABLE {prefix}ticks DELETE WHERE ts = '2023-11-13 02:00:00'");
    run(&store, &format!("{delete} SETTINGS mutations_sync = 0")).await;
    let report = store.maintain(&until(3)).await.unwrap();
    assert_eq!((report.rebuilt, report.ticks, report.watermark), (0, 1, Some(tick(10_800).ts())));
    assert_eq!(counts(&store, Interval::H1).await, [2, 1]);
    run(&store, &format!("SYSTEM START MERGES {prefix}ticks")).await;
    // The mark of the deletion is left.
    let rebuilt = async {
        while store.maintain(&until(3)).await.unwrap().stale > 1 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(30), rebuilt).await.unwrap();
    assert_eq!(counts(&store, Interval::H1).await, [2]);
    server.drop_tables(&prefix).await;
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

fn config(server: &Server, prefix: &str) -> ClickHouseConfig {
    server.config(prefix).with_datasets(Datasets::none().with::<PriceTick>().unwrap())
}

async fn run(store: &ClickHouseStore, sql: &str) {
    store.client().query_raw(sql).execute().await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn maintain_all(store: &ClickHouseStore) {
    let everything = MaintainRequest::default().with_until(Timestamp::MAX);
    while !store.maintain(&everything.with_budget(Duration::from_mins(1))).await.unwrap().is_complete() {}
}

/// Returns the number of ticks of each bar.
async fn counts(store: &ClickHouseStore, interval: Interval) -> Vec<u64> {
    let query = BarQuery::new(Instrument::from_static("x:Y"), interval, TimeRange::ALL);
    let page = store.derived_bars(&query).await.unwrap();
    page.items.iter().map(|bar| bar.values().count.unwrap()).collect()
}

/// The bars of the deleted ticks lie in more months than one insert may write by default.
async fn long_deletion(server: Server) {
    const MONTH: i64 = 31 * 86_400;
    let (store, prefix) = open(&server).await;
    let other = |n: i64| {
        PriceTick::new(Instrument::from_static("x:Z"), tick(n * MONTH).ts(), 0, "1".parse().unwrap()).unwrap()
    };
    let months: Vec<_> = (0..12 * 12).map(|n| tick(n * MONTH)).collect();
    store.insert_ticks(&months).await.unwrap();
    store.insert_ticks(&(0..12 * 12).map(other).collect::<Vec<_>>()).await.unwrap();
    maintain_all(&store).await;
    let own = Selection::only([Instrument::from_static("x:Y")]).unwrap();
    let range = TimeRange::new(tick(0).ts(), tick(143 * MONTH).ts()).unwrap();
    store.delete_range(&DeleteQuery::ticks(own, range)).await.unwrap();
    assert_eq!(counts(&store, Interval::D1).await, [1]);
    maintain_all(&store).await;
    for interval in [Interval::M1, Interval::H1, Interval::D1] {
        assert_eq!(counts(&store, interval).await, [1]);
    }
    let query = BarQuery::new(Instrument::from_static("x:Z"), Interval::D1, TimeRange::ALL);
    assert_eq!(
        store.derived_bars(&query).await.unwrap().items.len(),
        144,
        "the other instrument is unchanged"
    );
    server.drop_tables(&prefix).await;
}

/// The statements of docs/materialized-bars.md.
async fn manual_change(server: Server) {
    let (store, prefix) = open(&server).await;
    store.insert_ticks(&[tick(0), tick(1), tick(90_000)]).await.unwrap();
    maintain_all(&store).await;
    let mark = |wait: &str| {
        format!(
            "INSERT INTO {prefix}qi_bars_stale (id, first, until, wait) \
             SELECT rand64(), toUnixTimestamp64Micro(toDateTime64('2023-11-13 00:00:00', 6, 'UTC')), \
             toUnixTimestamp64Micro(toDateTime64('2023-11-13 00:10:00', 6, 'UTC')), {wait}"
        )
    };
    run(&store, &mark("600 * 1000000")).await;
    run(&store, &format!("DELETE FROM {prefix}ticks WHERE ts = '2023-11-13 00:00:01'")).await;
    run(&store, &mark("0")).await;
    assert_eq!(counts(&store, Interval::M1).await, [1, 1]);
    // The first mark waits, and the second one is removed.
    let report = store.maintain(&MaintainRequest::default().with_until(Timestamp::MAX)).await.unwrap();
    assert_eq!((report.rebuilt, report.stale), (1, 1));
    assert_eq!(counts(&store, Interval::D1).await, [1, 1]);
    let (min, max) = (Timestamp::MIN.as_micros(), Timestamp::MAX.as_micros());
    for (first, until) in [(0, max), (min, max + 1), (max, min), (min, min)] {
        let mark = format!("INSERT INTO {prefix}qi_bars_stale (id, first, until) SELECT 1, {first}, {until}");
        let error = store.client().query_raw(&mark).execute().await.unwrap_err();
        assert!(error.to_string().contains("qi_bars_range"), "{error}");
    }
    run(&store, &format!("INSERT INTO {prefix}qi_bars_stale (id, first, until) SELECT 1, {min}, {max}"))
        .await;
    assert_eq!(counts(&store, Interval::W1).await, [2]);
    // No instrument has this name.
    let columns = "(id, exchange, symbol, first, until)";
    run(
        &store,
        &format!("INSERT INTO {prefix}qi_bars_stale {columns} SELECT 2, 'Binance', 'X', {min}, {max}"),
    )
    .await;
    let report = store.maintain(&MaintainRequest::default().with_until(Timestamp::MAX)).await.unwrap();
    assert_eq!((report.rebuilt > 0, report.stale), (true, 1));
    assert_eq!(counts(&store, Interval::W1).await, [2]);
    server.drop_tables(&prefix).await;
}

async fn many_marks(server: Server) {
    let (store, prefix) = open(&server).await;
    store.insert_ticks(&[tick(0), tick(3_600)]).await.unwrap();
    maintain_all(&store).await;
    store.insert_ticks(&[tick(1)]).await.unwrap();
    let marks = format!(
        "INSERT INTO {prefix}qi_bars_stale (id, exchange, symbol, first, until) \
         SELECT number, 'x', concat('M', toString(number % 1000)), 1699833600000000 AS f, f + 3600000000 \
         FROM numbers(1000000)"
    );
    run(&store, &marks).await;
    let mut limited = config(&server, &prefix);
    limited.settings.insert("max_rows_to_read".to_owned(), "100000".to_owned());
    assert_eq!(counts(&ClickHouseStore::open(limited).unwrap(), Interval::D1).await, [3]);
    server.drop_tables(&prefix).await;
}

async fn one_step(server: Server) {
    let (store, prefix) = open(&server).await;
    let ticks = format!(
        "INSERT INTO {prefix}ticks (exchange, symbol, ts, seq, price) \
         SELECT 'x', 'Y', fromUnixTimestamp64Micro(1699833600000000 + number * 2000000, 'UTC'), 0, 1 \
         FROM numbers(400000)"
    );
    let client = store.client().clone().with_setting("log_comment", format!("qi:bars:{}", i64::MAX));
    client.query_raw(&ticks).execute().await.unwrap();
    let mut limited = config(&server, &prefix);
    limited.settings.insert("max_rows_to_read".to_owned(), "50000".to_owned());
    let limited = ClickHouseStore::open(limited).unwrap();
    let request = MaintainRequest::default().with_budget(Duration::ZERO);
    for (until, ticks) in [(0, 0), (20 * 86_400, 1_800), (20 * 86_400, 1_800)] {
        let report = limited.maintain(&request.with_until(tick(until).ts())).await.unwrap();
        assert_eq!(report.ticks, ticks);
    }
    // The next ticks are a century later.
    let later = PriceTick::new(
        Instrument::from_static("x:Y"),
        "2150-08-09T10:00:00Z".parse().unwrap(),
        0,
        "1".parse().unwrap(),
    );
    store.insert_ticks(&[later.unwrap()]).await.unwrap();
    maintain_all(&store).await;
    assert_eq!(counts(&store, Interval::D1).await.last(), Some(&1));
    server.drop_tables(&prefix).await;
}

/// Between the first statements of a read, a tick of Thursday is written, and then a tick of Monday.
async fn several_sources(server: Server) {
    let (store, prefix) = open(&server).await;
    let (monday, thursday) = ([tick(0)], [tick(3 * 86_400)]);
    store.insert_ticks(&[monday.clone(), thursday.clone()].concat()).await.unwrap();
    maintain_all(&store).await;
    // Only the hour of Monday is stale.
    store.insert_ticks(&monday).await.unwrap();
    let (address, mut held) = hold_reads_of_ticks(&server).await;
    let reader = ClickHouseStore::open(config(&server.clone().with_address(address), &prefix)).unwrap();
    let week = TimeRange::new(tick(0).ts(), tick(7 * 86_400).ts()).unwrap();
    let query = BarQuery::new(Instrument::from_static("x:Y"), Interval::W1, week);
    let read = || {
        let (reader, query) = (reader.clone(), query.clone());
        tokio::spawn(async move { reader.derived_bars(&query).await.unwrap() })
    };
    let limit = Duration::from_secs(30);
    let first = read();
    let of_monday = timeout(limit, held.recv()).await.expect("the reader queries the ticks of Monday");
    store.insert_ticks(&[tick(3 * 86_400 + 1)]).await.unwrap();
    store.insert_ticks(&[tick(1)]).await.unwrap();
    of_monday.unwrap().send(()).unwrap();
    let of_the_week = timeout(limit, held.recv()).await.expect("the reader queries the ticks of the week");
    of_the_week.unwrap().send(()).unwrap();
    let page = timeout(limit, first).await.expect("the read ends").unwrap();
    assert_eq!(page.items[0].values().count, Some(4));
    // The hours of Monday and of Thursday are stale now. One statement reads the ticks of both.
    let second = read();
    let of_both = timeout(limit, held.recv()).await.expect("the reader queries the ticks of both days");
    of_both.unwrap().send(()).unwrap();
    let page = timeout(limit, second).await.expect("the read ends after one query of ticks").unwrap();
    assert_eq!(page.items[0].values().count, Some(4));
    server.drop_tables(&prefix).await;
}

/// Starts a proxy of the server. It holds each query of ticks until the test releases it.
async fn hold_reads_of_ticks(server: &Server) -> (String, UnboundedReceiver<oneshot::Sender<()>>) {
    hold(server, b"ticks FINAL").await
}

/// Starts a proxy of the server. It holds each request with this text until the test releases it.
async fn hold(server: &Server, held_text: &'static [u8]) -> (String, UnboundedReceiver<oneshot::Sender<()>>) {
    let url = server.url().trim_end_matches('/');
    let (start, host) = url.split_at(url.rfind(['@', '/']).unwrap() + 1);
    let (host, listener) = (host.to_owned(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = format!("{start}{}", listener.local_addr().unwrap());
    let (held, blocked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let upstream = TcpStream::connect(&host).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = upstream.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            let held = held.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                    if buffer[..count].windows(held_text.len()).any(|text| text == held_text) {
                        let (release, released) = oneshot::channel();
                        held.send(release).unwrap();
                        released.await.unwrap();
                    }
                    to_server.write_all(&buffer[..count]).await.unwrap();
                }
            });
        }
    });
    (address, blocked)
}

/// A call that ended between the two statements of an announcement.
async fn announced(server: Server) {
    let (store, prefix) = open(&server).await;
    let (day, min) = (tick(86_400).ts(), Timestamp::MIN.as_micros());
    let announce = format!(
        "INSERT INTO {prefix}qi_bars_state (announced, announced_at, watermark) \
         SELECT {}, toDateTime64('2299-12-31 00:00:00', 6, 'UTC'), {min}",
        day.as_micros()
    );
    run(&store, &announce).await;
    store.insert_ticks(&[tick(0)]).await.unwrap();
    let earlier = MaintainRequest::default().with_until(tick(3_600).ts());
    assert_eq!(store.maintain(&earlier).await.unwrap().watermark, Some(day));
    assert!(store.maintain(&earlier).await.unwrap().is_complete());
    assert_eq!(counts(&store, Interval::D1).await, [1]);
    server.drop_tables(&prefix).await;
}

/// A TTL outlives its key in the configuration.
async fn ttl(server: Server) {
    let (_, prefix) = server.open(&Datasets::none()).unwrap();
    let with = |materialized_bars| {
        let mut config = config(&server, &prefix);
        config.materialized_bars = materialized_bars;
        ClickHouseStore::open(config).unwrap()
    };
    let (off, on) = (with(None), with(Some(true)));
    off.ensure_schema().await.unwrap();
    let add = format!("ALTER TABLE {prefix}ticks MODIFY TTL toDateTime(ts) + toIntervalYear(50)");
    let remove = format!("ALTER TABLE {prefix}ticks REMOVE TTL");
    run(&off, &add).await;
    let is_rejected = |error: qi_core::Error| {
        assert_eq!(error.kind(), ErrorKind::SchemaMismatch, "{}", error.report());
        assert!(error.report().contains("REMOVE TTL"), "{}", error.report());
    };
    is_rejected(on.migrate_schema().await.unwrap_err());
    off.migrate_schema().await.unwrap();
    let toml = format!(
        "[store]\nbackend = \"clickhouse\"\npurge_requires_bars = \"1m\"\n\
         [store.clickhouse]\nurl = \"{}\"\ntable_prefix = \"{prefix}\"",
        server.url()
    );
    let guarded = Config::builder().toml(&toml).build().unwrap().open_store().await.unwrap();
    is_rejected(guarded.migrate_schema().await.unwrap_err());
    run(&off, &remove).await;
    guarded.migrate_schema().await.unwrap();
    assert_eq!(on.migrate_schema().await.unwrap().applied, ["materialized bars on"]);
    run(&off, &add).await;
    for store in [&on, &off] {
        is_rejected(store.migrate_schema().await.unwrap_err());
        is_rejected(store.maintain(&MaintainRequest::default()).await.unwrap_err());
        store.ensure_schema().await.unwrap();
    }
    run(&off, &remove).await;
    maintain_all(&on).await;
    server.drop_tables(&prefix).await;
}

/// A maintainer with a lower `bars_settle` than the writers waits for the writers.
async fn recorded_settle(server: Server) {
    let prefix = format!("{}_", servers::namespace());
    let with = |settle| {
        let mut config = config(&server, &prefix);
        config.bars_settle = settle;
        ClickHouseStore::open(config).unwrap()
    };
    let (writer, maintainer) = (with(Duration::from_hours(1)), with(Duration::ZERO));
    writer.ensure_schema().await.unwrap();
    // The server could store a request of this writer after its marks have settled.
    let mut slow = config(&server, &prefix);
    slow.server_limits.statement_timeout = Duration::from_mins(45);
    slow.server_limits.bulk_timeout = Duration::from_hours(1);
    slow.bars_settle = Duration::from_hours(2);
    let slow = ClickHouseStore::open(slow).unwrap();
    let error = slow.insert_ticks(&[tick(1)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaMismatch, "before the first announcement: {error}");
    writer.insert_ticks(&[tick(0)]).await.unwrap();
    let everything = MaintainRequest::default().with_until(Timestamp::MAX);
    for _ in 0..3 {
        let report = maintainer.maintain(&everything).await.unwrap();
        assert!(report.ticks == 0 && !report.is_complete(), "{report:?}");
    }
    // The marks of a program with a lower value also settle after the recorded value, because readers rely on it.
    maintainer.insert_ticks(&[tick(1)]).await.unwrap();
    let own = Selection::only([Instrument::from_static("x:Y")]).unwrap();
    let range = TimeRange::new(tick(1).ts(), tick(2).ts()).unwrap();
    maintainer.delete_range(&DeleteQuery::ticks(own, range)).await.unwrap();
    let shortest = format!("SELECT min(wait) FROM {prefix}qi_bars_stale WHERE sign = 1");
    let shortest = maintainer.client().query_raw(&shortest).fetch_one::<i64>().await.unwrap();
    assert_eq!(shortest, 3_600_000_000);
    run(&maintainer, &format!("TRUNCATE TABLE {prefix}qi_bars_stale")).await;
    let error = slow.insert_ticks(&[tick(1)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaMismatch, "{error}");
    // A schema of an earlier version has no record, and no constraint on marks.
    run(&writer, &format!("ALTER TABLE {prefix}qi_bars_state DROP COLUMN settle")).await;
    run(&writer, &format!("ALTER TABLE {prefix}qi_bars_stale DROP CONSTRAINT qi_bars_range")).await;
    assert_eq!(maintainer.ensure_schema().await.unwrap().differs, ["objects of materialized bars"]);
    assert_eq!(maintainer.migrate_schema().await.unwrap().applied, ["objects of materialized bars"]);
    maintain_all(&maintainer).await;
    assert_eq!(counts(&maintainer, Interval::H1).await, [1]);
    server.drop_tables(&prefix).await;
}

/// A call without time for all steps rebuilds and materializes.
async fn both_steps(server: Server) {
    let (store, prefix) = open(&server).await;
    let until = |hours: i64| MaintainRequest::default().with_until(tick(hours * 3_600).ts());
    store.insert_ticks(&[tick(0), tick(7_200)]).await.unwrap();
    assert!(store.maintain(&until(1)).await.unwrap().is_complete());
    store.insert_ticks(&[tick(1)]).await.unwrap();
    let report = store.maintain(&until(3).with_budget(Duration::ZERO)).await.unwrap();
    assert!(report.rebuilt > 0 && report.ticks == 1, "{report:?}");
    server.drop_tables(&prefix).await;
}

/// Returns the configuration of a store with short limits: a killed call leaves its lease for 10 s and `settle`.
fn short_limits(server: &Server, prefix: &str, settle: Duration) -> ClickHouseConfig {
    let mut config = config(server, prefix);
    config.bars_settle = settle;
    config.server_limits.statement_timeout = Duration::from_secs(2);
    config.server_limits.bulk_timeout = Duration::from_secs(5);
    // Each history has two calls at a time.
    config.pool.max_connections = 64;
    config
}

/// With marks that settle later, writes are dropped, and reads that overlap with a write are checked exactly. Two limits
/// of the store can make this fail if the server is overloaded for seconds: it stores a dropped write later than
/// `settle` after its marks, or a read that began again takes longer than `settle`. In the long form, `settle` is
/// therefore three times the limit of a statement, and histories pause between their steps, so that marks settle during
/// a history.
fn plan(histories: u64, at_once: usize, settle: Duration) -> Plan {
    let settles = !settle.is_zero();
    let is_slow = settles && runs_long_tests();
    Plan {
        histories,
        at_once,
        seed: seed(),
        // With 0, maintenance may build hours during a read, and a dropped write may leave a bar that lacks it.
        reads: if settles { Reads::Bars } else { Reads::Ticks },
        drops: settles.then_some(settle),
        pause: Duration::from_secs(if is_slow { 2 } else { 0 }),
    }
}

/// Runs with marks that settle at once, which adds the marks of each write twice, and with marks that settle later.
async fn concurrent(server: Server) {
    let runs = if runs_long_tests() { [(100, 4, 0), (400, 16, 6)] } else { [(4, 4, 0), (6, 6, 4)] };
    for (histories, at_once, settle) in runs {
        let settle = Duration::from_secs(settle);
        let prefix = format!("{}_", servers::namespace());
        let config = short_limits(&server, &prefix, settle);
        let store = ClickHouseStore::open(config.clone()).unwrap();
        store.ensure_schema().await.unwrap();
        let kill = |kills: Arc<AtomicU64>| async move {
            let interval = Duration::from_secs(if runs_long_tests() { 60 } else { 3_600 });
            loop {
                kill_maintainers(&config).await;
                kills.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(interval).await;
            }
        };
        bars_rig::run(Arc::new(store), plan(histories, at_once, settle), kill).await;
        server.drop_tables(&prefix).await;
    }
}

/// Kills a maintainer. In the long form, a second one is killed after it has taken the lease, which then remains.
async fn kill_maintainers(config: &ClickHouseConfig) {
    while !kill_maintainer(config.clone()).await {}
    if runs_long_tests() {
        let expiry = config.server_limits.bulk_timeout + config.bars_settle + Duration::from_secs(5);
        let lease = format!(
            "INSERT INTO {}qi_bars_lease SELECT rand64(), 1, now64(6, 'UTC') + toIntervalMicrosecond({})",
            config.table_prefix,
            expiry.as_micros()
        );
        // Under load, the statement may exceed its limit.
        let store = ClickHouseStore::open(config.clone()).unwrap();
        let _ = store.client().query_raw(&lease).execute().await;
    }
}

/// Ends a call of `maintain` with its runtime, as if its process had died. Returns false if the call has ended before.
async fn kill_maintainer(config: ClickHouseConfig) -> bool {
    let kill = move || {
        let (store, has_ended) = (ClickHouseStore::open(config).unwrap(), Arc::new(AtomicBool::new(false)));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let ended = has_ended.clone();
        runtime.spawn(async move {
            // The announced watermark stays.
            let _ = store.maintain(&MaintainRequest::default().with_until(tick(0).ts())).await;
            ended.store(true, Ordering::SeqCst);
        });
        std::thread::sleep(Duration::from_millis(qi_core::Rng::new().u64(20..400)));
        let has_ended = has_ended.load(Ordering::SeqCst);
        runtime.shutdown_background();
        !has_ended
    };
    tokio::task::spawn_blocking(kill).await.unwrap()
}

/// Kills maintainers and the server: both at the same time, or one of them. With marks that settle at once, only once.
async fn killed(server: Server, spare: Spare, settle: Duration) {
    let config = short_limits(&server, "", settle);
    let store = ClickHouseStore::open(config.clone()).unwrap();
    store.ensure_schema().await.unwrap();
    let is_short = settle.is_zero();
    let kill = |kills: Arc<AtomicU64>| async move {
        let mut spare = spare;
        for number in 0_u64.. {
            // Between two kills, the lease of a killed call expires, and another call builds bars.
            tokio::time::sleep(Duration::from_secs(if is_short { 5 } else { 40 })).await;
            if number % 3 != 1 {
                kill_maintainers(&config).await;
            }
            if number % 3 != 2 {
                spare = spare.run_action("kill").await;
                spare = spare.run_action("start").await;
            }
            kills.fetch_add(1, Ordering::Relaxed);
            if is_short {
                std::future::pending::<()>().await;
            }
        }
    };
    let plan = if is_short { plan(3, 3, settle) } else { plan(2_000, 16, settle) };
    bars_rig::run(Arc::new(store), plan, kill).await;
}

async fn ticks_in_table(store: &ClickHouseStore, prefix: &str) -> u64 {
    let sql = format!("SELECT count() FROM {prefix}ticks FINAL");
    store.client().query_raw(&sql).fetch_one::<u64>().await.unwrap()
}

/// Inserts of custom SQL. The last one is the statement of docs/materialized-bars.md.
async fn deadlines(server: Server) {
    let (store, prefix) = open(&server).await;
    let insert = format!(
        "INSERT INTO {prefix}ticks (exchange, symbol, ts, seq, price) \
         SELECT 'x', 'Y', toDateTime64('2024-01-31 12:00:00', 6, 'UTC'), 0, 1"
    );
    let passed = format!("qi:bars:{}", Timestamp::now().as_micros() - 60_000_000);
    for (comment, constraint) in [
        ("", "qi_bars_marked"),
        ("qi:bars", "qi_bars_marked"),
        ("a note: 9223372036854775807", "qi_bars_marked"),
        ("qi:bars:", "qi_bars_deadline"),
        ("qi:bars:a note", "qi_bars_deadline"),
        (passed.as_str(), "qi_bars_deadline"),
    ] {
        let client = store.client().clone().with_setting("log_comment", comment);
        let error = client.query_raw(&insert).execute().await.unwrap_err().to_string();
        assert!(error.contains(&format!("Constraint `{constraint}`")), "{comment}: {error}");
    }
    assert_eq!(ticks_in_table(&store, &prefix).await, 0);
    let next = format!("qi:bars:{}", Timestamp::now().as_micros() + 60_000_000);
    let client = store.client().clone().with_setting("log_comment", next);
    client.query_raw(&insert).execute().await.unwrap();
    run(&store, &format!("{insert} SETTINGS log_comment = 'qi:bars:9223372036854775807'")).await;
    assert_eq!(ticks_in_table(&store, &prefix).await, 1);
    server.drop_tables(&prefix).await;
}

/// The insert of a writer reaches the server after its marks have settled. The first writer is killed meanwhile.
async fn late_writer(server: Server) {
    let prefix = format!("{}_", servers::namespace());
    let with = |server: &Server| {
        let mut config = config(server, &prefix);
        config.bars_settle = Duration::from_secs(4);
        config.server_limits.statement_timeout = Duration::from_secs(2);
        ClickHouseStore::open(config).unwrap()
    };
    let store = with(&server);
    store.ensure_schema().await.unwrap();
    store.insert_ticks(&[tick(0)]).await.unwrap();
    let settled = async || {
        let everything = MaintainRequest::default().with_until(Timestamp::MAX);
        while !store.maintain(&everything).await.unwrap().is_complete() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    settled().await;
    let (address, mut held) = hold(&server, b"log_comment").await;
    let writer = with(&server.clone().with_address(address));
    let write = |seconds| {
        let writer = writer.clone();
        tokio::spawn(async move { writer.insert_ticks(&[tick(seconds)]).await })
    };
    let limit = Duration::from_secs(30);
    let killed = write(1);
    let request = timeout(limit, held.recv()).await.expect("the writer sends its tick").unwrap();
    // The mark of the tick settles, and its hour is built without the tick.
    timeout(limit, settled()).await.unwrap();
    killed.abort();
    request.send(()).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(ticks_in_table(&store, &prefix).await, 1, "the server has stored a tick without a mark");
    assert_eq!(counts(&store, Interval::H1).await, [1]);
    let mut late = write(2);
    let request = timeout(limit, held.recv()).await.expect("the writer sends its tick").unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    request.send(()).unwrap();
    let mut repeated = 0;
    let stored = loop {
        tokio::select! {
            stored = &mut late => break stored,
            request = held.recv() => {
                repeated += 1;
                request.unwrap().send(()).unwrap();
            }
            () = tokio::time::sleep(limit) => panic!("the write does not end"),
        }
    };
    stored.unwrap().unwrap();
    assert!(repeated > 0, "the server has accepted a late insert");
    assert_eq!(counts(&store, Interval::H1).await, [2]);
    timeout(limit, settled()).await.unwrap();
    assert_eq!(counts(&store, Interval::H1).await, [2]);
    server.drop_tables(&prefix).await;
}

/// The constraint of an earlier version accepts inserts without a deadline.
async fn earlier_constraint(server: Server) {
    let (store, prefix) = open(&server).await;
    for change in [
        "ADD CONSTRAINT qi_bars CHECK getSetting('log_comment') = 'qi:bars'",
        "DROP CONSTRAINT qi_bars_marked",
        "DROP CONSTRAINT qi_bars_deadline",
    ] {
        run(&store, &format!("ALTER TABLE {prefix}ticks {change}")).await;
    }
    let error = store.insert_ticks(&[tick(0)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{}", error.report());
    assert_eq!(store.ensure_schema().await.unwrap().differs, ["objects of materialized bars"]);
    assert_eq!(store.migrate_schema().await.unwrap().applied, ["objects of materialized bars"]);
    assert!(store.migrate_schema().await.unwrap().applied.is_empty());
    store.insert_ticks(&[tick(0)]).await.unwrap();
    let earlier = store.client().clone().with_setting("log_comment", "qi:bars");
    let insert = format!(
        "INSERT INTO {prefix}ticks (exchange, symbol, ts, seq, price) VALUES ('x', 'Y', '2024-01-01 00:00:00', 0, 1)"
    );
    let error = earlier.query_raw(&insert).execute().await.unwrap_err();
    assert!(error.to_string().contains("Constraint `qi_bars_marked`"), "{error}");
    server.drop_tables(&prefix).await;
}

async fn purge_marks(server: Server) {
    const MONTH: i64 = 31 * 86_400;
    let (store, prefix) = open(&server).await;
    store.insert_ticks(&(0..4).map(|n| tick(n * MONTH)).collect::<Vec<_>>()).await.unwrap();
    let cutoff = tick(3 * MONTH).ts();
    store.purge_before(PriceTick::DATASET, cutoff).await.unwrap();
    let marks = format!("SELECT until FROM {prefix}qi_bars_stale FINAL WHERE sign = 1 ORDER BY until");
    let marks = store.client().query_raw(&marks).fetch_all::<i64>().await.unwrap();
    let months = ["2023-12-01", "2024-01-01", "2024-02-01"].map(|end| end.parse::<Timestamp>().unwrap());
    let expected: Vec<_> = months.into_iter().chain([cutoff]).map(Timestamp::as_micros).collect();
    assert_eq!(marks, expected);
    maintain_all(&store).await;
    assert_eq!(counts(&store, Interval::H1).await, [1]);
    server.drop_tables(&prefix).await;
}

/// A user with privileges on the ticks only cannot add marks.
async fn without_state(server: Server, spare: Spare) {
    let store = ClickHouseStore::open(config(&server, "")).unwrap();
    store.ensure_schema().await.unwrap();
    store.insert_ticks(&[tick(0), tick(1)]).await.unwrap();
    let grants = tempfile::NamedTempFile::new().unwrap();
    let of_ticks = "GRANT SELECT, INSERT, ALTER DELETE ON qi.ticks\nGRANT SELECT ON system.parts\n\
                    GRANT SHOW DATABASES ON default.*";
    std::fs::write(grants.path(), of_ticks).unwrap();
    let start = format!("start {}", grants.path().display());
    let spare = spare.run_action("stop").await.run_action(start).await;
    let store = ClickHouseStore::open(config(&server, "")).unwrap();
    assert_eq!(counts(&store, Interval::H1).await, [2]);
    let own = Selection::only([Instrument::from_static("x:Y")]).unwrap();
    let changes = [
        store.insert_ticks(&[tick(2)]).await.map(drop),
        store.delete_range(&DeleteQuery::ticks(own, TimeRange::ALL)).await,
        store.purge_before(PriceTick::DATASET, tick(86_400).ts()).await,
    ];
    for change in changes {
        let error = change.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{}", error.report());
    }
    assert_eq!(counts(&store, Interval::H1).await, [2]);
    drop(spare);
}
