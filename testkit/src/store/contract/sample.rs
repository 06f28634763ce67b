//! Sample records for the suite.

use qi_core::record::{Enumeration, Level, Levels, Text};
use qi_core::{
    Bar, BarValues, BookSnapshot, Decimal, Exchange, FundingRate, Instrument, Interval, Liquidation,
    MarkPrice, MarketSnapshot, OpenInterest, Percent, Price, PriceTick, Provider, Quantity, Quote,
    QuoteValues, Record, Scope, Side, SnapshotValues, Symbol, Timestamp,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A record with samples for the contract suite. Applications implement this trait to run the suite
/// on their own records:
///
/// ```no_run
/// use qi_core::{Instrument, Percent, Record, Timestamp};
/// use qi_testkit::store::contract::{MemoryFactory, Sample, Suite, Wrapper};
///
/// #[derive(Debug, Clone, PartialEq, Record)]
/// #[record(name = "funding_rates")]
/// struct FundingRate {
///     #[series]
///     instrument: Instrument,
///     #[time]
///     ts: Timestamp,
///     rate: Percent,
/// }
///
/// impl Sample for FundingRate {
///     fn series_no(n: usize) -> Instrument {
///         qi_testkit::store::contract::instrument_no(n)
///     }
///     fn make(instrument: &Instrument, ts: Timestamp, _seq: u64, value: u32) -> Self {
///         Self { instrument: instrument.clone(), ts, rate: value.to_string().parse().unwrap() }
///     }
/// }
///
/// Suite::new().on(MemoryFactory, Wrapper::pointers()).with::<FundingRate>().main();
/// ```
pub trait Sample: Record + Serialize + DeserializeOwned {
    /// The smallest distance between two records of one series, in microseconds.
    const STEP: i64 = 1;

    /// Returns the n-th series in ascending order, for n below 1,000. If the dataset has intervals, all its series
    /// have the same interval.
    fn series_no(n: usize) -> Self::Series;

    /// Returns a valid record. Records with the same series and sort key differ if their `value` differs. For a `value`
    /// from 0 to 30,000, they should differ in every field except the key.
    ///
    /// A dataset without sequence numbers ignores `seq`.
    fn make(series: &Self::Series, ts: Timestamp, seq: u64, value: u32) -> Self;
}

/// Returns the n-th instrument of the samples in ascending order, for n below 1,000.
///
/// # Panics
/// Never for n below 1,000.
pub fn instrument_no(n: usize) -> Instrument {
    format!("alpha:S{n:03}").parse().expect("a valid name")
}

/// Returns a number with significant digits at both ends: `value + 1`, and `field` at the 18th decimal place.
fn units(value: u32, field: u8) -> i128 {
    (i128::from(value) + 1) * 1_000_000_000_000_000_000 + i128::from(field)
}

pub(super) fn price(value: u32, field: u8) -> Price {
    Price::from_units(units(value, field)).expect("positive")
}

pub(super) fn quantity(value: u32, field: u8) -> Quantity {
    Quantity::from_units(units(value, field)).expect("positive")
}

impl Sample for PriceTick {
    fn series_no(n: usize) -> Instrument {
        instrument_no(n)
    }
    fn make(series: &Instrument, ts: Timestamp, seq: u64, value: u32) -> Self {
        let side = if value.is_multiple_of(2) { Side::Buy } else { Side::Sell };
        Self::new(series.clone(), ts, seq, price(value, 1))
            .expect("a valid tick")
            .with_quantity(quantity(value, 2))
            .with_side(side)
    }
}

impl Sample for Quote {
    fn series_no(n: usize) -> Instrument {
        instrument_no(n)
    }
    fn make(series: &Instrument, ts: Timestamp, seq: u64, value: u32) -> Self {
        let values = QuoteValues {
            bid_price: Some(price(value, 1)),
            bid_size: Some(quantity(value, 2)),
            ask_price: Some(price(value, 3)),
            ask_size: Some(quantity(value, 4)),
        };
        Self::new(series.clone(), ts, seq, values).expect("a valid quote")
    }
}

impl Sample for Bar {
    const STEP: i64 = 60_000_000;

    fn series_no(n: usize) -> (Instrument, Interval) {
        (instrument_no(n), Interval::M1)
    }
    fn make(series: &(Instrument, Interval), ts: Timestamp, _: u64, value: u32) -> Self {
        let values = BarValues {
            low: price(value, 1),
            open: price(value, 2),
            close: price(value, 3),
            high: price(value, 4),
            volume: Some(quantity(value, 5)),
            quote_volume: Some(quantity(value, 6)),
            count: Some(u64::from(value) + 7),
        };
        Self::new(series.0.clone(), series.1, series.1.floor(ts), values).expect("a valid bar")
    }
}

impl Sample for MarketSnapshot {
    fn series_no(n: usize) -> Scope {
        format!("asset:S{n:03}").parse().expect("a valid scope")
    }
    fn make(series: &Scope, ts: Timestamp, _: u64, value: u32) -> Self {
        let percent =
            |field| qi_core::Percent::from_units(units(value % 99, field)).expect("a valid percentage");
        let values = SnapshotValues {
            market_cap_usd: Some(quantity(value, 1)),
            volume_24h_usd: Some(quantity(value, 2)),
            btc_dominance: Some(percent(3)),
            eth_dominance: Some(percent(4)),
            active_currencies: Some(u64::from(value) + 5),
            markets: Some(u64::from(value) + 6),
            change_24h: Some(percent(7)),
            change_7d: Some(percent(8)),
            source: Some(qi_core::Provider::new(format!("source {value}")).expect("a valid source")),
        };
        Self::new(series.clone(), ts, values).expect("a valid snapshot")
    }
}

impl Sample for FundingRate {
    fn series_no(n: usize) -> Instrument {
        instrument_no(n)
    }
    fn make(series: &Instrument, ts: Timestamp, _: u64, value: u32) -> Self {
        let sign = if value.is_multiple_of(2) { 1 } else { -1 };
        let rate = Percent::from_units(sign * units(value, 1)).expect("a valid percentage");
        let next = Timestamp::from_micros(ts.as_micros() + 1 + i64::from(value)).ok();
        Self::new(series.clone(), ts, rate)
            .and_then(|rate| rate.with_mark_price(price(value, 2)).with_next_funding(next))
            .expect("a valid funding rate")
    }
}

impl Sample for OpenInterest {
    fn series_no(n: usize) -> Instrument {
        instrument_no(n)
    }
    fn make(series: &Instrument, ts: Timestamp, _: u64, value: u32) -> Self {
        let interest = Self::new(series.clone(), ts, quantity(value, 1)).expect("a valid open interest");
        interest.with_value(quantity(value, 2))
    }
}

impl Sample for Liquidation {
    fn series_no(n: usize) -> Instrument {
        instrument_no(n)
    }
    fn make(series: &Instrument, ts: Timestamp, seq: u64, value: u32) -> Self {
        let side = if value.is_multiple_of(2) { Side::Buy } else { Side::Sell };
        Self::new(series.clone(), ts, seq, side, (price(value, 1), quantity(value, 2)))
            .expect("a valid liquidation")
            .with_average_price(price(value, 3))
    }
}

impl Sample for MarkPrice {
    fn series_no(n: usize) -> Instrument {
        instrument_no(n)
    }
    fn make(series: &Instrument, ts: Timestamp, _: u64, value: u32) -> Self {
        let mark = Self::new(series.clone(), ts, price(value, 1)).expect("a valid mark price");
        mark.with_index(price(value, 2))
    }
}

impl Sample for BookSnapshot {
    fn series_no(n: usize) -> Instrument {
        instrument_no(n)
    }
    fn make(series: &Instrument, ts: Timestamp, seq: u64, value: u32) -> Self {
        // Bids fall and asks rise from a price between them. There are few levels, so large batches stay small.
        let level = |at: i128| Level {
            price: Price::from_units(units(value, 100) + at).expect("positive"),
            quantity: Quantity::from_units(units(value, 101) - at).expect("positive"),
        };
        let count = i128::from(value % 4);
        let (bids, asks) = ((-count..=0).rev().map(level), (1..3 + count).map(level));
        Self::new(series.clone(), ts, seq, bids.collect(), asks.collect()).expect("a valid book")
    }
}

/// An enumeration with three variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Enumeration)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// The first of three variants.
    First,
    /// The second of three variants.
    SecondOne,
    /// The third of three variants.
    Third,
}

