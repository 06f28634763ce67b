//! Agents that are added to and removed from a running runtime.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod agent_rig;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_rig::{builder, ms, scripted};
use qi_core::agent::AgentStatus::{Backoff, Created, Failed, Initializing, Running, Stopped, Stopping};
use qi_core::agent::{
    AgentContext, AgentRuntime, AgentSpec, ExitReason, RestartPolicy, RuntimeHandle, ShutdownCause,
    Termination, agent_fn,
};
use qi_core::{Error, ErrorKind};
use qi_testkit::agent::{Script, Step, TransitionLog, check_transitions};
use tokio::time::{sleep, timeout};

fn waiting(name: &str) -> AgentSpec {
    scripted(name, [Script::default()]).0
}

/// Returns the handle of a started runtime without agents.
fn empty(log: &TransitionLog) -> RuntimeHandle {
    builder(log).run_when_empty().build().unwrap().start()
}

fn names(handle: &RuntimeHandle) -> Vec<String> {
    handle.names().iter().map(ToString::to_string).collect()
}

async fn running(handle: &RuntimeHandle, name: &str) {
    handle.wait_for(name, |agent| agent.status == Running).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn agent_is_added_removed_and_added_again_under_the_same_name() {
    let log = TransitionLog::default();
    let handle = empty(&log);
    for round in 1..=3 {
        let (spec, calls) = scripted("a", [Script::default()]);
        handle.spawn(spec).unwrap();
        running(&handle, "a").await;
        let snapshot = handle.snapshot("a").unwrap();
        assert_eq!((snapshot.incarnation, snapshot.seq), (1, 2), "nothing is carried over");
        let report = handle.remove("a").await.unwrap();
        assert_eq!((report.status, report.termination), (Stopped, Termination::Orderly));
        assert!(matches!(report.last_exit.as_deref(), Some(ExitReason::Cancelled)));
        assert_eq!(calls.calls(), ["Init#1", "Run#1", "Cleanup#1(Cancelled)", "Drop#1"]);
        assert!(names(&handle).is_empty());
        assert_eq!(handle.snapshot("a").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(handle.remove("a").await.unwrap_err().kind(), ErrorKind::NotFound);
        let removed = handle.removed();
        assert_eq!(removed.len(), round);
        check_transitions(&removed[round - 1].history).unwrap();
        assert_eq!(removed[round - 1].history.len(), 4);
    }
    handle.shutdown();
    let report = handle.join().await;
    assert_eq!((report.cause, report.agents.len()), (ShutdownCause::Requested, 0));
}

#[tokio::test(start_paused = true)]
async fn agent_that_is_added_before_the_start_starts_with_the_runtime() {
    let log = TransitionLog::default();
    let runtime = builder(&log).agent(waiting("a")).build().unwrap();
    let handle = runtime.handle();
    handle.spawn(waiting("b").depends_on(["a"])).unwrap();
    let (unwanted, calls) = scripted("c", [Script::default()]);
    handle.spawn(unwanted.depends_on(["b"])).unwrap();
    assert_eq!(names(&handle), ["a", "b", "c"]);
    assert_eq!(handle.remove("b").await.unwrap_err().kind(), ErrorKind::Conflict);
    let report = handle.remove("c").await.unwrap();
    assert_eq!((report.status, report.termination), (Created, Termination::Orderly));
    let report = runtime.run_until(sleep(ms(100))).await;
    report.result().unwrap();
    assert_eq!(report.agents.iter().map(|agent| &*agent.name).collect::<Vec<_>>(), ["a", "b"]);
    assert!(calls.calls().is_empty());
    assert_eq!(log.statuses("b").last(), Some(&Stopped));
}

#[tokio::test(start_paused = true)]
async fn new_agent_depends_on_agents_that_run_and_on_agents_that_start() {
    let log = TransitionLog::default();
    let slow =
        scripted("slow", [Script::initialize(Step::after(ms(500), Step::Ok)).with_run(Step::WaitForStop)]).0;
    let handle = builder(&log).agent(waiting("base")).agent(slow).build().unwrap().start();
    running(&handle, "base").await;
    handle.spawn(waiting("top").depends_on(["base", "slow", "base"])).unwrap();
    sleep(ms(400)).await;
    assert_eq!(handle.snapshot("top").unwrap().status, Created);
    running(&handle, "top").await;
    handle.shutdown();
    handle.join().await.result().unwrap();
    let stopped: Vec<_> = log.all().iter().filter(|t| t.to == Stopped).map(|t| t.agent.to_string()).collect();
    assert_eq!(stopped[0], "top", "the order of the shutdown includes added agents");
}

#[tokio::test(start_paused = true)]
async fn invalid_agent_is_rejected_by_name() {
    let log = TransitionLog::default();
    let handle = empty(&log);
    handle.spawn(waiting("weak").best_effort()).unwrap();
    handle.spawn(scripted("done", [Script::run(Step::Ok)]).0.run_to_completion()).unwrap();
    handle.spawn(scripted("over", [Script::run(Step::Ok)]).0).unwrap();
    handle.spawn(scripted("deaf", [Script::run(Step::HangIgnoringStop)]).0).unwrap();
    running(&handle, "weak").await;
    sleep(ms(10)).await;
    handle.stop("deaf").unwrap();
    let never = AgentSpec::once("once", agent_fn(|_cx| async { Ok(()) })).restart(RestartPolicy::default());
    for (spec, kind, words) in [
        (waiting("weak"), ErrorKind::Config, ["weak", "two agents"]),
        (waiting(""), ErrorKind::Config, ["number 5", "no name"]),
        (waiting("x").depends_on(["ghost"]), ErrorKind::Config, ["agent=x", "ghost"]),
        (waiting("x").depends_on(["x"]), ErrorKind::Config, ["agent=x", "which does not exist"]),
        (waiting("x").depends_on(["weak"]), ErrorKind::Config, ["weak", "best effort"]),
        (waiting("x").depends_on(["over"]), ErrorKind::Conflict, ["over", "has ended or is stopping"]),
        (waiting("x").depends_on(["deaf"]), ErrorKind::Conflict, ["deaf", "has ended or is stopping"]),
        (never, ErrorKind::InvalidInput, ["agent=once", "must be never"]),
    ] {
        let error = handle.spawn(spec).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error} lacks {words:?}");
        assert!(!error.retry().is_retryable());
    }
    assert_eq!(names(&handle), ["weak", "done", "over", "deaf"], "a rejected agent is not listed");
    handle.spawn(waiting("next").depends_on(["done"])).unwrap();
    running(&handle, "next").await;
    handle.shutdown();
    handle.join().await.result().unwrap();
}

#[tokio::test(start_paused = true)]
async fn agent_with_dependents_is_removed_after_them_only() {
    let log = TransitionLog::default();
    let handle = empty(&log);
    handle.spawn(waiting("base")).unwrap();
    handle.spawn(waiting("one").depends_on(["base"])).unwrap();
    handle.spawn(waiting("two").depends_on(["base"])).unwrap();
    running(&handle, "two").await;
    let error = handle.remove("base").await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Conflict, "agent.dependents"));
    assert!(error.to_string().contains("one, two"), "{error}");
    assert_eq!(handle.snapshot("base").unwrap().status, Running, "a rejection changes nothing");
    handle.remove("one").await.unwrap();
    // A dependent that has ended does not prevent the removal.
    handle.stop("two").unwrap();
    handle.wait_for("two", |agent| agent.status == Stopped).await.unwrap();
    sleep(ms(1)).await;
    handle.remove("base").await.unwrap();
    assert_eq!(names(&handle), ["two"]);
    handle.spawn(waiting("base")).unwrap();
    running(&handle, "base").await;
    handle.shutdown();
    handle.join().await.result().unwrap();
}

