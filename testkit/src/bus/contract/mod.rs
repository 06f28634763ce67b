//! The contract of [`MessageBus`](qi_core::MessageBus) as one list of checks that any bus can be put through.
//!
//! A backend gives a [`BusFactory`]; [`trials`] makes one trial of every check, in every wrapping, for
//! libtest-mimic. What a backend lacks, or a backend that is absent, is shown as ignored with the reason; it never
//! passes silently.

mod check;
mod checks;
mod crew;
mod factory;
mod lab;
mod layers;
mod memory;
mod resend;
mod runner;
mod storm;

pub use check::{Check, Failure, Verdict};
pub use checks::all as checks;
pub use factory::{BusEnv, BusFactory, Client, Need, Pace, Timing, Wire, Wrapping};
pub use lab::Lab;
pub use memory::MemoryFactory;
pub use resend::resent;
pub use runner::{run_check, trials};
pub use storm::{Storm, storm};

pub(super) use check::{ensure, ensure_eq};
