//! Precision: values are either stored exactly or rejected.

use qi_core::record::{ColumnType, Level, Value};
use qi_core::store::PriceStoreExt;
use qi_core::{
    Decimal, Exchange, MarketSnapshot, Price, PriceTick, Provider, Quantity, Scope, SnapshotValues, Symbol,
    Timestamp,
};

use super::dataset_ops::{BASE, DatasetOps, instrument, micros, minute};
use super::datasets::{altered, expect_round_trip};
use super::expect::{CheckResult, expect_same_rows, expect_true};
use super::{Sample, TestContext, promises};
use crate::store::rows::records_of;

promises! { "precision";
    every decimals_are_stored_exactly:
        "20 integer digits with 18 places and a sign in every decimal column and level",
    every times_are_kept_to_the_microsecond:
        "times are stored to the microsecond, and latest returns them exactly",
    every first_and_last_time_are_stored:
        "the first and the last valid time are stored, and latest returns them",
    once longest_names_and_all_characters_are_stored:
        "the longest names and every allowed character are stored",
    once symbols_are_kept_byte_for_byte: "symbols are stored, distinguished and ordered by their bytes",
    once values_outside_the_domain_are_rejected:
        "19 decimal places, 1e20, a price of zero and invalid names are rejected",
}

/// Decimals at the bounds of the domain, and with all decimal places, with and without a sign.
const DECIMALS: [&str; 9] = [
    "0.000000000000000001",
    "99999999999999999999.999999999999999999",
    "12345678901234567890.123456789012345678",
    "99.999999999999999999",
    "1.500000000000000000",
    "100000",
    "-0.000000000000000001",
    "-99999999999999999999.999999999999999999",
    "-12.5",
];

async fn decimals_are_stored_exactly<D: Sample>(context: &TestContext) -> CheckResult {
    let columns = D::DATASET.values();
    let mut rows = Vec::new();
    for number in DECIMALS {
        let number: Decimal = number.parse()?;
        // The number is in one column, and in the last round in all columns.
        for chosen in 0..=columns.len() {
            rows.extend(altered::<D>(rows.len(), |at, column, value| {
                if at != chosen && chosen != columns.len() {
                    return;
                }
                match column.ty {
                    ColumnType::Decimal => *value = Value::Decimal(number),
                    ColumnType::Levels { .. } => {
                        let (price, quantity) = (Price::new(number), Quantity::new(number));
                        let level = price.and_then(|price| Ok(Level { price, quantity: quantity? }));
                        *value = Value::Levels(level.into_iter().collect());
                    }
                    _ => {}
                }
            })?);
        }
    }
    expect_round_trip::<D>(context.store(), &records_of(D::DATASET, &rows)?).await
}

async fn times_are_kept_to_the_microsecond<D: Sample>(context: &TestContext) -> CheckResult {
    let series = D::series_no(0);
    let batch: Vec<D> = [0, 1, 2, 999]
        .into_iter()
        .zip(0..)
        .map(|(n, v)| D::make(&series, micros(n * D::STEP), 0, v))
        .collect();
    D::insert(context.store(), &batch).await?;
    expect_same_rows("the series", &D::all(context.store(), &series).await?, &batch)?;
    let inner = super::dataset_ops::RangeParams::<D>::all(&series)
        .within(super::dataset_ops::range(micros(D::STEP), micros(2 * D::STEP)));
    expect_same_rows(
        "the records of one step",
        &D::page(context.store(), &inner).await?.items,
        &batch[1..2],
    )?;
    // Each of these times is also the time of an older record of the first series.
    let other = |(n, step): (usize, i64)| D::make(&D::series_no(n), micros(step * D::STEP), 0, 7);
    let others = [(1, 1), (2, 2), (3, 1)].map(other);
    D::insert(context.store(), &others).await?;
    let latest = D::scan_latest(context.store(), super::dataset_ops::LatestParams::all()).await?;
    expect_same_rows("the latest", &latest, &[&batch[3..], &others].concat())?;
    expect_true("the base time of the checks is a multiple of one second", BASE % 1_000_000 == 0)
}

async fn first_and_last_time_are_stored<D: Sample>(context: &TestContext) -> CheckResult {
    let series = D::series_no(0);
    let batch = [Timestamp::MIN, Timestamp::MAX_RECORD].map(|ts| D::make(&series, ts, 0, 5));
    let first = D::make(&D::series_no(1), Timestamp::MIN, 0, 6);
    D::insert(context.store(), &[&batch[..], std::slice::from_ref(&first)].concat()).await?;
    expect_same_rows("the series", &D::all(context.store(), &series).await?, &batch)?;
    let latest = D::scan_latest(context.store(), super::dataset_ops::LatestParams::all()).await?;
    expect_same_rows("the latest", &latest, &[batch[1].clone(), first])
}

async fn longest_names_and_all_characters_are_stored(context: &TestContext) -> CheckResult {
    let symbols = ["9".to_owned(), "A._:/-".to_owned(), "Z".repeat(64), "1000SHIB/USD:PERP".to_owned()];
    let exchanges = ["0".to_owned(), "a-_z".to_owned(), "_-".repeat(16)];
    for exchange in exchanges {
        for symbol in &symbols {
            let name = qi_core::Instrument::new(Exchange::new(&exchange)?, Symbol::new(symbol)?);
            let tick = PriceTick::make(&name, minute(0), 0, 1);
            context.store().insert_ticks(std::slice::from_ref(&tick)).await?;
            expect_same_rows("the tick", &PriceTick::all(context.store(), &name).await?, &[tick])?;
        }
    }
    let source = Provider::new("it's \"100 %\" \\ $1; --{}~ ?")?;
    let values = SnapshotValues { markets: Some(1), source: Some(source), ..SnapshotValues::default() };
    let snapshot = MarketSnapshot::new("asset:A._:/-".parse()?, minute(0), values)?;
    context.store().insert_snapshots(std::slice::from_ref(&snapshot)).await?;
    expect_same_rows(
        "the snapshot",
        &MarketSnapshot::all(context.store(), snapshot.scope()).await?,
        std::slice::from_ref(&snapshot),
    )
}

