//! Conveniences for those who call a store, on every store.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

use super::analytics::{self, BarSource, Change, FilledBar, Movers, MoversQuery};
use super::{
    BarQuery, InsertReport, InstrumentQuery, InstrumentSummary, LatestBarsQuery, LatestQuery, LatestRequest,
    Page, PriceStore, RangeQuery, RangeRequest, RecordPage, SeriesSummary, SnapshotQuery, StatsQuery,
    StoreStatus,
};
use crate::record::{Record, Series, Slice};
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
    /// Writes records; see the contract of [`PriceStore`].
    ///
    /// # Errors
    /// `InvalidInput` for a record that is not valid, with its index; the store's error.
    fn insert_records<R: Record>(&self, batch: &[R]) -> impl Future<Output = Result<InsertReport>> + Send {
        async move { self.insert(&Slice::new(batch)?).await }
    }

    /// Writes one record. For many records at once `insert_records` costs one round trip, for many single ones see
    /// [`crate::Buffered`].
    fn insert_record<R: Record>(&self, record: &R) -> impl Future<Output = Result<()>> + Send {
        async move { self.insert_records(std::slice::from_ref(record)).await.map(drop) }
    }

    /// Writes records of any number, `chunk` at a time, each with its own timeout and retry. After an error the chunks
    /// before it are stored; sending all again is safe.
    ///
    /// # Errors
    /// `InvalidInput` for a chunk of 0 or above the store's `max_batch`; else the first chunk's error.
    fn insert_records_chunked<R: Record>(
        &self,
        records: &[R],
        chunk: usize,
    ) -> impl Future<Output = Result<InsertReport>> + Send {
        async move {
            let most = self.info().max_batch;
            if !(1..=most).contains(&chunk) {
                let rule = format!("must lie from 1 to {most}");
                return Err(Error::new(ErrorKind::InvalidInput, "store.batch.chunk", "insert_chunked")
                    .with_message(rule)
                    .with_context("field", "chunk")
                    .with_context("value", chunk));
            }
            let mut report = InsertReport::default();
            for part in records.chunks(chunk) {
                report = report.plus(self.insert_records(part).await?);
            }
            Ok(report)
        }
    }

    /// The records of one series in a range.
    fn range_of<R: Record>(
        &self,
        query: &RangeQuery<R::Series>,
    ) -> impl Future<Output = Result<Page<R>>> + Send {
        let request = query.request::<R>();
        async move { self.range(&request).await?.typed() }
    }

    /// The records of a query as a stream, page after page.
    fn range_stream<R: Record>(&self, query: &RangeQuery<R::Series>) -> BoxStream<'_, Result<R>> {
        range_pages(self, query.request::<R>())
    }

    /// The latest record of each selected owner, in the order of the owners.
    fn latest_of<R: Record>(
        &self,
        query: &LatestQuery<<R::Series as Series>::Owner>,
    ) -> impl Future<Output = Result<Page<R>>> + Send {
        let request = query.request::<R>();
        async move { self.latest(&request?).await?.typed() }
    }

    /// The latest record of each selected owner as a stream, page after page, in the order of the owners.
    fn latest_stream<R: Record>(
        &self,
        query: &LatestQuery<<R::Series as Series>::Owner>,
    ) -> BoxStream<'_, Result<R>> {
        latest_pages(self, query.request::<R>())
    }

    /// The instruments that have at least one record in a dataset.
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

    /// Writes ticks.
    fn insert_ticks(&self, batch: &[PriceTick]) -> impl Future<Output = Result<InsertReport>> + Send {
        self.insert_records(batch)
    }

    /// Writes one tick.
    fn insert_tick(&self, tick: &PriceTick) -> impl Future<Output = Result<()>> + Send {
        self.insert_record(tick)
    }

    /// Writes ticks of any number; see [`PriceStoreExt::insert_records_chunked`].
    fn insert_ticks_chunked(
        &self,
        ticks: &[PriceTick],
        chunk: usize,
    ) -> impl Future<Output = Result<InsertReport>> + Send {
        self.insert_records_chunked(ticks, chunk)
    }

    /// Ticks of an instrument in a range, by (ts, seq).
    fn ticks(&self, query: &RangeQuery) -> impl Future<Output = Result<Page<PriceTick>>> + Send {
        self.range_of(query)
    }

    /// The ticks of a query as a stream, page after page.
    fn tick_stream(&self, query: RangeQuery) -> BoxStream<'_, Result<PriceTick>> {
        range_pages(self, query.request::<PriceTick>())
    }

    /// The latest tick of each selected instrument, in the order of the instruments.
    fn latest_ticks(&self, query: &LatestQuery) -> impl Future<Output = Result<Page<PriceTick>>> + Send {
        self.latest_of(query)
    }

    /// The latest tick of each selected instrument as a stream, page after page, in the order of the instruments.
    fn latest_tick_stream(&self, query: LatestQuery) -> BoxStream<'_, Result<PriceTick>> {
        latest_pages(self, query.request::<PriceTick>())
    }

    /// The latest tick of one instrument.
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

    /// Writes quotes of any number; see [`PriceStoreExt::insert_records_chunked`].
    fn insert_quotes_chunked(
        &self,
        quotes: &[Quote],
        chunk: usize,
    ) -> impl Future<Output = Result<InsertReport>> + Send {
        self.insert_records_chunked(quotes, chunk)
    }

    /// Quotes of an instrument in a range, by (ts, seq).
    fn quotes(&self, query: &RangeQuery) -> impl Future<Output = Result<Page<Quote>>> + Send {
        self.range_of(query)
    }

    /// The quotes of a query as a stream, page after page.
    fn quote_stream(&self, query: RangeQuery) -> BoxStream<'_, Result<Quote>> {
        range_pages(self, query.request::<Quote>())
    }

    /// The latest quote of each selected instrument, in the order of the instruments.
    fn latest_quotes(&self, query: &LatestQuery) -> impl Future<Output = Result<Page<Quote>>> + Send {
        self.latest_of(query)
    }

    /// The latest quote of each selected instrument as a stream, page after page, in the order of the instruments.
    fn latest_quote_stream(&self, query: LatestQuery) -> BoxStream<'_, Result<Quote>> {
        latest_pages(self, query.request::<Quote>())
    }

    /// The latest quote of one instrument.
    fn latest_quote(&self, instrument: &Instrument) -> impl Future<Output = Result<Option<Quote>>> + Send {
        let query = LatestQuery::new(Selection::one(instrument.clone()));
        async move { Ok(self.latest_quotes(&query).await?.items.pop()) }
    }

    /// Writes bars.
    fn insert_bars(&self, batch: &[Ohlcv]) -> impl Future<Output = Result<InsertReport>> + Send {
        self.insert_records(batch)
    }

    /// Writes one bar.
    fn insert_bar(&self, bar: &Ohlcv) -> impl Future<Output = Result<()>> + Send {
        self.insert_record(bar)
    }

    /// Writes bars of any number; see [`PriceStoreExt::insert_records_chunked`].
    fn insert_bars_chunked(
        &self,
        bars: &[Ohlcv],
        chunk: usize,
    ) -> impl Future<Output = Result<InsertReport>> + Send {
        self.insert_records_chunked(bars, chunk)
    }

    /// Stored bars of an instrument that open in a range, by open time.
    fn bars(&self, query: &BarQuery) -> impl Future<Output = Result<Page<Ohlcv>>> + Send {
        let request = query.request();
        async move { self.range(&request).await?.typed() }
    }

    /// The stored or derived bars of a query as a stream, page after page.
    fn bar_stream(&self, query: BarQuery, source: BarSource) -> BoxStream<'_, Result<Ohlcv>> {
        match source {
            BarSource::Stored => range_pages(self, query.request()),
            BarSource::Derived => pages(Ok(query), move |query| {
                Box::pin(async move {
                    let page = self.derived_bars(&query).await?;
                    let rest = page.next.map(|cursor| query.after(cursor));
                    Ok((page.items, rest))
                })
            }),
        }
    }

    /// The latest stored bar of each selected instrument, in the order of the instruments.
    fn latest_bars(&self, query: &LatestBarsQuery) -> impl Future<Output = Result<Page<Ohlcv>>> + Send {
        let request = query.request();
        async move { self.latest(&request?).await?.typed() }
    }

    /// The latest stored bar of each selected instrument as a stream; see [`PriceStoreExt::latest_tick_stream`].
    fn latest_bar_stream(&self, query: LatestBarsQuery) -> BoxStream<'_, Result<Ohlcv>> {
        latest_pages(self, query.request())
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

    /// Writes snapshots of any number; see [`PriceStoreExt::insert_records_chunked`].
    fn insert_snapshots_chunked(
        &self,
        snapshots: &[MarketSnapshot],
        chunk: usize,
    ) -> impl Future<Output = Result<InsertReport>> + Send {
        self.insert_records_chunked(snapshots, chunk)
    }

    /// Snapshots of a scope in a range, by time.
    fn snapshots(&self, query: &SnapshotQuery) -> impl Future<Output = Result<Page<MarketSnapshot>>> + Send {
        self.range_of(query)
    }

    /// The snapshots of a query as a stream, page after page.
    fn snapshot_stream(&self, query: SnapshotQuery) -> BoxStream<'_, Result<MarketSnapshot>> {
        range_pages(self, query.request::<MarketSnapshot>())
    }

    /// The latest snapshot of each selected scope, in the order of the scopes.
    fn latest_snapshots(
        &self,
        query: &LatestQuery<Scope>,
    ) -> impl Future<Output = Result<Page<MarketSnapshot>>> + Send {
        self.latest_of(query)
    }

    /// The latest snapshot of each selected scope as a stream, page after page, in the order of the scopes.
    fn latest_snapshot_stream(&self, query: LatestQuery<Scope>) -> BoxStream<'_, Result<MarketSnapshot>> {
        latest_pages(self, query.request::<MarketSnapshot>())
    }

    /// The latest snapshot of one scope.
    fn latest_snapshot(&self, scope: &Scope) -> impl Future<Output = Result<Option<MarketSnapshot>>> + Send {
        let query = LatestQuery::new(Selection::one(scope.clone()));
        async move { Ok(self.latest_snapshots(&query).await?.items.pop()) }
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

/// The keyset loop: asks for a page, hands out its items, goes on after its cursor.
fn pages<'a, Q: Send + 'a, T: Send + 'a>(
    query: Result<Q>,
    ask: impl Fn(Q) -> BoxFuture<'a, Result<(Vec<T>, Option<Q>)>> + Copy + Send + 'a,
) -> BoxStream<'a, Result<T>> {
    stream::try_unfold(Some(query), move |query| async move {
        let Some(query) = query else { return Ok(None) };
        let (items, rest) = ask(query?).await?;
        Ok::<_, Error>(Some((stream::iter(items.into_iter().map(Ok)), rest.map(Ok))))
    })
    .try_flatten()
    .boxed()
}

fn range_pages<R: Record>(
    store: &(impl PriceStore + ?Sized),
    request: RangeRequest,
) -> BoxStream<'_, Result<R>> {
    pages(Ok(request), move |request| {
        Box::pin(async move {
            let RecordPage { records, next, resume: _ } = store.range(&request).await?;
            Ok((records.into_vec()?, next.map(|cursor| request.after(cursor))))
        })
    })
}

fn latest_pages<R: Record>(
    store: &(impl PriceStore + ?Sized),
    request: Result<LatestRequest>,
) -> BoxStream<'_, Result<R>> {
    pages(request, move |request| {
        Box::pin(async move {
            let RecordPage { records, next, resume: _ } = store.latest(&request).await?;
            Ok((records.into_vec()?, next.map(|cursor| request.after(cursor))))
        })
    })
}
