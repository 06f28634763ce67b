//! `qi import`: writes market data files directly into the store, without a bus.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use qi_core::{
    Bar, Error, Instrument, PriceStore, PriceStoreExt, PriceTick, Record, Result, ResultExt as _, Timestamp,
};
use qi_files::coverage::{Coverage, CoverageState, Ledger, Proof};
use qi_files::{Batch, Data, Files, Numbering, Source, TradeIds};
use tokio_util::sync::CancellationToken;

use crate::output::{Listing, text};

/// The number of records in one insert.
const CHUNK: usize = 10_000;
/// The maximum number of ranges of consecutive ids of a file and instrument that are recorded in the coverage ledger.
const MAX_RANGES: usize = 1_000;
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
        ids: None,
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
    ids: Option<FileIds>,
    done: ImportReport,
}

/// The ids in a file that matches its checksum.
struct FileIds {
    /// True if an id that the file lacks between two others belongs to no trade.
    is_consecutive: bool,
    /// The ranges of consecutive ids of each instrument, in the order of the file. The last range grows.
    ranges: BTreeMap<Instrument, Vec<Coverage>>,
}

impl FileIds {
    fn extend(&mut self, instrument: &Instrument, id: u64, time: Timestamp) {
        if !self.ranges.contains_key(instrument) {
            self.ranges.insert(instrument.clone(), Vec::new());
        }
        let Some(ranges) = self.ranges.get_mut(instrument) else { return };
        // One range more than the maximum, so that the ranges are known to be incomplete.
        let has_space = ranges.len() <= MAX_RANGES;
        match ranges.last_mut() {
            Some(last) if last.ids().contains(&id) || last.last_id.checked_add(1) == Some(id) => {
                last.last_id = last.last_id.max(id);
                last.first_time = last.first_time.min(time);
                last.last_time = last.last_time.max(time);
            }
            _ if has_space => {
                let (state, proof) = (CoverageState::Complete, Proof::File);
                ranges.push(Coverage::new(instrument.clone(), id..=id, (time, time), state, proof));
            }
            _ => {}
        }
    }

    /// Returns the claims for an instrument. Ids that the ledger knows are not claimed as absent.
    fn claims(is_consecutive: bool, mut ranges: Vec<Coverage>, ledger: &Ledger) -> Vec<Coverage> {
        let has_all = ranges.len() <= MAX_RANGES;
        ranges.truncate(MAX_RANGES);
        ranges.sort_by_key(|range| range.first_id);
        let mut claims = ranges.clone();
        if is_consecutive && has_all {
            let known = ledger.known();
            let mut before = ranges.first();
            for range in &ranges {
                if let Some(last) = before
                    && last.last_id < range.first_id.saturating_sub(1)
                {
                    let (ids, times) =
                        (last.last_id + 1..=range.first_id - 1, (last.last_time, last.last_time));
                    if !known.overlaps(&ids) {
                        let (state, proof) = (CoverageState::Absent, Proof::File);
                        claims.push(Coverage::new(range.instrument.clone(), ids, times, state, proof));
                    }
                }
                if before.is_none_or(|last| last.last_id < range.last_id) {
                    before = Some(range);
                }
            }
        }
        claims
    }
}

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
                let is_recorded = self.plan.coverage && file.is_verified && file.trade_ids != TradeIds::None;
                let is_consecutive = file.trade_ids == TradeIds::Consecutive;
                self.ids = is_recorded.then(|| FileIds { is_consecutive, ranges: BTreeMap::new() });
                let (name, is_verified) = (file.name.clone(), file.is_verified);
                self.done.files.push(FileCount { name, records: 0, bad_lines: 0, is_verified });
            }
            self.done.bad_lines(count, first);
            if batch.has_ordinals {
                T::number(&mut batch, &mut self.numbering).await?;
            }
            self.store.insert_records_chunked(&batch.records, CHUNK).await?;
            if let Some(ids) = &mut self.ids {
                for record in &batch.records {
                    if let Some((id, time)) = record.trade() {
                        ids.extend(record.instrument(), id, time);
                    }
                }
            }
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

    /// Records the ids of the file that has ended. A file with bad lines proves nothing.
    async fn record_coverage(&mut self) -> Result<()> {
        let Some(FileIds { is_consecutive, ranges }) = self.ids.take() else { return Ok(()) };
        if self.done.files.last().is_none_or(|file| file.bad_lines > 0) {
            return Ok(());
        }
        for (instrument, ranges) in ranges {
            let mut ledger = Ledger::load(&*self.store, &instrument).await?;
            let claims = FileIds::claims(is_consecutive, ranges, &ledger);
            ledger.record(&*self.store, claims).await?;
        }
        Ok(())
    }
}
