//! The reads: ranges, latest records, bars from ticks, statistics, and the list of series. They run on a locked table
//! and return copies.

use std::ops::{Bound, Range};

use qi_core::datasets::BarBuilder;
use qi_core::record::{Owner, RecordVec, SeriesKey};
use qi_core::store::{
    Anchor, BarQuery, Derived, LatestRequest, Order, Page, Paged, RangeRequest, RangeStats, RecordPage,
    SeriesRequest, SeriesSummary, StatsQuery,
};
use qi_core::{Bar, BarValues, Instrument, Interval, PriceTick, Result, Selection, Timestamp};

use super::series::{Series, Window};
use super::table::Table;

/// Returns a page of one series in a range.
pub(super) fn range(table: &Table, request: &RangeRequest) -> Result<RecordPage> {
    let (anchor, most) = (request.anchor()?, request.page.limit() + 1);
    let mut found = table.dataset().new_vec();
    if let Some(series) = table.series.get(&request.series) {
        let window = Window::of(request.range);
        match request.order {
            Order::Ascending => oldest(series, window.after(&anchor), most, &mut found)?,
            Order::Descending => newest(series, window.before(&anchor), most, &mut found)?,
        }
    }
    request.page_of(found)
}

/// Appends the oldest `most` records of a window, oldest first. Reserves the exact capacity.
fn oldest(series: &Series, window: Window, most: usize, found: &mut RecordVec) -> Result<()> {
    found.reserve(count(series.slices(window), most));
    for (rows, range) in series.slices(window) {
        let take = range.len().min(most - found.len());
        rows.as_records().append_to(range.start..range.start + take, found)?;
        if found.len() == most {
            break;
        }
    }
    Ok(())
}

/// Appends the newest `most` records of a window, newest first.
fn newest(series: &Series, window: Window, most: usize, found: &mut RecordVec) -> Result<()> {
    found.reserve(count(series.slices(window).rev(), most));
    for (rows, range) in series.slices(window).rev() {
        let end = found.len();
        rows.as_records().copy_to(&mut range.rev().take(most - end), found, end..end)?;
        if found.len() == most {
            break;
        }
    }
    Ok(())
}

/// Returns the number of records in the slices, counted up to `most`.
fn count<'a>(slices: impl Iterator<Item = (&'a RecordVec, Range<usize>)>, most: usize) -> usize {
    let mut count = 0;
    for (_, range) in slices {
        count += range.len();
        if count >= most {
            return most;
        }
    }
    count
}

fn owner_of(anchor: Anchor) -> Option<Owner> {
    match anchor {
        Anchor::Owner(owner) => Some(owner),
        _ => None,
    }
}

/// Returns the latest record of each selected owner.
pub(super) fn latest(table: &Table, request: &LatestRequest) -> Result<RecordPage> {
    let after = owner_of(request.anchor()?);
    let (most, mut found) = (request.page.limit() + 1, table.dataset().new_vec());
    let Some(until) = request.until() else { return request.page_of(found) };
    let mut take = |series: &Series| -> Result<bool> {
        if let Some((rows, at)) = series.last_in(Window::up_to(until)) {
            found.push_copy(rows.as_records(), at)?;
        }
        Ok(found.len() < most)
    };
    match &request.selection {
        Selection::Only(owners) => {
            for owner in owners.iter().filter(|owner| after.as_ref().is_none_or(|after| *owner > after)) {
                let series = table.series.get(&request.series(owner.clone()));
                if series.map_or(Ok(true), &mut take)? {
                    continue;
                }
                break;
            }
        }
        Selection::All => {
            let start = after.map_or(Bound::Unbounded, |owner| Bound::Excluded(request.series(owner)));
            for (key, series) in table.series.range((start, Bound::Unbounded)) {
                if key.interval == request.interval && !take(series)? {
                    break;
                }
            }
        }
    }
    request.page_of(found)
}

fn ticks(rows: &RecordVec, range: Range<usize>) -> Result<&[PriceTick]> {
    Ok(&rows.as_slice()?[range])
}

fn series_of<'a>(table: &'a Table, instrument: &Instrument) -> Option<&'a Series> {
    table.series.get(&SeriesKey { owner: Owner::Instrument(instrument.clone()), interval: None })
}

/// Returns a page of bars from ticks. Each bar covers its complete bucket, even if the range ends within the bucket.
pub(super) fn derived(table: &Table, query: &BarQuery) -> Result<Page<Bar>> {
    let page = Derived(query);
    let BarQuery { instrument, interval, range, order, .. } = query;
    let (anchor, limit) = (page.anchor()?, page.request().limit());
    let after = match anchor {
        Anchor::Time(open) => Some(open),
        _ => None,
    };
    let mut found = Vec::new();
    // A bar is in the result if its open time is in the range.
    if let (Some(series), Some(first)) = (series_of(table, instrument), interval.ceil(range.start())) {
        let mut buckets = Buckets { series, interval: *interval, first, end: range.end() };
        match (order, after) {
            (_, None) => {}
            (Order::Ascending, Some(open)) => buckets.first = first.max(close_of(*interval, open)),
            (Order::Descending, Some(open)) => buckets.end = buckets.end.min(open),
        }
        while found.len() <= limit {
            let next = match order {
                Order::Ascending => buckets.next(),
                Order::Descending => buckets.next_back(),
            };
            let Some(open) = next else { break };
            // The bar after the page only shows that more bars exist. If its sums are out of range, the error belongs
            // to the next page.
            let fold = if found.len() < limit { bar } else { bar_without_sums };
            found.push(fold(series, instrument, *interval, open)?);
        }
    }
    page.page_of(found)
}

