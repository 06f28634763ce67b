//! Observers of agents, including the log.

use std::time::Duration;

use super::report::RuntimeReport;
use super::status::{AgentStatus, ErrorRecord, ExitReason, ForcedStop, Transition};

/// An observer of every transition, every error, every forced stop, and the end of the runtime.
///
/// The agent's task calls the methods in order and without holding a lock. The methods must not block. A panic of an
/// observer is caught and logged.
pub trait Observer: Send + Sync {
    /// Observes a change of status.
    fn on_transition(&self, _transition: &Transition) {}

    /// Observes an error in an agent.
    fn on_error(&self, _error: &ErrorRecord) {}

    /// Observes the drop of a hook at its stop timeout, at the soft deadline, or at the cleanup timeout.
    fn on_forced_stop(&self, _forced: &ForcedStop) {}

    /// Observes the closed report. Every agent has ended, or the deadline has passed. Events of
    /// late agents may still follow.
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

/// An observer that logs through `tracing` with the target `qi_core::agent`. Every runtime has this observer.
///
/// The level is info for transitions, warn for Backoff (with delay and attempt), errors and forced stops, and error for
/// Failed (with its complete error chain).
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
                %agent, seq, incarnation, %from, %to, exit = exit.map(tracing::field::display), "agent status changed"
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
