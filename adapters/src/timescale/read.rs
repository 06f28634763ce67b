//! Pages of records, and the latest of each key.

use std::collections::HashMap;

use futures::TryStreamExt;
use qi_core::store::{Anchor, Dataset, Order, Page, Paged};
use qi_core::{Instrument, Interval, Scope, Selection, TimeRange, Timestamp};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres, Row};

use super::chunks::ChunkScan;
use super::connect::PooledConnection;
use super::error::Cause;
use super::sql;
use super::store::TimescaleStore;
use super::table::{SeriesKey, Stored};
use super::types::Pg;

type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

/// What a key of a selection is to the tables: an instrument by its id, a scope by its text.
pub(super) trait Key: Ord + Clone + Send + Sync {
    /// The anchor of a page of the latest records, as a key.
    fn of_anchor(anchor: Anchor) -> Option<Self>;
}

impl Key for Instrument {
    fn of_anchor(anchor: Anchor) -> Option<Self> {
        match anchor {
            Anchor::Instrument(instrument) => Some(instrument),
            _ => None,
        }
    }
}

impl Key for Scope {
    fn of_anchor(anchor: Anchor) -> Option<Self> {
        match anchor {
            Anchor::Scope(scope) => Some(scope),
            _ => None,
        }
    }
}

/// Candidates for `latest`, as the parameter of the statement.
pub(super) enum Keys {
    Ids(Vec<i32>),
    Scopes(Vec<String>),
}

impl Keys {
    fn len(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::Scopes(scopes) => scopes.len(),
        }
    }

    /// Those at these places.
    fn only(&self, places: &[usize]) -> Self {
        match self {
            Self::Ids(ids) => Self::Ids(places.iter().map(|at| ids[*at]).collect()),
            Self::Scopes(scopes) => Self::Scopes(places.iter().map(|at| scopes[*at].clone()).collect()),
        }
    }

    fn bind<'q>(&self, query: PgQuery<'q>) -> PgQuery<'q> {
        match self {
            Self::Ids(ids) => query.bind(ids.clone()),
            Self::Scopes(scopes) => query.bind(scopes.clone()),
        }
    }
}

impl TimescaleStore {
    /// A page of one series in a range. The range is read in parts that touch few chunks each.
    pub(super) async fn page<R: Stored>(
        &self,
        lease: &mut PooledConnection,
        series: &R::Series,
        key: SeriesKey<'_>,
        range: TimeRange,
        order: Order,
        query: &(impl Paged<R> + Sync),
    ) -> Result<Page<R>, Cause> {
        let anchor = query.anchor()?;
        let most = query.request().limit() + 1;
        let dataset = R::TABLE.dataset;
        let statements = sql::of(dataset);
        let statement = match order {
            Order::Ascending => &statements.ascending,
            Order::Descending => &statements.descending,
        };
        let (range, place) = resume(range, order, &anchor)?;
        let mut found = Vec::with_capacity(most.min(10_001));
        let mut walk = ChunkScan::new(range, order);
        while let Some(part) = walk.next(lease, &self.inner.cache.chunks, dataset).await? {
            let mut statement = sqlx::query(statement.as_str())
                .bind(Pg(part.start()))
                .bind(Pg(part.end()))
                .bind(i64::try_from(most - found.len()).unwrap_or(i64::MAX));
            if R::TABLE.place.len() == 2 {
                statement = statement.bind(Pg(place.0)).bind(place.1);
            }
            let mut rows = bind_series(statement, key).fetch(&mut **lease);
            while let Some(row) = rows.try_next().await? {
                found.push(R::decode(&row, 0, series)?);
            }
            drop(rows);
            if found.len() == most {
                break;
            }
        }
        Ok(query.page_of(found)?)
    }

    /// A page of the latest records of a selection. `series` makes the series of a key; of bars, `interval`
    /// is theirs, and `lag` how long after its time a record is known.
    pub(super) async fn latest_page<K: Key, R: Stored>(
        &self,
        lease: &mut PooledConnection,
        selection: &Selection<K>,
        as_of: Option<Timestamp>,
        interval: Option<Interval>,
        series: impl Fn(&K) -> R::Series,
        query: &(impl Paged<R> + Sync),
    ) -> Result<Page<R>, Cause>
    where
        Self: Candidates<K>,
    {
        let after = K::of_anchor(query.anchor()?);
        let most = query.request().limit() + 1;
        // The last time that counts; a bar is known when it has closed.
        let until = match (as_of, interval) {
            (Some(time), Some(interval)) => time.checked_sub(interval.duration()),
            (Some(time), None) => Some(time),
            (None, _) => Some(Timestamp::MAX_RECORD),
        };
        let mut found = Vec::new();
        let mut after = after;
        while found.len() < most {
            let asked = most - found.len();
            let (keys, names, last) = self.candidates(lease, selection, after.as_ref(), asked).await?;
            let Some(until) = until else { break };
            let rows = self.latest_rows(lease, R::TABLE.dataset, &keys, until, interval).await?;
            for (place, name) in names.iter().enumerate() {
                if let Some(row) = rows.get(&place) {
                    found.push(R::decode(row, 1, &series(name))?);
                }
            }
            match names.into_iter().next_back() {
                Some(name) if !last => after = Some(name),
                _ => break,
            }
        }
        Ok(query.page_of(found)?)
    }

