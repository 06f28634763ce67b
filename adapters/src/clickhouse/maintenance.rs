//! Maintenance of materialized bars. Every step can be repeated. One call at a time runs steps.
//!
//! A build removes only marks that have settled, and reads the ticks afterwards. Its bars therefore include the writes
//! that added these marks.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qi_core::store::kit::{LEVELS, StepSpan, level_table};
use qi_core::store::{MaintainRequest, MaintenanceReport};
use qi_core::{Instrument, Interval, Operation, PriceTick, Result, TimeRange, Timestamp};
use tokio::task::JoinError;

use super::bars::BUCKET_ORIGIN;
use super::connect::{execute, rows};
use super::error::{Cause, NO_PART};
use super::lease::Lease;
use super::marks::{MARK_COLUMNS, Mark, StaleRange, time};
use super::materialized::{self, SETTLE, STATE_TABLE};
use super::read::time_literal;
use super::store::ClickHouseStore;
use super::table::{TableLocation, instrument_condition, literal, read_time};

/// The minimum distance of the watermark from the server's clock, in microseconds, unless the request has an `until`.
/// Ticks after the announced watermark need no marks.
const DELAY_MICROS: i64 = 600_000_000;

/// The number of ticks below which the next step has twice the span.
const SMALL_STEP: u64 = 1_000_000;

/// The number of ticks above which the span of a step is halved.
const LARGE_STEP: u64 = 4_000_000;

/// The length above which a mark is rebuilt in steps.
const LONG_MARK: Duration = Duration::from_hours(1);

/// The maximum number of ranges of short marks that one step rebuilds.
const MAX_REBUILT: usize = 64;

/// The maximum number of marks that one step reads and removes. Each write adds a mark, so an hour may have many.
const MAX_READ: usize = 4_096;

/// Stands for the time of an announcement that may not be visible yet.
const NOT_DATED: &str = "toDateTime64('2299-12-31 00:00:00', 6, 'UTC')";

/// The time of a visible announcement.
const NOW: &str = "now64(6, 'UTC')";

/// The state that a call of `maintain` works on.
struct State {
    watermark: Timestamp,
    announced: Timestamp,
    /// The latest announced time whose time of announcement is recorded. It was visible before that time.
    dated: Timestamp,
    /// The latest announced time that every running write knows.
    settled: Timestamp,
    target: Timestamp,
}

impl ClickHouseStore {
    /// Runs the steps in a separate task. If the caller drops its future, a statement continues on the server, so the
    /// task completes its step and then ends the lease.
    pub(super) async fn maintain_all(&self, request: &MaintainRequest) -> Result<MaintenanceReport> {
        let caller = Arc::new(());
        let (store, request, waiting) = (self.clone(), *request, Arc::downgrade(&caller));
        let started = Instant::now();
        let task = tokio::spawn(async move {
            let is_over = || started.elapsed() >= request.budget || waiting.strong_count() == 0;
            store.with_permit(Operation::Maintain, store.maintain_checked(request.until, is_over)).await
        });
        let outcome = task.await;
        drop(caller);
        match outcome.map_err(JoinError::try_into_panic) {
            Ok(outcome) => outcome,
            Err(Ok(panic)) => resume_unwind(panic),
            Err(Err(_)) => Err(Cause::Closed.into_error(Operation::Maintain)),
        }
    }

    async fn maintain_checked(
        &self,
        until: Option<Timestamp>,
        is_over: impl Fn() -> bool,
    ) -> Result<MaintenanceReport, Cause> {
        if self.bars_state(true).await?.announced.is_none() {
            return Ok(MaintenanceReport::default());
        }
        self.check_bars_state(self.maintain_with_lease(until, is_over).await, true).await
    }

