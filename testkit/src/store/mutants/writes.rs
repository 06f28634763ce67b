//! Faults of writes and deletions, and of the lifecycle.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use qi_core::record::{Dataset, RecordVec, Records, Row, SeriesKey, SortKey, Value};
use qi_core::store::{DeleteQuery, InsertReport, PriceStore, RangeRequest, RecordPage};
use qi_core::{Price, PriceTick, Quote, Record, Result, TimeRange, Timestamp};

use super::fault::Fault;
use super::{faults, indices, kept, ticks_of_batch};
use crate::store::rows::{pick, records_of};

faults! {
    LosesTheLastRow: "loses the last row of a batch" => "write::large_batch_is_stored",
    FirstWinsInBatch: "the first duplicate in a batch wins" => "write::last_duplicate_in_a_batch_wins",
    FirstWriteWins: "the first write of a key wins" => "write::last_write_wins",
    SkipsRepeatedBatches: "skips a batch that was written before"
        => "write::rewriting_an_earlier_value_takes_effect",
    MixesWriters: "concurrent writers leave fields of both"
        => "write::concurrent_writers_of_one_key_leave_one_value",
    IgnoresMaxBatch: "accepts a batch above max_batch" => "write::batch_above_max_batch_is_rejected",
    KeyWithoutSeq: "stores one record per time regardless of seq"
        => "write::seq_distinguishes_records_of_one_time",
    ForgetsTheSize: "loses the size of the ask" => "write::one_record_is_stored",
    FewDigits: "stores fifteen digits of a price" => "precision::decimals_are_stored_exactly",
    Milliseconds: "stores times to the millisecond" => "precision::times_are_kept_to_the_microsecond",
    NeedsNoSchema: "creates the schema at the first write" => "schema::missing_schema_is_rejected",
    EnsureSchemaDeletes: "ensure_schema removes the records"
        => "schema::ensure_schema_is_idempotent_and_keeps_the_data",
    IgnoresClose: "accepts calls after close" => "schema::closed_store_rejects_every_call",
    DeletesTheEnd: "includes the end of the range in a deletion" => "administration::deletion_is_half_open",
    DeletesEveryInterval: "deletes the bars of every interval"
        => "administration::deletion_leaves_other_intervals",
    Tombstones: "hides records inserted after a deletion"
        => "administration::deleted_records_can_be_inserted_again",
    PurgesToTheSecond: "truncates the cutoff of a purge to the second"
        => "administration::purge_cutoff_is_exact",
    PurgesTheQuotes: "a purge of ticks also removes quotes" => "administration::purge_leaves_other_datasets",
}

fn next_microsecond(time: Timestamp) -> Timestamp {
    Timestamp::from_micros(time.as_micros() + 1).unwrap_or(time)
}

#[derive(Debug, Default)]
struct LosesTheLastRow;

#[async_trait]
impl Fault for LosesTheLastRow {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let last = batch.len().saturating_sub(1);
        inner.insert(kept(batch, |at| at < last)?.as_records()).await?;
        Ok(InsertReport::new(batch.len(), 0))
    }
}

#[derive(Debug, Default)]
struct FirstWinsInBatch;

#[async_trait]
impl Fault for FirstWinsInBatch {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        inner.insert(pick(batch, indices(batch).rev())?.as_records()).await
    }
}

#[derive(Debug, Default)]
struct FirstWriteWins;

#[async_trait]
impl Fault for FirstWriteWins {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let mut new = Vec::new();
        for at in indices(batch) {
            let (time, seq) = batch.sort_key(at);
            let own = TimeRange::new(time, next_microsecond(time))?;
            let request = RangeRequest::new(batch.dataset(), batch.series(at).to_owned(), own);
            let mut sort_keys = Vec::new();
            inner.range(&request).await?.records.as_records().sort_keys(&mut sort_keys);
            if !sort_keys.contains(&(time, seq)) {
                new.push(at);
            }
        }
        inner.insert(pick(batch, new)?.as_records()).await
    }
}

#[derive(Debug, Default)]
struct SkipsRepeatedBatches(Mutex<HashSet<Vec<PriceTick>>>);

