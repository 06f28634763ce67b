//! What the driver, the context and the handles share of one agent.
//!
//! The driver alone changes the status, in one function ([`Cell::to`]); the agent alone changes its health. Both
//! stand under one short lock, together with the history, so that nothing is lost between them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::sync::watch;
use tokio::time::Instant;

use super::catch::{catch, lock};
use super::context::Incarnation;
use super::observe::Observer;
use super::restart::GiveUp;
use super::status::{
    AgentHealth, AgentSnapshot, AgentStatus, BackoffStep, ErrorRecord, ExitReason, ForcedStop, Phase,
    Transition,
};
use crate::redact::tidy;
use crate::{Clock, Error, Timestamp};

/// How many transitions the handle remembers of each agent.
const HISTORY: usize = 64;
/// How many errors the handle remembers of each agent.
const ERRORS: usize = 16;

/// What all agents of a runtime share.
pub(super) struct Env {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observers: Vec<Arc<dyn Observer>>,
    /// From the first moment of the shutdown on, the limits of the shutdown hold.
    pub(super) shutting_down: AtomicBool,
    /// Set with the soft deadline: when the last cleanup must be done.
    pub(super) final_at: OnceLock<Instant>,
}

impl Env {
    pub(super) fn new(clock: Arc<dyn Clock>, observers: Vec<Arc<dyn Observer>>) -> Self {
        Self { clock, observers, shutting_down: AtomicBool::new(false), final_at: OnceLock::new() }
    }

    /// Tells every observer. A panic of one is none of the others' business.
    pub(super) fn tell(&self, call: impl Fn(&dyn Observer)) {
        for observer in &self.observers {
            if let Err(panic) = catch(|| call(&**observer)) {
                tracing::error!(target: "qi_core::agent", panic, "an observer panicked");
            }
        }
    }
}

/// The limits of one agent's hooks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) initialize: Duration,
    pub(super) stop: Duration,
    pub(super) cleanup: Duration,
}

impl Limits {
    /// The limits during a shutdown whose longest path would need more than its deadline.
    pub(super) fn scaled(self, scale: f64) -> Self {
        // A scale below 1 makes no duration too long; 1 is left alone, because a float would round it.
        if scale >= 1.0 {
            return self;
        }
        Self { stop: self.stop.mul_f64(scale), cleanup: self.cleanup.mul_f64(scale), ..self }
    }

    /// A limit that is longer than the whole shutdown counts as the whole shutdown.
    pub(super) fn at_most(self, available: Duration) -> Self {
        Self { stop: self.stop.min(available), cleanup: self.cleanup.min(available), ..self }
    }
}

/// What an agent was asked for. It only rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asked {
    Nothing,
    /// End in order.
    Stop,
    /// The soft deadline has come: drop the hook now.
    DropHooks,
}

pub(super) struct Cell {
    pub(super) name: Arc<str>,
    pub(super) env: Arc<Env>,
    pub(super) watchdog: Option<Duration>,
    pub(super) max_children: usize,
    limits: Limits,
    shutdown_limits: Limits,
    asked: AtomicU8,
    /// Wakes the driver, which is the only one that waits here.
    pub(super) waker: AtomicWaker,
    /// Whether its own code has the thread at this moment: at the hard deadline it is the one that blocks.
    busy: AtomicBool,
    /// Whether it has been Running, or completed if it is finite: what readiness at start and dependents need.
    pub(super) ready_once: AtomicBool,
    /// Whether its last hook had to be dropped, or its last cleanup ran out of time.
    pub(super) forced: AtomicBool,
    /// How many dependencies have not been ready yet.
    pub(super) waiting_on: AtomicU32,
    /// How many dependents have not ended yet.
    pub(super) dependents_left: AtomicU32,
    /// The dependency that ended without having been ready.
    pub(super) dependency_failed: OnceLock<Arc<str>>,
    state: Mutex<State>,
}

struct State {
    snapshot: AgentSnapshot,
    /// The time of the last transition, by the monotonic clock.
    entered: Instant,
    history: VecDeque<Transition>,
    errors: VecDeque<ErrorRecord>,
    /// Made when the first watcher comes: most agents are never watched.
    watch: Option<watch::Sender<AgentSnapshot>>,
    /// Present from Initializing until the value is dropped.
    incarnation: Option<Arc<Incarnation>>,
}

impl State {
    fn publish(&self) {
        if let Some(watch) = &self.watch {
            watch.send_replace(self.snapshot.clone());
        }
    }

    fn end_incarnation(&mut self) {
        if let Some(incarnation) = self.incarnation.take() {
            self.snapshot.last_heartbeat = incarnation.last_heartbeat();
        }
    }
}

