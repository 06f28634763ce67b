//! A market-data layer as its engineer would write it: nine operations that read, nine that write, over
//! `Arc<dyn PriceStore>` and `Arc<dyn MessageBus>` and nothing else.
//!
//! - [`MarketReader`]: current prices, candles, histories, quotes and market figures out of a store.
//! - [`MarketWriter`]: prices, candles, quotes and market figures onto a bus, collected into batches, with figures
//!   of what became of them.
//! - [`laws`]: what such a layer checks beyond the types: freshness, the order of time, suspicious figures.
//!
//! # A price in another currency is another instrument
//! There is no column per currency. Bitcoin in US dollars is the symbol `BTC-USD`, in ether `BTC-ETH`, and an
//! aggregator's observation in three currencies is three ticks of one time. So every currency has its own history,
//! candles and latest price, and none of them is None for want of a column. [`pair`] makes the symbol.
//!
//! # Which exchange
//! An instrument is a symbol on an exchange. Where an operation takes a symbol, it asks all exchanges that the
//! reader was made for, in one query, and says how it chooses among their answers.
//!
//! # Nothing found, and not able to look
//! An unknown symbol is None or an empty list. A store that is closed, away or without a schema is an error; no
//! operation makes an empty answer of it.

pub mod laws;
mod level1;
mod metrics;
mod reader;
mod writer;

use qi_core::{Result, Symbol};

pub use level1::Level1;
pub use metrics::{BatchReport, PublishingMetrics};
pub use reader::MarketReader;
pub use writer::MarketWriter;

/// The symbol of a coin's price in a currency.
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
/// `InvalidInput` if both together are longer than a symbol may be.
pub fn pair(coin: &Symbol, currency: &Symbol) -> Result<Symbol> {
    Symbol::new(format!("{coin}-{currency}"))
}
