//! The calls of `qi check`.

use qi_core::Datasets;
use qi_core::store::{PriceStore, SeriesRequest};

/// The number of pings of `qi check`.
const PINGS: usize = 6;

/// Makes the calls of `qi check`: pings, the first series of each dataset, and the plan of the schema.
pub(crate) async fn check(store: &dyn PriceStore) {
    for _ in 0..PINGS {
        store.ping().await.expect("a server that answers");
    }
    for dataset in Datasets::standard().iter() {
        let first = SeriesRequest::new(dataset).with_limit(1).expect("a limit");
        store.series(&first).await.expect("a page");
    }
    store.plan_schema().await.expect("a plan");
}
