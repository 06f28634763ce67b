//! Validation of the values in a backend's section.

use std::fmt;
use std::time::Duration;
#[cfg(any(feature = "clickhouse", feature = "redpanda", feature = "timescale"))]
use std::{fs::File, io::Read as _, path::Path};

use qi_core::domain::duration;
use qi_core::{Error, ErrorKind, Result};
#[cfg(any(feature = "clickhouse", feature = "redpanda", feature = "timescale"))]
use secrecy::SecretString;

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
        Err(self.reject(key, value, format_args!("must lie from {min} to {max}")))
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
        Err(self.reject(key, duration::format(value), rule))
    }

    /// Rejects a password that is set both as `key` and as a file.
    pub(super) fn one_of(&self, key: &str, is_set: bool, has_file: bool) -> Result<()> {
        if is_set && has_file {
            let rule = format!("`{key}` and `{key}_file` must not both be set");
            return Err(self.reject(&format!("{key}_file"), "both", rule));
        }
        Ok(())
    }

    /// Reads a secret from a file, without the line breaks at its end, like a shell.
    #[cfg(any(feature = "clickhouse", feature = "redpanda", feature = "timescale"))]
    pub(super) fn secret(&self, key: &str, file: &Path) -> Result<SecretString> {
        const MAX_BYTES: u64 = 65_536;
        let mut text = String::new();
        let read = File::open(file).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
        if let Err(error) = read {
            return Err(self.reject(key, file.display(), "cannot be read").with_source(error));
        }
        let secret = text.trim_end_matches(['\n', '\r']);
        if secret.is_empty() || text.len() as u64 > MAX_BYTES {
            let rule = format_args!("must contain 1 to {MAX_BYTES} bytes of text");
            return Err(self.reject(key, file.display(), rule));
        }
        Ok(SecretString::from(secret))
    }

    /// Returns the error for a rejected value.
    pub(super) fn reject(&self, key: &str, value: impl fmt::Display, rule: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Config, self.code, "open")
            .with_message(rule)
            .with_backend(self.backend)
            .with_context("key", format_args!("{}.{key}", self.section))
            .with_context("value", value)
    }
}

#[cfg(all(test, any(feature = "clickhouse", feature = "redpanda", feature = "timescale")))]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn line_breaks_at_the_end_of_a_secret_are_ignored() {
        let rules = Rules { section: "store.x", code: "store.x.config", backend: "x" };
        let file = tempfile::NamedTempFile::new().unwrap();
        let secret = |content: &str| {
            std::fs::write(file.path(), content).unwrap();
            rules.secret("password_file", file.path()).map(|secret| secret.expose_secret().to_owned())
        };
        for content in ["hunter2", "hunter2\n", "hunter2\r\n", "hunter2\n\n", "hunter2\r\n\r\n"] {
            assert_eq!(secret(content).unwrap(), "hunter2", "{content:?}");
        }
        assert_eq!(secret(" a\nb \n").unwrap(), " a\nb ");
        assert!(secret("\n\n").is_err());
    }
}
