//! Calls in databases with many instruments, chunks and ticks, compared with small databases.

use std::cell::Cell;
use std::hint::black_box;

use qi_adapters::timescale::Pg;
use qi_benches::{Ratio, ratio, timed};
use qi_core::store::{BarQuery, InstrumentQuery, LatestQuery, PriceStore, PriceStoreExt as _};
use qi_core::{Instrument, Interval, PriceTick, Quote, Record as _, Selection, TimeRange, Timestamp};
use sqlx::Row as _;
use sqlx::postgres::types::PgInterval;

use crate::setup::{Setup, TargetStore, print_rates};

const DAY: i64 = 86_400_000_000;
/// A Monday, 2011-11-07.
const START: i64 = 1_320_624_000_000_000;
const DAYS: i64 = 12 * 365;
const CHUNKS: i64 = 2_600;
const INSTRUMENTS: usize = 10_000;

fn instrument(n: usize) -> Instrument {
    format!("x:S{n:05}").parse().expect("a valid name")
}

fn tick(setup: &Setup, instrument: Instrument, n: usize, micros: i64) -> PriceTick {
    let ts = Timestamp::from_micros(START + micros).expect("a time of 12 years");
    let like = setup.market.tick(n);
    PriceTick::new(instrument, ts, n as u64, like.price()).expect("a tick").with_quantity(like.quantity())
}

/// Returns the start of a chunk. The chunks are days of 12 years.
fn chunk(n: i64) -> i64 {
    n * (DAYS - 1) / CHUNKS * DAY
}

fn daily<'a>(setup: &'a Setup, instruments: &[Instrument]) -> TargetStore<'a> {
    let target = setup.create(|config| config.chunks.set("ticks", std::time::Duration::from_hours(24)));
    let all: Vec<_> =
        instruments.iter().enumerate().map(|(n, i)| tick(setup, i.clone(), n, DAYS * DAY)).collect();
    target.insert(&all, 200_000);
    target
}

/// Writes batches with one record of a random day of 12 years, and batches without.
pub(crate) fn late(setup: &Setup) {
    let instruments: Vec<_> = (0..INSTRUMENTS).map(instrument).collect();
    let target = daily(setup, &instruments);
    let old: Vec<_> = (0..CHUNKS).map(|n| tick(setup, instruments[0].clone(), 0, chunk(n))).collect();
    target.insert(&old, 10_000);
    target.compact();
    for size in [100, 1_000, 10_000, 50_000] {
        let next = Cell::new(INSTRUMENTS);
        let batches = (50_000 / size).clamp(4, 40);
        let take = |late: bool| -> Vec<Vec<PriceTick>> {
            (0..batches)
                .map(|_| {
                    let first = next.replace(next.get() + size);
                    let mut batch: Vec<_> = (first..first + size)
                        .map(|n| {
                            let at = i64::try_from(n).expect("a small number");
                            tick(setup, instruments[n * 7 % INSTRUMENTS].clone(), n, DAYS * DAY + at * 1_000)
                        })
                        .collect();
                    if late {
                        let n = fastrand::i64(..CHUNKS);
                        batch[size / 2] =
                            tick(setup, instruments[first % INSTRUMENTS].clone(), first, chunk(n) + 1);
                    }
                    batch
                })
                .collect()
        };
        let insert = |batches: Vec<Vec<PriceTick>>| {
            timed(|| batches.iter().for_each(|batch| target.insert(batch, size)))
        };
        let times = ratio(setup.rounds, || insert(take(true)), || insert(take(false)));
        print_rates(
            &format!("{batches} batches of {size} with one late record each / without, 2,600 chunks"),
            "0.8",
            batches * size,
            &times,
        );
    }
}

