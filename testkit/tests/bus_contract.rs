//! The contract of the message bus on the memory bus, in every wrapping.

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::Arguments;
use qi_testkit::bus::contract::{BusFactory, MemoryFactory, Wrapping, trials};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let memory: Arc<dyn BusFactory> = Arc::new(MemoryFactory);
    libtest_mimic::run(&arguments, trials(&memory, &Wrapping::every())).exit_code()
}
