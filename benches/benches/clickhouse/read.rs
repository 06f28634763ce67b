//! Reading: a page compared with the bare statement; latest ticks, bars and bytes compared with TimescaleDB.

use std::hint::black_box;

use qi_benches::{ratio, timed};
use qi_core::store::{BarQuery, LatestQuery, PriceStore, PriceStoreExt as _, RangeQuery};
use qi_core::{Interval, Selection, TimeRange};

use crate::setup::{Setup, TargetStore, TimescaleTarget};
use crate::ticks::{INSTRUMENTS, MILLION};

/// The time between two ticks in microseconds, so that 10,000,000 ticks are a day, or a year.
const DAY: i64 = 8_640;
const YEAR: i64 = 365 * DAY;

/// Short measurements need many rounds.
const FACTOR: usize = 10;

/// Reads 10,000 ticks of one instrument from a million.
pub(crate) fn page(setup: &Setup) {
    let target = setup.create(|_| ());
    setup.fill(&target.store, MILLION, DAY);
    target.compact();
    let instrument = &setup.market.instruments()[42];
    let query =
        RangeQuery::new(instrument.clone(), TimeRange::ALL).with_limit(10_000).expect("the largest page");
    let bare = format!(
        "SELECT ts, seq, price, quantity, side FROM {}ticks FINAL WHERE exchange = '{}' AND symbol = '{}' \
         ORDER BY ts, seq LIMIT 10000",
        target.prefix,
        instrument.exchange(),
        instrument.symbol(),
    );
    let times = ratio(
        setup.rounds * FACTOR,
        || {
            timed(|| {
                let page = setup.block_on(target.store.ticks(&query)).expect("a page");
                assert_eq!(page.items.len(), 10_000);
                page
            })
        },
        || {
            timed(|| {
                setup.block_on(async {
                    let mut cursor =
                        target.store.client().query_raw(&bare).fetch_bytes("RowBinary").expect("a query");
                    cursor.collect().await.expect("rows")
                })
            })
        },
    );
    println!("page of 10,000 ticks into records / the bytes of the bare statement: {times}");
}

/// Returns both stores with 10,000,000 ticks.
fn both(setup: &Setup, step: i64) -> Option<(TargetStore<'_>, TimescaleTarget<'_>)> {
    let Some(other) = setup.timescale() else {
        println!("QI_TIMESCALE_URL is not set, so nothing was measured");
        return None;
    };
    let target = setup.create(|_| ());
    setup.fill(&target.store, 10 * MILLION, step);
    setup.fill(&other.store, 10 * MILLION, step);
    let (ours, theirs) = (target.compact(), other.compact());
    println!(
        "bytes on disk, 10,000,000 ticks: {ours}, TimescaleDB {theirs}: {:.1} and {:.1} a tick",
        ours as f64 / 1e7,
        theirs as f64 / 1e7
    );
    Some((target, other))
}

/// Reads the latest tick of every instrument.
pub(crate) fn latest(setup: &Setup) {
    let Some((target, other)) = both(setup, DAY) else { return };
    let query = LatestQuery::new(Selection::All);
    let ask = |store: &dyn PriceStore| {
        timed(|| {
            let page = setup.block_on(store.latest_ticks(&query)).expect("a page");
            assert_eq!(page.items.len(), INSTRUMENTS);
            page
        })
    };
    let times = ratio(setup.rounds * FACTOR, || ask(&target.store), || ask(&other.store));
    println!("latest of 100 instruments / TimescaleDB: {times}");
}

/// Derives bars of a minute from a day of 10,000,000 ticks, and bars of a day from a year of them.
pub(crate) fn bars(setup: &Setup) {
    for (step, interval, count, what) in [
        (DAY, Interval::M1, 1_440, "a day of 1-minute bars"),
        (YEAR, Interval::D1, 365, "a year of daily bars"),
    ] {
        let Some((target, other)) = both(setup, step) else { return };
        let ask = |store: &dyn PriceStore, instruments: usize| {
            timed(|| {
                for instrument in &setup.market.instruments()[..instruments] {
                    let query = BarQuery::new(instrument.clone(), interval, TimeRange::ALL);
                    let query = query.with_limit(10_000).expect("the largest page");
                    let page = setup.block_on(store.derived_bars(&query)).expect("bars");
                    assert!(page.items.len() >= count, "{} bars", page.items.len());
                    black_box(page);
                }
            })
        };
        let times = ratio(setup.rounds, || ask(&target.store, 1), || ask(&other.store, 1));
        println!("{what} of one of 100 instruments / TimescaleDB: {times}");
        let times =
            ratio(3.min(setup.rounds), || ask(&target.store, INSTRUMENTS), || ask(&other.store, INSTRUMENTS));
        println!("{what} of all 100 instruments, one by one / TimescaleDB: {times}");
    }
}
