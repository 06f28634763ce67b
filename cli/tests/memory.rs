//! The commands, in memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bus_rig;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bus_rig::{BusWithoutLeader, LeaderLoss, TransactionMarkers};
use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use qi_cli::copy::{Copy, Outcome, Plan};
use qi_cli::output::Format;
use qi_cli::{Series, bars, check, dlq, groups, import, maintain, migrate, query, replay, tail, topics};
use qi_core::bus::{
    Batch, BusPingReport, GroupId, GroupInfo, GroupState, Message, MessageBusExt, PartitionInfo,
    PublishOptions, SeekTo, SubscribeRequest, Subscription, TopicCatalogue, TopicInfo, TopicName,
    TopicOutcome, TopicPartition, TopicSpec, TopicState,
};
use qi_core::layer::{Call, Layer, Layered};
use qi_core::record::{Level, Owner, SeriesKey};
use qi_core::store::{BarQuery, BarSource, MaintenanceReport, StatsQuery};
use qi_core::{
    Bar, BarValues, BookSnapshot, Datasets, ErrorKind, Instrument, Interval, MarketSnapshot, MessageBus,
    Operation, PriceStore, PriceStoreExt as _, PriceTick, Quote, QuoteValues, Result, Scope, SnapshotValues,
    TimeRange, Timestamp,
};
use qi_testkit::bus::MemoryBus;
use qi_testkit::chaos::{Chaos, Fault, Rule};
use qi_testkit::market::{Market, MarketConfig};
use qi_testkit::mock::{MockBus, MockStore};
use qi_testkit::store::{MemoryStore, MemoryStoreConfig, RetentionConfig, RetentionRule};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// Ticks with distinct keys, because the market sends some ticks again.
fn ticks(n: usize, instruments: usize) -> Vec<PriceTick> {
    let mut seen = BTreeSet::new();
    let market = Market::new(MarketConfig::new(7, instruments).unwrap()).unwrap();
    market.filter(|tick| seen.insert((tick.instrument().clone(), tick.ts(), tick.seq()))).take(n).collect()
}

/// A store with records of several datasets.
async fn full() -> Arc<dyn PriceStore> {
    let store = MemoryStore::default();
    store.ensure_schema().await.unwrap();
    let ticks = ticks(25_000, 2);
    store.insert_ticks(&ticks).await.unwrap();
    let (name, price) = (ticks[0].instrument().clone(), ticks[0].price());
    let time = |n: i64| Timestamp::from_secs(1_700_000_000 / 86_400 * 86_400 + n * 86_400).unwrap();
    let values = QuoteValues { ask_price: Some(price), ..QuoteValues::default() };
    let quotes: Vec<_> = (0..10).map(|n| Quote::new(name.clone(), time(n), 0, values).unwrap()).collect();
    store.insert_quotes(&quotes).await.unwrap();
    for interval in [Interval::M1, Interval::D1] {
        let bar = |n| Bar::new(name.clone(), interval, time(n), BarValues::flat(price)).unwrap();
        store.insert_bars(&(0..5).map(bar).collect::<Vec<_>>()).await.unwrap();
    }
    let values = SnapshotValues { markets: Some(9), ..SnapshotValues::default() };
    for scope in [Scope::Global, "asset:BTC".parse().unwrap()] {
        store
            .insert_snapshots(&[MarketSnapshot::new(scope, time(1), values.clone()).unwrap()])
            .await
            .unwrap();
    }
    Arc::new(store)
}

fn everything() -> Plan {
    let datasets = Datasets::standard().iter().collect();
    Plan { datasets, instruments: BTreeSet::new(), range: TimeRange::ALL, progress: None }
}

fn cell(row: &[Value], at: usize) -> String {
    row[at].as_str().map_or_else(|| row[at].to_string(), str::to_owned)
}

#[tokio::test]
async fn copy_copies_and_verifies_every_dataset() {
    let (source, target) = (full().await, Arc::new(MemoryStore::default()));
    let copy = Copy::new(source, target.clone(), everything());
    let outcome = copy.run().await.unwrap();
    assert!(outcome.is_equal());
    let listing = outcome.listing();
    let series: Vec<_> =
        listing.rows().iter().map(|row| (cell(row, 0), cell(row, 1), cell(row, 4))).collect();
    let names: Vec<_> = series.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "ticks sim:A0000-USDT",
            "ticks sim:A0001-USDT",
            "quotes sim:A0000-USDT",
            "bars sim:A0000-USDT 1m",
            "bars sim:A0000-USDT 1d",
            "snapshots global",
            "snapshots asset:BTC"
        ]
    );
    let counts: u64 = series.iter().map(|(_, count, _)| count.parse::<u64>().unwrap()).sum();
    assert_eq!(counts, 25_000 + 10 + 10 + 2);
    assert!(series.iter().all(|(.., result)| result == "equal"));
}

#[tokio::test]
async fn copy_detects_differences_in_counts_and_values() {
    let (source, target) = (full().await, full().await);
    let mut extra = ticks(1, 2).remove(0);
    extra = PriceTick::new(extra.instrument().clone(), extra.ts(), 999, extra.price()).unwrap();
    target.insert_ticks(std::slice::from_ref(&extra)).await.unwrap();
    let outcome = Copy::new(source, target, everything()).run().await.unwrap();
    assert!(!outcome.is_equal(), "the target has one more");
    assert!(outcome.listing().render(Format::Table).contains("DIFFERENT"));
}

#[tokio::test]
async fn interrupted_copy_continues_from_its_progress() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan { progress: Some(folder.path().join("copy.json")), ..everything() };
    let (source, target) = (full().await, Arc::new(MemoryStore::default()));
    let chaos = Chaos::seeded(1);
    let failing: Arc<dyn PriceStore> = Arc::new(Layered::new(target.clone(), chaos.clone()));

    // The insert of the second series fails after it was written.
    let mut fails = Copy::new(source.clone(), failing.clone(), plan.clone());
    fails.concurrency = 1;
    chaos.inject_next(Operation::Insert, Fault::Delay);
    chaos.inject_next(Operation::Insert, Fault::LostResponse);
    assert_eq!(fails.run().await.unwrap_err().kind(), ErrorKind::Unavailable);
    let first = fails.copied.load(std::sync::atomic::Ordering::Relaxed);
    assert!(first > 10_000 && first < 15_000, "{first}");

    // Then the copy is stopped before its first page.
    let stopped = Copy::new(source.clone(), failing.clone(), plan.clone());
    stopped.stop.cancel();
    assert_eq!(stopped.run().await.unwrap(), Outcome::Interrupted);

    let rest = Copy::new(source.clone(), failing.clone(), plan.clone());
    assert!(rest.run().await.unwrap().is_equal());
    let all = 25_000 + 10 + 10 + 2;
    assert_eq!(rest.copied.load(std::sync::atomic::Ordering::Relaxed), all - first, "not from the beginning");

    let done = Copy::new(source.clone(), failing.clone(), plan.clone());
    assert!(done.run().await.unwrap().is_equal());
    assert_eq!(done.copied.load(std::sync::atomic::Ordering::Relaxed), 0);

    let other = Plan { datasets: vec![PriceTick::DATASET], ..plan };
    let error = Copy::new(source, failing, other).run().await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "copy.progress"));
}

