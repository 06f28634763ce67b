//! The behaviour of the adapter on a server beyond the port: schema, columns, error codes, retention, and other stores.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod clickhouse_rig;
mod servers;
#[cfg(feature = "timescale")]
mod timescale_rig;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clickhouse_rig::Server;
use futures::TryStreamExt;
use libtest_mimic::Arguments;
use qi_adapters::clickhouse::{ClickHouseConfig, ClickHouseStore};
use qi_core::Datasets;
use qi_core::store::{
    DeleteQuery, LatestBarsQuery, LatestQuery, RangeQuery, Retention, SeriesRequest, StatsQuery,
};
use qi_core::{
    Bar, BarValues, ErrorKind, Instrument, Interval, PriceStore, PriceStoreExt, PriceTick, Selection,
    TimeRange, Timestamp,
};
use servers::{Spare, namespace, run, runs_long_tests, spare_trial, trial};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The instruction to a child process: call `ensure_schema` on this server with this prefix, and exit.
const CHILD: &str = "QI_TEST_ENSURE_SCHEMA";

/// The retention of ticks in the schema of the child processes, in hours.
const FIFTY_YEARS: Duration = Duration::from_hours(50 * 366 * 24);

fn main() {
    if let Ok(words) = std::env::var(CHILD) {
        return child(&words);
    }
    let server = Server::clickhouse();
    #[cfg_attr(not(feature = "timescale"), expect(unused_mut, reason = "one more with the other adapter"))]
    let mut trials = vec![
        trial(&server, "eight_processes_create_one_schema_in_a_new_database", eight_processes),
        trial(&server, "the_table_columns_match_the_code", columns),
        trial(&server, "a_column_of_another_type_rejects_rows", other_type),
        trial(&server, "error_code_names_match_the_server", codes),
        trial(&server, "retention_is_a_changeable_ttl", ages),
        trial(&server, "a_retention_beyond_2106_removes_nothing", retention_beyond_2106),
        trial(&server, "a_database_name_may_be_a_number", numeric_database_name),
        trial(&server, "block_deduplication_hides_no_batch", blocks),
        trial(&server, "a_profile_with_overflow_mode_break_is_overridden", overridden_profile),
        trial(&server, "latest_during_deletions_is_never_absent", latest_during_deletions),
        trial(&server, "latest_of_few_owners_takes_few_requests", latest_of_few),
        trial(&server, "latest_of_many_owners_equals_latest_of_each", latest_of_many),
        trial(&server, "latest_returns_every_owner_without_recent_records", latest_of_inactive),
        trial(&server, "latest_is_exact_in_a_session_with_another_time_zone", latest_in_another_time_zone),
        trial(&server, "new_tables_have_small_compressed_blocks", block_size),
        trial(&server, "series_and_latest_read_few_rows", few_rows),
        trial(&server, "an_insert_of_many_years_creates_few_parts", few_parts),
        trial(&server, "the_documented_statements_run", guide),
        trial(&server, "a_purge_drops_entire_partitions", purge),
        trial(&server, "close_waits_for_calls_in_progress", close_drains),
        trial(&server, "dropped_writes_leave_no_partial_records", dropped_writes),
        trial(&server, "custom_sql_uses_the_client", custom_sql),
        spare_trial(
            &server,
            "the_development_server_reads_no_file_outside_its_folder",
            files_of_development_server,
        ),
        spare_trial(&server, "the_grants_of_the_hardening_page_are_enough", grants),
    ];
    #[cfg(feature = "timescale")]
    trials.push(difference::trial(&server));
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

/// The server rejects a statement that reads more rows than this store allows.
async fn few_rows(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, config| {
            let names = ["x:Y", "x:Z"];
            for name in names {
                for part in ticks(name, 0, 200_000).chunks(config.max_batch) {
                    store.insert_ticks(part).await.unwrap();
                }
            }
            let mut limited = config.clone();
            limited.settings.insert("max_rows_to_read".to_owned(), "50000".to_owned());
            let limited = ClickHouseStore::open(limited).unwrap();
            let all = StatsQuery::new(names[0].parse().unwrap(), TimeRange::ALL);
            assert!(limited.stats(&all).await.is_err(), "the limit applies");
            let page = limited.series(&SeriesRequest::new(PriceTick::DATASET)).await.unwrap();
            let last = ticks(names[0], 199_999, 1);
            assert_eq!(page.items.len(), 2);
            assert!(page.items.iter().all(|series| series.last == last[0].ts()), "{page:?}");
            for name in names {
                let latest = limited.latest_tick(&name.parse().unwrap()).await.unwrap();
                assert_eq!(latest.as_slice(), ticks(name, 199_999, 1));
            }
            let latest = limited.latest_ticks(&LatestQuery::new(Selection::All)).await.unwrap();
            assert_eq!(latest.items, names.map(|name| ticks(name, 199_999, 1)).concat());
        },
    )
    .await;
}

/// The maximum number of parts of a request with consecutive records. Its 12 periods can begin and end within a partition.
const MAX_PARTS: u64 = 13;

/// The maximum number of parts of a request with sparse records. Each of its 12 periods can touch three months.
const MAX_SPARSE_PARTS: u64 = 36;

