//! Materialized bars on real servers: the contract and the model with maintenance before each call, statements without
//! stale marks, and concurrent writers, maintainers and readers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bars_rig;
mod servers;
mod timescale_rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bars_rig::{Plan, Reads, seed};
use qi_adapters::config::{Config, Hypertables};
use qi_adapters::timescale::{ChunkInfo, TimescaleStore};
use qi_core::store::{BarQuery, MaintainRequest, PriceStoreExt as _, StatsQuery};
use qi_core::{ErrorKind, Instrument, Interval, PriceStore, PriceTick, TimeRange, Timestamp};
use qi_testkit::store::contract::{Suite, Wrapper};
use servers::{Spare, TestServer as _, runs_long_tests, spare_trial, trial};
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
        for trial in bars_rig::model_trials(Arc::new(server.clone()), 24) {
            suite = suite.with_trial(trial);
        }
        suite = suite
            .with_trial(trial(&server, "a_statement_without_marks_is_rejected", unmarked))
            .with_trial(trial(&server, "a_mark_makes_a_manual_change_visible", manual_change))
            .with_trial(trial(&server, "invalid_marks_are_rejected", invalid_marks))
            .with_trial(trial(&server, "a_retention_policy_is_rejected", retention))
            .with_trial(trial(&server, "a_purge_sees_a_switch_during_its_call", switched_purge))
            .with_trial(trial(&server, "a_purge_during_a_read_removes_no_part_of_a_bar", purge_during_read))
            .with_trial(trial(&server, "a_conversion_during_a_read_hides_no_ticks", conversion_during_read))
            .with_trial(trial(
                &server,
                "a_conversion_during_maintenance_fails_the_step",
                conversion_during_maintenance,
            ))
            .with_trial(trial(&server, "stats_report_a_bar_without_ticks", unmarked_drop))
            .with_trial(trial(&server, "a_default_isolation_of_the_role_has_no_effect", isolation))
            .with_trial(trial(&server, "a_time_zone_of_a_session_has_no_effect", time_zone))
            .with_trial(trial(&server, "a_purge_adds_few_marks", purge_marks))
            .with_trial(trial(&server, "a_conversion_to_hypertables_needs_a_switch", to_hypertables))
            .with_trial(trial(&server, "a_failing_rebuild_does_not_stop_the_watermark", failing_rebuild))
            .with_trial(trial(&server, "a_step_rebuilds_few_ticks", many_late_ticks))
            .with_trial(trial(&server, "a_maintainer_waits_for_a_long_step", second_maintainer))
            .with_trial(trial(&server, "a_slow_count_of_marks_fails_no_maintenance", slow_count))
            .with_trial(trial(&server, "maintenance_waits_for_older_writers", older_writer))
            .with_trial(trial(&server, "concurrent_histories_have_no_wrong_bar", concurrent))
            .with_trial(spare_trial(&server, "killed_servers_leave_no_wrong_bar", killed))
            .with_trial(trial(&server, "bars_are_switched_on_and_off_beside_a_writer", switched));
    }
    suite.main();
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

