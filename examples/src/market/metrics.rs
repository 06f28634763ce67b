//! Publishing metrics, measured at the acknowledgements of the bus.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use qi_core::bus::{Delivery, DeliveryError, DeliveryState};
use qi_core::{Error, Result};
use tokio::time::Instant;

/// The metrics of a [`super::MarketWriter`] since its creation. Only messages with a result of the bus count. Buffered
/// messages have neither succeeded nor failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PublishingMetrics {
    /// The number of acknowledged messages.
    pub delivered: u64,
    /// The number of rejected messages, which are not in the log.
    pub not_sent: u64,
    /// The number of messages with an unknown outcome, which may be in the log.
    pub unknown: u64,
    /// The sum of the latencies of all delivered messages, in microseconds.
    latency_us: u64,
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 53 bits of its counts")]
impl PublishingMetrics {
    /// Returns the number of messages with a result of the bus.
    pub fn total_messages(&self) -> u64 {
        self.delivered + self.not_sent + self.unknown
    }

    /// Returns the share of delivered messages, from 0 to 1. None before the first result.
    pub fn success_rate(&self) -> Option<f64> {
        let total = self.total_messages();
        (total > 0).then(|| self.delivered as f64 / total as f64)
    }

    /// Returns the share of messages that are not sent or unknown, from 0 to 1. None before the first result.
    pub fn error_rate(&self) -> Option<f64> {
        let total = self.total_messages();
        (total > 0).then(|| (self.not_sent + self.unknown) as f64 / total as f64)
    }

    /// Returns the mean time from the call of `publish_*` to the acknowledgement, with the waits for room and for a
    /// full batch. None before the first delivery.
    pub fn average_latency(&self) -> Option<Duration> {
        self.latency_us.checked_div(self.delivered).map(Duration::from_micros)
    }
}

/// The counters, under one lock, so that a snapshot is consistent.
#[derive(Debug, Default)]
pub(super) struct Meter(Mutex<PublishingMetrics>);

impl Meter {
    pub(super) fn read(&self) -> PublishingMetrics {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the result of a message that was added at `since`, and returns the result.
    pub(super) fn record(
        &self,
        since: Instant,
        outcome: Result<Delivery, DeliveryError>,
    ) -> Result<Delivery> {
        let mut metrics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(delivery) => {
                let waited = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
                metrics.delivered += 1;
                metrics.latency_us = metrics.latency_us.saturating_add(waited);
                Ok(delivery)
            }
            Err(DeliveryError { state: DeliveryState::NotSent, error, .. }) => {
                metrics.not_sent += 1;
                Err(error.with_context("delivery", "not_sent"))
            }
            Err(DeliveryError { error, .. }) => {
                metrics.unknown += 1;
                Err(error.with_context("delivery", "unknown"))
            }
        }
    }
}

/// The results of a batch, by index. The context of a failure has the key `delivery` with the value `not_sent` or
/// `unknown`.
#[derive(Debug)]
#[must_use = "records may have failed one by one: `into_result` makes an error of that"]
pub struct BatchReport(pub(super) Vec<Result<Delivery>>);

impl BatchReport {
    /// Returns the results, in the order of the batch.
    pub fn outcomes(&self) -> &[Result<Delivery>] {
        &self.0
    }

    /// Returns the number of delivered records.
    pub fn delivered(&self) -> usize {
        self.0.iter().filter(|outcome| outcome.is_ok()).count()
    }

    /// Returns the failures with their indexes.
    pub fn failures(&self) -> impl Iterator<Item = (usize, &Error)> {
        self.0.iter().enumerate().filter_map(|(at, outcome)| Some((at, outcome.as_ref().err()?)))
    }

    /// Returns the deliveries if all records were delivered.
    ///
    /// # Errors
    /// The first failure, with its `index` and the number of failures (`failed`) in its context.
    pub fn into_result(self) -> Result<Vec<Delivery>> {
        let failed = self.failures().count();
        let deliveries = self.0.into_iter().enumerate().map(|(index, outcome)| {
            outcome.map_err(|error| error.with_context("index", index).with_context("failed", failed))
        });
        deliveries.collect()
    }
}
