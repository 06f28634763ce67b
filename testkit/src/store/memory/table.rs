//! A dataset: its series by key, and what it removes by itself.

use std::collections::BTreeMap;

use qi_core::Timestamp;

use super::row::{Row, Window};
use super::series::{Put, Series};

/// The series of one dataset. None of them is empty.
#[derive(Debug)]
pub(super) struct Table<R: Row> {
    pub(super) series: BTreeMap<R::Series, Series<R>>,
    /// No record is older than this.
    oldest: Timestamp,
}

impl<R: Row> Default for Table<R> {
    fn default() -> Self {
        Self { series: BTreeMap::new(), oldest: Timestamp::MAX }
    }
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
    /// The stamp of the batch.
    pub(super) stamp: u64,
}

/// There is no room for a new key. What came before it in the batch is stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl<R: Row> Table<R> {
    /// Writes records, in order, so that the later one of a key wins. Says how many replaced one of the same
    /// batch. `rows` counts the rows of all tables. What is too old needs no room, because it is not stored.
    pub(super) fn put_all(&mut self, batch: &[R], rules: Rules, rows: &mut usize) -> Result<u64, Full> {
        self.expire(rules.cutoff, rows);
        let mut duplicates = 0;
        let mut rest = batch;
        let mut outcome = Ok(());
        while let (Some(head), Ok(())) = (rest.first(), &outcome) {
            // A run of one series needs one search for it.
            let run = rest.iter().take_while(|row| row.same_series(head)).count();
            let (run, after) = rest.split_at(run);
            rest = after;
            let series = self.series.entry(head.series()).or_default();
            for row in run {
                if rules.cutoff.is_some_and(|cutoff| row.time() < cutoff) {
                    continue;
                }
                let mut put = series.put(row, rules.stamp, *rows < rules.max_rows);
                if put == Put::Full {
                    *rows -= trim(series, rules.per_series);
                    if rules.per_series.is_some_and(|most| series.len() >= most) {
                        if series.first().is_some_and(|first| row.spot() < first.spot()) {
                            continue; // It would be the first to go.
                        }
                        series.remove_oldest(1);
                        *rows -= 1;
                    }
                    put = series.put(row, rules.stamp, *rows < rules.max_rows);
                }
                match put {
                    Put::New => {
                        *rows += 1;
                        self.oldest = self.oldest.min(row.time());
                    }
                    Put::Replaced(stamp) => duplicates += u64::from(stamp == rules.stamp),
                    Put::Full => {
                        outcome = Err(Full);
                        break;
                    }
                }
            }
            *rows -= trim(series, rules.per_series);
            if series.len() == 0 {
                self.series.remove(&head.series());
            }
        }
        outcome.map(|()| duplicates)
    }

    /// Removes what is too old. Costs nothing while nothing is.
    pub(super) fn expire(&mut self, cutoff: Option<Timestamp>, rows: &mut usize) {
        let Some(cutoff) = cutoff.filter(|cutoff| self.oldest < *cutoff) else { return };
        self.remove(|_| true, Window { hi: (cutoff, 0), ..Window::ALL }, rows);
        let first = |series: &Series<R>| series.first().map(qi_core::store::Record::time);
        self.oldest = self.series.values().filter_map(first).min().unwrap_or(Timestamp::MAX);
    }

    /// Removes a window of the series that are chosen.
    pub(super) fn remove(&mut self, of: impl Fn(&R::Series) -> bool, window: Window, rows: &mut usize) {
        self.series.retain(|key, series| {
            if of(key) {
                *rows -= series.remove(window);
            }
            series.len() > 0
        });
    }
}

/// Keeps the newest so many; says how many went.
fn trim<R: Row>(series: &mut Series<R>, most: Option<usize>) -> usize {
    let excess = most.map_or(0, |most| series.len().saturating_sub(most));
    series.remove_oldest(excess);
    excess
}
