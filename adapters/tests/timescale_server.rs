//! The behaviour of the adapter on a server beyond the port: schema, roles, chunks, columnstore, metrics, and the SQL
//! in `docs/backends/timescale.md`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod servers;
mod timescale_rig;

use std::collections::HashMap;
use std::process::Command;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use libtest_mimic::{Arguments, Completion, Trial};
use qi_adapters::config::Hypertables;
use qi_adapters::timescale::{TimescaleConfig, TimescaleStore};
use qi_core::store::{DeleteQuery, RangeQuery, Retention, StatsQuery};
use qi_core::{
    Bar, ErrorKind, Instrument, PriceStore, PriceStoreExt, PriceTick, Quote, Result, Selection, TimeRange,
    Timestamp,
};
use qi_testkit::presence;
use qi_testkit::store::contract::StoreFactory;
use servers::{namespace, run, trial};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use timescale_rig::{Server, drop_schema};

/// The instruction to a child process: call `ensure_schema` on this server, and exit.
const CHILD: &str = "QI_TEST_ENSURE_SCHEMA";

fn main() {
    if let Ok(url) = std::env::var(CHILD) {
        return child(&url);
    }
    // If a process has only scoped subscribers, a callsite that is first reached on a thread without a subscriber stays
    // disabled on every thread. A global subscriber prevents that.
    tracing::subscriber::set_global_default(tracing_subscriber::registry()).expect("it is the first");
    let mut trials = Vec::new();
    for server in [Server::timescale(), Server::postgres()] {
        trials.push(trial(&server, "eight_processes_create_one_schema_in_a_new_database", eight_processes));
        trials.push(trial(&server, "a_changed_step_is_rejected", changed_step));
        trials.push(trial(&server, "the_documented_grants_suffice_for_rows", role_for_rows));
        trials.push(trial(&server, "the_roles_of_the_hardening_page_are_enough", hardening_roles));
        trials.push(trial(&server, "the_documented_statements_run", guide));
        trials.push(trial(&server, "close_waits_for_calls_in_progress", close_drains));
        trials.push(trial(&server, "dropped_writes_leave_no_rows", dropped_writes));
        trials.push(trial(&server, "a_stream_holds_no_connection_between_pages", paused_stream));
        trials.push(trial(&server, "a_replay_does_not_grow_the_table", replay));
        trials.push(trial(&server, "repeats_among_new_records_are_replaced", repeats_among_new));
        trials.push(trial(&server, "concurrent_writers_of_the_same_records_succeed", same_records));
        trials.push(trial(&server, "a_recreated_schema_clears_the_cache", recreated_schema));
        trials.push(trial(&server, "connections_of_custom_sql_count_as_in_use", custom_sql));
        trials.push(trial(&server, "more_names_than_the_cache_holds_are_stored", many_names));
        trials.push(trial(&server, "stats_during_deletions_are_consistent", stats_during_deletions));
    }
    let server = Server::timescale();
    trials.push(trial(&server, "the_first_schema_is_created_atomically", first_schema));
    trials.push(trial(&server, "chunks_of_a_shorter_older_interval_are_read_in_parts", shorter_chunks));
    trials.push(trial(&server, "a_late_record_opens_few_chunks", late_record));
    trials.push(trial(&server, "purges_while_writers_and_readers_run_cause_no_permanent_error", purge_race));
    trials.push(trial(&server, "chunks_are_listed_and_dropped", chunks));
    trials.push(trial(&server, "a_changed_chunk_interval_applies_to_new_chunks", chunk_interval));
    trials.push(trial(&server, "tables_with_rows_become_hypertables_only_manually", conversion));
    trials.push(trial(&server, "retention_policies_need_the_community_edition", ages));
    trials.push(columnstore_trial(&server));
    trials.push(write_path_trial(&server));
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

/// Returns ticks of one instrument, one per minute from 2023-11-14 on.
fn ticks(instrument: &str, from: u64, count: u64) -> Vec<PriceTick> {
    let start = Timestamp::from_secs(1_700_000_000).unwrap();
    let name: Instrument = instrument.parse().unwrap();
    let tick = |n: u64| {
        let ts = start.checked_add(Duration::from_secs(n * 60)).unwrap();
        let price = format!("{}.{n:06}", 100 + n % 7).parse().unwrap();
        PriceTick::new(name.clone(), ts, n, price).unwrap().with_quantity("0.25".parse().ok())
    };
    (from..from + count).map(tick).collect()
}

async fn count(store: &TimescaleStore, instrument: &str) -> u64 {
    let query = StatsQuery::new(instrument.parse().unwrap(), TimeRange::ALL);
    store.stats(&query).await.unwrap().map_or(0, |stats| stats.count())
}

async fn stored(store: &TimescaleStore, instrument: &str) -> Vec<PriceTick> {
    let query = RangeQuery::new(instrument.parse().unwrap(), TimeRange::ALL).with_limit(10_000).unwrap();
    store.tick_stream(query).try_collect().await.unwrap()
}

async fn sql(url: &str, text: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let done = sqlx::raw_sql(AssertSqlSafe(text.to_owned())).execute(&mut connection).await;
    done.unwrap_or_else(|error| panic!("{text}: {error}"));
    connection.close().await.unwrap();
}

/// Runs a check with a store and its schema, which is dropped at the end.
async fn with_store<R: Future<Output = ()>>(
    server: &Server,
    change: impl FnOnce(&mut TimescaleConfig),
    check: impl FnOnce(TimescaleStore, TimescaleConfig) -> R,
) {
    let mut config = server.config(&namespace());
    change(&mut config);
    let store = TimescaleStore::open(config.clone()).unwrap();
    store.ensure_schema().await.unwrap();
    check(store.clone(), config.clone()).await;
    store.close().await.unwrap();
    drop_schema(server.url(), &config.schema).await;
}

/// Starts in a database without the extension.
async fn eight_processes(server: Server) {
    let database = namespace();
    sql(server.url(), &format!("CREATE DATABASE {database}")).await;
    let base = server.url().rsplit_once('/').unwrap().0;
    let mode = if server.config("x").hypertables == Hypertables::On { "on" } else { "off" };
    let started: Vec<_> = (0..8)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .env(CHILD, format!("{mode} {base}/{database}"))
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut steps = Vec::new();
    for process in started {
        let out = tokio::task::spawn_blocking(|| process.wait_with_output().unwrap()).await.unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{said}");
        steps.extend(said.lines().map(str::to_owned));
    }
    let makers = steps.iter().filter(|step| *step == "migration step 1: tables").count();
    assert_eq!(makers, 1, "exactly one process creates the tables: {steps:?}");
    sql(server.url(), &format!("DROP DATABASE {database} WITH (FORCE)")).await;
}

/// Prints the steps that the child process applied.
fn child(words: &str) {
    let (mode, url) = words.split_once(' ').unwrap();
    let mut config = TimescaleConfig::from_url(url);
    config.hypertables = if mode == "on" { Hypertables::On } else { Hypertables::Off };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = TimescaleStore::open(config).unwrap();
        let report = store.ensure_schema().await.unwrap_or_else(|error| panic!("{}", error.report()));
        report.applied.iter().for_each(|step| eprintln!("{step}"));
        store.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap();
        store.close().await.unwrap();
    });
}

