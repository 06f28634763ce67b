//! Ticks: trades and observed prices.

use crate::record::Record;
use crate::{Instrument, Price, Quantity, Result, Side, Timestamp};

/// A trade, or one observed price. The key is (instrument, ts, seq); two ticks with the same key are the same tick.
///
/// ```
/// use qi_core::{PriceTick, Quantity, Side, Timestamp};
/// let tick = PriceTick::new("binance:BTC-USDT".parse()?, Timestamp::from_millis(1_610_064_000_278)?, 553_287_559,
///         "39432.48".parse()?)?
///     .with_quantity("0.000263".parse::<Quantity>()?)
///     .with_side(Side::Sell);
/// assert_eq!(tick.price().to_string(), "39432.48");
/// # Ok::<(), qi_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Record)]
#[record(name = "ticks", message = "tick", topic = "crypto-prices")]
pub struct PriceTick {
    #[series]
    instrument: Instrument,
    #[time]
    ts: Timestamp,
    #[seq]
    seq: u64,
    price: Price,
    quantity: Option<Quantity>,
    side: Option<Side>,
}

impl PriceTick {
    /// Creates a tick of `instrument` at `ts`.
    ///
    /// `seq` orders and distinguishes ticks of the same `ts`. It is the exchange's trade id. For a feed without ids it
    /// is the 0-based index among all records of that timestamp, in source order.
    ///
    /// # Errors
    /// `InvalidInput` for a `ts` after [`Timestamp::MAX_RECORD`] or a `seq` above [`crate::domain::MAX_COUNTER`].
    pub fn new(instrument: Instrument, ts: Timestamp, seq: u64, price: Price) -> Result<Self> {
        let tick = Self { instrument, ts, seq, price, quantity: None, side: None };
        tick.validate()?;
        Ok(tick)
    }

    /// Sets the traded amount of the base currency. None means unknown, which differs from zero.
    #[must_use]
    pub fn with_quantity(mut self, quantity: impl Into<Option<Quantity>>) -> Self {
        self.quantity = quantity.into();
        self
    }

    /// Sets the side of the taker.
    #[must_use]
    pub fn with_side(mut self, side: impl Into<Option<Side>>) -> Self {
        self.side = side.into();
        self
    }

    /// Returns the traded instrument.
    pub fn instrument(&self) -> &Instrument {
        &self.instrument
    }

    /// Returns the time in UTC.
    pub fn ts(&self) -> Timestamp {
        self.ts
    }

    /// Returns the sequence number among ticks of the same `ts`.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Returns the price in the quote currency.
    pub fn price(&self) -> Price {
        self.price
    }

    /// Returns the amount of the base currency, if known.
    pub fn quantity(&self) -> Option<Quantity> {
        self.quantity
    }

    /// Returns the side of the taker, if known.
    pub fn side(&self) -> Option<Side> {
        self.side
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::MAX_COUNTER;

    fn tick(ts: Timestamp, seq: u64) -> Result<PriceTick> {
        PriceTick::new("x:Y".parse().unwrap(), ts, seq, "1".parse().unwrap())
    }

    #[test]
    fn time_and_sequence_out_of_bounds_are_rejected() {
        assert!(tick(Timestamp::MIN, 0).is_ok());
        assert!(tick(Timestamp::MAX_RECORD, MAX_COUNTER).is_ok());
        assert_eq!(tick(Timestamp::MAX, 0).unwrap_err().context_value("field"), Some("ts"));
        assert_eq!(tick(Timestamp::MIN, MAX_COUNTER + 1).unwrap_err().context_value("field"), Some("seq"));
    }

    #[test]
    fn json_is_validated_like_the_constructor() {
        let tick = tick(Timestamp::MIN, 7).unwrap().with_quantity(Quantity::ZERO).with_side(Side::Buy);
        let json = serde_json::to_string(&tick).unwrap();
        assert_eq!(serde_json::from_str::<PriceTick>(&json).unwrap(), tick);
        assert!(serde_json::from_str::<PriceTick>(&json.replace(":7,", ":18446744073709551615,")).is_err());
        assert!(serde_json::from_str::<PriceTick>(&json.replace("\"x:Y\"", "\"X:Y\"")).is_err());
    }
}
