//! The layers of core and testkit as wrappers. Each passes the complete contract.

use std::sync::Arc;
use std::time::Duration;

use qi_core::bus::{HeaderName, Headers, MessageBus};
use qi_core::layer::{
    CircuitBreaker, CircuitBreakerConfig, Layer, LayerStack, Layered, Limit, LimitConfig, Metered,
    Propagator, Retry, RetryConfig, Timeout, TimeoutConfig, Traced,
};
use qi_core::{Backoff, Operation, Result};

use super::Wrapper;
use super::resend::Resend;
use crate::chaos::{Chaos, ChaosBus, Fault, Rule};
use crate::recording::{Recording, RecordingBus};

impl Wrapper {
    /// `Retry` alone.
    pub const RETRY: Self =
        Self { name: "retry", wrap: |bus| Arc::new(Retry::new(bus, RetryConfig::default())) };
    /// `Timeout` alone.
    pub const TIMEOUT: Self =
        Self { name: "timeout", wrap: |bus| layered(bus, Timeout::new(TimeoutConfig::default())) };
    /// `Limit` alone.
    pub const LIMIT: Self =
        Self { name: "limit", wrap: |bus| layered(bus, Limit::new(LimitConfig::default())) };
    /// `CircuitBreaker` alone.
    pub const CIRCUIT_BREAKER: Self = Self {
        name: "circuit_breaker",
        wrap: |bus| layered(bus, CircuitBreaker::new(CircuitBreakerConfig::default())),
    };
    /// `Metered` alone.
    pub const METERED: Self = Self { name: "metered", wrap: |bus| layered(bus, Metered::new("contract")) };
    /// `Traced` alone. It adds a header to every message, which readers must not see.
    pub const TRACED: Self = Self {
        name: "traced",
        wrap: |bus| layered(bus, Traced::new("contract").with_propagator(Arc::new(Stamp::new()))),
    };
    /// All layers of core in their order.
    pub const FULL_STACK: Self = Self { name: "full_stack", wrap: |bus| LayerStack::default().wrap_bus(bus) };
    /// `Recording`, which changes nothing.
    pub const RECORDING: Self =
        Self { name: "recording", wrap: |bus| Arc::new(RecordingBus::new(bus, Recording::new(1_000))) };
    /// All layers of core over a bus with faults in a third of its calls: the call fails, hangs, or is executed and
    /// loses its response. The faults must not be visible from outside.
    ///
    /// Some operations are exempt. `recv` has no faults, because its caller retries in a loop. Responses of topic
    /// creation and deletion are not lost, because they report the result of that call. Responses of publish are not
    /// lost either, because the next two wrappers cover duplicate messages.
    pub const FULL_STACK_OVER_CHAOS: Self =
        Self { name: "full_stack_over_chaos", wrap: |bus| with_chaos(bus, &[Fault::Error]) };
    /// Like [`Wrapper::FULL_STACK_OVER_CHAOS`], with lost responses of publish in addition. Messages in an unknown
    /// state are sent again, as a caller must do. The resulting duplicates are counted and hidden.
    pub const FULL_STACK_OVER_LOST_RESPONSES: Self = Self {
        name: "full_stack_over_lost_responses",
        wrap: |bus| with_resend(with_chaos(bus, &[Fault::Error, Fault::LostResponse])),
    };
    /// Like [`Wrapper::FULL_STACK_OVER_CHAOS`], with hangs of publish in addition. The time limit makes the state of
    /// all messages unknown. For paused time, because each hang takes twice the delivery timeout.
    pub const FULL_STACK_OVER_HANGS: Self = Self {
        name: "full_stack_over_hangs",
        wrap: |bus| with_resend(with_chaos(bus, &[Fault::Error, Fault::Hang])),
    };

    /// Returns the reason if a check does not apply to this wrapper. Such a check examines the outcome of single
    /// calls, which lost responses and hangs change without a fault of the bus.
    pub(super) fn skip_reason(&self, check: &str) -> Option<&'static str> {
        let (checks, reason) = match self.name {
            "full_stack_over_lost_responses" => {
                (CHECKS_OF_OFFSETS, "the check examines offsets in the log, and duplicates change them")
            }
            "full_stack_over_hangs" => (CHECKS_OF_DURATIONS, "the check measures the duration of a publish"),
            _ => return None,
        };
        checks.contains(&check).then_some(reason)
    }

    /// Returns all wrappers: the pointers, each layer alone, and the stacks.
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
            Self::FULL_STACK_OVER_LOST_RESPONSES,
            Self::FULL_STACK_OVER_HANGS,
        ]);
        all
    }
}

