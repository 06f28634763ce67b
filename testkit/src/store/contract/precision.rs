//! Precision: values come back exactly, or were refused before.

use qi_core::store::{PriceStore, PriceStoreExt};
use qi_core::{
    BarValues, Decimal, Exchange, Interval, MarketSnapshot, Ohlcv, Percent, Price, PriceTick, Quantity,
    Quote, QuoteValues, Scope, SnapshotValues, Source, Symbol, Timestamp,
};

use super::expect::{Outcome, holds, same_rows};
use super::shelf::{BASE, Shelf, instrument, micros, minute};
use super::{Case, Sample, promises};

promises! { "precision";
    once the_smallest_decimal_comes_back: "1e-18 in every decimal of every dataset",
    once the_largest_decimal_comes_back: "20 integer digits with 18 places in every decimal of every dataset",
    once trailing_zeros_do_not_matter: "1.500 is 1.5",
    once none_is_not_zero: "an unknown figure is not zero, in every optional field",
    once percentages_have_a_sign: "negative percentages come back",
    every a_microsecond_counts: "times are kept to the microsecond",
    every both_ends_of_time: "the first and the last time of a record",
    once long_and_strange_names: "the longest names and every allowed character",
    once symbols_as_exchanges_write_them: "symbols are kept byte for byte, told apart and ordered by their bytes",
    once what_cannot_be_stored_is_refused: "19 places, 1e20, a price of zero, names outside their rule are refused",
}

fn at(minutes: i64) -> Timestamp {
    minute(minutes)
}

/// Writes records with these numbers in every decimal field, and reads them back.
async fn there_and_back(store: &dyn PriceStore, number: &str, percent: &str) -> Outcome {
    let (price, quantity): (Price, Quantity) = (number.parse()?, number.parse()?);
    let percent: Percent = percent.parse()?;
    let share: Percent = if percent.get() > Decimal::from_int(100) { "100".parse()? } else { percent };
    let name = instrument("alpha:PRECISE");
    let tick = PriceTick::new(name.clone(), at(0), 0, price)?.with_quantity(quantity);
    store.insert_ticks(std::slice::from_ref(&tick)).await?;
    same_rows("the tick", &PriceTick::all(store, &name).await?, &[tick])?;

    let values = QuoteValues {
        bid_price: Some(price),
        bid_size: Some(quantity),
        ask_price: Some(price),
        ask_size: Some(quantity),
    };
    let quote = Quote::new(name.clone(), at(0), 0, values)?;
    store.insert_quotes(std::slice::from_ref(&quote)).await?;
    same_rows("the quote", &Quote::all(store, &name).await?, &[quote])?;

    let (volume, quote_volume) = (Some(quantity), Some(quantity));
    let values = BarValues { volume, quote_volume, ..BarValues::flat(price) };
    let bar = Ohlcv::new(name.clone(), Interval::M1, at(0), values)?;
    store.insert_bars(std::slice::from_ref(&bar)).await?;
    same_rows("the bar", &Ohlcv::all(store, &(name, Interval::M1)).await?, &[bar])?;

    let values = SnapshotValues {
        market_cap_usd: Some(quantity),
        volume_24h_usd: Some(quantity),
        btc_dominance: Some(share),
        eth_dominance: Some(share),
        active_currencies: Some(qi_core::domain::MAX_COUNTER),
        markets: Some(0),
        change_24h: Some(percent),
        change_7d: Some(percent),
        source: None,
    };
    let snapshot = MarketSnapshot::new(Scope::Global, at(0), values)?;
    store.insert_snapshots(std::slice::from_ref(&snapshot)).await?;
    same_rows("the snapshot", &MarketSnapshot::all(store, &Scope::Global).await?, &[snapshot])
}

async fn the_smallest_decimal_comes_back(case: &Case) -> Outcome {
    there_and_back(case.store(), "0.000000000000000001", "0.000000000000000001").await
}

async fn the_largest_decimal_comes_back(case: &Case) -> Outcome {
    let largest = "99999999999999999999.999999999999999999";
    there_and_back(case.store(), largest, largest).await?;
    there_and_back(case.store(), "12345678901234567890.123456789012345678", "99.999999999999999999").await
}

async fn trailing_zeros_do_not_matter(case: &Case) -> Outcome {
    there_and_back(case.store(), "1.500000000000000000", "50.0").await?;
    there_and_back(case.store(), "100000", "10").await
}

