//! Requests that repeat until they succeed.

use std::time::{Duration, Instant};

/// A request to the brokers of which one runs at a time.
#[derive(Debug, Default)]
pub(super) struct Check {
    pub(super) due: Option<Instant>,
    running: bool,
}

impl Check {
    /// Makes the check due after this time, unless it is due already.
    pub(super) fn request(&mut self, after: Duration) {
        self.due.get_or_insert_with(|| Instant::now() + after);
    }

    /// Returns whether the check is to run now. The caller then calls `finish` once.
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
