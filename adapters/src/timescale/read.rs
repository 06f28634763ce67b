//! Reads: pages of records, and the latest record of each owner.

use std::collections::{BTreeSet, HashMap};

use futures::TryStreamExt;
use qi_core::record::{Owner, RecordVec, SeriesType};
use qi_core::store::kit::{self, LatestSource, rest_of};
use qi_core::store::{
    Anchor, LatestRequest, MAX_PAGE, Order, Page, Paged as _, RangeRequest, RecordPage, SeriesRequest,
    SeriesSummary,
};
use qi_core::{Exchange, Instrument, Interval, Selection, TimeRange, Timestamp};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row};

use super::chunks::ChunkScan;
use super::connect::PooledConnection;
use super::error::Cause;
use super::sql::Stored;
use super::store::TimescaleStore;
use super::types::Pg;

type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

/// Owners that may have records, with their keys.
struct Keyed {
    keys: Keys,
    owners: Vec<Owner>,
}

/// Owners as the parameter of a statement: ids of instruments, or names.
pub(super) enum Keys {
    Ids(Vec<i32>),
    Names(Vec<String>),
}

impl Keys {
    fn len(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::Names(names) => names.len(),
        }
    }

    /// Returns the keys at these indexes.
    fn only(&self, places: &[usize]) -> Self {
        match self {
            Self::Ids(ids) => Self::Ids(places.iter().map(|at| ids[*at]).collect()),
            Self::Names(names) => Self::Names(places.iter().map(|at| names[*at].clone()).collect()),
        }
    }

    pub(super) fn bind<'q>(&self, query: PgQuery<'q>) -> PgQuery<'q> {
        match self {
            Self::Ids(ids) => query.bind(ids.clone()),
            Self::Names(names) => query.bind(names.clone()),
        }
    }
}

/// A request for the latest records.
struct Latest<'a> {
    store: &'a TimescaleStore,
    lease: &'a mut PooledConnection,
    stored: &'a Stored,
    request: &'a LatestRequest,
}

impl LatestSource for Latest<'_> {
    type Error = Cause;

    async fn owners(&mut self, after: Option<&Owner>, count: usize) -> Result<Vec<Owner>, Cause> {
        let Self { store, lease, stored, .. } = self;
        Ok(store.owners(lease, stored, None, after, count).await?.owners)
    }

    async fn newest(
        &mut self,
        owners: &[Owner],
        until: Timestamp,
        found: &mut RecordVec,
    ) -> Result<(), Cause> {
        let Self { store, lease, stored, request } = self;
        let Keyed { keys, owners } = store.keyed(lease, stored, owners).await?;
        let rows = store.latest_rows(lease, stored, &keys, until, request.interval).await?;
        for (place, owner) in owners.into_iter().enumerate() {
            if let Some(row) = rows.get(&place) {
                stored.table.read(row, 1, &request.series(owner), found)?;
            }
        }
        Ok(())
    }
}

impl TimescaleStore {
    /// Returns a page of one series in a range. Reads the range in parts that touch few chunks each.
    pub(super) async fn range_page(
        &self,
        lease: &mut PooledConnection,
        stored: &Stored,
        request: &RangeRequest,
    ) -> Result<RecordPage, Cause> {
        let anchor = request.anchor()?;
        let mut found = request.dataset.new_vec();
        let id = match &request.series.owner {
            Owner::Instrument(instrument) => {
                let Some(id) = self.inner.cache.ids.find(lease, instrument).await? else {
                    return Ok(request.page_of(found)?);
                };
                id
            }
            Owner::Name(_) => 0,
        };
        let most = request.page.limit() + 1;
        let statement = match request.order {
            Order::Ascending => &stored.sql.ascending,
            Order::Descending => &stored.sql.descending,
        };
        let (range, place) = rest_of(request.range, request.order, &anchor)?;
        // No sequence number is below 0, so both places include the entire range.
        let everything = match request.order {
            Order::Ascending => (range.start(), -1),
            Order::Descending => (range.end(), 0),
        };
        let place = place.map_or(everything, |(ts, seq)| (ts, seq.cast_signed()));
        found.reserve(most.min(10_001));
        let mut walk = ChunkScan::new(range, request.order);
        while let Some(part) = walk.next(lease, &self.inner.cache.chunks, stored).await? {
            let mut query = sqlx::query(statement.clone())
                .bind(Pg(part.start()))
                .bind(Pg(part.end()))
                .bind(i64::try_from(most - found.len()).unwrap_or(i64::MAX));
            if request.dataset.seq().is_some() {
                query = query.bind(Pg(place.0)).bind(place.1);
            }
            query = match &request.series.owner {
                Owner::Instrument(_) => query.bind(id),
                Owner::Name(name) => query.bind(&**name),
            };
            if let Some(interval) = request.series.interval {
                query = query.bind(interval.as_str());
            }
            let mut rows = query.fetch(&mut **lease);
            while let Some(row) = rows.try_next().await? {
                stored.table.read(&row, 0, &request.series, &mut found)?;
            }
            drop(rows);
            if found.len() == most {
                break;
            }
        }
        Ok(request.page_of(found)?)
    }

