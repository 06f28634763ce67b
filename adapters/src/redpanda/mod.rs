//! A [`MessageBus`] on Redpanda and Apache Kafka.
//!
//! [`RedpandaBus::open`] takes a [`RedpandaConfig`] and does no I/O; the first call connects. Which settings the
//! client has and why, and what the brokers really do, stands in `docs/backends/redpanda.md`.

mod admin;
mod error;
mod feed;
mod groups;
mod inbox;
mod link;
mod message;
mod offsets;
mod poller;
mod producer;
mod publish;
mod rest;
mod settings;
mod shelf;
mod subscription;
mod tails;
mod ticket;
mod topics;

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use qi_core::Result;
use qi_core::bus::{
    BusInfo, BusStatus, CloseReport, GroupInfo, GroupQuery, Message, MessageBus, PublishOptions,
    PublishReport, Read, StartFrom, Subscribe, Subscription, TopicInfo, TopicName, TopicOutcome,
    TopicPartition, TopicSpec,
};
use rdkafka::admin::AdminClient;
use rdkafka::consumer::Consumer as _;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

pub use crate::config::RedpandaConfig;

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use groups::fuzz_assignment;

use admin::Office;
use feed::{Feed, Plan, Standing};
use link::{Inspector, Link};
use publish::Sender;
use subscription::RedpandaSubscription;

const BACKEND: &str = "redpanda";
/// Joining a group may take as long as its other members take to notice, which is the poll limit; who joins is told
/// after this that it did not work.
const JOIN: Duration = Duration::from_mins(5);
/// Subscriptions that end with their bus have so long.
const LEAVE: Duration = Duration::from_secs(10);

/// A message bus on Redpanda or Apache Kafka. Share it in an `Arc`.
///
/// ```no_run
/// use std::time::Duration;
/// use qi_adapters::redpanda::{RedpandaBus, RedpandaConfig};
/// use qi_core::bus::{GroupId, Message, MessageBus, MessageBusExt, Subscribe, TopicName, TopicSpec};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> qi_core::Result<()> {
/// let bus = RedpandaBus::open(RedpandaConfig::from_brokers("127.0.0.1:59092"))?;
/// let topic = TopicName::new("crypto-prices")?;
/// bus.create_topics(&[TopicSpec::new(topic.clone(), 12)?]).await?;
/// bus.publish_one(&Message::new(topic.clone(), "1.5").with_key("binance:BTC-USDT")).await?;
///
/// let mut sub = bus.subscribe(Subscribe::new(GroupId::new("writer")?, [topic])?).await?;
/// let batch = sub.recv(1_000, Duration::from_secs(1)).await?;
/// sub.commit(batch.positions()).await?;
/// bus.close().await?;
/// # Ok(())
/// # }
/// ```
pub struct RedpandaBus {
    config: Arc<RedpandaConfig>,
    sender: Sender,
    clients: Mutex<Clients>,
    feeds: Mutex<Vec<Weak<Feed>>>,
    phase: AtomicU8,
    /// Calls of `publish` under way.
    publishing: AtomicUsize,
    quiet: Notify,
}

/// Clients that ask, each made by the first question.
#[derive(Default)]
struct Clients {
    admin: Option<Arc<AdminClient<Link>>>,
    inspector: Option<Arc<Inspector>>,
    of_groups: Arc<groups::Kept>,
}

/// How far the end of a bus has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    Open,
    /// It takes no new messages and drains.
    Closing,
    Closed,
}

impl RedpandaBus {
    /// A bus of this configuration. Nothing is sent; the first call meets the brokers.
    ///
    /// # Errors
    /// `Config` for a bound that is out of range, a property that librdkafka does not know, or encryption that was
    /// not compiled in.
    pub fn open(config: RedpandaConfig) -> Result<Self> {
        config.validate()?;
        settings::check(&config)?;
        settings::check_panics(&config, cfg!(panic = "abort"))?;
        settings::warn(&config);
        let config = Arc::new(config);
        Ok(Self {
            sender: Sender::new(config.clone()),
            config,
            clients: Mutex::default(),
            feeds: Mutex::default(),
            phase: AtomicU8::new(Phase::Open as u8),
            publishing: AtomicUsize::new(0),
            quiet: Notify::new(),
        })
    }

