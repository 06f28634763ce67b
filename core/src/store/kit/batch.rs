//! The records of a batch in the order of their keys.

use std::collections::HashMap;

use crate::record::{Records, SeriesKey, SeriesRef, SortKey};

/// The series of a batch, and the rank of each record's series in their order.
#[derive(Debug)]
pub struct SeriesRanks {
    /// The series in order, without duplicates.
    pub series: Vec<SeriesKey>,
    /// The rank of each record's series, in the order of the batch.
    pub ranks: Vec<u64>,
}

/// The number of series that are recognised by their address. Allocations are multiples of 16 bytes.
const RECENT: usize = 512;

impl SeriesRanks {
    /// Ranks the series of a batch.
    pub fn of(batch: &dyn Records) -> Self {
        let mut numbers: HashMap<SeriesRef<'_>, u64> = HashMap::new();
        let mut ranks: Vec<u64> = Vec::with_capacity(batch.len());
        // Records of one feed share their instruments, so an address usually identifies the series without a text
        // comparison.
        let mut recent = [(0_usize, None, 0_u64); RECENT];
        for at in 0..batch.len() {
            let series = batch.series(at);
            let address = series.address().map(|address| (address, series.interval));
            let slot = address.map(|(address, _)| &mut recent[address / 16 % RECENT]);
            if let (Some((address, interval)), Some(slot)) = (address, &slot)
                && (slot.0, slot.1) == (address, interval)
            {
                ranks.push(slot.2);
                continue;
            }
            let next = numbers.len() as u64;
            let number = *numbers.entry(series).or_insert(next);
            if let (Some((address, interval)), Some(slot)) = (address, slot) {
                *slot = (address, interval, number);
            }
            ranks.push(number);
        }
        let mut order: Vec<(SeriesRef<'_>, u64)> = numbers.into_iter().collect();
        order.sort_unstable();
        let mut rank_of: Vec<(u64, u64)> = order.iter().map(|(_, number)| *number).zip(0..).collect();
        rank_of.sort_unstable();
        for rank in &mut ranks {
            // `rank_of` has an entry for every number below its length.
            *rank = usize::try_from(*rank).ok().and_then(|at| rank_of.get(at)).map_or(0, |(_, rank)| *rank);
        }
        Self { series: order.iter().map(|(series, _)| series.to_owned()).collect(), ranks }
    }
}

/// A record of a batch, by its index, with the key by which it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The first part of the sort order, for example the number of the chunk.
    pub group: i64,
    /// The adapter's number of the series.
    pub series: u64,
    /// The position in the series: the time and the sequence number.
    pub sort_key: SortKey,
    /// The index in the batch.
    pub at: u32,
}

/// Returns the last record of each key, in the order of group, series and sort key.
///
/// All writers use the same order, so two writers cannot deadlock. `series` has the number of each record's series, in
/// the order of the batch.
pub fn entries(batch: &dyn Records, series: &[u64], group: impl Fn(SortKey) -> i64) -> Vec<Entry> {
    let mut sort_keys = Vec::with_capacity(batch.len());
    batch.sort_keys(&mut sort_keys);
    let all = sort_keys.into_iter().zip(series).enumerate();
    let mut entries: Vec<Entry> = all
        .map(|(at, (sort_key, series))| Entry {
            group: group(sort_key),
            series: *series,
            sort_key,
            // A batch has at most 1,000,000 records, so its indices fit.
            at: u32::try_from(at).unwrap_or(u32::MAX),
        })
        .collect();
    entries.sort_unstable();
    // `dedup_by` keeps the first of equal entries, so that entry takes the later index.
    entries.dedup_by(|later, kept| {
        let is_same_key = (later.series, later.sort_key) == (kept.series, kept.sort_key);
        if is_same_key {
            kept.at = later.at;
        }
        is_same_key
    });
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Slice;
    use crate::{PriceTick, Timestamp};

    #[test]
    fn deduplication_keeps_the_last_record_in_key_order() {
        let tick = |name: &str, at: i64, seq: u64| {
            let ts = Timestamp::from_secs(1_700_000_000 + at).unwrap();
            PriceTick::new(name.parse().unwrap(), ts, seq, "1".parse().unwrap()).unwrap()
        };
        let batch =
            [tick("b:X", 0, 1), tick("a:X", 9, 0), tick("b:X", 0, 0), tick("a:X", 1, 0), tick("b:X", 0, 1)];
        let batch = Slice::new(&batch).unwrap();
        let SeriesRanks { series, ranks } = SeriesRanks::of(&batch);
        assert_eq!(series.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a:X", "b:X"]);
        assert_eq!(ranks, [1, 0, 1, 0, 1]);
        let at = |entries: Vec<Entry>| entries.iter().map(|entry| entry.at).collect::<Vec<_>>();
        assert_eq!(at(entries(&batch, &ranks, |_| 0)), [3, 1, 2, 4]);
        let late = |(ts, _): SortKey| i64::from(ts > Timestamp::from_secs(1_700_000_005).unwrap());
        assert_eq!(at(entries(&batch, &ranks, late)), [3, 2, 4, 1], "groups come first");
    }
}
