//! A subscription that is read message by message.

use std::collections::VecDeque;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};

use super::{Committed, Offsets, ReceivedMessage, Subscription, SubscriptionEvent};
use crate::Result;

/// A subscription that is read one message at a time.
///
/// Fetched messages wait here until they are returned, so dropping a future or the stream loses nothing.
/// [`Messages::commit`] commits the returned messages.
#[derive(Debug)]
pub struct Messages {
    subscription: Box<dyn Subscription>,
    batch: usize,
    ready: VecDeque<ReceivedMessage>,
    passed: Offsets,
    /// The positions of the batch whose messages are being returned.
    behind: Offsets,
    events: Vec<SubscriptionEvent>,
}

impl Messages {
    /// Creates a reader of `subscription` that fetches up to `batch` messages at a time.
    pub fn new(subscription: Box<dyn Subscription>, batch: usize) -> Self {
        let (ready, passed, behind) = (VecDeque::new(), Offsets::new(), Offsets::new());
        Self { subscription, batch: batch.max(1), ready, passed, behind, events: Vec::new() }
    }

    /// Returns the next message, or None if none arrives within `wait`.
    ///
    /// # Errors
    /// As [`Subscription::recv`].
    pub async fn next(&mut self, wait: Duration) -> Result<Option<ReceivedMessage>> {
        if self.ready.is_empty() {
            let batch = self.subscription.recv(self.batch, wait).await?;
            self.events.extend_from_slice(batch.events());
            self.behind = batch.offsets().clone();
            self.ready.extend(batch.into_messages());
        }
        let message = self.ready.pop_front();
        if let Some(message) = &message {
            self.passed.mark_processed(message);
        }
        if self.ready.is_empty() {
            // The positions include offsets without a message after the last message.
            self.passed.merge(&std::mem::take(&mut self.behind));
        }
        Ok(message)
    }

    /// Returns a stream of all further messages. The stream ends only with an error of [`Subscription::recv`]. After
    /// that the caller may create another stream.
    pub fn stream(&mut self) -> BoxStream<'_, Result<ReceivedMessage>> {
        stream::try_unfold(self, |messages| async move {
            loop {
                if let Some(message) = messages.next(Duration::from_secs(1)).await? {
                    return Ok(Some((message, messages)));
                }
            }
        })
        .boxed()
    }

    /// Commits every returned message that is not committed yet.
    ///
    /// # Errors
    /// As [`Subscription::commit`]. The messages then stay uncommitted, and a later call commits them.
    pub async fn commit(&mut self) -> Result<Committed> {
        let committed = self.subscription.commit(&self.passed).await?;
        self.passed = Offsets::new();
        Ok(committed)
    }

    /// Returns the events since the previous call.
    pub fn take_events(&mut self) -> Vec<SubscriptionEvent> {
        std::mem::take(&mut self.events)
    }

    /// Leaves the group. Messages that were not returned or not committed are redelivered to the next reader.
    ///
    /// # Errors
    /// As [`Subscription::close`].
    pub async fn close(mut self) -> Result<()> {
        self.subscription.close().await
    }
}
