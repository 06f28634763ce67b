//! The counters of an ingest.

use std::sync::atomic::{AtomicU64, Ordering};

/// The number of messages that an ingest has processed. A repeated message counts again.
#[derive(Debug, Default)]
pub struct IngestProgress {
    stored: AtomicU64,
    dead_letters: AtomicU64,
}

impl IngestProgress {
    /// Returns the number of records that the store has acknowledged.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// Returns the number of messages that became dead letters.
    pub fn dead_letters(&self) -> u64 {
        self.dead_letters.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, stored: usize, dead_letters: usize) {
        self.stored.fetch_add(stored as u64, Ordering::Relaxed);
        self.dead_letters.fetch_add(dead_letters as u64, Ordering::Relaxed);
    }
}
