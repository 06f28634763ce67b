//! `Duration::MAX` is a valid duration: no function that accepts a duration panics.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use qi_core::agent::{AgentContext, AgentRuntime, AgentSpec, AgentStatus, Backoff, RestartPolicy, agent_fn};
use qi_core::bus::{GroupId, Message, MessageBusExt, SubscribeRequest, TopicCatalogue, TopicName};
use qi_core::health::HealthChecker;
use qi_core::layer::{LayerStack, Layered, RetryConfig, TimeoutConfig};
use qi_core::{
    Buffered, BufferedConfig, Error, ErrorKind, MessageBus, Operation, PriceStore, PriceStoreExt, PriceTick,
};
use qi_testkit::bus::MemoryBus;
use qi_testkit::chaos::{Chaos, Fault};
use qi_testkit::market::{Market, MarketConfig};
use qi_testkit::store::MemoryStore;
use tokio::time::{sleep, timeout};

const MAX: Duration = Duration::MAX;

fn tick() -> PriceTick {
    Market::new(MarketConfig::new(1, 1).unwrap()).unwrap().next().unwrap()
}

#[tokio::test(start_paused = true)]
async fn wait_ready_accepts_the_longest_duration() {
    let chaos = Chaos::seeded(1);
    chaos.inject_next(Operation::StorePing, Fault::Error);
    let store = Layered::new(MemoryStore::default(), chaos);
    store.wait_ready(MAX).await.unwrap();
    MemoryBus::default().wait_ready(MAX).await.unwrap();
    let health =
        HealthChecker::new().store("store", Arc::new(MemoryStore::default())).timeout(MAX).max_age(MAX);
    assert!(health.check().await.ready);
}

#[tokio::test(start_paused = true)]
async fn layers_accept_the_longest_durations() {
    let chaos = Chaos::seeded(1);
    let failing = Layered::new(MemoryStore::default(), chaos.clone());
    let stack = LayerStack::default()
        .with_retry(
            RetryConfig::default()
                .with_backoff(Backoff::new(Duration::from_millis(1), MAX).with_factor(1.0))
                .with_max_elapsed(MAX),
        )
        .with_timeout(TimeoutConfig::default().with_call(MAX).with_bulk(MAX));
    let store = stack.wrap_store(failing);
    store.ensure_schema().await.unwrap();
    chaos.inject_next(Operation::Insert, Fault::Error);
    store.insert_ticks(&[tick()]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn buffer_accepts_the_longest_durations() {
    let store: Arc<dyn PriceStore> = Arc::new(MemoryStore::default());
    store.ensure_schema().await.unwrap();
    let config = BufferedConfig::default().with_max_delay(MAX);
    let buffer = Buffered::new(store, config).unwrap();
    let receipt = buffer.add(tick()).await.unwrap();
    buffer.flush(MAX).await.unwrap();
    receipt.await.unwrap();
    buffer.close(MAX).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn subscription_accepts_the_longest_wait() {
    let bus = Arc::new(MemoryBus::default());
    bus.create_catalogue(&TopicCatalogue::standard().unwrap()).await.unwrap();
    let topic = TopicName::new("crypto-prices").unwrap();
    let request = SubscribeRequest::new(GroupId::new("g").unwrap(), [topic.clone()]).unwrap();
    let mut subscription = bus.subscribe(request.with_timeouts(MAX, MAX).unwrap()).await.unwrap();
    let publisher = bus.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(5)).await;
        publisher.publish_one(&Message::new(topic, "x")).await.unwrap();
    });
    let mut found = 0;
    while found == 0 {
        found = subscription.recv(10, MAX).await.unwrap().len();
    }
    subscription.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn agents_accept_the_longest_durations() {
    let run = |cx: AgentContext| async move {
        if cx.incarnation() == 1 {
            return Err(Error::new(ErrorKind::Unavailable, "test.once", "run"));
        }
        cx.sleep(MAX).await;
        Ok(())
    };
    let policy = RestartPolicy::default()
        .with_backoff(Backoff::new(Duration::from_millis(1), MAX).with_factor(1.0))
        .with_stable_after(MAX);
    let spec = AgentSpec::new("a", move || agent_fn(run))
        .init_timeout(MAX)
        .stop_timeout(MAX)
        .cleanup_timeout(MAX)
        .watchdog(MAX)
        .restart(policy);
    let runtime =
        AgentRuntime::builder().agent(spec).shutdown_deadline(MAX).cleanup_reserve(Duration::from_secs(1));
    let runtime = runtime.build().unwrap();
    let handle = runtime.handle();
    let second = async {
        let second =
            |s: &qi_core::agent::AgentSnapshot| s.incarnation == 2 && s.status == AgentStatus::Running;
        timeout(MAX, handle.wait_for("a", second)).await.unwrap().unwrap();
    };
    runtime.run_until(second).await.result().unwrap();
}
