//! The windows over which the bars of a page are computed.

use crate::store::{Anchor, BarQuery, Derived, Order, Page, Paged};
use crate::{Bar, Interval, Result, TimeRange, Timestamp};

/// The largest factor by which a window grows beyond the length of the wanted bars if ticks are rare.
const MAX_WIDTH_FACTOR: i64 = 64;

/// Returns the end of the bucket that opens at `open`.
pub fn bucket_end(interval: Interval, open: Timestamp) -> Timestamp {
    open.checked_add(interval.duration()).unwrap_or(Timestamp::MAX)
}

/// A planner of the windows over which a page of derived bars is computed.
///
/// Each window consists of entire buckets. The planner limits the length of a window and jumps over gaps, so no page
/// reads the entire range.
///
/// ```no_run
/// # use qi_core::store::kit::BucketPlanner;
/// # use qi_core::store::{BarQuery, Page};
/// # use qi_core::{Bar, Result, TimeRange, Timestamp};
/// # fn sum(_: TimeRange, _: usize) -> Result<Vec<Bar>> { Ok(Vec::new()) }
/// # fn next_tick(_: TimeRange) -> Result<Option<Timestamp>> { Ok(None) }
/// fn page(query: &BarQuery) -> Result<Page<Bar>> {
///     let mut planner = BucketPlanner::new(query)?;
///     while let Some(window) = planner.window()? {
///         for bar in sum(window, planner.wanted())? { // in the query's order
///             planner.push(bar);
///         }
///         if let Some(remaining) = planner.advance(window)? {
///             planner.skip_to(next_tick(remaining)?)?; // nothing in the window
///         }
///     }
///     planner.page()
/// }
/// ```
#[derive(Debug)]
pub struct BucketPlanner<'q> {
    query: &'q BarQuery,
    /// The buckets that are not read yet.
    remaining: Option<TimeRange>,
    width_factor: i64,
    found: Vec<Bar>,
    /// The number of bars found before the current window.
    found_before: usize,
}

impl<'q> BucketPlanner<'q> {
    /// Creates a planner that begins at the query's cursor.
    ///
    /// # Errors
    /// `InvalidInput` if the cursor does not belong to this query.
    pub fn new(query: &'q BarQuery) -> Result<Self> {
        let remaining = buckets_of(query, &Derived(query).anchor()?);
        Ok(Self { query, remaining, width_factor: 1, found: Vec::new(), found_before: 0 })
    }

    /// Returns whether no bucket is left.
    pub fn is_done(&self) -> bool {
        self.remaining.is_none_or(TimeRange::is_empty)
    }

    /// Returns the number of bars that the page still takes, plus one. The additional bar shows that
    /// there is a next page.
    pub fn wanted(&self) -> usize {
        self.query.page.limit() + 1 - self.found.len()
    }

    /// Returns whether the next bar belongs to the page. The additional bar only shows that there is a next page, so if
    /// its sum is out of range, the next page reports that error.
    pub fn is_on_page(&self) -> bool {
        self.found.len() < self.query.page.limit()
    }

    /// Returns the next window of entire buckets, or None at the end. An adapter may shorten
    /// the window by entire buckets.
    ///
    /// # Errors
    /// `InvalidInput` for a window outside the domain. The range of a query never causes this error.
    pub fn window(&mut self) -> Result<Option<TimeRange>> {
        self.found_before = self.found.len();
        let Some(remaining) = self.remaining.filter(|remaining| self.wanted() > 0 && !remaining.is_empty())
        else {
            return Ok(None);
        };
        let count = i64::try_from(self.wanted()).unwrap_or(i64::MAX).saturating_mul(self.width_factor);
        let length = self.query.interval.as_micros().saturating_mul(count);
        let (start, end) = (remaining.start().as_micros(), remaining.end().as_micros());
        let time = Timestamp::from_micros;
        Ok(Some(match self.query.order {
            Order::Ascending => {
                TimeRange::new(remaining.start(), time(start.saturating_add(length).min(end))?)?
            }
            Order::Descending => {
                TimeRange::new(time(end.saturating_sub(length).max(start))?, remaining.end())?
            }
        }))
    }

    /// Adds a bar of the window, in the query's order.
    pub fn push(&mut self, bar: Bar) {
        self.found.push(bar);
    }

