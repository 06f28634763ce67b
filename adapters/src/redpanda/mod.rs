//! A [`MessageBus`](qi_core::MessageBus) over the Kafka protocol, for Apache Kafka and Redpanda.
//!
//! [`RedpandaBus::open`] takes a [`RedpandaConfig`] and performs no network I/O; the first call connects.
//! [The page on Redpanda and Kafka](qi_core::guide::redpanda) describes the properties of the client and the behaviour of the brokers.
//!
//! The configuration is compiled even without the feature `redpanda`, because a file may contain the
//! section of every backend.

#[cfg(feature = "redpanda")]
mod admin;
#[cfg(feature = "redpanda")]
mod bus;
#[cfg(feature = "redpanda")]
mod client_config;
pub mod config;
#[cfg(feature = "redpanda")]
mod connect;
#[cfg(feature = "redpanda")]
mod consumer;
#[cfg(feature = "redpanda")]
mod error;
#[cfg(feature = "redpanda")]
mod groups;
#[cfg(feature = "redpanda")]
mod metadata;
#[cfg(feature = "redpanda")]
mod offsets;
#[cfg(feature = "redpanda")]
mod producer;

pub use config::RedpandaConfig;

/// The driver of [`RedpandaBus::admin`].
#[cfg(feature = "redpanda")]
pub use ::rdkafka as driver;
#[cfg(feature = "redpanda")]
pub use bus::RedpandaBus;

#[cfg(all(feature = "fuzzing", feature = "redpanda"))]
#[doc(hidden)]
pub use groups::fuzz_assignment;