async fn changed_step(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, _| {
            let change = "UPDATE qi_migrations SET checksum = 'x' WHERE version = 1";
            sqlx::query(change).execute(store.pool()).await.unwrap();
            let error = store.ensure_schema().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::SchemaMismatch, "{}", error.report());
            assert!(error.to_string().contains("checksum mismatch"), "{error}");
        },
    )
    .await;
}

async fn role_for_rows(server: Server) {
    let role = namespace();
    with_store(
        &server,
        |_| (),
        async |owner, config| {
            let schema = &config.schema;
            let mut all = format!("CREATE ROLE {role} LOGIN PASSWORD 'pw';");
            for block in blocks().iter().filter(|block| block.contains("GRANT")) {
                all += &block.replace("writer", &role).replace("SCHEMA qi", &format!("SCHEMA {schema}"));
            }
            sql(server.url(), &all).await;
            let mut theirs = config.clone();
            theirs.user = Some(role.clone());
            theirs.password = Some("pw".to_owned().into());
            let writer = TimescaleStore::open(theirs).unwrap();
            assert!(writer.ensure_schema().await.unwrap().applied.is_empty());
            writer.insert_ticks(&ticks("x:Y", 0, 2_000)).await.unwrap();
            writer.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap();
            assert_eq!(count(&writer, "x:Y").await, 2_000);
            let some = Selection::only(["x:Y".parse::<Instrument>().unwrap()]).unwrap();
            writer.delete_range(&DeleteQuery::ticks(some, TimeRange::ALL)).await.unwrap();
            assert_eq!(count(&owner, "x:Y").await, 0);
            // Only the owner may drop chunks.
            let purged =
                writer.purge_before(PriceTick::DATASET, Timestamp::from_secs(2_000_000_000).unwrap()).await;
            if config.hypertables == Hypertables::On {
                assert_eq!(purged.unwrap_err().kind(), ErrorKind::Unauthorized);
            } else {
                purged.unwrap();
            }
            writer.close().await.unwrap();
            sql(server.url(), &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
        },
    )
    .await;
}

/// Returns the step of `docs/hardening.md` that begins with this comment, with other names for its
/// roles and its schema.
fn step(comment: &str, names: &str, schema: &str, database: &str) -> String {
    let page = include_str!("../../docs/hardening.md");
    let block =
        page.split("```sql\n").find(|block| block.starts_with(comment)).expect("the page has the step");
    let block = block.split("```").next().unwrap();
    let block = block
        .replace("DATABASE qi", &format!("DATABASE {database}"))
        .replace("SCHEMA qi", &format!("SCHEMA {schema}"))
        .replace(" qi.", &format!(" {schema}."));
    ["migration", "runtime", "reader"]
        .iter()
        .fold(block, |block, role| block.replace(&format!("qi_{role}"), &format!("{names}_{role}")))
}

async fn hardening_roles(server: Server) {
    let (names, schema) = (namespace(), namespace());
    let (base, database) = server.url().rsplit_once('/').unwrap();
    let address = base.rsplit_once('@').unwrap().1;
    let url = |role: &str| format!("postgres://{names}_{role}:change-me@{address}/{database}");
    let open = |role: &str| {
        let mut config = server.config(&schema);
        config.url = Some(url(role).into());
        TimescaleStore::open(config).unwrap()
    };
    let step = |comment| step(comment, &names, &schema, database);
    sql(server.url(), &step("-- PostgreSQL: as a superuser")).await;
    let owner = open("migration");
    owner.ensure_schema().await.unwrap();
    sql(&url("migration"), &step("-- PostgreSQL: as qi_migration")).await;
    let runtime = open("runtime");
    assert!(runtime.ensure_schema().await.unwrap().applied.is_empty());
    runtime.insert_ticks(&ticks("x:Y", 0, 2_000)).await.unwrap();
    runtime.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap();
    let reader = open("reader");
    assert_eq!(count(&reader, "x:Y").await, 2_000);
    // A role without the privilege to complete a catalog can start.
    sql(server.url(), &format!("UPDATE {schema}.ticks SET ts = ts WHERE false")).await;
    let report = reader.ensure_schema().await.unwrap();
    let step = "series catalog of ticks completed".to_owned();
    assert_eq!((report.applied, report.differs), (vec![], vec![step.clone()]));
    assert_eq!(owner.ensure_schema().await.unwrap().applied, [step]);
    let rejected = reader.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap_err();
    assert_eq!(rejected.kind(), ErrorKind::Unauthorized, "{}", rejected.report());
    // Tables that the migration role creates later are readable and writable without a further grant.
    sql(&url("migration"), &format!("CREATE TABLE {schema}.later (a int)")).await;
    sql(&url("runtime"), &format!("INSERT INTO {schema}.later SELECT 1; SELECT a FROM {schema}.later")).await;
    let some = Selection::only(["x:Y".parse::<Instrument>().unwrap()]).unwrap();
    runtime.delete_range(&DeleteQuery::ticks(some, TimeRange::ALL)).await.unwrap();
    assert_eq!(count(&reader, "x:Y").await, 0);
    // The runtime role changes no table, no record of the migrations and no other role.
    let mut connection = PgConnection::connect(&url("runtime")).await.unwrap();
    sqlx::raw_sql("CREATE TEMP TABLE own (a int)").execute(&mut connection).await.unwrap();
    for statement in [
        // The function has the privileges of its owner, and would use tables of the caller.
        format!(
            "CREATE TRIGGER x BEFORE INSERT ON own FOR EACH STATEMENT EXECUTE FUNCTION {schema}.qi_mark_incomplete()"
        ),
        format!("DROP TABLE {schema}.ticks"),
        format!("TRUNCATE {schema}.ticks"),
        format!("ALTER TABLE {schema}.ticks DROP COLUMN side"),
        format!("CREATE TABLE {schema}.mine (a int)"),
        format!("DELETE FROM {schema}.qi_migrations"),
        format!("UPDATE {schema}.instruments SET symbol = 'x'"),
        "CREATE SCHEMA mine_too".to_owned(),
        format!("SET ROLE {names}_migration"),
        "SELECT pg_read_file('/etc/passwd')".to_owned(),
        "COPY (SELECT 1) TO PROGRAM 'true'".to_owned(),
    ] {
        let done = sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut connection).await;
        let code =
            done.map(drop).map_err(|error| error.as_database_error().unwrap().code().unwrap().into_owned());
        assert_eq!(code, Err("42501".to_owned()), "{statement}");
    }
    connection.close().await.unwrap();
    // Changing a password keeps open connections and rejects new connections.
    sql(server.url(), &format!("ALTER ROLE {names}_runtime PASSWORD 'changed'")).await;
    assert_eq!(count(&runtime, "x:Y").await, 0);
    let late = open("runtime");
    let rejected = late.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap_err();
    assert_eq!((rejected.kind(), rejected.code()), (ErrorKind::Unauthorized, "store.timescale.login"));
    late.close().await.unwrap();
    for store in [owner, runtime, reader] {
        store.close().await.unwrap();
    }
    drop_schema(server.url(), &schema).await;
    let roles = ["migration", "runtime", "reader"].map(|role| format!("{names}_{role}")).join(", ");
    sql(server.url(), &format!("DROP OWNED BY {roles}; DROP ROLE {roles}")).await;
}

