//! The bus itself: a client of a log in memory.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use qi_core::bus::{
    BusInfo, BusStatus, CloseReport, GroupInfo, GroupQuery, Message, PublishOptions, PublishReport, Read,
    Subscribe, TopicInfo, TopicName, TopicOutcome, TopicPartition, TopicSpec,
};
use qi_core::{Clock, Error, MessageBus, Result, Subscription, SystemClock};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::publish::Sending;
use super::reader::MemoryReader;
use super::state::{Log, cooperate};
use super::subscription::MemorySubscription;
use super::{MemoryBusConfig, error};

/// A [`MessageBus`] in memory that keeps the whole contract: consumer groups that rebalance, commits, retention,
/// tombstones, a bound on its bytes. It waits on tokio's clock and stamps with an injected one, so that tests run
/// on paused time. Share it in an `Arc`.
///
/// Beside the port it does what tests need and no port has: [`MemoryBus::connect`] is another client of the same
/// log, [`MemoryBus::cut_off`] makes a client die without a word, [`MemoryBus::trim`] removes messages.
///
/// # When it is full
/// Retention by age removes messages whoever has read them. Beside it `max_bytes` bounds the whole bus: what every
/// group of a topic has committed goes first, the oldest first; a topic without a group gives up nothing. If that
/// is not enough, `publish` waits up to the delivery timeout, and then what does not fit is `NotSent`:
/// `Overloaded`, code `bus.memory.full`, naming the slowest group.
///
/// # What differs from a broker
/// There is one broker and one copy, whatever `replication` says. A compacted topic keeps everything until the
/// bus is full, and then gives up what a later message of the same key replaces.
///
/// ```
/// use std::time::Duration;
/// use qi_core::bus::{GroupId, Message, MessageBus, MessageBusExt, Subscribe, TopicName, TopicSpec};
/// use qi_testkit::bus::MemoryBus;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let bus = MemoryBus::default();
/// let topic = TopicName::new("crypto-prices")?;
/// bus.create_topics(&[TopicSpec::new(topic.clone(), 12)?]).await?;
/// bus.publish_one(&Message::new(topic.clone(), "1.5").with_key("binance:BTC-USDT")).await?;
///
/// let mut sub = bus.subscribe(Subscribe::new(GroupId::new("writer")?, [topic])?).await?;
/// let batch = sub.recv(1_000, Duration::from_secs(1)).await?;
/// assert_eq!(batch.messages()[0].payload.as_deref(), Some(&b"1.5"[..]));
/// sub.commit(batch.positions()).await?;
/// bus.close().await?;
/// # Ok::<(), qi_core::Error>(())
/// # }).unwrap();
/// ```
pub struct MemoryBus {
    log: Arc<Log>,
    client: Arc<Client>,
}

impl MemoryBus {
    /// An empty log, and a client of it. `clock` stamps messages and measures their age.
    ///
    /// # Errors
    /// `Config` for a limit of zero, or for `max_bytes` that has no room for the largest message.
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

    /// Another client of the same log, as another process would be: closing one leaves the others alone.
    #[must_use]
    pub fn connect(&self) -> Self {
        Self::client_of(self.log.clone())
    }

    /// Cuts this client off, as a network does: its members fall silent, and die when their session passes; its
    /// calls are `Unavailable`. Dropping its subscriptions now tells nobody.
    pub fn cut_off(&self) {
        let mut state = self.log.lock();
        self.client.cut.store(true, Ordering::SeqCst);
        state.set_away(self.client.id, Some(Instant::now()));
    }

    /// Ends what [`MemoryBus::cut_off`] began. Members whose session has not passed go on as if nothing had been.
    pub fn reconnect(&self) {
        let mut state = self.log.lock();
        // Those whose session has passed meanwhile are out, whoever was there to notice.
        state.expire(&self.log.config, self.log.clock.now(), Instant::now());
        self.client.cut.store(false, Ordering::SeqCst);
        state.set_away(self.client.id, None);
        drop(state);
        self.log.space.notify_waiters();
    }

