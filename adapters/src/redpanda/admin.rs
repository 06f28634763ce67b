//! The administration of topics: creation, deletion and description.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use qi_core::bus::{
    BusPingReport, PartitionInfo, SettingDiff, TopicInfo, TopicName, TopicOutcome, TopicPartition, TopicSpec,
    TopicState,
};
use qi_core::{Error, ErrorKind, Result};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::metadata::Metadata;
use tokio::time::Instant;

use super::connect::{KafkaContext, QueryClient, blocking, fetch_metadata};
use super::metadata::TopicMetadataCache;
use super::offsets::{self, OffsetSpec};
use super::{connect, error, metadata};

/// The internal topics of the brokers, to which no client publishes.
const INTERNAL_TOPICS: &[&str] = &["__consumer_offsets", "__transaction_state"];
/// The interval between two lookups of a change.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The maximum wait for the offsets of one leader. The metadata may list an unreachable broker for a long time.
const LEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of successive responses per broker after which all brokers count as knowing a new topic.
const RESPONSES_PER_BROKER: usize = 5;

/// The administration requests of a bus.
pub(super) struct AdminOperations<'a> {
    pub(super) admin: &'a Arc<AdminClient<KafkaContext>>,
    pub(super) limit: Duration,
}

impl AdminOperations<'_> {
    fn options(&self) -> AdminOptions {
        AdminOptions::new().request_timeout(Some(self.limit)).operation_timeout(Some(self.limit))
    }

    /// Returns the error of a request, with the reason that the connection reported.
    pub(super) fn request_error(&self, e: rdkafka::error::KafkaError, operation: &'static str) -> Error {
        self.admin.inner().context().auth_error_or(error::from_request(e, operation))
    }

    /// Requests the metadata of all topics.
    async fn metadata(&self, operation: &'static str) -> Result<Metadata> {
        let (admin, limit) = (self.admin.clone(), self.limit);
        let found = blocking(operation, move || Ok(fetch_metadata(admin.inner(), None, limit))).await?;
        found.map_err(|e| self.request_error(e, operation))
    }

    /// Requests the metadata of all topics with the query client. Without this request, the query client would not know
    /// partitions that were added since its last lookup.
    async fn metadata_of(&self, query_client: &Arc<QueryClient>) -> Result<Metadata> {
        let (client, limit) = (query_client.clone(), self.limit);
        let found = blocking("topics", move || Ok(fetch_metadata(client.client(), None, limit))).await?;
        found.map_err(|e| connect::auth_error_or(query_client, error::from_request(e, "topics")))
    }

    pub(super) async fn ping(&self) -> Result<BusPingReport> {
        let started = Instant::now();
        let metadata = self.metadata("ping").await?;
        let round_trip = started.elapsed();
        let (admin, limit) = (self.admin.clone(), self.limit);
        let cluster = blocking("ping", move || Ok(admin.inner().fetch_cluster_id(limit))).await?;
        Ok(BusPingReport::new(cluster, metadata.brokers().len(), round_trip))
    }

    pub(super) async fn create(&self, specs: &[TopicSpec]) -> Result<Vec<TopicOutcome>> {
        // A request may contain each topic only once.
        let mut first: HashMap<&TopicName, usize> = HashMap::new();
        let mut requested: Vec<_> =
            specs.iter().enumerate().filter(|(at, s)| *first.entry(&s.name).or_insert(*at) == *at).collect();
        // The request omits existing topics, because the brokers also reject them for a principal without the
        // permission to create topics.
        let mut results = HashMap::new();
        for (at, spec) in &requested {
            match self.compare(spec).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // The principal may have the permission to create a topic but not to describe it.
                Err(error) if error.kind() == ErrorKind::Unauthorized => {}
                Err(error) if error.kind() != ErrorKind::Conflict => return Err(error),
                response => drop(results.insert(*at, response)),
            }
        }
        requested.retain(|(at, _)| !results.contains_key(at));
        let settings: Vec<_> = requested.iter().map(|(_, spec)| settings_of(spec)).collect();
        let new = requested.iter().zip(&settings).map(|((_, spec), settings)| new_topic(spec, settings));
        let new: Vec<_> = new.collect();
        let responses = if new.is_empty() {
            Vec::new()
        } else {
            let responses = self.admin.create_topics(&new, &self.options()).await;
            responses.map_err(|e| self.request_error(e, "create_topics"))?
        };
        for ((at, spec), response) in requested.iter().zip(responses) {
            let response = match response {
                Ok(_) => self.wait_until_created(&spec.name).await.map(|()| TopicState::Created),
                Err((_, Code::TopicAlreadyExists)) => self.compare(spec).await,
                Err((_, code)) => {
                    Err(error::from_code(code, "create_topics").with_context("topic", &spec.name))
                }
            };
            results.insert(*at, response);
        }
        let mut outcomes = Vec::with_capacity(specs.len());
        for (at, spec) in specs.iter().enumerate() {
            let result = match results.remove(&at) {
                Some(response) => response,
                None => self.compare(spec).await,
            };
            outcomes.push(TopicOutcome::new(spec.name.clone(), result));
        }
        Ok(outcomes)
    }

    /// Waits until a new topic is usable, at most for the request timeout. The topic exists even after a timeout.
    async fn wait_until_created(&self, topic: &TopicName) -> Result<()> {
        let deadline = Instant::now() + self.limit;
        let mut responses = ConsecutiveResponses::default();
        loop {
            let (admin, name, limit) = (self.admin.clone(), topic.clone(), self.limit);
            let found = blocking("create_topics", move || {
                Ok(fetch_metadata(admin.inner(), Some(name.as_str()), limit))
            });
            let found = found.await?;
            let brokers = found.as_ref().map_or(1, |found| found.brokers().len());
            let is_known = found.is_ok_and(|found| {
                found.topics().iter().filter(|found| found.name() == topic.as_str()).any(|found| {
                    let hidden =
                        found.error().is_some_and(|e| Code::from(e) == Code::TopicAuthorizationFailed);
                    let led =
                        !found.partitions().is_empty() && found.partitions().iter().all(|p| p.leader() >= 0);
                    hidden || (found.error().is_none() && led)
                })
            });
            if responses.is_sufficient(is_known, brokers) || Instant::now() >= deadline {
                return Ok(());
            }
            if !is_known {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
    }

    /// Compares an existing topic with its specification.
    async fn compare(&self, spec: &TopicSpec) -> Result<TopicState> {
        let found = metadata::partition_count(self.admin, &spec.name, self.limit, "create_topics").await?;
        if found != spec.partitions {
            return Err(error::partition_count_differs(&spec.name, spec.partitions, found as usize));
        }
        let mut settings = self.settings("create_topics", std::slice::from_ref(&spec.name)).await?;
        let settings = match settings.remove(&spec.name) {
            Some(Some(settings)) => settings,
            Some(None) => return Ok(TopicState::Existed { differs: Vec::new(), settings_hidden: true }),
            None => return Err(error::unknown_topic(&spec.name, "create_topics")),
        };
        let differs = settings_of(spec).into_iter().filter_map(|(name, wanted)| {
            let found = settings.get(&name).cloned().unwrap_or_default();
            (found != wanted).then(|| SettingDiff::new(name, wanted, found))
        });
        Ok(TopicState::Existed { differs: differs.collect(), settings_hidden: false })
    }

    /// Returns the settings of topics, without topics that do not exist. Returns None for hidden settings.
    async fn settings(
        &self,
        operation: &'static str,
        names: &[TopicName],
    ) -> Result<HashMap<TopicName, Option<BTreeMap<String, String>>>> {
        if names.is_empty() {
            return Ok(HashMap::new());
        }
        let requested: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name.as_str())).collect();
        let responses = self.admin.describe_configs(&requested, &self.options()).await;
        let responses = responses.map_err(|e| self.request_error(e, operation))?;
        let mut found = HashMap::new();
        for (name, response) in names.iter().zip(responses) {
            let response = match response {
                Ok(response) => response,
                // The topic was deleted in the meantime.
                Err(Code::UnknownTopicOrPartition) => continue,
                Err(code) => return Err(error::from_code(code, operation).with_context("topic", name)),
            };
            let entries = response.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?)));
            let entries: BTreeMap<_, _> = entries.collect();
            // The driver drops the error of a topic whose settings the principal is not allowed to read. A topic always
            // has settings, so an empty result means hidden settings.
            found.insert(name.clone(), (!entries.is_empty()).then_some(entries));
        }
        Ok(found)
    }

    pub(super) async fn delete(
        &self,
        names: &[TopicName],
        cache: &TopicMetadataCache,
    ) -> Result<Vec<TopicOutcome>> {
        let mut requested: Vec<&str> = names.iter().map(TopicName::as_str).collect();
        requested.sort_unstable();
        requested.dedup();
        if requested.is_empty() {
            return Ok(Vec::new());
        }
        let responses = self.admin.delete_topics(&requested, &self.options()).await;
        let responses = responses.map_err(|e| self.request_error(e, "delete_topics"))?;
        let mut outcomes = HashMap::new();
        for (name, response) in requested.iter().zip(responses) {
            cache.remove(name);
            outcomes.insert(*name, response.map(drop).map_err(|(_, code)| code));
        }
        let mut results = Vec::with_capacity(names.len());
        for name in names {
            // The second entry of a repeated name finds no topic.
            let result = match outcomes.insert(name.as_str(), Err(Code::UnknownTopicOrPartition)) {
                Some(Ok(())) => {
                    self.wait_until_deleted(name).await?;
                    Ok(TopicState::Deleted)
                }
                Some(Err(Code::UnknownTopicOrPartition)) | None => {
                    Err(error::unknown_topic(name, "delete_topics"))
                }
                Some(Err(code)) => Err(error::from_code(code, "delete_topics").with_context("topic", name)),
            };
            results.push(TopicOutcome::new(name.clone(), result));
        }
        Ok(results)
    }

    async fn wait_until_deleted(&self, topic: &TopicName) -> Result<()> {
        let deadline = Instant::now() + self.limit;
        while Instant::now() < deadline {
            match metadata::partition_count(self.admin, topic, self.limit, "delete_topics").await {
                Ok(_) => tokio::time::sleep(POLL_INTERVAL).await,
                Err(_) => break,
            }
        }
        Ok(())
    }

    pub(super) async fn topics(&self, query_client: &Arc<QueryClient>) -> Result<Vec<TopicInfo>> {
        let metadata = self.metadata_of(query_client).await?;
        let mut described: BTreeMap<TopicName, Vec<PartitionInfo>> = BTreeMap::new();
        for topic in metadata.topics().iter().filter(|topic| !INTERNAL_TOPICS.contains(&topic.name())) {
            let Ok(name) = TopicName::new(topic.name()) else { continue };
            if topic.error().map(Code::from) == Some(Code::TopicAuthorizationFailed) {
                continue;
            }
            let mut partitions: Vec<_> = topic.partitions().iter().filter_map(described_partition).collect();
            partitions.sort_unstable_by_key(|partition| partition.id);
            described.insert(name, partitions);
        }
        drop(metadata);
        let names: Vec<_> = described.keys().cloned().collect();
        let (settings, watermarks) =
            tokio::join!(self.settings("topics", &names), self.watermarks(query_client, &described));
        let mut settings = match settings {
            // The broker that must respond is unreachable. The offsets of the other brokers are still returned.
            Err(error) if error.retry().is_retryable() => {
                tracing::warn!(error = %error.report(), "cannot describe the settings of the topics");
                names.into_iter().map(|name| (name, None)).collect()
            }
            settings => settings?,
        };
        for (partition, watermarks) in watermarks? {
            let matching = described.get_mut(&partition.topic).into_iter().flatten();
            let matching = matching.filter(|info| info.id == partition.partition);
            match watermarks {
                Watermarks::Known { low, high } => {
                    matching.for_each(|info| (info.low, info.high) = (low, high));
                }
                Watermarks::Unknown => matching.for_each(|info| info.leader = None),
                Watermarks::Missing => drop(described.remove(&partition.topic)),
            }
        }
        // A topic that was deleted in the meantime has no settings.
        let infos = described.into_iter().filter_map(|(name, partitions)| {
            let settings = settings.remove(&name)?;
            let info = TopicInfo::new(name, partitions);
            Some(match settings {
                Some(settings) => info.with_settings(settings),
                None => info,
            })
        });
        Ok(infos.collect())
    }

    /// Returns the low and the high watermark of every partition with a leader. Each leader gets a separate request, so
    /// that an unresponsive leader neither delays nor fails the others.
    async fn watermarks(
        &self,
        query_client: &Arc<QueryClient>,
        topics: &BTreeMap<TopicName, Vec<PartitionInfo>>,
    ) -> Result<Vec<(TopicPartition, Watermarks)>> {
        let mut led: BTreeMap<i32, Vec<TopicPartition>> = BTreeMap::new();
        for (name, partitions) in topics {
            for partition in partitions {
                let Some(leader) = partition.leader else { continue };
                led.entry(leader).or_default().push(TopicPartition::new(name.clone(), partition.id));
            }
        }
        let requested =
            led.into_values().map(|partitions| self.watermarks_of_leader(query_client, partitions));
        Ok(try_join_all(requested).await?.concat())
    }

    /// Returns the watermarks of partitions with the same leader. The watermarks are `Unknown` if the leader does
    /// not respond in time.
    async fn watermarks_of_leader(
        &self,
        query_client: &Arc<QueryClient>,
        mut pending: Vec<TopicPartition>,
    ) -> Result<Vec<(TopicPartition, Watermarks)>> {
        let mut found = Vec::with_capacity(pending.len());
        let deadline = Instant::now() + self.limit.min(LEADER_TIMEOUT);
        loop {
            let (client, requested) = (query_client.clone(), pending.clone());
            let remaining = move || deadline.saturating_duration_since(Instant::now());
            let watermarks = blocking("topics", move || {
                let low = offsets::find_each(&*client, &requested, OffsetSpec::Earliest, remaining());
                Ok(low.and_then(|low| {
                    Ok((low, offsets::find_each(&*client, &requested, OffsetSpec::Latest, remaining())?))
                }))
            });
            let failure = match watermarks.await?.map_err(|e| self.request_error(e, "topics")) {
                Ok((low, mut high)) => {
                    let mut failure = None;
                    pending.clear();
                    for (partition, low) in low {
                        let high = high.remove(&partition).unwrap_or(Ok(0));
                        match low.and_then(|low| Ok((low, high?))) {
                            Ok((low, high)) => found.push((partition, Watermarks::Known { low, high })),
                            Err(error) if error::is_missing(&error) || error::is_unauthorized(&error) => {
                                found.push((partition, Watermarks::Missing));
                            }
                            Err(error) => {
                                let error = self.request_error(error, "topics");
                                failure = Some(error.with_context("partition", &partition));
                                pending.push(partition);
                            }
                        }
                    }
                    failure
                }
                // The error of one partition may be reported for all partitions.
                Err(error) => Some(error),
            };
            let Some(error) = failure else { return Ok(found) };
            if !error.retry().is_retryable() {
                return Err(error);
            }
            if remaining().is_zero() {
                tracing::warn!(error = %error.report(), partitions = pending.len(), "no response from a partition leader");
                found.extend(pending.into_iter().map(|partition| (partition, Watermarks::Unknown)));
                return Ok(found);
            }
            // The next metadata may contain a new leader, and it no longer contains a deleted topic.
            tokio::time::sleep(POLL_INTERVAL).await;
            let Ok(metadata) = self.metadata("topics").await else { continue };
            let (existing, missing): (Vec<_>, Vec<_>) = pending.into_iter().partition(|partition| {
                metadata.topics().iter().any(|topic| topic.name() == partition.topic.as_str())
            });
            found.extend(missing.into_iter().map(|partition| (partition, Watermarks::Missing)));
            pending = existing;
        }
    }
}