/// The buckets that have ticks and an open time from `first` (aligned) to `end`, excluded. Iterates from both ends.
struct Buckets<'a> {
    series: &'a Series,
    interval: Interval,
    first: Timestamp,
    end: Timestamp,
}

impl Buckets<'_> {
    fn next(&mut self) -> Option<Timestamp> {
        let rest = Window { lo: (self.first, 0), ..Window::ALL };
        let (rows, range) = self.series.slices(rest).next()?;
        let open = self.interval.floor(rows.as_records().sort_key(range.start).0);
        self.first = close_of(self.interval, open);
        (open < self.end).then_some(open)
    }

    fn next_back(&mut self) -> Option<Timestamp> {
        // The end of the last bucket that opens before `end`. If `end` is a bucket boundary, both are equal.
        let end = self.interval.ceil(self.end).unwrap_or(Timestamp::MAX);
        let (rows, at) = self.series.last_in(Window { lo: (self.first, 0), hi: (end, 0) })?;
        let open = self.interval.floor(rows.as_records().sort_key(at).0);
        self.end = open;
        Some(open)
    }
}

/// Returns the end of the bucket that opens at `open`.
fn close_of(interval: Interval, open: Timestamp) -> Timestamp {
    open.checked_add(interval.duration()).unwrap_or(Timestamp::MAX)
}

/// Returns the bar of a bucket that has ticks.
fn bar(series: &Series, instrument: &Instrument, interval: Interval, open: Timestamp) -> Result<Bar> {
    let mut builder: Option<BarBuilder> = None;
    for (rows, range) in series.slices(bucket_of(interval, open)) {
        for tick in ticks(rows, range)? {
            builder = Some(match builder {
                None => BarBuilder::new(tick)?,
                Some(builder) => builder.plus(tick)?,
            });
        }
    }
    let values = builder.expect(HAS_A_TICK).finish()?;
    Bar::new(instrument.clone(), interval, open, values)
}

/// Returns a placeholder for the bar of a bucket that has ticks: its open time, without sums.
fn bar_without_sums(
    series: &Series,
    instrument: &Instrument,
    interval: Interval,
    open: Timestamp,
) -> Result<Bar> {
    let (rows, range) = series.slices(bucket_of(interval, open)).next().expect(HAS_A_TICK);
    let first = &ticks(rows, range)?[0];
    Bar::new(instrument.clone(), interval, open, BarValues::flat(first.price()))
}

const HAS_A_TICK: &str = "a bucket is visited because it has a tick";

fn bucket_of(interval: Interval, open: Timestamp) -> Window {
    Window { lo: (open, 0), hi: (close_of(interval, open), 0) }
}

/// Returns the statistics of a range.
pub(super) fn stats(table: &Table, query: &StatsQuery) -> Result<Option<RangeStats>> {
    let series = series_of(table, &query.instrument);
    let slices = series.into_iter().flat_map(|series| series.slices(Window::of(query.range)));
    let slices: Vec<&[PriceTick]> = slices.map(|(rows, range)| ticks(rows, range)).collect::<Result<_>>()?;
    RangeStats::of(slices.into_iter().flatten())
}

/// Returns a page of the owners with records in a table, in all intervals.
pub(super) fn series(table: &Table, request: &SeriesRequest) -> Result<Page<SeriesSummary>> {
    let after = owner_of(request.anchor()?);
    let most = request.page.limit() + 1;
    let start = after.as_ref().map_or(Bound::Unbounded, |after| {
        Bound::Included(SeriesKey { owner: after.clone(), interval: None })
    });
    let mut found: Vec<SeriesSummary> = Vec::new();
    for (SeriesKey { owner, .. }, series) in table.series.range((start, Bound::Unbounded)) {
        let (Some((first, _)), Some((last, _))) = (series.first(), series.last()) else { continue };
        let elsewhere = |exchange| owner.instrument().is_none_or(|name| name.exchange() != exchange);
        if after.as_ref() == Some(owner) || request.exchange.as_ref().is_some_and(elsewhere) {
            continue;
        }
        let count = found.len();
        match found.last_mut().filter(|summary| summary.owner == *owner) {
            Some(summary) => {
                summary.first = summary.first.min(first);
                summary.last = summary.last.max(last);
            }
            None if count == most => break,
            None => found.push(SeriesSummary::new(owner.clone(), first, last)),
        }
    }
    request.page_of(found)
}
