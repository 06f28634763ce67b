//! The statements on the table of a dataset. Each store builds them once from the description of the dataset.

use std::fmt::Write as _;
use std::sync::Arc;

use qi_core::PriceTick;
use qi_core::record::{Dataset, SeriesType};
use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

use super::duplicates::SEGMENT_KEYS;
use super::marks::{MARKER, MarkedSql};
use super::table::{Column, ColumnType, Table, join, names};

/// A registered dataset of a store.
#[derive(Debug)]
pub(super) struct RegisteredDataset {
    /// The position of the dataset in the order of registration.
    pub(super) position: usize,
    pub(super) table: Table,
    pub(super) sql: Sql,
    /// The statements with stale marks, for the ticks of materialized bars.
    pub(super) marked: Option<MarkedSql>,
}

impl RegisteredDataset {
    pub(super) fn new(position: usize, dataset: Dataset, schema: &str) -> Self {
        let table = Table::of(dataset, schema);
        let sql = Sql::of(&table);
        let is_ticks = dataset == PriceTick::DATASET;
        let marked = is_ticks.then(|| MarkedSql::of(schema, &sql.copy, &sql.merge, &sql.merge_converted));
        Self { position, table, sql, marked }
    }
}

/// The statements of one table. Aliases begin with `_`, because
/// no column of a dataset does.
#[derive(Debug)]
pub(super) struct Sql {
    /// The COPY of all columns, in the binary format.
    pub(super) copy: String,
    /// The merge of rows: inserts new rows, replaces changed rows and skips equal rows. Parameters: one array for each
    /// column, then the earliest and the latest time.
    pub(super) merge: SqlStr,
    /// The merge of rows for chunks in the columnstore.
    pub(super) merge_converted: SqlStr,
    /// The query for the newest existing keys in segments of series. Parameters: one array for each column of
    /// [`Table::segment`], then the earliest and the latest time. The first column is the number of the
    /// segment, from 1.
    pub(super) existing: SqlStr,
    /// The queries for a range. Parameters: start, end and limit, then the sort key of the cursor (time, sequence
    /// number) for tables with a sequence number, then the series.
    pub(super) ascending: SqlStr,
    pub(super) descending: SqlStr,
    /// The query for the latest row of each key. Parameters: an array of ids or names, start and end, then the interval
    /// if the series has an interval. The first column is the index in the array, from 1.
    pub(super) latest: SqlStr,
    /// The queries for the first and the last time of each key. The parameters are those of `latest`, except that the
    /// intervals are an array.
    pub(super) first_time: SqlStr,
    pub(super) last_time: SqlStr,
    /// The query for the names that have records, in order. Empty for tables of instruments. Parameters: the name
    /// before the first result (NULL for none), the number of names, start and end.
    pub(super) names: SqlStr,
    /// The deletion of a range, without the conditions of a selection. Parameters: start and end.
    pub(super) delete: String,
}

impl Sql {
    pub(super) fn of(table: &Table) -> Self {
        let sql_str = |text: String| AssertSqlSafe(Arc::<str>::from(text)).into_sql_str();
        Self {
            copy: format!(
                "{MARKER}COPY {} ({}) FROM STDIN (FORMAT binary)",
                table.relation(),
                names(table.columns(), "")
            ),
            merge: sql_str(merge(table, &lookup_join(table))),
            merge_converted: sql_str(merge(table, &series_join(table))),
            existing: sql_str(existing_query(table)),
            ascending: sql_str(range_query(table, ">", "ASC")),
            descending: sql_str(range_query(table, "<", "DESC")),
            latest: sql_str(latest_query(table)),
            first_time: sql_str(time_bound_query(table, "ASC")),
            last_time: sql_str(time_bound_query(table, "DESC")),
            names: sql_str(match table.dataset.series() {
                SeriesType::Instrument => String::new(),
                SeriesType::Name { column, .. } => names_query(table, column),
            }),
            delete: format!(
                "DELETE FROM {} WHERE \"{time}\" >= $1 AND \"{time}\" < $2",
                table.relation(),
                time = table.time()
            ),
        }
    }
}

