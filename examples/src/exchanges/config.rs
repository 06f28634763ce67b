//! Settings and counters of live feeds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use qi_core::Backoff;

/// Settings of a [`super::LiveFeed`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LiveConfig {
    /// The time limit of a connection attempt. Defaults to 10 s.
    pub connect_timeout: Duration,
    /// The time limit of the acknowledgement of a subscription. Defaults to 10 s.
    pub subscribe_timeout: Duration,
    /// The time without any message after which a connection is closed. Pings are sent three times in this period.
    /// Defaults to 15 s.
    pub heartbeat_timeout: Duration,
    /// The delays before reconnects. Defaults to 500 ms up to 30 s, with a jitter of 0.5.
    pub backoff: Backoff,
    /// The life of a connection that ends a streak of failures. Defaults to 30 s.
    pub stable_after: Duration,
    /// The longest message in bytes. Defaults to 1 MiB.
    pub max_message: usize,
    /// The time between two searches for gaps. Defaults to 1 s.
    pub repair_interval: Duration,
    /// The time without a new trade after which the agent requests the latest trade from the history. Defaults to 60 s.
    pub quiet_after: Duration,
    /// The least time between the two pages of the history that prove an id absent. Defaults to 5 s.
    pub absent_after: Duration,
    /// The largest number of ids that one run fetches for the time before its start. Defaults to 1,000,000.
    pub max_backfill: u64,
    /// The time between two comparisons of the store with the ledger. Defaults to 2 s.
    pub audit_interval: Duration,
    /// The time for which the ledger waits for trades that are missing between stored trades. Defaults to 10 s.
    pub grace: Duration,
}

impl Default for LiveConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            subscribe_timeout: Duration::from_secs(10),
            heartbeat_timeout: Duration::from_secs(15),
            backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(30)).with_jitter(0.5),
            stable_after: Duration::from_secs(30),
            max_message: 1_024 * 1_024,
            repair_interval: Duration::from_secs(1),
            quiet_after: Duration::from_mins(1),
            absent_after: Duration::from_secs(5),
            max_backfill: 1_000_000,
            audit_interval: Duration::from_secs(2),
            grace: Duration::from_secs(10),
        }
    }
}

/// Counters of one or more live feeds.
#[derive(Debug, Default)]
pub struct LiveCounters {
    connections: AtomicU64,
    bad_frames: AtomicU64,
    duplicates: AtomicU64,
    filled: AtomicU64,
    absent: AtomicU64,
    slowest_fill: AtomicU64,
}

impl LiveCounters {
    /// Returns the number of opened connections.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Returns the number of messages that were not understood, and of trades with implausible ids.
    pub fn bad_frames(&self) -> u64 {
        self.bad_frames.load(Ordering::Relaxed)
    }

    /// Returns the number of trades that were received again.
    pub fn duplicates(&self) -> u64 {
        self.duplicates.load(Ordering::Relaxed)
    }

    /// Returns the number of trades that were published from the history.
    pub fn filled(&self) -> u64 {
        self.filled.load(Ordering::Relaxed)
    }

    /// Returns the number of ids that the exchange does not have.
    pub fn absent(&self) -> u64 {
        self.absent.load(Ordering::Relaxed)
    }

    /// Returns the longest time from a reconnect, or from the detection of a later gap, until no id is missing.
    pub fn slowest_fill(&self) -> Duration {
        Duration::from_millis(self.slowest_fill.load(Ordering::Relaxed))
    }

    pub(super) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn bad_frame(&self) {
        self.bad_frames.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn duplicate(&self) {
        self.duplicates.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_filled(&self, trades: u64, absent: u64) {
        self.filled.fetch_add(trades, Ordering::Relaxed);
        self.absent.fetch_add(absent, Ordering::Relaxed);
    }

    pub(super) fn fill_took(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.slowest_fill.fetch_max(millis, Ordering::Relaxed);
    }
}
