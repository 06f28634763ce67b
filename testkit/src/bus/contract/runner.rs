//! Creates libtest-mimic trials from the checks.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use libtest_mimic::{Completion, Failed, Trial};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::{BusFactory, Check, CheckResult, ClockMode, Failure, TestContext, Wrapper, checks};
use crate::presence;

/// The time limit of a check on any backend.
const LIMIT: Duration = Duration::from_mins(10);

/// Returns one trial for each check and wrapper: `memory/plain/publish::messages_of_one_key_keep_their_order`.
///
/// A trial is ignored with the reason if the backend lacks a required feature. The trials of an absent backend are
/// ignored too, or fail if the environment variable `QI_REQUIRE_BACKENDS` names it.
pub fn trials(factory: &Arc<dyn BusFactory>, wrappers: &[Wrapper]) -> Vec<Trial> {
    let backend = factory.backend();
    let absent = factory.absent();
    let mut trials = Vec::new();
    for wrapper in wrappers.iter().copied() {
        for check in checks() {
            let name = format!("{backend}/{}/{}", wrapper.name, check.name);
            let factory = factory.clone();
            trials.push(presence::trial(name, backend, absent.clone(), move || {
                run_trial(&*factory, wrapper, &check)
            }));
        }
    }
    trials
}

fn run_trial(factory: &dyn BusFactory, wrapper: Wrapper, check: &Check) -> Result<Completion, Failed> {
    let lacks = check.capabilities.iter().find(|capability| !factory.capabilities().contains(capability));
    if let Some(capability) = lacks {
        return Ok(Completion::ignored_with(format!("{} lacks {capability:?}", factory.backend())));
    }
    if let Some(reason) = wrapper.skip_reason(check.name) {
        return Ok(Completion::ignored_with(reason));
    }
    run_check(factory, wrapper, check)?;
    Ok(Completion::Completed)
}

/// Runs one check on a new runtime in a new environment, and removes the environment afterwards.
///
/// # Errors
/// The violation that the check found, or the failure of the check itself: see [`Failure::is_inconclusive`].
pub fn run_check(factory: &dyn BusFactory, wrapper: Wrapper, check: &Check) -> CheckResult {
    let runtime = runtime(factory.clock_mode())
        .map_err(|e| Failure::inconclusive(format_args!("cannot start the runtime: {e}")))?;
    runtime.block_on(async {
        let env = factory.create_env().await;
        let env = env.map_err(|e| {
            Failure::inconclusive(format_args!("cannot create the environment: {}", e.report()))
        })?;
        let context = TestContext::new(env, wrapper);
        let verdict = match timeout(LIMIT, AssertUnwindSafe((check.run)(&context)).catch_unwind()).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(panic)) => {
                Err(Failure::inconclusive(format_args!("the check panicked: {}", panic_message(&*panic))))
            }
            Err(_) => {
                Err(Failure::inconclusive(format_args!("the check exceeded its time limit of {LIMIT:?}")))
            }
        };
        let cleared = context.tear_down().await;
        verdict.and(cleared.map_err(|e| Failure::inconclusive(format_args!("cleanup failed: {e}"))))
    })
}

/// Returns the message of a panic.
fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

fn runtime(mode: ClockMode) -> std::io::Result<Runtime> {
    match mode {
        ClockMode::Paused => Builder::new_current_thread().enable_time().start_paused(true).build(),
        ClockMode::Real => Builder::new_multi_thread().worker_threads(2).enable_all().build(),
    }
}
