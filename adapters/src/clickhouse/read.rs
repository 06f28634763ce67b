//! Reads: pages of records, and the latest record of each owner.

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

/// Applies FINAL to each partition separately. This is safe because all versions of a key are in the same partition.
pub(super) const FINAL: &str = "SETTINGS do_not_merge_across_partitions_select_final = 1";

/// The maximum number of owners in one statement of `latest`. Their names fit into the maximum query size of 256 KiB.
const KEYS_AT_ONCE: usize = 500;

/// The maximum number of attempts of a read that concurrent deletions disturb.
const TRIES: usize = 100;

/// The maximum number of owners that are looked up individually, without a scan first. Each lookup
/// is a separate SELECT.
const FEW: usize = 16;

/// The maximum number of individual lookups in one statement.
const LOOKS_AT_ONCE: usize = 50;

/// The time spans before the newest time that are scanned first if there are many owners, in minutes.
const RECENT_MINUTES: [u32; 2] = [10, 7 * 24 * 60];

/// The number of rows that a scan reads in the time of one individual lookup.
const WORTH_A_LOOK: u64 = 100_000;

/// Returns a time as a literal: an integer of microseconds, never a double.
pub(super) fn at(time: Timestamp) -> String {
    format!("fromUnixTimestamp64Micro({}, 'UTC')", time.as_micros())
}

/// Returns the condition `ts >= .. AND ts < ..` for a range.
pub(super) fn within(time: &str, range: TimeRange) -> String {
    format!("{time} >= {} AND {time} < {}", at(range.start()), at(range.end()))
}

/// The latest records found so far, and the index of each owner's record.
struct Newest {
    records: RecordVec,
    of: HashMap<Owner, usize>,
}

/// A request for the latest records.
struct Latest<'a> {
    store: &'a ClickHouseStore,
    table: &'a Table,
    request: &'a LatestRequest,
    /// The SQL condition on the rows.
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
    /// Returns a page of one series in a range.
    ///
    /// The inner statement walks the sorting key in order and stops after one page. It sees every version of a row, but
    /// counts each key once. The outer statement reads the current versions of these rows. No column name begins with
    /// an underscore, so the aliases cannot collide with columns.
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
            bound = if table.sort_key().len() == 2 {
                // The server does not use the primary index for the tuple alone.
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
            // The inner and the outer statement see the table at different times. A row deleted in between would
            // shorten the page, and a short page means that no records follow. Such a page is read again.
            if found.len() == most || !full {
                return Ok(request.page_of(found)?);
            }
        }
        Err(Cause::Changing)
    }

    /// Returns a page of the latest records of a selection.
    pub(super) async fn latest_page(
        &self,
        table: &Table,
        request: &LatestRequest,
    ) -> Result<RecordPage, Cause> {
        // The statement excludes owners without a matching record. Otherwise a page with few matches among very many
        // owners would query all of them in turn.
        let mut counts = format!("1{}", table.of_interval(request.interval));
        if let (Some(_), Some(until)) = (request.as_of, request.until()) {
            let _ = write!(counts, " AND {} <= {}", table.time(), at(until));
        }
        kit::latest(request, KEYS_AT_ONCE, &mut Latest { store: self, table, request, counts }).await
    }

    /// Returns the latest record of each owner up to `until`.
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

    /// Finds the latest record of each owner. Returns the owners whose row was deleted after the query for its time.
    /// For these owners, an older record is now the latest.
    ///
    /// First queries the newest time of each owner over all row versions. Then reads the current rows
    /// at exactly these times.
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
        // Of several records with the same time, the last one by sequence number.
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

    /// Returns the newest time of each owner that has a record.
    ///
    /// Few owners are looked up individually in key order. Such a lookup reads little data, however many records the
    /// owner has, and takes a few milliseconds. Many owners are first searched together in the newest minutes and days,
    /// which contain most of them. For the remaining owners, the server estimates the rows to read. The estimate
    /// decides between one scan and individual lookups.
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

/// Returns the sort order, for example `ts DESC, seq DESC`.
fn ordered(table: &Table, direction: &str) -> String {
    table.sort_key().iter().map(|c| format!("{} {direction}", c.sql)).collect::<Vec<_>>().join(", ")
}

/// Returns the condition for the rows after a cursor.
fn behind(table: &Table, order: Order, anchor: &Anchor) -> Option<String> {
    let (strict, loose) = match order {
        Order::Ascending => (">", ">="),
        Order::Descending => ("<", "<="),
    };
    let time = table.time();
    match anchor {
        // The additional condition on the time lets the server use the primary index and read less than
        // half of the rows.
        Anchor::SortKey(ts, seq) => {
            let ts = at(*ts);
            Some(format!("{time} {loose} {ts} AND ({}) {strict} ({ts}, {seq})", table.places))
        }
        Anchor::Time(ts) => Some(format!("{time} {strict} {}", at(*ts))),
        _ => None,
    }
}
