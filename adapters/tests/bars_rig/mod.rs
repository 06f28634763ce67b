//! Concurrent histories over a store with materialized bars. Each history has an instrument of its own, so every read
//! between two of its changes has one correct result, whatever the other histories and the maintainers do at the same
//! time. A read that overlaps with a change, or with a purge of another history, may contain a part of it: [`Overlap`].

#![allow(clippy::unwrap_used, reason = "test support")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use libtest_mimic::{Completion, Trial};
use qi_core::record::SortKey;
use qi_core::store::{BarQuery, DeleteQuery, MaintainRequest, Order, Page, StatsQuery};
use qi_core::{
    Bar, Dataset, Decimal, Instrument, Interval, Price, PriceStore, PriceStoreExt as _, PriceTick,
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
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The minimum number of histories. More histories run until the disturbance has counted a kill.
    pub(crate) histories: u64,
    /// The number of histories that run at the same time.
    pub(crate) at_once: u64,
    pub(crate) seed: u64,
    /// True if a read is one snapshot.
    pub(crate) snapshots: bool,
}

/// The part of a change that an overlapping read may contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overlap {
    /// The complete change or nothing, in all bars of the page.
    Atomic,
    /// The removal of the oldest ticks of a bar.
    Oldest,
    /// Any part.
    Any,
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
            let mut history = History::new(number, &plan);
            history.run(&*store, &purges).await;
            ended.lock().await.push(history);
        }
    }));
    let maintainers = futures::future::join_all(
        (0..2).map(|number| maintain(&*store, Rng::with_seed(plan.seed + number), &over)),
    );
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
        tokio::time::timeout(Duration::from_mins(2), complete).await.unwrap();
        for history in &mut *ended.lock().await {
            for interval in INTERVALS {
                history.check_bars(&*store, interval, &purges).await;
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = disturb => unreachable!("the disturbance runs until it is dropped"),
    }
}

/// Calls `maintain` with later and later times. Drops some calls.
async fn maintain(store: &dyn PriceStore, mut rng: Rng, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let request = MaintainRequest::default().with_until(hour(rng.i64(-2..HOURS)));
        let request = request.with_budget(Duration::from_secs(rng.u64(0..2)));
        let call = store.maintain(&request);
        let limit = if rng.u8(0..4) == 0 { rng.u64(1..40) } else { 60_000 };
        if let Ok(Err(error)) = tokio::time::timeout(Duration::from_millis(limit), call).await {
            assert!(error.retry().is_retryable(), "{}", error.report());
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(0..30))).await;
    }
}

type Ticks = BTreeMap<SortKey, PriceTick>;

/// A random history of one instrument, with the ticks that its store must have.
struct History {
    rng: Rng,
    instrument: Instrument,
    ticks: Ticks,
    /// The number of purges that `ticks` contains.
    purges: usize,
    snapshots: bool,
}

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

