//! The cost of calls in databases with many instruments and chunks, as counts of locks, index scans and rows.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod servers;
mod timescale_rig;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use libtest_mimic::Arguments;
use qi_adapters::config::Hypertables;
use qi_adapters::timescale::{TimescaleConfig, TimescaleStore};
use qi_core::store::{BarQuery, DeleteQuery, InstrumentQuery, LatestQuery, MaintainRequest, RangeQuery};
use qi_core::{
    Instrument, Interval, PriceStore, PriceStoreExt, PriceTick, Quantity, Quote, QuoteValues, Selection,
    TimeRange, Timestamp,
};
use servers::{namespace, trial, with_long_tests};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use timescale_rig::{Server, drop_schema};

fn main() {
    let mut trials = Vec::new();
    for server in [Server::timescale(), Server::postgres()] {
        trials.push(trial(&server, "discovery_does_not_read_other_instruments", discovery));
        trials.push(trial(&server, "latest_finds_records_before_the_end_of_wide_bounds", wide_bounds));
        trials.push(trial(&server, "names_of_an_upgrade_are_searched_in_few_rounds", upgraded_names));
        trials.push(trial(&server, "series_of_a_writer_without_catalog_are_found", foreign_writer));
        trials.push(trial(&server, "earlier_schema_is_migrated_while_a_writer_runs", earlier_schema));
        trials.push(trial(&server, "corrections_keep_the_series_of_concurrent_writers", corrections));
        trials.push(trial(&server, "long_bars_need_no_temporary_files", long_bars));
        trials.push(trial(&server, "a_rebuild_of_a_day_reads_no_other_bars", rebuilt_day));
    }
    trials.push(trial(
        &Server::postgres(),
        "statements_over_all_instruments_read_the_index_on_time",
        time_index,
    ));
    trials.push(trial(&Server::timescale(), "late_records_of_sixteen_writers_lock_few_chunks", late_records));
    trials.push(trial(
        &Server::timescale(),
        "maintenance_of_many_chunks_locks_few_chunks",
        maintained_chunks,
    ));
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

const DAY: i64 = 86_400;

/// The time over which chunks are spread, in days.
const DAYS: i64 = 12 * 365;

/// Returns the day of a one-day chunk.
fn day(chunk: i64, chunks: i64) -> i64 {
    chunk * (DAYS - 1) / chunks
}

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
    // A schema with thousands of chunks cannot be dropped by one statement.
    store.purge_before(PriceTick::DATASET, Timestamp::MAX).await.unwrap();
    store.close().await.unwrap();
    drop_schema(server.url(), &config.schema).await;
}

fn tick(instrument: &str, secs: i64, seq: u64) -> PriceTick {
    let ts = Timestamp::from_secs(1_400_000_000 + secs).unwrap();
    PriceTick::new(instrument.parse().unwrap(), ts, seq, "1".parse().unwrap()).unwrap()
}

fn name(number: usize) -> String {
    format!("x:S{number:05}")
}

/// The index scans and the rows that one process read in the tables of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reads {
    scans: i64,
    rows: i64,
}