async fn percentages_have_a_sign(case: &Case) -> Outcome {
    for change in ["-0.000000000000000001", "-99999999999999999999.999999999999999999", "-12.5"] {
        let values = SnapshotValues { change_24h: Some(change.parse()?), ..SnapshotValues::default() };
        let snapshot = MarketSnapshot::new(Scope::Global, at(0), values)?;
        case.store().insert_snapshots(std::slice::from_ref(&snapshot)).await?;
        same_rows(change, &MarketSnapshot::all(case.store(), &Scope::Global).await?, &[snapshot])?;
    }
    Ok(())
}

async fn none_is_not_zero(case: &Case) -> Outcome {
    let (store, name, one) = (case.store(), instrument("alpha:NONE"), "1".parse::<Price>()?);
    let zero = Some(Quantity::ZERO);
    let ticks = [
        PriceTick::new(name.clone(), at(0), 0, one)?,
        PriceTick::new(name.clone(), at(1), 0, one)?.with_quantity(zero),
        PriceTick::new(name.clone(), at(2), 0, one)?.with_side(qi_core::Side::Sell),
    ];
    store.insert_ticks(&ticks).await?;
    same_rows("ticks", &PriceTick::all(store, &name).await?, &ticks)?;

    let none = QuoteValues::default();
    let quotes = [
        Quote::new(name.clone(), at(0), 0, QuoteValues { bid_price: Some(one), ..none })?,
        Quote::new(name.clone(), at(1), 0, QuoteValues { ask_price: Some(one), ask_size: zero, ..none })?,
        Quote::new(name.clone(), at(2), 0, QuoteValues { ask_price: Some(one), bid_size: zero, ..none })?,
    ];
    store.insert_quotes(&quotes).await?;
    same_rows("quotes", &Quote::all(store, &name).await?, &quotes)?;

    let flat = BarValues::flat(one);
    let bars = [
        Ohlcv::new(name.clone(), Interval::M1, at(0), flat)?,
        Ohlcv::new(name.clone(), Interval::M1, at(1), BarValues { volume: None, ..flat })?,
        Ohlcv::new(name.clone(), Interval::M1, at(2), BarValues { quote_volume: None, ..flat })?,
        Ohlcv::new(name.clone(), Interval::M1, at(3), BarValues { count: None, ..flat })?,
    ];
    store.insert_bars(&bars).await?;
    same_rows("bars", &Ohlcv::all(store, &(name, Interval::M1)).await?, &bars)?;

    let none = SnapshotValues::default();
    let (nothing, zero_percent) = (zero, Percent::new(Decimal::ZERO).ok());
    let snapshots = [
        SnapshotValues { market_cap_usd: nothing, ..none.clone() },
        SnapshotValues { volume_24h_usd: nothing, ..none.clone() },
        SnapshotValues { btc_dominance: zero_percent, ..none.clone() },
        SnapshotValues { eth_dominance: zero_percent, ..none.clone() },
        SnapshotValues { active_currencies: Some(0), ..none.clone() },
        SnapshotValues { markets: Some(0), ..none.clone() },
        SnapshotValues { change_24h: zero_percent, ..none.clone() },
        SnapshotValues { change_7d: zero_percent, source: Source::new("x").ok(), ..none },
    ];
    let snapshots: Vec<_> = (0..)
        .zip(snapshots)
        .map(|(n, values)| MarketSnapshot::new(Scope::Global, at(n), values))
        .collect::<qi_core::Result<_>>()?;
    store.insert_snapshots(&snapshots).await?;
    same_rows("snapshots", &MarketSnapshot::all(store, &Scope::Global).await?, &snapshots)
}

async fn a_microsecond_counts<D: Sample>(case: &Case) -> Outcome {
    let series = D::series_no(0);
    let batch: Vec<D> = [0, 1, 2, 999]
        .into_iter()
        .zip(0..)
        .map(|(n, v)| D::make(&series, micros(n * D::STEP), 0, v))
        .collect();
    D::insert(case.store(), &batch).await?;
    same_rows("the series", &D::all(case.store(), &series).await?, &batch)?;
    let inner = super::shelf::Ask::<D>::all(&series)
        .within(super::shelf::range(micros(D::STEP), micros(2 * D::STEP)));
    same_rows("one step of it", &D::page(case.store(), &inner).await?.items, &batch[1..2])?;
    holds("the times of the checks count from a whole second", BASE % 1_000_000 == 0)
}

async fn both_ends_of_time<D: Sample>(case: &Case) -> Outcome {
    let series = D::series_no(0);
    let batch = [Timestamp::MIN, Timestamp::MAX_RECORD].map(|ts| D::make(&series, ts, 0, 5));
    D::insert(case.store(), &batch).await?;
    same_rows("the series", &D::all(case.store(), &series).await?, &batch)?;
    let latest = D::scan_latest(case.store(), super::shelf::AskLatest::all()).await?;
    same_rows("the latest", &latest, &batch[1..])
}

