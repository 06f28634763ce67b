//! The series catalog: the instruments that have records in a dataset, with bounds of their times.
//!
//! Bounds may be too wide, but never too narrow. A writer widens the bounds of its batch before it writes, and then
//! caches the bounds. They are rounded to the default chunk interval, so a live feed rarely widens them.
//!
//! A reader that finds bounds without records corrects them, although writers may have cached these bounds. A correction
//! first increments the epoch of the dataset, and then reads the records. A writer compares the epoch after its batch is
//! committed. If the epoch is unchanged, each later correction reads the batch. Otherwise, the writer widens the bounds
//! again, and marks them with the new epoch. A correction changes only bounds of an earlier epoch.
//!
//! Programs that do not maintain the catalog, such as earlier versions, are detected by a trigger. It marks the catalog
//! of the dataset as incomplete. Discovery then reads the table of instruments, until `ensure_schema` completes the
//! catalog.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use qi_core::record::SeriesType;
use qi_core::store::Order;
use qi_core::{Exchange, Instrument, TimeRange, Timestamp};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row, SqlSafeStr as _, SqlStr};

use super::config::{Hypertables, TimescaleConfig};
use super::connect::PgConnection;
use super::error::Cause;
use super::key_scan::common;
use super::marks::MARKER;
use super::sql::RegisteredDataset;
use super::table::Table;
use super::types::Pg;

/// The maximum number of cached bounds of a dataset. A full cache is cleared.
const MAX_CACHED_BOUNDS: usize = 200_000;

/// The maximum number of series that one statement widens.
const MAX_WIDENED: usize = 20_000;

// `{schema}` is the quoted name of the schema.
const EPOCH_SQL: &str = "SELECT epoch FROM {schema}.qi_series_state WHERE dataset = $1";

// Covered rows are neither locked nor written. The order of the key prevents a deadlock between two writers. A lookup with
// a limit is not planned as a scan of all instruments, whatever the statistics of the tables are.
const WIDEN_SQL: &str = "INSERT INTO {schema}.qi_series AS s (dataset, exchange, symbol, instrument_id, first, last, epoch) \
    SELECT $1, i.exchange, i.symbol, x.id, x.first, x.last, $5 \
    FROM unnest($2::int[], $3::timestamptz[], $4::timestamptz[]) AS x(id, first, last) \
    CROSS JOIN LATERAL (SELECT t.exchange, t.symbol FROM {schema}.instruments t WHERE t.id = x.id LIMIT 1) i \
    LEFT JOIN LATERAL (SELECT q.first, q.last, q.epoch FROM {schema}.qi_series q \
    WHERE q.dataset = $1 AND q.exchange = i.exchange AND q.symbol = i.symbol LIMIT 1) k ON true \
    WHERE k.first IS NULL OR k.first > x.first OR k.last < x.last OR k.epoch < $5 \
    ORDER BY i.exchange, i.symbol \
    ON CONFLICT (dataset, exchange, symbol) DO UPDATE SET first = least(s.first, EXCLUDED.first), \
    last = greatest(s.last, EXCLUDED.last), epoch = greatest(s.epoch, EXCLUDED.epoch)";

const LIST_SQL: &str = "SELECT s.complete, k.instrument_id, k.exchange, k.symbol, k.first, k.last \
    FROM {schema}.qi_series_state s LEFT JOIN LATERAL (\
    SELECT * FROM {schema}.qi_series k WHERE k.dataset = $1 AND (k.exchange, k.symbol) > ($2, $3) \
    AND ($4::text IS NULL OR k.exchange = $4) ORDER BY k.exchange, k.symbol LIMIT $5) k ON s.complete \
    WHERE s.dataset = $1 ORDER BY k.exchange, k.symbol";

