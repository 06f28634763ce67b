//! The visible state of an agent: status, health, exit, and the entries of its history.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::{Error, ErrorKind, RetryAdvice, Timestamp};

/// The stage of an agent's lifecycle. Only the runtime changes it.
///
/// A history is `Created (Initializing Running? Stopping Backoff)*`, followed by `Stopped`, or by `Initializing
/// Running? Stopping` and then `Stopped` or `Failed`. If the agent's task is aborted, `Failed` with
/// [`ExitReason::DriverAborted`] follows any status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AgentStatus {
    /// The agent waits for the start of the runtime or for its dependencies.
    Created,
    /// The factory or `initialize` is in progress.
    Initializing,
    /// `run` is in progress.
    Running,
    /// The end of the children or `cleanup` is in progress.
    Stopping,
    /// The agent failed and waits for its next incarnation.
    Backoff,
    /// The agent completed or was stopped.
    Stopped,
    /// The agent failed and does not restart.
    Failed,
}

impl AgentStatus {
    /// Returns whether this status is final.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }
}

/// The health that a running agent reports through its context, independent of its status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AgentHealth {
    /// The agent works normally.
    #[default]
    Ok,
    /// The agent works with a problem. Serde omits the description, because probes may be public.
    Degraded(#[serde(skip_serializing)] String),
    /// The last heartbeat is older than the watchdog limit.
    Stale,
}

/// One of the three phases of an incarnation, each with its hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// The factory and `initialize`.
    Initialize,
    /// `run`.
    Run,
    /// `cleanup`, and the drop of the value.
    Cleanup,
}

/// Defines the stable names of an enum's variants.
macro_rules! names {
    ($type:ident { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $type {
            /// Returns the stable lower-case name, which logs and metrics use.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

names!(AgentStatus {
    Created => "created",
    Initializing => "initializing",
    Running => "running",
    Stopping => "stopping",
    Backoff => "backoff",
    Stopped => "stopped",
    Failed => "failed",
});
names!(Phase { Initialize => "initialize", Run => "run", Cleanup => "cleanup" });

/// The reason for the end of an incarnation, or of an agent that was never started.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ExitReason {
    /// `run` returned Ok before any stop.
    Completed,
    /// The agent was stopped. A later error of the agent is recorded and does not replace this exit.
    Cancelled,
    /// The factory, a hook or a child returned an error.
    Error(Error),
    /// The factory, a hook or a child panicked with this message.
    Panicked(String),
    /// The hook exceeded its limit.
    TimedOut(Phase),
    /// `run` sent no heartbeat within the watchdog limit.
    Stale,
    /// The agent never started, because this dependency ended before it counted as started.
    DependencyFailed(Arc<str>),
    /// The agent's task was dropped, because the tokio runtime ended before the agent.
    DriverAborted,
}

impl ExitReason {
    /// Returns whether this exit counts as a crash for `max_crashes`: a panic, a timeout or a missing heartbeat.
    pub const fn is_crash(&self) -> bool {
        matches!(self, Self::Panicked(_) | Self::TimedOut(_) | Self::Stale)
    }

    /// Returns a stable code: `completed`, `cancelled`, or the code of the error.
    pub fn code(&self) -> String {
        match self {
            Self::Cancelled => "cancelled".to_owned(),
            other => other.to_error().map_or_else(|| "completed".to_owned(), |error| error.code().to_owned()),
        }
    }

    /// Returns the exit as an error, or None for `Completed` and `Cancelled`.
    pub fn to_error(&self) -> Option<Error> {
        let (kind, code, phase, message) = match self {
            Self::Completed | Self::Cancelled => return None,
            Self::Error(error) => return Some(error.clone()),
            Self::Panicked(text) => {
                (ErrorKind::Application, "agent.panicked", Phase::Run, format!("panicked: {text}"))
            }
            Self::TimedOut(phase) => {
                (ErrorKind::Timeout, "agent.timeout", *phase, "exceeded its limit".into())
            }
            Self::Stale => (ErrorKind::Timeout, "agent.stale", Phase::Run, "sent no heartbeat".into()),
            Self::DependencyFailed(name) => {
                let message = format!("dependency {name} ended before it was started");
                (ErrorKind::Unavailable, "agent.dependency", Phase::Initialize, message)
            }
            Self::DriverAborted => {
                let message = "the tokio runtime dropped the agent".into();
                (ErrorKind::Internal, "agent.aborted", Phase::Run, message)
            }
        };
        let error = Error::new(kind, code, phase.as_str()).with_message(message);
        Some(error.with_retry(RetryAdvice::Never))
    }
}

impl Serialize for ExitReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.code())
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

/// The reason why a failed agent does not restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GiveUpReason {
    /// The policy never restarts.
    PolicyNever,
    /// The error is not retryable.
    NotRetryable,
    /// The streak reached this number of crashes.
    TooManyCrashes(u32),
}

/// The state of an agent at one moment.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct AgentSnapshot {
    /// The stage of the lifecycle.
    pub status: AgentStatus,
    /// The health that the agent reports.
    pub health: AgentHealth,
    /// The number of the current or last incarnation, 0 before the first.
    pub incarnation: u32,
    /// The number of restarts.
    pub restarts: u32,
    /// The number of the last transition, 0 before the first. If a watch sees the number jump by more than one, the
    /// history has the skipped transitions.
    pub seq: u64,
    /// The time of the last transition. Serde writes microseconds since the epoch.
    pub since: Timestamp,
    /// The exit of the last incarnation. Serde writes the code of the exit.
    pub last_exit: Option<Arc<ExitReason>>,
    /// The last heartbeat of the current incarnation.
    pub last_heartbeat: Option<Timestamp>,
}

