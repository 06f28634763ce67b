//! The price store: validates requests, and limits the concurrent calls.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use qi_core::record::{Dataset, Owner, Records};
use qi_core::store::{
    ArrowPage, BarQuery, DeleteQuery, Derived, InsertReport, LatestRequest, MaintainRequest,
    MaintenanceReport, Order, Page, Paged, PriceStore, RangeRequest, RangeStats, RecordPage, Retention,
    SchemaReport, SeriesRequest, SeriesSummary, StatsQuery, StoreInfo, StorePingReport,
};
use qi_core::{Bar, ErrorKind, Operation, PriceTick, Result, Selection, Timestamp};

use super::BACKEND;
use super::config::ClickHouseConfig;
use super::connect::{self, Connections};
use super::error::{self, Cause, NO_TABLE};
use super::schema;
use super::table::{self, Table, TableLocation};

/// A price store on ClickHouse. Clones share the client.
///
/// ```no_run
/// use qi_adapters::clickhouse::{ClickHouseConfig, ClickHouseStore};
/// use qi_core::store::{PriceStore, PriceStoreExt};
/// use qi_core::{PriceTick, Timestamp};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> qi_core::Result<()> {
/// let store = ClickHouseStore::open(ClickHouseConfig::from_url("http://qi:qi@127.0.0.1:58123"))?;
/// store.ensure_schema().await?;
/// let tick = PriceTick::new("binance:BTC-USDT".parse()?, Timestamp::from_secs(1_700_000_000)?, 1, "39432.48".parse()?)?;
/// store.insert_tick(&tick).await?;
/// assert_eq!(store.latest_tick(tick.instrument()).await?, Some(tick));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ClickHouseStore {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) config: ClickHouseConfig,
    pub(super) connections: Connections,
    /// The tables, in the order of the registered datasets.
    pub(super) tables: Vec<Table>,
    /// The state of the materialized bars, as the last query returned it.
    pub(super) bars_state: Mutex<Option<BarsState>>,
    /// True after the first warning about settings that differ.
    warned_of_differences: AtomicBool,
}

/// The server's state of the materialized bars, combined with the configured `bars_settle`.
#[derive(Debug, Clone, Copy)]
pub(super) struct BarsState {
    /// The announced watermark. None if the database has no materialized bars, or if the user may not read their state.
    pub(super) announced: Option<Timestamp>,
    /// The smaller of the configured and the recorded `bars_settle`.
    pub(super) settle: Duration,
    /// The larger of both values. A mark settles this time after it was added, so it outlasts the `settle` of every program.
    pub(super) wait: Duration,
    /// The latest time of the server, in microseconds, at which an insert with marks of this state may begin. Within its
    /// time limit, the insert then ends before its marks settle.
    pub(super) deadline: i64,
    /// True if the ticks need marks and the user may not read the state.
    pub(super) is_denied: bool,
    /// The time of the client just before the query of the state. Limits only the age of the cached state.
    pub(super) read_at: Instant,
}

