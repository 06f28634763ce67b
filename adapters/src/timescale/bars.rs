//! Bars and statistics derived from ticks. The server computes the sums, which are exact because `numeric` is exact.

use qi_core::domain::ExactSum;
use qi_core::store::kit::{BarPart, BarSums, BucketPlanner, LevelSource, add_sums, bucket_end, level_table};
use qi_core::store::{BarQuery, Order, Page, PricePoint, RangeStats, StatsQuery};
use qi_core::{Bar, Interval, Price, TimeRange, Timestamp};
use sqlx::postgres::types::PgInterval;
use sqlx::postgres::{PgArguments, PgRow, PgValueRef};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Postgres, Row, ValueRef};

use super::chunks::ChunkScan;
use super::connect::{PgConnection, PooledConnection};
use super::error::Cause;
use super::sql::RegisteredDataset;
use super::store::TimescaleStore;
use super::types::Pg;
use super::wire;

// Buckets count from a Monday, in integer arithmetic. One ordered array returns both the first and the last price.
macro_rules! short_buckets {
    ($direction:literal) => {
        concat!(
            "SELECT bucket, opening[1], high, low, opening[count], count, volume, turnover FROM (\
             SELECT date_bin($4, ts, TIMESTAMPTZ '1970-01-05 00:00:00+00') AS bucket, \
             array_agg(price ORDER BY ts, seq) AS opening, max(price) AS high, min(price) AS low, \
             count(*) AS count, sum(quantity) AS volume, sum(price * quantity) AS turnover \
             FROM {ticks} WHERE instrument_id = $1 AND ts >= $2 AND ts < $3 \
             GROUP BY bucket ORDER BY bucket ",
            $direction,
            " LIMIT $5) b ORDER BY bucket ",
            $direction
        )
    };
}

// Finds each bucket by its outer tick (the first or the last), and reads the ticks of one bucket at a time in the order
// of the key. Sorts nothing and keeps no prices, so its memory does not depend on the number of ticks.
macro_rules! long_buckets {
    ($order:literal, $opposite:literal, $next:literal, $open:literal, $close:literal) => {
        concat!(
            "WITH RECURSIVE b(bucket, outer_price, n) AS ((\
             SELECT date_bin($4, t.ts, TIMESTAMPTZ '1970-01-05 00:00:00+00'), t.price, 1 ",
            "FROM {ticks} t WHERE t.instrument_id = $1 AND t.ts >= $2 AND t.ts < $3 ORDER BY ",
            $order,
            " LIMIT 1) UNION ALL \
             SELECT x.bucket, x.price, b.n + 1 FROM b CROSS JOIN LATERAL (\
             SELECT date_bin($4, t.ts, TIMESTAMPTZ '1970-01-05 00:00:00+00') AS bucket, t.price ",
            "FROM {ticks} t WHERE t.instrument_id = $1 AND t.ts >= $2 AND t.ts < $3 AND ",
            $next,
            " ORDER BY ",
            $order,
            " LIMIT 1) x WHERE b.n < $5) \
             SELECT b.bucket, ",
            $open,
            ", s.high, s.low, ",
            $close,
            ", s.count, s.volume, s.turnover FROM b \
             CROSS JOIN LATERAL (SELECT max(t.price) AS high, min(t.price) AS low, count(*) AS count, \
             sum(t.quantity) AS volume, sum(t.price * t.quantity) AS turnover ",
            "FROM {ticks} t WHERE t.instrument_id = $1 AND t.ts >= $2 AND t.ts < $3 \
             AND t.ts >= b.bucket AND t.ts < b.bucket + $4) s \
             CROSS JOIN LATERAL (SELECT t.price ",
            "FROM {ticks} t WHERE t.instrument_id = $1 AND t.ts >= $2 AND t.ts < $3 \
             AND t.ts >= b.bucket AND t.ts < b.bucket + $4 ORDER BY ",
            $opposite,
            " LIMIT 1) i ORDER BY b.n"
        )
    };
}
const OLDEST_SHORT_BUCKETS: &str = short_buckets!("ASC");
const NEWEST_SHORT_BUCKETS: &str = short_buckets!("DESC");
const OLDEST_LONG_BUCKETS: &str = long_buckets!(
    "t.ts, t.seq",
    "t.ts DESC, t.seq DESC",
    "t.ts >= b.bucket + $4",
    "b.outer_price",
    "i.price"
);
const NEWEST_LONG_BUCKETS: &str =
    long_buckets!("t.ts DESC, t.seq DESC", "t.ts, t.seq", "t.ts < b.bucket", "i.price", "b.outer_price");

const FIRST_TICK: &str =
    "SELECT ts FROM {ticks} WHERE instrument_id = $1 AND ts >= $2 AND ts < $3 ORDER BY ts, seq LIMIT 1";
