//! The four datasets, and what an adapter needs to know of a record of each.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Instrument, Interval, MarketSnapshot, Ohlcv, PriceTick, Quote, Result, Scope, Timestamp};

/// One of the four kinds of records that a store keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dataset {
    /// [`PriceTick`]
    Ticks,
    /// [`Quote`]
    Quotes,
    /// [`Ohlcv`]
    Bars,
    /// [`MarketSnapshot`]
    Snapshots,
}

impl Dataset {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Ticks, Self::Quotes, Self::Bars, Self::Snapshots];

    /// `ticks`, `quotes`, `bars`, `snapshots`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ticks => "ticks",
            Self::Quotes => "quotes",
            Self::Bars => "bars",
            Self::Snapshots => "snapshots",
        }
    }
}

impl fmt::Display for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Dataset {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|d| d.as_str() == text).ok_or_else(|| {
            Error::invalid("store.dataset", "dataset", text, "must be ticks, quotes, bars or snapshots")
        })
    }
}

/// What is common to the records of the four datasets: a series, and a place in it.
///
/// A record is found by its *series* (the instrument; for bars with the interval; for snapshots the scope) and
/// its *place* in that series ((ts, seq); for bars and snapshots the time alone). Together they are the key.
pub trait Record: Clone + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// What the record belongs to.
    type Series: Ord + Clone + fmt::Debug + Send + Sync;
    /// Where in its series it stands.
    type Place: Ord + Copy + fmt::Debug + Send + Sync;
    /// The dataset.
    const DATASET: Dataset;

    /// The series that it belongs to.
    fn series(&self) -> Self::Series;
    /// Its place in the series.
    fn place(&self) -> Self::Place;
    /// The time that ranges, purges and retention look at: `ts`, or the open time of a bar.
    fn time(&self) -> Timestamp;
    /// The time from which `as_of` sees it: `ts`, or the close time of a bar.
    fn known_at(&self) -> Timestamp {
        self.time()
    }
}

impl Record for PriceTick {
    type Series = Instrument;
    type Place = (Timestamp, u64);
    const DATASET: Dataset = Dataset::Ticks;

    fn series(&self) -> Instrument {
        self.instrument().clone()
    }
    fn place(&self) -> Self::Place {
        (self.ts(), self.seq())
    }
    fn time(&self) -> Timestamp {
        self.ts()
    }
}

impl Record for Quote {
    type Series = Instrument;
    type Place = (Timestamp, u64);
    const DATASET: Dataset = Dataset::Quotes;

    fn series(&self) -> Instrument {
        self.instrument().clone()
    }
    fn place(&self) -> Self::Place {
        (self.ts(), self.seq())
    }
    fn time(&self) -> Timestamp {
        self.ts()
    }
}

impl Record for Ohlcv {
    type Series = (Instrument, Interval);
    type Place = Timestamp;
    const DATASET: Dataset = Dataset::Bars;

    fn series(&self) -> Self::Series {
        (self.instrument().clone(), self.interval())
    }
    fn place(&self) -> Timestamp {
        self.open_time()
    }
    fn time(&self) -> Timestamp {
        self.open_time()
    }
    fn known_at(&self) -> Timestamp {
        self.close_time()
    }
}

impl Record for MarketSnapshot {
    type Series = Scope;
    type Place = Timestamp;
    const DATASET: Dataset = Dataset::Snapshots;

    fn series(&self) -> Scope {
        self.scope().clone()
    }
    fn place(&self) -> Timestamp {
        self.ts()
    }
    fn time(&self) -> Timestamp {
        self.ts()
    }
}
