//! Ordinals of trades without ids.

use std::collections::BTreeMap;

use qi_core::{Result, Timestamp};

use crate::number::bad;

/// The number of timestamps for which the numbers of trades without ids are kept.
pub(crate) const MAX_TIMESTAMPS: usize = 65_536;

/// Numbers the records of one timestamp in their order. A bounded number of timestamps is kept. A record of an earlier
/// timestamp is rejected, because its number is unknown.
#[derive(Debug, Default)]
pub(crate) struct TimestampOrdinals {
    next: BTreeMap<Timestamp, u64>,
    evicted: Option<Timestamp>,
}

impl TimestampOrdinals {
    pub(crate) fn next(&mut self, time: Timestamp) -> Result<u64> {
        if self.evicted.is_some_and(|evicted| time <= evicted) {
            return Err(bad(
                "time",
                time,
                format_args!("must not be more than {MAX_TIMESTAMPS} timestamps out of order"),
            ));
        }
        let next = self.next.entry(time).or_insert(0);
        let seq = *next;
        *next += 1;
        if self.next.len() > MAX_TIMESTAMPS {
            self.evicted = self.next.pop_first().map(|(time, _)| time);
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
}
