//! One reader: a consumer of librdkafka, the thread that polls it, and the shelf between that thread and `recv`.
//!
//! The thread polls only while the shelf has room and a `recv` is waiting or ended less than a second ago. One that
//! always polled would never pass the poll limit, and a reader that is stuck would keep its partitions for ever. When
//! nobody has read for long the reader rests: it takes part no more, and the thread only hears what librdkafka says.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qi_core::bus::{Batch, StartFrom, TopicName, TopicPartition};
use qi_core::{Error, Result};
use rdkafka::admin::AdminClient;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaResult;
use tokio::sync::Notify;

use super::error;
use super::inbox::{Bell, Client, Inbox};
use super::link::Link;
use super::offsets;
use super::shelf::Shelf;

/// For so long after a `recv` the next one is expected, and messages are fetched ahead.
const EXPECTANT: Duration = Duration::from_secs(1);
/// So many bytes are polled before they are put on the shelf: it may have so much more than its half.
pub(super) const BURST_BYTES: usize = 1 << 20;
/// Without room librdkafka is told this often that its reader lives, and more often if that would be late.
const SIGN: Duration = Duration::from_secs(10);
/// A reader without a group rests when nobody has read for so long; a member does when its poll limit has passed.
const QUIET: Duration = Duration::from_secs(30);

/// What a reader reads, and how.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) topics: Vec<TopicName>,
    pub(super) otherwise: StartFrom,
    /// None for a reader without a group.
    pub(super) poll_limit: Option<Duration>,
    pub(super) max_buffered_bytes: usize,
    /// For one question to the brokers.
    pub(super) limit: Duration,
    pub(super) commit_limit: Duration,
}

impl Plan {
    pub(super) fn has_group(&self) -> bool {
        self.poll_limit.is_some()
    }

    fn room(&self, buffered: usize, silent: Duration) -> Room {
        // The other half waits in librdkafka.
        let half = (self.max_buffered_bytes / 2).max(1);
        match buffered {
            bytes if bytes < half => Room::Free,
            bytes if bytes < half.saturating_add(BURST_BYTES) => Room::Scarce,
            _ if silent < SIGN.min(self.patience() / 4) => Room::None,
            _ => Room::Silent,
        }
    }

    /// A reader that nobody reads rests after this.
    fn patience(&self) -> Duration {
        self.poll_limit.unwrap_or(QUIET)
    }
}

/// What the thread and the calls of a reader share.
pub(super) struct Feed {
    pub(super) plan: Plan,
    pub(super) admin: Arc<AdminClient<Link>>,
    client: Mutex<Option<Arc<Client>>>,
    /// The properties of `client`.
    pub(super) config: rdkafka::ClientConfig,
    inbox: Arc<Inbox>,
    state: Mutex<State>,
    pub(super) bell: Arc<Bell>,
    /// Something came, or something ended.
    pub(super) changed: Notify,
    /// Held while the thread polls: what a seek drops is then not on its way between librdkafka and the shelf.
    pub(super) gate: Mutex<()>,
    /// Held while a commit is under way: a partition goes to others only after it.
    pub(super) commits: Arc<tokio::sync::Mutex<()>>,
    received: AtomicU64,
}

/// The call of `recv` that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    None,
    /// Nothing is handed out by it: the assignment may change.
    Waiting,
    /// What it took stays owned until the next one.
    Served,
}

/// Whether a reader takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// The first assignment was not carried out yet.
    Joining,
    In,
    /// Nobody has read for long; the next `recv` ends it.
    Resting,
}

/// What is under the lock of a feed.
#[derive(Debug)]
pub(super) struct State {
    pub(super) shelf: Shelf,
    call: Call,
    last_recv: Instant,
    last_poll: Instant,
    pub(super) standing: Standing,
    /// What the next `recv` says, once.
    pub(super) failure: Option<Error>,
    /// What every call says from now on.
    pub(super) fatal: Option<Error>,
    /// Topics that were deleted.
    pub(super) missing: BTreeSet<TopicName>,
    pub(super) closing: bool,
    ended: bool,
}

