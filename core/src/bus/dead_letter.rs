//! Dead letters: copies of messages that contain no valid record, with their origin and the reason.

use std::fmt::Write as _;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{HeaderName, Headers, Message, ReceivedMessage, TopicName, header};
use crate::{Error, Result};

/// The size limit of the error's text in a dead letter, in bytes.
const MAX_ERROR_BYTES: usize = 1_024;
/// The message limit, in bytes, below which a dead letter has no text of the error.
pub(super) const MIN_TEXT_BYTES: usize = 2_048;
/// The limit of the number of message headers in a dead letter. librdkafka cannot read the headers of a message with
/// more than 100,000 headers.
const MAX_HEADERS: usize = 99_000;
/// The longest topic name to which `.dlq` can be appended.
const MAX_ORIGIN_CHARS: usize = 245;

/// A message that could not be decoded, with the reason.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RejectedMessage {
    /// The message as it was received.
    pub message: ReceivedMessage,
    /// The reason for the rejection.
    pub error: Error,
}

impl RejectedMessage {
    /// Pairs a message with the reason of its rejection, for programs that reject messages by their own rules.
    pub fn new(message: ReceivedMessage, error: Error) -> Self {
        Self { message, error }
    }
}

/// The records of a batch, and the messages that contain no valid record.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Decoded<T> {
    /// The records, in the order of their messages.
    pub records: Vec<T>,
    /// The messages without a record, in order.
    pub rejected: Vec<RejectedMessage>,
}

/// The topic of dead letters. Defaults to `<topic>.dlq` of the message's original topic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeadLetters(Option<TopicName>);

impl DeadLetters {
    /// Creates a target that sends all dead letters to one topic.
    pub fn to(topic: TopicName) -> Self {
        Self(Some(topic))
    }

    /// Returns the topic of all dead letters, or None if each topic has its own dead letter topic.
    pub fn target(&self) -> Option<&TopicName> {
        self.0.as_ref()
    }

    /// Returns the dead letter topic for messages of `origin`.
    ///
    /// If the name of the origin has more than 245 characters, a digest of the name replaces the end of the name. The
    /// result thus has at most 249 characters.
    ///
    /// # Errors
    /// `InvalidInput` if the derived name is not a valid topic name. A valid origin never causes this error.
    pub fn topic_for(&self, origin: &TopicName) -> Result<TopicName> {
        if let Some(topic) = &self.0 {
            return Ok(topic.clone());
        }
        let name = origin.as_str();
        if name.len() <= MAX_ORIGIN_CHARS {
            return TopicName::new(format!("{name}.dlq"));
        }
        let digest = &digest(name.as_bytes())[..16];
        TopicName::new(format!("{}-{digest}.dlq", &name[..MAX_ORIGIN_CHARS - 17]))
    }

    /// Returns the dead letter of a message. It has the message's key, payload and headers, and further headers with
    /// the origin and the error.
    ///
    /// If the dead letter is larger than `max_bytes`, it is truncated: first the payload, then the headers, then the
    /// key. Message headers above 99,000 are dropped, too. The headers [`header::TRUNCATED`] and [`header::DIGEST`]
    /// then describe the original. The headers of the dead letter itself are never truncated. With a `max_bytes` of 0
    /// the dead letter has only these headers.
    ///
    /// # Errors
    /// `InvalidInput` for an invalid topic or header name. A message that a bus returned never causes this error.
    pub fn dead_letter(&self, rejected: &RejectedMessage, max_bytes: usize) -> Result<Message> {
        let RejectedMessage { message, error } = rejected;
        let mut letter = Message::tombstone(self.topic_for(&message.topic)?);
        letter.key.clone_from(&message.key);
        letter.payload.clone_from(&message.payload);
        let kept =
            message.headers.iter().filter(|(name, _)| !header::OF_DEAD_LETTERS.contains(&name.as_str()));
        letter.headers = kept.map(|(name, value)| (name.clone(), value.cloned())).collect();
        let mut own = origin_and_error(message, error, max_bytes >= MIN_TEXT_BYTES)?;
        let headers = letter.headers.len();
        if headers > MAX_HEADERS || encoded(letter.size() + own.size(), headers + own.len()) > max_bytes {
            truncate(&mut letter, message, &mut own, max_bytes)?;
        }
        letter.headers.extend(&own);
        Ok(letter)
    }
}

