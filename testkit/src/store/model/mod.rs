//! The model: a store that is simple enough to verify by reading, and random histories that compare
//! other stores with it.
//!
//! - [`Model`] is a list of rows with linear scans and bars by schoolbook arithmetic. It shares no code
//!   with the memory store.
//! - A [`History`] is a list of steps on the datasets of this library and on a generated dataset with random columns.
//!   Its times lie within a minute, or within three days.
//! - [`run_history`] runs each step of a history on a store and on the model, and compares every response.
//! - [`compare`] runs a history on two stores.
//! - [`check_histories`] generates histories and shrinks a failing history to the shortest one.
//! - [`check_evolutions`] generates versions of a dataset, and values for them.

mod columns;
mod evolve;
mod generate;
mod plain;
mod run;

use qi_core::Datasets;
use qi_core::record::{Dataset, Owner, RecordVec, Series, SeriesKey, SeriesType};
use qi_core::store::DeleteQuery;
use qi_core::{Instrument, Interval, Scope, TimeRange, Timestamp};

use columns::values_of;
pub use columns::{descriptions, value_of};
pub use evolve::check_evolutions;
pub use generate::{check_differences, check_histories, histories};
pub use plain::{Model, reference_bars};
pub use run::{compare, run_history};

/// A list of operations on a store with the given datasets.
#[derive(Debug, Clone)]
pub struct History {
    /// The datasets of the store.
    pub datasets: Datasets,
    /// The steps in their order.
    pub steps: Vec<Step>,
}

/// One operation on a store.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names are the operations of the port")]
pub enum Step {
    Insert(RecordVec),
    Delete(DeleteQuery),
    Purge(Dataset, Timestamp),
    /// Calls all read methods with pages of the given limit.
    Read(ReadParams),
}

/// The parameters of a call of all read methods.
#[derive(Debug, Clone)]
pub struct ReadParams {
    /// The time range of the reads.
    pub range: TimeRange,
    /// True for newest first.
    pub descending: bool,
    /// The largest number of items in a page.
    pub limit: usize,
    /// The time at which a record must be known to count as the latest.
    pub as_of: Option<Timestamp>,
    /// The interval, for datasets with intervals.
    pub interval: Interval,
    /// The index of the owner.
    pub which: usize,
}

/// The instruments of the histories, in order.
const INSTRUMENTS: [&str; 3] = ["a:AB", "a-b:A-B", "a1:A.B"];
/// The scopes of the histories, in order.
const SCOPES: [&str; 3] = ["global", "asset:BTC", "exchange:a"];

/// The times and the intervals of a history. A bucket of the first interval holds few of the times, a bucket of the
/// last most of them.
#[derive(Debug, Clone, Copy)]
struct TimeScale {
    /// The unit of times, in microseconds.
    unit: i64,
    intervals: [Interval; 3],
}

/// All times lie within 66 s.
const SECONDS: TimeScale = TimeScale { unit: 500_000, intervals: [Interval::S1, Interval::S5, Interval::M1] };
/// The times lie in three days and two weeks, and two or three in each hour.
const HOURS: TimeScale =
    TimeScale { unit: 1_507_500_001, intervals: [Interval::H1, Interval::D1, Interval::W1] };

impl TimeScale {
    /// Returns a time `n` units after a fixed time, which is aligned to all intervals.
    fn moment(self, n: i64) -> Timestamp {
        Timestamp::from_micros(1_709_510_400_000_000 + n * self.unit).expect("a time of 2024")
    }
}

fn instrument(n: usize) -> Instrument {
    INSTRUMENTS[n % INSTRUMENTS.len()].parse().expect("a valid name")
}

fn scope(n: usize) -> Scope {
    SCOPES[n % SCOPES.len()].parse().expect("a valid scope")
}

/// Returns the n-th owner of a dataset. All names are scopes.
fn owner(dataset: Dataset, n: usize) -> Owner {
    match dataset.series() {
        SeriesType::Instrument => Instrument::owner_key(&instrument(n)),
        SeriesType::Name { .. } => Scope::owner_key(&scope(n)),
    }
}

/// Returns the interval for series of a dataset, if the dataset has intervals.
fn interval_of(dataset: Dataset, interval: Interval) -> Option<Interval> {
    dataset.interval().map(|_| interval)
}

fn series(dataset: Dataset, n: usize, interval: Interval) -> SeriesKey {
    SeriesKey { owner: owner(dataset, n), interval: interval_of(dataset, interval) }
}

/// The environment variable with the number of random cases. It replaces the default of a test.
const CASES: &str = "QI_MODEL_CASES";

/// Returns the number of random cases of a test: the value of `QI_MODEL_CASES`, or `default` if the
/// variable is not set.
///
/// # Panics
/// If the value of the variable is not a number.
pub fn cases(default: u32) -> u32 {
    std::env::var(CASES).map_or(default, |count| count.parse().expect("QI_MODEL_CASES must be a number"))
}
