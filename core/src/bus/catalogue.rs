//! The topics of the platform. A configuration may override them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{CleanupPolicy, TopicName, TopicSpec};
use crate::record::Dataset;
use crate::{Bar, MarketSnapshot, PriceTick, Quote, Result};

const DAY: Duration = Duration::from_hours(24);
const MAX_MESSAGE: usize = 2 << 20;
/// Additional space for the origin and the error of a dead letter.
const DEAD_LETTER_ROOM: usize = 64 << 10;

/// The topics of the platform's records, each with its dead letter topic `<topic>.dlq`.
///
/// [`guide::bus`](crate::guide::bus#catalogue) lists the topics with their partitions, retention and message sizes.
/// Replication is the broker's default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicCatalogue(BTreeMap<TopicName, TopicSpec>);

impl TopicCatalogue {
    /// Creates the catalogue of the topics of ticks, quotes, bars and snapshots.
    ///
    /// # Errors
    /// `InvalidInput` for an invalid topic name. The standard datasets never cause this error.
    pub fn standard() -> Result<Self> {
        Self::of([PriceTick::DATASET, Quote::DATASET, Bar::DATASET, MarketSnapshot::DATASET])
    }

    /// Creates the catalogue of the topics of these datasets, for example of [`crate::Datasets::iter`].
    ///
    /// # Errors
    /// `InvalidInput` if a default topic is not a valid topic name.
    pub fn of(datasets: impl IntoIterator<Item = Dataset>) -> Result<Self> {
        let mut catalogue = Self(BTreeMap::new());
        for dataset in datasets {
            let (partitions, days) = match dataset.topic() {
                "crypto-prices" => (12, 7),
                "crypto-quotes" => (16, 1),
                "crypto-ohlcv" => (8, 30),
                "market-analytics" => (4, 90),
                _ => (8, 7),
            };
            let spec = TopicSpec::new(TopicName::new(dataset.topic())?, partitions)?
                .with_retention(DAY * days)
                .with_max_message_bytes(MAX_MESSAGE);
            catalogue.insert(spec);
        }
        Ok(catalogue)
    }

    /// Adds a topic, or replaces the topic of that name.
    pub fn insert(&mut self, spec: TopicSpec) {
        self.0.insert(spec.name.clone(), spec);
    }

    /// Returns the topic of that name.
    pub fn get(&self, name: &TopicName) -> Option<&TopicSpec> {
        self.0.get(name)
    }

    /// Returns the topic of that name for modification.
    pub fn get_mut(&mut self, name: &TopicName) -> Option<&mut TopicSpec> {
        self.0.get_mut(name)
    }

    /// Returns every topic, without the dead letter topics.
    pub fn topics(&self) -> impl Iterator<Item = &TopicSpec> {
        self.0.values()
    }

    /// Returns the topics to create: every topic and its dead letter topic.
    ///
    /// # Errors
    /// `InvalidInput` for an invalid name of a dead letter topic. The names of a catalogue never cause this error.
    pub fn specs(&self) -> Result<Vec<TopicSpec>> {
        let mut specs = Vec::with_capacity(2 * self.0.len());
        for spec in self.0.values() {
            let mut dead =
                TopicSpec { name: super::DeadLetters::default().topic_for(&spec.name)?, ..spec.clone() };
            dead.max_message_bytes =
                spec.max_message_bytes.map(|bytes| bytes.saturating_add(DEAD_LETTER_ROOM));
            // Compaction removes messages of the same key, and rejects messages without a key.
            dead.cleanup = CleanupPolicy::Delete;
            dead.settings.remove("cleanup.policy");
            specs.extend([spec.clone(), dead]);
        }
        Ok(specs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_has_a_dead_letter_topic() {
        let specs = TopicCatalogue::standard().unwrap().specs().unwrap();
        let names: Vec<_> = specs.iter().map(|s| (s.name.as_str(), s.partitions)).collect();
        assert_eq!(
            names,
            [
                ("crypto-ohlcv", 8),
                ("crypto-ohlcv.dlq", 8),
                ("crypto-prices", 12),
                ("crypto-prices.dlq", 12),
                ("crypto-quotes", 16),
                ("crypto-quotes.dlq", 16),
                ("market-analytics", 4),
                ("market-analytics.dlq", 4),
            ]
        );
        assert!(specs[1].max_message_bytes > specs[0].max_message_bytes);
    }

    #[test]
    fn a_dead_letter_topic_is_not_compacted() {
        let topic = TopicSpec::new(TopicName::new("t").unwrap(), 1).unwrap();
        let topic = topic.with_cleanup(CleanupPolicy::Compact).with_setting("cleanup.policy", "compact");
        let specs = TopicCatalogue([(topic.name.clone(), topic)].into()).specs().unwrap();
        assert_eq!((specs[0].cleanup, specs[1].cleanup), (CleanupPolicy::Compact, CleanupPolicy::Delete));
        assert!(specs[1].settings.is_empty());
    }
}