/// Returns the error's report, cut to [`MAX_ERROR_BYTES`].
pub(super) fn error_text(error: &Error) -> String {
    let mut text = error.report();
    if text.len() > MAX_ERROR_BYTES {
        text.truncate(text.floor_char_boundary(MAX_ERROR_BYTES - '…'.len_utf8()));
        text.push('…');
    }
    text
}

fn origin_and_error(message: &ReceivedMessage, error: &Error, with_text: bool) -> Result<Headers> {
    let mut own = Headers::new();
    add(&mut own, header::ORIGIN_TOPIC, message.topic.to_string())?;
    add(&mut own, header::ORIGIN_PARTITION, message.partition.to_string())?;
    add(&mut own, header::ORIGIN_OFFSET, message.offset.to_string())?;
    if let Some(timestamp) = message.timestamp {
        add(&mut own, header::ORIGIN_TIMESTAMP, timestamp.as_micros().to_string())?;
    }
    if message.unreadable().is_some() {
        // An unreadable message cannot be redriven, so the dead letter counts as truncated.
        add(&mut own, header::TRUNCATED, "0".to_owned())?;
    }
    add(&mut own, header::ERROR_CODE, error.code().to_owned())?;
    if with_text {
        add(&mut own, header::ERROR, error_text(error))?;
    }
    // Another producer may have set the header, so only a valid count is kept.
    let redrives = message.headers.get(header::REDRIVES).and_then(|value| std::str::from_utf8(value).ok());
    if let Some(redrives) = redrives.and_then(|text| text.parse::<u64>().ok()) {
        add(&mut own, header::REDRIVES, redrives.to_string())?;
    }
    Ok(own)
}

/// Truncates a dead letter so that, together with `own`, it has at most `max_bytes` bytes where possible.
fn truncate(
    letter: &mut Message,
    original: &ReceivedMessage,
    own: &mut Headers,
    max_bytes: usize,
) -> Result<()> {
    add(own, header::TRUNCATED, original.size().to_string())?;
    if let Some(payload) = &original.payload {
        add(own, header::DIGEST, format!("sha256:{}", digest(payload)))?;
    }
    // Reserves space for the header with the number of dropped headers.
    let mut space = max_bytes.saturating_sub(encoded(own.size() + 40, own.len() + 1));
    truncate_to(&mut letter.key, &mut space);
    let before = letter.headers.len();
    let kept = std::mem::take(&mut letter.headers);
    for (name, value) in kept.iter() {
        let size = name.as_str().len() + value.map_or(0, Bytes::len) + HEADER_BYTES;
        if letter.headers.len() < MAX_HEADERS
            && let Some(left) = space.checked_sub(size)
        {
            space = left;
            letter.headers.push(name.clone(), value.cloned());
        }
    }
    if letter.headers.len() < before {
        add(own, header::TRUNCATED_HEADERS, (before - letter.headers.len()).to_string())?;
    }
    truncate_to(&mut letter.payload, &mut space);
    Ok(())
}

fn truncate_to(bytes: &mut Option<Bytes>, space: &mut usize) {
    if let Some(bytes) = bytes {
        bytes.truncate(*space);
        *space -= bytes.len();
    }
}

/// An upper bound of the bytes that the Kafka protocol adds for one header.
const HEADER_BYTES: usize = 10;

/// Returns an upper bound of a message's size in the Kafka protocol.
fn encoded(size: usize, headers: usize) -> usize {
    100 + size + headers * HEADER_BYTES
}

fn add(headers: &mut Headers, name: &str, value: String) -> Result<()> {
    headers.push(HeaderName::new(name)?, Bytes::from(value));
    Ok(())
}

