//! A producer of librdkafka and the thread that polls it. A producer with a fatal error is dropped and replaced.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qi_core::bus::{Delivery, DeliveryError, DeliveryState, TopicName};
use qi_core::{Error, ErrorKind, Result, Timestamp};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, DeliveryResult, Message as _};
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext, PurgeConfig};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaTopic;

use super::in_flight::InFlightTable;
use crate::redpanda::config::RedpandaConfig;
use crate::redpanda::connect::{self, KafkaContext};
use crate::redpanda::metadata::TopicMetadataCache;
use crate::redpanda::{client_config, error};

/// The minimum age at which a producer with a fatal error is replaced.
const MIN_AGE: Duration = Duration::from_secs(1);
/// The minimum age at which a producer is replaced if the brokers rejected the client.
const MIN_AGE_REJECTED: Duration = Duration::from_secs(30);

/// The context of a producer's client.
pub(super) struct DeliveryContext {
    connection: KafkaContext,
    in_flight: Arc<InFlightTable>,
    metadata: Arc<TopicMetadataCache>,
    /// The purged messages, each with its opaque value of the in-flight table and its code. Their outcomes depend on
    /// the fatal error, which the producer's thread reads.
    purged_messages: Mutex<Vec<(usize, RDKafkaErrorCode)>>,
    /// True if the brokers accepted the client at least once: a message was acknowledged. A message that is purged from
    /// the queue may then have been sent in an earlier attempt.
    was_authorized: AtomicBool,
    /// The topics that acknowledged a message of this producer.
    acknowledged_topics: Mutex<HashSet<String>>,
    /// The topic handle of the last acknowledged message. The handle is compared and never dereferenced.
    last_topic: AtomicPtr<RDKafkaTopic>,
}

impl DeliveryContext {
    fn new(in_flight: Arc<InFlightTable>, metadata: Arc<TopicMetadataCache>) -> Self {
        Self {
            connection: KafkaContext::new("producer", ""),
            in_flight,
            metadata,
            purged_messages: Mutex::default(),
            was_authorized: AtomicBool::new(false),
            acknowledged_topics: Mutex::default(),
            last_topic: AtomicPtr::default(),
        }
    }

    /// Records that a topic acknowledged a message.
    fn record_acknowledgement(&self, message: &BorrowedMessage<'_>) {
        // Called for every message. Consecutive messages mostly have the same topic.
        let handle = message.topic_ptr();
        if self.last_topic.load(Ordering::Relaxed) == handle {
            return;
        }
        self.last_topic.store(handle, Ordering::Relaxed);
        self.was_authorized.store(true, Ordering::Relaxed);
        let mut acknowledged_topics = self.acknowledged_topics();
        if !acknowledged_topics.contains(message.topic()) {
            acknowledged_topics.insert(message.topic().to_owned());
        }
    }

    /// Returns whether a rejected message may be in the log. The client may have lost a permission between two
    /// attempts, and librdkafka does not report whether the rejected request was a retry.
    fn may_be_stored(&self, code: RDKafkaErrorCode, topic: &str) -> bool {
        let permission_errors =
            [RDKafkaErrorCode::TopicAuthorizationFailed, RDKafkaErrorCode::ClusterAuthorizationFailed];
        permission_errors.contains(&code) && self.acknowledged_topics().contains(topic)
    }

    fn acknowledged_topics(&self) -> MutexGuard<'_, HashSet<String>> {
        self.acknowledged_topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the outcomes of purged messages. `rejection_error` is the fatal error if the brokers rejected the client.
    fn complete_purged(&self, rejection_error: Option<&Error>) {
        let purged_messages =
            std::mem::take(&mut *self.purged_messages.lock().unwrap_or_else(PoisonError::into_inner));
        for (opaque, code) in purged_messages {
            let maybe_sent =
                code == RDKafkaErrorCode::PurgeInflight || self.was_authorized.load(Ordering::Relaxed);
            let failure = match rejection_error {
                Some(rejection_error) if maybe_sent => DeliveryError::unknown(rejection_error.clone()),
                // The brokers never accepted this producer, and the message was not in flight.
                Some(rejection_error) => DeliveryError::not_sent(rejection_error.clone()),
                None => error::delivery(code),
            };
            self.in_flight.complete(opaque, Err(failure));
        }
    }
}

impl ClientContext for DeliveryContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.connection.log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        self.connection.stats(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.connection.error(error, reason);
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        if let Ok(message) = result {
            self.record_acknowledgement(message);
        }
        let outcome = match result {
            Ok(message) => Ok(Delivery::new(
                message.partition().cast_unsigned(),
                message.offset().cast_unsigned(),
                message.timestamp().to_millis().and_then(|ms| Timestamp::from_millis(ms).ok()),
            )),
            Err((error, message)) => {
                let code = error::code_of(error).unwrap_or(RDKafkaErrorCode::Unknown);
                if matches!(
                    code,
                    RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight | RDKafkaErrorCode::Fatal
                ) {
                    self.purged_messages.lock().unwrap_or_else(PoisonError::into_inner).push((opaque, code));
                    return;
                }
                let mut failure = error::delivery(code);
                if failure.state == DeliveryState::NotSent {
                    // The broker contradicts the cached metadata.
                    self.metadata.remove(message.topic());
                    if self.may_be_stored(code, message.topic()) {
                        failure.state = DeliveryState::Unknown;
                    }
                }
                Err(failure)
            }
        };
        self.in_flight.complete(opaque, outcome);
    }
}

