//! Stale marks: the hours whose ticks a writer changes.
//!
//! A statement that writes or removes a tick of an hour before the announced watermark adds a mark for the instrument and
//! the hour, in the same transaction. The insertion of marks takes the row-exclusive lock of their table before its
//! snapshot, and holds it until the end of the transaction. Maintenance announces a watermark, waits for the transactions
//! that held the lock at this time, and then reads the ticks. Every later transaction sees the announced watermark.

use std::sync::Arc;

use qi_core::store::kit::Entry;
use qi_core::{Interval, Timestamp};
use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

use super::connect::PgConnection;
use super::sub_batches::owner_of;
use super::types::Pg;

/// The beginning of every statement that writes records of cataloged series. The trigger of the catalog ignores these
/// statements.
pub(super) const MARKER: &str = "/*qi:series*/ ";

/// The second marker, of statements that add marks.
pub(super) const MARKED: &str = "/*qi:bars*/ ";

// An hour that begins before the announced watermark ends before or at it, because the watermark is a full hour.
const MARKS: &str = "INSERT INTO {schema}.qi_bars_stale (instrument_id, first, until) \
    SELECT x.id, x.hour, x.hour + interval '1 hour' FROM unnest($1::int[], $2::timestamptz[]) AS x(id, hour), \
    {schema}.qi_bars_state s WHERE x.hour < s.announced";

/// Returns a statement that adds marks for the ticks that `statement` inserts, replaces or deletes.
pub(super) fn marked(statement: &str, schema: &str) -> String {
    let statement = statement.strip_prefix(MARKER).unwrap_or(statement);
    format!(
        "{MARKER}{MARKED}WITH _w AS ({statement} RETURNING \"instrument_id\" AS _id, \"ts\" AS _ts) \
         INSERT INTO \"{schema}\".qi_bars_stale (instrument_id, first, until) \
         SELECT DISTINCT _id, _hour, _hour + interval '1 hour' FROM \"{schema}\".qi_bars_state _s, _w, \
         LATERAL date_bin('1 hour', _ts, TIMESTAMPTZ '1970-01-05 00:00:00+00') _hour WHERE _ts < _s.announced"
    )
}

/// Returns a statement with the markers. The caller adds the marks in the same transaction.
pub(super) fn with_markers(statement: &str) -> String {
    let statement = statement.strip_prefix(MARKER).unwrap_or(statement);
    format!("{MARKER}{MARKED}{statement}")
}

/// The statements on ticks that add marks.
#[derive(Debug)]
pub(super) struct MarkedSql {
    pub(super) copy: String,
    pub(super) merge: SqlStr,
    pub(super) merge_converted: SqlStr,
    marks: SqlStr,
    mark_all: SqlStr,
}

impl MarkedSql {
    pub(super) fn of(schema: &str, copy: &str, merge: &SqlStr, merge_converted: &SqlStr) -> Self {
        let sql = |text: String| AssertSqlSafe(Arc::<str>::from(text)).into_sql_str();
        let mark_all = format!(
            "INSERT INTO \"{schema}\".qi_bars_stale (instrument_id, first, until) VALUES (0, $1, $2)"
        );
        Self {
            copy: with_markers(copy),
            merge: sql(marked(merge.as_str(), schema)),
            merge_converted: sql(marked(merge_converted.as_str(), schema)),
            marks: sql(MARKS.replace("{schema}", &format!("\"{schema}\""))),
            mark_all: sql(mark_all),
        }
    }

    /// Adds marks for the hours of sorted ticks, in the transaction of their COPY.
    pub(super) async fn add_marks(
        &self,
        transaction: &mut PgConnection<'_>,
        records: &[Entry],
    ) -> Result<(), sqlx::Error> {
        let (mut ids, mut hours) = (Vec::new(), Vec::new());
        for entry in records {
            let (id, hour) = (owner_of(entry), Interval::H1.floor(entry.sort_key.0));
            if ids.last() != Some(&id) || hours.last() != Some(&Pg(hour)) {
                ids.push(id);
                hours.push(Pg(hour));
            }
        }
        sqlx::query(self.marks.clone()).bind(ids).bind(hours).execute(transaction).await.map(drop)
    }

    /// Adds a mark for the hours of all instruments before `end`, in the transaction that removes their ticks.
    pub(super) async fn mark_before(
        &self,
        transaction: &mut PgConnection<'_>,
        end: Timestamp,
    ) -> Result<(), sqlx::Error> {
        let end = Interval::H1.ceil(end).unwrap_or(Timestamp::MAX);
        if end <= Timestamp::MIN {
            return Ok(());
        }
        sqlx::query(self.mark_all.clone())
            .bind(Pg(Timestamp::MIN))
            .bind(Pg(end))
            .execute(transaction)
            .await
            .map(drop)
    }
}
