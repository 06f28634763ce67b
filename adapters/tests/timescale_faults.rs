//! Faults provoked on a real server. Each fault has its error kind, and the store recovers without intervention.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod servers;
mod timescale_rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use futures::future::join_all;
use libtest_mimic::Arguments;
use qi_adapters::timescale::{TimescaleConfig, TimescaleStore};
use qi_core::layer::{Retry, RetryConfig};
use qi_core::store::{RangeQuery, StatsQuery};
use qi_core::{Error, ErrorKind, PriceStore, PriceStoreExt, PriceTick, Result, TimeRange, Timestamp};
use servers::{Spare, TestServer as _, namespace, spare_trial, trial};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use timescale_rig::{Server, drop_schema};

fn main() {
    let mut trials = Vec::new();
    for server in [Server::timescale(), Server::postgres()] {
        // The longest trial is the first, so that the others run beside it.
        trials.push(spare_trial(&server, "a_million_ticks_are_stored_once_across_five_kills", five_kills));
        trials.push(trial(&server, "a_wrong_password_is_unauthorized", wrong_password));
        trials.push(trial(&server, "an_unknown_database_is_a_config_error", unknown_database));
        trials.push(trial(&server, "a_role_without_rights_is_unauthorized", missing_permissions));
        trials.push(trial(&server, "a_held_lock_is_a_timeout", lock_timeout));
        trials.push(trial(&server, "a_slow_statement_is_a_timeout", statement_timeout));
        trials.push(trial(&server, "a_read_only_server_is_unavailable", read_only));
        trials.push(trial(&server, "an_exhausted_pool_is_overloaded", pool_exhausted));
        trials.push(trial(&server, "terminated_connections_are_unavailable_and_replaced", terminated));
        trials.push(spare_trial(&server, "a_failover_closes_the_pooled_connections", failover));
        trials.push(spare_trial(&server, "insert_is_complete_after_a_kill_during_a_copy", killed_in_copy));
        trials.push(spare_trial(&server, "a_full_disk_is_not_retried_and_recovers", disk_full));
    }
    let mut arguments = Arguments::from_args();
    // Most of the time of a trial is spent waiting for servers to start and stop.
    arguments.test_threads = arguments.test_threads.or(Some(4));
    libtest_mimic::run(&arguments, trials).exit()
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

/// Runs a check with a store and its schema, in a namespace that is dropped at the end.
async fn with_store<R: Future<Output = ()>>(
    server: &Server,
    change: impl FnOnce(&mut TimescaleConfig),
    check: impl FnOnce(TimescaleStore, String) -> R,
) {
    let schema = namespace();
    let mut config = server.config(&schema);
    change(&mut config);
    // The schema is created with the ordinary limits.
    let maker = TimescaleStore::open(server.config(&schema)).unwrap();
    maker.ensure_schema().await.unwrap();
    maker.close().await.unwrap();
    let store = TimescaleStore::open(config).unwrap();
    check(store.clone(), schema.clone()).await;
    store.close().await.unwrap();
    drop_schema(server.url(), &schema).await;
}

async fn wrong_password(server: Server) {
    let mut config = server.config("nowhere");
    config.password = Some("wrong".to_owned().into());
    config.pool.acquire_timeout = Duration::from_secs(1);
    let store = TimescaleStore::open(config).unwrap();
    let error = expect(store.ping().await, ErrorKind::Unauthorized, false);
    assert_eq!(error.code(), "store.timescale.login");
}

async fn unknown_database(server: Server) {
    let mut config = server.config("nowhere");
    config.database = Some("no_such_database".to_owned());
    let store = TimescaleStore::open(config).unwrap();
    expect(store.ping().await, ErrorKind::Config, false);
}

async fn missing_permissions(server: Server) {
    let role = namespace();
    let mut root = PgConnection::connect(server.url()).await.unwrap();
    let create = AssertSqlSafe(format!("CREATE ROLE {role} LOGIN PASSWORD 'pw'"));
    sqlx::query(create).execute(&mut root).await.unwrap();
    let change = |config: &mut TimescaleConfig| {
        config.user = Some(role.clone());
        config.password = Some("pw".to_owned().into());
    };
    with_store(&server, change, async |store, _| {
        // Without the permission to use the schema, access is rejected.
        expect(store.insert_ticks(&ticks("x:Y", 0, 1)).await, ErrorKind::Unauthorized, false);
    })
    .await;
    let schema = namespace();
    let owner = TimescaleStore::open(server.config(&schema)).unwrap();
    owner.ensure_schema().await.unwrap();
    let grant = AssertSqlSafe(format!("GRANT USAGE ON SCHEMA {schema} TO {role}"));
    sqlx::query(grant).execute(&mut root).await.unwrap();
    let mut config = server.config(&schema);
    change(&mut config);
    let guest = TimescaleStore::open(config).unwrap();
    let error = expect(guest.insert_ticks(&ticks("x:Y", 0, 1)).await, ErrorKind::Unauthorized, false);
    assert_eq!(error.code(), "store.timescale.permission");
    guest.close().await.unwrap();
    owner.close().await.unwrap();
    drop_schema(server.url(), &schema).await;
    sqlx::query(AssertSqlSafe(format!("DROP ROLE {role}"))).execute(&mut root).await.unwrap();
}

/// Holds a lock on the ticks that blocks all other statements while `check` runs.
async fn while_locked<R: Future<Output = ()>>(server: &Server, schema: &str, check: R) {
    let mut root = PgConnection::connect(server.url()).await.unwrap();
    let mut lock = root.begin().await.unwrap();
    let sql = AssertSqlSafe(format!("LOCK TABLE {schema}.ticks IN ACCESS EXCLUSIVE MODE"));
    sqlx::query(sql).execute(&mut *lock).await.unwrap();
    check.await;
    lock.rollback().await.unwrap();
}

async fn lock_timeout(server: Server) {
    with_store(
        &server,
        |config| config.server_limits.lock_timeout = Duration::from_millis(200),
        async |store, schema| {
            let batch = ticks("x:Y", 0, 1_000);
            while_locked(&server, &schema, async {
                let error = expect(store.insert_ticks(&batch).await, ErrorKind::Timeout, true);
                assert_eq!(error.code(), "store.timescale.lock_timeout");
            })
            .await;
            store.insert_ticks(&batch).await.unwrap();
        },
    )
    .await;
}

async fn statement_timeout(server: Server) {
    with_store(
        &server,
        |config| config.server_limits.statement_timeout = Duration::from_millis(300),
        async |store, schema| {
            let batch = ticks("x:Y", 0, 10);
            while_locked(&server, &schema, async {
                let error = expect(store.insert_ticks(&batch).await, ErrorKind::Timeout, true);
                assert_eq!(error.code(), "store.timescale.statement_timeout");
            })
            .await;
            store.insert_ticks(&batch).await.unwrap();
        },
    )
    .await;
}

async fn read_only(server: Server) {
    let change = |config: &mut TimescaleConfig| {
        let separator = if server.url().contains('?') { '&' } else { '?' };
        let url = format!("{}{separator}options=-c%20default_transaction_read_only=on", server.url());
        config.url = Some(url.into());
    };
    with_store(&server, change, async |store, _| {
        for batch in [ticks("x:Y", 0, 1), ticks("x:Y", 0, 5_000)] {
            let error = expect(store.insert_ticks(&batch).await, ErrorKind::Unavailable, true);
            assert_eq!(error.code(), "store.timescale.read_only");
        }
        let query = RangeQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
        assert!(store.ticks(&query).await.unwrap().items.is_empty());
    })
    .await;
}

async fn pool_exhausted(server: Server) {
    let change = |config: &mut TimescaleConfig| {
        config.pool.max_connections = 1;
        config.pool.acquire_timeout = Duration::from_millis(200);
    };
    with_store(&server, change, async |store, schema| {
        while_locked(&server, &schema, async {
            let (holder, batch) = (store.clone(), ticks("x:Y", 0, 10));
            let held = tokio::spawn(async move { holder.insert_ticks(&batch).await });
            tokio::time::sleep(Duration::from_millis(100)).await;
            let error = expect(store.ping().await, ErrorKind::Overloaded, true);
            assert_eq!(error.code(), "store.timescale.pool");
            // A call that is dropped midway releases its slot.
            held.abort();
            let _ = held.await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            store.ping().await.unwrap();
        })
        .await;
    })
    .await;
}

/// A proxy that routes new connections to a changeable address. Established connections stay.
#[derive(Clone)]
struct SwitchableProxy {
    port: u16,
    target: Arc<std::sync::Mutex<String>>,
}

impl SwitchableProxy {
    async fn new(target: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = Arc::new(std::sync::Mutex::new(target.to_owned()));
        let current = target.clone();
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let target = current.lock().unwrap().clone();
                tokio::spawn(async move {
                    let Ok(mut server) = tokio::net::TcpStream::connect(target).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { port, target }
    }

    fn switch_to(&self, target: &str) {
        target.clone_into(&mut self.target.lock().unwrap());
    }
}

/// Returns the `host:port` of a server's URL.
fn authority(url: &str) -> String {
    let rest = url.split_once('@').unwrap().1;
    rest.split(['/', '?']).next().unwrap().to_owned()
}

/// Fills the pool with connections to the current server, using inserts that wait for one lock.
async fn fill_pool(server: &Server, store: &Arc<dyn PriceStore>, name: &str, connections: usize) {
    let mut inserts = Vec::new();
    while_locked(server, "qi", async {
        inserts.extend((0..connections).map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.insert_ticks(&ticks("x:Y", 0, 1)).await })
        }));
        let mut root = PgConnection::connect(server.url()).await.unwrap();
        let waiting = "SELECT count(*) FROM pg_stat_activity \
                       WHERE application_name = $1 AND wait_event_type = 'Lock'";
        let mut count = 0_i64;
        while usize::try_from(count).unwrap() < connections {
            tokio::time::sleep(Duration::from_millis(10)).await;
            count = sqlx::query_scalar(waiting).bind(name).fetch_one(&mut root).await.unwrap();
        }
    })
    .await;
    for insert in inserts {
        insert.await.unwrap().unwrap();
    }
}

