//! `PurgeGuard`: rejects a purge of ticks whose bars are not stored.

use std::fmt::{self, Display};

use crate::record::Dataset;
use crate::store::{SeriesRequest, closed_bars, compare_page, has_lost_ticks};
use crate::{Bar, Error, ErrorKind, Instrument, Interval, PriceStore, PriceTick, Result, Timestamp};

/// A store that rejects a purge of ticks before their bars of one interval are stored.
///
/// Before a purge of ticks, the guard compares the derived bars of every instrument with the stored bars. If a stored bar
/// is missing or different, the purge fails with `InvalidInput`, code `layer.purge_guard.bars`, and removes nothing. The
/// error names the instrument, the interval and the open time of the first such bar.
/// [`persist_bars`](crate::store::PriceStoreExt::persist_bars) and `qi bars persist` write the bars.
///
/// The guard rounds the cutoff down to the start of its bucket. A purge inside a bucket would leave some of its ticks,
/// and the bar of the remaining ticks would differ from the stored bar.
///
/// All other calls pass, including [`PriceStore::delete_range`] and purges of other datasets. The comparison and the purge
/// are not atomic: a tick that is written before the cutoff meanwhile may be removed without its bar. Choose a cutoff
/// that is older than the latest late tick.
///
/// `PurgeGuard` is not a [`Layer`](super::Layer), because a layer does not see the arguments of a call. It belongs outside
/// all layers, so that each read of the comparison has its own timeout and retries.
///
/// ```
/// use std::sync::Arc;
/// use qi_core::layer::{LayerStack, PurgeGuard};
/// use qi_core::{Interval, PriceStore};
///
/// fn guard(store: Arc<dyn PriceStore>) -> impl PriceStore {
///     PurgeGuard::new(LayerStack::default().wrap_store(store), Interval::M1)
/// }
/// ```
#[derive(Debug)]
pub struct PurgeGuard<S> {
    pub(super) inner: S,
    interval: Interval,
}

impl<S> PurgeGuard<S> {
    /// Guards the ticks of a store with its stored bars of `interval`.
    pub fn new(inner: S, interval: Interval) -> Self {
        Self { inner, interval }
    }

    /// Returns the wrapped store.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// Returns the interval of the stored bars that a purge requires.
    pub fn interval(&self) -> Interval {
        self.interval
    }
}

impl<S: Display> Display for PurgeGuard<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PurgeGuard({})", self.inner)
    }
}

impl<S: PriceStore> PurgeGuard<S> {
    pub(super) async fn purge(&self, dataset: Dataset, cutoff: Timestamp) -> Result<()> {
        if dataset != PriceTick::DATASET {
            return self.inner.purge_before(dataset, cutoff).await;
        }
        let cutoff = self.interval.floor(cutoff);
        let mut request = SeriesRequest::new(dataset);
        loop {
            let page = self.inner.series(&request).await?;
            for summary in page.items.into_iter().filter(|summary| summary.first < cutoff) {
                let summary = summary.of_instrument()?;
                self.check(&summary.instrument, summary.first, cutoff).await?;
            }
            let Some(next) = page.next else { break };
            request = request.after(next);
        }
        self.inner.purge_before(dataset, cutoff).await
    }

    /// Checks the bars of one instrument from the bucket of its first tick to the cutoff.
    async fn check(&self, instrument: &Instrument, first: Timestamp, cutoff: Timestamp) -> Result<()> {
        let since = self.interval.floor(first);
        let max_batch = self.inner.info().max_batch.max(1);
        let mut query = Some(closed_bars(instrument, self.interval, since, cutoff, max_batch)?);
        while let Some(page) = query {
            let (compared, next) = compare_page(&self.inner, page).await?;
            if let Some((derived, stored)) =
                compared.into_iter().find(|(derived, stored)| stored.as_ref() != Some(derived))
            {
                return Err(rejection(&derived, stored.as_ref(), cutoff));
            }
            query = next;
        }
        Ok(())
    }
}

fn rejection(derived: &Bar, stored: Option<&Bar>, cutoff: Timestamp) -> Error {
    let (instrument, interval, open_time) = (derived.instrument(), derived.interval(), derived.open_time());
    let (rule, option) = match stored {
        None => ("a stored bar is missing", ""),
        Some(stored) if has_lost_ticks(derived, stored) => {
            ("a stored bar counts more ticks than the store has", " --overwrite")
        }
        Some(_) => ("a stored bar differs from its ticks", ""),
    };
    Error::new(ErrorKind::InvalidInput, "layer.purge_guard.bars", "purge_before")
        .with_message(format_args!("no tick was purged, because {rule}"))
        .with_context("instrument", instrument)
        .with_context("interval", interval)
        .with_context("open_time", open_time)
        .with_context("cutoff", cutoff)
        .with_context(
            "remedy",
            format_args!(
                "qi bars persist --instrument {instrument} --interval {interval} --since {open_time}{option}"
            ),
        )
}
