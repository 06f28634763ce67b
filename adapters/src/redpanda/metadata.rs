//! The metadata of topics for publishing. It is looked up before the first message, because librdkafka reports an
//! unknown topic only after half a minute.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use qi_core::bus::TopicName;
use qi_core::{Error, ErrorKind, Result};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::error::RDKafkaErrorCode as Code;

use super::connect::{KafkaContext, fetch_metadata};
use super::{client_config, error};

/// Kafka's default of `max.message.bytes`, for a topic whose settings cannot be read.
const DEFAULT_MAX_MESSAGE_BYTES: usize = 1_048_588;
/// The age from which metadata is looked up again before it rejects a message.
const METADATA_TTL: Duration = Duration::from_secs(1);

/// The limits of a topic.
#[derive(Debug, Clone, Copy)]
pub(super) struct TopicMetadata {
    pub(super) partitions: u32,
    pub(super) max_message_bytes: usize,
    /// The time of the lookup.
    pub(super) at: Instant,
}

impl TopicMetadata {
    pub(super) fn is_fresh(&self) -> bool {
        self.at.elapsed() < METADATA_TTL
    }
}

/// The metadata of the topics that the client publishes to.
#[derive(Debug, Default)]
pub(super) struct TopicMetadataCache(Mutex<HashMap<TopicName, TopicMetadata>>);

impl TopicMetadataCache {
    pub(super) fn get(&self, topic: &TopicName) -> Option<TopicMetadata> {
        self.lock().get(topic).copied()
    }

    /// Removes a topic after a broker contradicted its metadata.
    pub(super) fn remove(&self, topic: &str) {
        self.lock().retain(|get, _| get.as_str() != topic);
    }

    pub(super) fn insert(&self, topic: &TopicName, metadata: TopicMetadata) {
        self.lock().insert(topic.clone(), metadata);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TopicName, TopicMetadata>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests the metadata of a topic.
pub(super) async fn look_up(
    admin: &std::sync::Arc<AdminClient<KafkaContext>>,
    topic: &TopicName,
    limit: Duration,
    operation: &'static str,
) -> Result<TopicMetadata> {
    let partitions = partition_count(admin, topic, limit, operation).await?;
    let max_message_bytes = max_message_bytes(admin, topic, limit, operation).await?;
    Ok(TopicMetadata { partitions, max_message_bytes, at: Instant::now() })
}

/// Returns the number of partitions of a topic.
pub(super) async fn partition_count(
    admin: &std::sync::Arc<AdminClient<KafkaContext>>,
    topic: &TopicName,
    limit: Duration,
    operation: &'static str,
) -> Result<u32> {
    let (admin, name) = (admin.clone(), topic.clone());
    super::connect::blocking(operation, move || {
        let metadata = fetch_metadata(admin.inner(), Some(name.as_str()), limit);
        let metadata = metadata.map_err(|e| {
            with_topic(admin.inner().context().auth_error_or(error::from_request(e, operation)), &name)
        })?;
        let found = metadata.topics().iter().find(|found| found.name() == name.as_str());
        let found = found.ok_or_else(|| error::unknown_topic(&name, operation))?;
        match found.error() {
            None => Ok(u32::try_from(found.partitions().len()).unwrap_or(u32::MAX)),
            Some(code) => Err(with_topic(error::from_code(code.into(), operation), &name)),
        }
    })
    .await
}

fn with_topic(error: Error, topic: &TopicName) -> Error {
    error.with_context("topic", topic)
}

async fn max_message_bytes(
    admin: &AdminClient<KafkaContext>,
    topic: &TopicName,
    limit: Duration,
    operation: &'static str,
) -> Result<usize> {
    let options = AdminOptions::new().request_timeout(Some(limit));
    let response = admin.describe_configs([&ResourceSpecifier::Topic(topic.as_str())], &options).await;
    let description = match response {
        Ok(mut descriptions) => descriptions.pop().unwrap_or(Err(Code::Unknown)),
        Err(e) => Err(error::code_of(&e).unwrap_or(Code::Unknown)),
    };
    let found = match description {
        Ok(found) => found.get("max.message.bytes").and_then(|entry| entry.value.as_ref()?.parse().ok()),
        // A client with the permission to write may lack the permission to read settings, and not every broker supports
        // settings. If a broker rejects a message because the assumed limit is wrong, the client looks up the metadata
        // again.
        Err(code) => {
            let error = error::from_code(code, operation);
            let assumed = [ErrorKind::Unauthorized, ErrorKind::Unsupported, ErrorKind::Timeout];
            if !assumed.contains(&error.kind()) {
                return Err(with_topic(admin.inner().context().auth_error_or(error), topic));
            }
            None
        }
    };
    Ok(found.unwrap_or(DEFAULT_MAX_MESSAGE_BYTES))
}

/// Returns the maximum size of a topic's batches, in bytes. It leaves space for the protocol below the topic's limit,
/// because the brokers reject an entire batch. Most sizes are powers of two, so that few producers are needed.
pub(super) fn batch_bytes(max_message_bytes: usize) -> usize {
    const MAX_BATCH_BYTES: usize = 1_000_000;
    let available_bytes =
        max_message_bytes.saturating_sub(client_config::MESSAGE_OVERHEAD_BYTES).clamp(1, MAX_BATCH_BYTES);
    if available_bytes == MAX_BATCH_BYTES { MAX_BATCH_BYTES } else { 1 << available_bytes.ilog2() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_batch_size_stays_below_the_topic_limit() {
        for limit in [700, 1_000, 10_000, 65_536, 1_000_000, DEFAULT_MAX_MESSAGE_BYTES, 2 << 20] {
            let batch = batch_bytes(limit);
            assert!(batch + client_config::MESSAGE_OVERHEAD_BYTES <= limit, "{batch} for {limit}");
            assert!(batch >= limit / 8 || batch == 1_000_000, "{batch} for {limit}");
        }
    }
}
