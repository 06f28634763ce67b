//! The contract of the price store on SQLite files.

mod sqlite_rig;

use qi_testkit::store::contract::{Suite, Wrapper};
use sqlite_rig::Folder;

fn main() {
    let suite = Suite::new().on(Folder::new(), [Wrapper::PLAIN, Wrapper::FULL_STACK]);
    suite.on_representative(Folder::new(), [Wrapper::FULL_STACK_OVER_CHAOS]).at_once(4).main();
}
