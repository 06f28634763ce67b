//! The model: a store so simple that it is right by reading it, and random histories that compare others to it.
//!
//! [`Model`] is a plain list of rows with linear scans and bars by schoolbook arithmetic; it shares no code with the
//! memory store. A [`History`] is a list of steps on the datasets of this library and on one that is drawn, with random
//! columns. [`run_history`] plays it on a store beside the model and compares every answer, [`compare`] plays it on two
//! stores. [`check_histories`] draws histories and shrinks one that fails to the shortest.

mod columns;
mod draw;
mod plain;
mod play;

use qi_core::record::{Dataset, Datasets, Owner, RecordVec, Series, SeriesKey, SeriesType};
use qi_core::store::DeleteQuery;
use qi_core::{Instrument, Interval, Scope, TimeRange, Timestamp};

pub use columns::{descriptions, value_of};
pub use draw::{check_differences, check_histories, histories};
pub use plain::{Model, reference_bars};
pub use play::{compare, run_history};

/// What is done to a store, and with which datasets it is opened.
#[derive(Debug, Clone)]
pub struct History {
    /// The datasets.
    pub datasets: Datasets,
    /// The steps.
    pub steps: Vec<Step>,
}

/// One thing that is done to a store.
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
    /// In this range.
    pub range: TimeRange,
    /// Newest first.
    pub descending: bool,
    /// In pages of so many.
    pub limit: usize,
    /// As it was known then.
    pub as_of: Option<Timestamp>,
    /// Of datasets with intervals the series of this one.
    pub interval: Interval,
    /// Which of the owners.
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
