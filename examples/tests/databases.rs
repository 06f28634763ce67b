//! The program on real databases: the bars that it exports are the bytes that it exports on memory.
//!
//! Servers are those of `scripts/backends`; recorded files are looked for as in `recorded.rs`. What is not there is
//! reported as ignored.

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

/// A server: its name, the variable with its address, the example configuration, and what differs from that. NAME
/// stands for a namespace of the trial's own.
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
        let Server { name, config, changes, .. } = self.server;
        let namespace = format!("p_{}_{name}_{}", std::process::id(), hash(input));
        let config_file = format!("{}/config/{config}.toml", env!("CARGO_MANIFEST_DIR"));
        let variable = |key: &str| format!("QI__STORE__{}__{key}", config.to_uppercase());
        for interval in ["1m", "1h"] {
            let (ours, memory) = (folder.path().join("ours.csv"), folder.path().join("memory.csv"));
            let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
            command.args(["--config", &config_file]).env(variable("URL"), &self.url);
            for (key, value) in changes {
                command.env(variable(key), value.replace("NAME", &namespace));
            }
            let ran = run(&mut command, input, interval, &ours);
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

/// Two trials that run at once have different schemas.
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
    // Other trials change the same catalog at the same moment: a deadlock is tried again.
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
