//! Derived bars that are written as stored bars.

use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::{BarQuery, LatestBarsQuery, Page, PageRequest, PriceStore, RangeRequest, RecordPage};
use crate::record::Slice;
use crate::{Bar, Instrument, Interval, Result, Selection, TimeRange, Timestamp};

/// A request for [`persist_bars`](super::PriceStoreExt::persist_bars).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PersistRequest {
    /// The instrument.
    pub instrument: Instrument,
    /// The interval of the bars.
    pub interval: Interval,
    /// The earliest open time, inclusive. Defaults to [`Timestamp::MIN`].
    #[serde(default = "first_time")]
    pub since: Timestamp,
    /// The latest close time, inclusive. A bar that closes later is not written, because its bucket may still receive
    /// ticks.
    pub until: Timestamp,
    /// Also replaces stored bars that count more ticks than the derived bar. Defaults to false, because such a bucket has
    /// probably lost ticks to a purge.
    #[serde(default)]
    pub overwrite: bool,
}

fn first_time() -> Timestamp {
    Timestamp::MIN
}

impl PersistRequest {
    /// Creates a request for all bars that close at `until` or earlier.
    pub fn new(instrument: Instrument, interval: Interval, until: Timestamp) -> Self {
        Self { instrument, interval, since: Timestamp::MIN, until, overwrite: false }
    }

    /// Sets the earliest open time, inclusive.
    #[must_use]
    pub fn with_since(mut self, since: Timestamp) -> Self {
        self.since = since;
        self
    }

    /// Replaces stored bars that count more ticks than the derived bar, for example after wrong ticks were deleted.
    #[must_use]
    pub fn with_overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }
}

/// The result of [`persist_bars`](super::PriceStoreExt::persist_bars), or of one of its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PersistReport {
    /// The number of derived bars that were compared.
    pub derived: u64,
    /// The number of bars that were written, because the stored bar was missing or different.
    pub written: u64,
    /// The number of different stored bars that were not replaced, because they count more ticks than the derived bar.
    pub kept: u64,
    /// The open time from which a further run continues. All earlier bars of the request are stored or kept.
    pub resume: Timestamp,
}

impl PersistReport {
    fn new(resume: Timestamp) -> Self {
        Self { derived: 0, written: 0, kept: 0, resume }
    }

    /// Returns the sum of the counts, with the `resume` of `other`, which is the later page.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        Self {
            derived: self.derived + other.derived,
            written: self.written + other.written,
            kept: self.kept + other.kept,
            resume: other.resume,
        }
    }
}

/// A derived bar, and the stored bar of the same bucket.
pub(crate) type Compared = (Bar, Option<Bar>);

/// Returns a query of the bars that open at `since` or later and close at `until` or earlier. A page covers at most about
/// a month of a liquid instrument, so that a store derives it within the timeout of a call.
pub(crate) fn closed_bars(
    instrument: &Instrument,
    interval: Interval,
    since: Timestamp,
    until: Timestamp,
    max_batch: usize,
) -> Result<BarQuery> {
    const MONTH: Duration = Duration::from_hours(31 * 24);
    let bars = MONTH.as_micros() / interval.duration().as_micros();
    let limit = usize::try_from(bars).unwrap_or(usize::MAX).clamp(10, 10_000).min(max_batch);
    // A bar closes at `until` or earlier exactly if it opens before the start of the bucket of `until`.
    let end = interval.floor(until);
    let range = TimeRange::new(since.min(end), end)?;
    Ok(BarQuery::new(instrument.clone(), interval, range).with_page(PageRequest::first(limit)?))
}

/// Returns the open time from which an interrupted run continues: one page before the latest stored bar, because a store
/// may have written a part of the last page.
pub(super) async fn persist_start<S: PriceStore + ?Sized>(
    store: &S,
    instrument: &Instrument,
    interval: Interval,
) -> Result<Timestamp> {
    let latest = LatestBarsQuery::new(interval, Selection::one(instrument.clone()));
    let latest: Vec<Bar> = store.latest(&latest.request()?).await?.records.into_vec()?;
    let Some(latest) = latest.first() else { return Ok(Timestamp::MIN) };
    let (first, end, batch) = (Timestamp::MIN, latest.close_time(), store.info().max_batch.max(1));
    let query = closed_bars(instrument, interval, first, end, batch)?.descending();
    let page = store.derived_bars(&query).await?;
    Ok(page.items.last().unwrap_or(latest).open_time())
}

