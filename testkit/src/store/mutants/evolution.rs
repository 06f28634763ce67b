//! Faults of schema evolution.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use qi_core::record::{Dataset, Records, Row, SeriesKey, SortKey, Value};
use qi_core::store::kit::evolution;
use qi_core::store::{InsertReport, PriceStore, RangeRequest, RecordPage, SchemaReport};
use qi_core::{Datasets, Error, ErrorKind, Result};

use super::fault::{Fault, with_fault};
use super::faults;
use super::writes::altered;
use crate::store::contract::{MemoryFactory, StoreFactory, TestStore};

faults! { on Evolving;
    AcceptsEveryDifference: "accepts every difference of a declaration"
        => "schema::incompatible_declaration_is_rejected",
    AddedIsTheDefault: "an added column has a default" => "schema::added_column_reads_as_absent",
    LosesAddedValues: "loses the values of an added column" => "schema::added_column_reads_as_absent",
    SortsTheNames: "renumbers the variants of an enumeration"
        => "schema::enumeration_accepts_appended_variants",
    RejectsOlderVersions: "rejects a program whose schema needs no change"
        => "schema::older_declaration_continues_to_work",
    AlwaysPlansAStep: "plans a step when nothing is missing" => "schema::added_column_reads_as_absent",
}

/// A factory whose namespaces outlive their stores. The next version of a program finds the records
/// of the previous version.
#[derive(Debug, Clone, Copy)]
struct Evolving;

#[async_trait]
impl StoreFactory for Evolving {
    fn name(&self) -> &'static str {
        "evolving"
    }

    async fn without_schema(&self, datasets: &Datasets) -> Result<TestStore> {
        let namespace = Arc::new(Mutex::new(Namespace::default()));
        let open = move |datasets: Datasets| {
            let namespace = namespace.clone();
            async move {
                let inner = MemoryFactory.without_schema(&datasets).await?.store;
                Ok(with_fault(inner, Version { datasets, namespace }))
            }
        };
        let store = open(datasets.clone()).await?;
        Ok(TestStore::new(store).with_reopen(move |datasets| Box::pin(open(datasets))))
    }

    async fn newer_schema(&self, datasets: &Datasets) -> Result<TestStore> {
        MemoryFactory.newer_schema(datasets).await
    }

    async fn unreachable(&self, datasets: &Datasets) -> Result<TestStore> {
        MemoryFactory.unreachable(datasets).await
    }
}

/// The schema lines of the datasets, and the records.
#[derive(Debug, Default)]
struct Namespace {
    lines: BTreeMap<&'static str, Vec<String>>,
    rows: BTreeMap<(&'static str, SeriesKey, SortKey), Vec<Value>>,
}

/// A version of a program: its datasets in a namespace.
#[derive(Debug)]
struct Version {
    datasets: Datasets,
    namespace: Arc<Mutex<Namespace>>,
}

impl Version {
    fn namespace(&self) -> MutexGuard<'_, Namespace> {
        self.namespace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the missing lines with their indices.
    fn missing(&self, dataset: Dataset) -> Result<Vec<(usize, String)>> {
        let (stored, mut declared) =
            (self.namespace().lines.get(dataset.name()).cloned(), evolution::lines(dataset));
        let changed = match stored {
            None => (0..declared.len()).collect(),
            Some(stored) => evolution::compare(dataset, &stored)?,
        };
        Ok(changed.into_iter().map(|at| (at, std::mem::take(&mut declared[at]))).collect())
    }
}

#[async_trait]
impl Fault for Version {
    async fn ensure_schema(&self, inner: &dyn PriceStore) -> Result<SchemaReport> {
        let mut applied = Vec::new();
        for dataset in self.datasets.iter() {
            for (at, line) in self.missing(dataset)? {
                applied.push(format!("{dataset}: {line}"));
                let mut namespace = self.namespace();
                let lines = namespace.lines.entry(dataset.name()).or_default();
                match lines.get_mut(at) {
                    Some(stored) => *stored = line,
                    None => lines.push(line),
                }
            }
        }
        Ok(SchemaReport::new(inner.ensure_schema().await?.version, applied))
    }

