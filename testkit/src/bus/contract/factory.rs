//! The interface between a backend and the suite.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use qi_core::bus::TopicPartition;
use qi_core::{MessageBus, Result, Timestamp};

/// A feature that not every backend has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Capability {
    /// Topics can be described and deleted, their records can be deleted, and they keep their settings. Every backend can create topics,
    /// even without this feature.
    Admin,
    /// Groups can be listed, with members and commits.
    Groups,
    /// Static members keep their partitions across a restart. The partitions of a member that
    /// leaves are free immediately.
    Coordinator,
    /// Offsets can be found by time.
    OffsetsForTimes,
    /// The log of [`BusEnv::connect_with_capacity`] is bounded: uncommitted messages make `publish` wait.
    BoundedLog,
    /// Old messages are removed within [`Timing::effect_timeout`].
    Retention,
    /// The connection between a client and the brokers can be interrupted.
    ConnectionFaults,
}

/// The passage of time in a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockMode {
    /// tokio's paused clock: a wait for time alone ends immediately.
    Paused,
    /// Real time, with two worker threads.
    Real,
}

/// The time limits of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The session timeout of the members.
    pub session_timeout: Duration,
    /// The maximum poll interval of the members.
    pub max_poll_interval: Duration,
    /// The time within which a waiting member receives a message that is in the log.
    pub receive_timeout: Duration,
    /// The time within which every expected effect has occurred.
    pub effect_timeout: Duration,
}

/// The connection of a client to the brokers, which a check can interrupt and restore.
#[async_trait]
pub trait Connection: Debug + Send + Sync {
    /// Interrupts the connection. The group is not notified: members of this client expire at their session timeout.
    async fn interrupt(&self);
    /// Restores the connection after an interruption.
    async fn restore(&self);
}

/// A client of the backend, with its connection.
#[derive(Debug, Clone)]
pub struct Client {
    /// The bus under test.
    pub bus: Arc<dyn MessageBus>,
    /// The connection of the client. Only checks with [`Capability::ConnectionFaults`] interrupt the connection.
    pub connection: Arc<dyn Connection>,
}

/// The environment of one trial. Only this trial uses topics and groups with its prefix.
#[async_trait]
pub trait BusEnv: Debug + Send + Sync {
    /// Returns the prefix of all names in the trial.
    fn prefix(&self) -> &str;

    /// Opens another client of the same brokers.
    ///
    /// # Errors
    /// If the client cannot be built.
    async fn connect(&self) -> Result<Client>;

    /// Opens a client whose send buffer (or log) is limited to `bytes`. The client may use a separate log.
    ///
    /// # Errors
    /// If the client cannot be built.
    async fn connect_with_capacity(&self, bytes: usize) -> Result<Client>;

    /// Removes the messages of a partition below an offset. Called only with [`Capability::Admin`].
    ///
    /// # Errors
    /// If the brokers reject the request.
    async fn delete_records(&self, partition: &TopicPartition, offset: u64) -> Result<()>;

    /// Returns the time of the brokers.
    fn now(&self) -> Timestamp;

    /// Returns the time limits of the backend.
    fn timing(&self) -> Timing;

    /// Removes the resources of the trial. Called after its clients are closed.
    ///
    /// # Errors
    /// If the brokers reject a request.
    async fn tear_down(&self) -> Result<()>;
}

/// A backend under test.
#[async_trait]
pub trait BusFactory: Debug + Send + Sync {
    /// Returns the backend's name in the configuration.
    fn backend(&self) -> &'static str;

    /// Returns the reason if the backend cannot be tested here. The suite then ignores its trials, or fails them if
    /// `QI_REQUIRE_BACKENDS` names the backend.
    fn absent(&self) -> Option<String>;

    /// Returns the features of the backend.
    fn capabilities(&self) -> &'static [Capability];

    /// Returns the clock of the trials.
    fn clock_mode(&self) -> ClockMode;

    /// Creates the environment of a trial.
    ///
    /// # Errors
    /// If the environment cannot be created.
    async fn create_env(&self) -> Result<Box<dyn BusEnv>>;
}

/// A wrapper around a bus that must not change the results of the checks.
#[derive(Debug, Clone, Copy)]
pub struct Wrapper {
    /// The name of the wrapper in the names of trials.
    pub name: &'static str,
    /// Returns a bus with the wrapper.
    pub wrap: fn(Arc<dyn MessageBus>) -> Arc<dyn MessageBus>,
}

impl Wrapper {
    /// The bus itself, without a wrapper.
    pub const PLAIN: Self = Self { name: "plain", wrap: |bus| bus };
    /// An `Arc<dyn MessageBus>` used as a bus.
    pub const ARC_DYN: Self = Self { name: "arc_dyn", wrap: |bus| Arc::new(bus) };
    /// A `Box<dyn MessageBus>` used as a bus.
    pub const BOX_DYN: Self =
        Self { name: "box_dyn", wrap: |bus| Arc::new(Box::new(bus) as Box<dyn MessageBus>) };
    /// The wrappers for every backend.
    pub const BASIC: [Self; 3] = [Self::PLAIN, Self::ARC_DYN, Self::BOX_DYN];
}
