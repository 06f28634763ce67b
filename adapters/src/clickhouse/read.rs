//! Pages of records, and the latest of each key.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use qi_core::record::{Owner, RecordVec};
use qi_core::store::kit::{self, LatestSource};
use qi_core::store::{Anchor, LatestRequest, Order, Paged, RangeRequest, RecordPage};
use qi_core::{TimeRange, Timestamp};

use super::connect::rows;
use super::error::Cause;
use super::store::ClickHouseStore;
use super::table::{Table, read_time};
use super::wire::Reader;

/// Reads what is behind FINAL partition by partition: a key never leaves its partition, so that is safe.
pub(super) const FINAL: &str = "SETTINGS do_not_merge_across_partitions_select_final = 1";

/// How many keys one statement of `latest` asks for: their names are below the 256 KiB that a query may have.
const KEYS_AT_ONCE: usize = 500;

/// How often a read begins again because of deletions.
const TRIES: usize = 100;

/// So many keys are looked up one by one, each by a SELECT of its own.
const FEW: usize = 16;

/// How many such SELECTs one statement has.
const LOOKS_AT_ONCE: usize = 50;

/// Where many keys are looked for first: in so many minutes before the newest time of the table.
const RECENT_MINUTES: [u32; 2] = [10, 7 * 24 * 60];

/// So many rows can be read in the time of a look for one key.
const WORTH_A_LOOK: u64 = 100_000;

/// A time as a literal: an integer of microseconds, never a double.
pub(super) fn at(time: Timestamp) -> String {
    format!("fromUnixTimestamp64Micro({}, 'UTC')", time.as_micros())
}

/// `ts >= .. AND ts < ..`
pub(super) fn within(time: &str, range: TimeRange) -> String {
    format!("{time} >= {} AND {time} < {}", at(range.start()), at(range.end()))
}

/// The latest records that were found, and where the one of each owner stands.
struct Newest {
    records: RecordVec,
    of: HashMap<Owner, usize>,
}

/// A request for the latest records.
struct Latest<'a> {
    store: &'a ClickHouseStore,
    table: &'a Table,
    request: &'a LatestRequest,
    /// What a row must be to count.
    counts: String,
}

impl LatestSource for Latest<'_> {
    type Error = Cause;

    async fn owners(&mut self, after: Option<&Owner>, count: usize) -> Result<Vec<Owner>, Cause> {
        let Self { store, table, counts, .. } = self;
        let behind = after
            .map_or_else(String::new, |key| format!(" AND {} > {}", table.owner_tuple(), table.tuple(key)));
        let sql = format!(
            "SELECT {columns} FROM {name} WHERE {counts}{behind} GROUP BY {columns} ORDER BY {columns} LIMIT {count} \
             SETTINGS optimize_aggregation_in_order = 1",
            columns = table.owners,
            name = table.name,
        );
        rows(&store.inner.connections.plain, &sql, |row| table.read_owner(row)).await
    }

    async fn newest(
        &mut self,
        owners: &[Owner],
        until: Timestamp,
        found: &mut RecordVec,
    ) -> Result<(), Cause> {
        let met = self.store.latest_of(self.table, owners, until, self.request).await?;
        let mut met_at = owners.iter().filter_map(|owner| met.of.get(owner).copied());
        let end = found.len();
        met.records.as_records().copy_to(&mut met_at, found, end..end)?;
        Ok(())
    }
}

