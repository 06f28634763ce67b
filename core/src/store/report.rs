//! What a store says of itself, of a write, of a range.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::{Sum18, Sum36};
use crate::record::{Dataset, Owner};
use crate::{Decimal, Error, ErrorKind, Instrument, Price, PriceTick, Quantity, Result, Timestamp};

/// Metadata about a store. Properties that only the server knows are None until a call has reached it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreInfo {
    /// The backend's word in the configuration: `memory`, `timescale`, ...
    pub backend: &'static str,
    /// The server's version.
    pub version: Option<String>,
    /// The server's edition, where it has several.
    pub edition: Option<String>,
    /// The largest batch that one insert takes; `insert_*_chunked` splits larger ones.
    pub max_batch: usize,
    /// The policies by which the store removes data automatically. Empty: none.
    pub retention: Vec<Retention>,
}

impl StoreInfo {
    /// The largest batch of one insert, of every backend: 1,000,000.
    pub const MAX_BATCH: usize = 1_000_000;

    /// The info of a backend that was not asked yet.
    pub fn new(backend: &'static str) -> Self {
        Self { backend, version: None, edition: None, max_batch: Self::MAX_BATCH, retention: Vec::new() }
    }

    /// Checks the size of a batch before any I/O.
    ///
    /// # Errors
    /// `InvalidInput` above `max_batch`.
    pub fn check_batch(&self, len: usize) -> Result<()> {
        if len <= self.max_batch {
            return Ok(());
        }
        let rule = format!("must hold at most {} records", self.max_batch);
        Err(Error::invalid("store.batch.size", "batch", len, rule).with_backend(self.backend))
    }
}

/// A rule by which a store removes records by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retention {
    /// Records whose time is older than this, of one dataset.
    Age(Dataset, Duration),
    /// All but the newest so many records of each series, of one dataset.
    RowsPerSeries(Dataset, usize),
}

/// The result of `ensure_schema`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SchemaReport {
    /// The version that the schema has now.
    pub version: u32,
    /// The steps that this call applied, in order; empty if the schema was there.
    pub applied: Vec<String>,
}

impl SchemaReport {
    /// The schema is at `version`, and this call applied these steps.
    pub fn new(version: u32, applied: Vec<String>) -> Self {
        Self { version, applied }
    }
}

/// The answer to `ping`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStatus {
    /// The duration of the round trip.
    pub round_trip: Duration,
    /// The server's version, where there is a server.
    pub version: Option<String>,
}

impl StoreStatus {
    /// A store that answered after `round_trip`.
    pub fn new(round_trip: Duration) -> Self {
        Self { round_trip, version: None }
    }
}

/// The result of an insert. It does not distinguish new records from replaced ones; that would need a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct InsertReport {
    /// The number of records in the batch.
    pub received: u64,
    /// The number of records that a later record of the same key in the batch replaced.
    pub duplicates_in_batch: u64,
}

impl InsertReport {
    /// A batch of `received` records of which `duplicates_in_batch` were replaced by later ones.
    pub fn new(received: usize, duplicates_in_batch: usize) -> Self {
        Self { received: received as u64, duplicates_in_batch: duplicates_in_batch as u64 }
    }

    /// Both reports as one.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            received: self.received + other.received,
            duplicates_in_batch: self.duplicates_in_batch + other.duplicates_in_batch,
        }
    }
}

/// An owner that has records, with the times of the first and the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesSummary {
    /// The owner of the series.
    pub owner: Owner,
    /// The time of the first record; of bars the open time.
    pub first: Timestamp,
    /// The time of the last record; of bars the open time.
    pub last: Timestamp,
}

impl SeriesSummary {
    /// Returns the summary of an instrument.
    ///
    /// # Errors
    /// `InvalidInput` for an owner that is no instrument.
    pub fn of_instrument(self) -> Result<InstrumentSummary> {
        match self.owner {
            Owner::Instrument(instrument) => {
                Ok(InstrumentSummary { instrument, first: self.first, last: self.last })
            }
            Owner::Name(name) => {
                Err(Error::invalid("store.series.owner", "owner", name, "must be an instrument"))
            }
        }
    }
}

/// An instrument that has records, with the times of the first and the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstrumentSummary {
    /// The instrument.
    pub instrument: Instrument,
    /// The time of the first record; of bars the open time.
    pub first: Timestamp,
    /// The time of the last record; of bars the open time.
    pub last: Timestamp,
}

