//! Tests of `qi` on real servers: copies of a million ticks in both directions, each killed twice; replays of topics
//! into each database; redriven dead letters.
//!
//! The tests need the servers of `scripts/backends`, and are ignored without them. `QI_COPY_TICKS` sets the number of
//! ticks.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeSet, HashSet};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed};
use qi_adapters::Config;
use qi_adapters::clickhouse::{ClickHouseConfig, ClickHouseStore};
use qi_cli::Series;
use qi_core::bus::{
    DeadLetters, Encoding, GroupId, HeaderName, Message, MessageBus, MessageBusExt, SubscribeRequest,
    Subscription, TopicName, TopicSpec, encode_message, header,
};
use qi_core::{ErrorKind, PriceStore, PriceStoreExt as _, PriceTick, TimeRange, Timestamp};
use qi_testkit::kafka::{self, Codec, RawBatch};
use qi_testkit::market::{Market, MarketConfig};
use qi_testkit::presence;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::runtime::Runtime;

const BROKERS: &str = "QI_KAFKA_BROKERS";
const VARIABLES: [(&str, &str); 2] = [("timescale", "QI_TIMESCALE_URL"), ("clickhouse", "QI_CLICKHOUSE_URL")];

fn main() -> ExitCode {
    let absent = VARIABLES.iter().find(|(_, variable)| url_of(variable).is_none());
    let words = absent.map(|(_, variable)| format!("{variable} is not set"));
    let backend = absent.map_or("timescale", |(name, _)| name);
    let mut trials = Vec::new();
    for (from, to) in [("timescale", "clickhouse"), ("clickhouse", "timescale")] {
        let name = format!("{from}_to_{to}::a_copy_that_is_killed_twice_is_equal");
        trials.push(presence::trial(name, backend, words.clone(), move || copy(from, to)));
        let name = format!("{from}_to_{to}::an_archive_is_equal_after_kills_of_export_and_import");
        trials.push(presence::trial(name, backend, words.clone(), move || archive(from, to)));
        let (backend, words) = match (absent, url_of(BROKERS)) {
            (None, None) => ("redpanda", Some(format!("{BROKERS} is not set"))),
            _ => (backend, words.clone()),
        };
        let name = format!("redpanda_to_{to}::a_replay_stores_every_record_once");
        trials.push(presence::trial(name, backend, words.clone(), move || replay(to)));
        let name = format!("redpanda_to_{to}::a_replay_skips_batches_that_cannot_be_decompressed");
        trials.push(presence::trial(name, backend, words.clone(), move || replay_bombs(to)));
        let name = format!("redpanda_to_{to}::dead_letters_are_redriven_and_stored_by_the_fixed_writer");
        trials.push(presence::trial(name, backend, words, move || redrive(to)));
    }
    for backend in ["timescale", "clickhouse"] {
        let words = absent.map(|(_, variable)| format!("{variable} is not set"));
        let name = format!("{backend}::reading_commands_create_no_schema");
        trials.push(presence::trial(name, absent.map_or(backend, |(name, _)| name), words, move || {
            fresh(backend)
        }));
    }
    let words = url_of(BROKERS).is_none().then(|| format!("{BROKERS} is not set"));
    let name = "redpanda::groups_are_reset_and_topics_are_followed";
    trials.push(presence::trial(name.to_owned(), "redpanda", words, reset_and_follow));
    let words = url_of(BROKERS).is_none().then(|| format!("{BROKERS} is not set"));
    let name = "redpanda::restricted_principal_can_check_list_and_replay";
    trials.push(presence::trial(name.to_owned(), "redpanda", words, restricted_principal));
    let words = match (url_of(BROKERS), is_root()) {
        (None, _) => Some(format!("{BROKERS} is not set")),
        (_, false) => Some("brokers that are killed need root".to_owned()),
        _ => None,
    };
    let name = "redpanda::a_replay_names_partitions_without_a_leader_and_waits_for_them";
    trials.push(presence::trial(name.to_owned(), "redpanda", words, leaderless));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Returns whether the tests run as root, which `scripts/backends` needs to start servers.
fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n")
}

/// A cluster of three brokers for one trial.
struct Cluster(String);

impl Cluster {
    fn order(&self, action: &[&str]) -> Result<String, Failed> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/backends");
        let out = Command::new(script).args(["spare", "cluster", &self.0]).args(action).output()?;
        if out.status.success() {
            return Ok(String::from_utf8(out.stdout)?.trim().to_owned());
        }
        Err(String::from_utf8_lossy(&out.stderr).into_owned().into())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.order(&["remove"]);
    }
}

