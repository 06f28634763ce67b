//! Live feeds against local servers that cut, stall and disturb their connections. Neither exchange is contacted.
//!
//! The recorded trades are in `$QI_DATA_DIR`, or in `../shared/data` next to the checkout. Absent files are reported as
//! ignored. `QI_LIVE_SEED` sets the seed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod live_rig;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use libtest_mimic::{Arguments, Trial};
use live_rig::{Exchange, Faults, PAUSE, SourceTrade, recorded, simulated};
use qi_core::agent::AgentHealth;
use qi_core::bus::{Message, MessageBus, PublishOptions, PublishReport};
use qi_core::health::HealthChecker;
use qi_core::layer::{Layer, Layered};
use qi_core::store::RangeQuery;
use qi_core::{Backoff, Datasets, Error, PriceStore, PriceStoreExt, PriceTick, TimeRange};
use qi_examples::exchanges::{LiveConfig, LiveCounters};
use qi_examples::pipeline::{Addresses, Data, Job, Live, Stop, Summary};
use qi_files::coverage::{Coverage, CoverageRange, CoverageState, Ledger};
use qi_testkit::bus::MemoryBus;
use qi_testkit::store::{MemoryStore, MemoryStoreConfig};
use tokio_util::sync::CancellationToken;

/// The longest wait for a condition. A test that waits longer fails.
const LIMIT: Duration = Duration::from_mins(5);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let seed: u64 =
        std::env::var("QI_LIVE_SEED").ok().map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("QI_LIVE_SEED={seed}");
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let folder = std::env::var_os("QI_DATA_DIR").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    let trial = |name: &str, test: fn(u64)| {
        Trial::test(name, move || {
            test(seed);
            Ok(())
        })
    };
    let mut trials = vec![
        trial("twenty_cut_connections_lose_and_repeat_no_trade", twenty_cuts),
        trial("a_killed_run_continues_from_the_ledger", killed_run),
        trial("an_unknown_symbol_ends_the_job_with_its_name", unknown_symbol),
        trial("a_rejected_subscription_is_retried_unless_the_symbol_is_at_fault", rejected_subscription),
        trial("an_unacknowledged_subscription_is_repeated", silent_subscription),
        trial("maintenance_and_shutdown_messages_are_followed", maintenance),
        trial("a_gap_above_the_limit_is_unknown_in_the_ledger", limited_backfill),
        trial("an_empty_ledger_begins_at_the_latest_stored_trade", empty_ledger),
        trial("trades_that_do_not_reach_the_store_are_fetched_again", lost_trades),
        trial("gaps_are_filled_within_ten_seconds_after_reconnecting", |seed| prompt_fills(seed, false)),
        trial("gaps_are_filled_within_ten_seconds_after_an_unanswered_request", |seed| {
            prompt_fills(seed, true);
        }),
        trial("a_rejected_connection_pauses_requests_and_connections", limited_connections),
        trial("a_connection_without_trades_is_replaced_if_the_history_has_newer_trades", idle_connection),
        trial("an_implausible_id_of_the_stream_is_a_bad_frame", implausible_ids),
        trial("one_page_without_a_trade_does_not_prove_its_absence", incomplete_page),
        trial("stored_trades_without_entries_are_not_fetched_again", stored_trades),
    ];
    for (name, instrument) in [
        ("binance-BTCUSDT-trades-2021-01-08.csv", "binance:BTC-USDT"),
        ("kraken-XBTUSDT-trades-2025-11-10.csv", "kraken:BTC-USD"),
    ] {
        let path = folder.join(name);
        let is_absent = !path.is_file();
        let test = move || {
            disturbed(&[(instrument, recorded(&path))], 5, seed);
            Ok(())
        };
        trials.push(
            Trial::test(format!("{name}::recorded_trades_arrive_once"), test).with_ignored_flag(is_absent),
        );
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A store and a bus that outlast the runs of a job.
#[derive(Clone)]
struct Platform {
    store: Arc<dyn PriceStore>,
    bus: Arc<dyn MessageBus>,
    counters: Arc<LiveCounters>,
    addresses: BTreeMap<String, Addresses>,
    config: LiveConfig,
}

impl Platform {
    fn new() -> Self {
        let datasets = Datasets::standard().with::<Coverage>().unwrap();
        let store = MemoryStore::new(MemoryStoreConfig::default().with_datasets(datasets)).unwrap();
        let mut config = LiveConfig::default();
        config.heartbeat_timeout = Duration::from_secs(1);
        config.subscribe_timeout = Duration::from_secs(1);
        config.backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(200)).with_jitter(0.5);
        config.max_message = 100_000;
        config.repair_interval = Duration::from_millis(100);
        config.quiet_after = Duration::from_secs(1);
        config.audit_interval = Duration::from_millis(100);
        config.grace = Duration::from_secs(1);
        config.absent_after = Duration::from_millis(200);
        Self {
            store: Arc::new(store),
            bus: Arc::new(MemoryBus::default()),
            counters: Arc::default(),
            addresses: BTreeMap::new(),
            config,
        }
    }

    async fn serve(&mut self, exchange: &Arc<Exchange>) {
        self.store.ensure_schema().await.unwrap();
        self.addresses.insert(exchange.instrument.exchange().to_string(), exchange.serve().await);
    }

    /// Creates a job for these exchanges, with a handle to stop it.
    fn job(&self, exchanges: &[Arc<Exchange>]) -> (Job, Stop) {
        let mut live = Live::new(exchanges.iter().map(|exchange| exchange.instrument.clone()).collect());
        (live.config, live.counters) = (self.config.clone(), self.counters.clone());
        live.addresses = self.addresses.clone();
        let mut job = Job::new(self.store.clone(), self.bus.clone(), Data::Live(Box::new(live))).unwrap();
        job.member = Some("live-test".parse().unwrap());
        let stop = job.stop.clone();
        (job, stop)
    }

    async fn stored(&self, exchange: &Exchange) -> Vec<PriceTick> {
        let query = RangeQuery::new(exchange.instrument.clone(), TimeRange::ALL);
        self.store.tick_stream(query).try_collect().await.unwrap()
    }

    async fn ledger(&self, exchange: &Exchange) -> Ledger {
        Ledger::load(&*self.store, &exchange.instrument).await.unwrap()
    }

    /// Returns whether the ledger has no unknown id up to the last trade of the exchange.
    async fn is_complete(&self, exchange: &Exchange) -> bool {
        self.is_complete_up_to(exchange, exchange.trades.last().unwrap().id).await
    }

    async fn is_complete_up_to(&self, exchange: &Exchange, last: u64) -> bool {
        let ranges = self.ledger(exchange).await.ranges();
        ranges.iter().all(|range| range.proven.is_some())
            && ranges.last().is_some_and(|range| *range.ids.end() == last)
    }

    async fn wait_until_complete(&self, exchange: &Exchange) {
        let since = Instant::now();
        while !self.is_complete(exchange).await {
            assert!(
                since.elapsed() < LIMIT,
                "{:#?}\n{:?}",
                self.ledger(exchange).await.ranges(),
                self.counters
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Checks that the store has every trade from the first id of the ledger on, each once and with its values. Returns
    /// the number of trades.
    async fn check(&self, exchange: &Exchange) -> usize {
        let ledger = self.ledger(exchange).await;
        let first = *ledger.ranges()[0].ids.start();
        let wanted: Vec<&SourceTrade> = exchange.trades.iter().filter(|trade| trade.id >= first).collect();
        let mut stored = self.stored(exchange).await;
        // A run that was killed may have stored trades before its first entry.
        stored.retain(|tick| tick.seq() >= first);
        stored.sort_by_key(PriceTick::seq);
        let ids = |ids: &mut dyn Iterator<Item = u64>| ids.collect::<Vec<_>>();
        let (found, expected) =
            (ids(&mut stored.iter().map(PriceTick::seq)), ids(&mut wanted.iter().map(|trade| trade.id)));
        let missing = expected.iter().filter(|id| !found.contains(id)).count();
        let repeated = found.windows(2).filter(|pair| pair[0] == pair[1]).count();
        println!("{}: {missing} missing, {repeated} stored twice of {}", exchange.instrument, expected.len());
        assert_eq!((missing, repeated, found.len()), (0, 0, expected.len()));
        for (tick, trade) in stored.iter().zip(wanted) {
            assert_eq!(tick.price().decimal(), trade.price);
            assert_eq!(tick.quantity().unwrap().decimal(), trade.quantity);
            assert_eq!(tick.side(), Some(trade.side));
            // The times of Kraken's history are floating-point numbers.
            assert!((tick.ts().as_micros() - trade.micros()).abs() <= 1, "{tick:?} {trade:?}");
        }
        // The ledger names exactly the ids that the exchange skips.
        let absent: Vec<u64> = ledger
            .ranges()
            .into_iter()
            .filter(|range| range.proven.is_some_and(|(state, _)| state == CoverageState::Absent))
            .flat_map(|range| range.ids)
            .collect();
        let last = exchange.trades.last().unwrap().id;
        let skipped = (first..=last).filter(|id| exchange.trades.iter().all(|trade| trade.id != *id));
        assert_eq!(absent, skipped.collect::<Vec<_>>());
        expected.len()
    }
}

/// Runs a job over exchanges with noise and this number of cuts each, until every trade is in the ledger.
fn disturbed(sources: &[(&str, Vec<SourceTrade>)], cuts: usize, seed: u64) {
    let runtime = runtime();
    runtime.block_on(async {
        let mut platform = Platform::new();
        let mut exchanges = Vec::new();
        for (instrument, trades) in sources {
            let faults = Faults { cuts: AtomicUsize::new(cuts), is_noisy: true, ..Faults::default() };
            let exchange = Exchange::new(instrument, trades.clone(), faults, seed);
            exchange.release(20);
            platform.serve(&exchange).await;
            exchanges.push(exchange);
        }
        let job = Running::start(&platform, &exchanges);
        for exchange in &exchanges {
            let exchange = exchange.clone();
            tokio::spawn(async move { exchange.release_all(2).await });
        }
        for exchange in &exchanges {
            // The last trades happen after the last cut.
            wait_for_connections(exchange, cuts as u64 + 1).await;
            platform.wait_until_complete(exchange).await;
        }
        job.stop();
        let mut trades = 0;
        for exchange in &exchanges {
            trades += platform.check(exchange).await;
            let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::SeqCst);
            println!(
                "{}: {} connections, {} requests, {} of them limited",
                exchange.instrument,
                count(&exchange.connections),
                count(&exchange.requests),
                count(&exchange.limited),
            );
            // The first trades may have happened before the first connection.
            assert!(*platform.ledger(exchange).await.ranges()[0].ids.start() <= exchange.trades[19].id + 50);
        }
        let live = &platform.counters;
        println!(
            "{trades} trades, {} filled, {} received again, {} absent, {} bad frames, slowest fill {:?}",
            live.filled(),
            live.duplicates(),
            live.absent(),
            live.bad_frames(),
            live.slowest_fill(),
        );
        // A few cuts may all miss the trades.
        assert!(cuts < 20 || (live.filled() > 0 && live.duplicates() > 0 && live.bad_frames() > 0));
    });
}

fn twenty_cuts(seed: u64) {
    let skipped = [4_360_000_400, 4_360_000_401, 4_360_001_500, 4_360_002_222];
    let binance = simulated(seed, 4_360_000_001, 5_000, &skipped);
    let kraken = simulated(seed ^ 1, 90_000_001, 5_000, &[90_001_000, 90_003_500]);
    disturbed(&[("binance:BTC-USDT", binance), ("kraken:BTC-USD", kraken)], 20, seed);
}

/// A job in a thread and a runtime of its own.
struct Running {
    thread: JoinHandle<Option<qi_core::Result<Summary>>>,
    stop: Stop,
    kill: CancellationToken,
}

impl Running {
    fn start(platform: &Platform, exchanges: &[Arc<Exchange>]) -> Self {
        let (job, stop) = platform.job(exchanges);
        Self::run(job, stop)
    }

    fn run(job: Job, stop: Stop) -> Self {
        let kill = CancellationToken::new();
        let killed = kill.clone();
        let thread = std::thread::spawn(move || {
            let runtime = runtime();
            let result = runtime.block_on(killed.run_until_cancelled(job.run()));
            runtime.shutdown_background();
            result
        });
        Self { thread, stop, kill }
    }

    /// Ends the job like a killed process: nothing is completed.
    fn kill(self) {
        self.kill.cancel();
        self.thread.join().unwrap();
    }

    /// Stops the job in order.
    fn stop(self) {
        self.stop.graceful.cancel();
        assert!(self.thread.join().unwrap().unwrap().unwrap().interrupted);
    }

    /// Returns the error of a job that ends before a stop.
    fn error(self) -> Error {
        self.thread.join().unwrap().unwrap().unwrap_err()
    }
}

fn killed_run(seed: u64) {
    let server = runtime();
    let mut platform = Platform::new();
    let binance = simulated(seed, 4_360_000_001, 3_000, &[4_360_001_200]);
    let kraken = simulated(seed, 90_000_001, 3_000, &[]);
    let exchanges = [("binance:BTC-USDT", binance), ("kraken:BTC-USD", kraken)]
        .map(|(instrument, trades)| Exchange::new(instrument, trades, Faults::default(), seed));
    for exchange in &exchanges {
        exchange.release(500);
        server.block_on(platform.serve(exchange));
    }
    let mut rng = fastrand::Rng::with_seed(seed);
    for run in 1..=4 {
        let job = Running::start(&platform, &exchanges);
        server.block_on(async {
            let since = Instant::now();
            while platform.stored(&exchanges[0]).await.is_empty()
                || platform.stored(&exchanges[1]).await.is_empty()
            {
                assert!(since.elapsed() < LIMIT, "run {run} stores nothing");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            for exchange in &exchanges {
                exchange.release(run * 600);
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(..600))).await;
        });
        job.kill();
        // These trades happen while no job runs.
        for exchange in &exchanges {
            exchange.release(run * 600 + 100);
        }
    }
    let job = Running::start(&platform, &exchanges);
    server.block_on(async {
        for exchange in &exchanges {
            exchange.release_all(20).await;
            platform.wait_until_complete(exchange).await;
            platform.check(exchange).await;
        }
    });
    job.stop();
}

fn unknown_symbol(seed: u64) {
    for (instrument, symbol) in [("binance:BTC-USDT", "BTCUSDT"), ("kraken:BTC-USD", "BTC/USD")] {
        let faults = Faults { unknown_symbol: true, ..Faults::default() };
        let exchange = Exchange::new(instrument, simulated(seed, 1_000, 10, &[]), faults, seed);
        let error = runtime().block_on(async {
            let mut platform = Platform::new();
            platform.serve(&exchange).await;
            Running::start(&platform, std::slice::from_ref(&exchange)).error()
        });
        assert!(error.report().contains(symbol), "{}", error.report());
    }
}

fn rejected_subscription(seed: u64) {
    for (instrument, temporary, permanent, symbol) in [
        (
            "kraken:BTC-USD",
            "EService: Market data unavailable",
            "Currency pair not supported BTC/USD",
            "BTC/USD",
        ),
        (
            "binance:BTC-USDT",
            r#"{"code":500,"msg":"Internal error"}"#,
            r#"{"code":2,"msg":"Invalid request: invalid stream"}"#,
            "BTCUSDT",
        ),
    ] {
        let rejections = vec![permanent, temporary, temporary].into();
        let faults = Faults { rejections, ..Faults::default() };
        let exchange = Exchange::new(instrument, simulated(seed, 1_000, 10, &[]), faults, seed);
        exchange.release(10);
        let error = runtime().block_on(async {
            let mut platform = Platform::new();
            platform.serve(&exchange).await;
            Running::start(&platform, std::slice::from_ref(&exchange)).error()
        });
        assert!(error.report().contains(symbol), "{}", error.report());
        assert_eq!(exchange.connections.load(Ordering::SeqCst), 3, "two attempts were temporary");
    }
}

/// Runs a job over one exchange without noise until its trades are complete after a third connection.
fn orderly(instrument: &str, faults: Faults, seed: u64) {
    let exchange = Exchange::new(instrument, simulated(seed, 50_000, 300, &[]), faults, seed);
    exchange.release(10);
    runtime().block_on(async {
        let mut platform = Platform::new();
        platform.serve(&exchange).await;
        let job = Running::start(&platform, std::slice::from_ref(&exchange));
        exchange.release(200);
        wait_for_connections(&exchange, 3).await;
        tokio::join!(exchange.release_all(2), platform.wait_until_complete(&exchange));
        platform.check(&exchange).await;
        job.stop();
    });
}

async fn wait_for_connections(exchange: &Exchange, count: u64) {
    let since = Instant::now();
    while exchange.connections.load(Ordering::SeqCst) < count {
        assert!(since.elapsed() < LIMIT, "{} connections", exchange.connections.load(Ordering::SeqCst));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn silent_subscription(seed: u64) {
    for instrument in ["binance:BTC-USDT", "kraken:BTC-USD"] {
        let faults = Faults { silent: AtomicUsize::new(2), ..Faults::default() };
        orderly(instrument, faults, seed);
    }
}

fn maintenance(seed: u64) {
    let faults = Faults { shutdowns: AtomicUsize::new(2), ..Faults::default() };
    orderly("binance:BTC-USDT", faults, seed);

    let faults = Faults { maintenance: AtomicUsize::new(1), ..Faults::default() };
    let exchange = Exchange::new("kraken:BTC-USD", simulated(seed, 50_000, 50, &[]), faults, seed);
    exchange.release(50);
    runtime().block_on(async {
        let mut platform = Platform::new();
        platform.serve(&exchange).await;
        let (mut job, stop) = platform.job(std::slice::from_ref(&exchange));
        let health = Arc::new(HealthChecker::new().expect_agents());
        job.health = Some(health.clone());
        let job = Running::run(job, stop);
        let is_degraded = |wanted: bool| {
            let feed = health.runtime().and_then(|runtime| runtime.snapshot("live kraken:BTC-USD").ok());
            match feed.map(|feed| feed.health) {
                Some(AgentHealth::Degraded(why)) => wanted && why.contains("maintenance"),
                Some(AgentHealth::Ok) => !wanted,
                _ => false,
            }
        };
        for wanted in [true, false] {
            let since = Instant::now();
            while !is_degraded(wanted) {
                assert!(since.elapsed() < LIMIT, "never degraded: {wanted}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        platform.wait_until_complete(&exchange).await;
        job.stop();
    });
}

/// Runs one exchange until the ledger ends at this trade.
fn run_until(platform: &Platform, exchange: &Arc<Exchange>, id: u64, server: &tokio::runtime::Runtime) {
    let job = Running::start(platform, std::slice::from_ref(exchange));
    server.block_on(async {
        let since = Instant::now();
        while platform.ledger(exchange).await.ranges().last().is_none_or(|last| *last.ids.end() < id) {
            assert!(since.elapsed() < LIMIT, "{:?}", platform.ledger(exchange).await.ranges());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    job.kill();
}

fn limited_backfill(seed: u64) {
    for instrument in ["binance:BTC-USDT", "kraken:BTC-USD"] {
        let (server, mut platform) = (runtime(), Platform::new());
        let exchange =
            Exchange::new(instrument, simulated(seed, 10_001, 5_000, &[]), Faults::default(), seed);
        exchange.release(100);
        server.block_on(platform.serve(&exchange));
        run_until(&platform, &exchange, 10_100, &server);
        exchange.release(5_000);
        platform.config.max_backfill = 1_500;
        let job = Running::start(&platform, std::slice::from_ref(&exchange));
        let unknown = || -> u64 {
            let ranges = server.block_on(platform.ledger(&exchange)).ranges();
            ranges.iter().filter(|range| range.proven.is_none()).map(CoverageRange::len).sum()
        };
        let ends_at =
            || server.block_on(platform.ledger(&exchange)).ranges().last().map_or(0, |last| *last.ids.end());
        let since = Instant::now();
        while ends_at() < 15_000 || unknown() > 4_900 - 1_500 {
            assert!(since.elapsed() < LIMIT, "{} ids are unknown", unknown());
            std::thread::sleep(Duration::from_millis(20));
        }
        // The run fetches no more. The latest 1,000 trades of Kraken are not part of the limit.
        std::thread::sleep(Duration::from_millis(500));
        assert!(unknown() >= 4_900 - 1_500 - 1_000, "{}", unknown());
        job.stop();
        // A higher limit fills the rest.
        platform.config.max_backfill = 1_000_000;
        let job = Running::start(&platform, std::slice::from_ref(&exchange));
        server.block_on(platform.wait_until_complete(&exchange));
        server.block_on(platform.check(&exchange));
        job.stop();
    }
}

fn empty_ledger(seed: u64) {
    for (instrument, is_of_exchange) in
        [("binance:BTC-USDT", true), ("kraken:BTC-USD", true), ("binance:BTC-USDT", false)]
    {
        let (server, mut platform) = (runtime(), Platform::new());
        let exchange = Exchange::new(instrument, simulated(seed, 10_001, 400, &[]), Faults::default(), seed);
        exchange.release(300);
        server.block_on(platform.serve(&exchange));
        let trade = &exchange.trades[99];
        // A trade of a file without ids has a small number.
        let id = if is_of_exchange { trade.id } else { 3 };
        let tick = exchange.tick(&SourceTrade { id, ..trade.clone() });
        server.block_on(async {
            platform.store.insert_record(&tick).await.unwrap();
        });
        run_until(&platform, &exchange, 10_300, &server);
        let job = Running::start(&platform, std::slice::from_ref(&exchange));
        exchange.release(400);
        server.block_on(platform.wait_until_complete(&exchange));
        let ranges = server.block_on(platform.ledger(&exchange)).ranges();
        if is_of_exchange {
            assert_eq!(*ranges[0].ids.start(), trade.id);
            server.block_on(platform.check(&exchange));
        } else {
            assert!(*ranges[0].ids.start() > 10_001, "{ranges:?}");
        }
        job.stop();
    }
}

/// A layer that damages the first message of some trades. The writer publishes it as a dead letter.
#[derive(Debug, Default)]
struct Lossy(Mutex<BTreeSet<u64>>);

impl Layer for Lossy {
    fn name(&self) -> &'static str {
        "Lossy"
    }

    fn publish<'a>(
        &'a self,
        bus: &'a dyn MessageBus,
        batch: &'a [Message],
        options: &'a PublishOptions,
    ) -> BoxFuture<'a, qi_core::Result<PublishReport>> {
        let mut batch = batch.to_vec();
        for message in &mut batch {
            let text = String::from_utf8_lossy(message.payload.as_deref().unwrap_or_default()).into_owned();
            for id in 10_500..=10_510 {
                if text.contains(&format!("\"seq\":{id},")) && self.0.lock().unwrap().insert(id) {
                    message.payload = Some("damaged".into());
                }
            }
        }
        Box::pin(async move { bus.publish(&batch, options).await })
    }
}

fn lost_trades(seed: u64) {
    let (server, mut platform) = (runtime(), Platform::new());
    let exchange =
        Exchange::new("binance:BTC-USDT", simulated(seed, 10_001, 3_000, &[]), Faults::default(), seed);
    exchange.release(10);
    server.block_on(platform.serve(&exchange));
    platform.bus = Arc::new(Layered::new(platform.bus.clone(), Lossy::default()));
    let job = Running::start(&platform, std::slice::from_ref(&exchange));
    server.block_on(async {
        exchange.release(1_000);
        // Later trades show that the store has passed the lost ones.
        for released in 1_001..2_900 {
            let ranges = platform.ledger(&exchange).await.ranges();
            let is_past = ranges.last().is_some_and(|range| *range.ids.end() > 10_510);
            if is_past && ranges.iter().all(|range| range.proven.is_some()) {
                break;
            }
            exchange.release(released);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        exchange.release_all(4).await;
        platform.wait_until_complete(&exchange).await;
        platform.check(&exchange).await;
    });
    job.stop();
}

/// Runs a test in one thread with a simulated clock, which advances while all tasks wait.
fn simulate(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// Waits in steps of simulated time.
async fn wait_until(what: &str, mut is_met: impl AsyncFnMut() -> bool) {
    for _ in 0..200_000 {
        if is_met().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}");
}

impl Platform {
    /// Uses the settings of a program, with the limits of the exchange.
    async fn serve_with_defaults(&mut self, exchange: &Arc<Exchange>) {
        self.serve(exchange).await;
        self.config = LiveConfig::default();
        let name = exchange.instrument.exchange().as_str();
        let addresses = self.addresses.get_mut(name).unwrap();
        addresses.request_interval = qi_examples::exchanges::protocol(name).unwrap().request_interval();
    }
}

/// Cuts the connection of a quiet market 20 times. All trades happen while no connection exists, so no later trade shows
/// the gap. If `is_history_stalled`, the first request after each reconnect is not answered.
fn prompt_fills(seed: u64, is_history_stalled: bool) {
    for instrument in ["binance:BTC-USDT", "kraken:BTC-USD"] {
        simulate(async {
            let trades = simulated(seed, 50_000, 100, &[]);
            let faults = Faults { is_history_stalled, ..Faults::default() };
            let exchange = Exchange::new(instrument, trades, faults, seed);
            let mut platform = Platform::new();
            platform.serve_with_defaults(&exchange).await;
            exchange.release(5);
            let (job, stop) = platform.job(std::slice::from_ref(&exchange));
            let job = tokio::task::spawn_local(job.run());
            let mut slowest = Duration::ZERO;
            for round in 1..=20 {
                let before = exchange.subscribed.lock().unwrap().take();
                if round > 1 {
                    assert!(before.is_some());
                    exchange.cut_now.notify_one();
                    // The server ends the connection before the trades happen.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    exchange.release(5 * round);
                }
                let since = || *exchange.subscribed.lock().unwrap();
                wait_until("no connection", async || since().is_some()).await;
                // An agent without a ledger begins at the latest trade.
                let latest = 49_999 + 5 * round as u64;
                wait_until("a gap stays open", async || {
                    let ids: BTreeSet<u64> =
                        platform.stored(&exchange).await.iter().map(PriceTick::seq).collect();
                    ids.last() == Some(&latest)
                        && ids.first().is_some_and(|id| id + ids.len() as u64 == latest + 1)
                })
                .await;
                slowest = slowest.max(since().unwrap().elapsed());
                if is_history_stalled {
                    // The agent repeats the request before the next cut, even if a snapshot had the trades.
                    tokio::time::sleep(Duration::from_secs(10)).await;
                }
            }
            let counted = platform.counters.slowest_fill();
            println!("{instrument}: at most {slowest:?} until stored, {counted:?} until published");
            assert!(slowest <= Duration::from_secs(10), "{slowest:?}");
            assert!(!counted.is_zero() && counted <= Duration::from_secs(10), "{counted:?}");
            wait_until("unknown ids", async || platform.is_complete_up_to(&exchange, 50_099).await).await;
            stop.graceful.cancel();
            job.await.unwrap().unwrap();
        });
    }
}

fn limited_connections(seed: u64) {
    for instrument in ["binance:BTC-USDT", "kraken:BTC-USD"] {
        simulate(async {
            let faults = Faults { limited_connections: AtomicUsize::new(2), ..Faults::default() };
            let exchange = Exchange::new(instrument, simulated(seed, 50_000, 20, &[]), faults, seed);
            let mut platform = Platform::new();
            platform.serve_with_defaults(&exchange).await;
            exchange.release(20);
            let (job, stop) = platform.job(std::slice::from_ref(&exchange));
            let job = tokio::task::spawn_local(job.run());
            wait_until("no connection", async || exchange.subscribed.lock().unwrap().is_some()).await;
            stop.graceful.cancel();
            job.await.unwrap().unwrap();
            let arrivals = exchange.arrivals.lock().unwrap().clone();
            let limited: Vec<_> =
                arrivals.iter().filter(|(_, is_limited)| *is_limited).map(|(at, _)| *at).collect();
            assert_eq!(limited.len(), 2);
            for at in limited {
                let early = arrivals.iter().filter(|(other, _)| *other > at && *other < at + PAUSE);
                assert_eq!(early.count(), 0, "{arrivals:#?}");
            }
        });
    }
}

fn idle_connection(seed: u64) {
    for instrument in ["binance:BTC-USDT", "kraken:BTC-USD"] {
        simulate(async {
            let faults = Faults { idle: AtomicUsize::new(1), ..Faults::default() };
            let exchange = Exchange::new(instrument, simulated(seed, 50_000, 2_000, &[]), faults, seed);
            let mut platform = Platform::new();
            platform.serve_with_defaults(&exchange).await;
            exchange.release(5);
            let (job, stop) = platform.job(std::slice::from_ref(&exchange));
            let job = tokio::task::spawn_local(job.run());
            wait_until("no trade", async || platform.is_complete_up_to(&exchange, 50_004).await).await;
            // A quiet market is no reason to reconnect.
            tokio::time::sleep(4 * platform.config.quiet_after).await;
            assert_eq!(exchange.connections.load(Ordering::SeqCst), 1);
            exchange.release(10);
            wait_until("no new connection", async || exchange.connections.load(Ordering::SeqCst) == 2).await;
            exchange.release(2_000);
            wait_until("unknown ids", async || platform.is_complete(&exchange).await).await;
            platform.check(&exchange).await;
            stop.graceful.cancel();
            job.await.unwrap().unwrap();
        });
    }
}

fn implausible_ids(seed: u64) {
    for instrument in ["binance:BTC-USDT", "kraken:BTC-USD"] {
        let invented = vec![9_000_000_000_000_000_000, 200_000, u64::MAX];
        let count = invented.len() as u64;
        let faults = Faults { invented, ..Faults::default() };
        let exchange = Exchange::new(instrument, simulated(seed, 50_000, 300, &[]), faults, seed);
        exchange.release(10);
        runtime().block_on(async {
            let mut platform = Platform::new();
            platform.serve(&exchange).await;
            let job = Running::start(&platform, std::slice::from_ref(&exchange));
            tokio::join!(exchange.release_all(2), platform.wait_until_complete(&exchange));
            platform.check(&exchange).await;
            wait_until("no bad frame", async || platform.counters.bad_frames() >= count).await;
            job.stop();
        });
    }
}

fn incomplete_page(seed: u64) {
    for instrument in ["binance:BTC-USDT", "kraken:BTC-USD"] {
        let (server, mut platform) = (runtime(), Platform::new());
        let faults = Faults::default();
        let exchange = Exchange::new(instrument, simulated(seed, 10_001, 3_000, &[11_000]), faults, seed);
        exchange.release(100);
        server.block_on(platform.serve(&exchange));
        run_until(&platform, &exchange, 10_100, &server);
        exchange.release(2_999);
        exchange.faults.incomplete_pages.store(2, Ordering::SeqCst);
        let job = Running::start(&platform, std::slice::from_ref(&exchange));
        server.block_on(platform.wait_until_complete(&exchange));
        server.block_on(platform.check(&exchange));
        job.stop();
        assert_eq!(exchange.faults.incomplete_pages.load(Ordering::SeqCst), 0);
    }
}

fn stored_trades(seed: u64) {
    let (server, mut platform) = (runtime(), Platform::new());
    let exchange =
        Exchange::new("binance:BTC-USDT", simulated(seed, 10_001, 250_000, &[]), Faults::default(), seed);
    exchange.release(100);
    server.block_on(platform.serve(&exchange));
    run_until(&platform, &exchange, 10_100, &server);
    // An import without entries: more trades than one comparison reads.
    let ticks: Vec<_> = exchange.trades[100..].iter().map(|trade| exchange.tick(trade)).collect();
    server.block_on(async {
        platform.store.insert_records_chunked(&ticks, 1_000).await.unwrap();
    });
    exchange.release(250_000);
    let filled = platform.counters.filled();
    let job = Running::start(&platform, std::slice::from_ref(&exchange));
    server.block_on(platform.wait_until_complete(&exchange));
    job.stop();
    assert_eq!(platform.counters.filled(), filled);
}