    /// Removes the messages of a partition below `offset`, whoever has read them, as `kafka-delete-records` does.
    ///
    /// # Errors
    /// `NotFound` for an unknown topic, `InvalidInput` for an unknown partition or an offset beyond the end.
    pub fn trim(&self, partition: &TopicPartition, offset: u64) -> Result<()> {
        let mut state = self.log.lock();
        let topic = state
            .topics
            .get_mut(&partition.topic)
            .ok_or_else(|| error::unknown_topic(&partition.topic, "trim"))?;
        let log = topic
            .partitions
            .get_mut(partition.partition as usize)
            .ok_or_else(|| error::unknown_partition(&partition.topic, partition.partition, "trim"))?;
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

    /// What all topics hold at present, in bytes.
    pub fn used_bytes(&self) -> usize {
        self.log.lock().used
    }

    /// What every call begins with: a share of tokio's budget, and a look whether anybody may call at all.
    async fn enter(&self, operation: &'static str) -> Result<()> {
        cooperate().await;
        self.client.check(operation)
    }
}

impl Default for MemoryBus {
    /// The default settings and the machine's clock.
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
        BusInfo::new(error::BACKEND, config.delivery_timeout(), config.max_message_bytes)
            .with_encoding(config.codec)
    }

    async fn publish(&self, batch: &[Message], options: &PublishOptions) -> Result<PublishReport> {
        cooperate().await;
        // Counted first: `close` then either sees this call and waits for it, or this call sees `close`.
        let _under_way = UnderWay::new(&self.client);
        if self.client.phase() != Phase::Open {
            return Err(error::closed("publish"));
        }
        Ok(Sending::new(batch, options).run(&self.log, &self.client).await)
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>> {
        self.enter("subscribe").await?;
        Ok(Box::new(MemorySubscription::join(self.log.clone(), self.client.clone(), request)?))
    }

    async fn read(&self, request: Read) -> Result<Box<dyn Subscription>> {
        self.enter("read").await?;
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

    async fn ping(&self) -> Result<BusStatus> {
        let began = Instant::now();
        self.enter("ping").await?;
        Ok(BusStatus::new(Some(error::BACKEND.to_owned()), 1, began.elapsed()))
    }

    async fn close(&self) -> Result<CloseReport> {
        cooperate().await;
        self.client.begin_close();
        let limit = Duration::from_millis(self.log.config.close_timeout_ms);
        // Whoever still waits for space afterwards learns `NotSent`, so that nothing is ever unknown here.
        let _ = timeout(limit, self.client.drained()).await;
        {
            let mut state = self.log.lock();
            self.client.phase.store(Phase::Closed as u8, Ordering::SeqCst);
            state.end_client(self.client.id, Instant::now());
        }
        self.client.quiet.notify_waiters();
        self.log.space.notify_waiters();
        Ok(CloseReport::new(0))
    }
}

/// How far the end of a client has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    Open,
    /// It takes no new messages and drains.
    Closing,
    Closed,
}

/// What one client shares with its subscriptions.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: u64,
    phase: AtomicU8,
    cut: AtomicBool,
    /// Calls of `publish` under way.
    publishing: AtomicUsize,
    /// The last of them ended.
    quiet: Notify,
}

impl Client {
    fn new(id: u64) -> Self {
        Self {
            id,
            phase: AtomicU8::new(Phase::Open as u8),
            cut: AtomicBool::new(false),
            publishing: AtomicUsize::new(0),
            quiet: Notify::new(),
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

    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    /// Whether a call may go on.
    fn check(&self, operation: &'static str) -> Result<(), Error> {
        if self.phase() != Phase::Open {
            Err(error::closed(operation))
        } else if self.is_cut() {
            Err(error::unavailable(operation))
        } else {
            Ok(())
        }
    }

    fn begin_close(&self) {
        let (open, closing) = (Phase::Open as u8, Phase::Closing as u8);
        // A second close finds another phase and leaves it.
        let _ = self.phase.compare_exchange(open, closing, Ordering::SeqCst, Ordering::SeqCst);
    }

    async fn drained(&self) {
        loop {
            let quiet = self.quiet.notified();
            tokio::pin!(quiet);
            quiet.as_mut().enable();
            if self.publishing.load(Ordering::SeqCst) == 0 {
                return;
            }
            quiet.await;
        }
    }
}

/// Counts a publish while it is under way, dropped or not.
struct UnderWay<'a>(&'a Client);

impl<'a> UnderWay<'a> {
    fn new(client: &'a Client) -> Self {
        client.publishing.fetch_add(1, Ordering::SeqCst);
        Self(client)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if self.0.publishing.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.quiet.notify_waiters();
        }
    }
}
