//! The ports of `qi`, their domain types, [`Error`], the agent runtime and the layers.
//!
//! A *port* is a trait that separates programs from implementations: [`PriceStore`] for price storage, [`MessageBus`]
//! for messaging, and [`Agent`] for long-running tasks. Adapters in other crates implement stores and buses.
//! Applications implement agents, and an [`AgentRuntime`] runs them.
//!
//! # Where to start
//! - Store and read records: [`PriceStore`] and [`PriceStoreExt`]. Single records: [`Buffered`].
//! - Publish and consume messages: [`MessageBus`] and [`Subscription`]. From a topic into a store: [`Ingest`].
//! - Long-running tasks: [`Agent`] and [`AgentRuntime`].
//! - Your own records: [`record`].
//! - Backends and configuration: the crate `qi_adapters`. Tests without servers: the crate `qi_testkit`.
//!
//! The folder `docs/` of the repository has the contracts and guides.

// The derive macros refer to this crate as `qi_core`, also from inside this crate.
extern crate self as qi_core;

pub mod agent;
mod backoff;
mod buffered;
pub mod bus;
pub mod datasets;
mod deadline;
pub mod domain;
pub mod error;
pub mod health;
mod ingest;
pub mod layer;
mod operation;
mod ready;
pub mod record;
mod redact;
pub mod store;
pub mod telemetry;

pub use agent::{Agent, AgentContext, AgentRuntime, AgentSpec, ExitReason, agent_fn};
pub use backoff::Backoff;
pub use buffered::{BatchSink, Buffered, BufferedConfig, Receipt};
pub use bus::{MessageBus, MessageBusExt, Subscription};
pub use datasets::{
    Bar, BarValues, BookSnapshot, Datasets, FundingRate, Liquidation, MarkPrice, MarketSnapshot,
    OpenInterest, PriceTick, Quote, QuoteValues, SnapshotValues,
};
pub use domain::{
    Clock, Decimal, Exchange, Instrument, Interval, Percent, Price, Provider, Quantity, Scope, Selection,
    Side, Symbol, SystemClock, TimeRange, Timestamp,
};
pub use error::{Error, ErrorKind, Result, ResultExt, RetryAdvice};
pub use ingest::{Ingest, IngestConfig, IngestProgress};
pub use operation::{Operation, OperationClass, Port};
pub use record::{Dataset, Record};
pub use store::{PriceStore, PriceStoreExt};