/// Returns the merge statement. `existing_rows` is the join with the existing rows.
///
/// A replay costs only a read, because equal rows are not written again. ON CONFLICT covers the rows that another
/// writer inserts in between. All writers lock their rows in the same order, which is the order of the input. A table
/// without value columns has nothing to replace.
fn merge(table: &Table, existing_rows: &str) -> String {
    let columns = names(table.columns(), "");
    let differs = if table.values().is_empty() {
        String::new()
    } else {
        let (t, x) = (names(table.values(), "t."), join(table.values(), input_column));
        format!(" OR ROW({t}) IS DISTINCT FROM ROW({x})")
    };
    let conflict = if table.values().is_empty() {
        "NOTHING".to_owned()
    } else {
        format!("UPDATE SET {}", join(table.values(), |c| format!("\"{0}\" = EXCLUDED.\"{0}\"", c.name)))
    };
    format!(
        "{MARKER}INSERT INTO {table} ({columns}) \
         SELECT {input} FROM unnest({arrays}) WITH ORDINALITY AS x({columns}, _n) \
         LEFT JOIN {existing_rows} \
         WHERE t.\"{time}\" IS NULL{differs} \
         ORDER BY x._n \
         ON CONFLICT ({key}) DO {conflict}",
        table = table.relation(),
        input = join(table.columns(), input_column),
        arrays = arrays(table.columns()),
        time = table.time(),
        key = names(table.key(), ""),
    )
}

/// Returns the expression for a column of the input.
fn input_column(column: &Column) -> String {
    let cast = if column.ty == ColumnType::Levels { "::numeric[]" } else { "" };
    format!("x.\"{}\"{cast}", column.name)
}

/// Returns a join that looks up each row by its full key, whatever the statistics of the table are. For a table
/// without statistics, a plain join was planned as a nested loop over all pairs. With 50,000 rows it took longer
/// than the statement timeout.
fn lookup_join(table: &Table) -> String {
    let count = table.columns().len();
    let mut found = vec![table.sort_key()[0]];
    found.extend(table.values());
    format!(
        "LATERAL (SELECT {found} FROM {name} k \
         WHERE {same_key} AND k.\"{time}\" BETWEEN ${lo} AND ${hi} LIMIT 1) t ON true",
        found = names(&found, "k."),
        name = table.relation(),
        same_key = same_key(table, "k"),
        time = table.time(),
        lo = count + 1,
        hi = count + 2,
    )
}

/// Returns a join that reads all rows of the series in the time range once. A lookup in the columnstore reads an entire
/// segment, so a million lookups take seven times as long. The statement runs without nested loops, so it is a hash
/// join whatever the statistics are.
fn series_join(table: &Table) -> String {
    let count = table.columns().len();
    let series = table.series()[0];
    format!(
        "(SELECT {columns} FROM {name} k WHERE k.\"{series}\" = ANY(ARRAY(SELECT DISTINCT unnest($1::{ty}[]))) \
         AND k.\"{time}\" BETWEEN ${lo} AND ${hi}) t ON {same}",
        columns = names(table.columns(), "k."),
        name = table.relation(),
        series = series.name,
        ty = series.ty.name(),
        time = table.time(),
        lo = count + 1,
        hi = count + 2,
        same = same_key(table, "t"),
    )
}

