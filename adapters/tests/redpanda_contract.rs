//! The contract of the message bus on real brokers: the brokers of `QI_KAFKA_BROKERS`.

mod redpanda_rig;
mod servers;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::Arguments;
use qi_testkit::bus::contract::{BusFactory, Wrapper, trials};
use redpanda_rig::Brokers;
use servers::with_long_tests;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Most of the time of a trial is spent waiting for brokers.
    arguments.test_threads = arguments.test_threads.or(Some(12));
    let brokers: Arc<dyn BusFactory> = Arc::new(Brokers::redpanda());
    let wrappers = with_long_tests([Wrapper::FULL_STACK], [Wrapper::PLAIN, Wrapper::ARC_DYN]);
    libtest_mimic::run(&arguments, trials(&brokers, &wrappers)).exit_code()
}
