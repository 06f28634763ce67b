//! The program on real databases: the exported bars are byte-identical to the bars of a run in memory.
//!
//! The tests need the servers of `scripts/backends` and the recorded files of `recorded.rs`, and are ignored without
//! them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Completion, Failed};
use qi_adapters::clickhouse::{ClickHouseConfig, ClickHouseStore};
use qi_testkit::presence;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

const FILES: [(&str, &str, &str); 3] = [
    ("kraken-BCHEUR-trades-2023.csv", "kraken", "kraken:BCH-EUR"),
    ("binance-BTCUSDT-trades-2021-01-08.csv", "binance", "binance:BTC-USDT"),
    ("btc-perp-1m-2022-01.csv.gz", "candles", "ftx:BTC-PERP"),
];

/// A server: its name, the variable with its address, the example configuration, and the overrides. NAME stands for the
/// namespace of the trial.
const SERVERS: [Server; 3] = [
    Server {
        name: "timescale",
        variable: "QI_TIMESCALE_URL",
        config: "timescale",
        changes: &[("SCHEMA", "NAME"), ("HYPERTABLES", "on")],
    },
    Server {
        name: "postgres",
        variable: "QI_POSTGRES_URL",
        config: "timescale",
        changes: &[("SCHEMA", "NAME"), ("HYPERTABLES", "off")],
    },
    Server {
        name: "clickhouse",
        variable: "QI_CLICKHOUSE_URL",
        config: "clickhouse",
        changes: &[("TABLE_PREFIX", "NAME_")],
    },
];

#[derive(Debug, Clone, Copy)]
struct Server {
    name: &'static str,
    variable: &'static str,
    config: &'static str,
    changes: &'static [(&'static str, &'static str)],
}

