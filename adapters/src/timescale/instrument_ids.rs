//! The ids of instruments, cached by this process.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use qi_core::{Exchange, Instrument};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row, SqlSafeStr as _, SqlStr};

use super::connect::PgConnection;
use super::error::Cause;
use super::types::Pg;

/// A cache of the ids of instruments. This library never changes or removes an id, so cached ids stay valid.
#[derive(Debug)]
pub(super) struct InstrumentIds {
    ids: RwLock<HashMap<Instrument, i32>>,
    find_sql: SqlStr,
    insert_sql: SqlStr,
    list_sql: SqlStr,
}

/// The maximum number of cached instruments. A full cache is cleared.
const MAX_CACHED_IDS: usize = 200_000;

// A lookup with a limit is not planned as a scan of all instruments, whatever the statistics of the table are.
const FIND_SQL: &str = "SELECT i.id, x.n \
    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS x(exchange, symbol, n) \
    CROSS JOIN LATERAL (SELECT k.id FROM {instruments} k \
    WHERE k.exchange = x.exchange AND k.symbol = x.symbol LIMIT 1) i";

// Inserts only absent instruments, so that no ids are wasted. The order of the key prevents a deadlock between two
// writers of the same new instruments.
const INSERT_SQL: &str = "INSERT INTO {instruments} (exchange, symbol) \
    SELECT x.exchange, x.symbol \
    FROM unnest($1::text[], $2::text[]) AS x(exchange, symbol) \
    LEFT JOIN LATERAL (SELECT k.id FROM {instruments} k \
    WHERE k.exchange = x.exchange AND k.symbol = x.symbol LIMIT 1) i ON true \
    WHERE i.id IS NULL \
    ORDER BY x.exchange COLLATE \"C\", x.symbol COLLATE \"C\" \
    ON CONFLICT (exchange, symbol) DO NOTHING";

const LIST_SQL: &str = "SELECT id, exchange, symbol FROM {instruments} \
    WHERE (exchange, symbol) > ($1, $2) AND ($3::text IS NULL OR exchange = $3) \
    ORDER BY exchange, symbol LIMIT $4";

impl InstrumentIds {
    /// Returns an empty cache for the instruments of a schema.
    pub(super) fn new(schema: &str) -> Self {
        let relation = format!("\"{schema}\".instruments");
        let sql = |text: &str| {
            AssertSqlSafe(Arc::<str>::from(text.replace("{instruments}", &relation))).into_sql_str()
        };
        Self {
            ids: RwLock::default(),
            find_sql: sql(FIND_SQL),
            insert_sql: sql(INSERT_SQL),
            list_sql: sql(LIST_SQL),
        }
    }

    /// Clears the cache, because the schema was created again.
    pub(super) fn clear(&self) {
        self.ids.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn cached(&self, instrument: &Instrument) -> Option<i32> {
        self.ids.read().unwrap_or_else(PoisonError::into_inner).get(instrument).copied()
    }

    fn cache_all(&self, found: impl IntoIterator<Item = (Instrument, i32)>) {
        let mut ids = self.ids.write().unwrap_or_else(PoisonError::into_inner);
        for (instrument, id) in found {
            if ids.len() >= MAX_CACHED_IDS {
                ids.clear();
            }
            ids.insert(instrument, id);
        }
    }

    /// Returns the id of an instrument, if it has an id.
    pub(super) async fn find(
        &self,
        connection: &mut PgConnection<'_>,
        instrument: &Instrument,
    ) -> Result<Option<i32>, Cause> {
        let found = self.find_all(connection, std::slice::from_ref(instrument)).await?;
        Ok(found.first().map(|(_, id)| *id))
    }

    /// Returns the instruments that have an id, with their ids, in the given order.
    pub(super) async fn find_all(
        &self,
        connection: &mut PgConnection<'_>,
        instruments: &[Instrument],
    ) -> Result<Vec<(Instrument, i32)>, Cause> {
        let mut ids: Vec<Option<i32>> = instruments.iter().map(|i| self.cached(i)).collect();
        let uncached: Vec<usize> = (0..ids.len()).filter(|at| ids[*at].is_none()).collect();
        if !uncached.is_empty() {
            let uncached_instruments = uncached.iter().map(|at| &instruments[*at]);
            for (index, id) in self.select(connection, uncached_instruments).await? {
                ids[uncached[index]] = Some(id);
            }
            self.cache_all(uncached.iter().filter_map(|at| Some((instruments[*at].clone(), ids[*at]?))));
        }
        Ok(instruments.iter().cloned().zip(ids).filter_map(|(i, id)| Some((i, id?))).collect())
    }

    /// Returns the id of every instrument of a batch, in order, and creates missing ids. New ids are committed before
    /// they are cached, so a failed batch leaves no invalid id in the cache.
    pub(super) async fn ensure<'a>(
        &self,
        connection: &mut PgConnection<'_>,
        batch: impl Iterator<Item = &'a Instrument> + Clone,
    ) -> Result<Vec<i32>, Cause> {
        let (mut ids, missing) = self.resolve(batch.clone());
        if missing.is_empty() {
            return Ok(ids.into_iter().flatten().collect());
        }
        let mut resolved: HashMap<&Instrument, i32> = HashMap::with_capacity(missing.len());
        let missing: Vec<&Instrument> = missing.into_iter().collect();
        // A batch has at most 1,000,000 records, and therefore at most 1,000,000 instruments.
        for part in missing.chunks(20_000) {
            let mut found = self.select(connection, part.iter().copied()).await?;
            if found.len() < part.len() {
                let (exchanges, symbols) = columns(part.iter().copied());
                sqlx::query(self.insert_sql.clone())
                    .bind(exchanges)
                    .bind(symbols)
                    .execute(&mut *connection)
                    .await?;
                found = self.select(connection, part.iter().copied()).await?;
            }
            resolved.extend(found.into_iter().map(|(index, id)| (part[index], id)));
        }
        // The cache is not used here, because it may have been cleared in the meantime.
        for (instrument, id) in batch.zip(&mut ids).filter(|(_, id)| id.is_none()) {
            *id = resolved.get(instrument).copied();
        }
        self.cache_all(resolved.into_iter().map(|(instrument, id)| (instrument.clone(), id)));
        let all: Option<Vec<i32>> = ids.into_iter().collect();
        // Another program removed rows of this table, which the guide forbids.
        all.ok_or_else(|| Cause::Schema {
            rule: "table instruments: an inserted instrument is missing".to_owned(),
        })
    }

