//! 10,000 instruments and 2,600 one-day chunks over 12 years: batches with one late record, and discovery. The
//! instruments begin at different times, and every third has no ticks of recent years.

use std::cell::Cell;
use std::time::Duration;

use qi_benches::{ratio, timed};
use qi_core::store::{InstrumentQuery, LatestQuery, PriceStoreExt};
use qi_core::{Instrument, PriceTick, Selection, Timestamp};

use crate::checks::check;
use crate::setup::{Setup, TargetStore};
use crate::ticks::{INSTRUMENTS, time};

const MANY: usize = 100 * INSTRUMENTS;
const CHUNKS: usize = 2_600;
const YEARS: i64 = 12;
const DAY: i64 = 86_400_000_000;

/// The new records that each side of a round writes.
const WRITTEN: usize = 100_000;

/// Discovery is short, so it needs many rounds.
const FACTOR: usize = 10;

/// The number of chunks in which instruments begin. A prime, so that 100 instruments of each table have 100 starts.
const STARTS: usize = 1_949;

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
    println!("the calls of qi check, 10,000 instruments / 100 instruments (goal 1.3): {times}");
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
        let names = (0..instruments).map(name).collect();
        let table = Self { setup, target, instruments: names, next: Cell::new(0) };
        let ticks = CHUNKS * 100 / instruments;
        let count = ticks * instruments;
        let mut old: Vec<_> = (0..count).map(|n| table.old_tick(n, ticks)).collect();
        // The last instrument has a tick in every chunk, so every chunk exists.
        old.extend((0..CHUNKS).map(|chunk| table.tick_of(instruments - 1, count + chunk, day(chunk))));
        old.sort_by_key(PriceTick::ts);
        table.target.insert(&old, 5_000);
        table.target.insert(&table.new_ticks(MANY), MANY);
        table.target.compact();
        let chunks = table
            .target
            .scalar(&format!("SELECT count(*) FROM public.show_chunks('{}.ticks')", table.target.schema));
        assert_eq!(chunks, 2_601);
        table
    }

    fn tick_of(&self, instrument: usize, n: usize, ts: Timestamp) -> PriceTick {
        let model = self.setup.market.tick_at(n, ts);
        PriceTick::new(self.instruments[instrument].clone(), ts, n as u64, model.price())
            .expect("a valid tick")
            .with_quantity(model.quantity())
    }

    fn is_dormant(&self, instrument: usize) -> bool {
        instrument.is_multiple_of(3) && instrument + 1 < self.instruments.len()
    }

    /// Returns an old tick. The `ticks` ticks of an instrument are spread from its first chunk to its last.
    fn old_tick(&self, n: usize, ticks: usize) -> PriceTick {
        let instrument = n % self.instruments.len();
        let start = instrument * 977 % STARTS;
        let span = if self.is_dormant(instrument) { CHUNKS / 8 } else { CHUNKS - 1 - start };
        let chunk = start + span * (n / self.instruments.len()) / (ticks - 1);
        self.tick_of(instrument, n, day(chunk))
    }

    /// Returns a tick of an instrument that is not dormant.
    fn tick(&self, n: usize, ts: Timestamp) -> PriceTick {
        let instrument = n % self.instruments.len();
        self.tick_of(instrument + usize::from(self.is_dormant(instrument)), n, ts)
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

    /// Makes the calls of `qi check`.
    fn check(&self) -> Duration {
        timed(|| self.setup.block_on(check(&self.target.store)))
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
