//! Concurrent histories over a store with materialized bars. Each history has an instrument of its own, so every read
//! between two of its changes has one correct result, whatever the other histories and the maintainers do at the same
//! time. A read that overlaps with a change, with a dropped write, or with a purge of another history, may contain a
//! part of it: [`Overlap`].

#![allow(clippy::unwrap_used, reason = "test support")]

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt as _;
use libtest_mimic::{Completion, Trial};
use qi_core::record::SortKey;
use qi_core::store::{BarQuery, DeleteQuery, MaintainRequest, Order, Page, RangeQuery, StatsQuery};
use qi_core::{
    Bar, Dataset, Decimal, Instrument, Interval, Price, PriceStore, PriceStoreExt as _, PriceTick, Quantity,
    Record as _, Rng, Selection, TimeRange, Timestamp,
};
use qi_core::{Datasets, Result};
use qi_testkit::presence;
use qi_testkit::store::contract::{MemoryFactory, StoreFactory, TestStore, Wrapper};
use qi_testkit::store::model::{cases, check_differences, check_histories, reference_bars};
use tokio::sync::{Mutex, RwLock};

use crate::servers::runs_long_tests;

/// A Monday, 00:00.
const BASE: i64 = 1_699_833_600;

/// The hours in which the ticks lie.
const HOURS: i64 = 60;

const INTERVALS: [Interval; 6] =
    [Interval::M1, Interval::M15, Interval::H1, Interval::H4, Interval::D1, Interval::W1];

const TICKS: Dataset = PriceTick::DATASET;

/// The number of records from which the tested stores may write new and repeated records in two transactions.
const COPY_FROM: usize = 8;

/// The settings of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// The minimum number of histories. More histories run until the disturbance has counted a kill.
    pub(crate) histories: u64,
    /// The number of histories that run at the same time.
    pub(crate) at_once: usize,
    pub(crate) seed: u64,
    pub(crate) reads: Reads,
    /// The time after the drop of a write from which the server no longer stores it. None if no writes are dropped. A
    /// write must then be one request.
    pub(crate) drops: Option<Duration>,
    /// The maximum pause before each step of a history, and between the calls of a maintainer.
    pub(crate) pause: Duration,
}

/// The guarantee of a store for a read that overlaps with a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "each test target uses a part of it")]
pub(crate) enum Reads {
    /// A page is one state of the ticks.
    Snapshot,
    /// A bar is one state of the ticks: it contains a request of a write completely or not at all. Deletions and purges
    /// are not atomic, because the parts of a table change one after another.
    Bars,
    /// Each tick of the change is in the state before or after it.
    Ticks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Write,
    /// A write whose new and repeated records may be two transactions.
    SplitWrite,
    Delete,
    Purge,
}

/// The part of a change that an overlapping read may contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overlap {
    /// The complete change or nothing, in all bars of the page.
    Page,
    /// The complete change or nothing, in each bar.
    Bar,
    /// The removal of the oldest ticks of a bar.
    Oldest,
    /// Any part.
    Any,
}

impl Reads {
    fn overlap(self, change: Change) -> Overlap {
        match (self, change) {
            (Self::Snapshot, Change::Write | Change::Delete) => Overlap::Page,
            (Self::Snapshot, Change::Purge) => Overlap::Oldest,
            (Self::Bars, Change::Write | Change::SplitWrite) => Overlap::Bar,
            _ => Overlap::Any,
        }
    }
}

/// The purges of all histories. A purge concerns all instruments, so it excludes the changes of all histories, but not
/// their reads.
#[derive(Debug, Default)]
struct Purges {
    changes: RwLock<()>,
    /// The cutoffs of all purges that have begun.
    begun: std::sync::Mutex<Vec<Timestamp>>,
    /// The number of purges that have ended.
    ended: AtomicUsize,
}

impl Purges {
    fn cutoffs(&self) -> Vec<Timestamp> {
        self.begun.lock().unwrap().clone()
    }
}

/// The seed of the histories, from the clock. A failure prints it.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("QI_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| Timestamp::now().as_micros().cast_unsigned());
    println!("QI_SEED={seed}");
    seed
}

