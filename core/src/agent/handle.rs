//! The handle of a runtime.

use std::fmt;
use std::sync::Arc;

use metrics::gauge;

use super::agent_task::AgentTask;
use super::health::{self, RuntimeHealth};
use super::report::{AgentReport, RemovedAgent, RuntimeReport, ShutdownCause};
use super::set::{AgentSet, ShutdownOnDrop};
use super::spec::AgentSpec;
use super::state::AgentWatch;
use super::status::{AgentSnapshot, ErrorRecord, Transition, agent_error};
use crate::telemetry::AGENT_HEARTBEAT_AGE;
use crate::{ErrorKind, Result};

/// A handle that observes and controls a runtime. Cloning it costs one reference count. Dropping the
/// last handle begins the shutdown.
///
/// Methods that take an agent's name return `NotFound` for an unknown name.
#[derive(Clone)]
pub struct RuntimeHandle(Arc<ShutdownOnDrop>);

impl fmt::Debug for RuntimeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuntimeHandle").field("agents", &self.names()).finish_non_exhaustive()
    }
}

impl RuntimeHandle {
    pub(super) fn new(set: Arc<AgentSet>) -> Self {
        Self(Arc::new(ShutdownOnDrop(set)))
    }

    pub(super) fn set(&self) -> &Arc<AgentSet> {
        &self.0.0
    }

    /// Returns the names of the agents, in the order in which they were added.
    pub fn names(&self) -> Vec<Arc<str>> {
        self.set().agents().iter().map(|agent| agent.name.clone()).collect()
    }

    /// Adds an agent. The agent starts as soon as its dependencies have started, but not before the runtime. The name
    /// must differ from the names of all present agents.
    ///
    /// The runtime treats the agent like the agents of the builder. It restarts by its policy, its failure begins the
    /// shutdown unless it is best effort, and it is part of the report. After its end the agent stays
    /// present until it is removed.
    ///
    /// # Errors
    /// `Closed` during a shutdown and after the end of the runtime; `Conflict` if a dependency is stopping or ended
    /// without completion; `Config` for the reasons of [`AgentRuntimeBuilder::build`].
    ///
    /// [`AgentRuntimeBuilder::build`]: super::AgentRuntimeBuilder::build
    ///
    /// ```
    /// use qi_core::agent::{AgentRuntime, AgentSpec, AgentStatus, agent_fn};
    ///
    /// fn reader(name: &str) -> AgentSpec {
    ///     let make = || {
    ///         agent_fn(|cx| async move {
    ///             cx.cancelled().await;
    ///             Ok(())
    ///         })
    ///     };
    ///     AgentSpec::new(name, make)
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> qi_core::Result<()> {
    /// let handle = AgentRuntime::builder().run_when_empty().build()?.start();
    /// handle.spawn(reader("BTC-USD").best_effort())?;
    /// handle.wait_for("BTC-USD", |agent| agent.status == AgentStatus::Running).await?;
    /// let report = handle.remove("BTC-USD").await?;
    /// assert_eq!(report.status, AgentStatus::Stopped);
    /// handle.shutdown();
    /// handle.join().await.result()
    /// # }
    /// ```
    pub fn spawn(&self, spec: AgentSpec) -> Result<()> {
        if let Some((runtime, agent)) = self.set().add(None, spec)? {
            runtime.spawn(AgentTask::new(self.set().clone(), agent).run());
        }
        Ok(())
    }

    /// Stops an agent, waits for its end, and removes it. Its name can then be used again.
    ///
    /// An agent with running dependents is rejected, so remove the dependents first. Once the future has been polled,
    /// dropping it does not cancel the removal. [`RuntimeHandle::removed`] keeps the history of the last 64 removed
    /// agents. If a shutdown begins before the agent has ended, the agent stays in the report.
    ///
    /// # Errors
    /// `Conflict` if agents depend on the agent; `Closed` during a shutdown and after the end of the runtime. `Timeout`
    /// if a shutdown begins meanwhile and the agent has not ended at its deadline.
    pub async fn remove(&self, agent: &str) -> Result<AgentReport> {
        let (state, removal) = self.set().begin_removal(agent)?;
        tokio::select! {
            biased;
            () = removal.cancelled() => {}
            _ = self.set().report.wait() => {}
        }
        let report = state.report(!removal.is_cancelled());
        report.leaked().map_or(Ok(report), Err)
    }

    /// Returns the last 64 removed agents, oldest first.
    pub fn removed(&self) -> Vec<RemovedAgent> {
        let removed = self.set().removed();
        let removed = removed.iter().map(|agent| RemovedAgent {
            report: agent.report(false),
            history: agent.history(),
            errors: agent.errors(),
        });
        removed.collect()
    }

    /// Returns the current state of the agent.
    pub fn snapshot(&self, agent: &str) -> Result<AgentSnapshot> {
        Ok(self.set().find(agent)?.snapshot())
    }

    /// Returns a watch that follows the agent's state.
    pub fn subscribe(&self, agent: &str) -> Result<AgentWatch> {
        Ok(self.set().find(agent)?.subscribe())
    }

    /// Waits until the agent's state satisfies `wanted`. A short-lived state may be missed.
    ///
    /// # Errors
    /// `NotFound` for an unknown name; `Closed` if the agent or the runtime ends first.
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
                next = watch.changed() => next,
                _ = self.set().report.wait() => None,
            };
            let Some(next) = next else {
                let message = format!("agent ended as {} before the awaited state", snapshot.status);
                return Err(agent_error(ErrorKind::Closed, "agent.ended", "wait_for", agent, message));
            };
            snapshot = next;
        }
    }

    /// Returns the last 64 transitions of the agent, oldest first.
    pub fn history(&self, agent: &str) -> Result<Vec<Transition>> {
        Ok(self.set().find(agent)?.history())
    }

    /// Returns the last 16 errors of the agent, oldest first.
    pub fn errors(&self, agent: &str) -> Result<Vec<ErrorRecord>> {
        Ok(self.set().find(agent)?.errors())
    }

    /// Stops this agent permanently. Dependents that have started continue. Dependents that still wait for the agent
    /// end as Stopped with `DependencyFailed`. A repeated call has no effect.
    pub fn stop(&self, agent: &str) -> Result<()> {
        self.set().find(agent)?.request_stop();
        Ok(())
    }

    /// Begins the shutdown. A repeated call has no effect.
    pub fn shutdown(&self) {
        self.set().begin_shutdown(ShutdownCause::Requested);
    }

    /// Begins the shutdown if it has not begun, and moves its soft deadline to now. Every hook except `cleanup` is
    /// dropped, and cleanups have the reserve.
    pub fn shutdown_now(&self) {
        self.shutdown();
        self.set().expire_soft_deadline();
    }

    /// Returns the health of the runtime. Performs no I/O.
    pub fn health(&self) -> RuntimeHealth {
        health::report(self.set())
    }

    /// Sets the gauge of heartbeat ages (`qi_agent_heartbeat_age_seconds`) to the current ages. Call it before each
    /// scrape, because a missing heartbeat produces no event. The age of an agent that is not running is 0.
    pub fn measure_heartbeats(&self) {
        // Removed agents come first, because one of them may have the name of a present agent.
        for agent in self.set().removed().iter().chain(&self.set().agents()) {
            let age = agent.heartbeat_age().unwrap_or_default();
            gauge!(AGENT_HEARTBEAT_AGE.name, "agent" => agent.name.clone()).set(age.as_secs_f64());
        }
    }

    /// Waits for the end of the runtime.
    pub async fn join(&self) -> RuntimeReport {
        self.set().report.wait().await.clone()
    }
}
