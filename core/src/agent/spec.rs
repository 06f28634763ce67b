//! The description of an agent: its name, its factory and its limits.

use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;

use super::context::AgentContext;
use super::port::Agent;
use super::restart::{RestartMode, RestartPolicy};
use super::shared::Settings;
use crate::{Error, Result};

/// The description of an agent: its name, its factory and its limits. Each setter states the default.
///
/// There are three kinds of factory. [`AgentSpec::new`] makes a value for each incarnation, [`AgentSpec::new_async`]
/// opens a value for each incarnation, and [`AgentSpec::once`] takes an existing value.
///
/// ```
/// use std::time::Duration;
/// use qi_core::agent::{AgentSpec, RestartPolicy, agent_fn};
///
/// let feed = AgentSpec::new("feed", || agent_fn(|_cx| async { Ok(()) }))
///     .depends_on(["writer"])
///     .restart(RestartPolicy::default().with_max_crashes(3))
///     .watchdog(Duration::from_secs(10));
/// let import = AgentSpec::once("import", agent_fn(|_cx| async { Ok(()) })).run_to_completion();
/// let specs = vec![feed, import];
/// ```
#[derive(Debug)]
pub struct AgentSpec {
    pub(super) name: String,
    pub(super) depends_on: Vec<String>,
    pub(super) settings: Settings,
    pub(super) restart: RestartPolicy,
    pub(super) factory: AgentFactory,
}

/// The limits of an agent, as set by the methods of [`AgentSpec`] with the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AgentLimits {
    /// The time limit of `initialize`.
    pub init_timeout: Duration,
    /// The time from a stop until a pending hook is dropped.
    pub stop_timeout: Duration,
    /// The time limit of `cleanup`.
    pub cleanup_timeout: Duration,
    /// The limit of the time between two heartbeats, if any.
    pub watchdog: Option<Duration>,
    /// The maximum number of concurrent child tasks.
    pub max_children: usize,
}

type OpenFuture = BoxFuture<'static, Result<Box<dyn Agent>>>;

/// The factory of an agent's values.
pub(super) enum AgentFactory {
    Once(Option<Box<dyn Agent>>),
    New(Box<dyn FnMut() -> Box<dyn Agent> + Send>),
    Async(Box<dyn FnMut(AgentContext) -> OpenFuture + Send>),
}

impl fmt::Debug for AgentFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Once(_) => "Once",
            Self::New(_) => "New",
            Self::Async(_) => "Async",
        })
    }
}

impl AgentSpec {
    fn with_factory(name: impl Into<String>, factory: AgentFactory, restart: RestartPolicy) -> Self {
        Self { name: name.into(), depends_on: Vec::new(), settings: Settings::default(), restart, factory }
    }

    /// Creates a spec whose `make` returns a new value for each incarnation.
    pub fn new<A, F>(name: impl Into<String>, mut make: F) -> Self
    where
        A: Agent + 'static,
        F: FnMut() -> A + Send + 'static,
    {
        let make = Box::new(move || Box::new(make()) as Box<dyn Agent>);
        Self::with_factory(name, AgentFactory::New(make), RestartPolicy::default())
    }

    /// Creates a spec whose `make` opens a new value for each incarnation. `make` may wait and may fail. An existing
    /// value is thus always connected, so its resources are plain fields instead of `Option`s.
    ///
    /// `make` belongs to the phase `initialize`. The init timeout limits `make` and [`Agent::initialize`] together.
    /// After an error the restart policy decides: after a retryable error, the agent restarts without a limit. An
    /// expired init timeout counts as a crash. After a stop, the future is dropped at the stop timeout. Without a value
    /// there is no cleanup, so the future must own everything that it has opened.
    ///
    /// ```
    /// use qi_core::{Result, ResultExt};
    /// use qi_core::agent::{Agent, AgentContext, AgentSpec, ExitReason};
    /// # struct Socket;
    /// # impl Socket {
    /// #     async fn connect(_: &str) -> std::io::Result<Self> { Ok(Self) }
    /// #     async fn next(&mut self) -> std::io::Result<u64> { Ok(1) }
    /// #     async fn close(&mut self) -> std::io::Result<()> { Ok(()) }
    /// # }
    ///
    /// struct Feed {
    ///     socket: Socket,
    /// }
    ///
    /// #[qi_core::async_trait]
    /// impl Agent for Feed {
    ///     async fn run(&mut self, cx: &AgentContext) -> Result<()> {
    ///         while let Some(next) = cx.until_cancelled(self.socket.next()).await {
    ///             let _value = next.retryable("feed.read", "run")?;
    ///         }
    ///         Ok(())
    ///     }
    ///
    ///     async fn cleanup(&mut self, _cx: &AgentContext, _exit: &ExitReason) -> Result<()> {
    ///         self.socket.close().await.permanent("feed.close", "cleanup")
    ///     }
    /// }
    ///
    /// let spec = AgentSpec::new_async("feed", |_cx| async {
    ///     let socket = Socket::connect("wss://ws.kraken.com").await.retryable("feed.connect", "initialize")?;
    ///     Ok(Feed { socket })
    /// });
    /// ```
    pub fn new_async<A, F, Fut>(name: impl Into<String>, mut make: F) -> Self
    where
        A: Agent + 'static,
        F: FnMut(AgentContext) -> Fut + Send + 'static,
        Fut: Future<Output = Result<A>> + Send + 'static,
    {
        let make = move |cx| -> OpenFuture {
            let opened = make(cx);
            Box::pin(async move { Ok(Box::new(opened.await?) as Box<dyn Agent>) })
        };
        Self::with_factory(name, AgentFactory::Async(Box::new(make)), RestartPolicy::default())
    }

