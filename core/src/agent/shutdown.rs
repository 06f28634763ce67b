//! The two deadlines of a shutdown.
//!
//! The soft one is kept by a task: it drops every hook that is left, and cleanups get the reserve. The hard one
//! is kept by a plain thread, because a task cannot keep time when agents block every thread of the runtime.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::catch::{catch, lock};
use super::cell::Limits;
use super::fleet::Fleet;
use super::report::RuntimeReport;
use crate::deadline::later;

/// What the hard deadline calls with the report that it has closed.
pub(super) type OnOverrun = Box<dyn FnOnce(&RuntimeReport) + Send>;

/// How long a shutdown may take. 25 s lies below the 30 s that Kubernetes waits before it kills.
pub(super) const DEFAULT_DEADLINE: Duration = Duration::from_secs(25);
const DEFAULT_RESERVE: Duration = Duration::from_millis(500);

/// The part of a deadline that is kept for cleanups: 500 ms, or a tenth of a deadline below 5 s.
pub(super) fn default_reserve(deadline: Duration) -> Duration {
    DEFAULT_RESERVE.min(deadline / 10)
}

/// What the two deadlines are, and the thread that keeps the hard one.
pub(super) struct Deadlines {
    pub(super) deadline: Duration,
    pub(super) reserve: Duration,
    /// The soft deadline is now.
    hurry: CancellationToken,
    hard: Mutex<Hard>,
    changed: Condvar,
    armed: AtomicBool,
    on_overrun: Mutex<Option<OnOverrun>>,
    /// Lets the thread reach the fleet that it belongs to.
    fleet: Mutex<std::sync::Weak<Fleet>>,
}

#[derive(Default)]
struct Hard {
    at: Option<Instant>,
    disarmed: bool,
}

impl Deadlines {
    pub(super) fn new(deadline: Duration, reserve: Duration, on_overrun: Option<OnOverrun>) -> Self {
        Self {
            deadline,
            reserve,
            hurry: CancellationToken::new(),
            hard: Mutex::default(),
            changed: Condvar::new(),
            armed: AtomicBool::new(false),
            on_overrun: Mutex::new(on_overrun),
            fleet: Mutex::default(),
        }
    }

    pub(super) fn belong_to(&self, fleet: &Arc<Fleet>) {
        *lock(&self.fleet) = Arc::downgrade(fleet);
    }

    /// Starts to keep the hard deadline.
    pub(super) fn arm(&self) {
        if self.armed.swap(true, Ordering::SeqCst) {
            return;
        }
        lock(&self.hard).at = Instant::now().checked_add(self.deadline);
        let Some(fleet) = lock(&self.fleet).upgrade() else { return };
        let thread = std::thread::Builder::new().name("qi-deadline".to_owned());
        if let Err(error) = thread.spawn(move || keep_hard_deadline(&fleet)) {
            tracing::error!(target: "qi_core::agent", %error, "no thread for the hard deadline of the shutdown");
        }
    }

    /// The report is closed: the thread may go.
    pub(super) fn disarm(&self) {
        lock(&self.hard).disarmed = true;
        self.changed.notify_all();
    }

    /// Makes the soft deadline now, and the hard one the end of the reserve.
    pub(super) fn hurry(&self) {
        let soon = Instant::now().checked_add(self.reserve);
        {
            let mut hard = lock(&self.hard);
            hard.at = [hard.at, soon].into_iter().flatten().min();
        }
        self.changed.notify_all();
        self.hurry.cancel();
    }
}

/// The task that keeps the soft deadline.
pub(super) async fn keep_soft_deadline(fleet: Arc<Fleet>) {
    let deadlines = &fleet.deadlines;
    tokio::select! {
        biased;
        () = fleet.closed.cancelled() => return,
        () = fleet.begun.cancelled() => {}
    }
    tokio::select! {
        biased;
        () = fleet.closed.cancelled() => return,
        () = deadlines.hurry.cancelled() => {}
        () = tokio::time::sleep_until(later(deadlines.deadline.saturating_sub(deadlines.reserve))) => {}
    }
    // A fifth of the reserve is for the runtime itself, so that the last cleanup is off the thread's list.
    let _only_once = fleet.env.final_at.set(later(deadlines.reserve / 5 * 4));
    tracing::warn!(target: "qi_core::agent", "soft deadline of the shutdown: remaining hooks are dropped");
    fleet.drop_hooks();
}

fn keep_hard_deadline(fleet: &Fleet) {
    let deadlines = &fleet.deadlines;
    let mut hard = lock(&deadlines.hard);
    loop {
        if hard.disarmed {
            return;
        }
        let now = Instant::now();
        let left = match hard.at {
            Some(at) if at <= now => break,
            Some(at) => at - now,
            None => Duration::from_hours(1),
        };
        hard = match deadlines.changed.wait_timeout(hard, left) {
            Ok((hard, _)) => hard,
            Err(poisoned) => poisoned.into_inner().0,
        };
    }
    drop(hard);
    let Some(report) = fleet.close() else { return };
    tracing::error!(target: "qi_core::agent", %report, "hard deadline of the shutdown");
    if let Some(on_overrun) = lock(&deadlines.on_overrun).take()
        && let Err(panic) = catch(|| on_overrun(report))
    {
        tracing::error!(target: "qi_core::agent", panic, "on_overrun panicked");
    }
}

/// By how much the stop and cleanup limits of a shutdown must shrink so that the longest dependency path ends by
/// the soft deadline: 1 if it does so anyway. `order` has dependencies before dependents.
pub(super) fn scale(
    limits: &[Limits],
    dependencies: &[Vec<usize>],
    order: &[usize],
    deadline: Duration,
    reserve: Duration,
) -> f64 {
    let available = deadline.saturating_sub(reserve);
    let mut path = vec![Duration::ZERO; limits.len()];
    let mut longest = Duration::ZERO;
    for &index in order {
        let before = dependencies[index].iter().map(|d| path[*d]).max().unwrap_or_default();
        let limits = limits[index].at_most(available);
        path[index] = before.saturating_add(limits.stop).saturating_add(limits.cleanup);
        longest = longest.max(path[index]);
    }
    if longest <= available {
        return 1.0;
    }
    tracing::warn!(
        target: "qi_core::agent",
        needed = ?longest, ?available,
        "the longest dependency path needs more than the shutdown has: its limits shrink in proportion"
    );
    available.as_secs_f64() / longest.as_secs_f64()
}
