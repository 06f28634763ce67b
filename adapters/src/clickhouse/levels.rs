//! Derived bars from materialized bars, and from ticks where no materialized bar is exact.
//!
//! A read first queries the watermark and the stale marks, then the levels and the ticks. A change that was acknowledged
//! before has its mark, or its hours were built again before the mark was removed.

use std::collections::HashSet;
use std::time::Instant;

use qi_core::domain::{Sum18, Sum36};
use qi_core::store::kit::{BarMerger, BarPart, BucketPlanner, LevelSource, level_sources, level_table};
use qi_core::store::{BarQuery, Order, Page};
use qi_core::{Bar, Decimal, Interval, Operation, TimeRange, Timestamp};

use super::bars::read_sums;
use super::connect::rows;
use super::error::Cause;
use super::marks::time;
use super::materialized::STATE_TABLE;
use super::read::{FINAL_SETTINGS, range_condition};
use super::store::ClickHouseStore;
use super::table::{instrument_condition, literal, read_price, read_time};
use super::wire::Reader;

impl ClickHouseStore {
    /// Returns a page of derived bars. Reads materialized bars where they are the exact result of the ticks.
    pub(super) async fn materialized_page(&self, query: &BarQuery) -> Result<Page<Bar>, Cause> {
        let mut planner = BucketPlanner::new(query)?;
        if planner.is_done() {
            // An empty range also queries the server, because only the server knows whether the schema exists.
            self.next_tick(query, TimeRange::new(query.range.start(), query.range.start())?).await?;
        }
        while let Some(window) = planner.window()? {
            let merger = self.read_window(query, window, planner.wanted()).await?;
            for part in merger.into_parts().into_iter().take(planner.wanted()) {
                planner.push(bar_of(&part, query, planner.is_on_page())?);
            }
            if let Some(rest) = planner.advance(window)? {
                planner.skip_to(self.next_tick(query, rest).await?)?;
            }
        }
        Ok(planner.page()?)
    }

    /// Reads the parts of a window. If a change was made while several statements read a bucket, one statement reads all
    /// ticks of such buckets.
    async fn read_window(
        &self,
        query: &BarQuery,
        window: TimeRange,
        wanted: usize,
    ) -> Result<BarMerger, Cause> {
        let BarQuery { interval, order, .. } = *query;
        let settle = self.bars_state(false).await?.settle;
        let started = Instant::now();
        let (watermark, marks) = self.stale_marks(query, window).await?;
        let stale = joined_in_buckets(interval, window, watermark, &marks)?;
        let sources = level_sources(window, interval, watermark, &stale, order)?;
        let begins_in_bucket =
            |source: &LevelSource| interval.floor(source.range.start()) != source.range.start();
        let is_divided = sources.iter().any(begins_in_bucket);
        let merger = self.read_sources(query, sources, wanted).await?;
        // Within half of `settle`, maintenance removes no mark that was added after the first query.
        let is_late = !settle.is_zero() && started.elapsed() >= settle / 2;
        if !is_divided && !is_late {
            return Ok(merger);
        }
        let known: HashSet<u64> = marks.iter().map(|(_, hash)| *hash).collect();
        let (later, marks) = self.stale_marks(query, window).await?;
        if !is_late && later >= watermark && marks.iter().all(|(_, hash)| known.contains(hash)) {
            return Ok(merger);
        }
        let mut stale = Vec::with_capacity(marks.len());
        for (range, _) in marks {
            let end = interval.ceil(range.end()).unwrap_or(Timestamp::MAX);
            stale.push(TimeRange::new(interval.floor(range.start()), end)?);
        }
        let sources = level_sources(window, interval, interval.floor(later), &stale, order)?;
        self.read_sources(query, sources, wanted).await
    }

    /// Returns the watermark, and the stale ranges of a window. The watermark is read first: a mark that was removed since
    /// has current bars. Each range has a hash of the ids of its marks.
    async fn stale_marks(
        &self,
        query: &BarQuery,
        window: TimeRange,
    ) -> Result<(Timestamp, Vec<(TimeRange, u64)>), Cause> {
        let client = &self.inner.connections.read_client;
        let sql = format!("SELECT max(watermark) FROM {}", self.bars_table(STATE_TABLE));
        let found = rows(client, &sql, |row| Ok(row.i64()?)).await?;
        let watermark = time(found.first().copied().unwrap_or(0));
        let (exchange, symbol) = (query.instrument.exchange().as_str(), query.instrument.symbol().as_str());
        let conditions = format!(
            "(exchange, symbol) IN (({}, {}), ('', '')) AND first < {} AND until > {} GROUP BY first, until",
            literal(exchange),
            literal(symbol),
            window.end().as_micros(),
            window.start().as_micros()
        );
        let sql = self.marks_query("first, until, sum(sipHash64(id))", &conditions);
        let marks =
            rows(client, &sql, |row| Ok((TimeRange::new(time(row.i64()?), time(row.i64()?))?, row.u64()?)))
                .await?;
        Ok((watermark, marks))
    }

