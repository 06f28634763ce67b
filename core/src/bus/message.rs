//! A message as it is sent, and as it is received.

use std::fmt;

use bytes::Bytes;

use super::{HeaderName, TopicName, header};
use crate::Timestamp;

/// Headers: ordered pairs, of which a name may be repeated. A value of None is a null, which differs from an empty
/// one; this library writes none, other clients may.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Headers(Vec<(HeaderName, Option<Bytes>)>);

impl Headers {
    /// No headers. Allocates nothing.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a header at the end.
    pub fn push(&mut self, name: HeaderName, value: impl Into<Option<Bytes>>) {
        self.0.push((name, value.into()));
    }

    /// The value of the last header with this name, as Kafka's `lastHeader` gives it; a null has none.
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.0.iter().rev().find(|(n, _)| n.as_str() == name).and_then(|(_, value)| value.as_ref())
    }

    /// Removes every header with this name.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(n, _)| n.as_str() != name);
    }

    /// Removes every header with one of these names, and gives what was removed. Where there is none, nothing is
    /// allocated.
    #[must_use = "`remove` throws a header away"]
    pub fn split_off(&mut self, names: &[HeaderName]) -> Self {
        Self(self.0.extract_if(.., |(name, _)| names.contains(name)).collect())
    }

    /// Adds all of `others` at the end.
    pub fn extend(&mut self, others: &Self) {
        self.0.extend_from_slice(&others.0);
    }

    /// All headers in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&HeaderName, Option<&Bytes>)> {
        self.0.iter().map(|(name, value)| (name, value.as_ref()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Estimated memory in bytes: names and values, and 128 bytes for each header. Many short headers use much more
    /// memory than [`Headers::size`] says, so that buffers count this number.
    pub fn weight(&self) -> usize {
        self.size() + self.overhead()
    }

    fn overhead(&self) -> usize {
        const EACH: usize = 128;
        self.0.len() * EACH
    }

    /// Names and values in bytes.
    pub fn size(&self) -> usize {
        self.0.iter().map(|(name, value)| name.as_str().len() + value.as_ref().map_or(0, Bytes::len)).sum()
    }
}

impl FromIterator<(HeaderName, Option<Bytes>)> for Headers {
    fn from_iter<I: IntoIterator<Item = (HeaderName, Option<Bytes>)>>(headers: I) -> Self {
        Self(headers.into_iter().collect())
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// A message to publish.
///
/// ```
/// use qi_core::bus::{Message, TopicName};
/// let message = Message::new(TopicName::new("crypto-prices")?, "payload").with_key("binance:BTC-USDT");
/// assert_eq!(message.size(), 23);
/// # Ok::<(), qi_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Where to.
    pub topic: TopicName,
    /// Messages of one key keep their order: they go to one partition, by murmur2 as in Java. An empty key is a
    /// key like any other; None lets the bus choose.
    pub key: Option<Bytes>,
    /// None is a tombstone, which differs from an empty payload.
    pub payload: Option<Bytes>,
    /// Ordered pairs.
    pub headers: Headers,
    /// When; kept to the millisecond. None is the time of publishing. Retention by age looks at it, so that old
    /// event times belong into the payload.
    pub timestamp: Option<Timestamp>,
    /// Exactly this partition, in place of the key's.
    pub partition: Option<u32>,
}

impl Message {
    /// A message without a key.
    pub fn new(topic: TopicName, payload: impl Into<Bytes>) -> Self {
        Self { payload: Some(payload.into()), ..Self::tombstone(topic) }
    }

    /// A message without a payload: on a compacted topic it removes its key.
    pub fn tombstone(topic: TopicName) -> Self {
        Self { topic, key: None, payload: None, headers: Headers::new(), timestamp: None, partition: None }
    }

    /// With a key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With one more header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: impl Into<Bytes>) -> Self {
        self.headers.push(name, value.into());
        self
    }

    /// With a time of its own.
    #[must_use]
    pub fn with_timestamp(mut self, timestamp: Timestamp) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// To exactly this partition.
    #[must_use]
    pub fn with_partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Key, payload and headers in bytes: what the limits of topics count.
    pub fn size(&self) -> usize {
        size(self.key.as_ref(), self.payload.as_ref(), &self.headers)
    }

    /// Estimated memory in bytes: the size, and 128 bytes for each header. Buffers count this number.
    pub fn weight(&self) -> usize {
        self.size() + self.headers.overhead()
    }
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// Where from.
    pub topic: TopicName,
    /// Which partition of it.
    pub partition: u32,
    /// Where in the partition. Offsets rise strictly, but not densely.
    pub offset: u64,
    /// When, to the millisecond; None if the stored time lies outside the domain.
    pub timestamp: Option<Timestamp>,
    /// The key.
    pub key: Option<Bytes>,
    /// None is a tombstone.
    pub payload: Option<Bytes>,
    /// Ordered pairs.
    pub headers: Headers,
    /// True if the name of at least one header is not UTF-8 text. `headers` then holds the other headers.
    pub headers_unreadable: bool,
}

impl Received {
    /// A message at a place in a log, for those who implement a bus.
    pub fn new(topic: TopicName, partition: u32, offset: u64) -> Self {
        Self {
            topic,
            partition,
            offset,
            timestamp: None,
            key: None,
            payload: None,
            headers: Headers::new(),
            headers_unreadable: false,
        }
    }

    /// The first offset and the reason, if the message stands for offsets up to its own that the bus could not read.
    pub fn unreadable(&self) -> Option<(&str, &str)> {
        let text = |name| self.headers.get(name).and_then(|value| std::str::from_utf8(value).ok());
        let unreadable = self.headers_unreadable && self.payload.is_none();
        unreadable.then(|| text(header::UNREADABLE_FROM).zip(text(header::UNREADABLE_CODE))).flatten()
    }

    /// Key, payload and headers in bytes.
    pub fn size(&self) -> usize {
        size(self.key.as_ref(), self.payload.as_ref(), &self.headers)
    }

    /// Estimated memory in bytes: the size, and 128 bytes for each header. Buffers count this number.
    pub fn weight(&self) -> usize {
        self.size() + self.headers.overhead()
    }
}

fn size(key: Option<&Bytes>, payload: Option<&Bytes>, headers: &Headers) -> usize {
    key.map_or(0, Bytes::len) + payload.map_or(0, Bytes::len) + headers.size()
}
