//! Record batches out of a store and into a store.

use arrow_array::RecordBatch;
use futures::stream::{BoxStream, StreamExt as _};
use qi_core::Result;
use qi_core::record::Dataset;
use qi_core::store::{InsertReport, PriceStore, RangeRequest};

use crate::records::{insert_records, range_records};
use crate::{decode, encode};

/// Returns the records of a request as record batches.
///
/// If the store has a columnar read ([`PriceStore::range_arrow`]), the stream uses it. Otherwise it reads pages with the
/// limit of the request; [`qi_core::store::PageRequest::bulk`] suits a bulk read. Every record is validated.
///
/// The stream holds one page in memory, and no connection while the caller is busy. It ends after its first error.
///
/// ```
/// use futures::TryStreamExt as _;
/// use qi_core::record::{Record as _, Series as _};
/// use qi_core::store::{PageRequest, PriceStore, RangeRequest};
/// use qi_core::{Instrument, PriceTick, Result, TimeRange};
///
/// async fn rows(store: &dyn PriceStore, instrument: &Instrument, range: TimeRange) -> Result<usize> {
///     let page = PageRequest::bulk(PriceTick::DATASET);
///     let request = RangeRequest::new(PriceTick::DATASET, instrument.key(), range).with_page(page);
///     let mut batches = qi_arrow::range_batches(store, request);
///     let mut rows = 0;
///     while let Some(batch) = batches.try_next().await? {
///         rows += batch.num_rows();
///     }
///     Ok(rows)
/// }
/// ```
pub fn range_batches<S: PriceStore + ?Sized>(
    store: &S,
    request: RangeRequest,
) -> BoxStream<'_, Result<RecordBatch>> {
    range_records(store, request).map(|records| encode(records?.as_records())).boxed()
}

/// Writes the records of a batch into a store, in inserts of at most [`qi_core::store::StoreInfo::max_batch`] records.
///
/// All records are validated before the first insert. After an error of the store, the records of the earlier inserts
/// are stored. Sending the batch again is safe.
///
/// # Errors
/// Errors of [`decode`] and of the store.
pub async fn insert_batch<S: PriceStore + ?Sized>(
    store: &S,
    dataset: Dataset,
    batch: &RecordBatch,
) -> Result<InsertReport> {
    insert_records(store, decode(dataset, batch)?, |_| {}).await
}
