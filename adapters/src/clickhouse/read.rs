//! Reads: pages of records, and the latest record of each owner.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;

use qi_core::record::{Dataset, Owner, RecordVec};
use qi_core::store::kit::{self, LatestSource};
use qi_core::store::{Anchor, ArrowPage, LatestRequest, Order, PageRequest, Paged, RangeRequest, RecordPage};
use qi_core::{Bytes, TimeRange, Timestamp};

use super::connect::{MAX_RESPONSE_BYTES, fetch_as, rows};
use super::error::Cause;
use super::store::ClickHouseStore;
use super::table::{Table, read_time};
use super::wire::Reader;

/// Applies FINAL to each partition separately. This is safe because all versions of a key are in the same partition.
pub(super) const FINAL_SETTINGS: &str = "SETTINGS do_not_merge_across_partitions_select_final = 1";

/// The maximum number of owners in one statement of `latest`. Their names fit into the maximum query size of 256 KiB.
const MAX_OWNERS_PER_STATEMENT: usize = 500;

/// The maximum number of attempts of a read that concurrent deletions disturb.
const MAX_ATTEMPTS: usize = 100;

/// The maximum number of owners that are looked up individually, without a scan first. Each lookup
/// is a separate SELECT.
const MAX_OWNERS_WITHOUT_SCAN: usize = 16;

/// The maximum number of individual lookups in one statement.
const MAX_LOOKUPS_PER_STATEMENT: usize = 50;

/// The time spans before the time of the request that are scanned first if there are many owners, in minutes.
const RECENT_MINUTES: [u32; 2] = [10, 7 * 24 * 60];

/// The number of the largest pages of records in one page of Arrow.
const ARROW_PAGES: usize = 5;

/// The number of rows that a scan reads in the time of one individual lookup.
const ROWS_PER_LOOKUP: u64 = 100_000;

/// Returns a time as a literal: an integer of microseconds, never a double.
pub(super) fn time_literal(time: Timestamp) -> String {
    format!("fromUnixTimestamp64Micro({}, 'UTC')", time.as_micros())
}

/// Returns a time as text in UTC, only for the right side of `IN`. The server converts the text to the type of the
/// column on the left side, with its precision and its time zone. A function call for each time takes longer.
fn time_text(time: Timestamp) -> String {
    format!("'{}'", time.to_string().trim_end_matches('Z').replace('T', " "))
}

/// Returns the condition `ts >= .. AND ts < ..` for a range.
pub(super) fn range_condition(time: &str, range: TimeRange) -> String {
    format!("{time} >= {} AND {time} < {}", time_literal(range.start()), time_literal(range.end()))
}

/// The latest records found so far, and the index of each owner's record.
struct LatestRecords {
    records: RecordVec,
    index: HashMap<Owner, usize>,
}

/// The statements for one [`LatestRequest`].
struct LatestStatements<'a> {
    store: &'a ClickHouseStore,
    table: &'a Table,
    request: &'a LatestRequest,
    /// The SQL condition on the rows.
    condition: String,
}

impl LatestSource for LatestStatements<'_> {
    type Error = Cause;

    async fn owners(&mut self, after: Option<&Owner>, count: usize) -> Result<Vec<Owner>, Cause> {
        let Self { store, table, condition, .. } = self;
        let cursor = after.map_or_else(String::new, |key| {
            format!(" AND {} > {}", table.owner_tuple(), table.owner_value(key))
        });
        let sql = format!(
            "SELECT {columns} FROM {name} WHERE {condition}{cursor} GROUP BY {columns} ORDER BY {columns} LIMIT {count} \
             SETTINGS optimize_aggregation_in_order = 1",
            columns = table.owner_columns,
            name = table.name,
        );
        rows(&store.inner.connections.read_client, &sql, |row| table.read_owner(row)).await
    }

    async fn newest(
        &mut self,
        owners: &[Owner],
        until: Timestamp,
        found: &mut RecordVec,
    ) -> Result<(), Cause> {
        let latest = self.store.latest_records(self.table, owners, until, self.request).await?;
        let mut indexes = owners.iter().filter_map(|owner| latest.index.get(owner).copied());
        let end = found.len();
        latest.records.as_records().copy_to(&mut indexes, found, end..end)?;
        Ok(())
    }
}

