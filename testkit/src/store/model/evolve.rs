//! Evolutions: a generated dataset, a later version of it, and a version that the store must reject.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use qi_core::record::{Column, ColumnType, Dataset, Description, Row, SortKey, Value};
use qi_core::store::{PriceStore, RangeRequest};
use qi_core::{Datasets, ErrorKind, Interval, TimeRange};

use super::generate::run_cases;
use super::{SECONDS, descriptions, series, values_of};
use crate::store::contract::{
    CheckResult, Failure, StoreFactory, expect_error, expect_same, expect_same_rows,
};

/// Three versions of a dataset.
#[derive(Debug, Clone)]
pub(super) struct Evolution {
    old: Dataset,
    /// The version with more optional columns and more names of enumerations.
    new: Dataset,
    /// The version with a difference from `new` that every store must reject, and the kind of the difference.
    other: (&'static str, Dataset),
    /// The seeds of the values of the rows.
    seeds: Vec<u32>,
}

fn declare(base: Description, values: Vec<Column>) -> Dataset {
    Dataset::declare(Description { values: values.leak(), ..base }).expect("a valid description")
}

/// Declares a dataset with a difference from a description. `kind` selects the difference, and `at` the column.
fn with_difference(base: Description, (kind, at): (usize, usize)) -> (&'static str, Dataset) {
    let mut values = base.values.to_vec();
    let required = Column { name: "required", ty: ColumnType::Boolean, optional: false };
    let at = at % values.len().max(1);
    let other = match (kind, values.get_mut(at)) {
        (0, _) => return ("another sequence number", declare(with_toggled_key(base, true), values)),
        (1, _) => return ("another interval", declare(with_toggled_key(base, false), values)),
        (2, _) => return ("another time", declare(Description { time: "other_time", ..base }, values)),
        (3, Some(column)) => {
            column.name = "renamed";
            "a renamed column"
        }
        (4, Some(column)) => {
            column.ty = match column.ty {
                ColumnType::Counter => ColumnType::Integer,
                ColumnType::Text { max } => ColumnType::Text { max: max + 1 },
                ColumnType::Levels { max } => ColumnType::Levels { max: max + 1 },
                ColumnType::Enumeration(_) => ColumnType::Enumeration(&["other"]),
                _ => ColumnType::Counter,
            };
            "another type"
        }
        (5, Some(Column { optional, ty, .. })) if !matches!(ty, ColumnType::Levels { .. }) => {
            *optional = !*optional;
            "a column that may be absent, or may no longer"
        }
        (6, Some(_)) => {
            values.insert(at, Column { optional: true, ..required });
            "a column before others"
        }
        (7, Some(_)) if at > 0 => {
            values.swap(at - 1, at);
            "another order"
        }
        _ => {
            values.push(required);
            "a new required column"
        }
    };
    (other, declare(base, values))
}

fn with_toggled_key(base: Description, seq: bool) -> Description {
    let toggle = |name: Option<&str>, new| if name.is_some() { None } else { Some(new) };
    if seq {
        Description { seq: toggle(base.seq, "seq"), ..base }
    } else {
        Description { interval: toggle(base.interval, "interval"), ..base }
    }
}

fn evolutions() -> impl Strategy<Value = Evolution> {
    let cut = (any::<prop::sample::Index>(), any::<bool>());
    let seeds = prop::collection::vec(any::<u32>(), 1..8);
    (descriptions(), cut, (0..9usize, 0..10usize), seeds).prop_map(
        |(base, (kept, narrow), difference, seeds)| {
            let kept = kept.index(base.values.len() + 1);
            let (first, added) = base.values.split_at(kept);
            let mut old = first.to_vec();
            for column in &mut old {
                if let (ColumnType::Enumeration(names), true) = (column.ty, narrow) {
                    column.ty = ColumnType::Enumeration(&names[..names.len().div_ceil(2)]);
                }
            }
            // A column of levels cannot be optional, so no such column can be added.
            let added = added.iter().filter(|column| !matches!(column.ty, ColumnType::Levels { .. }));
            let added = added.map(|column| Column { optional: true, ..*column });
            let new = declare(base, first.iter().copied().chain(added).collect());
            let other = with_difference(Description { values: new.values(), ..base }, difference);
            Evolution { old: declare(base, old), new, other, seeds }
        },
    )
}

/// Returns one row for each seed. The first row is at minute `from`, and each further row is a minute later.
fn rows(dataset: Dataset, seeds: &[u32], from: i64) -> Vec<Row> {
    let row = |(minute, seed): (i64, &u32)| {
        let sort_key = (SECONDS.moment(120 * minute), 0);
        Row::new(dataset, series(dataset, 0, Interval::M1), sort_key, values_of(dataset, *seed))
            .expect("a valid row")
    };
    (from..).zip(seeds).map(row).collect()
}

/// The expected values by sort key.
type Stored = BTreeMap<SortKey, Vec<Value>>;

async fn insert(
    store: &dyn PriceStore,
    dataset: Dataset,
    rows: Vec<Row>,
    stored: &mut Stored,
) -> CheckResult {
    stored.extend(rows.iter().map(|row| (row.sort_key(), row.values().to_vec())));
    store.insert(Row::collect(dataset, rows)?.as_records()).await?;
    Ok(())
}

/// Compares the stored rows with the expected rows. Columns that the expected rows do not have must be absent.
async fn expect_stored_rows(
    what: &str,
    store: &dyn PriceStore,
    dataset: Dataset,
    rows: &Stored,
) -> CheckResult {
    let request = RangeRequest::new(dataset, series(dataset, 0, Interval::M1), TimeRange::ALL);
    let found = Row::copy_of(store.range(&request).await?.records.as_records())?;
    let found: Vec<_> = found.into_iter().map(|row| (row.sort_key(), row.values().to_vec())).collect();
    let expected = rows.iter().map(|(sort_key, values)| {
        let mut values = values.clone();
        values.resize(dataset.values().len(), Value::Absent);
        (*sort_key, values)
    });
    expect_same_rows(what, &found, &expected.collect::<Vec<_>>())
}

/// Runs an evolution. Two versions write and read, and the third version is rejected.
async fn run(factory: &dyn StoreFactory, evolution: &Evolution) -> CheckResult {
    let of = |dataset| Datasets::none().with_dataset(dataset).expect("a name of its own");
    let Evolution { old, new, other: (kind, other), seeds } = evolution;
    let (old, new) = (*old, *new);
    let created = factory.without_schema(&of(old)).await?;
    let reopen =
        created.reopen.clone().ok_or_else(|| Failure::new("the factory must set TestStore::with_reopen"))?;
    let first = created.store;
    let outcome = async {
        let mut stored = Stored::new();
        first.ensure_schema().await?;
        insert(&*first, old, rows(old, seeds, 0), &mut stored).await?;
        expect_stored_rows("the old version", &*first, old, &stored).await?;

        let second = reopen(of(new)).await?;
        let plans = !second.plan_schema().await?.is_empty();
        expect_same("there is a plan", &plans, &(old != new))?;
        expect_same("something is applied", &!second.ensure_schema().await?.applied.is_empty(), &plans)?;
        expect_same_rows("the plan afterwards", &second.plan_schema().await?, &[])?;
        expect_stored_rows("rows of the old version", &*second, new, &stored).await?;
        // The first of these rows replace rows of the old version.
        insert(&*second, new, rows(new, &seeds[..seeds.len().div_ceil(2)], 0), &mut stored).await?;
        insert(&*second, new, rows(new, seeds, 100), &mut stored).await?;
        expect_stored_rows("rows of both", &*second, new, &stored).await?;

        let third = reopen(of(*other)).await?;
        expect_error(kind, third.ensure_schema().await, ErrorKind::SchemaMismatch)?;
        expect_error(kind, third.plan_schema().await, ErrorKind::SchemaMismatch)?;
        expect_same_rows("the plan after a rejected version", &second.plan_schema().await?, &[])?;

        if old.values() != &new.values()[..old.values().len()] {
            let ensured = first.ensure_schema().await;
            expect_error("names that the old version does not know", ensured, ErrorKind::SchemaMismatch)?;
            return expect_stored_rows("rows of both", &*second, new, &stored).await;
        }
        expect_same_rows("what the old version applies", &first.ensure_schema().await?.applied, &[])?;
        insert(&*first, old, rows(old, seeds, 200), &mut stored).await?;
        expect_stored_rows("the new version, at last", &*second, new, &stored).await?;
        for values in stored.values_mut() {
            values.truncate(old.values().len());
        }
        expect_stored_rows("the old version, at last", &*first, old, &stored).await
    }
    .await;
    outcome.and(created.cleanup.await.map_err(Failure::from))
}

/// Generates `count` evolutions with a fixed seed, and runs each one on new stores of the factory.
///
/// # Errors
/// The simplest evolution with a difference, and the difference.
pub fn check_evolutions(factory: &Arc<dyn StoreFactory>, count: u32) -> CheckResult {
    run_cases(
        count,
        &evolutions(),
        &async |evolution: &Evolution| run(&**factory, evolution).await,
        |Evolution { old, new, other, .. }| {
            format!("old: {:?}\nnew: {:?}\n{}: {:?}", old.values(), new.values(), other.0, other.1.values())
        },
    )
}
