//! The contract suite: the checks that every agent passes.

use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use qi_core::agent::{Agent, AgentContext, AgentRuntime, AgentSpec, AgentStatus, ExitReason};
use qi_core::{Error, ErrorKind};
use tokio::time::timeout;

use super::cancellation::{DropOutcome, drop_at_poll};

/// The time limit of `run` after a cancellation: the runtime's default stop timeout.
const STOP: Duration = Duration::from_secs(5);
/// The runtime's default cleanup timeout.
const CLEANUP: Duration = Duration::from_secs(2);
/// The time limit within which a hook reaches its next await. A hook that is still pending waits for an event that does
/// not occur in the check.
const HOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// The largest number of polls at which a hook is dropped.
const POLLS: usize = 64;

/// The clock of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockMode {
    /// tokio's paused clock with one thread, for agents over in-memory ports.
    Paused,
    /// Real time with two threads, for agents over real backends.
    Real,
}

/// Returns the contract suite of an agent on paused time. Each check runs for the concrete type and for
/// `Box<dyn Agent>`.
///
/// Each check calls `make` at least once inside a tokio runtime. `make` also creates the stores and buses of the agent.
/// Create new ones in each call to isolate the checks.
///
/// ```no_run
/// use qi_core::agent::agent_fn;
/// use qi_testkit::agent::agent_contract;
///
/// let trials = agent_contract("ticker", || {
///     agent_fn(|cx| async move {
///         cx.cancelled().await;
///         Ok(())
///     })
/// });
/// libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit();
/// ```
pub fn agent_contract<A, F>(name: &str, make: F) -> Vec<Trial>
where
    A: Agent + 'static,
    F: Fn() -> A + Send + Sync + 'static,
{
    agent_contract_on(ClockMode::Paused, name, make)
}

/// Returns the checks of [`agent_contract`] for the given time.
pub fn agent_contract_on<A, F>(time: ClockMode, name: &str, make: F) -> Vec<Trial>
where
    A: Agent + 'static,
    F: Fn() -> A + Send + Sync + 'static,
{
    agent_contract_async(time, name, move || std::future::ready(Ok(make())))
}

/// Returns the checks of [`agent_contract`] for an agent that `make` opens, as in
/// [`AgentSpec::new_async`](qi_core::agent::AgentSpec::new_async).
pub fn agent_contract_async<A, F, Fut>(time: ClockMode, name: &str, make: F) -> Vec<Trial>
where
    A: Agent + 'static,
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = qi_core::Result<A>> + Send + 'static,
{
    let make = Arc::new(make);
    let mut trials = trials(time, &format!("{name}::plain"), &make);
    let boxed = Arc::new(move || {
        let opened = make();
        async move { Ok(Box::new(opened.await?) as Box<dyn Agent>) }
    });
    trials.extend(self::trials(time, &format!("{name}::boxed"), &boxed));
    trials
}

fn trials<A, F, Fut>(time: ClockMode, prefix: &str, make: &Arc<F>) -> Vec<Trial>
where
    A: Agent + 'static,
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = qi_core::Result<A>> + Send + 'static,
{
    macro_rules! list {
        ($($check:ident),+ $(,)?) => {
            vec![$({
                let make = make.clone();
                Trial::test(format!("{prefix}::{}", stringify!($check)), move || {
                    runtime(time)?.block_on($check(&*make))
                })
            }),+]
        };
    }
    list![
        run_ends_within_the_stop_timeout_after_the_cancel,
        initialize_dropped_at_every_poll_can_be_cleaned_up,
        run_dropped_at_every_poll_can_be_cleaned_up,
        cleanup_accepts_an_agent_that_never_ran,
        second_incarnation_completes_its_lifecycle,
        agent_future_is_send,
    ]
}

fn runtime(time: ClockMode) -> Result<tokio::runtime::Runtime, Failed> {
    let runtime = match time {
        ClockMode::Paused => {
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()
        }
        ClockMode::Real => tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build(),
    };
    Ok(runtime?)
}

async fn run_cleanup<A: Agent>(agent: &mut A, cx: &AgentContext, exit: &ExitReason) -> Result<(), Failed> {
    cx.cancel_token().cancel();
    timeout(CLEANUP, agent.cleanup(cx, exit)).await.map_err(|_| "cleanup took longer than 2 s")??;
    Ok(())
}

async fn run_initialize<A: Agent>(agent: &mut A, cx: &AgentContext) -> Result<(), Failed> {
    timeout(Duration::from_secs(30), agent.initialize(cx))
        .await
        .map_err(|_| "initialize took longer than 30 s")??;
    Ok(())
}

/// Makes an agent for a check.
trait Make<A> {
    async fn make(&self) -> qi_core::Result<A>;
}

impl<A, F: Fn() -> Fut, Fut: Future<Output = qi_core::Result<A>>> Make<A> for F {
    async fn make(&self) -> qi_core::Result<A> {
        self().await
    }
}

