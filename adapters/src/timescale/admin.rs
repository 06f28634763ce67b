//! Administration: what is there, and its removal. Chunks, and their conversion.

use std::fmt::Write as _;

use qi_core::store::{Anchor, Dataset, DeleteQuery, InstrumentQuery, InstrumentSummary, Order, Page, Paged};
use qi_core::{Instrument, Operation, Result, Scope, Selection, TimeRange, Timestamp};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use super::connect::PooledConnection;
use super::error::{Cause, DUPLICATE_OBJECT, has_state};
use super::policy;
use super::read::Keys;
use super::store::TimescaleStore;
use super::table::table_of;
use super::types::Pg;

/// How many chunks one statement deletes from, and how many are dropped at once.
const AT_ONCE: i64 = 50;

/// One chunk of a hypertable.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChunkInfo {
    /// The table of the chunk, with its schema.
    pub name: String,
    /// The times that it covers; a part before or behind what a [`Timestamp`] can be is cut off.
    pub range: TimeRange,
    /// Whether it is in the columnstore.
    pub compressed: bool,
    /// Its size on disk with indexes, in bytes.
    pub bytes: u64,
}

impl TimescaleStore {
    /// The chunks of a dataset, oldest first. A store with `hypertables = "off"` has none.
    ///
    /// # Errors
    /// `SchemaMismatch` without a schema, and what a read may fail with.
    pub async fn chunks(&self, dataset: Dataset) -> Result<Vec<ChunkInfo>> {
        const CALL: Operation = Operation::Instruments;
        let named = |error: qi_core::Error| error.with_operation("chunks");
        self.enter(CALL).map_err(named)?;
        self.run(CALL, async |lease| self.chunk_list(lease, dataset).await).await.map_err(named)
    }