#[tokio::test(start_paused = true)]
async fn agents_are_not_added_or_removed_during_or_after_a_shutdown() {
    let log = TransitionLog::default();
    let slow = scripted("slow", [Script::default().with_cleanup(Step::after(ms(500), Step::Ok))]).0;
    let handle = builder(&log).agent(slow).build().unwrap().start();
    running(&handle, "slow").await;
    handle.shutdown();
    let rejected = |words: &str| {
        let error = handle.spawn(waiting("late")).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Closed, "agent.runtime.closed"));
        assert!(error.to_string().contains(words) && error.to_string().contains("agent=late"), "{error}");
    };
    rejected("is shutting down");
    assert_eq!(handle.remove("slow").await.unwrap_err().kind(), ErrorKind::Closed);
    let report = handle.join().await;
    rejected("has ended");
    assert_eq!(handle.remove("slow").await.unwrap_err().kind(), ErrorKind::Closed);
    report.result().unwrap();
    assert_eq!(names(&handle), ["slow"], "the report and the handle still know the agent");
    assert!(log.of("late").is_empty());
}

#[tokio::test(start_paused = true)]
async fn agents_in_every_state_are_removed() {
    let log = TransitionLog::default();
    let handle = empty(&log);
    let unavailable = || Step::Err(ErrorKind::Unavailable);
    let cases = [
        ("initializing", Script::initialize(Step::WaitForStop), Stopped, Termination::Orderly),
        ("deaf initialize", Script::initialize(Step::HangIgnoringStop), Stopped, Termination::Forced),
        ("deaf run", Script::run(Step::HangIgnoringStop), Stopped, Termination::Forced),
        ("backoff", Script::run(unavailable()), Stopped, Termination::Orderly),
        ("completed", Script::run(Step::Ok), Stopped, Termination::Orderly),
        ("failed", Script::run(Step::Err(ErrorKind::Config)), Failed, Termination::Orderly),
        ("panics", Script::run(Step::Panic), Stopped, Termination::Orderly),
        ("panics in the stop", Script::run(Step::PanicOnDrop), Failed, Termination::Forced),
        ("deaf cleanup", Script::default().with_cleanup(Step::HangIgnoringStop), Failed, Termination::Forced),
        ("panic in cleanup", Script::default().with_cleanup(Step::Panic), Failed, Termination::Orderly),
        ("panic in drop", Script::default().with_value_drop_panic(), Failed, Termination::Orderly),
        ("deaf child", Script::run(Step::child(Step::HangIgnoringStop)), Stopped, Termination::Orderly),
    ];
    for (name, script, status, termination) in cases {
        let (spec, calls) = scripted(name, [script]);
        handle.spawn(spec.best_effort()).unwrap();
        sleep(ms(50)).await;
        let report = handle.remove(name).await.unwrap();
        assert_eq!((report.status, report.termination), (status, termination), "{name}");
        assert!(calls.is_clean(), "{name}: {calls:?}");
        assert_eq!(calls.count("Init#"), calls.count("Drop#"), "{name}");
        check_transitions(&log.of(name)).unwrap();
        let removed = handle.removed();
        let last = removed.last().unwrap();
        assert_eq!((last.report.name.as_ref(), last.history.len()), (name, log.of(name).len()));
        assert_eq!(last.errors.len(), log.errors(name).len());
    }
    assert!(names(&handle).is_empty() && !handle.health().shutting_down);
    assert!(log.statuses("backoff").contains(&Backoff));
    handle.shutdown();
    handle.join().await.result().unwrap();
}