/// What the buffer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Free,
    /// One message for each `recv`, by which librdkafka is told that its reader lives.
    Scarce,
    /// Nothing: what is buffered does not go, or what comes is larger than what goes.
    None,
    /// Nothing, and librdkafka was not told for some time that its reader lives.
    Silent,
}

/// What the thread is to do.
pub(super) struct Turn {
    /// A `recv` is waiting, or the first assignment is: changes of the assignment may be carried out.
    pub(super) open: bool,
    pub(super) active: bool,
    pub(super) room: Room,
    pub(super) resting: bool,
    /// It rests after this, if nobody reads.
    pub(super) patience: Duration,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Feed {
    pub(super) fn new(
        plan: Plan,
        admin: Arc<AdminClient<Link>>,
        config: &rdkafka::ClientConfig,
        link: Link,
    ) -> KafkaResult<Arc<Self>> {
        let mut client: Client = config.create_with_context(Inbox::new(link))?;
        let bell = Arc::new(Bell::default());
        let ringing = bell.clone();
        client.set_nonempty_callback(move || ringing.ring());
        let inbox = client.context().clone();
        let now = Instant::now();
        let state = State {
            shelf: Shelf::default(),
            call: Call::None,
            last_recv: now,
            last_poll: now,
            standing: Standing::Joining,
            failure: None,
            fatal: None,
            missing: BTreeSet::new(),
            closing: false,
            ended: false,
        };
        Ok(Arc::new(Self {
            plan,
            admin,
            client: Mutex::new(Some(Arc::new(client))),
            config: config.clone(),
            inbox,
            state: Mutex::new(state),
            bell,
            changed: Notify::new(),
            gate: Mutex::default(),
            commits: Arc::default(),
            received: AtomicU64::new(0),
        }))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn gate(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// The client, unless the reader has ended.
    pub(super) fn client(&self, operation: &'static str) -> Result<Arc<Client>> {
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        client.clone().ok_or_else(|| error::closed(operation))
    }

    pub(super) fn take_client(&self) -> Option<Arc<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether a call may go on.
    pub(super) fn check(&self, operation: &'static str) -> Result<()> {
        let state = self.state();
        if state.closing {
            return Err(error::closed(operation));
        }
        state.fatal.clone().map_or(Ok(()), Err)
    }

    /// Begins the end: the thread leaves the group, and whoever waits is told.
    pub(super) fn begin_end(&self) {
        self.state().closing = true;
        self.inbox.leave();
        self.bell.ring();
        self.changed.notify_waiters();
    }

    /// Waits until the thread has left.
    pub(super) async fn ended(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.state().ended {
                    return;
                }
                changed.await;
            }
        })
        .await
        .is_ok()
    }

    pub(super) fn end(&self) {
        self.state().ended = true;
        self.changed.notify_waiters();
    }

