//! The wrappings that core and testkit put around a bus: each passes the whole contract.

use std::sync::Arc;
use std::time::Duration;

use qi_core::bus::{HeaderName, Headers, MessageBus};
use qi_core::layer::{
    CircuitBreaker, CircuitBreakerPolicy, Intercept, Layered, Limit, LimitPolicy, Metered, Propagator, Retry,
    RetryPolicy, Timeout, TimeoutPolicy, Traced, Wrappers,
};
use qi_core::{Backoff, Operation, Result};

use super::Wrapping;
use crate::chaos::{Chaos, ChaosBus, Fault, Rule};
use crate::recording::{Recording, RecordingBus};

impl Wrapping {
    /// `Retry` alone.
    pub const RETRY: Self =
        Self { name: "retry", wrap: |bus| around(bus, valid(Retry::new(RetryPolicy::default()))) };
    /// `Timeout` alone.
    pub const TIMEOUT: Self =
        Self { name: "timeout", wrap: |bus| around(bus, valid(Timeout::new(TimeoutPolicy::default()))) };
    /// `Limit` alone.
    pub const LIMIT: Self =
        Self { name: "limit", wrap: |bus| around(bus, valid(Limit::new(LimitPolicy::default()))) };
    /// `CircuitBreaker` alone.
    pub const CIRCUIT_BREAKER: Self = Self {
        name: "circuit_breaker",
        wrap: |bus| around(bus, valid(CircuitBreaker::new(CircuitBreakerPolicy::default()))),
    };
    /// `Metered` alone.
    pub const METERED: Self = Self { name: "metered", wrap: |bus| around(bus, Metered::new("contract")) };
    /// `Traced` alone, with a header in every message that nobody may see.
    pub const TRACED: Self = Self {
        name: "traced",
        wrap: |bus| around(bus, Traced::new("contract").with_propagator(Arc::new(Stamp::new()))),
    };
    /// All of core's wrappers in their order.
    pub const FULL_STACK: Self =
        Self { name: "full_stack", wrap: |bus| valid(Wrappers::default().around_bus(bus)) };
    /// `Recording`, which remembers and changes nothing.
    pub const RECORDING: Self =
        Self { name: "recording", wrap: |bus| Arc::new(RecordingBus::new(bus, Recording::new(1_000))) };
    /// All of core's wrappers over a bus of whose calls a third goes wrong: it fails, it hangs, or it is done and its
    /// answer gets lost. Nothing of that may be seen from outside. Spared are `recv`, because the loop around it is
    /// its retry, and losing an answer that says what that very call did: of topics that are created or deleted, and
    /// of messages, whose doubles are another test's business.
    pub const FULL_STACK_OVER_CHAOS: Self = Self { name: "full_stack_over_chaos", wrap: over_chaos };

    /// Every wrapping: the pointers, each wrapper alone, and the stacks.
    pub fn every() -> Vec<Self> {
        let mut all = Self::BASIC.to_vec();
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

fn over_chaos(bus: Arc<dyn MessageBus>) -> Arc<dyn MessageBus> {
    let third = |faults: &[Fault]| Rule::new(1.0 / 3.0, faults.iter().copied());
    // On paused time a hang costs nothing. On real time it costs a limit that is long enough for brokers, and a member
    // whose answer got lost holds up the others of its group until its session passes.
    let paused = bus.info().backend == "memory";
    let limit = Duration::from_millis(if paused { 50 } else { 10_000 });
    let mut faults = vec![Fault::Error, Fault::Cut];
    faults = faults.repeat(if paused { 1 } else { 30 });
    faults.push(Fault::Hang);
    let chaos = Chaos::seeded(7)
        .everywhere(third(&faults))
        .on(Operation::Subscribe, third(if paused { &faults } else { &[Fault::Error] }))
        .on(Operation::Publish, third(&[Fault::Error]))
        .on(Operation::CreateTopics, third(&[Fault::Error]))
        .on(Operation::DeleteTopics, third(&[Fault::Error]))
        .on(Operation::Recv, Rule::never());
    let retry =
        RetryPolicy::default().with_attempts(20).with_backoff(Backoff::new(Duration::ZERO, Duration::ZERO));
    let wrappers = Wrappers::default()
        .with_retry(retry)
        // Only a backend that is away fails so often in a row.
        .with_circuit_breaker(CircuitBreakerPolicy::default().with_failures(100))
        .with_timeout(TimeoutPolicy::default().with_limit(limit));
    valid(wrappers.around_bus(ChaosBus::new(bus, chaos)))
}

fn around(bus: Arc<dyn MessageBus>, layer: impl Intercept) -> Arc<dyn MessageBus> {
    Arc::new(valid(Layered::around_bus(bus, layer)))
}

/// Stamps every message with the same context.
#[derive(Debug)]
struct Stamp([HeaderName; 1]);

impl Stamp {
    fn new() -> Self {
        Self([valid(HeaderName::new("traceparent"))])
    }
}

impl Propagator for Stamp {
    fn headers(&self) -> &[HeaderName] {
        &self.0
    }

    fn inject(&self, _span: &tracing::Span, headers: &mut Headers) {
        headers.push(self.0[0].clone(), bytes::Bytes::from_static(b"00-1-2-01"));
    }

    fn extract(&self, _span: &tracing::Span, contexts: &[Headers]) {
        assert_eq!(contexts.len(), 1, "each message has the same stamp");
    }
}

fn valid<T>(built: Result<T>) -> T {
    built.expect("the policies of the suite are valid")
}
