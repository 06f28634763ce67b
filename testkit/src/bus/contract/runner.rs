//! Creates libtest-mimic trials from the checks.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use libtest_mimic::{Completion, Failed, Trial};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::{BusFactory, Check, Failure, Lab, Pace, Verdict, Wrapping, checks};
use crate::presence;

/// The time limit of a check on any backend.
const LIMIT: Duration = Duration::from_mins(10);

/// Returns one trial for each check and wrapping: `memory/plain/publish::messages_of_one_key_keep_their_order`.
///
/// A trial is ignored with the reason if the backend lacks a required feature. The trials of an absent backend are
/// ignored too, or fail if the environment variable `QI_REQUIRE_BACKENDS` names it.
pub fn trials(factory: &Arc<dyn BusFactory>, wrappings: &[Wrapping]) -> Vec<Trial> {
    let backend = factory.backend();
    let absent = factory.absent();
    let mut trials = Vec::new();
    for wrapping in wrappings.iter().copied() {
        for check in checks() {
            let name = format!("{backend}/{}/{}", wrapping.name, check.name);
            let factory = factory.clone();
            trials.push(presence::trial(name, backend, absent.clone(), move || {
                run_trial(&*factory, wrapping, &check)
            }));
        }
    }
    trials
}

fn run_trial(factory: &dyn BusFactory, wrapping: Wrapping, check: &Check) -> Result<Completion, Failed> {
    let lacks = check.needs.iter().find(|need| !factory.provides().contains(need));
    if let Some(need) = lacks {
        return Ok(Completion::ignored_with(format!("{} lacks {need:?}", factory.backend())));
    }
    if let Some(why) = wrapping.spares(check.name) {
        return Ok(Completion::ignored_with(why));
    }
    run_check(factory, wrapping, check)?;
    Ok(Completion::Completed)
}

/// Runs one check on a new runtime in a new environment, and removes the environment afterwards.
///
/// # Errors
/// The violation that the check found, or the failure of the check itself: see [`Failure::is_accident`].
pub fn run_check(factory: &dyn BusFactory, wrapping: Wrapping, check: &Check) -> Verdict {
    let runtime = runtime(factory.pace()).map_err(|e| Failure::accident(format_args!("no runtime: {e}")))?;
    runtime.block_on(async {
        let env = factory.fresh().await;
        let env = env.map_err(|e| Failure::accident(format_args!("no place to check in: {}", e.report())))?;
        let lab = Lab::new(env, wrapping);
        let verdict = match timeout(LIMIT, AssertUnwindSafe((check.run)(&lab)).catch_unwind()).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(panic)) => Err(Failure::accident(format_args!("it panicked: {}", words(&*panic)))),
            Err(_) => Err(Failure::accident(format_args!("not finished within {LIMIT:?}"))),
        };
        let cleared = lab.tear_down().await;
        verdict.and(cleared.map_err(|e| Failure::accident(format_args!("clearing up: {e}"))))
    })
}

/// Returns the message of a panic.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}

fn runtime(pace: Pace) -> std::io::Result<Runtime> {
    match pace {
        Pace::Paused => Builder::new_current_thread().enable_time().start_paused(true).build(),
        Pace::Real => Builder::new_multi_thread().worker_threads(2).enable_all().build(),
    }
}
