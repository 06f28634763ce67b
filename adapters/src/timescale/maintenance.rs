//! Maintenance of materialized bars. Each step is one transaction, so a call may be killed at any point.

use std::time::{Duration, Instant};

use qi_core::store::kit::{LEVELS, StepSpan, level_table};
use qi_core::store::{MaintainRequest, MaintenanceReport, Order};
use qi_core::{Interval, TimeRange, Timestamp};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::connect::{PgConnection, PooledConnection, Transaction};
use super::error::Cause;
use super::materialized;
use super::sql::RegisteredDataset;
use super::store::TimescaleStore;
use super::types::Pg;

/// The minimum distance of the watermark from the server's clock, unless the request has an `until`. Ticks after the
/// announced watermark need no marks.
const DELAY: &str = "10 minutes";

/// The number of ticks below which the next step has twice the span.
const SMALL_STEP: u64 = 500_000;

/// The number of ticks above which the span of a step is halved.
const LARGE_STEP: u64 = 2_000_000;

/// The maximum number of stale hours that one step rebuilds. Together they lie within [`REBUILD_SPAN`], so that the
/// statements open few chunks.
const MAX_REBUILT: i64 = 64;
const REBUILD_SPAN: &str = "168 hours";

// The table lock admits one maintainer at a time, and neither blocks readers nor writers. It is taken before the
// snapshot, so the snapshot sees the steps of all earlier maintainers. `SET` takes no snapshot. The limit of the wait is
// the limit of a step, because another maintainer may run a step.
const LOCK: &str = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = {bulk}; \
    LOCK TABLE {schema}.qi_bars_state IN SHARE UPDATE EXCLUSIVE MODE; \
    SET LOCAL statement_timeout = {bulk}; SET LOCAL lock_timeout = {lock}";

const STATE: &str = "SELECT watermark, announced, date_bin('1 hour', coalesce($1, now() - interval '{delay}'), \
    TIMESTAMPTZ '1970-01-05 00:00:00+00') FROM {schema}.qi_bars_state";

const ANNOUNCE: &str = "UPDATE {schema}.qi_bars_state SET announced = $1 WHERE announced < $1";

const WRITERS: &str = "SELECT DISTINCT virtualtransaction FROM pg_locks \
    WHERE locktype = 'relation' AND relation = '{schema}.qi_bars_stale'::regclass AND mode = 'RowExclusiveLock' \
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
    AND granted AND pid IS DISTINCT FROM pg_backend_pid()";

// The catalog of series may be too narrow until a writer has confirmed it, so each instrument is probed.
const FIRST_TICK: &str = "SELECT date_bin('1 hour', min(f.ts), TIMESTAMPTZ '1970-01-05 00:00:00+00') \
    FROM {schema}.instruments i CROSS JOIN LATERAL (SELECT t.ts FROM {schema}.ticks t \
    WHERE t.instrument_id = i.id AND t.ts >= $1 AND t.ts < $2 ORDER BY t.ts LIMIT 1) f";

/// The hour of the first bar of any instrument in a range.
const FIRST_BAR: &str = "SELECT min(f.bucket) FROM {schema}.instruments i CROSS JOIN LATERAL (\
    SELECT t.bucket FROM {schema}.qi_bars_1h t WHERE t.instrument_id = i.id AND t.bucket >= $1 AND t.bucket < $2 \
    ORDER BY t.bucket LIMIT 1) f";

const COUNT_TICKS: &str = "SELECT count(*) FROM (SELECT FROM {keys} CROSS JOIN LATERAL (\
    SELECT FROM {schema}.ticks t WHERE t.instrument_id = x.id AND {within}) f LIMIT {limit}) n";

/// The bars of a level below it, from the ticks of `{range}`. Reads the ticks of one instrument after the other.
const MINUTES: &str = "INSERT INTO {schema}.qi_bars_1m SELECT x.id, b.* FROM {keys} CROSS JOIN LATERAL (\
    SELECT date_bin('1 minute', t.ts, TIMESTAMPTZ '1970-01-05 00:00:00+00') AS bucket, \
    (array_agg(t.price ORDER BY t.ts, t.seq))[1], max(t.price), min(t.price), \
    (array_agg(t.price ORDER BY t.ts, t.seq))[count(*)], sum(t.quantity), sum(t.price * t.quantity), count(*) \
    FROM {schema}.ticks t WHERE t.instrument_id = x.id AND {within} GROUP BY 1) b";

