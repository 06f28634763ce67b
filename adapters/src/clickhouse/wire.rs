//! `RowBinary`, the form of rows that goes over the wire in both directions. Source: `RowBinary` in
//! ClickHouse's documentation of formats. Decimals and times are the integers of the domain itself, little-endian.

use qi_core::{Decimal, Timestamp};

/// A response that does not contain rows of the requested columns.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed response: {0}")]
pub(super) struct Malformed(pub(super) String);

/// Rows under way to the server.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn text(&mut self, text: &str) {
        self.length(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    /// Seven bits at a time, the least first; the highest bit says that more follow.
    pub(super) fn length(&mut self, mut length: usize) {
        while length >= 0x80 {
            self.0.push(length.to_le_bytes()[0] | 0x80);
            length >>= 7;
        }
        self.0.push(length.to_le_bytes()[0]);
    }

    pub(super) fn time(&mut self, time: Timestamp) {
        self.0.extend_from_slice(&time.as_micros().to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn decimal(&mut self, value: impl Into<Decimal>) {
        self.0.extend_from_slice(&value.into().units().to_le_bytes());
    }

    /// A value of a Nullable column.
    pub(super) fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.0.push(u8::from(value.is_none()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    pub(super) fn i8(&mut self, value: i8) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
}

/// Rows that the server gave.
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
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or_else(|| Malformed("it ends in the middle of a row".into()))?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            let [byte] = self.take()?;
            length |= usize::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                break;
            }
            shift += 7;
            if shift > 28 {
                return Err(Malformed("a text is too long".into()));
            }
        }
        let (text, rest) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| Malformed("it ends in the middle of a text".into()))?;
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

    /// 256 bits, as they are.
    pub(super) fn wide(&mut self) -> Result<[u8; 32], Malformed> {
        self.take()
    }

    /// A value of a Nullable column.
    pub(super) fn option<T, E: From<Malformed>>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        match self.take()? {
            [0] => read(self).map(Some),
            [1] => Ok(None),
            [other] => Err(Malformed(format!("{other} says neither NULL nor a value")).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_there_and_back() {
        let mut out = Writer::default();
        let long = "x".repeat(300);
        for text in ["", "BTC-USDT", &long] {
            out.text(text);
        }
        out.time(Timestamp::MAX_RECORD);
        out.u64(u64::MAX);
        out.decimal("-99999999999999999999.999999999999999999".parse::<Decimal>().unwrap());
        out.option(None::<u64>, Writer::u64);
        out.option(Some(7), Writer::i8);
        let mut read = Reader::new(&out.0);
        assert_eq!((read.text(), read.text()), (Ok(""), Ok("BTC-USDT")));
        assert_eq!(read.text(), Ok(long.as_str()));
        assert_eq!(read.i64(), Ok(Timestamp::MAX_RECORD.as_micros()));
        assert_eq!(read.u64(), Ok(u64::MAX));
        assert_eq!(read.i128(), Ok(1 - 10_i128.pow(38)));
        assert_eq!(read.option(Reader::u64), Ok(None));
        assert_eq!(read.option(Reader::i8), Ok(Some(7)));
        assert!(read.is_empty());
        assert!(read.i8().is_err());
    }

    #[test]
    fn hostile_bytes_are_refused() {
        assert!(Reader::new(&[0xFF; 9]).text().is_err());
        assert!(Reader::new(&[5, b'a']).text().is_err());
        assert!(Reader::new(&[1, 0xFF]).text().is_err());
        assert!(Reader::new(&[2]).option(Reader::i8).is_err());
        assert!(Reader::new(&[0; 15]).i128().is_err());
    }
}
