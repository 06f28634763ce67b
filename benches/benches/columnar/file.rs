//! One file of ticks: this library and arrow-rs with the same schema and the same settings.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::builder::{Decimal128Builder, TimestampMicrosecondBuilder, UInt64Builder};
use arrow_array::cast::AsArray as _;
use arrow_array::types::{Decimal128Type, Int32Type, TimestampMicrosecondType, UInt64Type};
use arrow_array::{Array as _, DictionaryArray, Int32Array, RecordBatch, StringArray};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use qi_arrow::{Decimals, ParquetReader, ParquetWriter, schema};
use qi_benches::{ratio, timed};
use qi_core::record::RecordVec;
use qi_core::{PriceTick, Side};
use qi_testkit::market::{Market, MarketConfig};

use crate::{Setup, mib, peak, rate};

const TICKS: usize = 1_000_000;
const BATCH: usize = 8_192;
/// The number of ticks of one page of a store.
const PAGE: usize = 10_000;

/// A tick as plain values, without validation.
#[derive(Clone)]
struct Plain {
    exchange: Arc<str>,
    symbol: Arc<str>,
    ts: i64,
    seq: u64,
    price: i128,
    quantity: Option<i128>,
    side: Option<u8>,
}

pub(crate) fn run(setup: &Setup) {
    let market = Market::new(MarketConfig::new(1, 1).expect("one instrument")).expect("a market");
    let ticks: Vec<PriceTick> = market.take(TICKS).collect();
    let pages: Vec<RecordVec> = ticks.chunks(PAGE).map(|page| RecordVec::from_vec(page.to_vec())).collect();
    let plain = plain(&ticks);
    drop(ticks);

    let (file, memory) = peak(|| write(&pages));
    let (plain_file, plain_memory) = peak(|| write_plain(&plain));
    println!(
        "{TICKS} ticks, {:.1} bytes/tick; baseline {:.1} bytes/tick; memory {}, baseline {}",
        file.len() as f64 / TICKS as f64,
        plain_file.len() as f64 / TICKS as f64,
        mib(memory),
        mib(plain_memory),
    );
    let done = ratio(setup.rounds.max(5), || timed(|| write(&pages)), || timed(|| write_plain(&plain)));
    println!(
        "records to Parquet: {}, baseline {}; {done}",
        rate(TICKS, done.ours),
        rate(TICKS, done.baseline)
    );

    let (records, memory) = peak(|| read(&file, |_| {}));
    assert_eq!(records, TICKS);
    let read_all = |file: &Bytes| timed(|| read(file, |records| drop(std::hint::black_box(records))));
    let done = ratio(setup.rounds.max(5), || read_all(&file), || read_plain(&file));
    println!(
        "Parquet to records: {}, baseline {}; memory {}; {done}",
        rate(TICKS, done.ours),
        rate(TICKS, done.baseline),
        mib(memory)
    );
    // The file has the prices of the records.
    let mut at = 0;
    read(&file, |records| {
        for tick in records.as_slice::<PriceTick>().expect("ticks") {
            assert_eq!(tick.price().units(), plain[at].price);
            at += 1;
        }
    });
}

fn plain(ticks: &[PriceTick]) -> Vec<Plain> {
    let (exchange, symbol): (Arc<str>, Arc<str>) = match ticks.first() {
        Some(tick) => {
            (tick.instrument().exchange().as_str().into(), tick.instrument().symbol().as_str().into())
        }
        None => ("".into(), "".into()),
    };
    let side = |side| u8::from(side == Side::Sell);
    let plain = |tick: &PriceTick| Plain {
        exchange: exchange.clone(),
        symbol: symbol.clone(),
        ts: tick.ts().as_micros(),
        seq: tick.seq(),
        price: tick.price().units(),
        quantity: tick.quantity().map(qi_core::Quantity::units),
        side: tick.side().map(side),
    };
    ticks.iter().map(plain).collect()
}

fn write(pages: &[RecordVec]) -> Bytes {
    let mut writer = ParquetWriter::new(PriceTick::DATASET, Decimals::Exact, Vec::new()).expect("memory");
    for page in pages {
        writer.write(page.as_records()).expect("memory");
    }
    writer.finish().expect("memory").0.into()
}

