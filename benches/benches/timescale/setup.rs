//! The server, and schemas on it for one measurement.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use qi_adapters::config::Hypertables;
use qi_adapters::timescale::{TimescaleConfig, TimescaleStore};
use qi_benches::Ratio;
use qi_core::store::{PriceStore, PriceStoreExt as _};
use qi_core::{PriceTick, Timestamp};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::runtime::Runtime;

use crate::ticks::Market;

pub(crate) struct Setup {
    pub(crate) market: Market,
    pub(crate) rounds: usize,
    pub(crate) url: String,
    hypertables: Hypertables,
    /// A folder for files of rows.
    pub(crate) folder: tempfile::TempDir,
    runtime: Runtime,
    psql: PathBuf,
}

impl Setup {
    /// Returns None if no server is named.
    pub(crate) fn new(rounds: usize) -> Option<Self> {
        Self::on("QI_TIMESCALE_URL", Hypertables::On, rounds)
    }

    /// Returns a rig on the plain PostgreSQL server, if the environment names one.
    pub(crate) fn postgres(&self) -> Option<Self> {
        Self::on("QI_POSTGRES_URL", Hypertables::Off, self.rounds)
    }

    fn on(variable: &str, hypertables: Hypertables, rounds: usize) -> Option<Self> {
        let url = std::env::var(variable).ok().filter(|url| !url.is_empty())?;
        Some(Self {
            market: Market::new(),
            rounds,
            url,
            hypertables,
            folder: tempfile::tempdir().expect("a temporary folder"),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"),
            psql: find_psql(),
        })
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Returns the versions of the server.
    pub(crate) fn server(&self) -> String {
        self.block_on(async {
            let store = self.open("public", |_| ());
            store.ping().await.expect("a server that answers");
            let info = store.info();
            format!("{} {}", info.version.unwrap_or_default(), info.edition.unwrap_or_default())
        })
    }

    fn open(&self, schema: &str, change: impl FnOnce(&mut TimescaleConfig)) -> TimescaleStore {
        let mut config = TimescaleConfig::from_url(&self.url);
        schema.clone_into(&mut config.schema);
        config.hypertables = self.hypertables;
        change(&mut config);
        TimescaleStore::open(config).expect("a valid configuration")
    }

    /// Returns a store with its tables in a new schema.
    pub(crate) fn create(&self, change: impl FnOnce(&mut TimescaleConfig)) -> TargetStore<'_> {
        let schema = qi_benches::unique();
        let store = self.block_on(async {
            let store = self.open(&schema, change);
            store.ensure_schema().await.expect("a schema");
            store
        });
        TargetStore { setup: self, store, schema }
    }

    /// Runs statements on a new connection.
    pub(crate) fn sql(&self, statements: &str) {
        self.block_on(async {
            let mut connection = PgConnection::connect(&self.url).await.expect("a connection");
            let run = sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(&mut connection).await;
            run.unwrap_or_else(|error| panic!("{statements}: {error}"));
            connection.close().await.expect("a connection that closes");
        });
    }

    /// Writes the server's dirty pages to disk, so that the next side does not pay for them.
    pub(crate) fn checkpoint(&self) {
        self.sql("CHECKPOINT");
    }

    /// Runs psql with commands, all in one session.
    pub(crate) fn psql(&self, commands: &[&str]) {
        let mut psql = Command::new(&self.psql);
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", &self.url]);
        for command in commands {
            psql.args(["-c", command]);
        }
        let status = psql.status().expect("psql runs");
        assert!(status.success(), "psql failed: {commands:?}");
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Prefers the program itself to Debian's wrapper script, which is slower.
fn find_psql() -> PathBuf {
    let versions = (13..=18).rev().map(|n| PathBuf::from(format!("/usr/lib/postgresql/{n}/bin/psql")));
    versions.into_iter().find(|path| path.exists()).unwrap_or_else(|| Path::new("psql").to_owned())
}

/// A store and its schema, which is removed when the value is dropped.
pub(crate) struct TargetStore<'a> {
    setup: &'a Setup,
    pub(crate) store: TimescaleStore,
    pub(crate) schema: String,
}

impl TargetStore<'_> {
    /// Inserts ticks in batches of this size.
    pub(crate) fn insert(&self, ticks: &[PriceTick], batch: usize) {
        self.setup.block_on(async {
            for part in ticks.chunks(batch) {
                self.store.insert_ticks(part).await.expect("a write");
            }
        });
    }

    /// Inserts the ticks of these numbers, which are generated batch by batch.
    pub(crate) fn fill(&self, numbers: std::ops::Range<usize>) {
        const BATCH: usize = 200_000;
        for start in numbers.clone().step_by(BATCH) {
            let part = self.setup.market.ticks(start..numbers.end.min(start + BATCH));
            self.insert(&part, BATCH);
        }
    }

    /// Returns the number of ticks.
    pub(crate) fn count(&self) -> i64 {
        self.scalar("SELECT count(*) FROM ticks")
    }

    /// Returns the bytes of the table of ticks with its index.
    pub(crate) fn bytes(&self) -> i64 {
        self.scalar(&format!("SELECT public.hypertable_size('{}.ticks')", self.schema))
    }

    pub(crate) fn scalar(&self, sql: &str) -> i64 {
        let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
        self.setup.block_on(query.fetch_one(self.store.pool())).expect("a number")
    }

    pub(crate) fn id_of(&self, symbol: &str) -> i32 {
        let query = sqlx::query_scalar("SELECT id FROM instruments WHERE symbol = $1").bind(symbol);
        self.setup.block_on(query.fetch_one(self.store.pool())).expect("an instrument")
    }

    /// Updates the statistics, and prevents later background work.
    pub(crate) fn compact(&self) {
        self.setup.sql(&format!("VACUUM (ANALYZE) {}.ticks", self.schema));
        self.setup.checkpoint();
    }
}

impl Drop for TargetStore<'_> {
    fn drop(&mut self) {
        self.setup.block_on(async {
            // The chunks are dropped first, some at a time, because one DROP of a thousand chunks needs more locks than
            // a server has.
            let purged = self.store.purge_before(PriceTick::DATASET, Timestamp::MAX).await;
            let closed = self.store.close().await;
            if let Err(error) = purged.and(closed) {
                eprintln!("{}: {error}", self.schema);
            }
        });
        self.setup.sql(&format!("DROP SCHEMA {} CASCADE", self.schema));
    }
}

/// Prints the ratio of our rate to the baseline's rate. Both sides were timed for `rows` rows.
pub(crate) fn print_rates(what: &str, goal: &str, rows: usize, times: &Ratio) {
    let rate = |time: Duration| rows as f64 / time.as_secs_f64();
    println!(
        "{what} ({goal}): {:.2} times its rate (ours {:.0} rows/s, baseline {:.0} rows/s, {} rounds, middle half {:.2} to {:.2})",
        1.0 / times.median,
        rate(times.ours),
        rate(times.baseline),
        times.rounds,
        1.0 / times.quartiles.1,
        1.0 / times.quartiles.0,
    );
}
