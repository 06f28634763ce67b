//! Queries of a store.
//!
//! Callers write typed queries such as [`RangeQuery`] and [`LatestQuery`]. The port takes requests, which name a
//! dataset and have no record type: [`RangeRequest`], [`LatestRequest`].
//! [`super::PriceStoreExt`] converts queries to requests.
//!
//! Queries implement serde's traits, and deserialising validates them. [`InstrumentQuery`] and [`DeleteQuery`] implement
//! only `Serialize`, and the requests with a dataset neither trait, because a [`Dataset`] exists only in the program that
//! declares it. To read the name of a dataset, use [`Datasets::get`](crate::Datasets::get).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cursor::{Anchor, Cursor, QueryFingerprint};
use super::{Page, PageRequest, RecordPage, SeriesSummary};
use crate::domain::duration;
use crate::record::{Dataset, Owner, Record, RecordVec, Series, SeriesKey, SeriesType, SortKey};
use crate::{
    Bar, Error, Exchange, Instrument, Interval, MarketSnapshot, PriceTick, Quote, Result, Scope, Selection,
    TimeRange, Timestamp,
};

/// The sort direction of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Oldest first.
    #[default]
    Ascending,
    /// Newest first.
    Descending,
}

/// Defines the setters of the page and, with `ordered`, of the order.
macro_rules! setters {
    (ordered $name:ty $(, $key:ident)?) => {
        impl$(<$key>)? $name {
            /// Sets the order. Defaults to oldest first.
            #[must_use]
            pub fn order(mut self, order: Order) -> Self {
                self.order = order;
                self
            }

            /// Sets the order to newest first.
            #[must_use]
            pub fn descending(self) -> Self {
                self.order(Order::Descending)
            }
        }

        setters!($name $(, $key)?);
    };
    ($name:ty $(, $key:ident)?) => {
        impl$(<$key>)? $name {
            /// Sets the page. Defaults to the first 1,000 items.
            #[must_use]
            pub fn with_page(mut self, page: PageRequest) -> Self {
                self.page = page;
                self
            }

            /// Sets the page to the first `limit` items.
            ///
            /// # Errors
            /// `InvalidInput` unless `limit` lies in 1 to [`super::MAX_PAGE`].
            pub fn with_limit(self, limit: usize) -> Result<Self> {
                Ok(self.with_page(PageRequest::first(limit)?))
            }

            /// Sets the page to the items after `cursor`.
            #[must_use]
            pub fn after(mut self, cursor: Cursor) -> Self {
                self.page = self.page.after(cursor);
                self
            }
        }
    };
}

/// A query of the records of one series in a range. The series is an instrument, unless the dataset has other series.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RangeQuery<S = Instrument> {
    /// The series.
    pub series: S,
    /// The time range.
    pub range: TimeRange,
    /// The sort order: oldest or newest first, by (ts, seq).
    #[serde(default)]
    pub order: Order,
    /// The page of the result.
    #[serde(default)]
    pub page: PageRequest,
}

/// A query of the snapshots of one scope in a range.
pub type SnapshotQuery = RangeQuery<Scope>;

impl<S> RangeQuery<S> {
    /// Creates a query of all records of `series` in `range`, oldest first, in pages of 1,000.
    pub fn new(series: S, range: TimeRange) -> Self {
        Self { series, range, order: Order::Ascending, page: PageRequest::default() }
    }

    /// Returns the request for records of type `R`.
    pub fn request<R: Record<Series = S>>(&self) -> RangeRequest
    where
        S: Series,
    {
        let Self { series, range, order, page } = self;
        RangeRequest {
            dataset: R::DATASET,
            series: series.key(),
            range: *range,
            order: *order,
            page: page.clone(),
        }
    }
}
setters!(ordered RangeQuery<S>, S);

