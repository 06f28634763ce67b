//! The model: a store so simple that it is right by reading it, and random histories that compare others to it.
//!
//! [`Model`] is a plain list of rows with linear scans and bars by schoolbook arithmetic; it shares no code with the
//! memory store. A [`History`] is a list of steps on the datasets of this library and on one that is drawn, with random
//! columns. [`run_history`] plays it on a store beside the model and compares every answer, [`compare`] plays it on two
//! stores. [`check_histories`] draws histories and shrinks one that fails to the shortest. [`check_evolutions`] draws
//! versions of a dataset, and values of them.

mod columns;
mod draw;
mod evolve;
mod plain;
mod play;

use qi_core::Datasets;
use qi_core::record::{Dataset, Owner, RecordVec, Series, SeriesKey, SeriesType};
use qi_core::store::DeleteQuery;
use qi_core::{Instrument, Interval, Scope, TimeRange, Timestamp};

use columns::values_of;
pub use columns::{descriptions, value_of};
pub use draw::{check_differences, check_histories, histories};
pub use evolve::check_evolutions;
pub use plain::{Model, reference_bars};
pub use play::{compare, run_history};

/// A list of operations on a store that is opened with some datasets.
#[derive(Debug, Clone)]
pub struct History {
    /// The datasets.
    pub datasets: Datasets,
    /// The steps.
    pub steps: Vec<Step>,
}

/// One operation on a store.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names are the operations of the port")]
pub enum Step {
    Insert(RecordVec),
    Delete(DeleteQuery),
    Purge(Dataset, Timestamp),
    /// Reads everything that can be read, in pages of this limit.
    Look(Look),
}

/// A question to every reading method at once.
#[derive(Debug, Clone)]
pub struct Look {
    /// The range.
    pub range: TimeRange,
    /// True for newest first.
    pub descending: bool,
    /// The limit of a page.
    pub limit: usize,
    /// The moment of knowledge.
    pub as_of: Option<Timestamp>,
    /// The interval, for datasets with intervals.
    pub interval: Interval,
    /// The number of the owner.
    pub which: usize,
}

/// The instruments of the histories, in order.
const INSTRUMENTS: [&str; 3] = ["a:AB", "a-b:A-B", "a1:A.B"];
/// The scopes of the histories, in order.
const SCOPES: [&str; 3] = ["global", "asset:BTC", "exchange:a"];
/// The intervals of the histories: of one bucket some neighbours, of the other all.
const INTERVALS: [Interval; 3] = [Interval::S1, Interval::S5, Interval::M1];

fn instrument(n: usize) -> Instrument {
    INSTRUMENTS[n % INSTRUMENTS.len()].parse().expect("a valid name")
}

fn scope(n: usize) -> Scope {
    SCOPES[n % SCOPES.len()].parse().expect("a valid scope")
}

/// The n-th owner of a dataset. All names are scopes.
fn owner(dataset: Dataset, n: usize) -> Owner {
    match dataset.series() {
        SeriesType::Instrument => Instrument::owner_key(&instrument(n)),
        SeriesType::Name { .. } => Scope::owner_key(&scope(n)),
    }
}

/// The interval of the series of a dataset, if they have one.
fn interval_of(dataset: Dataset, interval: Interval) -> Option<Interval> {
    dataset.interval().map(|_| interval)
}

fn series(dataset: Dataset, n: usize, interval: Interval) -> SeriesKey {
    SeriesKey { owner: owner(dataset, n), interval: interval_of(dataset, interval) }
}

/// Half a second times `n` after a fixed moment that is aligned to every interval above.
fn moment(n: i64) -> Timestamp {
    Timestamp::from_micros(1_709_510_400_000_000 + n * 500_000).expect("a time of 2024")
}

/// The variable with the number of random cases, in place of the number that a test has by itself.
const CASES: &str = "QI_MODEL_CASES";

/// Returns the number of random cases of a test: `default`, unless `QI_MODEL_CASES` has a number.
///
/// # Panics
/// If the variable has no number.
pub fn cases(default: u32) -> u32 {
    std::env::var(CASES).map_or(default, |count| count.parse().expect("QI_MODEL_CASES must be a number"))
}
