//! A tool with a registered backend and a declared dataset. The test starts itself as this tool.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use qi_cli::Backends;
use qi_core::layer::Layered;
use qi_core::record::Record;
use qi_core::{Datasets, Instrument, Operation, Percent, Timestamp};
use qi_testkit::chaos::{Chaos, Fault, Rule};
use qi_testkit::store::{MemoryStore, MemoryStoreConfig};

/// The variable that makes this program the tool.
const AS_TOOL: &str = "QI_TEST_AS_TOOL";

#[derive(Debug, Clone, PartialEq, Record)]
#[record(name = "borrow_rates")]
struct BorrowRate {
    #[series]
    instrument: Instrument,
    #[time]
    ts: Timestamp,
    rate: Percent,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Scratch {
    rows: usize,
}

fn main() -> ExitCode {
    if std::env::var_os(AS_TOOL).is_some() {
        let backends = Backends::builder().register_store("scratch", |section| {
            let Scratch { rows } = section.deserialize()?;
            let config = MemoryStoreConfig::default().with_max_rows(rows);
            Ok(Arc::new(MemoryStore::new(config.with_datasets(section.datasets().clone()))?))
        });
        // Every close fails.
        let backends = backends.unwrap().register_store("unclosed", |section| {
            let config = MemoryStoreConfig::default().with_max_rows(2);
            let store = MemoryStore::new(config.with_datasets(section.datasets().clone()))?;
            let chaos = Chaos::seeded(1).on(Operation::StoreClose, Rule::new(1.0, [Fault::Error]));
            Ok(Arc::new(Layered::new(store, chaos)))
        });
        let datasets = Datasets::standard().with::<BorrowRate>().unwrap();
        return qi_cli::run_with(backends.unwrap().build(), &datasets);
    }
    let trials = vec![
        Trial::test("a_registered_backend_works_in_every_command", backend),
        Trial::test("a_declared_dataset_works_in_queries", dataset),
        Trial::test("a_store_that_cannot_be_closed_is_reported", unclosed),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn tool(arguments: &[&str]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env_remove("RUST_LOG").env(AS_TOOL, "1").env("QI__STORE__BACKEND", "scratch");
    command.env("QI__STORE__AUTO_SCHEMA", "true").env("QI__STORE__SCRATCH__ROWS", "2").stdin(Stdio::null());
    command.env("QI__STORE__RETRY__ENABLED", "false");
    command.args(arguments).output().unwrap()
}

fn expect(arguments: &[&str], code: i32, words: &str) -> Result<(), Failed> {
    let out = tool(arguments);
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    if out.status.code() == Some(code) && said.contains(words) {
        return Ok(());
    }
    Err(format!("{arguments:?}: {}, without {words:?}: {said}", out.status).into())
}

fn backend() -> Result<(), Failed> {
    expect(&["check"], 0, "store scratch")?;
    expect(&["config"], 0, "store.scratch.rows")?;
    expect(&["--store", "scrtch", "check"], 2, "did you mean `scratch`")?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("XBTEUR.csv");
    let import = |lines: &str, code, words| {
        std::fs::write(&file, lines)?;
        expect(&["import", "--instrument", "x:Y", &file.display().to_string()], code, words)
    };
    import("1700000000,100,1\n1700000001,101,2\n", 0, "2")?;
    import("1700000000,100,1\n1700000001,101,2\n1700000002,101,2\n", 1, "max_rows")
}

fn unclosed() -> Result<(), Failed> {
    let closed = "close: unavailable";
    expect(&["--store", "unclosed", "query", "latest"], 1, closed)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("XBTEUR.csv").display().to_string();
    std::fs::write(&file, "1700000000,100,1\n1700000001,101,2\n1700000002,101,2\n")?;
    let import = ["--store", "unclosed", "import", "--instrument", "x:Y", &file];
    expect(&import, 1, closed)?;
    expect(&import, 1, "max_rows")
}

fn dataset() -> Result<(), Failed> {
    expect(&["query", "records", "borrow_rates", "x:Y", "--format", "csv"], 0, "instrument,ts,rate")?;
    expect(&["query", "latest", "--dataset", "borrow_rates"], 0, "rate")?;
    expect(&["query", "latest", "--dataset", "borrow_rate"], 2, "borrow_rates")?;
    expect(&["query", "funding_rates", "x:Y"], 0, "rate")
}
