//! A subscription that is read message by message.

use std::collections::VecDeque;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};

use super::{Committed, Notice, Positions, Received, Subscription};
use crate::Result;

/// A subscription that is read one message at a time.
///
/// Fetched messages wait here until they are returned, so dropping a future or the stream loses nothing.
/// [`Messages::commit`] commits the returned messages.
#[derive(Debug)]
pub struct Messages {
    subscription: Box<dyn Subscription>,
    batch: usize,
    ready: VecDeque<Received>,
    passed: Positions,
    /// The positions of the batch whose messages are being returned.
    behind: Positions,
    notices: Vec<Notice>,
}

impl Messages {
    /// Creates a reader of `subscription` that fetches up to `batch` messages at a time.
    pub fn new(subscription: Box<dyn Subscription>, batch: usize) -> Self {
        let (ready, passed, behind) = (VecDeque::new(), Positions::new(), Positions::new());
        Self { subscription, batch: batch.max(1), ready, passed, behind, notices: Vec::new() }
    }

    /// Returns the next message, or None if none arrives within `wait`.
    ///
    /// # Errors
    /// As [`Subscription::recv`].
    pub async fn next(&mut self, wait: Duration) -> Result<Option<Received>> {
        if self.ready.is_empty() {
            let batch = self.subscription.recv(self.batch, wait).await?;
            self.notices.extend_from_slice(batch.notices());
            self.behind = batch.positions().clone();
            self.ready.extend(batch.into_messages());
        }
        let message = self.ready.pop_front();
        if let Some(message) = &message {
            self.passed.pass(message);
        }
        if self.ready.is_empty() {
            // The positions include offsets without a message after the last message.
            self.passed.advance(&std::mem::take(&mut self.behind));
        }
        Ok(message)
    }

    /// Returns a stream of all further messages. The stream ends only with an error of [`Subscription::recv`]. After
    /// that the caller may create another stream.
    pub fn stream(&mut self) -> BoxStream<'_, Result<Received>> {
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
        self.passed = Positions::new();
        Ok(committed)
    }

    /// Returns the events since the previous call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Leaves the group. Messages that were not returned or not committed are redelivered to the next reader.
    ///
    /// # Errors
    /// As [`Subscription::close`].
    pub async fn close(mut self) -> Result<()> {
        self.subscription.close().await
    }
}