/// Finds instruments among 10,000 and among 100.
pub(crate) fn discovery(setup: &Setup) {
    let few: Vec<_> = (0..100).map(instrument).collect();
    let many: Vec<_> = (0..INSTRUMENTS).map(instrument).collect();
    let (few, many) = (daily(setup, &few), daily(setup, &many));
    few.compact();
    many.compact();
    let compare = |call: &dyn Fn(&TargetStore<'_>)| -> Ratio {
        ratio(setup.rounds * 15, || timed(|| call(&many)), || timed(|| call(&few)))
    };
    let find = |target: &TargetStore<'_>, dataset, limit: usize, expected: usize| {
        let query = InstrumentQuery::new(dataset).with_limit(limit).expect("a limit");
        let page = setup.block_on(target.store.instruments(&query)).expect("a page");
        assert_eq!(page.items.len(), expected);
    };
    let times = compare(&|target| find(target, PriceTick::DATASET, 100, 100));
    println!("instruments, a page of 100, 10,000 instruments / 100 (goal 1.3): {times}");
    let times = compare(&|target| {
        let query = LatestQuery::new(Selection::All).with_limit(100).expect("a limit");
        let page = setup.block_on(target.store.latest_ticks(&query)).expect("a page");
        assert_eq!(page.items.len(), 100);
    });
    println!("latest of 100 instruments, 10,000 instruments / 100 (goal 1.3): {times}");
    let times = compare(&|target| {
        setup.block_on(target.store.ping()).expect("a server that answers");
        find(target, PriceTick::DATASET, 1, 1);
        find(target, Quote::DATASET, 1, 0);
    });
    println!("the calls of `qi check`, 10,000 instruments without quotes / 100 (goal 1.3): {times}");
}

/// Derives long bars from a week of 3,000,000 ticks of one pair.
pub(crate) fn long_bars(setup: &Setup) {
    const TICKS: usize = 3_000_000;
    const BATCH: usize = 200_000;
    const SORTED: &str = "SELECT bucket, opening[1], opening[count], high, low, count, volume, turnover FROM (\
        SELECT date_bin($4, ts, TIMESTAMPTZ '1970-01-05 00:00:00+00') AS bucket, \
        array_agg(price ORDER BY ts, seq) AS opening, max(price) AS high, min(price) AS low, \
        count(*) AS count, sum(quantity) AS volume, sum(price * quantity) AS turnover FROM ticks \
        WHERE instrument_id = $1 AND ts >= $2 AND ts < $3 GROUP BY bucket) b ORDER BY bucket";
    const SUMS: &str = "SELECT max(price), min(price), count(*), sum(quantity), sum(price * quantity), $4::interval \
        FROM ticks WHERE instrument_id = $1 AND ts >= $2 AND ts < $3";
    let target = setup.create(|_| ());
    let pair = instrument(0);
    let step = 7 * DAY / i64::try_from(TICKS).expect("a small number");
    for first in (0..TICKS).step_by(BATCH) {
        let time = |n: usize| i64::try_from(n).expect("a small number") * step;
        let part: Vec<_> = (first..first + BATCH).map(|n| tick(setup, pair.clone(), n, time(n))).collect();
        target.insert(&part, BATCH);
    }
    target.compact();
    let range = |micros| Timestamp::from_micros(START + micros).expect("a time");
    let range = TimeRange::new(range(0), range(7 * DAY)).expect("in order");
    let id = target.id_of(pair.symbol().as_str());
    for (interval, bars) in [(Interval::D1, 7), (Interval::W1, 1)] {
        let query = BarQuery::new(pair.clone(), interval, range);
        let port = || {
            timed(|| {
                let page = setup.block_on(target.store.derived_bars(&query)).expect("bars");
                assert_eq!(page.items.len(), bars);
                page
            })
        };
        let bare = |sql: &'static str, rows: usize| {
            timed(|| {
                let width = PgInterval { months: 0, days: 0, microseconds: interval.as_micros() };
                let query =
                    sqlx::query(sql).bind(id).bind(Pg(range.start())).bind(Pg(range.end())).bind(width);
                let found = setup.block_on(query.fetch_all(target.store.pool())).expect("rows");
                assert_eq!(found.len(), rows);
                black_box(found[0].len())
            })
        };
        let times = ratio(setup.rounds, port, || bare(SORTED, bars));
        println!("{bars} bars of {interval} of 3,000,000 ticks / an array of all prices (goal 0.2): {times}");
        let times = ratio(setup.rounds, port, || bare(SUMS, 1));
        println!("{bars} bars of {interval} of 3,000,000 ticks / the sums of the week alone: {times}");
    }
}
