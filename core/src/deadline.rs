//! Moments in the future that any duration can name.

use std::time::Duration;

use tokio::time::Instant;

/// Returns the moment `after` from now. A duration above one year counts as one year, so that none overflows the clock.
pub(crate) fn later(after: Duration) -> Instant {
    later_than(Instant::now(), after)
}

/// Returns the moment `after` from `from`, with the same bound as [`later`].
pub(crate) fn later_than(from: Instant, after: Duration) -> Instant {
    const YEAR: Duration = Duration::from_hours(365 * 24);
    from.checked_add(after.min(YEAR)).unwrap_or(from)
}