/// Returns the reads of a new process that runs `calls`. The server adds the counters of a session when it ends.
async fn reads<R: Future<Output = ()>>(
    server: &Server,
    config: &TimescaleConfig,
    calls: impl FnOnce(TimescaleStore) -> R,
) -> Reads {
    let mut root = PgConnection::connect(server.url()).await.unwrap();
    let before = counters(&mut root, config).await;
    let mut config = config.clone();
    config.application_name = Some(namespace());
    let store = TimescaleStore::open(config.clone()).unwrap();
    calls(store.clone()).await;
    store.close().await.unwrap();
    loop {
        let sessions: i64 =
            sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE application_name = $1")
                .bind(&config.application_name)
                .fetch_one(&mut root)
                .await
                .unwrap();
        if sessions == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let after = counters(&mut root, &config).await;
    root.close().await.unwrap();
    Reads { scans: after.scans - before.scans, rows: after.rows - before.rows }
}

async fn counters(root: &mut PgConnection, config: &TimescaleConfig) -> Reads {
    sqlx::raw_sql("SELECT pg_stat_clear_snapshot()").execute(&mut *root).await.unwrap();
    let chunks = match config.hypertables {
        Hypertables::On => {
            "UNION SELECT to_regclass(format('%I.%I', chunk_schema, chunk_name)) \
             FROM timescaledb_information.chunks WHERE hypertable_schema = $1"
        }
        _ => "",
    };
    let sql = format!(
        "SELECT coalesce(sum(coalesce(idx_scan, 0) + seq_scan), 0)::bigint, \
         coalesce(sum(coalesce(idx_tup_fetch, 0) + seq_tup_read), 0)::bigint \
         FROM pg_stat_all_tables WHERE relid IN (\
         SELECT oid FROM pg_class WHERE relnamespace = to_regnamespace($1) {chunks})"
    );
    let (scans, rows) =
        sqlx::query_as(AssertSqlSafe(sql)).bind(&config.schema).fetch_one(root).await.unwrap();
    Reads { scans, rows }
}

/// The calls of `qi check`, the first instruments, and the latest tick of 100 instruments.
async fn discover(store: TimescaleStore) {
    let first = |dataset, limit| InstrumentQuery::new(dataset).with_limit(limit).unwrap();
    assert!(store.instruments(&first(Quote::DATASET, 1)).await.unwrap().items.is_empty());
    assert_eq!(store.instruments(&first(PriceTick::DATASET, 1)).await.unwrap().items.len(), 1);
    assert_eq!(store.instruments(&first(PriceTick::DATASET, 100)).await.unwrap().items.len(), 100);
    let query = LatestQuery::new(Selection::All).with_limit(100).unwrap();
    assert_eq!(store.latest_ticks(&query).await.unwrap().items.len(), 100);
    let some = Selection::only((0..100).map(|n| name(n).parse::<Instrument>().unwrap())).unwrap();
    assert_eq!(store.latest_ticks(&LatestQuery::new(some)).await.unwrap().items.len(), 100);
    let query = LatestQuery::new(Selection::All).with_limit(100).unwrap();
    assert!(store.latest_quotes(&query).await.unwrap().items.is_empty());
}

/// Returns the ticks of an instrument in chunks of twelve years. Every third instrument has no ticks of recent years.
fn first_and_last(instrument: usize, chunks: i64) -> [PriceTick; 2] {
    let start = i64::try_from(instrument).unwrap() * 977 % (chunks * 3 / 4);
    let last = if instrument.is_multiple_of(3) { day(start + chunks / 8, chunks) } else { DAYS };
    [day(start, chunks), last].map(|day| tick(&name(instrument), day * DAY, 0))
}

/// The reads depend neither on the number of instruments nor on the number of chunks.
async fn discovery(server: Server) {
    /// The maximum number of scans, and of rows. The calls read 100 instruments four times.
    const MAX_READS: i64 = 4_000;
    for (many, chunks) in with_long_tests([(1_000_usize, 600_i64)], [(10_000, 2_600)]) {
        with_store(
            &server,
            |config| config.chunks.set("ticks", Duration::from_hours(24)),
            async |store, config| {
                let every_chunk: Vec<_> =
                    (0..chunks).map(|chunk| tick("x:Z", day(chunk, chunks) * DAY, 0)).collect();
                store.insert_ticks(&every_chunk).await.unwrap();
                let mut counts = Vec::new();
                for instruments in [0..120, 120..many] {
                    let batch: Vec<_> = instruments.flat_map(|n| first_and_last(n, chunks)).collect();
                    store.insert_ticks(&batch).await.unwrap();
                    sqlx::raw_sql("ANALYZE instruments, qi_series").execute(store.pool()).await.unwrap();
                    counts.push(reads(&server, &config, discover).await);
                }
                let [few, many] = [counts[0], counts[1]];
                assert!(many.scans * 10 <= few.scans * 13, "{few:?}, {many:?}");
                assert!(many.rows * 10 <= few.rows * 13, "{few:?}, {many:?}");
                assert!(many.scans < MAX_READS && many.rows < MAX_READS, "{many:?}");
                let query = InstrumentQuery::new(PriceTick::DATASET).with_limit(100).unwrap();
                for (n, found) in store.instruments(&query).await.unwrap().items.iter().enumerate() {
                    let [first, last] = first_and_last(n, chunks);
                    assert_eq!((&found.instrument, found.first), (first.instrument(), first.ts()));
                    assert_eq!(found.last, last.ts());
                }
                let query = LatestQuery::new(Selection::All).with_limit(100).unwrap();
                let latest = store.latest_ticks(&query).await.unwrap().items;
                assert!((0..100).map(|n| first_and_last(n, chunks)[1].clone()).eq(latest));
            },
        )
        .await;
    }
}

/// The last bound of the catalog is later than the last tick, or `as_of` is earlier than the bound.
async fn wide_bounds(server: Server) {
    with_store(
        &server,
        |config| config.chunks.set("ticks", Duration::from_hours(24)),
        async |store, _| {
            let dormant = [0, 300, 600, 900].map(|day| tick("x:A", day * DAY, 0));
            store.insert_ticks(&dormant).await.unwrap();
            let others: Vec<_> = (0..100).map(|week| tick("x:B", (1_000 + week * 7) * DAY, 0)).collect();
            store.insert_ticks(&others).await.unwrap();
            let instrument = || Selection::one("x:A".parse::<Instrument>().unwrap());
            let latest = async |query: &LatestQuery| store.latest_ticks(query).await.unwrap().items;
            for selection in [Selection::All, instrument()] {
                for (day, known) in [(299, 0), (300, 1), (650, 2), (899, 2), (901, 3)] {
                    let time = tick("x:A", day * DAY, 0).ts();
                    let found = latest(&LatestQuery::new(selection.clone()).as_of(time)).await;
                    assert_eq!(found, [dormant[known].clone()], "day {day}");
                }
            }
            let before = dormant[0].ts().checked_sub(Duration::from_secs(1)).unwrap();
            assert!(latest(&LatestQuery::new(instrument()).as_of(before)).await.is_empty());
            let range = TimeRange::since(dormant[2].ts());
            store.delete_range(&DeleteQuery::ticks(instrument(), range)).await.unwrap();
            for _ in 0..2 {
                // The second call reads corrected bounds.
                assert_eq!(latest(&LatestQuery::new(instrument())).await, [dormant[1].clone()]);
            }
            store.delete_range(&DeleteQuery::ticks(instrument(), TimeRange::ALL)).await.unwrap();
            assert!(latest(&LatestQuery::new(instrument())).await.is_empty());
            let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM qi_series WHERE symbol = 'A'")
                .fetch_one(store.pool())
                .await
                .unwrap();
            assert_eq!(rows, 0, "the series has no records");
        },
    )
    .await;
}

/// Makes the schema one of an earlier version, which has no catalog.
async fn remove_catalog(store: &TimescaleStore) {
    sqlx::raw_sql(
        "DROP FUNCTION qi_mark_incomplete CASCADE; DROP TABLE qi_series; DROP TABLE qi_series_state; \
         DELETE FROM qi_migrations WHERE version = 3",
    )
    .execute(store.pool())
    .await
    .unwrap();
}

/// After an upgrade, the catalog of quotes has every registered name. Only the last name has a quote.
async fn upgraded_names(server: Server) {
    /// 9 rounds of doubled size, and 9 rounds of 1,000 names.
    const MAX_ROUNDS: i64 = 18;
    for names in with_long_tests([1_000_usize], [10_000]) {
        with_store(
            &server,
            |_| (),
            async |store, _| {
                let ticks: Vec<_> = (0..names).map(|n| tick(&name(n), 0, 0)).collect();
                store.insert_ticks(&ticks).await.unwrap();
                let values = QuoteValues { ask_price: "1".parse().ok(), ..QuoteValues::default() };
                let ts = Timestamp::from_secs(1_700_000_000).unwrap();
                let quote = Quote::new(name(names - 1).parse().unwrap(), ts, 1, values).unwrap();
                store.insert_quote(&quote).await.unwrap();
                remove_catalog(&store).await;
                store.ensure_schema().await.unwrap();
                // A round that finds names without quotes removes them from the catalog, which increments the epoch.
                for _ in 0..2 {
                    let query = InstrumentQuery::new(Quote::DATASET).with_limit(1).unwrap();
                    assert_eq!(store.instruments(&query).await.unwrap().items.len(), 1);
                    let epoch: i64 =
                        sqlx::query_scalar("SELECT epoch FROM qi_series_state WHERE dataset = 'quotes'")
                            .fetch_one(store.pool())
                            .await
                            .unwrap();
                    assert!(epoch > 1 && epoch <= 1 + MAX_ROUNDS, "{epoch}");
                }
                let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM qi_series WHERE dataset = 'quotes'")
                    .fetch_one(store.pool())
                    .await
                    .unwrap();
                assert_eq!(rows, 1);
            },
        )
        .await;
    }
}

/// A deletion, and custom SQL, of a hundredth of the ticks of 52 days.
async fn time_index(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, _| {
            let ticks: Vec<_> =
                (0..100_000).map(|n| tick(&name(n % 2_000), i64::try_from(n).unwrap() * 45, 0)).collect();
            for part in ticks.chunks(5_000) {
                store.insert_ticks(part).await.unwrap();
            }
            sqlx::raw_sql("ANALYZE ticks").execute(store.pool()).await.unwrap();
            let (start, end) = (ticks[50_000].ts(), ticks[51_000].ts());
            for statement in ["DELETE FROM ticks", "SELECT sum(quantity) FROM ticks"] {
                let explain = format!("EXPLAIN {statement} WHERE ts >= '{start}' AND ts < '{end}'");
                let plan: Vec<String> =
                    sqlx::query_scalar(AssertSqlSafe(explain)).fetch_all(store.pool()).await.unwrap();
                let plan = plan.join("\n");
                assert!(plan.contains("ticks_time"), "{plan}");
            }
            let range = TimeRange::new(start, end).unwrap();
            store.delete_range(&DeleteQuery::ticks(Selection::All, range)).await.unwrap();
            let rows: i64 =
                sqlx::query_scalar("SELECT count(*) FROM ticks").fetch_one(store.pool()).await.unwrap();
            assert_eq!(rows, 99_000);
        },
    )
    .await;
}