const COARSER: &str = "INSERT INTO {schema}.{level} SELECT x.id, b.* FROM {keys} CROSS JOIN LATERAL (\
    SELECT date_bin('{length}', t.bucket, TIMESTAMPTZ '1970-01-05 00:00:00+00') AS bucket, \
    (array_agg(t.open ORDER BY t.bucket))[1], max(t.high), min(t.low), \
    (array_agg(t.close ORDER BY t.bucket DESC))[1], sum(t.volume), sum(t.quote_volume), sum(t.count)::bigint \
    FROM {schema}.{finer} t WHERE t.instrument_id = x.id AND {within} GROUP BY 1) b";

// The join with the instruments makes the key of the level usable, which begins with the instrument.
const REMOVE: &str = "DELETE FROM {schema}.{level} t USING {keys} WHERE t.instrument_id = x.id AND {within}";

// The oldest mark that begins before the watermark, of all instruments if there is one. Each part reads one entry of an
// index.
const OLDEST_MARK: &str = "SELECT * FROM (\
    (SELECT instrument_id, first, until FROM {schema}.qi_bars_stale WHERE instrument_id = 0 AND first < $1 \
    ORDER BY first LIMIT 1) UNION ALL \
    (SELECT instrument_id, first, until FROM {schema}.qi_bars_stale WHERE instrument_id > 0 AND first < $1 \
    ORDER BY first LIMIT 1)) m ORDER BY instrument_id LIMIT 1";

const MARKS: &str = "SELECT DISTINCT instrument_id, first FROM {schema}.qi_bars_stale \
    WHERE instrument_id > 0 AND first >= $1 AND first < least($2, $1 + interval '{span}') \
    ORDER BY first, instrument_id LIMIT $3";

const REMOVE_MARKS: &str = "DELETE FROM {schema}.qi_bars_stale m USING unnest($1::int[], $2::timestamptz[]) AS x(id, hour) \
    WHERE m.instrument_id = x.id AND m.first = x.hour";

// A mark that ends after the rebuilt hours is replaced by a mark for the rest.
const CUT_MARKS: &str = "WITH m AS (DELETE FROM {schema}.qi_bars_stale WHERE first >= $1 AND first < $2 \
    RETURNING instrument_id, until), rest AS (INSERT INTO {schema}.qi_bars_stale \
    SELECT DISTINCT instrument_id, $2, until FROM m WHERE until > $2) SELECT count(*) FROM m";

const STALE: &str =
    "SELECT count(*) FROM {schema}.qi_bars_stale, {schema}.qi_bars_state WHERE first < watermark";

/// The hours of all instruments.
const ALL: (&str, &str, &str) = (
    "(SELECT id FROM {schema}.instruments) x",
    "t.ts >= $1 AND t.ts < $2",
    "t.bucket >= $1 AND t.bucket < $2",
);

/// The hours of an array. The outer bounds exclude chunks when the statement is planned.
const KEYS: (&str, &str, &str) = (
    "unnest($1::int[], $2::timestamptz[]) AS x(id, hour)",
    "t.ts >= x.hour AND t.ts < x.hour + interval '1 hour' AND t.ts >= $3 AND t.ts < $4",
    "t.bucket >= x.hour AND t.bucket < x.hour + interval '{length}' AND t.bucket >= $3 AND t.bucket < $4",
);

/// Returns the length of a bucket. A number of days would depend on the time zone of the session.
const fn length(level: Interval) -> &'static str {
    match level {
        Interval::D1 => "24 hours",
        _ => "1 hour",
    }
}

/// The state of the materialized bars in a snapshot.
struct State {
    watermark: Timestamp,
    announced: Timestamp,
    target: Timestamp,
}

