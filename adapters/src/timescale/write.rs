//! Writing: COPY where everything seems new, a merge that reads first where it is not.

use std::borrow::Cow;

use futures::future::join_all;
use qi_core::Instrument;
use qi_core::record::{FieldWriter as _, OwnerRef, Records, SeriesType};
use qi_core::store::InsertReport;
use qi_core::store::kit::{Entry, entries};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgTypeInfo};
use sqlx::{Connection as _, Encode, PgConnection, Postgres, Row as _, SqlStr, Type};
use tokio::sync::Notify;
use tracing::Instrument as _;

use super::chunks::WRITE_CHUNKS;
use super::connect::PooledConnection;
use super::error::{Cause, UNIQUE_VIOLATION, has_state};
use super::sql::Stored;
use super::store::TimescaleStore;
use super::table::{Buffers, Column, ColumnType, Encoder};
use super::types::Pg;

/// Which way a piece went: the label of the metric and the field of the span.
#[derive(Debug, Clone, Copy)]
enum Way {
    Copy,
    Merge,
    /// COPY met a record that was there, and the piece was merged.
    CopyThenMerge,
}

impl Way {
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
    /// What orders a record's series: the id of the instrument or the rank of the name, then the interval.
    numbers: Vec<u64>,
    /// The names of the batch in order; empty if the series are instruments.
    names: Vec<Cow<'a, str>>,
}

/// The bits of a series' number that are the interval's.
const INTERVAL_BITS: u32 = 8;

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
        lease: &mut PooledConnection,
        stored: &Stored,
        batch: &dyn Records,
    ) -> Result<InsertReport, Cause> {
        let series = self.series_numbers(lease, stored, batch).await?;
        let chunk_length = self.inner.cache.chunks.least(lease, stored).await?;
        let chunks = &self.inner.cache.chunks;
        let entries = entries(batch, &series.numbers, |(ts, _)| chunks.number(chunk_length, ts.as_micros()));
        let report = InsertReport::new(batch.len(), batch.len() - entries.len());
        let job = Job { store: self, stored, batch, names: &series.names };
        let pieces = cut(&entries, self.inner.config.write.piece);
        let lanes = self.inner.config.write.connections.min(pieces.len());
        let queue = std::sync::Mutex::new(pieces.into_iter());
        // What still waits for a connection when the first lane has left nothing to do, waits no longer.
        let done = Notify::new();
        let first = async {
            let outcome = job.lane(lease, &queue).await;
            done.notify_waiters();
            outcome
        };
        let others = join_all((1..lanes).map(|_| async {
            let spare = tokio::select! {
                spare = self.inner.connections.lease_spare() => spare,
                () = done.notified() => None,
            };
            let Some(mut other) = spare else { return Ok(()) };
            let outcome = job.lane(&mut other, &queue).await;
            other.give_back(&outcome);
            outcome
        }));
        let (first, rest) = futures::join!(first, others);
        rest.into_iter().fold(first, Result::and)?;
        Ok(report)
    }

    async fn series_numbers<'a>(
        &self,
        connection: &mut PgConnection,
        stored: &Stored,
        batch: &'a dyn Records,
    ) -> Result<SeriesNumbers<'a>, Cause> {
        let (all, dataset) = (0..batch.len(), stored.table.dataset);
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

/// Cuts the entries into pieces of bounded size that touch few chunks each.
fn cut(entries: &[Entry], most: usize) -> Vec<&[Entry]> {
    let mut pieces = Vec::new();
    let (mut start, mut chunks) = (0, 1);
    for at in 1..entries.len() {
        let new_chunk = entries[at].group != entries[at - 1].group;
        if at - start == most || (new_chunk && chunks == WRITE_CHUNKS) {
            pieces.push(&entries[start..at]);
            (start, chunks) = (at, 1);
        } else if new_chunk {
            chunks += 1;
        }
    }
    pieces.push(&entries[start..]);
    pieces
}

/// A batch under way.
struct Job<'a> {
    store: &'a TimescaleStore,
    stored: &'a Stored,
    batch: &'a dyn Records,
    names: &'a [Cow<'a, str>],
}