/// Returns the instruments with ticks, with their first and last times, from the store.
async fn found(store: &TimescaleStore) -> BTreeMap<Instrument, (Timestamp, Timestamp)> {
    let mut next = Some(InstrumentQuery::new(PriceTick::DATASET).with_limit(7).unwrap());
    let mut found = BTreeMap::new();
    while let Some(query) = next {
        let page = store.instruments(&query).await.unwrap();
        found.extend(
            page.items.into_iter().map(|summary| (summary.instrument, (summary.first, summary.last))),
        );
        next = page.next.map(|cursor| query.after(cursor));
    }
    found
}

/// Returns the same from the table.
async fn expected(store: &TimescaleStore) -> BTreeMap<Instrument, (Timestamp, Timestamp)> {
    let rows: Vec<(String, String, i64, i64)> = sqlx::query_as(
        "SELECT exchange, symbol, (extract(epoch FROM min(ts)) * 1000000)::bigint, \
         (extract(epoch FROM max(ts)) * 1000000)::bigint FROM ticks_view GROUP BY exchange, symbol",
    )
    .fetch_all(store.pool())
    .await
    .unwrap();
    let time = |micros| Timestamp::from_micros(micros).unwrap();
    rows.into_iter()
        .map(|(exchange, symbol, first, last)| {
            (format!("{exchange}:{symbol}").parse().unwrap(), (time(first), time(last)))
        })
        .collect()
}

