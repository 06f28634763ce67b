//! What a backend gives to the suite.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use qi_core::bus::TopicPartition;
use qi_core::{MessageBus, Result, Timestamp};

/// Something that not every implementation has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Need {
    /// Topics can be described, deleted and trimmed, and keep their settings. Creating them is what every backend
    /// can.
    Admin,
    /// Groups can be listed, with members and commits.
    Groups,
    /// Static members keep their partitions over a restart, and those of a member that leaves are free at once.
    Coordinator,
    /// Offsets can be found by time.
    ByTime,
    /// The log of [`BusEnv::connect_small`] itself is bounded: what nobody has committed makes `publish` wait.
    BoundedLog,
    /// Old messages go within [`Timing::eventually`].
    Retention,
    /// The wire between a client and the brokers can be cut.
    WireFaults,
}

/// How time passes in a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// On tokio's paused clock: whatever waits only for time does not wait.
    Paused,
    /// As on the wall.
    Real,
}

/// How long things take in this backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The session of members.
    pub session: Duration,
    /// Their poll limit.
    pub poll_limit: Duration,
    /// A time within which a message that is there is received by a member that waits.
    pub short: Duration,
    /// A time within which everything that must happen has happened.
    pub eventually: Duration,
}

/// Cuts a client off from the brokers, and mends that.
#[async_trait]
pub trait Wire: Debug + Send + Sync {
    /// Nothing passes any more, and nobody is told: members of this client die when their session passes.
    async fn cut(&self);
    /// Everything passes again.
    async fn mend(&self);
}

/// A client of the backend, with the wire that it hangs on.
#[derive(Debug, Clone)]
pub struct Client {
    /// The client.
    pub bus: Arc<dyn MessageBus>,
    /// Its wire; without [`Need::WireFaults`] it is never touched.
    pub wire: Arc<dyn Wire>,
}

/// A place of its own for one trial: nobody else's topics and groups begin with its prefix.
#[async_trait]
pub trait BusEnv: Debug + Send + Sync {
    /// What every name of the trial begins with.
    fn prefix(&self) -> &str;

    /// Another client of the same brokers.
    ///
    /// # Errors
    /// Whatever building one says.
    async fn connect(&self) -> Result<Client>;

    /// A client whose send buffer (or whose log) has room for so many bytes only. It may stand apart from the
    /// others.
    ///
    /// # Errors
    /// Whatever building one says.
    async fn connect_small(&self, bytes: usize) -> Result<Client>;

    /// Removes the messages of a partition below an offset. Called only with [`Need::Admin`].
    ///
    /// # Errors
    /// Whatever the brokers say.
    async fn trim(&self, partition: &TopicPartition, offset: u64) -> Result<()>;

    /// The brokers' time.
    fn now(&self) -> Timestamp;

    /// How long things take.
    fn timing(&self) -> Timing;

    /// Removes what the trial made, after its clients are closed.
    ///
    /// # Errors
    /// Whatever the brokers say.
    async fn tear_down(&self) -> Result<()>;
}

/// A backend.
#[async_trait]
pub trait BusFactory: Debug + Send + Sync {
    /// Its word in the configuration.
    fn backend(&self) -> &'static str;

    /// Why it cannot be tested here, if so: shown as ignored, unless `QI_REQUIRE_BACKENDS` names the backend.
    fn absent(&self) -> Option<String>;

    /// What it has.
    fn provides(&self) -> &'static [Need];

    /// How time passes in its trials.
    fn pace(&self) -> Pace;

    /// A fresh place.
    ///
    /// # Errors
    /// Whatever making one says.
    async fn fresh(&self) -> Result<Box<dyn BusEnv>>;
}

/// A way to wrap a bus that must change nothing of what the checks see.
#[derive(Debug, Clone, Copy)]
pub struct Wrapping {
    /// Its word in the names of trials.
    pub name: &'static str,
    /// Puts it around a bus.
    pub wrap: fn(Arc<dyn MessageBus>) -> Arc<dyn MessageBus>,
}

impl Wrapping {
    /// None.
    pub const PLAIN: Self = Self { name: "plain", wrap: |bus| bus };
    /// An `Arc<dyn MessageBus>` used as a bus.
    pub const ARC_DYN: Self = Self { name: "arc_dyn", wrap: |bus| Arc::new(bus) };
    /// A `Box<dyn MessageBus>` used as a bus.
    pub const BOX_DYN: Self =
        Self { name: "box_dyn", wrap: |bus| Arc::new(Box::new(bus) as Box<dyn MessageBus>) };
    /// Those that every backend is put through.
    pub const BASIC: [Self; 3] = [Self::PLAIN, Self::ARC_DYN, Self::BOX_DYN];
}