/// One observed price and its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PricePoint {
    /// The time.
    pub ts: Timestamp,
    /// The order among ticks of one `ts`.
    pub seq: u64,
    /// The price.
    pub price: Price,
}

impl From<&PriceTick> for PricePoint {
    fn from(tick: &PriceTick) -> Self {
        Self { ts: tick.ts(), seq: tick.seq(), price: tick.price() }
    }
}

/// Figures over the ticks of a range, exact: sums are carried in 256 bits and rounded once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeStats {
    first: PricePoint,
    last: PricePoint,
    min: Price,
    max: Price,
    sums: Option<(Quantity, Sum36, Quantity)>,
    count: u64,
}

impl RangeStats {
    /// The figures as a store summed them: `sums` are the sum of the known quantities and the sum of price times
    /// quantity over the same ticks, None if no quantity is known.
    ///
    /// # Errors
    /// `OutOfRange` if a sum is 10²⁰ or more.
    pub fn new(
        first: PricePoint,
        last: PricePoint,
        (min, max): (Price, Price),
        sums: Option<(Sum18, Sum36)>,
        count: u64,
    ) -> Result<Self> {
        let sums = match sums {
            None => None,
            Some((volume, turnover)) => {
                Some((Quantity::new(volume.total()?)?, turnover, Quantity::new(turnover.total()?)?))
            }
        };
        Ok(Self { first, last, min, max, sums, count })
    }

    /// The figures of ticks that come in the order (ts, seq); None of none.
    ///
    /// # Errors
    /// `OutOfRange` if a sum is 10²⁰ or more.
    pub fn of<'a>(ticks: impl IntoIterator<Item = &'a PriceTick>) -> Result<Option<Self>> {
        let mut ticks = ticks.into_iter();
        let Some(head) = ticks.next() else { return Ok(None) };
        let (first, mut last) = (PricePoint::from(head), PricePoint::from(head));
        let (mut min, mut max, mut count, mut sums) = (first.price, first.price, 0, None);
        for tick in std::iter::once(head).chain(ticks) {
            last = tick.into();
            min = min.min(last.price);
            max = max.max(last.price);
            count += 1;
            if let Some(quantity) = tick.quantity() {
                let (volume, turnover): (Sum18, Sum36) = sums.unwrap_or_default();
                sums = Some((volume.plus(quantity)?, turnover.plus_product(last.price, quantity)?));
            }
        }
        Self::new(first, last, (min, max), sums, count).map(Some)
    }

    /// The first tick of the range.
    pub fn first(&self) -> PricePoint {
        self.first
    }

    /// The last tick of the range.
    pub fn last(&self) -> PricePoint {
        self.last
    }

    /// The lowest price.
    pub fn min(&self) -> Price {
        self.min
    }

    /// The highest price.
    pub fn max(&self) -> Price {
        self.max
    }

    /// The sum of the known quantities, in the base currency; None if none is known.
    pub fn volume(&self) -> Option<Quantity> {
        self.sums.map(|(volume, ..)| volume)
    }

    /// The sum of price times quantity, in the quote currency, rounded once, half away from zero, to 18 places.
    pub fn quote_volume(&self) -> Option<Quantity> {
        self.sums.map(|(.., shown)| shown)
    }

    /// The number of ticks.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The volume-weighted average price: the exact quote volume divided by the volume, rounded once. None if no
    /// quantity is known or their sum is 0.
    ///
    /// # Errors
    /// `OutOfRange` if it is 10²⁰ or more.
    pub fn vwap(&self) -> Result<Option<Decimal>> {
        self.sums.map_or(Ok(None), |(volume, turnover, _)| turnover.divided_by(volume))
    }

    /// Last price over first price, minus 1: a ratio, not a percentage. Rounded once to 18 places.
    ///
    /// # Errors
    /// `OutOfRange` if it is 10²⁰ or more.
    pub fn change(&self) -> Result<Decimal> {
        let out = || Error::new(ErrorKind::OutOfRange, "store.change.overflow", "change");
        let (open, close) = (self.first.price, self.last.price);
        // (close - open) / open equals close / open - 1 and is rounded once.
        let difference = close.get().checked_sub(open.get()).ok_or_else(out)?;
        difference
            .checked_div(open.get())
            .ok_or_else(|| out().with_context("open", open).with_context("close", close))
    }
}
