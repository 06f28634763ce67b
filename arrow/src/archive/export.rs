//! Export: records of a store to an archive.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{Seek as _, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use qi_core::record::{Dataset, RecordVec, Series as _, SeriesKey, SeriesType};
use qi_core::store::{PageRequest, PriceStore, PriceStoreExt as _, RangeRequest};
use qi_core::{Error, ErrorKind, Instrument, Result, TimeRange};
use tokio_util::sync::CancellationToken;

use super::import::{Failure, SHOWN};
use super::location::{Entry, Fetched, Files, other_size, scratch_failed};
use super::manifest::Settings;
use super::scratch::Scratch;
use super::{Archive, Manifest, Period, PeriodLength, blocking, check_range, layout};
use crate::error::corrupt;
use crate::records::range_records;
use crate::{Content, ContentDigest, Decimals, ParquetReader, ParquetWriter};

/// The options of an export.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ExportOptions {
    /// The datasets. A repeated dataset is exported once.
    pub datasets: Vec<Dataset>,
    /// The instruments. An empty set selects all. Datasets of names are exported completely.
    pub instruments: BTreeSet<Instrument>,
    /// The range of times. Both ends must be borders of a period.
    pub range: TimeRange,
    /// The period of one file. None selects the period of the archive, and a day for the first export. Defaults to None.
    pub period: Option<PeriodLength>,
    /// The form of decimals. Defaults to exact values.
    pub decimals: Decimals,
    /// True to read every existing file and to compare its SHA-256 with its manifest, also files whose records the store
    /// no longer has. Defaults to false: only the size and the metadata of existing files are compared.
    pub verify_existing: bool,
    /// The number of series that are exported concurrently. Defaults to 2.
    pub concurrency: usize,
    /// Stops the export between two pages.
    pub stop: CancellationToken,
    /// Counts the records that the export has read.
    pub progress: Arc<AtomicU64>,
}

impl ExportOptions {
    /// Creates the options for all records of these datasets.
    pub fn new(datasets: impl IntoIterator<Item = Dataset>) -> Self {
        Self {
            datasets: datasets.into_iter().collect(),
            instruments: BTreeSet::new(),
            range: TimeRange::ALL,
            period: None,
            decimals: Decimals::Exact,
            verify_existing: false,
            concurrency: 2,
            stop: CancellationToken::new(),
            progress: Arc::default(),
        }
    }
}

/// The result of one series.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportedSeries {
    /// The dataset.
    pub dataset: Dataset,
    /// The series.
    pub series: SeriesKey,
    /// The number of records in all its files in the range.
    pub records: u64,
    /// The number of files that were missing or different, and were written.
    pub written: u64,
    /// The number of bytes of the written files.
    pub bytes: u64,
    /// The number of files that are equal to the store.
    pub unchanged: u64,
    /// The number of files for periods without records in the store. An export never removes files.
    pub surplus: u64,
}

/// The result of an export.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ExportReport {
    /// The series, in order.
    pub series: Vec<ExportedSeries>,
    /// The number of files of selected series that the store does not have.
    pub orphaned: u64,
    /// The number of files without records in the store that are missing, or that differ from their manifests. The export
    /// cannot write these files again.
    pub failed: u64,
    /// The first of these files, with the path of the data file.
    pub failures: Vec<(String, Error)>,
    /// The data files without records in the store whose manifests were missing, damaged or of an earlier file, and were
    /// written again from the data files.
    pub repaired: Vec<String>,
    /// True if the export was stopped before its end. The same export continues.
    pub interrupted: bool,
}