#[tokio::test]
async fn differing_series_is_copied_again_by_the_same_command() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan { progress: Some(folder.path().join("copy.json")), ..everything() };
    let (source, target) = (full().await, Arc::new(MemoryStore::default()));
    let run = async || Copy::new(source.clone(), target.clone(), plan.clone()).run().await.unwrap();
    assert!(run().await.is_equal());
    // A late record, before the position of the copy.
    let first = ticks(1, 2).remove(0);
    let late = PriceTick::new(first.instrument().clone(), first.ts(), 999, first.price()).unwrap();
    source.insert_ticks(&[late]).await.unwrap();
    assert!(!run().await.is_equal(), "nothing was to be copied, and the comparison finds it");
    assert!(run().await.is_equal(), "the second check succeeds");
}

#[tokio::test]
async fn progress_changes_no_other_file() {
    let folder = tempfile::tempdir().unwrap();
    let mine = folder.path().join("copy.new");
    std::fs::write(&mine, "mine").unwrap();
    let plan = Plan { progress: Some(folder.path().join("copy.json")), ..everything() };
    assert!(Copy::new(full().await, Arc::new(MemoryStore::default()), plan).run().await.unwrap().is_equal());
    assert_eq!(std::fs::read_to_string(mine).unwrap(), "mine");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "temporary files remain");
}

#[tokio::test]
async fn progress_follows_no_symbolic_link() {
    let folder = tempfile::tempdir().unwrap();
    let (mine, path) = (folder.path().join("mine"), folder.path().join("copy.json"));
    std::fs::write(&mine, "mine").unwrap();
    std::os::unix::fs::symlink(&mine, folder.path().join("copy.json.part")).unwrap();
    // A symbolic link at the path, to a file that another user wants to be created.
    let wanted = folder.path().join("wanted");
    std::os::unix::fs::symlink(&wanted, &path).unwrap();
    let plan = Plan { progress: Some(path.clone()), ..everything() };
    assert!(Copy::new(full().await, Arc::new(MemoryStore::default()), plan).run().await.unwrap().is_equal());
    assert_eq!(std::fs::read_to_string(mine).unwrap(), "mine");
    assert!(!wanted.exists() && std::fs::symlink_metadata(path).unwrap().is_file());
}

#[tokio::test]
async fn corrupt_progress_file_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy.json");
    let plan = Plan { progress: Some(path.clone()), ..everything() };
    for broken in ["", "{\"plan\": \"", "[]", "{\"plan\": 7, \"series\": {}}"] {
        std::fs::write(&path, broken).unwrap();
        let copy = Copy::new(full().await, Arc::new(MemoryStore::default()), plan.clone());
        assert_eq!(copy.run().await.unwrap_err().code(), "copy.progress", "{broken}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), broken, "the file is unchanged");
    }
}

#[tokio::test]
async fn instrument_missing_in_the_source_is_an_error() {
    let plan = Plan { instruments: BTreeSet::from(["sim:TYPO".parse().unwrap()]), ..everything() };
    let error = Copy::new(full().await, Arc::new(MemoryStore::default()), plan).run().await.unwrap_err();
    assert_eq!((error.kind(), error.context_value("instrument")), (ErrorKind::NotFound, Some("sim:TYPO")));
}

/// Records the version of a file before each insert, and lets half a second pass.
#[derive(Debug)]
struct Observer {
    path: std::path::PathBuf,
    seen: std::sync::Mutex<Vec<Option<u64>>>,
}

impl Layer for Observer {
    fn name(&self) -> &'static str {
        "Observer"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        use std::os::unix::fs::MetadataExt as _;
        if call.operation != Operation::Insert {
            return future;
        }
        let version = std::fs::metadata(&self.path).ok().map(|found| found.ino());
        self.seen.lock().unwrap().push(version);
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            future.await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn copy_writes_the_progress_at_most_once_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy.json");
    let source = MemoryStore::default();
    source.ensure_schema().await.unwrap();
    source.insert_ticks(&ticks(1_000, 9)).await.unwrap();
    let observer = Observer { path: path.clone(), seen: std::sync::Mutex::default() };
    let target = Arc::new(Layered::new(MemoryStore::default(), observer));
    let plan = Plan { progress: Some(path.clone()), datasets: vec![PriceTick::DATASET], ..everything() };
    let mut copy = Copy::new(Arc::new(source), target.clone(), plan);
    copy.concurrency = 1;
    assert!(copy.run().await.unwrap().is_equal());
    let seen = target.layer().seen.lock().unwrap().clone();
    assert_eq!((seen.len(), seen[0]), (9, None), "{seen:?}");
    // The first page is saved, and then the pages of every full second.
    for pair in seen[1..].chunks(2) {
        assert!(pair[0].is_some() && pair.iter().all(|version| *version == pair[0]), "{seen:?}");
    }
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(saved["series"].as_object().unwrap().len(), 9, "the end of the copy is saved");
}

#[tokio::test]
async fn copy_ends_at_the_time_of_its_first_run() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan {
        progress: Some(folder.path().join("copy.json")),
        datasets: vec![PriceTick::DATASET],
        ..everything()
    };
    let (source, target) = (full().await, Arc::new(MemoryStore::default()));
    let copy = || Copy::new(source.clone(), target.clone(), plan.clone());
    let stopped = copy();
    stopped.stop.cancel();
    assert_eq!(stopped.run().await.unwrap(), Outcome::Interrupted);
    // A record after the first run belongs to no run of this copy.
    let first = ticks(1, 2).remove(0);
    let later = Timestamp::now().checked_add(Duration::from_mins(1)).unwrap();
    let later = PriceTick::new(first.instrument().clone(), later, 1, first.price()).unwrap();
    source.insert_ticks(&[later]).await.unwrap();
    let Outcome::Done(compared) = copy().run().await.unwrap() else { panic!("interrupted") };
    assert!(compared.iter().all(|compared| compared.source == compared.target));
    assert_eq!(compared.iter().map(|compared| compared.target.records).sum::<u64>(), 25_000);
}

#[tokio::test]
async fn verification_writes_nothing() {
    let (source, target) = (full().await, Arc::new(MemoryStore::default()));
    let verify = async |target: Arc<MemoryStore>| {
        let mut copy = Copy::new(source.clone(), target, everything());
        copy.verify_only = true;
        copy.run().await
    };
    assert_eq!(verify(target.clone()).await.unwrap_err().kind(), ErrorKind::SchemaMismatch);
    target.ensure_schema().await.unwrap();
    assert!(!verify(target.clone()).await.unwrap().is_equal());
    assert!(Copy::new(source.clone(), target.clone(), everything()).run().await.unwrap().is_equal());
    assert!(verify(target).await.unwrap().is_equal());
}