const BOUNDS_SQL: &str = "SELECT s.complete, k.n, k.first, k.last \
    FROM {schema}.qi_series_state s LEFT JOIN LATERAL (\
    SELECT x.n, b.first, b.last FROM unnest($2::int[]) WITH ORDINALITY AS x(id, n) \
    CROSS JOIN LATERAL (SELECT t.exchange, t.symbol FROM {schema}.instruments t WHERE t.id = x.id LIMIT 1) i \
    CROSS JOIN LATERAL (SELECT q.first, q.last FROM {schema}.qi_series q \
    WHERE q.dataset = $1 AND q.exchange = i.exchange AND q.symbol = i.symbol LIMIT 1) b) k ON s.complete \
    WHERE s.dataset = $1";

// A reader does not wait for a transaction that has marked the catalog, or for another correction.
const INCREMENT_EPOCH_SQL: &str = "UPDATE {schema}.qi_series_state SET epoch = epoch + 1 WHERE dataset = \
    (SELECT dataset FROM {schema}.qi_series_state WHERE dataset = $1 AND complete FOR UPDATE SKIP LOCKED) \
    RETURNING epoch";

// `FOR UPDATE` checks the epoch again after it waited for a writer.
const REMOVE_SQL: &str = "WITH k AS (SELECT s.dataset, s.exchange, s.symbol FROM unnest($2::int[]) AS x(id) \
    JOIN {schema}.instruments i ON i.id = x.id \
    JOIN {schema}.qi_series s ON s.dataset = $1 AND s.exchange = i.exchange AND s.symbol = i.symbol \
    WHERE s.epoch < $3 ORDER BY s.exchange, s.symbol FOR UPDATE OF s) \
    DELETE FROM {schema}.qi_series s USING k WHERE (s.dataset, s.exchange, s.symbol) = (k.dataset, k.exchange, k.symbol)";
const NARROW_SQL: &str = "WITH k AS (SELECT s.dataset, s.exchange, s.symbol, x.first, x.last \
    FROM unnest($2::int[], $4::timestamptz[], $5::timestamptz[]) AS x(id, first, last) \
    JOIN {schema}.instruments i ON i.id = x.id \
    JOIN {schema}.qi_series s ON s.dataset = $1 AND s.exchange = i.exchange AND s.symbol = i.symbol \
    WHERE s.epoch < $3 ORDER BY s.exchange, s.symbol FOR UPDATE OF s) \
    UPDATE {schema}.qi_series s SET first = k.first, last = k.last FROM k \
    WHERE (s.dataset, s.exchange, s.symbol) = (k.dataset, k.exchange, k.symbol)";

/// The first and the last time of a series, or bounds of these times.
pub(super) type TimeBounds = (Timestamp, Timestamp);

/// An instrument of the catalog, with its id and its bounds.
pub(super) type CatalogEntry = (Instrument, i32, TimeBounds);

/// The bounds that this process knows to be in the catalog.
#[derive(Debug)]
pub(super) struct SeriesCatalog {
    statements: Statements,
    /// One entry for each dataset, indexed by its position.
    datasets: Vec<DatasetBounds>,
}

/// The statements on the catalog of a schema.
#[derive(Debug)]
struct Statements {
    epoch: SqlStr,
    widen: SqlStr,
    list: SqlStr,
    bounds: SqlStr,
    increment_epoch: SqlStr,
    remove: SqlStr,
    narrow: SqlStr,
}

impl Statements {
    fn of(schema: &str) -> Self {
        // The name was validated: letters, digits and underscores.
        let schema = format!("\"{schema}\"");
        let sql =
            |text: &str| AssertSqlSafe(Arc::<str>::from(text.replace("{schema}", &schema))).into_sql_str();
        Self {
            epoch: sql(EPOCH_SQL),
            widen: sql(WIDEN_SQL),
            list: sql(LIST_SQL),
            bounds: sql(BOUNDS_SQL),
            increment_epoch: sql(INCREMENT_EPOCH_SQL),
            remove: sql(REMOVE_SQL),
            narrow: sql(NARROW_SQL),
        }
    }
}

