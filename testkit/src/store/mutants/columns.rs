//! Faults of columns: values that are lost, truncated or in the wrong column.

use async_trait::async_trait;
use qi_core::record::{Records, Value};
use qi_core::store::{InsertReport, PriceStore, RangeRequest, RecordPage};
use qi_core::{Decimal, Result};

use super::fault::Fault;
use super::faults;
use super::writes::altered;

faults! {
    SwapsColumns: "two neighbouring columns of one type are swapped"
        => "datasets::every_column_keeps_its_values",
    AbsentIsTheDefault: "an absent value is read as a value" => "datasets::absent_values_stay_absent",
    DefaultIsAbsent: "a zero is read as absent" => "datasets::absent_values_stay_absent",
    LosesTheFiftiethLevel: "one side of an order book has no fiftieth level"
        => "datasets::level_lists_keep_every_level",
    LosesTheLastLevel: "a list with the maximum number of levels loses its last level"
        => "datasets::level_lists_keep_every_level",
    SortsLevels: "a list of levels is sorted" => "datasets::level_lists_keep_every_level",
    TakesAnyDataset: "a dataset that is not registered is accepted"
        => "datasets::unregistered_dataset_is_rejected",
}

#[derive(Debug, Default)]
struct SwapsColumns;

#[async_trait]
impl Fault for SwapsColumns {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let columns = batch.dataset().values();
        // Neighbouring columns with the same type, which the type system of a store cannot distinguish.
        let twins = columns
            .windows(2)
            .position(|pair| pair[0].ty == pair[1].ty && pair[0].optional == pair[1].optional);
        let Some(at) = twins.filter(|_| batch.dataset().name() == "everything") else {
            return inner.insert(batch).await;
        };
        inner.insert(altered(batch, |values| values.swap(at, at + 1))?.as_records()).await
    }
}

#[derive(Debug, Default)]
struct AbsentIsTheDefault;

#[async_trait]
impl Fault for AbsentIsTheDefault {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let filled = altered(batch, |values| {
            let counter = batch.dataset().values().iter().position(|column| column.name == "counter_or_none");
            if let Some(value) = counter.map(|at| &mut values[at]).filter(|value| **value == Value::Absent) {
                *value = Value::Counter(0);
            }
        });
        inner.insert(filled?.as_records()).await
    }
}

#[derive(Debug, Default)]
struct DefaultIsAbsent;

#[async_trait]
impl Fault for DefaultIsAbsent {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let emptied = altered(batch, |values| {
            for (value, column) in values.iter_mut().zip(batch.dataset().values()) {
                if column.optional && *value == Value::Decimal(Decimal::ZERO) {
                    *value = Value::Absent;
                }
            }
        });
        inner.insert(emptied?.as_records()).await
    }
}

/// Inserts a batch with truncated lists of levels.
async fn insert_truncated(inner: &dyn PriceStore, batch: &dyn Records, most: usize) -> Result<InsertReport> {
    let cut = altered(batch, |values| {
        for value in values {
            if let Value::Levels(levels) = value {
                levels.truncate(most);
            }
        }
    });
    inner.insert(cut?.as_records()).await
}

#[derive(Debug, Default)]
struct LosesTheFiftiethLevel;

#[async_trait]
impl Fault for LosesTheFiftiethLevel {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        insert_truncated(inner, batch, 49).await
    }
}

#[derive(Debug, Default)]
struct LosesTheLastLevel;

#[async_trait]
impl Fault for LosesTheLastLevel {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        insert_truncated(inner, batch, 9).await
    }
}

#[derive(Debug, Default)]
struct SortsLevels;

#[async_trait]
impl Fault for SortsLevels {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let sorted = altered(batch, |values| {
            for value in values {
                if let Value::Levels(levels) = value {
                    levels.sort_unstable();
                }
            }
        });
        inner.insert(sorted?.as_records()).await
    }
}

#[derive(Debug, Default)]
struct TakesAnyDataset;

#[async_trait]
impl Fault for TakesAnyDataset {
    async fn range(&self, inner: &dyn PriceStore, request: &RangeRequest) -> Result<RecordPage> {
        match inner.range(request).await {
            Err(error) if error.code() == "store.dataset.unknown" => {
                request.page_of(request.dataset.new_vec())
            }
            other => other,
        }
    }
}
