//! The market operations in memory: what each answers, and what it never hides.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod laws;
mod reading;
mod rig;
mod writing;
