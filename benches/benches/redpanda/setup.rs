//! The brokers, and topics on them for one measurement.

use std::future::Future;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use qi_adapters::config::Profile;
use qi_adapters::redpanda::{RedpandaBus, RedpandaConfig};
use qi_core::bus::{Message, MessageBus, TopicName, TopicSpec};
use rdkafka::ClientConfig;
use tokio::runtime::Runtime;

/// The number of messages of 100 bytes in a measurement.
pub(crate) const MESSAGES: usize = 1_000_000;
pub(crate) const PARTITIONS: u32 = 12;
const INSTRUMENTS: usize = 50;

pub(crate) struct Setup {
    pub(crate) rounds: usize,
    pub(crate) brokers: String,
    runtime: Runtime,
}

impl Setup {
    /// Returns None if no brokers are named.
    pub(crate) fn new(rounds: usize) -> Option<Self> {
        let brokers = std::env::var("QI_KAFKA_BROKERS").ok().filter(|brokers| !brokers.is_empty())?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Some(Self { rounds, brokers, runtime: runtime.expect("a runtime") })
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub(crate) fn bus(&self, profile: Profile) -> RedpandaBus {
        let mut config = RedpandaConfig::from_brokers(&self.brokers);
        config.profile = profile;
        RedpandaBus::open(config).expect("a valid configuration")
    }

    /// Returns the driver's configuration.
    pub(crate) fn client(&self, properties: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        for (property, value) in properties {
            config.set(*property, *value);
        }
        config
    }

    /// Creates a topic that is deleted when the result is dropped.
    pub(crate) fn topic(&self, partitions: u32) -> Topic<'_> {
        let name = TopicName::new(name()).expect("a valid name");
        let spec = TopicSpec::new(name.clone(), partitions).expect("a valid number");
        let spec = spec.with_max_message_bytes(2 << 20);
        let bus = self.bus(Profile::Balanced);
        let outcomes = self.block_on(bus.create_topics(&[spec])).expect("brokers that answer");
        assert!(outcomes.iter().all(|outcome| outcome.result.is_ok()), "{outcomes:?}");
        Topic { setup: self, bus, name }
    }
}

/// Returns a new name for a topic or a group.
pub(crate) fn name() -> String {
    format!("bench-{}-{:08x}", std::process::id(), fastrand::u32(..))
}

pub(crate) struct Topic<'a> {
    setup: &'a Setup,
    bus: RedpandaBus,
    pub(crate) name: TopicName,
}

impl Drop for Topic<'_> {
    fn drop(&mut self) {
        let names = std::slice::from_ref(&self.name);
        let _ = self.setup.block_on(self.bus.delete_topics(names));
        let _ = self.setup.block_on(self.bus.close());
        // The broker deletes in the background, which must not slow the next measurement.
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Returns messages of 100 bytes with the keys of fifty instruments, in batches. The payloads of a batch are parts of
/// one buffer, as a codec makes them, and all are different.
pub(crate) fn batches(topic: &TopicName, batch: usize) -> Vec<Vec<Message>> {
    let keys: Vec<Bytes> =
        (0..INSTRUMENTS).map(|n| Bytes::from(format!("exchange:COIN{n}-USDT").into_bytes())).collect();
    let mut random = fastrand::Rng::with_seed(1);
    (0..MESSAGES / batch)
        .map(|_| {
            let mut buffer = BytesMut::with_capacity(100 * batch);
            (0..batch)
                .map(|n| {
                    // Half of the payload is hard to compress, like the digits of prices.
                    buffer.put_bytes(b'x', 60);
                    (0..5).for_each(|_| buffer.put_u64(random.u64(..)));
                    Message::new(topic.clone(), buffer.split().freeze())
                        .with_key(keys[n % INSTRUMENTS].clone())
                })
                .collect()
        })
        .collect()
}
