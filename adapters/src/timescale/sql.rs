//! The statements over the table of a dataset, made once for each store out of the dataset's description.

use std::fmt::Write as _;
use std::sync::Arc;

use qi_core::record::{Dataset, SeriesType};
use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

use super::repeats::SEGMENT_KEYS;
use super::table::{Column, ColumnType, Table, join, names};

/// A registered dataset of a store.
#[derive(Debug)]
pub(super) struct Stored {
    /// The position in the order of registration.
    pub(super) position: usize,
    pub(super) table: Table,
    pub(super) sql: Sql,
}

impl Stored {
    pub(super) fn new(position: usize, dataset: Dataset) -> Self {
        let table = Table::of(dataset);
        Self { position, sql: Sql::of(&table), table }
    }
}

/// The statements of one table. Tables are found through the `search_path` of the connection. Aliases begin with `_`,
/// because no column of a dataset does.
#[derive(Debug)]
pub(super) struct Sql {
    /// COPY of all columns, binary.
    pub(super) copy: String,
    /// Parameters: one array for each column, then the least and the greatest time. Inserts what is new, replaces what
    /// differs, leaves alone what is there.
    pub(super) merge: SqlStr,
    /// The same over chunks in the columnstore.
    pub(super) merge_converted: SqlStr,
    /// Reads the newest keys that exist in segments of series. Parameters: one array for each column of
    /// [`Table::segment`], then the least and the greatest time. The first column is the number of the segment, from 1.
    pub(super) existing: SqlStr,
    /// Parameters: start, end, limit; for tables with a sequence then the place of the cursor (time, sequence);
    /// then the series.
    pub(super) ascending: SqlStr,
    pub(super) descending: SqlStr,
    /// Parameters: array of ids or names, start, end; then the interval, if the series has one. The first column is
    /// the place in the array, from 1.
    pub(super) latest: SqlStr,
    /// As `latest`, with the time alone: the first, the last; over all intervals, given as an array.
    pub(super) first_time: SqlStr,
    pub(super) last_time: SqlStr,
    /// Parameters: the name to go on after (NULL: from the first), how many, start, end. The names that have records,
    /// in order; only of tables whose series are names.
    pub(super) names: SqlStr,
    /// Parameters: start, end. Without the conditions of a selection.
    pub(super) delete: String,
}

impl Sql {
    pub(super) fn of(table: &Table) -> Self {
        let made = |text: String| AssertSqlSafe(Arc::<str>::from(text)).into_sql_str();
        Self {
            copy: format!(
                "COPY \"{}\" ({}) FROM STDIN (FORMAT binary)",
                table.name(),
                names(table.columns(), "")
            ),
            merge: made(merge(table, &by_row(table))),
            merge_converted: made(merge(table, &by_set(table))),
            existing: made(existing(table)),
            ascending: made(range(table, ">", "ASC")),
            descending: made(range(table, "<", "DESC")),
            latest: made(latest(table)),
            first_time: made(edge(table, "ASC")),
            last_time: made(edge(table, "DESC")),
            names: made(match table.dataset.series() {
                SeriesType::Instrument => String::new(),
                SeriesType::Name { column, .. } => names_after(table, column),
            }),
            delete: format!(
                "DELETE FROM \"{}\" WHERE \"{time}\" >= $1 AND \"{time}\" < $2",
                table.name(),
                time = table.time()
            ),
        }
    }
}

/// A replay costs a read: rows that are there with the same values are not written again. ON CONFLICT is for the
/// rows that another writer adds in between. The rows keep the order in which they come, in which every writer
/// locks them. `there` joins what is there already. A table without values has nothing to replace.
fn merge(table: &Table, there: &str) -> String {
    let columns = names(table.columns(), "");
    let differs = if table.values().is_empty() {
        String::new()
    } else {
        let (t, x) = (names(table.values(), "t."), join(table.values(), sent));
        format!(" OR ROW({t}) IS DISTINCT FROM ROW({x})")
    };
    let conflict = if table.values().is_empty() {
        "NOTHING".to_owned()
    } else {
        format!("UPDATE SET {}", join(table.values(), |c| format!("\"{0}\" = EXCLUDED.\"{0}\"", c.name)))
    };
    format!(
        "INSERT INTO \"{table}\" ({columns}) \
         SELECT {sent} FROM unnest({arrays}) WITH ORDINALITY AS x({columns}, _n) \
         LEFT JOIN {there} \
         WHERE t.\"{time}\" IS NULL{differs} \
         ORDER BY x._n \
         ON CONFLICT ({key}) DO {conflict}",
        table = table.name(),
        sent = join(table.columns(), sent),
        arrays = arrays(table.columns()),
        time = table.time(),
        key = names(table.key(), ""),
    )
}

/// A column of what was sent.
fn sent(column: &Column) -> String {
    let cast = if column.ty == ColumnType::Levels { "::numeric[]" } else { "" };
    format!("x.\"{}\"{cast}", column.name)
}

