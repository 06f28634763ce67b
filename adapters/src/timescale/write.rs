//! Writes: COPY for new records, and a merge for records that may exist.

use std::borrow::Cow;

use futures::future::join_all;
use qi_core::Instrument;
use qi_core::Timestamp;
use qi_core::record::{FieldWriter as _, OwnerRef, Records, SeriesType, SortKey};
use qi_core::store::InsertReport;
use qi_core::store::kit::{Entry, entries};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgRow, PgTypeInfo};
use sqlx::{Encode, Postgres, Row as _, SqlStr, Type};
use tokio::sync::Notify;
use tracing::Instrument as _;

use super::connect::{PgConnection, PooledConnection};
use super::duplicates::{ProbedRecords, divide, samples, segments};
use super::error::{Cause, UNIQUE_VIOLATION, has_state};
use super::series::TimeBounds;
use super::sql::RegisteredDataset;
use super::store::TimescaleStore;
use super::sub_batches::{INTERVAL_BITS, owner_of, split};
use super::table::{Buffers, Column, ColumnType, Encoder};
use super::types::Pg;

/// The path of a write, as the label of the metric and the field of the span.
#[derive(Debug, Clone, Copy)]
enum WritePath {
    Copy,
    Merge,
    /// COPY failed because another writer inserted a record after the probe. The records were then merged.
    CopyThenMerge,
}

impl WritePath {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Merge => "merge",
            Self::CopyThenMerge => "copy_then_merge",
        }
    }
}

/// The series of a batch.
struct SeriesNumbers<'a> {
    /// The number of each record's series, by which records are ordered. The high bits are the id of the instrument or the
    /// rank of the name; the low bits are the interval.
    numbers: Vec<u64>,
    /// The sorted names of the batch. Empty if the series are instruments.
    names: Vec<Cow<'a, str>>,
}

fn instrument(batch: &dyn Records, at: usize) -> Option<&Instrument> {
    match batch.series(at).owner {
        OwnerRef::Instrument(instrument) => Some(instrument),
        OwnerRef::Name(_) => None,
    }
}

fn name(batch: &dyn Records, at: usize) -> Option<Cow<'_, str>> {
    match batch.series(at).owner {
        OwnerRef::Instrument(_) => None,
        OwnerRef::Name(name) => Some(name),
    }
}

impl TimescaleStore {
    pub(super) async fn insert_on(
        &self,
        connection: &mut PooledConnection,
        registered: &RegisteredDataset,
        batch: &dyn Records,
    ) -> Result<InsertReport, Cause> {
        let series = self.series_numbers(connection, registered, batch).await?;
        let chunk_length = self.inner.cache.chunks.min_length(connection, registered).await?;
        let chunks = &self.inner.cache.chunks;
        let entries =
            entries(batch, &series.numbers, |(ts, _)| chunks.chunk_number(chunk_length, ts.as_micros()));
        let report = InsertReport::new(batch.len(), batch.len() - entries.len());
        let catalog = &self.inner.cache.series;
        let epoch = match registered.table.dataset.series() {
            SeriesType::Instrument => {
                Some(catalog.widen(connection, registered, instrument_bounds(&entries)).await?)
            }
            SeriesType::Name { .. } => None,
        };
        let write = BatchWrite { store: self, registered, batch, names: &series.names };
        let sub_batches = split(&entries, self.inner.config.write.max_statement_records);
        let writers = self.inner.config.write.connections.min(sub_batches.len());
        let queue = std::sync::Mutex::new(sub_batches.into_iter());
        // When the first writer has finished, the other writers stop waiting for a connection.
        let done = Notify::new();
        let first = async {
            let outcome = write.write_sub_batches(connection, &queue).await;
            done.notify_waiters();
            outcome
        };
        let others = join_all((1..writers).map(|_| async {
            let spare = tokio::select! {
                spare = self.inner.connections.acquire_spare() => spare,
                () = done.notified() => None,
            };
            let Some(mut other) = spare else { return Ok(()) };
            let outcome = write.write_sub_batches(&mut other, &queue).await;
            other.release(&outcome);
            outcome
        }));
        let (first, rest) = futures::join!(first, others);
        let outcome = rest.into_iter().fold(first, Result::and);
        // Also after an error, because a part of the batch may be committed.
        if let Some(epoch) = epoch
            && !outcome.as_ref().is_err_and(Cause::ends_connection)
        {
            let confirmed = catalog.confirm(connection, registered, epoch, instrument_bounds(&entries)).await;
            return outcome.and(confirmed).map(|()| report);
        }
        outcome.map(|()| report)
    }

