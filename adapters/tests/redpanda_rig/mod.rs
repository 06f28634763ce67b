//! Buses on the brokers of the environment. Each trial has a unique prefix.

#![allow(dead_code, reason = "each test target uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test support")]

pub(crate) mod load;
pub(crate) mod mock;
pub(crate) mod tools;
pub(crate) mod wire;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use qi_adapters::redpanda::{RedpandaBus, RedpandaConfig};
use qi_core::bus::TopicPartition;
use qi_core::{Clock as _, MessageBus, Result, ResultExt as _, SystemClock, Timestamp};
use qi_testkit::bus::contract::{BusEnv, BusFactory, Capability, Client, ClockMode, Connection, Timing};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::servers::{TestServer, namespace};
use wire::Proxies;

/// Brokers, and the creation of their buses.
#[derive(Debug, Clone)]
pub(crate) struct Brokers {
    addresses: Option<String>,
    request_timeout: Duration,
    features: Arc<OnceLock<BrokerFeatures>>,
}

/// The properties of the brokers.
#[derive(Debug, Clone)]
struct BrokerFeatures {
    /// The ports of all brokers, if all brokers are on this machine.
    ports: Option<Vec<u16>>,
    provides: &'static [Capability],
}

impl Brokers {
    /// Returns the brokers of `QI_KAFKA_BROKERS`.
    pub(crate) fn redpanda() -> Self {
        Self::at_addresses(std::env::var("QI_KAFKA_BROKERS").ok().filter(|addresses| !addresses.is_empty()))
    }

    /// Returns the brokers at these addresses.
    pub(crate) fn at_addresses(addresses: Option<String>) -> Self {
        Self { addresses, request_timeout: Duration::from_millis(2500), features: Arc::default() }
    }

    /// Returns the same brokers with a longer request timeout, for trials that keep a machine busy.
    pub(crate) fn with_long_timeout(self) -> Self {
        Self { request_timeout: Duration::from_secs(20), ..self }
    }

    /// Returns the addresses. The suites check `absent` first.
    pub(crate) fn addresses(&self) -> &str {
        self.addresses.as_deref().unwrap_or_default()
    }

    /// Returns a configuration with limits for tests.
    pub(crate) fn config(&self) -> RedpandaConfig {
        let mut config = config(self.addresses());
        config.request_timeout = self.request_timeout;
        config
    }

    /// Returns the driver's configuration, for operations of tests without the library.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.addresses()).set("allow.auto.create.topics", "false");
        config
    }

    fn features(&self) -> &BrokerFeatures {
        self.features.get_or_init(|| self.detect_features())
    }

    fn detect_features(&self) -> BrokerFeatures {
        const REMOTE: &[Capability] =
            &[Capability::Admin, Capability::Groups, Capability::Coordinator, Capability::OffsetsForTimes];
        const LOCAL: &[Capability] = &[
            Capability::Admin,
            Capability::Groups,
            Capability::Coordinator,
            Capability::OffsetsForTimes,
            Capability::ConnectionFaults,
        ];
        const LOCAL_WITH_RETENTION: &[Capability] = &[
            Capability::Admin,
            Capability::Groups,
            Capability::Coordinator,
            Capability::OffsetsForTimes,
            Capability::ConnectionFaults,
            Capability::Retention,
        ];
        let consumer: BaseConsumer = self.client().create().unwrap();
        let metadata = consumer.fetch_metadata(None, Duration::from_secs(30)).unwrap();
        let is_local = metadata.brokers().iter().all(|broker| broker.host() == wire::HOST);
        let ports = metadata.brokers().iter().map(|broker| u16::try_from(broker.port()).unwrap()).collect();
        let first = metadata.brokers().first().map_or(0, rdkafka::metadata::MetadataBroker::id);
        let provides = if !is_local {
            REMOTE
        } else if self.has_fast_retention(first) {
            LOCAL_WITH_RETENTION
        } else {
            LOCAL
        };
        BrokerFeatures { ports: is_local.then_some(ports), provides }
    }

    /// Returns whether old messages are removed within seconds. By default a broker checks every five minutes.
    fn has_fast_retention(&self, broker: i32) -> bool {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let request = [ResourceSpecifier::Broker(broker)];
        let options = AdminOptions::new();
        let request = admin.describe_configs(&request, &options);
        let found = futures::executor::block_on(request).unwrap().pop().unwrap().unwrap();
        let interval = found.get("log.retention.check.interval.ms").and_then(|entry| entry.value.clone());
        interval.and_then(|ms| ms.parse::<u64>().ok()).is_some_and(|ms| ms <= 10_000)
    }
}

/// Returns a configuration for these addresses with limits for tests.
pub(crate) fn config(addresses: &str) -> RedpandaConfig {
    let mut config = RedpandaConfig::from_brokers(addresses);
    config.delivery_timeout = Duration::from_secs(8);
    config.request_timeout = Duration::from_millis(2500);
    config.commit_timeout = Duration::from_secs(8);
    config.close_timeout = Duration::from_secs(5);
    config.statistics_interval = Duration::from_secs(1);
    config
}

impl TestServer for Brokers {
    fn kind(&self) -> &str {
        self.backend()
    }

    fn missing(&self) -> Option<String> {
        self.absent()
    }

    fn with_address(self, address: String) -> Self {
        Self::at_addresses(Some(address))
    }
}

