//! Random histories and schemas on real servers, compared with the plain model and with the memory store.

mod servers;
mod timescale_rig;

use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Trial};
use qi_testkit::presence;
use qi_testkit::store::contract::{MemoryFactory, StoreFactory, Wrapper};
use qi_testkit::store::model::{cases, check_differences, check_evolutions, check_histories};
use timescale_rig::Server;

fn main() {
    let mut trials = Vec::new();
    for server in [Server::timescale(), Server::postgres()] {
        let trial = |name: &str, run: fn(&Arc<dyn StoreFactory>) -> Result<(), String>| -> Trial {
            let (backend, absent) = (server.name().to_owned(), server.absent());
            let factory: Arc<dyn StoreFactory> = Arc::new(server.clone());
            presence::trial(format!("{backend}/{name}"), &backend, absent, move || {
                run(&factory)?;
                Ok(Completion::Completed)
            })
        };
        trials.push(trial("equals_the_model_over_random_histories", |server| {
            check_histories(server, Wrapper::PLAIN, cases(32)).map_err(|failure| failure.to_string())
        }));
        trials.push(trial("random_schema_evolutions_succeed", |server| {
            check_evolutions(server, cases(12)).map_err(|failure| failure.to_string())
        }));
        trials.push(trial("pages_and_cursors_equal_the_memory_store", |server| {
            let memory: Arc<dyn StoreFactory> = Arc::new(MemoryFactory);
            check_differences(server, &memory, cases(32)).map_err(|failure| failure.to_string())
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}