/// Replays a topic while one of three brokers is down, which has the only replica of some partitions.
fn leaderless() -> Result<Completion, Failed> {
    const TICKS: usize = 600;
    let cluster = Cluster(format!("replay_{}", std::process::id()));
    let brokers = cluster.order(&["start"])?;
    let variables = [
        ("QI__BUS__BACKEND".to_owned(), "redpanda".to_owned()),
        ("QI__BUS__REDPANDA__BROKERS".to_owned(), brokers),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let topic = TopicName::new("replayed")?;
    let bus = runtime.block_on(async {
        let bus = Config::builder().variables(variables.to_vec()).build()?.open_bus().await?;
        let spec = TopicSpec::new(topic.clone(), 6)?.with_replication(1);
        let spec = spec.with_setting("min.insync.replicas", "1");
        for outcome in bus.create_topics(&[spec]).await? {
            outcome.result?;
        }
        let market = Market::new(MarketConfig::new(5, 60)?)?;
        let ticks: Vec<_> = market.take(TICKS).collect();
        // Not every broker knows a new topic immediately.
        for attempt in 0.. {
            match bus.send_records(&ticks, Some(&topic)).await {
                Err(error) if error.kind() == ErrorKind::NotFound && attempt < 20 => {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                sent => {
                    sent?;
                    break;
                }
            }
        }
        Ok::<_, Failed>(bus)
    })?;
    let folder = tempfile::tempdir()?;
    let replay = |wait: &str, code: i32| -> Result<String, Failed> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qi"));
        command.env_remove("RUST_LOG").envs(variables.clone()).stdin(Stdio::null());
        command.env("QI__STORE__BACKEND", "sqlite");
        command.env("QI__STORE__SQLITE__PATH", folder.path().join("prices.db"));
        command.args(["replay", "--topic", "replayed", "--since", "2000-01-01T00:00:00Z", "--wait", wait]);
        let out = command.output()?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        if out.status.code() == Some(code) { Ok(said) } else { Err(format!("{}: {said}", out.status).into()) }
    };
    let all = format!("{TICKS} records stored, 0 messages without a valid record");
    if !replay("60s", 0)?.contains(&all) {
        return Err("a replay from all brokers is not complete".into());
    }
    let led = runtime.block_on(bus.topics())?.into_iter().filter(|info| info.name == topic);
    let led = led.flat_map(|info| info.partitions).filter(|partition| partition.leader == Some(2));
    let led: Vec<_> = led.map(|partition| partition.id).collect();
    cluster.order(&["kill", "2"])?;
    // The dead broker is still in the metadata.
    let began = Instant::now();
    let said = replay("3s", 1)?;
    let took = began.elapsed();
    if led.is_empty() || took > Duration::from_secs(30) || said.contains(" 0 records stored") {
        return Err(format!("{led:?}, {took:?}: {said}").into());
    }
    let unread = "not read to the end (position unknown, end unknown)";
    if led.iter().any(|partition| !said.contains(&format!("replayed/{partition}: {unread}"))) {
        return Err(format!("not all of {led:?}: {said}").into());
    }
    if said.matches(unread).count() != led.len() {
        return Err(format!("not only {led:?}: {said}").into());
    }
    let leaderless = runtime.block_on(async {
        for _ in 0..120 {
            if let Ok(topics) = bus.topics().await {
                let found =
                    topics.into_iter().filter(|info| info.name == topic).flat_map(|info| info.partitions);
                let gone: Vec<_> = found.filter(|p| p.leader.is_none()).map(|p| p.id).collect();
                if !gone.is_empty() {
                    return Ok(gone);
                }
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Err(Failed::from("every partition has a leader"))
    })?;
    let said = replay("5s", 1)?;
    for partition in &leaderless {
        let words = format!("replayed/{partition}: not read to the end (position unknown, end unknown)");
        if !said.contains(&words) {
            return Err(format!("{words} is missing: {said}").into());
        }
    }
    if said.contains(&all) || said.matches("not read to the end").count() != leaderless.len() {
        return Err(said.into());
    }
    // The broker starts again while the replay waits.
    let said = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| replay("3m", 0));
        cluster.order(&["start", "2"])?;
        waiting.join().unwrap()
    })?;
    if !said.contains(&all) {
        return Err(said.into());
    }
    runtime.block_on(bus.close())?;
    Ok(Completion::Completed)
}

fn url_of(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|url| !url.is_empty())
}

fn number_of_ticks() -> usize {
    std::env::var("QI_COPY_TICKS").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000)
}

/// The tables and configuration of one trial in both databases.
struct Namespace {
    name: String,
    variables: Vec<(String, String)>,
    runtime: Runtime,
}