impl ClickHouseStore {
    /// Returns a page of one series in a range.
    ///
    /// The inner statement walks the sorting key in order and stops after one page. It sees every version of a row, but
    /// counts each key once. The outer statement reads the current versions of these rows. No column name begins with
    /// an underscore, so the aliases cannot collide with columns.
    pub(super) async fn range_page(
        &self,
        table: &Table,
        request: &RangeRequest,
    ) -> Result<RecordPage, Cause> {
        let RangeRequest { series, order, .. } = request;
        let limit = request.page.limit() + 1;
        let client = &self.inner.connections.read_client;
        let condition = request_condition(table, request)?;
        let (direction, edge, side) = match order {
            Order::Ascending => ("ASC", "max", "<="),
            Order::Descending => ("DESC", "min", ">="),
        };
        let (name, sort_key, list) = (&table.name, &table.sort_key_columns, &table.record_columns);
        let sorted = order_by(table, direction);
        let sql = format!(
            "WITH (SELECT ({edge}(({sort_key})), count()) FROM (SELECT {sort_key} FROM {name} WHERE {condition} \
             ORDER BY {sorted} LIMIT 1 BY {sort_key} LIMIT {limit})) AS _page, _page.1 AS _last_key \
             SELECT toInt8(ifNull(_page.2 = {limit}, 0)), {list} FROM {name} FINAL \
             WHERE {condition} AND ({sort_key}) {side} _last_key AND {bound} ORDER BY {sorted} LIMIT {limit} {FINAL_SETTINGS}",
            bound = if table.sort_key().len() == 2 {
                // The server does not use the primary index for the tuple alone.
                format!("{} {side} _last_key.1", table.time())
            } else {
                "1".to_owned()
            },
        );
        let exists = format!("SELECT toInt8(1) FROM {name} WHERE {condition} LIMIT 1");
        for _ in 0..MAX_ATTEMPTS {
            let (mut full, mut found) = (false, request.dataset.new_vec());
            rows(client, &sql, |row| {
                full = row.i8()? != 0;
                table.read(row, series, &mut found)
            })
            .await?;
            if found.is_empty() {
                full = !rows(client, &exists, |row| Ok(row.i8()?)).await?.is_empty();
            }
            // The inner and the outer statement see the table at different times. A row deleted in between would
            // shorten the page, and a short page means that no records follow. Such a page is read again.
            if found.len() == limit || !full {
                return Ok(request.page_of(found)?);
            }
        }
        Err(Cause::ConcurrentChange)
    }

