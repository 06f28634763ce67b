//! Every metric of this crate in one table, with unit and labels.
//!
//! The metrics use the facade of the `metrics` crate, so the program chooses the exporter. Without an exporter, a
//! metric costs next to nothing. Labels have few values, such as the port, the backend's name, the operation, the
//! dataset, the kind of an error, the agent's name, or the original topic of a dead letter. Instruments and messages
//! are never labels.
//!
//! [`guide::observability`](crate::guide::observability) shows the table with advice. A test keeps this table, the page, the
//! dashboard and the alerts consistent.
//!
//! ```
//! use qi_core::telemetry::{self, METRICS};
//!
//! // After the installation of the exporter, so that the exporter receives the descriptions.
//! telemetry::describe();
//! assert!(METRICS.iter().all(|metric| metric.name.starts_with("qi_")));
//! ```

#[doc(no_inline)]
pub use metrics::Unit;

/// The description of one metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metric {
    /// The metric's name, with the unit as suffix, as in Prometheus.
    pub name: &'static str,
    /// The type of the metric.
    pub kind: MetricKind,
    /// The unit of the values.
    pub unit: Unit,
    /// The names of the labels.
    pub labels: &'static [&'static str],
    /// The help text for the exporter.
    pub help: &'static str,
}

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricKind {
    /// A value that only rises.
    Counter,
    /// A value that rises and falls.
    Gauge,
    /// A distribution of values, in buckets or quantiles as the exporter chooses.
    Histogram,
}

