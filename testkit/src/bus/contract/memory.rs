//! The memory bus as a backend of the suite.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use qi_core::bus::TopicPartition;
use qi_core::{Clock, Result, Timestamp};

use super::{BusEnv, BusFactory, Capability, Client, ClockMode, Connection, Timing};
use crate::ManualClock;
use crate::bus::{MemoryBus, MemoryBusConfig};

/// A factory that creates an empty memory bus for each trial, on paused time.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemoryFactory;

#[async_trait]
impl BusFactory for MemoryFactory {
    fn backend(&self) -> &'static str {
        "memory"
    }

    fn absent(&self) -> Option<String> {
        None
    }

    fn capabilities(&self) -> &'static [Capability] {
        &[
            Capability::Admin,
            Capability::Groups,
            Capability::Coordinator,
            Capability::OffsetsForTimes,
            Capability::Retention,
            Capability::BoundedLog,
            Capability::ConnectionFaults,
        ]
    }

    fn clock_mode(&self) -> ClockMode {
        ClockMode::Paused
    }

    async fn create_env(&self) -> Result<Box<dyn BusEnv>> {
        let clock = Arc::new(ManualClock::default());
        let bus = MemoryBus::new(config(), clock.clone())?;
        Ok(Box::new(MemoryEnv { bus, clock }))
    }
}

fn config() -> MemoryBusConfig {
    MemoryBusConfig {
        delivery_timeout: Duration::from_secs(10),
        close_timeout: Duration::from_secs(5),
        ..MemoryBusConfig::default()
    }
}

#[derive(Debug)]
struct MemoryEnv {
    /// An unused client that keeps the log.
    bus: MemoryBus,
    clock: Arc<ManualClock>,
}

fn client(bus: MemoryBus) -> Client {
    let bus = Arc::new(bus);
    Client { connection: Arc::new(MemoryConnection(bus.clone())), bus }
}

#[async_trait]
impl BusEnv for MemoryEnv {
    fn prefix(&self) -> &'static str {
        "t"
    }

    async fn connect(&self) -> Result<Client> {
        Ok(client(self.bus.connect()))
    }

    async fn connect_with_capacity(&self, bytes: usize) -> Result<Client> {
        let config = MemoryBusConfig { max_bytes: bytes, max_message_bytes: bytes / 2, ..config() };
        Ok(client(MemoryBus::new(config, self.clock.clone())?))
    }

    async fn delete_records(&self, partition: &TopicPartition, offset: u64) -> Result<()> {
        self.bus.delete_records(partition, offset)
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn timing(&self) -> Timing {
        Timing {
            session_timeout: Duration::from_secs(6),
            max_poll_interval: Duration::from_secs(10),
            receive_timeout: Duration::from_millis(50),
            effect_timeout: Duration::from_mins(1),
        }
    }

    async fn tear_down(&self) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryConnection(Arc<MemoryBus>);

#[async_trait]
impl Connection for MemoryConnection {
    async fn interrupt(&self) {
        self.0.disconnect();
    }

    async fn restore(&self) {
        self.0.reconnect();
    }
}