impl TimescaleStore {
    pub(super) async fn maintain_on(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        request: &MaintainRequest,
    ) -> Result<MaintenanceReport, Cause> {
        let started = Instant::now();
        let mut report = MaintenanceReport::default();
        let is_over = |started: Instant| started.elapsed() >= request.budget;
        materialized::check_retention(connection, &self.inner.config).await?;
        let announced = self.announce(connection, request).await?;
        let mut watermark = announced.watermark;
        if watermark < announced.announced {
            self.wait_for_writers(connection).await?;
        }
        let mut span = StepSpan::new(SMALL_STEP, LARGE_STEP);
        let mut failed = None;
        loop {
            match self.rebuild_step(connection, registered, &mut span).await {
                Ok(rebuilt) => {
                    report.rebuilt += rebuilt;
                    if rebuilt == 0 || is_over(started) {
                        break;
                    }
                }
                Err(cause) if cause.ends_connection() => return Err(cause),
                // A rebuild that fails in every call must not stop the watermark.
                Err(cause) => {
                    failed = Some(cause);
                    break;
                }
            }
        }
        // At least one step runs, even after a long wait for writers.
        while watermark < announced.announced && (report.ticks == 0 || !is_over(started)) {
            let ticks;
            (watermark, ticks) =
                self.advance_step(connection, registered, announced.announced, &mut span).await?;
            report.ticks += ticks;
        }
        self.mark_dropped(connection, registered).await?;
        if let Some(cause) = failed {
            return Err(cause);
        }
        report.stale = self.count_stale(connection).await?;
        report.watermark = Some(watermark);
        report.target = Some(announced.announced);
        Ok(report)
    }

