//! The outcomes of published messages.

use crate::{Error, Result, Timestamp};

/// The position of an acknowledged message in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivery {
    /// The partition of the message.
    pub partition: u32,
    /// The offset in the partition.
    pub offset: u64,
    /// The timestamp that the log keeps, to the millisecond.
    pub timestamp: Option<Timestamp>,
}

impl Delivery {
    /// Creates the position of a message, for authors of bus adapters.
    pub fn new(partition: u32, offset: u64, timestamp: Option<Timestamp>) -> Self {
        Self { partition, offset, timestamp }
    }
}

/// The delivery state of a message that was not acknowledged. Programs treat states of later versions like `Unknown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeliveryState {
    /// The message is not in the log.
    NotSent,
    /// The message may be in the log. Only the caller may send it again, because that may duplicate the message.
    Unknown,
}

impl DeliveryState {
    /// Returns the stable lower-case name that metrics use: `not_sent`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::Unknown => "unknown",
        }
    }
}

/// The failure of a message that was not acknowledged.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeliveryError {
    /// The delivery state: not in the log, or possibly in the log.
    pub state: DeliveryState,
    /// The reason for the failure.
    pub error: Error,
}

impl DeliveryError {
    /// The error code of a message that is larger than its topic or the client allows, on every bus. The kind is
    /// `InvalidInput`.
    pub const TOO_LARGE: &str = "bus.message.size";

    /// Creates the failure of a message in this state.
    pub fn new(state: DeliveryState, error: Error) -> Self {
        Self { state, error }
    }

    /// Creates the failure of a message that is not in the log.
    pub fn not_sent(error: Error) -> Self {
        Self::new(DeliveryState::NotSent, error)
    }

    /// Returns whether the message was rejected because of its size.
    pub fn is_too_large(&self) -> bool {
        self.error.code() == Self::TOO_LARGE
    }

    /// Creates the failure of a message that may be in the log.
    pub fn unknown(error: Error) -> Self {
        Self::new(DeliveryState::Unknown, error)
    }
}

/// The outcome of every message of a batch, by index.
#[derive(Debug, Clone, Default)]
#[must_use = "single messages may have failed; `into_result` returns the first failure"]
pub struct PublishReport(Vec<Result<Delivery, DeliveryError>>);

impl PublishReport {
    /// Creates a report from the outcomes, in the order of the batch.
    pub fn new(outcomes: Vec<Result<Delivery, DeliveryError>>) -> Self {
        Self(outcomes)
    }

    /// Creates a report in which each of `len` messages is unknown, because the call was aborted.
    pub fn all_unknown(len: usize, error: &Error) -> Self {
        Self((0..len).map(|_| Err(DeliveryError::unknown(error.clone()))).collect())
    }

    /// Returns the outcomes, in the order of the batch.
    pub fn outcomes(&self) -> &[Result<Delivery, DeliveryError>] {
        &self.0
    }

    /// Returns the outcomes and consumes the report.
    pub fn into_outcomes(self) -> Vec<Result<Delivery, DeliveryError>> {
        self.0
    }

    /// Returns the number of messages in the report.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if the batch was empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the indices of the failed messages in this state.
    pub fn failed(&self, state: DeliveryState) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().filter_map(move |(at, outcome)| match outcome {
            Err(failure) if failure.state == state => Some(at),
            _ => None,
        })
    }

    /// Returns every delivery, or the first failure with the counts of all failures.
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
