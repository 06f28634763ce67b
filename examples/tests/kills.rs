//! The program on real brokers and databases that die, and die itself: what is stored in the end equals the input,
//! each tick once, and the exported bars are the bytes of a quiet run in memory.
//!
//! Every trial has a broker and a database of its own by `scripts/backends spare`. Where that cannot be, the trials
//! are reported as ignored; `QI_REQUIRE_BACKENDS` makes that a failure.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
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
    const TICKS: usize = 20_000;
    let mut random = fastrand::Rng::with_seed(20);
    for round in 0..20 {
        let mut child = rig.pipeline(TICKS).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(random.u64(50..3_000)));
        match round % 5 {
            1 => rig.broker.order("kill"),
            3 => rig.store.order("kill"),
            _ => String::new(),
        };
        sleep(Duration::from_millis(random.u64(0..500)));
        kill(&mut child);
        match round % 5 {
            1 => rig.broker.order("start"),
            3 => rig.store.order("start"),
            _ => String::new(),
        };
    }
    rig.finish(TICKS, Duration::from_mins(3));
    rig.compare(TICKS);
}

fn kill(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    child.wait().unwrap();
}

/// The broker and the database are each killed three times while the process runs, which is never started again.
fn outlives(rig: &Rig) {
    const TICKS: usize = 1_000_000;
    let mut random = fastrand::Rng::with_seed(13);
    let mut child = rig.pipeline(TICKS).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    for round in 0..3 {
        for server in [&rig.broker, &rig.store] {
            sleep(Duration::from_millis(random.u64(500..4_000)));
            server.order("kill");
            // Away for up to 20 seconds; a broker needs some of them to start.
            sleep(Duration::from_secs(random.u64(1..12)));
            server.order("start");
            assert!(
                child.try_wait().unwrap().is_none(),
                "round {round}: the process is over while servers are away"
            );
        }
    }
    let deadline = Instant::now() + Duration::from_mins(5);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
        }
        sleep(Duration::from_millis(100));
    }
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "it ended with {}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    rig.compare(TICKS);
}
