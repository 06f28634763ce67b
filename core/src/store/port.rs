//! The `PriceStore` trait.

use std::fmt::{Debug, Display};

use async_trait::async_trait;
use auto_impl::auto_impl;

use super::{
    ArrowPage, BarQuery, DeleteQuery, InsertReport, LatestRequest, MaintainRequest, MaintenanceReport, Page,
    RangeRequest, RangeStats, RecordPage, SchemaReport, SeriesRequest, SeriesSummary, StatsQuery, StoreInfo,
    StorePingReport,
};
use crate::record::{Dataset, Records};
use crate::{Bar, Result, Timestamp};

/// Price storage: datasets of records that are written in batches by key and read in pages.
///
/// The port handles records without their Rust type, so a store keeps the records of every dataset that the program
/// registers. Callers use the typed methods of [`super::PriceStoreExt`], for example `insert_ticks`, `ticks`,
/// `insert_records::<R>`, the streams and the analytics. Every store has these methods.
///
/// # Guarantees of every store
/// - **Idempotent by key.** A write that begins after another write was acknowledged wins. Of two overlapping writes,
///   either value may remain, but never a mixture. If a batch repeats a key, the later record wins.
/// - **Validation before I/O.** A batch above [`StoreInfo::max_batch`] or a cursor of another query is `InvalidInput`
///   before any I/O.
/// - **Acknowledged means readable.** After `Ok` the records are durable as configured, and later reads
///   through this handle see them.
/// - **Not atomic.** After an error any part of a batch may be stored. Sending the batch again is always safe.
/// - **Half-open ranges, total order.** A range is `[start, end)`; records are ordered by (ts, seq).
/// - **An error is never an empty result**, and an empty result is never an error. For an unknown instrument the result
///   is an empty page, None, or a missing entry.
/// - **Exact values.** Reads return exactly the written values. Sums are exact and rounded once, half away from zero,
///   to 18 places. A sum of 10²⁰ or more is `OutOfRange`.
/// - **[`PriceStore::ensure_schema`] comes first.** Before it, every other data call is `SchemaMismatch`. A call for a
///   dataset that the store was not opened with is `SchemaMismatch` too.
/// - **Dropping a future** leaves the store usable. The result of a write in flight is unknown, and the write may still
///   take effect until the server-side limit.
/// - **Outages.** A call of a server that does not respond fails with `Unavailable`, `Timeout` or `Overloaded`. These
///   errors are retryable. After such an error, the result of a write is unknown, and sending the batch again is safe.
///   With all layers, a call waits at most `retry.max_elapsed` plus `timeout.call`, or plus `timeout.bulk` for a bulk
///   operation. [`guide::operations`](crate::guide::operations#outages) lists the wait and the retries of each call.
/// - **After [`PriceStore::close`]** every call is `Closed`.
///
/// # Differences between stores
/// - The part of a failed batch that was stored, and the winner of two overlapping writes.
/// - Automatic removal of data. A store removes data automatically only by the policies in [`StoreInfo::retention`].
///
/// # Later versions
/// A method that is added later has a default body, so that an implementation still compiles.
///
/// # Non-goals
/// The port is not a query language. To run your own SQL, open the concrete adapter and use its raw handle.
///
/// [`guide::store`](crate::guide::store) has the full contract with its reasons.
///
/// # Signatures
/// Read every method that returns a `Pin<Box<dyn Future<..>>>` as an `async fn`.
///
/// # Example
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

    /// Creates the missing tables of the store's datasets, and adds optional columns that were declared since. It
    /// changes nothing else. The call is idempotent and never destructive. Many processes, and two versions of a
    /// program, may run it concurrently.
    ///
    /// If the program's columns are the first columns of the stored dataset, the program is an older version of
    /// it and the call succeeds.
    ///
    /// # Errors
    /// `SchemaMismatch` if the schema is newer than this code, or if a stored dataset differs from its declaration in
    /// another way. The message names the difference and the remedy.
    async fn ensure_schema(&self) -> Result<SchemaReport>;

    /// Does what [`PriceStore::ensure_schema`] does, and changes the server's settings of existing tables to the
    /// configured ones, for example the chunk interval. The tool `qi migrate` calls it. A service calls `ensure_schema`,
    /// because several versions of a service may run concurrently with different settings.
    ///
    /// Defaults to `ensure_schema`, for stores without such settings.
    ///
    /// # Errors
    /// As [`PriceStore::ensure_schema`].
    async fn migrate_schema(&self) -> Result<SchemaReport> {
        self.ensure_schema().await
    }

    /// Returns the statements that [`PriceStore::migrate_schema`] would run now, and changes nothing. An empty list
    /// means that the schema is complete and that no setting differs.
    ///
    /// # Errors
    /// As [`PriceStore::ensure_schema`].
    async fn plan_schema(&self) -> Result<Vec<String>>;

    /// Sends a request to the server and returns its round-trip time.
    async fn ping(&self) -> Result<StorePingReport>;

    /// Writes a batch of records under the guarantees above. An empty batch is Ok without I/O.
    async fn insert(&self, batch: &dyn Records) -> Result<InsertReport>;

    /// Returns one page (1,000 records by default) of the records of one series in a range, by (time, seq).
    /// [`range_stream`](super::PriceStoreExt::range_stream) returns all pages.
    async fn range(&self, request: &RangeRequest) -> Result<RecordPage>;

    /// Returns the next records of a request in the IPC stream format of Apache Arrow, for bulk reads. Returns None if the
    /// store has no such read, or if the request is descending; then the caller reads pages with [`PriceStore::range`].
    ///
    /// The page begins after the cursor of the request. The store chooses its size: the limit of the request does not
    /// apply. The batches have the time, the sequence number and the values of the records as columns with the declared
    /// names, without the series. The types are those that the crate `qi-arrow` decodes. An empty page has no bytes.
    async fn range_arrow(&self, request: &RangeRequest) -> Result<Option<ArrowPage>> {
        let _ = request;
        Ok(None)
    }

    /// Returns one page (1,000 records by default) of the latest record of each selected owner, in the order of the
    /// owners. [`latest_stream`](super::PriceStoreExt::latest_stream) returns all pages.
    async fn latest(&self, request: &LatestRequest) -> Result<RecordPage>;

    /// Returns one page (1,000 bars by default) of bars that are the exact result of the ticks at the time of the call, so
    /// late and corrected ticks change them immediately. Each bar is computed from its entire bucket, so the bar of the
    /// current bucket has the ticks so far. An empty bucket has no bar.
    /// [`bar_stream`](super::PriceStoreExt::bar_stream) returns all pages.
    ///
    /// # Errors
    /// `OutOfRange` if a volume is 10²⁰ or more.
    async fn derived_bars(&self, query: &BarQuery) -> Result<Page<Bar>>;

    /// Returns figures over the ticks of a range, or None if the range has no ticks.
    ///
    /// # Errors
    /// `OutOfRange` if a volume is 10²⁰ or more.
    async fn stats(&self, query: &StatsQuery) -> Result<Option<RangeStats>>;

    /// Returns one page (1,000 owners by default) of the owners that have at least one record in a dataset, in order.
    /// [`all_series`](super::PriceStoreExt::all_series) returns all series.
    async fn series(&self, request: &SeriesRequest) -> Result<Page<SeriesSummary>>;

    /// Removes the records of a range. Later reads do not see them. Inserting the same batch again makes its records
    /// visible again. Repeating the call is Ok.
    async fn delete_range(&self, query: &DeleteQuery) -> Result<()>;

    /// Removes the records of a dataset whose time is before `cutoff`, exact to the microsecond.
    async fn purge_before(&self, dataset: Dataset, cutoff: Timestamp) -> Result<()>;

    /// Materializes bars up to a watermark, and rebuilds the materialized hours whose ticks have changed since. Results of
    /// other calls do not depend on it: a store reads materialized bars only where they are the exact result of the
    /// ticks. [`Maintenance`](crate::Maintenance) is an agent that calls this method.
    ///
    /// The call works in steps. It returns after [`MaintainRequest::budget`], and a further call continues. Two calls at
    /// once, and a call that is killed at any point, are safe.
    ///
    /// Defaults to no work, for stores without materialized bars.
    async fn maintain(&self, request: &MaintainRequest) -> Result<MaintenanceReport> {
        let _ = request;
        Ok(MaintenanceReport::default())
    }

    /// Waits for calls in progress, then releases all resources. Idempotent.
    async fn close(&self) -> Result<()>;
}
