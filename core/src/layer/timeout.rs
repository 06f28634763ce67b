//! `Timeout`: limits the duration of every call.

use std::time::Duration;

use futures::future::BoxFuture;

use super::{Call, Layer};
use crate::bus::{Batch, Message, MessageBus, PublishOptions, PublishReport, Subscription};
use crate::{Error, ErrorKind, Operation, OperationClass, Result};

/// The time limits of [`Timeout`]. A limit of zero fails every call that has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimeoutConfig {
    /// The limit of an ordinary call. A receive has this limit in addition to its `wait`. Defaults to 30 s.
    pub call: Duration,
    /// The limit of `ensure_schema`, `migrate_schema`, `delete_range`, `purge_before`, `maintain`, `subscribe` and `close`. Defaults to 10 minutes.
    ///
    /// `subscribe` returns after the first assignment. A group whose last member was killed assigns partitions only
    /// after the session timeout of that member.
    pub bulk: Duration,
    /// The limit of a publish. Defaults to twice the delivery timeout of the bus plus `call`.
    ///
    /// A smaller limit than twice the delivery timeout counts as twice the delivery timeout. The bus may wait once for
    /// buffer space and once for delivery, and reports every message within that time.
    pub publish: Option<Duration>,
}

impl Default for TimeoutConfig {
    fn default() -> Self {
        Self { call: Duration::from_secs(30), bulk: Duration::from_mins(10), publish: None }
    }
}

impl TimeoutConfig {
    /// Sets the limit of ordinary calls.
    #[must_use]
    pub fn with_call(mut self, limit: Duration) -> Self {
        self.call = limit;
        self
    }

    /// Sets the limit of bulk calls, `subscribe` and `close`.
    #[must_use]
    pub fn with_bulk(mut self, limit: Duration) -> Self {
        self.bulk = limit;
        self
    }

    /// Sets the limit of a publish.
    #[must_use]
    pub fn with_publish(mut self, limit: Duration) -> Self {
        self.publish = Some(limit);
        self
    }
}

/// A layer that ends a call after its time limit with kind `Timeout`.
///
/// The backend may still complete the call. A write may take effect until the server's own limit, and every message of
/// a publish is `Unknown`.
#[derive(Debug, Clone, Copy)]
pub struct Timeout {
    config: TimeoutConfig,
}

impl Timeout {
    /// Creates the layer from its settings.
    pub fn new(config: TimeoutConfig) -> Self {
        Self { config }
    }

    /// Returns the settings.
    pub fn config(&self) -> TimeoutConfig {
        self.config
    }

    fn limit(&self, operation: Operation) -> Duration {
        let is_long = operation.class() == OperationClass::Bulk
            || operation == Operation::Subscribe
            || operation.is_close();
        if is_long { self.config.bulk } else { self.config.call }
    }
}

fn late(operation: Operation, limit: Duration) -> Error {
    Error::new(ErrorKind::Timeout, "layer.timeout", operation)
        .with_message(format_args!("no response within {limit:?}"))
        .with_context("limit", format_args!("{limit:?}"))
}

async fn limited<T>(operation: Operation, limit: Duration, future: BoxFuture<'_, Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| Err(late(operation, limit)))
}

impl Layer for Timeout {
    fn name(&self) -> &'static str {
        "Timeout"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        Call { operation, .. }: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(limited(operation, self.limit(operation), future))
    }

    fn publish<'a>(
        &'a self,
        bus: &'a dyn MessageBus,
        batch: &'a [Message],
        options: &'a PublishOptions,
    ) -> BoxFuture<'a, Result<PublishReport>> {
        Box::pin(async move {
            let least = bus.info().delivery_timeout.saturating_mul(2);
            let limit = self.config.publish.unwrap_or(least.saturating_add(self.config.call)).max(least);
            match tokio::time::timeout(limit, bus.publish(batch, options)).await {
                Ok(result) => result,
                Err(_) => Ok(PublishReport::all_unknown(batch.len(), &late(Operation::Publish, limit))),
            }
        })
    }

    fn recv<'a>(
        &'a self,
        subscription: &'a mut dyn Subscription,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Batch>> {
        let limit = wait.saturating_add(self.config.call);
        Box::pin(limited(Operation::Recv, limit, subscription.recv(max, wait)))
    }
}
