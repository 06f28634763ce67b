//! Bars and statistics derived from ticks. The server computes the sums in 256-bit decimals.

use qi_core::domain::{Sum18, Sum36};
use qi_core::store::kit::BucketPlanner;
use qi_core::store::{BarQuery, Order, Page, PricePoint, RangeStats, StatsQuery};
use qi_core::{Bar, BarValues, Error, ErrorKind, Operation, Quantity, TimeRange, Timestamp};

use super::connect::rows;
use super::error::Cause;
use super::read::{FINAL_SETTINGS, range_condition};
use super::store::ClickHouseStore;
use super::table::{instrument_condition, read_price, read_time};
use super::wire::Reader;

/// The origin of all buckets in microseconds: Monday 1970-01-05, the earliest time of a record.
pub(super) const BUCKET_ORIGIN: i64 = 345_600_000_000;

/// The threshold above which a sum is certainly out of range. The domain ends at 1e20. The exact sums are correct up to
/// 5e40 and wrap silently above that.
const OVERFLOW_THRESHOLD: f64 = 1e21;

// The aggregates over the ticks of a bucket or a range. Products have 36 decimal places, so 256 bits hold them exactly
// up to 5.7e40. The additional sums of doubles detect an overflow. Open and close are ordered by (ts, seq).
const AGGREGATES: &str = "argMin(price, (ts, seq)), max(price), min(price), argMax(price, (ts, seq)), count(), \
    countIf(isNotNull(quantity)), sum(toDecimal256(ifNull(quantity, 0), 18)), \
    sum(toDecimal256(price, 18) * toDecimal256(ifNull(quantity, 0), 18)), \
    sum(toFloat64(ifNull(quantity, 0))), sum(toFloat64(price) * toFloat64(ifNull(quantity, 0)))";

/// The sums of [`AGGREGATES`], or None if no tick has a quantity.
pub(super) type Sums = Option<Result<(Sum18, Sum36), Error>>;

pub(super) fn read_sums(row: &mut Reader<'_>, operation: Operation) -> Result<Sums, Cause> {
    let quantity_count = row.u64()?;
    let (volume, turnover) = (row.bytes32()?, row.bytes32()?);
    let (approximate_volume, approximate_turnover) = (row.f64()?, row.f64()?);
    if quantity_count == 0 {
        return Ok(None);
    }
    // The negated comparison also treats NaN as too large.
    if !(approximate_volume < OVERFLOW_THRESHOLD && approximate_turnover < OVERFLOW_THRESHOLD) {
        return Ok(Some(Err(Error::new(ErrorKind::OutOfRange, "store.clickhouse.sum", operation)
            .with_message("a sum is 1e20 or more"))));
    }
    Ok(Some(Ok((Sum18::from_le_bytes(volume), Sum36::from_le_bytes(turnover)))))
}

impl ClickHouseStore {
    /// Returns a page of derived bars, computed window by window. Skips a gap with a query for the next tick.
    pub(super) async fn derived_page(&self, query: &BarQuery) -> Result<Page<Bar>, Cause> {
        let mut planner = BucketPlanner::new(query)?;
        if planner.is_done() {
            // An empty range also queries the server, because only the server knows whether the schema exists.
            self.next_tick(query, TimeRange::new(query.range.start(), query.range.start())?).await?;
        }
        while let Some(window) = planner.window()? {
            self.buckets(query, window, &mut planner).await?;
            if let Some(rest) = planner.advance(window)? {
                planner.skip_to(self.next_tick(query, rest).await?)?;
            }
        }
        Ok(planner.page()?)
    }

    /// Adds the bars of a window to `planner`.
    async fn buckets(
        &self,
        query: &BarQuery,
        window: TimeRange,
        planner: &mut BucketPlanner<'_>,
    ) -> Result<(), Cause> {
        let interval = query.interval;
        let sql = self.buckets_sql(query, window, planner.wanted());
        let bars = rows(&self.inner.connections.read_client, &sql, |row| {
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
            if planner.is_on_page()
                && let Some(sums) = sums
            {
                let (volume, turnover) = sums?;
                values.volume = Some(Quantity::new(volume.total()?)?);
                values.quote_volume = Some(Quantity::new(turnover.total()?)?);
            }
            planner.push(
                Bar::new(query.instrument.clone(), interval, open_time, values).map_err(Cause::Corrupt)?,
            );
        }
        Ok(())
    }

    /// Returns the query for the bars of a window, in parts if the window cuts buckets. Returns at most `wanted` buckets.
    pub(super) fn buckets_sql(&self, query: &BarQuery, window: TimeRange, wanted: usize) -> String {
        let direction = if query.order == Order::Ascending { "ASC" } else { "DESC" };
        // Integer arithmetic, because `toStartOfInterval` breaks after 2106 and returns a Date for weeks.
        format!(
            "SELECT intDiv(toUnixTimestamp64Micro(ts) - {BUCKET_ORIGIN}, {length}) * {length} + {BUCKET_ORIGIN} AS bucket, {AGGREGATES} \
             FROM {name} FINAL WHERE {series} AND {range} GROUP BY bucket ORDER BY bucket {direction} LIMIT {wanted} {FINAL_SETTINGS}",
            length = query.interval.as_micros(),
            name = self.ticks_table(),
            series = instrument_condition(&query.instrument),
            range = range_condition("ts", window),
        )
    }

    /// Returns the time of the first tick in a range, in the order of the query.
    pub(super) async fn next_tick(
        &self,
        query: &BarQuery,
        range: TimeRange,
    ) -> Result<Option<Timestamp>, Cause> {
        let direction = if query.order == Order::Ascending { "ASC" } else { "DESC" };
        let sql = format!(
            "SELECT ts FROM {} WHERE {} AND {} ORDER BY ts {direction} LIMIT 1",
            self.ticks_table(),
            instrument_condition(&query.instrument),
            range_condition("ts", range),
        );
        Ok(rows(&self.inner.connections.read_client, &sql, read_time).await?.into_iter().next())
    }

    /// Returns the statistics over a range.
    pub(super) async fn range_stats(&self, query: &StatsQuery) -> Result<Option<RangeStats>, Cause> {
        let sql = format!(
            "SELECT min((ts, seq)), max((ts, seq)), {AGGREGATES} FROM {} FINAL WHERE {} AND {} {FINAL_SETTINGS}",
            self.ticks_table(),
            instrument_condition(&query.instrument),
            range_condition("ts", query.range),
        );
        let found = rows(&self.inner.connections.read_client, &sql, |row| {
            // For an empty range the server returns the zero value of each type, which is not a valid
            // time of the domain.
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

#[cfg(test)]
mod tests {
    use super::super::read::time_literal;
    use super::*;

    #[test]
    fn the_bucket_origin_is_the_minimum_timestamp() {
        assert_eq!(BUCKET_ORIGIN, Timestamp::MIN.as_micros());
        assert_eq!(time_literal(Timestamp::MIN), "fromUnixTimestamp64Micro(345600000000, 'UTC')");
    }
}
