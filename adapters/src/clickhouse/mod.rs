//! A [`PriceStore`](qi_core::PriceStore) on ClickHouse.
//!
//! [`ClickHouseStore::open`] takes a [`ClickHouseConfig`] and does no I/O; `ensure_schema` creates the tables. The
//! statements of each operation, and advice for the server, are in `docs/backends/clickhouse.md`.
//!
//! The settings are compiled without the feature `clickhouse`, because a configuration may contain every backend.

#[cfg(feature = "clickhouse")]
mod admin;
#[cfg(feature = "clickhouse")]
mod bars;
pub mod config;
#[cfg(feature = "clickhouse")]
mod connect;
#[cfg(feature = "clickhouse")]
mod error;
#[cfg(feature = "clickhouse")]
mod read;
#[cfg(feature = "clickhouse")]
mod schema;
#[cfg(feature = "clickhouse")]
mod store;
#[cfg(feature = "clickhouse")]
mod table;
#[cfg(feature = "clickhouse")]
mod wire;
#[cfg(feature = "clickhouse")]
mod write;

pub use config::ClickHouseConfig;

#[cfg(feature = "clickhouse")]
pub use store::ClickHouseStore;

#[cfg(all(feature = "fuzzing", feature = "clickhouse"))]
#[doc(hidden)]
pub use table::fuzz_row_binary;

/// The name of the backend in errors, logs and metrics.
#[cfg(feature = "clickhouse")]
const BACKEND: &str = "clickhouse";