/// Returns the number of parts that an insert adds to a table.
async fn added_parts<T>(
    store: &ClickHouseStore,
    table: &str,
    insert: impl Future<Output = qi_core::Result<T>>,
) -> u64 {
    let sql = format!("SELECT count() FROM system.parts WHERE active AND table = '{table}'");
    let count = async || store.client().query_raw(&sql).fetch_one::<u64>().await.unwrap();
    let before = count().await;
    insert.await.unwrap();
    count().await - before
}

/// Returns a bar whose prices are all 1.
fn flat_bar(name: Instrument, interval: Interval, open_time: Timestamp) -> Bar {
    let one = "1".parse().unwrap();
    let values = BarValues {
        open: one,
        high: one,
        low: one,
        close: one,
        volume: None,
        quote_volume: None,
        count: None,
    };
    Bar::new(name, interval, open_time, values).unwrap()
}

/// Writes backfills of ten years while the server merges no parts. `QI_LONG_TESTS=1` writes 1,000 instruments.
async fn few_parts(server: Server) {
    let (counter, url) = CountingProxy::in_front_of(server.url()).await;
    let requests = counter.requests.clone();
    let counting = tokio::spawn(counter.run());
    with_store(
        &server,
        |config| config.url = Some(url.into()),
        async |store, config| {
            let [bar_table, tick_table] =
                ["bars", "ticks"].map(|name| format!("{}{name}", config.table_prefix));
            for table in [&bar_table, &tick_table] {
                sql(&store, &format!("SYSTEM STOP MERGES {table}")).await;
            }
            let name = |n: u64| -> Instrument { format!("x:A{n:04}").parse().unwrap() };
            let day = |n: i64| Timestamp::from_secs(n * 86_400).unwrap();
            // From 2014-01-01 to 2023-12-29.
            let days = 16_071..19_721;
            // An import writes one instrument after the other. Each batch is one request.
            let instruments: u64 = if runs_long_tests() { 1_000 } else { 100 };
            for first in (0..instruments).step_by(8) {
                let batch: Vec<Bar> = (first..instruments.min(first + 8))
                    .flat_map(|n| days.clone().map(move |d| flat_bar(name(n), Interval::D1, day(d))))
                    .collect();
                let added = added_parts(&store, &bar_table, store.insert_bars(&batch)).await;
                assert!((1..=MAX_PARTS).contains(&added), "{added} parts for {} bars", batch.len());
            }
            // These days are in 123 periods of 30 days, so a batch is 11 requests.
            let one = "1".parse().unwrap();
            let batch: Vec<PriceTick> = (0..5)
                .flat_map(|n| days.clone().map(move |d| PriceTick::new(name(n), day(d), 0, one).unwrap()))
                .collect();
            requests.store(0, Ordering::SeqCst);
            let added = added_parts(&store, &tick_table, store.insert_ticks(&batch)).await;
            let sent = requests.load(Ordering::SeqCst);
            assert!(sent >= 11 && added <= 11 * MAX_PARTS, "{added} parts, {sent} requests");
            // The first, a middle and the last day of 12 distant periods: one request.
            let batch: Vec<PriceTick> = (0..12)
                .flat_map(|n| [0, 15, 29].map(|d| 30 * (1 + 12 * n) + d))
                .map(|d| PriceTick::new(name(0), day(d), 0, one).unwrap())
                .collect();
            let added = added_parts(&store, &tick_table, store.insert_ticks(&batch)).await;
            assert!((MAX_PARTS + 1..=MAX_SPARSE_PARTS).contains(&added), "{added} parts for sparse ticks");
        },
    )
    .await;
    counting.abort();
}

async fn count(store: &ClickHouseStore, instrument: &str) -> u64 {
    let query = StatsQuery::new(instrument.parse().unwrap(), TimeRange::ALL);
    store.stats(&query).await.unwrap().map_or(0, |stats| stats.count())
}

async fn stored(store: &ClickHouseStore, instrument: &str) -> Vec<PriceTick> {
    let query = RangeQuery::new(instrument.parse().unwrap(), TimeRange::ALL).with_limit(10_000).unwrap();
    store.tick_stream(query).try_collect().await.unwrap()
}

/// Runs a check with a store and its tables, which are dropped at the end.
async fn with_store<R: Future<Output = ()>>(
    server: &Server,
    change: impl FnOnce(&mut ClickHouseConfig),
    check: impl FnOnce(ClickHouseStore, ClickHouseConfig) -> R,
) {
    let mut config = server.config(&format!("{}_", namespace()));
    change(&mut config);
    let store = ClickHouseStore::open(config.clone()).unwrap();
    store.ensure_schema().await.unwrap();
    check(store.clone(), config.clone()).await;
    store.close().await.unwrap();
    server.drop_tables(&config.table_prefix).await;
}

async fn sql(store: &ClickHouseStore, text: &str) {
    store.client().query_raw(text).execute().await.unwrap_or_else(|error| panic!("{text}: {error}"));
}

