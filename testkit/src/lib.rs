//! What tests of `qi` and of Layer 2 stand on.

pub mod chaos;
pub mod market;
#[cfg(feature = "mock")]
pub mod mock;
pub mod recording;
