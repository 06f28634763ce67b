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

/// A layer that resends messages that a cut or a time limit left in an unknown state, as a caller with delivery
/// guarantees must do. It hides the resulting duplicates. A duplicate of a message that was never in an unknown
/// state fails the check.
#[derive(Debug)]
pub(super) struct Resend {
    name: [HeaderName; 1],
}

/// The state of all sent messages by a unique number. All clients in the process share it.
#[derive(Debug, Default)]
struct Ledger {
    sent: u64,
    unknown: HashSet<u64>,
    /// The location at which each message was first received.
    found: HashMap<u64, (TopicName, u32, u64)>,
    doubles: u64,
}

static LEDGER: LazyLock<Mutex<Ledger>> = LazyLock::new(Mutex::default);

fn ledger() -> MutexGuard<'static, Ledger> {
    LEDGER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the number of messages that injected faults left in an unknown state and that were sent again, and the
/// number of their duplicates in the log. See
/// [`Wrapper::FULL_STACK_OVER_LOST_RESPONSES`](super::Wrapper::FULL_STACK_OVER_LOST_RESPONSES).
pub fn resent() -> (usize, u64) {
    let ledger = ledger();
    (ledger.unknown.len(), ledger.doubles)
}

impl Resend {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { name: [HeaderName::new("qi-sent")?] })
    }

    fn stamped(&self, batch: &[Message]) -> (Vec<u64>, Vec<Message>) {
        let mut ledger = ledger();
        let stamp = |message: &Message| {
            ledger.sent += 1;
            let number = Bytes::copy_from_slice(&ledger.sent.to_be_bytes());
            (ledger.sent, message.clone().with_header(self.name[0].clone(), number))
        };
        batch.iter().map(stamp).unzip()
    }

    /// Removes the number headers, and the messages that were first received at another location.
    fn hide_doubles(&self, batch: &mut Batch) {
        let mut ledger = ledger();
        batch.messages_mut().retain_mut(|message| {
            let stamp = message.headers.split_off(&self.name);
            let Some(number) = stamp.get(self.name[0].as_str()).and_then(|n| n[..].try_into().ok()) else {
                return true;
            };
            let number = u64::from_be_bytes(number);
            let place = (message.topic.clone(), message.partition, message.offset);
            let first = ledger.found.entry(number).or_insert_with(|| place.clone()).clone();
            if first == place {
                return true;
            }
            assert!(ledger.unknown.contains(&number), "{place:?} doubles {first:?}, which was never unknown");
            ledger.doubles += 1;
            false
        });
    }
}

/// Returns whether an injected fault left the message in an unknown state. Other errors of the bus are
/// left to the check.
fn is_ours(outcome: &Result<Delivery, DeliveryError>) -> bool {
    let Err(DeliveryError { state: DeliveryState::Unknown, error }) = outcome else { return false };
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
            let (numbers, batch) = self.stamped(batch);
            let mut outcomes = bus.publish(&batch, options).await?.into_outcomes();
            loop {
                let again: Vec<usize> = (0..batch.len()).filter(|at| is_ours(&outcomes[*at])).collect();
                if again.is_empty() {
                    return Ok(PublishReport::new(outcomes));
                }
                ledger().unknown.extend(again.iter().map(|at| numbers[*at]));
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
                self.hide_doubles(&mut batch);
                if received == 0 || !batch.is_empty() || !batch.events().is_empty() {
                    return Ok(batch);
                }
            }
        })
    }
}