async fn eight_processes(server: Server) {
    let database = namespace();
    let started: Vec<_> = (0..8)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .env(CHILD, format!("{database} {}", server.url()))
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for process in started {
        let out = tokio::task::spawn_blocking(|| process.wait_with_output().unwrap()).await.unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let mut config = server.config("");
    config.database.clone_from(&database);
    config.retention.set("ticks", FIFTY_YEARS);
    let store = ClickHouseStore::open(config).unwrap();
    assert!(store.ensure_schema().await.unwrap().applied.is_empty());
    assert_eq!(count(&store, "x:Y").await, 10);
    sql(&store, &format!("DROP DATABASE {database} SYNC")).await;
}

fn child(words: &str) {
    let (database, url) = words.split_once(' ').unwrap();
    let mut config = ClickHouseConfig::from_url(url);
    database.clone_into(&mut config.database);
    config.retention.set("ticks", FIFTY_YEARS);
    run(async {
        let store = ClickHouseStore::open(config).unwrap();
        store.ensure_schema().await.unwrap_or_else(|error| panic!("{}", error.report()));
        store.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap();
        store.close().await.unwrap();
    })
    .unwrap();
}

async fn columns(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, _| {
            for dataset in Datasets::standard().iter() {
                let expected = ClickHouseStore::expected_columns(dataset);
                assert_eq!(store.columns(dataset).await.unwrap(), expected, "{dataset}");
            }
        },
    )
    .await;
}

async fn other_type(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, config| {
            let table = format!("{}ticks", config.table_prefix);
            sql(&store, &format!("ALTER TABLE {table} MODIFY COLUMN price Decimal(38, 10)")).await;
            let error = store.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::SchemaMismatch, "{}", error.report());
            sql(&store, &format!("ALTER TABLE {table} DROP COLUMN side")).await;
            let error = store.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::SchemaMismatch, "{}", error.report());
        },
    )
    .await;
}

async fn codes(server: Server) {
    let store = ClickHouseStore::open(server.config("")).unwrap();
    for (code, name) in ClickHouseStore::known_codes() {
        let named: String = store
            .client()
            .query_raw(&format!("SELECT toString(errorCodeToName({code}))"))
            .fetch_one()
            .await
            .unwrap();
        assert_eq!(named, name, "{code}");
    }
}

async fn guide(server: Server) {
    let page = include_str!("../../docs/backends/clickhouse.md");
    let blocks: Vec<_> =
        page.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 3, "the page has its statements");
    with_store(
        &server,
        |_| (),
        async |store, _| {
            store.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap();
            for block in blocks {
                let text = block.trim().trim_end_matches(';');
                let rows = store.client().query_raw(text).fetch_bytes("JSONEachRow").unwrap().collect().await;
                let rows = rows.unwrap_or_else(|error| panic!("{block}: {error}"));
                assert!(!rows.is_empty() || !block.contains("system.parts"), "no rows: {block}");
            }
        },
    )
    .await;
}

async fn ages(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, config| {
            let mut aged = config.clone();
            aged.retention.set("ticks", Duration::from_hours(48));
            let other = ClickHouseStore::open(aged.clone()).unwrap();
            let rule = Retention::Age(PriceTick::DATASET, Duration::from_hours(48));
            assert_eq!(other.info().retention, [rule]);
            // Another version of a service may have another retention. Only a migration changes it.
            let report = other.ensure_schema().await.unwrap();
            assert_eq!(
                (report.applied, report.differs),
                (vec![], vec!["retention of ticks after 2d".into()])
            );
            assert_eq!(other.migrate_schema().await.unwrap().applied, ["retention of ticks after 2d"]);
            let report = other.migrate_schema().await.unwrap();
            assert_eq!((report.applied, report.differs), (vec![], vec![]), "it is there");
            aged.retention.set("ticks", Duration::from_hours(24));
            let third = ClickHouseStore::open(aged).unwrap();
            assert_eq!(third.migrate_schema().await.unwrap().applied, ["retention of ticks after 1d"]);
            // Ticks of 2023 are removed when parts are merged. Current ticks stay.
            let now = Timestamp::from_micros(
                i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_micros()).unwrap(),
            )
            .unwrap();
            let fresh = PriceTick::new("x:NEW".parse().unwrap(), now, 1, "1".parse().unwrap()).unwrap();
            third.insert_ticks(std::slice::from_ref(&fresh)).await.unwrap();
            third.insert_ticks(&ticks("x:OLD", 0, 10)).await.unwrap();
            sql(&store, &format!("OPTIMIZE TABLE {}ticks FINAL", config.table_prefix)).await;
            assert_eq!(count(&third, "x:OLD").await, 0);
            assert_eq!(count(&third, "x:NEW").await, 1);
        },
    )
    .await;
}

/// A TTL of the server ends in 2106 and wraps to 1970.
async fn retention_beyond_2106(server: Server) {
    let change = |config: &mut ClickHouseConfig| config.retention.set("ticks", Duration::from_hours(48));
    with_store(&server, change, async |store, config| {
        let far = [4_295_000_000, 5_680_281_600, 9_214_646_399].map(|secs| {
            let time = Timestamp::from_secs(secs).unwrap();
            PriceTick::new("x:FAR".parse().unwrap(), time, 1, "1".parse().unwrap()).unwrap()
        });
        store.insert_ticks(&far).await.unwrap();
        let table = format!("{}ticks", config.table_prefix);
        sql(&store, &format!("OPTIMIZE TABLE {table} FINAL")).await;
        assert_eq!(stored(&store, "x:FAR").await, far);
        let mut long = config.clone();
        long.retention.set("ticks", Duration::from_hours(878_400));
        let store = ClickHouseStore::open(long).unwrap();
        store.migrate_schema().await.unwrap();
        assert!(store.migrate_schema().await.unwrap().applied.is_empty(), "it is there");
        store.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap();
        sql(&store, &format!("OPTIMIZE TABLE {table} FINAL")).await;
        assert_eq!(count(&store, "x:Y").await, 10, "a hundred years are not over");
    })
    .await;
}