    /// The driver's client for administration, for what the port leaves out. It connects with the first call.
    ///
    /// # Errors
    /// `Config` for settings that librdkafka does not accept together.
    pub fn admin(&self) -> Result<Arc<AdminClient<impl rdkafka::ClientContext + use<>>>> {
        self.administration("admin")
    }

    fn administration(&self, operation: &'static str) -> Result<Arc<AdminClient<Link>>> {
        let ear = self.inspector(operation)?;
        let mut clients = self.clients();
        if let Some(admin) = &clients.admin {
            return Ok(admin.clone());
        }
        if self.phase() == Phase::Closed {
            return Err(error::closed(operation));
        }
        let link = Link::new("admin", "").hearing_by(ear);
        let admin = settings::admin(&self.config).create_with_context(link);
        let admin: AdminClient<Link> = admin.map_err(|e| error::of(e, operation))?;
        Ok(clients.admin.insert(Arc::new(admin)).clone())
    }

    fn inspector(&self, operation: &'static str) -> Result<Arc<Inspector>> {
        let mut clients = self.clients();
        if let Some(inspector) = &clients.inspector {
            return Ok(inspector.clone());
        }
        if self.phase() == Phase::Closed {
            return Err(error::closed(operation));
        }
        let inspector = settings::inspector(&self.config, None).create_with_context(Link::new("admin", ""));
        let inspector: Inspector = inspector.map_err(|e| error::of(e, operation))?;
        let inspector = Arc::new(inspector);
        link::serve(&inspector).map_err(|e| error::internal(operation, e))?;
        Ok(clients.inspector.insert(inspector).clone())
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limit(&self) -> Duration {
        settings::limit(self.config.request_timeout_ms)
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::SeqCst) {
            0 => Phase::Open,
            1 => Phase::Closing,
            _ => Phase::Closed,
        }
    }

    /// What every call begins with: a share of tokio's budget, and a look whether anybody may call at all.
    async fn enter(&self, operation: &'static str) -> Result<()> {
        tokio::task::coop::consume_budget().await;
        if self.phase() == Phase::Open { Ok(()) } else { Err(error::closed(operation)) }
    }

    /// Every topic of a reader must be there.
    async fn partitions(
        &self,
        admin: &Arc<AdminClient<Link>>,
        topic: &TopicName,
        operation: &'static str,
    ) -> Result<u32> {
        let found = topics::partitions(admin, topic, self.limit(), operation).await;
        found.map_err(|e| admin.inner().context().explain(e))
    }

    /// Keeps a reader, so that the bus can end it; one that comes while the bus ends is refused.
    fn keep(&self, feed: &Arc<Feed>, operation: &'static str) -> Result<()> {
        let mut feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        if self.phase() == Phase::Closed {
            return Err(error::closed(operation));
        }
        feeds.retain(|feed| feed.strong_count() > 0);
        feeds.push(Arc::downgrade(feed));
        Ok(())
    }

    async fn drained(&self) {
        loop {
            let quiet = self.quiet.notified();
            tokio::pin!(quiet);
            quiet.as_mut().enable();
            if self.publishing.load(Ordering::SeqCst) == 0 {
                break;
            }
            quiet.await;
        }
        self.sender.drained().await;
    }
}

