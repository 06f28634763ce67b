//! Market data of derivatives: funding rates, open interest, liquidations, mark prices.

use crate::record::Record;
use crate::{Error, Instrument, Percent, Price, Quantity, Result, Side, Timestamp};

/// The funding rate of a perpetual contract. The key is (instrument, ts).
///
/// ```
/// use qi_core::{FundingRate, Timestamp};
/// let ts = Timestamp::from_secs(1_700_006_400)?;
/// let rate = FundingRate::new("binance:BTC-USDT-PERP".parse()?, ts, "0.01".parse()?)?;
/// assert_eq!(rate.rate().to_string(), "0.01"); // percent
/// # Ok::<(), qi_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Record)]
#[record(name = "funding_rates", message = "funding_rate", validate = Self::next_is_later)]
pub struct FundingRate {
    #[series]
    instrument: Instrument,
    #[time]
    ts: Timestamp,
    rate: Percent,
    mark_price: Option<Price>,
    next_funding: Option<Timestamp>,
}

impl FundingRate {
    /// Creates a funding rate: the payment by holders of long positions at `ts`, in percent of the position's value.
    /// Holders of short positions pay a negative rate.
    ///
    /// # Errors
    /// `InvalidInput` for a `ts` after [`Timestamp::MAX_RECORD`].
    pub fn new(instrument: Instrument, ts: Timestamp, rate: Percent) -> Result<Self> {
        let funding = Self { instrument, ts, rate, mark_price: None, next_funding: None };
        funding.validate()?;
        Ok(funding)
    }

    /// Sets the mark price at which the funding is computed.
    #[must_use]
    pub fn with_mark_price(mut self, price: impl Into<Option<Price>>) -> Self {
        self.mark_price = price.into();
        self
    }

    /// Sets the time of the next funding.
    ///
    /// # Errors
    /// `InvalidInput` if the time is not after `ts`.
    pub fn with_next_funding(mut self, next: impl Into<Option<Timestamp>>) -> Result<Self> {
        self.next_funding = next.into();
        self.validate()?;
        Ok(self)
    }

    fn next_is_later(&self) -> Result<()> {
        match self.next_funding {
            Some(next) if next <= self.ts => {
                let rule = format_args!("must be after ts {}", self.ts);
                Err(Error::invalid("domain.funding.next", "next_funding", next, rule))
            }
            _ => Ok(()),
        }
    }

    /// Returns the contract.
    pub fn instrument(&self) -> &Instrument {
        &self.instrument
    }

    /// Returns the time of the funding in UTC.
    pub fn ts(&self) -> Timestamp {
        self.ts
    }

    /// Returns the rate in percent.
    pub fn rate(&self) -> Percent {
        self.rate
    }

    /// Returns the mark price, if known.
    pub fn mark_price(&self) -> Option<Price> {
        self.mark_price
    }

    /// Returns the time of the next funding, if known.
    pub fn next_funding(&self) -> Option<Timestamp> {
        self.next_funding
    }
}

/// The open interest of a contract. The key is (instrument, ts).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Record)]
#[record(name = "open_interest")]
pub struct OpenInterest {
    #[series]
    instrument: Instrument,
    #[time]
    ts: Timestamp,
    quantity: Quantity,
    value: Option<Quantity>,
}

impl OpenInterest {
    /// Creates the open interest at `ts`, in the base currency or in contracts, as the exchange reports it.
    ///
    /// # Errors
    /// `InvalidInput` for a `ts` after [`Timestamp::MAX_RECORD`].
    pub fn new(instrument: Instrument, ts: Timestamp, quantity: Quantity) -> Result<Self> {
        let interest = Self { instrument, ts, quantity, value: None };
        interest.validate()?;
        Ok(interest)
    }

    /// Sets the value in the quote currency.
    #[must_use]
    pub fn with_value(mut self, value: impl Into<Option<Quantity>>) -> Self {
        self.value = value.into();
        self
    }

    /// Returns the contract.
    pub fn instrument(&self) -> &Instrument {
        &self.instrument
    }

    /// Returns the time in UTC.
    pub fn ts(&self) -> Timestamp {
        self.ts
    }

    /// Returns the open interest in the base currency or in contracts.
    pub fn quantity(&self) -> Quantity {
        self.quantity
    }

    /// Returns the value in the quote currency, if known.
    pub fn value(&self) -> Option<Quantity> {
        self.value
    }
}

/// A liquidation: a forced order of an exchange. The key is (instrument, ts, seq).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Record)]
#[record(name = "liquidations", message = "liquidation")]
pub struct Liquidation {
    #[series]
    instrument: Instrument,
    #[time]
    ts: Timestamp,
    #[seq]
    seq: u64,
    side: Side,
    price: Price,
    quantity: Quantity,
    average_price: Option<Price>,
}

