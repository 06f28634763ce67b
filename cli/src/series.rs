//! The series of a store: what is copied and compared piece by piece.

use std::collections::BTreeSet;
use std::fmt;

use futures::TryStreamExt;
use qi_core::store::{
    BarQuery, Cursor, Dataset, InstrumentDataset, InstrumentQuery, LatestBarsQuery, LatestQuery, MAX_PAGE,
    Page, PriceStore, PriceStoreExt, RangeQuery, SnapshotQuery,
};
use qi_core::{
    Instrument, Interval, MarketSnapshot, Ohlcv, PriceTick, Quote, Result, Scope, Selection, TimeRange,
};
use serde::Serialize;

/// One series of one dataset. Displayed as `ticks binance:BTC-USDT`, `bars binance:BTC-USDT 1m`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Series {
    /// The ticks of an instrument.
    Ticks(Instrument),
    /// The quotes of an instrument.
    Quotes(Instrument),
    /// The stored bars of an instrument and an interval.
    Bars(Instrument, Interval),
    /// The snapshots of a scope.
    Snapshots(Scope),
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ticks(instrument) => write!(f, "ticks {instrument}"),
            Self::Quotes(instrument) => write!(f, "quotes {instrument}"),
            Self::Bars(instrument, interval) => write!(f, "bars {instrument} {interval}"),
            Self::Snapshots(scope) => write!(f, "snapshots {scope}"),
        }
    }
}

/// A page of records of one dataset.
#[derive(Debug)]
pub(crate) enum Records {
    Ticks(Vec<PriceTick>),
    Quotes(Vec<Quote>),
    Bars(Vec<Ohlcv>),
    Snapshots(Vec<MarketSnapshot>),
}

impl Series {
    /// Whose it is; a scope's snapshots belong to none.
    pub(crate) fn instrument(&self) -> Option<&Instrument> {
        match self {
            Self::Ticks(instrument) | Self::Quotes(instrument) | Self::Bars(instrument, _) => {
                Some(instrument)
            }
            Self::Snapshots(_) => None,
        }
    }

    /// Every series of a dataset; only those of `instruments` unless it is empty. Snapshots belong to none.
    ///
    /// # Errors
    /// Of the store.
    pub async fn list(
        store: &dyn PriceStore,
        dataset: Dataset,
        instruments: &BTreeSet<Instrument>,
    ) -> Result<Vec<Self>> {
        let wanted = |instrument: &Instrument| instruments.is_empty() || instruments.contains(instrument);
        let mut all = Vec::new();
        match dataset {
            Dataset::Ticks => {
                let found = instruments_of(store, InstrumentDataset::Ticks).await?;
                all.extend(found.into_iter().filter(wanted).map(Self::Ticks));
            }
            Dataset::Quotes => {
                let found = instruments_of(store, InstrumentDataset::Quotes).await?;
                all.extend(found.into_iter().filter(wanted).map(Self::Quotes));
            }
            Dataset::Bars => {
                for interval in Interval::ALL {
                    let query = LatestBarsQuery::new(*interval, Selection::All).with_limit(MAX_PAGE)?;
                    let latest: Vec<Ohlcv> = store.latest_bar_stream(query).try_collect().await?;
                    let found = latest.iter().map(|bar| bar.instrument().clone()).filter(wanted);
                    all.extend(found.map(|instrument| Self::Bars(instrument, *interval)));
                }
            }
            Dataset::Snapshots => {
                let mut query = LatestQuery::<Scope>::new(Selection::All).with_limit(MAX_PAGE)?;
                loop {
                    let page = store.latest_snapshots(&query).await?;
                    all.extend(page.items.iter().map(|snapshot| Self::Snapshots(snapshot.scope().clone())));
                    match page.next {
                        Some(next) => query = query.after(next),
                        None => break,
                    }
                }
            }
        }
        Ok(all)
    }

