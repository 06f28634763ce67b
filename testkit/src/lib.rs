//! Test support for `qi` and for Layer 2: an in-memory store and bus, contract suites, fault injection, recorders,
//! a market simulator, and a test clock.
//!
//! [`store::MemoryStore`] and [`bus::MemoryBus`] replace servers, and keep the complete contract. With
//! `#[tokio::test(start_paused = true)]` all waits follow tokio's clock, so tests take milliseconds. [`chaos::Chaos`]
//! injects faults. [The page on testing](qi_core::guide::testing_your_layer_2) has a complete example.
//!
//! # A first test
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
