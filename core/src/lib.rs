//! The ports of `qi`, their domain types, [`Error`], the agent runtime and the layers.
//!
//! A program uses three crates. It is written against the traits of this crate, which has no backend.
//! [`qi_adapters`] opens the backends that a configuration selects.
//! [`qi_testkit`] has backends in memory and tools for tests.
//!
//! # Concepts
//! - A **port** is a trait that separates programs from implementations: [`PriceStore`] for price storage,
//!   [`MessageBus`] and [`Subscription`] for messaging, and [`Agent`] for long-running tasks. Adapters implement stores
//!   and buses. Applications implement agents, and an [`AgentRuntime`] runs them.
//! - A **record** is one row of a **dataset**. Nine datasets are built in, such as [`PriceTick`] and [`Bar`].
//!   `#[derive(Record)]` declares your own: see [`record`].
//! - The **series** and the **sort key** of a record are its key. The series is usually an [`Instrument`]. The sort key
//!   is the time and, in some datasets, a sequence number. A write replaces the record with the same key.
//! - The result of a read is a **page** with the **cursor** of the next page. The streams of [`PriceStoreExt`] read all
//!   pages.
//! - A **layer** adds retries, time limits, concurrency limits, metrics or traces to a port: see [`layer`].
//! - An [`Error`] has a kind, a stable code and advice on retries.
//!
//! # A first program
//! The function stores a tick and reads it back. It works with every [`PriceStore`]: [`qi_adapters`] opens the store of
//! a configuration, and `qi_testkit::store::MemoryStore::default()` is a store in memory. The third argument of
//! [`PriceTick::new`] is `seq`, the sequence number of the tick, for example the trade id of the exchange. It
//! distinguishes ticks of the same time.
//!
//! ```
//! use qi_core::prelude::*;
//!
//! async fn store_and_read(store: &dyn PriceStore) -> Result<()> {
//!     store.ensure_schema().await?;
//!     let instrument = Instrument::from_static("binance:BTC-USDT");
//!     let tick = PriceTick::new(instrument.clone(), Timestamp::now(), 1, "39432.48".parse()?)?;
//!     store.insert_ticks(&[tick.clone()]).await?;
//!
//!     let query = RangeQuery::new(instrument, TimeRange::since(tick.ts())).with_limit(100)?;
//!     assert_eq!(store.ticks(&query).await?.items, [tick]);
//!     Ok(())
//! }
//! ```
//!
//! # Where to continue
//! | task | start with |
//! | --- | --- |
//! | store and read records | [`PriceStore`], [`PriceStoreExt`]; single records: [`Buffered`] |
//! | read bars | [`PriceStoreExt::bars`] (stored), [`PriceStore::derived_bars`] (of ticks); [`BarQuery`](store::BarQuery) |
//! | publish and consume messages | [`MessageBus`], [`MessageBusExt`], [`Subscription`] |
//! | move a topic into a store | [`Ingest`] |
//! | write a long-running task | [`Agent`], [`AgentRuntime`] |
//! | declare a record | [`guide::your_own_records`], [`record`] |
//! | read bars of years in milliseconds | [`guide::materialized_bars`], [`Maintenance`] |
//! | add retries or a layer | [`layer`], [`guide::layers`] |
//! | check the health of a program | [`health`] |
//! | handle an outage of a server or a broker | the section [Outages] of [`guide::operations`] |
//! | open backends from a configuration | the crate [`qi_adapters`] |
//! | import market data files, export Parquet | the crates [`qi_files`] and [`qi_arrow`], [`guide::operations`] |
//! | test without servers | the crate [`qi_testkit`], [`guide::testing_your_layer_2`] |
//!
//! The module [`guide`] has the contracts of the ports and the guides, starting with [`guide::getting_started`].
//!
//! # Features
//! | feature | default | content |
//! | --- | --- | --- |
//! | `signal` | no | `AgentRuntime::run_with_signals`: SIGINT and SIGTERM begin the shutdown |
//! | `test` | no | `AgentContext::for_test`, and tokio's paused clock |
//! | `rust_decimal` | no | fallible conversions to and from `rust_decimal::Decimal` |
//! | `chrono` | no | fallible conversions to and from `chrono::DateTime<Utc>` |
//!
//! # New versions
//! Structs and enums that may get fields or variants are `#[non_exhaustive]`. A method that a port gets later has a
//! default body, so existing adapters and agents still compile. The default is built from the other methods, or returns
//! an `Unsupported` error.
//!
//! [Outages]: guide/operations/index.html#outages
#![cfg_attr(not(docsrs), doc = "[`qi_adapters`]: ../qi_adapters/index.html")]
#![cfg_attr(not(docsrs), doc = "[`qi_arrow`]: ../qi_arrow/index.html")]
#![cfg_attr(not(docsrs), doc = "[`qi_files`]: ../qi_files/index.html")]
#![cfg_attr(not(docsrs), doc = "[`qi_testkit`]: ../qi_testkit/index.html")]
#![cfg_attr(docsrs, doc = "[`qi_adapters`]: https://docs.rs/qi-adapters")]
#![cfg_attr(docsrs, doc = "[`qi_arrow`]: https://docs.rs/qi-arrow")]
#![cfg_attr(docsrs, doc = "[`qi_files`]: https://docs.rs/qi-files")]
#![cfg_attr(docsrs, doc = "[`qi_testkit`]: https://docs.rs/qi-testkit")]
#![cfg_attr(docsrs, feature(doc_cfg))]

