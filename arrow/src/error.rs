//! Errors of this crate.

use std::fmt::Display;

use qi_core::{Error, ErrorKind};

/// Data that does not have the schema of its dataset.
pub(crate) fn mismatch(code: &'static str, message: impl Display) -> Error {
    Error::new(ErrorKind::SchemaMismatch, code, "arrow").with_message(message)
}

/// A value that no record can have.
pub(crate) fn corrupt(code: &'static str, message: impl Display) -> Error {
    Error::new(ErrorKind::CorruptData, code, "arrow").with_message(message)
}
