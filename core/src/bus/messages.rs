//! Single messages, for those whose work is one at a time.

use std::collections::VecDeque;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};

use super::{Committed, Notice, Positions, Received, Subscription};
use crate::Result;

/// A subscription that is read one message at a time. What was fetched and not handed out waits here, so that
/// dropping a future or the stream loses nothing; [`Messages::commit`] commits what was handed out.
#[derive(Debug)]
pub struct Messages {
    subscription: Box<dyn Subscription>,
    batch: usize,
    ready: VecDeque<Received>,
    passed: Positions,
    /// The positions of the batch that is being handed out.
    behind: Positions,
    notices: Vec<Notice>,
}

impl Messages {
    /// Reads `subscription`, fetching up to `batch` messages at a time.
    pub fn new(subscription: Box<dyn Subscription>, batch: usize) -> Self {
        let (ready, passed, behind) = (VecDeque::new(), Positions::new(), Positions::new());
        Self { subscription, batch: batch.max(1), ready, passed, behind, notices: Vec::new() }
    }

    /// The next message, or None after `wait` without one.
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
            // Offsets without a message follow the last message.
            self.passed.advance(&std::mem::take(&mut self.behind));
        }
        Ok(message)
    }

    /// Every message from now on. The stream does not end by itself; it fails as [`Subscription::recv`] does, and
    /// may be made anew after that.
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

    /// Commits every message that was handed out and not committed yet.
    ///
    /// # Errors
    /// As [`Subscription::commit`]; what was handed out stays to be committed.
    pub async fn commit(&mut self) -> Result<Committed> {
        let committed = self.subscription.commit(&self.passed).await?;
        self.passed = Positions::new();
        Ok(committed)
    }

    /// What happened since the last time that this was asked.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Leaves the group. What was not handed out or not committed comes again to whoever reads next.
    ///
    /// # Errors
    /// As [`Subscription::close`].
    pub async fn close(mut self) -> Result<()> {
        self.subscription.close().await
    }
}
