//! A producer of librdkafka with the thread that serves it. One that met a fatal error is given up as a whole.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use qi_core::bus::{Delivery, DeliveryError, DeliveryState};
use qi_core::{Error, ErrorKind, Result, Timestamp};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext, PurgeConfig};
use rdkafka::statistics::Statistics;

use super::link::Link;
use super::ticket::Desk;
use super::topics::Topics;
use super::{error, settings};
use crate::config::RedpandaConfig;

/// After a fatal error the next producer is built no earlier than this.
const REBUILD: Duration = Duration::from_secs(1);
/// Where the brokers refuse this client, trying again soon would be no use.
const REFUSED: Duration = Duration::from_secs(30);

/// What the thread of a producer does with its answers.
pub(super) struct Deliveries {
    link: Link,
    desk: Arc<Desk>,
    topics: Arc<Topics>,
    /// Why the brokers do not let this producer in, if they do not.
    refused: OnceLock<Error>,
}

impl Deliveries {
    /// What a message that the producer gave up means.
    fn failure(&self, code: RDKafkaErrorCode) -> DeliveryError {
        match self.refused.get() {
            // A producer that is not let in has sent nothing of what still waits.
            Some(refused) if matches!(code, RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::Fatal) => {
                DeliveryError::not_sent(refused.clone())
            }
            Some(refused) if code == RDKafkaErrorCode::PurgeInflight => DeliveryError::unknown(refused.clone()),
            _ => error::delivery(code),
        }
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.link.log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        self.link.stats(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.link.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, name: usize) {
        let outcome = match result {
            Ok(message) => Ok(Delivery {
                partition: message.partition().cast_unsigned(),
                offset: message.offset().cast_unsigned(),
                timestamp: message.timestamp().to_millis().and_then(|ms| Timestamp::from_millis(ms).ok()),
            }),
            Err((error, message)) => {
                let failure = self.failure(error::code_of(error).unwrap_or(RDKafkaErrorCode::Unknown));
                if failure.state == DeliveryState::NotSent {
                    // Whatever was known of this topic, a broker knows better.
                    self.topics.forget(message.topic());
                }
                Err(failure)
            }
        };
        self.desk.answered(name, outcome);
    }
}

/// A producer in use.
pub(super) struct Lane {
    producer: Arc<BaseProducer<Deliveries>>,
    built: Instant,
    dead: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

/// Whether a producer can be used.
pub(super) enum State {
    Alive,
    /// It met a fatal error, and is to be replaced after this time.
    Dead(Duration, Error),
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("built", &self.built).field("dead", &self.dead).finish_non_exhaustive()
    }
}

impl Lane {
    /// Builds a producer, which connects, and starts its thread.
    pub(super) fn build(
        config: &RedpandaConfig,
        batch_bytes: usize,
        desk: &Arc<Desk>,
        topics: &Arc<Topics>,
    ) -> Result<Self> {
        let context = Deliveries {
            link: Link::new("producer", ""),
            desk: desk.clone(),
            topics: topics.clone(),
            refused: OnceLock::new(),
        };
        let producer = settings::producer(config, batch_bytes).create_with_context(context);
        let producer: Arc<BaseProducer<Deliveries>> =
            Arc::new(producer.map_err(|e| error::of(e, "publish"))?);
        let (dead, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let lane = Self {
            producer: producer.clone(),
            built: Instant::now(),
            dead: dead.clone(),
            stop: stop.clone(),
        };
        let thread = std::thread::Builder::new().name("qi-redpanda-send".to_owned());
        thread.spawn(move || serve(producer, &dead, &stop)).map_err(|e| error::internal("publish", e))?;
        Ok(lane)
    }

    pub(super) fn producer(&self) -> &BaseProducer<Deliveries> {
        &self.producer
    }

    /// It met a fatal error: nobody publishes by it any more.
    pub(super) fn die(&self) {
        self.dead.store(true, Ordering::Release);
    }

    pub(super) fn state(&self) -> State {
        if !self.dead.load(Ordering::Acquire) {
            return State::Alive;
        }
        let reason = match self.producer.client().fatal_error() {
            Some((code, reason)) => error::by_code(code, "publish").with_message(reason),
            None => error::rebuilding(),
        };
        let pause = if reason.kind() == ErrorKind::Unauthorized { REFUSED } else { REBUILD };
        State::Dead(pause.saturating_sub(self.built.elapsed()), reason)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// Answers for deliveries. In the end, or after a fatal error, librdkafka gives up what it holds and answers for that,
/// so that nothing is left without an answer.
fn serve(producer: Arc<BaseProducer<Deliveries>>, dead: &AtomicBool, stop: &AtomicBool) {
    let mut purged = false;
    loop {
        producer.poll(Duration::from_millis(50));
        if let Some((code, reason)) = producer.client().fatal_error()
            && !dead.swap(true, Ordering::AcqRel)
        {
            tracing::error!(%code, reason, "the producer met a fatal error and is given up");
            let error = error::by_code(code, "publish").with_message(reason);
            if error.kind() == ErrorKind::Unauthorized {
                let _ = producer.context().refused.set(error);
            }
        }
        let over = stop.load(Ordering::Acquire);
        if !purged && (over || dead.load(Ordering::Acquire)) {
            producer.purge(PurgeConfig::default().queue().inflight());
            purged = true;
        } else if over && producer.in_flight_count() == 0 && Arc::strong_count(&producer) == 1 {
            return;
        }
    }
}
