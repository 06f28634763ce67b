//! The search for the first or the last record of several keys, each within its recorded bounds.
//!
//! A search first reads the edge of the bounds: the unit that contains the record unless the bounds are too wide. It
//! then reads the rest of the bounds of the keys without a record.

use std::collections::{BTreeMap, HashMap};

use qi_core::store::Order;
use qi_core::{TimeRange, Timestamp};

use super::chunks::{ChunkScan, Chunks};
use super::connect::PgConnection;
use super::error::Cause;
use super::sql::RegisteredDataset;
use super::sub_batches::{MAX_SPAN, MIN_GAP};

/// A range of time, with the indexes of the keys that are read in it.
type Window = (TimeRange, Vec<usize>);

/// A search in parts that touch few chunks each. It is ascending for first records, and descending for last records.
pub(super) struct KeyScan {
    order: Order,
    /// The unread range of each key without a record.
    unread: BTreeMap<usize, TimeRange>,
    /// The windows of edges.
    edges: std::vec::IntoIter<Window>,
    /// The scan of the current window, with the keys of the window.
    current: Option<(ChunkScan, Vec<usize>)>,
    /// True if the current window is the rest of all keys, after the edges.
    is_rest: bool,
}

impl KeyScan {
    /// Creates a search in the range of each key. `edge_of` returns the edge of a range, and `chunk_of` the number of a
    /// time's chunk.
    pub(super) fn new(
        ranges: Vec<(usize, TimeRange)>,
        order: Order,
        edge_of: impl Fn(TimeRange) -> Result<TimeRange, Cause>,
        chunk_of: impl Fn(Timestamp) -> i64,
    ) -> Result<Self, Cause> {
        let unread: BTreeMap<usize, TimeRange> =
            ranges.into_iter().filter(|(_, range)| !range.is_empty()).collect();
        let mut edges = Vec::new();
        for (key, range) in &unread {
            // The bounds of a range from the beginning of the domain are unknown.
            if range.start() > Timestamp::MIN {
                edges.push((edge_of(*range)?, *key));
            }
        }
        let edges = windows(edges, chunk_of)?.into_iter();
        Ok(Self { order, unread, edges, current: None, is_rest: false })
    }

    /// Returns the next part of the search with the keys to read in it, or None at the end.
    pub(super) async fn next(
        &mut self,
        connection: &mut PgConnection<'_>,
        chunks: &Chunks,
        registered: &RegisteredDataset,
    ) -> Result<Option<Window>, Cause> {
        loop {
            if self.current.is_none() {
                self.current = self.next_window()?;
            }
            let Some((scan, keys)) = &mut self.current else { return Ok(None) };
            keys.retain(|key| self.unread.contains_key(key));
            let part = if keys.is_empty() { None } else { scan.next(connection, chunks, registered).await? };
            let Some(part) = part else {
                self.current = None;
                continue;
            };
            let keys = remove_part(&mut self.unread, keys, part, self.order)?;
            if !keys.is_empty() {
                return Ok(Some((part, keys)));
            }
        }
    }

    /// Ends the search for the keys whose records were found.
    pub(super) fn remove_found<T>(&mut self, found: &HashMap<usize, T>) {
        self.unread.retain(|key, _| !found.contains_key(key));
    }

    fn next_window(&mut self) -> Result<Option<(ChunkScan, Vec<usize>)>, Cause> {
        let (range, keys) = if let Some(window) = self.edges.next() {
            window
        } else {
            let start = self.unread.values().map(|range| range.start()).min();
            let end = self.unread.values().map(|range| range.end()).max();
            let Some((start, end)) = start.zip(end).filter(|_| !self.is_rest) else { return Ok(None) };
            self.is_rest = true;
            (TimeRange::new(start, end)?, self.unread.keys().copied().collect())
        };
        Ok(Some((ChunkScan::new(range, self.order), keys)))
    }
}