fn blocks() -> Vec<String> {
    let page = include_str!("../../docs/backends/timescale.md");
    let blocks: Vec<_> =
        page.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 7, "the page has its statements");
    blocks.into_iter().map(str::to_owned).collect()
}

async fn guide(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, config| {
            store.insert_ticks(&ticks("x:Y", 0, 2_000)).await.unwrap();
            // Runs the blocks like a user of psql.
            let mut person = PgConnection::connect(server.url()).await.unwrap();
            for block in blocks() {
                let first = block.lines().next().unwrap();
                let elsewhere = block.contains("GRANT") || first.contains("conversion");
                if elsewhere || (first.contains("TimescaleDB") && config.hypertables == Hypertables::Off) {
                    continue;
                }
                let text = block.replace("'qi.", &format!("'{}.", config.schema));
                let text = text.replace("= 'qi'", &format!("= '{}'", config.schema));
                let rows = sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(&mut person).await;
                let rows = rows.unwrap_or_else(|error| panic!("{block}: {error}"));
                // Jobs exist only on request, and the name of the application differs in this test.
                let expected = !block.contains("job_id") && !block.contains("application_name");
                assert!(!rows.is_empty() || !expected, "no rows: {block}");
            }
            person.close().await.unwrap();
        },
    )
    .await;
}

async fn close_drains(server: Server) {
    with_store(
        &server,
        |config| config.max_batch = 200_000,
        async |store, config| {
            let batch = ticks("x:Y", 0, 150_000);
            let write = tokio::spawn({
                let (store, batch) = (store.clone(), batch.clone());
                async move { store.insert_ticks(&batch).await }
            });
            tokio::time::sleep(Duration::from_millis(200)).await;
            store.close().await.unwrap();
            write.await.unwrap().unwrap();
            let error = store.insert_ticks(&batch[..1]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Closed);
            let again = TimescaleStore::open(config).unwrap();
            assert_eq!(count(&again, "x:Y").await, 150_000);
            again.close().await.unwrap();
        },
    )
    .await;
}

async fn dropped_writes(server: Server) {
    let name = namespace();
    let change = |config: &mut TimescaleConfig| {
        config.application_name = Some(name.clone());
        config.pool.max_connections = 3;
        config.max_batch = 100_000;
    };
    with_store(&server, change, async |store, _| {
        let batch = ticks("x:Y", 0, 60_000);
        let mut cut = 0;
        for delay in 0..30_u64 {
            let write = tokio::spawn({
                let (store, batch) = (store.clone(), batch.clone());
                async move { store.insert_ticks(&batch).await }
            });
            tokio::time::sleep(Duration::from_millis(delay * 5)).await;
            write.abort();
            cut += u32::from(write.await.is_err());
        }
        assert!(cut >= 10, "{cut} of 30 were dropped in progress");
        // Every slot of the pool is free again, and every record is complete.
        futures::future::try_join_all((0..3).map(|_| store.ping())).await.unwrap();
        let some = stored(&store, "x:Y").await;
        assert!(some.iter().all(|tick| batch.contains(tick)), "records are complete");
        store.insert_ticks(&batch).await.unwrap();
        assert!(stored(&store, "x:Y").await == batch);
        // The server has also detected it: no statement is running, and no transaction is open.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut root = PgConnection::connect(server.url()).await.unwrap();
        let busy: Vec<(String, String)> = sqlx::query_as(
            "SELECT state, query FROM pg_stat_activity WHERE application_name = $1 AND state <> 'idle'",
        )
        .bind(&name)
        .fetch_all(&mut root)
        .await
        .unwrap();
        assert!(busy.is_empty(), "{busy:?}");
        root.close().await.unwrap();
    })
    .await;
}

async fn paused_stream(server: Server) {
    let change = |config: &mut TimescaleConfig| {
        config.pool.max_connections = 1;
        config.pool.acquire_timeout = Duration::from_secs(1);
    };
    with_store(&server, change, async |store, _| {
        store.insert_ticks(&ticks("x:Y", 0, 3_000)).await.unwrap();
        let query = RangeQuery::new("x:Y".parse().unwrap(), TimeRange::ALL).with_limit(1_000).unwrap();
        let mut stream = store.tick_stream(query);
        for _ in 0..1_500 {
            stream.next().await.unwrap().unwrap();
        }
        // The only connection is free while the stream waits in the middle of a page.
        store.ping().await.unwrap();
        assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap().len(), 1_500);
    })
    .await;
}

