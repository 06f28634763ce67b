//! Layer 2 as a user of `qi` would write it, over the ports alone.
//!
//! - [`pipeline`]: market data through a bus topic and a writer agent into a store, and bars read back.
//! - [`market`]: the reading and writing operations of a market-data layer, each a few lines.

#![allow(missing_debug_implementations, reason = "agents and jobs are run, not printed")]

pub mod market;
pub mod pipeline;
