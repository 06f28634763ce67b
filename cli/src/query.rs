//! `qi query` and `qi instruments`: latest records, ranges of records, bars, figures and series.

use futures::TryStreamExt;
use futures::stream::StreamExt;
use qi_core::record::{Column, Dataset, Owner, Records, Row, SeriesType, Value};
use qi_core::store::{
    BarQuery, BarSource, Cursor, LatestRequest, MAX_PAGE, PriceStore, PriceStoreExt, RangeRequest,
    RecordPage, SeriesRequest, StatsQuery,
};
use qi_core::{Bar, Error, Exchange, Interval, Result, Selection, TimeRange};

use crate::Series;
use crate::output::{Listing, maybe, text};

/// Reads the owner of a series: an instrument, or a name of the dataset.
///
/// # Errors
/// `InvalidInput` for a text that is not an instrument, if the dataset belongs to instruments.
pub fn owner(dataset: Dataset, name: &str) -> Result<Owner> {
    match dataset.series() {
        SeriesType::Instrument => name.parse().map(Owner::Instrument),
        // The scope of the complete market has an empty name in the store.
        SeriesType::Name { .. } if name == "global" => Ok(Owner::Name("".into())),
        SeriesType::Name { max, .. } if name.len() <= max => Ok(Owner::Name(name.into())),
        SeriesType::Name { max, .. } => {
            Err(Error::invalid("query.series", "series", name, format_args!("must be at most {max} bytes")))
        }
    }
}

/// Returns the latest record of each of these owners, or of all owners if none are named.
///
/// # Errors
/// Errors of the store; `InvalidInput` for an interval of a dataset without intervals, or for a missing interval.
pub async fn latest(
    store: &dyn PriceStore,
    dataset: Dataset,
    owners: Vec<Owner>,
    interval: Option<Interval>,
    limit: usize,
) -> Result<Listing> {
    let selection = if owners.is_empty() { Selection::All } else { Selection::only(owners)? };
    let mut request = LatestRequest::new(dataset, selection).with_limit(limit.clamp(1, MAX_PAGE))?;
    request.interval = interval;
    let ask = async |after: Option<Cursor>| {
        store.latest(&after.into_iter().fold(request.clone(), LatestRequest::after)).await
    };
    pages(dataset, limit, ask).await
}

/// Returns the records of a series in a range: the oldest, or with `newest` the newest in descending order.
///
/// # Errors
/// Errors of the store.
pub async fn records(
    store: &dyn PriceStore,
    series: Series,
    range: TimeRange,
    newest: bool,
    limit: usize,
) -> Result<Listing> {
    let request =
        RangeRequest::new(series.dataset, series.key, range).with_limit(limit.clamp(1, MAX_PAGE))?;
    let request = if newest { request.descending() } else { request };
    let ask = async |after: Option<Cursor>| {
        store.range(&after.into_iter().fold(request.clone(), RangeRequest::after)).await
    };
    pages(series.dataset, limit, ask).await
}

/// Returns the bars of an instrument that open in a range, derived from its ticks.
///
/// # Errors
/// Errors of the store.
pub async fn derived_bars(
    store: &dyn PriceStore,
    query: BarQuery,
    newest: bool,
    limit: usize,
) -> Result<Listing> {
    let query = query.with_limit(limit.clamp(1, MAX_PAGE))?;
    let query = if newest { query.descending() } else { query };
    let bars: Vec<Bar> = store.bar_stream(query, BarSource::Derived).take(limit).try_collect().await?;
    let mut listing = headers(<Bar as qi_core::Record>::DATASET);
    rows(&mut listing, qi_core::record::RecordVec::from_vec(bars).as_records(), limit)?;
    Ok(listing)
}

