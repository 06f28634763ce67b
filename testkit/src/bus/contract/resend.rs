//! A publisher that resends messages in an unknown state, and a reader that hides their duplicates.

use std::collections::{HashMap, HashSet};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use qi_core::Result;
use qi_core::bus::{
    Batch, Delivery, DeliveryError, DeliveryState, HeaderName, Message, MessageBus, PublishOptions,
    PublishReport, Subscription, TopicName,
};
use qi_core::layer::Layer;
use tokio::time::Instant;

/// A layer that resends messages that a lost response or a time limit left in an unknown state, as a caller with
/// delivery guarantees must do. It hides the resulting duplicates. A duplicate of a message that was never in an
/// unknown state fails the check.
#[derive(Debug)]
pub(super) struct Resend {
    name: [HeaderName; 1],
}

/// The state of all sent messages by a unique number. All clients in the process share it.
#[derive(Debug, Default)]
struct SentMessages {
    sent: u64,
    unknown: HashSet<u64>,
    /// The location at which each message was first received.
    first_locations: HashMap<u64, (TopicName, u32, u64)>,
    duplicates: u64,
}

static SENT: LazyLock<Mutex<SentMessages>> = LazyLock::new(Mutex::default);

fn sent_messages() -> MutexGuard<'static, SentMessages> {
    SENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the number of messages that injected faults left in an unknown state and that were sent again, and the
/// number of their duplicates in the log. See
/// [`Wrapper::FULL_STACK_OVER_LOST_RESPONSES`](super::Wrapper::FULL_STACK_OVER_LOST_RESPONSES).
pub fn resent() -> (usize, u64) {
    let sent_messages = sent_messages();
    (sent_messages.unknown.len(), sent_messages.duplicates)
}

impl Resend {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { name: [HeaderName::new("qi-sent")?] })
    }

    fn with_numbers(&self, batch: &[Message]) -> (Vec<u64>, Vec<Message>) {
        let mut sent_messages = sent_messages();
        let stamp = |message: &Message| {
            sent_messages.sent += 1;
            let number = Bytes::copy_from_slice(&sent_messages.sent.to_be_bytes());
            (sent_messages.sent, message.clone().with_header(self.name[0].clone(), number))
        };
        batch.iter().map(stamp).unzip()
    }

    /// Removes the number headers, and the messages that were first received at another location.
    fn hide_duplicates(&self, batch: &mut Batch) {
        let mut sent_messages = sent_messages();
        batch.messages_mut().retain_mut(|message| {
            let stamp = message.headers.split_off(&self.name);
            let Some(number) = stamp.get(self.name[0].as_str()).and_then(|n| n[..].try_into().ok()) else {
                return true;
            };
            let number = u64::from_be_bytes(number);
            let location = (message.topic.clone(), message.partition, message.offset);
            let first =
                sent_messages.first_locations.entry(number).or_insert_with(|| location.clone()).clone();
            if first == location {
                return true;
            }
            assert!(
                sent_messages.unknown.contains(&number),
                "the message at {location:?} duplicates {first:?}, whose state was never unknown"
            );
            sent_messages.duplicates += 1;
            false
        });
    }
}

/// Returns whether an injected fault left the message in an unknown state. Other errors of the bus are
/// left to the check.
fn is_injected_unknown(outcome: &Result<Delivery, DeliveryError>) -> bool {
    let Err(DeliveryError { state: DeliveryState::Unknown, error, .. }) = outcome else { return false };
    matches!(error.code(), "chaos.cut" | "layer.timeout")
}

impl Layer for Resend {
    fn name(&self) -> &'static str {
        "Resend"
    }

    fn publish<'a>(
        &'a self,
        bus: &'a dyn MessageBus,
        batch: &'a [Message],
        options: &'a PublishOptions,
    ) -> BoxFuture<'a, Result<PublishReport>> {
        Box::pin(async move {
            let (numbers, batch) = self.with_numbers(batch);
            let mut outcomes = bus.publish(&batch, options).await?.into_outcomes();
            loop {
                let again: Vec<usize> =
                    (0..batch.len()).filter(|at| is_injected_unknown(&outcomes[*at])).collect();
                if again.is_empty() {
                    return Ok(PublishReport::new(outcomes));
                }
                sent_messages().unknown.extend(again.iter().map(|at| numbers[*at]));
                let part: Vec<_> = again.iter().map(|at| batch[*at].clone()).collect();
                let report = bus.publish(&part, options).await?.into_outcomes();
                for (at, outcome) in again.into_iter().zip(report) {
                    outcomes[at] = outcome;
                }
            }
        })
    }

    fn recv<'a>(
        &'a self,
        subscription: &'a mut dyn Subscription,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Batch>> {
        Box::pin(async move {
            let until = Instant::now() + wait;
            loop {
                let left = until.saturating_duration_since(Instant::now());
                let mut batch = subscription.recv(max, left).await?;
                let received = batch.len();
                self.hide_duplicates(&mut batch);
                if received == 0 || !batch.is_empty() || !batch.events().is_empty() {
                    return Ok(batch);
                }
            }
        })
    }
}