impl MetricKind {
    /// Returns the type's name in the table: `counter`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

macro_rules! metrics_table {
    ($($name:ident: $kind:ident $text:literal in $unit:ident by [$($label:literal),*], $help:literal;)*) => {
        $(
            pub(crate) const $name: Metric = Metric {
                name: $text,
                kind: MetricKind::$kind,
                unit: Unit::$unit,
                labels: &[$($label),*],
                help: $help,
            };
        )*

        /// Every metric of this crate.
        pub const METRICS: &[Metric] = &[$($name),*];
    };
}

metrics_table! {
    CALLS: Counter "qi_calls_total" in Count by ["port", "backend", "operation", "dataset"],
        "Completed calls, with or without success.";
    CALL_ERRORS: Counter "qi_call_errors_total" in Count by ["port", "backend", "operation", "dataset", "kind"],
        "Calls that returned an error to the caller, after all attempts.";
    CALLS_DROPPED: Counter "qi_calls_dropped_total" in Count by ["port", "backend", "operation", "dataset"],
        "Calls whose future was dropped before the result.";
    CALLS_IN_FLIGHT: Gauge "qi_calls_in_flight" in Count by ["port", "backend"],
        "Calls in progress.";
    CALL_DURATION: Histogram "qi_call_duration_seconds" in Seconds by ["port", "backend", "operation", "dataset"],
        "Duration of calls, including all attempts and delays, and the wait of recv.";
    BATCH_RECORDS: Histogram "qi_batch_records" in Count by ["port", "backend", "operation", "dataset"],
        "Records or messages in a batch of insert, publish or recv; without empty batches of recv.";
    MESSAGES_DELIVERED: Counter "qi_messages_delivered_total" in Count by ["backend"],
        "Messages that the bus acknowledged.";
    MESSAGES_FAILED: Counter "qi_messages_failed_total" in Count by ["backend", "state", "kind"],
        "Messages without an acknowledgement, by state: not_sent or unknown.";
    MESSAGES_RECEIVED: Counter "qi_messages_received_total" in Count by ["backend"],
        "Messages that recv returned.";
    DEAD_LETTERS: Counter "qi_bus_dead_letters_total" in Count by ["topic", "code"],
        "Dead letters that the bus acknowledged, by the topic of the origin and the code of the error.";
    DEAD_LETTERS_DROPPED: Counter "qi_bus_dead_letters_dropped_total" in Count by ["topic", "code"],
        "Rejected messages without a dead letter, because the topic rejects the smallest dead letter as too large.";
    INGEST_RECORDS: Counter "qi_ingest_records_total" in Count by ["dataset"],
        "Records that an ingest stored.";
    INGEST_BYTES: Counter "qi_ingest_bytes_total" in Bytes by ["dataset"],
        "Estimated memory of the messages whose records an ingest stored.";
    INGEST_BATCH: Histogram "qi_ingest_batch_records" in Count by ["dataset"],
        "Records of an insert.";
    INGEST_DELAY: Histogram "qi_ingest_delay_seconds" in Seconds by ["dataset"],
        "Time from the timestamp of a batch's oldest message until the batch is stored.";
    INGEST_STAGE: Histogram "qi_ingest_stage_duration_seconds" in Seconds by ["dataset", "stage"],
        "Time of a stage for a batch, with retries: decode, store, dead_letters, commit.";
    INGEST_RETRIES: Counter "qi_ingest_retries_total" in Count by ["dataset", "stage", "kind"],
        "Failed calls that an ingest repeats: receive, store, dead_letters, commit.";
    MAINTENANCE_WATERMARK: Gauge "qi_maintenance_watermark_timestamp_seconds" in Seconds by ["backend"],
        "Watermark of the materialized bars as Unix time. NaN if the store materializes no bars.";
    MAINTENANCE_STALE: Gauge "qi_maintenance_stale_marks" in Count by ["backend"],
        "Stale marks after the last call of maintain.";
    MAINTENANCE_REBUILT: Counter "qi_maintenance_rebuilt_marks_total" in Count by ["backend"],
        "Stale marks that were removed by a rebuild of their hours.";
    MAINTENANCE_TICKS: Counter "qi_maintenance_ticks_total" in Count by ["backend"],
        "Ticks from which new hours were materialized.";
    MAINTENANCE_DURATION: Histogram "qi_maintenance_duration_seconds" in Seconds by ["backend"],
        "Duration of the calls of maintain, also of failed calls.";
    RETRIES: Counter "qi_retries_total" in Count by ["port", "backend", "operation", "kind"],
        "Attempts after the first, by the error of the previous attempt.";
    CIRCUIT_STATE: Gauge "qi_circuit_state" in Count by ["port", "backend"],
        "State of the circuit breaker: 0 closed, 1 half-open, 2 open.";
    CIRCUIT_OPENED: Counter "qi_circuit_opened_total" in Count by ["port", "backend"],
        "Times that the circuit breaker opened.";
    CIRCUIT_REJECTED: Counter "qi_circuit_rejected_total" in Count by ["port", "backend"],
        "Attempts that the circuit breaker rejected.";
    LIMIT_QUEUED: Gauge "qi_limit_queued" in Count by ["port", "backend"],
        "Calls in the queue of the limiter.";
    LIMIT_REJECTED: Counter "qi_limit_rejected_total" in Count by ["port", "backend"],
        "Calls that were rejected because the queue of the limiter was full.";
    AGENT_TRANSITIONS: Counter "qi_agent_transitions_total" in Count by ["agent", "status"],
        "Status changes, by new status.";
    AGENT_RESTARTS: Counter "qi_agent_restarts_total" in Count by ["agent"],
        "Incarnations after the first.";
    AGENT_ERRORS: Counter "qi_agent_errors_total" in Count by ["agent", "phase", "kind"],
        "Errors of an agent, including panics and timeouts.";
    AGENT_PANICS: Counter "qi_agent_panics_total" in Count by ["agent", "phase"],
        "Panics of hooks and children.";
    AGENT_FORCED: Counter "qi_agent_forced_stops_total" in Count by ["agent", "phase"],
        "Hooks that were dropped at the stop timeout, the cleanup timeout or the soft deadline.";
    AGENT_PHASE: Histogram "qi_agent_phase_duration_seconds" in Seconds by ["agent", "phase"],
        "Duration of initialize, run and cleanup; cleanup includes the end of the children.";
    AGENT_BACKOFF: Histogram "qi_agent_backoff_seconds" in Seconds by ["agent"],
        "Delays before restarts.";
    AGENT_UP: Gauge "qi_agent_up" in Count by ["agent"],
        "1 while the agent is running, else 0.";
    AGENT_HEARTBEAT_AGE: Gauge "qi_agent_heartbeat_age_seconds" in Seconds by ["agent"],
        "Time since the last heartbeat of a running agent; 0 for an agent without a watchdog and heartbeats.";
    RUNTIME_SHUTDOWN: Histogram "qi_runtime_shutdown_seconds" in Seconds by [],
        "Duration of the shutdown of a runtime.";
    RUNTIME_LEAKED: Counter "qi_runtime_leaked_agents_total" in Count by [],
        "Agents that had not ended by the deadline.";
}

/// Registers the description of each metric with the exporter. Call it once, after the exporter is installed.
pub fn describe() {
    for Metric { name, kind, unit, labels: _, help } in METRICS {
        match kind {
            MetricKind::Counter => metrics::describe_counter!(*name, *unit, *help),
            MetricKind::Gauge => metrics::describe_gauge!(*name, *unit, *help),
            MetricKind::Histogram => metrics::describe_histogram!(*name, *unit, *help),
        }
    }
}
