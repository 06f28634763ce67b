//! The ids that a run has published.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use qi_core::Timestamp;
use qi_files::coverage::{CoverageRange, Ledger};
use rangemap::{RangeInclusiveMap, RangeInclusiveSet};
use tokio::time::Instant;

use super::protocol::Trade;

/// The largest step from the highest known id to the id of a streamed trade that needs no confirmation.
const MAX_ID_STEP: u64 = 100_000;
/// The largest number of trades that wait for the confirmation of their ids.
const MAX_HELD: usize = 8_192;
/// The largest number of ids between two gaps that are filled together. A page of the history has 1,000 trades.
const MAX_BETWEEN: u64 = 500;

/// A range of ids that the run has neither published nor found in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) ids: RangeInclusive<u64>,
    /// The time of the trade before the gap.
    pub(super) after: Timestamp,
}

/// The ids that need no publishing: those of the ledger, those that were published, and those that the exchange does not
/// have. Every id is published at most once, unless it is [lost](Self::forget).
#[derive(Debug)]
pub(super) struct Published {
    ids: RangeInclusiveSet<u64>,
    /// The times at the ends of the ranges of `ids`.
    edges: BTreeMap<u64, Timestamp>,
    /// The first id of interest, and a time before this trade.
    first: Option<(u64, Timestamp)>,
    /// The highest id at the first answer of the exchange.
    began: Option<u64>,
    /// The ids that the run does not fetch, because of the limit on the backfill.
    skipped: Option<RangeInclusiveSet<u64>>,
    /// Streamed trades with ids far above the known ids.
    held: Vec<Trade>,
    /// True if the latest trade of the history must be requested.
    pub(super) is_latest_wanted: bool,
    /// True if the history has newer trades than a quiet stream.
    pub(super) is_stream_behind: bool,
    /// Ids that a page of the history did not have, with the time of its response.
    suspected: RangeInclusiveMap<u64, Instant>,
    /// Ids that the exchange does not have and that the ledger does not know yet, with the time of the trade before.
    pub(super) absent: Vec<(RangeInclusive<u64>, Timestamp)>,
    /// The highest id that was published before the end of the latest fill. If the store has a higher id, the trades of
    /// the fill have passed the bus.
    pub(super) filled_before: u64,
    /// The time of the latest trade with a new highest id.
    pub(super) heard: Instant,
    /// The time of the reconnect that caused the first present gap, or else of its detection.
    pub(super) gap_since: Option<Instant>,
}

impl Published {
    pub(super) fn new(ledger: &Ledger) -> Self {
        let ranges = ledger.ranges();
        let known = |range: &&CoverageRange| range.proven.is_some();
        let ids: RangeInclusiveSet<u64> = ledger.known();
        let mut edges: BTreeMap<_, _> =
            ranges.iter().filter(known).map(|range| (*range.ids.end(), range.end)).collect();
        edges.retain(|id, _| id.checked_add(1).is_none_or(|next| !ids.contains(&next)));
        Self {
            ids,
            edges,
            first: ranges.first().map(|range| (*range.ids.start(), range.start)),
            began: None,
            skipped: None,
            held: Vec::new(),
            is_latest_wanted: true,
            is_stream_behind: false,
            suspected: RangeInclusiveMap::new(),
            absent: Vec::new(),
            filled_before: 0,
            heard: Instant::now(),
            gap_since: None,
        }
    }

    /// Returns the first id of interest, and a time before this trade.
    pub(super) fn first(&self) -> Option<(u64, Timestamp)> {
        self.first
    }

    pub(super) fn ids(&self) -> &RangeInclusiveSet<u64> {
        &self.ids
    }

    /// Returns the highest id.
    pub(super) fn last(&self) -> u64 {
        self.ids.last().map_or(0, |ids| *ids.end())
    }

    /// Adds a trade. Returns false if it must not be published: it was added before, or lies before the first id.
    pub(super) fn insert(&mut self, id: u64, time: Timestamp) -> bool {
        let (first, _) = *self.first.get_or_insert((id, time));
        if id < first || self.ids.contains(&id) {
            return false;
        }
        if id > self.last() {
            self.heard = Instant::now();
        }
        self.add(id..=id, time);
        true
    }