/// A query of the bars of one instrument and interval whose open time lies in a range. The bars are
/// stored, or derived from ticks.
///
/// ```
/// use qi_core::prelude::*;
///
/// async fn closes(store: &dyn PriceStore, day: TimeRange) -> Result<Vec<Price>> {
///     let query = BarQuery::new("binance:BTC-USDT".parse()?, Interval::M1, day).with_limit(1_440)?;
///     let page = store.derived_bars(&query).await?; // `store.bars(&query)` reads stored bars
///     Ok(page.items.iter().map(|bar| bar.close()).collect())
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct BarQuery {
    /// The instrument.
    pub instrument: Instrument,
    /// The interval of the bars.
    pub interval: Interval,
    /// The range of the open time. Every bar covers its entire bucket, even if the range cuts the bucket.
    pub range: TimeRange,
    /// The sort order: oldest or newest first.
    #[serde(default)]
    pub order: Order,
    /// The page of the result.
    #[serde(default)]
    pub page: PageRequest,
}

impl BarQuery {
    /// Creates a query of all bars of `instrument` that open in `range`, oldest first, in pages of 1,000.
    pub fn new(instrument: Instrument, interval: Interval, range: TimeRange) -> Self {
        Self { instrument, interval, range, order: Order::Ascending, page: PageRequest::default() }
    }

    /// Returns the request for stored bars.
    pub fn request(&self) -> RangeRequest {
        let Self { instrument, interval, range, order, page } = self;
        let series = (instrument.clone(), *interval).key();
        RangeRequest { dataset: Bar::DATASET, series, range: *range, order: *order, page: page.clone() }
    }
}
setters!(ordered BarQuery);

/// A query of the latest record of each selected owner, in the order of the owners. An owner
/// without a record is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "K: Ord + Deserialize<'de>"))]
#[non_exhaustive]
pub struct LatestQuery<K = Instrument> {
    /// The selected owners: instruments, or names of the dataset.
    pub selection: Selection<K>,
    /// The interval, for a dataset whose series have one.
    #[serde(default)]
    pub interval: Option<Interval>,
    /// The point in time up to which data counts as known, inclusive. The result has the latest record with ts <=
    /// `as_of`. For bars, the close time counts, because a bar's values are not known at its open
    /// time. None sets no limit.
    #[serde(default)]
    pub as_of: Option<Timestamp>,
    /// The page of the result.
    #[serde(default)]
    pub page: PageRequest,
}

impl<K> LatestQuery<K> {
    /// Creates a query of the latest records of these owners, in pages of 1,000.
    pub fn new(selection: Selection<K>) -> Self {
        Self { selection, interval: None, as_of: None, page: PageRequest::default() }
    }

    /// Sets the interval.
    #[must_use]
    pub fn of_interval(mut self, interval: Interval) -> Self {
        self.interval = Some(interval);
        self
    }

    /// Sets the point in time up to which data counts as known, inclusive.
    #[must_use]
    pub fn as_of(mut self, time: Timestamp) -> Self {
        self.as_of = Some(time);
        self
    }

    /// Returns the request for records of type `R`.
    ///
    /// # Errors
    /// `InvalidInput` if the dataset has intervals and the query has no interval, or the reverse.
    pub fn request<R: Record>(&self) -> Result<LatestRequest>
    where
        R::Series: Series<Owner = K>,
    {
        let Self { selection, interval, as_of, page } = self;
        check_interval(R::DATASET, *interval)?;
        let selection = owners::<R>(selection);
        Ok(LatestRequest {
            dataset: R::DATASET,
            selection,
            interval: *interval,
            as_of: *as_of,
            page: page.clone(),
        })
    }
}
setters!(LatestQuery<K>, K);

fn check_interval(dataset: Dataset, interval: Option<Interval>) -> Result<()> {
    if dataset.interval().is_some() == interval.is_some() {
        return Ok(());
    }
    let rule = if interval.is_none() {
        "must be given for this dataset"
    } else {
        "must not be given for this dataset"
    };
    let value = interval.map_or("none", Interval::as_str);
    Err(Error::invalid("store.query.interval", "interval", value, rule).with_context("dataset", dataset))
}

fn owners<R: Record>(selection: &Selection<<R::Series as Series>::Owner>) -> Selection<Owner> {
    match selection {
        Selection::All => Selection::All,
        // Owners sort as their keys, so the list stays sorted.
        Selection::Only(keys) => {
            Selection::only(keys.iter().map(R::Series::owner_key)).unwrap_or(Selection::All)
        }
    }
}

