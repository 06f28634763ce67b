//! The contract of the message bus on the memory bus, in every wrapper.

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::Arguments;
use qi_testkit::bus::contract::{BusFactory, MemoryFactory, Wrapper, resent, trials};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let memory: Arc<dyn BusFactory> = Arc::new(MemoryFactory);
    let conclusion = libtest_mimic::run(&arguments, trials(&memory, &Wrapper::every()));
    if arguments.list {
        return conclusion.exit_code();
    }
    let (unknown, duplicates) = resent();
    println!("{unknown} unknown messages were resent, {duplicates} duplicates were found");
    // Without duplicates, the wrappers with lost responses and hangs prove nothing.
    if conclusion.num_filtered_out == 0 && (unknown == 0 || duplicates == 0) {
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
