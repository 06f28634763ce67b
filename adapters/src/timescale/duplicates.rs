//! Repeated records: the records of a batch that may already exist.
//!
//! COPY is several times faster than a merge, but fails if a single record exists. Therefore the store reads the
//! existing keys, copies the new records and merges the others. This read costs far less than a lookup of every key. A
//! batch is split into segments of one series. One index probe per segment returns the newest existing keys in its
//! range.

use qi_core::record::SortKey;
use qi_core::store::kit::Entry;

/// The maximum number of records in a segment. Shorter segments cost more probes.
const SEGMENT_RECORDS: usize = 128;

/// The maximum number of existing keys that the probe returns for a segment.
pub(super) const SEGMENT_KEYS: usize = 8;

/// Splits a sub-batch into segments: consecutive records of one series in one chunk.
pub(super) fn segments(sub_batch: &[Entry]) -> Vec<&[Entry]> {
    sub_batch
        .chunk_by(|a, b| (a.group, a.series) == (b.group, b.series))
        .flat_map(|run| run.chunks(SEGMENT_RECORDS))
        .collect()
}

/// Returns the first, the middle and the last record of a sub-batch as segments.
pub(super) fn samples(sub_batch: &[Entry]) -> Vec<&[Entry]> {
    [0, sub_batch.len() / 2, sub_batch.len() - 1].map(|at| &sub_batch[at..=at]).to_vec()
}

/// The records of a sub-batch, each part in the order of the sub-batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ProbedRecords {
    /// Records whose keys did not exist at the time of the probe.
    pub(super) new: Vec<Entry>,
    /// Records whose keys may exist.
    pub(super) duplicates: Vec<Entry>,
}

/// Divides the records of the segments into new and repeated records. `existing` contains existing keys, each with the
/// index of its segment: the newest keys of each segment, at most [`SEGMENT_KEYS`].
pub(super) fn divide(segments: &[&[Entry]], mut existing: Vec<(usize, SortKey)>) -> ProbedRecords {
    existing.sort_unstable();
    let mut records = ProbedRecords::default();
    let mut rest = existing.as_slice();
    for (at, segment) in segments.iter().enumerate() {
        let keys;
        (keys, rest) = rest.split_at(rest.partition_point(|(index, _)| *index <= at));
        // Older keys are unknown if the probe returned the maximum number of keys.
        let unknown_before = keys.first().filter(|_| keys.len() >= SEGMENT_KEYS);
        for entry in *segment {
            let is_duplicate = unknown_before.is_some_and(|(_, oldest)| entry.sort_key < *oldest)
                || keys.binary_search_by_key(&entry.sort_key, |(_, sort_key)| *sort_key).is_ok();
            if is_duplicate { records.duplicates.push(*entry) } else { records.new.push(*entry) }
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use qi_core::Timestamp;

    use super::*;

    const SECS: i64 = 1_700_000_000;

    fn entry(group: i64, series: u64, at: u32) -> Entry {
        Entry { group, series, sort_key: sort_key(at), at }
    }

    fn sort_key(at: u32) -> SortKey {
        (Timestamp::from_secs(SECS + i64::from(at)).unwrap(), 0)
    }

    #[test]
    fn a_segment_has_one_series_of_one_chunk() {
        let mut sub_batch: Vec<_> = (0..300).map(|at| entry(0, 1, at)).collect();
        sub_batch.extend([entry(0, 2, 300), entry(1, 2, 301), entry(1, 2, 302)]);
        let lengths: Vec<_> = segments(&sub_batch).iter().map(|segment| segment.len()).collect();
        assert_eq!(lengths, [128, 128, 44, 1, 2]);
        let samples = samples(&sub_batch);
        assert_eq!(samples.iter().map(|sample| sample[0].at).collect::<Vec<_>>(), [0, 151, 302]);
        assert_eq!(super::samples(&sub_batch[..1]).len(), 3);
    }

    #[test]
    fn records_of_existing_keys_are_repeats() {
        let sub_batch: Vec<_> = (0..200).map(|at| entry(0, 1, at)).chain([entry(0, 2, 7)]).collect();
        let segments = segments(&sub_batch);
        // The probe also returns keys of other records, in any order.
        let between = (Timestamp::from_micros(SECS * 1_000_000 + 5_500_000).unwrap(), 0);
        let existing = vec![(1, sort_key(150)), (0, sort_key(9)), (0, between), (0, sort_key(3))];
        let ProbedRecords { new, duplicates } = divide(&segments, existing);
        assert_eq!(duplicates.iter().map(|entry| entry.at).collect::<Vec<_>>(), [3, 9, 150]);
        assert_eq!(new.len(), 198);
        assert!(new.is_sorted());
    }

    #[test]
    fn records_before_the_known_keys_may_be_repeats() {
        let sub_batch: Vec<_> = (0..100).map(|at| entry(0, 1, at)).collect();
        let segments = segments(&sub_batch);
        let newest: Vec<_> = (40..48).map(|at| (0, sort_key(at))).collect();
        assert_eq!(newest.len(), SEGMENT_KEYS);
        let ProbedRecords { new, duplicates } = divide(&segments, newest.clone());
        assert_eq!(duplicates, sub_batch[..48]);
        assert_eq!(new, sub_batch[48..]);
        let ProbedRecords { duplicates, .. } = divide(&segments, newest[1..].to_vec());
        assert_eq!(duplicates, sub_batch[41..48], "all existing keys of the segment are known");
    }
}
