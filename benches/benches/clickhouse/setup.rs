//! The servers, and tables on them for one measurement.

use std::future::Future;

use qi_adapters::clickhouse::{ClickHouseConfig, ClickHouseStore};
use qi_adapters::timescale::{TimescaleConfig, TimescaleStore};
use qi_core::store::{PriceStore, PriceStoreExt as _};
use qi_core::{PriceTick, Timestamp};
use tokio::runtime::Runtime;

use crate::ticks::Market;

pub(crate) struct Setup {
    pub(crate) market: Market,
    pub(crate) rounds: usize,
    pub(crate) url: String,
    timescale: Option<String>,
    runtime: Runtime,
}

impl Setup {
    /// Returns None if no server is named.
    pub(crate) fn new(rounds: usize) -> Option<Self> {
        let named = |variable| std::env::var(variable).ok().filter(|url| !url.is_empty());
        Some(Self {
            market: Market::new(),
            rounds,
            url: named("QI_CLICKHOUSE_URL")?,
            timescale: named("QI_TIMESCALE_URL"),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"),
        })
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Returns the version of the server.
    pub(crate) fn server(&self) -> String {
        let store =
            ClickHouseStore::open(ClickHouseConfig::from_url(&self.url)).expect("a valid configuration");
        self.block_on(store.ping()).expect("a server that answers").version.unwrap_or_default()
    }

    /// Returns a ClickHouse store with new tables.
    pub(crate) fn create(&self, change: impl FnOnce(&mut ClickHouseConfig)) -> TargetStore<'_> {
        let prefix = qi_benches::unique() + "_";
        let mut config = ClickHouseConfig::from_url(&self.url);
        config.table_prefix.clone_from(&prefix);
        change(&mut config);
        let store = ClickHouseStore::open(config).expect("a valid configuration");
        self.block_on(store.ensure_schema()).expect("tables");
        TargetStore { setup: self, store, prefix }
    }

    /// Returns a TimescaleDB store with a new schema, or None if no server is named.
    pub(crate) fn timescale(&self) -> Option<TimescaleTarget<'_>> {
        let url = self.timescale.as_deref()?;
        let schema = qi_benches::unique();
        let mut config = TimescaleConfig::from_url(url);
        config.schema.clone_from(&schema);
        let store = self.block_on(async {
            let store = TimescaleStore::open(config).expect("a valid configuration");
            store.ensure_schema().await.expect("a schema");
            store
        });
        Some(TimescaleTarget { setup: self, store, schema })
    }

    /// Inserts `count` ticks, `step` microseconds apart, which are generated batch by batch.
    pub(crate) fn fill(&self, store: &dyn PriceStore, count: usize, step: i64) {
        const BATCH: usize = 200_000;
        let first = crate::ticks::time(0).as_micros();
        for start in (0..count).step_by(BATCH) {
            let time = |n: usize| first + i64::try_from(n).expect("a small number") * step;
            let part: Vec<PriceTick> = (start..count.min(start + BATCH))
                .map(|n| self.market.tick_at(n, Timestamp::from_micros(time(n)).expect("a time")))
                .collect();
            self.block_on(store.insert_ticks(&part)).expect("a write");
        }
    }
}

/// A ClickHouse store and its tables, which are removed when the value is dropped.
pub(crate) struct TargetStore<'a> {
    setup: &'a Setup,
    pub(crate) store: ClickHouseStore,
    pub(crate) prefix: String,
}

impl TargetStore<'_> {
    pub(crate) fn number(&self, sql: &str) -> u64 {
        self.setup.block_on(self.store.client().query_raw(sql).fetch_one()).expect("a number")
    }

    /// Returns the number of ticks.
    pub(crate) fn count(&self) -> u64 {
        self.number(&format!("SELECT count() FROM {}ticks FINAL", self.prefix))
    }

    /// Merges the parts of the table, and returns the bytes on disk.
    pub(crate) fn compact(&self) -> u64 {
        let merge = format!("OPTIMIZE TABLE {}ticks", self.prefix);
        self.setup.block_on(self.store.client().query_raw(&merge).execute()).expect("a merge");
        self.number(&format!(
            "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND table = '{}ticks'",
            self.prefix
        ))
    }
}

impl Drop for TargetStore<'_> {
    fn drop(&mut self) {
        let client = self.store.client();
        let names = format!("SELECT name FROM system.tables WHERE startsWith(name, '{}')", self.prefix);
        let tables = self.setup.block_on(client.query_raw(&names).fetch_all::<String>()).unwrap_or_default();
        for table in tables {
            let drop = format!("DROP TABLE IF EXISTS {table} SYNC");
            if let Err(error) = self.setup.block_on(client.query_raw(&drop).execute()) {
                eprintln!("{table}: {error}");
            }
        }
    }
}

/// A TimescaleDB store and its schema, which is removed when the value is dropped.
pub(crate) struct TimescaleTarget<'a> {
    setup: &'a Setup,
    pub(crate) store: TimescaleStore,
    schema: String,
}

impl TimescaleTarget<'_> {
    /// Updates the statistics, prevents later background work, and returns the bytes of the table with its index.
    pub(crate) fn compact(&self) -> i64 {
        self.sql("VACUUM (ANALYZE) ticks");
        self.sql("CHECKPOINT");
        let size = format!("SELECT public.hypertable_size('{}.ticks')", self.schema);
        let query = sqlx::query_scalar(sqlx::AssertSqlSafe(size));
        self.setup.block_on(query.fetch_one(self.store.pool())).expect("a number")
    }

    fn sql(&self, text: &str) {
        let query = sqlx::query(sqlx::AssertSqlSafe(text.to_owned()));
        self.setup.block_on(query.execute(self.store.pool())).expect("a statement");
    }
}

impl Drop for TimescaleTarget<'_> {
    fn drop(&mut self) {
        self.sql(&format!("DROP SCHEMA {} CASCADE", self.schema));
        if let Err(error) = self.setup.block_on(self.store.close()) {
            eprintln!("{}: {error}", self.schema);
        }
    }
}
