//! [`MemoryStore`]: an in-memory price store with the complete contract. `close` and the end of the process discard its
//! data.

mod grouped;
mod read;
mod series;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use async_trait::async_trait;
use qi_core::record::{Dataset, Records, SeriesKey};
use qi_core::store::{
    BarQuery, DeleteQuery, Derived, InsertReport, LatestRequest, Page, Paged, PriceStore, RangeRequest,
    RangeStats, RecordPage, SchemaReport, SeriesRequest, SeriesSummary, StatsQuery, StoreInfo,
    StorePingReport,
};
use qi_core::{
    Bar, Clock, Error, ErrorKind, Operation, PriceTick, Result, RetryAdvice, SystemClock, Timestamp,
};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use self::grouped::GroupedBatch;
use self::series::{StampedBatch, Window};
use self::table::{InsertFailure, InsertLimits, Table};
use super::MemoryStoreConfig;

const BACKEND: &str = "memory";

/// The maximum number of records written under one lock. The insert yields between slices.
const INSERT_SLICE: usize = 10_000;

/// The records of the store.
#[derive(Debug)]
struct State {
    /// True after `ensure_schema`.
    schema: bool,
    /// The number of records in all tables.
    rows: usize,
    /// The tables in the order of the registered datasets.
    tables: Vec<Table>,
}

/// A [`PriceStore`] in memory: sorted, bounded, and safe for concurrent use. Its tables do
/// not exist before `ensure_schema`.
///
/// The store never holds more than [`MemoryStoreConfig::max_rows`] records. An insert of a new key beyond this limit
/// fails with the kind `Overloaded`, the code `store.memory.full` and the retry advice `Never`. Existing keys can
/// still be replaced. Records are removed automatically only by the configured retention.
///
/// Every call first yields to other tasks if its task has consumed tokio's cooperative budget. A tight loop of calls
/// therefore starves no other task and can be cancelled. A large batch is written in slices. Other tasks and readers
/// run between two slices.
///
/// ```
/// use qi_core::store::{PriceStore, PriceStoreExt};
/// use qi_core::{PriceTick, Timestamp};
/// use qi_testkit::store::MemoryStore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> qi_core::Result<()> {
/// let store = MemoryStore::default();
/// store.ensure_schema().await?;
/// let tick = PriceTick::new("binance:BTC-USDT".parse()?, Timestamp::from_secs(1_700_000_000)?, 1, "39432.48".parse()?)?;
/// store.insert_tick(&tick).await?;
/// assert_eq!(store.latest_tick(tick.instrument()).await?, Some(tick));
/// # Ok(())
/// # }
/// ```
pub struct MemoryStore {
    config: MemoryStoreConfig,
    info: StoreInfo,
    clock: Arc<dyn Clock>,
    state: RwLock<State>,
    closed: AtomicBool,
    /// The calls under way. `close` waits for them.
    calls: TaskTracker,
    /// The stamp of the last batch.
    batches: AtomicU64,
}

impl Default for MemoryStore {
    /// Returns a store with the default configuration and the system clock.
    fn default() -> Self {
        Self::build(MemoryStoreConfig::default(), Arc::new(SystemClock))
    }
}

impl MemoryStore {
    /// Creates a store with the system clock.
    ///
    /// # Errors
    /// `Config` if a setting is out of range.
    pub fn new(config: MemoryStoreConfig) -> Result<Self> {
        Self::with_clock(config, Arc::new(SystemClock))
    }

    /// Creates a store whose retention by age uses this clock.
    ///
    /// # Errors
    /// `Config` if a setting is out of range.
    pub fn with_clock(config: MemoryStoreConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        config.validate()?;
        Ok(Self::build(config, clock))
    }

    fn build(config: MemoryStoreConfig, clock: Arc<dyn Clock>) -> Self {
        let mut info = StoreInfo::new(BACKEND);
        info.version = Some(env!("CARGO_PKG_VERSION").to_owned());
        info.max_batch = config.max_batch;
        info.retention = config.retention.rules(&config.datasets);
        Self {
            state: RwLock::new(State::new(&config)),
            config,
            info,
            clock,
            closed: AtomicBool::new(false),
            calls: TaskTracker::new(),
            batches: AtomicU64::new(0),
        }
    }

