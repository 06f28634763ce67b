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
use super::series::{TimeBounds, range_of};
use super::sql::RegisteredDataset;
use super::store::TimescaleStore;
use super::types::Pg;

type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

/// Owners that may have records, with their keys.
struct KeyedOwners {
    keys: OwnerKeys,
    owners: Vec<Owner>,
    /// The bounds of the owners' times, if the owners are of a complete catalog.
    bounds: Option<Vec<TimeBounds>>,
}

/// Owners as the parameter of a statement: ids of instruments, or names.
pub(super) enum OwnerKeys {
    Ids(Vec<i32>),
    Names(Vec<String>),
}

impl OwnerKeys {
    fn len(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::Names(names) => names.len(),
        }
    }

    /// Returns the keys at these indexes.
    fn select(&self, indexes: &[usize]) -> Self {
        match self {
            Self::Ids(ids) => Self::Ids(indexes.iter().map(|at| ids[*at]).collect()),
            Self::Names(names) => Self::Names(indexes.iter().map(|at| names[*at].clone()).collect()),
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
struct LatestQuery<'a> {
    store: &'a TimescaleStore,
    connection: &'a mut PooledConnection,
    registered: &'a RegisteredDataset,
    request: &'a LatestRequest,
}

impl LatestSource for LatestQuery<'_> {
    type Error = Cause;

    async fn owners(&mut self, after: Option<&Owner>, count: usize) -> Result<Vec<Owner>, Cause> {
        let Self { store, connection, registered, .. } = self;
        Ok(store.owners(connection, registered, None, after, count).await?.owners)
    }

    async fn newest(
        &mut self,
        owners: &[Owner],
        until: Timestamp,
        found: &mut RecordVec,
    ) -> Result<(), Cause> {
        let Self { store, connection, registered, request } = self;
        let KeyedOwners { keys, owners, .. } = store.keyed(connection, registered, owners).await?;
        let rows = store.latest_rows(connection, registered, &keys, until, request.interval).await?;
        // A series without any record should not be in the catalog.
        if rows.len() < owners.len()
            && request.selection == Selection::All
            && request.as_of.is_none()
            && request.interval.is_none()
        {
            let empty: Vec<_> = (0..owners.len()).filter(|index| !rows.contains_key(index)).collect();
            store.correct(connection, registered, &keys.select(&empty)).await;
        }
        for (index, owner) in owners.into_iter().enumerate() {
            if let Some(row) = rows.get(&index) {
                registered.table.read(row, 1, &request.series(owner), found)?;
            }
        }
        Ok(())
    }
}

impl TimescaleStore {
    /// Returns a page of one series in a range. Reads the range in parts that touch few chunks each.
    pub(super) async fn range_page(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        request: &RangeRequest,
    ) -> Result<RecordPage, Cause> {
        let anchor = request.anchor()?;
        let mut found = request.dataset.new_vec();
        let id = match &request.series.owner {
            Owner::Instrument(instrument) => {
                let Some(id) = self.inner.cache.ids.find(connection, instrument).await? else {
                    return Ok(request.page_of(found)?);
                };
                id
            }
            Owner::Name(_) => 0,
        };
        let limit = request.page.limit() + 1;
        let statement = match request.order {
            Order::Ascending => &registered.sql.ascending,
            Order::Descending => &registered.sql.descending,
        };
        let (range, sort_key) = rest_of(request.range, request.order, &anchor)?;
        // No sequence number is below 0, so both sort keys include the entire range.
        let unbounded = match request.order {
            Order::Ascending => (range.start(), -1),
            Order::Descending => (range.end(), 0),
        };
        let sort_key = sort_key.map_or(unbounded, |(ts, seq)| (ts, seq.cast_signed()));
        found.reserve(limit.min(MAX_PAGE + 1));
        let mut scan = ChunkScan::new(range, request.order);
        while let Some(part) = scan.next(connection, &self.inner.cache.chunks, registered).await? {
            let mut query = sqlx::query(statement.clone())
                .bind(Pg(part.start()))
                .bind(Pg(part.end()))
                .bind(i64::try_from(limit - found.len()).unwrap_or(i64::MAX));
            if request.dataset.seq().is_some() {
                query = query.bind(Pg(sort_key.0)).bind(sort_key.1);
            }
            query = match &request.series.owner {
                Owner::Instrument(_) => query.bind(id),
                Owner::Name(name) => query.bind(&**name),
            };
            if let Some(interval) = request.series.interval {
                query = query.bind(interval.as_str());
            }
            let mut rows = query.fetch(&mut **connection);
            while let Some(row) = rows.try_next().await? {
                registered.table.read(&row, 0, &request.series, &mut found)?;
            }
            drop(rows);
            if found.len() == limit {
                break;
            }
        }
        Ok(request.page_of(found)?)
    }

