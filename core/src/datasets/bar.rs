//! Bars: open, high, low, close and volume of an interval, built from ticks or from finer bars.

use serde::{Deserialize, Serialize};

use super::PriceTick;
use crate::domain::{Sum18, Sum36};
use crate::record::{Columns, Record};
use crate::{Error, Instrument, Interval, Price, Quantity, Result, Timestamp};

/// The values of a bar. Prices and `quote_volume` are in the quote currency, and `volume` is in the base currency. None
/// means unknown; candle feeds often have no count.
///
/// The struct is open on purpose, because programs create it with a literal. A new field is a breaking change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Columns)]
pub struct BarValues {
    /// The first price.
    pub open: Price,
    /// The highest price.
    pub high: Price,
    /// The lowest price.
    pub low: Price,
    /// The last price.
    pub close: Price,
    /// The traded amount of the base currency.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub volume: Option<Quantity>,
    /// The traded amount of the quote currency.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub quote_volume: Option<Quantity>,
    /// The number of ticks.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub count: Option<u64>,
}

impl BarValues {
    /// Creates the values of a bar without trades: all four prices are `price`, and volumes and count are zero.
    pub fn flat(price: Price) -> Self {
        Self {
            open: price,
            high: price,
            low: price,
            close: price,
            volume: Some(Quantity::ZERO),
            quote_volume: Some(Quantity::ZERO),
            count: Some(0),
        }
    }
}

/// One bar of an instrument. The key is (instrument, interval, `open_time`). The bar covers `[open_time, close_time)`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Record)]
#[record(name = "bars", message = "bar", topic = "crypto-ohlcv", validate = Self::holds_together)]
pub struct Bar {
    #[series]
    instrument: Instrument,
    #[interval]
    interval: Interval,
    #[time]
    open_time: Timestamp,
    #[flatten]
    values: BarValues,
}

impl Bar {
    /// Creates a bar that opens at `open_time`.
    ///
    /// # Errors
    /// `InvalidInput` for an `open_time` that is not aligned to the interval or is after [`Timestamp::MAX_RECORD`], an
    /// open or close price outside `[low, high]`, or a count above [`crate::domain::MAX_COUNTER`].
    pub fn new(
        instrument: Instrument,
        interval: Interval,
        open_time: Timestamp,
        values: BarValues,
    ) -> Result<Self> {
        let bar = Self { instrument, interval, open_time, values };
        bar.validate()?;
        Ok(bar)
    }

    fn holds_together(&self) -> Result<()> {
        let (interval, open_time) = (self.interval, self.open_time);
        if interval.floor(open_time) != open_time {
            let rule = format!("must be aligned to {interval}");
            return Err(Error::invalid("domain.bar.alignment", "open_time", open_time, rule));
        }
        let BarValues { open, high, low, close, .. } = self.values;
        for (field, price) in [("open", open), ("close", close), ("low", low)] {
            if price > high {
                let rule = format!("must not be above high {high}");
                return Err(Error::invalid("domain.bar.high", field, price, rule));
            }
        }
        for (field, price) in [("open", open), ("close", close)] {
            if price < low {
                return Err(Error::invalid(
                    "domain.bar.low",
                    field,
                    price,
                    format!("must not be below low {low}"),
                ));
            }
        }
        Ok(())
    }

    /// Returns the traded instrument.
    pub fn instrument(&self) -> &Instrument {
        &self.instrument
    }

    /// Returns the interval of the bar.
    pub fn interval(&self) -> Interval {
        self.interval
    }

    /// Returns the start of the bar, inclusive.
    pub fn open_time(&self) -> Timestamp {
        self.open_time
    }

    /// Returns the end of the bar, exclusive. `as_of` uses this time, because a bar is complete when it closes.
    pub fn close_time(&self) -> Timestamp {
        // The open time of a valid bar is at least a week before `Timestamp::MAX`, so the sum cannot overflow.
        Timestamp::from_micros_unchecked(self.open_time.as_micros() + self.interval.as_micros())
    }

    /// Returns the values of the bar.
    pub fn values(&self) -> &BarValues {
        &self.values
    }

    /// Returns the close price.
    pub fn close(&self) -> Price {
        self.values.close
    }
}

/// A builder of a bar from the ticks of one bucket. Sums are exact and rounded once at the end.
///
/// The ticks must arrive in the order (ts, seq). `volume` is the sum of the known quantities, or None
/// if no quantity is known.
#[derive(Debug, Clone)]
pub struct BarBuilder {
    open: Price,
    high: Price,
    low: Price,
    close: Price,
    sums: Option<(Sum18, Sum36)>,
    count: u64,
}