/// Writes the records of a store to an archive: one file for each dataset, series and period.
///
/// A file is written if it is missing, or if its records differ from those of the store. A file of a period without
/// records in the store is compared with its manifest; failures are in [`ExportReport::failures`]. A missing manifest of
/// such a file is written again after a complete read of the file. Files are replaced atomically, never extended and
/// never removed. Before its final name, a file is synced; after it, the file is read back. An export that was
/// interrupted at any point continues when it is called again.
///
/// The memory is bounded by two pages and one row group for each concurrent series, and for an object store by 48 MiB
/// more: six parts of an upload, each of 8 MiB. A file in progress is in the folder `_partial` of the archive, or for an
/// object store in the temporary folder of the machine.
///
/// # Errors
/// `InvalidInput` for a range that cuts a period, for an archive with another period or other decimals, and for an
/// archive with files but without its settings. `NotFound` for an instrument without records in the store and without
/// files in the archive. `Conflict` if another export writes into the same folder. Errors of the store and of the
/// archive.
///
/// ```
/// use qi_arrow::{Archive, ExportOptions, ImportOptions, export, import};
/// use qi_core::record::Record as _;
/// use qi_core::{Datasets, PriceStoreExt as _, PriceTick, Timestamp};
/// use qi_testkit::store::MemoryStore;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let (source, target) = (MemoryStore::default(), MemoryStore::default());
/// # qi_core::PriceStore::ensure_schema(&source).await?;
/// # qi_core::PriceStore::ensure_schema(&target).await?;
/// let ts = Timestamp::from_secs(1_700_000_000)?;
/// source.insert_tick(&PriceTick::new("kraken:XBT/EUR".parse()?, ts, 0, "34000.1".parse()?)?).await?;
///
/// let folder = tempfile::tempdir()?;
/// let archive = Archive::folder(&folder)?;
/// let report = export(&source, &archive, &ExportOptions::new([PriceTick::DATASET])).await?;
/// assert_eq!(report.series[0].written, 1);
/// assert!(folder.path().join("ticks/kraken/XBT%2FEUR/2023-11-14.parquet").is_file());
///
/// let report = import(&target, &archive, &ImportOptions::new(Datasets::standard())).await?;
/// assert_eq!(report.records(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub async fn export<S: PriceStore + ?Sized>(
    store: &S,
    archive: &Archive,
    options: &ExportOptions,
) -> Result<ExportReport> {
    let period = match options.period {
        Some(period) => period,
        None => archive.period_length().await?,
    };
    check_range(options.range, period)?;
    let mut seen = HashSet::new();
    let datasets: Vec<Dataset> =
        options.datasets.iter().copied().filter(|dataset| seen.insert(*dataset)).collect();
    let mut all = Vec::new();
    let mut missing = options.instruments.clone();
    for &dataset in &datasets {
        for series in store.all_series(dataset).await? {
            if let (SeriesType::Instrument, Some(instrument)) = (dataset.series(), series.owner.instrument())
            {
                if !options.instruments.is_empty() && !options.instruments.contains(instrument) {
                    continue;
                }
                missing.remove(instrument);
            }
            all.push((dataset, series));
        }
    }
    check_instruments(archive, &datasets, &missing).await?;
    let _lock = archive.lock().await?;
    archive.settings(&Settings::new(period, options.decimals), &datasets).await?;
    let all = all.into_iter().map(|(dataset, series)| SeriesExport {
        store,
        archive,
        options,
        folder: layout::folder(dataset, &series),
        dataset,
        series,
        period,
    });
    let all: Vec<_> = all.collect();
    let exports = stream::iter(all).map(SeriesExport::run).buffered(options.concurrency.max(1));
    let mut report = ExportReport::default();
    let mut stored = HashMap::new();
    let all: Vec<Option<Exported>> = exports.try_collect().await?;
    for series in all {
        match series {
            Some(Exported { report: series, folder, periods }) => {
                report.series.push(series);
                stored.insert(folder, periods);
            }
            None => report.interrupted = true,
        }
    }
    if !report.interrupted {
        check_kept_files(archive, options, &datasets, &stored, &mut report).await?;
    }
    Ok(report)
}

