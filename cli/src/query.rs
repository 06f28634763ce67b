//! `qi query`: latest records, ticks and bars.

use futures::TryStreamExt;
use futures::stream::{BoxStream, StreamExt};
use qi_core::store::{BarQuery, BarSource, LatestQuery, MAX_PAGE, PriceStore, PriceStoreExt, RangeQuery};
use qi_core::{Instrument, Interval, Ohlcv, PriceTick, Result, Selection, TimeRange};

use crate::output::{Listing, maybe, text};

/// The latest tick of each of these instruments, or of all if none are named.
///
/// # Errors
/// Of the store.
pub async fn latest(store: &dyn PriceStore, instruments: Vec<Instrument>, limit: usize) -> Result<Listing> {
    let selection = if instruments.is_empty() { Selection::All } else { Selection::these(instruments)? };
    let query = LatestQuery::new(selection).with_limit(limit.clamp(1, MAX_PAGE))?;
    ticks_of(store.latest_tick_stream(query), limit).await
}

/// The ticks of an instrument in a range: the first ones, or the newest ones first.
///
/// # Errors
/// Of the store.
pub async fn ticks(
    store: &dyn PriceStore,
    instrument: Instrument,
    range: TimeRange,
    newest: bool,
    limit: usize,
) -> Result<Listing> {
    let query = RangeQuery::new(instrument, range).with_limit(limit.clamp(1, MAX_PAGE))?;
    let query = if newest { query.descending() } else { query };
    ticks_of(store.tick_stream(query), limit).await
}

/// The bars of an instrument that open in a range: stored ones, or ones derived from its ticks.
///
/// # Errors
/// Of the store.
pub async fn bars(
    store: &dyn PriceStore,
    (instrument, interval): (Instrument, Interval),
    range: TimeRange,
    source: BarSource,
    newest: bool,
    limit: usize,
) -> Result<Listing> {
    let query = BarQuery::new(instrument, interval, range).with_limit(limit.clamp(1, MAX_PAGE))?;
    let query = if newest { query.descending() } else { query };
    let headers = [
        "instrument",
        "interval",
        "open_time",
        "open",
        "high",
        "low",
        "close",
        "volume",
        "quote_volume",
        "count",
    ];
    let mut listing = Listing::new(headers);
    let bars: Vec<Ohlcv> = store.bar_stream(query, source).take(limit).try_collect().await?;
    for bar in &bars {
        let values = bar.values();
        listing.push([
            text(bar.instrument()),
            text(bar.interval()),
            text(bar.open_time()),
            text(values.open),
            text(values.high),
            text(values.low),
            text(values.close),
            maybe(values.volume),
            maybe(values.quote_volume),
            values.count.map_or(serde_json::Value::Null, Into::into),
        ]);
    }
    Ok(listing)
}

async fn ticks_of(ticks: BoxStream<'_, Result<PriceTick>>, limit: usize) -> Result<Listing> {
    let mut listing = Listing::new(["instrument", "time", "seq", "price", "quantity", "side"]);
    let ticks: Vec<PriceTick> = ticks.take(limit).try_collect().await?;
    for tick in &ticks {
        listing.push([
            text(tick.instrument()),
            text(tick.ts()),
            tick.seq().into(),
            text(tick.price()),
            maybe(tick.quantity()),
            maybe(tick.side()),
        ]);
    }
    Ok(listing)
}
