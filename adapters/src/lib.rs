//! The backends of `qi`, each behind a feature of its own, and the [configuration](config) that picks one.

#[cfg(any(feature = "clickhouse", feature = "timescale"))]
mod authorities;
pub mod clickhouse;
pub mod config;
#[cfg(any(feature = "clickhouse", feature = "timescale"))]
mod first_datasets;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod hours;
#[cfg(feature = "opentelemetry")]
pub mod opentelemetry;
#[cfg(any(feature = "clickhouse", feature = "redpanda", feature = "timescale"))]
mod plaintext;
pub mod redpanda;
mod rules;
pub mod timescale;

pub use config::{Backends, Config};
