//! The publishing of messages. Messages that the client can reject are rejected individually. The other messages wait
//! for space in the buffer, in order, and one completion reports the outcomes of the call.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use qi_core::bus::{DeliveryError, Headers, Message, PublishOptions, PublishReport, TopicName};
use qi_core::{Clock as _, Error, ErrorKind, Result, SystemClock, Timestamp};
use rdkafka::admin::AdminClient;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::client::{ProducerHandle, ProducerState};
use super::in_flight::{InFlightTable, weight};
use crate::redpanda::config::RedpandaConfig;
use crate::redpanda::connect::KafkaContext;
use crate::redpanda::metadata::{self, TopicMetadata, TopicMetadataCache};
use crate::redpanda::{client_config, error};

/// The number of messages after which a call yields to other tasks.
const CHUNK_MESSAGES: usize = 512;

/// The sending side of a bus.
#[derive(Debug)]
pub(in crate::redpanda) struct Publisher {
    config: Arc<RedpandaConfig>,
    in_flight: Arc<InFlightTable>,
    topics: Arc<TopicMetadataCache>,
    /// The producers by the size of their batches. One producer suffices, unless a topic allows only small batches.
    producers: Mutex<HashMap<usize, Arc<ProducerHandle>>>,
    closed: AtomicBool,
}

/// The batch size of a message's producer, or the reason why the message is rejected.
type Route = std::result::Result<usize, DeliveryError>;

/// The metadata of a topic in one call.
struct KnownTopic {
    topic: TopicName,
    metadata: Result<TopicMetadata>,
    /// True if this call looked up the metadata.
    looked_up: bool,
}

impl KnownTopic {
    /// Returns whether a rejection based on this metadata may be outdated.
    fn may_be_stale(&self) -> bool {
        !self.looked_up && self.metadata.as_ref().is_ok_and(|metadata| !metadata.is_fresh())
    }
}

/// Metadata that must be looked up before a call is routed.
#[derive(Debug)]
enum StaleMetadata<'a> {
    /// No metadata of this topic is known.
    Missing(&'a TopicName),
    /// The metadata with this index may be stale.
    Expired(usize),
}

impl Publisher {
    pub(in crate::redpanda) fn new(config: Arc<RedpandaConfig>) -> Self {
        let in_flight = Arc::new(InFlightTable::new(config.buffer_bytes));
        let producers = Mutex::default();
        Self { config, in_flight, topics: Arc::default(), producers, closed: AtomicBool::new(false) }
    }

    pub(in crate::redpanda) fn topics(&self) -> &TopicMetadataCache {
        &self.topics
    }

    pub(in crate::redpanda) fn in_flight(&self) -> usize {
        self.in_flight.in_flight()
    }

    pub(in crate::redpanda) async fn wait_until_drained(&self) {
        self.in_flight.wait_until_drained().await;
    }

