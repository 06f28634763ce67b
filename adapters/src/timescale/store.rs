use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use qi_core::record::{Dataset, Owner, Records, SeriesType};
use qi_core::store::{
    BarQuery, DeleteQuery, Derived, InsertReport, LatestRequest, MaintainRequest, MaintenanceReport, Page,
    Paged, PriceStore, RangeRequest, RangeStats, RecordPage, Retention, SchemaReport, SeriesRequest,
    SeriesSummary, StatsQuery, StoreInfo, StorePingReport,
};
use qi_core::{Bar, Error, ErrorKind, Interval, Operation, PriceTick, Result, Selection};
use sqlx::PgPool;

use super::cache::SchemaCache;
use super::config::TimescaleConfig;
use super::connect::{Connections, PooledConnection};
use super::error::Cause;
use super::sql::RegisteredDataset;
use super::table::Table;
use super::{BACKEND, schema};

/// A price store on TimescaleDB, or on plain PostgreSQL (`hypertables = "off"`). Clones share the connection pool.
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
    /// The statements of each dataset, indexed by its position.
    registered: Vec<RegisteredDataset>,
    closed: AtomicBool,
    /// True after the first warning about settings that differ.
    warned_of_differences: AtomicBool,
}

impl Inner {
    pub(super) fn info(&self) -> StoreInfo {
        let server_info = self.connections.server_info();
        let mut info = StoreInfo::new(BACKEND);
        info.edition = schema::edition(&server_info);
        info.version = (!server_info.server.is_empty()).then(|| match &server_info.extension {
            Some(extension) => format!("{} (timescaledb {extension})", server_info.server),
            None => server_info.server.clone(),
        });
        info.max_batch = self.config.max_batch;
        let ages = self.config.datasets.iter().filter_map(|dataset| {
            let age = self.config.retention.get(dataset.name())?;
            Some(Retention::Age(dataset, age))
        });
        info.retention = ages.collect();
        info
    }
}

