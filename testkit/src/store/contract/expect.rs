//! Assertions of the checks, and their failures with expected and found values.

use std::fmt::{self, Debug};

use qi_core::{Error, ErrorKind, Result};

/// A promise of the contract that a store broke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    text: String,
    inconclusive: bool,
}

/// The result of a check.
pub type CheckResult = std::result::Result<(), Failure>;

impl Failure {
    /// Creates a failure from a text.
    pub fn new(text: impl fmt::Display) -> Self {
        Self { text: text.to_string(), inconclusive: false }
    }

    /// Creates a failure of the check itself: a panic or a timeout.
    pub(super) fn inconclusive(text: impl fmt::Display) -> Self {
        Self { text: text.to_string(), inconclusive: true }
    }

    /// Returns whether the check failed before it could give a result.
    pub fn is_inconclusive(&self) -> bool {
        self.inconclusive
    }

    /// Returns the failure with a location before its text.
    #[must_use]
    pub fn within(self, place: impl fmt::Display) -> Self {
        Self { text: format!("{place}: {}", self.text), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(format_args!("expected Ok, found the error: {}", error.report()))
    }
}

/// Fails unless both values are equal.
pub(crate) fn expect_same<T: PartialEq + Debug>(what: &str, found: &T, expected: &T) -> CheckResult {
    if found == expected {
        return Ok(());
    }
    Err(Failure::new(format_args!("{what}\n  expected: {expected:?}\n     found: {found:?}")))
}

/// Fails unless both lists are equal, and reports the first difference.
pub(crate) fn expect_same_rows<T: PartialEq + Debug>(what: &str, found: &[T], expected: &[T]) -> CheckResult {
    if found == expected {
        return Ok(());
    }
    let at = found.iter().zip(expected).take_while(|(a, b)| a == b).count();
    Err(Failure::new(format_args!(
        "{what}: found {} records, expected {}; record {at} differs\n  expected: {:?}\n     found: {:?}",
        found.len(),
        expected.len(),
        expected.get(at),
        found.get(at),
    )))
}

/// Fails unless the condition is true.
pub(crate) fn expect_true(what: impl fmt::Display, condition: bool) -> CheckResult {
    if condition { Ok(()) } else { Err(Failure::new(format_args!("expected: {what}"))) }
}

/// Returns the error of a rejected call. Fails unless the error has this kind.
pub(crate) fn expect_error<T: Debug>(
    what: &str,
    result: Result<T>,
    kind: ErrorKind,
) -> std::result::Result<Error, Failure> {
    match result {
        Err(error) if error.kind() == kind => Ok(error),
        Err(error) => Err(Failure::new(format_args!(
            "{what}\n  expected: kind {kind:?}\n     found: {}",
            error.report()
        ))),
        Ok(value) => {
            Err(Failure::new(format_args!("{what}\n  expected: kind {kind:?}\n     found: Ok({value:?})")))
        }
    }
}
