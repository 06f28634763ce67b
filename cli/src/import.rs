//! `qi import`: writes market data files directly into the store, without a bus.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use qi_core::{
    Bar, Error, Instrument, PriceStore, PriceStoreExt, PriceTick, Record, Result, ResultExt as _, Timestamp,
};
use qi_files::coverage::{Coverage, CoverageState, Ledger, Proof};
use qi_files::{Batch, Data, Files, Numbering, Source};
use tokio_util::sync::CancellationToken;

use crate::output::{Listing, text};

/// The number of records in one insert.
const CHUNK: usize = 10_000;
/// The number of bad lines that are kept for display. All are counted.
const MAX_SHOWN: usize = 10;

/// The options of an import.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plan {
    /// True to stop at the first bad line.
    pub strict: bool,
    /// True to record the trade ids of verified files in the coverage ledger. The store must know the dataset
    /// [`Coverage`].
    pub coverage: bool,
}

/// The result of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileCount {
    /// The name of the file.
    pub name: String,
    /// The number of stored records.
    pub records: u64,
    /// The number of lines without a valid record.
    pub bad_lines: u64,
    /// True if the file matches its checksum file.
    pub is_verified: bool,
}

/// The result of an import.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct ImportReport {
    /// The files, in their order.
    pub files: Vec<FileCount>,
    /// The instruments of the stored records.
    pub instruments: BTreeSet<Instrument>,
    /// The first bad lines.
    pub bad_lines: Vec<Error>,
    /// The error that ended the import.
    pub error: Option<Error>,
    /// True if the import was stopped before its end.
    pub interrupted: bool,
}

impl ImportReport {
    /// Returns the number of stored records.
    pub fn records(&self) -> u64 {
        self.files.iter().map(|file| file.records).sum()
    }

    /// Returns the number of lines without a valid record.
    pub fn bad(&self) -> u64 {
        self.files.iter().map(|file| file.bad_lines).sum()
    }

    /// Returns true if the import reached its end, with a record and with at most as many bad lines as records.
    pub fn is_good(&self) -> bool {
        self.error.is_none() && !self.interrupted && self.records() > 0 && self.bad() <= self.records()
    }

    /// Returns a row for each file.
    pub fn listing(&self) -> Listing {
        let mut listing = Listing::new(["file", "records", "bad_lines", "checksum"]);
        for file in &self.files {
            let checksum = if file.is_verified { "verified" } else { "none" };
            listing.push([text(&file.name), file.records.into(), file.bad_lines.into(), text(checksum)]);
        }
        listing
    }

    fn bad_lines(&mut self, count: u64, first: Vec<Error>) {
        if let Some(file) = self.files.last_mut() {
            file.bad_lines += count;
        }
        self.bad_lines.extend(first);
        self.bad_lines.truncate(MAX_SHOWN);
    }
}

/// Writes the records of files into a store. The numbers of trades without ids continue after the stored ones. `stored`
/// counts the records.
///
/// # Errors
/// Errors of the schema of the store. Later errors are in [`ImportReport::error`].
pub async fn run(
    store: Arc<dyn PriceStore>,
    files: Files,
    plan: Plan,
    stop: &CancellationToken,
    stored: Arc<AtomicU64>,
) -> Result<ImportReport> {
    store.ensure_schema().await?;
    let mut import = Import {
        numbering: Numbering::new(store.clone()),
        store,
        plan,
        stored,
        spans: None,
        done: ImportReport::default(),
    };
    let outcome = match files.data {
        Data::Trades(source) => import.carry(source, stop).await,
        Data::Candles(source, _) => import.carry(source, stop).await,
    };
    import.done.error = outcome.err();
    Ok(import.done)
}

struct Import {
    store: Arc<dyn PriceStore>,
    numbering: Numbering,
    plan: Plan,
    stored: Arc<AtomicU64>,
    /// The ids of the current file, if they can be recorded in the ledger.
    spans: Option<BTreeMap<Instrument, Span>>,
    done: ImportReport,
}

/// The first and last id, and the earliest and latest time.
type Span = ((u64, u64), (Timestamp, Timestamp));

/// A record that files contain.
trait Importable: Record {
    fn instrument(&self) -> &Instrument;

    /// Returns the trade id and the time of a trade.
    fn trade(&self) -> Option<(u64, Timestamp)>;

