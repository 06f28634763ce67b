//! `CircuitBreaker`: spares a backend that does not answer, and its callers the wait.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use super::limit::FULL;
use super::{Intercept, UNKNOWN};
use crate::bus::{Message, MessageBus, PublishOptions, PublishReport, Subscription};
use crate::deadline::later;
use crate::telemetry::{CIRCUIT_OPENED, CIRCUIT_REFUSED, CIRCUIT_STATE};
use crate::{Error, ErrorKind, Operation, Port, Result, RetryAdvice};

/// When a circuit opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CircuitBreakerPolicy {
    /// How many attempts in a row must fail, at least 1: 10.
    pub failures: u32,
    /// How long everything is refused before one attempt may look again, from 1 ms to
    /// [`CircuitBreakerPolicy::LONGEST`]: 2 s.
    pub open_for: Duration,
}

impl Default for CircuitBreakerPolicy {
    fn default() -> Self {
        Self { failures: 10, open_for: Duration::from_secs(2) }
    }
}

impl CircuitBreakerPolicy {
    /// The longest that a circuit may be open: 5 s. A backend that answers again is found out by then.
    pub const LONGEST: Duration = Duration::from_secs(5);

    /// With so many failures in a row.
    #[must_use]
    pub fn with_failures(mut self, failures: u32) -> Self {
        self.failures = failures;
        self
    }

    /// With another time of being open.
    #[must_use]
    pub fn with_open_for(mut self, open_for: Duration) -> Self {
        self.open_for = open_for;
        self
    }
}

/// What a circuit lets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CircuitState {
    /// Everything.
    Closed,
    /// One attempt, which decides whether it closes or opens again; another one if it does not answer for as long as
    /// the circuit was open.
    HalfOpen,
    /// Nothing.
    Open,
}

/// Refuses attempts after too many failures in a row, for a while; then lets one through to look.
///
/// What counts is what a backend that is away or overwhelmed answers: `Unavailable`, `Timeout` and `Overloaded`, if
/// trying again can help. Any success begins the count anew. Other errors (a wrong query, a conflict, a full queue of
/// [`super::Limit`]) say nothing about it and leave the count alone. A publish counts as a success if one message was
/// delivered.
///
/// A refusal is `Unavailable`, code `layer.circuit_breaker.open`, to be tried again `After` the rest of the time; one
/// beside the attempt that looks says `Backoff`, until that has not answered for as long as the circuit was open: then
/// the next one looks too. `recv` and every `close` pass, and count for nothing.
#[derive(Debug)]
pub struct CircuitBreaker {
    policy: CircuitBreakerPolicy,
    circuit: Mutex<Circuit>,
    port: Port,
    backend: &'static str,
}

#[derive(Debug)]
struct Circuit {
    now: Now,
    /// Rises with every change, so that attempts which began before it decide nothing after it.
    generation: u64,
}

#[derive(Debug, Clone, Copy)]
enum Now {
    Closed { failures: u32 },
    HalfOpen { next: Instant },
    Open { until: Instant },
}

impl CircuitBreaker {
    /// A closed circuit.
    ///
    /// # Errors
    /// `Config` for no failures, or a time outside 1 ms to 5 s.
    pub fn new(policy: CircuitBreakerPolicy) -> Result<Self> {
        let CircuitBreakerPolicy { failures, open_for } = policy;
        if failures == 0 {
            return Err(config("failures", failures, "must be at least 1"));
        }
        if !(Duration::from_millis(1)..=CircuitBreakerPolicy::LONGEST).contains(&open_for) {
            return Err(config("open_for", format_args!("{open_for:?}"), "must lie from 1 ms to 5 s"));
        }
        let circuit = Mutex::new(Circuit { now: Now::Closed { failures: 0 }, generation: 0 });
        Ok(Self { policy, circuit, port: Port::Store, backend: UNKNOWN })
    }

    /// With the port and the backend's word for errors, logs and metrics.
    #[must_use]
    pub fn for_backend(mut self, port: Port, backend: &'static str) -> Self {
        (self.port, self.backend) = (port, backend);
        self
    }

