//! Batches of other programs: the accepted types, and the errors for all others.
#![allow(clippy::unwrap_used, reason = "a test")]

mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow_array::types::Int8Type;
use arrow_array::{
    Array, ArrayRef, Decimal128Array, Decimal256Array, DictionaryArray, Float64Array, Int32Array, Int64Array,
    LargeStringArray, RecordBatch, StringArray, StringViewArray, TimestampMillisecondArray,
    TimestampNanosecondArray, TimestampSecondArray, UInt32Array, UInt64Array,
};
use arrow_buffer::i256;
use futures::TryStreamExt as _;
use qi_arrow::{Decimals, Encoder, decode, encode, insert_batch, range_batches, schema};
use qi_core::layer::{Call, Layer, Layered};
use qi_core::record::{Series as _, Slice};
use qi_core::store::RangeRequest;
use qi_core::{Bar, BoxFuture, Error, ErrorKind, Operation, PriceTick, Quote, Result, TimeRange};

/// Two ticks: a trade, and a price without quantity and side.
fn ticks() -> Vec<PriceTick> {
    let tick = |second: i64, seq| {
        let at = rig::time(rig::DAY + second * 1_000_000);
        PriceTick::new("binance:BTC-USDT".parse().unwrap(), at, seq, "39432.48".parse().unwrap()).unwrap()
    };
    let quantity = "0.000263".parse::<qi_core::Quantity>().unwrap();
    vec![tick(0, 7).with_quantity(quantity).with_side(qi_core::Side::Sell), tick(1, 8)]
}

/// Returns the batch of the ticks with some columns replaced, or removed.
fn batch(columns: &[(&str, Option<ArrayRef>)]) -> RecordBatch {
    let ticks = ticks();
    let exact = encode(&Slice::new(&ticks).unwrap()).unwrap();
    let mut all: Vec<(String, ArrayRef, bool)> = Vec::new();
    for (at, field) in exact.schema().fields().iter().enumerate() {
        match columns.iter().find(|(name, _)| name == field.name()) {
            Some((_, None)) => {}
            Some((_, Some(column))) => all.push((field.name().clone(), column.clone(), true)),
            None => all.push((field.name().clone(), exact.column(at).clone(), true)),
        }
    }
    for (name, column) in columns {
        if exact.schema().index_of(name).is_err() {
            all.push(((*name).to_owned(), column.clone().unwrap(), true));
        }
    }
    RecordBatch::try_from_iter_with_nullable(all).unwrap()
}

fn error(columns: &[(&str, Option<ArrayRef>)]) -> Error {
    decode(PriceTick::DATASET, &batch(columns)).unwrap_err()
}

#[allow(clippy::unnecessary_wraps, reason = "the cases have optional columns")]
fn array(array: impl Array + 'static) -> Option<ArrayRef> {
    Some(Arc::new(array))
}

#[test]
fn exact_types_of_other_programs_are_accepted() {
    let prices = [3_943_248, 3_943_248];
    let seconds = rig::DAY / 1_000_000;
    let cases: Vec<(&str, Option<ArrayRef>)> = vec![
        ("exchange", array(StringArray::from(vec!["binance"; 2]))),
        ("exchange", array(LargeStringArray::from(vec!["binance"; 2]))),
        ("symbol", array(StringViewArray::from(vec!["BTC-USDT"; 2]))),
        ("symbol", array(["BTC-USDT"; 2].into_iter().collect::<DictionaryArray<Int8Type>>())),
        ("side", array(StringArray::from(vec![Some("sell"), None]))),
        ("price", array(Decimal128Array::from(prices.to_vec()).with_precision_and_scale(10, 2).unwrap())),
        (
            "price",
            array(
                Decimal256Array::from(prices.map(i256::from_i128).to_vec())
                    .with_precision_and_scale(50, 2)
                    .unwrap(),
            ),
        ),
        ("seq", array(Int64Array::from(vec![7, 8]))),
        ("seq", array(UInt32Array::from(vec![7, 8]))),
        ("ts", array(TimestampSecondArray::from(vec![seconds, seconds + 1]).with_timezone("+00:00"))),
        (
            "ts",
            array(
                TimestampMillisecondArray::from(vec![seconds * 1_000, seconds * 1_000 + 1_000])
                    .with_timezone("UTC"),
            ),
        ),
        (
            "ts",
            array(
                TimestampNanosecondArray::from(vec![rig::DAY * 1_000, rig::DAY * 1_000 + 1_000_000_000])
                    .with_timezone("Etc/UTC"),
            ),
        ),
    ];
    for (name, column) in cases {
        let found = column.as_ref().unwrap().data_type().clone();
        let records = decode(PriceTick::DATASET, &batch(&[(name, column)]))
            .unwrap_or_else(|e| panic!("{name} {found}: {}", e.report()));
        assert_eq!(records.as_slice::<PriceTick>().unwrap(), ticks(), "{name} {found}");
    }
}

