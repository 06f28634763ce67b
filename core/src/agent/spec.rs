//! What the runtime is told of an agent: its name, where its values come from, its limits.

use std::fmt;
use std::time::Duration;

use super::Agent;
use super::cell::Limits;
use super::restart::RestartPolicy;

pub(super) const DEFAULT_LIMITS: Limits = Limits {
    initialize: Duration::from_secs(30),
    stop: Duration::from_secs(5),
    cleanup: Duration::from_secs(2),
};
pub(super) const DEFAULT_MAX_CHILDREN: usize = 1_024;

/// An agent as the runtime is told of it: a name, a source of values, limits. The defaults stand with each
/// setter.
///
/// `AgentSpec<Factory>` makes a new value for each incarnation; `AgentSpec<Once>` has one value and no restart
/// policy, by type.
///
/// ```
/// use std::time::Duration;
/// use qi_core::agent::{AgentSpec, RestartPolicy, agent_fn};
///
/// let feed = AgentSpec::new("feed", || agent_fn(|_cx| async { Ok(()) }))
///     .after(["writer"])
///     .restart(RestartPolicy::default().with_max_crashes(3))
///     .watchdog(Duration::from_secs(10))
///     .finite();
/// ```
pub struct AgentSpec<S> {
    pub(super) common: Common,
    source: S,
}

pub(super) struct Common {
    pub(super) name: String,
    pub(super) after: Vec<String>,
    pub(super) finite: bool,
    pub(super) critical: bool,
    pub(super) limits: Limits,
    pub(super) watchdog: Option<Duration>,
    pub(super) max_children: usize,
}

impl Common {
    fn new(name: String) -> Self {
        Self {
            name,
            after: Vec::new(),
            finite: false,
            critical: true,
            limits: DEFAULT_LIMITS,
            watchdog: None,
            max_children: DEFAULT_MAX_CHILDREN,
        }
    }
}

/// Makes a new value for each incarnation; see [`AgentSpec::new`].
pub struct Factory {
    make: Box<dyn FnMut() -> Box<dyn Agent> + Send>,
    policy: RestartPolicy,
}

/// Has one value and never restarts; see [`AgentSpec::once`].
pub struct Once(Box<dyn Agent>);

impl fmt::Debug for Factory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Factory").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Once")
    }
}

impl<S: fmt::Debug> fmt::Debug for AgentSpec<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { common, source } = self;
        let Common { name, after, finite, critical, limits, watchdog, max_children } = common;
        f.debug_struct("AgentSpec")
            .field("name", name)
            .field("source", source)
            .field("after", after)
            .field("finite", finite)
            .field("critical", critical)
            .field("limits", limits)
            .field("watchdog", watchdog)
            .field("max_children", max_children)
            .finish()
    }
}

impl AgentSpec<Factory> {
    /// An agent of which `make` gives a new value for each incarnation. It restarts by
    /// [`RestartPolicy::default`] unless [`AgentSpec::restart`] says otherwise.
    pub fn new<A, F>(name: impl Into<String>, mut make: F) -> Self
    where
        A: Agent + 'static,
        F: FnMut() -> A + Send + 'static,
    {
        let make = Box::new(move || Box::new(make()) as Box<dyn Agent>);
        Self { common: Common::new(name.into()), source: Factory { make, policy: RestartPolicy::default() } }
    }

    /// Sets what a failure leads to.
    #[must_use]
    pub fn restart(mut self, policy: RestartPolicy) -> Self {
        self.source.policy = policy;
        self
    }
}

impl AgentSpec<Once> {
    /// An agent with this one value: every failure is the end.
    pub fn once(name: impl Into<String>, agent: impl Agent + 'static) -> Self {
        Self { common: Common::new(name.into()), source: Once(Box::new(agent)) }
    }
}

impl<S: Source> AgentSpec<S> {
    /// Starts it when each of these has been Running once (or, if finite, has completed), and stops it before
    /// they are stopped. Restarts of a dependency do not touch it.
    #[must_use]
    pub fn after<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.common.after.extend(names.into_iter().map(Into::into));
        self
    }

    /// Says that it completes: its dependents wait for that, and it then counts as ready.
    #[must_use]
    pub fn finite(mut self) -> Self {
        self.common.finite = true;
        self
    }

    /// Lets the others go on if it fails, and readiness without it. By default an agent is critical: its failure
    /// stops the whole runtime in order.
    #[must_use]
    pub fn best_effort(mut self) -> Self {
        self.common.critical = false;
        self
    }

    /// Sets how long `initialize` may take: 30 s.
    #[must_use]
    pub fn init_timeout(mut self, limit: Duration) -> Self {
        self.common.limits.initialize = limit;
        self
    }

    /// Sets how long a hook may go on after a stop before it is dropped: 5 s.
    #[must_use]
    pub fn stop_timeout(mut self, limit: Duration) -> Self {
        self.common.limits.stop = limit;
        self
    }

    /// Sets how long `cleanup` may take: 2 s.
    #[must_use]
    pub fn cleanup_timeout(mut self, limit: Duration) -> Self {
        self.common.limits.cleanup = limit;
        self
    }

    /// Drops `run` if it gives no [`heartbeat`](super::AgentContext::heartbeat) for this long: an ordinary
    /// restart follows. Off by default.
    #[must_use]
    pub fn watchdog(mut self, limit: Duration) -> Self {
        self.common.watchdog = Some(limit);
        self
    }

    /// Sets how many children it may have at a time: 1,024.
    #[must_use]
    pub fn max_children(mut self, limit: usize) -> Self {
        self.common.max_children = limit;
        self
    }

    pub(super) fn into_parts(self) -> (Common, Maker) {
        (self.common, self.source.into_maker().0)
    }
}

/// Where the values of an agent come from: [`Factory`] or [`Once`].
pub trait Source: sealed::Sealed {}

impl Source for Factory {}
impl Source for Once {}

mod sealed {
    /// Keeps [`super::Source`] to this module.
    pub trait Sealed {
        /// Takes the source as the driver needs it.
        fn into_maker(self) -> MakerOf;
    }

    /// A [`super::Maker`] in a public coat.
    #[allow(missing_debug_implementations)]
    pub struct MakerOf(pub(in crate::agent) super::Maker);
}

impl sealed::Sealed for Factory {
    fn into_maker(self) -> sealed::MakerOf {
        sealed::MakerOf(Maker::Factory(self.make, self.policy))
    }
}

impl sealed::Sealed for Once {
    fn into_maker(self) -> sealed::MakerOf {
        sealed::MakerOf(Maker::Once(Some(self.0)))
    }
}

/// A [`Source`] as the driver sees it.
pub(super) enum Maker {
    Factory(Box<dyn FnMut() -> Box<dyn Agent> + Send>, RestartPolicy),
    Once(Option<Box<dyn Agent>>),
}

impl Maker {
    pub(super) fn policy(&self) -> RestartPolicy {
        match self {
            Self::Factory(_, policy) => *policy,
            Self::Once(_) => RestartPolicy::never(),
        }
    }

    pub(super) fn make(&mut self) -> Box<dyn Agent> {
        match self {
            Self::Factory(make, _) => make(),
            Self::Once(agent) => agent.take().expect("an agent without a factory is never restarted"),
        }
    }
}