    /// What it lets pass at this moment.
    pub fn state(&self) -> CircuitState {
        match self.circuit().now {
            Now::Closed { .. } => CircuitState::Closed,
            Now::HalfOpen { .. } => CircuitState::HalfOpen,
            Now::Open { .. } => CircuitState::Open,
        }
    }

    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        // Nothing in here panics while it holds the lock half-way through a change.
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets an attempt pass, or says when to come again.
    fn admit(&self, operation: Operation) -> Result<Ticket<'_>> {
        let mut circuit = self.circuit();
        let advice = match circuit.now {
            Now::Closed { .. } => return Ok(Ticket { breaker: self, generation: Some(circuit.generation) }),
            Now::Open { until } => match until.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => RetryAdvice::After(left),
                _ => {
                    self.change(&mut circuit, Now::HalfOpen { next: self.later() });
                    return Ok(Ticket { breaker: self, generation: Some(circuit.generation) });
                }
            },
            // The attempt that looks may hang, be a purge of ten minutes, or be polled by nobody: that says nothing of
            // the backend. Another one looks beside it, in the same generation: whichever answers first decides.
            Now::HalfOpen { next } if next <= Instant::now() => {
                circuit.now = Now::HalfOpen { next: self.later() };
                return Ok(Ticket { breaker: self, generation: Some(circuit.generation) });
            }
            // Nobody knows how long the attempt that looks will take.
            Now::HalfOpen { .. } => RetryAdvice::Backoff,
        };
        drop(circuit);
        self.count(CIRCUIT_REFUSED.name);
        Err(Error::new(ErrorKind::Unavailable, "layer.circuit_breaker.open", operation)
            .with_message("too many attempts failed in a row; not asked")
            .with_backend(self.backend)
            .with_retry(advice))
    }

    fn later(&self) -> Instant {
        later(self.policy.open_for)
    }

    fn settle(&self, generation: u64, sign: Sign) {
        let mut circuit = self.circuit();
        if circuit.generation != generation {
            return;
        }
        match (circuit.now, sign) {
            (Now::Closed { .. }, Sign::Well) => circuit.now = Now::Closed { failures: 0 },
            (Now::Closed { failures }, Sign::Ill) if failures + 1 < self.policy.failures => {
                circuit.now = Now::Closed { failures: failures + 1 };
            }
            (Now::Closed { .. }, Sign::None) | (Now::Open { .. }, _) => {}
            (Now::Closed { .. } | Now::HalfOpen { .. }, Sign::Ill) => {
                let until = self.later();
                self.change(&mut circuit, Now::Open { until });
            }
            (Now::HalfOpen { .. }, Sign::Well) => self.change(&mut circuit, Now::Closed { failures: 0 }),
            // It found out nothing: the next one may look, at once.
            (Now::HalfOpen { .. }, Sign::None) => {
                self.change(&mut circuit, Now::Open { until: Instant::now() });
            }
        }
    }

    fn change(&self, circuit: &mut Circuit, to: Now) {
        let from = std::mem::replace(&mut circuit.now, to);
        circuit.generation += 1;
        let (port, backend) = (self.port.as_str(), self.backend);
        let state = match to {
            Now::Closed { .. } => {
                tracing::info!(target: "qi_core::layer", port, backend, "circuit closed");
                0.0
            }
            Now::HalfOpen { .. } => 1.0,
            Now::Open { .. } => {
                if matches!(from, Now::Closed { .. }) {
                    let (failures, open_for) = (self.policy.failures, self.policy.open_for);
                    tracing::warn!(target: "qi_core::layer", port, backend, failures, ?open_for, "circuit opened");
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

/// What an answer says about the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Well,
    Ill,
    None,
}

impl Sign {
    fn of(error: &Error) -> Self {
        let infrastructure =
            matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Overloaded);
        if infrastructure && error.retry().is_retryable() && error.code() != FULL {
            Self::Ill
        } else {
            Self::None
        }
    }

    fn of_result<T>(result: &Result<T>) -> Self {
        result.as_ref().map_or_else(Self::of, |_| Self::Well)
    }

    fn of_report(result: &Result<PublishReport>) -> Self {
        let report = match result {
            Ok(report) => report.outcomes(),
            Err(error) => return Self::of(error),
        };
        if report.iter().any(Result::is_ok) {
            return Self::Well;
        }
        let ill = |failure: &crate::bus::DeliveryError| Self::of(&failure.error) == Self::Ill;
        if report.iter().any(|outcome| outcome.as_ref().is_err_and(ill)) { Self::Ill } else { Self::None }
    }
}

/// An attempt under way. One whose caller goes away says nothing, and lets the next one look.
struct Ticket<'a> {
    breaker: &'a CircuitBreaker,
    generation: Option<u64>,
}

impl Ticket<'_> {
    fn settle(mut self, sign: Sign) {
        if let Some(generation) = self.generation.take() {
            self.breaker.settle(generation, sign);
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(generation) = self.generation {
            self.breaker.settle(generation, Sign::None);
        }
    }
}

fn config(field: &'static str, value: impl std::fmt::Display, rule: &str) -> Error {
    Error::new(ErrorKind::Config, "layer.circuit_breaker.config", "circuit_breaker")
        .with_message(format_args!("{field} {rule}"))
        .with_context("field", field)
        .with_context("value", value)
}

impl Intercept for CircuitBreaker {
    fn name(&self) -> &'static str {
        "CircuitBreaker"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        operation: Operation,
        attempt: impl Fn() -> BoxFuture<'a, Result<T>> + Send + Sync + 'a,
    ) -> BoxFuture<'a, Result<T>> {
        if operation.is_close() {
            return attempt();
        }
        Box::pin(async move {
            let ticket = self.admit(operation)?;
            let result = attempt().await;
            ticket.settle(Sign::of_result(&result));
            result
        })
    }

    fn call_mut<'a, A: Sync + ?Sized, T: Send + 'a>(
        &'a self,
        operation: Operation,
        subscription: &'a mut dyn Subscription,
        arguments: &'a A,
        attempt: for<'c> fn(&'c mut dyn Subscription, &'c A) -> BoxFuture<'c, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        if operation.is_close() {
            return attempt(subscription, arguments);
        }
        Box::pin(async move {
            let ticket = self.admit(operation)?;
            let result = attempt(subscription, arguments).await;
            ticket.settle(Sign::of_result(&result));
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
            let ticket = self.admit(Operation::Publish)?;
            let result = bus.publish(batch, options).await;
            ticket.settle(Sign::of_report(&result));
            result
        })
    }
}
