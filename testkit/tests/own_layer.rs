//! The contract suites over the example layer of `docs/layers.md`.

use std::sync::Arc;

use libtest_mimic::Trial;
use qi_core::layer::Layered;
use qi_testkit::bus::contract as bus;
use qi_testkit::store::contract as store;

include!("own_layer/slow_calls.rs");

const NAME: &str = "slow_calls";

fn layer() -> SlowCalls {
    SlowCalls { threshold: Duration::from_millis(10) }
}

fn main() {
    let stores = store::Wrapper { name: NAME, wrap: |store| Arc::new(Layered::new(store, layer())) };
    let buses = bus::Wrapper { name: NAME, wrap: |bus| Arc::new(Layered::new(bus, layer())) };
    let memory: Arc<dyn bus::BusFactory> = Arc::new(bus::MemoryFactory);
    let mut suite = store::Suite::new().on(store::MemoryFactory, [stores]);
    for trial in bus::trials(&memory, &[buses]) {
        suite = suite.with_trial(trial);
    }
    let shown = Trial::test("docs_page_contains_this_layer", || {
        let page = include_str!("../../docs/layers.md");
        let shown = page.contains(include_str!("own_layer/slow_calls.rs").trim());
        if shown { Ok(()) } else { Err("docs/layers.md shows another text".into()) }
    });
    suite.with_trial(shown).main();
}
