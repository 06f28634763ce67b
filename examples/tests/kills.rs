//! Tests that kill `pipeline`, its broker and its database. At the end, the store holds each tick of the input once,
//! and the exported bars are byte-identical to an undisturbed run in memory. One message in a hundred is invalid (a
//! poison message). Each poison message is in the dead letters.
//!
//! `scripts/backends spare` starts a separate broker and database for every trial. If it cannot start them, the trials
//! are ignored, or fail with `QI_REQUIRE_BACKENDS`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod kills_rig;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use kills_rig::{PoisonProducer, Sent};
use libtest_mimic::{Arguments, Completion, Failed};
use qi_adapters::Config;
use qi_adapters::redpanda::{RedpandaBus, RedpandaConfig};
use qi_core::MessageBus;
use qi_core::bus::{GroupQuery, ReaderRequest, ReceivedMessage, SeekTo, TopicName, TopicPartition, header};
use qi_core::store::RangeQuery;
use qi_core::{PriceStore, PriceStoreExt, PriceTick, TimeRange, Timestamp};
use qi_examples::pipeline::{Data, Job};
use qi_testkit::market::{Market, MarketConfig};
use qi_testkit::presence;
use qi_testkit::store::MemoryStore;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

const INSTRUMENTS: usize = 4;
const EXPORTED: &str = "sim:A0002-USDT";
/// The topic of the ticks, and the group of the program.
const TOPIC: &str = "crypto-prices";
const GROUP: &str = "pipeline-writer";

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Trials mostly wait for servers to start, so two trials run concurrently.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    let mut trials = Vec::new();
    for database in ["timescale", "clickhouse"] {
        for (name, run) in [
            ("twenty_kills_and_poison_lose_no_tick_and_no_dead_letter", kill_processes as fn(&Rig)),
            ("program_continues_after_broker_and_database_outages", kill_servers as fn(&Rig)),
        ] {
            let trial = move || {
                run(&Rig::new(database)?);
                Ok(Completion::Completed)
            };
            trials.push(presence::trial(format!("redpanda+{database}/{name}"), "redpanda", absent(), trial));
        }
    }
    let trial = || open_transaction().map(|()| Completion::Completed);
    let name = "redpanda/an_open_transaction_delays_the_job_only_before_its_own_records".to_owned();
    trials.push(presence::trial(name, "redpanda", absent(), trial));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Returns the reason to ignore the trials: only servers of the script may be killed, and the script needs root.
fn absent() -> Option<String> {
    if std::env::var("QI_KAFKA_BROKERS").is_ok_and(|brokers| !brokers.is_empty()) {
        let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n");
        return (!root).then(|| "servers that may be killed need root".to_owned());
    }
    Some("QI_KAFKA_BROKERS is not set".to_owned())
}

/// A server of `scripts/backends spare`. Dropping the value removes the server.
struct Spare {
    kind: &'static str,
    name: String,
}

impl Spare {
    fn start(kind: &'static str) -> (Self, String) {
        let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let spare = Self { kind, name: format!("e2e-{}-{}", std::process::id(), started.as_nanos()) };
        let address = spare.order("start");
        (spare, address)
    }

