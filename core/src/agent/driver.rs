//! One task drives one agent through all its incarnations.
//!
//! The driver owns the value; hooks only borrow it. So a panic, or a hook that was dropped, leaves the value
//! here, and `cleanup` can still be called.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use super::Agent;
use super::catch::drop_caught;
use super::cell::{Asked, Cell, Change};
use super::context::{AgentContext, Incarnation, end_children};
use super::fleet::Fleet;
use super::phase::{Ended, Hook};
use super::restart::{Decision, GiveUp, RestartState};
use super::spec::Maker;
use super::status::{AgentStatus, BackoffStep, ExitReason, Phase};
use crate::deadline::later;

/// What the driver needs to run one agent.
pub(super) struct Driver {
    pub(super) fleet: Arc<Fleet>,
    pub(super) index: usize,
    pub(super) maker: Maker,
    pub(super) rng: Rng,
}

/// What is left of an incarnation when its value is gone.
struct Outcome {
    exit: Arc<ExitReason>,
    /// How long it was Running.
    ran_for: Duration,
    /// If it is the end, it is a failed one: the agent completed or was cancelled but could not release
    /// everything, or it crashed after the cancel.
    spoilt: bool,
}

/// Drives the agent to its end.
pub(super) async fn drive(driver: Driver) {
    let Driver { fleet, index, mut maker, mut rng } = driver;
    let guard = Guard { cell: fleet.cell(index).clone(), fleet, index, ended: false };
    let cell = guard.cell.clone();
    if cell.waiting_on.load(Ordering::SeqCst) > 0
        && let Err(exit) = std::future::poll_fn(|cx| poll_dependencies(&cell, cx)).await
    {
        return guard.end(AgentStatus::Stopped, &Arc::new(exit));
    }
    let mut restart = RestartState::new(maker.policy());
    let mut last_exit = None;
    while cell.asked() == Asked::Nothing {
        let outcome = incarnation(&guard, &mut maker).await;
        let Outcome { exit, ran_for, spoilt } = outcome;
        let decision = restart.decide(&exit, ran_for, &mut rng);
        if matches!(&*exit, ExitReason::Completed) && !spoilt {
            guard.fleet.completed(index);
        }
        let stopping = cell.asked() > Asked::Nothing;
        match decision {
            Decision::GiveUp(why) => return guard.give_up(&exit, why),
            Decision::Done if spoilt => return guard.end(AgentStatus::Failed, &exit),
            Decision::RestartAfter(_) if stopping && spoilt => return guard.end(AgentStatus::Failed, &exit),
            Decision::Done => return guard.end(AgentStatus::Stopped, &exit),
            // A stop turns the restart that was due into the end.
            Decision::RestartAfter(_) if stopping => return guard.end(AgentStatus::Stopped, &exit),
            Decision::RestartAfter(delay) => {
                let backoff = Some(BackoffStep { attempt: restart.streak(), delay });
                cell.to(AgentStatus::Backoff, Change { backoff, ..Change::exit(&exit) });
                sleep_or_stop(&cell, delay).await;
            }
        }
        last_exit = Some(exit);
    }
    let exit = last_exit.unwrap_or_else(|| Arc::new(ExitReason::Cancelled));
    guard.end(AgentStatus::Stopped, &exit);
}

/// One value: from Initializing to the drop of the value in Stopping.
async fn incarnation(guard: &Guard, maker: &mut Maker) -> Outcome {
    let cell = &guard.cell;
    let incarnation = cell.begin();
    let cx = AgentContext(incarnation.clone());
    cell.forced.store(false, Ordering::Relaxed);
    let mut agent = match cell.enter(|| maker.make()) {
        Ok(agent) => Value(Some(agent)),
        Err(panic) => {
            // There is no value, so there is nothing to clean up.
            let exit = settle(cell, Phase::Initialize, ExitReason::Panicked(panic));
            cell.to(AgentStatus::Stopping, Change::exit(&exit));
            return Outcome { exit, ran_for: Duration::ZERO, spoilt: false };
        }
    };

    let limit = Some(cell.limits().initialize);
    let mut phase = Phase::Initialize;
    let mut ended = hook(&incarnation, phase, limit, || agent.get().initialize(&cx)).await;
    let mut untidy = ended.drop_panicked;
    let mut ran_for = Duration::ZERO;
    if matches!(ended.exit, ExitReason::Completed) {
        if cell.asked() == Asked::Nothing {
            phase = Phase::Run;
            let running = Instant::now();
            incarnation.run_begins();
            cell.to(AgentStatus::Running, Change::default());
            guard.fleet.running(guard.index);
            // Lets those that wait for this agent start, should `run` keep the thread to itself.
            tokio::task::yield_now().await;
            ended = hook(&incarnation, phase, None, || agent.get().run(&cx)).await;
            untidy |= ended.drop_panicked;
            ran_for = running.elapsed();
        } else {
            ended.exit = ExitReason::Cancelled;
        }
    }
    let Ended { exit, forced, stop_by, crashed_late, drop_panicked: _ } = ended;
    let exit = settle(cell, phase, exit);
    cell.forced.store(forced, Ordering::Relaxed);
    cell.to(AgentStatus::Stopping, Change::exit(&exit));

    incarnation.token.cancel();
    if let Some(tasks) = incarnation.children.close() {
        // One stop timeout for the hook and its children together.
        let until = stop_by.unwrap_or_else(|| later(cell.limits().stop));
        for exit in Box::pin(end_children(cell, tasks, until)).await {
            untidy |= exit.is_crash();
            settle(cell, phase, exit);
        }
    }
    untidy |= !clean_up(&incarnation, &cx, &mut agent, &exit).await;
    if let Err(panic) = cell.enter(|| drop(agent.0.take())) {
        untidy = true;
        settle(cell, Phase::Cleanup, ExitReason::Panicked(panic));
    }
    // After any other exit a failed release is on record and replaces nothing.
    let spoilt = crashed_late || (untidy && matches!(*exit, ExitReason::Completed | ExitReason::Cancelled));
    Outcome { exit, ran_for, spoilt }
}

