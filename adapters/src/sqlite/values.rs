//! The storage form of values.
//!
//! A decimal is a blob of 16 bytes: the number of units with the sign bit inverted, in big-endian order. Blobs compare
//! in the order of the numbers. A list of levels is the blobs of its prices and quantities, one after another.

use std::borrow::Cow;

use qi_core::record::{ColumnType, FieldReader, FieldWriter, Level};
use qi_core::{Decimal, Error, ErrorKind, Interval, Price, Quantity, Result, Timestamp};
use sqlx::error::BoxDynError;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments as _, Decode, Encode, Row as _, Sqlite, Type};

use super::error::Cause;

const DECIMAL_BYTES: usize = 16;
const SIGN_BIT: u128 = 1 << 127;

/// Returns the type of a column in a strict table.
pub(super) fn sql_type(ty: ColumnType) -> &'static str {
    match ty {
        ColumnType::Decimal | ColumnType::Levels { .. } => "BLOB",
        ColumnType::Text { .. } | ColumnType::Interval => "TEXT",
        ColumnType::Counter
        | ColumnType::Integer
        | ColumnType::Boolean
        | ColumnType::Enumeration(_)
        | ColumnType::Timestamp => "INTEGER",
        // A type of a later version of the core library. SQLite rejects this type.
        _ => "UNKNOWN",
    }
}

fn encode(value: Decimal) -> [u8; DECIMAL_BYTES] {
    (value.units().cast_unsigned() ^ SIGN_BIT).to_be_bytes()
}

fn decode(bytes: &[u8]) -> Result<Decimal> {
    let bytes = bytes.try_into().map_err(|_| {
        Error::new(ErrorKind::CorruptData, "store.sqlite.decimal", "read")
            .with_message("a decimal must have 16 bytes")
            .with_context("bytes", bytes.len())
    })?;
    Decimal::from_units((u128::from_be_bytes(bytes) ^ SIGN_BIT).cast_signed())
}

/// The arguments of a statement, in order.
#[derive(Default)]
pub(super) struct Values {
    arguments: SqliteArguments,
    /// The first value that cannot be encoded.
    error: Option<BoxDynError>,
}

impl Values {
    pub(super) fn with_capacity(values: usize) -> Self {
        let mut arguments = SqliteArguments::default();
        arguments.reserve(values, 0);
        Self { arguments, error: None }
    }

    pub(super) fn add<'v>(&mut self, value: impl Encode<'v, Sqlite> + Type<Sqlite>) {
        if let Err(error) = self.arguments.add(value) {
            self.error.get_or_insert(error);
        }
    }

    pub(super) fn finish(self) -> Result<SqliteArguments, Cause> {
        match self.error {
            None => Ok(self.arguments),
            Some(error) => Err(sqlx::Error::Encode(error).into()),
        }
    }
}

/// Returns a number of the domain, which is at most 2⁶³ - 1, as SQLite's integer.
pub(super) fn integer(value: u64) -> i64 {
    value.cast_signed()
}

impl FieldWriter for Values {
    fn presence(&mut self, present: bool) {
        if !present {
            self.add(None::<i64>);
        }
    }
    fn decimal(&mut self, value: Decimal) {
        self.add(encode(value).to_vec());
    }
    fn counter(&mut self, value: u64) {
        self.add(integer(value));
    }
    fn integer(&mut self, value: i64) {
        self.add(value);
    }
    fn boolean(&mut self, value: bool) {
        self.add(i64::from(value));
    }
    fn text(&mut self, value: &str) {
        self.add(value.to_owned());
    }
    fn code(&mut self, value: u8) {
        self.add(i64::from(value));
    }
    fn time(&mut self, value: Timestamp) {
        self.add(value.as_micros());
    }
    fn interval(&mut self, value: Interval) {
        self.add(value.as_str());
    }
    fn levels(&mut self, value: &[Level]) {
        let numbers = value.iter().flat_map(|level| [level.price.decimal(), level.quantity.decimal()]);
        self.add(numbers.flat_map(encode).collect::<Vec<u8>>());
    }
}

