//! Typed messages: a record becomes a payload with headers that say what it is, and is read back strictly.

use std::sync::LazyLock;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{HeaderName, Message, Received, TopicName, header};
use crate::record::{Record, RecordVec, Records, Series, json_error};
use crate::{Error, ErrorKind, Result};

/// A record that travels on the bus.
pub trait Payload: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What the header `qi-type` says.
    const TYPE: &'static str;
    /// What the header `qi-version` says. It rises when an old reader could not read the new form.
    const VERSION: u16 = 1;
    /// The topic that it travels on unless another is named.
    const TOPIC: &'static str;

    /// The key of its message: records of one key keep their order.
    fn message_key(&self) -> Bytes;
}

impl<R: Record> Payload for R {
    const TYPE: &'static str = R::DATASET.message();
    const VERSION: u16 = R::DATASET.version();
    const TOPIC: &'static str = R::DATASET.topic();

    /// The series, without its interval.
    fn message_key(&self) -> Bytes {
        self.series().message_key().into()
    }
}

/// A way to write values as bytes.
pub trait Codec: Send + Sync + 'static {
    /// What the header `content-type` says.
    const CONTENT_TYPE: &'static str;

    /// Writes a value.
    ///
    /// # Errors
    /// `InvalidInput` for a value that the format cannot hold.
    fn encode<T: Serialize>(value: &T) -> Result<Bytes>;

    /// Reads a value, validating all of it.
    ///
    /// # Errors
    /// `CorruptData` that says where the bytes are wrong.
    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T>;
}

/// JSON: decimals as strings, times as integers of microseconds. A field that this version does not know is passed
/// over, so that newer producers may add some; what an old reader must not miss raises `Payload::VERSION`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Json {}

impl Codec for Json {
    const CONTENT_TYPE: &'static str = "application/json";

    fn encode<T: Serialize>(value: &T) -> Result<Bytes> {
        serde_json::to_vec(value).map(Bytes::from).map_err(|e| {
            Error::new(ErrorKind::InvalidInput, "bus.codec.json.encode", "encode").with_source(e)
        })
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|error| json_error(&error))
    }
}

/// The message of a record, keyed, on `topic` or its default topic. Its time is that of publishing: retention by
/// age looks at it, and the event's own time is in the payload.
///
/// # Errors
/// `InvalidInput` for a value that the codec cannot hold.
pub fn encode_message<C: Codec, T: Payload>(record: &T, topic: Option<&TopicName>) -> Result<Message> {
    let topic = match topic {
        Some(topic) => topic.clone(),
        None => TopicName::new(T::TOPIC)?,
    };
    let message = Message::new(topic, C::encode(record)?).with_key(record.message_key());
    with_headers(message, C::CONTENT_TYPE, T::TYPE, T::VERSION)
}

/// The message of a record without its type, in JSON; see [`encode_message`].
///
/// # Errors
/// `InvalidInput` for a default topic that is no topic name.
///
/// # Panics
/// If there is no record at this index.
pub fn encode_record(records: &dyn Records, at: usize, topic: Option<&TopicName>) -> Result<Message> {
    let dataset = records.dataset();
    let topic = match topic {
        Some(topic) => topic.clone(),
        None => TopicName::new(dataset.topic())?,
    };
    let mut json = Vec::new();
    records.write_json(at, &mut json);
    let message = Message::new(topic, json).with_key(records.series(at).owner.to_owned().to_string());
    with_headers(message, Json::CONTENT_TYPE, dataset.message(), dataset.version())
}

fn with_headers(
    message: Message,
    content_type: &'static str,
    kind: &'static str,
    version: u16,
) -> Result<Message> {
    let [content_type_header, kind_header, version_header] = HEADERS.clone()?;
    Ok(message
        .with_header(content_type_header, content_type)
        .with_header(kind_header, kind)
        .with_header(version_header, version.to_string()))
}

/// The names of the headers, checked once: a clone of each costs a reference count.
static HEADERS: LazyLock<Result<[HeaderName; 3]>> = LazyLock::new(|| {
    let [content_type, kind, version] =
        [header::CONTENT_TYPE, header::TYPE, header::VERSION].map(HeaderName::new);
    Ok([content_type?, kind?, version?])
});