impl ClickHouseStore {
    /// Creates a store from this configuration. Performs no network I/O; the first call connects to the server.
    ///
    /// # Errors
    /// `Config` for a value out of range, an invalid URL, or an unreadable password or certificate file.
    pub fn open(config: ClickHouseConfig) -> Result<Self> {
        config.validate()?;
        let config = config.with_password()?;
        let connections = Connections::open(&config)?;
        let tables =
            config.datasets.iter().map(|dataset| Table::new(dataset, &TableLocation::of(&config))).collect();
        let warned_of_differences = AtomicBool::new(false);
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                connections,
                tables,
                bars_state: Mutex::default(),
                warned_of_differences,
            }),
        })
    }

    /// Returns the underlying client for custom SQL. The client uses the configured database and the limits of reads.
    pub fn client(&self) -> &clickhouse::Client {
        &self.inner.connections.read_client
    }

    /// Returns the columns of a dataset's table in the database, in order, with their types. Returns no columns if the
    /// table does not exist.
    ///
    /// # Errors
    /// The errors of a read.
    pub async fn columns(&self, dataset: Dataset) -> Result<Vec<(String, String)>> {
        let sql = format!(
            "SELECT name, type FROM system.columns WHERE database = {} AND table = {} ORDER BY position",
            table::literal(&self.inner.config.database),
            table::literal(&self.table_of(dataset, Operation::Series)?.unquoted_name),
        );
        self.with_permit(Operation::Series, async {
            connect::rows(&self.inner.connections.read_client, &sql, |row| {
                Ok((row.text()?.to_owned(), row.text()?.to_owned()))
            })
            .await
        })
        .await
        .map_err(|error| error.with_operation("columns"))
    }

    /// Returns the columns that this version reads and writes, in order, with their types. [`Self::columns`] must
    /// return the same list.
    pub fn expected_columns(dataset: Dataset) -> Vec<(String, String)> {
        let table = Table::new(dataset, &TableLocation { database: "", prefix: "", cluster: None });
        table.columns.into_iter().map(|column| (column.name.to_owned(), column.ty)).collect()
    }

    /// Returns the server's error codes that this adapter distinguishes, each with its name. The server function
    /// `errorCodeToName` must return the same names.
    pub fn known_codes() -> impl Iterator<Item = (u16, &'static str)> {
        error::CODES.iter().map(|(code, name, ..)| (*code, *name))
    }

    /// Returns the quoted name of the table of ticks, the source of derived bars and statistics.
    pub(super) fn ticks_table(&self) -> String {
        TableLocation::of(&self.inner.config).quoted_name(PriceTick::DATASET.name())
    }

    /// Returns the table of a registered dataset.
    pub(super) fn table_of(&self, dataset: Dataset, operation: Operation) -> Result<&Table> {
        let index =
            self.inner.config.datasets.position(dataset).map_err(|e| Cause::Core(e).into_error(operation))?;
        Ok(&self.inner.tables[index])
    }

    /// Checks the series and the cursor of a request, and returns its table.
    fn table_of_range(&self, request: &RangeRequest) -> Result<&Table> {
        let table = self.table_of(request.dataset, Operation::Range)?;
        validate_request(Operation::Range, || {
            table.check_series(&request.series)?;
            Ok(request.anchor().map(drop)?)
        })?;
        Ok(table)
    }

    /// Returns metadata about the store. The version is known after the first `ping`.
    pub(super) fn current_info(&self) -> StoreInfo {
        let mut info = StoreInfo::new(BACKEND);
        info.version = self.inner.connections.version();
        info.max_batch = self.inner.config.max_batch;
        let retention = self.inner.config.datasets.iter().filter_map(|dataset| {
            let age = self.inner.config.retention.get(dataset.name())?;
            Some(Retention::Age(dataset, age))
        });
        info.retention = retention.collect();
        info
    }

    /// Rejects a call after `close`.
    pub(super) fn check_open(&self, operation: Operation) -> Result<()> {
        if self.inner.connections.is_closed() {
            return Err(Cause::Closed.into_error(operation));
        }
        Ok(())
    }

    async fn change_schema(&self, scope: schema::Scope) -> Result<SchemaReport> {
        self.with_permit(Operation::EnsureSchema, async {
            let Inner { config, connections, tables, .. } = &*self.inner;
            schema::ensure(connections, config, tables, scope).await
        })
        .await
    }

    /// Acquires a connection permit and runs a call. Adds the operation to an error, and the server if the error is
    /// `Unavailable`.
    pub(super) async fn with_permit<T>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, Cause>>,
    ) -> Result<T> {
        let _permit = self.inner.connections.acquire().await.map_err(|cause| cause.into_error(operation))?;
        work.await.map_err(|cause| {
            let error = cause.into_error(operation);
            if error.kind() != ErrorKind::Unavailable {
                return error;
            }
            error.with_context("server", self.inner.connections.address())
        })
    }
}

/// Rejects an invalid request before any I/O.
fn validate_request(operation: Operation, check: impl FnOnce() -> Result<(), Cause>) -> Result<()> {
    check().map_err(|cause| cause.into_error(operation))
}

/// Rejects owners that do not fit the dataset.
fn check_selection(table: &Table, selection: &Selection<Owner>) -> Result<(), Cause> {
    match selection {
        Selection::All => Ok(()),
        Selection::Only(owners) => owners.iter().try_for_each(|owner| table.check_owner(owner)),
    }
}

impl fmt::Debug for ClickHouseStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClickHouseStore")
            .field("address", &self.inner.connections.address())
            .field("database", &self.inner.config.database)
            .field("table_prefix", &self.inner.config.table_prefix)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for ClickHouseStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, database) = (self.inner.connections.address(), &self.inner.config.database);
        write!(f, "clickhouse({address}, database {database}")?;
        match self.inner.config.table_prefix.as_str() {
            "" => f.write_str(")"),
            prefix => write!(f, ", tables {prefix}*)"),
        }
    }
}

