//! Pages of records, and the latest of each key.

use std::collections::HashMap;

use qi_core::store::{Anchor, Order, Page, Paged};
use qi_core::{Instrument, Interval, Scope, Selection, TimeRange, Timestamp};

use super::ClickHouseStore;
use super::client::rows;
use super::error::Cause;
use super::rowbinary::Reader;
use super::table::{Stored, Table, literal, of_instrument, read_time};

/// Reads what is behind FINAL partition by partition: a key never leaves its partition, so that is safe.
pub(super) const FINAL: &str = "SETTINGS do_not_merge_across_partitions_select_final = 1";

/// How many keys one statement of `latest` asks for: each is a SELECT of its own in it.
const KEYS_AT_ONCE: usize = 50;

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
    /// As a value to compare [`Key::COLUMNS`] with.
    fn tuple(&self) -> String;
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
        format!("{exchange}:{symbol}").parse().map_err(Cause::corrupt)
    }
    fn tuple(&self) -> String {
        format!("({}, {})", literal(self.exchange().as_str()), literal(self.symbol().as_str()))
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
        Self::from_storage_text(row.text()?).map_err(Cause::corrupt)
    }
    fn tuple(&self) -> String {
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
        let table = R::TABLE;
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
            "WITH (SELECT {edge}(({place})) FROM (SELECT {place} FROM {name} WHERE {wanted} \
             ORDER BY {sorted} LIMIT 1 BY {place} LIMIT {most})) AS edge \
             SELECT {list} FROM {name} FINAL WHERE {wanted} AND ({place}) {side} edge AND {bound} \
             ORDER BY {sorted} LIMIT {most} {FINAL}",
            list = table.read_list(),
            bound = if table.place.len() == 2 {
                // The tuple alone would not be looked up in the key.
                format!("{} {side} edge.1", table.time())
            } else {
                "1".to_owned()
            },
        );
        let found = rows(&self.inner.connections.plain, &sql, |row| R::decode(row, series)).await?;
        Ok(query.page_of(found)?)
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
        let mut found = Vec::new();
        while found.len() < most {
            let asked = most - found.len();
            let (keys, last) = self.candidates::<K, R>(selection, after.as_ref(), asked).await?;
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
    ) -> Result<(Vec<K>, bool), Cause> {
        match selection {
            Selection::These(keys) => {
                let start = after.map_or(0, |after| keys.partition_point(|key| key <= after));
                let end = keys.len().min(start + asked);
                Ok((keys[start..end].to_vec(), end == keys.len()))
            }
            Selection::All => {
                let behind = after
                    .map_or_else(String::new, |key| format!("WHERE {} > {}", paren(K::COLUMNS), key.tuple()));
                let sql = format!(
                    "SELECT {columns} FROM {name} {behind} GROUP BY {columns} ORDER BY {columns} LIMIT {asked} \
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
    ///
    /// First the newest place of each by the order of the key, whatever version of the row it is; then the rows of
    /// exactly these keys as they are valid.
    async fn latest_of<K: Key, R: Stored>(
        &self,
        keys: &[K],
        until: Timestamp,
        interval: Option<Interval>,
        series: &(impl Fn(&K) -> R::Series + Send),
    ) -> Result<HashMap<K, R>, Cause> {
        let (table, client) = (R::TABLE, &self.inner.connections.plain);
        let (name, place) = (self.table(table.name), table.place_list());
        let of_interval = interval
            .map_or_else(String::new, |interval| format!(" AND interval = {}", literal(interval.as_str())));
        let newest: Vec<String> = keys
            .iter()
            .enumerate()
            .map(|(n, key)| {
                format!(
                    "SELECT toUInt64({n}) AS n, {place} FROM (SELECT {place} FROM {name} \
                     WHERE {condition}{of_interval} AND {time} <= {until} ORDER BY {sorted} LIMIT 1)",
                    condition = key.condition(),
                    time = table.time(),
                    until = at(until),
                    sorted = ordered(&table, "DESC"),
                )
            })
            .collect();
        let places = rows(client, &newest.join(" UNION ALL "), |row| {
            let n = usize::try_from(row.u64()?).unwrap_or(usize::MAX);
            let ts = read_time(row)?;
            let seq = if table.place.len() == 2 { Some(row.u64()?) } else { None };
            Ok((n, ts, seq))
        })
        .await?;
        if places.is_empty() {
            return Ok(HashMap::new());
        }
        let exact: Vec<String> = places
            .iter()
            .filter_map(|(n, ts, seq)| {
                let key = keys.get(*n)?;
                let seq = seq.map_or_else(String::new, |seq| format!(" AND seq = {seq}"));
                Some(format!(
                    "SELECT toUInt64({n}) AS n, {list} FROM {name} FINAL WHERE {condition}{of_interval} \
                     AND {time} = {ts}{seq}",
                    list = table.read_list(),
                    condition = key.condition(),
                    time = table.time(),
                    ts = at(*ts),
                ))
            })
            .collect();
        let found = rows(client, &format!("{} {FINAL}", exact.join(" UNION ALL ")), |row| {
            let n = usize::try_from(row.u64()?).unwrap_or(usize::MAX);
            let key = keys.get(n).ok_or_else(|| super::rowbinary::Malformed("an unknown key".into()))?;
            Ok((key.clone(), R::decode(row, &series(key))?))
        })
        .await?;
        Ok(found.into_iter().collect())
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
