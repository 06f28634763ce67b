//! The records of one series in order: sorted chunks, and a tail for records in ascending order.
//!
//! A record that is newer than its series is appended to the tail without a search. A late record is inserted into a
//! chunk of at most [`CHUNK_CAPACITY`] records, which is found through a tree of chunks. No order of arrival takes
//! quadratic time. The oldest records are removed by chunks. Neighbouring records of a batch are copied in one call.

use std::collections::BTreeMap;
use std::ops::Range;

use qi_core::record::{Dataset, RecordVec, Records, SortKey};
use qi_core::store::Anchor;
use qi_core::{Result, TimeRange, Timestamp};

/// The largest number of records in a chunk. Larger chunks make late records more expensive, smaller chunks
/// make the tree deeper.
const CHUNK_CAPACITY: usize = 64;

/// A range of sort keys: from `lo`, included, to `hi`, excluded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) lo: SortKey,
    pub(super) hi: SortKey,
}

impl Window {
    pub(super) const ALL: Self = Self { lo: (Timestamp::MIN, 0), hi: (Timestamp::MAX, u64::MAX) };

    /// Returns the window of a time range.
    pub(super) fn of(range: TimeRange) -> Self {
        Self { lo: (range.start(), 0), hi: (range.end(), 0) }
    }

    /// Returns the window of all records up to a time, included.
    pub(super) fn up_to(time: Timestamp) -> Self {
        // A sequence number is at most `i64::MAX`.
        Self { hi: (time, u64::MAX), ..Self::ALL }
    }

    /// Returns the rest of the window after a cursor, in ascending order.
    pub(super) fn after(self, anchor: &Anchor) -> Self {
        let past = |sort_key: SortKey| (sort_key.0, sort_key.1 + 1);
        sort_key_of(anchor).map_or(self, |sort_key| Self { lo: self.lo.max(past(sort_key)), ..self })
    }

    /// Returns the rest of the window after a cursor, in descending order.
    pub(super) fn before(self, anchor: &Anchor) -> Self {
        sort_key_of(anchor).map_or(self, |sort_key| Self { hi: self.hi.min(sort_key), ..self })
    }
}

fn sort_key_of(anchor: &Anchor) -> Option<SortKey> {
    match anchor {
        // A forged cursor may hold any number. The sequence number of a valid cursor is at most `i64::MAX`.
        Anchor::SortKey(ts, seq) => Some((*ts, (*seq).min(u64::MAX - 1))),
        Anchor::Time(ts) => Some((*ts, 0)),
        Anchor::Start | Anchor::Owner(_) => None,
    }
}

/// A batch with its sort keys and its stamp.
#[derive(Debug, Clone, Copy)]
pub(super) struct StampedBatch<'a> {
    pub(super) records: &'a dyn Records,
    /// The sort keys of all records of the batch.
    pub(super) sort_keys: &'a [SortKey],
    /// The stamp of the batch.
    pub(super) stamp: u64,
}

/// The sort key of a record, and the stamp of the batch that last wrote the record.
#[derive(Debug, Clone, Copy)]
struct Key {
    sort_key: SortKey,
    stamp: u64,
}

/// Consecutive records in order. The keys are stored separately, because a search in the records would load one cache
/// line for each record.
#[derive(Debug)]
struct Chunk {
    rows: RecordVec,
    keys: Vec<Key>,
}

impl Chunk {
    fn new(dataset: Dataset) -> Self {
        Self { rows: dataset.new_vec(), keys: Vec::new() }
    }

    fn with_capacity(dataset: Dataset) -> Self {
        let mut chunk = Self { rows: dataset.new_vec(), keys: Vec::with_capacity(CHUNK_CAPACITY) };
        chunk.rows.reserve(CHUNK_CAPACITY);
        chunk
    }

    fn first(&self) -> Option<SortKey> {
        self.keys.first().map(|key| key.sort_key)
    }

    fn last(&self) -> Option<SortKey> {
        self.keys.last().map(|key| key.sort_key)
    }

    fn is_full(&self) -> bool {
        self.keys.len() >= CHUNK_CAPACITY
    }

    fn append(&mut self, part: StampedBatch<'_>, range: Range<usize>) -> Result<()> {
        part.records.append_to(range.clone(), &mut self.rows)?;
        self.keys.extend(part.sort_keys[range].iter().map(|&sort_key| Key { sort_key, stamp: part.stamp }));
        Ok(())
    }

    fn insert(&mut self, at: usize, part: StampedBatch<'_>, from: usize) -> Result<()> {
        part.records.copy_to(&mut std::iter::once(from), &mut self.rows, at..at)?;
        self.keys.insert(at, Key { sort_key: part.sort_keys[from], stamp: part.stamp });
        Ok(())
    }