/// The low and the high watermark of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watermarks {
    Known {
        low: u64,
        high: u64,
    },
    /// No response of the leader.
    Unknown,
    /// A partition that was deleted in the meantime, or that the principal is no longer allowed to describe.
    Missing,
}

/// The number of successive responses that contain a new topic. Each request goes to any broker, and not every broker
/// knows a new topic immediately.
#[derive(Default)]
struct ConsecutiveResponses(usize);

impl ConsecutiveResponses {
    /// Adds a response. Returns whether all brokers count as knowing the topic.
    fn is_sufficient(&mut self, is_known: bool, brokers: usize) -> bool {
        self.0 = if is_known { self.0 + 1 } else { 0 };
        self.0 >= if brokers > 1 { RESPONSES_PER_BROKER * brokers.min(10) } else { 1 }
    }
}

fn described_partition(partition: &rdkafka::metadata::MetadataPartition) -> Option<PartitionInfo> {
    let mut info = PartitionInfo::new(u32::try_from(partition.id()).ok()?, 0, 0);
    info.leader = (partition.leader() >= 0).then_some(partition.leader());
    info.replicas = partition.replicas().to_vec();
    info.in_sync = partition.isr().to_vec();
    Some(info)
}

/// Returns the settings of a specification, with the brokers' names.
fn settings_of(spec: &TopicSpec) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    settings.insert("cleanup.policy".to_owned(), spec.cleanup.as_str().to_owned());
    if let Some(retention) = spec.retention {
        settings.insert("retention.ms".to_owned(), retention.as_millis().to_string());
    }
    if let Some(bytes) = spec.max_message_bytes {
        settings.insert("max.message.bytes".to_owned(), bytes.to_string());
    }
    settings.extend(spec.settings.clone());
    settings
}

