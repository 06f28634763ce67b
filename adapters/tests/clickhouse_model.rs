//! Random histories and schemas on a real server, compared with the plain model and with the memory store.

mod clickhouse_rig;
mod servers;

use std::sync::Arc;

use clickhouse_rig::Server;
use libtest_mimic::{Arguments, Completion, Trial};
use qi_testkit::presence;
use qi_testkit::store::contract::{MemoryFactory, StoreFactory, Wrapper};
use qi_testkit::store::model::{cases, check_differences, check_evolutions, check_histories};

fn main() {
    let trial = |name: &str, run: fn(&Arc<dyn StoreFactory>) -> Result<(), String>| -> Trial {
        let factory: Arc<dyn StoreFactory> = Arc::new(Server::clickhouse());
        presence::trial(format!("clickhouse/{name}"), "clickhouse", factory.absent(), move || {
            run(&factory)?;
            Ok(Completion::Completed)
        })
    };
    let trials = vec![
        trial("equals_the_model_over_random_histories", |server| {
            check_histories(server, Wrapper::PLAIN, cases(16)).map_err(|failure| failure.to_string())
        }),
        trial("random_schema_evolutions_succeed", |server| {
            check_evolutions(server, cases(6)).map_err(|failure| failure.to_string())
        }),
        trial("pages_and_cursors_equal_the_memory_store", |server| {
            let memory: Arc<dyn StoreFactory> = Arc::new(MemoryFactory);
            check_differences(server, &memory, cases(16)).map_err(|failure| failure.to_string())
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}