/// Makes a server read-only for its existing sessions, like a demoted primary, or writable again.
async fn set_read_only(server: &Server, on: bool) {
    let mut root = PgConnection::connect(server.url()).await.unwrap();
    let alter = format!("ALTER SYSTEM SET default_transaction_read_only = {}", if on { "on" } else { "off" });
    sqlx::query(AssertSqlSafe(alter)).execute(&mut root).await.unwrap();
    sqlx::query("SELECT pg_reload_conf()").execute(&mut root).await.unwrap();
    loop {
        let now: String =
            sqlx::query_scalar("SHOW default_transaction_read_only").fetch_one(&mut root).await.unwrap();
        if now == if on { "on" } else { "off" } {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Returns the number of ticks of the instrument on the server itself.
async fn count(server: &Server) -> u64 {
    let store = TimescaleStore::open(server.config("qi")).unwrap();
    let query = StatsQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
    let count = store.stats(&query).await.unwrap().map_or(0, |stats| stats.count());
    store.close().await.unwrap();
    count
}

async fn failover(server: Server, first: Spare) {
    const CONNECTIONS: usize = 6;
    let kind = server.kind().to_owned();
    let (second, url) = tokio::task::spawn_blocking(move || Spare::start(&kind).unwrap()).await.unwrap();
    let servers = [server.clone(), server.clone().with_address(url)];
    for server in &servers {
        let store = TimescaleStore::open(server.config("qi")).unwrap();
        store.ensure_schema().await.unwrap();
        store.insert_ticks(&ticks("x:Y", 0, 1)).await.unwrap();
        store.close().await.unwrap();
    }
    let addresses = servers.each_ref().map(|server| authority(server.url()));
    let switch = SwitchableProxy::new(&addresses[0]).await;
    let open = |name: &str| {
        let mut config = server.config("qi");
        config.host = Some("127.0.0.1".to_owned());
        config.port = Some(switch.port);
        config.application_name = Some(name.to_owned());
        config.pool.max_connections = u32::try_from(CONNECTIONS).unwrap();
        // Several sub-batches, so that an insert borrows a second connection.
        config.write.max_statement_records = 2;
        TimescaleStore::open(config).unwrap()
    };
    // One store without layers, and one store with the retries that every opened store has by default.
    let bare: Arc<dyn PriceStore> = Arc::new(open("bare"));
    let retries: Arc<dyn PriceStore> = Arc::new(Retry::new(open("retries"), RetryConfig::default()));
    // The old primary stays up and becomes read-only. Its sessions stay open.
    for (store, name) in [(&bare, "bare"), (&retries, "retries")] {
        fill_pool(&servers[0], store, name, CONNECTIONS).await;
    }
    set_read_only(&servers[0], true).await;
    switch.switch_to(&addresses[1]);
    let batches: Vec<_> = (1..=20).map(|n| ticks("x:Y", n * 10, 10)).collect();
    let mut failed = 0;
    for batch in &batches {
        while let Err(error) = bare.insert_ticks(batch).await {
            assert_eq!(error.code(), "store.timescale.read_only", "{}", error.report());
            failed += 1;
            assert!(failed <= 1, "only the first call reaches the old primary");
        }
    }
    assert_eq!(failed, 1, "the first call reached the old primary");
    for batch in &batches {
        retries.insert_ticks(batch).await.unwrap();
    }
    let stored = [count(&servers[0]).await, count(&servers[1]).await];
    assert_eq!(stored, [1, 201], "the new primary has every tick");
    // The new primary dies, and the old primary takes over.
    for (store, name) in [(&bare, "bare"), (&retries, "retries")] {
        fill_pool(&servers[1], store, name, CONNECTIONS).await;
    }
    set_read_only(&servers[0], false).await;
    let second = second.run_action("kill").await;
    switch.switch_to(&addresses[0]);
    for store in [&bare, &retries] {
        for batch in &batches {
            store.insert_ticks(batch).await.unwrap();
        }
        store.close().await.unwrap();
    }
    assert_eq!(count(&servers[0]).await, 201);
    drop((first, second));
}

async fn terminated(server: Server) {
    let name = namespace();
    let change = |config: &mut TimescaleConfig| config.application_name = Some(name.clone());
    with_store(&server, change, async |store, _| {
        let done = Arc::new(AtomicBool::new(false));
        let killer = tokio::spawn({
            let (done, url, name) = (done.clone(), server.url().to_owned(), name.clone());
            async move {
                let mut root = PgConnection::connect(&url).await.unwrap();
                let mut killed = 0;
                while !done.load(Ordering::Relaxed) {
                    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                               WHERE application_name = $1";
                    killed +=
                        sqlx::query_scalar::<_, i64>(sql).bind(&name).fetch_one(&mut root).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(150)).await;
                }
                killed
            }
        });
        let mut failed = 0;
        for part in 0..40 {
            let batch = ticks("x:Y", part * 5_000, 5_000);
            while let Err(error) = store.insert_ticks(&batch).await {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.report());
                assert!(error.retry().is_retryable());
                failed += 1;
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(killer.await.unwrap() > 0 && failed > 0, "terminated connections caused no error");
        let query = StatsQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
        assert_eq!(store.stats(&query).await.unwrap().unwrap().count(), 200_000);
    })
    .await;
}

async fn killed_in_copy(server: Server, spare: Spare) {
    let mut config = server.config("qi");
    config.max_batch = 1_000_000;
    config.pool.acquire_timeout = Duration::from_millis(500);
    let store = TimescaleStore::open(config).unwrap();
    store.ensure_schema().await.unwrap();
    let batch = Arc::new(ticks("x:Y", 0, 400_000));
    let write = tokio::spawn({
        let (store, batch) = (store.clone(), batch.clone());
        async move { store.insert_ticks(&batch).await }
    });
    tokio::time::sleep(Duration::from_millis(150)).await;
    let spare = spare.run_action("kill").await;
    expect(write.await.unwrap(), ErrorKind::Unavailable, true);
    expect(store.ping().await, ErrorKind::Unavailable, true);
    let spare = spare.run_action("start").await;
    store.wait_ready(Duration::from_secs(20)).await.unwrap();
    store.insert_ticks(&batch).await.unwrap();
    let query = RangeQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
    let stored: Vec<PriceTick> = store.tick_stream(query).try_collect().await.unwrap();
    assert!(stored == *batch, "{} stored of {}", stored.len(), batch.len());
    store.close().await.unwrap();
    drop(spare);
}

async fn disk_full(server: Server, spare: Spare) {
    let (folder, spare) =
        tokio::task::spawn_blocking(move || (spare.run_action_blocking("disk 8m"), spare)).await.unwrap();
    let store = TimescaleStore::open(server.config("qi")).unwrap();
    store.ensure_schema().await.unwrap();
    let mut root = PgConnection::connect(server.url()).await.unwrap();
    for sql in [
        format!("CREATE TABLESPACE small LOCATION '{folder}'"),
        "ALTER TABLE qi.ticks SET TABLESPACE small".to_owned(),
        "ALTER TABLE qi.ticks SET (autovacuum_enabled = false)".to_owned(),
    ] {
        sqlx::query(AssertSqlSafe(sql)).execute(&mut root).await.unwrap();
    }
    let mut written = 0;
    let error = loop {
        match store.insert_ticks(&ticks("x:Y", written, 10_000)).await {
            Ok(_) => written += 10_000,
            Err(error) => break error,
        }
        assert!(written < 1_000_000, "one million ticks exceed 8 MiB");
    };
    assert!(written > 0, "{}", error.report());
    let error = expect::<()>(Err(error), ErrorKind::Unavailable, false);
    assert_eq!(error.code(), "store.timescale.disk_full");
    // Existing records can be read, and small writes fail in the same way.
    let query = StatsQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
    assert!(store.stats(&query).await.unwrap().unwrap().count() >= written);
    let spare = spare.run_action("disk 256m").await;
    // With free space, the same batch is inserted without further intervention.
    store.insert_ticks(&ticks("x:Y", written, 10_000)).await.unwrap();
    assert_eq!(store.stats(&query).await.unwrap().unwrap().count(), written + 10_000);
    root.close().await.unwrap();
    store.close().await.unwrap();
    drop(spare);
}

async fn five_kills(server: Server, spare: Spare) {
    const TASKS: usize = 4;
    const EACH: u64 = 250_000;
    const BATCH: u64 = 5_000;
    let mut config = server.config("qi");
    config.pool.acquire_timeout = Duration::from_millis(500);
    let store = TimescaleStore::open(config).unwrap();
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
    let url = server.url().to_owned();
    let killer = tokio::spawn({
        let written = written.clone();
        async move {
            let mut spare = spare;
            for kill in 1..=5 {
                // The kills are spread over the work, and connections are terminated in between.
                while written.load(Ordering::Relaxed) < total * kill / 7 {
                    if let Ok(mut root) = PgConnection::connect(&url).await {
                        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                                   WHERE pid <> pg_backend_pid() AND random() < 0.3 AND backend_type = 'client backend'";
                        let _ = sqlx::query(sql).execute(&mut root).await;
                    }
                    tokio::time::sleep(Duration::from_millis(40)).await;
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
    assert!(failures.load(Ordering::Relaxed) >= 5, "the kills were felt");
    for task in 0..TASKS {
        let name = format!("x:T{task}");
        let query = RangeQuery::new(name.parse().unwrap(), TimeRange::ALL);
        let stored: Vec<PriceTick> = store.tick_stream(query).try_collect().await.unwrap();
        assert!(stored == ticks(&name, 0, EACH), "{name}: {} stored of {EACH}", stored.len());
    }
    store.close().await.unwrap();
    drop(spare);
}