async fn table_bytes(store: &TimescaleStore) -> i64 {
    let on_chunks = "SELECT coalesce(sum(pg_total_relation_size(format('%I.%I', chunk_schema, chunk_name)::regclass)), 0)::bigint \
         FROM timescaledb_information.chunks WHERE hypertable_schema = current_schema() AND hypertable_name = 'ticks'";
    let whole = "SELECT pg_total_relation_size('ticks')";
    let edition = store.info().edition.unwrap();
    let text = if edition == "postgresql" { whole } else { on_chunks };
    sqlx::query_scalar(text).fetch_one(store.pool()).await.unwrap()
}

async fn replay(server: Server) {
    with_store(
        &server,
        |config| config.max_batch = 200_000,
        async |store, _| {
            let batch = ticks("x:Y", 0, 120_000);
            store.insert_ticks(&batch).await.unwrap();
            // VACUUM writes additional maps.
            sqlx::query("VACUUM ticks").execute(store.pool()).await.unwrap();
            let before = table_bytes(&store).await;
            for _ in 0..3 {
                store.insert_ticks(&batch).await.unwrap();
                for part in batch.chunks(300).take(20) {
                    store.insert_ticks(part).await.unwrap();
                }
            }
            let after = table_bytes(&store).await;
            assert_eq!(after, before, "a replay writes nothing");
        },
    )
    .await;
}

/// Repeats of old and of recent records, equal and changed, at random positions in batches of new records.
async fn repeats_among_new(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, _| {
            let names = ["x:A", "x:B", "x:C"];
            let mut expected: HashMap<&str, Vec<PriceTick>> = HashMap::new();
            for round in 0..8_u64 {
                let mut batch = Vec::new();
                for name in names {
                    let stored = expected.entry(name).or_default();
                    // The ticks of a round are every second minute of its range, so a later round finds gaps to fill.
                    let from = round / 2 * 4_000;
                    let new = ticks(name, from, 4_000).into_iter().filter(|tick| tick.seq() % 2 == round % 2);
                    let new: Vec<_> = new.collect();
                    for n in 0..stored.len() / 50 {
                        let at = (n * 7_919 + 104_729) % stored.len();
                        if n % 2 == 0 {
                            stored[at] = stored[at].clone().with_quantity(format!("{round}.5").parse().ok());
                        }
                        batch.push(stored[at].clone());
                    }
                    batch.extend_from_slice(&new);
                    stored.extend(new);
                }
                batch.sort_by_key(|tick| tick.seq() * 7_919 % 10_007);
                // If a record is changed twice, the last change is stored.
                let last: HashMap<_, _> = names
                    .iter()
                    .flat_map(|name| &expected[name])
                    .map(|tick| ((tick.instrument().clone(), tick.seq()), tick.clone()))
                    .collect();
                let batch: Vec<_> =
                    batch.iter().map(|tick| last[&(tick.instrument().clone(), tick.seq())].clone()).collect();
                store.insert_ticks(&batch).await.unwrap();
            }
            for name in names {
                let expected = expected.get_mut(name).unwrap();
                expected.sort_by_key(PriceTick::seq);
                assert!(stored(&store, name).await == *expected, "{name}");
            }
        },
    )
    .await;
}

/// Writers that receive the same data insert the same records between the probe and the write.
async fn same_records(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, config| {
            const DAYS: i64 = 20;
            let batches: Vec<Vec<PriceTick>> = (0..30)
                .map(|batch| {
                    let tick = |n: i64| {
                        let name = format!("x:S{}", n % 5);
                        tick_of(&name, n % DAYS * 86_400 + n / DAYS, batch * 2_000 + n.cast_unsigned())
                    };
                    (0..2_000).map(tick).collect()
                })
                .collect();
            let writers: Vec<_> = (0..3)
                .map(|_| {
                    let (store, batches) = (TimescaleStore::open(config.clone()).unwrap(), batches.clone());
                    tokio::spawn(async move {
                        for batch in &batches {
                            store.insert_ticks(batch).await.unwrap_or_else(|e| panic!("{}", e.report()));
                        }
                        store.close().await.unwrap();
                    })
                })
                .collect();
            for writer in writers {
                writer.await.unwrap();
            }
            for name in ["x:S0", "x:S1", "x:S2", "x:S3", "x:S4"] {
                assert_eq!(count(&store, name).await, 30 * 400, "{name}");
            }
        },
    )
    .await;
}

/// Returns the number of sessions of this name that wait for a lock, and the number of locks of all its sessions.
async fn waiting(root: &mut PgConnection, application_name: &str) -> (i64, i64) {
    sqlx::query_as(
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'), \
         (SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE application_name = $1)",
    )
    .bind(application_name)
    .fetch_one(root)
    .await
    .unwrap()
}

/// Inserts a record in a transaction that stays open.
async fn insert_uncommitted(url: &str, config: &TimescaleConfig, tick: &PriceTick) -> PgConnection {
    let mut other = PgConnection::connect(url).await.unwrap();
    let insert = format!(
        "BEGIN; INSERT INTO {0}.ticks (instrument_id, ts, seq, price) SELECT id, '{1}', {2}, 42 \
         FROM {0}.instruments WHERE symbol = '{3}'",
        config.schema,
        tick.ts(),
        tick.seq(),
        tick.instrument().symbol(),
    );
    let done = sqlx::raw_sql(AssertSqlSafe(insert)).execute(&mut other).await.unwrap();
    assert_eq!(done.rows_affected(), 1);
    other
}

