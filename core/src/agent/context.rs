//! What an agent is given: its name, its cancellation, its heartbeat, its children.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::catch::{lock, message};
use super::cell::{Asked, Cell};
use super::status::{AgentHealth, ExitReason, agent_error};
use crate::deadline::later;
use crate::{Clock, Error, ErrorKind, Result, Timestamp};

/// What one incarnation of an agent is given. Cloning it costs one reference count, so sub-tasks can hold it.
///
/// A clone that outlives its incarnation stays harmless: it is cancelled, and its heartbeat and its health reach
/// nobody.
#[derive(Clone)]
pub struct AgentContext(pub(super) Arc<Incarnation>);

impl fmt::Debug for AgentContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentContext")
            .field("name", &self.name())
            .field("incarnation", &self.incarnation())
            .field("cancelled", &self.is_cancelled())
            .finish_non_exhaustive()
    }
}

impl AgentContext {
    /// The name of the agent's spec.
    pub fn name(&self) -> &str {
        &self.0.cell.name
    }

    /// 1 for the first value, one more after each restart.
    pub fn incarnation(&self) -> u32 {
        self.0.number
    }

    /// Whether the agent was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.token.is_cancelled()
    }

    /// Waits until the agent is asked to stop.
    pub async fn cancelled(&self) {
        self.0.token.cancelled().await;
    }

    /// The result of `future`, or None if the agent is asked to stop first (`future` is dropped then). A stop
    /// wins over a future that is ready at the same time.
    pub async fn until_cancelled<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.0.token.cancelled() => None,
            value = future => Some(value),
        }
    }

    /// Sleeps; None if the agent is asked to stop first.
    ///
    /// ```
    /// # async fn poll() {}
    /// # async fn run(cx: &qi_core::agent::AgentContext) {
    /// while cx.sleep(std::time::Duration::from_secs(5)).await.is_some() {
    ///     poll().await;
    /// }
    /// # }
    /// ```
    pub async fn sleep(&self, duration: Duration) -> Option<()> {
        self.until_cancelled(tokio::time::sleep_until(later(duration))).await
    }

    /// The token behind [`AgentContext::cancelled`], for code that knows tokens and not agents.
    pub fn cancel_token(&self) -> CancellationToken {
        self.0.token.clone()
    }

    /// The runtime's present time. For stamps only: waiting is tokio's.
    pub fn now(&self) -> Timestamp {
        self.0.cell.env.clock.now()
    }

    /// Says that `run` is alive, for the watchdog. One relaxed store.
    pub fn heartbeat(&self) {
        self.0.beat.store(self.0.elapsed_micros().saturating_add(1), Ordering::Relaxed);
    }

    /// Says that the agent works, but not as it should. The sentence is cut to 200 characters. The agent is not
    /// ready until [`AgentContext::healthy`] or its next incarnation.
    pub fn degraded(&self, why: impl fmt::Display) {
        self.0.cell.set_health(self.0.number, AgentHealth::Degraded(why.to_string()));
    }

    /// Takes back [`AgentContext::degraded`].
    pub fn healthy(&self) {
        self.0.cell.set_health(self.0.number, AgentHealth::Ok);
    }

    /// Starts a task that belongs to this incarnation. Its error or panic ends the hook with that exit. When
    /// `run` has ended, children that are left see the cancel, have what remains of the stop timeout, and are
    /// then aborted and awaited before `cleanup`.
    ///
    /// # Errors
    /// `Closed` once `run` has ended; `Overloaded` beyond the spec's `max_children`; `Internal` outside a tokio
    /// runtime.
    ///
    /// ```
    /// # use qi_core::{Result, agent::AgentContext};
    /// async fn run(cx: &AgentContext) -> Result<()> {
    ///     let child = cx.clone();
    ///     cx.spawn("ping", async move {
    ///         while child.sleep(std::time::Duration::from_secs(20)).await.is_some() { /* ping */ }
    ///         Ok(())
    ///     })?;
    ///     cx.cancelled().await;
    ///     Ok(())
    /// }
    /// ```
    pub fn spawn(
        &self,
        label: &str,
        future: impl Future<Output = Result<()>> + Send + 'static,
    ) -> Result<()> {
        let cell = &self.0.cell;
        self.0.children.spawn(&cell.name, cell.max_children, label, future)?;
        // The driver may sleep without ever having seen a child.
        cell.waker.wake();
        Ok(())
    }

    /// A context that no runtime stands behind: first incarnation, named `test`, cancelled by
    /// `cancel_token().cancel()`. Children run, but their errors end nothing.
    #[cfg(feature = "test")]
    pub fn for_test() -> Self {
        let env = Arc::new(super::cell::Env::new(Arc::new(crate::SystemClock), Vec::new()));
        let limits = super::spec::DEFAULT_LIMITS;
        let now = env.clock.now();
        let cell =
            Cell::new("test".into(), env, (limits, limits), None, super::spec::DEFAULT_MAX_CHILDREN, now);
        Self(Arc::new(Incarnation::new(Arc::new(cell), 1)))
    }
}

/// One value's share of a [`Cell`]: a context of an earlier incarnation writes to its own.
pub(super) struct Incarnation {
    pub(super) cell: Arc<Cell>,
    pub(super) number: u32,
    pub(super) token: CancellationToken,
    pub(super) children: Children,
    born: Instant,
    born_at: Timestamp,
    /// Microseconds after `born` of the last heartbeat, plus one; 0 for none.
    beat: AtomicU64,
    /// Microseconds after `born` at which `run` began.
    run_from: AtomicU64,
}

