//! The ports of `qi`, their domain types, [`Error`], the agent runtime and the layers.

// The derive macros name this crate by its name.
extern crate self as qi_core;

pub mod agent;
mod backoff;
mod buffered;
pub mod bus;
mod deadline;
pub mod domain;
pub mod error;
pub mod health;
pub mod layer;
mod operation;
mod ready;
pub mod record;
mod redact;
pub mod store;
pub mod telemetry;

pub use agent::{Agent, AgentContext, AgentRuntime, AgentSpec, ExitReason, agent_fn};
pub use backoff::Backoff;
pub use buffered::{Buffered, BufferedConfig, Receipt, Sink};
pub use bus::{MessageBus, MessageBusExt, Subscription};
pub use domain::{
    BarValues, BookSnapshot, Clock, Decimal, Exchange, FundingRate, Instrument, Interval, Liquidation,
    MarkPrice, MarketSnapshot, Ohlcv, OpenInterest, Percent, Price, PriceTick, Quantity, Quote, QuoteValues,
    Scope, Selection, Side, SnapshotValues, Source, Symbol, SystemClock, TimeRange, Timestamp,
};
pub use error::{Error, ErrorKind, Result, ResultExt, RetryAdvice};
pub use operation::{Operation, OperationClass, Port};
pub use record::Record;
pub use store::{PriceStore, PriceStoreExt};
