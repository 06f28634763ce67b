//! Numbers of trades without ids, continued from the trades in the store.
//!
//! A source without ids numbers the trades of one timestamp from 0 in its own order. If the trades of one timestamp are
//! split over two files, both files would use the same numbers, and the second file would overwrite trades of the
//! first. Therefore, before the trades of a timestamp are published, they are compared with the stored trades:
//!
//! - If the store has these trades in the same order, the trades keep their stored numbers: the file is read again.
//! - Other trades get the numbers after the highest stored number: the file continues the timestamp.
//!
//! A trade has no identity except its price and quantity, so a stored trade that equals a trade of the source may be
//! the same trade or another trade. Equal stored trades count as the same trades if one of these conditions is true:
//!
//! 1. The trades of the previous timestamp of the source counted as stored trades.
//! 2. All trades of the timestamp are at the beginning or the end of the stored timestamp, and the source continues
//!    with another timestamp whose next trade is stored and did not count as new.
//!
//! Otherwise the trades count as new, because a duplicate can be detected later, and a lost trade cannot. A file that
//! is read again, after any kill, is therefore stored once, with two exceptions. The first is a file that lies within
//! one timestamp, because the store cannot distinguish it from a further part of the same timestamp. The second is a
//! run that was killed before it stored a trade of the second timestamp of its file. Two files that are equal over
//! complete timestamps count as one file that is read again.
//!
//! Numbers follow the order of the runs, so read the earlier file first. Two concurrent runs over one instrument are
//! not supported.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use qi_core::store::RangeQuery;
use qi_core::{Instrument, PriceStore, PriceStoreExt, PriceTick, Result, TimeRange, Timestamp};

use crate::ordinals::{FileOrder, MAX_TIMESTAMPS};

/// The maximum distance between consecutive timestamps that one query covers.
const MAX_GAP: Duration = Duration::from_hours(1);

/// Numbers for the trades of one file of one instrument.
pub struct Numbering {
    store: Arc<dyn PriceStore>,
    /// The time of the latest stored trade at the start of the file. None before the query for this time, and
    /// `Timestamp::MIN` if no trade is stored.
    latest: Option<Timestamp>,
    /// The timestamps of the file up to `latest`. At most [`MAX_TIMESTAMPS`] are kept.
    timestamps: BTreeMap<Timestamp, NumberedTimestamp>,
    /// True if the trades of the previous timestamp were stored before this run. False before the first timestamp.
    previous_was_stored: bool,
    order: FileOrder,
}

impl fmt::Debug for Numbering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Numbering").field("latest", &self.latest).finish_non_exhaustive()
    }
}

/// The state of one timestamp of the file.
#[derive(Debug)]
struct NumberedTimestamp {
    /// The trades that were stored before this run.
    stored: Vec<PriceTick>,
    /// The index of the stored trade that the next trade of the source must equal, to keep its number.
    stored_index: usize,
    /// The number of the next new trade.
    next_seq: u64,
    /// True if all trades of the source count as new.
    is_new: bool,
}

impl NumberedTimestamp {
    /// Returns the number of the next trade of the source. After the first trade that differs from the stored trades,
    /// all trades are new.
    fn number(&mut self, tick: &PriceTick) -> u64 {
        match self.stored.get(self.stored_index) {
            Some(stored) if equal(stored, tick) => {
                self.stored_index += 1;
                stored.seq()
            }
            _ => {
                self.stored_index = self.stored.len();
                self.next_seq += 1;
                self.next_seq - 1
            }
        }
    }
}

/// Compares the values that identify a trade of one timestamp.
fn equal(one: &PriceTick, other: &PriceTick) -> bool {
    (one.price(), one.quantity()) == (other.price(), other.quantity())
}

impl Numbering {
    /// Creates the numbering of a file, which continues from the trades in `store`. Earlier files must be stored before
    /// the first trades of the file are numbered.
    pub fn new(store: Arc<dyn PriceStore>) -> Self {
        let (timestamps, order) = (BTreeMap::new(), FileOrder::default());
        Self { store, latest: None, timestamps, previous_was_stored: false, order }
    }

    /// Starts another file.
    pub fn restart(&mut self) {
        *self = Self::new(self.store.clone());
    }

