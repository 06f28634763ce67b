//! Faults of writing, deleting, and of life and death.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use qi_core::store::{Dataset, DeleteQuery, InsertReport, Page, PriceStore, RangeQuery, Record};
use qi_core::{Instrument, Price, PriceTick, Quote, QuoteValues, Result, Selection, TimeRange, Timestamp};

use super::faults;
use super::spoil::Spoil;

faults! {
    LosesTheLastRow: "loses the last row of a batch" => "write::a_large_batch_is_stored",
    FirstWinsInBatch: "the first element of a batch wins" => "write::the_later_element_of_a_batch_wins",
    FirstWriteWins: "the first write of a key wins" => "write::last_write_wins",
    SkipsWhatItHasSeen: "skips a batch that it has seen before" => "write::a_b_a_reads_a",
    MixesWriters: "two writers at once leave fields of both" => "write::writers_to_one_key",
    IgnoresMaxBatch: "takes a batch above max_batch" => "write::a_batch_above_the_limit_writes_nothing",
    KeyWithoutSeq: "one record for each time, whatever its seq" => "write::one_time_and_another_seq_is_another_record",
    ForgetsTheSize: "forgets the size of the ask" => "write::one_record_is_stored",
    FewDigits: "keeps fifteen digits of a price" => "precision::the_largest_decimal_comes_back",
    Milliseconds: "keeps times to the millisecond" => "precision::a_microsecond_counts",
    NeedsNoSchema: "creates its schema at the first write" => "schema::a_missing_schema_is_refused",
    EmptiesItself: "ensure_schema begins from nothing" => "schema::ensure_schema_twice_keeps_the_data",
    IgnoresClose: "goes on after close" => "schema::closed_stays_closed",
    DeletesTheEnd: "deletes the end of the range too" => "administration::deletion_is_half_open",
    DeletesEveryInterval: "deletes the bars of every interval" => "administration::deletion_leaves_other_intervals",
    Tombstones: "hides what is inserted after a deletion" => "administration::deleted_can_be_inserted_again",
    PurgesToTheSecond: "cuts the cutoff of a purge to the second" => "administration::a_purge_is_exact",
    PurgesTheQuotes: "a purge of ticks takes the quotes along" => "administration::a_purge_leaves_other_datasets",
}

fn plus_micro(time: Timestamp) -> Timestamp {
    Timestamp::from_micros(time.as_micros() + 1).unwrap_or(time)
}

#[derive(Debug, Default)]
struct LosesTheLastRow;

#[async_trait]
impl Spoil for LosesTheLastRow {
    async fn insert_ticks(&self, inner: &dyn PriceStore, batch: &[PriceTick]) -> Result<InsertReport> {
        inner.insert_ticks(&batch[..batch.len().saturating_sub(1)]).await?;
        Ok(InsertReport::new(batch.len(), 0))
    }
}

#[derive(Debug, Default)]
struct FirstWinsInBatch;

#[async_trait]
impl Spoil for FirstWinsInBatch {
    async fn insert_ticks(&self, inner: &dyn PriceStore, batch: &[PriceTick]) -> Result<InsertReport> {
        let backwards: Vec<PriceTick> = batch.iter().rev().cloned().collect();
        inner.insert_ticks(&backwards).await
    }
}

#[derive(Debug, Default)]
struct FirstWriteWins;

#[async_trait]
impl Spoil for FirstWriteWins {
    async fn insert_ticks(&self, inner: &dyn PriceStore, batch: &[PriceTick]) -> Result<InsertReport> {
        let mut new = Vec::new();
        for tick in batch {
            let own = TimeRange::new(tick.ts(), plus_micro(tick.ts()))?;
            let there = inner.ticks(&RangeQuery::new(tick.instrument().clone(), own)).await?;
            if !there.items.iter().any(|old| old.seq() == tick.seq()) {
                new.push(tick.clone());
            }
        }
        inner.insert_ticks(&new).await
    }
}

#[derive(Debug, Default)]
struct SkipsWhatItHasSeen(Mutex<HashSet<Vec<PriceTick>>>);

#[async_trait]
impl Spoil for SkipsWhatItHasSeen {
    async fn insert_ticks(&self, inner: &dyn PriceStore, batch: &[PriceTick]) -> Result<InsertReport> {
        let new = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(batch.to_vec());
        if new { inner.insert_ticks(batch).await } else { Ok(InsertReport::new(batch.len(), 0)) }
    }
}