    async fn maintain_with_lease(
        &self,
        until: Option<Timestamp>,
        is_over: impl Fn() -> bool,
    ) -> Result<MaintenanceReport, Cause> {
        materialized::check_retention(&self.inner.connections, &self.inner.config).await?;
        let lease = self.take_lease(&is_over).await?;
        let mut report = MaintenanceReport::default();
        let mut state = self.maintenance_state(until).await?;
        if let Some(mut lease) = lease {
            let mut outcome = self.run_steps(&mut lease, until, (&mut state, &mut report), is_over).await;
            if outcome.is_ok() {
                outcome = self.check_lease(&lease).await;
            }
            // After any other error, a statement may still run on the server, so the lease is left to expire.
            let has_ended =
                |cause: &Cause| cause.is_server_error() || matches!(cause, Cause::ConcurrentChange);
            if outcome.as_ref().err().is_none_or(has_ended) {
                self.end_lease(&lease).await?;
            }
            outcome?;
        }
        let condition = format!("first < {}", state.watermark.as_micros());
        report.stale = self.count(&self.marks_query("count()", &condition)).await?;
        report.watermark = Some(state.watermark);
        report.target = Some(state.announced.max(state.target));
        Ok(report)
    }

    async fn run_steps(
        &self,
        lease: &mut Lease,
        until: Option<Timestamp>,
        (state, report): (&mut State, &mut MaintenanceReport),
        is_over: impl Fn() -> bool,
    ) -> Result<(), Cause> {
        let target = state.announced.max(state.target);
        if state.dated < target {
            // The first statement may become visible long after it has begun, so the second one records the time.
            self.insert_state(lease, target, NOT_DATED, Timestamp::MIN).await?;
            self.insert_state(lease, target, NOW, Timestamp::MIN).await?;
            *state = self.maintenance_state(until).await?;
        }
        let mut span = StepSpan::new(SMALL_STEP, LARGE_STEP);
        // New hours are built even if each rebuild fails on the server.
        let mut rebuilds = Ok(());
        loop {
            match self.rebuild_step(lease, state.watermark, &mut span).await {
                Ok(0) => break,
                Ok(removed) => report.rebuilt += removed,
                Err(cause) if cause.is_server_error() => {
                    rebuilds = Err(cause);
                    break;
                }
                Err(cause) => return Err(cause),
            }
            if is_over() {
                break;
            }
        }
        // A deletion from before the switch-on has no marks. The marks of a later one are kept until it ends.
        let is_early = format!(
            "create_time <= (SELECT min(announced_at) + toIntervalMicrosecond(greatest({}, max({SETTLE}))) FROM {})",
            self.inner.config.bars_settle.as_micros(),
            self.bars_table(STATE_TABLE)
        );
        if self.runs_deletion(&is_early).await? {
            return rebuilds;
        }
        // At least one step runs, even after long rebuilds.
        let mut is_first = true;
        while state.watermark < state.settled && (std::mem::take(&mut is_first) || !is_over()) {
            let start = self.first_tick(state.watermark, state.settled, span).await?;
            let end = self.step_end(None, start, state.settled, &mut span).await?;
            let range = (None, TimeRange::new(state.watermark, end)?);
            let ticks = self.build(lease, &[range], end).await?;
            self.insert_state(lease, state.announced, NOW, end).await?;
            span.adapt(ticks);
            state.watermark = end;
            report.ticks += ticks;
        }
        rebuilds
    }

    async fn maintenance_state(&self, until: Option<Timestamp>) -> Result<State, Cause> {
        let settle = self.inner.config.bars_settle.as_micros();
        let until = until.map_or_else(
            || format!("toUnixTimestamp64Micro(now64(6)) - {DELAY_MICROS}"),
            |until| until.as_micros().to_string(),
        );
        let table = self.bars_table(STATE_TABLE);
        let sql = format!(
            "WITH assumeNotNull((SELECT greatest({settle}, max({SETTLE})) FROM {table})) AS bound \
             SELECT max(watermark), max(announced), maxIf(announced, announced_at <= now64(6)), \
             maxIf(announced, toUnixTimestamp64Micro(announced_at) + bound <= toUnixTimestamp64Micro(now64(6))), \
             {until} FROM {table}"
        );
        let found = rows(&self.inner.connections.read_client, &sql, |row| {
            let (watermark, announced) = (time(row.i64()?), time(row.i64()?));
            let (dated, settled) = (time(row.i64()?), time(row.i64()?));
            Ok(State { watermark, announced, dated, settled, target: Interval::H1.floor(time(row.i64()?)) })
        })
        .await?;
        found.into_iter().next().ok_or(Cause::ConcurrentChange)
    }

