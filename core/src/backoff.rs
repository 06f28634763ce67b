//! Delays that grow, and that chance spreads out.

use std::time::Duration;

use crate::{Error, Result};

/// How long to wait before trying again: `min(max, min x factor^(k-1)) x (1 - jitter x u)` before the k-th new
/// attempt, in whole milliseconds, with u from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Backoff {
    /// The first delay. 200 ms.
    pub min: Duration,
    /// The longest delay. 5 s.
    pub max: Duration,
    /// By how much it grows each time, at least 1. 2.
    pub factor: f64,
    /// The share of a delay, from 0 to 1, that chance may take away, so that those who failed together do not try
    /// again together. 0.2.
    pub jitter: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { min: Duration::from_millis(200), max: Duration::from_secs(5), factor: 2.0, jitter: 0.2 }
    }
}

impl Backoff {
    /// Delays from `min` to `max`; factor and jitter are the defaults.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, ..Self::default() }
    }

    /// Sets the growth from one delay to the next.
    #[must_use]
    pub fn with_factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// Sets the share of a delay that chance may take away.
    #[must_use]
    pub fn with_jitter(mut self, jitter: f64) -> Self {
        self.jitter = jitter;
        self
    }

    /// Returns the delay before the `attempt`-th new attempt (from 1), where `u` from 0 to 1 is the share of the jitter
    /// that applies.
    pub fn delay(&self, attempt: u32, u: f64) -> Duration {
        if self.min.is_zero() {
            return Duration::ZERO;
        }
        let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.min.as_secs_f64() * 1e3 * self.factor.powi(exponent);
        let millis = grown.min(self.max.as_secs_f64() * 1e3) * (1.0 - self.jitter.clamp(0.0, 1.0) * u);
        // The cast saturates, and gives 0 for what is no number.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole milliseconds, see above"
        )]
        Duration::from_millis(millis as u64)
    }

    /// Checks what the fields alone cannot.
    ///
    /// # Errors
    /// `InvalidInput` for a jitter outside 0 to 1, a factor below 1, or a `max` below `min`.
    pub fn check(&self) -> Result<()> {
        let Self { min, max, factor, jitter } = *self;
        let refuse = |field, value: &dyn std::fmt::Debug, rule| {
            Err(Error::invalid("backoff", field, format_args!("{value:?}"), rule))
        };
        if !(0.0..=1.0).contains(&jitter) {
            return refuse("jitter", &jitter, "must lie from 0 to 1");
        }
        if !(factor >= 1.0 && factor.is_finite()) {
            return refuse("factor", &factor, "must be finite and at least 1");
        }
        if max < min {
            return refuse("max", &max, "must not be below min");
        }
        Ok(())
    }
}
