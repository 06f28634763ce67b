//! The contract of the price store, on the memory store in every wrapping.

use std::sync::Arc;

use qi_testkit::store::contract::{MemoryFactory, Suite, Wrapping};

fn main() {
    Suite::new().on(Arc::new(MemoryFactory), Wrapping::every()).main();
}
