//! The state of one agent: written by its task, read by contexts and handles.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{SetOnce, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::catch::catch;
use super::report::{AgentReport, Termination};
use super::shared::{Limits, Settings, Shared};
use super::status::{
    AgentHealth, AgentSnapshot, AgentStatus, BackoffStep, ErrorRecord, ExitReason, ForcedStop, GiveUpReason,
    Phase, Transition,
};
use crate::redact::tidy;
use crate::{Error, Timestamp};

/// The number of transitions that are kept for each agent.
const MAX_HISTORY: usize = 64;
/// The number of errors that are kept for each agent.
const MAX_ERRORS: usize = 16;

pub(super) struct AgentState {
    pub(super) name: Arc<str>,
    pub(super) settings: Settings,
    pub(super) shared: Arc<Shared>,
    /// Cancelled when the agent must end. The token of each incarnation is its child.
    pub(super) stop: CancellationToken,
    /// True once the dependents of the agent may start, false if the agent ended before that.
    pub(super) started: SetOnce<bool>,
    /// Set when the agent has ended and the set of agents has counted it.
    pub(super) ended: SetOnce<()>,
    /// True if the last hook had to be dropped, or the last cleanup timed out.
    pub(super) forced: AtomicBool,
    /// True while code of the agent holds a thread at this moment.
    blocking: AtomicBool,
    record: watch::Sender<Record>,
}

struct Record {
    snapshot: AgentSnapshot,
    /// The time of the last transition, by the monotonic clock.
    entered: Instant,
    history: VecDeque<Transition>,
    errors: VecDeque<ErrorRecord>,
    /// Present from Initializing until the incarnation ends.
    heartbeat: Option<Arc<Heartbeat>>,
    has_run: bool,
}

/// The parts of a transition beside the new status.
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
            heartbeat: None,
            has_run: false,
        };
        Self {
            name,
            settings,
            shared,
            stop: CancellationToken::new(),
            started: SetOnce::new(),
            ended: SetOnce::new(),
            forced: AtomicBool::new(false),
            blocking: AtomicBool::new(false),
            record: watch::Sender::new(record),
        }
    }

    pub(super) fn limits(&self) -> Limits {
        self.shared.limits(self.settings.limits)
    }

    /// Runs code of the agent. Until it returns, the agent counts as blocking its thread.
    pub(super) fn enter<T>(&self, work: impl FnOnce() -> T) -> Result<T, String> {
        self.blocking.store(true, Ordering::Relaxed);
        let result = catch(work);
        self.blocking.store(false, Ordering::Relaxed);
        result
    }

    /// Changes the record, and wakes watchers if `change` returns true and there are any.
    ///
    /// A watcher reads the record before it waits, and it counts before it reads. So none misses a change.
    fn update(&self, change: impl FnOnce(&mut Record) -> bool) {
        self.record.send_if_modified(|record| change(record) && self.record.receiver_count() > 0);
    }

    /// Begins the next incarnation: changes the status to Initializing and returns the incarnation's number.
    pub(super) fn begin(&self) -> (u32, Arc<Heartbeat>) {
        let heartbeat = Arc::new(Heartbeat::new(self.shared.clock.now()));
        let mut number = 0;
        self.update(|record| {
            let snapshot = &mut record.snapshot;
            number = snapshot.incarnation.saturating_add(1);
            snapshot.incarnation = number;
            snapshot.restarts = number - 1;
            snapshot.health = AgentHealth::Ok;
            snapshot.last_heartbeat = None;
            record.heartbeat = Some(heartbeat.clone());
            false
        });
        self.to(AgentStatus::Initializing, Change::default());
        (number, heartbeat)
    }

    /// Changes the status. Only the task of the agent calls this.
    pub(super) fn to(&self, to: AgentStatus, change: Change) {
        let (at, now) = (self.shared.clock.now(), Instant::now());
        let transition = {
            let Record { snapshot, entered, .. } = &*self.record.borrow();
            Transition {
                agent: self.name.clone(),
                seq: snapshot.seq + 1,
                at,
                incarnation: snapshot.incarnation,
                from: snapshot.status,
                lasted: now.saturating_duration_since(*entered),
                to,
                exit: change.exit,
                backoff: change.backoff,
                gave_up: change.gave_up,
            }
        };
        self.update(|record| {
            record.entered = now;
            record.has_run |= to == AgentStatus::Running;
            let snapshot = &mut record.snapshot;
            (snapshot.status, snapshot.seq, snapshot.since) = (to, transition.seq, at);
            if let Some(exit) = &transition.exit {
                snapshot.last_exit = Some(exit.clone());
            }
            if (to == AgentStatus::Backoff || to.is_terminal())
                && let Some(heartbeat) = record.heartbeat.take()
            {
                snapshot.last_heartbeat = heartbeat.last();
            }
            push(&mut record.history, MAX_HISTORY, transition.clone());
            true
        });
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
        self.update(|kept| {
            push(&mut kept.errors, MAX_ERRORS, record.clone());
            false
        });
        self.shared.notify(|observer| observer.on_error(&record));
    }

    /// Records the error of an exit, if the exit is one.
    pub(super) fn record_exit(&self, phase: Phase, exit: &ExitReason) {
        if let Some(error) = exit.to_error() {
            let own = matches!(exit, ExitReason::Error(_));
            self.record(phase, if own { error } else { error.with_operation(phase.as_str()) });
        }
    }

    /// Notifies the observers of a hook that had to be dropped.
    pub(super) fn record_forced_stop(&self, phase: Phase, took: Duration) {
        let (agent, at, incarnation) = self.origin();
        let forced = ForcedStop { agent, at, incarnation, phase, took };
        self.shared.notify(|observer| observer.on_forced_stop(&forced));
    }

    fn origin(&self) -> (Arc<str>, Timestamp, u32) {
        (self.name.clone(), self.shared.clock.now(), self.record.borrow().snapshot.incarnation)
    }

    /// Sets the health that the agent reports. A context of an earlier incarnation has no effect.
    pub(super) fn set_health(&self, incarnation: u32, health: AgentHealth) {
        let health = match health {
            AgentHealth::Degraded(why) => AgentHealth::Degraded(tidy(&why)),
            other => other,
        };
        self.update(|record| {
            let snapshot = &mut record.snapshot;
            let current = snapshot.incarnation == incarnation && !snapshot.status.is_terminal();
            let changed = current && snapshot.health != health;
            if changed {
                snapshot.health = health;
            }
            changed
        });
    }

    pub(super) fn snapshot(&self) -> AgentSnapshot {
        let record = self.record.borrow();
        let mut snapshot = record.snapshot.clone();
        if let Some(heartbeat) = &record.heartbeat {
            snapshot.last_heartbeat = heartbeat.last();
            if snapshot.status == AgentStatus::Running
                && self.settings.watchdog.is_some_and(|limit| heartbeat.silence() > limit)
            {
                snapshot.health = AgentHealth::Stale;
            }
        }
        snapshot
    }

    /// Returns whether the agent has been Running once.
    pub(super) fn has_run(&self) -> bool {
        self.record.borrow().has_run
    }

    /// Returns the time since the last heartbeat of a running agent that has a watchdog or has sent a heartbeat.
    pub(super) fn silence(&self) -> Option<Duration> {
        let record = self.record.borrow();
        let heartbeat = record.heartbeat.as_ref().filter(|heartbeat| {
            record.snapshot.status == AgentStatus::Running
                && (self.settings.watchdog.is_some() || heartbeat.last().is_some())
        })?;
        Some(heartbeat.silence())
    }

    pub(super) fn history(&self) -> Vec<Transition> {
        self.record.borrow().history.iter().cloned().collect()
    }

    pub(super) fn errors(&self) -> Vec<ErrorRecord> {
        self.record.borrow().errors.iter().cloned().collect()
    }

    /// Returns the agent's part of the report. An agent that was `launched` and has not ended is leaked.
    pub(super) fn report(&self, launched: bool) -> AgentReport {
        let record = self.record.borrow();
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
        let mut receiver = self.record.subscribe();
        let ended = receiver.borrow_and_update().snapshot.status.is_terminal();
        AgentWatch { receiver, ended }
    }
}

