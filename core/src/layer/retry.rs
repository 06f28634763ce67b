//! `Retry`: repeats calls that failed with a retryable error.

use std::collections::HashSet;
use std::fmt::{self, Display};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use super::UNKNOWN_BACKEND;
use crate::backoff::Backoff;
use crate::bus::{
    Delivery, DeliveryError, DeliveryState, Message, MessageBus, PublishOptions, PublishReport, Subscription,
    TopicName,
};
use crate::telemetry::RETRIES;
use crate::{Error, ErrorKind, Operation, Result, RetryAdvice};

/// The settings of [`Retry`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RetryConfig {
    /// The maximum number of attempts, including the first. 0 counts as 1. Defaults to 5.
    pub max_attempts: u32,
    /// The delays between attempts. Defaults to 100 ms, doubling up to 5 s, with a jitter of 0.5.
    pub backoff: Backoff,
    /// The time from the start of a call after which no attempt starts. An attempt in progress is not
    /// cancelled. Defaults to 30 s.
    ///
    /// The default equals the default of [`TimeoutConfig::call`](super::TimeoutConfig::call). If a server never
    /// responds, the first attempt uses all of this time, and there is no second attempt. For more attempts, set a
    /// multiple of that limit.
    pub max_elapsed: Duration,
    /// The seed of the jitter. None selects a random seed. Defaults to None.
    pub seed: Option<u64>,
}

impl Default for RetryConfig {
    fn default() -> Self {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5)).with_jitter(0.5);
        Self { max_attempts: 5, backoff, max_elapsed: Duration::from_secs(30), seed: None }
    }
}

impl RetryConfig {
    /// Sets the maximum number of attempts.
    #[must_use]
    pub fn with_max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Sets the delays between attempts.
    #[must_use]
    pub fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets the time from the start of a call after which no attempt starts.
    #[must_use]
    pub fn with_max_elapsed(mut self, max_elapsed: Duration) -> Self {
        self.max_elapsed = max_elapsed;
        self
    }

    /// Sets the seed, so that every run has the same jitter.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}

/// A port that repeats failed calls with growing delays.
///
/// The error's [`RetryAdvice`] decides: `Never` is not retried, and `After` is the minimum delay. An error that an
/// inner `Retry` marked as exhausted is not retried again. Apart from that mark, the last error is returned unchanged.
///
/// A publish resends only messages that are `NotSent` with a retryable error. A message is not resent if that would
/// break the order of its key or of its explicit partition. This is the case if a later message of the same key or
/// partition was delivered or is unknown. A `recv` is not retried; the caller's loop repeats it.
///
/// `Retry` does not implement the trait [`Layer`](super::Layer), which receives a call as one future. Such a future
/// cannot be repeated.
#[derive(Debug)]
pub struct Retry<P> {
    pub(super) inner: P,
    pub(super) schedule: Schedule,
}

impl<P> Retry<P> {
    /// Adds retries to a port.
    pub fn new(inner: P, config: RetryConfig) -> Self {
        let rng = Arc::new(Mutex::new(config.seed.map_or_else(Rng::new, Rng::with_seed)));
        Self { inner, schedule: Schedule { config, rng, backend: UNKNOWN_BACKEND } }
    }

    /// Sets the backend's name for metrics.
    #[must_use]
    pub fn for_backend(mut self, backend: &'static str) -> Self {
        self.schedule.backend = backend;
        self
    }

    /// Returns the settings.
    pub fn config(&self) -> RetryConfig {
        self.schedule.config
    }

    /// Returns the wrapped port.
    pub fn inner(&self) -> &P {
        &self.inner
    }

    pub(super) fn wrap(&self, subscription: Box<dyn Subscription>) -> Box<dyn Subscription> {
        Box::new(Retry { inner: subscription, schedule: self.schedule.clone() })
    }
}

impl<P: Display> Display for Retry<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Retry({})", self.inner)
    }
}

impl<B: MessageBus> Retry<B> {
    pub(super) async fn publish_with_retry(
        &self,
        batch: &[Message],
        options: &PublishOptions,
    ) -> Result<PublishReport> {
        let mut attempts = self.schedule.begin(Operation::Publish);
        let mut outcomes = loop {
            match self.inner.publish(batch, options).await {
                Ok(report) => break report.into_outcomes(),
                Err(error) => attempts.failed(error).await?,
            }
        };
        loop {
            attempts.made += 1;
            if !outcomes.iter().any(is_not_sent) {
                return Ok(PublishReport::new(outcomes));
            }
            let (resend, delay) = attempts.plan_resend(batch, &outcomes);
            let Some(error) = resend.first().and_then(|at| failure(&outcomes[*at])) else {
                return Ok(PublishReport::new(attempts.mark_exhausted(outcomes)));
            };
            attempts.count(error.kind());
            tokio::time::sleep(delay).await;
            let part: Vec<Message> = resend.iter().map(|at| batch[*at].clone()).collect();
            match self.inner.publish(&part, options).await {
                Ok(report) => {
                    for (at, outcome) in resend.into_iter().zip(report.into_outcomes()) {
                        outcomes[at] = outcome;
                    }
                }
                // The bus sent nothing, so these messages stay unsent, with the latest reason.
                Err(error) => {
                    for at in resend {
                        outcomes[at] = Err(DeliveryError::not_sent(error.clone()));
                    }
                }
            }
        }
    }
}

/// The retry settings that all calls of a port share.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    config: RetryConfig,
    rng: Arc<Mutex<Rng>>,
    backend: &'static str,
}

impl Schedule {
    /// Starts the first attempt of a call.
    pub(super) fn begin(&self, operation: Operation) -> Attempts<'_> {
        Attempts { schedule: self, operation, start: Instant::now(), made: 0 }
    }
}

