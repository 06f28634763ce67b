//! [`PriceStore`]: the port for price storage, its queries, and the analytics that are computed from them.
//!
//! [`guide::store`](crate::guide::store) describes the contract of the port point by point. The contract suite of `qi-testkit` checks every
//! point on every implementation.

mod analytics;
mod cursor;
mod ext;
pub mod kit;
mod page;
mod persist;
mod port;
mod query;
mod report;

pub use analytics::{BarSource, Change, FilledBar, Movers, MoversQuery};
pub use cursor::{Anchor, Cursor, QueryFingerprint};
pub use ext::PriceStoreExt;
pub use page::{ArrowPage, MAX_PAGE, Page, PageRequest, RecordPage};
pub use persist::{PersistReport, PersistRequest};
pub(crate) use persist::{closed_bars, compare_page, has_lost_ticks};
pub use port::PriceStore;
pub use query::{
    BarQuery, DeleteQuery, Derived, InstrumentQuery, LatestBarsQuery, LatestQuery, LatestRequest,
    MaintainRequest, Order, Paged, RangeQuery, RangeRequest, SeriesRequest, SnapshotQuery, StatsQuery,
};
pub use report::{
    InsertReport, InstrumentSummary, MaintenanceReport, PricePoint, RangeStats, Retention, SchemaReport,
    SeriesSummary, StoreInfo, StorePingReport,
};
