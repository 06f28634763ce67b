//! Inference of the interval of candles from their times.
//!
//! A sparse file has no row for a candle without trades, so the distances of its rows are no evidence: candles of one
//! minute can be 15 minutes apart by chance. The grid of the complete file is evidence only if the file has so many
//! rows that candles of a shorter interval cannot be on the grid by chance.

use qi_core::{Interval, Timestamp};

/// The required bits of evidence: an error probability below one in a million.
const BITS: f64 = 20.0;

/// Counts the rows on the grid of each interval.
#[derive(Debug, Default)]
pub(crate) struct IntervalDetector {
    rows: u64,
    on: [AlignedRows; Interval::ALL.len()],
    previous: Option<Timestamp>,
}

/// The rows on the grid of one interval.
#[derive(Debug, Default, Clone, Copy)]
struct AlignedRows {
    rows: u64,
    /// The greatest common divisor of the times of the rows, in microseconds.
    divisor: i64,
}

impl IntervalDetector {
    pub(crate) fn add(&mut self, time: Timestamp) {
        // A repeated row is no evidence.
        if self.previous.replace(time) == Some(time) {
            return;
        }
        self.rows += 1;
        for (on, interval) in self.on.iter_mut().zip(Interval::ALL) {
            if interval.floor(time) == time {
                on.rows += 1;
                on.divisor = divisor(on.divisor, time.as_micros() - Timestamp::MIN.as_micros());
            }
        }
    }

    /// Returns the longest interval that the rows prove, or None.
    pub(crate) fn interval(&self) -> Option<Interval> {
        let mut longest_first = Interval::ALL.iter().zip(self.on).rev();
        longest_first.find(|(interval, on)| self.proves(**interval, *on)).map(|(interval, _)| *interval)
    }

    fn proves(&self, interval: Interval, on: AlignedRows) -> bool {
        // Half of the rows of an interval are on the grid of an interval twice as long.
        let is_most = on.rows * 3 >= self.rows * 2;
        // Otherwise all rows are on a longer grid, possibly of an unknown interval such as 10 minutes.
        let is_finest = on.divisor == interval.as_micros();
        if on.rows < 2 || !is_most || !is_finest {
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
        let (rows, on) = (self.rows as f64, on.rows as f64);
        #[expect(clippy::cast_precision_loss, reason = "intervals are far below 2^52 microseconds")]
        let ratio = (interval.as_micros() / shorter.as_micros()) as f64;
        // The probability that this many rows of the shorter interval are on the grid: at most C(rows, off) *
        // ratio^-(on - 1).
        let off = (rows - on) / rows;
        let entropy = if off > 0.0 { -off * off.log2() - (1.0 - off) * (1.0 - off).log2() } else { 0.0 };
        (on - 1.0) * ratio.log2() - rows * entropy >= BITS
    }
}

fn divisor(one: i64, other: i64) -> i64 {
    if other == 0 { one } else { divisor(other, one % other) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use super::*;

    fn of(minutes: impl IntoIterator<Item = i64>) -> Option<Interval> {
        let mut detector = IntervalDetector::default();
        for minute in minutes {
            detector.add(Timestamp::from_secs(1_709_251_200 + minute * 60).unwrap());
        }
        detector.interval()
    }

    #[test]
    fn sparse_rows_have_no_interval() {
        assert_eq!(of([0, 15, 45, 91, 150, 197]), Some(Interval::M1));
        assert_eq!(of([0, 15, 45, 90]), None, "on the grid of 15 minutes by chance");
        assert_eq!(of([0, 15, 30, 45, 60]), None);
        assert_eq!(of([0, 5, 20, 35, 70, 145]), None);
        assert_eq!(of([0, 1]), Some(Interval::M1));
        assert_eq!(of([0, 60]), None);
        assert_eq!(of([0]), None);
        let mut junk = IntervalDetector::default();
        for seconds in [0, 900, 1_830, 2_700, 5_400] {
            junk.add(Timestamp::from_secs(1_709_251_200 + seconds).unwrap());
        }
        assert_eq!(junk.interval(), None, "a row off the grid proves nothing about the others");
        assert_eq!(of([]), None);
        assert_eq!(of((0..100).map(|n| n * 10)), None, "10 minutes are no interval");
        assert_eq!(of((0..100).map(|n| n * 2)), None, "2 minutes are no interval");
    }

    #[test]
    fn many_aligned_rows_have_an_interval() {
        for (interval, step) in [
            (Interval::M1, 1),
            (Interval::M5, 5),
            (Interval::M15, 15),
            (Interval::H1, 60),
            (Interval::D1, 1_440),
        ] {
            assert_eq!(of((0..30).map(|n| n * step)), Some(interval));
            assert_eq!(of((0..30).map(|n| n * n % 97 * step)), Some(interval), "sparse");
        }
    }

    #[test]
    fn a_single_misaligned_row_does_not_change_the_interval() {
        let mut detector = IntervalDetector::default();
        for n in 0..100 {
            detector.add(Timestamp::from_secs(1_709_251_200 + n * 60 + i64::from(n == 50)).unwrap());
        }
        assert_eq!(detector.interval(), Some(Interval::M1));
    }
}
