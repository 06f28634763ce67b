//! The agents of one runtime: their dependencies, the order of the shutdown, and the report.
//!
//! No task supervises the others. The task of each agent reports its end to the set. During a shutdown the set then
//! stops every dependency that has no remaining dependents.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use tokio::runtime::Handle;
use tokio::sync::SetOnce;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::catch::{catch, lock};
use super::hard_deadline::HardDeadline;
use super::report::{RuntimeReport, ShutdownCause};
use super::restart::RestartPolicy;
use super::shared::Shared;
use super::spec::{AgentFactory, AgentSpec};
use super::state::AgentState;
use super::status::{AgentStatus, agent_error};
use crate::deadline::later;
use crate::{ErrorKind, Result};

/// The number of removed agents whose history is kept.
const MAX_REMOVED: usize = 64;

/// The callback that the hard deadline calls with the report.
pub(super) type OnDeadlineExceeded = Box<dyn FnOnce(&RuntimeReport) + Send>;

pub(super) struct AgentSet {
    pub(super) shared: Arc<Shared>,
    pub(super) report: SetOnce<RuntimeReport>,
    /// True once every critical agent has been Running once.
    pub(super) started: AtomicBool,
    config: SetConfig,
    on_deadline_exceeded: Mutex<Option<OnDeadlineExceeded>>,
    registry: Mutex<Registry>,
    hard_deadline: HardDeadline,
    /// Cancelled to expire the soft deadline immediately.
    expire_now: CancellationToken,
}

/// The settings of a runtime.
pub(super) struct SetConfig {
    pub(super) deadline: Duration,
    pub(super) reserve: Duration,
    pub(super) seed: u64,
    pub(super) run_when_empty: bool,
}

/// The parts of a new agent that its task owns.
pub(super) struct NewAgent {
    pub(super) id: u64,
    pub(super) state: Arc<AgentState>,
    pub(super) dependencies: Vec<Arc<AgentState>>,
    pub(super) factory: AgentFactory,
    pub(super) restart: RestartPolicy,
    pub(super) rng: Rng,
}

#[derive(Default)]
struct Registry {
    /// The tokio runtime of the agents, present after the start.
    runtime: Option<Handle>,
    shutdown: Option<(ShutdownCause, Instant)>,
    /// True if the report is closed.
    closed: bool,
    /// The agents in the order in which they were added.
    members: BTreeMap<u64, Member>,
    ids: HashMap<Arc<str>, u64>,
    next_id: u64,
    /// The number of agents that have not ended.
    alive: usize,
    /// The longest time that a dependency path needs to stop.
    longest: Duration,
    removed: VecDeque<Arc<AgentState>>,
    /// The agents that start with the runtime.
    unstarted: Vec<NewAgent>,
}

struct Member {
    state: Arc<AgentState>,
    dependencies: Vec<u64>,
    /// The number of dependents that have not ended.
    dependents: usize,
    /// The longest time that this agent and its dependencies need to stop.
    time_to_stop: Duration,
    alive: bool,
    /// Cancelled at the end of the agent's removal.
    removal: Option<CancellationToken>,
}

impl AgentSet {
    pub(super) fn new(
        shared: Arc<Shared>,
        config: SetConfig,
        on_deadline_exceeded: Option<OnDeadlineExceeded>,
        agents: usize,
    ) -> Self {
        let (ids, unstarted) = (HashMap::with_capacity(agents), Vec::with_capacity(agents));
        Self {
            shared,
            report: SetOnce::new(),
            started: AtomicBool::new(false),
            config,
            on_deadline_exceeded: Mutex::new(on_deadline_exceeded),
            registry: Mutex::new(Registry { ids, unstarted, ..Registry::default() }),
            hard_deadline: HardDeadline::default(),
            expire_now: CancellationToken::new(),
        }
    }

    /// Returns the agents in the order in which they were added.
    pub(super) fn agents(&self) -> Vec<Arc<AgentState>> {
        lock(&self.registry).members.values().map(|member| member.state.clone()).collect()
    }

    pub(super) fn find(&self, name: &str) -> Result<Arc<AgentState>> {
        let registry = lock(&self.registry);
        Ok(registry.members[&registry.id(name)?].state.clone())
    }

    /// Returns the removed agents whose history is kept, oldest first.
    pub(super) fn removed(&self) -> Vec<Arc<AgentState>> {
        lock(&self.registry).removed.iter().cloned().collect()
    }