    async fn chunk_list(&self, lease: &mut PgConnection, dataset: Dataset) -> Result<Vec<ChunkInfo>, Cause> {
        if !self.inner.cache.chunks.are_hypertables() {
            return Ok(Vec::new());
        }
        let table = table_of(dataset);
        let relation = format!("\"{}\".{}", self.inner.config.schema, table.name);
        // An unknown table is an error here and not an empty list.
        sqlx::query("SELECT $1::regclass").bind(&relation).execute(&mut *lease).await?;
        let rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT quote_ident(c.chunk_schema) || '.' || quote_ident(c.chunk_name), \
             (extract(epoch FROM c.range_start) * 1000000)::bigint, \
             (extract(epoch FROM c.range_end) * 1000000)::bigint, c.is_compressed, s.total_bytes::bigint \
             FROM timescaledb_information.chunks c \
             LEFT JOIN {}.chunks_detailed_size($1::regclass) s \
             ON s.chunk_schema = c.chunk_schema AND s.chunk_name = c.chunk_name \
             WHERE c.hypertable_schema = $2 AND c.hypertable_name = $3 ORDER BY c.range_start",
            policy::extension(lease).await?
        )))
        .bind(&relation)
        .bind(&self.inner.config.schema)
        .bind(table.name)
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
                // A chunk that was dropped meanwhile has no size.
                bytes: row.try_get::<Option<i64>, _>(4)?.unwrap_or(0).cast_unsigned(),
            })
        };
        rows.iter().map(read).collect()
    }

    /// Converts every chunk of a dataset to the columnstore that is not in it yet, and gives how many it
    /// converted. Reads and writes go on as before; converted chunks are many times smaller. Each chunk may take as
    /// long as heavy work may. A chunk that is busy is left, and is the error after the others are done: call again.
    /// `close` ends a conversion: converted chunks stay converted.
    ///
    /// # Errors
    /// `Unsupported` on an edition without columnstore, `Closed` after `close`.
    pub async fn convert_to_columnstore(&self, dataset: Dataset) -> Result<usize> {
        self.inner
            .connections
            .until_closed(self.convert(dataset))
            .await
            .map_err(|cause| cause.at(Operation::PurgeBefore).with_operation("convert_to_columnstore"))
    }

    async fn convert(&self, dataset: Dataset) -> Result<usize, Cause> {
        // A connection of its own: the statement runs in no transaction, so its limit is the session's.
        let mut connection = self.inner.connections.direct().await?;
        self.inner.connections.allow_heavy_session(&mut connection).await?;
        policy::community(&mut connection, "columnstore").await?;
        let extension = policy::extension(&mut connection).await?;
        policy::enable_columnstore(&mut connection, &self.inner.config, table_of(dataset)).await?;
        let (mut converted, mut busy) = (0, None);
        for chunk in self.chunk_list(&mut connection, dataset).await? {
            // A chunk that got new rows since is converted again: `CALL` takes only those rows then.
            let name = chunk.name.replace('\'', "''");
            let sql = format!(
                "CALL {extension}.convert_to_columnstore('{name}'::regclass, if_not_columnstore => true)"
            );
            match sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await {
                Ok(_) => converted += usize::from(!chunk.compressed),
                // Another process converted it in the meantime.
                Err(error) if has_state(&error, DUPLICATE_OBJECT) => {}
                Err(error) if error.as_database_error().is_some() => busy = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        let _ = connection.close().await;
        busy.map_or(Ok(converted), |error| Err(error.into()))
    }

    pub(super) async fn instrument_page(
        &self,
        lease: &mut PooledConnection,
        query: &InstrumentQuery,
    ) -> Result<Page<InstrumentSummary>, Cause> {
        let mut after = match query.anchor()? {
            Anchor::Instrument(instrument) => Some(instrument),
            _ => None,
        };
        let most = query.page.limit() + 1;
        let mut found = Vec::new();
        while found.len() < most {
            let asked = most - found.len();
            let limit = i64::try_from(asked).unwrap_or(i64::MAX);
            let names =
                self.inner.cache.ids.list(lease, after.as_ref(), query.exchange.as_ref(), limit).await?;
            let keys = Keys::Ids(names.iter().map(|(_, id)| *id).collect());
            let edges = self.edges(lease, query.dataset.into(), &keys).await?;
            let last = names.len() < asked;
            after = names.last().map(|(name, _)| name.clone());
            for (place, (instrument, _)) in names.into_iter().enumerate() {
                if let Some((first, last)) = edges.get(&place).copied() {
                    found.push(InstrumentSummary { instrument, first, last });
                }
            }
            if last {
                break;
            }
        }
        Ok(query.page_of(found)?)
    }

    pub(super) async fn delete(
        &self,
        lease: &mut PooledConnection,
        query: &DeleteQuery,
    ) -> Result<(), Cause> {
        let (dataset, range, interval) = match query {
            DeleteQuery::Ticks(_, range) => (Dataset::Ticks, *range, None),
            DeleteQuery::Quotes(_, range) => (Dataset::Quotes, *range, None),
            DeleteQuery::Bars(interval, _, range) => (Dataset::Bars, *range, Some(*interval)),
            DeleteQuery::Snapshots(_, range) => (Dataset::Snapshots, *range, None),
            _ => {
                let rule = "a kind of deletion that this version does not know".to_owned();
                return Err(Cause::Edition { rule });
            }
        };
        let keys = match query {
            DeleteQuery::Ticks(selection, _)
            | DeleteQuery::Quotes(selection, _)
            | DeleteQuery::Bars(_, selection, _) => self.selected(lease, selection).await?,
            DeleteQuery::Snapshots(Selection::These(scopes), _) => {
                Some(Keys::Scopes(scopes.iter().map(Scope::storage_text).collect()))
            }
            _ => None,
        };
        let table = table_of(dataset);
        let mut sql = format!("DELETE FROM {} WHERE {1} >= $1 AND {1} < $2", table.name, table.time());
        if keys.is_some() {
            let _ = write!(sql, " AND {} = ANY($3)", table.series[0].name);
        }
        if let Some(interval) = interval {
            // One of a fixed list of words.
            let _ = write!(sql, " AND \"interval\" = '{interval}'");
        }
        self.delete_parts(lease, dataset, range, &sql, keys.as_ref()).await
    }

    /// The ids of a selection; None for all.
    async fn selected(
        &self,
        lease: &mut PooledConnection,
        selection: &Selection<Instrument>,
    ) -> Result<Option<Keys>, Cause> {
        let Selection::These(instruments) = selection else { return Ok(None) };
        let met = self.inner.cache.ids.find_all(lease, instruments).await?;
        Ok(Some(Keys::Ids(met.into_iter().map(|(_, id)| id).collect())))
    }

    /// Runs a deletion over a range, a few chunks at a time, each in a transaction of its own: repeating it is
    /// always safe.
    async fn delete_parts(
        &self,
        lease: &mut PooledConnection,
        dataset: Dataset,
        range: TimeRange,
        sql: &str,
        keys: Option<&Keys>,
    ) -> Result<(), Cause> {
        let chunks = &self.inner.cache.chunks;
        let mut rest = range;
        loop {
            let part = chunks.part(lease, dataset, rest, Order::Ascending, AT_ONCE).await?;
            let mut transaction = lease.begin().await?;
            self.inner.connections.allow_heavy(&mut transaction).await?;
            let query =
                sqlx::query(AssertSqlSafe(sql.to_owned())).bind(Pg(part.start())).bind(Pg(part.end()));
            let query = match keys {
                None => query,
                Some(Keys::Ids(ids)) => query.bind(ids.clone()),
                Some(Keys::Scopes(scopes)) => query.bind(scopes.clone()),
            };
            query.execute(&mut *transaction).await?;
            transaction.commit().await?;
            chunks.forget(dataset);
            if part == rest {
                return Ok(());
            }
            rest = TimeRange::new(part.end(), rest.end())?;
        }
    }

    /// Drops the chunks that lie before the cutoff, and deletes what the last one holds before it.
    pub(super) async fn purge(
        &self,
        lease: &mut PooledConnection,
        dataset: Dataset,
        cutoff: Timestamp,
    ) -> Result<(), Cause> {
        let (table, chunks) = (table_of(dataset), &self.inner.cache.chunks);
        if chunks.are_hypertables() {
            let relation = format!("\"{}\".{}", self.inner.config.schema, table.name);
            sqlx::query("SELECT $1::regclass").bind(&relation).execute(&mut **lease).await?;
            let extension = policy::extension(lease).await?;
            let mut rest = TimeRange::before(cutoff);
            loop {
                // Few at a time, oldest first: dropping takes locks too.
                let part = chunks.part(lease, dataset, rest, Order::Ascending, AT_ONCE).await?;
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
                chunks.forget(dataset);
                if part == rest {
                    break;
                }
                rest = TimeRange::new(part.end(), rest.end())?;
            }
        }
        let sql = format!("DELETE FROM {} WHERE {1} >= $1 AND {1} < $2", table.name, table.time());
        self.delete_parts(lease, dataset, TimeRange::before(cutoff), &sql, None).await
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use qi_core::{ErrorKind, PriceStore as _};

    use super::*;
    use crate::timescale::TimescaleConfig;

    /// The end of a test that would wait for the server.
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
        let converting = store.convert_to_columnstore(Dataset::Ticks);
        let error =
            tokio::time::timeout(LIMIT, converting).await.expect("no connection is made").unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Closed, "convert_to_columnstore"));
        assert_eq!(store.ensure_schema().await.unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(store.chunks(Dataset::Ticks).await.unwrap_err().kind(), ErrorKind::Closed);
        server.set_nonblocking(true).unwrap();
        assert_eq!(server.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }

    #[tokio::test]
    async fn close_ends_a_conversion() {
        let (store, server) = silent();
        let converting = tokio::spawn({
            let store = store.clone();
            async move { store.convert_to_columnstore(Dataset::Ticks).await }
        });
        let _connection = tokio::task::spawn_blocking(move || server.accept().unwrap()).await.unwrap();
        store.close().await.unwrap();
        let ended = tokio::time::timeout(LIMIT, converting).await.expect("close ends the conversion");
        assert_eq!(ended.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    }
}
