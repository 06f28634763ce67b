//! Random histories on the memory bus, held against the model.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use qi_testkit::bus::contract::{BusFactory, MemoryFactory, Verdict};
use qi_testkit::bus::model::{follow, histories, trace};

fn on_paused_time(work: impl Future<Output = Verdict>) -> Result<(), TestCaseError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(work).map_err(|failure| TestCaseError::fail(failure.to_string()))
}

#[test]
fn every_answer_is_one_that_the_model_allows() {
    let mut runner = TestRunner::new(Config { cases: 400, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&histories(80), |history| {
        on_paused_time(async {
            let env = MemoryFactory.fresh().await?;
            follow(&*env, &history).await
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_history_leaves_the_same_behind_on_two_buses(history in histories(60)) {
        on_paused_time(async {
            let (one, two) = (MemoryFactory.fresh().await?, MemoryFactory.fresh().await?);
            let stamp = one.now();
            let (one, two) = (trace(&*one, &history, stamp).await?, trace(&*two, &history, stamp).await?);
            assert_eq!(one, two);
            Ok(())
        })?;
    }
}
