//! Records and datasets: the data that stores keep and buses carry, declared once.
//!
//! A [`Record`] is a struct with `#[derive(Record)]`. The derive macro creates the [`Dataset`] that describes it: its
//! name, its version, its key and its columns. Stores, buses and tools work with this description, so they handle the
//! records of every application in the same way. [`guide::your_own_records`](crate::guide::your_own_records) shows the steps from a
//! struct to a stored table.
//!
//! A record belongs to a *series* (an instrument, an instrument with an interval, or a name) and has a *sort key* in it
//! (a time and a sequence number). The series and the sort key are the key.
//!
//! Adapters handle records without their Rust type. A batch is `&dyn` [`Records`], and the result of a query is a
//! [`RecordVec`].

mod column;
mod dataset;
mod fields;
mod level;
mod series;
#[cfg(test)]
mod tests;

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use column::{ColumnValue, Columns, Enumeration, Text};
pub use dataset::records::{RecordVec, Records, Slice};
pub use dataset::row::{Row, Value};
pub use dataset::{Column, ColumnType, Dataset, Description, SeriesType};
pub use fields::{FieldReader, FieldWriter};
pub use level::{Level, Levels};
pub use qi_derive::{Columns, Enumeration, Record};
pub use series::{Owner, OwnerRef, Series, SeriesKey, SeriesRef};

use crate::{Result, Timestamp};

/// The position of a record in its series: the time, then the sequence number. The sequence number of a
/// record without one is 0.
pub type SortKey = (Timestamp, u64);

/// A struct that stores can keep and buses can carry. Implement it with `#[derive(Record)]`.
///
/// The macro also implements serde's `Serialize` and `Deserialize`. They write the fields in the declared order, omit
/// absent fields, and validate every record that they read.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a record",
    note = "add `#[derive(Record)]` and `#[record(name = \"...\")]` to the struct"
)]
pub trait Record: Clone + PartialEq + Debug + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The series that the record belongs to: [`crate::Instrument`], an instrument with an interval, or a name.
    type Series: Series;

    /// The description of the dataset.
    const DATASET: Dataset;

    /// Returns the series of the record.
    fn series(&self) -> Self::Series;

    /// Returns the series of the record without a copy.
    fn series_ref(&self) -> SeriesRef<'_>;

    /// Returns the sort key of the record in its series.
    fn sort_key(&self) -> SortKey;

    /// Writes the value columns in the declared order.
    fn write<W: FieldWriter + ?Sized>(&self, out: &mut W);

    /// Reads the value columns in the declared order and validates the record.
    ///
    /// # Errors
    /// The reader's error; `InvalidInput` for a record that [`Record::validate`] rejects.
    fn read<F: FieldReader + ?Sized>(series: Self::Series, sort_key: SortKey, fields: &mut F)
    -> Result<Self>;

    /// Checks the record's own rules, and that stores can represent its time and its sequence number.
    ///
    /// # Errors
    /// `InvalidInput` with the field and the value.
    fn validate(&self) -> Result<()>;

    /// Returns the time that ranges, purges and retention use.
    fn time(&self) -> Timestamp {
        self.sort_key().0
    }

    /// Returns the time from which an `as_of` query returns the record: the close time of a bar, else [`Record::time`].
    fn known_at(&self) -> Timestamp {
        Self::DATASET.known_at(self.time(), self.series_ref().interval)
    }
}

/// Helpers for the code that `#[derive(Record)]` generates. Not for direct use.
#[doc(hidden)]
pub mod macros {
    pub use serde;

    use super::{Column, ColumnValue, Enumeration};
    use crate::{Error, ErrorKind, Result, Timestamp};

    /// Returns whether the value of an optional column is absent.
    #[must_use]
    pub fn is_absent<T: ColumnValue>(value: &&T) -> bool {
        value.is_absent()
    }

    /// Returns the variant at a position, counted from 1.
    pub fn enumeration<T: Enumeration>(code: u8) -> Result<T> {
        T::from_code(code).ok_or_else(|| {
            Error::new(ErrorKind::CorruptData, "record.enumeration", "read")
                .with_message(format_args!("must be the position of one of {}", T::NAMES.join(", ")))
                .with_context("value", code)
        })
    }

    /// Joins lists of columns at compile time. `N` is the sum of their lengths.
    #[must_use]
    pub const fn concat<const N: usize>(lists: &[&[Column]]) -> [Column; N] {
        let mut all = [Column::EMPTY; N];
        let (mut at, mut list) = (0, 0);
        while list < lists.len() {
            let mut column = 0;
            while column < lists[list].len() {
                all[at] = lists[list][column];
                at += 1;
                column += 1;
            }
            list += 1;
        }
        all
    }

    /// Checks the time and the sequence number of a record.
    pub fn check_sort_key(time: (&'static str, Timestamp), seq: Option<(&'static str, u64)>) -> Result<()> {
        time.1.for_record(time.0)?;
        if let Some((field, seq)) = seq {
            crate::domain::counter(field, seq)?;
        }
        Ok(())
    }
}