/// Commits as soon as a session of the store waits for the transaction. Returns the number of locks that
/// its sessions then hold.
async fn commit_when_awaited(url: &str, config: &TimescaleConfig, mut other: PgConnection) -> i64 {
    let mut root = PgConnection::connect(url).await.unwrap();
    let name = config.application_name.as_deref().unwrap();
    let locks = loop {
        let (waiting, locks) = waiting(&mut root, name).await;
        if waiting > 0 {
            break locks;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    root.close().await.unwrap();
    other.close().await.unwrap();
    locks
}

/// 2,600 chunks of one day, and batches of new records with one late record.
async fn late_record(server: Server) {
    let change = |config: &mut TimescaleConfig| {
        config.chunks.set("ticks", Duration::from_hours(24));
        config.application_name = Some(namespace());
        config.write.connections = 1;
    };
    with_store(&server, change, async |store, config| {
        const DAYS: i64 = 2_600;
        // The table, the catalog, and a few chunks with their indexes. A statement locks only few chunks.
        const LOCKS: i64 = 60;
        let old: Vec<_> = (0..DAYS).map(|day| tick_of("a:A", day * 86_400, 0)).collect();
        store.insert_ticks(&old).await.unwrap();
        for (new, at) in [(1_500, 0), (1_500, 700), (100, 0), (100, 70)] {
            let mut batch: Vec<_> =
                (1..=new).map(|n| tick_of("a:A", DAYS * 86_400 + n, u64::try_from(at).unwrap())).collect();
            batch.push(tick_of("a:A", 86_400 + new, u64::try_from(at).unwrap()));
            batch.sort_by_key(PriceTick::ts);
            let contended = &batch[at];
            let other = insert_uncommitted(server.url(), &config, contended).await;
            let commit = commit_when_awaited(server.url(), &config, other);
            let (inserted, locks) = futures::join!(store.insert_ticks(&batch), commit);
            inserted.unwrap();
            assert!(locks < LOCKS, "{locks} locks for a batch of {new} and a late record");
            let query = RangeQuery::new(
                "a:A".parse().unwrap(),
                TimeRange::new(contended.ts(), contended.ts().checked_add(Duration::from_micros(1)).unwrap())
                    .unwrap(),
            );
            let stored = store.ticks(&query).await.unwrap().items;
            assert_eq!(stored.iter().filter(|tick| *tick == contended).count(), 1, "{stored:?}");
        }
        store.purge_before(PriceTick::DATASET, Timestamp::MAX).await.unwrap();
    })
    .await;
}

fn tick_of(instrument: &str, secs: i64, seq: u64) -> PriceTick {
    let ts = Timestamp::from_secs(1_700_000_000 + secs).unwrap();
    PriceTick::new(instrument.parse().unwrap(), ts, seq, "1".parse().unwrap()).unwrap()
}

/// Ids of instruments are cached in memory. They belong to other instruments after a schema was
/// dropped and created again.
async fn recreated_schema(server: Server) {
    with_store(
        &server,
        |_| (),
        async |old, config| {
            old.insert_ticks(&[tick_of("a:A", 0, 0), tick_of("a:B", 0, 0)]).await.unwrap();
            drop_schema(server.url(), &config.schema).await;
            let other = TimescaleStore::open(config).unwrap();
            other.ensure_schema().await.unwrap();
            let theirs = [tick_of("z:Z", 0, 0), tick_of("y:Y", 0, 0)];
            other.insert_ticks(&theirs).await.unwrap();
            // The cached ids of the old store now belong to the two other instruments.
            let ours = tick_of("a:A", 0, 0).with_quantity("7".parse().ok());
            assert_eq!(count(&old, "a:B").await, 0);
            old.insert_ticks(std::slice::from_ref(&ours)).await.unwrap();
            for store in [&old, &other] {
                assert_eq!(stored(store, "z:Z").await, theirs[..1]);
                assert_eq!(stored(store, "a:A").await, std::slice::from_ref(&ours));
            }
            other.close().await.unwrap();
            // The same with a single store.
            drop_schema(server.url(), &server_schema(&old)).await;
            old.ensure_schema().await.unwrap();
            old.insert_ticks(std::slice::from_ref(&ours)).await.unwrap();
            assert_eq!(stored(&old, "a:A").await, std::slice::from_ref(&ours));
            assert_eq!(count(&old, "z:Z").await, 0);
        },
    )
    .await;
}

fn server_schema(store: &TimescaleStore) -> String {
    let shown = store.to_string();
    shown.rsplit_once("schema ").unwrap().1.trim_end_matches(')').to_owned()
}

async fn custom_sql(server: Server) {
    let change = |config: &mut TimescaleConfig| {
        config.pool.max_connections = 1;
        config.pool.acquire_timeout = Duration::from_millis(300);
    };
    with_store(&server, change, async |store, _| {
        let held = store.pool().acquire().await.unwrap();
        let error = store.ping().await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Overloaded, "store.timescale.pool"));
        drop(held);
        store.ping().await.unwrap();
    })
    .await;
}

async fn many_names(server: Server) {
    with_store(
        &server,
        |config| config.max_batch = 300_000,
        async |store, _| {
            let old = tick_of("a:OLD", 0, 0);
            store.insert_ticks(std::slice::from_ref(&old)).await.unwrap();
            let names = |from: usize, to: usize| -> Vec<PriceTick> {
                (from..to).map(|n| tick_of(&format!("a:S{n}"), 0, 0)).collect()
            };
            store.insert_ticks(&names(0, 199_990)).await.unwrap();
            // These instruments fill the cache of ids, which is cleared in the middle of a batch with a known name.
            let mut batch = names(300_000, 300_020);
            batch.push(old);
            store.insert_ticks(&batch).await.unwrap();
            // More instruments than the cache can hold.
            store.insert_ticks(&names(400_000, 610_000)).await.unwrap();
            for name in ["a:OLD", "a:S0", "a:S300019", "a:S609999"] {
                assert_eq!(count(&store, name).await, 1, "{name}");
            }
        },
    )
    .await;
}

async fn stats_during_deletions(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, _| {
            let batch: Vec<_> = (0..500).map(|n| tick_of("a:B", n, 0)).collect();
            let writer = tokio::spawn({
                let store = store.clone();
                async move {
                    let some = Selection::only(["a:B".parse::<Instrument>().unwrap()]).unwrap();
                    for _ in 0..150 {
                        store.insert_ticks(&batch).await.unwrap();
                        store.delete_range(&DeleteQuery::ticks(some.clone(), TimeRange::ALL)).await.unwrap();
                    }
                }
            });
            let query = StatsQuery::new("a:B".parse().unwrap(), TimeRange::ALL);
            while !writer.is_finished() {
                if let Some(stats) = store.stats(&query).await.unwrap() {
                    // A batch of this size is one statement, and a deletion is another statement.
                    assert_eq!(stats.count(), 500);
                }
            }
            writer.await.unwrap();
        },
    )
    .await;
}

