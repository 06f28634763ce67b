//! Every faulty bus fails the check for its fault, and the correct bus passes that check. In addition, checks of
//! missing features are ignored and do not pass, and the contract page names every check.

use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use libtest_mimic::{Arguments, Failed, Trial};
use qi_testkit::bus::contract::{
    BusEnv, BusFactory, Capability, Check, ClockMode, MemoryFactory, Wrapper, checks, run_check, trials,
};
use qi_testkit::bus::mutants::{MUTANTS, Mutant};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = MUTANTS
        .iter()
        .map(|mutant| {
            Trial::test(format!("{}/detected_by/{}", mutant.name, mutant.detected_by), || {
                check_detects(mutant)
            })
        })
        .chain([
            Trial::test("docs_bus_md_names_every_check", docs_page_names_every_check),
            Trial::test("missing_capabilities_are_ignored", missing_capabilities_are_ignored),
        ])
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn check_detects(mutant: &Mutant) -> Result<(), Failed> {
    let check = named(mutant.detected_by)?;
    run_check(&MemoryFactory, Wrapper::PLAIN, &check)
        .map_err(|failure| Failed::from(format!("the check fails on the correct bus: {failure}")))?;
    match run_check(&MemoryFactory, mutant.wrapper, &check) {
        Ok(()) => Err(Failed::from("the check passes on the mutant")),
        Err(failure) if failure.is_inconclusive() => {
            Err(Failed::from(format!("the check was inconclusive: {failure}")))
        }
        Err(_) => Ok(()),
    }
}

fn named(name: &str) -> Result<Check, Failed> {
    checks()
        .into_iter()
        .find(|check| check.name == name)
        .ok_or_else(|| format!("unknown check {name}").into())
}

fn docs_page_names_every_check() -> Result<(), Failed> {
    let page = include_str!("../../docs/bus.md");
    let absent: Vec<_> =
        checks().iter().map(|check| check.name).filter(|name| !page.contains(&format!("`{name}`"))).collect();
    if absent.is_empty() { Ok(()) } else { Err(format!("docs/bus.md does not name {absent:?}").into()) }
}

/// A backend without any feature, which may have a reason for its absence.
#[derive(Debug)]
struct MinimalFactory(Option<&'static str>);

#[async_trait]
impl BusFactory for MinimalFactory {
    fn backend(&self) -> &'static str {
        "poor"
    }
    fn absent(&self) -> Option<String> {
        self.0.map(str::to_owned)
    }
    fn capabilities(&self) -> &'static [Capability] {
        &[]
    }
    fn clock_mode(&self) -> ClockMode {
        ClockMode::Paused
    }
    async fn create_env(&self) -> qi_core::Result<Box<dyn BusEnv>> {
        MemoryFactory.create_env().await
    }
}

fn missing_capabilities_are_ignored() -> Result<(), Failed> {
    let arguments = Arguments { quiet: true, test_threads: Some(1), ..Arguments::default() };
    let total = checks().len() as u64;
    let conditional = checks().iter().filter(|check| !check.capabilities.is_empty()).count() as u64;
    for (poor, ignored) in
        [(MinimalFactory(None), conditional), (MinimalFactory(Some("no server here")), total)]
    {
        let factory: Arc<dyn BusFactory> = Arc::new(poor);
        let outcome = libtest_mimic::run(&arguments, trials(&factory, &[Wrapper::PLAIN]));
        if (outcome.num_ignored, outcome.num_passed, outcome.num_failed) != (ignored, total - ignored, 0) {
            return Err(format!("{ignored} of {total} should be ignored: {outcome:?}").into());
        }
    }
    Ok(())
}
