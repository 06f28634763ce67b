//! Reads of materialized bars: the sources of a window, and the merge of their parts.

use crate::domain::{Sum18, Sum36};
use crate::store::Order;
use crate::{BarValues, Interval, Price, Quantity, Result, TimeRange, Timestamp};

/// The intervals of the materialized bars, shortest first.
pub const LEVELS: [Interval; 3] = [Interval::M1, Interval::H1, Interval::D1];

/// The unit in which materialized bars become stale.
const STALE_UNIT: Interval = Interval::H1;

/// The maximum number of separate stale ranges in a window. Closer ranges are joined, and the clean hours between them
/// are computed from the ticks.
const MAX_STALE_RANGES: usize = 8;

/// Returns the name of the table of a level.
pub const fn level_table(level: Interval) -> &'static str {
    match level {
        Interval::D1 => "qi_bars_1d",
        Interval::H1 => "qi_bars_1h",
        _ => "qi_bars_1m",
    }
}

/// The number of hours that the next step of maintenance covers. It adapts to the number of ticks.
///
/// A caller counts the ticks of a step first, up to [`Self::limit`], and halves the span of a larger step. A step
/// therefore has at most this number of ticks, or covers one hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSpan {
    hours: i64,
    min_ticks: u64,
    max_ticks: u64,
}

impl StepSpan {
    /// The longest span, in hours.
    const MAX_HOURS: i64 = 24 * 32;

    /// Creates a span of one hour. A step with fewer than `min_ticks` ticks doubles the span. A step of several hours
    /// has at most `max_ticks` ticks.
    pub const fn new(min_ticks: u64, max_ticks: u64) -> Self {
        Self { hours: 1, min_ticks, max_ticks }
    }

    /// Returns the end of a step that begins at `start`: a full hour.
    pub fn end(&self, start: Timestamp) -> Timestamp {
        let micros = start.as_micros().saturating_add(self.hours * STALE_UNIT.as_micros());
        STALE_UNIT.floor(Timestamp::from_micros(micros).unwrap_or(Timestamp::MAX))
    }

    /// Returns the maximum number of ticks of the step. None for a step of one hour, which is not divided.
    pub fn limit(&self) -> Option<u64> {
        (self.hours > 1).then_some(self.max_ticks)
    }

    /// Halves the span of a step with more ticks than [`Self::limit`].
    pub fn halve(&mut self) {
        self.hours = (self.hours / 2).max(1);
    }

    /// Adapts the span after a step with this number of ticks.
    pub fn adapt(&mut self, ticks: u64) {
        if ticks < self.min_ticks {
            self.hours = (self.hours * 2).min(Self::MAX_HOURS);
        }
    }
}

/// A part of a window, and the records from which its bars are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelSource {
    /// The part of the window.
    pub range: TimeRange,
    /// The level of the materialized bars. None for ticks.
    pub level: Option<Interval>,
}

/// Returns the sources of the bars of `interval` in a window of complete buckets, in this order. Hours before
/// `watermark` are materialized unless a range in `stale` overlaps them.
///
/// # Errors
/// Never in practice, because all ranges lie in the window.
///
/// # Example
/// ```
/// use qi_core::store::{Order, kit};
/// use qi_core::{Interval, TimeRange, Timestamp};
///
/// # fn main() -> qi_core::Result<()> {
/// let hour = |n: i64| Timestamp::from_secs(1_700_006_400 + 3_600 * n);
/// let window = TimeRange::new(hour(0)?, hour(6)?)?;
/// let stale = [TimeRange::new(hour(2)?, hour(3)?)?];
/// let sources = kit::level_sources(window, Interval::M5, hour(5)?, &stale, Order::Ascending)?;
/// let levels: Vec<_> = sources.iter().map(|source| source.level).collect();
/// assert_eq!(levels, [Some(Interval::M1), None, Some(Interval::M1), None]);
/// # Ok(())
/// # }
/// ```
pub fn level_sources(
    window: TimeRange,
    interval: Interval,
    watermark: Timestamp,
    stale: &[TimeRange],
    order: Order,
) -> Result<Vec<LevelSource>> {
    let mut sources = Vec::new();
    let mut push = |start: Timestamp, end: Timestamp, level| -> Result<()> {
        let (start, end) = (start.max(window.start()), end.min(window.end()));
        if start < end {
            sources.push(LevelSource { range: TimeRange::new(start, end)?, level });
        }
        Ok(())
    };
    let Some(level) = LEVELS.into_iter().rev().find(|level| divides(*level, interval)) else {
        return Ok(vec![LevelSource { range: window, level: None }]);
    };
    let mut clean_from = window.start();
    for (start, end) in joined(window, watermark, stale) {
        push_clean(clean_from, start, level, &mut push)?;
        push(start, end, None)?;
        clean_from = end;
    }
    push_clean(clean_from, window.end(), level, &mut push)?;
    if order == Order::Descending {
        sources.reverse();
    }
    Ok(sources)
}

