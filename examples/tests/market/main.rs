//! The market operations in memory: their results and their errors.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod laws;
mod reading;
mod rig;
mod writing;