impl BarBuilder {
    /// Creates a builder from the first tick of the bucket.
    pub fn new(first: &PriceTick) -> Result<Self> {
        let price = first.price();
        let empty = Self { open: price, high: price, low: price, close: price, sums: None, count: 0 };
        empty.plus(first)
    }

    /// Adds the next tick.
    ///
    /// # Errors
    /// `OutOfRange` if a sum exceeds 256 bits.
    pub fn plus(mut self, tick: &PriceTick) -> Result<Self> {
        let price = tick.price();
        self.high = self.high.max(price);
        self.low = self.low.min(price);
        self.close = price;
        self.count += 1;
        if let Some(quantity) = tick.quantity() {
            let (volume, turnover) = self.sums.unwrap_or_default();
            self.sums = Some((volume.plus(quantity)?, turnover.plus_product(price, quantity)?));
        }
        Ok(self)
    }

    /// Returns the values of the bar.
    ///
    /// # Errors
    /// `OutOfRange` if a sum is 10²⁰ or more.
    pub fn finish(self) -> Result<BarValues> {
        let Self { open, high, low, close, sums, count } = self;
        let (volume, quote_volume) = match sums {
            None => (None, None),
            Some((volume, turnover)) => {
                (Some(Quantity::new(volume.total()?)?), Some(Quantity::new(turnover.total()?)?))
            }
        };
        Ok(BarValues { open, high, low, close, volume, quote_volume, count: Some(count) })
    }
}

/// Merges bars of one instrument and one interval, in ascending order, into bars of a coarser interval.
///
/// Sums are exact. If a value is unknown in one of the finer bars, it is unknown in the coarser bar too, because the
/// known part would be too small.
///
/// # Errors
/// `InvalidInput` if the finer interval does not divide the coarser interval, if the bars differ in instrument or
/// interval, or if they are not in ascending order. `OutOfRange` if a sum exceeds the range of the domain.
pub fn resample(bars: &[Bar], to: Interval) -> Result<Vec<Bar>> {
    let Some(first) = bars.first() else { return Ok(Vec::new()) };
    if !first.interval.divides(to) {
        let rule = format!("must divide {to}");
        return Err(Error::invalid("domain.bar.resample", "interval", first.interval, rule));
    }
    for pair in bars.windows(2) {
        if pair[1].instrument != first.instrument || pair[1].interval != first.interval {
            return Err(Error::invalid(
                "domain.bar.resample",
                "bars",
                format_args!("{} {}", pair[1].instrument, pair[1].interval),
                format_args!("must all be of {} {}", first.instrument, first.interval),
            ));
        }
        if pair[1].open_time <= pair[0].open_time {
            let rule = "must be in ascending order without duplicates";
            return Err(Error::invalid("domain.bar.resample", "open_time", pair[1].open_time, rule));
        }
    }
    bars.chunk_by(|a, b| to.floor(a.open_time) == to.floor(b.open_time))
        .map(|group| Bar::new(first.instrument.clone(), to, to.floor(group[0].open_time), merge(group)?))
        .collect()
}

