//! Each faulty store is detected by the check that its mutant names.

use libtest_mimic::{Arguments, Trial};
use qi_testkit::store::mutants::mutants;

fn main() {
    let trials = mutants()
        .into_iter()
        .map(|mutant| {
            let name = format!("{} is detected by {}", mutant.name, mutant.detected_by);
            Trial::test(name, move || {
                let runtime =
                    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
                runtime.block_on(mutant.verify_detection()).map_err(|failure| failure.to_string().into())
            })
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}
