//! Every method of `PriceStore`, forwarded once.

use futures::future::BoxFuture;

use super::{Intercept, Layered, through};
use crate::store::{
    BarQuery, Dataset, DeleteQuery, InsertReport, InstrumentQuery, InstrumentSummary, LatestBarsQuery,
    LatestQuery, Page, PriceStore, RangeQuery, RangeStats, SchemaReport, SnapshotQuery, StatsQuery,
    StoreInfo, StoreStatus,
};
use crate::{MarketSnapshot, Ohlcv, Operation, PriceTick, Quote, Result, Scope, Timestamp};

#[deny(clippy::missing_trait_methods)]
impl<S: PriceStore, X: Intercept> PriceStore for Layered<S, X> {
    fn info(&self) -> StoreInfo {
        self.inner.info()
    }

    through! {
        ensure_schema() -> SchemaReport = EnsureSchema;
        ping() -> StoreStatus = StorePing;
        insert_ticks(batch: [PriceTick], records) -> InsertReport = InsertTicks;
        insert_quotes(batch: [Quote], records) -> InsertReport = InsertQuotes;
        insert_bars(batch: [Ohlcv], records) -> InsertReport = InsertBars;
        insert_snapshots(batch: [MarketSnapshot], records) -> InsertReport = InsertSnapshots;
        ticks(query: RangeQuery) -> Page<PriceTick> = Ticks;
        quotes(query: RangeQuery) -> Page<Quote> = Quotes;
        bars(query: BarQuery) -> Page<Ohlcv> = Bars;
        snapshots(query: SnapshotQuery) -> Page<MarketSnapshot> = Snapshots;
        latest_ticks(query: LatestQuery) -> Page<PriceTick> = LatestTicks;
        latest_quotes(query: LatestQuery) -> Page<Quote> = LatestQuotes;
        latest_bars(query: LatestBarsQuery) -> Page<Ohlcv> = LatestBars;
        latest_snapshots(query: LatestQuery<Scope>) -> Page<MarketSnapshot> = LatestSnapshots;
        derived_bars(query: BarQuery) -> Page<Ohlcv> = DerivedBars;
        stats(query: StatsQuery) -> Option<RangeStats> = Stats;
        instruments(query: InstrumentQuery) -> Page<InstrumentSummary> = Instruments;
        delete_range(query: DeleteQuery) -> () = DeleteRange;
        close() -> () = StoreClose;
    }

    fn purge_before<'a, 'f>(&'a self, dataset: Dataset, cutoff: Timestamp) -> BoxFuture<'f, Result<()>>
    where
        'a: 'f,
        Self: 'f,
    {
        self.layer.call(Operation::PurgeBefore, move || self.inner.purge_before(dataset, cutoff))
    }
}
