//! The agent that materializes bars.

use std::time::Duration;

use crate::agent::{Agent, AgentContext};
use crate::store::MaintainRequest;
use crate::{PriceStore, Result, async_trait};

/// An agent that calls [`PriceStore::maintain`] on a schedule. One agent for each store is enough; further agents are
/// safe.
#[derive(Debug)]
pub struct Maintenance<S> {
    store: S,
    interval: Duration,
}

impl<S: PriceStore> Maintenance<S> {
    /// Creates an agent that maintains `store` every minute.
    pub fn new(store: S) -> Self {
        Self { store, interval: Duration::from_mins(1) }
    }
}

#[async_trait]
impl<S: PriceStore> Agent for Maintenance<S> {
    async fn run(&mut self, cx: &AgentContext) -> Result<()> {
        loop {
            self.store.maintain(&MaintainRequest::default()).await?;
            if cx.sleep(self.interval).await.is_none() {
                return Ok(());
            }
        }
    }
}