impl Namespace {
    fn new(from: &str) -> Self {
        let name = format!("c_{}_{from}", std::process::id());
        let mut variables = vec![
            ("QI__STORE__TIMESCALE__SCHEMA".to_owned(), name.clone()),
            ("QI__STORE__CLICKHOUSE__TABLE_PREFIX".to_owned(), format!("{name}_")),
        ];
        for (backend, variable) in VARIABLES {
            let key = format!("QI__STORE__{}__URL", backend.to_uppercase());
            variables.push((key, url_of(variable).unwrap_or_default()));
        }
        if let Some(brokers) = url_of(BROKERS) {
            variables.push(("QI__BUS__BACKEND".to_owned(), "redpanda".to_owned()));
            variables.push(("QI__BUS__REDPANDA__BROKERS".to_owned(), brokers));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { name, variables, runtime }
    }

    fn fill(&self, backend: &str, ticks: usize) -> Result<(), Failed> {
        self.runtime.block_on(async {
            let config = Config::builder().variables(self.variables.clone()).build()?;
            let store = config.open_store_as(backend).await?;
            store.ensure_schema().await?;
            for part in distinct(ticks)?.chunks(100_000) {
                store.insert_ticks(part).await?;
            }
            Ok(())
        })
    }

    fn qi(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qi"));
        command.env_remove("RUST_LOG").envs(self.variables.clone()).args(arguments).stdin(Stdio::null());
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let (schema, prefix) = (self.name.clone(), self.name.clone());
        let [timescale, clickhouse] = VARIABLES.map(|(_, variable)| url_of(variable).unwrap_or_default());
        let _ = self.runtime.block_on(async {
            let mut connection = PgConnection::connect(&timescale).await?;
            let drop = AssertSqlSafe(format!("DROP SCHEMA IF EXISTS {schema} CASCADE"));
            sqlx::query(drop).execute(&mut connection).await?;
            let store = ClickHouseStore::open(ClickHouseConfig::from_url(clickhouse))?;
            for table in ["ticks", "quotes", "bars", "snapshots", "qi_migrations"] {
                let drop = format!("DROP TABLE IF EXISTS {prefix}_{table} SYNC");
                store.client().query_raw(&drop).execute().await?;
            }
            Ok::<(), Failed>(())
        });
    }
}

/// Resets a group to each kind of position, and reads the end of a topic.
fn reset_and_follow() -> Result<Completion, Failed> {
    let namespace = Namespace::new("reset");
    let config = Config::builder().variables(namespace.variables.clone()).build()?;
    let topic = TopicName::new(&namespace.name)?;
    let bus = namespace.runtime.block_on(config.open_bus())?;
    namespace.runtime.block_on(async {
        bus.create_topics(&[TopicSpec::new(topic.clone(), 3)?]).await?.remove(0).result?;
        bus.send_records(&distinct(300)?, Some(&topic)).await?;
        Ok::<_, Failed>(())
    })?;
    let name = namespace.name.as_str();
    let outcome = (|| {
        for (to, lag) in [("latest", "0"), ("earliest", "300"), ("1", "297"), ("2001-01-01T00:00:00Z", "300")]
        {
            let arguments = ["groups", "reset", name, "--topic", name, "--to", to];
            printed(&namespace.qi(&[&arguments[..], &["--dry-run"]].concat()).output()?)?;
            printed(&namespace.qi(&arguments).output()?)?;
            let shown = printed(&namespace.qi(&["lag", "--group", name, "--format", "csv"]).output()?)?;
            if !shown.trim_end().ends_with(&format!(",{lag}")) {
                return Err(Failed::from(format!("{to}: {shown}")));
            }
        }
        let probe = |max: &str| namespace.qi(&["lag", "--group", name, "--max", max]).status();
        if !probe("300")?.success() || probe("299")?.code() != Some(1) {
            return Err("the probe is wrong".into());
        }
        let tail = ["tail", name, "--last", "2", "--no-follow", "--format", "csv"];
        let shown = printed(&namespace.qi(&tail).output()?)?;
        let described = printed(&namespace.qi(&["topics", "describe", name, "--format", "csv"]).output()?)?;
        if shown.lines().count() != 7 || described.lines().count() != 4 {
            return Err(format!("{shown}{described}").into());
        }
        let partition = namespace.qi(&["tail", name, "--partition", "99"]).output()?;
        if partition.status.code() != Some(2) {
            return Err(format!("a partition that does not exist: {partition:?}").into());
        }
        Ok(Completion::Completed)
    })();
    namespace.runtime.block_on(async {
        let _gone = bus.delete_topics(std::slice::from_ref(&topic)).await?;
        bus.close().await?;
        Ok::<_, Failed>(())
    })?;
    outcome
}

/// Lets every command that reads run on a server without a schema. None of them creates one, even with `auto_schema`.
fn fresh(backend: &str) -> Result<Completion, Failed> {
    let namespace = Namespace::new(&format!("fresh_{backend}"));
    let folder = tempfile::tempdir()?;
    let chart = folder.path().join("chart.svg").display().to_string();
    let archive = folder.path().join("archive").display().to_string();
    let other = if backend == "timescale" { "clickhouse" } else { "timescale" };
    let run = |arguments: &[&str]| {
        let mut command = namespace.qi(&[&["--store", backend], arguments].concat());
        command.env("QI__STORE__AUTO_SCHEMA", "true").env("QI__BUS__BACKEND", "memory").output()
    };
    let names_migrate = format!("qi migrate --store {backend}` creates the schema");
    let reading: [&[&str]; 6] = [
        &["check"],
        &["query", "latest"],
        &["query", "bars", "x:Y"],
        &["instruments"],
        &["chart", "x:Y", "--out", &chart],
        &["copy", "--from", backend, "--to", other],
    ];
    for arguments in reading {
        let out = run(arguments)?;
        let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        if out.status.code() != Some(1) || !said.contains("schema") {
            return Err(format!("{arguments:?}: {}: {said}", out.status).into());
        }
    }
    // A database that is absent is a missing schema too. Only ClickHouse's databases are created by `qi migrate`.
    if backend == "clickhouse" {
        for arguments in [&["check", "--format", "csv"][..], &["query", "latest"], &["export", &archive]] {
            let mut command = namespace.qi(&[&["--store", backend], arguments].concat());
            let out = command.env("QI__STORE__CLICKHOUSE__DATABASE", "absent").output()?;
            let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
            if out.status.code() != Some(1) || !said.contains(&names_migrate) {
                return Err(format!("{arguments:?}: {}: {said}", out.status).into());
            }
        }
    }
    let planned = printed(&run(&["migrate", "--dry-run", "--format", "csv"])?)?;
    if !planned.to_uppercase().contains("CREATE TABLE") {
        return Err(format!("the server has tables: {planned}").into());
    }
    printed(&run(&["migrate"])?)?;
    let checked = printed(&run(&["check"])?)?;
    printed(&run(&["check", "--write"])?)?;
    if checked.contains("FAILED")
        || !printed(&run(&["query", "latest", "--format", "csv"])?)?.starts_with("instrument,")
    {
        return Err(checked.into());
    }
    Ok(Completion::Completed)
}

/// Returns ticks with distinct keys. The simulated market sends some ticks again.
fn distinct(ticks: usize) -> Result<Vec<PriceTick>, Failed> {
    let mut seen = HashSet::new();
    let market = Market::new(MarketConfig::new(5, 20)?)?;
    let market = market.filter(|tick| seen.insert((tick.instrument().clone(), tick.ts(), tick.seq())));
    Ok(market.take(ticks).collect())
}

/// Waits for a process at most this long, and kills it. Returns whether it had ended with success before.
fn run_or_kill(command: &mut Command, at_most: Duration) -> Result<bool, Failed> {
    let mut child = command.stdout(Stdio::null()).spawn()?;
    let deadline = Instant::now() + at_most;
    while Instant::now() < deadline {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(true),
            Some(status) => return Err(format!("{command:?} ended with {status}").into()),
            None => {}
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill()?;
    child.wait()?;
    Ok(false)
}

/// Exports a store with 20 SIGKILLs at random moments, and imports the archive into another database with 5 SIGKILLs.
fn archive(from: &str, to: &str) -> Result<Completion, Failed> {
    const DAYS: i64 = 30;
    let namespace = Namespace::new(&format!("archive_{from}"));
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("archive");
    let address = path.display().to_string();
    let config = Config::builder().variables(namespace.variables.clone()).build()?;
    let count = namespace.runtime.block_on(async {
        let store = config.open_store_as(from).await?;
        store.ensure_schema().await?;
        let mut ticks = Vec::new();
        for symbol in ["BTC-USDT", "ETH-USDT", "XBT/EUR", "1000SATS-USDT"] {
            for n in 0..DAYS * 1_500 {
                let ts = Timestamp::from_secs(1_706_659_200 + n * 57)?;
                let price = qi_core::Price::from_units(1_000_000_000_000_000_000 + i128::from(n))?;
                ticks.push(PriceTick::new(format!("x:{symbol}").parse()?, ts, n.unsigned_abs(), price)?);
            }
        }
        store.insert_ticks_chunked(&ticks, 100_000).await?;
        store.close().await?;
        Ok::<_, Failed>(ticks.len() as u64)
    })?;
    let mut kills: Vec<(usize, bool)> = Vec::new();
    for _ in 0..20 {
        // A busy machine needs longer until the first file.
        let empty = kills.iter().rev().take_while(|(files, ended)| *files == 0 && !ended).count() as u64;
        let ended = run_or_kill(
            &mut namespace.qi(&["--store", from, "export", &address]),
            Duration::from_millis(fastrand::u64(20..1_500 * (1 + empty))),
        )?;
        let files = complete_files(&path)?;
        kills.push((files, ended));
        if ended {
            std::fs::remove_dir_all(&path)?;
        }
    }
    let export = |arguments: &[&str]| -> Result<String, Failed> {
        let words = [&["--format", "csv", "--store", from, "export", &address], arguments].concat();
        printed(&namespace.qi(&words).output()?)
    };
    export(&[])?;
    let again = export(&["--verify"])?;
    if again.lines().skip(1).any(|line| line.split(',').nth(2) != Some("0")) {
        return Err(format!("the second export wrote files: {again}").into());
    }
    let import = ["--format", "csv", "--store", to, "import", &address];
    for _ in 0..5 {
        run_or_kill(&mut namespace.qi(&import), Duration::from_millis(fastrand::u64(100..2_000)))?;
    }
    let imported = printed(&namespace.qi(&import).output()?)?;
    let records = imported.lines().skip(1).filter_map(|line| line.split(',').nth(1)?.parse::<u64>().ok());
    if records.sum::<u64>() != count {
        return Err(format!("not {count} records: {imported}").into());
    }
    namespace.runtime.block_on(async {
        let (source, target) = (config.open_store_as(from).await?, config.open_store_as(to).await?);
        for series in Series::list(&*source, PriceTick::DATASET, &BTreeSet::new()).await? {
            let all = TimeRange::ALL;
            if series.summary(&*source, all).await? != series.summary(&*target, all).await? {
                return Err(format!("{series} differs").into());
            }
        }
        Ok::<_, Failed>(())
    })?;
    if kills.iter().any(|(files, ended)| *files > 0 && !ended) {
        Ok(Completion::Completed)
    } else {
        Err(format!("no kill met an export in progress: {kills:?}").into())
    }
}

/// Reads every data file with a final name to its end, and returns their number.
fn complete_files(folder: &std::path::Path) -> Result<usize, Failed> {
    let mut files = 0;
    for entry in folder.read_dir().into_iter().flatten() {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("_partial") {
            files += complete_files(&path)?;
        } else if path.extension().is_some_and(|ending| ending == "parquet") {
            let reader = qi_arrow::ParquetReader::new(PriceTick::DATASET, std::fs::File::open(&path)?)?;
            let stated = reader.content().map(|content| content.records);
            let mut found = 0;
            for records in reader {
                found += records?.len() as u64;
            }
            if stated != Some(found) {
                return Err(format!("{} has {found} records, not {stated:?}", path.display()).into());
            }
            files += 1;
        }
    }
    Ok(files)
}

/// Publishes ticks and one invalid message to a new topic, and replays the topic twice.
fn replay(to: &str) -> Result<Completion, Failed> {
    const TICKS: usize = 20_000;
    let namespace = Namespace::new(&format!("replay_{to}"));
    let config = Config::builder().variables(namespace.variables.clone()).build()?;
    let topic = TopicName::new(&namespace.name)?;
    let bus = namespace.runtime.block_on(async {
        let bus = config.open_bus().await?;
        for outcome in bus.create_topics(&[TopicSpec::new(topic.clone(), 3)?]).await? {
            outcome.result?;
        }
        bus.send_records(&distinct(TICKS)?, Some(&topic)).await?;
        bus.publish_one(&Message::new(topic.clone(), "no record")).await?;
        Ok::<_, Failed>(bus)
    })?;
    let run = || -> Result<(), Failed> {
        let since = ["--since", "2000-01-01T00:00:00Z"];
        for _ in 0..2 {
            let out =
                namespace.qi(&["replay", "--store", to, "--topic", &namespace.name]).args(since).output()?;
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            let wanted = format!("{TICKS} records stored, 1 messages without a valid record");
            if out.status.code() != Some(1) || !said.contains(&wanted) || !said.contains("bus.codec") {
                return Err(format!("{}: {said}", out.status).into());
            }
        }
        Ok(())
    };
    let outcome = run();
    let stored = namespace.runtime.block_on(async {
        let _gone = bus.delete_topics(std::slice::from_ref(&topic)).await?;
        bus.close().await?;
        let store = config.open_store_as(to).await?;
        let mut stored = 0;
        for series in Series::list(&*store, PriceTick::DATASET, &BTreeSet::new()).await? {
            stored += series.summary(&*store, TimeRange::ALL).await?.records;
        }
        Ok::<_, Failed>(stored)
    })?;
    outcome?;
    if stored == TICKS as u64 {
        Ok(Completion::Completed)
    } else {
        Err(format!("{stored} are stored").into())
    }
}

/// Replays a topic with batches of 2.6 GB between ticks.
///
/// The first message is older than every batch and newer than `--since`. A search by time that reaches such a batch
/// makes Apache Kafka decompress all of it in its heap, and ends a broker with a small heap.
fn replay_bombs(to: &str) -> Result<Completion, Failed> {
    const TICKS: usize = 100;
    let namespace = Namespace::new(&format!("bomb_{to}"));
    let config = Config::builder().variables(namespace.variables.clone()).build()?;
    let topic = TopicName::new(&namespace.name)?;
    let ticks = distinct(TICKS)?;
    let brokers = url_of(BROKERS).unwrap_or_default();
    let bomb = RawBatch::zeros(Codec::Zstd, 2_600, 1_000_000)?.encode()?;
    let bus = namespace.runtime.block_on(async {
        let bus = config.open_bus().await?;
        for outcome in bus.create_topics(&[TopicSpec::new(topic.clone(), 1)?]).await? {
            outcome.result?;
        }
        // Publishing waits for the leader.
        bus.publish_one(&Message::new(topic.clone(), "no record")).await?;
        for ticks in ticks.chunks(TICKS / 2) {
            kafka::produce(brokers.split(',').next().unwrap_or_default(), &namespace.name, 0, &bomb)?;
            bus.send_records(ticks, Some(&topic)).await?;
        }
        Ok::<_, Failed>(bus)
    })?;
    let arguments = ["replay", "--store", to, "--topic", &namespace.name, "--since", "2000-01-01T00:00:00Z"];
    let began = Instant::now();
    let out = namespace.qi(&arguments).output()?;
    let _gone = namespace.runtime.block_on(async {
        bus.delete_topics(std::slice::from_ref(&topic)).await?;
        bus.close().await
    })?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let wanted = format!("{TICKS} records stored, 3 messages without a valid record");
    if out.status.code() != Some(1) || !said.contains(&wanted) || !said.contains("bus.codec.unreadable") {
        return Err(format!("{}: {said}", out.status).into());
    }
    if began.elapsed() > Duration::from_secs(30) {
        return Err(format!("the replay took {:?}", began.elapsed()).into());
    }
    Ok(Completion::Completed)
}

/// A broker of `scripts/backends` with a listener for a user with a password. Dropping the value removes the broker.
struct SecuredBroker {
    name: String,
    /// The folder of the store.
    folder: tempfile::TempDir,
    /// The address of the administrator.
    plain: String,
    /// The address of the user.
    for_app: String,
}

const PASSWORD: &str = "a-secret-of-this-test";

impl SecuredBroker {
    /// Starts a broker. Returns None if the machine does not support this.
    fn start() -> Result<Option<Self>, Failed> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let folder = tempfile::tempdir()?;
        let settings = folder.path().join("settings");
        let text = format!(
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PASSWORD:SASL_PLAINTEXT\n\
             sasl.enabled.mechanisms=PLAIN\n\
             listener.name.password.plain.sasl.jaas.config=\
             org.apache.kafka.common.security.plain.PlainLoginModule required user_app=\"{PASSWORD}\";\n\
             authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:ANONYMOUS\n"
        );
        std::fs::write(&settings, text)?;
        let mut broker = Self {
            name: format!("cli-rights-{}", std::process::id()),
            plain: String::new(),
            for_app: format!("127.0.0.1:{port}"),
            folder,
        };
        let listener = format!("PASSWORD://{}", broker.for_app);
        let words = ["spare", "redpanda", &broker.name, "start", &listener, &settings.display().to_string()];
        let out = script(&words)?;
        if out.status.code() == Some(3) {
            return Ok(None);
        }
        printed(&out)?.trim().clone_into(&mut broker.plain);
        Ok(Some(broker))
    }

    fn tool(&self, class: &str, words: &str) -> Result<String, Failed> {
        let words = ["kafka-tool", class, "--bootstrap-server", &self.plain]
            .into_iter()
            .chain(words.split_whitespace())
            .collect::<Vec<_>>();
        printed(&script(&words)?)
    }

    fn qi(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qi"));
        let variables = [
            ("BACKEND", "redpanda"),
            ("REDPANDA__BROKERS", &self.for_app),
            ("REDPANDA__SASL__MECHANISM", "plain"),
            ("REDPANDA__SASL__USERNAME", "app"),
            ("REDPANDA__SASL__PASSWORD", PASSWORD),
        ];
        for (key, value) in variables {
            command.env(format!("QI__BUS__{key}"), value);
        }
        command.env("QI__STORE__BACKEND", "sqlite");
        command.env("QI__STORE__SQLITE__PATH", self.folder.path().join("prices.db"));
        command.env_remove("RUST_LOG").args(arguments);
        command
    }

    /// Runs `qi` until its output is as expected, because the broker applies new permissions with a delay.
    fn expect(&self, arguments: &[&str], wanted: &[&str]) -> Result<(), Failed> {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let out = self.qi(arguments).output()?;
            let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
            let missing = wanted.iter().find(|words| !said.contains(**words));
            if out.status.code() == Some(0) && missing.is_none() {
                return Ok(());
            }
            if std::time::Instant::now() >= deadline {
                return Err(format!("{arguments:?}: {}, without {missing:?}: {said}", out.status).into());
            }
        }
    }
}