#[async_trait]
impl BusFactory for Brokers {
    fn backend(&self) -> &'static str {
        "redpanda"
    }

    fn absent(&self) -> Option<String> {
        self.addresses.is_none().then(|| "QI_KAFKA_BROKERS is not set".to_owned())
    }

    fn capabilities(&self) -> &'static [Capability] {
        self.features().provides
    }

    fn clock_mode(&self) -> ClockMode {
        ClockMode::Real
    }

    async fn create_env(&self) -> Result<Box<dyn BusEnv>> {
        let brokers = self.clone();
        let ports = tokio::task::spawn_blocking(move || brokers.features().ports.clone()).await;
        let cleanup_bus = RedpandaBus::open(self.config())?;
        let prefix = namespace();
        Ok(Box::new(BrokersEnv {
            brokers: self.clone(),
            ports: ports.permanent("test.rig", "rig")?,
            cleanup_bus,
            prefix,
        }))
    }
}

#[derive(Debug)]
struct BrokersEnv {
    brokers: Brokers,
    ports: Option<Vec<u16>>,
    /// A client that no check uses.
    cleanup_bus: RedpandaBus,
    prefix: String,
}

impl BrokersEnv {
    async fn client(&self, change: impl FnOnce(&mut RedpandaConfig)) -> Result<Client> {
        let (connection, addresses): (Arc<dyn Connection>, _) = match &self.ports {
            Some(ports) => {
                let (proxies, addresses) = Proxies::of(ports).await.permanent("test.rig", "rig")?;
                (Arc::new(proxies), addresses)
            }
            None => (Arc::new(FixedConnection), self.brokers.addresses().to_owned()),
        };
        let mut config = config(&addresses);
        config.request_timeout = self.brokers.request_timeout;
        change(&mut config);
        Ok(Client { bus: Arc::new(RedpandaBus::open(config)?), connection })
    }
}

impl BrokersEnv {
    /// Deletes the topics and the groups of a trial.
    async fn delete_topics_and_groups(&self) -> Result<()> {
        let topics = self.cleanup_bus.topics().await?.into_iter().map(|topic| topic.name);
        let of_trial: Vec<_> = topics.filter(|name| name.as_str().starts_with(&self.prefix)).collect();
        self.cleanup_bus.delete_topics(&of_trial).await?;
        self.delete_groups().await
    }

    /// Deletes the groups of a trial, because groups outlive their topics.
    async fn delete_groups(&self) -> Result<()> {
        let client: BaseConsumer = self.brokers.client().create().permanent("test.rig", "rig")?;
        let prefix = self.prefix.clone();
        let names = tokio::task::spawn_blocking(move || {
            let list = client.fetch_group_list(None, Duration::from_secs(10))?;
            let names = list.groups().iter().map(rdkafka::groups::GroupInfo::name);
            let of_trial = names.filter(|name| name.starts_with(&prefix)).map(str::to_owned);
            Ok::<_, rdkafka::error::KafkaError>(of_trial.collect::<Vec<_>>())
        });
        let names = names.await.permanent("test.rig", "rig")?.permanent("test.rig", "rig")?;
        let of_trial: Vec<_> = names.iter().map(String::as_str).collect();
        let admin: AdminClient<DefaultClientContext> =
            self.brokers.client().create().permanent("test.rig", "rig")?;
        if !of_trial.is_empty() {
            // A group whose member has not left yet is not deleted.
            let _ =
                admin.delete_groups(&of_trial, &AdminOptions::new()).await.permanent("test.rig", "rig")?;
        }
        Ok(())
    }
}

#[async_trait]
impl BusEnv for BrokersEnv {
    fn prefix(&self) -> &str {
        &self.prefix
    }

    async fn connect(&self) -> Result<Client> {
        self.client(|_| {}).await
    }

    async fn connect_with_capacity(&self, bytes: usize) -> Result<Client> {
        self.client(|config| (config.buffer_bytes, config.max_message_bytes) = (bytes, bytes / 2)).await
    }

    async fn delete_records(&self, partition: &TopicPartition, offset: u64) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> =
            self.brokers.client().create().permanent("test.rig", "rig")?;
        let mut list = TopicPartitionList::new();
        let at = Offset::Offset(offset.cast_signed());
        list.add_partition_offset(partition.topic.as_str(), partition.partition.cast_signed(), at)
            .permanent("test.rig", "rig")?;
        let done = admin.delete_records(&list, &AdminOptions::new()).await.permanent("test.rig", "rig")?;
        done.elements()
            .iter()
            .try_for_each(rdkafka::topic_partition_list::TopicPartitionListElem::error)
            .permanent("test.rig", "rig")
    }

    fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    fn timing(&self) -> Timing {
        Timing {
            // Longer than the detection of unreachable brokers.
            session_timeout: Duration::from_secs(10),
            max_poll_interval: Duration::from_secs(12),
            receive_timeout: Duration::from_millis(250),
            effect_timeout: Duration::from_mins(1),
        }
    }

    async fn tear_down(&self) -> Result<()> {
        // Brokers that have just started, or that other trials keep busy, may reject requests for a moment.
        let mut attempts = 0;
        while let Err(error) = self.delete_topics_and_groups().await {
            if attempts >= 50 {
                return Err(error);
            }
            attempts += 1;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        self.cleanup_bus.close().await.map(drop)
    }
}

/// The connections to remote brokers, which cannot be cut.
#[derive(Debug)]
pub(crate) struct FixedConnection;

#[async_trait]
impl Connection for FixedConnection {
    async fn interrupt(&self) {}
    async fn restore(&self) {}
}
