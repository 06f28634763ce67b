//! What can be asked of a store.
//!
//! Every query is a plain value with a `page`; [`Paged`] is how an adapter reads the cursor of one and builds the
//! page of its answer.

use serde::{Deserialize, Serialize};

use super::cursor::{Anchor, Cursor, QueryScope};
use super::{Dataset, Page, PageRequest};
use crate::{
    Exchange, Instrument, Interval, MarketSnapshot, Ohlcv, PriceTick, Quote, Result, Scope, Selection,
    TimeRange, Timestamp,
};

/// In which direction of the total order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Oldest first.
    #[default]
    Ascending,
    /// Newest first.
    Descending,
}

macro_rules! setters {
    ($name:ty $(, $key:ident)?) => {
        impl$(<$key>)? $name {
            /// With this page request in place of the first 1,000 items.
            #[must_use]
            pub fn with_page(mut self, page: PageRequest) -> Self {
                self.page = page;
                self
            }

            /// The first `limit` items.
            ///
            /// # Errors
            /// `InvalidInput` unless `limit` lies in 1 to [`super::MAX_PAGE`].
            pub fn with_limit(self, limit: usize) -> Result<Self> {
                Ok(self.with_page(PageRequest::first(limit)?))
            }

            /// The page after `cursor`.
            #[must_use]
            pub fn after(mut self, cursor: Cursor) -> Self {
                self.page = self.page.after(cursor);
                self
            }
        }
    };
}

/// Ticks or quotes of one instrument in a range.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RangeQuery {
    /// Of what.
    pub instrument: Instrument,
    /// When.
    pub range: TimeRange,
    /// Oldest or newest first, by (ts, seq).
    pub order: Order,
    /// Which part of the answer.
    pub page: PageRequest,
}

impl RangeQuery {
    /// All of `instrument` in `range`, oldest first, in pages of 1,000.
    pub fn new(instrument: Instrument, range: TimeRange) -> Self {
        Self { instrument, range, order: Order::Ascending, page: PageRequest::default() }
    }

    /// Newest first.
    #[must_use]
    pub fn descending(mut self) -> Self {
        self.order = Order::Descending;
        self
    }
}
setters!(RangeQuery);

/// Bars of one instrument and interval whose open time lies in a range: stored ones, or ones derived from ticks.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BarQuery {
    /// Of what.
    pub instrument: Instrument,
    /// How long.
    pub interval: Interval,
    /// The range of the open time. A bar is always computed from its whole bucket, even where the range cuts it.
    pub range: TimeRange,
    /// Oldest or newest first.
    pub order: Order,
    /// Which part of the answer.
    pub page: PageRequest,
}

impl BarQuery {
    /// All bars of `instrument` that open in `range`, oldest first, in pages of 1,000.
    pub fn new(instrument: Instrument, interval: Interval, range: TimeRange) -> Self {
        Self { instrument, interval, range, order: Order::Ascending, page: PageRequest::default() }
    }

    /// Newest first.
    #[must_use]
    pub fn descending(mut self) -> Self {
        self.order = Order::Descending;
        self
    }
}
setters!(BarQuery);

/// Snapshots of one scope in a range.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotQuery {
    /// Of what.
    pub scope: Scope,
    /// When.
    pub range: TimeRange,
    /// Oldest or newest first.
    pub order: Order,
    /// Which part of the answer.
    pub page: PageRequest,
}

impl SnapshotQuery {
    /// All of `scope` in `range`, oldest first, in pages of 1,000.
    pub fn new(scope: Scope, range: TimeRange) -> Self {
        Self { scope, range, order: Order::Ascending, page: PageRequest::default() }
    }

    /// Newest first.
    #[must_use]
    pub fn descending(mut self) -> Self {
        self.order = Order::Descending;
        self
    }
}
setters!(SnapshotQuery);

/// The latest record of each selected key, in the order of the keys. A key without a record is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LatestQuery<K = Instrument> {
    /// Of which keys.
    pub selection: Selection<K>,
    /// As it was known at this moment, inclusive: the latest with ts <= `as_of`. None is without a limit.
    pub as_of: Option<Timestamp>,
    /// Which part of the answer.
    pub page: PageRequest,
}

impl<K> LatestQuery<K> {
    /// The latest of these keys, in pages of 1,000.
    pub fn new(selection: Selection<K>) -> Self {
        Self { selection, as_of: None, page: PageRequest::default() }
    }

