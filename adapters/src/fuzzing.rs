//! Fuzz targets. They are not part of the public interface.
//!
//! Each target accepts arbitrary bytes. A target panics if decoding panics, or if an accepted value differs after a
//! round trip through encoding and decoding.
//!
//! `adapters/tests/fuzz.rs` runs the targets briefly. The crate `fuzz/` runs the targets under libFuzzer.

#![allow(clippy::missing_panics_doc, reason = "a panic is the finding")]
#![allow(clippy::unwrap_used, reason = "a panic is the finding")]

use bytes::Bytes;
#[cfg(feature = "clickhouse")]
use qi_core::Datasets;
use qi_core::bus::{
    Codec as _, Encoding, HeaderName, ReceivedMessage, TopicName, decode_message, encode_message, header,
};
use qi_core::record::{Column, ColumnType, Dataset, Description, SeriesType};
use qi_core::store::{Cursor, Paged, RangeQuery, RangeRequest, SeriesRequest};
use qi_core::{
    Bar, BookSnapshot, Decimal, Instrument, Interval, MarketSnapshot, PriceTick, Quote, Record, Scope,
    TimeRange, Timestamp,
};

#[cfg(feature = "redpanda")]
pub use crate::redpanda::fuzz_assignment as group_assignment;
#[cfg(feature = "timescale")]
pub use crate::timescale::fuzz_numeric as numeric;

/// Decodes a message as each record type. The first byte may select a header. The first line is then its value.
pub fn codecs(bytes: &[u8]) {
    let Some((selector, rest)) = bytes.split_first() else { return };
    let mut message = ReceivedMessage::new(TopicName::new("t").unwrap(), 0, 0);
    let names = [header::CONTENT_TYPE, header::TYPE, header::VERSION];
    let payload = match names.get(usize::from(*selector)) {
        Some(name) => {
            let line = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            let value = Bytes::copy_from_slice(&rest[..line]);
            message.headers.push(HeaderName::new(*name).unwrap(), value);
            rest.get(line + 1..)
        }
        None => Some(rest),
    };
    message.payload = payload.map(Bytes::copy_from_slice);
    decode_each(&message);
    if *selector >= 128 {
        let content_type = Bytes::from_static(Encoding::Protobuf.content_type().as_bytes());
        message.headers =
            [(HeaderName::new(header::CONTENT_TYPE).unwrap(), Some(content_type))].into_iter().collect();
        decode_each(&message);
    }
}

fn decode_each(message: &ReceivedMessage) {
    decode::<PriceTick>(message);
    decode::<Quote>(message);
    decode::<Bar>(message);
    decode::<MarketSnapshot>(message);
    decode::<BookSnapshot>(message);
}

fn decode<R: Record>(message: &ReceivedMessage) {
    let record: R = match decode_message(message) {
        Ok(record) => record,
        Err(error) => return drop(error.report()),
    };
    for encoding in Encoding::ALL {
        let encoded = encode_message(&encoding, &record, None).unwrap();
        let mut decoded = ReceivedMessage::new(encoded.topic, 0, 0);
        (decoded.payload, decoded.headers) = (encoded.payload, encoded.headers);
        assert_eq!(decode_message::<R>(&decoded).unwrap(), record);
    }
}

/// Parses domain values from text.
pub fn texts(bytes: &[u8]) {
    fn check_round_trip<T: std::str::FromStr + ToString + PartialEq + std::fmt::Debug>(text: &str) {
        if let Ok(value) = text.parse::<T>() {
            assert_eq!(value.to_string().parse::<T>().ok(), Some(value));
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    check_round_trip::<Decimal>(text);
    check_round_trip::<Timestamp>(text);
    check_round_trip::<Instrument>(text);
    check_round_trip::<Interval>(text);
    check_round_trip::<Scope>(text);
}

/// Builds a configuration. The TOML text ends at the first NUL. Each line after the NUL is an environment variable in
/// the form `NAME=value`.
pub fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (toml, variables) = text.split_once('\0').unwrap_or((text, ""));
    let variables = variables.lines().filter_map(|line| line.split_once('='));
    match crate::Config::builder().toml(toml).variables(variables).build() {
        Ok(config) => drop(format!("{config:?}")),
        Err(error) => drop(error.report()),
    }
}

/// Decodes rows of each built-in dataset, and of a dataset with every column type.
#[cfg(feature = "clickhouse")]
pub fn row_binary(bytes: &[u8]) {
    static ALL_COLUMN_TYPES: std::sync::LazyLock<Dataset> = std::sync::LazyLock::new(|| {
        let column = |name, ty, optional| Column { name, ty, optional };
        let types = [
            ColumnType::Decimal,
            ColumnType::Counter,
            ColumnType::Integer,
            ColumnType::Boolean,
            ColumnType::Text { max: 40 },
            ColumnType::Enumeration(&["a", "b"]),
            ColumnType::Timestamp,
            ColumnType::Interval,
        ];
        let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];
        let types = types.into_iter().flat_map(|ty| [(ty, false), (ty, true)]);
        let mut values: Vec<_> =
            names.into_iter().zip(types).map(|(name, (ty, optional))| column(name, ty, optional)).collect();
        values.push(column("q", ColumnType::Levels { max: 4 }, false));
        let (series, time, seq) = (SeriesType::Name { column: "name", max: 40 }, "ts", Some("seq"));
        let (name, message, topic, interval, values) = ("every", "every", "every", None, values.leak());
        let new_vec = |dataset: Dataset| dataset.new_vec();
        Dataset::declare(Description {
            name,
            version: 1,
            message,
            topic,
            series,
            interval,
            time,
            seq,
            values,
            new_vec,
        })
        .unwrap()
    });
    for dataset in Datasets::standard().iter().chain([*ALL_COLUMN_TYPES]) {
        crate::clickhouse::fuzz_row_binary(dataset, bytes);
    }
}

/// Parses a cursor from any text, and a cursor with a valid seal around any sort key.
pub fn cursors(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let ticks = RangeQuery::new("binance:BTC-USDT".parse().unwrap(), TimeRange::ALL).request::<PriceTick>();
    let page = |query: &RangeRequest| query.page_of(PriceTick::DATASET.new_vec()).unwrap().resume;
    open(text, &ticks, |cursor| ticks.clone().after(cursor), page);
    let series = SeriesRequest::new(PriceTick::DATASET);
    let page = |query: &SeriesRequest| query.page_of(Vec::new()).unwrap().resume;
    open(text, &series, |cursor| series.clone().after(cursor), page);
}

/// Checks both cursors. `resume` returns the cursor of an empty page.
fn open<Q: Paged>(text: &str, query: &Q, after: impl Fn(Cursor) -> Q, resume: impl Fn(&Q) -> Cursor) {
    for cursor in [text.to_owned(), sealed(&format!("{:?}", query.fingerprint()), text)] {
        let Ok(cursor) = cursor.parse::<Cursor>() else { continue };
        let query = after(cursor);
        let Ok(anchor) = query.anchor() else { continue };
        // An empty page resumes at its own anchor.
        assert_eq!(after(resume(&query).to_string().parse().unwrap()).anchor().unwrap(), anchor);
    }
}

/// Seals a sort key as the query would. The seal is an FNV-1a hash without a secret key. It starts from the
/// hash of the query.
fn sealed(scope: &str, sort_key: &str) -> String {
    let digits: String = scope.chars().filter(char::is_ascii_digit).collect();
    let seal = sort_key.bytes().fold(digits.parse::<u64>().unwrap(), |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("1{seal:016x}{sort_key}")
}
