//! `Retry`: tries again what trying again can help.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use fastrand::Rng;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::{Intercept, UNKNOWN};
use crate::backoff::Backoff;
use crate::bus::{
    Delivery, DeliveryError, DeliveryState, Message, MessageBus, PublishOptions, PublishReport, Subscription,
    TopicName,
};
use crate::telemetry::RETRIES;
use crate::{Error, ErrorKind, Operation, Result, RetryAdvice};

/// How often and for how long to try.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// How many attempts in all, at least 1: 5.
    pub attempts: u32,
    /// The delays between them: 100 ms to 5 s, doubling, with a jitter of half.
    pub backoff: Backoff,
    /// How long all attempts and delays may take together: 30 s. An attempt that is under way is not cut off (that
    /// is `Timeout`'s part); no new one begins.
    pub budget: Duration,
    /// The seed of the jitter; None is another one in every process.
    pub seed: Option<u64>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5)).with_jitter(0.5);
        Self { attempts: 5, backoff, budget: Duration::from_secs(30), seed: None }
    }
}

impl RetryPolicy {
    /// With so many attempts.
    #[must_use]
    pub fn with_attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// With these delays.
    #[must_use]
    pub fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// With this much time in all.
    #[must_use]
    pub fn with_budget(mut self, budget: Duration) -> Self {
        self.budget = budget;
        self
    }

    /// With a jitter that is the same in every run.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}

/// Tries again with growing delays, as the error's advice says: never what cannot help, not before `After`, and
/// not what another `Retry` has tried to the end. The last error comes back as it is, marked exhausted with the
/// number of attempts.
///
/// A publish sends again only what is `NotSent` by an error that allows it, and only where no later message of
/// the same key (or explicit partition) in that call was delivered or is unknown, because that would break its
/// order; the others stay `NotSent` for the caller.
#[derive(Debug)]
pub struct Retry {
    policy: RetryPolicy,
    rng: Mutex<Rng>,
    backend: &'static str,
}

impl Retry {
    /// Attempts by this policy.
    ///
    /// # Errors
    /// `Config` for no attempts or a backoff that its `check` refuses.
    pub fn new(policy: RetryPolicy) -> Result<Self> {
        let refuse = || Error::new(ErrorKind::Config, "layer.retry.config", "retry");
        if policy.attempts == 0 {
            return Err(refuse()
                .with_message("attempts must be at least 1")
                .with_context("field", "attempts"));
        }
        policy.backoff.check().map_err(|e| {
            let field = e.context_value("field").unwrap_or_default().to_owned();
            refuse().with_message("the backoff is not valid").with_context("field", field).with_source(e)
        })?;
        let rng = policy.seed.map_or_else(Rng::new, Rng::with_seed);
        Ok(Self { policy, rng: Mutex::new(rng), backend: UNKNOWN })
    }

    /// With the backend's word for metrics.
    #[must_use]
    pub fn for_backend(mut self, backend: &'static str) -> Self {
        self.backend = backend;
        self
    }

    /// How long to wait before the attempt after `made`, or None if there is none.
    fn pause(&self, error: &Error, made: u32, since: Instant) -> Option<Duration> {
        let at_least = match error.retry() {
            RetryAdvice::Never => return None,
            RetryAdvice::Backoff => Duration::ZERO,
            RetryAdvice::After(wait) => wait,
        };
        if made >= self.policy.attempts {
            return None;
        }
        // A lock that a panic poisoned still holds a generator.
        let u = self.rng.lock().unwrap_or_else(std::sync::PoisonError::into_inner).f64();
        let pause = self.policy.backoff.delay(made, u).max(at_least);
        (since.elapsed().saturating_add(pause) <= self.policy.budget).then_some(pause)
    }

    /// What the last error says to those above: marked, unless trying again was never the question.
    fn give_up(error: Error, made: u32) -> Error {
        if error.retry().is_retryable() && error.exhausted().is_none() {
            tracing::warn!(attempts = made, error = %error.report(), "gave up");
            error.with_exhausted(made)
        } else {
            error
        }
    }

    /// The pause after a failed attempt, or the error to give back.
    fn next(&self, operation: Operation, error: Error, made: u32, since: Instant) -> Result<Duration> {
        let pause = if error.exhausted().is_some() { None } else { self.pause(&error, made, since) };
        let Some(pause) = pause else { return Err(Self::give_up(error, made)) };
        self.count(operation, error.kind());
        Ok(pause)
    }