/// A mark outside the domain would make every read fail. An earlier schema gets the current objects.
async fn invalid_marks(server: Server) {
    let (store, schema) = open(&server).await;
    store.insert_ticks(&[tick(0, "1"), tick(90_000, "3")]).await.unwrap();
    maintain_all(&store).await;
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    for (first, until) in [
        ("-infinity", "2024-01-01"),
        ("2024-01-01", "infinity"),
        ("2024-01-02", "2024-01-01"),
        ("2024-01-01", "2024-01-01"),
        ("1969-01-01", "2024-01-01"),
        ("2024-01-01", "2300-01-01"),
    ] {
        let call = format!("SELECT {schema}.qi_mark_stale('{first}', '{until}')");
        let error = execute(&mut connection, call).await.unwrap_err();
        assert!(error.to_string().contains("is empty, or not within"), "{error}");
        let insert = format!("INSERT INTO {schema}.qi_bars_stale VALUES (0, '{first}', '{until}')");
        let error = execute(&mut connection, insert).await.unwrap_err();
        assert!(error.to_string().contains("qi_bars_stale_range"), "{error}");
    }
    let insert = format!("INSERT INTO {schema}.qi_bars_stale VALUES (1, '2024-01-01', '2024-01-02')");
    execute(&mut connection, insert).await.unwrap_err();
    let whole = format!("SELECT {schema}.qi_mark_stale('{}', '{}')", Timestamp::MIN, Timestamp::MAX);
    execute(&mut connection, whole).await.unwrap();
    maintain_all(&store).await;
    let earlier = format!(
        "ALTER TABLE {schema}.qi_bars_stale DROP CONSTRAINT qi_bars_stale_range; \
         DROP INDEX {schema}.qi_bars_stale_oldest; \
         CREATE OR REPLACE FUNCTION {schema}.qi_mark_stale(first timestamptz, until timestamptz) RETURNS void \
         LANGUAGE plpgsql AS 'BEGIN END'; \
         INSERT INTO {schema}.qi_bars_stale VALUES (0, '-infinity', 'infinity'), (0, '2024-01-02', '2024-01-01')"
    );
    execute(&mut connection, earlier).await.unwrap();
    assert_eq!(store.ensure_schema().await.unwrap().differs, ["objects of materialized bars"]);
    assert_eq!(store.migrate_schema().await.unwrap().applied, ["objects of materialized bars"]);
    assert_eq!(store.migrate_schema().await.unwrap().applied, [""; 0]);
    assert_eq!(highs(&store, Interval::M1).await, ["1", "3"]);
    maintain_all(&store).await;
    assert_eq!(highs(&store, Interval::M1).await, ["1", "3"]);
    drop_schema(server.direct_url(), &schema).await;
}

/// A retention policy outlives its key in the configuration.
async fn retention(server: Server) {
    if !server.hypertables() {
        return;
    }
    let schema = servers::namespace();
    let mut config = server.config(&schema);
    config.materialized_bars = None;
    let off = TimescaleStore::open(config).unwrap();
    off.ensure_schema().await.unwrap();
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    // The function that adds a policy needs the Community edition.
    let add = format!(
        "INSERT INTO _timescaledb_config.bgw_job (application_name, schedule_interval, max_runtime, max_retries, \
         retry_period, proc_schema, proc_name, owner, scheduled, hypertable_id, config) \
         SELECT 'Retention Policy', '1 day', '0', -1, '1 day', '_timescaledb_functions', 'policy_retention', \
         current_user::regrole, false, id, '{{\"drop_after\": \"100 years\"}}' \
         FROM _timescaledb_catalog.hypertable WHERE schema_name = '{schema}' AND table_name = 'ticks'"
    );
    execute(&mut connection, add.clone()).await.unwrap();
    let on = TimescaleStore::open(server.config(&schema)).unwrap();
    let is_rejected = |error: qi_core::Error| {
        assert_eq!(error.kind(), ErrorKind::SchemaMismatch, "{}", error.report());
        assert!(error.report().contains("remove_retention_policy"), "{}", error.report());
    };
    is_rejected(on.migrate_schema().await.unwrap_err());
    off.migrate_schema().await.unwrap();
    let toml = format!(
        "[store]\nbackend = \"timescale\"\npurge_requires_bars = \"1m\"\n\
         [store.timescale]\nurl = \"{}\"\nschema = \"{schema}\"",
        server.url()
    );
    let guarded = Config::builder().toml(&toml).build().unwrap().open_store().await.unwrap();
    is_rejected(guarded.migrate_schema().await.unwrap_err());
    let remove = format!(
        "DELETE FROM _timescaledb_config.bgw_job WHERE hypertable_id = \
         (SELECT id FROM _timescaledb_catalog.hypertable WHERE schema_name = '{schema}' AND table_name = 'ticks')"
    );
    execute(&mut connection, remove.clone()).await.unwrap();
    guarded.migrate_schema().await.unwrap();
    assert_eq!(on.migrate_schema().await.unwrap().applied, ["materialized bars on"]);
    maintain_all(&on).await;
    execute(&mut connection, add).await.unwrap();
    for store in [&on, &off] {
        is_rejected(store.migrate_schema().await.unwrap_err());
        is_rejected(store.maintain(&MaintainRequest::default()).await.unwrap_err());
        store.ensure_schema().await.unwrap();
    }
    execute(&mut connection, remove).await.unwrap();
    drop_schema(server.direct_url(), &schema).await;
}

