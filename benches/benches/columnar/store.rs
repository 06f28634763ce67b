//! Exports of the stores, and a columnar read of ClickHouse.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use futures::TryStreamExt as _;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use qi_adapters::clickhouse::{ClickHouseConfig, ClickHouseStore};
use qi_adapters::sqlite::{SqliteConfig, SqliteStore};
use qi_adapters::timescale::{TimescaleConfig, TimescaleStore};
use qi_arrow::{
    Archive, Decimals, ExportOptions, ImportOptions, ParquetWriter, encode, export as export_store, import,
    range_batches,
};
use qi_benches::{unique, variable};
use qi_core::record::{RecordVec, Series as _};
use qi_core::store::{PageRequest, PriceStore, PriceStoreExt as _, RangeRequest};
use qi_core::{Datasets, Instrument, Price, PriceTick, Quantity, Side, TimeRange, Timestamp};
use qi_testkit::store::{MemoryStore, MemoryStoreConfig};

use crate::{Setup, mib, peak, rate};

const DAYS: i64 = 10;
const INSTRUMENTS: usize = 10;

fn number_of_ticks() -> usize {
    std::env::var("QI_BENCH_TICKS")
        .map_or(10_000_000, |text| text.parse().expect("QI_BENCH_TICKS is a number"))
}

fn instrument(n: usize) -> Instrument {
    format!("binance:I{n:03}-USDT").parse().expect("a name")
}

/// Returns the ticks of an instrument: trades with prices of a random walk, over ten days.
fn ticks(n: usize, count: usize) -> Vec<PriceTick> {
    let mut random = fastrand::Rng::with_seed(n as u64);
    let instrument = instrument(n);
    let mut price = 4_000_000i128;
    let step = DAYS * 86_400_000_000 / i64::try_from(count).expect("a number of ticks");
    let tick = |at: usize| {
        let ts = Timestamp::from_micros(
            1_706_659_200_000_000 + i64::try_from(at).expect("a number of ticks") * step,
        )
        .expect("a time");
        price += i128::from(random.i64(-5..=5));
        let quantity =
            Quantity::from_units(i128::from(random.u32(1..100_000)) * 10_000_000_000_000).expect("positive");
        let tick = PriceTick::new(
            instrument.clone(),
            ts,
            at as u64,
            Price::from_units(price * 10_000_000_000_000_000).expect("positive"),
        );
        tick.expect("a tick").with_quantity(quantity).with_side(if random.bool() {
            Side::Buy
        } else {
            Side::Sell
        })
    };
    (0..count).map(tick).collect()
}

async fn fill(store: &dyn PriceStore, count: usize) {
    store.ensure_schema().await.expect("a schema");
    for n in 0..INSTRUMENTS {
        store.insert_ticks_chunked(&ticks(n, count / INSTRUMENTS), 50_000).await.expect("an insert");
    }
}

fn timescale(url: &str) -> Arc<dyn PriceStore> {
    let mut config = TimescaleConfig::from_url(url);
    config.schema = unique();
    Arc::new(TimescaleStore::open(config).expect("a configuration"))
}

fn sqlite(path: &Path) -> Arc<dyn PriceStore> {
    Arc::new(SqliteStore::open(SqliteConfig::from_path(path)).expect("a configuration"))
}

/// Returns a store with new tables, and their prefix.
fn clickhouse(url: &str) -> (ClickHouseStore, String) {
    let mut config = ClickHouseConfig::from_url(url);
    let prefix = unique() + "_";
    config.table_prefix.clone_from(&prefix);
    (ClickHouseStore::open(config).expect("a configuration"), prefix)
}

fn memory_store(rows: usize) -> Arc<dyn PriceStore> {
    Arc::new(MemoryStore::new(MemoryStoreConfig::default().with_max_rows(rows)).expect("a configuration"))
}

/// Returns a request for pages of 10,000 records, or for the largest pages.
fn request(n: usize, bulk: bool) -> RangeRequest {
    let page = if bulk {
        PageRequest::bulk(PriceTick::DATASET)
    } else {
        PageRequest::first(10_000).expect("a limit")
    };
    RangeRequest::new(PriceTick::DATASET, instrument(n).key(), TimeRange::ALL).with_page(page)
}

