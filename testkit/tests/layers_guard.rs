//! `Limit` and `CircuitBreaker`: queued, rejected and admitted calls. On paused time.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use qi_core::bus::{
    BusInfo, Delivery, DeliveryError, Message, MessageBus, Offsets, PublishOptions, PublishReport,
    SubscribeRequest, TopicName,
};
use qi_core::layer::{
    Call, CircuitBreaker, CircuitBreakerConfig, CircuitState, Layer, LayerStack, Layered, Limit, LimitConfig,
    RetryConfig, TimeoutConfig,
};
use qi_core::store::{InsertReport, StoreInfo, StorePingReport};
use qi_core::{Backoff, Error, ErrorKind, Operation, PriceStore, PriceStoreExt, Result, RetryAdvice};
use qi_testkit::chaos::{Chaos, Fault};
use qi_testkit::mock::{MockBus, MockReader, MockStore};
use tokio::time::{Instant, timeout};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn unavailable() -> Error {
    Error::new(ErrorKind::Unavailable, "test.away", "insert")
}

/// Returns a store that accepts every call.
fn accepting_store() -> MockStore {
    let mut store = MockStore::new();
    store.expect_info().returning(|| StoreInfo::new("mock"));
    store.expect_insert().returning(|_| Ok(InsertReport::new(0, 0)));
    store.expect_ping().returning(|| Ok(StorePingReport::new(Duration::ZERO)));
    store.expect_close().returning(|| Ok(()));
    store
}

/// Returns a store whose n-th insert has the result of `answer(n)`, and the number of inserts.
fn store_with_results(answer: impl Fn(u32) -> Result<()> + Send + 'static) -> (MockStore, Arc<AtomicU32>) {
    let calls = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&calls);
    let mut store = MockStore::new();
    store.expect_info().returning(|| StoreInfo::new("mock"));
    store.expect_close().returning(|| Ok(()));
    store
        .expect_insert()
        .returning(move |_| answer(count.fetch_add(1, Ordering::Relaxed)).map(|()| InsertReport::new(0, 0)));
    (store, calls)
}

/// A layer that delays every call and counts the calls in progress.
#[derive(Debug)]
struct CallCounter {
    takes: Duration,
    now: AtomicU32,
    most: AtomicU32,
}

impl CallCounter {
    fn new(takes: Duration) -> Self {
        Self { takes, now: AtomicU32::new(0), most: AtomicU32::new(0) }
    }
}

impl Layer for CallCounter {
    fn name(&self) -> &'static str {
        "CallCounter"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        _: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move {
            let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
            self.most.fetch_max(now, Ordering::Relaxed);
            tokio::time::sleep(self.takes).await;
            self.now.fetch_sub(1, Ordering::Relaxed);
            future.await
        })
    }
}

fn limited(config: LimitConfig, takes: Duration) -> Layered<Layered<MockStore, CallCounter>, Limit> {
    Layered::new(Layered::new(accepting_store(), CallCounter::new(takes)), Limit::new(config))
}

// ---- limit ----