    /// Drops all producers. Messages without an outcome become unknown.
    pub(in crate::redpanda) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.in_flight.permits().close();
        self.lock().clear();
    }

    pub(in crate::redpanda) async fn publish(
        &self,
        admin: &Arc<AdminClient<KafkaContext>>,
        batch: &[Message],
        options: &PublishOptions,
    ) -> PublishReport {
        let routes = self.routes(admin, batch, options).await;
        let added = options.headers.weight();
        // A message with many short headers may weigh more than the buffer. It then takes the entire buffer.
        let buffer_bytes = self.config.buffer_bytes;
        let weights: Vec<_> =
            batch.iter().map(|message| weight(message.weight() + added).min(buffer_bytes)).collect();
        let (slot, pending) = self.in_flight.register(weights);
        // If this future is dropped, the other messages are reported as not sent.
        let mut unsent = UnsentMessages { in_flight: &self.in_flight, slot, next: 0, len: batch.len() };
        let deadline = Instant::now() + self.delivery_timeout();
        let (mut producer, mut first) = (None, None);
        let mut chunk = self.chunk(pending.weights(0, CHUNK_MESSAGES));
        for (index, (message, route)) in batch.iter().zip(routes).enumerate() {
            if index > 0 && index.is_multiple_of(CHUNK_MESSAGES) {
                drop(chunk);
                tokio::task::yield_now().await;
                chunk = self.chunk(pending.weights(index, CHUNK_MESSAGES));
            }
            let sent = match route {
                Ok(batch_bytes) => {
                    let first = *first.get_or_insert(index);
                    let outgoing =
                        Outgoing { batch_bytes, slot, first, index, weight: pending.weight(index), deadline };
                    self.send(&mut producer, &mut chunk, outgoing, message, &options.headers).await
                }
                Err(failure) => Err(Rejection::Message(failure)),
            };
            match sent {
                Ok(()) => {}
                Err(Rejection::Message(failure)) => {
                    self.in_flight.set_outcome(slot, index, Err(failure));
                }
                Err(Rejection::Call(failure)) => {
                    unsent.fail(&failure);
                    break;
                }
            }
            unsent.next = index + 1;
        }
        unsent.next = batch.len();
        drop(chunk);
        // `close` ends a producer, and purges its messages, when nothing uses it.
        drop(producer);
        // librdkafka reports an outcome within the delivery timeout. Otherwise, the outcome is unknown.
        let limit = self.delivery_timeout() + Duration::from_secs(10);
        let _ = tokio::time::timeout(limit, pending.done()).await;
        pending.report(&DeliveryError::unknown(error::timed_out(
            "publish",
            "no delivery report within 10 s after the delivery timeout",
        )))
    }

    fn delivery_timeout(&self) -> Duration {
        client_config::clamp_timeout(self.config.delivery_timeout)
    }

    /// Routes every message. All messages of a topic in a call use the same metadata, so that a single producer sends
    /// them and keeps their order.
    async fn routes(
        &self,
        admin: &Arc<AdminClient<KafkaContext>>,
        batch: &[Message],
        options: &PublishOptions,
    ) -> Vec<Route> {
        let mut known: Vec<KnownTopic> = Vec::new();
        loop {
            match self.route_all(&known, batch, options) {
                Ok(routes) => return routes,
                Err(StaleMetadata::Missing(topic)) => {
                    let (looked_up, metadata) = match self.topics.get(topic) {
                        Some(metadata) => (false, Ok(metadata)),
                        None => (true, self.look_up(admin, topic).await),
                    };
                    known.push(KnownTopic { topic: topic.clone(), metadata, looked_up });
                }
                Err(StaleMetadata::Expired(at)) => {
                    let metadata = self.look_up(admin, &known[at].topic).await;
                    (known[at].metadata, known[at].looked_up) = (metadata, true);
                }
            }
        }
    }

    /// Routes every message with the known metadata. An error contains the metadata to look up first.
    fn route_all<'a>(
        &self,
        known: &[KnownTopic],
        batch: &'a [Message],
        options: &PublishOptions,
    ) -> std::result::Result<Vec<Route>, StaleMetadata<'a>> {
        let mut routes = Vec::with_capacity(batch.len());
        for message in batch {
            // Consecutive messages mostly have the same topic.
            let at = known.iter().rposition(|known| known.topic == message.topic);
            let at = at.ok_or(StaleMetadata::Missing(&message.topic))?;
            let route = self.route(&known[at].metadata, message, options);
            if route.is_err() && known[at].may_be_stale() {
                return Err(StaleMetadata::Expired(at));
            }
            routes.push(route);
        }
        Ok(routes)
    }

    async fn look_up(
        &self,
        admin: &Arc<AdminClient<KafkaContext>>,
        topic: &TopicName,
    ) -> Result<TopicMetadata> {
        let limit = client_config::clamp_timeout(self.config.request_timeout);
        let metadata = metadata::look_up(admin, topic, limit, "publish").await;
        match &metadata {
            Ok(metadata) => self.topics.insert(topic, *metadata),
            Err(_) => self.topics.remove(topic.as_str()),
        }
        metadata
    }

    fn route(&self, metadata: &Result<TopicMetadata>, message: &Message, options: &PublishOptions) -> Route {
        let reject = |error: Error| Err(DeliveryError::not_sent(error));
        let metadata = match metadata {
            Ok(metadata) => metadata,
            Err(error) => return reject(error.clone()),
        };
        if let Some(partition) = message.partition.filter(|partition| *partition >= metadata.partitions) {
            return reject(error::unknown_partition(&message.topic, partition, "publish"));
        }
        let size = message.size() + options.headers.size();
        if size > self.config.max_message_bytes {
            return reject(error::too_large(size, self.config.max_message_bytes));
        }
        let encoded = size + framing_bytes(message.headers.len() + options.headers.len());
        if encoded > metadata.max_message_bytes {
            return reject(error::too_large(encoded, metadata.max_message_bytes));
        }
        Ok(metadata::batch_bytes(metadata.max_message_bytes))
    }

    /// Waits for space and passes a message to librdkafka, which reports its outcome.
    async fn send(
        &self,
        producer: &mut Option<(usize, Arc<ProducerHandle>)>,
        chunk: &mut Chunk<'_>,
        outgoing: Outgoing,
        message: &Message,
        added: &Headers,
    ) -> std::result::Result<(), Rejection> {
        // Released on drop, unless librdkafka accepts the message.
        let space = match chunk.space.as_mut().and_then(|space| space.split(outgoing.weight)) {
            Some(_) if self.closed.load(Ordering::Acquire) => {
                return Err(Rejection::Call(DeliveryError::not_sent(error::closed("publish"))));
            }
            Some(space) => space,
            None => self.acquire(&outgoing, chunk).await.map_err(Rejection::Call)?,
        };
        let mut record = record(message, InFlightTable::opaque(outgoing.slot, outgoing.index));
        record.headers = chunk.headers(&message.headers, added);
        let mut refreshed = false;
        loop {
            let handle = match producer {
                Some((batch_bytes, handle)) if *batch_bytes == outgoing.batch_bytes => handle,
                _ => {
                    let found = self
                        .producer(outgoing.batch_bytes, outgoing.deadline)
                        .await
                        .map_err(Rejection::Call)?;
                    chunk.now = SystemClock.now();
                    &mut producer.insert((outgoing.batch_bytes, found)).1
                }
            };
            record.timestamp = Some(message.timestamp.unwrap_or(chunk.now).as_millis_floor());
            self.in_flight.add();
            let Err((rejected, returned)) = handle.producer().send(record) else {
                space.forget();
                return Ok(());
            };
            self.in_flight.remove();
            record = returned;
            // The message was never sent, so it is not in the log.
            let failure = match error::code_of(&rejected).unwrap_or(RDKafkaErrorCode::Unknown) {
                RDKafkaErrorCode::QueueFull if Instant::now() < outgoing.deadline => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    chunk.now = SystemClock.now();
                    continue;
                }
                // The topic has this partition, but the metadata of the producer is older.
                RDKafkaErrorCode::UnknownPartition if !refreshed => {
                    refreshed = true;
                    handle
                        .refresh_metadata(
                            &message.topic,
                            client_config::clamp_timeout(self.config.request_timeout),
                        )
                        .await;
                    chunk.now = SystemClock.now();
                    continue;
                }
                RDKafkaErrorCode::Fatal => {
                    handle.fail();
                    // If no message of the call was sent, the next producer can send all of them.
                    if outgoing.index == outgoing.first {
                        *producer = None;
                        continue;
                    }
                    let reason = handle.rejection_error().unwrap_or_else(error::producer_replaced);
                    Rejection::Call(DeliveryError::not_sent(reason))
                }
                code => Rejection::Message(DeliveryError::not_sent(error::delivery(code).error)),
            };
            return Err(failure);
        }
    }

    /// Begins a chunk. Reserves the space of all its messages if the buffer has enough space.
    fn chunk(&self, weights: &[usize]) -> Chunk<'_> {
        let space = u32::try_from(weights.iter().sum::<usize>()).ok();
        let space = space.and_then(|weight| self.in_flight.permits().try_acquire_many(weight).ok());
        Chunk { now: SystemClock.now(), space, headers: None }
    }

    async fn acquire<'a>(
        &'a self,
        outgoing: &Outgoing,
        chunk: &mut Chunk<'_>,
    ) -> std::result::Result<SemaphorePermit<'a>, DeliveryError> {
        let weight = u32::try_from(outgoing.weight).unwrap_or(u32::MAX);
        let space = self.in_flight.permits();
        if let Ok(permit) = space.try_acquire_many(weight) {
            return Ok(permit);
        }
        let taken = timeout_at(outgoing.deadline, space.acquire_many(weight)).await;
        chunk.now = SystemClock.now();
        match taken {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_closed)) => Err(DeliveryError::not_sent(error::closed("publish"))),
            Err(_) => Err(DeliveryError::not_sent(error::buffer_full(self.config.buffer_bytes))),
        }
    }

    /// Returns the producer for batches of this size. A producer with a fatal error is replaced, at most once a second.
    async fn producer(
        &self,
        batch_bytes: usize,
        deadline: Instant,
    ) -> std::result::Result<Arc<ProducerHandle>, DeliveryError> {
        loop {
            let (left, reason) = {
                let mut producers = self.lock();
                if self.closed.load(Ordering::SeqCst) {
                    return Err(DeliveryError::not_sent(error::closed("publish")));
                }
                let found = producers.get(&batch_bytes);
                match found.map(|producer| (producer, producer.state())) {
                    Some((producer, ProducerState::Alive)) => return Ok(producer.clone()),
                    Some((_, ProducerState::Dead(left, reason))) if !left.is_zero() => (left, reason),
                    _ => {
                        let producer =
                            ProducerHandle::build(&self.config, batch_bytes, &self.in_flight, &self.topics);
                        let producer = Arc::new(producer.map_err(DeliveryError::not_sent)?);
                        producers.insert(batch_bytes, producer.clone());
                        return Ok(producer);
                    }
                }
            };
            if reason.kind() == ErrorKind::Unauthorized || Instant::now() + left > deadline {
                return Err(DeliveryError::not_sent(reason));
            }
            tokio::time::sleep(left).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Arc<ProducerHandle>>> {
        self.producers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message to send.
struct Outgoing {
    batch_bytes: usize,
    slot: usize,
    /// The index of the first routed message of the call.
    first: usize,
    index: usize,
    weight: usize,
    deadline: Instant,
}

/// Consecutive messages of a call between two yields.
struct Chunk<'a> {
    /// The timestamp of messages without one. librdkafka would read the clock for each message.
    now: Timestamp,
    /// The remaining reserved space. None if the buffer had too little space; each message then waits for its space.
    space: Option<SemaphorePermit<'a>>,
    /// The headers of the previous message, and their form in librdkafka. A copy costs less than a conversion.
    headers: Option<(Headers, OwnedHeaders)>,
}

impl Chunk<'_> {
    /// Converts the headers of a message and the headers that the call adds.
    fn headers(&mut self, own: &Headers, added: &Headers) -> Option<OwnedHeaders> {
        let count = own.len() + added.len();
        if count == 0 {
            return None;
        }
        if let Some((known, converted)) = &self.headers
            && known == own
        {
            return Some(converted.clone());
        }
        let mut headers = OwnedHeaders::new_with_capacity(count);
        for (name, value) in own.iter().chain(added.iter()) {
            headers = headers.insert(Header { key: name.as_str(), value: value.map(|value| &value[..]) });
        }
        Some(self.headers.insert((own.clone(), headers)).1.clone())
    }
}

/// A rejection of one message, or of the call's remaining messages.
enum Rejection {
    Message(DeliveryError),
    Call(DeliveryError),
}

/// The messages of a call that were not sent.
struct UnsentMessages<'a> {
    in_flight: &'a InFlightTable,
    slot: usize,
    next: usize,
    len: usize,
}

