//! The market operations in memory: their results and their errors.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod reading;
mod rig;
mod rules;
mod writing;
