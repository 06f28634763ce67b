//! Agents in a tight loop of memory calls that are always ready. Other tasks still run, and a stop takes effect. The
//! tests use real time, because a paused clock does not advance while a task is always ready.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use qi_core::agent::{AgentRuntime, AgentSpec, Termination, agent_fn};
use qi_core::bus::{Message, MessageBus, MessageBusExt, TopicName, TopicSpec};
use qi_core::store::InstrumentQuery;
use qi_core::{PriceStore, PriceStoreExt, PriceTick, Result};
use qi_testkit::bus::MemoryBus;
use qi_testkit::store::{MemoryStore, MemoryStoreConfig};

const STOP: Duration = Duration::from_millis(200);

/// Runs `work` in a loop that never checks for cancellation, on one thread with a task that counts its turns.
async fn tight_loop<F: Future<Output = Result<()>> + Send>(
    work: impl Fn() -> F + Clone + Send + Sync + 'static,
) {
    let turns = Arc::new(AtomicU64::new(0));
    let other = tokio::spawn({
        let turns = turns.clone();
        async move {
            loop {
                turns.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }
    });
    let spec = AgentSpec::new("busy", move || {
        let work = work.clone();
        agent_fn(move |_cx| {
            let work = work.clone();
            async move {
                loop {
                    work().await?;
                }
            }
        })
    });
    let runtime = AgentRuntime::builder().agent(spec.stop_timeout(STOP)).build().unwrap();
    let since = Instant::now();
    let report = runtime.run_until(tokio::time::sleep(STOP)).await;
    other.abort();
    assert_eq!(report.agent("busy").unwrap().termination, Termination::Forced, "it never ended by itself");
    assert!(since.elapsed() < 20 * STOP, "the stop was seen late: {:?}", since.elapsed());
    assert!(turns.load(Ordering::Relaxed) > 10, "the other task starved");
}

#[tokio::test]
async fn tight_loop_over_the_store_yields_and_can_be_stopped() {
    let store = Arc::new(MemoryStore::new(MemoryStoreConfig::default()).unwrap());
    store.ensure_schema().await.unwrap();
    tight_loop(move || {
        let store = store.clone();
        async move { store.instruments(&InstrumentQuery::new(PriceTick::DATASET)).await.map(drop) }
    })
    .await;
}

#[tokio::test]
async fn tight_loop_over_the_bus_yields_and_can_be_stopped() {
    let (bus, topic) = (Arc::new(MemoryBus::default()), TopicName::new("t").unwrap());
    bus.create_topics(&[TopicSpec::new(topic.clone(), 1).unwrap()]).await.unwrap();
    tight_loop(move || {
        let (bus, message) = (bus.clone(), Message::new(topic.clone(), "x"));
        async move { bus.publish_one(&message).await.map(drop) }
    })
    .await;
}
