//! The program `qi`, and its commands as functions over the ports. They work on every backend and are tested in memory.
//!
//! [`run`] is the program. A team's own tool calls it with a [`Backends`] registry.
//!
//! - [`check`]: checks backends, schema and topics.
//! - [`migrate`]: creates the schema and the topics.
//! - [`topics`]: shows topics, and the lag of groups.
//! - [`groups`]: resets the offsets of groups.
//! - [`tail`]: shows messages as they arrive.
//! - [`coverage`]: shows the ranges of trades that the store has, and those that are unknown.
//! - [`query`]: shows latest records, ranges, bars and instruments.
//! - `chart`: draws candles, volume and gaps (feature `chart`).
//! - [`maintain`]: materializes bars.
//! - [`bars`]: writes closed derived bars as stored bars.
//! - [`copy`]: copies from one store to another, with resume and a comparison.
//! - [`replay`]: stores the records of a topic, by time.
//! - [`import`]: writes market data files into a store.
//! - `archive`: exports a store to Parquet files, and imports them (feature `archive`).
//! - [`dlq`]: lists, shows and redrives dead letters.
//!
//! [`output`] formats the results as a table, CSV or JSON.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod app;
#[cfg(feature = "archive")]
pub mod archive;
mod arguments;
pub mod bars;
#[cfg(feature = "chart")]
pub mod chart;
pub mod check;
pub mod copy;
pub mod coverage;
pub mod dlq;
mod exit;
pub mod groups;
pub mod import;
pub mod maintain;
pub mod migrate;
pub mod output;
mod progress;
pub mod query;
pub mod replay;
mod series;
mod session;
pub mod tail;
pub mod topics;

pub use app::{run, run_with};
pub use qi_adapters::Backends;
pub use series::{Checksum, Series, Summary};