impl Incarnation {
    pub(super) fn new(cell: Arc<Cell>, number: u32) -> Self {
        let born_at = cell.env.clock.now();
        Self {
            cell,
            number,
            token: CancellationToken::new(),
            children: Children::default(),
            born: Instant::now(),
            born_at,
            beat: AtomicU64::new(0),
            run_from: AtomicU64::new(0),
        }
    }

    fn elapsed_micros(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn run_begins(&self) {
        self.run_from.store(self.elapsed_micros(), Ordering::Relaxed);
    }

    fn last_sign(&self) -> u64 {
        self.beat.load(Ordering::Relaxed).saturating_sub(1).max(self.run_from.load(Ordering::Relaxed))
    }

    /// When the watchdog of `limit` bites unless a heartbeat comes first.
    pub(super) fn bites_at(&self, limit: Duration) -> Option<Instant> {
        self.born.checked_add(Duration::from_micros(self.last_sign()))?.checked_add(limit)
    }

    pub(super) fn silent_for(&self) -> Duration {
        Duration::from_micros(self.elapsed_micros().saturating_sub(self.last_sign()))
    }

    pub(super) fn last_heartbeat(&self) -> Option<Timestamp> {
        match self.beat.load(Ordering::Relaxed) {
            0 => None,
            micros => self.born_at.checked_add(Duration::from_micros(micros - 1)),
        }
    }
}

/// The sub-tasks of one incarnation.
#[derive(Default)]
pub(super) struct Children {
    /// Lets the driver pass by without the lock while there has never been a child.
    any: AtomicBool,
    set: Mutex<ChildSet>,
}

#[derive(Default)]
struct ChildSet {
    closed: bool,
    tasks: Option<JoinSet<Option<ExitReason>>>,
}

impl Children {
    fn spawn(
        &self,
        agent: &str,
        max: usize,
        label: &str,
        future: impl Future<Output = Result<()>> + Send + 'static,
    ) -> Result<()> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|source| {
            Error::new(ErrorKind::Internal, "agent.child.runtime", "spawn").with_source(source)
        })?;
        let refuse = |kind, code: &'static str, why: &str| Err(agent_error(kind, code, "spawn", agent, why));
        let mut set = lock(&self.set);
        if set.closed {
            return refuse(ErrorKind::Closed, "agent.child.closed", "the incarnation is over");
        }
        let tasks = set.tasks.get_or_insert_with(JoinSet::new);
        if tasks.len() >= max {
            return refuse(ErrorKind::Overloaded, "agent.child.limit", "has as many children as it may");
        }
        let label = label.to_owned();
        let task = async move {
            match AssertUnwindSafe(future).catch_unwind().await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(ExitReason::Error(error.with_context("child", label))),
                Err(panic) => Some(ExitReason::Panicked(format!("child {label}: {}", message(panic)))),
            }
        };
        tasks.spawn_on(task.in_current_span(), &runtime);
        self.any.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// The next child that failed. Those that are done are forgotten.
    pub(super) fn poll_failed(&self, cx: &mut Context<'_>) -> Poll<ExitReason> {
        if !self.any.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        let mut set = lock(&self.set);
        let Some(tasks) = set.tasks.as_mut() else { return Poll::Pending };
        loop {
            match tasks.poll_join_next(cx) {
                Poll::Ready(Some(joined)) => {
                    if let Some(exit) = failure(joined) {
                        return Poll::Ready(exit);
                    }
                }
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Refuses further children and hands over those that are left.
    pub(super) fn close(&self) -> Option<JoinSet<Option<ExitReason>>> {
        let mut set = lock(&self.set);
        set.closed = true;
        set.tasks.take().filter(|tasks| !tasks.is_empty())
    }
}

/// How long aborted children may take to be gone: a moment, unless they block their threads.
const ABORT_PATIENCE: Duration = Duration::from_secs(1);
/// The same, at the soft deadline.
const LAST_PATIENCE: Duration = Duration::from_millis(100);

/// Waits for children that have seen the cancel, until `until`; then aborts and awaits them. Gives what went
/// wrong in them.
pub(super) async fn end_children(
    cell: &Cell,
    mut tasks: JoinSet<Option<ExitReason>>,
    until: Instant,
) -> Vec<ExitReason> {
    let mut failed = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(until) => break,
            () = dropping_asked(cell) => break,
            joined = tasks.join_next() => match joined {
                Some(joined) => failed.extend(failure(joined)),
                None => return failed,
            }
        }
    }
    tasks.abort_all();
    let last_call = cell.asked() == Asked::DropHooks;
    let patience = later(if last_call { LAST_PATIENCE } else { ABORT_PATIENCE });
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(patience) => break,
            joined = tasks.join_next() => match joined {
                Some(joined) => failed.extend(failure(joined)),
                None => return failed,
            }
        }
    }
    // A child that blocks its thread cannot be aborted. To wait for it for ever would keep cleanup from
    // the agent and the end from the runtime.
    let message = format!("{} children block their threads and were left behind", tasks.len());
    failed.push(ExitReason::Error(agent_error(
        ErrorKind::Timeout,
        "agent.child.leaked",
        "stop",
        &cell.name,
        message,
    )));
    tasks.detach_all();
    failed
}

async fn dropping_asked(cell: &Cell) {
    std::future::poll_fn(|cx| {
        cell.waker.register(cx.waker());
        if cell.asked() == Asked::DropHooks { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

fn failure(joined: Result<Option<ExitReason>, tokio::task::JoinError>) -> Option<ExitReason> {
    match joined {
        Ok(exit) => exit,
        Err(error) if error.is_panic() => Some(ExitReason::Panicked(message(error.into_panic()))),
        Err(_aborted) => None,
    }
}
