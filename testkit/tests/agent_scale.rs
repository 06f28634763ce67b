//! Many agents: the same seed gives the same run, and a long chain of dependencies starts and stops in order.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod agent_rig;

use agent_rig::{ms, scripted};
use qi_core::ErrorKind;
use qi_core::agent::AgentStatus::{Initializing, Running, Stopped, Stopping};
use qi_core::agent::{AgentRuntime, RestartPolicy};
use qi_testkit::ManualClock;
use qi_testkit::agent::{Script, Step, TransitionLog, check_transitions};
use tokio::time::sleep;

const AGENTS: usize = 200;

fn random_step(rng: &mut fastrand::Rng) -> Step {
    let step = match rng.u8(..8) {
        0 => Step::Ok,
        1 => Step::Err(ErrorKind::Unavailable),
        2 => Step::Err(ErrorKind::Conflict),
        3 => Step::Panic,
        4 => Step::HangIgnoringStop,
        5 => Step::child(Step::after(ms(rng.u64(1..500)), Step::Err(ErrorKind::Timeout))),
        _ => Step::WaitForStop,
    };
    if rng.bool() { Step::after(ms(rng.u64(1..3_000)), step) } else { step }
}

fn run_once(seed: u64) -> (Vec<String>, Vec<Vec<String>>) {
    let tokio =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio.block_on(async {
        let log = TransitionLog::default();
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut builder =
            AgentRuntime::builder().seed(seed).clock(ManualClock::default()).observer(log.clone());
        let mut calls = Vec::new();
        for n in 0..AGENTS {
            let scripts: Vec<Script> = (0..4)
                .map(|_| {
                    let script = Script::run(random_step(&mut rng));
                    let script =
                        if rng.u8(..4) == 0 { script.with_initialize(random_step(&mut rng)) } else { script };
                    if rng.u8(..8) == 0 { script.with_cleanup(random_step(&mut rng)) } else { script }
                })
                .collect();
            let (spec, log) = scripted(&format!("agent-{n}"), scripts);
            calls.push(log);
            let spec = spec.best_effort().watchdog(ms(4_000)).restart(RestartPolicy::always());
            let spec = if n > 0 && rng.bool() {
                spec.depends_on([format!("agent-{}", rng.usize(..n))])
            } else {
                spec
            };
            builder = builder.agent(spec);
        }
        let report = builder.build().unwrap().run_until(sleep(ms(20_000))).await;
        assert_eq!(report.leaked().count(), 0);
        for (n, calls) in calls.iter().enumerate() {
            check_transitions(&log.of(&format!("agent-{n}"))).unwrap();
            assert!(calls.is_clean(), "{calls:?}");
        }
        (log.lines(), calls.iter().map(qi_testkit::agent::CallLog::calls).collect())
    })
}

#[test]
fn two_hundred_agents_with_random_faults_are_deterministic() {
    let (first, second) = (run_once(11), run_once(11));
    assert!(first.0.len() > 5 * AGENTS, "{} transitions", first.0.len());
    assert_eq!(first.0, second.0);
    assert_eq!(first.1, second.1);
    assert_ne!(first.0, run_once(12).0, "another seed is another run");
}

#[tokio::test(start_paused = true)]
async fn chain_of_a_hundred_agents_starts_and_stops_in_dependency_order() {
    let log = TransitionLog::default();
    let mut builder = AgentRuntime::builder().clock(ManualClock::default()).observer(log.clone());
    let name = |n: usize| format!("link-{n:03}");
    // The agents are added in reverse. The dependencies determine the order, not the list.
    for n in (0..100).rev() {
        let (spec, _) = scripted(&name(n), [Script::default()]);
        builder = builder.agent(if n > 0 { spec.depends_on([name(n - 1)]) } else { spec });
    }
    let report = builder.build().unwrap().run_until(sleep(ms(1_000))).await;
    report.result().unwrap();
    let order = |to| -> Vec<String> {
        log.all().iter().filter(|t| t.to == to).map(|t| t.agent.to_string()).collect()
    };
    let forwards: Vec<String> = (0..100).map(name).collect();
    let backwards: Vec<String> = forwards.iter().rev().cloned().collect();
    assert_eq!(order(Initializing), forwards);
    assert_eq!(order(Running), forwards);
    assert_eq!(order(Stopping), backwards);
    assert_eq!(order(Stopped), backwards);
    assert_eq!(report.forced().count(), 0);
}
