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
    created: Instant,
    created_at: Timestamp,
    /// Microseconds from `created` to the last heartbeat, plus one; 0 for none.
    heartbeat_micros: AtomicU64,
    /// Microseconds from `created` to the start of `run`.
    run_micros: AtomicU64,
}

impl Incarnation {
    pub(super) fn new(number: u32, created_at: Timestamp) -> Self {
        Self {
            number,
            token: CancellationToken::new(),
            children: Children::default(),
            created: Instant::now(),
            created_at,
            heartbeat_micros: AtomicU64::new(0),
            run_micros: AtomicU64::new(0),
        }
    }

    fn elapsed(&self) -> u64 {
        micros(self.created.elapsed())
    }

    pub(super) fn heartbeat(&self) {
        self.heartbeat_micros.store(self.elapsed().saturating_add(1), Ordering::Relaxed);
    }

    pub(super) fn begin_run(&self, at: Instant) {
        self.run_micros.store(micros(at.saturating_duration_since(self.created)), Ordering::Relaxed);
    }

    /// Returns the time of the last heartbeat or of the start of `run`, relative to `created`.
    fn last_activity(&self) -> Duration {
        let last = self.heartbeat_micros.load(Ordering::Relaxed).saturating_sub(1);
        Duration::from_micros(last.max(self.run_micros.load(Ordering::Relaxed)))
    }

    /// Returns the time since the last heartbeat, or since the start of `run`.
    pub(super) fn heartbeat_age(&self) -> Duration {
        Duration::from_micros(self.elapsed()).saturating_sub(self.last_activity())
    }

    /// Returns the time at which a watchdog of `limit` expires without another heartbeat.
    pub(super) fn expires_at(&self, limit: Duration) -> Option<Instant> {
        self.created.checked_add(self.last_activity())?.checked_add(limit)
    }

    pub(super) fn last_heartbeat(&self) -> Option<Timestamp> {
        let micros = self.heartbeat_micros.load(Ordering::Relaxed).checked_sub(1)?;
        self.created_at.checked_add(Duration::from_micros(micros))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
