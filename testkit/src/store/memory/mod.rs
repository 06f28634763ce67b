//! [`MemoryStore`]: a price store that is gone with the process, and in all else keeps the contract.

mod read;
mod row;
mod series;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use async_trait::async_trait;
use qi_core::store::{
    Anchor, BarQuery, Dataset, DeleteQuery, InsertReport, InstrumentDataset, InstrumentQuery,
    InstrumentSummary, LatestBarsQuery, LatestQuery, Page, Paged, PriceStore, RangeQuery, RangeStats,
    SchemaReport, SnapshotQuery, StatsQuery, StoreInfo, StoreStatus,
};
use qi_core::{
    Clock, Error, ErrorKind, Instrument, Interval, MarketSnapshot, Ohlcv, Operation, PriceTick, Quote,
    Result, RetryAdvice, Scope, SystemClock, Timestamp,
};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use self::row::{Row, State, Window};
use self::table::Rules;
use super::MemoryStoreConfig;

const BACKEND: &str = "memory";

/// So many records are written under one lock; then other tasks and readers have their turn.
const SLICE: usize = 10_000;

/// A [`PriceStore`] in memory: sorted, bounded, safe under concurrent use, absent until `ensure_schema`.
///
/// It is never larger than [`MemoryStoreConfig::max_rows`]. A new key beyond that is refused with kind
/// `Overloaded`, code `store.memory.full` and the advice never to retry; a key that is there can be replaced.
/// Only the retention of the configuration removes anything by itself.
///
/// Every call first gives way to other tasks when its task has used up tokio's budget, so that a tight loop of
/// calls starves nobody and sees its cancellation. A large batch is written in slices, with other tasks and
/// readers in between.
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
    /// The calls under way, which `close` waits for.
    calls: TaskTracker,
    /// The stamp of the last batch.
    batches: AtomicU64,
}

impl Default for MemoryStore {
    /// A store of the default configuration, on the machine's clock.
    fn default() -> Self {
        Self::build(MemoryStoreConfig::default(), Arc::new(SystemClock))
    }
}

impl MemoryStore {
    /// A store on the machine's clock.
    ///
    /// # Errors
    /// `Config` for a bound that is out of range.
    pub fn new(config: MemoryStoreConfig) -> Result<Self> {
        Self::with_clock(config, Arc::new(SystemClock))
    }

    /// A store whose retention by age looks at this clock.
    ///
    /// # Errors
    /// `Config` for a bound that is out of range.
    pub fn with_clock(config: MemoryStoreConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        config.validate()?;
        Ok(Self::build(config, clock))
    }

    fn build(config: MemoryStoreConfig, clock: Arc<dyn Clock>) -> Self {
        let mut info = StoreInfo::new(BACKEND);
        info.version = Some(env!("CARGO_PKG_VERSION").to_owned());
        info.max_batch = config.max_batch;
        info.retention = config.retention.rules();
        Self {
            config,
            info,
            clock,
            state: RwLock::default(),
            closed: AtomicBool::new(false),
            calls: TaskTracker::new(),
            batches: AtomicU64::new(0),
        }
    }

    /// How many records the store holds, of all datasets together.
    pub fn rows(&self) -> usize {
        self.state.read().unwrap_or_else(PoisonError::into_inner).rows
    }

    /// Begins a call: gives way if the budget is used up, and is refused after `close`.
    async fn enter(&self, operation: Operation) -> Result<TaskTrackerToken> {
        tokio::task::coop::consume_budget().await;
        // The token comes first, so that `close` either waits for this call or is seen by it.
        let call = self.calls.token();
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::closed("store.memory.closed", operation).with_backend(BACKEND));
        }
        Ok(call)
    }

    /// Reads the state, once there is a schema.
    fn read<T>(&self, operation: Operation, read: impl FnOnce(&State) -> Result<T>) -> Result<T> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        schema(&state, operation)?;
        read(&state).map_err(at(operation))
    }

    /// Changes the state, once there is a schema.
    fn write<T>(&self, operation: Operation, write: impl FnOnce(&mut State) -> T) -> Result<T> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        schema(&state, operation)?;
        Ok(write(&mut state))
    }

    async fn insert<R: Row>(&self, operation: Operation, batch: &[R]) -> Result<InsertReport> {
        let _call = self.enter(operation).await?;
        self.info.check_batch(batch.len()).map_err(at(operation))?;
        let keep = self.config.retention.of(R::DATASET);
        let stamp = self.batches.fetch_add(1, Ordering::Relaxed) + 1;
        let mut duplicates = 0;
        for (n, slice) in batch.chunks(SLICE).enumerate() {
            if n > 0 {
                tokio::task::yield_now().await;
            }
            let now = self.clock.now();
            let cutoff = |of| self.config.retention.of(of).max_age().and_then(|age| now.checked_sub(age));
            let rules = Rules {
                max_rows: self.config.max_rows,
                per_series: keep.max_rows_per_series,
                cutoff: cutoff(R::DATASET),
                stamp,
            };
            let put = self.write(operation, |state| {
                // Before room may run short, the other datasets give back what they need not keep.
                if state.rows.saturating_add(slice.len()) > rules.max_rows {
                    state.expire(cutoff);
                }
                let (table, rows) = R::parts(state);
                table.put_all(slice, rules, rows)
            })?;
            duplicates += put.map_err(|_| self.full(operation))?;
        }
        let mut report = InsertReport::new(batch.len(), 0);
        report.duplicates_in_batch = duplicates;
        Ok(report)
    }

    fn full(&self, operation: Operation) -> Error {
        Error::new(ErrorKind::Overloaded, "store.memory.full", operation)
            .with_backend(BACKEND)
            .with_retry(RetryAdvice::Never)
            .with_message("the memory store is full; raise max_rows or give it a retention")
            .with_context("max_rows", self.config.max_rows)
    }
}

