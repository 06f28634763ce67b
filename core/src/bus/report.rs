//! What became of each message that was published.

use crate::{Error, Result, Timestamp};

/// Where a message stands now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: u64,
    /// The time that the log keeps, to the millisecond.
    pub timestamp: Option<Timestamp>,
}

/// Whether a message that was not acknowledged can be in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryState {
    /// It is not in the log.
    NotSent,
    /// It may be. Only the caller may send it again, because that may double it.
    Unknown,
}

impl DeliveryState {
    /// The stable lower-case name, as it stands in metrics: `not_sent`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a message was not acknowledged.
#[derive(Debug, Clone)]
pub struct DeliveryError {
    /// Whether it can be in the log all the same.
    pub state: DeliveryState,
    /// Why.
    pub error: Error,
}

impl DeliveryError {
    /// The error code of a message that is larger than its topic or the client allows, on every bus. The kind is
    /// `InvalidInput`.
    pub const TOO_LARGE: &str = "bus.message.size";

    /// A message that is not in the log.
    pub fn not_sent(error: Error) -> Self {
        Self { state: DeliveryState::NotSent, error }
    }

    /// Returns whether the message was refused because of its size.
    pub fn is_too_large(&self) -> bool {
        self.error.code() == Self::TOO_LARGE
    }

    /// A message that may be in the log.
    pub fn unknown(error: Error) -> Self {
        Self { state: DeliveryState::Unknown, error }
    }
}

/// An answer for every message of a batch, by index.
#[derive(Debug, Clone, Default)]
#[must_use = "messages may have failed one by one: `into_result` makes an error of that"]
pub struct PublishReport(Vec<Result<Delivery, DeliveryError>>);

impl PublishReport {
    /// The answers, in the order of the batch.
    pub fn new(outcomes: Vec<Result<Delivery, DeliveryError>>) -> Self {
        Self(outcomes)
    }

    /// A report in which every one of `len` messages is unknown: the call was cut off.
    pub fn all_unknown(len: usize, error: &Error) -> Self {
        Self((0..len).map(|_| Err(DeliveryError::unknown(error.clone()))).collect())
    }

    /// The answers, in the order of the batch.
    pub fn outcomes(&self) -> &[Result<Delivery, DeliveryError>] {
        &self.0
    }

    /// The answers, to change or keep.
    pub fn into_outcomes(self) -> Vec<Result<Delivery, DeliveryError>> {
        self.0
    }

    /// How many messages it answers for.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the batch was empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The indices of the messages in this state.
    pub fn failed(&self, state: DeliveryState) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().filter_map(move |(at, outcome)| match outcome {
            Err(failure) if failure.state == state => Some(at),
            _ => None,
        })
    }

    /// Every delivery, or the first failure with the counts of all.
    ///
    /// # Errors
    /// The error of the first message that failed, with `not_sent`, `unknown` and `batch` in its context.
    pub fn into_result(self) -> Result<Vec<Delivery>> {
        let (not_sent, unknown) =
            (self.failed(DeliveryState::NotSent).count(), self.failed(DeliveryState::Unknown).count());
        let batch = self.0.len();
        self.0
            .into_iter()
            .map(|outcome| outcome.map_err(|failure| failure.error))
            .collect::<Result<_>>()
            .map_err(|error: Error| {
                error
                    .with_context("not_sent", not_sent)
                    .with_context("unknown", unknown)
                    .with_context("batch", batch)
            })
    }
}