async fn numeric_database_name(server: Server) {
    let database = format!("{}", std::process::id());
    let mut config = server.config("");
    config.database.clone_from(&database);
    let store = ClickHouseStore::open(config).unwrap();
    store.ensure_schema().await.unwrap();
    store.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap();
    assert_eq!(count(&store, "x:Y").await, 10);
    let one = Selection::only(["x:Y".parse().unwrap()]).unwrap();
    store.delete_range(&DeleteQuery::ticks(one, TimeRange::ALL)).await.unwrap();
    store.purge_before(PriceTick::DATASET, Timestamp::from_secs(1_800_000_000).unwrap()).await.unwrap();
    assert_eq!(count(&store, "x:Y").await, 0);
    sql(&store, &format!("DROP DATABASE `{database}` SYNC")).await;
}

/// By default, replicated tables do not store a block with a known checksum again, even if its rows were deleted.
async fn blocks(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, config| {
            let table = format!("{}ticks", config.table_prefix);
            sql(
                &store,
                &format!("ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 100"),
            )
            .await;
            let a = ticks("x:Y", 0, 10);
            let b: Vec<_> = a.iter().cloned().map(|tick| tick.with_quantity("7".parse().ok())).collect();
            for batch in [&a, &b, &a] {
                store.insert_ticks(batch).await.unwrap();
                assert_eq!(&stored(&store, "x:Y").await, batch);
            }
            for _ in 0..2 {
                store
                    .purge_before(PriceTick::DATASET, Timestamp::from_secs(1_800_000_000).unwrap())
                    .await
                    .unwrap();
                assert_eq!(count(&store, "x:Y").await, 0);
                store.insert_ticks(&a).await.unwrap();
                assert_eq!(stored(&store, "x:Y").await, a);
            }
        },
    )
    .await;
}

/// With such a setting in a user's profile, exceeding a limit silently truncates the result.
async fn overridden_profile(server: Server) {
    with_store(
        &server,
        |config| {
            config.max_batch = 300_000;
            config.settings.insert("max_rows_to_read".to_owned(), "1000".to_owned());
        },
        async |store, config| {
            let batch = ticks("x:Y", 0, 200_000);
            store.insert_ticks(&batch).await.unwrap();
            let query = StatsQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
            store.stats(&query).await.expect_err("more rows than may be read");
            for name in ["read_overflow_mode", "timeout_overflow_mode", "result_overflow_mode"] {
                let mut broken = config.clone();
                broken.settings.insert(name.to_owned(), "break".to_owned());
                let error = ClickHouseStore::open(broken).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Config);
                // The setting of the adapter in the request overrides the profile.
                let mode: String = store
                    .client()
                    .query_raw(&format!(
                        "SELECT toString(getSetting('{name}')) SETTINGS max_rows_to_read = 0"
                    ))
                    .fetch_one()
                    .await
                    .unwrap();
                assert_eq!(mode, "throw");
            }
        },
    )
    .await;
}

/// Deletes the newest ticks one at a time. An older tick then becomes the latest.
async fn latest_during_deletions(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, _| {
            let batch = ticks("x:Y", 0, 200);
            store.insert_ticks(&batch).await.unwrap();
            let deletes = tokio::spawn({
                let (store, batch) = (store.clone(), batch.clone());
                async move {
                    for tick in batch[100..].iter().rev() {
                        let range = TimeRange::new(tick.ts(), Timestamp::MAX).unwrap();
                        let query = DeleteQuery::ticks(Selection::All, range);
                        store.delete_range(&query).await.unwrap();
                    }
                }
            });
            let instrument: Instrument = "x:Y".parse().unwrap();
            let mut queries = 0;
            while !deletes.is_finished() {
                let latest = store.latest_tick(&instrument).await.unwrap();
                assert!(latest.is_some_and(|tick| tick.seq() >= 99), "absent at query {queries}");
                queries += 1;
            }
            deletes.await.unwrap();
            assert!(queries > 20, "{queries} queries during the deletions");
        },
    )
    .await;
}

/// A proxy between a store and an HTTP server that counts the requests.
struct CountingProxy {
    listener: TcpListener,
    upstream: String,
    requests: Arc<AtomicUsize>,
}

impl CountingProxy {
    /// Returns the proxy, and the URL of the server through the proxy.
    async fn in_front_of(url: &str) -> (Self, String) {
        let (scheme, rest) = url.split_once("://").unwrap();
        assert_eq!(scheme, "http", "requests are counted where they are not encrypted");
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, upstream) = authority.rsplit_once('@').unwrap_or(("", authority));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let through = format!("{scheme}://{login}@{}/{path}", listener.local_addr().unwrap());
        (Self { listener, upstream: upstream.to_owned(), requests: Arc::default() }, through)
    }

    async fn run(self) {
        while let Ok((client, _)) = self.listener.accept().await {
            let server = TcpStream::connect(&self.upstream).await.unwrap();
            tokio::spawn(Self::pass(client, server, self.requests.clone()));
        }
    }

    async fn pass(client: TcpStream, server: TcpStream, requests: Arc<AtomicUsize>) {
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
            (client.into_split(), server.into_split());
        let back = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        let first_line = b" HTTP/1.1\r\n";
        // The end of a part may contain the beginning of a first line.
        let mut seen = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            seen.extend_from_slice(&buffer[..length]);
            let found = seen.windows(first_line.len()).filter(|window| window == first_line).count();
            requests.fetch_add(found, Ordering::SeqCst);
            seen.drain(..seen.len().saturating_sub(first_line.len() - 1));
            if to_server.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
        back.abort();
    }
}

