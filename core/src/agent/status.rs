//! What can be seen of an agent: its status, its health, why it ended, and the records of its history.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::restart::GiveUp;
use crate::{Error, ErrorKind, RetryAdvice, Timestamp};

/// Where an agent is in its life. Only the runtime changes it.
///
/// The legal histories are `Created (Initializing Running? Stopping Backoff)*` and then `Stopped`, or
/// `Initializing Running? Stopping` and `Stopped` or `Failed`. From anywhere `Failed` may follow with
/// [`ExitReason::DriverAborted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentStatus {
    /// Not started: it waits for the runtime or for its dependencies.
    Created,
    /// A new value is being made, or its `initialize` is under way.
    Initializing,
    /// `run` is under way.
    Running,
    /// Children are being ended, or `cleanup` is under way.
    Stopping,
    /// It failed and waits for its next incarnation.
    Backoff,
    /// It ended as it should.
    Stopped,
    /// It ended and will not be restarted.
    Failed,
}

impl AgentStatus {
    /// Whether nothing follows any more.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }

    /// The stable lower-case name, as it stands in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Initializing => "initializing",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for AgentStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How well an agent does while it runs. It is no status: the agent writes it, through its context.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentHealth {
    /// Nothing to report.
    #[default]
    Ok,
    /// It works, but not as it should; the sentence is the agent's own. Serde writes the status without it, because
    /// anybody may read a probe.
    Degraded(#[serde(skip_serializing)] String),
    /// Its watchdog has seen no heartbeat for longer than the limit.
    Stale,
}

/// One of the three hooks of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The factory and `initialize`.
    Initialize,
    /// `run`.
    Run,
    /// `cleanup` and the drop of the value.
    Cleanup,
}

impl Phase {
    /// The name of the hook.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Initialize => "initialize",
            Self::Run => "run",
            Self::Cleanup => "cleanup",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why an incarnation, or an agent that was never started, ended.
#[derive(Debug, Clone)]
pub enum ExitReason {
    /// `run` returned Ok without having been asked to stop.
    Completed,
    /// It was asked to stop. An error that it returns after that is recorded and does not replace this.
    Cancelled,
    /// A hook or a child returned an error.
    Error(Error),
    /// The factory, a hook or a child panicked, with this message.
    Panicked(String),
    /// The hook took longer than its limit.
    TimedOut(Phase),
    /// `run` gave no heartbeat for longer than its watchdog allows.
    Stale,
    /// It was never started, because the agent of this name ended without having been ready.
    DependencyFailed(Arc<str>),
    /// Its driving task was dropped: the tokio runtime ended before the agent did.
    DriverAborted,
}

impl ExitReason {
    /// Whether this counts as a crash for `max_crashes`: a panic, a timeout, a missing heartbeat.
    pub const fn is_crash(&self) -> bool {
        matches!(self, Self::Panicked(_) | Self::TimedOut(_) | Self::Stale)
    }

    /// Returns a stable code: `completed`, `cancelled`, or that of the error.
    pub fn code(&self) -> String {
        match self {
            Self::Cancelled => "cancelled".to_owned(),
            other => other.to_error().map_or_else(|| "completed".to_owned(), |error| error.code().to_owned()),
        }
    }

