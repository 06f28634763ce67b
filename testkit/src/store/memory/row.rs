//! What the memory store needs to know of a record beside [`Record`], and the state that holds the tables.

use qi_core::store::{Anchor, Dataset, Record};
use qi_core::{MarketSnapshot, Ohlcv, PriceTick, Quote, TimeRange, Timestamp};

use super::table::Table;

/// The place of a record in its series, the same type for every dataset: bars and snapshots have seq 0.
pub(super) type Spot = (Timestamp, u64);

/// A stretch of a series: from the first spot, included, to the second, excluded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) lo: Spot,
    pub(super) hi: Spot,
}

impl Window {
    pub(super) const ALL: Self = Self { lo: (Timestamp::MIN, 0), hi: (Timestamp::MAX, u64::MAX) };

    /// All records of a range of time.
    pub(super) fn of(range: TimeRange) -> Self {
        Self { lo: (range.start(), 0), hi: (range.end(), 0) }
    }

    /// All records of this moment and before.
    pub(super) fn up_to(time: Timestamp) -> Self {
        // A seq is at most i64::MAX.
        Self { hi: (time, u64::MAX), ..Self::ALL }
    }

    /// What remains of it after a cursor, oldest first.
    pub(super) fn after(self, anchor: &Anchor) -> Self {
        let past = |spot: Spot| (spot.0, spot.1 + 1);
        spot_of(anchor).map_or(self, |spot| Self { lo: self.lo.max(past(spot)), ..self })
    }

    /// What remains of it after a cursor, newest first.
    pub(super) fn before(self, anchor: &Anchor) -> Self {
        spot_of(anchor).map_or(self, |spot| Self { hi: self.hi.min(spot), ..self })
    }
}

fn spot_of(anchor: &Anchor) -> Option<Spot> {
    match anchor {
        // A forged cursor may hold any number; a true one's seq is at most i64::MAX.
        Anchor::Place(ts, seq) => Some((*ts, (*seq).min(u64::MAX - 1))),
        Anchor::Time(ts) => Some((*ts, 0)),
        Anchor::Start | Anchor::Instrument(_) | Anchor::Scope(_) => None,
    }
}

/// Everything that the store holds.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Whether `ensure_schema` has run.
    pub(super) schema: bool,
    /// The records of all tables.
    pub(super) rows: usize,
    pub(super) ticks: Table<PriceTick>,
    pub(super) quotes: Table<Quote>,
    pub(super) bars: Table<Ohlcv>,
    pub(super) snapshots: Table<MarketSnapshot>,
}

impl State {
    /// Removes what is too old, of every dataset.
    pub(super) fn expire(&mut self, cutoff: impl Fn(Dataset) -> Option<Timestamp>) {
        self.ticks.expire(cutoff(Dataset::Ticks), &mut self.rows);
        self.quotes.expire(cutoff(Dataset::Quotes), &mut self.rows);
        self.bars.expire(cutoff(Dataset::Bars), &mut self.rows);
        self.snapshots.expire(cutoff(Dataset::Snapshots), &mut self.rows);
    }
}

/// A record that the memory store keeps.
pub(super) trait Row: Record {
    /// Its place.
    fn spot(&self) -> Spot;
    /// Whether both belong to one series; cheaper than comparing two owned keys.
    fn same_series(&self, other: &Self) -> bool;
    /// Its table, and the count of all rows.
    fn parts(state: &mut State) -> (&mut Table<Self>, &mut usize);
}

macro_rules! row {
    ($record:ty, $table:ident, |$r:ident| $spot:expr, |$a:ident, $b:ident| $same:expr) => {
        impl Row for $record {
            fn spot(&self) -> Spot {
                let $r = self;
                $spot
            }
            fn same_series(&self, other: &Self) -> bool {
                let ($a, $b) = (self, other);
                $same
            }
            fn parts(state: &mut State) -> (&mut Table<Self>, &mut usize) {
                (&mut state.$table, &mut state.rows)
            }
        }
    };
}

row!(PriceTick, ticks, |r| (r.ts(), r.seq()), |a, b| a.instrument() == b.instrument());
row!(Quote, quotes, |r| (r.ts(), r.seq()), |a, b| a.instrument() == b.instrument());
row!(Ohlcv, bars, |r| (r.open_time(), 0), |a, b| a.interval() == b.interval()
    && a.instrument() == b.instrument());
row!(MarketSnapshot, snapshots, |r| (r.ts(), 0), |a, b| a.scope() == b.scope());
