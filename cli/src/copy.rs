//! `qi copy`: from one store to another, page by page, so that it can be interrupted anywhere and goes on.
//!
//! Records are written by key, so a page that is written twice is there once. The place in each series is kept in a
//! file after every page; at the end both stores are read again and compared by count and checksum.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use qi_core::record::Dataset;
use qi_core::store::{Cursor, PriceStore, RecordPage};
use qi_core::{Error, ErrorKind, Instrument, Result, TimeRange};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::output::{Listing, text};
use crate::{Series, Summary, progress};

/// The code of errors of the progress file.
const CODE: &str = "copy.progress";

/// What to copy.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Which datasets, in this order.
    pub datasets: Vec<Dataset>,
    /// Only these instruments; all if there are none. Datasets of names are copied as a whole.
    pub instruments: BTreeSet<Instrument>,
    /// Which times; of bars the open time.
    pub range: TimeRange,
    /// Where the progress is kept. Without it an interrupted copy begins anew.
    pub progress: Option<PathBuf>,
}

/// How far a copy is, as it stands in the file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    /// What is copied, in words: another copy must not go on from here.
    plan: String,
    series: BTreeMap<String, Place>,
}

/// How far one series is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Place {
    records: u64,
    /// After which record to go on; None is at the beginning, or at the end if it is complete.
    after: Option<Cursor>,
    complete: bool,
}

/// One series in both stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// Which.
    pub series: Series,
    /// In the store that was read.
    pub source: Summary,
    /// In the store that was written.
    pub target: Summary,
}

/// How a copy ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is copied and was compared.
    Done(Vec<Compared>),
    /// It was stopped; the progress says where.
    Interrupted,
}

impl Outcome {
    /// Whether both stores hold the same.
    pub fn is_equal(&self) -> bool {
        matches!(self, Self::Done(all) if all.iter().all(|compared| compared.source == compared.target))
    }

    /// A row for each series, with counts and checksums.
    pub fn listing(&self) -> Listing {
        let mut listing = Listing::new(["series", "source", "target", "checksum", "result"]);
        if let Self::Done(all) = self {
            for Compared { series, source, target } in all {
                let result = if source == target { "equal" } else { "DIFFERENT" };
                let checksum = text(source.checksum);
                listing.push([
                    text(series),
                    source.records.into(),
                    target.records.into(),
                    checksum,
                    text(result),
                ]);
            }
        }
        listing
    }
}

/// A copy under way.
#[derive(Debug)]
pub struct Copy {
    from: Arc<dyn PriceStore>,
    to: Arc<dyn PriceStore>,
    plan: Plan,
    /// Stops it between two pages.
    pub stop: CancellationToken,
    /// How many records this run has copied.
    pub copied: Arc<AtomicU64>,
}

impl Copy {
    /// Copies by this plan.
    pub fn new(from: Arc<dyn PriceStore>, to: Arc<dyn PriceStore>, plan: Plan) -> Self {
        Self { from, to, plan, stop: CancellationToken::new(), copied: Arc::default() }
    }

    /// Makes the schema of the target, copies what the progress does not say is there, and compares. A series that
    /// differs is struck from the progress, so that the next run copies it again.
    ///
    /// # Errors
    /// Of a store; `InvalidInput` if the progress is that of another copy; `NotFound` for an instrument that the source
    /// does not have.
    pub async fn run(&self) -> Result<Outcome> {
        self.to.ensure_schema().await?;
        let mut progress = self.load()?;
        let mut all = Vec::new();
        for dataset in &self.plan.datasets {
            all.extend(Series::list(&*self.from, *dataset, &self.plan.instruments).await?);
        }
        self.check_instruments(&all)?;
        for series in &all {
            if !self.series(series, &mut progress).await? {
                return Ok(Outcome::Interrupted);
            }
        }
        let mut compared = Vec::with_capacity(all.len());
        for series in all {
            let both = async {
                let source = series.summary(&*self.from, self.plan.range);
                let target = series.summary(&*self.to, self.plan.range);
                tokio::try_join!(source, target)
            };
            let Some(both) = self.stop.run_until_cancelled(both).await else {
                return Ok(Outcome::Interrupted);
            };
            let (source, target) = both?;
            if source != target && progress.series.remove(&series.to_string()).is_some() {
                self.save(&progress)?;
            }
            compared.push(Compared { series, source, target });
        }
        Ok(Outcome::Done(compared))
    }

    /// A name that nothing has is a mistake, not an empty copy.
    fn check_instruments(&self, all: &[Series]) -> Result<()> {
        let there: BTreeSet<_> = all.iter().filter_map(|series| series.key.owner.instrument()).collect();
        match self.plan.instruments.iter().find(|instrument| !there.contains(instrument)) {
            None => Ok(()),
            Some(missing) => Err(Error::new(ErrorKind::NotFound, "copy.instrument", "copy")
                .with_message("the source has no records of this instrument in the datasets of the copy")
                .with_context("instrument", missing)),
        }
    }

    /// Copies the rest of one series: reads a page while the one before it is written. False if it was stopped.
    async fn series(&self, series: &Series, progress: &mut Progress) -> Result<bool> {
        let name = series.to_string();
        let mut place = progress.series.get(&name).cloned().unwrap_or_default();
        if place.complete {
            return Ok(true);
        }
        let range = self.plan.range;
        let mut page = series.page(&*self.from, range, place.after.clone()).await?;
        loop {
            if self.stop.is_cancelled() {
                return Ok(false);
            }
            let RecordPage { records, next, resume: _ } = page;
            let insert = async {
                // Nothing is asked of the store for no records.
                if records.is_empty() { Ok(()) } else { self.to.insert(records.as_records()).await.map(drop) }
            };
            let following = async {
                match &next {
                    Some(cursor) => series.page(&*self.from, range, Some(cursor.clone())).await.map(Some),
                    None => Ok(None),
                }
            };
            let ((), following) = tokio::try_join!(insert, following)?;
            self.copied.fetch_add(records.len() as u64, Ordering::Relaxed);
            place.records += records.len() as u64;
            place.complete = next.is_none();
            place.after = next;
            progress.series.insert(name.clone(), place.clone());
            self.save(progress)?;
            match following {
                Some(following) => page = following,
                None => return Ok(true),
            }
        }
    }

    fn load(&self) -> Result<Progress> {
        let Plan { datasets, instruments, range, progress } = &self.plan;
        let (from, to) = (&self.from, &self.to);
        let plan = format!("{from} -> {to}: {datasets:?} of {instruments:?} in {range}");
        let found: Option<Progress> =
            progress::load(progress.as_deref(), CODE, &plan, |found: &Progress| &found.plan)?;
        Ok(found.unwrap_or(Progress { plan, series: BTreeMap::new() }))
    }

    fn save(&self, progress: &Progress) -> Result<()> {
        progress::save(self.plan.progress.as_deref(), CODE, progress)
    }
}