/// A query of the latest stored bar of each selected instrument at one interval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LatestBarsQuery {
    /// The interval of the bars.
    pub interval: Interval,
    /// The selected instruments.
    pub selection: Selection<Instrument>,
    /// The point in time up to which data counts as known, inclusive. The result has the latest bar with close time <=
    /// `as_of`, because a bar's values are not known at its open time. None sets no limit.
    #[serde(default)]
    pub as_of: Option<Timestamp>,
    /// The page of the result.
    #[serde(default)]
    pub page: PageRequest,
}

impl LatestBarsQuery {
    /// Creates a query of the latest bars of these instruments, in pages of 1,000.
    pub fn new(interval: Interval, selection: Selection<Instrument>) -> Self {
        Self { interval, selection, as_of: None, page: PageRequest::default() }
    }

    /// Sets the point in time up to which data counts as known, inclusive.
    #[must_use]
    pub fn as_of(mut self, time: Timestamp) -> Self {
        self.as_of = Some(time);
        self
    }

    /// Returns the request for the latest bars.
    ///
    /// # Errors
    /// Never, because bars have intervals.
    pub fn request(&self) -> Result<LatestRequest> {
        let Self { interval, selection, as_of, page } = self.clone();
        LatestQuery { selection, interval: Some(interval), as_of, page }.request::<Bar>()
    }
}
setters!(LatestBarsQuery);

/// A query of figures over the ticks of one instrument in a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct StatsQuery {
    /// The instrument.
    pub instrument: Instrument,
    /// The time range.
    pub range: TimeRange,
}

impl StatsQuery {
    /// Creates a query of the figures of `instrument` in `range`.
    pub fn new(instrument: Instrument, range: TimeRange) -> Self {
        Self { instrument, range }
    }
}

/// A request for [`PriceStore::maintain`](super::PriceStore::maintain).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct MaintainRequest {
    /// The time to announce, rounded down to a full hour. Defaults to 10 minutes before the clock of the server. An
    /// announced time never moves back: with an earlier value, the call still works up to the latest announced time.
    pub until: Option<Timestamp>,
    /// The time after which the call starts no further step. Defaults to one minute. A step usually takes seconds, and at
    /// most the time limit of bulk calls of the server.
    #[serde(with = "duration")]
    pub budget: Duration,
}

impl Default for MaintainRequest {
    fn default() -> Self {
        Self { until: None, budget: Duration::from_mins(1) }
    }
}

impl MaintainRequest {
    /// Sets the time up to which bars are materialized.
    #[must_use]
    pub fn with_until(mut self, until: Timestamp) -> Self {
        self.until = Some(until);
        self
    }

    /// Sets the time after which the call starts no further step. At least one step runs, unless another call runs steps
    /// at that time.
    #[must_use]
    pub fn with_budget(mut self, budget: Duration) -> Self {
        self.budget = budget;
        self
    }
}

/// A query of the instruments that have at least one record in a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InstrumentQuery {
    /// The dataset.
    pub dataset: Dataset,
    /// The exchange to which the result is limited, if any.
    pub exchange: Option<Exchange>,
    /// The page of the result.
    pub page: PageRequest,
}

impl InstrumentQuery {
    /// Creates a query of every instrument of `dataset`, in pages of 1,000.
    pub fn new(dataset: Dataset) -> Self {
        Self { dataset, exchange: None, page: PageRequest::default() }
    }

    /// Limits the result to instruments of `exchange`.
    #[must_use]
    pub fn of_exchange(mut self, exchange: Exchange) -> Self {
        self.exchange = Some(exchange);
        self
    }

    /// Returns the request for the series of the dataset.
    ///
    /// # Errors
    /// `InvalidInput` for a dataset whose records do not belong to instruments.
    pub fn request(&self) -> Result<SeriesRequest> {
        let Self { dataset, exchange, page } = self.clone();
        if dataset.series() != SeriesType::Instrument {
            let rule = "must be a dataset of instruments";
            return Err(Error::invalid("store.query.instruments", "dataset", dataset, rule));
        }
        Ok(SeriesRequest { dataset, exchange, page })
    }
}
setters!(InstrumentQuery);

/// The records to delete. The time of a record is its `ts`, of a bar its open time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeleteQuery {
    /// The dataset.
    pub dataset: Dataset,
    /// The selected owners.
    pub selection: Selection<Owner>,
    /// The interval, for a dataset whose series have one.
    pub interval: Option<Interval>,
    /// The time range.
    pub range: TimeRange,
}