    fn order(&self, action: &str) -> String {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/backends");
        let out = Command::new(script).args(["spare", self.kind, &self.name, action]).output().unwrap();
        assert!(out.status.success(), "{action}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.order("remove");
    }
}

/// Runs the job while another producer has an open transaction in every partition.
fn open_transaction() -> Result<(), Failed> {
    const LIMIT: Duration = Duration::from_secs(30);
    let (_broker, brokers) = Spare::start("redpanda");
    let bus: Arc<dyn MessageBus> = Arc::new(RedpandaBus::open(RedpandaConfig::from_brokers(&brokers))?);
    let store: Arc<dyn PriceStore> = Arc::new(MemoryStore::default());
    let market = Market::new(MarketConfig::new(11, INSTRUMENTS)?)?;
    let input: Vec<_> = market.take(200).collect();
    let run = async |ticks: &[PriceTick]| {
        let ticks: Vec<_> = ticks.iter().cloned().map(Ok).collect();
        Job::new(store.clone(), bus.clone(), Data::Ticks(Box::new(ticks.into_iter())))?.run().await
    };
    // Some ticks of the simulated market have equal keys.
    let keys = |ticks: &[PriceTick]| -> BTreeSet<_> {
        ticks.iter().map(|tick| (tick.instrument().clone(), tick.ts(), tick.seq())).collect()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        run(&input[..100]).await?;
        let mut config = rdkafka::ClientConfig::new();
        config.set("bootstrap.servers", &brokers).set("transactional.id", "another");
        config.set("transaction.timeout.ms", "600000");
        let producer: BaseProducer = config.create()?;
        producer.init_transactions(LIMIT)?;
        producer.begin_transaction()?;
        for partition in 0..12 {
            let record = BaseRecord::<(), str>::to(TOPIC).partition(partition).payload("no record");
            producer.send(record).map_err(|(error, _)| error)?;
        }
        producer.flush(LIMIT)?;
        tokio::time::timeout(LIMIT, run(&[])).await.map_err(|_| "the job waits for a transaction")??;
        let job = run(&input[100..]);
        tokio::pin!(job);
        let early = tokio::time::timeout(Duration::from_secs(5), &mut job).await;
        assert!(early.is_err(), "the job ended before its records were stored: {early:?}");
        producer.abort_transaction(LIMIT)?;
        tokio::time::timeout(LIMIT, job).await.map_err(|_| "the job does not end")??;
        let mut stored = Vec::new();
        for instrument in keys(&input).into_iter().map(|(instrument, ..)| instrument).collect::<BTreeSet<_>>()
        {
            let query = RangeQuery::new(instrument, TimeRange::ALL);
            stored.extend(store.tick_stream(query).try_collect::<Vec<_>>().await?);
        }
        assert_eq!(keys(&stored), keys(&input));
        bus.close().await?;
        Ok(())
    })
}

/// A broker, a database, and the configuration of the program.
struct Rig {
    database: &'static str,
    broker: Spare,
    brokers: String,
    store: Spare,
    variables: Vec<(String, String)>,
    folder: tempfile::TempDir,
}

impl Rig {
    fn new(database: &'static str) -> Result<Self, Failed> {
        let ((broker, brokers), (store, url)) = (Spare::start("redpanda"), Spare::start(database));
        let variables = vec![
            ("QI__BUS__REDPANDA__BROKERS".to_owned(), brokers.clone()),
            (format!("QI__STORE__{}__URL", database.to_uppercase()), url),
            // With a short timeout, requests to a killed broker end soon.
            ("QI__BUS__REDPANDA__REQUEST_TIMEOUT".to_owned(), "3s".to_owned()),
            // About 13,500 ticks/s, so that the program runs long enough for the test.
            ("QI__BUS__LIMIT__RATE".to_owned(), "4".to_owned()),
        ];
        Ok(Self { database, broker, brokers, store, variables, folder: tempfile::tempdir()? })
    }