impl Drop for SecuredBroker {
    fn drop(&mut self) {
        let _ = script(&["spare", "redpanda", &self.name, "remove"]);
    }
}

fn script(words: &[&str]) -> Result<std::process::Output, Failed> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/backends");
    Ok(Command::new(path).args(words).stdin(Stdio::null()).output()?)
}

fn printed(out: &std::process::Output) -> Result<String, Failed> {
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&out.stderr).into_owned().into())
    }
}

/// Runs every command that needs no permission to create topics, on a cluster with topics and groups of other users.
fn restricted_principal() -> Result<Completion, Failed> {
    let Some(broker) = SecuredBroker::start()? else {
        return presence::absent("redpanda", "this machine can start no broker".to_owned());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let variables = [("QI__BUS__BACKEND", "redpanda"), ("QI__BUS__REDPANDA__BROKERS", &broker.plain)];
        let variables = variables.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let config = Config::builder().variables(variables.to_vec()).build()?;
        let bus = config.open_bus().await?;
        bus.create_catalogue(&config.catalogue()?).await?;
        bus.create_topics(&[TopicSpec::new(TopicName::new("other-team")?, 1)?]).await?.remove(0).result?;
        bus.send_records(&distinct(100)?, None).await?;
        bus.close().await?;
        Ok::<_, Failed>(())
    })?;
    let consume = "--topic crypto-prices --from-beginning --max-messages 1 --timeout-ms 15000 --group modern \
                   --command-property group.protocol=consumer";
    broker.tool("consumer.ConsoleConsumer", consume)?;
    let allow = |what: &str| broker.tool("AclCommand", &format!("--add --allow-principal User:app {what}"));
    allow(
        "--resource-pattern-type prefixed --topic crypto- --topic market- --operation Describe \
         --operation DescribeConfigs --operation Read --operation Write",
    )?;
    allow("--resource-pattern-type prefixed --group qi-reader- --operation Describe --operation Read")?;
    let replay = ["replay", "--topic", "crypto-prices", "--since", "2000-01-01T00:00:00Z"];
    broker.expect(&["migrate"], &["topic crypto-prices", "exists"])?;
    broker.expect(&replay, &["100 records stored"])?;
    broker.expect(&["check"], &["0 groups", "8 of 8 catalogue topics complete"])?;
    // The topic is visible with hidden settings. The user may list groups, but not describe them.
    allow("--topic other-team --operation Describe")?;
    broker.expect(&["topics"], &["other-team", "hidden"])?;
    allow("--cluster --operation Describe")?;
    broker.expect(&["lag"], &["modern", "hidden"])?;
    broker.expect(&["check"], &["1 hidden", "9 topics in", "settings of 1 hidden"])?;
    broker.expect(&replay, &["100 records stored"])?;
    // A group of the consumer protocol.
    allow("--group modern --operation Describe")?;
    broker.expect(&["lag"], &["modern", "not described", "crypto-prices"])?;
    broker.expect(&["lag", "--group", "modern", "--partitions"], &["not described", "crypto-prices"])?;
    broker.expect(&["check"], &["1 not described"])?;
    // Settings that were visible become hidden.
    let remove = "--remove --force --allow-principal User:app --resource-pattern-type prefixed --topic crypto- \
                  --operation DescribeConfigs";
    broker.tool("AclCommand", remove)?;
    broker.expect(&["migrate"], &["exists; settings hidden"])?;
    broker.expect(&replay, &["100 records stored"])?;
    Ok(Completion::Completed)
}

