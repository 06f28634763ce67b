//! What the pipeline can carry: ticks, and bars where the input has no ticks.

use futures::future::BoxFuture;
use qi_core::bus::Payload;
use qi_core::store::InsertReport;
use qi_core::{Instrument, Ohlcv, PriceStore, PriceTick, Result, Timestamp};

use super::numbering::Numbering;

/// A record that travels on the bus and is stored.
pub trait Record: Payload {
    /// What it is about.
    fn instrument(&self) -> &Instrument;

    /// Its time.
    fn time(&self) -> Timestamp;

    /// Numbers the records of a source without ids; `following` is the record after them.
    ///
    /// # Errors
    /// The store's.
    fn number<'a>(
        _numbering: &'a mut Numbering,
        _batch: &'a mut [Self],
        _following: Option<&'a Self>,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

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

    fn time(&self) -> Timestamp {
        self.ts()
    }

    fn number<'a>(
        numbering: &'a mut Numbering,
        batch: &'a mut [Self],
        following: Option<&'a Self>,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(numbering.number(batch, following))
    }

    fn insert<'a>(store: &'a dyn PriceStore, batch: &'a [Self]) -> BoxFuture<'a, Result<InsertReport>> {
        store.insert_ticks(batch)
    }
}

impl Record for Ohlcv {
    fn instrument(&self) -> &Instrument {
        self.instrument()
    }

    fn time(&self) -> Timestamp {
        self.open_time()
    }

    fn insert<'a>(store: &'a dyn PriceStore, batch: &'a [Self]) -> BoxFuture<'a, Result<InsertReport>> {
        store.insert_bars(batch)
    }
}
