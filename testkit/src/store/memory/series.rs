//! One series in order: sorted chunks, with a tail that takes what comes in order.
//!
//! A tick that is the newest of its instrument is pushed onto the tail, which costs no search. A late one is
//! moved into a chunk of at most [`CAP`] records, found through a tree of chunks: no order of arrival is
//! quadratic. The oldest go chunk by chunk.

use std::collections::BTreeMap;

use super::row::{Row, Spot, Window};

/// The most records of a chunk. Larger chunks make late records dearer, smaller ones the tree deeper.
const CAP: usize = 64;

/// Where a record stands, and the stamp of the batch that wrote it last.
#[derive(Debug, Clone, Copy)]
struct Key {
    spot: Spot,
    stamp: u64,
}

/// Neighbouring records in order. Their keys stand close together beside them, because a search among records
/// would touch a cache line for each one that it looks at.
#[derive(Debug)]
struct Chunk<R> {
    rows: Vec<R>,
    keys: Vec<Key>,
}

impl<R> Default for Chunk<R> {
    fn default() -> Self {
        Self { rows: Vec::new(), keys: Vec::new() }
    }
}

impl<R: Row> Chunk<R> {
    fn with_capacity(capacity: usize) -> Self {
        Self { rows: Vec::with_capacity(capacity), keys: Vec::with_capacity(capacity) }
    }

    fn first(&self) -> Option<Spot> {
        self.keys.first().map(|key| key.spot)
    }

    fn last(&self) -> Option<Spot> {
        self.keys.last().map(|key| key.spot)
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= CAP
    }

    fn push(&mut self, row: R, key: Key) {
        self.rows.push(row);
        self.keys.push(key);
    }

    fn insert(&mut self, at: usize, row: R, key: Key) {
        self.rows.insert(at, row);
        self.keys.insert(at, key);
    }

    /// Where in the rows a window begins and ends.
    fn bounds(&self, window: Window) -> (usize, usize) {
        let at = |spot: Spot| self.keys.partition_point(|key| key.spot < spot);
        let from = if self.first() >= Some(window.lo) { 0 } else { at(window.lo) };
        let to = if self.last() < Some(window.hi) { self.rows.len() } else { at(window.hi) };
        (from, to.max(from))
    }

    fn slice(&self, window: Window) -> &[R] {
        let (from, to) = self.bounds(window);
        &self.rows[from..to]
    }

    /// Keeps what lies outside; says how many went.
    fn remove(&mut self, from: usize, to: usize) -> usize {
        self.rows.drain(from..to);
        self.keys.drain(from..to);
        if self.rows.len() < CAP / 4 {
            self.rows.shrink_to_fit();
            self.keys.shrink_to_fit();
        }
        to - from
    }

    /// Takes the newer half off.
    fn split(&mut self) -> Self {
        let half = self.rows.len() / 2;
        let mut right = Self::with_capacity(CAP);
        right.rows.extend(self.rows.drain(half..));
        right.keys.extend(self.keys.drain(half..));
        right
    }
}

/// What became of a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// Its key is new.
    New,
    /// It replaced a record that the batch of this stamp had written.
    Replaced(u64),
    /// Its key is new and there is no room.
    Full,
}

/// The records of one series.
#[derive(Debug)]
pub(super) struct Series<R> {
    /// Each under a key that is not after its first record, and after all records of the chunk before.
    sealed: BTreeMap<Spot, Chunk<R>>,
    /// What is newer than every sealed record.
    tail: Chunk<R>,
    len: usize,
}

impl<R> Default for Series<R> {
    fn default() -> Self {
        Self { sealed: BTreeMap::new(), tail: Chunk::default(), len: 0 }
    }
}