#[tokio::test(start_paused = true)]
async fn agent_waiting_for_a_dependency_is_removed_without_a_start() {
    let log = TransitionLog::default();
    let handle = empty(&log);
    handle.spawn(scripted("slow", [Script::initialize(Step::WaitForStop)]).0).unwrap();
    let (waits, calls) = scripted("waits", [Script::default()]);
    handle.spawn(waits.depends_on(["slow"])).unwrap();
    sleep(ms(10)).await;
    handle.remove("waits").await.unwrap();
    assert_eq!(log.statuses("waits"), [Created, Stopped]);
    assert!(calls.calls().is_empty());
    handle.remove("slow").await.unwrap();
    handle.shutdown();
    handle.join().await.result().unwrap();
}

#[tokio::test(start_paused = true)]
async fn dropped_removal_completes() {
    let log = TransitionLog::default();
    let handle = empty(&log);
    let (spec, calls) = scripted("a", [Script::default().with_cleanup(Step::after(ms(700), Step::Ok))]);
    handle.spawn(spec).unwrap();
    running(&handle, "a").await;
    drop(handle.remove("a"));
    sleep(ms(10)).await;
    assert_eq!(handle.snapshot("a").unwrap().status, Running, "a future that was never polled does nothing");
    assert!(timeout(ms(100), handle.remove("a")).await.is_err());
    let rejected = handle.spawn(waiting("a")).unwrap_err();
    assert!(
        rejected.to_string().contains("two agents"),
        "the name is in use until the agent has ended: {rejected}"
    );
    let dependent = handle.spawn(waiting("b").depends_on(["a"])).unwrap_err();
    assert_eq!(dependent.code(), "agent.dependency.ended");
    sleep(ms(1_000)).await;
    assert!(names(&handle).is_empty() && calls.is_clean());
    handle.spawn(waiting("a")).unwrap();
    running(&handle, "a").await;
    handle.shutdown();
    handle.join().await.result().unwrap();
}