    /// Begins a step. Its snapshot sees the steps of all earlier maintainers.
    async fn begin_step<'c>(&self, connection: &'c mut PooledConnection) -> Result<Transaction<'c>, Cause> {
        let limits = &self.inner.config.server_limits;
        let (bulk, lock) = (limits.bulk_timeout.as_millis(), limits.lock_timeout.as_millis());
        let sql = LOCK.replace("{bulk}", &bulk.to_string()).replace("{lock}", &lock.to_string());
        let mut step = connection.begin_repeatable_read().await?;
        sqlx::raw_sql(self.in_bars_schema(&sql)).execute(&mut *step).await?;
        Ok(step)
    }

    /// Returns the number of stale marks.
    async fn count_stale(&self, connection: &mut PooledConnection) -> Result<u64, Cause> {
        let mut transaction = connection.begin().await?;
        self.inner.connections.set_transaction_bulk_timeout(&mut transaction).await?;
        let count: i64 = sqlx::query_scalar(self.in_bars_schema(STALE)).fetch_one(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(count.cast_unsigned())
    }

    async fn state(&self, step: &mut PgConnection<'_>, until: Option<Timestamp>) -> Result<State, Cause> {
        let row = sqlx::query(self.in_bars_schema(&STATE.replace("{delay}", DELAY)))
            .bind(until.map(Pg))
            .fetch_one(step)
            .await?;
        let time = |at| row.try_get::<Pg<Timestamp>, _>(at).map(|time| time.0);
        Ok(State { watermark: time(0)?, announced: time(1)?, target: time(2)? })
    }

    /// Announces the time up to which this call materializes. Never announces an earlier time.
    async fn announce(
        &self,
        connection: &mut PooledConnection,
        request: &MaintainRequest,
    ) -> Result<State, Cause> {
        let mut step = self.begin_step(connection).await?;
        let mut state = self.state(&mut step, request.until).await?;
        if state.announced < state.target {
            sqlx::query(self.in_bars_schema(ANNOUNCE)).bind(Pg(state.target)).execute(&mut *step).await?;
            state.announced = state.target;
        }
        step.commit().await?;
        Ok(state)
    }

    /// Adds a mark for the hours before the oldest chunk if they have bars: `drop_chunks` by hand adds no mark. The next
    /// steps rebuild these hours from the ticks.
    async fn mark_dropped(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
    ) -> Result<(), Cause> {
        let chunks = &self.inner.cache.chunks;
        let Some(marked) = registered.marked.as_ref().filter(|_| chunks.are_hypertables()) else {
            return Ok(());
        };
        let mut step = self.begin_step(connection).await?;
        let Some(start) = chunks.oldest_start(&mut step, registered).await? else { return Ok(()) };
        let first_bar: Option<Pg<Timestamp>> = sqlx::query_scalar(self.in_bars_schema(FIRST_BAR))
            .bind(Pg(Timestamp::MIN))
            .bind(Pg(Interval::H1.floor(start)))
            .fetch_one(&mut *step)
            .await?;
        if first_bar.is_some() {
            marked.mark_before(&mut step, start).await?;
        }
        Ok(step.commit().await?)
    }

    /// Waits for the end of the transactions that may have read an earlier announced time.
    async fn wait_for_writers(&self, connection: &mut PooledConnection) -> Result<(), Cause> {
        const POLL_INTERVAL: Duration = Duration::from_millis(20);
        let started = Instant::now();
        let mut older: Option<Vec<String>> = None;
        loop {
            let mut running: Vec<String> =
                sqlx::query_scalar(self.in_bars_schema(WRITERS)).fetch_all(&mut **connection).await?;
            if let Some(older) = older {
                running.retain(|transaction| older.contains(transaction));
            }
            if running.is_empty() {
                return Ok(());
            }
            if started.elapsed() >= self.inner.config.server_limits.bulk_timeout {
                return Err(Cause::WritersRunning { count: running.len() });
            }
            older = Some(running);
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Materializes the next hours of all instruments, and moves the watermark behind them. Returns the new watermark and
    /// the number of ticks.
    async fn advance_step(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        announced: Timestamp,
        span: &mut StepSpan,
    ) -> Result<(Timestamp, u64), Cause> {
        let mut step = self.begin_step(connection).await?;
        let State { watermark, .. } = self.state(&mut step, None).await?;
        if watermark >= announced {
            step.rollback().await?;
            return Ok((watermark, 0));
        }
        let (start, limit) = self.first_tick(&mut step, registered, (watermark, announced)).await?;
        let end = self.step_end(&mut step, start, limit, span).await?;
        let ticks = self.materialize(&mut step, (watermark, start, end), end).await?;
        span.adapt(ticks);
        let range = TimeRange::new(watermark, end)?;
        self.inner.cache.chunks.check_unchanged(&mut step, registered, &[range]).await?;
        self.cut_marks(&mut step, watermark, end).await?;
        sqlx::query(self.in_bars_schema("UPDATE {schema}.qi_bars_state SET watermark = $1"))
            .bind(Pg(end))
            .execute(&mut *step)
            .await?;
        step.commit().await?;
        Ok((end, ticks))
    }

    /// Returns the hour of the first tick in the first chunks of a range, and the end of these chunks, which limits the
    /// step. Both are the end if these chunks have no ticks in the range.
    async fn first_tick(
        &self,
        step: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
        (start, end): (Timestamp, Timestamp),
    ) -> Result<(Timestamp, Timestamp), Cause> {
        let range = TimeRange::new(start, end)?;
        let part = self.limit_to_chunks(step, registered, range, (Interval::H1, Order::Ascending)).await?;
        let first: Option<Pg<Timestamp>> = sqlx::query_scalar(self.in_bars_schema(FIRST_TICK))
            .bind(Pg(part.start()))
            .bind(Pg(part.end()))
            .fetch_one(step)
            .await?;
        Ok((first.map_or(part.end(), |Pg(hour)| hour.max(start)), part.end()))
    }

    /// Returns the end of a step that begins at `start`, at most `limit`. Shortens the span of a step with many ticks.
    async fn step_end(
        &self,
        step: &mut PgConnection<'_>,
        start: Timestamp,
        limit: Timestamp,
        span: &mut StepSpan,
    ) -> Result<Timestamp, Cause> {
        loop {
            let end = span.end(start).min(limit);
            let Some(most) = span.limit() else { return Ok(end) };
            let (keys, within, _) = ALL;
            let count: i64 = sqlx::query_scalar(self.in_bars_schema(&count_ticks(keys, within, most)))
                .bind(Pg(start))
                .bind(Pg(end))
                .fetch_one(&mut *step)
                .await?;
            if count.cast_unsigned() <= most {
                return Ok(end);
            }
            span.halve();
        }
    }

    /// Adds the bars of the hours from `start` to `end` of all instruments, and the days before the watermark that these
    /// hours, or the hours from `first` on, belong to. Returns the number of ticks.
    async fn materialize(
        &self,
        step: &mut PgConnection<'_>,
        (first, start, end): (Timestamp, Timestamp, Timestamp),
        watermark: Timestamp,
    ) -> Result<u64, Cause> {
        let (keys, ticks_within, bars_within) = ALL;
        let minutes = MINUTES.replace("{keys}", keys).replace("{within}", ticks_within);
        let sql =
            format!("WITH m AS ({minutes} RETURNING count) SELECT coalesce(sum(count), 0)::bigint FROM m");
        let ticks: i64 = sqlx::query_scalar(self.in_bars_schema(&sql))
            .bind(Pg(start))
            .bind(Pg(end))
            .fetch_one(&mut *step)
            .await?;
        for pair in LEVELS.windows(2) {
            let (finer, level) = (pair[0], pair[1]);
            let until = level.ceil(end).unwrap_or(end).min(level.floor(watermark));
            sqlx::query(self.in_bars_schema(&coarser(level, finer, (keys, bars_within))))
                .bind(Pg(level.floor(first)))
                .bind(Pg(until))
                .execute(&mut *step)
                .await?;
        }
        Ok(ticks.cast_unsigned())
    }

    /// Rebuilds some stale hours before the watermark. Returns the number of removed marks.
    async fn rebuild_step(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        span: &mut StepSpan,
    ) -> Result<u64, Cause> {
        let mut step = self.begin_step(connection).await?;
        let State { watermark, .. } = self.state(&mut step, None).await?;
        let oldest = sqlx::query(self.in_bars_schema(OLDEST_MARK))
            .bind(Pg(watermark))
            .fetch_optional(&mut *step)
            .await?;
        let Some(oldest) = oldest else {
            step.rollback().await?;
            return Ok(0);
        };
        let (Pg(first), Pg(until)) = (oldest.try_get(1)?, oldest.try_get(2)?);
        let removed = match oldest.try_get::<i32, _>(0)? {
            0 => self.rebuild_range(&mut step, registered, (first, until), watermark, span).await?,
            _ => self.rebuild_hours(&mut step, registered, first, watermark).await?,
        };
        step.commit().await?;
        Ok(removed)
    }

    /// Rebuilds the first hours of a range of all instruments.
    async fn rebuild_range(
        &self,
        step: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
        (first, until): (Timestamp, Timestamp),
        watermark: Timestamp,
        span: &mut StepSpan,
    ) -> Result<u64, Cause> {
        let (first_tick, limit) = self.first_tick(step, registered, (first, until.min(watermark))).await?;
        let first_bar: Option<Pg<Timestamp>> = sqlx::query_scalar(self.in_bars_schema(FIRST_BAR))
            .bind(Pg(Interval::H1.floor(first)))
            .bind(Pg(limit))
            .fetch_one(&mut *step)
            .await?;
        let start = first_bar.map_or(first_tick, |Pg(hour)| hour.max(first).min(first_tick));
        let end = self.step_end(step, start, limit, span).await?;
        let (keys, _, within) = ALL;
        let remove = REMOVE.replace("{keys}", keys).replace("{within}", within);
        for level in LEVELS {
            sqlx::query(self.in_bars_schema(&remove.replace("{level}", level_table(level))))
                .bind(Pg(level.floor(first)))
                .bind(Pg(level.ceil(end).unwrap_or(end)))
                .execute(&mut *step)
                .await?;
        }
        let ticks = self.materialize(step, (first, start, end), watermark).await?;
        span.adapt(ticks);
        let range = TimeRange::new(first, end)?;
        self.inner.cache.chunks.check_unchanged(step, registered, &[range]).await?;
        self.cut_marks(step, first, end).await
    }

    /// Rebuilds the stale hours of instruments in the days after `first`.
    async fn rebuild_hours(
        &self,
        step: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
        first: Timestamp,
        watermark: Timestamp,
    ) -> Result<u64, Cause> {
        let rows = sqlx::query(self.in_bars_schema(&MARKS.replace("{span}", REBUILD_SPAN)))
            .bind(Pg(first))
            .bind(Pg(watermark))
            .bind(MAX_REBUILT)
            .fetch_all(&mut *step)
            .await?;
        let key =
            |row: &PgRow| Ok::<_, sqlx::Error>((row.try_get::<i32, _>(0)?, row.try_get::<Pg<_>, _>(1)?.0));
        let mut hours = rows.iter().map(key).collect::<Result<Vec<(i32, Timestamp)>, _>>()?;
        self.limit_to_ticks(step, first, &mut hours).await?;
        let mut finer = None;
        for level in LEVELS {
            // The minutes and the hours of a stale hour are built again, and the complete days with such an hour.
            let unit = level.max(Interval::H1);
            let mut keys: Vec<_> = hours.iter().map(|(id, hour)| (*id, unit.floor(*hour))).collect();
            keys.sort_unstable();
            keys.dedup();
            keys.retain(|(_, start)| end_of(unit, *start) <= watermark);
            let (from, ticks_within, bars_within) = KEYS;
            let bars_within = bars_within.replace("{length}", length(unit));
            let remove = REMOVE.replace("{level}", level_table(level));
            let build = match finer {
                None => MINUTES.replace("{keys}", from).replace("{within}", ticks_within),
                Some(finer) => coarser(level, finer, (from, &bars_within)),
            };
            let remove = remove.replace("{keys}", from).replace("{within}", &bars_within);
            let (ids, starts) = arrays(&keys);
            for sql in [remove, build] {
                sqlx::query(self.in_bars_schema(&sql))
                    .bind(&ids)
                    .bind(&starts)
                    .bind(Pg(unit.floor(first)))
                    .bind(Pg(keys.iter().map(|(_, start)| end_of(unit, *start)).max().unwrap_or(first)))
                    .execute(&mut *step)
                    .await?;
            }
            finer = Some(level);
        }
        let end = hours.last().map_or(first, |(_, hour)| end_of(Interval::H1, *hour));
        let range = TimeRange::new(first, end)?;
        self.inner.cache.chunks.check_unchanged(step, registered, &[range]).await?;
        let (ids, starts) = arrays(&hours);
        let removed =
            sqlx::query(self.in_bars_schema(REMOVE_MARKS)).bind(ids).bind(starts).execute(step).await?;
        Ok(removed.rows_affected())
    }

    /// Removes the last of some sorted hours, until the rest has few ticks or is one hour.
    async fn limit_to_ticks(
        &self,
        step: &mut PgConnection<'_>,
        first: Timestamp,
        hours: &mut Vec<(i32, Timestamp)>,
    ) -> Result<(), Cause> {
        let (keys, within, _) = KEYS;
        let sql = count_ticks(keys, within, LARGE_STEP);
        while hours.len() > 1 {
            let end = hours.last().map_or(first, |(_, hour)| end_of(Interval::H1, *hour));
            let (ids, starts) = arrays(hours);
            let count: i64 = sqlx::query_scalar(self.in_bars_schema(&sql))
                .bind(ids)
                .bind(starts)
                .bind(Pg(first))
                .bind(Pg(end))
                .fetch_one(&mut *step)
                .await?;
            if count.cast_unsigned() <= LARGE_STEP {
                break;
            }
            hours.truncate(hours.len() / 2);
        }
        Ok(())
    }

    /// Removes the marks of some hours of all instruments that the snapshot sees. Returns their number.
    async fn cut_marks(
        &self,
        step: &mut PgConnection<'_>,
        first: Timestamp,
        end: Timestamp,
    ) -> Result<u64, Cause> {
        let removed: i64 = sqlx::query_scalar(self.in_bars_schema(CUT_MARKS))
            .bind(Pg(first))
            .bind(Pg(end))
            .fetch_one(step)
            .await?;
        Ok(removed.cast_unsigned())
    }
}

/// Returns the statement that adds the bars of a level from the bars of a finer level.
fn coarser(level: Interval, finer: Interval, (keys, within): (&str, &str)) -> String {
    COARSER
        .replace("{level}", level_table(level))
        .replace("{finer}", level_table(finer))
        .replace("{length}", length(level))
        .replace("{keys}", keys)
        .replace("{within}", within)
}

/// Returns the statement that counts ticks up to one more than `most`.
fn count_ticks(keys: &str, within: &str, most: u64) -> String {
    COUNT_TICKS
        .replace("{keys}", keys)
        .replace("{within}", within)
        .replace("{limit}", &(most + 1).to_string())
}

/// Returns the parameters of [`KEYS`].
fn arrays(keys: &[(i32, Timestamp)]) -> (Vec<i32>, Vec<Pg<Timestamp>>) {
    keys.iter().map(|(id, start)| (*id, Pg(*start))).unzip()
}

fn end_of(unit: Interval, start: Timestamp) -> Timestamp {
    start.checked_add(unit.duration()).unwrap_or(Timestamp::MAX)
}
