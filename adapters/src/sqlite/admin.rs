//! Administration: the list of series, deletions and purges.

use qi_core::record::{FieldReader as _, Owner};
use qi_core::store::{Anchor, Page, Paged, SeriesRequest, SeriesSummary};
use qi_core::{Interval, Selection, TimeRange, Timestamp};
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::error::Cause;
use super::table::{OWNER_ID, Table, add_owner, quoted};
use super::values::{RowReader, Values, integer};

/// The number of records that one statement deletes. Other writers get the lock between two statements.
const DELETION: i64 = 50_000;

/// Returns a page of the owners that have a record, with the times of the first and the last one.
pub(super) async fn series(
    connection: &mut SqliteConnection,
    table: &Table,
    request: &SeriesRequest,
) -> Result<Page<SeriesSummary>, Cause> {
    let mut values = Values::default();
    let mut condition = table.owners().to_owned();
    if let Some(exchange) = &request.exchange {
        condition.push_str(" AND exchange = ?");
        values.add(exchange.as_str().to_owned());
    }
    if let Anchor::Owner(after) = request.anchor()? {
        condition.push_str(" AND (exchange, name) > (?, ?)");
        add_owner(&mut values, &after.as_ref());
    }
    values.add(integer(request.page.limit() as u64 + 1));
    let (name, time) = (&table.name, table.time());
    // Each time is a lookup in the primary key, once for each interval.
    let edge = |function: &str| match table.dataset.interval() {
        None => format!("(SELECT {function}({time}) FROM {name} WHERE _owner = _owners.id)"),
        Some(column) => format!(
            "(SELECT {function}(edge) FROM (SELECT (SELECT {function}({time}) FROM {name} \
             WHERE _owner = _owners.id AND {} = intervals.name) AS edge FROM intervals))",
            quoted(column)
        ),
    };
    let intervals: Vec<String> = Interval::ALL.iter().map(|interval| format!("('{interval}')")).collect();
    let sql = format!(
        "WITH intervals(name) AS (VALUES {}) SELECT exchange, name, {}, {} FROM _owners \
         WHERE {condition} AND EXISTS (SELECT 1 FROM {name} WHERE _owner = _owners.id) \
         ORDER BY exchange, name LIMIT ?",
        intervals.join(", "),
        edge("min"),
        edge("max"),
    );
    let rows = sqlx::query_with(AssertSqlSafe(sql), values.finish()?).fetch_all(connection).await?;
    let found = rows.iter().map(|row| {
        let mut row = RowReader::new(row);
        let owner = table.read_owner(&mut row)?;
        let mut time = || row.time().map_err(Cause::Corrupt);
        Ok(SeriesSummary::new(owner, time()?, time()?))
    });
    Ok(request.page_of(found.collect::<Result<_, Cause>>()?)?)
}

/// Returns the numbers of the selected owners.
pub(super) async fn ids(
    connection: &mut SqliteConnection,
    table: &Table,
    selection: &Selection<Owner>,
) -> Result<Vec<i64>, Cause> {
    // A missing table is an error, even without owners.
    let all = format!(
        "SELECT id FROM _owners WHERE {} AND EXISTS (SELECT 1 FROM {} WHERE _owner = _owners.id)",
        table.owners(),
        table.name
    );
    match selection {
        Selection::All => {
            let rows = sqlx::query(AssertSqlSafe(all)).fetch_all(connection).await?;
            rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
        }
        Selection::Only(owners) => {
            let mut ids = Vec::new();
            let sql = format!("{all} AND id = {OWNER_ID}");
            for owner in owners.iter() {
                let mut values = Values::with_capacity(2);
                add_owner(&mut values, &owner.as_ref());
                let query = sqlx::query_with(AssertSqlSafe(sql.clone()), values.finish()?);
                if let Some(row) = query.fetch_optional(&mut *connection).await? {
                    ids.push(row.try_get(0)?);
                }
            }
            Ok(ids)
        }
    }
}

/// Deletes the first records of a range. Returns the rest of the range that still has records.
pub(super) async fn delete_first(
    connection: &mut SqliteConnection,
    table: &Table,
    (id, interval): (i64, Option<Interval>),
    range: TimeRange,
) -> Result<Option<TimeRange>, Cause> {
    let (name, time) = (&table.name, table.time());
    let condition = format!("_owner = ?{} AND {time} >= ? AND {time} < ?", table.interval_condition());
    let arguments = |end: Timestamp| {
        let mut values = Values::with_capacity(5);
        values.add(id);
        if let Some(interval) = interval {
            values.add(interval.as_str());
        }
        values.add(range.start().as_micros());
        values.add(end.as_micros());
        values
    };
    let mut values = arguments(range.end());
    values.add(DELETION);
    let sql = format!("SELECT {time} FROM {name} WHERE {condition} ORDER BY {time} LIMIT 1 OFFSET ?");
    let cut = sqlx::query_with(AssertSqlSafe(sql), values.finish()?).fetch_optional(&mut *connection).await?;
    let end = match cut {
        Some(row) => Timestamp::from_micros(row.try_get::<i64, _>(0)? + 1).map_err(Cause::Corrupt)?,
        None => range.end(),
    };
    let sql = format!("DELETE FROM {name} WHERE {condition}");
    sqlx::query_with(AssertSqlSafe(sql), arguments(end).finish()?).execute(connection).await?;
    Ok((end < range.end()).then(|| TimeRange::new(end, range.end())).transpose()?)
}
