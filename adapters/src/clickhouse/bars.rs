//! Bars and figures out of ticks, summed by the server in 256 bits.

use qi_core::domain::{Sum18, Sum36};
use qi_core::store::{Anchor, BarQuery, Derived, Order, Page, Paged, PricePoint, RangeStats, StatsQuery};
use qi_core::{BarValues, Error, ErrorKind, Interval, Ohlcv, Operation, Quantity, TimeRange, Timestamp};

use super::connect::rows;
use super::error::Cause;
use super::read::{FINAL, within};
use super::store::ClickHouseStore;
use super::table::{of_instrument, read_price, read_time};
use super::wire::Reader;

/// The Monday from which buckets are counted, in microseconds: the first time that a record can have.
const MONDAY: i64 = 345_600_000_000;

/// By how much a window may grow beyond the length of the bars that are wanted, where ticks are rare.
const WIDEST: i64 = 64;

/// From here on a sum is out of range whatever its exact value: the domain ends at 1e20, and the exact sums, which
/// wrap without a word, are good up to 5e40.
const SURELY_TOO_LARGE: f64 = 1e21;

// What is summed of the ticks of a bucket or a range. Products have 36 places: 256 bits hold them exactly up to
// 5.7e40, and the sums of doubles beside them tell when they would not. Open and close go by (ts, seq).
const FIGURES: &str = "argMin(price, (ts, seq)), max(price), min(price), argMax(price, (ts, seq)), count(), \
    countIf(isNotNull(quantity)), sum(toDecimal256(ifNull(quantity, 0), 18)), \
    sum(toDecimal256(price, 18) * toDecimal256(ifNull(quantity, 0), 18)), \
    sum(toFloat64(ifNull(quantity, 0))), sum(toFloat64(price) * toFloat64(ifNull(quantity, 0)))";

/// The sums of [`FIGURES`]; None if no quantity is known.
type Sums = Option<Result<(Sum18, Sum36), Error>>;

fn read_sums(row: &mut Reader<'_>, operation: Operation) -> Result<Sums, Cause> {
    let known = row.u64()?;
    let (volume, turnover) = (row.wide()?, row.wide()?);
    let (near_volume, near_turnover) = (row.f64()?, row.f64()?);
    if known == 0 {
        return Ok(None);
    }
    // Written so that NaN is too large as well.
    if !(near_volume < SURELY_TOO_LARGE && near_turnover < SURELY_TOO_LARGE) {
        return Ok(Some(Err(Error::new(ErrorKind::OutOfRange, "store.clickhouse.sum", operation)
            .with_message("a sum is 1e20 or more"))));
    }
    Ok(Some(Ok((Sum18::from_le_bytes(volume), Sum36::from_le_bytes(turnover)))))
}

impl ClickHouseStore {
    /// A page of derived bars. Each statement sums a window no longer than a page of bars, and gaps are jumped by
    /// asking for the next tick, so that no page reads the whole range.
    pub(super) async fn derived_page(&self, query: &BarQuery) -> Result<Page<Ohlcv>, Cause> {
        let page = Derived(query);
        let (limit, interval) = (page.request().limit(), query.interval);
        let mut found = Vec::new();
        let mut rest = buckets_of(query, &page.anchor()?);
        if rest.is_none() {
            // Even an empty range meets the server, which knows whether there is a schema.
            self.next_tick(query, TimeRange::new(query.range.start(), query.range.start())?).await?;
        }
        let mut width = 1_i64;
        while let Some(left) = rest.take().filter(|left| found.len() <= limit && !left.is_empty()) {
            let wanted = i64::try_from(limit + 1 - found.len()).unwrap_or(i64::MAX);
            let window = window(left, query.order, interval, wanted.saturating_mul(width))?;
            let before = found.len();
            self.buckets(query, window, wanted, limit, &mut found).await?;
            let got = i64::try_from(found.len() - before).unwrap_or(i64::MAX);
            if got == wanted {
                break;
            }
            width = if got < wanted / 4 { (width * 4).min(WIDEST) } else { width };
            let left = match query.order {
                Order::Ascending => TimeRange::new(window.end().min(left.end()), left.end())?,
                Order::Descending => TimeRange::new(left.start(), window.start().max(left.start()))?,
            };
            rest = if got == 0 && !left.is_empty() { self.jump(query, left).await? } else { Some(left) };
        }
        Ok(page.page_of(found)?)
    }

    /// The bars of a window, at most `wanted`. The one behind the page only shows that there is more: a sum of it
    /// that is out of range is the error of its own page.
    async fn buckets(
        &self,
        query: &BarQuery,
        window: TimeRange,
        wanted: i64,
        limit: usize,
        found: &mut Vec<Ohlcv>,
    ) -> Result<(), Cause> {
        let interval = query.interval;
        let direction = if query.order == Order::Ascending { "ASC" } else { "DESC" };
        // By integers: toStartOfInterval breaks after 2106, and returns a Date for weeks.
        let sql = format!(
            "SELECT intDiv(toUnixTimestamp64Micro(ts) - {MONDAY}, {length}) * {length} + {MONDAY} AS bucket, {FIGURES} \
             FROM {name} FINAL WHERE {series} AND {range} GROUP BY bucket ORDER BY bucket {direction} LIMIT {wanted} {FINAL}",
            length = interval.as_micros(),
            name = self.ticks(),
            series = of_instrument(&query.instrument),
            range = within("ts", window),
        );
        let bars = rows(&self.inner.connections.plain, &sql, |row| {
            let open_time = read_time(row)?;
            let (open, high, low, close) =
                (read_price(row)?, read_price(row)?, read_price(row)?, read_price(row)?);
            let count = Some(row.u64()?);
            let sums = read_sums(row, Operation::DerivedBars)?;
            Ok((
                open_time,
                BarValues { open, high, low, close, volume: None, quote_volume: None, count },
                sums,
            ))
        })
        .await?;
        for (open_time, mut values, sums) in bars {
            if found.len() < limit
                && let Some(sums) = sums
            {
                let (volume, turnover) = sums?;
                values.volume = Some(Quantity::new(volume.total()?)?);
                values.quote_volume = Some(Quantity::new(turnover.total()?)?);
            }
            found.push(
                Ohlcv::new(query.instrument.clone(), interval, open_time, values).map_err(Cause::Corrupt)?,
            );
        }
        Ok(())
    }