/// Adds the sources of a clean range. A day that is not complete is read from the hours.
fn push_clean(
    start: Timestamp,
    end: Timestamp,
    level: Interval,
    push: &mut impl FnMut(Timestamp, Timestamp, Option<Interval>) -> Result<()>,
) -> Result<()> {
    if level != Interval::D1 {
        return push(start, end, Some(level));
    }
    let (first, last) = (level.ceil(start).unwrap_or(end).min(end), level.floor(end));
    if first >= last {
        return push(start, end, Some(STALE_UNIT));
    }
    push(start, first, Some(STALE_UNIT))?;
    push(first, last, Some(level))?;
    push(last, end, Some(STALE_UNIT))
}

const fn divides(level: Interval, interval: Interval) -> bool {
    interval.as_micros() % level.as_micros() == 0
}

/// Returns the ranges of a window that are not materialized, in order and without overlaps: few stale ranges, and the
/// time from the watermark on.
fn joined(window: TimeRange, watermark: Timestamp, stale: &[TimeRange]) -> Vec<(Timestamp, Timestamp)> {
    let round = |range: &TimeRange| {
        (STALE_UNIT.floor(range.start()), STALE_UNIT.ceil(range.end()).unwrap_or(Timestamp::MAX))
    };
    let mut ranges: Vec<_> = stale.iter().map(round).chain([(watermark, window.end())]).collect();
    ranges.retain(|(start, end)| start < end && *start < window.end() && *end > window.start());
    ranges.sort_unstable();
    let mut distinct: Vec<(Timestamp, Timestamp)> = Vec::new();
    for (start, end) in ranges {
        match distinct.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => distinct.push((start, end)),
        }
    }
    if distinct.len() <= MAX_STALE_RANGES {
        return distinct;
    }
    // The widest gaps between stale ranges stay clean.
    let gap = |at: usize| distinct[at].0.as_micros() - distinct[at - 1].1.as_micros();
    let mut gaps: Vec<_> = (1..distinct.len()).collect();
    gaps.sort_unstable_by_key(|at| std::cmp::Reverse(gap(*at)));
    gaps.truncate(MAX_STALE_RANGES - 1);
    gaps.sort_unstable();
    let starts = std::iter::once(0).chain(gaps.iter().copied());
    let ends = gaps.iter().copied().chain([distinct.len()]);
    starts.zip(ends).map(|(from, to)| (distinct[from].0, distinct[to - 1].1)).collect()
}

/// A part of a bar: the exact figures of some of its ticks, without rounding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BarPart {
    /// A time in the bucket of the bar.
    pub ts: Timestamp,
    /// The price of the first tick.
    pub open: Price,
    /// The highest price.
    pub high: Price,
    /// The lowest price.
    pub low: Price,
    /// The price of the last tick.
    pub close: Price,
    /// The sums of quantity and of price times quantity. None if no quantity is known.
    pub sums: BarSums,
    /// The number of ticks.
    pub count: u64,
}

/// The sums of quantity and of price times quantity. None if no quantity is known.
pub type BarSums = Option<(Sum18, Sum36)>;

