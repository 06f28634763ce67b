//! The agents of the pipeline pass the agent contract suite, over a bus and a store in memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::ExitCode;
use std::sync::Arc;

use futures::FutureExt;
use libtest_mimic::{Arguments, run};
use qi_core::bus::{GroupId, MessageBusExt, SubscribeRequest, TopicCatalogue, TopicName};
use qi_core::{Ingest, IngestConfig, MessageBus, PriceStore, PriceTick};
use qi_examples::pipeline::Feed;
use qi_testkit::agent::{ClockMode, agent_contract, agent_contract_async};
use qi_testkit::bus::MemoryBus;
use qi_testkit::market::{Market, MarketConfig};
use qi_testkit::store::{MemoryStore, MemoryStoreConfig};

fn market() -> Market {
    Market::new(MarketConfig::new(1, 3).unwrap()).unwrap()
}

fn topic() -> TopicName {
    TopicName::new("crypto-prices").unwrap()
}

/// A bus with the topics and some ticks, and a store with its schema. In memory, these futures are ready immediately.
fn world() -> (Arc<dyn MessageBus>, Arc<dyn PriceStore>) {
    let bus: Arc<dyn MessageBus> = Arc::new(MemoryBus::default());
    let store: Arc<dyn PriceStore> = Arc::new(MemoryStore::new(MemoryStoreConfig::default()).unwrap());
    let catalogue = TopicCatalogue::standard().unwrap();
    bus.create_catalogue(&catalogue).now_or_never().unwrap().unwrap();
    store.ensure_schema().now_or_never().unwrap().unwrap();
    let ticks: Vec<PriceTick> = market().take(100).collect();
    bus.send_records(&ticks, None).now_or_never().unwrap().unwrap();
    (bus, store)
}

fn main() -> ExitCode {
    let mut trials = agent_contract_async(ClockMode::Paused, "writer", || {
        let (bus, store) = world();
        let request = SubscribeRequest::new(GroupId::new("writer").unwrap(), [topic()]).unwrap();
        Ingest::open(bus, store, PriceTick::DATASET, request, IngestConfig::default())
    });
    trials.extend(agent_contract("feed", || {
        let source = Box::new(market().take(5_000).map(Ok));
        Feed { bus: world().0, topic: topic(), source, counters: Arc::default(), strict: false }
    }));
    run(&Arguments::from_args(), trials).exit_code()
}