/// Writes a tick as an earlier version of the library does, in one transaction.
async fn insert_without_catalog(connection: &mut PgConnection, schema: &str, tick: &PriceTick) {
    let insert = format!(
        "INSERT INTO {schema}.instruments (exchange, symbol) VALUES ('x', '{symbol}') ON CONFLICT DO NOTHING; \
         INSERT INTO {schema}.ticks (instrument_id, ts, seq, price) SELECT id, '{ts}', {seq}, 1 \
         FROM {schema}.instruments WHERE symbol = '{symbol}' ON CONFLICT DO NOTHING",
        symbol = tick.instrument().symbol(),
        ts = tick.ts(),
        seq = tick.seq(),
    );
    sqlx::raw_sql(AssertSqlSafe(insert)).execute(connection).await.unwrap();
}

async fn foreign_writer(server: Server) {
    with_store(
        &server,
        |_| (),
        async |store, config| {
            store.insert_ticks(&[tick("x:A", 0, 0), tick("x:B", 0, 0)]).await.unwrap();
            let mut other = PgConnection::connect(server.url()).await.unwrap();
            insert_without_catalog(&mut other, &config.schema, &tick("x:C", -900 * DAY, 0)).await;
            insert_without_catalog(&mut other, &config.schema, &tick("x:A", 900 * DAY, 0)).await;
            assert_eq!(found(&store).await.len(), 3);
            assert_eq!(found(&store).await, expected(&store).await);
            let latest = store.latest_ticks(&LatestQuery::new(Selection::All)).await.unwrap();
            assert_eq!(latest.items.len(), 3);
            assert_eq!(store.ensure_schema().await.unwrap().applied, ["series catalog of ticks completed"]);
            assert!(store.ensure_schema().await.unwrap().applied.is_empty());
            assert_eq!(found(&store).await, expected(&store).await);
            // A transaction that began before the completion.
            sqlx::raw_sql("BEGIN").execute(&mut other).await.unwrap();
            insert_without_catalog(&mut other, &config.schema, &tick("x:D", 0, 0)).await;
            sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
            sqlx::raw_sql("BEGIN").execute(&mut other).await.unwrap();
            insert_without_catalog(&mut other, &config.schema, &tick("x:E", 0, 0)).await;
            let commit = async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
            };
            let (completed, ()) = futures::join!(store.ensure_schema(), commit);
            assert_eq!(completed.unwrap().applied, ["series catalog of ticks completed"]);
            assert_eq!(found(&store).await.len(), 5);
            assert_eq!(found(&store).await, expected(&store).await);
            // A trigger of another program writes in a statement of this library.
            sqlx::raw_sql(
                "CREATE FUNCTION roll_up() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN UPDATE ticks SET ts = ts WHERE false; RETURN NULL; END $$; \
                 CREATE TRIGGER roll_up AFTER INSERT ON quotes FOR EACH STATEMENT EXECUTE FUNCTION roll_up()",
            )
            .execute(store.pool())
            .await
            .unwrap();
            assert!(store.ensure_schema().await.unwrap().applied.is_empty());
            let values = QuoteValues { ask_price: "1".parse().ok(), ..QuoteValues::default() };
            let ts = Timestamp::from_secs(1_700_000_000).unwrap();
            store.insert_quote(&Quote::new("x:A".parse().unwrap(), ts, 1, values).unwrap()).await.unwrap();
            assert_eq!(store.ensure_schema().await.unwrap().applied, ["series catalog of ticks completed"]);
            // A long transaction of another program keeps no service from its start.
            let mark = "UPDATE ticks SET ts = ts WHERE false";
            sqlx::raw_sql(mark).execute(store.pool()).await.unwrap();
            sqlx::raw_sql("BEGIN").execute(&mut other).await.unwrap();
            insert_without_catalog(&mut other, &config.schema, &tick("x:F", 0, 0)).await;
            let report = store.ensure_schema().await.unwrap();
            assert_eq!((report.applied, report.differs.len()), (vec![], 1));
            sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
            assert_eq!(store.ensure_schema().await.unwrap().applied, ["series catalog of ticks completed"]);
            assert_eq!(found(&store).await.len(), 6);
            other.close().await.unwrap();
        },
    )
    .await;
}

