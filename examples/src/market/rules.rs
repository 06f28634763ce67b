//! Rules for market data that the types of the core do not enforce. Each rule is a pure function of its arguments,
//! including the present time.
//!
//! The types already reject a price that is not positive, a negative quantity, candles whose prices contradict each
//! other, a dominance outside 0 to 100 percent, a record without an exchange, a time outside the domain, and a
//! malformed symbol. Every error is returned as a `Result`, and a key has at most one record. The functions of this
//! module do not repeat these checks.
//!
//! Rules of the replaced system that are left out:
//! - **A maximum range of one year.** It bounded the size of the result. Here pages bound it, and a range may have any
//!   length.
//! - **A warning above a volume of a million.** Volume is counted in the base currency, so a million means something
//!   different for bitcoin and for a coin worth a fraction of a cent.
//! - **An equal source along a chain.** The exchange is part of the key and cannot change on the way. The source of a
//!   snapshot is a field of the snapshot.

use std::time::Duration;

use qi_core::{Decimal, Error, ErrorKind, MarketSnapshot, Percent, Result, TimeRange, Timestamp};

/// The maximum age of a current price.
pub const MAX_CURRENT_AGE: Duration = Duration::from_hours(1);
/// The maximum age of a real-time price.
pub const MAX_REAL_TIME_AGE: Duration = Duration::from_secs(30);

/// Returns a range that includes both ends, as in "from Monday to Friday". Ranges of the core exclude their end.
///
/// # Errors
/// `InvalidInput` if the end is before the start.
pub fn inclusive_range(start: Timestamp, end: Timestamp) -> Result<TimeRange> {
    // No record has the time `Timestamp::MAX`, so a range that excludes it is complete.
    TimeRange::new(start, end.checked_add(Duration::from_micros(1)).unwrap_or(Timestamp::MAX))
}

/// Returns a range of the past, which includes both ends and does not end in the future.
///
/// # Errors
/// `InvalidInput` if the end is before the start or after `now`.
pub fn past_range(start: Timestamp, end: Timestamp, now: Timestamp) -> Result<TimeRange> {
    check_not_future(end, now, Duration::ZERO)?;
    inclusive_range(start, end)
}

/// Checks that a record's time is not in the future, within the tolerance for the difference of two clocks.
///
/// # Errors
/// `InvalidInput` for a time in the future.
pub fn check_not_future(time: Timestamp, now: Timestamp, tolerance: Duration) -> Result<()> {
    if time.duration_since(now) <= tolerance {
        return Ok(());
    }
    let rule = format!("must not be after {now} by more than {tolerance:?}");
    Err(Error::invalid("market.rule.future", "time", time, rule))
}

/// Checks that a record is not older than `limit`: [`MAX_CURRENT_AGE`], [`MAX_REAL_TIME_AGE`], or a limit of the actor.
///
/// # Errors
/// `Application`, code `market.rule.stale`, with the age. Not retryable, because the record only gets older.
pub fn check_fresh(time: Timestamp, now: Timestamp, limit: Duration) -> Result<()> {
    let age = now.duration_since(time);
    if age <= limit {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Application, "market.rule.stale", "fresh")
        .with_message(format_args!("the record is older than {limit:?}"))
        .with_context("time", time)
        .with_context("age_s", age.as_secs()))
}

/// Checks that a snapshot has a source.
///
/// # Errors
/// `InvalidInput` for a snapshot without a source.
pub fn check_source(snapshot: &MarketSnapshot) -> Result<()> {
    match &snapshot.values().source {
        Some(_) => Ok(()),
        None => Err(Error::invalid("market.rule.source", "source", "none", "must be known")),
    }
}

/// Returns whether a market moved by more than `limit` percent in a day, up or down. Such a record is valid, but
/// should be checked before use.
pub fn is_large_change(snapshot: &MarketSnapshot, limit: Percent) -> bool {
    let limit = limit.decimal();
    let below = Decimal::ZERO.checked_sub(limit).unwrap_or(Decimal::MIN);
    snapshot.values().change_24h.is_some_and(|change| !(below..=limit).contains(&change.decimal()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use qi_core::{Provider, Scope, SnapshotValues};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_secs(1_704_067_200 + seconds).unwrap()
    }

    #[test]
    fn both_ends_of_an_inclusive_range_count() {
        let range = inclusive_range(at(0), at(60)).unwrap();
        assert!(range.contains(at(0)) && range.contains(at(60)) && !range.contains(at(61)));
        assert!(inclusive_range(at(0), at(0)).unwrap().contains(at(0)));
        assert!(inclusive_range(at(1), at(0)).is_err());
        assert!(inclusive_range(at(0), Timestamp::MAX).unwrap().contains(Timestamp::MAX_RECORD));
    }

    #[test]
    fn a_past_range_ends_now_at_the_latest() {
        assert!(past_range(at(0), at(10), at(10)).is_ok());
        assert_eq!(past_range(at(0), at(11), at(10)).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn small_clock_skew_is_accepted() {
        let second = Duration::from_secs(1);
        assert!(check_not_future(at(1), at(0), second).is_ok());
        let error = check_not_future(at(2), at(0), second).unwrap_err();
        assert_eq!(error.context_value("value"), Some(at(2).to_string().as_str()));
    }

    #[test]
    fn a_record_is_fresh_up_to_its_limit_and_stale_after_it() {
        assert!(check_fresh(at(0), at(30), MAX_REAL_TIME_AGE).is_ok());
        let stale = check_fresh(at(0), at(31), MAX_REAL_TIME_AGE).unwrap_err();
        assert_eq!((stale.code(), stale.context_value("age_s")), ("market.rule.stale", Some("31")));
        assert!(!stale.retry().is_retryable());
        assert!(check_fresh(at(0), at(31), MAX_CURRENT_AGE).is_ok());
    }

    #[test]
    fn snapshots_need_a_source_and_large_changes_are_flagged() {
        let snapshot = |change: &str, source: Option<Provider>| {
            let values = SnapshotValues { change_24h: change.parse().ok(), source, ..Default::default() };
            MarketSnapshot::new(Scope::Global, at(0), values).unwrap()
        };
        assert!(check_source(&snapshot("1", Provider::new("coingecko").ok())).is_ok());
        assert!(check_source(&snapshot("1", None)).is_err());
        let fifty: Percent = "50".parse().unwrap();
        for (change, suspicious) in [("50", false), ("50.01", true), ("-50", false), ("-50.01", true)] {
            assert_eq!(is_large_change(&snapshot(change, None), fifty), suspicious, "{change}");
        }
    }
}