#[async_trait]
impl Fault for SkipsRepeatedBatches {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let ticks = ticks_of_batch(batch)?;
        let seen = !ticks.is_empty() && !self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(ticks);
        if seen { Ok(InsertReport::new(batch.len(), 0)) } else { inner.insert(batch).await }
    }
}

/// The last written price of each key, and the number of writers.
#[derive(Debug, Default)]
struct MixesWriters(Mutex<HashMap<(SeriesKey, SortKey), Price>>, AtomicU64);

#[async_trait]
impl Fault for MixesWriters {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let ticks = ticks_of_batch(batch)?;
        if ticks.is_empty() {
            return inner.insert(batch).await;
        }
        let key = |tick: &PriceTick| (tick.series_ref().to_owned(), tick.sort_key());
        // Each field is written separately: first the price, then the rest, after other writers had their turn.
        {
            let mut prices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            prices.extend(ticks.iter().map(|tick| (key(tick), tick.price())));
        }
        // The first writer is the last one to write the rest.
        let earlier = self.1.fetch_add(1, Ordering::Relaxed) % 4;
        tokio::time::sleep(Duration::from_millis(3 * (4 - earlier))).await;
        let mixed: Vec<PriceTick> = {
            let prices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let price_of = |tick: &PriceTick| prices.get(&key(tick)).copied().unwrap_or_else(|| tick.price());
            ticks.iter().map(|tick| shifted(tick, tick.ts(), price_of(tick))).collect::<Result<_>>()?
        };
        inner.insert(RecordVec::from_vec(mixed).as_records()).await
    }
}

#[derive(Debug, Default)]
struct IgnoresMaxBatch;

#[async_trait]
impl Fault for IgnoresMaxBatch {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let (mut report, most) = (InsertReport::default(), inner.info().max_batch);
        for from in indices(batch).step_by(most) {
            let part = pick(batch, from..batch.len().min(from + most))?;
            report = report.merge(inner.insert(part.as_records()).await?);
        }
        Ok(report)
    }
}

#[derive(Debug, Default)]
struct KeyWithoutSeq;

#[async_trait]
impl Fault for KeyWithoutSeq {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let later = |at: usize| {
            (at + 1..batch.len()).any(|other| {
                batch.sort_key(other).0 == batch.sort_key(at).0 && batch.series(other) == batch.series(at)
            })
        };
        let last = kept(batch, |at| !later(at))?;
        inner.insert(last.as_records()).await?;
        Ok(InsertReport::new(batch.len(), batch.len() - last.len()))
    }
}

#[derive(Debug, Default)]
struct ForgetsTheSize;

#[async_trait]
impl Fault for ForgetsTheSize {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let altered = altered(batch, |values| {
            if batch.dataset() == Quote::DATASET {
                values[3] = Value::Absent;
            }
        });
        inner.insert(altered?.as_records()).await
    }
}

/// Returns the records with altered values.
pub(super) fn altered(batch: &dyn Records, alter: impl Fn(&mut Vec<Value>)) -> Result<RecordVec> {
    let rows: Vec<Row> = Row::copy_of(batch)?
        .iter()
        .map(|row| {
            let mut values = row.values().to_vec();
            alter(&mut values);
            Row::new(row.dataset(), row.series().clone(), row.sort_key(), values)
        })
        .collect::<Result<_>>()?;
    records_of(batch.dataset(), &rows)
}

/// Returns the tick with another time or another price.
fn shifted(tick: &PriceTick, ts: Timestamp, price: Price) -> Result<PriceTick> {
    let shifted = PriceTick::new(tick.instrument().clone(), ts, tick.seq(), price)?;
    Ok(shifted.with_quantity(tick.quantity()).with_side(tick.side()))
}

#[derive(Debug, Default)]
struct FewDigits;

#[async_trait]
impl Fault for FewDigits {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let cut = |value: &mut Value| {
            if let Value::Decimal(decimal) = value
                && let Some(digits) = decimal.units().unsigned_abs().checked_ilog10()
            {
                let beyond = 10i128.pow(digits.saturating_sub(14));
                *decimal = qi_core::Decimal::from_units(decimal.units() - decimal.units() % beyond)?;
            }
            Ok::<_, qi_core::Error>(())
        };
        let cut = altered(batch, |values| values.iter_mut().for_each(|value| cut(value).unwrap_or(())))?;
        inner.insert(cut.as_records()).await
    }
}