impl<'a> Job<'a> {
    /// Writes pieces until none is left, or one fails.
    async fn lane(
        &self,
        lease: &mut PooledConnection,
        queue: &std::sync::Mutex<std::vec::IntoIter<&'a [Entry]>>,
    ) -> Result<(), Cause> {
        let next = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
        while let Some(piece) = next() {
            let span = tracing::debug_span!(
                "timescale.write",
                dataset = self.stored.table.name(),
                rows = piece.len(),
                way = tracing::field::Empty,
            );
            let outcome = self.write(lease, piece).instrument(span.clone()).await;
            let way = match outcome {
                Ok(way) => way,
                Err(error) => {
                    // The other lanes end after their piece.
                    let mut queue = queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    queue.by_ref().for_each(drop);
                    return Err(error);
                }
            };
            span.record("way", way.as_str());
            let labels = [("dataset", self.stored.table.name()), ("way", way.as_str())];
            metrics::counter!("qi_timescale_written_rows_total", &labels).increment(piece.len() as u64);
            metrics::counter!("qi_timescale_written_pieces_total", &labels).increment(1);
        }
        Ok(())
    }

    async fn write(&self, lease: &mut PooledConnection, piece: &[Entry]) -> Result<Way, Cause> {
        let inner = &self.store.inner;
        let backoff = &self.stored.copy_backoff;
        if piece.len() < inner.config.write.copy_from {
            self.merge(lease, piece).await?;
            return Ok(Way::Merge);
        }
        if backoff.allows_copy() {
            // COPY that fails leaves dead rows behind. Most replays are seen by a look at three rows.
            if self.probe(lease, piece).await? {
                backoff.collided();
                self.merge(lease, piece).await?;
                return Ok(Way::Merge);
            }
            match self.copy(lease, piece).await {
                Ok(()) => {
                    backoff.reset();
                    return Ok(Way::Copy);
                }
                Err(error) if has_state(&error, UNIQUE_VIOLATION) => backoff.collided(),
                Err(error) => return Err(error.into()),
            }
            self.merge(lease, piece).await?;
            return Ok(Way::CopyThenMerge);
        }
        let written = self.merge(lease, piece).await?;
        backoff.merged(piece.len() as u64, written);
        Ok(Way::Merge)
    }

    fn encode_key<B: Buffers>(&self, entry: &Entry, out: &mut Encoder<B>) {
        let Entry { group: _, series, place: (ts, seq), at } = *entry;
        // A number has the bits of an id or of a rank above those of the interval.
        let owner = u32::try_from(series >> INTERVAL_BITS).unwrap_or(u32::MAX);
        match self.names.get(owner as usize) {
            Some(name) => out.text(name),
            None => out.int4(owner.cast_signed()),
        }
        if self.stored.table.dataset.interval().is_some()
            && let Some(interval) = self.batch.series(at as usize).interval
        {
            out.interval(interval);
        }
        out.time(ts);
        if self.stored.table.dataset.seq().is_some() {
            out.counter(seq);
        }
    }

    fn encode<B: Buffers>(&self, entry: &Entry, out: &mut Encoder<B>) {
        self.encode_key(entry, out);
        self.batch.write(entry.at as usize, out);
    }

    /// One COPY, one transaction: all of the piece or nothing.
    async fn copy(&self, lease: &mut PooledConnection, piece: &[Entry]) -> Result<(), sqlx::Error> {
        /// The buffer is sent when it is as full as this, in bytes.
        const SEND: usize = 256 * 1024;
        let columns = i16::try_from(self.stored.table.columns().len()).unwrap_or(i16::MAX).to_be_bytes();
        let mut copy = lease.copy_in_raw(&self.stored.sql.copy).await?;
        let mut rows = Encoder(CopyRows(Vec::with_capacity(SEND + 1024)));
        rows.0.0.extend_from_slice(COPY_HEADER);
        for entry in piece {
            rows.0.0.extend_from_slice(&columns);
            self.encode(entry, &mut rows);
            if rows.0.0.len() >= SEND {
                copy.send(rows.0.0.as_slice()).await?;
                rows.0.0.clear();
            }
        }
        rows.0.0.extend_from_slice(&COPY_END);
        copy.send(rows.0.0.as_slice()).await?;
        copy.finish().await.map(drop)
    }

    /// Whether the first, the middle or the last row is there already.
    async fn probe(&self, lease: &mut PooledConnection, piece: &[Entry]) -> Result<bool, Cause> {
        let entries = [0, piece.len() / 2, piece.len() - 1].map(|at| piece[at]);
        let found = self.arrays(&self.stored.sql.probe, &entries, self.stored.table.key(), Self::encode_key);
        let row = found.fetch_one(&mut **lease).await?;
        Ok(row.try_get(0)?)
    }