    /// The largest page of the series after a cursor, oldest first, and where the next one begins.
    pub(crate) async fn page(
        &self,
        store: &dyn PriceStore,
        range: TimeRange,
        after: Option<Cursor>,
    ) -> Result<(Records, Option<Cursor>)> {
        fn split<T>(page: Page<T>, of: impl Fn(Vec<T>) -> Records) -> (Records, Option<Cursor>) {
            (of(page.items), page.next)
        }
        match self {
            Self::Ticks(instrument) => {
                let query = RangeQuery::new(instrument.clone(), range).with_limit(MAX_PAGE)?;
                let query = after.into_iter().fold(query, RangeQuery::after);
                Ok(split(store.ticks(&query).await?, Records::Ticks))
            }
            Self::Quotes(instrument) => {
                let query = RangeQuery::new(instrument.clone(), range).with_limit(MAX_PAGE)?;
                let query = after.into_iter().fold(query, RangeQuery::after);
                Ok(split(store.quotes(&query).await?, Records::Quotes))
            }
            Self::Bars(instrument, interval) => {
                let query = BarQuery::new(instrument.clone(), *interval, range).with_limit(MAX_PAGE)?;
                let query = after.into_iter().fold(query, BarQuery::after);
                Ok(split(store.bars(&query).await?, Records::Bars))
            }
            Self::Snapshots(scope) => {
                let query = SnapshotQuery::new(scope.clone(), range).with_limit(MAX_PAGE)?;
                let query = after.into_iter().fold(query, SnapshotQuery::after);
                Ok(split(store.snapshots(&query).await?, Records::Snapshots))
            }
        }
    }

    /// How many records of the range a store has, and their checksum.
    ///
    /// # Errors
    /// Of the store.
    pub async fn summary(&self, store: &dyn PriceStore, range: TimeRange) -> Result<Summary> {
        let (mut summary, mut after) = (Summary::default(), None);
        loop {
            let (records, next) = self.page(store, range, after).await?;
            records.add_to(&mut summary);
            if next.is_none() {
                return Ok(summary);
            }
            after = next;
        }
    }
}

async fn instruments_of(store: &dyn PriceStore, dataset: InstrumentDataset) -> Result<Vec<Instrument>> {
    let mut query = InstrumentQuery::new(dataset).with_limit(MAX_PAGE)?;
    let mut all = Vec::new();
    loop {
        let page = store.instruments(&query).await?;
        all.extend(page.items.into_iter().map(|summary| summary.instrument));
        match page.next {
            Some(next) => query = query.after(next),
            None => return Ok(all),
        }
    }
}

impl Records {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Ticks(records) => records.len(),
            Self::Quotes(records) => records.len(),
            Self::Bars(records) => records.len(),
            Self::Snapshots(records) => records.len(),
        }
    }

    /// Stores them; nothing is asked of the store for none.
    pub(crate) async fn insert(&self, store: &dyn PriceStore) -> Result<()> {
        match self {
            _ if self.len() == 0 => Ok(()),
            Self::Ticks(records) => store.insert_ticks(records).await.map(drop),
            Self::Quotes(records) => store.insert_quotes(records).await.map(drop),
            Self::Bars(records) => store.insert_bars(records).await.map(drop),
            Self::Snapshots(records) => store.insert_snapshots(records).await.map(drop),
        }
    }

    fn add_to(&self, summary: &mut Summary) {
        match self {
            Self::Ticks(records) => records.iter().for_each(|record| summary.add(record)),
            Self::Quotes(records) => records.iter().for_each(|record| summary.add(record)),
            Self::Bars(records) => records.iter().for_each(|record| summary.add(record)),
            Self::Snapshots(records) => records.iter().for_each(|record| summary.add(record)),
        }
    }
}

/// How many records there are, and what they are, in a few bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// How many.
    pub records: u64,
    /// Equal for equal records, in whatever order.
    pub checksum: Checksum,
}

impl Summary {
    fn add(&mut self, record: &impl Serialize) {
        self.records += 1;
        self.checksum.add(record);
    }
}

/// The sum of the records' hashes: FNV-1a in 128 bits of their JSON, which writes every value in one way. It tells of
/// accidents; it is no proof against somebody who wants to deceive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checksum(u128);

/// Source: Fowler, Noll, Vo, Eastlake, "The FNV Non-Cryptographic Hash Algorithm".
const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

impl Checksum {
    fn add(&mut self, record: &impl Serialize) {
        // A record that could be read can be written.
        let json = serde_json::to_vec(record).unwrap_or_default();
        let hash = json.iter().fold(OFFSET, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME));
        self.0 = self.0.wrapping_add(hash);
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_heeds_every_byte_and_no_order() {
        let of = |texts: &[&str]| {
            let mut checksum = Checksum::default();
            for text in texts {
                checksum.add(text);
            }
            checksum
        };
        assert_eq!(of(&["a", "b", "b"]), of(&["b", "a", "b"]));
        assert_ne!(of(&["a", "b"]), of(&["a", "b", "b"]));
        assert_ne!(of(&["a", "b"]), of(&["a", "c"]));
        assert_eq!(of(&["a"]).to_string().len(), 32);
    }
}
