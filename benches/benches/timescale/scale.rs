//! 10,000 instruments and 2,600 one-day chunks over 12 years: batches with one late record, and discovery.

use std::cell::Cell;
use std::time::Duration;

use qi_benches::{ratio, timed};
use qi_core::store::{InstrumentQuery, LatestQuery, PriceStore, PriceStoreExt};
use qi_core::{Instrument, PriceTick, Quote, Selection, Timestamp};

use crate::setup::{Setup, TargetStore};
use crate::ticks::{INSTRUMENTS, time};

const MANY: usize = 100 * INSTRUMENTS;
const CHUNKS: usize = 2_600;
const YEARS: i64 = 12;
const DAY: i64 = 86_400_000_000;

/// The new records that each side of a round writes.
const WRITTEN: usize = 100_000;

/// Discovery is short, so it needs many rounds.
const FACTOR: usize = 15;

pub(crate) fn run(setup: &Setup) {
    let (few, many) = (Table::new(setup, INSTRUMENTS), Table::new(setup, MANY));
    for batch in [1_000, 10_000, 50_000] {
        let times = ratio(setup.rounds, || many.write(batch, 0), || many.write(batch, 1));
        println!(
            "batches of {batch} in {CHUNKS} chunks, without a late record / with one (goal 0.8): {times}"
        );
    }
    many.target.compact();
    let rounds = setup.rounds * FACTOR;
    let times = ratio(rounds, || many.page(), || few.page());
    println!("a page of 100 series, 10,000 instruments / 100 instruments (goal 1.3): {times}");
    let times = ratio(rounds, || many.latest(), || few.latest());
    println!("latest of 100 instruments, of 10,000 / of 100 (goal 1.3): {times}");
    let times = ratio(rounds, || many.check(), || few.check());
    println!("the reads of qi check, 10,000 instruments / 100 instruments (goal 1.3): {times}");
}

/// A table of ticks in [`CHUNKS`] chunks.
struct Table<'a> {
    setup: &'a Setup,
    target: TargetStore<'a>,
    instruments: Vec<Instrument>,
    next: Cell<usize>,
}

impl<'a> Table<'a> {
    fn new(setup: &'a Setup, instruments: usize) -> Self {
        let target = setup.create(|config| config.chunks.set("ticks", Duration::from_hours(24)));
        let name = |n| format!("binance:COIN{n:05}-USDT").parse().expect("a valid name");
        let instruments: Vec<_> = (0..instruments).map(name).collect();
        let table = Self { setup, target, instruments, next: Cell::new(0) };
        // 100 ticks in each old chunk, and one new tick of each instrument.
        let old: Vec<_> = (0..CHUNKS * 100).map(|n| table.tick(n, day(n / 100))).collect();
        table.target.insert(&old, 5_000);
        table.target.insert(&table.new_ticks(MANY), MANY);
        table.target.compact();
        let chunks = table
            .target
            .scalar(&format!("SELECT count(*) FROM public.show_chunks('{}.ticks')", table.target.schema));
        assert_eq!(chunks, 2_601);
        table
    }

    fn tick(&self, n: usize, ts: Timestamp) -> PriceTick {
        let model = self.setup.market.tick_at(n, ts);
        let instrument = self.instruments[n % self.instruments.len()].clone();
        PriceTick::new(instrument, ts, n as u64, model.price())
            .expect("a valid tick")
            .with_quantity(model.quantity())
    }

    fn new_ticks(&self, count: usize) -> Vec<PriceTick> {
        let first = self.next.replace(self.next.get() + count);
        (first..first + count).map(|n| self.tick(n, after(time(0), n))).collect()
    }

    /// Returns the time to write new records in batches that have this number of late records each.
    fn write(&self, batch: usize, late: usize) -> Duration {
        let batches: Vec<_> = (0..WRITTEN / batch)
            .map(|_| {
                let mut ticks = self.new_ticks(batch - late);
                for _ in 0..late {
                    let n = self.next.replace(self.next.get() + 1);
                    ticks.push(self.tick(n, day(fastrand::usize(..CHUNKS))));
                }
                ticks
            })
            .collect();
        self.setup.checkpoint();
        timed(|| batches.iter().for_each(|ticks| self.target.insert(ticks, batch)))
    }

    fn page(&self) -> Duration {
        let query = InstrumentQuery::new(PriceTick::DATASET).with_limit(INSTRUMENTS).expect("a limit");
        timed(|| {
            let page = self.setup.block_on(self.target.store.instruments(&query)).expect("a page");
            assert_eq!(page.items.len(), INSTRUMENTS);
        })
    }

    fn latest(&self) -> Duration {
        let some = self.instruments.iter().step_by(self.instruments.len() / INSTRUMENTS).cloned();
        let query = LatestQuery::new(Selection::only(some).expect("100 names"));
        timed(|| {
            let page = self.setup.block_on(self.target.store.latest_ticks(&query)).expect("a page");
            assert_eq!(page.items.len(), INSTRUMENTS);
        })
    }

    /// Searches a dataset with records and a dataset without.
    fn check(&self) -> Duration {
        let first = |dataset| InstrumentQuery::new(dataset).with_limit(1).expect("a limit");
        timed(|| {
            self.setup.block_on(async {
                let store = &self.target.store;
                store.ping().await.expect("a server that answers");
                let quotes = store.instruments(&first(Quote::DATASET)).await.expect("a page");
                let ticks = store.instruments(&first(PriceTick::DATASET)).await.expect("a page");
                assert_eq!((quotes.items.len(), ticks.items.len()), (0, 1));
            });
        })
    }
}

/// Returns the start of an old day.
fn day(chunk: usize) -> Timestamp {
    let days = i64::try_from(chunk).expect("a small number") * (YEARS * 365 - 1) / 2_600;
    Timestamp::from_micros(time(0).as_micros() + (days - YEARS * 365) * DAY).expect("a time")
}

/// Returns the time of a new record. All new records lie in one day.
fn after(start: Timestamp, n: usize) -> Timestamp {
    Timestamp::from_micros(start.as_micros() + i64::try_from(n).expect("a small number")).expect("a time")
}
