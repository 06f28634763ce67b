//! `Metered` and `Traced`: metrics, spans and headers, and unchanged results.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod metrics_rig;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics_rig::measured;
use qi_core::bus::{
    BusInfo, DeadLetters, Delivery, DeliveryError, HeaderName, Headers, Message, MessageBus, MessageBusExt,
    PublishOptions, PublishReport, ReceivedMessage, RejectedMessage, SubscribeRequest, TopicName, TopicSpec,
};
use qi_core::layer::{
    CircuitBreakerConfig, LayerStack, Layered, LimitConfig, Metered, Propagator, RetryConfig, Traced,
};
use qi_core::store::{InsertReport, StoreInfo};
use qi_core::{Error, ErrorKind, Operation, PriceStore, PriceStoreExt, PriceTick, Result};
use qi_testkit::bus::MemoryBus;
use qi_testkit::chaos::{Chaos, ChaosStore, Fault, Rule};
use qi_testkit::market::{Market, MarketConfig};
use qi_testkit::mock::{MockBus, MockStore};
use qi_testkit::store::MemoryStore;
use tracing::Span;

fn ticks(n: usize) -> Vec<PriceTick> {
    Market::new(MarketConfig::new(1, 2).unwrap()).unwrap().take(n).collect()
}

fn unavailable() -> Error {
    Error::new(ErrorKind::Unavailable, "test.away", "insert")
}

#[test]
fn calls_are_counted_and_measured_and_errors_counted_by_kind() {
    let seen = measured(|| async {
        let chaos = Chaos::seeded(1).with_delay(Duration::from_millis(40));
        let store = ChaosStore::new(MemoryStore::default(), chaos.clone());
        let store = Layered::new(store, Metered::new("memory"));
        store.ensure_schema().await.unwrap();
        for n in [3, 5] {
            store.insert_ticks(&ticks(n)).await.unwrap();
        }
        chaos.inject_next(Operation::Insert, Fault::Error);
        assert!(store.insert_ticks(&ticks(2)).await.is_err());
        chaos.inject_next(Operation::Insert, Fault::Hang);
        let gone = tokio::time::timeout(Duration::from_secs(1), store.insert_ticks(&[])).await;
        assert!(gone.is_err());
        store.ping().await.unwrap();
    });
    let insert = "port=store,backend=memory,operation=insert,dataset=ticks";
    assert_eq!(seen.counter(&format!("qi_calls_total{{{insert}}}")), 3);
    assert_eq!(seen.counter("qi_calls_total{port=store,backend=memory,operation=ping,dataset=}"), 1);
    assert_eq!(seen.counter(&format!("qi_call_errors_total{{{insert},kind=unavailable}}")), 1);
    assert_eq!(seen.counter(&format!("qi_calls_dropped_total{{{insert}}}")), 1);
    assert_eq!(seen.histogram(&format!("qi_call_duration_seconds{{{insert}}}")).len(), 3);
    assert_eq!(seen.histogram(&format!("qi_batch_records{{{insert}}}")), [3.0, 5.0, 2.0, 0.0]);
    assert!(seen.gauge("qi_calls_in_flight{port=store,backend=memory}").abs() < f64::EPSILON);
}

#[test]
fn acknowledged_dead_letters_are_counted_by_the_topic_of_the_origin_and_the_code() {
    let seen = measured(|| async {
        let mut bus = MockBus::new();
        bus.expect_info().returning(|| BusInfo::new("mock", Duration::from_secs(1), 1 << 20));
        bus.expect_publish().returning(|batch, _| {
            let delivered = || Ok(Delivery::new(0, 0, None));
            let failed = |kind, code| Error::new(kind, code, "publish");
            let too_large = failed(ErrorKind::InvalidInput, DeliveryError::TOO_LARGE);
            Ok(PublishReport::new(match batch.len() {
                1 => vec![delivered()],
                _ => vec![
                    delivered(),
                    Err(DeliveryError::not_sent(too_large)),
                    Err(DeliveryError::unknown(failed(ErrorKind::Timeout, "test"))),
                    delivered(),
                ],
            }))
        });
        let rejected = ["a", "a", "a", "b"].map(|topic| {
            let message = ReceivedMessage::new(TopicName::new(topic).unwrap(), 0, 0);
            RejectedMessage::new(message, Error::new(ErrorKind::CorruptData, "test.code", "decode"))
        });
        let error = bus.send_dead_letters(&rejected, &DeadLetters::default()).await.unwrap_err();
        assert_eq!((error.code(), error.context_value("unknown")), ("test", Some("1")));
        bus.send_dead_letters(&[], &DeadLetters::default()).await.unwrap();
    });
    assert_eq!(seen.counter("qi_bus_dead_letters_total{topic=a,code=test.code}"), 2);
    assert_eq!(seen.counter("qi_bus_dead_letters_total{topic=b,code=test.code}"), 1);
}

