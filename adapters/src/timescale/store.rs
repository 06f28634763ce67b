use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use qi_core::store::{
    BarQuery, Dataset, DeleteQuery, Derived, InsertReport, InstrumentQuery, InstrumentSummary,
    LatestBarsQuery, LatestQuery, Page, Paged, PriceStore, RangeQuery, RangeStats, Retention, SchemaReport,
    SnapshotQuery, StatsQuery, StoreInfo, StoreStatus,
};
use qi_core::{Error, Instrument, MarketSnapshot, Ohlcv, Operation, PriceTick, Quote, Result, Scope};
use sqlx::PgPool;

use super::cache::SchemaCache;
use super::config::TimescaleConfig;
use super::connect::{Connections, PooledConnection};
use super::copy_backoff::CopyBackoff;
use super::error::Cause;
use super::table::{SeriesKey, Stored, table_of};
use super::{BACKEND, schema};

/// A price store on TimescaleDB, or on plain PostgreSQL (`hypertables = "off"`). Cloning it shares the pool.
///
/// ```no_run
/// use qi_adapters::timescale::{TimescaleConfig, TimescaleStore};
/// use qi_core::store::{PriceStore, PriceStoreExt};
/// use qi_core::{PriceTick, Timestamp};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> qi_core::Result<()> {
/// let store = TimescaleStore::open(TimescaleConfig::from_url("postgres://qi:qi@127.0.0.1:55432/qi"))?;
/// store.ensure_schema().await?;
/// let tick = PriceTick::new("binance:BTC-USDT".parse()?, Timestamp::from_secs(1_700_000_000)?, 1, "39432.48".parse()?)?;
/// store.insert_tick(&tick).await?;
/// assert_eq!(store.latest_tick(tick.instrument()).await?, Some(tick));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TimescaleStore {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) config: TimescaleConfig,
    pub(super) connections: Connections,
    pub(super) cache: Arc<SchemaCache>,
    pub(super) copy_backoff: [CopyBackoff; 4],
    closed: AtomicBool,
}

impl Inner {
    pub(super) fn info(&self) -> StoreInfo {
        let facts = self.connections.facts();
        let mut info = StoreInfo::new(BACKEND);
        info.edition = schema::edition(&facts);
        info.version = (!facts.server.is_empty()).then(|| match &facts.extension {
            Some(extension) => format!("{} (timescaledb {extension})", facts.server),
            None => facts.server.clone(),
        });
        info.max_batch = self.config.max_batch;
        let ages = Dataset::ALL.into_iter().filter_map(|dataset| {
            let hours = self.config.retention.hours(dataset)?;
            Some(Retention::Age(dataset, Duration::from_hours(hours.into())))
        });
        info.retention = ages.collect();
        info
    }
}

