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
use super::table::{Table, write_record};
use super::wire::Writer;

/// The size of the buffer after which its rows are sent, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;

/// The maximum time to find out why the server cut off a request.
const REJECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// The maximum number of attempts of one request while the server's version changes.
const MAX_ATTEMPTS: usize = 3;

/// The error code of a server that does not know a setting.
const UNKNOWN_SETTING: u16 = 115;

/// The error code of a server whose columns have other types.
const INCORRECT_DATA: u16 = 117;

impl ClickHouseStore {
    pub(super) async fn insert_records(&self, batch: &dyn Records) -> qi_core::Result<InsertReport> {
        let operation = Operation::Insert;
        self.check_open(operation)?;
        let table = self.table_of(batch.dataset(), operation)?;
        self.current_info().check_batch(batch.len()).map_err(|e| Cause::Core(e).into_error(operation))?;
        if batch.is_empty() {
            return Ok(InsertReport::default());
        }
        self.with_permit(operation, async { self.insert_all(table, batch).await }).await
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
            self.send(table, &InsertRequest { batch: Some(batch), series: &series, entries: piece }).await?;
        }
        Ok(report)
    }

    /// Sends one request. If the future is dropped early, the request is aborted and the server discards its rows.
    async fn send(&self, table: &Table, request: &InsertRequest<'_>) -> Result<(), Cause> {
        let connections = &self.inner.connections;
        let mut supports_deduplicate = connections.supports_deduplicate().await?;
        for _ in 0..MAX_ATTEMPTS {
            let mut result = self.send_once(table, request, supports_deduplicate).await;
            // A server that rejects a request need not read all of it. It may respond and close the connection, and the
            // client then sees only a connection that broke during the send.
            let connection_lost = result.as_ref().is_err_and(Cause::is_network);
            if connection_lost && let Some(rejection) = self.rejection(table, supports_deduplicate).await {
                result = Err(rejection);
            }
            match result {
                Err(cause) if cause.has_code(INCORRECT_DATA) && self.refresh_wider_types(table).await => {}
                Err(cause) if connection_lost || !cause.has_code(UNKNOWN_SETTING) => return Err(cause),
                // The request may have reached a server of another version than the earlier query did.
                result => {
                    if result.is_err() {
                        connections.forget_deduplicate_support().await;
                    }
                    match connections.supports_deduplicate().await? {
                        now if now == supports_deduplicate => return result,
                        now => supports_deduplicate = now,
                    }
                }
            }
        }
        Err(Cause::ConcurrentChange)
    }

    /// Returns whether an enumeration gained names in the database since the last check.
    async fn refresh_wider_types(&self, table: &Table) -> bool {
        let Inner { connections, config, .. } = &*self.inner;
        let found = schema::stored_columns(
            &connections.read_client,
            config,
            std::slice::from_ref(&table.unquoted_name),
        )
        .await;
        found.is_ok_and(|found| table.update_wider_types(&found))
    }

    /// Returns the reason why the server rejects inserts, if it does. Sends an insert without rows, because its
    /// response is always read to the end.
    async fn rejection(&self, table: &Table, supports_deduplicate: bool) -> Option<Cause> {
        let empty = InsertRequest::default();
        let response =
            tokio::time::timeout(REJECTION_TIMEOUT, self.send_once(table, &empty, supports_deduplicate))
                .await
                .ok()?;
        response.err().filter(Cause::is_server_error)
    }

    async fn send_once(
        &self,
        table: &Table,
        request: &InsertRequest<'_>,
        supports_deduplicate: bool,
    ) -> Result<(), Cause> {
        let mut insert = self
            .inner
            .connections
            .insert_client(supports_deduplicate)
            .insert_formatted_with(&table.insert_sql);
        let mut out = Writer(Vec::with_capacity(BUFFER_BYTES + 1024));
        table.write_header(&mut out);
        for entry in request.entries {
            let Some(batch) = request.batch else { break };
            // The rank of a series is its index in `request.series`.
            out.0.extend_from_slice(&request.series[usize::try_from(entry.series).unwrap_or(usize::MAX)]);
            write_record(table, batch, entry.at as usize, entry.sort_key, &mut out);
            if out.0.len() >= BUFFER_BYTES {
                let full = std::mem::replace(&mut out.0, Vec::with_capacity(BUFFER_BYTES + 1024));
                insert.send(Bytes::from(full)).await?;
            }
        }
        insert.send(Bytes::from(out.0)).await?;
        Ok(insert.end().await?)
    }
}

/// The records of one request.
#[derive(Default)]
struct InsertRequest<'a> {
    batch: Option<&'a dyn Records>,
    series: &'a [Vec<u8>],
    entries: &'a [Entry],
}
