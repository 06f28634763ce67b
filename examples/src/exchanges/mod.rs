//! Live trades of exchanges, as agents over the ports.
//!
//! [`LiveFeed`] is the agent of one instrument. It reads the stream of an exchange, publishes ticks to the bus, fills
//! gaps from the exchange's history, and records the coverage of the store. [`Protocol`] is the protocol of an exchange;
//! [`Binance`] and [`Kraken`] implement it. [The page on live data](qi_core::guide::live) describes the behaviour.

mod audit;
mod binance;
mod config;
mod connection;
mod feed;
mod kraken;
mod protocol;
mod published;
mod repair;
mod rest;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests;

use std::sync::Arc;

pub use binance::Binance;
pub use config::{LiveConfig, LiveCounters};
pub use feed::LiveFeed;
pub use kraken::Kraken;
pub use protocol::{Frame, HistoryPage, Position, Protocol, Trade};
pub use rest::RestClient;

/// Returns the protocol of an exchange, or None for an unknown exchange.
pub fn protocol(exchange: &str) -> Option<Arc<dyn Protocol>> {
    match exchange {
        "binance" => Some(Arc::new(Binance)),
        "kraken" => Some(Arc::new(Kraken)),
        _ => None,
    }
}
