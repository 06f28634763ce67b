//! The fixtures of the tests: a store, a bus, and records at seconds after a start time.

use std::sync::Arc;
use std::time::Duration;

use qi_core::bus::TopicCatalogue;
use qi_core::layer::Layered;
use qi_core::{
    Bar, BarValues, Clock, Exchange, Instrument, Interval, MarketSnapshot, MessageBus, MessageBusExt,
    PriceStore, PriceTick, Quote, QuoteValues, Scope, SnapshotValues, Symbol, Timestamp,
};
use qi_examples::market::MarketReader;
use qi_testkit::ManualClock;
use qi_testkit::bus::{MemoryBus, MemoryBusConfig};
use qi_testkit::chaos::Chaos;
use qi_testkit::store::MemoryStore;

pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// 2024-01-01T00:00:00Z.
const BEGINNING: i64 = 1_704_067_200;

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_secs(BEGINNING + seconds).unwrap()
}

pub(crate) fn symbol(name: &str) -> Symbol {
    name.parse().unwrap()
}

pub(crate) fn instrument(name: &str) -> Instrument {
    name.parse().unwrap()
}

pub(crate) fn exchanges() -> [Exchange; 2] {
    ["binance", "kraken"].map(|name| name.parse().unwrap())
}

pub(crate) fn tick(name: &str, seconds: i64, seq: u64, price: &str) -> PriceTick {
    PriceTick::new(instrument(name), at(seconds), seq, price.parse().unwrap()).unwrap()
}

pub(crate) fn bar(name: &str, minute: i64, close: &str) -> Bar {
    let values = BarValues::flat(close.parse().unwrap());
    Bar::new(instrument(name), Interval::M1, at(60 * minute), values).unwrap()
}

pub(crate) fn quote(name: &str, seconds: i64, bid: &str, ask: &str) -> Quote {
    let values =
        QuoteValues { bid_price: bid.parse().ok(), ask_price: ask.parse().ok(), ..Default::default() };
    Quote::new(instrument(name), at(seconds), 0, values).unwrap()
}

pub(crate) fn snapshot(scope: Scope, seconds: i64, markets: u64) -> MarketSnapshot {
    let values = SnapshotValues { markets: Some(markets), ..Default::default() };
    MarketSnapshot::new(scope, at(seconds), values).unwrap()
}

/// Returns a store with its schema and a layer that injects faults on request.
pub(crate) async fn store() -> (Arc<dyn PriceStore>, Chaos) {
    let chaos = Chaos::seeded(1);
    let store: Arc<dyn PriceStore> = Arc::new(Layered::new(MemoryStore::default(), chaos.clone()));
    store.ensure_schema().await.unwrap();
    (store, chaos)
}

/// Returns a reader of binance and kraken, an hour after the start.
pub(crate) fn reader(store: &Arc<dyn PriceStore>) -> MarketReader {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(at(3_600)));
    MarketReader::new(Arc::clone(store), exchanges()).unwrap().with_clock(clock)
}

/// Returns a bus with the topics of the catalogue and a layer that injects faults on request.
pub(crate) async fn bus() -> (Arc<dyn MessageBus>, Chaos) {
    let (bus, chaos) = bare_bus();
    bus.create_catalogue(&TopicCatalogue::standard().unwrap()).await.unwrap();
    (bus, chaos)
}

/// Returns a bus without topics.
pub(crate) fn bare_bus() -> (Arc<dyn MessageBus>, Chaos) {
    let chaos = Chaos::seeded(1);
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(at(0)));
    let bus = MemoryBus::new(MemoryBusConfig::default(), clock).unwrap();
    (Arc::new(Layered::new(bus, chaos.clone())), chaos)
}
