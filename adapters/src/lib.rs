//! The backends of `qi`, each behind a Cargo feature, and the [configuration](config) that selects them.
//!
//! # Concepts
//! - An **adapter** implements a port of [`qi_core`] for one technology. Programs are written against the ports, so
//!   another backend needs another configuration, not another program.
//! - A [`Config`] is a validated configuration from a file, environment variables and code. It selects the store and
//!   the bus by name, opens them, and adds the layers.
//! - [`Backends`] is the registry of the names that a configuration can select.
//!
//! # A first program
//! A program names no backend. It opens the backends that the configuration selects, wrapped in the layers of the
//! configuration: retries, time limits, a circuit breaker, metrics and traces.
//!
//! ```
//! # #[cfg(feature = "memory")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> qi_core::Result<()> {
//! use qi_adapters::Config;
//! use qi_core::prelude::*;
//!
//! let config = Config::builder().build()?; // without a file, the backends are in memory
//! let (store, bus) = (config.open_store().await?, config.open_bus().await?);
//! store.ensure_schema().await?;
//! println!("{} and {}", store.info().backend, bus.info().backend);
//! store.close().await?;
//! bus.close().await?;
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "memory"))]
//! # fn main() {}
//! ```
//!
//! [The page on the configuration](qi_core::guide::configuration) lists every key with its default. A team
//! can register its own backends with a [`Backends`] registry.
//!
//! A backend can also be opened without a configuration, for example with `TimescaleStore::open`. It then has no
//! layers; [`LayerStack`](qi_core::layer::LayerStack) adds them.
//!
//! # Backends
//! | backend | technology | module | feature |
//! | --- | --- | --- | --- |
//! | `timescale`, `postgres` (store) | TimescaleDB, PostgreSQL | [`timescale`] | `timescale` |
//! | `sqlite` (store) | SQLite, one file without a server | [`sqlite`] | `sqlite` |
//! | `clickhouse` (store) | ClickHouse | [`clickhouse`] | `clickhouse` |
//! | `redpanda`, `kafka` (bus) | Redpanda, Apache Kafka | [`redpanda`] | `redpanda` |
//! | `memory` (store and bus) | in-process memory | the crate [`qi_testkit`] | `memory` |
//!
//! # Features
//! | feature | default | content |
//! | --- | --- | --- |
//! | `memory` | yes | the store and the bus in memory |
//! | `timescale` | no | TimescaleDB and PostgreSQL |
//! | `sqlite` | no | SQLite; builds SQLite |
//! | `clickhouse` | no | ClickHouse |
//! | `redpanda` | no | Redpanda and Kafka; builds librdkafka |
//! | `redpanda-tls` | no | also TLS and SCRAM for brokers; builds OpenSSL |
//! | `opentelemetry` | no | the module [`opentelemetry`](opentelemetry/index.html): traces that cross the bus |

#![cfg_attr(docsrs, feature(doc_cfg))]

// The modules of the backends are always compiled: a configuration file may contain the section of every backend.
pub mod clickhouse;
pub mod config;
mod durations;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(any(feature = "clickhouse", feature = "timescale"))]
mod legacy_datasets;
#[cfg(feature = "opentelemetry")]
pub mod opentelemetry;
#[cfg(any(feature = "clickhouse", feature = "redpanda", feature = "timescale"))]
mod password_warning;
pub mod redpanda;
#[cfg(any(feature = "clickhouse", feature = "timescale"))]
mod root_certs;
mod scalars;
pub mod sqlite;
pub mod timescale;
mod validation;

pub use config::{Backends, Config};
// The type of passwords and URLs in the configurations, so that callers need not depend on its crate.
#[doc(no_inline)]
pub use secrecy::SecretString;
