//! The message bus in memory, and the tools that prove that a bus keeps the contract.
//!
//! [`MemoryBus`] is a complete log with consumer groups, not a mock. It implements rebalances, commits, retention,
//! capacity limits and the errors of a broker. It uses tokio's clock, so tests on paused time do not wait.

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