const LAST_TICK: &str = "SELECT ts FROM {ticks} WHERE instrument_id = $1 AND ts >= $2 AND ts < $3 ORDER BY ts DESC, seq DESC LIMIT 1";

const STATS: &str = "SELECT count(*), min(price), max(price), sum(quantity), sum(price * quantity) \
    FROM {ticks} WHERE instrument_id = $1 AND ts >= $2 AND ts < $3";
const LEVEL_STATS: &str = "SELECT coalesce(sum(count), 0)::bigint, min(low), max(high), sum(volume), sum(quote_volume), \
    min(bucket), max(bucket) FROM {schema}.{level} WHERE instrument_id = $1 AND bucket >= $2 AND bucket < $3";
const FIRST_POINT: &str = "SELECT ts, seq, price FROM {ticks} \
    WHERE instrument_id = $1 AND ts >= $2 AND ts < $3 ORDER BY ts, seq LIMIT 1";
const LAST_POINT: &str = "SELECT ts, seq, price FROM {ticks} \
    WHERE instrument_id = $1 AND ts >= $2 AND ts < $3 ORDER BY ts DESC, seq DESC LIMIT 1";

/// The interval from which the ticks are read bucket by bucket. A bucket costs three index probes, which is more than
/// sorting the few ticks of a short bucket.
const MIN_LONG_INTERVAL: Interval = Interval::H1;

/// The maximum number of chunks in the window of one statement.
const MAX_WINDOW_CHUNKS: i64 = 100;

/// The same for long intervals. Each probe may visit every chunk of the window.
const MAX_LONG_WINDOW_CHUNKS: i64 = 25;

impl TimescaleStore {
    /// Returns a page of derived bars, computed window by window. Skips a gap with a query for the next tick.
    pub(super) async fn derived_page(
        &self,
        connection: &mut PooledConnection,
        ticks: &RegisteredDataset,
        id: i32,
        query: &BarQuery,
    ) -> Result<Page<Bar>, Cause> {
        let mut planner = BucketPlanner::new(query)?;
        while let Some(window) = planner.window()? {
            let window =
                self.limit_to_chunks(connection, ticks, window, (query.interval, query.order)).await?;
            let rows = buckets_query(ticks, id, window, query, planner.wanted())
                .fetch_all(&mut **connection)
                .await?;
            for row in &rows {
                planner.push(bar_of(&bar_part(row)?, query, planner.is_on_page())?);
            }
            if let Some(rest) = planner.advance(window)? {
                planner.skip_to(self.next_tick(connection, (ticks, id), rest, query.order).await?)?;
            }
        }
        Ok(planner.page()?)
    }

    /// Returns the part of a window that lies in few chunks. The part ends between two buckets and contains
    /// at least one bucket.
    pub(super) async fn limit_to_chunks(
        &self,
        connection: &mut PgConnection<'_>,
        ticks: &RegisteredDataset,
        window: TimeRange,
        (interval, order): (Interval, Order),
    ) -> Result<TimeRange, Cause> {
        let chunks = &self.inner.cache.chunks;
        let max_chunks =
            if interval >= MIN_LONG_INTERVAL { MAX_LONG_WINDOW_CHUNKS } else { MAX_WINDOW_CHUNKS };
        let part = chunks.part(connection, ticks, window, order, max_chunks).await?;
        if part == window {
            return Ok(window);
        }
        let one = interval.duration();
        Ok(match order {
            Order::Ascending => {
                let shortest = window.start().checked_add(one).unwrap_or(Timestamp::MAX).min(window.end());
                TimeRange::new(window.start(), interval.floor(part.end()).max(shortest))?
            }
            Order::Descending => {
                let shortest = window.end().checked_sub(one).unwrap_or(Timestamp::MIN).max(window.start());
                TimeRange::new(
                    interval.ceil(part.start()).unwrap_or(window.end()).min(shortest),
                    window.end(),
                )?
            }
        })
    }

    /// Returns the time of the first tick in a range, in the given order.
    pub(super) async fn next_tick(
        &self,
        connection: &mut PgConnection<'_>,
        (ticks, id): (&RegisteredDataset, i32),
        range: TimeRange,
        order: Order,
    ) -> Result<Option<Timestamp>, Cause> {
        let statement = if order == Order::Ascending { FIRST_TICK } else { LAST_TICK };
        let mut scan = ChunkScan::new(range, order);
        while let Some(part) = scan.next(connection, &self.inner.cache.chunks, ticks).await? {
            let row = sqlx::query(in_schema(statement, ticks))
                .bind(id)
                .bind(Pg(part.start()))
                .bind(Pg(part.end()))
                .fetch_optional(&mut *connection)
                .await?;
            if let Some(row) = row {
                return Ok(Some(row.try_get::<Pg<Timestamp>, _>(0)?.0));
            }
        }
        Ok(None)
    }