    /// Numbers the records of a file without ids.
    fn number(batch: &mut Batch<Self>, numbering: &mut Numbering) -> impl Future<Output = Result<()>> + Send;
}

impl Importable for PriceTick {
    fn instrument(&self) -> &Instrument {
        self.instrument()
    }

    fn trade(&self) -> Option<(u64, Timestamp)> {
        Some((self.seq(), self.ts()))
    }

    async fn number(batch: &mut Batch<Self>, numbering: &mut Numbering) -> Result<()> {
        numbering.number(&mut batch.records, batch.ahead.as_ref()).await
    }
}

impl Importable for Bar {
    fn instrument(&self) -> &Instrument {
        self.instrument()
    }

    fn trade(&self) -> Option<(u64, Timestamp)> {
        None
    }

    async fn number(_: &mut Batch<Self>, _: &mut Numbering) -> Result<()> {
        Ok(())
    }
}

impl Import {
    async fn carry<T: Importable>(&mut self, mut source: Source<T>, stop: &CancellationToken) -> Result<()> {
        let mut batch = Batch::default();
        while !batch.ended {
            if stop.is_cancelled() {
                self.done.interrupted = true;
                return Ok(());
            }
            // On a thread for blocking work, so that a slow file does not delay a signal.
            let (strict, stopped) = (self.plan.strict, stop.clone());
            let work = move || {
                let (mut count, mut first) = (0, Vec::new());
                let read = Batch::read_next(batch, &mut source, |error| {
                    count += 1;
                    if first.len() < MAX_SHOWN {
                        first.push(error.clone());
                    }
                    // A file may have millions of bad lines in a row.
                    if strict || stopped.is_cancelled() { Err(error) } else { Ok(()) }
                });
                (source, read, count, first)
            };
            let (rest, read, count, first) =
                tokio::task::spawn_blocking(work).await.permanent("import", "read")?;
            (source, batch) = match read {
                Ok(read) => (rest, read),
                Err(error) => {
                    self.done.bad_lines(count, first);
                    self.done.interrupted = !strict && stop.is_cancelled();
                    return if self.done.interrupted { Ok(()) } else { Err(error) };
                }
            };
            if let Some(file) = &batch.begins {
                self.record_coverage().await?;
                self.numbering.restart();
                self.spans =
                    (self.plan.coverage && file.is_verified && file.has_trade_ids).then(BTreeMap::new);
                let (name, is_verified) = (file.name.clone(), file.is_verified);
                self.done.files.push(FileCount { name, records: 0, bad_lines: 0, is_verified });
            }
            self.done.bad_lines(count, first);
            if batch.has_ordinals {
                T::number(&mut batch, &mut self.numbering).await?;
            }
            self.store.insert_records_chunked(&batch.records, CHUNK).await?;
            self.extend_spans(&batch.records);
            let mut last = None;
            for record in &batch.records {
                if last != Some(record.instrument()) {
                    last = Some(record.instrument());
                    if !self.done.instruments.contains(record.instrument()) {
                        self.done.instruments.insert(record.instrument().clone());
                    }
                }
            }
            let count = batch.records.len() as u64;
            self.stored.fetch_add(count, Ordering::Relaxed);
            if let Some(file) = self.done.files.last_mut() {
                file.records += count;
            }
        }
        self.record_coverage().await
    }

    fn extend_spans<T: Importable>(&mut self, records: &[T]) {
        let Some(spans) = &mut self.spans else { return };
        for record in records {
            let Some((id, time)) = record.trade() else { continue };
            if let Some((ids, times)) = spans.get_mut(record.instrument()) {
                *ids = (ids.0.min(id), ids.1.max(id));
                *times = (times.0.min(time), times.1.max(time));
            } else {
                spans.insert(record.instrument().clone(), ((id, id), (time, time)));
            }
        }
    }

    /// Records the ids of the file that has ended. A file with bad lines proves nothing.
    async fn record_coverage(&mut self) -> Result<()> {
        let Some(spans) = self.spans.take() else { return Ok(()) };
        if self.done.files.last().is_none_or(|file| file.bad_lines > 0) {
            return Ok(());
        }
        for (instrument, ((first, last), times)) in spans {
            let mut ledger = Ledger::load(&*self.store, &instrument).await?;
            let claim = Coverage::new(instrument, first..=last, times, CoverageState::Complete, Proof::File);
            ledger.record(&*self.store, vec![claim]).await?;
        }
        Ok(())
    }
}
