//! Deliberately broken stores, and the check that must catch each of them.
//!
//! A suite that passes proves nothing until it has been seen to fail. Each mutant breaks one promise in the way
//! that a real adapter would: [`Mutant::expose`] runs the check that is named for it, which must fail on the
//! mutant and pass on the sound store.

mod bars;
mod columns;
mod evolution;
mod reads;
mod spoil;
mod writes;

use std::sync::Arc;

use qi_core::record::{RecordVec, Records};
use qi_core::store::PriceStore;
use qi_core::{PriceTick, Result};

use super::contract::{Checks, Failure, Outcome, StoreFactory, Wrapping, run_check};
use super::rows::pick;

/// A store with one fault.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    /// The fault.
    pub name: &'static str,
    /// The check that must catch it.
    pub caught_by: &'static str,
    /// Spoils a sound store.
    pub wrap: fn(Arc<dyn PriceStore>) -> Arc<dyn PriceStore>,
    /// Makes sound stores.
    factory: fn() -> Arc<dyn StoreFactory>,
}

/// Every mutant.
pub fn mutants() -> Vec<Mutant> {
    [writes::list(), reads::list(), columns::list(), evolution::list(), bars::list()].concat()
}

impl Mutant {
    /// Runs the named check on a sound store, which must pass, and on this mutant of it, which must
    /// fail: by what it found, not by a panic or by its time limit.
    ///
    /// # Errors
    /// The expectation that did not hold.
    pub async fn expose(&self) -> Outcome {
        let checks = Checks::standard();
        let Some(check) = checks.iter().find(|check| check.name == self.caught_by) else {
            return Err(Failure::new(format_args!("there is no check {}", self.caught_by)));
        };
        let factory = (self.factory)();
        run_check(check, factory.clone(), Wrapping::PLAIN, checks.datasets())
            .await
            .map_err(|failure| failure.within(format_args!("{} fails on the sound store", check.name)))?;
        let spoiled = Wrapping { name: self.name, wrap: self.wrap };
        match run_check(check, factory, spoiled, checks.datasets()).await {
            Err(failure) if !failure.is_accident() => Ok(()),
            Err(failure) => Err(failure.within("the check did not judge, it broke")),
            Ok(()) => Err(Failure::new(format_args!("{} does not notice: {}", check.name, self.name))),
        }
    }
}

/// A list of mutants, by default of the memory store: the type, what is wrong with it, the check that must notice.
macro_rules! faults {
    (on $factory:expr; $($mutant:ident: $name:literal => $check:literal,)*) => {
        pub(super) fn list() -> Vec<super::Mutant> {
            vec![$(super::Mutant {
                name: $name,
                caught_by: $check,
                wrap: |store| super::spoil::spoil(store, $mutant::default()),
                factory: || std::sync::Arc::new($factory),
            }),*]
        }
    };
    ($($list:tt)*) => {
        super::faults! { on crate::store::contract::MemoryFactory; $($list)* }
    };
}
use faults;

/// Every index of some records.
fn indices(records: &dyn Records) -> std::ops::Range<usize> {
    0..records.len()
}

/// The records that a fault keeps.
fn kept(records: &dyn Records, keep: impl Fn(usize) -> bool) -> Result<RecordVec> {
    pick(records, indices(records).filter(|at| keep(*at)))
}

/// The records in another order.
fn sorted_by_key<K: Ord>(records: &RecordVec, key: impl Fn(usize) -> K) -> Result<RecordVec> {
    let mut order: Vec<usize> = (0..records.len()).collect();
    order.sort_by_key(|at| key(*at));
    pick(records.as_records(), order)
}

/// The ticks of a batch; none of a batch of another dataset.
fn ticks_of_batch(batch: &dyn Records) -> Result<Vec<PriceTick>> {
    if batch.dataset() != PriceTick::DATASET {
        return Ok(Vec::new());
    }
    pick(batch, indices(batch))?.into_vec()
}
