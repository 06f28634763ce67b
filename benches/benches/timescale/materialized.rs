//! Materialized bars: the time and the memory of maintenance; reads beside stored bars, beside SQL by hand and beside a
//! continuous aggregate; the cost of writes; and the sizes.

use std::hint::black_box;
use std::time::Duration;

use qi_benches::{peak_memory_of, ratio, timed};
use qi_core::store::{BarQuery, MaintainRequest, PriceStore, PriceStoreExt};
use qi_core::{Bar, Interval, TimeRange, Timestamp};
use sqlx::Row as _;

use crate::read::{BareBar, bare_bars};
use crate::setup::{Setup, TargetStore};
use crate::ticks::{INSTRUMENTS, MILLION, time};

/// The number of ticks of the day.
const TICKS: usize = 10 * MILLION;

pub(crate) fn run(setup: &Setup) {
    let filled = |ticks| {
        let target = setup.create(|config| config.materialized_bars = Some(true));
        target.fill(0..ticks);
        target.compact();
        maintain(setup, &target);
        target
    };
    drop(filled(MILLION));
    let target = filled(TICKS);
    setup.checkpoint();
    let day = TimeRange::new(time(0), time(TICKS)).expect("in order");
    store_bars(setup, &target, Interval::M1, day);
    let ids: Vec<i32> =
        setup.market.instruments().iter().map(|i| target.id_of(i.symbol().as_str())).collect();
    let derived = |n| derived_bars(setup, &target, n, Interval::M1, day);
    let stored = |n| stored_bars(setup, &target, n, Interval::M1, day);
    assert_eq!(derived(42), stored(42));
    let times =
        ratio(setup.rounds * 15, || timed(|| black_box(derived(42))), || timed(|| black_box(stored(42))));
    println!("1,440 bars of one instrument, materialized / stored (goal 2): {times}");
    let times = ratio(
        setup.rounds,
        || timed(|| (0..INSTRUMENTS).for_each(|n| drop(black_box(derived(n))))),
        || timed(|| (0..INSTRUMENTS).for_each(|n| drop(black_box(stored(n))))),
    );
    println!("144,000 bars of 100 instruments, materialized / stored (goal 3): {times}");
    let times = ratio(
        setup.rounds,
        || timed(|| black_box(derived(42))),
        || timed(|| black_box(bare_bars(setup, &target, ids[42]))),
    );
    println!("1,440 bars of one instrument, materialized / time_bucket by hand: {times}");
    sizes(setup, &target);
    continuous_aggregate(setup, &target, ids[42], &derived);
    drop(target);
    year(setup);
    writes(setup);
}

fn maintain(setup: &Setup, target: &TargetStore<'_>) {
    let request = MaintainRequest::default().with_until(Timestamp::MAX).with_budget(Duration::from_hours(1));
    let (time, memory) = peak_memory_of("postgres:", || {
        timed(|| {
            let report = setup.block_on(target.store.maintain(&request)).expect("maintenance");
            assert!(report.is_complete());
            print!("maintenance of {} ticks", report.ticks);
        })
    });
    println!(
        " (goal 30 s for 10,000,000 in a day): {:.1} s, largest private memory of a server process {} MiB",
        time.as_secs_f64(),
        memory / 1_024
    );
}

fn query(setup: &Setup, instrument: usize, interval: Interval, range: TimeRange) -> BarQuery {
    let query = BarQuery::new(setup.market.instruments()[instrument].clone(), interval, range);
    query.with_limit(10_000).expect("the largest page")
}

fn derived_bars(
    setup: &Setup,
    target: &TargetStore<'_>,
    instrument: usize,
    interval: Interval,
    range: TimeRange,
) -> Vec<Bar> {
    let query = query(setup, instrument, interval, range);
    setup.block_on(target.store.derived_bars(&query)).expect("bars").items
}

fn stored_bars(
    setup: &Setup,
    target: &TargetStore<'_>,
    instrument: usize,
    interval: Interval,
    range: TimeRange,
) -> Vec<Bar> {
    setup.block_on(target.store.bars(&query(setup, instrument, interval, range))).expect("bars").items
}

/// Writes the derived bars into the dataset of stored bars.
fn store_bars(setup: &Setup, target: &TargetStore<'_>, interval: Interval, range: TimeRange) {
    for instrument in 0..INSTRUMENTS {
        let bars = derived_bars(setup, target, instrument, interval, range);
        setup.block_on(target.store.insert_bars(&bars)).expect("stored bars");
    }
    setup.sql(&format!("VACUUM ANALYZE {}.bars", target.schema));
    setup.checkpoint();
}

