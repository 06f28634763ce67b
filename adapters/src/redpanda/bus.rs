//! The `MessageBus` over the Kafka protocol.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use qi_core::Result;
use qi_core::bus::{
    BusInfo, BusPingReport, CloseReport, GroupInfo, GroupQuery, Message, MessageBus, OffsetReset,
    PublishOptions, PublishReport, ReaderRequest, SubscribeRequest, Subscription, TopicInfo, TopicName,
    TopicOutcome, TopicPartition, TopicSpec,
};
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::admin::AdminOperations;
use super::config::RedpandaConfig;
use super::connect::{self, KafkaContext, QueryClient, blocking};
use super::consumer::{self, ConsumerHandle, ConsumerSettings, PartitionSource, RedpandaSubscription};
use super::error::{self, BACKEND};
use super::producer::Publisher;
use super::{client_config, groups, metadata};
use crate::password_warning::PasswordWarning;

/// The maximum time for the first assignment. A group waits for its other members, up to their maximum poll interval.
const JOIN_TIMEOUT: Duration = Duration::from_mins(5);
/// The maximum time for which `close` waits for the consumers of the bus.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A message bus on Redpanda or Apache Kafka. Share it in an `Arc`.
///
/// ```no_run
/// use std::time::Duration;
/// use qi_adapters::redpanda::{RedpandaBus, RedpandaConfig};
/// use qi_core::bus::{GroupId, Message, MessageBus, MessageBusExt, SubscribeRequest, TopicName, TopicSpec};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> qi_core::Result<()> {
/// let bus = RedpandaBus::open(RedpandaConfig::from_brokers("127.0.0.1:59092"))?;
/// let topic = TopicName::new("crypto-prices")?;
/// bus.create_topics(&[TopicSpec::new(topic.clone(), 12)?]).await?;
/// bus.publish_one(&Message::new(topic.clone(), "1.5").with_key("binance:BTC-USDT")).await?;
///
/// let mut sub = bus.subscribe(SubscribeRequest::new(GroupId::new("writer")?, [topic])?).await?;
/// let batch = sub.recv(1_000, Duration::from_secs(1)).await?;
/// sub.commit(batch.offsets()).await?;
/// bus.close().await?;
/// # Ok(())
/// # }
/// ```
pub struct RedpandaBus {
    config: Arc<RedpandaConfig>,
    publisher: Publisher,
    password_warning: Arc<PasswordWarning>,
    clients: Mutex<Clients>,
    consumers: Mutex<Vec<ConsumerHandle>>,
    phase: AtomicU8,
    /// The number of `publish` calls in progress.
    publishing: AtomicUsize,
    published: Notify,
}

/// The clients for requests. The first request creates its client.
#[derive(Default)]
struct Clients {
    admin: Option<Arc<AdminClient<KafkaContext>>>,
    query_client: Option<Arc<QueryClient>>,
    /// The client that requests last stable offsets.
    stable_client: Option<Arc<QueryClient>>,
    groups: Arc<groups::GroupClients>,
}

/// The phase of a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    Open,
    /// New messages are rejected, and messages in flight are awaited.
    Closing,
    Closed,
}

impl RedpandaBus {
    /// Creates a bus from this configuration. Performs no network I/O; the first call connects to the brokers.
    ///
    /// # Errors
    /// `Config` for a value out of range, a property that librdkafka does not know, encryption that was not compiled
    /// in, or a program that is built with `panic = "abort"`.
    pub fn open(config: RedpandaConfig) -> Result<Self> {
        config.validate()?;
        let config = config.with_passwords()?;
        client_config::check(&config)?;
        client_config::check_panic_strategy(&config, cfg!(panic = "abort"))?;
        let password_warning = Arc::new(client_config::password_warning(&config));
        let config = Arc::new(config);
        Ok(Self {
            publisher: Publisher::new(config.clone()),
            config,
            password_warning,
            clients: Mutex::default(),
            consumers: Mutex::default(),
            phase: AtomicU8::new(Phase::Open as u8),
            publishing: AtomicUsize::new(0),
            published: Notify::new(),
        })
    }