    /// As it was known at `time`, inclusive.
    #[must_use]
    pub fn as_of(mut self, time: Timestamp) -> Self {
        self.as_of = Some(time);
        self
    }
}
setters!(LatestQuery<K>, K);

/// The latest stored bar of each selected instrument at one interval.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LatestBarsQuery {
    /// How long.
    pub interval: Interval,
    /// Of what.
    pub selection: Selection<Instrument>,
    /// As it was known at this moment, inclusive: the latest with close time <= `as_of`, because an open time
    /// would look ahead.
    pub as_of: Option<Timestamp>,
    /// Which part of the answer.
    pub page: PageRequest,
}

impl LatestBarsQuery {
    /// The latest bars of these instruments, in pages of 1,000.
    pub fn new(interval: Interval, selection: Selection<Instrument>) -> Self {
        Self { interval, selection, as_of: None, page: PageRequest::default() }
    }

    /// As it was known at `time`, inclusive.
    #[must_use]
    pub fn as_of(mut self, time: Timestamp) -> Self {
        self.as_of = Some(time);
        self
    }
}
setters!(LatestBarsQuery);

/// Figures over the ticks of one instrument in a range.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StatsQuery {
    /// Of what.
    pub instrument: Instrument,
    /// When.
    pub range: TimeRange,
}

impl StatsQuery {
    /// The figures of `instrument` in `range`.
    pub fn new(instrument: Instrument, range: TimeRange) -> Self {
        Self { instrument, range }
    }
}

/// The datasets whose records belong to instruments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstrumentDataset {
    /// Ticks.
    Ticks,
    /// Quotes.
    Quotes,
    /// Stored bars, of every interval.
    Bars,
}

impl From<InstrumentDataset> for Dataset {
    fn from(dataset: InstrumentDataset) -> Self {
        match dataset {
            InstrumentDataset::Ticks => Self::Ticks,
            InstrumentDataset::Quotes => Self::Quotes,
            InstrumentDataset::Bars => Self::Bars,
        }
    }
}

/// The instruments that have at least one record in a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InstrumentQuery {
    /// In which dataset.
    pub dataset: InstrumentDataset,
    /// Only those of this exchange.
    pub exchange: Option<Exchange>,
    /// Which part of the answer.
    pub page: PageRequest,
}

impl InstrumentQuery {
    /// Every instrument of `dataset`, in pages of 1,000.
    pub fn new(dataset: InstrumentDataset) -> Self {
        Self { dataset, exchange: None, page: PageRequest::default() }
    }

    /// Only those of `exchange`.
    #[must_use]
    pub fn of_exchange(mut self, exchange: Exchange) -> Self {
        self.exchange = Some(exchange);
        self
    }
}
setters!(InstrumentQuery);

/// What to delete. The time of a record is its `ts`, of a bar its open time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeleteQuery {
    /// Ticks of these instruments.
    Ticks(Selection<Instrument>, TimeRange),
    /// Quotes of these instruments.
    Quotes(Selection<Instrument>, TimeRange),
    /// Stored bars of this interval and these instruments.
    Bars(Interval, Selection<Instrument>, TimeRange),
    /// Snapshots of these scopes.
    Snapshots(Selection<Scope>, TimeRange),
}

/// What an adapter needs of a paged query: where to go on, and the page of an answer.
///
/// `T` is the record that is asked for. One query type can serve two datasets ([`RangeQuery`] serves ticks and
/// quotes), and a cursor of one is refused by the other. An adapter asks its backend for one record more than
/// the limit, and hands all of them to [`Paged::page_of`]:
///
/// ```
/// # use qi_core::{PriceTick, Result, TimeRange};
/// # use qi_core::store::{Page, Paged, RangeQuery};
/// fn answer(query: &RangeQuery, found: Vec<PriceTick>) -> Result<Page<PriceTick>> {
///     let _after = Paged::<PriceTick>::anchor(query)?; // before any I/O
///     query.page_of(found)
/// }
/// ```
pub trait Paged<T> {
    /// All that a cursor of this query is bound to.
    fn scope(&self) -> QueryScope;

    /// The page that is asked for.
    fn request(&self) -> &PageRequest;

    /// The anchor of a record: where a page goes on after it.
    fn anchor_of(&self, item: &T) -> Anchor;

    /// Whether the cursor that [`Page::resume`] gives may pass this record.
    fn may_pass(&self, item: &T) -> bool {
        let _ = item;
        true
    }

