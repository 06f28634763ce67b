//! Ready, started, live: answered from memory alone, for probes and dashboards.

use std::sync::atomic::Ordering;

use serde::Serialize;

use super::fleet::{Fleet, Member};
use super::status::{AgentHealth, AgentStatus, ExitReason};
use crate::Timestamp;

/// A runtime that is silent for so many times its watchdog's limit is not alive: the watchdog itself, which
/// bites at once the limit, cannot run.
const DEAD_AFTER_LIMITS: u32 = 3;

/// The health of a runtime. It never asks a backend: an outage of a database must not make a process be killed.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
#[allow(clippy::struct_excessive_bools, reason = "each answers a probe of its own")]
pub struct HealthReport {
    /// Every critical agent is Running and Ok (or finite and completed), and no shutdown is under way.
    pub ready: bool,
    /// Each critical agent has been so once.
    pub started: bool,
    /// No agent with a watchdog has been silent for three times its limit.
    pub live: bool,
    /// A shutdown is under way or over.
    pub shutting_down: bool,
    /// Each agent, in the order in which they were added.
    pub agents: Vec<AgentHealthReport>,
}

/// The health of one agent.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct AgentHealthReport {
    /// Its name.
    pub name: String,
    /// Whether its failure stops the runtime.
    pub critical: bool,
    /// Where it is in its life.
    pub status: AgentStatus,
    /// What it says of itself.
    pub health: AgentHealth,
    /// Whether it is Running and Ok, or finite and completed.
    pub ready: bool,
    /// The number of its present or last incarnation.
    pub incarnation: u32,
    /// How often it was restarted.
    pub restarts: u32,
    /// When its status last changed, in microseconds since the epoch.
    pub since: Timestamp,
    /// The code of the end of its last incarnation: see [`ExitReason::code`].
    pub last_exit: Option<String>,
    /// When the present incarnation last gave a heartbeat.
    pub last_heartbeat: Option<Timestamp>,
}

pub(super) fn report(fleet: &Fleet) -> HealthReport {
    let shutting_down = fleet.is_shutting_down();
    let agents: Vec<AgentHealthReport> = fleet.members.iter().map(agent).collect();
    let critical = || fleet.members.iter().zip(&agents).filter(|(member, _)| member.critical);
    HealthReport {
        ready: !shutting_down && critical().all(|(_, agent)| agent.ready),
        started: critical().all(|(member, _)| member.cell.ready_once.load(Ordering::SeqCst)),
        live: fleet.members.iter().all(|member| {
            member
                .cell
                .silence()
                .is_none_or(|(silent, limit)| silent < limit.saturating_mul(DEAD_AFTER_LIMITS))
        }),
        shutting_down,
        agents,
    }
}

fn agent(member: &Member) -> AgentHealthReport {
    let snapshot = member.cell.snapshot();
    let completed = member.finite
        && snapshot.status == AgentStatus::Stopped
        && matches!(snapshot.last_exit.as_deref(), Some(ExitReason::Completed));
    let running = snapshot.status == AgentStatus::Running && snapshot.health == AgentHealth::Ok;
    AgentHealthReport {
        name: member.cell.name.to_string(),
        critical: member.critical,
        status: snapshot.status,
        health: snapshot.health,
        ready: running || completed,
        incarnation: snapshot.incarnation,
        restarts: snapshot.restarts,
        since: snapshot.since,
        last_exit: snapshot.last_exit.map(|exit| exit.code()),
        last_heartbeat: snapshot.last_heartbeat,
    }
}