    /// Returns the driver's client for administration, for calls that the port does not offer. The client connects
    /// on the first call.
    ///
    /// # Errors
    /// `Config` for a combination of settings that librdkafka rejects, `Closed` after `close`.
    pub fn admin(&self) -> Result<Arc<AdminClient<impl rdkafka::ClientContext + use<>>>> {
        self.admin_client("admin")
    }

    fn admin_client(&self, operation: &'static str) -> Result<Arc<AdminClient<KafkaContext>>> {
        let auth_errors = self.query_client(operation)?;
        let mut clients = self.clients();
        if let Some(admin) = &clients.admin {
            return Ok(admin.clone());
        }
        if self.phase() == Phase::Closed {
            return Err(error::closed(operation));
        }
        let context = self.admin_context().with_auth_errors_of(auth_errors);
        let admin = client_config::admin(&self.config).create_with_context(context);
        let admin: AdminClient<KafkaContext> = admin.map_err(|e| error::from_kafka(e, operation))?;
        Ok(clients.admin.insert(Arc::new(admin)).clone())
    }

    fn admin_context(&self) -> KafkaContext {
        KafkaContext::new("admin", "").with_password_warning(self.password_warning.clone())
    }

    fn query_client(&self, operation: &'static str) -> Result<Arc<QueryClient>> {
        let config = || client_config::query_client(&self.config, None);
        self.cached_client(|clients| &mut clients.query_client, config, operation)
    }

    fn stable_client(&self, operation: &'static str) -> Result<Arc<QueryClient>> {
        let config = || client_config::stable_client(&self.config);
        self.cached_client(|clients| &mut clients.stable_client, config, operation)
    }

    fn cached_client(
        &self,
        cached: impl FnOnce(&mut Clients) -> &mut Option<Arc<QueryClient>>,
        config: impl FnOnce() -> ClientConfig,
        operation: &'static str,
    ) -> Result<Arc<QueryClient>> {
        let mut clients = self.clients();
        let cached = cached(&mut clients);
        if let Some(client) = cached {
            return Ok(client.clone());
        }
        if self.phase() == Phase::Closed {
            return Err(error::closed(operation));
        }
        let client: QueryClient = config()
            .create_with_context(self.admin_context())
            .map_err(|e| error::from_kafka(e, operation))?;
        let client = Arc::new(client);
        connect::spawn_event_loop(&client).map_err(|e| error::internal(operation, e))?;
        Ok(cached.insert(client).clone())
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request_timeout(&self) -> Duration {
        client_config::clamp_timeout(self.config.request_timeout)
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::SeqCst) {
            0 => Phase::Open,
            1 => Phase::Closing,
            _ => Phase::Closed,
        }
    }

    /// Begins a call. Consumes a unit of tokio's cooperative budget. Fails if the bus is closing or closed.
    async fn check_open(&self, operation: &'static str) -> Result<()> {
        tokio::task::coop::consume_budget().await;
        if self.phase() == Phase::Open { Ok(()) } else { Err(error::closed(operation)) }
    }

    /// Returns the number of partitions of a topic. Fails if the topic does not exist.
    async fn partitions(
        &self,
        admin: &Arc<AdminClient<KafkaContext>>,
        topic: &TopicName,
        operation: &'static str,
    ) -> Result<u32> {
        let found = metadata::partition_count(admin, topic, self.request_timeout(), operation).await;
        found.map_err(|e| admin.inner().context().auth_error_or(e))
    }

    /// Returns the settings of a reader without a group.
    fn settings(&self, max_buffered_bytes: usize) -> ConsumerSettings {
        ConsumerSettings {
            topics: Vec::new(),
            offset_reset: OffsetReset::Earliest,
            max_poll_interval: None,
            announce_revocations: false,
            max_buffered_bytes,
            request_timeout: self.request_timeout(),
            commit_timeout: client_config::clamp_timeout(self.config.commit_timeout),
        }
    }

