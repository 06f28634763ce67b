//! The runtime: run until something ends it, watched and steered through handles.

use std::fmt;
use std::sync::Arc;

use fastrand::Rng;

use super::builder::AgentRuntimeBuilder;
use super::cell::{AgentWatch, Asked};
use super::driver::{Driver, drive};
use super::fleet::Fleet;
use super::health::{self, HealthReport};
use super::metrics;
use super::report::{EndedBy, RuntimeReport};
use super::shutdown::keep_soft_deadline;
use super::spec::Maker;
use super::status::{AgentSnapshot, ErrorRecord, Transition, agent_error};
use crate::{ErrorKind, Result};

/// Runs agents: starts them in the order of their dependencies, restarts those that fail, stops all of them in
/// reverse order by a deadline.
///
/// ```
/// use std::time::Duration;
/// use qi_core::agent::{AgentRuntime, AgentSpec, AgentStatus, EndedBy, agent_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> qi_core::Result<()> {
/// let runtime = AgentRuntime::builder()
///     .agent(AgentSpec::new("writer", || {
///         agent_fn(|cx| async move {
///             cx.cancelled().await;
///             Ok(())
///         })
///     }))
///     .agent(AgentSpec::new("feed", || agent_fn(|_cx| async { Ok(()) })).after(["writer"]).finite())
///     .build()?;
/// let handle = runtime.handle();
/// let feed_is_done = async move { handle.wait_for("feed", |feed| feed.status == AgentStatus::Stopped).await };
/// let report = runtime.run_until(feed_is_done).await;
/// assert_eq!(report.ended_by, EndedBy::Requested);
/// report.result()
/// # }
/// ```
#[must_use = "a runtime does nothing until it is run"]
pub struct AgentRuntime {
    handle: RuntimeHandle,
    makers: Vec<(Maker, Rng)>,
}

impl fmt::Debug for AgentRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentRuntime")
            .field("agents", &self.handle.fleet().members.len())
            .finish_non_exhaustive()
    }
}

impl AgentRuntime {
    pub(super) fn new(fleet: Arc<Fleet>, makers: Vec<(Maker, Rng)>) -> Self {
        Self { handle: RuntimeHandle(Arc::new(LastHandle(fleet))), makers }
    }

    /// Nothing yet: no agents, the defaults.
    pub fn builder() -> AgentRuntimeBuilder {
        AgentRuntimeBuilder::new()
    }

    /// A handle, before and while it runs.
    pub fn handle(&self) -> RuntimeHandle {
        self.handle.clone()
    }

    /// Starts the agents as tasks of their own and returns. The shutdown begins when the last handle is dropped,
    /// or by [`RuntimeHandle::shutdown`]; [`RuntimeHandle::ended`] waits for the end.
    ///
    /// # Panics
    /// Outside a tokio runtime with its timer enabled.
    pub fn start(mut self) -> RuntimeHandle {
        let fleet = self.handle.fleet();
        fleet.launch();
        tokio::spawn(keep_soft_deadline(fleet.clone()));
        for (index, (maker, rng)) in std::mem::take(&mut self.makers).into_iter().enumerate() {
            tokio::spawn(drive(Driver { fleet: fleet.clone(), index, maker, rng }));
        }
        self.handle.clone()
    }

    /// Runs until all agents have ended: by themselves, or because a critical one failed, or because a handle
    /// asked for it. See [`AgentRuntime::run_until`].
    pub async fn run(self) -> RuntimeReport {
        self.run_until(std::future::pending::<()>()).await
    }

    /// Runs until `until` is ready and all agents have then ended, or until all agents have ended before.
    ///
    /// Dropping the future begins the shutdown; it goes on by itself, because the agents are tasks of their own.
    ///
    /// # Panics
    /// Outside a tokio runtime with its timer enabled.
    pub async fn run_until<F: Future>(self, until: F) -> RuntimeReport {
        let handle = self.start();
        let fleet = handle.fleet().clone();
        let _stop_on_drop = StopOnDrop(fleet.clone());
        tokio::select! {
            biased;
            () = fleet.closed.cancelled() => {}
            _ = until => fleet.begin_shutdown(EndedBy::Requested),
        }
        fleet.closed().await
    }
}