/// Compares the files of periods without records in the store with their manifests. No export can write them again.
async fn check_kept_files(
    archive: &Archive,
    options: &ExportOptions,
    datasets: &[Dataset],
    stored: &HashMap<String, BTreeSet<Period>>,
    report: &mut ExportReport,
) -> Result<()> {
    let mut kept = Vec::new();
    for &dataset in datasets {
        for selected in selected_folders(dataset, &options.instruments) {
            let mut files = BTreeMap::<(String, Period), Option<u64>>::new();
            let mut entries = archive.entries(&selected)?;
            while let Some(Entry { folder, period, data }) = entries.try_next().await? {
                let periods = stored.get(&folder);
                let is_stored = periods.is_some_and(|periods| periods.contains(&period));
                if is_stored || !options.range.contains(period.start()) {
                    continue;
                }
                report.orphaned += u64::from(data.is_some() && periods.is_none());
                let size = files.entry((folder, period)).or_default();
                *size = size.or(data);
            }
            let file =
                |((folder, period), size)| KeptFile { archive, options, dataset, folder, period, size };
            kept.extend(files.into_iter().map(file));
        }
    }
    let mut checks = stream::iter(kept).map(KeptFile::run).buffered(options.concurrency.max(1));
    while let Some((path, checked)) = checks.next().await {
        if options.stop.is_cancelled() {
            report.interrupted = true;
            return Ok(());
        }
        match checked.map_err(Failure::from) {
            Ok(false) => {}
            Ok(true) => report.repaired.push(path),
            // The series were read and written, so this concerns one file, for example in a store for old objects.
            Err(Failure::All(error)) if error.kind() != ErrorKind::Unauthorized => {
                return Err(error.with_context("file", path));
            }
            Err(Failure::All(error) | Failure::File(error)) => {
                report.failed += 1;
                if report.failures.len() < SHOWN {
                    report.failures.push((path, error));
                }
            }
        }
    }
    Ok(())
}

/// A file of a period without records in the store.
struct KeptFile<'a> {
    archive: &'a Archive,
    options: &'a ExportOptions,
    dataset: Dataset,
    /// The folder of the series, relative to the archive.
    folder: String,
    period: Period,
    /// The size of the data file. None for a manifest without a data file.
    size: Option<u64>,
}

