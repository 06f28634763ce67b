//! Helpers for the tests of the agent runtime.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test files, each of which uses its part"
)]

use std::time::Duration;

use qi_core::agent::{
    Agent, AgentRuntime, AgentRuntimeBuilder, AgentSpec, AgentStatus, Backoff, RestartPolicy, RuntimeHandle,
    RuntimeReport,
};
use qi_testkit::ManualClock;
use qi_testkit::agent::{CallLog, Script, ScriptedAgent, TransitionLog, check_transitions};

pub const SEED: u64 = 20_240_101;

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn builder(log: &TransitionLog) -> AgentRuntimeBuilder {
    AgentRuntime::builder().seed(SEED).clock(ManualClock::default()).observer(log.clone())
}

/// Returns a spec that follows these scripts, and the log of its calls.
pub fn scripted(name: &str, scripts: impl IntoIterator<Item = Script>) -> (AgentSpec, CallLog) {
    let scripts = ScriptedAgent::script(scripts);
    (AgentSpec::new(name, scripts.factory()), scripts.log())
}

/// The records of one agent named `a`, which ran for `run_for` or until its end.
pub struct AgentRun {
    pub log: TransitionLog,
    pub calls: CallLog,
    pub report: RuntimeReport,
    pub handle: RuntimeHandle,
}

impl AgentRun {
    pub fn statuses(&self) -> Vec<AgentStatus> {
        self.log.statuses("a")
    }

    pub fn exits(&self) -> Vec<String> {
        self.log
            .of("a")
            .iter()
            .filter(|t| t.to == AgentStatus::Stopping)
            .filter_map(|t| t.exit.as_ref().map(ToString::to_string))
            .collect()
    }

    pub fn error_codes(&self) -> Vec<String> {
        self.log.errors("a").iter().map(|record| record.error.code().to_owned()).collect()
    }
}

/// Runs one agent named `a` that follows `scripts`. `change` modifies its spec.
pub async fn run_agent(
    scripts: impl IntoIterator<Item = Script>,
    run_for: Duration,
    change: impl FnOnce(AgentSpec) -> AgentSpec,
) -> AgentRun {
    let log = TransitionLog::default();
    let (spec, calls) = scripted("a", scripts);
    let runtime = builder(&log).agent(change(spec)).build().unwrap();
    let handle = runtime.handle();
    let report = runtime.run_until(tokio::time::sleep(run_for)).await;
    check_transitions(&log.of("a")).unwrap();
    assert!(calls.is_clean(), "{calls:?}");
    AgentRun { log, calls, report, handle }
}

/// Runs one agent named `a` for `run_for` or until its end. `make` is its factory.
pub async fn run_agent_as<A: Agent + 'static>(
    run_for: Duration,
    make: impl FnMut() -> A + Send + 'static,
) -> (TransitionLog, RuntimeReport) {
    let log = TransitionLog::default();
    let runtime = builder(&log).agent(AgentSpec::new("a", make)).build().unwrap();
    let report = runtime.run_until(tokio::time::sleep(run_for)).await;
    check_transitions(&log.of("a")).unwrap();
    (log, report)
}

/// Returns a policy that restarts without a limit and without a delay.
pub fn immediate_restart() -> RestartPolicy {
    RestartPolicy::default().with_max_crashes(None).with_backoff(Backoff::new(Duration::ZERO, Duration::ZERO))
}