    /// Returns the instruments that have an id, each as its index in the list and its id.
    async fn select<'a>(
        &self,
        connection: &mut PgConnection<'_>,
        instruments: impl Iterator<Item = &'a Instrument>,
    ) -> Result<Vec<(usize, i32)>, Cause> {
        let (exchanges, symbols) = columns(instruments);
        let rows =
            sqlx::query(self.find_sql.clone()).bind(exchanges).bind(symbols).fetch_all(connection).await?;
        let read = |row: &PgRow| -> Result<_, sqlx::Error> {
            let index =
                usize::try_from(row.try_get::<i64, _>(1)? - 1).map_err(|e| sqlx::Error::Decode(e.into()))?;
            Ok((index, row.try_get(0)?))
        };
        Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
    }

    /// Returns the cached ids of a batch, and the instruments without a cached id.
    fn resolve<'a>(
        &self,
        batch: impl Iterator<Item = &'a Instrument>,
    ) -> (Vec<Option<i32>>, BTreeSet<&'a Instrument>) {
        let ids = self.ids.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::with_capacity(batch.size_hint().0);
        let mut missing = BTreeSet::new();
        // Consecutive records often belong to the same instrument.
        let mut last: Option<(&Instrument, Option<i32>)> = None;
        for instrument in batch {
            let id = match last {
                Some((known, id)) if known == instrument => id,
                _ => {
                    let id = ids.get(instrument).copied();
                    if id.is_none() {
                        missing.insert(instrument);
                    }
                    id
                }
            };
            last = Some((instrument, id));
            found.push(id);
        }
        (found, missing)
    }

    /// Returns the instruments after `after`, of one exchange or of all exchanges, in the order of (exchange, symbol).
    pub(super) async fn list(
        &self,
        connection: &mut PgConnection<'_>,
        after: Option<&Instrument>,
        exchange: Option<&Exchange>,
        limit: i64,
    ) -> Result<Vec<(Instrument, i32)>, Cause> {
        // No exchange is empty, so two empty texts sort before all instruments.
        let (after_exchange, after_symbol) =
            after.map_or(("", ""), |i| (i.exchange().as_str(), i.symbol().as_str()));
        let rows = sqlx::query(self.list_sql.clone())
            .bind(after_exchange)
            .bind(after_symbol)
            .bind(exchange.map(Exchange::as_str))
            .bind(limit)
            .fetch_all(connection)
            .await?;
        let read = |row: &PgRow| -> Result<_, sqlx::Error> {
            let Pg(exchange) = row.try_get(1)?;
            let Pg(symbol) = row.try_get(2)?;
            Ok((Instrument::new(exchange, symbol), row.try_get::<i32, _>(0)?))
        };
        Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
    }
}

fn columns<'a>(instruments: impl Iterator<Item = &'a Instrument>) -> (Vec<&'a str>, Vec<&'a str>) {
    instruments.map(|i| (i.exchange().as_str(), i.symbol().as_str())).unzip()
}