    /// Starts a consumer and waits for its first assignment.
    async fn consume(
        &self,
        settings: ConsumerSettings,
        client_config: ClientConfig,
        group: &str,
        source: PartitionSource,
        operation: &'static str,
    ) -> Result<Box<dyn Subscription>> {
        let (admin, context) = (self.admin_client(operation)?, KafkaContext::new("consumer", group));
        let (consumer, joined) = consumer::start(settings, admin, client_config, context, source)?;
        let mut subscription = RedpandaSubscription::new(consumer.clone());
        self.register(consumer, operation)?;
        let failure = match timeout(JOIN_TIMEOUT, joined).await {
            Ok(Ok(Ok(()))) => return Ok(Box::new(subscription)),
            Ok(Ok(Err(failure))) => failure.with_operation(operation),
            Ok(Err(_)) => error::closed(operation),
            Err(_) => error::timed_out(operation, "no assignment within 300 s"),
        };
        subscription.close().await?;
        Err(failure)
    }

    /// Stores a consumer, so that `close` of the bus also closes the consumer. Fails if the bus is closed.
    fn register(&self, consumer: ConsumerHandle, operation: &'static str) -> Result<()> {
        let mut consumers = self.consumers.lock().unwrap_or_else(PoisonError::into_inner);
        if self.phase() == Phase::Closed {
            return Err(error::closed(operation));
        }
        consumers.retain_mut(|consumer| !consumer.has_ended());
        consumers.push(consumer);
        Ok(())
    }

    async fn wait_until_drained(&self) {
        loop {
            let published = self.published.notified();
            tokio::pin!(published);
            published.as_mut().enable();
            if self.publishing.load(Ordering::SeqCst) == 0 {
                break;
            }
            published.await;
        }
        self.publisher.wait_until_drained().await;
    }
}

impl fmt::Display for RedpandaBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(BACKEND)
    }
}

