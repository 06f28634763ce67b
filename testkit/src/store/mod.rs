//! The in-memory price store, and the contract suite for every price store.

mod config;
mod memory;

#[cfg(feature = "contract")]
pub mod contract;
#[cfg(feature = "contract")]
pub mod model;
#[cfg(feature = "contract")]
pub mod mutants;
#[cfg(feature = "contract")]
mod rows;

pub use config::{MemoryStoreConfig, RetentionConfig, RetentionRule};
pub use memory::MemoryStore;
