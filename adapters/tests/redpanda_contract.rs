//! The contract of the message bus on real brokers: the brokers of `QI_KAFKA_BROKERS`.

mod redpanda_rig;
mod servers;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::Arguments;
use qi_testkit::bus::contract::{BusFactory, Wrapping, trials};
use redpanda_rig::Brokers;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Most of the time of a trial is spent waiting for brokers.
    arguments.test_threads = arguments.test_threads.or(Some(8));
    let brokers: Arc<dyn BusFactory> = Arc::new(Brokers::redpanda());
    libtest_mimic::run(
        &arguments,
        trials(&brokers, &[Wrapping::PLAIN, Wrapping::ARC_DYN, Wrapping::FULL_STACK]),
    )
    .exit_code()
}
