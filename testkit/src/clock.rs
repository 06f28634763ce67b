//! A clock for tests.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use qi_core::{Clock, Timestamp};
use tokio::time::Instant;

/// A clock for tests: a base time plus the tokio time since its creation.
///
/// On a paused tokio runtime, the clock follows the sleeps of the test exactly. On other runtimes it follows real time.
/// [`ManualClock::advance`] moves only this clock, for tests without a runtime.
///
/// ```
/// use std::time::Duration;
/// use qi_core::Clock;
/// use qi_testkit::ManualClock;
///
/// let clock = ManualClock::default();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(5));
/// assert!(clock.now().duration_since(before) >= Duration::from_secs(5));
/// ```
#[derive(Debug)]
pub struct ManualClock {
    base: Timestamp,
    start: Instant,
    /// The offset set by `advance` and `set_back`, in microseconds.
    ahead: AtomicI64,
}

impl ManualClock {
    /// Creates a clock that shows `base` now. Call this inside the runtime whose time the clock follows.
    pub fn new(base: Timestamp) -> Self {
        Self { base, start: Instant::now(), ahead: AtomicI64::new(0) }
    }

    /// Moves this clock forward by `by`, truncated to microseconds. Does not affect tokio's sleeps.
    pub fn advance(&self, by: Duration) {
        self.ahead.fetch_add(micros(by), Ordering::SeqCst);
    }

    /// Moves this clock back by `by`, truncated to microseconds, like a correction of a wall clock. Does not affect
    /// tokio's sleeps.
    pub fn set_back(&self, by: Duration) {
        self.ahead.fetch_sub(micros(by), Ordering::SeqCst);
    }
}

fn micros(by: Duration) -> i64 {
    i64::try_from(by.as_micros()).unwrap_or(i64::MAX)
}

impl Default for ManualClock {
    /// Returns a clock that starts at 2024-01-01T00:00:00Z.
    fn default() -> Self {
        Self::new(Timestamp::from_secs(1_704_067_200).expect("the year 2024 is a timestamp"))
    }
}

impl Clock for ManualClock {
    /// Returns the base plus the elapsed time, clamped to the range of [`Timestamp`].
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