    /// Returns the statistics over a range, computed in one snapshot.
    pub(super) async fn range_stats(
        &self,
        connection: &mut PooledConnection,
        ticks: &RegisteredDataset,
        id: i32,
        query: &StatsQuery,
    ) -> Result<Option<RangeStats>, Cause> {
        // The statements share a snapshot, because a concurrent deletion must not affect only some of them.
        let mut snapshot = connection.begin_snapshot().await?;
        let sources = self.stats_sources(&mut snapshot, id, query).await?;
        let tick_sources = sources.iter().filter(|source| source.level.is_none());
        let mut read_from_ticks: Vec<_> = tick_sources.map(|source| source.range).collect();
        let stats = self.aggregate_stats(&mut snapshot, (ticks, id), sources, &mut read_from_ticks).await?;
        self.inner.cache.chunks.check_unchanged(&mut snapshot, ticks, &read_from_ticks).await?;
        snapshot.rollback().await?;
        Ok(stats)
    }

    /// Computes the statistics in parts that touch few chunks each. Adds the ranges of the first and the last price, which
    /// are read from the ticks, even if all sums come from levels.
    async fn aggregate_stats(
        &self,
        connection: &mut PgConnection<'_>,
        (ticks, id): (&RegisteredDataset, i32),
        sources: Vec<LevelSource>,
        read_from_ticks: &mut Vec<TimeRange>,
    ) -> Result<Option<RangeStats>, Cause> {
        let mut sum: Option<Aggregates> = None;
        for LevelSource { range, level } in sources {
            let mut scan = ChunkScan::new(range, Order::Ascending);
            let mut rest = level.map(|_| range);
            loop {
                // A level has few rows, so it is one part.
                let part = match level {
                    Some(_) => rest.take(),
                    None => scan.next(connection, &self.inner.cache.chunks, ticks).await?,
                };
                let Some(part) = part else { break };
                let sql = match level {
                    Some(level) => self.in_bars_schema(&LEVEL_STATS.replace("{level}", level_table(level))),
                    None => in_schema(STATS, ticks),
                };
                let row = sqlx::query(sql)
                    .bind(id)
                    .bind(Pg(part.start()))
                    .bind(Pg(part.end()))
                    .fetch_one(&mut *connection)
                    .await?;
                let count = row.try_get::<i64, _>(0)?.cast_unsigned();
                if count == 0 {
                    continue;
                }
                let (first, part) = match level {
                    None => (part, part),
                    Some(level) => {
                        let bucket = |at| -> Result<TimeRange, Cause> {
                            let Pg(start): Pg<Timestamp> = row.try_get(at)?;
                            Ok(TimeRange::new(start, bucket_end(level, start))?)
                        };
                        (bucket(5)?, bucket(6)?)
                    }
                };
                let (min, max) = (row.try_get::<Pg<Price>, _>(1)?.0, row.try_get::<Pg<Price>, _>(2)?.0);
                let sums = read_sums(&row, 3)?;
                sum = Some(match sum {
                    None => {
                        read_from_ticks.push(first);
                        let first = self.price_point(connection, FIRST_POINT, (ticks, id), first).await?;
                        Aggregates { first, part, min, max, sums, count }
                    }
                    Some(so_far) => Aggregates {
                        first: so_far.first,
                        part,
                        min: so_far.min.min(min),
                        max: so_far.max.max(max),
                        sums: add_sums(so_far.sums, sums)?,
                        count: so_far.count + count,
                    },
                });
            }
        }
        let Some(Aggregates { first, part, min, max, sums, count }) = sum else { return Ok(None) };
        read_from_ticks.push(part);
        let last = self.price_point(connection, LAST_POINT, (ticks, id), part).await?;
        Ok(Some(RangeStats::new(first, last, (min, max), sums, count)?))
    }

    /// Returns the sources of the statistics: the materialized hours of the range, and ticks for the rest.
    async fn stats_sources(
        &self,
        connection: &mut PgConnection<'_>,
        id: i32,
        query: &StatsQuery,
    ) -> Result<Vec<LevelSource>, Cause> {
        let StatsQuery { range, .. } = query;
        let of_ticks = |range| LevelSource { range, level: None };
        let start = Interval::H1.ceil(range.start()).unwrap_or(range.end());
        let end = Interval::H1.floor(range.end());
        if start >= end || !self.inner.cache.has_materialized_bars() {
            return Ok(vec![of_ticks(*range)]);
        }
        let hours = TimeRange::new(start, end)?;
        let mut sources = vec![of_ticks(TimeRange::new(range.start(), start)?)];
        sources.extend(self.sources(connection, id, hours, (Interval::D1, Order::Ascending)).await?);
        sources.push(of_ticks(TimeRange::new(end, range.end())?));
        sources.retain(|source| !source.range.is_empty());
        Ok(sources)
    }

