//! The cache of a schema: the ids of its instruments, the times of its chunks, and the bounds of its series.

use std::sync::{Mutex, PoisonError};

use super::chunks::Chunks;
use super::config::TimescaleConfig;
use super::instrument_ids::InstrumentIds;
use super::series::SeriesCatalog;

/// Identifies a schema among schemas of the same name, and its server among servers of the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SchemaIdentity {
    /// The OID of the table `instruments`. 0 while the table does not exist.
    pub(super) instruments_oid: i64,
    /// The start of the server, in microseconds.
    pub(super) server_start: i64,
    /// True if the schema has materialized bars.
    pub(super) has_materialized_bars: bool,
}

/// The cached ids, chunk times and series bounds of a store's schema.
pub(super) struct SchemaCache {
    pub(super) ids: InstrumentIds,
    pub(super) chunks: Chunks,
    pub(super) series: SeriesCatalog,
    /// The identity of the schema. None before the first connection.
    identity: Mutex<Option<SchemaIdentity>>,
}

impl SchemaCache {
    /// Returns an empty cache.
    pub(super) fn new(config: &TimescaleConfig) -> Self {
        Self {
            ids: InstrumentIds::new(&config.schema),
            chunks: Chunks::new(config),
            series: SeriesCatalog::new(config),
            identity: Mutex::default(),
        }
    }

    /// Returns whether the schema had materialized bars when the last connection was borrowed.
    pub(super) fn has_materialized_bars(&self) -> bool {
        let identity = *self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        identity.is_some_and(|identity| identity.has_materialized_bars)
    }

    /// Sets the identity of the schema. If it has changed, the schema was dropped, or another server has taken over,
    /// perhaps without the newest commits. The cache is then cleared.
    pub(super) fn set_identity(&self, identity: SchemaIdentity) {
        let previous = self.identity.lock().unwrap_or_else(PoisonError::into_inner).replace(identity);
        let is_same = |previous: SchemaIdentity| {
            (previous.instruments_oid, previous.server_start)
                == (identity.instruments_oid, identity.server_start)
        };
        if previous.is_some_and(|previous| !is_same(previous)) {
            self.ids.clear();
            self.chunks.clear();
            self.series.clear();
        }
    }
}