    /// Returns the number of records in all datasets together.
    pub fn rows(&self) -> usize {
        self.state.read().unwrap_or_else(PoisonError::into_inner).rows
    }

    /// Starts a call: consumes one unit of tokio's cooperative budget, and fails after `close`.
    async fn enter(&self, operation: Operation) -> Result<TaskTrackerToken> {
        tokio::task::coop::consume_budget().await;
        // The token is taken first. Either `close` waits for this call, or this call sees the closed store.
        let call = self.calls.token();
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::closed("store.memory.closed", operation).with_backend(BACKEND));
        }
        Ok(call)
    }

    /// Reads the state. Fails if there is no schema.
    fn read<T>(&self, operation: Operation, read: impl FnOnce(&State) -> Result<T>) -> Result<T> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        schema(&state, operation)?;
        read(&state).map_err(at(operation))
    }

    /// Changes the state. Fails if there is no schema.
    fn write<T>(&self, operation: Operation, write: impl FnOnce(&mut State) -> T) -> Result<T> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        schema(&state, operation)?;
        Ok(write(&mut state))
    }

    /// Returns the index of a dataset's table.
    fn position(&self, operation: Operation, dataset: Dataset) -> Result<usize> {
        self.config.datasets.position(dataset).map_err(at(operation))
    }

    fn full(&self) -> Error {
        Error::new(ErrorKind::Overloaded, "store.memory.full", Operation::Insert)
            .with_backend(BACKEND)
            .with_retry(RetryAdvice::Never)
            .with_message("the memory store is full; raise max_rows or configure a retention")
            .with_context("max_rows", self.config.max_rows)
    }
}

fn schema(state: &State, operation: Operation) -> Result<()> {
    if state.schema {
        return Ok(());
    }
    Err(Error::new(ErrorKind::SchemaMismatch, "store.memory.no_schema", operation)
        .with_backend(BACKEND)
        .with_message("no schema exists; call ensure_schema first"))
}

/// Adds the operation and the backend to an error. The checks of core do not know them.
fn at(operation: Operation) -> impl Fn(Error) -> Error {
    move |error| error.with_operation(operation).with_backend(BACKEND)
}

impl State {
    fn new(config: &MemoryStoreConfig) -> Self {
        Self { schema: false, rows: 0, tables: config.datasets.iter().map(Table::new).collect() }
    }

    /// Returns the steps that `ensure_schema` would perform.
    fn missing(&self) -> Vec<String> {
        let create = |table: &Table| format!("create table {}", table.dataset());
        if self.schema { Vec::new() } else { self.tables.iter().map(create).collect() }
    }
}

#[async_trait]
impl PriceStore for MemoryStore {
    fn info(&self) -> StoreInfo {
        self.info.clone()
    }

    async fn ensure_schema(&self) -> Result<SchemaReport> {
        let _call = self.enter(Operation::EnsureSchema).await?;
        let state = &mut *self.state.write().unwrap_or_else(PoisonError::into_inner);
        let applied = state.missing();
        state.schema = true;
        Ok(SchemaReport::new(1, applied))
    }

    async fn plan_schema(&self) -> Result<Vec<String>> {
        let _call = self.enter(Operation::PlanSchema).await?;
        Ok(self.state.read().unwrap_or_else(PoisonError::into_inner).missing())
    }

    async fn ping(&self) -> Result<StorePingReport> {
        let start = Instant::now();
        let _call = self.enter(Operation::StorePing).await?;
        let mut status = StorePingReport::new(start.elapsed());
        status.version.clone_from(&self.info.version);
        Ok(status)
    }