#[tokio::test(start_paused = true)]
async fn concurrent_removals_of_one_agent_both_return_its_report() {
    let log = TransitionLog::default();
    let handle = empty(&log);
    handle.spawn(scripted("a", [Script::default().with_cleanup(Step::after(ms(700), Step::Ok))]).0).unwrap();
    running(&handle, "a").await;
    let (first, second) = tokio::join!(handle.remove("a"), handle.remove("a"));
    assert_eq!((first.unwrap().status, second.unwrap().status), (Stopped, Stopped));
    assert_eq!(handle.removed().len(), 1);
    handle.shutdown();
    handle.join().await.result().unwrap();
}

#[tokio::test(start_paused = true)]
async fn runtime_ends_with_its_last_agent_unless_it_runs_when_empty() {
    let log = TransitionLog::default();
    let handle = builder(&log).agent(waiting("a")).build().unwrap().start();
    running(&handle, "a").await;
    handle.remove("a").await.unwrap();
    assert_eq!(handle.join().await.cause, ShutdownCause::AllEnded);
    assert_eq!(handle.spawn(waiting("a")).unwrap_err().kind(), ErrorKind::Closed);

    let handle = builder(&log).agent(waiting("a")).build().unwrap().start();
    handle.spawn(waiting("b")).unwrap();
    running(&handle, "a").await;
    handle.remove("a").await.unwrap();
    assert!(timeout(ms(1_000), handle.join()).await.is_err(), "another agent is left");
    handle.stop("b").unwrap();
    assert_eq!(handle.join().await.cause, ShutdownCause::AllEnded);

    let runtime = builder(&log).run_when_empty().build().unwrap();
    let handle = runtime.handle();
    let report = runtime.run_until(async {
        sleep(ms(1_000)).await;
        handle.spawn(scripted("a", [Script::run(Step::Ok)]).0.run_to_completion()).unwrap();
        handle.wait_for("a", |agent| agent.status == Stopped).await.unwrap();
        sleep(ms(1_000)).await;
        assert!(handle.health().ready, "completed agents do not end it");
    });
    let report = report.await;
    assert_eq!((report.cause, report.agents.len()), (ShutdownCause::Requested, 1));
}

#[tokio::test(start_paused = true)]
async fn shutdown_during_a_removal_keeps_the_agent_in_the_report() {
    let log = TransitionLog::default();
    let handle = empty(&log);
    handle.spawn(scripted("a", [Script::default().with_cleanup(Step::after(ms(700), Step::Ok))]).0).unwrap();
    running(&handle, "a").await;
    let removal = tokio::spawn({
        let handle = handle.clone();
        async move { handle.remove("a").await }
    });
    sleep(ms(100)).await;
    handle.shutdown();
    let report = handle.join().await;
    assert_eq!(removal.await.unwrap().unwrap().status, Stopped);
    assert_eq!(report.agent("a").unwrap().status, Stopped);
    assert!(handle.removed().is_empty());
}