#[tokio::test]
async fn copy_is_limited_to_the_selection() {
    let (source, target) = (full().await, Arc::new(MemoryStore::default()));
    let plan = Plan {
        datasets: vec![PriceTick::DATASET, Bar::DATASET],
        instruments: BTreeSet::from(["sim:A0001-USDT".parse().unwrap()]),
        ..everything()
    };
    let Outcome::Done(compared) = Copy::new(source, target, plan).run().await.unwrap() else {
        panic!("done")
    };
    let names: Vec<_> = compared.iter().map(|c| c.series.to_string()).collect();
    assert_eq!(names, ["ticks sim:A0001-USDT"]);
}

#[tokio::test]
async fn check_names_missing_objects_and_migrate_creates_them() {
    let (store, bus): (Arc<dyn PriceStore>, Arc<dyn MessageBus>) =
        (Arc::new(MemoryStore::default()), Arc::new(MemoryBus::default()));
    let catalogue = TopicCatalogue::standard().unwrap();
    let look = async || {
        let mut findings = check::Findings::default();
        findings.store("store memory", &store, &Datasets::standard()).await;
        findings.bus("bus memory", &bus, &catalogue).await;
        findings
    };
    let before = look().await;
    let shown = before.listing().render(Format::Table);
    assert!(!before.passed() && shown.contains("no_schema") && shown.contains("qi migrate"), "{shown}");
    assert!(shown.contains("crypto-prices is missing") && shown.contains("1 broker(s)"), "{shown}");

    let mut listing = migrate::listing();
    migrate::store("store memory", &*store, &mut listing).await.unwrap();
    assert!(migrate::bus("bus memory", &*bus, &catalogue, &mut listing).await.unwrap());
    assert!(listing.render(Format::Csv).contains("bus memory,topic crypto-prices.dlq,created\n"));
    let after = look().await;
    assert!(after.passed(), "{}", after.listing().render(Format::Table));

    let mut writing = check::Findings::default();
    writing.check_write("store memory", &store).await;
    assert!(writing.passed(), "{}", writing.listing().render(Format::Table));
    assert!(
        query::latest(&*store, PriceTick::DATASET, vec![], None, 1).await.unwrap().rows().is_empty(),
        "nothing is left of it"
    );

    let mut again = migrate::listing();
    assert!(migrate::bus("bus memory", &*bus, &catalogue, &mut again).await.unwrap());
    assert!(again.render(Format::Csv).contains("topic crypto-prices,exists\n"));
}

#[tokio::test]
async fn check_writes_a_current_tick_to_a_store_with_retention() {
    let retention =
        RetentionConfig::default().with_rule("ticks", RetentionRule::by_age(Duration::from_hours(24)));
    let config = MemoryStoreConfig::default().with_retention(retention);
    let store: Arc<dyn PriceStore> = Arc::new(MemoryStore::new(config).unwrap());
    store.ensure_schema().await.unwrap();
    let mut findings = check::Findings::default();
    findings.check_write("store memory", &store).await;
    assert!(findings.passed(), "{}", findings.listing().render(Format::Table));
    assert!(
        query::latest(&*store, PriceTick::DATASET, vec![], None, 1).await.unwrap().rows().is_empty(),
        "the tick was not deleted"
    );
}

#[tokio::test]
async fn check_with_failing_calls_leaves_no_data() {
    let (memory, chaos) = (Arc::new(MemoryStore::default()), Chaos::seeded(1));
    memory.ensure_schema().await.unwrap();
    let store: Arc<dyn PriceStore> = Arc::new(Layered::new(memory.clone(), chaos.clone()));
    for (operation, fault) in [(Operation::Range, Fault::Error), (Operation::Insert, Fault::LostResponse)] {
        chaos.inject_next(operation, fault);
        let mut findings = check::Findings::default();
        findings.check_write("store memory", &store).await;
        let shown = findings.listing().render(Format::Csv);
        assert!(!findings.passed() && shown.contains("chaos."), "{shown}");
        let left = query::latest(&*memory, PriceTick::DATASET, vec![], None, 10).await.unwrap();
        assert!(left.rows().is_empty(), "{operation}: the tick was not deleted");
    }
    chaos.inject_next(Operation::DeleteRange, Fault::Error);
    let mut findings = check::Findings::default();
    findings.check_write("store memory", &store).await;
    let shown = findings.listing().render(Format::Csv);
    assert!(shown.contains("delete_range") && shown.contains("qi-check:PROBE was not deleted"), "{shown}");
}

#[tokio::test]
async fn check_and_migrate_detect_a_different_partition_count() {
    let bus: Arc<dyn MessageBus> = Arc::new(MemoryBus::default());
    let mut other = TopicCatalogue::standard().unwrap();
    other.get_mut(&TopicName::new("crypto-prices").unwrap()).unwrap().partitions = 3;
    bus.create_catalogue(&other).await.unwrap();
    let catalogue = TopicCatalogue::standard().unwrap();
    let mut findings = check::Findings::default();
    findings.bus("bus memory", &bus, &catalogue).await;
    assert!(findings.listing().render(Format::Csv).contains("crypto-prices has 3 partitions, not 12"));
    let mut listing = migrate::listing();
    assert!(!migrate::bus("bus memory", &*bus, &catalogue, &mut listing).await.unwrap());
}