impl DeleteQuery {
    /// Creates a query that deletes the records of type `R` of these owners. A dataset of bars needs
    /// [`DeleteQuery::bars`].
    pub fn of<R: Record>(selection: &Selection<<R::Series as Series>::Owner>, range: TimeRange) -> Self {
        Self { dataset: R::DATASET, selection: owners::<R>(selection), interval: None, range }
    }

    /// Sets the interval.
    #[must_use]
    pub fn of_interval(mut self, interval: Interval) -> Self {
        self.interval = Some(interval);
        self
    }

    /// Creates a query that deletes ticks of these instruments.
    #[allow(clippy::needless_pass_by_value, reason = "as the other constructors")]
    pub fn ticks(selection: Selection<Instrument>, range: TimeRange) -> Self {
        Self::of::<PriceTick>(&selection, range)
    }

    /// Creates a query that deletes quotes of these instruments.
    #[allow(clippy::needless_pass_by_value, reason = "as the other constructors")]
    pub fn quotes(selection: Selection<Instrument>, range: TimeRange) -> Self {
        Self::of::<Quote>(&selection, range)
    }

    /// Creates a query that deletes stored bars of this interval and these instruments.
    #[allow(clippy::needless_pass_by_value, reason = "as the other constructors")]
    pub fn bars(interval: Interval, selection: Selection<Instrument>, range: TimeRange) -> Self {
        Self::of::<Bar>(&selection, range).of_interval(interval)
    }

    /// Creates a query that deletes snapshots of these scopes.
    #[allow(clippy::needless_pass_by_value, reason = "as the other constructors")]
    pub fn snapshots(selection: Selection<Scope>, range: TimeRange) -> Self {
        Self::of::<MarketSnapshot>(&selection, range)
    }

    /// Checks that the query has an interval if and only if the dataset has one. Adapters call it before any I/O.
    ///
    /// # Errors
    /// `InvalidInput` with the dataset.
    pub fn check(&self) -> Result<()> {
        check_interval(self.dataset, self.interval)
    }
}

/// A request for the records of one series in a range; the argument of [`super::PriceStore::range`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RangeRequest {
    /// The dataset.
    pub dataset: Dataset,
    /// The series to read.
    pub series: SeriesKey,
    /// The time range.
    pub range: TimeRange,
    /// The sort order: oldest or newest first, by (time, seq).
    pub order: Order,
    /// The page of the result.
    pub page: PageRequest,
}

impl RangeRequest {
    /// Creates a request for all records of `series` in `range`, oldest first, in pages of 1,000.
    pub fn new(dataset: Dataset, series: SeriesKey, range: TimeRange) -> Self {
        Self { dataset, series, range, order: Order::Ascending, page: PageRequest::default() }
    }

    /// Builds the page from the records that the backend found after the anchor, in the query's order. `found` has at
    /// most limit + 1 records. The additional record shows that there is a next page.
    ///
    /// # Errors
    /// `InvalidInput` if the cursor does not belong to this query.
    pub fn page_of(&self, mut found: RecordVec) -> Result<RecordPage> {
        let (more, count) = cut(self, found.len());
        found.truncate(count);
        let records = found.as_records();
        let last = count.checked_sub(1).map(|last| self.anchor_after(records.sort_key(last)));
        let (next, resume) = cursors(self, more, last.as_ref(), last.as_ref())?;
        Ok(RecordPage { records: found, next, resume })
    }

    fn anchor_after(&self, (time, seq): SortKey) -> Anchor {
        if self.dataset.seq().is_some() { Anchor::SortKey(time, seq) } else { Anchor::Time(time) }
    }

    /// Returns the cursor of this request after a record. Adapters call it.
    pub fn cursor_after(&self, sort_key: SortKey) -> Cursor {
        self.fingerprint().cursor(&self.anchor_after(sort_key))
    }
}
setters!(ordered RangeRequest);

/// A request for the latest record of each selected owner; the argument of [`super::PriceStore::latest`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LatestRequest {
    /// The dataset.
    pub dataset: Dataset,
    /// The selected owners.
    pub selection: Selection<Owner>,
    /// The interval, for a dataset whose series have one.
    pub interval: Option<Interval>,
    /// The point in time up to which data counts as known, inclusive; see [`LatestQuery`].
    pub as_of: Option<Timestamp>,
    /// The page of the result.
    pub page: PageRequest,
}

