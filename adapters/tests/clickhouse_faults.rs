//! Faults provoked on a real server. Each fault has its error kind, and the store recovers without intervention.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod clickhouse_rig;
mod servers;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clickhouse_rig::Server;
use futures::TryStreamExt;
use futures::future::join_all;
use libtest_mimic::Arguments;
use qi_adapters::clickhouse::{ClickHouseConfig, ClickHouseStore};
use qi_core::store::{RangeQuery, StatsQuery};
use qi_core::{Error, ErrorKind, PriceStore, PriceStoreExt, PriceTick, Result, TimeRange, Timestamp};
use servers::{Spare, namespace, spare_trial, trial};

fn main() {
    let server = Server::clickhouse();
    let trials = vec![
        trial(&server, "a_wrong_password_is_unauthorized", wrong_password),
        trial(&server, "an_unknown_database_is_a_config_error", unknown_database),
        trial(&server, "an_unknown_setting_is_a_config_error", unknown_setting),
        trial(&server, "an_unknown_cluster_is_a_config_error", unknown_cluster),
        trial(&server, "a_slow_query_is_a_timeout", timeout),
        trial(&server, "a_query_over_its_memory_limit_is_not_retried", memory),
        trial(&server, "too_many_parts_is_retryable", parts),
        trial(&server, "too_many_parts_in_total_is_retryable", parts_in_total),
        trial(&server, "too_many_partitions_is_not_retryable", partitions),
        trial(&server, "requests_over_the_limit_wait_and_are_overloaded", busy),
        spare_trial(&server, "insert_is_complete_after_a_kill_during_an_insert", killed_in_insert),
        spare_trial(&server, "a_million_ticks_are_stored_once_across_five_kills", five_kills),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

fn ticks(instrument: &str, from: u64, count: u64) -> Vec<PriceTick> {
    let start = Timestamp::from_secs(1_700_000_000).unwrap();
    let name: qi_core::Instrument = instrument.parse().unwrap();
    let tick = |n: u64| {
        let ts = start.checked_add(Duration::from_millis(n * 100)).unwrap();
        let price = format!("{}.{n:06}", 100 + n % 7).parse().unwrap();
        PriceTick::new(name.clone(), ts, n, price).unwrap().with_quantity("0.25".parse().ok())
    };
    (from..from + count).map(tick).collect()
}

fn expect<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, retried: bool) -> Error {
    let error = result.unwrap_err();
    assert_eq!((error.kind(), error.retry().is_retryable()), (kind, retried), "{}", error.report());
    error
}

/// Runs a check with a store and its tables, which are dropped at the end. The tables are created
/// with the ordinary limits.
async fn with_store<R: Future<Output = ()>>(
    server: &Server,
    change: impl FnOnce(&mut ClickHouseConfig),
    check: impl FnOnce(ClickHouseStore, ClickHouseStore, String) -> R,
) {
    let prefix = format!("{}_", namespace());
    let mut config = server.config(&prefix);
    let direct = ClickHouseStore::open(config.clone()).unwrap();
    direct.ensure_schema().await.unwrap();
    change(&mut config);
    let store = ClickHouseStore::open(config).unwrap();
    check(store.clone(), direct.clone(), prefix.clone()).await;
    store.close().await.unwrap();
    direct.close().await.unwrap();
    server.drop_tables(&prefix).await;
}

async fn wrong_password(server: Server) {
    let mut config = server.config("");
    config.password = Some("wrong".to_owned().into());
    let store = ClickHouseStore::open(config).unwrap();
    let error = expect(store.ping().await, ErrorKind::Unauthorized, false);
    assert_eq!(error.code(), "store.clickhouse.login");
}

async fn unknown_database(server: Server) {
    let mut config = server.config("");
    "no_such_database".clone_into(&mut config.database);
    let store = ClickHouseStore::open(config).unwrap();
    expect(store.ping().await, ErrorKind::Config, false);
}

async fn unknown_setting(server: Server) {
    let mut config = server.config("");
    config.settings.insert("no_such_setting".to_owned(), "1".to_owned());
    let store = ClickHouseStore::open(config).unwrap();
    expect(store.ping().await, ErrorKind::Config, false);
}

async fn unknown_cluster(server: Server) {
    let mut config = server.config(&format!("{}_", namespace()));
    config.cluster = Some("no_such_cluster".to_owned());
    let store = ClickHouseStore::open(config).unwrap();
    expect(store.ensure_schema().await, ErrorKind::Config, false);
}

async fn timeout(server: Server) {
    with_store(
        &server,
        |config| config.server_limits.statement_timeout = Duration::from_millis(200),
        async |store, _, _| {
            let slow = "SELECT sum(sleepEachRow(0.1)) FROM numbers(100) SETTINGS max_block_size = 1, \
                        function_sleep_max_microseconds_per_block = 100000000";
            let error = store.client().query_raw(slow).fetch_one::<u64>().await.unwrap_err();
            // The server's report of its limit, and the adapter's error.
            assert!(error.to_string().contains("Code: 159"), "{error}");
            store.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap();
        },
    )
    .await;
    let change = |config: &mut ClickHouseConfig| {
        config.server_limits.statement_timeout = Duration::from_millis(20);
        config.settings.insert("max_threads".to_owned(), "1".to_owned());
    };
    with_store(&server, change, async |store, direct, _| {
        for part in ticks("x:Y", 0, 900_000).chunks(30_000) {
            direct.insert_ticks(part).await.unwrap();
        }
        let query = StatsQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
        let error = expect(store.stats(&query).await, ErrorKind::Timeout, true);
        assert_eq!(error.code(), "store.clickhouse.timeout");
        assert_eq!(direct.stats(&query).await.unwrap().unwrap().count(), 900_000);
    })
    .await;
}

async fn memory(server: Server) {
    with_store(
        &server,
        |config| {
            config.server_limits.memory_bytes = 2_000_000;
            // By default, the server does not count the first 4 MiB of each thread.
            config.settings.insert("max_untracked_memory".into(), "0".into());
        },
        async |store, direct, _| {
            for part in ticks("x:Y", 0, 300_000).chunks(30_000) {
                direct.insert_ticks(part).await.unwrap();
            }
            let query = StatsQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
            let error = expect(store.stats(&query).await, ErrorKind::Internal, false);
            assert_eq!(error.code(), "store.clickhouse.query_memory");
            assert_eq!(direct.stats(&query).await.unwrap().unwrap().count(), 300_000);
        },
    )
    .await;
}

async fn parts(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, _, prefix| {
            let limits = format!(
                "ALTER TABLE {prefix}ticks MODIFY SETTING parts_to_throw_insert = 2, parts_to_delay_insert = 1, \
                 max_delay_to_insert = 1"
            );
            store.client().query_raw(&format!("SYSTEM STOP MERGES {prefix}ticks")).execute().await.unwrap();
            store.client().query_raw(&limits).execute().await.unwrap();
            let mut rejected = None;
            for part in 0..20 {
                if let Err(error) = store.insert_ticks(&ticks("x:Y", part * 10, 10)).await {
                    rejected = Some((part, error));
                    break;
                }
            }
            let (part, error) = rejected.expect("parts without merges");
            let error = expect::<()>(Err(error), ErrorKind::Overloaded, true);
            assert_eq!(error.code(), "store.clickhouse.parts");
            store.client().query_raw(&format!("SYSTEM START MERGES {prefix}ticks")).execute().await.unwrap();
            store.client().query_raw(&format!("OPTIMIZE TABLE {prefix}ticks FINAL")).execute().await.unwrap();
            store.insert_ticks(&ticks("x:Y", part * 10, 10)).await.unwrap();
            let query = StatsQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
            assert_eq!(store.stats(&query).await.unwrap().unwrap().count(), (part + 1) * 10);
        },
    )
    .await;
}

