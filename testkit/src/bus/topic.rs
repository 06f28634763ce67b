//! Topics in memory: one deque of compact records for each partition.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use qi_core::Timestamp;
use qi_core::bus::{CleanupPolicy, Headers, SettingDiff, TopicSpec};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::MemoryBusConfig;

/// The bytes of a record besides its key, payload and headers.
pub(super) const RECORD_COST: usize = size_of::<Record>();

/// A message in the log. The location of the record gives its topic and partition.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) offset: u64,
    pub(super) at: Timestamp,
    pub(super) key: Option<Bytes>,
    pub(super) payload: Option<Bytes>,
    pub(super) headers: Headers,
}

impl Record {
    fn cost(&self) -> usize {
        let (key, payload) = (self.key.as_ref(), self.payload.as_ref());
        RECORD_COST + key.map_or(0, Bytes::len) + payload.map_or(0, Bytes::len) + self.headers.weight()
    }
}

/// A partition: records in ascending order of their offsets.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) records: VecDeque<Record>,
    /// The low watermark: the first offset that can still be read.
    pub(super) start: u64,
    /// The high watermark: the offset of the next message.
    pub(super) end: u64,
    /// True if the times of the records never decrease. Permits a binary search by time.
    times_ascend: bool,
}

impl Partition {
    fn new() -> Self {
        Self { records: VecDeque::new(), start: 0, end: 0, times_ascend: true }
    }

    /// Appends a record and returns its offset.
    pub(super) fn append(
        &mut self,
        at: Timestamp,
        key: Option<Bytes>,
        payload: Option<Bytes>,
        headers: Headers,
    ) -> u64 {
        let offset = self.end;
        self.times_ascend = self.records.back().is_none_or(|last| self.times_ascend && last.at <= at);
        self.records.push_back(Record { offset, at, key, payload, headers });
        self.end += 1;
        offset
    }

    /// Returns whether `position` is within the low and the high watermark.
    pub(super) fn holds(&self, position: u64) -> bool {
        (self.start..=self.end).contains(&position)
    }

    /// Returns the index in `records` of the first record at `offset` or later.
    pub(super) fn index_of(&self, offset: u64) -> usize {
        let (Some(first), Some(last)) = (self.records.front(), self.records.back()) else { return 0 };
        let dense = last.offset - first.offset + 1 == self.records.len() as u64;
        if dense {
            usize::try_from(offset.saturating_sub(first.offset)).unwrap_or(usize::MAX).min(self.records.len())
        } else {
            self.records.partition_point(|record| record.offset < offset)
        }
    }

    /// Returns the offset of the first message at `time` or later, or the high watermark if there is none.
    pub(super) fn first_at(&self, time: Timestamp) -> u64 {
        // The log stores times in milliseconds, so a search time within a millisecond finds the
        // messages of that millisecond.
        let time = time.floor_to_millis();
        let found = if self.times_ascend {
            self.records.get(self.records.partition_point(|record| record.at < time))
        } else {
            self.records.iter().find(|record| record.at >= time)
        };
        found.map_or(self.end, |record| record.offset)
    }

    /// Removes the records below `offset` and returns the number of freed bytes.
    pub(super) fn drop_below(&mut self, offset: u64) -> usize {
        let offset = offset.min(self.end);
        let gone = self.index_of(offset);
        self.start = self.start.max(offset);
        self.records.drain(..gone).map(|record| record.cost()).sum()
    }

    /// Removes records from the front up to the first record that is not older than `limit`.
    fn drop_older(&mut self, limit: Timestamp) -> usize {
        let old = self.records.iter().take_while(|record| record.at < limit).count();
        if old == 0 {
            return 0;
        }
        let upto = self.records.get(old).map_or(self.end, |record| record.offset);
        self.drop_below(upto)
    }

    /// Removes messages below `offset` that a later message of the same key replaces.
    pub(super) fn compact_below(&mut self, offset: u64) -> usize {
        let newest: HashMap<Bytes, u64> =
            self.records.iter().filter_map(|record| Some((record.key.clone()?, record.offset))).collect();
        let mut freed = 0;
        self.records.retain(|record| {
            let replaced = record.offset < offset
                && record.key.as_ref().is_some_and(|key| newest.get(key).is_some_and(|n| *n > record.offset));
            if replaced {
                freed += record.cost();
            }
            !replaced
        });
        freed
    }

    fn cost(&self) -> usize {
        self.records.iter().map(Record::cost).sum()
    }
}

/// The current partition of messages without a key.
#[derive(Debug)]
struct Sticky {
    partition: u32,
    until: Option<Instant>,
}

