//! Helpers for checks: clients, topics, groups, messages and waits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use qi_core::Timestamp;
use qi_core::bus::{
    GroupId, GroupInfo, GroupQuery, Message, MessageBus, MessageBusExt, ReceivedMessage, SeekTo,
    SubscribeRequest, Subscription, TopicName, TopicPartition, TopicSpec,
};
use tokio::time::Instant;

use super::{BusEnv, CheckResult, Client, Failure, Timing, Wrapper};

/// The context of a check: the clients, names and waits of one trial.
#[derive(Debug)]
pub struct TestContext {
    env: Box<dyn BusEnv>,
    wrapper: Wrapper,
    clients: Mutex<Vec<Client>>,
    names: AtomicUsize,
}

impl TestContext {
    pub(super) fn new(env: Box<dyn BusEnv>, wrapper: Wrapper) -> Self {
        Self { env, wrapper, clients: Mutex::default(), names: AtomicUsize::new(0) }
    }

    /// Opens a client with the trial's wrapper.
    pub(super) async fn client(&self) -> CheckResult<Client> {
        Ok(self.register(self.env.connect().await?))
    }

    /// Opens a client with the trial's wrapper and room for `bytes` bytes.
    pub(super) async fn client_with_capacity(&self, bytes: usize) -> CheckResult<Client> {
        Ok(self.register(self.env.connect_with_capacity(bytes).await?))
    }

    /// Opens a client and returns its bus.
    pub(super) async fn bus(&self) -> CheckResult<Arc<dyn MessageBus>> {
        Ok(self.client().await?.bus)
    }

    fn register(&self, client: Client) -> Client {
        let client = Client { bus: (self.wrapper.wrap)(client.bus), connection: client.connection };
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).push(client.clone());
        client
    }

    pub(super) async fn tear_down(&self) -> CheckResult {
        let clients = std::mem::take(&mut *self.clients.lock().unwrap_or_else(PoisonError::into_inner));
        for client in clients {
            client.connection.restore().await;
            client.bus.close().await?;
        }
        Ok(self.env.tear_down().await?)
    }

    pub(super) fn timing(&self) -> Timing {
        self.env.timing()
    }

    pub(super) fn now(&self) -> Timestamp {
        self.env.now()
    }

    pub(super) async fn delete_records(&self, partition: &TopicPartition, offset: u64) -> CheckResult {
        Ok(self.env.delete_records(partition, offset).await?)
    }

    /// Returns a name that is not in use.
    pub(super) fn unused_topic_name(&self) -> CheckResult<TopicName> {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        Ok(TopicName::new(format!("{}-{number}", self.env.prefix()))?)
    }

    /// Creates a topic with a message limit of 2 MiB.
    pub(super) async fn create_topic(&self, bus: &dyn MessageBus, partitions: u32) -> CheckResult<TopicName> {
        let spec = TopicSpec::new(self.unused_topic_name()?, partitions)?.with_max_message_bytes(2 << 20);
        self.create_topic_from(bus, spec).await
    }

    /// Creates a topic from a specification.
    pub(super) async fn create_topic_from(
        &self,
        bus: &dyn MessageBus,
        spec: TopicSpec,
    ) -> CheckResult<TopicName> {
        let name = spec.name.clone();
        for outcome in bus.create_topics(&[spec]).await? {
            outcome.result?;
        }
        Ok(name)
    }

    /// Returns the id of a new group.
    pub(super) fn new_group(&self) -> CheckResult<GroupId> {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        Ok(GroupId::new(format!("{}-group-{number}", self.env.prefix()))?)
    }

    /// Returns a subscribe request with the backend's session timeout and maximum poll interval.
    pub(super) fn subscribe_request(
        &self,
        group: &GroupId,
        topic: &TopicName,
    ) -> CheckResult<SubscribeRequest> {
        let timing = self.timing();
        Ok(SubscribeRequest::new(group.clone(), [topic.clone()])?
            .with_timeouts(timing.session_timeout, timing.max_poll_interval)?)
    }

    /// Subscribes as the only member of a new group.
    pub(super) async fn subscribe(
        &self,
        bus: &dyn MessageBus,
        topic: &TopicName,
    ) -> CheckResult<Box<dyn Subscription>> {
        Ok(bus.subscribe(self.subscribe_request(&self.new_group()?, topic)?).await?)
    }

    /// Receives `count` messages with one reader and returns them in the order of arrival.
    pub(super) async fn receive(
        &self,
        reader: &mut dyn Subscription,
        count: usize,
    ) -> CheckResult<Vec<ReceivedMessage>> {
        let mut all = Vec::with_capacity(count);
        let deadline = Instant::now() + self.timing().effect_timeout;
        while all.len() < count {
            if Instant::now() >= deadline {
                return Err(Failure::new(format_args!("received only {} of {count} messages", all.len())));
            }
            let batch =
                reader.recv((count - all.len()).min(1_000), self.timing().receive_timeout * 4).await?;
            all.extend(batch.into_messages());
        }
        Ok(all)
    }

    /// Fails if the reader receives another message.
    pub(super) async fn expect_no_message(&self, reader: &mut dyn Subscription) -> CheckResult {
        let batch = reader.recv(10, self.timing().receive_timeout * 4).await?;
        match batch.messages().first() {
            None => Ok(()),
            Some(one) => Err(Failure::new(format_args!(
                "received an unexpected message: {}/{} at offset {}",
                one.topic, one.partition, one.offset
            ))),
        }
    }

    /// Reads `count` messages of a topic with a reader without a group. Fails if there are more.
    pub(super) async fn read_all(
        &self,
        bus: &dyn MessageBus,
        topic: &TopicName,
        partitions: u32,
        count: usize,
    ) -> CheckResult<Vec<ReceivedMessage>> {
        let from = (0..partitions).map(|p| (TopicPartition::new(topic.clone(), p), SeekTo::Earliest));
        let mut reader = bus.open_reader(qi_core::bus::ReaderRequest::new(from)?).await?;
        let all = self.receive(&mut *reader, count).await?;
        self.expect_no_message(&mut *reader).await?;
        reader.close().await?;
        Ok(all)
    }

    /// Returns the current state of a group, if the group is known.
    pub(super) async fn describe_group(
        &self,
        bus: &dyn MessageBus,
        group: &GroupId,
    ) -> CheckResult<Option<GroupInfo>> {
        Ok(bus.groups(&GroupQuery::one(group.clone())).await?.pop())
    }

    /// Returns the commit of a partition as reported by `groups`.
    pub(super) async fn committed(
        &self,
        bus: &dyn MessageBus,
        group: &GroupId,
        partition: &TopicPartition,
    ) -> CheckResult<Option<u64>> {
        let info = self.describe_group(bus, group).await?;
        Ok(info.and_then(|info| info.partitions.into_iter().find(|p| p.partition == *partition)?.committed))
    }

    /// Sleeps for [`Timing::receive_timeout`] of the backend.
    pub(super) async fn short_sleep(&self) {
        tokio::time::sleep(self.timing().receive_timeout).await;
    }

    /// Sleeps for the given time.
    pub(super) async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

