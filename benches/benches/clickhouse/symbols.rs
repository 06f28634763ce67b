//! The type of the column `symbol` with many symbols: `LowCardinality(String)`, as in the tables of the adapter, compared
//! with `String`. The server generates the rows.

use qi_benches::{ratio, timed};

use crate::setup::Setup;
use crate::ticks::MILLION;

/// The maximum number of records in one request of the adapter by default.
const REQUEST: usize = 250_000;

/// Short measurements need many rounds.
const FACTOR: usize = 10;

pub(crate) fn run(setup: &Setup) {
    for symbols in [10_000, 100_000] {
        let target = setup.create(|_| ());
        let execute = |sql: &str| {
            setup.block_on(target.store.client().query_raw(sql).execute()).expect("a statement");
        };
        let create = |name: &str, ty: &str| {
            let table = format!("{}{name}", target.prefix);
            execute(&format!(
                "CREATE TABLE {table} (symbol {ty}, ts DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)), \
                 seq UInt64 CODEC(Delta, ZSTD(1)), price Decimal(38, 18) CODEC(ZSTD(1))) \
                 ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(ts) ORDER BY (symbol, ts, seq) \
                 SETTINGS index_granularity = 2048"
            ));
            table
        };
        let names = create("names", "LowCardinality(String)");
        let strings = create("strings", "String");
        let write = |table: &str| {
            execute(&format!("TRUNCATE TABLE {table}"));
            timed(|| {
                for start in (0..MILLION).step_by(REQUEST) {
                    execute(&format!(
                        "INSERT INTO {table} \
                         SELECT concat('COIN', toString(number * 7919 % {symbols}), '-USDT'), \
                         toDateTime64('2024-01-01 00:00:00', 6, 'UTC') + toIntervalMillisecond(number), \
                         number, toDecimal128(100 + number % 1000, 18) FROM numbers({start}, {REQUEST})"
                    ));
                }
            })
        };
        let times = ratio(setup.rounds, || write(&names), || write(&strings));
        println!("a write of 1,000,000 rows of {symbols} symbols, LowCardinality / String: {times}");
        let bytes = |table: &str| {
            execute(&format!("OPTIMIZE TABLE {table} FINAL"));
            target.number(&format!(
                "SELECT sum(column_bytes_on_disk) FROM system.parts_columns \
                 WHERE active AND table = '{table}' AND column = 'symbol'"
            ))
        };
        println!("bytes of the column: LowCardinality {}, String {}", bytes(&names), bytes(&strings));
        let read = |table: &str| {
            timed(|| {
                let sql = format!("SELECT count() FROM {table} WHERE symbol = 'COIN42-USDT'");
                assert_eq!(target.number(&sql), (MILLION / symbols) as u64);
            })
        };
        let times = ratio(setup.rounds * FACTOR, || read(&names), || read(&strings));
        println!("a count of the rows of one symbol, LowCardinality / String: {times}");
    }
}