async fn run_ends_within_the_stop_timeout_after_the_cancel<A: Agent, M: Make<A>>(
    make: &M,
) -> Result<(), Failed> {
    let (mut agent, cx) = (make.make().await?, AgentContext::for_test());
    run_initialize(&mut agent, &cx).await?;
    let stop = cx.cancel_token();
    let run = async {
        let run = agent.run(&cx);
        tokio::pin!(run);
        if let Ok(early) = timeout(HOOK_TIMEOUT, &mut run).await {
            return Some(early);
        }
        stop.cancel();
        timeout(STOP, run).await.ok()
    };
    match run.await {
        Some(result) => result?,
        None => return Err("run went on for longer than 5 s after the cancel".into()),
    }
    run_cleanup(&mut agent, &cx, &ExitReason::Cancelled).await
}

async fn initialize_dropped_at_every_poll_can_be_cleaned_up<A: Agent, M: Make<A>>(
    make: &M,
) -> Result<(), Failed> {
    for polls in 0..POLLS {
        let (mut agent, cx) = (make.make().await?, AgentContext::for_test());
        let polled = drop_at_poll(agent.initialize(&cx), polls, HOOK_TIMEOUT).await;
        run_cleanup(&mut agent, &cx, &ExitReason::Cancelled)
            .await
            .map_err(|e| format!("initialize dropped after {polls} polls: {}", text(&e)))?;
        match polled {
            DropOutcome::Ready(result) => return Ok(result?),
            DropOutcome::TimedOut => return Ok(()),
            DropOutcome::Dropped => {}
        }
    }
    Ok(())
}

async fn run_dropped_at_every_poll_can_be_cleaned_up<A: Agent, M: Make<A>>(make: &M) -> Result<(), Failed> {
    for polls in 0..POLLS {
        let (mut agent, cx) = (make.make().await?, AgentContext::for_test());
        run_initialize(&mut agent, &cx).await?;
        let polled = drop_at_poll(agent.run(&cx), polls, HOOK_TIMEOUT).await;
        run_cleanup(&mut agent, &cx, &ExitReason::Cancelled)
            .await
            .map_err(|e| format!("run dropped after {polls} polls: {}", text(&e)))?;
        match polled {
            DropOutcome::Ready(result) => return Ok(result?),
            DropOutcome::TimedOut => return Ok(()),
            DropOutcome::Dropped => {}
        }
    }
    Ok(())
}

async fn cleanup_accepts_an_agent_that_never_ran<A: Agent, M: Make<A>>(make: &M) -> Result<(), Failed> {
    let (mut agent, cx) = (make.make().await?, AgentContext::for_test());
    let exit = ExitReason::Error(Error::new(ErrorKind::Unavailable, "contract", "initialize"));
    run_cleanup(&mut agent, &cx, &exit).await
}

async fn second_incarnation_completes_its_lifecycle<A: Agent + 'static, M: Make<A>>(
    make: &M,
) -> Result<(), Failed> {
    // The first value runs and is cleaned up. The second value has a complete lifecycle under the runtime.
    let (mut first, cx) = (make.make().await?, AgentContext::for_test());
    run_initialize(&mut first, &cx).await?;
    drop_at_poll(first.run(&cx), 2, HOOK_TIMEOUT).await;
    run_cleanup(&mut first, &cx, &ExitReason::Stale).await?;
    drop(first);
    let second = AgentSpec::once("second", make.make().await?);
    let runtime = AgentRuntime::builder().agent(second).build()?;
    let handle = runtime.handle();
    let report = runtime
        .run_until(async {
            let running = |s: &qi_core::agent::AgentSnapshot| {
                s.status == AgentStatus::Running || s.status.is_terminal()
            };
            handle.wait_for("second", running).await.map(drop)
        })
        .await;
    report.result()?;
    match report.agent("second") {
        Some(agent) if agent.status == AgentStatus::Stopped => Ok(()),
        other => Err(format!("the second incarnation ended as {other:?}").into()),
    }
}

async fn agent_future_is_send<A: Agent + 'static, M: Make<A>>(make: &M) -> Result<(), Failed> {
    // The check is that this compiles: a task must be `Send`. The run also shows that the agent works in a spawned
    // task.
    let (mut agent, cx) = (make.make().await?, AgentContext::for_test());
    let stop = cx.cancel_token();
    let task = tokio::spawn(async move {
        // An error after the cancellation is not a failure: the runtime records the error and the exit remains
        // `Cancelled`.
        let _cancelled = agent.initialize(&cx).await;
        let _cancelled = agent.run(&cx).await;
        agent.cleanup(&cx, &ExitReason::Cancelled).await
    });
    stop.cancel();
    timeout(STOP + CLEANUP, task).await.map_err(|_| "did not end within 7 s of the cancel")???;
    Ok(())
}

fn text(failed: &Failed) -> String {
    failed.message().unwrap_or("failed").to_owned()
}
