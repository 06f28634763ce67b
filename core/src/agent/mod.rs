//! The [`Agent`] port, and the runtime that drives agents.
//!
//! An [`Agent`] is a long-running task with a lifecycle. An [`AgentSpec`] names an agent and sets its supervision. An
//! [`AgentRuntime`] runs many agents, restarts agents that fail, and ends all agents before a deadline. Agents can be
//! added and removed while the runtime runs.
//!
//! The contract is in [`guide::agents`](crate::guide::agents). In short:
//!
//! - `cleanup` is called exactly once on every value whose `initialize` was called.
//! - The history of an agent has no gaps.
//! - The runtime ends by its deadline and names the agents that are late.
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

mod agent_task;
mod builder;
mod catch;
mod children;
mod context;
mod handle;
mod hard_deadline;
mod health;
mod hook;
mod incarnation;
mod metrics;
mod observe;
mod port;
mod report;
mod restart;
mod runtime;
mod set;
mod shared;
#[cfg(feature = "signal")]
mod signal;
mod spec;
mod state;
mod status;

pub use crate::backoff::Backoff;
pub use builder::AgentRuntimeBuilder;
pub use context::AgentContext;
pub use handle::RuntimeHandle;
pub use health::{AgentHealthReport, RuntimeHealth};
pub use metrics::MetricsObserver;
pub use observe::{Observer, TracingObserver};
pub use port::{Agent, AgentFn, agent_fn};
pub use report::{AgentReport, RemovedAgent, RuntimeReport, ShutdownCause, Termination};
pub use restart::{Decision, RestartMode, RestartPolicy, RestartState};
pub use runtime::AgentRuntime;
pub use spec::{AgentLimits, AgentSpec};
pub use state::AgentWatch;
pub use status::{
    AgentHealth, AgentSnapshot, AgentStatus, BackoffStep, ErrorRecord, ExitReason, ForcedStop, GiveUpReason,
    Phase, Transition,
};
