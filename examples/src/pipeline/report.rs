//! The summary of a job: a table for people, JSON for programs.

use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
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

    /// Returns the table for people, at most 80 characters wide. The average price is rounded to the places of the last
    /// price and two more; the JSON has all places.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
        table.set_header(["instrument", "published", "stored", "last price", "bars", "vwap", "per second"]);
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        for row in &self.instruments {
            table.add_row([
                row.instrument.to_string(),
                row.published.to_string(),
                row.stored.to_string(),
                or_dash(row.last_price.map(|price| price.to_string())),
                row.bars.to_string(),
                or_dash(row.vwap.map(|vwap| rounded(vwap, row.last_price))),
                format!("{:.0}", row.per_second),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
            column.set_padding((1, 0));
        }
        let Self { published, stored, resent, dead_letters, bad_lines, seconds, per_second, .. } = self;
        format!(
            "{table}\n{published} published, {stored} stored, {resent} sent again\n{dead_letters} dead letters, \
             {bad_lines} bad lines\n{seconds:.2} s, {per_second:.0} records a second"
        )
    }
}

/// The width of the summary.
const WIDTH: u16 = 80;

/// Returns an average with two places more than a price.
fn rounded(average: Decimal, price: Option<Price>) -> String {
    let places =
        price.map_or(0, |price| price.to_string().split_once('.').map_or(0, |(_, places)| places.len()));
    let text = average.to_string();
    let Some(number) = text.parse::<f64>().ok().filter(|number| number.abs() < 1e9) else { return text };
    let rounded = format!("{number:.*}", places + 2);
    if rounded.len() < text.len() { rounded } else { text }
}

/// Returns the value of the line `VmHWM:  123 kB` of `/proc/self/status`, in bytes. Source: `proc_pid_status(5)`.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1_024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_summary_fits_80_columns() {
        let row = |instrument: &str, price: &str, vwap: &str| InstrumentRow {
            stored: 98_765_432_109,
            last_price: Some(price.parse().unwrap()),
            bars: 1_234_567,
            vwap: Some(vwap.parse().unwrap()),
            per_second: 1_234_567.8,
            ..InstrumentRow::new(instrument.parse().unwrap(), 98_765_432_109)
        };
        let rows = vec![
            row("binance:BTC-USDT", "42000.5", "42000.123456789012345678"),
            row("binance:1000SATS-USDT", "0.00000001", "0.000000012345678901"),
            row(
                &format!("a-long-exchange:{}", "X".repeat(60)),
                "12345678901234567890.123456789012345678",
                "1",
            ),
        ];
        let counters = JobCounters::default();
        for rows in [Vec::new(), rows[..1].to_vec(), rows] {
            let summary = Summary {
                published: 999_999_999_999,
                stored: 999_999_999_999,
                resent: 999_999_999_999,
                dead_letters: 999_999_999_999,
                bad_lines: 999_999_999_999,
                ..Summary::done(&counters, Duration::from_secs(9), rows)
            };
            let table = summary.table();
            assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
        }
        assert_eq!(
            rounded("42000.123456789".parse().unwrap(), Some("42000.5".parse().unwrap())),
            "42000.123"
        );
        assert_eq!(rounded("42000.1".parse().unwrap(), Some("42000.5".parse().unwrap())), "42000.1");
    }
}
