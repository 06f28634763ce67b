//! Import: the files of an archive to a store.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Seek as _, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::TryStreamExt as _;
use qi_core::record::{Dataset, RecordVec, Series as _, SeriesKey, SeriesType};
use qi_core::store::{PageRequest, PriceStore, RangeRequest};
use qi_core::{Datasets, Error, ErrorKind, Instrument, Result, TimeRange};
use tokio_util::sync::CancellationToken;

use super::location::{Entry, Fetched, scratch_failed};
use super::{Archive, Manifest, blocking, check_range, layout};
use crate::error::{corrupt, mismatch};
use crate::records::{insert_records, range_records};
use crate::{Content, ContentDigest, Decimals, ParquetReader};

/// The number of failures that are kept for display. All are counted.
pub(super) const SHOWN: usize = 20;

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
    /// The range of times. Both ends must be borders of a period, as for an export.
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
    /// The number of files that failed, also of those in the folder of the series without a usable manifest.
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
    /// The first failures, with the path of the data file, or the name of the folder of an unknown dataset.
    pub failures: Vec<(String, Error)>,
    /// The error that ended the import: of the store, of the object store or of its listing, of the folder for temporary
    /// files, or of a file whose period the range cuts. The same import continues.
    pub error: Option<Error>,
    /// The selected instruments without a file in the archive. Empty if the import ended before its end, or if the options
    /// select only datasets of names.
    pub missing: BTreeSet<Instrument>,
    /// True if the import was stopped before its end. The same import continues.
    pub interrupted: bool,
}

impl ImportReport {
    /// Returns the number of records in all files that are in the store now.
    pub fn records(&self) -> u64 {
        self.series.values().map(|series| series.records).sum()
    }

    fn fail(&mut self, file: String, error: Error) {
        self.failed += 1;
        if self.failures.len() < SHOWN {
            self.failures.push((file, error));
        }
    }

    /// Returns true if the import reached its end without a failure, and found every selected instrument.
    pub fn is_good(&self) -> bool {
        self.failed == 0 && self.error.is_none() && self.missing.is_empty() && !self.interrupted
    }
}

/// Writes the files of an archive to a store.
///
/// A file is compared with its manifest before the first record is written: its size, its SHA-256, its dataset, its
/// version, its number of records and the content that it states. Every record is validated. After a file, its period is
/// read from the store and compared with the manifest by count and digest. If the period is already equal, the file is
/// not read. An import can therefore be repeated, and continues after an interruption.
///
/// A file that fails does not stop the import of the others. A store that has more records in a period than the file
/// counts as a failure, because the comparison is not possible.
///
/// # Errors
/// `InvalidInput` for a range that cuts a period. Errors of the first listing of the archive and, with a range, of its
/// settings. Failures of single files are in [`ImportReport::failures`], and an error that ends the import later is in
/// [`ImportReport::error`].
pub async fn import<S: PriceStore + ?Sized>(
    store: &S,
    archive: &Archive,
    options: &ImportOptions,
) -> Result<ImportReport> {
    if options.range != TimeRange::ALL {
        check_range(options.range, archive.period_length().await?)?;
    }
    let names = archive.folders().await?;
    let mut report = ImportReport::default();
    report.error = import_folders(store, archive, options, names, &mut report).await.err();
    Ok(report)
}

async fn import_folders<S: PriceStore + ?Sized>(
    store: &S,
    archive: &Archive,
    options: &ImportOptions,
    names: Vec<String>,
    report: &mut ImportReport,
) -> Result<()> {
    let mut datasets = Vec::new();
    for name in names {
        if let Some(dataset) = options.known.get(&name) {
            if options.datasets.is_empty() || options.datasets.contains(&dataset) {
                datasets.push(dataset);
            }
        } else if options.datasets.is_empty() && has_manifest(archive, &name).await? {
            let error = mismatch("archive.dataset", "the dataset is not among the datasets of the program");
            report.fail(name.clone(), error.with_context("dataset", name));
        }
    }
    let is_of_instruments = |dataset: &Dataset| dataset.series() == SeriesType::Instrument;
    let mut missing = options.instruments.clone();
    if !options.datasets.is_empty() && !options.datasets.iter().any(is_of_instruments) {
        missing.clear();
    }
    for dataset in datasets {
        let selection = Selection::new(dataset, options);
        let mut entries = archive.entries(dataset.name())?;
        while let Some(entry) = entries.try_next().await? {
            if options.stop.is_cancelled() {
                report.interrupted = true;
                return Ok(());
            }
            check_range(options.range, entry.period.length())?;
            let instrument = selection.instrument(&entry);
            if let Some(instrument) = instrument {
                missing.remove(instrument);
            }
            let is_selected = selection.folders.is_none() || instrument.is_some();
            if !is_selected || !options.range.contains(entry.period.start()) {
                continue;
            }
            let path = format!("{}/{}", entry.folder, layout::data_name(entry.period));
            match import_entry(store, archive, options, &entry).await {
                Ok(Done::Skipped) => {}
                Ok(Done::Stored(key, records, was_imported)) => {
                    let series = series_of(report, key);
                    series.records += records;
                    series.imported += u64::from(was_imported);
                    series.unchanged += u64::from(!was_imported);
                }
                Ok(Done::Stopped) => {
                    report.interrupted = true;
                    return Ok(());
                }
                Err((_, Failure::All(error))) => return Err(error.with_context("file", path)),
                Err((key, Failure::File(error))) => {
                    report.fail(path, error);
                    // Without a usable manifest, the folder names the series.
                    let of_folder = || Some((dataset, layout::series(dataset, &entry.folder)?));
                    if let Some(key) = key.or_else(of_folder) {
                        series_of(report, key).failed += 1;
                    }
                }
            }
        }
    }
    report.missing = missing;
    Ok(())
}

