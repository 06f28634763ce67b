//! From specs to a runtime: the settings, and the checks that refuse what cannot be meant.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;

use super::cell::{Cell, Env, Limits};
use super::fleet::{Fleet, Member};
use super::observe::{Observer, TracingObserver};
use super::report::RuntimeReport;
use super::runtime::AgentRuntime;
use super::shutdown::{self, DEFAULT_DEADLINE, Deadlines, OnOverrun, default_reserve};
use super::spec::{AgentSpec, Common, Maker, Source};
use super::status::agent_error;
use crate::{Clock, Error, ErrorKind, Result, SystemClock};

/// Collects agents and settings; [`AgentRuntimeBuilder::build`] checks them.
pub struct AgentRuntimeBuilder {
    agents: Vec<(Common, Maker)>,
    observers: Vec<Arc<dyn Observer>>,
    clock: Arc<dyn Clock>,
    seed: Option<u64>,
    deadline: Duration,
    reserve: Option<Duration>,
    on_overrun: Option<OnOverrun>,
}

impl fmt::Debug for AgentRuntimeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentRuntimeBuilder")
            .field("agents", &self.agents.iter().map(|(common, _)| &common.name).collect::<Vec<_>>())
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl AgentRuntimeBuilder {
    pub(super) fn new() -> Self {
        Self {
            agents: Vec::new(),
            observers: Vec::new(),
            clock: Arc::new(SystemClock),
            seed: None,
            deadline: DEFAULT_DEADLINE,
            reserve: None,
            on_overrun: None,
        }
    }

    /// Adds an agent.
    #[must_use]
    pub fn agent<S: Source>(mut self, spec: AgentSpec<S>) -> Self {
        self.agents.push(spec.into_parts());
        self
    }

    /// Adds one who is told of every transition and error. The log ([`TracingObserver`]) is always there.
    #[must_use]
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// Sets the clock that stamps records: the system's.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Sets the seed of the jitter of restarts, which together with an agent's name gives its delays. Without it
    /// each runtime has another one.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Sets how long a shutdown may take in all: 25 s.
    #[must_use]
    pub fn shutdown_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the part of the deadline that is kept for cleanups: 500 ms, or a tenth of a deadline below 5 s.
    #[must_use]
    pub fn cleanup_reserve(mut self, reserve: Duration) -> Self {
        self.reserve = Some(reserve);
        self
    }

    /// Sets what happens if agents are left at the deadline. It is called once, with the report, on a thread of
    /// its own, because agents may block every thread of the runtime; a program logs the report and exits here.
    #[must_use]
    pub fn on_overrun(mut self, call: impl FnOnce(&RuntimeReport) + Send + 'static) -> Self {
        self.on_overrun = Some(Box::new(call));
        self
    }

    /// Checks the agents and their settings.
    ///
    /// # Errors
    /// `Config`, naming the agents: an empty or repeated name, an unknown or circular dependency, a critical
    /// agent after a best-effort one, a restart policy that cannot be meant.
    pub fn build(self) -> Result<AgentRuntime> {
        let Self { agents, mut observers, clock, seed, deadline, reserve, on_overrun } = self;
        let by_name = names(&agents)?;
        let dependencies = dependencies(&agents, &by_name)?;
        let order = order(&agents, &dependencies)?;
        if cfg!(panic = "abort") {
            static ONCE: std::sync::Once = std::sync::Once::new();
            ONCE.call_once(|| {
                tracing::warn!(
                    target: "qi_core::agent",
                    "built with panic = \"abort\": a panic of an agent ends the process, without any cleanup"
                );
            });
        }
        let limits: Vec<Limits> = agents.iter().map(|(common, _)| common.limits).collect();
        let reserve = reserve.unwrap_or_else(|| default_reserve(deadline)).min(deadline);
        let scale = shutdown::scale(&limits, &dependencies, &order, deadline, reserve);
        observers.insert(0, Arc::new(TracingObserver));
        let now = clock.now();
        let env = Arc::new(Env::new(clock, observers));
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        let mut members = Vec::with_capacity(agents.len());
        let mut makers = Vec::with_capacity(agents.len());
        let mut keys: Vec<Arc<str>> = vec!["".into(); agents.len()];
        for (name, index) in &by_name {
            keys[*index] = name.clone();
        }
        for (((common, maker), name), dependencies) in agents.into_iter().zip(keys).zip(dependencies) {
            let Common { name: _, after: _, finite, critical, limits, watchdog, max_children } = common;
            makers.push((maker, Rng::with_seed(seed ^ hash(&name))));
            let limits = (limits, limits.at_most(deadline.saturating_sub(reserve)).scaled(scale));
            let cell = Cell::new(name, env.clone(), limits, watchdog, max_children, now);
            members.push(Member::new(Arc::new(cell), finite, critical, dependencies));
        }
        let deadlines = Deadlines::new(deadline, reserve, on_overrun);
        let fleet = Arc::new(Fleet::new(env, members, by_name, deadlines));
        fleet.deadlines.belong_to(&fleet);
        Ok(AgentRuntime::new(fleet, makers))
    }
}