impl UnsentMessages<'_> {
    fn fail(&mut self, failure: &DeliveryError) {
        for index in self.next..self.len {
            self.in_flight.set_outcome(self.slot, index, Err(failure.clone()));
        }
        self.next = self.len;
    }
}

impl Drop for UnsentMessages<'_> {
    fn drop(&mut self) {
        if self.next < self.len {
            self.fail(&DeliveryError::not_sent(error::publish_cancelled()));
        }
    }
}

/// Returns the maximum overhead of the protocol for a message that is alone in its batch, in bytes.
fn framing_bytes(headers: usize) -> usize {
    100 + 10 * headers
}

fn record(message: &Message, name: usize) -> BaseRecord<'_, [u8], [u8], usize> {
    let mut record = BaseRecord::with_opaque_to(message.topic.as_str(), name);
    record.key = message.key.as_deref();
    record.payload = message.payload.as_deref();
    record.partition = message.partition.map(u32::cast_signed);
    record
}

#[cfg(test)]
mod tests {
    use qi_core::bus::DeliveryState;

    use super::*;

    fn metadata(max_message_bytes: usize, age: Duration) -> TopicMetadata {
        let at = std::time::Instant::now().checked_sub(age).unwrap();
        TopicMetadata { partitions: 1, max_message_bytes, at }
    }