/// Waits until a session waits for a lock of a table.
async fn wait_for_waiter(connection: &mut PgConnection, table: &str) {
    let waiters = "SELECT count(*) FROM pg_locks WHERE relation = to_regclass($1) AND NOT granted";
    let waiting = async {
        loop {
            let waiters = sqlx::query_scalar::<_, i64>(waiters).bind(table);
            if waiters.fetch_one(&mut *connection).await.unwrap() > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("no session waits for the lock");
}

/// Reads the number of ticks of the first day, from its statistics or from its bar.
async fn count_of_day(store: TimescaleStore, reads_stats: bool) -> qi_core::Result<Option<u64>> {
    let day = TimeRange::new(tick(0, "1").ts(), tick(86_400, "1").ts())?;
    if reads_stats {
        let stats = store.stats(&StatsQuery::new(instrument(), day)).await?;
        return Ok(stats.map(|stats| stats.count()));
    }
    let page = store.derived_bars(&BarQuery::new(instrument(), Interval::D1, day)).await?;
    Ok(page.items.first().and_then(|bar| bar.values().count))
}

/// A read takes its snapshot, and a purge then drops the chunk before the read of its ticks. The bars of the first 23
/// hours are materialized, and the last hour is stale.
async fn purge_during_read(server: Server) {
    if !server.hypertables() {
        return;
    }
    let (store, schema) = open(&server).await;
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    for reads_stats in [false, true] {
        let ticks: Vec<_> = (0..24).map(|hour| tick(hour * 3_600, "1")).collect();
        store.insert_ticks(&ticks).await.unwrap();
        maintain_all(&store).await;
        store.insert_ticks(&[tick(23 * 3_600 + 1, "2")]).await.unwrap();
        let lock = format!("BEGIN; LOCK TABLE {schema}.qi_bars_1h IN ACCESS EXCLUSIVE MODE");
        execute(&mut connection, lock).await.unwrap();
        let reading = tokio::spawn(count_of_day(store.clone(), reads_stats));
        wait_for_waiter(&mut connection, &format!("{schema}.qi_bars_1h")).await;
        let cutoff = Timestamp::from_secs(BASE + 30 * 86_400).unwrap();
        store.purge_before(PriceTick::DATASET, cutoff).await.unwrap();
        execute(&mut connection, "COMMIT".to_owned()).await.unwrap();
        match reading.await.unwrap() {
            Ok(count) => assert!(matches!(count, None | Some(25)), "{count:?} of 25 ticks"),
            Err(error) => assert!(error.retry().is_retryable(), "{}", error.report()),
        }
        assert_eq!(highs(&store, Interval::D1).await, [""; 0]);
    }
    drop_schema(server.direct_url(), &schema).await;
}

/// Moves the rows of the chunks of ticks as a conversion to the columnstore does: later snapshots contain the copies, and
/// earlier snapshots contain neither the copies nor the removed rows.
async fn convert_chunks(connection: &mut PgConnection, chunks: &[ChunkInfo]) {
    for ChunkInfo { name, .. } in chunks {
        let sql = format!(
            "BEGIN; CREATE TEMP TABLE moved ON COMMIT DROP AS SELECT * FROM {name}; \
             TRUNCATE {name}; INSERT INTO {name} SELECT * FROM moved; COMMIT"
        );
        execute(connection, sql).await.unwrap();
    }
}

/// Gives the constraints of chunks a name that belongs to no slice, as `merge_chunks` does before version 2.28.
async fn rename_constraints(connection: &mut PgConnection, chunks: &[ChunkInfo]) {
    for ChunkInfo { name, .. } in chunks {
        let sql = format!(
            "UPDATE pg_constraint SET conname = 'constraint_0' \
             WHERE conrelid = '{name}'::regclass AND conname LIKE 'constraint%'"
        );
        assert_eq!(execute(connection, sql).await.unwrap(), 1);
    }
}

/// A read takes its snapshot, and the chunk is then converted before the read of its ticks.
async fn conversion_during_read(server: Server) {
    if !server.hypertables() {
        return;
    }
    let (store, schema) = open(&server).await;
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    let mut converter = PgConnection::connect(server.direct_url()).await.unwrap();
    let ticks: Vec<_> = (0..24).map(|hour| tick(hour * 3_600, "1")).collect();
    store.insert_ticks(&ticks).await.unwrap();
    let chunks = store.chunks(PriceTick::DATASET).await.unwrap();
    for (reads_stats, is_merged, expected) in [(false, false, 25_i64), (true, false, 26), (false, true, 27)] {
        if is_merged {
            rename_constraints(&mut connection, &chunks).await;
        }
        maintain_all(&store).await;
        store.insert_ticks(&[tick(23 * 3_600 + expected, "2")]).await.unwrap();
        let lock = format!("BEGIN; LOCK TABLE {schema}.qi_bars_1h IN ACCESS EXCLUSIVE MODE");
        execute(&mut connection, lock).await.unwrap();
        let reading = tokio::spawn(count_of_day(store.clone(), reads_stats));
        wait_for_waiter(&mut connection, &format!("{schema}.qi_bars_1h")).await;
        convert_chunks(&mut converter, &chunks).await;
        execute(&mut connection, "COMMIT".to_owned()).await.unwrap();
        match reading.await.unwrap() {
            Ok(count) => assert_eq!(count, Some(expected.cast_unsigned())),
            Err(error) => assert!(error.retry().is_retryable(), "{}", error.report()),
        }
        assert_eq!(highs(&store, Interval::D1).await, ["2"]);
    }
    drop_schema(server.direct_url(), &schema).await;
}

/// A step of maintenance takes its snapshot, and the chunk is then converted before the step reads its ticks.
async fn conversion_during_maintenance(server: Server) {
    if !server.hypertables() {
        return;
    }
    let (store, schema) = open(&server).await;
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    let mut converter = PgConnection::connect(server.direct_url()).await.unwrap();
    store.insert_ticks(&[tick(0, "1")]).await.unwrap();
    let chunks = store.chunks(PriceTick::DATASET).await.unwrap();
    // A step that moves the watermark, a rebuild of an hour of an instrument, and a rebuild of an hour of all instruments.
    // Each step waits for the lock of the table between its snapshot and its first read of ticks.
    for (table, marks, high) in [("instruments", 0, "1"), ("qi_bars_1m", 1, "2"), ("instruments", 1, "2")] {
        if table == "qi_bars_1m" {
            store.insert_ticks(&[tick(1, "2")]).await.unwrap();
        } else if marks > 0 {
            let mark =
                format!("SELECT {schema}.qi_mark_stale(to_timestamp({BASE}), to_timestamp({BASE} + 1))");
            execute(&mut connection, mark).await.unwrap();
        }
        let lock = format!("BEGIN; LOCK TABLE {schema}.{table} IN ACCESS EXCLUSIVE MODE");
        execute(&mut connection, lock).await.unwrap();
        let maintaining = tokio::spawn({
            let store = store.clone();
            async move { store.maintain(&MaintainRequest::default().with_until(Timestamp::MAX)).await }
        });
        wait_for_waiter(&mut connection, &format!("{schema}.{table}")).await;
        convert_chunks(&mut converter, &chunks).await;
        execute(&mut connection, "COMMIT".to_owned()).await.unwrap();
        let error = maintaining.await.unwrap().unwrap_err();
        assert_eq!(error.code(), "store.timescale.dropped_chunk", "{}", error.report());
        assert!(error.retry().is_retryable(), "{}", error.report());
        let count = AssertSqlSafe(format!("SELECT count(*) FROM {schema}.qi_bars_stale"));
        let count = sqlx::query_scalar::<_, i64>(count).fetch_one(&mut connection).await.unwrap();
        assert_eq!(count, marks, "{table}");
        assert_eq!(highs(&store, Interval::D1).await, [high]);
        maintain_all(&store).await;
        assert_eq!(highs(&store, Interval::D1).await, [high]);
    }
    drop_schema(server.direct_url(), &schema).await;
}

/// Materialized bars are switched on after a purge has borrowed its connection, and before it drops chunks.
async fn switched_purge(server: Server) {
    if !server.hypertables() {
        return;
    }
    let (store, schema) = open(&server).await;
    store.insert_ticks(&[tick(0, "1")]).await.unwrap();
    maintain_all(&store).await;
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    let switch = |from: &str, to: &str| format!("ALTER TABLE {schema}.{from} RENAME TO {to}");
    execute(&mut connection, switch("qi_bars_state", "parked")).await.unwrap();
    let begin = format!("BEGIN; LOCK TABLE {schema}.ticks IN SHARE ROW EXCLUSIVE MODE");
    execute(&mut connection, begin).await.unwrap();
    let purging = tokio::spawn({
        let store = store.clone();
        async move {
            store.purge_before(PriceTick::DATASET, Timestamp::from_secs(BASE + 30 * 86_400).unwrap()).await
        }
    });
    wait_for_waiter(&mut connection, &format!("{schema}.ticks")).await;
    execute(&mut connection, switch("parked", "qi_bars_state") + "; COMMIT").await.unwrap();
    // The chunk is dropped with a mark. The deletion of the remaining ticks has no marks, so it is rejected.
    assert_eq!(purging.await.unwrap().unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(highs(&store, Interval::M1).await, [""; 0]);
    drop_schema(server.direct_url(), &schema).await;
}

/// A manual `drop_chunks` adds no mark. `stats` reports the bar without ticks until its hours are marked by hand or by
/// maintenance.
async fn unmarked_drop(server: Server) {
    if !server.hypertables() {
        return;
    }
    let (store, schema) = open(&server).await;
    store.insert_ticks(&[tick(0, "1")]).await.unwrap();
    maintain_all(&store).await;
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    let drop =
        format!("SELECT drop_chunks('{schema}.ticks', older_than => to_timestamp({BASE} + 30 * 86400))");
    execute(&mut connection, drop.clone()).await.unwrap();
    let day = TimeRange::new(tick(0, "1").ts(), tick(86_400, "1").ts()).unwrap();
    let query = StatsQuery::new(instrument(), day);
    let error = store.stats(&query).await.unwrap_err();
    assert_eq!(error.code(), "store.timescale.bar_without_ticks", "{}", error.report());
    assert!(!error.retry().is_retryable(), "{}", error.report());
    let mark = format!("SELECT {schema}.qi_mark_stale(to_timestamp({BASE}), to_timestamp({BASE} + 3600))");
    execute(&mut connection, mark).await.unwrap();
    assert!(store.stats(&query).await.unwrap().is_none());
    store.insert_ticks(&[tick(0, "1"), tick(60 * 86_400, "3")]).await.unwrap();
    maintain_all(&store).await;
    execute(&mut connection, drop).await.unwrap();
    let report = store.maintain(&MaintainRequest::default()).await.unwrap();
    assert!(report.stale == 1 && !report.is_complete(), "{report:?}");
    assert_eq!(highs(&store, Interval::M1).await, ["3"]);
    maintain_all(&store).await;
    assert_eq!(highs(&store, Interval::M1).await, ["3"]);
    drop_schema(server.direct_url(), &schema).await;
}

async fn isolation(server: Server) {
    let parameter = if server.url().contains('?') { "&" } else { "?" };
    let url = format!("{}{parameter}options[default_transaction_isolation]=serializable", server.url());
    let (store, schema) = open(&server.clone().with_address(url)).await;
    let shown = sqlx::query_scalar::<_, String>("SHOW transaction_isolation");
    assert_eq!(shown.fetch_one(store.pool()).await.unwrap(), "read committed");
    drop_schema(server.direct_url(), &schema).await;
}

/// Days are rebuilt in a session with daylight saving time, at both of its changes.
async fn time_zone(server: Server) {
    const DAY: i64 = 86_400;
    let schema = servers::namespace();
    let mut config = server.config(&schema);
    config.pool.max_connections = 1;
    let store = TimescaleStore::open(config).unwrap();
    store.ensure_schema().await.unwrap();
    sqlx::raw_sql("SET TIME ZONE 'Europe/Berlin'").execute(store.pool()).await.unwrap();
    // 2023-10-29 has 25 hours in Berlin, and 2024-03-31 has 23.
    let changes = [-15 * DAY, 139 * DAY];
    let hours = changes.iter().flat_map(|day| (-24..96).map(move |hour| tick(day + hour * 3_600, "1")));
    store.insert_ticks(&hours.collect::<Vec<_>>()).await.unwrap();
    maintain_all(&store).await;
    // One step rebuilds the day of the change and the day after the next.
    let late = changes.iter().flat_map(|day| [tick(day + 1, "2"), tick(day + 2 * DAY + 1, "2")]);
    store.insert_ticks(&late.collect::<Vec<_>>()).await.unwrap();
    maintain_all(&store).await;
    let page = store.derived_bars(&BarQuery::new(instrument(), Interval::D1, TimeRange::ALL)).await.unwrap();
    let counts: Vec<_> = page.items.iter().map(|bar| bar.values().count.unwrap()).collect();
    assert_eq!(counts, [24, 25, 24, 25, 24, 24, 25, 24, 25, 24]);
    let zone = sqlx::query_scalar::<_, String>("SHOW TIME ZONE").fetch_one(store.pool()).await.unwrap();
    assert_eq!(zone, "Europe/Berlin");
    drop_schema(server.direct_url(), &schema).await;
}

/// The number of marks of a purge does not depend on the instruments and hours.
async fn purge_marks(server: Server) {
    let (store, schema) = open(&server).await;
    let of_hour = |hour: i64| {
        ["x:Y", "x:Z"].map(|name| {
            let ts = Timestamp::from_secs(BASE + hour * 3_600).unwrap();
            PriceTick::new(Instrument::from_static(name), ts, 0, "1".parse().unwrap()).unwrap()
        })
    };
    store.insert_ticks(&(0..30).flat_map(of_hour).collect::<Vec<_>>()).await.unwrap();
    maintain_all(&store).await;
    store.purge_before(PriceTick::DATASET, Timestamp::from_secs(BASE + 20 * 3_600).unwrap()).await.unwrap();
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    let marks = AssertSqlSafe(format!("SELECT count(*), max(instrument_id) FROM {schema}.qi_bars_stale"));
    let (count, id): (i64, i32) = sqlx::query_as(marks).fetch_one(&mut connection).await.unwrap();
    assert!(count <= 2 && id == 0, "{count} marks, of instruments up to {id}");
    for maintained in [false, true] {
        assert_eq!(highs(&store, Interval::H1).await.len(), 10, "maintained: {maintained}");
        maintain_all(&store).await;
    }
    drop_schema(server.direct_url(), &schema).await;
}

/// The conversion of docs/backends/timescale.md inserts the ticks again, without marks.
async fn to_hypertables(server: Server) {
    if !server.hypertables() {
        return;
    }
    let schema = servers::namespace();
    let on = server.config(&schema);
    let mut off = on.clone();
    off.hypertables = Hypertables::Off;
    let plain = TimescaleStore::open(off.clone()).unwrap();
    plain.ensure_schema().await.unwrap();
    plain.insert_ticks(&[tick(0, "1"), tick(90_000, "3")]).await.unwrap();
    maintain_all(&plain).await;
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    let convert = format!(
        "SELECT create_hypertable('{schema}.ticks', by_range('ts', INTERVAL '7 days'), \
         create_default_indexes => false, migrate_data => true)"
    );
    let error = execute(&mut connection, convert.clone()).await.unwrap_err();
    assert!(error.to_string().contains("materialized bars"), "{error}");
    off.materialized_bars = Some(false);
    TimescaleStore::open(off).unwrap().migrate_schema().await.unwrap();
    execute(&mut connection, convert).await.unwrap();
    let store = TimescaleStore::open(on).unwrap();
    store.migrate_schema().await.unwrap();
    maintain_all(&store).await;
    assert_eq!(highs(&store, Interval::H1).await, ["1", "3"]);
    drop_schema(server.direct_url(), &schema).await;
}

async fn failing_rebuild(server: Server) {
    let (store, schema) = open(&server).await;
    store.insert_ticks(&[tick(0, "1")]).await.unwrap();
    let two_hours = MaintainRequest::default().with_until(tick(7_200, "1").ts());
    assert!(store.maintain(&two_hours).await.unwrap().is_complete());
    store.insert_ticks(&[tick(1, "2"), tick(90_000, "3")]).await.unwrap();
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    let fail = format!(
        "CREATE FUNCTION {schema}.fail() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE EXCEPTION 'no rebuild'; END $$; \
         CREATE TRIGGER fail BEFORE DELETE ON {schema}.qi_bars_1h \
         FOR EACH STATEMENT EXECUTE FUNCTION {schema}.fail()"
    );
    execute(&mut connection, fail).await.unwrap();
    let everything = MaintainRequest::default().with_until(Timestamp::MAX);
    let error = store.maintain(&everything).await.unwrap_err();
    assert!(error.report().contains("no rebuild"), "{}", error.report());
    let moved = AssertSqlSafe(format!("SELECT watermark = announced FROM {schema}.qi_bars_state"));
    assert!(sqlx::query_scalar::<_, bool>(moved).fetch_one(&mut connection).await.unwrap());
    assert_eq!(highs(&store, Interval::H1).await, ["2", "3"]);
    execute(&mut connection, format!("DROP TRIGGER fail ON {schema}.qi_bars_1h")).await.unwrap();
    maintain_all(&store).await;
    assert_eq!(highs(&store, Interval::D1).await, ["2", "3"]);
    drop_schema(server.direct_url(), &schema).await;
}

/// Two stale hours have more ticks than one step rebuilds.
async fn many_late_ticks(server: Server) {
    if !runs_long_tests() {
        return;
    }
    let (store, schema) = open(&server).await;
    store.insert_ticks(&[tick(0, "1"), tick(3_600, "1")]).await.unwrap();
    maintain_all(&store).await;
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    let hours = format!("generate_series({BASE}, {BASE} + 3600, 3600) h");
    let marks = format!(
        "INSERT INTO {schema}.qi_bars_stale SELECT 1, to_timestamp(h), to_timestamp(h + 3600) FROM {hours}"
    );
    execute(&mut connection, marks).await.unwrap();
    let ticks = format!(
        "/*qi:series*/ /*qi:bars*/ INSERT INTO {schema}.ticks (instrument_id, ts, seq, price) \
         SELECT 1, to_timestamp(h) + n * interval '1 millisecond', 1, 1 \
         FROM {hours}, generate_series(1, 1200000) n"
    );
    execute(&mut connection, ticks).await.unwrap();
    let one_step = MaintainRequest::default().with_until(Timestamp::MAX).with_budget(Duration::ZERO);
    let report = store.maintain(&one_step).await.unwrap();
    assert_eq!((report.rebuilt, report.stale), (1, 1));
    maintain_all(&store).await;
    assert_eq!(count_of_day(store, false).await.unwrap(), Some(2_400_002));
    drop_schema(server.direct_url(), &schema).await;
}

/// A step of another maintainer takes longer than `lock_timeout`.
async fn second_maintainer(server: Server) {
    let schema = servers::namespace();
    let mut config = server.config(&schema);
    config.server_limits.lock_timeout = Duration::from_millis(100);
    let store = TimescaleStore::open(config).unwrap();
    store.ensure_schema().await.unwrap();
    store.insert_ticks(&[tick(0, "1")]).await.unwrap();
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    let lock = format!("BEGIN; LOCK TABLE {schema}.qi_bars_state IN SHARE UPDATE EXCLUSIVE MODE");
    execute(&mut connection, lock).await.unwrap();
    let maintaining = tokio::spawn(async move { maintain_all(&store).await });
    wait_for_waiter(&mut connection, &format!("{schema}.qi_bars_state")).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    execute(&mut connection, "COMMIT".to_owned()).await.unwrap();
    maintaining.await.unwrap();
    drop_schema(server.direct_url(), &schema).await;
}

/// The count of the marks takes longer than `statement_timeout`.
async fn slow_count(server: Server) {
    let schema = servers::namespace();
    let mut config = server.config(&schema);
    config.server_limits.statement_timeout = Duration::from_secs(1);
    let store = TimescaleStore::open(config).unwrap();
    store.ensure_schema().await.unwrap();
    store.insert_ticks(&[tick(0, "1")]).await.unwrap();
    let two_hours = MaintainRequest::default().with_until(tick(7_200, "1").ts());
    assert!(store.maintain(&two_hours).await.unwrap().is_complete());
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    // The mark is not before the watermark, so it is not rebuilt.
    let slow = format!(
        "SELECT {schema}.qi_mark_stale(to_timestamp({BASE} + 86400), to_timestamp({BASE} + 90000)); \
         ALTER TABLE {schema}.qi_bars_state RENAME TO parked; \
         CREATE VIEW {schema}.qi_bars_state AS \
         SELECT p.* FROM {schema}.parked p, (SELECT pg_sleep(1.5) OFFSET 0) s"
    );
    execute(&mut connection, slow).await.unwrap();
    assert!(store.maintain(&two_hours).await.unwrap().is_complete());
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

/// Returns a store whose purges drop chunks, in a new schema.
async fn open_with_short_chunks(server: &Server) -> (TimescaleStore, String) {
    let schema = servers::namespace();
    let mut config = server.config(&schema);
    config.chunks.set("ticks", Duration::from_hours(12));
    let store = TimescaleStore::open(config).unwrap();
    store.ensure_schema().await.unwrap();
    (store, schema)
}

fn plan(histories: u64) -> Plan {
    let reads = Reads::Snapshot;
    Plan { histories, at_once: 4, seed: seed(), reads, drops: None, pause: Duration::ZERO }
}

async fn concurrent(server: Server) {
    let (store, schema) = open_with_short_chunks(&server).await;
    let mut connection = PgConnection::connect(server.direct_url()).await.unwrap();
    let name = schema.clone();
    // Ends the session of a maintainer or a writer, as if its process had died.
    let kill = |kills: Arc<AtomicU64>| async move {
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM (SELECT DISTINCT pid FROM pg_locks \
             WHERE relation IN ('{name}.qi_bars_state'::regclass, '{name}.qi_bars_stale'::regclass) \
             AND pid <> pg_backend_pid()) x WHERE random() < 0.2"
        );
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let ended = sqlx::query(AssertSqlSafe(sql.clone())).fetch_all(&mut connection).await.unwrap();
            kills.fetch_add(ended.len() as u64, Ordering::Relaxed);
        }
    };
    bars_rig::run(Arc::new(store), plan(if runs_long_tests() { 2_000 } else { 60 }), kill).await;
    drop_schema(server.direct_url(), &schema).await;
}

async fn killed(server: Server, spare: Spare) {
    let (store, _) = open_with_short_chunks(&server).await;
    let kill = |kills: Arc<AtomicU64>| async move {
        let mut spare = spare;
        loop {
            tokio::time::sleep(Duration::from_secs(3)).await;
            spare = spare.run_action("kill").await;
            kills.fetch_add(1, Ordering::Relaxed);
            spare = spare.run_action("start").await;
        }
    };
    bars_rig::run(Arc::new(store), plan(if runs_long_tests() { 400 } else { 24 }), kill).await;
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
