//! Copies of librdkafka's messages.
//!
//! A message is copied in two steps. The consumer thread copies keys and payloads into record batches, with one
//! allocation per batch. The caller of `recv` converts the batches to messages. The consumer thread is the bottleneck,
//! so it does as little as possible. The second step allocates the memory of a message on the thread that usually frees
//! it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use qi_core::Timestamp;
use qi_core::bus::{HeaderName, Headers, ReceivedMessage, TopicName, TopicPartition, header};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Header, Headers as _, Message as _};

use super::unreadable::Range;

/// The size above which a key or payload has a separate allocation, in bytes. A small message then does not keep
/// the large allocation alive.
const LARGE: usize = 16 << 10;
/// The maximum number of skipped headers whose names are not UTF-8, for one message. rdkafka panics at such a name, and
/// each panic prints a message. At the next such name, the remaining headers are dropped.
const MAX_PANICS: usize = 8;
/// The length of an absent key or payload.
const ABSENT: u32 = u32::MAX;
/// The length that marks a key or payload with a separate allocation.
const SEPARATE: u32 = u32::MAX - 1;

/// Consecutive messages of one partition.
#[derive(Debug)]
pub(super) struct RecordBatch {
    pub(super) partition: TopicPartition,
    /// The generation of the partition under which the messages were fetched.
    pub(super) generation: u64,
    records: Vec<Record>,
    bytes: Bytes,
    large: VecDeque<Bytes>,
    headers: VecDeque<Headers>,
}

/// A message without its bytes. It is small, because the thread writes one record for each message.
#[derive(Debug, Clone)]
struct Record {
    offset: u64,
    timestamp: Option<Timestamp>,
    key: u32,
    payload: u32,
    headers: bool,
    headers_unreadable: bool,
}

/// A record batch under construction.
#[derive(Debug)]
pub(super) struct RecordBatchBuilder {
    batch: RecordBatch,
    bytes: Vec<u8>,
}

impl RecordBatchBuilder {
    /// Creates a builder with room for this number of messages and bytes.
    pub(super) fn new(partition: TopicPartition, generation: u64, messages: usize, bytes: usize) -> Self {
        let (records, large, headers) = (Vec::with_capacity(messages), VecDeque::new(), VecDeque::new());
        let batch = RecordBatch { partition, generation, records, bytes: Bytes::new(), large, headers };
        Self { batch, bytes: Vec::with_capacity(bytes) }
    }

    /// Copies a message, and returns the weight of its headers.
    pub(super) fn push(&mut self, message: &BorrowedMessage<'_>) -> usize {
        let found = message.headers();
        let previous = self.batch.headers.back();
        let (headers, headers_unreadable) = found.map(|found| headers(found, previous)).unzip();
        let weight = headers.as_ref().map_or(0, Headers::weight);
        let record = Record {
            offset: message.offset().cast_unsigned(),
            timestamp: message.timestamp().to_millis().and_then(|ms| Timestamp::from_millis(ms).ok()),
            key: self.copy(message.key()),
            payload: self.copy(message.payload()),
            headers: headers.is_some(),
            headers_unreadable: headers_unreadable.unwrap_or_default(),
        };
        self.batch.records.push(record);
        self.batch.headers.extend(headers);
        weight
    }

    /// Copies a key or a payload, and returns its length or the constant that replaces it.
    fn copy(&mut self, bytes: Option<&[u8]>) -> u32 {
        let Some(bytes) = bytes else { return ABSENT };
        match u32::try_from(bytes.len()) {
            Ok(length) if bytes.len() <= LARGE => {
                self.bytes.extend_from_slice(bytes);
                length
            }
            _ => {
                self.batch.large.push_back(Bytes::copy_from_slice(bytes));
                SEPARATE
            }
        }
    }