/// What a transition says beside the new status.
#[derive(Default)]
pub(super) struct Change {
    pub(super) exit: Option<Arc<ExitReason>>,
    pub(super) backoff: Option<BackoffStep>,
    pub(super) gave_up: Option<GiveUp>,
}

impl Change {
    pub(super) fn exit(exit: &Arc<ExitReason>) -> Self {
        Self { exit: Some(exit.clone()), ..Self::default() }
    }
}

impl Cell {
    pub(super) fn new(
        name: Arc<str>,
        env: Arc<Env>,
        (limits, shutdown_limits): (Limits, Limits),
        watchdog: Option<Duration>,
        max_children: usize,
        now: Timestamp,
    ) -> Self {
        let snapshot = AgentSnapshot {
            status: AgentStatus::Created,
            health: AgentHealth::Ok,
            incarnation: 0,
            restarts: 0,
            seq: 0,
            since: now,
            last_exit: None,
            last_heartbeat: None,
        };
        Self {
            name,
            env,
            watchdog,
            max_children,
            limits,
            shutdown_limits,
            asked: AtomicU8::new(0),
            waker: AtomicWaker::new(),
            busy: AtomicBool::new(false),
            ready_once: AtomicBool::new(false),
            forced: AtomicBool::new(false),
            waiting_on: AtomicU32::new(0),
            dependents_left: AtomicU32::new(0),
            dependency_failed: OnceLock::new(),
            state: Mutex::new(State {
                snapshot,
                entered: Instant::now(),
                history: VecDeque::new(),
                errors: VecDeque::new(),
                watch: None,
                incarnation: None,
            }),
        }
    }

    pub(super) fn limits(&self) -> Limits {
        if self.env.shutting_down.load(Ordering::SeqCst) { self.shutdown_limits } else { self.limits }
    }

    pub(super) fn asked(&self) -> Asked {
        match self.asked.load(Ordering::SeqCst) {
            0 => Asked::Nothing,
            1 => Asked::Stop,
            _ => Asked::DropHooks,
        }
    }

