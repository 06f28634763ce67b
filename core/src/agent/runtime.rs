//! The runtime: built from specs, run until something ends it, watched and steered through handles.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;

use super::cell::{AgentWatch, Asked, Cell, Env, Limits};
use super::driver::{Driver, drive};
use super::fleet::{Fleet, Member};
use super::health::{self, HealthReport};
use super::observe::{Observer, TracingObserver};
use super::report::{EndedBy, RuntimeReport};
use super::shutdown::{self, DEFAULT_DEADLINE, Deadlines, OnOverrun, default_reserve, keep_soft_deadline};
use super::spec::{AgentSpec, Common, Maker, Source};
use super::status::{AgentSnapshot, ErrorRecord, Transition, agent_error};
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
            tracing::warn!(
                target: "qi_core::agent",
                "built with panic = \"abort\": a panic of an agent ends the process, without any cleanup"
            );
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
        let handle = RuntimeHandle(Arc::new(LastHandle(fleet)));
        Ok(AgentRuntime { handle, makers })
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

/// Runs agents: starts them in the order of their dependencies, restarts those that fail, stops all of them in
/// reverse order by a deadline.
///
/// ```
/// use std::time::Duration;
/// use qi_core::agent::{AgentRuntime, AgentSpec, AgentStatus, EndedBy, agent_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> qi_core::Result<()> {
/// let runtime = AgentRuntime::builder()
///     .agent(AgentSpec::new("writer", || {
///         agent_fn(|cx| async move {
///             cx.cancelled().await;
///             Ok(())
///         })
///     }))
///     .agent(AgentSpec::new("feed", || agent_fn(|_cx| async { Ok(()) })).after(["writer"]).finite())
///     .build()?;
/// let handle = runtime.handle();
/// let feed_is_done = async move { handle.wait_for("feed", |feed| feed.status == AgentStatus::Stopped).await };
/// let report = runtime.run_until(feed_is_done).await;
/// assert_eq!(report.ended_by, EndedBy::Requested);
/// report.result()
/// # }
/// ```
#[must_use = "a runtime does nothing until it is run"]
pub struct AgentRuntime {
    handle: RuntimeHandle,
    makers: Vec<(Maker, Rng)>,
}

impl fmt::Debug for AgentRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentRuntime")
            .field("agents", &self.handle.fleet().members.len())
            .finish_non_exhaustive()
    }
}

impl AgentRuntime {
    /// Nothing yet: no agents, the defaults.
    pub fn builder() -> AgentRuntimeBuilder {
        AgentRuntimeBuilder {
            agents: Vec::new(),
            observers: Vec::new(),
            clock: Arc::new(SystemClock),
            seed: None,
            deadline: DEFAULT_DEADLINE,
            reserve: None,
            on_overrun: None,
        }
    }

    /// A handle, before and while it runs.
    pub fn handle(&self) -> RuntimeHandle {
        self.handle.clone()
    }

    /// Starts the agents as tasks of their own and returns. The shutdown begins when the last handle is dropped,
    /// or by [`RuntimeHandle::shutdown`]; [`RuntimeHandle::ended`] waits for the end.
    ///
    /// # Panics
    /// Outside a tokio runtime with its timer enabled.
    pub fn start(mut self) -> RuntimeHandle {
        let fleet = self.handle.fleet();
        fleet.launch();
        tokio::spawn(keep_soft_deadline(fleet.clone()));
        for (index, (maker, rng)) in std::mem::take(&mut self.makers).into_iter().enumerate() {
            tokio::spawn(drive(Driver { fleet: fleet.clone(), index, maker, rng }));
        }
        self.handle.clone()
    }

    /// Runs until all agents have ended: by themselves, or because a critical one failed, or because a handle
    /// asked for it. See [`AgentRuntime::run_until`].
    pub async fn run(self) -> RuntimeReport {
        self.run_until(std::future::pending::<()>()).await
    }

    /// Runs until `until` is ready and all agents have then ended, or until all agents have ended before.
    ///
    /// Dropping the future begins the shutdown; it goes on by itself, because the agents are tasks of their own.
    ///
    /// # Panics
    /// Outside a tokio runtime with its timer enabled.
    pub async fn run_until<F: Future>(self, until: F) -> RuntimeReport {
        let handle = self.start();
        let fleet = handle.fleet().clone();
        let _stop_on_drop = StopOnDrop(fleet.clone());
        tokio::select! {
            biased;
            () = fleet.closed.cancelled() => {}
            _ = until => fleet.begin_shutdown(EndedBy::Requested),
        }
        fleet.closed().await
    }
}

