//! The report of a runtime and of its agents.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::status::{AgentStatus, ErrorRecord, ExitReason, Transition, agent_error};
use crate::{Error, ErrorKind, Result, RetryAdvice};

/// The cause of a runtime's end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShutdownCause {
    /// All agents ended without a shutdown.
    AllEnded,
    /// The future of `run_until` was ready, or a handle requested the shutdown.
    Requested,
    /// The process received SIGINT.
    Interrupt,
    /// The process received SIGTERM.
    Terminate,
    /// This critical agent failed.
    AgentFailed(Arc<str>),
    /// The future of `run_until`, or the last handle, was dropped.
    Dropped,
}

impl fmt::Display for ShutdownCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllEnded => f.write_str("all agents ended"),
            Self::Requested => f.write_str("shutdown requested"),
            Self::Interrupt => f.write_str("SIGINT"),
            Self::Terminate => f.write_str("SIGTERM"),
            Self::AgentFailed(name) => write!(f, "agent {name} failed"),
            Self::Dropped => f.write_str("runtime handle dropped"),
        }
    }
}

/// The way in which an agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Termination {
    /// The hooks of the last incarnation ended without being dropped.
    Orderly,
    /// A hook was dropped at the stop timeout or the soft deadline, or `cleanup` timed out.
    Forced,
    /// The agent had not ended when the report was closed.
    Leaked {
        /// True if the agent blocked its thread at that moment. Otherwise the agent is late, or waits for a
        /// thread that another agent blocks.
        blocking: bool,
    },
}

/// The result of one agent.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AgentReport {
    /// The agent's name.
    pub name: Arc<str>,
    /// True if a failure of the agent stops the runtime.
    pub critical: bool,
    /// The status when the report was closed.
    pub status: AgentStatus,
    /// The way in which the agent ended.
    pub termination: Termination,
    /// The number of restarts.
    pub restarts: u32,
    /// The exit of the last incarnation.
    pub last_exit: Option<Arc<ExitReason>>,
    /// The agent's last error.
    pub last_error: Option<ErrorRecord>,
}

impl AgentReport {
    /// Returns an error if the agent had not ended when the report was closed.
    pub(super) fn leaked(&self) -> Option<Error> {
        let message = format_args!("had not ended by the deadline, status {}", self.status);
        matches!(self.termination, Termination::Leaked { .. })
            .then(|| agent_error(ErrorKind::Timeout, "agent.leaked", "shutdown", &self.name, message))
    }

    fn error(&self) -> Option<Error> {
        if !(self.critical && self.status == AgentStatus::Failed) {
            return self.leaked();
        }
        let cause = match self.last_exit.as_deref() {
            Some(ExitReason::Completed | ExitReason::Cancelled) | None => {
                self.last_error.as_ref().map(|record| record.error.clone())
            }
            Some(exit) => exit.to_error(),
        };
        let kind = cause.as_ref().map_or(ErrorKind::Internal, Error::kind);
        let error = agent_error(kind, "agent.failed", "run", &self.name, "a critical agent failed");
        Some(match cause {
            Some(cause) => error.with_source(cause),
            None => error,
        })
    }
}

/// The report and the history of a removed agent.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RemovedAgent {
    /// The result of the agent.
    pub report: AgentReport,
    /// The last 64 transitions, oldest first.
    pub history: Vec<Transition>,
    /// The last 16 errors, oldest first.
    pub errors: Vec<ErrorRecord>,
}

/// The result of a runtime.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RuntimeReport {
    /// The cause of the runtime's end.
    pub cause: ShutdownCause,
    /// The duration of the shutdown, by the monotonic clock. Zero if there was no shutdown.
    pub shutdown_took: Duration,
    /// The results of the agents that were not removed, in the order in which the agents were added.
    pub agents: Vec<AgentReport>,
}

impl RuntimeReport {
    /// Returns the report of the agent with this name.
    pub fn agent(&self, name: &str) -> Option<&AgentReport> {
        self.agents.iter().find(|agent| &*agent.name == name)
    }

    /// Returns the agents that ended as Failed.
    pub fn failed(&self) -> impl Iterator<Item = &AgentReport> {
        self.agents.iter().filter(|agent| agent.status == AgentStatus::Failed)
    }

    /// Returns the agents whose hook was dropped.
    pub fn forced(&self) -> impl Iterator<Item = &AgentReport> {
        self.agents.iter().filter(|agent| agent.termination == Termination::Forced)
    }

    /// Returns the agents that had not ended when the report was closed.
    pub fn leaked(&self) -> impl Iterator<Item = &AgentReport> {
        self.agents.iter().filter(|agent| matches!(agent.termination, Termination::Leaked { .. }))
    }

    /// Returns Ok if no critical agent failed and every agent ended before the deadline.
    ///
    /// # Errors
    /// The first such failure, with its cause as the source. A failure that began the shutdown comes first. The error
    /// is not retryable, because the restart policy has already decided.
    pub fn result(&self) -> Result<()> {
        let first = match &self.cause {
            ShutdownCause::AgentFailed(name) => self.agent(name).and_then(AgentReport::error),
            _ => None,
        };
        match first.or_else(|| self.agents.iter().find_map(AgentReport::error)) {
            Some(error) => Err(error.with_retry(RetryAdvice::Never)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for RuntimeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cause, shutdown_took, agents } = self;
        write!(f, "{cause}; {} agents, shutdown {shutdown_took:?}", agents.len())?;
        let mut list = |what: &str, found: &mut dyn Iterator<Item = &AgentReport>| {
            let names: Vec<&str> = found.map(|agent| &*agent.name).collect();
            if names.is_empty() { Ok(()) } else { write!(f, "; {what}: {}", names.join(", ")) }
        };
        list("failed", &mut self.failed())?;
        list("forced", &mut self.forced())?;
        list("leaked", &mut self.leaked())
    }
}