/// Real symbols, symbols that a collation would confuse, and symbols that break wrong quoting.
pub(crate) const SYMBOLS: [&str; 36] = [
    "1000SHIB-USDT",
    "BTC-USD-SWAP",
    "BTC/USDT:USDT-241227",
    "币安人生USDT",
    "kPEPE",
    "KPEPE",
    "kpepe",
    "@107",
    ".BXBT",
    "XRP_USDC-30JUN23-0d625-C",
    "tBTCF0:USTF0",
    "$MYRO_USDT",
    "So11111111111111111111111111111111111111112",
    "0x0000000000000000000000000000000000000000",
    ":",
    "::a",
    "it's",
    "''",
    "\"quoted\"",
    "a\\b",
    "a\\'b",
    "a?b",
    "{a:String}",
    "$1",
    "100%",
    "a_b",
    "aXb",
    "a,b;c|d",
    "<a&b>",
    "(a)[b]",
    "#a=b",
    "\u{e9}",
    "e\u{301}",
    "БИТКОИН",
    "ビットコイン",
    "\u{1f600}",
];

async fn symbols_are_kept_byte_for_byte(context: &TestContext) -> CheckResult {
    let store = context.store();
    let longest = "\u{1f600}".repeat(64);
    let names = SYMBOLS.iter().copied().chain([longest.as_str()]);
    let mut names: Vec<qi_core::Instrument> = names
        .map(|symbol| Ok(qi_core::Instrument::new(Exchange::new("alpha")?, Symbol::new(symbol)?)))
        .collect::<qi_core::Result<_>>()?;
    let record = |(n, name): (u32, &_)| PriceTick::make(name, minute(i64::from(n)), 0, n);
    let ticks: Vec<PriceTick> = (0..).zip(&names).map(record).collect();
    store.insert_ticks(&ticks).await?;
    for tick in &ticks {
        let what = tick.instrument().to_string();
        expect_same_rows(
            &what,
            &PriceTick::all(store, tick.instrument()).await?,
            std::slice::from_ref(tick),
        )?;
        let latest = store.latest_tick(tick.instrument()).await?;
        expect_same_rows(&what, latest.as_slice(), std::slice::from_ref(tick))?;
    }
    let latest = PriceTick::scan_latest(store, super::dataset_ops::LatestParams::all().limit(7)).await?;
    names.sort();
    let found: Vec<_> = latest.iter().map(|tick| tick.instrument().clone()).collect();
    expect_same_rows("the order of the instruments", &found, &names)?;
    let params = super::dataset_ops::LatestParams::only(names.clone()).limit(7);
    expect_same_rows(
        "the latest records of the selected instruments",
        &PriceTick::scan_latest(store, params).await?,
        &latest,
    )?;
    for (n, name) in (0..).zip(&names) {
        let scope = Scope::Asset(name.symbol().clone());
        let values = SnapshotValues { markets: Some(n), ..SnapshotValues::default() };
        let snapshot = MarketSnapshot::new(scope.clone(), minute(0), values)?;
        store.insert_snapshots(std::slice::from_ref(&snapshot)).await?;
        expect_same_rows("the snapshot", &MarketSnapshot::all(store, &scope).await?, &[snapshot])?;
    }
    // The deletion affects only one of the instruments.
    let (gone, left) = (&names[3], ticks.len() - 1);
    store.delete_range(&PriceTick::deletion(Some(vec![gone.clone()]), qi_core::TimeRange::ALL)).await?;
    expect_same_rows("the deleted series", &PriceTick::all(store, gone).await?, &[])?;
    let rest = PriceTick::scan_latest(store, super::dataset_ops::LatestParams::all()).await?;
    super::expect::expect_same("the number of other series", &rest.len(), &left)
}

/// These values cannot be constructed, so a store never receives them.
async fn values_outside_the_domain_are_rejected(_: &TestContext) -> CheckResult {
    for text in ["0.0000000000000000001", "100000000000000000000", "0", "-1", "NaN", "1e5", ""] {
        expect_true(format_args!("the price {text} is rejected"), text.parse::<Price>().is_err())?;
    }
    for text in ["1.0000000000000000001", "100000000000000000000", "-0.1"] {
        expect_true(format_args!("the quantity {text} is rejected"), text.parse::<Quantity>().is_err())?;
    }
    for text in
        ["Alpha:BTC", "alpha:B C", "alpha:", ":BTC", "alpha", "al pha:BTC", "alpha:B\u{200b}", "alpha:B\0"]
    {
        expect_true(
            format_args!("the instrument {text:?} is rejected"),
            text.parse::<qi_core::Instrument>().is_err(),
        )?;
    }
    let late = PriceTick::new(instrument("alpha:BTC"), Timestamp::MAX, 0, "1".parse()?);
    expect_true("a time after the last valid time is rejected", late.is_err())?;
    expect_true("the timestamp zero is rejected", Timestamp::from_micros(0).is_err())
}