    async fn series_numbers<'a>(
        &self,
        connection: &mut PgConnection<'_>,
        registered: &RegisteredDataset,
        batch: &'a dyn Records,
    ) -> Result<SeriesNumbers<'a>, Cause> {
        let (all, dataset) = (0..batch.len(), registered.table.dataset);
        let (owners, names) = if dataset.series() == SeriesType::Instrument {
            let instruments = all.filter_map(move |at| instrument(batch, at));
            (self.inner.cache.ids.ensure(connection, instruments).await?, Vec::new())
        } else {
            let all: Vec<Cow<'a, str>> = all.filter_map(|at| name(batch, at)).collect();
            let mut names = all.clone();
            names.sort_unstable();
            names.dedup();
            // A batch has at most 1,000,000 records.
            let rank = |name| i32::try_from(names.partition_point(|known| known < name)).unwrap_or(i32::MAX);
            (all.iter().map(rank).collect(), names)
        };
        let interval = |at| match dataset.interval() {
            None => 0,
            Some(_) => batch.series(at).interval.map_or(0, |interval| interval as u64),
        };
        let number =
            |(at, owner): (usize, i32)| (u64::from(owner.cast_unsigned()) << INTERVAL_BITS) + interval(at);
        Ok(SeriesNumbers { numbers: owners.into_iter().enumerate().map(number).collect(), names })
    }
}

/// Returns the ids of the instruments of sorted entries, with the bounds of their times. An id may occur repeatedly.
fn instrument_bounds(entries: &[Entry]) -> impl Iterator<Item = (i32, TimeBounds)> {
    entries
        .chunk_by(|a, b| (a.group, a.series) == (b.group, b.series))
        .filter_map(|run| Some((owner_of(run.first()?), (run.first()?.sort_key.0, run.last()?.sort_key.0))))
}

/// A batch that is being written.
struct BatchWrite<'a> {
    store: &'a TimescaleStore,
    registered: &'a RegisteredDataset,
    batch: &'a dyn Records,
    names: &'a [Cow<'a, str>],
}

