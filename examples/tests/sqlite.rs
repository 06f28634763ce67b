//! The program on a SQLite file: kills, and several processes on one file.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use futures::TryStreamExt as _;
use qi_adapters::Config;
use qi_core::store::{BarQuery, BarSource, RangeQuery};
use qi_core::{Bar, BarValues, PriceStore, PriceStoreExt, PriceTick, TimeRange};
use qi_testkit::market::{Market, MarketConfig};

const INSTRUMENTS: usize = 4;
const EXPORTED: &str = "sim:A0002-USDT";

/// Returns a command that runs the program on a file.
fn pipeline(file: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.arg("--config").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/config/sqlite.toml"));
    command.env("QI__STORE__SQLITE__PATH", file).stdout(Stdio::null());
    command
}

fn simulate<'c>(command: &'c mut Command, ticks: usize, export: &Path) -> &'c mut Command {
    command.args(["--ticks", &ticks.to_string(), "--instruments", &INSTRUMENTS.to_string()]);
    command.args(["--instrument", EXPORTED, "--interval", "1s", "--export"]).arg(export)
}

fn succeed(command: &mut Command) {
    let out = command.stderr(Stdio::piped()).output().unwrap();
    assert!(out.status.success(), "{}: {}", out.status, String::from_utf8_lossy(&out.stderr));
}

/// Kills the program twenty times at random times. Then the store has each tick of the input once, and the bars equal
/// the bars of an undisturbed run in memory.
#[test]
fn twenty_kills_leave_an_exact_result() {
    const TICKS: usize = 60_000;
    let folder = tempfile::tempdir().unwrap();
    let (file, ours, quiet) =
        (folder.path().join("prices.db"), folder.path().join("ours.csv"), folder.path().join("quiet.csv"));
    let mut random = fastrand::Rng::new();
    println!("seed {}", random.get_seed());
    let mut met = 0;
    // The bus is in memory, so each run publishes the input again. The rate keeps the program running until its kill.
    for _ in 0..20 {
        let mut command = pipeline(&file);
        command.env("QI__BUS__LIMIT__RATE", "5").stderr(Stdio::null());
        let mut child = simulate(&mut command, TICKS, &ours).spawn().unwrap();
        sleep(Duration::from_millis(random.u64(50..1_500)));
        met += usize::from(child.try_wait().unwrap().is_none());
        // The program may have ended already.
        let _ = child.kill();
        child.wait().unwrap();
    }
    assert!(met >= 15, "only {met} of 20 kills met a living program");
    succeed(simulate(&mut pipeline(&file), TICKS, &ours));
    let mut in_memory = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    succeed(simulate(in_memory.stdout(Stdio::null()), TICKS, &quiet));
    let (ours, quiet) = (std::fs::read_to_string(ours).unwrap(), std::fs::read_to_string(quiet).unwrap());
    assert!(quiet.lines().count() > 2, "no bars were exported");
    assert_eq!(ours, quiet, "the exported bars");

    let mut wanted: BTreeMap<_, BTreeMap<_, PriceTick>> = BTreeMap::new();
    for tick in Market::new(MarketConfig::new(1, INSTRUMENTS).unwrap()).unwrap().take(TICKS) {
        wanted.entry(tick.instrument().clone()).or_default().insert((tick.ts(), tick.seq()), tick);
    }
    let toml = format!("[store]\nbackend = \"sqlite\"\n[store.sqlite]\npath = \"{}\"", file.display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Config::builder().toml(&toml).build().unwrap().open_store().await.unwrap();
        for (instrument, wanted) in wanted {
            let query = RangeQuery::new(instrument.clone(), TimeRange::ALL);
            let stored: Vec<PriceTick> = store.tick_stream(query).try_collect().await.unwrap();
            assert_eq!(stored.len(), wanted.len(), "ticks of {instrument}");
            assert!(stored.iter().eq(wanted.values()), "the ticks of {instrument} differ");
        }
        store.close().await.unwrap();
    });
}

/// Trades as Kraken publishes them: seconds, price and volume. Some seconds have several trades, and some none.
fn trades() -> String {
    let mut random = fastrand::Rng::with_seed(5);
    let (mut second, mut text) = (1_700_000_000_u64, String::new());
    for _ in 0..5_000 {
        second += random.u64(0..40);
        let (price, volume) = (random.u64(100_000..140_000), random.u64(1..500_000_000));
        writeln!(
            text,
            "{second},{}.{:02},{}.{:08}",
            price / 100,
            price % 100,
            volume / 100_000_000,
            volume % 100_000_000
        )
        .unwrap();
    }
    text
}

