//! The parts of a range that one statement may read. Every chunk that a statement touches costs locks and planning
//! time. Thousands of chunks exhaust the server's lock table (SQLSTATE 53200).

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use qi_core::store::Order;
use qi_core::{TimeRange, Timestamp};
use sqlx::{PgConnection, Row};

use super::config::{Hypertables, TimescaleConfig};
use super::error::Cause;
use super::sql::Stored;

/// The cached knowledge about the chunks of the tables.
#[derive(Debug)]
pub(super) struct Chunks {
    schema: String,
    hypertables: bool,
    /// The chunks of each table, indexed by the position of its dataset.
    tables: Vec<ChunksOfTable>,
}

#[derive(Debug)]
struct ChunksOfTable {
    /// The configured chunk interval, in microseconds.
    micros: i64,
    /// The length of the shortest chunk that exists or will be created, in microseconds. 0 until the first query.
    least: AtomicI64,
    /// The start of the newest chunk, and the time of the query.
    newest: Mutex<Option<(i64, Instant)>>,
    /// The end of the newest chunk in the columnstore, and the time of the query.
    converted_until: Mutex<Option<(i64, Instant)>>,
}

/// The number of chunks in the first part of a scan. The following parts grow by the factor `GROWTH` up to
/// `MOST` chunks.
const FIRST: i64 = 50;
const MOST: i64 = 200;
const GROWTH: i64 = 4;

/// The lifetime of the cached newest chunk. Other writers may add a newer chunk, but reads also cover the time
/// after the cached chunk.
const FRESH: Duration = Duration::from_secs(1);

/// The interval at which a writer queries the chunks in the columnstore. The answer affects only the speed of a write.
const CONVERTED_TTL: Duration = Duration::from_secs(30);

/// The number of newest chunks that `latest` reads first.
const NEWEST: i64 = 3;

// The catalog of slices is indexed by time; the view timescaledb_information.chunks would read every chunk.
const LEAST_OF: &str = "SELECT min(s.range_end - s.range_start) \
    FROM _timescaledb_catalog.hypertable h \
    JOIN _timescaledb_catalog.dimension d ON d.hypertable_id = h.id \
    JOIN _timescaledb_catalog.dimension_slice s ON s.dimension_id = d.id \
    WHERE h.schema_name = $1 AND h.table_name = $2";
const OLDEST_OF: &str = "SELECT count(*), max(range_end) FROM (\
    SELECT s.range_start, s.range_end \
    FROM _timescaledb_catalog.hypertable h \
    JOIN _timescaledb_catalog.dimension d ON d.hypertable_id = h.id \
    JOIN _timescaledb_catalog.dimension_slice s ON s.dimension_id = d.id \
    WHERE h.schema_name = $1 AND h.table_name = $2 AND s.range_end > $3 AND s.range_start < $4 \
    ORDER BY s.range_start LIMIT $5) x";
const NEWEST_OF: &str = "SELECT count(*), min(range_start) FROM (\
    SELECT s.range_start, s.range_end \
    FROM _timescaledb_catalog.hypertable h \
    JOIN _timescaledb_catalog.dimension d ON d.hypertable_id = h.id \
    JOIN _timescaledb_catalog.dimension_slice s ON s.dimension_id = d.id \
    WHERE h.schema_name = $1 AND h.table_name = $2 AND s.range_end > $3 AND s.range_start < $4 \
    ORDER BY s.range_start DESC LIMIT $5) x";

