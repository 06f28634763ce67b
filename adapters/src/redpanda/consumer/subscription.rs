//! The implementation of `Subscription` for a consumer.

use std::time::Duration;

use async_trait::async_trait;
use qi_core::Result;
use qi_core::bus::{Assignment, Batch, Committed, Offsets, SeekTo, Subscription, TopicPartition};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::fetch_buffer::PolledBatch;
use super::thread::{ConsumerHandle, ConsumerThread};
use crate::redpanda::error;

/// The maximum time that `close` waits. The consumer thread then finishes leaving its group in the background.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A member of a group, or a reader without a group.
#[derive(Debug)]
pub(in crate::redpanda) struct RedpandaSubscription {
    consumer: ConsumerHandle,
}

impl RedpandaSubscription {
    pub(in crate::redpanda) fn new(consumer: ConsumerHandle) -> Self {
        Self { consumer }
    }

    async fn set_paused(&self, partitions: &[TopicPartition], paused: bool) -> Result<()> {
        let partitions = partitions.to_vec();
        let operation = if paused { "pause" } else { "resume" };
        let call = self.consumer.call(operation, move |thread, reply| {
            drop(reply.send(thread.set_paused(&partitions, paused, operation)));
        });
        call.await
    }
}

/// The reply of a `recv`. If the future is dropped after the reply arrived, the reply goes back to the consumer thread.
struct PendingReply<'a> {
    consumer: &'a ConsumerHandle,
    reply: oneshot::Receiver<Result<PolledBatch>>,
}

impl Drop for PendingReply<'_> {
    fn drop(&mut self) {
        self.reply.close();
        if let Ok(result) = self.reply.try_recv() {
            self.consumer.send(|thread| thread.put_back(result));
        }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Subscription for RedpandaSubscription {
    async fn recv(&mut self, max: usize, wait: Duration) -> Result<Batch> {
        tokio::task::coop::consume_budget().await;
        self.consumer.check_open("recv")?;
        if max == 0 {
            return Err(error::zero_max());
        }
        let (reply, receiver) = oneshot::channel();
        let mut pending = PendingReply { consumer: &self.consumer, reply: receiver };
        self.consumer.send(move |thread| thread.begin_recv(max, wait, reply));
        let polled = self.consumer.reply(&mut pending.reply, "recv").await?;
        Ok(polled.into_batch())
    }

    async fn commit(&mut self, offsets: &Offsets) -> Result<Committed> {
        self.consumer.check_open("commit")?;
        if !self.consumer.settings.has_group() {
            return Err(error::commit_without_group());
        }
        let offsets = offsets.clone();
        let answer = self.consumer.call("commit", |thread, reply| thread.commit(offsets, reply));
        let timed_out =
            |_| error::timed_out("commit", "no response from the brokers within the commit timeout");
        timeout(self.consumer.settings.commit_timeout, answer).await.map_err(timed_out)?
    }

    async fn seek(&mut self, to: &[(TopicPartition, SeekTo)]) -> Result<()> {
        let to = to.to_vec();
        self.consumer.call("seek", |thread, reply| thread.seek(to, reply)).await
    }

    async fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.set_paused(partitions, true).await
    }

    async fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.set_paused(partitions, false).await
    }

    async fn assignment(&mut self) -> Result<Assignment> {
        self.consumer.call("assignment", ConsumerThread::describe).await
    }

    async fn close(&mut self) -> Result<()> {
        self.consumer.close();
        if !self.consumer.wait_closed(LEAVE_TIMEOUT).await {
            tracing::warn!("subscription closed, but its consumer thread is still running after 10 s");
        }
        Ok(())
    }
}

impl Drop for RedpandaSubscription {
    fn drop(&mut self) {
        self.consumer.close();
    }
}
