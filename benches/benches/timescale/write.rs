//! Writing 1,000,000 new ticks.

use std::time::Duration;

use qi_adapters::timescale::TimescaleConfig;
use qi_benches::{ratio, timed};
use qi_core::PriceTick;

use crate::baselines;
use crate::setup::{Setup, TargetStore, print_rates};
use crate::ticks::{MILLION, csv_with_ids, csv_with_names};

/// The batch size of a loader that does not hold all ticks in memory.
const BATCH: usize = 100_000;

pub(crate) fn run(setup: &Setup) {
    let ticks = setup.market.ticks(0..MILLION);
    let (ids, names) = (setup.file("ids.csv"), setup.file("names.csv"));
    csv_with_ids(&ticks, &ids);
    csv_with_names(&ticks, &names);

    let copy = || on(setup, |target| baselines::copy_csv(setup, &format!("{}.ticks", target.schema), &ids));
    for (connections, words, goal) in [(1, "one connection", "1.10"), (2, "two connections", "1.40")] {
        for (batch, size) in [(MILLION, "1,000,000"), (BATCH, "100,000")] {
            let times = ratio(setup.rounds, || store(setup, &ticks, connections, batch), copy);
            let goal = if batch == MILLION { format!("goal {goal}") } else { "no goal".to_owned() };
            let what = format!("store, {words}, batches of {size} / \\copy of CSV, same hypertable");
            print_rates(&what, &goal, MILLION, &times);
        }
    }
    let ours = || store(setup, &ticks, 2, MILLION);
    let by_hand = |work: &dyn Fn(&TargetStore<'_>)| {
        let target = setup.create(|_| ());
        baselines::hand_written_table(setup, &target.schema);
        setup.checkpoint();
        timed(|| work(&target))
    };
    let times = ratio(setup.rounds, ours, || {
        by_hand(&|target| baselines::copy_csv(setup, &format!("{}.trades", target.schema), &names))
    });
    print_rates("store, two connections / \\copy of CSV, table by hand", "goal 2", MILLION, &times);
    let times = ratio(setup.rounds, ours, || {
        by_hand(&|target| setup.block_on(baselines::literal_upsert(&setup.url, &target.schema, &ticks)))
    });
    let what = "store, two connections / VALUES upserts of 1,000 rows of literals, table by hand";
    print_rates(what, "goal 10", MILLION, &times);
    let times = ratio(setup.rounds, ours, || {
        by_hand(&|target| setup.block_on(baselines::values_upsert(&setup.url, &target.schema, &ticks)))
    });
    let what = "store, two connections / VALUES upserts of 1,000 rows, bound and prepared, table by hand";
    print_rates(what, "goal 10", MILLION, &times);
    let times = ratio(setup.rounds, ours, || {
        on(setup, |target| setup.block_on(baselines::unnest_upsert(&target.store, &ticks)))
    });
    print_rates(
        "store, two connections / UNNEST upserts of 10,000, same hypertable",
        "no goal",
        MILLION,
        &times,
    );
}

/// Returns the time of the store for all ticks, from the records in memory to the result.
fn store(setup: &Setup, ticks: &[PriceTick], connections: usize, batch: usize) -> Duration {
    let config = |config: &mut TimescaleConfig| config.write.connections = connections;
    let target = setup.create(config);
    setup.checkpoint();
    let time = timed(|| target.insert(ticks, batch));
    assert_eq!(target.count(), i64::try_from(ticks.len()).expect("a small number"));
    time
}

/// Returns the time of a baseline on tables that the store has created.
fn on(setup: &Setup, work: impl FnOnce(&TargetStore<'_>)) -> Duration {
    let target = setup.create(|_| ());
    setup.checkpoint();
    let time = timed(|| work(&target));
    assert_eq!(target.count(), i64::try_from(MILLION).expect("a small number"));
    time
}
