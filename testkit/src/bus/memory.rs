//! The memory bus: a client of a log in memory.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use async_trait::async_trait;
use qi_core::bus::{
    BusInfo, BusPingReport, CloseReport, GroupInfo, GroupQuery, Message, PublishOptions, PublishReport,
    ReaderRequest, SubscribeRequest, TopicInfo, TopicName, TopicOutcome, TopicPartition, TopicSpec,
};
use qi_core::{Clock, Error, MessageBus, Result, Subscription, SystemClock};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::publish::PendingPublish;
use super::reader::MemoryReader;
use super::state::{Log, cooperate};
use super::subscription::MemorySubscription;
use super::{MemoryBusConfig, error};

/// A [`MessageBus`] in memory that keeps the complete contract: consumer groups with rebalances, commits, retention,
/// tombstones, and a capacity in bytes. It waits on tokio's clock and takes timestamps from an injected clock, so tests
/// run on paused time. Share it in an `Arc`.
///
/// It has functions for tests that are not part of the port. [`MemoryBus::connect`] opens another
/// client of the same log. [`MemoryBus::disconnect`] disconnects a client without a departure from its
/// groups. [`MemoryBus::delete_records`] removes messages.
///
/// # Capacity
/// Retention by age removes messages, read or unread. In addition, `max_bytes` limits the size of the bus. When
/// the bus is full, it removes messages that every group of their topic has committed, oldest first. A topic
/// without a group loses messages only by age. If the freed space does not suffice, `publish` waits up to the
/// delivery timeout. Messages that still do not fit fail as `NotSent`. Their error has the kind `Overloaded`, the
/// code `bus.memory.full` and the name of the group with the largest lag.
///
/// # Differences from a broker
/// There is one broker and one replica, regardless of `replication`. A compacted topic keeps all messages
/// until the bus is full. Then it removes the messages that every group has committed and that a later message
/// of the same key replaces.
///
/// ```
/// use std::time::Duration;
/// use qi_core::bus::{GroupId, Message, MessageBus, MessageBusExt, SubscribeRequest, TopicName, TopicSpec};
/// use qi_testkit::bus::MemoryBus;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let bus = MemoryBus::default();
/// let topic = TopicName::new("crypto-prices")?;
/// bus.create_topics(&[TopicSpec::new(topic.clone(), 12)?]).await?;
/// bus.publish_one(&Message::new(topic.clone(), "1.5").with_key("binance:BTC-USDT")).await?;
///
/// let mut sub = bus.subscribe(SubscribeRequest::new(GroupId::new("writer")?, [topic])?).await?;
/// let batch = sub.recv(1_000, Duration::from_secs(1)).await?;
/// assert_eq!(batch.messages()[0].payload.as_deref(), Some(&b"1.5"[..]));
/// sub.commit(batch.offsets()).await?;
/// bus.close().await?;
/// # Ok::<(), qi_core::Error>(())
/// # }).unwrap();
/// ```
pub struct MemoryBus {
    log: Arc<Log>,
    client: Arc<Client>,
}

impl MemoryBus {
    /// Creates an empty log and a client of it. `clock` provides the timestamps and the age of messages.
    ///
    /// # Errors
    /// `Config` if `max_message_bytes`, `topic_max_message_bytes` or `delivery_timeout` is 0, or if `max_bytes` has
    /// no room for the largest message.
    pub fn new(config: MemoryBusConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        config.validate()?;
        Ok(Self::with(config, clock))
    }

    fn with(config: MemoryBusConfig, clock: Arc<dyn Clock>) -> Self {
        Self::client_of(Arc::new(Log::new(config, clock)))
    }

    fn client_of(log: Arc<Log>) -> Self {
        let client = Arc::new(Client::new(log.lock().next_id()));
        Self { log, client }
    }

    /// Opens another client of the same log, like another process. Closing one client does not affect the others.
    #[must_use]
    pub fn connect(&self) -> Self {
        Self::client_of(self.log.clone())
    }

