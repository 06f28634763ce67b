//! The cache of a schema: the ids of its instruments, and the times of its chunks.

use std::sync::atomic::{AtomicI64, Ordering};

use super::chunks::Chunks;
use super::config::TimescaleConfig;
use super::instrument_ids::InstrumentIds;

/// The cached ids of instruments and the cached chunk times of a store's schema.
pub(super) struct SchemaCache {
    pub(super) ids: InstrumentIds,
    pub(super) chunks: Chunks,
    /// The OID of the table `instruments`. 0 before the first connection, and while the table does not exist.
    instruments_oid: AtomicI64,
}

impl SchemaCache {
    /// Returns an empty cache.
    pub(super) fn new(config: &TimescaleConfig) -> Self {
        let instruments_oid = AtomicI64::new(0);
        Self { ids: InstrumentIds::new(&config.schema), chunks: Chunks::new(config), instruments_oid }
    }

    /// Sets the OID of the table `instruments`. If the OID has changed, the schema was dropped, and the cache is
    /// cleared.
    pub(super) fn set_instruments_oid(&self, instruments_oid: i64) {
        let previous = self.instruments_oid.swap(instruments_oid, Ordering::SeqCst);
        if previous != 0 && previous != instruments_oid {
            self.ids.clear();
            self.chunks.clear();
        }
    }
}