    /// Where to go on.
    ///
    /// # Errors
    /// `InvalidInput` if the cursor is not one of this query.
    fn anchor(&self) -> Result<Anchor> {
        self.request().cursor().map_or(Ok(Anchor::Start), |cursor| self.scope().open(cursor))
    }

    /// The page of `found`, which holds what the backend found after the anchor, in the query's order: up to the
    /// limit, and one more if there is more.
    ///
    /// # Errors
    /// `InvalidInput` if the cursor is not one of this query.
    fn page_of(&self, mut found: Vec<T>) -> Result<Page<T>> {
        let (scope, before) = (self.scope(), self.anchor()?);
        let more = found.len() > self.request().limit();
        found.truncate(self.request().limit());
        let after_last = found.last().map_or_else(|| before.clone(), |item| self.anchor_of(item));
        let next = more.then(|| scope.cursor(&after_last));
        // The first record that may still change stops it, whatever comes behind.
        let passed = found.iter().take_while(|item| self.may_pass(item)).last();
        let resume = scope.cursor(&passed.map_or(before, |item| self.anchor_of(item)));
        Ok(Page { items: found, next, resume })
    }
}

impl Paged<PriceTick> for RangeQuery {
    fn scope(&self) -> QueryScope {
        let Self { instrument, range, order, page: _ } = self;
        QueryScope::of(format_args!("ticks|{instrument}|{range}|{order:?}"))
    }
    fn request(&self) -> &PageRequest {
        &self.page
    }
    fn anchor_of(&self, tick: &PriceTick) -> Anchor {
        Anchor::Place(tick.ts(), tick.seq())
    }
}

impl Paged<Quote> for RangeQuery {
    fn scope(&self) -> QueryScope {
        let Self { instrument, range, order, page: _ } = self;
        QueryScope::of(format_args!("quotes|{instrument}|{range}|{order:?}"))
    }
    fn request(&self) -> &PageRequest {
        &self.page
    }
    fn anchor_of(&self, quote: &Quote) -> Anchor {
        Anchor::Place(quote.ts(), quote.seq())
    }
}

impl Paged<Ohlcv> for BarQuery {
    fn scope(&self) -> QueryScope {
        let Self { instrument, interval, range, order, page: _ } = self;
        QueryScope::of(format_args!("bars|{instrument}|{interval}|{range}|{order:?}"))
    }
    fn request(&self) -> &PageRequest {
        &self.page
    }
    fn anchor_of(&self, bar: &Ohlcv) -> Anchor {
        Anchor::Time(bar.open_time())
    }
}

/// A [`BarQuery`] that is asked of the ticks. Its cursors are no cursors of the stored bars.
#[derive(Debug, Clone, Copy)]
pub struct Derived<'a>(pub &'a BarQuery);

impl Paged<Ohlcv> for Derived<'_> {
    fn scope(&self) -> QueryScope {
        let BarQuery { instrument, interval, range, order, page: _ } = self.0;
        QueryScope::of(format_args!("derived|{instrument}|{interval}|{range}|{order:?}"))
    }
    fn request(&self) -> &PageRequest {
        &self.0.page
    }
    fn anchor_of(&self, bar: &Ohlcv) -> Anchor {
        Anchor::Time(bar.open_time())
    }
    /// A bar that the end of the range cuts may still grow.
    fn may_pass(&self, bar: &Ohlcv) -> bool {
        bar.close_time() <= self.0.range.end()
    }
}

impl Paged<MarketSnapshot> for SnapshotQuery {
    fn scope(&self) -> QueryScope {
        let Self { scope, range, order, page: _ } = self;
        QueryScope::of(format_args!("snapshots|{scope}|{range}|{order:?}"))
    }
    fn request(&self) -> &PageRequest {
        &self.page
    }
    fn anchor_of(&self, snapshot: &MarketSnapshot) -> Anchor {
        Anchor::Time(snapshot.ts())
    }
}

impl Paged<PriceTick> for LatestQuery {
    fn scope(&self) -> QueryScope {
        let Self { selection, as_of, page: _ } = self;
        QueryScope::of(format_args!("latest_ticks|{selection:?}|{as_of:?}"))
    }
    fn request(&self) -> &PageRequest {
        &self.page
    }
    fn anchor_of(&self, tick: &PriceTick) -> Anchor {
        Anchor::Instrument(tick.instrument().clone())
    }
}

