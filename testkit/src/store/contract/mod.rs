//! The contract of [`PriceStore`] as a list of named checks for all implementations and wrappers.
//!
//! [`Checks`] is the list. A test target with `harness = false` passes the implementations and the wrappers to a
//! [`Suite`], which creates libtest-mimic trials and runs them:
//!
//! ```no_run
//! use qi_testkit::store::contract::{MemoryFactory, Suite, Wrapper};
//!
//! Suite::new().on(MemoryFactory, Wrapper::pointers()).main();
//! ```
//!
//! The checks run on the datasets of this library and on two datasets of the suite. [`Everything`] has
//! columns of every type, and the series of [`NamedSignal`] is a name. Applications add their own records
//! with [`Suite::with`], see [`Sample`].
//!
//! [The contract of stores](qi_core::guide::store) describes the promise of each check.

mod administration;
mod analytics;
mod bars;
mod dataset_ops;
mod datasets;
mod errors;
mod expect;
mod factory;
mod latest;
mod layers;
mod maintained;
mod precision;
mod read;
mod runner;
mod sample;
mod schema;
mod write;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use qi_core::Datasets;
use qi_core::record::Dataset;
use qi_core::store::PriceStore;
use qi_core::{
    Bar, BookSnapshot, FundingRate, Liquidation, MarkPrice, MarketSnapshot, OpenInterest, PriceTick, Quote,
    Result,
};

pub use expect::{CheckResult, Failure};
pub(crate) use expect::{expect_error, expect_same, expect_same_rows};
pub use factory::{MemoryFactory, Reopen, SECRET, StoreFactory, TestStore};
pub(crate) use precision::SYMBOLS;
pub use runner::{Suite, Wrapper, run_check};
pub use sample::{Choice, Everything, NamedSignal, Sample, instrument_no};

/// One promise of the contract, and the code that checks it.
#[derive(Clone)]
pub struct StoreCheck {
    /// The name, such as `write::last_write_wins`.
    pub name: &'static str,
    /// The promise as a sentence.
    pub promise: &'static str,
    /// The functions with the name of their dataset. None if a function is written for specific datasets.
    runs: Vec<(Option<&'static str>, Run)>,
}

type Run = for<'a> fn(&'a TestContext) -> BoxFuture<'a, CheckResult>;

impl fmt::Debug for StoreCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreCheck")
            .field("name", &self.name)
            .field("promise", &self.promise)
            .finish_non_exhaustive()
    }
}

impl StoreCheck {
    /// Returns the datasets that the check needs. A check of specific datasets needs all datasets that the code of such
    /// checks names. Other checks need the datasets they run on.
    fn datasets(&self, all: &Datasets) -> Datasets {
        let named = Datasets::standard().with::<NamedSignal>().expect("a name of its own");
        let is_needed = |dataset: Dataset| {
            let needs = |of: Option<&str>| {
                of.map_or_else(|| named.get(dataset.name()).is_some(), |name| name == dataset.name())
            };
            self.runs.iter().any(|(of, _)| needs(*of))
        };
        let needed = all.iter().filter(|dataset| is_needed(*dataset));
        needed.fold(Datasets::none(), |some, dataset| some.with_dataset(dataset).expect("a name of its own"))
    }

    /// Returns the check with the functions of these datasets, and those for specific datasets.
    fn on(&self, names: &[&str]) -> Self {
        let mut check = self.clone();
        check.runs.retain(|(of, _)| of.is_none_or(|name| names.contains(&name)));
        check
    }

    /// Runs the check on each of its datasets.
    async fn run(&self, context: &TestContext) -> CheckResult {
        for (dataset, run) in &self.runs {
            run(context).await.map_err(|failure| match dataset {
                Some(dataset) => failure.within(dataset),
                None => failure,
            })?;
        }
        Ok(())
    }
}

/// The checks of the contract and their datasets.
#[derive(Debug, Clone)]
pub struct Checks {
    checks: Vec<StoreCheck>,
    datasets: Datasets,
}

/// Builds an array with the lists of all groups, in the order of the contract page.
macro_rules! lists {
    ($($list:tt)*) => {
        [
            schema::$($list)*(),
            datasets::$($list)*(),
            write::$($list)*(),
            precision::$($list)*(),
            read::$($list)*(),
            latest::$($list)*(),
            bars::$($list)*(),
            analytics::$($list)*(),
            administration::$($list)*(),
            errors::$($list)*(),
        ]
    };
}

