//! One hook under its limits: the only place where the code of an agent is polled.
//!
//! Each poll asks, in this order: deadline, watchdog, cancel, children, hook. With the hook first, one that is
//! always ready would eat tokio's budget, and the timers behind it would never fire. No timer exists until the
//! hook has been found pending, so that a hook that is ready at once costs none.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, Sleep};

use super::catch::drop_caught;
use super::cell::{Asked, Cell};
use super::context::Incarnation;
use super::status::{ExitReason, Phase};
use crate::Result;
use crate::deadline::later;

/// How a hook ended.
pub(super) struct Ended {
    /// `Completed` if it returned Ok and nobody had asked it to stop.
    pub(super) exit: ExitReason,
    /// It had to be dropped after a stop, or ran out of time in `cleanup`.
    pub(super) forced: bool,
    /// Where its stop timeout ends, if it was asked to stop.
    pub(super) stop_by: Option<Instant>,
    /// It, or a child, panicked after it had been asked to stop.
    pub(super) crashed_late: bool,
    /// Its drop panicked.
    pub(super) drop_panicked: bool,
}

/// The hook that is under way. Dropped with the driver, it drops the hook inside `catch_unwind`.
pub(super) struct Hook<'a> {
    incarnation: &'a Incarnation,
    phase: Phase,
    future: Option<BoxFuture<'a, Result<()>>>,
    span: tracing::Span,
    timer: Option<Pin<Box<Sleep>>>,
    began: Instant,
    deadline: Option<Instant>,
    watchdog: Option<Duration>,
    stop_seen: bool,
    stop_by: Option<Instant>,
    last_call: bool,
    crashed_late: bool,
}

impl<'a> Hook<'a> {
    /// Calls the hook. A hand-written one may panic before it returns its future.
    pub(super) fn new(
        incarnation: &'a Incarnation,
        phase: Phase,
        limit: Option<Duration>,
        make: impl FnOnce() -> BoxFuture<'a, Result<()>>,
    ) -> Result<Self, String> {
        let cell = &incarnation.cell;
        let span = tracing::info_span!(
            target: "qi_core::agent",
            parent: None,
            "agent",
            name = %cell.name,
            incarnation = incarnation.number,
            %phase
        );
        let future = {
            let _entered = span.enter();
            cell.enter(make)?
        };
        let began = Instant::now();
        Ok(Self {
            incarnation,
            phase,
            future: Some(future),
            span,
            timer: None,
            began,
            deadline: limit.map(later),
            watchdog: if phase == Phase::Run { cell.watchdog } else { None },
            stop_seen: false,
            stop_by: None,
            last_call: false,
            crashed_late: false,
        })
    }

    /// What was asked of the agent moves the deadline: the stop timeout for `initialize` and `run`, the end of
    /// the reserve for `cleanup`. Gives true if the hook must be dropped now.
    fn heed(&mut self, asked: Asked, cell: &Cell) -> bool {
        if self.phase == Phase::Cleanup {
            if asked == Asked::DropHooks && !self.last_call {
                self.last_call = true;
                self.bring_forward(cell.env.final_at.get().copied());
            }
            return false;
        }
        if asked >= Asked::Stop && !self.stop_seen {
            self.stop_seen = true;
            // Winding down needs no heartbeat: the stop timeout bounds it.
            self.watchdog = None;
            self.stop_by = Some(later(cell.limits().stop));
            self.bring_forward(self.stop_by);
        }
        asked == Asked::DropHooks
    }

    fn bring_forward(&mut self, at: Option<Instant>) {
        self.deadline = [self.deadline, at].into_iter().flatten().min();
    }

    fn next_alarm(&self) -> Option<Instant> {
        let bite = self.watchdog.and_then(|limit| self.incarnation.bites_at(limit));
        [self.deadline, bite].into_iter().flatten().min()
    }