impl TimescaleStore {
    /// A store of this configuration. Nothing is sent; the first call meets the server. Must be called inside a
    /// tokio runtime.
    ///
    /// # Errors
    /// `Config` for a bound that is out of range or a URL that cannot be read.
    pub fn open(config: TimescaleConfig) -> Result<Self> {
        config.validate()?;
        let cache = Arc::new(SchemaCache::new(&config));
        let connections = Connections::open(&config, cache.clone())?;
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                connections,
                cache,
                copy_backoff: Default::default(),
                closed: AtomicBool::new(false),
            }),
        })
    }

    /// The pool, for SQL of your own. Its connections find the tables without a schema's name, and have the
    /// configured limits.
    pub fn pool(&self) -> &PgPool {
        self.inner.connections.pool()
    }

    /// The columns of a dataset's table in the database, in order, with their types.
    ///
    /// # Errors
    /// What a read may fail with. A table that is absent has no columns.
    pub async fn columns(&self, dataset: Dataset) -> Result<Vec<(String, String)>> {
        let (schema, table) = (&self.inner.config.schema, table_of(dataset));
        self.run(Operation::Instruments, async |lease| schema::columns(lease, schema, table).await)
            .await
            .map_err(|error| error.with_operation("columns"))
    }

    /// The columns that this code writes and reads, in order, with their types: what [`Self::columns`] must give.
    pub fn expected_columns(dataset: Dataset) -> Vec<(String, String)> {
        let columns = table_of(dataset).columns();
        columns.map(|c| (c.name.trim_matches('"').to_owned(), c.ty.name().to_owned())).collect()
    }

    /// Refuses a call after `close`.
    pub(super) fn enter(&self, operation: Operation) -> Result<()> {
        if self.inner.closed.load(Ordering::SeqCst) {
            return Err(Error::closed("store.timescale.closed", operation).with_backend(BACKEND));
        }
        Ok(())
    }

    /// Runs a call on one connection, and names the operation in its error.
    pub(super) async fn run<T>(
        &self,
        operation: Operation,
        work: impl AsyncFnOnce(&mut PooledConnection) -> Result<T, Cause>,
    ) -> Result<T> {
        self.enter(operation)?;
        let mut lease = self.inner.connections.lease().await.map_err(|e| e.at(operation))?;
        let outcome = work(&mut lease).await;
        lease.give_back(&outcome);
        outcome.map_err(|e| e.at(operation))
    }

    /// A page of ticks or quotes.
    async fn instrument_range<R: Stored<Series = Instrument>>(
        &self,
        operation: Operation,
        query: &RangeQuery,
    ) -> Result<Page<R>>
    where
        RangeQuery: Paged<R>,
    {
        checked::<R>(query, operation)?;
        self.run(operation, async |lease| {
            let Some(id) = self.inner.cache.ids.find(lease, &query.instrument).await? else {
                return Ok(query.page_of(Vec::new())?);
            };
            let key = SeriesKey::Instrument(id);
            self.page(lease, &query.instrument, key, query.range, query.order, query).await
        })
        .await
    }
}

/// Refuses a foreign cursor before any I/O.
fn checked<T>(query: &impl Paged<T>, operation: Operation) -> Result<()> {
    query.anchor().map(drop).map_err(|error| Cause::Core(error).at(operation))
}

impl fmt::Debug for TimescaleStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimescaleStore")
            .field("address", &self.inner.connections.address())
            .field("schema", &self.inner.config.schema)
            .field("hypertables", &self.inner.config.hypertables)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for TimescaleStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "timescale({}, schema {})", self.inner.connections.address(), self.inner.config.schema)
    }
}

#[async_trait]
impl PriceStore for TimescaleStore {
    fn info(&self) -> StoreInfo {
        self.inner.info()
    }

    async fn ensure_schema(&self) -> Result<SchemaReport> {
        let connections = &self.inner.connections;
        connections
            .until_closed(schema::ensure(connections, &self.inner.config))
            .await
            .map_err(|cause| cause.at(Operation::EnsureSchema))
    }

    async fn ping(&self) -> Result<StoreStatus> {
        let started = Instant::now();
        self.run(Operation::StorePing, async |lease| {
            sqlx::query("SELECT 1").execute(&mut **lease).await?;
            Ok(())
        })
        .await?;
        let mut status = StoreStatus::new(started.elapsed());
        status.version = self.inner.info().version;
        Ok(status)
    }

    async fn insert_ticks(&self, batch: &[PriceTick]) -> Result<InsertReport> {
        self.insert(Operation::InsertTicks, batch).await
    }
    async fn insert_quotes(&self, batch: &[Quote]) -> Result<InsertReport> {
        self.insert(Operation::InsertQuotes, batch).await
    }
    async fn insert_bars(&self, batch: &[Ohlcv]) -> Result<InsertReport> {
        self.insert(Operation::InsertBars, batch).await
    }
    async fn insert_snapshots(&self, batch: &[MarketSnapshot]) -> Result<InsertReport> {
        self.insert(Operation::InsertSnapshots, batch).await
    }

