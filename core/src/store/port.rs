//! The port itself.

use std::fmt::{Debug, Display};

use async_trait::async_trait;
use auto_impl::auto_impl;

use super::{
    BarQuery, Dataset, DeleteQuery, InsertReport, InstrumentQuery, InstrumentSummary, LatestBarsQuery,
    LatestQuery, Page, RangeQuery, RangeStats, SchemaReport, SnapshotQuery, StatsQuery, StoreInfo,
    StoreStatus,
};
use crate::{MarketSnapshot, Ohlcv, PriceTick, Quote, Result, Scope, Timestamp};

/// Price storage: four datasets, written in batches by key, read in pages.
///
/// Conveniences (single records, streams, analytics) are in [`super::PriceStoreExt`], for every implementation.
///
/// # What every store guarantees
/// - **Idempotent by key.** A write that begins after another was acknowledged wins; of two overlapping ones
///   either value may remain, never a mixture. Inside a batch the later record of a key wins.
/// - **Checked first.** A batch above [`StoreInfo::max_batch`], or a cursor of another query, is `InvalidInput`
///   before any I/O.
/// - **Acknowledged means readable.** Ok: durable as configured, and seen by later reads through this handle.
/// - **Not atomic.** After an error any part of a batch may be stored; sending it again is always safe.
/// - **Half-open ranges, total order.** `[start, end)`, by (ts, seq).
/// - **An error is never an empty result**, and an empty result is never an error: an unknown instrument is an
///   empty page, None, or absent.
/// - **Exact values.** What comes back is what was written; sums are exact and rounded once, half away from zero,
///   at 18 places; a sum of 10²⁰ or more is `OutOfRange`.
/// - **Nothing before [`PriceStore::ensure_schema`]**: every other data call is `SchemaMismatch`.
/// - **Dropping a future** leaves the store usable. What it was writing is unknown, and may still land until the
///   server-side limit.
/// - **After [`PriceStore::close`]** every call is `Closed`.
///
/// # What varies
/// - What a batch that failed left behind, and which of two overlapping writers wins.
/// - Whether anything is removed without being asked: only what [`StoreInfo::retention`] names.
///
/// # What it is not
/// A query language. For SQL of your own open the concrete adapter and use its raw handle.
///
/// The full text with its reasons stands in `docs/store.md`.
///
/// ```
/// use qi_core::store::{PriceStore, PriceStoreExt, RangeQuery};
/// use qi_core::{PriceTick, Result, TimeRange, Timestamp};
///
/// async fn example(store: &dyn PriceStore) -> Result<()> {
///     store.ensure_schema().await?;
///     let ts = Timestamp::from_millis(1_610_064_000_278)?;
///     let tick = PriceTick::new("binance:BTC-USDT".parse()?, ts, 553_287_559, "39432.48".parse()?)?;
///     store.insert_ticks(&[tick.clone()]).await?;
///     let page = store.ticks(&RangeQuery::new(tick.instrument().clone(), TimeRange::since(ts))).await?;
///     assert_eq!(page.items, [tick]);
///     Ok(())
/// }
/// ```
#[async_trait]
#[auto_impl(Arc, Box)]
pub trait PriceStore: Debug + Display + Send + Sync + 'static {
    /// What is known of the store without asking it.
    fn info(&self) -> StoreInfo;

    /// Creates what is missing, and changes nothing else: idempotent, safe to run from many processes at once,
    /// never destructive.
    ///
    /// # Errors
    /// `SchemaMismatch` if the schema is newer than this code.
    async fn ensure_schema(&self) -> Result<SchemaReport>;

    /// Asks the server whether it answers.
    async fn ping(&self) -> Result<StoreStatus>;

    /// Writes ticks; see the contract above. An empty batch is Ok without I/O.
    async fn insert_ticks(&self, batch: &[PriceTick]) -> Result<InsertReport>;
    /// Writes quotes; see the contract above.
    async fn insert_quotes(&self, batch: &[Quote]) -> Result<InsertReport>;
    /// Writes bars; see the contract above. They are data of their own, apart from derived ones.
    async fn insert_bars(&self, batch: &[Ohlcv]) -> Result<InsertReport>;
    /// Writes snapshots; see the contract above.
    async fn insert_snapshots(&self, batch: &[MarketSnapshot]) -> Result<InsertReport>;

    /// Ticks of an instrument in a range, by (ts, seq).
    async fn ticks(&self, query: &RangeQuery) -> Result<Page<PriceTick>>;
    /// Quotes of an instrument in a range, by (ts, seq).
    async fn quotes(&self, query: &RangeQuery) -> Result<Page<Quote>>;
    /// Stored bars of an instrument that open in a range, by open time.
    async fn bars(&self, query: &BarQuery) -> Result<Page<Ohlcv>>;
    /// Snapshots of a scope in a range, by time.
    async fn snapshots(&self, query: &SnapshotQuery) -> Result<Page<MarketSnapshot>>;

    /// The latest tick of each selected instrument, in the order of the instruments.
    async fn latest_ticks(&self, query: &LatestQuery) -> Result<Page<PriceTick>>;
    /// The latest quote of each selected instrument, in the order of the instruments.
    async fn latest_quotes(&self, query: &LatestQuery) -> Result<Page<Quote>>;
    /// The latest stored bar of each selected instrument, in the order of the instruments.
    async fn latest_bars(&self, query: &LatestBarsQuery) -> Result<Page<Ohlcv>>;
    /// The latest snapshot of each selected scope, in the order of the scopes.
    async fn latest_snapshots(&self, query: &LatestQuery<Scope>) -> Result<Page<MarketSnapshot>>;

    /// Bars computed from the ticks, at every call anew: late and corrected ticks change them at once. Each is
    /// computed from its whole bucket; an empty bucket has none.
    ///
    /// # Errors
    /// `OutOfRange` if a volume is 10²⁰ or more.
    async fn derived_bars(&self, query: &BarQuery) -> Result<Page<Ohlcv>>;

    /// Figures over the ticks of a range; None without ticks.
    ///
    /// # Errors
    /// `OutOfRange` if a volume is 10²⁰ or more.
    async fn stats(&self, query: &StatsQuery) -> Result<Option<RangeStats>>;

    /// The instruments that have at least one record in a dataset.
    async fn instruments(&self, query: &InstrumentQuery) -> Result<Page<InstrumentSummary>>;

    /// Removes the records of a range. They are invisible afterwards; the same batch inserted again is visible
    /// again. Repeating it is Ok.
    async fn delete_range(&self, query: &DeleteQuery) -> Result<()>;

    /// Removes the records of a dataset whose time is before `cutoff`, exact to the microsecond.
    async fn purge_before(&self, dataset: Dataset, cutoff: Timestamp) -> Result<()>;

    /// Waits for what is under way, then releases everything. Idempotent.
    async fn close(&self) -> Result<()>;
}