    async fn insert(&self, batch: &dyn Records) -> Result<InsertReport> {
        const OP: Operation = Operation::Insert;
        let _call = self.enter(OP).await?;
        let position = self.position(OP, batch.dataset())?;
        self.info.check_batch(batch.len()).map_err(at(OP))?;
        let keep = |table: &Table| self.config.retention.rule(table.dataset());
        let stamp = self.batches.fetch_add(1, Ordering::Relaxed) + 1;
        let grouped = GroupedBatch::of(batch, INSERT_SLICE);
        let batch = grouped.as_ref().map_or(batch, |grouped| grouped as &dyn Records);
        let mut sort_keys = Vec::with_capacity(batch.len());
        batch.sort_keys(&mut sort_keys);
        let part = StampedBatch { records: batch, sort_keys: &sort_keys, stamp };
        let mut duplicates = 0;
        for from in (0..batch.len()).step_by(INSERT_SLICE) {
            if from > 0 {
                tokio::task::yield_now().await;
            }
            let to = batch.len().min(from + INSERT_SLICE);
            let now = self.clock.now();
            let cutoff = |table: &Table| keep(table).max_age.and_then(|age| now.checked_sub(age));
            let put = self.write(OP, |State { rows, tables, schema: _ }| {
                let max_rows = self.config.max_rows;
                // The records may exceed the capacity, so expired records of all datasets are removed first.
                if rows.saturating_add(to - from) > max_rows {
                    for table in &mut *tables {
                        table.expire(cutoff(table), rows);
                    }
                }
                let table = &mut tables[position];
                let per_series = keep(table).max_rows_per_series;
                let rules = InsertLimits { max_rows, per_series, cutoff: cutoff(table) };
                table.put_all(part, (from, to), rules, rows)
            })?;
            duplicates += put.map_err(|stopped| match stopped {
                InsertFailure::Full => self.full(),
                InsertFailure::Other(error) => at(OP)(error),
            })?;
        }
        let mut report = InsertReport::new(batch.len(), 0);
        report.duplicates_in_batch = duplicates;
        Ok(report)
    }

    async fn range(&self, request: &RangeRequest) -> Result<RecordPage> {
        const OP: Operation = Operation::Range;
        let _call = self.enter(OP).await?;
        let position = self.position(OP, request.dataset)?;
        request.anchor().map_err(at(OP))?;
        self.read(OP, |state| read::range(&state.tables[position], request))
    }

    async fn latest(&self, request: &LatestRequest) -> Result<RecordPage> {
        const OP: Operation = Operation::Latest;
        let _call = self.enter(OP).await?;
        let position = self.position(OP, request.dataset)?;
        request.check().map_err(at(OP))?;
        self.read(OP, |state| read::latest(&state.tables[position], request))
    }

    async fn derived_bars(&self, query: &BarQuery) -> Result<Page<Bar>> {
        const OP: Operation = Operation::DerivedBars;
        let _call = self.enter(OP).await?;
        let position = self.position(OP, PriceTick::DATASET)?;
        Derived(query).anchor().map_err(at(OP))?;
        self.read(OP, |state| read::derived(&state.tables[position], query))
    }

    async fn stats(&self, query: &StatsQuery) -> Result<Option<RangeStats>> {
        const OP: Operation = Operation::Stats;
        let _call = self.enter(OP).await?;
        let position = self.position(OP, PriceTick::DATASET)?;
        self.read(OP, |state| read::stats(&state.tables[position], query))
    }

    async fn series(&self, request: &SeriesRequest) -> Result<Page<SeriesSummary>> {
        const OP: Operation = Operation::Series;
        let _call = self.enter(OP).await?;
        let position = self.position(OP, request.dataset)?;
        request.anchor().map_err(at(OP))?;
        self.read(OP, |state| read::series(&state.tables[position], request))
    }

    async fn delete_range(&self, query: &DeleteQuery) -> Result<()> {
        const OP: Operation = Operation::DeleteRange;
        let _call = self.enter(OP).await?;
        let position = self.position(OP, query.dataset)?;
        query.check().map_err(at(OP))?;
        self.write(OP, |State { rows, tables, schema: _ }| {
            let chosen =
                |key: &SeriesKey| key.interval == query.interval && query.selection.contains(&key.owner);
            tables[position].remove(chosen, Window::of(query.range), rows);
        })
    }

    async fn purge_before(&self, dataset: Dataset, cutoff: Timestamp) -> Result<()> {
        const OP: Operation = Operation::PurgeBefore;
        let _call = self.enter(OP).await?;
        let position = self.position(OP, dataset)?;
        self.write(OP, |State { rows, tables, schema: _ }| {
            tables[position].remove(|_| true, Window { hi: (cutoff, 0), ..Window::ALL }, rows);
        })
    }

    async fn close(&self) -> Result<()> {
        tokio::task::coop::consume_budget().await;
        self.closed.store(true, Ordering::SeqCst);
        self.calls.close();
        self.calls.wait().await;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = State::new(&self.config);
        Ok(())
    }
}

impl fmt::Display for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("config", &self.config)
            .field("rows", &self.rows())
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}
