use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use qi_core::store::{
    BarQuery, Dataset, DeleteQuery, Derived, InsertReport, InstrumentQuery, InstrumentSummary,
    LatestBarsQuery, LatestQuery, Page, Paged, PriceStore, RangeQuery, RangeStats, Retention, SchemaReport,
    SnapshotQuery, StatsQuery, StoreInfo, StoreStatus,
};
use qi_core::{Instrument, MarketSnapshot, Ohlcv, Operation, PriceTick, Quote, Result, Scope, Timestamp};

use super::config::ClickHouseConfig;
use super::connect::{self, Connections};
use super::error::{self, Cause};
use super::{BACKEND, schema, table};

/// A price store on ClickHouse. Cloning it shares the client.
///
/// ```no_run
/// use qi_adapters::clickhouse::{ClickHouseConfig, ClickHouseStore};
/// use qi_core::store::{PriceStore, PriceStoreExt};
/// use qi_core::{PriceTick, Timestamp};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> qi_core::Result<()> {
/// let store = ClickHouseStore::open(ClickHouseConfig::from_url("http://qi:qi@127.0.0.1:58123"))?;
/// store.ensure_schema().await?;
/// let tick = PriceTick::new("binance:BTC-USDT".parse()?, Timestamp::from_secs(1_700_000_000)?, 1, "39432.48".parse()?)?;
/// store.insert_tick(&tick).await?;
/// assert_eq!(store.latest_tick(tick.instrument()).await?, Some(tick));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ClickHouseStore {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) config: ClickHouseConfig,
    pub(super) connections: Connections,
}

impl ClickHouseStore {
    /// A store of this configuration. Nothing is sent; the first call meets the server.
    ///
    /// # Errors
    /// `Config` for a bound that is out of range or a URL that cannot be read.
    pub fn open(config: ClickHouseConfig) -> Result<Self> {
        config.validate()?;
        let connections = Connections::open(&config)?;
        Ok(Self { inner: Arc::new(Inner { config, connections }) })
    }

    /// The client, for SQL of your own. It names the configured database, and has the limits of reads.
    pub fn client(&self) -> &clickhouse::Client {
        &self.inner.connections.plain
    }

    /// The columns of a dataset's table in the database, in order, with their types.
    ///
    /// # Errors
    /// What a read may fail with. A table that is absent has no columns.
    pub async fn columns(&self, dataset: Dataset) -> Result<Vec<(String, String)>> {
        let sql = format!(
            "SELECT name, type FROM system.columns WHERE database = {} AND table = {} ORDER BY position",
            table::literal(&self.inner.config.database),
            table::literal(&self.table(table::table_of(dataset).name)),
        );
        self.turn(Operation::Instruments, async {
            connect::rows(&self.inner.connections.plain, &sql, |row| {
                Ok((row.text()?.to_owned(), row.text()?.to_owned()))
            })
            .await
        })
        .await
        .map_err(|error| error.with_operation("columns"))
    }

    /// The columns that this code writes and reads, in order, with their types: what [`Self::columns`] must give.
    pub fn expected_columns(dataset: Dataset) -> Vec<(String, String)> {
        table::table_of(dataset).columns().map(|c| (c.name.to_owned(), c.ty.to_owned())).collect()
    }

    /// The server's error codes that this adapter tells apart, with the names that it knows them by: what the
    /// server's own `errorCodeToName` must give.
    pub fn known_codes() -> impl Iterator<Item = (u16, &'static str)> {
        error::CODES.iter().map(|(code, name, ..)| (*code, *name))
    }

    /// The name of a table with the configured prefix.
    pub(super) fn table(&self, name: &str) -> String {
        schema::Place::of(&self.inner.config).table(name)
    }

    pub(super) fn info_now(&self) -> StoreInfo {
        let mut info = StoreInfo::new(BACKEND);
        info.version = self.inner.connections.version();
        info.max_batch = self.inner.config.max_batch;
        let ages = Dataset::ALL.into_iter().filter_map(|dataset| {
            let hours = self.inner.config.retention.hours(dataset)?;
            Some(Retention::Age(dataset, Duration::from_hours(hours.into())))
        });
        info.retention = ages.collect();
        info
    }

    /// Refuses a call after `close`.
    pub(super) fn enter(&self, operation: Operation) -> Result<()> {
        if self.inner.connections.is_closed() {
            return Err(Cause::Closed.at(operation));
        }
        Ok(())
    }

    /// Runs a call when its turn comes, and names the operation in its error.
    pub(super) async fn turn<T>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, Cause>>,
    ) -> Result<T> {
        let _turn = self.inner.connections.turn().await.map_err(|cause| cause.at(operation))?;
        work.await.map_err(|cause| cause.at(operation))
    }
}

/// Refuses a foreign cursor before any I/O.
fn checked<T>(query: &impl Paged<T>, operation: Operation) -> Result<()> {
    query.anchor().map(drop).map_err(|error| Cause::Core(error).at(operation))
}

impl fmt::Debug for ClickHouseStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClickHouseStore")
            .field("address", &self.inner.connections.address())
            .field("database", &self.inner.config.database)
            .field("table_prefix", &self.inner.config.table_prefix)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for ClickHouseStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, database) = (self.inner.connections.address(), &self.inner.config.database);
        write!(f, "clickhouse({address}, database {database}")?;
        match self.inner.config.table_prefix.as_str() {
            "" => f.write_str(")"),
            prefix => write!(f, ", tables {prefix}*)"),
        }
    }
}

