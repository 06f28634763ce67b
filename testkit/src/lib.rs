//! Test support for `qi` and for Layer 2: an in-memory store and bus, contract suites, fault injection, recorders,
//! a market simulator, and a test clock.
//!
//! [`store::MemoryStore`] and [`bus::MemoryBus`] replace servers, and keep the complete contract. With
//! `#[tokio::test(start_paused = true)]` all waits follow tokio's clock, so tests take milliseconds. [`chaos::Chaos`]
//! injects faults. `docs/testing-your-layer-2.md` has a complete example.
//!
//! # Features
//! `contract` has the contract suites, `mock` the mocks of the ports, `kafka` raw Kafka messages, and `test` a paused
//! clock and contexts of agents.

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
