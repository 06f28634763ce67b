//! The sections of the layers. `[store]` and `[bus]` have the same sections.

use std::fmt::Display;
use std::time::Duration;

use qi_core::layer::{CircuitBreakerConfig, LayerStack, LimitConfig, RetryConfig, TimeoutConfig};
use qi_core::{Backoff, Error, ErrorKind, Result};
use serde::Deserialize;

use super::de;
use super::tree::{Node, join};

/// The sections of the layers. An absent section has the default values.
#[derive(Debug, Default)]
pub(super) struct LayerSections {
    retry: RetrySection,
    timeout: TimeoutSection,
    limit: LimitSection,
    circuit_breaker: CircuitBreakerSection,
    metrics: MetricsSection,
    tracing: TracingSection,
}

impl LayerSections {
    pub(super) const KEYS: &'static [&'static str] =
        &["retry", "timeout", "limit", "circuit_breaker", "metrics", "tracing"];

    /// Reads a section whose name is in [`Self::KEYS`].
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

    /// Returns the layers of a port, `store` or `bus`.
    ///
    /// # Errors
    /// `Config` for a value outside its range.
    pub(super) fn stack(&self, port: &str) -> Result<LayerStack> {
        let Self { retry, timeout, limit, circuit_breaker, metrics, tracing } = self;
        let section = |key| Rules { section: join(port, key) };
        let mut stack = LayerStack::none().with_metrics(metrics.enabled).with_tracing(tracing.enabled);
        if retry.enabled {
            stack = stack.with_retry(retry.config(&section("retry"))?);
        }
        if timeout.enabled {
            stack = stack.with_timeout(timeout.config(&section("timeout"))?);
        }
        if limit.enabled {
            stack = stack.with_limit(limit.config(&section("limit"))?);
        }
        if circuit_breaker.enabled {
            stack = stack.with_circuit_breaker(circuit_breaker.config(&section("circuit_breaker"))?);
        }
        Ok(stack)
    }

    /// Checks `publish_ms` against the delivery timeout of an opened bus.
    ///
    /// # Errors
    /// `Config` if `publish_ms` is less than twice the delivery timeout, so that a publish could time out before the
    /// bus reports its outcome.
    pub(super) fn check_publish(&self, port: &str, delivery_timeout: Duration) -> Result<()> {
        let least = millis(delivery_timeout.saturating_mul(2));
        match self.timeout.publish_ms.filter(|_| self.timeout.enabled) {
            Some(limit) => Rules { section: join(port, "timeout") }.check(
                "publish_ms",
                limit,
                limit >= least,
                format_args!("must be at least twice the delivery timeout of the bus, {least} ms"),
            ),
            None => Ok(()),
        }
    }
}

/// Checks the values of a section.
struct Rules {
    section: String,
}

impl Rules {
    fn check(&self, field: &str, value: impl Display, valid: bool, rule: impl Display) -> Result<()> {
        if valid {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Config, "config.value", "load")
            .with_message(rule)
            .with_context("key", join(&self.section, field))
            .with_context("value", value))
    }

    fn at_least_one(&self, field: &str, value: u64) -> Result<()> {
        self.check(field, value, value >= 1, "must be at least 1")
    }
}

/// `[store.retry]`, `[bus.retry]`: the settings of [`RetryConfig`], with the same defaults.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetrySection {
    /// Enables the layer. Defaults to true.
    pub enabled: bool,
    /// The maximum number of attempts, including the first.
    pub attempts: u32,
    /// The first delay, in milliseconds.
    pub min_ms: u64,
    /// The maximum delay, in milliseconds.
    pub max_ms: u64,
    /// The factor between consecutive delays.
    pub factor: f64,
    /// The fraction of a delay that the jitter may subtract, from 0 to 1.
    pub jitter: f64,
    /// The maximum time for all attempts and delays of a call, in milliseconds.
    pub budget_ms: u64,
}

impl Default for RetrySection {
    fn default() -> Self {
        let RetryConfig { max_attempts, backoff, max_elapsed, .. } = RetryConfig::default();
        Self {
            enabled: true,
            attempts: max_attempts,
            min_ms: millis(backoff.min),
            max_ms: millis(backoff.max),
            factor: backoff.factor,
            jitter: backoff.jitter,
            budget_ms: millis(max_elapsed),
        }
    }
}

impl RetrySection {
    fn config(&self, rules: &Rules) -> Result<RetryConfig> {
        let Self { attempts, min_ms, max_ms, factor, jitter, .. } = *self;
        rules.at_least_one("attempts", attempts.into())?;
        rules.check("max_ms", max_ms, max_ms >= min_ms, "must not be below min_ms")?;
        rules.check(
            "factor",
            factor,
            factor >= 1.0 && factor.is_finite(),
            "must be finite and at least 1",
        )?;
        rules.check("jitter", jitter, (0.0..=1.0).contains(&jitter), "must lie from 0 to 1")?;
        let backoff = Backoff::new(Duration::from_millis(min_ms), Duration::from_millis(max_ms))
            .with_factor(factor)
            .with_jitter(jitter);
        Ok(RetryConfig::default()
            .with_max_attempts(attempts)
            .with_backoff(backoff)
            .with_max_elapsed(Duration::from_millis(self.budget_ms)))
    }
}

