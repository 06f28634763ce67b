//! Ordinals of trades without ids.

use std::collections::BTreeMap;

use qi_core::{Result, Timestamp};

use crate::number::bad;

/// The maximum number of timestamps for which ordinals are kept.
pub(crate) const MAX_TIMESTAMPS: usize = 65_536;

/// The order of a file. The records of a part (a day or a page) can be in the opposite order, for example in a file of
/// ascending days that each begin with the newest record. Therefore recent records are compared with the first records
/// of the file, not with each other.
#[derive(Debug, Default)]
pub(crate) struct FileOrder {
    /// The median of the first three times.
    first: Option<Timestamp>,
    /// The last two times.
    recent: [Option<Timestamp>; 2],
}

impl FileOrder {
    /// Adds the next record. Returns true if the file continues with records that are not earlier than its first ones.
    /// The medians of three times ignore one record out of order.
    pub(crate) fn is_ascending(&mut self, time: Timestamp) -> bool {
        let recent = self.recent;
        self.recent = [recent[1], Some(time)];
        let [Some(one), Some(other)] = recent else { return true };
        let median = one.min(other).max(one.max(other).min(time));
        median >= *self.first.get_or_insert(median)
    }
}

/// The ordinals of the records of each timestamp, in the order of the file. A bounded number of timestamps is kept: the latest ones of an
/// ascending file, and the earliest ones of a descending file. A record of a timestamp beyond them is rejected, because
/// its number is unknown.
#[derive(Debug, Default)]
pub(crate) struct TimestampOrdinals {
    next: BTreeMap<Timestamp, u64>,
    order: FileOrder,
    /// The latest evicted timestamp of the ascending part, and the earliest one of the descending part.
    evicted: (Option<Timestamp>, Option<Timestamp>),
}

impl TimestampOrdinals {
    pub(crate) fn next(&mut self, time: Timestamp) -> Result<u64> {
        let (low, high) = self.evicted;
        if low.is_some_and(|low| time <= low) || high.is_some_and(|high| time >= high) {
            return Err(bad(
                "time",
                time,
                format_args!("must not be more than {MAX_TIMESTAMPS} timestamps out of order"),
            ));
        }
        let is_ascending = self.order.is_ascending(time);
        let next = self.next.entry(time).or_insert(0);
        let seq = *next;
        *next += 1;
        if self.next.len() > MAX_TIMESTAMPS {
            if is_ascending {
                self.evicted.0 = self.next.pop_first().map(|(time, _)| time);
            } else {
                self.evicted.1 = self.next.pop_last().map(|(time, _)| time);
            }
        }
        Ok(seq)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use super::*;

    #[test]
    fn trades_that_cannot_be_numbered_are_rejected() {
        let mut ordinals = TimestampOrdinals::default();
        for second in 1..=i64::try_from(MAX_TIMESTAMPS).unwrap() + 1 {
            ordinals.next(Timestamp::from_secs(1_000_000 + second).unwrap()).unwrap();
        }
        assert!(ordinals.next(Timestamp::from_secs(1_000_001).unwrap()).is_err());
        assert_eq!(ordinals.next(Timestamp::from_secs(1_000_002).unwrap()).unwrap(), 1);
    }

    #[test]
    fn trades_in_descending_order_are_numbered() {
        let mut ordinals = TimestampOrdinals::default();
        let count = i64::try_from(MAX_TIMESTAMPS).unwrap() + 10;
        let at = |back: i64| Timestamp::from_secs(2_000_000 - back).unwrap();
        for back in 0..count {
            assert_eq!(ordinals.next(at(back)).unwrap(), 0);
        }
        assert!(ordinals.next(at(0)).is_err());
        assert_eq!(ordinals.next(at(10)).unwrap(), 1);
    }

    #[test]
    fn parts_in_the_opposite_order_do_not_change_the_order_of_a_file() {
        // A part has a day or a page of the REST interface.
        for part in [1_000, 40_000] {
            let count = 5 * part.max(i64::try_from(MAX_TIMESTAMPS).unwrap() / 4);
            // Reverses the trades of each part.
            let reversed = |n: i64| n - n % part + (part - 1 - n % part);
            for is_ascending in [true, false] {
                let mut ordinals = TimestampOrdinals::default();
                for n in 0..count - count % part {
                    let second = if is_ascending { reversed(n) } else { count - reversed(n) };
                    let time = Timestamp::from_secs(1_000_000 + second).unwrap();
                    assert_eq!(ordinals.next(time).unwrap(), 0, "{part} {is_ascending} {n}");
                }
            }
        }
    }

    #[test]
    fn one_early_first_trade_does_not_change_the_order_of_a_file() {
        let count = 2 * i64::try_from(MAX_TIMESTAMPS).unwrap();
        for is_ascending in [true, false] {
            let mut ordinals = TimestampOrdinals::default();
            let second = |n: i64| if is_ascending { n } else { -n };
            for n in [2 * count].into_iter().chain(0..count) {
                // The first trade is later than an ascending file, and earlier than a descending file.
                let time = Timestamp::from_secs(2_000_000 + second(n)).unwrap();
                assert_eq!(ordinals.next(time).unwrap(), 0, "{is_ascending} {n}");
            }
        }
    }

    #[test]
    fn one_late_trade_does_not_change_the_order_of_a_file() {
        let mut ordinals = TimestampOrdinals::default();
        let count = i64::try_from(MAX_TIMESTAMPS).unwrap();
        for second in (2..=count + 1).chain([1]).chain(count + 2..=2 * count) {
            let time = Timestamp::from_secs(1_000_000 + second).unwrap();
            assert_eq!(ordinals.next(time).unwrap(), 0, "{second}");
        }
    }
}
