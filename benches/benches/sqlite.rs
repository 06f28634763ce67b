//! The SQLite adapter, compared with bare sqlx on the same tables and statements.
//!
//! ```sh
//! cargo bench -p qi-benches --bench sqlite                    # all sections
//! cargo bench -p qi-benches --bench sqlite -- write read      # some of them
//! cargo bench -p qi-benches --bench sqlite -- --rounds 3
//! ```
//!
//! The files are in the temporary folder (`TMPDIR`). Every line is the median over rounds that measure both sides back to
//! back, in alternating order. The baseline gets rows that are encoded and sorted before the measurement.
#![allow(missing_docs, reason = "a benchmark has no public items")]
#![allow(clippy::cast_precision_loss, reason = "rates and ratios have three digits")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use qi_adapters::config::Synchronous;
use qi_adapters::sqlite::{SqliteConfig, SqliteStore};
use qi_benches::{Section, median, ratio, timed};
use qi_core::store::{BarQuery, BarSource, LatestQuery, RangeQuery};
use qi_core::{
    Decimal, Instrument, Interval, Price, PriceStore, PriceStoreExt, PriceTick, Quantity, Selection, Side,
    TimeRange, Timestamp,
};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const SECTIONS: [Section<Setup>; 4] = [("write", write), ("read", read), ("bars", bars), ("open", open)];

const ROUNDS: usize = 5;
const INSTRUMENTS: usize = 100;
const BATCH: usize = 10_000;
const TICKS: usize = 500_000;
/// The time of the first tick, and the time between two ticks, in microseconds.
const START: i64 = 1_700_092_800_000_000;
const STEP: i64 = 8_640;
/// The number of rows of the store's statements.
const ROWS: usize = 256;

/// A row: the owner, the time, the sequence number, the price, the quantity and the side.
type Row = (i64, i64, i64, Vec<u8>, Option<Vec<u8>>, Option<i64>);

struct Setup {
    runtime: Runtime,
    folder: TempDir,
    rounds: usize,
}

fn main() {
    qi_benches::sections(SECTIONS, ROUNDS, |rounds| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let setup = Setup {
            runtime: runtime.expect("a runtime"),
            folder: tempfile::tempdir().expect("a temporary folder"),
            rounds,
        };
        println!("sqlite: files in {}", setup.folder.path().display());
        Some(setup)
    });
}

fn instrument(n: usize) -> Instrument {
    format!("binance:COIN{:03}-USDT", n % INSTRUMENTS).parse().expect("a valid name")
}

/// Returns new ticks of 100 instruments in the order of time.
fn ticks(numbers: std::ops::Range<usize>) -> Vec<PriceTick> {
    const CENT: i128 = Decimal::UNITS_PER_ONE / 100;
    const EIGHT_PLACES: i128 = Decimal::UNITS_PER_ONE / 100_000_000;
    let names: Vec<_> = (0..INSTRUMENTS).map(instrument).collect();
    let tick = |n: usize| {
        let ts = START + i64::try_from(n).expect("a small number") * STEP;
        let ts = Timestamp::from_micros(ts).expect("a time of 2023");
        let price = Price::from_units((3_900_000 + n as i128 * 7_919 % 100_003) * CENT).expect("a price");
        let quantity = (n as i128 * 104_729 % 299_999_977 + 1) * EIGHT_PLACES;
        let quantity = Quantity::from_units(quantity).expect("a quantity");
        PriceTick::new(names[n % INSTRUMENTS].clone(), ts, n as u64, price)
            .expect("a valid tick")
            .with_quantity(quantity)
            .with_side(if n.is_multiple_of(3) { Side::Sell } else { Side::Buy })
    };
    numbers.map(tick).collect()
}