/// Adds the sums of two parts.
///
/// # Errors
/// `OutOfRange` if a sum exceeds the range of [`Sum18`] or [`Sum36`].
pub fn add_sums(one: BarSums, other: BarSums) -> Result<BarSums> {
    Ok(match (one, other) {
        (Some((volume, turnover)), Some((more, turned))) => {
            Some((volume.plus_sum(more)?, turnover.plus_sum(turned)?))
        }
        (known, None) | (None, known) => known,
    })
}

impl BarPart {
    /// Returns the values of the bar of these figures. Rounds the volumes only if `has_volumes` is true; otherwise they
    /// are absent.
    ///
    /// # Errors
    /// `OutOfRange` if a volume is 10²⁰ or more.
    pub fn values(&self, has_volumes: bool) -> Result<BarValues> {
        let (volume, quote_volume) = match self.sums.filter(|_| has_volumes) {
            None => (None, None),
            Some((volume, turnover)) => {
                (Some(Quantity::new(volume.total()?)?), Some(Quantity::new(turnover.total()?)?))
            }
        };
        let Self { open, high, low, close, count, .. } = *self;
        Ok(BarValues { open, high, low, close, volume, quote_volume, count: Some(count) })
    }

    /// Adds a part whose ticks all follow the ticks of this part. A sum beyond 256 bits stays out of range.
    fn append(&mut self, later: &Self) {
        self.high = self.high.max(later.high);
        self.low = self.low.min(later.low);
        self.close = later.close;
        self.sums = add_sums(self.sums, later.sums).unwrap_or(Some((Sum18::MAX, Sum36::MAX)));
        self.count += later.count;
    }
}

/// Merges parts of bars into one part for each bucket.
#[derive(Debug)]
pub struct BarMerger {
    interval: Interval,
    order: Order,
    buckets: Vec<BarPart>,
}

impl BarMerger {
    /// Creates a merger for parts that arrive in this order of time.
    pub fn new(interval: Interval, order: Order) -> Self {
        Self { interval, order, buckets: Vec::new() }
    }

    /// Adds the next part. A sum that is out of range does not fail here, but in [`BarPart::values`].
    pub fn push(&mut self, mut part: BarPart) {
        part.ts = self.interval.floor(part.ts);
        match self.buckets.last_mut() {
            Some(last) if last.ts == part.ts => match self.order {
                Order::Ascending => last.append(&part),
                Order::Descending => {
                    part.append(last);
                    *last = part;
                }
            },
            _ => self.buckets.push(part),
        }
    }

