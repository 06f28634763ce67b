//! A [`PriceStore`](qi_core::PriceStore) in one SQLite file, without a server.
//!
//! [`SqliteStore::open`] takes a [`SqliteConfig`] and performs no I/O; `ensure_schema` creates the file and the tables.
//! [The page on SQLite](../../qi_core/guide/sqlite/index.html) describes the tables, durability and backups.
//!
//! The configuration is compiled even without the feature `sqlite`, because a file may contain the section of every
//! backend.

#[cfg(feature = "sqlite")]
mod admin;
#[cfg(feature = "sqlite")]
mod bars;
pub mod config;
#[cfg(feature = "sqlite")]
mod error;
#[cfg(feature = "sqlite")]
mod read;
#[cfg(feature = "sqlite")]
mod schema;
#[cfg(feature = "sqlite")]
mod store;
#[cfg(feature = "sqlite")]
mod table;
#[cfg(feature = "sqlite")]
mod values;
#[cfg(feature = "sqlite")]
mod write;

pub use config::SqliteConfig;

/// The driver of [`SqliteStore::pool`].
#[cfg(feature = "sqlite")]
pub use ::sqlx as driver;
#[cfg(feature = "sqlite")]
pub use store::SqliteStore;

/// The name of the backend in errors, logs and metrics.
#[cfg(feature = "sqlite")]
const BACKEND: &str = "sqlite";