/// A change of status.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Transition {
    /// The agent's name.
    pub agent: Arc<str>,
    /// The number of the transition. Transitions are numbered 1, 2, ... without a gap.
    pub seq: u64,
    /// The time of the transition.
    pub at: Timestamp,
    /// The number of the incarnation, 0 before the first.
    pub incarnation: u32,
    /// The status before the transition.
    pub from: AgentStatus,
    /// The time in the previous status, by the monotonic clock.
    pub lasted: Duration,
    /// The status after the transition.
    pub to: AgentStatus,
    /// The exit of the incarnation. Present from `Stopping` on.
    pub exit: Option<Arc<ExitReason>>,
    /// The next restart. Present only with `Backoff`.
    pub backoff: Option<BackoffStep>,
    /// The decision of the restart policy. Present with `Failed`, unless cleanup or the agent's task failed.
    pub gave_up: Option<GiveUpReason>,
}

/// The restart for which an agent in `Backoff` waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackoffStep {
    /// The restart number within the current failure streak, starting at 1.
    pub attempt: u32,
    /// The delay, in whole milliseconds.
    pub delay: Duration,
}

/// An error in an agent, which may or may not have ended the incarnation.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ErrorRecord {
    /// The agent's name.
    pub agent: Arc<str>,
    /// The time of the error.
    pub at: Timestamp,
    /// The number of the incarnation.
    pub incarnation: u32,
    /// The hook that was in progress.
    pub phase: Phase,
    /// The error. A panic has the code `agent.panicked`, a timeout `agent.timeout`.
    pub error: Error,
}

/// A hook that was dropped because it exceeded its limit after a stop, or in `cleanup`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ForcedStop {
    /// The agent's name.
    pub agent: Arc<str>,
    /// The time of the drop.
    pub at: Timestamp,
    /// The number of the incarnation.
    pub incarnation: u32,
    /// The phase of the dropped hook.
    pub phase: Phase,
    /// The duration of the hook until it was dropped.
    pub took: Duration,
}

/// Creates an error of the runtime about an agent.
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
