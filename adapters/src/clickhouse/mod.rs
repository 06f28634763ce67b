//! A [`PriceStore`](qi_core::PriceStore) on ClickHouse.
//!
//! [`ClickHouseStore::open`] takes a [`ClickHouseConfig`] and performs no network I/O; `ensure_schema` creates the
//! tables. [The page on ClickHouse](qi_core::guide::clickhouse) describes the statements of each operation and gives advice for the server.
//!
//! The configuration is compiled even without the feature `clickhouse`, because a file may contain the
//! section of every backend.

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
mod lease;
#[cfg(feature = "clickhouse")]
mod levels;
#[cfg(feature = "clickhouse")]
mod maintenance;
#[cfg(feature = "clickhouse")]
mod marks;
#[cfg(feature = "clickhouse")]
mod materialized;
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

/// The driver of [`ClickHouseStore::client`].
#[cfg(feature = "clickhouse")]
pub use ::clickhouse as driver;
#[cfg(feature = "clickhouse")]
pub use store::ClickHouseStore;

#[cfg(all(feature = "fuzzing", feature = "clickhouse"))]
#[doc(hidden)]
pub use table::fuzz_row_binary;

/// The name of the backend in errors, logs and metrics.
#[cfg(feature = "clickhouse")]
const BACKEND: &str = "clickhouse";
