//! The settings of an ingest.

use std::sync::Arc;
use std::time::Duration;

use crate::bus::{Codec, DeadLetters, TopicSpec};
use crate::{Backoff, Error, Result};

/// The settings of [`super::Ingest`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct IngestConfig {
    /// The maximum number of messages in a batch. While a batch is stored, as many further messages may be received. A
    /// value above the store's [`max_batch`](crate::store::StoreInfo::max_batch) counts as that limit. Defaults to
    /// 50,000.
    pub max_records: usize,
    /// The size of received messages, in bytes, at which a batch is full. Defaults to 32 MiB.
    pub max_bytes: usize,
    /// The minimum time between two commits. Defaults to 100 ms.
    pub commit_interval: Duration,
    /// The delays before a failed call is repeated. Defaults to 100 ms, doubling up to 10 s, with a jitter of 0.5.
    pub backoff: Backoff,
    /// The topic of the dead letters. Defaults to the topic of the message plus `.dlq`.
    pub dead_letters: DeadLetters,
    /// The topic to create again if it was deleted while the ingest runs. Defaults to None: the ingest then ends with
    /// `NotFound` at the next dead letter.
    pub dead_letter_topic: Option<TopicSpec>,
    /// The formats that are read. The first one reads messages without the header `content-type`. Defaults to an empty
    /// list, which stands for every [`crate::bus::Encoding`].
    pub codecs: Vec<Arc<dyn Codec>>,
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            max_records: 50_000,
            max_bytes: 32 << 20,
            commit_interval: Duration::from_millis(100),
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(10)).with_jitter(0.5),
            dead_letters: DeadLetters::default(),
            dead_letter_topic: None,
            codecs: Vec::new(),
        }
    }
}

impl IngestConfig {
    /// Sets the maximum number of messages in a batch.
    #[must_use]
    pub fn with_max_records(mut self, records: usize) -> Self {
        self.max_records = records;
        self
    }

    /// Sets the size at which a batch is full.
    #[must_use]
    pub fn with_max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets the minimum time between two commits.
    #[must_use]
    pub fn with_commit_interval(mut self, interval: Duration) -> Self {
        self.commit_interval = interval;
        self
    }

    /// Sets the delays before a failed call is repeated.
    #[must_use]
    pub fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets the topic of the dead letters.
    #[must_use]
    pub fn with_dead_letters(mut self, dead_letters: DeadLetters) -> Self {
        self.dead_letters = dead_letters;
        self
    }

    /// Sets the topic to create again if it was deleted while the ingest runs.
    #[must_use]
    pub fn with_dead_letter_topic(mut self, topic: TopicSpec) -> Self {
        self.dead_letter_topic = Some(topic);
        self
    }

    /// Sets the formats that are read.
    #[must_use]
    pub fn with_codecs(mut self, codecs: Vec<Arc<dyn Codec>>) -> Self {
        self.codecs = codecs;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        for (field, value) in [("max_records", self.max_records), ("max_bytes", self.max_bytes)] {
            if value == 0 {
                return Err(Error::invalid("ingest.config", field, value, "must be at least 1"));
            }
        }
        self.backoff.check()
    }
}
