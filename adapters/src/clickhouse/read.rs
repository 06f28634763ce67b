//! Pages of records, and the latest of each key.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use qi_core::store::{Anchor, Order, Page, Paged};
use qi_core::{Instrument, Interval, Scope, Selection, TimeRange, Timestamp};

use super::connect::rows;
use super::error::Cause;
use super::store::ClickHouseStore;
use super::table::{Stored, Table, literal, of_instrument, read_time};
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

/// What a key of a selection is to the tables.
pub(super) trait Key: Ord + Clone + Eq + std::hash::Hash + Send + Sync {
    /// The anchor of a page of the latest records, as a key.
    fn of_anchor(anchor: Anchor) -> Option<Self>;
    fn condition(&self) -> String;
    /// The columns of it.
    const COLUMNS: &'static str;
    fn read(row: &mut Reader<'_>) -> Result<Self, Cause>;
    /// The values of [`Key::COLUMNS`].
    fn values(&self) -> String;
    /// As one value to compare [`Key::COLUMNS`] with.
    fn tuple(&self) -> String {
        paren(&self.values())
    }
}

impl Key for Instrument {
    const COLUMNS: &'static str = "exchange, symbol";

    fn of_anchor(anchor: Anchor) -> Option<Self> {
        match anchor {
            Anchor::Instrument(instrument) => Some(instrument),
            _ => None,
        }
    }
    fn condition(&self) -> String {
        of_instrument(self)
    }
    fn read(row: &mut Reader<'_>) -> Result<Self, Cause> {
        let (exchange, symbol) = (row.text()?, row.text()?);
        format!("{exchange}:{symbol}").parse().map_err(Cause::Corrupt)
    }
    fn values(&self) -> String {
        format!("{}, {}", literal(self.exchange().as_str()), literal(self.symbol().as_str()))
    }
}

impl Key for Scope {
    const COLUMNS: &'static str = "scope";

    fn of_anchor(anchor: Anchor) -> Option<Self> {
        match anchor {
            Anchor::Scope(scope) => Some(scope),
            _ => None,
        }
    }
    fn condition(&self) -> String {
        format!("scope = {}", literal(&self.storage_text()))
    }
    fn read(row: &mut Reader<'_>) -> Result<Self, Cause> {
        Self::from_storage_text(row.text()?).map_err(Cause::Corrupt)
    }
    fn values(&self) -> String {
        literal(&self.storage_text())
    }
}

impl ClickHouseStore {
    /// A page of one series in a range.
    ///
    /// The inner statement walks the key in its order and stops after a page; it sees every version of a row, and
    /// counts each key once. The outer one reads the rows up to there as they are valid.
    pub(super) async fn page<R: Stored>(
        &self,
        series: &R::Series,
        range: TimeRange,
        order: Order,
        query: &(impl Paged<R> + Sync),
    ) -> Result<Page<R>, Cause> {
        let most = query.request().limit() + 1;
        let (table, client) = (R::TABLE, &self.inner.connections.plain);
        let mut wanted = format!("{} AND {}", R::condition(series), within(table.time(), range));
        if let Some(behind) = behind(&table, order, &query.anchor()?) {
            wanted = format!("{wanted} AND {behind}");
        }
        let (direction, edge, side) = match order {
            Order::Ascending => ("ASC", "max", "<="),
            Order::Descending => ("DESC", "min", ">="),
        };
        let (name, place) = (self.table(table.name), table.place_list());
        let sorted = ordered(&table, direction);
        let sql = format!(
            "WITH (SELECT ({edge}(({place})), count()) FROM (SELECT {place} FROM {name} WHERE {wanted} \
             ORDER BY {sorted} LIMIT 1 BY {place} LIMIT {most})) AS walk, walk.1 AS edge \
             SELECT toInt8(ifNull(walk.2 = {most}, 0)), {list} FROM {name} FINAL \
             WHERE {wanted} AND ({place}) {side} edge AND {bound} ORDER BY {sorted} LIMIT {most} {FINAL}",
            list = table.read_list(),
            bound = if table.place.len() == 2 {
                // The tuple alone would not be looked up in the key.
                format!("{} {side} edge.1", table.time())
            } else {
                "1".to_owned()
            },
        );
        let there = format!("SELECT toInt8(1) FROM {name} WHERE {wanted} LIMIT 1");
        for _ in 0..TRIES {
            let mut full = false;
            let found = rows(client, &sql, |row| {
                full = row.i8()? != 0;
                R::decode(row, series)
            })
            .await?;
            if found.is_empty() {
                full = !rows(client, &there, |row| Ok(row.i8()?)).await?.is_empty();
            }
            // The two statements see the table one after the other. What was deleted between them would make a short
            // page, which says that nothing comes behind it: such a page is read again.
            if found.len() == most || !full {
                return Ok(query.page_of(found)?);
            }
        }
        Err(Cause::Changing)
    }

