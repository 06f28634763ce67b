//! The builder of a runtime: its settings, and the start order of its agents.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::observe::{Observer, TracingObserver};
use super::report::RuntimeReport;
use super::runtime::AgentRuntime;
use super::set::{AgentSet, OnDeadlineExceeded, SetConfig};
use super::shared::Shared;
use super::spec::AgentSpec;
use super::status::agent_error;
use crate::{Clock, ErrorKind, Result, SystemClock};

/// The upper limit of the default cleanup reserve.
const MAX_DEFAULT_RESERVE: Duration = Duration::from_millis(500);

/// A builder that collects agents and settings. [`AgentRuntimeBuilder::build`] checks them.
pub struct AgentRuntimeBuilder {
    agents: Vec<AgentSpec>,
    observers: Vec<Arc<dyn Observer>>,
    clock: Arc<dyn Clock>,
    config: SetConfig,
    reserve: Option<Duration>,
    on_deadline_exceeded: Option<OnDeadlineExceeded>,
}

impl fmt::Debug for AgentRuntimeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentRuntimeBuilder")
            .field("agents", &self.agents)
            .field("deadline", &self.config.deadline)
            .finish_non_exhaustive()
    }
}

impl AgentRuntime {
    /// Returns a builder without agents and with the default settings.
    pub fn builder() -> AgentRuntimeBuilder {
        AgentRuntimeBuilder {
            agents: Vec::new(),
            observers: vec![Arc::new(TracingObserver)],
            clock: Arc::new(SystemClock),
            config: SetConfig {
                // Kubernetes kills a pod 30 s after SIGTERM by default.
                deadline: Duration::from_secs(25),
                reserve: Duration::ZERO,
                seed: fastrand::u64(..),
                run_when_empty: false,
            },
            reserve: None,
            on_deadline_exceeded: None,
        }
    }
}

impl AgentRuntimeBuilder {
    /// Adds an agent to the runtime.
    #[must_use]
    pub fn agent(mut self, spec: AgentSpec) -> Self {
        self.agents.push(spec);
        self
    }

    /// Adds several agents to the runtime.
    #[must_use]
    pub fn agents(mut self, specs: impl IntoIterator<Item = AgentSpec>) -> Self {
        self.agents.extend(specs);
        self
    }

    /// Adds an observer of every transition and error. [`TracingObserver`] is always present.
    #[must_use]
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// Sets the clock for the timestamps of records. Defaults to the system clock.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Sets the seed of the restart jitter. The seed and an agent's name determine the agent's delays. Defaults to a
    /// random seed for each runtime.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.config.seed = seed;
        self
    }

    /// Sets the longest duration of a shutdown. Defaults to 25 s.
    #[must_use]
    pub fn shutdown_deadline(mut self, deadline: Duration) -> Self {
        self.config.deadline = deadline;
        self
    }

    /// Sets the part of the deadline that is reserved for cleanups. Defaults to a tenth of the
    /// deadline, at most 500 ms.
    #[must_use]
    pub fn cleanup_reserve(mut self, reserve: Duration) -> Self {
        self.reserve = Some(reserve);
        self
    }

    /// Keeps the runtime running while all its agents have ended or it has none. Such a runtime ends only by a
    /// shutdown. Use it if all agents are added by [`RuntimeHandle::spawn`](super::RuntimeHandle::spawn). By default a
    /// runtime ends with its last agent.
    #[must_use]
    pub fn run_when_empty(mut self) -> Self {
        self.config.run_when_empty = true;
        self
    }

    /// Sets the callback for agents that have not ended at the deadline. The callback runs once, with the report, on a
    /// separate thread, because agents may block every thread of the tokio runtime. A program typically logs the report
    /// here and exits the process.
    #[must_use]
    pub fn on_deadline_exceeded(mut self, call: impl FnOnce(&RuntimeReport) + Send + 'static) -> Self {
        self.on_deadline_exceeded = Some(Box::new(call));
        self
    }

    /// Checks the agents and their settings, and creates the runtime.
    ///
    /// # Errors
    /// `Config`, with the agent's name. Reasons are an empty or repeated name, an unknown or circular dependency, a
    /// critical agent that depends on a best-effort agent, or an invalid restart policy.
    pub fn build(self) -> Result<AgentRuntime> {
        if cfg!(panic = "abort") {
            static ONCE: std::sync::Once = std::sync::Once::new();
            ONCE.call_once(|| {
                tracing::warn!(
                    target: "qi_core::agent",
                    "built with panic = \"abort\": a panic of an agent ends the process without any cleanup"
                );
            });
        }
        let Self { agents, observers, clock, mut config, reserve, on_deadline_exceeded } = self;
        let deadline = config.deadline;
        config.reserve = reserve.unwrap_or(MAX_DEFAULT_RESERVE.min(deadline / 10)).min(deadline);
        let shared = Shared::new(clock, observers, deadline.saturating_sub(config.reserve));
        let set = AgentSet::new(Arc::new(shared), config, on_deadline_exceeded, agents.len());
        let order = start_order(&agents)?;
        let mut agents: Vec<Option<AgentSpec>> = agents.into_iter().map(Some).collect();
        for index in order {
            if let Some(spec) = agents[index].take() {
                set.add(Some(index as u64), spec)?;
            }
        }
        set.check_time_to_stop();
        Ok(AgentRuntime::new(Arc::new(set)))
    }
}

/// Returns an order with dependencies before dependents. The check of each agent reports unknown dependencies.
fn start_order(agents: &[AgentSpec]) -> Result<Vec<usize>> {
    if agents.iter().all(|spec| spec.depends_on.is_empty()) {
        return Ok((0..agents.len()).collect());
    }
    let by_name: HashMap<&str, usize> =
        agents.iter().enumerate().map(|(index, spec)| (spec.name.as_str(), index)).collect();
    let dependencies: Vec<Vec<usize>> = agents
        .iter()
        .map(|spec| spec.depends_on.iter().filter_map(|name| by_name.get(name.as_str()).copied()).collect())
        .collect();
    let mut missing: Vec<usize> = dependencies.iter().map(Vec::len).collect();
    let mut dependents = vec![Vec::new(); agents.len()];
    for (index, own) in dependencies.iter().enumerate() {
        for &dependency in own {
            dependents[dependency].push(index);
        }
    }
    let mut order: Vec<usize> = (0..agents.len()).filter(|&index| missing[index] == 0).collect();
    let mut next = 0;
    while let Some(&index) = order.get(next) {
        next += 1;
        for &dependent in &dependents[index] {
            missing[dependent] -= 1;
            if missing[dependent] == 0 {
                order.push(dependent);
            }
        }
    }
    let Some(start) = missing.iter().position(|&left| left > 0) else { return Ok(order) };
    // Each remaining agent has a remaining dependency, so following the dependencies leads to a cycle.
    let mut path = vec![start];
    loop {
        let last = path[path.len() - 1];
        let next = dependencies[last].iter().copied().find(|&index| missing[index] > 0).unwrap_or(last);
        if let Some(from) = path.iter().position(|&index| index == next) {
            let cycle = path[from..].iter().chain([&next]).map(|&index| agents[index].name.as_str());
            let message = format!("circular dependency: {}", cycle.collect::<Vec<_>>().join(" depends on "));
            let code = "agent.dependency.circular";
            return Err(agent_error(ErrorKind::Config, code, "build", &agents[next].name, message));
        }
        path.push(next);
    }
}