/// `[store.timeout]`, `[bus.timeout]`: the settings of [`TimeoutConfig`], with the same defaults.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeoutSection {
    /// Enables the layer. Defaults to true.
    pub enabled: bool,
    /// The timeout of ordinary calls, in milliseconds.
    pub limit_ms: u64,
    /// The timeout of `ensure_schema`, `delete_range`, `purge_before` and `close`, in milliseconds.
    pub heavy_ms: u64,
    /// The timeout of a publish, in milliseconds. Defaults to twice the delivery timeout of the bus plus `limit_ms`.
    pub publish_ms: Option<u64>,
}

impl Default for TimeoutSection {
    fn default() -> Self {
        let TimeoutConfig { call, bulk, .. } = TimeoutConfig::default();
        Self { enabled: true, limit_ms: millis(call), heavy_ms: millis(bulk), publish_ms: None }
    }
}

impl TimeoutSection {
    fn config(&self, rules: &Rules) -> Result<TimeoutConfig> {
        rules.at_least_one("limit_ms", self.limit_ms)?;
        rules.at_least_one("heavy_ms", self.heavy_ms)?;
        let mut config = TimeoutConfig::default()
            .with_call(Duration::from_millis(self.limit_ms))
            .with_bulk(Duration::from_millis(self.heavy_ms));
        if let Some(limit) = self.publish_ms {
            rules.at_least_one("publish_ms", limit)?;
            config = config.with_publish(Duration::from_millis(limit));
        }
        Ok(config)
    }
}

/// `[store.limit]`, `[bus.limit]`: the settings of [`LimitConfig`], with the same defaults.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSection {
    /// Enables the layer. Defaults to true.
    pub enabled: bool,
    /// The maximum number of calls in progress.
    pub concurrency: usize,
    /// The maximum number of calls in the queue.
    pub waiting: usize,
    /// The maximum number of calls started per second. Defaults to no limit.
    pub rate: Option<f64>,
    /// The maximum number of calls that may start at once after an idle period.
    pub burst: u32,
}

impl Default for LimitSection {
    fn default() -> Self {
        let LimitConfig { concurrency, max_queued, rate, burst, .. } = LimitConfig::default();
        Self { enabled: true, concurrency, waiting: max_queued, rate, burst }
    }
}

impl LimitSection {
    fn config(&self, rules: &Rules) -> Result<LimitConfig> {
        let Self { concurrency, waiting, rate, burst, .. } = *self;
        let (max, min_rate, max_rate) =
            (LimitConfig::MAX_CONCURRENCY, LimitConfig::MIN_RATE, LimitConfig::MAX_RATE);
        let valid = (1..=max).contains(&concurrency);
        rules.check("concurrency", concurrency, valid, format_args!("must lie from 1 to {max}"))?;
        rules.at_least_one("burst", burst.into())?;
        let mut config = LimitConfig::default().with_concurrency(concurrency).with_max_queued(waiting);
        if let Some(rate) = rate {
            let valid = (min_rate..=max_rate).contains(&rate);
            let rule = format_args!("must lie from {min_rate} to {max_rate} calls per second");
            rules.check("rate", rate, valid, rule)?;
            config = config.with_rate(rate, burst);
        }
        Ok(config)
    }
}

/// `[store.circuit_breaker]`, `[bus.circuit_breaker]`: the settings of [`CircuitBreakerConfig`],
/// with the same defaults.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CircuitBreakerSection {
    /// Enables the layer. Defaults to true.
    pub enabled: bool,
    /// The number of consecutive failures that opens the circuit.
    pub failures: u32,
    /// The time before an open circuit admits a probe, in milliseconds.
    pub open_ms: u64,
}

impl Default for CircuitBreakerSection {
    fn default() -> Self {
        let CircuitBreakerConfig { failure_threshold, open_duration, .. } = CircuitBreakerConfig::default();
        Self { enabled: true, failures: failure_threshold, open_ms: millis(open_duration) }
    }
}

impl CircuitBreakerSection {
    fn config(&self, rules: &Rules) -> Result<CircuitBreakerConfig> {
        let Self { failures, open_ms, .. } = *self;
        rules.at_least_one("failures", failures.into())?;
        let min = millis(CircuitBreakerConfig::MIN_OPEN_DURATION);
        let max = millis(CircuitBreakerConfig::MAX_OPEN_DURATION);
        let valid = (min..=max).contains(&open_ms);
        rules.check("open_ms", open_ms, valid, format_args!("must lie from {min} to {max}"))?;
        Ok(CircuitBreakerConfig::default()
            .with_failure_threshold(failures)
            .with_open_duration(Duration::from_millis(open_ms)))
    }
}

/// `[store.metrics]`, `[bus.metrics]`: the settings of the metrics layer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsSection {
    /// Enables the layer `Metered`. Defaults to true.
    pub enabled: bool,
}

impl Default for MetricsSection {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// `[store.tracing]`, `[bus.tracing]`: the settings of the tracing layer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracingSection {
    /// Enables the layer `Traced`. Defaults to true.
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
