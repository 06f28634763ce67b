//! The child tasks of one incarnation.

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::task::AtomicWaker;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::catch::{lock, panic_message};
use super::status::{ExitReason, agent_error};
use crate::deadline::later;
use crate::{Error, ErrorKind, Result};

/// The time limit for aborted children. Only a child that blocks its thread needs longer.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);
/// The time limit for aborted children after the soft deadline.
const LAST_ABORT_TIMEOUT: Duration = Duration::from_millis(100);

/// The child tasks. A failed child returns its exit.
pub(super) type Tasks = JoinSet<Option<ExitReason>>;

#[derive(Default)]
pub(super) struct Children {
    /// Wakes the task that waits in `failed` after a spawn, so that it polls the set again.
    waker: AtomicWaker,
    set: Mutex<ChildSet>,
}

#[derive(Default)]
struct ChildSet {
    closed: bool,
    tasks: Option<Tasks>,
}

impl Children {
    pub(super) fn spawn(
        &self,
        agent: &str,
        max: usize,
        label: &str,
        future: impl Future<Output = Result<()>> + Send + 'static,
    ) -> Result<()> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|source| {
            Error::new(ErrorKind::Internal, "agent.child.runtime", "spawn").with_source(source)
        })?;
        let reject = |kind, code, why: &str| Err(agent_error(kind, code, "spawn", agent, why));
        let mut set = lock(&self.set);
        if set.closed {
            return reject(ErrorKind::Closed, "agent.child.closed", "the incarnation has ended");
        }
        let tasks = set.tasks.get_or_insert_with(JoinSet::new);
        if tasks.len() >= max {
            return reject(ErrorKind::Overloaded, "agent.child.limit", "child task limit reached");
        }
        let label = label.to_owned();
        let task = async move {
            match AssertUnwindSafe(future).catch_unwind().await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(ExitReason::Error(error.with_context("child", label))),
                Err(panic) => Some(ExitReason::Panicked(format!("child {label}: {}", panic_message(panic)))),
            }
        };
        tasks.spawn_on(task.in_current_span(), &runtime);
        drop(set);
        self.waker.wake();
        Ok(())
    }

    /// Waits for the next failure of a child.
    pub(super) async fn failed(&self) -> ExitReason {
        std::future::poll_fn(|cx| {
            self.waker.register(cx.waker());
            let mut set = lock(&self.set);
            let Some(tasks) = set.tasks.as_mut() else { return Poll::Pending };
            while let Poll::Ready(Some(joined)) = tasks.poll_join_next(cx) {
                if let Some(exit) = failure(joined) {
                    return Poll::Ready(exit);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Rejects further children and returns the remaining children.
    pub(super) fn close(&self) -> Option<Tasks> {
        let mut set = lock(&self.set);
        set.closed = true;
        set.tasks.take()
    }
}

/// Waits for the children until `until` or the soft deadline, then aborts them. Detaches children that do not end.
/// Returns the exits of failed children.
pub(super) async fn end_children(
    agent: &str,
    mut tasks: Tasks,
    until: Instant,
    soft_deadline: &CancellationToken,
) -> Vec<ExitReason> {
    let mut failed = Vec::new();
    tokio::select! {
        biased;
        () = sleep_until(until) => {}
        () = soft_deadline.cancelled() => {}
        () = join_all(&mut tasks, &mut failed) => return failed,
    }
    tasks.abort_all();
    let limit = if soft_deadline.is_cancelled() { LAST_ABORT_TIMEOUT } else { ABORT_TIMEOUT };
    tokio::select! {
        biased;
        () = sleep_until(later(limit)) => {}
        () = join_all(&mut tasks, &mut failed) => return failed,
    }
    // Waiting without a limit would block the cleanup of the agent and the end of the runtime.
    let message = format!("{} child tasks block their threads and were detached", tasks.len());
    let leaked = agent_error(ErrorKind::Timeout, "agent.child.leaked", "stop", agent, message);
    failed.push(ExitReason::Error(leaked));
    tasks.detach_all();
    failed
}

async fn join_all(tasks: &mut Tasks, failed: &mut Vec<ExitReason>) {
    while let Some(joined) = tasks.join_next().await {
        failed.extend(failure(joined));
    }
}

fn failure(joined: Result<Option<ExitReason>, JoinError>) -> Option<ExitReason> {
    match joined {
        Ok(exit) => exit,
        Err(error) if error.is_panic() => Some(ExitReason::Panicked(panic_message(error.into_panic()))),
        Err(_aborted) => None,
    }
}
