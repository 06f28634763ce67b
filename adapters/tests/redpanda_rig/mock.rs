//! librdkafka's mock cluster: brokers inside the test process that speak the real protocol and fail on demand.

use std::fmt;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use qi_adapters::redpanda::{RedpandaBus, RedpandaConfig};
use qi_core::bus::{
    BusInfo, BusPingReport, CloseReport, GroupInfo, GroupQuery, Message, PublishOptions, PublishReport,
    ReaderRequest, SubscribeRequest, TopicInfo, TopicName, TopicOutcome, TopicPartition, TopicSpec,
    TopicState,
};
use qi_core::{
    Clock as _, Error, ErrorKind, MessageBus, Result, ResultExt as _, Subscription, SystemClock, Timestamp,
};
use qi_testkit::bus::contract::{BusEnv, BusFactory, Capability, Client, ClockMode, Connection, Timing};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use super::FixedConnection;

pub(crate) type Cluster = MockCluster<'static, DefaultProducerContext>;
type ClusterTask = Box<dyn FnOnce(&Cluster) + Send>;

/// A mock cluster on a separate thread, because it must not move between threads.
pub(crate) struct Mock {
    tasks: Mutex<mpsc::Sender<ClusterTask>>,
    pub(crate) addresses: String,
}

impl fmt::Debug for Mock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mock").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Mock {
    pub(crate) fn start(brokers: i32) -> Arc<Self> {
        let (tasks, received) = mpsc::channel::<ClusterTask>();
        let (sender, addresses) = mpsc::channel();
        std::thread::spawn(move || {
            let cluster = MockCluster::new(brokers).unwrap();
            sender.send(cluster.bootstrap_servers()).unwrap();
            while let Ok(task) = received.recv() {
                task(&cluster);
            }
        });
        Arc::new(Self { tasks: Mutex::new(tasks), addresses: addresses.recv().unwrap() })
    }

    /// Runs a function on the cluster.
    pub(crate) fn with<T: Send + 'static>(&self, work: impl FnOnce(&Cluster) -> T + Send + 'static) -> T {
        let (sender, receiver) = mpsc::channel();
        let task: ClusterTask = Box::new(move |cluster| drop(sender.send(work(cluster))));
        self.tasks.lock().unwrap().send(task).unwrap();
        receiver.recv().unwrap()
    }

    /// Creates a new topic.
    pub(crate) fn topic(&self, name: &TopicName, partitions: u32) {
        let name = name.to_string();
        self.with(move |cluster| cluster.create_topic(&name, partitions.cast_signed(), 1)).unwrap();
    }

    /// Returns a configuration with limits for tests.
    pub(crate) fn config(&self) -> RedpandaConfig {
        super::config(&self.addresses)
    }
}

/// The real bus on a mock cluster. The test creates the topics.
#[derive(Debug)]
pub(crate) struct MockBus {
    pub(crate) bus: RedpandaBus,
    mock: Arc<Mock>,
}

impl fmt::Display for MockBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bus.fmt(f)
    }
}

#[async_trait]
impl MessageBus for MockBus {
    fn info(&self) -> BusInfo {
        self.bus.info()
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
        let created = specs.iter().map(|spec| {
            self.mock.topic(&spec.name, spec.partitions);
            TopicOutcome::new(spec.name.clone(), Ok(TopicState::Created))
        });
        Ok(created.collect())
    }
    async fn delete_topics(&self, names: &[TopicName]) -> Result<Vec<TopicOutcome>> {
        self.bus.delete_topics(names).await
    }
    async fn topics(&self) -> Result<Vec<TopicInfo>> {
        self.bus.topics().await
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

/// A factory that creates a mock cluster for each trial.
#[derive(Debug)]
pub(crate) struct MockFactory;

#[async_trait]
impl BusFactory for MockFactory {
    fn backend(&self) -> &'static str {
        "mock"
    }

    fn absent(&self) -> Option<String> {
        None
    }

    /// The mock stores no times, cannot describe or delete topics, and does not list groups.
    fn capabilities(&self) -> &'static [Capability] {
        &[]
    }

    fn clock_mode(&self) -> ClockMode {
        ClockMode::Real
    }

    async fn create_env(&self) -> Result<Box<dyn BusEnv>> {
        let mock = tokio::task::spawn_blocking(|| Mock::start(2)).await.permanent("test.rig", "rig")?;
        Ok(Box::new(MockEnv(mock)))
    }
}

#[derive(Debug)]
struct MockEnv(Arc<Mock>);

impl MockEnv {
    fn client(&self, change: impl FnOnce(&mut RedpandaConfig)) -> Result<Client> {
        let mut config = self.0.config();
        change(&mut config);
        let bus = MockBus { bus: RedpandaBus::open(config)?, mock: self.0.clone() };
        Ok(Client { bus: Arc::new(bus), connection: Arc::new(FixedConnection) as Arc<dyn Connection> })
    }
}

#[async_trait]
impl BusEnv for MockEnv {
    fn prefix(&self) -> &'static str {
        "t"
    }

    async fn connect(&self) -> Result<Client> {
        self.client(|_| {})
    }

    async fn connect_with_capacity(&self, bytes: usize) -> Result<Client> {
        self.client(|config| (config.buffer_bytes, config.max_message_bytes) = (bytes, bytes / 2))
    }

    async fn delete_records(&self, _: &TopicPartition, _: u64) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "mock.delete_records", "delete_records"))
    }

    fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    fn timing(&self) -> Timing {
        Timing {
            session_timeout: Duration::from_secs(4),
            max_poll_interval: Duration::from_secs(8),
            receive_timeout: Duration::from_millis(250),
            effect_timeout: Duration::from_mins(1),
        }
    }

    async fn tear_down(&self) -> Result<()> {
        Ok(())
    }
}
