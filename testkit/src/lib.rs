//! What tests of `qi` and of Layer 2 stand on.

pub mod bus;
mod clock;

pub use clock::ManualClock;