    /// Returns a large page of one series in a range, oldest first, in the format of Arrow.
    ///
    /// The first statement finds the end of the page, as in [`ClickHouseStore::range_page`]. The next page begins after
    /// that end, so rows that are deleted between the statements only shorten the page.
    pub(super) async fn arrow_page(&self, table: &Table, request: &RangeRequest) -> Result<ArrowPage, Cause> {
        let limit = arrow_rows(request.dataset);
        let client = &self.inner.connections.read_client;
        let condition = request_condition(table, request)?;
        let (name, sort_key, time) = (&table.name, &table.sort_key_columns, table.time());
        let has_seq = table.sort_key().len() == 2;
        let sorted = order_by(table, "ASC");
        let sql = format!(
            "SELECT {edge}, count() FROM (SELECT {sort_key} FROM {name} WHERE {condition} \
             ORDER BY {sorted} LIMIT 1 BY {sort_key} LIMIT {limit})",
            edge = if has_seq { format!("max(({sort_key}))") } else { format!("max({time})") },
        );
        let found = rows(client, &sql, |row| {
            let (micros, seq) = (row.i64()?, if has_seq { row.u64()? } else { 0 });
            Ok((micros, seq, row.u64()?))
        });
        let Some((micros, seq, count)) = found.await?.pop().filter(|(.., count)| *count > 0) else {
            return Ok(ArrowPage { ipc: Bytes::new(), next: None });
        };
        let edge = Timestamp::from_micros(micros).map_err(Cause::Corrupt)?;
        let until = time_literal(edge);
        let bound = if has_seq {
            // The server does not use the primary index for the tuple alone.
            format!("({sort_key}) <= ({until}, {seq}) AND {time} <= {until}")
        } else {
            format!("{time} <= {until}")
        };
        let sql = format!(
            "SELECT {list} FROM {name} FINAL WHERE {condition} AND {bound} ORDER BY {sorted} \
             {FINAL_SETTINGS}, output_format_arrow_compression_method = 'none', output_format_arrow_string_as_string = 1",
            list = table.arrow_columns,
        );
        let ipc = fetch_as(client, &sql, "ArrowStream").await?.into();
        let next = (count >= limit as u64).then(|| request.cursor_after((edge, seq)));
        Ok(ArrowPage { ipc, next })
    }

    /// Returns a page of the latest records of a selection.
    pub(super) async fn latest_page(
        &self,
        table: &Table,
        request: &LatestRequest,
    ) -> Result<RecordPage, Cause> {
        // `LatestStatements::owners` returns only owners with a matching record. Otherwise a page with few matches
        // among very many owners would query all of them in turn.
        let mut condition = format!("1{}", table.interval_condition(request.interval));
        // Without as_of, until() is the maximum time, and the condition would exclude nothing.
        if let (Some(_), Some(until)) = (request.as_of, request.until()) {
            let _ = write!(condition, " AND {} <= {}", table.time(), time_literal(until));
        }
        kit::latest(
            request,
            MAX_OWNERS_PER_STATEMENT,
            &mut LatestStatements { store: self, table, request, condition },
        )
        .await
    }

    /// Returns the latest record of each owner up to `until`.
    async fn latest_records(
        &self,
        table: &Table,
        owners: &[Owner],
        until: Timestamp,
        request: &LatestRequest,
    ) -> Result<LatestRecords, Cause> {
        let mut found = LatestRecords { records: request.dataset.new_vec(), index: HashMap::new() };
        let mut remaining = owners.to_vec();
        for _ in 0..MAX_ATTEMPTS {
            remaining = self.latest_attempt(table, &remaining, until, request, &mut found).await?;
            if remaining.is_empty() {
                return Ok(found);
            }
        }
        Err(Cause::ConcurrentChange)
    }

    /// Finds the latest record of each owner. Returns the owners whose row was deleted after the query for its time.
    /// For these owners, an older record is now the latest.
    ///
    /// First queries the newest time of each owner over all row versions. Then reads the current rows
    /// at exactly these times.
    async fn latest_attempt(
        &self,
        table: &Table,
        owners: &[Owner],
        until: Timestamp,
        request: &LatestRequest,
        found: &mut LatestRecords,
    ) -> Result<Vec<Owner>, Cause> {
        let interval_condition = table.interval_condition(request.interval);
        let times = self.newest_times(table, owners, until, &interval_condition).await?;
        if times.is_empty() {
            return Ok(Vec::new());
        }
        let exact: Vec<String> = times
            .iter()
            .map(|(owner, ts)| format!("({}, {})", Table::owner_literals(owner), time_text(*ts)))
            .collect();
        let moments: BTreeSet<String> = times.iter().map(|(_, ts)| time_text(*ts)).collect();
        // If several records have this time, the statement returns the record with the highest sequence number.
        let sql = format!(
            "SELECT {columns}, {list} FROM {name} FINAL PREWHERE {time} IN ({moments}) \
             WHERE ({columns}, {time}) IN ({exact}){interval_condition} \
             ORDER BY {sorted} LIMIT 1 BY {columns} {FINAL_SETTINGS}",
            columns = table.owner_columns,
            list = table.record_columns,
            name = table.name,
            time = table.time(),
            moments = moments.into_iter().collect::<Vec<_>>().join(", "),
            exact = exact.join(", "),
            sorted = order_by(table, "DESC"),
        );
        rows(&self.inner.connections.read_client, &sql, |row| {
            let series = request.series(table.read_owner(row)?);
            table.read(row, &series, &mut found.records)?;
            found.index.insert(series.owner, found.records.len() - 1);
            Ok(())
        })
        .await?;
        Ok(times
            .into_iter()
            .map(|(owner, _)| owner)
            .filter(|owner| !found.index.contains_key(owner))
            .collect())
    }

