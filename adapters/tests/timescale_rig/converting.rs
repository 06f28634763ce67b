//! A store that converts every chunk to the columnstore after each write.

use std::fmt;

use async_trait::async_trait;
use qi_adapters::timescale::TimescaleStore;
use qi_core::store::{
    BarQuery, Dataset, DeleteQuery, InsertReport, InstrumentQuery, InstrumentSummary, LatestBarsQuery,
    LatestQuery, Page, RangeQuery, RangeStats, SchemaReport, SnapshotQuery, StatsQuery, StoreInfo,
    StoreStatus,
};
use qi_core::{MarketSnapshot, Ohlcv, PriceStore, PriceTick, Quote, Result, RetryAdvice, Scope, Timestamp};

/// Converts after each write.
#[derive(Debug)]
pub(crate) struct Converting(TimescaleStore);

impl Converting {
    /// Around a store of the Community edition.
    pub(crate) fn new(store: TimescaleStore) -> Self {
        Self(store)
    }

    async fn convert<T>(&self, written: Result<T>, dataset: Dataset) -> Result<T> {
        let written = written?;
        // Two writers convert at the same time; the one that comes too late tries again.
        for _ in 0..20 {
            match self.0.convert_to_columnstore(dataset).await {
                Err(error) if error.retry() == RetryAdvice::Backoff => {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
                other => return other.map(|_| written),
            }
        }
        Ok(written)
    }
}

impl fmt::Display for Converting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Converting({})", self.0)
    }
}

#[async_trait]
impl PriceStore for Converting {
    fn info(&self) -> StoreInfo {
        self.0.info()
    }
    async fn ensure_schema(&self) -> Result<SchemaReport> {
        self.0.ensure_schema().await
    }
    async fn ping(&self) -> Result<StoreStatus> {
        self.0.ping().await
    }
    async fn insert_ticks(&self, batch: &[PriceTick]) -> Result<InsertReport> {
        self.convert(self.0.insert_ticks(batch).await, Dataset::Ticks).await
    }
    async fn insert_quotes(&self, batch: &[Quote]) -> Result<InsertReport> {
        self.convert(self.0.insert_quotes(batch).await, Dataset::Quotes).await
    }
    async fn insert_bars(&self, batch: &[Ohlcv]) -> Result<InsertReport> {
        self.convert(self.0.insert_bars(batch).await, Dataset::Bars).await
    }
    async fn insert_snapshots(&self, batch: &[MarketSnapshot]) -> Result<InsertReport> {
        self.convert(self.0.insert_snapshots(batch).await, Dataset::Snapshots).await
    }
    async fn ticks(&self, query: &RangeQuery) -> Result<Page<PriceTick>> {
        self.0.ticks(query).await
    }
    async fn quotes(&self, query: &RangeQuery) -> Result<Page<Quote>> {
        self.0.quotes(query).await
    }
    async fn bars(&self, query: &BarQuery) -> Result<Page<Ohlcv>> {
        self.0.bars(query).await
    }
    async fn snapshots(&self, query: &SnapshotQuery) -> Result<Page<MarketSnapshot>> {
        self.0.snapshots(query).await
    }
    async fn latest_ticks(&self, query: &LatestQuery) -> Result<Page<PriceTick>> {
        self.0.latest_ticks(query).await
    }
    async fn latest_quotes(&self, query: &LatestQuery) -> Result<Page<Quote>> {
        self.0.latest_quotes(query).await
    }
    async fn latest_bars(&self, query: &LatestBarsQuery) -> Result<Page<Ohlcv>> {
        self.0.latest_bars(query).await
    }
    async fn latest_snapshots(&self, query: &LatestQuery<Scope>) -> Result<Page<MarketSnapshot>> {
        self.0.latest_snapshots(query).await
    }
    async fn derived_bars(&self, query: &BarQuery) -> Result<Page<Ohlcv>> {
        self.0.derived_bars(query).await
    }
    async fn stats(&self, query: &StatsQuery) -> Result<Option<RangeStats>> {
        self.0.stats(query).await
    }
    async fn instruments(&self, query: &InstrumentQuery) -> Result<Page<InstrumentSummary>> {
        self.0.instruments(query).await
    }
    async fn delete_range(&self, query: &DeleteQuery) -> Result<()> {
        self.0.delete_range(query).await
    }
    async fn purge_before(&self, dataset: Dataset, cutoff: Timestamp) -> Result<()> {
        self.0.purge_before(dataset, cutoff).await
    }
    async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}