/// Each row looked up by its whole key, which no statistics can lead astray: a join of a table that was never
/// analyzed was planned as a loop over all pairs, and 50,000 rows took longer than the limit of a statement.
fn by_row(table: &Table) -> String {
    let count = table.columns().len();
    let mut found = vec![table.place()[0]];
    found.extend(table.values());
    format!(
        "LATERAL (SELECT {found} FROM \"{name}\" k \
         WHERE {same_key} AND k.\"{time}\" BETWEEN ${lo} AND ${hi} LIMIT 1) t ON true",
        found = names(&found, "k."),
        name = table.name(),
        same_key = same_key(table, "k"),
        time = table.time(),
        lo = count + 1,
        hi = count + 2,
    )
}

/// All rows of the series and the times in question, read once: to look a row up in the columnstore takes a whole
/// segment, and a million of them seven times as long. The statement runs without loops, so that it is a hash join
/// whatever the statistics say.
fn by_set(table: &Table) -> String {
    let count = table.columns().len();
    let series = table.series()[0];
    format!(
        "(SELECT {columns} FROM \"{name}\" k WHERE k.\"{series}\" = ANY(ARRAY(SELECT DISTINCT unnest($1::{ty}[]))) \
         AND k.\"{time}\" BETWEEN ${lo} AND ${hi}) t ON {same}",
        columns = names(table.columns(), "k."),
        name = table.name(),
        series = series.name,
        ty = series.ty.name(),
        time = table.time(),
        lo = count + 1,
        hi = count + 2,
        same = same_key(table, "t"),
    )
}

/// One index probe for each segment. The row comparison bounds the keys exactly; TimescaleDB excludes chunks by the
/// comparisons of the time alone.
fn existing(table: &Table) -> String {
    let bound = |prefix: &str, alias: &str| join(table.place(), |c| format!("{alias}\"{prefix}{}\"", c.name));
    let same_series = |column: &Column| format!("k.\"{0}\" = x.\"{0}\" AND ", column.name);
    let segment = table.segment();
    format!(
        "SELECT x._n, e.* FROM unnest({arrays}) WITH ORDINALITY AS x({series}, {first}, {last}, _n) \
         CROSS JOIN LATERAL (SELECT {place} FROM \"{table}\" k WHERE {same_series}\
         ROW({place}) >= ROW({x_first}) AND ROW({place}) <= ROW({x_last}) \
         AND k.\"{time}\" BETWEEN x.\"_first_{time}\" AND x.\"_last_{time}\" \
         AND k.\"{time}\" BETWEEN ${lo} AND ${hi} ORDER BY {order} LIMIT {SEGMENT_KEYS}) e",
        arrays = arrays(&segment),
        series = names(table.series(), ""),
        first = bound("_first_", ""),
        last = bound("_last_", ""),
        place = names(table.place(), "k."),
        table = table.name(),
        same_series = table.series().iter().map(same_series).collect::<String>(),
        x_first = bound("_first_", "x."),
        x_last = bound("_last_", "x."),
        time = table.time(),
        lo = segment.len() + 1,
        hi = segment.len() + 2,
        order = join(table.place(), |c| format!("k.\"{}\" DESC", c.name)),
    )
}

/// `$1::int4[], $2::timestamptz[]`
fn arrays(columns: &[Column]) -> String {
    let array = |(at, column): (usize, &Column)| format!("${}::{}[]", at + 1, column.ty.element().name());
    columns.iter().enumerate().map(array).collect::<Vec<_>>().join(", ")
}

/// `k."instrument_id" = x."instrument_id" AND k."ts" = x."ts"`
fn same_key(table: &Table, side: &str) -> String {
    let same = |column: &Column| format!("{side}.\"{0}\" = x.\"{0}\"", column.name);
    table.key().iter().map(same).collect::<Vec<_>>().join(" AND ")
}

fn range(table: &Table, side: &str, direction: &str) -> String {
    let time = table.time();
    let mut next = 4;
    let mut conditions = String::new();
    if let Some(seq) = table.dataset.seq() {
        let _ = write!(conditions, " AND (\"{time}\", \"{seq}\") {side} ($4, $5)");
        next = 6;
    }
    for (at, column) in table.series().iter().enumerate() {
        let _ = write!(conditions, " AND \"{}\" = ${}", column.name, next + at);
    }
    format!(
        "SELECT {} FROM \"{}\" WHERE \"{time}\" >= $1 AND \"{time}\" < $2{conditions} ORDER BY {} LIMIT $3",
        names(table.read_list(), ""),
        table.name(),
        ordered(table, direction),
    )
}

/// `"ts" DESC, "seq" DESC`
pub(super) fn ordered(table: &Table, direction: &str) -> String {
    join(table.place(), |column| format!("\"{}\" {direction}", column.name))
}

fn latest(table: &Table) -> String {
    let interval = table.dataset.interval().map(|name| format!(" AND t.\"{name}\" = $4")).unwrap_or_default();
    format!(
        "SELECT k._n, l.* FROM unnest($1::{ty}[]) WITH ORDINALITY AS k(_key, _n) \
         CROSS JOIN LATERAL (SELECT {list} FROM \"{table}\" t \
         WHERE t.\"{series}\" = k._key AND t.\"{time}\" >= $2 AND t.\"{time}\" < $3{interval} \
         ORDER BY {order} LIMIT 1) l ORDER BY k._n",
        ty = table.series()[0].ty.name(),
        list = names(table.read_list(), "t."),
        table = table.name(),
        series = table.series()[0].name,
        time = table.time(),
        order = ordered(table, "DESC"),
    )
}