#[tokio::test(start_paused = true)]
async fn critical_agent_that_fails_during_its_removal_stops_the_runtime() {
    let log = TransitionLog::default();
    let handle = empty(&log);
    handle.spawn(scripted("a", [Script::default().with_cleanup(Step::Panic)]).0).unwrap();
    handle.spawn(waiting("b")).unwrap();
    running(&handle, "b").await;
    assert_eq!(handle.remove("a").await.unwrap().status, Failed);
    let report = handle.join().await;
    assert_eq!(report.cause, ShutdownCause::AgentFailed("a".into()));
    assert_eq!(report.result().unwrap_err().context_value("agent"), Some("a"));
    assert_eq!(report.agent("b").unwrap().status, Stopped);
}

#[tokio::test(start_paused = true)]
async fn permanent_failure_of_an_added_agent_stops_the_runtime_unless_best_effort() {
    let log = TransitionLog::default();
    let handle = empty(&log);
    let failing = |name: &str| scripted(name, [Script::run(Step::Err(ErrorKind::Config))]).0;
    handle.spawn(failing("weak").best_effort()).unwrap();
    sleep(ms(10)).await;
    assert!(!handle.health().shutting_down);
    handle.spawn(failing("strong")).unwrap();
    assert_eq!(handle.join().await.cause, ShutdownCause::AgentFailed("strong".into()));
}

#[tokio::test(start_paused = true)]
async fn history_of_the_last_64_removed_agents_is_kept() {
    let log = TransitionLog::default();
    let handle = empty(&log);
    for n in 0..100 {
        let name = format!("reader-{n}");
        handle.spawn(waiting(&name)).unwrap();
        running(&handle, &name).await;
        handle.remove(&name).await.unwrap();
    }
    let removed: Vec<_> = handle.removed().iter().map(|agent| agent.report.name.to_string()).collect();
    assert_eq!(removed, (36..100).map(|n| format!("reader-{n}")).collect::<Vec<_>>());
    handle.shutdown();
    handle.join().await.result().unwrap();
}

#[tokio::test(start_paused = true)]
async fn agent_adds_and_removes_other_agents() {
    let log = TransitionLog::default();
    let runtime = builder(&log).build().unwrap();
    let handle = runtime.handle();
    let lister = {
        let handle = handle.clone();
        AgentSpec::new("lister", move || {
            let handle = handle.clone();
            agent_fn(move |cx: AgentContext| {
                let handle = handle.clone();
                async move {
                    for day in 0..10 {
                        handle.spawn(waiting(&format!("reader-{day}")).best_effort())?;
                        if day > 0 {
                            handle.remove(&format!("reader-{}", day - 1)).await?;
                        }
                        if cx.sleep(Duration::from_hours(24)).await.is_none() {
                            break;
                        }
                    }
                    Ok(())
                }
            })
        })
    };
    handle.spawn(lister).unwrap();
    let report = runtime.run_until(sleep(Duration::from_hours(24 * 5 + 1))).await;
    report.result().unwrap();
    let left: Vec<_> = report.agents.iter().map(|agent| agent.name.to_string()).collect();
    assert_eq!(left, ["lister", "reader-5"]);
}

#[tokio::test(start_paused = true)]
async fn added_agent_changes_readiness_and_not_the_startup_probe() {
    let log = TransitionLog::default();
    let handle = builder(&log).agent(waiting("a")).build().unwrap().start();
    running(&handle, "a").await;
    assert!(handle.health().ready && handle.health().started);
    handle.spawn(scripted("b", [Script::initialize(Step::WaitForStop)]).0).unwrap();
    sleep(ms(10)).await;
    let health = handle.health();
    assert!(!health.ready && health.started, "{health:?}");
    assert_eq!(health.agents[1].snapshot.status, Initializing);
    handle.remove("b").await.unwrap();
    assert!(handle.health().ready);
    handle.shutdown();
    handle.join().await.result().unwrap();
}

