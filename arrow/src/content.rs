//! The number, the range and the digest of records.

use std::fmt::Write as _;
use std::ops::Range;

use qi_core::record::{FieldWriter, Level, Records, SeriesKey};
use qi_core::{Decimal, Interval, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The number, the range and the digest of records in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Content {
    /// The number of records.
    pub records: u64,
    /// The time of the first record. None without records.
    #[serde(with = "time_text")]
    pub first: Option<Timestamp>,
    /// The time of the last record. None without records.
    #[serde(with = "time_text")]
    pub last: Option<Timestamp>,
    /// The digest of [`ContentDigest`] in hexadecimal digits.
    pub digest: String,
}

/// Times as text, so that people can read a manifest.
mod time_text {
    use super::{Deserialize, Timestamp};

    #[allow(clippy::ref_option, reason = "serde defines the signature")]
    pub(super) fn serialize<S: serde::Serializer>(
        time: &Option<Timestamp>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => serializer.collect_str(time),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
    }
}

/// Computes the [`Content`] of records.
///
/// The digest is the SHA-256 of the values, not of a file, so the same records have the same digest in every store and
/// in every file. Its input is, for each record:
///
/// 1. if the series differs from that of the record before: the byte 254, the text of the series, and its interval in
///    µs, or 0;
/// 2. the time in µs and the sequence number;
/// 3. for each present value: its column's position in the declaration, as one byte, and the value;
/// 4. the byte 255.
///
/// Numbers are little-endian: decimals in 16 bytes (units of 10⁻¹⁸), codes and booleans in 1 byte, all others in 8
/// bytes. Texts and lists of levels follow their length in 4 bytes. An absent value adds nothing, so an optional column
/// that is added later does not change the digest of older records.
#[derive(Debug, Default)]
pub struct ContentDigest {
    records: u64,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
    series: Option<SeriesKey>,
    bytes: Vec<u8>,
    hash: Sha256,
}

const NEW_SERIES: u8 = 254;
const END_OF_RECORD: u8 = 255;
/// The hash function is called for blocks of this size.
const BLOCK: usize = 16 * 1024;

impl ContentDigest {
    /// Adds the records in an index range.
    ///
    /// # Panics
    /// If the range ends after the last record.
    pub fn add(&mut self, records: &dyn Records, range: Range<usize>) {
        let mut at = range.start;
        while at < range.end {
            let count = records.run(at..range.end);
            let series = records.series(at);
            if self.series.as_ref().is_none_or(|last| last.as_ref() != series) {
                let series = series.to_owned();
                self.bytes.push(NEW_SERIES);
                let text = series.owner.to_string();
                put_text(&mut self.bytes, series.owner.name().unwrap_or(&text));
                let micros = series.interval.map_or(0, Interval::as_micros);
                self.bytes.extend_from_slice(&micros.to_le_bytes());
                self.series = Some(series);
            }
            for at in at..at + count {
                let (time, seq) = records.sort_key(at);
                self.first.get_or_insert(time);
                self.last = Some(time);
                self.bytes.extend_from_slice(&time.as_micros().to_le_bytes());
                self.bytes.extend_from_slice(&seq.to_le_bytes());
                records.write(at, &mut ValueBytes { bytes: &mut self.bytes, column: 0 });
                self.bytes.push(END_OF_RECORD);
                if self.bytes.len() >= BLOCK {
                    self.hash.update(&self.bytes);
                    self.bytes.clear();
                }
            }
            at += count;
        }
        self.records += range.len() as u64;
    }

    /// Returns the number of records so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Returns the content of all added records.
    pub fn finish(mut self) -> Content {
        self.hash.update(&self.bytes);
        let digest = hex(&self.hash.finalize());
        Content { records: self.records, first: self.first, last: self.last, digest }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing into memory does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_length(bytes, text.len());
    bytes.extend_from_slice(text.as_bytes());
}

fn put_length(bytes: &mut Vec<u8>, length: usize) {
    // Texts and lists are bounded far below 2³² by their declarations.
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

struct ValueBytes<'a> {
    bytes: &'a mut Vec<u8>,
    /// The position of the next column. A dataset has at most 100 columns.
    column: u8,
}

impl ValueBytes<'_> {
    fn put(&mut self, value: &[u8]) {
        self.begin();
        self.bytes.extend_from_slice(value);
    }

    fn begin(&mut self) {
        self.bytes.push(self.column);
        self.column += 1;
    }
}

impl FieldWriter for ValueBytes<'_> {
    fn presence(&mut self, present: bool) {
        if !present {
            self.column += 1;
        }
    }
    fn decimal(&mut self, value: Decimal) {
        self.put(&value.units().to_le_bytes());
    }
    fn counter(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }
    fn integer(&mut self, value: i64) {
        self.put(&value.to_le_bytes());
    }
    fn boolean(&mut self, value: bool) {
        self.put(&[value.into()]);
    }
    fn text(&mut self, value: &str) {
        self.begin();
        put_text(self.bytes, value);
    }
    fn code(&mut self, value: u8) {
        self.put(&[value]);
    }
    fn time(&mut self, value: Timestamp) {
        self.put(&value.as_micros().to_le_bytes());
    }
    fn interval(&mut self, value: Interval) {
        self.put(&value.as_micros().to_le_bytes());
    }
    fn levels(&mut self, value: &[Level]) {
        self.begin();
        put_length(self.bytes, value.len());
        for Level { price, quantity } in value {
            self.bytes.extend_from_slice(&price.units().to_le_bytes());
            self.bytes.extend_from_slice(&quantity.units().to_le_bytes());
        }
    }
}
