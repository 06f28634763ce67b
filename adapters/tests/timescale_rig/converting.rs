//! A layer that converts every chunk to the columnstore after each write.

use std::time::Duration;

use futures::future::BoxFuture;
use qi_adapters::timescale::TimescaleStore;
use qi_core::layer::{Call, Layer};
use qi_core::record::Dataset;
use qi_core::{Operation, Result, RetryAdvice};

/// A layer that converts the chunks of its store after each write.
#[derive(Debug)]
pub(crate) struct Converting(pub(crate) TimescaleStore);

impl Converting {
    async fn convert(&self, dataset: Dataset) -> Result<()> {
        // Two writers may convert at the same time. The later writer retries.
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

impl Layer for Converting {
    fn name(&self) -> &'static str {
        "Converting"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        let dataset = call.dataset.filter(|_| call.operation == Operation::Insert);
        Box::pin(async move {
            let answer = future.await?;
            if let Some(dataset) = dataset {
                self.convert(dataset).await?;
            }
            Ok(answer)
        })
    }
}
