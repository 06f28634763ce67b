//! The task that drives one agent through all its incarnations.
//!
//! The task owns the agent's value, and hooks only borrow it. After a panic or a dropped hook the task still has the
//! value and can call `cleanup`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::try_join_all;
use tokio::time::{Instant, sleep_until};

use super::catch::DropCaught;
use super::children::end_children;
use super::context::AgentContext;
use super::hook::{HookEnd, run_hook};
use super::port::Agent;
use super::restart::{Decision, RestartState};
use super::set::{AgentSet, NewAgent};
use super::spec::AgentFactory;
use super::state::{AgentState, Change};
use super::status::{AgentStatus, BackoffStep, ExitReason, Phase};
use crate::deadline::later;

/// The task of one agent. If the task is dropped before the agent has ended, the agent ends as aborted.
pub(super) struct AgentTask {
    set: Arc<AgentSet>,
    agent: NewAgent,
    ended: bool,
}

/// The result of an incarnation.
struct IncarnationEnd {
    exit: Arc<ExitReason>,
    /// The time in status Running.
    ran_for: Duration,
    /// True if the incarnation panicked after a stop, or completed or was cancelled but did not release everything. The
    /// agent fails if this is its last incarnation.
    cleanup_failed: bool,
}

impl AgentTask {
    pub(super) fn new(set: Arc<AgentSet>, agent: NewAgent) -> Self {
        Self { set, agent, ended: false }
    }

    /// Drives the agent to its end.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` stores its arguments twice")]
    pub(super) fn run(mut self) -> impl Future<Output = ()> + Send {
        async move {
            let (status, change) = drive(&mut self.agent).await;
            self.end(status, change);
        }
    }

    fn end(&mut self, status: AgentStatus, change: Change) {
        self.ended = true;
        self.agent.state.to(status, change);
        self.set.ended(self.agent.id, &self.agent.state, status);
    }
}

impl Drop for AgentTask {
    fn drop(&mut self) {
        if !self.ended {
            let exit = Arc::new(ExitReason::DriverAborted);
            self.agent.state.record_exit(Phase::Run, &exit);
            self.end(AgentStatus::Failed, Change::exit(&exit));
        }
    }
}

async fn drive(agent: &mut NewAgent) -> (AgentStatus, Change) {
    let NewAgent { id: _, state, dependencies, factory, restart, rng } = agent;
    if let Err(exit) = dependencies_started(state, dependencies).await {
        return (AgentStatus::Stopped, Change::exit(&Arc::new(exit)));
    }
    dependencies.clear();
    let mut restart = RestartState::new(*restart);
    let mut last_exit = None;
    while !state.must_stop() {
        let IncarnationEnd { exit, ran_for, cleanup_failed } = incarnation(state, factory).await;
        let decision = restart.decide(&exit, ran_for, rng);
        let completed = matches!(*exit, ExitReason::Completed) && !cleanup_failed;
        let change = Change { completed, ..Change::exit(&exit) };
        match decision {
            Decision::GiveUp(why) => {
                return (AgentStatus::Failed, Change { gave_up: Some(why), ..change });
            }
            Decision::RestartAfter(delay) if !state.must_stop() => {
                let backoff = Some(BackoffStep { attempt: restart.streak(), delay });
                state.to(AgentStatus::Backoff, Change { backoff, ..change });
                tokio::select! {
                    biased;
                    () = state.stop_requested() => {}
                    () = sleep_until(later(delay)) => {}
                }
            }
            // A requested stop overrides the restart.
            Decision::Done | Decision::RestartAfter(_) => {
                let status = if cleanup_failed { AgentStatus::Failed } else { AgentStatus::Stopped };
                return (status, change);
            }
        }
        last_exit = Some(exit);
    }
    let exit = last_exit.unwrap_or_else(|| Arc::new(ExitReason::Cancelled));
    (AgentStatus::Stopped, Change::exit(&exit))
}

/// Waits until the agent may start. Returns the agent's exit if it can never start.
async fn dependencies_started(
    state: &AgentState,
    dependencies: &[Arc<AgentState>],
) -> Result<(), ExitReason> {
    if dependencies.is_empty() {
        return Ok(());
    }
    let started = try_join_all(dependencies.iter().map(|dependency| async {
        let started = *dependency.started.wait().await;
        if started { Ok(()) } else { Err(ExitReason::DependencyFailed(dependency.name.clone())) }
    }));
    tokio::select! {
        biased;
        started = started => {
            started?;
        }
        () = state.stop_requested() => {}
    }
    // A stop takes precedence over started dependencies.
    if state.must_stop() { Err(ExitReason::Cancelled) } else { Ok(()) }
}