/// Merges the values of several bars. `group` is not empty.
fn merge(group: &[Bar]) -> Result<BarValues> {
    let total = |of: fn(&BarValues) -> Option<Quantity>| -> Result<Option<Quantity>> {
        let Some(known) = group.iter().map(|bar| of(&bar.values)).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let sum = known.into_iter().try_fold(Sum18::ZERO, Sum18::plus)?;
        Ok(Some(Quantity::new(sum.total()?)?))
    };
    let mut merged = group[0].values;
    for bar in &group[1..] {
        merged.high = merged.high.max(bar.values.high);
        merged.low = merged.low.min(bar.values.low);
        merged.close = bar.values.close;
        merged.count = merged.count.zip(bar.values.count).map(|(a, b)| a.saturating_add(b));
    }
    merged.volume = total(|values| values.volume)?;
    merged.quote_volume = total(|values| values.quote_volume)?;
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn p(text: &str) -> Price {
        text.parse().unwrap()
    }

    fn bar(minute: i64, prices: [&str; 4], volume: Option<&str>) -> Bar {
        let [open, high, low, close] = prices.map(p);
        let volume = volume.map(|v| v.parse().unwrap());
        let values = BarValues { open, high, low, close, volume, quote_volume: volume, count: Some(2) };
        let open_time = Timestamp::from_secs(1_000_000_020 + 60 * minute).unwrap();
        Bar::new("x:Y".parse().unwrap(), Interval::M1, open_time, values).unwrap()
    }

    fn tick(seq: u64, price: &str, quantity: Option<&str>) -> PriceTick {
        PriceTick::new("x:Y".parse().unwrap(), Timestamp::MIN, seq, p(price))
            .unwrap()
            .with_quantity(quantity.map(|q| q.parse().unwrap()))
    }

    #[test]
    fn inconsistent_bars_are_rejected() {
        let new = |prices: [&str; 4], at: i64| {
            let [open, high, low, close] = prices.map(p);
            let values = BarValues { open, high, low, close, ..BarValues::flat(open) };
            let time = Timestamp::from_secs(at).unwrap();
            Bar::new("x:Y".parse().unwrap(), Interval::M1, time, values)
        };
        assert!(new(["2", "3", "1", "2"], 1_000_000_020).is_ok());
        for (prices, at, field) in [
            (["4", "3", "1", "2"], 1_000_000_020, "open"),
            (["2", "3", "1", "4"], 1_000_000_020, "close"),
            (["2", "3", "2.5", "3"], 1_000_000_020, "open"),
            (["2", "1", "2", "2"], 1_000_000_020, "open"),
            (["2", "3", "1", "2"], 1_000_000_021, "open_time"),
        ] {
            assert_eq!(new(prices, at).unwrap_err().context_value("field"), Some(field), "{prices:?}");
        }
    }

    #[test]
    fn ticks_aggregate_into_a_bar() {
        let ticks = [tick(0, "100.5", Some("2.25")), tick(1, "99", None), tick(2, "101", Some("1"))];
        let builder = BarBuilder::new(&ticks[0]).unwrap();
        let values = ticks[1..].iter().try_fold(builder, BarBuilder::plus).unwrap().finish().unwrap();
        assert_eq!(
            values,
            BarValues {
                open: p("100.5"),
                high: p("101"),
                low: p("99"),
                close: p("101"),
                volume: "3.25".parse().ok(),
                quote_volume: "327.125".parse().ok(),
                count: Some(3),
            }
        );
        let unknown = BarBuilder::new(&tick(0, "1", None)).unwrap().finish().unwrap();
        assert_eq!((unknown.volume, unknown.quote_volume, unknown.count), (None, None, Some(1)));
    }

    #[test]
    fn a_sum_beyond_the_domain_is_out_of_range() {
        let big = tick(0, "99999999999999999999", Some("99999999999999999999"));
        let error = BarBuilder::new(&big).unwrap().finish().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
    }

    #[test]
    fn finer_bars_merge_exactly() {
        let bars = [
            bar(0, ["10", "12", "9", "11"], Some("0.1")),
            bar(1, ["11", "15", "11", "14"], Some("0.2")),
            bar(7, ["14", "14", "2", "3"], None),
        ];
        let merged = resample(&bars, Interval::M5).unwrap();
        assert_eq!(merged.len(), 2);
        let BarValues { open, high, low, close, volume, count, .. } = *merged[0].values();
        assert_eq!([open, high, low, close], ["10", "15", "9", "14"].map(p));
        assert_eq!((volume, count), ("0.3".parse().ok(), Some(4)));
        assert_eq!(merged[1].values().volume, None, "unknown stays unknown");
        assert!(resample(&[], Interval::M5).unwrap().is_empty());
    }

    #[test]
    fn incompatible_bars_are_not_merged() {
        let bars = [bar(0, ["1"; 4], None), bar(1, ["1"; 4], None)];
        assert!(resample(&bars, Interval::S5).is_err());
        assert!(resample(&[bars[1].clone(), bars[0].clone()], Interval::M5).is_err());
        assert!(resample(&[bars[0].clone(), bars[0].clone()], Interval::M5).is_err());
    }

    #[test]
    fn json_is_validated_like_the_constructor() {
        let bar = bar(0, ["1", "2", "1", "2"], Some("3"));
        let json = serde_json::to_string(&bar).unwrap();
        assert_eq!(serde_json::from_str::<Bar>(&json).unwrap(), bar);
        assert!(serde_json::from_str::<Bar>(&json.replace("\"high\":\"2\"", "\"high\":\"1.5\"")).is_err());
    }
}
