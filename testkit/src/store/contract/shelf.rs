//! The four datasets behind one face, so that a check is written once and runs on all of them.

use async_trait::async_trait;
use futures::stream::BoxStream;
use qi_core::store::{
    BarQuery, BarSource, DeleteQuery, InsertReport, LatestBarsQuery, LatestQuery, Order, Page, PageRequest,
    PriceStore, PriceStoreExt, RangeQuery, Record, SnapshotQuery,
};
use qi_core::{
    BarValues, Instrument, Interval, MarketSnapshot, Ohlcv, Price, PriceTick, Quantity, Quote, QuoteValues,
    Result, Scope, Selection, Side, SnapshotValues, TimeRange, Timestamp,
};

/// Monday 2024-03-04T00:00:00Z, from which the times of the checks count.
pub(super) const BASE: i64 = 1_709_510_400_000_000;

/// So many minutes after [`BASE`].
pub(super) fn minute(n: i64) -> Timestamp {
    micros(n * 60_000_000)
}

/// So many microseconds after [`BASE`].
pub(super) fn micros(n: i64) -> Timestamp {
    Timestamp::from_micros(BASE + n).expect("the times of the checks lie in the domain")
}

/// `[from, to)`.
pub(super) fn range(from: Timestamp, to: Timestamp) -> TimeRange {
    TimeRange::new(from, to).expect("the ranges of the checks are in order")
}

pub(super) fn instrument(text: &str) -> Instrument {
    text.parse().expect("the names of the checks are valid")
}

/// A question for a range of one series.
#[derive(Debug, Clone)]
pub(super) struct Ask<D: Record> {
    pub(super) series: D::Series,
    pub(super) range: TimeRange,
    pub(super) order: Order,
    pub(super) page: PageRequest,
}

impl<D: Record> Ask<D> {
    pub(super) fn all(series: &D::Series) -> Self {
        let page = PageRequest::first(10_000).expect("the largest page");
        Self { series: series.clone(), range: TimeRange::ALL, order: Order::Ascending, page }
    }

    pub(super) fn within(self, range: TimeRange) -> Self {
        Self { range, ..self }
    }

    pub(super) fn descending(self) -> Self {
        Self { order: Order::Descending, ..self }
    }

    pub(super) fn limit(self, limit: usize) -> Self {
        Self { page: PageRequest::first(limit).expect("a valid limit"), ..self }
    }

    pub(super) fn after(self, cursor: qi_core::store::Cursor) -> Self {
        Self { page: self.page.after(cursor), ..self }
    }
}

/// A question for the latest of some series, or of all.
#[derive(Debug, Clone)]
pub(super) struct AskLatest<D: Record> {
    pub(super) series: Option<Vec<D::Series>>,
    pub(super) as_of: Option<Timestamp>,
    pub(super) page: PageRequest,
}

impl<D: Record> AskLatest<D> {
    pub(super) fn all() -> Self {
        Self { series: None, as_of: None, page: PageRequest::default() }
    }

    pub(super) fn these(series: Vec<D::Series>) -> Self {
        Self { series: Some(series), ..Self::all() }
    }

    pub(super) fn known_at(self, time: Timestamp) -> Self {
        Self { as_of: Some(time), ..self }
    }

    pub(super) fn limit(self, limit: usize) -> Self {
        Self { page: PageRequest::first(limit).expect("a valid limit"), ..self }
    }
}

/// One of the four datasets.
#[async_trait]
pub(super) trait Shelf: Record {
    /// The least distance of two records of one series, in microseconds.
    const STEP: i64;

    /// The n-th series in order, n below 1,000.
    fn series_no(n: usize) -> Self::Series;
    /// A record; another `value` differs in every field beside the key.
    fn make(series: &Self::Series, ts: Timestamp, seq: u64, value: u32) -> Self;
    async fn insert(store: &dyn PriceStore, batch: &[Self]) -> Result<InsertReport>;
    async fn page(store: &dyn PriceStore, ask: &Ask<Self>) -> Result<Page<Self>>;
    fn stream(store: &dyn PriceStore, ask: Ask<Self>) -> BoxStream<'_, Result<Self>>;
    async fn latest(store: &dyn PriceStore, ask: &AskLatest<Self>) -> Result<Page<Self>>;
    fn deletion(series: Option<Vec<Self::Series>>, range: TimeRange) -> DeleteQuery;

    /// A record of the n-th series, so many minutes after [`BASE`].
    fn at(series: usize, minutes: i64, value: u32) -> Self {
        Self::make(&Self::series_no(series), minute(minutes), 0, value)
    }