/// Reads a year of daily bars of all instruments. The ticks are spread over the year, so almost every tick has a minute
/// of its own: the largest levels that this number of ticks can have.
fn year(setup: &Setup) {
    const DAYS: usize = 365;
    const BATCH: usize = 200_000;
    let target = setup.create(|config| config.materialized_bars = Some(true));
    let first = Interval::D1.floor(time(0));
    let at = |n: usize| {
        let year = Interval::D1.as_micros() * i64::try_from(DAYS).expect("a small number");
        let step = year / i64::try_from(TICKS).expect("a small number");
        let micros = step * i64::try_from(n).expect("a small number");
        Timestamp::from_micros(first.as_micros() + micros).expect("a time")
    };
    for start in (0..TICKS).step_by(BATCH) {
        let ticks: Vec<_> = (start..start + BATCH).map(|n| setup.market.tick_at(n, at(n))).collect();
        target.insert(&ticks, BATCH);
    }
    target.compact();
    print!("a year: ");
    maintain(setup, &target);
    sizes(setup, &target);
    let range = TimeRange::new(first, at(TICKS)).expect("in order");
    store_bars(setup, &target, Interval::D1, range);
    let derived = |n| derived_bars(setup, &target, n, Interval::D1, range);
    let stored = |n| stored_bars(setup, &target, n, Interval::D1, range);
    assert_eq!(derived(7).len(), DAYS);
    assert_eq!(derived(7), stored(7));
    let times = ratio(
        setup.rounds,
        || timed(|| (0..INSTRUMENTS).for_each(|n| drop(black_box(derived(n))))),
        || timed(|| (0..INSTRUMENTS).for_each(|n| drop(black_box(stored(n))))),
    );
    println!("a year of daily bars of 100 instruments, materialized / stored (goal 3): {times}");
}

/// Compares the read with a continuous aggregate with real-time aggregation, 23 hours of which are materialized.
fn continuous_aggregate(
    setup: &Setup,
    target: &TargetStore<'_>,
    id: i32,
    derived: &dyn Fn(usize) -> Vec<Bar>,
) {
    let license = sqlx::query_scalar("SELECT current_setting('timescaledb.license', true)");
    let license: Option<String> =
        setup.block_on(license.fetch_one(target.store.pool())).expect("the license");
    if license.as_deref() != Some("timescale") {
        println!("continuous aggregate: needs the Community edition, so nothing was measured");
        return;
    }
    let view = format!("{}.aggregate", target.schema);
    setup.sql(&format!(
        "CREATE MATERIALIZED VIEW {view} WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS \
         SELECT instrument_id, public.time_bucket('1 minute', ts) AS bucket, public.first(price, ts) AS open, \
         max(price) AS high, min(price) AS low, public.last(price, ts) AS close, count(*) AS count, \
         sum(quantity) AS volume, sum(price * quantity) AS quote_volume FROM {}.ticks GROUP BY 1, 2 WITH NO DATA",
        target.schema
    ));
    let until = Timestamp::from_micros(time(0).as_micros() + 23 * Interval::H1.as_micros()).expect("a time");
    let refresh = format!("CALL public.refresh_continuous_aggregate('{view}', NULL, '{until}')");
    println!("refresh of the continuous aggregate: {:.1} s", timed(|| setup.sql(&refresh)).as_secs_f64());
    let sql = format!(
        "SELECT bucket, open, high, low, close, count, volume::text, quote_volume::text FROM {view} \
         WHERE instrument_id = $1 ORDER BY bucket"
    );
    let read = || -> Vec<BareBar> {
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql.as_str())).bind(id);
        setup.block_on(query.fetch_all(target.store.pool())).expect("rows")
    };
    assert_eq!(read().len(), derived(42).len());
    let times = ratio(setup.rounds * 15, || timed(|| black_box(derived(42))), || timed(|| black_box(read())));
    println!("1,440 bars of one instrument, materialized / continuous aggregate: {times}");
}

/// Writes live data with and without materialized bars.
fn writes(setup: &Setup) {
    let write = |on: bool| {
        let target = setup.create(|config| config.materialized_bars = on.then_some(true));
        if on {
            let request = MaintainRequest::default().with_until(time(0));
            setup.block_on(target.store.maintain(&request)).expect("maintenance");
        }
        setup.checkpoint();
        timed(|| target.fill(0..MILLION))
    };
    let times = ratio(setup.rounds, || write(true), || write(false));
    println!("1,000,000 live ticks, with / without materialized bars (goal 1.03): {times}");
}

fn sizes(setup: &Setup, target: &TargetStore<'_>) {
    let size = |table: &str| -> i64 {
        let sql = "SELECT coalesce(public.hypertable_size(c.oid), pg_total_relation_size(c.oid)) FROM pg_class c \
                   WHERE c.oid = $1::regclass";
        let name = format!("{}.{table}", target.schema);
        setup.block_on(async {
            let row = sqlx::query(sql).bind(name).fetch_one(target.store.pool()).await.expect("a size");
            row.get(0)
        })
    };
    let levels: i64 = ["qi_bars_1m", "qi_bars_1h", "qi_bars_1d"].into_iter().map(size).sum();
    let mib = |bytes: i64| bytes as f64 / f64::from(1 << 20);
    println!("ticks {:.0} MiB, levels {:.1} MiB", mib(size("ticks")), mib(levels));
}
