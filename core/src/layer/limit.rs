//! `Limit`: limits the concurrency and the rate of calls.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use metrics::Gauge;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::{Call, Layer, UNKNOWN_BACKEND};
use crate::bus::{Message, MessageBus, PublishOptions, PublishReport};
use crate::telemetry::{LIMIT_QUEUED, LIMIT_REJECTED};
use crate::{Error, ErrorKind, Operation, OperationClass, Port, Result};

/// The settings of [`Limit`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct LimitConfig {
    /// The maximum number of calls in progress. 0 counts as 1, and the upper bound is
    /// [`LimitConfig::MAX_CONCURRENCY`]. Defaults to 64.
    pub concurrency: usize,
    /// The maximum number of calls in the queue. Further calls are rejected. Defaults to 1,024.
    pub max_queued: usize,
    /// The number of calls that may start per second, whatever the size of their batches. Defaults to
    /// None, which sets no limit.
    ///
    /// A rate below [`LimitConfig::MIN_RATE`] or above [`LimitConfig::MAX_RATE`] counts as the nearest bound. NaN
    /// counts as the lower bound.
    pub rate: Option<f64>,
    /// The number of calls that may start at once after an idle period. Only used with a `rate`. 0 counts as 1. Defaults to 1,
    /// which spaces calls evenly.
    pub burst: u32,
}

impl Default for LimitConfig {
    fn default() -> Self {
        Self { concurrency: 64, max_queued: 1_024, rate: None, burst: 1 }
    }
}

impl LimitConfig {
    /// The highest concurrency: the capacity of tokio's semaphore.
    pub const MAX_CONCURRENCY: usize = Semaphore::MAX_PERMITS;
    /// The lowest rate: 0.001 calls per second.
    pub const MIN_RATE: f64 = 0.001;
    /// The highest rate: 1,000,000 calls per second.
    pub const MAX_RATE: f64 = 1e6;

    /// Sets the maximum number of calls in progress.
    #[must_use]
    pub fn with_concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency;
        self
    }

    /// Sets the maximum number of calls in the queue.
    #[must_use]
    pub fn with_max_queued(mut self, max_queued: usize) -> Self {
        self.max_queued = max_queued;
        self
    }

    /// Sets the number of calls that may start per second, and the burst after a pause.
    #[must_use]
    pub fn with_rate(mut self, per_second: f64, burst: u32) -> Self {
        self.rate = Some(per_second);
        self.burst = burst;
        self
    }
}

/// A layer that queues calls in the order of arrival until a permit is free and the rate allows the next start. If the
/// queue is full, a call is rejected with `Overloaded` and the advice `Backoff`.
///
/// Some calls bypass the limiter: see [`guide::layers`](crate::guide::layers#limit).
#[derive(Debug)]
pub struct Limit {
    config: LimitConfig,
    permits: Semaphore,
    rate: Option<RateLimiter>,
    queued: AtomicUsize,
    backend: Option<&'static str>,
}

impl Limit {
    /// Creates the layer from its settings.
    pub fn new(config: LimitConfig) -> Self {
        let LimitConfig { concurrency, max_queued: _, rate, burst } = config;
        Self {
            config,
            permits: Semaphore::new(concurrency.clamp(1, LimitConfig::MAX_CONCURRENCY)),
            rate: rate.map(|rate| RateLimiter::new(rate, burst)),
            queued: AtomicUsize::new(0),
            backend: None,
        }
    }

    /// Sets the backend's name for errors and metrics.
    #[must_use]
    pub fn for_backend(mut self, backend: &'static str) -> Self {
        self.backend = Some(backend);
        self
    }

    /// Returns the settings.
    pub fn config(&self) -> LimitConfig {
        self.config
    }

    /// Returns the number of calls in the queue.
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Waits for a permit and for the next start. The call holds the permit until it ends.
    async fn acquire(&self, operation: Operation) -> Result<SemaphorePermit<'_>> {
        if let Some(permit) = self.try_acquire() {
            return Ok(permit);
        }
        let _queued = Queued::new(self, operation)?;
        let permit = self.permits.acquire().await;
        let permit = permit.map_err(|_| Error::closed("layer.limit.closed", operation))?;
        if let Some(rate) = &self.rate {
            rate.wait().await;
        }
        Ok(permit)
    }

    /// Acquires a permit without waiting. Does not overtake a queued call, because the semaphore hands a released
    /// permit to its first waiter.
    fn try_acquire(&self) -> Option<SemaphorePermit<'_>> {
        let permit = self.permits.try_acquire().ok()?;
        self.rate.as_ref().is_none_or(RateLimiter::try_start).then_some(permit)
    }

    fn applies_to(operation: Operation) -> bool {
        operation.port() != Port::Subscription
            && operation.class() != OperationClass::Lifecycle
            && !operation.is_ping()
    }
}

