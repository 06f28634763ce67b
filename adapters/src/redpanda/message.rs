//! From librdkafka's messages to our own, whose payloads lie together in shared pieces of memory.

use std::panic::AssertUnwindSafe;

use bytes::{Bytes, BytesMut};
use qi_core::Timestamp;
use qi_core::bus::{HeaderName, Headers, Received, TopicName};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Headers as _, Message as _};

/// So many bytes are allocated at once.
const PIECE: usize = 64 << 10;

/// Copies bytes into pieces that many messages share.
#[derive(Debug, Default)]
pub(super) struct Copier(BytesMut);

impl Copier {
    fn copy(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.is_empty() {
            return Bytes::new();
        }
        if bytes.len() > PIECE / 4 {
            return Bytes::copy_from_slice(bytes);
        }
        if self.0.capacity() < bytes.len() {
            self.0 = BytesMut::with_capacity(PIECE);
        }
        self.0.extend_from_slice(bytes);
        self.0.split().freeze()
    }

    /// A message of our own; None if a header's name is no text.
    pub(super) fn received(&mut self, message: &BorrowedMessage<'_>, topic: &TopicName) -> Option<Received> {
        let offset = message.offset().cast_unsigned();
        let mut received = Received::new(topic.clone(), message.partition().cast_unsigned(), offset);
        received.timestamp = message.timestamp().to_millis().and_then(|ms| Timestamp::from_millis(ms).ok());
        // Key and payload are one piece of memory, cut in two.
        received.key = message.key().map(|key| self.copy(key));
        received.payload = message.payload().map(|payload| self.copy(payload));
        if let Some(headers) = message.headers() {
            received.headers = self.headers(headers)?;
        }
        Some(received)
    }

    fn headers(&mut self, headers: &BorrowedHeaders) -> Option<Headers> {
        // The driver panics on a name that is no text.
        std::panic::catch_unwind(AssertUnwindSafe(|| {
            headers
                .iter()
                .map(|header| {
                    Some((HeaderName::new(header.key).ok()?, header.value.map(|value| self.copy(value))))
                })
                .collect::<Option<Headers>>()
        }))
        .ok()
        .flatten()
    }
}