impl ClickHouseStore {
    /// A page of one series in a range.
    ///
    /// The inner statement walks the key in its order and stops after a page; it sees every version of a row, and
    /// counts each key once. The outer one reads the rows up to there as they are valid. No column has a name that
    /// begins with an underscore.
    pub(super) async fn page(&self, table: &Table, request: &RangeRequest) -> Result<RecordPage, Cause> {
        let RangeRequest { series, range, order, .. } = request;
        let most = request.page.limit() + 1;
        let client = &self.inner.connections.plain;
        let mut wanted = format!(
            "{}{} AND {}",
            table.condition(&series.owner),
            table.of_interval(series.interval),
            within(table.time(), *range)
        );
        if let Some(behind) = behind(table, *order, &request.anchor()?) {
            wanted = format!("{wanted} AND {behind}");
        }
        let (direction, edge, side) = match order {
            Order::Ascending => ("ASC", "max", "<="),
            Order::Descending => ("DESC", "min", ">="),
        };
        let (name, place, list) = (&table.name, &table.places, &table.reads);
        let sorted = ordered(table, direction);
        let sql = format!(
            "WITH (SELECT ({edge}(({place})), count()) FROM (SELECT {place} FROM {name} WHERE {wanted} \
             ORDER BY {sorted} LIMIT 1 BY {place} LIMIT {most})) AS _walk, _walk.1 AS _edge \
             SELECT toInt8(ifNull(_walk.2 = {most}, 0)), {list} FROM {name} FINAL \
             WHERE {wanted} AND ({place}) {side} _edge AND {bound} ORDER BY {sorted} LIMIT {most} {FINAL}",
            bound = if table.place().len() == 2 {
                // The tuple alone would not be looked up in the key.
                format!("{} {side} _edge.1", table.time())
            } else {
                "1".to_owned()
            },
        );
        let there = format!("SELECT toInt8(1) FROM {name} WHERE {wanted} LIMIT 1");
        for _ in 0..TRIES {
            let (mut full, mut found) = (false, request.dataset.new_vec());
            rows(client, &sql, |row| {
                full = row.i8()? != 0;
                table.read(row, series, &mut found)
            })
            .await?;
            if found.is_empty() {
                full = !rows(client, &there, |row| Ok(row.i8()?)).await?.is_empty();
            }
            // The two statements see the table one after the other. What was deleted between them would make a short
            // page, which says that nothing comes behind it: such a page is read again.
            if found.len() == most || !full {
                return Ok(request.page_of(found)?);
            }
        }
        Err(Cause::Changing)
    }

    /// A page of the latest records of a selection.
    pub(super) async fn latest_page(
        &self,
        table: &Table,
        request: &LatestRequest,
    ) -> Result<RecordPage, Cause> {
        // Keys without a record that counts are left out where they are looked for, or a short page of a few among
        // very many would ask for all of them in turn.
        let mut counts = format!("1{}", table.of_interval(request.interval));
        if let (Some(_), Some(until)) = (request.as_of, request.until()) {
            let _ = write!(counts, " AND {} <= {}", table.time(), at(until));
        }
        kit::latest(request, KEYS_AT_ONCE, &mut Latest { store: self, table, request, counts }).await
    }

    /// The latest record of each key up to `until`.
    async fn latest_of(
        &self,
        table: &Table,
        keys: &[Owner],
        until: Timestamp,
        request: &LatestRequest,
    ) -> Result<Newest, Cause> {
        let mut found = Newest { records: request.dataset.new_vec(), of: HashMap::new() };
        let mut left = keys.to_vec();
        for _ in 0..TRIES {
            left = self.newest_of(table, &left, until, request, &mut found).await?;
            if left.is_empty() {
                return Ok(found);
            }
        }
        Err(Cause::Changing)
    }

    /// Finds the latest record of each key. Returns the keys whose newest time was there and whose row was not: it was
    /// deleted in between, and an older record is the latest one now.
    ///
    /// First the newest time of each, whatever version of the row it is; then the rows of exactly these times as they
    /// are valid.
    async fn newest_of(
        &self,
        table: &Table,
        keys: &[Owner],
        until: Timestamp,
        request: &LatestRequest,
        found: &mut Newest,
    ) -> Result<Vec<Owner>, Cause> {
        let of_interval = table.of_interval(request.interval);
        let times = self.newest_times(table, keys, until, &of_interval).await?;
        if times.is_empty() {
            return Ok(Vec::new());
        }
        let exact: Vec<String> =
            times.iter().map(|(key, ts)| format!("({}, {})", Table::values(key), at(*ts))).collect();
        // Several records of one time: the last one by its place.
        let sql = format!(
            "SELECT {columns}, {list} FROM {name} FINAL WHERE ({columns}, {time}) IN ({exact}){of_interval} \
             ORDER BY {sorted} LIMIT 1 BY {columns} {FINAL}",
            columns = table.owners,
            list = table.reads,
            name = table.name,
            time = table.time(),
            exact = exact.join(", "),
            sorted = ordered(table, "DESC"),
        );
        rows(&self.inner.connections.plain, &sql, |row| {
            let series = request.series(table.read_owner(row)?);
            table.read(row, &series, &mut found.records)?;
            found.of.insert(series.owner, found.records.len() - 1);
            Ok(())
        })
        .await?;
        Ok(times.into_iter().map(|(key, _)| key).filter(|key| !found.of.contains_key(key)).collect())
    }

