//! Migrations on real servers: their locks, their transactions, and the settings that only `migrate_schema` changes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod servers;
mod timescale_rig;

use std::time::Duration;

use libtest_mimic::Arguments;
use qi_adapters::timescale::{TimescaleConfig, TimescaleStore};
use qi_core::record::Text;
use qi_core::{Datasets, Decimal, ErrorKind, PriceStore, PriceStoreExt, PriceTick, Record, Timestamp};
use servers::{namespace, trial};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use timescale_rig::{Server, drop_schema};

fn main() {
    let mut trials = Vec::new();
    for server in [Server::timescale(), Server::postgres()] {
        trials.push(trial(&server, "a_waiting_change_delays_readers_by_the_lock_timeout", readers));
        trials.push(trial(&server, "a_change_succeeds_when_the_lock_is_released", released));
        trials.push(trial(&server, "an_interrupted_migration_continues_at_its_next_step", interrupted));
        trials.push(trial(&server, "a_held_schema_lock_ends_with_a_retryable_error", schema_lock));
        trials.push(trial(&server, "constraints_are_added_to_the_tables_of_older_versions", constraints));
        trials.push(trial(&server, "an_invalid_index_is_built_again", invalid_index));
    }
    trials.push(trial(&Server::postgres(), "index_is_built_while_writers_run", concurrent_index));
    trials.push(trial(
        &Server::timescale(),
        "only_migrate_changes_the_chunk_interval_of_an_existing_table",
        intervals,
    ));
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

/// A dataset, and its next version with one more column.
macro_rules! evolving {
    ($name:literal $first:ident $second:ident) => {
        #[derive(Debug, Clone, PartialEq, Record)]
        #[record(name = $name)]
        struct $first {
            #[series]
            process: Text<32>,
            #[time]
            ts: Timestamp,
            rate: Decimal,
        }
        #[derive(Debug, Clone, PartialEq, Record)]
        #[record(name = $name)]
        struct $second {
            #[series]
            process: Text<32>,
            #[time]
            ts: Timestamp,
            rate: Decimal,
            mark: Option<Decimal>,
        }
    };
}
evolving!("funding" Funding GrownFunding);
evolving!("premium" Premium GrownPremium);

fn first_version() -> Datasets {
    Datasets::standard().with::<Funding>().unwrap().with::<Premium>().unwrap()
}

fn second_version() -> Datasets {
    Datasets::standard().with::<GrownFunding>().unwrap().with::<GrownPremium>().unwrap()
}

fn funding(secs: u64) -> Funding {
    let ts = Timestamp::from_secs(1_700_000_000).unwrap().checked_add(Duration::from_secs(secs)).unwrap();
    Funding { process: "p".parse().unwrap(), ts, rate: "1".parse().unwrap() }
}

/// The state of a trial: a schema of the first version with a record, and a connection of the rig.
struct Rig {
    config: TimescaleConfig,
    first: TimescaleStore,
    direct: PgConnection,
    url: String,
}

impl Rig {
    async fn new(server: &Server) -> Self {
        let mut config = server.config(&namespace()).with_datasets(first_version());
        config.server_limits.schema_lock_timeout = Duration::from_millis(200);
        let first = TimescaleStore::open(config.clone()).unwrap();
        first.ensure_schema().await.unwrap();
        first.insert_records(&[funding(0)]).await.unwrap();
        let direct = PgConnection::connect(server.url()).await.unwrap();
        Self { config, first, direct, url: server.url().to_owned() }
    }

    fn second(&self) -> TimescaleStore {
        TimescaleStore::open(self.config.clone().with_datasets(second_version())).unwrap()
    }

    /// Begins a transaction that reads a table, and returns its connection.
    async fn lock(&self, table: &str) -> PgConnection {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        for sql in ["BEGIN".to_owned(), format!("SELECT FROM {}.{table}", self.config.schema)] {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        }
        connection
    }

    /// Waits until a session waits for a lock of the schema's tables.
    async fn wait_for_waiter(&mut self) {
        let waiters = "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation \
                       WHERE NOT l.granted AND c.relnamespace = to_regnamespace($1)";
        loop {
            let count: i64 = sqlx::query_scalar(waiters)
                .bind(&self.config.schema)
                .fetch_one(&mut self.direct)
                .await
                .unwrap();
            if count > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn has_mark(&mut self, table: &str) -> bool {
        let sql = "SELECT EXISTS (SELECT FROM information_schema.columns \
                   WHERE table_schema = $1 AND table_name = $2 AND column_name = 'mark')";
        sqlx::query_scalar(sql)
            .bind(&self.config.schema)
            .bind(table)
            .fetch_one(&mut self.direct)
            .await
            .unwrap()
    }

    async fn clean_up(self) {
        self.first.close().await.unwrap();
        self.direct.close().await.unwrap();
        drop_schema(&self.url, &self.config.schema).await;
    }
}

/// The lock is never released. Readers that queue behind the change are served, and the change gives up.
async fn readers(server: Server) {
    let mut rig = Rig::new(&server).await;
    let held = rig.lock("funding").await;
    let second = rig.second();
    let changing = tokio::spawn(async move { second.ensure_schema().await });
    for _ in 0..3 {
        rig.wait_for_waiter().await;
        let found = rig.first.series(&qi_core::store::SeriesRequest::new(Funding::DATASET)).await.unwrap();
        assert_eq!(found.items.len(), 1);
    }
    let error = changing.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Timeout, "store.timescale.lock_timeout"));
    assert!(error.retry().is_retryable());
    assert!(error.to_string().contains("in 10 attempts; end the sessions"), "{error}");
    assert!(!rig.has_mark("funding").await);
    held.close().await.unwrap();
    rig.clean_up().await;
}

async fn released(server: Server) {
    let mut rig = Rig::new(&server).await;
    let held = rig.lock("funding").await;
    let second = rig.second();
    let changing = tokio::spawn(async move { second.ensure_schema().await });
    rig.wait_for_waiter().await;
    held.close().await.unwrap();
    assert_eq!(changing.await.unwrap().unwrap().applied, ["column funding.mark", "column premium.mark"]);
    assert!(rig.has_mark("funding").await);
    rig.clean_up().await;
}

/// The first step is committed before the second waits for its lock.
async fn interrupted(server: Server) {
    let mut rig = Rig::new(&server).await;
    let held = rig.lock("premium").await;
    let second = rig.second();
    let killed = tokio::spawn(async move { second.ensure_schema().await });
    rig.wait_for_waiter().await;
    assert!(rig.has_mark("funding").await && !rig.has_mark("premium").await);
    killed.abort();
    assert!(killed.await.unwrap_err().is_cancelled());
    held.close().await.unwrap();
    // Two concurrent migrations share the rest of the work.
    let (one, other) = (rig.second(), rig.second());
    let (one, other) = tokio::join!(one.ensure_schema(), other.ensure_schema());
    let applied = [one.unwrap().applied, other.unwrap().applied].concat();
    assert_eq!(applied, ["column premium.mark"]);
    assert!(rig.second().plan_schema().await.unwrap().is_empty());
    rig.clean_up().await;
}

/// Another process holds the advisory lock of the schema for longer than the bulk timeout.
async fn schema_lock(server: Server) {
    let mut rig = Rig::new(&server).await;
    sqlx::raw_sql("SELECT pg_advisory_lock(8172167948034139501)").execute(&mut rig.direct).await.unwrap();
    let mut config = rig.config.clone().with_datasets(second_version());
    config.server_limits.bulk_timeout = Duration::from_millis(300);
    let error = TimescaleStore::open(config).unwrap().ensure_schema().await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Timeout, "store.timescale.schema_locked"));
    assert!(error.retry().is_retryable());
    rig.clean_up().await;
}