#[tokio::test(start_paused = true)]
async fn watchers_of_a_removed_agent_receive_its_final_state() {
    let log = TransitionLog::default();
    let handle = empty(&log);
    handle.spawn(waiting("a")).unwrap();
    running(&handle, "a").await;
    let mut watch = handle.subscribe("a").unwrap();
    let waiter = tokio::spawn({
        let handle = handle.clone();
        async move { handle.wait_for("a", |agent| agent.incarnation == 7).await }
    });
    tokio::task::yield_now().await;
    handle.remove("a").await.unwrap();
    assert_eq!(waiter.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    while let Some(snapshot) = watch.changed().await {
        assert!(matches!(snapshot.status, Stopping | Stopped));
    }
    assert_eq!(watch.current().status, Stopped);
    handle.shutdown();
    handle.join().await.result().unwrap();
}

#[test]
fn agent_is_added_from_a_thread_without_tokio_and_ends_as_aborted_after_tokio() {
    let log = TransitionLog::default();
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let handle = tokio.block_on(async { empty(&log) });
    handle.spawn(waiting("a").best_effort()).unwrap();
    tokio.block_on(running(&handle, "a"));
    drop(tokio);
    assert!(matches!(handle.snapshot("a").unwrap().last_exit.as_deref(), Some(ExitReason::DriverAborted)));
    handle.spawn(waiting("b").best_effort()).unwrap();
    assert_eq!(handle.snapshot("b").unwrap().status, Failed, "it is never started and leaves nothing open");
    handle.shutdown();
    assert_eq!(log.report().unwrap().leaked().count(), 0);
}

#[test]
fn removal_of_an_agent_that_blocks_its_thread_ends_with_the_deadline() {
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let deadline = ms(300);
    let handle = tokio.block_on(async {
        let runtime = AgentRuntime::builder().run_when_empty().shutdown_deadline(deadline);
        runtime.build().unwrap().start()
    });
    handle.spawn(scripted("a", [Script::run(Step::Block(Duration::from_secs(3)))]).0).unwrap();
    std::thread::sleep(ms(100));
    let stop = std::thread::spawn({
        let handle = handle.clone();
        move || {
            std::thread::sleep(ms(100));
            handle.shutdown();
        }
    });
    let error = tokio.block_on(handle.remove("a")).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Timeout, "agent.leaked"));
    let report = tokio.block_on(handle.join());
    assert_eq!(report.agent("a").unwrap().termination, Termination::Leaked { blocking: true });
    stop.join().unwrap();
    tokio.shutdown_background();
}

#[tokio::test(start_paused = true)]
async fn asynchronous_factory_creates_an_agent_or_skips_cleanup() {
    let steps = [
        ("retryable error", Step::Err(ErrorKind::Unavailable), "error"),
        ("panic", Step::Panic, "panicked"),
        ("hang", Step::HangIgnoringStop, "initialize timed out"),
        ("panic on drop", Step::PanicOnDrop, "initialize timed out"),
        ("child error", Step::child(Step::Err(ErrorKind::Timeout)), "error"),
    ];
    for (name, step, exit) in steps {
        let log = TransitionLog::default();
        let scripts = qi_testkit::agent::ScriptedAgent::script([Script::default()]);
        let (calls, attempts) = (scripts.log(), AtomicUsize::new(0));
        let spec = AgentSpec::new_async("a", move |cx| {
            let (scripts, first) = (scripts.clone(), attempts.fetch_add(1, Ordering::SeqCst) == 0);
            let (step, cx) = (step.clone(), cx.clone());
            async move {
                if first {
                    step.perform(&cx).await?;
                }
                Ok(scripts.make())
            }
        });
        let runtime = builder(&log).agent(spec.init_timeout(ms(300))).build().unwrap();
        let report = runtime.run_until(sleep(ms(5_000))).await;
        report.result().unwrap();
        check_transitions(&log.of("a")).unwrap();
        assert_eq!(
            log.statuses("a")[..5],
            [Created, Initializing, Stopping, Backoff, Initializing],
            "{name}"
        );
        let first = log.of("a")[1].exit.as_ref().unwrap().to_string();
        assert!(first.starts_with(exit), "{name}: {first}");
        assert_eq!(calls.calls(), ["Init#1", "Run#1", "Cleanup#1(Cancelled)", "Drop#1"], "{name}");
    }
}

/// A resource that records its drop.
struct DropRecorder(Arc<Mutex<bool>>);