#[test]
fn message_with_a_rejected_minimal_dead_letter_is_counted_as_dropped() {
    let seen = measured(|| async {
        let mut bus = MockBus::new();
        bus.expect_info().returning(|| BusInfo::new("mock", Duration::from_secs(1), 1 << 20));
        bus.expect_publish().returning(|batch, _| {
            let too_large = || Error::new(ErrorKind::InvalidInput, DeliveryError::TOO_LARGE, "publish");
            Ok(PublishReport::new(batch.iter().map(|_| Err(DeliveryError::not_sent(too_large()))).collect()))
        });
        let message = ReceivedMessage::new(TopicName::new("a").unwrap(), 0, 0);
        let error = Error::new(ErrorKind::CorruptData, "test.code", "decode");
        let rejected = [RejectedMessage::new(message, error)];
        bus.send_dead_letters(&rejected, &DeadLetters::default()).await.unwrap();
    });
    assert_eq!(seen.counter("qi_bus_dead_letters_dropped_total{topic=a,code=test.code}"), 1);
    assert_eq!(seen.counter("qi_bus_dead_letters_total{topic=a,code=test.code}"), 0);
}

#[test]
fn messages_are_counted_by_delivery_state() {
    let seen = measured(|| async {
        let mut bus = MockBus::new();
        bus.expect_publish().returning(|_, _| {
            let delivered = || Ok(Delivery::new(0, 0, None));
            let timeout = Error::new(ErrorKind::Timeout, "test", "publish");
            Ok(PublishReport::new(vec![
                delivered(),
                Err(DeliveryError::not_sent(unavailable())),
                Err(DeliveryError::unknown(timeout.clone())),
                Err(DeliveryError::unknown(timeout)),
                delivered(),
            ]))
        });
        let bus = Layered::new(bus, Metered::new("mock"));
        let batch = vec![Message::new(TopicName::new("t").unwrap(), "x"); 5];
        let _report = bus.publish(&batch, PublishOptions::NONE).await.unwrap();
    });
    assert_eq!(seen.counter("qi_messages_delivered_total{backend=mock}"), 2);
    assert_eq!(seen.counter("qi_messages_failed_total{backend=mock,state=not_sent,kind=unavailable}"), 1);
    assert_eq!(seen.counter("qi_messages_failed_total{backend=mock,state=unknown,kind=timeout}"), 2);
    assert_eq!(seen.histogram("qi_batch_records{port=bus,backend=mock,operation=publish,dataset=}"), [5.0]);
}

/// Prometheus computes no increase for a new series, so the counters of an alert must start at 0.
#[test]
fn counters_of_failed_messages_start_at_zero() {
    let seen = measured(|| async {
        let mut bus = MockBus::new();
        bus.expect_publish().returning(|_, _| Ok(PublishReport::new(vec![])));
        let bus = Layered::new(bus, Metered::new("mock"));
        let _report = bus.publish(&[], PublishOptions::NONE).await.unwrap();
    });
    for state in ["not_sent", "unknown"] {
        for kind in ErrorKind::ALL {
            let series = format!("qi_messages_failed_total{{backend=mock,state={state},kind={kind}}}");
            assert!(seen.keys().contains(&series.as_str()), "{series}");
            assert_eq!(seen.counter(&series), 0);
        }
    }
}

