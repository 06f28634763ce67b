//! The health of a program in one call: every backend that it stands on, and its agents.
//!
//! ```
//! use qi_core::health::Health;
//! # async fn probe(store: std::sync::Arc<dyn qi_core::PriceStore>, bus: std::sync::Arc<dyn qi_core::MessageBus>) {
//! let health = Health::new().store("prices", store).bus("events", bus);
//! let check = health.check().await;
//! println!("{}", if check.ready { "ready" } else { "not ready" });
//! # }
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, join_all};
use serde::Serialize;
use tokio::time::{Instant, timeout};

use crate::agent::{HealthReport, RuntimeHandle};
use crate::error::MAX_CONTEXT_CHARS;
use crate::{Error, ErrorKind, MessageBus, Port, PriceStore, Result};

/// How long a backend has for its answer: less than the second that Kubernetes gives a probe unless told otherwise.
const TIMEOUT: Duration = Duration::from_millis(800);
/// For how long answers are given again, so that many probes cost the backends one ping.
const MAX_AGE: Duration = Duration::from_millis(500);

/// Asks the backends and the agents of a program how they are.
#[derive(Debug)]
pub struct Health {
    backends: Vec<Arc<Backend>>,
    expects_agents: bool,
    runtime: Mutex<Option<RuntimeHandle>>,
    timeout: Duration,
    max_age: Duration,
    last: Mutex<Option<Round>>,
}

/// The backends are asked once for all who come meanwhile. Whoever waits drives it, so that one who goes away holds up
/// nobody.
type Round = Shared<BoxFuture<'static, (Instant, Vec<BackendHealth>)>>;

#[derive(Debug)]
struct Backend {
    name: String,
    port: Asked,
}

#[derive(Debug)]
enum Asked {
    Store(Arc<dyn PriceStore>),
    Bus(Arc<dyn MessageBus>),
}

/// How a program is, at one moment. Each of the three booleans answers a probe of its own.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct HealthCheck {
    /// Nothing is wrong that a restart of the process could mend: see [`HealthReport::live`]. Backends have no part in
    /// it.
    pub live: bool,
    /// Every agent that must be has been ready once; true for a program without agents.
    pub started: bool,
    /// Every backend answered, and the agents are ready.
    pub ready: bool,
    /// Each backend, in the order in which they were added.
    pub backends: Vec<BackendHealth>,
    /// The agents, if there is a runtime.
    pub runtime: Option<HealthReport>,
}

/// The answer of one backend.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BackendHealth {
    /// The name that the program gave it.
    pub name: String,
    /// `store` or `bus`.
    pub port: &'static str,
    /// The backend's word: `memory`, `timescale`, ...
    pub backend: &'static str,
    /// Whether it answered.
    pub up: bool,
    /// How long its answer took, in milliseconds.
    pub round_trip_ms: Option<f64>,
    /// The server's version, where a store says it. It is the server's text, so a probe does not show it.
    #[serde(skip_serializing)]
    pub version: Option<String>,
    /// The code of the error if it is not up. The server's text goes to the log only, because anybody may read a probe.
    pub error: Option<String>,
    /// The kind of that error.
    pub kind: Option<&'static str>,
}

impl Default for Health {
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

impl Health {
    /// Of a program without backends and agents.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks this store too, under a name of the program's.
    #[must_use]
    pub fn store(mut self, name: impl Into<String>, store: Arc<dyn PriceStore>) -> Self {
        self.backends.push(Arc::new(Backend { name: name.into(), port: Asked::Store(store) }));
        self
    }

    /// Asks this bus too, under a name of the program's.
    #[must_use]
    pub fn bus(mut self, name: impl Into<String>, bus: Arc<dyn MessageBus>) -> Self {
        self.backends.push(Arc::new(Backend { name: name.into(), port: Asked::Bus(bus) }));
        self
    }

    /// Agents are to come: the program has not started and is not ready before [`Health::watch`] was told of them and
    /// they are.
    #[must_use]
    pub fn expect_agents(mut self) -> Self {
        self.expects_agents = true;
        self
    }

    /// The time limit of a ping, including all attempts of the layers. Defaults to 800 ms.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// For how long the answers of backends are given again before they are asked anew: 500 ms.
    #[must_use]
    pub fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = max_age;
        self
    }

    /// Asks this runtime from now on, in place of another one. It keeps a handle: the runtime does not end because
    /// all others were dropped.
    pub fn watch(&self, runtime: RuntimeHandle) {
        *self.runtime.lock().unwrap_or_else(PoisonError::into_inner) = Some(runtime);
    }

    /// Returns the runtime that is asked.
    pub fn runtime(&self) -> Option<RuntimeHandle> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the process should go on: from memory alone, without asking a backend. An outage of a database must
    /// not make a process be killed.
    pub fn is_live(&self) -> bool {
        self.runtime().is_none_or(|runtime| runtime.health().live)
    }

    /// Asks every backend, all at once, and the runtime. It takes no longer than the timeout.
    pub async fn check(&self) -> HealthCheck {
        let (_, backends) = self.round().await;
        let runtime = self.runtime().map(|runtime| runtime.health());
        let agents_are =
            |state: fn(&HealthReport) -> bool| runtime.as_ref().map_or(!self.expects_agents, state);
        HealthCheck {
            live: runtime.as_ref().is_none_or(|report| report.live),
            started: agents_are(|report| report.started),
            ready: agents_are(|report| report.ready) && backends.iter().all(|backend| backend.up),
            backends,
            runtime,
        }
    }

    /// Returns the round that is under way or not too old, or a new one.
    fn round(&self) -> Round {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(round) = &*last {
            let usable = match round.peek() {
                Some((at, _)) => at.elapsed() < self.max_age,
                // One that all have left stands still: its answers would be late for no fault of the backends.
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
            Asked::Store(store) => (Port::Store, store.info().backend),
            Asked::Bus(bus) => (Port::Bus, bus.info().backend),
        };
        let answer = timeout(limit, self.ping()).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, "health.timeout", "ping")
                .with_message("no answer in time")
                .with_backend(backend)
                .with_context("limit_ms", limit.as_millis()))
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
                Asked::Store(store) => {
                    let status = store.ping().await?;
                    let version = status.version.map(|text| text.chars().take(MAX_CONTEXT_CHARS).collect());
                    (status.round_trip, version)
                }
                Asked::Bus(bus) => (bus.ping().await?.round_trip, None),
            })
        })
    }
}
