//! The health of a runtime, for probes and dashboards.

use std::sync::atomic::Ordering;

use serde::Serialize;

use super::set::AgentSet;
use super::state::AgentState;
use super::status::{AgentHealth, AgentSnapshot, AgentStatus, ExitReason};

/// The number of watchdog limits after which a silent agent makes the runtime not live. The watchdog acts after one
/// limit, so an age of three limits means that the watchdog itself cannot run.
const DEAD_AFTER_LIMITS: u32 = 3;

/// The health of a runtime. It never depends on a backend, because an outage of a database
/// must not restart the process.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
#[allow(clippy::struct_excessive_bools, reason = "each answers a separate probe")]
pub struct RuntimeHealth {
    /// True if every critical agent is ready and no shutdown has begun.
    pub ready: bool,
    /// True if each critical agent has been Running once. Agents that are added later do not reset it.
    pub started: bool,
    /// True if no agent with a watchdog has been silent for three times its limit.
    pub live: bool,
    /// True if a shutdown has begun.
    pub shutting_down: bool,
    /// The health of each agent, in the order in which the agents were added.
    pub agents: Vec<AgentHealthReport>,
}

/// The health of one agent.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct AgentHealthReport {
    /// The agent's name.
    pub name: String,
    /// True if a failure of the agent stops the runtime.
    pub critical: bool,
    /// True if the agent is Running and Ok, or has run to completion.
    pub ready: bool,
    /// The state of the agent. Serde flattens its fields into this struct.
    #[serde(flatten)]
    pub snapshot: AgentSnapshot,
}

pub(super) fn report(set: &AgentSet) -> RuntimeHealth {
    let (states, shutting_down) = (set.agents(), set.shared.is_shutting_down());
    let agents: Vec<AgentHealthReport> = states.iter().map(|state| agent(state)).collect();
    let has_run = |state: &AgentState| !state.settings.critical || state.has_run();
    let is_live = |state: &AgentState| {
        let heartbeat_age = state.settings.watchdog.zip(state.heartbeat_age());
        heartbeat_age
            .is_none_or(|(limit, heartbeat_age)| heartbeat_age < limit.saturating_mul(DEAD_AFTER_LIMITS))
    };
    if states.iter().all(|state| has_run(state)) {
        set.started.store(true, Ordering::Relaxed);
    }
    RuntimeHealth {
        ready: !shutting_down && agents.iter().all(|agent| agent.ready || !agent.critical),
        started: set.started.load(Ordering::Relaxed),
        live: states.iter().all(|state| is_live(state)),
        shutting_down,
        agents,
    }
}

fn agent(state: &AgentState) -> AgentHealthReport {
    let snapshot = state.snapshot();
    let ready = match snapshot.status {
        AgentStatus::Running => snapshot.health == AgentHealth::Ok,
        AgentStatus::Stopped => {
            state.settings.run_to_completion
                && matches!(snapshot.last_exit.as_deref(), Some(ExitReason::Completed))
        }
        _ => false,
    };
    let (name, critical) = (state.name.to_string(), state.settings.critical);
    AgentHealthReport { name, critical, ready, snapshot }
}