/// Lets a writer reject every tenth message because of its type, and stores these messages after a redrive.
fn redrive(to: &str) -> Result<Completion, Failed> {
    const TICKS: usize = 2_000;
    let namespace = Namespace::new(&format!("redrive_{to}"));
    let config = Config::builder().variables(namespace.variables.clone()).build()?;
    let topic = TopicName::new(&namespace.name)?;
    let letters = DeadLetters::default().topic_for(&topic)?;
    let both = [topic.clone(), letters];
    let bus = namespace.runtime.block_on(config.open_bus())?;
    let outcome = namespace.runtime.block_on(async {
        let store = config.open_store_as(to).await?;
        store.ensure_schema().await?;
        let specs = [TopicSpec::new(both[0].clone(), 3)?, TopicSpec::new(both[1].clone(), 2)?];
        for outcome in bus.create_topics(&specs).await? {
            outcome.result?;
        }
        let mut messages = Vec::new();
        for (at, tick) in distinct(TICKS)?.iter().enumerate() {
            let mut message = encode_message(&Encoding::Json, tick, Some(&topic))?;
            if at % 10 == 0 {
                message.headers.remove(header::TYPE);
                message = message.with_header(HeaderName::new(header::TYPE)?, "trade");
            }
            messages.push(message);
        }
        bus.send(&messages).await?;
        let group = GroupId::new(&namespace.name)?;
        let mut reader = bus.subscribe(SubscribeRequest::new(group, [topic.clone()])?).await?;
        write(&*bus, &*store, &mut *reader, TICKS, false).await?;
        let progress = tempfile::tempdir()?;
        let file = progress.path().join("redrive.json").display().to_string();
        let redrive =
            ["dlq", "redrive", "--topic", &namespace.name, "--code", "bus.codec.header", "--progress", &file];
        let list = ["dlq", "list", "--topic", &namespace.name, "--format", "csv"];
        let row = format!("{},{topic},bus.codec.header,{},0,", both[1], TICKS / 10);
        for (arguments, on_stdout, on_stderr) in [
            (&list[..], row.as_str(), ""),
            (&redrive[..], &(TICKS / 10).to_string(), ""),
            (&redrive[..], "redriven", "has finished"),
        ] {
            let out = namespace.qi(arguments).output()?;
            let (shown, said) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            if out.status.code() != Some(0) || !shown.contains(on_stdout) || !said.contains(on_stderr) {
                return Err(Failed::from(format!("{arguments:?}: {}: {shown} {said}", out.status)));
            }
        }
        write(&*bus, &*store, &mut *reader, TICKS / 10, true).await?;
        reader.close().await?;
        let mut stored = 0;
        for series in Series::list(&*store, PriceTick::DATASET, &BTreeSet::new()).await? {
            stored += series.summary(&*store, TimeRange::ALL).await?.records;
        }
        if stored == TICKS as u64 {
            Ok(Completion::Completed)
        } else {
            Err(format!("{stored} are stored").into())
        }
    });
    namespace.runtime.block_on(async {
        let _gone = bus.delete_topics(&both).await?;
        bus.close().await?;
        Ok::<_, Failed>(())
    })?;
    outcome
}