impl Liquidation {
    /// Creates a liquidation. `seq` is as in [`super::PriceTick::new`]. `side` is the side of the forced order, so a
    /// long position is closed by [`Side::Sell`].
    ///
    /// # Errors
    /// `InvalidInput` for a `ts` after [`Timestamp::MAX_RECORD`] or a `seq` above [`crate::domain::MAX_COUNTER`].
    pub fn new(
        instrument: Instrument,
        ts: Timestamp,
        seq: u64,
        side: Side,
        (price, quantity): (Price, Quantity),
    ) -> Result<Self> {
        let liquidation = Self { instrument, ts, seq, side, price, quantity, average_price: None };
        liquidation.validate()?;
        Ok(liquidation)
    }

    /// Sets the average price of the executed part.
    #[must_use]
    pub fn with_average_price(mut self, price: impl Into<Option<Price>>) -> Self {
        self.average_price = price.into();
        self
    }

    /// Returns the contract.
    pub fn instrument(&self) -> &Instrument {
        &self.instrument
    }

    /// Returns the time in UTC.
    pub fn ts(&self) -> Timestamp {
        self.ts
    }

    /// Returns the sequence number among liquidations of the same `ts`.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Returns the side of the forced order.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Returns the price of the order in the quote currency.
    pub fn price(&self) -> Price {
        self.price
    }

    /// Returns the quantity of the order in the base currency or in contracts.
    pub fn quantity(&self) -> Quantity {
        self.quantity
    }

    /// Returns the average price of the executed part, if known.
    pub fn average_price(&self) -> Option<Price> {
        self.average_price
    }
}

/// The mark price of a contract, and the index price that it follows. The key is (instrument, ts).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Record)]
#[record(name = "mark_prices", message = "mark_price")]
pub struct MarkPrice {
    #[series]
    instrument: Instrument,
    #[time]
    ts: Timestamp,
    mark: Price,
    index: Option<Price>,
}

impl MarkPrice {
    /// Creates the mark price of a contract at `ts`.
    ///
    /// # Errors
    /// `InvalidInput` for a `ts` after [`Timestamp::MAX_RECORD`].
    pub fn new(instrument: Instrument, ts: Timestamp, mark: Price) -> Result<Self> {
        let price = Self { instrument, ts, mark, index: None };
        price.validate()?;
        Ok(price)
    }

    /// Sets the index price.
    #[must_use]
    pub fn with_index(mut self, index: impl Into<Option<Price>>) -> Self {
        self.index = index.into();
        self
    }

    /// Returns the contract.
    pub fn instrument(&self) -> &Instrument {
        &self.instrument
    }

    /// Returns the time in UTC.
    pub fn ts(&self) -> Timestamp {
        self.ts
    }

    /// Returns the mark price in the quote currency.
    pub fn mark(&self) -> Price {
        self.mark
    }

    /// Returns the index price in the quote currency, if known.
    pub fn index(&self) -> Option<Price> {
        self.index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_secs(1_700_000_000 + seconds).unwrap()
    }

    #[test]
    fn the_next_funding_is_later() {
        let rate = FundingRate::new("x:Y".parse().unwrap(), at(0), "-0.01".parse().unwrap()).unwrap();
        assert!(rate.clone().with_next_funding(at(1)).is_ok());
        let error = rate.clone().with_next_funding(at(0)).unwrap_err();
        assert_eq!(error.context_value("field"), Some("next_funding"));
        let json = serde_json::to_string(&rate.with_next_funding(at(1)).unwrap()).unwrap();
        let earlier = json.replace("1700000001", "1699999999");
        assert!(serde_json::from_str::<FundingRate>(&json).is_ok());
        assert!(serde_json::from_str::<FundingRate>(&earlier).is_err());
    }

    #[test]
    fn json_omits_absent_fields() {
        let instrument: Instrument = "x:Y".parse().unwrap();
        let (price, quantity) = ("2".parse().unwrap(), "3.5".parse().unwrap());
        let liquidation =
            Liquidation::new(instrument.clone(), at(0), 7, Side::Sell, (price, quantity)).unwrap();
        assert_eq!(
            serde_json::to_string(&liquidation).unwrap(),
            "{\"instrument\":\"x:Y\",\"ts\":1700000000000000,\"seq\":7,\"side\":\"sell\",\"price\":\"2\",\"quantity\":\"3.5\"}"
        );
        let mark = MarkPrice::new(instrument.clone(), at(0), price).unwrap().with_index(price);
        assert_eq!(serde_json::from_str::<MarkPrice>(&serde_json::to_string(&mark).unwrap()).unwrap(), mark);
        let interest = OpenInterest::new(instrument, at(0), quantity).unwrap().with_value(quantity);
        assert_eq!(
            serde_json::from_str::<OpenInterest>(&serde_json::to_string(&interest).unwrap()).unwrap(),
            interest
        );
    }
}