impl fmt::Debug for RedpandaBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedpandaBus")
            .field("config", &self.config)
            .field("phase", &self.phase())
            .finish_non_exhaustive()
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl MessageBus for RedpandaBus {
    fn info(&self) -> BusInfo {
        let delivery = client_config::clamp_timeout(self.config.delivery_timeout);
        BusInfo::new(BACKEND, delivery, self.config.max_message_bytes).with_encoding(self.config.codec)
    }

    async fn publish(&self, batch: &[Message], options: &PublishOptions) -> Result<PublishReport> {
        tokio::task::coop::consume_budget().await;
        // The call is counted before it reads the phase. Either `close` sees the call and waits for it, or the call
        // sees `close`.
        let _guard = PublishGuard::new(self);
        if self.phase() != Phase::Open {
            return Err(error::closed("publish"));
        }
        if batch.is_empty() {
            return Ok(PublishReport::default());
        }
        let admin = self.admin_client("publish")?;
        Ok(self.publisher.publish(&admin, batch, options).await)
    }

    async fn subscribe(&self, request: SubscribeRequest) -> Result<Box<dyn Subscription>> {
        self.check_open("subscribe").await?;
        let admin = self.admin_client("subscribe")?;
        for topic in &request.topics {
            self.partitions(&admin, topic, "subscribe").await?;
        }
        let client_config = client_config::member(&self.config, &request);
        let settings = ConsumerSettings {
            topics: request.topics.clone(),
            offset_reset: request.offset_reset,
            max_poll_interval: Some(request.max_poll_interval),
            announce_revocations: request.announce_revocations,
            ..self.settings(request.max_buffered_bytes)
        };
        let group = request.group.as_str();
        self.consume(settings, client_config, group, PartitionSource::Subscribe, "subscribe").await
    }

    async fn open_reader(&self, request: ReaderRequest) -> Result<Box<dyn Subscription>> {
        self.check_open("open_reader").await?;
        let admin = self.admin_client("open_reader")?;
        let mut topics: Vec<TopicName> = Vec::new();
        for (partition, _) in &request.from {
            if topics.last() != Some(&partition.topic) {
                topics.push(partition.topic.clone());
            }
        }
        for topic in &topics {
            let count = self.partitions(&admin, topic, "open_reader").await?;
            let unknown = |(p, _): &&(TopicPartition, _)| p.topic == *topic && p.partition >= count;
            if let Some((partition, _)) = request.from.iter().find(unknown) {
                return Err(error::unknown_partition(topic, partition.partition, "open_reader"));
            }
        }
        let buffer = request.max_buffered_bytes;
        let client_config = client_config::reader(&self.config, buffer);
        let settings = ConsumerSettings { topics, ..self.settings(buffer) };
        self.consume(settings, client_config, "", PartitionSource::Assign(request.from), "open_reader").await
    }

    async fn create_topics(&self, specs: &[TopicSpec]) -> Result<Vec<TopicOutcome>> {
        self.check_open("create_topics").await?;
        let admin = self.admin_client("create_topics")?;
        AdminOperations { admin: &admin, limit: self.request_timeout() }.create(specs).await
    }

    async fn delete_topics(&self, names: &[TopicName]) -> Result<Vec<TopicOutcome>> {
        self.check_open("delete_topics").await?;
        let admin = self.admin_client("delete_topics")?;
        AdminOperations { admin: &admin, limit: self.request_timeout() }
            .delete(names, self.publisher.topics())
            .await
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>> {
        self.check_open("topics").await?;
        let (admin, query_client) = (self.admin_client("topics")?, self.query_client("topics")?);
        AdminOperations { admin: &admin, limit: self.request_timeout() }.topics(&query_client).await
    }

    async fn groups(&self, query: &GroupQuery) -> Result<Vec<GroupInfo>> {
        self.check_open("groups").await?;
        let query_client = self.query_client("groups")?;
        let (stable_client, config) = (self.stable_client("groups")?, self.config.clone());
        let (query, request_timeout, cache) =
            (query.clone(), self.request_timeout(), self.clients().groups.clone());
        let describe = move || {
            groups::describe(&config, [&query_client, &stable_client], &cache, &query, request_timeout)
        };
        blocking("groups", describe).await
    }

    async fn ping(&self) -> Result<BusPingReport> {
        self.check_open("ping").await?;
        let admin = self.admin_client("ping")?;
        AdminOperations { admin: &admin, limit: self.request_timeout() }.ping().await
    }

    async fn close(&self) -> Result<CloseReport> {
        tokio::task::coop::consume_budget().await;
        let (open, closing) = (Phase::Open as u8, Phase::Closing as u8);
        // A second call of `close` finds another phase and does not change it.
        let _ = self.phase.compare_exchange(open, closing, Ordering::SeqCst, Ordering::SeqCst);
        let drain = client_config::clamp_timeout(self.config.close_timeout);
        let _ = timeout(drain, self.wait_until_drained()).await;
        let unknown = self.publisher.in_flight();
        self.phase.store(Phase::Closed as u8, Ordering::SeqCst);
        self.publisher.close();
        let consumers = std::mem::take(&mut *self.consumers.lock().unwrap_or_else(PoisonError::into_inner));
        consumers.iter().for_each(ConsumerHandle::close);
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        for consumer in consumers {
            if !consumer.wait_closed(deadline.saturating_duration_since(Instant::now())).await {
                tracing::warn!("bus closed, but a consumer has not left its group within 10 s");
            }
        }
        let clients = std::mem::take(&mut *self.clients());
        // Dropping a client joins its threads.
        blocking("close", move || {
            drop(clients);
            Ok(())
        })
        .await?;
        Ok(CloseReport::new(unknown))
    }
}

/// A guard that counts a publish until it completes or is dropped.
struct PublishGuard<'a>(&'a RedpandaBus);

impl<'a> PublishGuard<'a> {
    fn new(bus: &'a RedpandaBus) -> Self {
        bus.publishing.fetch_add(1, Ordering::SeqCst);
        Self(bus)
    }
}

impl Drop for PublishGuard<'_> {
    fn drop(&mut self) {
        if self.0.publishing.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.published.notify_waiters();
        }
    }
}

impl Drop for RedpandaBus {
    fn drop(&mut self) {
        let unacknowledged = self.publisher.in_flight();
        if unacknowledged > 0 {
            tracing::warn!(unacknowledged, "bus dropped without close: messages were not acknowledged");
        }
        self.publisher.close();
        self.consumers
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .for_each(ConsumerHandle::close);
        let clients = std::mem::take(self.clients.get_mut().unwrap_or_else(PoisonError::into_inner));
        // Dropping a client joins its threads, which must not block the caller that drops the bus.
        let thread = std::thread::Builder::new().name("qi-redpanda-end".to_owned());
        if thread.spawn(move || drop(clients)).is_err() {
            tracing::warn!("cannot spawn the thread that drops the clients of a bus");
        }
    }
}