async fn earlier_schema(server: Server) {
    with_store(
        &server,
        |config| config.chunks.set("ticks", Duration::from_hours(24)),
        async |store, config| {
            store.insert_ticks(&[tick("x:A", 0, 0), tick("x:B", 5 * DAY, 0)]).await.unwrap();
            remove_catalog(&store).await;
            let done = Arc::new(AtomicBool::new(false));
            let writer = tokio::spawn({
                let (url, schema, done) = (server.url().to_owned(), config.schema.clone(), done.clone());
                async move {
                    let mut connection = PgConnection::connect(&url).await.unwrap();
                    let mut written = 0;
                    while !done.load(Ordering::Relaxed) || written < 50 {
                        let tick = tick(&name(written), (DAY * i64::try_from(written).unwrap()) % 3, 0);
                        insert_without_catalog(&mut connection, &schema, &tick).await;
                        written += 1;
                    }
                    connection.close().await.unwrap();
                    written
                }
            });
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut report = store.ensure_schema().await.unwrap();
            // The writer of the earlier version makes the catalog incomplete while the later steps run.
            let completed = report.applied.extract_if(.., |step| step == "series catalog of ticks completed");
            assert!(completed.count() <= 1, "a call completes a catalog once");
            assert_eq!(
                report.applied,
                [
                    "migration step 3: series",
                    "series catalog of ticks",
                    "series catalog of quotes",
                    "series catalog of bars"
                ]
            );
            // Writers of this version and the earlier version run at the same time.
            for n in 0..20 {
                store.insert_ticks(&[tick("x:NEW", n * DAY, 0)]).await.unwrap();
            }
            done.store(true, Ordering::Relaxed);
            let written = writer.await.unwrap();
            assert_eq!(found(&store).await.len(), written + 3);
            assert_eq!(found(&store).await, expected(&store).await);
            store.ensure_schema().await.unwrap();
            for _ in 0..2 {
                // The second call reads corrected bounds.
                assert_eq!(found(&store).await, expected(&store).await);
            }
        },
    )
    .await;
}

