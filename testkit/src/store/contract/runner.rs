//! Creates libtest-mimic trials from checks, implementations and wrappers.

use std::sync::Arc;

use futures::FutureExt;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use qi_core::Datasets;
use qi_core::store::PriceStore;

use super::{CHECK_LIMIT, CheckResult, Checks, Failure, Sample, StoreCheck, StoreFactory, TestContext};
use crate::presence;

/// A named function that wraps the tested store: layers, a pointer, or nothing.
#[derive(Debug, Clone, Copy)]
pub struct Wrapper {
    /// The name of the wrapper in the trials.
    pub name: &'static str,
    /// Returns a store with the wrapper.
    pub wrap: fn(Arc<dyn PriceStore>) -> Arc<dyn PriceStore>,
}

impl Wrapper {
    /// The store without a wrapper.
    pub const PLAIN: Self = Self { name: "plain", wrap: |store| store };
    /// The store in another `Arc<dyn PriceStore>`.
    pub const ARC_DYN: Self = Self { name: "arc_dyn", wrap: |store| Arc::new(store) };
    /// The store in a `Box<dyn PriceStore>`.
    pub const BOX_DYN: Self = Self {
        name: "box_dyn",
        wrap: |store| {
            let boxed: Box<dyn PriceStore> = Box::new(store);
            Arc::new(boxed)
        },
    };

    /// Returns the pointers: the wrappers of core that change nothing.
    pub fn pointers() -> Vec<Self> {
        vec![Self::PLAIN, Self::ARC_DYN, Self::BOX_DYN]
    }
}

/// Datasets that together have every form of a key and every type of column.
const REPRESENTATIVE: [&str; 4] = ["ticks", "bars", "everything", "named_signals"];

#[derive(Debug, Clone, Copy)]
enum DatasetSelection {
    All,
    Only(&'static [&'static str]),
}

/// The trials of the complete contract, by implementation.
#[derive(Debug)]
pub struct Suite {
    checks: Checks,
    implementations: Vec<(Arc<dyn StoreFactory>, Wrapper, DatasetSelection)>,
    trials: Vec<Trial>,
    at_once: Option<usize>,
}

impl Default for Suite {
    fn default() -> Self {
        Self { checks: Checks::standard(), implementations: Vec::new(), trials: Vec::new(), at_once: None }
    }
}

impl Suite {
    /// Creates a suite without trials.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds every check on an implementation in each wrapper: `memory/plain/write::last_write_wins`.
    #[must_use]
    pub fn on(self, factory: impl StoreFactory, wrappers: impl IntoIterator<Item = Wrapper>) -> Self {
        self.add(factory, wrappers, DatasetSelection::All)
    }

    /// Adds every check as [`on`](Self::on), but limits dataset-independent checks to four representative datasets.
    /// These are the datasets of `PriceTick`, `Bar`, [`Everything`](super::Everything) and
    /// [`NamedSignal`](super::NamedSignal). Together they have every form of a key and every type of column. On a
    /// server, all datasets take minutes.
    #[must_use]
    pub fn on_representative(
        self,
        factory: impl StoreFactory,
        wrappers: impl IntoIterator<Item = Wrapper>,
    ) -> Self {
        self.on_datasets(factory, wrappers, &REPRESENTATIVE)
    }