    /// Numbers the next trades of the source. `following` is the trade after them. After an error the call can be
    /// repeated.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn number(&mut self, ticks: &mut [PriceTick], following: Option<&PriceTick>) -> Result<()> {
        let Some(instrument) = ticks.first().map(|tick| tick.instrument().clone()) else { return Ok(()) };
        let latest = self.latest(&instrument).await?;
        let wanted = ticks.iter().chain(following).map(PriceTick::ts).filter(|ts| *ts <= latest);
        let wanted = wanted.filter(|ts| !self.timestamps.contains_key(ts)).collect();
        let mut stored = self.stored(&instrument, &wanted).await?;
        for (ts, indexes) in by_time(ticks) {
            if ts > latest {
                self.previous_was_stored = false;
                continue;
            }
            if !self.timestamps.contains_key(&ts) {
                // The trades of a timestamp need not be adjacent. The next timestamp is the first other timestamp after
                // the first trade.
                let next_trade = ticks[indexes[0]..].iter().chain(following).find(|tick| tick.ts() != ts);
                let next_is_stored = next_trade.is_some_and(|next| {
                    let stored_there = match self.timestamps.get(&next.ts()) {
                        Some(timestamp) if timestamp.is_new => None,
                        Some(timestamp) => Some(&timestamp.stored),
                        None => stored.get(&next.ts()),
                    };
                    stored_there.is_some_and(|stored_there| stored_there.iter().any(|tick| equal(tick, next)))
                });
                let own: Vec<&PriceTick> = indexes.iter().map(|index| &ticks[*index]).collect();
                // Removed only now, because the check of the previous timestamp may have read these trades.
                let found = stored.remove(&ts).unwrap_or_default();
                let stored_index = start_index(&own, &found, self.previous_was_stored, next_is_stored);
                let is_new = stored_index == found.len();
                self.previous_was_stored = !is_new;
                let next_seq = found.last().map_or(0, |last| last.seq() + 1);
                let timestamp = NumberedTimestamp { stored: found, stored_index, next_seq, is_new };
                self.timestamps.insert(ts, timestamp);
            }
            let Some(timestamp) = self.timestamps.get_mut(&ts) else { continue };
            for index in indexes {
                let tick = &ticks[index];
                let seq = timestamp.number(tick);
                if seq != tick.seq() {
                    let numbered = PriceTick::new(instrument.clone(), ts, seq, tick.price())?;
                    ticks[index] = numbered.with_quantity(tick.quantity()).with_side(tick.side());
                }
            }
        }
        // The source keeps the same number of timestamps, and rejects trades beyond them.
        let is_ascending = ticks.iter().fold(true, |_, tick| self.order.is_ascending(tick.ts()));
        while self.timestamps.len() > MAX_TIMESTAMPS {
            if is_ascending {
                self.timestamps.pop_first()
            } else {
                self.timestamps.pop_last()
            };
        }
        Ok(())
    }

    /// Returns the time of the latest stored trade at the start of the file.
    async fn latest(&mut self, instrument: &Instrument) -> Result<Timestamp> {
        if let Some(latest) = self.latest {
            return Ok(latest);
        }
        let latest = self.store.latest_tick(instrument).await?.map_or(Timestamp::MIN, |tick| tick.ts());
        Ok(*self.latest.insert(latest))
    }

    /// Returns the stored trades of these timestamps.
    async fn stored(
        &self,
        instrument: &Instrument,
        wanted: &BTreeSet<Timestamp>,
    ) -> Result<BTreeMap<Timestamp, Vec<PriceTick>>> {
        let mut ranges: Vec<(Timestamp, Timestamp)> = Vec::new();
        for ts in wanted {
            match ranges.last_mut() {
                Some((_, last)) if ts.duration_since(*last) <= MAX_GAP => *last = *ts,
                _ => ranges.push((*ts, *ts)),
            }
        }
        let mut found: BTreeMap<Timestamp, Vec<PriceTick>> = BTreeMap::new();
        for (first, last) in ranges {
            let end = last.checked_add(Duration::from_micros(1)).unwrap_or(Timestamp::MAX);
            let query = RangeQuery::new(instrument.clone(), TimeRange::new(first, end)?);
            let mut ticks = self.store.tick_stream(query);
            while let Some(tick) = ticks.try_next().await? {
                if wanted.contains(&tick.ts()) {
                    found.entry(tick.ts()).or_default().push(tick);
                }
            }
        }
        Ok(found)
    }
}

/// Returns the indexes of each timestamp, in the order of the first occurrences of the timestamps.
fn by_time(ticks: &[PriceTick]) -> Vec<(Timestamp, Vec<usize>)> {
    let mut groups: Vec<(Timestamp, Vec<usize>)> = Vec::new();
    let mut group_of = HashMap::new();
    for (index, tick) in ticks.iter().enumerate() {
        let group = *group_of.entry(tick.ts()).or_insert_with(|| {
            groups.push((tick.ts(), Vec::new()));
            groups.len() - 1
        });
        groups[group].1.push(index);
    }
    groups
}

/// Returns the index of the stored trade that equals the source's first trade of a timestamp. If the trades of the
/// source count as new, returns the number of stored trades. The module documentation has the rules.
fn start_index(
    own: &[&PriceTick],
    stored: &[PriceTick],
    previous_was_stored: bool,
    next_is_stored: bool,
) -> usize {
    let is_read_again = |from: &usize| {
        let end = from + own.len();
        let is_at_an_end = end == stored.len() || (*from == 0 && end < stored.len());
        (previous_was_stored || (next_is_stored && is_at_an_end))
            && stored[*from..].iter().zip(own).all(|(stored, own)| equal(stored, own))
    };
    (0..stored.len()).find(is_read_again).unwrap_or(stored.len())
}
