//! `RowBinary`, the row format in both directions. ClickHouse's documentation of formats specifies it. Decimals and
//! times are the integers of the domain types in little-endian order.

use std::borrow::Cow;

use qi_core::record::{FieldReader, FieldWriter, Level};
use qi_core::{Decimal, Error, ErrorKind, Interval, Price, Quantity, Result as CoreResult, Timestamp};

/// A response that does not contain valid rows of the requested columns.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed response: {0}")]
pub(super) struct Malformed(pub(super) String);

impl From<Malformed> for Error {
    fn from(source: Malformed) -> Self {
        Self::new(ErrorKind::CorruptData, "store.clickhouse.value", "read").with_source(source)
    }
}

/// The encoder of rows for the server.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    /// Writes a length as unsigned LEB128: seven bits per byte, least significant first. The highest bit of a byte is
    /// set if more bytes follow.
    pub(super) fn length(&mut self, mut length: usize) {
        while length >= 0x80 {
            self.0.push(length.to_le_bytes()[0] | 0x80);
            length >>= 7;
        }
        self.0.push(length.to_le_bytes()[0]);
    }
}

impl FieldWriter for Writer {
    /// Writes the NULL marker of a Nullable column.
    fn presence(&mut self, present: bool) {
        self.0.push(u8::from(!present));
    }
    fn decimal(&mut self, value: Decimal) {
        self.0.extend_from_slice(&value.units().to_le_bytes());
    }
    fn counter(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn integer(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn boolean(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }
    fn text(&mut self, text: &str) {
        self.length(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }
    fn code(&mut self, value: u8) {
        self.0.push(value);
    }
    fn time(&mut self, value: Timestamp) {
        self.integer(value.as_micros());
    }
    fn interval(&mut self, value: Interval) {
        self.text(value.as_str());
    }
    fn levels(&mut self, levels: &[Level]) {
        self.length(levels.len());
        for level in levels {
            self.decimal(level.price.decimal());
            self.decimal(level.quantity.decimal());
        }
    }
}

/// The decoder of rows from the server.
#[derive(Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) =
            self.0.split_first_chunk::<N>().ok_or_else(|| Malformed("truncated row".into()))?;
        self.0 = rest;
        Ok(*head)
    }

    fn length(&mut self) -> Result<usize, Malformed> {
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            let [byte] = self.take()?;
            length |= usize::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(length);
            }
            shift += 7;
            if shift > 28 {
                return Err(Malformed("length exceeds 35 bits".into()));
            }
        }
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        let length = self.length()?;
        let (text, rest) =
            self.0.split_at_checked(length).ok_or_else(|| Malformed("truncated text".into()))?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|error| Malformed(error.to_string()))
    }

    pub(super) fn i64(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_le_bytes(self.take()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    pub(super) fn f64(&mut self) -> Result<f64, Malformed> {
        Ok(f64::from_le_bytes(self.take()?))
    }

    pub(super) fn i8(&mut self) -> Result<i8, Malformed> {
        Ok(i8::from_le_bytes(self.take()?))
    }

    pub(super) fn i128(&mut self) -> Result<i128, Malformed> {
        Ok(i128::from_le_bytes(self.take()?))
    }

    /// Reads 256 bits without interpretation.
    pub(super) fn bytes32(&mut self) -> Result<[u8; 32], Malformed> {
        self.take()
    }
}

impl FieldReader for Reader<'_> {
    fn presence(&mut self) -> CoreResult<bool> {
        match self.take()? {
            [0] => Ok(true),
            [1] => Ok(false),
            [other] => Err(Malformed(format!("NULL marker is {other}, expected 0 or 1")).into()),
        }
    }
    fn decimal(&mut self) -> CoreResult<Decimal> {
        Decimal::from_units(self.i128()?)
    }
    fn counter(&mut self) -> CoreResult<u64> {
        Ok(self.u64()?)
    }
    fn integer(&mut self) -> CoreResult<i64> {
        Ok(self.i64()?)
    }
    fn boolean(&mut self) -> CoreResult<bool> {
        match self.take()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(Malformed(format!("boolean is {other}, expected 0 or 1")).into()),
        }
    }
    fn text(&mut self) -> CoreResult<Cow<'_, str>> {
        Ok(Cow::Borrowed(self.text()?))
    }
    fn code(&mut self) -> CoreResult<u8> {
        let [code] = self.take()?;
        Ok(code)
    }
    fn time(&mut self) -> CoreResult<Timestamp> {
        Timestamp::from_micros(self.i64()?)
    }
    fn interval(&mut self) -> CoreResult<Interval> {
        self.text()?.parse()
    }
    fn levels(&mut self) -> CoreResult<Vec<Level>> {
        let length = self.length()?;
        // A level takes 32 bytes, so the remaining bytes bound the allocation.
        let mut levels = Vec::with_capacity(length.min(self.0.len() / 32));
        for _ in 0..length {
            let (price, quantity) = (self.decimal()?, self.decimal()?);
            levels.push(Level { price: Price::new(price)?, quantity: Quantity::new(quantity)? });
        }
        Ok(levels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_values_decode_to_the_same_values() {
        let mut out = Writer::default();
        let long = "x".repeat(300);
        for text in ["", "BTC-USDT", &long] {
            out.text(text);
        }
        out.time(Timestamp::MAX_RECORD);
        out.counter(u64::MAX);
        let least: Decimal = "-99999999999999999999.999999999999999999".parse().unwrap();
        out.decimal(least);
        out.presence(false);
        out.presence(true);
        out.integer(-7);
        out.boolean(true);
        out.code(2);
        out.interval(Interval::H4);
        let level = Level { price: "1.5".parse().unwrap(), quantity: "0".parse().unwrap() };
        out.levels(&[level; 200]);
        out.levels(&[]);
        let mut read = Reader::new(&out.0);
        assert_eq!((read.text(), read.text()), (Ok(""), Ok("BTC-USDT")));
        assert_eq!(read.text(), Ok(long.as_str()));
        assert_eq!(read.time().unwrap(), Timestamp::MAX_RECORD);
        assert_eq!(read.counter().unwrap(), u64::MAX);
        assert_eq!(read.decimal().unwrap(), least);
        assert_eq!((read.presence().unwrap(), read.presence().unwrap()), (false, true));
        assert_eq!(read.integer().unwrap(), -7);
        assert!(read.boolean().unwrap());
        assert_eq!(read.code().unwrap(), 2);
        assert_eq!(read.interval().unwrap(), Interval::H4);
        assert_eq!(read.levels().unwrap(), [level; 200]);
        assert_eq!(read.levels().unwrap(), []);
        assert!(read.is_empty());
        assert!(read.i8().is_err());
    }

    #[test]
    fn malformed_bytes_are_rejected() {
        assert!(Reader::new(&[0xFF; 9]).text().is_err());
        assert!(Reader::new(&[5, b'a']).text().is_err());
        assert!(Reader::new(&[1, 0xFF]).text().is_err());
        assert!(Reader::new(&[2]).presence().is_err());
        assert!(Reader::new(&[2]).boolean().is_err());
        assert!(Reader::new(&[0xFF, 0xFF, 0xFF, 0xFF, 0x0F]).levels().is_err());
        assert!(Reader::new(&[0; 15]).i128().is_err());
    }
}
