//! The contract of [`PriceStore`] as one list of named checks, for every implementation and every wrapping.
//!
//! [`checks`] is the list. A test target with `harness = false` hands the implementations and the wrappings to a
//! [`Suite`], which makes trials of libtest-mimic out of them and runs them:
//!
//! ```no_run
//! use qi_testkit::store::contract::{MemoryFactory, Suite, Wrapping};
//!
//! Suite::new().on(MemoryFactory, Wrapping::all()).main();
//! ```
//!
//! What each check stands for is written in `docs/store.md`.

mod administration;
mod analytics;
mod bars;
mod errors;
mod expect;
mod factory;
mod latest;
mod layers;
mod precision;
mod read;
mod runner;
mod schema;
mod shelf;
mod write;

use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use qi_core::Result;
use qi_core::store::PriceStore;

pub use expect::{Failure, Outcome};
pub(crate) use expect::{same, same_rows};
pub use factory::{Fresh, MemoryFactory, SECRET, StoreFactory};
pub use runner::{Suite, Wrapping, run_check};

/// One promise of the contract, and the code that finds out whether a store keeps it.
#[derive(Clone, Copy)]
pub struct StoreCheck {
    /// `write::last_write_wins`
    pub name: &'static str,
    /// The promise in a sentence.
    pub promise: &'static str,
    run: for<'a> fn(&'a Case) -> BoxFuture<'a, Outcome>,
}

impl fmt::Debug for StoreCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreCheck")
            .field("name", &self.name)
            .field("promise", &self.promise)
            .finish_non_exhaustive()
    }
}

/// Every check, in the order of the contract page.
pub fn checks() -> &'static [StoreCheck] {
    static CHECKS: LazyLock<Vec<StoreCheck>> = LazyLock::new(|| {
        [
            schema::list(),
            write::list(),
            precision::list(),
            read::list(),
            latest::list(),
            bars::list(),
            analytics::list(),
            administration::list(),
            errors::list(),
        ]
        .concat()
    });
    &CHECKS
}

/// What a check works on: a fresh store in its wrapping, and the factory for more.
pub struct Case {
    store: Arc<dyn PriceStore>,
    factory: Arc<dyn StoreFactory>,
    wrapping: Wrapping,
    cleanups: Mutex<Vec<BoxFuture<'static, Result<()>>>>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Case {
    async fn open(factory: Arc<dyn StoreFactory>, wrapping: Wrapping) -> Result<Self> {
        let Fresh { store, cleanup } = factory.fresh().await?;
        let store = (wrapping.wrap)(store);
        Ok(Self { store, factory, wrapping, cleanups: Mutex::new(vec![cleanup]) })
    }

    /// The store of the check, with its schema.
    fn store(&self) -> &dyn PriceStore {
        &*self.store
    }

    /// The same, for a task of its own.
    fn shared(&self) -> Arc<dyn PriceStore> {
        self.store.clone()
    }

    fn keep(&self, fresh: Fresh) -> Arc<dyn PriceStore> {
        self.cleanups.lock().unwrap_or_else(PoisonError::into_inner).push(fresh.cleanup);
        (self.wrapping.wrap)(fresh.store)
    }

    async fn without_schema(&self) -> Result<Arc<dyn PriceStore>> {
        Ok(self.keep(self.factory.without_schema().await?))
    }

    async fn newer_schema(&self) -> Result<Arc<dyn PriceStore>> {
        Ok(self.keep(self.factory.newer_schema().await?))
    }

    async fn unreachable(&self) -> Result<Arc<dyn PriceStore>> {
        Ok(self.keep(self.factory.unreachable().await?))
    }

    /// Removes every namespace that the check has used.
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

/// How long one check may take, in real time.
const CHECK_LIMIT: Duration = Duration::from_mins(2);

/// A list of checks. `once` runs it as it is, `every` on all four datasets, `tied` on those whose records may
/// share a time.
macro_rules! promises {
    ($group:literal; $($mode:ident $name:ident: $promise:literal,)*) => {
        pub(super) fn list() -> Vec<super::StoreCheck> {
            vec![$(super::StoreCheck {
                name: concat!($group, "::", stringify!($name)),
                promise: $promise,
                run: |case| Box::pin(promises!(@$mode $name case)),
            }),*]
        }
    };
    (@once $name:ident $case:ident) => { $name($case) };
    (@tied $name:ident $case:ident) => {
        async move {
            $name::<qi_core::PriceTick>($case).await.map_err(|f| f.within("ticks"))?;
            $name::<qi_core::Quote>($case).await.map_err(|f| f.within("quotes"))
        }
    };
    (@every $name:ident $case:ident) => {
        async move {
            $name::<qi_core::PriceTick>($case).await.map_err(|f| f.within("ticks"))?;
            $name::<qi_core::Quote>($case).await.map_err(|f| f.within("quotes"))?;
            $name::<qi_core::Ohlcv>($case).await.map_err(|f| f.within("bars"))?;
            $name::<qi_core::MarketSnapshot>($case).await.map_err(|f| f.within("snapshots"))
        }
    };
}
use promises;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::checks;

    #[test]
    fn names_are_unique_and_every_promise_is_said() {
        let names: BTreeSet<_> = checks().iter().map(|check| check.name).collect();
        assert_eq!(names.len(), checks().len());
        assert!(checks().iter().all(|check| !check.promise.is_empty()));
    }

    /// `docs/store.md` names a check as `group::name`, or some by a star at the end.
    #[test]
    fn the_contract_page_names_every_check_and_no_other() {
        let page = include_str!("../../../../docs/store.md");
        let groups: BTreeSet<_> = checks().iter().filter_map(|c| c.name.split("::").next()).collect();
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
            assert!(checks().iter().any(|check| covers(text, check.name)), "{text} is no check");
        }
        let missing: Vec<_> = checks()
            .iter()
            .map(|check| check.name)
            .filter(|check| !named.iter().any(|text| covers(text, check)))
            .collect();
        assert!(missing.is_empty(), "docs/store.md does not name {missing:?}");
    }
}