fn new_topic<'a>(spec: &'a TopicSpec, settings: &'a BTreeMap<String, String>) -> NewTopic<'a> {
    let replicas = spec.replication.map_or(-1, i32::from);
    let partitions = i32::try_from(spec.partitions).unwrap_or(i32::MAX);
    let new = NewTopic::new(spec.name.as_str(), partitions, TopicReplication::Fixed(replicas));
    settings.iter().fold(new, |new, (name, value)| new.set(name, value))
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::mocking::MockCluster;

    use super::*;

    #[tokio::test]
    async fn an_unresponsive_leader_hides_only_its_own_partitions() {
        let cluster = MockCluster::new(3).unwrap();
        cluster.create_topic("t", 3, 1).unwrap();
        for (partition, leader) in [(0, 1), (1, 2), (2, 3)] {
            cluster.partition_leader("t", partition, Some(leader)).unwrap();
        }
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers());
        let query_client: QueryClient = config.create_with_context(KafkaContext::new("admin", "")).unwrap();
        let admin = Arc::new(config.create_with_context(KafkaContext::new("admin", "")).unwrap());
        let admin = AdminOperations { admin: &admin, limit: Duration::from_secs(30) };
        cluster.broker_down(2).unwrap();
        let led = [(0, 1), (1, 2), (2, 3)].map(|(partition, leader)| {
            let mut info = PartitionInfo::new(partition, 0, 0);
            info.leader = Some(leader);
            info
        });
        let topics = BTreeMap::from([(TopicName::new("t").unwrap(), led.to_vec())]);
        let started = Instant::now();
        let mut found = admin.watermarks(&Arc::new(query_client), &topics).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        found.sort_by_key(|(partition, _)| partition.partition);
        let found: Vec<_> = found.into_iter().map(|(_, watermarks)| watermarks).collect();
        let empty = Watermarks::Known { low: 0, high: 0 };
        assert_eq!(found, [empty, Watermarks::Unknown, empty]);
    }

    #[test]
    fn a_new_topic_is_known_after_consecutive_responses_of_all_brokers() {
        for (brokers, unknown_at, wanted) in [(1, 0, 1), (1, 1, 2), (3, 0, 15), (3, 4, 19), (20, 1, 51)] {
            let mut responses = ConsecutiveResponses::default();
            let first = (1..99).find(|response| responses.is_sufficient(*response != unknown_at, brokers));
            assert_eq!(first, Some(wanted), "{brokers} brokers");
        }
    }
}