/// Returns message `n` with a key.
pub(super) fn message_with_key(topic: &TopicName, key: &str, n: usize) -> Message {
    Message::new(topic.clone(), format!("{key}#{n}")).with_key(key.to_owned())
}

/// Returns message `n` for one partition.
pub(super) fn message_in_partition(topic: &TopicName, partition: u32, n: usize) -> Message {
    Message::new(topic.clone(), format!("{partition}#{n}")).with_partition(partition)
}

/// Publishes `count` messages to each of the first `partitions` partitions, in one batch.
pub(super) async fn publish_to_partitions(
    bus: &dyn MessageBus,
    topic: &TopicName,
    partitions: u32,
    count: usize,
) -> CheckResult {
    let batch: Vec<_> =
        (0..count).flat_map(|n| (0..partitions).map(move |p| message_in_partition(topic, p, n))).collect();
    bus.send(&batch).await?;
    Ok(())
}

/// Returns the payload as text.
pub(super) fn text(message: &ReceivedMessage) -> String {
    String::from_utf8_lossy(message.payload.as_deref().unwrap_or_default()).into_owned()
}

/// Splits a payload into the text before `#` and the number after it.
pub(super) fn parse_payload(message: &ReceivedMessage) -> CheckResult<(String, usize)> {
    let text = text(message);
    let (key, n) =
        text.split_once('#').ok_or_else(|| Failure::new(format_args!("unexpected payload {text:?}")))?;
    let n = n.parse().map_err(|e| Failure::new(format_args!("unexpected payload {text:?}: {e}")))?;
    Ok((key.to_owned(), n))
}