/// Processes messages as a writer does. The fixed writer ignores the type.
async fn write(
    bus: &dyn MessageBus,
    store: &dyn PriceStore,
    reader: &mut dyn Subscription,
    messages: usize,
    is_fixed: bool,
) -> Result<(), Failed> {
    let mut processed = 0;
    while processed < messages {
        let mut batch = reader.recv(1_000, Duration::from_secs(10)).await?;
        if batch.is_empty() && batch.events().is_empty() {
            return Err(format!("received {processed} of {messages} messages").into());
        }
        if is_fixed {
            batch.messages_mut().iter_mut().for_each(|message| message.headers.remove(header::TYPE));
        }
        let decoded = batch.decode::<PriceTick>();
        store.insert_ticks(&decoded.records).await?;
        bus.send_dead_letters(&decoded.rejected, &DeadLetters::default()).await?;
        reader.commit(batch.offsets()).await?;
        processed += batch.len();
    }
    Ok(())
}

fn copy(from: &str, to: &str) -> Result<Completion, Failed> {
    let (namespace, folder, ticks) = (Namespace::new(from), tempfile::tempdir()?, number_of_ticks());
    namespace.fill(from, ticks)?;
    let progress = folder.path().join("progress.json");
    let progress = progress.display().to_string();
    let arguments = [
        "copy",
        "--from",
        from,
        "--to",
        to,
        "--dataset",
        "ticks",
        "--progress",
        &progress,
        "--format",
        "json",
    ];
    let copied = || -> u64 {
        let text = std::fs::read_to_string(&progress).unwrap_or_default();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let places = json["series"].as_object().into_iter().flat_map(|all| all.values());
        places.filter_map(|row| row["records"].as_u64()).sum()
    };
    // The copy is killed after its first progress, and after the first progress of the next process.
    for _ in 0..2 {
        let before = copied();
        let mut child = namespace.qi(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        while copied() == before {
            if let Some(status) = child.try_wait()? {
                return Err(format!("the process ended before the kill: {status}").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill()?;
        child.wait()?;
    }
    let out = namespace.qi(&arguments).output()?;
    let complaint = String::from_utf8_lossy(&out.stderr).into_owned();
    if out.status.code() != Some(0) {
        return Err(format!("{}: {complaint}\n{}", out.status, String::from_utf8_lossy(&out.stdout)).into());
    }
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&out.stdout)?;
    let sum = |column: &str| rows.iter().filter_map(|row| row[column].as_u64()).sum::<u64>();
    if (sum("source"), sum("target")) != (ticks as u64, ticks as u64) {
        return Err(format!("{ticks} ticks; {rows:?}").into());
    }
    // With a TTL, the server removes the old tick of the check at its insert.
    let retention = [("QI__STORE__AUTO_SCHEMA", "true"), ("QI__STORE__CLICKHOUSE__RETENTION__TICKS", "24h")];
    // Only `migrate` changes the TTL.
    printed(&namespace.qi(&["migrate", "--store", to]).envs(retention).output()?)?;
    let check = namespace.qi(&["check", "--write", "--store", to]).envs(retention).output()?;
    let shown = String::from_utf8_lossy(&check.stdout).into_owned();
    let store: Vec<&str> = shown.lines().filter(|line| line.contains(&format!("store {to}"))).collect();
    if store.len() != 5 || store.iter().any(|line| line.contains("FAILED")) {
        return Err(shown.into());
    }
    Ok(Completion::Completed)
}
