//! Administration: deletions and purges, and the list and the conversion of chunks.

use std::fmt::Write as _;

use qi_core::record::Dataset;
use qi_core::store::{DeleteQuery, Order};
use qi_core::{Operation, Result, TimeRange, Timestamp};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};

use super::connect::{PgConnection, PooledConnection};
use super::error::{Cause, DUPLICATE_OBJECT, has_state};
use super::marks::{MarkedSql, marked, with_markers};
use super::read::OwnerKeys;
use super::sql::RegisteredDataset;
use super::store::TimescaleStore;
use super::types::Pg;
use super::{materialized, policy, schema};

/// The maximum number of chunks in one deletion, and in one drop of chunks.
const MAX_CHUNKS_PER_STATEMENT: i64 = 50;

/// One chunk of a hypertable.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChunkInfo {
    /// The table of the chunk, with its schema.
    pub name: String,
    /// The time range of the chunk, limited to the range of a [`Timestamp`].
    pub range: TimeRange,
    /// True if the chunk is in the columnstore.
    pub compressed: bool,
    /// The size on disk, including indexes, in bytes.
    pub bytes: u64,
}

impl TimescaleStore {
    /// Returns the chunks of a dataset, oldest first. Returns no chunks with `hypertables = "off"`.
    ///
    /// # Errors
    /// `SchemaMismatch` if the schema does not exist, and the errors of a read.
    pub async fn chunks(&self, dataset: Dataset) -> Result<Vec<ChunkInfo>> {
        const OPERATION: Operation = Operation::Series;
        let with_name = |error: qi_core::Error| error.with_operation("chunks");
        let registered = self.registered(OPERATION, dataset).map_err(with_name)?;
        self.run(OPERATION, async |connection| self.chunk_list(connection, registered).await)
            .await
            .map_err(with_name)
    }

