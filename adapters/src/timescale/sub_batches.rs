//! Sub-batches: the parts of a batch. One statement writes one sub-batch.

use qi_core::store::kit::Entry;

/// The maximum span of a sub-batch, in chunks. Each new chunk costs several locks.
pub(super) const MAX_SPAN: i64 = 50;

/// The distance between two consecutive records that ends a sub-batch, in chunks. A statement opens every chunk of its
/// span, and a few chunks without records cost less than another statement.
pub(super) const MIN_GAP: i64 = 8;

/// The number of records after which a sub-batch ends at the next chunk. A statement looks up each of its records in
/// every chunk of its span.
const SOFT_MAX_RECORDS: usize = 5_000;

/// The number of low bits that contain the interval in the number of a series.
pub(super) const INTERVAL_BITS: u32 = 8;

/// Returns the id of an entry's instrument, or the rank of its name.
pub(super) fn owner_of(entry: &Entry) -> i32 {
    // The bits above the interval contain the id or the rank.
    u32::try_from(entry.series >> INTERVAL_BITS).unwrap_or(u32::MAX).cast_signed()
}

/// Splits the entries into sub-batches of at most `max_records` records, each of which spans few chunks.
pub(super) fn split(entries: &[Entry], max_records: usize) -> Vec<&[Entry]> {
    let mut sub_batches = Vec::new();
    let mut start = 0;
    for at in 1..entries.len() {
        let (gap, span) =
            (entries[at].group - entries[at - 1].group, entries[at].group - entries[start].group);
        let records = at - start;
        if records == max_records
            || gap >= MIN_GAP
            || span >= MAX_SPAN
            || (gap > 0 && records >= SOFT_MAX_RECORDS)
        {
            sub_batches.push(&entries[start..at]);
            start = at;
        }
    }
    sub_batches.push(&entries[start..]);
    sub_batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(groups: impl IntoIterator<Item = i64>, max_records: usize) -> Vec<usize> {
        let entry = |group| Entry { group, series: 1, sort_key: (qi_core::Timestamp::MIN, 0), at: 0 };
        let entries: Vec<_> = groups.into_iter().map(entry).collect();
        split(&entries, max_records).iter().map(|sub_batch| sub_batch.len()).collect()
    }

    #[test]
    fn statements_have_at_most_the_maximum_number_of_records() {
        assert_eq!(sizes([0; 10], 4), [4, 4, 2]);
        assert_eq!(sizes([0; 10], 10), [10]);
        assert_eq!(sizes([0], 1), [1]);
    }

    #[test]
    fn statements_span_at_most_50_chunks() {
        assert_eq!(sizes(0..120, 1_000), [50, 50, 20]);
        assert_eq!(
            sizes([-3_000, 0, 1, 2, 2_600, 2_601], 1_000),
            [1, 3, 2],
            "old and new records are separate"
        );
        assert_eq!(sizes([0, 7, 14, 22], 1_000), [3, 1]);
        let many = (0..4).flat_map(|chunk| std::iter::repeat_n(chunk, 3_000));
        assert_eq!(sizes(many, 50_000), [6_000, 6_000]);
        assert_eq!(sizes((0..20).map(|n| n * 7), 1_000), [8, 8, 4], "chunks without records count");
    }
}
