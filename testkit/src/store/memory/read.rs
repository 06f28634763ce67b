//! The answers: ranges, latest records, bars out of ticks. All of it runs on a locked table and returns copies.

use std::ops::Bound;
use std::time::Duration;

use qi_core::domain::BarBuilder;
use qi_core::store::{
    Anchor, BarQuery, Derived, InstrumentQuery, InstrumentSummary, Order, Page, Paged, RangeStats, Record,
    StatsQuery,
};
use qi_core::{
    BarValues, Instrument, Interval, Ohlcv, PriceTick, Result, Scope, Selection, TimeRange, Timestamp,
};

use super::row::{Row, Window};
use super::series::Series;
use super::table::Table;

/// A page of one series in a range.
pub(super) fn range<R: Row, Q: Paged<R>>(
    table: &Table<R>,
    series: &R::Series,
    range: TimeRange,
    order: Order,
    query: &Q,
) -> Result<Page<R>> {
    let (anchor, most) = (query.anchor()?, query.request().limit() + 1);
    let found = table.series.get(series).map_or_else(Vec::new, |series| match order {
        Order::Ascending => oldest(series, Window::of(range).after(&anchor), most),
        Order::Descending => newest(series, Window::of(range).before(&anchor), most),
    });
    query.page_of(found)
}

/// The oldest `most` records of a window, oldest first, into a vector of just the size.
fn oldest<R: Row>(series: &Series<R>, window: Window, most: usize) -> Vec<R> {
    let mut found = Vec::with_capacity(count(series.slices(window), most));
    for slice in series.slices(window) {
        let take = slice.len().min(most - found.len());
        found.extend_from_slice(&slice[..take]);
        if found.len() == most {
            break;
        }
    }
    found
}

/// The newest `most` records of a window, newest first.
fn newest<R: Row>(series: &Series<R>, window: Window, most: usize) -> Vec<R> {
    let mut found = Vec::with_capacity(count(series.slices(window).rev(), most));
    for slice in series.slices(window).rev() {
        found.extend(slice.iter().rev().take(most - found.len()).cloned());
        if found.len() == most {
            break;
        }
    }
    found
}

/// How many records the slices hold, counted up to `most`.
fn count<'a, R: 'a>(slices: impl Iterator<Item = &'a [R]>, most: usize) -> usize {
    let mut count = 0;
    for slice in slices {
        count += slice.len();
        if count >= most {
            return most;
        }
    }
    count
}

/// A question for the latest record of each selected key.
pub(super) struct Latest<'a, K> {
    selection: &'a Selection<K>,
    as_of: Option<Timestamp>,
    /// Where a cursor goes on.
    after: Option<&'a K>,
    /// How long after its time a record is known: a bar when it has closed.
    lag: Duration,
}

impl<'a, K: Ord> Latest<'a, K> {
    pub(super) fn of(selection: &'a Selection<K>, as_of: Option<Timestamp>, after: Option<&'a K>) -> Self {
        Self { selection, as_of, after, lag: Duration::ZERO }
    }

    pub(super) fn known_after(self, lag: Duration) -> Self {
        Self { lag, ..self }
    }

    /// The records, one more than the page takes. `series` gives the series of a key; of a table that has
    /// several for each key, the others do not count.
    pub(super) fn found<R: Row>(
        &self,
        table: &Table<R>,
        series: impl Fn(&K) -> R::Series,
        query: &impl Paged<R>,
    ) -> Vec<R>
    where
        R::Series: KeyedBy<K>,
    {
        let window = match self.as_of.map(|time| time.checked_sub(self.lag)) {
            None => Window::ALL,
            Some(Some(time)) => Window::up_to(time),
            Some(None) => return Vec::new(),
        };
        let most = query.request().limit() + 1;
        let last = |series: &Series<R>| series.last_in(window).cloned();
        match self.selection {
            Selection::These(keys) => keys
                .iter()
                .filter(|key| self.after.is_none_or(|after| *key > after))
                .filter_map(|key| last(table.series.get(&series(key))?))
                .take(most)
                .collect(),
            Selection::All => {
                let start = self.after.map_or(Bound::Unbounded, |key| Bound::Excluded(series(key)));
                table
                    .series
                    .range((start, Bound::Unbounded))
                    .filter(|(key, _)| **key == series(key.key()))
                    .filter_map(|(_, series)| last(series))
                    .take(most)
                    .collect()
            }
        }
    }
}

/// The key by which `latest` selects a series.
pub(super) trait KeyedBy<K> {
    fn key(&self) -> &K;
}

impl KeyedBy<Instrument> for Instrument {
    fn key(&self) -> &Instrument {
        self
    }
}

impl KeyedBy<Instrument> for (Instrument, Interval) {
    fn key(&self) -> &Instrument {
        &self.0
    }
}

impl KeyedBy<Scope> for Scope {
    fn key(&self) -> &Scope {
        self
    }
}

