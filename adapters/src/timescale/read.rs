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
use super::key_scan::{KeyScan, common};
use super::series::{TimeBounds, range_of};
use super::sql::RegisteredDataset;
use super::store::TimescaleStore;
use super::types::Pg;

/// The maximum number of owners in one round of `series`, unless the page is larger.
const MAX_OWNERS: usize = 1_000;

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

/// The latest rows of some keys, by the index of the key.
struct LatestRows {
    rows: HashMap<usize, PgRow>,
    /// The recorded bounds of the keys without a row in the newest chunks.
    bounds: HashMap<usize, TimeBounds>,
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
        let LatestRows { rows, bounds } =
            store.latest_rows(connection, registered, &keys, until, request.interval).await?;
        if request.as_of.is_none() && request.interval.is_none() {
            let mut stale = Vec::new();
            for (index, recorded) in bounds {
                let last = rows.get(&index).map(|row| registered.table.read_sort_key(row, 1)).transpose()?;
                let found = last.map(|(last, _)| (recorded.0, last));
                if store.inner.cache.series.is_stale(registered, recorded, found) {
                    stale.push(index);
                }
            }
            if !stale.is_empty() {
                store.correct(connection, registered, &keys.select(&stale)).await;
            }
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
        let mut width = 1;
        while found.len() < limit {
            // Any number of owners may have no record, so each round reads twice as many owners as the round before.
            let (wanted, exchange) = (limit - found.len(), request.exchange.as_ref());
            let count = (wanted * width).min(MAX_OWNERS).max(wanted);
            width = (width * 2).min(MAX_OWNERS);
            let KeyedOwners { keys, owners, bounds: recorded } =
                self.owners(connection, registered, exchange, after.as_ref(), count).await?;
            let last = owners.len() < count;
            let bounds = self.time_bounds(connection, registered, &keys, recorded.as_deref()).await?;
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

    /// Returns the latest row of each key up to `until`. Reads the newest chunks first, and the recorded bounds only of keys
    /// without a row there.
    async fn latest_rows(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        keys: &OwnerKeys,
        until: Timestamp,
        interval: Option<Interval>,
    ) -> Result<LatestRows, Cause> {
        let chunks = &self.inner.cache.chunks;
        let (mut rows, mut bounds) = (HashMap::new(), HashMap::new());
        if keys.len() == 0 {
            return Ok(LatestRows { rows, bounds });
        }
        // No record is later than `MAX_RECORD`, so the exclusive end is a valid time too.
        let until = until.min(Timestamp::MAX_RECORD);
        let end = Timestamp::from_micros(until.as_micros() + 1)?;
        let recent = chunks.recent_start(connection, registered, until).await?.min(end);
        let all: Vec<usize> = (0..keys.len()).collect();
        let newest = TimeRange::new(recent, end)?;
        read_latest(connection, registered, keys, (newest, &all), interval, &mut rows).await?;
        let missing: Vec<usize> = all.into_iter().filter(|index| !rows.contains_key(index)).collect();
        if missing.is_empty() {
            return Ok(LatestRows { rows, bounds });
        }
        let recorded = match keys.select(&missing) {
            OwnerKeys::Ids(ids) => self.inner.cache.series.bounds(connection, registered, ids).await?,
            OwnerKeys::Names(_) => None,
        };
        let older = TimeRange::before(recent);
        let mut ranges = Vec::new();
        match recorded {
            None => ranges.extend(missing.into_iter().map(|index| (index, older))),
            Some(recorded) => {
                for (at, recorded) in recorded {
                    ranges.push((missing[at], common(range_of(recorded)?, older)?));
                    bounds.insert(missing[at], recorded);
                }
            }
        }
        let mut scan = self.key_scan(connection, registered, ranges, Order::Descending).await?;
        while let Some((window, at)) = scan.next(connection, chunks, registered).await? {
            read_latest(connection, registered, keys, (window, &at), interval, &mut rows).await?;
            scan.remove_found(&rows);
        }
        Ok(LatestRows { rows, bounds })
    }

    /// Creates a search for the first or the last record of keys in these ranges.
    async fn key_scan(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        ranges: Vec<(usize, TimeRange)>,
        order: Order,
    ) -> Result<KeyScan, Cause> {
        let chunks = &self.inner.cache.chunks;
        let length = chunks.min_length(connection, registered).await?;
        let edge = |range| self.inner.cache.series.edge(registered, range, order);
        KeyScan::new(ranges, order, edge, |time| chunks.chunk_number(length, time.as_micros()))
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
            // A writer may have widened the recorded bounds since they were read.
            let found = self.time_bounds(connection, registered, keys, None).await?;
            let found: Vec<_> =
                ids.iter().enumerate().map(|(index, id)| (*id, found.get(&index).copied())).collect();
            catalog.correct(connection, registered, epoch, &found).await
        };
        if let Err(error) = work.await {
            tracing::debug!(dataset = registered.table.name(), %error, "series catalog not corrected");
        }
    }

    /// Returns the first and the last time of each key, by its index. A key without records is absent. Reads only within
    /// the recorded bounds, if they are known.
    async fn time_bounds(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        keys: &OwnerKeys,
        recorded: Option<&[TimeBounds]>,
    ) -> Result<HashMap<usize, TimeBounds>, Cause> {
        let ranges: Vec<TimeRange> = match recorded {
            Some(recorded) => recorded.iter().copied().map(range_of).collect::<Result<_, Cause>>()?,
            None => vec![TimeRange::ALL; keys.len()],
        };
        let all = ranges.iter().copied().enumerate().collect();
        let lasts = self.time_bound(connection, registered, keys, all, Order::Descending).await?;
        // Only a key with a last time has a first time.
        let found = lasts.keys().map(|index| (*index, ranges[*index])).collect();
        let firsts = self.time_bound(connection, registered, keys, found, Order::Ascending).await?;
        let both = lasts.into_iter();
        Ok(both.filter_map(|(index, last)| Some((index, (*firsts.get(&index)?, last)))).collect())
    }

    async fn time_bound(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        keys: &OwnerKeys,
        ranges: Vec<(usize, TimeRange)>,
        order: Order,
    ) -> Result<HashMap<usize, Timestamp>, Cause> {
        let mut found: HashMap<usize, Timestamp> = HashMap::new();
        let mut scan = self.key_scan(connection, registered, ranges, order).await?;
        let statement = match order {
            Order::Ascending => &registered.sql.first_time,
            Order::Descending => &registered.sql.last_time,
        };
        while let Some((part, at)) = scan.next(connection, &self.inner.cache.chunks, registered).await? {
            let query = keys.select(&at).bind(sqlx::query(statement.clone()));
            let mut query = query.bind(Pg(part.start())).bind(Pg(part.end()));
            if registered.table.dataset.interval().is_some() {
                query = query.bind(Interval::ALL.iter().map(|i| i.as_str()).collect::<Vec<_>>());
            }
            for row in query.fetch_all(&mut **connection).await? {
                let Pg(time) = row.try_get::<Pg<Timestamp>, _>(1)?;
                let index = at[index_of(&row)?];
                // The statement returns one row for each interval.
                found
                    .entry(index)
                    .and_modify(|known| {
                        *known = if order == Order::Ascending { time.min(*known) } else { time.max(*known) };
                    })
                    .or_insert(time);
            }
            scan.remove_found(&found);
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

/// Adds the latest row of each of these keys in a window.
async fn read_latest(
    connection: &mut PooledConnection,
    registered: &RegisteredDataset,
    keys: &OwnerKeys,
    (window, at): (TimeRange, &[usize]),
    interval: Option<Interval>,
    found: &mut HashMap<usize, PgRow>,
) -> Result<(), Cause> {
    let statement = sqlx::query(registered.sql.latest.clone());
    let mut statement = keys.select(at).bind(statement).bind(Pg(window.start())).bind(Pg(window.end()));
    if let Some(interval) = interval {
        statement = statement.bind(interval.as_str());
    }
    let mut rows = statement.fetch(&mut **connection);
    while let Some(row) = rows.try_next().await? {
        found.insert(at[index_of(&row)?], row);
    }
    Ok(())
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
