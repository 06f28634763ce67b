//! The interface through which values leave and enter a record.

use std::borrow::Cow;

use super::Level;
use crate::{Decimal, Interval, Result, Timestamp};

/// A writer that receives the values of a record, column by column.
///
/// An optional column begins with [`FieldWriter::presence`]; its value follows only if it is present.
pub trait FieldWriter {
    /// Writes the presence of the value of an optional column.
    fn presence(&mut self, present: bool);
    /// Writes a decimal value.
    fn decimal(&mut self, value: Decimal);
    /// Writes a counter, at most 2⁶³ - 1.
    fn counter(&mut self, value: u64);
    /// Writes an integer value.
    fn integer(&mut self, value: i64);
    /// Writes a boolean value.
    fn boolean(&mut self, value: bool);
    /// Writes a text value.
    fn text(&mut self, value: &str);
    /// Writes the position of an enumeration's name, counted from 1.
    fn code(&mut self, value: u8);
    /// Writes a time value.
    fn time(&mut self, value: Timestamp);
    /// Writes an interval value.
    fn interval(&mut self, value: Interval);
    /// Writes a list of levels.
    fn levels(&mut self, value: &[Level]);
}

/// A reader that returns the values of a record, column by column, in the order of [`FieldWriter`].
///
/// Every method returns `CorruptData` if the stored value does not have the column's type.
pub trait FieldReader {
    /// Returns whether the value of an optional column is present. If the value is absent, the reader
    /// moves to the next column.
    fn presence(&mut self) -> Result<bool>;
    /// Returns a decimal value.
    fn decimal(&mut self) -> Result<Decimal>;
    /// Returns a counter, at most 2⁶³ - 1.
    fn counter(&mut self) -> Result<u64>;
    /// Returns an integer value.
    fn integer(&mut self) -> Result<i64>;
    /// Returns a boolean value.
    fn boolean(&mut self) -> Result<bool>;
    /// Returns a text value.
    fn text(&mut self) -> Result<Cow<'_, str>>;
    /// Returns the position of an enumeration's name, counted from 1.
    fn code(&mut self) -> Result<u8>;
    /// Returns a time value.
    fn time(&mut self) -> Result<Timestamp>;
    /// Returns an interval value.
    fn interval(&mut self) -> Result<Interval>;
    /// Returns a list of levels.
    fn levels(&mut self) -> Result<Vec<Level>>;
}
