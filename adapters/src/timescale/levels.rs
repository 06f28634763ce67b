//! Derived bars from materialized bars, and from ticks where no materialized bar is exact.
//!
//! A read is one snapshot over the watermark, the stale marks, the levels and the ticks.

use futures::TryStreamExt;
use qi_core::store::kit::{BarMerger, BucketPlanner, LevelSource, level_sources, level_table};
use qi_core::store::{BarQuery, Order, Page};
use qi_core::{Bar, Interval, TimeRange, Timestamp};
use sqlx::{AssertSqlSafe, Row};

use super::bars::{bar_of, bar_part, buckets_query};
use super::connect::{PgConnection, PooledConnection};
use super::error::Cause;
use super::sql::RegisteredDataset;
use super::store::TimescaleStore;
use super::types::Pg;

// `{schema}` is the quoted name of the schema. The mark of an instrument covers one hour, so its index bounds the scan.
const STATE: &str = "SELECT s.watermark, m.first, m.until FROM {schema}.qi_bars_state s LEFT JOIN (\
    SELECT first, until FROM {schema}.qi_bars_stale \
    WHERE instrument_id = $1 AND first < $3 AND first > $2 - interval '1 hour' \
    UNION SELECT first, until FROM {schema}.qi_bars_stale WHERE instrument_id = 0 AND first < $3 AND until > $2\
    ) m ON m.first < s.watermark";

// Volumes come last, where the query for ticks has them.
const BARS: &str = "SELECT bucket, open, high, low, close, count, volume, quote_volume FROM {schema}.{level} \
    WHERE instrument_id = $1 AND bucket >= $2 AND bucket < $3 ORDER BY bucket ";

impl TimescaleStore {
    /// Returns a page of derived bars. Reads materialized bars where they are the exact result of the ticks.
    pub(super) async fn materialized_page(
        &self,
        connection: &mut PooledConnection,
        ticks: &RegisteredDataset,
        id: i32,
        query: &BarQuery,
    ) -> Result<Page<Bar>, Cause> {
        let mut snapshot = connection.begin_snapshot().await?;
        let mut planner = BucketPlanner::new(query)?;
        let mut read_from_ticks = Vec::new();
        while let Some(window) = planner.window()? {
            let mut merger = BarMerger::new(query.interval, query.order);
            let sources = self.sources(&mut snapshot, id, window, (query.interval, query.order)).await?;
            for source in sources {
                if merger.len() > planner.wanted() {
                    break;
                }
                if source.level.is_none() {
                    read_from_ticks.push(source.range);
                }
                self.read_source(&mut snapshot, (ticks, id), source, (query, planner.wanted()), &mut merger)
                    .await?;
            }
            for part in merger.into_parts().into_iter().take(planner.wanted()) {
                planner.push(bar_of(&part, query, planner.is_on_page())?);
            }
            if let Some(rest) = planner.advance(window)? {
                let next = self.next_tick(&mut snapshot, (ticks, id), rest, query.order).await?;
                read_from_ticks.push(match (next, query.order) {
                    (None, _) => rest,
                    (Some(next), Order::Ascending) => TimeRange::new(rest.start(), next)?,
                    (Some(next), Order::Descending) => TimeRange::new(next, rest.end())?,
                });
                planner.skip_to(next)?;
            }
        }
        let page = planner.page()?;
        self.inner.cache.chunks.check_unchanged(&mut snapshot, ticks, &read_from_ticks).await?;
        snapshot.rollback().await?;
        Ok(page)
    }

    /// Returns the sources of a window, from the watermark and the marks of the snapshot.
    pub(super) async fn sources(
        &self,
        snapshot: &mut PgConnection<'_>,
        id: i32,
        window: TimeRange,
        (interval, order): (Interval, Order),
    ) -> Result<Vec<LevelSource>, Cause> {
        let rows = sqlx::query(self.in_bars_schema(STATE))
            .bind(id)
            .bind(Pg(window.start()))
            .bind(Pg(window.end()))
            .fetch_all(snapshot)
            .await?;
        let mut watermark = Timestamp::MIN;
        let mut stale = Vec::with_capacity(rows.len());
        for row in &rows {
            watermark = row.try_get::<Pg<Timestamp>, _>(0)?.0;
            if let (Some(Pg(first)), Some(Pg(until))) = (row.try_get(1)?, row.try_get(2)?) {
                stale.push(TimeRange::new(first, until)?);
            }
        }
        Ok(level_sources(window, interval, watermark, &stale, order)?)
    }

    /// Reads the parts of a source. Reads at least the first `wanted` buckets of it.
    async fn read_source(
        &self,
        snapshot: &mut PgConnection<'_>,
        (ticks, id): (&RegisteredDataset, i32),
        LevelSource { range, level }: LevelSource,
        (query, wanted): (&BarQuery, usize),
        merger: &mut BarMerger,
    ) -> Result<(), Cause> {
        let Some(level) = level else {
            return self.read_ticks(snapshot, (ticks, id), range, (query, wanted), merger).await;
        };
        let rows_per_bucket = query.interval.as_micros() / level.as_micros();
        let limit = i64::try_from(wanted).unwrap_or(i64::MAX).saturating_mul(rows_per_bucket);
        let direction = if query.order == Order::Ascending { "" } else { "DESC " };
        let sql = self
            .in_bars_schema(&format!("{}{direction}LIMIT $4", BARS.replace("{level}", level_table(level))));
        // A page has many times as many rows as bars, so each row is merged when it arrives.
        let mut rows = sqlx::query(sql)
            .bind(id)
            .bind(Pg(range.start()))
            .bind(Pg(range.end()))
            .bind(limit)
            .fetch(snapshot);
        while let Some(row) = rows.try_next().await? {
            merger.push(bar_part(&row)?);
        }
        Ok(())
    }

    /// Computes the parts of a source from the ticks, over a few chunks at a time.
    async fn read_ticks(
        &self,
        snapshot: &mut PgConnection<'_>,
        (ticks, id): (&RegisteredDataset, i32),
        mut rest: TimeRange,
        (query, wanted): (&BarQuery, usize),
        merger: &mut BarMerger,
    ) -> Result<(), Cause> {
        while !rest.is_empty() && merger.len() <= wanted {
            let part = self.limit_to_chunks(snapshot, ticks, rest, (query.interval, query.order)).await?;
            let rows = buckets_query(ticks, id, part, query, wanted).fetch_all(&mut *snapshot).await?;
            for row in &rows {
                merger.push(bar_part(row)?);
            }
            rest = match query.order {
                Order::Ascending => TimeRange::new(part.end(), rest.end())?,
                Order::Descending => TimeRange::new(rest.start(), part.start())?,
            };
        }
        Ok(())
    }

    /// Returns a statement with the name of the schema.
    pub(super) fn in_bars_schema(&self, statement: &str) -> AssertSqlSafe<String> {
        // The name was validated: letters, digits and underscores.
        AssertSqlSafe(statement.replace("{schema}", &format!("\"{}\"", self.inner.config.schema)))
    }
}
