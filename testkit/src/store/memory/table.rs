//! A dataset: its series by key, and what it removes by itself.

use std::collections::BTreeMap;

use qi_core::record::{Dataset, SeriesKey};
use qi_core::{Error, Timestamp};

use super::series::{Part, Put, Series, Window};

/// The series of one dataset. None of them is empty.
#[derive(Debug)]
pub(super) struct Table {
    dataset: Dataset,
    pub(super) series: BTreeMap<SeriesKey, Series>,
    /// No record is older than this.
    oldest: Timestamp,
}

/// What an insert has to obey.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// The most rows of all tables.
    pub(super) max_rows: usize,
    /// The most rows of one series.
    pub(super) per_series: Option<usize>,
    /// Records before this are too old to be kept.
    pub(super) cutoff: Option<Timestamp>,
}

/// Why a batch was not written to its end. What came before it in the batch is stored.
#[derive(Debug)]
pub(super) enum Stopped {
    /// There is no room for a new key.
    Full,
    /// The records are of another type.
    Other(Error),
}

impl From<Error> for Stopped {
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

    /// Writes the records `from..to` of a batch, in order, so that the later one of a key wins. Says how many replaced
    /// one of the same batch. `rows` counts the rows of all tables. What is too old needs no room, because it is not
    /// stored.
    pub(super) fn put_all(
        &mut self,
        part: Part<'_>,
        (from, to): (usize, usize),
        rules: Rules,
        rows: &mut usize,
    ) -> Result<u64, Stopped> {
        self.expire(rules.cutoff, rows);
        let mut duplicates = 0;
        let mut outcome = Ok(());
        let mut at = from;
        while at < to && outcome.is_ok() {
            // A run of one series needs one search for it.
            let (head, end) = (at, at + part.records.run(at..to));
            let key = part.records.series(head).to_owned();
            let series = self.series.entry(key).or_insert_with(|| Series::new(self.dataset));
            while at < end && outcome.is_ok() {
                let too_old = |at: usize| rules.cutoff.is_some_and(|cutoff| part.places[at].0 < cutoff);
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
                    if matches!(put, Ok(Put::Full)) {
                        *rows -= trim(series, rules.per_series);
                        if rules.per_series.is_some_and(|most| series.len() >= most) {
                            if series.first().is_some_and(|first| part.places[at] < first) {
                                at += 1;
                                continue; // It would be the first to go.
                            }
                            series.remove_oldest(1);
                            *rows -= 1;
                        }
                        put = series.put(part, at..at + 1, rules.max_rows.saturating_sub(*rows));
                    }
                    match put {
                        Ok(Put::New(count)) => {
                            *rows += count;
                            // In a run of new records the first is the oldest.
                            self.oldest = self.oldest.min(part.places[at].0);
                            at += count;
                        }
                        Ok(Put::Replaced { count, again }) => {
                            duplicates += again;
                            at += count;
                        }
                        Ok(Put::Full) => outcome = Err(Stopped::Full),
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

    /// Removes what is too old. Costs nothing while nothing is.
    pub(super) fn expire(&mut self, cutoff: Option<Timestamp>, rows: &mut usize) {
        let Some(cutoff) = cutoff.filter(|cutoff| self.oldest < *cutoff) else { return };
        self.remove(|_| true, Window { hi: (cutoff, 0), ..Window::ALL }, rows);
        let first = |series: &Series| series.first().map(|(time, _)| time);
        self.oldest = self.series.values().filter_map(first).min().unwrap_or(Timestamp::MAX);
    }

    /// Removes a window of the series that are chosen.
    pub(super) fn remove(&mut self, of: impl Fn(&SeriesKey) -> bool, window: Window, rows: &mut usize) {
        self.series.retain(|key, series| {
            if of(key) {
                *rows -= series.remove(window);
            }
            series.len() > 0
        });
    }
}

/// Keeps the newest so many; says how many went.
fn trim(series: &mut Series, most: Option<usize>) -> usize {
    let excess = most.map_or(0, |most| series.len().saturating_sub(most));
    series.remove_oldest(excess);
    excess
}