    /// Returns the streamed trades with plausible ids, and holds the others until [`Self::confirm`].
    pub(super) fn hold_implausible(&mut self, trades: Vec<Trade>) -> Vec<Trade> {
        let limit = self.last().saturating_add(MAX_ID_STEP);
        let (plausible, others): (Vec<_>, Vec<_>) = trades.into_iter().partition(|trade| trade.id <= limit);
        self.is_latest_wanted |= !others.is_empty();
        self.is_stream_behind &= plausible.is_empty() && others.is_empty();
        let free = MAX_HELD.saturating_sub(self.held.len());
        self.held.extend(others.into_iter().take(free));
        plausible
    }

    /// Returns the held trades whose ids are plausible after the highest id of the history, and the number of the others,
    /// which are discarded.
    pub(super) fn confirm(&mut self, latest: u64) -> (Vec<Trade>, usize) {
        let limit = self.last().max(latest).saturating_add(MAX_ID_STEP);
        let (confirmed, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.held).into_iter().partition(|trade| trade.id <= limit);
        (confirmed, others.len())
    }

    /// Begins the search for gaps, after the exchange has named its latest trade.
    pub(super) fn begin(&mut self) {
        let last = self.last();
        self.began.get_or_insert(last);
    }

    /// Adds ids that a page of the history does not have, if an earlier page did not have them `pause` ago. Returns the
    /// number of added ids. `after` is the time of the trade before the ids.
    pub(super) fn insert_absent(
        &mut self,
        ids: &RangeInclusive<u64>,
        after: Timestamp,
        pause: Duration,
    ) -> u64 {
        let missing: Vec<_> = self.ids.gaps(ids).collect();
        let mut count = 0;
        for ids in missing {
            for new in self.suspected.gaps(&ids).collect::<Vec<_>>() {
                self.suspected.insert(new, Instant::now());
            }
            if self.suspected.overlapping(&ids).any(|(_, since)| since.elapsed() < pause) {
                continue;
            }
            count += (ids.end() - ids.start()).saturating_add(1);
            self.add(ids.clone(), after);
            self.absent.push((ids, after));
        }
        count
    }

    fn add(&mut self, ids: RangeInclusive<u64>, time: Timestamp) {
        let (first, last) = (*ids.start(), *ids.end());
        self.suspected.remove(ids.clone());
        self.ids.insert(ids);
        self.edges.remove(&first.wrapping_sub(1));
        if !self.ids.contains(&last.saturating_add(1)) {
            self.edges.insert(last, time);
        }
    }

    /// Removes ids whose trades did not reach the store, so that they are fetched again. `after` is the time of a trade
    /// before them.
    pub(super) fn forget(&mut self, ids: RangeInclusive<u64>, after: Timestamp) {
        if let Some(before) = ids.start().checked_sub(1) {
            self.edges.insert(before, after);
        }
        self.ids.remove(ids);
    }

    /// Returns the gaps, ascending. At most `max_backfill` ids from before the start of the run are part of a gap, the
    /// oldest ones. Gaps near each other are one gap, so that one page of the history fills them.
    pub(super) fn gaps(&mut self, max_backfill: u64) -> Vec<Gap> {
        let (Some((first, start)), Some(began)) = (self.first, self.began) else { return Vec::new() };
        let last = self.last();
        if self.skipped.is_none() {
            let (mut skipped, mut left) = (RangeInclusiveSet::new(), max_backfill);
            for ids in self.ids.gaps(&(first..=began)) {
                let count = (ids.end() - ids.start()).saturating_add(1);
                if count > left {
                    skipped.insert(ids.start() + left..=*ids.end());
                }
                left = left.saturating_sub(count);
            }
            for ids in skipped.iter() {
                tracing::warn!(?ids, max_backfill, "ids stay unknown, because the gap is above the limit");
            }
            self.skipped = Some(skipped);
        }
        let mut covered = self.ids.clone();
        covered.extend(self.skipped.iter().flat_map(RangeInclusiveSet::iter).cloned());
        let mut gaps: Vec<Gap> = Vec::new();
        for ids in covered.gaps(&(first..=last)) {
            match gaps.last_mut() {
                Some(gap) if ids.start() - gap.ids.end() <= MAX_BETWEEN => {
                    gap.ids = *gap.ids.start()..=*ids.end();
                }
                _ => {
                    let after = self.edges.range(..*ids.start()).next_back().map_or(start, |(_, time)| *time);
                    gaps.push(Gap { ids, after });
                }
            }
        }
        if gaps.is_empty() {
            // Before the history has named its latest trade, a gap after a reconnect is not visible.
            self.gap_since = self.gap_since.filter(|_| self.is_latest_wanted);
        } else {
            self.gap_since.get_or_insert_with(Instant::now);
        }
        gaps
    }
}
