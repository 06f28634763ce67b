//! Inserts: rows in key order, each key once, in requests of bounded size.

use std::time::Duration;

use bytes::Bytes;
use qi_core::record::{Records, SeriesKey};
use qi_core::store::InsertReport;
use qi_core::store::kit::{Entry, SeriesRanks, entries};
use qi_core::{Interval, Operation, PriceTick, TimeRange, Timestamp};

use super::error::Cause;
use super::marks::{MAX_MARKS, StaleRange};
use super::materialized::MARKED_COMMENT;
use super::schema;
use super::store::{BarsState, ClickHouseStore, Inner};
use super::table::{Table, write_record};
use super::wire::Writer;

/// The size of the buffer after which its rows are sent, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;

/// The timeout of the empty insert that finds the reason for a broken connection.
const REJECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// The maximum number of attempts of one request while the server's version, the column types or the materialized bars
/// change, or while the request arrives after its deadline.
const MAX_ATTEMPTS: usize = 3;

/// The maximum number of periods of a partition's length in one request. The server creates a part for each partition of
/// a request. Consecutive records of 12 periods are in at most 13 partitions. A period of sparse records can touch two
/// years or three months (January 31 to March 1), so 12 periods are in at most 36 partitions.
const MAX_PERIODS: usize = 12;

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// The error code for an unknown setting.
const UNKNOWN_SETTING: u16 = 115;

/// The error code for column types that differ from the request's header.
const INCORRECT_DATA: u16 = 117;

impl ClickHouseStore {
    pub(super) async fn insert_records(&self, batch: &dyn Records) -> qi_core::Result<InsertReport> {
        let operation = Operation::Insert;
        self.check_open(operation)?;
        let table = self.table_of(batch.dataset(), operation)?;
        self.current_info().check_batch(batch.len()).map_err(|e| Cause::Core(e).into_error(operation))?;
        if batch.is_empty() {
            return Ok(InsertReport::default());
        }
        self.with_permit(operation, async { self.insert_all(table, batch).await }).await
    }

    async fn insert_all(&self, table: &Table, batch: &dyn Records) -> Result<InsertReport, Cause> {
        let SeriesRanks { series, ranks } = SeriesRanks::of(batch);
        let period = table.partition_days() * MICROS_PER_DAY;
        let entries = entries(batch, &ranks, |(time, _)| time.as_micros().div_euclid(period));
        let report = InsertReport::new(batch.len(), batch.len() - entries.len());
        let encoded = |key: &SeriesKey| {
            let mut out = Writer::default();
            Table::write_series(&mut out, &key.owner.as_ref(), key.interval);
            out.0
        };
        let encoded: Vec<Vec<u8>> = series.iter().map(encoded).collect();
        // One statement adds the marks of a request, so that the insert begins before its deadline.
        let max_hours = if self.state_of_marks(table).await?.is_some() { MAX_MARKS } else { usize::MAX };
        let mut marked = None;
        for part in split(&entries, self.inner.config.write.max_request_records, max_hours) {
            let request =
                InsertRequest { batch: Some(batch), series: &encoded, entries: part, deadline: None };
            marked = self.insert_part(table, request, &series).await?;
        }
        // Marks that settle at once do not cover the write: maintenance may have built these hours during it.
        if marked.is_some_and(|state| state.settle.is_zero()) {
            let state = self.bars_state(true).await?;
            let outcome = self.mark(&entries, &series, state).await;
            self.check_bars_state(outcome, true).await?;
        }
        Ok(report)
    }

    /// Adds the marks of a request and sends it, until the server accepts it. Returns the state of the marks.
    async fn insert_part(
        &self,
        table: &Table,
        mut request: InsertRequest<'_>,
        series: &[SeriesKey],
    ) -> Result<Option<BarsState>, Cause> {
        for _ in 0..MAX_ATTEMPTS {
            let state = self.state_of_marks(table).await?;
            request.deadline = state.map(|state| state.deadline);
            let outcome = async {
                if let Some(state) = state {
                    self.mark(request.entries, series, state).await?;
                }
                self.send(table, &request).await
            };
            let outcome = outcome.await;
            match self.check_bars_state(outcome, state.is_some()).await {
                Ok(true) => return Ok(state),
                Ok(false) | Err(Cause::ConcurrentChange) => {}
                Err(cause) => return Err(cause),
            }
        }
        Err(Cause::ConcurrentChange)
    }

