//! The history of agents has no gaps. Observers receive every transition, watchers receive the newest state, and
//! ring buffers are bounded.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod agent_rig;

use agent_rig::{builder, immediate_restart, ms, scripted};
use qi_core::ErrorKind;
use qi_core::agent::AgentStatus::{Backoff, Created, Running, Stopped};
use qi_core::agent::{AgentRuntime, ErrorRecord, Observer, Transition};
use qi_testkit::ManualClock;
use qi_testkit::agent::{Script, Step, TransitionLog, check_transitions};
use tokio::time::sleep;

const RESTARTS: usize = 10_000;

#[tokio::test(start_paused = true)]
async fn ten_thousand_restarts_leave_no_gap_in_the_history() {
    let mut scripts = vec![Script::run(Step::Err(ErrorKind::Unavailable)); RESTARTS];
    scripts.push(Script::run(Step::Ok));
    let log = TransitionLog::default();
    let (spec, calls) = scripted("a", scripts);
    let runtime = builder(&log).agent(spec.restart(immediate_restart())).build().unwrap();
    let handle = runtime.handle();
    let mut watch = handle.subscribe("a").unwrap();
    let slow_watcher = tokio::spawn(async move {
        let mut seen = vec![watch.current().seq];
        while let Some(snapshot) = watch.changed().await {
            seen.push(snapshot.seq);
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
        }
        (seen, watch.current())
    });
    let report = runtime.run().await;
    report.result().unwrap();
    let history = log.of("a");
    check_transitions(&history).unwrap();
    assert_eq!(history.len(), RESTARTS * 4 + 4);
    assert_eq!(calls.count("Cleanup#"), RESTARTS + 1);
    assert_eq!(log.errors("a").len(), RESTARTS);

    let (seen, last) = slow_watcher.await.unwrap();
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "rising");
    assert!(seen.len() < history.len(), "a slow watcher skips");
    assert!(seen.windows(2).any(|pair| pair[1] > pair[0] + 1), "the dropped history is detectable");
    assert_eq!((last.status, last.seq), (Stopped, history.len() as u64));

    let kept = handle.history("a").unwrap();
    assert_eq!((kept.len(), kept.last().unwrap().seq), (64, history.len() as u64));
    assert_eq!(handle.errors("a").unwrap().len(), 16);
}

struct PanicsAlways;

impl Observer for PanicsAlways {
    fn on_transition(&self, _: &Transition) {
        panic!("observer of transitions");
    }

    fn on_error(&self, _: &ErrorRecord) {
        panic!("observer of errors");
    }
}

#[tokio::test(start_paused = true)]
async fn panicking_observer_affects_neither_agents_nor_other_observers() {
    let log = TransitionLog::default();
    let (spec, calls) = scripted("a", [Script::run(Step::Err(ErrorKind::Timeout)), Script::default()]);
    let runtime = AgentRuntime::builder()
        .observer(PanicsAlways)
        .observer(log.clone())
        .clock(ManualClock::default())
        .agent(spec)
        .build()
        .unwrap();
    runtime.run_until(sleep(ms(1_000))).await.result().unwrap();
    check_transitions(&log.of("a")).unwrap();
    assert_eq!((log.of("a").len(), log.errors("a").len()), (8, 1));
    assert!(calls.is_clean());
}

#[tokio::test(start_paused = true)]
async fn records_have_timestamps_of_the_runtime_clock() {
    let log = TransitionLog::default();
    let (spec, _) = scripted("a", [Script::run(Step::after(ms(1_500), Step::Err(ErrorKind::Conflict)))]);
    let runtime = builder(&log).agent(spec).build().unwrap();
    let handle = runtime.handle();
    let created = handle.snapshot("a").unwrap();
    assert_eq!((created.status, created.seq, created.incarnation), (Created, 0, 0));
    runtime
        .run_until(async {
            let running = handle.wait_for("a", |s| s.status == Running).await.unwrap();
            assert_eq!(running.since, created.since);
            let backoff = handle.wait_for("a", |s| s.status == Backoff).await.unwrap();
            assert_eq!(backoff.since.duration_since(running.since), ms(1_500));
            assert_eq!(log.errors("a")[0].at, backoff.since);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn durations_use_the_monotonic_clock() {
    let (log, clock) = (TransitionLog::default(), std::sync::Arc::new(ManualClock::default()));
    let (spec, _) = scripted("a", [Script::default().with_cleanup(Step::after(ms(700), Step::Ok))]);
    let runtime = builder(&log).clock(clock.clone()).agent(spec).build().unwrap();
    let report = runtime
        .run_until(async {
            sleep(ms(1_500)).await;
            clock.set_back(std::time::Duration::from_hours(1));
            tokio::spawn(async move {
                sleep(ms(100)).await;
                clock.set_back(std::time::Duration::from_hours(1));
            });
        })
        .await;
    assert_eq!(report.shutdown_took, ms(700));
    let lasted = |from| log.of("a").iter().find(|t| t.from == from).unwrap().lasted;
    assert_eq!((lasted(Running), lasted(qi_core::agent::AgentStatus::Stopping)), (ms(1_500), ms(700)));
}
