//! The summary of a job: a table for people, JSON for programs.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use qi_core::{Decimal, Instrument, Price};
use serde::Serialize;

use super::JobCounters;

/// The results of one instrument.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InstrumentRow {
    /// The instrument.
    pub instrument: Instrument,
    /// The number of published records. Repeated records count each time.
    pub published: u64,
    /// The number of records in the store.
    pub stored: u64,
    /// The latest price in the store.
    pub last_price: Option<Price>,
    /// The number of bars of the requested interval.
    pub bars: u64,
    /// The volume-weighted average price of the stored ticks.
    pub vwap: Option<Decimal>,
    /// The published records per second.
    pub per_second: f64,
}

impl InstrumentRow {
    pub(super) fn new(instrument: Instrument, published: u64) -> Self {
        Self { instrument, published, stored: 0, last_price: None, bars: 0, vwap: None, per_second: 0.0 }
    }
}

/// The results of a job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// True if the job was stopped before its end. The summary then has no rows.
    pub interrupted: bool,
    /// The number of records that the bus acknowledged.
    pub published: u64,
    /// The number of messages that were sent again because their outcome was unknown.
    pub resent: u64,
    /// The number of records in the store, over all rows. For an interrupted job, the number of records that its writer
    /// has stored, where a record that was received twice counts twice.
    pub stored: u64,
    /// The number of messages that could not be decoded.
    pub dead_letters: u64,
    /// The number of input lines without a valid record.
    pub bad_lines: u64,
    /// The time from the first record until the last one is stored, in seconds.
    pub seconds: f64,
    /// The published records per second.
    pub per_second: f64,
    /// The peak memory of the process in bytes, if the system reports it (Linux).
    pub peak_memory_bytes: Option<u64>,
    /// The rows of the instruments.
    pub instruments: Vec<InstrumentRow>,
}

impl Summary {
    pub(super) fn done(counters: &JobCounters, took: Duration, mut rows: Vec<InstrumentRow>) -> Self {
        let seconds = took.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = |records: u64| records as f64 / seconds.max(1e-9);
        for row in &mut rows {
            row.per_second = rate(row.published);
        }
        let per_second = rate(counters.published());
        Self {
            interrupted: false,
            published: counters.published(),
            resent: counters.resent(),
            stored: rows.iter().map(|row| row.stored).sum(),
            dead_letters: counters.dead_letters(),
            bad_lines: counters.bad_lines(),
            seconds,
            per_second,
            peak_memory_bytes: peak_memory(),
            instruments: rows,
        }
    }

    pub(super) fn interrupted(counters: &JobCounters, took: Duration) -> Self {
        Self { interrupted: true, stored: counters.stored(), ..Self::done(counters, took, Vec::new()) }
    }

    /// Returns the table for people.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_header(["instrument", "published", "stored", "last price", "bars", "vwap", "per second"]);
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        for row in &self.instruments {
            table.add_row([
                row.instrument.to_string(),
                row.published.to_string(),
                row.stored.to_string(),
                or_dash(row.last_price.map(|price| price.to_string())),
                row.bars.to_string(),
                or_dash(row.vwap.map(|vwap| vwap.to_string())),
                format!("{:.0}", row.per_second),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let Self { published, stored, resent, dead_letters, bad_lines, seconds, per_second, .. } = self;
        format!(
            "{table}\n{published} published, {stored} stored, {resent} sent again, {dead_letters} dead letters, \
             {bad_lines} bad lines\n{seconds:.2} s, {per_second:.0} records a second"
        )
    }
}

/// Returns the value of the line `VmHWM:  123 kB` of `/proc/self/status`, in bytes. Source: `proc_pid_status(5)`.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1_024)
}