    /// Returns the state from which a write to this table makes marks. None if it needs no marks.
    async fn state_of_marks(&self, table: &Table) -> Result<Option<BarsState>, Cause> {
        if table.dataset != PriceTick::DATASET {
            return Ok(None);
        }
        let state = self.bars_state_of_change().await?;
        if state.announced.is_none() {
            return Ok(None);
        }
        // Otherwise, the deadline leaves too little time for a request.
        if !state.settle.is_zero() && state.settle < self.inner.config.server_limits.statement_timeout * 2 {
            let rule = format!(
                "`server_limits.statement_timeout` must be at most half of the `bars_settle` of the schema, {:?}",
                state.settle
            );
            return Err(Cause::Schema { rule });
        }
        Ok(Some(state))
    }

    /// Adds marks for the hours of sorted ticks before the announced watermark.
    async fn mark(&self, entries: &[Entry], series: &[SeriesKey], state: BarsState) -> Result<(), Cause> {
        let announced = state.announced.unwrap_or(Timestamp::MIN);
        let mut ranges: Vec<StaleRange> = Vec::new();
        let mut last = None;
        for entry in entries {
            let hour = Interval::H1.floor(entry.sort_key.0);
            if hour >= announced || last == Some((entry.series, hour)) {
                continue;
            }
            let end = hour.checked_add(Interval::H1.duration()).unwrap_or(Timestamp::MAX);
            let series = &series[usize::try_from(entry.series).unwrap_or(usize::MAX)];
            ranges.push((series.owner.instrument().cloned(), TimeRange::new(hour, end)?));
            last = Some((entry.series, hour));
        }
        if !ranges.is_empty() {
            self.add_marks(&ranges, state.wait).await?;
        }
        Ok(())
    }

    /// Sends one request. Returns false if it must be sent again. If the future is dropped early, the request is aborted
    /// and the server discards its rows.
    async fn send(&self, table: &Table, request: &InsertRequest<'_>) -> Result<bool, Cause> {
        let connections = &self.inner.connections;
        let knows_deduplicate_insert = connections.knows_deduplicate_insert().await?;
        let mut result = self.send_once(table, request, knows_deduplicate_insert).await;
        // A server that rejects a request need not read all of it. It may respond and close the connection, and the
        // client then sees only a connection that broke during the send.
        let connection_lost = result.as_ref().is_err_and(Cause::is_network);
        if connection_lost && let Some(rejection) = self.rejection(table, knows_deduplicate_insert).await {
            result = Err(rejection);
        }
        match result {
            Err(cause) if cause.has_code(INCORRECT_DATA) && self.refresh_enum_types(table).await => Ok(false),
            Err(cause) if !cause.has_code(UNKNOWN_SETTING) => Err(cause),
            // Also checked after success: a server of version 26.2 or later that received no
            // `deduplicate_insert = disable` may have dropped the rows as a duplicate block. Sending them again is
            // safe, because a key is stored once.
            result => {
                if result.is_err() {
                    connections.forget_deduplicate_insert().await;
                }
                if connections.knows_deduplicate_insert().await? == knows_deduplicate_insert {
                    return result.map(|()| true);
                }
                Ok(false)
            }
        }
    }

    /// Reads the column types from the database and stores the `Enum8` types with additional names. Returns whether
    /// they changed.
    async fn refresh_enum_types(&self, table: &Table) -> bool {
        let Inner { connections, config, .. } = &*self.inner;
        let found = schema::stored_columns(
            &connections.read_client,
            config,
            std::slice::from_ref(&table.unquoted_name),
        )
        .await;
        found.is_ok_and(|found| table.update_enum_types(&found))
    }

    /// Returns the error with which the server rejects inserts. None without such a response. Sends an insert without
    /// rows. The server reads such a request completely, so the client receives its response.
    async fn rejection(&self, table: &Table, knows_deduplicate_insert: bool) -> Option<Cause> {
        let empty = InsertRequest::default();
        let response =
            tokio::time::timeout(REJECTION_TIMEOUT, self.send_once(table, &empty, knows_deduplicate_insert))
                .await
                .ok()?;
        response.err().filter(Cause::is_server_error)
    }

