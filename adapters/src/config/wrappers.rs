//! The sections of the wrappers, the same under `[store]` and `[bus]`.

use std::time::Duration;

use qi_core::layer::{
    CircuitBreaker, CircuitBreakerPolicy, Limit, LimitPolicy, Retry, RetryPolicy, Timeout, TimeoutPolicy,
    Wrappers,
};
use qi_core::{Backoff, Result};
use serde::Deserialize;

use super::de;
use super::tree::{Node, join};

/// The sections that the file has; an absent one stands for the defaults.
#[derive(Debug, Default)]
pub(super) struct WrapperSections {
    retry: RetrySection,
    timeout: TimeoutSection,
    limit: LimitSection,
    circuit_breaker: CircuitBreakerSection,
    metrics: MetricsSection,
    tracing: TracingSection,
}

impl WrapperSections {
    pub(super) const KEYS: &'static [&'static str] =
        &["retry", "timeout", "limit", "circuit_breaker", "metrics", "tracing"];

    /// Reads the section of one of [`Self::KEYS`].
    pub(super) fn read(&mut self, key: &str, node: &Node, path: &str) -> Result<()> {
        match key {
            "retry" => self.retry = de::read(node, path)?,
            "timeout" => self.timeout = de::read(node, path)?,
            "limit" => self.limit = de::read(node, path)?,
            "circuit_breaker" => self.circuit_breaker = de::read(node, path)?,
            "metrics" => self.metrics = de::read(node, path)?,
            "tracing" => self.tracing = de::read(node, path)?,
            other => unreachable!("{other} is none of the keys"),
        }
        Ok(())
    }

    /// What they say, under `[store]` or `[bus]`.
    pub(super) fn wrappers(&self, port: &str) -> Result<Wrappers> {
        let Self { retry, timeout, limit, circuit_breaker, metrics, tracing } = self;
        let mut wrappers = Wrappers::none().with_metrics(metrics.enabled).with_tracing(tracing.enabled);
        wrappers.retry = retry.enabled.then(|| retry.policy());
        wrappers.timeout = timeout.enabled.then(|| timeout.policy());
        wrappers.limit = limit.enabled.then(|| limit.policy());
        wrappers.circuit_breaker = circuit_breaker.enabled.then(|| circuit_breaker.policy());
        // The policies check themselves; here it is known which section they came from.
        let checks = [
            ("retry", wrappers.retry.map(|policy| Retry::new(policy).map(drop))),
            ("timeout", wrappers.timeout.map(|policy| Timeout::new(policy).map(drop))),
            ("limit", wrappers.limit.map(|policy| Limit::new(policy).map(drop))),
            ("circuit_breaker", wrappers.circuit_breaker.map(|policy| CircuitBreaker::new(policy).map(drop))),
        ];
        for (key, check) in checks {
            check.transpose().map_err(|e| e.with_context("key", join(port, key)))?;
        }
        Ok(wrappers)
    }
}

/// `[store.retry]`, `[bus.retry]`: see [`RetryPolicy`], whose defaults these are.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetrySection {
    /// Whether there is a retry wrapper at all.
    pub enabled: bool,
    /// How many attempts in all.
    pub attempts: u32,
    /// The first pause, in milliseconds.
    pub min_ms: u64,
    /// The longest pause, in milliseconds.
    pub max_ms: u64,
    /// By how much a pause grows.
    pub factor: f64,
    /// The share of a pause that chance may take away.
    pub jitter: f64,
    /// How long all attempts may take together, in milliseconds.
    pub budget_ms: u64,
}

impl Default for RetrySection {
    fn default() -> Self {
        let RetryPolicy { attempts, backoff, budget, .. } = RetryPolicy::default();
        Self {
            enabled: true,
            attempts,
            min_ms: millis(backoff.min),
            max_ms: millis(backoff.max),
            factor: backoff.factor,
            jitter: backoff.jitter,
            budget_ms: millis(budget),
        }
    }
}