impl Paged<Quote> for LatestQuery {
    fn scope(&self) -> QueryScope {
        let Self { selection, as_of, page: _ } = self;
        QueryScope::of(format_args!("latest_quotes|{selection:?}|{as_of:?}"))
    }
    fn request(&self) -> &PageRequest {
        &self.page
    }
    fn anchor_of(&self, quote: &Quote) -> Anchor {
        Anchor::Instrument(quote.instrument().clone())
    }
}

impl Paged<Ohlcv> for LatestBarsQuery {
    fn scope(&self) -> QueryScope {
        let Self { interval, selection, as_of, page: _ } = self;
        QueryScope::of(format_args!("latest_bars|{interval}|{selection:?}|{as_of:?}"))
    }
    fn request(&self) -> &PageRequest {
        &self.page
    }
    fn anchor_of(&self, bar: &Ohlcv) -> Anchor {
        Anchor::Instrument(bar.instrument().clone())
    }
}

impl Paged<MarketSnapshot> for LatestQuery<Scope> {
    fn scope(&self) -> QueryScope {
        let Self { selection, as_of, page: _ } = self;
        QueryScope::of(format_args!("latest_snapshots|{selection:?}|{as_of:?}"))
    }
    fn request(&self) -> &PageRequest {
        &self.page
    }
    fn anchor_of(&self, snapshot: &MarketSnapshot) -> Anchor {
        Anchor::Scope(snapshot.scope().clone())
    }
}

impl Paged<super::InstrumentSummary> for InstrumentQuery {
    fn scope(&self) -> QueryScope {
        let Self { dataset, exchange, page: _ } = self;
        QueryScope::of(format_args!("instruments|{dataset:?}|{exchange:?}"))
    }
    fn request(&self) -> &PageRequest {
        &self.page
    }
    fn anchor_of(&self, summary: &super::InstrumentSummary) -> Anchor {
        Anchor::Instrument(summary.instrument.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BarValues;

    fn bar(hour: i64) -> Ohlcv {
        let open = Timestamp::from_secs(1_600_000_000 / 3_600 * 3_600 + hour * 3_600).unwrap();
        let values = BarValues::flat("1".parse().unwrap());
        Ohlcv::new("x:Y".parse().unwrap(), Interval::H1, open, values).unwrap()
    }

    fn query(bars: &[Ohlcv]) -> BarQuery {
        // The range ends inside the last bar, which may still grow.
        let (first, last) = (&bars[0], &bars[bars.len() - 1]);
        let end = Timestamp::from_micros(last.open_time().as_micros() + 1).unwrap();
        BarQuery::new(
            first.instrument().clone(),
            Interval::H1,
            TimeRange::new(first.open_time(), end).unwrap(),
        )
    }

    #[test]
    fn resume_does_not_pass_a_bar_that_the_end_of_the_range_cuts() {
        let mut bars: Vec<_> = (0..3).map(bar).collect();
        let ascending = query(&bars);
        let page = Derived(&ascending).page_of(bars.clone()).unwrap();
        let resumed = ascending.clone().after(page.resume);
        assert_eq!(Derived(&resumed).anchor().unwrap(), Anchor::Time(bars[1].open_time()));
        assert_eq!(page.next, None);
        // The stored ones of the same query are data of their own, and all of them are passed.
        let page = ascending.page_of(bars.clone()).unwrap();
        assert_eq!(ascending.clone().after(page.resume).anchor().unwrap(), Anchor::Time(bars[2].open_time()));

        let descending = ascending.descending();
        bars.reverse();
        let page = Derived(&descending).page_of(bars).unwrap();
        let resumed = descending.clone().after(page.resume);
        assert_eq!(
            Derived(&resumed).anchor().unwrap(),
            Anchor::Start,
            "newest first the open bar is the first"
        );
    }

    #[test]
    fn an_empty_page_resumes_where_it_began() {
        let bars = [bar(0), bar(1)];
        let first = query(&bars);
        let page = first.page_of(Vec::new()).unwrap();
        assert_eq!(first.clone().after(page.resume).anchor().unwrap(), Anchor::Start);
        let page = first.clone().with_limit(1).unwrap().page_of(bars.to_vec()).unwrap();
        assert_eq!((page.items.len(), page.next.is_some()), (1, true));
        let second = first.after(page.next.unwrap());
        let empty = second.page_of(Vec::new()).unwrap();
        assert_eq!(second.clone().after(empty.resume).anchor().unwrap(), Anchor::Time(bars[0].open_time()));
    }
}