/// A producer in use.
pub(super) struct ProducerHandle {
    producer: Arc<BaseProducer<DeliveryContext>>,
    built: Instant,
    dead: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

/// The state of a producer.
pub(super) enum ProducerState {
    Alive,
    /// A failed producer: the remaining time until its replacement, and the reason.
    Dead(Duration, Error),
}

impl fmt::Debug for ProducerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProducerHandle")
            .field("built", &self.built)
            .field("dead", &self.dead)
            .finish_non_exhaustive()
    }
}

impl ProducerHandle {
    /// Creates a producer, which connects in the background, and starts its thread.
    pub(super) fn build(
        config: &RedpandaConfig,
        batch_bytes: usize,
        in_flight: &Arc<InFlightTable>,
        metadata: &Arc<TopicMetadataCache>,
    ) -> Result<Self> {
        let context = DeliveryContext::new(in_flight.clone(), metadata.clone());
        let producer = client_config::producer(config, batch_bytes).create_with_context(context);
        let producer: Arc<BaseProducer<DeliveryContext>> =
            Arc::new(producer.map_err(|e| error::from_kafka(e, "publish"))?);
        let (dead, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let handle = Self {
            producer: producer.clone(),
            built: Instant::now(),
            dead: dead.clone(),
            stop: stop.clone(),
        };
        let thread = std::thread::Builder::new().name("qi-redpanda-send".to_owned());
        thread
            .spawn(move || poll_until_stopped(&producer, &dead, &stop))
            .map_err(|e| error::internal("publish", e))?;
        Ok(handle)
    }

    pub(super) fn producer(&self) -> &BaseProducer<DeliveryContext> {
        &self.producer
    }

    /// Refreshes the metadata of a topic. A producer otherwise refreshes its metadata every five minutes.
    pub(super) async fn refresh_metadata(&self, topic: &TopicName, limit: Duration) {
        let (producer, topic) = (self.producer.clone(), topic.clone());
        let refresh = connect::blocking("publish", move || {
            let found = producer.client().fetch_metadata(Some(topic.as_str()), limit);
            found.map(drop).map_err(|e| error::from_kafka(e, "publish"))
        });
        if let Err(error) = refresh.await {
            tracing::debug!(%error, "cannot refresh the metadata of a topic");
        }
    }

    /// Marks the producer as failed, so that no call uses it.
    pub(super) fn fail(&self) {
        self.dead.store(true, Ordering::Release);
    }

    /// Returns the fatal error if the brokers rejected the client. None for other fatal errors.
    pub(super) fn rejection_error(&self) -> Option<Error> {
        rejection_of(self.producer.client().fatal_error())
    }

    /// Returns the state of the producer.
    pub(super) fn state(&self) -> ProducerState {
        if !self.dead.load(Ordering::Acquire) {
            return ProducerState::Alive;
        }
        let reason = self.rejection_error().unwrap_or_else(error::producer_replaced);
        let min_age = if reason.kind() == ErrorKind::Unauthorized { MIN_AGE_REJECTED } else { MIN_AGE };
        ProducerState::Dead(min_age.saturating_sub(self.built.elapsed()), reason)
    }
}

impl Drop for ProducerHandle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// Returns the fatal error if its kind is `Unauthorized`: the brokers rejected the client.
fn rejection_of(fatal: Option<(RDKafkaErrorCode, String)>) -> Option<Error> {
    let (code, reason) = fatal?;
    let error = error::from_code(code, "publish").with_message(reason);
    (error.kind() == ErrorKind::Unauthorized).then_some(error)
}

/// Polls the producer and completes deliveries. After a stop or a fatal error, purges the messages of librdkafka, which
/// reports each of them. Every message therefore has an outcome. Ends after a stop, when no call uses the producer.
fn poll_until_stopped(producer: &Arc<BaseProducer<DeliveryContext>>, dead: &AtomicBool, stop: &AtomicBool) {
    let mut purged = false;
    loop {
        producer.poll(Duration::from_millis(50));
        let fatal = producer.client().fatal_error();
        if let Some((code, fatal_error)) = &fatal
            && !purged
        {
            tracing::error!(%code, fatal_error, "fatal producer error; the producer will be replaced");
            dead.store(true, Ordering::Release);
        }
        producer.context().complete_purged(rejection_of(fatal).as_ref());
        let stopped = stop.load(Ordering::Acquire);
        if !purged && (stopped || dead.load(Ordering::Acquire)) {
            producer.purge(PurgeConfig::default().queue().inflight());
            purged = true;
        } else if stopped && producer.in_flight_count() == 0 && Arc::strong_count(producer) == 1 {
            return;
        }
    }
}