/// Joins the edges of keys to windows that span few chunks, as records are joined to sub-batches.
fn windows(
    mut edges: Vec<(TimeRange, usize)>,
    chunk_of: impl Fn(Timestamp) -> i64,
) -> Result<Vec<Window>, Cause> {
    let joins = |window: TimeRange, edge: TimeRange| {
        let gap = chunk_of(edge.start()) - chunk_of(window.end());
        let span = chunk_of(edge.end()) - chunk_of(window.start());
        edge.end() <= window.end() || (gap < MIN_GAP && span <= MAX_SPAN)
    };
    edges.sort_unstable_by_key(|(edge, key)| (edge.start(), *key));
    let mut windows: Vec<Window> = Vec::new();
    for (edge, key) in edges {
        match windows.last_mut() {
            Some((window, keys)) if joins(*window, edge) => {
                *window = TimeRange::new(window.start(), window.end().max(edge.end()))?;
                keys.push(key);
            }
            _ => windows.push((edge, vec![key])),
        }
    }
    Ok(windows)
}

/// Returns the keys whose unread range overlaps a part, and removes the part from these ranges. The parts of a key are
/// adjacent, so the range before a part has been read.
fn remove_part(
    unread: &mut BTreeMap<usize, TimeRange>,
    keys: &[usize],
    part: TimeRange,
    order: Order,
) -> Result<Vec<usize>, Cause> {
    let mut overlapping = Vec::new();
    for key in keys {
        let Some(range) = unread.get(key).copied() else { continue };
        if common(range, part)?.is_empty() {
            continue;
        }
        overlapping.push(*key);
        let (start, end) = match order {
            Order::Ascending => (part.end(), range.end()),
            Order::Descending => (range.start(), part.start()),
        };
        if start < end {
            unread.insert(*key, TimeRange::new(start, end)?);
        } else {
            unread.remove(key);
        }
    }
    Ok(overlapping)
}

/// Returns the common part of two ranges, which may be empty.
pub(super) fn common(a: TimeRange, b: TimeRange) -> Result<TimeRange, Cause> {
    let start = a.start().max(b.start());
    Ok(TimeRange::new(start, a.end().min(b.end()).max(start))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn range(from: i64, until: i64) -> TimeRange {
        let time = |day: i64| Timestamp::from_secs((16_000 + day) * DAY).unwrap();
        TimeRange::new(time(from), time(until)).unwrap()
    }

    /// Returns the windows of these edges, with one-day chunks.
    fn joined(days: &[(i64, i64)]) -> Vec<Window> {
        let edges = days.iter().enumerate().map(|(key, (from, until))| (range(*from, *until), key)).collect();
        windows(edges, |time| time.as_micros().div_euclid(DAY * 1_000_000)).unwrap()
    }

    #[test]
    fn near_edges_share_a_window_of_few_chunks() {
        assert_eq!(joined(&[(0, 7), (21, 28), (0, 7), (14, 21)]), [(range(0, 28), vec![0, 2, 3, 1])]);
        assert_eq!(joined(&[(15, 22), (0, 7)]), [(range(0, 7), vec![1]), (range(15, 22), vec![0])]);
        let adjacent: Vec<_> = (0..10).map(|week| (week * 7, week * 7 + 7)).collect();
        let spans: [Window; 2] = [(range(0, 49), (0..7).collect()), (range(49, 70), (7..10).collect())];
        assert_eq!(joined(&adjacent), spans);
        // A unit may have more chunks than a window that joins several units.
        assert_eq!(joined(&[(0, 168), (3, 168), (0, 168)]), [(range(0, 168), vec![0, 2, 1])]);
    }

    #[test]
    fn parts_shorten_the_unread_ranges() {
        let all = || BTreeMap::from([(0, range(0, 10)), (1, range(5, 10)), (2, range(20, 30))]);
        let mut unread = all();
        let keys = remove_part(&mut unread, &[0, 1, 2], range(5, 15), Order::Descending).unwrap();
        assert_eq!((keys, unread), (vec![0, 1], BTreeMap::from([(0, range(0, 5)), (2, range(20, 30))])));
        let mut unread = all();
        let keys = remove_part(&mut unread, &[0, 2], range(0, 9), Order::Ascending).unwrap();
        assert_eq!(keys, [0]);
        assert_eq!(unread[&0], range(9, 10));
    }
}
