//! Writing: rows in the order of their keys, each key once, in requests of bounded size.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use qi_core::Operation;
use qi_core::record::{FieldWriter as _, Place, Records, SeriesRef};
use qi_core::store::InsertReport;

use super::error::Cause;
use super::schema;
use super::store::{ClickHouseStore, Inner};
use super::table::Table;
use super::wire::Writer;

/// What is sent at once, in bytes.
const SEND: usize = 256 * 1024;

/// How long it may take to find out why a request was cut off.
const REFUSAL: Duration = Duration::from_secs(5);

/// How often a piece is sent while the server's version changes.
const TRIES: usize = 3;

/// The code of a server that does not know a setting.
const UNKNOWN_SETTING: u16 = 115;

/// The code of a server that has other types of columns.
const OTHER_TYPE: u16 = 117;

/// A record of the batch with the key by which rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// The position of its series among those of the batch.
    rank: u32,
    place: Place,
    /// The position in the batch: the later of two equal keys wins.
    at: u32,
}

impl ClickHouseStore {
    pub(super) async fn insert_records(&self, batch: &dyn Records) -> qi_core::Result<InsertReport> {
        let operation = Operation::Insert;
        self.enter(operation)?;
        let table = self.table_of(batch.dataset(), operation)?;
        self.info_now().check_batch(batch.len()).map_err(|e| Cause::Core(e).at(operation))?;
        if batch.is_empty() {
            return Ok(InsertReport::default());
        }
        self.turn(operation, async { self.insert_all(table, batch).await }).await
    }

    async fn insert_all(&self, table: &Table, batch: &dyn Records) -> Result<InsertReport, Cause> {
        let sorted = Sorted::of(batch);
        let report = InsertReport::new(batch.len(), batch.len() - sorted.entries.len());
        for piece in sorted.entries.chunks(self.inner.config.write.piece) {
            self.send(table, &Piece { batch: Some(batch), series: &sorted.series, entries: piece }).await?;
        }
        Ok(report)
    }

    /// One request. Dropped before its end it is aborted, and the server forgets what came of it.
    async fn send(&self, table: &Table, piece: &Piece<'_>) -> Result<(), Cause> {
        let connections = &self.inner.connections;
        let mut deduplicates = connections.deduplicates().await?;
        for _ in 0..TRIES {
            let mut result = self.request(table, piece, deduplicates).await;
            // A server that refuses a request need not read all of it: it answers and goes away, and of that the
            // client has only a connection that broke while it was sending.
            let broke = result.as_ref().is_err_and(Cause::is_network);
            if broke && let Some(refusal) = self.refusal(table, deduplicates).await {
                result = Err(refusal);
            }
            match result {
                Err(cause) if cause.has_code(OTHER_TYPE) && self.is_wider(table).await => {}
                Err(cause) if broke || !cause.has_code(UNKNOWN_SETTING) => return Err(cause),
                // The request may have met another version of the server than the one that was asked.
                result => {
                    if result.is_err() {
                        connections.forget_deduplicates().await;
                    }
                    match connections.deduplicates().await? {
                        now if now == deduplicates => return result,
                        now => deduplicates = now,
                    }
                }
            }
        }
        Err(Cause::Changing)
    }

    /// Returns whether an enumeration has got more names in the database since the last look.
    async fn is_wider(&self, table: &Table) -> bool {
        let Inner { connections, config, .. } = &*self.inner;
        let found = schema::found(&connections.plain, config, std::slice::from_ref(&table.raw)).await;
        found.is_ok_and(|found| table.learn(&found))
    }

    /// Why the server refuses inserts, if it does: the answer to one without any rows, which is read to its end.
    async fn refusal(&self, table: &Table, deduplicates: bool) -> Option<Cause> {
        let nothing = Piece::default();
        let answer = tokio::time::timeout(REFUSAL, self.request(table, &nothing, deduplicates)).await.ok()?;
        answer.err().filter(Cause::is_answer)
    }

    async fn request(&self, table: &Table, piece: &Piece<'_>, deduplicates: bool) -> Result<(), Cause> {
        let mut insert = self.inner.connections.inserting(deduplicates).insert_formatted_with(&table.insert);
        let mut out = Writer(Vec::with_capacity(SEND + 1024));
        table.write_header(&mut out);
        for entry in piece.entries {
            let Some(batch) = piece.batch else { break };
            out.0.extend_from_slice(&piece.series[entry.rank as usize]);
            write_rest(table, batch, entry.at as usize, entry.place, &mut out);
            if out.0.len() >= SEND {
                let full = std::mem::replace(&mut out.0, Vec::with_capacity(SEND + 1024));
                insert.send(Bytes::from(full)).await?;
            }
        }
        insert.send(Bytes::from(out.0)).await?;
        Ok(insert.end().await?)
    }
}

/// Writes the columns behind the series.
pub(super) fn write_rest(
    table: &Table,
    batch: &dyn Records,
    at: usize,
    (time, seq): Place,
    out: &mut Writer,
) {
    out.time(time);
    if table.dataset.seq().is_some() {
        out.counter(seq);
    }
    batch.write(at, out);
}

/// A batch in the order of the keys, each key once: its last record.
struct Sorted {
    entries: Vec<Entry>,
    /// The columns of each series, encoded, by rank.
    series: Vec<Vec<u8>>,
}

impl Sorted {
    fn of(batch: &dyn Records) -> Self {
        // A batch has at most 1,000,000 records.
        let number = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        let mut series: Vec<SeriesRef<'_>> = Vec::new();
        let mut numbers: HashMap<SeriesRef<'_>, u32> = HashMap::new();
        let mut places = Vec::with_capacity(batch.len());
        batch.places(&mut places);
        let seen = |at| {
            let of_record = batch.series(at);
            if let Some(known) = numbers.get(&of_record) {
                return *known;
            }
            let new = number(series.len());
            series.push(of_record.clone());
            numbers.insert(of_record, new);
            new
        };
        let seen: Vec<u32> = (0..batch.len()).map(seen).collect();
        let mut order: Vec<usize> = (0..series.len()).collect();
        order.sort_unstable_by_key(|at| &series[*at]);
        let mut ranks = vec![0_u32; series.len()];
        for (rank, at) in order.iter().enumerate() {
            ranks[*at] = number(rank);
        }
        let entry = |(at, (place, seen)): (usize, (Place, u32))| Entry {
            rank: ranks[seen as usize],
            place,
            at: number(at),
        };
        let mut entries: Vec<Entry> = places.into_iter().zip(seen).enumerate().map(entry).collect();
        entries.sort_unstable();
        // `dedup_by` keeps the first of equal ones: hand the later position to it.
        entries.dedup_by(|later, kept| {
            let same = (later.rank, later.place) == (kept.rank, kept.place);
            if same {
                kept.at = later.at;
            }
            same
        });
        let encoded = |at: usize| {
            let mut out = Writer::default();
            Table::write_series(&mut out, &series[at].owner, series[at].interval);
            out.0
        };
        Self { entries, series: order.into_iter().map(encoded).collect() }
    }
}

/// The records of one request.
#[derive(Default)]
struct Piece<'a> {
    batch: Option<&'a dyn Records>,
    series: &'a [Vec<u8>],
    entries: &'a [Entry],
}
