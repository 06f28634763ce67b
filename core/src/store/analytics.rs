//! Analytics over any store. Prices and sums are exact decimals; statistics are `f64`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::pin::pin;

use futures::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::{BarQuery, Order, PricePoint, PriceStore, SeriesRequest, StatsQuery};
use crate::domain::Sum18;
use crate::{Bar, BarValues, Decimal, Error, Instrument, Interval, Result, Selection, TimeRange, Timestamp};

/// The bars that a stream or an analysis reads: stored records, or the bars of the ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BarSource {
    /// Records of the dataset `bars`, from an exchange or persisted from ticks.
    Stored,
    /// The bars of the ticks, computed at the read or read from equal materialized bars.
    Derived,
}

/// The change of a price over a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// The first price.
    pub open: PricePoint,
    /// The last price.
    pub close: PricePoint,
    /// `close / open - 1`: a ratio, not a percentage, rounded once to 18 places.
    pub ratio: Decimal,
}

/// A bar, or a flat bar in place of a bucket without trades.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FilledBar {
    /// The bar. A filled bar has the previous close as its four prices, and zero volume and count.
    pub bar: Bar,
    /// True if the bar fills an empty bucket.
    pub filled: bool,
}

/// A query of the instruments whose price changed most over a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawMoversQuery")]
#[non_exhaustive]
pub struct MoversQuery {
    /// The instruments to compare.
    pub selection: Selection<Instrument>,
    /// The time range.
    pub range: TimeRange,
    /// The largest number of instruments of each side.
    pub limit: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMoversQuery {
    selection: Selection<Instrument>,
    range: TimeRange,
    limit: usize,
}

impl TryFrom<RawMoversQuery> for MoversQuery {
    type Error = Error;
    fn try_from(raw: RawMoversQuery) -> Result<Self> {
        Self::new(raw.selection, raw.range, raw.limit)
    }
}

impl MoversQuery {
    /// The largest [`MoversQuery::limit`].
    pub const MAX_LIMIT: usize = 1_000;

    /// Creates a query of the `limit` instruments that rose most and the `limit` instruments that fell most.
    ///
    /// # Errors
    /// `InvalidInput` unless `limit` lies in 1 to [`MoversQuery::MAX_LIMIT`].
    pub fn new(selection: Selection<Instrument>, range: TimeRange, limit: usize) -> Result<Self> {
        if (1..=Self::MAX_LIMIT).contains(&limit) {
            Ok(Self { selection, range, limit })
        } else {
            Err(Error::invalid("store.movers.limit", "limit", limit, "must lie from 1 to 1000"))
        }
    }
}

/// The result of a [`MoversQuery`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Movers {
    /// The instruments that rose, largest rise first.
    pub gainers: Vec<(Instrument, Change)>,
    /// The instruments that fell, largest fall first.
    pub losers: Vec<(Instrument, Change)>,
}

pub(super) async fn change(store: &(impl PriceStore + ?Sized), query: &StatsQuery) -> Result<Option<Change>> {
    let Some(stats) = store.stats(query).await? else { return Ok(None) };
    Ok(Some(Change { open: stats.first(), close: stats.last(), ratio: stats.change()? }))
}

/// Returns the sample standard deviation of ln(close / previous close), by Welford's method.
///
/// Source: B. P. Welford, "Note on a Method for Calculating Corrected Sums of Squares and Products", Technometrics 4
/// (1962).
pub(super) async fn volatility(
    bars: impl Stream<Item = Result<Bar>>,
    bars_per_year: Option<f64>,
) -> Result<Option<f64>> {
    if let Some(n) = bars_per_year
        && !(n.is_finite() && n > 0.0)
    {
        return Err(Error::invalid(
            "store.volatility.year",
            "bars_per_year",
            n,
            "must be finite and positive",
        ));
    }
    let (mut previous, mut count, mut mean, mut squares) = (None, 0.0, 0.0, 0.0);
    let mut bars = pin!(bars);
    while let Some(bar) = bars.try_next().await? {
        let close = bar.close().decimal().to_f64_lossy();
        if let Some(previous) = previous.replace(close) {
            let step: f64 = f64::ln(close / previous);
            count += 1.0;
            let delta = step - mean;
            mean += delta / count;
            squares += delta * (step - mean);
        }
    }
    if count < 2.0 {
        return Ok(None);
    }
    let deviation = f64::sqrt(squares / (count - 1.0));
    Ok(Some(deviation * bars_per_year.map_or(1.0, f64::sqrt)))
}

/// The largest window of a moving average, in bars.
pub(super) const MAX_WINDOW: usize = 10_000;

pub(super) fn moving_average(
    bars: BoxStream<'_, Result<Bar>>,
    window: usize,
) -> BoxStream<'_, Result<(Timestamp, Decimal)>> {
    if !(1..=MAX_WINDOW).contains(&window) {
        let error = Error::invalid("store.sma.window", "window", window, "must lie from 1 to 10000");
        return stream::once(async { Err(error) }).boxed();
    }
    let state = (bars, VecDeque::with_capacity(window), Sum18::ZERO);
    stream::try_unfold(state, move |(mut bars, mut closes, mut sum)| async move {
        while let Some(bar) = bars.try_next().await? {
            if closes.len() == window
                && let Some(oldest) = closes.pop_front()
            {
                sum = sum.minus(oldest)?;
            }
            closes.push_back(bar.close());
            sum = sum.plus(bar.close())?;
            if closes.len() == window
                && let Some(mean) = sum.mean(window as u64)?
            {
                return Ok(Some(((bar.open_time(), mean), (bars, closes, sum))));
            }
        }
        Ok(None)
    })
    .boxed()
}

