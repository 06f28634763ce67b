//! The price store: checks each request before any I/O, and runs it on a connection.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use qi_core::record::{Dataset, Owner, Records};
use qi_core::store::{
    BarQuery, DeleteQuery, Derived, InsertReport, LatestRequest, Page, Paged, PriceStore, RangeRequest,
    RangeStats, RecordPage, SchemaReport, SeriesRequest, SeriesSummary, StatsQuery, StoreInfo,
    StorePingReport,
};
use qi_core::{Bar, Error, Interval, Operation, PriceTick, Result, Selection, TimeRange, Timestamp};
use sqlx::ConnectOptions as _;
use sqlx::pool::{PoolConnection, PoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqlitePool, SqliteSynchronous};
use sqlx::{Connection as _, Row as _, Sqlite};
use tokio::sync::RwLock;

use super::BACKEND;
use super::config::{SqliteConfig, Synchronous};
use super::error::Cause;
use super::table::Table;
use super::{admin, bars, read, schema, write};

/// The number of rows that the thread of a connection reads ahead.
const ROWS_AHEAD: usize = 512;

/// A price store in one SQLite file. Clones share the connections.
///
/// ```
/// use qi_adapters::sqlite::{SqliteConfig, SqliteStore};
/// use qi_core::store::{PriceStore, PriceStoreExt};
/// use qi_core::{PriceTick, Timestamp};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> qi_core::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("prices.db");
/// let store = SqliteStore::open(SqliteConfig::from_path(path))?;
/// store.ensure_schema().await?;
/// let tick = PriceTick::new("binance:BTC-USDT".parse()?, Timestamp::from_secs(1_700_000_000)?, 1, "39432.48".parse()?)?;
/// store.insert_tick(&tick).await?;
/// assert_eq!(store.latest_tick(tick.instrument()).await?, Some(tick));
/// store.close().await
/// # }
/// ```
#[derive(Clone)]
pub struct SqliteStore {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) config: SqliteConfig,
    readers: SqlitePool,
    /// The only connection that writes. Its callers queue in order, without waiting for the lock of the file.
    writer: SqlitePool,
    /// The tables, in the order of the registered datasets.
    pub(super) tables: Vec<Table>,
    version: OnceLock<String>,
    closed: AtomicBool,
    /// Locked for reading by each deletion, so that `close` waits for all its steps.
    deletions: RwLock<()>,
}

impl SqliteStore {
    /// Creates a store from this configuration. Performs no I/O; the first call opens the file. Must be called inside a
    /// tokio runtime.
    ///
    /// # Errors
    /// `Config` for a missing path or a value out of range.
    pub fn open(mut config: SqliteConfig) -> Result<Self> {
        config.validate()?;
        // The process may change its folder later.
        config.path = std::path::absolute(&config.path).map_err(|source| {
            Error::new(qi_core::ErrorKind::Config, "store.sqlite.config", "open")
                .with_message("path cannot be resolved")
                .with_backend(BACKEND)
                .with_source(source)
        })?;
        let synchronous = match config.synchronous {
            Synchronous::Full => SqliteSynchronous::Full,
            Synchronous::Normal => SqliteSynchronous::Normal,
        };
        let options = SqliteConnectOptions::new()
            .filename(&config.path)
            .synchronous(synchronous)
            .busy_timeout(config.lock_timeout)
            .pragma("cache_size", format!("-{}", config.cache_bytes / 1024))
            .pragma("mmap_size", config.mmap_bytes.to_string())
            .row_buffer_size(ROWS_AHEAD)
            .thread_name(|id| format!("qi-sqlite-{id}"))
            .log_statements(log::LevelFilter::Trace);
        let pool = |connections| {
            PoolOptions::<Sqlite>::new()
                .max_connections(connections)
                .acquire_timeout(config.lock_timeout)
                // A connection is checked when it returns to the pool, and no network can break it later.
                .test_before_acquire(false)
                .idle_timeout(None)
                .max_lifetime(None)
        };
        // A commit that fails can leave sqlx in a transaction that SQLite has ended, for example on a full disk.
        let writer = pool(1).after_release(|connection, _| {
            Box::pin(async move {
                // The rollback of a dropped transaction runs before the ping.
                connection.ping().await?;
                Ok(!connection.is_in_transaction())
            })
        });
        let (readers, writer) =
            (pool(config.readers).connect_lazy_with(options.clone()), writer.connect_lazy_with(options));
        let tables = config.datasets.iter().map(Table::new).collect();
        let (version, closed, deletions) = (OnceLock::new(), AtomicBool::new(false), RwLock::new(()));
        Ok(Self { inner: Arc::new(Inner { config, readers, writer, tables, version, closed, deletions }) })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.inner.config.path
    }

