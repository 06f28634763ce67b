//! The settings of one agent, and the values that all agents of a runtime share.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::catch::catch;
use super::observe::Observer;
use crate::Clock;

/// The settings of one agent.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) run_to_completion: bool,
    pub(super) critical: bool,
    pub(super) limits: Limits,
    pub(super) watchdog: Option<Duration>,
    pub(super) max_children: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let limits = Limits {
            initialize: Duration::from_mins(6),
            stop: Duration::from_secs(5),
            cleanup: Duration::from_secs(2),
        };
        Self { run_to_completion: false, critical: true, limits, watchdog: None, max_children: 1_024 }
    }
}

/// The time limits of one agent's hooks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) initialize: Duration,
    pub(super) stop: Duration,
    pub(super) cleanup: Duration,
}

/// The values that all agents of a runtime share.
pub(super) struct Shared {
    pub(super) clock: Arc<dyn Clock>,
    observers: Vec<Arc<dyn Observer>>,
    /// Cancelled at the soft deadline, which drops every hook except `cleanup`.
    pub(super) soft_deadline: CancellationToken,
    /// The time at which the last cleanup must end. Set before the soft deadline is cancelled.
    pub(super) cleanup_by: OnceLock<Instant>,
    /// The part of the shutdown deadline before the cleanup reserve.
    pub(super) available: Duration,
    /// The factor for the limits of a shutdown. Set when the shutdown begins.
    scale: OnceLock<f64>,
}

impl Shared {
    pub(super) fn new(clock: Arc<dyn Clock>, observers: Vec<Arc<dyn Observer>>, available: Duration) -> Self {
        Self {
            clock,
            observers,
            soft_deadline: CancellationToken::new(),
            cleanup_by: OnceLock::new(),
            available,
            scale: OnceLock::new(),
        }
    }

    /// Calls every observer. A panic of one observer does not affect the others.
    pub(super) fn notify(&self, call: impl Fn(&dyn Observer)) {
        for observer in &self.observers {
            if let Err(panic) = catch(|| call(&**observer)) {
                tracing::error!(target: "qi_core::agent", panic, "observer panicked");
            }
        }
    }

    pub(super) fn is_shutting_down(&self) -> bool {
        self.scale.get().is_some()
    }

    /// Applies the limits of the shutdown from now on. `longest` is the time that the longest dependency path needs to
    /// stop. If it exceeds the time before the soft deadline, the limits shrink in proportion.
    pub(super) fn begin_shutdown(&self, longest: Duration) {
        let fits = longest <= self.available;
        let scale = if fits { 1.0 } else { self.available.as_secs_f64() / longest.as_secs_f64() };
        let _once = self.scale.set(scale);
    }

    /// Returns the longest time that an agent with these limits needs to stop. A limit that exceeds the available time
    /// of the shutdown counts as the available time.
    pub(super) fn time_to_stop(&self, limits: Limits) -> Duration {
        limits.stop.min(self.available).saturating_add(limits.cleanup.min(self.available))
    }

    /// Returns the limits that apply now.
    pub(super) fn limits(&self, limits: Limits) -> Limits {
        let Some(&scale) = self.scale.get() else { return limits };
        // A scale of 1 is skipped, because a float would round the duration.
        let scaled = |limit: Duration| {
            let limit = limit.min(self.available);
            if scale < 1.0 { limit.mul_f64(scale) } else { limit }
        };
        Limits { stop: scaled(limits.stop), cleanup: scaled(limits.cleanup), ..limits }
    }
}
