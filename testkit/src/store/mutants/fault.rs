//! A store whose fault replaces some methods of a correct store.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use qi_core::record::{Dataset, Records};
use qi_core::store::{
    BarQuery, DeleteQuery, InsertReport, LatestRequest, MaintainRequest, MaintenanceReport, Page, PriceStore,
    RangeRequest, RangeStats, RecordPage, SchemaReport, SeriesRequest, SeriesSummary, StatsQuery, StoreInfo,
    StorePingReport,
};
use qi_core::{Bar, Result, Timestamp};

/// The correct store under a fault.
type Inner<'a> = &'a dyn PriceStore;

/// Defines the trait `Fault`, and `PriceStore` for `FaultyStore`. A method that a fault does not implement calls the
/// correct store.
macro_rules! fault_trait {
    ($($method:ident($($argument:ident: $type:ty),*) -> $output:ty;)*) => {
        /// The methods that a fault replaces.
        #[async_trait]
        #[allow(unused_variables, reason = "methods without arguments")]
        pub(super) trait Fault: fmt::Debug + Send + Sync + 'static {
            $(async fn $method(&self, inner: Inner<'_>, $($argument: $type),*) -> Result<$output> {
                inner.$method($($argument),*).await
            })*
        }

        #[async_trait]
        impl<F: Fault> PriceStore for FaultyStore<F> {
            fn info(&self) -> StoreInfo {
                self.inner.info()
            }
            $(async fn $method(&self, $($argument: $type),*) -> Result<$output> {
                self.fault.$method(&*self.inner, $($argument),*).await
            })*
        }
    };
}

fault_trait! {
    ensure_schema() -> SchemaReport;
    migrate_schema() -> SchemaReport;
    ping() -> StorePingReport;
    plan_schema() -> Vec<String>;
    insert(batch: &dyn Records) -> InsertReport;
    range(request: &RangeRequest) -> RecordPage;
    latest(request: &LatestRequest) -> RecordPage;
    derived_bars(query: &BarQuery) -> Page<Bar>;
    stats(query: &StatsQuery) -> Option<RangeStats>;
    series(request: &SeriesRequest) -> Page<SeriesSummary>;
    delete_range(query: &DeleteQuery) -> ();
    purge_before(dataset: Dataset, cutoff: Timestamp) -> ();
    maintain(request: &MaintainRequest) -> MaintenanceReport;
    close() -> ();
}

/// A correct store and the fault in front of it.
#[derive(Debug)]
struct FaultyStore<F> {
    inner: Arc<dyn PriceStore>,
    fault: F,
}

impl<F: fmt::Debug> fmt::Display for FaultyStore<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {:?}", self.inner, self.fault)
    }
}

/// Adds a fault to a correct store.
pub(super) fn with_fault(inner: Arc<dyn PriceStore>, fault: impl Fault) -> Arc<dyn PriceStore> {
    Arc::new(FaultyStore { inner, fault })
}
