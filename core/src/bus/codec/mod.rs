//! Message formats. A codec writes a record as a payload with headers that describe it, and reads it back strictly.

pub mod protobuf;

use std::fmt::{self, Debug};
use std::str::FromStr;
use std::sync::LazyLock;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{HeaderName, Headers, Message, ReceivedMessage, TopicName, header};
use crate::record::{Record, RecordVec, Records, Slice};
use crate::{Error, ErrorKind, Result};

/// A format of message payloads.
///
/// [`Encoding`] has the formats that every program reads. A team can implement another format, for example with the
/// framing of a schema registry (see [`guide::codecs`](crate::guide::codecs)).
pub trait Codec: Debug + Send + Sync + 'static {
    /// Returns the media type for the header `content-type`.
    fn content_type(&self) -> &'static str;

    /// Appends the payload of a record.
    ///
    /// # Errors
    /// `InvalidInput` for a record that the format cannot represent.
    fn encode(&self, records: &dyn Records, at: usize, out: &mut Vec<u8>) -> Result<()>;

    /// Reads a record from a payload, checks the record and appends it.
    ///
    /// # Errors
    /// `CorruptData` with the position of the error.
    fn decode(&self, payload: &[u8], records: &mut RecordVec) -> Result<()>;
}

/// The formats of this crate. A reader accepts all of them and selects the format by the header `content-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Encoding {
    /// `application/json`: decimals as strings, times as integers of microseconds. A reader ignores unknown fields.
    #[default]
    Json,
    /// `application/x-protobuf`: the wire format of Protocol Buffers with the messages of [`protobuf::schema`]. A
    /// reader ignores unknown fields.
    Protobuf,
}

impl Encoding {
    /// Every format of this crate.
    pub const ALL: [Self; 2] = [Self::Json, Self::Protobuf];

    /// Returns the name in the configuration: `json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Protobuf => "protobuf",
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl AsRef<str> for Encoding {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl FromStr for Encoding {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|encoding| encoding.as_str() == text);
        found.ok_or_else(|| Error::invalid("bus.codec", "codec", text, "must be json or protobuf"))
    }
}

impl Serialize for Encoding {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Encoding {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        crate::domain::from_text(deserializer, "json or protobuf")
    }
}

impl Codec for Encoding {
    fn content_type(&self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/x-protobuf",
        }
    }

    fn encode(&self, records: &dyn Records, at: usize, out: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Json => records.write_json(at, out),
            Self::Protobuf => protobuf::encode(records, at, out),
        }
        Ok(())
    }

    fn decode(&self, payload: &[u8], records: &mut RecordVec) -> Result<()> {
        match self {
            Self::Json => records.push_json(payload),
            Self::Protobuf => protobuf::decode(payload, records),
        }
    }
}

/// Returns the message of a record, keyed by its series, on `topic` or on the dataset's default topic.
///
/// The message's timestamp is the time of publishing, because retention by age uses it. The record's own
/// time is in the payload.
///
/// # Errors
/// `InvalidInput` for an invalid record, or a record that the format cannot represent.
pub fn encode_message<R: Record>(
    codec: &dyn Codec,
    record: &R,
    topic: Option<&TopicName>,
) -> Result<Message> {
    encode_record(codec, &Slice::new(std::slice::from_ref(record))?, 0, topic)
}

/// Returns the message of the record at index `at`, for records without their Rust type; see [`encode_message`].
///
/// # Errors
/// As [`encode_message`].
///
/// # Panics
/// If there is no record at this index.
pub fn encode_record(
    codec: &dyn Codec,
    records: &dyn Records,
    at: usize,
    topic: Option<&TopicName>,
) -> Result<Message> {
    let mut encoder = Encoder::new(codec, records, topic)?;
    let mut payload = Vec::with_capacity(PAYLOAD_BYTES);
    codec.encode(records, at, &mut payload)?;
    Ok(encoder.message(at, payload.into()))
}