impl LatestRequest {
    /// Creates a request for the latest records of these owners, in pages of 1,000.
    pub fn new(dataset: Dataset, selection: Selection<Owner>) -> Self {
        Self { dataset, selection, interval: None, as_of: None, page: PageRequest::default() }
    }

    /// Sets the interval.
    #[must_use]
    pub fn of_interval(mut self, interval: Interval) -> Self {
        self.interval = Some(interval);
        self
    }

    /// Checks the cursor, and that the request has an interval if and only if the dataset has one. Adapters call it
    /// before any I/O.
    ///
    /// # Errors
    /// `InvalidInput` with the dataset, or with the cursor.
    pub fn check(&self) -> Result<()> {
        check_interval(self.dataset, self.interval)?;
        self.anchor().map(drop)
    }

    /// Returns the series of an owner.
    pub fn series(&self, owner: Owner) -> SeriesKey {
        SeriesKey { owner, interval: self.interval }
    }

    /// Returns the latest record time that `as_of` admits. None if it admits no time.
    pub fn until(&self) -> Option<Timestamp> {
        match (self.as_of, self.interval) {
            (Some(time), Some(interval)) => time.checked_sub(interval.duration()),
            (Some(time), None) => Some(time.min(Timestamp::MAX_RECORD)),
            (None, _) => Some(Timestamp::MAX_RECORD),
        }
    }

    /// Builds the page of `found`; see [`RangeRequest::page_of`].
    ///
    /// # Errors
    /// `InvalidInput` if the cursor does not belong to this query.
    pub fn page_of(&self, mut found: RecordVec) -> Result<RecordPage> {
        let (more, count) = cut(self, found.len());
        found.truncate(count);
        let records = found.as_records();
        let last = count.checked_sub(1).map(|last| Anchor::Owner(records.series(last).owner.to_owned()));
        let (next, resume) = cursors(self, more, last.as_ref(), last.as_ref())?;
        Ok(RecordPage { records: found, next, resume })
    }
}
setters!(LatestRequest);

/// A request for the owners that have at least one record in a dataset; the argument of [`super::PriceStore::series`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SeriesRequest {
    /// The dataset.
    pub dataset: Dataset,
    /// The exchange to which instruments are limited, if any.
    pub exchange: Option<Exchange>,
    /// The page of the result.
    pub page: PageRequest,
}

impl SeriesRequest {
    /// Creates a request for every owner of `dataset`, in pages of 1,000.
    pub fn new(dataset: Dataset) -> Self {
        Self { dataset, exchange: None, page: PageRequest::default() }
    }

    /// Builds the page of `found`; see [`RangeRequest::page_of`].
    ///
    /// # Errors
    /// `InvalidInput` if the cursor does not belong to this query.
    pub fn page_of(&self, mut found: Vec<SeriesSummary>) -> Result<Page<SeriesSummary>> {
        let (more, count) = cut(self, found.len());
        found.truncate(count);
        let last = found.last().map(|summary| Anchor::Owner(summary.owner.clone()));
        let (next, resume) = cursors(self, more, last.as_ref(), last.as_ref())?;
        Ok(Page { items: found, next, resume })
    }
}
setters!(SeriesRequest);

/// A query with paged results: the fingerprint to which its cursors are bound, and the position of the next page.
pub trait Paged {
    /// Returns the fingerprint of the query, to which its cursors are bound.
    fn fingerprint(&self) -> QueryFingerprint;

    /// Returns the requested page.
    fn request(&self) -> &PageRequest;

    /// Returns the position after which the page begins.
    ///
    /// # Errors
    /// `InvalidInput` if the cursor does not belong to this query.
    fn anchor(&self) -> Result<Anchor> {
        self.request().cursor().map_or(Ok(Anchor::Start), |cursor| self.fingerprint().open(cursor))
    }
}

/// Returns whether there are more items than the page takes, and the number of items that the page takes.
fn cut(query: &impl Paged, found: usize) -> (bool, usize) {
    let limit = query.request().limit();
    (found > limit, found.min(limit))
}