    pub(super) fn finish(mut self) -> RecordBatch {
        // The capacity was estimated from the previous batch. Unused memory does not count as buffered, so it is freed.
        if self.bytes.capacity() / 2 > self.bytes.len() {
            self.bytes.shrink_to_fit();
        }
        let records = &mut self.batch.records;
        if records.capacity() / 2 > records.len() {
            records.shrink_to_fit();
        }
        RecordBatch { bytes: Bytes::from(self.bytes), ..self.batch }
    }
}

impl RecordBatch {
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns the length of the allocation that its messages share.
    pub(super) fn shared_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn last_offset(&self) -> Option<u64> {
        self.records.last().map(|record| record.offset)
    }

    /// Returns the number of messages before `offset`.
    pub(super) fn count_before(&self, offset: u64) -> usize {
        self.records.partition_point(|record| record.offset < offset)
    }

    /// Returns the memory that this batch takes of the receive buffer, in bytes. Includes the messages that the second
    /// step will create.
    pub(super) fn weight(&self) -> usize {
        let large: usize = self.large.iter().map(Bytes::len).sum();
        let headers: usize = self.headers.iter().map(Headers::weight).sum();
        self.bytes.len() + large + headers + self.records.len() * size_of::<ReceivedMessage>()
    }

    /// Takes the first `count` messages, or all messages if there are fewer.
    pub(super) fn take(&mut self, count: usize) -> Self {
        let count = count.min(self.records.len());
        let records: Vec<Record> = if count == self.records.len() {
            std::mem::take(&mut self.records)
        } else {
            self.records.drain(..count).collect()
        };
        let lengths = || records.iter().flat_map(|record| [record.key, record.payload]);
        let shared = lengths().filter(|length| *length < SEPARATE).map(|length| length as usize).sum();
        let large = lengths().filter(|length| *length == SEPARATE).count();
        let headers = records.iter().filter(|record| record.headers).count();
        Self {
            partition: self.partition.clone(),
            generation: self.generation,
            bytes: self.bytes.split_to(shared),
            large: self.large.drain(..large).collect(),
            headers: self.headers.drain(..headers).collect(),
            records,
        }
    }

    /// Appends the messages of the batch to `messages`.
    pub(super) fn into_messages(self, messages: &mut Vec<ReceivedMessage>) {
        let Self { partition, records, bytes, mut large, mut headers, .. } = self;
        // Each batch has its own copy of the name. Otherwise the threads that create and drop messages would contend
        // for the shared reference count.
        let topic = TopicName::new(partition.topic.as_str()).unwrap_or_else(|_| partition.topic.clone());
        let mut at = 0;
        let mut part = |length| match length {
            ABSENT => None,
            SEPARATE => large.pop_front(),
            length => {
                let from = at;
                at += length as usize;
                Some(bytes.slice(from..at))
            }
        };
        messages.extend(records.into_iter().map(|record| {
            let mut message = ReceivedMessage::new(topic.clone(), partition.partition, record.offset);
            (message.timestamp, message.headers_unreadable) = (record.timestamp, record.headers_unreadable);
            (message.key, message.payload) = (part(record.key), part(record.payload));
            if record.headers {
                message.headers = headers.pop_front().unwrap_or_default();
            }
            message
        }));
    }
}

#[cfg(test)]
impl RecordBatch {
    /// Returns a batch of messages without keys. Their payloads have these lengths. Their offsets begin at `offset`,
    /// which is below 200. Each message has a header if `headers` is true.
    pub(super) fn of(
        partition: TopicPartition,
        generation: u64,
        offset: u8,
        payloads: &[usize],
        headers: bool,
    ) -> Self {
        let mut builder = RecordBatchBuilder::new(partition, generation, 0, 0);
        for (byte, length) in (offset..).zip(payloads) {
            let payload = builder.copy(Some(&vec![byte; *length]));
            let (offset, key) = (u64::from(byte), ABSENT);
            let record = Record { offset, timestamp: None, key, payload, headers, headers_unreadable: false };
            builder.batch.records.push(record);
            if headers {
                let header = (HeaderName::new("n").expect("a name"), Some(vec![byte].into()));
                builder.batch.headers.push_back([header].into_iter().collect());
            }
        }
        builder.finish()
    }
}

