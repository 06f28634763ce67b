//! Conveniences for those who call a bus, on every bus.

use std::time::Duration;

use super::{
    Batch, BusStatus, DeadLetters, Delivery, Json, Message, MessageBus, Payload, PublishOptions,
    TopicCatalogue, TopicName, TopicOutcome, codec,
};
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
            deliveries.pop().ok_or_else(|| {
                Error::new(ErrorKind::Internal, "bus.report.short", "publish_one")
                    .with_message("the report answers for no message")
            })
        }
    }

    /// Publishes records as JSON, keyed, on `topic` or their default topic.
    ///
    /// # Errors
    /// As [`MessageBusExt::send`].
    fn send_records<T: Payload>(
        &self,
        records: &[T],
        topic: Option<&TopicName>,
    ) -> impl Future<Output = Result<Vec<Delivery>>> + Send {
        async move {
            let batch: Vec<_> =
                records.iter().map(|r| codec::encode_message::<Json, T>(r, topic)).collect::<Result<_>>()?;
            self.send(&batch).await
        }
    }

    /// The records of a batch. What cannot be decoded goes to the dead letters in one publish, and this returns
    /// only when they are there, so that committing the batch afterwards loses nothing.
    ///
    /// # Errors
    /// As [`MessageBusExt::send`], if the dead letters could not be published.
    fn decode<T: Payload>(
        &self,
        batch: &Batch,
        dead: &DeadLetters,
    ) -> impl Future<Output = Result<Vec<T>>> + Send {
        async move {
            let (mut records, mut letters) = (Vec::with_capacity(batch.len()), Vec::new());
            for message in batch {
                match codec::decode_message::<Json, T>(message) {
                    Ok(record) => records.push(record),
                    Err(error) => {
                        tracing::warn!(error = %error.report(), "message goes to the dead letters");
                        letters.push(dead.letter(message, &error)?);
                    }
                }
            }
            if !letters.is_empty() {
                self.send(&letters).await?;
            }
            Ok(records)
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