#[async_trait]
impl PriceStore for ClickHouseStore {
    fn info(&self) -> StoreInfo {
        self.current_info()
    }

    async fn ensure_schema(&self) -> Result<SchemaReport> {
        let report = self.change_schema(schema::Scope::Missing).await?;
        if !report.differs.is_empty() && !self.inner.warned_of_differences.swap(true, Ordering::SeqCst) {
            tracing::warn!(
                backend = BACKEND,
                database = self.inner.config.database,
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
        self.with_permit(Operation::PlanSchema, async {
            let Inner { config, connections, tables, .. } = &*self.inner;
            let changes = schema::plan(connections, config, tables).await?;
            Ok(changes.into_iter().map(|change| change.sql).collect())
        })
        .await
    }

    async fn ping(&self) -> Result<StorePingReport> {
        let started = Instant::now();
        let connections = &self.inner.connections;
        let versions = self
            .with_permit(Operation::StorePing, async {
                connect::rows(&connections.read_client, "SELECT version()", |row| Ok(row.text()?.to_owned()))
                    .await
            })
            .await?;
        let mut report = StorePingReport::new(started.elapsed());
        if let Some(version) = versions.into_iter().next() {
            connections.set_version(version.clone());
            report.version = Some(version);
        }
        Ok(report)
    }

    async fn insert(&self, batch: &dyn Records) -> Result<InsertReport> {
        self.insert_records(batch).await
    }

    async fn range(&self, request: &RangeRequest) -> Result<RecordPage> {
        let table = self.table_of_range(request)?;
        self.with_permit(Operation::Range, self.range_page(table, request)).await
    }

    async fn range_arrow(&self, request: &RangeRequest) -> Result<Option<ArrowPage>> {
        let table = self.table_of_range(request)?;
        if request.order == Order::Descending {
            return Ok(None);
        }
        self.with_permit(Operation::Range, self.arrow_page(table, request)).await.map(Some)
    }

    async fn latest(&self, request: &LatestRequest) -> Result<RecordPage> {
        let table = self.table_of(request.dataset, Operation::Latest)?;
        validate_request(Operation::Latest, || {
            request.check()?;
            check_selection(table, &request.selection)
        })?;
        self.with_permit(Operation::Latest, self.latest_page(table, request)).await
    }

    async fn derived_bars(&self, query: &BarQuery) -> Result<Page<Bar>> {
        self.table_of(PriceTick::DATASET, Operation::DerivedBars)?;
        validate_request(Operation::DerivedBars, || Ok(Derived(query).anchor().map(drop)?))?;
        self.with_permit(Operation::DerivedBars, async {
            if self.bars_state(false).await?.announced.is_none() {
                return self.derived_page(query).await;
            }
            match self.materialized_page(query).await {
                // Materialized bars were switched off after the state was cached.
                Err(cause) if cause.has_code(NO_TABLE) => self.derived_page(query).await,
                page => page,
            }
        })
        .await
    }

    async fn stats(&self, query: &StatsQuery) -> Result<Option<RangeStats>> {
        self.table_of(PriceTick::DATASET, Operation::Stats)?;
        self.with_permit(Operation::Stats, self.range_stats(query)).await
    }

    async fn series(&self, request: &SeriesRequest) -> Result<Page<SeriesSummary>> {
        let table = self.table_of(request.dataset, Operation::Series)?;
        validate_request(Operation::Series, || Ok(request.anchor().map(drop)?))?;
        self.with_permit(Operation::Series, self.series_page(table, request)).await
    }

    async fn delete_range(&self, query: &DeleteQuery) -> Result<()> {
        let table = self.table_of(query.dataset, Operation::DeleteRange)?;
        validate_request(Operation::DeleteRange, || {
            query.check()?;
            check_selection(table, &query.selection)
        })?;
        self.with_permit(Operation::DeleteRange, self.delete(table, query)).await
    }

    async fn purge_before(&self, dataset: Dataset, cutoff: Timestamp) -> Result<()> {
        let table = self.table_of(dataset, Operation::PurgeBefore)?;
        self.with_permit(Operation::PurgeBefore, self.purge(table, cutoff)).await
    }

    async fn maintain(&self, request: &MaintainRequest) -> Result<MaintenanceReport> {
        self.table_of(PriceTick::DATASET, Operation::Maintain)?;
        self.maintain_all(request).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.connections.close().await;
        Ok(())
    }
}
