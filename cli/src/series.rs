//! The series of a store: the units of a copy and its comparison.

use std::collections::BTreeSet;
use std::fmt;

use qi_core::record::{Dataset, Records, SeriesKey, SeriesType};
use qi_core::store::{Cursor, PageRequest, PriceStore, PriceStoreExt as _, RangeRequest, RecordPage};
use qi_core::{Instrument, Result, TimeRange};

/// One series of a dataset. Displays as `ticks binance:BTC-USDT` or `bars binance:BTC-USDT 1m`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    /// The dataset.
    pub dataset: Dataset,
    /// The owner, and the interval of a bar.
    pub key: SeriesKey,
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.dataset, self.key.owner)?;
        self.key.interval.map_or(Ok(()), |interval| write!(f, " {interval}"))
    }
}

impl Series {
    /// Lists the series of a dataset. A non-empty `instruments` selects series, except in datasets of names.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn list(
        store: &dyn PriceStore,
        dataset: Dataset,
        instruments: &BTreeSet<Instrument>,
    ) -> Result<Vec<Self>> {
        let keys = store.all_series(dataset).await?;
        let mut all: Vec<_> = keys.into_iter().map(|key| Self { dataset, key }).collect();
        if dataset.series() == SeriesType::Instrument && !instruments.is_empty() {
            all.retain(|series| {
                series.key.owner.instrument().is_some_and(|owner| instruments.contains(owner))
            });
        }
        Ok(all)
    }

    /// Reads a page of the series after a cursor, oldest first.
    pub(crate) async fn page(
        &self,
        store: &dyn PriceStore,
        range: TimeRange,
        page: PageRequest,
        after: Option<Cursor>,
    ) -> Result<RecordPage> {
        let request = RangeRequest::new(self.dataset, self.key.clone(), range).with_page(page);
        store.range(&after.into_iter().fold(request, RangeRequest::after)).await
    }

    /// Returns the number of records in a range and their checksum.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn summary(&self, store: &dyn PriceStore, range: TimeRange) -> Result<Summary> {
        let (mut summary, mut after) = (Summary::default(), None);
        loop {
            let page = self.page(store, range, PageRequest::bulk(self.dataset), after).await?;
            summary.add(page.records.as_records());
            if page.next.is_none() {
                return Ok(summary);
            }
            after = page.next;
        }
    }
}

/// A count and a checksum of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// The number of records.
    pub records: u64,
    /// The checksum, which does not depend on the order of the records.
    pub checksum: Checksum,
}

impl Summary {
    fn add(&mut self, records: &dyn Records) {
        let mut json = Vec::new();
        for at in 0..records.len() {
            json.clear();
            records.write_json(at, &mut json);
            self.checksum.add(&json);
        }
        self.records += records.len() as u64;
    }
}

/// The sum of the 128-bit FNV-1a hashes of the records' JSON, which has one form for every value. The sum detects
/// accidental differences, not deliberate ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checksum(u128);

/// Source: Fowler, Noll, Vo, Eastlake, "The FNV Non-Cryptographic Hash Algorithm".
const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

impl Checksum {
    fn add(&mut self, json: &[u8]) {
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
    fn a_checksum_depends_on_every_byte_but_not_on_the_order() {
        let of = |texts: &[&str]| {
            let mut checksum = Checksum::default();
            for text in texts {
                checksum.add(text.as_bytes());
            }
            checksum
        };
        assert_eq!(of(&["a", "b", "b"]), of(&["b", "a", "b"]));
        assert_ne!(of(&["a", "b"]), of(&["a", "b", "b"]));
        assert_ne!(of(&["a", "b"]), of(&["a", "c"]));
        assert_eq!(of(&["a"]).to_string().len(), 32);
    }
}
