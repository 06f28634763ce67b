//! The bus under the full stack on real brokers while a third of all calls fails. No message is lost, and every
//! duplicate had an unknown outcome and is counted. The contract runs under the same conditions, on the brokers of
//! `QI_KAFKA_BROKERS`.

mod redpanda_rig;
mod servers;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed};
use qi_adapters::redpanda::RedpandaBus;
use qi_core::MessageBus;
use qi_core::bus::{TopicName, TopicSpec};
use qi_testkit::bus::contract::{BusFactory, Wrapper, stress_test, trials};
use qi_testkit::presence;
use redpanda_rig::Brokers;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Most of the time of a trial is spent waiting for brokers.
    arguments.test_threads = arguments.test_threads.or(Some(20));
    let brokers = Brokers::redpanda();
    let factory: Arc<dyn BusFactory> = Arc::new(brokers.clone());
    // This trial closes the bus during a single call. If a fault holds back a part of that call, the part is not in
    // flight, and `close` has nothing to drain.
    let of_one_call = |name: &str| name.ends_with("lifecycle::close_waits_for_pending_publishes");
    let all = trials(&factory, &[Wrapper::FULL_STACK_OVER_CHAOS, Wrapper::FULL_STACK_OVER_LOST_RESPONSES])
        .into_iter();
    let mut all: Vec<_> = all
        .map(|trial| {
            let ignored = of_one_call(trial.name());
            trial.with_ignored_flag(ignored)
        })
        .collect();
    let absent = brokers.absent();
    let name = "redpanda/storm::no_message_is_lost_and_duplicates_were_unknown".to_owned();
    all.push(presence::trial(name, "redpanda", absent, move || publish_storm(&brokers)));
    libtest_mimic::run(&arguments, all).exit_code()
}

fn publish_storm(brokers: &Brokers) -> Result<Completion, Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut config = brokers.config();
        // A hanging publish ends after twice this time plus the limit.
        config.delivery_timeout = Duration::from_secs(3);
        let bus: Arc<dyn MessageBus> = Arc::new(RedpandaBus::open(config)?);
        let name = servers::namespace();
        let topic = TopicName::new(&name)?;
        for outcome in bus.create_topics(&[TopicSpec::new(topic.clone(), 6)?]).await? {
            outcome.result?;
        }
        let limit = Duration::from_secs(3);
        let report = stress_test(bus.clone(), &topic, name.parse()?, 2_000, 7, limit).await;
        let _deleted = bus.delete_topics(&[topic]).await?;
        bus.close().await?;
        let report = report?;
        if report.duplicates > 0 && report.duplicates <= report.unknown {
            return Ok(Completion::Completed);
        }
        Err(format!("the stress test produced no duplicate, or more than its unknown messages: {report}")
            .into())
    })
}