    /// Adds an agent, under the next id unless `id` is set. If the runtime has started, the caller must start the
    /// agent's task.
    pub(super) fn add(&self, id: Option<u64>, spec: AgentSpec) -> Result<Option<(Handle, NewAgent)>> {
        // A rejected agent is dropped after the lock is released, because its drop is foreign code.
        let mut registry = lock(&self.registry);
        let id = id.unwrap_or(registry.next_id);
        let dependencies = registry.check(id, &spec)?;
        let AgentSpec { name, depends_on: _, settings, restart, factory } = spec;
        let (name, limits) = (Arc::<str>::from(name), settings.limits);
        let rng = Rng::with_seed(self.config.seed ^ fnv1a(&name));
        let state = Arc::new(AgentState::new(name.clone(), settings, self.shared.clone()));
        let mut time_to_stop = Duration::ZERO;
        let mut states = Vec::with_capacity(dependencies.len());
        for dependency in &dependencies {
            let Some(member) = registry.members.get_mut(dependency) else { continue };
            member.dependents += 1;
            time_to_stop = time_to_stop.max(member.time_to_stop);
            states.push(member.state.clone());
        }
        let time_to_stop = time_to_stop.saturating_add(self.shared.time_to_stop(limits));
        let agent = NewAgent { id, state: state.clone(), dependencies: states, factory, restart, rng };
        let mut started = None;
        if let Some(runtime) = registry.runtime.clone() {
            started = Some((runtime, agent));
        } else {
            registry.unstarted.push(agent);
        }
        let (dependents, alive, removal) = (0, true, None);
        let member = Member { state, dependencies, dependents, time_to_stop, alive, removal };
        registry.members.insert(id, member);
        registry.ids.insert(name, id);
        registry.next_id = registry.next_id.max(id + 1);
        registry.alive += 1;
        registry.longest = registry.longest.max(time_to_stop);
        drop(registry);
        if started.is_some() {
            self.warn_if_longer_than_available(time_to_stop);
        }
        Ok(started)
    }

    /// Logs a warning if the longest dependency path cannot stop before the soft deadline.
    pub(super) fn check_time_to_stop(&self) {
        let longest = lock(&self.registry).longest;
        self.warn_if_longer_than_available(longest);
    }

    fn warn_if_longer_than_available(&self, needed: Duration) {
        let available = self.shared.available;
        if needed > available {
            tracing::warn!(
                target: "qi_core::agent",
                ?needed, ?available,
                "stop and cleanup limits of the longest dependency path exceed the soft deadline; limits are scaled down"
            );
        }
    }

    /// Stops an agent, and removes it when it has ended. Returns a token that is cancelled when the agent is removed.
    pub(super) fn begin_removal(&self, name: &str) -> Result<(Arc<AgentState>, CancellationToken)> {
        let mut registry = lock(&self.registry);
        let id = registry.id(name)?;
        registry.check_open("remove", name)?;
        if registry.members[&id].dependents > 0 {
            let members = registry.members.values();
            let dependents = members.filter(|member| member.dependencies.contains(&id));
            let names: Vec<&str> = dependents.map(|member| &*member.state.name).collect();
            let message = format!("agents depend on it: {}", names.join(", "));
            return Err(agent_error(ErrorKind::Conflict, "agent.dependents", "remove", name, message));
        }
        let has_task = registry.runtime.is_some();
        let Some(member) = registry.members.get_mut(&id) else { return Err(unknown(name)) };
        let state = member.state.clone();
        let removal = member.removal.get_or_insert_default().clone();
        if has_task && member.alive {
            drop(registry);
            state.request_stop();
            return Ok((state, removal));
        }
        if member.alive {
            registry.record_end(id);
        }
        let unstarted = registry.unstarted.extract_if(.., |agent| agent.id == id).next();
        let forgotten = registry.forget(id);
        drop(registry);
        let _panic = catch(|| drop((forgotten, unstarted)));
        removal.cancel();
        Ok((state, removal))
    }

    /// Records the end of an agent. The agent's task calls this once.
    pub(super) fn ended(self: &Arc<Self>, id: u64, state: &AgentState, status: AgentStatus) {
        // The shutdown begins before the agent is counted, so a report that closes now has this cause.
        if state.settings.critical && status == AgentStatus::Failed {
            self.begin_shutdown(ShutdownCause::AgentFailed(state.name.clone()));
        }
        let mut registry = lock(&self.registry);
        let (to_stop, removal) = registry.record_end(id);
        // A shutdown removes no agent, so the report names every agent.
        let forget = removal.is_some() && registry.shutdown.is_none();
        let forgotten = forget.then(|| registry.forget(id));
        let report = registry.close_if_idle(self.config.run_when_empty);
        drop(registry);
        drop(forgotten);
        for agent in to_stop {
            agent.request_stop();
        }
        if let Some(removal) = removal {
            removal.cancel();
        }
        self.publish(report);
    }