    /// This exit as an error, or None for the exits that are none (completed, cancelled).
    pub fn to_error(&self) -> Option<Error> {
        let new = |kind, code: &'static str, phase: Phase, message: fmt::Arguments<'_>| {
            Some(Error::new(kind, code, phase.as_str()).with_message(message).with_retry(RetryAdvice::Never))
        };
        match self {
            Self::Completed | Self::Cancelled => None,
            Self::Error(error) => Some(error.clone()),
            Self::Panicked(message) => {
                new(ErrorKind::Application, "agent.panicked", Phase::Run, format_args!("panicked: {message}"))
            }
            Self::TimedOut(phase) => {
                new(ErrorKind::Timeout, "agent.timeout", *phase, format_args!("took longer than its limit"))
            }
            Self::Stale => {
                new(ErrorKind::Timeout, "agent.stale", Phase::Run, format_args!("gave no heartbeat"))
            }
            Self::DependencyFailed(name) => new(
                ErrorKind::Unavailable,
                "agent.dependency",
                Phase::Initialize,
                format_args!("{name} ended before it was ready"),
            ),
            Self::DriverAborted => new(
                ErrorKind::Internal,
                "agent.aborted",
                Phase::Run,
                format_args!("the tokio runtime dropped the agent"),
            ),
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Completed => f.write_str("completed"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::Error(error) => write!(f, "error: {error}"),
            Self::Panicked(message) => write!(f, "panicked: {message}"),
            Self::TimedOut(phase) => write!(f, "{phase} timed out"),
            Self::Stale => f.write_str("no heartbeat"),
            Self::DependencyFailed(name) => write!(f, "dependency {name} failed"),
            Self::DriverAborted => f.write_str("driver aborted"),
        }
    }
}

/// What an agent is at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AgentSnapshot {
    /// Where it is in its life.
    pub status: AgentStatus,
    /// What it says of itself while it runs.
    pub health: AgentHealth,
    /// The number of the present or last incarnation: 0 before the first.
    pub incarnation: u32,
    /// How often it was restarted.
    pub restarts: u32,
    /// The number of its last transition: 0 before the first. A jump by more than one shows a watcher that it
    /// skipped some; they stand in the history.
    pub seq: u64,
    /// When the status last changed.
    pub since: Timestamp,
    /// Why the last incarnation ended.
    pub last_exit: Option<Arc<ExitReason>>,
    /// When the present incarnation last called `heartbeat`, to the millisecond.
    pub last_heartbeat: Option<Timestamp>,
}

/// One change of status.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Transition {
    /// Whose.
    pub agent: Arc<str>,
    /// 1, 2, .. without a gap.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// The incarnation that it belongs to: 0 before the first.
    pub incarnation: u32,
    /// The status before.
    pub from: AgentStatus,
    /// The time that the agent spent in the status before, by the monotonic clock.
    pub lasted: Duration,
    /// The status after.
    pub to: AgentStatus,
    /// Why the incarnation ended: with `Stopping` and everything after it.
    pub exit: Option<Arc<ExitReason>>,
    /// The restart that follows: with `Backoff` only.
    pub backoff: Option<BackoffStep>,
    /// Why the restart policy gave up: with `Failed`, unless cleanup or the driver failed.
    pub gave_up: Option<GiveUp>,
}

/// The restart that an agent in `Backoff` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffStep {
    /// The how many-th restart of the present streak of failures.
    pub attempt: u32,
    /// How long it waits, in whole milliseconds.
    pub delay: Duration,
}

/// Something that went wrong in an agent, whether or not it ended the incarnation.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ErrorRecord {
    /// Whose.
    pub agent: Arc<str>,
    /// When.
    pub at: Timestamp,
    /// The incarnation that it belongs to.
    pub incarnation: u32,
    /// The hook that was under way.
    pub phase: Phase,
    /// What went wrong. A panic has the code `agent.panicked`, a timeout `agent.timeout`.
    pub error: Error,
}

/// A hook that did not end when it had to, and was dropped.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ForcedStop {
    /// Whose.
    pub agent: Arc<str>,
    /// When.
    pub at: Timestamp,
    /// The incarnation that it belongs to.
    pub incarnation: u32,
    /// The hook.
    pub phase: Phase,
    /// How long it had been under way.
    pub took: Duration,
}

/// An error of the runtime about an agent, in one line.
pub(super) fn agent_error(
    kind: ErrorKind,
    code: impl Into<Cow<'static, str>>,
    operation: &'static str,
    agent: &str,
    message: impl fmt::Display,
) -> Error {
    Error::new(kind, code, operation)
        .with_message(message)
        .with_context("agent", agent)
        .with_retry(RetryAdvice::Never)
}
