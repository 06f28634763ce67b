//! The counters of a running job.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qi_core::bus::{Delivery, TopicName, TopicPartition};
use qi_core::{Error, IngestProgress, Instrument};

/// The number of bad lines that are kept for display. All are counted.
const MAX_BAD_LINES: usize = 10;

/// Counters that feed and writer share with observers of the job.
#[derive(Debug, Default)]
pub struct JobCounters {
    published: AtomicU64,
    resent: AtomicU64,
    /// The counters of the writer.
    pub(super) ingest: Arc<IngestProgress>,
    bad: AtomicU64,
    first_bad_lines: Mutex<Vec<Error>>,
    instruments: Mutex<BTreeMap<Instrument, u64>>,
    /// The offset after the last acknowledged message of each partition.
    ends: Mutex<BTreeMap<TopicPartition, u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl JobCounters {
    /// Returns the number of records that the bus has acknowledged. A record that was sent several times counts once.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Returns the number of messages that were sent again because their outcome was unknown.
    pub fn resent(&self) -> u64 {
        self.resent.load(Ordering::Relaxed)
    }

    /// Returns the number of records that the writer has stored. A record that was received twice counts twice.
    pub fn stored(&self) -> u64 {
        self.ingest.stored()
    }

    /// Returns the number of messages that became dead letters.
    pub fn dead_letters(&self) -> u64 {
        self.ingest.dead_letters()
    }

    /// Returns the number of input lines without a valid record.
    pub fn bad_lines(&self) -> u64 {
        self.bad.load(Ordering::Relaxed)
    }

    /// Returns the first bad lines.
    pub fn first_bad_lines(&self) -> Vec<Error> {
        lock(&self.first_bad_lines).clone()
    }

    /// Returns the number of published records of each instrument.
    pub fn instruments(&self) -> BTreeMap<Instrument, u64> {
        lock(&self.instruments).clone()
    }

    pub(super) fn count_published<'a>(&self, instruments: impl ExactSizeIterator<Item = &'a Instrument>) {
        self.published.fetch_add(instruments.len() as u64, Ordering::Relaxed);
        let mut counts = lock(&self.instruments);
        for instrument in instruments {
            // An instrument that is already counted, the common case, needs no clone.
            if let Some(count) = counts.get_mut(instrument) {
                *count += 1;
            } else {
                counts.insert(instrument.clone(), 1);
            }
        }
    }

    /// Notes the offsets of acknowledged messages.
    pub(super) fn record_deliveries<'a>(
        &self,
        topic: &TopicName,
        deliveries: impl Iterator<Item = &'a Delivery>,
    ) {
        let mut ends = lock(&self.ends);
        for delivery in deliveries {
            let end = ends.entry(TopicPartition::new(topic.clone(), delivery.partition)).or_default();
            *end = (*end).max(delivery.offset + 1);
        }
    }

    /// Returns the offset after the last acknowledged message of a partition, or 0.
    pub(super) fn end(&self, partition: &TopicPartition) -> u64 {
        lock(&self.ends).get(partition).copied().unwrap_or_default()
    }

    pub(super) fn count_resent(&self, messages: u64) {
        self.resent.fetch_add(messages, Ordering::Relaxed);
    }

    pub(super) fn bad_line(&self, error: Error) {
        self.bad.fetch_add(1, Ordering::Relaxed);
        let mut first_bad_lines = lock(&self.first_bad_lines);
        if first_bad_lines.len() < MAX_BAD_LINES {
            first_bad_lines.push(error);
        }
    }
}