/// Checks of offsets, delivery times, positions, watermarks, lag, and the capacity of a bounded log.
const CHECKS_OF_OFFSETS: &[&str] = &[
    "publish::reported_offsets_match_the_log",
    "publish::timestamps_are_truncated_to_milliseconds",
    "publish::small_send_buffer_loses_no_message",
    "publish::full_log_makes_publish_wait",
    "subscribe::offset_reset_by_time_starts_at_that_time",
    "subscribe::recv_respects_max",
    "subscribe::reader_without_group_reads_and_seeks",
    "subscribe::other_topics_continue_after_a_deletion",
    "positions::rejected_commit_stores_no_offset",
    "positions::position_and_lag_follow_each_call",
    "positions::pause_stops_only_the_paused_partition",
    "positions::deleted_position_is_reset_and_reported",
    "positions::reader_without_group_reports_a_deleted_position",
    "positions::deleted_commit_is_reset_to_earliest",
    "positions::retention_removes_old_messages",
    "rebalance::third_member_joins_and_leaves_under_load",
    "admin::topics_have_watermarks_and_settings",
    "admin::groups_report_commits_and_lag",
    "admin::lag_is_limited_to_the_selected_topics",
    "faults::recv_reports_an_outage_and_continues",
];

/// Checks that publish often or measure time. A hang takes 20 s.
const CHECKS_OF_DURATIONS: &[&str] = &[
    "publish::messages_without_key_reach_all_partitions",
    "publish::unknown_topic_fails_immediately",
    "publish::hundred_thousand_messages_are_delivered_once",
    "subscribe::dropped_recv_loses_no_message",
    "positions::deleted_position_is_reset_and_reported",
    "lifecycle::close_waits_for_pending_publishes",
];

fn with_resend(bus: Arc<dyn MessageBus>) -> Arc<dyn MessageBus> {
    Arc::new(Layered::new(bus, valid(Resend::new())))
}

fn with_chaos(bus: Arc<dyn MessageBus>, on_publish: &[Fault]) -> Arc<dyn MessageBus> {
    let third = |faults: &[Fault]| Rule::new(1.0 / 3.0, faults.iter().copied());
    // On paused time a hang costs nothing. On real time a hang costs a time limit that suits brokers. A member whose
    // response was lost also delays its group until its session passes. `subscribe` does not hang, because its
    // limit is the one of bulk calls.
    let paused = bus.info().backend == "memory";
    let limit = Duration::from_millis(if paused { 50 } else { 10_000 });
    let mut faults = vec![Fault::Error, Fault::LostResponse];
    faults = faults.repeat(if paused { 1 } else { 30 });
    faults.push(Fault::Hang);
    let chaos = Chaos::seeded(7)
        .everywhere(third(&faults))
        .on(Operation::Subscribe, third(&[Fault::Error, Fault::LostResponse][..if paused { 2 } else { 1 }]))
        .on(Operation::Publish, third(on_publish))
        .on(Operation::CreateTopics, third(&[Fault::Error]))
        .on(Operation::DeleteTopics, third(&[Fault::Error]))
        .on(Operation::Recv, Rule::never());
    let retry = RetryConfig::default()
        .with_max_attempts(20)
        .with_backoff(Backoff::new(Duration::ZERO, Duration::ZERO));
    let stack = LayerStack::default()
        .with_retry(retry)
        // Only an unavailable backend fails this often in a row.
        .with_circuit_breaker(CircuitBreakerConfig::default().with_failure_threshold(100))
        .with_timeout(TimeoutConfig::default().with_call(limit));
    stack.wrap_bus(ChaosBus::new(bus, chaos))
}

fn layered(bus: Arc<dyn MessageBus>, layer: impl Layer) -> Arc<dyn MessageBus> {
    Arc::new(Layered::new(bus, layer))
}

/// A propagator that adds the same context to every message.
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
        assert_eq!(contexts.len(), 1, "every message has the same trace context");
    }
}

fn valid<T>(built: Result<T>) -> T {
    built.expect("the header names of the suite are valid")
}