impl KeptFile<'_> {
    /// Compares the file with its manifest. Returns its path and the result.
    async fn run(self) -> (String, Result<bool>) {
        let path = format!("{}/{}", self.folder, layout::data_name(self.period));
        let checked = self.check(&path).await;
        (path, checked)
    }

    /// Compares the file with its manifest. Returns true if the manifest was written again.
    async fn check(&self, path: &str) -> Result<bool> {
        let absent = |what: &str| {
            Error::new(ErrorKind::NotFound, "archive.file.missing", "export")
                .with_message(format_args!("the {what} is missing"))
        };
        let Some(size) = self.size else { return Err(absent("data file")) };
        let manifest = format!("{}/{}", self.folder, layout::manifest_name(self.period));
        let manifest = match self.archive.manifest(&manifest).await {
            Ok(found) => found,
            // A damaged manifest is written again, but not that of a later version of this library.
            Err(error) if matches!(error.code(), "archive.manifest" | "archive.file.type") => None,
            Err(error) => return Err(error),
        };
        let stated = self.archive.stated(path, size).await?;
        // An export that was killed between the file and its manifest leaves no manifest, or that of the file before.
        let is_of_file = |manifest: &Manifest| {
            let of_file = |(content, writer): &(Content, String)| {
                *content == manifest.content && *writer == manifest.created_by
            };
            stated.as_ref().is_some_and(of_file)
        };
        let is_good = manifest.as_ref().is_some_and(is_of_file);
        let other_content = || {
            let message = "the content that the file states differs from its manifest";
            corrupt("archive.file.content", message)
        };
        let manifest = match (manifest, stated) {
            (Some(manifest), Some(_)) if is_good => manifest,
            // The file can be an older copy that was restored.
            (Some(manifest), Some((content, _))) if content.records < manifest.content.records => {
                return Err(other_content());
            }
            (_, Some(stated)) => return self.repair(path, size, stated).await.map(|()| true),
            (Some(manifest), None) if size != manifest.bytes => {
                return Err(other_size(size, manifest.bytes));
            }
            (Some(_), None) => return Err(other_content()),
            (None, None) => return Err(absent("manifest of the damaged data file")),
        };
        let series = manifest.series(self.dataset)?;
        let place = (manifest.dataset.as_str(), layout::folder(self.dataset, &series), manifest.period);
        if place != (self.dataset.name(), self.folder.clone(), self.period) {
            let message = "the manifest is in the folder of another series or period";
            return Err(corrupt("archive.manifest.path", message));
        }
        if size != manifest.bytes {
            return Err(other_size(size, manifest.bytes));
        }
        if self.options.verify_existing && self.archive.hash(path).await? != (manifest.bytes, manifest.sha256)
        {
            let message = "the SHA-256 of the file differs from its manifest";
            return Err(corrupt("archive.file.changed", message));
        }
        Ok(false)
    }

    /// Writes the manifest of a data file. All records of the file are read and compared with the content that it states.
    async fn repair(&self, path: &str, size: u64, stated: (Content, String)) -> Result<()> {
        let foreign = || corrupt("archive.file.foreign", "the file has a record of another series or period");
        let Fetched { mut file, bytes, sha256 } = self.archive.fetch(path, size).await?;
        let (dataset, range) = (self.dataset, self.period.range());
        let (content, series) = blocking(move || {
            file.seek(SeekFrom::Start(0)).map_err(scratch_failed)?;
            let (mut digest, mut series) = (ContentDigest::default(), None::<SeriesKey>);
            for records in ParquetReader::new(dataset, file)? {
                let records = records?;
                let all = records.as_records();
                if all.is_empty() {
                    continue;
                }
                let first = all.series(0).to_owned();
                let same_series = all.run(0..all.len()) == all.len()
                    && series.as_ref().is_none_or(|series| *series == first);
                if !same_series || !(0..all.len()).all(|at| range.contains(all.sort_key(at).0)) {
                    return Err(foreign());
                }
                digest.add(all, 0..all.len());
                series = Some(first);
            }
            Ok((digest.finish(), series))
        })
        .await?;
        let (expected, created_by) = stated;
        if content != expected {
            let message = "the records of the file differ from the content that the file states";
            return Err(corrupt("archive.file.content", message));
        }
        let series = series.filter(|series| layout::folder(dataset, series) == self.folder);
        let series = series.ok_or_else(foreign)?;
        let file = (content, bytes, sha256);
        let mut manifest = Manifest::new(dataset, &series, self.period, self.options.decimals, file);
        manifest.created_by = created_by;
        self.archive.put_manifest(&self.folder, &manifest).await
    }
}

/// Returns the folders with all files of a dataset that these instruments select. An empty set selects all.
fn selected_folders(dataset: Dataset, instruments: &BTreeSet<Instrument>) -> Vec<String> {
    if instruments.is_empty() || dataset.series() != SeriesType::Instrument {
        return vec![dataset.name().to_owned()];
    }
    instruments.iter().map(|instrument| layout::folder(dataset, &instrument.key())).collect()
}

/// Checks that the archive has files of each instrument that is missing in the store.
///
/// # Errors
/// `NotFound` for another instrument, unless all datasets are of names.
async fn check_instruments(
    archive: &Archive,
    datasets: &[Dataset],
    missing: &BTreeSet<Instrument>,
) -> Result<()> {
    let is_of_instruments = |dataset: &&Dataset| dataset.series() == SeriesType::Instrument;
    let datasets: Vec<_> = datasets.iter().filter(is_of_instruments).collect();
    if datasets.is_empty() {
        return Ok(());
    }
    'instruments: for instrument in missing {
        for dataset in &datasets {
            let folder = layout::folder(**dataset, &instrument.key());
            if archive.entries(&folder)?.try_next().await?.is_some() {
                continue 'instruments;
            }
        }
        let names: Vec<_> = datasets.iter().map(|dataset| dataset.name()).collect();
        return Err(Error::new(ErrorKind::NotFound, "archive.instrument", "export")
            .with_message(format_args!(
                "the store and the archive have no records of the instrument in the selected datasets: {}",
                names.join(", ")
            ))
            .with_context("instrument", instrument));
    }
    Ok(())
}

