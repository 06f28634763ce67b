//! Records out of a store, in the fastest way that the store has, and into a store.

use std::io::Cursor as Bytes;
use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, DictionaryArray, Int32Array, RecordBatch, StringArray};
use arrow_ipc::reader::StreamReader;
use arrow_schema::{ArrowError, Field, Schema};
use futures::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use qi_core::record::{Dataset, Owner, RecordVec, SeriesKey, SeriesType};
use qi_core::store::{InsertReport, PriceStore, RangeRequest};
use qi_core::{Error, Result};

use crate::decode;
use crate::error::corrupt;
use crate::schema;

/// Returns the records of a request, in vectors of at most one page of the store.
///
/// If the store has a columnar read ([`PriceStore::range_arrow`]), the stream uses it, and validates the records.
/// Otherwise, the stream reads pages with the limit of the request. The first page decides.
pub(crate) fn range_records<S: PriceStore + ?Sized>(
    store: &S,
    request: RangeRequest,
) -> BoxStream<'_, Result<RecordVec>> {
    stream::try_unfold((Some(request), true), move |(request, mut is_columnar)| async move {
        let Some(request) = request else { return Ok(None) };
        let page = if is_columnar { store.range_arrow(&request).await? } else { None };
        is_columnar = page.is_some();
        let (records, next) = if let Some(page) = page {
            (from_ipc(request.dataset, &request.series, &page.ipc)?, page.next)
        } else {
            let page = store.range(&request).await?;
            (vec![page.records], page.next)
        };
        let next = next.map(|cursor| request.after(cursor));
        Ok::<_, Error>(Some((stream::iter(records.into_iter().map(Ok)), (next, is_columnar))))
    })
    .try_flatten()
    .try_filter(|records| std::future::ready(!records.is_empty()))
    .boxed()
}

/// Writes records in inserts of at most [`qi_core::store::StoreInfo::max_batch`], and reports the size of each insert.
pub(crate) async fn insert_records<S: PriceStore + ?Sized>(
    store: &S,
    mut rest: RecordVec,
    mut inserted: impl FnMut(usize),
) -> Result<InsertReport> {
    let most = store.info().max_batch.max(1);
    let mut report = InsertReport::default();
    while !rest.is_empty() {
        let later = rest.split_off(rest.len().min(most));
        report = report.merge(store.insert(rest.as_records()).await?);
        inserted(rest.len());
        rest = later;
    }
    Ok(report)
}

fn broken(error: ArrowError) -> Error {
    corrupt("arrow.ipc", "the store sent data that is not an Arrow stream").with_source(error)
}

/// Decodes the batches of an Arrow stream without series.
fn from_ipc(dataset: Dataset, series: &SeriesKey, ipc: &[u8]) -> Result<Vec<RecordVec>> {
    if ipc.is_empty() {
        return Ok(Vec::new());
    }
    let batches = StreamReader::try_new(Bytes::new(ipc), None).map_err(broken)?;
    batches.map(|batch| decode(dataset, &with_series(dataset, series, &batch.map_err(broken)?)?)).collect()
}

/// Adds the columns of the series, which are equal in all rows.
fn with_series(dataset: Dataset, series: &SeriesKey, batch: &RecordBatch) -> Result<RecordBatch> {
    let mut names: Vec<(&str, String)> = match (dataset.series(), &series.owner) {
        (SeriesType::Name { column, .. }, Owner::Name(name)) => vec![(column, name.to_string())],
        (_, Owner::Instrument(instrument)) => {
            vec![("exchange", instrument.exchange().to_string()), ("symbol", instrument.symbol().to_string())]
        }
        _ => return Err(Error::invalid("arrow.series", "series", series, "has another type")),
    };
    names.extend(
        dataset.interval().zip(series.interval).map(|(column, interval)| (column, interval.to_string())),
    );
    let (mut fields, mut columns) = (Vec::new(), Vec::<ArrayRef>::new());
    for (column, name) in names {
        let keys = Int32Array::from(vec![0; batch.num_rows()]);
        let values = Arc::new(StringArray::from(vec![name]));
        columns.push(Arc::new(DictionaryArray::<Int32Type>::try_new(keys, values).map_err(broken)?));
        fields.push(Arc::new(Field::new(column, schema::name(), false)));
    }
    fields.extend(batch.schema().fields().iter().cloned());
    columns.extend(batch.columns().iter().cloned());
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(broken)
}