fn edge(table: &Table, direction: &str) -> String {
    let (from, interval) = match table.dataset.interval() {
        Some(name) => (" CROSS JOIN unnest($4::text[]) AS i(_name)", format!(" AND t.\"{name}\" = i._name")),
        None => ("", String::new()),
    };
    format!(
        "SELECT k._n, l.\"{time}\" FROM unnest($1::{ty}[]) WITH ORDINALITY AS k(_key, _n){from} \
         CROSS JOIN LATERAL (SELECT t.\"{time}\" FROM \"{table}\" t \
         WHERE t.\"{series}\" = k._key AND t.\"{time}\" >= $2 AND t.\"{time}\" < $3{interval} \
         ORDER BY t.\"{time}\" {direction} LIMIT 1) l",
        ty = table.series()[0].ty.name(),
        table = table.name(),
        series = table.series()[0].name,
        time = table.time(),
    )
}

/// Each name is found by one step in the primary key.
fn names_after(table: &Table, column: &str) -> String {
    let step = |after: &str| {
        format!(
            "SELECT x.\"{column}\" FROM \"{table}\" x WHERE {after} \
             AND x.\"{time}\" >= $3 AND x.\"{time}\" < $4 ORDER BY x.\"{column}\" LIMIT 1",
            table = table.name(),
            time = table.time()
        )
    };
    format!(
        "WITH RECURSIVE s(_name, _n) AS ((SELECT f.*, 1 FROM ({first}) f) \
         UNION ALL SELECT ({next}), s._n + 1 FROM s WHERE s._name IS NOT NULL AND s._n < $2) \
         SELECT _name FROM s WHERE _name IS NOT NULL ORDER BY _name",
        first = step(&format!("($1::text IS NULL OR x.\"{column}\" > $1)")),
        next = step(&format!("x.\"{column}\" > s._name")),
    )
}

#[cfg(test)]
mod tests {
    use qi_core::{MarketSnapshot, Ohlcv, PriceTick};

    use super::*;

    #[test]
    fn the_statements_of_the_ticks() {
        let sql = Sql::of(&Table::of(PriceTick::DATASET));
        assert_eq!(
            sql.copy,
            "COPY \"ticks\" (\"instrument_id\", \"ts\", \"seq\", \"price\", \"quantity\", \"side\") \
             FROM STDIN (FORMAT binary)"
        );
        assert_eq!(
            sql.ascending.as_str(),
            "SELECT \"ts\", \"seq\", \"price\", \"quantity\", \"side\" FROM \"ticks\" \
             WHERE \"ts\" >= $1 AND \"ts\" < $2 AND (\"ts\", \"seq\") > ($4, $5) AND \"instrument_id\" = $6 \
             ORDER BY \"ts\" ASC, \"seq\" ASC LIMIT $3"
        );
    }

    #[test]
    fn segments_are_probed_by_their_keys() {
        let ticks = Sql::of(&Table::of(PriceTick::DATASET));
        assert_eq!(
            ticks.existing.as_str(),
            "SELECT x._n, e.* FROM unnest($1::int4[], $2::timestamptz[], $3::int8[], $4::timestamptz[], $5::int8[]) \
             WITH ORDINALITY AS x(\"instrument_id\", \"_first_ts\", \"_first_seq\", \"_last_ts\", \"_last_seq\", _n) \
             CROSS JOIN LATERAL (SELECT k.\"ts\", k.\"seq\" FROM \"ticks\" k WHERE \
             k.\"instrument_id\" = x.\"instrument_id\" AND \
             ROW(k.\"ts\", k.\"seq\") >= ROW(x.\"_first_ts\", x.\"_first_seq\") AND \
             ROW(k.\"ts\", k.\"seq\") <= ROW(x.\"_last_ts\", x.\"_last_seq\") \
             AND k.\"ts\" BETWEEN x.\"_first_ts\" AND x.\"_last_ts\" AND k.\"ts\" BETWEEN $6 AND $7 \
             ORDER BY k.\"ts\" DESC, k.\"seq\" DESC LIMIT 8) e"
        );
    }

    #[test]
    fn the_interval_belongs_to_the_series() {
        let bars = Sql::of(&Table::of(Ohlcv::DATASET));
        assert!(bars.descending.as_str().ends_with(
            "WHERE \"open_time\" >= $1 AND \"open_time\" < $2 AND \"instrument_id\" = $4 AND \"interval\" = $5 \
             ORDER BY \"open_time\" DESC LIMIT $3"
        ));
        assert!(bars.latest.as_str().contains("t.\"interval\" = $4"));
    }

    #[test]
    fn names_are_found_by_steps() {
        let snapshots = Sql::of(&Table::of(MarketSnapshot::DATASET));
        assert!(snapshots.names.as_str().contains("x.\"scope\" > s._name"));
    }
}
