//! What tests of `qi` and of Layer 2 stand on.

pub mod agent;
pub mod bus;
pub mod chaos;
mod clock;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod market;
#[cfg(feature = "mock")]
pub mod mock;
#[cfg(feature = "contract")]
pub mod presence;
pub mod recording;
pub mod store;

pub use clock::ManualClock;