    async fn price_point(
        &self,
        connection: &mut PgConnection<'_>,
        statement: &'static str,
        (ticks, id): (&RegisteredDataset, i32),
        part: TimeRange,
    ) -> Result<PricePoint, Cause> {
        let row = sqlx::query(in_schema(statement, ticks))
            .bind(id)
            .bind(Pg(part.start()))
            .bind(Pg(part.end()))
            .fetch_optional(&mut *connection)
            .await?;
        let Some(row) = row else {
            self.inner.cache.chunks.check_unchanged(connection, ticks, &[part]).await?;
            return Err(Cause::BarWithoutTicks);
        };
        Ok(PricePoint {
            ts: row.try_get::<Pg<Timestamp>, _>(0)?.0,
            seq: row.try_get::<Pg<u64>, _>(1)?.0,
            price: row.try_get::<Pg<Price>, _>(2)?.0,
        })
    }
}

/// Returns a statement with the name of the table.
fn in_schema(statement: &str, ticks: &RegisteredDataset) -> AssertSqlSafe<String> {
    AssertSqlSafe(statement.replace("{ticks}", ticks.table.relation()))
}

/// The statistics of the parts read so far.
struct Aggregates {
    first: PricePoint,
    /// The last part that contains ticks.
    part: TimeRange,
    min: Price,
    max: Price,
    sums: BarSums,
    count: u64,
}

/// Returns the query for the bars of a window, in parts if the window cuts buckets. Returns at most `wanted` buckets.
pub(super) fn buckets_query(
    ticks: &RegisteredDataset,
    id: i32,
    window: TimeRange,
    query: &BarQuery,
    wanted: usize,
) -> Query<'static, Postgres, PgArguments> {
    let statement = match (query.order, query.interval >= MIN_LONG_INTERVAL) {
        (Order::Ascending, false) => OLDEST_SHORT_BUCKETS,
        (Order::Descending, false) => NEWEST_SHORT_BUCKETS,
        (Order::Ascending, true) => OLDEST_LONG_BUCKETS,
        (Order::Descending, true) => NEWEST_LONG_BUCKETS,
    };
    sqlx::query(in_schema(statement, ticks))
        .bind(id)
        .bind(Pg(window.start()))
        .bind(Pg(window.end()))
        .bind(PgInterval { months: 0, days: 0, microseconds: query.interval.as_micros() })
        .bind(i64::try_from(wanted).unwrap_or(i64::MAX))
}

/// Reads the exact figures of a bar from a row.
pub(super) fn bar_part(row: &PgRow) -> Result<BarPart, Cause> {
    let price = |at| row.try_get::<Pg<Price>, _>(at).map(|price| price.0);
    Ok(BarPart {
        ts: row.try_get::<Pg<Timestamp>, _>(0)?.0,
        open: price(1)?,
        high: price(2)?,
        low: price(3)?,
        close: price(4)?,
        sums: read_sums(row, 6)?,
        count: row.try_get::<Pg<u64>, _>(5)?.0,
    })
}

/// Returns the bar of these figures. Rounds the volumes only if `is_on_page` is true.
pub(super) fn bar_of(part: &BarPart, query: &BarQuery, is_on_page: bool) -> Result<Bar, Cause> {
    let values = part.values(is_on_page)?;
    Ok(Bar::new(query.instrument.clone(), query.interval, part.ts, values)?)
}

/// Reads the sums of quantity and of price times quantity. Returns None if no quantity is known.
fn read_sums(row: &PgRow, at: usize) -> Result<BarSums, Cause> {
    let (volume, turnover) = (row.try_get_raw(at)?, row.try_get_raw(at + 1)?);
    if volume.is_null() || turnover.is_null() {
        return Ok(None);
    }
    Ok(Some((read_sum(&volume)?, read_sum(&turnover)?)))
}

/// Reads a sum. A sum beyond 256 bits is out of range as the largest sum is, and fails only the page of its bar.
fn read_sum<const PLACES: u32>(value: &PgValueRef<'_>) -> Result<ExactSum<PLACES>, Cause> {
    match wire::decode_sum(value.as_bytes().map_err(sqlx::Error::Decode)?) {
        Err(wire::NumericError::TooLarge) => Ok(ExactSum::MAX),
        sum => sum.map_err(|error| Cause::Sql(sqlx::Error::Decode(Box::new(error)))),
    }
}
