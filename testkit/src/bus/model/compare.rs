//! Comparison of the same histories on the memory bus and on another bus.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, StreamExt};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use qi_core::bus::TopicPartition;
use qi_core::{Result, Timestamp};

use super::{Step, Trace, histories, trace};
use crate::bus::contract::{BusEnv, BusFactory, Client, Failure, MemoryFactory, Timing, Verdict};

/// The largest number of steps of a history.
const LENGTH: usize = 40;

/// Draws `count` histories with a fixed seed and runs each one in memory and on the brokers of `factory`.
/// Runs `at_once` histories concurrently, because they mostly wait. On the brokers, `pace` replaces the
/// timing of the environment.
///
/// # Errors
/// A history with different results on the two buses, and the first difference.
pub async fn check_traces(
    factory: Arc<dyn BusFactory>,
    count: usize,
    at_once: usize,
    pace: fn(Timing) -> Timing,
) -> Verdict {
    let mut random =
        TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let all = histories(LENGTH);
    let mut drawn = Vec::with_capacity(count);
    for _ in 0..count {
        drawn.push(all.new_tree(&mut random).map_err(Failure::new)?.current());
    }
    let mut running = stream::iter(drawn)
        .map(|history| {
            let factory = factory.clone();
            async move {
                compare(&*factory, history.clone(), pace).await.map_err(|failure| {
                    let steps: Vec<_> =
                        history.iter().enumerate().map(|(n, step)| format!("  {n}: {step:?}")).collect();
                    Failure::new(format_args!("{failure}\nin the history\n{}", steps.join("\n")))
                })
            }
        })
        .buffer_unordered(at_once);
    while let Some(verdict) = running.next().await {
        verdict?;
    }
    Ok(())
}

async fn compare(factory: &dyn BusFactory, history: Vec<Step>, pace: fn(Timing) -> Timing) -> Verdict {
    let env = factory.fresh().await?;
    let (prefix, stamp) = (env.prefix().to_owned(), env.now());
    let timing = pace(env.timing());
    let there = Place { env, prefix: prefix.clone(), timing };
    let found = trace(&there, &history, stamp).await;
    there.tear_down().await?;
    let wanted = tokio::task::spawn_blocking(move || in_memory(&history, prefix, stamp));
    let wanted = wanted.await.map_err(Failure::new)??;
    let found = found?;
    if found == wanted { Ok(()) } else { Err(difference(&found, &wanted)) }
}

fn in_memory(history: &[Step], prefix: String, stamp: Timestamp) -> Verdict<Trace> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.map_err(Failure::new)?.block_on(async {
        let env = MemoryFactory.fresh().await?;
        let timing = env.timing();
        trace(&Place { env, prefix, timing }, history, stamp).await
    })
}

/// Describes only the first difference, because the complete traces are long.
fn difference(found: &Trace, wanted: &Trace) -> Failure {
    if found.errors != wanted.errors {
        return Failure::new(format_args!("errors {:?}, in memory {:?}", found.errors, wanted.errors));
    }
    if found.committed != wanted.committed {
        return Failure::new(format_args!("commits {:?}, in memory {:?}", found.committed, wanted.committed));
    }
    let keys = wanted.received.keys().chain(found.received.keys());
    let mut differs = keys.filter(|key| found.received.get(key) != wanted.received.get(key));
    match differs.next() {
        Some(key) => Failure::new(format_args!(
            "of {key:?} came {:#?}, in memory {:#?}",
            found.received.get(key),
            wanted.received.get(key)
        )),
        None => Failure::new("what is equal is called different"),
    }
}

/// An environment with another prefix and another timing.
#[derive(Debug)]
struct Place {
    env: Box<dyn BusEnv>,
    prefix: String,
    timing: Timing,
}

#[async_trait]
impl BusEnv for Place {
    fn prefix(&self) -> &str {
        &self.prefix
    }
    async fn connect(&self) -> Result<Client> {
        self.env.connect().await
    }
    async fn connect_small(&self, bytes: usize) -> Result<Client> {
        self.env.connect_small(bytes).await
    }
    async fn trim(&self, partition: &TopicPartition, offset: u64) -> Result<()> {
        self.env.trim(partition, offset).await
    }
    fn now(&self) -> Timestamp {
        self.env.now()
    }
    fn timing(&self) -> Timing {
        self.timing
    }
    async fn tear_down(&self) -> Result<()> {
        self.env.tear_down().await
    }
}