/// The maximum number of requests for one page. One request per instrument would be three thousand requests.
const MAX_REQUESTS: usize = 100;

/// Only the last of three thousand instruments has bars of the interval.
async fn latest_of_few(server: Server) {
    let (counter, url) = CountingProxy::in_front_of(server.url()).await;
    let requests = counter.requests.clone();
    let counting = tokio::spawn(counter.run());
    with_store(
        &server,
        |config| config.url = Some(url.into()),
        async |store, _| {
            let time = Timestamp::from_secs(1_700_006_400).unwrap();
            let one = "1".parse().unwrap();
            let name = |n: u32| -> Instrument { format!("x:A{n:04}").parse().unwrap() };
            let bar = |n, interval: Interval| flat_bar(name(n), interval, interval.floor(time));
            let mut bars: Vec<_> = (0..3_000).map(|n| bar(n, Interval::M1)).collect();
            bars.push(bar(3_000, Interval::D1));
            store.insert_bars(&bars).await.unwrap();
            let batch: Vec<_> = (0..3_000)
                .map(|n| PriceTick::new(name(n), time, 1, one).unwrap())
                .chain(ticks("x:Z", 0, 1))
                .collect();
            store.insert_ticks(&batch).await.unwrap();
            let sent = || requests.swap(0, Ordering::SeqCst);
            assert!(sent() > 0, "the counter counts");
            let query = LatestBarsQuery::new(Interval::D1, Selection::All).with_limit(1).unwrap();
            assert_eq!(store.latest_bars(&query).await.unwrap().items, bars[3_000..]);
            assert_few_requests(sent());
            let before = Timestamp::from_secs(1_700_000_000).unwrap();
            let query = LatestQuery::new(Selection::All).as_of(before).with_limit(1).unwrap();
            assert_eq!(store.latest_ticks(&query).await.unwrap().items, ticks("x:Z", 0, 1));
            assert_few_requests(sent());
            let absent = (0..3_000).map(|n| format!("x:B{n:04}").parse().unwrap());
            let named = Selection::only(absent.chain(["x:Z".parse().unwrap()])).unwrap();
            let query = LatestQuery::new(named).with_limit(1).unwrap();
            assert_eq!(store.latest_ticks(&query).await.unwrap().items, ticks("x:Z", 0, 1));
            assert_few_requests(sent());
            let all = LatestQuery::new(Selection::All).with_limit(10_000).unwrap();
            assert!(store.latest_ticks(&all).await.unwrap().items == batch);
            assert_few_requests(sent());
        },
    )
    .await;
    counting.abort();
}

fn assert_few_requests(requests: usize) {
    assert!((1..=MAX_REQUESTS).contains(&requests), "{requests} requests");
}

/// Many instruments are requested in one query, which searches the newest days first. Some have only older ticks, some
/// have several ticks at their last time, and some have no ticks.
async fn latest_of_many(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, _| {
            let name = |n: u64| -> Instrument { format!("x:A{n:03}").parse().unwrap() };
            let tick = |n: u64, days: u64, seq: u64| {
                let time =
                    Timestamp::from_secs(1_700_000_000 + i64::try_from(days).unwrap() * 86_400).unwrap();
                PriceTick::new(name(n), time, seq, (1 + n + seq).to_string().parse().unwrap()).unwrap()
            };
            let mut batch: Vec<PriceTick> = Vec::new();
            for n in (0..200).filter(|n| n % 7 != 0) {
                batch.push(tick(n, n % 60, 9));
                batch.extend((0..n % 3).map(|seq| tick(n, 100 + n % 30, seq)));
            }
            store.insert_ticks(&batch).await.unwrap();
            let of_each = |until: Timestamp| -> Vec<PriceTick> {
                let known = batch.iter().filter(|tick| tick.ts() <= until);
                let latest = |n: u64| {
                    let own = known.clone().filter(|tick| *tick.instrument() == name(n));
                    own.max_by_key(|tick| (tick.ts(), tick.seq())).cloned()
                };
                (0..200).filter_map(latest).collect()
            };
            for query in [
                LatestQuery::new(Selection::All),
                LatestQuery::new(Selection::only((0..200).map(name)).unwrap()),
            ] {
                let all = store.latest_ticks(&query).await.unwrap();
                assert!(all.items == of_each(Timestamp::MAX) && all.next.is_none());
                for days in [0, 20, 59, 99, 110] {
                    let until = tick(0, days, 0).ts();
                    let query = query.clone().as_of(until);
                    assert!(store.latest_ticks(&query).await.unwrap().items == of_each(until), "{days}");
                }
                let (mut paged, mut query) = (Vec::new(), query.with_limit(33).unwrap());
                loop {
                    let page = store.latest_ticks(&query).await.unwrap();
                    paged.extend(page.items);
                    let Some(next) = page.next else { break };
                    query = query.after(next);
                }
                assert!(paged == of_each(Timestamp::MAX));
            }
        },
    )
    .await;
}

