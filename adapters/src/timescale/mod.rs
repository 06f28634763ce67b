//! A [`PriceStore`](qi_core::PriceStore) on TimescaleDB, or on plain PostgreSQL.
//!
//! [`TimescaleStore::open`] takes a [`TimescaleConfig`] and does not wait for the server; `ensure_schema` creates the
//! tables. [The page on TimescaleDB](qi_core::guide::timescale) describes the statements of each operation and gives advice for the server.
//!
//! Custom SQL uses [`TimescaleStore::pool`], and [`Pg`] for values of the domain.
//!
//! The configuration is compiled even without the feature `timescale`, because a file may contain the
//! section of every backend.

#[cfg(feature = "timescale")]
mod admin;
#[cfg(feature = "timescale")]
mod bars;
#[cfg(feature = "timescale")]
mod cache;
#[cfg(feature = "timescale")]
mod checks;
#[cfg(feature = "timescale")]
mod chunks;
pub mod config;
#[cfg(feature = "timescale")]
mod connect;
#[cfg(feature = "timescale")]
mod duplicates;
#[cfg(feature = "timescale")]
mod error;
#[cfg(feature = "timescale")]
mod from_row;
#[cfg(feature = "timescale")]
mod instrument_ids;
#[cfg(feature = "timescale")]
mod key_scan;
#[cfg(feature = "timescale")]
mod levels;
#[cfg(feature = "timescale")]
mod maintenance;
#[cfg(feature = "timescale")]
mod marks;
#[cfg(feature = "timescale")]
mod materialized;
#[cfg(feature = "timescale")]
mod policy;
#[cfg(feature = "timescale")]
mod read;
#[cfg(feature = "timescale")]
mod schema;
#[cfg(feature = "timescale")]
mod series;
#[cfg(feature = "timescale")]
mod sql;
#[cfg(feature = "timescale")]
mod store;
#[cfg(feature = "timescale")]
mod sub_batches;
#[cfg(feature = "timescale")]
mod table;
#[cfg(feature = "timescale")]
mod types;
#[cfg(feature = "timescale")]
mod wire;
#[cfg(feature = "timescale")]
mod write;

pub use config::TimescaleConfig;

/// The driver of [`TimescaleStore::pool`].
#[cfg(feature = "timescale")]
pub use ::sqlx as driver;
#[cfg(feature = "timescale")]
pub use admin::ChunkInfo;
#[cfg(feature = "timescale")]
pub use store::TimescaleStore;
#[cfg(feature = "timescale")]
pub use types::Pg;

#[cfg(all(feature = "fuzzing", feature = "timescale"))]
#[doc(hidden)]
pub use wire::fuzz_numeric;

/// The name of the backend in errors, logs and metrics.
#[cfg(feature = "timescale")]
const BACKEND: &str = "timescale";
