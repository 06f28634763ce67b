//! The backends of `qi`, each behind a Cargo feature, and the [configuration](config) that selects them.

#[cfg(any(feature = "clickhouse", feature = "timescale"))]
mod authorities;
pub mod clickhouse;
pub mod config;
mod durations;
#[cfg(any(feature = "clickhouse", feature = "timescale"))]
mod first_datasets;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "opentelemetry")]
pub mod opentelemetry;
#[cfg(any(feature = "clickhouse", feature = "redpanda", feature = "timescale"))]
mod plaintext;
pub mod redpanda;
mod rules;
pub mod timescale;

pub use config::{Backends, Config};
