//! How values leave and enter a record.

use std::borrow::Cow;

use super::Level;
use crate::{Decimal, Interval, Result, Timestamp};

/// Takes the values of a record, one column after the other.
///
/// An optional column begins with [`FieldWriter::presence`]; its value follows only if it is present.
pub trait FieldWriter {
    /// Takes whether the value of an optional column is present.
    fn presence(&mut self, present: bool);
    /// Takes a decimal.
    fn decimal(&mut self, value: Decimal);
    /// Takes a counter, at most 2⁶³ - 1.
    fn counter(&mut self, value: u64);
    /// Takes an integer.
    fn integer(&mut self, value: i64);
    /// Takes a boolean.
    fn boolean(&mut self, value: bool);
    /// Takes a text.
    fn text(&mut self, value: &str);
    /// Takes the position of an enumeration's name, from 1.
    fn code(&mut self, value: u8);
    /// Takes a time.
    fn time(&mut self, value: Timestamp);
    /// Takes an interval.
    fn interval(&mut self, value: Interval);
    /// Takes a list of levels.
    fn levels(&mut self, value: &[Level]);
}

/// Gives the values of a record, one column after the other, in the order of [`FieldWriter`].
///
/// Every method returns `CorruptData` if the stored value is not of the column's type.
pub trait FieldReader {
    /// Returns whether the value of an optional column is present. If it is not, the column ends here.
    fn presence(&mut self) -> Result<bool>;
    /// Returns a decimal.
    fn decimal(&mut self) -> Result<Decimal>;
    /// Returns a counter.
    fn counter(&mut self) -> Result<u64>;
    /// Returns an integer.
    fn integer(&mut self) -> Result<i64>;
    /// Returns a boolean.
    fn boolean(&mut self) -> Result<bool>;
    /// Returns a text.
    fn text(&mut self) -> Result<Cow<'_, str>>;
    /// Returns the position of an enumeration's name, from 1.
    fn code(&mut self) -> Result<u8>;
    /// Returns a time.
    fn time(&mut self) -> Result<Timestamp>;
    /// Returns an interval.
    fn interval(&mut self) -> Result<Interval>;
    /// Returns a list of levels.
    fn levels(&mut self) -> Result<Vec<Level>>;
}