#[tokio::test]
async fn hidden_settings_and_groups_fail_no_command() {
    let catalogue = TopicCatalogue::standard().unwrap();
    let specs = catalogue.specs().unwrap();
    let mut bus = MockBus::new();
    bus.expect_ping().returning(|| Ok(BusPingReport::new(None, 1, Duration::from_millis(1))));
    bus.expect_groups().returning(|_| {
        let states =
            [("a", GroupState::Hidden), ("b", GroupState::NotDescribed), ("c", GroupState::NotDescribed)];
        let group = |(id, state): (&str, _)| GroupInfo::new(id.parse().unwrap(), state, vec![], vec![]);
        Ok(states.map(group).into())
    });
    bus.expect_create_topics().returning(|specs| {
        let existed = || Ok(TopicState::Existed { differs: vec![], settings_hidden: true });
        Ok(specs.iter().map(|spec| TopicOutcome::new(spec.name.clone(), existed())).collect())
    });
    let partitions = |spec: &TopicSpec| (0..spec.partitions).map(|id| PartitionInfo::new(id, 0, 0)).collect();
    let topics: Vec<_> =
        specs.iter().map(|spec| TopicInfo::new(spec.name.clone(), partitions(spec))).collect();
    let described = topics.clone();
    bus.expect_topics().times(2).returning(move || Ok(described.clone()));
    // Then one topic cannot be described, and one partition has no leader.
    bus.expect_topics().returning(move || {
        let mut topics = topics.clone();
        topics[0].partitions[3].leader = None;
        topics.truncate(7);
        Ok(topics)
    });
    let bus: Arc<dyn MessageBus> = Arc::new(bus);
    let check = async || {
        let mut findings = check::Findings::default();
        findings.bus("bus mock", &bus, &catalogue).await;
        (findings.passed(), findings.listing().render(Format::Csv))
    };
    let (well, shown) = check().await;
    assert!(well, "{shown}");
    assert!(shown.contains("3 groups, 2 not described, 1 hidden"), "{shown}");
    assert!(
        shown.contains("8 of 8 catalogue topics complete; 8 topics in total, settings of 8 hidden"),
        "{shown}"
    );
    let listed = topics::topics(&*bus).await.unwrap();
    assert!(listed.rows().len() == 8 && listed.rows().iter().all(|row| row[9] == "hidden"));
    let lag = topics::lag(&*bus, vec![], false).await.unwrap();
    let states: Vec<_> = lag.rows().iter().map(|row| cell(row, 1)).collect();
    assert_eq!(states, ["hidden", "not described", "not described"]);
    let mut migrated = migrate::listing();
    assert!(migrate::bus("bus mock", &*bus, &catalogue, &mut migrated).await.unwrap());
    assert!(migrated.render(Format::Csv).contains("topic crypto-prices,exists; settings hidden\n"));

    let (well, shown) = check().await;
    assert!(!well && shown.contains("market-analytics.dlq is missing or may not be described"), "{shown}");
    assert!(shown.contains("crypto-ohlcv has 1 partitions without a leader"), "{shown}");
}

#[tokio::test]
async fn queries_show_latest_ticks_and_bars() {
    let store = full().await;
    let name: qi_core::Instrument = "sim:A0000-USDT".parse().unwrap();
    let latest = query::latest(&*store, PriceTick::DATASET, vec![], None, 100).await.unwrap();
    assert_eq!(latest.rows().len(), 2);
    assert_eq!(query::latest(&*store, PriceTick::DATASET, vec![], None, 1).await.unwrap().rows().len(), 1);
    let one = query::latest(&*store, PriceTick::DATASET, vec![Owner::Instrument(name.clone())], None, 100)
        .await
        .unwrap();
    assert_eq!(one.rows()[0], latest.rows()[0]);

    // More than a page of the store.
    let series = |dataset, owner: Instrument, interval| Series {
        dataset,
        key: SeriesKey { owner: Owner::Instrument(owner), interval },
    };
    let of_ticks = series(PriceTick::DATASET, name.clone(), None);
    let ticks = query::records(&*store, of_ticks.clone(), TimeRange::ALL, false, 11_000).await.unwrap();
    assert_eq!(ticks.rows().len(), 11_000);
    let newest = query::records(&*store, of_ticks, TimeRange::ALL, true, 3).await.unwrap();
    assert_eq!(newest.rows()[0], one.rows()[0]);

    let of_bars = series(Bar::DATASET, name.clone(), Some(Interval::D1));
    let stored = query::records(&*store, of_bars, TimeRange::ALL, false, 100).await.unwrap();
    assert_eq!(stored.rows().len(), 5);
    let bars = BarQuery::new(name, Interval::D1, TimeRange::ALL);
    let derived = query::derived_bars(&*store, bars, false, 100).await.unwrap();
    assert!(!derived.rows().is_empty());
    assert!(derived.render(Format::Csv).starts_with("instrument,interval,open_time,open,high,low,close,"));
}

#[tokio::test]
async fn queries_show_every_dataset() {
    let config = MemoryStoreConfig::default().with_datasets(Datasets::built_in());
    let store = MemoryStore::new(config).unwrap();
    store.ensure_schema().await.unwrap();
    let ts = Timestamp::from_secs(1_700_000_000).unwrap();
    let level = Level { price: "2.5".parse().unwrap(), quantity: "3".parse().unwrap() };
    let book = BookSnapshot::new("a:B".parse().unwrap(), ts, 7, vec![level], vec![]).unwrap();
    store.insert_record(&book).await.unwrap();
    let values = SnapshotValues { markets: Some(9), ..SnapshotValues::default() };
    store.insert_snapshot(&MarketSnapshot::new(Scope::Global, ts, values).unwrap()).await.unwrap();
    let books = query::latest(&store, BookSnapshot::DATASET, vec![], None, 10).await.unwrap();
    assert_eq!(books.render(Format::Csv), "instrument,ts,seq,bids,asks\na:B,2023-11-14T22:13:20Z,7,3@2.5,\n");
    let global = query::owner(MarketSnapshot::DATASET, "global").unwrap();
    let key = SeriesKey { owner: global, interval: None };
    let series = Series { dataset: MarketSnapshot::DATASET, key };
    let shown = query::records(&store, series, TimeRange::ALL, false, 10).await.unwrap();
    assert_eq!((&shown.rows()[0][0], &shown.rows()[0][7]), (&"global".into(), &9.into()));
    assert!(query::owner(BookSnapshot::DATASET, "global").is_err());
    assert!(query::latest(&store, Bar::DATASET, vec![], None, 10).await.is_err(), "bars need an interval");
}

#[tokio::test]
async fn dry_run_shows_missing_objects_and_changes_nothing() {
    let (store, bus) = (MemoryStore::default(), MemoryBus::default());
    let catalogue = TopicCatalogue::standard().unwrap();
    for _ in 0..2 {
        let mut listing = migrate::listing();
        migrate::plan_store("store", &store, &mut listing).await.unwrap();
        migrate::plan_bus("bus", &bus, &catalogue, &mut listing).await.unwrap();
        let shown = listing.render(Format::Csv);
        assert!(shown.contains("ticks") && shown.contains("topic crypto-prices.dlq,would create"), "{shown}");
    }
    migrate::store("store", &store, &mut migrate::listing()).await.unwrap();
    migrate::bus("bus", &bus, &catalogue, &mut migrate::listing()).await.unwrap();
    let mut listing = migrate::listing();
    migrate::plan_store("store", &store, &mut listing).await.unwrap();
    migrate::plan_bus("bus", &bus, &catalogue, &mut listing).await.unwrap();
    assert!(listing.rows().is_empty());
}

async fn a_topic(bus: &MemoryBus) -> TopicName {
    bus.create_catalogue(&TopicCatalogue::standard().unwrap()).await.unwrap();
    TopicName::new("crypto-prices").unwrap()
}

