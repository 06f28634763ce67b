//! The results in the store: a row for each instrument, and the exported bars.

use futures::TryStreamExt;
use qi_core::store::{BarQuery, BarSource, PriceStoreExt, StatsQuery};
use qi_core::{Bar, Instrument, Interval, Result, TimeRange};

use super::export::Export;
use super::report::InstrumentRow;
use super::{Job, PriceStore};

/// Returns a row for each published instrument. `input` is the interval of the input's bars, if it has bars. The bars
/// of the exported instrument are written to `export`.
pub(super) async fn rows(
    job: &Job,
    input: Option<Interval>,
    mut export: Option<Export>,
) -> Result<Vec<InstrumentRow>> {
    let mut rows = Vec::new();
    let mut has_bars = false;
    let exported = job.export.as_ref().map(|(_, instrument)| instrument);
    for (instrument, published) in job.counters.instruments() {
        let mut row = InstrumentRow::new(instrument.clone(), published);
        let mut no_export = None;
        let export = if exported == Some(&instrument) { &mut export } else { &mut no_export };
        let read = match input {
            None => read_ticks(job, &instrument, &mut row, export).await,
            Some(interval) => read_bars(job, &instrument, interval, &mut row, export).await,
        };
        read.map_err(|error| error.with_context("instrument", &instrument))?;
        has_bars |= exported == Some(&instrument) && row.bars > 0;
        rows.push(row);
    }
    // Without bars, an existing file is kept.
    export.filter(|_| has_bars).map_or(Ok(()), Export::finish)?;
    Ok(rows)
}

async fn read_ticks(
    job: &Job,
    instrument: &Instrument,
    row: &mut InstrumentRow,
    export: &mut Option<Export>,
) -> Result<()> {
    let store: &dyn PriceStore = &*job.store;
    let Some(stats) = store.stats(&StatsQuery::new(instrument.clone(), TimeRange::ALL)).await? else {
        return Ok(());
    };
    row.stored = stats.count();
    row.vwap = stats.vwap()?;
    row.last_price = store.latest_tick(instrument).await?.map(|tick| tick.price());
    let range = TimeRange::new(job.interval.floor(stats.first().ts), TimeRange::ALL.end())?;
    let query = BarQuery::new(instrument.clone(), job.interval, range);
    let mut bars = store.bar_stream(query, BarSource::Derived);
    while let Some(bar) = bars.try_next().await? {
        row.bars += 1;
        write(export, &bar)?;
    }
    Ok(())
}

async fn read_bars(
    job: &Job,
    instrument: &Instrument,
    interval: Interval,
    row: &mut InstrumentRow,
    export: &mut Option<Export>,
) -> Result<()> {
    let store: &dyn PriceStore = &*job.store;
    row.last_price = store.latest_bar(instrument, interval).await?.map(|bar| bar.close());
    let query = BarQuery::new(instrument.clone(), interval, TimeRange::ALL);
    let mut bars = store.bar_stream(query, BarSource::Stored);
    // The finer bars of one coarser bar: at most a week of seconds.
    let mut group: Vec<Bar> = Vec::new();
    loop {
        let bar = bars.try_next().await?;
        let is_same_bucket =
            |a: &Bar, b: &Bar| job.interval.floor(a.open_time()) == job.interval.floor(b.open_time());
        if !bar.as_ref().zip(group.first()).is_some_and(|(bar, first)| is_same_bucket(bar, first)) {
            for coarse in qi_core::datasets::resample(&group, job.interval)? {
                row.bars += 1;
                write(export, &coarse)?;
            }
            group.clear();
        }
        let Some(bar) = bar else { return Ok(()) };
        row.stored += 1;
        group.push(bar);
    }
}

fn write(export: &mut Option<Export>, bar: &Bar) -> Result<()> {
    export.as_mut().map_or(Ok(()), |export| export.write(bar))
}
