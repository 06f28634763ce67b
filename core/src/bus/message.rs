//! Messages to publish, and received messages.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::{HeaderName, TopicName, header};
use crate::Timestamp;

/// A name and a value. None is a null.
type Header = (HeaderName, Option<Bytes>);

/// The ordered headers of a message. A name may be repeated.
///
/// A value of None is a null, which differs from an empty value. This library writes no nulls, but other clients may.
///
/// A clone shares the list with the original, until one of them is changed.
#[derive(Clone, Default)]
pub struct Headers(Option<Arc<Vec<Header>>>);

impl Headers {
    /// Creates an empty list of headers. Allocates nothing.
    pub const fn new() -> Self {
        Self(None)
    }

    fn as_slice(&self) -> &[Header] {
        self.0.as_ref().map_or(&[], |list| list)
    }

    fn list(&mut self) -> &mut Vec<Header> {
        Arc::make_mut(self.0.get_or_insert_default())
    }

    /// Adds a header at the end.
    pub fn push(&mut self, name: HeaderName, value: impl Into<Option<Bytes>>) {
        self.list().push((name, value.into()));
    }

    /// Returns the value of the last header with this name, like Kafka's `lastHeader`. Returns None if there is no such
    /// header, or if its value is a null.
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.as_slice().iter().rev().find(|(n, _)| n.as_str() == name).and_then(|(_, value)| value.as_ref())
    }

    /// Removes every header with this name.
    pub fn remove(&mut self, name: &str) {
        if self.as_slice().iter().any(|(n, _)| n.as_str() == name) {
            self.list().retain(|(n, _)| n.as_str() != name);
        }
    }

    /// Removes every header with one of these names, and returns the removed headers. Allocates
    /// nothing if there are none.
    #[must_use = "`remove` throws a header away"]
    pub fn split_off(&mut self, names: &[HeaderName]) -> Self {
        if !self.as_slice().iter().any(|(name, _)| names.contains(name)) {
            return Self::new();
        }
        self.list().extract_if(.., |(name, _)| names.contains(name)).collect()
    }

    /// Adds all of `others` at the end.
    pub fn extend(&mut self, others: &Self) {
        if self.is_empty() {
            self.clone_from(others);
        } else if !others.is_empty() {
            self.list().extend_from_slice(others.as_slice());
        }
    }

    /// Returns all headers in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&HeaderName, Option<&Bytes>)> {
        self.as_slice().iter().map(|(name, value)| (name, value.as_ref()))
    }

    /// Returns the number of headers.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Returns true if there are no headers.
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// Returns the estimated memory in bytes: names, values, and 128 bytes for each header. Buffers use this number,
    /// because many short headers need much more memory than [`Headers::size`].
    pub fn weight(&self) -> usize {
        self.size() + self.overhead()
    }

    fn overhead(&self) -> usize {
        const EACH: usize = 128;
        self.len() * EACH
    }

    /// Returns the size of names and values in bytes.
    pub fn size(&self) -> usize {
        self.iter().map(|(name, value)| name.as_str().len() + value.map_or(0, Bytes::len)).sum()
    }
}

impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        let shared = self.0.as_ref().zip(other.0.as_ref()).is_some_and(|(a, b)| Arc::ptr_eq(a, b));
        shared || self.as_slice() == other.as_slice()
    }
}

impl Eq for Headers {}

impl FromIterator<(HeaderName, Option<Bytes>)> for Headers {
    fn from_iter<I: IntoIterator<Item = (HeaderName, Option<Bytes>)>>(headers: I) -> Self {
        let list: Vec<_> = headers.into_iter().collect();
        Self((!list.is_empty()).then(|| Arc::new(list)))
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
    /// The topic.
    pub topic: TopicName,
    /// The key. Messages of one key keep their order, because they go to one partition, chosen by murmur2 as in Kafka's
    /// Java client. An empty key is a key like any other. With None the bus chooses the partition.
    pub key: Option<Bytes>,
    /// The payload. None is a tombstone, which differs from an empty payload.
    pub payload: Option<Bytes>,
    /// The headers, in order.
    pub headers: Headers,
    /// The timestamp, kept to the millisecond. None is the time of publishing. Retention by age uses this timestamp, so
    /// the time of an old event belongs in the payload.
    pub timestamp: Option<Timestamp>,
    /// The partition. None selects the partition by the key.
    pub partition: Option<u32>,
}

impl Message {
    /// Creates a message without a key.
    pub fn new(topic: TopicName, payload: impl Into<Bytes>) -> Self {
        Self { payload: Some(payload.into()), ..Self::tombstone(topic) }
    }

    /// Creates a message without a payload, a tombstone. On a compacted topic it removes its key.
    pub fn tombstone(topic: TopicName) -> Self {
        Self { topic, key: None, payload: None, headers: Headers::new(), timestamp: None, partition: None }
    }

    /// Sets the key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: impl Into<Bytes>) -> Self {
        self.headers.push(name, value.into());
        self
    }

    /// Sets the timestamp.
    #[must_use]
    pub fn with_timestamp(mut self, timestamp: Timestamp) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// Sets the partition.
    #[must_use]
    pub fn with_partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Returns the size of key, payload and headers in bytes. The limits of topics count this number.
    pub fn size(&self) -> usize {
        size(self.key.as_ref(), self.payload.as_ref(), &self.headers)
    }

    /// Returns the estimated memory in bytes: the size, and 128 bytes for each header. Buffers count this number.
    pub fn weight(&self) -> usize {
        self.size() + self.headers.overhead()
    }
}

/// A received message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReceivedMessage {
    /// The topic.
    pub topic: TopicName,
    /// The partition's number.
    pub partition: u32,
    /// The offset in the partition. Offsets rise strictly, but may have gaps.
    pub offset: u64,
    /// The timestamp, to the millisecond. None if the stored time lies outside the domain.
    pub timestamp: Option<Timestamp>,
    /// The key.
    pub key: Option<Bytes>,
    /// The payload. None is a tombstone.
    pub payload: Option<Bytes>,
    /// The headers, in order.
    pub headers: Headers,
    /// True if the name of at least one header is not UTF-8 text. `headers` then holds the other headers.
    pub headers_unreadable: bool,
}

impl ReceivedMessage {
    /// Creates a message at an offset, for authors of bus adapters.
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

    /// Returns the first offset and the reason if the bus could not read the offsets from the first offset to the
    /// message's own. The message then represents these offsets.
    pub fn unreadable(&self) -> Option<(&str, &str)> {
        let text = |name| self.headers.get(name).and_then(|value| std::str::from_utf8(value).ok());
        let unreadable = self.headers_unreadable && self.payload.is_none();
        unreadable.then(|| text(header::UNREADABLE_FROM).zip(text(header::UNREADABLE_CODE))).flatten()
    }

    /// Returns the size of key, payload and headers in bytes.
    pub fn size(&self) -> usize {
        size(self.key.as_ref(), self.payload.as_ref(), &self.headers)
    }

    /// Returns the estimated memory in bytes: the size, and 128 bytes for each header. Buffers count this number.
    pub fn weight(&self) -> usize {
        self.size() + self.headers.overhead()
    }
}

fn size(key: Option<&Bytes>, payload: Option<&Bytes>, headers: &Headers) -> usize {
    key.map_or(0, Bytes::len) + payload.map_or(0, Bytes::len) + headers.size()
}
