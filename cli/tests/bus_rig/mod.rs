//! Buses whose partitions have no leader, or end with transaction markers.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use qi_core::Result;
use qi_core::bus::{
    Batch, BusInfo, BusPingReport, CloseReport, GroupInfo, GroupQuery, Message, MessageBus, PublishOptions,
    PublishReport, ReaderRequest, SubscribeRequest, Subscription, TopicInfo, TopicName, TopicOutcome,
    TopicPartition, TopicSpec,
};
use qi_core::layer::Layer;
use qi_testkit::bus::MemoryBus;

/// A bus whose topics have one partition without a leader, for a number of requests for topics.
#[derive(Debug)]
pub(crate) struct BusWithoutLeader {
    bus: MemoryBus,
    partition: usize,
    requests: AtomicUsize,
}

impl BusWithoutLeader {
    pub(crate) fn new(bus: MemoryBus, partition: usize, requests: usize) -> Self {
        Self { bus, partition, requests: AtomicUsize::new(requests) }
    }
}

impl fmt::Display for BusWithoutLeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bus.fmt(f)
    }
}

#[async_trait]
impl MessageBus for BusWithoutLeader {
    fn info(&self) -> BusInfo {
        self.bus.info()
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>> {
        let mut topics = self.bus.topics().await?;
        if self
            .requests
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_ok()
        {
            for partition in topics.iter_mut().filter_map(|topic| topic.partitions.get_mut(self.partition)) {
                (partition.leader, partition.low, partition.high) = (None, 0, 0);
            }
        }
        Ok(topics)
    }

    async fn publish(&self, batch: &[Message], options: &PublishOptions) -> Result<PublishReport> {
        self.bus.publish(batch, options).await
    }

    async fn subscribe(&self, request: SubscribeRequest) -> Result<Box<dyn Subscription>> {
        self.bus.subscribe(request).await
    }

    async fn open_reader(&self, request: ReaderRequest) -> Result<Box<dyn Subscription>> {
        self.bus.open_reader(request).await
    }

    async fn create_topics(&self, specs: &[TopicSpec]) -> Result<Vec<TopicOutcome>> {
        self.bus.create_topics(specs).await
    }

    async fn delete_topics(&self, names: &[TopicName]) -> Result<Vec<TopicOutcome>> {
        self.bus.delete_topics(names).await
    }

    async fn groups(&self, query: &GroupQuery) -> Result<Vec<GroupInfo>> {
        self.bus.groups(query).await
    }

    async fn ping(&self) -> Result<BusPingReport> {
        self.bus.ping().await
    }

    async fn close(&self) -> Result<CloseReport> {
        self.bus.close().await
    }
}

/// Delivers no message of a partition from the second receive up to the receive of this number, as if its leader were
/// lost.
#[derive(Debug)]
pub(crate) struct LeaderLoss {
    partition: TopicPartition,
    receives: AtomicUsize,
    until: usize,
}

impl LeaderLoss {
    pub(crate) fn new(partition: TopicPartition, until: usize) -> Self {
        Self { partition, receives: AtomicUsize::new(0), until }
    }
}

impl Layer for LeaderLoss {
    fn name(&self) -> &'static str {
        "LeaderLoss"
    }

    fn recv<'a>(
        &'a self,
        reader: &'a mut dyn Subscription,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Batch>> {
        Box::pin(async move {
            let lost = std::slice::from_ref(&self.partition);
            match self.receives.fetch_add(1, Ordering::Relaxed) {
                1 => reader.pause(lost).await?,
                receive if receive == self.until => reader.resume(lost).await?,
                _ => {}
            }
            reader.recv(max.min(100), wait).await
        })
    }
}

/// Delivers each offset from this offset on as a transaction marker: a position without a message.
#[derive(Debug)]
pub(crate) struct TransactionMarkers(pub(crate) u64);

impl Layer for TransactionMarkers {
    fn name(&self) -> &'static str {
        "TransactionMarkers"
    }

    fn recv<'a>(
        &'a self,
        reader: &'a mut dyn Subscription,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Batch>> {
        Box::pin(async move {
            let mut batch = reader.recv(max, wait).await?;
            batch.messages_mut().retain(|message| message.offset < self.0);
            Ok(batch)
        })
    }
}
