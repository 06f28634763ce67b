//! Every fault in every phase under every mode, stopped at every moment: whatever happens, the history is legal,
//! every initialised value is cleaned up once, the end comes by the deadline, and nothing is left over.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod agent_rig;

use std::time::Duration;

use agent_rig::{builder, ms, scripted};
use qi_core::ErrorKind;
use qi_core::agent::{AgentStatus, Backoff, Phase, RestartMode, RestartPolicy};
use qi_testkit::agent::{Script, Step, TransitionLog, legal_history};

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
        ("odd panic", Step::PanicOddly),
        ("panic on drop", Step::PanicOnDrop),
        ("hang", Step::Hang),
        ("deaf hang", Step::HangDeaf),
        ("slow", Step::after(ms(1_500), Step::Ok)),
        ("slow error", Step::after(ms(1_500), Step::Err(ErrorKind::Timeout))),
        ("slow panic", Step::after(ms(1_500), Step::Panic)),
        ("child error", Step::child(Step::after(ms(300), Step::Err(ErrorKind::Overloaded)))),
        ("deaf child", Step::child(Step::HangDeaf)),
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

async fn case(phase: Phase, fault: &Step, mode: RestartMode, stop: Stop) {
    let script = match phase {
        Phase::Initialize => Script::initialize(fault.clone()),
        Phase::Run => Script::run(fault.clone()),
        Phase::Cleanup => {
            Script::run(Step::after(ms(700), Step::Err(ErrorKind::Timeout))).with_cleanup(fault.clone())
        }
    };
    let log = TransitionLog::default();
    let (spec, calls) = scripted("a", [script]);
    let mut policy = RestartPolicy::default().with_backoff(Backoff::new(ms(100), ms(400)));
    policy.mode = mode;
    let spec = spec
        .restart(policy)
        .init_timeout(ms(800))
        .stop_timeout(ms(500))
        .cleanup_timeout(ms(600))
        .watchdog(ms(5_000));
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
            handle.ended().await
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
    legal_history(&log.of("a")).unwrap();
    assert!(calls.is_clean(), "{calls:?}");
    assert_eq!(calls.count("Init#"), calls.count("Cleanup#"));
    assert_eq!(calls.count("Drop#"), calls.count("Init#"), "no value is left over");
    assert!(took <= stop_after + deadline, "took {took:?}");
    assert_eq!(report.leaked().count(), 0);
    let end = handle.snapshot("a").unwrap();
    assert!(end.status.is_terminal());
    assert_eq!(end.seq, log.of("a").len() as u64, "the observer saw every transition");
    assert_eq!(report.result().is_err(), end.status == AgentStatus::Failed);
}

#[test]
fn every_fault_in_every_phase_under_every_mode_at_every_moment_of_stop() {
    std::panic::set_hook(Box::new(|info| {
        // The scripted ones are meant, and there are thousands of them.
        let text = info.payload().downcast_ref::<&str>().copied().unwrap_or_default();
        if !text.starts_with("scripted")
            && !info.location().is_some_and(|l| l.file().ends_with("scripted.rs"))
        {
            eprintln!("{info}");
        }
    }));
    let mut cases = 0;
    for phase in [Phase::Initialize, Phase::Run, Phase::Cleanup] {
        for (name, fault) in faults() {
            for mode in [RestartMode::Never, RestartMode::OnFailure, RestartMode::Always] {
                for stop in stops() {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .start_paused(true)
                        .build()
                        .unwrap();
                    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        runtime.block_on(case(phase, &fault, mode, stop));
                        // A task that has told its end may still have to return.
                        runtime.block_on(async { tokio::time::sleep(ms(1)).await });
                        assert_eq!(runtime.metrics().num_alive_tasks(), 0, "tasks are left over");
                    }));
                    assert!(result.is_ok(), "{name} in {phase}, {mode:?}, {stop:?}");
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 3 * 13 * 3 * 6);
}
