//! Validation of the values in a backend's section.

use std::fmt;
use std::time::Duration;

use qi_core::domain::duration;
use qi_core::{Error, ErrorKind, Result};

/// The section of a backend, for use in its errors.
#[derive(Debug)]
pub(super) struct Rules {
    /// The path of the section, for example `store.clickhouse`.
    pub(super) section: &'static str,
    /// The error code, for example `store.clickhouse.config`.
    pub(super) code: &'static str,
    pub(super) backend: &'static str,
}

impl Rules {
    /// Rejects a number outside `least..=most`.
    pub(super) fn within(&self, key: &str, value: u64, min: u64, max: u64) -> Result<()> {
        if (min..=max).contains(&value) {
            return Ok(());
        }
        Err(self.refuse(key, value, format_args!("must lie from {min} to {max}")))
    }

    /// Rejects a duration outside `least..=most`.
    pub(super) fn duration_within(
        &self,
        key: &str,
        value: Duration,
        min: Duration,
        max: Duration,
    ) -> Result<()> {
        if (min..=max).contains(&value) {
            return Ok(());
        }
        let (min, max) = (duration::format(min), duration::format(max));
        let rule = format_args!("must lie from {min} to {max}");
        Err(self.refuse(key, duration::format(value), rule))
    }

    /// Returns the error for a rejected value.
    pub(super) fn refuse(&self, key: &str, value: impl fmt::Display, rule: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Config, self.code, "open")
            .with_message(rule)
            .with_backend(self.backend)
            .with_context("key", format_args!("{}.{key}", self.section))
            .with_context("value", value)
    }
}