#[tokio::test(start_paused = true)]
async fn concurrency_is_bounded_and_every_call_completes() {
    let store = limited(LimitConfig::default().with_concurrency(3), ms(100));
    let since = Instant::now();
    let done = join_all((0..10).map(|_| store.insert_ticks(&[]))).await;
    assert!(done.iter().all(Result::is_ok));
    assert_eq!(store.inner().layer().most.load(Ordering::Relaxed), 3);
    assert_eq!(since.elapsed(), ms(400), "three at a time");
    assert_eq!(store.layer().queued(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_is_rejected_as_overloaded_if_the_queue_is_full() {
    let store = limited(LimitConfig::default().with_concurrency(1).with_max_queued(2), ms(100));
    let since = Instant::now();
    let mut done = join_all((0..4).map(|_| store.insert_ticks(&[]))).await;
    assert_eq!(since.elapsed(), ms(300));
    let error = done.pop().unwrap().unwrap_err();
    assert!(done.iter().all(Result::is_ok));
    assert_eq!((error.kind(), error.code()), (ErrorKind::Overloaded, "layer.limit.full"));
    assert_eq!((error.retry(), error.context_value("queued")), (RetryAdvice::Backoff, Some("2")));
    store.insert_ticks(&[]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn calls_start_at_the_rate_and_a_pause_allows_a_burst() {
    let even = limited(LimitConfig::default().with_rate(10.0, 1), Duration::ZERO);
    let since = Instant::now();
    join_all((0..11).map(|_| even.insert_ticks(&[]))).await;
    assert_eq!(since.elapsed(), ms(1_000));

    let burst = limited(LimitConfig::default().with_rate(10.0, 5), Duration::ZERO);
    for pause in [Duration::ZERO, Duration::from_secs(5)] {
        tokio::time::sleep(pause).await;
        let since = Instant::now();
        join_all((0..7).map(|_| burst.insert_ticks(&[]))).await;
        assert!(
            (ms(200)..=ms(205)).contains(&since.elapsed()),
            "a burst of five calls, then two more: {:?}",
            since.elapsed()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_above_the_timer_resolution_is_kept() {
    let store = limited(LimitConfig::default().with_rate(5_000.0, 1).with_max_queued(10_000), Duration::ZERO);
    let since = Instant::now();
    join_all((0..5_000).map(|_| store.insert_ticks(&[]))).await;
    assert!((ms(950)..=ms(1_050)).contains(&since.elapsed()), "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn dropped_callers_consume_no_start() {
    let store = limited(LimitConfig::default().with_rate(1.0, 1).with_concurrency(4), Duration::ZERO);
    store.insert_ticks(&[]).await.unwrap();
    let gone = join_all((0..100).map(|_| timeout(ms(500), store.insert_ticks(&[])))).await;
    assert!(gone.iter().all(Result::is_err));
    assert_eq!(store.layer().queued(), 0);
    let since = Instant::now();
    store.insert_ticks(&[]).await.unwrap();
    assert_eq!(since.elapsed(), ms(500), "the next call uses the unused start");
}

#[tokio::test(start_paused = true)]
async fn ping_close_and_subscription_calls_bypass_the_limiter() {
    let store =
        limited(LimitConfig::default().with_concurrency(1).with_max_queued(0), Duration::from_hours(1));
    let mut stuck = Box::pin(store.insert_ticks(&[]));
    assert!(timeout(ms(1), &mut stuck).await.is_err());
    assert_eq!(store.insert_ticks(&[]).await.unwrap_err().code(), "layer.limit.full");
    let around = |work| timeout(Duration::from_hours(2), work);
    around(store.ping()).await.unwrap().unwrap();
    store.close().await.unwrap();

    let mut bus = MockBus::new();
    bus.expect_subscribe().returning(|_| {
        let mut reader = MockReader::new();
        reader.expect_commit().returning(|_| Ok(qi_core::bus::Committed::default()));
        Ok(Box::new(reader))
    });
    let never = LimitConfig::default().with_rate(0.001, 1).with_max_queued(0);
    let bus = Layered::new(bus, Limit::new(never));
    for _ in 0..3 {
        let request = SubscribeRequest::new("g".parse().unwrap(), ["t".parse().unwrap()]).unwrap();
        let mut reader = bus.subscribe(request).await.unwrap();
        reader.commit(&Offsets::new()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn in_the_stack_the_wait_for_a_permit_counts_towards_the_time_limit() {
    let slow = Layered::new(accepting_store(), CallCounter::new(ms(700)));
    let store = LayerStack::none()
        .with_timeout(TimeoutConfig::default().with_call(Duration::from_secs(1)))
        .with_limit(LimitConfig::default().with_concurrency(1))
        .wrap_store(slow);
    let done = join_all((0..2).map(|_| store.insert_ticks(&[]))).await;
    assert!(done[0].is_ok());
    assert_eq!(done[1].as_ref().unwrap_err().kind(), ErrorKind::Timeout);
    store.insert_ticks(&[]).await.unwrap();
}

// ---- circuit breaker ----

fn breaker<P>(inner: P, failures: u32) -> Layered<P, CircuitBreaker> {
    let config = CircuitBreakerConfig::default()
        .with_failure_threshold(failures)
        .with_open_duration(Duration::from_secs(4));
    Layered::new(inner, CircuitBreaker::new(config))
}

#[tokio::test(start_paused = true)]
async fn consecutive_failures_open_the_circuit_until_a_probe_is_admitted() {
    let (store, calls) = store_with_results(|n| if n < 4 { Err(unavailable()) } else { Ok(()) });
    let store = breaker(store, 3);
    for _ in 0..3 {
        assert_eq!(store.insert_ticks(&[]).await.unwrap_err().code(), "test.away");
    }
    assert_eq!(store.layer().state(), CircuitState::Open);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let rejection = store.insert_ticks(&[]).await.unwrap_err();
    assert_eq!((rejection.kind(), rejection.code()), (ErrorKind::Unavailable, "layer.circuit_breaker.open"));
    assert_eq!(rejection.retry(), RetryAdvice::After(Duration::from_secs(3)));
    assert_eq!(calls.load(Ordering::Relaxed), 3, "an open circuit does not call the store");

    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(store.insert_ticks(&[]).await.unwrap_err().code(), "test.away", "the probe");
    assert_eq!(store.layer().state(), CircuitState::Open, "a failed probe opens the circuit again");
    tokio::time::sleep(Duration::from_secs(4)).await;
    store.insert_ticks(&[]).await.unwrap();
    assert_eq!(store.layer().state(), CircuitState::Closed);
    assert_eq!(calls.load(Ordering::Relaxed), 5);
}

#[tokio::test(start_paused = true)]
async fn a_success_resets_the_failure_count() {
    let (store, _) = store_with_results(|n| if n % 3 == 2 { Ok(()) } else { Err(unavailable()) });
    let store = breaker(store, 3);
    for _ in 0..30 {
        let _ = store.insert_ticks(&[]).await;
        assert_eq!(store.layer().state(), CircuitState::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn only_infrastructure_errors_are_failures() {
    let counted = [ErrorKind::Unavailable, ErrorKind::Timeout, ErrorKind::Overloaded];
    for kind in ErrorKind::ALL {
        let (store, _) = store_with_results(move |_| Err(Error::new(kind, "test", "insert")));
        let store = breaker(store, 1);
        let _ = store.insert_ticks(&[]).await;
        let opened = store.layer().state() == CircuitState::Open;
        assert_eq!(opened, counted.contains(&kind), "{kind}");
    }
    let for_good = || Err(unavailable().with_retry(RetryAdvice::Never));
    let full = || Err(Error::new(ErrorKind::Overloaded, "layer.limit.full", "insert"));
    for answer in [for_good, full] {
        let store = breaker(store_with_results(move |_| answer()).0, 1);
        let _ = store.insert_ticks(&[]).await;
        assert_eq!(store.layer().state(), CircuitState::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn one_probe_is_admitted_and_other_calls_are_rejected_with_backoff() {
    let (store, calls) = store_with_results(|n| if n == 0 { Err(unavailable()) } else { Ok(()) });
    let store = breaker(Layered::new(store, CallCounter::new(ms(50))), 1);
    let _ = store.insert_ticks(&[]).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut done = join_all((0..5).map(|_| store.insert_ticks(&[]))).await;
    done.remove(0).unwrap();
    for rejection in done {
        let rejection = rejection.unwrap_err();
        assert_eq!((rejection.kind(), rejection.retry()), (ErrorKind::Unavailable, RetryAdvice::Backoff));
    }
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    store.insert_ticks(&[]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dropped_or_neutral_probe_admits_the_next_probe() {
    let (store, _) = store_with_results(|n| match n {
        0 => Err(unavailable()),
        1 => Err(Error::new(ErrorKind::InvalidInput, "test", "insert")),
        _ => Ok(()),
    });
    let store = breaker(Layered::new(store, CallCounter::new(ms(50))), 1);
    let _ = store.insert_ticks(&[]).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(timeout(ms(10), store.insert_ticks(&[])).await.is_err(), "the caller drops the probe");
    assert_eq!(store.insert_ticks(&[]).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    store.insert_ticks(&[]).await.unwrap();
    assert_eq!(store.layer().state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_probe_admits_another_probe_after_the_open_duration() {
    let (store, calls) = store_with_results(|n| if n == 0 { Err(unavailable()) } else { Ok(()) });
    let chaos = Chaos::seeded(1);
    let store = breaker(Layered::new(store, chaos.clone()), 1);
    let _ = store.insert_ticks(&[]).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    chaos.inject_next(Operation::Insert, Fault::Hang);
    let mut stuck = Box::pin(store.insert_ticks(&[]));
    assert!(timeout(Duration::from_secs(3), &mut stuck).await.is_err(), "the caller still waits");
    assert_eq!(store.insert_ticks(&[]).await.unwrap_err().code(), "layer.circuit_breaker.open");
    tokio::time::sleep(Duration::from_secs(1)).await;
    store.insert_ticks(&[]).await.unwrap();
    assert_eq!((store.layer().state(), calls.load(Ordering::Relaxed)), (CircuitState::Closed, 2));
    drop(stuck);
    assert_eq!(store.layer().state(), CircuitState::Closed, "the dropped probe is ignored");
}

#[tokio::test(start_paused = true)]
async fn slow_successful_probe_closes_the_circuit_during_other_probes() {
    let (store, _) = store_with_results(|n| if n == 0 { Err(unavailable()) } else { Ok(()) });
    let store = breaker(Layered::new(store, CallCounter::new(Duration::from_secs(6))), 1);
    let _ = store.insert_ticks(&[]).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let later = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let second = store.insert_ticks(&[]);
        let _ = timeout(Duration::from_secs(2), second).await;
        store.layer().state()
    };
    let (first, state) = tokio::join!(store.insert_ticks(&[]), later);
    first.unwrap();
    assert_eq!(state, CircuitState::Closed, "by the first result");
}

/// A layer that delays the n-th response by the n-th duration.
#[derive(Debug)]
struct ResponseDelays(Vec<Duration>, AtomicU32);

impl Layer for ResponseDelays {
    fn name(&self) -> &'static str {
        "ResponseDelays"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        _: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move {
            let n = self.1.fetch_add(1, Ordering::Relaxed) as usize;
            let answer = future.await;
            tokio::time::sleep(self.0[n]).await;
            answer
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_failure_of_an_earlier_generation_does_not_fail_the_probe() {
    let (store, _) = store_with_results(|n| if n < 2 { Err(unavailable()) } else { Ok(()) });
    let takes = ResponseDelays(vec![ms(5_000), ms(0), ms(2_000)], AtomicU32::new(0));
    let store = breaker(Layered::new(store, takes), 1);
    let mut early = Box::pin(store.insert_ticks(&[]));
    assert!(timeout(ms(1), &mut early).await.is_err());
    assert!(store.insert_ticks(&[]).await.is_err(), "this failure opens the circuit");
    tokio::time::sleep(ms(4_000)).await;
    let (early, look) = tokio::join!(early, store.insert_ticks(&[]));
    assert!(early.is_err());
    look.unwrap();
    assert_eq!(store.layer().state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn attempts_from_before_the_circuit_opened_are_ignored() {
    let (store, _) = store_with_results(|n| if n == 0 { Err(unavailable()) } else { Ok(()) });
    let store = breaker(Layered::new(store, CallCounter::new(ms(50))), 1);
    let mut early = Box::pin(store.insert_ticks(&[]));
    assert!(timeout(ms(10), &mut early).await.is_err());
    // The second call returns after the first call has opened the circuit.
    let mut late = Box::pin(store.insert_ticks(&[]));
    assert!(timeout(ms(10), &mut late).await.is_err());
    assert!(early.await.is_err());
    late.await.unwrap();
    assert_eq!(store.layer().state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_admits_close_and_recv() {
    let (store, _) = store_with_results(|_| Err(unavailable()));
    let store = breaker(store, 1);
    let _ = store.insert_ticks(&[]).await;
    store.close().await.unwrap();

    let mut bus = MockBus::new();
    bus.expect_topics().returning(|| Err(unavailable()));
    bus.expect_subscribe().returning(|_| {
        let mut reader = MockReader::new();
        reader.expect_recv().returning(|_, _| Ok(qi_core::bus::Batch::default()));
        reader.expect_close().returning(|| Ok(()));
        Ok(Box::new(reader))
    });
    bus.expect_close().returning(|| Ok(qi_core::bus::CloseReport::new(0)));
    let bus = breaker(bus, 1);
    let request = SubscribeRequest::new("g".parse().unwrap(), ["t".parse().unwrap()]).unwrap();
    let mut reader = bus.subscribe(request.clone()).await.unwrap();
    let _ = bus.topics().await;
    assert_eq!(reader.commit(&Offsets::new()).await.unwrap_err().code(), "layer.circuit_breaker.open");
    assert!(bus.subscribe(request).await.is_err());
    reader.recv(1, Duration::ZERO).await.unwrap();
    reader.close().await.unwrap();
    bus.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_publish_is_a_success_if_one_message_was_delivered() {
    let delivered = || Ok(Delivery::new(0, 0, None));
    let lost = || Err(DeliveryError::unknown(unavailable()));
    let too_large =
        || Err(DeliveryError::not_sent(Error::new(ErrorKind::InvalidInput, "test.size", "publish")));
    for (outcomes, opens) in [
        (vec![lost(), delivered()], false),
        (vec![too_large(), lost()], true),
        (vec![too_large()], false),
        (vec![], false),
    ] {
        let mut bus = MockBus::new();
        bus.expect_info().returning(|| BusInfo::new("mock", Duration::from_secs(1), 1 << 20));
        let message = Message::new(TopicName::new("t").unwrap(), "x");
        let batch = vec![message; outcomes.len()];
        bus.expect_publish().returning(move |_, _| Ok(PublishReport::new(outcomes.clone())));
        let bus = breaker(bus, 1);
        let _report = bus.publish(&batch, PublishOptions::NONE).await.unwrap();
        assert_eq!(bus.layer().state() == CircuitState::Open, opens);
        assert_eq!(bus.publish(&batch, PublishOptions::NONE).await.is_err(), opens);
    }
}

#[tokio::test(start_paused = true)]
async fn in_the_stack_a_retry_waits_for_the_advice_of_the_open_circuit() {
    let (store, calls) = store_with_results(|n| if n < 2 { Err(unavailable()) } else { Ok(()) });
    let backoff = Backoff::new(ms(10), ms(10)).with_jitter(0.0);
    let store = LayerStack::default()
        .with_retry(RetryConfig::default().with_backoff(backoff))
        .with_circuit_breaker(
            CircuitBreakerConfig::default().with_failure_threshold(2).with_open_duration(ms(500)),
        )
        .wrap_store(store);
    let since = Instant::now();
    store.insert_ticks(&[]).await.unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 3);
    assert_eq!(since.elapsed(), ms(10 + 10 + 490), "a failure, the opening failure, a rejection, the probe");
}

#[tokio::test(start_paused = true)]
async fn every_limit_config_makes_a_usable_layer() {
    let limit = LimitConfig::default();
    for (config, two_calls_take) in [
        (limit.with_concurrency(0), ms(0)),
        (limit.with_concurrency(usize::MAX), ms(0)),
        (limit.with_rate(0.0, 1), Duration::from_secs(1_000)),
        (limit.with_rate(f64::NAN, 1), Duration::from_secs(1_000)),
        (limit.with_rate(-1.0, 1), Duration::from_secs(1_000)),
        (limit.with_rate(f64::INFINITY, 1), ms(0)),
        (limit.with_rate(10.0, 0), ms(100)),
        (limit.with_rate(10.0, u32::MAX), ms(0)),
    ] {
        let store = limited(config, Duration::ZERO);
        let since = Instant::now();
        for _ in 0..2 {
            store.insert_ticks(&[]).await.unwrap();
        }
        // Tokio's timer has a resolution of 1 ms.
        assert!((two_calls_take..=two_calls_take + ms(5)).contains(&since.elapsed()), "{config:?}");
    }
    let store = limited(limit.with_concurrency(0), ms(100));
    let since = Instant::now();
    assert!(join_all((0..2).map(|_| store.insert_ticks(&[]))).await.iter().all(Result::is_ok));
    assert_eq!(since.elapsed(), ms(200), "a concurrency of 0 counts as 1");
}

#[tokio::test(start_paused = true)]
async fn every_circuit_breaker_config_makes_a_usable_layer() {
    let circuit = CircuitBreakerConfig::default();
    for (config, open) in [
        (circuit.with_failure_threshold(0), Duration::from_secs(2)),
        (circuit.with_failure_threshold(1).with_open_duration(Duration::ZERO), ms(1)),
        (circuit.with_failure_threshold(1).with_open_duration(Duration::MAX), Duration::from_secs(5)),
    ] {
        let (store, _) = store_with_results(|n| if n == 0 { Err(unavailable()) } else { Ok(()) });
        let store = Layered::new(store, CircuitBreaker::new(config));
        assert_eq!(store.insert_ticks(&[]).await.unwrap_err().code(), "test.away");
        let rejected = store.insert_ticks(&[]).await.unwrap_err();
        assert_eq!(rejected.retry(), RetryAdvice::After(open), "{config:?}");
        tokio::time::sleep(open).await;
        store.insert_ticks(&[]).await.unwrap();
    }
}