/// The function of each check for a dataset, in the order of the list.
type Runs = Vec<Option<Run>>;

impl Checks {
    /// Keeps only the checks with matching names.
    #[must_use]
    pub fn filtered(mut self, matches: impl Fn(&str) -> bool) -> Self {
        self.checks.retain(|check| matches(check.name));
        self
    }

    /// Returns all checks in the order of the contract page, on the datasets of this library and of the suite.
    pub fn standard() -> Self {
        let checks = lists!(once).into_iter().flatten().collect();
        let none = Self { checks, datasets: Datasets::none() };
        none.with::<PriceTick>()
            .with::<Quote>()
            .with::<Bar>()
            .with::<MarketSnapshot>()
            .with::<FundingRate>()
            .with::<OpenInterest>()
            .with::<Liquidation>()
            .with::<MarkPrice>()
            .with::<BookSnapshot>()
            .with::<Everything>()
            .with::<NamedSignal>()
    }

    /// Adds a dataset to the checks.
    ///
    /// # Panics
    /// If the name or a limit of the dataset is invalid, or another dataset has the same name.
    #[must_use]
    pub fn with<D: Sample>(mut self) -> Self {
        self.datasets = self.datasets.with::<D>().expect("a dataset that can be registered");
        let runs: Runs = lists!(of::<D>).into_iter().flatten().collect();
        for (check, run) in self.checks.iter_mut().zip(runs) {
            check.runs.extend(run.map(|run| (Some(D::DATASET.name()), run)));
        }
        self
    }

    /// Returns an iterator over the checks.
    pub fn iter(&self) -> impl Iterator<Item = &StoreCheck> {
        self.checks.iter()
    }

    /// Returns the datasets of the checks.
    pub fn datasets(&self) -> &Datasets {
        &self.datasets
    }
}

/// The context of a check: a new store in its wrapper, and the factory for more stores.
pub struct TestContext {
    store: Arc<dyn PriceStore>,
    factory: Arc<dyn StoreFactory>,
    wrapper: Wrapper,
    datasets: Datasets,
    cleanups: Mutex<Vec<BoxFuture<'static, Result<()>>>>,
}

impl fmt::Debug for TestContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestContext").field("store", &self.store).finish_non_exhaustive()
    }
}

impl TestContext {
    async fn open(factory: Arc<dyn StoreFactory>, wrapper: Wrapper, datasets: &Datasets) -> Result<Self> {
        let TestStore { store, cleanup, reopen: _ } = factory.with_schema(datasets).await?;
        let store = (wrapper.wrap)(store);
        let cleanups = Mutex::new(vec![cleanup]);
        Ok(Self { store, factory, wrapper, datasets: datasets.clone(), cleanups })
    }

    /// Returns the store of the check, which has a schema.
    fn store(&self) -> &dyn PriceStore {
        &*self.store
    }

    /// Returns the store of the check for another task.
    fn shared_store(&self) -> Arc<dyn PriceStore> {
        self.store.clone()
    }

    fn register_cleanup(&self, created: TestStore) -> Arc<dyn PriceStore> {
        self.cleanups.lock().unwrap_or_else(PoisonError::into_inner).push(created.cleanup);
        (self.wrapper.wrap)(created.store)
    }

    async fn without_schema(&self) -> Result<Arc<dyn PriceStore>> {
        Ok(self.register_cleanup(self.factory.without_schema(&self.datasets).await?))
    }

    async fn newer_schema(&self) -> Result<Arc<dyn PriceStore>> {
        Ok(self.register_cleanup(self.factory.newer_schema(&self.datasets).await?))
    }

    async fn unreachable(&self) -> Result<Arc<dyn PriceStore>> {
        Ok(self.register_cleanup(self.factory.unreachable(&self.datasets).await?))
    }

    /// Opens a store in an empty namespace with the given datasets. Returns the store, and the function that opens the
    /// same namespace with other datasets.
    async fn open_reopenable(
        &self,
        datasets: &Datasets,
    ) -> std::result::Result<(Arc<dyn PriceStore>, Reopen), Failure> {
        let mut created = self.factory.without_schema(datasets).await?;
        let reopen = created
            .reopen
            .take()
            .ok_or_else(|| Failure::new("the factory must set TestStore::with_reopen"))?;
        Ok((self.register_cleanup(created), reopen))
    }