/// A page of bars out of ticks. Every one is folded from its whole bucket, whatever the range cuts.
pub(super) fn derived(table: &Table<PriceTick>, query: &BarQuery) -> Result<Page<Ohlcv>> {
    let page = Derived(query);
    let BarQuery { instrument, interval, range, order, .. } = query;
    let (anchor, limit) = (page.anchor()?, page.request().limit());
    let after = match anchor {
        Anchor::Time(open) => Some(open),
        _ => None,
    };
    let mut found = Vec::new();
    // The open times that the range holds: from the first bucket start in it to the last.
    if let (Some(series), Some(first)) = (table.series.get(instrument), interval.ceil(range.start())) {
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
            // The one behind the page only shows that there is more. A sum of it that is out of range is the
            // error of its own page.
            let fold = if found.len() < limit { bar } else { unsummed };
            found.push(fold(series, instrument, *interval, open)?);
        }
    }
    page.page_of(found)
}

/// The buckets with ticks whose open time lies from `first` (aligned) up to `end`, from either side.
struct Buckets<'a> {
    series: &'a Series<PriceTick>,
    interval: Interval,
    first: Timestamp,
    end: Timestamp,
}

impl Buckets<'_> {
    fn next(&mut self) -> Option<Timestamp> {
        let rest = Window { lo: (self.first, 0), ..Window::ALL };
        let tick = self.series.slices(rest).next()?.first()?;
        let open = self.interval.floor(tick.ts());
        self.first = close_of(self.interval, open);
        (open < self.end).then_some(open)
    }

    fn next_back(&mut self) -> Option<Timestamp> {
        // The last open time before the end, and the end of its bucket; an end on a boundary is that itself.
        let end = self.interval.ceil(self.end).unwrap_or(Timestamp::MAX);
        let tick = self.series.last_in(Window { lo: (self.first, 0), hi: (end, 0) })?;
        let open = self.interval.floor(tick.ts());
        self.end = open;
        Some(open)
    }
}

/// The end of the bucket that opens at `open`.
fn close_of(interval: Interval, open: Timestamp) -> Timestamp {
    open.checked_add(interval.duration()).unwrap_or(Timestamp::MAX)
}

/// The bar of a bucket that has ticks.
fn bar(
    series: &Series<PriceTick>,
    instrument: &Instrument,
    interval: Interval,
    open: Timestamp,
) -> Result<Ohlcv> {
    let mut builder: Option<BarBuilder> = None;
    for tick in series.slices(bucket_of(interval, open)).flatten() {
        builder = Some(match builder {
            None => BarBuilder::new(tick)?,
            Some(builder) => builder.plus(tick)?,
        });
    }
    let values = builder.expect(HAS_A_TICK).finish()?;
    Ohlcv::new(instrument.clone(), interval, open, values)
}

/// Stands for the bar of a bucket that has ticks: its time, and no sums.
fn unsummed(
    series: &Series<PriceTick>,
    instrument: &Instrument,
    interval: Interval,
    open: Timestamp,
) -> Result<Ohlcv> {
    let first = series.slices(bucket_of(interval, open)).flatten().next().expect(HAS_A_TICK);
    Ohlcv::new(instrument.clone(), interval, open, BarValues::flat(first.price()))
}

const HAS_A_TICK: &str = "a bucket is visited because it has a tick";

fn bucket_of(interval: Interval, open: Timestamp) -> Window {
    Window { lo: (open, 0), hi: (close_of(interval, open), 0) }
}

/// Figures over a range.
pub(super) fn stats(table: &Table<PriceTick>, query: &StatsQuery) -> Result<Option<RangeStats>> {
    let series = table.series.get(&query.instrument);
    RangeStats::of(series.into_iter().flat_map(|series| series.slices(Window::of(query.range))).flatten())
}

/// A page of the instruments that a table has records of; of bars, over all intervals.
pub(super) fn instruments<R: Row>(
    table: &Table<R>,
    instrument_of: impl Fn(&R::Series) -> &Instrument,
    first_series: impl Fn(&Instrument) -> R::Series,
    query: &InstrumentQuery,
) -> Result<Page<InstrumentSummary>> {
    let after = match query.anchor()? {
        Anchor::Instrument(instrument) => Some(instrument),
        _ => None,
    };
    let most = query.request().limit() + 1;
    let start = after.as_ref().map_or(Bound::Unbounded, |after| Bound::Included(first_series(after)));
    let mut found: Vec<InstrumentSummary> = Vec::new();
    for (key, series) in table.series.range((start, Bound::Unbounded)) {
        let instrument = instrument_of(key);
        let (Some(first), Some(last)) = (series.first().map(Record::time), series.last().map(Record::time))
        else {
            continue;
        };
        if after.as_ref() == Some(instrument)
            || query.exchange.as_ref().is_some_and(|exchange| exchange != instrument.exchange())
        {
            continue;
        }
        let count = found.len();
        match found.last_mut().filter(|summary| summary.instrument == *instrument) {
            Some(summary) => {
                summary.first = summary.first.min(first);
                summary.last = summary.last.max(last);
            }
            None if count == most => break,
            None => found.push(InstrumentSummary { instrument: instrument.clone(), first, last }),
        }
    }
    query.page_of(found)
}