/// Runs what blocks off the async threads.
async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(failed) => Err(error::internal(operation, failed)),
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
        let delivery = settings::limit(self.config.delivery_timeout_ms);
        BusInfo::new(BACKEND, delivery, self.config.max_message_bytes)
    }

    async fn publish(&self, batch: &[Message], options: &PublishOptions) -> Result<PublishReport> {
        tokio::task::coop::consume_budget().await;
        // Counted first: `close` then either sees this call and waits for it, or this call sees `close`.
        let _under_way = UnderWay::new(self);
        if self.phase() != Phase::Open {
            return Err(error::closed("publish"));
        }
        if batch.is_empty() {
            return Ok(PublishReport::default());
        }
        let admin = self.administration("publish")?;
        Ok(self.sender.publish(&admin, batch, options).await)
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>> {
        self.enter("subscribe").await?;
        let admin = self.administration("subscribe")?;
        for topic in &request.topics {
            self.partitions(&admin, topic, "subscribe").await?;
        }
        let config = settings::member(&self.config, &request);
        let plan = Plan {
            topics: request.topics.clone(),
            otherwise: request.otherwise,
            poll_limit: Some(request.poll_limit),
            max_buffered_bytes: request.max_buffered_bytes,
            limit: self.limit(),
            commit_limit: settings::limit(self.config.commit_timeout_ms),
        };
        let link = Link::new("consumer", request.group.as_str());
        let feed = Feed::new(plan, admin, &config, link).map_err(|e| error::of(e, "subscribe"))?;
        let mut subscription = RedpandaSubscription::new(feed.clone());
        self.keep(&feed, "subscribe")?;
        let client = feed.client("subscribe")?;
        let names: Vec<_> = request.topics.iter().map(TopicName::as_str).collect();
        client.subscribe(&names).map_err(|e| error::of(e, "subscribe"))?;
        poller::start(feed.clone(), client).map_err(|e| error::internal("subscribe", e))?;
        match timeout(JOIN, joined(&feed)).await {
            Ok(Ok(())) => Ok(Box::new(subscription)),
            Ok(Err(refused)) => {
                subscription.close().await?;
                Err(refused.with_operation("subscribe"))
            }
            Err(_) => {
                subscription.close().await?;
                Err(error::late("subscribe", "the group gave no assignment in time"))
            }
        }
    }

    async fn read(&self, request: Read) -> Result<Box<dyn Subscription>> {
        self.enter("read").await?;
        let admin = self.administration("read")?;
        let mut topics: Vec<TopicName> = Vec::new();
        for (partition, _) in &request.from {
            if topics.last() != Some(&partition.topic) {
                topics.push(partition.topic.clone());
            }
        }
        for topic in &topics {
            let count = self.partitions(&admin, topic, "read").await?;
            let unknown = |(p, _): &&(TopicPartition, _)| p.topic == *topic && p.partition >= count;
            if let Some((partition, _)) = request.from.iter().find(unknown) {
                return Err(error::unknown_partition(topic, partition.partition, "read"));
            }
        }
        let plan = Plan {
            topics,
            otherwise: StartFrom::Earliest,
            poll_limit: None,
            max_buffered_bytes: request.max_buffered_bytes,
            limit: self.limit(),
            commit_limit: settings::limit(self.config.commit_timeout_ms),
        };
        let config = settings::reader(&self.config, request.max_buffered_bytes);
        let feed =
            Feed::new(plan, admin, &config, Link::new("consumer", "")).map_err(|e| error::of(e, "read"))?;
        let subscription = RedpandaSubscription::new(feed.clone());
        self.keep(&feed, "read")?;
        let opened = blocking("read", move || {
            let client = feed.client("read")?;
            let starts = subscription::resolve(&client, &request.from, feed.plan.limit)?;
            let list =
                offsets::list(starts.iter().map(|(partition, start)| (partition, offsets::offset(*start))));
            list.and_then(|list| client.assign(&list)).map_err(|e| error::of(e, "read"))?;
            {
                let mut state = feed.state();
                for (partition, start) in starts {
                    state.shelf.gain(partition, start, None);
                }
                state.shelf.forget_gains();
                state.shelf.turn();
                state.standing = Standing::In;
            }
            poller::start(feed.clone(), client).map_err(|e| error::internal("read", e))
        })
        .await;
        if let Err(error) = opened {
            // Ending a client blocks.
            blocking("read", move || {
                drop(subscription);
                Ok(())
            })
            .await?;
            return Err(error);
        }
        Ok(Box::new(subscription))
    }

    async fn create_topics(&self, specs: &[TopicSpec]) -> Result<Vec<TopicOutcome>> {
        self.enter("create_topics").await?;
        let admin = self.administration("create_topics")?;
        Office { admin: &admin, limit: self.limit() }.create(specs).await
    }

    async fn delete_topics(&self, names: &[TopicName]) -> Result<Vec<TopicOutcome>> {
        self.enter("delete_topics").await?;
        let admin = self.administration("delete_topics")?;
        Office { admin: &admin, limit: self.limit() }.delete(names, &self.sender).await
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>> {
        self.enter("topics").await?;
        let (admin, inspector) = (self.administration("topics")?, self.inspector("topics")?);
        Office { admin: &admin, limit: self.limit() }.topics(&inspector).await
    }

    async fn groups(&self, query: &GroupQuery) -> Result<Vec<GroupInfo>> {
        self.enter("groups").await?;
        let (inspector, config) = (self.inspector("groups")?, self.config.clone());
        let (query, limit, kept) = (query.clone(), self.limit(), self.clients().of_groups.clone());
        blocking("groups", move || groups::describe(&config, &inspector, &kept, &query, limit)).await
    }

    async fn ping(&self) -> Result<BusStatus> {
        self.enter("ping").await?;
        let admin = self.administration("ping")?;
        Office { admin: &admin, limit: self.limit() }.ping().await
    }

    async fn close(&self) -> Result<CloseReport> {
        tokio::task::coop::consume_budget().await;
        let (open, closing) = (Phase::Open as u8, Phase::Closing as u8);
        // A second close finds another phase and leaves it.
        let _ = self.phase.compare_exchange(open, closing, Ordering::SeqCst, Ordering::SeqCst);
        let drain = settings::limit(self.config.close_timeout_ms);
        let _ = timeout(drain, self.drained()).await;
        let unknown = self.sender.in_flight();
        self.phase.store(Phase::Closed as u8, Ordering::SeqCst);
        self.sender.end();
        let feeds: Vec<_> = {
            let mut feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
            feeds.drain(..).filter_map(|feed| feed.upgrade()).collect()
        };
        for feed in &feeds {
            feed.begin_end();
        }
        let deadline = Instant::now() + LEAVE;
        for feed in feeds {
            if !feed.ended(deadline.saturating_duration_since(Instant::now())).await {
                tracing::warn!("leaving a group goes on behind the close of the bus");
            }
        }
        let clients = std::mem::take(&mut *self.clients());
        // Ending a client joins its threads.
        blocking("close", move || {
            drop(clients);
            Ok(())
        })
        .await?;
        Ok(CloseReport::new(unknown))
    }
}

/// Waits for the first assignment, or for why there is none.
async fn joined(feed: &Feed) -> Result<()> {
    loop {
        let changed = feed.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        {
            let mut state = feed.state();
            if state.closing {
                return Err(error::closed("subscribe"));
            }
            if let Some(refused) = state.fatal.clone().or_else(|| state.failure.take()) {
                return Err(refused);
            }
            if state.standing != Standing::Joining {
                return state.shelf.failure().map_or(Ok(()), Err);
            }
        }
        changed.await;
    }
}

/// Counts a publish while it is under way, dropped or not.
struct UnderWay<'a>(&'a RedpandaBus);

impl<'a> UnderWay<'a> {
    fn new(bus: &'a RedpandaBus) -> Self {
        bus.publishing.fetch_add(1, Ordering::SeqCst);
        Self(bus)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if self.0.publishing.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.quiet.notify_waiters();
        }
    }
}

impl Drop for RedpandaBus {
    fn drop(&mut self) {
        let lost = self.sender.in_flight();
        if lost > 0 {
            tracing::warn!(lost, "a bus was dropped without close while messages had no answer");
        }
        self.sender.end();
        let feeds = std::mem::take(self.feeds.get_mut().unwrap_or_else(PoisonError::into_inner));
        feeds.iter().filter_map(Weak::upgrade).for_each(|feed| feed.begin_end());
        let clients = std::mem::take(self.clients.get_mut().unwrap_or_else(PoisonError::into_inner));
        // Ending a client joins its threads, which must not hold up whoever drops the bus.
        let ending = std::thread::Builder::new().name("qi-redpanda-end".to_owned());
        if ending.spawn(move || drop(clients)).is_err() {
            tracing::warn!("no thread could be had to end the clients of a bus");
        }
    }
}
