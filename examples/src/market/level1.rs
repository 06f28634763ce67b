//! The best bid and ask, and values computed from them.

use qi_core::{Decimal, Error, ErrorKind, Quote, Result};

/// A quote for display by applications. The spread is computed on demand and never stored, so that it cannot contradict the
/// prices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level1(pub Quote);

impl Level1 {
    /// Returns ask minus bid, in the quote currency. Negative in a crossed book, None unless both sides are known.
    pub fn spread(&self) -> Option<Decimal> {
        let (bid, ask) = (self.0.values().bid_price?, self.0.values().ask_price?);
        ask.decimal().checked_sub(bid.decimal())
    }

    /// Returns the spread in percent of the middle between bid and ask. None unless both sides are known.
    ///
    /// # Errors
    /// `OutOfRange` if an intermediate result is outside the domain of decimals.
    pub fn spread_percent(&self) -> Result<Option<Decimal>> {
        let (Some(bid), Some(ask)) = (self.0.values().bid_price, self.0.values().ask_price) else {
            return Ok(None);
        };
        // 100 * (ask - bid) / ((ask + bid) / 2), with one division at the end, because division rounds.
        let percent = || {
            let twice_the_middle = ask.decimal().checked_add(bid.decimal())?;
            let spread = ask.decimal().checked_sub(bid.decimal())?;
            spread.checked_mul(Decimal::from_int(200))?.checked_div(twice_the_middle)
        };
        percent().map(Some).ok_or_else(|| {
            Error::new(ErrorKind::OutOfRange, "market.spread", "spread_percent")
                .with_context("bid", bid)
                .with_context("ask", ask)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qi_core::{QuoteValues, Timestamp};

    fn level1(bid: &str, ask: &str) -> Level1 {
        let values =
            QuoteValues { bid_price: bid.parse().ok(), ask_price: ask.parse().ok(), ..Default::default() };
        Level1(Quote::new("kraken:BTC-USD".parse().unwrap(), Timestamp::MIN, 0, values).unwrap())
    }

    #[test]
    fn the_spread_is_ask_minus_bid_and_a_percentage_of_the_midpoint() {
        let quote = level1("99", "101");
        assert_eq!(quote.spread().unwrap().to_string(), "2");
        assert_eq!(quote.spread_percent().unwrap().unwrap().to_string(), "2");
    }

    #[test]
    fn a_crossed_book_has_a_negative_spread() {
        assert_eq!(level1("101", "99").spread().unwrap().to_string(), "-2");
    }

    #[test]
    fn a_book_with_one_side_has_no_spread() {
        for one_sided in [level1("99", ""), level1("", "101")] {
            assert_eq!((one_sided.spread(), one_sided.spread_percent().unwrap()), (None, None));
        }
    }

    #[test]
    fn a_spread_overflow_is_an_error() {
        let error = level1("90000000000000000000", "90000000000000000001").spread_percent().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
    }
}
