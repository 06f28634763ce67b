//! Decoded messages that are stored together.

use std::sync::Arc;

use tracing::Span;

use crate::Timestamp;
use crate::bus::{self, Codec, Encoding, Offsets, RejectedMessage, decode_record_with};
use crate::record::{Dataset, RecordVec};

/// Decoded messages, and the offsets to commit after them.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) records: RecordVec,
    pub(super) rejected: Vec<RejectedMessage>,
    pub(super) offsets: Offsets,
    /// The number of messages.
    pub(super) messages: usize,
    /// The estimated memory of the messages, in bytes.
    pub(super) bytes: usize,
    /// The timestamp of the oldest message.
    pub(super) oldest: Option<Timestamp>,
    /// The span of the first messages. It links to the spans of the other messages.
    pub(super) span: Option<Span>,
}

impl Batch {
    pub(super) fn new(dataset: Dataset) -> Self {
        Self {
            records: dataset.new_vec(),
            rejected: Vec::new(),
            offsets: Offsets::new(),
            messages: 0,
            bytes: 0,
            oldest: None,
            span: None,
        }
    }

    /// Decodes messages and appends them. An empty list of codecs selects every built-in codec.
    pub(super) fn add(&mut self, received: &bus::Batch, codecs: &[Arc<dyn Codec>]) {
        let built_in: [&dyn Codec; 2] = [&Encoding::Json, &Encoding::Protobuf];
        let own: Vec<_> = codecs.iter().map(|codec| &**codec).collect();
        let codecs = if own.is_empty() { &built_in[..] } else { &own[..] };
        self.records.reserve(received.len());
        for message in received {
            if let Err(error) = decode_record_with(codecs, message, &mut self.records) {
                self.rejected.push(RejectedMessage::new(message.clone(), error));
            }
            self.bytes += message.weight();
            if let Some(timestamp) = message.timestamp {
                self.oldest = Some(self.oldest.map_or(timestamp, |oldest| oldest.min(timestamp)));
            }
        }
        self.messages += received.len();
        self.offsets.merge(received.offsets());
        if !received.is_empty() {
            let span = received.span();
            match &self.span {
                Some(first) => drop(first.follows_from(&span)),
                None => self.span = Some(span),
            }
        }
    }
}
