//! The cache of a schema: the ids of its instruments, and its chunks.

use std::sync::atomic::{AtomicI64, Ordering};

use super::chunks::Chunks;
use super::config::TimescaleConfig;
use super::instrument_ids::InstrumentIds;

/// The cached ids of instruments and the cached chunks of a store's schema.
pub(super) struct SchemaCache {
    pub(super) ids: InstrumentIds,
    pub(super) chunks: Chunks,
    incarnation: AtomicI64,
}

impl SchemaCache {
    /// Returns an empty cache.
    pub(super) fn new(config: &TimescaleConfig) -> Self {
        let incarnation = AtomicI64::new(0);
        Self { ids: InstrumentIds::default(), chunks: Chunks::new(config), incarnation }
    }

    /// Clears the cache if the schema was dropped and created again.
    pub(super) fn met(&self, incarnation: i64) {
        let before = self.incarnation.swap(incarnation, Ordering::SeqCst);
        if before != 0 && before != incarnation {
            self.ids.forget_all();
            self.chunks.forget_all();
        }
    }
}