impl Drop for DropRecorder {
    fn drop(&mut self) {
        *self.0.lock().unwrap() = true;
    }
}

#[tokio::test(start_paused = true)]
async fn stop_during_an_asynchronous_factory_ends_it() {
    let dropped = Arc::new(Mutex::new(false));
    for polite in [true, false] {
        let (log, slot) = (TransitionLog::default(), dropped.clone());
        *slot.lock().unwrap() = false;
        let spec = AgentSpec::new_async("a", move |cx: AgentContext| {
            let open = DropRecorder(slot.clone());
            async move {
                if polite {
                    cx.cancelled().await;
                    return Err(Error::new(ErrorKind::Closed, "test", "open"));
                }
                let _open = open;
                std::future::pending::<()>().await;
                Ok(agent_fn(|_cx| async { Ok(()) }))
            }
        });
        let runtime = builder(&log).agent(spec.stop_timeout(ms(200))).build().unwrap();
        let report = runtime.run_until(sleep(ms(100))).await;
        report.result().unwrap();
        assert_eq!(log.statuses("a"), [Created, Initializing, Stopping, Stopped]);
        assert!(matches!(log.of("a")[1].exit.as_deref(), Some(ExitReason::Cancelled)));
        let forced = report.agent("a").unwrap().termination == Termination::Forced;
        assert_eq!((forced, report.shutdown_took), (!polite, if polite { ms(0) } else { ms(200) }));
        assert!(*dropped.lock().unwrap(), "the resources of the factory are dropped");
    }
}

#[tokio::test(start_paused = true)]
async fn specs_of_all_kinds_have_one_type() {
    let log = TransitionLog::default();
    let specs: Vec<AgentSpec> = vec![
        AgentSpec::once("once", agent_fn(|_cx| async { Ok(()) })),
        AgentSpec::new("new", || agent_fn(|_cx| async { Ok(()) })),
        AgentSpec::new_async("async", |_cx| async { Ok(agent_fn(|_cx| async { Ok(()) })) }),
    ];
    let report = builder(&log).agents(specs).build().unwrap().run().await;
    assert_eq!((report.cause.clone(), report.agents.len()), (ShutdownCause::AllEnded, 3));
    report.result().unwrap();
}

fn random_script(rng: &mut fastrand::Rng) -> Script {
    let step = |rng: &mut fastrand::Rng| {
        let step = match rng.u8(..9) {
            0 => Step::Ok,
            1 => Step::Err(ErrorKind::Unavailable),
            2 => Step::Err(ErrorKind::Config),
            3 => Step::Panic,
            4 => Step::PanicOnDrop,
            5 => Step::HangIgnoringStop,
            6 => Step::child(Step::after(ms(rng.u64(1..500)), Step::Panic)),
            _ => Step::WaitForStop,
        };
        if rng.bool() { Step::after(ms(rng.u64(1..900)), step) } else { step }
    };
    let script = Script::run(step(rng));
    let script = if rng.u8(..4) == 0 { script.with_initialize(step(rng)) } else { script };
    let script = if rng.u8(..4) == 0 { script.with_cleanup(step(rng)) } else { script };
    let script = if rng.u8(..16) == 0 { script.with_value_drop_panic() } else { script };
    if rng.u8(..16) == 0 { script.with_factory_panic() } else { script }
}

