//! The port that Layer 2 implements, and the runtime that drives it.
//!
//! An [`Agent`] is a long-running piece of work with a lifecycle; an [`AgentSpec`] names it and says how it is
//! supervised; an [`AgentRuntime`] runs many of them, restarts those that fail, and ends all of them by a
//! deadline. The contract stands in `docs/agents.md`; in one sentence: whatever happens to an agent, `cleanup`
//! is called exactly once on every value whose `initialize` was called, its history is visible without a gap,
//! and the runtime ends by its deadline and names who made it late.
//!
//! ```
//! use qi_core::agent::{AgentRuntime, AgentSpec, agent_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> qi_core::Result<()> {
//! let runtime = AgentRuntime::builder()
//!     .agent(AgentSpec::new("ticker", || {
//!         agent_fn(|cx| async move {
//!             while cx.sleep(std::time::Duration::from_millis(1)).await.is_some() {
//!                 cx.heartbeat();
//!             }
//!             Ok(())
//!         })
//!     }))
//!     .build()?;
//! let report = runtime.run_until(tokio::time::sleep(std::time::Duration::from_millis(5))).await;
//! report.result()
//! # }
//! ```

mod builder;
mod catch;
mod cell;
mod context;
mod driver;
mod fleet;
mod health;
mod metrics;
mod observe;
mod phase;
mod port;
mod report;
mod restart;
mod runtime;
mod shutdown;
#[cfg(feature = "signal")]
mod signal;
mod spec;
mod status;

pub use crate::backoff::Backoff;
pub use builder::AgentRuntimeBuilder;
pub use cell::AgentWatch;
pub use context::AgentContext;
pub use health::{AgentHealthReport, HealthReport};
pub use metrics::MetricsObserver;
pub use observe::{Observer, TracingObserver};
pub use port::{Agent, AgentFn, agent_fn};
pub use report::{AgentReport, EndedBy, Ending, RuntimeReport};
pub use restart::{Decision, GiveUp, RestartMode, RestartPolicy, RestartState};
pub use runtime::{AgentRuntime, RuntimeHandle};
pub use spec::{AgentSpec, Factory, Once, Source};
pub use status::{
    AgentHealth, AgentSnapshot, AgentStatus, BackoffStep, ErrorRecord, ExitReason, ForcedStop, Phase,
    Transition,
};
