//! Inference of the interval of candles from their times.
//!
//! A sparse file has no row for a candle without trades, so candles of one minute can be 15 minutes apart by chance. A
//! row off the grid can be a bad line. Two kinds of evidence are therefore accepted:
//!
//! - All rows but some bad lines are on the grid of the interval, and most of them follow each other at exactly this
//!   interval. For an interval of which shorter candles exist, there are so many such rows that chance is excluded.
//! - The rows are on the grid of one minute and not, apart from some bad lines, on the grid of any longer interval.
//!   These are sparse candles of one minute.

use qi_core::{Interval, Timestamp};

/// The required bits of evidence: an error probability below one in a million.
const BITS: f64 = 20.0;

/// Each interval of more than one minute is a multiple of 3 or 5 minutes. Its rows have the same remainder of this number.
/// Rows on the grid of 2 minutes have no interval.
const DIVISORS: [usize; 3] = [2, 3, 5];

/// Counts the rows on the grid of each interval.
#[derive(Debug, Default)]
pub(crate) struct IntervalDetector {
    rows: u64,
    on: [AlignedRows; Interval::ALL.len()],
    /// The rows on the grid of one minute by their remainder of 2, 3 and 5 minutes.
    remainders: [[u64; 5]; DIVISORS.len()],
    previous: Option<Timestamp>,
}

/// The rows on the grid of one interval.
#[derive(Debug, Default, Clone, Copy)]
struct AlignedRows {
    rows: u64,
    /// The rows that are one interval after or before the previous row on the grid.
    steps: u64,
    previous: Option<Timestamp>,
}

impl AlignedRows {
    fn add(&mut self, time: Timestamp, interval: Interval) {
        self.rows += 1;
        if let Some(previous) = self.previous.replace(time) {
            self.steps += u64::from(
                time.as_micros().abs_diff(previous.as_micros()) == interval.as_micros().unsigned_abs(),
            );
        }
    }

    /// Returns whether more than half of the distances between consecutive rows are one interval.
    fn is_consecutive(self) -> bool {
        self.steps * 2 > self.rows.saturating_sub(1)
    }
}

impl IntervalDetector {
    pub(crate) fn add(&mut self, time: Timestamp) {
        // A repeated row is no evidence.
        if self.previous.replace(time) == Some(time) {
            return;
        }
        self.rows += 1;
        if Interval::M1.floor(time) == time {
            let minutes = usize::try_from(time.as_micros() / Interval::M1.as_micros()).unwrap_or(0);
            for (rows, divisor) in self.remainders.iter_mut().zip(DIVISORS) {
                rows[minutes % divisor] += 1;
            }
        }
        for (on, interval) in self.on.iter_mut().zip(Interval::ALL) {
            if interval.floor(time) == time {
                on.add(time, *interval);
            }
        }
    }

    /// Returns the interval that the rows prove, or None.
    pub(crate) fn interval(&self) -> Option<Interval> {
        let mut intervals = Interval::ALL.iter().zip(self.on);
        let proven =
            intervals.find(|(interval, on)| self.proves(**interval, *on)).map(|(interval, _)| *interval);
        proven.or_else(|| self.is_sparse().then_some(Interval::M1))
    }

    fn proves(&self, interval: Interval, on: AlignedRows) -> bool {
        if !on.is_consecutive() || !self.has_few_others(on.rows) {
            return false;
        }
        // Candles of seconds have a row for each second, so they are on no grid of minutes.
        let is_shorter = |other: &&Interval| {
            **other < interval
                && other.divides(interval)
                && (**other >= Interval::M1 || interval < Interval::M1)
        };
        let Some(shorter) = Interval::ALL.iter().rev().find(is_shorter) else { return true };
        #[expect(clippy::cast_precision_loss, reason = "the evidence needs no exact count")]
        let steps = on.steps as f64;
        #[expect(clippy::cast_precision_loss, reason = "intervals are far below 2^52 microseconds")]
        let ratio = (interval.as_micros() / shorter.as_micros()) as f64;
        // If rows of the shorter interval have random distances, a distance is the longer interval with a probability
        // of at most 1 / (2 * ratio). The factor of 2 only compensates for the choice of the rows and distances that
        // do not count.
        let choices = bits(on.rows, self.rows) + bits(on.steps, on.rows - 1);
        steps * ratio.log2() - (choices - steps).max(0.0) >= BITS
    }

    /// Returns whether at most one row in 20 is off a grid, or one row of a short file. More rows are no bad lines, but
    /// rows of a shorter interval.
    fn has_few_others(&self, rows: u64) -> bool {
        self.rows - rows <= (self.rows / 20).max(1)
    }

    /// Returns whether the rows are sparse candles of one minute. The rows of each longer interval, also with the times of
    /// their last minutes, have one remainder of three or five minutes. The rows with other remainders must be too many
    /// for bad lines, and so must the rows off the grid of two minutes.
    fn is_sparse(&self) -> bool {
        let on = |interval: Interval| self.on[interval as usize].rows;
        let minutes = on(Interval::M1);
        let is_off = |rows: u64| minutes - rows > (self.rows / 4).max(1);
        let is_other = |(interval, on): (&Interval, AlignedRows)| {
            *interval > Interval::M1 && on.is_consecutive() && on.rows * 2 >= self.rows
        };
        let [two, three, five] = self.remainders;
        self.has_few_others(minutes)
            && is_off(two[0])
            && [three, five].iter().all(|rows| is_off(rows.iter().copied().max().unwrap_or(0)))
            && !Interval::ALL.iter().zip(self.on).any(is_other)
    }
}