    /// Returns the number of buckets.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Returns whether no part was added.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Returns the merged parts in the order of arrival. Their times are the open times of the bars.
    pub fn into_parts(self) -> Vec<BarPart> {
        self.buckets
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The number of the first hour, a Monday.
    const BASE: i64 = 1_699_833_600 / 3_600;

    fn hour(n: i64) -> Timestamp {
        Timestamp::from_secs((BASE + n) * 3_600).unwrap()
    }

    fn hours(start: i64, end: i64) -> TimeRange {
        TimeRange::new(hour(start), hour(end)).unwrap()
    }

    proptest! {
        /// The sources cover the window once, in order. No level is read for a stale hour or from the watermark on.
        #[test]
        fn sources_cover_the_window(
            stale in prop::collection::vec((0..400_i64, 1..5_i64), 0..30),
            watermark in 0..500_i64,
            interval in prop::sample::select(vec![Interval::S1, Interval::M1, Interval::M5, Interval::H1, Interval::H4, Interval::D1, Interval::W1]),
            newest_first: bool,
        ) {
            let order = if newest_first { Order::Descending } else { Order::Ascending };
            let window = hours(0, 3 * 168);
            let stale: Vec<_> = stale.iter().map(|(start, len)| hours(*start, start + len)).collect();
            let mut sources = level_sources(window, interval, hour(watermark), &stale, order).unwrap();
            if newest_first { sources.reverse(); }
            let mut at = window.start();
            for source in &sources {
                prop_assert_eq!(source.range.start(), at);
                at = source.range.end();
                let Some(level) = source.level else { continue };
                prop_assert!(source.range.end() <= hour(watermark));
                prop_assert!(stale.iter().all(|s| s.end() <= source.range.start() || source.range.end() <= s.start()));
                prop_assert!(level.floor(source.range.start()) == source.range.start());
                prop_assert!(level.floor(source.range.end()) == source.range.end());
                prop_assert!(interval.as_micros() >= level.as_micros());
            }
            prop_assert_eq!(at, window.end());
            prop_assert!(sources.len() <= 4 * MAX_STALE_RANGES + 3);
            if stale.is_empty() && interval >= Interval::M1 {
                prop_assert_eq!(sources[0].level.is_some(), watermark > 0);
            }
        }
    }

    #[test]
    fn a_step_after_a_sparse_year_has_a_bounded_number_of_ticks() {
        let mut span = StepSpan::new(500, 2_000);
        let length = |span: &StepSpan| span.end(hour(0)).duration_since(hour(0)).as_secs() / 3_600;
        for _ in 0..20 {
            span.adapt(1);
        }
        assert_eq!((length(&span), span.limit()), (768, Some(2_000)));
        let ticks_per_hour = 1_500;
        while span.limit().is_some_and(|limit| ticks_per_hour * length(&span) > limit) {
            span.halve();
        }
        assert_eq!((length(&span), span.limit()), (1, None));
        span.adapt(ticks_per_hour);
        assert_eq!(length(&span), 1, "an hour of many ticks is one step");
    }

    #[test]
    fn parts_of_a_bucket_are_merged_in_both_orders() {
        let part = |n: i64, price: &str, quantity: Option<&str>| {
            let price: Price = price.parse().unwrap();
            let quantity = quantity.map(|text| text.parse::<crate::Decimal>().unwrap());
            let sums = quantity.map(|quantity| {
                let turnover = Sum36::ZERO.plus_product(price.decimal(), quantity).unwrap();
                (Sum18::ZERO.plus(quantity).unwrap(), turnover)
            });
            BarPart { ts: hour(n), open: price, high: price, low: price, close: price, sums, count: 1 }
        };
        let parts =
            [part(0, "5", Some("1")), part(1, "7", None), part(23, "3", Some("2")), part(24, "4", None)];
        for order in [Order::Ascending, Order::Descending] {
            let mut merger = BarMerger::new(Interval::D1, order);
            let mut input = parts.to_vec();
            if order == Order::Descending {
                input.reverse();
            }
            for part in input {
                merger.push(part);
            }
            let mut days = merger.into_parts();
            if order == Order::Descending {
                days.reverse();
            }
            let text = |price: Price| price.to_string();
            let day = days[0];
            assert_eq!(
                [text(day.open), text(day.high), text(day.low), text(day.close)],
                ["5", "7", "3", "3"]
            );
            assert_eq!((day.ts, day.count, days.len()), (hour(0), 3, 2));
            let (volume, turnover) = day.sums.unwrap();
            assert_eq!(
                (volume.total().unwrap().to_string(), turnover.total().unwrap().to_string()),
                ("3".into(), "11".into())
            );
            assert_eq!(days[1].sums, None);
        }
    }

    #[test]
    fn a_merged_sum_beyond_256_bits_fails_only_with_its_volumes() {
        let price: Price = "1".parse().unwrap();
        let part = |n: i64| BarPart {
            ts: hour(n),
            open: price,
            high: price,
            low: price,
            close: price,
            sums: Some((Sum18::ZERO, Sum36::MAX)),
            count: 1,
        };
        for order in [Order::Ascending, Order::Descending] {
            let mut merger = BarMerger::new(Interval::D1, order);
            for n in 0..3 {
                merger.push(part(n));
            }
            let day = merger.into_parts()[0];
            assert_eq!(day.values(false).unwrap().count, Some(3));
            assert_eq!(day.values(true).unwrap_err().kind(), crate::ErrorKind::OutOfRange);
        }
    }
}
