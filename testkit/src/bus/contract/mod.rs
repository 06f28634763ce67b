//! The contract of [`MessageBus`](qi_core::MessageBus) as a list of checks for any bus.
//!
//! A backend implements [`BusFactory`]. [`trials`] creates one libtest-mimic trial for every check and wrapper.
//! Checks of features that the backend lacks, and the checks of an absent backend, are shown as ignored with the
//! reason. They never pass silently.

mod check;
mod checks;
mod consumers;
mod context;
mod factory;
mod layers;
mod memory;
mod resend;
mod runner;
mod stress;

pub use check::{Check, CheckResult, Failure};
pub use checks::all as checks;
pub use context::TestContext;
pub use factory::{BusEnv, BusFactory, Capability, Client, ClockMode, Connection, Timing, Wrapper};
pub use memory::MemoryFactory;
pub use resend::resent;
pub use runner::{run_check, trials};
pub use stress::{StressReport, stress_test};

pub(super) use check::{ensure, ensure_eq};
