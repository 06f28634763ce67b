//! The port itself.

use std::fmt::{Debug, Display};

use async_trait::async_trait;
use auto_impl::auto_impl;

use super::{
    BarQuery, DeleteQuery, InsertReport, LatestRequest, Page, RangeRequest, RangeStats, RecordPage,
    SchemaReport, SeriesRequest, SeriesSummary, StatsQuery, StoreInfo, StoreStatus,
};
use crate::record::{Dataset, Records};
use crate::{Ohlcv, Result, Timestamp};

/// Price storage: datasets of records, written in batches by key, read in pages.
///
/// The port handles records without their type, so a store keeps the records of every dataset that the program
/// registers. Callers use the typed methods of [`super::PriceStoreExt`], which every store has: `insert_ticks`, `ticks`,
/// `insert::<R>`, streams, analytics.
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
/// - **Nothing before [`PriceStore::ensure_schema`]**: every other data call is `SchemaMismatch`. So is a call for a
///   dataset that the store was not opened with.
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
    /// Returns metadata about the store. Performs no I/O.
    fn info(&self) -> StoreInfo;

    /// Creates the missing tables of the store's datasets, and adds optional columns that were declared since. It changes
    /// nothing else: idempotent, safe to run from many processes and by two versions of a program at once, never
    /// destructive.
    ///
    /// A program whose columns are the first columns of the stored dataset is an older version of it, and may go on.
    ///
    /// # Errors
    /// `SchemaMismatch` if the schema is newer than this code, or a stored dataset differs from its declaration in
    /// another way. The message says what differs and what to do.
    async fn ensure_schema(&self) -> Result<SchemaReport>;

    /// Returns the statements that [`PriceStore::ensure_schema`] would run now, and changes nothing. Empty: the schema
    /// is complete.
    ///
    /// # Errors
    /// As [`PriceStore::ensure_schema`].
    async fn plan_schema(&self) -> Result<Vec<String>>;

    /// Sends a request to the server and returns its round trip.
    async fn ping(&self) -> Result<StoreStatus>;

    /// Writes records; see the contract above. An empty batch is Ok without I/O.
    async fn insert(&self, batch: &dyn Records) -> Result<InsertReport>;

    /// Returns the records of one series in a range, by (time, seq).
    async fn range(&self, request: &RangeRequest) -> Result<RecordPage>;

    /// Returns the latest record of each selected owner, in the order of the owners.
    async fn latest(&self, request: &LatestRequest) -> Result<RecordPage>;

    /// Returns bars that are computed from the ticks at every call: late and corrected ticks change them at once. Each is
    /// computed from its whole bucket; an empty bucket has none.
    ///
    /// # Errors
    /// `OutOfRange` if a volume is 10²⁰ or more.
    async fn derived_bars(&self, query: &BarQuery) -> Result<Page<Ohlcv>>;

    /// Returns figures over the ticks of a range; None without ticks.
    ///
    /// # Errors
    /// `OutOfRange` if a volume is 10²⁰ or more.
    async fn stats(&self, query: &StatsQuery) -> Result<Option<RangeStats>>;

    /// Returns the owners that have at least one record in a dataset, in order.
    async fn series(&self, request: &SeriesRequest) -> Result<Page<SeriesSummary>>;

    /// Removes the records of a range. They are invisible afterwards; the same batch inserted again is visible
    /// again. Repeating it is Ok.
    async fn delete_range(&self, query: &DeleteQuery) -> Result<()>;

    /// Removes the records of a dataset whose time is before `cutoff`, exact to the microsecond.
    async fn purge_before(&self, dataset: Dataset, cutoff: Timestamp) -> Result<()>;

    /// Waits for what is under way, then releases everything. Idempotent.
    async fn close(&self) -> Result<()>;
}
