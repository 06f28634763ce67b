//! Reading: a page compared with the bare statement; latest ticks, bars and bytes compared with TimescaleDB.

use std::hint::black_box;
use std::time::Duration;

use qi_benches::{ratio, timed};
use qi_core::store::{
    BarQuery, InstrumentQuery, LatestQuery, PriceStore, PriceStoreExt as _, RangeQuery, SeriesRequest,
};
use qi_core::{Interval, PriceTick, Selection, TimeRange};

use crate::checks::check;
use crate::setup::{Setup, TargetStore, TimescaleTarget};
use crate::ticks::{INSTRUMENTS, MILLION};

/// The time between two ticks in microseconds, so that 10,000,000 ticks are a day, or a year.
pub(crate) const DAY: i64 = 8_640;
pub(crate) const YEAR: i64 = 365 * DAY;

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

/// Reads the latest ticks and the series over few and many rows, and over few and many instruments, and runs the calls of
/// `qi check`. The server generates the rows.
pub(crate) fn scale(setup: &Setup) {
    let large =
        qi_benches::variable("QI_BENCH_ROWS").map_or(100 * MILLION, |rows| rows.parse().expect("a number"));
    let filled = |rows: usize, instruments: usize| {
        let target = setup.create(|_| ());
        for start in (0..rows).step_by(10 * MILLION) {
            let count = (rows - start).min(10 * MILLION);
            let sql = format!(
                "INSERT INTO {}ticks SELECT 'binance', 'COIN' || toString(number % {instruments}), \
                 toDateTime64('2024-01-01 00:00:00', 6, 'UTC') + toIntervalMillisecond(number * 100), number, \
                 toDecimal128(100 + number % 1000, 18), 1, 'buy' FROM numbers({start}, {count})",
                target.prefix
            );
            setup.block_on(target.store.client().query_raw(&sql).execute()).expect("rows");
        }
        target.compact();
        target
    };
    let names: Vec<_> =
        (0..INSTRUMENTS).map(|n| format!("binance:COIN{n}").parse().expect("a valid name")).collect();
    let latest = LatestQuery::new(Selection::only(names).expect("a hundred names"));
    let ask_latest = |target: &TargetStore<'_>| {
        timed(|| {
            let page = setup.block_on(target.store.latest_ticks(&latest)).expect("a page");
            assert_eq!(page.items.len(), INSTRUMENTS);
        })
    };
    let series = SeriesRequest::new(PriceTick::DATASET);
    let ask_series = |target: &TargetStore<'_>| {
        timed(|| {
            let page = setup.block_on(target.store.series(&series)).expect("a page");
            assert!(page.items.len() >= INSTRUMENTS);
        })
    };
    let rounds = setup.rounds * FACTOR;
    let few = filled(MILLION, INSTRUMENTS);
    let many = filled(large, INSTRUMENTS);
    let times = ratio(rounds, || ask_latest(&many), || ask_latest(&few));
    println!("latest of 100 instruments in {large} rows / in 1,000,000 rows: {times}");
    let times = ratio(rounds, || ask_series(&many), || ask_series(&few));
    println!("100 series in {large} rows / in 1,000,000 rows: {times}");
    drop(many);
    let wide = filled(MILLION, 100 * INSTRUMENTS);
    let times = ratio(rounds, || ask_latest(&wide), || ask_latest(&few));
    println!("latest of 100 of 10,000 instruments / of 100: {times}");
    let times = ratio(rounds, || ask_series(&wide), || ask_series(&few));
    println!("a page of 10,000 series / of 100 series: {times}");
    let times = ratio(rounds, || instruments(setup, &wide), || instruments(setup, &few));
    println!("a page of 100 instruments, of 10,000 / of 100 (goal 1.3): {times}");
    let calls = |target: &TargetStore<'_>| timed(|| setup.block_on(check(&target.store)));
    let times = ratio(rounds, || calls(&wide), || calls(&few));
    println!("the calls of qi check, 10,000 instruments / 100 instruments (goal 1.3): {times}");
}

/// Reads the first 100 instruments.
fn instruments(setup: &Setup, target: &TargetStore<'_>) -> Duration {
    let query = InstrumentQuery::new(PriceTick::DATASET).with_limit(INSTRUMENTS).expect("a limit");
    timed(|| {
        let page = setup.block_on(target.store.instruments(&query)).expect("a page");
        assert_eq!(page.items.len(), INSTRUMENTS);
    })
}
