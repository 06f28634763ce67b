//! The layers of core and testkit as wrappers. Each passes the complete contract.

use std::sync::Arc;
use std::time::Duration;

use qi_core::layer::{
    CircuitBreaker, CircuitBreakerConfig, LayerStack, Layered, Limit, LimitConfig, Metered, Retry,
    RetryConfig, Timeout, TimeoutConfig, Traced,
};
use qi_core::store::PriceStore;
use qi_core::{Backoff, Operation};

use super::Wrapper;
use crate::chaos::{Chaos, ChaosStore, Fault, Rule};
use crate::recording::{Recording, RecordingStore};

impl Wrapper {
    /// `Retry` alone.
    pub const RETRY: Self =
        Self { name: "retry", wrap: |store| Arc::new(Retry::new(store, RetryConfig::default())) };
    /// `Timeout` alone.
    pub const TIMEOUT: Self = Self {
        name: "timeout",
        wrap: |store| Arc::new(Layered::new(store, Timeout::new(TimeoutConfig::default()))),
    };
    /// `Limit` alone.
    pub const LIMIT: Self = Self {
        name: "limit",
        wrap: |store| Arc::new(Layered::new(store, Limit::new(LimitConfig::default()))),
    };
    /// `CircuitBreaker` alone.
    pub const CIRCUIT_BREAKER: Self = Self {
        name: "circuit_breaker",
        wrap: |store| Arc::new(Layered::new(store, CircuitBreaker::new(CircuitBreakerConfig::default()))),
    };
    /// `Metered` alone.
    pub const METERED: Self =
        Self { name: "metered", wrap: |store| Arc::new(Layered::new(store, Metered::new("contract"))) };
    /// `Traced` alone.
    pub const TRACED: Self =
        Self { name: "traced", wrap: |store| Arc::new(Layered::new(store, Traced::new("contract"))) };
    /// All layers of core in their order.
    pub const FULL_STACK: Self =
        Self { name: "full_stack", wrap: |store| LayerStack::default().wrap_store(store) };
    /// `Recording`, which changes nothing.
    pub const RECORDING: Self =
        Self { name: "recording", wrap: |store| Arc::new(RecordingStore::new(store, Recording::new(1_000))) };
    /// All layers of core over a store with faults in a third of its calls: the call fails, hangs, or is executed and
    /// loses its response. The faults must not be visible from outside. Writes are by key, so a repeated write has no
    /// further effect. The response of `ensure_schema` is never lost, because it reports the result of that call.
    pub const FULL_STACK_OVER_CHAOS: Self = Self { name: "full_stack_over_chaos", wrap: over_chaos };

    /// Returns all wrappers: the pointers, each layer alone, and the stacks.
    pub fn every() -> Vec<Self> {
        let mut all = Self::pointers();
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
    // The time limit suits the slowest call of the suite, an insert into hundreds of partitions of a busy server. Each
    // hang takes this time, so hangs are rare.
    let (limit, one_hang_in) = if store.info().backend == "memory" { (300, 20) } else { (10_000, 200) };
    let errors_and_cuts = [Fault::Error, Fault::LostResponse].into_iter().cycle().take(one_hang_in - 1);
    let third = |faults: Vec<Fault>| Rule::new(1.0 / 3.0, faults);
    let chaos = Chaos::seeded(7)
        .everywhere(third(errors_and_cuts.chain([Fault::Hang]).collect()))
        .on(Operation::EnsureSchema, third(vec![Fault::Error]))
        .on(Operation::DeleteRange, third(vec![Fault::Error, Fault::LostResponse]))
        .on(Operation::PurgeBefore, third(vec![Fault::Error, Fault::LostResponse]));
    let retry = RetryConfig::default()
        .with_max_attempts(20)
        .with_backoff(Backoff::new(Duration::ZERO, Duration::ZERO));
    let stack = LayerStack::default()
        .with_retry(retry.with_max_elapsed(Duration::from_mins(5)))
        // Only an unavailable backend fails this often in a row.
        .with_circuit_breaker(CircuitBreakerConfig::default().with_failure_threshold(100))
        .with_timeout(TimeoutConfig::default().with_call(Duration::from_millis(limit)));
    stack.wrap_store(ChaosStore::new(store, chaos))
}