    /// Continues after a window. If the window had no bars, returns the range in which to search for the next tick;
    /// pass that tick to [`BucketPlanner::skip_to`].
    ///
    /// # Errors
    /// `InvalidInput` for an empty or inverted range. The range of a query never causes this error.
    pub fn advance(&mut self, window: TimeRange) -> Result<Option<TimeRange>> {
        let (Some(remaining), added) = (self.remaining, self.found.len() - self.found_before) else {
            return Ok(None);
        };
        let wanted = self.wanted() + added;
        if added < wanted / 4 {
            self.width_factor = (self.width_factor * 4).min(MAX_WIDTH_FACTOR);
        }
        let remaining = match self.query.order {
            Order::Ascending => TimeRange::new(window.end().min(remaining.end()), remaining.end())?,
            Order::Descending => TimeRange::new(remaining.start(), window.start().max(remaining.start()))?,
        };
        self.remaining = Some(remaining);
        Ok((added == 0 && !remaining.is_empty()).then_some(remaining))
    }

    /// Continues at the bucket of the next tick in the query's order. Ends the plan if there is no next tick.
    ///
    /// # Errors
    /// `InvalidInput` for an empty or inverted range. The range of a query never causes this error.
    pub fn skip_to(&mut self, next_tick: Option<Timestamp>) -> Result<()> {
        let BarQuery { interval, order, .. } = *self.query;
        self.remaining = match (self.remaining, next_tick) {
            (Some(remaining), Some(ts)) => {
                let open = interval.floor(ts);
                Some(match order {
                    Order::Ascending => TimeRange::new(open.max(remaining.start()), remaining.end())?,
                    Order::Descending => {
                        TimeRange::new(remaining.start(), bucket_end(interval, open).min(remaining.end()))?
                    }
                })
            }
            _ => None,
        };
        Ok(())
    }

    /// Returns the page of the collected bars.
    ///
    /// # Errors
    /// `InvalidInput` if the cursor does not belong to this query.
    pub fn page(self) -> Result<Page<Bar>> {
        Derived(self.query).page_of(self.found)
    }
}

/// Returns the buckets whose open time lies in the range and after the cursor; None if there are none.
fn buckets_of(query: &BarQuery, anchor: &Anchor) -> Option<TimeRange> {
    let BarQuery { interval, range, order, .. } = query;
    let mut first = interval.ceil(range.start())?;
    // If the range ends inside a bucket, the entire bucket belongs to the result.
    let mut end = interval.ceil(range.end()).unwrap_or(Timestamp::MAX);
    if let Anchor::Time(open) = anchor {
        match order {
            Order::Ascending => first = first.max(bucket_end(*interval, *open)),
            Order::Descending => end = end.min(*open),
        }
    }
    TimeRange::new(first, end.max(first)).ok().filter(|range| !range.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::BarValues;

    const BASE: i64 = 1_699_999_980;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_secs(BASE + 60 * minutes).unwrap()
    }

    fn bar(minute: i64) -> Bar {
        let values = BarValues::flat("1".parse().unwrap());
        Bar::new("x:Y".parse().unwrap(), Interval::M1, at(minute), values).unwrap()
    }

    proptest! {
        /// Compares the pages over buckets with ticks at these minutes with a list of all of them.
        #[test]
        fn pages_cover_all_buckets(
            minutes in prop::collection::btree_set(prop_oneof![0..40_i64, 0..20_000_i64], 0..40),
            limit in 1..9_usize,
            (from, len) in (0..30_000_i64, 0..30_000_i64),
            newest_first: bool,
        ) {
            let range = TimeRange::new(at(from / 2), at(from / 2 + len)).unwrap();
            let mut query = BarQuery::new("x:Y".parse().unwrap(), Interval::M1, range).with_limit(limit).unwrap();
            query.order = if newest_first { Order::Descending } else { Order::Ascending };
            let sorted = |mut all: Vec<i64>| { if newest_first { all.reverse(); } all };
            let within = |range: TimeRange| sorted(minutes.iter().copied().filter(|m| range.contains(at(*m))).collect());
            let (mut found, mut windows) = (Vec::new(), 0);
            loop {
                let mut planner = BucketPlanner::new(&query).unwrap();
                while let Some(window) = planner.window().unwrap() {
                    windows += 1;
                    prop_assert!(!window.is_empty());
                    for minute in within(window).into_iter().take(planner.wanted()) {
                        planner.push(bar(minute));
                    }
                    if let Some(remaining) = planner.advance(window).unwrap() {
                        planner.skip_to(within(remaining).first().map(|minute| at(*minute))).unwrap();
                    }
                }
                let page = planner.page().unwrap();
                prop_assert!(page.items.len() <= limit);
                found.extend(page.items.iter().map(|bar| (bar.open_time().as_micros() / 1_000_000 - BASE) / 60));
                match page.next {
                    Some(next) => query = query.after(next),
                    None => break,
                }
            }
            prop_assert_eq!(&found, &within(range));
            prop_assert!(windows <= 5 * (found.len() + 2), "{} windows for {} bars", windows, found.len());
        }
    }
}