    /// Returns the newest time of each owner that has a record.
    ///
    /// The projection of the table has the newest time of every owner. Owners with records after `until` need a search.
    ///
    /// Few owners are looked up individually in key order. Such a lookup reads little data, however many records the
    /// owner has, and takes a few milliseconds. Many owners are first searched together in the newest minutes and days
    /// before `until`, which contain most of them. For the remaining owners, the server estimates the rows to read. The
    /// estimate decides between one scan and individual lookups.
    async fn newest_times(
        &self,
        table: &Table,
        owners: &[Owner],
        until: Timestamp,
        interval_condition: &str,
    ) -> Result<Vec<(Owner, Timestamp)>, Cause> {
        let client = &self.inner.connections.read_client;
        let (name, time, until_literal) = (&table.name, table.time(), time_literal(until));
        let read = |row: &mut Reader<'_>| Ok((table.read_owner(row)?, read_time(row)?));
        let scan = |owners: &[Owner], bound: &str| {
            let owner_values: Vec<String> = owners.iter().map(|owner| table.owner_value(owner)).collect();
            format!(
                "SELECT {columns}, max({time}) FROM {name} \
                 WHERE {owner_tuple} IN ({owner_values}){interval_condition}{bound} GROUP BY {columns}",
                columns = table.owner_columns,
                owner_tuple = table.owner_tuple(),
                owner_values = owner_values.join(", "),
            )
        };
        let newest = rows(client, &scan(owners, ""), read).await?;
        let (mut found, later): (Vec<_>, Vec<_>) = newest.into_iter().partition(|(_, ts)| *ts <= until);
        let mut remaining: Vec<Owner> = later.into_iter().map(|(owner, _)| owner).collect();
        let bound = format!(" AND {time} <= {until_literal}");
        for minutes in RECENT_MINUTES {
            if remaining.len() <= MAX_OWNERS_WITHOUT_SCAN {
                break;
            }
            let recent = format!("{bound} AND {time} >= {until_literal} - toIntervalMinute({minutes})");
            let newest_of_span = rows(client, &scan(&remaining, &recent), read).await?;
            let known: HashSet<&Owner> = newest_of_span.iter().map(|(owner, _)| owner).collect();
            remaining.retain(|owner| !known.contains(owner));
            found.extend(newest_of_span);
        }
        if remaining.len() > MAX_OWNERS_WITHOUT_SCAN {
            let full_scan = scan(&remaining, &bound);
            let estimate = rows(client, &format!("EXPLAIN ESTIMATE {full_scan}"), |row| {
                let (_database, _table, _parts) = (row.text()?, row.text()?, row.u64()?);
                let (count, _marks) = (row.u64()?, row.u64()?);
                Ok(count)
            })
            .await?;
            if estimate.into_iter().sum::<u64>() <= remaining.len() as u64 * ROWS_PER_LOOKUP {
                found.extend(rows(client, &full_scan, read).await?);
                return Ok(found);
            }
        }
        for part in remaining.chunks(MAX_LOOKUPS_PER_STATEMENT) {
            let lookups: Vec<String> = part
                .iter()
                .map(|owner| {
                    format!(
                        "SELECT * FROM (SELECT {columns}, {time} FROM {name} \
                         WHERE {condition}{interval_condition} AND {time} <= {until_literal} ORDER BY {time} DESC LIMIT 1)",
                        columns = table.owner_columns,
                        condition = table.owner_condition(owner),
                    )
                })
                .collect();
            found.extend(rows(client, &lookups.join(" UNION ALL "), read).await?);
        }
        Ok(found)
    }
}

