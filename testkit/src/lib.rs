//! Test support for `qi` and for Layer 2: an in-memory store and bus, contract suites, fault injection, recorders,
//! a market simulator, and a test clock.

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