async fn parts_in_total(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, _, prefix| {
            let run = async |sql: String| store.client().query_raw(&sql).execute().await.unwrap();
            run(format!("ALTER TABLE {prefix}ticks MODIFY SETTING max_parts_in_total = 2")).await;
            run(format!("SYSTEM STOP MERGES {prefix}ticks")).await;
            let mut last = Ok(());
            for part in 0..20 {
                last = store.insert_ticks(&ticks("x:Y", part * 10, 10)).await.map(drop);
                if last.is_err() {
                    break;
                }
            }
            let error = expect(last, ErrorKind::Overloaded, true);
            assert_eq!(error.code(), "store.clickhouse.parts");
            run(format!("SYSTEM START MERGES {prefix}ticks")).await;
            run(format!("OPTIMIZE TABLE {prefix}ticks FINAL")).await;
            store.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap();
        },
    )
    .await;
}

/// The adapter's inserts have no such limit (`write::batch_may_span_150_months`), so the insert is custom SQL. Its error
/// text distinguishes the two meanings of code 252.
async fn partitions(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, _, prefix| {
            let insert = format!(
                "INSERT INTO {prefix}ticks (exchange, symbol, ts, seq, price) \
                 SELECT 'x', 'Y', toDateTime64('2020-01-01 00:00:00', 6, 'UTC') + toIntervalMonth(number), 0, 1 \
                 FROM numbers(12) SETTINGS max_partitions_per_insert_block = 2"
            );
            let error = store.client().query_raw(&insert).execute().await.unwrap_err().to_string();
            assert!(error.contains("Code: 252") && error.contains("partitions"), "{error}");
            assert!(!error.contains("parts in"), "{error}");
        },
    )
    .await;
}

