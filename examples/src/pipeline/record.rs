//! The records that the pipeline can carry: ticks, or bars if the input has no ticks.

use futures::future::BoxFuture;
use qi_core::{Bar, Instrument, PriceTick, Result};
use qi_files::Numbering;

/// A record that is published and stored.
pub trait Record: qi_core::Record {
    /// Returns the instrument of the record.
    fn instrument(&self) -> &Instrument;

    /// Numbers the records of a source without ids. `following` is the record after them.
    ///
    /// # Errors
    /// Errors of the store.
    fn number<'a>(
        _numbering: &'a mut Numbering,
        _batch: &'a mut [Self],
        _following: Option<&'a Self>,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Record for PriceTick {
    fn instrument(&self) -> &Instrument {
        self.instrument()
    }

    fn number<'a>(
        numbering: &'a mut Numbering,
        batch: &'a mut [Self],
        following: Option<&'a Self>,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(numbering.number(batch, following))
    }
}

impl Record for Bar {
    fn instrument(&self) -> &Instrument {
        self.instrument()
    }
}