    /// Runs code of the agent: it has the thread until it gives it back.
    pub(super) fn enter<T>(&self, work: impl FnOnce() -> T) -> Result<T, String> {
        self.busy.store(true, Ordering::Relaxed);
        let result = catch(work);
        self.busy.store(false, Ordering::Relaxed);
        result
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// Asks the agent to end. The token is cancelled here and now, so that even a hook that never gives its
    /// thread back can see it.
    pub(super) fn ask(&self, what: Asked) {
        self.asked.fetch_max(what as u8, Ordering::SeqCst);
        let token = lock(&self.state).incarnation.as_ref().map(|incarnation| incarnation.token.clone());
        if let Some(token) = token {
            token.cancel();
        }
        self.waker.wake();
    }

    /// The next incarnation, in status Initializing.
    pub(super) fn begin(self: &Arc<Self>) -> Arc<Incarnation> {
        let number = lock(&self.state).snapshot.incarnation.saturating_add(1);
        let incarnation = Arc::new(Incarnation::new(self.clone(), number));
        {
            let mut state = lock(&self.state);
            state.incarnation = Some(incarnation.clone());
            state.snapshot.incarnation = number;
            state.snapshot.restarts = number - 1;
            state.snapshot.health = AgentHealth::Ok;
            state.snapshot.last_heartbeat = None;
        }
        // Either `ask` finds the token, or this finds what was asked.
        if self.asked() != Asked::Nothing {
            incarnation.token.cancel();
        }
        self.to(AgentStatus::Initializing, Change::default());
        incarnation
    }

    /// The one function for every transition.
    pub(super) fn to(&self, to: AgentStatus, change: Change) {
        let at = self.env.clock.now();
        let transition = {
            let mut state = lock(&self.state);
            let State { snapshot, entered, .. } = &mut *state;
            let from = std::mem::replace(&mut snapshot.status, to);
            snapshot.seq += 1;
            snapshot.since = at;
            let lasted = std::mem::replace(entered, Instant::now()).elapsed();
            if let Some(exit) = &change.exit {
                snapshot.last_exit = Some(exit.clone());
            }
            let transition = Transition {
                agent: self.name.clone(),
                seq: snapshot.seq,
                at,
                incarnation: snapshot.incarnation,
                from,
                lasted,
                to,
                exit: change.exit,
                backoff: change.backoff,
                gave_up: change.gave_up,
            };
            if matches!(to, AgentStatus::Backoff | AgentStatus::Stopped | AgentStatus::Failed) {
                state.end_incarnation();
            }
            push(&mut state.history, HISTORY, transition.clone());
            state.publish();
            transition
        };
        self.env.tell(|observer| observer.on_transition(&transition));
    }

    /// Remembers an error and tells the observers.
    pub(super) fn record(&self, phase: Phase, error: Error) {
        let at = self.env.clock.now();
        let record = {
            let mut state = lock(&self.state);
            let incarnation = state.snapshot.incarnation;
            let record = ErrorRecord { agent: self.name.clone(), at, incarnation, phase, error };
            push(&mut state.errors, ERRORS, record.clone());
            record
        };
        self.env.tell(|observer| observer.on_error(&record));
    }

    /// Tells the observers of a hook that had to be dropped.
    pub(super) fn forced_stop(&self, phase: Phase, took: Duration) {
        let (agent, at) = (self.name.clone(), self.env.clock.now());
        let incarnation = lock(&self.state).snapshot.incarnation;
        let forced = ForcedStop { agent, at, incarnation, phase, took };
        self.env.tell(|observer| observer.on_forced_stop(&forced));
    }

    /// Written by the agent. A context of an earlier incarnation is not listened to.
    pub(super) fn set_health(&self, incarnation: u32, health: AgentHealth) {
        let mut state = lock(&self.state);
        let snapshot = &mut state.snapshot;
        if snapshot.incarnation == incarnation && !snapshot.status.is_terminal() && snapshot.health != health
        {
            snapshot.health = match health {
                AgentHealth::Degraded(why) => AgentHealth::Degraded(tidy(&why)),
                other => other,
            };
            state.publish();
        }
    }

    pub(super) fn snapshot(&self) -> AgentSnapshot {
        let state = lock(&self.state);
        let mut snapshot = state.snapshot.clone();
        if let Some(incarnation) = &state.incarnation {
            snapshot.last_heartbeat = incarnation.last_heartbeat();
            if let (AgentStatus::Running, Some(limit)) = (snapshot.status, self.watchdog)
                && incarnation.silent_for() > limit
            {
                snapshot.health = AgentHealth::Stale;
            }
        }
        snapshot
    }

    /// How long a running agent with a watchdog has been silent, and its limit.
    pub(super) fn silence(&self) -> Option<(Duration, Duration)> {
        let state = lock(&self.state);
        let limit = self.watchdog?;
        let running = state.snapshot.status == AgentStatus::Running;
        let incarnation = state.incarnation.as_ref().filter(|_| running)?;
        Some((incarnation.silent_for(), limit))
    }

    /// How long a running agent has been silent, if it has a watchdog or gave a heartbeat at all.
    pub(super) fn heartbeat_age(&self) -> Option<Duration> {
        let state = lock(&self.state);
        let running = state.snapshot.status == AgentStatus::Running;
        let incarnation = state.incarnation.as_ref().filter(|_| running)?;
        let beats = self.watchdog.is_some() || incarnation.last_heartbeat().is_some();
        beats.then(|| incarnation.silent_for())
    }

    pub(super) fn history(&self) -> Vec<Transition> {
        lock(&self.state).history.iter().cloned().collect()
    }

    pub(super) fn errors(&self) -> Vec<ErrorRecord> {
        lock(&self.state).errors.iter().cloned().collect()
    }

    pub(super) fn last_error(&self) -> Option<ErrorRecord> {
        lock(&self.state).errors.back().cloned()
    }

    pub(super) fn subscribe(&self) -> AgentWatch {
        let mut state = lock(&self.state);
        let State { snapshot, watch, .. } = &mut *state;
        let watch = watch.get_or_insert_with(|| watch::Sender::new(snapshot.clone()));
        let receiver = watch.subscribe();
        // Who comes after the end has nothing to wait for.
        let ended = receiver.borrow().status.is_terminal();
        AgentWatch { receiver, ended }
    }
}

fn push<T>(ring: &mut VecDeque<T>, limit: usize, item: T) {
    if ring.len() == limit {
        ring.pop_front();
    }
    ring.push_back(item);
}

/// Follows one agent: always its newest state, which may skip some (see [`AgentSnapshot::seq`]).
#[derive(Debug, Clone)]
pub struct AgentWatch {
    receiver: watch::Receiver<AgentSnapshot>,
    ended: bool,
}

impl AgentWatch {
    /// The newest state.
    pub fn current(&self) -> AgentSnapshot {
        self.receiver.borrow().clone()
    }

    /// Waits until status or health differ from what was seen last; None once the end has been seen. Dropping
    /// the future loses nothing.
    pub async fn changed(&mut self) -> Option<AgentSnapshot> {
        if self.ended {
            return None;
        }
        // The sender stays with the agent; an error means that nobody is left who could change it.
        if self.receiver.changed().await.is_err() {
            self.ended = true;
            return None;
        }
        let snapshot = self.receiver.borrow_and_update().clone();
        self.ended = snapshot.status.is_terminal();
        Some(snapshot)
    }
}
