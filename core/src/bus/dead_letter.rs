//! Where messages go that cannot be decoded.

use bytes::Bytes;

use super::{HeaderName, Message, Received, TopicName, header};
use crate::{Error, Result};

/// Which topic takes the dead letters: by default `<topic>.dlq` of the topic that a message came from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeadLetters(Option<TopicName>);

impl DeadLetters {
    /// All dead letters go to this one topic.
    pub fn to(topic: TopicName) -> Self {
        Self(Some(topic))
    }

    /// The topic for what came from `origin`.
    ///
    /// # Errors
    /// `InvalidInput` if the name of the origin is too long for `.dlq`.
    pub fn topic_for(&self, origin: &TopicName) -> Result<TopicName> {
        self.0.clone().map_or_else(|| TopicName::new(format!("{origin}.dlq")), Ok)
    }

    /// The dead letter of a message: its key, payload and headers as they were, and headers that say where it
    /// came from and what was wrong.
    ///
    /// # Errors
    /// `InvalidInput` if the name of the origin is too long for `.dlq`.
    pub fn letter(&self, message: &Received, error: &Error) -> Result<Message> {
        let mut letter = Message::tombstone(self.topic_for(&message.topic)?);
        letter.key.clone_from(&message.key);
        letter.payload.clone_from(&message.payload);
        letter.headers.clone_from(&message.headers);
        let mut add = |name: &str, value: String| -> Result<()> {
            letter.headers.push(HeaderName::new(name)?, Bytes::from(value));
            Ok(())
        };
        add(header::ORIGIN_TOPIC, message.topic.to_string())?;
        add(header::ORIGIN_PARTITION, message.partition.to_string())?;
        add(header::ORIGIN_OFFSET, message.offset.to_string())?;
        add(header::ERROR_CODE, error.code().to_owned())?;
        add(header::ERROR, error.report())?;
        Ok(letter)
    }
}
