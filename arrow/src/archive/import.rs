//! Import: the files of an archive to a store.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Seek as _, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::TryStreamExt as _;
use qi_core::record::{Dataset, RecordVec, SeriesKey};
use qi_core::store::{PageRequest, PriceStore, RangeRequest};
use qi_core::{Datasets, Error, ErrorKind, Instrument, Result, TimeRange};
use tokio_util::sync::CancellationToken;

use super::location::scratch_failed;
use super::{Archive, Manifest, Period, blocking, layout};
use crate::error::corrupt;
use crate::{Content, ContentDigest, Decimals, ParquetReader};

/// The number of failures that are kept for display. All are counted.
const SHOWN: usize = 20;

/// The options of an import.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ImportOptions {
    /// The datasets that are known. The store must have been opened with them.
    pub known: Datasets,
    /// The datasets to import. An empty list selects all.
    pub datasets: Vec<Dataset>,
    /// The instruments. An empty set selects all. Datasets of names are imported completely.
    pub instruments: BTreeSet<Instrument>,
    /// The range of times. A file is imported if its period begins in the range.
    pub range: TimeRange,
    /// Stops the import between two batches.
    pub stop: CancellationToken,
    /// Counts the records that the import has written.
    pub progress: Arc<AtomicU64>,
}

impl ImportOptions {
    /// Creates the options for all files of an archive.
    pub fn new(known: Datasets) -> Self {
        Self {
            known,
            datasets: Vec::new(),
            instruments: BTreeSet::new(),
            range: TimeRange::ALL,
            stop: CancellationToken::new(),
            progress: Arc::default(),
        }
    }
}

/// The result of one series.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImportedSeries {
    /// The number of files that were written to the store.
    pub imported: u64,
    /// The number of files whose records the store had already.
    pub unchanged: u64,
    /// The number of records in all these files.
    pub records: u64,
    /// The number of files that failed.
    pub failed: u64,
}

/// The result of an import.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct ImportReport {
    /// The series.
    pub series: BTreeMap<(Dataset, SeriesKey), ImportedSeries>,
    /// The number of files that were not imported, or that differ from the store after the import.
    pub failed: u64,
    /// The first failures, with the path of the manifest.
    pub failures: Vec<(String, Error)>,
    /// True if the import was stopped before its end. The same import continues.
    pub interrupted: bool,
}

impl ImportReport {
    /// Returns the number of records in all files that are in the store now.
    pub fn records(&self) -> u64 {
        self.series.values().map(|series| series.records).sum()
    }

    /// Returns true if the import reached its end without a failure.
    pub fn is_good(&self) -> bool {
        self.failed == 0 && !self.interrupted
    }
}

/// Writes the files of an archive to a store.
///
/// A file is compared with its manifest before the first record is written: its size, its SHA-256, its dataset and its
/// version. Every record is validated. After a file, its period is read from the store and compared with the manifest by
/// count and digest. If the period is already equal, the file is not read. An import can therefore be repeated, and
/// continues after an interruption.
///
/// A file that fails does not stop the import of the others. A store that has more records in a period than the file
/// counts as a failure, because the comparison is not possible.
///
/// # Errors
/// Errors of the store and of the archive. Failures of single files are in [`ImportReport::failures`].
pub async fn import<S: PriceStore + ?Sized>(
    store: &S,
    archive: &Archive,
    options: &ImportOptions,
) -> Result<ImportReport> {
    let mut report = ImportReport::default();
    let mut manifests = archive.manifests("")?;
    let work = async {
        while let Some(path) = manifests.try_next().await? {
            match import_file(store, archive, options, &path).await {
                Ok(None) => {}
                Ok(Some((key, records, was_imported))) => {
                    let series = entry(&mut report, key);
                    series.records += records;
                    series.imported += u64::from(was_imported);
                    series.unchanged += u64::from(!was_imported);
                }
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::File(key, error)) => {
                    report.failed += 1;
                    if let Some(key) = key {
                        entry(&mut report, key).failed += 1;
                    }
                    if report.failures.len() < SHOWN {
                        report.failures.push((path, error));
                    }
                }
            }
        }
        Ok(())
    };
    match options.stop.run_until_cancelled(work).await {
        Some(outcome) => outcome?,
        None => report.interrupted = true,
    }
    Ok(report)
}

type Key = (Dataset, SeriesKey);

fn entry(report: &mut ImportReport, key: Key) -> &mut ImportedSeries {
    let none = ImportedSeries { imported: 0, unchanged: 0, records: 0, failed: 0 };
    report.series.entry(key).or_insert(none)
}

enum Failure {
    /// The store or the archive failed.
    Fatal(Error),
    /// This file cannot be imported.
    File(Option<Key>, Error),
}

/// Imports one file. Returns None if the options do not select it, else the series, the number of records, and whether
/// they were written.
async fn import_file<S: PriceStore + ?Sized>(
    store: &S,
    archive: &Archive,
    options: &ImportOptions,
    path: &str,
) -> Result<Option<(Key, u64, bool)>, Failure> {
    let (dataset, series, manifest) = match read_manifest(archive, options, path).await {
        Ok(found) => found,
        Err(error) if is_of_file(&error) => return Err(Failure::File(None, error)),
        Err(error) => return Err(Failure::Fatal(error)),
    };
    let is_selected = (options.datasets.is_empty() || options.datasets.contains(&dataset))
        && options.range.contains(manifest.period.start())
        && (options.instruments.is_empty()
            || series.owner.instrument().is_none_or(|instrument| options.instruments.contains(instrument)));
    if !is_selected {
        return Ok(None);
    }
    let key = (dataset, series);
    let file = ArchiveFile { store, archive, options, key: &key, manifest: &manifest, path };
    match file.import().await {
        Ok(was_imported) => Ok(Some((key, manifest.content.records, was_imported))),
        Err(error) if is_of_file(&error) => Err(Failure::File(Some(key), error)),
        Err(error) => Err(Failure::Fatal(error)),
    }
}

