//! Comparison of the same histories on the memory bus and on another bus.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, StreamExt};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use qi_core::bus::TopicPartition;
use qi_core::{Result, Timestamp};

use super::{Step, Trace, histories, trace};
use crate::bus::contract::{BusEnv, BusFactory, CheckResult, Client, Failure, MemoryFactory, Timing};

/// The largest number of steps of a history.
const LENGTH: usize = 40;

/// Draws `count` histories with a fixed seed and runs each one in memory and on the brokers of `factory`.
/// Runs `concurrency` histories concurrently, because they mostly wait. On the brokers, `adjust_timing` replaces the
/// timing of the environment.
///
/// # Errors
/// A history with different results on the two buses, and the first difference.
pub async fn check_traces(
    factory: Arc<dyn BusFactory>,
    count: usize,
    concurrency: usize,
    adjust_timing: fn(Timing) -> Timing,
) -> CheckResult {
    let mut random =
        TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let all = histories(LENGTH);
    let mut generated = Vec::with_capacity(count);
    for _ in 0..count {
        generated.push(all.new_tree(&mut random).map_err(Failure::new)?.current());
    }
    let mut running = stream::iter(generated)
        .map(|history| {
            let factory = factory.clone();
            async move {
                compare(&*factory, history.clone(), adjust_timing).await.map_err(|failure| {
                    let steps: Vec<_> =
                        history.iter().enumerate().map(|(n, step)| format!("  {n}: {step:?}")).collect();
                    Failure::new(format_args!("{failure}\nin the history\n{}", steps.join("\n")))
                })
            }
        })
        .buffer_unordered(concurrency);
    while let Some(verdict) = running.next().await {
        verdict?;
    }
    Ok(())
}

async fn compare(
    factory: &dyn BusFactory,
    history: Vec<Step>,
    adjust_timing: fn(Timing) -> Timing,
) -> CheckResult {
    let env = factory.create_env().await?;
    let (prefix, time) = (env.prefix().to_owned(), env.now());
    let timing = adjust_timing(env.timing());
    let remote = EnvOverride { env, prefix: prefix.clone(), timing };
    let found = trace(&remote, &history, time).await;
    remote.tear_down().await?;
    let wanted = tokio::task::spawn_blocking(move || in_memory(&history, prefix, time));
    let wanted = wanted.await.map_err(Failure::new)??;
    let found = found?;
    if found == wanted { Ok(()) } else { Err(difference(&found, &wanted)) }
}

fn in_memory(history: &[Step], prefix: String, time: Timestamp) -> CheckResult<Trace> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.map_err(Failure::new)?.block_on(async {
        let env = MemoryFactory.create_env().await?;
        let timing = env.timing();
        trace(&EnvOverride { env, prefix, timing }, history, time).await
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
            "received for {key:?}: {:#?}, in memory {:#?}",
            found.received.get(key),
            wanted.received.get(key)
        )),
        None => Failure::new("the traces differ without a known difference"),
    }
}

/// An environment with another prefix and another timing.
#[derive(Debug)]
struct EnvOverride {
    env: Box<dyn BusEnv>,
    prefix: String,
    timing: Timing,
}

#[async_trait]
impl BusEnv for EnvOverride {
    fn prefix(&self) -> &str {
        &self.prefix
    }
    async fn connect(&self) -> Result<Client> {
        self.env.connect().await
    }
    async fn connect_with_capacity(&self, bytes: usize) -> Result<Client> {
        self.env.connect_with_capacity(bytes).await
    }
    async fn delete_records(&self, partition: &TopicPartition, offset: u64) -> Result<()> {
        self.env.delete_records(partition, offset).await
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