/// A record with a column of every type, and an optional column of every type except levels.
#[derive(Debug, Clone, PartialEq, Record)]
#[record(name = "everything", message = "everything", topic = "test-everything")]
#[allow(missing_docs, reason = "the types of the columns are the documentation")]
pub struct Everything {
    #[series]
    pub instrument: Instrument,
    #[time]
    pub ts: Timestamp,
    #[seq]
    pub seq: u64,
    pub decimal: Decimal,
    pub price: Price,
    pub quantity: Quantity,
    pub percent: Percent,
    pub counter: u64,
    pub integer: i64,
    pub boolean: bool,
    pub text: Text<64>,
    pub choice: Choice,
    pub time: Timestamp,
    pub interval: Interval,
    pub levels: Levels<10>,
    pub coin: Symbol,
    pub venue: Exchange,
    pub market: Scope,
    pub decimal_or_none: Option<Decimal>,
    pub price_or_none: Option<Price>,
    pub quantity_or_none: Option<Quantity>,
    pub percent_or_none: Option<Percent>,
    pub counter_or_none: Option<u64>,
    pub integer_or_none: Option<i64>,
    pub boolean_or_none: Option<bool>,
    pub text_or_none: Option<Text<64>>,
    pub choice_or_none: Option<Choice>,
    pub time_or_none: Option<Timestamp>,
    pub interval_or_none: Option<Interval>,
    pub source_or_none: Option<Provider>,
}