fn write_plain(ticks: &[Plain]) -> Bytes {
    let schema = schema(PriceTick::DATASET, Decimals::Exact);
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(EnabledStatistics::None)
        .set_max_row_group_row_count(Some(131_072));
    for column in ["ts", "seq"] {
        properties = properties
            .set_column_statistics_enabled(ColumnPath::from(column), EnabledStatistics::Chunk)
            .set_column_dictionary_enabled(ColumnPath::from(column), false)
            .set_column_encoding(ColumnPath::from(column), Encoding::DELTA_BINARY_PACKED);
    }
    let mut writer =
        ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties.build())).expect("memory");
    let names = |keys: Vec<Option<i32>>, values: Vec<&str>| {
        let values = Arc::new(StringArray::from(values));
        DictionaryArray::<Int32Type>::try_new(Int32Array::from(keys), values).expect("valid keys")
    };
    for ticks in ticks.chunks(BATCH) {
        let mut ts = TimestampMicrosecondBuilder::with_capacity(ticks.len()).with_timezone("UTC");
        let mut seq = UInt64Builder::with_capacity(ticks.len());
        let decimals = || Decimal128Builder::with_capacity(ticks.len()).with_precision_and_scale(38, 18);
        let (mut price, mut quantity) = (decimals().expect("a type"), decimals().expect("a type"));
        let mut sides = Vec::with_capacity(ticks.len());
        for tick in ticks {
            ts.append_value(tick.ts);
            seq.append_value(tick.seq);
            price.append_value(tick.price);
            quantity.append_option(tick.quantity);
            sides.push(tick.side.map(i32::from));
        }
        let first = &ticks[0];
        let batch = RecordBatch::try_new(
            schema.clone(),
            vec![
                Arc::new(names(vec![Some(0); ticks.len()], vec![&first.exchange])),
                Arc::new(names(vec![Some(0); ticks.len()], vec![&first.symbol])),
                Arc::new(ts.finish()),
                Arc::new(seq.finish()),
                Arc::new(price.finish()),
                Arc::new(quantity.finish()),
                Arc::new(names(sides, vec!["buy", "sell"])),
            ],
        );
        writer.write(&batch.expect("a batch")).expect("memory");
    }
    writer.into_inner().expect("memory").into()
}

fn read(file: &Bytes, mut each: impl FnMut(RecordVec)) -> usize {
    let mut count = 0;
    for records in ParquetReader::new(PriceTick::DATASET, file.clone()).expect("a file") {
        let records = records.expect("records");
        count += records.len();
        each(records);
    }
    count
}

/// Reads plain ticks without validation.
fn read_plain(file: &Bytes) -> Duration {
    timed(|| {
        let reader = ParquetRecordBatchReaderBuilder::try_new(file.clone()).expect("a file");
        let mut count = 0;
        for batch in reader.with_batch_size(BATCH).build().expect("a file") {
            let batch = batch.expect("a batch");
            let names = |at: usize| -> (Vec<Arc<str>>, Int32Array) {
                let names = batch.column(at).as_dictionary::<Int32Type>();
                let values =
                    names.values().as_string::<i32>().iter().map(|text| text.unwrap_or_default().into());
                (values.collect(), names.keys().clone())
            };
            let ((exchanges, exchange), (symbols, symbol)) = (names(0), names(1));
            let ts = batch.column(2).as_primitive::<TimestampMicrosecondType>();
            let seq = batch.column(3).as_primitive::<UInt64Type>();
            let price = batch.column(4).as_primitive::<Decimal128Type>();
            let quantity = batch.column(5).as_primitive::<Decimal128Type>();
            let (_, side) = names(6);
            let tick = |row: usize| Plain {
                exchange: exchanges[exchange.value(row).cast_unsigned() as usize].clone(),
                symbol: symbols[symbol.value(row).cast_unsigned() as usize].clone(),
                ts: ts.value(row),
                seq: seq.value(row),
                price: price.value(row),
                quantity: quantity.is_valid(row).then(|| quantity.value(row)),
                side: side.is_valid(row).then(|| side.value(row) == 1).map(u8::from),
            };
            let ticks: Vec<Plain> = (0..batch.num_rows()).map(tick).collect();
            count += std::hint::black_box(ticks).len();
        }
        count
    })
}
