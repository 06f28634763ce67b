//! The commands of the program `qi`, as functions over the ports. They work on every backend and are tested in memory.
//!
//! - [`check`]: checks backends, schema and topics.
//! - [`migrate`]: creates the schema and the topics.
//! - [`topics`]: shows topics, and the lag of groups.
//! - [`query`]: shows latest records, ranges and bars.
//! - [`copy`]: copies from one store to another, with resume and a comparison.
//! - [`replay`]: stores the records of a topic, by time.
//! - [`import`]: writes market data files into a store.
//! - `archive`: exports a store to Parquet files, and imports them (feature `archive`).
//! - [`dlq`]: lists, shows and redrives dead letters.
//!
//! [`output`] formats the results as a table, CSV or JSON.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "archive")]
pub mod archive;
pub mod check;
pub mod copy;
pub mod dlq;
pub mod import;
pub mod migrate;
pub mod output;
mod progress;
pub mod query;
pub mod replay;
mod series;
pub mod topics;

pub use series::{Checksum, Series, Summary};
