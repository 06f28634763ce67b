//! Agents that block their threads, on real time. The report is complete by the deadline and names these agents, even
//! if no thread of the tokio runtime is free.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod agent_rig;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use agent_rig::{ms, scripted};
use qi_core::agent::{AgentRuntime, AgentStatus, RuntimeReport, ShutdownCause, Termination};
use qi_testkit::agent::{Script, Step};

const DEADLINE: Duration = Duration::from_millis(700);
const BLOCKED_FOR: Duration = Duration::from_secs(4);

/// Runs `blocking` agents that block their threads and one quiet agent on two worker threads. Returns the report that
/// `on_deadline_exceeded` received, and the time from the stop request to that call.
fn exceed_deadline(blocking: usize) -> (RuntimeReport, Duration) {
    let (sender, receiver) = mpsc::channel();
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut builder = AgentRuntime::builder().shutdown_deadline(DEADLINE).on_deadline_exceeded(
        move |report: &RuntimeReport| {
            sender
                .send((report.clone(), Instant::now(), std::thread::current().name().map(str::to_owned)))
                .unwrap();
        },
    );
    for n in 0..blocking {
        let (spec, _) = scripted(&format!("blocks-{n}"), [Script::run(Step::Block(BLOCKED_FOR))]);
        builder = builder.agent(spec);
    }
    let (quiet, _) = scripted("quiet", [Script::default().with_cleanup(Step::after(ms(10), Step::Ok))]);
    let runtime = builder.agent(quiet).build().unwrap();
    let handle = runtime.handle();
    tokio.spawn(runtime.run());
    std::thread::sleep(ms(200));
    let requested = Instant::now();
    handle.shutdown();
    let (report, when, thread) =
        receiver.recv_timeout(DEADLINE + ms(1_500)).expect("on_deadline_exceeded is called in time");
    assert_eq!(thread.as_deref(), Some("qi-deadline"), "the runtime has its own thread");
    tokio.shutdown_background();
    (report, when - requested)
}

#[test]
fn one_blocked_thread_is_reported_and_other_agents_end() {
    let (report, took) = exceed_deadline(1);
    assert!(took >= DEADLINE && took < DEADLINE + ms(1_500), "the shutdown took {took:?}");
    let leaked: Vec<_> = report.leaked().map(|a| (a.name.to_string(), a.termination)).collect();
    assert_eq!(leaked, [("blocks-0".to_owned(), Termination::Leaked { blocking: true })]);
    assert_eq!(report.agent("quiet").unwrap().status, AgentStatus::Stopped);
    assert_eq!(report.cause, ShutdownCause::Requested);
    let error = report.result().unwrap_err();
    assert_eq!((error.code(), error.context_value("agent")), ("agent.leaked", Some("blocks-0")));
}

#[test]
fn two_blocked_threads_and_the_agents_that_wait_for_them_are_reported() {
    let (report, took) = exceed_deadline(2);
    assert!(took >= DEADLINE && took < DEADLINE + ms(1_500), "the shutdown took {took:?}");
    for name in ["blocks-0", "blocks-1"] {
        assert_eq!(report.agent(name).unwrap().termination, Termination::Leaked { blocking: true });
    }
    assert_eq!(report.agent("quiet").unwrap().termination, Termination::Leaked { blocking: false });
    assert!(report.to_string().contains("leaked: blocks-0, blocks-1, quiet"), "{report}");
}

#[test]
fn blocked_threads_do_not_delay_run_until_on_another_thread() {
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut builder = AgentRuntime::builder().shutdown_deadline(DEADLINE);
    for n in 0..2 {
        builder = builder.agent(scripted(&format!("b{n}"), [Script::run(Step::Block(BLOCKED_FOR))]).0);
    }
    let runtime = builder.build().unwrap();
    let handle = runtime.handle();
    let stop = std::thread::spawn(move || {
        std::thread::sleep(ms(200));
        handle.shutdown();
    });
    let begun = Instant::now();
    let report = tokio.block_on(runtime.run());
    assert!(begun.elapsed() < ms(200) + DEADLINE + ms(1_500), "{:?}", begun.elapsed());
    assert_eq!(report.leaked().count(), 2);
    stop.join().unwrap();
    tokio.shutdown_background();
}

#[test]
fn runtime_with_blocked_threads_is_not_live() {
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (spec, _) = scripted("a", [Script::run(Step::Block(ms(1_500)))]);
    let runtime = AgentRuntime::builder().agent(spec.watchdog(ms(100))).build().unwrap();
    let handle = runtime.handle();
    tokio.spawn(runtime.run());
    std::thread::sleep(ms(200));
    let early = handle.health();
    assert!(early.live && !early.ready, "stale is not yet dead: {early:?}");
    std::thread::sleep(ms(500));
    assert!(!handle.health().live);
    tokio.shutdown_background();
}