/// Returns the messages of records in order; see [`encode_message`]. The payloads share one allocation.
///
/// # Errors
/// As [`encode_message`].
pub fn encode_records(
    codec: &dyn Codec,
    records: &dyn Records,
    topic: Option<&TopicName>,
) -> Result<Vec<Message>> {
    let mut encoder = Encoder::new(codec, records, topic)?;
    let mut payloads = Vec::with_capacity(records.len() * PAYLOAD_BYTES);
    let mut ends = Vec::with_capacity(records.len());
    for at in 0..records.len() {
        codec.encode(records, at, &mut payloads)?;
        ends.push(payloads.len());
    }
    let mut payloads = Bytes::from(payloads);
    let mut begin = 0;
    let messages = ends.into_iter().enumerate().map(|(at, end)| {
        let payload = payloads.split_to(end - begin);
        begin = end;
        encoder.message(at, payload)
    });
    Ok(messages.collect())
}

/// The typical size of a payload in bytes.
const PAYLOAD_BYTES: usize = 128;

/// A builder of messages of one dataset and one format.
struct Encoder<'r> {
    records: &'r dyn Records,
    topic: TopicName,
    headers: Headers,
    /// The index of the last encoded record, and its message key.
    key: Option<(usize, Bytes)>,
}

impl<'r> Encoder<'r> {
    fn new(codec: &dyn Codec, records: &'r dyn Records, topic: Option<&TopicName>) -> Result<Self> {
        let dataset = records.dataset();
        let topic = match topic {
            Some(topic) => topic.clone(),
            None => TopicName::new(dataset.topic())?,
        };
        let [content_type, kind, version] = HEADERS.clone()?;
        let headers = [
            (content_type, Bytes::from_static(codec.content_type().as_bytes())),
            (kind, Bytes::from_static(dataset.message().as_bytes())),
            (version, Bytes::from(dataset.version().to_string())),
        ];
        let headers = headers.into_iter().map(|(name, value)| (name, Some(value))).collect();
        Ok(Self { records, topic, headers, key: None })
    }

    fn message(&mut self, at: usize, payload: Bytes) -> Message {
        let series = self.records.series(at);
        let key = match &self.key {
            Some((known, key)) if self.records.series(*known).owner == series.owner => key.clone(),
            _ => Bytes::from(series.owner.to_string()),
        };
        self.key = Some((at, key.clone()));
        let mut message = Message::new(self.topic.clone(), payload).with_key(key);
        message.headers.clone_from(&self.headers);
        message
    }
}

/// The checked names of the headers. A clone of a name only increments a reference count.
static HEADERS: LazyLock<Result<[HeaderName; 3]>> = LazyLock::new(|| {
    let [content_type, kind, version] =
        [header::CONTENT_TYPE, header::TYPE, header::VERSION].map(HeaderName::new);
    Ok([content_type?, kind?, version?])
});

/// Returns the record of a message in any format of [`Encoding`].
///
/// A message without these headers, as other producers write it, is read as JSON of the expected record. A message
/// whose headers name another record is rejected.
///
/// # Errors
/// `CorruptData` with the message's topic, partition and offset in the context. Reasons are another format, type or
/// version, unreadable headers, a tombstone, or a payload that is not a valid record.
pub fn decode_message<R: Record>(message: &ReceivedMessage) -> Result<R> {
    let mut records = R::DATASET.new_vec();
    decode_record(message, &mut records)?;
    let record = records.into_vec::<R>()?.pop();
    record.ok_or_else(|| corrupt("bus.codec.empty").with_message("the codec returned no record"))
}

/// Appends the record of a message to records of the same dataset; see [`decode_message`].
///
/// # Errors
/// As [`decode_message`].
pub fn decode_record(message: &ReceivedMessage, records: &mut RecordVec) -> Result<()> {
    decode_record_with(&[&Encoding::Json, &Encoding::Protobuf], message, records)
}