/// Returns figures of the ticks of an instrument in a range, or no row without ticks. VWAP and change are rounded once.
///
/// # Errors
/// Errors of the store; `OutOfRange` for a sum of 10²⁰ or more.
pub async fn stats(store: &dyn PriceStore, query: &StatsQuery) -> Result<Listing> {
    let mut listing = Listing::new([
        "instrument",
        "count",
        "first time",
        "first price",
        "last time",
        "last price",
        "min",
        "max",
        "volume",
        "quote volume",
        "vwap",
        "change",
    ]);
    if let Some(stats) = store.stats(query).await? {
        let (first, last) = (stats.first(), stats.last());
        listing.push([
            text(&query.instrument),
            stats.count().into(),
            text(first.ts),
            text(first.price),
            text(last.ts),
            text(last.price),
            text(stats.min()),
            text(stats.max()),
            maybe(stats.volume()),
            maybe(stats.quote_volume()),
            maybe(stats.vwap()?),
            text(stats.change()?),
        ]);
    }
    Ok(listing)
}

/// Returns the instruments or names of a dataset, with the times of the first and the last record.
///
/// # Errors
/// Errors of the store.
pub async fn instruments(
    store: &dyn PriceStore,
    dataset: Dataset,
    exchange: Option<Exchange>,
    limit: usize,
) -> Result<Listing> {
    let mut request = SeriesRequest::new(dataset).with_limit(limit.clamp(1, MAX_PAGE))?;
    request.exchange = exchange;
    let mut listing = Listing::new([series_column(dataset), "first", "last"]);
    loop {
        let page = store.series(&request).await?;
        let remaining = limit - listing.rows().len();
        for found in page.items.iter().take(remaining) {
            listing.push([text(&found.owner), text(found.first), text(found.last)]);
        }
        match page.next {
            Some(next) if listing.rows().len() < limit => request = request.after(next),
            _ => return Ok(listing),
        }
    }
}

/// Reads pages up to `limit` records.
async fn pages(
    dataset: Dataset,
    limit: usize,
    ask: impl AsyncFn(Option<Cursor>) -> Result<RecordPage>,
) -> Result<Listing> {
    let (mut listing, mut after) = (headers(dataset), None);
    while listing.rows().len() < limit {
        let page = ask(after).await?;
        let remaining = limit - listing.rows().len();
        rows(&mut listing, page.records.as_records(), remaining)?;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    Ok(listing)
}

fn series_column(dataset: Dataset) -> &'static str {
    match dataset.series() {
        SeriesType::Instrument => "instrument",
        SeriesType::Name { column, .. } => column,
    }
}

/// Returns an empty listing with a column for each part of the key and each value.
fn headers(dataset: Dataset) -> Listing {
    let key = [Some(series_column(dataset)), dataset.interval(), Some(dataset.time()), dataset.seq()];
    Listing::new(key.into_iter().flatten().chain(dataset.values().iter().map(|column| column.name)))
}

fn rows(listing: &mut Listing, records: &dyn Records, limit: usize) -> Result<()> {
    let dataset = records.dataset();
    for row in Row::copy_of(records)?.iter().take(limit) {
        let (time, seq) = row.sort_key();
        let key = [
            Some(text(&row.series().owner)),
            row.series().interval.map(text),
            Some(text(time)),
            dataset.seq().map(|_| seq.into()),
        ];
        let values = row.values().iter().zip(dataset.values()).map(|(value, column)| cell(value, column));
        listing.push(key.into_iter().flatten().chain(values));
    }
    Ok(())
}

/// Returns numbers and booleans as such, and decimals as text, because JSON numbers are not exact.
fn cell(value: &Value, column: &Column) -> serde_json::Value {
    match value {
        Value::Decimal(value) => text(value),
        Value::Counter(value) => (*value).into(),
        Value::Integer(value) => (*value).into(),
        Value::Boolean(value) => (*value).into(),
        Value::Text(value) => text(value),
        Value::Enumeration(code) => column.ty.name_of(*code).map_or(serde_json::Value::Null, text),
        Value::Timestamp(value) => text(value),
        Value::Interval(value) => text(value),
        Value::Levels(levels) => {
            let levels = levels.iter().map(|level| format!("{}@{}", level.quantity, level.price));
            text(levels.collect::<Vec<_>>().join(" "))
        }
        _ => serde_json::Value::Null,
    }
}
