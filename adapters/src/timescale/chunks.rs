//! The division of a range into parts, each for one statement. Every chunk that a statement touches costs locks and
//! planning time. Thousands of chunks exhaust the server's lock table (SQLSTATE 53200).

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use qi_core::store::Order;
use qi_core::{TimeRange, Timestamp};
use sqlx::Row;

use super::config::{Hypertables, TimescaleConfig};
use super::connect::PgConnection;
use super::error::Cause;
use super::sql::RegisteredDataset;

/// The cached knowledge about the chunks of the tables.
#[derive(Debug)]
pub(super) struct Chunks {
    schema: String,
    hypertables: bool,
    /// The chunks of each table, indexed by the position of its dataset.
    tables: Vec<TableChunks>,
}

#[derive(Debug)]
struct TableChunks {
    /// The configured chunk interval, in microseconds.
    interval_micros: i64,
    /// The length of the shortest chunk that exists or will be created, in microseconds. 0 until the first query.
    min_length: AtomicI64,
    /// The start of the newest chunk, and the time of the query.
    newest: Mutex<Option<(i64, Instant)>>,
    /// The end of the newest chunk in the columnstore, and the time of the query.
    converted_until: Mutex<Option<(i64, Instant)>>,
}

/// The number of chunks in the first part of a scan. The following parts grow by the factor `GROWTH` up to
/// `MAX_CHUNKS` chunks.
const INITIAL_CHUNKS: i64 = 50;
const MAX_CHUNKS: i64 = 200;
const GROWTH: i64 = 4;

/// The lifetime of the cached newest chunk. Other writers may add a newer chunk, but reads also cover the time
/// after the cached chunk.
const NEWEST_TTL: Duration = Duration::from_secs(1);

/// The interval at which a writer queries the chunks in the columnstore. The result affects only the speed of a write.
const CONVERTED_TTL: Duration = Duration::from_secs(30);

/// The number of newest chunks that `latest` reads first.
const RECENT_CHUNKS: i64 = 3;

// The catalog of slices is indexed by time; the view timescaledb_information.chunks would read every chunk.
const MIN_LENGTH_SQL: &str = "SELECT least(min(d.interval_length), min(s.range_end - s.range_start)) \
    FROM _timescaledb_catalog.hypertable h \
    JOIN _timescaledb_catalog.dimension d ON d.hypertable_id = h.id \
    LEFT JOIN _timescaledb_catalog.dimension_slice s ON s.dimension_id = d.id \
    WHERE h.schema_name = $1 AND h.table_name = $2";
const OLDEST_SQL: &str = "SELECT count(*), max(range_end) FROM (\
    SELECT s.range_start, s.range_end \
    FROM _timescaledb_catalog.hypertable h \
    JOIN _timescaledb_catalog.dimension d ON d.hypertable_id = h.id \
    JOIN _timescaledb_catalog.dimension_slice s ON s.dimension_id = d.id \
    WHERE h.schema_name = $1 AND h.table_name = $2 AND s.range_end > $3 AND s.range_start < $4 \
    ORDER BY s.range_start LIMIT $5) x";
const NEWEST_SQL: &str = "SELECT count(*), min(range_start) FROM (\
    SELECT s.range_start, s.range_end \
    FROM _timescaledb_catalog.hypertable h \
    JOIN _timescaledb_catalog.dimension d ON d.hypertable_id = h.id \
    JOIN _timescaledb_catalog.dimension_slice s ON s.dimension_id = d.id \
    WHERE h.schema_name = $1 AND h.table_name = $2 AND s.range_end > $3 AND s.range_start < $4 \
    ORDER BY s.range_start DESC LIMIT $5) x";

const OLDEST_START_SQL: &str = "SELECT min(s.range_start) FROM _timescaledb_catalog.hypertable h \
    LEFT JOIN _timescaledb_catalog.dimension d ON d.hypertable_id = h.id \
    LEFT JOIN _timescaledb_catalog.dimension_slice s ON s.dimension_id = d.id \
    WHERE h.schema_name = $1 AND h.table_name = $2 GROUP BY h.id";

