//! `CircuitBreaker`: rejects calls while the backend does not respond.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use super::limit::QUEUE_FULL;
use super::{Call, Layer, UNKNOWN_BACKEND};
use crate::bus::{DeliveryError, Message, MessageBus, PublishOptions, PublishReport};
use crate::deadline::later;
use crate::telemetry::{CIRCUIT_OPENED, CIRCUIT_REJECTED, CIRCUIT_STATE};
use crate::{Error, ErrorKind, Operation, Port, Result, RetryAdvice};

/// The settings of [`CircuitBreaker`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CircuitBreakerConfig {
    /// The number of consecutive failures that opens the circuit. 0 counts as 1. Defaults to 10.
    pub failure_threshold: u32,
    /// The time until an open circuit admits a probe. Defaults to 2 s.
    ///
    /// A value below [`CircuitBreakerConfig::MIN_OPEN_DURATION`] or above [`CircuitBreakerConfig::MAX_OPEN_DURATION`]
    /// counts as the nearest bound.
    pub open_duration: Duration,
}

impl Default for CircuitBreakerConfig {
    fn default() -> Self {
        Self { failure_threshold: 10, open_duration: Duration::from_secs(2) }
    }
}

impl CircuitBreakerConfig {
    /// The shortest open duration: 1 ms.
    pub const MIN_OPEN_DURATION: Duration = Duration::from_millis(1);
    /// The longest open duration: 5 s. It bounds the time until the breaker notices a recovered backend.
    pub const MAX_OPEN_DURATION: Duration = Duration::from_secs(5);

    /// Sets the number of consecutive failures that opens the circuit.
    #[must_use]
    pub fn with_failure_threshold(mut self, failures: u32) -> Self {
        self.failure_threshold = failures;
        self
    }

    /// Sets the time until an open circuit admits a probe.
    #[must_use]
    pub fn with_open_duration(mut self, open_duration: Duration) -> Self {
        self.open_duration = open_duration;
        self
    }
}

/// The state of a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CircuitState {
    /// Every call is admitted.
    Closed,
    /// One call is admitted as a probe. Its result closes or opens the circuit.
    HalfOpen,
    /// Every call is rejected.
    Open,
}

/// A layer that rejects calls for a while after too many consecutive failures, then admits a probe.
///
/// A failure is a retryable error of kind `Unavailable`, `Timeout` or `Overloaded`, except the full queue of
/// [`super::Limit`]. A success resets the count. Other errors, such as an invalid query or a conflict, leave the count
/// unchanged. A publish is a success if at least one message was delivered.
///
/// A rejected call is `Unavailable` with the code `layer.circuit_breaker.open` and the advice `After` the rest of
/// `open_duration`. During a probe, other calls are rejected with the advice `Backoff`. If a probe hangs, another probe
/// is admitted after `open_duration`. `recv` and `close` are always admitted and never counted.
#[derive(Debug)]
pub struct CircuitBreaker {
    threshold: u32,
    open_duration: Duration,
    circuit: Mutex<Circuit>,
    port: Port,
    backend: &'static str,
}

#[derive(Debug)]
struct Circuit {
    state: State,
    /// The number of state changes. The result of a call that began in an earlier generation is ignored.
    generation: u64,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed { failures: u32 },
    HalfOpen { next_probe: Instant },
    Open { until: Instant },
}

impl CircuitBreaker {
    /// Creates the layer with a closed circuit.
    pub fn new(config: CircuitBreakerConfig) -> Self {
        let CircuitBreakerConfig { failure_threshold, open_duration } = config;
        let (min, max) = (CircuitBreakerConfig::MIN_OPEN_DURATION, CircuitBreakerConfig::MAX_OPEN_DURATION);
        Self {
            threshold: failure_threshold.max(1),
            open_duration: open_duration.clamp(min, max),
            circuit: Mutex::new(Circuit { state: State::Closed { failures: 0 }, generation: 0 }),
            port: Port::Store,
            backend: UNKNOWN_BACKEND,
        }
    }

    /// Sets the port and the backend's name for errors, logs and metrics.
    #[must_use]
    pub fn for_backend(mut self, port: Port, backend: &'static str) -> Self {
        (self.port, self.backend) = (port, backend);
        self
    }

    /// Returns the settings that apply: the threshold is at least 1, and the open duration is within its bounds.
    pub fn config(&self) -> CircuitBreakerConfig {
        CircuitBreakerConfig { failure_threshold: self.threshold, open_duration: self.open_duration }
    }