#[test]
fn limit_circuit_breaker_and_retry_count_their_decisions() {
    let seen = measured(|| async {
        let mut store = MockStore::new();
        store.expect_info().returning(|| StoreInfo::new("mock"));
        store.expect_insert().returning(|_| Ok(InsertReport::new(0, 0)));
        let chaos = Chaos::seeded(1);
        let store = LayerStack::default()
            .with_retry(RetryConfig::default().with_max_attempts(2))
            .with_circuit_breaker(CircuitBreakerConfig::default().with_failure_threshold(2))
            .with_limit(LimitConfig::default().with_concurrency(1).with_max_queued(0))
            .wrap_store(ChaosStore::new(store, chaos.clone()));
        // A hanging call holds the only permit, and two attempts of another call are rejected.
        chaos.inject_next(Operation::Insert, Fault::Hang);
        let mut stuck = Box::pin(store.insert_ticks(&[]));
        assert!(tokio::time::timeout(Duration::from_secs(1), &mut stuck).await.is_err());
        assert!(store.insert_ticks(&[]).await.is_err());
        drop(stuck);
        // Two failed attempts open the circuit, which then rejects two attempts.
        chaos.inject_next(Operation::Insert, Fault::Error);
        chaos.inject_next(Operation::Insert, Fault::Error);
        assert!(store.insert_ticks(&[]).await.is_err());
        let _ = tokio::time::timeout(Duration::from_millis(10), store.insert_ticks(&[])).await;
    });
    let mock = "port=store,backend=mock";
    let (insert, retried) =
        (format!("{mock},operation=insert,dataset=ticks"), format!("{mock},operation=insert"));
    assert_eq!(seen.counter(&format!("qi_limit_rejected_total{{{mock}}}")), 2);
    assert_eq!(seen.counter(&format!("qi_retries_total{{{retried},kind=overloaded}}")), 1);
    assert_eq!(seen.counter(&format!("qi_retries_total{{{retried},kind=unavailable}}")), 2);
    assert_eq!(seen.counter(&format!("qi_circuit_opened_total{{{mock}}}")), 1);
    assert_eq!(seen.counter(&format!("qi_circuit_rejected_total{{{mock}}}")), 1);
    assert!((seen.gauge(&format!("qi_circuit_state{{{mock}}}")) - 2.0).abs() < f64::EPSILON);
    assert_eq!(seen.counter(&format!("qi_calls_total{{{insert}}}")), 2);
    assert_eq!(seen.counter(&format!("qi_calls_dropped_total{{{insert}}}")), 2);
}

#[test]
fn gauges_return_to_zero_and_durations_are_exact() {
    let seen = measured(|| async {
        let mut store = MockStore::new();
        store.expect_info().returning(|| StoreInfo::new("mock"));
        store.expect_insert().returning(|_| Ok(InsertReport::new(0, 0)));
        let chaos = Chaos::seeded(1);
        let store = LayerStack::default()
            .with_retry(RetryConfig::default().with_max_attempts(1))
            .with_circuit_breaker(CircuitBreakerConfig::default().with_failure_threshold(1))
            .with_limit(LimitConfig::default().with_concurrency(1))
            .wrap_store(ChaosStore::new(store, chaos.clone()));
        // The first call hangs until its limit. The second call waits in the queue and is dropped.
        chaos.inject_next(Operation::Insert, Fault::Hang);
        let waiting = tokio::time::timeout(Duration::from_secs(5), store.insert_ticks(&[]));
        let (stuck, given_up) = tokio::join!(store.insert_ticks(&[]), waiting);
        assert!(stuck.is_err() && given_up.is_err());
        tokio::time::sleep(Duration::from_secs(2)).await;
        store.insert_ticks(&[]).await.unwrap();
    });
    let mock = "port=store,backend=mock";
    for gauge in ["qi_limit_queued", "qi_calls_in_flight", "qi_circuit_state"] {
        assert!(seen.gauge(&format!("{gauge}{{{mock}}}")).abs() < f64::EPSILON, "{gauge}");
    }
    assert_eq!(seen.counter(&format!("qi_circuit_opened_total{{{mock}}}")), 1);
    let took = seen.histogram(&format!("qi_call_duration_seconds{{{mock},operation=insert,dataset=ticks}}"));
    assert_eq!(took, [30.0, 0.0]);
}

#[test]
fn received_messages_are_counted() {
    let seen = measured(|| async {
        let bus = Layered::new(MemoryBus::default(), Metered::new("memory"));
        let topic = TopicName::new("t").unwrap();
        let made = bus.create_topics(&[TopicSpec::new(topic.clone(), 1).unwrap()]).await.unwrap();
        assert!(made[0].result.is_ok());
        let _report = bus.publish(&vec![Message::new(topic.clone(), "x"); 5], PublishOptions::NONE).await;
        let mut reader =
            bus.subscribe(SubscribeRequest::new("g".parse().unwrap(), [topic]).unwrap()).await.unwrap();
        for wanted in [3, 2, 0] {
            assert_eq!(reader.recv(3, Duration::from_secs(1)).await.unwrap().len(), wanted);
        }
    });
    assert_eq!(seen.counter("qi_messages_received_total{backend=memory}"), 5);
    let recv = "port=subscription,backend=memory,operation=recv,dataset=";
    assert_eq!(
        seen.histogram(&format!("qi_batch_records{{{recv}}}")),
        [3.0, 2.0],
        "not those that found none"
    );
    assert_eq!(seen.counter(&format!("qi_calls_total{{{recv}}}")), 3);
}

