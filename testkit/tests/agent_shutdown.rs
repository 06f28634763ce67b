//! The shutdown of a runtime: its order, its deadline, and the names of agents that were forced or leaked.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod agent_rig;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_rig::{builder, ms, run_agent, scripted};
use qi_core::ErrorKind;
use qi_core::agent::AgentStatus::{Backoff, Created, Failed, Initializing, Running, Stopped, Stopping};
use qi_core::agent::{
    AgentRuntime, AgentRuntimeBuilder, AgentSpec, AgentStatus, ExitReason, RestartPolicy, RuntimeHandle,
    ShutdownCause, Termination, Transition, agent_fn,
};
use qi_testkit::agent::{CallLog, Script, Step, TransitionLog, check_transitions};
use tokio::time::{Instant, sleep, timeout};

const LONG: Duration = Duration::from_hours(1);

fn waiting(name: &str) -> AgentSpec {
    scripted(name, [Script::default()]).0
}

fn order_of(log: &TransitionLog, to: AgentStatus) -> Vec<String> {
    log.all().iter().filter(|t| t.to == to).map(|t| t.agent.to_string()).collect()
}

fn at(history: &[Transition], to: AgentStatus) -> qi_core::Timestamp {
    history.iter().find(|t| t.to == to).unwrap().at
}

#[tokio::test(start_paused = true)]
async fn stop_during_initialize_is_applied_and_cleaned_up() {
    let life = run_agent([Script::initialize(Step::WaitForStop)], ms(500), |spec| spec).await;
    assert_eq!(life.statuses(), [Created, Initializing, Stopping, Stopped]);
    assert_eq!(life.exits(), ["cancelled"]);
    assert_eq!(life.report.shutdown_took, Duration::ZERO);
}

/// The stop comes while the hook is polled, and the hook ends in the same poll.
#[tokio::test(start_paused = true)]
async fn stop_during_the_last_poll_of_run_is_not_a_completion() {
    for fails in [false, true] {
        let (log, handle) = (TransitionLog::default(), Arc::<std::sync::OnceLock<RuntimeHandle>>::default());
        let own = handle.clone();
        let spec = AgentSpec::new("a", move || {
            let own = own.clone();
            agent_fn(move |_cx| {
                let own = own.clone();
                async move {
                    sleep(ms(10)).await;
                    own.get().unwrap().shutdown();
                    if fails { Err(qi_core::Error::new(ErrorKind::Config, "test", "run")) } else { Ok(()) }
                }
            })
        });
        let runtime = builder(&log).agent(spec).build().unwrap();
        handle.set(runtime.handle()).unwrap();
        let report = runtime.run().await;
        assert_eq!(log.of("a").last().unwrap().to, Stopped);
        assert!(matches!(report.agents[0].last_exit.as_deref(), Some(ExitReason::Cancelled)));
    }
}

#[tokio::test(start_paused = true)]
async fn stop_during_backoff_ends_the_agent_immediately() {
    let life = run_agent([Script::run(Step::Err(ErrorKind::Unavailable))], ms(100), |spec| spec).await;
    assert_eq!(life.statuses(), [Created, Initializing, Running, Stopping, Backoff, Stopped]);
    assert_eq!(life.report.shutdown_took, Duration::ZERO);
    assert!(matches!(life.report.agents[0].last_exit.as_deref(), Some(ExitReason::Error(_))));
}

#[tokio::test(start_paused = true)]
async fn stop_during_cleanup_lets_cleanup_finish() {
    let script = Script::run(Step::Err(ErrorKind::Unavailable)).with_cleanup(Step::after(ms(900), Step::Ok));
    let life = run_agent([script], ms(100), |spec| spec).await;
    assert_eq!(life.statuses(), [Created, Initializing, Running, Stopping, Stopped]);
    assert_eq!(life.report.shutdown_took, ms(800));
    assert_eq!(life.report.agents[0].termination, Termination::Orderly);
    assert_eq!(life.calls.count("Cleanup"), 1);
}

