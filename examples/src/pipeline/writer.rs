//! The writer: what Layer 2 has to write to move records from a topic into a store, losing none.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use qi_core::agent::{Agent, AgentContext, ExitReason};
use qi_core::bus::{DeadLetters, MessageBus, MessageBusExt, Subscribe, Subscription};
use qi_core::{Error, PriceStore, PriceStoreExt, Result};
use tracing::Instrument;

use super::record::Record;
use super::tally::Tally;

/// Reads a topic as a member of a group and stores every record. The order for each batch is: store, dead letters,
/// commit. The store writes by key, so a kill at any moment loses nothing and stores nothing twice.
///
/// The writer does not retry. A retryable error ends `run`, and the runtime opens a new writer, which continues from the
/// last commit. A writer that exists is subscribed: see [`Writer::open`].
pub struct Writer<T> {
    bus: Arc<dyn MessageBus>,
    store: Arc<dyn PriceStore>,
    tally: Arc<Tally>,
    subscription: Box<dyn Subscription>,
    records: PhantomData<fn() -> T>,
}

impl<T: Record> Writer<T> {
    /// Subscribes on `bus` and returns the writer to `store`. `tally` counts its records.
    ///
    /// # Errors
    /// The errors of [`MessageBus::subscribe`].
    pub async fn open(
        bus: Arc<dyn MessageBus>,
        store: Arc<dyn PriceStore>,
        request: Subscribe,
        tally: Arc<Tally>,
    ) -> Result<Self> {
        let subscription = bus.subscribe(request).await?;
        Ok(Self { bus, store, tally, subscription, records: PhantomData })
    }
}

#[async_trait]
impl<T: Record> Agent for Writer<T> {
    async fn run(&mut self, cx: &AgentContext) -> Result<()> {
        let subscription = &mut self.subscription;
        let dead = DeadLetters::default();
        while let Some(batch) = cx.until_cancelled(subscription.recv(1_000, Duration::from_secs(1))).await {
            let batch = batch?;
            // What is done with a batch belongs to the trace that it came with.
            let stored = async {
                let decoded = batch.decode::<T>();
                self.store.insert_records(&decoded.records).await?;
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
        self.subscription.close().await
    }
}
