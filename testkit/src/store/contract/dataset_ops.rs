//! Helpers for checks on the records of any dataset.

use futures::stream::BoxStream;
use qi_core::record::Series;
use qi_core::store::{
    DeleteQuery, InsertReport, LatestQuery, MAX_PAGE, Order, Page, PageRequest, PriceStore, PriceStoreExt,
    RangeQuery,
};
use qi_core::{Instrument, Result, Selection, TimeRange, Timestamp};

use super::Sample;

/// Monday 2024-03-04T00:00:00Z, the base of the times in the checks.
pub(super) const BASE: i64 = 1_709_510_400_000_000;

/// Returns the time `n` minutes after [`BASE`].
pub(super) fn minute(n: i64) -> Timestamp {
    micros(n * 60_000_000)
}

/// Returns the time `n` microseconds after [`BASE`].
pub(super) fn micros(n: i64) -> Timestamp {
    Timestamp::from_micros(BASE + n).expect("the times of the checks lie in the domain")
}

/// Returns the time range `[from, to)`.
pub(super) fn range(from: Timestamp, to: Timestamp) -> TimeRange {
    TimeRange::new(from, to).expect("the ranges of the checks are in order")
}

pub(super) fn instrument(text: &str) -> Instrument {
    text.parse().expect("the names of the checks are valid")
}

/// A query for a range of one series.
#[derive(Debug, Clone)]
pub(super) struct RangeParams<D: Sample> {
    pub(super) series: D::Series,
    pub(super) range: TimeRange,
    pub(super) order: Order,
    pub(super) page: PageRequest,
}

impl<D: Sample> RangeParams<D> {
    pub(super) fn all(series: &D::Series) -> Self {
        let page = PageRequest::first(MAX_PAGE).expect("the largest page");
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

/// A query for the latest records of some series, or of all series.
#[derive(Debug, Clone)]
pub(super) struct LatestParams<D: Sample> {
    pub(super) series: Option<Vec<D::Series>>,
    pub(super) as_of: Option<Timestamp>,
    pub(super) page: PageRequest,
}

impl<D: Sample> LatestParams<D> {
    pub(super) fn all() -> Self {
        Self { series: None, as_of: None, page: PageRequest::default() }
    }

    pub(super) fn only(series: Vec<D::Series>) -> Self {
        Self { series: Some(series), ..Self::all() }
    }

    pub(super) fn known_at(self, time: Timestamp) -> Self {
        Self { as_of: Some(time), ..self }
    }

    pub(super) fn limit(self, limit: usize) -> Self {
        Self { page: PageRequest::first(limit).expect("a valid limit"), ..self }
    }
}

/// Returns the owners of some series as a selection.
fn selected_owners<D: Sample>(series: &[D::Series]) -> Selection<<D::Series as Series>::Owner> {
    Selection::only(series.iter().map(Series::owner)).expect("the checks name at least one")
}

impl<D: Sample> RangeParams<D> {
    fn query(&self) -> RangeQuery<D::Series> {
        let query = RangeQuery::new(self.series.clone(), self.range).with_page(self.page.clone());
        if self.order == Order::Descending { query.descending() } else { query }
    }
}

impl<D: Sample> LatestParams<D> {
    fn query(&self) -> LatestQuery<<D::Series as Series>::Owner> {
        let selection = self.series.as_deref().map_or(Selection::All, selected_owners::<D>);
        let mut query = LatestQuery::new(selection).with_page(self.page.clone());
        (query.as_of, query.interval) = (self.as_of, D::series_no(0).key_ref().interval);
        query
    }
}

/// The helpers for every [`Sample`].
pub(super) trait DatasetOps: Sample {
    fn insert(store: &dyn PriceStore, batch: &[Self]) -> impl Future<Output = Result<InsertReport>> + Send {
        store.insert_records(batch)
    }

    fn page(
        store: &dyn PriceStore,
        params: &RangeParams<Self>,
    ) -> impl Future<Output = Result<Page<Self>>> + Send {
        let query = params.query();
        async move { store.range_of(&query).await }
    }

    fn stream(store: &dyn PriceStore, params: RangeParams<Self>) -> BoxStream<'_, Result<Self>> {
        store.range_stream(&params.query())
    }

    fn latest(
        store: &dyn PriceStore,
        params: &LatestParams<Self>,
    ) -> impl Future<Output = Result<Page<Self>>> + Send {
        let query = params.query();
        async move { store.latest_of(&query).await }
    }

    fn deletion(series: Option<Vec<Self::Series>>, range: TimeRange) -> DeleteQuery {
        let selection = series.as_deref().map_or(Selection::All, selected_owners::<Self>);
        let query = DeleteQuery::of::<Self>(&selection, range);
        match Self::series_no(0).key_ref().interval {
            Some(interval) => query.of_interval(interval),
            None => query,
        }
    }

    /// Returns a record of the n-th series at a number of minutes after [`BASE`].
    fn at(series: usize, minutes: i64, value: u32) -> Self {
        Self::make(&Self::series_no(series), minute(minutes), 0, value)
    }

    /// Returns all records of a series, oldest first.
    fn all(store: &dyn PriceStore, series: &Self::Series) -> impl Future<Output = Result<Vec<Self>>> + Send {
        Self::scan(store, RangeParams::all(series))
    }

    /// Reads all pages of a range.
    fn scan(
        store: &dyn PriceStore,
        mut params: RangeParams<Self>,
    ) -> impl Future<Output = Result<Vec<Self>>> + Send {
        async move {
            let mut found = Vec::new();
            loop {
                let page = Self::page(store, &params).await?;
                found.extend(page.items);
                let Some(next) = page.next else { return Ok(found) };
                params = params.after(next);
            }
        }
    }

    /// Reads all pages of the latest records.
    fn scan_latest(
        store: &dyn PriceStore,
        mut params: LatestParams<Self>,
    ) -> impl Future<Output = Result<Vec<Self>>> + Send {
        async move {
            let mut found = Vec::new();
            loop {
                let page = Self::latest(store, &params).await?;
                found.extend(page.items);
                let Some(next) = page.next else { return Ok(found) };
                params.page = params.page.after(next);
            }
        }
    }
}

impl<D: Sample> DatasetOps for D {}
