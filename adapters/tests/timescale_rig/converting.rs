//! A wrapper that converts every chunk to the columnstore after each write.

use std::time::Duration;

use futures::future::BoxFuture;
use qi_adapters::timescale::TimescaleStore;
use qi_core::layer::Intercept;
use qi_core::store::Dataset;
use qi_core::{Operation, Result, RetryAdvice};

/// Converts after each write, in the store that it wraps.
#[derive(Debug)]
pub(crate) struct Converting(pub(crate) TimescaleStore);

impl Converting {
    async fn convert(&self, dataset: Dataset) -> Result<()> {
        // Two writers convert at the same time; the one that comes too late tries again.
        for _ in 0..20 {
            match self.0.convert_to_columnstore(dataset).await {
                Err(error) if error.retry() == RetryAdvice::Backoff => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                other => return other.map(drop),
            }
        }
        Ok(())
    }
}

impl Intercept for Converting {
    fn name(&self) -> &'static str {
        "Converting"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        operation: Operation,
        attempt: impl Fn() -> BoxFuture<'a, Result<T>> + Send + Sync + 'a,
    ) -> BoxFuture<'a, Result<T>> {
        let dataset = match operation {
            Operation::InsertTicks => Some(Dataset::Ticks),
            Operation::InsertQuotes => Some(Dataset::Quotes),
            Operation::InsertBars => Some(Dataset::Bars),
            Operation::InsertSnapshots => Some(Dataset::Snapshots),
            _ => None,
        };
        Box::pin(async move {
            let answer = attempt().await?;
            if let Some(dataset) = dataset {
                self.convert(dataset).await?;
            }
            Ok(answer)
        })
    }
}
