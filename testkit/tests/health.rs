//! The health of a program on paused time: its backends, its agents, and the results of probes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent_rig;

use std::sync::Arc;
use std::time::Duration;

use agent_rig::{builder, scripted};
use qi_core::Operation;
use qi_core::health::HealthChecker;
use qi_core::layer::Layered;
use qi_core::{MessageBus, PriceStore};
use qi_testkit::agent::{Script, Step, TransitionLog};
use qi_testkit::bus::MemoryBus;
use qi_testkit::chaos::{Chaos, ChaosStore, Fault, Rule};
use qi_testkit::recording::Recording;
use qi_testkit::store::MemoryStore;
use tokio::time::{Instant, sleep, timeout};

fn backends(chaos: &Chaos, pings: &Recording) -> (Arc<dyn PriceStore>, Arc<dyn MessageBus>) {
    let store = Layered::new(MemoryStore::default(), pings.clone());
    (Arc::new(ChaosStore::new(store, chaos.clone())), Arc::new(MemoryBus::default()))
}

#[tokio::test(start_paused = true)]
async fn program_is_ready_if_all_backends_answer_and_all_agents_run() {
    let chaos = Chaos::seeded(1);
    let (store, bus) = backends(&chaos, &Recording::new(100));
    let health = HealthChecker::new().store("prices", store).bus("events", bus);
    let check = health.check().await;
    assert!(check.live && check.started && check.ready && check.runtime.is_none());

    let health = {
        let (store, bus) = backends(&chaos, &Recording::new(100));
        HealthChecker::new().store("prices", store).bus("events", bus).expect_agents()
    };
    let check = health.check().await;
    assert!(check.live && !check.started && !check.ready, "its agents are to come");
    let slow = scripted("slow", [Script::initialize(Step::after(Duration::from_secs(5), Step::Ok))]).0;
    let handle = builder(&TransitionLog::default()).agent(slow).build().unwrap().start();
    health.watch(handle.clone());
    sleep(Duration::from_secs(1)).await;
    let check = health.check().await;
    assert!(check.live && !check.started && !check.ready, "its agent has not begun to run");
    sleep(Duration::from_secs(5)).await;
    assert!(health.check().await.ready);

    chaos.inject_next(Operation::StorePing, Fault::Error);
    sleep(Duration::from_secs(1)).await;
    let check = health.check().await;
    assert!(check.live && check.started && !check.ready && health.is_live(), "the process is live");
    let json = serde_json::to_value(&check).unwrap();
    let store = &json["backends"][0];
    assert_eq!(
        (&store["name"], &store["port"], &store["backend"], &store["up"], &store["kind"]),
        (&"prices".into(), &"store".into(), &"memory".into(), &false.into(), &"unavailable".into())
    );
    assert_eq!(store["error"], "chaos.error", "a code, and no text of the server");
    sleep(Duration::from_secs(1)).await;
    let check = health.check().await;
    assert!(check.backends[0].up && check.backends[0].version.is_some());
    let json = serde_json::to_value(&check).unwrap();
    assert_eq!(json["backends"][0].get("version"), None, "the version is text of the server");
    assert_eq!((&json["backends"][1]["up"], &json["runtime"]["ready"]), (&true.into(), &true.into()));

    handle.shutdown();
    handle.join().await;
    assert!(!health.check().await.ready, "the process is not ready");
}

#[tokio::test(start_paused = true)]
async fn hanging_backend_delays_the_response_up_to_the_timeout() {
    let chaos = Chaos::seeded(1).everywhere(Rule::new(1.0, [Fault::Hang]));
    let (store, bus) = backends(&chaos, &Recording::new(100));
    let health = HealthChecker::new().store("prices", store.clone()).store("again", store).bus("events", bus);
    let since = Instant::now();
    let check = health.check().await;
    assert_eq!(since.elapsed(), Duration::from_millis(800), "both pings run concurrently");
    let up: Vec<_> = check.backends.iter().map(|backend| (backend.up, backend.kind)).collect();
    assert_eq!(up, [(false, Some("timeout")), (false, Some("timeout")), (true, None)]);
}

#[tokio::test(start_paused = true)]
async fn concurrent_probes_share_one_ping() {
    let (chaos, pings) = (Chaos::seeded(1), Recording::new(1_000));
    let (store, _) = backends(&chaos, &pings);
    let health = HealthChecker::new().store("prices", store);
    futures::future::join_all((0..100).map(|_| health.check())).await;
    assert_eq!(pings.count(Operation::StorePing), 1);
    sleep(Duration::from_millis(500)).await;
    health.check().await;
    assert_eq!(pings.count(Operation::StorePing), 2);
}

#[tokio::test(start_paused = true)]
async fn dropped_probes_do_not_delay_other_probes() {
    let chaos = Chaos::seeded(1).everywhere(Rule::new(1.0, [Fault::Hang]));
    let (store, _) = backends(&chaos, &Recording::new(100));
    let health = HealthChecker::new().store("prices", store);
    let impatient = async |limit| timeout(Duration::from_millis(limit), health.check()).await.is_ok();
    let patient = async {
        sleep(Duration::from_millis(1)).await;
        let since = Instant::now();
        assert!(!health.check().await.ready);
        since.elapsed()
    };
    let (given_up, also, took) = tokio::join!(impatient(790), impatient(795), patient);
    assert!(!given_up && !also);
    assert!(took <= Duration::from_millis(800), "the response took {took:?}");
}

#[tokio::test(start_paused = true)]
async fn abandoned_ping_is_repeated() {
    let (chaos, pings) = (Chaos::seeded(1), Recording::new(1_000));
    let (store, _) = backends(&chaos, &pings);
    let health = HealthChecker::new().store("prices", store);
    chaos.inject_next(Operation::StorePing, Fault::Hang);
    assert!(timeout(Duration::from_millis(100), health.check()).await.is_err());
    sleep(Duration::from_millis(100)).await;
    assert!(health.check().await.ready, "the hang was the other one's");
}

#[tokio::test(start_paused = true)]
async fn probe_shows_error_codes_without_texts() {
    use qi_core::agent::{AgentRuntime, AgentSpec, RestartPolicy, agent_fn};
    use qi_core::{Error, ErrorKind};
    let failing = AgentSpec::new("failing", || {
        agent_fn(|_cx| async {
            let error = Error::new(ErrorKind::Unauthorized, "test.rejected", "run");
            Err::<(), _>(error.with_message("text of the server"))
        })
    });
    let panicking = AgentSpec::new("panicking", || agent_fn(|_cx| async { panic!("text of the server") }));
    let degraded = AgentSpec::new("degraded", || {
        agent_fn(|cx| async move {
            cx.degraded("text of the server");
            cx.cancelled().await;
            Ok(())
        })
    });
    let runtime = AgentRuntime::builder()
        .agent(failing.best_effort())
        .agent(panicking.best_effort().restart(RestartPolicy::never()))
        .agent(degraded);
    let handle = runtime.build().unwrap().start();
    sleep(Duration::from_secs(1)).await;
    let health = HealthChecker::new();
    health.watch(handle.clone());
    let json = serde_json::to_value(health.check().await).unwrap();
    assert!(!json.to_string().contains("text of the server"), "{json}");
    let agents = &json["runtime"]["agents"];
    assert_eq!(agents[0]["last_exit"], "test.rejected");
    assert_eq!(agents[1]["last_exit"], "agent.panicked");
    assert_eq!(agents[2]["health"], "degraded");
    handle.shutdown();
    handle.join().await;
}
