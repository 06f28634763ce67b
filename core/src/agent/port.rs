//! The [`Agent`] port, its implementation for boxes, and agents made from a function.

use async_trait::async_trait;
use auto_impl::auto_impl;
use futures::future::BoxFuture;

use super::context::AgentContext;
use super::status::ExitReason;
use crate::Result;

/// A long-running task with a lifecycle of three hooks.
///
/// # Guarantees of the runtime
/// - The runtime calls `initialize`, then `run`, then `cleanup`, each at most once on one value. It calls `cleanup`
///   exactly once on every value whose `initialize` was called, even after an error, a panic, a hang or a stop.
/// - A restart uses a new value from the factory of the spec. No state is carried over.
/// - An error that advises a retry ([`crate::Error::retry`]) restarts the agent. Any other error ends it as failed. See
///   [`super::RestartPolicy`].
/// - A stop is visible through [`AgentContext::cancelled`]. A hook that is still pending after the agent's stop timeout
///   is dropped at its next `.await`.
///
/// # Settings
/// The name, the limits and the restart policy belong to the [`super::AgentSpec`], so several agents can share a type.
/// Store, bus and other dependencies are fields of the implementing struct. A resource that the agent opens, such as a
/// connection or a subscription, can be a plain field too: see [`super::AgentSpec::new_async`].
///
/// # Duties of an implementation
/// `initialize` and `run` may be dropped at any `.await`. The value must then be ready for `cleanup`. Hooks must not
/// block their thread, and `Drop` must not block.
///
/// # Later versions
/// A hook that is added later has a default body, so that an implementation still compiles.
///
/// ```
/// use qi_core::{Result, agent::{Agent, AgentContext, AgentRuntime, AgentSpec, ExitReason}};
///
/// struct Poller { polls: u64 }
///
/// #[qi_core::async_trait]
/// impl Agent for Poller {
///     async fn run(&mut self, cx: &AgentContext) -> Result<()> {
///         while cx.sleep(std::time::Duration::from_secs(1)).await.is_some() {
///             self.polls += 1;
///         }
///         Ok(())
///     }
///
///     async fn cleanup(&mut self, _cx: &AgentContext, exit: &ExitReason) -> Result<()> {
///         println!("{} polls, ended: {exit}", self.polls);
///         Ok(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let spec = AgentSpec::new("poller", || Poller { polls: 0 });
/// let runtime = AgentRuntime::builder().agent(spec).build()?;
/// // A program calls `run_with_signals`. Here the shutdown begins after 10 ms.
/// runtime.run_until(tokio::time::sleep(std::time::Duration::from_millis(10))).await.result()
/// # }
/// ```
#[async_trait]
#[auto_impl(Box)]
pub trait Agent: Send {
    /// Acquires the resources of `run`. May be dropped at any `.await`.
    async fn initialize(&mut self, cx: &AgentContext) -> Result<()> {
        let _ = cx;
        Ok(())
    }

    /// Works until it is done or until [`AgentContext::cancelled`]. May be dropped at any `.await` after
    /// the stop timeout has passed.
    async fn run(&mut self, cx: &AgentContext) -> Result<()>;

    /// Releases all resources. `exit` is the reason for the end. Must accept a value with a partial `initialize` or
    /// `run`.
    ///
    /// The context is cancelled at this point, so its waiting methods return immediately. Wait with plain futures instead.
    /// The cleanup timeout applies.
    async fn cleanup(&mut self, cx: &AgentContext, exit: &ExitReason) -> Result<()> {
        let _ = (cx, exit);
        Ok(())
    }
}

/// Makes an agent from a function of its context, for tests and small agents.
///
/// The function is called once per incarnation, with the context by value.
///
/// ```
/// use qi_core::agent::{AgentSpec, agent_fn};
///
/// let spec = AgentSpec::new("waits", || {
///     agent_fn(|cx| async move {
///         cx.cancelled().await;
///         Ok(())
///     })
/// });
/// ```
pub fn agent_fn<F, Fut>(run: F) -> AgentFn<F>
where
    F: FnMut(AgentContext) -> Fut + Send,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    AgentFn(run)
}

/// The agent that [`agent_fn`] returns.
pub struct AgentFn<F>(F);

impl<F> std::fmt::Debug for AgentFn<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AgentFn")
    }
}

impl<F, Fut> Agent for AgentFn<F>
where
    F: FnMut(AgentContext) -> Fut + Send,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    fn run<'a: 'c, 'b: 'c, 'c>(&'a mut self, cx: &'b AgentContext) -> BoxFuture<'c, Result<()>>
    where
        Self: 'c,
    {
        Box::pin((self.0)(cx.clone()))
    }
}