async fn first_schema(server: Server) {
    for _ in 0..10 {
        let config = server.config(&namespace());
        let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let writers: Vec<_> = (0..3)
            .map(|_| {
                let (store, done) = (TimescaleStore::open(config.clone()).unwrap(), done.clone());
                tokio::spawn(async move {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        // Rejected until the schema exists.
                        let _ = store.insert_ticks(&[tick_of("a:A", 0, 0)]).await;
                    }
                    store.close().await.unwrap();
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(30)).await;
        let store = TimescaleStore::open(config.clone()).unwrap();
        store.ensure_schema().await.unwrap_or_else(|error| panic!("{}", error.report()));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        for writer in writers {
            writer.await.unwrap();
        }
        store.close().await.unwrap();
        drop_schema(server.url(), &config.schema).await;
    }
}

/// 1,500 chunks of one hour, in a store that is configured for chunks of one week.
async fn shorter_chunks(server: Server) {
    with_store(
        &server,
        |config| config.chunks.set("ticks", Duration::from_hours(1)),
        async |short, config| {
            const HOURS: i64 = 1_500;
            let batch: Vec<_> = (0..HOURS).map(|n| tick_of("a:A", n * 3_600, 0)).collect();
            short.insert_ticks(&batch).await.unwrap();
            let mut longer = config.clone();
            longer.chunks.set("ticks", Duration::from_hours(168));
            let store = TimescaleStore::open(longer).unwrap();
            store.ensure_schema().await.unwrap();
            // As a single statement, each of these would need more locks than the server has. Eight
            // of them run concurrently.
            let (start, end) = (batch[0].ts(), batch[batch.len() - 1].ts());
            let range = TimeRange::new(start, end).unwrap();
            let readers: Vec<_> = (0..8)
                .map(|_| {
                    let (store, batch) = (store.clone(), batch.clone());
                    tokio::spawn(async move {
                        let query = RangeQuery::new("a:B".parse().unwrap(), range);
                        assert!(store.ticks(&query).await.unwrap().items.is_empty());
                        store.insert_ticks(&batch).await.unwrap();
                    })
                })
                .collect();
            for reader in readers {
                reader.await.unwrap();
            }
            assert!(stored(&store, "a:A").await == batch);
            store.delete_range(&DeleteQuery::ticks(Selection::All, range)).await.unwrap();
            assert_eq!(count(&store, "a:A").await, 1);
            store.purge_before(PriceTick::DATASET, Timestamp::MAX).await.unwrap();
            store.close().await.unwrap();
        },
    )
    .await;
}

async fn purge_race(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, _| {
            let cutoff = Timestamp::from_secs(1_700_000_000 + 86_400 * 61).unwrap();
            let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
            let running = |done: &std::sync::Arc<std::sync::atomic::AtomicBool>| {
                let done = done.clone();
                move || !done.load(std::sync::atomic::Ordering::Relaxed)
            };
            let mut tasks = Vec::new();
            for writer in 0..3_u64 {
                let (store, running) = (store.clone(), running(&done));
                tasks.push(tokio::spawn(async move {
                    let mut size = 50;
                    while running() {
                        size = if size == 50 { 1_500 } else { 50 };
                        let batch: Vec<_> = (0..size)
                            .map(|n| {
                                tick_of(
                                    &format!("a:W{writer}"),
                                    (n * 172_800) % (86_400 * 60),
                                    n.cast_unsigned(),
                                )
                            })
                            .collect();
                        if let Err(error) = store.insert_ticks(&batch).await {
                            assert!(error.retry().is_retryable(), "write: {}", error.report());
                        }
                    }
                }));
            }
            let (reader, running_reader) = (store.clone(), running(&done));
            tasks.push(tokio::spawn(async move {
                while running_reader() {
                    let query = RangeQuery::new("a:W1".parse().unwrap(), TimeRange::ALL);
                    let read = reader.ticks(&query).await.map(drop);
                    let latest = reader.latest_tick(&"a:W1".parse().unwrap()).await.map(drop);
                    for error in [read.err(), latest.err()].into_iter().flatten() {
                        assert!(error.retry().is_retryable(), "read: {}", error.report());
                    }
                }
            }));
            let started = std::time::Instant::now();
            while started.elapsed() < Duration::from_secs(8) {
                if let Err(error) = store.purge_before(PriceTick::DATASET, cutoff).await {
                    assert!(error.retry().is_retryable(), "purge: {}", error.report());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            for task in tasks {
                task.await.unwrap();
            }
            store.purge_before(PriceTick::DATASET, cutoff).await.unwrap();
            assert_eq!(count(&store, "a:W1").await, 0);
        },
    )
    .await;
}

const WEEK: u64 = 7 * 24 * 60;

async fn chunks(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, _| {
            assert!(store.chunks(PriceTick::DATASET).await.unwrap().is_empty());
            // One tick per minute for ten weeks.
            let batch = ticks("x:Y", 0, 10 * WEEK);
            for part in batch.chunks(30_000) {
                store.insert_ticks(part).await.unwrap();
            }
            let before = store.chunks(PriceTick::DATASET).await.unwrap();
            assert!((10..=11).contains(&before.len()), "{before:?}");
            assert!(before.is_sorted_by_key(|chunk| chunk.range.start()));
            assert!(before.iter().all(|chunk| chunk.bytes > 8_192 && !chunk.compressed), "{before:?}");
            assert!(before[0].range.start() <= batch[0].ts());
            // A time in the middle of the fourth chunk.
            let cutoff = before[3].range.start().checked_add(Duration::from_hours(50)).unwrap();
            store.purge_before(PriceTick::DATASET, cutoff).await.unwrap();
            let after = store.chunks(PriceTick::DATASET).await.unwrap();
            let names = |chunks: &[qi_adapters::timescale::ChunkInfo]| -> Vec<String> {
                chunks.iter().map(|chunk| chunk.name.clone()).collect()
            };
            assert_eq!(names(&after), names(&before[3..]), "entire chunks are dropped");
            let left: Vec<_> = batch.into_iter().filter(|tick| tick.ts() >= cutoff).collect();
            assert!(stored(&store, "x:Y").await == left, "and the rest goes to the microsecond");
            let elsewhere = store.chunks(Quote::DATASET).await.unwrap();
            assert!(elsewhere.is_empty());
        },
    )
    .await;
    let store = TimescaleStore::open(server.config(&namespace())).unwrap();
    let error = store.chunks(PriceTick::DATASET).await.unwrap_err();
    assert_eq!((error.kind(), error.operation()), (ErrorKind::SchemaMismatch, "chunks"));
    store.close().await.unwrap();
}

async fn chunk_interval(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, config| {
            store.insert_ticks(&ticks("x:Y", 0, WEEK)).await.unwrap();
            let mut shorter = config.clone();
            shorter.chunks.set("ticks", Duration::from_hours(24));
            let changed = TimescaleStore::open(shorter).unwrap();
            assert_eq!(changed.migrate_schema().await.unwrap().applied, ["chunk interval of ticks"]);
            assert!(changed.migrate_schema().await.unwrap().applied.is_empty());
            let old = changed.chunks(PriceTick::DATASET).await.unwrap().len();
            let batch = ticks("x:Y", 10 * WEEK, WEEK);
            changed.insert_ticks(&batch).await.unwrap();
            assert!(changed.chunks(PriceTick::DATASET).await.unwrap().len() >= old + 7);
            // Both kinds of chunks are read as one table, in ascending order and for the latest record.
            assert_eq!(count(&changed, "x:Y").await, 2 * WEEK);
            let latest = changed.latest_tick(&"x:Y".parse().unwrap()).await.unwrap();
            assert_eq!(latest.as_ref(), batch.last());
            changed.close().await.unwrap();
        },
    )
    .await;
}

async fn conversion(server: Server) {
    with_store(
        &server,
        |config| config.hypertables = Hypertables::Off,
        async |plain, config| {
            let batch = ticks("x:Y", 0, 3 * WEEK);
            for part in batch.chunks(30_000) {
                plain.insert_ticks(part).await.unwrap();
            }
            let mut on = config.clone();
            on.hypertables = Hypertables::On;
            let store = TimescaleStore::open(on).unwrap();
            let error = store.ensure_schema().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::SchemaMismatch, "{}", error.report());
            assert!(error.to_string().contains("docs/backends/timescale.md"), "{error}");
            assert!(stored(&plain, "x:Y").await == batch, "nothing was touched");
            let block = blocks().into_iter().find(|block| block.contains("conversion")).unwrap();
            sql(server.url(), &block.replace("'qi.", &format!("'{}.", config.schema))).await;
            // The conversion inserts the rows again, without the catalog.
            let applied = store.ensure_schema().await.unwrap().applied;
            assert_eq!(applied, ["series catalog of ticks completed"]);
            assert!(store.ensure_schema().await.unwrap().applied.is_empty());
            assert!(stored(&store, "x:Y").await == batch);
            assert!(store.chunks(PriceTick::DATASET).await.unwrap().len() >= 3);
            store.close().await.unwrap();
        },
    )
    .await;
}

