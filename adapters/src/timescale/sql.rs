//! The statements over the four tables, made once out of their descriptions.

use std::fmt::Write as _;
use std::sync::LazyLock;

use qi_core::store::Dataset;

use super::table::{Column, TABLES, Table, names};

/// The statements of one table. Names are found through the `search_path` of the connection.
#[derive(Debug)]
pub(super) struct Sql {
    /// COPY of all columns, binary.
    pub(super) copy: String,
    /// Parameters: one array for each column, then the least and the greatest time. Inserts what is new, replaces what differs, leaves alone what is there.
    pub(super) merge: String,
    /// The same over chunks in the columnstore.
    pub(super) merge_converted: String,
    /// Parameters: one array for each column of the key, then the least and the greatest time. Whether a row of
    /// one of these keys is there.
    pub(super) probe: String,
    /// Parameters: start, end, limit; for tables with a sequence then the place of the cursor (time, sequence);
    /// then the series.
    pub(super) ascending: String,
    pub(super) descending: String,
    /// Parameters: array of ids or scopes, start, end; for bars then the interval. The first column is the place
    /// in the array, from 1.
    pub(super) latest: String,
    /// As `latest`, with the time alone: the first, the last; for bars over all intervals, given as an array.
    pub(super) first_time: String,
    pub(super) last_time: String,
}

/// The statements of a dataset.
pub(super) fn of(dataset: Dataset) -> &'static Sql {
    static ALL: LazyLock<[Sql; 4]> = LazyLock::new(|| TABLES.map(Sql::of));
    &ALL[dataset as usize]
}

impl Sql {
    fn of(table: &Table) -> Self {
        Self {
            copy: format!("COPY {} ({}) FROM STDIN (FORMAT binary)", table.name, names(table.columns(), "")),
            merge: merge(table, &by_row(table)),
            merge_converted: merge(table, &by_set(table)),
            probe: probe(table),
            ascending: range(table, ">", "ASC"),
            descending: range(table, "<", "DESC"),
            latest: latest(table),
            first_time: edge(table, "ASC"),
            last_time: edge(table, "DESC"),
        }
    }
}

/// A replay costs a read: rows that are there with the same values are not written again. ON CONFLICT is for the
/// rows that another writer adds in between. The rows keep the order in which they come, in which every writer
/// locks them. `there` joins what is there already.
fn merge(table: &Table, there: &str) -> String {
    let all: Vec<Column> = table.columns().collect();
    let arrays = arrays(&all);
    let sets: Vec<_> = table.values.iter().map(|c| format!("{0} = EXCLUDED.{0}", c.name)).collect();
    format!(
        "INSERT INTO {table} ({columns}) \
         SELECT {x_columns} FROM unnest({arrays}) WITH ORDINALITY AS x({columns}, n) \
         LEFT JOIN {there} \
         WHERE t.{time} IS NULL OR ROW({t_values}) IS DISTINCT FROM ROW({x_values}) \
         ORDER BY x.n \
         ON CONFLICT ({key}) DO UPDATE SET {sets}",
        table = table.name,
        columns = names(table.columns(), ""),
        x_columns = names(table.columns(), "x."),
        time = table.time(),
        t_values = names(table.values.iter().copied(), "t."),
        x_values = names(table.values.iter().copied(), "x."),
        key = names(table.key(), ""),
        sets = sets.join(", "),
    )
}

/// Each row looked up by its whole key, which no statistics can lead astray: a join of a table that was never
/// analyzed was planned as a loop over all pairs, and 50,000 rows took longer than the limit of a statement.
fn by_row(table: &Table) -> String {
    let count = table.columns().count();
    format!(
        "LATERAL (SELECT k.{time}, {values} FROM {name} k \
         WHERE {same_key} AND k.{time} BETWEEN ${lo} AND ${hi} LIMIT 1) t ON true",
        time = table.time(),
        values = names(table.values.iter().copied(), "k."),
        name = table.name,
        same_key = same_key(table),
        lo = count + 1,
        hi = count + 2,
    )
}

/// All rows of the series and the times in question, read once: to look a row up in the columnstore takes a whole
/// segment, and a million of them seven times as long. The statement runs without loops, so that it is a hash join
/// whatever the statistics say.
fn by_set(table: &Table) -> String {
    let count = table.columns().count();
    let same: Vec<_> = table.key().map(|c| format!("t.{0} = x.{0}", c.name)).collect();
    format!(
        "(SELECT {columns} FROM {name} k WHERE k.{series} = ANY(ARRAY(SELECT DISTINCT unnest($1::{ty}[]))) \
         AND k.{time} BETWEEN ${lo} AND ${hi}) t ON {same}",
        columns = names(table.columns(), "k."),
        name = table.name,
        series = table.series[0].name,
        ty = table.series[0].ty.name(),
        time = table.time(),
        lo = count + 1,
        hi = count + 2,
        same = same.join(" AND "),
    )
}