    fn count(&self, operation: Operation, kind: ErrorKind) {
        let labels = [
            ("port", operation.port().as_str()),
            ("backend", self.backend),
            ("operation", operation.as_str()),
            ("kind", kind.as_str()),
        ];
        metrics::counter!(RETRIES.name, &labels).increment(1);
    }
}

impl Intercept for Retry {
    fn name(&self) -> &'static str {
        "Retry"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        operation: Operation,
        attempt: impl Fn() -> BoxFuture<'a, Result<T>> + Send + Sync + 'a,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move {
            let (since, mut made) = (Instant::now(), 0);
            loop {
                let error = match attempt().await {
                    Ok(value) => return Ok(value),
                    Err(error) => error,
                };
                made += 1;
                tokio::time::sleep(self.next(operation, error, made, since)?).await;
            }
        })
    }

    fn call_mut<'a, A: Sync + ?Sized, T: Send + 'a>(
        &'a self,
        operation: Operation,
        subscription: &'a mut dyn Subscription,
        arguments: &'a A,
        attempt: for<'c> fn(&'c mut dyn Subscription, &'c A) -> BoxFuture<'c, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move {
            let (since, mut made) = (Instant::now(), 0);
            loop {
                let error = match attempt(subscription, arguments).await {
                    Ok(value) => return Ok(value),
                    Err(error) => error,
                };
                made += 1;
                tokio::time::sleep(self.next(operation, error, made, since)?).await;
            }
        })
    }

    fn publish<'a>(
        &'a self,
        bus: &'a dyn MessageBus,
        batch: &'a [Message],
        options: &'a PublishOptions,
    ) -> BoxFuture<'a, Result<PublishReport>> {
        Box::pin(async move {
            let (since, mut made) = (Instant::now(), 0);
            let mut known: Option<Vec<Result<Delivery, DeliveryError>>> = None;
            // What is sent again, once some outcomes are known.
            let mut part: Vec<usize> = Vec::new();
            loop {
                made += 1;
                let messages: Cow<'_, [Message]> = if known.is_none() || part.len() == batch.len() {
                    Cow::Borrowed(batch)
                } else {
                    Cow::Owned(part.iter().map(|at| batch[*at].clone()).collect())
                };
                let outcomes = match (bus.publish(&messages, options).await, known.take()) {
                    (Ok(report), None) => report.into_outcomes(),
                    (Ok(report), Some(mut outcomes)) => {
                        for (at, outcome) in part.iter().zip(report.into_outcomes()) {
                            outcomes[*at] = outcome;
                        }
                        outcomes
                    }
                    (Err(error), None) => {
                        tokio::time::sleep(self.next(Operation::Publish, error, made, since)?).await;
                        continue;
                    }
                    // Nothing was tried: these messages are where they were, for the latest reason.
                    (Err(error), Some(mut outcomes)) => {
                        for at in &part {
                            outcomes[*at] = Err(DeliveryError::not_sent(error.clone()));
                        }
                        outcomes
                    }
                };
                // The common case: nothing is left to send, and nobody has to know whose order that would break.
                if !outcomes.iter().any(is_not_sent) {
                    return Ok(PublishReport::new(outcomes));
                }
                let (again, pause) = self.again(batch, &outcomes, made, since);
                if again.is_empty() {
                    let outcomes = outcomes.into_iter().map(|outcome| mark(outcome, made));
                    return Ok(PublishReport::new(outcomes.collect()));
                }
                if let Some(error) = again.first().and_then(|at| failure(&outcomes[*at])) {
                    self.count(Operation::Publish, error.kind());
                }
                tokio::time::sleep(pause).await;
                (part, known) = (again, Some(outcomes));
            }
        })
    }
}

impl Retry {
    /// What to send again, and after which pause: the longest that one of the messages asks for. A message whose
    /// own pause does not fit holds back what comes behind it in its lanes.
    fn again(
        &self,
        batch: &[Message],
        outcomes: &[Result<Delivery, DeliveryError>],
        made: u32,
        since: Instant,
    ) -> (Vec<usize>, Duration) {
        let (mut held, mut longest) = (HashSet::new(), Duration::ZERO);
        let mut again = resendable(batch, outcomes);
        again.retain(|at| {
            let lanes = Lane::of(&batch[*at]);
            let pause = failure(&outcomes[*at]).and_then(|error| self.pause(error, made, since));
            let free = !lanes.iter().flatten().any(|lane| held.contains(lane));
            if let Some(pause) = pause.filter(|_| free) {
                longest = longest.max(pause);
                return true;
            }
            held.extend(lanes.into_iter().flatten());
            false
        });
        (again, longest)
    }
}

fn is_not_sent(outcome: &Result<Delivery, DeliveryError>) -> bool {
    matches!(outcome, Err(DeliveryError { state: DeliveryState::NotSent, .. }))
}

fn failure(outcome: &Result<Delivery, DeliveryError>) -> Option<&Error> {
    outcome.as_ref().err().map(|failure| &failure.error)
}

fn mark(outcome: Result<Delivery, DeliveryError>, made: u32) -> Result<Delivery, DeliveryError> {
    outcome.map_err(|failure| match failure.state {
        DeliveryState::NotSent => DeliveryError::not_sent(Retry::give_up(failure.error, made)),
        DeliveryState::Unknown => failure,
    })
}

/// What keeps its order among the messages of a batch.
#[derive(PartialEq, Eq, Hash)]
enum Lane<'a> {
    Partition(&'a TopicName, u32),
    Key(&'a TopicName, &'a [u8]),
}

impl<'a> Lane<'a> {
    /// The lanes of a message: of its partition, of its key. One without either may go to any partition, and has
    /// no order to break.
    fn of(message: &'a Message) -> [Option<Self>; 2] {
        let topic = &message.topic;
        [
            message.partition.map(|partition| Self::Partition(topic, partition)),
            message.key.as_ref().map(|key| Self::Key(topic, key)),
        ]
    }
}

/// The indices that may be sent again, in order: walking backwards, a message is held back once a later one of one
/// of its lanes is, or may be, in the log.
fn resendable(batch: &[Message], outcomes: &[Result<Delivery, DeliveryError>]) -> Vec<usize> {
    let (mut passed, mut again) = (HashSet::new(), Vec::new());
    for (at, (message, outcome)) in batch.iter().zip(outcomes).enumerate().rev() {
        let lanes = Lane::of(message);
        match outcome {
            Err(DeliveryError { state: DeliveryState::NotSent, error }) => {
                let free = !lanes.iter().flatten().any(|lane| passed.contains(lane));
                if free && error.retry().is_retryable() && error.exhausted().is_none() {
                    again.push(at);
                }
            }
            Ok(_) | Err(_) => passed.extend(lanes.into_iter().flatten()),
        }
    }
    again.reverse();
    again
}
