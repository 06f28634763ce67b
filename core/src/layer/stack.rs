//! `LayerStack`: all layers in a fixed order.

use std::sync::Arc;

use super::{
    CircuitBreaker, CircuitBreakerConfig, Layered, Limit, LimitConfig, Metered, NoPropagator, Propagator,
    Retry, RetryConfig, Timeout, TimeoutConfig, Traced,
};
use crate::{MessageBus, Port, PriceStore};

/// The layers of a port and their settings. The order is fixed:
/// `Traced(Metered(Retry(CircuitBreaker(Timeout(Limit(inner))))))`.
///
/// The time limit includes the wait for a permit of `Limit`. Each attempt has its own time limit, and the circuit
/// breaker counts each attempt. One span and one measurement cover all attempts of a call.
///
/// ```
/// use qi_core::layer::{LayerStack, LimitConfig};
/// # fn wrap(store: std::sync::Arc<dyn qi_core::PriceStore>) {
/// let store = LayerStack::none().with_limit(LimitConfig::default()).with_metrics(true).wrap_store(store);
/// assert!(store.to_string().starts_with("Metered(Limit("));
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LayerStack {
    /// Enables [`Traced`].
    pub tracing: bool,
    /// Enables [`Metered`].
    pub metrics: bool,
    /// The settings of [`Retry`]. None omits the layer.
    pub retry: Option<RetryConfig>,
    /// The settings of [`CircuitBreaker`]. None omits the layer.
    pub circuit_breaker: Option<CircuitBreakerConfig>,
    /// The settings of [`Timeout`]. None omits the layer.
    pub timeout: Option<TimeoutConfig>,
    /// The settings of [`Limit`]. None omits the layer.
    pub limit: Option<LimitConfig>,
    /// The propagator of [`Traced`]. Defaults to [`NoPropagator`].
    pub propagator: Arc<dyn Propagator>,
}

impl Default for LayerStack {
    /// Returns all layers with their default settings.
    fn default() -> Self {
        Self {
            tracing: true,
            metrics: true,
            retry: Some(RetryConfig::default()),
            circuit_breaker: Some(CircuitBreakerConfig::default()),
            timeout: Some(TimeoutConfig::default()),
            limit: Some(LimitConfig::default()),
            propagator: Arc::new(NoPropagator),
        }
    }
}

/// Wraps a port in the layers of a stack, from the innermost to the outermost.
macro_rules! wrap {
    ($stack:ident, $inner:ident: $port:ident, $kind:expr) => {{
        let LayerStack { tracing, metrics, retry, circuit_breaker, timeout, limit, propagator } = $stack;
        let backend = $inner.info().backend;
        let mut port: Arc<dyn $port> = Arc::new($inner);
        if let Some(config) = *limit {
            port = Arc::new(Layered::new(port, Limit::new(config).for_backend(backend)));
        }
        if let Some(config) = *timeout {
            port = Arc::new(Layered::new(port, Timeout::new(config)));
        }
        if let Some(config) = *circuit_breaker {
            port = Arc::new(Layered::new(port, CircuitBreaker::new(config).for_backend($kind, backend)));
        }
        if let Some(config) = *retry {
            port = Arc::new(Retry::new(port, config).for_backend(backend));
        }
        if *metrics {
            port = Arc::new(Layered::new(port, Metered::new(backend)));
        }
        if *tracing {
            let traced = Traced::new(backend).with_propagator(Arc::clone(propagator));
            port = Arc::new(Layered::new(port, traced));
        }
        port
    }};
}

impl LayerStack {
    /// Returns a stack without layers.
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

    /// Enables or disables [`Traced`].
    #[must_use]
    pub fn with_tracing(mut self, tracing: bool) -> Self {
        self.tracing = tracing;
        self
    }

    /// Enables or disables [`Metered`].
    #[must_use]
    pub fn with_metrics(mut self, metrics: bool) -> Self {
        self.metrics = metrics;
        self
    }

    /// Adds [`Retry`] with these settings.
    #[must_use]
    pub fn with_retry(mut self, config: RetryConfig) -> Self {
        self.retry = Some(config);
        self
    }

    /// Adds [`CircuitBreaker`] with these settings.
    #[must_use]
    pub fn with_circuit_breaker(mut self, config: CircuitBreakerConfig) -> Self {
        self.circuit_breaker = Some(config);
        self
    }

    /// Adds [`Timeout`] with these settings.
    #[must_use]
    pub fn with_timeout(mut self, config: TimeoutConfig) -> Self {
        self.timeout = Some(config);
        self
    }

    /// Adds [`Limit`] with these settings.
    #[must_use]
    pub fn with_limit(mut self, config: LimitConfig) -> Self {
        self.limit = Some(config);
        self
    }

    /// Sets the propagator of [`Traced`].
    #[must_use]
    pub fn with_propagator(mut self, propagator: Arc<dyn Propagator>) -> Self {
        self.propagator = propagator;
        self
    }

    /// Wraps a store in the layers of this stack.
    pub fn wrap_store(&self, store: impl PriceStore) -> Arc<dyn PriceStore> {
        wrap!(self, store: PriceStore, Port::Store)
    }

    /// Wraps a bus in the layers of this stack.
    pub fn wrap_bus(&self, bus: impl MessageBus) -> Arc<dyn MessageBus> {
        wrap!(self, bus: MessageBus, Port::Bus)
    }
}
