//! The hard deadline of a shutdown. A plain thread waits for it, because agents may block every
//! thread of the tokio runtime.

use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::catch::lock;

/// The channel to the waiting thread. A message brings the deadline forward.
#[derive(Default)]
pub(super) struct HardDeadline(Mutex<Option<Sender<Option<Instant>>>>);

impl HardDeadline {
    /// Starts the thread that calls `expire` after the duration `after`.
    pub(super) fn arm(&self, after: Duration, expire: impl FnOnce() + Send + 'static) {
        let (sender, receiver) = channel();
        *lock(&self.0) = Some(sender);
        // None means a deadline beyond the range of the clock.
        let mut deadline = Instant::now().checked_add(after);
        let wait = move || {
            loop {
                let left = deadline.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
                match receiver.recv_timeout(left) {
                    Ok(earlier) => deadline = deadline.into_iter().chain(earlier).min(),
                    Err(RecvTimeoutError::Timeout) => return expire(),
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("qi-deadline".to_owned()).spawn(wait) {
            tracing::error!(target: "qi_core::agent", %error, "the thread of the hard deadline could not be started");
        }
    }

    /// Moves the deadline to `after` from now, unless the deadline is earlier.
    pub(super) fn bring_forward(&self, after: Duration) {
        if let Some(thread) = &*lock(&self.0) {
            let _ended = thread.send(Instant::now().checked_add(after));
        }
    }

    /// Ends the thread without calling `expire`.
    pub(super) fn disarm(&self) {
        *lock(&self.0) = None;
    }
}
