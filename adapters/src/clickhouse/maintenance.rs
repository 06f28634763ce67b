//! Maintenance of materialized bars. Every step can be repeated, and two maintainers can run at the same time.
//!
//! A bar has the time at which its build began, and the latest build wins. A build reads the ticks after the marks that
//! it removes have settled, so a later build includes the writes of all marks that earlier builds removed.

use std::time::{Duration, Instant};

use qi_core::store::kit::{LEVELS, StepSpan, level_table};
use qi_core::store::{MaintainRequest, MaintenanceReport};
use qi_core::{Exchange, Instrument, Interval, Symbol, TimeRange, Timestamp};

use super::bars::BUCKET_ORIGIN;
use super::connect::{execute, rows};
use super::error::Cause;
use super::marks::{StaleRange, time};
use super::materialized::STATE_TABLE;
use super::read::time_literal;
use super::store::ClickHouseStore;
use super::table::instrument_condition;

/// The time between the watermark and the clock of the server, in microseconds. Ticks that arrive within this time make
/// no marks.
const DELAY_MICROS: i64 = 600_000_000;

/// The numbers of ticks below which the span of the next step is doubled, and above which it is halved.
const SMALL_STEP: u64 = 1_000_000;
const LARGE_STEP: u64 = 4_000_000;

/// The maximum number of marks that one step removes.
const MAX_REBUILT: usize = 64;

/// The state that a call of `maintain` works on.
struct State {
    watermark: Timestamp,
    announced: Timestamp,
    /// The latest announced time that every running write knows.
    settled: Timestamp,
    target: Timestamp,
}

impl ClickHouseStore {
    pub(super) async fn maintain_all(&self, request: &MaintainRequest) -> Result<MaintenanceReport, Cause> {
        if self.bars_state(true).await?.announced.is_none() {
            return Ok(MaintenanceReport::default());
        }
        let started = Instant::now();
        let mut report = MaintenanceReport::default();
        let mut state = self.maintenance_state(request.until).await?;
        if state.announced < state.target {
            state.announced = state.target;
            self.insert_state(state.announced, Timestamp::MIN).await?;
            if self.inner.config.bars_settle.is_zero() {
                state.settled = state.announced;
            }
        }
        let mut span = StepSpan::new(SMALL_STEP, LARGE_STEP);
        loop {
            let rebuilt = self.rebuild_step(state.watermark, &mut span).await?;
            report.rebuilt += rebuilt;
            if rebuilt == 0 || started.elapsed() >= request.budget {
                break;
            }
        }
        while state.watermark < state.settled && started.elapsed() < request.budget {
            let start = self.first_tick(state.watermark, state.settled).await?;
            let end = span.end(start).min(state.settled);
            let range = (None, TimeRange::new(start, end)?);
            let ticks = self.build(std::slice::from_ref(&range), state.watermark, end).await?;
            self.insert_state(state.announced, end).await?;
            span.adapt(ticks);
            state.watermark = end;
            report.ticks += ticks;
        }
        let condition = format!("f < {}", state.watermark.as_micros());
        let sql = self.marks_query("count()", &condition, "");
        report.stale = rows(&self.inner.connections.read_client, &sql, |row| Ok(row.u64()?))
            .await?
            .first()
            .copied()
            .unwrap_or(0);
        report.watermark = Some(state.watermark);
        report.target = Some(state.announced);
        Ok(report)
    }

    async fn maintenance_state(&self, until: Option<Timestamp>) -> Result<State, Cause> {
        let settle = self.inner.config.bars_settle.as_micros();
        let until = until.map_or_else(
            || format!("toUnixTimestamp64Micro(now64(6)) - {DELAY_MICROS}"),
            |until| until.as_micros().to_string(),
        );
        let sql = format!(
            "SELECT max(watermark), max(announced), maxIf(announced, toUnixTimestamp64Micro(announced_at) + {settle} \
             <= toUnixTimestamp64Micro(now64(6))), {until} FROM {}",
            self.bars_table(STATE_TABLE)
        );
        let found = rows(&self.inner.connections.read_client, &sql, |row| {
            let (watermark, announced, settled) = (time(row.i64()?), time(row.i64()?), time(row.i64()?));
            Ok(State { watermark, announced, settled, target: Interval::H1.floor(time(row.i64()?)) })
        })
        .await?;
        found.into_iter().next().ok_or(Cause::ConcurrentChange { attempts: 1 })
    }

    async fn insert_state(&self, announced: Timestamp, watermark: Timestamp) -> Result<(), Cause> {
        let sql = format!(
            "INSERT INTO {} SELECT {}, now64(6, 'UTC'), {}",
            self.bars_table(STATE_TABLE),
            announced.as_micros(),
            watermark.as_micros()
        );
        execute(&self.inner.connections.bulk_client, &sql).await
    }

