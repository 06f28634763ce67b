//! The coverage ledger: ranges of trade ids with a proof that a store has them, or that the exchange does not.
//!
//! An entry is a positive claim about one range of ids. Every id without an entry is unknown, so a lost, torn or repeated
//! write of entries can hide a proof, but cannot invent one. Two writers do not conflict for the same reason.
//!
//! A writer records a range as complete only after the store has acknowledged or returned its trades. An entry describes
//! the time of the write: a later deletion of trades does not change the ledger.

use std::fmt;
use std::ops::RangeInclusive;

use futures::TryStreamExt as _;
use qi_core::record::Enumeration;
use qi_core::store::RangeQuery;
use qi_core::{Error, Instrument, PriceStore, PriceStoreExt as _, Record, Result, TimeRange, Timestamp};
use rangemap::RangeInclusiveSet;
use serde::{Deserialize, Serialize};

/// The state of a range of trade ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Enumeration)]
#[serde(rename_all = "snake_case")]
pub enum CoverageState {
    /// The store has every trade of the range.
    Complete,
    /// The exchange has no trade with an id of the range.
    Absent,
}

/// The proof of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Enumeration)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// The store has a trade for every id.
    Ids,
    /// A file that matches its checksum. The store has acknowledged all trades of the file. It has every id of a complete
    /// range, and no id of an absent range.
    File,
    /// A traversal of the exchange's history.
    History,
}

impl fmt::Display for CoverageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(Self::NAMES[usize::from(self.code()) - 1])
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(Self::NAMES[usize::from(self.code()) - 1])
    }
}

/// A range of trade ids of one instrument, with a proof. Key: (`instrument`, `first_time`, `first_id`).
#[derive(Debug, Clone, PartialEq, Eq, Record)]
#[record(name = "coverage", validate = Coverage::check)]
pub struct Coverage {
    /// The instrument.
    #[series]
    pub instrument: Instrument,
    /// The time of the first trade of a complete range, or of the trade before an absent range.
    #[time]
    pub first_time: Timestamp,
    /// The first id.
    #[seq]
    pub first_id: u64,
    /// The last id.
    pub last_id: u64,
    /// The time of the last trade of a complete range, or of the trade before an absent range.
    pub last_time: Timestamp,
    /// The state.
    pub state: CoverageState,
    /// The proof.
    pub proof: Proof,
    /// The time of the latest change.
    pub recorded_at: Timestamp,
}

impl Coverage {
    /// Creates an entry for these ids, with the times of the first and the last trade.
    pub fn new(
        instrument: Instrument,
        ids: RangeInclusive<u64>,
        (first_time, last_time): (Timestamp, Timestamp),
        state: CoverageState,
        proof: Proof,
    ) -> Self {
        let (first_id, last_id, recorded_at) = (*ids.start(), *ids.end(), Timestamp::now());
        Self { instrument, first_time, first_id, last_id, last_time, state, proof, recorded_at }
    }

    /// Returns the ids.
    pub fn ids(&self) -> RangeInclusive<u64> {
        self.first_id..=self.last_id
    }

    fn check(&self) -> Result<()> {
        let refuse =
            |field, value: &dyn fmt::Display, rule| Err(Error::invalid("coverage.entry", field, value, rule));
        if self.last_id < self.first_id {
            return refuse("last_id", &self.last_id, "must not be below first_id");
        }
        if self.last_time < self.first_time {
            return refuse("last_time", &self.last_time, "must not be before first_time");
        }
        Ok(())
    }
}

/// A range of ids between the first and the last entry of a ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CoverageRange {
    /// The ids.
    pub ids: RangeInclusive<u64>,
    /// The time of the first trade, or of the trade before the range.
    pub start: Timestamp,
    /// The time of the last trade, or of the trade after the range.
    pub end: Timestamp,
    /// The state and its proof. None for unknown ids.
    pub proven: Option<(CoverageState, Proof)>,
}