    /// The newest time of each key that has one.
    ///
    /// Few keys are looked up one by one in the order of the key, which reads little however much there is of each,
    /// and takes some milliseconds a key. Many are looked for all at once in the newest minutes and days, where most
    /// of them are; of what is left the server tells how much there would be to read.
    async fn newest_times(
        &self,
        table: &Table,
        keys: &[Owner],
        until: Timestamp,
        of_interval: &str,
    ) -> Result<Vec<(Owner, Timestamp)>, Cause> {
        let client = &self.inner.connections.plain;
        let (name, time, last) = (&table.name, table.time(), at(until));
        let read = |row: &mut Reader<'_>| Ok((table.read_owner(row)?, read_time(row)?));
        let at_once = |keys: &[Owner], bound: &str| {
            let named: Vec<String> = keys.iter().map(|key| table.tuple(key)).collect();
            format!(
                "SELECT {columns}, max({time}) FROM {name} WHERE {paren} IN ({named}){of_interval} \
                 AND {time} <= {last}{bound} GROUP BY {columns}",
                columns = table.owners,
                paren = table.owner_tuple(),
                named = named.join(", "),
            )
        };
        let newest = if until == Timestamp::MAX_RECORD {
            format!("(SELECT max({time}) FROM {name})")
        } else {
            last.clone()
        };
        let (mut found, mut left) = (Vec::new(), keys.to_vec());
        for minutes in RECENT_MINUTES {
            if left.len() <= FEW {
                break;
            }
            let bound = format!(" AND {time} >= {newest} - toIntervalMinute({minutes})");
            let met = rows(client, &at_once(&left, &bound), read).await?;
            let known: HashSet<&Owner> = met.iter().map(|(key, _)| key).collect();
            left.retain(|key| !known.contains(key));
            found.extend(met);
        }
        if left.len() > FEW {
            let rest = at_once(&left, "");
            let estimate = rows(client, &format!("EXPLAIN ESTIMATE {rest}"), |row| {
                let (_database, _table, _parts) = (row.text()?, row.text()?, row.u64()?);
                let (count, _marks) = (row.u64()?, row.u64()?);
                Ok(count)
            })
            .await?;
            if estimate.into_iter().sum::<u64>() <= left.len() as u64 * WORTH_A_LOOK {
                found.extend(rows(client, &rest, read).await?);
                return Ok(found);
            }
        }
        for part in left.chunks(LOOKS_AT_ONCE) {
            let each: Vec<String> = part
                .iter()
                .map(|key| {
                    format!(
                        "SELECT * FROM (SELECT {columns}, {time} FROM {name} \
                         WHERE {condition}{of_interval} AND {time} <= {last} ORDER BY {time} DESC LIMIT 1)",
                        columns = table.owners,
                        condition = table.condition(key),
                    )
                })
                .collect();
            found.extend(rows(client, &each.join(" UNION ALL "), read).await?);
        }
        Ok(found)
    }
}

/// `ts DESC, seq DESC`
fn ordered(table: &Table, direction: &str) -> String {
    table.place().iter().map(|c| format!("{} {direction}", c.sql)).collect::<Vec<_>>().join(", ")
}

/// What lies behind a cursor.
fn behind(table: &Table, order: Order, anchor: &Anchor) -> Option<String> {
    let (strict, loose) = match order {
        Order::Ascending => (">", ">="),
        Order::Descending => ("<", "<="),
    };
    let time = table.time();
    match anchor {
        // The time beside the tuple, so that the key is used: it reads less than half.
        Anchor::Place(ts, seq) => {
            let ts = at(*ts);
            Some(format!("{time} {loose} {ts} AND ({}) {strict} ({ts}, {seq})", table.places))
        }
        Anchor::Time(ts) => Some(format!("{time} {strict} {}", at(*ts))),
        _ => None,
    }
}