    /// Why time is up, if it is. `now` is a moment at which the timer had fired.
    fn overdue(&self, now: Instant) -> Option<ExitReason> {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            return Some(if self.stop_seen {
                ExitReason::Cancelled
            } else {
                ExitReason::TimedOut(self.phase)
            });
        }
        let bite = self.watchdog.and_then(|limit| self.incarnation.bites_at(limit));
        bite.is_some_and(|bite| bite <= now).then_some(ExitReason::Stale)
    }

    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<ExitReason> {
        loop {
            let Some(alarm) = self.next_alarm() else { return Poll::Pending };
            match &mut self.timer {
                None => self.timer = Some(Box::pin(tokio::time::sleep_until(alarm))),
                Some(timer) if timer.deadline() != alarm => timer.as_mut().reset(alarm),
                Some(_) => {}
            }
            let fired = self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready());
            if !fired {
                return Poll::Pending;
            }
            // A heartbeat may have moved the alarm since; then the loop sets the timer anew.
            if let Some(exit) = self.overdue(Instant::now().max(alarm)) {
                return Poll::Ready(exit);
            }
        }
    }

    fn poll_hook(&mut self, cx: &mut Context<'_>) -> Poll<ExitReason> {
        let Some(future) = self.future.as_mut() else { return Poll::Ready(ExitReason::Completed) };
        let polled = {
            let _entered = self.span.enter();
            self.incarnation.cell.enter(|| future.as_mut().poll(cx))
        };
        Poll::Ready(match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(Ok(()))) if self.stop_seen => ExitReason::Cancelled,
            Ok(Poll::Ready(Ok(()))) => ExitReason::Completed,
            Ok(Poll::Ready(Err(error))) if self.stop_seen => {
                self.incarnation.cell.record(self.phase, error);
                ExitReason::Cancelled
            }
            Ok(Poll::Ready(Err(error))) => ExitReason::Error(error),
            Err(panic) => {
                self.crashed_late = self.stop_seen;
                ExitReason::Panicked(panic)
            }
        })
    }

    fn poll_children(&mut self, cx: &mut Context<'_>) -> Poll<ExitReason> {
        while let Poll::Ready(exit) = self.incarnation.children.poll_failed(cx) {
            if !self.stop_seen {
                return Poll::Ready(exit);
            }
            // After the cancel it is recorded and the hook goes on winding down.
            self.crashed_late |= exit.is_crash();
            if let Some(error) = exit.to_error() {
                self.incarnation.cell.record(self.phase, error);
            }
        }
        Poll::Pending
    }

    fn poll_exit(&mut self, cx: &mut Context<'_>) -> Poll<(ExitReason, bool)> {
        let incarnation = self.incarnation;
        let cell = &*incarnation.cell;
        if self.timer.is_some()
            && let Poll::Ready(exit) = self.poll_alarm(cx)
        {
            return Poll::Ready((exit, true));
        }
        cell.waker.register(cx.waker());
        if self.heed(cell.asked(), cell) {
            return Poll::Ready((ExitReason::Cancelled, true));
        }
        if let Poll::Ready(exit) = self.poll_children(cx) {
            return Poll::Ready((exit, false));
        }
        if let Poll::Ready(exit) = self.poll_hook(cx) {
            return Poll::Ready((exit, false));
        }
        // The first time, or with a deadline that a stop has just moved, this arms the timer.
        self.poll_alarm(cx).map(|exit| (exit, true))
    }

    /// Drives the hook to its end and drops it, whatever its drop does.
    pub(super) async fn end(mut self) -> Ended {
        let (exit, dropped) = std::future::poll_fn(|cx| self.poll_exit(cx)).await;
        let drop_panic = {
            let _entered = self.span.enter();
            self.future.take().and_then(|future| self.incarnation.cell.enter(|| drop(future)).err())
        };
        let drop_panicked = drop_panic.is_some();
        if let Some(panic) = drop_panic
            && let Some(error) = ExitReason::Panicked(panic).to_error()
        {
            self.incarnation.cell.record(self.phase, error.with_context("while", "dropping the hook"));
        }
        let forced = dropped && (self.stop_seen || self.phase == Phase::Cleanup);
        if forced {
            self.incarnation.cell.forced_stop(self.phase, self.began.elapsed());
        }
        Ended { exit, forced, stop_by: self.stop_by, crashed_late: self.crashed_late, drop_panicked }
    }
}

impl Drop for Hook<'_> {
    fn drop(&mut self) {
        if let Some(future) = self.future.take() {
            drop_caught(future);
        }
    }
}
