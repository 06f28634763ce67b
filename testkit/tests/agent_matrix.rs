//! All faults in all phases and restart modes, with stops and changes at several times. In each case, the history is
//! legal, every initialized value is cleaned up once, the runtime ends by its deadline, and no task remains.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod agent_rig;

use std::time::Duration;

use agent_rig::{builder, ms, scripted};
use qi_core::ErrorKind;
use qi_core::agent::{AgentSpec, AgentStatus, Backoff, Phase, RestartMode, RestartPolicy};
use qi_testkit::agent::{CallLog, Script, Step, TransitionLog, check_transitions};

#[derive(Debug, Clone, Copy)]
enum Stop {
    At(Duration),
    OneAgent(Duration),
    ByDrop(Duration),
    Now(Duration),
}

fn faults() -> Vec<(&'static str, Step)> {
    vec![
        ("nothing", Step::Ok),
        ("retryable error", Step::Err(ErrorKind::Unavailable)),
        ("final error", Step::Err(ErrorKind::Config)),
        ("panic", Step::Panic),
        ("odd panic", Step::PanicWithOtherPayload),
        ("panic on drop", Step::PanicOnDrop),
        ("hang", Step::WaitForStop),
        ("deaf hang", Step::HangIgnoringStop),
        ("slow", Step::after(ms(1_500), Step::Ok)),
        ("slow error", Step::after(ms(1_500), Step::Err(ErrorKind::Timeout))),
        ("slow panic", Step::after(ms(1_500), Step::Panic)),
        ("child error", Step::child(Step::after(ms(300), Step::Err(ErrorKind::Overloaded)))),
        ("deaf child", Step::child(Step::HangIgnoringStop)),
    ]
}

fn stops() -> [Stop; 6] {
    [
        Stop::At(Duration::ZERO),
        Stop::At(ms(1)),
        Stop::At(ms(2_100)),
        Stop::OneAgent(ms(900)),
        Stop::ByDrop(ms(900)),
        Stop::Now(ms(2_100)),
    ]
}

/// Returns the agent `a` with a fault in one phase, and the log of its calls.
fn faulty(phase: Phase, fault: &Step, mode: RestartMode) -> (AgentSpec, CallLog) {
    let script = match phase {
        Phase::Initialize => Script::initialize(fault.clone()),
        Phase::Run => Script::run(fault.clone()),
        _ => Script::run(Step::after(ms(700), Step::Err(ErrorKind::Timeout))).with_cleanup(fault.clone()),
    };
    let (spec, calls) = scripted("a", [script]);
    let mut policy = RestartPolicy::default().with_backoff(Backoff::new(ms(100), ms(400)));
    policy.mode = mode;
    let spec = spec.restart(policy).init_timeout(ms(800)).stop_timeout(ms(500)).cleanup_timeout(ms(600));
    (spec.watchdog(ms(5_000)), calls)
}

async fn case(phase: Phase, fault: &Step, mode: RestartMode, stop: Stop) {
    let log = TransitionLog::default();
    let (spec, calls) = faulty(phase, fault, mode);
    let deadline = ms(3_000);
    let runtime = builder(&log).agent(spec).shutdown_deadline(deadline).build().unwrap();
    let handle = runtime.handle();
    let stop_after = match stop {
        Stop::At(after) | Stop::OneAgent(after) | Stop::ByDrop(after) | Stop::Now(after) => after,
    };
    let begun = tokio::time::Instant::now();
    let report = match stop {
        Stop::At(after) => runtime.run_until(tokio::time::sleep(after)).await,
        Stop::OneAgent(after) => {
            runtime
                .run_until(async {
                    tokio::time::sleep(after).await;
                    handle.stop("a").unwrap();
                    std::future::pending::<()>().await;
                })
                .await
        }
        Stop::ByDrop(after) => {
            let _elapsed = tokio::time::timeout(after, runtime.run()).await;
            handle.join().await
        }
        Stop::Now(after) => {
            runtime
                .run_until(async {
                    tokio::time::sleep(after).await;
                    handle.shutdown_now();
                    std::future::pending::<()>().await;
                })
                .await
        }
    };
    let took = begun.elapsed();
    check_transitions(&log.of("a")).unwrap();
    assert!(calls.is_clean(), "{calls:?}");
    assert_eq!(calls.count("Init#"), calls.count("Cleanup#"));
    assert_eq!(calls.count("Drop#"), calls.count("Init#"), "every agent value is dropped");
    assert!(took <= stop_after + deadline, "the shutdown took {took:?}");
    assert_eq!(report.leaked().count(), 0);
    let end = handle.snapshot("a").unwrap();
    assert!(end.status.is_terminal());
    assert_eq!(end.seq, log.of("a").len() as u64, "the observer saw every transition");
    assert_eq!(report.result().is_err(), end.status == AgentStatus::Failed);
}

/// A change of the agents while the runtime runs.
#[derive(Debug, Clone, Copy)]
enum Change {
    Removed(Duration),
    RemovalDropped(Duration),
    AddedAgain(Duration),
    AddedInShutdown(Duration),
}

fn changes() -> [Change; 8] {
    [
        Change::Removed(Duration::ZERO),
        Change::Removed(ms(1)),
        Change::Removed(ms(900)),
        Change::Removed(ms(2_100)),
        Change::RemovalDropped(ms(900)),
        Change::AddedAgain(ms(900)),
        Change::AddedInShutdown(ms(1)),
        Change::AddedInShutdown(ms(900)),
    ]
}