#[async_trait]
impl PriceStore for ClickHouseStore {
    fn info(&self) -> StoreInfo {
        self.info_now()
    }

    async fn ensure_schema(&self) -> Result<SchemaReport> {
        self.turn(Operation::EnsureSchema, schema::ensure(&self.inner.connections, &self.inner.config)).await
    }

    async fn ping(&self) -> Result<StoreStatus> {
        let started = Instant::now();
        let connections = &self.inner.connections;
        let versions = self
            .turn(Operation::StorePing, async {
                connect::rows(&connections.plain, "SELECT version()", |row| Ok(row.text()?.to_owned())).await
            })
            .await?;
        let mut status = StoreStatus::new(started.elapsed());
        if let Some(version) = versions.into_iter().next() {
            connections.met(version.clone());
            status.version = Some(version);
        }
        Ok(status)
    }

    async fn insert_ticks(&self, batch: &[PriceTick]) -> Result<InsertReport> {
        self.insert(Operation::InsertTicks, batch).await
    }
    async fn insert_quotes(&self, batch: &[Quote]) -> Result<InsertReport> {
        self.insert(Operation::InsertQuotes, batch).await
    }
    async fn insert_bars(&self, batch: &[Ohlcv]) -> Result<InsertReport> {
        self.insert(Operation::InsertBars, batch).await
    }
    async fn insert_snapshots(&self, batch: &[MarketSnapshot]) -> Result<InsertReport> {
        self.insert(Operation::InsertSnapshots, batch).await
    }

    async fn ticks(&self, query: &RangeQuery) -> Result<Page<PriceTick>> {
        checked::<PriceTick>(query, Operation::Ticks)?;
        self.turn(Operation::Ticks, self.page(&query.instrument, query.range, query.order, query)).await
    }
    async fn quotes(&self, query: &RangeQuery) -> Result<Page<Quote>> {
        checked::<Quote>(query, Operation::Quotes)?;
        self.turn(Operation::Quotes, self.page(&query.instrument, query.range, query.order, query)).await
    }
    async fn bars(&self, query: &BarQuery) -> Result<Page<Ohlcv>> {
        checked::<Ohlcv>(query, Operation::Bars)?;
        let series = (query.instrument.clone(), query.interval);
        self.turn(Operation::Bars, self.page(&series, query.range, query.order, query)).await
    }
    async fn snapshots(&self, query: &SnapshotQuery) -> Result<Page<MarketSnapshot>> {
        checked::<MarketSnapshot>(query, Operation::Snapshots)?;
        self.turn(Operation::Snapshots, self.page(&query.scope, query.range, query.order, query)).await
    }

    async fn latest_ticks(&self, query: &LatestQuery) -> Result<Page<PriceTick>> {
        checked::<PriceTick>(query, Operation::LatestTicks)?;
        let work = self.latest_page(&query.selection, query.as_of, None, Instrument::clone, query);
        self.turn(Operation::LatestTicks, work).await
    }
    async fn latest_quotes(&self, query: &LatestQuery) -> Result<Page<Quote>> {
        checked::<Quote>(query, Operation::LatestQuotes)?;
        let work = self.latest_page(&query.selection, query.as_of, None, Instrument::clone, query);
        self.turn(Operation::LatestQuotes, work).await
    }
    async fn latest_bars(&self, query: &LatestBarsQuery) -> Result<Page<Ohlcv>> {
        checked::<Ohlcv>(query, Operation::LatestBars)?;
        let series = |instrument: &Instrument| (instrument.clone(), query.interval);
        let work = self.latest_page(&query.selection, query.as_of, Some(query.interval), series, query);
        self.turn(Operation::LatestBars, work).await
    }
    async fn latest_snapshots(&self, query: &LatestQuery<Scope>) -> Result<Page<MarketSnapshot>> {
        checked::<MarketSnapshot>(query, Operation::LatestSnapshots)?;
        let work = self.latest_page(&query.selection, query.as_of, None, Scope::clone, query);
        self.turn(Operation::LatestSnapshots, work).await
    }

    async fn derived_bars(&self, query: &BarQuery) -> Result<Page<Ohlcv>> {
        checked::<Ohlcv>(&Derived(query), Operation::DerivedBars)?;
        self.turn(Operation::DerivedBars, self.derived_page(query)).await
    }
    async fn stats(&self, query: &StatsQuery) -> Result<Option<RangeStats>> {
        self.turn(Operation::Stats, self.stats_of(query)).await
    }

    async fn instruments(&self, query: &InstrumentQuery) -> Result<Page<InstrumentSummary>> {
        checked::<InstrumentSummary>(query, Operation::Instruments)?;
        self.turn(Operation::Instruments, self.instrument_page(query)).await
    }
    async fn delete_range(&self, query: &DeleteQuery) -> Result<()> {
        self.turn(Operation::DeleteRange, self.delete(query)).await
    }
    async fn purge_before(&self, dataset: Dataset, cutoff: Timestamp) -> Result<()> {
        self.turn(Operation::PurgeBefore, self.purge(dataset, cutoff)).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.connections.close().await;
        Ok(())
    }
}
