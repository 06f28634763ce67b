//! The announced watermark, and the stale marks.
//!
//! ClickHouse has no transactions, so the order of the requests replaces them. A writer reads the announced watermark,
//! adds stale marks for its hours before this time, and then sends its records. Maintenance uses an announced watermark,
//! or a mark, only [`ClickHouseConfig::bars_settle`](super::config::ClickHouseConfig::bars_settle) later. By then, every
//! insert that uses an earlier state has ended: each insert carries a deadline, after which the server rejects it, and
//! has a time limit. The writer of a rejected insert reads the state again, adds its marks again, and sends it again. All
//! these times are those of the server.
//!
//! The state records the value of `bars_settle` when materialized bars were switched on. Marks and announcements settle
//! after the larger of the configured and the recorded value. The deadline of an insert uses the smaller value.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use qi_core::{Exchange, Instrument, Interval, Symbol, TimeRange, Timestamp};

use super::connect::{execute, rows};
use super::error::{ACCESS_DENIED, Cause, NO_TABLE, VIOLATED_CONSTRAINT};
use super::lease::Lease;
use super::materialized::{SETTLE, STALE_TABLE, STATE_TABLE, needs_marks, recorded_settle};
use super::store::{BarsState, ClickHouseStore};
use super::table::{TableLocation, literal};

/// The maximum age of a cached state.
const STATE_TTL: Duration = Duration::from_secs(5);

/// The maximum number of marks in one request.
pub(super) const MAX_MARKS: usize = 5_000;

/// The maximum number of removals in one request. They fit into the maximum query size of 256 KiB.
const MAX_REMOVALS: usize = 250;

/// Hours whose bars are stale. Without an instrument, the hours of all instruments.
pub(super) type StaleRange = (Option<Instrument>, TimeRange);

/// A stale mark.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    pub(super) id: u64,
    /// The exchange and the symbol. Empty for all instruments.
    pub(super) names: (String, String),
    /// The first hour, in microseconds.
    pub(super) first: i64,
    pub(super) until: i64,
}

impl Mark {
    /// Returns the instrument. None for all instruments, and for names that no instrument has.
    pub(super) fn instrument(&self) -> Option<Instrument> {
        Some(Instrument::new(Exchange::new(&self.names.0).ok()?, Symbol::new(&self.names.1).ok()?))
    }

    /// Returns the values of [`MARK_COLUMNS`].
    fn values(&self) -> String {
        let Self { id, names: (exchange, symbol), first, until } = self;
        format!("{id},{},{},{first},{until}", literal(exchange), literal(symbol))
    }
}

/// The columns that a mark and its removal have in common.
pub(super) const MARK_COLUMNS: &str = "id, exchange, symbol, first, until";

impl ClickHouseStore {
    pub(super) fn bars_table(&self, name: &str) -> String {
        TableLocation::of(&self.inner.config).quoted_name(name)
    }

    /// Returns the state of the materialized bars. It may be as old as [`STATE_TTL`], unless `is_new` is true.
    pub(super) async fn bars_state(&self, is_new: bool) -> Result<BarsState, Cause> {
        let (cache, config) = (&self.inner.bars_state, &self.inner.config);
        let limit = config.server_limits.statement_timeout;
        let cached = *cache.lock().unwrap_or_else(PoisonError::into_inner);
        // The deadline is at least one time limit later than the state, so half of it is left for the insert.
        let ttl = STATE_TTL.min(limit / 2);
        if let Some(state) = cached.filter(|state| !is_new && state.read_at.elapsed() < ttl) {
            return Ok(state);
        }
        let (read_at, mut is_denied) = (Instant::now(), false);
        let found = match self.read_bars_state().await {
            Err(cause) if cause.has_code(NO_TABLE) => None,
            // The server responds like this also if the table does not exist. Reads use the ticks then.
            Err(cause) if cause.has_code(ACCESS_DENIED) => {
                is_denied = needs_marks(&self.inner.connections, config).await?;
                None
            }
            found => found?,
        };
        let (now, announced, recorded) = found.unwrap_or_default();
        let (own, recorded) = (config.bars_settle, Duration::from_micros(recorded.unsigned_abs()));
        let settle = own.min(recorded);
        // The time limit does not cover the last step of an insert, so half of a large `bars_settle` is a margin.
        let left = settle.saturating_sub(limit).min(limit.max(settle / 2));
        let deadline = match i64::try_from(left.as_micros()) {
            Ok(left) if !settle.is_zero() => now.saturating_add(left),
            _ => i64::MAX,
        };
        let announced = found.map(|_| time(announced));
        let state = BarsState { announced, settle, wait: own.max(recorded), deadline, is_denied, read_at };
        *cache.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
        Ok(state)
    }

