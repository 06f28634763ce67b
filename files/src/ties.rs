//! Ordinals of trades without ids.

use std::collections::BTreeMap;

use qi_core::{Result, Timestamp};

use crate::number::bad;

/// The number of timestamps for which the numbers of trades without ids are kept.
pub(crate) const MAX_TIES: usize = 65_536;

/// Numbers the records of one timestamp in their order. A bounded number of timestamps is kept. A record of an earlier
/// timestamp is rejected, because its number is unknown.
#[derive(Debug, Default)]
pub(crate) struct Ties {
    next: BTreeMap<Timestamp, u64>,
    forgotten: Option<Timestamp>,
}

impl Ties {
    pub(crate) fn next(&mut self, time: Timestamp) -> Result<u64> {
        if self.forgotten.is_some_and(|forgotten| time <= forgotten) {
            return Err(bad(
                "time",
                time,
                format_args!("must not be more than {MAX_TIES} timestamps out of order"),
            ));
        }
        let next = self.next.entry(time).or_insert(0);
        let seq = *next;
        *next += 1;
        if self.next.len() > MAX_TIES {
            self.forgotten = self.next.pop_first().map(|(time, _)| time);
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
        let mut ties = Ties::default();
        for second in 1..=i64::try_from(MAX_TIES).unwrap() + 1 {
            ties.next(Timestamp::from_secs(1_000_000 + second).unwrap()).unwrap();
        }
        assert!(ties.next(Timestamp::from_secs(1_000_001).unwrap()).is_err());
        assert_eq!(ties.next(Timestamp::from_secs(1_000_002).unwrap()).unwrap(), 1);
    }
}