struct SeriesExport<'a, S: ?Sized> {
    store: &'a S,
    archive: &'a Archive,
    options: &'a ExportOptions,
    dataset: Dataset,
    series: SeriesKey,
    /// The folder of the series in the archive.
    folder: String,
    period: PeriodLength,
}

/// The records of one period, in progress.
enum Work {
    /// The records are compared with an existing file.
    Compare(Box<(ContentDigest, Content)>),
    Write(Box<ParquetWriter<Scratch>>),
}

impl Work {
    fn add(&mut self, records: &RecordVec, range: std::ops::Range<usize>) -> Result<()> {
        match self {
            Self::Compare(work) => {
                work.0.add(records.as_records(), range);
                Ok(())
            }
            Self::Write(writer) => writer.write_range(records.as_records(), range),
        }
    }
}

/// The result of one series.
struct Exported {
    report: ExportedSeries,
    /// The folder of the series in the archive.
    folder: String,
    /// The periods that the store has records of.
    periods: BTreeSet<Period>,
}

/// The result of a pass over a range.
struct Pass {
    /// The period in progress.
    current: Option<(Period, Work)>,
    report: ExportedSeries,
    /// The periods that the store has records of.
    seen: BTreeSet<Period>,
    /// The periods whose files differ from the store.
    different: Vec<Period>,
}

