//! What the program `qi` does, as functions over the ports: so it works on every backend, and is tested on memory.
//!
//! - [`check`]: does each backend answer, and what is missing.
//! - [`migrate`]: makes what is missing.
//! - [`topics`]: topics, and how far groups are behind.
//! - [`query`]: latest records, ticks, bars.
//! - [`copy`]: from one store to another, with resume and proof.
//! - [`replay`]: from a topic into a store, by time.
//! - [`import`]: market data files into a store.
//! - [`dlq`]: lists, shows and redrives dead letters.
//!
//! What a person sees goes through [`output`]: a table, CSV or JSON.

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