    /// Returns a page of the latest records of a selection.
    pub(super) async fn latest_page(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        request: &LatestRequest,
    ) -> Result<RecordPage, Cause> {
        kit::latest(request, MAX_PAGE + 1, &mut LatestQuery { store: self, connection, registered, request })
            .await
    }

    /// Returns a page of the owners that have records.
    pub(super) async fn series_page(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        request: &SeriesRequest,
    ) -> Result<Page<SeriesSummary>, Cause> {
        let mut after = owner_of(request.anchor()?);
        let limit = request.page.limit() + 1;
        let mut found = Vec::new();
        while found.len() < limit {
            let (count, exchange) = (limit - found.len(), request.exchange.as_ref());
            let KeyedOwners { keys, owners, bounds: recorded } =
                self.owners(connection, registered, exchange, after.as_ref(), count).await?;
            let last = owners.len() < count;
            let range = range_of(recorded.iter().flatten())?;
            let bounds = self.time_bounds(connection, registered, &keys, range).await?;
            let catalog = &self.inner.cache.series;
            let is_stale = |(index, recorded): (usize, &TimeBounds)| {
                let found = bounds.get(&index).copied();
                catalog.is_stale(registered, *recorded, found).then_some(index)
            };
            let stale: Vec<_> = recorded.iter().flatten().enumerate().filter_map(is_stale).collect();
            if !stale.is_empty() {
                self.correct(connection, registered, &keys.select(&stale)).await;
            }
            after = owners.last().cloned();
            for (index, owner) in owners.into_iter().enumerate() {
                if let Some((first, last)) = bounds.get(&index).copied() {
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
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        keys: &OwnerKeys,
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
        let recent = chunks.recent_start(connection, registered, until).await?.min(end);
        let mut missing: Vec<usize> = (0..keys.len()).collect();
        let mut part = Some(TimeRange::new(recent, end)?);
        let mut older = ChunkScan::new(TimeRange::before(recent), Order::Descending);
        while let Some(window) = part {
            let statement = sqlx::query(registered.sql.latest.clone());
            let mut statement =
                keys.select(&missing).bind(statement).bind(Pg(window.start())).bind(Pg(window.end()));
            if let Some(interval) = interval {
                statement = statement.bind(interval.as_str());
            }
            let mut rows = statement.fetch(&mut **connection);
            while let Some(row) = rows.try_next().await? {
                found.insert(missing[index_of(&row)?], row);
            }
            drop(rows);
            missing.retain(|index| !found.contains_key(index));
            if missing.is_empty() || window.start() == Timestamp::MIN {
                break;
            }
            part = older.next(connection, chunks, registered).await?;
        }
        Ok(found)
    }

    /// Corrects the catalog of these instruments. An error has no effect on the caller, because bounds may be too wide.
    /// For example, a reader may have no privilege to write.
    async fn correct(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        keys: &OwnerKeys,
    ) {
        let OwnerKeys::Ids(ids) = keys else { return };
        let work = async {
            let catalog = &self.inner.cache.series;
            let Some(epoch) = catalog.begin_correction(connection, registered).await? else {
                return Ok::<_, Cause>(());
            };
            let found = self.time_bounds(connection, registered, keys, TimeRange::ALL).await?;
            let found: Vec<_> =
                ids.iter().enumerate().map(|(index, id)| (*id, found.get(&index).copied())).collect();
            catalog.correct(connection, registered, epoch, &found).await
        };
        if let Err(error) = work.await {
            tracing::debug!(dataset = registered.table.name(), %error, "series catalog not corrected");
        }
    }

    /// Returns the first and the last time of each key in a range, by its index. A key without records is absent.
    async fn time_bounds(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        keys: &OwnerKeys,
        range: TimeRange,
    ) -> Result<HashMap<usize, TimeBounds>, Cause> {
        let lasts = self.time_bound(connection, registered, keys, range, Order::Descending).await?;
        // Only a key with a last time has a first time.
        let mut indexes: Vec<usize> = lasts.keys().copied().collect();
        indexes.sort_unstable();
        let firsts =
            self.time_bound(connection, registered, &keys.select(&indexes), range, Order::Ascending).await?;
        let both = indexes.into_iter().enumerate();
        Ok(both.filter_map(|(at, index)| Some((index, (*firsts.get(&at)?, lasts[&index])))).collect())
    }

    async fn time_bound(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        keys: &OwnerKeys,
        range: TimeRange,
        order: Order,
    ) -> Result<HashMap<usize, Timestamp>, Cause> {
        let mut found: HashMap<usize, Timestamp> = HashMap::new();
        let mut missing: Vec<usize> = (0..keys.len()).collect();
        let mut scan = ChunkScan::new(range, order);
        let statement = match order {
            Order::Ascending => &registered.sql.first_time,
            Order::Descending => &registered.sql.last_time,
        };
        while !missing.is_empty()
            && let Some(part) = scan.next(connection, &self.inner.cache.chunks, registered).await?
        {
            let query = keys.select(&missing).bind(sqlx::query(statement.clone()));
            let mut query = query.bind(Pg(part.start())).bind(Pg(part.end()));
            if registered.table.dataset.interval().is_some() {
                query = query.bind(Interval::ALL.iter().map(|i| i.as_str()).collect::<Vec<_>>());
            }
            for row in query.fetch_all(&mut **connection).await? {
                let Pg(time) = row.try_get::<Pg<Timestamp>, _>(1)?;
                let index = missing[index_of(&row)?];
                // The statement returns one row for each interval.
                found
                    .entry(index)
                    .and_modify(|known| {
                        *known = if order == Order::Ascending { time.min(*known) } else { time.max(*known) };
                    })
                    .or_insert(time);
            }
            missing.retain(|index| !found.contains_key(index));
        }
        Ok(found)
    }

    /// Returns the next owners after `after` that may have records, at most `count`.
    async fn owners(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        exchange: Option<&Exchange>,
        after: Option<&Owner>,
        count: usize,
    ) -> Result<KeyedOwners, Cause> {
        if registered.table.dataset.series() != SeriesType::Instrument {
            let owners = self.names(connection, registered, after, count).await?;
            return self.keyed(connection, registered, &owners).await;
        }
        let (after, limit) = (after.and_then(Owner::instrument), i64::try_from(count).unwrap_or(i64::MAX));
        let catalog = &self.inner.cache.series;
        let Some(cataloged) = catalog.list(connection, registered, after, exchange, limit).await? else {
            return Ok(KeyedOwners::of(self.inner.cache.ids.list(connection, after, exchange, limit).await?));
        };
        let bounds = cataloged.iter().map(|(.., bounds)| *bounds).collect();
        let owners = cataloged.into_iter().map(|(instrument, id, _)| (instrument, id)).collect();
        Ok(KeyedOwners { bounds: Some(bounds), ..KeyedOwners::of(owners) })
    }

    /// Returns these owners with their keys. Omits an instrument without an id, because it has no records.
    async fn keyed(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        owners: &[Owner],
    ) -> Result<KeyedOwners, Cause> {
        if registered.table.dataset.series() != SeriesType::Instrument {
            let keys = OwnerKeys::Names(owners.iter().filter_map(Owner::name).map(str::to_owned).collect());
            return Ok(KeyedOwners { keys, owners: owners.to_vec(), bounds: None });
        }
        Ok(KeyedOwners::of(self.inner.cache.ids.find_all(connection, &instruments(owners)).await?))
    }

    /// Returns the next names after `after` that have records. Merges the names of all parts of the table in order.
    async fn names(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        after: Option<&Owner>,
        limit: usize,
    ) -> Result<Vec<Owner>, Cause> {
        let mut found: BTreeSet<String> = BTreeSet::new();
        let mut scan = ChunkScan::new(TimeRange::ALL, Order::Descending);
        while let Some(part) = scan.next(connection, &self.inner.cache.chunks, registered).await? {
            let names: Vec<String> = sqlx::query_scalar(registered.sql.names.clone())
                .bind(after.and_then(Owner::name))
                .bind(i32::try_from(limit).unwrap_or(i32::MAX))
                .bind(Pg(part.start()))
                .bind(Pg(part.end()))
                .fetch_all(&mut **connection)
                .await?;
            found.extend(names);
        }
        Ok(found.into_iter().take(limit).map(|name| Owner::Name(name.into())).collect())
    }

    /// Returns the keys of a selection, or None for all owners.
    pub(super) async fn selected_keys(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        selection: &Selection<Owner>,
    ) -> Result<Option<OwnerKeys>, Cause> {
        match selection {
            Selection::All => Ok(None),
            Selection::Only(owners) => Ok(Some(self.keyed(connection, registered, owners).await?.keys)),
        }
    }
}

impl KeyedOwners {
    fn of(found: Vec<(Instrument, i32)>) -> Self {
        let keys = OwnerKeys::Ids(found.iter().map(|(_, id)| *id).collect());
        Self {
            keys,
            owners: found.into_iter().map(|(instrument, _)| Owner::Instrument(instrument)).collect(),
            bounds: None,
        }
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
fn index_of(row: &PgRow) -> Result<usize, sqlx::Error> {
    usize::try_from(row.try_get::<i64, _>(0)? - 1).map_err(|e| sqlx::Error::Decode(e.into()))
}
