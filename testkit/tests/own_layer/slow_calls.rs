use std::time::Duration;

use qi_core::bus::{Message, MessageBus, PublishOptions, PublishReport};
use qi_core::layer::{Call, Layer};
use qi_core::{BoxFuture, Operation, Result};
use tokio::time::Instant;

/// Logs every call that takes longer than a threshold.
#[derive(Debug)]
struct SlowCalls {
    threshold: Duration,
}

impl SlowCalls {
    async fn observe<T>(&self, operation: Operation, future: BoxFuture<'_, Result<T>>) -> Result<T> {
        let start = Instant::now();
        let result = future.await;
        let elapsed = start.elapsed();
        if elapsed > self.threshold {
            tracing::warn!(%operation, ?elapsed, failed = result.is_err(), "slow call");
        }
        result
    }
}

impl Layer for SlowCalls {
    fn name(&self) -> &'static str {
        "SlowCalls"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(self.observe(call.operation, future))
    }

    fn publish<'a>(
        &'a self,
        bus: &'a dyn MessageBus,
        batch: &'a [Message],
        options: &'a PublishOptions,
    ) -> BoxFuture<'a, Result<PublishReport>> {
        Box::pin(self.observe(Operation::Publish, bus.publish(batch, options)))
    }
}
