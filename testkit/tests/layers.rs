//! `Retry` and `Timeout`: attempts, delays, time limits, and the errors when no attempt is left. On paused time.
#![allow(clippy::unwrap_used, clippy::unnecessary_wraps, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use qi_core::bus::{
    Batch, BusInfo, Delivery, DeliveryError, DeliveryState, Message, MessageBus, PublishOptions,
    PublishReport, SubscribeRequest, Subscription, TopicName,
};
use qi_core::layer::{Call, Layer, LayerStack, Layered, Retry, RetryConfig, Timeout, TimeoutConfig};
use qi_core::store::{StoreInfo, StorePingReport};
use qi_core::{Backoff, Error, ErrorKind, Operation, PriceStore, PriceTick, Result, RetryAdvice, Timestamp};
use qi_testkit::chaos::{Chaos, ChaosStore, Fault, Rule};
use qi_testkit::mock::{MockBus, MockReader, MockStore};
use qi_testkit::recording::{Outcome, Recording};
use tokio::time::Instant;

fn unavailable() -> Error {
    Error::new(ErrorKind::Unavailable, "test.unavailable", "ping")
}

/// Returns a store whose ping fails `times` times with `error`, and the number of pings.
fn flaky(times: u32, error: Error) -> (MockStore, Arc<AtomicU32>) {
    let calls = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&calls);
    let mut store = MockStore::new();
    store.expect_info().returning(|| StoreInfo::new("mock"));
    store.expect_ping().returning(move || {
        if count.fetch_add(1, Ordering::Relaxed) < times {
            Err(error.clone())
        } else {
            Ok(StorePingReport::new(Duration::ZERO))
        }
    });
    (store, calls)
}

fn config() -> RetryConfig {
    let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5)).with_jitter(0.0);
    RetryConfig::default().with_backoff(backoff)
}

#[tokio::test(start_paused = true)]
async fn a_call_is_retried_with_growing_delays_until_it_succeeds() {
    let (store, calls) = flaky(3, unavailable());
    let since = Instant::now();
    Retry::new(store, config()).ping().await.unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 4);
    assert_eq!(since.elapsed(), Duration::from_millis(100 + 200 + 400));
}

#[tokio::test(start_paused = true)]
async fn only_retryable_errors_are_retried() {
    for kind in ErrorKind::ALL {
        let (store, calls) = flaky(u32::MAX, Error::new(kind, "test", "ping"));
        let error = Retry::new(store, config().with_max_attempts(3)).ping().await.unwrap_err();
        let tried = calls.load(Ordering::Relaxed);
        let (attempts, exhausted) =
            if kind.default_retry().is_retryable() { (3, Some(3)) } else { (1, None) };
        assert_eq!((tried, error.exhausted()), (attempts, exhausted), "{kind}");
        assert_eq!((error.kind(), error.code()), (kind, "test"), "nothing else changes");
    }
}

#[tokio::test(start_paused = true)]
async fn nested_retries_do_not_multiply_the_attempts() {
    let (store, calls) = flaky(u32::MAX, unavailable());
    let error = Retry::new(Retry::new(store, config()), config()).ping().await.unwrap_err();
    assert_eq!((calls.load(Ordering::Relaxed), error.exhausted()), (5, Some(5)));
    assert_eq!(error.retry(), RetryAdvice::Backoff, "a restart policy still sees a retryable error");
}

#[tokio::test(start_paused = true)]
async fn the_advice_after_is_the_minimum_delay_within_max_elapsed() {
    let wait = Duration::from_secs(7);
    let (store, _) = flaky(1, unavailable().with_retry(RetryAdvice::After(wait)));
    let since = Instant::now();
    Retry::new(store, config()).ping().await.unwrap();
    assert_eq!(since.elapsed(), wait);

    let (store, calls) = flaky(1, unavailable().with_retry(RetryAdvice::After(Duration::from_secs(31))));
    let since = Instant::now();
    let error = Retry::new(store, config()).ping().await.unwrap_err();
    assert_eq!((calls.load(Ordering::Relaxed), error.exhausted()), (1, Some(1)));
    assert_eq!(since.elapsed(), Duration::ZERO, "no delay without another attempt");
}

