//! The schedule of a request to the brokers, of which at most one runs at a time.

use std::time::{Duration, Instant};

/// The schedule of one request.
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

    /// Starts the check if it is due and none is running. Returns whether it started; the caller then calls `finish`
    /// once.
    pub(super) fn start(&mut self) -> bool {
        let now = !self.running && self.due.is_some_and(|due| due <= Instant::now());
        if now {
            (self.due, self.running) = (None, true);
        }
        now
    }

    /// Marks the check as ended.
    pub(super) fn finish(&mut self) {
        self.running = false;
    }
}
