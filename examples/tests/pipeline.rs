//! The main job as a library: every input record is stored once, whatever fails.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use qi_core::agent::AgentStatus;
use qi_core::layer::{LayerStack, Layered, RetryConfig, TimeoutConfig};
use qi_core::store::{InstrumentQuery, RangeQuery};
use qi_core::{
    Backoff, Error, ErrorKind, Instrument, Interval, MessageBus, Operation, PriceStore, PriceStoreExt,
    PriceTick, SystemClock, TimeRange, Timestamp,
};
use qi_examples::pipeline::{Data, Job, Stop};
use qi_files::{FileOptions, Format, Input};
use qi_testkit::agent::TransitionLog;
use qi_testkit::bus::{MemoryBus, MemoryBusConfig};
use qi_testkit::chaos::{Chaos, ChaosBus, ChaosStore, Fault, Rule};
use qi_testkit::market::{Market, MarketConfig};
use qi_testkit::store::{MemoryStore, MemoryStoreConfig};

fn memory_store() -> Arc<dyn PriceStore> {
    Arc::new(MemoryStore::new(MemoryStoreConfig::default()).unwrap())
}

fn memory_bus() -> Arc<dyn MessageBus> {
    Arc::new(MemoryBus::default())
}

fn market(seed: u64, ticks: usize) -> impl Iterator<Item = PriceTick> + Send {
    Market::new(MarketConfig::new(seed, 5).unwrap()).unwrap().take(ticks)
}

fn data(ticks: impl Iterator<Item = PriceTick> + Send + 'static) -> Data {
    Data::Ticks(Box::new(ticks.map(Ok)))
}

type Key = (Instrument, Timestamp, u64);

fn by_key(ticks: impl Iterator<Item = PriceTick>) -> BTreeMap<Key, PriceTick> {
    ticks.map(|tick| ((tick.instrument().clone(), tick.ts(), tick.seq()), tick)).collect()
}

/// Returns all records of a store, in order.
async fn contents(store: &dyn PriceStore) -> Vec<PriceTick> {
    let mut ticks = Vec::new();
    let instruments = store.instruments(&InstrumentQuery::new(PriceTick::DATASET)).await.unwrap();
    for summary in instruments.items {
        let query = RangeQuery::new(summary.instrument, TimeRange::ALL);
        ticks.extend(store.tick_stream(query).try_collect::<Vec<_>>().await.unwrap());
    }
    ticks
}

fn trades(content: &str) -> (tempfile::NamedTempFile, Data) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    let options =
        FileOptions::default().format(Format::Kraken).instrument("kraken:X".parse::<Instrument>().unwrap());
    let files = qi_files::open(&[file.path().to_owned()], &options).unwrap();
    (file, files.data.into())
}