fn main() -> ExitCode {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let folder = std::env::var_os("QI_DATA_DIR").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    let mut trials = Vec::new();
    for server in SERVERS {
        let url = std::env::var(server.variable).ok().filter(|url| !url.is_empty());
        let absent = url.is_none().then(|| format!("{} is not set", server.variable));
        let target = Target { url: url.unwrap_or_default(), server };
        let server = server.name;
        let (name, it) = (format!("{server}/market::bars_equal_those_of_memory"), target.clone());
        trials.push(presence::trial(name, server, absent.clone(), move || {
            let market = ["--instruments", "3", "--ticks", "20000", "--instrument", "sim:A0001-USDT"];
            it.compare(&market.map(str::to_owned))
        }));
        let (name, it) =
            (format!("{server}/a_second_split_over_files_is_stored_in_full_and_once"), target.clone());
        trials.push(presence::trial(name, server, absent.clone(), move || it.split_second()));
        for (file, format, instrument) in FILES {
            let (path, it) = (folder.join(file), target.clone());
            let name = format!("{server}/{file}::bars_equal_those_of_memory");
            let there = path.is_file();
            let trial = presence::trial(name, server, absent.clone(), move || {
                let path = path.display().to_string();
                it.compare(
                    &["--input", &path, "--format", format, "--instrument", instrument].map(str::to_owned),
                )
            });
            trials.push(trial.with_ignored_flag(!there));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

#[derive(Debug, Clone)]
struct Target {
    url: String,
    server: Server,
}

impl Target {
    fn compare(&self, input: &[String]) -> Result<Completion, Failed> {
        let folder = tempfile::tempdir()?;
        let namespace = self.namespace(input);
        for interval in ["1m", "1h"] {
            let (ours, memory) = (folder.path().join("ours.csv"), folder.path().join("memory.csv"));
            let ran = run(&mut self.pipeline(&namespace), input, interval, &ours);
            let ran = ran.and_then(|()| {
                run(&mut Command::new(env!("CARGO_BIN_EXE_pipeline")), input, interval, &memory)
            });
            self.clean_up(&namespace)?;
            ran?;
            let (ours, memory) = (std::fs::read_to_string(&ours)?, std::fs::read_to_string(&memory)?);
            if ours.lines().count() < 2 {
                return Err(format!("{interval}: no bars were exported").into());
            }
            if ours != memory {
                let differs = ours.lines().zip(memory.lines()).find(|(a, b)| a != b);
                return Err(format!("{interval}: bars differ, first at {differs:?}").into());
            }
        }
        Ok(Completion::Completed)
    }

    /// Compares two files that share a second, each read twice, with one file that has all lines.
    fn split_second(&self) -> Result<Completion, Failed> {
        let folder = tempfile::tempdir()?;
        let (ours, memory) = (folder.path().join("ours.csv"), folder.path().join("memory.csv"));
        let first = "1700000000,100,1\n1700000001,101,2\n1700000001,102,3\n";
        let second = "1700000001,102,3\n1700000001,103,4\n1700000001,104,5\n1700000002,105,6\n";
        let input = |content: &str| {
            let path = folder.path().join("in.csv");
            std::fs::write(&path, content)?;
            let path = path.display().to_string();
            let input = ["--input", &path, "--format", "kraken", "--instrument", "kraken:BCH-EUR"];
            Ok::<_, std::io::Error>(input.map(str::to_owned))
        };
        let namespace = self.namespace(&["split".to_owned()]);
        let ran = [first, second, second, first, second]
            .iter()
            .try_for_each(|content| run(&mut self.pipeline(&namespace), &input(content)?, "1s", &ours));
        self.clean_up(&namespace)?;
        ran?;
        let input = input(&format!("{first}{second}"))?;
        run(&mut Command::new(env!("CARGO_BIN_EXE_pipeline")), &input, "1s", &memory)?;
        let (ours, memory) = (std::fs::read_to_string(&ours)?, std::fs::read_to_string(&memory)?);
        if ours == memory {
            Ok(Completion::Completed)
        } else {
            Err(format!("{ours}\ndiffers from\n{memory}").into())
        }
    }

    fn namespace(&self, input: &[String]) -> String {
        format!("p_{}_{}_{}", std::process::id(), self.server.name, hash(input))
    }

    /// Returns a command that runs the program on this server.
    fn pipeline(&self, namespace: &str) -> Command {
        let Server { config, changes, .. } = self.server;
        let variable = |key: &str| format!("QI__STORE__{}__{key}", config.to_uppercase());
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        command.arg("--config").arg(format!("{}/config/{config}.toml", env!("CARGO_MANIFEST_DIR")));
        command.env(variable("URL"), &self.url);
        for (key, value) in changes {
            command.env(variable(key), value.replace("NAME", namespace));
        }
        command
    }

    fn clean_up(&self, namespace: &str) -> Result<(), Failed> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            if self.server.config == "clickhouse" {
                drop_tables(&self.url, namespace).await
            } else {
                drop_schema(&self.url, namespace).await
            }
        })
    }
}

/// Returns a hash of the input, so that concurrent trials have different schemas.
fn hash(input: &[String]) -> u32 {
    input
        .iter()
        .flat_map(|word| word.bytes())
        .fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
}

fn run(command: &mut Command, input: &[String], interval: &str, export: &Path) -> Result<(), Failed> {
    let out = command.args(input).args(["--interval", interval, "--export"]).arg(export).output()?;
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned().into()) }
}

async fn drop_schema(url: &str, schema: &str) -> Result<(), Failed> {
    let mut connection = PgConnection::connect(url).await?;
    // Concurrent trials change the same catalog, so a deadlock is retried.
    let mut tries = 0;
    loop {
        let drop = AssertSqlSafe(format!("DROP SCHEMA IF EXISTS {schema} CASCADE"));
        match sqlx::query(drop).execute(&mut connection).await {
            Ok(_) => return Ok(()),
            Err(error) if tries == 9 => return Err(error.into()),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
        tries += 1;
    }
}

async fn drop_tables(url: &str, prefix: &str) -> Result<(), Failed> {
    let store = ClickHouseStore::open(ClickHouseConfig::from_url(url))?;
    for table in ["ticks", "quotes", "bars", "snapshots", "qi_migrations"] {
        let drop = format!("DROP TABLE IF EXISTS {prefix}_{table} SYNC");
        store.client().query_raw(&drop).execute().await?;
    }
    Ok(())
}
