//! Who is told of every transition and every error: the observers, first of all the log.

use std::time::Duration;

use super::status::{AgentStatus, ErrorRecord, ExitReason, Transition};

/// Is told of every transition and every error, in order, by the task that drives the agent.
///
/// It is called outside every lock and must not block. A panic in it is caught and logged.
pub trait Observer: Send + Sync {
    /// An agent changed its status.
    fn on_transition(&self, _transition: &Transition) {}

    /// Something went wrong in an agent.
    fn on_error(&self, _error: &ErrorRecord) {}
}

impl<O: Observer + ?Sized> Observer for Box<O> {
    fn on_transition(&self, transition: &Transition) {
        (**self).on_transition(transition);
    }

    fn on_error(&self, error: &ErrorRecord) {
        (**self).on_error(error);
    }
}

/// Logs through `tracing`, target `qi_core::agent`: info for each transition, warn with delay and attempt for
/// Backoff, error with its whole chain for Failed. Every runtime has it.
#[derive(Debug, Clone, Copy, Default)]
pub struct TracingObserver;

impl Observer for TracingObserver {
    fn on_transition(&self, transition: &Transition) {
        let Transition { agent, seq, at: _, incarnation, from, to, exit, backoff, gave_up } = transition;
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
}

fn chain(exit: &ExitReason) -> String {
    match exit {
        ExitReason::Error(error) => error.report(),
        other => other.to_string(),
    }
}