    fn config(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("config/redpanda-{}.toml", self.database))
    }

    fn export(&self) -> PathBuf {
        self.folder.path().join("ours.csv")
    }

    /// Returns a command that runs the program on the servers.
    fn pipeline(&self, ticks: usize) -> Command {
        let mut command = market(ticks, &self.export());
        command.arg("--config").arg(self.config()).args(["--member", "the-only-writer"]);
        command.envs(self.variables.iter().map(|(key, value)| (key, value)));
        command
    }

    /// Runs the program until it succeeds.
    fn finish(&self, ticks: usize, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            // A full pipe without a reader would block the program's log of dead letters.
            let log = self.folder.path().join("stderr");
            let file = std::fs::File::create(&log).unwrap();
            let mut child = self.pipeline(ticks).stderr(file).stdout(Stdio::null()).spawn().unwrap();
            while child.try_wait().unwrap().is_none() {
                if Instant::now() > deadline {
                    child.kill().unwrap();
                }
                sleep(Duration::from_millis(50));
            }
            if child.wait().unwrap().success() {
                return;
            }
            let log = std::fs::read_to_string(log).unwrap();
            let lines: Vec<_> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(20)..].join("\n");
            assert!(Instant::now() < deadline, "the process did not succeed within {limit:?}: {last}");
        }
    }

    /// Runs a future with the configuration of the program.
    fn block_on<T>(&self, work: impl AsyncFnOnce(Config) -> T) -> T {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let config = Config::builder().file(self.config()).variables(self.variables.clone()).build().unwrap();
        runtime.block_on(work(config))
    }

    /// Publishes poison messages in transactions, whose markers are at the ends of partitions. Returns the number of
    /// messages.
    fn transactions(&self) -> u64 {
        const MESSAGES: u64 = 100;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/backends");
        let options = format!(
            "--topic {TOPIC} --num-records {MESSAGES} --record-size 20 --throughput 200 \
             --transactional-id other-team --transaction-duration-ms 100"
        );
        let out = Command::new(script)
            .args(["kafka-tool", "ProducerPerformance", "--bootstrap-server", &self.brokers])
            .args(options.split_whitespace())
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        MESSAGES
    }

    /// Checks that each poison message has a dead letter, that copies have the same origin, and that the group's lag is
    /// 0. `committed` is the number of poison messages in transactions.
    fn compare_dead_letters(&self, sent: &Sent, committed: u64) {
        let (letters, groups) = self.block_on(async |config| {
            let bus = config.open_bus().await.unwrap();
            let letters = messages(&*bus, &TopicName::new(format!("{TOPIC}.dlq")).unwrap()).await;
            let groups = bus.groups(&GroupQuery::one(GROUP.parse().unwrap())).await.unwrap();
            bus.close().await.unwrap();
            (letters, groups)
        });
        let number = |letter: &ReceivedMessage, name: &str| -> u64 {
            let value = letter.headers.get(name).unwrap_or_else(|| panic!("{name} is missing: {letter:?}"));
            std::str::from_utf8(value).unwrap().parse().unwrap()
        };
        let mut origins = BTreeSet::new();
        for letter in &letters {
            assert_eq!(letter.headers.get(header::ORIGIN_TOPIC).unwrap(), TOPIC);
            assert!(letter.headers.get(header::ERROR).is_some_and(|text| text.len() <= 1_024));
            let partition = u32::try_from(number(letter, header::ORIGIN_PARTITION)).unwrap();
            origins.insert((partition, number(letter, header::ORIGIN_OFFSET)));
        }
        println!("{} dead letters, {} of them copies", letters.len(), letters.len() - origins.len());
        let missing: Vec<_> = sent.acknowledged.difference(&origins).collect();
        assert!(missing.is_empty(), "not in the dead letters: {missing:?}");
        // The log may contain messages whose response was lost when the broker was killed.
        let others = origins.difference(&sent.acknowledged).count() as u64;
        assert!(others <= sent.unknown, "{others} dead letters of messages that are no poison");
        assert!(others >= committed, "{others} dead letters for {committed} messages in transactions");
        let lag: Vec<_> = groups.iter().map(qi_core::bus::GroupInfo::lag).collect();
        assert_eq!(lag, [Some(0)]);
    }

    /// Checks that the store has each tick of the input once, and that the bars equal the bars of an undisturbed run.
    fn compare(&self, ticks: usize) {
        let quiet = self.folder.path().join("quiet.csv");
        let ran = market(ticks, &quiet).stdout(Stdio::null()).status().unwrap();
        assert!(ran.success(), "the quiet run ended with {ran}");
        let (ours, quiet) =
            (std::fs::read_to_string(self.export()).unwrap(), std::fs::read_to_string(quiet).unwrap());
        assert!(quiet.lines().count() > 2, "no bars were exported");
        assert_eq!(ours, quiet, "the exported bars");
        self.block_on(async |config| {
            let store = config.open_store().await.unwrap();
            let mut wanted: BTreeMap<_, BTreeMap<_, PriceTick>> = BTreeMap::new();
            for tick in Market::new(MarketConfig::new(1, INSTRUMENTS).unwrap()).unwrap().take(ticks) {
                wanted.entry(tick.instrument().clone()).or_default().insert((tick.ts(), tick.seq()), tick);
            }
            let all = TimeRange::new(Timestamp::MIN, Timestamp::MAX).unwrap();
            for (instrument, wanted) in wanted {
                let query = RangeQuery::new(instrument.clone(), all);
                let stored: Vec<PriceTick> = store.tick_stream(query).try_collect().await.unwrap();
                assert_eq!(stored.len(), wanted.len(), "ticks of {instrument}");
                assert!(stored.iter().eq(wanted.values()), "the ticks of {instrument} differ");
            }
            store.close().await.unwrap();
        });
    }
}

