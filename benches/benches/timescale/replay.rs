//! Writing a million ticks again that are already stored.

use std::cell::RefCell;
use std::time::Duration;

use qi_benches::{ratio, timed};

use crate::baselines;
use crate::setup::{Setup, TargetStore, print_rates};
use crate::ticks::{MILLION, csv_with_ids};

/// The sizes of the table in bytes, before and after.
type Sizes = RefCell<Vec<(i64, i64)>>;

pub(crate) fn run(setup: &Setup) {
    let ticks = setup.market.ticks(0..MILLION);
    let file = setup.file("replay.csv");
    csv_with_ids(&ticks, &file);
    let (ours, baseline) = (Sizes::default(), Sizes::default());
    let times = ratio(
        setup.rounds,
        || again(setup, &ours, |target| target.insert(&ticks, MILLION)),
        || again(setup, &baseline, |target| baselines::staged_upsert(setup, &target.schema, &file)),
    );
    print_rates("replay / temporary table, COPY, plain upsert", "goal 2", MILLION, &times);
    for (name, sizes) in [("ours", ours), ("baseline", baseline)] {
        let sizes = sizes.into_inner();
        let (before, after) = sizes[sizes.len() / 2];
        let most = sizes.iter().map(|(before, after)| after - before).max().unwrap_or_default();
        println!(
            "table before and after, {name}: {before} and {after} bytes, in all rounds at most {most} more"
        );
    }
}

/// Returns the duration of the second write into a store that already has the ticks.
fn again(setup: &Setup, sizes: &Sizes, work: impl FnOnce(&TargetStore<'_>)) -> Duration {
    let target = setup.create(|_| ());
    target.fill(0..MILLION);
    // Vacuum adds its own maps to the table, which must not happen during the measurement.
    target.compact();
    let before = target.bytes();
    let time = timed(|| work(&target));
    sizes.borrow_mut().push((before, target.bytes()));
    assert_eq!(target.count(), i64::try_from(MILLION).expect("a small number"));
    time
}
