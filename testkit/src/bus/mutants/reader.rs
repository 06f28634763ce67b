//! The faulty subscription.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use qi_core::bus::{
    Assignment, Batch, Committed, Offsets, ReaderRequest, ReceivedMessage, SeekTo, SubscriptionEvent,
    TopicName, TopicPartition,
};
use qi_core::{ErrorKind, MessageBus, Result, Subscription};

use super::bus::PhantomCommits;
use super::fault::Fault;

/// A subscription that adds one fault to a correct subscription.
#[derive(Debug)]
pub(super) struct FaultySubscription {
    inner: Box<dyn Subscription>,
    fault: Fault,
    stale: PhantomCommits,
    /// A reader of a partition that another member owns.
    extra: Option<Box<dyn Subscription>>,
    /// The last message of each partition.
    last: BTreeMap<TopicPartition, ReceivedMessage>,
    after_rebalance: bool,
}

impl FaultySubscription {
    pub(super) fn new(
        inner: Box<dyn Subscription>,
        fault: Fault,
        stale: PhantomCommits,
        extra: Option<Box<dyn Subscription>>,
    ) -> Self {
        Self { inner, fault, stale, extra, last: BTreeMap::new(), after_rebalance: false }
    }

    /// Opens a reader of the first partition of a topic, regardless of the owner.
    pub(super) async fn second_owner(
        bus: &Arc<dyn MessageBus>,
        topic: TopicName,
    ) -> Result<Box<dyn Subscription>> {
        bus.open_reader(ReaderRequest::new([(TopicPartition::new(topic, 0), SeekTo::Latest)])?).await
    }

    /// Seeks all assigned partitions to their end.
    pub(super) async fn seek_to_the_end(&mut self) -> Result<()> {
        let assignment = self.inner.assignment().await?;
        let ends: Vec<_> = assignment.partitions.into_iter().map(|p| (p.partition, SeekTo::Latest)).collect();
        self.inner.seek(&ends).await
    }

    /// Applies the fault to a batch.
    async fn apply_fault(&mut self, batch: Batch) -> Result<Batch> {
        let positions = batch.offsets().clone();
        let mut events = batch.events().to_vec();
        let mut messages = batch.into_messages();
        let lost: Vec<_> = events.iter().filter_map(lost).flatten().cloned().collect();
        match self.fault {
            Fault::CommitsInRecv => drop(self.inner.commit(&positions).await?),
            Fault::DeliversLost => messages.extend(lost.iter().filter_map(|p| self.last.get(p)).cloned()),
            Fault::DuplicatesAfterRebalance => {
                self.after_rebalance |= events.iter().any(is_assignment_change);
                if self.after_rebalance && !messages.is_empty() {
                    self.after_rebalance = false;
                    messages.push(messages[0].clone());
                }
            }
            Fault::KeepsMicros => {
                for message in &mut messages {
                    message.timestamp =
                        message.timestamp.and_then(|at| at.checked_add(Duration::from_micros(999)));
                }
            }
            Fault::TwoOwners => {
                if let Some(extra) = &mut self.extra {
                    messages.extend(extra.recv(10, Duration::ZERO).await?.into_messages());
                }
            }
            Fault::HidesResets => events.retain(|event| !matches!(event, SubscriptionEvent::Reset { .. })),
            Fault::HidesDeletionOfOneTopic => {
                events.retain(|event| !matches!(event, SubscriptionEvent::TopicDeleted { .. }));
            }
            Fault::HidesMaxPollInterval => {
                events.retain(|event| *event != SubscriptionEvent::MaxPollIntervalExceeded);
            }
            Fault::HidesRevocations => events.retain(|event| *event != SubscriptionEvent::RevocationPending),
            Fault::HidesAssignments => events.retain(|event| !is_assignment_change(event)),
            _ => {}
        }
        for message in &messages {
            let partition = TopicPartition::new(message.topic.clone(), message.partition);
            self.last.insert(partition, message.clone());
        }
        Ok(Batch::new(messages, positions, events))
    }
}

fn lost(event: &SubscriptionEvent) -> Option<&[TopicPartition]> {
    match event {
        SubscriptionEvent::AssignmentChanged { lost, .. } => Some(lost),
        _ => None,
    }
}