    #[test]
    fn a_chunk_reserves_all_its_space_or_none() {
        let mut config = RedpandaConfig::from_brokers("nowhere:1");
        config.buffer_bytes = 1_000;
        let publisher = Publisher::new(Arc::new(config));
        let left = || publisher.in_flight.permits().available_permits();
        let mut chunk = publisher.chunk(&[300, 400]);
        assert_eq!(left(), 300);
        assert!(publisher.chunk(&[100, 201]).space.is_none());
        assert_eq!(left(), 300);
        chunk.space.as_mut().unwrap().split(400).unwrap().forget();
        drop(chunk);
        assert_eq!(left(), 600, "unused space is released");
    }

    #[tokio::test]
    async fn a_message_is_timestamped_after_the_wait_for_space() {
        let mut config = RedpandaConfig::from_brokers("nowhere:1");
        config.buffer_bytes = 1_000;
        let publisher = Publisher::new(Arc::new(config));
        let taken = publisher.chunk(&[800]);
        let mut chunk = publisher.chunk(&[300, 300]);
        let began = chunk.now;
        let deadline = Instant::now() + Duration::from_secs(5);
        let outgoing = Outgoing { batch_bytes: 1 << 20, slot: 0, first: 0, index: 0, weight: 300, deadline };
        let wait = Duration::from_millis(50);
        let free = async {
            tokio::time::sleep(wait).await;
            drop(taken);
        };
        let (space, ()) = tokio::join!(publisher.acquire(&outgoing, &mut chunk), free);
        let waited = chunk.now.as_millis_floor() - began.as_millis_floor();
        assert!(waited >= 40, "{waited} ms");
        drop(space.unwrap());
        assert_eq!(publisher.in_flight.permits().available_permits(), 1_000);
    }