/// Returns the largest number of rows in one page of Arrow. The largest records fill at most half of a response.
fn arrow_rows(dataset: Dataset) -> usize {
    let most = MAX_RESPONSE_BYTES / 2 / dataset.record_width();
    (ARROW_PAGES * PageRequest::bulk(dataset).limit()).min(most).max(1)
}

/// Returns the sort order, for example `ts DESC, seq DESC`.
fn order_by(table: &Table, direction: &str) -> String {
    table.sort_key().iter().map(|c| format!("{} {direction}", c.sql)).collect::<Vec<_>>().join(", ")
}

/// Returns the condition for the rows of a request after its cursor.
fn request_condition(table: &Table, request: &RangeRequest) -> Result<String, Cause> {
    let RangeRequest { series, range, order, .. } = request;
    let mut condition = format!(
        "{}{} AND {}",
        table.owner_condition(&series.owner),
        table.interval_condition(series.interval),
        range_condition(table.time(), *range)
    );
    if let Some(cursor) = cursor_condition(table, *order, &request.anchor()?) {
        condition = format!("{condition} AND {cursor}");
    }
    Ok(condition)
}

/// Returns the condition for the rows after a cursor.
fn cursor_condition(table: &Table, order: Order, anchor: &Anchor) -> Option<String> {
    let (strict, loose) = match order {
        Order::Ascending => (">", ">="),
        Order::Descending => ("<", "<="),
    };
    let time = table.time();
    match anchor {
        // The additional condition on the time lets the server use the primary index and read less than
        // half of the rows.
        Anchor::SortKey(ts, seq) => {
            let ts = time_literal(*ts);
            Some(format!("{time} {loose} {ts} AND ({}) {strict} ({ts}, {seq})", table.sort_key_columns))
        }
        Anchor::Time(ts) => Some(format!("{time} {strict} {}", time_literal(*ts))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use qi_core::PriceTick;
    use qi_core::record::{Column, ColumnType, Description, SeriesType};

    use super::*;

    #[test]
    fn times_as_text_are_exact() {
        assert_eq!(time_text(Timestamp::MIN), "'1970-01-05 00:00:00'");
        assert_eq!(time_text(Timestamp::MAX_RECORD), "'2261-12-31 23:59:59.999999'");
        let with_fraction = Timestamp::from_micros(1_700_000_000_000_001).unwrap();
        assert_eq!(time_text(with_fraction), "'2023-11-14 22:13:20.000001'");
    }

    #[test]
    fn pages_of_arrow_fit_into_a_response() {
        const LEVELS: ColumnType = ColumnType::Levels { max: 1_000 };
        const VALUES: [Column; 2] = [
            Column { name: "bids", ty: LEVELS, optional: false },
            Column { name: "asks", ty: LEVELS, optional: false },
        ];
        let books = Dataset::declare(Description {
            name: "books",
            version: 1,
            message: "book",
            topic: "books",
            series: SeriesType::Instrument,
            interval: None,
            time: "ts",
            seq: None,
            values: &VALUES,
            new_vec: |dataset| dataset.new_vec(),
        })
        .unwrap();
        for dataset in [PriceTick::DATASET, books] {
            assert!(arrow_rows(dataset) * dataset.record_width() <= MAX_RESPONSE_BYTES / 2, "{dataset}");
        }
        assert_eq!((arrow_rows(PriceTick::DATASET), arrow_rows(books)), (250_000, 2_095));
    }
}