    /// What is left of `rest` from the next tick on, in whole buckets.
    async fn jump(&self, query: &BarQuery, rest: TimeRange) -> Result<Option<TimeRange>, Cause> {
        let Some(ts) = self.next_tick(query, rest).await? else { return Ok(None) };
        let open = query.interval.floor(ts);
        Ok(Some(match query.order {
            Order::Ascending => TimeRange::new(open.max(rest.start()), rest.end())?,
            Order::Descending => {
                TimeRange::new(rest.start(), close_of(query.interval, open).min(rest.end()))?
            }
        }))
    }

    /// The first tick of a range in the order of the query.
    async fn next_tick(&self, query: &BarQuery, range: TimeRange) -> Result<Option<Timestamp>, Cause> {
        let direction = if query.order == Order::Ascending { "ASC" } else { "DESC" };
        let sql = format!(
            "SELECT ts FROM {} WHERE {} AND {} ORDER BY ts {direction} LIMIT 1",
            self.ticks(),
            of_instrument(&query.instrument),
            within("ts", range),
        );
        Ok(rows(&self.inner.connections.plain, &sql, read_time).await?.into_iter().next())
    }

    /// Figures over a range.
    pub(super) async fn stats_of(&self, query: &StatsQuery) -> Result<Option<RangeStats>, Cause> {
        let sql = format!(
            "SELECT min((ts, seq)), max((ts, seq)), {FIGURES} FROM {} FINAL WHERE {} AND {} {FINAL}",
            self.ticks(),
            of_instrument(&query.instrument),
            within("ts", query.range),
        );
        let found = rows(&self.inner.connections.plain, &sql, |row| {
            // Of nothing the server gives the zero of each type, which is no time of the domain.
            let (first_ts, first_seq, last_ts, last_seq) = (row.i64()?, row.u64()?, row.i64()?, row.u64()?);
            let prices = (row.i128()?, row.i128()?, row.i128()?, row.i128()?);
            let count = row.u64()?;
            let sums = read_sums(row, Operation::Stats)?;
            Ok((first_ts, first_seq, last_ts, last_seq, prices, count, sums))
        })
        .await?;
        let Some((first_ts, first_seq, last_ts, last_seq, (open, high, low, close), count, sums)) =
            found.into_iter().find(|(.., count, _)| *count > 0)
        else {
            return Ok(None);
        };
        let time = |micros| Timestamp::from_micros(micros).map_err(Cause::Corrupt);
        let price = |units| qi_core::Price::from_units(units).map_err(Cause::Corrupt);
        let first = PricePoint { ts: time(first_ts)?, seq: first_seq, price: price(open)? };
        let last = PricePoint { ts: time(last_ts)?, seq: last_seq, price: price(close)? };
        let sums = sums.transpose()?;
        Ok(Some(RangeStats::new(first, last, (price(low)?, price(high)?), sums, count)?))
    }
}

/// The next window of `rest`: at most `count` buckets long, of whole buckets.
fn window(rest: TimeRange, order: Order, interval: Interval, count: i64) -> Result<TimeRange, Cause> {
    let length = interval.as_micros().saturating_mul(count);
    let (start, end) = (rest.start().as_micros(), rest.end().as_micros());
    let time = Timestamp::from_micros;
    Ok(match order {
        Order::Ascending => TimeRange::new(rest.start(), time(start.saturating_add(length).min(end))?)?,
        Order::Descending => TimeRange::new(time(end.saturating_sub(length).max(start))?, rest.end())?,
    })
}

/// The end of the bucket that opens at `open`.
fn close_of(interval: Interval, open: Timestamp) -> Timestamp {
    open.checked_add(interval.duration()).unwrap_or(Timestamp::MAX)
}

/// The whole buckets whose open time lies in the range and behind the cursor; None if there are none.
fn buckets_of(query: &BarQuery, anchor: &Anchor) -> Option<TimeRange> {
    let BarQuery { interval, range, order, .. } = query;
    let mut first = interval.ceil(range.start())?;
    // An end on a boundary is that itself; the bucket that the end cuts is taken whole.
    let mut end = interval.ceil(range.end()).unwrap_or(Timestamp::MAX);
    if let Anchor::Time(open) = anchor {
        match order {
            Order::Ascending => first = first.max(close_of(*interval, *open)),
            Order::Descending => end = end.min(*open),
        }
    }
    TimeRange::new(first, end.max(first)).ok().filter(|range| !range.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::read::at;
    use super::*;

    #[test]
    fn buckets_are_counted_from_the_first_time() {
        assert_eq!(MONDAY, Timestamp::MIN.as_micros());
        assert_eq!(at(Timestamp::MIN), "fromUnixTimestamp64Micro(345600000000, 'UTC')");
    }
}
