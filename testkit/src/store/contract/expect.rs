//! What checks say when something is not as promised: what was expected and what was found.

use std::fmt::{self, Debug};

use qi_core::{Error, ErrorKind, Result};

/// A promise that a store broke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(String);

/// What a check ends with.
pub type Outcome = std::result::Result<(), Failure>;

impl Failure {
    /// A broken promise in words.
    pub fn new(text: impl fmt::Display) -> Self {
        Self(text.to_string())
    }

    /// The same, with where it happened in front.
    #[must_use]
    pub fn within(self, place: impl fmt::Display) -> Self {
        Self(format!("{place}: {}", self.0))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(format!("expected Ok, found the error: {}", error.report()))
    }
}

/// Both are the same.
pub(crate) fn same<T: PartialEq + Debug>(what: &str, found: &T, expected: &T) -> Outcome {
    if found == expected {
        return Ok(());
    }
    Err(Failure(format!("{what}\n  expected: {expected:?}\n     found: {found:?}")))
}

/// Both lists are the same; says where they part.
pub(crate) fn same_rows<T: PartialEq + Debug>(what: &str, found: &[T], expected: &[T]) -> Outcome {
    if found == expected {
        return Ok(());
    }
    let at = found.iter().zip(expected).take_while(|(a, b)| a == b).count();
    Err(Failure(format!(
        "{what}: {} records where {} were expected, and the one at {at} differs\n  expected: {:?}\n     found: {:?}",
        found.len(),
        expected.len(),
        expected.get(at),
        found.get(at),
    )))
}

/// It holds.
pub(crate) fn holds(what: impl fmt::Display, condition: bool) -> Outcome {
    if condition { Ok(()) } else { Err(Failure(format!("expected: {what}"))) }
}

/// It is refused with this kind; gives the error.
pub(crate) fn refused<T: Debug>(
    what: &str,
    result: Result<T>,
    kind: ErrorKind,
) -> std::result::Result<Error, Failure> {
    match result {
        Err(error) if error.kind() == kind => Ok(error),
        Err(error) => {
            Err(Failure(format!("{what}\n  expected: kind {kind:?}\n     found: {}", error.report())))
        }
        Ok(value) => Err(Failure(format!("{what}\n  expected: kind {kind:?}\n     found: Ok({value:?})"))),
    }
}
