//! `qi coverage`, in memory and over a file.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::RangeInclusive;
use std::process::Command;
use std::sync::Arc;

use qi_cli::output::Format;
use qi_cli::{coverage, import};
use qi_core::{Datasets, Instrument, PriceStore, Timestamp};
use qi_files::coverage::{Coverage, CoverageRange, CoverageState, Ledger, Proof};
use qi_testkit::store::{MemoryStore, MemoryStoreConfig};
use tokio_util::sync::CancellationToken;

fn claim(instrument: &str, ids: RangeInclusive<u64>, state: CoverageState) -> Coverage {
    let at = |id: u64| Timestamp::from_secs(1_700_000_000 + i64::try_from(id).unwrap()).unwrap();
    let proof = if state == CoverageState::Complete { Proof::Ids } else { Proof::History };
    let times = (at(*ids.start()), at(*ids.end()));
    Coverage::new(instrument.parse().unwrap(), ids, times, state, proof)
}

async fn store() -> Arc<dyn PriceStore> {
    let datasets = Datasets::standard().with::<Coverage>().unwrap();
    let store = MemoryStore::new(MemoryStoreConfig::default().with_datasets(datasets)).unwrap();
    store.ensure_schema().await.unwrap();
    for (instrument, claims) in [
        (
            "binance:BTC-USDT",
            vec![
                claim("binance:BTC-USDT", 1..=100, CoverageState::Complete),
                claim("binance:BTC-USDT", 101..=101, CoverageState::Absent),
                claim("binance:BTC-USDT", 111..=200, CoverageState::Complete),
            ],
        ),
        ("kraken:BTC-USD", vec![claim("kraken:BTC-USD", 7..=9, CoverageState::Complete)]),
    ] {
        let mut ledger = Ledger::load(&store, &instrument.parse().unwrap()).await.unwrap();
        ledger.record(&store, claims).await.unwrap();
    }
    Arc::new(store)
}

#[tokio::test]
async fn coverage_shows_complete_absent_and_unknown_ranges() {
    let store = store().await;
    let report = coverage::read(&*store, Vec::new(), false).await.unwrap();
    let csv = report.listing.render(Format::Csv);
    assert_eq!(
        csv,
        "instrument,state,first id,last id,ids,from,until,proof\n\
         binance:BTC-USDT,complete,1,100,100,2023-11-14T22:13:21Z,2023-11-14T22:15:00Z,ids\n\
         binance:BTC-USDT,absent,101,101,1,2023-11-14T22:15:01Z,2023-11-14T22:15:01Z,history\n\
         binance:BTC-USDT,unknown,102,110,9,2023-11-14T22:15:01Z,2023-11-14T22:15:11Z,\n\
         binance:BTC-USDT,complete,111,200,90,2023-11-14T22:15:11Z,2023-11-14T22:16:40Z,ids\n\
         kraken:BTC-USD,complete,7,9,3,2023-11-14T22:13:27Z,2023-11-14T22:13:29Z,ids\n"
    );
    let binance: Instrument = "binance:BTC-USDT".parse().unwrap();
    let report = coverage::read(&*store, vec![binance], true).await.unwrap();
    assert_eq!(report.listing.rows().len(), 1);
}

#[tokio::test]
async fn a_probe_names_unknown_ids_and_instruments_without_coverage() {
    let store = store().await;
    let named: Vec<Instrument> =
        ["binance:BTC-USDT", "kraken:BTC-USD", "kraken:ETH-USD"].map(|name| name.parse().unwrap()).into();
    let report = coverage::read(&*store, named.clone(), false).await.unwrap();
    assert_eq!(report.above(&named, 9), ["kraken:ETH-USD has no coverage"]);
    assert_eq!(report.above(&named, 8)[0], "binance:BTC-USDT has 9 unknown ids");
    let all = coverage::read(&*store, Vec::new(), false).await.unwrap();
    assert_eq!(all.above(&[], 9), Vec::<String>::new());
}

/// Imports a file of `binance:BTCUSDT` with these lines, and returns the ranges of the ledger.
async fn imported(store: &Arc<dyn PriceStore>, lines: &str, has_checksum: bool) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("BTCUSDT-trades-2025-01-01.csv");
    std::fs::write(&path, lines).unwrap();
    if has_checksum {
        let sum = Command::new("sha256sum").arg(&path).output().unwrap().stdout;
        std::fs::write(folder.path().join("BTCUSDT-trades-2025-01-01.csv.CHECKSUM"), sum).unwrap();
    }
    let files = qi_files::open(&[path], &qi_files::FileOptions::default()).unwrap();
    let plan = import::Plan { coverage: true, ..import::Plan::default() };
    let stop = CancellationToken::new();
    let report = import::run(store.clone(), files, plan, &stop, Arc::default()).await.unwrap();
    assert!(report.is_good(), "{report:?}");
    let ledger = Ledger::load(&**store, &"binance:BTCUSDT".parse().unwrap()).await.unwrap();
    let range = |range: &CoverageRange| {
        let state = range.proven.map_or("unknown".to_owned(), |(state, proof)| format!("{state} {proof}"));
        format!("{}-{} {state}", range.ids.start(), range.ids.end())
    };
    ledger.ranges().iter().map(range).collect()
}

