//! A load at a fixed rate: the delay from publish to readable, and the backlog after a minute.

use std::sync::Arc;
use std::time::{Duration, Instant};

use qi_core::PriceTick;
use qi_core::bus::{Encoding, MessageBus, MessageBusExt as _, TopicName, encode_records};
use qi_core::record::Slice;
use qi_testkit::market::{Market, MarketConfig};
use tokio::task::JoinSet;

use crate::{Running, Setup, create, databases, topic, variable};

/// The time between two publishes.
const PERIOD: Duration = Duration::from_millis(2);
/// The time for joining the group, before the load begins.
const JOIN: Duration = Duration::from_secs(5);
const SUSTAINED: usize = 100_000;
const SUSTAINED_SECONDS: usize = 60;

/// Publishes ticks at a rate, from the time of the call on. Returns the times of publishing.
async fn publish(
    bus: &Arc<dyn MessageBus>,
    topic: &TopicName,
    rate: usize,
    ticks: impl Iterator<Item = PriceTick>,
) -> Vec<Instant> {
    let each = rate * usize::try_from(PERIOD.as_micros()).expect("a short time") / 1_000_000;
    let (mut ticks, mut published, mut sends) = (ticks.peekable(), Vec::new(), JoinSet::new());
    let mut interval = tokio::time::interval(PERIOD);
    while ticks.peek().is_some() {
        interval.tick().await;
        let chunk: Vec<_> = ticks.by_ref().take(each).collect();
        let records = Slice::new(&chunk).expect("valid ticks");
        let batch = encode_records(&Encoding::Protobuf, &records, Some(topic)).expect("messages");
        published.resize(published.len() + chunk.len(), Instant::now());
        let bus = bus.clone();
        sends.spawn(async move { bus.send(&batch).await.expect("brokers that answer") });
        while sends.try_join_next().is_some() {}
    }
    sends.join_all().await;
    published
}

/// Returns the delays of the ticks in the order of publishing. The topic has one partition, so the order of storing is
/// the order of publishing.
async fn delays(
    bus: Arc<dyn MessageBus>,
    running: &Running,
    topic: &TopicName,
    rate: usize,
    ticks: &[PriceTick],
) -> Vec<Duration> {
    let (progress, count) = (running.progress.clone(), ticks.len());
    let watcher = std::thread::spawn(move || {
        let mut stored = Vec::with_capacity(count);
        while stored.len() < count {
            let known = usize::try_from(progress.stored()).expect("a count");
            stored.resize(known.max(stored.len()), Instant::now());
            std::thread::sleep(Duration::from_micros(100));
        }
        stored
    });
    let published = publish(&bus, topic, rate, ticks.iter().cloned()).await;
    let stored = tokio::task::spawn_blocking(|| watcher.join().expect("no panic")).await.expect("no panic");
    stored.into_iter().zip(published).map(|(stored, published)| stored - published).collect()
}

/// Prints the delay from publish to readable.
pub(crate) fn delay(setup: &Setup) {
    let Some(brokers) = variable("QI_KAFKA_BROKERS") else {
        return println!("delay: QI_KAFKA_BROKERS is not set, so nothing was measured");
    };
    for (database, url) in databases() {
        for rate in [1_000, 10_000] {
            let bus = setup.bus(&brokers);
            let delays = setup.block_on(async {
                let topic = topic(&*bus, 1).await;
                let running = Running::start(bus.clone(), create(database, &url).await, &topic).await;
                tokio::time::sleep(JOIN).await;
                let delays = delays(bus.clone(), &running, &topic, rate, &setup.ticks[..rate * 22]).await;
                running.stop().await;
                let _ = bus.delete_topics(&[topic]).await;
                delays
            });
            for (phase, part) in [("first second", 0..rate), ("after 2 s", rate * 2..delays.len())] {
                let mut part = delays[part].to_vec();
                part.sort_unstable();
                let at = |percent: usize| part[(part.len() - 1) * percent / 100].as_secs_f64() * 1e3;
                println!(
                    "{database}, {rate} ticks/s, {phase}: p50 {:.1} ms, p99 {:.1} ms, maximum {:.1} ms",
                    at(50),
                    at(99),
                    at(100)
                );
            }
        }
    }
}

/// Prints the backlog while a high rate is published for a minute.
pub(crate) fn sustained(setup: &Setup) {
    let Some(brokers) = variable("QI_KAFKA_BROKERS") else {
        return println!("sustained: QI_KAFKA_BROKERS is not set, so nothing was measured");
    };
    for (database, url) in databases() {
        let bus = setup.bus(&brokers);
        setup.block_on(async {
            let topic = topic(&*bus, crate::PARTITIONS).await;
            let running = Running::start(bus.clone(), create(database, &url).await, &topic).await;
            tokio::time::sleep(JOIN).await;
            let market = Market::new(MarketConfig::new(2, 100).expect("a hundred instruments"));
            let count = SUSTAINED * SUSTAINED_SECONDS;
            let ticks = market.expect("a market").take(count);
            let (began, progress) = (Instant::now(), running.progress.clone());
            let load = {
                let (bus, topic) = (bus.clone(), topic.clone());
                tokio::spawn(async move { publish(&bus, &topic, SUSTAINED, ticks).await })
            };
            let mut behind = Vec::new();
            while !load.is_finished() {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let due = began.elapsed().as_secs_f64() * SUSTAINED as f64;
                behind.push(due.min(count as f64) - progress.stored() as f64);
            }
            let published = began.elapsed();
            load.await.expect("no panic");
            running.stored(count).await;
            let stored = began.elapsed();
            let middle = behind.len() / 2;
            let most = |part: &[f64]| part.iter().copied().fold(0.0, f64::max);
            println!(
                "{database}: {SUSTAINED} ticks/s for {SUSTAINED_SECONDS} s: published in {:.1} s, stored in {:.1} s, \
                 {:.0} ticks/s; largest backlog {:.0} ticks in the first half, {:.0} in the second half",
                published.as_secs_f64(),
                stored.as_secs_f64(),
                count as f64 / stored.as_secs_f64(),
                most(&behind[..middle]),
                most(&behind[middle..])
            );
            running.stop().await;
            let _ = bus.delete_topics(&[topic]).await;
        });
    }
}