    async fn read_sources(
        &self,
        query: &BarQuery,
        sources: Vec<LevelSource>,
        wanted: usize,
    ) -> Result<BarMerger, Cause> {
        let mut merger = BarMerger::new(query.interval, query.order);
        for source in sources {
            if merger.len() > wanted {
                break;
            }
            self.read_source(query, source, wanted, &mut merger).await?;
        }
        Ok(merger)
    }

    /// Reads the parts of a source. Reads at least the first `wanted` buckets of it.
    async fn read_source(
        &self,
        query: &BarQuery,
        LevelSource { range, level }: LevelSource,
        wanted: usize,
        merger: &mut BarMerger,
    ) -> Result<(), Cause> {
        let sql = match level {
            None => self.buckets_sql(query, range, wanted),
            Some(level) => format!(
                "SELECT bucket, open, high, low, close, count, quantities, volume, quote_volume, volume_f, quote_volume_f \
                 FROM {} FINAL WHERE {} AND {} AND count > 0 ORDER BY bucket {} LIMIT {} {FINAL_SETTINGS}",
                self.bars_table(level_table(level)),
                instrument_condition(&query.instrument),
                range_condition("bucket", range),
                if query.order == Order::Ascending { "ASC" } else { "DESC" },
                wanted.saturating_mul(
                    usize::try_from(query.interval.as_micros() / level.as_micros()).unwrap_or(1)
                ),
            ),
        };
        for part in rows(&self.inner.connections.read_client, &sql, read_part).await? {
            merger.push(part);
        }
        Ok(())
    }
}

/// Returns the ranges whose ticks are read: the stale ranges, and the time from the watermark on. Ranges that touch the
/// same bucket are joined, so one statement reads all ticks of a bucket that a running write may change.
fn joined_in_buckets(
    interval: Interval,
    window: TimeRange,
    watermark: Timestamp,
    marks: &[(TimeRange, u64)],
) -> Result<Vec<TimeRange>, Cause> {
    let mut ranges: Vec<_> = marks.iter().map(|(range, _)| (range.start(), range.end())).collect();
    ranges.extend((watermark < window.end()).then_some((watermark, window.end())));
    ranges.sort_unstable();
    let mut joined: Vec<TimeRange> = Vec::new();
    for (start, end) in ranges {
        match joined.last_mut() {
            Some(last) if interval.floor(start) < last.end() => {
                *last = TimeRange::new(last.start(), last.end().max(end))?;
            }
            _ => joined.push(TimeRange::new(start, end)?),
        }
    }
    Ok(joined)
}

/// Reads the figures of a bar: of a level, or of ticks.
fn read_part(row: &mut Reader<'_>) -> Result<BarPart, Cause> {
    let ts = read_time(row)?;
    let (open, high, low, close) = (read_price(row)?, read_price(row)?, read_price(row)?, read_price(row)?);
    let count = row.u64()?;
    let sums = match read_sums(row, Operation::DerivedBars)? {
        None => None,
        Some(Ok(sums)) => Some(sums),
        // The sum of this part stays above 1e20, so that only the page of its bar fails.
        Some(Err(_)) => Some(too_large()?),
    };
    Ok(BarPart { ts, open, high, low, close, sums, count })
}

/// Returns sums that are out of range, and far from the limit of 256 bits.
fn too_large() -> Result<(Sum18, Sum36), Cause> {
    let ten_to_19 = Decimal::from_int(1_000_000_000_000_000_000);
    let mut volume = Sum18::ZERO;
    for _ in 0..200 {
        volume = volume.plus(ten_to_19)?;
    }
    Ok((volume, Sum36::ZERO.plus_product(ten_to_19, ten_to_19)?))
}

fn bar_of(part: &BarPart, query: &BarQuery, is_on_page: bool) -> Result<Bar, Cause> {
    let values = part.values(is_on_page)?;
    Bar::new(query.instrument.clone(), query.interval, part.ts, values).map_err(Cause::Corrupt)
}