// The derive macros refer to this crate as `qi_core`, even from inside this crate.
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
mod maintenance;
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
pub use maintenance::Maintenance;
pub use operation::{Operation, OperationClass, Port};
pub use record::{Dataset, Record};
pub use store::{PriceStore, PriceStoreExt};

// The types of other crates in public signatures, so that callers need not depend on these crates.
#[doc(no_inline)]
pub use async_trait::async_trait;
#[doc(no_inline)]
pub use bytes::Bytes;
#[cfg(feature = "chrono")]
#[doc(no_inline)]
pub use chrono;
#[doc(no_inline)]
pub use fastrand::Rng;
#[doc(no_inline)]
pub use futures::{future::BoxFuture, stream::BoxStream};
#[cfg(feature = "rust_decimal")]
#[doc(no_inline)]
pub use rust_decimal;
#[doc(no_inline)]
pub use tokio_util::sync::CancellationToken;
#[doc(no_inline)]
pub use tracing::Span;

/// The contracts and the guides: the pages of the folder `docs/` of the repository.
///
/// [`contents`](guide::contents) lists the pages in reading order. The contracts of the ports are
/// [`store`](mod@guide::store), [`bus`](mod@guide::bus) and [`agents`](guide::agents).
pub mod guide {
    /// Declares a module for each page. Links between pages have labels, which `guide/links.md` defines for rustdoc.
    ///
    /// `guide/` has symbolic links to the pages, so that the package of this crate contains them. Only rustdoc reads
    /// them, because a checkout on Windows may have no symbolic links.
    macro_rules! pages {
        ($($name:ident $file:literal,)*) => {$(
            #[cfg_attr(all(doc, not(doctest)), doc = include_str!("../guide/links.md"))]
            #[cfg_attr(all(doc, not(doctest)), doc = "")]
            #[cfg_attr(all(doc, not(doctest)), doc = include_str!(concat!("../guide/", $file)))]
            #[cfg_attr(not(all(doc, not(doctest))), doc = "A page of the guide. The documentation contains its text.")]
            pub mod $name {}
        )*};
    }

