//! The contract of the price store, on the memory store in every wrapping.

use qi_testkit::store::contract::{MemoryFactory, Suite, Wrapper};

fn main() {
    Suite::new().on(MemoryFactory, Wrapper::every()).main();
}
