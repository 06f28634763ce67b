//! Random histories on the memory bus, compared with the model, and faulty buses that the model must detect.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use async_trait::async_trait;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use qi_core::bus::TopicPartition;
use qi_core::{Result, Timestamp};
use qi_testkit::bus::contract::{BusEnv, BusFactory, CheckResult, Client, MemoryFactory, Timing, Wrapper};
use qi_testkit::bus::model::{histories, run_history, trace};
use qi_testkit::bus::mutants::MUTANTS;

fn on_paused_time(work: impl Future<Output = CheckResult>) -> Result<(), TestCaseError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(work).map_err(|failure| TestCaseError::fail(failure.to_string()))
}

fn config(cases: u32, max_shrink_iters: u32) -> Config {
    Config { cases, max_shrink_iters, failure_persistence: None, ..Config::default() }
}

#[test]
fn every_response_is_allowed_by_the_model() {
    let outcome = TestRunner::new(config(2_000, 10_000)).run(&histories(80), |history| {
        on_paused_time(async {
            let env = MemoryFactory.create_env().await?;
            run_history(&*env, &history).await
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

proptest! {
    #![proptest_config(config(100, 1_000))]

    #[test]
    fn history_has_the_same_results_on_two_buses(history in histories(60)) {
        on_paused_time(async {
            let (one, two) = (MemoryFactory.create_env().await?, MemoryFactory.create_env().await?);
            let stamp = one.now();
            let (one, two) = (trace(&*one, &history, stamp).await?, trace(&*two, &history, stamp).await?);
            assert_eq!(one, two);
            Ok(())
        })?;
    }
}

/// An environment of the memory bus in which every client has a fault.
#[derive(Debug)]
struct BrokenEnv(Box<dyn BusEnv>, Wrapper);

#[async_trait]
impl BusEnv for BrokenEnv {
    fn prefix(&self) -> &str {
        self.0.prefix()
    }
    async fn connect(&self) -> Result<Client> {
        let client = self.0.connect().await?;
        Ok(Client { bus: (self.1.wrap)(client.bus), connection: client.connection })
    }
    async fn connect_with_capacity(&self, bytes: usize) -> Result<Client> {
        self.0.connect_with_capacity(bytes).await
    }
    async fn delete_records(&self, partition: &TopicPartition, offset: u64) -> Result<()> {
        self.0.delete_records(partition, offset).await
    }
    fn now(&self) -> Timestamp {
        self.0.now()
    }
    fn timing(&self) -> Timing {
        self.0.timing()
    }
    async fn tear_down(&self) -> Result<()> {
        self.0.tear_down().await
    }
}

#[test]
fn model_detects_faulty_buses() {
    let unseen: Vec<_> = [
        "forgets_commits",
        "accepts_a_commit_above_the_position",
        "hides_lost_partitions_of_a_commit",
        "commits_messages_in_recv",
        "reorders_within_a_batch",
        "loses_the_last_message_of_a_batch",
        "sends_a_message_twice",
        "duplicates_a_message_after_a_rebalance",
        "delivers_buffered_messages_of_a_lost_partition",
        "delivers_a_tombstone_as_an_empty_payload",
        "ignores_a_pause",
        "pauses_every_partition",
        "returns_more_than_max_messages",
        "seeks_one_offset_too_far",
        "reports_a_lag_that_is_one_too_high",
        "hides_resets",
        "hides_an_exceeded_max_poll_interval",
        "hides_assignment_changes",
        "hides_the_deletion_of_the_last_topic",
    ]
    .into_iter()
    .filter(|name| {
        let Some(mutant) = MUTANTS.iter().find(|mutant| mutant.name == *name) else { return true };
        let outcome = TestRunner::new(config(1_000, 0)).run(&histories(80), |history| {
            on_paused_time(async {
                let env = BrokenEnv(MemoryFactory.create_env().await?, mutant.wrapper);
                run_history(&env, &history).await
            })
        });
        outcome.is_ok()
    })
    .collect();
    assert!(unseen.is_empty(), "the model does not detect {unseen:?}");
}