    /// Adds every check as [`on`](Self::on), but limits dataset-independent checks to the datasets of these names.
    /// Omits the checks that run on none of them.
    #[must_use]
    pub fn on_datasets(
        self,
        factory: impl StoreFactory,
        wrappers: impl IntoIterator<Item = Wrapper>,
        datasets: &'static [&'static str],
    ) -> Self {
        self.add(factory, wrappers, DatasetSelection::Only(datasets))
    }

    fn add(
        mut self,
        factory: impl StoreFactory,
        wrappers: impl IntoIterator<Item = Wrapper>,
        datasets: DatasetSelection,
    ) -> Self {
        let factory: Arc<dyn StoreFactory> = Arc::new(factory);
        let added = wrappers.into_iter().map(|wrapper| (factory.clone(), wrapper, datasets));
        self.implementations.extend(added);
        self
    }

    /// Also runs the dataset-independent checks on the dataset of `D`.
    ///
    /// # Panics
    /// Panics like [`Checks::with`].
    #[must_use]
    pub fn with<D: Sample>(self) -> Self {
        Self { checks: self.checks.with::<D>(), ..self }
    }

    /// Keeps only the checks with matching names, such as `bars::empty_bucket_has_no_bar`.
    ///
    /// # Panics
    /// Panics if no check matches.
    #[must_use]
    pub fn filtered(self, matches: impl Fn(&str) -> bool) -> Self {
        let checks = self.checks.filtered(matches);
        assert!(checks.iter().next().is_some(), "the filter matches no check");
        Self { checks, ..self }
    }

    /// Adds a trial to the suite.
    #[must_use]
    pub fn with_trial(mut self, trial: Trial) -> Self {
        self.trials.push(trial);
        self
    }

    /// Sets the number of concurrent trials, unless the arguments of the process set it. If trials mostly wait for a
    /// server, it may exceed the number of cores.
    #[must_use]
    pub fn at_once(mut self, trials: usize) -> Self {
        self.at_once = Some(trials);
        self
    }

    /// Returns the trials for a custom runner.
    pub fn trials(self) -> Vec<Trial> {
        let mut trials = Vec::new();
        for (factory, wrapper, selection) in self.implementations {
            let absent = factory.absent();
            for check in self.checks.iter() {
                let name = format!("{}/{}/{}", factory.name(), wrapper.name, check.name);
                let check = match selection {
                    DatasetSelection::All => check.clone(),
                    DatasetSelection::Only(datasets) => check.on(datasets),
                };
                let (run, datasets) = (factory.clone(), self.checks.datasets().clone());
                if check.runs.is_empty() {
                    continue;
                }
                trials.push(presence::trial(name, factory.name(), absent.clone(), move || {
                    run_trial(&check, run, wrapper, &datasets)
                }));
            }
        }
        trials.extend(self.trials);
        trials
    }

    /// Runs the trials with the arguments of the process, and exits the process.
    pub fn main(self) -> ! {
        let mut arguments = Arguments::from_args();
        arguments.test_threads = arguments.test_threads.or(self.at_once);
        libtest_mimic::run(&arguments, self.trials()).exit()
    }
}

fn run_trial(
    check: &StoreCheck,
    factory: Arc<dyn StoreFactory>,
    wrapper: Wrapper,
    datasets: &Datasets,
) -> Result<Completion, Failed> {
    if let Some(reason) = factory.not_applicable(check.name) {
        return Ok(Completion::ignored_with(reason));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match runtime.block_on(run_check(check, factory, wrapper, datasets)) {
        Ok(()) => Ok(Completion::Completed),
        Err(failure) => Err(format!("{}\n{failure}", check.promise).into()),
    }
}

/// Runs a check on a new store of the factory in a wrapper, with a time limit, and removes the store afterwards. The
/// store has the datasets of `datasets` that the check needs. A panic of the check counts as a failure.
pub async fn run_check(
    check: &StoreCheck,
    factory: Arc<dyn StoreFactory>,
    wrapper: Wrapper,
    datasets: &Datasets,
) -> CheckResult {
    let context = TestContext::open(factory, wrapper, &check.datasets(datasets))
        .await
        .map_err(|e| Failure::from(e).within("cannot create the store"))?;
    let guarded = std::panic::AssertUnwindSafe(check.run(&context)).catch_unwind();
    let outcome = match tokio::time::timeout(CHECK_LIMIT, guarded).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(Failure::inconclusive(format_args!("the check panicked: {text}")))
        }
        Err(_) => Err(Failure::inconclusive(format_args!(
            "the check exceeded its time limit of {} s",
            CHECK_LIMIT.as_secs()
        ))),
    };
    let cleaned = context.clean_up().await.map_err(|e| Failure::from(e).within("cleanup failed"));
    outcome.and(cleaned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_sees_the_names_of_the_checks() {
        let suite = Suite::new().filtered(|name| name.starts_with("bars::"));
        assert!(suite.checks.iter().count() > 5);
    }

    #[test]
    #[should_panic(expected = "the filter matches no check")]
    fn a_filter_without_a_match_panics() {
        let _ = Suite::new().filtered(|name| name.contains("/bars::"));
    }

    #[test]
    fn every_check_runs_on_a_representative_dataset() {
        let checks = Checks::standard();
        for name in REPRESENTATIVE {
            assert!(checks.datasets().get(name).is_some(), "{name}");
        }
        for check in checks.iter() {
            assert!(!check.on(&REPRESENTATIVE).runs.is_empty(), "{}", check.name);
        }
    }
}
