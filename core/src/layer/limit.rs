//! `Limit`: so many calls at once, and so many in a second.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use metrics::Gauge;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::{Intercept, UNKNOWN};
use crate::bus::{Message, MessageBus, PublishOptions, PublishReport, Subscription};
use crate::telemetry::{LIMIT_REFUSED, LIMIT_WAITING};
use crate::{Error, ErrorKind, Nature, Operation, Result};

/// How many calls may be under way, wait, and begin in a second.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct LimitPolicy {
    /// How many calls may be under way at once, at least 1: 64.
    pub concurrency: usize,
    /// How many more may wait for their turn; one beyond them is refused: 1,024.
    pub waiting: usize,
    /// How many calls may begin in a second, whatever their batches hold; None, the default, is no limit.
    pub rate: Option<f64>,
    /// How many may begin at once after a pause, at least 1: 1, so that calls are evenly spaced. Without a `rate` it
    /// means nothing.
    pub burst: u32,
}

impl Default for LimitPolicy {
    fn default() -> Self {
        Self { concurrency: 64, waiting: 1_024, rate: None, burst: 1 }
    }
}

impl LimitPolicy {
    /// With so many calls at once.
    #[must_use]
    pub fn with_concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency;
        self
    }

    /// With so many calls that wait.
    #[must_use]
    pub fn with_waiting(mut self, waiting: usize) -> Self {
        self.waiting = waiting;
        self
    }

    /// With so many calls in a second, of which `burst` may begin at once after a pause.
    #[must_use]
    pub fn with_rate(mut self, per_second: f64, burst: u32) -> Self {
        self.rate = Some(per_second);
        self.burst = burst;
        self
    }
}

/// Holds calls back until one of the permits is free and their turn has come, first come, first served. A call that
/// would have to wait behind too many others is `Overloaded`, with backoff.
///
/// What must get through is not held back: `ping`, every `close`, what begins a subscription, and all that a
/// subscription does. It makes one call at a time anyhow, and its commit may be what publishes that hold all the
/// permits wait for.
#[derive(Debug)]
pub struct Limit {
    permits: Semaphore,
    pace: Option<Pace>,
    waiting: AtomicUsize,
    most_waiting: usize,
    backend: Option<&'static str>,
}

impl Limit {
    /// Permits and a pace by this policy.
    ///
    /// # Errors
    /// `Config` for no permits, more than tokio's semaphore holds, a rate that is not a positive number of calls, or
    /// a burst of 0.
    pub fn new(policy: LimitPolicy) -> Result<Self> {
        let LimitPolicy { concurrency, waiting, rate, burst } = policy;
        if !(1..=Semaphore::MAX_PERMITS).contains(&concurrency) {
            return Err(config(
                "concurrency",
                concurrency,
                "must be at least 1, and what a semaphore can count",
            ));
        }
        if burst == 0 {
            return Err(config("burst", burst, "must be at least 1"));
        }
        let pace = rate.map(|rate| Pace::new(rate, burst)).transpose()?;
        Ok(Self {
            permits: Semaphore::new(concurrency),
            pace,
            waiting: AtomicUsize::new(0),
            most_waiting: waiting,
            backend: None,
        })
    }

    /// With the backend's word for errors and metrics.
    #[must_use]
    pub fn for_backend(mut self, backend: &'static str) -> Self {
        self.backend = Some(backend);
        self
    }

    /// How many calls wait at this moment.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// The right to make one call, which ends with what it gives.
    async fn enter(&self, operation: Operation) -> Result<SemaphorePermit<'_>> {
        if let Some(permit) = self.at_once() {
            return Ok(permit);
        }
        let _waiter = Waiter::new(self, operation)?;
        let permit = self.permits.acquire().await;
        let permit = permit.map_err(|_| Error::closed("layer.limit.closed", operation))?;
        if let Some(pace) = &self.pace {
            pace.turn().await;
        }
        Ok(permit)
    }

    /// The same without waiting. It passes by nobody: what comes free is handed to whoever waits for it.
    fn at_once(&self) -> Option<SemaphorePermit<'_>> {
        let permit = self.permits.try_acquire().ok()?;
        self.pace.as_ref().is_none_or(Pace::turn_at_once).then_some(permit)
    }

    fn holds_back(operation: Operation) -> bool {
        operation.nature() != Nature::Life && !operation.is_ping()
    }
}

/// One call that waits: until its turn has come, or its caller has gone.
struct Waiter<'a> {
    waiting: &'a AtomicUsize,
    gauge: Gauge,
}

