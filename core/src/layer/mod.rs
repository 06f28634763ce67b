//! Layers around any store and any bus: retries, time limits, concurrency limits, metrics, traces.
//!
//! A [`Layer`] sees every call of a port as a future and can delay, reject, limit or observe the call. [`Layered`]
//! applies a layer to a port and implements the same port. Layers therefore nest, and a layered port passes the same
//! contract suite as the inner port.
//!
//! [`guide::layers`](crate::guide::layers) describes each layer and shows how to write one.
//!
//! [`Retry`] implements the ports directly, because only a retry repeats a call. [`LayerStack`] composes all layers in a
//! fixed order. [`PurgeGuard`] is outside the stack.
//!
//! ```
//! use qi_core::layer::{Layered, Retry, RetryConfig, Timeout, TimeoutConfig};
//! # fn wrap(store: std::sync::Arc<dyn qi_core::PriceStore>) {
//! let timed = Layered::new(store, Timeout::new(TimeoutConfig::default()));
//! let store = Retry::new(timed, RetryConfig::default());
//! assert!(store.to_string().starts_with("Retry(Timeout("));
//! # }
//! ```

mod circuit_breaker;
mod layered;
mod limit;
mod metered;
mod ports;
mod propagator;
mod purge_guard;
mod retry;
mod stack;
mod timeout;
mod traced;

pub use circuit_breaker::{CircuitBreaker, CircuitBreakerConfig, CircuitState};
pub use layered::{Call, Layer, Layered};
pub use limit::{Limit, LimitConfig};
pub use metered::Metered;
pub use propagator::{NoPropagator, Propagator};
pub use purge_guard::PurgeGuard;
pub use retry::{Retry, RetryConfig};
pub use stack::LayerStack;
pub use timeout::{Timeout, TimeoutConfig};
pub use traced::Traced;

/// The backend's name in metrics and errors of a layer without a configured name.
const UNKNOWN_BACKEND: &str = "unknown";
