//! Instruments and their ids, as far as this process has met them.

use std::collections::{BTreeSet, HashMap};
use std::sync::{PoisonError, RwLock};

use qi_core::{Exchange, Instrument};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::error::Cause;
use super::types::Pg;

/// The ids of instruments. They are never changed or removed by this library, so what was met once stays true.
#[derive(Debug, Default)]
pub(super) struct InstrumentIds {
    ids: RwLock<HashMap<Instrument, i32>>,
}

/// How many instruments the cache holds. Beyond that it begins anew.
const MOST: usize = 200_000;

const FIND: &str = "SELECT i.id, x.n \
    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS x(exchange, symbol, n) \
    JOIN instruments i ON i.exchange = x.exchange AND i.symbol = x.symbol";

// Only what is absent, so that no id is spent in vain; in the order of the key, so that two writers of the same
// new names cannot lock each other out.
const ADD: &str = "INSERT INTO instruments (exchange, symbol) \
    SELECT x.exchange, x.symbol \
    FROM unnest($1::text[], $2::text[]) AS x(exchange, symbol) \
    WHERE NOT EXISTS (SELECT FROM instruments i WHERE i.exchange = x.exchange AND i.symbol = x.symbol) \
    ORDER BY x.exchange COLLATE \"C\", x.symbol COLLATE \"C\" \
    ON CONFLICT (exchange, symbol) DO NOTHING";

const LIST: &str = "SELECT id, exchange, symbol FROM instruments \
    WHERE (exchange, symbol) > ($1, $2) AND ($3::text IS NULL OR exchange = $3) \
    ORDER BY exchange, symbol LIMIT $4";

impl InstrumentIds {
    /// Forgets everything: another schema is there now.
    pub(super) fn forget_all(&self) {
        self.ids.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn known(&self, instrument: &Instrument) -> Option<i32> {
        self.ids.read().unwrap_or_else(PoisonError::into_inner).get(instrument).copied()
    }

    fn keep(&self, met: impl IntoIterator<Item = (Instrument, i32)>) {
        let mut ids = self.ids.write().unwrap_or_else(PoisonError::into_inner);
        for (instrument, id) in met {
            if ids.len() >= MOST {
                ids.clear();
            }
            ids.insert(instrument, id);
        }
    }

    /// The id of an instrument that has one.
    pub(super) async fn find(
        &self,
        connection: &mut PgConnection,
        instrument: &Instrument,
    ) -> Result<Option<i32>, Cause> {
        let found = self.find_all(connection, std::slice::from_ref(instrument)).await?;
        Ok(found.first().map(|(_, id)| *id))
    }

    /// Those of the instruments that have an id, in the order given.
    pub(super) async fn find_all(
        &self,
        connection: &mut PgConnection,
        instruments: &[Instrument],
    ) -> Result<Vec<(Instrument, i32)>, Cause> {
        let mut ids: Vec<Option<i32>> = instruments.iter().map(|i| self.known(i)).collect();
        let unknown: Vec<usize> = (0..ids.len()).filter(|at| ids[*at].is_none()).collect();
        if !unknown.is_empty() {
            let asked = unknown.iter().map(|at| &instruments[*at]);
            for (place, id) in select(connection, asked).await? {
                ids[unknown[place]] = Some(id);
            }
            self.keep(unknown.iter().filter_map(|at| Some((instruments[*at].clone(), ids[*at]?))));
        }
        Ok(instruments.iter().cloned().zip(ids).filter_map(|(i, id)| Some((i, id?))).collect())
    }

    /// The id of every instrument of a batch, in its order; those that have none get one. New ids are committed
    /// before they are kept, so that a batch that fails leaves no id here that is not there.
    pub(super) async fn ensure<'a>(
        &self,
        connection: &mut PgConnection,
        batch: impl Iterator<Item = &'a Instrument> + Clone,
    ) -> Result<Vec<i32>, Cause> {
        let (mut ids, absent) = self.resolve(batch.clone());
        if absent.is_empty() {
            return Ok(ids.into_iter().flatten().collect());
        }
        let mut met: HashMap<&Instrument, i32> = HashMap::with_capacity(absent.len());
        let absent: Vec<&Instrument> = absent.into_iter().collect();
        // A batch has at most 1,000,000 records, and with that so many names.
        for part in absent.chunks(20_000) {
            let mut found = select(connection, part.iter().copied()).await?;
            if found.len() < part.len() {
                let (exchanges, symbols) = columns(part.iter().copied());
                sqlx::query(ADD).bind(exchanges).bind(symbols).execute(&mut *connection).await?;
                found = select(connection, part.iter().copied()).await?;
            }
            met.extend(found.into_iter().map(|(place, id)| (part[place], id)));
        }
        // Not out of the cache, which may have begun anew in the meantime.
        for (instrument, id) in batch.zip(&mut ids).filter(|(_, id)| id.is_none()) {
            *id = met.get(instrument).copied();
        }
        self.keep(met.into_iter().map(|(instrument, id)| (instrument.clone(), id)));
        let all: Option<Vec<i32>> = ids.into_iter().collect();
        // Somebody removes rows of this table, against the rules of the guide.
        all.ok_or_else(|| Cause::Schema { rule: "an instrument that was just added is gone".to_owned() })
    }

    /// The ids of a batch as far as they are known, and the instruments whose are not.
    fn resolve<'a>(
        &self,
        batch: impl Iterator<Item = &'a Instrument>,
    ) -> (Vec<Option<i32>>, BTreeSet<&'a Instrument>) {
        let ids = self.ids.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::with_capacity(batch.size_hint().0);
        let mut absent = BTreeSet::new();
        // Records of one instrument often stand together.
        let mut last: Option<(&Instrument, Option<i32>)> = None;
        for instrument in batch {
            let id = match last {
                Some((known, id)) if known == instrument => id,
                _ => {
                    let id = ids.get(instrument).copied();
                    if id.is_none() {
                        absent.insert(instrument);
                    }
                    id
                }
            };
            last = Some((instrument, id));
            found.push(id);
        }
        (found, absent)
    }

    /// The instruments behind `after`, of one exchange or of all, by (exchange, symbol).
    pub(super) async fn list(
        &self,
        connection: &mut PgConnection,
        after: Option<&Instrument>,
        exchange: Option<&Exchange>,
        limit: i64,
    ) -> Result<Vec<(Instrument, i32)>, Cause> {
        // No exchange is empty, so two empty texts come before all of them.
        let (after_exchange, after_symbol) =
            after.map_or(("", ""), |i| (i.exchange().as_str(), i.symbol().as_str()));
        let rows = sqlx::query(LIST)
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

/// Which of the instruments have an id: their places in the list, and the ids.
async fn select<'a>(
    connection: &mut PgConnection,
    instruments: impl Iterator<Item = &'a Instrument>,
) -> Result<Vec<(usize, i32)>, Cause> {
    let (exchanges, symbols) = columns(instruments);
    let rows = sqlx::query(FIND).bind(exchanges).bind(symbols).fetch_all(connection).await?;
    let read = |row: &PgRow| -> Result<_, sqlx::Error> {
        let place =
            usize::try_from(row.try_get::<i64, _>(1)? - 1).map_err(|e| sqlx::Error::Decode(e.into()))?;
        Ok((place, row.try_get(0)?))
    };
    Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
}