fn hour(n: i64) -> Timestamp {
    Timestamp::from_secs(BASE + n * 3_600).unwrap()
}

fn hours(start: i64, end: i64) -> TimeRange {
    TimeRange::new(hour(start), hour(end)).unwrap()
}

/// Runs histories, two maintainers whose calls are dropped at random moments, and `disturb` until all histories have
/// ended. The disturbance counts its kills. Panics at the first wrong bar.
pub(crate) async fn run<D: Future<Output = ()>>(
    store: Arc<dyn PriceStore>,
    plan: Plan,
    disturb: impl FnOnce(Arc<AtomicU64>) -> D,
) {
    let kills = Arc::new(AtomicU64::new(0));
    let disturb = disturb(kills.clone());
    let over = AtomicBool::new(false);
    let purges = Purges::default();
    let next = AtomicU64::new(0);
    let ended = Mutex::new(Vec::new());
    let histories = futures::future::join_all((0..plan.at_once).map(|_| async {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= plan.histories && kills.load(Ordering::Relaxed) > 0 {
                return;
            }
            assert!(number < 100 * plan.histories, "nothing was killed");
            let mut history = History::new(number, plan);
            history.run(&*store, &purges).await;
            ended.lock().await.push(history);
        }
    }));
    // The watermark moves with the number of histories, so live and late ticks are written at any time.
    let latest = || {
        let begun = next.load(Ordering::Relaxed).min(plan.histories);
        HOURS * i64::try_from(begun).unwrap() / i64::try_from(plan.histories).unwrap()
    };
    let maintainers = futures::future::join_all((0..2).map(|number| {
        let rng = Rng::with_seed(plan.seed.wrapping_add(number));
        maintain(&*store, rng, &over, plan.pause, latest)
    }));
    let work = async {
        futures::future::join(
            async {
                histories.await;
                over.store(true, Ordering::Relaxed);
            },
            maintainers,
        )
        .await;
        // Reads of stale hours use the ticks. After complete maintenance, all bars come from the levels.
        let everything = MaintainRequest::default().with_until(hour(HOURS + 24 * 7));
        let complete = async {
            while !retried(|| store.maintain(&everything)).await.is_complete() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(5), complete).await.unwrap();
        let (store, purges) = (&*store, &purges);
        let mut ended = ended.lock().await;
        futures::stream::iter(ended.iter_mut())
            .for_each_concurrent(plan.at_once, |history| async move {
                for interval in INTERVALS {
                    history.check_bars(store, interval, purges).await;
                }
            })
            .await;
    };
    tokio::select! {
        () = work => {}
        () = disturb => unreachable!("the disturbance runs until it is dropped"),
    }
}

/// Calls `maintain` with random times up to the hour `latest`. Drops some calls.
async fn maintain(
    store: &dyn PriceStore,
    mut rng: Rng,
    over: &AtomicBool,
    pause: Duration,
    latest: impl Fn() -> i64,
) {
    while !over.load(Ordering::Relaxed) {
        let request = MaintainRequest::default().with_until(hour(rng.i64(-2..=latest())));
        let request = request.with_budget(Duration::from_secs(rng.u64(0..2)));
        let call = store.maintain(&request);
        let limit = if rng.u8(0..4) == 0 { rng.u64(1..40) } else { 60_000 };
        if let Ok(Err(error)) = tokio::time::timeout(Duration::from_millis(limit), call).await {
            assert!(error.retry().is_retryable(), "{}", error.report());
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(0..30)) + pause.mul_f64(rng.f64())).await;
    }
}

type Ticks = BTreeMap<SortKey, PriceTick>;

/// A random history of one instrument, with the ticks that its store must have.
struct History {
    rng: Rng,
    plan: Plan,
    instrument: Instrument,
    ticks: Ticks,
    /// The earlier values of ticks that were corrected and not deleted since.
    older: BTreeMap<SortKey, Vec<PriceTick>>,
    pending: Option<Pending>,
    /// The number of purges that `ticks` contains.
    purges: usize,
    /// The duration of the last write.
    write_time: Duration,
}

/// A dropped write whose result is not known.
struct Pending {
    /// The ticks if the server stores the write.
    after: Ticks,
    /// The time from which the server no longer stores the write.
    until: Instant,
}

