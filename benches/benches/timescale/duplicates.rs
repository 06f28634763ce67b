//! Batches with 1 percent of repeated records, compared with batches without, on TimescaleDB and on PostgreSQL.

use std::cell::Cell;

use qi_benches::{ratio, timed};
use qi_core::PriceTick;

use crate::setup::{Setup, TargetStore};
use crate::ticks::INSTRUMENTS;

/// The records that are stored before the measurement.
const STORED: usize = 300_000;
/// The number of stored records from which duplicates are drawn.
const POOL: usize = 20_000;

/// The source of the repeated records.
#[derive(Debug, Clone, Copy)]
enum Duplicates {
    /// The newest stored records.
    Recent,
    /// The oldest stored records.
    Old,
    /// Records among the new ones, stored by an earlier write.
    Scattered,
}

pub(crate) fn run(setup: &Setup) {
    let postgres = setup.postgres();
    if postgres.is_none() {
        println!("postgres: QI_POSTGRES_URL is not set, so nothing was measured");
    }
    for (name, setup) in [("timescale", Some(setup)), ("postgres", postgres.as_ref())] {
        let Some(setup) = setup else { continue };
        for instruments in [1, INSTRUMENTS] {
            let feed = Feed { target: setup.create(|_| ()), setup, instruments, next: Cell::new(0) };
            feed.target.insert(&feed.take(STORED), POOL);
            feed.target.compact();
            for batch in [1_000, 10_000, 50_000] {
                for duplicates in [Duplicates::Recent, Duplicates::Old, Duplicates::Scattered] {
                    feed.measure(name, batch, duplicates);
                }
            }
        }
    }
}

/// New ticks in the order of time, and the store that receives them.
struct Feed<'a> {
    setup: &'a Setup,
    target: TargetStore<'a>,
    instruments: usize,
    next: Cell<usize>,
}

impl Feed<'_> {
    fn tick(&self, n: usize) -> PriceTick {
        // The market has 100 instruments in turn, so every hundredth tick is of the same instrument.
        self.setup.market.tick(n * INSTRUMENTS / self.instruments)
    }

    fn take(&self, count: usize) -> Vec<PriceTick> {
        let start = self.next.replace(self.next.get() + count);
        (start..start + count).map(|n| self.tick(n)).collect()
    }

    /// Returns a batch of new records, in which one record in a hundred, at a random position, is replaced by a duplicate.
    fn with_duplicates(&self, size: usize, duplicates: Duplicates) -> Vec<PriceTick> {
        let newest = self.next.get();
        let mut batch = self.take(size);
        let mut stored = Vec::new();
        for group in batch.chunks_mut(100) {
            let at = fastrand::usize(..group.len());
            match duplicates {
                Duplicates::Recent => group[at] = self.tick(newest - 1 - fastrand::usize(..POOL)),
                Duplicates::Old => group[at] = self.tick(fastrand::usize(..POOL)),
                Duplicates::Scattered => stored.push(group[at].clone()),
            }
        }
        self.target.insert(&stored, POOL);
        batch
    }

    fn measure(&self, server: &str, size: usize, duplicates: Duplicates) {
        let count = (50_000 / size).clamp(2, 20);
        let insert = |batches: Vec<Vec<PriceTick>>| {
            timed(|| batches.iter().for_each(|batch| self.target.insert(batch, size)))
        };
        let times = ratio(
            self.setup.rounds,
            || insert((0..count).map(|_| self.with_duplicates(size, duplicates)).collect()),
            || insert((0..count).map(|_| self.take(size)).collect()),
        );
        let (instruments, batches) = (self.instruments, count);
        println!(
            "{server}, {instruments} instruments, {batches} batches of {size}, 1 percent duplicates ({duplicates:?}) / none \
             (goal 1.2): {times}"
        );
    }
}