/// Twenty instruments with 120,000 ticks each, and another instrument with a tick years later.
async fn latest_of_inactive(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, config| {
            let insert = format!(
                "INSERT INTO {}ticks (exchange, symbol, ts, seq, price) \
                 SELECT 'x', concat('D', leftPad(toString(number % 20), 2, '0')), \
                 fromUnixTimestamp64Micro(toInt64(1577836800000000 + intDiv(number, 20) * 1000000), 'UTC'), number, 1 \
                 FROM numbers(2400000)",
                config.table_prefix
            );
            sql(&store, &insert).await;
            store.insert_ticks(&ticks("x:Y", 0, 1)).await.unwrap();
            let latest = store.latest_ticks(&LatestQuery::new(Selection::All)).await.unwrap().items;
            assert_eq!(latest.len(), 21);
            for (n, tick) in latest[..20].iter().enumerate() {
                let place = (tick.instrument().to_string(), tick.ts().as_micros(), tick.seq());
                let last = 119_999;
                assert_eq!(
                    place,
                    (format!("x:D{n:02}"), 1_577_836_800_000_000 + last * 1_000_000, 2_399_980 + n as u64)
                );
            }
            assert_eq!(latest[20..], ticks("x:Y", 0, 1));
        },
    )
    .await;
}

/// The statement has the times as text, which the server parses in the time zone of the column. The latest time of each
/// instrument is also the time of an older tick of the next instruments.
async fn latest_in_another_time_zone(server: Server) {
    with_store(
        &server,
        |config| {
            for (name, value) in
                [("session_timezone", "America/New_York"), ("date_time_input_format", "best_effort")]
            {
                config.settings.insert(name.to_owned(), value.to_owned());
            }
        },
        async |store, _| {
            let times = [
                Timestamp::MIN,
                Timestamp::from_micros(1_700_000_000_000_001).unwrap(),
                Timestamp::from_micros(1_700_000_000_999_999).unwrap(),
                Timestamp::MAX_RECORD,
            ];
            let tick = |n: usize, ts: Timestamp| {
                PriceTick::new(format!("x:A{n}").parse().unwrap(), ts, 1, "1".parse().unwrap()).unwrap()
            };
            let (mut batch, mut latest) = (Vec::new(), Vec::new());
            for (n, ts) in times.into_iter().enumerate() {
                batch.extend(times[..=n].iter().map(|ts| tick(n, *ts)));
                latest.push(tick(n, ts));
            }
            store.insert_ticks(&batch).await.unwrap();
            let all = store.latest_ticks(&LatestQuery::new(Selection::All)).await.unwrap();
            assert_eq!(all.items, latest);
            for tick in &latest {
                let found = store.latest_tick(tick.instrument()).await.unwrap();
                assert_eq!(found.as_ref(), Some(tick));
            }
        },
    )
    .await;
}

/// A table without the setting stays without it, and the reports do not name it.
async fn block_size(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, config| {
            let table = format!("{}ticks", config.table_prefix);
            let query = format!(
                "SELECT toString(position(create_table_query, 'min_compress_block_size = 16384') > 0) \
                 FROM system.tables WHERE database = currentDatabase() AND name = '{table}'"
            );
            let is_set = async || store.client().query_raw(&query).fetch_one::<String>().await.unwrap();
            assert_eq!(is_set().await, "1");
            sql(&store, &format!("ALTER TABLE {table} RESET SETTING min_compress_block_size")).await;
            for report in [store.ensure_schema().await.unwrap(), store.migrate_schema().await.unwrap()] {
                assert_eq!((report.applied, report.differs), (vec![], vec![]));
            }
            assert_eq!(is_set().await, "0");
        },
    )
    .await;
}

async fn purge(server: Server) {
    with_store(
        &server,
        |config| config.max_batch = 300_000,
        async |store, config| {
            // One tick per minute for five months.
            let batch = ticks("x:Y", 0, 5 * 30 * 24 * 60);
            store.insert_ticks(&batch).await.unwrap();
            let partitions = async || -> Vec<String> {
                let sql = format!(
                    "SELECT DISTINCT partition_id FROM system.parts WHERE active AND table = '{}ticks' ORDER BY 1",
                    config.table_prefix
                );
                store.client().query_raw(&sql).fetch_all().await.unwrap()
            };
            let before = partitions().await;
            assert_eq!(before, ["202311", "202312", "202401", "202402", "202403", "202404"]);
            let cutoff = Timestamp::from_secs(1_706_000_000).unwrap();
            store.purge_before(PriceTick::DATASET, cutoff).await.unwrap();
            assert_eq!(partitions().await, before[2..], "entire months are dropped");
            let left: Vec<_> = batch.into_iter().filter(|tick| tick.ts() >= cutoff).collect();
            assert!(stored(&store, "x:Y").await == left, "and the rest goes to the microsecond");
        },
    )
    .await;
}

async fn close_drains(server: Server) {
    with_store(
        &server,
        |config| config.max_batch = 300_000,
        async |store, config| {
            let batch = ticks("x:Y", 0, 250_000);
            let write = tokio::spawn({
                let (store, batch) = (store.clone(), batch.clone());
                async move { store.insert_ticks(&batch).await }
            });
            tokio::time::sleep(Duration::from_millis(300)).await;
            store.close().await.unwrap();
            write.await.unwrap().unwrap();
            let error = store.insert_ticks(&batch[..1]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Closed);
            let again = ClickHouseStore::open(config).unwrap();
            assert_eq!(count(&again, "x:Y").await, 250_000);
        },
    )
    .await;
}