    /// Inserts an announced time and a watermark into the state. Does nothing if the lease is lost.
    async fn insert_state(
        &self,
        lease: &Lease,
        announced: Timestamp,
        announced_at: &str,
        watermark: Timestamp,
    ) -> Result<(), Cause> {
        let sql = format!(
            "INSERT INTO {} (announced, announced_at, watermark) SELECT {}, {announced_at}, {} FROM {}",
            self.bars_table(STATE_TABLE),
            announced.as_micros(),
            watermark.as_micros(),
            self.holding(lease)
        );
        execute(&self.inner.connections.bulk_client, &sql).await
    }

    /// Returns the first number of the result, or 0.
    pub(super) async fn count(&self, sql: &str) -> Result<u64, Cause> {
        let found = rows(&self.inner.connections.bulk_client, sql, |row| Ok(row.u64()?)).await?;
        Ok(found.first().copied().unwrap_or(0))
    }

    /// Returns the hour of the first tick or 1-minute bar of an instrument in a range. Without them, returns the end of
    /// the range.
    async fn first_change(
        &self,
        instrument: &Instrument,
        start: Timestamp,
        end: Timestamp,
    ) -> Result<Timestamp, Cause> {
        let sql = format!(
            "SELECT ts FROM (SELECT * FROM (SELECT ts FROM {} WHERE {} ORDER BY ts LIMIT 1) UNION ALL \
             SELECT * FROM (SELECT bucket AS ts FROM {} FINAL WHERE {} AND count > 0 ORDER BY bucket LIMIT 1)) \
             ORDER BY ts LIMIT 1",
            self.ticks_table(),
            within("ts", Some(instrument), start, end),
            self.bars_table(level_table(Interval::M1)),
            within("bucket", Some(instrument), start, end)
        );
        let found = rows(&self.inner.connections.bulk_client, &sql, read_time).await?;
        Ok(found.first().map_or(end, |first| Interval::H1.floor(*first).max(start)))
    }

    /// Returns the hour of the first tick of all instruments in a range. Without a tick, returns the end of the range.
    ///
    /// The key begins with the instrument. The search therefore skips months without parts, and reads spans that become
    /// longer.
    async fn first_tick(
        &self,
        start: Timestamp,
        end: Timestamp,
        mut span: StepSpan,
    ) -> Result<Timestamp, Cause> {
        let client = &self.inner.connections.bulk_client;
        let location = TableLocation::of(&self.inner.config);
        let mut at = start;
        while at < end {
            let sql = format!(
                "SELECT partition_id FROM {} WHERE active AND rows > 0 AND database = {} AND table = {} \
                 AND partition_id >= {} ORDER BY partition_id LIMIT 1",
                location.system_parts(),
                literal(location.database),
                literal(&location.local_name(PriceTick::DATASET.name())),
                literal(&month_of(at))
            );
            let months = rows(client, &sql, |row| start_of(row.text()?)).await?;
            let Some(month) = months.first() else { break };
            at = at.max(*month);
            let until = span.end(at).min(end);
            let sql = format!(
                "SELECT ts FROM {} WHERE {} ORDER BY ts LIMIT 1",
                self.ticks_table(),
                within("ts", None, at, until)
            );
            if let Some(first) = rows(client, &sql, read_time).await?.first() {
                return Ok(Interval::H1.floor(*first).max(start));
            }
            span.adapt(0);
            at = until;
        }
        Ok(end)
    }