impl CoverageRange {
    /// Returns the number of ids.
    pub fn len(&self) -> u64 {
        (self.ids.end() - self.ids.start()).saturating_add(1)
    }

    /// Returns false, because a range has at least one id.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// The entries of one instrument.
#[derive(Debug, Clone)]
pub struct Ledger {
    instrument: Instrument,
    /// Ascending by the first id.
    entries: Vec<Coverage>,
}

impl Ledger {
    /// Reads the entries of an instrument from a store.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn load(store: &dyn PriceStore, instrument: &Instrument) -> Result<Self> {
        let query = RangeQuery::new(instrument.clone(), TimeRange::ALL);
        let mut entries: Vec<Coverage> = store.range_stream(&query).try_collect().await?;
        entries.sort_by_key(|entry| entry.first_id);
        Ok(Self { instrument: instrument.clone(), entries })
    }

    /// Records claims in the store. A claim that continues an entry of the same state and proof extends that entry. After
    /// an error the ledger is unchanged, and the claims can be recorded again.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn record(&mut self, store: &dyn PriceStore, claims: Vec<Coverage>) -> Result<()> {
        let (mut entries, mut changed) = (self.entries.clone(), Vec::<Coverage>::new());
        for claim in claims {
            let continued = entries.iter_mut().rev().find(|entry| {
                (entry.state, entry.proof) == (claim.state, claim.proof)
                    && (entry.first_id..=entry.last_id.saturating_add(1)).contains(&claim.first_id)
                    && entry.first_time <= claim.first_time
            });
            let entry = if let Some(entry) = continued {
                entry.last_id = entry.last_id.max(claim.last_id);
                entry.last_time = entry.last_time.max(claim.last_time);
                entry.recorded_at = claim.recorded_at;
                entry.clone()
            } else {
                let at = entries.partition_point(|entry| entry.first_id <= claim.first_id);
                entries.insert(at, claim.clone());
                claim
            };
            changed.retain(|other| (other.first_time, other.first_id) != (entry.first_time, entry.first_id));
            changed.push(entry);
        }
        if !changed.is_empty() {
            store.insert_records_chunked(&changed, store.info().max_batch.clamp(1, 1_000)).await?;
        }
        self.entries = entries;
        Ok(())
    }

    /// Returns the instrument.
    pub fn instrument(&self) -> &Instrument {
        &self.instrument
    }

    /// Returns the ids with an entry.
    pub fn known(&self) -> RangeInclusiveSet<u64> {
        self.entries.iter().map(Coverage::ids).collect()
    }

    /// Returns every range of ids from the first to the last entry, ascending. Adjacent ranges with the same proof are
    /// one range. Ids without an entry are unknown ranges.
    pub fn ranges(&self) -> Vec<CoverageRange> {
        let mut ranges: Vec<CoverageRange> = Vec::new();
        for entry in &self.entries {
            let proven = Some((entry.state, entry.proof));
            let (mut first, start) = (entry.first_id, entry.first_time);
            if let Some(last) = ranges.last_mut() {
                if entry.last_id <= *last.ids.end() {
                    continue;
                }
                let next = last.ids.end() + 1;
                if first <= next && last.proven == proven {
                    (last.ids, last.end) = (*last.ids.start()..=entry.last_id, last.end.max(entry.last_time));
                    continue;
                }
                if first > next {
                    let (start, end) = (last.end, entry.first_time.max(last.end));
                    ranges.push(CoverageRange { ids: next..=first - 1, start, end, proven: None });
                }
                first = first.max(next);
            }
            ranges.push(CoverageRange { ids: first..=entry.last_id, start, end: entry.last_time, proven });
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use qi_core::Datasets;
    use qi_testkit::store::{MemoryStore, MemoryStoreConfig};

    use super::*;

    fn at(id: u64) -> Timestamp {
        Timestamp::from_secs(1_700_000_000 + i64::try_from(id).unwrap()).unwrap()
    }

    fn claim(ids: RangeInclusive<u64>, state: CoverageState, proof: Proof) -> Coverage {
        let times = (at(*ids.start()), at(*ids.end()));
        Coverage::new("x:Y".parse().unwrap(), ids, times, state, proof)
    }

    fn complete(ids: RangeInclusive<u64>) -> Coverage {
        claim(ids, CoverageState::Complete, Proof::Ids)
    }

    async fn store() -> MemoryStore {
        let datasets = Datasets::standard().with::<Coverage>().unwrap();
        let store = MemoryStore::new(MemoryStoreConfig::default().with_datasets(datasets)).unwrap();
        store.ensure_schema().await.unwrap();
        store
    }

    fn text(ledger: &Ledger) -> String {
        let range = |range: &CoverageRange| {
            let state =
                range.proven.map_or("unknown".to_owned(), |(state, proof)| format!("{state} {proof}"));
            format!("{}-{} {state}", range.ids.start(), range.ids.end())
        };
        ledger.ranges().iter().map(range).collect::<Vec<_>>().join(", ")
    }

    #[tokio::test]
    async fn ids_between_entries_are_unknown_until_they_are_proven() {
        let (store, instrument) = (store().await, "x:Y".parse().unwrap());
        let mut ledger = Ledger::load(&store, &instrument).await.unwrap();
        ledger.record(&store, vec![complete(1..=100), complete(151..=200)]).await.unwrap();
        assert_eq!(text(&ledger), "1-100 complete ids, 101-150 unknown, 151-200 complete ids");
        let absent = claim(140..=140, CoverageState::Absent, Proof::History);
        ledger.record(&store, vec![complete(101..=120), absent, complete(201..=300)]).await.unwrap();
        ledger.record(&store, vec![complete(121..=139), complete(141..=150)]).await.unwrap();
        let wanted = "1-139 complete ids, 140-140 absent history, 141-300 complete ids";
        assert_eq!(text(&ledger), wanted);
        assert_eq!(ledger.known().iter().cloned().collect::<Vec<_>>(), [1..=300]);
        // The entries of the store are the same, and a continued entry is one record.
        let loaded = Ledger::load(&store, &instrument).await.unwrap();
        assert_eq!((text(&loaded), loaded.entries.len()), (wanted.to_owned(), 4));
    }

    #[tokio::test]
    async fn overlapping_entries_prove_each_id_once() {
        let (store, instrument) = (store().await, "x:Y".parse().unwrap());
        let mut ledger = Ledger::load(&store, &instrument).await.unwrap();
        let file = |ids| claim(ids, CoverageState::Complete, Proof::File);
        ledger.record(&store, vec![file(50..=99), complete(80..=120), file(60..=70)]).await.unwrap();
        assert_eq!(text(&ledger), "50-99 complete file, 100-120 complete ids");
        let lengths: Vec<u64> = ledger.ranges().iter().map(CoverageRange::len).collect();
        assert_eq!(lengths, [50, 21]);
    }

    #[tokio::test]
    async fn any_part_of_the_entries_is_a_valid_ledger() {
        let (store, instrument) = (store().await, "x:Y".parse::<Instrument>().unwrap());
        let mut ledger = Ledger::load(&store, &instrument).await.unwrap();
        for ids in [1..=10, 21..=30, 11..=15, 16..=20, 31..=40] {
            ledger.record(&store, vec![complete(ids)]).await.unwrap();
        }
        let all = ledger.known();
        for without in 0..ledger.entries.len() {
            let mut torn = ledger.clone();
            torn.entries.remove(without);
            assert!(torn.known().iter().all(|ids| all.gaps(ids).next().is_none()));
        }
    }

    #[test]
    fn an_entry_does_not_end_before_its_start() {
        assert!(complete(2..=2).validate().is_ok());
        let mut reversed = complete(2..=3);
        reversed.last_id = 1;
        assert!(reversed.validate().is_err());
        reversed = complete(2..=3);
        reversed.last_time = at(1);
        assert!(reversed.validate().is_err());
    }
}
