//! Quotes: the best bid and ask.

use serde::{Deserialize, Serialize};

use crate::record::{Columns, Record};
use crate::{Error, Instrument, Price, Quantity, Result, Timestamp};

/// The two sides of a [`Quote`]. Prices are in the quote currency, sizes in the base currency. None means unknown.
///
/// The struct is open on purpose, because programs create it with a literal. A new field is a breaking change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, Columns)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub struct QuoteValues {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bid_price: Option<Price>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bid_size: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ask_price: Option<Price>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ask_size: Option<Quantity>,
}

/// The best bid and ask of an instrument at one time. The key is (instrument, ts, seq). At least one price is known. A
/// crossed book (bid above ask) is stored unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Record)]
#[record(name = "quotes", message = "quote", topic = "crypto-quotes", validate = Self::has_a_price)]
pub struct Quote {
    #[series]
    instrument: Instrument,
    #[time]
    ts: Timestamp,
    #[seq]
    seq: u64,
    #[flatten]
    values: QuoteValues,
}

impl Quote {
    /// Creates a quote of `instrument` at `ts`. `seq` is as in [`crate::PriceTick::new`].
    ///
    /// # Errors
    /// `InvalidInput` for a `ts` after [`Timestamp::MAX_RECORD`], a `seq` above [`crate::domain::MAX_COUNTER`],
    /// or no price at all.
    pub fn new(instrument: Instrument, ts: Timestamp, seq: u64, values: QuoteValues) -> Result<Self> {
        let quote = Self { instrument, ts, seq, values };
        quote.validate()?;
        Ok(quote)
    }

    fn has_a_price(&self) -> Result<()> {
        if self.values.bid_price.is_some() || self.values.ask_price.is_some() {
            return Ok(());
        }
        let rule = "must not both be unknown";
        Err(Error::invalid("domain.quote.empty", "bid_price, ask_price", "none", rule))
    }

    /// Returns the quoted instrument.
    pub fn instrument(&self) -> &Instrument {
        &self.instrument
    }

    /// Returns the time in UTC.
    pub fn ts(&self) -> Timestamp {
        self.ts
    }

    /// Returns the sequence number among quotes of the same `ts`.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Returns the values of both sides.
    pub fn values(&self) -> &QuoteValues {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_needs_one_price_and_may_be_crossed() {
        let quote = |values| Quote::new("x:Y".parse().unwrap(), Timestamp::MIN, 0, values);
        let (one, two) = ("1".parse().ok(), "2".parse().ok());
        assert!(quote(QuoteValues { bid_price: one, ..Default::default() }).is_ok());
        assert!(quote(QuoteValues { ask_price: one, ..Default::default() }).is_ok());
        assert!(quote(QuoteValues { bid_size: Some(Quantity::ZERO), ..Default::default() }).is_err());
        let crossed = quote(QuoteValues { bid_price: two, ask_price: one, ..Default::default() }).unwrap();
        let json = serde_json::to_string(&crossed).unwrap();
        assert_eq!(serde_json::from_str::<Quote>(&json).unwrap(), crossed);
        assert!(serde_json::from_str::<Quote>(&json.replace("_price", "_x")).is_err());
    }
}
