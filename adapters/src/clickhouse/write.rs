//! Inserts: rows in key order, each key once, in requests of bounded size.

use std::time::Duration;

use bytes::Bytes;
use qi_core::Operation;
use qi_core::record::{Records, SeriesKey};
use qi_core::store::InsertReport;
use qi_core::store::kit::{Entry, SeriesRanks, entries};

use super::error::Cause;
use super::schema;
use super::store::{ClickHouseStore, Inner};
use super::table::{Table, write_rest};
use super::wire::Writer;

/// The size of the buffer after which its rows are sent, in bytes.
const SEND: usize = 256 * 1024;

/// The maximum time to find out why the server cut off a request.
const REFUSAL: Duration = Duration::from_secs(5);

/// The maximum number of attempts to send a piece while the server's version changes.
const TRIES: usize = 3;

/// The error code of a server that does not know a setting.
const UNKNOWN_SETTING: u16 = 115;

/// The error code of a server whose columns have other types.
const OTHER_TYPE: u16 = 117;

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
        let SeriesRanks { series, ranks } = SeriesRanks::of(batch);
        let entries = entries(batch, &ranks, |_| 0);
        let report = InsertReport::new(batch.len(), batch.len() - entries.len());
        let encoded = |key: &SeriesKey| {
            let mut out = Writer::default();
            Table::write_series(&mut out, &key.owner.as_ref(), key.interval);
            out.0
        };
        let series: Vec<Vec<u8>> = series.iter().map(encoded).collect();
        for piece in entries.chunks(self.inner.config.write.piece) {
            self.send(table, &Piece { batch: Some(batch), series: &series, entries: piece }).await?;
        }
        Ok(report)
    }

    /// Sends one request. If the future is dropped early, the request is aborted and the server discards its rows.
    async fn send(&self, table: &Table, piece: &Piece<'_>) -> Result<(), Cause> {
        let connections = &self.inner.connections;
        let mut deduplicates = connections.deduplicates().await?;
        for _ in 0..TRIES {
            let mut result = self.request(table, piece, deduplicates).await;
            // A server that rejects a request need not read all of it. It may respond and close the connection, and the
            // client then sees only a connection that broke during the send.
            let broke = result.as_ref().is_err_and(Cause::is_network);
            if broke && let Some(refusal) = self.refusal(table, deduplicates).await {
                result = Err(refusal);
            }
            match result {
                Err(cause) if cause.has_code(OTHER_TYPE) && self.is_wider(table).await => {}
                Err(cause) if broke || !cause.has_code(UNKNOWN_SETTING) => return Err(cause),
                // The request may have reached a server of another version than the earlier query did.
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

    /// Returns whether an enumeration gained names in the database since the last check.
    async fn is_wider(&self, table: &Table) -> bool {
        let Inner { connections, config, .. } = &*self.inner;
        let found = schema::found(&connections.plain, config, std::slice::from_ref(&table.raw)).await;
        found.is_ok_and(|found| table.learn(&found))
    }

    /// Returns the reason why the server rejects inserts, if it does. Sends an insert without rows, because its
    /// response is always read to the end.
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
            // The rank of a series is its index in `piece.series`.
            out.0.extend_from_slice(&piece.series[usize::try_from(entry.series).unwrap_or(usize::MAX)]);
            write_rest(table, batch, entry.at as usize, entry.sort_key, &mut out);
            if out.0.len() >= SEND {
                let full = std::mem::replace(&mut out.0, Vec::with_capacity(SEND + 1024));
                insert.send(Bytes::from(full)).await?;
            }
        }
        insert.send(Bytes::from(out.0)).await?;
        Ok(insert.end().await?)
    }
}

/// The records of one request.
#[derive(Default)]
struct Piece<'a> {
    batch: Option<&'a dyn Records>,
    series: &'a [Vec<u8>],
    entries: &'a [Entry],
}
