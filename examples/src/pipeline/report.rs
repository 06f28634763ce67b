//! What the job says at its end: a table for people, JSON for programs.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use qi_core::{Decimal, Instrument, Price};
use serde::Serialize;

use super::Tally;

/// What became of one instrument.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InstrumentRow {
    /// Which.
    pub instrument: Instrument,
    /// Records that were published, repeated ones each time.
    pub published: u64,
    /// Records that are in the store.
    pub stored: u64,
    /// The latest price in the store.
    pub last_price: Option<Price>,
    /// Bars of the wanted interval.
    pub bars: u64,
    /// The volume-weighted average price of the stored ticks.
    pub vwap: Option<Decimal>,
    /// Published records in a second.
    pub per_second: f64,
}

impl InstrumentRow {
    pub(super) fn new(instrument: Instrument, published: u64) -> Self {
        Self { instrument, published, stored: 0, last_price: None, bars: 0, vwap: None, per_second: 0.0 }
    }
}

/// What the whole job did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Whether it was stopped before its end; there are no rows then.
    pub interrupted: bool,
    /// Records that the bus acknowledged.
    pub published: u64,
    /// Messages that were sent again because their outcome was unknown.
    pub resent: u64,
    /// Records that are in the store, over all rows; of an interrupted job those that its writer has stored, what
    /// came twice counted twice.
    pub stored: u64,
    /// Messages that could not be decoded.
    pub dead_letters: u64,
    /// Input lines that hold no record.
    pub bad_lines: u64,
    /// From the first record to the last one stored, in seconds.
    pub seconds: f64,
    /// Published records in a second.
    pub per_second: f64,
    /// The most memory that the process has had so far, in bytes, where the system says it (Linux).
    pub peak_memory_bytes: Option<u64>,
    /// A row for each instrument.
    pub instruments: Vec<InstrumentRow>,
}

impl Summary {
    pub(super) fn done(tally: &Tally, took: Duration, mut rows: Vec<InstrumentRow>) -> Self {
        let seconds = took.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = |records: u64| records as f64 / seconds.max(1e-9);
        for row in &mut rows {
            row.per_second = rate(row.published);
        }
        let per_second = rate(tally.published());
        Self {
            interrupted: false,
            published: tally.published(),
            resent: tally.resent(),
            stored: rows.iter().map(|row| row.stored).sum(),
            dead_letters: tally.dead_letters(),
            bad_lines: tally.bad_lines(),
            seconds,
            per_second,
            peak_memory_bytes: peak_memory(),
            instruments: rows,
        }
    }

    pub(super) fn interrupted(tally: &Tally, took: Duration) -> Self {
        Self { interrupted: true, stored: tally.stored(), ..Self::done(tally, took, Vec::new()) }
    }

    /// The table for people.
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

/// The line `VmHWM:  123 kB` of `/proc/self/status`, in bytes. Source: `proc_pid_status(5)`.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1_024)
}