    /// All records of a series, oldest first.
    async fn all(store: &dyn PriceStore, series: &Self::Series) -> Result<Vec<Self>> {
        Self::scan(store, Ask::all(series)).await
    }

    /// Page after page until there is no next one.
    async fn scan(store: &dyn PriceStore, mut ask: Ask<Self>) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        loop {
            let page = Self::page(store, &ask).await?;
            found.extend(page.items);
            let Some(next) = page.next else { return Ok(found) };
            ask = ask.after(next);
        }
    }

    /// The latest records, page after page.
    async fn scan_latest(store: &dyn PriceStore, mut ask: AskLatest<Self>) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        loop {
            let page = Self::latest(store, &ask).await?;
            found.extend(page.items);
            let Some(next) = page.next else { return Ok(found) };
            ask.page = ask.page.after(next);
        }
    }
}

/// A number whose every digit counts: `value + 1` and `field` at the 18th place.
fn units(value: u32, field: u8) -> i128 {
    (i128::from(value) + 1) * 1_000_000_000_000_000_000 + i128::from(field)
}

pub(super) fn price(value: u32, field: u8) -> Price {
    Price::from_units(units(value, field)).expect("positive")
}

pub(super) fn quantity(value: u32, field: u8) -> Quantity {
    Quantity::from_units(units(value, field)).expect("positive")
}

fn selection<K: Ord>(keys: Option<Vec<K>>) -> Selection<K> {
    keys.map_or(Selection::All, |keys| Selection::these(keys).expect("the checks name at least one"))
}

fn range_query<D: Record<Series = Instrument>>(ask: &Ask<D>) -> RangeQuery {
    let query = RangeQuery::new(ask.series.clone(), ask.range).with_page(ask.page.clone());
    if ask.order == Order::Descending { query.descending() } else { query }
}

fn latest_query<D: Record>(ask: &AskLatest<D>) -> LatestQuery<D::Series> {
    let mut query = LatestQuery::new(selection(ask.series.clone()));
    (query.as_of, query.page) = (ask.as_of, ask.page.clone());
    query
}

#[async_trait]
impl Shelf for PriceTick {
    const STEP: i64 = 1;

    fn series_no(n: usize) -> Instrument {
        instrument(&format!("alpha:S{n:03}"))
    }
    fn make(series: &Instrument, ts: Timestamp, seq: u64, value: u32) -> Self {
        let side = if value.is_multiple_of(2) { Side::Buy } else { Side::Sell };
        Self::new(series.clone(), ts, seq, price(value, 1))
            .expect("a valid tick")
            .with_quantity(quantity(value, 2))
            .with_side(side)
    }
    async fn insert(store: &dyn PriceStore, batch: &[Self]) -> Result<InsertReport> {
        store.insert_ticks(batch).await
    }
    async fn page(store: &dyn PriceStore, ask: &Ask<Self>) -> Result<Page<Self>> {
        store.ticks(&range_query(ask)).await
    }
    fn stream(store: &dyn PriceStore, ask: Ask<Self>) -> BoxStream<'_, Result<Self>> {
        store.tick_stream(range_query(&ask))
    }
    async fn latest(store: &dyn PriceStore, ask: &AskLatest<Self>) -> Result<Page<Self>> {
        store.latest_ticks(&latest_query(ask)).await
    }
    fn deletion(series: Option<Vec<Instrument>>, range: TimeRange) -> DeleteQuery {
        DeleteQuery::Ticks(selection(series), range)
    }
}

#[async_trait]
impl Shelf for Quote {
    const STEP: i64 = 1;

    fn series_no(n: usize) -> Instrument {
        PriceTick::series_no(n)
    }
    fn make(series: &Instrument, ts: Timestamp, seq: u64, value: u32) -> Self {
        let values = QuoteValues {
            bid_price: Some(price(value, 1)),
            bid_size: Some(quantity(value, 2)),
            ask_price: Some(price(value, 3)),
            ask_size: Some(quantity(value, 4)),
        };
        Self::new(series.clone(), ts, seq, values).expect("a valid quote")
    }
    async fn insert(store: &dyn PriceStore, batch: &[Self]) -> Result<InsertReport> {
        store.insert_quotes(batch).await
    }
    async fn page(store: &dyn PriceStore, ask: &Ask<Self>) -> Result<Page<Self>> {
        store.quotes(&range_query(ask)).await
    }
    fn stream(store: &dyn PriceStore, ask: Ask<Self>) -> BoxStream<'_, Result<Self>> {
        store.quote_stream(range_query(&ask))
    }
    async fn latest(store: &dyn PriceStore, ask: &AskLatest<Self>) -> Result<Page<Self>> {
        store.latest_quotes(&latest_query(ask)).await
    }
    fn deletion(series: Option<Vec<Instrument>>, range: TimeRange) -> DeleteQuery {
        DeleteQuery::Quotes(selection(series), range)
    }
}

