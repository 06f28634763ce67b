//! Observers of agents, among them the log.

use std::time::Duration;

use super::report::RuntimeReport;
use super::status::{AgentStatus, ErrorRecord, ExitReason, ForcedStop, Transition};

/// Observes every transition, every error and every forced stop, and at last the end of the runtime.
///
/// The agent's task calls the methods in order and outside every lock. They must not block. A panic is caught and
/// logged.
pub trait Observer: Send + Sync {
    /// Observes a change of status.
    fn on_transition(&self, _transition: &Transition) {}

    /// Observes an error in an agent.
    fn on_error(&self, _error: &ErrorRecord) {}

    /// Observes a hook that was dropped: at its stop timeout, at the soft deadline, or at the cleanup timeout.
    fn on_forced_stop(&self, _forced: &ForcedStop) {}

    /// Observes the closed report: every agent has ended, or the deadline has passed. Events of late agents still
    /// follow.
    fn on_end(&self, _report: &RuntimeReport) {}
}

#[deny(clippy::missing_trait_methods)]
impl<O: Observer + ?Sized> Observer for Box<O> {
    fn on_transition(&self, transition: &Transition) {
        (**self).on_transition(transition);
    }

    fn on_error(&self, error: &ErrorRecord) {
        (**self).on_error(error);
    }

    fn on_forced_stop(&self, forced: &ForcedStop) {
        (**self).on_forced_stop(forced);
    }

    fn on_end(&self, report: &RuntimeReport) {
        (**self).on_end(report);
    }
}

/// Logs through `tracing`, target `qi_core::agent`: info for each transition, warn with delay and attempt for
/// Backoff and for forced stops, error with its complete chain for Failed. Every runtime has this observer.
#[derive(Debug, Clone, Copy, Default)]
pub struct TracingObserver;

impl Observer for TracingObserver {
    fn on_transition(&self, transition: &Transition) {
        let Transition { agent, seq, at: _, incarnation, from, to, exit, backoff, gave_up, lasted: _ } =
            transition;
        let exit = exit.as_deref();
        match to {
            AgentStatus::Backoff => {
                let attempt = backoff.map_or(0, |step| step.attempt);
                let delay = backoff.map_or(Duration::ZERO, |step| step.delay);
                tracing::warn!(
                    target: "qi_core::agent",
                    %agent, seq, incarnation, attempt, ?delay, exit = exit.map(chain), "agent restarts"
                );
            }
            AgentStatus::Failed => tracing::error!(
                target: "qi_core::agent",
                %agent, seq, incarnation, ?gave_up, exit = exit.map(chain), "agent failed"
            ),
            _ => tracing::info!(
                target: "qi_core::agent",
                %agent, seq, incarnation, %from, %to, exit = exit.map(tracing::field::display), "agent"
            ),
        }
    }

    fn on_error(&self, record: &ErrorRecord) {
        let ErrorRecord { agent, at: _, incarnation, phase, error } = record;
        tracing::warn!(
            target: "qi_core::agent",
            %agent, incarnation, %phase, error = error.report(), "agent error"
        );
    }

    fn on_forced_stop(&self, forced: &ForcedStop) {
        let ForcedStop { agent, at: _, incarnation, phase, took } = forced;
        tracing::warn!(
            target: "qi_core::agent",
            %agent, incarnation, %phase, ?took, "hook aborted: deadline exceeded"
        );
    }
}

fn chain(exit: &ExitReason) -> String {
    match exit {
        ExitReason::Error(error) => error.report(),
        other => other.to_string(),
    }
}
