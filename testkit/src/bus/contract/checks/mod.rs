//! All checks by chapter.

mod admin;
mod codec;
mod dead_letters;
mod faults;
mod groups;
mod lifecycle;
mod positions;
mod publish;
mod rebalance;
mod subscribe;

use super::Check;

/// Returns all checks of the contract.
pub fn all() -> Vec<Check> {
    [
        publish::CHECKS,
        subscribe::CHECKS,
        positions::CHECKS,
        groups::CHECKS,
        rebalance::CHECKS,
        admin::CHECKS,
        lifecycle::CHECKS,
        codec::CHECKS,
        dead_letters::CHECKS,
        faults::CHECKS,
    ]
    .concat()
}

/// Defines a chapter from a list of check functions, each with the capabilities that it requires. The name of a check consists of the
/// chapter and the function.
macro_rules! chapter {
    ($chapter:literal: $($check:ident [$($capability:ident),*]),* $(,)?) => {
        pub(super) const CHECKS: &[$crate::bus::contract::Check] = &[$(
            $crate::bus::contract::Check {
                name: concat!($chapter, "::", stringify!($check)),
                capabilities: &[$($crate::bus::contract::Capability::$capability),*],
                run: |context| Box::pin($check(context)),
            }
        ),*];
    };
}

use chapter;
