//! The context of an agent: its name, its cancellation, its heartbeat, its child tasks.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::incarnation::Incarnation;
use super::state::AgentState;
use super::status::AgentHealth;
use crate::deadline::later;
use crate::{Result, Timestamp};

/// The context of one incarnation of an agent. Cloning it costs two reference counts, so sub-tasks can hold it.
///
/// A clone may outlive its incarnation. It is then cancelled, and its heartbeat and its health have no effect.
#[derive(Clone)]
pub struct AgentContext {
    pub(super) state: Arc<AgentState>,
    pub(super) incarnation: Arc<Incarnation>,
}

impl fmt::Debug for AgentContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentContext")
            .field("name", &self.name())
            .field("incarnation", &self.incarnation())
            .field("cancelled", &self.is_cancelled())
            .finish_non_exhaustive()
    }
}

impl AgentContext {
    /// Begins the next incarnation of the agent.
    pub(super) fn begin(state: &Arc<AgentState>) -> Self {
        Self { incarnation: state.begin(), state: state.clone() }
    }

    /// Returns the name of the agent's spec.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// Returns the number of the incarnation: 1 for the first value, one more after each restart.
    pub fn incarnation(&self) -> u32 {
        self.incarnation.number
    }

    /// Returns whether the agent must stop.
    pub fn is_cancelled(&self) -> bool {
        self.incarnation.token.is_cancelled()
    }

    /// Waits until the agent must stop.
    pub async fn cancelled(&self) {
        self.incarnation.token.cancelled().await;
    }

    /// Returns the result of `future`, or None if the agent must stop first. The future is then dropped. If the future
    /// is ready at the same time as a stop, the stop wins.
    pub async fn until_cancelled<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.incarnation.token.cancelled() => None,
            value = future => Some(value),
        }
    }

    /// Sleeps for `duration`. Returns None if the agent must stop first.
    ///
    /// ```
    /// # async fn poll() {}
    /// # async fn run(cx: &qi_core::agent::AgentContext) {
    /// while cx.sleep(std::time::Duration::from_secs(5)).await.is_some() {
    ///     poll().await;
    /// }
    /// # }
    /// ```
    pub async fn sleep(&self, duration: Duration) -> Option<()> {
        self.until_cancelled(tokio::time::sleep_until(later(duration))).await
    }

    /// Returns the token behind [`AgentContext::cancelled`], for code that accepts a token.
    pub fn cancel_token(&self) -> CancellationToken {
        self.incarnation.token.clone()
    }

    /// Returns the current time of the runtime's clock. Use it for timestamps only,
    /// because timers follow tokio's clock.
    pub fn now(&self) -> Timestamp {
        self.state.shared.clock.now()
    }

    /// Records for the watchdog that `run` makes progress. Costs one relaxed atomic store.
    pub fn heartbeat(&self) {
        self.incarnation.heartbeat();
    }

    /// Reports the agent as degraded. The reason is cut to 200 characters. The agent is not ready until
    /// [`AgentContext::healthy`] or its next incarnation.
    pub fn degraded(&self, why: impl fmt::Display) {
        self.state.set_health(self.incarnation.number, AgentHealth::Degraded(why.to_string()));
    }

    /// Reports the agent as healthy again.
    pub fn healthy(&self) {
        self.state.set_health(self.incarnation.number, AgentHealth::Ok);
    }

    /// Starts a child task of this incarnation. An error or a panic of the child ends the hook with that exit.
    ///
    /// After `run` has ended, remaining children are cancelled and have the rest of the stop timeout. They are then
    /// aborted and awaited before `cleanup`.
    ///
    /// # Errors
    /// `Closed` after `run` has ended; `Overloaded` beyond the spec's `max_children`;
    /// `Internal` outside a tokio runtime.
    ///
    /// ```
    /// # use qi_core::{Result, agent::AgentContext};
    /// async fn run(cx: &AgentContext) -> Result<()> {
    ///     let child = cx.clone();
    ///     cx.spawn("ping", async move {
    ///         while child.sleep(std::time::Duration::from_secs(20)).await.is_some() { /* ping */ }
    ///         Ok(())
    ///     })?;
    ///     cx.cancelled().await;
    ///     Ok(())
    /// }
    /// ```
    pub fn spawn(
        &self,
        label: &str,
        future: impl Future<Output = Result<()>> + Send + 'static,
    ) -> Result<()> {
        let AgentState { name, settings, .. } = &*self.state;
        self.incarnation.children.spawn(name, settings.max_children, label, future)
    }

    /// Returns a context without a runtime. It is the first incarnation of an agent named `test`, and
    /// `cancel_token().cancel()` cancels it. Children run, but their errors have no effect.
    #[cfg(feature = "test")]
    pub fn for_test() -> Self {
        use super::shared::{Settings, Shared};
        let shared = Shared::new(Arc::new(crate::SystemClock), Vec::new(), Duration::MAX);
        Self::begin(&Arc::new(AgentState::new("test".into(), Settings::default(), Arc::new(shared))))
    }
}