/// The attempts of one call.
pub(super) struct Attempts<'a> {
    schedule: &'a Schedule,
    operation: Operation,
    start: Instant,
    made: u32,
}

impl Attempts<'_> {
    /// Records a failed attempt and waits until the next attempt may start. Returns the error if no attempt is left.
    pub(super) async fn failed(&mut self, error: Error) -> Result<()> {
        self.made += 1;
        let Some(delay) = self.delay(&error) else { return Err(self.exhausted(error)) };
        self.count(error.kind());
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// Returns the delay before the next attempt, or None if no attempt is left.
    fn delay(&self, error: &Error) -> Option<Duration> {
        let Schedule { config, rng, .. } = self.schedule;
        let at_least = match error.retry() {
            RetryAdvice::Never => return None,
            RetryAdvice::Backoff => Duration::ZERO,
            RetryAdvice::After(wait) => wait,
        };
        if error.exhausted().is_some() || self.made >= config.max_attempts {
            return None;
        }
        let u = rng.lock().unwrap_or_else(PoisonError::into_inner).f64();
        let delay = config.backoff.delay(self.made, u).max(at_least);
        (self.start.elapsed().saturating_add(delay) <= config.max_elapsed).then_some(delay)
    }

    /// Marks a retryable error as exhausted, so that an outer `Retry` does not repeat the call.
    fn exhausted(&self, error: Error) -> Error {
        if !is_to_be_marked(&error) {
            return error;
        }
        tracing::warn!(attempts = self.made, error = %error.report(), "retries exhausted");
        error.with_exhausted(self.made)
    }

    fn count(&self, kind: ErrorKind) {
        let labels = [
            ("port", self.operation.port().as_str()),
            ("backend", self.schedule.backend),
            ("operation", self.operation.as_str()),
            ("kind", kind.as_str()),
        ];
        metrics::counter!(RETRIES.name, &labels).increment(1);
    }

    /// Returns the indices to resend, and the longest delay of these messages. A message whose own delay exceeds the
    /// remaining time holds back later messages with the same ordering key.
    fn plan_resend(
        &self,
        batch: &[Message],
        outcomes: &[Result<Delivery, DeliveryError>],
    ) -> (Vec<usize>, Duration) {
        let (mut held, mut longest) = (HashSet::new(), Duration::ZERO);
        let mut resend = resendable(batch, outcomes);
        resend.retain(|at| {
            let keys = OrderingKey::of(&batch[*at]);
            let delay = failure(&outcomes[*at]).and_then(|error| self.delay(error));
            let free = !keys.iter().flatten().any(|key| held.contains(key));
            if let Some(delay) = delay.filter(|_| free) {
                longest = longest.max(delay);
                return true;
            }
            held.extend(keys.into_iter().flatten());
            false
        });
        (resend, longest)
    }

    /// Marks the messages that were not sent as exhausted. The log has one line for all of them.
    fn mark_exhausted(
        &self,
        mut outcomes: Vec<Result<Delivery, DeliveryError>>,
    ) -> Vec<Result<Delivery, DeliveryError>> {
        let mut marked = 0_usize;
        let mut first = None;
        for outcome in &mut outcomes {
            if let Err(failure) = outcome
                && failure.state == DeliveryState::NotSent
                && is_to_be_marked(&failure.error)
            {
                marked += 1;
                first.get_or_insert_with(|| failure.error.clone());
                *failure = DeliveryError::not_sent(failure.error.clone().with_exhausted(self.made));
            }
        }
        if let Some(error) = first {
            tracing::warn!(attempts = self.made, messages = marked, error = %error.report(), "retries exhausted");
        }
        outcomes
    }
}

/// Returns whether the error of a last attempt must be marked: it is retryable and not marked yet.
fn is_to_be_marked(error: &Error) -> bool {
    error.retry().is_retryable() && error.exhausted().is_none()
}

fn is_not_sent(outcome: &Result<Delivery, DeliveryError>) -> bool {
    matches!(outcome, Err(DeliveryError { state: DeliveryState::NotSent, .. }))
}

fn failure(outcome: &Result<Delivery, DeliveryError>) -> Option<&Error> {
    outcome.as_ref().err().map(|failure| &failure.error)
}

/// The key of messages whose order the bus keeps: an explicit partition or a message key.
#[derive(PartialEq, Eq, Hash)]
enum OrderingKey<'a> {
    Partition(&'a TopicName, u32),
    Key(&'a TopicName, &'a [u8]),
}

impl<'a> OrderingKey<'a> {
    /// Returns the ordering keys of a message: its explicit partition and its key. A message with neither has no order.
    fn of(message: &'a Message) -> [Option<Self>; 2] {
        let topic = &message.topic;
        [
            message.partition.map(|partition| Self::Partition(topic, partition)),
            message.key.as_ref().map(|key| Self::Key(topic, key)),
        ]
    }
}

/// Returns the indices that may be resent without a change of order, in ascending order. The loop runs backwards,
/// because a later message that is or may be in the log excludes earlier messages.
fn resendable(batch: &[Message], outcomes: &[Result<Delivery, DeliveryError>]) -> Vec<usize> {
    let (mut passed, mut resend) = (HashSet::new(), Vec::new());
    for (at, (message, outcome)) in batch.iter().zip(outcomes).enumerate().rev() {
        let keys = OrderingKey::of(message);
        match outcome {
            Err(DeliveryError { state: DeliveryState::NotSent, error }) => {
                let free = !keys.iter().flatten().any(|key| passed.contains(key));
                if free && error.retry().is_retryable() && error.exhausted().is_none() {
                    resend.push(at);
                }
            }
            Ok(_) | Err(_) => passed.extend(keys.into_iter().flatten()),
        }
    }
    resend.reverse();
    resend
}