impl TimescaleStore {
    /// Creates a store from this configuration and does not wait for the server. With `min_connections`, the pool
    /// connects in the background; otherwise the first call connects. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// `Config` for a value out of range, an invalid URL, or an unreadable file of the TLS section.
    pub fn open(config: TimescaleConfig) -> Result<Self> {
        config.validate()?;
        let config = config.with_password()?;
        let cache = Arc::new(SchemaCache::new(&config));
        let connections = Connections::open(&config, cache.clone())?;
        let datasets = config.datasets.iter().enumerate();
        let registered =
            datasets.map(|(at, dataset)| RegisteredDataset::new(at, dataset, &config.schema)).collect();
        let (closed, warned_of_differences) = (AtomicBool::new(false), AtomicBool::new(false));
        let inner = Inner { config, connections, cache, registered, closed, warned_of_differences };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Returns the connection pool for custom SQL. Its connections find the tables without the name of the schema, and
    /// have the configured limits. With `pooler = "transaction"`, they have neither: the statements must contain the
    /// schema.
    pub fn pool(&self) -> &PgPool {
        self.inner.connections.pool()
    }

    /// Returns the columns of a dataset's table in the database, in order, with their types. Returns no columns if the
    /// table does not exist.
    ///
    /// # Errors
    /// The errors of a read.
    pub async fn columns(&self, dataset: Dataset) -> Result<Vec<(String, String)>> {
        let schema = &self.inner.config.schema;
        self.run(Operation::Series, async |connection| {
            schema::columns(connection, schema, dataset.name()).await
        })
        .await
        .map_err(|error| error.with_operation("columns"))
    }

    /// Returns the columns that this version reads and writes, in order, with their types. [`Self::columns`] must
    /// return the same list.
    pub fn expected_columns(dataset: Dataset) -> Vec<(String, String)> {
        let table = Table::of(dataset, "");
        table.columns().iter().map(|c| (c.name.to_owned(), c.ty.name().to_owned())).collect()
    }

    /// Rejects a call after `close`.
    pub(super) fn check_open(&self, operation: Operation) -> Result<()> {
        if self.inner.closed.load(Ordering::SeqCst) {
            return Err(Error::closed("store.timescale.closed", operation).with_backend(BACKEND));
        }
        Ok(())
    }

    async fn change_schema(&self, scope: schema::Scope) -> Result<SchemaReport> {
        let Inner { connections, config, .. } = &*self.inner;
        connections
            .until_closed(Box::pin(schema::ensure(connections, config, scope)))
            .await
            .map_err(|cause| self.error(Operation::EnsureSchema, cause))
    }

    /// Runs a call on one connection, and adds the operation to its error.
    pub(super) async fn run<T>(
        &self,
        operation: Operation,
        work: impl AsyncFnOnce(&mut PooledConnection) -> Result<T, Cause>,
    ) -> Result<T> {
        self.check_open(operation)?;
        let mut connection =
            self.inner.connections.acquire().await.map_err(|cause| self.error(operation, cause))?;
        let outcome = work(&mut connection).await;
        connection.release(&outcome);
        outcome.map_err(|cause| self.error(operation, cause))
    }

    /// Adds the operation, and the address of a server that cannot be reached.
    fn error(&self, operation: Operation, cause: Cause) -> Error {
        let error = cause.into_error(operation);
        if error.kind() != ErrorKind::Unavailable {
            return error;
        }
        error.with_context("server", self.inner.connections.address())
    }

    /// Returns the entry of a registered dataset. Rejects other datasets, and any call after `close`.
    pub(super) fn registered(&self, operation: Operation, dataset: Dataset) -> Result<&RegisteredDataset> {
        self.check_open(operation)?;
        let position = self.inner.config.datasets.position(dataset);
        position
            .map(|at| &self.inner.registered[at])
            .map_err(|error| Cause::Core(error).into_error(operation))
    }
}

/// Adds the operation to the error of a check before any I/O.
fn checked(operation: Operation, check: Result<()>) -> Result<()> {
    check.map_err(|error| Cause::Core(error).into_error(operation))
}

/// Rejects owners that do not fit the dataset.
fn check_owners(dataset: Dataset, owners: &[Owner]) -> Result<()> {
    let instruments = dataset.series() == SeriesType::Instrument;
    match owners.iter().find(|owner| owner.instrument().is_some() != instruments) {
        None => Ok(()),
        Some(owner) => {
            let rule = if instruments { "must be an instrument" } else { "must be a name" };
            Err(Error::invalid("store.query.series", "series", owner, rule).with_context("dataset", dataset))
        }
    }
}

fn check_selection(dataset: Dataset, selection: &Selection<Owner>) -> Result<()> {
    match selection {
        Selection::All => Ok(()),
        Selection::Only(owners) => check_owners(dataset, owners),
    }
}

fn check_range(request: &RangeRequest) -> Result<()> {
    let RangeRequest { dataset, series, .. } = request;
    request.anchor()?;
    check_owners(*dataset, std::slice::from_ref(&series.owner))?;
    if series.interval.is_some() == dataset.interval().is_some() {
        return Ok(());
    }
    let value = series.interval.map_or("none", Interval::as_str);
    let rule = "must be set if and only if the dataset has intervals";
    Err(Error::invalid("store.query.interval", "interval", value, rule).with_context("dataset", *dataset))
}

fn check_series(request: &SeriesRequest) -> Result<()> {
    request.anchor()?;
    match &request.exchange {
        Some(exchange) if request.dataset.series() != SeriesType::Instrument => {
            let rule = "must not be set for a dataset of named series";
            Err(Error::invalid("store.query.exchange", "exchange", exchange, rule))
        }
        _ => Ok(()),
    }
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
        let report = self.change_schema(schema::Scope::Missing).await?;
        if !report.differs.is_empty() && !self.inner.warned_of_differences.swap(true, Ordering::SeqCst) {
            tracing::warn!(
                backend = BACKEND,
                schema = self.inner.config.schema,
                differs = report.differs.join(", "),
                "the server's settings differ from the configuration; `qi migrate` changes them"
            );
        }
        Ok(report)
    }

    async fn migrate_schema(&self) -> Result<SchemaReport> {
        self.change_schema(schema::Scope::All).await
    }

    async fn plan_schema(&self) -> Result<Vec<String>> {
        let Inner { connections, config, .. } = &*self.inner;
        connections
            .until_closed(schema::plan(connections, config))
            .await
            .map_err(|cause| self.error(Operation::PlanSchema, cause))
    }