    /// Returns the pool of the connections that read, for custom SQL.
    pub fn pool(&self) -> &SqlitePool {
        &self.inner.readers
    }

    fn check_open(&self, operation: Operation) -> Result<()> {
        if self.inner.closed.load(Ordering::SeqCst) {
            return Err(Error::closed("store.sqlite.closed", operation).with_backend(BACKEND));
        }
        Ok(())
    }

    /// Returns the table of a registered dataset. Rejects other datasets, and any call after `close`.
    fn table(&self, operation: Operation, dataset: Dataset) -> Result<&Table> {
        self.check_open(operation)?;
        let position = self.inner.config.datasets.position(dataset);
        position.map(|at| &self.inner.tables[at]).map_err(|error| Cause::Core(error).into_error(operation))
    }

    async fn acquire(&self, pool: &SqlitePool) -> Result<PoolConnection<Sqlite>, Cause> {
        pool.acquire().await.map_err(|error| Cause::of_open(error, self.path()))
    }

    /// Returns the error of a call, with its operation and the file.
    fn error(&self, operation: Operation, cause: Cause) -> Error {
        cause.into_error(operation).with_context("file", self.path().display())
    }

    async fn read<T>(
        &self,
        operation: Operation,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, Cause>,
    ) -> Result<T> {
        self.run(operation, &self.inner.readers, work).await
    }

    async fn write<T>(
        &self,
        operation: Operation,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, Cause>,
    ) -> Result<T> {
        self.run(operation, &self.inner.writer, work).await
    }

    /// Deletes the records of a range in bounded steps. Deletes all intervals if `interval` is None.
    async fn delete(
        &self,
        operation: Operation,
        table: &Table,
        selection: &Selection<Owner>,
        interval: Option<Interval>,
        range: TimeRange,
    ) -> Result<()> {
        let _deletion = self.inner.deletions.read().await;
        self.check_open(operation)?;
        let ids =
            self.write(operation, async |connection| admin::ids(connection, table, selection).await).await?;
        let intervals: Vec<Option<Interval>> = match (table.dataset.interval(), interval) {
            (Some(_), None) => Interval::ALL.iter().copied().map(Some).collect(),
            _ => vec![interval],
        };
        for id in ids {
            for interval in &intervals {
                let (series, mut rest) = ((id, *interval), Some(range));
                while let Some(range) = rest {
                    rest = self
                        .write(operation, async |connection| {
                            admin::delete_first(connection, table, series, range).await
                        })
                        .await?;
                }
            }
        }
        Ok(())
    }

    async fn run<T>(
        &self,
        operation: Operation,
        pool: &SqlitePool,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, Cause>,
    ) -> Result<T> {
        let outcome = async { work(&mut *self.acquire(pool).await?).await };
        outcome.await.map_err(|cause| self.error(operation, cause))
    }
}

/// Rejects an invalid request before any I/O.
fn checked(operation: Operation, check: Result<()>) -> Result<()> {
    check.map_err(|error| Cause::Core(error).into_error(operation))
}

fn check_selection(table: &Table, selection: &Selection<Owner>) -> Result<()> {
    match selection {
        Selection::All => Ok(()),
        Selection::Only(owners) => owners.iter().try_for_each(|owner| table.check_owner(owner)),
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl fmt::Display for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sqlite({})", self.path().display())
    }
}

#[async_trait]
impl PriceStore for SqliteStore {
    fn info(&self) -> StoreInfo {
        let mut info = StoreInfo::new(BACKEND);
        info.version = self.inner.version.get().cloned();
        info.max_batch = self.inner.config.max_batch;
        info
    }

    async fn ensure_schema(&self) -> Result<SchemaReport> {
        const OPERATION: Operation = Operation::EnsureSchema;
        self.check_open(OPERATION)?;
        let path = self.path().to_owned();
        let created = tokio::task::spawn_blocking(move || schema::create_file(&path)).await;
        created
            .map_err(|source| sqlx::Error::Io(std::io::Error::other(source)).into())
            .and_then(|created| created)
            .map_err(|cause| self.error(OPERATION, cause))?;
        let Inner { tables, config, .. } = &*self.inner;
        self.write(OPERATION, async |connection| {
            schema::ensure(connection, tables, config.lock_timeout).await
        })
        .await
    }

