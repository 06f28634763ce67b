//! The health of a program in one call: all its backends and agents.
//!
//! A [`HealthChecker`] performs the check. Its result is a tree, and each type is one level of the tree and of its JSON
//! form. [`ProgramHealth`] contains one [`BackendHealth`] for each backend, and the [`RuntimeHealth`] of the agents.
//! `RuntimeHealth` is also the health of a runtime without backends. It contains one
//! [`AgentHealthReport`](crate::agent::AgentHealthReport) for each agent. The field `health` of the agent's snapshot is
//! the [`AgentHealth`](crate::agent::AgentHealth) that the agent itself reported.
//!
//! ```
//! use std::sync::Arc;
//! use qi_core::health::HealthChecker;
//! use qi_core::{AgentRuntime, MessageBus, PriceStore};
//!
//! async fn probe(runtime: &AgentRuntime, store: Arc<dyn PriceStore>, bus: Arc<dyn MessageBus>) {
//!     let health = HealthChecker::new().store("prices", store).bus("events", bus).expect_agents();
//!     health.watch(runtime.handle());
//!     let check = health.check().await;
//!     println!("live: {}, started: {}, ready: {}", check.live, check.started, check.ready);
//! }
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, join_all};
use serde::Serialize;
use tokio::time::{Instant, timeout};

use crate::agent::{RuntimeHandle, RuntimeHealth};
use crate::error::MAX_CONTEXT_CHARS;
use crate::{Error, ErrorKind, MessageBus, Port, PriceStore, Result};

/// The default time limit of a ping. It is below 1 s, the default timeout of a Kubernetes probe.
const TIMEOUT: Duration = Duration::from_millis(800);
/// The default time for which results are cached, so that many probes cost each backend one ping.
const MAX_AGE: Duration = Duration::from_millis(500);

/// A health check of the backends and the agents of a program.
#[derive(Debug)]
pub struct HealthChecker {
    backends: Vec<Arc<Backend>>,
    expects_agents: bool,
    runtime: Mutex<Option<RuntimeHandle>>,
    timeout: Duration,
    max_age: Duration,
    last: Mutex<Option<Round>>,
}

/// The pings of one check. Concurrent callers share them. Each waiting caller polls the future, so a caller that stops
/// waiting does not block the others.
type Round = Shared<BoxFuture<'static, (Instant, Vec<BackendHealth>)>>;

#[derive(Debug)]
struct Backend {
    name: String,
    port: BackendPort,
}

#[derive(Debug)]
enum BackendPort {
    Store(Arc<dyn PriceStore>),
    Bus(Arc<dyn MessageBus>),
}

/// The health of a program at one moment. Each of the three booleans answers a separate probe.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ProgramHealth {
    /// False only for a problem that a restart of the process can fix;
    /// see [`RuntimeHealth::live`]. Independent of backends.
    pub live: bool,
    /// True if every critical agent has been Running once. True for a program without agents.
    pub started: bool,
    /// True if every backend answered and the agents are ready.
    pub ready: bool,
    /// The health of each backend, in the order in which the backends were added.
    pub backends: Vec<BackendHealth>,
    /// The health of the agents, if there is a runtime.
    pub runtime: Option<RuntimeHealth>,
}

/// The health of one backend.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BackendHealth {
    /// The backend's name in this program.
    pub name: String,
    /// The port: `store` or `bus`.
    pub port: &'static str,
    /// The backend's type: `memory`, `timescale`, ...
    pub backend: &'static str,
    /// True if the backend answered.
    pub up: bool,
    /// The round-trip time, in milliseconds.
    pub round_trip_ms: Option<f64>,
    /// The server's version, if the backend is a store that reports it. Serde omits this server text, because
    /// probes may be public.
    #[serde(skip_serializing)]
    pub version: Option<String>,
    /// The error code, if the backend did not answer. Only the log has the error's text, because probes may be public.
    pub error: Option<String>,
    /// The kind of the error.
    pub kind: Option<&'static str>,
}

impl Default for HealthChecker {
    fn default() -> Self {
        Self {
            backends: Vec::new(),
            expects_agents: false,
            runtime: Mutex::new(None),
            timeout: TIMEOUT,
            max_age: MAX_AGE,
            last: Mutex::new(None),
        }
    }
}

impl HealthChecker {
    /// Creates the health check of a program without backends and agents.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a store under a name that the program chooses.
    #[must_use]
    pub fn store(mut self, name: impl Into<String>, store: Arc<dyn PriceStore>) -> Self {
        self.backends.push(Arc::new(Backend { name: name.into(), port: BackendPort::Store(store) }));
        self
    }