fn is_community(store: &TimescaleStore) -> bool {
    store.info().edition.as_deref() == Some("timescaledb community")
}

async fn ages(server: Server) {
    Box::pin(with_store(
        &server,
        |_| (),
        async |store, config| {
            store.ping().await.unwrap();
            let mut aged = config.clone();
            aged.columnstore.set("ticks", Duration::from_hours(336));
            aged.retention.set("bars", Duration::from_hours(24_000));
            let other = TimescaleStore::open(aged.clone()).unwrap();
            let rule = Retention::Age(Bar::DATASET, Duration::from_hours(24_000));
            assert_eq!(other.info().retention, [rule]);
            if is_community(&store) {
                assert!(other.ensure_schema().await.unwrap().applied.is_empty());
                let applied = other.migrate_schema().await.unwrap().applied;
                assert_eq!(
                    applied,
                    ["columnstore policy of ticks after 14d", "retention policy of bars after 1000d"]
                );
                assert!(other.migrate_schema().await.unwrap().applied.is_empty(), "they are there");
                aged.columnstore.set("ticks", Duration::from_hours(48));
                let third = TimescaleStore::open(aged).unwrap();
                let applied = third.migrate_schema().await.unwrap().applied;
                assert_eq!(applied, ["columnstore policy of ticks after 2d"]);
                third.close().await.unwrap();
            } else {
                let error = other.ensure_schema().await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", error.report());
                assert_eq!(error.code(), "store.timescale.edition");
                let error = store.convert_to_columnstore(PriceTick::DATASET).await.unwrap_err();
                assert_eq!(
                    (error.kind(), error.operation()),
                    (ErrorKind::Unsupported, "convert_to_columnstore")
                );
                // The store works without them.
                store.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap();
            }
            other.close().await.unwrap();
        },
    ))
    .await;
}

/// More rows than the server's limit for a statement on converted chunks, which is 100,000.
fn columnstore_trial(server: &Server) -> Trial {
    let owned = server.clone();
    let name = "timescale/converted_chunks_are_written_replaced_deleted_and_purged";
    presence::trial(name.to_owned(), "timescale", server.absent(), move || {
        let store = owned.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let community = runtime.block_on(async {
            let store = TimescaleStore::open(store.config("nowhere")).unwrap();
            store.ping().await.unwrap();
            let community = is_community(&store);
            store.close().await.unwrap();
            community
        });
        if !community {
            return Ok(Completion::ignored_with("the columnstore needs the Community edition"));
        }
        run(columnstore(owned))
    })
}

async fn columnstore(server: Server) {
    Box::pin(with_store(
        &server,
        |config| config.max_batch = 400_000,
        async |store, mut config| {
            let mut batch = ticks("x:Y", 0, 250_000);
            store.insert_ticks(&batch).await.unwrap();
            // Sessions do not queue behind the change of the table for longer than the lock timeout of the schema.
            let mut reader = PgConnection::connect(server.url()).await.unwrap();
            let read = format!("BEGIN; SELECT FROM {}.ticks LIMIT 1", config.schema);
            sqlx::raw_sql(AssertSqlSafe(read)).execute(&mut reader).await.unwrap();
            config.server_limits.schema_lock_timeout = Duration::from_millis(200);
            let other = TimescaleStore::open(config).unwrap();
            let error = other.convert_to_columnstore(PriceTick::DATASET).await.unwrap_err();
            assert_eq!((error.kind(), error.code()), (ErrorKind::Timeout, "store.timescale.lock_timeout"));
            assert!(error.to_string().contains("in 10 attempts"), "{error}");
            other.close().await.unwrap();
            reader.close().await.unwrap();
            let before: u64 = sizes(&store).await.iter().sum();
            let converted = store.convert_to_columnstore(PriceTick::DATASET).await.unwrap();
            let chunks = store.chunks(PriceTick::DATASET).await.unwrap();
            assert_eq!(converted, chunks.len());
            assert!(chunks.iter().all(|chunk| chunk.compressed));
            let small: u64 = sizes(&store).await.iter().sum();
            assert!(small * 3 < before, "{small} bytes of {before}");
            // A replay changes nothing.
            store.insert_ticks(&batch).await.unwrap();
            assert_eq!(sizes(&store).await.iter().sum::<u64>(), small, "a replay writes nothing");
            assert!(stored(&store, "x:Y").await == batch);
            // Replaces all records in one call, inserts late records, and then runs a deletion and a purge.
            for tick in &mut batch {
                *tick = tick.clone().with_quantity("0.5".parse().ok());
            }
            store.insert_ticks(&batch).await.unwrap();
            assert!(stored(&store, "x:Y").await == batch);
            store.convert_to_columnstore(PriceTick::DATASET).await.unwrap();
            store.insert_ticks(&ticks("x:LATE", 0, 150_000)).await.unwrap();
            assert_eq!(count(&store, "x:LATE").await, 150_000);
            store.convert_to_columnstore(PriceTick::DATASET).await.unwrap();
            let late = Selection::only(["x:LATE".parse::<Instrument>().unwrap()]).unwrap();
            store.delete_range(&DeleteQuery::ticks(late, TimeRange::ALL)).await.unwrap();
            assert_eq!(count(&store, "x:LATE").await, 0);
            let cutoff = batch[120_001].ts();
            store.purge_before(PriceTick::DATASET, cutoff).await.unwrap();
            assert!(stored(&store, "x:Y").await == batch[120_001..]);
        },
    ))
    .await;
}