/// Removes what the tables of older versions lack.
async fn make_older(rig: &mut Rig) {
    let sql = "ALTER TABLE ticks DROP CONSTRAINT ticks_side; ALTER TABLE quotes DROP CONSTRAINT quotes_price; \
               ALTER TABLE bars DROP CONSTRAINT bars_prices; DROP INDEX IF EXISTS ticks_time; \
               DROP INDEX IF EXISTS quotes_time";
    let sql = format!("SET search_path = {}; {sql}", rig.config.schema);
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut rig.direct).await.unwrap();
}

async fn constraints(server: Server) {
    let mut rig = Rig::new(&server).await;
    rig.config.time_index = Some(Vec::new());
    let names = ["ticks_side", "quotes_price", "bars_prices"];
    for older in [false, true] {
        if older {
            make_older(&mut rig).await;
            let store = TimescaleStore::open(rig.config.clone()).unwrap();
            store.insert_ticks(&[tick(0)]).await.unwrap();
            let expected: Vec<_> = names
                .iter()
                .flat_map(|name| [format!("constraint {name}"), format!("validation of constraint {name}")])
                .collect();
            assert!(store.ensure_schema().await.unwrap().applied.is_empty());
            assert_eq!(store.migrate_schema().await.unwrap().applied, expected);
            assert!(store.plan_schema().await.unwrap().is_empty());
        }
        for row in [
            "ticks (instrument_id, ts, seq, price, side) VALUES (1, now(), 1, 1, 3)",
            "quotes (instrument_id, ts, seq) VALUES (1, now(), 1)",
            "bars VALUES (1, '1h', now(), 1, 2, 3, 1)",
            "bars VALUES (1, '1h', now(), 4, 3, 2, 2)",
        ] {
            let insert = format!("INSERT INTO {}.{row}", rig.config.schema);
            let error = sqlx::raw_sql(AssertSqlSafe(insert)).execute(&mut rig.direct).await.unwrap_err();
            assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("23514"), "{error}");
        }
    }
    // A row that violates the condition ends the migration with an error, and stays.
    make_older(&mut rig).await;
    let row = format!(
        "INSERT INTO {}.ticks (instrument_id, ts, seq, price, side) VALUES (1, now(), 1, 1, 3)",
        rig.config.schema
    );
    sqlx::raw_sql(AssertSqlSafe(row)).execute(&mut rig.direct).await.unwrap();
    let error = rig.first.migrate_schema().await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "store.timescale.check"));
    rig.clean_up().await;
}