    /// One statement that reads what is there and writes only what is new or differs. Gives how many rows it
    /// wrote.
    async fn merge(&self, lease: &mut PooledConnection, piece: &[Entry]) -> Result<u64, Cause> {
        /// From how many rows on a transaction, with its three round trips, is cheaper than `ChunkAppend`.
        const MANY: usize = 200;
        let Stored { sql, table, .. } = self.stored;
        let arrays = |statement| self.arrays(statement, piece, table.columns(), Self::encode);
        if piece.len() < MANY || !self.store.inner.cache.chunks.are_hypertables() {
            return Ok(arrays(&sql.merge).execute(&mut **lease).await?.rows_affected());
        }
        let converted = self.touches_columnstore(lease, piece).await?;
        let mut transaction = lease.begin().await?;
        // TimescaleDB's own node decides anew for each row which chunks to look at, which takes four times as
        // long as to look into all of these few.
        sqlx::query("SELECT set_config('timescaledb.enable_chunk_append', 'off', true)")
            .execute(&mut *transaction)
            .await?;
        let merge = if converted {
            sqlx::query("SELECT set_config('enable_nestloop', 'off', true)")
                .execute(&mut *transaction)
                .await?;
            arrays(&sql.merge_converted)
        } else {
            arrays(&sql.merge)
        };
        let written = merge.execute(&mut *transaction).await?.rows_affected();
        transaction.commit().await?;
        Ok(written)
    }

    /// Whether some of the piece's times lie in a chunk that is in the columnstore: never, on an edition without.
    async fn touches_columnstore(
        &self,
        lease: &mut PooledConnection,
        piece: &[Entry],
    ) -> Result<bool, Cause> {
        let inner = &self.store.inner;
        if inner.connections.facts().license.as_deref() != Some("timescale") {
            return Ok(false);
        }
        let times = || piece.iter().map(|entry| entry.place.0);
        let mut query = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM timescaledb_information.chunks WHERE hypertable_schema = $1 \
             AND hypertable_name = $2 AND is_compressed AND range_end > $3 AND range_start <= $4)",
        )
        .bind(&inner.config.schema)
        .bind(self.stored.table.name());
        for time in [times().min(), times().max()].into_iter().flatten() {
            query = query.bind(Pg(time));
        }
        Ok(query.fetch_one(&mut **lease).await?)
    }

    /// A statement with these columns of the entries as arrays, then their least and greatest time.
    fn arrays(
        &self,
        statement: &SqlStr,
        entries: &[Entry],
        columns: &[Column],
        encode: impl Fn(&Self, &Entry, &mut Encoder<Arrays>),
    ) -> Statement {
        let mut arrays = Encoder(Arrays::new(columns, entries.len()));
        for entry in entries {
            encode(self, entry, &mut arrays);
        }
        let mut query = sqlx::query(statement.clone());
        for (bytes, column) in arrays.0.columns.into_iter().zip(columns) {
            query = query.bind(RawArray { bytes, ty: column.ty.element() });
        }
        let times = || entries.iter().map(|entry| entry.place.0);
        for time in [times().min(), times().max()].into_iter().flatten() {
            query = query.bind(Pg(time));
        }
        query
    }
}

type Statement = sqlx::query::Query<'static, Postgres, PgArguments>;

/// The signature, no flags, no extension: "Binary Format" of PostgreSQL's COPY.
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// A row of -1 columns ends the data.
const COPY_END: [u8; 2] = (-1_i16).to_be_bytes();

/// Rows of COPY, one behind the other.
struct CopyRows(Vec<u8>);

impl Buffers for CopyRows {
    const ARRAYS: bool = false;

    fn next(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

/// The columns of a piece as arrays.
struct Arrays {
    columns: Vec<Vec<u8>>,
    next: usize,
}

impl Arrays {
    fn new(columns: &[Column], rows: usize) -> Self {
        let buffer = |column: &Column| {
            let mut buffer = Vec::with_capacity(20 + rows * 20);
            // One dimension, NULLs allowed, the element's type, the length, the first index.
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

/// An array in PostgreSQL's binary form.
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

    fn entry(chunk: i64, seq: u64) -> Entry {
        Entry { group: chunk, series: 1, place: (qi_core::Timestamp::MIN, seq), at: 0 }
    }

    #[test]
    fn a_piece_has_bounded_rows_and_bounded_chunks() {
        let rows: Vec<_> = (0..10).map(|n| entry(0, n)).collect();
        let sizes = |pieces: Vec<&[Entry]>| pieces.iter().map(|p| p.len()).collect::<Vec<_>>();
        assert_eq!(sizes(cut(&rows, 4)), [4, 4, 2]);
        assert_eq!(sizes(cut(&rows, 10)), [10]);
        assert_eq!(sizes(cut(&rows[..1], 1)), [1]);
        let days: Vec<_> = (0..120).map(|n| entry(n, 0)).collect();
        assert_eq!(sizes(cut(&days, 1_000)), [50, 50, 20]);
    }
}
