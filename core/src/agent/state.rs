//! The state of one agent. The agent's task writes it; contexts and handles read it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{SetOnce, watch};
use tokio::time::Instant;

use super::catch::{catch, lock};
use super::incarnation::Incarnation;
use super::report::{AgentReport, Termination};
use super::shared::{Limits, Settings, Shared};
use super::status::{
    AgentHealth, AgentSnapshot, AgentStatus, BackoffStep, ErrorRecord, ExitReason, ForcedStop, GiveUpReason,
    Phase, Transition,
};
use crate::redact::redact;
use crate::{Error, Timestamp};

/// The number of transitions that are kept for each agent.
const MAX_HISTORY: usize = 64;
/// The number of errors that are kept for each agent.
const MAX_ERRORS: usize = 16;

pub(super) struct AgentState {
    pub(super) name: Arc<str>,
    pub(super) settings: Settings,
    pub(super) shared: Arc<Shared>,
    /// Set when the agent must stop.
    stop: SetOnce<()>,
    /// Set to true when the dependents of the agent may start, or to false if the agent ends first.
    pub(super) started: SetOnce<bool>,
    /// True if the last hook had to be dropped, or the last cleanup timed out.
    pub(super) forced: AtomicBool,
    /// True while code of the agent runs on a thread.
    blocking: AtomicBool,
    record: Mutex<Record>,
}

struct Record {
    snapshot: AgentSnapshot,
    /// The time of the last transition, by the monotonic clock.
    entered: Instant,
    history: VecDeque<Transition>,
    errors: VecDeque<ErrorRecord>,
    /// Present from Initializing until the incarnation ends.
    incarnation: Option<Arc<Incarnation>>,
    has_run: bool,
    /// Present after the first subscription. A watch for every agent would make start and stop measurably slower.
    watch: Option<watch::Sender<AgentSnapshot>>,
}

/// The parts of a transition besides the new status.
#[derive(Default)]
pub(super) struct Change {
    pub(super) exit: Option<Arc<ExitReason>>,
    pub(super) backoff: Option<BackoffStep>,
    pub(super) gave_up: Option<GiveUpReason>,
    /// True if the incarnation completed and released everything.
    pub(super) completed: bool,
}

impl Change {
    pub(super) fn exit(exit: &Arc<ExitReason>) -> Self {
        Self { exit: Some(exit.clone()), ..Self::default() }
    }
}

impl AgentState {
    pub(super) fn new(name: Arc<str>, settings: Settings, shared: Arc<Shared>) -> Self {
        let snapshot = AgentSnapshot {
            status: AgentStatus::Created,
            health: AgentHealth::Ok,
            incarnation: 0,
            restarts: 0,
            seq: 0,
            since: shared.clock.now(),
            last_exit: None,
            last_heartbeat: None,
        };
        let record = Record {
            snapshot,
            entered: Instant::now(),
            history: VecDeque::new(),
            errors: VecDeque::new(),
            incarnation: None,
            has_run: false,
            watch: None,
        };
        Self {
            name,
            settings,
            shared,
            stop: SetOnce::new(),
            started: SetOnce::new(),
            forced: AtomicBool::new(false),
            blocking: AtomicBool::new(false),
            record: Mutex::new(record),
        }
    }

    pub(super) fn limits(&self) -> Limits {
        self.shared.limits(self.settings.limits)
    }

    /// Runs code of the agent. Until the code returns, the agent counts as blocking its thread.
    pub(super) fn enter<T>(&self, work: impl FnOnce() -> T) -> Result<T, String> {
        self.blocking.store(true, Ordering::Relaxed);
        let result = catch(work);
        self.blocking.store(false, Ordering::Relaxed);
        result
    }

    /// Stops the agent. The token is cancelled here, so a hook that never yields its thread can see the stop.
    pub(super) fn request_stop(&self) {
        let _first = self.stop.set(());
        let incarnation = lock(&self.record).incarnation.clone();
        if let Some(incarnation) = incarnation {
            incarnation.token.cancel();
        }
    }