/// Returns the statement with one index probe per segment. The row comparison bounds the keys exactly. TimescaleDB
/// excludes chunks only by the comparisons of the time column.
fn existing_query(table: &Table) -> String {
    let bound =
        |prefix: &str, alias: &str| join(table.sort_key(), |c| format!("{alias}\"{prefix}{}\"", c.name));
    let same_series = |column: &Column| format!("k.\"{0}\" = x.\"{0}\" AND ", column.name);
    let segment = table.segment();
    format!(
        "SELECT x._n, e.* FROM unnest({arrays}) WITH ORDINALITY AS x({series}, {first}, {last}, _n) \
         CROSS JOIN LATERAL (SELECT {sort_key} FROM {table} k WHERE {same_series}\
         ROW({sort_key}) >= ROW({x_first}) AND ROW({sort_key}) <= ROW({x_last}) \
         AND k.\"{time}\" BETWEEN x.\"_first_{time}\" AND x.\"_last_{time}\" \
         AND k.\"{time}\" BETWEEN ${lo} AND ${hi} ORDER BY {order} LIMIT {SEGMENT_KEYS}) e",
        arrays = arrays(&segment),
        series = names(table.series(), ""),
        first = bound("_first_", ""),
        last = bound("_last_", ""),
        sort_key = names(table.sort_key(), "k."),
        table = table.relation(),
        same_series = table.series().iter().map(same_series).collect::<String>(),
        x_first = bound("_first_", "x."),
        x_last = bound("_last_", "x."),
        time = table.time(),
        lo = segment.len() + 1,
        hi = segment.len() + 2,
        order = join(table.sort_key(), |c| format!("k.\"{}\" DESC", c.name)),
    )
}

/// Returns the array parameters, for example `$1::int4[], $2::timestamptz[]`.
fn arrays(columns: &[Column]) -> String {
    let array = |(at, column): (usize, &Column)| format!("${}::{}[]", at + 1, column.ty.element().name());
    columns.iter().enumerate().map(array).collect::<Vec<_>>().join(", ")
}

/// Returns the condition for equal keys, for example `k."instrument_id" = x."instrument_id" AND k."ts" = x."ts"`.
fn same_key(table: &Table, side: &str) -> String {
    let same = |column: &Column| format!("{side}.\"{0}\" = x.\"{0}\"", column.name);
    table.key().iter().map(same).collect::<Vec<_>>().join(" AND ")
}

fn range_query(table: &Table, side: &str, direction: &str) -> String {
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
        "SELECT {} FROM {} WHERE \"{time}\" >= $1 AND \"{time}\" < $2{conditions} ORDER BY {} LIMIT $3",
        names(table.read_list(), ""),
        table.relation(),
        order_by(table, direction),
    )
}

/// Returns the sort order, for example `"ts" DESC, "seq" DESC`.
pub(super) fn order_by(table: &Table, direction: &str) -> String {
    join(table.sort_key(), |column| format!("\"{}\" {direction}", column.name))
}

fn latest_query(table: &Table) -> String {
    let interval = table.dataset.interval().map(|name| format!(" AND t.\"{name}\" = $4")).unwrap_or_default();
    format!(
        "SELECT k._n, l.* FROM unnest($1::{ty}[]) WITH ORDINALITY AS k(_key, _n) \
         CROSS JOIN LATERAL (SELECT {list} FROM {table} t \
         WHERE t.\"{series}\" = k._key AND t.\"{time}\" >= $2 AND t.\"{time}\" < $3{interval} \
         ORDER BY {order} LIMIT 1) l ORDER BY k._n",
        ty = table.series()[0].ty.name(),
        list = names(table.read_list(), "t."),
        table = table.relation(),
        series = table.series()[0].name,
        time = table.time(),
        order = order_by(table, "DESC"),
    )
}

fn time_bound_query(table: &Table, direction: &str) -> String {
    let (from, interval) = match table.dataset.interval() {
        Some(name) => (" CROSS JOIN unnest($4::text[]) AS i(_name)", format!(" AND t.\"{name}\" = i._name")),
        None => ("", String::new()),
    };
    format!(
        "SELECT k._n, l.\"{time}\" FROM unnest($1::{ty}[]) WITH ORDINALITY AS k(_key, _n){from} \
         CROSS JOIN LATERAL (SELECT t.\"{time}\" FROM {table} t \
         WHERE t.\"{series}\" = k._key AND t.\"{time}\" >= $2 AND t.\"{time}\" < $3{interval} \
         ORDER BY t.\"{time}\" {direction} LIMIT 1) l",
        ty = table.series()[0].ty.name(),
        table = table.relation(),
        series = table.series()[0].name,
        time = table.time(),
    )
}

