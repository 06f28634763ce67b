//! A check and its verdict.

use std::fmt;

use futures::future::BoxFuture;
use qi_core::Error;

use super::{Capability, TestContext};

/// The reason for the failure of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    text: String,
    inconclusive: bool,
}

impl Failure {
    /// Creates a failure from a text.
    pub fn new(text: impl fmt::Display) -> Self {
        Self { text: text.to_string(), inconclusive: false }
    }

    /// Creates a failure of the check itself: a panic, a time limit, or an environment that failed.
    pub(super) fn inconclusive(text: impl fmt::Display) -> Self {
        Self { text: text.to_string(), inconclusive: true }
    }

    /// Returns whether the check failed before it could give a result.
    pub fn is_inconclusive(&self) -> bool {
        self.inconclusive
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(error.report())
    }
}

/// The result of a check.
pub type CheckResult<T = ()> = Result<T, Failure>;

/// One named property of the contract.
#[derive(Clone, Copy)]
pub struct Check {
    /// The chapter and the property: `publish::messages_of_one_key_keep_their_order`.
    pub name: &'static str,
    /// The features that the backend must have.
    pub capabilities: &'static [Capability],
    /// The function that tests the bus of a context.
    pub run: for<'a> fn(&'a TestContext) -> BoxFuture<'a, CheckResult>,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check")
            .field("name", &self.name)
            .field("capabilities", &self.capabilities)
            .finish_non_exhaustive()
    }
}

/// Fails the check unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($words:tt)+) => {
        if !$condition {
            return Err($crate::bus::contract::Failure::new(format_args!($($words)+)));
        }
    };
}

/// Fails the check unless two values are equal, and shows both.
macro_rules! ensure_eq {
    ($found:expr, $wanted:expr, $($words:tt)+) => {
        match (&$found, &$wanted) {
            (found, wanted) => if found != wanted {
                let words = format!($($words)+);
                return Err($crate::bus::contract::Failure::new(format_args!(
                    "{words}: found {found:?}, wanted {wanted:?}"
                )));
            }
        }
    };
}

pub(crate) use {ensure, ensure_eq};