    /// Adds a bus under a name that the program chooses.
    #[must_use]
    pub fn bus(mut self, name: impl Into<String>, bus: Arc<dyn MessageBus>) -> Self {
        self.backends.push(Arc::new(Backend { name: name.into(), port: BackendPort::Bus(bus) }));
        self
    }

    /// Declares that the program will have agents. Until [`HealthChecker::watch`] has received the runtime, the program is
    /// neither started nor ready.
    #[must_use]
    pub fn expect_agents(mut self) -> Self {
        self.expects_agents = true;
        self
    }

    /// Sets the time limit of a ping, including all attempts of the layers. Defaults to 800 ms.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the time for which the results of the backends are reused. Defaults to 500 ms.
    #[must_use]
    pub fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = max_age;
        self
    }

    /// Sets the runtime to check, in place of the previous one. This value keeps a handle, so the runtime continues
    /// even if all other handles are dropped.
    pub fn watch(&self, runtime: RuntimeHandle) {
        *self.runtime.lock().unwrap_or_else(PoisonError::into_inner) = Some(runtime);
    }

    /// Returns the runtime that is checked.
    pub fn runtime(&self) -> Option<RuntimeHandle> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether the process should continue. Performs no I/O, because an outage of a
    /// database must not restart the process.
    pub fn is_live(&self) -> bool {
        self.runtime().is_none_or(|runtime| runtime.health().live)
    }

    /// Pings all backends concurrently, and checks the runtime. Takes no longer than the timeout.
    pub async fn check(&self) -> ProgramHealth {
        let (_, backends) = self.round().await;
        let runtime = self.runtime().map(|runtime| runtime.health());
        let agents_are =
            |state: fn(&RuntimeHealth) -> bool| runtime.as_ref().map_or(!self.expects_agents, state);
        ProgramHealth {
            live: runtime.as_ref().is_none_or(|report| report.live),
            started: agents_are(|report| report.started),
            ready: agents_are(|report| report.ready) && backends.iter().all(|backend| backend.up),
            backends,
            runtime,
        }
    }

    /// Returns the current round if it is in progress or recent, or starts a new round.
    fn round(&self) -> Round {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(round) = &*last {
            let usable = match round.peek() {
                Some((at, _)) => at.elapsed() < self.max_age,
                // A round without callers makes no progress, so its results would be late although the backends are
                // not.
                None => round.strong_count() > Some(1),
            };
            if usable {
                return round.clone();
            }
        }
        let (backends, limit) = (self.backends.clone(), self.timeout);
        let ask = async move {
            let answers = join_all(backends.iter().map(|backend| backend.ask(limit))).await;
            (Instant::now(), answers)
        };
        last.insert(ask.boxed().shared()).clone()
    }
}

impl Backend {
    async fn ask(&self, limit: Duration) -> BackendHealth {
        let (port, backend) = match &self.port {
            BackendPort::Store(store) => (Port::Store, store.info().backend),
            BackendPort::Bus(bus) => (Port::Bus, bus.info().backend),
        };
        let answer = timeout(limit, self.ping()).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, "health.timeout", "ping")
                .with_message(format_args!("no response within {limit:?}"))
                .with_backend(backend)
                .with_context("limit", format_args!("{limit:?}")))
        });
        let health = BackendHealth {
            name: self.name.clone(),
            port: port.as_str(),
            backend,
            up: answer.is_ok(),
            round_trip_ms: None,
            version: None,
            error: None,
            kind: None,
        };
        match answer {
            Ok((round_trip, version)) => {
                BackendHealth { round_trip_ms: Some(round_trip.as_secs_f64() * 1e3), version, ..health }
            }
            Err(error) => {
                tracing::warn!(target: "qi_core::health", name = self.name, error = %error.report(), "backend is down");
                let code = Some(error.code().to_owned());
                BackendHealth { error: code, kind: Some(error.kind().as_str()), ..health }
            }
        }
    }

    fn ping(&self) -> BoxFuture<'_, Result<(Duration, Option<String>)>> {
        Box::pin(async move {
            Ok(match &self.port {
                BackendPort::Store(store) => {
                    let status = store.ping().await?;
                    let version = status.version.map(|text| text.chars().take(MAX_CONTEXT_CHARS).collect());
                    (status.round_trip, version)
                }
                BackendPort::Bus(bus) => (bus.ping().await?.round_trip, None),
            })
        })
    }
}
