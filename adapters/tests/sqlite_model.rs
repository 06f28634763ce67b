//! Random histories and schemas on SQLite files, compared with the plain model and with the memory store.

mod sqlite_rig;

use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use qi_testkit::store::contract::{MemoryFactory, StoreFactory, Wrapper};
use qi_testkit::store::model::{cases, check_differences, check_evolutions, check_histories};
use sqlite_rig::Folder;

fn main() {
    let factory: Arc<dyn StoreFactory> = Arc::new(Folder::new());
    let trial = |name: &str, run: fn(&Arc<dyn StoreFactory>) -> Result<(), Failed>| {
        let factory = factory.clone();
        Trial::test(format!("sqlite/{name}"), move || run(&factory))
    };
    let trials = vec![
        trial("equals_the_model_over_random_histories", |files| {
            check_histories(files, Wrapper::PLAIN, cases(128)).map_err(|failure| failure.to_string().into())
        }),
        trial("random_schema_evolutions_succeed", |files| {
            check_evolutions(files, cases(48)).map_err(|failure| failure.to_string().into())
        }),
        trial("pages_and_cursors_equal_the_memory_store", |files| {
            let memory: Arc<dyn StoreFactory> = Arc::new(MemoryFactory);
            check_differences(files, &memory, cases(128)).map_err(|failure| failure.to_string().into())
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}