/// The files of a dataset that the options select, by their paths. A manifest must be in the folder of its series.
struct Selection<'a> {
    /// The selected instruments with their folders. None selects all series.
    folders: Option<Vec<(&'a Instrument, String)>>,
}

impl<'a> Selection<'a> {
    fn new(dataset: Dataset, options: &'a ImportOptions) -> Self {
        let is_by_instrument = dataset.series() == SeriesType::Instrument && !options.instruments.is_empty();
        let folder = |instrument: &'a Instrument| (instrument, layout::folder(dataset, &instrument.key()));
        Self { folders: is_by_instrument.then(|| options.instruments.iter().map(folder).collect()) }
    }

    /// Returns the selected instrument of a file.
    fn instrument(&self, entry: &Entry) -> Option<&'a Instrument> {
        let is_below = |folder: &str| {
            // The interval of a series is another folder.
            let rest = entry.folder.strip_prefix(folder);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let found = self.folders.iter().flatten().find(|(_, folder)| is_below(folder));
        found.map(|(instrument, _)| *instrument)
    }
}

/// Returns true for the folder of a dataset. Other folders do not belong to the archive.
async fn has_manifest(archive: &Archive, folder: &str) -> Result<bool> {
    if !layout::is_dataset_name(folder) {
        return Ok(false);
    }
    let mut entries = archive.entries(folder)?;
    while let Some(entry) = entries.try_next().await? {
        if entry.data.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

type Key = (Dataset, SeriesKey);

fn series_of(report: &mut ImportReport, key: Key) -> &mut ImportedSeries {
    let none = ImportedSeries { imported: 0, unchanged: 0, records: 0, failed: 0 };
    report.series.entry(key).or_insert(none)
}

pub(super) enum Failure {
    /// The other files would fail too.
    All(Error),
    /// This file cannot be imported.
    File(Error),
}

/// Errors of the archive are those of the file, unless other files would fail too: without the object store or its
/// credentials, or without space for temporary files.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let concerns_all = match error.code() {
            "archive.object_store" => {
                matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Unauthorized)
            }
            code => matches!(code, "archive.file.temporary" | "archive.runtime"),
        };
        if concerns_all { Self::All(error) } else { Self::File(error) }
    }
}

impl Failure {
    /// Classifies an error of the store. The store can reject the records of one file.
    fn of_store(error: Error) -> Self {
        match error.kind() {
            ErrorKind::CorruptData
            | ErrorKind::InvalidInput
            | ErrorKind::NotFound
            | ErrorKind::OutOfRange
            | ErrorKind::Unsupported => Self::File(error),
            _ => Self::All(error),
        }
    }
}

enum Done {
    /// The entry is a manifest whose data file exists.
    Skipped,
    /// The store has the records of the file, and whether they were written.
    Stored(Key, u64, bool),
    /// The import was stopped.
    Stopped,
}

/// Imports a data file. For a manifest, checks that its data file exists.
async fn import_entry<S: PriceStore + ?Sized>(
    store: &S,
    archive: &Archive,
    options: &ImportOptions,
    entry: &Entry,
) -> Result<Done, (Option<Key>, Failure)> {
    let found = read_manifest(archive, options, entry).await.map_err(|error| (None, error.into()))?;
    let Some((dataset, series, manifest)) = found else { return Ok(Done::Skipped) };
    let key = (dataset, series);
    let file = ArchiveFile { store, archive, options, key: &key, manifest: &manifest, folder: &entry.folder };
    match file.import().await {
        Ok(Some(was_imported)) => Ok(Done::Stored(key, manifest.content.records, was_imported)),
        Ok(None) => Ok(Done::Stopped),
        Err(failure) => Err((Some(key), failure)),
    }
}