#[test]
fn metrics_under_faults_add_up_with_few_labels() {
    let calls = 2_000;
    let seen = measured(|| async {
        let chaos = Chaos::seeded(3).everywhere(Rule::new(1.0 / 3.0, [Fault::Error, Fault::LostResponse]));
        let chaos = chaos.on(Operation::EnsureSchema, Rule::never());
        let store = LayerStack::default().wrap_store(ChaosStore::new(MemoryStore::default(), chaos));
        store.ensure_schema().await.unwrap();
        for tick in ticks(calls) {
            let _ = store.insert_ticks(&[tick]).await;
        }
    });
    let retried = "port=store,backend=memory,operation=insert";
    let insert = "port=store,backend=memory,operation=insert,dataset=ticks";
    assert_eq!(seen.counter(&format!("qi_calls_total{{{insert}}}")), calls as u64);
    assert!(seen.counter(&format!("qi_retries_total{{{retried},kind=unavailable}}")) > calls as u64 / 4);
    assert!(seen.len() < 20, "{:?}", seen.keys());
}

// ---- traces ----

/// A propagator that adds n to the messages of the n-th publish and records the received contexts.
#[derive(Debug)]
struct Numbers {
    name: [HeaderName; 1],
    next: Mutex<u8>,
    extracted: Mutex<Vec<Vec<u8>>>,
}

impl Default for Numbers {
    fn default() -> Self {
        let name = [HeaderName::new("traceparent").unwrap()];
        Self { name, next: Mutex::default(), extracted: Mutex::default() }
    }
}

impl Propagator for Numbers {
    fn headers(&self) -> &[HeaderName] {
        &self.name
    }

    fn inject(&self, _: &Span, headers: &mut Headers) {
        let mut next = self.next.lock().unwrap();
        headers.push(self.name[0].clone(), bytes::Bytes::copy_from_slice(&[*next]));
        *next += 1;
    }

    fn extract(&self, _: &Span, contexts: &[Headers]) {
        let numbers = contexts.iter().map(|headers| headers.get("traceparent").unwrap()[0]).collect();
        self.extracted.lock().unwrap().push(numbers);
    }
}

/// Installs a global subscriber. With a thread-local subscriber alone, a call site that another thread reaches first is
/// disabled on every thread.
fn spans_are_on() {
    let _set_before = tracing::subscriber::set_global_default(tracing_subscriber::registry());
}

async fn a_traced_bus(numbers: &Arc<Numbers>) -> (impl MessageBus, TopicName) {
    let bus = MemoryBus::default();
    let topic = TopicName::new("t").unwrap();
    let made = bus.create_topics(&[TopicSpec::new(topic.clone(), 1).unwrap()]).await.unwrap();
    assert!(made[0].result.is_ok());
    (Layered::new(bus, Traced::new("memory").with_propagator(numbers.clone())), topic)
}

#[tokio::test]
async fn consumer_spans_continue_publish_spans_and_hide_their_headers() -> Result<()> {
    // Without a subscriber there is no span to continue.
    spans_are_on();
    let numbers = Arc::new(Numbers::default());
    let (bus, topic) = a_traced_bus(&numbers).await;
    let own = HeaderName::new("own").unwrap();
    let message = || Message::new(topic.clone(), "x").with_header(own.clone(), "1");
    for len in [1, 3] {
        let _report = bus.publish(&vec![message(); len], PublishOptions::NONE).await?;
    }
    let mut reader = bus.subscribe(SubscribeRequest::new("g".parse()?, [topic.clone()])?).await?;
    let batch = reader.recv(100, Duration::from_secs(1)).await?;
    assert_eq!(batch.len(), 4);
    assert!(!batch.span().is_disabled());
    for received in &batch {
        assert_eq!(received.headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["own"]);
    }
    assert_eq!(*numbers.extracted.lock().unwrap(), [vec![0, 1]], "two publishes, each once");
    assert!(reader.recv(1, Duration::ZERO).await?.span().is_disabled(), "an empty batch has no span");
    Ok(())
}

#[tokio::test]
async fn headers_are_removed_without_a_tracing_subscriber() -> Result<()> {
    let _guard = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::new());
    let numbers = Arc::new(Numbers::default());
    let (bus, topic) = a_traced_bus(&numbers).await;
    let _report = bus.publish(&[Message::new(topic.clone(), "x")], PublishOptions::NONE).await?;
    let mut reader = bus.subscribe(SubscribeRequest::new("g".parse()?, [topic])?).await?;
    let batch = reader.recv(1, Duration::from_secs(1)).await?;
    assert!(batch.messages()[0].headers.is_empty());
    Ok(())
}