fn bar_query(ask: &Ask<Ohlcv>) -> BarQuery {
    let (instrument, interval) = ask.series.clone();
    let query = BarQuery::new(instrument, interval, ask.range).with_page(ask.page.clone());
    if ask.order == Order::Descending { query.descending() } else { query }
}

#[async_trait]
impl Shelf for Ohlcv {
    const STEP: i64 = 60_000_000;

    fn series_no(n: usize) -> (Instrument, Interval) {
        (PriceTick::series_no(n), Interval::M1)
    }
    fn make(series: &(Instrument, Interval), ts: Timestamp, _: u64, value: u32) -> Self {
        let values = BarValues {
            low: price(value, 1),
            open: price(value, 2),
            close: price(value, 3),
            high: price(value, 4),
            volume: Some(quantity(value, 5)),
            quote_volume: Some(quantity(value, 6)),
            count: Some(u64::from(value) + 7),
        };
        Self::new(series.0.clone(), series.1, series.1.floor(ts), values).expect("a valid bar")
    }
    async fn insert(store: &dyn PriceStore, batch: &[Self]) -> Result<InsertReport> {
        store.insert_bars(batch).await
    }
    async fn page(store: &dyn PriceStore, ask: &Ask<Self>) -> Result<Page<Self>> {
        store.bars(&bar_query(ask)).await
    }
    fn stream(store: &dyn PriceStore, ask: Ask<Self>) -> BoxStream<'_, Result<Self>> {
        store.bar_stream(bar_query(&ask), BarSource::Stored)
    }
    async fn latest(store: &dyn PriceStore, ask: &AskLatest<Self>) -> Result<Page<Self>> {
        let instruments = ask.series.as_ref().map(|keys| keys.iter().map(|key| key.0.clone()).collect());
        let mut query = LatestBarsQuery::new(Interval::M1, selection(instruments));
        (query.as_of, query.page) = (ask.as_of, ask.page.clone());
        store.latest_bars(&query).await
    }
    fn deletion(series: Option<Vec<(Instrument, Interval)>>, range: TimeRange) -> DeleteQuery {
        let instruments = series.map(|keys| keys.into_iter().map(|key| key.0).collect());
        DeleteQuery::Bars(Interval::M1, selection(instruments), range)
    }
}

fn snapshot_query(ask: &Ask<MarketSnapshot>) -> SnapshotQuery {
    let query = SnapshotQuery::new(ask.series.clone(), ask.range).with_page(ask.page.clone());
    if ask.order == Order::Descending { query.descending() } else { query }
}

#[async_trait]
impl Shelf for MarketSnapshot {
    const STEP: i64 = 1;

    fn series_no(n: usize) -> Scope {
        format!("asset:S{n:03}").parse().expect("a valid scope")
    }
    fn make(series: &Scope, ts: Timestamp, _: u64, value: u32) -> Self {
        let percent =
            |field| qi_core::Percent::from_units(units(value % 99, field)).expect("a valid percentage");
        let values = SnapshotValues {
            market_cap_usd: Some(quantity(value, 1)),
            volume_24h_usd: Some(quantity(value, 2)),
            btc_dominance: Some(percent(3)),
            eth_dominance: Some(percent(4)),
            active_currencies: Some(u64::from(value) + 5),
            markets: Some(u64::from(value) + 6),
            change_24h: Some(percent(7)),
            change_7d: Some(percent(8)),
            source: Some(qi_core::Source::new(format!("source {value}")).expect("a valid source")),
        };
        Self::new(series.clone(), ts, values).expect("a valid snapshot")
    }
    async fn insert(store: &dyn PriceStore, batch: &[Self]) -> Result<InsertReport> {
        store.insert_snapshots(batch).await
    }
    async fn page(store: &dyn PriceStore, ask: &Ask<Self>) -> Result<Page<Self>> {
        store.snapshots(&snapshot_query(ask)).await
    }
    fn stream(store: &dyn PriceStore, ask: Ask<Self>) -> BoxStream<'_, Result<Self>> {
        store.snapshot_stream(snapshot_query(&ask))
    }
    async fn latest(store: &dyn PriceStore, ask: &AskLatest<Self>) -> Result<Page<Self>> {
        store.latest_snapshots(&latest_query(ask)).await
    }
    fn deletion(series: Option<Vec<Scope>>, range: TimeRange) -> DeleteQuery {
        DeleteQuery::Snapshots(selection(series), range)
    }
}
