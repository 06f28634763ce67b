//! Inserts: records in key order, each key once, in statements of many rows.

use std::sync::Arc;

use qi_core::record::{Owner, Records, SeriesKey};
use qi_core::store::InsertReport;
use qi_core::store::kit::{Entry, SeriesRanks, entries};
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use super::error::Cause;
use super::table::{Table, add_owner, owner_list};
use super::values::{Values, integer};

/// The maximum number of records in one transaction. Other writers get the lock between two transactions.
const TRANSACTION: usize = 50_000;

/// The maximum number of owners in one statement.
pub(super) const OWNERS: usize = 256;

pub(super) async fn insert(
    connection: &mut SqliteConnection,
    table: &Table,
    batch: &dyn Records,
) -> Result<InsertReport, Cause> {
    let SeriesRanks { series, ranks } = SeriesRanks::of(batch);
    let entries = entries(batch, &ranks, |_| 0);
    let report = InsertReport::new(batch.len(), batch.len() - entries.len());
    for records in entries.chunks(TRANSACTION) {
        // Takes the lock at the beginning. A transaction that reads first could not wait for the lock.
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        // The entries are in the order of the ranks.
        let rank =
            |entry: Option<&Entry>| usize::try_from(entry.map_or(0, |entry| entry.series)).unwrap_or(0);
        let (first, last) = (rank(records.first()), rank(records.last()));
        let ids = series_ids(&mut transaction, &series[first..=last]).await?;
        let mut rest = records;
        while let Some((rows, sql)) = table.inserts.iter().find(|(rows, _)| *rows <= rest.len()) {
            let (now, later) = rest.split_at(*rows);
            let mut values = Values::with_capacity(rows * table.width);
            for entry in now {
                let rank = rank(Some(entry));
                values.add(ids[rank - first]);
                if let Some(interval) = series[rank].interval {
                    values.add(interval.as_str());
                }
                let (time, seq) = entry.sort_key;
                values.add(time.as_micros());
                if table.dataset.seq().is_some() {
                    values.add(integer(seq));
                }
                batch.write(entry.at as usize, &mut values);
            }
            let sql = AssertSqlSafe(Arc::clone(sql));
            sqlx::query_with(sql, values.finish()?).execute(&mut *transaction).await?;
            rest = later;
        }
        transaction.commit().await?;
    }
    Ok(report)
}

/// Returns the number of each series' owner. Creates the missing numbers.
async fn series_ids(connection: &mut SqliteConnection, series: &[SeriesKey]) -> Result<Vec<i64>, Cause> {
    let mut ids = Vec::with_capacity(series.len());
    for series in series.chunks(OWNERS) {
        let owners: Vec<&Owner> = series.iter().map(|series| &series.owner).collect();
        let mut found = find_ids(connection, &owners).await?;
        if found.iter().any(Option::is_none) {
            let list = owner_list(owners.len());
            let sql = format!(
                "INSERT OR IGNORE INTO _owners (exchange, name) {list} SELECT exchange, name FROM wanted \
                 WHERE name IS NOT NULL ORDER BY at"
            );
            sqlx::query_with(AssertSqlSafe(sql), arguments(&owners).finish()?)
                .execute(&mut *connection)
                .await?;
            found = find_ids(connection, &owners).await?;
        }
        ids.extend(found.into_iter().map(Option::unwrap_or_default));
    }
    Ok(ids)
}

/// Returns the number of each owner that has one. The statement takes at most [`OWNERS`] owners.
async fn find_ids(connection: &mut SqliteConnection, owners: &[&Owner]) -> Result<Vec<Option<i64>>, Cause> {
    let sql = format!(
        "{} SELECT at, id FROM wanted CROSS JOIN _owners USING (exchange, name)",
        owner_list(owners.len())
    );
    let rows =
        sqlx::query_with(AssertSqlSafe(sql), arguments(owners).finish()?).fetch_all(connection).await?;
    let mut ids = vec![None; owners.len()];
    for row in rows {
        let at = usize::try_from(row.try_get::<i64, _>(0)?).unwrap_or(usize::MAX);
        if let Some(id) = ids.get_mut(at) {
            *id = row.try_get(1)?;
        }
    }
    Ok(ids)
}

fn arguments(owners: &[&Owner]) -> Values {
    let mut values = Values::with_capacity(2 * owners.len());
    for owner in owners {
        add_owner(&mut values, &owner.as_ref());
    }
    values
}