    async fn chunk_list(
        &self,
        connection: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
    ) -> Result<Vec<ChunkInfo>, Cause> {
        if !self.inner.cache.chunks.are_hypertables() {
            return Ok(Vec::new());
        }
        let relation = registered.table.relation();
        // An unknown table must be an error here, not an empty list.
        sqlx::query("SELECT $1::regclass").bind(relation).execute(&mut *connection).await?;
        let rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT quote_ident(c.chunk_schema) || '.' || quote_ident(c.chunk_name), \
             (extract(epoch FROM c.range_start) * 1000000)::bigint, \
             (extract(epoch FROM c.range_end) * 1000000)::bigint, c.is_compressed, s.total_bytes::bigint \
             FROM timescaledb_information.chunks c \
             LEFT JOIN {}.chunks_detailed_size($1::regclass) s \
             ON s.chunk_schema = c.chunk_schema AND s.chunk_name = c.chunk_name \
             WHERE c.hypertable_schema = $2 AND c.hypertable_name = $3 ORDER BY c.range_start",
            policy::installed(connection).await?
        )))
        .bind(relation)
        .bind(&self.inner.config.schema)
        .bind(registered.table.name())
        .fetch_all(&mut *connection)
        .await?;
        let clamp = |micros: i64| {
            let micros = micros.clamp(Timestamp::MIN.as_micros(), Timestamp::MAX.as_micros());
            Timestamp::from_micros(micros).unwrap_or(Timestamp::MIN)
        };
        let read = |row: &PgRow| -> Result<ChunkInfo, Cause> {
            Ok(ChunkInfo {
                name: row.try_get(0)?,
                range: TimeRange::new(clamp(row.try_get(1)?), clamp(row.try_get(2)?))?,
                compressed: row.try_get(3)?,
                // A chunk that was dropped in the meantime has no size.
                bytes: row.try_get::<Option<i64>, _>(4)?.unwrap_or(0).cast_unsigned(),
            })
        };
        rows.iter().map(read).collect()
    }

    /// Converts all chunks of a dataset that are not yet in the columnstore. Returns the number of converted chunks.
    ///
    /// Reads and writes continue as before. Converted chunks are many times smaller. The conversion of each chunk may
    /// take up to `server_limits.bulk_timeout`. A busy chunk is skipped, and its error is returned after all other
    /// chunks; a second call converts the skipped chunks. `close` cancels a conversion, but converted chunks stay
    /// converted.
    ///
    /// # Errors
    /// `Unsupported` on an edition without columnstore, `Closed` after `close`, and the error of a busy chunk.
    pub async fn convert_to_columnstore(&self, dataset: Dataset) -> Result<usize> {
        const OPERATION: Operation = Operation::PurgeBefore;
        let with_name = |error: qi_core::Error| error.with_operation("convert_to_columnstore");
        let registered = self.registered(OPERATION, dataset).map_err(with_name)?;
        let outcome = self.inner.connections.until_closed(self.convert(registered)).await;
        outcome.map_err(|cause| with_name(cause.into_error(OPERATION)))
    }

    async fn convert(&self, registered: &RegisteredDataset) -> Result<usize, Cause> {
        // A separate connection, because the statement runs outside a transaction and its limit applies to the session.
        let mut connection = self.inner.connections.connect_unpooled().await?;
        self.inner.connections.set_session_bulk_timeout(&mut connection).await?;
        policy::community(&mut connection, "columnstore").await?;
        let extension = policy::installed(&mut connection).await?;
        let enable =
            policy::enable_columnstore(&mut connection, &self.inner.config, &registered.table).await?;
        if let Some(sql) = enable {
            schema::change_table(&mut connection, &self.inner.config, &sql).await?;
        }
        let (mut converted, mut busy) = (0, None);
        for chunk in self.chunk_list(&mut connection, registered).await? {
            // A converted chunk with new rows is converted again. `CALL` then processes only the new rows.
            let name = chunk.name.replace('\'', "''");
            let sql = format!(
                "CALL {extension}.convert_to_columnstore('{name}'::regclass, if_not_columnstore => true)"
            );
            match connection.run_outside_transaction(&sql, false).await {
                Ok(()) => converted += usize::from(!chunk.compressed),
                // Another process converted the chunk in the meantime.
                Err(error) if has_state(&error, DUPLICATE_OBJECT) => {}
                Err(error) if error.as_database_error().is_some() => busy = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        connection.close().await;
        self.inner.cache.chunks.invalidate(registered);
        busy.map_or(Ok(converted), |error| Err(error.into()))
    }

    pub(super) async fn delete(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        query: &DeleteQuery,
    ) -> Result<(), Cause> {
        let keys = self.selected_keys(connection, registered, &query.selection).await?;
        let mut sql = registered.sql.delete.clone();
        if keys.is_some() {
            let _ = write!(sql, " AND \"{}\" = ANY($3)", registered.table.series()[0].name);
        }
        if let Some((column, interval)) = query.dataset.interval().zip(query.interval) {
            // The interval comes from a fixed list of texts.
            let _ = write!(sql, " AND \"{column}\" = '{interval}'");
        }
        self.delete_parts(connection, registered, query.range, (sql.as_str(), keys.as_ref()), false).await
    }

    /// Returns the statements that add stale marks, if a change of this dataset can make materialized bars stale.
    pub(super) fn marked_sql<'r>(&self, registered: &'r RegisteredDataset) -> Option<&'r MarkedSql> {
        registered.marked.as_ref().filter(|_| self.inner.cache.has_materialized_bars())
    }

    /// Runs a deletion over a range, a few chunks at a time. Each part is a separate transaction. Repeating a
    /// deletion is always safe. A purge removes all records before its end, so one mark in each part is sufficient.
    async fn delete_parts(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        range: TimeRange,
        (sql, keys): (&str, Option<&OwnerKeys>),
        is_purge: bool,
    ) -> Result<(), Cause> {
        let chunks = &self.inner.cache.chunks;
        let marks = self.marked_sql(registered);
        let sql = match marks {
            Some(_) if is_purge => with_markers(sql),
            Some(_) => marked(sql, &self.inner.config.schema),
            None => sql.to_owned(),
        };
        let mut rest = range;
        loop {
            let part =
                chunks.part(connection, registered, rest, Order::Ascending, MAX_CHUNKS_PER_STATEMENT).await?;
            let mut transaction = connection.begin().await?;
            self.inner.connections.set_transaction_bulk_timeout(&mut transaction).await?;
            if let Some(marks) = marks.filter(|_| is_purge) {
                marks.mark_before(&mut transaction, part.end()).await?;
            }
            let query = sqlx::query(AssertSqlSafe(sql.clone())).bind(Pg(part.start())).bind(Pg(part.end()));
            let query = match keys {
                None => query,
                Some(keys) => keys.bind(query),
            };
            query.execute(&mut *transaction).await?;
            transaction.commit().await?;
            chunks.invalidate(registered);
            if part == rest {
                return Ok(());
            }
            rest = TimeRange::new(part.end(), rest.end())?;
        }
    }

    /// Drops the chunks that lie entirely before the cutoff. Then deletes the remaining rows before the cutoff.
    pub(super) async fn purge(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        cutoff: Timestamp,
    ) -> Result<(), Cause> {
        let chunks = &self.inner.cache.chunks;
        if chunks.are_hypertables() {
            let relation = registered.table.relation();
            sqlx::query("SELECT $1::regclass").bind(relation).execute(&mut **connection).await?;
            let extension = policy::installed(connection).await?;
            let mut rest = TimeRange::before(cutoff);
            loop {
                // A few chunks at a time, oldest first, because dropping chunks also takes locks.
                let part = chunks
                    .part(connection, registered, rest, Order::Ascending, MAX_CHUNKS_PER_STATEMENT)
                    .await?;
                let mut transaction = connection.begin().await?;
                self.inner.connections.set_transaction_bulk_timeout(&mut transaction).await?;
                if let Some(marked) = &registered.marked {
                    // Materialized bars are not switched on or off while the transaction holds this lock. The cached
                    // state is older, and no trigger sees `drop_chunks`.
                    let lock = AssertSqlSafe(format!("LOCK TABLE ONLY {relation} IN ROW EXCLUSIVE MODE"));
                    sqlx::raw_sql(lock).execute(&mut *transaction).await?;
                    if materialized::exist(&mut transaction, &self.inner.config).await? {
                        marked.mark_before(&mut transaction, part.end()).await?;
                    }
                }
                let sql =
                    format!("SELECT {extension}.drop_chunks($1::regclass, older_than => $2::timestamptz)");
                sqlx::query(AssertSqlSafe(sql))
                    .bind(relation)
                    .bind(Pg(part.end()))
                    .execute(&mut *transaction)
                    .await?;
                transaction.commit().await?;
                chunks.invalidate(registered);
                if part == rest {
                    break;
                }
                rest = TimeRange::new(part.end(), rest.end())?;
            }
        }
        let delete = (registered.sql.delete.as_str(), None);
        self.delete_parts(connection, registered, TimeRange::before(cutoff), delete, true).await
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use qi_core::{ErrorKind, PriceStore as _, PriceTick};

    use super::*;
    use crate::timescale::TimescaleConfig;

    /// The time limit of a test that would otherwise wait for the server.
    const TEST_TIMEOUT: Duration = Duration::from_secs(20);

    /// A store whose server accepts connections and never answers.
    fn silent_server() -> (TimescaleStore, TcpListener) {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("postgres://qi:qi@{}/qi", server.local_addr().unwrap());
        (TimescaleStore::open(TimescaleConfig::from_url(url)).unwrap(), server)
    }

    #[tokio::test]
    async fn no_call_connects_after_close() {
        let (store, server) = silent_server();
        store.close().await.unwrap();
        let converting = store.convert_to_columnstore(PriceTick::DATASET);
        let error =
            tokio::time::timeout(TEST_TIMEOUT, converting).await.expect("the call timed out").unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Closed, "convert_to_columnstore"));
        assert_eq!(store.ensure_schema().await.unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(store.chunks(PriceTick::DATASET).await.unwrap_err().kind(), ErrorKind::Closed);
        server.set_nonblocking(true).unwrap();
        assert_eq!(server.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }

    #[tokio::test]
    async fn close_cancels_a_conversion() {
        let (store, server) = silent_server();
        let converting = tokio::spawn({
            let store = store.clone();
            async move { store.convert_to_columnstore(PriceTick::DATASET).await }
        });
        let _connection = tokio::task::spawn_blocking(move || server.accept().unwrap()).await.unwrap();
        store.close().await.unwrap();
        let ended = tokio::time::timeout(TEST_TIMEOUT, converting).await.expect("the conversion timed out");
        assert_eq!(ended.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    }
}