    /// Starts the runtime and returns the agents whose tasks the caller must start.
    pub(super) fn start(self: &Arc<Self>, runtime: Handle) -> Vec<NewAgent> {
        let mut registry = lock(&self.registry);
        registry.runtime = Some(runtime);
        let agents = std::mem::take(&mut registry.unstarted);
        // The deadline of a shutdown that was requested before the start counts from the start.
        self.arm_deadlines(&registry);
        let report = registry.close_if_idle(self.config.run_when_empty);
        drop(registry);
        self.publish(report);
        agents
    }

    /// Ends a runtime that is dropped before its start.
    pub(super) fn end_before_start(self: &Arc<Self>) {
        if lock(&self.registry).runtime.is_some() {
            return;
        }
        self.begin_shutdown(ShutdownCause::Dropped);
        let (report, unstarted) = {
            let mut registry = lock(&self.registry);
            (registry.close(), std::mem::take(&mut registry.unstarted))
        };
        let _panic = catch(|| drop(unstarted));
        self.publish(report);
    }

    /// Begins the shutdown. Stops the agents without dependents; their dependencies follow. Only the
    /// first call has an effect.
    pub(super) fn begin_shutdown(self: &Arc<Self>, cause: ShutdownCause) {
        let mut registry = lock(&self.registry);
        if registry.closed || registry.shutdown.is_some() {
            return;
        }
        let text = cause.to_string();
        registry.shutdown = Some((cause, Instant::now()));
        self.shared.begin_shutdown(registry.longest);
        let leaves = registry.members.values().filter(|member| member.dependents == 0);
        let to_stop: Vec<_> = leaves.map(|member| member.state.clone()).collect();
        self.arm_deadlines(&registry);
        let report = registry.close_if_idle(self.config.run_when_empty);
        drop(registry);
        tracing::info!(target: "qi_core::agent", cause = text, "shutdown begins");
        for agent in to_stop {
            agent.request_stop();
        }
        self.publish(report);
    }

    /// Moves the soft deadline to now, and the hard deadline to the end of the cleanup reserve.
    pub(super) fn expire_soft_deadline(&self) {
        self.hard_deadline.bring_forward(self.config.reserve);
        self.expire_now.cancel();
    }

    /// Starts the deadlines if the runtime has started and is shutting down.
    fn arm_deadlines(self: &Arc<Self>, registry: &Registry) {
        let (Some(runtime), Some(_)) = (&registry.runtime, &registry.shutdown) else { return };
        let set = self.clone();
        self.hard_deadline.arm(self.config.deadline, move || set.expire_hard_deadline());
        runtime.spawn(run_soft_deadline(self.clone()));
    }

    fn expire_hard_deadline(&self) {
        let Some(report) = lock(&self.registry).close() else { return };
        self.publish(Some(report.clone()));
        tracing::error!(target: "qi_core::agent", %report, "shutdown exceeded its hard deadline");
        if let Some(call) = lock(&self.on_deadline_exceeded).take()
            && let Err(panic) = catch(|| call(&report))
        {
            tracing::error!(target: "qi_core::agent", panic, "on_deadline_exceeded panicked");
        }
    }

    fn publish(&self, report: Option<RuntimeReport>) {
        let Some(report) = report else { return };
        self.hard_deadline.disarm();
        self.shared.notify(|observer| observer.on_end(&report));
        let _first = self.report.set(report);
    }
}

impl Registry {
    fn id(&self, name: &str) -> Result<u64> {
        self.ids.get(name).copied().ok_or_else(|| unknown(name))
    }

    fn check_open(&self, operation: &'static str, name: &str) -> Result<()> {
        if !self.closed && self.shutdown.is_none() {
            return Ok(());
        }
        let message = if self.closed { "the runtime has ended" } else { "the runtime is shutting down" };
        Err(agent_error(ErrorKind::Closed, "agent.runtime.closed", operation, name, message))
    }

