//! Conveniences for those who call a store, on every store.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

use super::analytics::{self, BarSource, Change, FilledBar, Movers, MoversQuery};
use super::{
    BarQuery, Cursor, InsertReport, LatestBarsQuery, LatestQuery, Page, PriceStore, RangeQuery,
    SnapshotQuery, StatsQuery, StoreStatus,
};
use crate::{
    Decimal, Error, ErrorKind, Instrument, Interval, MarketSnapshot, Ohlcv, PriceTick, Quote, Result, Scope,
    Selection, TimeRange, Timestamp,
};

/// What is built from the port: single records, streams over pages, bounded writes of any length, analytics.
///
/// It is implemented for every [`PriceStore`] and cannot be implemented by hand.
///
/// Streams ask page by page: no connection is held while the caller is busy, memory is one page, and every page
/// has its own timeout and retry. A stream that failed has ended.
pub trait PriceStoreExt: PriceStore {
    /// Writes one tick. For many records at once `insert_ticks` costs one round trip, for many single ones see
    /// [`crate::Buffered`].
    fn insert_tick(&self, tick: &PriceTick) -> impl Future<Output = Result<()>> + Send {
        async move { self.insert_ticks(std::slice::from_ref(tick)).await.map(drop) }
    }

    /// Writes one quote.
    fn insert_quote(&self, quote: &Quote) -> impl Future<Output = Result<()>> + Send {
        async move { self.insert_quotes(std::slice::from_ref(quote)).await.map(drop) }
    }

    /// Writes one bar.
    fn insert_bar(&self, bar: &Ohlcv) -> impl Future<Output = Result<()>> + Send {
        async move { self.insert_bars(std::slice::from_ref(bar)).await.map(drop) }
    }

    /// Writes one snapshot.
    fn insert_snapshot(&self, snapshot: &MarketSnapshot) -> impl Future<Output = Result<()>> + Send {
        async move { self.insert_snapshots(std::slice::from_ref(snapshot)).await.map(drop) }
    }

    /// Writes ticks of any number, `chunk` at a time, each with its own timeout and retry. After an error the
    /// chunks before it are stored; sending all again is safe.
    ///
    /// # Errors
    /// `InvalidInput` for a chunk of 0 or above the store's `max_batch`; else the first chunk's error.
    fn insert_ticks_chunked(
        &self,
        ticks: &[PriceTick],
        chunk: usize,
    ) -> impl Future<Output = Result<InsertReport>> + Send {
        async move { chunked(self, ticks, chunk, |store, part| store.insert_ticks(part)).await }
    }

    /// Writes quotes of any number; see [`PriceStoreExt::insert_ticks_chunked`].
    fn insert_quotes_chunked(
        &self,
        quotes: &[Quote],
        chunk: usize,
    ) -> impl Future<Output = Result<InsertReport>> + Send {
        async move { chunked(self, quotes, chunk, |store, part| store.insert_quotes(part)).await }
    }

    /// Writes bars of any number; see [`PriceStoreExt::insert_ticks_chunked`].
    fn insert_bars_chunked(
        &self,
        bars: &[Ohlcv],
        chunk: usize,
    ) -> impl Future<Output = Result<InsertReport>> + Send {
        async move { chunked(self, bars, chunk, |store, part| store.insert_bars(part)).await }
    }

    /// Writes snapshots of any number; see [`PriceStoreExt::insert_ticks_chunked`].
    fn insert_snapshots_chunked(
        &self,
        snapshots: &[MarketSnapshot],
        chunk: usize,
    ) -> impl Future<Output = Result<InsertReport>> + Send {
        async move { chunked(self, snapshots, chunk, |store, part| store.insert_snapshots(part)).await }
    }

    /// The latest tick of one instrument.
    fn latest_tick(&self, instrument: &Instrument) -> impl Future<Output = Result<Option<PriceTick>>> + Send {
        let query = LatestQuery::new(Selection::one(instrument.clone()));
        async move { Ok(self.latest_ticks(&query).await?.items.pop()) }
    }