    pages! {
        agents "docs/agents.md",
        architecture "docs/architecture.md",
        bus "docs/bus.md",
        changelog "CHANGELOG.md",
        clickhouse "docs/backends/clickhouse.md",
        codecs "docs/codecs.md",
        columnar "docs/columnar.md",
        concepts "docs/concepts.md",
        configuration "docs/configuration.md",
        contents "docs/README.md",
        coverage "docs/coverage.md",
        errors "docs/errors.md",
        files "docs/files.md",
        fuzzing "fuzz/README.md",
        getting_started "docs/getting-started.md",
        hardening "docs/hardening.md",
        ingest "docs/ingest.md",
        layers "docs/layers.md",
        live "docs/live.md",
        materialized_bars "docs/materialized-bars.md",
        observability "docs/observability.md",
        operations "docs/operations.md",
        performance "docs/performance.md",
        pipeline "docs/pipeline.md",
        redpanda "docs/backends/redpanda.md",
        releasing "docs/releasing.md",
        scaling "docs/scaling.md",
        security "SECURITY.md",
        sqlite "docs/backends/sqlite.md",
        store "docs/store.md",
        testing_your_layer_2 "docs/testing-your-layer-2.md",
        timescale "docs/backends/timescale.md",
        upgrading "docs/upgrading.md",
        writing_a_bus "docs/writing-a-bus.md",
        writing_a_store "docs/writing-a-store.md",
        writing_an_adapter "docs/writing-an-adapter.md",
        your_own_records "docs/your-own-records.md",
    }
}

/// The items that most programs over the ports need. Import all of them with `use qi_core::prelude::*`.
///
/// In the example, any error ends `run`. The runtime restarts the agent after a retryable error. [`Ingest`] retries
/// without a restart, and [`Subscription::recv`] shows a loop that continues after a retryable error.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use qi_core::prelude::*;
///
/// struct Writer {
///     bus: Arc<dyn MessageBus>,
///     subscription: Box<dyn Subscription>,
///     store: Arc<dyn PriceStore>,
/// }
///
/// #[async_trait]
/// impl Agent for Writer {
///     async fn run(&mut self, cx: &AgentContext) -> Result<()> {
///         let wait = Duration::from_secs(1);
///         while let Some(batch) = cx.until_cancelled(self.subscription.recv(1_000, wait)).await {
///             let batch = batch?;
///             let decoded = batch.decode::<PriceTick>();
///             self.store.insert_ticks(&decoded.records).await?;
///             self.bus.send_dead_letters(&decoded.rejected, &DeadLetters::default()).await?;
///             self.subscription.commit(batch.offsets()).await?;
///         }
///         Ok(())
///     }
/// }
/// ```
pub mod prelude {
    #[doc(no_inline)]
    pub use crate::agent::{
        Agent, AgentContext, AgentRuntime, AgentSpec, AgentStatus, ExitReason, RestartPolicy, agent_fn,
    };
    #[doc(no_inline)]
    pub use crate::bus::{
        Batch, DeadLetters, DeliveryState, GroupId, GroupInstanceId, Message, MessageBus, MessageBusExt,
        OffsetReset, Offsets, PublishOptions, ReaderRequest, ReceivedMessage, SeekTo, SubscribeRequest,
        Subscription, SubscriptionEvent, TopicName, TopicPartition, TopicSpec,
    };
    #[doc(no_inline)]
    pub use crate::datasets::{
        Bar, BarValues, BookSnapshot, Datasets, FundingRate, Liquidation, MarkPrice, MarketSnapshot,
        OpenInterest, PriceTick, Quote, QuoteValues, SnapshotValues,
    };
    #[doc(no_inline)]
    pub use crate::domain::{
        Decimal, Exchange, Instrument, Interval, Percent, Price, Provider, Quantity, Scope, Selection, Side,
        Symbol, TimeRange, Timestamp,
    };
    #[doc(no_inline)]
    pub use crate::store::{
        BarQuery, BarSource, DeleteQuery, InstrumentQuery, LatestBarsQuery, LatestQuery, MoversQuery, Order,
        Page, PageRequest, PersistRequest, PriceStore, PriceStoreExt, RangeQuery, SnapshotQuery, StatsQuery,
    };
    #[doc(no_inline)]
    pub use crate::{
        Buffered, BufferedConfig, Dataset, Error, ErrorKind, Ingest, IngestConfig, Record, Result, ResultExt,
        RetryAdvice, async_trait,
    };
}
