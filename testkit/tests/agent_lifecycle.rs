//! The lifecycle of one agent: its calls, its statuses and its exits.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod agent_rig;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use agent_rig::{builder, immediate_restart, ms, run_agent, run_agent_as, scripted};
use async_trait::async_trait;
use futures::future::BoxFuture;
use qi_core::agent::AgentStatus::{Backoff, Created, Failed, Initializing, Running, Stopped, Stopping};
use qi_core::agent::{
    Agent, AgentContext, AgentHealth, AgentSpec, ExitReason, Phase, RestartPolicy, RuntimeHandle,
    ShutdownCause, Termination, agent_fn,
};
use qi_core::{Error, ErrorKind, Result, RetryAdvice};
use qi_testkit::agent::{Script, Step, TransitionLog};

const LONG: Duration = Duration::from_hours(1);
const RESTARTED: [qi_core::agent::AgentStatus; 5] = [Created, Initializing, Running, Stopping, Backoff];

#[tokio::test(start_paused = true)]
async fn successful_lifecycle_has_exactly_these_transitions() {
    let life = run_agent([Script::default()], ms(1_000), |spec| spec).await;
    assert_eq!(life.statuses(), [Created, Initializing, Running, Stopping, Stopped]);
    assert_eq!(life.calls.calls(), ["Init#1", "Run#1", "Cleanup#1(Cancelled)", "Drop#1"]);
    let history = life.log.of("a");
    assert!(history.iter().all(|t| t.incarnation == 1 && &*t.agent == "a"));
    assert_eq!(history[2].at.duration_since(history[1].at), ms(1_000), "the agent ran until the stop");
    assert_eq!(history[3].at, history[2].at, "the agent ended immediately after the stop");
    let agent = life.report.agent("a").unwrap();
    assert_eq!((agent.status, agent.termination, agent.restarts), (Stopped, Termination::Orderly, 0));
    assert_eq!(life.report.cause, ShutdownCause::Requested);
    life.report.result().unwrap();
    assert!(life.log.errors("a").is_empty());
}

#[tokio::test(start_paused = true)]
async fn panic_in_run_is_cleaned_up_before_the_next_value_is_made() {
    let life = run_agent([Script::run(Step::Panic), Script::default()], ms(1_000), |spec| spec).await;
    assert_eq!(life.statuses(), [&RESTARTED[..], &[Initializing, Running, Stopping, Stopped]].concat());
    assert_eq!(
        life.calls.calls()[..5],
        ["Init#1", "Run#1", "Cleanup#1(Panicked)", "Drop#1", "Init#2"].map(String::from)
    );
    let history = life.log.of("a");
    let backoff = history[3].backoff.unwrap();
    assert_eq!(backoff.attempt, 1);
    assert!((ms(160)..=ms(200)).contains(&backoff.delay), "{backoff:?}");
    let waited = history[4].at.duration_since(history[3].at);
    assert!((backoff.delay..=backoff.delay + ms(1)).contains(&waited), "{waited:?}");
    assert_eq!(life.report.agent("a").unwrap().restarts, 1);
}

#[tokio::test(start_paused = true)]
async fn error_in_initialize_is_cleaned_up() {
    let failing = Script::initialize(Step::Err(ErrorKind::Unavailable));
    let life = run_agent([failing, Script::default()], ms(1_000), |spec| spec).await;
    assert_eq!(life.statuses()[..5], [Created, Initializing, Stopping, Backoff, Initializing]);
    assert_eq!(life.calls.calls()[..2], ["Init#1".to_owned(), "Cleanup#1(Error)".to_owned()]);
}