/// Reads the pages of an instrument.
async fn each_page(store: &dyn PriceStore, n: usize, bulk: bool, mut each: impl FnMut(RecordVec)) {
    let mut request = Some(request(n, bulk));
    while let Some(next) = request {
        let page = store.range(&next).await.expect("a page");
        each(page.records);
        request = page.next.map(|cursor| next.after(cursor));
    }
}

/// Reads the pages of all instruments, and returns the number of records.
async fn read_pages(store: &dyn PriceStore, bulk: bool, mut each: impl FnMut(&RecordVec)) -> usize {
    let mut count = 0;
    for n in 0..INSTRUMENTS {
        each_page(store, n, bulk, |records| {
            each(&records);
            count += std::hint::black_box(records).len();
        })
        .await;
    }
    count
}

pub(crate) fn export(setup: &Setup) {
    let count = number_of_ticks();
    let folder = tempfile::tempdir().expect("a folder");
    setup.runtime.block_on(async {
        let mut stores =
            vec![("memory", memory_store(count)), ("sqlite", sqlite(&folder.path().join("ticks.db")))];
        if let Some(url) = variable("QI_TIMESCALE_URL") {
            stores.push(("timescale", timescale(&url)));
        }
        if let Some(url) = variable("QI_CLICKHOUSE_URL") {
            stores.push(("clickhouse", Arc::new(clickhouse(&url).0)));
        }
        for (name, store) in stores {
            fill(&*store, count).await;
            measure(setup, name, &*store, count);
            // The records are not read again.
            store.purge_before(PriceTick::DATASET, Timestamp::MAX).await.expect("a purge");
            store.close().await.expect("a close");
        }
    });
}

fn measure(setup: &Setup, name: &str, store: &dyn PriceStore, count: usize) {
    let run = |work: &mut dyn FnMut() -> Duration| {
        let (took, memory) = peak(|| (0..setup.rounds).map(|_| work()).min().unwrap_or_default());
        (took, memory)
    };
    let folder = tempfile::tempdir().expect("a folder");
    let timed = |work: std::pin::Pin<Box<dyn Future<Output = ()> + '_>>| {
        let began = Instant::now();
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(work));
        began.elapsed()
    };
    let mut pages = Duration::ZERO;
    for (size, bulk) in [("10,000 records", false), ("up to 16 MiB", true)] {
        let (took, memory) =
            run(&mut || timed(Box::pin(async { assert_eq!(read_pages(store, bulk, |_| {}).await, count) })));
        println!("{name}: pages of {size} {}, memory {}", rate(count, took), mib(memory));
        pages = took;
    }
    for concurrency in [1, 2] {
        let mut options = ExportOptions::new([PriceTick::DATASET]);
        options.concurrency = concurrency;
        let mut round = 0;
        let (took, memory) = run(&mut || {
            round += 1;
            let archive = folder.path().join(format!("{concurrency}-{round}"));
            timed(Box::pin(async {
                let archive = Archive::create(&archive.to_string_lossy()).expect("a folder");
                let report = export_store(store, &archive, &options).await.expect("an export");
                assert_eq!(report.series.iter().map(|series| series.records).sum::<u64>(), count as u64);
            }))
        });
        println!(
            "{name}: export with concurrency {concurrency} {}, {:.2} of the pages, memory {}",
            rate(count, took),
            pages.as_secs_f64() / took.as_secs_f64(),
            mib(memory)
        );
    }
    let archive = Archive::folder(folder.path().join("1-1")).expect("a folder");
    let options = ExportOptions::new([PriceTick::DATASET]);
    let (took, memory) = run(&mut || {
        timed(Box::pin(async {
            let report = export_store(store, &archive, &options).await.expect("an export");
            assert!(report.series.iter().all(|series| series.written == 0));
        }))
    });
    println!("{name}: second export without changes {}, memory {}", rate(count, took), mib(memory));
    let target = memory_store(count);
    let (took, memory) = peak(|| {
        timed(Box::pin(async {
            target.ensure_schema().await.expect("a schema");
            let report = import(&*target, &archive, &ImportOptions::new(Datasets::standard()))
                .await
                .expect("an import");
            assert!(report.is_good(), "{report:?}");
            assert_eq!(report.records(), count as u64);
        }))
    });
    println!("{name}: import into memory {}, memory with the store {}", rate(count, took), mib(memory));
}

