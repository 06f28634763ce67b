//! The cache of a schema: the ids of its instruments, and its chunks.

use std::sync::atomic::{AtomicI64, Ordering};

use super::chunks::Chunks;
use super::config::TimescaleConfig;
use super::instrument_ids::InstrumentIds;

/// The cached ids of instruments and the cached chunks of a store's schema.
pub(super) struct SchemaCache {
    pub(super) ids: InstrumentIds,
    pub(super) chunks: Chunks,
    schema_oid: AtomicI64,
}

impl SchemaCache {
    /// Returns an empty cache.
    pub(super) fn new(config: &TimescaleConfig) -> Self {
        let schema_oid = AtomicI64::new(0);
        Self { ids: InstrumentIds::default(), chunks: Chunks::new(config), schema_oid }
    }

    /// Clears the cache if the schema was dropped and created again.
    pub(super) fn set_schema_oid(&self, schema_oid: i64) {
        let previous = self.schema_oid.swap(schema_oid, Ordering::SeqCst);
        if previous != 0 && previous != schema_oid {
            self.ids.clear();
            self.chunks.clear();
        }
    }
}