    /// Returns the state of the circuit.
    pub fn state(&self) -> CircuitState {
        match self.circuit().state {
            State::Closed { .. } => CircuitState::Closed,
            State::HalfOpen { .. } => CircuitState::HalfOpen,
            State::Open { .. } => CircuitState::Open,
        }
    }

    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        // No code panics between two related changes, so the circuit is valid even if the lock is poisoned.
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a call, or rejects it with the time of the next attempt.
    fn admit(&self, operation: Operation) -> Result<Admission<'_>> {
        let mut circuit = self.circuit();
        let advice = match circuit.state {
            State::Closed { .. } => return Ok(Admission::new(self, &circuit)),
            State::Open { until } => match until.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => RetryAdvice::After(left),
                _ => {
                    let next_probe = later(self.open_duration);
                    self.change(&mut circuit, State::HalfOpen { next_probe });
                    return Ok(Admission::new(self, &circuit));
                }
            },
            // The probe may hang, run for minutes (a purge), or have a caller that does not poll it. Another probe
            // joins it in the same generation, and the first result decides.
            State::HalfOpen { next_probe } if next_probe <= Instant::now() => {
                circuit.state = State::HalfOpen { next_probe: later(self.open_duration) };
                return Ok(Admission::new(self, &circuit));
            }
            // The duration of the probe is unknown, so the advice has no time.
            State::HalfOpen { .. } => RetryAdvice::Backoff,
        };
        drop(circuit);
        self.count(CIRCUIT_REJECTED.name);
        let failures = self.threshold;
        Err(Error::new(ErrorKind::Unavailable, "layer.circuit_breaker.open", operation)
            .with_message(format_args!("circuit open after {failures} consecutive failures"))
            .with_backend(self.backend)
            .with_retry(advice))
    }

    fn settle(&self, generation: u64, outcome: Outcome) {
        let mut circuit = self.circuit();
        if circuit.generation != generation {
            return;
        }
        match (circuit.state, outcome) {
            (State::Closed { .. }, Outcome::Success) => circuit.state = State::Closed { failures: 0 },
            (State::Closed { failures }, Outcome::Failure) if failures + 1 < self.threshold => {
                circuit.state = State::Closed { failures: failures + 1 };
            }
            (State::Closed { .. }, Outcome::Neutral) | (State::Open { .. }, _) => {}
            (State::Closed { .. } | State::HalfOpen { .. }, Outcome::Failure) => {
                let until = later(self.open_duration);
                self.change(&mut circuit, State::Open { until });
            }
            (State::HalfOpen { .. }, Outcome::Success) => {
                self.change(&mut circuit, State::Closed { failures: 0 });
            }
            // The probe has no result, so the next call may probe immediately.
            (State::HalfOpen { .. }, Outcome::Neutral) => {
                self.change(&mut circuit, State::Open { until: Instant::now() });
            }
        }
    }

    fn change(&self, circuit: &mut Circuit, to: State) {
        let from = std::mem::replace(&mut circuit.state, to);
        circuit.generation += 1;
        let (port, backend) = (self.port.as_str(), self.backend);
        let state = match to {
            State::Closed { .. } => {
                tracing::info!(target: "qi_core::layer", port, backend, "circuit closed");
                0.0
            }
            State::HalfOpen { .. } => 1.0,
            State::Open { .. } => {
                if matches!(from, State::Closed { .. }) {
                    let (failures, open_duration) = (self.threshold, self.open_duration);
                    tracing::warn!(target: "qi_core::layer", port, backend, failures, ?open_duration, "circuit opened");
                    self.count(CIRCUIT_OPENED.name);
                }
                2.0
            }
        };
        metrics::gauge!(CIRCUIT_STATE.name, "port" => port, "backend" => backend).set(state);
    }

    fn count(&self, name: &'static str) {
        metrics::counter!(name, "port" => self.port.as_str(), "backend" => self.backend).increment(1);
    }
}

/// The meaning of a result for the backend's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Success,
    Failure,
    /// No information: the error has another cause, or the call was dropped.
    Neutral,
}

impl Outcome {
    fn of_error(error: &Error) -> Self {
        let infrastructure =
            matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Overloaded);
        if infrastructure && error.retry().is_retryable() && error.code() != QUEUE_FULL {
            Self::Failure
        } else {
            Self::Neutral
        }
    }

    fn of_result<T>(result: &Result<T>) -> Self {
        result.as_ref().map_or_else(Self::of_error, |_| Self::Success)
    }

    fn of_publish(result: &Result<PublishReport>) -> Self {
        let report = match result {
            Ok(report) => report.outcomes(),
            Err(error) => return Self::of_error(error),
        };
        if report.iter().any(Result::is_ok) {
            return Self::Success;
        }
        let failed = |failure: &DeliveryError| Self::of_error(&failure.error) == Self::Failure;
        let any = report.iter().any(|outcome| outcome.as_ref().is_err_and(failed));
        if any { Self::Failure } else { Self::Neutral }
    }
}

/// An admitted call. If it is dropped without a result, the outcome is neutral.
struct Admission<'a> {
    breaker: &'a CircuitBreaker,
    generation: Option<u64>,
}

impl<'a> Admission<'a> {
    fn new(breaker: &'a CircuitBreaker, circuit: &Circuit) -> Self {
        Self { breaker, generation: Some(circuit.generation) }
    }

    fn settle(mut self, outcome: Outcome) {
        if let Some(generation) = self.generation.take() {
            self.breaker.settle(generation, outcome);
        }
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if let Some(generation) = self.generation {
            self.breaker.settle(generation, Outcome::Neutral);
        }
    }
}

impl Layer for CircuitBreaker {
    fn name(&self) -> &'static str {
        "CircuitBreaker"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        Call { operation, .. }: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        if operation.is_close() {
            return future;
        }
        Box::pin(async move {
            let admission = self.admit(operation)?;
            let result = future.await;
            admission.settle(Outcome::of_result(&result));
            result
        })
    }

    fn publish<'a>(
        &'a self,
        bus: &'a dyn MessageBus,
        batch: &'a [Message],
        options: &'a PublishOptions,
    ) -> BoxFuture<'a, Result<PublishReport>> {
        Box::pin(async move {
            let admission = self.admit(Operation::Publish)?;
            let result = bus.publish(batch, options).await;
            admission.settle(Outcome::of_publish(&result));
            result
        })
    }
}