    /// Returns a page of the latest records of a selection.
    pub(super) async fn latest_page(
        &self,
        lease: &mut PooledConnection,
        stored: &Stored,
        request: &LatestRequest,
    ) -> Result<RecordPage, Cause> {
        kit::latest(request, MAX_PAGE + 1, &mut Latest { store: self, lease, stored, request }).await
    }

    /// Returns a page of the owners that have records.
    pub(super) async fn series_page(
        &self,
        lease: &mut PooledConnection,
        stored: &Stored,
        request: &SeriesRequest,
    ) -> Result<Page<SeriesSummary>, Cause> {
        let mut after = owner_of(request.anchor()?);
        let most = request.page.limit() + 1;
        let mut found = Vec::new();
        while found.len() < most {
            let (asked, exchange) = (most - found.len(), request.exchange.as_ref());
            let Keyed { keys, owners } = self.owners(lease, stored, exchange, after.as_ref(), asked).await?;
            let last = owners.len() < asked;
            let edges = self.edges(lease, stored, &keys).await?;
            after = owners.last().cloned();
            for (place, owner) in owners.into_iter().enumerate() {
                if let Some((first, last)) = edges.get(&place).copied() {
                    found.push(SeriesSummary::new(owner, first, last));
                }
            }
            if last {
                break;
            }
        }
        Ok(request.page_of(found)?)
    }

    /// Returns the latest row of each key up to `until`, by its index in `keys`. Reads the newest chunks first, and
    /// older chunks only for keys without a row so far.
    async fn latest_rows(
        &self,
        lease: &mut PooledConnection,
        stored: &Stored,
        keys: &Keys,
        until: Timestamp,
        interval: Option<Interval>,
    ) -> Result<HashMap<usize, PgRow>, Cause> {
        let chunks = &self.inner.cache.chunks;
        let mut found = HashMap::new();
        if keys.len() == 0 {
            return Ok(found);
        }
        // No record is later than `MAX_RECORD`, so the exclusive end is a valid time too.
        let until = until.min(Timestamp::MAX_RECORD);
        let end = Timestamp::from_micros(until.as_micros() + 1)?;
        let recent = chunks.recent(lease, stored, until).await?.min(end);
        let mut missing: Vec<usize> = (0..keys.len()).collect();
        let mut part = Some(TimeRange::new(recent, end)?);
        let mut older = ChunkScan::new(TimeRange::before(recent), Order::Descending);
        while let Some(window) = part {
            let statement = sqlx::query(stored.sql.latest.clone());
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
            part = older.next(lease, chunks, stored).await?;
        }
        Ok(found)
    }

    /// Returns the first and the last time of each key, by its index. A key without records is absent.
    async fn edges(
        &self,
        lease: &mut PooledConnection,
        stored: &Stored,
        keys: &Keys,
    ) -> Result<HashMap<usize, (Timestamp, Timestamp)>, Cause> {
        let lasts = self.edge(lease, stored, keys, Order::Descending).await?;
        // Only a key with a last time has a first time.
        let mut places: Vec<usize> = lasts.keys().copied().collect();
        places.sort_unstable();
        let firsts = self.edge(lease, stored, &keys.only(&places), Order::Ascending).await?;
        let both = places.into_iter().enumerate();
        Ok(both.filter_map(|(at, place)| Some((place, (*firsts.get(&at)?, lasts[&place])))).collect())
    }

