//! `qi bars persist`: writes closed derived bars as stored bars.

use std::sync::atomic::{AtomicU64, Ordering};

use futures::TryStreamExt as _;
use qi_core::store::{PersistReport, PersistRequest};
use qi_core::{Instrument, Interval, PriceStore, PriceStoreExt as _, PriceTick, Result, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::output::{Listing, text};

/// The bars to persist.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The instruments. An empty list selects all instruments that have ticks.
    pub instruments: Vec<Instrument>,
    /// The interval of the bars.
    pub interval: Interval,
    /// The earliest open time. None continues an interrupted run: from a page before the latest stored bar of each
    /// instrument, or from the first tick of an instrument without stored bars.
    pub since: Option<Timestamp>,
    /// The latest close time.
    pub until: Timestamp,
    /// Also replaces stored bars that count more ticks than the store has.
    pub overwrite: bool,
}

/// The outcome of a run.
#[derive(Debug)]
pub struct Outcome {
    rows: Vec<(Instrument, PersistReport)>,
    interval: Interval,
    /// True if the run was stopped before its end.
    pub interrupted: bool,
}

impl Outcome {
    /// Returns the number of different stored bars that were not replaced.
    pub fn kept(&self) -> u64 {
        self.rows.iter().map(|(_, report)| report.kept).sum()
    }

    /// Returns a row for each instrument with at least one completed page.
    pub fn listing(&self) -> Listing {
        let mut listing =
            Listing::new(["instrument", "interval", "compared", "written", "kept", "complete until"]);
        for (instrument, report) in &self.rows {
            listing.push([
                text(instrument),
                text(self.interval),
                report.derived.into(),
                report.written.into(),
                report.kept.into(),
                text(report.resume),
            ]);
        }
        listing
    }
}

/// Persists the bars of a plan, instrument by instrument, until `stop`. The run can be repeated and continued. `compared`
/// counts the compared bars.
///
/// # Errors
/// Errors of the store. Bars before the error are stored.
pub async fn persist(
    store: &dyn PriceStore,
    plan: Plan,
    stop: &CancellationToken,
    compared: &AtomicU64,
) -> Result<Outcome> {
    let Plan { mut instruments, interval, since, until, overwrite } = plan;
    if instruments.is_empty() {
        let series = store.all_series(PriceTick::DATASET).await?;
        instruments.extend(series.into_iter().filter_map(|series| series.owner.instrument().cloned()));
    }
    let mut outcome = Outcome { rows: Vec::new(), interval, interrupted: false };
    for instrument in instruments {
        let since = match since {
            Some(since) => since,
            None => store.persist_start(&instrument, interval).await?,
        };
        let request = PersistRequest::new(instrument.clone(), interval, until);
        let mut pages = store.persist_bar_pages(request.with_since(since).with_overwrite(overwrite));
        let mut total = None;
        loop {
            if stop.is_cancelled() {
                outcome.interrupted = true;
                break;
            }
            let Some(page) = pages.try_next().await? else { break };
            compared.fetch_add(page.derived, Ordering::Relaxed);
            total = Some(total.map_or(page, |total: PersistReport| total.merge(page)));
        }
        outcome.rows.extend(total.map(|total| (instrument, total)));
        if outcome.interrupted {
            break;
        }
    }
    Ok(outcome)
}