    async fn ticks(&self, query: &RangeQuery) -> Result<Page<PriceTick>> {
        self.instrument_range(Operation::Ticks, query).await
    }
    async fn quotes(&self, query: &RangeQuery) -> Result<Page<Quote>> {
        self.instrument_range(Operation::Quotes, query).await
    }
    async fn bars(&self, query: &BarQuery) -> Result<Page<Ohlcv>> {
        const CALL: Operation = Operation::Bars;
        checked::<Ohlcv>(query, CALL)?;
        self.run(CALL, async |lease| {
            let Some(id) = self.inner.cache.ids.find(lease, &query.instrument).await? else {
                return Ok(query.page_of(Vec::new())?);
            };
            let series = (query.instrument.clone(), query.interval);
            let key = SeriesKey::Bars(id, query.interval);
            self.page(lease, &series, key, query.range, query.order, query).await
        })
        .await
    }
    async fn snapshots(&self, query: &SnapshotQuery) -> Result<Page<MarketSnapshot>> {
        const CALL: Operation = Operation::Snapshots;
        checked::<MarketSnapshot>(query, CALL)?;
        self.run(CALL, async |lease| {
            let key = SeriesKey::Scope(&query.scope);
            self.page(lease, &query.scope, key, query.range, query.order, query).await
        })
        .await
    }

    async fn latest_ticks(&self, query: &LatestQuery) -> Result<Page<PriceTick>> {
        const CALL: Operation = Operation::LatestTicks;
        checked::<PriceTick>(query, CALL)?;
        self.run(CALL, async |lease| {
            self.latest_page(lease, &query.selection, query.as_of, None, Instrument::clone, query).await
        })
        .await
    }
    async fn latest_quotes(&self, query: &LatestQuery) -> Result<Page<Quote>> {
        const CALL: Operation = Operation::LatestQuotes;
        checked::<Quote>(query, CALL)?;
        self.run(CALL, async |lease| {
            self.latest_page(lease, &query.selection, query.as_of, None, Instrument::clone, query).await
        })
        .await
    }
    async fn latest_bars(&self, query: &LatestBarsQuery) -> Result<Page<Ohlcv>> {
        const CALL: Operation = Operation::LatestBars;
        checked::<Ohlcv>(query, CALL)?;
        self.run(CALL, async |lease| {
            let series = |instrument: &Instrument| (instrument.clone(), query.interval);
            self.latest_page(lease, &query.selection, query.as_of, Some(query.interval), series, query).await
        })
        .await
    }
    async fn latest_snapshots(&self, query: &LatestQuery<Scope>) -> Result<Page<MarketSnapshot>> {
        const CALL: Operation = Operation::LatestSnapshots;
        checked::<MarketSnapshot>(query, CALL)?;
        self.run(CALL, async |lease| {
            self.latest_page(lease, &query.selection, query.as_of, None, Scope::clone, query).await
        })
        .await
    }

    async fn derived_bars(&self, query: &BarQuery) -> Result<Page<Ohlcv>> {
        const CALL: Operation = Operation::DerivedBars;
        checked::<Ohlcv>(&Derived(query), CALL)?;
        self.run(CALL, async |lease| {
            let Some(id) = self.inner.cache.ids.find(lease, &query.instrument).await? else {
                return Ok(Derived(query).page_of(Vec::new())?);
            };
            self.derived_page(lease, id, query).await
        })
        .await
    }
    async fn stats(&self, query: &StatsQuery) -> Result<Option<RangeStats>> {
        self.run(Operation::Stats, async |lease| {
            let Some(id) = self.inner.cache.ids.find(lease, &query.instrument).await? else {
                return Ok(None);
            };
            self.stats_of(lease, id, query).await
        })
        .await
    }

    async fn instruments(&self, query: &InstrumentQuery) -> Result<Page<InstrumentSummary>> {
        const CALL: Operation = Operation::Instruments;
        checked::<InstrumentSummary>(query, CALL)?;
        self.run(CALL, async |lease| self.instrument_page(lease, query).await).await
    }
    async fn delete_range(&self, query: &DeleteQuery) -> Result<()> {
        self.run(Operation::DeleteRange, async |lease| self.delete(lease, query).await).await
    }
    async fn purge_before(&self, dataset: Dataset, cutoff: qi_core::Timestamp) -> Result<()> {
        self.run(Operation::PurgeBefore, async |lease| self.purge(lease, dataset, cutoff).await).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.closed.store(true, Ordering::SeqCst);
        self.pool().close().await;
        Ok(())
    }
}