fn schema(state: &State, operation: Operation) -> Result<()> {
    if state.schema {
        return Ok(());
    }
    Err(Error::new(ErrorKind::SchemaMismatch, "store.memory.no_schema", operation)
        .with_backend(BACKEND)
        .with_message("nothing exists before ensure_schema"))
}

/// Says where an error was raised, which core's checks cannot know.
fn at(operation: Operation) -> impl Fn(Error) -> Error {
    move |error| error.with_operation(operation).with_backend(BACKEND)
}

/// The anchor of a paged query, checked before anything else.
fn check<T, Q: Paged<T>>(operation: Operation, query: &Q) -> Result<Anchor> {
    query.anchor().map_err(at(operation))
}

fn instrument_after(anchor: &Anchor) -> Option<&Instrument> {
    match anchor {
        Anchor::Instrument(instrument) => Some(instrument),
        _ => None,
    }
}

#[async_trait]
impl PriceStore for MemoryStore {
    fn info(&self) -> StoreInfo {
        self.info.clone()
    }

    async fn ensure_schema(&self) -> Result<SchemaReport> {
        let _call = self.enter(Operation::EnsureSchema).await?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let was_there = std::mem::replace(&mut state.schema, true);
        Ok(SchemaReport::new(1, if was_there { Vec::new() } else { vec!["create tables".to_owned()] }))
    }

    async fn ping(&self) -> Result<StoreStatus> {
        let start = Instant::now();
        let _call = self.enter(Operation::StorePing).await?;
        let mut status = StoreStatus::new(start.elapsed());
        status.version.clone_from(&self.info.version);
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
        const OP: Operation = Operation::Ticks;
        let _call = self.enter(OP).await?;
        check::<PriceTick, _>(OP, query)?;
        self.read(OP, |state| read::range(&state.ticks, &query.instrument, query.range, query.order, query))
    }

    async fn quotes(&self, query: &RangeQuery) -> Result<Page<Quote>> {
        const OP: Operation = Operation::Quotes;
        let _call = self.enter(OP).await?;
        check::<Quote, _>(OP, query)?;
        self.read(OP, |state| read::range(&state.quotes, &query.instrument, query.range, query.order, query))
    }

    async fn bars(&self, query: &BarQuery) -> Result<Page<Ohlcv>> {
        const OP: Operation = Operation::Bars;
        let _call = self.enter(OP).await?;
        check(OP, query)?;
        let series = (query.instrument.clone(), query.interval);
        self.read(OP, |state| read::range(&state.bars, &series, query.range, query.order, query))
    }

    async fn snapshots(&self, query: &SnapshotQuery) -> Result<Page<MarketSnapshot>> {
        const OP: Operation = Operation::Snapshots;
        let _call = self.enter(OP).await?;
        check(OP, query)?;
        self.read(OP, |state| read::range(&state.snapshots, &query.scope, query.range, query.order, query))
    }

    async fn latest_ticks(&self, query: &LatestQuery) -> Result<Page<PriceTick>> {
        const OP: Operation = Operation::LatestTicks;
        let _call = self.enter(OP).await?;
        let anchor = check::<PriceTick, _>(OP, query)?;
        let latest = read::Latest::of(&query.selection, query.as_of, instrument_after(&anchor));
        self.read(OP, |state| query.page_of(latest.found(&state.ticks, Instrument::clone, query)))
    }

    async fn latest_quotes(&self, query: &LatestQuery) -> Result<Page<Quote>> {
        const OP: Operation = Operation::LatestQuotes;
        let _call = self.enter(OP).await?;
        let anchor = check::<Quote, _>(OP, query)?;
        let latest = read::Latest::of(&query.selection, query.as_of, instrument_after(&anchor));
        self.read(OP, |state| query.page_of(latest.found(&state.quotes, Instrument::clone, query)))
    }