#[tokio::test(start_paused = true)]
async fn no_attempt_starts_after_max_elapsed() {
    let (store, calls) = flaky(u32::MAX, unavailable());
    let since = Instant::now();
    let config = config().with_max_attempts(1_000).with_max_elapsed(Duration::from_secs(20));
    assert!(Retry::new(store, config).ping().await.is_err());
    assert!(since.elapsed() <= Duration::from_secs(20));
    assert!((5..20).contains(&calls.load(Ordering::Relaxed)));
}

#[tokio::test(start_paused = true)]
async fn max_elapsed_includes_the_first_attempt() {
    let chaos = Chaos::seeded(1).everywhere(Rule::new(1.0, [Fault::Hang]));
    let limit = TimeoutConfig::default().with_call(Duration::from_secs(20));
    let timed = Layered::new(ChaosStore::new(flaky(0, unavailable()).0, chaos.clone()), Timeout::new(limit));
    let since = Instant::now();
    assert_eq!(Retry::new(timed, config()).ping().await.unwrap_err().exhausted(), Some(2));
    assert!(
        since.elapsed() < Duration::from_secs(41),
        "an attempt started after 30 s: {:?}",
        since.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn with_the_defaults_a_hanging_store_times_out_once_after_thirty_seconds() {
    let chaos = Chaos::seeded(1).everywhere(Rule::new(1.0, [Fault::Hang]));
    let store = LayerStack::default().wrap_store(ChaosStore::new(flaky(0, unavailable()).0, chaos));
    let since = Instant::now();
    let error = store.ping().await.unwrap_err();
    assert_eq!((error.kind(), error.exhausted()), (ErrorKind::Timeout, Some(1)));
    assert_eq!(since.elapsed(), Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn extreme_durations_do_not_panic() {
    let forever = unavailable().with_retry(RetryAdvice::After(Duration::MAX));
    assert_eq!(Retry::new(flaky(1, forever).0, config()).ping().await.unwrap_err().exhausted(), Some(1));
    let never = TimeoutConfig::default().with_call(Duration::MAX).with_bulk(Duration::MAX);
    let bus = LayerStack::default().with_timeout(never).wrap_bus(scripted(vec![Ok(vec![])]).0);
    assert!(bus.publish(&[], PublishOptions::NONE).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_delays_within_the_jitter() {
    let run = async |seed| {
        let (store, _) = flaky(4, unavailable());
        let since = Instant::now();
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(1)).with_jitter(0.5);
        Retry::new(store, config().with_backoff(backoff).with_seed(seed)).ping().await.unwrap();
        since.elapsed()
    };
    let (one, again, other) = (run(1).await, run(1).await, run(2).await);
    assert_eq!(one, again);
    assert_ne!(one, other);
    for total in [one, other] {
        assert!((Duration::from_secs(2)..=Duration::from_secs(4)).contains(&total), "{total:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_retry_config_makes_a_usable_port() {
    let jitter = |jitter| config().with_backoff(config().backoff.with_jitter(jitter));
    let factor = |factor| config().with_backoff(config().backoff.with_factor(factor));
    let reversed = Backoff::new(Duration::from_secs(5), Duration::from_secs(1));
    for (config, attempts) in [
        (config().with_max_attempts(0), 1),
        (config().with_max_elapsed(Duration::ZERO), 1),
        (config().with_backoff(reversed), 5),
        (jitter(1.5), 5),
        (jitter(-9.0), 5),
        (jitter(f64::NAN), 5),
        (factor(0.5), 5),
        (factor(f64::INFINITY), 5),
        (factor(f64::NAN), 5),
    ] {
        let (store, calls) = flaky(u32::MAX, unavailable());
        let since = Instant::now();
        let error = Retry::new(store, config).ping().await.unwrap_err();
        assert_eq!(
            (calls.load(Ordering::Relaxed), error.exhausted()),
            (attempts, Some(attempts)),
            "{config:?}"
        );
        assert!(since.elapsed() <= Duration::from_secs(20), "four delays of at most 5 s: {config:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_limit_of_zero_fails_calls_that_wait() {
    let zero = TimeoutConfig::default().with_call(Duration::ZERO).with_bulk(Duration::ZERO);
    let chaos = Chaos::seeded(1).with_delay(Duration::from_secs(1));
    let store = Layered::new(ChaosStore::new(flaky(0, unavailable()).0, chaos.clone()), Timeout::new(zero));
    store.ping().await.unwrap();
    chaos.inject_next(Operation::StorePing, Fault::Delay);
    assert_eq!(store.ping().await.unwrap_err().kind(), ErrorKind::Timeout);
}

#[tokio::test(start_paused = true)]
async fn a_late_response_is_a_timeout_and_bulk_calls_have_another_limit() {
    let chaos = Chaos::seeded(1);
    let (store, _) = flaky(0, unavailable());
    let store = Layered::new(ChaosStore::new(store, chaos.clone()), Timeout::new(TimeoutConfig::default()));
    chaos.inject_next(Operation::StorePing, Fault::Hang);
    let since = Instant::now();
    let error = store.ping().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation(), since.elapsed()),
        (ErrorKind::Timeout, "ping", Duration::from_secs(30))
    );
    store.ping().await.unwrap();

    chaos.inject_next(Operation::PurgeBefore, Fault::Hang);
    let since = Instant::now();
    assert!(store.purge_before(PriceTick::DATASET, Timestamp::MIN).await.is_err());
    assert_eq!(since.elapsed(), Duration::from_mins(10));
}

#[tokio::test(start_paused = true)]
async fn every_attempt_has_its_own_time_limit_in_the_full_stack() {
    let chaos = Chaos::seeded(1);
    let (store, calls) = flaky(0, unavailable());
    let stack = LayerStack::default().with_retry(config().with_max_elapsed(Duration::from_secs(100)));
    let store = stack.wrap_store(ChaosStore::new(store, chaos.clone()));
    assert_eq!(store.to_string(), "Traced(Metered(Retry(CircuitBreaker(Timeout(Limit(Chaos(mock)))))))");
    chaos.inject_next(Operation::StorePing, Fault::Hang);
    chaos.inject_next(Operation::StorePing, Fault::LostResponse);
    chaos.inject_next(Operation::StorePing, Fault::Error);
    store.ping().await.unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 2, "only the cut call and the last call reach the store");
    assert_eq!(chaos.injected(), 3);
}

// ---- publish ----

fn message(key: Option<&'static str>, partition: Option<u32>, n: u8) -> Message {
    let mut message = Message::new(TopicName::new("t").unwrap(), Bytes::copy_from_slice(&[n]));
    message.key = key.map(Bytes::from);
    message.partition = partition;
    message
}

fn delivered(offset: u64) -> Result<Delivery, DeliveryError> {
    Ok(Delivery::new(0, offset, None))
}

fn not_sent() -> Result<Delivery, DeliveryError> {
    Err(DeliveryError::not_sent(unavailable()))
}

fn unknown() -> Result<Delivery, DeliveryError> {
    Err(DeliveryError::unknown(unavailable()))
}

type PublishResults = Vec<Result<Vec<Result<Delivery, DeliveryError>>>>;

/// Returns a bus with scripted results, and the payloads of each publish.
fn scripted(answers: PublishResults) -> (MockBus, Arc<Mutex<Vec<Vec<u8>>>>) {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&sent);
    let mut answers = answers.into_iter();
    let mut bus = MockBus::new();
    bus.expect_info().returning(|| BusInfo::new("mock", Duration::from_mins(2), 1 << 20));
    bus.expect_publish().returning(move |batch, _| {
        let payloads = batch.iter().map(|m| m.payload.as_ref().unwrap()[0]).collect();
        seen.lock().unwrap().push(payloads);
        answers.next().expect("no more publishes").map(PublishReport::new)
    });
    (bus, sent)
}

async fn publish(batch: &[Message], answers: PublishResults) -> (Result<PublishReport>, Vec<Vec<u8>>) {
    let (bus, sent) = scripted(answers);
    let report = Retry::new(bus, config().with_max_attempts(3)).publish(batch, PublishOptions::NONE).await;
    let sent = sent.lock().unwrap().clone();
    (report, sent)
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_an_inner_retry_exhausted_is_not_retried() {
    let (bus, sent) = scripted((0..3).map(|_| Ok(vec![not_sent()])).collect());
    let inner = Retry::new(bus, config().with_max_attempts(3));
    let report = Retry::new(inner, config()).publish(&[message(None, None, 0)], PublishOptions::NONE).await;
    assert_eq!(sent.lock().unwrap().len(), 3);
    let error = &report.unwrap().into_outcomes().remove(0).unwrap_err().error;
    assert_eq!(error.exhausted(), Some(3));
}

#[tokio::test(start_paused = true)]
async fn resent_messages_wait_for_their_longest_advice() {
    let after = |secs| {
        let wait = RetryAdvice::After(Duration::from_secs(secs));
        Err(DeliveryError::not_sent(unavailable().with_retry(wait)))
    };
    let batch = [message(Some("a"), None, 0), message(Some("b"), None, 1), message(Some("c"), None, 2)];
    let answers =
        vec![Ok(vec![after(2), after(7), after(1)]), Ok(vec![delivered(0), delivered(1), delivered(2)])];
    let since = Instant::now();
    let (report, sent) = publish(&batch, answers).await;
    assert_eq!((report.unwrap().into_outcomes().len(), sent.len()), (3, 2));
    assert_eq!(since.elapsed(), Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_message_is_not_marked_as_exhausted() {
    let batch = [message(Some("a"), None, 0), message(Some("b"), None, 1)];
    let answers = vec![Ok(vec![unknown(), not_sent()]), Ok(vec![not_sent()]), Ok(vec![not_sent()])];
    let outcomes = publish(&batch, answers).await.0.unwrap().into_outcomes();
    let exhausted = outcomes.iter().map(|outcome| outcome.as_ref().unwrap_err().error.exhausted());
    assert_eq!(exhausted.collect::<Vec<_>>(), [None, Some(3)]);
}

#[tokio::test(start_paused = true)]
async fn a_close_has_the_bulk_limit_and_a_publish_at_least_twice_the_delivery_timeout() {
    let chaos = Chaos::seeded(1);
    let config = TimeoutConfig::default().with_call(Duration::from_secs(1));
    let timed = |config| Timeout::new(config);
    let store = Layered::new(ChaosStore::new(flaky(0, unavailable()).0, chaos.clone()), timed(config));
    chaos.inject_next(Operation::StoreClose, Fault::Hang);
    let since = Instant::now();
    assert_eq!(store.close().await.unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(since.elapsed(), Duration::from_mins(10));

    let bus = Layered::new(
        Layered::new(scripted(vec![]).0, chaos.clone()),
        timed(config.with_publish(Duration::from_millis(1))),
    );
    chaos.inject_next(Operation::Publish, Fault::Hang);
    let since = Instant::now();
    let report = bus.publish(&[message(None, None, 0)], PublishOptions::NONE).await.unwrap();
    assert!(report.into_outcomes()[0].is_err());
    assert_eq!(since.elapsed(), Duration::from_mins(4), "twice the delivery timeout");
}

#[tokio::test(start_paused = true)]
async fn only_unsent_messages_are_resent() {
    let batch = [message(Some("a"), None, 0), message(Some("b"), None, 1), message(Some("c"), None, 2)];
    let answers = vec![Ok(vec![delivered(0), not_sent(), unknown()]), Ok(vec![delivered(9)])];
    let (report, sent) = publish(&batch, answers).await;
    assert_eq!(sent, [vec![0, 1, 2], vec![1]]);
    let outcomes = report.unwrap().into_outcomes();
    assert_eq!(outcomes[1].as_ref().unwrap().offset, 9);
    assert_eq!(
        outcomes[2].as_ref().unwrap_err().state,
        DeliveryState::Unknown,
        "only the caller may resend an unknown message"
    );
}

#[tokio::test(start_paused = true)]
async fn no_message_is_resent_behind_a_later_message_of_the_same_key() {
    let batch = [
        message(Some("a"), None, 0),
        message(Some("a"), None, 1),
        message(Some("b"), None, 2),
        message(Some("b"), None, 3),
        message(None, Some(4), 4),
        message(None, Some(4), 5),
        message(None, None, 6),
        message(None, None, 7),
    ];
    let first = vec![
        not_sent(), // key a: not sent again, a later message of the key is in the log
        delivered(1),
        not_sent(), // key b: not sent again, a later message of the key may be in the log
        unknown(),
        not_sent(), // partition 4: both sent again, in order
        not_sent(),
        not_sent(), // no key: sent again, because it has no order
        delivered(7),
    ];
    let (report, sent) =
        publish(&batch, vec![Ok(first), Ok(vec![delivered(4), delivered(5), delivered(6)])]).await;
    assert_eq!(sent[1..], [vec![4, 5, 6]]);
    let report = report.unwrap();
    assert_eq!(report.failed(DeliveryState::NotSent).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(report.failed(DeliveryState::Unknown).collect::<Vec<_>>(), [3]);
}

#[tokio::test(start_paused = true)]
async fn unsent_messages_are_marked_with_the_attempts() {
    let batch = [message(Some("a"), None, 0)];
    let answers = vec![Ok(vec![not_sent()]), Err(unavailable()), Ok(vec![not_sent()])];
    let (report, sent) = publish(&batch, answers).await;
    assert_eq!(sent.len(), 3);
    let error = report.unwrap().into_result().unwrap_err();
    assert_eq!((error.exhausted(), error.context_value("not_sent")), (Some(3), Some("1")));
}

#[tokio::test(start_paused = true)]
async fn a_key_keeps_its_order_with_and_without_an_explicit_partition() {
    let batch = [message(Some("k"), None, 0), message(Some("k"), Some(0), 1)];
    let (report, sent) = publish(&batch, vec![Ok(vec![not_sent(), delivered(0)])]).await;
    assert_eq!(sent.len(), 1, "the first message would be stored after the second");
    assert_eq!(report.unwrap().failed(DeliveryState::NotSent).collect::<Vec<_>>(), [0]);
}

#[tokio::test(start_paused = true)]
async fn attempts_are_counted_per_publish_call() {
    let batch = [message(Some("a"), None, 0)];
    let (report, sent) =
        publish(&batch, vec![Err(unavailable()), Err(unavailable()), Ok(vec![not_sent()])]).await;
    assert_eq!(sent.len(), 3);
    assert_eq!(report.unwrap().into_result().unwrap_err().exhausted(), Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_message_without_time_left_holds_back_only_its_key() {
    let after = |secs| {
        let advice = RetryAdvice::After(Duration::from_secs(secs));
        Err(DeliveryError::not_sent(unavailable().with_retry(advice)))
    };
    let batch = [
        message(Some("a"), None, 0),
        message(Some("b"), None, 1),
        message(Some("a"), None, 2),
        message(Some("c"), None, 3),
    ];
    let first = vec![after(100_000), not_sent(), not_sent(), after(7)];
    let since = Instant::now();
    let (report, sent) = publish(&batch, vec![Ok(first), Ok(vec![delivered(1), delivered(3)])]).await;
    assert_eq!(sent[1..], [vec![1, 3]]);
    assert_eq!(since.elapsed(), Duration::from_secs(7));
    assert_eq!(report.unwrap().failed(DeliveryState::NotSent).collect::<Vec<_>>(), [0, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_permanently_rejected_message_is_not_resent() {
    let rejected = Err(DeliveryError::not_sent(Error::new(ErrorKind::InvalidInput, "too.large", "publish")));
    let (report, sent) = publish(&[message(None, None, 0)], vec![Ok(vec![rejected])]).await;
    assert_eq!((sent.len(), report.unwrap().into_result().unwrap_err().exhausted()), (1, None));
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_hangs_is_unknown_for_every_message_after_twice_the_delivery_timeout() {
    let (bus, _) = scripted(vec![]);
    let chaos = Chaos::seeded(1);
    chaos.inject_next(Operation::Publish, Fault::Hang);
    let bus = LayerStack::default().wrap_bus(Layered::new(bus, chaos));
    let since = Instant::now();
    let batch = [message(None, None, 0), message(None, None, 1)];
    let report = bus.publish(&batch, PublishOptions::NONE).await.unwrap();
    assert_eq!(report.failed(DeliveryState::Unknown).count(), 2);
    assert_eq!(since.elapsed(), Duration::from_secs(2 * 120 + 30));
}

// ---- subscriptions ----

#[tokio::test(start_paused = true)]
async fn an_idle_recv_is_not_a_timeout_and_a_hanging_recv_is() {
    let mut reader = MockReader::new();
    reader.expect_recv().returning(|_, _| Ok(Batch::default()));
    let timeout = Timeout::new(TimeoutConfig::default());
    let chaos = Chaos::seeded(1);
    let inner = Layered::new(reader, chaos.clone());
    let mut sub = Layered::new(inner, timeout);
    assert!(sub.recv(1, Duration::from_hours(1)).await.unwrap().is_empty());
    chaos.inject_next(Operation::Recv, Fault::Hang);
    let since = Instant::now();
    let error = sub.recv(1, Duration::from_secs(5)).await.unwrap_err();
    assert_eq!((error.kind(), since.elapsed()), (ErrorKind::Timeout, Duration::from_secs(35)));
}

#[tokio::test(start_paused = true)]
async fn subscriptions_have_the_layers_of_their_bus_and_recv_is_not_retried() {
    let mut bus = MockBus::new();
    bus.expect_info().returning(|| BusInfo::new("mock", Duration::from_secs(1), 1 << 20));
    bus.expect_subscribe().returning(|_| {
        let mut reader = MockReader::new();
        let mut closes = 0;
        reader.expect_recv().returning(|_, _| Err(unavailable()));
        reader.expect_close().returning(move || {
            closes += 1;
            if closes < 3 { Err(unavailable()) } else { Ok(()) }
        });
        Ok(Box::new(reader))
    });
    let recording = Recording::new(100);
    let bus = LayerStack::default().wrap_bus(Layered::new(bus, recording.clone()));
    let request = SubscribeRequest::new("g".parse().unwrap(), ["t".parse().unwrap()]).unwrap();
    let mut sub = bus.subscribe(request).await.unwrap();
    assert_eq!(sub.recv(1, Duration::ZERO).await.unwrap_err().exhausted(), None);
    assert_eq!(recording.count(Operation::Recv), 1);
    sub.close().await.unwrap();
    assert_eq!(recording.count(Operation::SubscriptionClose), 3);
}

// ---- chaos and recording themselves ----

#[tokio::test(start_paused = true)]
async fn chaos_keeps_its_rate_repeats_by_seed_and_excludes_close() {
    let run = async |seed| {
        let (mut store, _) = flaky(0, unavailable());
        store.expect_close().returning(|| Ok(()));
        let chaos =
            Chaos::seeded(seed).everywhere(Rule::new(0.3, [Fault::Error, Fault::LostResponse, Fault::Delay]));
        let store = ChaosStore::new(store, chaos.clone());
        let mut pattern = Vec::new();
        for _ in 0..1_000 {
            pattern.push(store.ping().await.is_ok());
            store.close().await.unwrap();
        }
        (pattern, chaos.injected())
    };
    let (one, injected) = run(5).await;
    assert!((250..350).contains(&injected), "{injected}");
    assert_eq!(one, run(5).await.0);
    assert_ne!(one, run(6).await.0);
}

#[tokio::test(start_paused = true)]
async fn publish_with_a_lost_response_is_unknown_and_a_failed_publish_sends_a_prefix() {
    let mut bus = MockBus::new();
    bus.expect_publish()
        .returning(|batch, _| Ok(PublishReport::new(batch.iter().map(|_| delivered(0)).collect())));
    let (chaos, recording) = (Chaos::seeded(2), Recording::new(100));
    let bus = Layered::new(Layered::new(bus, recording.clone()), chaos.clone());
    let batch: Vec<_> = (0..10).map(|n| message(None, None, n)).collect();
    chaos.inject_next(Operation::Publish, Fault::LostResponse);
    let cut = bus.publish(&batch, PublishOptions::NONE).await.unwrap();
    assert_eq!((cut.failed(DeliveryState::Unknown).count(), recording.published().len()), (10, 10));
    chaos.inject_next(Operation::Publish, Fault::Error);
    let failed = bus.publish(&batch, PublishOptions::NONE).await.unwrap();
    assert!(failed.failed(DeliveryState::NotSent).count() > 0, "a failure leaves something out");
    let sent = recording.published()[10..].iter().filter(|(_, o)| *o == Outcome::Delivered).count();
    assert_eq!(failed.failed(DeliveryState::NotSent).collect::<Vec<_>>(), (sent..10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_recording_is_bounded_and_counts_discarded_calls() {
    let (store, _) = flaky(1, unavailable());
    let recording = Recording::new(2);
    let store = Layered::new(store, recording.clone());
    for _ in 0..5 {
        let _ = store.ping().await;
    }
    assert_eq!((recording.calls().len(), recording.discarded()), (2, 3));
    assert!(recording.calls().iter().all(|call| call.failed.is_none()));
}

/// A layer that only has a name.
#[derive(Debug)]
struct NamedLayer;

impl Layer for NamedLayer {
    fn name(&self) -> &'static str {
        "NamedLayer"
    }
}

/// A layer that notes the address of the last future.
#[derive(Debug, Clone, Default)]
struct RecordsAddress(Arc<AtomicUsize>);

fn address<T>(future: &BoxFuture<'_, T>) -> usize {
    std::ptr::from_ref(&**future).addr()
}

impl Layer for RecordsAddress {
    fn name(&self) -> &'static str {
        "RecordsAddress"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        _: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        self.0.store(address(&future), Ordering::Relaxed);
        future
    }
}

#[test]
fn pointers_and_transparent_layers_return_the_inner_future_without_another_box() {
    let inner = RecordsAddress::default();
    let store = Layered::new(Layered::new(flaky(0, unavailable()).0, inner.clone()), NamedLayer);
    let store: Arc<dyn PriceStore> = Arc::new(store);
    let store: Box<dyn PriceStore> = Box::new(Arc::new(store));
    assert_eq!(address(&PriceStore::ping(&store)), inner.0.load(Ordering::Relaxed));

    let bus: Arc<dyn MessageBus> = Arc::new(Layered::new(MockBus::new(), inner.clone()));
    let bus: Box<dyn MessageBus> = Box::new(Arc::new(bus));
    assert_eq!(address(&MessageBus::topics(&bus)), inner.0.load(Ordering::Relaxed));

    let reader: Box<dyn Subscription> = Box::new(Layered::new(MockReader::new(), inner.clone()));
    let mut reader = Layered::new(reader, NamedLayer);
    assert_eq!(address(&reader.assignment()), inner.0.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_layer_needs_only_a_name() {
    let (store, calls) = flaky(0, unavailable());
    let store = Layered::new(Layered::new(store, NamedLayer), NamedLayer);
    store.ping().await.unwrap();
    assert_eq!(
        (store.to_string().as_str(), calls.load(Ordering::Relaxed)),
        ("NamedLayer(NamedLayer(mock))", 1)
    );
}
