//! What aggregators publish about a whole market.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Decimal, Exchange, Percent, Quantity, Source, Symbol, Timestamp};
use crate::record::{Columns, Record};
use crate::{Error, Result};

/// What a snapshot is about. Displayed and serialised as `global`, `exchange:kraken`, `asset:BTC`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The whole market.
    Global,
    /// One asset.
    Asset(Symbol),
    /// One exchange.
    Exchange(Exchange),
}

impl Scope {
    /// The text under which databases store it: empty for the whole market (a NULL would not do in a key),
    /// else as displayed. Scopes order as the bytes of this text.
    pub fn storage_text(&self) -> String {
        match self {
            Self::Global => String::new(),
            other => other.to_string(),
        }
    }

    /// Reads what [`Scope::storage_text`] wrote.
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

/// The figures of a [`MarketSnapshot`]; None is unknown.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize, Columns)]
#[serde(default)]
pub struct SnapshotValues {
    /// Market capitalisation in USD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub market_cap_usd: Option<Quantity>,
    /// Turnover of the last 24 hours in USD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_24h_usd: Option<Quantity>,
    /// Bitcoin's share of the market capitalisation in percent, 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub btc_dominance: Option<Percent>,
    /// Ether's share of the market capitalisation in percent, 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eth_dominance: Option<Percent>,
    /// How many currencies are traded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_currencies: Option<u64>,
    /// How many markets there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub markets: Option<u64>,
    /// Change over 24 hours in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change_24h: Option<Percent>,
    /// Change over 7 days in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change_7d: Option<Percent>,
    /// Who published it. It is no figure: a snapshot needs another value beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// What an aggregator said about a market at a moment. Key: (scope, ts). At least one figure is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Record)]
#[record(name = "snapshots", message = "snapshot", topic = "market-analytics", validate = Self::has_figures)]
pub struct MarketSnapshot {
    #[series]
    scope: Scope,
    #[time]
    ts: Timestamp,
    #[flatten]
    values: SnapshotValues,
}

impl MarketSnapshot {
    /// The figures of `scope` at `ts`.
    ///
    /// # Errors
    /// `InvalidInput` for a `ts` after [`Timestamp::MAX_RECORD`], a dominance outside 0 to 100, a count above
    /// [`super::MAX_COUNTER`], or no figure at all.
    pub fn new(scope: Scope, ts: Timestamp, values: SnapshotValues) -> Result<Self> {
        let snapshot = Self { scope, ts, values };
        snapshot.validate()?;
        Ok(snapshot)
    }

    fn has_figures(&self) -> Result<()> {
        let SnapshotValues {
            market_cap_usd,
            volume_24h_usd,
            btc_dominance,
            eth_dominance,
            active_currencies,
            markets,
            change_24h,
            change_7d,
            source: _,
        } = &self.values;
        for (field, share) in [("btc_dominance", btc_dominance), ("eth_dominance", eth_dominance)] {
            if let Some(share) = share
                && !(Decimal::ZERO..=Decimal::from_int(100)).contains(&share.get())
            {
                return Err(Error::invalid(
                    "domain.snapshot.dominance",
                    field,
                    share,
                    "must lie from 0 to 100",
                ));
            }
        }
        let known = [
            market_cap_usd.is_some(),
            volume_24h_usd.is_some(),
            btc_dominance.is_some(),
            eth_dominance.is_some(),
            active_currencies.is_some(),
            markets.is_some(),
            change_24h.is_some(),
            change_7d.is_some(),
        ];
        if !known.contains(&true) {
            return Err(Error::invalid(
                "domain.snapshot.empty",
                "values",
                "none",
                "must have at least one figure",
            ));
        }
        Ok(())
    }

    /// What it is about.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// When, UTC.
    pub fn ts(&self) -> Timestamp {
        self.ts
    }

    /// The figures.
    pub fn values(&self) -> &SnapshotValues {
        &self.values
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
        for bad in ["", "Global", "asset:", "asset:btc", "coin:BTC"] {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
    }

    #[test]
    fn figures_are_checked_one_by_one() {
        let new = |values| MarketSnapshot::new(Scope::Global, Timestamp::MIN, values);
        let percent = |text: &str| text.parse::<Percent>().ok();
        assert!(new(SnapshotValues::default()).is_err());
        assert!(new(SnapshotValues { source: Source::new("x").ok(), ..Default::default() }).is_err());
        assert!(new(SnapshotValues { change_7d: percent("-250"), ..Default::default() }).is_ok());
        for (share, fits) in [("0", true), ("100", true), ("100.000000000000000001", false), ("-0.1", false)]
        {
            let snapshot = new(SnapshotValues { eth_dominance: percent(share), ..Default::default() });
            assert_eq!(snapshot.is_ok(), fits, "{share}");
        }
        let many = new(SnapshotValues { markets: Some(u64::MAX), ..Default::default() }).unwrap_err();
        assert_eq!(many.context_value("field"), Some("markets"));
    }

    #[test]
    fn json_there_and_back() {
        let values =
            SnapshotValues { markets: Some(9), btc_dominance: "51.2".parse().ok(), ..Default::default() };
        let snapshot = MarketSnapshot::new("asset:BTC".parse().unwrap(), Timestamp::MIN, values).unwrap();
        let json = serde_json::to_string(&snapshot).unwrap();
        assert_eq!(serde_json::from_str::<MarketSnapshot>(&json).unwrap(), snapshot);
    }
}
