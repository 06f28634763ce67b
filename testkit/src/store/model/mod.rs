//! The model: a store so simple that it is right by reading it, and random histories that compare others to it.
//!
//! [`Model`] is a plain list of records with linear scans and bars by schoolbook arithmetic; it shares no code
//! with the memory store. A history is a list of steps; [`run_history`] plays one on a store beside the model and
//! compares every answer, [`compare`] plays one on two stores. [`check_histories`] draws histories and shrinks one
//! that fails to the shortest.

mod draw;
mod plain;
mod play;

use qi_core::store::{Dataset, DeleteQuery};
use qi_core::{Instrument, Interval, MarketSnapshot, Ohlcv, PriceTick, Quote, Scope, TimeRange, Timestamp};

pub use draw::{check_differences, check_histories, histories};
pub use plain::{Model, reference_bars};
pub use play::{compare, run_history};

/// One thing that is done to a store.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names are the operations of the port")]
pub enum Step {
    InsertTicks(Vec<PriceTick>),
    InsertQuotes(Vec<Quote>),
    InsertBars(Vec<Ohlcv>),
    InsertSnapshots(Vec<MarketSnapshot>),
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
    /// Bars of this interval.
    pub interval: Interval,
    /// Which of the instruments and scopes.
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

/// Half a second times `n` after a fixed moment that is aligned to every interval above.
fn moment(n: i64) -> Timestamp {
    Timestamp::from_micros(1_709_510_400_000_000 + n * 500_000).expect("a time of 2024")
}