#[derive(Debug, Default)]
struct Milliseconds;

#[async_trait]
impl Fault for Milliseconds {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let ticks = ticks_of_batch(batch)?;
        if ticks.is_empty() {
            return inner.insert(batch).await;
        }
        let cut = ticks.iter().map(|tick| shifted(tick, tick.ts().floor_to_millis(), tick.price()));
        inner.insert(RecordVec::from_vec(cut.collect::<Result<_>>()?).as_records()).await
    }
}

#[derive(Debug, Default)]
struct NeedsNoSchema;

#[async_trait]
impl Fault for NeedsNoSchema {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        inner.ensure_schema().await?;
        inner.insert(batch).await
    }
}

#[derive(Debug, Default)]
struct EnsureSchemaDeletes;

#[async_trait]
impl Fault for EnsureSchemaDeletes {
    async fn ensure_schema(&self, inner: &dyn PriceStore) -> Result<qi_core::store::SchemaReport> {
        let report = inner.ensure_schema().await?;
        inner.purge_before(PriceTick::DATASET, Timestamp::MAX).await?;
        Ok(report)
    }
}

#[derive(Debug, Default)]
struct IgnoresClose;

#[async_trait]
impl Fault for IgnoresClose {
    async fn close(&self, _: &dyn PriceStore) -> Result<()> {
        Ok(())
    }
}

fn including_end(range: TimeRange) -> Result<TimeRange> {
    TimeRange::new(range.start(), next_microsecond(range.end()))
}

#[derive(Debug, Default)]
struct DeletesTheEnd;

#[async_trait]
impl Fault for DeletesTheEnd {
    async fn delete_range(&self, inner: &dyn PriceStore, query: &DeleteQuery) -> Result<()> {
        let mut wider = query.clone();
        wider.range = including_end(query.range)?;
        inner.delete_range(&wider).await
    }
}

#[derive(Debug, Default)]
struct DeletesEveryInterval;

#[async_trait]
impl Fault for DeletesEveryInterval {
    async fn delete_range(&self, inner: &dyn PriceStore, query: &DeleteQuery) -> Result<()> {
        if query.interval.is_some() {
            for interval in qi_core::Interval::ALL {
                inner.delete_range(&query.clone().of_interval(*interval)).await?;
            }
        }
        inner.delete_range(query).await
    }
}

#[derive(Debug, Default)]
struct Tombstones(Mutex<Vec<DeleteQuery>>);

#[async_trait]
impl Fault for Tombstones {
    async fn delete_range(&self, inner: &dyn PriceStore, query: &DeleteQuery) -> Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(query.clone());
        inner.delete_range(query).await
    }

    async fn range(&self, inner: &dyn PriceStore, request: &RangeRequest) -> Result<RecordPage> {
        let page = inner.range(request).await?;
        let deleted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let records = page.records.as_records();
        let is_deleted = |at: usize| {
            deleted.iter().any(|query| {
                query.dataset == request.dataset
                    && query.selection.contains(&request.series.owner)
                    && query.range.contains(records.sort_key(at).0)
            })
        };
        let records = kept(records, |at| !is_deleted(at))?;
        Ok(RecordPage { records, ..page })
    }
}

#[derive(Debug, Default)]
struct PurgesToTheSecond;

#[async_trait]
impl Fault for PurgesToTheSecond {
    async fn purge_before(&self, inner: &dyn PriceStore, dataset: Dataset, cutoff: Timestamp) -> Result<()> {
        let second = Timestamp::from_secs(cutoff.as_micros() / 1_000_000)?;
        inner.purge_before(dataset, second).await
    }
}

#[derive(Debug, Default)]
struct PurgesTheQuotes;

#[async_trait]
impl Fault for PurgesTheQuotes {
    async fn purge_before(&self, inner: &dyn PriceStore, dataset: Dataset, cutoff: Timestamp) -> Result<()> {
        if dataset == PriceTick::DATASET {
            inner.purge_before(Quote::DATASET, cutoff).await?;
        }
        inner.purge_before(dataset, cutoff).await
    }
}
