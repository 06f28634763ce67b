//! A layer that maintains the materialized bars of its store before each call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::future::BoxFuture;
use qi_core::layer::{Call, Layer, LayerStack, Layered};
use qi_core::store::{MaintainRequest, PriceStore};
use qi_core::{ErrorKind, Interval, Operation, Result, Timestamp};

use super::Wrapper;
use super::dataset_ops::BASE;

impl Wrapper {
    /// A store whose bars are maintained before each call. The watermark moves through the records of the checks, and
    /// then behind all records.
    pub const MAINTAINED: Self = Self { name: "maintained", wrap: maintained };
    /// All layers of core over [`Self::MAINTAINED`].
    pub const FULL_STACK_OVER_MAINTAINED: Self = Self {
        name: "full_stack_over_maintained",
        wrap: |store| LayerStack::default().wrap_store(maintained(store)),
    };
}

fn maintained(store: Arc<dyn PriceStore>) -> Arc<dyn PriceStore> {
    Arc::new(Layered::new(store.clone(), Maintaining { store, calls: AtomicU32::new(0) }))
}

#[derive(Debug)]
struct Maintaining {
    store: Arc<dyn PriceStore>,
    calls: AtomicU32,
}

impl Maintaining {
    async fn maintain(&self) -> Result<()> {
        /// The number of calls after which the watermark moves behind all records. Before, it moves through the hours
        /// of a history of the model.
        const CALLS: u32 = 32;
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        let hours = 2 * i64::from(calls) * Interval::H1.as_micros();
        let until = if calls < CALLS { Timestamp::from_micros(BASE + hours)? } else { Timestamp::MAX };
        match self.store.maintain(&MaintainRequest::default().with_until(until)).await {
            Err(error) if !matches!(error.kind(), ErrorKind::SchemaMismatch | ErrorKind::Closed) => {
                Err(error)
            }
            _ => Ok(()),
        }
    }
}

impl Layer for Maintaining {
    fn name(&self) -> &'static str {
        "Maintaining"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        let is_data_call =
            !matches!(call.operation, Operation::EnsureSchema | Operation::PlanSchema | Operation::Maintain)
                && !call.operation.is_ping()
                && !call.operation.is_close();
        Box::pin(async move {
            if is_data_call {
                self.maintain().await?;
            }
            future.await
        })
    }
}