    /// Returns the hour of the first tick in a range, or the end of the range.
    async fn first_tick(&self, start: Timestamp, end: Timestamp) -> Result<Timestamp, Cause> {
        let sql = format!(
            "SELECT toUnixTimestamp64Micro(min(ts)), count() FROM {} WHERE ts >= {} AND ts < {}",
            self.ticks_table(),
            time_literal(start),
            time_literal(end)
        );
        let found =
            rows(&self.inner.connections.bulk_client, &sql, |row| Ok((row.i64()?, row.u64()?))).await?;
        let first = found.into_iter().find(|(_, count)| *count > 0);
        Ok(first.map_or(end, |(ts, _)| Interval::H1.floor(time(ts)).max(start)))
    }

    /// Builds the bars of some hours, and of the days before the watermark that these hours belong to. The first range
    /// also covers the time from `first` on, which has no ticks. Returns the number of ticks.
    async fn build(
        &self,
        ranges: &[StaleRange],
        first: Timestamp,
        watermark: Timestamp,
    ) -> Result<u64, Cause> {
        let condition = |column: &str, unit: Interval| -> String {
            let one = |(instrument, range): &StaleRange| {
                let start = if instrument.is_none() { first.min(range.start()) } else { range.start() };
                let end = unit.ceil(range.end()).unwrap_or(Timestamp::MAX).min(unit.floor(watermark));
                let within = format!(
                    "{column} >= {} AND {column} < {}",
                    time_literal(unit.floor(start)),
                    time_literal(end)
                );
                match instrument {
                    None => format!("({within})"),
                    Some(instrument) => format!("({} AND {within})", instrument_condition(instrument)),
                }
            };
            ranges.iter().map(one).collect::<Vec<_>>().join(" OR ")
        };
        let client = &self.inner.connections.bulk_client;
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
                 now64(9, 'UTC') FROM (SELECT *, \
                 intDiv(toUnixTimestamp64Micro({column}) - {BUCKET_ORIGIN}, {length}) * {length} + {BUCKET_ORIGIN} AS start \
                 FROM ({source} UNION ALL SELECT {empty} FROM {target} FINAL WHERE count > 0 AND ({}))) \
                 GROUP BY exchange, symbol, start",
                condition("bucket", unit),
            );
            execute(client, &sql).await?;
        }
        let sql = format!(
            "SELECT sum(count) FROM {} FINAL WHERE {}",
            self.bars_table(level_table(Interval::H1)),
            condition("bucket", Interval::H1)
        );
        Ok(rows(client, &sql, |row| Ok(row.u64()?)).await?.first().copied().unwrap_or(0))
    }

    /// Rebuilds the hours of some marks before the watermark. Returns the number of removed marks.
    async fn rebuild_step(&self, watermark: Timestamp, span: &mut StepSpan) -> Result<u64, Cause> {
        let condition = format!("f < {} ORDER BY e != '', f LIMIT {MAX_REBUILT}", watermark.as_micros());
        let settled = " AND settled <= toUnixTimestamp64Micro(now64(6))";
        let sql = self.marks_query("id, e, s, f, u", &condition, settled);
        let marks = rows(&self.inner.connections.read_client, &sql, |row| {
            let (id, exchange, symbol) = (row.u64()?, row.text()?.to_owned(), row.text()?.to_owned());
            let (first, until) = (time(row.i64()?), time(row.i64()?));
            let instrument = match exchange.as_str() {
                "" => None,
                exchange => Some(Instrument::new(
                    Exchange::new(exchange).map_err(Cause::Corrupt)?,
                    Symbol::new(symbol).map_err(Cause::Corrupt)?,
                )),
            };
            Ok((id, instrument, first, until))
        })
        .await?;
        let Some((id, instrument, first, until)) = marks.first().cloned() else { return Ok(0) };
        if instrument.is_none() {
            // A mark of all instruments may span years, so it is rebuilt in steps.
            let limit = until.min(watermark);
            let start = self.first_tick(first, limit).await?;
            let end = span.end(start).min(limit);
            let range = (None, TimeRange::new(start, end)?);
            span.adapt(self.build(&[range], first, watermark).await?);
            if end < until {
                self.add_marks(&[(None, TimeRange::new(end, until)?)], Duration::ZERO).await?;
            }
            self.remove_marks(&[id]).await?;
            return Ok(1);
        }
        let ranges = marks.iter().filter(|(_, instrument, ..)| instrument.is_some());
        let (mut ids, mut stale) = (Vec::new(), Vec::<StaleRange>::new());
        for (id, instrument, first, until) in ranges {
            ids.push(*id);
            let range = (instrument.clone(), TimeRange::new(*first, (*until).min(watermark).max(*first))?);
            if !stale.contains(&range) {
                stale.push(range);
            }
        }
        self.build(&stale, Timestamp::MAX, watermark).await?;
        self.remove_marks(&ids).await?;
        Ok(ids.len() as u64)
    }
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
