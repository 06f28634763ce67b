//! The model itself: a list of rows, linear scans, and bars by schoolbook arithmetic.

use std::collections::BTreeMap;

use qi_core::Datasets;
use qi_core::record::{Dataset, Owner, Row};
use qi_core::store::SeriesSummary;
use qi_core::{Bar, BarValues, Interval, Price, PriceTick, Quantity, Result, TimeRange, Timestamp};

use super::run::ReadResults;
use super::{ReadParams, Step, interval_of, series};
use crate::store::rows::records_of;

/// A list of unsorted rows. Every search scans the complete list.
#[derive(Debug, Default, Clone)]
pub struct Model {
    rows: Vec<Row>,
}

fn time(row: &Row) -> Timestamp {
    row.sort_key().0
}

fn within(row: &Row, range: TimeRange) -> bool {
    time(row) >= range.start() && time(row) < range.end()
}

impl Model {
    pub(super) fn change(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Insert(batch) => {
                for new in Row::copy_of(batch.as_records())? {
                    let key = |row: &Row| (row.dataset(), row.series().clone(), row.sort_key());
                    self.rows.retain(|old| key(old) != key(&new));
                    self.rows.push(new);
                }
            }
            Step::Delete(query) => self.rows.retain(|row| {
                row.dataset() != query.dataset
                    || row.series().interval != query.interval
                    || !query.selection.contains(&row.series().owner)
                    || !within(row, query.range)
            }),
            Step::Purge(dataset, cutoff) => {
                self.rows.retain(|row| row.dataset() != *dataset || time(row) >= *cutoff);
            }
            Step::Read(_) => {}
        }
        Ok(())
    }

    fn of(&self, dataset: Dataset) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.dataset() == dataset)
    }

    /// Returns the rows of a series in order.
    fn series_of(&self, dataset: Dataset, params: &ReadParams, interval: Interval) -> Vec<Row> {
        let own = series(dataset, params.which, interval);
        let mut found: Vec<Row> = self.of(dataset).filter(|row| *row.series() == own).cloned().collect();
        found.sort_by_key(Row::sort_key);
        found
    }

    /// Returns the newest row of each owner among the rows that are known at the time `params.as_of`.
    fn latest(&self, dataset: Dataset, params: &ReadParams) -> Vec<Row> {
        let mut newest: BTreeMap<&Owner, &Row> = BTreeMap::new();
        for row in
            self.of(dataset).filter(|row| row.series().interval == interval_of(dataset, params.interval))
        {
            let known = dataset.known_at(time(row), row.series().interval);
            if params.as_of.is_none_or(|as_of| known <= as_of) {
                let newest = newest.entry(&row.series().owner).or_insert(row);
                if row.sort_key() > newest.sort_key() {
                    *newest = row;
                }
            }
        }
        newest.into_values().cloned().collect()
    }

    fn summaries(&self, dataset: Dataset) -> Vec<SeriesSummary> {
        let mut times: BTreeMap<&Owner, Vec<Timestamp>> = BTreeMap::new();
        for row in self.of(dataset) {
            times.entry(&row.series().owner).or_default().push(time(row));
        }
        let summary = |(owner, times): (&Owner, Vec<Timestamp>)| {
            let (first, last) = (times.iter().min()?, times.iter().max()?);
            Some(SeriesSummary::new(owner.clone(), *first, *last))
        };
        times.into_iter().filter_map(summary).collect()
    }

    /// Returns the expected responses of a store to a read.
    pub(super) fn read(&self, params: &ReadParams, datasets: &Datasets) -> Result<ReadResults> {
        let all = self.series_of(PriceTick::DATASET, params, params.interval);
        let ticks: Vec<PriceTick> = records_of(PriceTick::DATASET, &all)?.into_vec()?;
        let mut derived = reference_bars(&ticks, params.interval);
        derived.retain(|bar| bar.open_time() >= params.range.start() && bar.open_time() < params.range.end());
        let within_range: Vec<PriceTick> = ticks
            .into_iter()
            .filter(|tick| tick.ts() >= params.range.start() && tick.ts() < params.range.end())
            .collect();
        let mut ranges: Vec<Vec<Row>> = datasets
            .iter()
            .map(|dataset| {
                let mut rows = self.series_of(dataset, params, params.interval);
                rows.retain(|row| within(row, params.range));
                rows
            })
            .collect();
        if params.descending {
            derived.reverse();
            for rows in &mut ranges {
                rows.reverse();
            }
        }
        Ok(ReadResults {
            ranges,
            latest: datasets.iter().map(|dataset| self.latest(dataset, params)).collect(),
            series: datasets.iter().map(|dataset| self.summaries(dataset)).collect(),
            derived,
            stats: stats(&within_range),
        })
    }
}

/// Returns the sum of price times quantity, rounded half away from zero to 18 decimal places. Multiplies the integer
/// and fractional parts separately, and sums the digits beyond the 18th place separately.
fn quote_volume(ticks: &[PriceTick]) -> Option<Quantity> {
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
    known.then(|| Quantity::from_units(rounded).expect("the generated sums are below 1e20"))
}

fn volume(ticks: &[PriceTick]) -> Option<Quantity> {
    let known: Vec<i128> = ticks.iter().filter_map(PriceTick::quantity).map(Quantity::units).collect();
    (!known.is_empty()).then(|| Quantity::from_units(known.iter().sum()).expect("below 1e20"))
}

/// Returns the bars of one instrument's ordered ticks by schoolbook arithmetic.
///
/// # Panics
/// If a sum is 1e20 or more. The numbers of the checks stay below.
pub fn reference_bars(ticks: &[PriceTick], interval: Interval) -> Vec<Bar> {
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
                quote_volume: quote_volume(bucket),
                count: Some(bucket.len() as u64),
            };
            let open_time =
                Timestamp::from_micros(open_of(&bucket[0])).expect("a bucket starts in the domain");
            Bar::new(bucket[0].instrument().clone(), interval, open_time, values).expect("a bar of its ticks")
        })
        .collect()
}

/// Returns the statistics of ordered ticks as text.
fn stats(ticks: &[PriceTick]) -> Option<String> {
    let (first, last) = (ticks.first()?, ticks.last()?);
    let prices = ticks.iter().map(PriceTick::price);
    let (min, max) = (prices.clone().min()?, prices.max()?);
    let point = |tick: &PriceTick| (tick.ts(), tick.seq(), tick.price());
    let stats = (point(first), point(last), min, max, volume(ticks), quote_volume(ticks), ticks.len());
    Some(format!("{stats:?}"))
}