/// Returns a page of derived bars with their stored bars, and the query of the next page.
pub(crate) async fn compare_page<S: PriceStore + ?Sized>(
    store: &S,
    query: BarQuery,
) -> Result<(Vec<Compared>, Option<BarQuery>)> {
    let Page { items, next, resume: _ } = store.derived_bars(&query).await?;
    let mut compared = Vec::with_capacity(items.len());
    if let (Some(first), Some(last)) = (items.first(), items.last()) {
        let range = TimeRange::new(first.open_time(), last.close_time())?;
        let page = PageRequest::first(query.page.limit())?;
        let stored = BarQuery::new(query.instrument.clone(), query.interval, range).with_page(page);
        let mut stored = StoredBars { request: Some(stored.request()), bars: Vec::new().into_iter() };
        for derived in items {
            let found = stored.bar_at(store, derived.open_time()).await?;
            compared.push((derived, found));
        }
    }
    Ok((compared, next.map(|cursor| query.after(cursor))))
}

/// The stored bars of a range, read page by page.
struct StoredBars {
    /// The request of the next page.
    request: Option<RangeRequest>,
    bars: std::vec::IntoIter<Bar>,
}

impl StoredBars {
    /// Returns the bar of an open time. The open times of the calls must ascend.
    async fn bar_at<S: PriceStore + ?Sized>(
        &mut self,
        store: &S,
        open_time: Timestamp,
    ) -> Result<Option<Bar>> {
        loop {
            match self.bars.as_slice().first() {
                Some(bar) if bar.open_time() < open_time => drop(self.bars.next()),
                Some(bar) => return Ok((bar.open_time() == open_time).then(|| bar.clone())),
                None => {
                    let Some(request) = self.request.take() else { return Ok(None) };
                    let RecordPage { records, next, resume: _ } = store.range(&request).await?;
                    self.bars = records.into_vec()?.into_iter();
                    self.request = next.map(|cursor| request.after(cursor));
                }
            }
        }
    }
}

/// Returns whether the stored bar counts more ticks than the derived bar.
pub(crate) fn has_lost_ticks(derived: &Bar, stored: &Bar) -> bool {
    stored.values().count > derived.values().count
}

pub(super) fn persist_pages<S: PriceStore + ?Sized>(
    store: &S,
    request: PersistRequest,
) -> BoxStream<'_, Result<PersistReport>> {
    let PersistRequest { instrument, interval, since, until, overwrite } = request;
    let query = closed_bars(&instrument, interval, since, until, store.info().max_batch.max(1));
    stream::try_unfold(Some(query), move |query| async move {
        let Some(query) = query else { return Ok(None) };
        let query = query?;
        let end = query.range.end();
        let (compared, next) = compare_page(store, query).await?;
        let resume = match (&next, compared.last()) {
            (Some(_), Some((last, _))) => last.close_time(),
            _ => end.max(since),
        };
        let mut report = PersistReport::new(resume);
        let mut missing = Vec::new();
        for (derived, stored) in compared {
            report.derived += 1;
            match stored {
                Some(stored) if stored == derived => {}
                Some(stored) if !overwrite && has_lost_ticks(&derived, &stored) => report.kept += 1,
                _ => missing.push(derived),
            }
        }
        if !missing.is_empty() {
            report.written = missing.len() as u64;
            store.insert(&Slice::new(&missing)?).await?;
        }
        Ok(Some((report, next.map(Ok))))
    })
    .boxed()
}

pub(super) async fn persist<S: PriceStore + ?Sized>(
    store: &S,
    request: PersistRequest,
) -> Result<PersistReport> {
    let start = PersistReport::new(request.since);
    persist_pages(store, request).try_fold(start, |sum, page| async move { Ok(sum.merge(page)) }).await
}
