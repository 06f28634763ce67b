//! The wrappers in the one order.

use std::sync::Arc;

use super::{Layered, Retry, RetryPolicy, Timeout, TimeoutPolicy};
use crate::{MessageBus, PriceStore, Result};

/// Which wrappers a port gets. They are composed in one order, whatever the order of the calls:
/// `Retry(Timeout(inner))`, so that every attempt has its own time limit.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Wrappers {
    /// The attempts; None leaves the wrapper out.
    pub retry: Option<RetryPolicy>,
    /// The time limit of each; None leaves the wrapper out.
    pub timeout: Option<TimeoutPolicy>,
}

impl Default for Wrappers {
    /// All of them, with their defaults.
    fn default() -> Self {
        Self { retry: Some(RetryPolicy::default()), timeout: Some(TimeoutPolicy::default()) }
    }
}

impl Wrappers {
    /// None at all.
    pub fn none() -> Self {
        Self { retry: None, timeout: None }
    }

    /// With these attempts.
    #[must_use]
    pub fn with_retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// With this time limit.
    #[must_use]
    pub fn with_timeout(mut self, policy: TimeoutPolicy) -> Self {
        self.timeout = Some(policy);
        self
    }

    /// Wraps a store.
    ///
    /// # Errors
    /// `Config` for a policy that is not valid.
    pub fn around_store(&self, store: impl PriceStore) -> Result<Arc<dyn PriceStore>> {
        let mut store: Arc<dyn PriceStore> = Arc::new(store);
        if let Some(policy) = self.timeout {
            store = Arc::new(Layered::new(store, Timeout::new(policy)?));
        }
        if let Some(policy) = self.retry {
            store = Arc::new(Layered::new(store, Retry::new(policy)?));
        }
        Ok(store)
    }

    /// Wraps a bus.
    ///
    /// # Errors
    /// `Config` for a policy that is not valid or does not fit the bus.
    pub fn around_bus(&self, bus: impl MessageBus) -> Result<Arc<dyn MessageBus>> {
        let mut bus: Arc<dyn MessageBus> = Arc::new(bus);
        if let Some(policy) = self.timeout {
            bus = Arc::new(Layered::around_bus(bus, Timeout::new(policy)?)?);
        }
        if let Some(policy) = self.retry {
            bus = Arc::new(Layered::around_bus(bus, Retry::new(policy)?)?);
        }
        Ok(bus)
    }
}
