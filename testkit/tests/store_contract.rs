//! The contract of the price store, on the memory store in every wrapping.

use qi_testkit::store::contract::{MemoryFactory, Suite, Wrapping};

fn main() {
    Suite::new().on(MemoryFactory, Wrapping::every()).main();
}