#[tokio::test]
async fn a_verified_file_of_trades_proves_its_ids() {
    let store = store().await;
    let trade = |id: u64| format!("{id},5,1,5,{},True,True\n", 1_735_689_600_000_000 + id);
    let trades = |ids: RangeInclusive<u64>| ids.map(trade).collect::<String>();
    let none = Vec::<String>::new();
    assert_eq!(imported(&store, &trades(10..=20), false).await, none);
    assert_eq!(
        imported(&store, &(trades(10..=20) + "21,x,1,5,1735689600000021,True,True\n"), true).await,
        none
    );
    let aggregated = "7,5,1,70,71,1735689600000007,True,True\n";
    assert_eq!(imported(&store, aggregated, true).await, none, "aggregated trades have other ids");
    assert_eq!(imported(&store, &trades(10..=20), true).await, ["10-20 complete file"]);
    let both = ["10-20 complete file", "21-30 unknown", "31-40 complete file"];
    assert_eq!(imported(&store, &trades(31..=40), true).await, both);
    assert_eq!(imported(&store, &trades(21..=30), true).await, ["10-40 complete file"]);
}

#[tokio::test]
async fn ids_that_a_verified_file_lacks_are_not_claimed_as_complete() {
    let trade = |id: u64| format!("{id},5,1,5,{},True,True\n", 1_735_689_600_000_000 + id);
    let sparse: String = [10, 11, 14, 13, 17].map(trade).concat();
    let wanted = ["10-11 complete file", "12-12 absent file", "13-14 complete file", "15-16 absent file"];
    let memory = store().await;
    for _ in 0..2 {
        assert_eq!(
            imported(&memory, &sparse, true).await,
            [&wanted[..], &["17-17 complete file"][..]].concat()
        );
    }
    // The trade is in the store, so its id is not absent.
    let found = imported(&memory, &(trade(9) + &trade(18)), true).await;
    assert_eq!(found, [&["9-11 complete file"][..], &wanted[1..], &["17-18 complete file"]].concat());

    // Tardis writes the ids of exchanges that do not number the trades of each instrument.
    let header = "exchange,symbol,timestamp,local_timestamp,id,side,price,amount\n".to_owned();
    let row = |id: u64| format!("binance,BTCUSDT,{0},{0},{id},buy,5,1\n", 1_735_689_600_000_000 + id);
    let found = imported(&store().await, &(header + &row(10) + &row(12)), true).await;
    assert_eq!(found, ["10-10 complete file", "11-11 unknown", "12-12 complete file"]);

    let found = imported(&store().await, &(0..1_500).map(|n| trade(2 * n)).collect::<String>(), true).await;
    let count = |state: &str| found.iter().filter(|range| range.ends_with(state)).count();
    assert_eq!(
        (count(" complete file"), count(" absent file")),
        (1_000, 0),
        "the number of claims is bounded"
    );
}

/// Runs the program on a new SQLite file, first with the commands that must succeed. Returns the exit code and the
/// output of the last command.
#[cfg(feature = "sqlite")]
fn run(commands: &[&[&str]]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut last = (None, String::new());
    for arguments in commands {
        let out = Command::new(env!("CARGO_BIN_EXE_qi"))
            .env_remove("QI_CONFIG")
            .env("QI__STORE__BACKEND", "sqlite")
            .env("QI__STORE__SQLITE__PATH", folder.path().join("prices.db"))
            .args(*arguments)
            .output()
            .unwrap();
        let said = String::from_utf8([out.stdout, out.stderr].concat()).unwrap();
        last = (out.status.code(), said);
    }
    last
}

#[cfg(feature = "sqlite")]
#[test]
fn the_command_has_the_exit_codes_of_a_probe() {
    let (code, said) = run(&[&["migrate"], &["coverage"]]);
    assert!(code == Some(1) && said.contains("qi migrate --all-datasets"), "{said}");
    let migrate: &[&str] = &["migrate", "--all-datasets"];
    let (code, said) = run(&[migrate, &["coverage", "--format", "json"]]);
    assert_eq!((code, said.as_str()), (Some(0), "[]\n"));
    let (code, said) = run(&[migrate, &["coverage", "x:Y", "--max-unknown", "0"]]);
    assert!(code == Some(1) && said.contains("x:Y has no coverage"), "{said}");
    assert_eq!(run(&[&["coverage", "not an instrument"]]).0, Some(2));
}
