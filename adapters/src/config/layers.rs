//! The sections of the layers. `[store]` and `[bus]` have the same sections.

use std::fmt::Display;
use std::time::Duration;

use qi_core::domain::duration;
use qi_core::layer::{CircuitBreakerConfig, LayerStack, LimitConfig, RetryConfig, TimeoutConfig};
use qi_core::{Backoff, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::de;
use super::tree::{Node, join};

/// The sections of the layers. An absent section has the default values.
#[derive(Debug, Default, Serialize)]
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
            other => unreachable!("unknown section {other}"),
        }
        Ok(())
    }

    /// Returns the layers of a port, `store` or `bus`.
    ///
    /// # Errors
    /// `Config` for a value outside its range, in the section of an enabled layer.
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

    /// Checks `publish` against the delivery timeout of an opened bus.
    ///
    /// # Errors
    /// `Config` if `publish` is less than twice the delivery timeout. The layer would replace such a value by twice
    /// the delivery timeout.
    pub(super) fn check_publish(&self, port: &str, delivery_timeout: Duration) -> Result<()> {
        let min = delivery_timeout.saturating_mul(2);
        match self.timeout.publish.filter(|_| self.timeout.enabled) {
            Some(limit) => Rules { section: join(port, "timeout") }.check(
                "publish",
                duration::format(limit),
                limit >= min,
                format_args!(
                    "must be at least twice the delivery timeout of the bus, {}",
                    duration::format(min)
                ),
            ),
            None => Ok(()),
        }
    }
}

/// The checks of the values of a section.
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

    fn at_least_one_millisecond(&self, field: &str, value: Duration) -> Result<()> {
        let valid = value >= Duration::from_millis(1);
        self.check(field, duration::format(value), valid, "must be at least 1ms")
    }
}

/// `[store.retry]`, `[bus.retry]`: the settings of [`RetryConfig`], with the same defaults.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RetrySection {
    /// Enables the layer. Defaults to true.
    pub enabled: bool,
    /// The maximum number of attempts, including the first.
    pub max_attempts: u32,
    /// The delay before the second attempt.
    #[serde(with = "duration")]
    pub min_delay: Duration,
    /// The maximum delay between two attempts.
    #[serde(with = "duration")]
    pub max_delay: Duration,
    /// The factor between consecutive delays.
    pub factor: f64,
    /// The fraction of a delay that the jitter may subtract, from 0 to 1.
    pub jitter: f64,
    /// The time from the start of a call after which no attempt starts.
    #[serde(with = "duration")]
    pub max_elapsed: Duration,
}

impl Default for RetrySection {
    fn default() -> Self {
        let RetryConfig { max_attempts, backoff, max_elapsed, .. } = RetryConfig::default();
        Self {
            enabled: true,
            max_attempts,
            min_delay: backoff.min,
            max_delay: backoff.max,
            factor: backoff.factor,
            jitter: backoff.jitter,
            max_elapsed,
        }
    }
}

impl RetrySection {
    fn config(&self, rules: &Rules) -> Result<RetryConfig> {
        let Self { max_attempts, min_delay, max_delay, factor, jitter, .. } = *self;
        rules.at_least_one("max_attempts", max_attempts.into())?;
        let (shown, valid) = (duration::format(max_delay), max_delay >= min_delay);
        rules.check("max_delay", shown, valid, "must not be below min_delay")?;
        rules.check(
            "factor",
            factor,
            factor >= 1.0 && factor.is_finite(),
            "must be finite and at least 1",
        )?;
        rules.check("jitter", jitter, (0.0..=1.0).contains(&jitter), "must lie from 0 to 1")?;
        let backoff = Backoff::new(min_delay, max_delay).with_factor(factor).with_jitter(jitter);
        Ok(RetryConfig::default()
            .with_max_attempts(max_attempts)
            .with_backoff(backoff)
            .with_max_elapsed(self.max_elapsed))
    }
}

