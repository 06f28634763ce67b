//! How a runtime ended, and what became of each agent.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::status::{AgentStatus, ErrorRecord, ExitReason, agent_error};
use crate::{Error, ErrorKind, Result, RetryAdvice};

/// What ended a runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndedBy {
    /// All agents ended by themselves.
    AllEnded,
    /// The future of `run_until` was ready, or a handle asked for the shutdown.
    Requested,
    /// The process was asked to end by SIGINT.
    Interrupt,
    /// The process was asked to end by SIGTERM.
    Terminate,
    /// This critical agent failed.
    AgentFailed(Arc<str>),
    /// The future of `run_until`, or the last handle, was dropped.
    Dropped,
}

impl fmt::Display for EndedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllEnded => f.write_str("all agents ended"),
            Self::Requested => f.write_str("shutdown requested"),
            Self::Interrupt => f.write_str("SIGINT"),
            Self::Terminate => f.write_str("SIGTERM"),
            Self::AgentFailed(name) => write!(f, "agent {name} failed"),
            Self::Dropped => f.write_str("nobody waits for it any more"),
        }
    }
}

/// In what manner an agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its hooks ended by themselves.
    Orderly,
    /// A hook had to be dropped at the stop timeout or the soft deadline, or `cleanup` ran out of time.
    Forced,
    /// It had not ended when the report was closed.
    Leaked {
        /// Its hook was being polled at that moment: it blocks its thread. Otherwise it is late, or waits behind
        /// a thread that another one blocks.
        blocking: bool,
    },
}

/// What became of one agent.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AgentReport {
    /// Its name.
    pub name: Arc<str>,
    /// Whether its failure stops the runtime.
    pub critical: bool,
    /// Its status when the report was closed.
    pub status: AgentStatus,
    /// In what manner it ended.
    pub ending: Ending,
    /// How often it was restarted.
    pub restarts: u32,
    /// Why its last incarnation ended.
    pub last_exit: Option<Arc<ExitReason>>,
    /// The last thing that went wrong in it.
    pub last_error: Option<ErrorRecord>,
}

impl AgentReport {
    fn error(&self) -> Option<Error> {
        if matches!(self.ending, Ending::Leaked { .. }) {
            return Some(agent_error(
                ErrorKind::Timeout,
                "agent.leaked",
                "shutdown",
                &self.name,
                format_args!("had not ended by the deadline, status {}", self.status),
            ));
        }
        if !(self.critical && self.status == AgentStatus::Failed) {
            return None;
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

/// How a runtime ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RuntimeReport {
    /// What ended it.
    pub ended_by: EndedBy,
    /// The duration of the shutdown, by the monotonic clock; zero if there was none.
    pub shutdown_took: Duration,
    /// What became of each agent, in the order in which they were added.
    pub agents: Vec<AgentReport>,
}

impl RuntimeReport {
    /// The agent of this name.
    pub fn agent(&self, name: &str) -> Option<&AgentReport> {
        self.agents.iter().find(|agent| &*agent.name == name)
    }

    /// The agents that ended Failed.
    pub fn failed(&self) -> impl Iterator<Item = &AgentReport> {
        self.agents.iter().filter(|agent| agent.status == AgentStatus::Failed)
    }

    /// The agents that did not end by themselves in time.
    pub fn forced(&self) -> impl Iterator<Item = &AgentReport> {
        self.agents.iter().filter(|agent| agent.ending == Ending::Forced)
    }

    /// The agents that had not ended when the report was closed.
    pub fn leaked(&self) -> impl Iterator<Item = &AgentReport> {
        self.agents.iter().filter(|agent| matches!(agent.ending, Ending::Leaked { .. }))
    }

    /// Ok if no critical agent failed and every agent had ended by the deadline.
    ///
    /// # Errors
    /// The first of those failures (the agent that stopped the runtime comes first), with what caused it as the
    /// source. Its advice is never to retry: the restart policy has spoken.
    pub fn result(&self) -> Result<()> {
        let first = match &self.ended_by {
            EndedBy::AgentFailed(name) => self.agent(name).and_then(AgentReport::error),
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
        let Self { ended_by, shutdown_took, agents } = self;
        write!(f, "{ended_by}; {} agents, shutdown {shutdown_took:?}", agents.len())?;
        let mut list = |what: &str, found: &mut dyn Iterator<Item = &AgentReport>| {
            let names: Vec<&str> = found.map(|agent| &*agent.name).collect();
            if names.is_empty() { Ok(()) } else { write!(f, "; {what}: {}", names.join(", ")) }
        };
        list("failed", &mut self.failed())?;
        list("forced", &mut self.forced())?;
        list("leaked", &mut self.leaked())
    }
}