/// Returns the cursor of the next page (after `last`), and the cursor to resume with (after `passed`).
fn cursors(
    query: &impl Paged,
    more: bool,
    last: Option<&Anchor>,
    passed: Option<&Anchor>,
) -> Result<(Option<Cursor>, Cursor)> {
    let (fingerprint, before) = (query.fingerprint(), query.anchor()?);
    let next = more.then(|| fingerprint.cursor(last.unwrap_or(&before)));
    Ok((next, fingerprint.cursor(passed.unwrap_or(&before))))
}

impl Paged for RangeRequest {
    fn fingerprint(&self) -> QueryFingerprint {
        let Self { dataset, series, range, order, page: _ } = self;
        QueryFingerprint::of(format_args!("{dataset}|{series}|{range}|{order:?}"))
    }
    fn request(&self) -> &PageRequest {
        &self.page
    }
}

impl Paged for LatestRequest {
    fn fingerprint(&self) -> QueryFingerprint {
        let Self { dataset, selection, interval, as_of, page: _ } = self;
        // Stored cursors depend on this text, so it does not follow the names of the variants.
        let owners = match selection {
            Selection::All => "All".to_owned(),
            Selection::Only(owners) => format!("These(Keys({:?}))", &owners[..]),
        };
        QueryFingerprint::of(format_args!("latest_{dataset}|{interval:?}|{owners}|{as_of:?}"))
    }
    fn request(&self) -> &PageRequest {
        &self.page
    }
}

impl Paged for SeriesRequest {
    fn fingerprint(&self) -> QueryFingerprint {
        let Self { dataset, exchange, page: _ } = self;
        QueryFingerprint::of(format_args!("series|{dataset}|{exchange:?}"))
    }
    fn request(&self) -> &PageRequest {
        &self.page
    }
}

/// A [`BarQuery`] for derived bars. Its cursors are not valid for stored bars.
#[derive(Debug, Clone, Copy)]
pub struct Derived<'a>(pub &'a BarQuery);

impl Paged for Derived<'_> {
    fn fingerprint(&self) -> QueryFingerprint {
        let BarQuery { instrument, interval, range, order, page: _ } = self.0;
        QueryFingerprint::of(format_args!("derived|{instrument}|{interval}|{range}|{order:?}"))
    }
    fn request(&self) -> &PageRequest {
        &self.0.page
    }
}