#[derive(Debug)]
struct DatasetBounds {
    /// The unit to which bounds are rounded, in microseconds. It is the same in all processes: with different units,
    /// readers would narrow what writers widen.
    unit: i64,
    known: Mutex<KnownBounds>,
}

#[derive(Debug, Default)]
struct KnownBounds {
    /// The epoch of the bounds. None until the first write.
    epoch: Option<i64>,
    bounds: HashMap<i32, TimeBounds>,
}

impl SeriesCatalog {
    pub(super) fn new(config: &TimescaleConfig) -> Self {
        let datasets = config.datasets.iter().map(|dataset| DatasetBounds {
            unit: TimescaleConfig::default_chunk_micros(dataset),
            known: Mutex::default(),
        });
        Self { statements: Statements::of(&config.schema), datasets: datasets.collect() }
    }

    /// Clears the cached bounds, because the schema was created again.
    pub(super) fn clear(&self) {
        for dataset in &self.datasets {
            *dataset.lock() = KnownBounds::default();
        }
    }

    /// Widens the bounds in the catalog so that they include these times. Returns the epoch, which
    /// [`Self::confirm`] needs after the write.
    pub(super) async fn widen(
        &self,
        connection: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
        series: impl Iterator<Item = (i32, TimeBounds)>,
    ) -> Result<i64, Cause> {
        let dataset = &self.datasets[registered.position];
        let known = dataset.lock().epoch;
        let epoch = match known {
            Some(epoch) => epoch,
            None => self.refresh(connection, registered).await?,
        };
        let mut wider: BTreeMap<i32, TimeBounds> = BTreeMap::new();
        {
            let known = dataset.lock();
            for (id, (first, last)) in series {
                let is_known = known.epoch == Some(epoch)
                    && known.bounds.get(&id).is_some_and(|(from, to)| *from <= first && last <= *to);
                if !is_known {
                    let (from, to) = wider.entry(id).or_insert((first, last));
                    (*from, *to) = (first.min(*from), last.max(*to));
                }
            }
        }
        if wider.is_empty() {
            return Ok(epoch);
        }
        for bounds in wider.values_mut() {
            *bounds = dataset.round(*bounds);
        }
        let rows: Vec<_> = wider.iter().collect();
        for rows in rows.chunks(MAX_WIDENED) {
            sqlx::query(self.statements.widen.clone())
                .bind(registered.table.name())
                .bind(rows.iter().map(|(id, _)| **id).collect::<Vec<_>>())
                .bind(rows.iter().map(|(_, (first, _))| Pg(*first)).collect::<Vec<_>>())
                .bind(rows.iter().map(|(_, (_, last))| Pg(*last)).collect::<Vec<_>>())
                .bind(epoch)
                .execute(&mut *connection)
                .await?;
        }
        dataset.remember(epoch, wider);
        Ok(epoch)
    }

    /// Widens the bounds again if a correction may have overlooked the records that were written since [`Self::widen`].
    pub(super) async fn confirm(
        &self,
        connection: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
        epoch: i64,
        series: impl Iterator<Item = (i32, TimeBounds)>,
    ) -> Result<(), Cause> {
        if self.refresh(connection, registered).await? != epoch {
            self.widen(connection, registered, series).await?;
        }
        Ok(())
    }

    /// Reads the epoch, and clears the cached bounds of an earlier epoch.
    async fn refresh(
        &self,
        connection: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
    ) -> Result<i64, Cause> {
        let name = registered.table.name();
        let epoch: Option<i64> =
            sqlx::query_scalar(self.statements.epoch.clone()).bind(name).fetch_optional(connection).await?;
        let epoch = epoch.ok_or_else(|| missing_state(name))?;
        let mut known = self.datasets[registered.position].lock();
        if known.epoch.is_none_or(|known| known < epoch) {
            *known = KnownBounds { epoch: Some(epoch), bounds: HashMap::new() };
        }
        Ok(epoch)
    }