async fn dropped_writes(server: Server) {
    let change = |config: &mut ClickHouseConfig| {
        config.pool.max_connections = 3;
        config.max_batch = 200_000;
        config.write.max_request_records = 20_000;
    };
    with_store(&server, change, async |store, _| {
        let batch = ticks("x:Y", 0, 150_000);
        let mut cut = 0;
        for delay in 0..20_u64 {
            let write = tokio::spawn({
                let (store, batch) = (store.clone(), batch.clone());
                async move { store.insert_ticks(&batch).await }
            });
            tokio::time::sleep(Duration::from_millis(delay * 10)).await;
            write.abort();
            cut += u32::from(write.await.is_err());
        }
        assert!(cut >= 8, "{cut} of 20 were dropped in progress");
        // Every permit is free again, and every record is complete.
        futures::future::try_join_all((0..3).map(|_| store.ping())).await.unwrap();
        let some = stored(&store, "x:Y").await;
        let whole: std::collections::HashMap<u64, &PriceTick> =
            batch.iter().map(|tick| (tick.seq(), tick)).collect();
        assert!(some.iter().all(|tick| whole.get(&tick.seq()) == Some(&tick)), "records are complete");
        store.insert_ticks(&batch).await.unwrap();
        assert!(stored(&store, "x:Y").await == batch);
    })
    .await;
}

async fn custom_sql(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, config| {
            store.insert_ticks(&ticks("x:Y", 0, 1_000)).await.unwrap();
            let sql = format!("SELECT count() FROM {}ticks FINAL WHERE price > 105", config.table_prefix);
            let above: u64 = store.client().query_raw(&sql).fetch_one().await.unwrap();
            // 143 prices slightly above 105, and 142 slightly above 106.
            assert_eq!(above, 285);
        },
    )
    .await;
}

#[cfg(feature = "timescale")]
mod difference {
    use std::sync::Arc;

    use libtest_mimic::{Completion, Trial};
    use qi_testkit::presence;
    use qi_testkit::store::contract::StoreFactory;
    use qi_testkit::store::model::{cases, check_differences};

    use super::Server;
    use super::timescale_rig;

    /// Compares the same histories on two databases.
    pub(super) fn trial(server: &Server) -> Trial {
        let ours: Arc<dyn StoreFactory> = Arc::new(server.clone());
        let other: Arc<dyn StoreFactory> = Arc::new(timescale_rig::Server::timescale());
        let absent = ours.absent().or_else(|| other.absent());
        presence::trial(
            "clickhouse/gives_the_pages_and_cursors_of_timescale".to_owned(),
            "clickhouse",
            absent,
            move || {
                check_differences(&ours, &other, cases(8)).map_err(|failure| failure.to_string())?;
                Ok(Completion::Completed)
            },
        )
    }
}

/// Returns the result of a query, or the text of its error.
async fn query_text(store: &ClickHouseStore, query: &str) -> Result<String, String> {
    let client = store.client().clone().with_setting("http_max_tries", "1");
    let rows = async { client.query_raw(query).fetch_bytes("TabSeparated")?.collect().await };
    let rows = rows.await.map_err(|error: clickhouse::error::Error| error.to_string())?;
    Ok(String::from_utf8_lossy(&rows).into_owned())
}

/// The development server cannot access the machine's files and other external sources of SQL. A real server restricts
/// this access with `user_files_path` and grants.
async fn files_of_development_server(server: Server, spare: Spare) {
    let store = ClickHouseStore::open(server.config("")).unwrap();
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "secret").unwrap();
    std::fs::set_permissions(secret.path(), Permissions::from_mode(0o644)).unwrap();
    let secret = secret.path().display().to_string();
    let address = server.url().rsplit_once('@').unwrap().1;
    for attempt in [
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "SELECT * FROM file('../../../../../../etc/passwd', 'LineAsString')",
        "SELECT * FROM file('/proc/self/environ', 'LineAsString')",
        &format!("SELECT * FROM file('{secret}', 'LineAsString')"),
        "SELECT * FROM sqlite('/etc/passwd', 'x')",
        "SELECT * FROM executable('cat /etc/passwd', 'LineAsString', 'a String')",
        "SELECT * FROM executable('/bin/cat /etc/passwd', 'LineAsString', 'a String')",
        "SELECT file('/etc/passwd')",
        "CREATE DATABASE outside ENGINE = Filesystem('/etc')",
        "BACKUP DATABASE qi TO File('/tmp/qi-backup')",
        "BACKUP DATABASE qi TO Disk('default', 'qi-backup')",
        &format!("SELECT * FROM url('http://{address}/ping', 'LineAsString')"),
        &format!("SELECT * FROM remote('{address}', system.one)"),
        &format!("SELECT * FROM s3('http://{address}/bucket/key', 'LineAsString')"),
    ] {
        let answer = query_text(&store, attempt).await;
        assert!(answer.is_err(), "{attempt}: {answer:?}");
    }
    // The server accepts these statements, but finds nothing.
    for (create, read) in [
        ("CREATE TABLE qi.outside (a String) ENGINE = File('LineAsString', '/etc/passwd')", "qi.outside"),
        (
            "CREATE DICTIONARY qi.words (a String, b String) PRIMARY KEY a SOURCE(FILE(path '/etc/passwd' \
             format 'TabSeparated')) LAYOUT(COMPLEX_KEY_HASHED()) LIFETIME(1)",
            "qi.words",
        ),
    ] {
        let _ = query_text(&store, create).await;
        let answer = query_text(&store, &format!("SELECT * FROM {read}")).await;
        assert!(answer.is_err(), "{create}: {answer:?}");
    }
    // A written file is placed in the folder of the server.
    let stray = format!("/tmp/{}", namespace());
    let _ = query_text(&store, &format!("INSERT INTO FUNCTION file('{stray}', 'CSV', 'a UInt8') VALUES (1)"))
        .await;
    assert!(!std::path::Path::new(&stray).exists());
    // The process has no capabilities, and no group except its own.
    let port = address.rsplit_once(':').unwrap().1;
    let pid =
        Command::new("pgrep").args(["-f", &format!("clickhouse-dev-server.py .* {port}$")]).output().unwrap();
    let pid = String::from_utf8(pid.stdout).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap();
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(!line("Uid:").split_whitespace().any(|id| id == "0"), "{status}");
    assert!(line("Groups:").split_whitespace().nth(1).is_none(), "{status}");
    assert_eq!(line("CapEff:").trim_start_matches("CapEff:").trim(), "0000000000000000");
    store.close().await.unwrap();
    drop(spare);
}