    /// Opens the same namespace with other datasets.
    async fn reopen_with(&self, reopen: &Reopen, datasets: &Datasets) -> Result<Arc<dyn PriceStore>> {
        Ok((self.wrapper.wrap)(reopen(datasets.clone()).await?))
    }

    /// Removes all namespaces of the check.
    async fn clean_up(self) -> Result<()> {
        drop(self.store);
        let cleanups = self.cleanups.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut outcome = Ok(());
        for cleanup in cleanups {
            outcome = outcome.and(cleanup.await);
        }
        outcome
    }
}

/// The time limit of a check in real time.
const CHECK_LIMIT: Duration = Duration::from_mins(2);

/// Returns whether checks with thousands of records and hundreds of partitions run on a dataset. Of the datasets of
/// derivatives and order books, they run only on the one with the largest records. The tables of the others have the
/// same form as other tables, and each table adds minutes on a real server.
fn runs_bulk(dataset: Dataset) -> bool {
    Datasets::standard().position(dataset).is_ok()
        || Datasets::built_in().position(dataset).is_err()
        || dataset == BookSnapshot::DATASET
}

/// Defines a list of checks. A check with `once` runs as it is, with `every` on all datasets, with `tied` on datasets
/// with sequence numbers, and with `bulk` on the datasets of [`runs_bulk`].
macro_rules! promises {
    ($group:literal; $($mode:ident $name:ident: $promise:literal,)*) => {
        /// Returns the checks of the group. Checks with `once` already have their function.
        pub(super) fn once() -> Vec<super::StoreCheck> {
            vec![$(super::StoreCheck {
                name: concat!($group, "::", stringify!($name)),
                promise: $promise,
                runs: promises!(@once $mode $name),
            }),*]
        }

        /// Returns the function of each check for a dataset.
        #[allow(clippy::extra_unused_type_parameters, reason = "a group may have checks that run once alone")]
        pub(super) fn of<D: super::Sample>() -> super::Runs {
            vec![$(promises!(@of $mode $name)),*]
        }
    };
    (@once once $name:ident) => { vec![(None, |context| Box::pin($name(context)))] };
    (@once $mode:ident $name:ident) => { Vec::new() };
    (@of once $name:ident) => { None };
    (@of every $name:ident) => { Some(|context| Box::pin($name::<D>(context))) };
    (@of bulk $name:ident) => {
        if super::runs_bulk(D::DATASET) { Some(|context| Box::pin($name::<D>(context))) } else { None }
    };
    (@of tied $name:ident) => {
        if D::DATASET.seq().is_some() { Some(|context| Box::pin($name::<D>(context))) } else { None }
    };
}
use promises;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Checks;

    #[test]
    fn check_names_are_unique_and_have_a_description() {
        let checks = Checks::standard();
        let names: BTreeSet<_> = checks.iter().map(|check| check.name).collect();
        assert_eq!(names.len(), checks.iter().count());
        assert!(checks.iter().all(|check| !check.promise.is_empty() && !check.runs.is_empty()));
    }

    /// The page names a check as `group::name`, or several checks by a prefix with a star.
    #[test]
    fn the_contract_page_names_every_check_and_no_other() {
        let checks = Checks::standard();
        let page = include_str!("../../../../docs/store.md");
        let groups: BTreeSet<_> = checks.iter().filter_map(|c| c.name.split("::").next()).collect();
        let named: Vec<&str> = page
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|text| text.split_once("::").is_some_and(|(group, _)| groups.contains(group)))
            .collect();
        let covers = |text: &str, check: &str| match text.strip_suffix('*') {
            Some(start) => check.starts_with(start),
            None => check == text,
        };
        for text in &named {
            assert!(checks.iter().any(|check| covers(text, check.name)), "{text} is no check");
        }
        let missing: Vec<_> = checks
            .iter()
            .map(|check| check.name)
            .filter(|check| !named.iter().any(|text| covers(text, check)))
            .collect();
        assert!(missing.is_empty(), "docs/store.md does not name {missing:?}");
    }
}
