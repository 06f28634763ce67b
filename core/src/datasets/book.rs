//! Snapshots of order books.

use crate::record::{Level, Levels, Record};
use crate::{Error, Instrument, Result, Timestamp};

/// The best levels of an order book at one time, at most 50 on each side. The key is (instrument, ts, seq).
///
/// Bids are sorted highest first, asks lowest first. Prices are unique within a side, and quantities are above 0. One
/// side may be empty, but not both. A crossed book is stored unchanged.
///
/// ```
/// use qi_core::record::Level;
/// use qi_core::{BookSnapshot, Timestamp};
/// let level = |price: &str, quantity: &str| -> qi_core::Result<Level> {
///     Ok(Level { price: price.parse()?, quantity: quantity.parse()? })
/// };
/// let bids = vec![level("39432.48", "1.5")?, level("39432.00", "0.2")?];
/// let asks = vec![level("39432.49", "0.7")?];
/// let book = BookSnapshot::new("binance:BTC-USDT".parse()?, Timestamp::from_secs(1_700_000_000)?, 1, bids, asks)?;
/// assert_eq!(book.bids()[0].price.to_string(), "39432.48");
/// # Ok::<(), qi_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Record)]
#[record(name = "book_snapshots", message = "book_snapshot", validate = Self::is_sorted)]
pub struct BookSnapshot {
    #[series]
    instrument: Instrument,
    #[time]
    ts: Timestamp,
    #[seq]
    seq: u64,
    bids: Levels<50>,
    asks: Levels<50>,
}

impl BookSnapshot {
    /// Creates a snapshot. `seq` is as in [`super::PriceTick::new`].
    ///
    /// # Errors
    /// `InvalidInput` for a `ts` after [`Timestamp::MAX_RECORD`], a `seq` above [`crate::domain::MAX_COUNTER`], more
    /// than 50 levels on a side, unsorted levels, a quantity of 0, or no level at all.
    pub fn new(
        instrument: Instrument,
        ts: Timestamp,
        seq: u64,
        bids: Vec<Level>,
        asks: Vec<Level>,
    ) -> Result<Self> {
        let book = Self { instrument, ts, seq, bids: Levels::new(bids)?, asks: Levels::new(asks)? };
        book.validate()?;
        Ok(book)
    }

    fn is_sorted(&self) -> Result<()> {
        let reject = |field: &'static str, value: &dyn std::fmt::Display, rule: &str| {
            Err(Error::invalid("domain.book.levels", field, value, rule))
        };
        if self.bids().is_empty() && self.asks().is_empty() {
            return reject("bids, asks", &"none", "must not both be empty");
        }
        for (field, levels) in [("bids", self.bids()), ("asks", self.asks())] {
            if let Some(level) = levels.iter().find(|level| level.quantity.decimal() == crate::Decimal::ZERO)
            {
                return reject(field, &level.price, "must have a quantity above 0 at every price");
            }
        }
        if let Some(pair) = self.bids().windows(2).find(|pair| pair[0].price <= pair[1].price) {
            return reject("bids", &pair[1].price, "must be in descending order of price without duplicates");
        }
        if let Some(pair) = self.asks().windows(2).find(|pair| pair[0].price >= pair[1].price) {
            return reject("asks", &pair[1].price, "must be in ascending order of price without duplicates");
        }
        Ok(())
    }

    /// Returns the instrument.
    pub fn instrument(&self) -> &Instrument {
        &self.instrument
    }

    /// Returns the time in UTC.
    pub fn ts(&self) -> Timestamp {
        self.ts
    }

    /// Returns the sequence number among snapshots of the same `ts`.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Returns the bids, highest first.
    pub fn bids(&self) -> &[Level] {
        self.bids.as_slice()
    }

    /// Returns the asks, lowest first.
    pub fn asks(&self) -> &[Level] {
        self.asks.as_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(pairs: &[(&str, &str)]) -> Vec<Level> {
        let level = |(price, quantity): &(&str, &str)| Level {
            price: price.parse().unwrap(),
            quantity: quantity.parse().unwrap(),
        };
        pairs.iter().map(level).collect()
    }

    fn book(bids: &[(&str, &str)], asks: &[(&str, &str)]) -> Result<BookSnapshot> {
        BookSnapshot::new("x:Y".parse().unwrap(), Timestamp::MIN, 0, levels(bids), levels(asks))
    }

    #[test]
    fn levels_that_are_not_sorted_or_empty_are_rejected() {
        assert!(book(&[("2", "1"), ("1", "1")], &[("3", "1"), ("4", "1")]).is_ok());
        assert!(book(&[("5", "1")], &[("3", "1")]).is_ok(), "a crossed book is kept");
        for (bids, asks, field) in [
            (&[][..], &[][..], "bids, asks"),
            (&[("1", "1"), ("2", "1")], &[], "bids"),
            (&[("1", "1"), ("1", "2")], &[], "bids"),
            (&[("1", "0")], &[], "bids"),
            (&[], &[("2", "1"), ("1", "1")], "asks"),
            (&[], &[("2", "1"), ("2", "1")], "asks"),
        ] {
            let error = book(bids, asks).unwrap_err();
            assert_eq!(error.context_value("field"), Some(field), "{bids:?} {asks:?}");
        }
        let many: Vec<_> = (1..=51)
            .map(|n| Level { price: n.to_string().parse().unwrap(), quantity: "1".parse().unwrap() })
            .collect();
        assert!(BookSnapshot::new("x:Y".parse().unwrap(), Timestamp::MIN, 0, vec![], many).is_err());
    }

    #[test]
    fn json_levels_are_pairs_and_validated() {
        let book = book(&[("2.5", "1")], &[]).unwrap();
        let json = serde_json::to_string(&book).unwrap();
        assert!(json.ends_with("\"bids\":[[\"2.5\",\"1\"]],\"asks\":[]}"), "{json}");
        assert_eq!(serde_json::from_str::<BookSnapshot>(&json).unwrap(), book);
        assert!(serde_json::from_str::<BookSnapshot>(&json.replace("\"1\"]]", "\"0\"]]")).is_err());
        let long =
            json.replace("\"asks\":[]", &format!("\"asks\":[{}]", vec!["[\"1\",\"1\"]"; 51].join(",")));
        assert!(serde_json::from_str::<BookSnapshot>(&long).unwrap_err().to_string().contains("at most 50"));
    }
}
