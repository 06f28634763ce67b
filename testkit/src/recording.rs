//! A layer that records calls and published messages for a test.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use qi_core::bus::{Batch, DeliveryState, Message, MessageBus, PublishOptions, PublishReport, Subscription};
use qi_core::layer::{Call, Layer, Layered};
use qi_core::{ErrorKind, Operation, Result};
use tokio::time::Instant;

/// A store that records its calls.
pub type RecordingStore<S> = Layered<S, Recording>;
/// A bus that records its calls, the calls of its subscriptions, and the published messages.
pub type RecordingBus<B> = Layered<B, Recording>;

/// A call that has ended. A call whose future was dropped is not recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordedCall {
    /// The operation of the call.
    pub operation: Operation,
    /// The kind of the error, if the call failed.
    pub failed: Option<ErrorKind>,
    /// The duration of the call on tokio's clock.
    pub duration: Duration,
}

/// The result of a published message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The broker acknowledged the message.
    Delivered,
    /// The delivery failed in this state.
    Failed(DeliveryState),
}

/// A layer that records the newest calls and messages, up to a capacity. A clone shares its state.
///
/// ```
/// # use qi_core::{Operation, PriceStore, Result};
/// # use qi_core::layer::Layered;
/// # use qi_testkit::recording::Recording;
/// # async fn example(store: impl PriceStore) -> Result<()> {
/// let recording = Recording::new(1_000);
/// let store = Layered::new(store, recording.clone());
/// store.ensure_schema().await?;
/// assert_eq!(recording.count(Operation::EnsureSchema), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Recording(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    capacity: usize,
    calls: VecDeque<RecordedCall>,
    published: VecDeque<(Message, Outcome)>,
    discarded: u64,
}

impl Recording {
    /// Creates a layer that keeps the newest `capacity` calls and the same number of messages.
    pub fn new(capacity: usize) -> Self {
        let (calls, published) = (VecDeque::new(), VecDeque::new());
        Self(Arc::new(Mutex::new(State { capacity: capacity.max(1), calls, published, discarded: 0 })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the calls that have ended, oldest first.
    pub fn calls(&self) -> Vec<RecordedCall> {
        self.state().calls.iter().cloned().collect()
    }

    /// Returns the number of recorded calls of an operation.
    pub fn count(&self, operation: Operation) -> usize {
        self.state().calls.iter().filter(|call| call.operation == operation).count()
    }

    /// Returns the published messages in order, with their results.
    pub fn published(&self) -> Vec<(Message, Outcome)> {
        self.state().published.iter().cloned().collect()
    }

    /// Returns the number of calls and messages that were discarded at the capacity.
    pub fn discarded(&self) -> u64 {
        self.state().discarded
    }

    fn record_call<T>(&self, operation: Operation, since: Instant, result: &Result<T>) {
        let failed = result.as_ref().err().map(qi_core::Error::kind);
        let state = &mut *self.state();
        state.calls.push_back(RecordedCall { operation, failed, duration: since.elapsed() });
        if state.calls.len() > state.capacity {
            state.calls.pop_front();
            state.discarded += 1;
        }
    }

    fn record_messages(&self, batch: &[Message], report: &PublishReport) {
        let state = &mut *self.state();
        for (message, outcome) in batch.iter().zip(report.outcomes()) {
            let outcome = match outcome {
                Ok(_) => Outcome::Delivered,
                Err(failure) => Outcome::Failed(failure.state),
            };
            state.published.push_back((message.clone(), outcome));
            if state.published.len() > state.capacity {
                state.published.pop_front();
                state.discarded += 1;
            }
        }
    }
}

impl Layer for Recording {
    fn name(&self) -> &'static str {
        "Recording"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move {
            let since = Instant::now();
            let result = future.await;
            self.record_call(call.operation, since, &result);
            result
        })
    }

    fn publish<'a>(
        &'a self,
        bus: &'a dyn MessageBus,
        batch: &'a [Message],
        options: &'a PublishOptions,
    ) -> BoxFuture<'a, Result<PublishReport>> {
        Box::pin(async move {
            let since = Instant::now();
            let result = bus.publish(batch, options).await;
            self.record_call(Operation::Publish, since, &result);
            if let Ok(report) = &result {
                self.record_messages(batch, report);
            }
            result
        })
    }

    fn recv<'a>(
        &'a self,
        subscription: &'a mut dyn Subscription,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Batch>> {
        Box::pin(async move {
            let since = Instant::now();
            let result = subscription.recv(max, wait).await;
            self.record_call(Operation::Recv, since, &result);
            result
        })
    }
}