// The view reads every chunk of the database.
const CONVERTED_UNTIL: &str = "SELECT extract(epoch FROM least(max(range_end), '2262-01-01'))::bigint * 1000000 \
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
                .map(|dataset| ChunksOfTable {
                    micros: config.chunk_micros(dataset),
                    least: AtomicI64::new(0),
                    newest: Mutex::new(None),
                    converted_until: Mutex::new(None),
                })
                .collect(),
        }
    }

    /// Returns the length of the shortest chunk: the configured interval, or the length of older chunks from before a
    /// change of the configuration. Returns 0 for an ordinary table.
    pub(super) async fn least(&self, connection: &mut PgConnection, stored: &Stored) -> Result<i64, Cause> {
        let table = &self.tables[stored.position];
        let known = table.least.load(Ordering::Relaxed);
        if known != 0 || !self.hypertables {
            return Ok(known);
        }
        let there: Option<i64> = sqlx::query_scalar(LEAST_OF)
            .bind(&self.schema)
            .bind(stored.table.name())
            .fetch_one(connection)
            .await?;
        let least = there.unwrap_or(i64::MAX).clamp(1, table.micros);
        table.least.store(least, Ordering::Relaxed);
        Ok(least)
    }

    /// Returns the number of the chunk that contains a time, for chunks of the length `least`. Returns 0
    /// for an ordinary table.
    pub(super) fn number(&self, least: i64, micros: i64) -> i64 {
        if self.hypertables { micros.div_euclid(least) } else { 0 }
    }

    /// Returns the part of `range` that comes first in `order` and lies in at most `most` chunks.
    pub(super) async fn part(
        &self,
        connection: &mut PgConnection,
        stored: &Stored,
        range: TimeRange,
        order: Order,
        most: i64,
    ) -> Result<TimeRange, Cause> {
        let (start, end) = (range.start().as_micros(), range.end().as_micros());
        if !self.hypertables || (end - start) / self.least(connection, stored).await? < most {
            return Ok(range);
        }
        let sql = if order == Order::Ascending { OLDEST_OF } else { NEWEST_OF };
        let row = sqlx::query(sql)
            .bind(&self.schema)
            .bind(stored.table.name())
            .bind(start)
            .bind(end)
            .bind(most)
            .fetch_one(connection)
            .await?;
        let (count, edge): (i64, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
        let edge = match edge {
            // The entire range, including chunks that are created in the meantime.
            _ if count < most => return Ok(range),
            Some(edge) if start < edge && edge < end => Timestamp::from_micros(edge).unwrap_or(range.end()),
            _ => return Ok(range),
        };
        Ok(match order {
            Order::Ascending => TimeRange::new(range.start(), edge)?,
            Order::Descending => TimeRange::new(edge, range.end())?,
        })
    }

    /// Returns the time from which `latest` reads first: a few chunks before `until`, or before the newest known
    /// chunk. If a key has a record at or after this time, its latest record is there as well, even if the cached
    /// newest chunk is outdated.
    pub(super) async fn recent(
        &self,
        connection: &mut PgConnection,
        stored: &Stored,
        until: Timestamp,
    ) -> Result<Timestamp, Cause> {
        if !self.hypertables {
            return Ok(Timestamp::MIN);
        }
        let table = &self.tables[stored.position];
        let known = *table.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = match known {
            Some((newest, asked)) if asked.elapsed() < FRESH => newest,
            _ => {
                let row = sqlx::query(NEWEST_OF)
                    .bind(&self.schema)
                    .bind(stored.table.name())
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
        let from = newest.min(until.as_micros()).saturating_sub(NEWEST * table.micros);
        Ok(Timestamp::from_micros(from).unwrap_or(Timestamp::MIN))
    }

    /// Returns whether chunks that end after `time` may be in the columnstore.
    pub(super) async fn are_converted(
        &self,
        connection: &mut PgConnection,
        stored: &Stored,
        time: Timestamp,
    ) -> Result<bool, Cause> {
        let cell = &self.tables[stored.position].converted_until;
        let known = *cell.lock().unwrap_or_else(PoisonError::into_inner);
        let until = match known {
            Some((until, asked)) if asked.elapsed() < CONVERTED_TTL => until,
            _ => {
                let until: Option<i64> = sqlx::query_scalar(CONVERTED_UNTIL)
                    .bind(&self.schema)
                    .bind(stored.table.name())
                    .fetch_one(connection)
                    .await?;
                let until = until.unwrap_or(i64::MIN);
                *cell.lock().unwrap_or_else(PoisonError::into_inner) = Some((until, Instant::now()));
                until
            }
        };
        Ok(time.as_micros() < until)
    }

    /// Clears all cached knowledge, because the schema was created again.
    pub(super) fn forget_all(&self) {
        for table in &self.tables {
            table.forget();
            table.least.store(0, Ordering::Relaxed);
        }
    }

    /// Clears the cached knowledge about a table after a deletion of records or a conversion of chunks.
    pub(super) fn forget(&self, stored: &Stored) {
        self.tables[stored.position].forget();
    }

    pub(super) fn are_hypertables(&self) -> bool {
        self.hypertables
    }
}

impl ChunksOfTable {
    fn forget(&self) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.converted_until.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A scan over a range, in parts that touch few chunks each.
pub(super) struct ChunkScan {
    rest: TimeRange,
    order: Order,
    most: i64,
}

impl ChunkScan {
    pub(super) fn new(range: TimeRange, order: Order) -> Self {
        Self { rest: range, order, most: FIRST }
    }

    /// Returns the next part, or None at the end of the range. An empty range has one empty part, because only the
    /// server knows whether the schema exists.
    pub(super) async fn next(
        &mut self,
        connection: &mut PgConnection,
        chunks: &Chunks,
        stored: &Stored,
    ) -> Result<Option<TimeRange>, Cause> {
        if self.most == 0 {
            return Ok(None);
        }
        let part = chunks.part(connection, stored, self.rest, self.order, self.most).await?;
        if part == self.rest {
            self.most = 0;
            return Ok(Some(part));
        }
        self.rest = match self.order {
            Order::Ascending => TimeRange::new(part.end(), self.rest.end())?,
            Order::Descending => TimeRange::new(self.rest.start(), part.start())?,
        };
        self.most = (self.most * GROWTH).min(MOST);
        Ok(Some(part))
    }
}
