//! Record batches out of a store and into a store.

use arrow_array::RecordBatch;
use futures::stream::{self, BoxStream, StreamExt as _};
use qi_core::record::Dataset;
use qi_core::store::{InsertReport, PriceStore, RangeRequest};
use qi_core::{Error, Result};

use crate::{decode, encode};

/// Returns the records of a request as record batches, one for each page of the store.
///
/// The stream holds one page in memory, and no connection while the caller is busy. It ends after its first error. The
/// limit of the request is the largest number of rows in a batch; [`qi_core::store::PageRequest::bulk`] suits a bulk
/// read.
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
    stream::try_unfold(Some(request), move |request| async move {
        let Some(request) = request else { return Ok(None) };
        let page = store.range(&request).await?;
        if page.records.is_empty() {
            return Ok(None);
        }
        let batch = encode(page.records.as_records())?;
        Ok::<_, Error>(Some((batch, page.next.map(|cursor| request.after(cursor)))))
    })
    .boxed()
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
    let most = store.info().max_batch.max(1);
    let mut rest = decode(dataset, batch)?;
    let mut report = InsertReport::default();
    while !rest.is_empty() {
        let next = rest.split_off(rest.len().min(most));
        report = report.merge(store.insert(rest.as_records()).await?);
        rest = next;
    }
    Ok(report)
}
