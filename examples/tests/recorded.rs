//! The program over each recorded file: the totals equal the line count of the file, and the bars equal those that
//! `check_bars.py` computes from the file.
//!
//! The files are in `$QI_DATA_DIR`, or in `../shared/data` next to the checkout. Absent files are reported as ignored.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use futures::TryStreamExt;
use libtest_mimic::{Arguments, Failed, Trial};
use qi_core::store::{BarQuery, BarSource, RangeQuery};
use qi_core::{Bar, Error, Instrument, Interval, PriceStore, PriceStoreExt, PriceTick, TimeRange};
use qi_examples::pipeline::Job;
use qi_files::{FileOptions, Format};
use qi_testkit::bus::MemoryBus;
use qi_testkit::store::{MemoryStore, MemoryStoreConfig};

const FILES: [(&str, &str, &str); 5] = [
    ("kraken-BCHEUR-trades-2023.csv", "kraken", "kraken:BCH-EUR"),
    ("kraken-BCHEUR-trades-2023-q2.csv", "kraken", "kraken:BCH-EUR"),
    ("kraken-XBTUSDT-trades-2025-11-10.csv", "kraken-rest", "kraken:XBT-USDT"),
    ("binance-BTCUSDT-trades-2021-01-08.csv", "binance", "binance:BTC-USDT"),
    ("btc-perp-1m-2022-01.csv.gz", "candles", "ftx:BTC-PERP"),
];
const INTERVALS: [&str; 4] = ["1m", "5m", "1h", "1d"];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let folder = std::env::var_os("QI_DATA_DIR").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    let python = Command::new("python3").arg("--version").output().is_ok();
    let mut trials = Vec::new();
    for (name, format, instrument) in FILES {
        let path = folder.join(name);
        let absent = !path.is_file() || !python;
        for interval in INTERVALS {
            let path = path.clone();
            let trial =
                Trial::test(format!("{name}::bars_{interval}_equal_an_independent_computation"), move || {
                    compare(&path, format, instrument, interval)
                });
            trials.push(trial.with_ignored_flag(absent));
        }
        let trial = Trial::test(format!("{name}::the_same_file_twice_changes_nothing"), move || {
            run_twice(&path, format, instrument)
        });
        trials.push(trial.with_ignored_flag(absent));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs the job on the file twice over one store, and checks that the second run changes nothing.
fn run_twice(path: &Path, format: &str, instrument: &str) -> Result<(), Failed> {
    let (name, format) = (instrument.parse::<Instrument>()?, format.parse::<Format>()?);
    let store: Arc<dyn PriceStore> = Arc::new(MemoryStore::new(MemoryStoreConfig::default())?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = || {
        let options = FileOptions::default().format(format).instrument(name.clone());
        let data = qi_files::open(&[path.to_owned()], &options)?.data.into();
        let job = Job::new(store.clone(), Arc::new(MemoryBus::default()), data)?;
        let summary = runtime.block_on(job.run())?;
        let query = RangeQuery::new(name.clone(), TimeRange::ALL);
        let ticks: Vec<PriceTick> = runtime.block_on(store.tick_stream(query).try_collect())?;
        let bars = BarQuery::new(name.clone(), Interval::M1, TimeRange::ALL);
        let bars: Vec<Bar> = runtime.block_on(store.bar_stream(bars, BarSource::Stored).try_collect())?;
        Ok::<_, Error>((summary.stored, ticks, bars))
    };
    let (first, second) = (run()?, run()?);
    if first.0 != (first.1.len() + first.2.len()) as u64 || first.0 == 0 || first != second {
        let counts = [&first, &second].map(|(stored, ticks, bars)| (*stored, ticks.len(), bars.len()));
        return Err(format!("stored, ticks and bars differ: {counts:?}").into());
    }
    Ok(())
}

fn compare(path: &Path, format: &str, instrument: &str, interval: &str) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let bars = folder.path().join("bars.csv");
    let out = Command::new(env!("CARGO_BIN_EXE_pipeline"))
        .args(["--input".as_ref(), path, "--export".as_ref(), &bars])
        .args(["--format", format, "--instrument", instrument, "--interval", interval, "--json"])
        .output()?;
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned().into());
    }
    let check = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/check_bars.py"))
        .arg(path)
        .args([format, interval])
        .output()?;
    if !check.status.success() {
        return Err(String::from_utf8_lossy(&check.stderr).into_owned().into());
    }
    let (count, wanted) =
        std::str::from_utf8(&check.stdout)?.split_once('\n').ok_or("the check printed nothing")?;
    let summary: serde_json::Value = serde_json::from_slice(&out.stdout)?;
    let count: u64 = count.parse()?;
    for key in ["published", "stored"] {
        if summary[key].as_u64() != Some(count) {
            return Err(format!("the file has {count} records, but {key} is {}", summary[key]).into());
        }
    }
    let found = std::fs::read_to_string(&bars)?;
    if found != wanted {
        let differs = found.lines().zip(wanted.lines()).find(|(a, b)| a != b);
        return Err(format!("bars differ, first at {differs:?}").into());
    }
    Ok(())
}
