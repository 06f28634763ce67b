//! The metrics of agents are equal to the transition log.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent_rig;
mod metrics_rig;

use std::collections::BTreeMap;
use std::time::Duration;

use agent_rig::{builder, ms, scripted};
use metrics_rig::{RecordedMetrics, measured};
use qi_core::ErrorKind;
use qi_core::agent::{AgentSpec, AgentStatus, Backoff, MetricsObserver, Phase, RestartPolicy, agent_fn};
use qi_testkit::agent::{Script, Step, TransitionLog};

/// Returns agents that fail in every way: errors, panics in hooks and children, time limits, hooks that ignore a stop
/// request, and failed cleanups.
fn faulty_agents() -> Vec<(&'static str, Vec<Script>)> {
    let unavailable = || Step::Err(ErrorKind::Unavailable);
    vec![
        ("steady", vec![Script::default()]),
        ("flaky", vec![Script::run(Step::after(ms(250), unavailable())); 4]),
        (
            "panics",
            vec![
                Script::run(Step::Panic),
                Script::initialize(Step::Panic),
                Script::run(Step::PanicWithOtherPayload),
            ],
        ),
        ("children", vec![Script::run(Step::child(Step::Panic)), Script::run(Step::child(unavailable()))]),
        ("untidy", vec![Script::run(unavailable()).with_cleanup(Step::Err(ErrorKind::Internal))]),
        ("stuck", vec![Script::run(unavailable()).with_cleanup(Step::HangIgnoringStop)]),
        ("deaf", vec![Script::run(Step::HangIgnoringStop)]),
        ("bad_drop", vec![Script::run(Step::PanicOnDrop)]),
        ("hopeless", vec![Script::run(Step::Err(ErrorKind::Config))]),
    ]
}

fn as_micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap()
}

fn micros(values: &[f64]) -> Vec<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "a test lasts for less than years")]
    values.iter().map(|seconds| (seconds * 1e6).round() as i64).collect()
}

fn check(seen: &RecordedMetrics, log: &TransitionLog, agent: &str) {
    let (history, errors, forced) = (log.of(agent), log.errors(agent), log.forced(agent));
    let of = |name: &str, labels: &str| seen.counter(&format!("{name}{{agent={agent}{labels}}}"));

    let mut reached: BTreeMap<&str, u64> = BTreeMap::new();
    for transition in &history {
        *reached.entry(transition.to.as_str()).or_default() += 1;
    }
    for (status, times) in &reached {
        assert_eq!(
            of("qi_agent_transitions_total", &format!(",status={status}")),
            *times,
            "{agent} {status}"
        );
    }
    let restarts = reached.get("initializing").copied().unwrap_or(0).saturating_sub(1);
    assert_eq!(of("qi_agent_restarts_total", ""), restarts, "{agent}");

    let mut kinds: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let mut panics: BTreeMap<&str, u64> = BTreeMap::new();
    for record in &errors {
        *kinds.entry((record.phase.as_str(), record.error.kind().as_str())).or_default() += 1;
        if record.error.code() == "agent.panicked" {
            *panics.entry(record.phase.as_str()).or_default() += 1;
        }
    }
    for ((phase, kind), times) in kinds {
        let labels = format!(",phase={phase},kind={kind}");
        assert_eq!(of("qi_agent_errors_total", &labels), times, "{agent} {labels}");
    }
    for phase in [Phase::Initialize, Phase::Run, Phase::Cleanup].map(Phase::as_str) {
        let labels = format!(",phase={phase}");
        assert_eq!(
            of("qi_agent_panics_total", &labels),
            panics.get(phase).copied().unwrap_or(0),
            "{agent} {phase}"
        );
        let dropped = forced.iter().filter(|f| f.phase.as_str() == phase).count();
        assert_eq!(of("qi_agent_forced_stops_total", &labels), dropped as u64, "{agent} {phase}");
    }

    for (status, phase) in [
        (AgentStatus::Initializing, "initialize"),
        (AgentStatus::Running, "run"),
        (AgentStatus::Stopping, "cleanup"),
    ] {
        let pairs = history.windows(2).filter(|pair| pair[0].to == status);
        let took: Vec<_> = pairs.map(|pair| as_micros(pair[1].at.duration_since(pair[0].at))).collect();
        if !took.is_empty() {
            let key = format!("qi_agent_phase_duration_seconds{{agent={agent},phase={phase}}}");
            assert_eq!(micros(&seen.histogram(&key)), took, "{agent} {phase}");
        }
    }
    let delays: Vec<_> = history.iter().filter_map(|t| t.backoff).map(|step| as_micros(step.delay)).collect();
    if !delays.is_empty() {
        let key = format!("qi_agent_backoff_seconds{{agent={agent}}}");
        assert_eq!(micros(&seen.histogram(&key)), delays, "{agent}");
    }
    assert!(seen.gauge(&format!("qi_agent_up{{agent={agent}}}")).abs() < f64::EPSILON, "{agent} has ended");
}