    /// The latest quote of one instrument.
    fn latest_quote(&self, instrument: &Instrument) -> impl Future<Output = Result<Option<Quote>>> + Send {
        let query = LatestQuery::new(Selection::one(instrument.clone()));
        async move { Ok(self.latest_quotes(&query).await?.items.pop()) }
    }

    /// The latest stored bar of one instrument.
    fn latest_bar(
        &self,
        instrument: &Instrument,
        interval: Interval,
    ) -> impl Future<Output = Result<Option<Ohlcv>>> + Send {
        let query = LatestBarsQuery::new(interval, Selection::one(instrument.clone()));
        async move { Ok(self.latest_bars(&query).await?.items.pop()) }
    }

    /// The latest snapshot of one scope.
    fn latest_snapshot(&self, scope: &Scope) -> impl Future<Output = Result<Option<MarketSnapshot>>> + Send {
        let query = LatestQuery::new(Selection::one(scope.clone()));
        async move { Ok(self.latest_snapshots(&query).await?.items.pop()) }
    }

    /// The ticks of a query as a stream, page after page.
    fn tick_stream(&self, query: RangeQuery) -> BoxStream<'_, Result<PriceTick>> {
        pages(self, query, |store, query| store.ticks(query), RangeQuery::after)
    }

    /// The quotes of a query as a stream, page after page.
    fn quote_stream(&self, query: RangeQuery) -> BoxStream<'_, Result<Quote>> {
        pages(self, query, |store, query| store.quotes(query), RangeQuery::after)
    }

    /// The stored or derived bars of a query as a stream, page after page.
    fn bar_stream(&self, query: BarQuery, source: BarSource) -> BoxStream<'_, Result<Ohlcv>> {
        match source {
            BarSource::Stored => pages(self, query, |store, query| store.bars(query), BarQuery::after),
            BarSource::Derived => {
                pages(self, query, |store, query| store.derived_bars(query), BarQuery::after)
            }
        }
    }

    /// The snapshots of a query as a stream, page after page.
    fn snapshot_stream(&self, query: SnapshotQuery) -> BoxStream<'_, Result<MarketSnapshot>> {
        pages(self, query, |store, query| store.snapshots(query), SnapshotQuery::after)
    }

    /// The latest tick of each selected instrument as a stream, page after page, in the order of the instruments.
    fn latest_tick_stream(&self, query: LatestQuery) -> BoxStream<'_, Result<PriceTick>> {
        pages(self, query, |store, query| store.latest_ticks(query), LatestQuery::after)
    }

    /// The latest quote of each selected instrument as a stream; see [`PriceStoreExt::latest_tick_stream`].
    fn latest_quote_stream(&self, query: LatestQuery) -> BoxStream<'_, Result<Quote>> {
        pages(self, query, |store, query| store.latest_quotes(query), LatestQuery::after)
    }

    /// The latest stored bar of each selected instrument as a stream; see [`PriceStoreExt::latest_tick_stream`].
    fn latest_bar_stream(&self, query: LatestBarsQuery) -> BoxStream<'_, Result<Ohlcv>> {
        pages(self, query, |store, query| store.latest_bars(query), LatestBarsQuery::after)
    }

    /// The bars of a query, oldest first, with a flat bar in every empty bucket between two of them. Buckets
    /// before the first and after the last bar have no price to go by and stay empty.
    ///
    /// # Errors
    /// `InvalidInput` for a descending query.
    fn bars_filled(&self, query: BarQuery, source: BarSource) -> Result<BoxStream<'_, Result<FilledBar>>> {
        analytics::ascending_only(query.order)?;
        Ok(analytics::filled(self.bar_stream(query, source)))
    }

    /// The stretches of a query's range that have no bars, oldest first: from the first missing open time to the
    /// next one that is there. The whole range counts, before the first and after the last bar too.
    ///
    /// # Errors
    /// `InvalidInput` for a descending query or one that does not begin at the start of its range.
    fn gaps(&self, query: BarQuery, source: BarSource) -> Result<BoxStream<'_, Result<TimeRange>>> {
        analytics::ascending_only(query.order)?;
        if let Some(cursor) = query.page.cursor() {
            return Err(Error::invalid("store.gaps.cursor", "cursor", cursor, "must not be given for gaps"));
        }
        let (interval, range) = (query.interval, query.range);
        Ok(analytics::gaps(self.bar_stream(query, source), interval, range))
    }

    /// The volume-weighted average price of a range's ticks: exact sums, divided and rounded once. None without
    /// ticks, without known quantities, or if their sum is 0.
    fn vwap(&self, query: &StatsQuery) -> impl Future<Output = Result<Option<Decimal>>> + Send {
        async move { self.stats(query).await?.map_or(Ok(None), |stats| stats.vwap()) }
    }

    /// How the price moved over a range; None without ticks.
    fn change(&self, query: &StatsQuery) -> impl Future<Output = Result<Option<Change>>> + Send {
        analytics::change(self, query)
    }

    /// The sample standard deviation of ln(close / previous close) over bars. With `bars_per_year` it is
    /// annualised by that number's square root (365 for daily bars of a market that never closes). None with
    /// fewer than three bars.
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

    /// The simple moving average of the last `window` closes, at the open time of each bar that completes a
    /// window: exact sums, divided and rounded once.
    ///
    /// # Errors
    /// `InvalidInput` for a descending query, or, from the stream, a window outside 1 to 10,000.
    fn sma(
        &self,
        query: BarQuery,
        source: BarSource,
        window: usize,
    ) -> Result<BoxStream<'_, Result<(Timestamp, Decimal)>>> {
        analytics::ascending_only(query.order)?;
        Ok(analytics::moving_average(self.bar_stream(query, source), window))
    }

    /// The instruments that rose and fell most over a range, by the change of their ticks; equal ones in the order
    /// of the instruments. One call of `stats` for each instrument.
    fn movers(&self, query: &MoversQuery) -> impl Future<Output = Result<Movers>> + Send {
        analytics::movers(self, query)
    }

    /// Waits until the store answers a ping.
    ///
    /// # Errors
    /// The last ping's error once `timeout` has passed, or at once if it says that trying again cannot help.
    fn wait_ready(&self, timeout: Duration) -> impl Future<Output = Result<StoreStatus>> + Send {
        crate::ready::wait_ready(timeout, || self.ping())
    }
}

