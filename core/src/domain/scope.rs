//! The subject of a snapshot.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Exchange, Symbol};
use crate::{Error, Result};

/// The subject of a snapshot. Displayed and serialised as `global`, `exchange:kraken`, `asset:BTC`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// The entire market.
    Global,
    /// One asset.
    Asset(Symbol),
    /// One exchange.
    Exchange(Exchange),
}

impl Scope {
    /// The longest stored text in bytes: `asset:` and a symbol.
    pub const MAX_BYTES: usize = 6 + Symbol::MAX_BYTES;

    /// Returns the text under which databases store the scope. The text is empty for the entire market, because a key
    /// cannot contain a NULL; otherwise it is the displayed text. Scopes order by the bytes of this text.
    pub fn storage_text(&self) -> String {
        match self {
            Self::Global => String::new(),
            other => other.to_string(),
        }
    }

    /// Parses a text that [`Scope::storage_text`] returned.
    ///
    /// # Errors
    /// `InvalidInput` for any other text.
    pub fn from_storage_text(text: &str) -> Result<Self> {
        if text.is_empty() { Ok(Self::Global) } else { text.parse() }
    }

    fn rank(&self) -> (u8, &str) {
        match self {
            Self::Global => (0, ""),
            Self::Asset(symbol) => (1, symbol.as_str()),
            Self::Exchange(exchange) => (2, exchange.as_str()),
        }
    }
}

impl Ord for Scope {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Scope {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.write_str("global"),
            Self::Asset(symbol) => write!(f, "asset:{symbol}"),
            Self::Exchange(exchange) => write!(f, "exchange:{exchange}"),
        }
    }
}

impl FromStr for Scope {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            None if text == "global" => Ok(Self::Global),
            Some(("asset", symbol)) => Symbol::new(symbol).map(Self::Asset),
            Some(("exchange", exchange)) => Exchange::new(exchange).map(Self::Exchange),
            _ => Err(Error::invalid(
                "domain.scope",
                "scope",
                text,
                "must be global, asset:SYMBOL or exchange:EXCHANGE",
            )),
        }
    }
}

super::text_conversions!(static Scope);

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        super::text::from_text(deserializer, "a scope such as asset:BTC")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_order_as_their_stored_text() {
        let mut scopes = ["exchange:kraken", "global", "asset:BTC", "asset:1INCH", "exchange:a"]
            .map(|s| s.parse::<Scope>().unwrap());
        scopes.sort();
        let mut texts = scopes.clone().map(|s| s.storage_text());
        texts.sort();
        assert_eq!(
            scopes.map(|s| Scope::from_storage_text(&s.storage_text()).unwrap().storage_text()),
            texts
        );
        for bad in ["", "Global", "asset:", "asset:B C", "coin:BTC"] {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
    }
}