/// The prices that were written, and how many writers there were.
#[derive(Debug, Default)]
struct MixesWriters(Mutex<HashMap<(Instrument, Timestamp, u64), PriceTick>>, AtomicU64);

#[async_trait]
impl Spoil for MixesWriters {
    async fn insert_ticks(&self, inner: &dyn PriceStore, batch: &[PriceTick]) -> Result<InsertReport> {
        let key = |tick: &PriceTick| (tick.instrument().clone(), tick.ts(), tick.seq());
        // Field by field: the price is written first, the rest after others had their turn.
        {
            let mut prices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            prices.extend(batch.iter().map(|tick| (key(tick), tick.clone())));
        }
        // Who came first is the last to write the rest.
        let earlier = self.1.fetch_add(1, Ordering::Relaxed) % 4;
        tokio::time::sleep(Duration::from_millis(3 * (4 - earlier))).await;
        let mixed: Vec<PriceTick> = {
            let prices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let price_of = |tick: &PriceTick| prices.get(&key(tick)).map_or(tick.price(), PriceTick::price);
            batch
                .iter()
                .map(|tick| {
                    let mixed =
                        PriceTick::new(tick.instrument().clone(), tick.ts(), tick.seq(), price_of(tick))?;
                    Ok(mixed.with_quantity(tick.quantity()).with_side(tick.side()))
                })
                .collect::<Result<_>>()?
        };
        inner.insert_ticks(&mixed).await
    }
}

#[derive(Debug, Default)]
struct IgnoresMaxBatch;

#[async_trait]
impl Spoil for IgnoresMaxBatch {
    async fn insert_ticks(&self, inner: &dyn PriceStore, batch: &[PriceTick]) -> Result<InsertReport> {
        let mut report = InsertReport::default();
        for part in batch.chunks(inner.info().max_batch) {
            report = report.plus(inner.insert_ticks(part).await?);
        }
        Ok(report)
    }
}

#[derive(Debug, Default)]
struct KeyWithoutSeq;

#[async_trait]
impl Spoil for KeyWithoutSeq {
    async fn insert_ticks(&self, inner: &dyn PriceStore, batch: &[PriceTick]) -> Result<InsertReport> {
        let mut last: Vec<PriceTick> = Vec::new();
        for tick in batch {
            last.retain(|old| old.ts() != tick.ts() || old.instrument() != tick.instrument());
            last.push(tick.clone());
        }
        inner.insert_ticks(&last).await?;
        Ok(InsertReport::new(batch.len(), batch.len() - last.len()))
    }
}

#[derive(Debug, Default)]
struct ForgetsTheSize;

#[async_trait]
impl Spoil for ForgetsTheSize {
    async fn insert_quotes(&self, inner: &dyn PriceStore, batch: &[Quote]) -> Result<InsertReport> {
        let poorer = batch
            .iter()
            .map(|quote| {
                let values = QuoteValues { ask_size: None, ..*quote.values() };
                Quote::new(quote.instrument().clone(), quote.ts(), quote.seq(), values)
            })
            .collect::<Result<Vec<_>>>()?;
        inner.insert_quotes(&poorer).await
    }
}

/// The same tick elsewhere or at another price.
fn altered(tick: &PriceTick, ts: Timestamp, price: Price) -> Result<PriceTick> {
    let altered = PriceTick::new(tick.instrument().clone(), ts, tick.seq(), price)?;
    Ok(altered.with_quantity(tick.quantity()).with_side(tick.side()))
}

#[derive(Debug, Default)]
struct FewDigits;

#[async_trait]
impl Spoil for FewDigits {
    async fn insert_ticks(&self, inner: &dyn PriceStore, batch: &[PriceTick]) -> Result<InsertReport> {
        let cut = |units: i128| {
            let beyond = 10i128.pow(units.ilog10().saturating_sub(14));
            units - units % beyond
        };
        let batch = batch
            .iter()
            .map(|tick| altered(tick, tick.ts(), Price::from_units(cut(tick.price().units()))?))
            .collect::<Result<Vec<_>>>()?;
        inner.insert_ticks(&batch).await
    }
}