/// Rejects a descending query for an analysis that needs oldest first.
pub(super) fn ascending_only(order: Order) -> Result<()> {
    match order {
        Order::Ascending => Ok(()),
        Order::Descending => Err(Error::invalid(
            "store.analytics.order",
            "order",
            "descending",
            "must be ascending for this analysis",
        )),
    }
}

/// Rejects a query that is descending or begins after the start of its range.
pub(super) fn complete_only(query: &BarQuery) -> Result<()> {
    ascending_only(query.order)?;
    let rule = "must be absent: `gaps` reads the complete range";
    query
        .page
        .cursor()
        .map_or(Ok(()), |cursor| Err(Error::invalid("store.gaps.cursor", "cursor", cursor, rule)))
}

/// Puts a flat bar into every empty bucket between two bars.
pub(super) fn filled(bars: BoxStream<'_, Result<Bar>>) -> BoxStream<'_, Result<FilledBar>> {
    struct State<'a> {
        bars: BoxStream<'a, Result<Bar>>,
        last: Option<Bar>,
        ahead: Option<Bar>,
    }
    let state = State { bars, last: None, ahead: None };
    stream::try_unfold(state, |mut state| async move {
        if state.ahead.is_none() {
            state.ahead = state.bars.try_next().await?;
        }
        let Some(ahead) = &state.ahead else { return Ok(None) };
        let item = match &state.last {
            Some(last) if last.close_time() < ahead.open_time() => {
                let values = BarValues::flat(last.close());
                let bar = Bar::new(last.instrument().clone(), last.interval(), last.close_time(), values)?;
                FilledBar { bar, filled: true }
            }
            _ => match state.ahead.take() {
                Some(bar) => FilledBar { bar, filled: false },
                None => return Ok(None),
            },
        };
        state.last = Some(item.bar.clone());
        Ok(Some((item, state)))
    })
    .boxed()
}

/// Returns the ranges of consecutive open times in `range` that have no bar.
pub(super) fn gaps(
    bars: BoxStream<'_, Result<Bar>>,
    interval: Interval,
    range: TimeRange,
) -> BoxStream<'_, Result<TimeRange>> {
    // The first open time that the range expects. None if it would lie after the end of the range or of the domain.
    let expected = interval.ceil(range.start()).filter(|start| *start < range.end());
    let end = interval.ceil(range.end()).unwrap_or(range.end());
    stream::try_unfold((bars, expected), move |(mut bars, mut expected)| async move {
        while let Some(from) = expected {
            let (to, next) = match bars.try_next().await? {
                Some(bar) => (bar.open_time(), Some(bar.close_time()).filter(|t| *t < end)),
                None => (end, None),
            };
            expected = next;
            if from < to {
                return Ok(Some((TimeRange::new(from, to)?, (bars, expected))));
            }
        }
        Ok(None)
    })
    .boxed()
}

/// Ranks instruments by their change, and keeps at most the limit on each side.
pub(super) async fn movers(store: &(impl PriceStore + ?Sized), query: &MoversQuery) -> Result<Movers> {
    let MoversQuery { selection, range, limit } = query;
    let mut rank = Ranking::new(*limit);
    match selection {
        Selection::Only(instruments) => {
            for instrument in instruments.iter() {
                rank.add(store, instrument, *range).await?;
            }
        }
        Selection::All => {
            let mut page = SeriesRequest::new(<crate::PriceTick as crate::Record>::DATASET);
            loop {
                let found = store.series(&page).await?;
                for summary in &found.items {
                    rank.add(store, &summary.clone().of_instrument()?.instrument, *range).await?;
                }
                let Some(next) = found.next else { break };
                page = page.after(next);
            }
        }
    }
    Ok(rank.finish())
}

/// Two bounded heaps. The top of each is the smallest kept entry.
struct Ranking {
    limit: usize,
    gainers: BinaryHeap<Reverse<Ranked>>,
    losers: BinaryHeap<Reverse<Ranked>>,
}

/// An entry of a ranking. The order is that of the first field. Of two equal entries, the earlier instrument is larger.
struct Ranked(Decimal, Instrument, Change);

impl Ranked {
    fn key(&self) -> (Decimal, Reverse<&Instrument>) {
        (self.0, Reverse(&self.1))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Ranked {}
impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Ranking {
    fn new(limit: usize) -> Self {
        Self { limit, gainers: BinaryHeap::new(), losers: BinaryHeap::new() }
    }

    async fn add(
        &mut self,
        store: &(impl PriceStore + ?Sized),
        instrument: &Instrument,
        range: TimeRange,
    ) -> Result<()> {
        let Some(change) = change(store, &StatsQuery::new(instrument.clone(), range)).await? else {
            return Ok(());
        };
        let (heap, size) = match change.ratio {
            ratio if ratio > Decimal::ZERO => (&mut self.gainers, ratio),
            ratio if ratio < Decimal::ZERO => {
                (&mut self.losers, Decimal::ZERO.checked_sub(ratio).unwrap_or(Decimal::MAX))
            }
            _ => return Ok(()),
        };
        heap.push(Reverse(Ranked(size, instrument.clone(), change)));
        if heap.len() > self.limit {
            heap.pop();
        }
        Ok(())
    }

    fn finish(self) -> Movers {
        // The ascending order of `Reverse` puts the largest first.
        let sorted = |heap: BinaryHeap<Reverse<Ranked>>| {
            heap.into_sorted_vec().into_iter().map(|Reverse(Ranked(_, i, change))| (i, change)).collect()
        };
        Movers { gainers: sorted(self.gainers), losers: sorted(self.losers) }
    }
}