    /// Returns the instruments of the catalog after `after`, in order. Returns None if the catalog is incomplete.
    pub(super) async fn list(
        &self,
        connection: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
        after: Option<&Instrument>,
        exchange: Option<&Exchange>,
        limit: i64,
    ) -> Result<Option<Vec<CatalogEntry>>, Cause> {
        // No exchange is empty, so two empty texts sort before all instruments.
        let (after_exchange, after_symbol) =
            after.map_or(("", ""), |i| (i.exchange().as_str(), i.symbol().as_str()));
        let name = registered.table.name();
        let rows = sqlx::query(self.statements.list.clone())
            .bind(name)
            .bind(after_exchange)
            .bind(after_symbol)
            .bind(exchange.map(Exchange::as_str))
            .bind(limit)
            .fetch_all(connection)
            .await?;
        let complete: bool = rows.first().ok_or_else(|| missing_state(name))?.try_get(0)?;
        if !complete {
            return Ok(None);
        }
        // A complete catalog without instruments is one row of NULLs.
        let read = |row: &PgRow| -> Result<Option<CatalogEntry>, sqlx::Error> {
            let Some(id) = row.try_get::<Option<i32>, _>(1)? else { return Ok(None) };
            let (Pg(exchange), Pg(symbol)) = (row.try_get(2)?, row.try_get(3)?);
            let (Pg(first), Pg(last)) = (row.try_get(4)?, row.try_get(5)?);
            Ok(Some((Instrument::new(exchange, symbol), id, (first, last))))
        };
        Ok(Some(rows.iter().filter_map(|row| read(row).transpose()).collect::<Result<_, _>>()?))
    }

    /// Returns the bounds of these instruments, by the index of the instrument. Omits instruments outside the catalog.
    /// Returns None if the catalog is incomplete.
    pub(super) async fn bounds(
        &self,
        connection: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
        ids: Vec<i32>,
    ) -> Result<Option<HashMap<usize, TimeBounds>>, Cause> {
        let name = registered.table.name();
        let query = sqlx::query(self.statements.bounds.clone()).bind(name).bind(ids);
        let rows = query.fetch_all(connection).await?;
        let complete: bool = rows.first().ok_or_else(|| missing_state(name))?.try_get(0)?;
        if !complete {
            return Ok(None);
        }
        // A complete catalog without these instruments is one row of NULLs.
        let read = |row: &PgRow| -> Result<Option<(usize, TimeBounds)>, sqlx::Error> {
            let Some(number) = row.try_get::<Option<i64>, _>(1)? else { return Ok(None) };
            let index = usize::try_from(number - 1).map_err(|e| sqlx::Error::Decode(e.into()))?;
            let (Pg(first), Pg(last)) = (row.try_get(2)?, row.try_get(3)?);
            Ok(Some((index, (first, last))))
        };
        Ok(Some(rows.iter().filter_map(|row| read(row).transpose()).collect::<Result<_, _>>()?))
    }

    /// Begins a correction. Returns its epoch, or None if the catalog is incomplete or locked. Only records that are
    /// read after this call may be used for the correction.
    pub(super) async fn begin_correction(
        &self,
        connection: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
    ) -> Result<Option<i64>, Cause> {
        let name = registered.table.name();
        let sql = self.statements.increment_epoch.clone();
        Ok(sqlx::query_scalar(sql).bind(name).fetch_optional(connection).await?)
    }