impl Drop for AgentRuntime {
    fn drop(&mut self) {
        if !self.handle.fleet().was_launched() {
            self.handle.fleet().never_ran();
        }
    }
}

struct StopOnDrop(Arc<Fleet>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.begin_shutdown(EndedBy::Dropped);
    }
}

struct LastHandle(Arc<Fleet>);

impl Drop for LastHandle {
    fn drop(&mut self) {
        self.0.begin_shutdown(EndedBy::Dropped);
    }
}

/// Watches and steers a runtime. Cloning it costs one reference count; dropping the last one begins the
/// shutdown.
#[derive(Clone)]
pub struct RuntimeHandle(Arc<LastHandle>);

impl fmt::Debug for RuntimeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuntimeHandle").field("agents", &self.fleet().members.len()).finish_non_exhaustive()
    }
}

impl RuntimeHandle {
    pub(super) fn fleet(&self) -> &Arc<Fleet> {
        &self.0.0
    }

    /// The names of the agents, in the order in which they were added.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fleet().members.iter().map(|member| &*member.cell.name)
    }

    /// What the agent is now. `NotFound` for an unknown name, here and below.
    pub fn snapshot(&self, agent: &str) -> Result<AgentSnapshot> {
        Ok(self.fleet().find(agent)?.snapshot())
    }

    /// Follows the agent.
    pub fn subscribe(&self, agent: &str) -> Result<AgentWatch> {
        Ok(self.fleet().find(agent)?.subscribe())
    }

    /// Waits until the agent is as `wanted` says. A state that passes quickly may be skipped.
    ///
    /// # Errors
    /// `NotFound` for an unknown name; `Closed` if the agent, or the runtime, ended without it.
    pub async fn wait_for(
        &self,
        agent: &str,
        mut wanted: impl FnMut(&AgentSnapshot) -> bool,
    ) -> Result<AgentSnapshot> {
        let mut watch = self.subscribe(agent)?;
        let mut snapshot = watch.current();
        loop {
            if wanted(&snapshot) {
                return Ok(snapshot);
            }
            let next = tokio::select! {
                biased;
                next = watch.changed(), if !snapshot.status.is_terminal() => next,
                () = self.fleet().closed.cancelled() => None,
            };
            let Some(next) = next else {
                let message = format!("ended as {} without what was waited for", snapshot.status);
                return Err(agent_error(ErrorKind::Closed, "agent.ended", "wait_for", agent, message));
            };
            snapshot = next;
        }
    }

    /// The last 64 transitions of the agent, oldest first.
    pub fn history(&self, agent: &str) -> Result<Vec<Transition>> {
        Ok(self.fleet().find(agent)?.history())
    }

    /// The last 16 errors of the agent, oldest first.
    pub fn errors(&self, agent: &str) -> Result<Vec<ErrorRecord>> {
        Ok(self.fleet().find(agent)?.errors())
    }

    /// Asks this one agent to stop, for good. Those that depend on it and have started are left alone; those
    /// that still wait for it are Stopped with `DependencyFailed`. Asking twice, or after the end, changes
    /// nothing.
    pub fn stop(&self, agent: &str) -> Result<()> {
        self.fleet().find(agent)?.ask(Asked::Stop);
        Ok(())
    }

    /// Begins the shutdown. Asking twice, or after the end, changes nothing.
    pub fn shutdown(&self) {
        self.fleet().begin_shutdown(EndedBy::Requested);
    }

    /// Begins the shutdown if that has not happened, and makes its soft deadline now: every hook but cleanup is
    /// dropped, and cleanups get the reserve.
    pub fn shutdown_now(&self) {
        self.shutdown();
        self.fleet().deadlines.hurry();
    }

    /// Ready, started, live. From memory alone.
    pub fn health(&self) -> HealthReport {
        health::report(self.fleet())
    }

    /// Sets the gauge of heartbeat ages (`qi_agent_heartbeat_age_seconds`) to what they are now. To be called before an
    /// exporter is read, because nothing else tells of silence.
    pub fn measure_heartbeats(&self) {
        metrics::measure_heartbeats(self.fleet());
    }

    /// Waits for the end of the runtime.
    pub async fn ended(&self) -> RuntimeReport {
        self.fleet().closed().await
    }
}