/// Calls `cleanup` and says whether it went well.
async fn clean_up(
    incarnation: &Incarnation,
    cx: &AgentContext,
    agent: &mut Value,
    exit: &ExitReason,
) -> bool {
    let cell = &incarnation.cell;
    let limit = Some(cell.limits().cleanup);
    let ended = hook(incarnation, Phase::Cleanup, limit, || agent.get().cleanup(cx, exit)).await;
    if ended.forced {
        cell.forced.store(true, Ordering::Relaxed);
    }
    let well = matches!(ended.exit, ExitReason::Completed) && !ended.drop_panicked;
    settle(cell, Phase::Cleanup, ended.exit);
    well
}

/// Calls one hook and drives it to its end.
async fn hook<'a>(
    incarnation: &'a Incarnation,
    phase: Phase,
    limit: Option<Duration>,
    make: impl FnOnce() -> futures::future::BoxFuture<'a, crate::Result<()>>,
) -> Ended {
    match Hook::new(incarnation, phase, limit, make) {
        Ok(hook) => hook.end().await,
        Err(panic) => Ended {
            exit: ExitReason::Panicked(panic),
            forced: false,
            stop_by: None,
            drop_panicked: false,
            crashed_late: incarnation.cell.asked() > Asked::Nothing,
        },
    }
}

/// Puts an exit that is an error on record.
fn settle(cell: &Cell, phase: Phase, exit: ExitReason) -> Arc<ExitReason> {
    match &exit {
        ExitReason::Error(error) => cell.record(phase, error.clone()),
        other => {
            if let Some(error) = other.to_error() {
                cell.record(phase, error.with_operation(phase.as_str()));
            }
        }
    }
    Arc::new(exit)
}

/// Ready when the agent may start; an exit if it never will.
fn poll_dependencies(cell: &Cell, cx: &mut Context<'_>) -> Poll<Result<(), ExitReason>> {
    cell.waker.register(cx.waker());
    if let Some(name) = cell.dependency_failed.get() {
        return Poll::Ready(Err(ExitReason::DependencyFailed(name.clone())));
    }
    // A stop wins over dependencies that are ready.
    if cell.asked() > Asked::Nothing {
        return Poll::Ready(Err(ExitReason::Cancelled));
    }
    if cell.waiting_on.load(Ordering::SeqCst) == 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
}

async fn sleep_or_stop(cell: &Cell, delay: Duration) {
    let mut sleep = Box::pin(tokio::time::sleep_until(later(delay)));
    std::future::poll_fn(|cx| {
        cell.waker.register(cx.waker());
        if cell.asked() > Asked::Nothing { Poll::Ready(()) } else { sleep.as_mut().poll(cx) }
    })
    .await;
}

/// The agent's value: dropped with the driver, its drop is caught as well.
struct Value(Option<Box<dyn Agent>>);

impl Value {
    fn get(&mut self) -> &mut Box<dyn Agent> {
        self.0.as_mut().expect("the value is taken only after its last hook")
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        if let Some(agent) = self.0.take() {
            drop_caught(agent);
        }
    }
}

/// Says how the agent ended; if the driver is dropped before it could, that it was aborted.
struct Guard {
    cell: Arc<Cell>,
    fleet: Arc<Fleet>,
    index: usize,
    ended: bool,
}

impl Guard {
    fn end(mut self, status: AgentStatus, exit: &Arc<ExitReason>) {
        self.finish(status, Change::exit(exit));
    }

    fn give_up(mut self, exit: &Arc<ExitReason>, why: GiveUp) {
        self.finish(AgentStatus::Failed, Change { gave_up: Some(why), ..Change::exit(exit) });
    }

    fn finish(&mut self, status: AgentStatus, change: Change) {
        self.ended = true;
        self.cell.to(status, change);
        self.fleet.ended(self.index, status);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.ended {
            let exit = settle(&self.cell, Phase::Run, ExitReason::DriverAborted);
            self.finish(AgentStatus::Failed, Change::exit(&exit));
        }
    }
}
