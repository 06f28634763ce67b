//! Writing a million ticks again that are already stored.

use std::cell::RefCell;
use std::time::Duration;

use qi_benches::{ratio, timed};

use crate::rig::{Place, Rig, print_rates};
use crate::rivals;
use crate::ticks::{MILLION, csv_with_ids};

/// The sizes of the table in bytes, before and after.
type Sizes = RefCell<Vec<(i64, i64)>>;

pub(crate) fn run(rig: &Rig) {
    let ticks = rig.market.ticks(0..MILLION);
    let file = rig.file("replay.csv");
    csv_with_ids(&ticks, &file);
    let (ours, rival) = (Sizes::default(), Sizes::default());
    let times = ratio(
        rig.rounds,
        || again(rig, &ours, |place| place.insert(&ticks, MILLION)),
        || again(rig, &rival, |place| rivals::staged_upsert(rig, &place.schema, &file)),
    );
    print_rates("replay / temporary table, COPY, plain upsert", "goal 2", MILLION, &times);
    for (name, sizes) in [("ours", ours), ("rival", rival)] {
        let sizes = sizes.into_inner();
        let (before, after) = sizes[sizes.len() / 2];
        let most = sizes.iter().map(|(before, after)| after - before).max().unwrap_or_default();
        println!(
            "table before and after, {name}: {before} and {after} bytes, in all rounds at most {most} more"
        );
    }
}

/// Returns the duration of the second write into a store that already has the ticks.
fn again(rig: &Rig, sizes: &Sizes, work: impl FnOnce(&Place<'_>)) -> Duration {
    let place = rig.fresh(|_| ());
    place.fill(0..MILLION);
    // Vacuum adds its own maps to the table, which must not happen during the measurement.
    place.settle();
    let before = place.bytes();
    let time = timed(|| work(&place));
    sizes.borrow_mut().push((before, place.bytes()));
    assert_eq!(place.count(), i64::try_from(MILLION).expect("a small number"));
    time
}
