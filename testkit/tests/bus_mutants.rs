//! Every broken bus fails the check that is meant for it, and the sound bus passes that check.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use qi_testkit::bus::contract::{Check, MemoryFactory, Wrapping, checks, run_check};
use qi_testkit::bus::mutants::{MUTANTS, Mutant};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = MUTANTS
        .iter()
        .map(|mutant| {
            Trial::test(format!("{}/caught_by/{}", mutant.name, mutant.caught_by), || is_caught(mutant))
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn is_caught(mutant: &Mutant) -> Result<(), Failed> {
    let check = named(mutant.caught_by)?;
    run_check(&MemoryFactory, Wrapping::PLAIN, &check)
        .map_err(|failure| Failed::from(format!("the sound bus fails too: {failure}")))?;
    match run_check(&MemoryFactory, mutant.wrapping, &check) {
        Ok(()) => Err(Failed::from("nobody noticed")),
        Err(_) => Ok(()),
    }
}

fn named(name: &str) -> Result<Check, Failed> {
    checks()
        .into_iter()
        .find(|check| check.name == name)
        .ok_or_else(|| format!("no check is called {name}").into())
}