    async fn send_once(
        &self,
        table: &Table,
        request: &InsertRequest<'_>,
        knows_deduplicate_insert: bool,
    ) -> Result<(), Cause> {
        let mut client = self.inner.connections.insert_client(knows_deduplicate_insert);
        if let Some(deadline) = request.deadline {
            client = client.with_setting("log_comment", format!("{MARKED_COMMENT}{deadline}"));
        }
        let mut insert = client.insert_formatted_with(&table.insert_sql);
        let mut out = Writer(Vec::with_capacity(BUFFER_BYTES + 1024));
        table.write_header(&mut out);
        for entry in request.entries {
            let Some(batch) = request.batch else { break };
            // The rank of a series is its index in `request.series`.
            out.0.extend_from_slice(&request.series[usize::try_from(entry.series).unwrap_or(usize::MAX)]);
            write_record(table, batch, entry.at as usize, entry.sort_key, &mut out);
            if out.0.len() >= BUFFER_BYTES {
                let full = std::mem::replace(&mut out.0, Vec::with_capacity(BUFFER_BYTES + 1024));
                insert.send(Bytes::from(full)).await?;
            }
        }
        insert.send(Bytes::from(out.0)).await?;
        Ok(insert.end().await?)
    }
}

/// Splits the entries into requests of at most `max_records` records from at most [`MAX_PERIODS`] periods and at most
/// `max_hours` hours of all series.
fn split(entries: &[Entry], max_records: usize, max_hours: usize) -> impl Iterator<Item = &[Entry]> {
    let hour = |entry: &Entry| (entry.series, Interval::H1.floor(entry.sort_key.0));
    let (mut records, mut periods, mut hours) = (0, 0, 0);
    entries.chunk_by(move |entry, next| {
        records += 1;
        periods += usize::from(entry.group != next.group);
        hours += usize::from(max_hours < usize::MAX && hour(entry) != hour(next));
        let continues = records < max_records && periods < MAX_PERIODS && hours < max_hours;
        if !continues {
            (records, periods, hours) = (0, 0, 0);
        }
        continues
    })
}

/// The records of one request.
#[derive(Default)]
struct InsertRequest<'a> {
    batch: Option<&'a dyn Records>,
    series: &'a [Vec<u8>],
    entries: &'a [Entry],
    /// The deadline of [`BarsState`] if the marks of these records were added.
    deadline: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(groups: impl IntoIterator<Item = i64>, max_records: usize) -> Vec<usize> {
        let entry = |group| Entry { group, series: 1, sort_key: (qi_core::Timestamp::MIN, 0), at: 0 };
        let entries: Vec<_> = groups.into_iter().map(entry).collect();
        split(&entries, max_records, usize::MAX).map(<[Entry]>::len).collect()
    }

    #[test]
    fn a_marked_request_has_a_bounded_number_of_hours() {
        let entry = |n: i64| {
            let time = Timestamp::from_secs(1_700_006_400 + n * 1_800).unwrap();
            Entry { group: 0, series: u64::from(n >= 10), sort_key: (time, 0), at: 0 }
        };
        let entries: Vec<_> = (0..12).map(entry).collect();
        let sizes = |hours| split(&entries, 100, hours).map(<[Entry]>::len).collect::<Vec<_>>();
        assert_eq!(sizes(2), [4, 4, 4]);
        assert_eq!(sizes(5), [10, 2]);
        assert_eq!(sizes(usize::MAX), [12]);
    }

    #[test]
    fn a_request_has_bounded_records_from_a_bounded_number_of_periods() {
        assert_eq!(sizes([0; 10], 4), [4, 4, 2]);
        assert_eq!(sizes([0; 10], 10), [10]);
        assert_eq!(sizes([0], 1), [1]);
        assert_eq!(sizes(0..30, 1_000), [12, 12, 6]);
        assert_eq!(sizes([-900, 0, 0, 800], 1_000), [4], "records of distant periods share a request");
        let many = (0..13).flat_map(|period| std::iter::repeat_n(period, 100));
        assert_eq!(sizes(many, 100_000), [1_200, 100]);
    }
}