impl<S: PriceStore + ?Sized> SeriesExport<'_, S> {
    /// Exports the series. Returns None if the export was stopped.
    async fn run(self) -> Result<Option<Exported>> {
        let key = format!("{} {}", self.dataset, self.series);
        self.export().await.map_err(|error| error.with_context("series", key))
    }

    async fn export(self) -> Result<Option<Exported>> {
        if self.options.stop.is_cancelled() {
            return Ok(None);
        }
        let files = self.archive.files(&self.folder).await?;
        let mut pass = Pass {
            current: None,
            report: ExportedSeries {
                dataset: self.dataset,
                series: self.series.clone(),
                records: 0,
                written: 0,
                bytes: 0,
                unchanged: 0,
                surplus: 0,
            },
            seen: BTreeSet::new(),
            different: Vec::new(),
        };
        let mut complete = self.pass(self.options.range, &files, &mut pass).await?;
        // The records that differ are read again, and now written.
        for period in std::mem::take(&mut pass.different) {
            let written = pass.report.written;
            complete = complete && self.pass(period.range(), &Files::new(), &mut pass).await?;
            if complete && pass.report.written == written {
                // Its records were deleted between the passes.
                pass.seen.remove(&period);
            }
        }
        if !complete {
            return Ok(None);
        }
        let range = self.options.range;
        let surplus = files.iter().filter(|(period, (size, _))| {
            size.is_some() && range.contains(period.start()) && !pass.seen.contains(*period)
        });
        pass.report.surplus = surplus.count() as u64;
        Ok(Some(Exported { report: pass.report, folder: self.folder, periods: pass.seen }))
    }

    /// Reads the records of a range, compares them with the files, and writes the files that are missing. Returns false
    /// if the export was stopped.
    async fn pass(&self, range: TimeRange, files: &Files, pass: &mut Pass) -> Result<bool> {
        let page = PageRequest::bulk(self.dataset);
        let first = RangeRequest::new(self.dataset, self.series.clone(), range).with_page(page);
        let mut all = range_records(self.store, first);
        let mut records = all.try_next().await?;
        while let Some(page) = records {
            if self.options.stop.is_cancelled() {
                return Ok(false);
            }
            // The next page is read while this page is written.
            (records, ()) = futures::try_join!(all.try_next(), self.add(page, files, pass))?;
        }
        self.close(pass).await?;
        Ok(true)
    }

    async fn add(&self, records: RecordVec, files: &Files, pass: &mut Pass) -> Result<()> {
        let records = Arc::new(records);
        let (mut at, len) = (0, records.len());
        while at < len {
            let time_of = |at| records.as_records().sort_key(at).0;
            let period = Period::of(time_of(at), self.period);
            // The records are in the order of their times.
            let (mut low, mut high) = (at + 1, len);
            while low < high {
                let middle = low + (high - low) / 2;
                if time_of(middle) < period.end() { low = middle + 1 } else { high = middle }
            }
            if pass.current.as_ref().is_none_or(|(current, _)| *current != period) {
                self.close(pass).await?;
                pass.current = Some((period, self.open(period, files).await?));
                pass.seen.insert(period);
            }
            if let Some((period, mut work)) = pass.current.take() {
                let (records, range) = (records.clone(), at..low);
                let work = blocking(move || work.add(&records, range).map(|()| work)).await?;
                pass.current = Some((period, work));
            }
            self.options.progress.fetch_add((low - at) as u64, Ordering::Relaxed);
            at = low;
        }
        Ok(())
    }

    /// Begins the work on a period: a comparison with the existing file, or a new file.
    async fn open(&self, period: Period, files: &Files) -> Result<Work> {
        if let Some((Some(size), true)) = files.get(&period)
            && let Some(content) = self.existing(period, *size).await?
        {
            return Ok(Work::Compare(Box::new((ContentDigest::default(), content))));
        }
        let writer = ParquetWriter::new(self.dataset, self.options.decimals, self.archive.scratch()?)?;
        Ok(Work::Write(Box::new(writer)))
    }

    /// Returns the content of an existing file, if the file agrees with its manifest.
    async fn existing(&self, period: Period, size: u64) -> Result<Option<Content>> {
        let at = |name: String| format!("{}/{name}", self.folder);
        let manifest = match self.archive.manifest(&at(layout::manifest_name(period))).await {
            Ok(Some(manifest)) => manifest,
            // A damaged manifest is replaced together with its file.
            Err(error) if error.kind() == ErrorKind::CorruptData => return Ok(None),
            other => return other.map(|_| None),
        };
        let file = (manifest.content.clone(), size, manifest.sha256.clone());
        let mut expected = Manifest::new(self.dataset, &self.series, period, self.options.decimals, file);
        expected.created_by.clone_from(&manifest.created_by);
        if manifest != expected {
            return Ok(None);
        }
        let data = at(layout::data_name(period));
        // An export that was killed between the file and its manifest leaves the manifest of the file before.
        let stated = self.archive.stated(&data, size).await?;
        if stated != Some((manifest.content.clone(), manifest.created_by)) {
            return Ok(None);
        }
        if self.options.verify_existing && self.archive.hash(&data).await?.1 != manifest.sha256 {
            return Ok(None);
        }
        Ok(Some(manifest.content))
    }

    /// Ends the work on the period in progress.
    async fn close(&self, pass: &mut Pass) -> Result<()> {
        match pass.current.take() {
            None => {}
            Some((period, Work::Compare(work))) => {
                let (digest, content) = *work;
                if digest.finish() == content {
                    pass.report.unchanged += 1;
                    pass.report.records += content.records;
                } else {
                    pass.different.push(period);
                }
            }
            Some((period, Work::Write(writer))) => {
                let (scratch, content) = blocking(move || writer.finish()).await?;
                let data = format!("{}/{}", self.folder, layout::data_name(period));
                let (bytes, sha256) = self.archive.publish(scratch, &data).await?;
                pass.report.written += 1;
                pass.report.bytes += bytes;
                pass.report.records += content.records;
                let decimals = self.options.decimals;
                let manifest =
                    Manifest::new(self.dataset, &self.series, period, decimals, (content, bytes, sha256));
                self.archive.put_manifest(&self.folder, &manifest).await?;
            }
        }
        Ok(())
    }
}
