//! What became of what was published: measured at the bus's answers, never assumed.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use qi_core::bus::{Delivery, DeliveryError, DeliveryState};
use qi_core::{Error, Result};
use tokio::time::Instant;

/// Figures of a [`super::MarketWriter`] since it was made. Only messages that the bus has answered for count: what
/// is still held has neither succeeded nor failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PublishingMetrics {
    /// Acknowledged.
    pub delivered: u64,
    /// Refused: they are not in the log.
    pub not_sent: u64,
    /// Cut off: they may be in the log.
    pub unknown: u64,
    /// Over all that were delivered, in microseconds.
    latency_us: u64,
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 53 bits of its counts")]
impl PublishingMetrics {
    /// How many messages the bus has answered for.
    pub fn total_messages(&self) -> u64 {
        self.delivered + self.not_sent + self.unknown
    }

    /// The share of messages that were delivered, 0 to 1; None before the first answer.
    pub fn success_rate(&self) -> Option<f64> {
        let total = self.total_messages();
        (total > 0).then(|| self.delivered as f64 / total as f64)
    }

    /// The share of messages that were not, or perhaps not, delivered; None before the first answer.
    pub fn error_rate(&self) -> Option<f64> {
        let total = self.total_messages();
        (total > 0).then(|| (self.not_sent + self.unknown) as f64 / total as f64)
    }

    /// From the call of `publish_*` to the bus's acknowledgement, the wait for room and for a full batch included;
    /// None before the first delivery.
    pub fn average_latency(&self) -> Option<Duration> {
        self.latency_us.checked_div(self.delivered).map(Duration::from_micros)
    }
}

/// Where the figures are counted. One lock, so that what is read belongs together.
#[derive(Debug, Default)]
pub(super) struct Meter(Mutex<PublishingMetrics>);

impl Meter {
    pub(super) fn read(&self) -> PublishingMetrics {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the bus's answer for a message that was handed in at `since`, and hands the answer on.
    pub(super) fn answered(
        &self,
        since: Instant,
        answer: Result<Delivery, DeliveryError>,
    ) -> Result<Delivery> {
        let mut metrics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(delivery) => {
                let waited = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
                metrics.delivered += 1;
                metrics.latency_us = metrics.latency_us.saturating_add(waited);
                Ok(delivery)
            }
            Err(DeliveryError { state: DeliveryState::NotSent, error }) => {
                metrics.not_sent += 1;
                Err(error.with_context("delivery", "not_sent"))
            }
            Err(DeliveryError { state: DeliveryState::Unknown, error }) => {
                metrics.unknown += 1;
                Err(error.with_context("delivery", "unknown"))
            }
        }
    }
}

/// The answers for a batch, by index. A failed one says in its context, under `delivery`, whether it is `not_sent`
/// or `unknown`.
#[derive(Debug)]
#[must_use = "records may have failed one by one: `into_result` makes an error of that"]
pub struct BatchReport(pub(super) Vec<Result<Delivery>>);

impl BatchReport {
    /// The answers, in the order of the batch.
    pub fn outcomes(&self) -> &[Result<Delivery>] {
        &self.0
    }

    /// How many records were delivered.
    pub fn delivered(&self) -> usize {
        self.0.iter().filter(|outcome| outcome.is_ok()).count()
    }

    /// The records that failed, each with its index.
    pub fn failures(&self) -> impl Iterator<Item = (usize, &Error)> {
        self.0.iter().enumerate().filter_map(|(at, outcome)| Some((at, outcome.as_ref().err()?)))
    }

    /// Every delivery.
    ///
    /// # Errors
    /// The first failure, with its `index` and the number that `failed` in its context.
    pub fn into_result(self) -> Result<Vec<Delivery>> {
        let failed = self.failures().count();
        let deliveries = self.0.into_iter().enumerate().map(|(index, outcome)| {
            outcome.map_err(|error| error.with_context("index", index).with_context("failed", failed))
        });
        deliveries.collect()
    }
}