/// Returns the rows of ticks in the order of the key. The owners have the numbers 1 to 100 in the order of their names.
fn rows(ticks: &[PriceTick]) -> Vec<Row> {
    let blob = |decimal: Decimal| (decimal.units().cast_unsigned() ^ (1 << 127)).to_be_bytes().to_vec();
    let row = |tick: &PriceTick| {
        let owner = 1 + (tick.seq() % INSTRUMENTS as u64).cast_signed();
        let side = tick.side().map(|side| if side == Side::Buy { 1 } else { 2 });
        let quantity = tick.quantity().map(|quantity| blob(quantity.decimal()));
        (owner, tick.ts().as_micros(), tick.seq().cast_signed(), blob(tick.price().decimal()), quantity, side)
    };
    let mut rows: Vec<Row> = ticks.iter().map(row).collect();
    rows.sort_unstable_by_key(|row| (row.0, row.1, row.2));
    rows
}

impl Setup {
    /// Returns the configuration of a new file.
    fn config(&self, synchronous: Synchronous) -> SqliteConfig {
        let mut config =
            SqliteConfig::from_path(self.folder.path().join(format!("{}.db", qi_benches::unique())));
        config.synchronous = synchronous;
        config
    }

    /// Returns a store with a schema and the owners of all instruments.
    fn store(&self, config: &SqliteConfig) -> SqliteStore {
        self.runtime.block_on(async {
            let store = SqliteStore::open(config.clone()).expect("a store");
            store.ensure_schema().await.expect("a schema");
            let first = ticks(0..INSTRUMENTS);
            store.insert_ticks(&first).await.expect("the owners");
            store
        })
    }

    fn filled(&self, count: usize) -> (SqliteStore, PathBuf) {
        let config = self.config(Synchronous::Normal);
        let store = self.store(&config);
        for from in (0..count).step_by(50_000) {
            let batch = ticks(from..from + 50_000);
            self.runtime.block_on(store.insert_ticks(&batch)).expect("an insert");
        }
        (store, config.path)
    }
}

async fn connect(path: &Path, synchronous: Synchronous) -> SqliteConnection {
    let synchronous =
        if synchronous == Synchronous::Full { SqliteSynchronous::Full } else { SqliteSynchronous::Normal };
    let options = SqliteConnectOptions::new().filename(path).synchronous(synchronous);
    options.pragma("cache_size", "-16384").connect().await.expect("a connection")
}

/// Writes batches of rows with the statements of the store.
async fn insert_rows(connection: &mut SqliteConnection, batches: &[Vec<Row>]) {
    const COLUMNS: &str = "_owner, ts, seq, price, quantity, side";
    for batch in batches {
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.expect("a transaction");
        for rows in batch.chunks(ROWS) {
            let values = vec!["(?, ?, ?, ?, ?, ?)"; rows.len()].join(", ");
            let sql = format!("INSERT OR REPLACE INTO ticks ({COLUMNS}) VALUES {values}");
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for (owner, ts, seq, price, quantity, side) in rows {
                query = query.bind(owner).bind(ts).bind(seq).bind(price.as_slice());
                query = query.bind(quantity.as_deref()).bind(side);
            }
            query.execute(&mut *transaction).await.expect("an insert");
        }
        transaction.commit().await.expect("a commit");
    }
}

fn write(setup: &Setup) {
    let all = ticks(INSTRUMENTS..INSTRUMENTS + TICKS);
    let encoded: Vec<Vec<Row>> = all.chunks(BATCH).map(rows).collect();
    for (name, synchronous) in [("normal", Synchronous::Normal), ("full", Synchronous::Full)] {
        let ours = || {
            let config = setup.config(synchronous);
            let store = setup.store(&config);
            let took = timed(|| {
                setup.runtime.block_on(async {
                    for batch in all.chunks(BATCH) {
                        store.insert_ticks(batch).await.expect("an insert");
                    }
                });
            });
            setup.runtime.block_on(store.close()).expect("a closed store");
            std::fs::remove_file(&config.path).expect("a removed file");
            took
        };
        let baseline = || {
            let config = setup.config(synchronous);
            let store = setup.store(&config);
            setup.runtime.block_on(store.close()).expect("a closed store");
            let took = setup.runtime.block_on(async {
                let mut connection = connect(&config.path, synchronous).await;
                let start = Instant::now();
                insert_rows(&mut connection, &encoded).await;
                let took = start.elapsed();
                connection.close().await.expect("a closed connection");
                took
            });
            std::fs::remove_file(&config.path).expect("a removed file");
            took
        };
        let result = ratio(setup.rounds, ours, baseline);
        let rate = |time: Duration| TICKS as f64 / time.as_secs_f64();
        println!(
            "insert, synchronous = {name}, batches of {BATCH}: speed {:.2} of bare sqlx",
            1.0 / result.median
        );
        println!(
            "    store {:.0} ticks/s, bare sqlx {:.0} ticks/s; {result}",
            rate(result.ours),
            rate(result.baseline)
        );
    }
}

