//! What checks say when something is not as promised: what was expected and what was found.

use std::fmt::{self, Debug};

use qi_core::{Error, ErrorKind, Result};

/// A promise that a store broke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    text: String,
    accident: bool,
}

/// What a check ends with.
pub type Outcome = std::result::Result<(), Failure>;

impl Failure {
    /// A broken promise in words.
    pub fn new(text: impl fmt::Display) -> Self {
        Self { text: text.to_string(), accident: false }
    }

    /// The check itself broke: a panic, or its time limit.
    pub(super) fn accident(text: impl fmt::Display) -> Self {
        Self { text: text.to_string(), accident: true }
    }

    /// Whether the check broke before it could judge.
    pub fn is_accident(&self) -> bool {
        self.accident
    }

    /// The same, with where it happened in front.
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

/// Both are the same.
pub(crate) fn same<T: PartialEq + Debug>(what: &str, found: &T, expected: &T) -> Outcome {
    if found == expected {
        return Ok(());
    }
    Err(Failure::new(format_args!("{what}\n  expected: {expected:?}\n     found: {found:?}")))
}

/// Both lists are the same; says where they part.
pub(crate) fn same_rows<T: PartialEq + Debug>(what: &str, found: &[T], expected: &[T]) -> Outcome {
    if found == expected {
        return Ok(());
    }
    let at = found.iter().zip(expected).take_while(|(a, b)| a == b).count();
    Err(Failure::new(format_args!(
        "{what}: {} records where {} were expected, and the one at {at} differs\n  expected: {:?}\n     found: {:?}",
        found.len(),
        expected.len(),
        expected.get(at),
        found.get(at),
    )))
}

/// It holds.
pub(crate) fn holds(what: impl fmt::Display, condition: bool) -> Outcome {
    if condition { Ok(()) } else { Err(Failure::new(format_args!("expected: {what}"))) }
}

/// It is refused with this kind; gives the error.
pub(crate) fn refused<T: Debug>(
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
