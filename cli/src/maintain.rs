//! `qi maintain`: materializes bars until no step is left.

use std::time::Duration;

use qi_core::store::{MaintainRequest, MaintenanceReport};
use qi_core::{PriceStore, Result, Timestamp};
use tokio::time::Instant;

use crate::output::{Listing, maybe, text};

/// The outcome of a run: the last report, with the sums of all calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome(MaintenanceReport);

impl Outcome {
    /// Returns true if the store materializes bars.
    pub fn is_enabled(&self) -> bool {
        self.0.watermark.is_some()
    }

    /// Returns true if the store materializes bars and no step is left.
    pub fn is_complete(&self) -> bool {
        self.is_enabled() && self.0.is_complete()
    }

    /// Returns one row with the report.
    pub fn listing(&self, store: &str) -> Listing {
        let MaintenanceReport { watermark, target, ticks, rebuilt, stale, .. } = self.0;
        let mut listing = Listing::new(["store", "watermark", "target", "ticks", "rebuilt", "stale"]);
        listing.push([
            text(store),
            maybe(watermark),
            maybe(target),
            ticks.into(),
            rebuilt.into(),
            stale.into(),
        ]);
        listing
    }
}

/// Calls [`PriceStore::maintain`] until no step is left, a call makes no progress, or `budget` has passed. Without `until`,
/// the store chooses the end; without `budget`, the time is not limited.
///
/// # Errors
/// Errors of the store. The work of completed steps is kept.
pub async fn run(
    store: &dyn PriceStore,
    until: Option<Timestamp>,
    budget: Option<Duration>,
) -> Result<Outcome> {
    let began = Instant::now();
    let remaining = || budget.map(|budget| budget.saturating_sub(began.elapsed()));
    let mut total = MaintenanceReport::default();
    loop {
        let request = MaintainRequest::default();
        let budget = remaining().map_or(request.budget, |remaining| remaining.min(request.budget));
        let request = until.into_iter().fold(request.with_budget(budget), MaintainRequest::with_until);
        let mut report = store.maintain(&request).await?;
        let made_progress = report.made_progress(total.watermark);
        report.ticks += total.ticks;
        report.rebuilt += total.rebuilt;
        total = report;
        let is_over = remaining().is_some_and(|remaining| remaining.is_zero());
        if report.is_complete() || !made_progress || is_over {
            return Ok(Outcome(total));
        }
    }
}
