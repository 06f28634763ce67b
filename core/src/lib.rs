//! The ports of `qi` and what stands behind them: domain types, [`Error`], the agent runtime, wrappers.

pub mod bus;
pub mod domain;
pub mod error;
mod operation;
mod ready;
pub mod store;

pub use bus::{MessageBus, MessageBusExt, Subscription};
pub use domain::{
    BarValues, Clock, Decimal, Exchange, Instrument, Interval, MarketSnapshot, Ohlcv, Percent, Price,
    PriceTick, Quantity, Quote, QuoteValues, Scope, Selection, Side, SnapshotValues, Source, Symbol,
    SystemClock, TimeRange, Timestamp,
};
pub use error::{Error, ErrorKind, Result, RetryAdvice};
pub use operation::{Nature, Operation, Port};
pub use store::{PriceStore, PriceStoreExt};