impl Derived<'_> {
    /// Builds the page from `found`; see [`RangeRequest::page_of`]. The cursor to resume with does not pass a bar that
    /// the end of the range cuts, because that bar may still change.
    ///
    /// # Errors
    /// `InvalidInput` if the cursor does not belong to this query.
    pub fn page_of(&self, mut found: Vec<Bar>) -> Result<Page<Bar>> {
        let (more, count) = cut(self, found.len());
        found.truncate(count);
        let anchor = |bar: &Bar| Anchor::Time(bar.open_time());
        // The resume cursor stops before the first bar that may still change, even if more bars follow.
        let passed = found.iter().take_while(|bar| bar.close_time() <= self.0.range.end()).last();
        let (next, resume) =
            cursors(self, more, found.last().map(anchor).as_ref(), passed.map(anchor).as_ref())?;
        Ok(Page { items: found, next, resume })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BarValues;
    use crate::store::PersistRequest;

    fn stored(query: &BarQuery, bars: Vec<Bar>) -> RecordPage {
        query.request().page_of(RecordVec::from_vec(bars)).unwrap()
    }

    fn bar(hour: i64) -> Bar {
        let open = Timestamp::from_secs(1_600_000_000 / 3_600 * 3_600 + hour * 3_600).unwrap();
        let values = BarValues::flat("1".parse().unwrap());
        Bar::new("x:Y".parse().unwrap(), Interval::H1, open, values).unwrap()
    }

    fn query(bars: &[Bar]) -> BarQuery {
        // The range ends inside the last bar, so that bar may still change.
        let (first, last) = (&bars[0], &bars[bars.len() - 1]);
        let end = Timestamp::from_micros(last.open_time().as_micros() + 1).unwrap();
        BarQuery::new(
            first.instrument().clone(),
            Interval::H1,
            TimeRange::new(first.open_time(), end).unwrap(),
        )
    }

    #[test]
    fn resume_stays_before_an_unfinished_bar() {
        let mut bars: Vec<_> = (0..3).map(bar).collect();
        let ascending = query(&bars);
        let page = Derived(&ascending).page_of(bars.clone()).unwrap();
        let resumed = ascending.clone().after(page.resume);
        assert_eq!(Derived(&resumed).anchor().unwrap(), Anchor::Time(bars[1].open_time()));
        assert_eq!(page.next, None);
        // Stored bars of the same query do not change, so the cursor passes all of them.
        let page = stored(&ascending, bars.clone());
        assert_eq!(
            ascending.clone().after(page.resume).request().anchor().unwrap(),
            Anchor::Time(bars[2].open_time())
        );

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
    fn queries_deserialise_with_defaults_and_validation() {
        let read = |text: &str| serde_json::from_str::<LatestQuery>(text).map_err(|error| error.to_string());
        let text = "{\"selection\":{\"these\":[\"x:B\",\"x:A\",\"x:B\"]}}";
        let [a, b] = ["x:A", "x:B"].map(Instrument::from_static);
        let expected = LatestQuery::new(Selection::only([a.clone(), b]).unwrap());
        assert_eq!(read(text).unwrap(), expected);
        assert_eq!(read(&serde_json::to_string(&expected).unwrap()).unwrap(), expected);
        for (bad, rule) in [
            ("{\"selection\":{\"these\":[]}}", "at least one key"),
            ("{\"selection\":\"all\",\"page\":{\"limit\":0}}", "must lie from 1 to 50000"),
            ("{\"selection\":\"all\",\"asof\":0}", "unknown field"),
        ] {
            assert!(read(bad).unwrap_err().contains(rule), "{bad}");
        }

        let bars = BarQuery::new(a, Interval::H1, TimeRange::ALL).order(Order::Descending);
        let page = stored(&bars.clone().with_limit(1).unwrap(), (0..2).rev().map(bar).collect());
        let bars = bars.after(page.next.unwrap());
        let text = serde_json::to_string(&bars).unwrap();
        assert_eq!(serde_json::from_str::<BarQuery>(&text).unwrap(), bars);
        let reversed = "{\"instrument\":\"x:A\",\"range\":{\"start\":2000000000000,\"end\":1000000000000}}";
        assert!(serde_json::from_str::<StatsQuery>(reversed).is_err());

        let maintain = MaintainRequest::default().with_budget(Duration::from_secs(30));
        assert_eq!(serde_json::from_str::<MaintainRequest>("{\"budget\":\"30s\"}").unwrap(), maintain);
        let persist = "{\"instrument\":\"x:A\",\"interval\":\"1h\",\"until\":1600000000000000}";
        let persist: PersistRequest = serde_json::from_str(persist).unwrap();
        assert_eq!((persist.since, persist.overwrite), (Timestamp::MIN, false));
        let text = serde_json::to_string(&persist).unwrap();
        assert_eq!(serde_json::from_str::<PersistRequest>(&text).unwrap(), persist);
    }

    #[test]
    fn queries_with_a_dataset_serialise_its_name() {
        let query = InstrumentQuery::new(PriceTick::DATASET).of_exchange("x".parse().unwrap());
        let json = serde_json::to_value(&query).unwrap();
        assert_eq!((json["dataset"].as_str(), json["exchange"].as_str()), (Some("ticks"), Some("x")));
        let query = DeleteQuery::ticks(Selection::one(Instrument::from_static("x:Y")), TimeRange::ALL);
        let json = serde_json::to_value(&query).unwrap();
        assert_eq!(json["dataset"], "ticks");
        assert_eq!(json["selection"]["these"][0]["instrument"], "x:Y");
    }

    #[test]
    fn an_empty_page_resumes_at_its_start() {
        let bars = [bar(0), bar(1)];
        let first = query(&bars);
        let page = stored(&first, Vec::new());
        assert_eq!(first.clone().after(page.resume).request().anchor().unwrap(), Anchor::Start);
        let page = stored(&first.clone().with_limit(1).unwrap(), bars.to_vec());
        assert_eq!((page.records.len(), page.next.is_some()), (1, true));
        let second = first.after(page.next.unwrap());
        let empty = stored(&second, Vec::new());
        assert_eq!(
            second.clone().after(empty.resume).request().anchor().unwrap(),
            Anchor::Time(bars[0].open_time())
        );
    }
}
