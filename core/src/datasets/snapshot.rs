//! Snapshots of a market, as aggregators publish them.

use serde::{Deserialize, Serialize};

use crate::record::{Columns, Record};
use crate::{Decimal, Error, Percent, Provider, Quantity, Result, Scope, Timestamp};

/// The values of a [`MarketSnapshot`]. None means unknown.
///
/// The struct is open on purpose, because programs create it with a literal. A new field is a breaking change.
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
    /// The number of traded currencies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_currencies: Option<u64>,
    /// The number of markets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub markets: Option<u64>,
    /// Change over 24 hours in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change_24h: Option<Percent>,
    /// Change over 7 days in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change_7d: Option<Percent>,
    /// The publisher. It does not count as a value: a snapshot needs at least one other value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Provider>,
}

/// The values that an aggregator published about a market at one time. The key is (scope, ts). At
/// least one value is known.
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
    /// Creates a snapshot of `scope` at `ts`.
    ///
    /// # Errors
    /// `InvalidInput` for a `ts` after [`Timestamp::MAX_RECORD`], a dominance outside 0 to 100, a count above
    /// [`crate::domain::MAX_COUNTER`], or no value at all.
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
                && !(Decimal::ZERO..=Decimal::from_int(100)).contains(&share.decimal())
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

    /// Returns the scope of the snapshot.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Returns the time in UTC.
    pub fn ts(&self) -> Timestamp {
        self.ts
    }

    /// Returns the values of the snapshot.
    pub fn values(&self) -> &SnapshotValues {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_validated() {
        let new = |values| MarketSnapshot::new(Scope::Global, Timestamp::MIN, values);
        let percent = |text: &str| text.parse::<Percent>().ok();
        assert!(new(SnapshotValues::default()).is_err());
        assert!(new(SnapshotValues { source: Provider::new("x").ok(), ..Default::default() }).is_err());
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
    fn json_round_trip() {
        let values =
            SnapshotValues { markets: Some(9), btc_dominance: "51.2".parse().ok(), ..Default::default() };
        let snapshot = MarketSnapshot::new("asset:BTC".parse().unwrap(), Timestamp::MIN, values).unwrap();
        let json = serde_json::to_string(&snapshot).unwrap();
        assert_eq!(serde_json::from_str::<MarketSnapshot>(&json).unwrap(), snapshot);
    }
}
