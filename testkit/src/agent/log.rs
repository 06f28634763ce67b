//! A log of all agent events, and checks of their order.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qi_core::agent::{AgentStatus, ErrorRecord, ExitReason, ForcedStop, Observer, RuntimeReport, Transition};

/// The largest number of records of each kind. A test with more records is faulty.
const LIMIT: usize = 1_000_000;

/// An observer that records all events, up to 1,000,000 of each kind. Clones share the records.
///
/// ```
/// use qi_core::agent::{AgentRuntime, AgentSpec, agent_fn};
/// use qi_testkit::agent::{TransitionLog, is_legal_status_sequence};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> qi_core::Result<()> {
/// let log = TransitionLog::default();
/// let runtime = AgentRuntime::builder()
///     .agent(AgentSpec::new("once", || agent_fn(|_cx| async { Ok(()) })))
///     .observer(log.clone())
///     .build()?;
/// runtime.run().await;
/// assert!(is_legal_status_sequence(&log.statuses("once")));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct TransitionLog(Arc<Mutex<Records>>);

#[derive(Debug, Default)]
struct Records {
    transitions: Vec<Transition>,
    errors: Vec<ErrorRecord>,
    forced: Vec<ForcedStop>,
    report: Option<RuntimeReport>,
}

impl TransitionLog {
    fn records(&self) -> MutexGuard<'_, Records> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the transitions of all agents in the order of their notifications.
    pub fn all(&self) -> Vec<Transition> {
        self.records().transitions.clone()
    }

    /// Returns the transitions of one agent.
    pub fn of(&self, agent: &str) -> Vec<Transition> {
        self.records().transitions.iter().filter(|t| &*t.agent == agent).cloned().collect()
    }

    /// Returns the statuses of one agent, starting with `Created`.
    pub fn statuses(&self, agent: &str) -> Vec<AgentStatus> {
        std::iter::once(AgentStatus::Created).chain(self.of(agent).iter().map(|t| t.to)).collect()
    }

    /// Returns the errors of one agent.
    pub fn errors(&self, agent: &str) -> Vec<ErrorRecord> {
        self.records().errors.iter().filter(|e| &*e.agent == agent).cloned().collect()
    }

    /// Returns the forced stops of one agent.
    pub fn forced(&self, agent: &str) -> Vec<ForcedStop> {
        self.records().forced.iter().filter(|f| &*f.agent == agent).cloned().collect()
    }

    /// Returns the report of the runtime, or None before the runtime has ended.
    pub fn report(&self) -> Option<RuntimeReport> {
        self.records().report.clone()
    }

    /// Returns one line for each transition, with its time, exit and delay. Two equal runs have equal lines.
    pub fn lines(&self) -> Vec<String> {
        let line = |t: &Transition| {
            let exit = t.exit.as_ref().map(|exit| format!(" ({exit})")).unwrap_or_default();
            let backoff = t.backoff.map(|step| format!(" {step:?}")).unwrap_or_default();
            let gave_up = t.gave_up.map(|why| format!(" {why:?}")).unwrap_or_default();
            let Transition { agent, seq, at, incarnation, from, to, .. } = t;
            format!("{at} {agent} {seq} #{incarnation} {from}>{to}{exit}{backoff}{gave_up}")
        };
        self.records().transitions.iter().map(line).collect()
    }
}

impl Observer for TransitionLog {
    fn on_transition(&self, transition: &Transition) {
        let mut records = self.records();
        assert!(records.transitions.len() < LIMIT, "a test log holds at most {LIMIT} transitions");
        records.transitions.push(transition.clone());
    }

    fn on_error(&self, error: &ErrorRecord) {
        let mut records = self.records();
        assert!(records.errors.len() < LIMIT, "a test log holds at most {LIMIT} errors");
        records.errors.push(error.clone());
    }

    fn on_forced_stop(&self, forced: &ForcedStop) {
        let mut records = self.records();
        assert!(records.forced.len() < LIMIT, "a test log holds at most {LIMIT} forced stops");
        records.forced.push(forced.clone());
    }

    fn on_end(&self, report: &RuntimeReport) {
        self.records().report = Some(report.clone());
    }
}

/// Returns whether the complete statuses of an agent, starting with `Created`, are a legal history:
/// `C (I R? P B)* (S | I R? P (S|F))`. P stands for `Stopping`, S for `Stopped`, and every other letter for the status
/// with this initial. [`check_transitions`] also accepts an aborted driver.
///
/// ```
/// use qi_core::agent::AgentStatus::*;
/// use qi_testkit::agent::is_legal_status_sequence;
///
/// assert!(is_legal_status_sequence(&[Created, Initializing, Running, Stopping, Stopped]));
/// assert!(!is_legal_status_sequence(&[Created, Running, Stopped]));
/// ```
pub fn is_legal_status_sequence(statuses: &[AgentStatus]) -> bool {
    use AgentStatus::{Backoff, Created, Failed, Initializing, Running, Stopped, Stopping};
    let ends = statuses.last().is_some_and(|last| last.is_terminal());
    let begins = statuses.first() == Some(&Created);
    begins
        && ends
        && statuses.windows(2).all(|pair| {
            matches!(
                (pair[0], pair[1]),
                (Created | Backoff, Initializing | Stopped)
                    | (Initializing, Running | Stopping)
                    | (Running, Stopping)
                    | (Stopping, Backoff | Stopped | Failed)
            )
        })
}

/// Checks the complete transitions of one agent: legal statuses, consecutive numbers, times that never decrease, and an
/// exit for every end. If the driver was aborted, `Failed` may follow any status.
///
/// # Errors
/// A description of the violation.
pub fn check_transitions(history: &[Transition]) -> Result<(), String> {
    let mut statuses = vec![AgentStatus::Created];
    for (n, t) in history.iter().enumerate() {
        if t.seq != n as u64 + 1 {
            return Err(format!("transition {} has the number {}", n + 1, t.seq));
        }
        if statuses.last() != Some(&t.from) {
            return Err(format!("transition {} begins at {} after {statuses:?}", t.seq, t.from));
        }
        if n > 0 && t.at < history[n - 1].at {
            return Err(format!("transition {} goes back in time", t.seq));
        }
        let ends = matches!(t.to, AgentStatus::Stopping | AgentStatus::Backoff) || t.to.is_terminal();
        if ends != t.exit.is_some() || (t.to == AgentStatus::Backoff) != t.backoff.is_some() {
            return Err(format!("transition {} to {} has exit {:?}, {:?}", t.seq, t.to, t.exit, t.backoff));
        }
        statuses.push(t.to);
    }
    if let Some(last) = history.last()
        && matches!(last.exit.as_deref(), Some(ExitReason::DriverAborted))
        && last.to == AgentStatus::Failed
        && !last.from.is_terminal()
    {
        return Ok(());
    }
    if is_legal_status_sequence(&statuses) { Ok(()) } else { Err(format!("illegal: {statuses:?}")) }
}