/// Returns true for an error that other files need not have.
fn is_of_file(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::CorruptData
            | ErrorKind::InvalidInput
            | ErrorKind::NotFound
            | ErrorKind::OutOfRange
            | ErrorKind::Unsupported
    ) || (error.kind() == ErrorKind::SchemaMismatch && error.code().starts_with("arrow"))
        || error.code().starts_with("archive.version")
}

async fn read_manifest(
    archive: &Archive,
    options: &ImportOptions,
    path: &str,
) -> Result<(Dataset, SeriesKey, Manifest)> {
    let gone = || {
        Error::new(ErrorKind::NotFound, "archive.manifest", "import")
            .with_message("the manifest has been removed")
    };
    let manifest = archive.manifest(path).await?.ok_or_else(gone)?;
    let dataset = options.known.get(&manifest.dataset).ok_or_else(|| {
        corrupt("archive.dataset", format_args!("the dataset {} is not known", manifest.dataset))
    })?;
    let series = manifest.series(dataset)?;
    if path != format!("{}/{}", layout::folder(dataset, &series), layout::manifest_name(manifest.period)) {
        return Err(corrupt(
            "archive.manifest.path",
            "the manifest is in the folder of another series or period",
        ));
    }
    if manifest.version != dataset.version() {
        let message = format_args!(
            "the file has version {} of {dataset}, expected {}",
            manifest.version,
            dataset.version()
        );
        return Err(corrupt("archive.version", message));
    }
    if manifest.decimals == Decimals::Float64 {
        let message = "the archive has doubles, which are not exact; export it again without --floats";
        return Err(Error::new(ErrorKind::Unsupported, "archive.decimals", "import").with_message(message));
    }
    Ok((dataset, series, manifest))
}

struct ArchiveFile<'a, S: ?Sized> {
    store: &'a S,
    archive: &'a Archive,
    options: &'a ImportOptions,
    key: &'a Key,
    manifest: &'a Manifest,
    path: &'a str,
}

impl<S: PriceStore + ?Sized> ArchiveFile<'_, S> {
    /// Imports the file, unless the store has its records. Returns true if records were written.
    async fn import(&self) -> Result<bool> {
        if self.stored().await? == self.manifest.content {
            return Ok(false);
        }
        let (dataset, _) = self.key;
        let folder = self.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let data = format!("{folder}/{}", layout::data_name(self.manifest.period));
        let (mut file, bytes, sha256) = self.archive.download(&data, self.manifest.bytes).await?;
        if (bytes, &sha256) != (self.manifest.bytes, &self.manifest.sha256) {
            return Err(corrupt("archive.file.changed", "the file differs from its manifest")
                .with_context("file", &data)
                .with_context("sha256", sha256)
                .with_context("expected", &self.manifest.sha256));
        }
        let dataset = *dataset;
        let reader = blocking(move || {
            file.seek(SeekFrom::Start(0)).map_err(scratch_failed)?;
            ParquetReader::new(dataset, file)
        })
        .await?;
        let (mut reader, mut batch) = next(reader).await?;
        while let Some(records) = batch {
            self.check(&records)?;
            // The next batch is decoded while this batch is written.
            ((reader, batch), ()) = futures::try_join!(next(reader), self.insert(records))?;
        }
        let stored = self.stored().await?;
        if stored == self.manifest.content {
            return Ok(true);
        }
        Err(corrupt("archive.different", "the store differs from the file after the import")
            .with_context("records", stored.records)
            .with_context("expected", self.manifest.content.records))
    }

    /// Checks that the records belong to the series and the period of the manifest.
    fn check(&self, records: &RecordVec) -> Result<()> {
        let all = records.as_records();
        let period: Period = self.manifest.period;
        let is_inside = |at: usize| period.range().contains(all.sort_key(at).0);
        let same_series =
            all.is_empty() || (all.series(0) == self.key.1.as_ref() && all.run(0..all.len()) == all.len());
        if same_series && (0..all.len()).all(is_inside) {
            return Ok(());
        }
        Err(corrupt("archive.file.foreign", "the file has a record of another series or period"))
    }

    async fn insert(&self, mut rest: RecordVec) -> Result<()> {
        let most = self.store.info().max_batch.max(1);
        while !rest.is_empty() {
            let later = rest.split_off(rest.len().min(most));
            self.store.insert(rest.as_records()).await?;
            self.options.progress.fetch_add(rest.len() as u64, Ordering::Relaxed);
            rest = later;
        }
        Ok(())
    }

    /// Returns the content of the period in the store.
    async fn stored(&self) -> Result<Content> {
        let (dataset, series) = self.key;
        let range = self.manifest.period.range();
        let page = PageRequest::bulk(*dataset);
        let mut request = RangeRequest::new(*dataset, series.clone(), range).with_page(page);
        let mut digest = ContentDigest::default();
        loop {
            let page = self.store.range(&request).await?;
            digest.add(page.records.as_records(), 0..page.records.len());
            // One record more than the file is enough to differ.
            match page.next.filter(|_| digest.records() <= self.manifest.content.records) {
                Some(next) => request = request.after(next),
                None => return Ok(digest.finish()),
            }
        }
    }
}

async fn next(mut reader: ParquetReader) -> Result<(ParquetReader, Option<RecordVec>)> {
    blocking(move || {
        let batch = reader.next().transpose()?;
        Ok((reader, batch))
    })
    .await
}
