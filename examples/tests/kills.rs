//! The program on real brokers and databases that die, and die itself: what is stored in the end equals the input,
//! each tick once, and the exported bars are the bytes of a quiet run in memory.
//!
//! Every trial has a broker and a database of its own by `scripts/backends spare`. Where that cannot be, the trials
//! are reported as ignored; `QI_REQUIRE_BACKENDS` makes that a failure.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use libtest_mimic::{Arguments, Completion, Failed};
use qi_adapters::Config;
use qi_core::store::RangeQuery;
use qi_core::{PriceStoreExt, PriceTick, TimeRange, Timestamp};
use qi_testkit::market::{Market, MarketConfig};
use qi_testkit::presence;

const INSTRUMENTS: usize = 4;
const EXPORTED: &str = "sim:A0002-USDT";

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Most of a trial is waiting for servers that start.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    let mut trials = Vec::new();
    for database in ["timescale", "clickhouse"] {
        for (name, run) in [
            ("a_program_killed_at_twenty_moments_stores_each_tick_once", killed as fn(&Rig)),
            ("a_program_outlives_its_broker_and_its_database", outlives as fn(&Rig)),
        ] {
            let trial = move || {
                run(&Rig::new(database)?);
                Ok(Completion::Completed)
            };
            trials.push(presence::trial(format!("redpanda+{database}/{name}"), "redpanda", absent(), trial));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Servers that may be killed are those of the script, which needs root.
fn absent() -> Option<String> {
    if std::env::var("QI_KAFKA_BROKERS").is_ok_and(|brokers| !brokers.is_empty()) {
        let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n");
        return (!root).then(|| "servers that may be killed need root".to_owned());
    }
    Some("QI_KAFKA_BROKERS is not set".to_owned())
}

/// A server by the script. Dropping it removes it.
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

/// A broker, a database, and how the program is told of them.
struct Rig {
    database: &'static str,
    broker: Spare,
    store: Spare,
    variables: Vec<(String, String)>,
    folder: tempfile::TempDir,
}

impl Rig {
    fn new(database: &'static str) -> Result<Self, Failed> {
        let ((broker, brokers), (store, url)) = (Spare::start("redpanda"), Spare::start(database));
        let variables = vec![
            ("QI__BUS__REDPANDA__BROKERS".to_owned(), brokers),
            (format!("QI__STORE__{}__URL", database.to_uppercase()), url),
            // Short, so that what a kill left behind is given up soon.
            ("QI__BUS__REDPANDA__REQUEST_TIMEOUT_MS".to_owned(), "3000".to_owned()),
        ];
        Ok(Self { database, broker, store, variables, folder: tempfile::tempdir()? })
    }

    fn config(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("config/redpanda-{}.toml", self.database))
    }

    fn export(&self) -> PathBuf {
        self.folder.path().join("ours.csv")
    }

    /// The program on the servers.
    fn pipeline(&self, ticks: usize) -> Command {
        let mut command = market(ticks, &self.export());
        command.arg("--config").arg(self.config()).args(["--member", "the-only-writer"]);
        command.envs(self.variables.iter().map(|(key, value)| (key, value)));
        command
    }

    /// Runs the program until it ends well.
    fn finish(&self, ticks: usize, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let mut child =
                self.pipeline(ticks).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
            while child.try_wait().unwrap().is_none() {
                if Instant::now() > deadline {
                    child.kill().unwrap();
                }
                sleep(Duration::from_millis(50));
            }
            let out = child.wait_with_output().unwrap();
            if out.status.success() {
                return;
            }
            let words = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(Instant::now() < deadline, "it does not end well within {limit:?}: {words}");
        }
    }

    /// What is stored equals the input, each tick once, and the bars are those of a quiet run.
    fn compare(&self, ticks: usize) {
        let quiet = self.folder.path().join("quiet.csv");
        let ran = market(ticks, &quiet).stdout(Stdio::null()).status().unwrap();
        assert!(ran.success(), "the quiet run ended with {ran}");
        let (ours, quiet) =
            (std::fs::read_to_string(self.export()).unwrap(), std::fs::read_to_string(quiet).unwrap());
        assert!(quiet.lines().count() > 2, "no bars were exported");
        assert_eq!(ours, quiet, "the exported bars");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let config = Config::builder().file(self.config()).variables(self.variables.clone()).build().unwrap();
        runtime.block_on(async {
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

/// The program over a simulated market.
fn market(ticks: usize, export: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.args(["--ticks", &ticks.to_string(), "--instruments", &INSTRUMENTS.to_string()]);
    command.args(["--instrument", EXPORTED, "--interval", "1s", "--export"]).arg(export);
    command
}

/// The process is killed twenty times at random moments and started again; in between the broker and the database
/// are killed, too.
fn killed(rig: &Rig) {
    const TICKS: usize = 60_000;
    let mut random = fastrand::Rng::new();
    println!("seed {}", random.get_seed());
    let (mut met, mut servers_met) = (0, 0);
    for round in 0..20 {
        let mut child = rig.pipeline(TICKS).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(random.u64(50..2_000)));
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
    // A kill that meets a program which has ended by itself proves nothing.
    assert!(met >= 15, "only {met} of 20 kills met a living program");
    assert!(servers_met >= 6, "only {servers_met} of 8 servers were killed under a living program");
    rig.finish(TICKS, Duration::from_mins(4));
    rig.compare(TICKS);
}

fn kill(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    child.wait().unwrap();
}

/// The program at work, with its metrics.
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

    /// How many batches were stored so far.
    fn stored(&self) -> u64 {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let sum = |name: &str| -> u64 {
            let lines =
                answer.lines().filter(|l| l.starts_with(name) && l.contains("operation=\"insert_ticks\""));
            lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
        };
        sum("qi_calls_total{") - sum("qi_call_errors_total{")
    }

    /// How long it takes until more is stored.
    fn goes_on(&mut self) -> Duration {
        let (began, before) = (Instant::now(), self.stored());
        while self.stored() == before {
            assert!(self.child.try_wait().unwrap().is_none(), "the process is over");
            assert!(began.elapsed() < Duration::from_mins(2), "it does not go on");
            sleep(Duration::from_millis(50));
        }
        began.elapsed()
    }
}

/// The broker and the database are each killed three times while the process runs, which is never started again: it
/// goes on within ten seconds after the server answers.
fn outlives(rig: &Rig) {
    const TICKS: usize = 1_000_000;
    let mut random = fastrand::Rng::new();
    println!("seed {}", random.get_seed());
    let mut running = Running::start(rig.pipeline(TICKS));
    running.goes_on();
    for round in 0..3 {
        for server in [&rig.broker, &rig.store] {
            sleep(Duration::from_millis(random.u64(500..4_000)));
            server.order("kill");
            // Away for up to 20 seconds; a broker needs some of them to start.
            sleep(Duration::from_millis(random.u64(500..15_000)));
            server.order("start");
            let took = running.goes_on();
            println!("round {round}: {} answers again, and the program goes on after {took:?}", server.kind);
            assert!(
                took < Duration::from_secs(10),
                "round {round}: it took {took:?} after {} answered",
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
    assert!(status.success(), "it ended with {status}: {}", running.words.join().unwrap());
    rig.compare(TICKS);
}