/// `[store.timeout]`, `[bus.timeout]`: the settings of [`TimeoutConfig`], with the same defaults.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TimeoutSection {
    /// Enables the layer. Defaults to true.
    pub enabled: bool,
    /// The timeout of ordinary calls.
    #[serde(with = "duration")]
    pub call: Duration,
    /// The timeout of `ensure_schema`, `migrate_schema`, `delete_range`, `purge_before`, `maintain`, `subscribe` and `close`.
    #[serde(with = "duration")]
    pub bulk: Duration,
    /// The timeout of a publish. Defaults to twice the delivery timeout of the bus plus `call`.
    #[serde(with = "duration::option")]
    pub publish: Option<Duration>,
}

impl Default for TimeoutSection {
    fn default() -> Self {
        let TimeoutConfig { call, bulk, .. } = TimeoutConfig::default();
        Self { enabled: true, call, bulk, publish: None }
    }
}

impl TimeoutSection {
    fn config(&self, rules: &Rules) -> Result<TimeoutConfig> {
        rules.at_least_one_millisecond("call", self.call)?;
        rules.at_least_one_millisecond("bulk", self.bulk)?;
        let mut config = TimeoutConfig::default().with_call(self.call).with_bulk(self.bulk);
        if let Some(limit) = self.publish {
            rules.at_least_one_millisecond("publish", limit)?;
            config = config.with_publish(limit);
        }
        Ok(config)
    }
}

/// `[store.limit]`, `[bus.limit]`: the settings of [`LimitConfig`], with the same defaults.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LimitSection {
    /// Enables the layer. Defaults to true.
    pub enabled: bool,
    /// The maximum number of calls in progress.
    pub concurrency: usize,
    /// The maximum number of calls in the queue.
    pub max_queued: usize,
    /// The maximum number of calls started per second. Defaults to no limit.
    pub rate: Option<f64>,
    /// The maximum number of calls that may start at once after an idle period. Only used with a `rate`.
    pub burst: u32,
}

impl Default for LimitSection {
    fn default() -> Self {
        let LimitConfig { concurrency, max_queued, rate, burst, .. } = LimitConfig::default();
        Self { enabled: true, concurrency, max_queued, rate, burst }
    }
}

impl LimitSection {
    fn config(&self, rules: &Rules) -> Result<LimitConfig> {
        let Self { concurrency, max_queued, rate, burst, .. } = *self;
        let (max, min_rate, max_rate) =
            (LimitConfig::MAX_CONCURRENCY, LimitConfig::MIN_RATE, LimitConfig::MAX_RATE);
        let valid = (1..=max).contains(&concurrency);
        rules.check("concurrency", concurrency, valid, format_args!("must lie from 1 to {max}"))?;
        rules.at_least_one("burst", burst.into())?;
        let mut config = LimitConfig::default().with_concurrency(concurrency).with_max_queued(max_queued);
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
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct CircuitBreakerSection {
    /// Enables the layer. Defaults to true.
    pub enabled: bool,
    /// The number of consecutive failures that opens the circuit.
    pub failure_threshold: u32,
    /// The time before an open circuit admits a probe.
    #[serde(with = "duration")]
    pub open_duration: Duration,
}

impl Default for CircuitBreakerSection {
    fn default() -> Self {
        let CircuitBreakerConfig { failure_threshold, open_duration, .. } = CircuitBreakerConfig::default();
        Self { enabled: true, failure_threshold, open_duration }
    }
}

impl CircuitBreakerSection {
    fn config(&self, rules: &Rules) -> Result<CircuitBreakerConfig> {
        let Self { failure_threshold, open_duration, .. } = *self;
        rules.at_least_one("failure_threshold", failure_threshold.into())?;
        let (min, max) = (CircuitBreakerConfig::MIN_OPEN_DURATION, CircuitBreakerConfig::MAX_OPEN_DURATION);
        let valid = (min..=max).contains(&open_duration);
        let rule = format!("must lie from {} to {}", duration::format(min), duration::format(max));
        rules.check("open_duration", duration::format(open_duration), valid, rule)?;
        Ok(CircuitBreakerConfig::default()
            .with_failure_threshold(failure_threshold)
            .with_open_duration(open_duration))
    }
}

/// `[store.metrics]`, `[bus.metrics]`: the settings of the metrics layer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
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
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TracingSection {
    /// Enables the layer `Traced`. Defaults to true.
    pub enabled: bool,
}

impl Default for TracingSection {
    fn default() -> Self {
        Self { enabled: true }
    }
}