// The tables of the catalog are read with the snapshot, and `pg_relation_filenode` reads the current catalog. It is NULL
// for a dropped table, and another file after a TRUNCATE, which ends a conversion. The tables of chunks differ between the
// versions of the extension, so a chunk is found by the name of its constraint, `constraint_<slice>`. The second column is
// true if a slice has no such constraint.
const CHANGED_SQL: &str = "SELECT \
    coalesce(bool_or(p.relfilenode IS DISTINCT FROM pg_relation_filenode(p.oid)), false), \
    coalesce(bool_or(k.conrelid IS NULL), false) FROM _timescaledb_catalog.hypertable h \
    JOIN _timescaledb_catalog.dimension d ON d.hypertable_id = h.id \
    JOIN _timescaledb_catalog.dimension_slice s ON s.dimension_id = d.id \
    JOIN unnest($4::bigint[], $5::bigint[]) AS r(first, until) ON s.range_end > r.first AND s.range_start < r.until \
    LEFT JOIN (pg_constraint k JOIN pg_inherits i ON i.inhrelid = k.conrelid AND i.inhparent = $3::regclass) \
    ON k.conname = ('constraint_' || s.id)::name AND k.contype = 'c' \
    LEFT JOIN _timescaledb_catalog.compression_settings z ON z.relid = k.conrelid \
    LEFT JOIN pg_class p ON p.oid IN (k.conrelid, z.compress_relid) AND p.relkind = 'r' \
    WHERE h.schema_name = $1 AND h.table_name = $2";

// Before version 2.28, `merge_chunks` gives a chunk a new slice and keeps the name of its constraint. The range of such a
// chunk is unknown, so all of them are compared.
const MERGED_CHANGED_SQL: &str = "SELECT EXISTS (SELECT FROM pg_inherits i \
    LEFT JOIN _timescaledb_catalog.compression_settings z ON z.relid = i.inhrelid \
    JOIN pg_class p ON p.oid IN (i.inhrelid, z.compress_relid) \
    WHERE i.inhparent = $3::regclass AND p.relkind = 'r' \
    AND p.relfilenode IS DISTINCT FROM pg_relation_filenode(p.oid) \
    AND NOT EXISTS (SELECT FROM _timescaledb_catalog.hypertable h \
    JOIN _timescaledb_catalog.dimension d ON d.hypertable_id = h.id \
    JOIN _timescaledb_catalog.dimension_slice s ON s.dimension_id = d.id \
    JOIN pg_constraint k ON k.conname = ('constraint_' || s.id)::name AND k.contype = 'c' \
    WHERE h.schema_name = $1 AND h.table_name = $2 AND k.conrelid = i.inhrelid))";

// The view reads every chunk of the database.
const CONVERTED_UNTIL_SQL: &str = "SELECT extract(epoch FROM least(max(range_end), '2262-01-01'))::bigint * 1000000 \
    FROM timescaledb_information.chunks \
    WHERE hypertable_schema = $1 AND hypertable_name = $2 AND is_compressed";

impl Chunks {
    pub(super) fn new(config: &TimescaleConfig) -> Self {
        Self {
            schema: config.schema.clone(),
            hypertables: config.hypertables == Hypertables::On,
            tables: config
                .datasets
                .iter()
                .map(|dataset| TableChunks {
                    interval_micros: config.chunk_micros(dataset),
                    min_length: AtomicI64::new(0),
                    newest: Mutex::new(None),
                    converted_until: Mutex::new(None),
                })
                .collect(),
        }
    }

    /// Returns the length of the shortest chunk that exists or will be created, because the server's interval may differ
    /// from the configured one. Returns 0 for an ordinary table.
    pub(super) async fn min_length(
        &self,
        connection: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
    ) -> Result<i64, Cause> {
        let table = &self.tables[registered.position];
        let known = table.min_length.load(Ordering::Relaxed);
        if known != 0 || !self.hypertables {
            return Ok(known);
        }
        let stored_length: Option<i64> = sqlx::query_scalar(MIN_LENGTH_SQL)
            .bind(&self.schema)
            .bind(registered.table.name())
            .fetch_one(connection)
            .await?;
        let min_length = stored_length.unwrap_or(i64::MAX).clamp(1, table.interval_micros);
        table.min_length.store(min_length, Ordering::Relaxed);
        Ok(min_length)
    }