/// Writers and deletions of the same instruments, while readers correct the catalog.
async fn corrections(server: Server) {
    const INSTRUMENTS: usize = 12;
    with_store(
        &server,
        |config| {
            config.chunks.set("ticks", Duration::from_hours(24));
            config.pool.max_connections = 4;
        },
        async |store, config| {
            // Each writer is a process with its own cache.
            let writers = (0..4_usize).map(|writer| {
                let store = TimescaleStore::open(config.clone()).unwrap();
                tokio::spawn(async move {
                    for round in 0..60_usize {
                        let instrument = name((writer * 5 + round * 7) % INSTRUMENTS);
                        let day = i64::try_from(round % 4 * 20).unwrap();
                        let batch: Vec<_> =
                            (0..3).map(|n| tick(&instrument, day * DAY + n, writer as u64)).collect();
                        store.insert_ticks(&batch).await.unwrap();
                        let query = RangeQuery::new(instrument.parse().unwrap(), TimeRange::ALL);
                        store.ticks(&query).await.unwrap();
                        if round % 3 == 0 {
                            let one = Selection::one(
                                name((writer + round) % INSTRUMENTS).parse::<Instrument>().unwrap(),
                            );
                            store.delete_range(&DeleteQuery::ticks(one, TimeRange::ALL)).await.unwrap();
                        }
                    }
                    store.close().await.unwrap();
                })
            });
            let writers: Vec<_> = writers.collect();
            while writers.iter().any(|writer| !writer.is_finished()) {
                found(&store).await;
                store.latest_ticks(&LatestQuery::new(Selection::All)).await.unwrap();
            }
            for writer in writers {
                writer.await.unwrap();
            }
            for _ in 0..2 {
                assert_eq!(found(&store).await, expected(&store).await);
            }
            let rows: i64 =
                sqlx::query_scalar("SELECT count(*) FROM qi_series").fetch_one(store.pool()).await.unwrap();
            assert_eq!(
                usize::try_from(rows).unwrap(),
                expected(&store).await.len(),
                "no series is left over"
            );
        },
    )
    .await;
}

/// The server rejects temporary files, and sorts in 64 KiB.
async fn long_bars(server: Server) {
    for count in with_long_tests([40_000_i64], [3_000_000]) {
        with_store(
            &server,
            |_| (),
            async |store, config| {
                let step = 7 * DAY * 1_000_000 / count;
                let start = Timestamp::from_secs(1_399_852_800).unwrap();
                let ticks = |from: i64, to: i64| -> Vec<PriceTick> {
                    (from..to)
                        .map(|n| {
                            // Several ticks share a time, so the sequence number decides.
                            let ts = start
                                .checked_add(Duration::from_micros((n / 4 * 4 * step).cast_unsigned()))
                                .unwrap();
                            let price = format!("{}", 100 + (n * 37) % 1_000).parse().unwrap();
                            let tick =
                                PriceTick::new("x:A".parse().unwrap(), ts, (n % 4).cast_unsigned(), price);
                            tick.unwrap().with_quantity("2".parse::<Quantity>().unwrap())
                        })
                        .collect()
                };
                for from in (0..count).step_by(20_000) {
                    store.insert_ticks(&ticks(from, (from + 20_000).min(count))).await.unwrap();
                }
                let mut limited = config.clone();
                let url = format!("{}?options[temp_file_limit]=0&options[work_mem]=64", server.url());
                limited.url = TimescaleConfig::from_url(url).url;
                let limited = TimescaleStore::open(limited).unwrap();
                let end = start.checked_add(Duration::from_hours(24 * 7)).unwrap();
                let range = TimeRange::new(start, end).unwrap();
                for (interval, bars) in [(Interval::W1, 1), (Interval::D1, 7), (Interval::H4, 42)] {
                    let query = BarQuery::new("x:A".parse().unwrap(), interval, range);
                    let page =
                        limited.derived_bars(&query).await.unwrap_or_else(|e| panic!("{}", e.report()));
                    let total: u64 = page.items.iter().map(|bar| bar.values().count.unwrap()).sum();
                    assert_eq!((page.items.len(), total), (bars, count.cast_unsigned()));
                    let descending = limited.derived_bars(&query.descending()).await.unwrap();
                    assert!(page.items.iter().rev().eq(&descending.items));
                }
                limited.close().await.unwrap();
            },
        )
        .await;
    }
}

