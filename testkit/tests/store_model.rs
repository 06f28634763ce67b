//! Random histories: the memory store compared with the model, and two memory stores compared with each other.

use std::sync::Arc;

use qi_testkit::store::contract::{MemoryFactory, StoreFactory, Wrapper};
use qi_testkit::store::model::{check_differences, check_histories};
use qi_testkit::store::mutants::mutants;

fn memory() -> Arc<dyn StoreFactory> {
    Arc::new(MemoryFactory)
}

#[test]
fn memory_equals_the_model_over_4096_histories() {
    check_histories(&memory(), Wrapper::PLAIN, 4_096).unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn two_stores_give_identical_pages_and_cursors() {
    check_differences(&memory(), &memory(), 256).unwrap_or_else(|failure| panic!("{failure}"));
}

/// A model that cannot fail proves nothing. Histories alone must find these faults and shrink them to a few steps.
#[test]
fn model_detects_faulty_stores_with_a_shortest_history() {
    let names = [
        "loses the last row of a batch",
        "the first write of a key wins",
        "a range includes its end",
        "records of one time are in the opposite order",
        "a cursor skips the other records of its time",
        "as_of excludes its time",
        "as_of uses the open time of bars",
        "halves are rounded to even",
        "an unknown volume is zero",
        "includes the end of the range in a deletion",
        "hides records inserted after a deletion",
        "truncates the cutoff of a purge to the second",
    ];
    let mutants = mutants();
    for name in names {
        let mutant = mutants.iter().find(|mutant| mutant.name == name).expect("the name of a mutant");
        let wrapper = Wrapper { name: mutant.name, wrap: mutant.wrap };
        let failure = check_histories(&memory(), wrapper, 1_024).expect_err(name).to_string();
        let steps = failure.lines().skip_while(|line| !line.starts_with("the shortest history")).count() - 1;
        assert!((2..=5).contains(&steps), "{name}: {steps} steps\n{failure}");
    }
}