/// Adds, removes and stops agents at random, and checks the runtime after each step.
async fn random_changes(seed: u64) -> Vec<String> {
    let (log, mut rng) = (TransitionLog::default(), fastrand::Rng::with_seed(seed));
    let handle = builder(&log).run_when_empty().build().unwrap().start();
    let (mut calls, mut removals) = (Vec::new(), Vec::new());
    for _ in 0..60 {
        let name = format!("agent-{}", rng.u8(..6));
        let present = names(&handle).contains(&name);
        match rng.u8(..10) {
            0..=3 => {
                let (spec, log) =
                    scripted(&name, (0..3).map(|_| random_script(&mut rng)).collect::<Vec<_>>());
                let spec =
                    spec.best_effort().stop_timeout(ms(400)).cleanup_timeout(ms(300)).watchdog(ms(2_000));
                let spec = spec.init_timeout(ms(700));
                let dependency = format!("agent-{}", rng.u8(..6));
                let spec = if rng.u8(..3) == 0 { spec.depends_on([dependency]) } else { spec };
                match handle.spawn(spec) {
                    Ok(()) => {
                        assert!(!present, "{name} was added twice");
                        calls.push(log);
                    }
                    Err(error) => {
                        assert!(matches!(error.kind(), ErrorKind::Config | ErrorKind::Conflict), "{error}");
                        assert!(log.calls().is_empty());
                    }
                }
            }
            4..=5 => match handle.remove(&name).await {
                Ok(report) => assert!(report.status.is_terminal() && !names(&handle).contains(&name)),
                Err(error) if present => assert_eq!(error.code(), "agent.dependents"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
            },
            // The future is dropped after 0 to 2 ms here, and runs in a task in the next case.
            6 => drop(timeout(ms(rng.u64(..3)), handle.remove(&name)).await),
            7 => {
                let handle = handle.clone();
                removals.push(tokio::spawn(async move { handle.remove(&name).await.map(drop) }));
            }
            8 => drop(handle.stop(&name)),
            _ => sleep(ms(rng.u64(1..1_500))).await,
        }
    }
    handle.shutdown();
    let present = names(&handle);
    let report = handle.join().await;
    assert_eq!(report.agents.iter().map(|agent| agent.name.to_string()).collect::<Vec<_>>(), present);
    assert_eq!(report.leaked().count(), 0);
    for removal in removals {
        let _refused_or_done = removal.await.unwrap();
    }
    for calls in calls {
        assert!(calls.is_clean(), "{calls:?}");
    }
    let all = log.all();
    for n in 0..6 {
        let mut lives: Vec<Vec<_>> = Vec::new();
        for transition in all.iter().filter(|t| *t.agent == *format!("agent-{n}")) {
            if transition.seq == 1 {
                lives.push(Vec::new());
            }
            lives.last_mut().unwrap().push(transition.clone());
        }
        for life in lives {
            check_transitions(&life).unwrap();
        }
    }
    log.lines()
}

#[test]
fn random_membership_changes_are_legal_and_deterministic() {
    std::panic::set_hook(Box::new(|info| {
        let scripted = info.location().is_some_and(|at| at.file().ends_with("scripted.rs"));
        if !scripted {
            eprintln!("{info}");
        }
    }));
    let run = |seed| {
        let tokio =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let lines = tokio.block_on(async {
            let lines = random_changes(seed).await;
            sleep(ms(1)).await;
            lines
        });
        assert_eq!(tokio.metrics().num_alive_tasks(), 0, "seed {seed}: tasks are left over");
        lines
    };
    for seed in 0..300 {
        let lines = run(seed);
        if seed % 10 == 0 {
            assert_eq!(lines, run(seed), "seed {seed}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn agents_are_added_and_removed_from_many_tasks_at_once() {
    let handle = AgentRuntime::builder().run_when_empty().build().unwrap().start();
    let alive = Arc::new(AtomicUsize::new(0));
    let work = (0..8).map(|task: u64| {
        let (handle, alive) = (handle.clone(), alive.clone());
        tokio::spawn(async move {
            let mut rng = fastrand::Rng::with_seed(task);
            for _ in 0..300 {
                let name = format!("agent-{}", rng.u8(..4));
                let alive = alive.clone();
                if rng.bool() {
                    let spec = AgentSpec::new(&*name, move || {
                        let alive = alive.clone();
                        agent_fn(move |cx: AgentContext| {
                            let alive = alive.clone();
                            async move {
                                alive.fetch_add(1, Ordering::SeqCst);
                                cx.cancelled().await;
                                alive.fetch_sub(1, Ordering::SeqCst);
                                Ok(())
                            }
                        })
                    });
                    let _taken = handle.spawn(spec);
                } else {
                    let _unknown = handle.remove(&name).await;
                }
            }
        })
    });
    for task in work.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    handle.shutdown();
    let report = handle.join().await;
    report.result().unwrap();
    assert!(report.agents.len() <= 4 && report.leaked().count() == 0);
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}
