//! The program `qi`, and its commands as functions over the ports. They work on every backend and are tested in memory.
//!
//! # Concepts
//! - A **command** is a function of a module below. It takes ports, such as `&dyn PriceStore`, and returns a report or a
//!   [`Listing`](output::Listing).
//! - A **listing** has columns and rows. [`output`] formats it as a table, CSV or JSON.
//! - [`run`] is the program: it parses the arguments, opens the backends of the configuration, runs the command, and
//!   returns the exit code.
//!
//! # A first program
//! A team's own tool calls [`run`] with a registry that has the team's backends.
//!
//! ```no_run
//! use std::process::ExitCode;
//! use qi_cli::Backends;
//!
//! fn main() -> ExitCode {
//!     qi_cli::run(Backends::default())
//! }
//! ```
//!
//! ```sh
//! qi check --config qi.toml
//! qi query latest
//! ```
//!
//! # Commands
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
//! [The page on operations](qi_core::guide::operations) describes every command.

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
