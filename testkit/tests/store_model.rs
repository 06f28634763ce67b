//! Random histories: the memory store beside the plain model, and two memory stores beside each other.

use std::sync::Arc;

use qi_testkit::store::contract::{MemoryFactory, StoreFactory, Wrapping};
use qi_testkit::store::model::{check_differences, check_histories};

fn memory() -> Arc<dyn StoreFactory> {
    Arc::new(MemoryFactory)
}

#[test]
fn memory_equals_the_model_over_4096_histories() {
    check_histories(&memory(), Wrapping::PLAIN, 4_096).unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn two_stores_give_identical_pages_and_cursors() {
    check_differences(&memory(), &memory(), 256).unwrap_or_else(|failure| panic!("{failure}"));
}