    /// The latest row of each key up to `until`, by its place in `keys`. It looks at the newest few chunks
    /// first, and further back only for what was not found.
    async fn latest_rows(
        &self,
        lease: &mut PooledConnection,
        dataset: Dataset,
        keys: &Keys,
        until: Timestamp,
        interval: Option<Interval>,
    ) -> Result<HashMap<usize, PgRow>, Cause> {
        let chunks = &self.inner.cache.chunks;
        let mut found = HashMap::new();
        if keys.len() == 0 {
            return Ok(found);
        }
        // No record is later than this, so the end is a time too.
        let until = until.min(Timestamp::MAX_RECORD);
        let end = Timestamp::from_micros(until.as_micros() + 1)?;
        let recent = chunks.recent(lease, dataset, until).await?.min(end);
        let mut missing: Vec<usize> = (0..keys.len()).collect();
        let mut part = Some(TimeRange::new(recent, end)?);
        let mut older = ChunkScan::new(TimeRange::before(recent), Order::Descending);
        while let Some(window) = part {
            let statement = sqlx::query(sql::of(dataset).latest.as_str());
            let mut statement =
                keys.only(&missing).bind(statement).bind(Pg(window.start())).bind(Pg(window.end()));
            if let Some(interval) = interval {
                statement = statement.bind(interval.as_str());
            }
            let mut rows = statement.fetch(&mut **lease);
            while let Some(row) = rows.try_next().await? {
                found.insert(missing[place_of(&row)?], row);
            }
            drop(rows);
            missing.retain(|place| !found.contains_key(place));
            if missing.is_empty() || window.start() == Timestamp::MIN {
                break;
            }
            part = older.next(lease, chunks, dataset).await?;
        }
        Ok(found)
    }

    /// The first and the last time of each key, by its place; a key without a record is absent.
    pub(super) async fn edges(
        &self,
        lease: &mut PooledConnection,
        dataset: Dataset,
        keys: &Keys,
    ) -> Result<HashMap<usize, (Timestamp, Timestamp)>, Cause> {
        let lasts = self.edge(lease, dataset, keys, Order::Descending).await?;
        // Only what has a last one has a first one.
        let mut places: Vec<usize> = lasts.keys().copied().collect();
        places.sort_unstable();
        let firsts = self.edge(lease, dataset, &keys.only(&places), Order::Ascending).await?;
        let both = places.into_iter().enumerate();
        Ok(both.filter_map(|(at, place)| Some((place, (*firsts.get(&at)?, lasts[&place])))).collect())
    }

    async fn edge(
        &self,
        lease: &mut PooledConnection,
        dataset: Dataset,
        keys: &Keys,
        order: Order,
    ) -> Result<HashMap<usize, Timestamp>, Cause> {
        let mut found: HashMap<usize, Timestamp> = HashMap::new();
        let mut missing: Vec<usize> = (0..keys.len()).collect();
        let mut walk = ChunkScan::new(TimeRange::ALL, order);
        let statement = match order {
            Order::Ascending => &sql::of(dataset).first_time,
            Order::Descending => &sql::of(dataset).last_time,
        };
        while !missing.is_empty()
            && let Some(part) = walk.next(lease, &self.inner.cache.chunks, dataset).await?
        {
            let query = keys.only(&missing).bind(sqlx::query(statement.as_str()));
            let mut query = query.bind(Pg(part.start())).bind(Pg(part.end()));
            if dataset == Dataset::Bars {
                query = query.bind(Interval::ALL.iter().map(|i| i.as_str()).collect::<Vec<_>>());
            }
            for row in query.fetch_all(&mut **lease).await? {
                let Pg(time) = row.try_get::<Pg<Timestamp>, _>(1)?;
                let place = missing[place_of(&row)?];
                // Of bars every interval has an answer of its own.
                found
                    .entry(place)
                    .and_modify(|known| {
                        *known = if order == Order::Ascending { time.min(*known) } else { time.max(*known) };
                    })
                    .or_insert(time);
            }
            missing.retain(|place| !found.contains_key(place));
        }
        Ok(found)
    }
}

/// The place in the array that the first column names, from 1.
fn place_of(row: &PgRow) -> Result<usize, sqlx::Error> {
    usize::try_from(row.try_get::<i64, _>(0)? - 1).map_err(|e| sqlx::Error::Decode(e.into()))
}

