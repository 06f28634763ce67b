//! Derived bars from materialized bars, and from ticks where no materialized bar is exact.
//!
//! A read first queries the watermark and the stale marks, then the levels and the ticks. A change that was acknowledged
//! before has its mark, or its hours were built again before the mark was removed.

use qi_core::domain::{Sum18, Sum36};
use qi_core::store::kit::{BarMerger, BarPart, BucketPlanner, LevelSource, level_sources, level_table};
use qi_core::store::{BarQuery, Order, Page};
use qi_core::{Bar, Decimal, Operation, TimeRange, Timestamp};

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
        let mut watermark = None;
        while let Some(window) = planner.window()? {
            let watermark = match watermark {
                Some(watermark) => watermark,
                None => *watermark.insert(self.watermark().await?),
            };
            let mut merger = BarMerger::new(query.interval, query.order);
            for source in self.sources(query, window, watermark).await? {
                if merger.len() > planner.wanted() {
                    break;
                }
                self.read_source(query, source, planner.wanted(), &mut merger).await?;
            }
            for part in merger.into_parts().into_iter().take(planner.wanted()) {
                planner.push(bar_of(&part, query, planner.is_on_page())?);
            }
            if let Some(rest) = planner.advance(window)? {
                planner.skip_to(self.next_tick(query, rest).await?)?;
            }
        }
        Ok(planner.page()?)
    }

    async fn watermark(&self) -> Result<Timestamp, Cause> {
        let sql = format!("SELECT max(watermark) FROM {}", self.bars_table(STATE_TABLE));
        let found = rows(&self.inner.connections.read_client, &sql, |row| Ok(row.i64()?)).await?;
        Ok(time(found.first().copied().unwrap_or(0)))
    }

    /// Returns the sources of a window. The watermark was read before: a mark that was removed since has current bars.
    async fn sources(
        &self,
        query: &BarQuery,
        window: TimeRange,
        watermark: Timestamp,
    ) -> Result<Vec<LevelSource>, Cause> {
        let (exchange, symbol) = (query.instrument.exchange().as_str(), query.instrument.symbol().as_str());
        let conditions = format!(
            "(exchange, symbol) IN (({}, {}), ('', '')) AND first < {} AND until > {}",
            literal(exchange),
            literal(symbol),
            window.end().as_micros(),
            window.start().as_micros()
        );
        let client = &self.inner.connections.read_client;
        let sql = self.marks_query("DISTINCT first, until", &conditions);
        let stale = rows(client, &sql, |row| Ok(TimeRange::new(time(row.i64()?), time(row.i64()?))?)).await?;
        Ok(level_sources(window, query.interval, watermark, &stale, query.order)?)
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
            merger.push(part)?;
        }
        Ok(())
    }
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