    async fn latest_bars(&self, query: &LatestBarsQuery) -> Result<Page<Ohlcv>> {
        const OP: Operation = Operation::LatestBars;
        let _call = self.enter(OP).await?;
        let anchor = check(OP, query)?;
        let latest = read::Latest::of(&query.selection, query.as_of, instrument_after(&anchor))
            .known_after(query.interval.duration());
        self.read(OP, |state| {
            let series = |instrument: &Instrument| (instrument.clone(), query.interval);
            query.page_of(latest.found(&state.bars, series, query))
        })
    }

    async fn latest_snapshots(&self, query: &LatestQuery<Scope>) -> Result<Page<MarketSnapshot>> {
        const OP: Operation = Operation::LatestSnapshots;
        let _call = self.enter(OP).await?;
        let after = match check(OP, query)? {
            Anchor::Scope(scope) => Some(scope),
            _ => None,
        };
        let latest = read::Latest::of(&query.selection, query.as_of, after.as_ref());
        self.read(OP, |state| query.page_of(latest.found(&state.snapshots, Scope::clone, query)))
    }

    async fn derived_bars(&self, query: &BarQuery) -> Result<Page<Ohlcv>> {
        const OP: Operation = Operation::DerivedBars;
        let _call = self.enter(OP).await?;
        check(OP, &qi_core::store::Derived(query))?;
        self.read(OP, |state| read::derived(&state.ticks, query))
    }

    async fn stats(&self, query: &StatsQuery) -> Result<Option<RangeStats>> {
        let _call = self.enter(Operation::Stats).await?;
        self.read(Operation::Stats, |state| read::stats(&state.ticks, query))
    }

    async fn instruments(&self, query: &InstrumentQuery) -> Result<Page<InstrumentSummary>> {
        const OP: Operation = Operation::Instruments;
        let _call = self.enter(OP).await?;
        check(OP, query)?;
        self.read(OP, |state| match query.dataset {
            InstrumentDataset::Ticks => read::instruments(&state.ticks, |key| key, Clone::clone, query),
            InstrumentDataset::Quotes => read::instruments(&state.quotes, |key| key, Clone::clone, query),
            InstrumentDataset::Bars => {
                let first = |instrument: &Instrument| (instrument.clone(), Interval::ALL[0]);
                read::instruments(&state.bars, |key| &key.0, first, query)
            }
        })
    }

    async fn delete_range(&self, query: &DeleteQuery) -> Result<()> {
        const OP: Operation = Operation::DeleteRange;
        let _call = self.enter(OP).await?;
        self.write(OP, |state| {
            let State { rows, ticks, quotes, bars, snapshots, schema: _ } = state;
            match query {
                DeleteQuery::Ticks(of, range) => {
                    ticks.remove(|key| of.contains(key), Window::of(*range), rows);
                    Ok(())
                }
                DeleteQuery::Quotes(of, range) => {
                    quotes.remove(|key| of.contains(key), Window::of(*range), rows);
                    Ok(())
                }
                DeleteQuery::Bars(interval, of, range) => {
                    let chosen = |key: &(Instrument, Interval)| key.1 == *interval && of.contains(&key.0);
                    bars.remove(chosen, Window::of(*range), rows);
                    Ok(())
                }
                DeleteQuery::Snapshots(of, range) => {
                    snapshots.remove(|key| of.contains(key), Window::of(*range), rows);
                    Ok(())
                }
                other => Err(Error::new(ErrorKind::Unsupported, "store.memory.delete", OP)
                    .with_backend(BACKEND)
                    .with_context("query", format_args!("{other:?}"))),
            }
        })?
    }

    async fn purge_before(&self, dataset: Dataset, cutoff: Timestamp) -> Result<()> {
        const OP: Operation = Operation::PurgeBefore;
        let _call = self.enter(OP).await?;
        let window = Window { hi: (cutoff, 0), ..Window::ALL };
        self.write(OP, |state| {
            let State { rows, ticks, quotes, bars, snapshots, schema: _ } = state;
            match dataset {
                Dataset::Ticks => ticks.remove(|_| true, window, rows),
                Dataset::Quotes => quotes.remove(|_| true, window, rows),
                Dataset::Bars => bars.remove(|_| true, window, rows),
                Dataset::Snapshots => snapshots.remove(|_| true, window, rows),
            }
        })
    }

    async fn close(&self) -> Result<()> {
        tokio::task::coop::consume_budget().await;
        self.closed.store(true, Ordering::SeqCst);
        self.calls.close();
        self.calls.wait().await;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = State::default();
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