/// Returns the first offset and the end offset of each partition of a topic.
async fn offsets(bus: &dyn MessageBus, topic: &str) -> Vec<(TopicPartition, u64, u64)> {
    let topics = bus.topics().await.unwrap();
    let topic = topics.into_iter().find(|found| found.name.as_str() == topic).unwrap();
    let partitions = topic.partitions.iter();
    partitions.map(|p| (TopicPartition::new(topic.name.clone(), p.id), p.low, p.high)).collect()
}

/// Returns every message of a topic.
async fn messages(bus: &dyn MessageBus, topic: &TopicName) -> Vec<ReceivedMessage> {
    let mut open = offsets(bus, topic.as_str()).await;
    open.retain(|(_, low, high)| high > low);
    let from = open.iter().map(|(partition, ..)| (partition.clone(), SeekTo::Earliest));
    let mut reader = bus.open_reader(ReaderRequest::new(from).unwrap()).await.unwrap();
    let mut messages = Vec::new();
    let deadline = Instant::now() + Duration::from_mins(2);
    while !open.is_empty() {
        assert!(Instant::now() < deadline, "{open:?} are left to read");
        messages.extend(reader.recv(1_000, Duration::from_secs(1)).await.unwrap().into_messages());
        for at in reader.assignment().await.unwrap().partitions {
            open.retain(|(partition, _, high)| *partition != at.partition || at.position < *high);
        }
    }
    reader.close().await.unwrap();
    messages
}

/// Returns a command that runs the program with a simulated market.
fn market(ticks: usize, export: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.args(["--ticks", &ticks.to_string(), "--instruments", &INSTRUMENTS.to_string()]);
    command.args(["--instrument", EXPORTED, "--interval", "1s", "--export"]).arg(export);
    command
}