    /// Creates a spec with this single value. The agent never restarts, so every failure is final.
    pub fn once(name: impl Into<String>, agent: impl Agent + 'static) -> Self {
        Self::with_factory(name, AgentFactory::Once(Some(Box::new(agent))), RestartPolicy::never())
    }

    /// Returns the name of the agent.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the names of the agents on which this agent depends.
    pub fn dependencies(&self) -> &[String] {
        &self.depends_on
    }

    /// Returns the reaction to a failure.
    pub fn restart_policy(&self) -> RestartPolicy {
        self.restart
    }

    /// Returns whether a failure of the agent begins the shutdown of the runtime.
    pub fn is_critical(&self) -> bool {
        self.settings.critical
    }

    /// Returns whether the agent was marked with [`AgentSpec::run_to_completion`].
    pub fn is_run_to_completion(&self) -> bool {
        self.settings.run_to_completion
    }

    /// Returns the limits of the agent's hooks and child tasks.
    pub fn limits(&self) -> AgentLimits {
        let Settings { limits, watchdog, max_children, .. } = self.settings;
        AgentLimits {
            init_timeout: limits.initialize,
            stop_timeout: limits.stop,
            cleanup_timeout: limits.cleanup,
            watchdog,
            max_children,
        }
    }

    /// Sets the reaction to a failure. Defaults to [`RestartPolicy::default`].
    #[must_use]
    pub fn restart(mut self, policy: RestartPolicy) -> Self {
        self.restart = policy;
        self
    }

    /// Starts the agent after each of these agents has been Running once, or has completed if it runs to completion.
    /// Stops the agent before these agents are stopped. Restarts of a dependency do not affect the agent.
    #[must_use]
    pub fn depends_on<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.depends_on.extend(names.into_iter().map(Into::into));
        self
    }

    /// Marks an agent that completes. Its dependents wait for its completion, and after completion
    /// the agent counts as ready.
    #[must_use]
    pub fn run_to_completion(mut self) -> Self {
        self.settings.run_to_completion = true;
        self
    }

    /// Limits a failure to this agent: the other agents continue, and readiness ignores this agent. By default an agent
    /// is critical, and its failure begins the shutdown of the runtime.
    #[must_use]
    pub fn best_effort(mut self) -> Self {
        self.settings.critical = false;
        self
    }

    /// Sets the time limit of `initialize` and, with [`AgentSpec::new_async`], of the factory. An incarnation that
    /// exceeds the limit counts as a crash. Defaults to 6 minutes, which is above the longest `subscribe`.
    #[must_use]
    pub fn init_timeout(mut self, limit: Duration) -> Self {
        self.settings.limits.initialize = limit;
        self
    }

    /// Sets the time from a stop until a pending hook is dropped. Defaults to 5 s.
    #[must_use]
    pub fn stop_timeout(mut self, limit: Duration) -> Self {
        self.settings.limits.stop = limit;
        self
    }

    /// Sets the time limit of `cleanup`. Defaults to 2 s.
    #[must_use]
    pub fn cleanup_timeout(mut self, limit: Duration) -> Self {
        self.settings.limits.cleanup = limit;
        self
    }

    /// Drops `run` after this time without a [`heartbeat`](AgentContext::heartbeat). The restart policy
    /// then decides. Off by default.
    #[must_use]
    pub fn watchdog(mut self, limit: Duration) -> Self {
        self.settings.watchdog = Some(limit);
        self
    }

    /// Sets the maximum number of concurrent child tasks. Defaults to 1,024.
    #[must_use]
    pub fn max_children(mut self, limit: usize) -> Self {
        self.settings.max_children = limit;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        if matches!(self.factory, AgentFactory::Once(_)) && self.restart.mode != RestartMode::Never {
            return Err(Error::invalid(
                "agent.restart",
                "restart",
                format_args!("{:?}", self.restart.mode),
                "must be never for an agent made by AgentSpec::once",
            ));
        }
        self.restart.check()
    }
}