/// Returns the largest number of locks that one session of a store held during `work`.
async fn max_locks(server: &Server, config: &TimescaleConfig, work: impl Future<Output = ()>) -> i64 {
    let done = Arc::new(AtomicBool::new(false));
    let locks = tokio::spawn({
        let (url, name, done) = (server.url().to_owned(), config.application_name.clone(), done.clone());
        async move {
            let mut root = PgConnection::connect(&url).await.unwrap();
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                let now: i64 = sqlx::query_scalar(
                    "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM pg_locks \
                     JOIN pg_stat_activity USING (pid) WHERE application_name = $1 GROUP BY pid) x",
                )
                .bind(&name)
                .fetch_one(&mut root)
                .await
                .unwrap();
                most = now.max(most);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            root.close().await.unwrap();
            most
        }
    });
    work.await;
    done.store(true, Ordering::Relaxed);
    locks.await.unwrap()
}

/// The first maintenance of many one-day chunks, and a rebuild of all of them.
async fn maintained_chunks(server: Server) {
    const MAX_LOCKS: i64 = 300;
    for chunks in with_long_tests([300_i64], [1_300]) {
        let change = |config: &mut TimescaleConfig| {
            config.chunks.set("ticks", Duration::from_hours(24));
            config.application_name = Some(namespace());
            config.materialized_bars = Some(true);
        };
        with_store(&server, change, async |store, config| {
            let ticks: Vec<_> = (0..chunks).map(|day| tick(&name(0), day * DAY, 0)).collect();
            store.insert_ticks(&ticks).await.unwrap();
            let everything = MaintainRequest::default().with_until(Timestamp::MAX);
            let work = async {
                while !store.maintain(&everything).await.unwrap().is_complete() {}
                let mark = format!("SELECT qi_mark_stale('{}', '{}')", Timestamp::MIN, Timestamp::MAX);
                sqlx::raw_sql(AssertSqlSafe(mark)).execute(store.pool()).await.unwrap();
                while !store.maintain(&everything).await.unwrap().is_complete() {}
            };
            let maintaining = async {
                let limited = tokio::time::timeout(Duration::from_mins(2), work);
                limited.await.expect("maintenance does not complete");
            };
            let locks = max_locks(&server, &config, maintaining).await;
            assert!(locks > 0 && locks < MAX_LOCKS, "a maintainer held {locks} locks");
            let days: i64 =
                sqlx::query_scalar("SELECT count(*) FROM qi_bars_1d").fetch_one(store.pool()).await.unwrap();
            assert_eq!(days, chunks);
        })
        .await;
    }
}