    /// Replaces bounds of earlier epochs by the times of the records. Removes series without records.
    pub(super) async fn correct(
        &self,
        connection: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
        epoch: i64,
        series: &[(i32, Option<TimeBounds>)],
    ) -> Result<(), Cause> {
        let (name, dataset) = (registered.table.name(), &self.datasets[registered.position]);
        let removed: Vec<i32> =
            series.iter().filter(|(_, found)| found.is_none()).map(|(id, _)| *id).collect();
        if !removed.is_empty() {
            sqlx::query(self.statements.remove.clone())
                .bind(name)
                .bind(removed)
                .bind(epoch)
                .execute(&mut *connection)
                .await?;
        }
        let found = || series.iter().filter_map(|(id, found)| Some((*id, dataset.round((*found)?))));
        if found().next().is_some() {
            sqlx::query(self.statements.narrow.clone())
                .bind(name)
                .bind(found().map(|(id, _)| id).collect::<Vec<_>>())
                .bind(epoch)
                .bind(found().map(|(_, (first, _))| Pg(first)).collect::<Vec<_>>())
                .bind(found().map(|(_, (_, last))| Pg(last)).collect::<Vec<_>>())
                .execute(connection)
                .await?;
        }
        Ok(())
    }

    /// Returns whether recorded bounds differ from the times of the records by more than the rounding.
    pub(super) fn is_stale(
        &self,
        registered: &RegisteredDataset,
        recorded: TimeBounds,
        found: Option<TimeBounds>,
    ) -> bool {
        let dataset = &self.datasets[registered.position];
        found.is_none_or(|found| {
            let (first, last) = dataset.round(found);
            recorded.0 < first || last < recorded.1
        })
    }

    /// Returns the part of a range in the unit of bounds where a search in this order begins. The range is not empty.
    pub(super) fn edge(
        &self,
        registered: &RegisteredDataset,
        range: TimeRange,
        order: Order,
    ) -> Result<TimeRange, Cause> {
        let time = match order {
            Order::Ascending => range.start(),
            Order::Descending => Timestamp::from_micros(range.end().as_micros() - 1)?,
        };
        let unit = range_of(self.datasets[registered.position].round((time, time)))?;
        common(unit, range)
    }
}

impl DatasetBounds {
    fn lock(&self) -> std::sync::MutexGuard<'_, KnownBounds> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Extends bounds to the units that contain them.
    fn round(&self, (first, last): TimeBounds) -> TimeBounds {
        let start = |time: Timestamp| time.as_micros().div_euclid(self.unit).saturating_mul(self.unit);
        let end = start(last).saturating_add(self.unit - 1);
        (
            Timestamp::from_micros(start(first)).unwrap_or(Timestamp::MIN),
            Timestamp::from_micros(end).unwrap_or(Timestamp::MAX),
        )
    }

    fn remember(&self, epoch: i64, wider: BTreeMap<i32, TimeBounds>) {
        let mut known = self.lock();
        if known.epoch != Some(epoch) {
            return;
        }
        for (id, (first, last)) in wider {
            if known.bounds.len() >= MAX_CACHED_BOUNDS {
                known.bounds.clear();
            }
            // Bounds only grow within an epoch.
            let (from, to) = known.bounds.entry(id).or_insert((first, last));
            (*from, *to) = (first.min(*from), last.max(*to));
        }
    }
}

/// Returns the range that includes these bounds.
pub(super) fn range_of((first, last): TimeBounds) -> Result<TimeRange, Cause> {
    let end = Timestamp::from_micros(last.as_micros().saturating_add(1)).unwrap_or(Timestamp::MAX);
    Ok(TimeRange::new(first, end)?)
}

fn missing_state(dataset: &str) -> Cause {
    Cause::Schema {
        rule: format!("table qi_series_state has no row for dataset {dataset}; call ensure_schema"),
    }
}

/// A step that creates or completes the catalog of a table.
pub(super) struct CatalogStep {
    pub(super) label: String,
    pub(super) statements: Vec<String>,
    /// True if the schema can be used without the step.
    pub(super) is_optional: bool,
}