#[test]
fn metrics_equal_the_transition_log_under_faults() {
    let log = TransitionLog::default();
    let seen = measured(|| async {
        let mut runtime = builder(&log).observer(MetricsObserver::default());
        for (name, scripts) in faulty_agents() {
            let backoff = Backoff::new(ms(100), ms(800)).with_jitter(0.5);
            let restart = RestartPolicy::default().with_backoff(backoff).with_max_crashes(Some(3));
            let spec = scripted(name, scripts).0.restart(restart).best_effort();
            runtime = runtime.agent(spec.stop_timeout(ms(300)).cleanup_timeout(ms(200)));
        }
        let runtime = runtime.build().unwrap();
        runtime.run_until(tokio::time::sleep(Duration::from_secs(20))).await;
    });
    for (name, _) in faulty_agents() {
        check(&seen, &log, name);
    }
    let all: Vec<_> = faulty_agents().iter().flat_map(|(name, _)| log.errors(name)).collect();
    assert_eq!(seen.total("qi_agent_transitions_total"), log.all().len() as u64);
    assert_eq!(seen.total("qi_agent_errors_total"), all.len() as u64);
    assert!(seen.total("qi_agent_panics_total") >= 4 && seen.total("qi_agent_forced_stops_total") >= 3);
    let report = log.report().unwrap();
    assert_eq!(micros(&seen.histogram("qi_runtime_shutdown_seconds{}")), [as_micros(report.shutdown_took)]);
    assert_eq!(seen.counter("qi_runtime_leaked_agents_total{}"), 0);
}

/// Prometheus computes no increase for a new series, so the counters of an alert must exist at 0
/// before the first event.
#[test]
fn agent_counters_start_at_zero() {
    let seen = measured(|| async {
        let steady = scripted("steady", [Script::default()]).0;
        let runtime = builder(&TransitionLog::default()).observer(MetricsObserver::default()).agent(steady);
        let handle = runtime.build().unwrap().start();
        tokio::time::sleep(Duration::from_secs(1)).await;
        handle.shutdown();
        handle.join().await;
    });
    let keys = seen.keys();
    for series in [
        "qi_agent_transitions_total{agent=steady,status=failed}",
        "qi_agent_transitions_total{agent=steady,status=backoff}",
        "qi_agent_restarts_total{agent=steady}",
        "qi_agent_panics_total{agent=steady,phase=initialize}",
        "qi_agent_panics_total{agent=steady,phase=run}",
        "qi_agent_forced_stops_total{agent=steady,phase=cleanup}",
    ] {
        assert!(keys.contains(&series), "{series}");
        assert_eq!(seen.counter(series), 0, "{series}");
    }
}

#[test]
fn heartbeat_age_is_measured_at_the_scrape() {
    let seen = measured(|| async {
        let beat = |once: bool| {
            move || {
                agent_fn(move |cx| async move {
                    if once {
                        cx.heartbeat();
                    }
                    cx.cancelled().await;
                    Ok(())
                })
            }
        };
        let runtime = builder(&TransitionLog::default())
            .observer(MetricsObserver::default())
            .agent(AgentSpec::new("beats", beat(true)))
            .agent(AgentSpec::new("watched", beat(false)).watchdog(Duration::from_mins(1)))
            .agent(AgentSpec::new("neither", beat(false)))
            .build()
            .unwrap();
        let handle = runtime.start();
        tokio::time::sleep(Duration::from_secs(7)).await;
        handle.measure_heartbeats();
        assert!(handle.health().ready);
        handle.shutdown();
        handle.join().await;
    });
    for (agent, age) in [("beats", 7.0), ("watched", 7.0), ("neither", 0.0)] {
        let seen = seen.gauge(&format!("qi_agent_heartbeat_age_seconds{{agent={agent}}}"));
        assert!((seen - age).abs() < 0.01, "{agent}: {seen}");
    }
}
