//! The hard deadline of a shutdown. A plain thread keeps it, because agents may block every thread of the tokio
//! runtime.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::catch::lock;

/// The longest single wait of the thread.
const MAX_WAIT: Duration = Duration::from_hours(1);

#[derive(Clone, Default)]
pub(super) struct HardDeadline(Arc<Inner>);

#[derive(Default)]
struct Inner {
    timer: Mutex<Timer>,
    changed: Condvar,
}

#[derive(Default)]
struct Timer {
    at: Option<Instant>,
    disarmed: bool,
}

impl HardDeadline {
    /// Starts the thread that calls `expire` after this time.
    pub(super) fn arm(&self, after: Duration, expire: impl FnOnce() + Send + 'static) {
        lock(&self.0.timer).at = Instant::now().checked_add(after);
        let (this, thread) = (self.clone(), std::thread::Builder::new().name("qi-deadline".to_owned()));
        let expire = move || {
            if this.wait() {
                expire();
            }
        };
        if let Err(error) = thread.spawn(expire) {
            tracing::error!(target: "qi_core::agent", %error, "no thread for the hard deadline");
        }
    }

    /// Moves the deadline to this time from now, unless it is earlier.
    pub(super) fn bring_forward(&self, after: Duration) {
        let mut timer = lock(&self.0.timer);
        timer.at = timer.at.into_iter().chain(Instant::now().checked_add(after)).min();
        self.0.changed.notify_all();
    }

    /// Ends the thread.
    pub(super) fn disarm(&self) {
        lock(&self.0.timer).disarmed = true;
        self.0.changed.notify_all();
    }

    /// Waits for the deadline. Returns false if it was disarmed.
    fn wait(&self) -> bool {
        let mut timer = lock(&self.0.timer);
        loop {
            let now = Instant::now();
            match timer.at {
                _ if timer.disarmed => return false,
                Some(at) if at <= now => return true,
                at => {
                    let left = at.map_or(MAX_WAIT, |at| (at - now).min(MAX_WAIT));
                    let waited = self.0.changed.wait_timeout(timer, left);
                    timer = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }
}