/// Appends the record of a message that one of `codecs` wrote. A message without the header `content-type` is
/// read with the first codec.
///
/// # Errors
/// As [`decode_message`].
pub fn decode_record_with(
    codecs: &[&dyn Codec],
    message: &ReceivedMessage,
    records: &mut RecordVec,
) -> Result<()> {
    checked(codecs, message, records)
        .and_then(|(codec, payload)| codec.decode(payload, records))
        .map_err(|error| at(error, message))
}

/// Returns the codec and the payload of a message. The headers must be absent or describe the expected record.
fn checked<'c, 'm>(
    codecs: &[&'c dyn Codec],
    message: &'m ReceivedMessage,
    records: &RecordVec,
) -> Result<(&'c dyn Codec, &'m [u8])> {
    if let Some((first, reason)) = message.unreadable() {
        return Err(corrupt("bus.codec.unreadable")
            .with_message("the bus could not read the offsets from `first` to `offset`")
            .with_context("first", first)
            .with_context("reason", reason));
    }
    if message.headers_unreadable {
        return Err(corrupt("bus.codec.headers").with_message("a header name is not UTF-8 text"));
    }
    let reject = |name: &'static str, wanted: &dyn fmt::Display, found: &Bytes| {
        corrupt("bus.codec.header")
            .with_message(format_args!("header {name} must be {wanted}"))
            .with_context("field", name)
            .with_context("value", String::from_utf8_lossy(found))
    };
    let codec = match message.headers.get(header::CONTENT_TYPE) {
        None => codecs.first().copied(),
        Some(found) => codecs.iter().copied().find(|codec| is_media_type(found, codec.content_type())),
    };
    let Some(codec) = codec else {
        let names: Vec<_> = codecs.iter().map(|codec| codec.content_type()).collect();
        let found = message.headers.get(header::CONTENT_TYPE).cloned().unwrap_or_default();
        return Err(reject(header::CONTENT_TYPE, &names.join(" or "), &found));
    };
    let dataset = records.as_records().dataset();
    if let Some(found) = message.headers.get(header::TYPE)
        && found != dataset.message().as_bytes()
    {
        return Err(reject(header::TYPE, &dataset.message(), found));
    }
    if let Some(found) = message.headers.get(header::VERSION)
        && !is_number(found, dataset.version())
    {
        return Err(reject(header::VERSION, &dataset.version(), found));
    }
    let payload = message.payload.as_ref();
    let payload =
        payload.ok_or_else(|| corrupt("bus.codec.tombstone").with_message("a tombstone holds no record"))?;
    Ok((codec, payload))
}

/// Returns whether `found` is the canonical decimal form of `wanted`.
fn is_number(found: &[u8], wanted: u16) -> bool {
    let is_canonical = !found.starts_with(b"+") && (found == b"0" || !found.starts_with(b"0"));
    is_canonical && std::str::from_utf8(found).is_ok_and(|text| text.parse() == Ok(wanted))
}

fn at(error: Error, message: &ReceivedMessage) -> Error {
    error
        .with_context("topic", &message.topic)
        .with_context("partition", message.partition)
        .with_context("offset", message.offset)
}

/// Returns whether a content type has this media type, in any letter case. Parameters are ignored, except a charset,
/// which must be UTF-8.
fn is_media_type(found: &[u8], wanted: &str) -> bool {
    if found == wanted.as_bytes() {
        return true;
    }
    let Ok(found) = std::str::from_utf8(found) else { return false };
    let mut quoted = false;
    let mut parts = found.split(|c| {
        quoted ^= c == '"';
        c == ';' && !quoted
    });
    let is_utf8 = |parameter: &str| match parameter.split_once('=') {
        Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => {
            let value = value.trim().trim_matches('"');
            value.eq_ignore_ascii_case("utf-8") || value.eq_ignore_ascii_case("utf8")
        }
        _ => true,
    };
    parts.next().is_some_and(|found| found.trim().eq_ignore_ascii_case(wanted)) && parts.all(is_utf8)
}

