//! Convenience methods for callers of a store. Every store has them.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

use super::analytics::{self, BarSource, Change, FilledBar, Movers, MoversQuery};
use super::{
    BarQuery, InsertReport, InstrumentQuery, InstrumentSummary, LatestBarsQuery, LatestQuery, LatestRequest,
    MAX_PAGE, Page, PersistReport, PersistRequest, PriceStore, RangeQuery, RangeRequest, RecordPage,
    SeriesRequest, SeriesSummary, SnapshotQuery, StatsQuery, StorePingReport, persist,
};
use crate::record::{Dataset, Record, Series, SeriesKey, Slice};
use crate::{
    Bar, Decimal, Error, ErrorKind, Instrument, Interval, MarketSnapshot, PriceTick, Quote, Result, Scope,
    Selection, TimeRange, Timestamp,
};

/// Methods that are built from the port: typed and single records, streams over pages, chunked writes, analytics.
///
/// The trait is implemented for every [`PriceStore`] and cannot be implemented by hand.
///
/// # Streams
/// Streams fetch page by page. The limit of the query is the size of a page, not of the stream. A stream holds no
/// connection while the caller is busy, and keeps one page in memory. Every page has its own timeout and retries.
///
/// A stream ends after its first error. To continue in ascending order, read the rest with a new query that begins at
/// the time of the last record. The start of a range is inclusive, so records of that time are returned again. A
/// program that must not see them twice reads pages, and continues after [`Page::resume`] with `query.after(cursor)`.
///
/// Most streams borrow the store. The methods [`into_range_stream`](Self::into_range_stream),
/// [`into_latest_stream`](Self::into_latest_stream), [`into_bar_stream`](Self::into_bar_stream),
/// [`into_bars_filled`](Self::into_bars_filled) and [`into_gaps`](Self::into_gaps) take the store, for example a clone of
/// an `Arc<dyn PriceStore>`, and return a `'static` stream. [`sma`](Self::sma),
/// [`persist_bar_pages`](Self::persist_bar_pages) and `qi_arrow::range_batches` have no such variant. In the example, a
/// task owns the stream:
///
/// ```
/// use std::sync::Arc;
/// use futures::TryStreamExt;
/// use qi_core::prelude::*;
///
/// fn count_ticks(store: &Arc<dyn PriceStore>, query: &RangeQuery) -> tokio::task::JoinHandle<Result<usize>> {
///     let mut ticks = store.clone().into_range_stream::<PriceTick>(query);
///     tokio::spawn(async move {
///         let mut count = 0;
///         while ticks.try_next().await?.is_some() {
///             count += 1;
///         }
///         Ok(count)
///     })
/// }
/// ```
pub trait PriceStoreExt: PriceStore {
    /// Writes records under the contract of [`PriceStore`].
    ///
    /// # Errors
    /// `InvalidInput` with its index for a record that is not valid; else the store's error.
    fn insert_records<R: Record>(&self, batch: &[R]) -> impl Future<Output = Result<InsertReport>> + Send {
        async move { self.insert(&Slice::new(batch)?).await }
    }

    /// Writes one record. To write many records in one call, use `insert_records`, which costs one round trip. To write a
    /// series of single records, use [`crate::Buffered`].
    fn insert_record<R: Record>(&self, record: &R) -> impl Future<Output = Result<()>> + Send {
        async move { self.insert_records(std::slice::from_ref(record)).await.map(drop) }
    }

    /// Writes any number of records in chunks of `chunk` records. Each chunk has its own timeout and retries. After an
    /// error the earlier chunks are stored, and sending all records again is safe.
    ///
    /// # Errors
    /// `InvalidInput` for a chunk of 0 or above the store's `max_batch`; else the error of the first chunk that fails.
    fn insert_records_chunked<R: Record>(
        &self,
        records: &[R],
        chunk: usize,
    ) -> impl Future<Output = Result<InsertReport>> + Send {
        async move {
            let max_batch = self.info().max_batch;
            if !(1..=max_batch).contains(&chunk) {
                let rule = format!("must lie from 1 to {max_batch}");
                return Err(Error::new(ErrorKind::InvalidInput, "store.batch.chunk", "insert_chunked")
                    .with_message(rule)
                    .with_context("field", "chunk")
                    .with_context("value", chunk));
            }
            let mut report = InsertReport::default();
            for part in records.chunks(chunk) {
                report = report.merge(self.insert_records(part).await?);
            }
            Ok(report)
        }
    }

