//! Runs one hook under its time limits. The runtime polls all code of agents here.
//!
//! The order of each poll is deadline, watchdog, cancel, children, hook. If the hook came first, a hook that is always
//! ready would exhaust tokio's budget, and the timers after it would never fire.

use std::task::Poll;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

use super::catch::DropCaught;
use super::context::AgentContext;
use super::status::{ExitReason, Phase};
use crate::Result;
use crate::deadline::{later, later_than};

/// The end of a hook.
pub(super) struct HookEnd {
    /// `Completed` if the hook returned Ok before any stop.
    pub(super) exit: ExitReason,
    /// True if the hook had to be dropped after a stop, or timed out in `cleanup`.
    pub(super) forced: bool,
    /// The end of the stop timeout, if the agent must stop.
    pub(super) stop_by: Option<Instant>,
    /// True if the hook or a child panicked after the stop.
    pub(super) panicked_after_stop: bool,
    /// True if the drop of the hook panicked.
    pub(super) drop_panicked: bool,
}

impl From<ExitReason> for HookEnd {
    fn from(exit: ExitReason) -> Self {
        Self { exit, forced: false, stop_by: None, panicked_after_stop: false, drop_panicked: false }
    }
}

/// The time limits of a hook. A stop and the soft deadline bring them forward.
struct Limits<'a> {
    cx: &'a AgentContext,
    phase: Phase,
    deadline: Option<Instant>,
    watchdog: Option<Duration>,
    stop_by: Option<Instant>,
    soft_deadline_applied: bool,
}

impl Limits<'_> {
    fn bring_forward(&mut self, at: Option<Instant>) {
        self.deadline = self.deadline.into_iter().chain(at).min();
    }

    fn apply_stop_request(&mut self) {
        // The stop timeout limits the hook from now on, so no heartbeat is required.
        self.watchdog = None;
        self.stop_by = Some(later(self.cx.state.limits().stop));
        self.bring_forward(self.stop_by);
    }

    fn watchdog_expires_at(&self) -> Option<Instant> {
        self.cx.incarnation.expires_at(self.watchdog?)
    }

    fn next_timer(&self) -> Option<Instant> {
        self.deadline.into_iter().chain(self.watchdog_expires_at()).min()
    }

    /// Returns the exit of a hook whose deadline or watchdog has expired.
    fn expired(&self, now: Instant) -> Option<ExitReason> {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            let stopped = self.stop_by.is_some();
            return Some(if stopped { ExitReason::Cancelled } else { ExitReason::TimedOut(self.phase) });
        }
        self.watchdog_expires_at().is_some_and(|at| at <= now).then_some(ExitReason::Stale)
    }
}

/// Calls a hook, drives it to its end and drops it. The limit counts from `began`.
pub(super) async fn run_hook<'a>(
    cx: &'a AgentContext,
    phase: Phase,
    (began, limit): (Instant, Option<Duration>),
    make: impl FnOnce() -> BoxFuture<'a, Result<()>>,
) -> HookEnd {
    let (state, incarnation) = (&*cx.state, &*cx.incarnation);
    let soft_deadline = &state.shared.soft_deadline;
    let span = tracing::info_span!(
        target: "qi_core::agent",
        parent: None,
        "agent",
        name = %state.name,
        incarnation = incarnation.number,
        %phase
    );
    // A hand-written hook may panic before it returns its future.
    let mut future = match span.in_scope(|| state.enter(make)) {
        Ok(future) => DropCaught::new(future),
        Err(panic) => {
            let panicked_after_stop = state.must_stop();
            return HookEnd { panicked_after_stop, ..ExitReason::Panicked(panic).into() };
        }
    };
    let cleanup = phase == Phase::Cleanup;
    let mut panicked_after_stop = false;
    let deadline = limit.map(|limit| later_than(began, limit));
    let watchdog = state.settings.watchdog.filter(|_| phase == Phase::Run);
    let soft_deadline_applied = false;
    let mut limits = Limits { cx, phase, deadline, watchdog, stop_by: None, soft_deadline_applied };
    // A hook that is usually ready at its first poll is polled first, without the cost of timers and wakers: `initialize` and
    // `cleanup` at their start, `run` after a stop.
    let mut registered = phase == Phase::Run;
    let (exit, dropped) = loop {
        if !cleanup && limits.stop_by.is_none() && state.must_stop() {
            limits.apply_stop_request();
            registered = false;
        }
        let stopping = limits.stop_by.is_some();
        let timer = limits.next_timer();
        tokio::select! {
            biased;
            () = async { sleep_until(timer.unwrap_or(began)).await }, if registered && timer.is_some() => {
                // A heartbeat may have moved the timer.
                if let Some(exit) = limits.expired(Instant::now().max(timer.unwrap_or(began))) {
                    break (exit, true);
                }
            }
            () = state.stop_requested(), if registered && !cleanup && !stopping => {}
            () = soft_deadline.cancelled(),
                if registered && (cleanup || stopping) && !limits.soft_deadline_applied =>
            {
                if !cleanup {
                    break (ExitReason::Cancelled, true);
                }
                limits.soft_deadline_applied = true;
                limits.bring_forward(state.shared.cleanup_by.get().copied());
            }
            exit = incarnation.children.failed(), if registered => {
                if !stopping {
                    break (exit, false);
                }
                // After a stop the error is recorded, and the hook continues to its end.
                panicked_after_stop |= exit.is_crash();
                if let Some(error) = exit.to_error() {
                    state.record(phase, error);
                }
            }
            polled = std::future::poll_fn(|task| {
                match span.in_scope(|| state.enter(|| future.get().as_mut().poll(task))) {
                    Ok(polled) => polled.map(Ok),
                    Err(panic) => Poll::Ready(Err(panic)),
                }
            }) => {
                // The stop may have come during this poll.
                let stopping = stopping || (!cleanup && state.must_stop());
                let exit = match polled {
                    Ok(Ok(())) if stopping => ExitReason::Cancelled,
                    Ok(Ok(())) => ExitReason::Completed,
                    Ok(Err(error)) if stopping => {
                        state.record(phase, error);
                        ExitReason::Cancelled
                    }
                    Ok(Err(error)) => ExitReason::Error(error),
                    Err(panic) => {
                        panicked_after_stop = stopping;
                        ExitReason::Panicked(panic)
                    }
                };
                break (exit, false);
            }
            () = std::future::ready(()), if !registered => registered = true,
        }
    };
    let drop_panic = span.in_scope(|| state.enter(|| future.drop_now())).err();
    let drop_panicked = drop_panic.is_some();
    if let Some(error) = drop_panic.and_then(|panic| ExitReason::Panicked(panic).to_error()) {
        state.record(phase, error.with_context("while", "dropping the hook"));
    }
    let forced = dropped && (cleanup || limits.stop_by.is_some());
    if forced {
        state.record_forced_stop(phase, began.elapsed());
    }
    HookEnd { exit, forced, stop_by: limits.stop_by, panicked_after_stop, drop_panicked }
}
