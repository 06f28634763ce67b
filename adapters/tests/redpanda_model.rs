//! The same random histories in memory and on real brokers have the same results.

mod redpanda_rig;
mod servers;

use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Trial};
use qi_testkit::bus::contract::{BusFactory, Timing};
use qi_testkit::bus::model::check_traces;
use qi_testkit::presence;
use redpanda_rig::Brokers;

fn main() {
    let brokers: Arc<dyn BusFactory> = Arc::new(Brokers::redpanda().with_long_timeout());
    let name = "redpanda/equals_the_memory_bus_over_64_histories".to_owned();
    let compared = presence::trial(name, "redpanda", brokers.absent(), move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime
            .block_on(check_traces(brokers, 64, 16, extend_timing))
            .map_err(|failure| failure.to_string())?;
        Ok(Completion::Completed)
    });
    let trials: Vec<Trial> = vec![compared];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

/// Returns timing in which dead members are removed soon, and members that take turns may be silent for a long time.
fn extend_timing(timing: Timing) -> Timing {
    Timing { session_timeout: Duration::from_secs(5), max_poll_interval: Duration::from_mins(3), ..timing }
}
