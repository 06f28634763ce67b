//! A market data layer: nine reading and nine writing operations over `Arc<dyn PriceStore>` and `Arc<dyn MessageBus>`.
//!
//! - [`MarketReader`]: reads current prices, candles, histories, quotes and market figures from a store.
//! - [`MarketWriter`]: publishes prices, candles, quotes and market figures in batches, with metrics of their outcomes.
//! - [`rules`]: rules beyond the types: freshness, the order of time, suspicious figures.
//!
//! # Currencies
//! A price in another currency is another instrument. Bitcoin in US dollars has the symbol `BTC-USD`, in ether
//! `BTC-ETH`. An aggregator's observation in three currencies is three ticks of one time. Every currency therefore has
//! its own history, candles and latest price. [`pair`] creates the symbol.
//!
//! # Exchanges
//! An instrument is a symbol on an exchange. An operation that takes a symbol queries all exchanges of the reader at
//! once, and documents its choice among their results.
//!
//! # Empty results
//! An unknown symbol is None or an empty list. A store that is closed, unavailable or without a schema is an error,
//! never an empty result.

mod level1;
mod metrics;
mod reader;
pub mod rules;
mod writer;

use qi_core::{Result, Symbol};

pub use level1::Level1;
pub use metrics::{BatchReport, PublishingMetrics};
pub use reader::MarketReader;
pub use writer::MarketWriter;

/// Returns the symbol of a coin's price in a currency.
///
/// ```
/// use qi_examples::market::pair;
/// let btc = "BTC".parse()?;
/// assert_eq!(pair(&btc, &"USD".parse()?)?.as_str(), "BTC-USD");
/// assert_eq!(pair(&btc, &"ETH".parse()?)?.as_str(), "BTC-ETH");
/// # Ok::<(), qi_core::Error>(())
/// ```
///
/// # Errors
/// `InvalidInput` if the result is longer than a symbol may be.
pub fn pair(coin: &Symbol, currency: &Symbol) -> Result<Symbol> {
    Symbol::new(format!("{coin}-{currency}"))
}