    async fn edge(
        &self,
        lease: &mut PooledConnection,
        stored: &Stored,
        keys: &Keys,
        order: Order,
    ) -> Result<HashMap<usize, Timestamp>, Cause> {
        let mut found: HashMap<usize, Timestamp> = HashMap::new();
        let mut missing: Vec<usize> = (0..keys.len()).collect();
        let mut walk = ChunkScan::new(TimeRange::ALL, order);
        let statement = match order {
            Order::Ascending => &stored.sql.first_time,
            Order::Descending => &stored.sql.last_time,
        };
        while !missing.is_empty()
            && let Some(part) = walk.next(lease, &self.inner.cache.chunks, stored).await?
        {
            let query = keys.only(&missing).bind(sqlx::query(statement.clone()));
            let mut query = query.bind(Pg(part.start())).bind(Pg(part.end()));
            if stored.table.dataset.interval().is_some() {
                query = query.bind(Interval::ALL.iter().map(|i| i.as_str()).collect::<Vec<_>>());
            }
            for row in query.fetch_all(&mut **lease).await? {
                let Pg(time) = row.try_get::<Pg<Timestamp>, _>(1)?;
                let place = missing[place_of(&row)?];
                // The statement returns one row for each interval.
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

    /// Returns the next owners after `after` that may have records, at most `count`.
    async fn owners(
        &self,
        lease: &mut PooledConnection,
        stored: &Stored,
        exchange: Option<&Exchange>,
        after: Option<&Owner>,
        count: usize,
    ) -> Result<Keyed, Cause> {
        if stored.table.dataset.series() != SeriesType::Instrument {
            let owners = self.names(lease, stored, after, count).await?;
            return self.keyed(lease, stored, &owners).await;
        }
        let (after, most) = (after.and_then(Owner::instrument), i64::try_from(count).unwrap_or(i64::MAX));
        Ok(Keyed::of(self.inner.cache.ids.list(lease, after, exchange, most).await?))
    }

    /// Returns these owners with their keys. Omits an instrument without an id, because it has no records.
    async fn keyed(
        &self,
        lease: &mut PooledConnection,
        stored: &Stored,
        owners: &[Owner],
    ) -> Result<Keyed, Cause> {
        if stored.table.dataset.series() != SeriesType::Instrument {
            let keys = Keys::Names(owners.iter().filter_map(Owner::name).map(str::to_owned).collect());
            return Ok(Keyed { keys, owners: owners.to_vec() });
        }
        Ok(Keyed::of(self.inner.cache.ids.find_all(lease, &instruments(owners)).await?))
    }

    /// Returns the next names after `after` that have records. Merges the names of all parts of the table in order.
    async fn names(
        &self,
        lease: &mut PooledConnection,
        stored: &Stored,
        after: Option<&Owner>,
        asked: usize,
    ) -> Result<Vec<Owner>, Cause> {
        let mut found: BTreeSet<String> = BTreeSet::new();
        let mut walk = ChunkScan::new(TimeRange::ALL, Order::Descending);
        while let Some(part) = walk.next(lease, &self.inner.cache.chunks, stored).await? {
            let names: Vec<String> = sqlx::query_scalar(stored.sql.names.clone())
                .bind(after.and_then(Owner::name))
                .bind(i32::try_from(asked).unwrap_or(i32::MAX))
                .bind(Pg(part.start()))
                .bind(Pg(part.end()))
                .fetch_all(&mut **lease)
                .await?;
            found.extend(names);
        }
        Ok(found.into_iter().take(asked).map(|name| Owner::Name(name.into())).collect())
    }

    /// Returns the keys of a selection, or None for all owners.
    pub(super) async fn selected(
        &self,
        lease: &mut PooledConnection,
        stored: &Stored,
        selection: &Selection<Owner>,
    ) -> Result<Option<Keys>, Cause> {
        match selection {
            Selection::All => Ok(None),
            Selection::Only(owners) => Ok(Some(self.keyed(lease, stored, owners).await?.keys)),
        }
    }
}

impl Keyed {
    fn of(met: Vec<(Instrument, i32)>) -> Self {
        let keys = Keys::Ids(met.iter().map(|(_, id)| *id).collect());
        Self { keys, owners: met.into_iter().map(|(instrument, _)| Owner::Instrument(instrument)).collect() }
    }
}

fn instruments(owners: &[Owner]) -> Vec<Instrument> {
    owners.iter().filter_map(Owner::instrument).cloned().collect()
}

fn owner_of(anchor: Anchor) -> Option<Owner> {
    match anchor {
        Anchor::Owner(owner) => Some(owner),
        _ => None,
    }
}

/// Returns the index in the first column of a row, which counts from 1.
fn place_of(row: &PgRow) -> Result<usize, sqlx::Error> {
    usize::try_from(row.try_get::<i64, _>(0)? - 1).map_err(|e| sqlx::Error::Decode(e.into()))
}