/// Returns the bits of the choice of `part` of `all`.
fn bits(part: u64, all: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "the evidence needs no exact count")]
    let (part, all) = (part as f64, all as f64);
    let share = part / all;
    if part == 0.0 || share >= 1.0 {
        0.0
    } else {
        -all * (share * share.log2() + (1.0 - share) * (1.0 - share).log2())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use super::*;

    fn of_seconds(seconds: impl IntoIterator<Item = i64>) -> Option<Interval> {
        let mut detector = IntervalDetector::default();
        for second in seconds {
            detector.add(Timestamp::from_secs(1_709_251_200 + second).unwrap());
        }
        detector.interval()
    }

    fn of(minutes: impl IntoIterator<Item = i64>) -> Option<Interval> {
        of_seconds(minutes.into_iter().map(|minute| minute * 60))
    }

    #[test]
    fn sparse_rows_have_no_interval() {
        assert_eq!(of([0, 15, 45, 91, 150, 197]), Some(Interval::M1));
        assert_eq!(of([0, 15, 45, 90]), None, "on the grid of 15 minutes by chance");
        assert_eq!(of([0, 15, 30, 45, 60]), None);
        assert_eq!(of([0, 5, 20, 35, 70, 145]), None);
        assert_eq!(of([0, 1]), Some(Interval::M1));
        assert_eq!(of([0, 60]), None);
        assert_eq!(of([0, 7]), None, "one of the rows can be a bad line");
        assert_eq!(of([0]), None);
        let junk = [0, 900, 1_830, 2_700, 5_400];
        assert_eq!(of_seconds(junk), None, "a row off the grid proves nothing about the others");
        assert_eq!(of([]), None);
        for step in [2, 10] {
            assert_eq!(of((0..100).map(|n| n * step)), None, "{step} minutes are no interval");
            assert_eq!(of((0..100).map(|n| n * step).chain([1_003])), None, "{step} minutes and a bad line");
        }
        assert_eq!(of((0..30).map(|n| n * n % 97)), Some(Interval::M1));
        assert_eq!(of((0..60).map(|n| n * n % 97 * 60)), None, "sparse rows on full hours");
        for step in [3, 5, 15, 30, 60, 240, 1_440] {
            assert_eq!(of((1..31).map(|n| n * step - 1)), None, "the last minutes of {step} minutes");
        }
    }

    #[test]
    fn many_rows_off_a_grid_are_rows_of_a_shorter_interval() {
        let grid = |rows: i64| (0..rows).map(|n| n * 15);
        assert_eq!(of(grid(24).chain([361, 367, 394, 402, 419, 431])), None);
        assert_eq!(of(grid(24).chain([361, 367])), None);
        assert_eq!(of(grid(24).chain([361])), Some(Interval::M15), "one bad line");
        assert_eq!(of(grid(40).chain([601, 607])), Some(Interval::M15), "two of 42 rows");
        for (step, interval) in [(5, Interval::S5), (15, Interval::S15), (60, Interval::M1)] {
            let grid = |rows: i64| (0..rows).map(move |n| n * step);
            let off = [1, 7, 34, 42, 59, 71].map(|off| 24 * step + off);
            assert_eq!(of_seconds(grid(24).chain(off)), None, "{step} s");
            assert_eq!(
                of_seconds(grid(24).chain([24 * step + 1])),
                Some(interval),
                "{step} s and one bad line"
            );
        }
    }

    const LONGER: [(Interval, i64); 8] = [
        (Interval::M3, 3),
        (Interval::M5, 5),
        (Interval::M15, 15),
        (Interval::M30, 30),
        (Interval::H1, 60),
        (Interval::H4, 240),
        (Interval::D1, 1_440),
        (Interval::W1, 10_080),
    ];

    #[test]
    fn many_consecutive_rows_have_an_interval() {
        for (interval, step) in LONGER.into_iter().chain([(Interval::M1, 1)]) {
            // 2024-03-04 is a Monday.
            let rows = (0..30).map(|n| 4_320 + n * step);
            assert_eq!(of(rows.clone()), Some(interval));
            assert_eq!(of(rows.clone().rev()), Some(interval), "the latest row first");
            let sparse = (0..200).filter(|n| n % 4 != 0).map(|n| 4_320 + n * step);
            assert_eq!(of(sparse), Some(interval), "a quarter of the rows is absent");
        }
        assert_eq!(of_seconds((0..30).map(|n| n * 15)), Some(Interval::S15));
    }

    #[test]
    fn a_row_off_the_grid_is_no_other_interval() {
        for (interval, step) in LONGER {
            for rows in 3..60 {
                for off in [1, 7, step / 2, step / 3, step - 1].map(|off| off.max(1)) {
                    for bad in 1..=3 {
                        let rows = (0..rows).map(|n| 4_320 + n * step);
                        let bad = (0..bad).map(|n| 4_320 + n * 2 * step + off);
                        let mut all: Vec<i64> = rows.chain(bad).collect();
                        all.sort_unstable();
                        all.dedup();
                        let found = of(all.iter().copied());
                        assert!(found.is_none_or(|found| found == interval), "{interval}: {found:?} {all:?}");
                    }
                }
            }
        }
        let hours = (0..24).map(|n| n * 60);
        for bad in [607, 630, 601] {
            let mut rows: Vec<i64> = hours.clone().chain([bad]).collect();
            rows.sort_unstable();
            assert_eq!(of(rows), Some(Interval::H1), "{bad}");
        }
        assert_eq!(of([0, 5, 7, 10, 15, 20, 25, 30, 35, 40, 45]), Some(Interval::M5));
        let minutes = (0..100).map(|n| n * 60 + i64::from(n == 50));
        assert_eq!(of_seconds(minutes), Some(Interval::M1));
    }
}