/// A topic with its partitions.
#[derive(Debug)]
pub(super) struct Topic {
    /// A number that distinguishes a topic from a deleted topic with the same name.
    pub(super) id: u64,
    pub(super) partitions: Vec<Partition>,
    pub(super) max_message_bytes: usize,
    retention: Duration,
    cleanup: CleanupPolicy,
    settings: BTreeMap<String, String>,
    sticky: Sticky,
    sticky_for: Duration,
    /// The wake-up handles of waiting readers.
    watchers: Vec<Arc<Notify>>,
}

impl Topic {
    pub(super) fn new(id: u64, spec: &TopicSpec, config: &MemoryBusConfig) -> Self {
        Self {
            id,
            partitions: (0..spec.partitions).map(|_| Partition::new()).collect(),
            max_message_bytes: spec.max_message_bytes.unwrap_or(config.topic_max_message_bytes),
            retention: spec.retention.unwrap_or(config.retention),
            cleanup: spec.cleanup,
            settings: spec.settings.clone(),
            sticky: Sticky { partition: 0, until: None },
            sticky_for: config.sticky_linger,
            watchers: Vec::new(),
        }
    }

    pub(super) fn partition(&self, partition: u32) -> Option<&Partition> {
        self.partitions.get(partition as usize)
    }

    pub(super) fn count(&self) -> NonZeroU32 {
        u32::try_from(self.partitions.len())
            .ok()
            .and_then(NonZeroU32::new)
            .expect("a topic is made from a spec of 1 to 10,000 partitions")
    }

    /// Returns the partition of a message without a key. The partition changes after `sticky_for`, so batches stay
    /// together and every partition gets its share.
    pub(super) fn keyless(&mut self, now: Instant) -> u32 {
        let sticky = &mut self.sticky;
        match sticky.until {
            Some(until) if now < until => {}
            before => {
                if before.is_some() {
                    sticky.partition =
                        (sticky.partition + 1) % u32::try_from(self.partitions.len()).unwrap_or(1);
                }
                sticky.until = now.checked_add(self.sticky_for);
            }
        }
        sticky.partition
    }

    pub(super) fn compacted(&self) -> bool {
        self.cleanup == CleanupPolicy::Compact
    }

    /// Removes messages that are older than the retention at `now`, read or unread.
    pub(super) fn expire(&mut self, now: Timestamp) -> usize {
        if self.compacted() {
            return 0;
        }
        let Some(limit) = now.checked_sub(self.retention) else { return 0 };
        self.partitions.iter_mut().map(|partition| partition.drop_older(limit)).sum()
    }

    pub(super) fn cost(&self) -> usize {
        self.partitions.iter().map(Partition::cost).sum()
    }

    pub(super) fn watch(&mut self, watcher: &Arc<Notify>) {
        self.watchers.push(watcher.clone());
    }

    pub(super) fn unwatch(&mut self, watcher: &Arc<Notify>) {
        self.watchers.retain(|other| !Arc::ptr_eq(other, watcher));
    }

    pub(super) fn wake(&self) {
        for watcher in &self.watchers {
            watcher.notify_one();
        }
    }

    /// Returns the settings by their Kafka names.
    pub(super) fn settings(&self) -> BTreeMap<String, String> {
        let mut all = self.settings.clone();
        all.insert("cleanup.policy".to_owned(), self.cleanup.as_str().to_owned());
        all.insert("max.message.bytes".to_owned(), self.max_message_bytes.to_string());
        all.insert("retention.ms".to_owned(), self.retention.as_millis().to_string());
        all
    }

    /// Returns the settings of `spec` that this topic does not have. Ignores settings that `spec` leaves to the broker.
    pub(super) fn differs(&self, spec: &TopicSpec) -> Vec<SettingDiff> {
        let found = self.settings();
        let mut wanted = spec.settings.clone();
        if let Some(bytes) = spec.max_message_bytes {
            wanted.insert("max.message.bytes".to_owned(), bytes.to_string());
        }
        if let Some(retention) = spec.retention {
            wanted.insert("retention.ms".to_owned(), retention.as_millis().to_string());
        }
        let cleanup = spec.cleanup.as_str();
        wanted.insert("cleanup.policy".to_owned(), cleanup.to_owned());
        wanted
            .into_iter()
            .filter(|(name, value)| found.get(name) != Some(value))
            .map(|(name, wanted)| {
                let found = found.get(&name).cloned().unwrap_or_default();
                SettingDiff::new(name, wanted, found)
            })
            .collect()
    }
}