/// Reads the ticks of an owner with the statement of the store.
async fn select_rows(connection: &mut SqliteConnection, owner: i64, limit: i64) -> Vec<Row> {
    let sql = "SELECT _owner, ts, seq, price, quantity, side FROM ticks WHERE _owner = ? \
               AND (ts, seq) > (?, ?) AND (ts, seq) < (?, ?) ORDER BY ts, seq LIMIT ?";
    let query =
        sqlx::query_as(sql).bind(owner).bind(0_i64).bind(-1_i64).bind(i64::MAX).bind(0_i64).bind(limit);
    query.fetch_all(connection).await.expect("rows")
}

fn read(setup: &Setup) {
    let (store, path) = setup.filled(1_000_000);
    let mut connection = setup.runtime.block_on(connect(&path, Synchronous::Normal));
    for limit in [1_000, 10_000] {
        let query = RangeQuery::new(instrument(7), TimeRange::ALL).with_limit(limit).expect("a limit");
        let ours = || timed(|| setup.runtime.block_on(store.ticks(&query)).expect("a page"));
        let rows = i64::try_from(limit).expect("a small number") + 1;
        let baseline = || timed(|| setup.runtime.block_on(select_rows(&mut connection, 8, rows)));
        let result = ratio(setup.rounds * 10, ours, baseline);
        println!(
            "page of {limit} ticks: speed {:.2} of bare sqlx, into tuples; {result}",
            1.0 / result.median
        );
    }
    let latest = LatestQuery::new(Selection::All);
    let times = (0..setup.rounds * 10)
        .map(|_| timed(|| setup.runtime.block_on(store.latest_ticks(&latest)).expect("the latest ticks")));
    println!("latest of {INSTRUMENTS} instruments: {:.3} ms", median(times).as_secs_f64() * 1e3);
}

fn bars(setup: &Setup) {
    let (store, path) = setup.filled(1_000_000);
    let mut connection = setup.runtime.block_on(connect(&path, Synchronous::Normal));
    let query = BarQuery::new(instrument(7), Interval::M1, TimeRange::ALL);
    let ours = || {
        timed(|| {
            let bars = store.bar_stream(query.clone(), BarSource::Derived).try_collect::<Vec<_>>();
            setup.runtime.block_on(bars).expect("the bars")
        })
    };
    let baseline = || timed(|| setup.runtime.block_on(select_rows(&mut connection, 8, i64::MAX)));
    let result = ratio(setup.rounds * 4, ours, baseline);
    println!(
        "1-minute bars of 10000 ticks: speed {:.2} of reading the ticks with bare sqlx; {result}",
        1.0 / result.median
    );
}

fn open(setup: &Setup) {
    const LARGE: usize = 10_000_000;
    let (store, path) = setup.filled(LARGE);
    setup.runtime.block_on(store.close()).expect("a closed store");
    let bytes = std::fs::metadata(&path).expect("the file").len();
    println!("{LARGE} ticks: {bytes} bytes, {:.1} for each tick", bytes as f64 / LARGE as f64);
    let times: Vec<Duration> = (0..setup.rounds * 4)
        .map(|_| {
            timed(|| {
                setup.runtime.block_on(async {
                    let store = SqliteStore::open(SqliteConfig::from_path(&path)).expect("a store");
                    store.ensure_schema().await.expect("the schema");
                    store.latest_tick(&instrument(7)).await.expect("a read").expect("a tick");
                    store.close().await.expect("a closed store");
                });
            })
        })
        .collect();
    println!(
        "open, ensure_schema, latest tick, close: median {:.3} ms, longest {:.3} ms",
        median(times.iter().copied()).as_secs_f64() * 1e3,
        times.iter().max().expect("a time").as_secs_f64() * 1e3
    );
}