    /// Checks a spec and returns the ids of its dependencies without duplicates.
    fn check(&self, id: u64, spec: &AgentSpec) -> Result<Vec<u64>> {
        let name = &spec.name;
        let reject = |kind, code, message: String| Err(agent_error(kind, code, "add", name, message));
        self.check_open("add", name)?;
        if name.is_empty() {
            let message = format!("agent number {} has no name", id + 1);
            return reject(ErrorKind::Config, "agent.name", message);
        }
        spec.check().map_err(|error| error.with_context("agent", name))?;
        if self.ids.contains_key(name.as_str()) {
            let message = "two agents cannot have the same name".to_owned();
            return reject(ErrorKind::Config, "agent.name", message);
        }
        let mut dependencies = Vec::with_capacity(spec.depends_on.len());
        for dependency in &spec.depends_on {
            let Some(&id) = self.ids.get(dependency.as_str()) else {
                let message = format!("depends on {dependency}, which does not exist");
                return reject(ErrorKind::Config, "agent.dependency.unknown", message);
            };
            let Member { state, alive, .. } = &self.members[&id];
            if spec.settings.critical && !state.settings.critical {
                let message = format!("is critical and depends on {dependency}, which is best effort");
                return reject(ErrorKind::Config, "agent.dependency.best_effort", message);
            }
            let completed = state.settings.run_to_completion && state.started.get() == Some(&true);
            if !(completed || *alive && !state.must_stop()) {
                let message = format!("depends on {dependency}, which has ended or is stopping");
                return reject(ErrorKind::Conflict, "agent.dependency.ended", message);
            }
            if !dependencies.contains(&id) {
                dependencies.push(id);
            }
        }
        Ok(dependencies)
    }

    /// Records the end of an agent. Returns the dependencies that must stop now, and the token of the agent's removal.
    fn record_end(&mut self, id: u64) -> (Vec<Arc<AgentState>>, Option<CancellationToken>) {
        let Some(member) = self.members.get_mut(&id) else { return (Vec::new(), None) };
        member.alive = false;
        self.alive -= 1;
        let (dependencies, shutdown) = (std::mem::take(&mut member.dependencies), self.shutdown.is_some());
        let removal = member.removal.clone();
        let mut to_stop = Vec::new();
        for dependency in dependencies {
            let Some(member) = self.members.get_mut(&dependency) else { continue };
            member.dependents -= 1;
            if shutdown && member.dependents == 0 {
                to_stop.push(member.state.clone());
            }
        }
        (to_stop, removal)
    }

    /// Removes an agent and keeps its history. Returns the oldest removed agent if that agent
    /// is dropped from the history.
    fn forget(&mut self, id: u64) -> Option<Arc<AgentState>> {
        let Member { state, time_to_stop, .. } = self.members.remove(&id)?;
        if time_to_stop == self.longest {
            self.longest = self.members.values().map(|member| member.time_to_stop).max().unwrap_or_default();
        }
        self.ids.remove(&state.name);
        let oldest = if self.removed.len() == MAX_REMOVED { self.removed.pop_front() } else { None };
        self.removed.push_back(state);
        oldest
    }

    /// Closes the report if all agents have ended and the runtime may end.
    fn close_if_idle(&mut self, run_when_empty: bool) -> Option<RuntimeReport> {
        let may_end = !run_when_empty || self.shutdown.is_some();
        let idle = self.runtime.is_some() && self.alive == 0 && may_end;
        if idle { self.close() } else { None }
    }

    /// Creates the report, once. The caller must publish it.
    fn close(&mut self) -> Option<RuntimeReport> {
        if std::mem::replace(&mut self.closed, true) {
            return None;
        }
        let (cause, shutdown_took) = match &self.shutdown {
            Some((cause, began)) => (cause.clone(), began.elapsed()),
            None => (ShutdownCause::AllEnded, Duration::ZERO),
        };
        let started = self.runtime.is_some();
        let agents = self.members.values().map(|member| member.state.report(started)).collect();
        Some(RuntimeReport { cause, shutdown_took, agents })
    }
}

/// A guard that begins the shutdown of a runtime when it is dropped.
pub(super) struct ShutdownOnDrop(pub(super) Arc<AgentSet>);

impl Drop for ShutdownOnDrop {
    fn drop(&mut self) {
        self.0.begin_shutdown(ShutdownCause::Dropped);
    }
}

async fn run_soft_deadline(set: Arc<AgentSet>) {
    tokio::select! {
        biased;
        _ = set.report.wait() => return,
        () = set.expire_now.cancelled() => {}
        () = sleep_until(later(set.shared.available)) => {}
    }
    // The last fifth of the reserve belongs to the runtime, so that the last cleanup is recorded before the hard
    // deadline.
    let _once = set.shared.cleanup_by.set(later(set.config.reserve / 5 * 4));
    tracing::warn!(target: "qi_core::agent", "shutdown exceeded its soft deadline; the remaining hooks are dropped");
    set.shared.soft_deadline.cancel();
    for agent in set.agents() {
        agent.request_stop();
    }
}

fn unknown(name: &str) -> crate::Error {
    agent_error(ErrorKind::NotFound, "agent.unknown", "find", name, "the runtime has no agent of this name")
}

/// Returns the FNV-1a hash, which is the same on every machine and in every version.
fn fnv1a(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