fn probe(table: &Table) -> String {
    let key: Vec<Column> = table.key().collect();
    format!(
        "SELECT EXISTS (SELECT FROM unnest({arrays}) AS x({columns}) CROSS JOIN LATERAL (\
         SELECT FROM {table} k WHERE {same_key} AND k.{time} BETWEEN ${lo} AND ${hi} LIMIT 1) t)",
        arrays = arrays(&key),
        columns = names(table.key(), ""),
        table = table.name,
        same_key = same_key(table),
        time = table.time(),
        lo = key.len() + 1,
        hi = key.len() + 2,
    )
}

/// `$1::int4[], $2::timestamptz[]`
fn arrays(columns: &[Column]) -> String {
    let array = |(at, column): (usize, &Column)| format!("${}::{}[]", at + 1, column.ty.name());
    columns.iter().enumerate().map(array).collect::<Vec<_>>().join(", ")
}

/// `k.instrument_id = x.instrument_id AND k.ts = x.ts`
fn same_key(table: &Table) -> String {
    table.key().map(|c| format!("k.{0} = x.{0}", c.name)).collect::<Vec<_>>().join(" AND ")
}

fn range(table: &Table, side: &str, direction: &str) -> String {
    let time = table.time();
    let mut next = 4;
    let mut conditions = String::new();
    if table.place.len() == 2 {
        let _ = write!(conditions, " AND ({time}, seq) {side} ($4, $5)");
        next = 6;
    }
    for (at, column) in table.series.iter().enumerate() {
        let _ = write!(conditions, " AND {} = ${}", column.name, next + at);
    }
    format!(
        "SELECT {} FROM {} WHERE {time} >= $1 AND {time} < $2{conditions} ORDER BY {} LIMIT $3",
        table.read_list(),
        table.name,
        ordered(table, direction),
    )
}

/// `ts DESC, seq DESC`
fn ordered(table: &Table, direction: &str) -> String {
    table.place.iter().map(|c| format!("{} {direction}", c.name)).collect::<Vec<_>>().join(", ")
}

fn latest(table: &Table) -> String {
    let interval = if table.series.len() == 2 { " AND t.\"interval\" = $4" } else { "" };
    format!(
        "SELECT k.n, l.* FROM unnest($1::{ty}[]) WITH ORDINALITY AS k(key, n) \
         CROSS JOIN LATERAL (SELECT {list} FROM {table} t \
         WHERE t.{series} = k.key AND t.{time} >= $2 AND t.{time} < $3{interval} \
         ORDER BY {order} LIMIT 1) l ORDER BY k.n",
        ty = table.series[0].ty.name(),
        list = table.read_list(),
        table = table.name,
        series = table.series[0].name,
        time = table.time(),
        order = ordered(table, "DESC"),
    )
}

fn edge(table: &Table, direction: &str) -> String {
    let (from, interval) = if table.series.len() == 2 {
        (" CROSS JOIN unnest($4::text[]) AS i(name)", " AND t.\"interval\" = i.name")
    } else {
        ("", "")
    };
    format!(
        "SELECT k.n, l.{time} FROM unnest($1::{ty}[]) WITH ORDINALITY AS k(key, n){from} \
         CROSS JOIN LATERAL (SELECT t.{time} FROM {table} t \
         WHERE t.{series} = k.key AND t.{time} >= $2 AND t.{time} < $3{interval} \
         ORDER BY t.{time} {direction} LIMIT 1) l",
        ty = table.series[0].ty.name(),
        table = table.name,
        series = table.series[0].name,
        time = table.time(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statements_of_the_ticks() {
        let sql = of(Dataset::Ticks);
        assert_eq!(
            sql.copy,
            "COPY ticks (instrument_id, ts, seq, price, quantity, side) FROM STDIN (FORMAT binary)"
        );
        assert_eq!(
            sql.ascending,
            "SELECT ts, seq, price, quantity, side FROM ticks WHERE ts >= $1 AND ts < $2 \
             AND (ts, seq) > ($4, $5) AND instrument_id = $6 ORDER BY ts ASC, seq ASC LIMIT $3"
        );
        let bars = of(Dataset::Bars);
        assert!(bars.descending.ends_with(
            "WHERE open_time >= $1 AND open_time < $2 AND instrument_id = $4 AND \"interval\" = $5 \
             ORDER BY open_time DESC LIMIT $3"
        ));
    }
}