async fn busy(server: Server) {
    let change = |config: &mut ClickHouseConfig| {
        config.pool.max_connections = 1;
        config.pool.acquire_timeout = Duration::from_millis(100);
        config.max_batch = 1_000_000;
    };
    with_store(&server, change, async |store, _, _| {
        let (holder, batch) = (store.clone(), ticks("x:Y", 0, 800_000));
        let held = tokio::spawn(async move { holder.insert_ticks(&batch).await });
        // The batch is checked before the call waits for a permit.
        let rejected = loop {
            assert!(!held.is_finished(), "no ping waited for the insert");
            tokio::time::sleep(Duration::from_millis(50)).await;
            if let rejected @ Err(_) = store.ping().await {
                break rejected;
            }
        };
        let error = expect(rejected, ErrorKind::Overloaded, true);
        assert_eq!(error.code(), "store.clickhouse.pool");
        // A call that is dropped midway releases its permit.
        held.abort();
        let _ = held.await;
        store.ping().await.unwrap();
    })
    .await;
}

async fn killed_in_insert(server: Server, spare: Spare) {
    let mut config = server.config("");
    config.max_batch = 1_000_000;
    let store = ClickHouseStore::open(config).unwrap();
    store.ensure_schema().await.unwrap();
    let batch = Arc::new(ticks("x:Y", 0, 1_000_000));
    let write = tokio::spawn({
        let (store, batch) = (store.clone(), batch.clone());
        async move { store.insert_ticks(&batch).await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let spare = spare.run_action("kill").await;
    expect(write.await.unwrap(), ErrorKind::Unavailable, true);
    expect(store.ping().await, ErrorKind::Unavailable, true);
    let spare = spare.run_action("start").await;
    store.wait_ready(Duration::from_secs(20)).await.unwrap();
    store.insert_ticks(&batch).await.unwrap();
    let query = RangeQuery::new("x:Y".parse().unwrap(), TimeRange::ALL).with_limit(10_000).unwrap();
    let stored: Vec<PriceTick> = store.tick_stream(query).try_collect().await.unwrap();
    assert!(stored == *batch, "{} stored of {}", stored.len(), batch.len());
    drop(spare);
}

async fn five_kills(server: Server, spare: Spare) {
    const TASKS: usize = 4;
    const EACH: u64 = 250_000;
    const BATCH: u64 = 5_000;
    let store = ClickHouseStore::open(server.config("")).unwrap();
    store.ensure_schema().await.unwrap();
    let (written, failures) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let writers = (0..TASKS).map(|task| {
        let (store, written, failures) = (store.clone(), written.clone(), failures.clone());
        tokio::spawn(async move {
            for part in 0..EACH / BATCH {
                let batch = ticks(&format!("x:T{task}"), part * BATCH, BATCH);
                while let Err(error) = store.insert_ticks(&batch).await {
                    assert!(error.retry().is_retryable(), "{}", error.report());
                    failures.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                written.fetch_add(batch.len(), Ordering::Relaxed);
            }
        })
    });
    let writers = join_all(writers);
    let total = TASKS * usize::try_from(EACH).unwrap();
    let killer = tokio::spawn({
        let written = written.clone();
        async move {
            let mut spare = spare;
            for kill in 1..=5 {
                // The kills are spread over the work.
                while written.load(Ordering::Relaxed) < total * kill / 7 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                spare = spare.run_action("kill").await;
                tokio::time::sleep(Duration::from_millis(200)).await;
                spare = spare.run_action("start").await;
            }
            spare
        }
    });
    for writer in writers.await {
        writer.unwrap();
    }
    let spare = killer.await.unwrap();
    assert!(failures.load(Ordering::Relaxed) >= 5, "the kills caused no error");
    for task in 0..TASKS {
        let name = format!("x:T{task}");
        let query = RangeQuery::new(name.parse().unwrap(), TimeRange::ALL).with_limit(10_000).unwrap();
        let stored: Vec<PriceTick> = store.tick_stream(query).try_collect().await.unwrap();
        assert!(stored == ticks(&name, 0, EACH), "{name}: {} stored of {EACH}", stored.len());
    }
    drop(spare);
}