/// A call in the queue. It leaves the queue when it starts or when its future is dropped.
struct Queued<'a> {
    queued: &'a AtomicUsize,
    gauge: Gauge,
}

impl<'a> Queued<'a> {
    fn new(limit: &'a Limit, operation: Operation) -> Result<Self> {
        let (port, backend) = (operation.port().as_str(), limit.backend.unwrap_or(UNKNOWN_BACKEND));
        let max = limit.config.max_queued;
        let one_more = |queued| (queued < max).then_some(queued + 1);
        if limit.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            metrics::counter!(LIMIT_REJECTED.name, "port" => port, "backend" => backend).increment(1);
            let error = Error::new(ErrorKind::Overloaded, QUEUE_FULL, operation)
                .with_message(format_args!("limiter queue is full ({max} waiting)"))
                .with_context("queued", max);
            return Err(match limit.backend {
                Some(backend) => error.with_backend(backend),
                None => error,
            });
        }
        let gauge = metrics::gauge!(LIMIT_QUEUED.name, "port" => port, "backend" => backend);
        gauge.increment(1.0);
        Ok(Self { queued: &limit.queued, gauge })
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
        self.gauge.decrement(1.0);
    }
}

/// A rate limiter with the virtual schedule of the generic cell rate algorithm (GCRA). The first waiter holds the lock
/// while it sleeps and takes its start only afterwards. A dropped waiter therefore consumes no start.
//
// The crate `governor` has the same arithmetic. But its timer ignores tokio's paused clock, and its waiters retry in
// any order.
#[derive(Debug)]
struct RateLimiter {
    interval: Duration,
    slack: Duration,
    next: Mutex<Option<Instant>>,
}

/// The resolution of tokio's timer, with a margin. With shorter intervals, calls catch up after the timer fires late.
const TIMER_RESOLUTION: Duration = Duration::from_millis(2);

impl RateLimiter {
    fn new(rate: f64, burst: u32) -> Self {
        let (min, max) = (LimitConfig::MIN_RATE, LimitConfig::MAX_RATE);
        let rate = if rate.is_nan() { min } else { rate.clamp(min, max) };
        let interval = Duration::from_secs_f64(1.0 / rate);
        let slack = interval.saturating_mul(burst.saturating_sub(1));
        let slack = if interval < TIMER_RESOLUTION { slack.max(TIMER_RESOLUTION) } else { slack };
        Self { interval, slack, next: Mutex::new(None) }
    }

    /// Returns the time at which the next call may start, if that is later than `now`.
    fn due(&self, next: Option<Instant>, now: Instant) -> Option<Instant> {
        next?.checked_sub(self.slack).filter(|due| *due > now)
    }

    fn try_start(&self) -> bool {
        let Ok(mut next) = self.next.try_lock() else { return false };
        let now = Instant::now();
        let free = self.due(*next, now).is_none();
        if free {
            *next = Some((*next).unwrap_or(now).max(now) + self.interval);
        }
        free
    }

    async fn wait(&self) {
        let mut next = self.next.lock().await;
        if let Some(due) = self.due(*next, Instant::now()) {
            tokio::time::sleep_until(due).await;
        }
        let now = Instant::now();
        *next = Some((*next).unwrap_or(now).max(now) + self.interval);
    }
}

/// The code of a rejected call. The circuit breaker does not count it, because the backend did not fail.
pub(super) const QUEUE_FULL: &str = "layer.limit.full";

impl Layer for Limit {
    fn name(&self) -> &'static str {
        "Limit"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        Call { operation, .. }: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        if !Self::applies_to(operation) {
            return future;
        }
        Box::pin(async move {
            let _permit = self.acquire(operation).await?;
            future.await
        })
    }

    fn publish<'a>(
        &'a self,
        bus: &'a dyn MessageBus,
        batch: &'a [Message],
        options: &'a PublishOptions,
    ) -> BoxFuture<'a, Result<PublishReport>> {
        Box::pin(async move {
            let _permit = self.acquire(Operation::Publish).await?;
            bus.publish(batch, options).await
        })
    }
}