impl<'a> Waiter<'a> {
    fn new(limit: &'a Limit, operation: Operation) -> Result<Self> {
        let (port, backend) = (operation.port().as_str(), limit.backend.unwrap_or(UNKNOWN));
        let most = limit.most_waiting;
        let one_more = |waiting| (waiting < most).then_some(waiting + 1);
        if limit.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            metrics::counter!(LIMIT_REFUSED.name, "port" => port, "backend" => backend).increment(1);
            let error = Error::new(ErrorKind::Overloaded, FULL, operation)
                .with_message("as many calls wait as may")
                .with_context("waiting", most);
            return Err(match limit.backend {
                Some(backend) => error.with_backend(backend),
                None => error,
            });
        }
        let gauge = metrics::gauge!(LIMIT_WAITING.name, "port" => port, "backend" => backend);
        gauge.increment(1.0);
        Ok(Self { waiting: &limit.waiting, gauge })
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.gauge.decrement(1.0);
    }
}

/// Turns at a rate: the virtual schedule of the generic cell rate algorithm. Whoever is next holds the lock while it
/// waits, and takes its turn only when the wait is over; a caller that goes away has therefore used up nothing, and
/// no debt grows while more come than may begin.
//
// The crate `governor` has the same arithmetic, but its waits stand on a timer that knows no paused clock, and each
// waiter wakes and tries again, in any order.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    slack: Duration,
    next: Mutex<Option<Instant>>,
}

/// Tokio's timer counts in milliseconds. Turns that are closer than this are made up for when it wakes late.
const GRAIN: Duration = Duration::from_millis(2);

impl Pace {
    fn new(rate: f64, burst: u32) -> Result<Self> {
        if !(0.001..=1e6).contains(&rate) {
            return Err(config("rate", rate, "must lie from 0.001 to 1,000,000 calls in a second"));
        }
        let interval = Duration::from_secs_f64(1.0 / rate);
        let slack = interval.saturating_mul(burst - 1);
        let slack = if interval < GRAIN { slack.max(GRAIN) } else { slack };
        Ok(Self { interval, slack, next: Mutex::new(None) })
    }

    /// When the turn comes that `next` stands for, if that is not now.
    fn due(&self, next: Option<Instant>, now: Instant) -> Option<Instant> {
        next?.checked_sub(self.slack).filter(|due| *due > now)
    }

    fn turn_at_once(&self) -> bool {
        let Ok(mut next) = self.next.try_lock() else { return false };
        let now = Instant::now();
        let free = self.due(*next, now).is_none();
        if free {
            *next = Some((*next).unwrap_or(now).max(now) + self.interval);
        }
        free
    }

    async fn turn(&self) {
        let mut next = self.next.lock().await;
        if let Some(due) = self.due(*next, Instant::now()) {
            tokio::time::sleep_until(due).await;
        }
        let now = Instant::now();
        *next = Some((*next).unwrap_or(now).max(now) + self.interval);
    }
}

/// The code of a refusal: no fault of the backend, so that the circuit breaker does not count it.
pub(super) const FULL: &str = "layer.limit.full";

fn config(field: &'static str, value: impl std::fmt::Display, rule: &str) -> Error {
    Error::new(ErrorKind::Config, "layer.limit.config", "limit")
        .with_message(format_args!("{field} {rule}"))
        .with_context("field", field)
        .with_context("value", value)
}

impl Intercept for Limit {
    fn name(&self) -> &'static str {
        "Limit"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        operation: Operation,
        attempt: impl Fn() -> BoxFuture<'a, Result<T>> + Send + Sync + 'a,
    ) -> BoxFuture<'a, Result<T>> {
        if !Self::holds_back(operation) {
            return attempt();
        }
        Box::pin(async move {
            let _permit = self.enter(operation).await?;
            attempt().await
        })
    }

    fn call_mut<'a, A: Sync + ?Sized, T: Send + 'a>(
        &'a self,
        _operation: Operation,
        subscription: &'a mut dyn Subscription,
        arguments: &'a A,
        attempt: for<'c> fn(&'c mut dyn Subscription, &'c A) -> BoxFuture<'c, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        attempt(subscription, arguments)
    }

    fn publish<'a>(
        &'a self,
        bus: &'a dyn MessageBus,
        batch: &'a [Message],
        options: &'a PublishOptions,
    ) -> BoxFuture<'a, Result<PublishReport>> {
        Box::pin(async move {
            let _permit = self.enter(Operation::Publish).await?;
            bus.publish(batch, options).await
        })
    }
}