impl<S: PriceStore + ?Sized> PriceStoreExt for S {}

/// Splits a long batch outside of the layers.
async fn chunked<'a, S, T>(
    store: &'a S,
    records: &'a [T],
    chunk: usize,
    insert: impl Fn(&'a S, &'a [T]) -> BoxFuture<'a, Result<InsertReport>> + Send,
) -> Result<InsertReport>
where
    S: PriceStore + ?Sized,
    T: Sync,
{
    let most = store.info().max_batch;
    if !(1..=most).contains(&chunk) {
        let rule = format!("must lie from 1 to {most}");
        return Err(Error::new(ErrorKind::InvalidInput, "store.batch.chunk", "insert_chunked")
            .with_message(rule)
            .with_context("field", "chunk")
            .with_context("value", chunk));
    }
    let mut report = InsertReport::default();
    for part in records.chunks(chunk) {
        report = report.plus(insert(store, part).await?);
    }
    Ok(report)
}

/// The keyset loop: asks for a page, hands out its items, goes on after its cursor.
fn pages<'a, S, Q, T>(
    store: &'a S,
    query: Q,
    ask: impl for<'c> Fn(&'c S, &'c Q) -> BoxFuture<'c, Result<Page<T>>> + Copy + Send + 'a,
    after: fn(Q, Cursor) -> Q,
) -> BoxStream<'a, Result<T>>
where
    S: PriceStore + ?Sized,
    Q: Send + Sync + 'a,
    T: Send + 'a,
{
    stream::try_unfold(Some(query), move |query| async move {
        let Some(query) = query else { return Ok(None) };
        let page = ask(store, &query).await?;
        let rest = page.next.map(|cursor| after(query, cursor));
        Ok::<_, Error>(Some((stream::iter(page.items.into_iter().map(Ok)), rest)))
    })
    .try_flatten()
    .boxed()
}