    /// Disconnects this client, like a network failure. Calls fail with `Unavailable`, `recv` after its wait. Published
    /// messages fail with `Timeout` after the delivery timeout. `close` succeeds. The client's members expire at their
    /// session timeout, and a dropped subscription does not leave its group earlier.
    pub fn disconnect(&self) {
        let mut state = self.log.lock();
        self.client.disconnected.store(true, Ordering::SeqCst);
        state.set_unreachable(self.client.id, Some(Instant::now()));
    }

    /// Reverts [`MemoryBus::disconnect`]. Members within their session timeout continue as before.
    pub fn reconnect(&self) {
        let mut state = self.log.lock();
        // Members whose session has passed in the meantime are removed, even if no other call has noticed.
        state.expire(&self.log.config, self.log.clock.now(), Instant::now());
        self.client.disconnected.store(false, Ordering::SeqCst);
        state.set_unreachable(self.client.id, None);
        drop(state);
        self.log.space.notify_waiters();
    }

    /// Removes the messages of a partition below `offset`, read or unread, like `kafka-delete-records`.
    ///
    /// # Errors
    /// `NotFound` for an unknown topic, `InvalidInput` for an unknown partition or an offset beyond the end.
    pub fn delete_records(&self, partition: &TopicPartition, offset: u64) -> Result<()> {
        let mut state = self.log.lock();
        let topic = state
            .topics
            .get_mut(&partition.topic)
            .ok_or_else(|| error::unknown_topic(&partition.topic, "delete_records"))?;
        let log = topic.partitions.get_mut(partition.partition as usize).ok_or_else(|| {
            error::unknown_partition(&partition.topic, partition.partition, "delete_records")
        })?;
        if offset > log.end {
            return Err(error::beyond_end(partition, offset, log.end));
        }
        let freed = log.drop_below(offset);
        topic.wake();
        state.used -= freed;
        drop(state);
        self.log.space.notify_waiters();
        Ok(())
    }

    /// Returns the number of bytes that all topics hold now.
    pub fn used_bytes(&self) -> usize {
        self.log.lock().used
    }

    /// Starts a call: consumes tokio's budget, and fails if the client is closed or disconnected.
    async fn enter(&self, operation: &'static str) -> Result<()> {
        cooperate().await;
        self.client.check(operation)
    }
}

impl Default for MemoryBus {
    /// Returns a bus with default settings and the system clock.
    fn default() -> Self {
        Self::with(MemoryBusConfig::default(), Arc::new(SystemClock))
    }
}

impl fmt::Display for MemoryBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(error::BACKEND)
    }
}

