//! Reading: a page, the latest tick of each instrument, bars.

use std::hint::black_box;

use qi_adapters::timescale::Pg;
use qi_benches::{Ratio, ratio, timed};
use qi_core::store::{BarQuery, LatestQuery, PriceStore, PriceStoreExt, RangeQuery};
use qi_core::{Bar, Interval, Price, PriceTick, Quantity, Selection, TimeRange, Timestamp};
use sqlx::postgres::types::PgInterval;

use crate::setup::{Setup, TargetStore};
use crate::ticks::{INSTRUMENTS, MILLION, time};

/// Short measurements need many rounds.
const FACTOR: usize = 15;

/// Reads 10,000 ticks of one instrument from a million.
pub(crate) fn page(setup: &Setup) {
    const BARE: &str = "SELECT ts, seq, price, quantity, side FROM ticks \
        WHERE instrument_id = $1 AND ts >= $2 AND ts < $3 ORDER BY ts, seq LIMIT 10000";
    type Row = (Pg<Timestamp>, i64, Pg<Price>, Option<Pg<Quantity>>, Option<i16>);
    let target = filled(setup, MILLION);
    let range = TimeRange::new(time(0), time(MILLION)).expect("in order");
    let query = RangeQuery::new(setup.market.instruments()[42].clone(), range);
    let query = query.with_limit(10_000).expect("the largest page");
    let id = target.id_of(setup.market.instruments()[42].symbol().as_str());
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
                let query = sqlx::query_as(BARE).bind(id).bind(Pg(time(0))).bind(Pg(time(MILLION)));
                let rows: Vec<Row> = setup.block_on(query.fetch_all(target.store.pool())).expect("rows");
                assert_eq!(rows.len(), 10_000);
                rows
            })
        },
    );
    println!("page of 10,000 ticks / the bare query (goal 1.2): {times}");
}

/// Reads the latest tick of every instrument, in tables of increasing size.
pub(crate) fn latest(setup: &Setup) {
    let (small, large) = (filled(setup, MILLION), filled(setup, 10 * MILLION));
    let times = latest_ratio(setup, &large, &small);
    println!("latest of 100 instruments, 10,000,000 rows / 1,000,000 rows (goal 1.3): {times}");
    drop((small, large));
    let (small, large) = (weekly(setup, 10), weekly(setup, 1_000));
    let times = latest_ratio(setup, &large, &small);
    println!("latest of 100 instruments, 1,000 chunks / 10 chunks (goal 1.3): {times}");
}

fn latest_ratio(setup: &Setup, large: &TargetStore<'_>, small: &TargetStore<'_>) -> Ratio {
    let query = LatestQuery::new(Selection::All);
    let ask = |target: &TargetStore<'_>| {
        timed(|| {
            let page = setup.block_on(target.store.latest_ticks(&query)).expect("a page");
            assert_eq!(page.items.len(), INSTRUMENTS);
            page
        })
    };
    ratio(setup.rounds * FACTOR, || ask(large), || ask(small))
}

/// Derives one day of bars of a minute from 10,000,000 ticks of that day.
pub(crate) fn bars(setup: &Setup) {
    let target = filled(setup, 10 * MILLION);
    let ids: Vec<i32> =
        setup.market.instruments().iter().map(|i| target.id_of(i.symbol().as_str())).collect();
    let times = ratio(
        setup.rounds * 3,
        || timed(|| black_box(port_bars(setup, &target, 42))),
        || timed(|| black_box(bare_bars(setup, &target, ids[42]))),
    );
    println!("1,440 bars out of 100,000 ticks of one of 100 instruments / time_bucket and first: {times}");
    let times = ratio(
        3.min(setup.rounds),
        || timed(|| (0..INSTRUMENTS).for_each(|n| drop(black_box(port_bars(setup, &target, n))))),
        || timed(|| ids.iter().for_each(|id| drop(black_box(bare_bars(setup, &target, *id))))),
    );
    println!("144,000 bars, all 100 instruments one by one / time_bucket and first: {times}");
}

fn port_bars(setup: &Setup, target: &TargetStore<'_>, instrument: usize) -> Vec<Bar> {
    let range = TimeRange::new(time(0), time(10 * MILLION)).expect("in order");
    let query = BarQuery::new(setup.market.instruments()[instrument].clone(), Interval::M1, range);
    let query = query.with_limit(10_000).expect("the largest page");
    let page = setup.block_on(target.store.derived_bars(&query)).expect("bars");
    assert_eq!(page.items.len(), 1_440);
    page.items
}

pub(crate) type BareBar = (Pg<Timestamp>, Pg<Price>, Pg<Price>, Pg<Price>, Pg<Price>, i64, String, String);

pub(crate) fn bare_bars(setup: &Setup, target: &TargetStore<'_>, id: i32) -> Vec<BareBar> {
    const BARE: &str = "SELECT public.time_bucket($4, ts) AS bucket, public.first(price, ts), max(price), \
        min(price), public.last(price, ts), count(*), sum(quantity)::text, sum(price * quantity)::text \
        FROM ticks WHERE instrument_id = $1 AND ts >= $2 AND ts < $3 GROUP BY bucket ORDER BY bucket";
    let minute = PgInterval { months: 0, days: 0, microseconds: Interval::M1.as_micros() };
    let query = sqlx::query_as(BARE).bind(id).bind(Pg(time(0))).bind(Pg(time(10 * MILLION))).bind(minute);
    let rows: Vec<BareBar> = setup.block_on(query.fetch_all(target.store.pool())).expect("rows");
    assert_eq!(rows.len(), 1_440);
    rows
}

/// Returns a store with this number of ticks.
fn filled(setup: &Setup, ticks: usize) -> TargetStore<'_> {
    let target = setup.create(|_| ());
    target.fill(0..ticks);
    target.compact();
    target
}

/// Returns a store with one tick of every instrument in each of this number of weeks, one chunk for each week.
fn weekly(setup: &Setup, weeks: usize) -> TargetStore<'_> {
    const WEEK: i64 = 7 * 86_400_000_000;
    let target = setup.create(|_| ());
    let first = time(0).as_micros() - i64::try_from(weeks).expect("a small number") * WEEK;
    let ticks: Vec<_> = (0..weeks * INSTRUMENTS)
        .map(|n| {
            let week = i64::try_from(n / INSTRUMENTS).expect("a small number");
            setup.market.tick_at(n, Timestamp::from_micros(first + week * WEEK).expect("a time"))
        })
        .collect();
    target.insert(&ticks, 5_000);
    setup.block_on(async {
        let chunks = target.store.chunks(PriceTick::DATASET).await.expect("chunks");
        assert_eq!(chunks.len(), weeks);
    });
    setup.checkpoint();
    target
}