#[derive(Debug, Default)]
struct Milliseconds;

#[async_trait]
impl Spoil for Milliseconds {
    async fn insert_ticks(&self, inner: &dyn PriceStore, batch: &[PriceTick]) -> Result<InsertReport> {
        let batch = batch
            .iter()
            .map(|tick| altered(tick, tick.ts().floor_to_millis(), tick.price()))
            .collect::<Result<Vec<_>>>()?;
        inner.insert_ticks(&batch).await
    }
}

#[derive(Debug, Default)]
struct NeedsNoSchema;

#[async_trait]
impl Spoil for NeedsNoSchema {
    async fn insert_ticks(&self, inner: &dyn PriceStore, batch: &[PriceTick]) -> Result<InsertReport> {
        inner.ensure_schema().await?;
        inner.insert_ticks(batch).await
    }
}

#[derive(Debug, Default)]
struct EmptiesItself;

#[async_trait]
impl Spoil for EmptiesItself {
    async fn ensure_schema(&self, inner: &dyn PriceStore) -> Result<qi_core::store::SchemaReport> {
        let report = inner.ensure_schema().await?;
        inner.purge_before(Dataset::Ticks, Timestamp::MAX).await?;
        Ok(report)
    }
}

#[derive(Debug, Default)]
struct IgnoresClose;

#[async_trait]
impl Spoil for IgnoresClose {
    async fn close(&self, _: &dyn PriceStore) -> Result<()> {
        Ok(())
    }
}

fn with_its_end(range: TimeRange) -> Result<TimeRange> {
    TimeRange::new(range.start(), plus_micro(range.end()))
}

#[derive(Debug, Default)]
struct DeletesTheEnd;

#[async_trait]
impl Spoil for DeletesTheEnd {
    async fn delete_range(&self, inner: &dyn PriceStore, query: &DeleteQuery) -> Result<()> {
        let wider = match query.clone() {
            DeleteQuery::Ticks(of, range) => DeleteQuery::Ticks(of, with_its_end(range)?),
            other => other,
        };
        inner.delete_range(&wider).await
    }
}

#[derive(Debug, Default)]
struct DeletesEveryInterval;

#[async_trait]
impl Spoil for DeletesEveryInterval {
    async fn delete_range(&self, inner: &dyn PriceStore, query: &DeleteQuery) -> Result<()> {
        if let DeleteQuery::Bars(_, of, range) = query {
            for interval in qi_core::Interval::ALL {
                inner.delete_range(&DeleteQuery::Bars(*interval, of.clone(), *range)).await?;
            }
        }
        inner.delete_range(query).await
    }
}

#[derive(Debug, Default)]
struct Tombstones(Mutex<Vec<(Selection<Instrument>, TimeRange)>>);

#[async_trait]
impl Spoil for Tombstones {
    async fn delete_range(&self, inner: &dyn PriceStore, query: &DeleteQuery) -> Result<()> {
        if let DeleteQuery::Ticks(of, range) = query {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push((of.clone(), *range));
        }
        inner.delete_range(query).await
    }

    async fn ticks(&self, inner: &dyn PriceStore, query: &RangeQuery) -> Result<Page<PriceTick>> {
        let mut page = inner.ticks(query).await?;
        let buried = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        page.items.retain(|tick| {
            !buried.iter().any(|(of, range)| of.contains(tick.instrument()) && range.contains(tick.time()))
        });
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct PurgesToTheSecond;

#[async_trait]
impl Spoil for PurgesToTheSecond {
    async fn purge_before(&self, inner: &dyn PriceStore, dataset: Dataset, cutoff: Timestamp) -> Result<()> {
        let second = Timestamp::from_secs(cutoff.as_micros() / 1_000_000)?;
        inner.purge_before(dataset, second).await
    }
}

#[derive(Debug, Default)]
struct PurgesTheQuotes;

#[async_trait]
impl Spoil for PurgesTheQuotes {
    async fn purge_before(&self, inner: &dyn PriceStore, dataset: Dataset, cutoff: Timestamp) -> Result<()> {
        if dataset == Dataset::Ticks {
            inner.purge_before(Dataset::Quotes, cutoff).await?;
        }
        inner.purge_before(dataset, cutoff).await
    }
}
