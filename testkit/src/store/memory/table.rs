//! The table of a dataset: its series by key, and its retention.

use std::collections::BTreeMap;

use qi_core::record::{Dataset, SeriesKey};
use qi_core::{Error, Timestamp};

use super::series::{PutOutcome, Series, StampedBatch, Window};

/// The series of one dataset. No series is empty.
#[derive(Debug)]
pub(super) struct Table {
    dataset: Dataset,
    pub(super) series: BTreeMap<SeriesKey, Series>,
    /// A lower bound of the times of all records.
    oldest: Timestamp,
}

/// The limits of an insert.
#[derive(Debug, Clone, Copy)]
pub(super) struct InsertLimits {
    /// The largest number of rows in all tables.
    pub(super) max_rows: usize,
    /// The largest number of rows in one series.
    pub(super) per_series: Option<usize>,
    /// The retention limit: older records are not stored.
    pub(super) cutoff: Option<Timestamp>,
}

/// The reason why a batch was not written completely. The records before the failure are stored.
#[derive(Debug)]
pub(super) enum InsertFailure {
    /// The table has no room for a new key.
    Full,
    /// The records could not be copied, because they have another type.
    Other(Error),
}

impl From<Error> for InsertFailure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl Table {
    pub(super) fn new(dataset: Dataset) -> Self {
        Self { dataset, series: BTreeMap::new(), oldest: Timestamp::MAX }
    }

    pub(super) fn dataset(&self) -> Dataset {
        self.dataset
    }

    /// Writes the records `from..to` of a batch in order, so the last record of a key wins. Returns the number of
    /// records that replaced a record of the same batch. `rows` is the number of rows in all tables, which this call
    /// updates. A record that is older than the cutoff is not stored and not counted.
    pub(super) fn put_all(
        &mut self,
        part: StampedBatch<'_>,
        (from, to): (usize, usize),
        rules: InsertLimits,
        rows: &mut usize,
    ) -> Result<u64, InsertFailure> {
        self.expire(rules.cutoff, rows);
        let mut duplicates = 0;
        let mut outcome = Ok(());
        let mut at = from;
        while at < to && outcome.is_ok() {
            // Consecutive records of one series need one search for the series.
            let (head, end) = (at, at + part.records.run(at..to));
            let key = part.records.series(head).to_owned();
            let series = self.series.entry(key).or_insert_with(|| Series::new(self.dataset));
            while at < end && outcome.is_ok() {
                let too_old = |at: usize| rules.cutoff.is_some_and(|cutoff| part.sort_keys[at].0 < cutoff);
                if too_old(at) {
                    at += 1;
                    continue;
                }
                let kept = match rules.cutoff {
                    None => end,
                    Some(_) => (at..end).find(|at| too_old(*at)).unwrap_or(end),
                };
                while at < kept {
                    let mut put = series.put(part, at..kept, rules.max_rows.saturating_sub(*rows));
                    if matches!(put, Ok(PutOutcome::Full)) {
                        *rows -= trim(series, rules.per_series);
                        if rules.per_series.is_some_and(|most| series.len() >= most) {
                            if series.first().is_some_and(|first| part.sort_keys[at] < first) {
                                at += 1;
                                continue; // Retention would remove this record first.
                            }
                            series.remove_oldest(1);
                            *rows -= 1;
                        }
                        put = series.put(part, at..at + 1, rules.max_rows.saturating_sub(*rows));
                    }
                    match put {
                        Ok(PutOutcome::New(count)) => {
                            *rows += count;
                            // The first of several new records is the oldest.
                            self.oldest = self.oldest.min(part.sort_keys[at].0);
                            at += count;
                        }
                        Ok(PutOutcome::Replaced { count, again }) => {
                            duplicates += again;
                            at += count;
                        }
                        Ok(PutOutcome::Full) => outcome = Err(InsertFailure::Full),
                        Err(error) => outcome = Err(error.into()),
                    }
                    if outcome.is_err() {
                        break;
                    }
                }
            }
            *rows -= trim(series, rules.per_series);
            if series.len() == 0 {
                self.series.remove(&part.records.series(head).to_owned());
            }
        }
        outcome.map(|()| duplicates)
    }

    /// Removes records older than the cutoff. Does not scan the table if there are none.
    pub(super) fn expire(&mut self, cutoff: Option<Timestamp>, rows: &mut usize) {
        let Some(cutoff) = cutoff.filter(|cutoff| self.oldest < *cutoff) else { return };
        self.remove(|_| true, Window { hi: (cutoff, 0), ..Window::ALL }, rows);
        let first = |series: &Series| series.first().map(|(time, _)| time);
        self.oldest = self.series.values().filter_map(first).min().unwrap_or(Timestamp::MAX);
    }

    /// Removes a window of the selected series.
    pub(super) fn remove(&mut self, of: impl Fn(&SeriesKey) -> bool, window: Window, rows: &mut usize) {
        self.series.retain(|key, series| {
            if of(key) {
                *rows -= series.remove(window);
            }
            series.len() > 0
        });
    }
}

/// Keeps the newest `most` records and returns the number of removed records.
fn trim(series: &mut Series, most: Option<usize>) -> usize {
    let excess = most.map_or(0, |most| series.len().saturating_sub(most));
    series.remove_oldest(excess);
    excess
}
