//! The wrappers in the one order.

use std::sync::Arc;

use super::{
    CircuitBreaker, CircuitBreakerPolicy, Layered, Limit, LimitPolicy, Metered, NoPropagator, Propagator,
    Retry, RetryPolicy, Timeout, TimeoutPolicy, Traced,
};
use crate::{MessageBus, Port, PriceStore, Result};

/// Which wrappers a port gets. They are composed in one order, whatever the order of the calls:
/// `Traced(Metered(Retry(CircuitBreaker(Timeout(Limit(inner))))))`. So the wait for a permit counts as time, every
/// attempt has a limit of its own and is one that the circuit counts, and a span and a measurement cover all attempts.
///
/// ```
/// use qi_core::layer::{LimitPolicy, Wrappers};
/// # fn wrap(store: std::sync::Arc<dyn qi_core::PriceStore>) -> qi_core::Result<()> {
/// let store = Wrappers::none().with_limit(LimitPolicy::default()).with_metrics(true).around_store(store)?;
/// assert!(store.to_string().starts_with("Metered(Limit("));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Wrappers {
    /// Whether there is a span around every call.
    pub tracing: bool,
    /// Whether calls are counted and timed.
    pub metrics: bool,
    /// The attempts; None leaves the wrapper out.
    pub retry: Option<RetryPolicy>,
    /// When too many of them have failed; None leaves the wrapper out.
    pub circuit_breaker: Option<CircuitBreakerPolicy>,
    /// The time limit of each; None leaves the wrapper out.
    pub timeout: Option<TimeoutPolicy>,
    /// How many calls at once and in a second; None leaves the wrapper out.
    pub limit: Option<LimitPolicy>,
    /// What carries traces over the bus, if there is `tracing`: nothing, unless it is set.
    pub propagator: Arc<dyn Propagator>,
}

impl Default for Wrappers {
    /// All of them, with their defaults.
    fn default() -> Self {
        Self {
            tracing: true,
            metrics: true,
            retry: Some(RetryPolicy::default()),
            circuit_breaker: Some(CircuitBreakerPolicy::default()),
            timeout: Some(TimeoutPolicy::default()),
            limit: Some(LimitPolicy::default()),
            propagator: Arc::new(NoPropagator),
        }
    }
}

/// Puts one layer after the other around a port, from the inside out. `$around` is how one is put there.
macro_rules! compose {
    ($wrappers:ident, $inner:ident: $port:ident, $name:expr, $around:path) => {{
        let Wrappers { tracing, metrics, retry, circuit_breaker, timeout, limit, propagator } = $wrappers;
        let backend = $inner.info().backend;
        let mut port: Arc<dyn $port> = Arc::new($inner);
        if let Some(policy) = *limit {
            port = Arc::new($around(port, Limit::new(policy)?.for_backend(backend))?);
        }
        if let Some(policy) = *timeout {
            port = Arc::new($around(port, Timeout::new(policy)?)?);
        }
        if let Some(policy) = *circuit_breaker {
            port = Arc::new($around(port, CircuitBreaker::new(policy)?.for_backend($name, backend))?);
        }
        if let Some(policy) = *retry {
            port = Arc::new($around(port, Retry::new(policy)?.for_backend(backend))?);
        }
        if *metrics {
            port = Arc::new($around(port, Metered::new(backend))?);
        }
        if *tracing {
            port = Arc::new($around(port, Traced::new(backend).with_propagator(propagator.clone()))?);
        }
        Ok(port)
    }};
}

impl Wrappers {
    /// None at all.
    pub fn none() -> Self {
        Self {
            tracing: false,
            metrics: false,
            retry: None,
            circuit_breaker: None,
            timeout: None,
            limit: None,
            propagator: Arc::new(NoPropagator),
        }
    }

    /// With spans, or without.
    #[must_use]
    pub fn with_tracing(mut self, tracing: bool) -> Self {
        self.tracing = tracing;
        self
    }

    /// With counts and times, or without.
    #[must_use]
    pub fn with_metrics(mut self, metrics: bool) -> Self {
        self.metrics = metrics;
        self
    }

    /// With these attempts.
    #[must_use]
    pub fn with_retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// With this circuit.
    #[must_use]
    pub fn with_circuit_breaker(mut self, policy: CircuitBreakerPolicy) -> Self {
        self.circuit_breaker = Some(policy);
        self
    }

    /// With this time limit.
    #[must_use]
    pub fn with_timeout(mut self, policy: TimeoutPolicy) -> Self {
        self.timeout = Some(policy);
        self
    }

    /// With these permits and this pace.
    #[must_use]
    pub fn with_limit(mut self, policy: LimitPolicy) -> Self {
        self.limit = Some(policy);
        self
    }

    /// With spans whose traces this one carries over the bus.
    #[must_use]
    pub fn with_propagator(mut self, propagator: Arc<dyn Propagator>) -> Self {
        self.propagator = propagator;
        self
    }

    /// Wraps a store.
    ///
    /// # Errors
    /// `Config` for a policy that is not valid.
    pub fn around_store(&self, store: impl PriceStore) -> Result<Arc<dyn PriceStore>> {
        compose!(self, store: PriceStore, Port::Store, around_store)
    }

    /// Wraps a bus.
    ///
    /// # Errors
    /// `Config` for a policy that is not valid or does not fit the bus.
    pub fn around_bus(&self, bus: impl MessageBus) -> Result<Arc<dyn MessageBus>> {
        compose!(self, bus: MessageBus, Port::Bus, Layered::around_bus)
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the shape of `Layered::around_bus`")]
fn around_store<S, X: super::Intercept>(store: S, layer: X) -> Result<Layered<S, X>> {
    Ok(Layered::new(store, layer))
}
