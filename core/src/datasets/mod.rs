//! The built-in datasets, and the registry of the datasets of a program.
//!
//! Each record is declared with `#[derive(Record)]`, like the records of an application. No record can hold an invalid
//! value: every constructor and every deserialisation validates, and an error names the field and the value.

mod bar;
mod book;
mod derivatives;
mod quote;
mod registry;
mod snapshot;
mod tick;

pub use bar::{Bar, BarBuilder, BarValues, resample};
pub use book::BookSnapshot;
pub use derivatives::{FundingRate, Liquidation, MarkPrice, OpenInterest};
pub use quote::{Quote, QuoteValues};
pub use registry::Datasets;
pub use snapshot::{MarketSnapshot, SnapshotValues};
pub use tick::PriceTick;