async fn sizes(store: &TimescaleStore) -> Vec<u64> {
    store.chunks(PriceTick::DATASET).await.unwrap().iter().map(|chunk| chunk.bytes).collect()
}

/// Recorders of metrics and spans are local to a thread, so this trial runs on a single thread.
fn write_path_trial(server: &Server) -> Trial {
    let owned = server.clone();
    presence::trial(
        "timescale/metrics_and_spans_say_which_way_a_write_went".to_owned(),
        "timescale",
        server.absent(),
        move || {
            write_path::check(&owned)?;
            Ok(Completion::Completed)
        },
    )
}

mod write_path {
    use std::sync::{Arc, Mutex};

    use metrics_util::debugging::{DebugValue, DebuggingRecorder};
    use tracing::field::{Field, Visit};
    use tracing::span;
    use tracing_subscriber::layer::{Context, SubscriberExt};
    use tracing_subscriber::{Layer, Registry};

    use super::{
        PriceStoreExt as _, Result, Server, commit_when_awaited, insert_uncommitted, namespace, ticks,
        with_store,
    };

    /// The recorded values of `write_path`, in order.
    #[derive(Clone, Default)]
    struct PathRecorder(Arc<Mutex<Vec<String>>>);

    impl<S: tracing::Subscriber> Layer<S> for PathRecorder {
        fn on_record(&self, _: &span::Id, values: &span::Record<'_>, _: Context<'_, S>) {
            values.record(&mut self.clone());
        }
    }

    impl Visit for PathRecorder {
        fn record_str(&mut self, field: &Field, value: &str) {
            if field.name() == "write_path" {
                self.0.lock().unwrap().push(value.to_owned());
            }
        }
        fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
    }

    pub(super) fn check(server: &Server) -> Result<(), libtest_mimic::Failed> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (paths, recorder) = (PathRecorder::default(), DebuggingRecorder::new());
        let snapshotter = recorder.snapshotter();
        let subscriber = Registry::default().with(paths.clone());
        tracing::subscriber::with_default(subscriber, || {
            metrics::with_local_recorder(&recorder, || {
                runtime.block_on(with_store(
                    server,
                    |config| {
                        config.write.connections = 1;
                        config.application_name = Some(namespace());
                    },
                    async |store, config| {
                        store.insert_ticks(&ticks("x:A", 5_000, 1)).await.unwrap();
                        store.insert_ticks(&ticks("x:Y", 0, 1_200)).await.unwrap();
                        store.insert_ticks(&ticks("x:Y", 1_200, 5)).await.unwrap();
                        // New records are copied, repeats are merged.
                        let mut mixed = ticks("x:A", 0, 1_000);
                        mixed.extend(ticks("x:Y", 1_000, 50));
                        mixed.extend(ticks("x:Z", 0, 1_300));
                        store.insert_ticks(&mixed).await.unwrap();
                        // A replay of existing records.
                        store.insert_ticks(&ticks("x:Y", 0, 1_200)).await.unwrap();
                        // A record that another writer inserts after the probe.
                        let raced = ticks("x:Y", 10_000, 1_100);
                        let other = insert_uncommitted(server.url(), &config, &raced[500]).await;
                        let commit = commit_when_awaited(server.url(), &config, other);
                        let (inserted, _) = futures::join!(store.insert_ticks(&raced), commit);
                        inserted.unwrap();
                        assert_eq!(super::count(&store, "x:Y").await, 1_200 + 5 + 1_100);
                        assert!(
                            super::stored(&store, "x:Y").await.ends_with(&raced),
                            "the merge replaced it"
                        );
                    },
                ));
            });
        });
        assert_eq!(
            *paths.0.lock().unwrap(),
            ["merge", "copy", "merge", "copy", "merge", "merge", "copy_then_merge"]
        );
        // A snapshot resets the metrics, so only one snapshot is taken.
        let all = snapshotter.snapshot().into_vec();
        let counted = |name: &str, path: &str| -> u64 {
            let mine = all.iter().filter(|(key, ..)| {
                let labels: Vec<_> = key.key().labels().map(|l| (l.key(), l.value())).collect();
                key.key().name() == name && labels == [("dataset", "ticks"), ("write_path", path)]
            });
            mine.map(|(.., value)| if let DebugValue::Counter(n) = value { *n } else { 0 }).sum()
        };
        for (path, rows, sub_batches) in
            [("copy", 1_200 + 2_300, 2), ("merge", 1 + 5 + 50 + 1_200, 4), ("copy_then_merge", 1_100, 1)]
        {
            assert_eq!(counted("qi_timescale_written_rows_total", path), rows, "{path}");
            assert_eq!(counted("qi_timescale_written_sub_batches_total", path), sub_batches, "{path}");
        }
        let gauge = |name: &str| {
            let found = all.iter().find(|(key, ..)| key.key().name() == name);
            match found.map(|(.., value)| value) {
                Some(DebugValue::Gauge(value)) => value.into_inner(),
                other => panic!("{name}: {other:?}"),
            }
        };
        assert!(gauge("qi_timescale_connections_open") >= 1.0);
        for left in ["qi_timescale_connections_in_use", "qi_timescale_connections_limit"] {
            assert!(gauge(left).abs() < f64::EPSILON, "{left}: all connections are released");
        }
        Ok(())
    }
}
