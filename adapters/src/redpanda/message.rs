//! From librdkafka's messages to our own. The keys and payloads of a run lie together in one piece of memory.

use std::ops::Range;
use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use qi_core::Timestamp;
use qi_core::bus::{HeaderName, Headers, Received, TopicName};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Headers as _, Message as _};

/// What is larger has a piece of memory of its own, so that one small message which is kept does not keep it.
const LARGE: usize = 16 << 10;

/// Messages of one partition as they are copied: first all bytes, then the messages that share them.
#[derive(Debug)]
pub(super) struct Copies {
    topic: TopicName,
    messages: Vec<Received>,
    bytes: Vec<u8>,
    /// Where the key and the payload of each message lie.
    places: Vec<[Place; 2]>,
}

/// Where bytes lie.
#[derive(Debug, Clone)]
enum Place {
    /// In the shared piece, or nowhere.
    Shared(Option<Range<usize>>),
    Own(Bytes),
}

impl Copies {
    /// Room for about so many messages with so many bytes.
    pub(super) fn with_capacity(topic: TopicName, messages: usize, bytes: usize) -> Self {
        let (places, bytes) = (Vec::with_capacity(messages), Vec::with_capacity(bytes));
        Self { topic, messages: Vec::with_capacity(messages), bytes, places }
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Copies a message. False if a header's name is no text; then nothing is added.
    pub(super) fn push(&mut self, message: &BorrowedMessage<'_>) -> bool {
        let headers = match message.headers().map(headers) {
            None => Headers::new(),
            Some(Some(headers)) => headers,
            Some(None) => return false,
        };
        let offset = message.offset().cast_unsigned();
        self.messages.push(Received::new(self.topic.clone(), message.partition().cast_unsigned(), offset));
        if let Some(received) = self.messages.last_mut() {
            received.timestamp =
                message.timestamp().to_millis().and_then(|ms| Timestamp::from_millis(ms).ok());
            received.headers = headers;
        }
        let places = [self.copy(message.key()), self.copy(message.payload())];
        self.places.push(places);
        true
    }

    fn copy(&mut self, bytes: Option<&[u8]>) -> Place {
        match bytes {
            None => Place::Shared(None),
            Some(large) if large.len() > LARGE => Place::Own(Bytes::copy_from_slice(large)),
            Some(bytes) => {
                let start = self.bytes.len();
                self.bytes.extend_from_slice(bytes);
                Place::Shared(Some(start..self.bytes.len()))
            }
        }
    }

    /// The messages, each with its part of the shared piece.
    pub(super) fn finish(mut self) -> Vec<Received> {
        let shared = Bytes::from(self.bytes);
        let part = |place| match place {
            Place::Shared(range) => range.map(|range| shared.slice(range)),
            Place::Own(bytes) => Some(bytes),
        };
        for (message, [key, payload]) in self.messages.iter_mut().zip(self.places) {
            (message.key, message.payload) = (part(key), part(payload));
        }
        self.messages
    }
}

fn headers(headers: &BorrowedHeaders) -> Option<Headers> {
    // The driver panics on a name that is no text.
    std::panic::catch_unwind(AssertUnwindSafe(|| {
        let ours = headers.iter().map(|header| {
            Some((HeaderName::new(header.key).ok()?, header.value.map(Bytes::copy_from_slice)))
        });
        ours.collect::<Option<Headers>>()
    }))
    .ok()
    .flatten()
}