/// Drives one value, from Initializing to its drop in Stopping.
async fn incarnation(state: &Arc<AgentState>, factory: &mut AgentFactory) -> IncarnationEnd {
    let cx = AgentContext::begin(state);
    state.forced.store(false, Ordering::Relaxed);
    let init = (Instant::now(), Some(state.limits().initialize));
    let mut phase = Phase::Initialize;
    let mut ran_for = Duration::ZERO;
    let (mut agent, mut end) = create(&cx, factory, init).await;
    let mut release_failed = end.drop_panicked;
    if let Some(agent) = &mut agent {
        end = run_hook(&cx, phase, init, || agent.get().initialize(&cx)).await;
        release_failed |= end.drop_panicked;
        if matches!(end.exit, ExitReason::Completed) {
            if state.must_stop() {
                end.exit = ExitReason::Cancelled;
            } else {
                phase = Phase::Run;
                let running = Instant::now();
                cx.incarnation.begin_run(running);
                state.to(AgentStatus::Running, Change::default());
                // Lets dependents start even if `run` never yields its thread.
                tokio::task::yield_now().await;
                end = run_hook(&cx, phase, (running, None), || agent.get().run(&cx)).await;
                release_failed |= end.drop_panicked;
                ran_for = running.elapsed();
            }
        }
    }
    let exit = Arc::new(end.exit);
    state.record_exit(phase, &exit);
    state.forced.store(end.forced, Ordering::Relaxed);
    state.to(AgentStatus::Stopping, Change::exit(&exit));

    cx.incarnation.token.cancel();
    if let Some(children) = cx.incarnation.children.close() {
        // The hook and its children share one stop timeout.
        let stop_by = end.stop_by.unwrap_or_else(|| later(state.limits().stop));
        for failed in
            Box::pin(end_children(&state.name, children, stop_by, &state.shared.soft_deadline)).await
        {
            release_failed |= failed.is_crash();
            state.record_exit(phase, &failed);
        }
    }
    if let Some(agent) = agent {
        release_failed |= !clean_up(&cx, agent, &exit).await;
    }
    // After any other exit, a failed cleanup is only recorded.
    let ended_normally = matches!(*exit, ExitReason::Completed | ExitReason::Cancelled);
    IncarnationEnd {
        exit,
        ran_for,
        cleanup_failed: end.panicked_after_stop || (release_failed && ended_normally),
    }
}

type Value = DropCaught<Box<dyn Agent>>;

/// Creates the value of the incarnation, or returns the reason for its absence.
async fn create(
    cx: &AgentContext,
    factory: &mut AgentFactory,
    init: (Instant, Option<Duration>),
) -> (Option<Value>, HookEnd) {
    let made = match factory {
        AgentFactory::Once(agent) => Ok(agent.take().expect("an agent with one value never restarts")),
        AgentFactory::New(make) => cx.state.enter(make),
        AgentFactory::Async(make) => {
            let mut agent = None;
            let end = run_hook(cx, Phase::Initialize, init, || {
                let (opened, agent) = (make(cx.clone()), &mut agent);
                Box::pin(async move {
                    *agent = Some(DropCaught::new(opened.await?));
                    Ok(())
                })
            })
            .await;
            return (agent, end);
        }
    };
    match made {
        Ok(agent) => (Some(DropCaught::new(agent)), ExitReason::Completed.into()),
        Err(panic) => (None, ExitReason::Panicked(panic).into()),
    }
}

/// Calls `cleanup`, drops the value, and returns whether both succeeded.
async fn clean_up(cx: &AgentContext, mut agent: Value, exit: &ExitReason) -> bool {
    let state = &cx.state;
    let cleanup = (Instant::now(), Some(state.limits().cleanup));
    let end = run_hook(cx, Phase::Cleanup, cleanup, || agent.get().cleanup(cx, exit)).await;
    if end.forced {
        state.forced.store(true, Ordering::Relaxed);
    }
    state.record_exit(Phase::Cleanup, &end.exit);
    let dropped = state.enter(|| agent.drop_now());
    let succeeded = matches!(end.exit, ExitReason::Completed) && !end.drop_panicked && dropped.is_ok();
    if let Err(panic) = dropped {
        state.record_exit(Phase::Cleanup, &ExitReason::Panicked(panic));
    }
    succeeded
}
