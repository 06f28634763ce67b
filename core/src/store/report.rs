//! Reports: metadata of a store, results of writes and pings, and figures over a range.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::{Sum18, Sum36};
use crate::record::{Dataset, Owner};
use crate::{Decimal, Error, ErrorKind, Instrument, Price, PriceTick, Quantity, Result, Timestamp};

/// Metadata about a store. Properties that only the server knows are None until a call has reached it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreInfo {
    /// The backend's name in the configuration: `memory`, `timescale`, ...
    pub backend: &'static str,
    /// The server's version.
    pub version: Option<String>,
    /// The server's edition, if the server has editions.
    pub edition: Option<String>,
    /// The largest batch that one insert accepts. The `insert_*_chunked` methods split larger batches.
    pub max_batch: usize,
    /// The policies by which the store removes data automatically. Empty if there are none.
    pub retention: Vec<Retention>,
}

impl StoreInfo {
    /// The largest batch of one insert on every backend: 1,000,000 records.
    pub const MAX_BATCH: usize = 1_000_000;

    /// Creates the info of a backend that no call has reached yet.
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

/// A policy by which a store removes records automatically.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retention {
    /// Removes records of a dataset that are older than this duration.
    Age(Dataset, Duration),
    /// Keeps only this number of newest records of each series of a dataset.
    RowsPerSeries(Dataset, usize),
}

/// The result of `ensure_schema`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SchemaReport {
    /// The current version of the schema.
    pub version: u32,
    /// The steps that this call applied, in order. Empty if the schema was complete.
    pub applied: Vec<String>,
    /// The settings of existing tables that differ from the configuration, which only `migrate_schema` changes.
    pub differs: Vec<String>,
}

impl SchemaReport {
    /// Creates the report of a schema at `version` to which this call applied the steps in `applied`.
    pub fn new(version: u32, applied: Vec<String>) -> Self {
        Self { version, applied, differs: Vec::new() }
    }
}

/// The result of [`PriceStore::maintain`](super::PriceStore::maintain).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct MaintenanceReport {
    /// The time before which bars are materialized, except for stale hours. None if the store materializes no bars.
    pub watermark: Option<Timestamp>,
    /// The time to which the announced watermark moves. Later than `watermark` while steps are left.
    pub target: Option<Timestamp>,
    /// The number of ticks from which this call materialized new hours.
    pub ticks: u64,
    /// The number of stale marks that this call removed by a rebuild of their hours.
    pub rebuilt: u64,
    /// The number of stale marks that are left.
    pub stale: u64,
}

impl MaintenanceReport {
    /// Returns whether no step is left: the watermark has reached the target, and no hour is stale.
    pub fn is_complete(&self) -> bool {
        self.watermark >= self.target && self.stale == 0
    }

    /// Returns whether the call did work: it materialized ticks, rebuilt hours, or moved the watermark beyond `earlier`, the
    /// watermark of the previous report.
    pub fn made_progress(&self, earlier: Option<Timestamp>) -> bool {
        self.ticks > 0 || self.rebuilt > 0 || self.watermark > earlier
    }
}

/// The result of `ping`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StorePingReport {
    /// The duration of the round trip.
    pub round_trip: Duration,
    /// The server's version, if the backend has a server.
    pub version: Option<String>,
}

impl StorePingReport {
    /// Creates the report of a ping that the store answered after `round_trip`.
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
    /// Creates the report of a batch of `received` records, of which later ones replaced `duplicates_in_batch`.
    pub fn new(received: usize, duplicates_in_batch: usize) -> Self {
        Self { received: received as u64, duplicates_in_batch: duplicates_in_batch as u64 }
    }

    /// Returns the sum of both reports.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        Self {
            received: self.received + other.received,
            duplicates_in_batch: self.duplicates_in_batch + other.duplicates_in_batch,
        }
    }
}

/// An owner that has records, with the times of the first and the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SeriesSummary {
    /// The owner of the series.
    pub owner: Owner,
    /// The time of the first record. For bars, the open time.
    pub first: Timestamp,
    /// The time of the last record. For bars, the open time.
    pub last: Timestamp,
}

