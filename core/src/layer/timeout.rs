//! `Timeout`: no attempt takes longer than its limit.

use std::time::Duration;

use futures::future::BoxFuture;

use super::Intercept;
use crate::bus::{Batch, BusInfo, Message, MessageBus, PublishOptions, PublishReport, Subscription};
use crate::{Error, ErrorKind, Nature, Operation, Result};

/// How long a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimeoutPolicy {
    /// For an ordinary call: 30 s. A receive gets its `wait` on top.
    pub limit: Duration,
    /// For `ensure_schema`, `delete_range`, `purge_before` and every `close`: 10 minutes.
    pub heavy: Duration,
    /// For a publish: None is twice the bus's delivery timeout (once for the wait for space, once for the
    /// delivery) and the ordinary limit. Less than twice is refused, because it would cut off what the bus still
    /// answers.
    pub publish: Option<Duration>,
}

impl Default for TimeoutPolicy {
    fn default() -> Self {
        Self { limit: Duration::from_secs(30), heavy: Duration::from_mins(10), publish: None }
    }
}

impl TimeoutPolicy {
    /// With another limit for ordinary calls.
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// With another limit for heavy calls.
    #[must_use]
    pub fn with_heavy(mut self, heavy: Duration) -> Self {
        self.heavy = heavy;
        self
    }

    /// With a fixed limit for a publish.
    #[must_use]
    pub fn with_publish(mut self, publish: Duration) -> Self {
        self.publish = Some(publish);
        self
    }
}

/// Ends an attempt that takes too long, with kind `Timeout`. What was asked may still happen: a store's write may
/// land until the server's own limit, and every message of a publish that was cut off is unknown.
#[derive(Debug, Clone, Copy)]
pub struct Timeout {
    policy: TimeoutPolicy,
}

impl Timeout {
    /// A limit for every attempt.
    ///
    /// # Errors
    /// `Config` for a limit of zero.
    pub fn new(policy: TimeoutPolicy) -> Result<Self> {
        let TimeoutPolicy { limit, heavy, publish } = policy;
        for (field, limit) in [("limit", Some(limit)), ("heavy", Some(heavy)), ("publish", publish)] {
            if limit.is_some_and(|limit| limit.is_zero()) {
                return Err(config(field, "0").with_message("a time limit must be longer than zero"));
            }
        }
        Ok(Self { policy })
    }

    fn limit(&self, operation: Operation) -> Duration {
        match (operation.nature(), operation) {
            (Nature::Heavy, _)
            | (_, Operation::StoreClose | Operation::BusClose | Operation::SubscriptionClose) => {
                self.policy.heavy
            }
            _ => self.policy.limit,
        }
    }

    fn publish_limit(&self, info: &BusInfo) -> Duration {
        self.policy.publish.unwrap_or(least_publish_limit(info).saturating_add(self.policy.limit))
    }
}

/// Once for the wait for space, once for the delivery.
fn least_publish_limit(info: &BusInfo) -> Duration {
    info.delivery_timeout.saturating_mul(2)
}

fn config(field: &'static str, value: &str) -> Error {
    Error::new(ErrorKind::Config, "layer.timeout.config", "timeout")
        .with_context("field", field)
        .with_context("value", value)
}

fn late(operation: Operation, limit: Duration) -> Error {
    Error::new(ErrorKind::Timeout, "layer.timeout", operation)
        .with_message("no answer in time")
        .with_context("limit_ms", limit.as_millis())
}

async fn limited<T>(operation: Operation, limit: Duration, attempt: BoxFuture<'_, Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, attempt).await.unwrap_or_else(|_| Err(late(operation, limit)))
}

impl Intercept for Timeout {
    fn name(&self) -> &'static str {
        "Timeout"
    }

    fn check_bus(&self, info: &BusInfo) -> Result<()> {
        let (limit, least) = (self.publish_limit(info), least_publish_limit(info));
        if limit >= least {
            return Ok(());
        }
        Err(config("publish", &format!("{limit:?}"))
            .with_message(format_args!("must be at least twice the delivery timeout, {least:?}")))
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        operation: Operation,
        attempt: impl Fn() -> BoxFuture<'a, Result<T>> + Send + Sync + 'a,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(limited(operation, self.limit(operation), attempt()))
    }

    fn call_mut<'a, A: Sync + ?Sized, T: Send + 'a>(
        &'a self,
        operation: Operation,
        subscription: &'a mut dyn Subscription,
        arguments: &'a A,
        attempt: for<'c> fn(&'c mut dyn Subscription, &'c A) -> BoxFuture<'c, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(limited(operation, self.limit(operation), attempt(subscription, arguments)))
    }

    fn publish<'a>(
        &'a self,
        bus: &'a dyn MessageBus,
        batch: &'a [Message],
        options: &'a PublishOptions,
    ) -> BoxFuture<'a, Result<PublishReport>> {
        Box::pin(async move {
            // What `check_bus` refuses holds where nobody asked it, too.
            let info = bus.info();
            let limit = self.publish_limit(&info).max(least_publish_limit(&info));
            match tokio::time::timeout(limit, bus.publish(batch, options)).await {
                Ok(answer) => answer,
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
        let limit = wait.saturating_add(self.policy.limit);
        Box::pin(limited(Operation::Recv, limit, subscription.recv(max, wait)))
    }
}