fn is_assignment_change(event: &SubscriptionEvent) -> bool {
    matches!(event, SubscriptionEvent::AssignmentChanged { .. })
}

#[async_trait]
impl Subscription for FaultySubscription {
    async fn recv(&mut self, max: usize, wait: Duration) -> Result<Batch> {
        let (max, wait) = match self.fault {
            Fault::ExceedsMax if max > 0 => (max + 3, wait),
            Fault::NeverWaits => (max, Duration::ZERO),
            _ => (max, wait),
        };
        match self.inner.recv(max, wait).await {
            Ok(batch) => {
                if self.fault == Fault::LosesOnCancel {
                    // If the caller drops the future here, the messages of the inner subscription are lost.
                    tokio::task::yield_now().await;
                }
                self.apply_fault(batch).await
            }
            Err(error)
                if self.fault == Fault::HidesDeletionOfLastTopic && error.kind() == ErrorKind::NotFound =>
            {
                tokio::time::sleep(wait).await;
                Ok(Batch::default())
            }
            Err(error) => Err(error),
        }
    }

    async fn commit(&mut self, offsets: &Offsets) -> Result<Committed> {
        let report_all_stored = || Ok(Committed::new(offsets.clone(), Vec::new()));
        match self.fault {
            Fault::ForgetsCommits => report_all_stored(),
            Fault::AcceptsAnyCommit => self.inner.commit(offsets).await.or_else(|_| report_all_stored()),
            Fault::CommitsPartially => {
                let committed = self.inner.commit(offsets).await;
                if committed.is_err() {
                    for (partition, next) in offsets.iter() {
                        let one: Offsets = [(partition.clone(), next)].into_iter().collect();
                        // The invalid position fails again. The other positions are stored although the commit
                        // as a whole fails.
                        let _ = self.inner.commit(&one).await;
                    }
                }
                committed
            }
            Fault::HidesLost => self.inner.commit(offsets).await.and_then(|_| report_all_stored()),
            Fault::CommitsLostPartitions => {
                let committed = self.inner.commit(offsets).await?;
                let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
                for partition in &committed.lost {
                    if let Some(next) = offsets.get(partition) {
                        stale.set(partition.clone(), next);
                    }
                }
                Ok(committed)
            }
            Fault::CommitsBelowReset => {
                let committed = self.inner.commit(offsets).await?;
                let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
                for (partition, stored) in committed.stored.iter() {
                    if let Some(next) = offsets.get(partition).filter(|next| *next != stored) {
                        stale.set(partition.clone(), next);
                    }
                }
                report_all_stored()
            }
            _ => self.inner.commit(offsets).await,
        }
    }

    async fn seek(&mut self, to: &[(TopicPartition, SeekTo)]) -> Result<()> {
        if self.fault == Fault::RebalancesInSeek {
            self.inner.seek(to).await?;
            return self.inner.recv(1, Duration::ZERO).await.map(drop);
        }
        if self.fault != Fault::SeeksOneFurther {
            return self.inner.seek(to).await;
        }
        let next_offset = |to: SeekTo| match to {
            SeekTo::Offset(offset) => SeekTo::Offset(offset + 1),
            other => other,
        };
        let to: Vec<_> =
            to.iter().map(|(partition, target)| (partition.clone(), next_offset(*target))).collect();
        self.inner.seek(&to).await
    }

    async fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        match self.fault {
            Fault::NeverPauses => Ok(()),
            Fault::PausesAll => {
                let assignment = self.inner.assignment().await?;
                let all: Vec<_> = assignment.partitions.into_iter().map(|p| p.partition).collect();
                self.inner.pause(&all).await
            }
            _ => self.inner.pause(partitions).await,
        }
    }

    async fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.inner.resume(partitions).await
    }

    async fn assignment(&mut self) -> Result<Assignment> {
        let mut assignment = self.inner.assignment().await?;
        if self.fault == Fault::LagOneOff {
            assignment.partitions.iter_mut().for_each(|partition| partition.lag += 1);
        }
        Ok(assignment)
    }

    async fn close(&mut self) -> Result<()> {
        self.inner.close().await
    }
}