#[test]
fn optional_columns_may_be_missing() {
    let records = decode(PriceTick::DATASET, &batch(&[("quantity", None), ("side", None)])).unwrap();
    let expected: Vec<PriceTick> =
        ticks().into_iter().map(|tick| tick.with_quantity(None).with_side(None)).collect();
    assert_eq!(records.as_slice::<PriceTick>().unwrap(), expected);
}

#[test]
fn unknown_columns_are_rejected_by_name() {
    let cases: Vec<(&str, Option<ArrayRef>, &str, &str)> = vec![
        ("price", None, "arrow.column.missing", "price"),
        ("colour", array(StringArray::from(vec!["red"; 2])), "arrow.column.unknown", "colour"),
        ("price", array(Float64Array::from(vec![1.0, 2.0])), "arrow.column.type", "doubles are not exact"),
        ("price", array(StringArray::from(vec!["1", "2"])), "arrow.column.type", "Utf8"),
        (
            "price",
            array(Decimal128Array::from(vec![1, 2]).with_precision_and_scale(38, 19).unwrap()),
            "arrow.column.type",
            "38, 19",
        ),
        ("ts", array(TimestampSecondArray::from(vec![1, 2])), "arrow.column.type", "time zone UTC"),
        (
            "ts",
            array(TimestampSecondArray::from(vec![1, 2]).with_timezone("Europe/Rome")),
            "arrow.column.type",
            "Europe/Rome",
        ),
        ("ts", array(Int64Array::from(vec![1, 2])), "arrow.column.type", "Int64"),
        ("exchange", array(Int32Array::from(vec![1, 2])), "arrow.column.type", "Int32"),
    ];
    for (name, column, code, text) in cases {
        let error = error(&[(name, column)]);
        assert_eq!((error.kind(), error.code()), (ErrorKind::SchemaMismatch, code), "{}", error.report());
        assert!(error.report().contains(text) && error.report().contains(name), "{}", error.report());
    }
    // The metadata of a batch is compared too.
    let ticks = encode(&Slice::new(&ticks()).unwrap()).unwrap();
    assert_eq!(decode(Quote::DATASET, &ticks).unwrap_err().code(), "arrow.dataset");
    let floats = Encoder::new(PriceTick::DATASET, Decimals::Float64).finish().unwrap();
    assert!(decode(PriceTick::DATASET, &floats).unwrap_err().report().contains("doubles are not exact"));
}

