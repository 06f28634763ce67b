//! The agent `Maintenance`, over a store with scripted reports. On paused time.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod metrics_rig;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics_rig::measured;
use qi_core::agent::{AgentHealth, AgentRuntime, AgentSpec, AgentStatus};
use qi_core::layer::Layered;
use qi_core::store::{MaintainRequest, MaintenanceReport, StoreInfo};
use qi_core::{
    Backoff, Error, ErrorKind, Maintenance, Operation, PriceStore, Result, RetryAdvice, Timestamp,
};
use qi_testkit::ManualClock;
use qi_testkit::chaos::{Chaos, Fault};
use qi_testkit::mock::MockStore;
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
/// The start of `ManualClock`.
const START: i64 = 1_704_067_200;

fn hour(number: i64) -> Timestamp {
    Timestamp::from_secs(START + number * 3_600).unwrap()
}

fn unix_time(number: i64) -> f64 {
    f64::from(i32::try_from(hour(number).as_micros() / 1_000_000).unwrap())
}

/// Returns a report whose watermark and target are these hours.
fn report(watermark: i64, target: i64, ticks: u64, rebuilt: u64, stale: u64) -> MaintenanceReport {
    let mut report = MaintenanceReport::default();
    (report.watermark, report.target) = (Some(hour(watermark)), Some(hour(target)));
    (report.ticks, report.rebuilt, report.stale) = (ticks, rebuilt, stale);
    report
}

/// The times and the requests of the calls of `maintain`.
#[derive(Debug, Clone, Default)]
struct Calls(Arc<Mutex<Vec<(Instant, MaintainRequest)>>>);

impl Calls {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Instant, MaintainRequest)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the times between the calls, in seconds.
    fn pauses(&self) -> Vec<u64> {
        self.lock().windows(2).map(|pair| (pair[1].0 - pair[0].0).as_secs()).collect()
    }
}

/// Returns a store with these results, the last of which repeats.
fn store(results: Vec<Result<MaintenanceReport>>) -> (MockStore, Calls) {
    let calls = Calls::default();
    let recorded = calls.clone();
    let mut store = MockStore::new();
    store.expect_info().returning(|| StoreInfo::new("mock"));
    store.expect_maintain().returning(move |request| {
        let mut calls = recorded.lock();
        calls.push((Instant::now(), *request));
        results[(calls.len() - 1).min(results.len() - 1)].clone()
    });
    (store, calls)
}

fn spec<S: PriceStore>(agent: Maintenance<S>) -> AgentSpec {
    AgentSpec::once("maintenance", agent)
}

/// Runs the agent for a time, and returns its result.
async fn run_for<S: PriceStore>(agent: Maintenance<S>, time: Duration) -> Result<()> {
    let runtime = AgentRuntime::builder().clock(ManualClock::default()).agent(spec(agent)).build().unwrap();
    runtime.run_until(sleep(time)).await.result()
}

fn unavailable() -> Error {
    Error::new(ErrorKind::Unavailable, "test.away", "maintain")
}

#[tokio::test(start_paused = true)]
async fn calls_follow_at_once_while_steps_are_left_and_made_progress() {
    let reports = [
        report(1, 3, 10, 0, 0), // ticks
        report(2, 3, 0, 0, 0),  // an hour without ticks moves only the watermark
        report(3, 3, 0, 5, 2),  // marks
        report(3, 3, 0, 0, 2),  // no progress
        report(3, 3, 0, 0, 0),  // complete
    ];
    let (store, calls) = store(reports.map(Ok).to_vec());
    run_for(Maintenance::new(store).with_budget(7 * SECOND), 10 * MINUTE).await.unwrap();
    assert_eq!(calls.pauses()[..6], [0, 0, 0, 60, 60, 60]);
    assert!(calls.lock().iter().all(|(_, request)| request.budget == 7 * SECOND && request.until.is_none()));
}

