//! From librdkafka's messages to our own, in two steps. The thread that polls copies what it is given into packs, whose
//! keys and payloads lie together in one piece of memory. Whoever receives makes messages of them: the thread, which is
//! what bounds the rate, is spared that, and what a batch takes is allocated where it is freed.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use qi_core::Timestamp;
use qi_core::bus::{HeaderName, Headers, Received, TopicName, TopicPartition};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Header, Headers as _, Message as _};

/// What is larger has a piece of memory of its own, so that one small message which is kept does not keep it.
const LARGE: usize = 16 << 10;
/// The panics of the driver that one message may cause. Each is written to the standard error. The headers behind the
/// last one are dropped.
const MOST_PANICS: usize = 8;
/// In place of a length: there is no key, or no payload.
const ABSENT: u32 = u32::MAX;
/// In place of a length: it has a piece of its own.
const APART: u32 = u32::MAX - 1;

/// Consecutive messages of one partition, being copied.
#[derive(Debug)]
pub(super) struct Copies {
    heads: Vec<Head>,
    bytes: Vec<u8>,
    apart: Apart,
}

/// Consecutive messages of one partition.
#[derive(Debug, Default)]
pub(super) struct Pack {
    heads: Vec<Head>,
    bytes: Bytes,
    apart: Apart,
}

/// A message without its bytes. The thread writes one for each message, so it is small.
#[derive(Debug, Clone)]
struct Head {
    offset: u64,
    timestamp: Option<Timestamp>,
    key: u32,
    payload: u32,
    headers: bool,
    headers_unreadable: bool,
}

/// What few messages have, in the order of the messages.
#[derive(Debug, Default)]
struct Apart {
    large: VecDeque<Bytes>,
    headers: VecDeque<Headers>,
}

impl Copies {
    /// Room for about so many messages with so many bytes.
    pub(super) fn with_capacity(messages: usize, bytes: usize) -> Self {
        Self {
            heads: Vec::with_capacity(messages),
            bytes: Vec::with_capacity(bytes),
            apart: Apart::default(),
        }
    }

    /// Copies a message, and returns the weight of its headers.
    pub(super) fn push(&mut self, message: &BorrowedMessage<'_>) -> usize {
        let found = message.headers();
        let (headers, headers_unreadable) = found.map(headers).unzip();
        let weight = headers.as_ref().map_or(0, Headers::weight);
        let head = Head {
            offset: message.offset().cast_unsigned(),
            timestamp: message.timestamp().to_millis().and_then(|ms| Timestamp::from_millis(ms).ok()),
            key: self.copy(message.key()),
            payload: self.copy(message.payload()),
            headers: headers.is_some(),
            headers_unreadable: headers_unreadable.unwrap_or_default(),
        };
        self.heads.push(head);
        self.apart.headers.extend(headers);
        weight
    }

    /// Copies a key or a payload, and gives its length or what stands for it.
    fn copy(&mut self, bytes: Option<&[u8]>) -> u32 {
        let Some(bytes) = bytes else { return ABSENT };
        match u32::try_from(bytes.len()) {
            Ok(length) if bytes.len() <= LARGE => {
                self.bytes.extend_from_slice(bytes);
                length
            }
            _ => {
                self.apart.large.push_back(Bytes::copy_from_slice(bytes));
                APART
            }
        }
    }

    pub(super) fn finish(mut self) -> Pack {
        // The room was that of the run before; what is not counted as buffered is given back.
        if self.bytes.capacity() / 2 > self.bytes.len() {
            self.bytes.shrink_to_fit();
        }
        if self.heads.capacity() / 2 > self.heads.len() {
            self.heads.shrink_to_fit();
        }
        Pack { heads: self.heads, bytes: Bytes::from(self.bytes), apart: self.apart }
    }
}

