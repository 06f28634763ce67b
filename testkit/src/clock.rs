//! A clock for tests.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use qi_core::{Clock, Timestamp};
use tokio::time::Instant;

/// A clock that shows a base plus the tokio time that has passed since it was made.
///
/// On a paused tokio runtime it moves exactly with the sleeps of the test; on any other it moves with the
/// machine. [`ManualClock::advance`] moves it alone, for tests without a runtime.
///
/// ```
/// use std::time::Duration;
/// use qi_core::Clock;
/// use qi_testkit::ManualClock;
///
/// let clock = ManualClock::default();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(5));
/// assert!(clock.now().since(before) >= Duration::from_secs(5));
/// ```
#[derive(Debug)]
pub struct ManualClock {
    base: Timestamp,
    start: Instant,
    /// Microseconds.
    ahead: AtomicI64,
}

impl ManualClock {
    /// A clock that shows `base` now. Make it inside the runtime whose time it is to follow.
    pub fn new(base: Timestamp) -> Self {
        Self { base, start: Instant::now(), ahead: AtomicI64::new(0) }
    }

    /// Moves this clock, and no sleep of tokio, by `by` (cut to microseconds).
    pub fn advance(&self, by: Duration) {
        self.ahead.fetch_add(micros(by), Ordering::SeqCst);
    }

    /// Moves this clock, and no sleep of tokio, back by `by` (cut to microseconds), like a wall clock that is corrected.
    pub fn set_back(&self, by: Duration) {
        self.ahead.fetch_sub(micros(by), Ordering::SeqCst);
    }
}

fn micros(by: Duration) -> i64 {
    i64::try_from(by.as_micros()).unwrap_or(i64::MAX)
}

impl Default for ManualClock {
    /// Begins at 2024-01-01T00:00:00Z.
    fn default() -> Self {
        Self::new(Timestamp::from_secs(1_704_067_200).expect("the year 2024 is a timestamp"))
    }
}

impl Clock for ManualClock {
    /// The base plus what has passed; the latest timestamp there is, beyond that.
    fn now(&self) -> Timestamp {
        let ahead = self.ahead.load(Ordering::SeqCst);
        let moved = Duration::from_micros(ahead.unsigned_abs());
        let now = self.start.elapsed();
        if ahead < 0 {
            let back = moved.saturating_sub(now);
            let base = self.base.checked_sub(back).unwrap_or(Timestamp::MIN);
            return base.checked_add(now.saturating_sub(moved)).unwrap_or(Timestamp::MAX);
        }
        self.base.checked_add(now.saturating_add(moved)).unwrap_or(Timestamp::MAX)
    }
}