    /// A page of the latest records of a selection. `series` makes the series of a key; of bars, `interval` is
    /// theirs.
    pub(super) async fn latest_page<K: Key, R: Stored>(
        &self,
        selection: &Selection<K>,
        as_of: Option<Timestamp>,
        interval: Option<Interval>,
        series: impl Fn(&K) -> R::Series + Send,
        query: &(impl Paged<R> + Sync),
    ) -> Result<Page<R>, Cause> {
        let mut after = K::of_anchor(query.anchor()?);
        let most = query.request().limit() + 1;
        // The last time that counts; a bar is known when it has closed.
        let until = match (as_of, interval) {
            (Some(time), Some(interval)) => time.checked_sub(interval.duration()),
            (Some(time), None) => Some(time),
            (None, _) => Some(Timestamp::MAX_RECORD),
        };
        // Keys without a record that counts are left out where they are looked for, or a short page of a few among
        // very many would ask for all of them in turn.
        let mut counts = "1".to_owned();
        if let Some(interval) = interval {
            let _ = write!(counts, " AND interval = {}", literal(interval.as_str()));
        }
        if let (Some(_), Some(until)) = (as_of, until) {
            let _ = write!(counts, " AND {} <= {}", R::TABLE.time(), at(until));
        }
        // Of keys that are named any number may be absent: each round asks for twice as many.
        let (mut found, mut width) = (Vec::new(), 1);
        while found.len() < most {
            let asked = ((most - found.len()) * width).min(KEYS_AT_ONCE).max(most - found.len());
            width = (width * 2).min(KEYS_AT_ONCE);
            let (keys, last) = self.candidates::<K, R>(selection, after.as_ref(), asked, &counts).await?;
            let Some(until) = until else { break };
            for part in keys.chunks(KEYS_AT_ONCE) {
                let met = self.latest_of::<K, R>(part, until, interval, &series).await?;
                found.extend(part.iter().filter_map(|key| met.get(key).cloned()));
            }
            match keys.into_iter().next_back() {
                Some(key) if !last => after = Some(key),
                _ => break,
            }
        }
        Ok(query.page_of(found)?)
    }

    /// The next keys that may have a latest record, and whether they are the last ones.
    async fn candidates<K: Key, R: Stored>(
        &self,
        selection: &Selection<K>,
        after: Option<&K>,
        asked: usize,
        counts: &str,
    ) -> Result<(Vec<K>, bool), Cause> {
        match selection {
            Selection::These(keys) => {
                let start = after.map_or(0, |after| keys.partition_point(|key| key <= after));
                let end = keys.len().min(start + asked);
                Ok((keys[start..end].to_vec(), end == keys.len()))
            }
            Selection::All => {
                let behind = after
                    .map_or_else(String::new, |key| format!(" AND {} > {}", paren(K::COLUMNS), key.tuple()));
                let sql = format!(
                    "SELECT {columns} FROM {name} WHERE {counts}{behind} GROUP BY {columns} ORDER BY {columns} LIMIT {asked} \
                     SETTINGS optimize_aggregation_in_order = 1",
                    columns = K::COLUMNS,
                    name = self.table(R::TABLE.name),
                );
                let keys = rows(&self.inner.connections.plain, &sql, K::read).await?;
                let last = keys.len() < asked;
                Ok((keys, last))
            }
        }
    }

    /// The latest record of each key up to `until`.
    async fn latest_of<K: Key, R: Stored>(
        &self,
        keys: &[K],
        until: Timestamp,
        interval: Option<Interval>,
        series: &(impl Fn(&K) -> R::Series + Send),
    ) -> Result<HashMap<K, R>, Cause> {
        let (mut found, mut left) = (HashMap::new(), keys.to_vec());
        for _ in 0..TRIES {
            let (met, gone) = self.newest_of(&left, until, interval, series).await?;
            found.extend(met);
            if gone.is_empty() {
                return Ok(found);
            }
            left = gone;
        }
        Err(Cause::Changing)
    }