#[tokio::test(start_paused = true)]
async fn the_interval_is_at_least_a_second() {
    let (first, calls) = store(vec![Ok(MaintenanceReport::default())]);
    run_for(Maintenance::new(first).with_interval(Duration::ZERO), 10 * SECOND).await.unwrap();
    assert_eq!(calls.pauses()[..3], [1, 1, 1]);
    let (second, calls) = store(vec![Ok(MaintenanceReport::default())]);
    run_for(Maintenance::new(second).with_interval(5 * MINUTE), 11 * MINUTE).await.unwrap();
    assert_eq!(calls.pauses(), [300, 300]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_degrades_the_agent_and_does_not_end_it() {
    let mut results = vec![Ok(report(1, 1, 0, 0, 0))];
    results.extend(vec![Err(unavailable()); 3]);
    results.push(Err(unavailable().with_retry(RetryAdvice::After(30 * SECOND))));
    results.push(Ok(report(2, 2, 1, 0, 0)));
    let (store, calls) = store(results);
    let backoff = Backoff::new(2 * SECOND, 4 * SECOND).with_jitter(0.0);
    // The watchdog counts a repeated call as progress.
    let spec = spec(Maintenance::new(store).with_backoff(backoff)).watchdog(2 * MINUTE);
    let runtime = AgentRuntime::builder().clock(ManualClock::default()).agent(spec).build().unwrap();
    let handle = runtime.handle();
    let report = runtime
        .run_until(async {
            let is_degraded =
                |s: &qi_core::agent::AgentSnapshot| matches!(s.health, AgentHealth::Degraded(_));
            let snapshot = handle.wait_for("maintenance", is_degraded).await.unwrap();
            let AgentHealth::Degraded(why) = &snapshot.health else { panic!() };
            assert_eq!((why.as_str(), snapshot.status), ("maintain: test.away", AgentStatus::Running));
            handle.wait_for("maintenance", |s| s.health == AgentHealth::Ok).await.unwrap();
            sleep(10 * MINUTE).await;
        })
        .await;
    report.result().unwrap();
    assert_eq!(calls.pauses()[..6], [60, 2, 4, 4, 30, 60]);
}

#[tokio::test(start_paused = true)]
async fn another_error_ends_the_agent() {
    let (store, calls) = store(vec![Err(Error::new(ErrorKind::SchemaMismatch, "test.schema", "maintain"))]);
    let error = run_for(Maintenance::new(store), 10 * MINUTE).await.unwrap_err();
    assert_eq!(error.find_source::<Error>().unwrap_or(&error).code(), "test.schema", "{error}");
    assert_eq!(calls.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_drops_the_call_in_progress() {
    let chaos = Chaos::seeded(1);
    chaos.inject_next(Operation::Maintain, Fault::Hang);
    let (store, calls) = store(vec![Ok(MaintenanceReport::default())]);
    let began = Instant::now();
    run_for(Maintenance::new(Layered::new(store, chaos)), MINUTE).await.unwrap();
    assert_eq!((began.elapsed(), calls.lock().len()), (MINUTE, 0));
}

#[test]
fn metrics_follow_the_reports() {
    let metrics = measured(|| async {
        let results = vec![Ok(report(-2, 0, 1_000, 3, 7)), Ok(report(0, 0, 500, 7, 1)), Err(unavailable())];
        let (store, _) = store(results);
        let backoff = Backoff::new(MINUTE, MINUTE).with_jitter(0.0);
        run_for(Maintenance::new(store).with_backoff(backoff), 90 * SECOND).await.unwrap();
    });
    let of = |name: &str| format!("qi_maintenance_{name}{{backend=mock}}");
    assert_eq!(metrics.counter(&of("ticks_total")), 1_500);
    assert_eq!(metrics.counter(&of("rebuilt_marks_total")), 10);
    assert!((metrics.gauge(&of("stale_marks")) - 1.0).abs() < 1e-9);
    // The failed calls leave the watermark unchanged, so its age grows.
    let watermark = "watermark_timestamp_seconds";
    assert!((metrics.gauge(&of(watermark)) - unix_time(0)).abs() < 1e-3);
    assert_eq!(metrics.histogram(&of("duration_seconds")).len(), 4);

    let without = measured(|| async {
        let (store, _) = store(vec![Ok(MaintenanceReport::default())]);
        run_for(Maintenance::new(store), 90 * SECOND).await.unwrap();
    });
    assert!(without.gauge(&of(watermark)).is_nan());

    // The watermark is not known, so the time of the first call stands for it.
    let failing = measured(|| async {
        let (store, _) = store(vec![Err(unavailable())]);
        run_for(Maintenance::new(store), 90 * MINUTE).await.unwrap();
    });
    assert!((failing.gauge(&of(watermark)) - unix_time(0)).abs() < 1e-3);
}

/// A restarted agent keeps the metric of the watermark.
#[test]
fn the_watermark_is_known_after_an_error_that_ends_the_agent() {
    let metrics = measured(|| async {
        let error = Error::new(ErrorKind::SchemaMismatch, "test.schema", "maintain");
        let (store, _) = store(vec![Ok(report(-1, 0, 1, 0, 0)), Err(error)]);
        let store = Arc::new(store);
        let spec = AgentSpec::new("maintenance", move || Maintenance::new(store.clone()));
        let runtime = AgentRuntime::builder().clock(ManualClock::default()).agent(spec).build().unwrap();
        drop(runtime.run_until(sleep(90 * MINUTE)).await);
    });
    let watermark = metrics.gauge("qi_maintenance_watermark_timestamp_seconds{backend=mock}");
    assert!((watermark - unix_time(-1)).abs() < 1e-3);
}