    /// Returns one page (1,000 records by default) of the records of one series in a range.
    /// [`range_stream`](Self::range_stream) returns all pages.
    fn range_of<R: Record>(
        &self,
        query: &RangeQuery<R::Series>,
    ) -> impl Future<Output = Result<Page<R>>> + Send {
        let request = query.request::<R>();
        async move { self.range(&request).await?.typed() }
    }

    /// Returns the records of a query as a stream, page after page.
    fn range_stream<R: Record>(&self, query: &RangeQuery<R::Series>) -> BoxStream<'_, Result<R>> {
        range_pages(self, query.request::<R>())
    }

    /// Returns the records of a query as a stream that owns the store.
    fn into_range_stream<R: Record>(self, query: &RangeQuery<R::Series>) -> BoxStream<'static, Result<R>>
    where
        Self: Sized,
    {
        range_pages(Arc::new(self), query.request::<R>())
    }

    /// Returns one page (1,000 records by default) of the latest record of each selected owner, in the order of the
    /// owners. [`latest_stream`](Self::latest_stream) returns all pages.
    fn latest_of<R: Record>(
        &self,
        query: &LatestQuery<<R::Series as Series>::Owner>,
    ) -> impl Future<Output = Result<Page<R>>> + Send {
        let request = query.request::<R>();
        async move { self.latest(&request?).await?.typed() }
    }

    /// Returns the latest record of each selected owner as a stream, page after page, in the order of the owners.
    fn latest_stream<R: Record>(
        &self,
        query: &LatestQuery<<R::Series as Series>::Owner>,
    ) -> BoxStream<'_, Result<R>> {
        latest_pages(self, query.request::<R>())
    }

    /// Returns the latest record of each selected owner as a stream that owns the store.
    fn into_latest_stream<R: Record>(
        self,
        query: &LatestQuery<<R::Series as Series>::Owner>,
    ) -> BoxStream<'static, Result<R>>
    where
        Self: Sized,
    {
        latest_pages(Arc::new(self), query.request::<R>())
    }

    /// Returns one page (1,000 instruments by default) of the instruments that have at least one record in a dataset.
    /// To read all pages, continue with `query.after(page.next)`; [`all_series`](Self::all_series) returns all series.
    ///
    /// # Errors
    /// `InvalidInput` for a dataset whose records do not belong to instruments.
    fn instruments(
        &self,
        query: &InstrumentQuery,
    ) -> impl Future<Output = Result<Page<InstrumentSummary>>> + Send {
        let request = query.request();
        async move {
            let Page { items, next, resume } = self.series(&request?).await?;
            let items = items.into_iter().map(SeriesSummary::of_instrument).collect::<Result<_>>()?;
            Ok(Page { items, next, resume })
        }
    }

    /// Returns all series of a dataset, in order: its owners, and for a dataset with intervals the owners of each
    /// interval.
    fn all_series(&self, dataset: Dataset) -> impl Future<Output = Result<Vec<SeriesKey>>> + Send {
        async move {
            let mut all = Vec::new();
            if dataset.interval().is_none() {
                let mut request = SeriesRequest::new(dataset).with_limit(MAX_PAGE)?;
                loop {
                    let Page { items, next, resume: _ } = self.series(&request).await?;
                    all.extend(
                        items.into_iter().map(|found| SeriesKey { owner: found.owner, interval: None }),
                    );
                    let Some(next) = next else { return Ok(all) };
                    request = request.after(next);
                }
            }
            for interval in Interval::ALL {
                let request = LatestRequest::new(dataset, Selection::All).of_interval(*interval);
                let mut request = request.with_limit(MAX_PAGE)?;
                loop {
                    let RecordPage { records, next, resume: _ } = self.latest(&request).await?;
                    let records = records.as_records();
                    all.extend((0..records.len()).map(|at| records.series(at).to_owned()));
                    let Some(next) = next else { break };
                    request = request.after(next);
                }
            }
            all.sort_unstable();
            Ok(all)
        }
    }

    /// Writes ticks. The batch has at most [`StoreInfo::max_batch`](super::StoreInfo::max_batch) ticks, by default
    /// 1,000,000. [`insert_ticks_chunked`](Self::insert_ticks_chunked) writes any number of ticks.
    fn insert_ticks(&self, batch: &[PriceTick]) -> impl Future<Output = Result<InsertReport>> + Send {
        self.insert_records(batch)
    }

    /// Writes one tick.
    fn insert_tick(&self, tick: &PriceTick) -> impl Future<Output = Result<()>> + Send {
        self.insert_record(tick)
    }

    /// Writes any number of ticks; see [`PriceStoreExt::insert_records_chunked`].
    fn insert_ticks_chunked(
        &self,
        ticks: &[PriceTick],
        chunk: usize,
    ) -> impl Future<Output = Result<InsertReport>> + Send {
        self.insert_records_chunked(ticks, chunk)
    }

    /// Returns one page (1,000 ticks by default) of the ticks of an instrument in a range, by (ts, seq).
    /// [`tick_stream`](Self::tick_stream) returns all pages.
    fn ticks(&self, query: &RangeQuery) -> impl Future<Output = Result<Page<PriceTick>>> + Send {
        self.range_of(query)
    }

    /// Returns the ticks of a query as a stream, page after page.
    /// [`into_range_stream::<PriceTick>`](Self::into_range_stream) is the same stream, and owns the store.
    fn tick_stream(&self, query: RangeQuery) -> BoxStream<'_, Result<PriceTick>> {
        range_pages(self, query.request::<PriceTick>())
    }

    /// Returns one page (1,000 ticks by default) of the latest tick of each selected instrument, in the order of the
    /// instruments. [`latest_tick_stream`](Self::latest_tick_stream) returns all pages.
    fn latest_ticks(&self, query: &LatestQuery) -> impl Future<Output = Result<Page<PriceTick>>> + Send {
        self.latest_of(query)
    }

    /// Returns the latest tick of each selected instrument as a stream, page after page, in the order of the
    /// instruments. [`into_latest_stream::<PriceTick>`](Self::into_latest_stream) is the same stream, and owns the store.
    fn latest_tick_stream(&self, query: LatestQuery) -> BoxStream<'_, Result<PriceTick>> {
        latest_pages(self, query.request::<PriceTick>())
    }

    /// Returns the latest tick of one instrument.
    fn latest_tick(&self, instrument: &Instrument) -> impl Future<Output = Result<Option<PriceTick>>> + Send {
        let query = LatestQuery::new(Selection::one(instrument.clone()));
        async move { Ok(self.latest_ticks(&query).await?.items.pop()) }
    }

    /// Writes quotes.
    fn insert_quotes(&self, batch: &[Quote]) -> impl Future<Output = Result<InsertReport>> + Send {
        self.insert_records(batch)
    }

    /// Writes one quote.
    fn insert_quote(&self, quote: &Quote) -> impl Future<Output = Result<()>> + Send {
        self.insert_record(quote)
    }

    /// Writes any number of quotes; see [`PriceStoreExt::insert_records_chunked`].
    fn insert_quotes_chunked(
        &self,
        quotes: &[Quote],
        chunk: usize,
    ) -> impl Future<Output = Result<InsertReport>> + Send {
        self.insert_records_chunked(quotes, chunk)
    }

    /// Returns one page (1,000 quotes by default) of the quotes of an instrument in a range, by (ts, seq).
    /// [`quote_stream`](Self::quote_stream) returns all pages.
    fn quotes(&self, query: &RangeQuery) -> impl Future<Output = Result<Page<Quote>>> + Send {
        self.range_of(query)
    }

    /// Returns the quotes of a query as a stream, page after page.
    /// [`into_range_stream::<Quote>`](Self::into_range_stream) is the same stream, and owns the store.
    fn quote_stream(&self, query: RangeQuery) -> BoxStream<'_, Result<Quote>> {
        range_pages(self, query.request::<Quote>())
    }

    /// Returns one page (1,000 quotes by default) of the latest quote of each selected instrument, in the order of the
    /// instruments. [`latest_quote_stream`](Self::latest_quote_stream) returns all pages.
    fn latest_quotes(&self, query: &LatestQuery) -> impl Future<Output = Result<Page<Quote>>> + Send {
        self.latest_of(query)
    }

    /// Returns the latest quote of each selected instrument as a stream, page after page, in the order of the
    /// instruments. [`into_latest_stream::<Quote>`](Self::into_latest_stream) is the same stream, and owns the store.
    fn latest_quote_stream(&self, query: LatestQuery) -> BoxStream<'_, Result<Quote>> {
        latest_pages(self, query.request::<Quote>())
    }

    /// Returns the latest quote of one instrument.
    fn latest_quote(&self, instrument: &Instrument) -> impl Future<Output = Result<Option<Quote>>> + Send {
        let query = LatestQuery::new(Selection::one(instrument.clone()));
        async move { Ok(self.latest_quotes(&query).await?.items.pop()) }
    }

    /// Writes bars.
    fn insert_bars(&self, batch: &[Bar]) -> impl Future<Output = Result<InsertReport>> + Send {
        self.insert_records(batch)
    }

    /// Writes one bar.
    fn insert_bar(&self, bar: &Bar) -> impl Future<Output = Result<()>> + Send {
        self.insert_record(bar)
    }

    /// Writes any number of bars; see [`PriceStoreExt::insert_records_chunked`].
    fn insert_bars_chunked(
        &self,
        bars: &[Bar],
        chunk: usize,
    ) -> impl Future<Output = Result<InsertReport>> + Send {
        self.insert_records_chunked(bars, chunk)
    }

    /// Returns one page (1,000 bars by default) of the stored bars of an instrument that open in a range, by open time.
    /// [`PriceStore::derived_bars`] returns the bars of the ticks. [`bar_stream`](Self::bar_stream) returns all
    /// pages of either.
    fn bars(&self, query: &BarQuery) -> impl Future<Output = Result<Page<Bar>>> + Send {
        let request = query.request();
        async move { self.range(&request).await?.typed() }
    }

    /// Returns the stored or derived bars of a query as a stream, page after page.
    fn bar_stream(&self, query: BarQuery, source: BarSource) -> BoxStream<'_, Result<Bar>> {
        bar_pages(self, query, source)
    }

    /// Returns the stored or derived bars of a query as a stream that owns the store.
    fn into_bar_stream(self, query: BarQuery, source: BarSource) -> BoxStream<'static, Result<Bar>>
    where
        Self: Sized,
    {
        bar_pages(Arc::new(self), query, source)
    }

    /// Returns one page (1,000 bars by default) of the latest stored bar of each selected instrument, in the order of
    /// the instruments. [`latest_bar_stream`](Self::latest_bar_stream) returns all pages.
    fn latest_bars(&self, query: &LatestBarsQuery) -> impl Future<Output = Result<Page<Bar>>> + Send {
        let request = query.request();
        async move { self.latest(&request?).await?.typed() }
    }

    /// Returns the latest stored bar of each selected instrument as a stream, page after page, in the order of the
    /// instruments. [`into_latest_stream::<Bar>`](Self::into_latest_stream) is the same stream of one interval, and owns
    /// the store.
    fn latest_bar_stream(&self, query: LatestBarsQuery) -> BoxStream<'_, Result<Bar>> {
        latest_pages(self, query.request())
    }

    /// Returns the latest stored bar of one instrument.
    fn latest_bar(
        &self,
        instrument: &Instrument,
        interval: Interval,
    ) -> impl Future<Output = Result<Option<Bar>>> + Send {
        let query = LatestBarsQuery::new(interval, Selection::one(instrument.clone()));
        async move { Ok(self.latest_bars(&query).await?.items.pop()) }
    }

    /// Writes the closed derived bars of an instrument and interval as stored bars, so that they outlast their ticks.
    /// The method compares derived and stored bars page by page, and writes only bars that are missing or different.
    /// Stored bars without ticks are unchanged.
    ///
    /// The call can be repeated, and several calls may run at once. After an error or a kill, the same request continues
    /// with the first page that is not complete, at the cost of reading the complete pages again. To skip them, use
    /// [`persist_bar_pages`](Self::persist_bar_pages) and [`PersistReport::resume`]. A tick that is written, corrected or
    /// deleted later changes the derived bar and not the stored bar, until a request that includes this bar runs again.
    ///
    /// A stored bar that counts more ticks than the derived bar is kept, because a purge has probably removed ticks of its
    /// bucket. [`PersistRequest::overwrite`] replaces such bars too.
    ///
    /// ```
    /// use std::time::Duration;
    /// use qi_core::store::{PersistRequest, PriceStoreExt};
    /// use qi_core::{Instrument, Interval, PriceStore, Result, Timestamp};
    ///
    /// /// Persists the bars of the last day. Ticks that are up to ten minutes late are part of their bars.
    /// async fn persist_day(store: &dyn PriceStore, instrument: Instrument) -> Result<u64> {
    ///     let until = Timestamp::now().checked_sub(Duration::from_mins(10)).unwrap_or(Timestamp::MIN);
    ///     let since = until.checked_sub(Duration::from_hours(24)).unwrap_or(Timestamp::MIN);
    ///     let request = PersistRequest::new(instrument, Interval::M1, until).with_since(since);
    ///     Ok(store.persist_bars(request).await?.written)
    /// }
    /// ```
    ///
    /// # Errors
    /// The errors of [`PriceStore::derived_bars`], [`PriceStore::range`] and [`PriceStore::insert`]. Bars before the
    /// error are stored.
    fn persist_bars(&self, request: PersistRequest) -> impl Future<Output = Result<PersistReport>> + Send {
        persist::persist(self, request)
    }

    /// Returns the `since` with which an interrupted [`persist_bars`](Self::persist_bars) continues. It is up to a page
    /// before the latest stored bar, because a store may have written only a part of the last page. Returns
    /// [`Timestamp::MIN`] for an instrument without stored bars of the interval.
    ///
    /// The result assumes that only earlier runs have written bars of this instrument and interval. If other programs
    /// write such bars, start at the first bar that may be missing.
    ///
    /// # Errors
    /// The errors of [`PriceStore::latest`] and [`PriceStore::derived_bars`].
    fn persist_start(
        &self,
        instrument: &Instrument,
        interval: Interval,
    ) -> impl Future<Output = Result<Timestamp>> + Send {
        persist::persist_start(self, instrument, interval)
    }

    /// Does what [`persist_bars`](Self::persist_bars) does, and returns a report after each written page. Dropping the
    /// stream stops between two pages, and `since` = [`PersistReport::resume`] continues.
    fn persist_bar_pages(&self, request: PersistRequest) -> BoxStream<'_, Result<PersistReport>> {
        persist::persist_pages(self, request)
    }

    /// Writes snapshots.
    fn insert_snapshots(
        &self,
        batch: &[MarketSnapshot],
    ) -> impl Future<Output = Result<InsertReport>> + Send {
        self.insert_records(batch)
    }

    /// Writes one snapshot.
    fn insert_snapshot(&self, snapshot: &MarketSnapshot) -> impl Future<Output = Result<()>> + Send {
        self.insert_record(snapshot)
    }

    /// Writes any number of snapshots; see [`PriceStoreExt::insert_records_chunked`].
    fn insert_snapshots_chunked(
        &self,
        snapshots: &[MarketSnapshot],
        chunk: usize,
    ) -> impl Future<Output = Result<InsertReport>> + Send {
        self.insert_records_chunked(snapshots, chunk)
    }

    /// Returns one page (1,000 snapshots by default) of the snapshots of a scope in a range, by time.
    /// [`snapshot_stream`](Self::snapshot_stream) returns all pages.
    fn snapshots(&self, query: &SnapshotQuery) -> impl Future<Output = Result<Page<MarketSnapshot>>> + Send {
        self.range_of(query)
    }

    /// Returns the snapshots of a query as a stream, page after page.
    /// [`into_range_stream::<MarketSnapshot>`](Self::into_range_stream) is the same stream, and owns the store.
    fn snapshot_stream(&self, query: SnapshotQuery) -> BoxStream<'_, Result<MarketSnapshot>> {
        range_pages(self, query.request::<MarketSnapshot>())
    }

    /// Returns one page (1,000 snapshots by default) of the latest snapshot of each selected scope, in the order of the
    /// scopes. [`latest_snapshot_stream`](Self::latest_snapshot_stream) returns all pages.
    fn latest_snapshots(
        &self,
        query: &LatestQuery<Scope>,
    ) -> impl Future<Output = Result<Page<MarketSnapshot>>> + Send {
        self.latest_of(query)
    }

    /// Returns the latest snapshot of each selected scope as a stream, page after page, in the order of the scopes.
    /// [`into_latest_stream::<MarketSnapshot>`](Self::into_latest_stream) is the same stream, and owns the store.
    fn latest_snapshot_stream(&self, query: LatestQuery<Scope>) -> BoxStream<'_, Result<MarketSnapshot>> {
        latest_pages(self, query.request::<MarketSnapshot>())
    }

    /// Returns the latest snapshot of one scope.
    fn latest_snapshot(&self, scope: &Scope) -> impl Future<Output = Result<Option<MarketSnapshot>>> + Send {
        let query = LatestQuery::new(Selection::one(scope.clone()));
        async move { Ok(self.latest_snapshots(&query).await?.items.pop()) }
    }

    /// Returns the bars of a query, oldest first, with a flat bar in every empty bucket between two bars. Buckets
    /// before the first bar and after the last bar stay empty, because no earlier or later price is known.
    ///
    /// # Errors
    /// `InvalidInput` for a descending query.
    fn bars_filled(&self, query: BarQuery, source: BarSource) -> Result<BoxStream<'_, Result<FilledBar>>> {
        analytics::ascending_only(query.order)?;
        Ok(analytics::filled(self.bar_stream(query, source)))
    }

    /// Returns the stream of [`bars_filled`](Self::bars_filled), which owns the store.
    ///
    /// # Errors
    /// `InvalidInput` for a descending query.
    fn into_bars_filled(
        self,
        query: BarQuery,
        source: BarSource,
    ) -> Result<BoxStream<'static, Result<FilledBar>>>
    where
        Self: Sized,
    {
        analytics::ascending_only(query.order)?;
        Ok(analytics::filled(self.into_bar_stream(query, source)))
    }

    /// Returns the ranges of a query in which bars are missing, oldest first. Each range extends from the first missing
    /// open time to the open time of the next bar. The search covers the entire range of the query, including the time before
    /// the first and after the last bar.
    ///
    /// # Errors
    /// `InvalidInput` for a descending query, or for a query that does not begin at the start of its range.
    fn gaps(&self, query: BarQuery, source: BarSource) -> Result<BoxStream<'_, Result<TimeRange>>> {
        analytics::complete_only(&query)?;
        let (interval, range) = (query.interval, query.range);
        Ok(analytics::gaps(self.bar_stream(query, source), interval, range))
    }

    /// Returns the stream of [`gaps`](Self::gaps), which owns the store.
    ///
    /// # Errors
    /// `InvalidInput` for a descending query, or for a query that does not begin at the start of its range.
    fn into_gaps(self, query: BarQuery, source: BarSource) -> Result<BoxStream<'static, Result<TimeRange>>>
    where
        Self: Sized,
    {
        analytics::complete_only(&query)?;
        let (interval, range) = (query.interval, query.range);
        Ok(analytics::gaps(self.into_bar_stream(query, source), interval, range))
    }

    /// Returns the volume-weighted average price of a range's ticks. The sums are exact, divided and rounded once. None
    /// without ticks, without known quantities, or if the quantities sum to 0.
    fn vwap(&self, query: &StatsQuery) -> impl Future<Output = Result<Option<Decimal>>> + Send {
        async move { self.stats(query).await?.map_or(Ok(None), |stats| stats.vwap()) }
    }

    /// Returns the change of the price over a range, or None without ticks.
    fn change(&self, query: &StatsQuery) -> impl Future<Output = Result<Option<Change>>> + Send {
        analytics::change(self, query)
    }

    /// Returns the sample standard deviation of ln(close / previous close) over bars. With `bars_per_year` the result
    /// is annualised: multiplied by the square root of that number (365 for daily bars of a market that never closes).
    /// None with fewer than three bars.
    ///
    /// # Errors
    /// `InvalidInput` for a descending query, or a `bars_per_year` that is not finite and positive.
    fn volatility(
        &self,
        query: BarQuery,
        source: BarSource,
        bars_per_year: Option<f64>,
    ) -> impl Future<Output = Result<Option<f64>>> + Send {
        async move {
            analytics::ascending_only(query.order)?;
            analytics::volatility(self.bar_stream(query, source), bars_per_year).await
        }
    }

    /// Returns the simple moving average of the last `window` closes, at the open time of each bar that completes a
    /// window. The sums are exact, divided and rounded once.
    ///
    /// # Errors
    /// `InvalidInput` for a descending query. The stream returns `InvalidInput` for a window outside 1 to 10,000.
    fn sma(
        &self,
        query: BarQuery,
        source: BarSource,
        window: usize,
    ) -> Result<BoxStream<'_, Result<(Timestamp, Decimal)>>> {
        analytics::ascending_only(query.order)?;
        Ok(analytics::moving_average(self.bar_stream(query, source), window))
    }

    /// Returns the instruments that rose and fell most over a range, by the change of their ticks. Equal changes are in
    /// the order of the instruments. The method calls `stats` once for each instrument.
    fn movers(&self, query: &MoversQuery) -> impl Future<Output = Result<Movers>> + Send {
        analytics::movers(self, query)
    }

    /// Waits until the store answers a ping.
    ///
    /// # Errors
    /// The last ping's error if no further ping fits into `timeout`, or immediately an error that is not retryable.
    /// `Timeout` if no ping was answered.
    fn wait_ready(&self, timeout: Duration) -> impl Future<Output = Result<StorePingReport>> + Send {
        crate::ready::wait_ready(timeout, || self.ping())
    }
}

