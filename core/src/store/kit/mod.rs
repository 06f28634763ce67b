//! The store kit: the parts that every adapter of a database needs besides its SQL statements.
//!
//! - [`entries`] sorts a batch by key and keeps the last record of each key.
//! - [`latest`] drives the pages of a `latest` call over owners that may have a record.
//! - [`BucketPlanner`] plans the windows over which derived bars are computed.
//! - [`level_sources`] and [`BarMerger`] compute derived bars from materialized bars, which [`StepSpan`] helps to maintain.
//! - [`rest_of`] returns the part of a range that lies after a cursor.
//! - [`evolution`] compares a stored dataset with its declaration.
//!
//! [`guide::writing_a_store`](crate::guide::writing_a_store) shows how to write a store with them.

mod batch;
mod buckets;
pub mod evolution;
mod latest;
mod levels;
mod range;

pub use batch::{Entry, SeriesRanks, entries};
pub use buckets::{BucketPlanner, bucket_end};
pub use latest::{LatestSource, latest};
pub use levels::{
    BarMerger, BarPart, BarSums, LEVELS, LevelSource, StepSpan, add_sums, level_sources, level_table,
};
pub use range::rest_of;