#[tokio::test(start_paused = true)]
async fn agent_that_ignores_the_stop_is_dropped_at_its_stop_timeout() {
    for script in [Script::run(Step::HangIgnoringStop), Script::initialize(Step::HangIgnoringStop)] {
        let life = run_agent([script], ms(500), |spec| spec.stop_timeout(ms(1_700))).await;
        assert_eq!(life.statuses().last(), Some(&Stopped));
        assert_eq!(life.report.shutdown_took, ms(1_700));
        assert_eq!(life.exits(), ["cancelled"]);
        assert_eq!(life.calls.count("Cleanup#1(Cancelled)"), 1);
        let forced: Vec<_> = life.report.forced().map(|a| a.name.to_string()).collect();
        assert_eq!(forced, ["a"]);
        life.report.result().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn soft_deadline_drops_hooks_and_reserves_time_for_cleanup() {
    // Both agents get a stop request with a stop timeout of 1 min. The shutdown with a deadline of 10 s
    // follows 1 ms later.
    let log = TransitionLog::default();
    let minute = Duration::from_mins(1);
    let deaf = |name: &str, cleanup| {
        let (spec, calls) = scripted(name, [Script::run(Step::HangIgnoringStop).with_cleanup(cleanup)]);
        (spec.stop_timeout(minute).cleanup_timeout(minute), calls)
    };
    let (quick, quick_calls) = deaf("quick", Step::after(ms(1_000), Step::Ok));
    let (never, never_calls) = deaf("never", Step::HangIgnoringStop);
    let runtime = builder(&log)
        .agent(quick)
        .agent(never)
        .shutdown_deadline(Duration::from_secs(10))
        .cleanup_reserve(Duration::from_secs(2))
        .build()
        .unwrap();
    let handle = runtime.handle();
    let report = runtime.run_until(async {
        sleep(ms(100)).await;
        handle.stop("quick").unwrap();
        handle.stop("never").unwrap();
        sleep(ms(1)).await;
    });
    let report = report.await;
    assert!(quick_calls.is_clean() && never_calls.is_clean());
    for name in ["quick", "never"] {
        let history = log.of(name);
        assert_eq!(at(&history, Stopping).duration_since(at(&history, Running)), ms(101 + 8_000), "{name}");
    }
    assert_eq!(log.statuses("quick").last(), Some(&Stopped), "its cleanup fits the reserve");
    assert_eq!(log.statuses("never").last(), Some(&Failed));
    assert_eq!(report.shutdown_took, ms(9_600), "one fifth of the reserve belongs to the runtime");
    assert_eq!((report.leaked().count(), report.forced().count()), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn remaining_hook_is_dropped_at_the_soft_deadline() {
    // Without `shutdown_now`, the dependency would stop only after its dependent.
    let log = TransitionLog::default();
    let (first, first_calls) = scripted("first", [Script::run(Step::HangIgnoringStop)]);
    let (second, second_calls) =
        scripted("second", [Script::run(Step::HangIgnoringStop).with_cleanup(Step::HangIgnoringStop)]);
    let runtime = builder(&log)
        .agent(first.stop_timeout(ms(300)).cleanup_timeout(ms(100)))
        .agent(second.depends_on(["first"]).stop_timeout(ms(300)).cleanup_timeout(ms(100)))
        .shutdown_deadline(ms(1_000))
        .build()
        .unwrap();
    let handle = runtime.handle();
    let report = runtime.run_until(async {
        sleep(ms(50)).await;
        handle.shutdown();
        sleep(ms(100)).await;
        handle.shutdown_now();
        std::future::pending::<()>().await;
    });
    let report = report.await;
    assert!(first_calls.is_clean() && second_calls.is_clean());
    assert_eq!(at(&log.of("first"), Stopping), at(&log.of("second"), Stopping), "order gives way to time");
    assert!(report.shutdown_took <= ms(200), "{report}");
    assert_eq!(report.forced().count(), 2);
}

#[tokio::test(start_paused = true)]
async fn timeouts_shrink_in_proportion_on_a_long_dependency_path() {
    // Three agents in a chain need 3 x (5 + 2) = 21 s. The deadline of 10.5 s minus the reserve of 0.5 s leaves 10 s.
    let log = TransitionLog::default();
    let deaf = || [Script::run(Step::HangIgnoringStop).with_cleanup(Step::HangIgnoringStop)];
    let runtime = builder(&log)
        .agent(scripted("one", deaf()).0)
        .agent(scripted("two", deaf()).0.depends_on(["one"]))
        .agent(scripted("three", deaf()).0.depends_on(["two"]))
        .shutdown_deadline(ms(10_500))
        .build()
        .unwrap();
    let report = runtime.run_until(sleep(ms(10))).await;
    assert_eq!(order_of(&log, Stopping), ["three", "two", "one"]);
    let took = |name: &str| {
        let history = log.of(name);
        at(&history, Failed).duration_since(at(&history, Stopping))
    };
    for name in ["one", "two", "three"] {
        let cleanup = took(name);
        assert!((ms(950)..=ms(955)).contains(&cleanup), "{name}: 2 s x 10/21 is 952 ms, not {cleanup:?}");
    }
    assert!((ms(9_995)..=ms(10_010)).contains(&report.shutdown_took), "{report}");
    assert_eq!(report.leaked().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn timeouts_within_the_deadline_do_not_shrink() {
    let log = TransitionLog::default();
    let runtime =
        builder(&log).agent(scripted("a", [Script::run(Step::HangIgnoringStop)]).0).build().unwrap();
    let report = runtime.run_until(sleep(ms(10))).await;
    assert_eq!(report.shutdown_took, Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn start_follows_dependencies_and_stop_reverses_them() {
    let log = TransitionLog::default();
    let slow = |name: &str, start: u64| {
        scripted(name, [Script::initialize(Step::after(ms(start), Step::Ok)).with_run(Step::WaitForStop)]).0
    };
    let runtime = builder(&log)
        .agent(slow("feed", 10).depends_on(["writer", "cache"]))
        .agent(slow("writer", 300).depends_on(["store"]))
        .agent(slow("cache", 100).depends_on(["store"]))
        .agent(slow("store", 200))
        .build()
        .unwrap();
    let report = runtime.run_until(sleep(ms(2_000))).await;
    report.result().unwrap();
    assert_eq!(order_of(&log, Running), ["store", "cache", "writer", "feed"]);
    let stopped = order_of(&log, Stopped);
    assert_eq!((stopped[0].as_str(), stopped[3].as_str()), ("feed", "store"));
    for (agent, dependency) in
        [("feed", "writer"), ("feed", "cache"), ("writer", "store"), ("cache", "store")]
    {
        assert!(at(&log.of(agent), Initializing) >= at(&log.of(dependency), Running), "{agent}");
    }
    let seq_of = |agent: &str, to| log.all().iter().position(|t| &*t.agent == agent && t.to == to).unwrap();
    for (agent, dependency) in
        [("feed", "writer"), ("feed", "cache"), ("writer", "store"), ("cache", "store")]
    {
        assert!(
            seq_of(agent, Stopped) < seq_of(dependency, Stopping),
            "{agent} ends before {dependency} stops"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn dependency_that_fails_before_it_is_ready_leaves_its_dependents_unstarted() {
    let log = TransitionLog::default();
    let broken = scripted("broken", [Script::initialize(Step::Err(ErrorKind::Config))]).0.best_effort();
    let (dependent, calls) = scripted("dependent", [Script::default()]);
    let (further, further_calls) = scripted("further", [Script::default()]);
    let runtime = builder(&log)
        .agent(broken)
        .agent(dependent.depends_on(["broken"]).best_effort())
        .agent(further.depends_on(["dependent"]).best_effort())
        .agent(waiting("other"))
        .build()
        .unwrap();
    let report = runtime.run_until(sleep(ms(1_000))).await;
    assert_eq!(log.statuses("dependent"), [Created, Stopped]);
    assert_eq!(log.statuses("further"), [Created, Stopped]);
    let exit = report.agent("dependent").unwrap().last_exit.clone().unwrap();
    assert!(matches!(&*exit, ExitReason::DependencyFailed(name) if &**name == "broken"));
    let exit = report.agent("further").unwrap().last_exit.clone().unwrap();
    assert!(matches!(&*exit, ExitReason::DependencyFailed(name) if &**name == "dependent"));
    assert!(calls.calls().is_empty() && further_calls.calls().is_empty());
    assert_eq!(log.statuses("other").last(), Some(&Stopped));
    assert_eq!(report.cause, ShutdownCause::Requested, "best effort leaves the others alone");
    report.result().unwrap();
}

#[tokio::test(start_paused = true)]
async fn run_to_completion_dependency_is_satisfied_by_completion() {
    let log = TransitionLog::default();
    let load = scripted("load", [Script::run(Step::after(ms(400), Step::Ok))]).0.run_to_completion();
    let runtime = builder(&log).agent(waiting("serve").depends_on(["load"])).agent(load).build().unwrap();
    let handle = runtime.handle();
    let report = runtime.run_until(async {
        sleep(ms(300)).await;
        assert_eq!(handle.snapshot("serve").unwrap().status, Created, "running is not enough");
        handle.wait_for("serve", |s| s.status == Running).await.unwrap();
        let health = handle.health();
        assert!(health.ready, "finite and completed is ready: {health:?}");
    });
    report.await.result().unwrap();
    assert!(at(&log.of("serve"), Initializing) >= at(&log.of("load"), Stopped));
}

#[tokio::test(start_paused = true)]
async fn run_to_completion_dependency_is_satisfied_after_a_restart() {
    let log = TransitionLog::default();
    let load = scripted("load", [Script::run(Step::Panic), Script::run(Step::Ok)]).0.run_to_completion();
    let runtime = builder(&log).agent(load).agent(waiting("serve").depends_on(["load"])).build().unwrap();
    runtime.run_until(sleep(ms(5_000))).await.result().unwrap();
    assert_eq!(log.statuses("serve"), [Created, Initializing, Running, Stopping, Stopped]);
}

#[tokio::test(start_paused = true)]
async fn restart_of_a_dependency_does_not_restart_its_dependents() {
    let log = TransitionLog::default();
    let flaky = scripted("flaky", [Script::run(Step::after(ms(300), Step::Panic)), Script::default()]).0;
    let runtime = builder(&log).agent(flaky).agent(waiting("steady").depends_on(["flaky"])).build().unwrap();
    let report = runtime.run_until(sleep(ms(5_000))).await;
    report.result().unwrap();
    assert_eq!(report.agent("flaky").unwrap().restarts, 1);
    assert_eq!(log.statuses("steady"), [Created, Initializing, Running, Stopping, Stopped]);
}

#[tokio::test(start_paused = true)]
async fn stop_takes_precedence_over_waiting_for_dependencies() {
    let log = TransitionLog::default();
    let slow = scripted("slow", [Script::initialize(Step::WaitForStop)]).0;
    let (dependent, calls) = scripted("dependent", [Script::default()]);
    let runtime = builder(&log).agent(slow).agent(dependent.depends_on(["slow"])).build().unwrap();
    runtime.run_until(sleep(ms(100))).await.result().unwrap();
    assert_eq!(log.statuses("dependent"), [Created, Stopped]);
    assert!(matches!(log.of("dependent")[0].exit.as_deref(), Some(ExitReason::Cancelled)));
    assert!(calls.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn stop_of_one_agent_keeps_running_dependents_and_fails_waiting_dependents() {
    let log = TransitionLog::default();
    let runtime = builder(&log)
        .agent(waiting("base"))
        .agent(waiting("top").depends_on(["base"]))
        .agent(scripted("slow", [Script::initialize(Step::WaitForStop)]).0)
        .agent(waiting("late").depends_on(["slow"]))
        .build()
        .unwrap();
    let handle = runtime.handle();
    let report = runtime.run_until(async {
        sleep(ms(100)).await;
        for _twice in 0..2 {
            handle.stop("base").unwrap();
            handle.stop("slow").unwrap();
        }
        handle.wait_for("base", |s| s.status == Stopped).await.unwrap();
        handle.stop("base").unwrap();
        assert_eq!(handle.stop("nobody").unwrap_err().kind(), ErrorKind::NotFound);
        sleep(ms(100)).await;
        assert_eq!(handle.snapshot("top").unwrap().status, Running);
        assert!(!handle.health().ready, "a critical agent that was stopped is not ready");
    });
    let report = report.await;
    assert_eq!(log.statuses("late"), [Created, Stopped]);
    let exit = report.agent("late").unwrap().last_exit.clone().unwrap();
    assert!(matches!(&*exit, ExitReason::DependencyFailed(_)));
}

#[tokio::test(start_paused = true)]
async fn stop_request_is_idempotent() {
    let log = TransitionLog::default();
    let runtime = builder(&log).agent(waiting("a")).build().unwrap();
    let handle = runtime.handle();
    let report = runtime.run_until(async {
        handle.shutdown();
        handle.shutdown();
        handle.stop("a").unwrap();
        std::future::pending::<()>().await;
    });
    let report = report.await;
    let seq = handle.snapshot("a").unwrap().seq;
    handle.shutdown();
    handle.shutdown_now();
    handle.stop("a").unwrap();
    sleep(ms(100)).await;
    assert_eq!(handle.snapshot("a").unwrap().seq, seq);
    assert_eq!(handle.join().await.cause, report.cause);
}

#[tokio::test(start_paused = true)]
async fn shutdown_before_the_start_starts_no_agent() {
    let log = TransitionLog::default();
    let (spec, calls) = scripted("a", [Script::default()]);
    let runtime = builder(&log).agent(spec).build().unwrap();
    runtime.handle().shutdown();
    let report = runtime.run().await;
    assert_eq!((report.cause, log.statuses("a")), (ShutdownCause::Requested, vec![Created, Stopped]));
    assert!(calls.calls().is_empty());
}

async fn expect_cleanup(calls: CallLog, log: TransitionLog, handle: qi_core::agent::RuntimeHandle) {
    let report = timeout(Duration::from_secs(25), handle.join()).await.unwrap();
    assert_eq!(report.cause, ShutdownCause::Dropped);
    assert_eq!(calls.calls(), ["Init#1", "Run#1", "Cleanup#1(Cancelled)", "Drop#1"]);
    check_transitions(&log.of("a")).unwrap();
}

#[tokio::test(start_paused = true)]
async fn dropped_run_until_runs_cleanup() {
    let log = TransitionLog::default();
    let (spec, calls) = scripted("a", [Script::default().with_cleanup(Step::after(ms(500), Step::Ok))]);
    let runtime = builder(&log).agent(spec).build().unwrap();
    let handle = runtime.handle();
    assert!(timeout(ms(100), runtime.run()).await.is_err());
    expect_cleanup(calls, log, handle).await;
}

#[tokio::test(start_paused = true)]
async fn drop_of_the_last_handle_runs_cleanup() {
    let log = TransitionLog::default();
    let (spec, calls) = scripted("a", [Script::default().with_cleanup(Step::after(ms(500), Step::Ok))]);
    let handle = builder(&log).agent(spec).build().unwrap().start();
    let second = handle.clone();
    drop(handle);
    sleep(ms(100)).await;
    assert_eq!(log.statuses("a").last(), Some(&Running), "one handle is left");
    drop(second);
    sleep(ms(1_000)).await;
    assert_eq!(calls.calls(), ["Init#1", "Run#1", "Cleanup#1(Cancelled)", "Drop#1"]);
    assert_eq!(log.statuses("a").last(), Some(&Stopped));
}

#[tokio::test(start_paused = true)]
async fn runtime_ends_when_all_agents_have_ended() {
    let log = TransitionLog::default();
    let work = |name: &str, millis| scripted(name, [Script::run(Step::after(ms(millis), Step::Ok))]).0;
    let runtime = builder(&log).agent(work("a", 100)).agent(work("b", 900)).build().unwrap();
    let begun = Instant::now();
    let report = runtime.run_until(sleep(LONG)).await;
    assert_eq!((report.cause, begun.elapsed()), (ShutdownCause::AllEnded, ms(900)));
    let empty = AgentRuntime::builder().build().unwrap().run().await;
    assert_eq!((empty.cause, empty.agents.len()), (ShutdownCause::AllEnded, 0));
}

#[tokio::test(start_paused = true)]
async fn failure_of_a_critical_agent_stops_all_agents_in_order() {
    let log = TransitionLog::default();
    let fails =
        scripted("fails", [Script::run(Step::after(ms(200), Step::Err(ErrorKind::SchemaMismatch)))]).0;
    let runtime = builder(&log)
        .agent(waiting("base"))
        .agent(waiting("top").depends_on(["base"]))
        .agent(fails)
        .build()
        .unwrap();
    let report = runtime.run_until(sleep(LONG)).await;
    assert_eq!(report.cause, ShutdownCause::AgentFailed("fails".into()));
    assert_eq!(order_of(&log, Stopped), ["top", "base"]);
    let error = report.result().unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::SchemaMismatch, "agent.failed"));
    assert_eq!(report.failed().count(), 1);
    assert!(report.to_string().contains("failed: fails"), "{report}");
}

#[tokio::test(start_paused = true)]
async fn failure_of_a_best_effort_agent_does_not_affect_other_agents() {
    let log = TransitionLog::default();
    let fails = scripted("fails", [Script::run(Step::Err(ErrorKind::Config))]).0.best_effort();
    let runtime = builder(&log).agent(fails).agent(waiting("a")).build().unwrap();
    let handle = runtime.handle();
    let report = runtime.run_until(async {
        sleep(ms(1_000)).await;
        assert!(handle.health().ready);
    });
    let report = report.await;
    assert_eq!(report.cause, ShutdownCause::Requested);
    report.result().unwrap();
    assert_eq!(log.statuses("fails").last(), Some(&Failed));
}

#[tokio::test(start_paused = true)]
async fn crash_loop_gives_up_and_stops_all_agents() {
    let log = TransitionLog::default();
    let crashes = scripted("crashes", [Script::run(Step::Panic)]).0;
    let runtime = builder(&log).agent(crashes).agent(waiting("a")).build().unwrap();
    let report = runtime.run_until(sleep(LONG)).await;
    assert_eq!(report.agent("crashes").unwrap().restarts, 4, "the fifth crash is the last");
    assert_eq!(report.cause, ShutdownCause::AgentFailed("crashes".into()));
}

#[tokio::test(start_paused = true)]
async fn server_outage_does_not_end_an_agent() {
    let log = TransitionLog::default();
    let away = scripted("a", [Script::run(Step::Err(ErrorKind::Unavailable))]).0;
    let runtime = builder(&log).agent(away).build().unwrap();
    let handle = runtime.handle();
    let report = runtime.run_until(async {
        sleep(LONG).await;
        assert!(!handle.health().ready && handle.health().started);
    });
    let report = report.await;
    report.result().unwrap();
    assert!(report.agent("a").unwrap().restarts > 700, "every 5 s at the latest");
}

#[test]
fn build_rejects_invalid_settings_by_name() {
    let spec = |name: &str| AgentSpec::new(name, || agent_fn(|_cx| async { Ok(()) }));
    let rejected = |specs: Vec<AgentSpec>, words: &[&str]| {
        let runtime = specs.into_iter().fold(AgentRuntime::builder(), AgentRuntimeBuilder::agent).build();
        let error = runtime.unwrap_err();
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text} lacks one of {words:?}");
    };
    rejected(vec![spec("a"), spec("")], &["number 2", "no name"]);
    rejected(vec![spec("twin"), spec("twin")], &["two agents", "twin"]);
    rejected(vec![spec("a").depends_on(["ghost"])], &["agent=a", "ghost"]);
    rejected(vec![spec("a").depends_on(["a"])], &["a depends on a"]);
    rejected(
        vec![
            spec("x"),
            spec("a").depends_on(["b", "x"]),
            spec("b").depends_on(["c"]),
            spec("c").depends_on(["a"]),
        ],
        &["circular", "a depends on b depends on c depends on a"],
    );
    rejected(
        vec![spec("weak").best_effort(), spec("strong").depends_on(["weak"])],
        &["strong", "weak", "best effort"],
    );
    let policy = RestartPolicy::default();
    rejected(vec![spec("a").restart(policy.with_stable_after(Duration::ZERO))], &["stable_after", "agent=a"]);
    let mut jumpy = policy;
    jumpy.backoff.jitter = 1.5;
    rejected(vec![spec("a").restart(jumpy)], &["jitter", "1.5", "agent=a"]);
}

/// A value whose drop panics. Two such drops during one unwinding would abort the process.
struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("in drop");
    }
}

#[tokio::test]
async fn aborted_driver_shows_failed() {
    // The drivers run in another tokio runtime, which is dropped while they run.
    let log = TransitionLog::default();
    let seen: Arc<Mutex<Option<qi_core::agent::RuntimeHandle>>> = Arc::default();
    let (slot, inner_log) = (seen.clone(), log.clone());
    std::thread::spawn(move || {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(async {
            let spec = AgentSpec::new("a", || {
                let value = PanicsWhenDropped;
                agent_fn(move |_cx| {
                    let (_part_of_the_value, hook) = (&value, PanicsWhenDropped);
                    async move {
                        let _hook = hook;
                        std::future::pending().await
                    }
                })
            });
            let handle = builder(&inner_log)
                .agent(spec)
                .agent(waiting("b").depends_on(["a"]))
                .build()
                .unwrap()
                .start();
            handle.wait_for("b", |s| s.status == Running).await.unwrap();
            *slot.lock().unwrap() = Some(handle);
        });
    })
    .join()
    .unwrap();
    let handle = seen.lock().unwrap().take().unwrap();
    for agent in ["a", "b"] {
        let snapshot = handle.snapshot(agent).unwrap();
        assert_eq!(snapshot.status, Failed);
        assert!(matches!(snapshot.last_exit.as_deref(), Some(ExitReason::DriverAborted)));
        check_transitions(&log.of(agent)).unwrap();
    }
    assert!(handle.join().await.result().is_err());
}

#[tokio::test(start_paused = true)]
async fn timeout_beyond_the_deadline_equals_the_deadline() {
    let log = TransitionLog::default();
    let patient = scripted("patient", [Script::run(Step::HangIgnoringStop)]).0.stop_timeout(Duration::MAX);
    let (other, calls) =
        scripted("other", [Script::default().with_cleanup(Step::after(ms(1_500), Step::Ok))]);
    let runtime = builder(&log).agent(patient).agent(other).build().unwrap();
    let report = runtime.run_until(sleep(ms(10))).await;
    report.result().unwrap();
    assert!(calls.is_clean());
    assert_eq!(report.forced().count(), 1, "the other one's limits have not shrunk to nothing: {report}");
    assert!(report.shutdown_took < Duration::from_secs(25));
}