/// The range that is left behind a cursor, and the place in (time, sequence) to go on from.
fn resume(range: TimeRange, order: Order, anchor: &Anchor) -> Result<(TimeRange, (Timestamp, i64)), Cause> {
    let (start, end) = (range.start(), range.end());
    let next = |time: Timestamp| Timestamp::from_micros(time.as_micros() + 1);
    Ok(match (order, anchor) {
        (Order::Ascending, Anchor::Place(ts, seq)) => {
            let from = (*ts).max(start).min(end);
            (TimeRange::new(from, end)?, (*ts, seq.cast_signed()))
        }
        (Order::Descending, Anchor::Place(ts, seq)) => {
            let until = next(*ts)?.min(end).max(start);
            (TimeRange::new(start, until)?, (*ts, seq.cast_signed()))
        }
        (Order::Ascending, Anchor::Time(ts)) => {
            (TimeRange::new(next(*ts)?.max(start).min(end), end)?, (start, -1))
        }
        (Order::Descending, Anchor::Time(ts)) => {
            (TimeRange::new(start, (*ts).min(end).max(start))?, (end, 0))
        }
        // No sequence lies before 0, so both take in all of the range.
        (Order::Ascending, _) => (range, (start, -1)),
        (Order::Descending, _) => (range, (end, 0)),
    })
}

pub(super) fn bind_series<'q>(query: PgQuery<'q>, key: SeriesKey<'_>) -> PgQuery<'q> {
    match key {
        SeriesKey::Instrument(id) => query.bind(id),
        SeriesKey::Bars(id, interval) => query.bind(id).bind(interval.as_str()),
        SeriesKey::Scope(scope) => query.bind(scope.storage_text()),
    }
}

/// Who may have a latest record.
pub(super) trait Candidates<K> {
    /// The next keys behind `after` that may have one, as parameters and as themselves, and whether they are the
    /// last ones. `asked` is how many are wanted.
    fn candidates(
        &self,
        connection: &mut PgConnection,
        selection: &Selection<K>,
        after: Option<&K>,
        asked: usize,
    ) -> impl Future<Output = Result<(Keys, Vec<K>, bool), Cause>> + Send;
}

/// The next keys of a list that is in order.
fn behind<'k, K: Ord>(keys: &'k [K], after: Option<&K>, most: usize) -> (&'k [K], bool) {
    let start = after.map_or(0, |after| keys.partition_point(|key| key <= after));
    let end = keys.len().min(start + most);
    (&keys[start..end], end == keys.len())
}

impl Candidates<Instrument> for TimescaleStore {
    async fn candidates(
        &self,
        connection: &mut PgConnection,
        selection: &Selection<Instrument>,
        after: Option<&Instrument>,
        asked: usize,
    ) -> Result<(Keys, Vec<Instrument>, bool), Cause> {
        let names = &self.inner.cache.ids;
        let (met, last) = match selection {
            Selection::All => {
                let most = i64::try_from(asked).unwrap_or(i64::MAX);
                let met = names.list(connection, after, None, most).await?;
                let last = met.len() < asked;
                (met, last)
            }
            Selection::These(keys) => {
                // Names without an id have no record; those with one may lie behind them.
                let (mut part, mut last) = behind(keys, after, asked);
                let mut met = names.find_all(connection, part).await?;
                while met.is_empty() && !last {
                    (part, last) = behind(keys, part.last(), asked);
                    met = names.find_all(connection, part).await?;
                }
                (met, last)
            }
        };
        let ids = met.iter().map(|(_, id)| *id).collect();
        Ok((Keys::Ids(ids), met.into_iter().map(|(name, _)| name).collect(), last))
    }
}

/// The scopes that have snapshots, each found by one step in the primary key.
const SCOPES: &str = "WITH RECURSIVE s(scope, n) AS (\
    (SELECT scope, 1 FROM snapshots WHERE $1::text IS NULL OR scope > $1 ORDER BY scope LIMIT 1) \
    UNION ALL \
    SELECT (SELECT x.scope FROM snapshots x WHERE x.scope > s.scope ORDER BY x.scope LIMIT 1), s.n + 1 \
    FROM s WHERE s.scope IS NOT NULL AND s.n < $2) \
    SELECT scope FROM s WHERE scope IS NOT NULL ORDER BY scope";

impl Candidates<Scope> for TimescaleStore {
    async fn candidates(
        &self,
        connection: &mut PgConnection,
        selection: &Selection<Scope>,
        after: Option<&Scope>,
        asked: usize,
    ) -> Result<(Keys, Vec<Scope>, bool), Cause> {
        let (scopes, last) = match selection {
            Selection::All => {
                let rows = sqlx::query(SCOPES)
                    .bind(after.map(Scope::storage_text))
                    .bind(i32::try_from(asked).unwrap_or(i32::MAX))
                    .fetch_all(connection)
                    .await?;
                let read = |row: &PgRow| row.try_get::<Pg<Scope>, _>(0).map(|scope| scope.0);
                let scopes: Vec<Scope> = rows.iter().map(read).collect::<Result<_, _>>()?;
                let last = scopes.len() < asked;
                (scopes, last)
            }
            Selection::These(keys) => {
                let (part, last) = behind(keys, after, asked);
                (part.to_vec(), last)
            }
        };
        let texts = scopes.iter().map(Scope::storage_text).collect();
        Ok((Keys::Scopes(texts), scopes, last))
    }
}
