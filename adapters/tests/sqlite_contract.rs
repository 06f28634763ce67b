//! The contract of the price store on SQLite files.

mod sqlite_rig;

use qi_testkit::store::contract::{Suite, Wrapper};
use sqlite_rig::Folder;

fn main() {
    let wrappers = [Wrapper::PLAIN, Wrapper::FULL_STACK, Wrapper::FULL_STACK_OVER_CHAOS];
    Suite::new().on(Folder::new(), wrappers).at_once(4).main();
}