fn corrupt(code: &'static str) -> Error {
    Error::new(ErrorKind::CorruptData, code, "decode")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Bar, BarValues, Interval, MarketSnapshot, PriceTick, Quote, QuoteValues, Scope, SnapshotValues,
        Timestamp,
    };

    fn received(message: &Message) -> ReceivedMessage {
        let mut received = ReceivedMessage::new(message.topic.clone(), 3, 17);
        received.key.clone_from(&message.key);
        received.payload.clone_from(&message.payload);
        received.headers.clone_from(&message.headers);
        received
    }

    fn tick() -> PriceTick {
        PriceTick::new("a:B".parse().unwrap(), Timestamp::MIN, 1, "1.5".parse().unwrap()).unwrap()
    }

    fn records_round_trip<T: Record>(record: &T, topic: &str) {
        let message = encode_message(&Encoding::Json, record, None).unwrap();
        assert_eq!((message.topic.as_str(), message.timestamp), (topic, None));
        assert_eq!(&decode_message::<T>(&received(&message)).unwrap(), record);
    }

    #[test]
    fn every_record_round_trips() {
        let (instrument, price) = ("a:B".parse::<crate::Instrument>().unwrap(), "2".parse().unwrap());
        records_round_trip(&tick(), "crypto-prices");
        let values = QuoteValues { ask_price: Some(price), ..Default::default() };
        records_round_trip(
            &Quote::new(instrument.clone(), Timestamp::MIN, 0, values).unwrap(),
            "crypto-quotes",
        );
        let bar = Bar::new(instrument, Interval::W1, Timestamp::MIN, BarValues::flat(price)).unwrap();
        records_round_trip(&bar, "crypto-ohlcv");
        let values = SnapshotValues { markets: Some(1), ..Default::default() };
        records_round_trip(
            &MarketSnapshot::new(Scope::Global, Timestamp::MIN, values).unwrap(),
            "market-analytics",
        );
    }

    #[test]
    fn other_messages_are_rejected_with_their_position() {
        let message = received(&encode_message(&Encoding::Json, &tick(), None).unwrap());
        let with = |name: &str, value: &'static str| {
            let mut other = message.clone();
            other.headers.push(HeaderName::new(name).unwrap(), Bytes::from(value));
            decode_message::<PriceTick>(&other).unwrap_err()
        };
        for (name, value) in [(header::TYPE, "quote"), (header::VERSION, "2"), (header::CONTENT_TYPE, "x")] {
            let error = with(name, value);
            assert_eq!((error.kind(), error.context_value("value")), (ErrorKind::CorruptData, Some(value)));
            assert_eq!(error.context_value("offset"), Some("17"));
        }
        let mut tombstone = message.clone();
        tombstone.payload = None;
        assert_eq!(decode_message::<PriceTick>(&tombstone).unwrap_err().code(), "bus.codec.tombstone");
        let mut broken = message.clone();
        broken.payload = Some(Bytes::from_static(b"{\"instrument\":"));
        let error = decode_message::<PriceTick>(&broken).unwrap_err();
        assert_eq!((error.code(), error.context_value("column")), ("bus.codec.json", Some("14")));
    }

    fn json_of(value: &str) -> Option<bool> {
        let mut message = received(&encode_message(&Encoding::Json, &tick(), None).unwrap());
        message.headers.remove(header::CONTENT_TYPE);
        let name = HeaderName::new(header::CONTENT_TYPE).unwrap();
        message.headers.push(name, Bytes::copy_from_slice(value.as_bytes()));
        match decode_message::<PriceTick>(&message) {
            Ok(_) => Some(true),
            Err(error) => (error.code() == "bus.codec.header").then_some(false),
        }
    }

    #[test]
    fn json_with_parameters_in_any_letter_case_is_json() {
        for value in [
            "application/json",
            "APPLICATION/Json",
            " application/json ",
            "application/json;charset=UTF-8",
            "application/json; charset=utf-8",
            "application/json ;\tCharset = \"Utf-8\" ; v=1",
            "application/json;charset=utf8",
            "application/json;",
            "application/json; profile=\"a;charset=latin1\"",
        ] {
            assert_eq!(json_of(value), Some(true), "{value:?}");
        }
    }

    #[test]
    fn other_media_types_and_charsets_are_rejected() {
        for value in [
            "",
            ";charset=utf-8",
            "application/jsonp",
            "application/json2;charset=utf-8",
            "application/x-protobuf2",
            "text/json",
            "application/json;charset=latin1",
            "application/json;charset=",
            "application/json;charset=utf-8;charset=utf-16",
            "application/json; CHARSET=\"ISO-8859-1\"",
        ] {
            assert_eq!(json_of(value), Some(false), "{value:?}");
        }
    }

    #[test]
    fn a_message_with_unreadable_headers_is_corrupt_data() {
        let mut message = received(&encode_message(&Encoding::Json, &tick(), None).unwrap());
        message.headers_unreadable = true;
        let error = decode_message::<PriceTick>(&message).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::CorruptData, "bus.codec.headers"));
    }

    #[test]
    fn a_message_for_unreadable_offsets_is_corrupt_data() {
        let mut message = received(&encode_message(&Encoding::Json, &tick(), None).unwrap());
        for (name, text) in [(header::UNREADABLE_FROM, "5"), (header::UNREADABLE_CODE, "bus.x")] {
            message.headers.push(HeaderName::new(name).unwrap(), Some(text.into()));
        }
        // A producer can set the headers, so they alone do not make a message unreadable.
        assert!(decode_message::<PriceTick>(&message).is_ok());
        (message.headers_unreadable, message.payload) = (true, None);
        let error = decode_message::<PriceTick>(&message).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::CorruptData, "bus.codec.unreadable"));
        assert_eq!((error.context_value("first"), error.context_value("reason")), (Some("5"), Some("bus.x")));
    }

    #[test]
    fn an_error_truncates_long_values() {
        let long = "7".repeat(2 << 20);
        for (field, value) in [
            ("ts", format!("\"{long}\"")),
            ("seq", format!("\"{long}\"")),
            ("seq", long.clone()),
            ("price", format!("\"{long}\"")),
            ("price", long.clone()),
            ("instrument", format!("\"{long}\"")),
            ("side", format!("\"{long}\"")),
            (&long, "1".to_owned()),
        ] {
            let fields =
                [("instrument", "\"a:B\""), ("ts", "1704067200000000"), ("seq", "1"), ("price", "\"1\"")];
            let fields = fields.iter().filter(|(name, _)| *name != field);
            let fields: Vec<_> = fields.map(|(name, value)| format!("\"{name}\":{value},")).collect();
            let fields = fields.concat();
            let payload = format!("{{{fields}\"{field}\":{value}}}");
            let mut message = received(&encode_message(&Encoding::Json, &tick(), None).unwrap());
            message.payload = Some(payload.into());
            let result = decode_message::<PriceTick>(&message);
            if field.len() > 100 {
                assert!(result.is_ok(), "a field with a long name is not known");
                continue;
            }
            let error = result.unwrap_err();
            let size = format!("{error:?}").len();
            assert!(size < 2_000 && error.report().len() < 1_000, "{field}: {size} bytes");
        }
    }

    #[test]
    fn a_message_of_another_producer_needs_no_headers() {
        let mut plain = received(&encode_message(&Encoding::Json, &tick(), None).unwrap());
        plain.headers = super::super::Headers::new();
        assert_eq!(decode_message::<PriceTick>(&plain).unwrap(), tick());
    }
}
