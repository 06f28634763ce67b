//! One incarnation of an agent: its cancellation, heartbeats and children.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::children::Children;
use crate::Timestamp;

pub(super) struct Incarnation {
    pub(super) number: u32,
    /// Cancelled by a stop of the agent, and at the end of `run`.
    pub(super) token: CancellationToken,
    pub(super) children: Children,
    born: Instant,
    born_at: Timestamp,
    /// Microseconds from `born` to the last heartbeat, plus one; 0 for none.
    last_beat: AtomicU64,
    /// Microseconds from `born` to the start of `run`.
    run_from: AtomicU64,
}

impl Incarnation {
    pub(super) fn new(number: u32, born_at: Timestamp) -> Self {
        Self {
            number,
            token: CancellationToken::new(),
            children: Children::default(),
            born: Instant::now(),
            born_at,
            last_beat: AtomicU64::new(0),
            run_from: AtomicU64::new(0),
        }
    }

    fn elapsed(&self) -> u64 {
        micros(self.born.elapsed())
    }

    pub(super) fn beat(&self) {
        self.last_beat.store(self.elapsed().saturating_add(1), Ordering::Relaxed);
    }

    pub(super) fn begin_run(&self, at: Instant) {
        self.run_from.store(micros(at.saturating_duration_since(self.born)), Ordering::Relaxed);
    }

    /// Returns the start of the current silence: the last heartbeat, or the start of `run`.
    fn silent_from(&self) -> Duration {
        let last = self.last_beat.load(Ordering::Relaxed).saturating_sub(1);
        Duration::from_micros(last.max(self.run_from.load(Ordering::Relaxed)))
    }

    pub(super) fn silence(&self) -> Duration {
        Duration::from_micros(self.elapsed()).saturating_sub(self.silent_from())
    }

    /// Returns the time at which a watchdog of `limit` expires without another heartbeat.
    pub(super) fn expires_at(&self, limit: Duration) -> Option<Instant> {
        self.born.checked_add(self.silent_from())?.checked_add(limit)
    }

    pub(super) fn last_heartbeat(&self) -> Option<Timestamp> {
        let micros = self.last_beat.load(Ordering::Relaxed).checked_sub(1)?;
        self.born_at.checked_add(Duration::from_micros(micros))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