/// The record of a message. A message without the headers, as other producers write it, is read as what is asked
/// for; one whose headers say something else is refused.
///
/// # Errors
/// `CorruptData`, with the place of the message in its context: another codec, type or version, unreadable headers,
/// a tombstone, or bytes that are no valid record.
pub fn decode_message<C: Codec, T: Payload>(message: &Received) -> Result<T> {
    checked(message, C::CONTENT_TYPE, T::TYPE, T::VERSION)
        .and_then(C::decode)
        .map_err(|error| at(error, message))
}

/// Appends the record of a JSON message to records of the same dataset; see [`decode_message`].
///
/// # Errors
/// As [`decode_message`].
pub fn decode_record(message: &Received, records: &mut RecordVec) -> Result<()> {
    let dataset = records.as_records().dataset();
    checked(message, Json::CONTENT_TYPE, dataset.message(), dataset.version())
        .and_then(|payload| records.push_json(payload))
        .map_err(|error| at(error, message))
}

/// The payload of a message whose headers are those of the wanted record, or absent.
fn checked<'m>(message: &'m Received, content_type: &str, kind: &str, version: u16) -> Result<&'m [u8]> {
    let check =
        |name: &'static str, wanted: &str, equal: fn(&[u8], &str) -> bool| match message.headers.get(name) {
            Some(found) if !equal(found, wanted) => Err(corrupt("bus.codec.header")
                .with_message(format_args!("header {name} must be {wanted}"))
                .with_context("field", name)
                .with_context("value", String::from_utf8_lossy(found))),
            _ => Ok(()),
        };
    if let Some((first, reason)) = message.unreadable() {
        return Err(corrupt("bus.codec.unreadable")
            .with_message("the bus could not read the offsets from `first` to `offset`")
            .with_context("first", first)
            .with_context("reason", reason));
    }
    if message.headers_unreadable {
        return Err(corrupt("bus.codec.headers").with_message("a header name is not UTF-8 text"));
    }
    check(header::CONTENT_TYPE, content_type, is_media_type)?;
    check(header::TYPE, kind, |found, wanted| found == wanted.as_bytes())?;
    check(header::VERSION, &version.to_string(), |found, wanted| found == wanted.as_bytes())?;
    let payload = message.payload.as_ref();
    payload
        .map(|payload| &**payload)
        .ok_or_else(|| corrupt("bus.codec.tombstone").with_message("a tombstone holds no record"))
}

fn at(error: Error, message: &Received) -> Error {
    error
        .with_context("topic", &message.topic)
        .with_context("partition", message.partition)
        .with_context("offset", message.offset)
}

