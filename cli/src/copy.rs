//! `qi copy`: copies records from one store to another in pages, and can be interrupted and continued at any page.
//!
//! Records are written by key, so a page that is written twice is stored once. The position in each series is saved in a
//! file at most once a second. At the end both stores are read again and compared by counts and checksums.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use qi_core::record::Dataset;
use qi_core::store::{Cursor, PageRequest, PriceStore, RecordPage};
use qi_core::{Error, ErrorKind, Instrument, Result, TimeRange, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::output::{Listing, text};
use crate::{Series, Summary, progress};

/// The code of errors of the progress file.
const CODE: &str = "copy.progress";
/// The shortest time between two writes of the progress file.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// The number of series that are copied concurrently by default.
const CONCURRENCY: usize = 4;

/// The data to copy.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The datasets, in the order of the copy.
    pub datasets: Vec<Dataset>,
    /// The instruments. An empty set selects all. Datasets of names are copied completely.
    pub instruments: BTreeSet<Instrument>,
    /// The range of times. The time of a bar is its open time. An end of [`Timestamp::MAX`] is the time at which the copy
    /// begins; a continued copy keeps this time.
    pub range: TimeRange,
    /// The progress file. Without it, an interrupted copy restarts from the beginning.
    pub progress: Option<PathBuf>,
}

/// The content of a progress file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    /// The plan as text. Another plan must not continue from this file.
    plan: String,
    /// The end of the range, if it is the time at which the copy began.
    #[serde(default)]
    until: Option<Timestamp>,
    series: BTreeMap<String, SeriesProgress>,
}

/// The progress in memory, and the time of its last write.
struct Saved {
    progress: Progress,
    at: Option<Instant>,
}

/// The progress of one series.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct SeriesProgress {
    records: u64,
    /// The cursor after which to continue. None at the beginning, and at the end of a complete series.
    after: Option<Cursor>,
    complete: bool,
}

/// The comparison of one series in both stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesComparison {
    /// The series.
    pub series: Series,
    /// The summary in the source.
    pub source: Summary,
    /// The summary in the target.
    pub target: Summary,
}

/// The outcome of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All series were copied and compared.
    Done(Vec<SeriesComparison>),
    /// The copy was stopped. The progress file has the position.
    Interrupted,
}

impl Outcome {
    /// Returns true if both stores have equal records.
    pub fn is_equal(&self) -> bool {
        matches!(self, Self::Done(all) if all.iter().all(|compared| compared.source == compared.target))
    }

