//! A wrapper that remembers what was called and what was published, for a test to look at.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use qi_core::bus::{Batch, DeliveryState, Message, MessageBus, PublishOptions, PublishReport, Subscription};
use qi_core::layer::{Call, Layer, Layered};
use qi_core::{ErrorKind, Operation, Result};
use tokio::time::Instant;

/// A store that remembers its calls.
pub type RecordingStore<S> = Layered<S, Recording>;
/// A bus that remembers its calls, those of its subscriptions, and what was published.
pub type RecordingBus<B> = Layered<B, Recording>;

/// One call that has ended. A call whose future was dropped is not among them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordedCall {
    /// What was called.
    pub operation: Operation,
    /// The kind of its error, if it failed.
    pub failed: Option<ErrorKind>,
    /// How long it took, on tokio's clock.
    pub took: Duration,
}

/// What became of a published message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was acknowledged.
    Delivered,
    /// It failed in this state.
    Failed(DeliveryState),
}

/// Remembers the newest calls and messages, up to a bound. A clone shares everything.
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
    forgotten: u64,
}

impl Recording {
    /// Remembers the newest `capacity` calls and as many messages.
    pub fn new(capacity: usize) -> Self {
        let (calls, published) = (VecDeque::new(), VecDeque::new());
        Self(Arc::new(Mutex::new(State { capacity: capacity.max(1), calls, published, forgotten: 0 })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The calls that have ended, oldest first.
    pub fn calls(&self) -> Vec<RecordedCall> {
        self.state().calls.iter().cloned().collect()
    }

    /// How many of the remembered calls were of this operation.
    pub fn count(&self, operation: Operation) -> usize {
        self.state().calls.iter().filter(|call| call.operation == operation).count()
    }

    /// The messages that were published, in order, and what became of them.
    pub fn published(&self) -> Vec<(Message, Outcome)> {
        self.state().published.iter().cloned().collect()
    }

    /// How many calls and messages were forgotten because there were more than the capacity.
    pub fn forgotten(&self) -> u64 {
        self.state().forgotten
    }

    fn note<T>(&self, operation: Operation, since: Instant, result: &Result<T>) {
        let failed = result.as_ref().err().map(qi_core::Error::kind);
        let state = &mut *self.state();
        state.calls.push_back(RecordedCall { operation, failed, took: since.elapsed() });
        if state.calls.len() > state.capacity {
            state.calls.pop_front();
            state.forgotten += 1;
        }
    }

    fn note_messages(&self, batch: &[Message], report: &PublishReport) {
        let state = &mut *self.state();
        for (message, outcome) in batch.iter().zip(report.outcomes()) {
            let outcome = match outcome {
                Ok(_) => Outcome::Delivered,
                Err(failure) => Outcome::Failed(failure.state),
            };
            state.published.push_back((message.clone(), outcome));
            if state.published.len() > state.capacity {
                state.published.pop_front();
                state.forgotten += 1;
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
            self.note(call.operation, since, &result);
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
            self.note(Operation::Publish, since, &result);
            if let Ok(report) = &result {
                self.note_messages(batch, report);
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
            self.note(Operation::Recv, since, &result);
            result
        })
    }
}
