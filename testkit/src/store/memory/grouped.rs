//! A batch with the records of each series next to each other.

use std::ops::Range;

use qi_core::Result;
use qi_core::record::{Dataset, FieldWriter, RecordVec, Records, SeriesRef, SortKey};
use qi_core::store::kit::SeriesRanks;

/// A view of a batch in another order. Each part is grouped by series. Records of one series keep their order, so the
/// last record of a key still wins. Each series then needs one search and one copy, regardless of the original order.
#[derive(Debug)]
pub(super) struct GroupedBatch<'a> {
    records: &'a dyn Records,
    order: Vec<usize>,
}

impl<'a> GroupedBatch<'a> {
    /// Groups each `part` records of a batch. Returns None if the records are already grouped, or too few to benefit.
    pub(super) fn of(records: &'a dyn Records, part: usize) -> Option<Self> {
        const FEW: usize = 32;
        if records.len() < FEW || records.run(0..records.len()) == records.len() {
            return None;
        }
        let SeriesRanks { series, ranks } = SeriesRanks::of(records);
        let mut order = Vec::with_capacity(ranks.len());
        let mut starts = Vec::new();
        for (n, ranks) in ranks.chunks(part).enumerate() {
            // A counting sort, because it keeps the order of equal ranks.
            starts.clear();
            starts.resize(series.len() + 1, 0_usize);
            let at = |rank: u64| usize::try_from(rank).unwrap_or(usize::MAX);
            for rank in ranks {
                starts[at(*rank) + 1] += 1;
            }
            for rank in 1..starts.len() {
                starts[rank] += starts[rank - 1];
            }
            let first = order.len();
            order.resize(first + ranks.len(), 0);
            for (index, rank) in ranks.iter().enumerate() {
                let start = &mut starts[at(*rank)];
                order[first + *start] = n * part + index;
                *start += 1;
            }
        }
        Some(Self { records, order })
    }
}

impl Records for GroupedBatch<'_> {
    fn dataset(&self) -> Dataset {
        self.records.dataset()
    }
    fn len(&self) -> usize {
        self.order.len()
    }
    fn series(&self, at: usize) -> SeriesRef<'_> {
        self.records.series(self.order[at])
    }
    fn sort_key(&self, at: usize) -> SortKey {
        self.records.sort_key(self.order[at])
    }
    fn write(&self, at: usize, out: &mut dyn FieldWriter) {
        self.records.write(self.order[at], out);
    }
    fn write_json(&self, at: usize, out: &mut Vec<u8>) {
        self.records.write_json(self.order[at], out);
    }
    fn sort_keys(&self, out: &mut Vec<SortKey>) {
        let mut sort_keys = Vec::with_capacity(self.len());
        self.records.sort_keys(&mut sort_keys);
        out.extend(self.order.iter().map(|at| sort_keys[*at]));
    }
    fn copy_to(
        &self,
        at: &mut dyn Iterator<Item = usize>,
        out: &mut RecordVec,
        into: Range<usize>,
    ) -> Result<()> {
        self.records.copy_to(&mut at.map(|at| self.order[at]), out, into)
    }
}
