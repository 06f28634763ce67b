//! Several processes on one file, and processes that are killed.
//!
//! A child is this test program again. It runs the test `child`, with its task in the environment.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod sqlite_rig;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures::TryStreamExt as _;
use qi_adapters::sqlite::{SqliteConfig, SqliteStore};
use qi_core::store::RangeQuery;
use qi_core::{Datasets, Instrument, PriceStore, PriceStoreExt, PriceTick, TimeRange, Timestamp};
use sqlite_rig::{Folder, connect};
use sqlx::Row as _;

const TASK: &str = "QI_SQLITE_TEST_TASK";
const FILE: &str = "QI_SQLITE_TEST_FILE";

/// The number of records in a batch of the writer.
const BATCH: u64 = 500;

fn instrument(n: u64) -> Instrument {
    format!("x:I{}", n % 7).parse().unwrap()
}

/// Returns a tick of the n-th batch. Its values contain the number of the batch.
fn tick(batch: u64, at: u64) -> PriceTick {
    let ts = Timestamp::from_secs(1_700_000_000).unwrap().checked_add(Duration::from_millis(batch)).unwrap();
    let price = format!("{}.{at:06}", batch + 1).parse().unwrap();
    let quantity: qi_core::Quantity = "0.5".parse().unwrap();
    PriceTick::new(instrument(at), ts, at, price).unwrap().with_quantity(quantity)
}

fn batch(n: u64) -> Vec<PriceTick> {
    (0..BATCH).map(|at| tick(n, at)).collect()
}

fn start(task: &str, path: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["child", "--exact", "--nocapture"]).env(TASK, task).env(FILE, path);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// The tasks of a child process.
#[tokio::test]
async fn child() {
    let Ok(task) = std::env::var(TASK) else { return };
    let path = std::env::var(FILE).unwrap();
    let (task, number) = task.split_once(' ').unwrap();
    let number: u64 = number.parse().unwrap();
    let store = SqliteStore::open(SqliteConfig::from_path(path).with_datasets(Datasets::built_in())).unwrap();
    match task {
        // Creates the schema with others at the same time.
        "schema" => {
            std::io::stdin().lines().next();
            store.ensure_schema().await.unwrap();
            store.insert_ticks(&batch(number)).await.unwrap();
        }
        // Writes batches until it is killed, and prints the number of each acknowledged batch.
        "write" => {
            store.ensure_schema().await.unwrap();
            for n in number.. {
                store.insert_ticks(&batch(n)).await.unwrap();
                let mut out = std::io::stdout();
                writeln!(out, "\nacknowledged {n}").unwrap();
                out.flush().unwrap();
            }
        }
        other => panic!("unknown task {other}"),
    }
    store.close().await.unwrap();
}

async fn stored(path: &Path) -> BTreeMap<(Timestamp, u64), PriceTick> {
    let store = SqliteStore::open(SqliteConfig::from_path(path)).unwrap();
    let mut all = BTreeMap::new();
    for n in 0..7 {
        let query = RangeQuery::new(instrument(n), TimeRange::ALL).with_limit(50_000).unwrap();
        let ticks: Vec<PriceTick> = store.tick_stream(query).try_collect().await.unwrap();
        all.extend(ticks.into_iter().map(|tick| ((tick.ts(), tick.seq()), tick)));
    }
    store.close().await.unwrap();
    all
}

fn expected(batches: u64) -> BTreeMap<(Timestamp, u64), PriceTick> {
    (0..batches).flat_map(batch).map(|tick| ((tick.ts(), tick.seq()), tick)).collect()
}

/// Twenty times: starts a writer, kills it with SIGKILL, and checks that every acknowledged batch is stored with exact
/// values and that no other record exists except of the batch in progress.
#[test]
fn acknowledged_writes_survive_twenty_kills() {
    let folder = Folder::new();
    let path = folder.path();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut acknowledged = 0;
    for round in 0..20_u64 {
        let mut child = start(&format!("write {acknowledged}"), &path);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // The kills come after 1 to 20 acknowledged batches, at different points of the next batch.
        let target = acknowledged + 1 + (round * 13) % 20;
        let killer = |child: &mut Child| {
            std::thread::sleep(Duration::from_micros(round * 397 % 6_000));
            child.kill().unwrap();
        };
        let mut is_killed = false;
        for line in lines {
            let line = line.unwrap();
            if let Some(n) = line.strip_prefix("acknowledged ") {
                acknowledged = n.parse::<u64>().unwrap() + 1;
                if acknowledged >= target && !is_killed {
                    killer(&mut child);
                    is_killed = true;
                }
            }
        }
        assert!(is_killed, "the writer ended by itself: {:?}", child.wait());
        child.wait().unwrap();
        let found = runtime.block_on(stored(&path));
        let wanted = expected(acknowledged);
        assert!(
            wanted.iter().all(|(key, tick)| found.get(key) == Some(tick)),
            "an acknowledged record is missing after {acknowledged} batches"
        );
        // The batch in progress is stored completely or not at all, because it is one transaction.
        let more = expected(acknowledged + 1);
        assert!(found == wanted || found == more, "{} records, wanted {}", found.len(), wanted.len());
        let check = runtime.block_on(async {
            let row = sqlx::query("PRAGMA integrity_check").fetch_one(&mut connect(&path).await).await;
            row.unwrap().get::<String, _>(0)
        });
        assert_eq!(check, "ok");
    }
}

/// Processes create the schema of one new file at the same moment, and then write at the same time.
#[test]
fn processes_create_one_schema_and_lose_no_record() {
    const PROCESSES: u64 = 6;
    let folder = Folder::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for _ in 0..3 {
        let path = folder.path();
        let mut children: Vec<_> = (0..PROCESSES).map(|n| start(&format!("schema {n}"), &path)).collect();
        std::thread::sleep(Duration::from_millis(50));
        for child in &mut children {
            child.stdin.take().unwrap().write_all(b"\n").unwrap();
        }
        for child in children {
            let out = child.wait_with_output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
        }
        assert_eq!(runtime.block_on(stored(&path)), expected(PROCESSES));
    }
}
