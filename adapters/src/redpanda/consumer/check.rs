//! Checks that are repeated until they succeed.

use std::time::{Duration, Instant};

/// A request to the brokers that runs at most once at a time.
#[derive(Debug, Default)]
pub(super) struct Check {
    pub(super) due: Option<Instant>,
    running: bool,
}

impl Check {
    /// Schedules the check after this time, unless it is already scheduled.
    pub(super) fn request(&mut self, after: Duration) {
        self.due.get_or_insert_with(|| Instant::now() + after);
    }

    /// Returns whether the check must run now. The caller then calls `finish` once.
    pub(super) fn start(&mut self) -> bool {
        let now = !self.running && self.due.is_some_and(|due| due <= Instant::now());
        if now {
            (self.due, self.running) = (None, true);
        }
        now
    }

    pub(super) fn finish(&mut self) {
        self.running = false;
    }
}