    #[tokio::test]
    async fn publish_fails_after_close_despite_reserved_space() {
        let publisher = Publisher::new(Arc::new(RedpandaConfig::from_brokers("127.0.0.1:1")));
        let message = Message::new(TopicName::new("t").unwrap(), "x");
        let (slot, _pending) = publisher.in_flight.register(vec![300]);
        let mut chunk = publisher.chunk(&[300]);
        publisher.close();
        let deadline = Instant::now() + Duration::from_secs(5);
        let outgoing = Outgoing { batch_bytes: 1 << 20, slot, first: 0, index: 0, weight: 300, deadline };
        let producer =
            ProducerHandle::build(&publisher.config, 1 << 20, &publisher.in_flight, &publisher.topics)
                .unwrap();
        let mut producer = Some((1 << 20, Arc::new(producer)));
        let sent = publisher.send(&mut producer, &mut chunk, outgoing, &message, &Headers::new()).await;
        let Err(Rejection::Call(failure)) = sent else { panic!("the message was sent") };
        assert_eq!((failure.state, failure.error.kind()), (DeliveryState::NotSent, ErrorKind::Closed));
    }

    #[tokio::test]
    async fn publishes_of_every_length_report_in_order_and_release_their_space() {
        let cluster = rdkafka::mocking::MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        let topic = TopicName::new("t").unwrap();
        // Every chunk reserves its space, or some chunks wait for the space of each message.
        for buffer_bytes in [64 << 20, 200_000, 1_000] {
            let mut config = RedpandaConfig::from_brokers(cluster.bootstrap_servers());
            config.buffer_bytes = buffer_bytes;
            let admin =
                client_config::admin(&config).create_with_context(KafkaContext::new("admin", "")).unwrap();
            let (admin, publisher) = (Arc::new(admin), Publisher::new(Arc::new(config)));
            // Without this entry, the mock would be queried for settings until the request timeout.
            let at = std::time::Instant::now() + Duration::from_hours(1);
            publisher.topics.insert(&topic, TopicMetadata { at, ..metadata(1_000_000, Duration::ZERO) });
            let call = async |len: usize| {
                // The first message of every chunk has a partition that does not exist.
                let message = |n: usize| {
                    let partition = u32::from(n.is_multiple_of(CHUNK_MESSAGES));
                    Message::new(topic.clone(), n.to_string()).with_partition(partition)
                };
                let batch: Vec<_> = (0..len).map(message).collect();
                let report = publisher.publish(&admin, &batch, PublishOptions::NONE).await;
                let mut last = None;
                for (n, outcome) in report.into_outcomes().into_iter().enumerate() {
                    match outcome {
                        Ok(delivery) => {
                            assert!(last < Some(delivery.offset), "{n} of {len}");
                            last = Some(delivery.offset);
                        }
                        Err(failure) => {
                            assert!(n.is_multiple_of(CHUNK_MESSAGES), "{n} of {len}: {}", failure.error);
                        }
                    }
                }
            };
            let lengths = if buffer_bytes > 1_000 { &[1, 511, 512, 513, 1_024, 1_025][..] } else { &[3, 9] };
            futures::future::join_all(lengths.iter().map(|len| call(*len))).await;
            publisher.wait_until_drained().await;
            assert_eq!(publisher.in_flight.permits().available_permits(), buffer_bytes);
            // A call that is dropped midway does not keep space either.
            let _ = tokio::time::timeout(Duration::from_millis(1), call(2 * CHUNK_MESSAGES)).await;
            publisher.wait_until_drained().await;
            assert_eq!(publisher.in_flight.permits().available_permits(), buffer_bytes);
            // A call that is interrupted by `close` returns an outcome for every message.
            let batch = vec![Message::new(topic.clone(), "x"); 2 * CHUNK_MESSAGES];
            let publish = publisher.publish(&admin, &batch, PublishOptions::NONE);
            let (report, ()) = tokio::join!(publish, async { publisher.close() });
            let outcomes = report.into_outcomes();
            assert_eq!(outcomes.len(), 2 * CHUNK_MESSAGES);
            let failures = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
            let (not_sent, unknown): (Vec<_>, Vec<_>) =
                failures.partition(|failure| failure.state == DeliveryState::NotSent);
            assert!(not_sent.len() >= CHUNK_MESSAGES);
            assert!(not_sent.iter().all(|failure| failure.error.kind() == ErrorKind::Closed), "{not_sent:?}");
            // Messages of the first chunk that the broker has not acknowledged before `close`.
            assert!(
                unknown.iter().all(|failure| failure.error.kind() == ErrorKind::Unavailable),
                "{unknown:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_rejected_message_holds_no_space() {
        let config = Arc::new(RedpandaConfig::from_brokers("127.0.0.1:1"));
        let admin =
            client_config::admin(&config).create_with_context(KafkaContext::new("admin", "")).unwrap();
        let (admin, publisher) = (Arc::new(admin), Publisher::new(config));
        let topic = TopicName::new("t").unwrap();
        publisher.topics.insert(&topic, metadata(1_000_000, Duration::ZERO));
        let batch =
            [0, 1].map(|partition| Message::new(topic.clone(), vec![0; 1_000]).with_partition(partition));
        let publish = publisher.publish(&admin, &batch, PublishOptions::NONE);
        tokio::pin!(publish);
        assert!(futures::poll!(publish).is_pending());
        assert_eq!(publisher.in_flight(), 1);
        let held = publisher.config.buffer_bytes - publisher.in_flight.permits().available_permits();
        assert_eq!(held, weight(1_000), "the rejected message reserves no space");
    }

    #[test]
    fn all_messages_of_a_topic_in_one_publish_use_one_producer() {
        let publisher = Publisher::new(Arc::new(RedpandaConfig::from_brokers("nowhere:1")));
        let (topic, other) = (TopicName::new("one").unwrap(), TopicName::new("two").unwrap());
        let message = |topic: &TopicName, size: usize| Message::new(topic.clone(), vec![0; size]);
        let batch =
            [message(&topic, 10), message(&other, 10), message(&topic, 1_100_000), message(&topic, 10)];
        let route_all = |known: &[KnownTopic]| publisher.route_all(known, &batch, PublishOptions::NONE);
        let known = |topic: &TopicName, metadata, looked_up| KnownTopic {
            topic: topic.clone(),
            metadata: Ok(metadata),
            looked_up,
        };
        let (old, new) = (Duration::from_mins(1), Duration::ZERO);
        assert!(matches!(route_all(&[]), Err(StaleMetadata::Missing(topic_name)) if *topic_name == topic));
        let mut all = vec![known(&topic, metadata(1_000_000, old), false)];
        assert!(matches!(route_all(&all), Err(StaleMetadata::Missing(topic_name)) if *topic_name == other));
        all.push(known(&other, metadata(1_000_000, old), false));
        // Old metadata rejects the third message. It must not route the first message either.
        assert!(matches!(route_all(&all), Err(StaleMetadata::Expired(0))));
        all[0] = known(&topic, metadata(10_000, new), true);
        let routes: Vec<_> = route_all(&all).unwrap().into_iter().map(Result::ok).collect();
        assert_eq!(routes, [Some(8_192), Some(524_288), None, Some(8_192)]);
        // The lookup took time. Metadata that this call looked up is not looked up again.
        all[0] = known(&topic, metadata(10_000, old), true);
        assert!(route_all(&all).is_ok());
    }
}
