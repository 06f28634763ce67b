//! Materialized bars: the time and the memory of maintenance, reads beside stored bars, the cost of live writes, and the sizes.

use std::hint::black_box;
use std::time::Duration;

use qi_benches::{peak_memory_of, ratio, timed};
use qi_core::store::{BarQuery, MaintainRequest, PriceStore, PriceStoreExt};
use qi_core::{Bar, Interval, TimeRange, Timestamp};

use crate::read::{DAY, YEAR};
use crate::setup::{Setup, TargetStore};
use crate::ticks::{INSTRUMENTS, MILLION};

/// The number of ticks of the day, and of the year.
const TICKS: usize = 10 * MILLION;

pub(crate) fn run(setup: &Setup) {
    let filled = |ticks, span| {
        let target = setup.create(materialized);
        setup.fill(&target.store, ticks, span);
        maintain(setup, &target);
        target
    };
    drop(filled(MILLION, DAY));
    let day = filled(TICKS, DAY);
    reads(setup, &day, Interval::M1, DAY, "a day of 1-minute bars");
    let bytes = |table: &str| {
        day.number(&format!(
            "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND startsWith(table, '{}{table}')",
            day.prefix
        ))
    };
    println!("bytes: ticks {}, levels {}", day.compact(), bytes("qi_bars_1"));
    drop(day);
    let year = filled(TICKS, YEAR);
    reads(setup, &year, Interval::D1, YEAR, "a year of daily bars");
    drop(year);
    writes(setup);
}

fn materialized(config: &mut qi_adapters::clickhouse::ClickHouseConfig) {
    config.materialized_bars = Some(true);
    config.bars_settle = Duration::ZERO;
}

fn maintain(setup: &Setup, target: &TargetStore<'_>) {
    let until = Timestamp::from_secs(2_000_000_000).expect("a time");
    let request = MaintainRequest::default().with_until(until).with_budget(Duration::from_hours(1));
    let (time, memory) = peak_memory_of("clickhouse", || {
        timed(|| {
            let report = setup.block_on(target.store.maintain(&request)).expect("maintenance");
            assert!(report.is_complete(), "{report:?}");
            print!("maintenance of {} ticks", report.ticks);
        })
    });
    println!(
        " (goal 30 s for 10,000,000): {:.1} s, largest private memory of the server {} MiB",
        time.as_secs_f64(),
        memory / 1_024
    );
}

/// Reads the bars of one instrument and of all instruments, materialized and stored.
fn reads(setup: &Setup, target: &TargetStore<'_>, interval: Interval, step: i64, what: &str) {
    let first = crate::ticks::time(0);
    let end =
        Timestamp::from_micros(first.as_micros() + i64::try_from(TICKS).expect("a small number") * step)
            .expect("a time");
    let range = TimeRange::new(first, end).expect("in order");
    let query = |instrument: usize| {
        let query = BarQuery::new(setup.market.instruments()[instrument].clone(), interval, range);
        query.with_limit(10_000).expect("the largest page")
    };
    let derived =
        |n| -> Vec<Bar> { setup.block_on(target.store.derived_bars(&query(n))).expect("derived bars").items };
    let stored = |n| -> Vec<Bar> { setup.block_on(target.store.bars(&query(n))).expect("stored bars").items };
    for n in 0..INSTRUMENTS {
        setup.block_on(target.store.insert_bars(&derived(n))).expect("a write");
    }
    let merge = format!("OPTIMIZE TABLE {}bars FINAL", target.prefix);
    setup.block_on(target.store.client().query_raw(&merge).execute()).expect("a merge");
    assert_eq!(derived(42), stored(42));
    let rounds = setup.rounds * 10;
    let times = ratio(rounds, || timed(|| black_box(derived(42))), || timed(|| black_box(stored(42))));
    println!("{what} of one of 100 instruments, materialized / stored: {times}");
    let all =
        |read: &dyn Fn(usize) -> Vec<Bar>| timed(|| (0..INSTRUMENTS).for_each(|n| drop(black_box(read(n)))));
    let times = ratio(setup.rounds, || all(&derived), || all(&stored));
    println!("{what} of 100 instruments, one by one, materialized / stored: {times}");
}

/// Writes live data with and without materialized bars.
fn writes(setup: &Setup) {
    let write = |on: bool| {
        let target = setup.create(|config| {
            if on {
                materialized(config);
                config.bars_settle = Duration::from_mins(2);
            }
        });
        timed(|| setup.fill(&target.store, MILLION, DAY))
    };
    let times = ratio(setup.rounds, || write(true), || write(false));
    println!("1,000,000 live ticks, with / without materialized bars (goal 1.03): {times}");
}