impl RecordBatch {
    /// Creates a batch with one message, which represents a range of offsets that cannot be read. The message has the
    /// last offset of the range, so the next position is after the range. A header contains the first offset.
    pub(super) fn unreadable(partition: TopicPartition, generation: u64, range: Range, code: &str) -> Self {
        let mut builder = RecordBatchBuilder::new(partition, generation, 1, 0);
        let texts =
            [(header::UNREADABLE_FROM, range.first.to_string()), (header::UNREADABLE_CODE, code.to_owned())];
        let headers = texts
            .into_iter()
            .filter_map(|(name, text)| Some((HeaderName::new(name).ok()?, Some(text.into()))));
        builder.batch.headers.push_back(headers.collect());
        builder.batch.records.push(Record {
            offset: range.next - 1,
            timestamp: None,
            key: ABSENT,
            payload: ABSENT,
            headers: true,
            headers_unreadable: true,
        });
        builder.finish()
    }
}

/// Returns the headers with readable names, and whether other headers exist. Headers that equal `previous` share its
/// memory, because the messages of a topic usually have the same headers.
fn headers(headers: &BorrowedHeaders, previous: Option<&Headers>) -> (Headers, bool) {
    let readable = |header: Header<'_, &[u8]>| {
        Some((HeaderName::new(header.key).ok()?, header.value.map(Bytes::copy_from_slice)))
    };
    let equal = |previous: &Headers| {
        let same = |(found, (name, value)): (Header<'_, &[u8]>, (&HeaderName, Option<&Bytes>))| {
            found.key == name.as_str() && found.value == value.map(Bytes::as_ref)
        };
        headers.count() == previous.len() && headers.iter().zip(previous.iter()).all(same)
    };
    // The driver panics on a name that is not UTF-8 text.
    let all = || match previous {
        Some(previous) if equal(previous) => Some(previous.clone()),
        _ => headers.iter().map(readable).collect::<Option<Headers>>(),
    };
    if let Ok(Some(all)) = catch_unwind(AssertUnwindSafe(all)) {
        return (all, false);
    }
    let (mut found, mut panics) = (Headers::new(), 0);
    for at in 0..headers.count() {
        match catch_unwind(AssertUnwindSafe(|| headers.try_get(at).and_then(readable))) {
            Ok(header) => found.extend(&header.into_iter().collect()),
            Err(_) if panics < MAX_PANICS => panics += 1,
            Err(_) => break,
        }
    }
    (found, true)
}

/// The size limit of a message. Each record becomes one message.
const _: () = assert!(size_of::<ReceivedMessage>() <= 192);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_batch_keeps_all_messages() {
        let lengths = [5, 0, LARGE + 1, 7, LARGE, 2 * LARGE];
        let batch = || {
            let partition = TopicPartition::new(TopicName::new("t").unwrap(), 3);
            RecordBatch::of(partition, 1, 10, &lengths, true)
        };
        let mut whole = Vec::new();
        let weight = batch().weight();
        batch().into_messages(&mut whole);
        assert_eq!(whole.iter().map(|m| m.payload.as_ref().unwrap().len()).collect::<Vec<_>>(), lengths);
        assert!(
            whole.iter().all(|m| m.payload.as_ref().unwrap().iter().all(|byte| u64::from(*byte) == m.offset))
        );
        assert!(whole.iter().all(|m| u64::from(m.headers.get("n").unwrap()[0]) == m.offset));
        assert!(whole.iter().zip(10..).all(|(m, offset)| (m.partition, m.offset) == (3, offset)));
        for parts in 1..=lengths.len() + 1 {
            let (mut batch, mut together, mut weights) = (batch(), Vec::new(), 0);
            while batch.len() > 0 {
                let part = batch.take(parts);
                weights += part.weight();
                part.into_messages(&mut together);
            }
            assert!(together == whole, "{parts} at a time");
            assert_eq!(weights, weight, "{parts} at a time");
        }
    }
}