    /// Replaces the records from `at` on, as long as the records of the batch have the same keys.
    fn replace(&mut self, at: usize, part: StampedBatch<'_>, range: Range<usize>) -> Result<PutOutcome> {
        let keys = &mut self.keys[at..];
        let same = part.sort_keys[range.clone()]
            .iter()
            .zip(&*keys)
            .take_while(|(sort_key, key)| **sort_key == key.sort_key);
        let count = same.count();
        let taken = range.start..range.start + count;
        part.records.copy_to(&mut { taken }, &mut self.rows, at..at + count)?;
        let mut again = 0;
        for key in &mut keys[..count] {
            again += u64::from(key.stamp == part.stamp);
            key.stamp = part.stamp;
        }
        Ok(PutOutcome::Replaced { count, again })
    }

    /// Returns the range of rows within a window.
    fn bounds(&self, window: Window) -> Range<usize> {
        let at = |sort_key: SortKey| self.keys.partition_point(|key| key.sort_key < sort_key);
        let from = if self.first() >= Some(window.lo) { 0 } else { at(window.lo) };
        let to = if self.last() < Some(window.hi) { self.keys.len() } else { at(window.hi) };
        from..to.max(from)
    }

    /// Removes a range of rows and returns the number of removed rows.
    fn remove(&mut self, range: Range<usize>) -> usize {
        let gone = range.len();
        if gone > 0 {
            self.rows.remove(range.clone());
            self.keys.drain(range);
        }
        gone
    }

    /// Splits off the newer half of the chunk.
    fn split(&mut self) -> Self {
        let half = self.keys.len() / 2;
        let mut right = Self { rows: self.rows.split_off(half), keys: Vec::with_capacity(CHUNK_CAPACITY) };
        right.rows.reserve(CHUNK_CAPACITY - right.rows.len());
        right.keys.extend(self.keys.drain(half..));
        right
    }
}

/// The result of a write of the first records of a part.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PutOutcome {
    /// The number of records that were added under new keys.
    New(usize),
    /// Records with existing keys were replaced.
    Replaced {
        /// The number of replaced records.
        count: usize,
        /// The number of replaced records that the same batch had written.
        again: u64,
    },
    /// The key of the first record is new and there is no room.
    Full,
}

/// The records of one series.
#[derive(Debug)]
pub(super) struct Series {
    dataset: Dataset,
    /// The sealed chunks. The key of a chunk is not after its first record, and after all records
    /// of the previous chunk.
    sealed: BTreeMap<SortKey, Chunk>,
    /// The records that are newer than all sealed records.
    tail: Chunk,
    len: usize,
}