/// Returns the SHA-256 digest in lower-case hexadecimal digits.
pub(super) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, Timestamp};

    fn received(payload: usize, headers: usize) -> ReceivedMessage {
        let mut message = ReceivedMessage::new(TopicName::new("origin").unwrap(), 3, 17);
        message.timestamp = Some(Timestamp::from_secs(1_700_000_000).unwrap());
        message.key = Some(Bytes::from_static(b"a key"));
        message.payload = Some(vec![b'x'; payload].into());
        for n in 0..headers {
            message.headers.push(HeaderName::new(format!("h{n}")).unwrap(), Bytes::from_static(b"v"));
        }
        message
    }

    fn rejected(message: ReceivedMessage) -> RejectedMessage {
        let error = Error::new(ErrorKind::CorruptData, "bus.codec.json", "decode").with_message("no record");
        RejectedMessage::new(message, error)
    }

    fn text(letter: &Message, name: &str) -> Option<String> {
        letter.headers.get(name).map(|value| String::from_utf8(value.to_vec()).unwrap())
    }

    #[test]
    fn a_dead_letter_has_message_origin_and_error() {
        let message = received(10, 2);
        let letter = DeadLetters::default().dead_letter(&rejected(message.clone()), 1 << 20).unwrap();
        assert_eq!(letter.topic.as_str(), "origin.dlq");
        assert_eq!((&letter.key, &letter.payload), (&message.key, &message.payload));
        let names: Vec<_> = letter.headers.iter().map(|(name, _)| name.as_str().to_owned()).collect();
        let own = [
            "qi-origin-topic",
            "qi-origin-partition",
            "qi-origin-offset",
            "qi-origin-timestamp",
            "qi-error-code",
            "qi-error",
        ];
        assert_eq!(names, [&["h0", "h1"][..], &own].concat());
        let values = own[..5].iter().map(|name| text(&letter, name).unwrap());
        assert_eq!(values.collect::<Vec<_>>(), ["origin", "3", "17", "1700000000000000", "bus.codec.json"]);
        assert_eq!(text(&letter, "qi-error").unwrap(), "decode: corrupt data [bus.codec.json]: no record");
        // A broker's timestamp of -1 means that there is no timestamp.
        let without = ReceivedMessage { timestamp: None, ..message };
        let letter = DeadLetters::default().dead_letter(&rejected(without), 1 << 20).unwrap();
        assert_eq!(text(&letter, header::ORIGIN_TIMESTAMP), None);
    }

    #[test]
    fn a_dead_letter_of_a_redriven_message_keeps_the_redrive_count() {
        let mut message = received(10, 0);
        for name in header::OF_DEAD_LETTERS {
            message.headers.push(HeaderName::new(name).unwrap(), Bytes::from_static(b"7"));
        }
        let letter = DeadLetters::default().dead_letter(&rejected(message.clone()), 1 << 20).unwrap();
        assert_eq!(text(&letter, header::REDRIVES).as_deref(), Some("7"));
        assert_eq!(text(&letter, header::ORIGIN_OFFSET).as_deref(), Some("17"));
        assert!(
            letter.headers.get(header::TRUNCATED).is_none() && letter.headers.get(header::DIGEST).is_none()
        );
        assert_eq!(letter.headers.len(), 7, "each header once");
        // Another producer may write any value into the header.
        message.headers.remove(header::REDRIVES);
        message.headers.push(HeaderName::new(header::REDRIVES).unwrap(), Bytes::from(vec![b'9'; 1_000]));
        let letter = DeadLetters::default().dead_letter(&rejected(message), 1 << 20).unwrap();
        assert_eq!(text(&letter, header::REDRIVES), None);
    }

    #[test]
    fn a_dead_letter_is_truncated_payload_first_then_headers_then_key() {
        let message = received(50_000, 1_000);
        let whole = digest(message.payload.as_ref().unwrap());
        for limit in [0, 1, 300, 1_000, 2_047, 2_048, 3_000, 10_000, 20_000, 60_000] {
            let letter = DeadLetters::default().dead_letter(&rejected(message.clone()), limit).unwrap();
            let size = encoded(letter.size(), letter.headers.len());
            assert!(size <= limit.max(700), "{size} for {limit}");
            assert_eq!(text(&letter, header::TRUNCATED), Some(message.size().to_string()));
            assert_eq!(text(&letter, header::DIGEST), Some(format!("sha256:{whole}")));
            let payload = letter.payload.as_ref().unwrap();
            assert!(payload.len() < 50_000 && payload.iter().all(|byte| *byte == b'x'));
            let dropped: usize = text(&letter, header::TRUNCATED_HEADERS).map_or(0, |n| n.parse().unwrap());
            let kept = letter.headers.iter().filter(|(name, _)| name.as_str().starts_with('h')).count();
            assert_eq!(kept + dropped, 1_000, "{limit}");
            assert!(payload.len() < 20 || dropped == 0, "headers go after the payload: {limit}");
            assert!(kept == 0 || letter.key == message.key, "the key goes after the headers: {limit}");
            assert_eq!(text(&letter, header::ERROR).is_some(), limit >= MIN_TEXT_BYTES);
            assert_eq!(text(&letter, header::ORIGIN_OFFSET).as_deref(), Some("17"));
        }
    }

    #[test]
    fn headers_above_99_000_are_dropped_and_counted() {
        let letter = DeadLetters::default().dead_letter(&rejected(received(10, 100_000)), 64 << 20).unwrap();
        assert_eq!(text(&letter, header::TRUNCATED_HEADERS).as_deref(), Some("1000"));
        assert!(letter.headers.len() < 100_000 && letter.payload.as_ref().unwrap().len() == 10);
    }

    #[test]
    fn only_oversized_headers_are_dropped() {
        let mut message = received(100, 3);
        message.headers.push(HeaderName::new("giant").unwrap(), Bytes::from(vec![0; 3 << 20]));
        message.headers.push(HeaderName::new("last").unwrap(), Bytes::from_static(b"v"));
        let letter = DeadLetters::default().dead_letter(&rejected(message.clone()), 1 << 20).unwrap();
        assert_eq!(text(&letter, header::TRUNCATED_HEADERS).as_deref(), Some("1"));
        assert!(letter.headers.get("last").is_some() && letter.headers.get("h2").is_some());
        assert_eq!(letter.payload, message.payload);
        // A tombstone has no digest and remains a tombstone.
        message.payload = None;
        let letter = DeadLetters::default().dead_letter(&rejected(message), 1 << 20).unwrap();
        assert_eq!((letter.payload.is_none(), text(&letter, header::DIGEST)), (true, None));
    }

    #[test]
    fn the_error_header_has_at_most_1024_bytes() {
        let error = Error::new(ErrorKind::CorruptData, "c", "decode").with_message("€".repeat(1_000));
        let error = (0..10).fold(error, |error, n| error.with_context(n.to_string(), "€".repeat(1_000)));
        let text = error_text(&error);
        assert!((1_021..=1_024).contains(&text.len()) && text.ends_with('…'), "{}", text.len());
    }

    #[test]
    fn long_dead_letter_topic_names_are_shortened() {
        let topic = |name: &str| DeadLetters::default().topic_for(&TopicName::new(name).unwrap()).unwrap();
        assert_eq!(topic(&"a".repeat(245)).as_str(), format!("{}.dlq", "a".repeat(245)));
        let (one, other) = (topic(&"a".repeat(249)), topic(&"a".repeat(248)));
        assert!(
            one != other && one.as_str().strip_suffix(".dlq").is_some_and(|rest| rest.len() == 245),
            "{one}"
        );
        let name = TopicName::new("b".repeat(249)).unwrap();
        let mut catalogue = super::super::TopicCatalogue::standard().unwrap();
        catalogue.insert(super::super::TopicSpec::new(name.clone(), 1).unwrap());
        let specs = catalogue.specs().unwrap();
        assert!(specs.iter().any(|spec| spec.name == topic(name.as_str())));
    }
}
