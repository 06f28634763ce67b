//! The writer: what Layer 2 has to write to move records from a topic into a store, losing none.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use qi_core::agent::{Agent, AgentContext, ExitReason};
use qi_core::bus::{
    DeadLetters, GroupId, MemberId, MessageBus, MessageBusExt, Subscribe, Subscription, TopicName,
};
use qi_core::{Error, PriceStore, Result};
use tracing::Instrument;

use super::record::Record;
use super::tally::Tally;

/// Reads a topic as a member of a group and stores every record. The order for each batch is: store, dead letters,
/// commit. The store writes by key, so that a kill at any moment loses nothing and stores nothing twice.
///
/// It holds no retry of its own: an error that may pass ends `run`, and the runtime starts a new writer, which
/// goes on from the last commit.
pub struct Writer<T> {
    bus: Arc<dyn MessageBus>,
    store: Arc<dyn PriceStore>,
    topic: TopicName,
    group: GroupId,
    member: Option<MemberId>,
    tally: Arc<Tally>,
    subscription: Option<Box<dyn Subscription>>,
    records: PhantomData<fn() -> T>,
}

impl<T: Record> Writer<T> {
    /// A writer from `topic` on `bus`, as a member of `group`, into `store`; what it does is counted in `tally`.
    pub fn new(
        bus: Arc<dyn MessageBus>,
        store: Arc<dyn PriceStore>,
        topic: TopicName,
        group: GroupId,
        tally: Arc<Tally>,
    ) -> Self {
        Self { bus, store, topic, group, member: None, tally, subscription: None, records: PhantomData }
    }

    /// As this static member: after a kill the next writer of that name goes on at once, and need not wait until the
    /// group has given the dead one up.
    #[must_use]
    pub fn as_member(mut self, member: Option<MemberId>) -> Self {
        self.member = member;
        self
    }
}

#[async_trait]
impl<T: Record> Agent for Writer<T> {
    async fn initialize(&mut self, _cx: &AgentContext) -> Result<()> {
        let mut request = Subscribe::new(self.group.clone(), [self.topic.clone()])?;
        request.member.clone_from(&self.member);
        self.subscription = Some(self.bus.subscribe(request).await?);
        Ok(())
    }

    async fn run(&mut self, cx: &AgentContext) -> Result<()> {
        let Some(subscription) = &mut self.subscription else { return Ok(()) };
        let dead = DeadLetters::default();
        while let Some(batch) = cx.until_cancelled(subscription.recv(1_000, Duration::from_secs(1))).await {
            let batch = batch?;
            // What is done with a batch belongs to the trace that it came with.
            let stored = async {
                let decoded = batch.decode::<T>();
                T::insert(&*self.store, &decoded.records).await?;
                self.bus.send_dead_letters(&decoded.rejected, &dead).await?;
                subscription.commit(batch.positions()).await?;
                Ok::<_, Error>(decoded.records.len())
            };
            let stored = stored.instrument(batch.span()).await?;
            self.tally.written(stored, batch.len() - stored);
        }
        Ok(())
    }

    async fn cleanup(&mut self, _cx: &AgentContext, _exit: &ExitReason) -> Result<()> {
        match &mut self.subscription {
            Some(subscription) => subscription.close().await,
            None => Ok(()),
        }
    }
}