fn is_closed<T: std::fmt::Debug>(result: qi_core::Result<T>) -> bool {
    result.unwrap_err().kind() == ErrorKind::Closed
}

async fn change_case(phase: Phase, fault: &Step, mode: RestartMode, change: Change, critical: bool) {
    let log = TransitionLog::default();
    let handle = builder(&log).run_when_empty().shutdown_deadline(ms(3_000)).build().unwrap().start();
    let (spec, first) = faulty(phase, fault, mode);
    let mut all_calls = vec![first];
    handle.spawn(if critical { spec } else { spec.best_effort() }).unwrap();
    // The failure of a critical agent starts the shutdown, which then rejects the change.
    let ended = || critical && handle.health().shutting_down;
    match change {
        Change::Removed(after) => {
            tokio::time::sleep(after).await;
            let before = ended();
            match handle.remove("a").await {
                Ok(report) => {
                    assert!(!before && report.status.is_terminal());
                    assert_eq!(handle.names().is_empty(), !ended());
                    if !ended() {
                        let removed = handle.removed();
                        check_transitions(&removed[0].history).unwrap();
                        assert_eq!(removed[0].history.len(), log.of("a").len().min(64));
                    }
                }
                rejected => assert!(before && is_closed(rejected)),
            }
        }
        Change::RemovalDropped(after) => {
            tokio::time::sleep(after).await;
            let _dropped = tokio::time::timeout(ms(1), handle.remove("a")).await;
            tokio::time::sleep(ms(2_000)).await;
            assert_eq!(handle.names().is_empty(), !ended());
        }
        Change::AddedAgain(after) => {
            tokio::time::sleep(after).await;
            let _refused_in_shutdown = handle.remove("a").await;
            let (spec, calls) = faulty(phase, fault, mode);
            let added = handle.spawn(spec.best_effort());
            assert_eq!(added.is_err(), ended());
            if added.is_ok() {
                all_calls.push(calls);
                assert_eq!(handle.snapshot("a").unwrap().seq, 0);
                tokio::time::sleep(ms(1_300)).await;
                assert!(handle.remove("a").await.unwrap().status.is_terminal());
                assert!(handle.names().is_empty());
                assert_eq!(handle.removed().len(), 2);
            }
        }
        Change::AddedInShutdown(after) => {
            tokio::time::sleep(after).await;
            handle.shutdown();
            let (spec, calls) = faulty(phase, fault, mode);
            assert!(is_closed(handle.spawn(spec)));
            let (other, other_calls) = scripted("other", [Script::default()]);
            assert!(is_closed(handle.spawn(other)));
            assert!(is_closed(handle.remove("a").await));
            assert!(calls.calls().is_empty() && other_calls.calls().is_empty());
        }
    }
    handle.shutdown();
    let report = handle.join().await;
    assert_eq!(report.leaked().count(), 0);
    assert_eq!(report.agents.len(), handle.names().len());
    let mut lives: Vec<Vec<_>> = Vec::new();
    for transition in log.of("a") {
        if transition.seq == 1 {
            lives.push(Vec::new());
        }
        lives.last_mut().unwrap().push(transition);
    }
    assert_eq!(lives.len(), all_calls.len());
    for (life, calls) in lives.iter().zip(all_calls) {
        check_transitions(life).unwrap();
        assert!(calls.is_clean(), "{calls:?}");
        assert_eq!(calls.count("Init#"), calls.count("Cleanup#"));
        assert_eq!(calls.count("Drop#"), calls.count("Init#"), "every agent value is dropped");
    }
}

fn silence_scripted_panics() {
    std::panic::set_hook(Box::new(|info| {
        // The test causes thousands of scripted panics.
        let text = info.payload().downcast_ref::<&str>().copied().unwrap_or_default();
        if !text.starts_with("scripted")
            && !info.location().is_some_and(|l| l.file().ends_with("scripted.rs"))
        {
            eprintln!("{info}");
        }
    }));
}

/// Runs a case on paused time and checks that no task remains.
fn run_case(name: &str, case: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        runtime.block_on(case);
        // A task that has reported its end may still have to return.
        runtime.block_on(async { tokio::time::sleep(ms(1)).await });
        assert_eq!(runtime.metrics().num_alive_tasks(), 0, "tasks are left over");
    }));
    assert!(result.is_ok(), "{name}");
}

const PHASES: [Phase; 3] = [Phase::Initialize, Phase::Run, Phase::Cleanup];
const MODES: [RestartMode; 3] = [RestartMode::Never, RestartMode::OnFailure, RestartMode::Always];

#[test]
fn faults_by_phase_mode_and_time_of_the_stop() {
    silence_scripted_panics();
    let mut cases = 0;
    for phase in PHASES {
        for (name, fault) in faults() {
            for mode in MODES {
                for stop in stops() {
                    let name = format!("{name} in {phase}, {mode:?}, {stop:?}");
                    run_case(&name, case(phase, &fault, mode, stop));
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 3 * 13 * 3 * 6);
}

#[test]
fn faults_by_phase_mode_and_membership_change() {
    silence_scripted_panics();
    let mut cases = 0;
    for phase in PHASES {
        for (name, fault) in faults() {
            for mode in MODES {
                for change in changes() {
                    for critical in [true, false] {
                        let name = format!("{name} in {phase}, {mode:?}, {change:?}, critical {critical}");
                        run_case(&name, change_case(phase, &fault, mode, change, critical));
                        cases += 1;
                    }
                }
            }
        }
    }
    assert_eq!(cases, 3 * 13 * 3 * 8 * 2);
}