/// Returns the steps that create or complete the catalogs of these tables.
pub(super) async fn steps(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
    tables: &[Table],
) -> Result<Vec<CatalogStep>, Cause> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(format!("\"{}\".qi_series_state", config.schema))
        .fetch_one(&mut *connection)
        .await?;
    let states: HashMap<String, bool> = if exists {
        let sql = format!("SELECT dataset, complete FROM \"{}\".qi_series_state", config.schema);
        let rows: Vec<(String, bool)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(connection).await?;
        rows.into_iter().collect()
    } else {
        HashMap::new()
    };
    let mut steps = Vec::new();
    for table in tables.iter().filter(|table| table.dataset.series() == SeriesType::Instrument) {
        let (name, schema) = (table.name(), &config.schema);
        let fill = fill(config, table);
        match states.get(name) {
            Some(true) => {}
            Some(false) => {
                let lock = format!("SELECT pg_advisory_xact_lock(hashtextextended('{schema}.{name}', 7169))");
                let complete = format!(
                    "UPDATE \"{schema}\".qi_series_state SET complete = true, epoch = epoch + 1 \
                     WHERE dataset = '{name}'"
                );
                // The epoch grows first, so that the rows are of the new epoch.
                let label = format!("series catalog of {name} completed");
                steps.push(CatalogStep { label, statements: vec![lock, complete, fill], is_optional: true });
            }
            None => {
                // A job of TimescaleDB has no current query. A statement of another trigger has the text of the
                // statement that fired it.
                let trigger = format!(
                    "CREATE TRIGGER qi_mark_incomplete BEFORE INSERT OR UPDATE OF \"instrument_id\", \"{}\" \
                     ON \"{schema}\".\"{name}\" \
                     FOR EACH STATEMENT WHEN ((current_query() LIKE '{}%' AND pg_trigger_depth() = 0) IS NOT TRUE) \
                     EXECUTE FUNCTION \"{schema}\".qi_mark_incomplete()",
                    table.time(),
                    MARKER.trim_end(),
                );
                let state = format!(
                    "INSERT INTO \"{schema}\".qi_series_state (dataset, epoch, complete) VALUES ('{name}', 1, true)"
                );
                let label = format!("series catalog of {name}");
                let statements = vec![trigger, state, fill];
                steps.push(CatalogStep { label, statements, is_optional: false });
            }
        }
    }
    Ok(steps)
}

/// Returns the statement that adds all instruments with the widest bounds. Readers correct them. Adds nothing if the
/// table is empty.
fn fill(config: &TimescaleConfig, table: &Table) -> String {
    let (name, schema) = (table.name(), &config.schema);
    // A query of a hypertable would lock each of its chunks.
    let records = match config.hypertables {
        Hypertables::On => format!(
            "FROM _timescaledb_catalog.hypertable h \
             JOIN _timescaledb_catalog.dimension d ON d.hypertable_id = h.id \
             JOIN _timescaledb_catalog.dimension_slice s ON s.dimension_id = d.id \
             WHERE h.schema_name = '{schema}' AND h.table_name = '{name}'"
        ),
        Hypertables::Off => format!("FROM \"{schema}\".\"{name}\""),
    };
    format!(
        "INSERT INTO \"{schema}\".qi_series AS s (dataset, exchange, symbol, instrument_id, first, last, epoch) \
         SELECT '{name}', exchange, symbol, id, '{first}', '{last}', \
         (SELECT epoch FROM \"{schema}\".qi_series_state WHERE dataset = '{name}') \
         FROM \"{schema}\".instruments WHERE EXISTS (SELECT {records}) ORDER BY exchange, symbol \
         ON CONFLICT (dataset, exchange, symbol) DO UPDATE \
         SET first = EXCLUDED.first, last = EXCLUDED.last, epoch = EXCLUDED.epoch",
        first = Timestamp::MIN,
        last = Timestamp::MAX,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_rounded_to_units_and_stay_in_the_domain() {
        let dataset = DatasetBounds { unit: 1_000, known: Mutex::default() };
        let time = |micros: i64| Timestamp::from_micros(1_700_000_000_000_000 + micros).unwrap();
        assert_eq!(dataset.round((time(1_999), time(2_000))), (time(1_000), time(2_999)));
        assert_eq!(dataset.round((Timestamp::MIN, Timestamp::MAX)), (Timestamp::MIN, Timestamp::MAX));
    }
}
