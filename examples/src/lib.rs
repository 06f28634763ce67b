//! Layer 2 programs, written over the ports only.
//!
//! - [`exchanges`]: live trades of exchanges with their coverage, as agents.
//! - [`pipeline`]: market data through a bus topic and a writer agent into a store, and bars read back.
//! - [`probes`]: health and metrics over HTTP, for Kubernetes and Prometheus.
//! - [`market`]: the reading and writing operations of a market data layer, each a few lines.

#![allow(missing_debug_implementations, reason = "agents and jobs are run, not printed")]

pub mod exchanges;
pub mod market;
pub mod pipeline;
pub mod probes;

/// The code of the pages in `docs/`, which is compiled and, where possible, run.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../../docs/getting-started.md")]
    struct GettingStarted;
    #[doc = include_str!("../../docs/agents.md")]
    struct Agents;
    #[doc = include_str!("../../docs/architecture.md")]
    struct Architecture;
    #[doc = include_str!("../../docs/backends/clickhouse.md")]
    struct BackendClickHouse;
    #[doc = include_str!("../../docs/backends/redpanda.md")]
    struct BackendRedpanda;
    #[doc = include_str!("../../docs/backends/sqlite.md")]
    struct BackendSqlite;
    #[doc = include_str!("../../docs/backends/timescale.md")]
    struct BackendTimescale;
    #[doc = include_str!("../../docs/configuration.md")]
    struct Configuration;
    #[doc = include_str!("../../docs/errors.md")]
    struct Errors;
    #[doc = include_str!("../../docs/codecs.md")]
    struct Codecs;
    #[doc = include_str!("../../docs/ingest.md")]
    struct IngestPage;
    #[doc = include_str!("../../docs/files.md")]
    struct Files;
    #[doc = include_str!("../../docs/live.md")]
    struct LivePage;
    #[doc = include_str!("../../docs/observability.md")]
    struct Observability;
    #[doc = include_str!("../../docs/testing-your-layer-2.md")]
    struct TestingYourLayer2;
    #[doc = include_str!("../../docs/layers.md")]
    struct LayersPage;
    #[doc = include_str!("../../docs/writing-an-adapter.md")]
    struct WritingAnAdapter;
    #[doc = include_str!("../../docs/writing-a-store.md")]
    struct WritingAStore;
    #[doc = include_str!("../../docs/writing-a-bus.md")]
    struct WritingABus;
    #[doc = include_str!("../../docs/your-own-records.md")]
    struct YourOwnRecords;
    #[doc = include_str!("../../README.md")]
    struct Readme;
}