    pub(super) fn must_stop(&self) -> bool {
        self.stop.initialized()
    }

    /// Waits until the agent must stop.
    pub(super) async fn stop_requested(&self) {
        self.stop.wait().await;
    }

    /// Begins the next incarnation, in status Initializing.
    pub(super) fn begin(&self) -> Arc<Incarnation> {
        let incarnation = {
            let Record { snapshot, incarnation, .. } = &mut *lock(&self.record);
            snapshot.restarts = snapshot.incarnation;
            snapshot.incarnation = snapshot.incarnation.saturating_add(1);
            snapshot.health = AgentHealth::Ok;
            snapshot.last_heartbeat = None;
            let next = Incarnation::new(snapshot.incarnation, self.shared.clock.now());
            incarnation.insert(Arc::new(next)).clone()
        };
        // A concurrent `request_stop` either sees the new token, or this check sees the stop.
        if self.must_stop() {
            incarnation.token.cancel();
        }
        self.to(AgentStatus::Initializing, Change::default());
        incarnation
    }

    /// Changes the status. Only the task of the agent calls this.
    pub(super) fn to(&self, to: AgentStatus, change: Change) {
        let (at, now) = (self.shared.clock.now(), Instant::now());
        let transition = {
            let record = &mut *lock(&self.record);
            let entered = std::mem::replace(&mut record.entered, now);
            let snapshot = &mut record.snapshot;
            snapshot.seq += 1;
            snapshot.since = at;
            if let Some(exit) = &change.exit {
                snapshot.last_exit = Some(exit.clone());
            }
            let transition = Transition {
                agent: self.name.clone(),
                seq: snapshot.seq,
                at,
                incarnation: snapshot.incarnation,
                from: std::mem::replace(&mut snapshot.status, to),
                lasted: now.saturating_duration_since(entered),
                to,
                exit: change.exit,
                backoff: change.backoff,
                gave_up: change.gave_up,
            };
            record.has_run |= to == AgentStatus::Running;
            if (to == AgentStatus::Backoff || to.is_terminal())
                && let Some(incarnation) = record.incarnation.take()
            {
                snapshot.last_heartbeat = incarnation.last_heartbeat();
            }
            push(&mut record.history, MAX_HISTORY, transition.clone());
            record.publish();
            transition
        };
        self.shared.notify(|observer| observer.on_transition(&transition));
        let starts =
            if self.settings.run_to_completion { change.completed } else { to == AgentStatus::Running };
        if starts || to.is_terminal() {
            let _first_answer_counts = self.started.set(starts);
        }
    }

    /// Records an error and notifies the observers.
    pub(super) fn record(&self, phase: Phase, error: Error) {
        let (agent, at, incarnation) = self.origin();
        let record = ErrorRecord { agent, at, incarnation, phase, error };
        push(&mut lock(&self.record).errors, MAX_ERRORS, record.clone());
        self.shared.notify(|observer| observer.on_error(&record));
    }

    /// Records the error of an exit, if the exit has an error.
    pub(super) fn record_exit(&self, phase: Phase, exit: &ExitReason) {
        if let Some(error) = exit.to_error() {
            let own = matches!(exit, ExitReason::Error(_));
            self.record(phase, if own { error } else { error.with_operation(phase.as_str()) });
        }
    }

    /// Notifies the observers that a hook was dropped.
    pub(super) fn record_forced_stop(&self, phase: Phase, took: Duration) {
        let (agent, at, incarnation) = self.origin();
        let forced = ForcedStop { agent, at, incarnation, phase, took };
        self.shared.notify(|observer| observer.on_forced_stop(&forced));
    }

    fn origin(&self) -> (Arc<str>, Timestamp, u32) {
        (self.name.clone(), self.shared.clock.now(), lock(&self.record).snapshot.incarnation)
    }