impl RetrySection {
    fn policy(&self) -> RetryPolicy {
        let backoff = Backoff::new(Duration::from_millis(self.min_ms), Duration::from_millis(self.max_ms))
            .with_factor(self.factor)
            .with_jitter(self.jitter);
        RetryPolicy::default()
            .with_attempts(self.attempts)
            .with_backoff(backoff)
            .with_budget(Duration::from_millis(self.budget_ms))
    }
}

/// `[store.timeout]`, `[bus.timeout]`: see [`TimeoutPolicy`], whose defaults these are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeoutSection {
    /// Whether there is a timeout wrapper at all.
    pub enabled: bool,
    /// For ordinary calls, in milliseconds.
    pub limit_ms: u64,
    /// For schema changes, deletes, purges and closing, in milliseconds.
    pub heavy_ms: u64,
    /// For a publish, in milliseconds; by default what the bus's delivery timeout demands.
    pub publish_ms: Option<u64>,
}

impl Default for TimeoutSection {
    fn default() -> Self {
        let TimeoutPolicy { limit, heavy, .. } = TimeoutPolicy::default();
        Self { enabled: true, limit_ms: millis(limit), heavy_ms: millis(heavy), publish_ms: None }
    }
}

impl TimeoutSection {
    fn policy(&self) -> TimeoutPolicy {
        let policy = TimeoutPolicy::default()
            .with_limit(Duration::from_millis(self.limit_ms))
            .with_heavy(Duration::from_millis(self.heavy_ms));
        match self.publish_ms {
            Some(publish) => policy.with_publish(Duration::from_millis(publish)),
            None => policy,
        }
    }
}

/// `[store.limit]`, `[bus.limit]`: see [`LimitPolicy`], whose defaults these are.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSection {
    /// Whether there is a limit wrapper at all.
    pub enabled: bool,
    /// How many calls may be under way at once.
    pub concurrency: usize,
    /// How many more may wait.
    pub waiting: usize,
    /// How many may begin in a second; without it as many as like.
    pub rate: Option<f64>,
    /// How many may begin at once after a pause.
    pub burst: u32,
}

impl Default for LimitSection {
    fn default() -> Self {
        let LimitPolicy { concurrency, waiting, rate, burst, .. } = LimitPolicy::default();
        Self { enabled: true, concurrency, waiting, rate, burst }
    }
}

impl LimitSection {
    fn policy(&self) -> LimitPolicy {
        let policy = LimitPolicy::default().with_concurrency(self.concurrency).with_waiting(self.waiting);
        match self.rate {
            Some(rate) => policy.with_rate(rate, self.burst),
            None => policy,
        }
    }
}

/// `[store.circuit_breaker]`, `[bus.circuit_breaker]`: see [`CircuitBreakerPolicy`], whose defaults these are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CircuitBreakerSection {
    /// Whether there is a circuit breaker at all.
    pub enabled: bool,
    /// How many attempts in a row must fail.
    pub failures: u32,
    /// How long everything is refused then, in milliseconds.
    pub open_ms: u64,
}

impl Default for CircuitBreakerSection {
    fn default() -> Self {
        let CircuitBreakerPolicy { failures, open_for, .. } = CircuitBreakerPolicy::default();
        Self { enabled: true, failures, open_ms: millis(open_for) }
    }
}

impl CircuitBreakerSection {
    fn policy(&self) -> CircuitBreakerPolicy {
        CircuitBreakerPolicy::default()
            .with_failures(self.failures)
            .with_open_for(Duration::from_millis(self.open_ms))
    }
}

/// `[store.metrics]`, `[bus.metrics]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsSection {
    /// Whether calls are counted and timed.
    pub enabled: bool,
}

impl Default for MetricsSection {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// `[store.tracing]`, `[bus.tracing]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracingSection {
    /// Whether there is a span around every call.
    pub enabled: bool,
}

impl Default for TracingSection {
    fn default() -> Self {
        Self { enabled: true }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
