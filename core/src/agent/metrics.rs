//! The metrics of agents.

use std::sync::Arc;

use metrics::{counter, gauge, histogram};

use super::observe::Observer;
use super::report::RuntimeReport;
use super::status::{AgentStatus, ErrorRecord, ForcedStop, Phase, Transition};
use crate::telemetry::{
    AGENT_BACKOFF, AGENT_ERRORS, AGENT_FORCED, AGENT_PANICS, AGENT_PHASE, AGENT_RESTARTS, AGENT_TRANSITIONS,
    AGENT_UP, RUNTIME_LEAKED, RUNTIME_SHUTDOWN,
};

/// An observer that records counts and durations of agent events through the `metrics` facade. [`crate::telemetry`]
/// lists the names. Durations follow the monotonic clock.
///
/// ```
/// use qi_core::agent::{AgentRuntime, AgentSpec, MetricsObserver, agent_fn};
///
/// # fn build() -> qi_core::Result<AgentRuntime> {
/// AgentRuntime::builder()
///     .agent(AgentSpec::new("feed", || agent_fn(|_cx| async { Ok(()) })))
///     .observer(MetricsObserver::default())
///     .build()
/// # }
/// ```
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct MetricsObserver {}

impl Observer for MetricsObserver {
    fn on_transition(&self, transition: &Transition) {
        let Transition { agent, seq, at: _, incarnation, from, lasted, to, exit: _, backoff, gave_up: _ } =
            transition;
        if *seq == 1 {
            begin_at_zero(agent);
        }
        counter!(AGENT_TRANSITIONS.name, "agent" => agent.clone(), "status" => to.as_str()).increment(1);
        let phase = match from {
            AgentStatus::Initializing => Some(Phase::Initialize),
            AgentStatus::Running => Some(Phase::Run),
            AgentStatus::Stopping => Some(Phase::Cleanup),
            AgentStatus::Created | AgentStatus::Backoff | AgentStatus::Stopped | AgentStatus::Failed => None,
        };
        if let Some(phase) = phase {
            histogram!(AGENT_PHASE.name, "agent" => agent.clone(), "phase" => phase.as_str()).record(*lasted);
        }
        if *to == AgentStatus::Initializing && *incarnation > 1 {
            counter!(AGENT_RESTARTS.name, "agent" => agent.clone()).increment(1);
        }
        if let Some(step) = backoff {
            histogram!(AGENT_BACKOFF.name, "agent" => agent.clone()).record(step.delay);
        }
        let up = if *to == AgentStatus::Running { 1.0 } else { 0.0 };
        gauge!(AGENT_UP.name, "agent" => agent.clone()).set(up);
    }

    fn on_error(&self, record: &ErrorRecord) {
        let ErrorRecord { agent, at: _, incarnation: _, phase, error } = record;
        let (phase, kind) = (phase.as_str(), error.kind().as_str());
        counter!(AGENT_ERRORS.name, "agent" => agent.clone(), "phase" => phase, "kind" => kind).increment(1);
        if error.code() == "agent.panicked" {
            counter!(AGENT_PANICS.name, "agent" => agent.clone(), "phase" => phase).increment(1);
        }
    }

    fn on_forced_stop(&self, forced: &ForcedStop) {
        let ForcedStop { agent, at: _, incarnation: _, phase, took: _ } = forced;
        counter!(AGENT_FORCED.name, "agent" => agent.clone(), "phase" => phase.as_str()).increment(1);
    }

    fn on_end(&self, report: &RuntimeReport) {
        histogram!(RUNTIME_SHUTDOWN.name).record(report.shutdown_took);
        counter!(RUNTIME_LEAKED.name).increment(report.leaked().count() as u64);
    }
}

/// Creates the counters of an agent at 0. Prometheus computes no increase for a series whose first value is 1, so an
/// alert would miss the first panic.
fn begin_at_zero(agent: &Arc<str>) {
    for status in [
        AgentStatus::Initializing,
        AgentStatus::Running,
        AgentStatus::Stopping,
        AgentStatus::Backoff,
        AgentStatus::Stopped,
        AgentStatus::Failed,
    ] {
        counter!(AGENT_TRANSITIONS.name, "agent" => agent.clone(), "status" => status.as_str()).increment(0);
    }
    counter!(AGENT_RESTARTS.name, "agent" => agent.clone()).increment(0);
    for phase in [Phase::Initialize, Phase::Run, Phase::Cleanup] {
        for metric in [AGENT_PANICS, AGENT_FORCED] {
            counter!(metric.name, "agent" => agent.clone(), "phase" => phase.as_str()).increment(0);
        }
    }
}