#[tokio::test]
async fn topics_and_lag_are_shown() {
    let bus = MemoryBus::default();
    let topic = a_topic(&bus).await;
    let ticks = ticks(100, 4);
    bus.send_records(&ticks, None).await.unwrap();
    let shown = topics::topics(&bus).await.unwrap();
    let row = shown.rows().iter().find(|row| row[0] == "crypto-prices").unwrap();
    assert_eq!((&row[1], &row[5]), (&12.into(), &100.into()));

    let mut reader =
        bus.subscribe(SubscribeRequest::new("writer".parse().unwrap(), [topic]).unwrap()).await.unwrap();
    let batch = reader.recv(40, std::time::Duration::from_secs(1)).await.unwrap();
    reader.commit(batch.offsets()).await.unwrap();
    let sum = topics::lag(&bus, vec![], false).await.unwrap();
    assert_eq!((&sum.rows()[0][0], &sum.rows()[0][6]), (&"writer".into(), &(100 - batch.len()).into()));
    let each = topics::lag(&bus, vec!["writer".parse().unwrap()], true).await.unwrap();
    assert_eq!(each.rows().len(), 12);
    assert!(topics::lag(&bus, vec!["nobody".parse().unwrap()], true).await.unwrap().rows().is_empty());
}

#[tokio::test(start_paused = true)]
async fn replay_continues_after_a_broker_outage() -> Result<()> {
    let memory = MemoryBus::default();
    let topic = a_topic(&memory).await;
    memory.send_records(&ticks(3_000, 5), None).await?;
    let chaos = Chaos::seeded(1);
    for fault in [Fault::Error, Fault::Delay, Fault::Error, Fault::Error] {
        chaos.inject_next(Operation::Recv, fault);
        chaos.inject_next(Operation::Assignment, fault);
    }
    let bus = Layered::new(memory, chaos.clone());
    let (store, never) = (MemoryStore::default(), CancellationToken::new());
    store.ensure_schema().await?;
    let plan = replay::Plan {
        topic,
        datasets: Datasets::standard(),
        since: Timestamp::MIN,
        until: None,
        wait: Duration::from_mins(1),
    };
    let replayed = replay::run(&bus, &store, &plan, &never, |_| {}).await?;
    assert_eq!((replayed.stored, replayed.interrupted), (3_000, false));

    // A permanent outage ends the replay with the error, and a stop takes effect during the wait.
    let away = chaos.on(Operation::Recv, Rule::new(1.0, [Fault::Error]));
    let since = tokio::time::Instant::now();
    let error = replay::run(&bus, &store, &plan, &never, |_| {}).await.unwrap_err();
    assert_eq!((error.kind(), error.operation()), (ErrorKind::Unavailable, "recv"));
    assert!(since.elapsed() < Duration::from_mins(2), "{:?}", since.elapsed());
    let stop = CancellationToken::new();
    let stopping = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.cancel();
    };
    let (stopped, ()) = tokio::join!(replay::run(&bus, &store, &plan, &stop, |_| {}), stopping);
    assert!(stopped?.interrupted);
    away.set_enabled(false);
    Ok(())
}

/// Delivers no message, like a partition whose last offsets hold no messages.
#[derive(Debug)]
struct NoMessages;

