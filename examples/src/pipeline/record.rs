//! What the pipeline can carry: ticks, and bars where the input has no ticks.

use futures::future::BoxFuture;
use qi_core::bus::Payload;
use qi_core::store::InsertReport;
use qi_core::{Instrument, Ohlcv, PriceStore, PriceTick, Result};

/// A record that travels on the bus and is stored.
pub trait Record: Payload {
    /// What it is about.
    fn instrument(&self) -> &Instrument;

    /// Stores a batch.
    ///
    /// # Errors
    /// The store's.
    fn insert<'a>(store: &'a dyn PriceStore, batch: &'a [Self]) -> BoxFuture<'a, Result<InsertReport>>;
}

impl Record for PriceTick {
    fn instrument(&self) -> &Instrument {
        self.instrument()
    }

    fn insert<'a>(store: &'a dyn PriceStore, batch: &'a [Self]) -> BoxFuture<'a, Result<InsertReport>> {
        store.insert_ticks(batch)
    }
}

impl Record for Ohlcv {
    fn instrument(&self) -> &Instrument {
        self.instrument()
    }

    fn insert<'a>(store: &'a dyn PriceStore, batch: &'a [Self]) -> BoxFuture<'a, Result<InsertReport>> {
        store.insert_bars(batch)
    }
}