    async fn plan_schema(&self) -> Result<Vec<String>> {
        const OPERATION: Operation = Operation::PlanSchema;
        self.check_open(OPERATION)?;
        let plan = async {
            match self.acquire(&self.inner.readers).await {
                Ok(mut connection) => schema::plan(&mut connection, &self.inner.tables).await,
                Err(Cause::NoFile) => schema::plan_of_new_file(&self.inner.tables),
                Err(cause) => Err(cause),
            }
        };
        let changes = plan.await.map_err(|cause| self.error(OPERATION, cause))?;
        Ok(changes.into_iter().map(|change| change.sql).collect())
    }

    async fn ping(&self) -> Result<StorePingReport> {
        const OPERATION: Operation = Operation::StorePing;
        let started = Instant::now();
        self.check_open(OPERATION)?;
        let ping = async {
            let mut connection = match self.acquire(&self.inner.readers).await {
                // The folder can be used, so `ensure_schema` will create the file.
                Err(Cause::NoFile) => return Ok(()),
                connection => connection?,
            };
            // Reads the first page of the file, so that a damaged file is detected.
            let sql = "SELECT sqlite_version(), (SELECT count(*) FROM sqlite_schema)";
            let row = sqlx::query(sql).fetch_one(&mut *connection).await?;
            self.inner.version.get_or_init(|| row.get(0));
            Ok(())
        };
        ping.await.map_err(|cause| self.error(OPERATION, cause))?;
        let mut report = StorePingReport::new(started.elapsed());
        report.version = self.inner.version.get().cloned();
        Ok(report)
    }

    async fn insert(&self, batch: &dyn Records) -> Result<InsertReport> {
        const OPERATION: Operation = Operation::Insert;
        let table = self.table(OPERATION, batch.dataset())?;
        checked(OPERATION, self.info().check_batch(batch.len()))?;
        if batch.is_empty() {
            return Ok(InsertReport::default());
        }
        self.write(OPERATION, async |connection| write::insert(connection, table, batch).await).await
    }

    async fn range(&self, request: &RangeRequest) -> Result<RecordPage> {
        const OPERATION: Operation = Operation::Range;
        let table = self.table(OPERATION, request.dataset)?;
        checked(OPERATION, request.anchor().map(drop).and_then(|()| table.check_series(&request.series)))?;
        self.read(OPERATION, async |connection| read::range(connection, table, request).await).await
    }

    async fn latest(&self, request: &LatestRequest) -> Result<RecordPage> {
        const OPERATION: Operation = Operation::Latest;
        let table = self.table(OPERATION, request.dataset)?;
        checked(OPERATION, request.check().and_then(|()| check_selection(table, &request.selection)))?;
        self.read(OPERATION, async |connection| read::latest(connection, table, request).await).await
    }

    async fn derived_bars(&self, query: &BarQuery) -> Result<Page<Bar>> {
        const OPERATION: Operation = Operation::DerivedBars;
        let table = self.table(OPERATION, PriceTick::DATASET)?;
        checked(OPERATION, Derived(query).anchor().map(drop))?;
        self.read(OPERATION, async |connection| bars::page(connection, table, query).await).await
    }

    async fn stats(&self, query: &StatsQuery) -> Result<Option<RangeStats>> {
        const OPERATION: Operation = Operation::Stats;
        let table = self.table(OPERATION, PriceTick::DATASET)?;
        self.read(OPERATION, async |connection| bars::stats(connection, table, query).await).await
    }

    async fn series(&self, request: &SeriesRequest) -> Result<Page<SeriesSummary>> {
        const OPERATION: Operation = Operation::Series;
        let table = self.table(OPERATION, request.dataset)?;
        checked(OPERATION, request.anchor().map(drop))?;
        self.read(OPERATION, async |connection| admin::series(connection, table, request).await).await
    }

    async fn delete_range(&self, query: &DeleteQuery) -> Result<()> {
        const OPERATION: Operation = Operation::DeleteRange;
        let table = self.table(OPERATION, query.dataset)?;
        checked(OPERATION, query.check().and_then(|()| check_selection(table, &query.selection)))?;
        let DeleteQuery { selection, interval, range, .. } = query;
        self.delete(OPERATION, table, selection, *interval, *range).await
    }

    async fn purge_before(&self, dataset: Dataset, cutoff: Timestamp) -> Result<()> {
        const OPERATION: Operation = Operation::PurgeBefore;
        let table = self.table(OPERATION, dataset)?;
        let range = TimeRange::before(cutoff);
        self.delete(OPERATION, table, &Selection::All, None, range).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.closed.store(true, Ordering::SeqCst);
        drop(self.inner.deletions.write().await);
        self.inner.readers.close().await;
        // The last connection moves the log into the file.
        self.inner.writer.close().await;
        Ok(())
    }
}