impl Series {
    pub(super) fn new(dataset: Dataset) -> Self {
        Self { dataset, sealed: BTreeMap::new(), tail: Chunk::new(dataset), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn first(&self) -> Option<SortKey> {
        self.sealed.first_key_value().map_or(&self.tail, |(_, chunk)| chunk).first()
    }

    pub(super) fn last(&self) -> Option<SortKey> {
        self.tail.last().or_else(|| self.sealed.last_key_value()?.1.last())
    }

    /// Writes the first records of a non-empty range of a batch. Adds at most `room` records with new keys.
    pub(super) fn put(
        &mut self,
        part: StampedBatch<'_>,
        range: Range<usize>,
        room: usize,
    ) -> Result<PutOutcome> {
        let (sort_keys, last) = (&part.sort_keys[range.clone()], self.last());
        if last.is_some_and(|last| sort_keys[0] <= last) {
            return self.put_unordered(part, range, room > 0);
        }
        if room == 0 {
            return Ok(PutOutcome::Full);
        }
        if self.tail.is_full() {
            self.seal();
        }
        let most = sort_keys.len().min(room).min(CHUNK_CAPACITY - self.tail.keys.len());
        let ordered = sort_keys[..most].windows(2).take_while(|pair| pair[0] < pair[1]).count() + 1;
        self.tail.append(part, range.start..range.start + ordered)?;
        self.len += ordered;
        Ok(PutOutcome::New(ordered))
    }

    /// Moves the full tail to the sealed chunks.
    fn seal(&mut self) {
        let full = std::mem::replace(&mut self.tail, Chunk::with_capacity(self.dataset));
        if let Some(first) = full.first() {
            self.sealed.insert(first, full);
        }
    }

    /// Writes records of which the first is not newer than all stored records.
    fn put_unordered(
        &mut self,
        part: StampedBatch<'_>,
        range: Range<usize>,
        room: bool,
    ) -> Result<PutOutcome> {
        let (from, sort_key) = (range.start, part.sort_keys[range.start]);
        let in_tail = self.sealed.is_empty() || self.tail.first().is_some_and(|first| first <= sort_key);
        let chunk = if in_tail {
            &mut self.tail
        } else {
            if self.sealed.first_key_value().is_some_and(|(key, _)| sort_key < *key) {
                if !room {
                    return Ok(PutOutcome::Full);
                }
                // The first chunk takes the record and moves to a lower key, which is still not after its first record.
                if let Some((_, chunk)) = self.sealed.pop_first() {
                    self.sealed.insert(sort_key, chunk);
                }
            }
            match self.sealed.range_mut(..=sort_key).next_back() {
                Some((_, chunk)) => chunk,
                None => &mut self.tail,
            }
        };
        let at = match chunk.keys.binary_search_by_key(&sort_key, |key| key.sort_key) {
            Ok(at) => return chunk.replace(at, part, range),
            Err(_) if !room => return Ok(PutOutcome::Full),
            Err(at) => at,
        };
        if chunk.is_full() {
            let mut right = chunk.split();
            let half = chunk.keys.len();
            let outcome =
                if at > half { right.insert(at - half, part, from) } else { chunk.insert(at, part, from) };
            let left = if in_tail { std::mem::replace(chunk, right) } else { right };
            if let Some(first) = left.first() {
                self.sealed.insert(first, left);
            }
            outcome?;
        } else {
            chunk.insert(at, part, from)?;
        }
        self.len += 1;
        Ok(PutOutcome::New(1))
    }

    /// Returns the records of a window as slices of chunks, in order.
    pub(super) fn slices(
        &self,
        window: Window,
    ) -> impl DoubleEndedIterator<Item = (&RecordVec, Range<usize>)> {
        let Window { lo, hi } = window;
        let window = Window { lo, hi: hi.max(lo) };
        let from = self.sealed.range(..=lo).next_back().map_or(lo, |(key, _)| *key);
        self.sealed
            .range(from..window.hi)
            .map(|(_, chunk)| chunk)
            .chain(std::iter::once(&self.tail))
            .map(move |chunk| (&chunk.rows, chunk.bounds(window)))
            .filter(|(_, range)| !range.is_empty())
    }

    /// Returns the newest record of a window.
    pub(super) fn last_in(&self, window: Window) -> Option<(&RecordVec, usize)> {
        self.slices(window).next_back().map(|(rows, range)| (rows, range.end - 1))
    }

    /// Removes the records of a window and returns their number.
    pub(super) fn remove(&mut self, window: Window) -> usize {
        let Window { lo, hi } = window;
        if lo >= hi {
            return 0;
        }
        let from = self.sealed.range(..=lo).next_back().map_or(lo, |(key, _)| *key);
        let (mut gone, mut empty) = (0, Vec::new());
        for (key, chunk) in self.sealed.range_mut(from..hi) {
            gone += chunk.remove(chunk.bounds(window));
            if chunk.keys.is_empty() {
                empty.push(*key);
            }
        }
        for key in empty {
            self.sealed.remove(&key);
        }
        gone += self.tail.remove(self.tail.bounds(window));
        self.len -= gone;
        gone
    }

    /// Removes the oldest `n` records.
    pub(super) fn remove_oldest(&mut self, n: usize) {
        let mut left = n.min(self.len);
        self.len -= left;
        while left > 0 {
            match self.sealed.first_entry() {
                Some(entry) if entry.get().keys.len() <= left => left -= entry.remove().keys.len(),
                Some(mut entry) => left -= entry.get_mut().remove(0..left),
                None => left -= self.tail.remove(0..left),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use qi_core::PriceTick;
    use qi_core::record::Record;

    fn tick(at: u16, seq: u8, price: u8) -> PriceTick {
        let ts = Timestamp::from_secs(1_000_000 + i64::from(at)).unwrap();
        let price = (u32::from(price) + 1).to_string().parse().unwrap();
        PriceTick::new("x:Y".parse().unwrap(), ts, u64::from(seq), price).unwrap()
    }

    fn new() -> Series {
        Series::new(PriceTick::DATASET)
    }

    fn within(series: &Series, window: Window) -> Vec<PriceTick> {
        series.slices(window).flat_map(|(rows, range)| rows.as_slice().unwrap()[range].to_vec()).collect()
    }

    fn all(series: &Series) -> Vec<PriceTick> {
        within(series, Window::ALL)
    }

    /// Writes ticks in order, with as many calls as needed, and returns the results.
    fn put(series: &mut Series, ticks: &[PriceTick], stamp: u64, room: usize) -> Vec<PutOutcome> {
        let records = RecordVec::from_vec(ticks.to_vec());
        let sort_keys: Vec<_> = ticks.iter().map(Record::sort_key).collect();
        let part = StampedBatch { records: records.as_records(), sort_keys: &sort_keys, stamp };
        let (mut at, mut outcomes) = (0, Vec::new());
        while at < ticks.len() {
            let outcome = series.put(part, at..ticks.len(), room).unwrap();
            at += match outcome {
                PutOutcome::New(count) | PutOutcome::Replaced { count, .. } => count,
                PutOutcome::Full => 1,
            };
            outcomes.push(outcome);
        }
        outcomes
    }

    #[derive(Debug, Clone)]
    enum Step {
        Put(u16, u8, u8),
        Remove(u16, u16),
        Oldest(u8),
        /// Writes a number of consecutive ticks from a time on.
        Run(u16, u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..400u16, 0..3u8, any::<u8>()).prop_map(|(at, seq, p)| Step::Put(at, seq, p)),
            1 => (0..800u16, 0..300u16).prop_map(|(from, len)| Step::Remove(from, from + len)),
            1 => any::<u8>().prop_map(Step::Oldest),
            2 => (0..600u16, 0..300u16).prop_map(|(from, len)| Step::Run(from, len)),
        ]
    }

    proptest! {
        /// Compares a series with a map of the same keys after every step.
        #[test]
        fn series_equals_a_sorted_map(steps in prop::collection::vec(step(), 1..60)) {
            let (mut series, mut map) = (new(), BTreeMap::new());
            for (n, step) in steps.into_iter().enumerate() {
                let stamp = n as u64;
                match step {
                    Step::Put(at, seq, price) => {
                        // Two equal records, so that the second one replaces a record of the same batch.
                        let tick = tick(at, seq, price);
                        let before = map.insert(tick.sort_key(), tick.clone());
                        let replaced = |again| PutOutcome::Replaced { count: 1, again };
                        let first = if before.is_some() { replaced(0) } else { PutOutcome::New(1) };
                        let outcomes = put(&mut series, &[tick.clone(), tick], stamp, usize::MAX);
                        prop_assert_eq!(outcomes, [first, replaced(1)]);
                    }
                    Step::Run(from, len) => {
                        let ticks: Vec<_> = (from..from + len).map(|at| tick(at, 1, stamp.to_le_bytes()[0])).collect();
                        map.extend(ticks.iter().map(|tick| (tick.sort_key(), tick.clone())));
                        put(&mut series, &ticks, stamp, usize::MAX);
                    }
                    Step::Remove(from, to) => {
                        let window = Window { lo: tick(from, 1, 0).sort_key(), hi: tick(to, 1, 0).sort_key() };
                        let before = map.len();
                        map.retain(|sort_key, _| !(window.lo..window.hi).contains(sort_key));
                        prop_assert_eq!(series.remove(window), before - map.len());
                    }
                    Step::Oldest(count) => {
                        series.remove_oldest(usize::from(count));
                        for _ in 0..count { map.pop_first(); }
                    }
                }
                let want: Vec<_> = map.values().cloned().collect();
                prop_assert_eq!(series.len(), want.len());
                prop_assert_eq!(series.first(), want.first().map(Record::sort_key));
                prop_assert_eq!(series.last(), want.last().map(Record::sort_key));
                let part = Window { lo: tick(100, 1, 0).sort_key(), hi: tick(300, 0, 0).sort_key() };
                let expected: Vec<_> = map.range(part.lo..part.hi).map(|(_, tick)| tick.clone()).collect();
                let last = series.last_in(part).map(|(rows, at)| rows.as_slice::<PriceTick>().unwrap()[at].clone());
                prop_assert_eq!(last, expected.last().cloned());
                prop_assert_eq!(within(&series, part), expected);
                prop_assert_eq!(all(&series), want);
            }
        }
    }

    #[test]
    fn full_store_rejects_only_new_keys() {
        let mut series = new();
        let one = |at, price| [tick(at, 0, price)];
        assert_eq!(put(&mut series, &one(5, 0), 1, 1), [PutOutcome::New(1)]);
        for at in [4, 6] {
            assert_eq!(put(&mut series, &one(at, 0), 2, 0), [PutOutcome::Full]);
        }
        assert_eq!(put(&mut series, &one(5, 9), 2, 0), [PutOutcome::Replaced { count: 1, again: 0 }]);
        assert_eq!(all(&series), one(5, 9));
    }
}
