//! Test support for `qi` and for Layer 2: an in-memory store and bus, contract suites, fault injection, recorders, a
//! market simulator, and a test clock. Layer 2 is a program over the ports of `qi-core`.
//!
//! # Concepts
//! - **Memory backends.** [`store::MemoryStore`] and [`bus::MemoryBus`] replace servers and implement the complete
//!   contract.
//! - **Paused time.** With `#[tokio::test(start_paused = true)]` all waits follow tokio's clock, so tests take
//!   milliseconds. The attribute needs the feature `test` of this crate, which enables `tokio/test-util`.
//! - **Faults.** [`chaos::Chaos`] makes calls fail, hang, start late or lose their response. A seed selects the calls.
//! - **Contract suites.** The feature `contract` checks an adapter against the contracts of the ports. The suites are
//!   tested with **mutants**: backends that are broken on purpose.
//!
//! [The page on testing](qi_core::guide::testing_your_layer_2) has a complete example.
//!
//! # Dependencies
//! ```toml
//! [dev-dependencies]
//! qi-core = { path = "../qi/core", features = ["test"] }
//! qi-testkit = { path = "../qi/testkit", features = ["contract", "mock", "test"] }
//! libtest-mimic = "0.8"
//! tokio = { version = "1", features = ["macros", "rt", "test-util"] }
//! ```
//!
//! `../qi` is a clone of the repository. Leave out the features that you do not use.
//!
//! # A first program
//! ```
//! use qi_core::prelude::*;
//! use qi_testkit::store::MemoryStore;
//!
//! /// Layer 2 code under test.
//! async fn last_price(store: &dyn PriceStore, instrument: &Instrument) -> Result<Option<Price>> {
//!     Ok(store.latest_tick(instrument).await?.map(|tick| tick.price()))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<()> {
//! let store = MemoryStore::default();
//! store.ensure_schema().await?;
//! let instrument = Instrument::from_static("binance:BTC-USDT");
//! assert_eq!(last_price(&store, &instrument).await?, None);
//!
//! let tick = PriceTick::new(instrument.clone(), Timestamp::now(), 1, Price::from_static("39432.48"))?;
//! store.insert_tick(&tick).await?;
//! assert_eq!(last_price(&store, &instrument).await?, Some(tick.price()));
//! # Ok(())
//! # }
//! ```
//!
//! # A test of a consumer
//! ```
//! use std::time::Duration;
//! use qi_core::prelude::*;
//! use qi_testkit::bus::MemoryBus;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<()> {
//! let bus = MemoryBus::default();
//! let topic = TopicName::new("alerts")?;
//! bus.create_topics(&[TopicSpec::new(topic.clone(), 1)?]).await?;
//! bus.publish_one(&Message::new(topic.clone(), "price above 40,000")).await?;
//!
//! let request = SubscribeRequest::new(GroupId::new("mailer")?, [topic])?;
//! let mut subscription = bus.subscribe(request).await?;
//! let batch = subscription.recv(10, Duration::from_secs(1)).await?;
//! assert_eq!(batch.messages().len(), 1);
//! subscription.commit(batch.offsets()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # A test of an agent
//! The runtime runs the agent until the future of `run_until` completes.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use qi_core::prelude::*;
//! use qi_testkit::store::MemoryStore;
//!
//! /// Layer 2 code under test.
//! struct Writer {
//!     store: Arc<dyn PriceStore>,
//!     tick: PriceTick,
//! }
//!
//! #[async_trait]
//! impl Agent for Writer {
//!     async fn run(&mut self, cx: &AgentContext) -> Result<()> {
//!         self.store.insert_tick(&self.tick).await?;
//!         cx.cancelled().await;
//!         Ok(())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<()> {
//! let store: Arc<dyn PriceStore> = Arc::new(MemoryStore::default());
//! store.ensure_schema().await?;
//! let instrument = Instrument::from_static("binance:BTC-USDT");
//! let tick = PriceTick::new(instrument.clone(), Timestamp::now(), 1, Price::from_static("39432.48"))?;
//!
//! let spec = AgentSpec::once("writer", Writer { store: store.clone(), tick: tick.clone() });
//! let runtime = AgentRuntime::builder().agent(spec).build()?;
//! let stored = async {
//!     while !matches!(store.latest_tick(&instrument).await, Ok(Some(_))) {
//!         tokio::time::sleep(Duration::from_millis(10)).await;
//!     }
//! };
//! runtime.run_until(stored).await.result()?;
//! assert_eq!(store.latest_tick(&instrument).await?, Some(tick));
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//! | feature | default | content |
//! | --- | --- | --- |
//! | `contract` | no | the contract suites, the models and the mutants; includes `test` |
//! | `mock` | no | mocks of the ports, with `mockall` |
//! | `kafka` | no | a producer of arbitrary Kafka messages |
//! | `test` | no | `AgentContext::for_test` of `qi_core`, and tokio's paused clock |

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod agent;
pub mod bus;
pub mod chaos;
mod clock;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod market;
#[cfg(feature = "mock")]
pub mod mock;
#[cfg(feature = "contract")]
pub mod presence;
pub mod recording;
pub mod store;

pub use clock::ManualClock;

// The types of other crates in public signatures, so that callers need not depend on these crates.
#[cfg(feature = "contract")]
#[doc(no_inline)]
pub use libtest_mimic;
#[cfg(feature = "mock")]
#[doc(no_inline)]
pub use mockall;
#[cfg(feature = "contract")]
#[doc(no_inline)]
pub use proptest;
