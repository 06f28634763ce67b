//! Growing delays with jitter.

use std::time::Duration;

use crate::{Error, Result};

/// Delays between attempts. The delay before retry number k is `min(max, min x factor^(k-1)) x (1 - jitter x u)`, in
/// whole milliseconds, with a random u from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Backoff {
    /// The first delay. Defaults to 200 ms.
    pub min: Duration,
    /// The longest delay. Defaults to 5 s.
    pub max: Duration,
    /// The factor from one delay to the next, at least 1. Defaults to 2.
    pub factor: f64,
    /// The maximum random reduction of a delay, as a share from 0 to 1. It spreads the retries of callers that failed
    /// together. Defaults to 0.2.
    pub jitter: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { min: Duration::from_millis(200), max: Duration::from_secs(5), factor: 2.0, jitter: 0.2 }
    }
}

impl Backoff {
    /// Creates delays from `min` to `max`, with the default factor and jitter.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, ..Self::default() }
    }

    /// Sets the factor from one delay to the next.
    #[must_use]
    pub fn with_factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// Sets the maximum random reduction of a delay, as a share from 0 to 1.
    #[must_use]
    pub fn with_jitter(mut self, jitter: f64) -> Self {
        self.jitter = jitter;
        self
    }

    /// Returns the delay before retry number `attempt`, counted from 1. `u` from 0 to 1 is the share
    /// of the jitter that applies.
    pub fn delay(&self, attempt: u32, u: f64) -> Duration {
        if self.min.is_zero() {
            return Duration::ZERO;
        }
        let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.min.as_secs_f64() * 1e3 * self.factor.powi(exponent);
        let millis = grown.min(self.max.as_secs_f64() * 1e3) * (1.0 - self.jitter.clamp(0.0, 1.0) * u);
        // The cast saturates, and converts NaN to 0.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole milliseconds, see above"
        )]
        Duration::from_millis(millis as u64)
    }

    /// Checks the relations between the fields and their bounds.
    ///
    /// # Errors
    /// `InvalidInput` for a jitter outside 0 to 1, a factor below 1, or a `max` below `min`.
    pub fn check(&self) -> Result<()> {
        let Self { min, max, factor, jitter } = *self;
        let reject = |field, value: &dyn std::fmt::Debug, rule| {
            Err(Error::invalid("backoff", field, format_args!("{value:?}"), rule))
        };
        if !(0.0..=1.0).contains(&jitter) {
            return reject("jitter", &jitter, "must lie from 0 to 1");
        }
        if !(factor >= 1.0 && factor.is_finite()) {
            return reject("factor", &factor, "must be finite and at least 1");
        }
        if max < min {
            return reject("max", &max, "must not be below min");
        }
        Ok(())
    }
}