#[tokio::test(start_paused = true)]
async fn panics_in_any_hook_are_caught_and_the_agent_restarts() {
    let cases = [
        ("initialize", Script::initialize(Step::Panic)),
        ("an odd payload in initialize", Script::initialize(Step::PanicWithOtherPayload)),
        ("an odd payload in run", Script::run(Step::PanicWithOtherPayload)),
        ("a child", Script::run(Step::child(Step::Panic))),
        ("the factory", Script::default().with_factory_panic()),
        ("run, then cleanup", Script::run(Step::Panic).with_cleanup(Step::Panic)),
        ("run, then the drop of the value", Script::run(Step::Panic).with_value_drop_panic()),
        ("run, then oddly in cleanup", Script::run(Step::Panic).with_cleanup(Step::PanicWithOtherPayload)),
    ];
    for (place, script) in cases {
        let life = run_agent([script, Script::default()], ms(1_000), |spec| spec).await;
        assert!(life.exits()[0].starts_with("panicked"), "{place}: {:?}", life.exits());
        assert_eq!(life.statuses().last(), Some(&Stopped), "{place}");
        assert_eq!(life.calls.count("Run#2"), 1, "{place}: the agent restarted");
        life.report.result().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn factory_panic_counts_as_initialize_and_skips_cleanup() {
    let life =
        run_agent([Script::default().with_factory_panic(), Script::default()], ms(1_000), |spec| spec).await;
    assert_eq!(life.statuses()[..4], [Created, Initializing, Stopping, Backoff]);
    assert_eq!(life.calls.calls()[0], "Init#2");
    assert_eq!(life.log.errors("a")[0].phase, Phase::Initialize);
}

#[tokio::test(start_paused = true)]
async fn failed_cleanup_after_completion_or_cancel_fails_the_agent() {
    let releases = [
        Script::default().with_cleanup(Step::Panic),
        Script::default().with_cleanup(Step::Err(ErrorKind::Unavailable)),
        Script::default().with_cleanup(Step::HangIgnoringStop),
        Script::default().with_value_drop_panic(),
    ];
    for script in releases {
        for run in [Step::Ok, Step::WaitForStop] {
            let script = script.clone().with_run(run);
            let life = run_agent([script.clone()], ms(1_000), |spec| spec).await;
            assert_eq!(life.statuses(), [Created, Initializing, Running, Stopping, Failed], "{script:?}");
            let exit = &life.exits()[0];
            assert!(exit == "completed" || exit == "cancelled", "the exit stays: {exit}");
            assert_eq!(life.log.errors("a").len(), 1, "and the failure is on record");
            life.report.result().unwrap_err();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn failed_cleanup_after_an_error_keeps_the_first_error() {
    let script = Script::run(Step::Err(ErrorKind::Timeout)).with_cleanup(Step::Err(ErrorKind::Config));
    let life = run_agent([script, Script::default()], ms(1_000), |spec| spec).await;
    assert!(life.exits()[0].contains("timeout"), "{:?}", life.exits());
    let kinds: Vec<_> = life.log.errors("a").iter().map(|e| (e.phase, e.error.kind())).collect();
    assert_eq!(kinds, [(Phase::Run, ErrorKind::Timeout), (Phase::Cleanup, ErrorKind::Config)]);
    assert_eq!(life.statuses().last(), Some(&Stopped));
}

#[tokio::test(start_paused = true)]
async fn panic_in_the_drop_of_a_hook_is_caught() {
    let life = run_agent([Script::run(Step::PanicOnDrop)], ms(1_000), |spec| spec).await;
    assert_eq!(life.statuses(), [Created, Initializing, Running, Stopping, Failed]);
    assert_eq!(life.calls.calls()[2], "Cleanup#1(Cancelled)");
    let late = run_agent([Script::initialize(Step::PanicOnDrop), Script::default()], LONG, |spec| spec).await;
    assert_eq!(late.exits()[0], "initialize timed out");
    assert_eq!(late.calls.count("Run#2"), 1);
}

#[tokio::test(start_paused = true)]
async fn permanent_error_fails_without_backoff() {
    let life = run_agent([Script::run(Step::Err(ErrorKind::Config))], LONG, |spec| spec).await;
    assert_eq!(life.statuses(), [Created, Initializing, Running, Stopping, Failed]);
    assert_eq!(life.report.cause, ShutdownCause::AgentFailed("a".into()));
    let error = life.report.result().unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Config, RetryAdvice::Never));
    assert_eq!(error.context_value("agent"), Some("a"));
}

#[tokio::test(start_paused = true)]
async fn initialize_timeouts_count_as_failures() {
    let life = run_agent([Script::initialize(Step::HangIgnoringStop)], LONG, |spec| {
        spec.init_timeout(ms(700)).restart(RestartPolicy::default().with_max_crashes(3))
    })
    .await;
    assert_eq!(life.exits(), ["initialize timed out"; 3]);
    assert_eq!(life.statuses().last(), Some(&Failed));
    let history = life.log.of("a");
    assert_eq!(history[1].at.duration_since(history[0].at), ms(700));
    assert_eq!(life.error_codes(), ["agent.timeout"; 3]);
}

#[tokio::test(start_paused = true)]
async fn only_a_stable_run_ends_a_failure_streak() {
    let slow = Script::initialize(Step::after(Duration::from_secs(25), Step::Panic));
    let life = run_agent([slow], LONG, |spec| {
        let policy = RestartPolicy::default().with_max_crashes(4).with_stable_after(Duration::from_secs(20));
        spec.restart(policy)
    })
    .await;
    assert_eq!(life.exits().len(), 4);
    let stable = Script::run(Step::after(Duration::from_secs(61), Step::Panic));
    let life =
        run_agent([stable], LONG, |spec| spec.restart(RestartPolicy::default().with_max_crashes(2))).await;
    assert!(life.exits().len() > 50, "{}", life.exits().len());
    assert!(life.log.of("a").iter().filter_map(|t| t.backoff).all(|step| step.attempt == 1));
    assert_eq!(life.statuses().last(), Some(&Stopped));
}

#[tokio::test(start_paused = true)]
async fn restart_after_completion_depends_on_the_mode() {
    for (policy, again) in
        [(RestartPolicy::never(), false), (RestartPolicy::default(), false), (RestartPolicy::always(), true)]
    {
        let life =
            run_agent([Script::run(Step::Ok), Script::default()], ms(1_000), |s| s.restart(policy)).await;
        assert_eq!(life.calls.count("Run#2"), usize::from(again), "{policy:?}");
        assert_eq!(life.statuses().last(), Some(&Stopped));
        let cause = if again { ShutdownCause::Requested } else { ShutdownCause::AllEnded };
        assert_eq!(life.report.cause, cause);
    }
}

#[tokio::test(start_paused = true)]
async fn agent_without_a_factory_never_restarts() {
    let log = TransitionLog::default();
    let agent = agent_fn(|_cx| async { Err(Error::new(ErrorKind::Unavailable, "t", "run")) });
    let runtime = builder(&log).agent(AgentSpec::once("a", agent)).build().unwrap();
    assert!(runtime.run().await.result().is_err());
    assert_eq!(log.statuses("a"), [Created, Initializing, Running, Stopping, Failed]);
}

/// An agent that requests its own stop at the end of `initialize`.
struct StopsItself(Arc<OnceLock<RuntimeHandle>>);

#[async_trait]
impl Agent for StopsItself {
    async fn initialize(&mut self, cx: &AgentContext) -> Result<()> {
        self.0.get().unwrap().stop(cx.name())
    }

    async fn run(&mut self, _cx: &AgentContext) -> Result<()> {
        panic!("the child was cancelled before the cleanup");
    }
}

#[tokio::test(start_paused = true)]
async fn cancel_between_initialize_and_running_never_shows_running() {
    let log = TransitionLog::default();
    let slot = Arc::new(OnceLock::new());
    let inner = slot.clone();
    let runtime =
        builder(&log).agent(AgentSpec::new("a", move || StopsItself(inner.clone()))).build().unwrap();
    slot.set(runtime.handle()).unwrap();
    runtime.run().await.result().unwrap();
    assert_eq!(log.statuses("a"), [Created, Initializing, Stopping, Stopped]);
    assert!(matches!(log.of("a")[2].exit.as_deref(), Some(ExitReason::Cancelled)));
}

#[tokio::test(start_paused = true)]
async fn error_after_the_cancel_is_recorded_and_the_exit_stays_cancelled() {
    let (log, report) = run_agent_as(ms(100), || {
        agent_fn(|cx| async move {
            cx.cancelled().await;
            Err(Error::new(ErrorKind::Config, "late", "run"))
        })
    })
    .await;
    assert_eq!(log.statuses("a").last(), Some(&Stopped));
    assert_eq!(log.errors("a")[0].error.code(), "late");
    report.result().unwrap();
}

#[tokio::test(start_paused = true)]
async fn panic_after_the_cancel_fails_the_agent() {
    let (log, report) = run_agent_as(ms(100), || {
        agent_fn(|cx| async move {
            cx.cancelled().await;
            panic!("while winding down")
        })
    })
    .await;
    assert_eq!(log.statuses("a"), [Created, Initializing, Running, Stopping, Failed]);
    report.result().unwrap_err();
}

/// A manual implementation that panics before it returns a future.
struct PanicsEarly(Arc<Mutex<Vec<String>>>);

impl Agent for PanicsEarly {
    fn run<'a, 'b, 'c>(&'a mut self, _cx: &'b AgentContext) -> BoxFuture<'c, Result<()>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        panic!("before the future")
    }

    fn cleanup<'a, 'b, 'd, 'c>(
        &'a mut self,
        _cx: &'b AgentContext,
        exit: &'d ExitReason,
    ) -> BoxFuture<'c, Result<()>>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
        Self: 'c,
    {
        self.0.lock().unwrap().push(exit.to_string());
        Box::pin(async { Ok(()) })
    }
}

#[tokio::test(start_paused = true)]
async fn panic_before_the_future_exists_is_caught() {
    let exits = Arc::new(Mutex::new(Vec::new()));
    let inner = exits.clone();
    let (log, _) = run_agent_as(LONG, move || PanicsEarly(inner.clone())).await;
    assert_eq!(*exits.lock().unwrap(), ["panicked: before the future"; 5], "five crashes are the default");
    assert_eq!(log.statuses("a").last(), Some(&Failed));
}

#[tokio::test(start_paused = true)]
async fn error_or_panic_of_a_child_ends_the_run() {
    let failing = Script::run(Step::child(Step::after(ms(50), Step::Err(ErrorKind::Unavailable))));
    let panicking = Script::run(Step::child(Step::after(ms(50), Step::Panic)));
    let life = run_agent([failing, panicking, Script::default()], ms(2_000), |spec| spec).await;
    let exits = life.exits();
    assert!(exits[0].contains("unavailable") && exits[0].contains("child=scripted"), "{exits:?}");
    assert_eq!(exits[1], "panicked: child scripted: scripted panic");
    assert_eq!(exits[2], "cancelled");
}

#[tokio::test(start_paused = true)]
async fn completed_child_does_not_end_the_run() {
    let life = run_agent([Script::run(Step::child(Step::Ok))], ms(1_000), |spec| spec).await;
    assert_eq!(life.statuses(), [Created, Initializing, Running, Stopping, Stopped]);
    assert_eq!(life.log.of("a")[2].at.duration_since(life.log.of("a")[1].at), ms(1_000));
}

struct WithChildren {
    alive: Arc<AtomicU32>,
    alive_at_cleanup: Arc<AtomicU32>,
    seen_cancel: Arc<AtomicBool>,
    context: Arc<Mutex<Option<AgentContext>>>,
}

struct Alive(Arc<AtomicU32>);

impl Alive {
    fn new(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Agent for WithChildren {
    async fn run(&mut self, cx: &AgentContext) -> Result<()> {
        let (deaf, polite, child) = (Alive::new(&self.alive), Alive::new(&self.alive), cx.clone());
        cx.spawn("deaf", async move {
            let _alive = deaf;
            std::future::pending().await
        })?;
        let seen = self.seen_cancel.clone();
        cx.spawn("polite", async move {
            let _alive = polite;
            child.cancelled().await;
            seen.store(true, Ordering::SeqCst);
            Ok(())
        })?;
        *self.context.lock().unwrap() = Some(cx.clone());
        // The hook ends without a stop request. Its children are cancelled anyway.
        tokio::time::sleep(ms(10)).await;
        Ok(())
    }

    async fn cleanup(&mut self, cx: &AgentContext, _exit: &ExitReason) -> Result<()> {
        self.alive_at_cleanup.store(self.alive.load(Ordering::SeqCst), Ordering::SeqCst);
        let rejected = cx.spawn("late", async { Ok(()) }).unwrap_err();
        assert_eq!(rejected.kind(), ErrorKind::Closed);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn children_are_cancelled_and_joined_before_cleanup() {
    let alive_at_cleanup = Arc::new(AtomicU32::new(99));
    let seen_cancel = Arc::new(AtomicBool::new(false));
    let context = Arc::new(Mutex::new(None));
    let (at_cleanup, seen, slot) = (alive_at_cleanup.clone(), seen_cancel.clone(), context.clone());
    let (log, report) = run_agent_as(LONG, move || WithChildren {
        alive: Arc::default(),
        alive_at_cleanup: at_cleanup.clone(),
        seen_cancel: seen.clone(),
        context: slot.clone(),
    })
    .await;
    report.result().unwrap();
    assert_eq!(alive_at_cleanup.load(Ordering::SeqCst), 0);
    assert!(seen_cancel.load(Ordering::SeqCst));
    let history = log.of("a");
    assert_eq!(
        history[3].at.duration_since(history[2].at),
        Duration::from_secs(5),
        "the deaf one had the stop timeout"
    );
    let stale = context.lock().unwrap().take().unwrap();
    assert!(stale.is_cancelled());
    assert_eq!(stale.spawn("late", async { Ok(()) }).unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn children_are_bounded() {
    let rejected = Arc::new(Mutex::new(None));
    let slot = rejected.clone();
    let log = TransitionLog::default();
    let spec = AgentSpec::new("a", move || {
        let slot = slot.clone();
        agent_fn(move |cx: AgentContext| {
            let slot = slot.clone();
            async move {
                for _ in 0..3 {
                    cx.spawn("c", std::future::pending())?;
                }
                *slot.lock().unwrap() = cx.spawn("c", std::future::pending()).err();
                Ok(())
            }
        })
    });
    let runtime = builder(&log).agent(spec.max_children(3)).build().unwrap();
    runtime.run().await.result().unwrap();
    assert_eq!(rejected.lock().unwrap().as_ref().unwrap().kind(), ErrorKind::Overloaded);
}

#[tokio::test(start_paused = true)]
async fn watchdog_drops_a_run_without_heartbeats() {
    let life = run_agent([Script::run(Step::HangIgnoringStop), Script::default()], ms(4_000), |spec| {
        spec.watchdog(ms(3_000))
    })
    .await;
    assert_eq!(life.exits(), ["no heartbeat", "cancelled"]);
    let history = life.log.of("a");
    assert_eq!(history[2].at.duration_since(history[1].at), ms(3_000), "counted from Running");
    assert_eq!(life.calls.calls()[2], "Cleanup#1(Stale)");

    let log = TransitionLog::default();
    let beating = AgentSpec::new("a", || {
        agent_fn(|cx| async move {
            for _ in 0..10 {
                cx.heartbeat();
                tokio::time::sleep(ms(900)).await;
            }
            std::future::pending().await
        })
    });
    let runtime = builder(&log).agent(beating.watchdog(ms(1_000))).build().unwrap();
    let handle = runtime.handle();
    runtime.run_until(tokio::time::sleep(ms(9_150))).await.result().unwrap();
    let history = log.of("a");
    assert_eq!(history[2].at.duration_since(history[1].at), ms(9_100), "nine beats later and the limit");
    assert!(handle.snapshot("a").unwrap().last_heartbeat.is_some());
}

#[tokio::test(start_paused = true)]
async fn run_that_is_always_ready_is_dropped_at_its_deadline() {
    for phase in [Phase::Initialize, Phase::Run] {
        let script = match phase {
            Phase::Initialize => Script::initialize(Step::Spin),
            _ => Script::run(Step::Spin),
        };
        // A paused clock does not advance while a task is always ready, so the deadlines here are zero.
        let log = TransitionLog::default();
        let (spec, calls) = scripted("a", [script]);
        let runtime = builder(&log).agent(spec.stop_timeout(Duration::ZERO)).build().unwrap();
        let others_run = async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        };
        let report = runtime.run_until(others_run).await;
        assert!(calls.is_clean() && calls.count("Init#1") == 1, "{calls:?}");
        assert_eq!(log.statuses("a").last(), Some(&Stopped));
        assert_eq!(report.agent("a").unwrap().termination, Termination::Forced);
    }
}

#[tokio::test]
async fn run_that_is_always_ready_cannot_delay_its_deadline_on_real_time() {
    let life = run_agent([Script::run(Step::Spin)], ms(20), |spec| spec.stop_timeout(ms(30))).await;
    assert_eq!(life.report.agent("a").unwrap().termination, Termination::Forced);
    let life = run_agent([Script::initialize(Step::Spin)], Duration::from_secs(5), |spec| {
        spec.init_timeout(ms(30)).restart(RestartPolicy::never())
    })
    .await;
    assert_eq!(life.exits(), ["initialize timed out"]);
}

#[tokio::test(start_paused = true)]
async fn reported_health_determines_readiness() {
    let log = TransitionLog::default();
    let spec = AgentSpec::new("a", || {
        agent_fn(|cx| async move {
            tokio::time::sleep(ms(10)).await;
            cx.degraded("x".repeat(1_000));
            tokio::time::sleep(ms(10)).await;
            cx.healthy();
            cx.cancelled().await;
            Ok(())
        })
    });
    let runtime = builder(&log).agent(spec).build().unwrap();
    let handle = runtime.handle();
    let before = handle.health();
    assert!(!before.ready && !before.started && before.live && !before.shutting_down);
    let watched = handle.clone();
    let report = runtime.run_until(async {
        let degraded = |s: &qi_core::agent::AgentSnapshot| matches!(s.health, AgentHealth::Degraded(_));
        let snapshot = watched.wait_for("a", degraded).await.unwrap();
        let AgentHealth::Degraded(why) = &snapshot.health else { panic!() };
        assert_eq!(why.chars().count(), 201, "cut, with a mark");
        assert_eq!(snapshot.status, Running);
        let health = watched.health();
        assert!(!health.ready && health.started);
        watched.wait_for("a", |s| s.health == AgentHealth::Ok).await.unwrap();
        assert!(watched.health().ready);
    });
    report.await.result().unwrap();
    let after = handle.health();
    assert!(!after.ready && after.started && after.shutting_down);
    let json = serde_json::to_value(&after).unwrap();
    assert_eq!(json["agents"][0]["status"], "stopped");
    assert_eq!(json["agents"][0]["last_exit"], "cancelled");
    assert_eq!(log.statuses("a"), [Created, Initializing, Running, Stopping, Stopped], "health is no status");
}

#[tokio::test(start_paused = true)]
async fn context_of_an_earlier_incarnation_has_no_effect() {
    let contexts: Arc<Mutex<Vec<AgentContext>>> = Arc::default();
    let slot = contexts.clone();
    let log = TransitionLog::default();
    let spec = AgentSpec::new("a", move || {
        let slot = slot.clone();
        agent_fn(move |cx: AgentContext| {
            slot.lock().unwrap().push(cx.clone());
            async move {
                if cx.incarnation() == 1 {
                    return Err(Error::new(ErrorKind::Unavailable, "t", "run"));
                }
                cx.cancelled().await;
                Ok(())
            }
        })
    });
    let runtime = builder(&log).agent(spec).build().unwrap();
    let handle = runtime.handle();
    let report = runtime.run_until(async {
        handle.wait_for("a", |s| s.incarnation == 2 && s.status == Running).await.unwrap();
        let old = contexts.lock().unwrap()[0].clone();
        old.degraded("not mine any more");
        old.heartbeat();
        let snapshot = handle.snapshot("a").unwrap();
        assert_eq!((snapshot.health, snapshot.last_heartbeat), (AgentHealth::Ok, None));
        assert!(old.is_cancelled());
    });
    report.await.result().unwrap();
}

#[tokio::test(start_paused = true)]
async fn wait_for_an_unreachable_state_ends_with_the_agent() {
    let (spec, _) = scripted("a", [Script::run(Step::Ok)]);
    let log = TransitionLog::default();
    let runtime = builder(&log).agent(spec.restart(immediate_restart())).build().unwrap();
    let handle = runtime.handle();
    let waiter = tokio::spawn({
        let handle = handle.clone();
        async move { handle.wait_for("a", |s| s.incarnation == 7).await.map(drop) }
    });
    runtime.run().await;
    assert_eq!(waiter.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(handle.snapshot("nobody").unwrap_err().kind(), ErrorKind::NotFound);
    let mut watch = handle.subscribe("a").unwrap();
    assert_eq!(watch.current().status, Stopped);
    drop(handle);
    assert!(watch.changed().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn runtime_that_never_ran_has_ended() {
    let log = TransitionLog::default();
    let runtime = builder(&log).agent(scripted("a", []).0).build().unwrap();
    let handle = runtime.handle();
    drop(runtime);
    let report = handle.join().await;
    assert_eq!((report.cause, report.agents[0].status), (ShutdownCause::Dropped, Created));
    assert_eq!(report.agents[0].termination, Termination::Orderly);
}

#[tokio::test(start_paused = true)]
async fn hook_and_children_share_one_stop_timeout() {
    let (log, report) = run_agent_as(ms(100), || {
        agent_fn(|cx: AgentContext| async move {
            cx.spawn("deaf", std::future::pending())?;
            cx.cancelled().await;
            tokio::time::sleep(ms(3_000)).await;
            Ok(())
        })
    })
    .await;
    let history = log.of("a");
    assert_eq!(history[2].at.duration_since(history[1].at), ms(3_100));
    assert_eq!(history[3].at.duration_since(history[2].at), ms(2_000), "the remaining part of 5 s");
    assert_eq!(report.shutdown_took, ms(5_000));
    report.result().unwrap();
}

#[test]
fn child_needs_a_tokio_runtime() {
    let rejected = AgentContext::for_test().spawn("c", async { Ok(()) }).unwrap_err();
    assert_eq!(rejected.kind(), ErrorKind::Internal);
}