impl fmt::Debug for MemoryBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.log.config;
        f.debug_struct("MemoryBus")
            .field("client", &self.client.id)
            .field("config", config)
            .finish_non_exhaustive()
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl MessageBus for MemoryBus {
    fn info(&self) -> BusInfo {
        let config = &self.log.config;
        BusInfo::new(error::BACKEND, config.delivery_timeout, config.max_message_bytes)
            .with_encoding(config.codec)
    }

    async fn publish(&self, batch: &[Message], options: &PublishOptions) -> Result<PublishReport> {
        cooperate().await;
        // The call is counted first. Either `close` sees this call and waits for it, or this call sees `close`.
        let _guard = PublishGuard::new(&self.client);
        if self.client.phase() != Phase::Open {
            return Err(error::closed("publish"));
        }
        Ok(PendingPublish::new(batch, options).run(&self.log, &self.client).await)
    }

    async fn subscribe(&self, request: SubscribeRequest) -> Result<Box<dyn Subscription>> {
        self.enter("subscribe").await?;
        Ok(Box::new(MemorySubscription::join(self.log.clone(), self.client.clone(), request)?))
    }

    async fn open_reader(&self, request: ReaderRequest) -> Result<Box<dyn Subscription>> {
        self.enter("open_reader").await?;
        Ok(Box::new(MemoryReader::open(self.log.clone(), self.client.clone(), &request)?))
    }

    async fn create_topics(&self, specs: &[TopicSpec]) -> Result<Vec<TopicOutcome>> {
        self.enter("create_topics").await?;
        let mut state = self.log.lock();
        Ok(specs.iter().map(|spec| state.create(spec, &self.log.config)).collect())
    }

    async fn delete_topics(&self, names: &[TopicName]) -> Result<Vec<TopicOutcome>> {
        self.enter("delete_topics").await?;
        let outcomes = {
            let mut state = self.log.lock();
            names.iter().map(|name| state.delete(name)).collect()
        };
        self.log.space.notify_waiters();
        Ok(outcomes)
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>> {
        self.enter("topics").await?;
        let mut state = self.log.lock();
        state.expire(&self.log.config, self.log.clock.now(), Instant::now());
        Ok(state.describe_topics())
    }

    async fn groups(&self, query: &GroupQuery) -> Result<Vec<GroupInfo>> {
        self.enter("groups").await?;
        let mut state = self.log.lock();
        state.expire(&self.log.config, self.log.clock.now(), Instant::now());
        Ok(state.describe_groups(query))
    }

    async fn ping(&self) -> Result<BusPingReport> {
        let began = Instant::now();
        self.enter("ping").await?;
        Ok(BusPingReport::new(Some(error::BACKEND.to_owned()), 1, began.elapsed()))
    }

    async fn close(&self) -> Result<CloseReport> {
        cooperate().await;
        self.client.begin_close();
        let limit = self.log.config.close_timeout;
        // A publish that still waits for space after the limit fails as `NotSent`, so no message remains `Unknown`.
        let _ = timeout(limit, self.client.wait_until_idle()).await;
        {
            let mut state = self.log.lock();
            self.client.phase.store(Phase::Closed as u8, Ordering::SeqCst);
            state.end_client(self.client.id, Instant::now());
        }
        self.client.idle.notify_waiters();
        self.log.space.notify_waiters();
        Ok(CloseReport::new(0))
    }
}

/// The lifecycle state of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    Open,
    /// The bus rejects new calls and waits for calls of `publish` under way.
    Closing,
    Closed,
}

/// The state that a client shares with its subscriptions.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: u64,
    phase: AtomicU8,
    disconnected: AtomicBool,
    /// The number of `publish` calls under way.
    publishing: AtomicUsize,
    /// Notifies waiters of the end of the last call.
    idle: Notify,
}

impl Client {
    fn new(id: u64) -> Self {
        Self {
            id,
            phase: AtomicU8::new(Phase::Open as u8),
            disconnected: AtomicBool::new(false),
            publishing: AtomicUsize::new(0),
            idle: Notify::new(),
        }
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::SeqCst) {
            0 => Phase::Open,
            1 => Phase::Closing,
            _ => Phase::Closed,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.phase() == Phase::Closed
    }

    pub(super) fn is_disconnected(&self) -> bool {
        self.disconnected.load(Ordering::SeqCst)
    }

    /// Fails if the client is closing, closed or disconnected.
    fn check(&self, operation: &'static str) -> Result<(), Error> {
        if self.phase() != Phase::Open {
            Err(error::closed(operation))
        } else if self.is_disconnected() {
            Err(error::unavailable(operation))
        } else {
            Ok(())
        }
    }

    fn begin_close(&self) {
        let (open, closing) = (Phase::Open as u8, Phase::Closing as u8);
        // A second `close` finds another phase and does not change it.
        let _ = self.phase.compare_exchange(open, closing, Ordering::SeqCst, Ordering::SeqCst);
    }

    async fn wait_until_idle(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.publishing.load(Ordering::SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// Counts a publish while it is under way. The drop of its future ends it too.
struct PublishGuard<'a>(&'a Client);

impl<'a> PublishGuard<'a> {
    fn new(client: &'a Client) -> Self {
        client.publishing.fetch_add(1, Ordering::SeqCst);
        Self(client)
    }
}

impl Drop for PublishGuard<'_> {
    fn drop(&mut self) {
        if self.0.publishing.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}