impl<R: Row> Series<R> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn first(&self) -> Option<&R> {
        self.sealed.first_key_value().map_or(&self.tail, |(_, chunk)| chunk).rows.first()
    }

    pub(super) fn last(&self) -> Option<&R> {
        self.tail.rows.last().or_else(|| self.sealed.last_key_value()?.1.rows.last())
    }

    /// Writes a record; a new key only if there is room.
    pub(super) fn put(&mut self, row: &R, stamp: u64, room: bool) -> Put {
        let spot = row.spot();
        if self.tail.last().or_else(|| self.sealed.last_key_value()?.1.last()).is_none_or(|last| spot > last)
        {
            if !room {
                return Put::Full;
            }
            if self.tail.is_full() {
                self.seal();
            }
            self.tail.push(row.clone(), Key { spot, stamp });
            self.len += 1;
            return Put::New;
        }
        self.put_late(row, spot, stamp, room)
    }

    /// Moves the full tail among the sealed chunks.
    fn seal(&mut self) {
        let full = std::mem::replace(&mut self.tail, Chunk::with_capacity(CAP));
        if let Some(first) = full.first() {
            self.sealed.insert(first, full);
        }
    }

    /// Writes a record that is not the newest.
    fn put_late(&mut self, row: &R, spot: Spot, stamp: u64, room: bool) -> Put {
        let in_tail = self.sealed.is_empty() || self.tail.first().is_some_and(|first| first <= spot);
        let chunk = if in_tail {
            &mut self.tail
        } else {
            if self.sealed.first_key_value().is_some_and(|(key, _)| spot < *key) {
                if !room {
                    return Put::Full;
                }
                // The first chunk takes it, under a key that is still not after its first record.
                if let Some((_, chunk)) = self.sealed.pop_first() {
                    self.sealed.insert(spot, chunk);
                }
            }
            match self.sealed.range_mut(..=spot).next_back() {
                Some((_, chunk)) => chunk,
                None => &mut self.tail,
            }
        };
        let at = match chunk.keys.binary_search_by_key(&spot, |key| key.spot) {
            Ok(at) => {
                chunk.rows[at] = row.clone();
                return Put::Replaced(std::mem::replace(&mut chunk.keys[at].stamp, stamp));
            }
            Err(_) if !room => return Put::Full,
            Err(at) => at,
        };
        if chunk.is_full() {
            let mut right = chunk.split();
            let (half, into) =
                (chunk.rows.len(), if at > chunk.rows.len() { &mut right } else { &mut *chunk });
            let at = if at > half { at - half } else { at };
            into.insert(at, row.clone(), Key { spot, stamp });
            let left = if in_tail { std::mem::replace(chunk, right) } else { right };
            if let Some(first) = left.first() {
                self.sealed.insert(first, left);
            }
        } else {
            chunk.insert(at, row.clone(), Key { spot, stamp });
        }
        self.len += 1;
        Put::New
    }

    /// The records of a window as slices, in order.
    pub(super) fn slices(&self, window: Window) -> impl DoubleEndedIterator<Item = &[R]> {
        let Window { lo, hi } = window;
        let window = Window { lo, hi: hi.max(lo) };
        let from = self.sealed.range(..=lo).next_back().map_or(lo, |(key, _)| *key);
        self.sealed
            .range(from..window.hi)
            .map(|(_, chunk)| chunk)
            .chain(std::iter::once(&self.tail))
            .map(move |chunk| chunk.slice(window))
            .filter(|slice| !slice.is_empty())
    }

    /// The newest record of a window.
    pub(super) fn last_in(&self, window: Window) -> Option<&R> {
        self.slices(window).next_back()?.last()
    }

    /// Removes a window; says how many records went.
    pub(super) fn remove(&mut self, window: Window) -> usize {
        let Window { lo, hi } = window;
        if lo >= hi {
            return 0;
        }
        let from = self.sealed.range(..=lo).next_back().map_or(lo, |(key, _)| *key);
        let (mut gone, mut empty) = (0, Vec::new());
        for (key, chunk) in self.sealed.range_mut(from..hi) {
            let (from, to) = chunk.bounds(window);
            gone += chunk.remove(from, to);
            if chunk.rows.is_empty() {
                empty.push(*key);
            }
        }
        for key in empty {
            self.sealed.remove(&key);
        }
        let (from, to) = self.tail.bounds(window);
        gone += self.tail.remove(from, to);
        self.len -= gone;
        gone
    }

    /// Removes the oldest `n` records.
    pub(super) fn remove_oldest(&mut self, n: usize) {
        let mut left = n.min(self.len);
        self.len -= left;
        while left > 0 {
            match self.sealed.first_entry() {
                Some(entry) if entry.get().rows.len() <= left => left -= entry.remove().rows.len(),
                Some(mut entry) => left -= entry.get_mut().remove(0, left),
                None => left -= self.tail.remove(0, left),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use qi_core::{PriceTick, Timestamp};

    fn tick(at: u16, seq: u8, price: u8) -> PriceTick {
        let ts = Timestamp::from_secs(1_000_000 + i64::from(at)).unwrap();
        let price = (u32::from(price) + 1).to_string().parse().unwrap();
        PriceTick::new("x:Y".parse().unwrap(), ts, u64::from(seq), price).unwrap()
    }

    fn all(series: &Series<PriceTick>) -> Vec<PriceTick> {
        series.slices(Window::ALL).flatten().cloned().collect()
    }

    #[derive(Debug, Clone)]
    enum Step {
        Put(u16, u8, u8),
        Remove(u16, u16),
        Oldest(u8),
        /// So many in order after this moment.
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
        /// Against a map of the same keys, with everything that can be seen compared after every step.
        #[test]
        fn a_series_is_a_sorted_map(steps in prop::collection::vec(step(), 1..60)) {
            let (mut series, mut map) = (Series::default(), BTreeMap::new());
            for (n, step) in steps.into_iter().enumerate() {
                let stamp = n as u64;
                match step {
                    Step::Put(at, seq, price) => {
                        let tick = tick(at, seq, price);
                        let before = map.insert(tick.spot(), (tick.clone(), stamp));
                        let want = before.map_or(Put::New, |(_, stamp)| Put::Replaced(stamp));
                        prop_assert_eq!(series.put(&tick, stamp, true), want);
                    }
                    Step::Run(from, len) => for at in from..from + len {
                        let tick = tick(at, 1, 7);
                        map.insert(tick.spot(), (tick.clone(), stamp));
                        series.put(&tick, stamp, true);
                    },
                    Step::Remove(from, to) => {
                        let window = Window { lo: tick(from, 1, 0).spot(), hi: tick(to, 1, 0).spot() };
                        let before = map.len();
                        map.retain(|spot, _| !(window.lo..window.hi).contains(spot));
                        prop_assert_eq!(series.remove(window), before - map.len());
                    }
                    Step::Oldest(count) => {
                        series.remove_oldest(usize::from(count));
                        for _ in 0..count { map.pop_first(); }
                    }
                }
                let want: Vec<_> = map.values().map(|(tick, _)| tick.clone()).collect();
                prop_assert_eq!(series.len(), want.len());
                prop_assert_eq!(series.first(), want.first());
                prop_assert_eq!(series.last(), want.last());
                let part = Window { lo: tick(100, 1, 0).spot(), hi: tick(300, 0, 0).spot() };
                let within: Vec<_> = map.range(part.lo..part.hi).map(|(_, (t, _))| t.clone()).collect();
                prop_assert_eq!(series.last_in(part), within.last());
                prop_assert_eq!(series.slices(part).flatten().cloned().collect::<Vec<_>>(), within);
                prop_assert_eq!(all(&series), want);
            }
        }
    }

    #[test]
    fn a_full_store_refuses_new_keys_only() {
        let mut series = Series::default();
        assert_eq!(series.put(&tick(5, 0, 0), 1, true), Put::New);
        for at in [4, 6] {
            assert_eq!(series.put(&tick(at, 0, 0), 2, false), Put::Full);
        }
        assert_eq!(series.put(&tick(5, 0, 9), 2, false), Put::Replaced(1));
        assert_eq!(all(&series), [tick(5, 0, 9)]);
    }
}
