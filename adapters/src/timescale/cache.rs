//! The cache of a schema: the ids of its instruments, the times of its chunks, and the bounds of its series.

use std::sync::atomic::{AtomicI64, Ordering};

use super::chunks::Chunks;
use super::config::TimescaleConfig;
use super::instrument_ids::InstrumentIds;
use super::series::SeriesCatalog;

/// The cached ids, chunk times and series bounds of a store's schema.
pub(super) struct SchemaCache {
    pub(super) ids: InstrumentIds,
    pub(super) chunks: Chunks,
    pub(super) series: SeriesCatalog,
    /// The OID of the table `instruments`. 0 before the first connection, and while the table does not exist.
    instruments_oid: AtomicI64,
}

impl SchemaCache {
    /// Returns an empty cache.
    pub(super) fn new(config: &TimescaleConfig) -> Self {
        let instruments_oid = AtomicI64::new(0);
        Self {
            ids: InstrumentIds::new(&config.schema),
            chunks: Chunks::new(config),
            series: SeriesCatalog::new(config),
            instruments_oid,
        }
    }

    /// Sets the OID of the table `instruments`. If the OID has changed, the schema was dropped, and the cache is
    /// cleared.
    pub(super) fn set_instruments_oid(&self, instruments_oid: i64) {
        let previous = self.instruments_oid.swap(instruments_oid, Ordering::SeqCst);
        if previous != 0 && previous != instruments_oid {
            self.ids.clear();
            self.chunks.clear();
            self.series.clear();
        }
    }
}
