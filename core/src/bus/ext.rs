//! Convenience methods for callers of a bus. Every bus has them.

use std::time::Duration;

use super::{
    BusPingReport, DeadLetters, Delivery, DeliveryError, Message, MessageBus, PublishOptions, PublishReport,
    RejectedMessage, TopicCatalogue, TopicName, TopicOutcome, codec, dead_letter,
};
use crate::record::{Record, Slice};
use crate::telemetry::{DEAD_LETTERS, DEAD_LETTERS_DROPPED, Metric};
use crate::{Error, ErrorKind, Result};

/// Methods that are built from the port: publishing that returns every failure as an
/// error, typed records, dead letters.
///
/// The trait is implemented for every [`MessageBus`] and cannot be implemented by hand.
pub trait MessageBusExt: MessageBus {
    /// Publishes a batch. A message that fails makes the call fail.
    ///
    /// # Errors
    /// The error of the first message that failed, with the counts `not_sent`, `unknown` and `batch`.
    fn send(&self, batch: &[Message]) -> impl Future<Output = Result<Vec<Delivery>>> + Send {
        async move { self.publish(batch, PublishOptions::NONE).await?.into_result() }
    }

    /// Publishes one message. To publish many messages in one call, use [`MessageBusExt::send`],
    /// which costs one round trip.
    ///
    /// # Errors
    /// The error of the message, or `Closed`.
    fn publish_one(&self, message: &Message) -> impl Future<Output = Result<Delivery>> + Send {
        async move {
            let mut deliveries = self.send(std::slice::from_ref(message)).await?;
            deliveries.pop().ok_or_else(no_outcome)
        }
    }

    /// Publishes records, keyed by their series, on `topic` or their default topic, in the format of
    /// [`super::BusInfo::encoding`].
    ///
    /// # Errors
    /// `InvalidInput` for an invalid record; the errors of [`MessageBusExt::send`].
    fn send_records<R: Record>(
        &self,
        records: &[R],
        topic: Option<&TopicName>,
    ) -> impl Future<Output = Result<Vec<Delivery>>> + Send {
        async move {
            let batch = codec::encode_records(&self.info().encoding, &Slice::new(records)?, topic)?;
            self.send(&batch).await
        }
    }

    /// Publishes the dead letters of rejected messages, and returns after the bus has acknowledged them.
    ///
    /// Call it after the store and before the commit, so that neither a record nor a dead letter is lost. After an
    /// error some dead letters may be in the topic. A retry then publishes copies, which have the same origin headers.
    ///
    /// A dead letter that the bus rejects as too large is truncated in steps, at last to its headers. If the topic
    /// rejects even those headers, the dead letter is dropped and the group continues. The origin of the message is
    /// then logged as an error, and the metric `qi_bus_dead_letters_dropped_total` counts it.
    ///
    /// # Errors
    /// As [`MessageBusExt::send`], for example `NotFound` if the dead letter topic does not exist.
    fn send_dead_letters(
        &self,
        rejected: &[RejectedMessage],
        dead_letters: &DeadLetters,
    ) -> impl Future<Output = Result<()>> + Send {
        async move {
            if rejected.is_empty() {
                return Ok(());
            }
            let limit = self.info().max_message_bytes;
            let messages: Vec<_> = rejected
                .iter()
                .map(|rejected| dead_letters.dead_letter(rejected, limit))
                .collect::<Result<_>>()?;
            let outcomes = self.publish(&messages, PublishOptions::NONE).await?.into_outcomes();
            let mut final_outcomes = Vec::with_capacity(rejected.len());
            for (rejected, mut outcome) in rejected.iter().zip(outcomes) {
                if outcome.as_ref().is_err_and(DeliveryError::is_too_large) {
                    match send_truncated(self, rejected, dead_letters).await? {
                        Some(retried) => outcome = retried,
                        None => continue,
                    }
                }
                if outcome.is_ok() {
                    count(DEAD_LETTERS, rejected);
                    tracing::warn!(
                        origin = %origin(rejected),
                        error = %dead_letter::error_text(&rejected.error),
                        "message published to its dead letter topic"
                    );
                }
                final_outcomes.push(outcome);
            }
            PublishReport::new(final_outcomes).into_result().map(drop)
        }
    }

    /// Creates every topic of a catalogue and its dead letter topic. Existing topics with other settings are not
    /// changed; the outcomes report the differences.
    ///
    /// # Errors
    /// The error of the first topic that failed. The other topics were still attempted.
    fn create_catalogue(
        &self,
        catalogue: &TopicCatalogue,
    ) -> impl Future<Output = Result<Vec<TopicOutcome>>> + Send {
        async move {
            let outcomes = self.create_topics(&catalogue.specs()?).await?;
            match outcomes.iter().find_map(|outcome| outcome.result.as_ref().err()) {
                Some(error) => Err(error.clone()),
                None => Ok(outcomes),
            }
        }
    }

    /// Waits until the brokers answer a ping.
    ///
    /// # Errors
    /// The last ping's error if no further ping fits into `timeout`, or immediately an error that is not retryable.
    /// `Timeout` if no ping was answered.
    fn wait_ready(&self, timeout: Duration) -> impl Future<Output = Result<BusPingReport>> + Send {
        crate::ready::wait_ready(timeout, || self.ping())
    }
}

impl<B: MessageBus + ?Sized> MessageBusExt for B {}

fn no_outcome() -> Error {
    Error::new(ErrorKind::Internal, "bus.report.short", "publish")
        .with_message("publish report has no outcome for the message")
}

/// Publishes a dead letter that was rejected as too large. It is first sent alone, because a broker may have rejected
/// an entire batch, then truncated to smaller and smaller sizes. Returns None if the topic rejects
/// even the smallest dead letter.
async fn send_truncated<B: MessageBus + ?Sized>(
    bus: &B,
    rejected: &RejectedMessage,
    dead_letters: &DeadLetters,
) -> Result<Option<Result<Delivery, DeliveryError>>> {
    let mut limit = bus.info().max_message_bytes;
    loop {
        let message = dead_letters.dead_letter(rejected, limit)?;
        let report = bus.publish(std::slice::from_ref(&message), PublishOptions::NONE).await?;
        match report.into_outcomes().pop().ok_or_else(no_outcome)? {
            Err(failure) if failure.is_too_large() => {
                if limit == 0 {
                    count(DEAD_LETTERS_DROPPED, rejected);
                    tracing::error!(
                        origin = %origin(rejected),
                        digest = rejected.message.payload.as_deref().map(dead_letter::digest),
                        error = %dead_letter::error_text(&rejected.error),
                        "dead letter dropped: its topic rejects the smallest size"
                    );
                    return Ok(None);
                }
                limit = limit.min(message.size()) / 2;
                if limit < dead_letter::MIN_TEXT_BYTES {
                    limit = 0;
                }
            }
            other => return Ok(Some(other)),
        }
    }
}

fn count(metric: Metric, rejected: &RejectedMessage) {
    let (topic, code) = (rejected.message.topic.to_string(), rejected.error.code().to_owned());
    metrics::counter!(metric.name, "topic" => topic, "code" => code).increment(1);
}

fn origin(rejected: &RejectedMessage) -> String {
    let message = &rejected.message;
    format!("{}/{} at {}", message.topic, message.partition, message.offset)
}