    /// How often `recv` was called.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// A `recv` begins. If the poll limit has passed since the last one, everything has gone to others.
    pub(super) fn enter(&self) -> Inside<'_> {
        let mut state = self.state();
        if self.is_overdue(&state) {
            self.rest(&mut state);
        }
        state.call = Call::Waiting;
        drop(state);
        self.received.fetch_add(1, Ordering::Relaxed);
        self.bell.ring();
        Inside(self)
    }

    /// Whether others may have this reader's partitions because `recv` was not called for so long.
    pub(super) fn is_overdue(&self, state: &State) -> bool {
        self.plan.poll_limit.is_some_and(|limit| state.last_poll.elapsed() >= limit)
    }

    /// Nobody has read for long. A member's partitions go to others.
    fn rest(&self, state: &mut State) {
        if std::mem::replace(&mut state.standing, Standing::Resting) == Standing::Resting {
            return;
        }
        if let Some(limit) = self.plan.poll_limit {
            tracing::warn!(?limit, "recv was not called within the poll limit");
            state.shelf.pass_poll_limit();
        }
    }

    /// The reader takes part again.
    pub(super) fn wake(&self) {
        let mut state = self.state();
        (state.standing, state.last_poll) = (Standing::In, Instant::now());
        drop(state);
        self.changed.notify_waiters();
    }

    /// Whether the thread has something to do which it does while a `recv` waits.
    pub(super) fn is_changing(&self) -> bool {
        if self.inbox.is_due() {
            return true;
        }
        let state = self.state();
        state.standing == Standing::Resting || state.shelf.owned().values().any(|owned| owned.astray)
    }

    /// librdkafka says that the poll limit has passed.
    pub(super) fn pass_poll_limit(&self) {
        let mut state = self.state();
        if !state.shelf.owned().is_empty() {
            state.shelf.pass_poll_limit();
        }
    }

    /// What is to be done now; None if the reader ends.
    pub(super) fn turn(&self) -> Option<Turn> {
        let now = Instant::now();
        let mut state = self.state();
        if state.closing {
            return None;
        }
        let open = state.call == Call::Waiting || state.standing == Standing::Joining;
        let silent = state.last_poll.elapsed();
        let patience = self.plan.patience().saturating_sub(silent);
        if !open && patience.is_zero() {
            self.rest(&mut state);
        }
        Some(Turn {
            open,
            active: open || now.duration_since(state.last_recv) < EXPECTANT,
            room: self.plan.room(state.shelf.buffered(), silent),
            resting: state.standing == Standing::Resting,
            patience,
        })
    }

    pub(super) fn polled(&self) {
        self.state().last_poll = Instant::now();
    }

    /// One look: what is there, or with `last` an answer in any case.
    pub(super) fn look(&self, max: usize, last: bool) -> Result<Option<Batch>> {
        let mut state = self.state();
        if state.closing {
            return Err(error::closed("recv"));
        }
        let told = state.fatal.clone().or_else(|| state.failure.take());
        if let Some(error) = told.or_else(|| state.shelf.failure()) {
            return Err(error);
        }
        if state.missing.len() == self.plan.topics.len()
            && let Some(topic) = state.missing.first()
        {
            return Err(error::unknown_topic(topic, "recv"));
        }
        // What the assignment loses must not be handed out any more.
        if !self.inbox.is_due()
            && let Some(parcel) = state.shelf.take(max)
        {
            state.call = Call::Served;
            drop(state);
            // There is room again.
            self.bell.ring();
            return Ok(Some(parcel.unpack()));
        }
        if !last {
            return Ok(None);
        }
        if !self.inbox.link.is_connected() {
            let error = error::unavailable("recv");
            return Err(self.inbox.link.explain(error));
        }
        Ok(Some(state.shelf.nothing()))
    }

    /// Sends librdkafka to another offset of a partition. False if it does not fetch that partition at present: then
    /// the thread starts it anew. The gate is held.
    pub(super) fn send_to(&self, client: &Client, partition: &TopicPartition, to: u64) -> bool {
        // A reader that rests begins there when it wakes.
        if self.state().standing == Standing::Resting {
            return true;
        }
        let (topic, number) = (partition.topic.as_str(), partition.partition.cast_signed());
        client.seek(topic, number, offsets::offset(to), self.plan.limit).is_ok()
    }
}

/// A `recv` under way, dropped or not.
#[derive(Debug)]
pub(super) struct Inside<'a>(&'a Feed);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.call = Call::None;
        state.last_recv = Instant::now();
    }
}

/// A member whose brokers are nowhere, and whose thread was not started.
#[cfg(test)]
pub(super) fn nowhere() -> Arc<Feed> {
    member_at("127.0.0.1:1")
}

/// A member at these brokers, whose thread was not started.
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test support")]
pub(super) fn member_at(brokers: &str) -> Arc<Feed> {
    let config = crate::config::RedpandaConfig::from_brokers(brokers);
    let (topic, group) = (TopicName::new("t").unwrap(), qi_core::bus::GroupId::new("g").unwrap());
    let request = qi_core::bus::Subscribe::new(group, [topic.clone()]).unwrap();
    let plan = Plan {
        topics: vec![topic],
        otherwise: StartFrom::Earliest,
        poll_limit: Some(request.poll_limit),
        max_buffered_bytes: request.max_buffered_bytes,
        limit: Duration::from_millis(100),
        commit_limit: Duration::from_millis(100),
    };
    let admin = super::settings::admin(&config).create_with_context(Link::new("admin", "")).unwrap();
    let settings = super::settings::member(&config, &request);
    Feed::new(plan, Arc::new(admin), &settings, Link::new("consumer", "g")).unwrap()
}