/// Rebuilds a day of all instruments, in a table with few or many days.
async fn rebuilt_day(server: Server) {
    let mut counts = Vec::new();
    for days in [20, 400] {
        let change = |config: &mut TimescaleConfig| config.materialized_bars = Some(true);
        with_store(&server, change, async |store, config| {
            let ticks: Vec<_> = (0..days * 24).map(|hour| tick(&name(0), hour * 3_600, 0)).collect();
            store.insert_ticks(&ticks).await.unwrap();
            let everything = MaintainRequest::default().with_until(Timestamp::MAX);
            while !store.maintain(&everything).await.unwrap().is_complete() {}
            let [first, until] = [3, 4].map(|day| tick(&name(0), day * DAY, 0).ts());
            let mark = AssertSqlSafe(format!("SELECT qi_mark_stale('{first}', '{until}')"));
            sqlx::raw_sql(mark).execute(store.pool()).await.unwrap();
            sqlx::raw_sql("ANALYZE").execute(store.pool()).await.unwrap();
            let rebuild = async |store: TimescaleStore| {
                assert!(store.maintain(&everything).await.unwrap().is_complete());
            };
            counts.push(reads(&server, &config, rebuild).await);
        })
        .await;
    }
    let [few, many] = [counts[0], counts[1]];
    // The table of hours has 9,600 rows, and the rebuild has several steps.
    assert!(many.rows < few.rows + 9_000, "{few:?}, {many:?}");
}

/// Instruments and days of the table, and batches of each writer.
#[derive(Debug, Clone, Copy)]
struct Size {
    instruments: usize,
    chunks: i64,
    batches: usize,
}

/// 16 writers. Each batch has records of the current day and one late record, in twelve years of one-day chunks.
async fn late_records(server: Server) {
    const WRITERS: usize = 16;
    /// A statement that opens all chunks of the short size holds 600 locks.
    const MAX_LOCKS: i64 = 300;
    let short = Size { instruments: 2_000, chunks: 300, batches: 12 };
    let long = Size { instruments: 10_000, chunks: 2_600, batches: 60 };
    for Size { instruments, chunks, batches } in with_long_tests([short], [long]) {
        let change = |config: &mut TimescaleConfig| {
            config.chunks.set("ticks", Duration::from_hours(24));
            config.application_name = Some(namespace());
            config.pool.max_connections = u32::try_from(WRITERS).unwrap();
        };
        with_store(&server, change, async |store, config| {
            let old: Vec<_> = (0..chunks).map(|chunk| tick(&name(0), day(chunk, chunks) * DAY, 0)).collect();
            store.insert_ticks(&old).await.unwrap();
            let all: Vec<_> = (0..instruments).map(|n| tick(&name(n), DAYS * DAY, 0)).collect();
            for part in all.chunks(30_000) {
                store.insert_ticks(part).await.unwrap();
            }
            let batch = move |writer: usize, number: usize| -> Vec<PriceTick> {
                let first = (writer * batches + number) * 100;
                let late = i64::try_from(writer * 7_919 + number * 104_729).unwrap() % chunks;
                let new = (first..first + 300).map(|n| {
                    let secs = DAYS * DAY + i64::try_from(number).unwrap();
                    tick(&name(n % instruments), secs, 1 + n as u64)
                });
                let late = tick(&name(first % instruments), day(late, chunks) * DAY + 1, first as u64 + 1);
                new.chain([late]).collect()
            };
            let write = |writer: usize| {
                let store = store.clone();
                tokio::spawn(async move {
                    for number in 0..batches {
                        let written = store.insert_ticks(&batch(writer, number)).await;
                        written.unwrap_or_else(|error| panic!("{}", error.report()));
                    }
                })
            };
            let writing = async {
                for writer in join_all((0..WRITERS).map(write)).await {
                    writer.unwrap();
                }
            };
            let locks = max_locks(&server, &config, writing).await;
            assert!(locks > 0 && locks < MAX_LOCKS, "a writer held {locks} locks");
            let rows: i64 =
                sqlx::query_scalar("SELECT count(*) FROM ticks_view WHERE ts >= $1::text::timestamptz")
                    .bind(tick("x:A", DAYS * DAY, 0).ts().to_string())
                    .fetch_one(store.pool())
                    .await
                    .unwrap();
            assert_eq!(usize::try_from(rows).unwrap(), instruments + WRITERS * batches * 300);
            // A batch reads the chunks of its records only.
            let reads = reads(&server, &config, async |store| {
                store.insert_ticks(&batch(WRITERS, 0)).await.unwrap();
            })
            .await;
            // A new process looks up the id and the bounds of each instrument of the batch.
            let records = i64::try_from(batch(WRITERS, 0).len()).unwrap();
            assert!(reads.scans < 10 * records && reads.rows < 6 * records, "{reads:?}");
        })
        .await;
    }
}