/// The possible values of each key of a bar.
type Choices<'a> = BTreeMap<SortKey, Vec<&'a PriceTick>>;

/// Returns the first page of the bars of these ticks.
fn bars(ticks: &Ticks, query: &BarQuery) -> Vec<Bar> {
    let ticks: Vec<_> = ticks.values().cloned().collect();
    let mut bars = reference_bars(&ticks, query.interval);
    if query.order == Order::Descending {
        bars.reverse();
    }
    bars.truncate(query.page.limit());
    bars
}

/// Returns the ticks of a bar while its oldest ticks are removed.
fn states_of_removal(before: &Ticks, after: &Ticks) -> Vec<Ticks> {
    let removed = before.keys().filter(|key| !after.contains_key(*key)).count();
    let state = |n| before.iter().skip(n).map(|(key, tick)| (*key, tick.clone())).collect::<Ticks>();
    (0..=removed).map(state).collect()
}

/// Returns the possible sums of a figure over the ticks of a bar.
fn sums(choices: &Choices<'_>, kept: &Choices<'_>, of: impl Fn(&PriceTick) -> i128) -> RangeInclusive<i128> {
    let least = |ticks: &Vec<&PriceTick>| ticks.iter().map(|tick| of(tick)).min().unwrap();
    let most = |ticks: &Vec<&PriceTick>| ticks.iter().map(|tick| of(tick)).max().unwrap();
    kept.values().map(least).sum()..=choices.values().map(most).sum()
}

fn has_price(mut choices: btree_map::Range<'_, SortKey, Vec<&PriceTick>>, price: Price) -> bool {
    choices.any(|(_, ticks)| ticks.iter().any(|tick| tick.price() == price))
}

