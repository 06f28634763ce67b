//! Members of one group that are polled in turn.

use std::collections::BTreeSet;

use futures::FutureExt;
use futures::future::{Either, select};
use qi_core::bus::{
    Message, MessageBus, MessageBusExt, ReceivedMessage, SubscribeRequest, Subscription, SubscriptionEvent,
    TopicPartition,
};
use tokio::time::Instant;

use super::{CheckResult, Failure, TestContext};

/// A member with its received messages and events.
#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) sub: Box<dyn Subscription>,
    pub(super) received: Vec<ReceivedMessage>,
    pub(super) events: Vec<SubscriptionEvent>,
}

impl Consumer {
    /// Calls `recv` once. Fails on a message of a partition that the member does not own.
    pub(super) async fn poll(&mut self, context: &TestContext, max: usize) -> CheckResult<usize> {
        let batch = self.sub.recv(max, context.timing().receive_timeout).await?;
        // Stored before the next await, because this future may be dropped.
        self.events.extend_from_slice(batch.events());
        self.received.extend(batch.iter().cloned());
        let own = self.owned().await?;
        for message in &batch {
            let partition = TopicPartition::new(message.topic.clone(), message.partition);
            if !own.contains(&partition) {
                return Err(Failure::new(format_args!(
                    "received a message of {partition}, which the member does not own"
                )));
            }
        }
        Ok(batch.len())
    }

    /// Returns the owned partitions.
    pub(super) async fn owned(&mut self) -> CheckResult<BTreeSet<TopicPartition>> {
        let assignment = self.sub.assignment().await?;
        Ok(assignment.partitions.into_iter().map(|assigned| assigned.partition).collect())
    }
}

/// The members of one group, polled by one task.
#[derive(Debug)]
pub(super) struct Consumers<'a> {
    context: &'a TestContext,
    pub(super) members: Vec<Consumer>,
    /// The messages of members that have left.
    departed: Vec<Vec<ReceivedMessage>>,
}

impl<'a> Consumers<'a> {
    pub(super) fn new(context: &'a TestContext) -> Self {
        Self { context, members: Vec::new(), departed: Vec::new() }
    }

    /// Adds a member while the others are polled, as in real use.
    pub(super) async fn join(&mut self, bus: &dyn MessageBus, request: SubscribeRequest) -> CheckResult {
        let sub = {
            let mut joining = bus.subscribe(request).fuse();
            loop {
                let round = std::pin::pin!(self.poll_all());
                match select(&mut joining, round).await {
                    Either::Left((sub, _)) => break sub?,
                    Either::Right((polled, _)) => drop(polled?),
                }
            }
        };
        self.add(sub);
        Ok(())
    }

    /// Adds a member that has already joined.
    pub(super) fn add(&mut self, sub: Box<dyn Subscription>) {
        self.members.push(Consumer { sub, received: Vec::new(), events: Vec::new() });
    }

    /// Removes a member and keeps its messages.
    pub(super) async fn leave(&mut self, at: usize) -> CheckResult {
        let mut leaver = self.members.remove(at);
        leaver.sub.close().await?;
        self.departed.push(leaver.received);
        Ok(())
    }

    /// Returns the messages of each member, including members that have left.
    pub(super) fn histories(&self) -> impl Iterator<Item = &[ReceivedMessage]> {
        self.members
            .iter()
            .map(|member| &member.received[..])
            .chain(self.departed.iter().map(|received| &received[..]))
    }

    /// Polls each member once and returns the number of received messages.
    pub(super) async fn poll_all(&mut self) -> CheckResult<usize> {
        let mut count = 0;
        for member in &mut self.members {
            count += member.poll(self.context, 500).await?;
        }
        if self.members.is_empty() {
            self.context.short_sleep().await;
        }
        Ok(count)
    }

    /// Polls until all `partitions` are assigned once and in even shares, in two consecutive rounds.
    pub(super) async fn wait_until_balanced(&mut self, partitions: usize) -> CheckResult {
        let deadline = Instant::now() + self.context.timing().effect_timeout;
        let mut balanced_rounds = 0;
        while balanced_rounds < 2 {
            self.poll_all().await?;
            let mut sizes = Vec::new();
            let mut all = BTreeSet::new();
            for member in &mut self.members {
                let own = member.owned().await?;
                sizes.push(own.len());
                all.extend(own);
            }
            let (most, least) = (sizes.iter().max(), sizes.iter().min());
            let even = most.zip(least).is_some_and(|(most, least)| most - least <= 1);
            let complete = all.len() == partitions && sizes.iter().sum::<usize>() == partitions;
            balanced_rounds = if even && complete { balanced_rounds + 1 } else { 0 };
            if balanced_rounds == 0 && Instant::now() >= deadline {
                return Err(Failure::new(format_args!(
                    "the assignment of {partitions} partitions is not balanced in time: shares {sizes:?}, {} distinct",
                    all.len()
                )));
            }
        }
        Ok(())
    }

    /// Polls until the members have received at least `count` different messages.
    pub(super) async fn receive_until(&mut self, count: usize) -> CheckResult {
        let deadline = Instant::now() + self.context.timing().effect_timeout;
        while self.distinct_count() < count {
            if Instant::now() >= deadline {
                return Err(Failure::new(format_args!(
                    "received only {} of {count} messages",
                    self.distinct_count()
                )));
            }
            self.poll_all().await?;
        }
        Ok(())
    }

    /// Returns the number of different messages received.
    pub(super) fn distinct_count(&self) -> usize {
        self.histories().flatten().map(|m| (&m.topic, m.partition, m.offset)).collect::<BTreeSet<_>>().len()
    }

    /// Returns the number of messages received, including redelivered messages.
    pub(super) fn total_count(&self) -> usize {
        self.histories().map(<[ReceivedMessage]>::len).sum()
    }

    /// Publishes a batch, then polls each member once.
    pub(super) async fn publish(&mut self, bus: &dyn MessageBus, batch: &[Message]) -> CheckResult {
        bus.send(batch).await?;
        self.poll_all().await?;
        Ok(())
    }
}