impl History {
    fn new(number: u64, plan: &Plan) -> Self {
        Self {
            rng: Rng::with_seed(plan.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            instrument: format!("x:H{number}").parse().unwrap(),
            ticks: BTreeMap::new(),
            purges: 0,
            snapshots: plan.snapshots,
        }
    }

    async fn run(&mut self, store: &dyn PriceStore, purges: &Purges) {
        const STEPS: usize = 10;
        for _ in 0..STEPS {
            if self.rng.u8(0..100) == 0 {
                let cutoff = hour(self.rng.i64(0..HOURS / 2));
                let _changes = purges.changes.write().await;
                self.apply(purges);
                purges.begun.lock().unwrap().push(cutoff);
                let left = self.ticks_from(cutoff);
                self.change(store, left, Overlap::Oldest, retried(|| store.purge_before(TICKS, cutoff)))
                    .await;
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
        }
    }

    /// Removes the ticks of all purges that have ended.
    fn apply(&mut self, purges: &Purges) {
        let ended = purges.ended.load(Ordering::Relaxed);
        for cutoff in &purges.cutoffs()[self.purges..ended] {
            self.ticks = self.ticks_from(*cutoff);
        }
        self.purges = ended;
    }

    /// Returns the latest cutoff of the purges that have begun since the last call of `apply`, or were running then.
    fn overlapping(&self, purges: &Purges) -> Option<Timestamp> {
        purges.cutoffs()[self.purges..].iter().copied().max()
    }

    fn ticks_from(&self, cutoff: Timestamp) -> Ticks {
        self.ticks.range((cutoff, 0)..).map(|(key, tick)| (*key, tick.clone())).collect()
    }

    async fn step(&mut self, store: &dyn PriceStore) {
        match self.rng.u8(0..10) {
            0..=5 => {
                let batch = self.new_ticks();
                self.insert(store, batch).await;
            }
            6 | 7 => {
                // Corrections of some ticks, and the same records again.
                let mut batch: Vec<_> = self.ticks.values().filter(|_| self.rng.bool()).cloned().collect();
                batch.truncate(20);
                let price = self.price();
                for tick in batch.iter_mut().step_by(2) {
                    *tick = self.tick(tick.sort_key(), price);
                }
                self.insert(store, batch).await;
            }
            _ => {
                let start = self.rng.i64(0..HOURS);
                let range = hours(start, start + self.rng.i64(1..20));
                let own = Selection::only([self.instrument.clone()]).unwrap();
                let query = DeleteQuery::ticks(own, range);
                let mut left = self.ticks.clone();
                left.retain(|(ts, _), _| !range.contains(*ts));
                self.change(store, left, Overlap::Atomic, retried(|| store.delete_range(&query))).await;
            }
        }
    }

    async fn insert(&mut self, store: &dyn PriceStore, batch: Vec<PriceTick>) {
        let mut after = self.ticks.clone();
        after.extend(batch.iter().map(|tick| (tick.sort_key(), tick.clone())));
        let keys: BTreeSet<_> = batch.iter().map(PriceTick::sort_key).collect();
        let (first, last) = (keys.first().copied(), keys.last().copied());
        let are_new =
            first.zip(last).is_none_or(|(first, last)| self.ticks.range(first..=last).next().is_none());
        let is_atomic =
            batch.len() < COPY_FROM || are_new || keys.iter().all(|key| self.ticks.contains_key(key));
        let overlap = if is_atomic { Overlap::Atomic } else { Overlap::Any };
        self.change(store, after, overlap, retried(|| store.insert_ticks(&batch))).await;
    }

    /// Runs a change after which the store has these ticks, and an overlapping read.
    async fn change<T>(
        &mut self,
        store: &dyn PriceStore,
        after: Ticks,
        overlap: Overlap,
        change: impl Future<Output = T>,
    ) {
        let interval = self.rng.choice(INTERVALS).unwrap();
        let pause = Duration::from_millis(self.rng.u64(0..15));
        let query = BarQuery::new(self.instrument.clone(), interval, TimeRange::ALL);
        let read = async {
            tokio::time::sleep(pause).await;
            retried(|| store.derived_bars(&query)).await
        };
        let (_, page) = futures::future::join(change, read).await;
        self.check_overlap(&query, &page, &after, overlap);
        self.ticks = after;
    }

    /// Checks a page that was read during a change after which the store has the ticks `after`.
    fn check_overlap(&self, query: &BarQuery, page: &Page<Bar>, after: &Ticks, overlap: Overlap) {
        let BarQuery { interval, order, .. } = *query;
        let overlap = if self.snapshots { overlap } else { Overlap::Any };
        if overlap == Overlap::Atomic {
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
        // Each tick of a bucket: whether the change keeps it.
        let mut buckets = BTreeMap::<Timestamp, Vec<(SortKey, Price, bool)>>::new();
        for ticks in [&self.ticks, after] {
            for (key, tick) in ticks.iter().filter(|((ts, _), _)| range.contains(ts)) {
                let is_kept = self.ticks.get(key) == after.get(key);
                buckets.entry(interval.floor(key.0)).or_default().push((*key, tick.price(), is_kept));
            }
        }
        for open_time in found.keys() {
            assert!(buckets.contains_key(open_time), "{} {interval} {open_time}: no ticks", self.instrument);
        }
        for (open_time, ticks) in buckets {
            if overlap == Overlap::Oldest {
                let is_in_bucket = |tick: &&PriceTick| interval.floor(tick.ts()) == open_time;
                let ticks: Vec<_> = self.ticks.values().filter(is_in_bucket).cloned().collect();
                let removed = ticks.iter().filter(|tick| !after.contains_key(&tick.sort_key())).count();
                let found = found.get(&open_time).copied();
                let is_possible = |n: usize| reference_bars(&ticks[n..], interval).first() == found;
                let is_possible = (0..=removed).any(is_possible);
                assert!(is_possible, "{} {interval}: {found:?} of {ticks:?}", self.instrument);
                continue;
            }
            let keys: BTreeSet<_> = ticks.iter().map(|(key, ..)| key).collect();
            let kept: BTreeSet<_> =
                ticks.iter().filter(|(.., is_kept)| *is_kept).map(|(key, ..)| key).collect();
            let prices = |only_kept: bool| {
                ticks.iter().filter(move |(.., is_kept)| *is_kept || !only_kept).map(|(_, price, _)| *price)
            };
            let text = || format!("{} {interval} {open_time}: {ticks:?}", self.instrument);
            let Some(bar) = found.get(&open_time) else {
                assert!(kept.is_empty(), "no bar: {}", text());
                continue;
            };
            let values = bar.values();
            let count = usize::try_from(values.count.unwrap()).unwrap();
            assert!((kept.len().max(1)..=keys.len()).contains(&count), "{bar:?} {}", text());
            assert!(values.high <= prices(false).max().unwrap(), "{bar:?} {}", text());
            assert!(values.low >= prices(false).min().unwrap(), "{bar:?} {}", text());
            assert!(prices(true).all(|p| values.low <= p && p <= values.high), "{bar:?} {}", text());
        }
    }

    fn price(&mut self) -> i64 {
        self.rng.i64(1..1_000)
    }

    fn tick(&mut self, (ts, seq): SortKey, price: i64) -> PriceTick {
        let price = Decimal::from_int(price).to_string().parse().unwrap();
        let quantity = self.rng.bool().then(|| "0.000000000000000007".parse().unwrap());
        PriceTick::new(self.instrument.clone(), ts, seq, price).unwrap().with_quantity(quantity)
    }

    /// Returns ticks of a few neighbouring hours.
    fn new_ticks(&mut self) -> Vec<PriceTick> {
        let (start, count) = (self.rng.i64(0..HOURS - 6), self.rng.usize(1..40));
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
        let count_from = |cutoff: Timestamp| {
            self.ticks.keys().filter(|(ts, _)| range.contains(*ts) && *ts >= cutoff).count() as u64
        };
        let possible = count_from(cutoff)..=count_from(Timestamp::MIN);
        assert!(possible.contains(&count), "{} {range:?}: {count} of {possible:?}", self.instrument);
    }

    async fn check_bars(&mut self, store: &dyn PriceStore, interval: Interval, purges: &Purges) {
        let mut query = BarQuery::new(self.instrument.clone(), interval, TimeRange::ALL);
        if self.rng.bool() {
            query = query.descending();
        }
        self.apply(purges);
        let page = retried(|| store.derived_bars(&query)).await;
        match self.overlapping(purges) {
            None => assert_eq!(page.items, bars(&self.ticks, &query), "{} {interval}", self.instrument),
            Some(cutoff) => self.check_overlap(&query, &page, &self.ticks_from(cutoff), Overlap::Oldest),
        }
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