async fn invalid_index(server: Server) {
    let mut rig = Rig::new(&server).await;
    make_older(&mut rig).await;
    rig.config.time_index = Some(vec!["ticks".to_owned()]);
    let store = TimescaleStore::open(rig.config.clone()).unwrap();
    let ticks: Vec<_> = (0..20).map(|day| tick(day * 86_400)).collect();
    store.insert_ticks(&ticks).await.unwrap();
    let is_valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)";
    let name = format!("{}.ticks_time", rig.config.schema);
    for _ in 0..2 {
        let applied = store.migrate_schema().await.unwrap().applied;
        assert_eq!(applied.last().unwrap(), "index ticks_time");
        assert!(store.migrate_schema().await.unwrap().applied.is_empty());
        let valid: bool = sqlx::query_scalar(is_valid).bind(&name).fetch_one(&mut rig.direct).await.unwrap();
        assert!(valid);
        // An interrupted build leaves an invalid index.
        sqlx::query("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass($1)")
            .bind(&name)
            .execute(&mut rig.direct)
            .await
            .unwrap();
    }
    // Two migrations build the index once.
    let other = TimescaleStore::open(rig.config.clone()).unwrap();
    let (one, other) = tokio::join!(store.migrate_schema(), other.migrate_schema());
    assert_eq!([one.unwrap().applied, other.unwrap().applied].concat(), ["index ticks_time"]);
    assert_eq!(store.latest_tick(ticks[0].instrument()).await.unwrap().as_ref(), ticks.last());
    rig.clean_up().await;
}