#[tokio::test(start_paused = true)]
async fn every_tick_of_the_market_is_stored_once() {
    let store = memory_store();
    let summary =
        Job::new(store.clone(), memory_bus(), data(market(1, 20_000))).unwrap().run().await.unwrap();
    let sent = by_key(market(1, 20_000));
    assert_eq!(contents(&*store).await, sent.values().cloned().collect::<Vec<_>>());
    assert_eq!((summary.published, summary.stored), (20_000, sent.len() as u64));
    assert_eq!(summary.instruments.iter().map(|row| row.stored).sum::<u64>(), summary.stored);
    assert_eq!((summary.resent, summary.dead_letters, summary.bad_lines), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn repeated_input_changes_nothing() {
    let store = memory_store();
    let run = async || {
        let job = Job::new(store.clone(), memory_bus(), data(market(2, 5_000))).unwrap();
        let summary = job.run().await.unwrap();
        let rows: Vec<_> =
            summary.instruments.iter().map(|r| (r.stored, r.last_price, r.bars, r.vwap)).collect();
        (rows, contents(&*store).await)
    };
    assert_eq!(run().await, run().await);
}

#[tokio::test(start_paused = true)]
async fn faults_in_a_third_of_all_calls_cause_no_loss_and_no_duplicates() {
    const TICKS: usize = 2_000;
    let (mut faults, mut resent, mut restarts) = (0, 0, 0);
    for seed in 0..100 {
        let rule = || Rule::new(1.0 / 3.0, [Fault::Error, Fault::Hang, Fault::LostResponse]);
        let (of_store, of_bus) =
            (Chaos::seeded(seed).everywhere(rule()), Chaos::seeded(!seed).everywhere(rule()));
        let second = Duration::from_secs(1);
        let stack = LayerStack::default()
            .with_retry(
                RetryConfig::default()
                    .with_max_attempts(20)
                    .with_backoff(Backoff::new(Duration::from_millis(10), second))
                    .with_max_elapsed(Duration::from_hours(1))
                    .with_seed(seed),
            )
            .with_timeout(TimeoutConfig::default().with_call(second).with_bulk(second));
        let mut config = MemoryBusConfig::default();
        config.delivery_timeout = Duration::from_secs(1);
        let bus = MemoryBus::new(config, Arc::new(SystemClock)).unwrap();
        let plain = memory_store();
        let store = stack.wrap_store(ChaosStore::new(plain.clone(), of_store.clone()));
        let bus = stack.wrap_bus(ChaosBus::new(bus, of_bus.clone()));
        let log = TransitionLog::default();
        let mut job = Job::new(store, bus, data(market(seed, TICKS))).unwrap();
        // Many inserts and commits.
        job.ingest = job.ingest.with_max_records(100).with_commit_interval(Duration::ZERO);
        job.observer = Some(Box::new(log.clone()));
        let summary = job.run().await.unwrap();
        let sent = by_key(market(seed, TICKS));
        assert_eq!(contents(&*plain).await, sent.values().cloned().collect::<Vec<_>>(), "seed {seed}");
        assert_eq!((summary.published, summary.stored), (TICKS as u64, sent.len() as u64), "seed {seed}");
        faults += of_store.injected() + of_bus.injected();
        resent += summary.resent;
        restarts += log.all().iter().filter(|t| t.to == AgentStatus::Backoff).count();
    }
    // The faults happened, and each kind of recovery was used.
    assert!(faults > 5_000 && resent > 1_000, "{faults} faults, {resent} resent, {restarts} restarts");
}

#[tokio::test(start_paused = true)]
async fn long_store_outage_ends_and_restarts_no_agent() {
    let chaos = Chaos::seeded(1);
    for _ in 0..60 {
        chaos.inject_next(Operation::Insert, Fault::Error);
    }
    let plain = memory_store();
    let store = LayerStack::default().wrap_store(Layered::new(plain.clone(), chaos.clone()));
    let log = TransitionLog::default();
    let mut job = Job::new(store, memory_bus(), data(market(4, 1_000))).unwrap();
    job.observer = Some(Box::new(log.clone()));
    let summary = job.run().await.unwrap();
    assert_eq!(summary.stored, by_key(market(4, 1_000)).len() as u64);
    let writer: Vec<_> = log.of("writer");
    let count = |status| writer.iter().filter(|t| t.to == status).count();
    assert_eq!((count(AgentStatus::Failed), count(AgentStatus::Backoff)), (0, 0));
    assert_eq!(chaos.injected_on(Operation::Insert, Fault::Error), 60);
}

#[tokio::test(start_paused = true)]
async fn permanent_store_error_fails_the_job() {
    let config = MemoryStoreConfig::default().with_max_rows(10);
    let store = Arc::new(MemoryStore::new(config).unwrap());
    let error = Job::new(store, memory_bus(), data(market(5, 1_000))).unwrap().run().await.unwrap_err();
    assert!(error.report().contains("store.memory.full"), "{}", error.report());
}

#[tokio::test(start_paused = true)]
async fn undecodable_message_becomes_a_dead_letter_and_the_job_continues() {
    use qi_core::bus::{Message, MessageBusExt, TopicCatalogue, TopicName};
    let bus = memory_bus();
    bus.create_catalogue(&TopicCatalogue::standard().unwrap()).await.unwrap();
    let topic = TopicName::new("crypto-prices").unwrap();
    bus.publish_one(&Message::new(topic, "no record")).await.unwrap();
    let summary = Job::new(memory_store(), bus.clone(), data(market(6, 100))).unwrap().run().await.unwrap();
    assert_eq!((summary.dead_letters, summary.published), (1, 100));
    let topics = bus.topics().await.unwrap();
    let dead = topics.iter().find(|t| t.name.as_str() == "crypto-prices.dlq").unwrap();
    assert_eq!(dead.partitions.iter().map(|p| p.high).sum::<u64>(), 1);
}

#[tokio::test(start_paused = true)]
async fn other_producers_on_the_topic_do_not_prevent_completion() {
    use qi_core::bus::{MessageBusExt, TopicCatalogue};
    let (bus, chaos) = (memory_bus(), Chaos::seeded(1));
    bus.create_catalogue(&TopicCatalogue::standard().unwrap()).await.unwrap();
    // Each insert takes long enough for new messages to arrive, so the lag is never 0.
    let _slow = chaos.clone().on(Operation::Insert, Rule::new(1.0, [Fault::Delay]));
    let plain = memory_store();
    let job = Job::new(Arc::new(Layered::new(plain.clone(), chaos)), bus.clone(), data(market(11, 3_000)));
    let other = tokio::spawn(async move {
        for tick in market(12, usize::MAX) {
            bus.send_records(&[tick], None).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let run = tokio::time::timeout(Duration::from_mins(2), job.unwrap().run());
    let summary = run.await.expect("the job ends").unwrap();
    other.abort();
    assert_eq!(summary.published, 3_000);
    let stored = by_key(contents(&*plain).await.into_iter());
    assert!(by_key(market(11, 3_000)).keys().all(|key| stored.contains_key(key)), "a record is missing");
}

#[tokio::test(start_paused = true)]
async fn lag_in_an_unsubscribed_topic_does_not_prevent_completion() {
    use qi_core::bus::{GroupId, GroupQuery, MessageBusExt, SubscribeRequest, TopicCatalogue, TopicName};
    let bus = memory_bus();
    bus.create_catalogue(&TopicCatalogue::standard().unwrap()).await.unwrap();
    let (group, left) = (GroupId::new("pipeline-writer").unwrap(), TopicName::new("crypto-quotes").unwrap());
    bus.send_records(&market(13, 100).collect::<Vec<_>>(), Some(&left)).await.unwrap();
    let mut reader = bus.subscribe(SubscribeRequest::new(group.clone(), [left]).unwrap()).await.unwrap();
    let batch = reader.recv(10, Duration::from_secs(1)).await.unwrap();
    reader.commit(batch.offsets()).await.unwrap();
    reader.close().await.unwrap();
    let job = Job::new(memory_store(), bus.clone(), data(market(13, 100))).unwrap();
    let run = tokio::time::timeout(Duration::from_hours(1), job.run());
    assert_eq!(run.await.expect("the job ends").unwrap().published, 100);
    let lag = bus.groups(&GroupQuery::one(group)).await.unwrap()[0].lag();
    assert_eq!(lag, Some(100 - batch.len() as u64), "the lag of all topics");
}

#[tokio::test(start_paused = true)]
async fn a_store_outage_sends_no_dead_letter_until_the_records_are_stored() {
    use qi_core::bus::{
        GroupId, GroupQuery, Message, MessageBusExt, SubscribeRequest, TopicCatalogue, TopicName,
    };
    use qi_core::{Ingest, IngestConfig};
    let (bus, plain, chaos) = (memory_bus(), memory_store(), Chaos::seeded(1));
    bus.create_catalogue(&TopicCatalogue::standard().unwrap()).await.unwrap();
    plain.ensure_schema().await.unwrap();
    let (topic, group) = (TopicName::new("crypto-prices").unwrap(), GroupId::new("writer").unwrap());
    bus.publish_one(&Message::new(topic.clone(), "no record")).await.unwrap();
    bus.send_records(&market(7, 1).collect::<Vec<_>>(), None).await.unwrap();
    let store: Arc<dyn PriceStore> = Arc::new(Layered::new(plain.clone(), chaos.clone()));
    let request = SubscribeRequest::new(group.clone(), [topic.clone()]).unwrap();
    let config = IngestConfig::default();
    let ingest = Ingest::open(bus.clone(), store, PriceTick::DATASET, request, config).await.unwrap();
    // The numbers of stored records, dead letters, and uncommitted messages.
    let counts = async || {
        let topics = bus.topics().await.unwrap();
        let dead = topics.iter().find(|t| t.name.as_str() == "crypto-prices.dlq").unwrap();
        let letters = dead.partitions.iter().map(|p| p.high).sum::<u64>();
        let groups = bus.groups(&GroupQuery::one(group.clone())).await.unwrap();
        (contents(&*plain).await.len(), letters, groups[0].lag())
    };
    let chaos = chaos.on(Operation::Insert, Rule::new(1.0, [Fault::Error]));
    let mut ingest = ingest;
    let mut run = std::pin::pin!(ingest.run_until(std::future::pending()));
    for _ in 0..3 {
        assert!(tokio::time::timeout(Duration::from_secs(30), &mut run).await.is_err());
        assert_eq!(counts().await, (0, 0, Some(2)));
    }
    chaos.set_enabled(false);
    assert!(tokio::time::timeout(Duration::from_secs(30), &mut run).await.is_err());
    assert_eq!(counts().await, (1, 1, Some(0)));
}

#[tokio::test(start_paused = true)]
async fn trades_of_one_time_are_all_stored_and_bad_lines_are_counted() {
    let (_file, data) =
        trades("1600000000,10,1\n1600000000,10,1\nbad\n1600000000,11,2\n1600000061,12,\n1600000061,12,0\n");
    let job = Job::new(memory_store(), memory_bus(), data).unwrap();
    let counters = job.counters.clone();
    let summary = job.run().await.unwrap();
    assert_eq!((summary.published, summary.stored, summary.bad_lines), (4, 4, 2));
    assert_eq!(summary.instruments[0].bars, 2);
    assert_eq!(summary.instruments[0].vwap.unwrap().to_string(), "10.5");
    let lines: Vec<_> =
        counters.first_bad_lines().iter().map(|e| e.context_value("line").unwrap().to_owned()).collect();
    assert_eq!(lines, ["3", "5"]);
}

#[tokio::test(start_paused = true)]
async fn strict_job_stops_at_the_first_bad_line() {
    let (_file, data) = trades("1600000000,10,1\nbad\n1600000000,11,2\n");
    let mut job = Job::new(memory_store(), memory_bus(), data).unwrap();
    job.strict = true;
    let error = job.run().await.unwrap_err();
    assert!(error.report().contains("line=2"), "{}", error.report());
}

#[tokio::test(start_paused = true)]
async fn candles_merge_into_coarser_bars_only_if_the_intervals_fit() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "timestamp,open,high,low,close,volume").unwrap();
    for minute in 0..15 {
        writeln!(file, "2022-01-01 00:{minute:02}:00.000000,{0},{0},{0},{0},0.1", 10 + minute).unwrap();
    }
    let candles = || {
        let options = FileOptions::default().instrument("x:Y".parse::<Instrument>().unwrap());
        qi_files::open(&[file.path().to_owned()], &options).unwrap().data.into()
    };
    let run = async |interval, export: Option<&std::path::Path>| {
        let mut job = Job::new(memory_store(), memory_bus(), candles()).unwrap();
        job.interval = interval;
        job.export = export.map(|path| (path.to_owned(), "x:Y".parse().unwrap()));
        job.run().await
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bars.csv");
    let summary = run(Interval::M5, Some(&path)).await.unwrap();
    assert_eq!((summary.stored, summary.instruments[0].bars), (15, 3));
    let exported = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        exported,
        "open_time_us,open,high,low,close,volume,count\n\
         1640995200000000,10,14,10,14,0.5,\n1640995500000000,15,19,15,19,0.5,\n1640995800000000,20,24,20,24,0.5,\n"
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no other file is left");
    let error = run(Interval::S15, None).await.unwrap_err();
    assert_eq!((error.kind(), error.context_value("field")), (ErrorKind::InvalidInput, Some("interval")));
}

#[tokio::test(start_paused = true)]
async fn stopped_job_continues_later_without_loss() {
    let (store, bus) = (memory_store(), memory_bus());
    let stop = Stop::default();
    let stopped = stop.graceful.clone();
    let ticks = market(7, 50_000).enumerate().map(move |(n, tick)| {
        if n == 10_000 {
            stopped.cancel();
        }
        tick
    });
    let mut job = Job::new(store.clone(), bus.clone(), data(ticks)).unwrap();
    job.stop = stop;
    let summary = job.run().await.unwrap();
    assert!(summary.interrupted && summary.published < 50_000, "{summary:?}");
    let summary = Job::new(store.clone(), bus, data(market(7, 50_000))).unwrap().run().await.unwrap();
    let sent = by_key(market(7, 50_000));
    assert_eq!(summary.stored, sent.len() as u64);
    assert_eq!(contents(&*store).await, sent.into_values().collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn permanent_bus_error_fails_the_job() {
    let bus = memory_bus();
    bus.close().await.unwrap();
    let error: Error = Job::new(memory_store(), bus, data(market(8, 10))).unwrap().run().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn full_bus_makes_the_feed_wait_without_loss() {
    let mut config = MemoryBusConfig::default();
    (config.max_bytes, config.max_message_bytes) = (200_000, 10_000);
    let bus = Arc::new(MemoryBus::new(config, Arc::new(SystemClock)).unwrap());
    let mut job = Job::new(memory_store(), bus, data(market(9, 20_000))).unwrap();
    let catalogue: Vec<_> = job.catalogue.topics().cloned().collect();
    for topic in catalogue {
        job.catalogue.insert(topic.with_max_message_bytes(10_000));
    }
    let summary = job.run().await.unwrap();
    assert_eq!(summary.stored, by_key(market(9, 20_000)).len() as u64);
}

#[tokio::test(start_paused = true)]
async fn export_follows_no_symbolic_link() {
    let folder = tempfile::tempdir().unwrap();
    let (victim, path) = (folder.path().join("victim"), folder.path().join("out.csv"));
    std::fs::write(&victim, "mine").unwrap();
    let planted = folder.path().join(format!("out.csv.{}.part", std::process::id()));
    std::os::unix::fs::symlink(&victim, planted).unwrap();
    let mut job = Job::new(memory_store(), memory_bus(), data(market(1, 100))).unwrap();
    job.export = Some((path.clone(), "sim:A0001-USDT".parse().unwrap()));
    job.run().await.unwrap();
    assert_eq!(std::fs::read_to_string(victim).unwrap(), "mine");
    assert!(std::fs::symlink_metadata(path).unwrap().is_file());
}

#[test]
fn input_of_only_bad_lines_stops_the_job() {
    let (stop, read) = (Stop::default(), Arc::new(AtomicUsize::new(0)));
    let (stopped, lines) = (stop.graceful.clone(), read.clone());
    let lines = (0..1_000_000).map(move |n| {
        if n == 10_000 {
            stopped.cancel();
        }
        lines.store(n, Ordering::Relaxed);
        Err(Input::BadLine(Error::invalid("test.bad", "line", "bad", "is bad")))
    });
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let mut job = Job::new(memory_store(), memory_bus(), Data::Ticks(Box::new(lines))).unwrap();
    job.stop = stop;
    assert!(runtime.block_on(job.run()).unwrap().interrupted);
    // Waits for the reading thread.
    drop(runtime);
    assert!(read.load(Ordering::Relaxed) < 20_000, "the input is read after the stop");
}

#[tokio::test]
async fn slow_input_does_not_block_other_tasks() {
    let wanted = Arc::new(tokio::sync::Notify::new());
    let (other, (send, receive)) = (wanted.clone(), std::sync::mpsc::channel());
    // Each record is read after another task of this thread has run.
    let ticks = market(1, 10).inspect(move |_| {
        wanted.notify_one();
        receive.recv_timeout(Duration::from_secs(20)).expect("another task runs");
    });
    tokio::spawn(async move {
        loop {
            other.notified().await;
            send.send(()).unwrap();
        }
    });
    let summary = Job::new(memory_store(), memory_bus(), data(ticks)).unwrap().run().await.unwrap();
    assert_eq!(summary.published, 10);
}

/// Stores files without ids one after another. Returns the stored seconds, numbers, prices and quantities.
async fn store_files(store: &Arc<dyn PriceStore>, files: &[&str]) -> Vec<(i64, u64, String)> {
    for content in files {
        let (_file, data) = trades(content);
        Job::new(store.clone(), memory_bus(), data).unwrap().run().await.unwrap();
    }
    let stored = contents(&**store).await.into_iter();
    let row = |tick: PriceTick| {
        let quantity = tick.quantity().unwrap();
        (tick.ts().as_micros() / 1_000_000, tick.seq(), format!("{}x{quantity}", tick.price()))
    };
    stored.map(row).collect()
}

const A: &str = "1700000000,100,1\n1700000001,101,2\n1700000001,102,3\n";
const B: &str = "1700000001,103,4\n1700000001,104,5\n1700000001,105,6\n1700000002,106,7\n";

#[tokio::test(start_paused = true)]
async fn second_split_over_files_is_stored_completely_and_once() {
    let at_once = store_files(&memory_store(), &[&format!("{A}{B}")]).await;
    assert_eq!(at_once.len(), 7);
    let whole = format!("{A}{B}");
    for files in [
        &[A, B][..],
        &[A, A, B, B],
        &[A, B, A, B, A],
        &[A, B, &whole],
        &[&whole, A, B],
        // Three files within one second.
        &[A, "1700000001,103,4\n", "1700000001,104,5\n", "1700000001,105,6\n1700000002,106,7\n"],
        // A run that was killed after the first timestamp of its file.
        &["1700000000,100,1\n1700000001,101,2\n", A, B],
    ] {
        assert_eq!(store_files(&memory_store(), files).await, at_once, "{files:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn equal_trades_at_a_file_boundary_are_all_stored() {
    let (a, b) = ("1700000000,100,1\n1700000001,5,1\n", "1700000001,5,1\n1700000001,5,1\n1700000002,6,1\n");
    let stored = store_files(&memory_store(), &[a, b]).await;
    assert_eq!(stored.len(), 5, "{stored:?}");
    assert_eq!(store_files(&memory_store(), &[a, b, b, a, b]).await, stored);
}

#[tokio::test(start_paused = true)]
async fn later_file_may_be_read_first_and_a_second_may_repeat() {
    let stored = store_files(&memory_store(), &[B, A, B, A]).await;
    assert_eq!(stored.len(), 7, "{stored:?}");
    // The split second is not the first of the second file.
    let unsorted =
        "1700000002,106,7\n1700000001,103,4\n1700000002,107,8\n1700000001,104,5\n1700000001,105,6\n";
    let stored = store_files(&memory_store(), &[A, unsorted]).await;
    assert_eq!(stored.len(), 8, "{stored:?}");
    assert_eq!(store_files(&memory_store(), &[A, unsorted, unsorted, A]).await, stored);
}

#[tokio::test(start_paused = true)]
async fn first_second_of_many_pages_is_recognised() {
    let lines = |from: u32, to: u32| {
        let lines: Vec<_> = (from..to).map(|n| format!("1700000001,{},1\n", n + 1)).collect();
        lines.concat()
    };
    let (a, b) = (lines(0, 2_500), format!("{}1700000002,9,1\n", lines(2_500, 4_999)));
    let stored = store_files(&memory_store(), &[&a, &b]).await;
    assert_eq!(stored.len(), 5_000);
    assert_eq!(store_files(&memory_store(), &[&a, &b, &b]).await, stored);
    // The documented exception: a file within one second is stored again if it is read again.
    assert_eq!(store_files(&memory_store(), &[&a, &b, &b, &a]).await.len(), 7_500);
}

#[tokio::test(start_paused = true)]
async fn files_within_one_second_lose_no_equal_trade() {
    let equal = "1700000001,100,1\n".repeat(3);
    for (files, expected) in [
        (&[&*equal, &equal, &equal][..], 9),
        (&["1700000001,100,1\n1700000001,100,1\n", "1700000001,100,1\n"], 3),
        (
            &[
                "1700000000,99,1\n1700000001,100,1\n1700000001,100,1\n",
                "1700000001,100,1\n",
                "1700000001,100,1\n1700000002,5,1\n",
            ],
            6,
        ),
        // The middle of the stored second, after a later second was stored.
        (
            &[
                "1700000001,1,1\n1700000001,2,1\n1700000001,3,1\n1700000002,5,1\n",
                "1700000001,2,1\n1700000002,5,1\n",
            ],
            6,
        ),
        // A second that occurs twice in its file: the lines after a new timestamp are no proof of completeness.
        (
            &[
                "1700000001,100,1\n1700000002,5,1\n1700000002,5,1\n",
                "1700000001,100,1\n1700000002,5,1\n1700000001,100,1\n",
            ],
            6,
        ),
    ] {
        let stored = store_files(&memory_store(), files).await;
        assert_eq!(stored.len(), expected, "{files:?}: {stored:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn equal_sequences_at_a_file_boundary_are_all_stored() {
    let a = "1700000000,100,1\n1700000001,101,2\n1700000001,102,3\n";
    let b = "1700000001,101,2\n1700000001,102,3\n1700000002,106,7\n";
    let stored = store_files(&memory_store(), &[a, b]).await;
    assert_eq!(stored.len(), 6, "{stored:?}");
    assert_eq!(store_files(&memory_store(), &[a, b, b, a]).await, stored);
}

#[tokio::test(start_paused = true)]
async fn run_killed_within_its_first_second_loses_nothing() {
    // The documented exception: the trades of the killed run are stored twice.
    let stored = store_files(&memory_store(), &[A, "1700000001,103,4\n1700000001,104,5\n", B]).await;
    assert_eq!(stored.len(), 9, "{stored:?}");
}

#[tokio::test(start_paused = true)]
async fn run_killed_within_equal_trades_stores_no_duplicate() {
    let lines: Vec<_> = (0..30).map(|n| format!("{},5,1\n", 1_700_000_000 + n / 3)).collect();
    let file = lines.concat();
    let stored = store_files(&memory_store(), &[&file]).await;
    assert_eq!(stored.len(), 30);
    for killed_after in 4..30 {
        let part: String = file.split_inclusive('\n').take(killed_after).collect();
        assert_eq!(store_files(&memory_store(), &[&part, &file]).await, stored, "{killed_after}");
    }
}