impl SeriesSummary {
    /// Creates the summary of an owner, for authors of store adapters.
    pub fn new(owner: Owner, first: Timestamp, last: Timestamp) -> Self {
        Self { owner, first, last }
    }

    /// Returns the summary of an instrument.
    ///
    /// # Errors
    /// `InvalidInput` if the owner is not an instrument.
    pub fn of_instrument(self) -> Result<InstrumentSummary> {
        match self.owner {
            Owner::Instrument(instrument) => Ok(InstrumentSummary::new(instrument, self.first, self.last)),
            Owner::Name(name) => {
                Err(Error::invalid("store.series.owner", "owner", name, "must be an instrument"))
            }
        }
    }
}

/// An instrument that has records, with the times of the first and the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InstrumentSummary {
    /// The instrument.
    pub instrument: Instrument,
    /// The time of the first record. For bars, the open time.
    pub first: Timestamp,
    /// The time of the last record. For bars, the open time.
    pub last: Timestamp,
}

impl InstrumentSummary {
    /// Creates the summary of an instrument.
    pub fn new(instrument: Instrument, first: Timestamp, last: Timestamp) -> Self {
        Self { instrument, first, last }
    }
}

/// One observed price with its position in the series.
///
/// The struct is open on purpose, because store adapters create it with a literal. A new field is a breaking change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PricePoint {
    /// The time of the observation.
    pub ts: Timestamp,
    /// The sequence number among ticks of the same `ts`.
    pub seq: u64,
    /// The price at that time.
    pub price: Price,
}

impl From<&PriceTick> for PricePoint {
    fn from(tick: &PriceTick) -> Self {
        Self { ts: tick.ts(), seq: tick.seq(), price: tick.price() }
    }
}

/// Exact figures over the ticks of a range. Sums are carried in 256 bits and rounded once.
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
    /// Creates the figures from the sums of a store. `sums` are the sum of the known quantities, and the sum of price
    /// times quantity over the same ticks; None if no quantity is known.
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

    /// Computes the figures of ticks that arrive in the order (ts, seq). Returns None without ticks.
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

    /// Returns the first tick of the range.
    pub fn first(&self) -> PricePoint {
        self.first
    }

    /// Returns the last tick of the range.
    pub fn last(&self) -> PricePoint {
        self.last
    }

    /// Returns the lowest price.
    pub fn min(&self) -> Price {
        self.min
    }

    /// Returns the highest price.
    pub fn max(&self) -> Price {
        self.max
    }

    /// Returns the sum of the known quantities, in the base currency; None if none is known.
    pub fn volume(&self) -> Option<Quantity> {
        self.sums.map(|(volume, ..)| volume)
    }

    /// Returns the sum of price times quantity, in the quote currency, rounded once, half away from zero, to 18 places.
    /// None if no quantity is known.
    pub fn quote_volume(&self) -> Option<Quantity> {
        self.sums.map(|(.., shown)| shown)
    }

    /// Returns the number of ticks.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the volume-weighted average price: the exact quote volume divided by the volume, rounded once. None if
    /// no quantity is known or the quantities sum to 0.
    ///
    /// # Errors
    /// `OutOfRange` if the price is 10²⁰ or more.
    pub fn vwap(&self) -> Result<Option<Decimal>> {
        self.sums.map_or(Ok(None), |(volume, turnover, _)| turnover.divided_by(volume))
    }

    /// Returns last price over first price, minus 1. The result is a ratio, not a percentage,
    /// rounded once to 18 places.
    ///
    /// # Errors
    /// `OutOfRange` if the ratio is 10²⁰ or more.
    pub fn change(&self) -> Result<Decimal> {
        let out = || Error::new(ErrorKind::OutOfRange, "store.change.overflow", "change");
        let (open, close) = (self.first.price, self.last.price);
        // (close - open) / open equals close / open - 1, and rounds only once.
        let difference = close.decimal().checked_sub(open.decimal()).ok_or_else(out)?;
        difference
            .checked_div(open.decimal())
            .ok_or_else(|| out().with_context("open", open).with_context("close", close))
    }
}
