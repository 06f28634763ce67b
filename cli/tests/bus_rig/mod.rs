//! Buses on which partitions have no leader, or end with transaction markers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use qi_core::Result;
use qi_core::bus::{
    AssignedPartition, Assignment, Batch, BusInfo, BusStatus, CloseReport, GroupInfo, GroupQuery, Message,
    MessageBus, PartitionInfo, PublishOptions, PublishReport, Read, Received, Subscribe, Subscription,
    TopicInfo, TopicName, TopicOutcome, TopicPartition, TopicSpec,
};
use qi_core::layer::Intercept;
use qi_testkit::bus::MemoryBus;
use qi_testkit::mock::{MockBus, MockReader};

/// A bus on which one partition of each topic has no leader, for a number of requests for topics.
#[derive(Debug)]
pub(crate) struct Leaderless {
    bus: MemoryBus,
    partition: usize,
    requests: AtomicUsize,
}

impl Leaderless {
    pub(crate) fn new(bus: MemoryBus, partition: usize, requests: usize) -> Self {
        Self { bus, partition, requests: AtomicUsize::new(requests) }
    }
}

impl fmt::Display for Leaderless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bus.fmt(f)
    }
}

#[async_trait]
impl MessageBus for Leaderless {
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

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>> {
        self.bus.subscribe(request).await
    }

    async fn read(&self, request: Read) -> Result<Box<dyn Subscription>> {
        self.bus.read(request).await
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

    async fn ping(&self) -> Result<BusStatus> {
        self.bus.ping().await
    }

    async fn close(&self) -> Result<CloseReport> {
        self.bus.close().await
    }
}

/// Delivers nothing of a partition from the second receive on, as one does whose leader is lost, up to the receive of
/// this number.
#[derive(Debug)]
pub(crate) struct LosesLeader {
    partition: TopicPartition,
    receives: AtomicUsize,
    until: usize,
}

impl LosesLeader {
    pub(crate) fn new(partition: TopicPartition, until: usize) -> Self {
        Self { partition, receives: AtomicUsize::new(0), until }
    }
}

impl Intercept for LosesLeader {
    fn name(&self) -> &'static str {
        "LosesLeader"
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

/// A bus with a partition that holds these messages and then three offsets of transaction markers.
pub(crate) fn with_markers(partition: &TopicPartition, payloads: &[Bytes]) -> MockBus {
    let end = payloads.len() as u64 + 3;
    let messages: Vec<_> = (0..)
        .zip(payloads)
        .map(|(offset, payload)| {
            let mut message = Received::new(partition.topic.clone(), partition.partition, offset);
            message.payload = Some(payload.clone());
            message
        })
        .collect();
    let (mut bus, partition) = (MockBus::new(), partition.clone());
    let info = TopicInfo::new(partition.topic.clone(), vec![PartitionInfo::new(partition.partition, 0, end)]);
    bus.expect_topics().returning(move || Ok(vec![info.clone()]));
    bus.expect_read().returning(move |_| {
        let position = Arc::new(AtomicU64::new(0));
        let (mut reader, messages, reached) = (MockReader::new(), messages.clone(), position.clone());
        let (of_batch, of_assignment) = (partition.clone(), partition.clone());
        reader.expect_recv().returning(move |_, _| {
            let first = reached.swap(end, Ordering::Relaxed) == 0;
            let positions = [(of_batch.clone(), end)].into_iter().collect();
            Ok(if first { Batch::new(messages.clone(), positions, vec![]) } else { Batch::default() })
        });
        reader.expect_assignment().returning(move || {
            let position = position.load(Ordering::Relaxed);
            let assigned =
                AssignedPartition::new(of_assignment.clone(), position, None, end - position, false);
            Ok(Assignment::new(1, vec![assigned]))
        });
        reader.expect_close().returning(|| Ok(()));
        Ok(Box::new(reader))
    });
    bus
}