    /// Builds the bars of some hours, and of the days before the watermark that these hours belong to. Returns the number
    /// of ticks.
    async fn build(
        &self,
        lease: &mut Lease,
        ranges: &[StaleRange],
        watermark: Timestamp,
    ) -> Result<u64, Cause> {
        let condition = |column: &str, unit: Interval| -> String {
            let one = |(instrument, range): &StaleRange| {
                let end = unit.ceil(range.end()).unwrap_or(Timestamp::MAX).min(unit.floor(watermark));
                let within = format!(
                    "{column} >= {} AND {column} < {}",
                    time_literal(unit.floor(range.start())),
                    time_literal(end)
                );
                match instrument {
                    None => format!("({within})"),
                    Some(instrument) => format!("({} AND {within})", instrument_condition(instrument)),
                }
            };
            ranges.iter().map(one).collect::<Vec<_>>().join(" OR ")
        };
        // If ticks were deleted after an interrupted step, the statement also empties bars in many months, so the
        // number of partitions is unlimited.
        let client =
            self.inner.connections.bulk_client.clone().with_setting("max_partitions_per_insert_block", "0");
        for (at, level) in LEVELS.into_iter().enumerate() {
            let (target, length) = (self.bars_table(level_table(level)), level.as_micros());
            let unit = level.max(Interval::H1);
            // A row of the level without a tick makes its bar empty: a bar with a count of 0.
            let (source, aggregates) = match at.checked_sub(1).map(|finer| LEVELS[finer]) {
                None => (
                    format!(
                        "SELECT exchange, symbol, ts, seq, price, quantity, 1 AS is_real FROM {} FINAL WHERE {}",
                        self.ticks_table(),
                        condition("ts", unit)
                    ),
                    TICK_AGGREGATES,
                ),
                Some(finer) => (
                    format!(
                        "SELECT *, 1 AS is_real FROM {} FINAL WHERE count > 0 AND ({})",
                        self.bars_table(level_table(finer)),
                        condition("bucket", unit)
                    ),
                    BAR_AGGREGATES,
                ),
            };
            let empty = match at {
                0 => {
                    "exchange, symbol, bucket AS ts, toUInt64(0) AS seq, toDecimal128(0, 18) AS price, \
                      CAST(NULL AS Nullable(Decimal(38, 18))) AS quantity, 0 AS is_real"
                }
                _ => "*, 0 AS is_real",
            };
            let column = if at == 0 { "ts" } else { "bucket" };
            let sql = format!(
                "INSERT INTO {target} SELECT exchange, symbol, fromUnixTimestamp64Micro(start, 'UTC'), {aggregates}, \
                 {} FROM (SELECT *, \
                 intDiv(toUnixTimestamp64Micro({column}) - {BUCKET_ORIGIN}, {length}) * {length} + {BUCKET_ORIGIN} AS start \
                 FROM ({source} UNION ALL SELECT {empty} FROM {target} FINAL WHERE count > 0 AND ({}))) \
                 GROUP BY exchange, symbol, start HAVING (SELECT count() FROM {}) > 0",
                lease.generation,
                condition("bucket", unit),
                self.holding(lease),
            );
            self.renew_lease(lease).await?;
            execute(&client, &sql).await?;
        }
        let sql = format!(
            "SELECT sum(count) FROM {} FINAL WHERE {}",
            self.bars_table(level_table(Interval::H1)),
            condition("bucket", Interval::H1)
        );
        self.count(&sql).await
    }

