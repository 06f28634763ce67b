//! Members of one group that are polled in turn.

use std::collections::BTreeSet;

use futures::FutureExt;
use futures::future::{Either, select};
use qi_core::bus::{
    Message, MessageBus, MessageBusExt, ReceivedMessage, SubscribeRequest, Subscription, SubscriptionEvent,
    TopicPartition,
};
use tokio::time::Instant;

use super::{Failure, Lab, Verdict};

/// A member with its received messages and events.
#[derive(Debug)]
pub(super) struct Mate {
    pub(super) sub: Box<dyn Subscription>,
    pub(super) got: Vec<ReceivedMessage>,
    pub(super) events: Vec<SubscriptionEvent>,
}

impl Mate {
    /// Calls `recv` once. Fails on a message of a partition that the member does not own.
    pub(super) async fn turn(&mut self, lab: &Lab, max: usize) -> Verdict<usize> {
        let batch = self.sub.recv(max, lab.timing().short).await?;
        // Stored before the next await, because this future may be dropped.
        self.events.extend_from_slice(batch.events());
        self.got.extend(batch.iter().cloned());
        let own = self.own().await?;
        for message in &batch {
            let partition = TopicPartition::new(message.topic.clone(), message.partition);
            if !own.contains(&partition) {
                return Err(Failure::new(format_args!("a message of {partition}, which is not owned, came")));
            }
        }
        Ok(batch.len())
    }

    /// Returns the owned partitions.
    pub(super) async fn own(&mut self) -> Verdict<BTreeSet<TopicPartition>> {
        let assignment = self.sub.assignment().await?;
        Ok(assignment.partitions.into_iter().map(|assigned| assigned.partition).collect())
    }
}

/// The members of one group, polled by one task.
#[derive(Debug)]
pub(super) struct Crew<'a> {
    lab: &'a Lab,
    pub(super) mates: Vec<Mate>,
    /// The messages of members that have left.
    gone: Vec<Vec<ReceivedMessage>>,
}

impl<'a> Crew<'a> {
    pub(super) fn new(lab: &'a Lab) -> Self {
        Self { lab, mates: Vec::new(), gone: Vec::new() }
    }

    /// Adds a member while the others are polled, as in real use.
    pub(super) async fn join(&mut self, bus: &dyn MessageBus, request: SubscribeRequest) -> Verdict {
        let sub = {
            let mut joining = bus.subscribe(request).fuse();
            loop {
                let round = std::pin::pin!(self.round());
                match select(&mut joining, round).await {
                    Either::Left((sub, _)) => break sub?,
                    Either::Right((polled, _)) => drop(polled?),
                }
            }
        };
        self.take_in(sub);
        Ok(())
    }

    /// Adds a member that has already joined.
    pub(super) fn take_in(&mut self, sub: Box<dyn Subscription>) {
        self.mates.push(Mate { sub, got: Vec::new(), events: Vec::new() });
    }

    /// Removes a member and keeps its messages.
    pub(super) async fn leave(&mut self, at: usize) -> Verdict {
        let mut leaver = self.mates.remove(at);
        leaver.sub.close().await?;
        self.gone.push(leaver.got);
        Ok(())
    }

    /// Returns the messages of each member, including members that have left.
    pub(super) fn histories(&self) -> impl Iterator<Item = &[ReceivedMessage]> {
        self.mates.iter().map(|mate| &mate.got[..]).chain(self.gone.iter().map(|got| &got[..]))
    }

    /// Polls each member once and returns the number of received messages.
    pub(super) async fn round(&mut self) -> Verdict<usize> {
        let mut count = 0;
        for mate in &mut self.mates {
            count += mate.turn(self.lab, 500).await?;
        }
        if self.mates.is_empty() {
            self.lab.pause().await;
        }
        Ok(count)
    }

    /// Polls until all `partitions` are assigned once and in even shares, in two consecutive rounds.
    pub(super) async fn settle(&mut self, partitions: usize) -> Verdict {
        let deadline = Instant::now() + self.lab.timing().eventually;
        let mut still = 0;
        while still < 2 {
            self.round().await?;
            let mut sizes = Vec::new();
            let mut all = BTreeSet::new();
            for mate in &mut self.mates {
                let own = mate.own().await?;
                sizes.push(own.len());
                all.extend(own);
            }
            let (most, least) = (sizes.iter().max(), sizes.iter().min());
            let even = most.zip(least).is_some_and(|(most, least)| most - least <= 1);
            let whole = all.len() == partitions && sizes.iter().sum::<usize>() == partitions;
            still = if even && whole { still + 1 } else { 0 };
            if still == 0 && Instant::now() >= deadline {
                return Err(Failure::new(format_args!(
                    "{partitions} partitions never came to rest: shares of {sizes:?}, {} of them different",
                    all.len()
                )));
            }
        }
        Ok(())
    }

    /// Polls until the members have received at least `count` different messages.
    pub(super) async fn gather(&mut self, count: usize) -> Verdict {
        let deadline = Instant::now() + self.lab.timing().eventually;
        while self.distinct() < count {
            if Instant::now() >= deadline {
                return Err(Failure::new(format_args!("only {} of {count} messages came", self.distinct())));
            }
            self.round().await?;
        }
        Ok(())
    }

    /// Returns the number of different messages received.
    pub(super) fn distinct(&self) -> usize {
        self.histories().flatten().map(|m| (&m.topic, m.partition, m.offset)).collect::<BTreeSet<_>>().len()
    }

    /// Returns the number of messages received, including redelivered messages.
    pub(super) fn total(&self) -> usize {
        self.histories().map(<[ReceivedMessage]>::len).sum()
    }

    /// Publishes while the members are polled.
    pub(super) async fn publish(&mut self, bus: &dyn MessageBus, batch: &[Message]) -> Verdict {
        bus.send(batch).await?;
        self.round().await?;
        Ok(())
    }
}
