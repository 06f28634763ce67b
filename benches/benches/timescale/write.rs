//! Writing 1,000,000 new ticks.

use std::time::Duration;

use qi_adapters::timescale::TimescaleConfig;
use qi_benches::{ratio, timed};
use qi_core::PriceTick;

use crate::rig::{Place, Rig, print_rates};
use crate::rivals;
use crate::ticks::{MILLION, csv_with_ids, csv_with_names};

/// The batch size of a loader that does not hold all ticks in memory.
const BATCH: usize = 100_000;

pub(crate) fn run(rig: &Rig) {
    let ticks = rig.market.ticks(0..MILLION);
    let (ids, names) = (rig.file("ids.csv"), rig.file("names.csv"));
    csv_with_ids(&ticks, &ids);
    csv_with_names(&ticks, &names);

    let copy = || on(rig, |place| rivals::copy_csv(rig, &format!("{}.ticks", place.schema), &ids));
    for (connections, words, goal) in [(1, "one connection", "1.10"), (2, "two connections", "1.40")] {
        for (batch, size) in [(MILLION, "1,000,000"), (BATCH, "100,000")] {
            let times = ratio(rig.rounds, || store(rig, &ticks, connections, batch), copy);
            let goal = if batch == MILLION { format!("goal {goal}") } else { "no goal".to_owned() };
            let what = format!("store, {words}, batches of {size} / \\copy of CSV, same hypertable");
            print_rates(&what, &goal, MILLION, &times);
        }
    }
    let ours = || store(rig, &ticks, 2, MILLION);
    let by_hand = |work: &dyn Fn(&Place<'_>)| {
        let place = rig.fresh(|_| ());
        rivals::hand_written_table(rig, &place.schema);
        rig.checkpoint();
        timed(|| work(&place))
    };
    let times = ratio(rig.rounds, ours, || {
        by_hand(&|place| rivals::copy_csv(rig, &format!("{}.trades", place.schema), &names))
    });
    print_rates("store, two connections / \\copy of CSV, table by hand", "goal 2", MILLION, &times);
    let times = ratio(rig.rounds, ours, || {
        by_hand(&|place| rig.block_on(rivals::literal_upsert(&rig.url, &place.schema, &ticks)))
    });
    let what = "store, two connections / VALUES upserts of 1,000 rows of literals, table by hand";
    print_rates(what, "goal 10", MILLION, &times);
    let times = ratio(rig.rounds, ours, || {
        by_hand(&|place| rig.block_on(rivals::values_upsert(&rig.url, &place.schema, &ticks)))
    });
    let what = "store, two connections / VALUES upserts of 1,000 rows, bound and prepared, table by hand";
    print_rates(what, "goal 10", MILLION, &times);
    let times = ratio(rig.rounds, ours, || {
        on(rig, |place| rig.block_on(rivals::unnest_upsert(&place.store, &ticks)))
    });
    print_rates(
        "store, two connections / UNNEST upserts of 10,000, same hypertable",
        "no goal",
        MILLION,
        &times,
    );
}

/// Returns the time of the store for all ticks, from the records in memory to the result.
fn store(rig: &Rig, ticks: &[PriceTick], connections: usize, batch: usize) -> Duration {
    let config = |config: &mut TimescaleConfig| config.write.connections = connections;
    let place = rig.fresh(config);
    rig.checkpoint();
    let time = timed(|| place.insert(ticks, batch));
    assert_eq!(place.count(), i64::try_from(ticks.len()).expect("a small number"));
    time
}

/// Returns the time of a rival on tables that the store has created.
fn on(rig: &Rig, work: impl FnOnce(&Place<'_>)) -> Duration {
    let place = rig.fresh(|_| ());
    rig.checkpoint();
    let time = timed(|| work(&place));
    assert_eq!(place.count(), i64::try_from(MILLION).expect("a small number"));
    time
}
