//! Reads: pages of records, and the latest record of each owner.

use futures::TryStreamExt as _;
use qi_core::Timestamp;
use qi_core::record::{Owner, RecordVec};
use qi_core::store::kit::{self, LatestSource, rest_of};
use qi_core::store::{LatestRequest, Order, Paged, RangeRequest, RecordPage};
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;

use super::error::Cause;
use super::table::{OWNER_ID, Table, add_owner, add_series, owner_list, quoted};
use super::values::{RowReader, Values, integer};
use super::write::OWNERS;

/// Returns the direction of an order in SQL.
pub(super) fn direction(order: Order) -> &'static str {
    match order {
        Order::Ascending => "ASC",
        Order::Descending => "DESC",
    }
}

/// Returns a page of one series in a range.
pub(super) async fn range(
    connection: &mut SqliteConnection,
    table: &Table,
    request: &RangeRequest,
) -> Result<RecordPage, Cause> {
    let RangeRequest { series, order, .. } = request;
    let (rest, after) = rest_of(request.range, *order, &request.anchor()?)?;
    let after = after.map(|(time, seq)| (time.as_micros(), integer(seq)));
    // Every sequence number is above -1, so the bounds of the range are keys between two records.
    let (mut above, mut below) = ((rest.start().as_micros(), -1), (rest.end().as_micros(), -1));
    match (order, after) {
        (Order::Ascending, Some(after)) => above = above.max(after),
        (Order::Descending, Some(after)) => below = below.min(after),
        _ => {}
    }
    let mut values = Values::with_capacity(8);
    add_series(&mut values, &series.owner, series.interval);
    let condition = if table.dataset.seq().is_some() {
        for bound in [above.0, above.1, below.0, below.1] {
            values.add(bound);
        }
        let key = format!("({})", table.sort_key().join(", "));
        format!("{key} > (?, ?) AND {key} < (?, ?)")
    } else {
        values.add(above.0);
        values.add(below.0);
        format!("{time} >= ? AND {time} < ?", time = table.time())
    };
    let limit = request.page.limit() + 1;
    values.add(integer(limit as u64));
    let sql = format!(
        "SELECT {} FROM {} WHERE _owner = {OWNER_ID}{} AND {condition} ORDER BY {} LIMIT ?",
        table.record_columns.join(", "),
        table.name,
        table.interval_condition(),
        table.order_by(direction(*order)),
    );
    let mut found = request.dataset.new_vec();
    let mut rows = sqlx::query_with(AssertSqlSafe(sql), values.finish()?).fetch(connection);
    while let Some(row) = rows.try_next().await? {
        table.read(&row, series, &mut found)?;
    }
    Ok(request.page_of(found)?)
}

/// The statements of one [`LatestRequest`].
struct LatestStatements<'a> {
    connection: &'a mut SqliteConnection,
    table: &'a Table,
    request: &'a LatestRequest,
}

/// Returns the latest record of each selected owner.
pub(super) async fn latest(
    connection: &mut SqliteConnection,
    table: &Table,
    request: &LatestRequest,
) -> Result<RecordPage, Cause> {
    if request.until().is_none() {
        // No statement runs below, but a missing table must be an error.
        sqlx::query(AssertSqlSafe(format!("SELECT 1 FROM {} LIMIT 0", table.name)))
            .fetch_all(&mut *connection)
            .await?;
    }
    kit::latest(request, OWNERS, &mut LatestStatements { connection, table, request }).await
}

impl LatestSource for LatestStatements<'_> {
    type Error = Cause;

    async fn owners(&mut self, after: Option<&Owner>, count: usize) -> Result<Vec<Owner>, Cause> {
        let Self { connection, table, request } = self;
        let mut values = Values::default();
        let cursor = after.map_or("", |owner| {
            add_owner(&mut values, &owner.as_ref());
            " AND (exchange, name) > (?, ?)"
        });
        if let Some(interval) = request.interval {
            values.add(interval.as_str());
        }
        values.add(request.until().unwrap_or(Timestamp::MIN).as_micros());
        values.add(integer(count as u64));
        let sql = format!(
            "SELECT exchange, name FROM _owners WHERE {}{cursor} AND EXISTS \
             (SELECT 1 FROM {} WHERE _owner = _owners.id{} AND {} <= ?) ORDER BY exchange, name LIMIT ?",
            table.owners(),
            table.name,
            table.interval_condition(),
            table.time(),
        );
        let rows =
            sqlx::query_with(AssertSqlSafe(sql), values.finish()?).fetch_all(&mut **connection).await?;
        rows.iter().map(|row| table.read_owner(&mut RowReader::new(row))).collect()
    }

    async fn newest(
        &mut self,
        owners: &[Owner],
        until: Timestamp,
        found: &mut RecordVec,
    ) -> Result<(), Cause> {
        let Self { connection, table, request } = self;
        let mut values = Values::default();
        let list = owner_list(owners.len());
        for owner in owners {
            add_owner(&mut values, &owner.as_ref());
        }
        // The owners that the list has room for.
        for _ in owners.len()..owners.len().next_power_of_two() {
            values.add(None::<&str>);
            values.add(None::<&str>);
        }
        let (interval, same_interval) = match table.dataset.interval() {
            Some(column) => (table.interval_condition(), format!(" AND found.{0} = ?", quoted(column))),
            None => (String::new(), String::new()),
        };
        for _ in 0..2 {
            if let Some(interval) = request.interval {
                values.add(interval.as_str());
            }
        }
        values.add(until.as_micros());
        let of_found = |columns: &[String]| {
            columns.iter().map(|column| format!("found.{column}")).collect::<Vec<_>>().join(", ")
        };
        let sql = format!(
            "{list} SELECT wanted.at, {columns} FROM wanted CROSS JOIN _owners USING (exchange, name) \
             CROSS JOIN {name} AS found ON found._owner = _owners.id{same_interval} AND ({found_key}) = \
             (SELECT {key} FROM {name} WHERE _owner = _owners.id{interval} AND {time} <= ? ORDER BY {newest} LIMIT 1) \
             ORDER BY wanted.at",
            columns = of_found(&table.record_columns),
            name = table.name,
            found_key = of_found(table.sort_key()),
            key = table.sort_key().join(", "),
            time = table.time(),
            newest = table.order_by("DESC"),
        );
        let mut rows = sqlx::query_with(AssertSqlSafe(sql), values.finish()?).fetch(&mut **connection);
        while let Some(row) = rows.try_next().await? {
            let mut reader = RowReader::new(&row);
            let at = reader.next::<i64>().map_err(Cause::Corrupt)?;
            if let Some(owner) = usize::try_from(at).ok().and_then(|at| owners.get(at)) {
                let series = request.series(owner.clone());
                table.read_from(&mut reader, &series, found).map_err(Cause::Corrupt)?;
            }
        }
        Ok(())
    }
}