    /// Returns a row for each series, with counts and checksums.
    pub fn listing(&self) -> Listing {
        let mut listing = Listing::new(["series", "source", "target", "checksum", "result"]);
        if let Self::Done(all) = self {
            for SeriesComparison { series, source, target } in all {
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

/// A copy in progress.
#[derive(Debug)]
pub struct Copy {
    from: Arc<dyn PriceStore>,
    to: Arc<dyn PriceStore>,
    plan: Plan,
    /// Stops the copy between two pages.
    pub stop: CancellationToken,
    /// The number of records that this run has copied.
    pub copied: Arc<AtomicU64>,
    /// The number of series that are copied or compared concurrently. Defaults to 4.
    pub concurrency: usize,
    /// Compares the stores and writes nothing. Defaults to false.
    pub verify_only: bool,
}

impl Copy {
    /// Creates a copy with this plan.
    pub fn new(from: Arc<dyn PriceStore>, to: Arc<dyn PriceStore>, plan: Plan) -> Self {
        let (stop, copied) = (CancellationToken::new(), Arc::default());
        Self { from, to, plan, stop, copied, concurrency: CONCURRENCY, verify_only: false }
    }

    /// Creates the schema of the target, copies the series that are not complete in the progress file, and compares. A
    /// series that differs is removed from the progress file, so that the next run copies it again. With
    /// [`Copy::verify_only`] only compares.
    ///
    /// # Errors
    /// Errors of a store; `InvalidInput` for the progress file of another copy; `NotFound` for an instrument that the
    /// source does not have.
    pub async fn run(&self) -> Result<Outcome> {
        let mut saved = Saved { progress: self.load()?, at: None };
        let range = if self.plan.range.end() == Timestamp::MAX {
            // A progress file of an older version has positions without an end.
            let new = || if saved.progress.series.is_empty() { Timestamp::now() } else { Timestamp::MAX };
            let until = saved.progress.until.unwrap_or_else(new).max(self.plan.range.start());
            saved.progress.until = Some(until);
            TimeRange::new(self.plan.range.start(), until)?
        } else {
            self.plan.range
        };
        if !self.verify_only {
            self.to.ensure_schema().await?;
        }
        let mut all = Vec::new();
        for dataset in &self.plan.datasets {
            all.extend(Series::list(&*self.from, *dataset, &self.plan.instruments).await?);
        }
        self.check_instruments(&all)?;
        let (concurrency, saved) = (self.concurrency.max(1), Mutex::new(saved));
        if !self.verify_only {
            let series = stream::iter(&all).map(|series| self.series(series, range, &saved));
            let is_complete = series
                .buffer_unordered(concurrency)
                .try_fold(true, |all, one| async move { Ok(all && one) })
                .await;
            self.save(&mut lock(&saved))?;
            if !is_complete? {
                return Ok(Outcome::Interrupted);
            }
        }
        let comparisons = stream::iter(all).map(|series| self.compare(series, range)).buffered(concurrency);
        let Some(compared) = self.stop.run_until_cancelled(comparisons.try_collect::<Vec<_>>()).await else {
            return Ok(Outcome::Interrupted);
        };
        let compared = compared?;
        let mut saved = lock(&saved);
        let different = compared.iter().filter(|compared| compared.source != compared.target);
        let removed =
            different.filter(|compared| saved.progress.series.remove(&compared.series.to_string()).is_some());
        if removed.count() > 0 {
            self.save(&mut saved)?;
        }
        Ok(Outcome::Done(compared))
    }

    async fn compare(&self, series: Series, range: TimeRange) -> Result<SeriesComparison> {
        let (source, target) =
            tokio::try_join!(series.summary(&*self.from, range), series.summary(&*self.to, range))?;
        Ok(SeriesComparison { series, source, target })
    }

    /// Returns an error for an instrument without records, which is probably mistyped.
    fn check_instruments(&self, all: &[Series]) -> Result<()> {
        let known: BTreeSet<_> = all.iter().filter_map(|series| series.key.owner.instrument()).collect();
        match self.plan.instruments.iter().find(|instrument| !known.contains(instrument)) {
            None => Ok(()),
            Some(missing) => Err(Error::new(ErrorKind::NotFound, "copy.instrument", "copy")
                .with_message("the source has no records of this instrument in the datasets of the copy")
                .with_context("instrument", missing)),
        }
    }

    /// Copies the rest of one series, and reads a page while the page before is written. Returns false after a stop.
    async fn series(&self, series: &Series, range: TimeRange, saved: &Mutex<Saved>) -> Result<bool> {
        let name = series.to_string();
        let mut position = lock(saved).progress.series.get(&name).cloned().unwrap_or_default();
        if position.complete {
            return Ok(true);
        }
        if self.stop.is_cancelled() {
            return Ok(false);
        }
        let bulk = PageRequest::bulk(series.dataset);
        // A page is written with one insert.
        let page_size = PageRequest::first(bulk.limit().min(self.to.info().max_batch))?;
        let mut page = series.page(&*self.from, range, page_size.clone(), position.after.clone()).await?;
        loop {
            if self.stop.is_cancelled() {
                return Ok(false);
            }
            let RecordPage { records, next, resume: _ } = page;
            let insert = async {
                // An empty batch must not reach the store.
                if records.is_empty() { Ok(()) } else { self.to.insert(records.as_records()).await.map(drop) }
            };
            let following = async {
                match &next {
                    Some(cursor) => series
                        .page(&*self.from, range, page_size.clone(), Some(cursor.clone()))
                        .await
                        .map(Some),
                    None => Ok(None),
                }
            };
            let ((), following) = tokio::try_join!(insert, following)?;
            self.copied.fetch_add(records.len() as u64, Ordering::Relaxed);
            position.records += records.len() as u64;
            position.complete = next.is_none();
            position.after = next;
            {
                let mut saved = lock(saved);
                saved.progress.series.insert(name.clone(), position.clone());
                if saved.at.is_none_or(|at| at.elapsed() >= SAVE_INTERVAL) {
                    self.save(&mut saved)?;
                }
            }
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
        let until = None;
        let found: Option<Progress> =
            progress::load(progress.as_deref(), CODE, &plan, |found: &Progress| &found.plan)?;
        Ok(found.unwrap_or(Progress { plan, until, series: BTreeMap::new() }))
    }

    fn save(&self, saved: &mut Saved) -> Result<()> {
        saved.at = Some(Instant::now());
        progress::save(self.plan.progress.as_deref(), CODE, &saved.progress)
    }
}

fn lock(saved: &Mutex<Saved>) -> std::sync::MutexGuard<'_, Saved> {
    saved.lock().unwrap_or_else(PoisonError::into_inner)
}
