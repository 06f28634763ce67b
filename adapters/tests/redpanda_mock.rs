//! The adapter on librdkafka's mock cluster, which needs nothing installed: what of the contract the mock can do (the
//! rest is shown as ignored, with the reason), and every error that it can inject.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod redpanda_rig;
mod servers;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::Arguments;
use qi_testkit::bus::contract::{BusFactory, Wrapping, trials};
use redpanda_rig::mock::MockFactory;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Most of a trial is waiting for joins.
    arguments.test_threads = arguments.test_threads.or(Some(8));
    let mock: Arc<dyn BusFactory> = Arc::new(MockFactory);
    libtest_mimic::run(&arguments, trials(&mock, &[Wrapping::PLAIN])).exit_code()
}
