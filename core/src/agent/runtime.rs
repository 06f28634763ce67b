//! The runtime of agents.

use std::fmt;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::agent_task::AgentTask;
use super::handle::RuntimeHandle;
use super::report::{RuntimeReport, ShutdownCause};
use super::set::{AgentSet, ShutdownOnDrop};

/// The runtime of a set of agents. It starts agents in the order of their dependencies, restarts agents that fail, and
/// stops all agents in reverse order before a deadline.
///
/// ```
/// use std::time::Duration;
/// use qi_core::agent::{AgentRuntime, AgentSpec, AgentStatus, ShutdownCause, agent_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> qi_core::Result<()> {
/// let writer = AgentSpec::new("writer", || {
///     agent_fn(|cx| async move {
///         cx.cancelled().await;
///         Ok(())
///     })
/// });
/// let feed = AgentSpec::new("feed", || agent_fn(|_cx| async { Ok(()) }));
/// let runtime = AgentRuntime::builder()
///     .agents([writer, feed.depends_on(["writer"]).run_to_completion()])
///     .build()?;
/// let handle = runtime.handle();
/// let feed_is_done = async move { handle.wait_for("feed", |feed| feed.status == AgentStatus::Stopped).await };
/// let report = runtime.run_until(feed_is_done).await;
/// assert_eq!(report.cause, ShutdownCause::Requested);
/// report.result()
/// # }
/// ```
#[must_use = "a runtime does nothing until it is run"]
pub struct AgentRuntime {
    handle: RuntimeHandle,
}

impl fmt::Debug for AgentRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentRuntime").field("handle", &self.handle).finish()
    }
}

impl AgentRuntime {
    pub(super) fn new(set: Arc<AgentSet>) -> Self {
        Self { handle: RuntimeHandle::new(set) }
    }

    /// Returns a handle, which is usable before, during and after the run.
    pub fn handle(&self) -> RuntimeHandle {
        self.handle.clone()
    }

    /// Starts the agents as separate tasks and returns. [`RuntimeHandle::shutdown`] or the drop of the last handle
    /// begins the shutdown. [`RuntimeHandle::join`] waits for the end.
    ///
    /// # Panics
    /// If called outside a tokio runtime with its timer enabled.
    pub fn start(self) -> RuntimeHandle {
        let set = self.handle.set();
        for agent in set.start(Handle::current()) {
            tokio::spawn(AgentTask::new(set.clone(), agent).run());
        }
        self.handle.clone()
    }

    /// Runs until all agents have ended. A failure of a critical agent, or a request through a handle, begins the
    /// shutdown. See [`AgentRuntime::run_until`].
    pub async fn run(self) -> RuntimeReport {
        self.run_until(std::future::pending::<()>()).await
    }

    /// Runs until all agents have ended. Begins the shutdown when `until` completes.
    ///
    /// Dropping the future begins the shutdown. The agents are separate tasks, so the shutdown completes.
    ///
    /// # Panics
    /// If called outside a tokio runtime with its timer enabled.
    pub async fn run_until<F: Future>(self, until: F) -> RuntimeReport {
        let handle = self.start();
        let set = handle.set().clone();
        let _shutdown = ShutdownOnDrop(set.clone());
        tokio::select! {
            biased;
            _ = set.report.wait() => {}
            _ = until => set.begin_shutdown(ShutdownCause::Requested),
        }
        set.report.wait().await.clone()
    }
}

impl Drop for AgentRuntime {
    fn drop(&mut self) {
        self.handle.set().end_before_start();
    }
}