/// Reads the values of a row in the order of the columns.
pub(super) struct RowReader<'r> {
    row: &'r SqliteRow,
    column: usize,
}

impl<'r> RowReader<'r> {
    pub(super) fn new(row: &'r SqliteRow) -> Self {
        Self { row, column: 0 }
    }

    pub(super) fn next<T: Decode<'r, Sqlite> + Type<Sqlite>>(&mut self) -> Result<T> {
        let value = self.row.try_get(self.column).map_err(|source| {
            Error::new(ErrorKind::CorruptData, "store.sqlite.value", "read")
                .with_message("a stored value has another type")
                .with_source(source)
        });
        self.column += 1;
        value
    }

    fn invalid(&self, value: i64) -> Error {
        Error::new(ErrorKind::CorruptData, "store.sqlite.value", "read")
            .with_message("a stored number is out of range")
            .with_context("column", self.column)
            .with_context("value", value)
    }

    pub(super) fn price(&mut self) -> Result<Price> {
        Price::new(self.decimal()?)
    }
}

impl FieldReader for RowReader<'_> {
    fn presence(&mut self) -> Result<bool> {
        use sqlx::ValueRef as _;
        let is_null = self.row.try_get_raw(self.column).map_or(true, |value| value.is_null());
        self.column += usize::from(is_null);
        Ok(!is_null)
    }
    fn decimal(&mut self) -> Result<Decimal> {
        decode(self.next()?)
    }
    fn counter(&mut self) -> Result<u64> {
        let value: i64 = self.next()?;
        u64::try_from(value).map_err(|_| self.invalid(value))
    }
    fn integer(&mut self) -> Result<i64> {
        self.next()
    }
    fn boolean(&mut self) -> Result<bool> {
        match self.next()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.invalid(other)),
        }
    }
    fn text(&mut self) -> Result<Cow<'_, str>> {
        self.next().map(Cow::Borrowed)
    }
    fn code(&mut self) -> Result<u8> {
        let value: i64 = self.next()?;
        u8::try_from(value).map_err(|_| self.invalid(value))
    }
    fn time(&mut self) -> Result<Timestamp> {
        Timestamp::from_micros(self.next()?)
    }
    fn interval(&mut self) -> Result<Interval> {
        self.next::<&str>()?.parse()
    }
    fn levels(&mut self) -> Result<Vec<Level>> {
        let bytes: &[u8] = self.next()?;
        let (levels, rest) = bytes.as_chunks::<{ 2 * DECIMAL_BYTES }>();
        if !rest.is_empty() {
            decode(rest)?;
        }
        let level = |level: &[u8; 2 * DECIMAL_BYTES]| {
            let (price, quantity) = level.split_at(DECIMAL_BYTES);
            Ok(Level { price: Price::new(decode(price)?)?, quantity: Quantity::new(decode(quantity)?)? })
        };
        levels.iter().map(level).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_decimals_sort_as_numbers() {
        let numbers = [
            "-99999999999999999999.999999999999999999",
            "-1",
            "-0.000000000000000001",
            "0",
            "0.000000000000000001",
            "1",
            "39432.48",
            "99999999999999999999.999999999999999999",
        ];
        let numbers: Vec<Decimal> = numbers.iter().map(|text| text.parse().unwrap()).collect();
        let stored: Vec<_> = numbers.iter().copied().map(encode).collect();
        assert!(stored.is_sorted());
        for (number, stored) in numbers.iter().zip(&stored) {
            assert_eq!(decode(stored).unwrap(), *number);
        }
    }

    #[test]
    fn damaged_decimals_are_rejected() {
        assert_eq!(decode(&[0; 15]).unwrap_err().kind(), ErrorKind::CorruptData);
        assert!(decode(&[0; 16]).is_err(), "beyond the domain");
    }
}
