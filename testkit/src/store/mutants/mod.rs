//! Faulty stores, and the check that must detect each of them.
//!
//! A suite proves nothing until it fails on a faulty store. Each mutant breaks one promise in the way a real adapter
//! could. [`Mutant::verify_detection`] runs the check [`Mutant::detected_by`], which must fail on the mutant and pass
//! on the correct store.

mod bars;
mod columns;
mod evolution;
mod fault;
mod reads;
mod writes;

use std::sync::Arc;

use qi_core::record::{RecordVec, Records};
use qi_core::store::PriceStore;
use qi_core::{PriceTick, Result};

use super::contract::{CheckResult, Checks, Failure, StoreFactory, Wrapper, run_check};
use super::rows::pick;

/// A store with one fault.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    /// The description of the fault.
    pub name: &'static str,
    /// The name of the check that must detect the fault.
    pub detected_by: &'static str,
    /// Adds the fault to a correct store.
    pub wrap: fn(Arc<dyn PriceStore>) -> Arc<dyn PriceStore>,
    /// Creates the factory of correct stores.
    factory: fn() -> Arc<dyn StoreFactory>,
}

/// Returns all mutants of the price store.
pub fn mutants() -> Vec<Mutant> {
    [writes::list(), reads::list(), columns::list(), evolution::list(), bars::list()].concat()
}

impl Mutant {
    /// Runs the check [`Self::detected_by`] on a correct store and on this mutant. The check must pass on the correct
    /// store and fail on the mutant. A panic or a timeout of the check does not count as a failure.
    ///
    /// # Errors
    /// The expectation that was not met.
    pub async fn verify_detection(&self) -> CheckResult {
        let checks = Checks::standard();
        let Some(check) = checks.iter().find(|check| check.name == self.detected_by) else {
            return Err(Failure::new(format_args!("unknown check {}", self.detected_by)));
        };
        let factory = (self.factory)();
        run_check(check, factory.clone(), Wrapper::PLAIN, checks.datasets())
            .await
            .map_err(|failure| failure.within(format_args!("{} fails on the correct store", check.name)))?;
        let faulty = Wrapper { name: self.name, wrap: self.wrap };
        match run_check(check, factory, faulty, checks.datasets()).await {
            Err(failure) if !failure.is_inconclusive() => Ok(()),
            Err(failure) => Err(failure.within("the check was inconclusive")),
            Ok(()) => Err(Failure::new(format_args!("{} does not detect: {}", check.name, self.name))),
        }
    }
}

/// Defines a list of mutants, by default of the memory store: the type, the fault, and the check that must detect it.
macro_rules! faults {
    (on $factory:expr; $($mutant:ident: $name:literal => $check:literal,)*) => {
        pub(super) fn list() -> Vec<super::Mutant> {
            vec![$(super::Mutant {
                name: $name,
                detected_by: $check,
                wrap: |store| super::fault::with_fault(store, $mutant::default()),
                factory: || std::sync::Arc::new($factory),
            }),*]
        }
    };
    ($($list:tt)*) => {
        super::faults! { on crate::store::contract::MemoryFactory; $($list)* }
    };
}
use faults;

/// Returns the indices of all records.
fn indices(records: &dyn Records) -> std::ops::Range<usize> {
    0..records.len()
}

/// Copies the records that a fault keeps.
fn kept(records: &dyn Records, keep: impl Fn(usize) -> bool) -> Result<RecordVec> {
    pick(records, indices(records).filter(|at| keep(*at)))
}

/// Copies the records in the order of a key.
fn sorted_by_key<K: Ord>(records: &RecordVec, key: impl Fn(usize) -> K) -> Result<RecordVec> {
    let mut order: Vec<usize> = (0..records.len()).collect();
    order.sort_by_key(|at| key(*at));
    pick(records.as_records(), order)
}

/// Returns the ticks of a batch, or no ticks for a batch of another dataset.
fn ticks_of_batch(batch: &dyn Records) -> Result<Vec<PriceTick>> {
    if batch.dataset() != PriceTick::DATASET {
        return Ok(Vec::new());
    }
    pick(batch, indices(batch))?.into_vec()
}
