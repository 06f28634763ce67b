//! Deadlines for durations of any length.

use std::time::Duration;

use tokio::time::Instant;

/// Returns the time `after` from now. A duration above one year counts as one year, so the addition cannot overflow.
pub(crate) fn later(after: Duration) -> Instant {
    later_than(Instant::now(), after)
}

/// Returns the time `after` from `from`, with the same limit as [`later`].
pub(crate) fn later_than(from: Instant, after: Duration) -> Instant {
    const YEAR: Duration = Duration::from_hours(365 * 24);
    from.checked_add(after.min(YEAR)).unwrap_or(from)
}
