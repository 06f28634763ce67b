//! The announced watermark, and the stale marks.
//!
//! ClickHouse has no transactions, so the order of the requests replaces them. A writer reads the announced watermark,
//! adds stale marks for its hours before this time, and then sends its records. Maintenance uses an announced watermark,
//! or a mark, only [`ClickHouseConfig::bars_settle`](super::config::ClickHouseConfig::bars_settle) later. By then, most
//! writes that began earlier have ended. A write that takes longer adds its marks again before it is acknowledged.
//!
//! The state records the value of `bars_settle` when materialized bars were switched on. A writer uses the smaller, and
//! maintenance the larger, of its own and the recorded value.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use qi_core::{Instrument, Interval, TimeRange, Timestamp};

use super::connect::{execute, rows};
use super::error::{ACCESS_DENIED, Cause, NO_TABLE, VIOLATED_CONSTRAINT};
use super::lease::Lease;
use super::materialized::{SETTLE, STALE_TABLE, STATE_TABLE};
use super::store::{BarsState, ClickHouseStore};
use super::table::{TableLocation, literal};

/// The age after which a writer reads the announced watermark again.
const STATE_TTL: Duration = Duration::from_secs(5);

/// The maximum number of marks in one request.
const MAX_MARKS: usize = 5_000;

/// Hours whose bars are stale. Without an instrument, the hours of all instruments.
pub(super) type StaleRange = (Option<Instrument>, TimeRange);

impl ClickHouseStore {
    pub(super) fn bars_table(&self, name: &str) -> String {
        TableLocation::of(&self.inner.config).quoted_name(name)
    }

    /// Returns the state of the materialized bars. It may be as old as [`STATE_TTL`], unless `is_new` is true.
    pub(super) async fn bars_state(&self, is_new: bool) -> Result<BarsState, Cause> {
        let cache = &self.inner.bars_state;
        let cached = *cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = cached.filter(|state| !is_new && state.read_at.elapsed() < STATE_TTL) {
            return Ok(state);
        }
        let read_at = Instant::now();
        let sql = format!("SELECT max(announced), max({SETTLE}) FROM {}", self.bars_table(STATE_TABLE));
        let read = rows(&self.inner.connections.read_client, &sql, |row| Ok((row.i64()?, row.i64()?)));
        let found = match read.await {
            // Without the privilege to read the table, ticks are read, and the constraint rejects writes.
            Err(cause) if cause.has_code(NO_TABLE) || cause.has_code(ACCESS_DENIED) => None,
            found => found?.first().copied(),
        };
        let announced = found.map(|(announced, _)| time(announced));
        // Before the first announcement, the state has no row. Such a write adds its marks again.
        let recorded = found.map_or(0, |(_, settle)| settle.unsigned_abs());
        let settle = self.inner.config.bars_settle.min(Duration::from_micros(recorded));
        let state = BarsState { announced, settle, read_at };
        *cache.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
        Ok(state)
    }

    /// Replaces the error of a change that failed because materialized bars were switched on or off. `is_marked` is true
    /// if the change added marks.
    pub(super) async fn check_bars_state<T>(
        &self,
        outcome: Result<T, Cause>,
        is_marked: bool,
    ) -> Result<T, Cause> {
        let Err(cause) = &outcome else { return outcome };
        let is_unmarked = cause.has_code(VIOLATED_CONSTRAINT) && cause.to_string().contains("`qi_bars`");
        let has_no_marks = is_marked && cause.has_code(NO_TABLE);
        if is_unmarked || has_no_marks {
            let is_on = self.bars_state(true).await?.announced.is_some();
            // While materialized bars are switched, the constraint exists without the state.
            if is_unmarked || !is_on {
                return Err(Cause::ConcurrentChange);
            }
        }
        outcome
    }

    /// Adds marks. They settle after `wait`. Returns their ids.
    pub(super) async fn add_marks(&self, ranges: &[StaleRange], wait: Duration) -> Result<Vec<u64>, Cause> {
        let wait = wait.as_micros();
        let mut rng = qi_core::Rng::new();
        let mut ids = Vec::with_capacity(ranges.len());
        for part in ranges.chunks(MAX_MARKS) {
            let mut values = Vec::with_capacity(part.len());
            for (instrument, range) in part {
                let id = rng.u64(..);
                ids.push(id);
                let (exchange, symbol) = match instrument {
                    Some(instrument) => {
                        (literal(instrument.exchange().as_str()), literal(instrument.symbol().as_str()))
                    }
                    None => ("''".to_owned(), "''".to_owned()),
                };
                let (first, until) = full_hours(*range);
                values.push(format!("({id},{exchange},{symbol},{first},{until},{wait})"));
            }
            self.insert_marks(&format!(
                "(id, exchange, symbol, first, until, wait) VALUES {}",
                values.join(",")
            ))
            .await?;
        }
        Ok(ids)
    }

    /// Removes marks. Two removals of a mark are one removal. With a lease, does nothing after the lease has expired.
    pub(super) async fn remove_marks(&self, ids: &[u64], lease: Option<&Lease>) -> Result<(), Cause> {
        let source = lease.map_or_else(String::new, |lease| format!(" FROM {}", self.holding(lease)));
        for part in ids.chunks(MAX_MARKS) {
            let ids = part.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
            self.insert_marks(&format!("(id, sign) SELECT arrayJoin([{ids}]), -1{source}")).await?;
        }
        Ok(())
    }

    async fn insert_marks(&self, values: &str) -> Result<(), Cause> {
        let sql = format!("INSERT INTO {} {values}", self.bars_table(STALE_TABLE));
        execute(&self.inner.connections.bulk_client, &sql).await
    }

    /// Returns the query for the marks that were not removed, with these columns and conditions.
    pub(super) fn marks_query(&self, columns: &str, conditions: &str, having: &str) -> String {
        // The row of a removal has only the id, so a mark is complete only in its first row.
        format!(
            "SELECT {columns} FROM (SELECT id, anyIf(exchange, sign = 1) AS e, anyIf(symbol, sign = 1) AS s, \
             anyIf(first, sign = 1) AS f, anyIf(until, sign = 1) AS u, \
             anyIf(toUnixTimestamp64Micro(marked) + wait, sign = 1) AS settled FROM {} \
             GROUP BY id HAVING min(sign) = 1{having}) WHERE {conditions}",
            self.bars_table(STALE_TABLE)
        )
    }
}

/// Returns the full hours that a range touches, in microseconds.
fn full_hours(range: TimeRange) -> (i64, i64) {
    let until = Interval::H1.ceil(range.end()).unwrap_or(Timestamp::MAX);
    (Interval::H1.floor(range.start()).as_micros(), until.as_micros())
}

/// Returns a time of the state. A value outside the domain is the earliest time.
pub(super) fn time(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros).unwrap_or(Timestamp::MIN)
}