/// The build waits for an older transaction. Meanwhile records are written and `ensure_schema` succeeds.
async fn concurrent_index(server: Server) {
    let mut rig = Rig::new(&server).await;
    let index = format!("DROP INDEX {}.ticks_time", rig.config.schema);
    sqlx::raw_sql(AssertSqlSafe(index)).execute(&mut rig.direct).await.unwrap();
    let mut old = PgConnection::connect(&rig.url).await.unwrap();
    let write = format!(
        "BEGIN; INSERT INTO {}.ticks (instrument_id, ts, seq, price) VALUES (7, now(), 1, 1)",
        rig.config.schema
    );
    sqlx::raw_sql(AssertSqlSafe(write)).execute(&mut old).await.unwrap();
    let store = rig.first.clone();
    let migrating = tokio::spawn(async move { store.migrate_schema().await });
    let building = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND wait_event_type = 'Lock' \
                    AND query LIKE 'CREATE INDEX CONCURRENTLY%' || $1 || '%'";
    while sqlx::query_scalar::<_, i64>(building)
        .bind(&rig.config.schema)
        .fetch_one(&mut rig.direct)
        .await
        .unwrap()
        == 0
    {
        assert!(!migrating.is_finished(), "the build waits");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.first.insert_ticks(&[tick(0)]).await.unwrap();
    let report = rig.first.ensure_schema().await.unwrap();
    assert_eq!((report.applied, report.differs), (Vec::new(), vec!["index ticks_time".to_owned()]));
    assert!(!migrating.is_finished());
    sqlx::raw_sql("COMMIT").execute(&mut old).await.unwrap();
    // The old writer does not maintain the series catalog.
    let applied = migrating.await.unwrap().unwrap().applied;
    assert_eq!(applied, ["index ticks_time", "series catalog of ticks completed"]);
    old.close().await.unwrap();
    rig.clean_up().await;
}

/// Two versions of a service have different chunk intervals.
async fn intervals(server: Server) {
    let rig = Rig::new(&server).await;
    let interval = || async {
        let mut connection = PgConnection::connect(&rig.url).await.unwrap();
        let hours: i64 = sqlx::query_scalar(
            "SELECT (extract(epoch FROM time_interval) / 3600)::bigint FROM timescaledb_information.dimensions \
             WHERE hypertable_schema = $1 AND hypertable_name = 'ticks'",
        )
        .bind(&rig.config.schema)
        .fetch_one(&mut connection)
        .await
        .unwrap();
        connection.close().await.unwrap();
        hours
    };
    assert_eq!(interval().await, 7 * 24);
    let mut config = rig.config.clone();
    config.chunks.set(PriceTick::DATASET.name(), Duration::from_hours(24));
    let other = TimescaleStore::open(config).unwrap();
    for _ in 0..2 {
        let report = other.ensure_schema().await.unwrap();
        assert!(report.applied.is_empty());
        assert_eq!(report.differs, ["chunk interval of ticks"]);
        assert_eq!(interval().await, 7 * 24, "a service changes nothing");
        assert!(rig.first.ensure_schema().await.unwrap().differs.is_empty());
    }
    assert_eq!(other.plan_schema().await.unwrap().len(), 1);
    // A version with another interval than the server's reads and writes all records.
    let ticks: Vec<_> = (0..20).map(|day| tick(day * 86_400)).collect();
    other.insert_ticks(&ticks).await.unwrap();
    other.insert_ticks(&ticks).await.unwrap();
    let found = rig.first.latest_tick(ticks[0].instrument()).await.unwrap();
    assert_eq!(found.as_ref(), ticks.last());

    assert_eq!(other.migrate_schema().await.unwrap().applied, ["chunk interval of ticks"]);
    assert_eq!(interval().await, 24);
    assert!(other.plan_schema().await.unwrap().is_empty());
    assert_eq!(rig.first.ensure_schema().await.unwrap().differs, ["chunk interval of ticks"]);
    assert_eq!(interval().await, 24, "the older version does not change the interval back");
    other.close().await.unwrap();
    rig.clean_up().await;
}

fn tick(secs: u64) -> PriceTick {
    let ts = Timestamp::from_secs(1_700_000_000).unwrap().checked_add(Duration::from_secs(secs)).unwrap();
    PriceTick::new("x:A".parse().unwrap(), ts, 1, "1".parse().unwrap()).unwrap()
}