/// Returns the statements of a role in `docs/hardening.md`, in the form of the development server.
fn grants_of_role(role: &str) -> Vec<String> {
    let page = include_str!("../../docs/hardening.md");
    let (_, block) = page.split_once("-- ClickHouse: ").expect("the page has the statements");
    let of_role = format!(" TO {role};");
    let grants = block.lines().filter(|line| line.starts_with("GRANT") && line.ends_with(&of_role));
    grants.map(|line| line.trim_end_matches(&of_role).to_owned()).collect()
}

/// Restarts the server with only these grants.
async fn restart(spare: Spare, grants: &[String]) -> Spare {
    let file = tempfile::NamedTempFile::new().unwrap();
    // The development server uses the database name in the address for `USE`, unlike a real server.
    std::fs::write(file.path(), format!("{}\nGRANT SHOW DATABASES ON default.*", grants.join("\n"))).unwrap();
    let path = file.path().display().to_string();
    spare.run_action("stop").await.run_action(format!("start {path}")).await
}

async fn grants(server: Server, spare: Spare) {
    let migration = grants_of_role("qi_migration");
    let runtime = grants_of_role("qi_runtime");
    let reader = grants_of_role("qi_reader");
    assert!(migration.len() > 1 && runtime.len() > 1 && reader.len() == 1, "the page has its grants");
    let ages = |config: &mut ClickHouseConfig| config.retention.set("ticks", FIFTY_YEARS);
    let open = |change: &dyn Fn(&mut ClickHouseConfig)| {
        let mut config = server.config("");
        change(&mut config);
        ClickHouseStore::open(config).unwrap()
    };
    // The migration role creates the database and the schema, and later changes a retention.
    query_text(&open(&|_| ()), "DROP DATABASE qi SYNC").await.unwrap();
    let spare = restart(spare, &migration).await;
    let store = open(&|_| ());
    store.ensure_schema().await.unwrap();
    open(&ages).migrate_schema().await.unwrap();
    let rejected = store.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap_err();
    assert_eq!(rejected.kind(), ErrorKind::Unauthorized, "{}", rejected.report());
    // The runtime role writes, reads, deletes and purges, but changes no table.
    let spare = restart(spare, &runtime).await;
    let store = open(&ages);
    assert!(store.ensure_schema().await.unwrap().applied.is_empty());
    store.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap();
    store.insert_ticks(&ticks("x:Z", 0, 10)).await.unwrap();
    let some = Selection::only(["x:Y".parse::<Instrument>().unwrap()]).unwrap();
    store.delete_range(&DeleteQuery::ticks(some, TimeRange::ALL)).await.unwrap();
    assert_eq!((count(&store, "x:Y").await, count(&store, "x:Z").await), (0, 10));
    store.purge_before(PriceTick::DATASET, Timestamp::from_secs(2_000_000_000).unwrap()).await.unwrap();
    assert_eq!(count(&store, "x:Z").await, 0);
    for statement in [
        "DROP TABLE qi.ticks SYNC",
        "ALTER TABLE qi.ticks DROP COLUMN side",
        "CREATE TABLE qi.x (a UInt8) ENGINE = Memory",
    ] {
        let answer = query_text(&store, statement).await;
        assert!(
            answer.as_ref().is_err_and(|error| error.contains("ACCESS_DENIED")),
            "{statement}: {answer:?}"
        );
    }
    store.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap();
    // The reader role only reads.
    let spare = restart(spare, &reader).await;
    let store = open(&ages);
    assert_eq!(count(&store, "x:Y").await, 10);
    let rejected = store.insert_ticks(&ticks("x:Y", 0, 10)).await.unwrap_err();
    assert_eq!(rejected.kind(), ErrorKind::Unauthorized, "{}", rejected.report());
    drop(spare);
}
