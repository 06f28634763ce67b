//! Writing: rows in the order of their keys, each key once, in requests of bounded size.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use qi_core::Operation;
use qi_core::store::InsertReport;

use super::error::Cause;
use super::store::ClickHouseStore;
use super::table::Stored;
use super::wire::Writer;

/// What is sent at once, in bytes.
const SEND: usize = 256 * 1024;

/// How long it may take to find out why a request was cut off.
const REFUSAL: Duration = Duration::from_secs(5);

/// How often a piece is sent while the server's version changes.
const TRIES: usize = 3;

/// The code of a server that does not know a setting.
const UNKNOWN_SETTING: u16 = 115;

/// A record of the batch, by its place in it, with the key by which rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    rank: u32,
    tail: (i64, i64, u64),
    /// The place in the batch: the later of two equal keys wins.
    at: u32,
}

impl ClickHouseStore {
    /// The one way in for all four datasets.
    pub(super) async fn insert<R: Stored>(
        &self,
        operation: Operation,
        batch: &[R],
    ) -> qi_core::Result<InsertReport> {
        self.enter(operation)?;
        self.info_now().check_batch(batch.len()).map_err(|e| Cause::Core(e).at(operation))?;
        if batch.is_empty() {
            return Ok(InsertReport::default());
        }
        self.turn(operation, async { self.insert_all(batch).await }).await
    }

    async fn insert_all<R: Stored>(&self, batch: &[R]) -> Result<InsertReport, Cause> {
        let entries = entries(batch);
        let report = InsertReport::new(batch.len(), batch.len() - entries.len());
        for piece in entries.chunks(self.inner.config.write.piece) {
            self.send(batch, piece).await?;
        }
        Ok(report)
    }

    /// One request. Dropped before its end it is aborted, and the server forgets what came of it.
    async fn send<R: Stored>(&self, batch: &[R], piece: &[Entry]) -> Result<(), Cause> {
        let connections = &self.inner.connections;
        let mut deduplicates = connections.deduplicates().await?;
        for _ in 0..TRIES {
            match self.request(batch, piece, deduplicates).await {
                // A server that refuses a request need not read all of it: it answers and goes away, and of that the
                // client has only a connection that broke while it was sending.
                Err(broken) if broken.is_network() => {
                    return Err(self.refusal::<R>(deduplicates).await.unwrap_or(broken));
                }
                Err(cause) if !cause.has_code(UNKNOWN_SETTING) => return Err(cause),
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

    /// Why the server refuses inserts, if it does: the answer to one without any rows, which is read to its end.
    async fn refusal<R: Stored>(&self, deduplicates: bool) -> Option<Cause> {
        let answer = tokio::time::timeout(REFUSAL, self.request::<R>(&[], &[], deduplicates)).await.ok()?;
        answer.err().filter(Cause::is_answer)
    }

    async fn request<R: Stored>(
        &self,
        batch: &[R],
        piece: &[Entry],
        deduplicates: bool,
    ) -> Result<(), Cause> {
        let columns: Vec<_> = R::TABLE.columns().collect();
        let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
        let sql = format!(
            "INSERT INTO {} ({}) FORMAT RowBinaryWithNamesAndTypes",
            self.table(R::TABLE.name),
            names.join(", ")
        );
        let mut insert = self.inner.connections.inserting(deduplicates).insert_formatted_with(sql);
        let mut out = Writer(Vec::with_capacity(SEND + 1024));
        out.length(columns.len());
        for name in names {
            out.text(name);
        }
        // With the types, so that a table of another schema refuses the rows and does not misread them.
        for column in columns {
            out.text(column.ty);
        }
        for entry in piece {
            batch[entry.at as usize].encode(&mut out);
            if out.0.len() >= SEND {
                let full = std::mem::replace(&mut out.0, Vec::with_capacity(SEND + 1024));
                insert.send(Bytes::from(full)).await?;
            }
        }
        insert.send(Bytes::from(out.0)).await?;
        Ok(insert.end().await?)
    }
}

/// The records in the order of their keys, each key once: its last record.
fn entries<R: Stored>(batch: &[R]) -> Vec<Entry> {
    let mut owners: Vec<&R::Owner> = Vec::new();
    let mut places: HashMap<&R::Owner, u32> = HashMap::new();
    let seen: Vec<u32> = batch
        .iter()
        .map(|record| {
            *places.entry(record.owner()).or_insert_with(|| {
                owners.push(record.owner());
                // A batch has at most 1,000,000 records.
                u32::try_from(owners.len() - 1).unwrap_or(u32::MAX)
            })
        })
        .collect();
    let mut order: Vec<usize> = (0..owners.len()).collect();
    order.sort_unstable_by_key(|at| owners[*at]);
    let mut ranks = vec![0_u32; owners.len()];
    for (rank, at) in order.into_iter().enumerate() {
        ranks[at] = u32::try_from(rank).unwrap_or(u32::MAX);
    }
    let mut entries: Vec<Entry> = batch
        .iter()
        .zip(seen)
        .enumerate()
        .map(|(at, (record, place))| Entry {
            rank: ranks[place as usize],
            tail: record.tail(),
            at: u32::try_from(at).unwrap_or(u32::MAX),
        })
        .collect();
    entries.sort_unstable();
    // `dedup_by` keeps the first of equal ones: hand the later place to it.
    entries.dedup_by(|later, kept| {
        let same = (later.rank, later.tail) == (kept.rank, kept.tail);
        if same {
            kept.at = later.at;
        }
        same
    });
    entries
}