    async fn plan_schema(&self, _: &dyn PriceStore) -> Result<Vec<String>> {
        let missing: Result<Vec<_>> = self.datasets.iter().map(|dataset| self.missing(dataset)).collect();
        Ok(missing?.into_iter().flatten().map(|(_, line)| line).collect())
    }

    async fn insert(&self, _: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let rows = Row::copy_of(batch)?;
        let name = batch.dataset().name();
        let of = |row: Row| ((name, row.series().clone(), row.sort_key()), row.values().to_vec());
        self.namespace().rows.extend(rows.into_iter().map(of));
        Ok(InsertReport::new(batch.len(), 0))
    }

    async fn range(&self, _: &dyn PriceStore, request: &RangeRequest) -> Result<RecordPage> {
        let dataset = request.dataset;
        let mut rows = Vec::new();
        for ((name, series, sort_key), values) in &self.namespace().rows {
            if (*name, series) == (dataset.name(), &request.series) {
                let mut values = values.clone();
                values.resize(dataset.values().len(), Value::Absent);
                rows.push(Row::new(dataset, series.clone(), *sort_key, values)?);
            }
        }
        request.page_of(Row::collect(dataset, rows)?)
    }
}

fn rejected() -> Error {
    Error::new(ErrorKind::SchemaMismatch, "mutant.schema", "ensure_schema")
}

/// Returns a page of records with altered values.
async fn range_with(
    inner: &dyn PriceStore,
    request: &RangeRequest,
    alter: impl Fn(&mut Vec<Value>),
) -> Result<RecordPage> {
    let page = inner.range(request).await?;
    Ok(RecordPage { records: altered(page.records.as_records(), alter)?, ..page })
}

#[derive(Debug, Default)]
struct AcceptsEveryDifference;

#[async_trait]
impl Fault for AcceptsEveryDifference {
    async fn ensure_schema(&self, inner: &dyn PriceStore) -> Result<SchemaReport> {
        inner.ensure_schema().await.or_else(|_| Ok(SchemaReport::new(1, Vec::new())))
    }
}

#[derive(Debug, Default)]
struct AddedIsTheDefault;

#[async_trait]
impl Fault for AddedIsTheDefault {
    async fn range(&self, inner: &dyn PriceStore, request: &RangeRequest) -> Result<RecordPage> {
        let boolean = request.dataset.values().iter().position(|column| column.name == "g");
        range_with(inner, request, |values| {
            if let Some(value) = boolean.map(|at| &mut values[at]).filter(|value| **value == Value::Absent) {
                *value = Value::Boolean(false);
            }
        })
        .await
    }
}

#[derive(Debug, Default)]
struct LosesAddedValues;

#[async_trait]
impl Fault for LosesAddedValues {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        inner
            .insert(
                altered(batch, |values| values.iter_mut().skip(3).for_each(|v| *v = Value::Absent))?
                    .as_records(),
            )
            .await
    }
}

#[derive(Debug, Default)]
struct SortsTheNames;

#[async_trait]
impl Fault for SortsTheNames {
    async fn range(&self, inner: &dyn PriceStore, request: &RangeRequest) -> Result<RecordPage> {
        range_with(inner, request, |values| {
            for value in values {
                match value {
                    // "one", "three", "two"
                    Value::Enumeration(code @ 2) => *code = 3,
                    Value::Enumeration(code @ 3) => *code = 2,
                    _ => {}
                }
            }
        })
        .await
    }
}

#[derive(Debug, Default)]
struct RejectsOlderVersions;

#[async_trait]
impl Fault for RejectsOlderVersions {
    async fn ensure_schema(&self, inner: &dyn PriceStore) -> Result<SchemaReport> {
        if inner.plan_schema().await?.is_empty() { Err(rejected()) } else { inner.ensure_schema().await }
    }
}

#[derive(Debug, Default)]
struct AlwaysPlansAStep;

#[async_trait]
impl Fault for AlwaysPlansAStep {
    async fn plan_schema(&self, _: &dyn PriceStore) -> Result<Vec<String>> {
        Ok(vec!["ALTER TABLE evolving".to_owned()])
    }
}
