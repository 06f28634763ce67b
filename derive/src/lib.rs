//! The derive macros of `qi-core`, which re-exports them. Depend on `qi-core`, not on this crate.
//!
//! # Concepts
//! A record is one row of a dataset. `#[derive(Record)]` turns a struct into a record: it generates the declaration of
//! the dataset, and the conversions between the fields and the columns. `#[derive(Columns)]` declares a group of columns
//! that several records share, and `#[derive(Enumeration)]` declares a column with a closed list of names.
//! The module `record` of `qi-core` explains the terms.
//!
//! # A first program
//! ```
//! use qi_core::prelude::*;
//!
//! #[derive(Debug, Clone, PartialEq, Record)]
//! #[record(name = "fees", version = 1)]
//! struct Fee {
//!     #[series]
//!     instrument: Instrument,
//!     #[time]
//!     ts: Timestamp,
//!     taker: Percent,
//! }
//!
//! async fn store_fee(store: &dyn PriceStore, fee: &Fee) -> Result<()> {
//!     store.insert_record(fee).await?;
//!     let query = RangeQuery::new(fee.instrument.clone(), TimeRange::since(fee.ts));
//!     assert_eq!(store.range_of::<Fee>(&query).await?.items, [fee.clone()]);
//!     Ok(())
//! }
//! ```

mod columns;
mod enumeration;
mod record;

use proc_macro::TokenStream;

/// Declares a record: a struct that stores can keep and buses can carry.
///
/// ```
/// use qi_core::prelude::*;
///
/// #[derive(Debug, Clone, PartialEq, Record)]
/// #[record(name = "borrow_rates", version = 1)]
/// pub struct BorrowRate {
///     #[series]
///     instrument: Instrument,
///     #[time]
///     ts: Timestamp,
///     rate: Percent,
///     next_change: Option<Timestamp>,
/// }
///
/// assert_eq!(BorrowRate::DATASET.name(), "borrow_rates");
/// ```
///
/// The attributes of the struct, in `#[record(...)]`:
///
/// | attribute | meaning | default |
/// | --- | --- | --- |
/// | `name = "..."` | the name of the dataset and of its table | required |
/// | `version = 1` | the version of the message format | 1 |
/// | `message = "..."` | the name of one record in message headers | `name` |
/// | `topic = "..."` | the default topic | the name, with `-` in place of `_` |
/// | `validate = path` | a function `fn(&Self) -> Result<()>` with the record's own rules | none |
///
/// The attributes of the fields:
///
/// | attribute | meaning |
/// | --- | --- |
/// | `#[series]` | the owner of the series: an `Instrument`, a `Scope` or another name. Required, once |
/// | `#[interval]` | the interval of a bar, part of the series |
/// | `#[time]` | the time of the record, a `Timestamp`. Required, once |
/// | `#[seq]` | the sequence number among records of one time, a `u64` |
/// | `#[flatten]` | a struct with `#[derive(Columns)]`, whose fields are columns |
///
/// Every other field is a column with the name of the field.
#[proc_macro_derive(Record, attributes(record, series, interval, time, seq, flatten))]
pub fn record(input: TokenStream) -> TokenStream {
    expand(input, record::expand)
}

/// Implements `Columns` for a struct that a record contains with `#[flatten]`. Every field is a column.
#[proc_macro_derive(Columns)]
pub fn columns(input: TokenStream) -> TokenStream {
    expand(input, columns::expand)
}

/// Makes an enum without fields a column type. Tables and messages have the names of the variants in `snake_case`.
/// Stores keep the position of the variant, so new variants must be added at the end.
///
/// The enum also needs these derives and serde's `rename_all`. The program depends on `serde` with the feature
/// `derive`.
///
/// ```
/// use qi_core::record::Enumeration;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Enumeration)]
/// #[serde(rename_all = "snake_case")]
/// pub enum Direction {
///     Long,
///     Short,
/// }
///
/// assert_eq!(Direction::NAMES, ["long", "short"]);
/// ```
#[proc_macro_derive(Enumeration)]
pub fn enumeration(input: TokenStream) -> TokenStream {
    expand(input, enumeration::expand)
}

fn expand(
    input: TokenStream,
    expand: fn(&syn::DeriveInput) -> syn::Result<proc_macro2::TokenStream>,
) -> TokenStream {
    let input = syn::parse_macro_input!(input as syn::DeriveInput);
    expand(&input).unwrap_or_else(|error| error.to_compile_error()).into()
}

/// Returns the named fields of a struct without generics.
fn named_fields(input: &syn::DeriveInput, what: &str) -> syn::Result<Vec<syn::Field>> {
    if !input.generics.params.is_empty() {
        return Err(syn::Error::new_spanned(&input.generics, format!("{what} has no generic parameters")));
    }
    match &input.data {
        syn::Data::Struct(syn::DataStruct { fields: syn::Fields::Named(fields), .. }) => {
            Ok(fields.named.iter().cloned().collect())
        }
        _ => Err(syn::Error::new_spanned(&input.ident, format!("{what} is a struct with named fields"))),
    }
}