    /// Rebuilds the hours of some marks before the watermark. Returns the number of removed marks.
    async fn rebuild_step(
        &self,
        lease: &mut Lease,
        watermark: Timestamp,
        span: &mut StepSpan,
    ) -> Result<u64, Cause> {
        // Marks of all instruments are the first in the order of the table. The settings let the server stop its read in
        // this order after a few thousand rows.
        let condition = format!(
            "first < {} AND toUnixTimestamp64Micro(marked) + wait <= toUnixTimestamp64Micro(now64(6)) \
             ORDER BY exchange, symbol, first LIMIT {MAX_READ} \
             SETTINGS max_threads = 1, max_block_size = 1024",
            watermark.as_micros()
        );
        let sql = self.marks_query(MARK_COLUMNS, &condition);
        let marks = rows(&self.inner.connections.read_client, &sql, |row| {
            let (id, names) = (row.u64()?, (row.text()?.to_owned(), row.text()?.to_owned()));
            Ok(Mark { id, names, first: row.i64()?, until: row.i64()? })
        })
        .await?;
        let Some(mark) = marks.first() else { return Ok(0) };
        // A deletion may still run after its client disconnected, although its marks have settled. No mark is rebuilt
        // until all deletions are complete.
        if self.runs_deletion("1").await? {
            return Ok(0);
        }
        let is_long = |mark: &Mark| {
            mark.instrument().is_none() || time(mark.until).duration_since(time(mark.first)) > LONG_MARK
        };
        if is_long(mark) {
            // Without an instrument, and for names that no instrument has, all bars are rebuilt.
            let (instrument, first, limit) =
                (mark.instrument(), time(mark.first), time(mark.until).min(watermark));
            let start = if let Some(instrument) = &instrument {
                self.first_change(instrument, first, limit).await?
            } else {
                // The parts are listed before the ticks are read: bars of later ticks are in later parts.
                let parts = self.parts_from(first).await?;
                let first_tick = self.first_tick(first, limit, *span).await?;
                let (after, before) = (month_of(first), month_of(first_tick));
                let (dropped, mut left): (Vec<_>, Vec<_>) =
                    parts.into_iter().partition(|part| after < part.month && part.month < before);
                left.extend(self.drop_parts(lease, dropped).await?);
                // Months without parts have no bars.
                let oldest = left.iter().map(|part| &part.month).min();
                oldest.map_or(Ok(limit), |month| start_of(month))?.max(first).min(first_tick)
            };
            let end = self.step_end(instrument.as_ref(), start, limit, span).await?;
            // Before `start`, an interrupted step may have left hours and days without minutes.
            if first < end {
                let range = (instrument, TimeRange::new(first, end)?);
                span.adapt(self.build(lease, &[range], watermark).await?);
            }
            // The hours from the watermark on are built later, with this change.
            if end < limit {
                // With the same id, because the rest of a mark is not a change.
                let rest = Mark { first: end.as_micros(), until: limit.as_micros(), ..mark.clone() };
                self.insert_marks(&[rest], Duration::ZERO).await?;
            }
            self.remove_marks(&marks[..1], Some(lease)).await?;
            return Ok(1);
        }
        let (mut removed, mut stale) = (Vec::new(), Vec::<StaleRange>::new());
        for mark in marks {
            if is_long(&mark) {
                continue;
            }
            let (first, until) = (time(mark.first), time(mark.until).min(watermark));
            let range = (mark.instrument(), TimeRange::new(first, until.max(first))?);
            if !stale.contains(&range) {
                if stale.len() == MAX_REBUILT {
                    continue;
                }
                stale.push(range);
            }
            removed.push(mark);
        }
        self.build(lease, &stale, watermark).await?;
        self.remove_marks(&removed, Some(lease)).await?;
        Ok(removed.len() as u64)
    }

    /// Returns whether the server still runs a deletion of ticks that meets a condition.
    async fn runs_deletion(&self, condition: &str) -> Result<bool, Cause> {
        let location = TableLocation::of(&self.inner.config);
        let sql = format!(
            "SELECT count() FROM system.mutations \
             WHERE NOT is_done AND database = {} AND table = {} AND {condition}",
            literal(location.database),
            literal(&location.local_name(PriceTick::DATASET.name()))
        );
        Ok(self.count(&sql).await? > 0)
    }

    /// Returns the end of a step that begins at `start`, at most `limit`. Shortens the span of a step with many ticks.
    async fn step_end(
        &self,
        instrument: Option<&Instrument>,
        start: Timestamp,
        limit: Timestamp,
        span: &mut StepSpan,
    ) -> Result<Timestamp, Cause> {
        loop {
            let end = span.end(start).min(limit);
            let Some(most) = span.limit() else { return Ok(end) };
            let sql = format!(
                "SELECT count() FROM (SELECT 1 FROM {} WHERE {} LIMIT {})",
                self.ticks_table(),
                within("ts", instrument, start, end),
                most + 1
            );
            if self.count(&sql).await? <= most {
                return Ok(end);
            }
            span.halve();
        }
    }

