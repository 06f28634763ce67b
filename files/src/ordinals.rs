//! Ordinals of trades without ids.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use qi_core::{Result, Timestamp};

use crate::number::bad;

/// The number of timestamps for which the numbers of trades without ids are kept.
pub(crate) const MAX_TIMESTAMPS: usize = 65_536;

/// Numbers the records of one timestamp in their order. A bounded number of timestamps is kept: the latest ones of an
/// ascending file, and the earliest ones of a descending file. A record of a timestamp beyond them is rejected, because
/// its number is unknown.
#[derive(Debug, Default)]
pub(crate) struct TimestampOrdinals {
    next: BTreeMap<Timestamp, u64>,
    previous: Option<Timestamp>,
    /// The number of records that are later than the record before, less the number of earlier records.
    trend: i64,
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
        self.trend += match self.previous.replace(time).map(|previous| time.cmp(&previous)) {
            Some(Ordering::Greater) => 1,
            Some(Ordering::Less) => -1,
            _ => 0,
        };
        let next = self.next.entry(time).or_insert(0);
        let seq = *next;
        *next += 1;
        if self.next.len() > MAX_TIMESTAMPS {
            if self.trend >= 0 {
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
    fn one_late_trade_does_not_change_the_order_of_a_file() {
        let mut ordinals = TimestampOrdinals::default();
        let count = i64::try_from(MAX_TIMESTAMPS).unwrap();
        for second in (2..=count + 1).chain([1]).chain(count + 2..=2 * count) {
            let time = Timestamp::from_secs(1_000_000 + second).unwrap();
            assert_eq!(ordinals.next(time).unwrap(), 0, "{second}");
        }
    }
}
