//! The message bus in memory, and what proves that any bus keeps the contract.
//!
//! [`MemoryBus`] is a whole log with consumer groups, not a mock: it rebalances, commits, retains, fills up and
//! answers errors as a broker does, on tokio's clock, so that tests on paused time take no time.

mod assign;
mod config;
mod error;
mod evict;
mod group;
mod memory;
mod publish;
mod reader;
mod receive;
mod state;
mod subscription;
mod topic;

#[cfg(feature = "contract")]
pub mod contract;
#[cfg(feature = "contract")]
pub mod model;
#[cfg(feature = "contract")]
pub mod mutants;

pub use config::MemoryBusConfig;
pub use memory::MemoryBus;