async fn long_and_strange_names(case: &Case) -> Outcome {
    let symbols = ["9".to_owned(), "A._:/-".to_owned(), "Z".repeat(64), "1000SHIB/USD:PERP".to_owned()];
    let exchanges = ["0".to_owned(), "a-_z".to_owned(), "_-".repeat(16)];
    for exchange in exchanges {
        for symbol in &symbols {
            let name = qi_core::Instrument::new(Exchange::new(&exchange)?, Symbol::new(symbol)?);
            let tick = PriceTick::make(&name, minute(0), 0, 1);
            case.store().insert_ticks(std::slice::from_ref(&tick)).await?;
            same_rows("the tick", &PriceTick::all(case.store(), &name).await?, &[tick])?;
        }
    }
    let source = Source::new("it's \"100 %\" \\ $1; --{}~ ?")?;
    let values = SnapshotValues { markets: Some(1), source: Some(source), ..SnapshotValues::default() };
    let snapshot = MarketSnapshot::new("asset:A._:/-".parse()?, minute(0), values)?;
    case.store().insert_snapshots(std::slice::from_ref(&snapshot)).await?;
    same_rows(
        "the snapshot",
        &MarketSnapshot::all(case.store(), snapshot.scope()).await?,
        std::slice::from_ref(&snapshot),
    )
}

/// Real symbols, symbols that a collation would confuse, and symbols that quoting would break.
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

async fn symbols_as_exchanges_write_them(case: &Case) -> Outcome {
    let store = case.store();
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
        same_rows(&what, &PriceTick::all(store, tick.instrument()).await?, std::slice::from_ref(tick))?;
        let latest = store.latest_tick(tick.instrument()).await?;
        same_rows(&what, latest.as_slice(), std::slice::from_ref(tick))?;
    }
    let latest = PriceTick::scan_latest(store, super::shelf::AskLatest::all().limit(7)).await?;
    names.sort();
    let found: Vec<_> = latest.iter().map(|tick| tick.instrument().clone()).collect();
    same_rows("the order of the instruments", &found, &names)?;
    let listed = super::shelf::AskLatest::these(names.clone()).limit(7);
    same_rows("the latest of these", &PriceTick::scan_latest(store, listed).await?, &latest)?;
    for (n, name) in (0..).zip(&names) {
        let scope = Scope::Asset(name.symbol().clone());
        let values = SnapshotValues { markets: Some(n), ..SnapshotValues::default() };
        let snapshot = MarketSnapshot::new(scope.clone(), minute(0), values)?;
        store.insert_snapshots(std::slice::from_ref(&snapshot)).await?;
        same_rows("the snapshot", &MarketSnapshot::all(store, &scope).await?, &[snapshot])?;
    }
    // A deletion is of one of them alone.
    let (gone, left) = (&names[3], ticks.len() - 1);
    store.delete_range(&PriceTick::deletion(Some(vec![gone.clone()]), qi_core::TimeRange::ALL)).await?;
    same_rows("the deleted one", &PriceTick::all(store, gone).await?, &[])?;
    let rest = PriceTick::scan_latest(store, super::shelf::AskLatest::all()).await?;
    super::expect::same("the others", &rest.len(), &left)
}

/// No store can be asked to hold these, because nobody can build them.
async fn what_cannot_be_stored_is_refused(_: &Case) -> Outcome {
    for text in ["0.0000000000000000001", "100000000000000000000", "0", "-1", "NaN", "1e5", ""] {
        holds(format_args!("the price {text} is refused"), text.parse::<Price>().is_err())?;
    }
    for text in ["1.0000000000000000001", "100000000000000000000", "-0.1"] {
        holds(format_args!("the quantity {text} is refused"), text.parse::<Quantity>().is_err())?;
    }
    for text in
        ["Alpha:BTC", "alpha:B C", "alpha:", ":BTC", "alpha", "al pha:BTC", "alpha:B\u{200b}", "alpha:B\0"]
    {
        holds(
            format_args!("the instrument {text:?} is refused"),
            text.parse::<qi_core::Instrument>().is_err(),
        )?;
    }
    let late = PriceTick::new(instrument("alpha:BTC"), Timestamp::MAX, 0, "1".parse()?);
    holds("a time after the last one of a record is refused", late.is_err())?;
    holds("the moment zero is refused", Timestamp::from_micros(0).is_err())
}