impl Sample for Everything {
    fn series_no(n: usize) -> Instrument {
        instrument_no(n)
    }
    fn make(series: &Instrument, ts: Timestamp, seq: u64, value: u32) -> Self {
        let n = i64::from(value);
        let text = |field: &str| format!("{field} {value} \u{e4}'\"\\").parse().expect("a short text");
        let choice = [Choice::First, Choice::SecondOne, Choice::Third][value as usize % 3];
        let percent =
            |field| Percent::from_units(units(value, field) * if value.is_multiple_of(2) { 1 } else { -1 });
        let time = |field| Timestamp::from_micros(1_709_510_400_000_000 + 1_000_003 * n + field);
        let level = |at| Level { price: price(value, at), quantity: quantity(value, at + 100) };
        let interval = |field: usize| Interval::ALL[(value as usize + field) % Interval::ALL.len()];
        Self {
            instrument: series.clone(),
            ts,
            seq,
            decimal: Decimal::from_units(-units(value, 1)).expect("a small number"),
            price: price(value, 2),
            quantity: quantity(value, 3),
            percent: percent(4).expect("a small number"),
            counter: u64::from(value) + 5,
            integer: -n - 6,
            boolean: value.is_multiple_of(2),
            text: text("text"),
            choice,
            time: time(7).expect("a time of 2024"),
            interval: interval(0),
            levels: Levels::new((0..(value % 11).to_le_bytes()[0]).map(level).collect())
                .expect("at most ten"),
            coin: Symbol::new(format!("S{value}")).expect("a valid symbol"),
            venue: Exchange::new(format!("e{value}")).expect("a valid exchange"),
            market: Scope::Exchange(Exchange::new(format!("x{value}")).expect("a valid exchange")),
            decimal_or_none: Decimal::from_units(units(value, 11)).ok(),
            price_or_none: Some(price(value, 12)),
            quantity_or_none: Some(quantity(value, 13)),
            percent_or_none: percent(14).ok(),
            counter_or_none: Some(u64::from(value) + 15),
            integer_or_none: Some(n - 16),
            boolean_or_none: Some(value % 2 == 1),
            text_or_none: Some(text("other")),
            choice_or_none: Some(choice),
            time_or_none: time(17).ok(),
            interval_or_none: Some(interval(1)),
            source_or_none: Provider::new(format!("source {value}")).ok(),
        }
    }
}

/// A record with a name as its series.
#[derive(Debug, Clone, PartialEq, Record)]
#[record(name = "named_signals", message = "named_signal", topic = "test-signals")]
#[allow(missing_docs, reason = "the types of the columns are the documentation")]
pub struct NamedSignal {
    #[series]
    pub strategy: Text<40>,
    #[time]
    pub ts: Timestamp,
    pub strength: Decimal,
    pub note: Option<Text<64>>,
}

impl Sample for NamedSignal {
    fn series_no(n: usize) -> Text<40> {
        format!("Strategy '{n:03}' \u{e9}").parse().expect("a short name")
    }
    fn make(strategy: &Text<40>, ts: Timestamp, _: u64, value: u32) -> Self {
        let strength = Decimal::from_units(units(value, 1)).expect("a small number");
        let note = format!("note {value}").parse().ok();
        Self { strategy: strategy.clone(), ts, strength, note }
    }
}
