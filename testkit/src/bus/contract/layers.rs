//! The wrappings that core and testkit put around a bus: each passes the whole contract.

use std::sync::Arc;
use std::time::Duration;

use qi_core::bus::MessageBus;
use qi_core::layer::{Layered, Retry, RetryPolicy, Timeout, TimeoutPolicy, Wrappers};
use qi_core::{Backoff, Operation, Result};

use super::Wrapping;
use crate::chaos::{Chaos, ChaosBus, Fault, Rule};
use crate::recording::{Recording, RecordingBus};

impl Wrapping {
    /// `Retry` alone.
    pub const RETRY: Self = Self {
        name: "retry",
        wrap: |bus| Arc::new(valid(Layered::around_bus(bus, valid(Retry::new(RetryPolicy::default()))))),
    };
    /// `Timeout` alone.
    pub const TIMEOUT: Self = Self {
        name: "timeout",
        wrap: |bus| Arc::new(valid(Layered::around_bus(bus, valid(Timeout::new(TimeoutPolicy::default()))))),
    };
    /// All of core's wrappers in their order.
    pub const FULL_STACK: Self =
        Self { name: "full_stack", wrap: |bus| valid(Wrappers::default().around_bus(bus)) };
    /// `Recording`, which remembers and changes nothing.
    pub const RECORDING: Self =
        Self { name: "recording", wrap: |bus| Arc::new(RecordingBus::new(bus, Recording::new(1_000))) };
    /// All of core's wrappers over a bus of whose calls a third fails: nothing of it may be seen from outside. A
    /// `recv` is spared, because the loop around it is its retry.
    pub const FULL_STACK_OVER_CHAOS: Self = Self { name: "full_stack_over_chaos", wrap: over_chaos };

    /// Every wrapping: the pointers, each wrapper alone, and the stacks.
    pub fn every() -> Vec<Self> {
        let mut all = Self::BASIC.to_vec();
        all.extend([
            Self::RETRY,
            Self::TIMEOUT,
            Self::FULL_STACK,
            Self::RECORDING,
            Self::FULL_STACK_OVER_CHAOS,
        ]);
        all
    }
}

fn over_chaos(bus: Arc<dyn MessageBus>) -> Arc<dyn MessageBus> {
    let chaos =
        Chaos::seeded(7).everywhere(Rule::new(1.0 / 3.0, [Fault::Error])).on(Operation::Recv, Rule::never());
    let retry =
        RetryPolicy::default().with_attempts(30).with_backoff(Backoff::new(Duration::ZERO, Duration::ZERO));
    valid(Wrappers::default().with_retry(retry).around_bus(ChaosBus::new(bus, chaos)))
}

fn valid<T>(built: Result<T>) -> T {
    built.expect("the policies of the suite are valid")
}
