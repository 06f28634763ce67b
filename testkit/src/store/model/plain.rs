//! The model itself: a list of records, linear scans, bars by schoolbook arithmetic.

use qi_core::store::{Dataset, DeleteQuery, InstrumentSummary, Record};
use qi_core::{
    BarValues, Instrument, Interval, MarketSnapshot, Ohlcv, Price, PriceTick, Quantity, Quote, Scope,
    TimeRange, Timestamp,
};

use super::play::Answers;
use super::{INSTRUMENTS, Look, SCOPES, Step, instrument, scope};

/// A list of records in no order, searched from end to end.
#[derive(Debug, Default, Clone)]
pub struct Model {
    ticks: Vec<PriceTick>,
    quotes: Vec<Quote>,
    bars: Vec<Ohlcv>,
    snapshots: Vec<MarketSnapshot>,
}

fn put<R: Record>(rows: &mut Vec<R>, batch: &[R]) {
    for new in batch {
        rows.retain(|old| old.series() != new.series() || old.place() != new.place());
        rows.push(new.clone());
    }
}

/// The records of a series in a range, in order.
fn select<R: Record>(rows: &[R], series: &R::Series, look: &Look) -> Vec<R> {
    let mut found: Vec<R> = rows
        .iter()
        .filter(|row| row.series() == *series)
        .filter(|row| row.time() >= look.range.start() && row.time() < look.range.end())
        .cloned()
        .collect();
    found.sort_by_key(Record::place);
    if look.descending {
        found.reverse();
    }
    found
}

/// The newest record of each of some series that was known at a time.
fn newest<R: Record>(rows: &[R], series: &[R::Series], as_of: Option<Timestamp>) -> Vec<R> {
    let mut series = series.to_vec();
    series.sort();
    series
        .iter()
        .filter_map(|series| {
            rows.iter()
                .filter(|row| row.series() == *series)
                .filter(|row| as_of.is_none_or(|time| row.known_at() <= time))
                .max_by_key(|row| row.place())
                .cloned()
        })
        .collect()
}

impl Model {
    pub(super) fn change(&mut self, step: &Step) {
        match step {
            Step::InsertTicks(batch) => put(&mut self.ticks, batch),
            Step::InsertQuotes(batch) => put(&mut self.quotes, batch),
            Step::InsertBars(batch) => put(&mut self.bars, batch),
            Step::InsertSnapshots(batch) => put(&mut self.snapshots, batch),
            Step::Delete(query) => self.delete(query),
            Step::Purge(Dataset::Ticks, cutoff) => self.ticks.retain(|row| row.time() >= *cutoff),
            Step::Purge(Dataset::Quotes, cutoff) => self.quotes.retain(|row| row.time() >= *cutoff),
            Step::Purge(Dataset::Bars, cutoff) => self.bars.retain(|row| row.time() >= *cutoff),
            Step::Purge(Dataset::Snapshots, cutoff) => self.snapshots.retain(|row| row.time() >= *cutoff),
            Step::Look(_) => {}
        }
    }

    fn delete(&mut self, query: &DeleteQuery) {
        let inside = |time: Timestamp, range: &TimeRange| time >= range.start() && time < range.end();
        match query {
            DeleteQuery::Ticks(of, range) => {
                self.ticks.retain(|row| !(of.contains(row.instrument()) && inside(row.ts(), range)));
            }
            DeleteQuery::Quotes(of, range) => {
                self.quotes.retain(|row| !(of.contains(row.instrument()) && inside(row.ts(), range)));
            }
            DeleteQuery::Bars(interval, of, range) => self.bars.retain(|row| {
                row.interval() != *interval
                    || !of.contains(row.instrument())
                    || !inside(row.open_time(), range)
            }),
            DeleteQuery::Snapshots(of, range) => {
                self.snapshots.retain(|row| !(of.contains(row.scope()) && inside(row.ts(), range)));
            }
            other => unreachable!("the histories do not draw {other:?}"),
        }
    }

