//! From the list of checks to trials of libtest-mimic.

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

/// No check needs longer, on any backend.
const LIMIT: Duration = Duration::from_mins(10);

/// One trial for each check and wrapping: `memory/plain/publish::order_of_one_key`.
///
/// What the backend lacks is shown as ignored with the reason. An absent backend is ignored too, or fails where the
/// environment variable `QI_REQUIRE_BACKENDS` names it.
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

/// Runs one check on a runtime of its own, in a fresh place, and clears up behind it whatever it found.
///
/// # Errors
/// What the check found wrong, or the accident that kept it from judging: see [`Failure::is_accident`].
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

/// What a panic says.
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