#[test]
fn values_outside_the_domain_are_rejected_with_row_and_column() {
    let huge = 10i128.pow(37) + 5;
    let dictionary = DictionaryArray::<Int8Type>::try_new(
        vec![0i8, 1].into(),
        Arc::new(StringArray::from(vec![Some("sell"), None])),
    );
    let cases: Vec<(&str, Option<ArrayRef>, Option<&str>)> = vec![
        ("exchange", array(StringArray::from(vec![Some("binance"), None])), Some("1")),
        ("exchange", array(StringArray::from(vec!["binance", "no exchange!"])), Some("1")),
        ("symbol", array(StringArray::from(vec!["BTC-USDT", ""])), Some("1")),
        (
            "ts",
            array(TimestampSecondArray::from(vec![rig::DAY / 1_000_000, 0]).with_timezone("UTC")),
            Some("1"),
        ),
        (
            "ts",
            array(
                TimestampNanosecondArray::from(vec![rig::DAY * 1_000, rig::DAY * 1_000 + 1])
                    .with_timezone("UTC"),
            ),
            Some("1"),
        ),
        ("seq", array(UInt64Array::from(vec![7, u64::MAX])), Some("1")),
        ("seq", array(Int64Array::from(vec![7, -1])), None),
        ("seq", array(UInt64Array::from(vec![Some(7), None])), Some("1")),
        (
            "price",
            array(Decimal128Array::from(vec![1, -1]).with_precision_and_scale(38, 18).unwrap()),
            Some("1"),
        ),
        ("price", array(Decimal128Array::from(vec![1, huge]).with_precision_and_scale(38, 0).unwrap()), None),
        (
            "price",
            array(Decimal128Array::from(vec![Some(1), None]).with_precision_and_scale(38, 18).unwrap()),
            Some("1"),
        ),
        ("side", array(StringArray::from(vec!["sell", "hold"])), Some("1")),
        ("side", array(dictionary.unwrap()), None),
    ];
    for (name, column, row) in cases {
        let error = error(&[(name, column.clone())]);
        let is_refused = matches!(error.kind(), ErrorKind::CorruptData | ErrorKind::InvalidInput);
        assert!(is_refused, "{name} {column:?}: {}", error.report());
        if row.is_some() {
            assert_eq!(error.context_value("row"), row, "{name}: {}", error.report());
        }
    }
}

#[test]
fn schemas_are_those_of_the_documentation() {
    let names = |dataset| {
        let schema = schema(dataset, Decimals::Exact);
        schema
            .fields()
            .iter()
            .map(|f| format!("{} {}{}", f.name(), f.data_type(), if f.is_nullable() { "?" } else { "" }))
            .collect::<Vec<_>>()
    };
    let name = "Dictionary(Int32, Utf8)";
    assert_eq!(
        names(PriceTick::DATASET),
        [
            format!("exchange {name}"),
            format!("symbol {name}"),
            "ts Timestamp(µs, \"UTC\")".to_owned(),
            "seq UInt64".to_owned(),
            "price Decimal128(38, 18)".to_owned(),
            "quantity Decimal128(38, 18)?".to_owned(),
            format!("side {name}?"),
        ]
    );
    assert_eq!(names(Bar::DATASET)[2], format!("interval {name}"));
}

#[tokio::test]
async fn batches_are_inserted_in_parts_that_the_store_accepts() {
    let mut config = qi_testkit::store::MemoryStoreConfig::default();
    config.max_batch = 7;
    let store = qi_testkit::store::MemoryStore::new(config).unwrap();
    qi_core::PriceStore::ensure_schema(&store).await.unwrap();
    let ticks = rig::ticks("binance:BTC-USDT", 1, 30);
    let batch = encode(&Slice::new(&ticks).unwrap()).unwrap();
    insert_batch(&store, PriceTick::DATASET, &batch).await.unwrap();
    assert_eq!(store.rows(), 30);
}

/// Counts the reads of ranges.
#[derive(Debug, Clone, Default)]
struct Reads(Arc<AtomicUsize>);

impl Layer for Reads {
    fn name(&self) -> &'static str {
        "Reads"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        self.0.fetch_add(usize::from(call.operation == Operation::Range), Ordering::Relaxed);
        future
    }
}

/// Layers measure and limit each call, so a store without a columnar read is asked for it once for a stream.
#[tokio::test]
async fn columnar_read_is_requested_once_from_a_store_without_it() {
    let memory = rig::store().await;
    let ticks = rig::ticks("binance:BTC-USDT", 1, 30);
    rig::insert_ticks(&memory, &ticks).await;
    let reads = Reads::default();
    let store = Layered::new(memory, reads.clone());
    let request = RangeRequest::new(PriceTick::DATASET, ticks[0].instrument().key(), TimeRange::ALL);
    let batches: Vec<RecordBatch> =
        range_batches(&store, request.with_limit(10).unwrap()).try_collect().await.unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [10, 10, 10]);
    assert_eq!(reads.0.load(Ordering::Relaxed), 4, "one columnar read and three pages");
}