impl History {
    fn new(number: u64, plan: Plan) -> Self {
        Self {
            rng: Rng::with_seed(plan.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            plan,
            instrument: format!("x:H{number}").parse().unwrap(),
            ticks: BTreeMap::new(),
            older: BTreeMap::new(),
            pending: None,
            purges: 0,
            write_time: Duration::from_millis(15),
        }
    }

    async fn run(&mut self, store: &dyn PriceStore, purges: &Purges) {
        const STEPS: usize = 10;
        for _ in 0..STEPS {
            tokio::time::sleep(self.plan.pause.mul_f64(self.rng.f64())).await;
            if self.rng.u8(0..100) == 0 {
                let cutoff = hour(self.rng.i64(0..HOURS / 2));
                let _changes = purges.changes.write().await;
                self.apply(purges);
                purges.begun.lock().unwrap().push(cutoff);
                let left = self.ticks_from(cutoff);
                self.change(store, left, Change::Purge, retried(|| store.purge_before(TICKS, cutoff))).await;
                self.purges += 1;
                purges.ended.store(self.purges, Ordering::Relaxed);
            }
            // During the purge of another history, this history only reads.
            let changes = loop {
                match purges.changes.try_read() {
                    Ok(changes) => break changes,
                    Err(_) => self.check(store, purges).await,
                }
            };
            self.apply(purges);
            self.step(store).await;
            drop(changes);
            self.check(store, purges).await;
            self.resolve(store, purges).await;
        }
    }

    /// Removes the ticks of all purges that have ended.
    fn apply(&mut self, purges: &Purges) {
        let ended = purges.ended.load(Ordering::Relaxed);
        for cutoff in &purges.cutoffs()[self.purges..ended] {
            let first: SortKey = (*cutoff, 0);
            self.ticks = self.ticks.split_off(&first);
            self.older = self.older.split_off(&first);
            if let Some(pending) = &mut self.pending {
                pending.after = pending.after.split_off(&first);
            }
        }
        self.purges = ended;
    }

    /// Replaces the ticks after a change.
    fn accept(&mut self, after: Ticks) {
        for (key, tick) in std::mem::replace(&mut self.ticks, after) {
            match self.ticks.get(&key) {
                Some(now) if *now == tick => {}
                Some(_) => self.older.entry(key).or_default().push(tick),
                None => drop(self.older.remove(&key)),
            }
        }
    }

    /// Checks bars until it is known whether a dropped write was stored.
    async fn resolve(&mut self, store: &dyn PriceStore, purges: &Purges) {
        let query = RangeQuery::new(self.instrument.clone(), TimeRange::ALL);
        loop {
            self.apply(purges);
            let Some(pending) = &self.pending else { return };
            let is_over = Instant::now() >= pending.until;
            let page = retried(|| store.ticks(&query)).await;
            let stored: Ticks = page.items.into_iter().map(|tick| (tick.sort_key(), tick)).collect();
            if stored == pending.after {
                self.pending = None;
                self.accept(stored);
                return;
            }
            if is_over && self.overlapping(purges).is_none() {
                assert!(stored == self.ticks, "{}: a part of a dropped write is stored", self.instrument);
                self.pending = None;
                return;
            }
            self.check(store, purges).await;
            tokio::time::sleep(Duration::from_millis(self.rng.u64(300..900))).await;
        }
    }

    /// Returns the latest cutoff of the purges that have begun since the last call of `apply`, or were running then.
    fn overlapping(&self, purges: &Purges) -> Option<Timestamp> {
        purges.cutoffs()[self.purges..].iter().copied().max()
    }

    fn ticks_from(&self, cutoff: Timestamp) -> Ticks {
        self.ticks.range((cutoff, 0)..).map(|(key, tick)| (*key, tick.clone())).collect()
    }

    async fn step(&mut self, store: &dyn PriceStore) {
        let is_dropped = self.plan.drops.is_some() && self.rng.u8(0..8) == 0;
        // A purge of another history may run before the server stores a dropped write. It removes none of these ticks.
        let start = if is_dropped { HOURS / 2 } else { 0 };
        match self.rng.u8(0..10) {
            0..=5 => {
                let batch = self.new_ticks(start);
                self.insert(store, batch, is_dropped).await;
            }
            6 | 7 => {
                // Corrections of some ticks, and the same records again.
                let ticks = self.ticks.range((hour(start), 0)..).filter(|_| self.rng.bool());
                let mut batch: Vec<_> = ticks.map(|(_, tick)| tick.clone()).collect();
                batch.truncate(20);
                let price = self.price();
                for tick in batch.iter_mut().step_by(2) {
                    *tick = self.tick(tick.sort_key(), price);
                }
                self.insert(store, batch, is_dropped).await;
            }
            _ => {
                let start = self.rng.i64(0..HOURS);
                let range = hours(start, start + self.rng.i64(1..20));
                let own = Selection::only([self.instrument.clone()]).unwrap();
                let query = DeleteQuery::ticks(own, range);
                let mut left = self.ticks.clone();
                left.retain(|(ts, _), _| !range.contains(*ts));
                self.change(store, left, Change::Delete, retried(|| store.delete_range(&query))).await;
            }
        }
    }

    async fn insert(&mut self, store: &dyn PriceStore, batch: Vec<PriceTick>, is_dropped: bool) {
        let mut after = self.ticks.clone();
        after.extend(batch.iter().map(|tick| (tick.sort_key(), tick.clone())));
        let keys: BTreeSet<_> = batch.iter().map(PriceTick::sort_key).collect();
        let (first, last) = (keys.first().copied(), keys.last().copied());
        let are_new =
            first.zip(last).is_none_or(|(first, last)| self.ticks.range(first..=last).next().is_none());
        let is_one =
            batch.len() < COPY_FROM || are_new || keys.iter().all(|key| self.ticks.contains_key(key));
        let change = if is_one { Change::Write } else { Change::SplitWrite };
        if !is_dropped {
            let call = async {
                let started = Instant::now();
                retried(|| store.insert_ticks(&batch)).await;
                started.elapsed()
            };
            let write_time = self.change(store, after, change, call).await;
            // Not the time in which the server was down.
            self.write_time = write_time.min(Duration::from_secs(1));
            return;
        }
        let limit = self.write_time.mul_f64(self.rng.f64() * 1.2);
        let call = async {
            let outcome = tokio::time::timeout(limit, store.insert_ticks(&batch)).await;
            if let Ok(Err(error)) = &outcome {
                assert!(error.retry().is_retryable(), "{}", error.report());
            }
            (matches!(outcome, Ok(Ok(_))), Instant::now())
        };
        let (is_stored, ended) = self.read_during(store, &after, change, call).await;
        if is_stored {
            self.accept(after);
        } else {
            let until = ended + self.plan.drops.unwrap_or_default();
            self.pending = Some(Pending { after, until });
        }
    }

    /// Runs a change after which the store has these ticks, and an overlapping read.
    async fn change<T>(
        &mut self,
        store: &dyn PriceStore,
        after: Ticks,
        change: Change,
        call: impl Future<Output = T>,
    ) -> T {
        let result = self.read_during(store, &after, change, call).await;
        self.accept(after);
        result
    }

    /// Runs the call of a change, and an overlapping read.
    async fn read_during<T>(
        &mut self,
        store: &dyn PriceStore,
        after: &Ticks,
        change: Change,
        call: impl Future<Output = T>,
    ) -> T {
        let query = self.random_query();
        let pause = self.write_time.mul_f64(self.rng.f64());
        let read = async {
            tokio::time::sleep(pause).await;
            retried(|| store.derived_bars(&query)).await
        };
        let (result, page) = futures::future::join(call, read).await;
        self.check_overlap(&query, &page, after, self.plan.reads.overlap(change));
        result
    }

    /// Checks a page that was read during a change after which the store has the ticks `after`.
    fn check_overlap(&self, query: &BarQuery, page: &Page<Bar>, after: &Ticks, overlap: Overlap) {
        let BarQuery { interval, order, .. } = *query;
        if overlap == Overlap::Page {
            let states = [bars(&self.ticks, query), bars(after, query)];
            let differences = states.each_ref().map(|state| {
                (state.len(), page.items.iter().zip(state).find(|(found, expected)| found != expected))
            });
            let count = page.items.len();
            assert!(states.contains(&page.items), "{} {interval}: {count} {differences:?}", self.instrument);
            return;
        }
        let last = page.next.as_ref().and(page.items.last()).map(Bar::open_time);
        let range = match (last, order) {
            (None, _) => Timestamp::MIN..Timestamp::MAX,
            (Some(last), Order::Ascending) => Timestamp::MIN..last.checked_add(interval.duration()).unwrap(),
            (Some(last), Order::Descending) => last..Timestamp::MAX,
        };
        let found: BTreeMap<_, _> = page.items.iter().map(|bar| (bar.open_time(), bar)).collect();
        // The ticks of each bucket before and after the change.
        let mut buckets = BTreeMap::<Timestamp, [Ticks; 2]>::new();
        for (at, ticks) in [&self.ticks, after].into_iter().enumerate() {
            for (key, tick) in ticks.iter().filter(|((ts, _), _)| range.contains(ts)) {
                buckets.entry(interval.floor(key.0)).or_default()[at].insert(*key, tick.clone());
            }
        }
        for open_time in found.keys() {
            assert!(buckets.contains_key(open_time), "{} {interval} {open_time}: no ticks", self.instrument);
        }
        for (open_time, [before, after]) in buckets {
            let found = found.get(&open_time).copied();
            let states = match overlap {
                Overlap::Bar => vec![before, after],
                Overlap::Oldest => states_of_removal(&before, &after),
                Overlap::Any | Overlap::Page => {
                    self.check_part(found, &before, &after);
                    continue;
                }
            };
            let is_found = |state: &Ticks| {
                let ticks: Vec<_> = state.values().cloned().collect();
                reference_bars(&ticks, interval).first() == found
            };
            let is_possible = states.iter().any(is_found);
            assert!(is_possible, "{} {interval} {open_time}: {found:?} of {states:?}", self.instrument);
        }
    }

    /// Checks a bar that may contain any part of a change of its ticks. While a tick is removed, its earlier values may
    /// be visible, because the parts of a table change one after another.
    fn check_part(&self, found: Option<&Bar>, before: &Ticks, after: &Ticks) {
        const ONE: i128 = Decimal::from_int(1).units();
        let mut choices = Choices::new();
        for (key, tick) in before.iter().chain(after) {
            choices.entry(*key).or_default().push(tick);
        }
        for (key, ticks) in &mut choices {
            if !after.contains_key(key) {
                ticks.extend(self.older.get(key).into_iter().flatten());
            }
        }
        let mut kept = choices.clone();
        kept.retain(|key, _| before.contains_key(key) && after.contains_key(key));
        let text = || format!("{} {found:?} of {choices:?}", self.instrument);
        let Some(bar) = found else {
            assert!(kept.is_empty(), "no bar: {}", text());
            return;
        };
        // The first tick of the bar is not later than the first kept tick, and the last tick is not earlier than the
        // last kept tick.
        let ends = kept.keys().next().zip(kept.keys().next_back());
        let ends = ends.or_else(|| choices.keys().next_back().zip(choices.keys().next()));
        let (first, last) = ends.unwrap();
        let values = bar.values();
        let quantity = |tick: &PriceTick| tick.quantity().map_or(0, Quantity::units);
        let quote = |tick: &PriceTick| tick.price().units() / ONE * quantity(tick);
        let is_high = |ticks: &Vec<&PriceTick>| ticks.iter().any(|tick| tick.price() <= values.high);
        let is_low = |ticks: &Vec<&PriceTick>| ticks.iter().any(|tick| tick.price() >= values.low);
        let all = || choices.range::<SortKey, _>(..);
        let count = i128::from(values.count.unwrap());
        let volume = values.volume.map_or(0, Quantity::units);
        let quote_volume = values.quote_volume.map_or(0, Quantity::units);
        let checks = [
            ("open", has_price(choices.range(..=*first), values.open)),
            ("high", has_price(all(), values.high) && kept.values().all(is_high)),
            ("low", has_price(all(), values.low) && kept.values().all(is_low)),
            ("close", has_price(choices.range(*last..), values.close)),
            ("volume", sums(&choices, &kept, quantity).contains(&volume)),
            ("quote volume", sums(&choices, &kept, quote).contains(&quote_volume)),
            ("count", count > 0 && sums(&choices, &kept, |_| 1).contains(&count)),
        ];
        for (figure, is_possible) in checks {
            assert!(is_possible, "{figure}: {}", text());
        }
    }

    /// Returns a query of all bars of a random interval, in a random order.
    fn random_query(&mut self) -> BarQuery {
        let interval = self.rng.choice(INTERVALS).unwrap();
        self.query_of(interval)
    }

    /// Returns a query of all bars of an interval, in a random order.
    fn query_of(&mut self, interval: Interval) -> BarQuery {
        let query = BarQuery::new(self.instrument.clone(), interval, TimeRange::ALL);
        if self.rng.bool() { query.descending() } else { query }
    }

    fn price(&mut self) -> i64 {
        self.rng.i64(1..1_000)
    }

    fn tick(&mut self, (ts, seq): SortKey, price: i64) -> PriceTick {
        let price = Decimal::from_int(price).to_string().parse().unwrap();
        let quantity = self.rng.bool().then(|| "0.000000000000000007".parse().unwrap());
        PriceTick::new(self.instrument.clone(), ts, seq, price).unwrap().with_quantity(quantity)
    }

    /// Returns ticks of a few neighbouring hours from an hour on.
    fn new_ticks(&mut self, start: i64) -> Vec<PriceTick> {
        let (start, count) = (self.rng.i64(start..HOURS - 6), self.rng.usize(1..40));
        let tick = |_| {
            let seconds = start * 3_600 + self.rng.i64(0..6 * 3_600);
            let key = (Timestamp::from_secs(BASE + seconds).unwrap(), self.rng.u64(0..2));
            let price = self.price();
            self.tick(key, price)
        };
        (0..count).map(tick).collect()
    }

    /// Compares the bars of an interval, and the statistics, with the ticks.
    async fn check(&mut self, store: &dyn PriceStore, purges: &Purges) {
        let interval = self.rng.choice(INTERVALS).unwrap();
        self.check_bars(store, interval, purges).await;
        let start = self.rng.i64(0..HOURS);
        let range = hours(start, start + self.rng.i64(1..40));
        let query = StatsQuery::new(self.instrument.clone(), range);
        self.apply(purges);
        let stats = retried(|| store.stats(&query)).await;
        let count = stats.map_or(0, |stats| stats.count());
        let cutoff = self.overlapping(purges).unwrap_or(Timestamp::MIN);
        let count_from = |ticks: &Ticks, cutoff: Timestamp| {
            ticks.keys().filter(|(ts, _)| range.contains(*ts) && *ts >= cutoff).count() as u64
        };
        let counts = |ticks: &Ticks| count_from(ticks, cutoff)..=count_from(ticks, Timestamp::MIN);
        let possible = [Some(&self.ticks), self.pending.as_ref().map(|pending| &pending.after)];
        let possible = possible.map(|ticks| ticks.map(counts));
        let is_possible = possible.iter().flatten().any(|counts| counts.contains(&count));
        assert!(is_possible, "{} {range:?}: {count} of {possible:?}", self.instrument);
    }

    async fn check_bars(&mut self, store: &dyn PriceStore, interval: Interval, purges: &Purges) {
        let query = self.query_of(interval);
        self.apply(purges);
        let page = retried(|| store.derived_bars(&query)).await;
        let cutoff = self.overlapping(purges);
        let overlap = match (cutoff, &self.pending) {
            (None, None) => {
                assert_eq!(page.items, bars(&self.ticks, &query), "{} {interval}", self.instrument);
                return;
            }
            (None, Some(_)) => self.plan.reads.overlap(Change::Write),
            (Some(_), None) => self.plan.reads.overlap(Change::Purge),
            (Some(_), Some(_)) => Overlap::Any,
        };
        let mut after = self.pending.as_ref().map_or(&self.ticks, |pending| &pending.after).clone();
        if let Some(cutoff) = cutoff {
            let first: SortKey = (cutoff, 0);
            after = after.split_off(&first);
        }
        self.check_overlap(&query, &page, &after, overlap);
    }
}

/// Repeats a call as the layer `Retry` does.
async fn retried<T, F: Future<Output = qi_core::Result<T>>>(mut call: impl FnMut() -> F) -> T {
    for _ in 0..2_000 {
        match call().await {
            Ok(result) => return result,
            Err(error) => assert!(error.retry().is_retryable(), "{}", error.report()),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the call does not succeed");
}

/// A factory whose stores maintain their bars before each call.
#[derive(Debug)]
pub(crate) struct Maintained(pub(crate) Arc<dyn StoreFactory>);

#[async_trait]
impl StoreFactory for Maintained {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn absent(&self) -> Option<String> {
        self.0.absent()
    }

    async fn without_schema(&self, datasets: &Datasets) -> Result<TestStore> {
        let created = self.0.without_schema(datasets).await?;
        Ok(TestStore { store: (Wrapper::MAINTAINED.wrap)(created.store), ..created })
    }

    async fn newer_schema(&self, datasets: &Datasets) -> Result<TestStore> {
        self.0.newer_schema(datasets).await
    }

    async fn unreachable(&self, datasets: &Datasets) -> Result<TestStore> {
        self.0.unreachable(datasets).await
    }
}

/// Returns the trials of random histories with maintenance before each call: against the model, and against the memory
/// store.
pub(crate) fn model_trials(factory: Arc<dyn StoreFactory>, count: u32) -> [Trial; 2] {
    let (name, absent) = (factory.name().to_owned(), factory.absent());
    let histories = {
        let factory = factory.clone();
        let name_of = format!("{name}/equals_the_model_with_maintenance");
        presence::trial(name_of, &name, absent.clone(), move || {
            check_histories(&factory, Wrapper::MAINTAINED, cases(count))
                .map_err(|failure| failure.to_string())?;
            Ok(Completion::Completed)
        })
    };
    let differences = format!("{name}/pages_equal_the_memory_store_with_maintenance");
    let differences = presence::trial(differences, &name, absent, move || {
        let memory: Arc<dyn StoreFactory> = Arc::new(MemoryFactory);
        let maintained: Arc<dyn StoreFactory> = Arc::new(Maintained(factory));
        let count = if runs_long_tests() { count } else { count / 3 };
        check_differences(&maintained, &memory, cases(count)).map_err(|failure| failure.to_string())?;
        Ok(Completion::Completed)
    });
    [histories, differences]
}