/// Compares a content type with a media type, in any letter case. Parameters are ignored, except a charset, which
/// must be UTF-8.
fn is_media_type(found: &[u8], wanted: &str) -> bool {
    // The common case.
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
        BarValues, Interval, MarketSnapshot, Ohlcv, PriceTick, Quote, QuoteValues, Scope, SnapshotValues,
        Timestamp,
    };

    fn received(message: &Message) -> Received {
        let mut received = Received::new(message.topic.clone(), 3, 17);
        received.key.clone_from(&message.key);
        received.payload.clone_from(&message.payload);
        received.headers.clone_from(&message.headers);
        received
    }

    fn tick() -> PriceTick {
        PriceTick::new("a:B".parse().unwrap(), Timestamp::MIN, 1, "1.5".parse().unwrap()).unwrap()
    }

    fn there_and_back<T: Payload + PartialEq + std::fmt::Debug>(record: &T, topic: &str) {
        let message = encode_message::<Json, T>(record, None).unwrap();
        assert_eq!((message.topic.as_str(), message.timestamp), (topic, None));
        assert_eq!(&decode_message::<Json, T>(&received(&message)).unwrap(), record);
    }

    #[test]
    fn every_record_travels_there_and_back() {
        let (instrument, price) = ("a:B".parse::<crate::Instrument>().unwrap(), "2".parse().unwrap());
        there_and_back(&tick(), "crypto-prices");
        let values = QuoteValues { ask_price: Some(price), ..Default::default() };
        there_and_back(&Quote::new(instrument.clone(), Timestamp::MIN, 0, values).unwrap(), "crypto-quotes");
        let bar = Ohlcv::new(instrument, Interval::W1, Timestamp::MIN, BarValues::flat(price)).unwrap();
        there_and_back(&bar, "crypto-ohlcv");
        let values = SnapshotValues { markets: Some(1), ..Default::default() };
        there_and_back(
            &MarketSnapshot::new(Scope::Global, Timestamp::MIN, values).unwrap(),
            "market-analytics",
        );
    }

    #[test]
    fn what_is_something_else_is_refused_with_its_place() {
        let message = received(&encode_message::<Json, _>(&tick(), None).unwrap());
        let with = |name: &str, value: &'static str| {
            let mut other = message.clone();
            other.headers.push(HeaderName::new(name).unwrap(), Bytes::from(value));
            decode_message::<Json, PriceTick>(&other).unwrap_err()
        };
        for (name, value) in [(header::TYPE, "quote"), (header::VERSION, "2"), (header::CONTENT_TYPE, "x")] {
            let error = with(name, value);
            assert_eq!((error.kind(), error.context_value("value")), (ErrorKind::CorruptData, Some(value)));
            assert_eq!(error.context_value("offset"), Some("17"));
        }
        let mut tombstone = message.clone();
        tombstone.payload = None;
        assert_eq!(decode_message::<Json, PriceTick>(&tombstone).unwrap_err().code(), "bus.codec.tombstone");
        let mut broken = message.clone();
        broken.payload = Some(Bytes::from_static(b"{\"instrument\":"));
        let error = decode_message::<Json, PriceTick>(&broken).unwrap_err();
        assert_eq!((error.code(), error.context_value("column")), ("bus.codec.json", Some("14")));
    }

    fn json_of(value: &str) -> Option<bool> {
        let mut message = received(&encode_message::<Json, _>(&tick(), None).unwrap());
        message.headers.remove(header::CONTENT_TYPE);
        let name = HeaderName::new(header::CONTENT_TYPE).unwrap();
        message.headers.push(name, Bytes::copy_from_slice(value.as_bytes()));
        match decode_message::<Json, PriceTick>(&message) {
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
    fn another_media_type_or_charset_is_refused() {
        for value in [
            "",
            ";charset=utf-8",
            "application/jsonp",
            "application/json2;charset=utf-8",
            "application/x-protobuf",
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
    fn a_message_with_unreadable_headers_is_corrupt() {
        let mut message = received(&encode_message::<Json, _>(&tick(), None).unwrap());
        message.headers_unreadable = true;
        let error = decode_message::<Json, PriceTick>(&message).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::CorruptData, "bus.codec.headers"));
    }

    #[test]
    fn a_message_that_stands_for_unreadable_offsets_is_corrupt() {
        let mut message = received(&encode_message::<Json, _>(&tick(), None).unwrap());
        for (name, text) in [(header::UNREADABLE_FROM, "5"), (header::UNREADABLE_CODE, "bus.x")] {
            message.headers.push(HeaderName::new(name).unwrap(), Some(text.into()));
        }
        // A producer can set the headers.
        assert!(decode_message::<Json, PriceTick>(&message).is_ok());
        (message.headers_unreadable, message.payload) = (true, None);
        let error = decode_message::<Json, PriceTick>(&message).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::CorruptData, "bus.codec.unreadable"));
        assert_eq!((error.context_value("first"), error.context_value("reason")), (Some("5"), Some("bus.x")));
    }

    #[test]
    fn an_error_holds_no_more_than_the_begin_of_a_long_value() {
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
            let mut message = received(&encode_message::<Json, _>(&tick(), None).unwrap());
            message.payload = Some(payload.into());
            let result = decode_message::<Json, PriceTick>(&message);
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
        let mut plain = received(&encode_message::<Json, _>(&tick(), None).unwrap());
        plain.headers = super::super::Headers::new();
        assert_eq!(decode_message::<Json, PriceTick>(&plain).unwrap(), tick());
    }
}