impl Pack {
    pub(super) fn len(&self) -> usize {
        self.heads.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// The length of the piece that its messages share.
    pub(super) fn shared(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn last_offset(&self) -> Option<u64> {
        self.heads.last().map(|head| head.offset)
    }

    /// How many of its messages lie before `offset`.
    pub(super) fn count_before(&self, offset: u64) -> usize {
        self.heads.partition_point(|head| head.offset < offset)
    }

    /// What it takes of the buffer: all bytes, the messages that it becomes, and the memory of each header.
    pub(super) fn weight(&self) -> usize {
        let large: usize = self.apart.large.iter().map(Bytes::len).sum();
        let headers: usize = self.apart.headers.iter().map(Headers::weight).sum();
        self.bytes.len() + large + headers + self.heads.len() * size_of::<Received>()
    }

    /// Takes the first `count` messages, or all if there are fewer.
    pub(super) fn take(&mut self, count: usize) -> Self {
        if count >= self.heads.len() {
            return std::mem::take(self);
        }
        let heads: Vec<Head> = self.heads.drain(..count).collect();
        let lengths = || heads.iter().flat_map(|head| [head.key, head.payload]);
        let shared = lengths().filter(|length| *length < APART).map(|length| length as usize).sum();
        let large = lengths().filter(|length| *length == APART).count();
        let headers = heads.iter().filter(|head| head.headers).count();
        let apart = Apart {
            large: self.apart.large.drain(..large).collect(),
            headers: self.apart.headers.drain(..headers).collect(),
        };
        Self { heads, bytes: self.bytes.split_to(shared), apart }
    }

    /// Adds its messages to `messages`.
    pub(super) fn unpack(self, partition: &TopicPartition, messages: &mut Vec<Received>) {
        // A name of the pack's own: the threads that make and drop messages would contend for a shared one.
        let topic = TopicName::new(partition.topic.as_str()).unwrap_or_else(|_| partition.topic.clone());
        let Self { heads, bytes, apart: Apart { mut large, mut headers } } = self;
        let mut at = 0;
        let mut part = |length| match length {
            ABSENT => None,
            APART => large.pop_front(),
            length => {
                let from = at;
                at += length as usize;
                Some(bytes.slice(from..at))
            }
        };
        messages.extend(heads.into_iter().map(|head| {
            let mut message = Received::new(topic.clone(), partition.partition, head.offset);
            (message.timestamp, message.headers_unreadable) = (head.timestamp, head.headers_unreadable);
            (message.key, message.payload) = (part(head.key), part(head.payload));
            if head.headers {
                message.headers = headers.pop_front().unwrap_or_default();
            }
            message
        }));
    }
}

#[cfg(test)]
impl Pack {
    /// Messages without keys, with payloads of these lengths from `offset` on, which is below 200; each has a header
    /// if `headers`.
    pub(super) fn of(offset: u8, payloads: &[usize], headers: bool) -> Self {
        let mut copies = Copies::with_capacity(0, 0);
        for (offset, length) in (offset..).zip(payloads) {
            let payload = copies.copy(Some(&vec![offset; *length]));
            let (offset_, key) = (u64::from(offset), ABSENT);
            let head =
                Head { offset: offset_, timestamp: None, key, payload, headers, headers_unreadable: false };
            copies.heads.push(head);
            if headers {
                let header = (HeaderName::new("n").expect("a name"), Some(vec![offset].into()));
                copies.apart.headers.push_back([header].into_iter().collect());
            }
        }
        copies.finish()
    }
}

/// The headers whose names are text, and whether there are others.
fn headers(headers: &BorrowedHeaders) -> (Headers, bool) {
    let readable = |header: Header<'_, &[u8]>| {
        Some((HeaderName::new(header.key).ok()?, header.value.map(Bytes::copy_from_slice)))
    };
    // The driver panics on a name that is not UTF-8 text.
    let all = || headers.iter().map(readable).collect::<Option<Headers>>();
    if let Ok(Some(all)) = catch_unwind(AssertUnwindSafe(all)) {
        return (all, false);
    }
    let (mut found, mut panics) = (Headers::new(), 0);
    for at in 0..headers.count() {
        match catch_unwind(AssertUnwindSafe(|| headers.try_get(at).and_then(readable))) {
            Ok(header) => found.extend(&header.into_iter().collect()),
            Err(_) if panics < MOST_PANICS => panics += 1,
            Err(_) => break,
        }
    }
    (found, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_in_parts_is_the_pack() {
        let partition = TopicPartition::new(TopicName::new("t").unwrap(), 3);
        let lengths = [5, 0, LARGE + 1, 7, LARGE, 2 * LARGE];
        let mut whole = Vec::new();
        let weight = Pack::of(10, &lengths, true).weight();
        Pack::of(10, &lengths, true).unpack(&partition, &mut whole);
        assert_eq!(whole.iter().map(|m| m.payload.as_ref().unwrap().len()).collect::<Vec<_>>(), lengths);
        assert!(
            whole.iter().all(|m| m.payload.as_ref().unwrap().iter().all(|byte| u64::from(*byte) == m.offset))
        );
        assert!(whole.iter().all(|m| u64::from(m.headers.get("n").unwrap()[0]) == m.offset));
        assert!(whole.iter().zip(10..).all(|(m, offset)| (m.partition, m.offset) == (3, offset)));
        for parts in 1..=lengths.len() + 1 {
            let (mut pack, mut together, mut weights) = (Pack::of(10, &lengths, true), Vec::new(), 0);
            while !pack.is_empty() {
                let part = pack.take(parts);
                weights += part.weight();
                part.unpack(&partition, &mut together);
            }
            assert!(together == whole, "{parts} at a time");
            assert_eq!(weights, weight, "{parts} at a time");
        }
    }
}