impl<S: PriceStore + ?Sized> PriceStoreExt for S {}

/// A store that a stream borrows or shares.
trait Handle<S: ?Sized>: Deref<Target = S> + Clone + Send + Sync {}

impl<S: ?Sized, H: Deref<Target = S> + Clone + Send + Sync> Handle<S> for H {}

/// Fetches a page, yields its items, and continues after the page's cursor.
fn pages<'a, Q: Send + 'a, T: Send + 'a>(
    query: Result<Q>,
    fetch: impl Fn(Q) -> BoxFuture<'a, Result<(Vec<T>, Option<Q>)>> + Send + 'a,
) -> BoxStream<'a, Result<T>> {
    stream::try_unfold(Some(query), move |query| {
        let page = query.map(|query| query.map(&fetch));
        async move {
            let Some(page) = page else { return Ok(None) };
            let (items, next) = page?.await?;
            Ok::<_, Error>(Some((stream::iter(items.into_iter().map(Ok)), next.map(Ok))))
        }
    })
    .try_flatten()
    .boxed()
}

fn range_pages<'a, R: Record, S: PriceStore + ?Sized>(
    store: impl Handle<S> + 'a,
    request: RangeRequest,
) -> BoxStream<'a, Result<R>> {
    pages(Ok(request), move |request| {
        let store = store.clone();
        Box::pin(async move {
            let RecordPage { records, next, resume: _ } = store.range(&request).await?;
            Ok((records.into_vec()?, next.map(|cursor| request.after(cursor))))
        })
    })
}

fn latest_pages<'a, R: Record, S: PriceStore + ?Sized>(
    store: impl Handle<S> + 'a,
    request: Result<LatestRequest>,
) -> BoxStream<'a, Result<R>> {
    pages(request, move |request| {
        let store = store.clone();
        Box::pin(async move {
            let RecordPage { records, next, resume: _ } = store.latest(&request).await?;
            Ok((records.into_vec()?, next.map(|cursor| request.after(cursor))))
        })
    })
}

fn bar_pages<'a, S: PriceStore + ?Sized>(
    store: impl Handle<S> + 'a,
    query: BarQuery,
    source: BarSource,
) -> BoxStream<'a, Result<Bar>> {
    match source {
        BarSource::Stored => range_pages(store, query.request()),
        BarSource::Derived => pages(Ok(query), move |query| {
            let store = store.clone();
            Box::pin(async move {
                let Page { items, next, resume: _ } = store.derived_bars(&query).await?;
                Ok((items, next.map(|cursor| query.after(cursor))))
            })
        }),
    }
}