impl Layer for NoMessages {
    fn name(&self) -> &'static str {
        "NoMessages"
    }

    fn recv<'a>(
        &'a self,
        _: &'a mut dyn Subscription,
        _: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Batch>> {
        Box::pin(async move {
            tokio::time::sleep(wait).await;
            Ok(Batch::default())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn replay_reports_partitions_without_progress() -> Result<()> {
    let memory = MemoryBus::default();
    let topic = a_topic(&memory).await;
    memory.send_records(&ticks(300, 1), None).await?;
    let (store, never) = (MemoryStore::default(), CancellationToken::new());
    store.ensure_schema().await?;
    let plan = replay::Plan {
        topic,
        datasets: Datasets::standard(),
        since: Timestamp::MIN,
        until: None,
        wait: Duration::from_mins(1),
    };
    let replayed = replay::run(&Layered::new(memory, NoMessages), &store, &plan, &never, |_| {}).await?;
    assert_eq!((replayed.stored, replayed.interrupted), (0, false));
    let [unreached] = &replayed.unreached[..] else { panic!("{:?}", replayed.unreached) };
    assert_eq!((unreached.position, unreached.end), (Some(0), Some(300)));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn replay_names_a_partition_that_loses_its_leader() -> Result<()> {
    let (store, never) = (MemoryStore::default(), CancellationToken::new());
    store.ensure_schema().await?;
    let topic = TopicName::new("crypto-prices")?;
    // The first receive reads a part of partition 0.
    let partition = TopicPartition::new(topic.clone(), 0);
    for until in [50, usize::MAX] {
        let memory = MemoryBus::default();
        memory.create_topics(&[TopicSpec::new(topic.clone(), 2)?]).await?;
        memory.send_records(&ticks(2_000, 8), None).await?;
        let end = memory.topics().await?[0].partitions[0].high;
        let bus = Layered::new(memory, LeaderLoss::new(partition.clone(), until));
        let plan = replay::Plan {
            datasets: Datasets::standard(),
            topic: topic.clone(),
            since: Timestamp::MIN,
            until: None,
            wait: Duration::from_mins(1),
        };
        let replayed = replay::run(&bus, &store, &plan, &never, |_| {}).await?;
        if until == 50 {
            assert!(replayed.is_complete());
            assert_eq!(replayed.stored, 2_000);
            continue;
        }
        let wanted =
            replay::UnreadPartition { partition: partition.clone(), position: Some(100), end: Some(end) };
        assert_eq!(replayed.unreached, [wanted]);
        assert_eq!(replayed.stored, 2_000 - (end - 100), "the other partition is read to its end");
        assert!(!replayed.is_complete());
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn replay_waits_for_a_leader_and_names_partitions_without_a_leader() -> Result<()> {
    let (store, never) = (MemoryStore::default(), CancellationToken::new());
    store.ensure_schema().await?;
    for calls in [10, usize::MAX] {
        let memory = MemoryBus::default();
        let topic = TopicName::new("crypto-prices")?;
        for outcome in memory.create_topics(&[TopicSpec::new(topic.clone(), 2)?]).await? {
            outcome.result?;
        }
        memory.send_records(&ticks(300, 8), None).await?;
        let missing = memory.topics().await?[0].partitions[1].high;
        assert!(missing > 0);
        let bus = BusWithoutLeader::new(memory, 1, calls);
        let plan = replay::Plan {
            topic,
            datasets: Datasets::standard(),
            since: Timestamp::MIN,
            until: None,
            wait: Duration::from_mins(1),
        };
        let replayed = replay::run(&bus, &store, &plan, &never, |_| {}).await?;
        if calls == 10 {
            assert!(replayed.is_complete());
            assert_eq!((replayed.stored, replayed.unreached), (300, vec![]));
            continue;
        }
        assert!(!replayed.is_complete());
        assert_eq!(replayed.stored, 300 - missing);
        let [unreached] = &replayed.unreached[..] else { panic!("{:?}", replayed.unreached) };
        let words = "crypto-prices/1: not read to the end (position unknown, end unknown)";
        assert_eq!(unreached.to_string(), words);
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn replay_reads_transaction_markers_at_the_end_of_a_partition() -> Result<()> {
    let (memory, store, topic) =
        (MemoryBus::default(), MemoryStore::default(), TopicName::new("crypto-prices")?);
    store.ensure_schema().await?;
    memory.create_topics(&[TopicSpec::new(topic.clone(), 1)?]).await?;
    memory.send_records(&ticks(5, 1), None).await?;
    let bus = Layered::new(memory, TransactionMarkers(2));
    let plan = replay::Plan {
        topic,
        datasets: Datasets::standard(),
        since: Timestamp::MIN,
        until: None,
        wait: Duration::from_mins(1),
    };
    let replayed = replay::run(&bus, &store, &plan, &CancellationToken::new(), |_| {}).await?;
    assert!(replayed.is_complete());
    assert_eq!(replayed.stored, 2);
    Ok(())
}

#[tokio::test]
async fn replay_with_an_end_before_its_start_is_rejected() {
    let bus = MemoryBus::default();
    let topic = a_topic(&bus).await;
    let (store, never) = (MemoryStore::default(), CancellationToken::new());
    let (since, until) = (Timestamp::MAX_RECORD, Some(Timestamp::MIN));
    let plan =
        replay::Plan { topic, datasets: Datasets::standard(), since, until, wait: Duration::from_mins(1) };
    let error = replay::run(&bus, &store, &plan, &never, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn replay_stores_records_and_names_undecodable_messages() -> Result<()> {
    let bus = MemoryBus::default();
    let topic = a_topic(&bus).await;
    let ticks = ticks(3_000, 5);
    bus.send_records(&ticks, None).await?;
    let values = QuoteValues { ask_price: Some(ticks[0].price()), ..QuoteValues::default() };
    let quote = Quote::new(ticks[0].instrument().clone(), ticks[0].ts(), 0, values)?;
    bus.send_records(&[quote], Some(&topic)).await?;
    let _report = bus.publish(&[Message::new(topic.clone(), "nonsense")], PublishOptions::NONE).await?;

    let store = MemoryStore::default();
    store.ensure_schema().await?;
    let plan = replay::Plan {
        datasets: Datasets::standard(),
        topic: topic.clone(),
        since: Timestamp::MIN,
        until: None,
        wait: Duration::from_mins(1),
    };
    let never = CancellationToken::new();
    for _ in 0..2 {
        let replayed = replay::run(&bus, &store, &plan, &never, |_| {}).await?;
        assert_eq!((replayed.stored, replayed.unreadable, replayed.interrupted), (3_001, 1, false));
        assert_eq!(replayed.errors[0].kind(), ErrorKind::CorruptData);
    }
    let again = Copy::new(Arc::new(store), Arc::new(MemoryStore::default()), everything());
    let Outcome::Done(compared) = again.run().await? else { panic!("done") };
    assert_eq!(compared.iter().map(|c| c.source.records).sum::<u64>(), 3_001, "each once");

    let nothing = replay::Plan { until: Some(Timestamp::MIN), ..plan.clone() };
    let empty = MemoryStore::default();
    empty.ensure_schema().await?;
    assert_eq!(replay::run(&bus, &empty, &nothing, &never, |_| {}).await?.stored, 0);
    let later = replay::Plan { since: Timestamp::MAX_RECORD, ..plan.clone() };
    assert_eq!(replay::run(&bus, &empty, &later, &never, |_| {}).await?.stored, 0);

    let stopped = CancellationToken::new();
    stopped.cancel();
    assert!(replay::run(&bus, &empty, &plan, &stopped, |_| {}).await?.interrupted);
    let unknown = replay::Plan { topic: TopicName::new("none")?, ..plan };
    assert_eq!(
        replay::run(&bus, &empty, &unknown, &never, |_| {}).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_request_ends_an_import_within_bad_lines() {
    const LINES: usize = 3_000_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.csv");
    std::fs::write(&path, "1700000000,1\n".to_owned() + &"x,y\n".repeat(LINES)).unwrap();
    let options = qi_files::FileOptions::default()
        .columns("time=0,price=1".parse::<qi_files::ColumnMap>().unwrap())
        .instrument("x:Y".parse::<Instrument>().unwrap());
    let files = qi_files::open(&[path], &options).unwrap();
    let (stop, store) = (CancellationToken::new(), Arc::new(MemoryStore::default()));
    let running = tokio::spawn({
        let stop = stop.clone();
        async move { import::run(store, files, import::Plan::default(), &stop, std::sync::Arc::default()).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    stop.cancel();
    let imported = running.await.unwrap().unwrap();
    assert!(imported.interrupted && imported.error.is_none(), "{imported:?}");
    assert!(imported.bad() < LINES as u64, "all lines were read");
}

/// A bus with a topic of two partitions and 100 messages, a second apart.
async fn bus_with_messages() -> (Arc<dyn MessageBus>, TopicName) {
    let (bus, topic): (Arc<dyn MessageBus>, _) =
        (Arc::new(MemoryBus::default()), TopicName::new("letters").unwrap());
    bus.create_topics(&[TopicSpec::new(topic.clone(), 2).unwrap()]).await.unwrap();
    let message = |n: usize| {
        let message = Message::new(topic.clone(), format!("payload {n}\u{1b}"));
        message.with_partition(u32::try_from(n % 2).unwrap())
    };
    bus.send(&(0..100).map(message).collect::<Vec<_>>()).await.unwrap();
    (bus, topic)
}

#[tokio::test]
async fn groups_are_reset_to_every_position() {
    let (bus, topic) = bus_with_messages().await;
    let group = GroupId::new("readers").unwrap();
    let reset = async |to, dry_run| {
        let listing = groups::reset(&*bus, &group, &topic, to, dry_run).await?;
        let row = |row: &Vec<Value>| (row[3].clone(), row[4].as_u64().unwrap());
        Ok::<_, qi_core::Error>(listing.rows().iter().map(row).collect::<Vec<_>>())
    };
    // The group does not exist before its first commit.
    assert_eq!(reset(SeekTo::Latest, true).await.unwrap(), [(Value::Null, 50), (Value::Null, 50)]);
    assert_eq!(reset(SeekTo::Latest, false).await.unwrap()[0], (Value::Null, 50));
    assert_eq!(reset(SeekTo::Offset(7), false).await.unwrap(), [(50.into(), 7), (50.into(), 7)]);
    assert_eq!(reset(SeekTo::Earliest, true).await.unwrap(), [(7.into(), 0), (7.into(), 0)]);
    assert_eq!(reset(SeekTo::Offset(99), false).await.unwrap()[1], (7.into(), 50));
    let past = Timestamp::from_secs(1_000_000).unwrap();
    assert_eq!(reset(SeekTo::At(past), false).await.unwrap()[1], (50.into(), 0));
    let future = Timestamp::now().checked_add(Duration::from_hours(1)).unwrap();
    assert_eq!(reset(SeekTo::At(future), false).await.unwrap()[1], (0.into(), 50));
    let lag = topics::groups(&*bus, vec![group.clone()]).await.unwrap();
    assert_eq!(lag[0].lag(), Some(0));

    let mut member =
        bus.subscribe(SubscribeRequest::new(group.clone(), [topic.clone()]).unwrap()).await.unwrap();
    let error = reset(SeekTo::Earliest, false).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Conflict && error.message().unwrap().contains("active members (1)"),
        "{error}"
    );
    member.close().await.unwrap();
    let absent = TopicName::new("absent").unwrap();
    let error = groups::reset(&*bus, &group, &absent, SeekTo::Latest, true).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn tail_shows_the_newest_messages_and_follows() {
    let (bus, topic) = bus_with_messages().await;
    let plan =
        |start, follow, limit| tail::Plan { topic: topic.clone(), partitions: vec![], start, follow, limit };
    let stop = CancellationToken::new();
    let shown = async |plan: tail::Plan, format| {
        let (mut out, mut printer) = (Vec::new(), tail::Printer::new(format, false));
        let count = tail::run(&*bus, &plan, &stop, |message| printer.print(message, &mut out)).await?;
        let text = String::from_utf8(out).unwrap();
        Ok::<_, qi_core::Error>((count, text))
    };
    let (count, text) = shown(plan(tail::Start::Last(3), false, None), Format::Table).await.unwrap();
    assert_eq!((count, text.lines().count()), (6, 6), "{text}");
    assert!(
        text.contains("0/49") && text.contains("1/47") && !text.contains("/46") && !text.contains('\u{1b}'),
        "{text}"
    );
    let (count, json) =
        shown(plan(tail::Start::Since(Timestamp::from_secs(1_000_000).unwrap()), false, None), Format::Json)
            .await
            .unwrap();
    assert_eq!(count, 100);
    assert!(json.lines().all(|line| serde_json::from_str::<Value>(line).unwrap()["payload"].is_string()));
    let (_, csv) = shown(plan(tail::Start::Last(2), false, Some(3)), Format::Csv).await.unwrap();
    assert_eq!(
        (csv.lines().next(), csv.lines().count()),
        (Some("time,partition,offset,key,payload"), 4),
        "{csv}"
    );
    let one = tail::Plan { partitions: vec![1], ..plan(tail::Start::Last(5), false, None) };
    assert_eq!(shown(one, Format::Csv).await.unwrap().0, 5);
    let unknown = tail::Plan { partitions: vec![2], ..plan(tail::Start::Last(5), false, None) };
    assert_eq!(shown(unknown, Format::Csv).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    // Messages that arrive later.
    let message = Message::new(topic.clone(), "later");
    let publishing = async {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            bus.send(std::slice::from_ref(&message)).await.unwrap();
        }
    };
    let followed = tokio::select! {
        followed = shown(plan(tail::Start::Last(0), true, Some(4)), Format::Table) => followed.unwrap(),
        () = publishing => unreachable!(),
    };
    assert_eq!((followed.0, followed.1.matches("later").count()), (4, 4));
}

#[tokio::test]
async fn topics_are_described_with_partitions_and_settings() {
    let (bus, topic) = bus_with_messages().await;
    let found = topics::find(&*bus, &topic).await.unwrap();
    let partitions = topics::partitions(&found);
    assert_eq!((partitions.rows().len(), &partitions.rows()[1][7]), (2, &50.into()));
    assert!(!topics::settings(&found).rows().is_empty());
    let hidden = TopicInfo::new(topic, vec![]);
    assert!(topics::settings(&hidden).render(Format::Csv).contains("hidden"));
}

#[tokio::test]
async fn figures_and_series_are_shown() {
    let store = full().await;
    let name: Instrument = "sim:A0000-USDT".parse().unwrap();
    let stats = query::stats(&*store, &StatsQuery::new(name.clone(), TimeRange::ALL)).await.unwrap();
    let count = stats.rows()[0][1].as_u64().unwrap();
    assert!(count > 10_000 && stats.rows()[0].iter().all(|cell| !cell.is_null()), "{stats:?}");
    let none = StatsQuery::new("a:B".parse().unwrap(), TimeRange::ALL);
    assert!(query::stats(&*store, &none).await.unwrap().rows().is_empty());
    let list = async |dataset, exchange: Option<&str>, limit| {
        let exchange = exchange.map(|exchange| exchange.parse().unwrap());
        let listing = query::instruments(&*store, dataset, exchange, limit).await.unwrap();
        listing.rows().iter().map(|row| cell(row, 0)).collect::<Vec<_>>()
    };
    assert_eq!(list(PriceTick::DATASET, None, 10).await, ["sim:A0000-USDT", "sim:A0001-USDT"]);
    assert_eq!(list(PriceTick::DATASET, None, 1).await, ["sim:A0000-USDT"]);
    assert!(list(PriceTick::DATASET, Some("other"), 10).await.is_empty());
    assert_eq!(list(MarketSnapshot::DATASET, None, 10).await.len(), 2);
}

/// Returns a store with these reports: watermark, target, ticks, stale marks. The last one repeats.
fn maintained_store(reports: Vec<(i64, i64, u64, u64)>) -> MockStore {
    let (mut store, mut call) = (MockStore::new(), 0);
    store.expect_maintain().returning(move |_| {
        let (watermark, target, ticks, stale) = reports[call.min(reports.len() - 1)];
        call += 1;
        let time =
            |hour: i64| Some(Timestamp::from_secs(1_700_000_000 / 3_600 * 3_600 + hour * 3_600).unwrap());
        let mut report = MaintenanceReport::default();
        (report.watermark, report.target) = (time(watermark), time(target));
        (report.ticks, report.rebuilt, report.stale) = (ticks, 0, stale);
        Ok(report)
    });
    store
}

#[tokio::test(start_paused = true)]
async fn maintain_ends_without_steps_progress_or_budget() {
    let run = async |reports: Vec<_>, budget| {
        maintain::run(&maintained_store(reports), None, budget).await.unwrap()
    };
    let complete = run(vec![(1, 3, 10, 0), (2, 3, 0, 0), (3, 3, 5, 0), (9, 9, 9, 9)], None).await;
    assert!(complete.is_complete() && complete.is_enabled());
    let listing = complete.listing("timescale");
    assert_eq!((&listing.rows()[0][3], &listing.rows()[0][5]), (&Value::from(15), &Value::from(0)));
    let without_progress = run(vec![(1, 3, 10, 0), (1, 3, 0, 2), (3, 3, 0, 0)], None).await;
    assert!(!without_progress.is_complete() && without_progress.is_enabled());
    assert_eq!(without_progress.listing("timescale").rows()[0][5], Value::from(2));
    let out_of_time = run(vec![(1, 9, 10, 0), (9, 9, 10, 0)], Some(Duration::ZERO)).await;
    assert!(!out_of_time.is_complete());
    let none = maintain::run(&MemoryStore::default(), None, None).await.unwrap();
    assert!(!none.is_complete() && !none.is_enabled());
}

/// Returns a plan for the bars of all instruments.
fn persist_plan() -> bars::Plan {
    let (interval, until) = (Interval::M1, Timestamp::MAX);
    bars::Plan { instruments: Vec::new(), interval, since: None, until, overwrite: false }
}

#[tokio::test]
async fn a_stopped_persist_can_be_repeated() {
    let store = full().await;
    let name: Instrument = "sim:A0000-USDT".parse().unwrap();
    let query = BarQuery::new(name, Interval::M1, TimeRange::ALL);
    let stop = CancellationToken::new();
    stop.cancel();
    let stopped = bars::persist(&*store, persist_plan(), &stop, &AtomicU64::default()).await.unwrap();
    assert!(stopped.interrupted && stopped.listing().rows().is_empty());
    let compared = AtomicU64::default();
    let stop = CancellationToken::new();
    // The other stored bars of this instrument are later than its ticks or earlier.
    let plan = bars::Plan { since: Some(Timestamp::MIN), ..persist_plan() };
    let done = bars::persist(&*store, plan, &stop, &compared).await.unwrap();
    assert_eq!((done.interrupted, done.kept(), done.listing().rows().len()), (false, 0, 2));
    let stored: Vec<Bar> = store.bar_stream(query.clone(), BarSource::Stored).try_collect().await.unwrap();
    let derived: Vec<Bar> = store.bar_stream(query, BarSource::Derived).try_collect().await.unwrap();
    assert!(!derived.is_empty() && derived.iter().all(|bar| stored.contains(bar)));
    assert!(compared.load(Ordering::Relaxed) >= derived.len() as u64);
}

/// Every table of the tool fits the width, with long names and numbers.
#[tokio::test]
async fn every_table_fits_80_and_120_columns() {
    let (store, bus): (Arc<dyn PriceStore>, Arc<dyn MessageBus>) =
        (full().await, Arc::new(MemoryBus::default()));
    let catalogue = TopicCatalogue::standard().unwrap();
    let mut migrated = migrate::listing();
    migrate::plan_store("store timescale", &MemoryStore::default(), &mut migrated).await.unwrap();
    migrate::plan_bus("bus redpanda", &*bus, &catalogue, &mut migrated).await.unwrap();
    let mut findings = check::Findings::default();
    let empty: Arc<dyn PriceStore> = Arc::new(MemoryStore::default());
    findings.store("store timescale", &empty, &Datasets::built_in()).await;
    findings.bus("bus redpanda", &bus, &catalogue).await;
    migrate::bus("bus redpanda", &*bus, &catalogue, &mut migrated).await.unwrap();
    let long = TopicName::new("a-topic-with-a-long-name.of-a-team.in-a-region").unwrap();
    bus.create_topics(&[TopicSpec::new(long.clone(), 3).unwrap()]).await.unwrap();
    bus.send(&[Message::new(long.clone(), "x".repeat(500))]).await.unwrap();
    let group = GroupId::new("a-consumer-group-with-a-long-name-of-a-team-in-a-region").unwrap();
    let reset = groups::reset(&*bus, &group, &long, SeekTo::Earliest, false).await.unwrap();
    let found = topics::find(&*bus, &long).await.unwrap();
    let groups = topics::groups(&*bus, vec![]).await.unwrap();
    let name: Instrument = "sim:A0000-USDT".parse().unwrap();
    let bars = BarQuery::new(name.clone(), Interval::D1, TimeRange::ALL);
    let copied =
        Copy::new(store.clone(), Arc::new(MemoryStore::default()), everything()).run().await.unwrap();
    let stop = CancellationToken::new();
    let (letters, selection) = (TopicName::new("crypto-prices.dlq").unwrap(), dlq::Selection::default());
    bus.send(&[Message::new(letters.clone(), "y".repeat(500)).with_key("z".repeat(99))]).await.unwrap();
    let view = dlq::View { limit: 10, newest: false, full: true };
    let dead = dlq::show(&*bus, &letters, &selection, view, &stop).await.unwrap();
    let redrive = dlq::Plan {
        topic: letters.clone(),
        to: None,
        selection: selection.clone(),
        max_redrives: 3,
        progress: None,
        dry_run: true,
    };
    let redriven = dlq::redrive(&*bus, &redrive, &stop, |_| {}).await.unwrap();
    let counted = dlq::list(&*bus, None, &selection, &stop).await.unwrap();
    let maintained = maintain::run(&maintained_store(vec![(5, 5, 10_000_000, 0)]), None, None).await.unwrap();
    let persisted = bars::persist(&*store, persist_plan(), &stop, &AtomicU64::default()).await.unwrap();
    let mut listings = vec![
        ("check", findings.listing()),
        ("migrate", migrated),
        ("topics", topics::topics(&*bus).await.unwrap()),
        ("topics describe", topics::partitions(&found)),
        ("topics describe --settings", topics::settings(&found)),
        ("lag", topics::lag_rows(&groups, false)),
        ("lag --partitions", topics::lag_rows(&groups, true)),
        ("groups reset", reset),
        ("query bars", query::derived_bars(&*store, bars, false, 10).await.unwrap()),
        ("query stats", query::stats(&*store, &StatsQuery::new(name, TimeRange::ALL)).await.unwrap()),
        ("instruments", query::instruments(&*store, PriceTick::DATASET, None, 10).await.unwrap()),
        ("copy", copied.listing()),
        ("dlq list", counted.listing()),
        ("dlq show", dead.listing(Format::Table)),
        ("dlq redrive", redriven.listing()),
        ("import", import::ImportReport::default().listing()),
        ("maintain", maintained.listing("timescale")),
        ("bars persist", persisted.listing()),
    ];
    for dataset in Datasets::standard().iter() {
        let interval = dataset.interval().map(|_| Interval::D1);
        let listing = query::latest(&*store, dataset, vec![], interval, 10).await.unwrap();
        listings.push((dataset.name(), listing));
    }
    for (name, listing) in listings {
        for width in [40, 80, 100, 120] {
            let table = listing.render_within(Format::Table, width);
            let longest = table.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= usize::from(width), "{name}: {longest} columns\n{table}");
            if std::env::var_os("QI_SHOW_TABLES").is_some() {
                eprintln!("{name} ({width})\n{table}");
            }
        }
    }
}