    /// The latest record of each key, and the keys whose newest time was there and whose row was not: it was deleted
    /// in between, and an older record is the latest one now.
    ///
    /// First the newest time of each, whatever version of the row it is; then the rows of exactly these times as they
    /// are valid.
    async fn newest_of<K: Key, R: Stored>(
        &self,
        keys: &[K],
        until: Timestamp,
        interval: Option<Interval>,
        series: &(impl Fn(&K) -> R::Series + Send),
    ) -> Result<(HashMap<K, R>, Vec<K>), Cause> {
        let table = R::TABLE;
        let of_interval = interval
            .map_or_else(String::new, |interval| format!(" AND interval = {}", literal(interval.as_str())));
        let times = self.newest_times(keys, until, &table, &of_interval).await?;
        if times.is_empty() {
            return Ok((HashMap::new(), Vec::new()));
        }
        let exact: Vec<String> =
            times.iter().map(|(key, ts)| format!("({}, {})", key.values(), at(*ts))).collect();
        // Several records of one time: the last one by its place.
        let sql = format!(
            "SELECT {columns}, {list} FROM {name} FINAL WHERE ({columns}, {time}) IN ({exact}){of_interval} \
             ORDER BY {sorted} LIMIT 1 BY {columns} {FINAL}",
            columns = K::COLUMNS,
            list = table.read_list(),
            name = self.table(table.name),
            time = table.time(),
            exact = exact.join(", "),
            sorted = ordered(&table, "DESC"),
        );
        let found = rows(&self.inner.connections.plain, &sql, |row| {
            let key = K::read(row)?;
            let record = R::decode(row, &series(&key))?;
            Ok((key, record))
        })
        .await?;
        let found: HashMap<K, R> = found.into_iter().collect();
        let gone = times.into_iter().map(|(key, _)| key).filter(|key| !found.contains_key(key)).collect();
        Ok((found, gone))
    }

    /// The newest time of each key that has one.
    ///
    /// Few keys are looked up one by one in the order of the key, which reads little however much there is of each,
    /// and takes some milliseconds a key. Many are looked for all at once in the newest minutes and days, where most
    /// of them are; of what is left the server tells how much there would be to read.
    async fn newest_times<K: Key>(
        &self,
        keys: &[K],
        until: Timestamp,
        table: &Table,
        of_interval: &str,
    ) -> Result<Vec<(K, Timestamp)>, Cause> {
        let client = &self.inner.connections.plain;
        let (name, time, last) = (self.table(table.name), table.time(), at(until));
        let read = |row: &mut Reader<'_>| Ok((K::read(row)?, read_time(row)?));
        let at_once = |keys: &[K], bound: &str| {
            let named: Vec<String> = keys.iter().map(Key::tuple).collect();
            format!(
                "SELECT {columns}, max({time}) FROM {name} WHERE {paren} IN ({named}){of_interval} \
                 AND {time} <= {last}{bound} GROUP BY {columns}",
                columns = K::COLUMNS,
                paren = paren(K::COLUMNS),
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
            let known: HashSet<&K> = met.iter().map(|(key, _)| key).collect();
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
                        columns = K::COLUMNS,
                        condition = key.condition(),
                    )
                })
                .collect();
            found.extend(rows(client, &each.join(" UNION ALL "), read).await?);
        }
        Ok(found)
    }
}

/// `(exchange, symbol)`, or a single column as it is.
pub(super) fn paren(columns: &str) -> String {
    if columns.contains(',') { format!("({columns})") } else { columns.to_owned() }
}

/// `ts DESC, seq DESC`
fn ordered(table: &Table, direction: &str) -> String {
    table.place.iter().map(|c| format!("{} {direction}", c.name)).collect::<Vec<_>>().join(", ")
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
            Some(format!("{time} {loose} {ts} AND ({time}, seq) {strict} ({ts}, {seq})"))
        }
        Anchor::Time(ts) => Some(format!("{time} {strict} {}", at(*ts))),
        _ => None,
    }
}
