//! Administration: deletions and purges, and the list and the conversion of chunks.

use std::fmt::Write as _;

use qi_core::record::Dataset;
use qi_core::store::{DeleteQuery, Order};
use qi_core::{Operation, Result, TimeRange, Timestamp};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use super::connect::PooledConnection;
use super::error::{Cause, DUPLICATE_OBJECT, has_state};
use super::policy;
use super::read::Keys;
use super::sql::Stored;
use super::store::TimescaleStore;
use super::types::Pg;

/// The maximum number of chunks in one deletion, and in one drop of chunks.
const AT_ONCE: i64 = 50;

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
        const CALL: Operation = Operation::Series;
        let named = |error: qi_core::Error| error.with_operation("chunks");
        let stored = self.stored(CALL, dataset).map_err(named)?;
        self.run(CALL, async |lease| self.chunk_list(lease, stored).await).await.map_err(named)
    }

    async fn chunk_list(&self, lease: &mut PgConnection, stored: &Stored) -> Result<Vec<ChunkInfo>, Cause> {
        if !self.inner.cache.chunks.are_hypertables() {
            return Ok(Vec::new());
        }
        let relation = self.inner.config.relation(stored.table.name());
        // An unknown table must be an error here, not an empty list.
        sqlx::query("SELECT $1::regclass").bind(&relation).execute(&mut *lease).await?;
        let rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT quote_ident(c.chunk_schema) || '.' || quote_ident(c.chunk_name), \
             (extract(epoch FROM c.range_start) * 1000000)::bigint, \
             (extract(epoch FROM c.range_end) * 1000000)::bigint, c.is_compressed, s.total_bytes::bigint \
             FROM timescaledb_information.chunks c \
             LEFT JOIN {}.chunks_detailed_size($1::regclass) s \
             ON s.chunk_schema = c.chunk_schema AND s.chunk_name = c.chunk_name \
             WHERE c.hypertable_schema = $2 AND c.hypertable_name = $3 ORDER BY c.range_start",
            policy::installed(lease).await?
        )))
        .bind(&relation)
        .bind(&self.inner.config.schema)
        .bind(stored.table.name())
        .fetch_all(&mut *lease)
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
        const CALL: Operation = Operation::PurgeBefore;
        let named = |error: qi_core::Error| error.with_operation("convert_to_columnstore");
        let stored = self.stored(CALL, dataset).map_err(named)?;
        let outcome = self.inner.connections.until_closed(self.convert(stored)).await;
        outcome.map_err(|cause| named(cause.at(CALL)))
    }

    async fn convert(&self, stored: &Stored) -> Result<usize, Cause> {
        // A separate connection, because the statement runs outside a transaction and its limit applies to the session.
        let mut connection = self.inner.connections.direct().await?;
        self.inner.connections.allow_heavy_session(&mut connection).await?;
        policy::community(&mut connection, "columnstore").await?;
        let extension = policy::installed(&mut connection).await?;
        let enable = policy::enable_columnstore(&mut connection, &self.inner.config, &stored.table).await?;
        if let Some(sql) = enable {
            sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await?;
        }
        let (mut converted, mut busy) = (0, None);
        for chunk in self.chunk_list(&mut connection, stored).await? {
            // A converted chunk with new rows is converted again. `CALL` then processes only the new rows.
            let name = chunk.name.replace('\'', "''");
            let sql = format!(
                "CALL {extension}.convert_to_columnstore('{name}'::regclass, if_not_columnstore => true)"
            );
            match sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await {
                Ok(_) => converted += usize::from(!chunk.compressed),
                // Another process converted the chunk in the meantime.
                Err(error) if has_state(&error, DUPLICATE_OBJECT) => {}
                Err(error) if error.as_database_error().is_some() => busy = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        let _ = connection.close().await;
        self.inner.cache.chunks.forget(stored);
        busy.map_or(Ok(converted), |error| Err(error.into()))
    }

    pub(super) async fn delete(
        &self,
        lease: &mut PooledConnection,
        stored: &Stored,
        query: &DeleteQuery,
    ) -> Result<(), Cause> {
        let keys = self.selected(lease, stored, &query.selection).await?;
        let mut sql = stored.sql.delete.clone();
        if keys.is_some() {
            let _ = write!(sql, " AND \"{}\" = ANY($3)", stored.table.series()[0].name);
        }
        if let Some((column, interval)) = query.dataset.interval().zip(query.interval) {
            // The interval comes from a fixed list of texts.
            let _ = write!(sql, " AND \"{column}\" = '{interval}'");
        }
        self.delete_parts(lease, stored, query.range, &sql, keys.as_ref()).await
    }

    /// Runs a deletion over a range, a few chunks at a time. Each part is a separate transaction. Repeating a
    /// deletion is always safe.
    async fn delete_parts(
        &self,
        lease: &mut PooledConnection,
        stored: &Stored,
        range: TimeRange,
        sql: &str,
        keys: Option<&Keys>,
    ) -> Result<(), Cause> {
        let chunks = &self.inner.cache.chunks;
        let mut rest = range;
        loop {
            let part = chunks.part(lease, stored, rest, Order::Ascending, AT_ONCE).await?;
            let mut transaction = lease.begin().await?;
            self.inner.connections.allow_heavy(&mut transaction).await?;
            let query =
                sqlx::query(AssertSqlSafe(sql.to_owned())).bind(Pg(part.start())).bind(Pg(part.end()));
            let query = match keys {
                None => query,
                Some(keys) => keys.bind(query),
            };
            query.execute(&mut *transaction).await?;
            transaction.commit().await?;
            chunks.forget(stored);
            if part == rest {
                return Ok(());
            }
            rest = TimeRange::new(part.end(), rest.end())?;
        }
    }

    /// Drops the chunks that lie entirely before the cutoff. Then deletes the remaining rows before the cutoff.
    pub(super) async fn purge(
        &self,
        lease: &mut PooledConnection,
        stored: &Stored,
        cutoff: Timestamp,
    ) -> Result<(), Cause> {
        let chunks = &self.inner.cache.chunks;
        if chunks.are_hypertables() {
            let relation = self.inner.config.relation(stored.table.name());
            sqlx::query("SELECT $1::regclass").bind(&relation).execute(&mut **lease).await?;
            let extension = policy::installed(lease).await?;
            let mut rest = TimeRange::before(cutoff);
            loop {
                // A few chunks at a time, oldest first, because dropping chunks also takes locks.
                let part = chunks.part(lease, stored, rest, Order::Ascending, AT_ONCE).await?;
                let mut transaction = lease.begin().await?;
                self.inner.connections.allow_heavy(&mut transaction).await?;
                let sql =
                    format!("SELECT {extension}.drop_chunks($1::regclass, older_than => $2::timestamptz)");
                sqlx::query(AssertSqlSafe(sql))
                    .bind(&relation)
                    .bind(Pg(part.end()))
                    .execute(&mut *transaction)
                    .await?;
                transaction.commit().await?;
                chunks.forget(stored);
                if part == rest {
                    break;
                }
                rest = TimeRange::new(part.end(), rest.end())?;
            }
        }
        self.delete_parts(lease, stored, TimeRange::before(cutoff), &stored.sql.delete, None).await
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
    const LIMIT: Duration = Duration::from_secs(20);

    /// A store whose server accepts connections and never answers.
    fn silent() -> (TimescaleStore, TcpListener) {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("postgres://qi:qi@{}/qi", server.local_addr().unwrap());
        (TimescaleStore::open(TimescaleConfig::from_url(url)).unwrap(), server)
    }

    #[tokio::test]
    async fn nothing_connects_after_close() {
        let (store, server) = silent();
        store.close().await.unwrap();
        let converting = store.convert_to_columnstore(PriceTick::DATASET);
        let error =
            tokio::time::timeout(LIMIT, converting).await.expect("no connection is made").unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Closed, "convert_to_columnstore"));
        assert_eq!(store.ensure_schema().await.unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(store.chunks(PriceTick::DATASET).await.unwrap_err().kind(), ErrorKind::Closed);
        server.set_nonblocking(true).unwrap();
        assert_eq!(server.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }

    #[tokio::test]
    async fn close_ends_a_conversion() {
        let (store, server) = silent();
        let converting = tokio::spawn({
            let store = store.clone();
            async move { store.convert_to_columnstore(PriceTick::DATASET).await }
        });
        let _connection = tokio::task::spawn_blocking(move || server.accept().unwrap()).await.unwrap();
        store.close().await.unwrap();
        let ended = tokio::time::timeout(LIMIT, converting).await.expect("close ends the conversion");
        assert_eq!(ended.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    }
}