impl Drop for AgentRuntime {
    fn drop(&mut self) {
        if !self.handle.fleet().was_launched() {
            self.handle.fleet().never_ran();
        }
    }
}

struct StopOnDrop(Arc<Fleet>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.begin_shutdown(EndedBy::Dropped);
    }
}

struct LastHandle(Arc<Fleet>);

impl Drop for LastHandle {
    fn drop(&mut self) {
        self.0.begin_shutdown(EndedBy::Dropped);
    }
}

/// Watches and steers a runtime. Cloning it costs one reference count; dropping the last one begins the
/// shutdown.
#[derive(Clone)]
pub struct RuntimeHandle(Arc<LastHandle>);

impl fmt::Debug for RuntimeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuntimeHandle").field("agents", &self.fleet().members.len()).finish_non_exhaustive()
    }
}

impl RuntimeHandle {
    pub(super) fn fleet(&self) -> &Arc<Fleet> {
        &self.0.0
    }

    /// The names of the agents, in the order in which they were added.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fleet().members.iter().map(|member| &*member.cell.name)
    }

    /// What the agent is now. `NotFound` for an unknown name, here and below.
    pub fn snapshot(&self, agent: &str) -> Result<AgentSnapshot> {
        Ok(self.fleet().find(agent)?.snapshot())
    }

    /// Follows the agent.
    pub fn subscribe(&self, agent: &str) -> Result<AgentWatch> {
        Ok(self.fleet().find(agent)?.subscribe())
    }

    /// Waits until the agent is as `wanted` says. A state that passes quickly may be skipped.
    ///
    /// # Errors
    /// `NotFound` for an unknown name; `Closed` if the agent, or the runtime, ended without it.
    pub async fn wait_for(
        &self,
        agent: &str,
        mut wanted: impl FnMut(&AgentSnapshot) -> bool,
    ) -> Result<AgentSnapshot> {
        let mut watch = self.subscribe(agent)?;
        let mut snapshot = watch.current();
        loop {
            if wanted(&snapshot) {
                return Ok(snapshot);
            }
            let next = tokio::select! {
                biased;
                next = watch.changed(), if !snapshot.status.is_terminal() => next,
                () = self.fleet().closed.cancelled() => None,
            };
            let Some(next) = next else {
                let message = format!("ended as {} without what was waited for", snapshot.status);
                return Err(agent_error(ErrorKind::Closed, "agent.ended", "wait_for", agent, message));
            };
            snapshot = next;
        }
    }

    /// The last 64 transitions of the agent, oldest first.
    pub fn history(&self, agent: &str) -> Result<Vec<Transition>> {
        Ok(self.fleet().find(agent)?.history())
    }

    /// The last 16 errors of the agent, oldest first.
    pub fn errors(&self, agent: &str) -> Result<Vec<ErrorRecord>> {
        Ok(self.fleet().find(agent)?.errors())
    }

    /// Asks this one agent to stop, for good. Those that depend on it and have started are left alone; those
    /// that still wait for it are Stopped with `DependencyFailed`. Asking twice, or after the end, changes
    /// nothing.
    pub fn stop(&self, agent: &str) -> Result<()> {
        self.fleet().find(agent)?.ask(Asked::Stop);
        Ok(())
    }

    /// Begins the shutdown. Asking twice, or after the end, changes nothing.
    pub fn shutdown(&self) {
        self.fleet().begin_shutdown(EndedBy::Requested);
    }

    /// Begins the shutdown if that has not happened, and makes its soft deadline now: every hook but cleanup is
    /// dropped, and cleanups get the reserve.
    pub fn shutdown_now(&self) {
        self.shutdown();
        self.fleet().deadlines.hurry();
    }

    /// Ready, started, live. From memory alone.
    pub fn health(&self) -> HealthReport {
        health::report(self.fleet())
    }

    /// Waits for the end of the runtime.
    pub async fn ended(&self) -> RuntimeReport {
        self.fleet().closed().await
    }
}