/// Kills the process twenty times at random times and restarts it. Some rounds also kill the broker or the database.
/// Poison messages of every kind arrive throughout.
fn kill_processes(rig: &Rig) {
    const TICKS: usize = 60_000;
    let mut random = fastrand::Rng::new();
    println!("seed {}", random.get_seed());
    let poison = PoisonProducer::start(rig.brokers.clone());
    let (mut met, mut servers_met) = (0, 0);
    for round in 0..20 {
        poison.send(10 * (round + 1));
        let mut child = rig.pipeline(TICKS).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // With a longer pause, the program could end before the kill.
        let latest = if matches!(round % 5, 1 | 3) { 1_000 } else { 1_700 };
        sleep(Duration::from_millis(random.u64(50..latest)));
        let alive = child.try_wait().unwrap().is_none();
        servers_met += usize::from(alive && matches!(round % 5, 1 | 3));
        match round % 5 {
            1 => rig.broker.order("kill"),
            3 => rig.store.order("kill"),
            _ => String::new(),
        };
        sleep(Duration::from_millis(random.u64(0..500)));
        met += usize::from(child.try_wait().unwrap().is_none());
        kill(&mut child);
        match round % 5 {
            1 => rig.broker.order("start"),
            3 => rig.store.order("start"),
            _ => String::new(),
        };
    }
    // The kill of a program that has already ended tests nothing.
    assert!(met >= 15, "only {met} of 20 kills met a living program");
    assert!(servers_met >= 6, "only {servers_met} of 8 servers were killed under a living program");
    let published: u64 = rig.block_on(async |config| {
        let bus = config.open_bus().await.unwrap();
        let offsets = offsets(&*bus, TOPIC).await;
        bus.close().await.unwrap();
        offsets.into_iter().map(|(_, low, high)| high - low).sum()
    });
    // The last run publishes the input again.
    poison.send((published + TICKS as u64) / 99 + 1);
    let mut sent = poison.finish();
    let committed = rig.transactions();
    sent.unknown += committed;
    println!("{} messages, {} of them poison: {:?}", published, sent.acknowledged.len(), sent.by_kind);
    assert!(sent.by_kind.iter().all(|messages| *messages > 0), "not every kind was sent: {:?}", sent.by_kind);
    rig.finish(TICKS, Duration::from_mins(4));
    rig.compare(TICKS);
    rig.compare_dead_letters(&sent, committed);
}

fn kill(child: &mut Child) {
    // The process may have ended already.
    let _ = child.kill();
    child.wait().unwrap();
}

/// A running program, with its metrics.
struct Running {
    child: Child,
    address: String,
    words: std::thread::JoinHandle<String>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        command.args(["--listen", "127.0.0.1:0"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        errors.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("pipeline: listening on http://").expect(&line).to_owned();
        let words = std::thread::spawn(move || {
            let mut words = String::new();
            errors.read_to_string(&mut words).unwrap();
            words
        });
        Self { child, address, words }
    }

    /// Returns the number of batches stored so far.
    fn stored(&self) -> u64 {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let sum = |name: &str| -> u64 {
            let lines = answer.lines().filter(|l| l.starts_with(name) && l.contains("operation=\"insert\""));
            lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
        };
        sum("qi_calls_total{") - sum("qi_call_errors_total{")
    }

    /// Returns the time until more batches are stored.
    fn wait_for_progress(&mut self) -> Duration {
        let (began, before) = (Instant::now(), self.stored());
        while self.stored() == before {
            assert!(self.child.try_wait().unwrap().is_none(), "the process is over");
            assert!(began.elapsed() < Duration::from_mins(2), "the process does not continue");
            sleep(Duration::from_millis(50));
        }
        began.elapsed()
    }
}

/// Kills the broker and the database three times each while the process runs without a restart. The process continues
/// within ten seconds after the server answers.
fn kill_servers(rig: &Rig) {
    const TICKS: usize = 1_000_000;
    let mut random = fastrand::Rng::new();
    println!("seed {}", random.get_seed());
    let mut running = Running::start(rig.pipeline(TICKS));
    running.wait_for_progress();
    for round in 0..3 {
        // The program publishes during the outage of a database. The longer outages of a broker do not use up its input.
        for (server, longest) in [(&rig.broker, 15_000), (&rig.store, 8_000)] {
            sleep(Duration::from_millis(random.u64(500..2_000)));
            server.order("kill");
            sleep(Duration::from_millis(random.u64(500..longest)));
            server.order("start");
            let took = running.wait_for_progress();
            println!("round {round}: {} responds again, the program continued after {took:?}", server.kind);
            assert!(
                took < Duration::from_secs(10),
                "round {round}: recovery took {took:?} after {} responded",
                server.kind
            );
        }
    }
    let deadline = Instant::now() + Duration::from_mins(5);
    while running.child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            running.child.kill().unwrap();
        }
        sleep(Duration::from_millis(100));
    }
    let status = running.child.wait().unwrap();
    assert!(status.success(), "the process ended with {status}: {}", running.words.join().unwrap());
    rig.compare(TICKS);
}
