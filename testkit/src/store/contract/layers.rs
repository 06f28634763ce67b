//! The wrappings that core and testkit put around a store: each passes the whole contract.

use std::sync::Arc;
use std::time::Duration;

use qi_core::layer::{
    CircuitBreaker, CircuitBreakerPolicy, Layered, Limit, LimitPolicy, Metered, Retry, RetryPolicy, Timeout,
    TimeoutPolicy, Traced, Wrappers,
};
use qi_core::store::PriceStore;
use qi_core::{Backoff, Result};

use super::Wrapping;
use crate::chaos::{Chaos, ChaosStore, Fault, Rule};
use crate::recording::{Recording, RecordingStore};

impl Wrapping {
    /// `Retry` alone.
    pub const RETRY: Self = Self {
        name: "retry",
        wrap: |store| Arc::new(Layered::new(store, valid(Retry::new(RetryPolicy::default())))),
    };
    /// `Timeout` alone.
    pub const TIMEOUT: Self = Self {
        name: "timeout",
        wrap: |store| Arc::new(Layered::new(store, valid(Timeout::new(TimeoutPolicy::default())))),
    };
    /// `Limit` alone.
    pub const LIMIT: Self = Self {
        name: "limit",
        wrap: |store| Arc::new(Layered::new(store, valid(Limit::new(LimitPolicy::default())))),
    };
    /// `CircuitBreaker` alone.
    pub const CIRCUIT_BREAKER: Self = Self {
        name: "circuit_breaker",
        wrap: |store| {
            Arc::new(Layered::new(store, valid(CircuitBreaker::new(CircuitBreakerPolicy::default()))))
        },
    };
    /// `Metered` alone.
    pub const METERED: Self =
        Self { name: "metered", wrap: |store| Arc::new(Layered::new(store, Metered::new("contract"))) };
    /// `Traced` alone.
    pub const TRACED: Self =
        Self { name: "traced", wrap: |store| Arc::new(Layered::new(store, Traced::new("contract"))) };
    /// All of core's wrappers in their order.
    pub const FULL_STACK: Self =
        Self { name: "full_stack", wrap: |store| valid(Wrappers::default().around_store(store)) };
    /// `Recording`, which remembers and changes nothing.
    pub const RECORDING: Self =
        Self { name: "recording", wrap: |store| Arc::new(RecordingStore::new(store, Recording::new(1_000))) };
    /// All of core's wrappers over a store of whose calls a third fails and a tenth is late: nothing of it may be
    /// seen from outside.
    pub const FULL_STACK_OVER_CHAOS: Self = Self { name: "full_stack_over_chaos", wrap: over_chaos };

    /// Every wrapping: the pointers, each wrapper alone, and the stacks.
    pub fn every() -> Vec<Self> {
        let mut all = Self::all();
        all.extend([
            Self::RETRY,
            Self::TIMEOUT,
            Self::LIMIT,
            Self::CIRCUIT_BREAKER,
            Self::METERED,
            Self::TRACED,
            Self::FULL_STACK,
            Self::RECORDING,
            Self::FULL_STACK_OVER_CHAOS,
        ]);
        all
    }
}

fn over_chaos(store: Arc<dyn PriceStore>) -> Arc<dyn PriceStore> {
    let faults = [Fault::Error, Fault::Error, Fault::Error, Fault::Delay];
    let chaos = Chaos::seeded(7).everywhere(Rule::new(0.4, faults)).with_delay(Duration::from_millis(1));
    let retry =
        RetryPolicy::default().with_attempts(30).with_backoff(Backoff::new(Duration::ZERO, Duration::ZERO));
    // Only a backend that is away fails so often in a row.
    let breaker = CircuitBreakerPolicy::default().with_failures(100);
    let wrappers = Wrappers::default().with_retry(retry).with_circuit_breaker(breaker);
    valid(wrappers.around_store(ChaosStore::new(store, chaos)))
}

fn valid<T>(built: Result<T>) -> T {
    built.expect("the policies of the suite are valid")
}