/// Compares record batches from pages with the server's own Arrow stream of the same rows, both also as Parquet files.
pub(crate) fn stream(setup: &Setup) {
    let Some(url) = variable("QI_CLICKHOUSE_URL") else {
        println!("QI_CLICKHOUSE_URL is not set");
        return;
    };
    setup.runtime.block_on(async {
        let (store, prefix) = clickhouse(&url);
        let count = number_of_ticks();
        fill(&store, count).await;
        let (store, table) = (&store, &format!("{prefix}ticks"));
        for (size, bulk) in [("10,000 records", false), ("up to 16 MiB", true)] {
            best(setup, &format!("record batches from pages of {size}"), async || {
                let encoded = |records: &RecordVec| {
                    std::hint::black_box(encode(records.as_records()).expect("a batch"));
                };
                assert_eq!(read_pages(store, bulk, encoded).await, count);
            })
            .await;
        }
        best(setup, "record batches from the columnar read, with validation", async || {
            let mut rows = 0;
            for n in 0..INSTRUMENTS {
                let mut batches = range_batches(store, request(n, true));
                while let Some(batch) = batches.try_next().await.expect("a batch") {
                    rows += std::hint::black_box(batch).num_rows();
                }
            }
            assert_eq!(rows, count);
        })
        .await;
        best(setup, "Parquet files from pages", async || {
            for n in 0..INSTRUMENTS {
                let out = std::io::sink();
                let mut writer =
                    ParquetWriter::new(PriceTick::DATASET, Decimals::Exact, out).expect("a writer");
                each_page(store, n, true, |records| writer.write(records.as_records()).expect("a sink"))
                    .await;
                writer.finish().expect("a sink");
            }
        })
        .await;
        best(setup, "record batches from the server's Arrow stream", async || {
            let mut rows = 0;
            for n in 0..INSTRUMENTS {
                rows += arrow_stream(store, table, n, |batch| drop(std::hint::black_box(batch))).await;
            }
            assert_eq!(rows, count);
        })
        .await;
        best(setup, "Parquet files from the server's Arrow stream, without validation", async || {
            for n in 0..INSTRUMENTS {
                let mut writer = None;
                let write = |batch: RecordBatch| {
                    let writer = writer.get_or_insert_with(|| plain_writer(&batch));
                    writer.write(&batch).expect("a sink");
                };
                arrow_stream(store, table, n, write).await;
                writer.expect("rows").close().expect("a sink");
            }
        })
        .await;
        best(setup, "Parquet files of the server", async || {
            for n in 0..INSTRUMENTS {
                let query = query(table, n).replace("SELECT", "SELECT exchange, symbol,");
                let mut bytes = store.client().query(&query).fetch_bytes("Parquet").expect("a query");
                while bytes.next().await.expect("bytes").is_some() {}
            }
        })
        .await;
    });
}

/// Prints the rate of the fastest round.
async fn best(setup: &Setup, what: &str, mut work: impl AsyncFnMut()) {
    let mut fastest = Duration::MAX;
    for _ in 0..setup.rounds {
        let began = Instant::now();
        work().await;
        fastest = fastest.min(began.elapsed());
    }
    println!("{what}: {}", rate(number_of_ticks(), fastest));
}

/// Creates a writer of the Parquet crate with the compression and the row groups of this library.
fn plain_writer(batch: &RecordBatch) -> ArrowWriter<std::io::Sink> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(131_072))
        .build();
    ArrowWriter::try_new(std::io::sink(), batch.schema(), Some(properties)).expect("a writer")
}

fn query(table: &str, n: usize) -> String {
    let instrument = instrument(n);
    let (exchange, symbol) = (instrument.exchange(), instrument.symbol());
    format!(
        "SELECT ts, seq, price, quantity, side FROM {table} FINAL \
         WHERE exchange = '{exchange}' AND symbol = '{symbol}' ORDER BY ts, seq \
         SETTINGS output_format_arrow_compression_method = 'none'"
    )
}

async fn arrow_stream(
    store: &ClickHouseStore,
    table: &str,
    n: usize,
    mut each: impl FnMut(RecordBatch),
) -> usize {
    let mut bytes = store.client().query(&query(table, n)).fetch_bytes("ArrowStream").expect("a query");
    let mut decoder = arrow_ipc::reader::StreamDecoder::new();
    let mut rows = 0;
    while let Some(part) = bytes.next().await.expect("bytes") {
        let mut part = arrow_buffer::Buffer::from(part);
        while let Some(batch) = decoder.decode(&mut part).expect("Arrow data") {
            rows += batch.num_rows();
            each(batch);
        }
    }
    rows
}