    /// Every answer to a look.
    pub(super) fn answers(&self, look: &Look) -> Answers {
        let (own, interval) = (instrument(look.which), look.interval);
        let instruments: Vec<Instrument> = (0..INSTRUMENTS.len()).map(instrument).collect();
        let series: Vec<(Instrument, Interval)> =
            instruments.iter().map(|name| (name.clone(), interval)).collect();
        let scopes: Vec<Scope> = (0..SCOPES.len()).map(scope).collect();
        let mut all_ticks = self.ticks.clone();
        all_ticks.retain(|tick| *tick.instrument() == own);
        all_ticks.sort_by_key(Record::place);
        let mut derived = reference_bars(&all_ticks, interval);
        derived.retain(|bar| bar.open_time() >= look.range.start() && bar.open_time() < look.range.end());
        if look.descending {
            derived.reverse();
        }
        Answers {
            ticks: select(&self.ticks, &own, look),
            quotes: select(&self.quotes, &own, look),
            bars: select(&self.bars, &(own.clone(), interval), look),
            snapshots: select(&self.snapshots, &scope(look.which), look),
            latest_ticks: newest(&self.ticks, &instruments, look.as_of),
            latest_quotes: newest(&self.quotes, &instruments, look.as_of),
            latest_bars: newest(&self.bars, &series, look.as_of),
            latest_snapshots: newest(&self.snapshots, &scopes, look.as_of),
            derived,
            figures: figures(&select(&self.ticks, &own, &Look { descending: false, ..look.clone() })),
            instruments: [
                summaries(self.ticks.iter().map(|row| (row.instrument(), row.ts()))),
                summaries(self.quotes.iter().map(|row| (row.instrument(), row.ts()))),
                summaries(self.bars.iter().map(|row| (row.instrument(), row.open_time()))),
            ],
        }
    }
}

fn summaries<'a>(rows: impl Iterator<Item = (&'a Instrument, Timestamp)>) -> Vec<InstrumentSummary> {
    let rows: Vec<_> = rows.collect();
    let of = |name: Instrument| {
        let times = rows.iter().filter(|(other, _)| **other == name).map(|(_, time)| *time);
        let (first, last) = (times.clone().min()?, times.max()?);
        Some(InstrumentSummary { instrument: name, first, last })
    };
    let mut found: Vec<_> = (0..INSTRUMENTS.len()).map(instrument).filter_map(of).collect();
    found.sort_by(|a, b| a.instrument.cmp(&b.instrument));
    found
}

/// The sum of price times quantity, rounded half away from zero to 18 places: schoolbook multiplication of
/// whole and broken parts, with what lies beyond the 18th place carried apart.
fn turnover(ticks: &[PriceTick]) -> Option<Quantity> {
    const ONE: i128 = 1_000_000_000_000_000_000;
    let (mut known, mut sum, mut beyond) = (false, 0i128, 0i128);
    for tick in ticks {
        if let Some(quantity) = tick.quantity() {
            let (p, q) = (tick.price().units(), quantity.units());
            let (whole, broken) = (q / ONE, q % ONE);
            let small = (p % ONE) * broken;
            sum += (p / ONE) * q + (p % ONE) * whole + small / ONE;
            beyond += small % ONE;
            known = true;
        }
    }
    let rounded = sum + (beyond + ONE / 2) / ONE;
    known.then(|| Quantity::from_units(rounded).expect("the checks draw sums below 1e20"))
}

fn volume(ticks: &[PriceTick]) -> Option<Quantity> {
    let known: Vec<i128> = ticks.iter().filter_map(PriceTick::quantity).map(Quantity::units).collect();
    (!known.is_empty()).then(|| Quantity::from_units(known.iter().sum()).expect("below 1e20"))
}

/// The bars of one instrument's ticks, which come in order, by schoolbook arithmetic.
///
/// # Panics
/// If a sum is 1e20 or more: it is for the numbers of checks.
pub fn reference_bars(ticks: &[PriceTick], interval: Interval) -> Vec<Ohlcv> {
    let monday = 4 * 86_400 * 1_000_000i64;
    let open_of = |tick: &PriceTick| {
        let bucket = (tick.ts().as_micros() - monday) / interval.as_micros();
        monday + bucket * interval.as_micros()
    };
    ticks
        .chunk_by(|a, b| open_of(a) == open_of(b))
        .map(|bucket| {
            let mut prices: Vec<Price> = bucket.iter().map(PriceTick::price).collect();
            let (open, close) = (prices[0], prices[prices.len() - 1]);
            prices.sort();
            let values = BarValues {
                open,
                high: prices[prices.len() - 1],
                low: prices[0],
                close,
                volume: volume(bucket),
                quote_volume: turnover(bucket),
                count: Some(bucket.len() as u64),
            };
            let open_time =
                Timestamp::from_micros(open_of(&bucket[0])).expect("a bucket starts in the domain");
            Ohlcv::new(bucket[0].instrument().clone(), interval, open_time, values)
                .expect("a bar of its ticks")
        })
        .collect()
}

/// The figures of ticks in order, as text.
fn figures(ticks: &[PriceTick]) -> Option<String> {
    let (first, last) = (ticks.first()?, ticks.last()?);
    let prices = ticks.iter().map(PriceTick::price);
    let (min, max) = (prices.clone().min()?, prices.max()?);
    let place = |tick: &PriceTick| (tick.ts(), tick.seq(), tick.price());
    let figures = (place(first), place(last), min, max, volume(ticks), turnover(ticks), ticks.len());
    Some(format!("{figures:?}"))
}