/// Reads the manifest of a data file. Returns None for the entry of a manifest whose data file exists, because the data
/// file is another entry.
async fn read_manifest(
    archive: &Archive,
    options: &ImportOptions,
    entry: &Entry,
) -> Result<Option<(Dataset, SeriesKey, Manifest)>> {
    let Entry { folder, period, data } = entry;
    let absent = |what: &str| {
        let message = format_args!("the {what} is missing; export the archive again");
        Error::new(ErrorKind::NotFound, "archive.file.missing", "import").with_message(message)
    };
    if data.is_none() {
        let exists = archive.exists(&format!("{folder}/{}", layout::data_name(*period))).await?;
        return if exists { Ok(None) } else { Err(absent("data file")) };
    }
    let path = format!("{folder}/{}", layout::manifest_name(*period));
    let manifest = archive.manifest(&path).await?.ok_or_else(|| absent("manifest"))?;
    let dataset = options.known.get(&manifest.dataset).ok_or_else(|| {
        corrupt("archive.dataset", "the dataset of the manifest is not among the datasets of the program")
            .with_context("dataset", &manifest.dataset)
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
    Ok(Some((dataset, series, manifest)))
}

struct ArchiveFile<'a, S: ?Sized> {
    store: &'a S,
    archive: &'a Archive,
    options: &'a ImportOptions,
    key: &'a Key,
    manifest: &'a Manifest,
    folder: &'a str,
}

impl<S: PriceStore + ?Sized> ArchiveFile<'_, S> {
    /// Imports the file, unless the store has its records. Returns whether records were written, or None if the import
    /// was stopped.
    async fn import(&self) -> Result<Option<bool>, Failure> {
        if self.stored().await? == self.manifest.content {
            return Ok(Some(false));
        }
        let dataset = self.key.0;
        let data = format!("{}/{}", self.folder, layout::data_name(self.manifest.period));
        let Fetched { mut file, bytes, sha256 } = self.archive.fetch(&data, self.manifest.bytes).await?;
        if (bytes, &sha256) != (self.manifest.bytes, &self.manifest.sha256) {
            return Err(corrupt("archive.file.changed", "the SHA-256 of the file differs from its manifest")
                .with_context("bytes", bytes)
                .with_context("sha256", sha256)
                .with_context("expected", &self.manifest.sha256)
                .into());
        }
        let reader = blocking(move || {
            file.seek(SeekFrom::Start(0)).map_err(scratch_failed)?;
            ParquetReader::new(dataset, file)
        })
        .await?;
        self.check_count(reader.rows())?;
        if reader.content().is_some_and(|content| *content != self.manifest.content) {
            let message = "the content that the file states differs from its manifest";
            return Err(corrupt("archive.file.content", message).into());
        }
        let (mut reader, mut batch) = next(reader).await?;
        let mut read = 0;
        while let Some(records) = batch {
            if self.options.stop.is_cancelled() {
                return Ok(None);
            }
            read += records.len() as u64;
            if read > self.manifest.content.records {
                // The pages of a damaged file can have more rows than its row groups state.
                self.check_count(read)?;
            }
            self.check(&records)?;
            // The next batch is decoded while this batch is written.
            let decode = async { Ok(next(reader).await?) };
            ((reader, batch), ()) = futures::try_join!(decode, self.insert(records))?;
        }
        let stored = self.stored().await?;
        if stored == self.manifest.content {
            return Ok(Some(true));
        }
        Err(corrupt("archive.different", "the store differs from the file after the import")
            .with_context("records", stored.records)
            .with_context("expected", self.manifest.content.records)
            .into())
    }

    /// Checks that the file has the number of records of the manifest.
    fn check_count(&self, records: u64) -> Result<()> {
        if records == self.manifest.content.records {
            return Ok(());
        }
        Err(corrupt("archive.file.records", "the number of records of the file differs from its manifest")
            .with_context("records", records)
            .with_context("expected", self.manifest.content.records))
    }

    /// Checks that the records belong to the series and the period of the manifest.
    fn check(&self, records: &RecordVec) -> Result<()> {
        let all = records.as_records();
        let range = self.manifest.period.range();
        let is_inside = |at: usize| range.contains(all.sort_key(at).0);
        let same_series =
            all.is_empty() || (all.series(0) == self.key.1.as_ref() && all.run(0..all.len()) == all.len());
        if same_series && (0..all.len()).all(is_inside) {
            return Ok(());
        }
        Err(corrupt("archive.file.foreign", "the file has a record of another series or period"))
    }

    async fn insert(&self, records: RecordVec) -> Result<(), Failure> {
        let count = |count| {
            self.options.progress.fetch_add(count as u64, Ordering::Relaxed);
        };
        insert_records(self.store, records, count).await.map(drop).map_err(Failure::of_store)
    }

    /// Returns the content of the period in the store.
    async fn stored(&self) -> Result<Content, Failure> {
        let (dataset, series) = self.key;
        let range = self.manifest.period.range();
        let page = PageRequest::bulk(*dataset);
        let request = RangeRequest::new(*dataset, series.clone(), range).with_page(page);
        let (mut all, mut digest) = (range_records(self.store, request), ContentDigest::default());
        while let Some(records) = all.try_next().await.map_err(Failure::of_store)? {
            digest.add(records.as_records(), 0..records.len());
            // One record more than the file is enough to differ.
            if digest.records() > self.manifest.content.records {
                break;
            }
        }
        Ok(digest.finish())
    }
}

async fn next(mut reader: ParquetReader) -> Result<(ParquetReader, Option<RecordVec>)> {
    blocking(move || {
        let batch = reader.next().transpose()?;
        Ok((reader, batch))
    })
    .await
}
