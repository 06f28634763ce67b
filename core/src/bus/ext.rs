//! Conveniences for those who call a bus, on every bus.

use std::time::Duration;

use super::{
    BusStatus, DeadLetters, Delivery, DeliveryError, Message, MessageBus, PublishOptions, PublishReport,
    RejectedMessage, TopicCatalogue, TopicName, TopicOutcome, codec, dead_letter,
};
use crate::record::{Record, Slice};
use crate::telemetry::{DEAD_LETTERS, DEAD_LETTERS_DROPPED, Metric};
use crate::{Error, ErrorKind, Result};

/// What is built from the port: sending that cannot fail unseen, typed records, dead letters.
///
/// It is implemented for every [`MessageBus`] and cannot be implemented by hand.
pub trait MessageBusExt: MessageBus {
    /// Publishes a batch; a message that failed is an error.
    ///
    /// # Errors
    /// The error of the first message that failed, with the counts `not_sent`, `unknown` and `batch`.
    fn send(&self, batch: &[Message]) -> impl Future<Output = Result<Vec<Delivery>>> + Send {
        async move { self.publish(batch, PublishOptions::NONE).await?.into_result() }
    }

    /// Publishes one message. For many at once [`MessageBusExt::send`] costs one round trip.
    ///
    /// # Errors
    /// The error of the message.
    fn publish_one(&self, message: &Message) -> impl Future<Output = Result<Delivery>> + Send {
        async move {
            let mut deliveries = self.send(std::slice::from_ref(message)).await?;
            deliveries.pop().ok_or_else(no_answer)
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
    /// error some letters may be in the topic; the repetition then publishes copies, which have the same origin
    /// headers.
    ///
    /// A letter that the bus refuses as too large is truncated in steps, at last to its headers. A topic that
    /// refuses this, too, does not stop the group: the origin of the message is logged as an error, and the metric
    /// `qi_bus_dead_letters_dropped_total` counts it.
    ///
    /// # Errors
    /// As [`MessageBusExt::send`], for example `NotFound` if the dead letter topic does not exist.
    fn send_dead_letters(
        &self,
        rejected: &[RejectedMessage],
        dead: &DeadLetters,
    ) -> impl Future<Output = Result<()>> + Send {
        async move {
            if rejected.is_empty() {
                return Ok(());
            }
            let limit = self.info().max_message_bytes;
            let letters: Vec<_> =
                rejected.iter().map(|rejected| dead.letter(rejected, limit)).collect::<Result<_>>()?;
            let outcomes = self.publish(&letters, PublishOptions::NONE).await?.into_outcomes();
            let mut answers = Vec::with_capacity(rejected.len());
            for (rejected, mut outcome) in rejected.iter().zip(outcomes) {
                if outcome.as_ref().is_err_and(DeliveryError::is_too_large) {
                    match send_truncated(self, rejected, dead).await? {
                        Some(answer) => outcome = answer,
                        None => continue,
                    }
                }
                if outcome.is_ok() {
                    count(DEAD_LETTERS, rejected);
                    tracing::warn!(
                        origin = %origin(rejected),
                        error = %dead_letter::error_text(&rejected.error),
                        "message sent to the dead letters"
                    );
                }
                answers.push(outcome);
            }
            PublishReport::new(answers).into_result().map(drop)
        }
    }

    /// Creates every topic of a catalogue and its dead letter topic. Topics that exist with other settings are
    /// left alone and reported.
    ///
    /// # Errors
    /// The first topic's error; the others were tried all the same.
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
    /// The last ping's error once `timeout` has passed, or at once if it says that trying again cannot help.
    fn wait_ready(&self, timeout: Duration) -> impl Future<Output = Result<BusStatus>> + Send {
        crate::ready::wait_ready(timeout, || self.ping())
    }
}

impl<B: MessageBus + ?Sized> MessageBusExt for B {}

fn no_answer() -> Error {
    Error::new(ErrorKind::Internal, "bus.report.short", "publish")
        .with_message("the report answers for no message")
}

/// Publishes a letter that was refused as too large: first alone, because a broker may have refused a batch of
/// letters, then in smaller and smaller parts. None: the topic refuses the smallest letter.
async fn send_truncated<B: MessageBus + ?Sized>(
    bus: &B,
    rejected: &RejectedMessage,
    dead: &DeadLetters,
) -> Result<Option<Result<Delivery, DeliveryError>>> {
    let mut limit = bus.info().max_message_bytes;
    loop {
        let letter = dead.letter(rejected, limit)?;
        let report = bus.publish(std::slice::from_ref(&letter), PublishOptions::NONE).await?;
        match report.into_outcomes().pop().ok_or_else(no_answer)? {
            Err(failure) if failure.is_too_large() => {
                if limit == 0 {
                    count(DEAD_LETTERS_DROPPED, rejected);
                    tracing::error!(
                        origin = %origin(rejected),
                        digest = rejected.message.payload.as_deref().map(dead_letter::digest),
                        error = %dead_letter::error_text(&rejected.error),
                        "dead letter dropped: its topic refuses the smallest letter as too large"
                    );
                    return Ok(None);
                }
                limit = limit.min(letter.size()) / 2;
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