    /// Sets the reported health of the agent. A context of an earlier incarnation has no effect.
    pub(super) fn set_health(&self, incarnation: u32, health: AgentHealth) {
        let health = match health {
            AgentHealth::Degraded(why) => AgentHealth::Degraded(redact(&why)),
            other => other,
        };
        let mut record = lock(&self.record);
        let snapshot = &mut record.snapshot;
        let current = snapshot.incarnation == incarnation && !snapshot.status.is_terminal();
        if current && snapshot.health != health {
            snapshot.health = health;
            record.publish();
        }
    }

    pub(super) fn snapshot(&self) -> AgentSnapshot {
        let record = lock(&self.record);
        let mut snapshot = record.snapshot.clone();
        if let Some(incarnation) = &record.incarnation {
            snapshot.last_heartbeat = incarnation.last_heartbeat();
            if snapshot.status == AgentStatus::Running
                && self.settings.watchdog.is_some_and(|limit| incarnation.heartbeat_age() > limit)
            {
                snapshot.health = AgentHealth::Stale;
            }
        }
        snapshot
    }

    /// Returns whether the agent has been Running once.
    pub(super) fn has_run(&self) -> bool {
        lock(&self.record).has_run
    }

    /// Returns the time since the last heartbeat of a running agent with a watchdog or with at least one heartbeat.
    pub(super) fn heartbeat_age(&self) -> Option<Duration> {
        let record = lock(&self.record);
        let incarnation = record.incarnation.as_ref().filter(|incarnation| {
            record.snapshot.status == AgentStatus::Running
                && (self.settings.watchdog.is_some() || incarnation.last_heartbeat().is_some())
        })?;
        Some(incarnation.heartbeat_age())
    }

    pub(super) fn history(&self) -> Vec<Transition> {
        lock(&self.record).history.iter().cloned().collect()
    }

    pub(super) fn errors(&self) -> Vec<ErrorRecord> {
        lock(&self.record).errors.iter().cloned().collect()
    }

    /// Returns the agent's part of the report. A `launched` agent that has not ended is leaked.
    pub(super) fn report(&self, launched: bool) -> AgentReport {
        let record = lock(&self.record);
        let AgentSnapshot { status, restarts, last_exit, .. } = record.snapshot.clone();
        let termination = if launched && !status.is_terminal() {
            Termination::Leaked { blocking: self.blocking.load(Ordering::Relaxed) }
        } else if self.forced.load(Ordering::Relaxed) {
            Termination::Forced
        } else {
            Termination::Orderly
        };
        let (name, critical) = (self.name.clone(), self.settings.critical);
        let last_error = record.errors.back().cloned();
        AgentReport { name, critical, status, termination, restarts, last_exit, last_error }
    }

    pub(super) fn subscribe(&self) -> AgentWatch {
        let Record { snapshot, watch, .. } = &mut *lock(&self.record);
        let watch = watch.get_or_insert_with(|| watch::Sender::new(snapshot.clone()));
        AgentWatch { receiver: watch.subscribe(), ended: snapshot.status.is_terminal() }
    }
}

impl Record {
    fn publish(&self) {
        if let Some(watch) = &self.watch {
            watch.send_replace(self.snapshot.clone());
        }
    }
}

fn push<T>(ring: &mut VecDeque<T>, limit: usize, item: T) {
    if ring.len() == limit {
        ring.pop_front();
    }
    ring.push_back(item);
}

/// A watch of one agent's state. It returns the newest state and may skip earlier states; see [`AgentSnapshot::seq`].
#[derive(Debug, Clone)]
pub struct AgentWatch {
    receiver: watch::Receiver<AgentSnapshot>,
    ended: bool,
}

impl AgentWatch {
    /// Returns the newest state.
    pub fn current(&self) -> AgentSnapshot {
        self.receiver.borrow().clone()
    }

    /// Waits for the next change of status or health. Returns None after the final state of the agent was returned.
    /// Dropping the future loses no change.
    pub async fn changed(&mut self) -> Option<AgentSnapshot> {
        // An error means that the agent was removed and its state was dropped.
        if self.ended || self.receiver.changed().await.is_err() {
            self.ended = true;
            return None;
        }
        let snapshot = self.receiver.borrow_and_update().clone();
        self.ended = snapshot.status.is_terminal();
        Some(snapshot)
    }
}