/// Returns the statement that finds each name with one step in the primary key.
fn names_query(table: &Table, column: &str) -> String {
    let step = |after: &str| {
        format!(
            "SELECT x.\"{column}\" FROM {table} x WHERE {after} \
             AND x.\"{time}\" >= $3 AND x.\"{time}\" < $4 ORDER BY x.\"{column}\" LIMIT 1",
            table = table.relation(),
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
    use qi_core::{Bar, MarketSnapshot, PriceTick};

    use super::*;

    #[test]
    fn ticks_have_a_copy_and_a_range_statement() {
        let sql = Sql::of(&Table::of(PriceTick::DATASET, "s"));
        assert_eq!(
            sql.copy,
            "/*qi:series*/ COPY \"s\".\"ticks\" (\"instrument_id\", \"ts\", \"seq\", \"price\", \"quantity\", \"side\") \
             FROM STDIN (FORMAT binary)"
        );
        assert_eq!(
            sql.ascending.as_str(),
            "SELECT \"ts\", \"seq\", \"price\", \"quantity\", \"side\" FROM \"s\".\"ticks\" \
             WHERE \"ts\" >= $1 AND \"ts\" < $2 AND (\"ts\", \"seq\") > ($4, $5) AND \"instrument_id\" = $6 \
             ORDER BY \"ts\" ASC, \"seq\" ASC LIMIT $3"
        );
    }

    #[test]
    fn the_probe_compares_the_keys_of_a_segment() {
        let ticks = Sql::of(&Table::of(PriceTick::DATASET, "s"));
        assert_eq!(
            ticks.existing.as_str(),
            "SELECT x._n, e.* FROM unnest($1::int4[], $2::timestamptz[], $3::int8[], $4::timestamptz[], $5::int8[]) \
             WITH ORDINALITY AS x(\"instrument_id\", \"_first_ts\", \"_first_seq\", \"_last_ts\", \"_last_seq\", _n) \
             CROSS JOIN LATERAL (SELECT k.\"ts\", k.\"seq\" FROM \"s\".\"ticks\" k WHERE \
             k.\"instrument_id\" = x.\"instrument_id\" AND \
             ROW(k.\"ts\", k.\"seq\") >= ROW(x.\"_first_ts\", x.\"_first_seq\") AND \
             ROW(k.\"ts\", k.\"seq\") <= ROW(x.\"_last_ts\", x.\"_last_seq\") \
             AND k.\"ts\" BETWEEN x.\"_first_ts\" AND x.\"_last_ts\" AND k.\"ts\" BETWEEN $6 AND $7 \
             ORDER BY k.\"ts\" DESC, k.\"seq\" DESC LIMIT 8) e"
        );
    }

    #[test]
    fn the_interval_is_part_of_the_series() {
        let bars = Sql::of(&Table::of(Bar::DATASET, "s"));
        assert!(bars.descending.as_str().ends_with(
            "WHERE \"open_time\" >= $1 AND \"open_time\" < $2 AND \"instrument_id\" = $4 AND \"interval\" = $5 \
             ORDER BY \"open_time\" DESC LIMIT $3"
        ));
        assert!(bars.latest.as_str().contains("t.\"interval\" = $4"));
    }

    #[test]
    fn names_are_found_by_a_recursive_query() {
        let snapshots = Sql::of(&Table::of(MarketSnapshot::DATASET, "s"));
        assert!(snapshots.names.as_str().contains("x.\"scope\" > s._name"));
    }
}