    /// Returns the number of the chunk that contains a time, for chunks of the length `min_length`. Returns 0
    /// for an ordinary table.
    pub(super) fn chunk_number(&self, min_length: i64, micros: i64) -> i64 {
        if self.hypertables { micros.div_euclid(min_length) } else { 0 }
    }

    /// Returns the part of `range` that comes first in `order` and lies in at most `max_chunks` chunks.
    pub(super) async fn part(
        &self,
        connection: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
        range: TimeRange,
        order: Order,
        max_chunks: i64,
    ) -> Result<TimeRange, Cause> {
        let (start, end) = (range.start().as_micros(), range.end().as_micros());
        if !self.hypertables || (end - start) / self.min_length(connection, registered).await? < max_chunks {
            return Ok(range);
        }
        let sql = if order == Order::Ascending { OLDEST_SQL } else { NEWEST_SQL };
        let row = sqlx::query(sql)
            .bind(&self.schema)
            .bind(registered.table.name())
            .bind(start)
            .bind(end)
            .bind(max_chunks)
            .fetch_one(connection)
            .await?;
        let (count, edge): (i64, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
        let edge = match edge {
            // The entire range, including chunks that are created in the meantime.
            _ if count < max_chunks => return Ok(range),
            Some(edge) if start < edge && edge < end => Timestamp::from_micros(edge).unwrap_or(range.end()),
            _ => return Ok(range),
        };
        Ok(match order {
            Order::Ascending => TimeRange::new(range.start(), edge)?,
            Order::Descending => TimeRange::new(edge, range.end())?,
        })
    }

    /// Returns the start of the oldest chunk, or the maximum if there is no chunk. Returns None for an ordinary table of a
    /// database with hypertables.
    pub(super) async fn oldest_start(
        &self,
        connection: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
    ) -> Result<Option<Timestamp>, Cause> {
        let start: Option<Option<i64>> = sqlx::query_scalar(OLDEST_START_SQL)
            .bind(&self.schema)
            .bind(registered.table.name())
            .fetch_optional(connection)
            .await?;
        let Some(start) = start else { return Ok(None) };
        let (min, max) = (Timestamp::MIN.as_micros(), Timestamp::MAX.as_micros());
        let start = Timestamp::from_micros(start.unwrap_or(max).clamp(min, max));
        Ok(Some(start.unwrap_or(Timestamp::MIN)))
    }

    /// Fails if a chunk in these ranges was dropped or converted after the snapshot of this transaction.
    ///
    /// A snapshot does not include the rows of a chunk that is dropped later, or moved to or from the columnstore. It still
    /// includes the materialized bars of these rows. A chunk that a statement has read is locked until the end of the
    /// transaction, so a caller checks the ranges after it has read their ticks.
    pub(super) async fn check_unchanged(
        &self,
        snapshot: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
        ranges: &[TimeRange],
    ) -> Result<(), Cause> {
        if !self.hypertables || ranges.is_empty() {
            return Ok(());
        }
        let (mut changed, has_merged): (bool, bool) = sqlx::query_as(CHANGED_SQL)
            .bind(&self.schema)
            .bind(registered.table.name())
            .bind(registered.table.relation())
            .bind(ranges.iter().map(|range| range.start().as_micros()).collect::<Vec<_>>())
            .bind(ranges.iter().map(|range| range.end().as_micros()).collect::<Vec<_>>())
            .fetch_one(&mut *snapshot)
            .await?;
        if has_merged && !changed {
            changed = sqlx::query_scalar(MERGED_CHANGED_SQL)
                .bind(&self.schema)
                .bind(registered.table.name())
                .bind(registered.table.relation())
                .fetch_one(snapshot)
                .await?;
        }
        if changed { Err(Cause::ChunkDropped) } else { Ok(()) }
    }

    /// Returns the time from which `latest` reads first: a few chunks before `until`, or before the newest known
    /// chunk. If a key has a record at or after this time, its latest record is there as well, even if the cached
    /// newest chunk is outdated.
    pub(super) async fn recent_start(
        &self,
        connection: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
        until: Timestamp,
    ) -> Result<Timestamp, Cause> {
        if !self.hypertables {
            return Ok(Timestamp::MIN);
        }
        let table = &self.tables[registered.position];
        let known = *table.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = match known {
            Some((newest, queried_at)) if queried_at.elapsed() < NEWEST_TTL => newest,
            _ => {
                let row = sqlx::query(NEWEST_SQL)
                    .bind(&self.schema)
                    .bind(registered.table.name())
                    .bind(Timestamp::MIN.as_micros())
                    .bind(Timestamp::MAX.as_micros())
                    .bind(1_i64)
                    .fetch_one(connection)
                    .await?;
                let found = row.try_get::<Option<i64>, _>(1)?.unwrap_or(Timestamp::MIN.as_micros());
                *table.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some((found, Instant::now()));
                found
            }
        };
        let from = newest.min(until.as_micros()).saturating_sub(RECENT_CHUNKS * table.interval_micros);
        Ok(Timestamp::from_micros(from).unwrap_or(Timestamp::MIN))
    }

    /// Returns whether chunks that end after `time` may be in the columnstore.
    pub(super) async fn are_converted(
        &self,
        connection: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
        time: Timestamp,
    ) -> Result<bool, Cause> {
        let cache = &self.tables[registered.position].converted_until;
        let known = *cache.lock().unwrap_or_else(PoisonError::into_inner);
        let until = match known {
            Some((until, queried_at)) if queried_at.elapsed() < CONVERTED_TTL => until,
            _ => {
                let until: Option<i64> = sqlx::query_scalar(CONVERTED_UNTIL_SQL)
                    .bind(&self.schema)
                    .bind(registered.table.name())
                    .fetch_one(connection)
                    .await?;
                let until = until.unwrap_or(i64::MIN);
                *cache.lock().unwrap_or_else(PoisonError::into_inner) = Some((until, Instant::now()));
                until
            }
        };
        Ok(time.as_micros() < until)
    }

    /// Clears all cached knowledge, because the schema was created again.
    pub(super) fn clear(&self) {
        for table in &self.tables {
            table.invalidate();
            table.min_length.store(0, Ordering::Relaxed);
        }
    }

    /// Clears the cached knowledge about a table after a deletion of records or a conversion of chunks.
    pub(super) fn invalidate(&self, registered: &RegisteredDataset) {
        self.tables[registered.position].invalidate();
    }

    pub(super) fn are_hypertables(&self) -> bool {
        self.hypertables
    }
}

impl TableChunks {
    fn invalidate(&self) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.converted_until.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A scan over a range, in parts that touch few chunks each.
pub(super) struct ChunkScan {
    rest: TimeRange,
    order: Order,
    max_chunks: i64,
}

impl ChunkScan {
    pub(super) fn new(range: TimeRange, order: Order) -> Self {
        Self { rest: range, order, max_chunks: INITIAL_CHUNKS }
    }

    /// Returns the next part, or None at the end of the range. An empty range has one empty part, because only the
    /// server knows whether the schema exists.
    pub(super) async fn next(
        &mut self,
        connection: &mut PgConnection<'_>,
        chunks: &Chunks,
        registered: &RegisteredDataset,
    ) -> Result<Option<TimeRange>, Cause> {
        if self.max_chunks == 0 {
            return Ok(None);
        }
        let part = chunks.part(connection, registered, self.rest, self.order, self.max_chunks).await?;
        if part == self.rest {
            self.max_chunks = 0;
            return Ok(Some(part));
        }
        self.rest = match self.order {
            Order::Ascending => TimeRange::new(part.end(), self.rest.end())?,
            Order::Descending => TimeRange::new(self.rest.start(), part.start())?,
        };
        self.max_chunks = (self.max_chunks * GROWTH).min(MAX_CHUNKS);
        Ok(Some(part))
    }
}