/// Which names there are; each once.
fn names(agents: &[(Common, Maker)]) -> Result<HashMap<Arc<str>, usize>> {
    let mut by_name = HashMap::with_capacity(agents.len());
    for (index, (common, maker)) in agents.iter().enumerate() {
        let name = common.name.as_str();
        if name.is_empty() {
            return Err(refuse("agent.name", name, format_args!("agent number {} has no name", index + 1)));
        }
        maker.policy().check().map_err(|error| error.with_context("agent", name))?;
        if by_name.insert(Arc::from(name), index).is_some() {
            return Err(refuse("agent.name", name, "two agents have this name"));
        }
    }
    Ok(by_name)
}

/// The dependencies of each agent, by index, each once.
fn dependencies(agents: &[(Common, Maker)], by_name: &HashMap<Arc<str>, usize>) -> Result<Vec<Vec<usize>>> {
    agents
        .iter()
        .map(|(common, _)| {
            let mut seen = HashSet::new();
            let mut found = Vec::with_capacity(common.after.len());
            for dependency in &common.after {
                let Some(&index) = by_name.get(dependency.as_str()) else {
                    let message = format!("depends on {dependency}, which does not exist");
                    return Err(refuse("agent.dependency.unknown", &common.name, message));
                };
                if common.critical && !agents[index].0.critical {
                    let message = format!("is critical and depends on {dependency}, which is best effort");
                    return Err(refuse("agent.dependency.best_effort", &common.name, message));
                }
                if seen.insert(index) {
                    found.push(index);
                }
            }
            Ok(found)
        })
        .collect()
}

/// An order with dependencies before dependents.
fn order(agents: &[(Common, Maker)], dependencies: &[Vec<usize>]) -> Result<Vec<usize>> {
    let mut missing: Vec<usize> = dependencies.iter().map(Vec::len).collect();
    let mut dependents = vec![Vec::new(); agents.len()];
    for (index, own) in dependencies.iter().enumerate() {
        for &dependency in own {
            dependents[dependency].push(index);
        }
    }
    let mut order: Vec<usize> = (0..agents.len()).filter(|index| missing[*index] == 0).collect();
    let mut at = 0;
    while let Some(&index) = order.get(at) {
        at += 1;
        for &dependent in &dependents[index] {
            missing[dependent] -= 1;
            if missing[dependent] == 0 {
                order.push(dependent);
            }
        }
    }
    let Some(start) = missing.iter().position(|left| *left > 0) else { return Ok(order) };
    // Whoever is left over has a dependency that is left over: following those must come back to itself.
    let mut path = vec![start];
    loop {
        let last = path[path.len() - 1];
        let next = dependencies[last].iter().copied().find(|index| missing[*index] > 0).unwrap_or(last);
        if let Some(from) = path.iter().position(|index| *index == next) {
            let mut circle: Vec<&str> =
                path[from..].iter().map(|index| agents[*index].0.name.as_str()).collect();
            circle.push(circle[0]);
            let message = format!("circular dependency: {}", circle.join(" after "));
            return Err(refuse("agent.dependency.circular", circle[0], message));
        }
        path.push(next);
    }
}

fn refuse(code: &'static str, agent: &str, message: impl fmt::Display) -> Error {
    agent_error(ErrorKind::Config, code, "build", agent, message)
}

/// FNV-1a: the same on every machine and in every version.
fn hash(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