    /// Returns the state for a change of ticks. Fails if the ticks need marks and the user may not read the state.
    pub(super) async fn bars_state_of_change(&self) -> Result<BarsState, Cause> {
        let state = self.bars_state(false).await?;
        if !state.is_denied {
            return Ok(state);
        }
        // Fails with the error of the server, unless the privilege was granted meanwhile.
        self.read_bars_state().await?;
        self.bars_state(true).await
    }

    /// Reads the time of the server, the announced watermark and the recorded `bars_settle`.
    async fn read_bars_state(&self) -> Result<Option<(i64, i64, i64)>, Cause> {
        let state = self.bars_table(STATE_TABLE);
        // The server evaluates the expressions in this order, so the time is not later than the watermark.
        let sql = format!(
            "SELECT toUnixTimestamp64Micro(now64(6)), assumeNotNull((SELECT max(announced) FROM {state})), \
             assumeNotNull((SELECT toInt64(max({SETTLE})) FROM {state}))"
        );
        let client = &self.inner.connections.read_client;
        let found = rows(client, &sql, |row| Ok((row.i64()?, row.i64()?, row.i64()?))).await?;
        let Some(&(now, announced, recorded)) = found.first() else { return Ok(None) };
        // Before the first announcement, the state has no row.
        let recorded = match announced {
            0 => recorded_settle(&self.inner.connections, &self.inner.config).await?,
            _ => recorded,
        };
        Ok(Some((now, announced, recorded)))
    }

    /// Replaces the error of a change that failed because materialized bars were switched on or off, or because its insert
    /// began after the deadline. The state is read again then. `is_marked` is true if the change added marks.
    pub(super) async fn check_bars_state<T>(
        &self,
        outcome: Result<T, Cause>,
        is_marked: bool,
    ) -> Result<T, Cause> {
        let Err(cause) = &outcome else { return outcome };
        let is_rejected =
            cause.has_code(VIOLATED_CONSTRAINT) && cause.to_string().contains("Constraint `qi_bars");
        let has_no_marks = is_marked && cause.has_code(NO_TABLE);
        if is_rejected || has_no_marks {
            let is_on = self.bars_state(true).await?.announced.is_some();
            // While materialized bars are switched, the constraints exist without the state.
            if is_rejected || !is_on {
                return Err(Cause::ConcurrentChange);
            }
        }
        outcome
    }

    /// Adds marks. They settle after `wait`. Returns the marks.
    pub(super) async fn add_marks(&self, ranges: &[StaleRange], wait: Duration) -> Result<Vec<Mark>, Cause> {
        let mut rng = qi_core::Rng::new();
        let mark = |(instrument, range): &StaleRange| {
            let names = instrument.as_ref().map(|instrument| {
                (instrument.exchange().as_str().to_owned(), instrument.symbol().as_str().to_owned())
            });
            let (first, until) = full_hours(*range);
            Mark { id: rng.u64(..), names: names.unwrap_or_default(), first, until }
        };
        let marks: Vec<Mark> = ranges.iter().map(mark).collect();
        self.insert_marks(&marks, wait).await?;
        Ok(marks)
    }

    pub(super) async fn insert_marks(&self, marks: &[Mark], wait: Duration) -> Result<(), Cause> {
        let wait = wait.as_micros();
        for part in marks.chunks(MAX_MARKS) {
            let values: Vec<_> = part.iter().map(|mark| format!("({},{wait})", mark.values())).collect();
            self.insert_stale(&format!("({MARK_COLUMNS}, wait) VALUES {}", values.join(","))).await?;
        }
        Ok(())
    }

    /// Removes marks. Two removals of a mark are one removal. With a lease, does nothing after the lease has expired.
    pub(super) async fn remove_marks(&self, marks: &[Mark], lease: Option<&Lease>) -> Result<(), Cause> {
        let source = lease.map_or_else(String::new, |lease| format!(" FROM {}", self.holding(lease)));
        for part in marks.chunks(MAX_REMOVALS) {
            let values: Vec<_> = part.iter().map(|mark| format!("({})", mark.values())).collect();
            self.insert_stale(&format!(
                "({MARK_COLUMNS}, sign) WITH arrayJoin([{}]) AS m SELECT m.1, m.2, m.3, m.4, m.5, -1{source}",
                values.join(",")
            ))
            .await?;
        }
        Ok(())
    }

    async fn insert_stale(&self, values: &str) -> Result<(), Cause> {
        let sql = format!("INSERT INTO {} {values}", self.bars_table(STALE_TABLE));
        execute(&self.inner.connections.bulk_client, &sql).await
    }

    /// Returns the query for columns of the marks that were not removed, with a condition.
    pub(super) fn marks_query(&self, columns: &str, condition: &str) -> String {
        format!("SELECT {columns} FROM {} FINAL WHERE sign = 1 AND {condition}", self.bars_table(STALE_TABLE))
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
