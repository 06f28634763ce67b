//! The ports of `qi` and what stands behind them: domain types, [`Error`], the agent runtime, wrappers.

pub mod agent;
mod decimal;
pub mod error;
mod text;
mod time;

pub use agent::{Agent, AgentContext, AgentRuntime, AgentSpec, ExitReason, agent_fn};
pub use decimal::{Decimal, ExactSum, Percent, Price, Quantity, Sum18, Sum36};
pub use error::{Error, ErrorKind, Result, RetryAdvice};
pub use time::{Clock, SystemClock, Timestamp};