const TASK: &str = "QI_SQLITE_TEST_TASK";
const FROM: &str = "QI_SQLITE_TEST_FROM";
const TO: &str = "QI_SQLITE_TEST_TO";

/// The other process: exports the bars of an instrument.
#[tokio::test]
async fn child() {
    let Ok(task) = std::env::var(TASK) else { return };
    let (instrument, interval) = task.split_once(' ').unwrap();
    let toml =
        format!("[store]\nbackend = \"sqlite\"\n[store.sqlite]\npath = \"{}\"", std::env::var(FROM).unwrap());
    let store = Config::builder().toml(&toml).build().unwrap().open_store().await.unwrap();
    let query = BarQuery::new(instrument.parse().unwrap(), interval.parse().unwrap(), TimeRange::ALL);
    let bars: Vec<Bar> = store.bar_stream(query, BarSource::Derived).try_collect().await.unwrap();
    let mut csv = "open_time_us,open,high,low,close,volume,count\n".to_owned();
    for bar in bars {
        let BarValues { open, high, low, close, volume, count, .. } = bar.values();
        let (volume, count) = (volume.unwrap(), count.unwrap());
        writeln!(csv, "{},{open},{high},{low},{close},{volume},{count}", bar.open_time().as_micros())
            .unwrap();
    }
    std::fs::write(std::env::var(TO).unwrap(), csv).unwrap();
    store.close().await.unwrap();
}

/// One process stores recorded trades, and another process exports their bars. The bars equal the candles that
/// `check_bars.py` computes from the file.
fn exported_bars_equal_independent_candles(file: &Path, format: &str, instrument: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (database, csv) = (folder.path().join("prices.db"), folder.path().join("bars.csv"));
    let mut writer = pipeline(&database);
    succeed(writer.arg("--input").arg(file).args(["--format", format, "--instrument", instrument]));
    for interval in ["1m", "5m", "1h", "1d"] {
        // This test program again, which runs the test `child`.
        let mut reader = Command::new(std::env::current_exe().unwrap());
        reader.args(["child", "--exact"]).env(TASK, format!("{instrument} {interval}"));
        succeed(reader.env(FROM, &database).env(TO, &csv));
        let check = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/check_bars.py"))
            .arg(file)
            .args([format, interval])
            .output()
            .unwrap();
        let check = String::from_utf8(check.stdout).unwrap();
        let (count, wanted) = check.split_once('\n').unwrap();
        assert!(count.parse::<u64>().unwrap() > 0);
        assert_eq!(std::fs::read_to_string(&csv).unwrap(), wanted, "{interval}");
    }
}

fn has_python() -> bool {
    Command::new("python3").arg("--version").output().is_ok()
}

#[test]
fn another_process_exports_the_bars_of_trades() {
    if !has_python() {
        println!("skipped: python3 is absent");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trades.csv");
    std::fs::write(&file, trades()).unwrap();
    exported_bars_equal_independent_candles(&file, "kraken", "kraken:BCH-EUR");
}

#[test]
fn another_process_exports_the_bars_of_recorded_trades() {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let folder = std::env::var_os("QI_DATA_DIR").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    for (name, format, instrument) in [
        ("kraken-BCHEUR-trades-2023.csv", "kraken", "kraken:BCH-EUR"),
        ("kraken-XBTUSDT-trades-2025-11-10.csv", "kraken-rest", "kraken:XBT-USDT"),
        ("binance-BTCUSDT-trades-2021-01-08.csv", "binance", "binance:BTC-USDT"),
    ] {
        let file = folder.join(name);
        if !file.is_file() || !has_python() {
            println!("skipped: {name} or python3 is absent");
            continue;
        }
        exported_bars_equal_independent_candles(&file, format, instrument);
    }
}

/// Two programs write the same market into one new file at the same time. The bars of both equal the bars of a run in
/// memory.
#[test]
fn two_programs_write_one_file_at_the_same_time() {
    const TICKS: usize = 30_000;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let children = ["a.csv", "b.csv"].map(|export| {
        let mut command = pipeline(&path("prices.db"));
        simulate(&mut command, TICKS, &path(export)).stderr(Stdio::piped()).spawn().unwrap()
    });
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let mut in_memory = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    succeed(simulate(in_memory.stdout(Stdio::null()), TICKS, &path("quiet.csv")));
    let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();
    assert!(read("quiet.csv").lines().count() > 2, "no bars were exported");
    assert_eq!((read("a.csv"), read("b.csv")), (read("quiet.csv"), read("quiet.csv")));
}