impl<'a> BatchWrite<'a> {
    /// Writes sub-batches until none is left or a write fails.
    async fn write_sub_batches(
        &self,
        connection: &mut PooledConnection,
        queue: &std::sync::Mutex<std::vec::IntoIter<&'a [Entry]>>,
    ) -> Result<(), Cause> {
        let next = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
        while let Some(sub_batch) = next() {
            if let Err(error) = self.write_sub_batch(connection, sub_batch).await {
                // The other writers stop after their current sub-batch.
                let mut queue = queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                queue.by_ref().for_each(drop);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn write_sub_batch(
        &self,
        connection: &mut PooledConnection,
        sub_batch: &[Entry],
    ) -> Result<(), Cause> {
        if sub_batch.len() < self.store.inner.config.write.copy_from {
            return self.send(connection, sub_batch, WritePath::Merge).await;
        }
        let ProbedRecords { new, duplicates } = self.probe(connection, sub_batch).await?;
        if new.len() < duplicates.len() {
            // The sub-batch is mostly a replay, so one statement is cheaper than two.
            return self.send(connection, sub_batch, WritePath::Merge).await;
        }
        self.send(connection, &new, WritePath::Copy).await?;
        if !duplicates.is_empty() {
            self.send(connection, &duplicates, WritePath::Merge).await?;
        }
        Ok(())
    }

    /// Sends records by COPY or by a merge. Either is one transaction.
    async fn send(
        &self,
        connection: &mut PooledConnection,
        records: &[Entry],
        path: WritePath,
    ) -> Result<(), Cause> {
        let span = tracing::debug_span!(
            "timescale.write",
            dataset = self.registered.table.name(),
            rows = records.len(),
            write_path = tracing::field::Empty,
        );
        let work = async {
            if let WritePath::Copy = path {
                match self.copy(connection, records).await {
                    Err(error) if has_state(&error, UNIQUE_VIOLATION) => {}
                    done => return Ok::<_, Cause>(done.map(|()| path)?),
                }
                self.merge(connection, records).await?;
                return Ok(WritePath::CopyThenMerge);
            }
            self.merge(connection, records).await?;
            Ok(path)
        };
        let path = work.instrument(span.clone()).await?;
        span.record("write_path", path.as_str());
        let labels = [("dataset", self.registered.table.name()), ("write_path", path.as_str())];
        metrics::counter!("qi_timescale_written_rows_total", &labels).increment(records.len() as u64);
        metrics::counter!("qi_timescale_written_sub_batches_total", &labels).increment(1);
        Ok(())
    }

    fn encode_key<B: Buffers>(&self, entry: &Entry, out: &mut Encoder<B>) {
        let Entry { sort_key, at, .. } = *entry;
        let owner = owner_of(entry);
        match self.names.get(owner.cast_unsigned() as usize) {
            Some(name) => out.text(name),
            None => out.int4(owner),
        }
        if self.registered.table.dataset.interval().is_some()
            && let Some(interval) = self.batch.series(at as usize).interval
        {
            out.interval(interval);
        }
        self.encode_sort_key(sort_key, out);
    }

    fn encode_sort_key<B: Buffers>(&self, (ts, seq): SortKey, out: &mut Encoder<B>) {
        out.time(ts);
        if self.registered.table.dataset.seq().is_some() {
            out.counter(seq);
        }
    }

    fn encode<B: Buffers>(&self, entry: &Entry, out: &mut Encoder<B>) {
        self.encode_key(entry, out);
        self.batch.write(entry.at as usize, out);
    }

    /// Writes all records or none, with one COPY in one transaction.
    async fn copy(&self, connection: &mut PooledConnection, records: &[Entry]) -> Result<(), sqlx::Error> {
        let marked = self.store.marked_sql(self.registered);
        if marked.is_none() && !connection.needs_transaction() {
            return self.copy_rows(connection, &self.registered.sql.copy, records).await;
        }
        let mut transaction = connection.begin().await?;
        let mut copy = &self.registered.sql.copy;
        if let Some(marked) = marked {
            marked.add_marks(&mut transaction, records).await?;
            copy = &marked.copy;
        }
        self.copy_rows(&mut transaction, copy, records).await?;
        transaction.commit().await
    }

    async fn copy_rows(
        &self,
        connection: &mut PgConnection<'_>,
        sql: &str,
        records: &[Entry],
    ) -> Result<(), sqlx::Error> {
        /// The size of the buffer after which its rows are sent, in bytes.
        const BUFFER_BYTES: usize = 256 * 1024;
        let columns = i16::try_from(self.registered.table.columns().len()).unwrap_or(i16::MAX).to_be_bytes();
        let mut copy = connection.copy_in_raw(sql).await?;
        let mut rows = Encoder(CopyRows(Vec::with_capacity(BUFFER_BYTES + 1024)));
        rows.0.0.extend_from_slice(COPY_HEADER);
        let mut sent = false;
        for entry in records {
            rows.0.0.extend_from_slice(&columns);
            self.encode(entry, &mut rows);
            if rows.0.0.len() >= BUFFER_BYTES {
                let length = rows.0.0.len() - MIN_LAST_SEND_BYTES;
                copy.send(&rows.0.0[..length]).await?;
                rows.0.0.drain(..length);
                sent = true;
            }
        }
        rows.0.0.extend_from_slice(&COPY_END);
        if !sent {
            extend_header(&mut rows.0.0);
        }
        copy.send(rows.0.0.as_slice()).await?;
        copy.finish().await.map(drop)
    }

    /// Queries the existing keys of a sub-batch, and divides its records into new and repeated records.
    async fn probe(
        &self,
        connection: &mut PooledConnection,
        sub_batch: &[Entry],
    ) -> Result<ProbedRecords, Cause> {
        let RegisteredDataset { sql, table, .. } = self.registered;
        // In the columnstore each probe decompresses rows, so only three records are probed. They detect most replays.
        let converted = self.touches_columnstore(connection, sub_batch).await?;
        let segments = if converted { samples(sub_batch) } else { segments(sub_batch) };
        let query = bind_arrays(&sql.existing, &table.segment(), &segments, |segment, out| {
            let (Some(first), Some(last)) = (segment.first(), segment.last()) else { return };
            self.encode_key(first, out);
            self.encode_sort_key(last.sort_key, out);
        });
        let query = bind_times(query, sub_batch);
        let found = query.fetch_all(&mut **connection).await?;
        if found.is_empty() {
            return Ok(ProbedRecords { new: sub_batch.to_vec(), duplicates: Vec::new() });
        }
        if converted {
            return Ok(ProbedRecords { new: Vec::new(), duplicates: sub_batch.to_vec() });
        }
        let key = |row: &PgRow| -> Result<(usize, SortKey), Cause> {
            let number: i64 = row.try_get(0)?;
            let segment = usize::try_from(number - 1).unwrap_or(usize::MAX);
            Ok((segment, table.read_sort_key(row, 1)?))
        };
        Ok(divide(&segments, found.iter().map(key).collect::<Result<_, _>>()?))
    }

    /// Merges records with one statement. It reads the existing records, and writes only records that
    /// are new or differ.
    async fn merge(&self, connection: &mut PooledConnection, records: &[Entry]) -> Result<(), Cause> {
        /// The number of records from which the rows in the columnstore are read by one hash join, instead of one lookup for
        /// each record. Its transaction disables nested loops.
        const MIN_SET_RECORDS: usize = 200;
        let RegisteredDataset { sql, table, .. } = self.registered;
        let (merge, merge_converted) = match self.store.marked_sql(self.registered) {
            Some(marked) => (&marked.merge, &marked.merge_converted),
            None => (&sql.merge, &sql.merge_converted),
        };
        let bind = |statement| {
            let query =
                bind_arrays(statement, table.columns(), records, |entry, out| self.encode(entry, out));
            bind_times(query, records)
        };
        if records.len() < MIN_SET_RECORDS || !self.touches_columnstore(connection, records).await? {
            bind(merge).execute(&mut **connection).await?;
            return Ok(());
        }
        let mut transaction = connection.begin().await?;
        sqlx::query("SELECT set_config('enable_nestloop', 'off', true)").execute(&mut *transaction).await?;
        bind(merge_converted).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Returns whether the sub-batch may touch chunks in the columnstore. Only the Community edition has a columnstore.
    async fn touches_columnstore(
        &self,
        connection: &mut PooledConnection,
        sub_batch: &[Entry],
    ) -> Result<bool, Cause> {
        let store = &self.store.inner;
        match time_bounds(sub_batch) {
            Some((begin, _)) if store.connections.server_info().license.as_deref() == Some("timescale") => {
                store.cache.chunks.are_converted(connection, self.registered, begin).await
            }
            _ => Ok(false),
        }
    }
}

/// Binds one array for each of these columns to a statement.
fn bind_arrays<T>(
    statement: &SqlStr,
    columns: &[Column],
    rows: &[T],
    encode: impl Fn(&T, &mut Encoder<Arrays>),
) -> Statement {
    let mut arrays = Encoder(Arrays::new(columns, rows.len()));
    for row in rows {
        encode(row, &mut arrays);
    }
    let mut query = sqlx::query(statement.clone());
    for (bytes, column) in arrays.0.columns.into_iter().zip(columns) {
        query = query.bind(RawArray { bytes, ty: column.ty.element() });
    }
    query
}

fn time_bounds(sub_batch: &[Entry]) -> Option<(Timestamp, Timestamp)> {
    let times = || sub_batch.iter().map(|entry| entry.sort_key.0);
    times().min().zip(times().max())
}

/// Binds the earliest and the latest time of a sub-batch.
fn bind_times(query: Statement, sub_batch: &[Entry]) -> Statement {
    match time_bounds(sub_batch) {
        Some((earliest, latest)) => query.bind(Pg(earliest)).bind(Pg(latest)),
        None => query,
    }
}

type Statement = sqlx::query::Query<'static, Postgres, PgArguments>;

/// The header of a COPY: the signature, no flags and no extension. See "Binary Format" in PostgreSQL's page on COPY.
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The minimum size of the last `CopyData` message, in bytes: more than one TCP segment on the loopback interface.
///
/// The driver does not set `TCP_NODELAY`. Therefore the final packet of a COPY is sent only after the server
/// acknowledged the data. The acknowledgement takes 40 ms if the data fits in one segment.
const MIN_LAST_SEND_BYTES: usize = 64 * 1024;

/// Extends a short COPY to [`MIN_LAST_SEND_BYTES`] with a header extension, which the server skips.
fn extend_header(copy: &mut Vec<u8>) {
    let Some(missing) = MIN_LAST_SEND_BYTES.checked_sub(copy.len()) else { return };
    let length = u32::try_from(missing).unwrap_or(0).to_be_bytes();
    let end = COPY_HEADER.len();
    copy.splice(end - length.len()..end, length.into_iter().chain(std::iter::repeat_n(0, missing)));
}

/// The end of the data: a row of -1 columns.
const COPY_END: [u8; 2] = (-1_i16).to_be_bytes();

/// The rows of a COPY in one buffer.
struct CopyRows(Vec<u8>);

impl Buffers for CopyRows {
    const ARRAYS: bool = false;

    fn next(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

/// The columns of a sub-batch as arrays, with one buffer per column.
struct Arrays {
    columns: Vec<Vec<u8>>,
    next: usize,
}

impl Arrays {
    fn new(columns: &[Column], rows: usize) -> Self {
        let buffer = |column: &Column| {
            let mut buffer = Vec::with_capacity(20 + rows * 20);
            // One dimension, NULLs allowed, the element type, the length, the first index.
            buffer.extend_from_slice(&1_i32.to_be_bytes());
            buffer.extend_from_slice(&1_i32.to_be_bytes());
            buffer.extend_from_slice(&column.ty.element().oid().to_be_bytes());
            buffer.extend_from_slice(&u32::try_from(rows).unwrap_or(u32::MAX).to_be_bytes());
            buffer.extend_from_slice(&1_i32.to_be_bytes());
            buffer
        };
        Self { columns: columns.iter().map(buffer).collect(), next: 0 }
    }
}

impl Buffers for Arrays {
    const ARRAYS: bool = true;

    fn next(&mut self) -> &mut Vec<u8> {
        let at = self.next;
        self.next = (at + 1) % self.columns.len();
        &mut self.columns[at]
    }
}

/// An array in PostgreSQL's binary format.
struct RawArray {
    bytes: Vec<u8>,
    ty: ColumnType,
}

impl Type<Postgres> for RawArray {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(sqlx::postgres::types::Oid(ColumnType::Text.array_oid()))
    }
}

impl Encode<'_, Postgres> for RawArray {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(&self.bytes);
        Ok(IsNull::No)
    }
    fn produces(&self) -> Option<PgTypeInfo> {
        Some(PgTypeInfo::with_oid(sqlx::postgres::types::Oid(self.ty.array_oid())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_copy_is_extended_by_its_header() {
        let rows = [7; 1_000];
        let mut copy = [COPY_HEADER, &rows].concat();
        extend_header(&mut copy);
        assert_eq!(copy.len(), MIN_LAST_SEND_BYTES);
        let extension = MIN_LAST_SEND_BYTES - COPY_HEADER.len() - rows.len();
        let (header, rest) = copy.split_at(COPY_HEADER.len());
        assert_eq!(header[..15], COPY_HEADER[..15]);
        assert_eq!(header[15..], u32::try_from(extension).unwrap().to_be_bytes());
        assert!(rest[..extension].iter().all(|byte| *byte == 0) && rest[extension..] == rows);
        let long = vec![7; MIN_LAST_SEND_BYTES + 1];
        let mut same = long.clone();
        extend_header(&mut same);
        assert_eq!(same, long);
    }
}