    /// Returns the parts of all levels from the month of a time on, in the order of their rows.
    async fn parts_from(&self, first: Timestamp) -> Result<Vec<Part>, Cause> {
        let location = TableLocation::of(&self.inner.config);
        let mut parts = Vec::new();
        for level in LEVELS {
            let sql = format!(
                "SELECT name, partition_id FROM system.parts WHERE active AND rows > 0 AND database = {} AND table = {} \
                 AND partition_id >= {} ORDER BY partition_id, min_block_number",
                literal(location.database),
                literal(&location.table_name(level_table(level))),
                literal(&month_of(first))
            );
            parts.extend(
                rows(&self.inner.connections.bulk_client, &sql, |row| {
                    Ok(Part { level, name: row.text()?.to_owned(), month: row.text()?.to_owned() })
                })
                .await?,
            );
        }
        Ok(parts)
    }

    /// Drops parts of months without ticks, because a build would only empty their bars. Returns the parts that a merge
    /// has replaced; a build empties their bars.
    ///
    /// A later build adds parts of other names, so this is correct even after the lease has expired. Older parts are
    /// dropped first, and none after a part that is left: an empty bar is never dropped before the bar that it empties.
    async fn drop_parts(&self, lease: &mut Lease, parts: Vec<Part>) -> Result<Vec<Part>, Cause> {
        let mut left: Vec<Part> = Vec::new();
        for part in parts {
            if left.last().is_some_and(|last| (last.level, &last.month) == (part.level, &part.month)) {
                continue;
            }
            self.renew_lease(lease).await?;
            let table = self.bars_table(level_table(part.level));
            let drop = format!("ALTER TABLE {table} DROP PART {}", literal(&part.name));
            match execute(&self.inner.connections.bulk_client, &drop).await {
                Err(cause) if cause.has_code(NO_PART) => left.push(part),
                outcome => outcome?,
            }
        }
        Ok(left)
    }
}

/// A part of a level on the server.
struct Part {
    level: Interval,
    name: String,
    /// The year and the month, which is the id of its partition.
    month: String,
}

/// Returns the id of the partition of a time.
fn month_of(time: Timestamp) -> String {
    let text = time.to_string();
    text.chars().filter(char::is_ascii_digit).take(6).collect()
}

/// Returns the start of a month, at least the earliest time.
fn start_of(month: &str) -> Result<Timestamp, Cause> {
    let (year, month) = month.split_at_checked(4).unwrap_or((month, ""));
    let first: Timestamp = format!("{year}-{month}-05T00:00:00Z").parse()?;
    Ok(first.checked_sub(Interval::D1.duration() * 4).unwrap_or(Timestamp::MIN))
}

/// Returns the condition for the rows of an instrument, or of all instruments, in a range of a column.
fn within(column: &str, instrument: Option<&Instrument>, start: Timestamp, end: Timestamp) -> String {
    let of_instrument = instrument.map_or_else(|| "1".to_owned(), instrument_condition);
    format!("{of_instrument} AND {column} >= {} AND {column} < {}", time_literal(start), time_literal(end))
}

/// The columns of a level after the bucket, over ticks.
const TICK_AGGREGATES: &str = "argMinIf(price, (ts, seq), is_real = 1), maxIf(price, is_real = 1), \
    minIf(price, is_real = 1), argMaxIf(price, (ts, seq), is_real = 1), countIf(is_real = 1), \
    countIf(isNotNull(quantity)), sum(toDecimal256(ifNull(quantity, 0), 18)), \
    sum(toDecimal256(price, 18) * toDecimal256(ifNull(quantity, 0), 18)), \
    sum(toFloat64(ifNull(quantity, 0))), sum(toFloat64(price) * toFloat64(ifNull(quantity, 0)))";

/// The same over bars of a finer level.
const BAR_AGGREGATES: &str = "argMinIf(open, bucket, is_real = 1), maxIf(high, is_real = 1), \
    minIf(low, is_real = 1), argMaxIf(close, bucket, is_real = 1), sumIf(count, is_real = 1), \
    sumIf(quantities, is_real = 1), sumIf(volume, is_real = 1), sumIf(quote_volume, is_real = 1), \
    sumIf(volume_f, is_real = 1), sumIf(quote_volume_f, is_real = 1)";