fn push<T>(ring: &mut VecDeque<T>, limit: usize, item: T) {
    if ring.len() == limit {
        ring.pop_front();
    }
    ring.push_back(item);
}

/// The heartbeats of one incarnation.
pub(super) struct Heartbeat {
    born: Instant,
    born_at: Timestamp,
    /// Microseconds from `born` to the last heartbeat, plus one; 0 for none.
    last: AtomicU64,
    /// Microseconds from `born` to the start of `run`.
    run_from: AtomicU64,
}

impl Heartbeat {
    pub(super) fn new(born_at: Timestamp) -> Self {
        Self { born: Instant::now(), born_at, last: AtomicU64::new(0), run_from: AtomicU64::new(0) }
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn beat(&self) {
        self.last.store(self.elapsed().saturating_add(1), Ordering::Relaxed);
    }

    pub(super) fn begin_run(&self) {
        self.run_from.store(self.elapsed(), Ordering::Relaxed);
    }

    /// Returns the time from which silence counts: the last heartbeat, or the start of `run`.
    fn silent_from(&self) -> Duration {
        let last = self.last.load(Ordering::Relaxed).saturating_sub(1);
        Duration::from_micros(last.max(self.run_from.load(Ordering::Relaxed)))
    }

    pub(super) fn silence(&self) -> Duration {
        Duration::from_micros(self.elapsed()).saturating_sub(self.silent_from())
    }

    /// Returns the time at which a watchdog of `limit` expires without another heartbeat.
    pub(super) fn expires_at(&self, limit: Duration) -> Option<Instant> {
        self.born.checked_add(self.silent_from())?.checked_add(limit)
    }

    fn last(&self) -> Option<Timestamp> {
        let micros = self.last.load(Ordering::Relaxed).checked_sub(1)?;
        self.born_at.checked_add(Duration::from_micros(micros))
    }
}

/// Follows one agent. It shows the newest state and may skip some; see [`AgentSnapshot::seq`].
#[derive(Clone)]
pub struct AgentWatch {
    receiver: watch::Receiver<Record>,
    ended: bool,
}

impl std::fmt::Debug for AgentWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentWatch").field("current", &self.current()).finish_non_exhaustive()
    }
}

impl AgentWatch {
    /// Returns the newest state.
    pub fn current(&self) -> AgentSnapshot {
        self.receiver.borrow().snapshot.clone()
    }

    /// Waits for the next change of status or health, and returns None after the agent's end was returned. Dropping
    /// the future loses nothing.
    pub async fn changed(&mut self) -> Option<AgentSnapshot> {
        // An error means that the agent was removed from memory.
        if self.ended || self.receiver.changed().await.is_err() {
            self.ended = true;
            return None;
        }
        let snapshot = self.receiver.borrow_and_update().snapshot.clone();
        self.ended = snapshot.status.is_terminal();
        Some(snapshot)
    }
}