    async fn ping(&self) -> Result<StorePingReport> {
        let started = Instant::now();
        self.run(Operation::StorePing, async |connection| {
            sqlx::query("SELECT 1").execute(&mut **connection).await?;
            Ok(())
        })
        .await?;
        let mut status = StorePingReport::new(started.elapsed());
        status.version = self.inner.info().version;
        Ok(status)
    }

    async fn insert(&self, batch: &dyn Records) -> Result<InsertReport> {
        const OPERATION: Operation = Operation::Insert;
        let registered = self.registered(OPERATION, batch.dataset())?;
        checked(OPERATION, self.inner.info().check_batch(batch.len()))?;
        if batch.is_empty() {
            return Ok(InsertReport::default());
        }
        self.run(OPERATION, async |connection| self.insert_on(connection, registered, batch).await).await
    }

    async fn range(&self, request: &RangeRequest) -> Result<RecordPage> {
        const OPERATION: Operation = Operation::Range;
        let registered = self.registered(OPERATION, request.dataset)?;
        checked(OPERATION, check_range(request))?;
        self.run(OPERATION, async |connection| self.range_page(connection, registered, request).await).await
    }

    async fn latest(&self, request: &LatestRequest) -> Result<RecordPage> {
        const OPERATION: Operation = Operation::Latest;
        let registered = self.registered(OPERATION, request.dataset)?;
        checked(
            OPERATION,
            request.check().and_then(|()| check_selection(request.dataset, &request.selection)),
        )?;
        self.run(OPERATION, async |connection| self.latest_page(connection, registered, request).await).await
    }

    async fn derived_bars(&self, query: &BarQuery) -> Result<Page<Bar>> {
        const OPERATION: Operation = Operation::DerivedBars;
        let ticks = self.registered(OPERATION, PriceTick::DATASET)?;
        checked(OPERATION, Derived(query).anchor().map(drop))?;
        self.run(OPERATION, async |connection| {
            let Some(id) = self.inner.cache.ids.find(connection, &query.instrument).await? else {
                return Ok(Derived(query).page_of(Vec::new())?);
            };
            if self.inner.cache.has_materialized_bars() {
                return self.materialized_page(connection, ticks, id, query).await;
            }
            self.derived_page(connection, ticks, id, query).await
        })
        .await
    }
    async fn stats(&self, query: &StatsQuery) -> Result<Option<RangeStats>> {
        const OPERATION: Operation = Operation::Stats;
        let ticks = self.registered(OPERATION, PriceTick::DATASET)?;
        self.run(OPERATION, async |connection| {
            let Some(id) = self.inner.cache.ids.find(connection, &query.instrument).await? else {
                return Ok(None);
            };
            self.range_stats(connection, ticks, id, query).await
        })
        .await
    }

    async fn series(&self, request: &SeriesRequest) -> Result<Page<SeriesSummary>> {
        const OPERATION: Operation = Operation::Series;
        let registered = self.registered(OPERATION, request.dataset)?;
        checked(OPERATION, check_series(request))?;
        self.run(OPERATION, async |connection| self.series_page(connection, registered, request).await).await
    }
    async fn delete_range(&self, query: &DeleteQuery) -> Result<()> {
        const OPERATION: Operation = Operation::DeleteRange;
        let registered = self.registered(OPERATION, query.dataset)?;
        checked(OPERATION, query.check().and_then(|()| check_selection(query.dataset, &query.selection)))?;
        self.run(OPERATION, async |connection| self.delete(connection, registered, query).await).await
    }
    async fn purge_before(&self, dataset: Dataset, cutoff: qi_core::Timestamp) -> Result<()> {
        const OPERATION: Operation = Operation::PurgeBefore;
        let registered = self.registered(OPERATION, dataset)?;
        self.run(OPERATION, async |connection| self.purge(connection, registered, cutoff).await).await
    }

    async fn maintain(&self, request: &MaintainRequest) -> Result<MaintenanceReport> {
        const OPERATION: Operation = Operation::Maintain;
        let ticks = self.registered(OPERATION, PriceTick::DATASET)?;
        self.run(OPERATION, async |connection| {
            if self.inner.cache.has_materialized_bars() {
                return self.maintain_on(connection, ticks, request).await;
            }
            Ok(MaintenanceReport::default())
        })
        .await
    }

    async fn close(&self) -> Result<()> {
        self.inner.closed.store(true, Ordering::SeqCst);
        self.pool().close().await;
        Ok(())
    }
}
