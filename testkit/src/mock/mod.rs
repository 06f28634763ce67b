//! mockall mocks of the three ports, for tests that script every response. Prefer the in-memory implementations where
//! they suffice, because they keep the contract.
//!
//! ```
//! use qi_core::store::StoreInfo;
//! use qi_core::PriceStore;
//! use qi_testkit::mock::MockStore;
//!
//! let mut store = MockStore::new();
//! store.expect_info().returning(|| StoreInfo::new("mock"));
//! assert_eq!(store.info().backend, "mock");
//! ```

// mockall generates a public module for each mock, which rustdoc would list.
#[doc(hidden)]
pub mod generated;

#[doc(inline)]
pub use generated::{MockAgent, MockBus, MockReader, MockStore};
