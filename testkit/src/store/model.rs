//! The model: a store so simple that it is right by reading it, and random histories that compare others to it.
//!
//! [`Model`] is a plain list of records with linear scans and bars by schoolbook arithmetic; it shares no code
//! with the memory store. A history is a list of steps; [`run_history`] plays one on a store beside the model and
//! compares every answer, [`compare`] plays one on two stores. [`check_histories`] draws histories and shrinks one
//! that fails to the shortest.

use std::fmt::Debug;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use qi_core::store::{
    BarQuery, Cursor, Dataset, DeleteQuery, InstrumentDataset, InstrumentQuery, InstrumentSummary,
    LatestBarsQuery, LatestQuery, Page, PageRequest, PriceStore, RangeQuery, Record, SnapshotQuery,
    StatsQuery,
};
use qi_core::{
    BarValues, Instrument, Interval, MarketSnapshot, Ohlcv, Price, PriceTick, Quantity, Quote, QuoteValues,
    Result, Scope, Selection, SnapshotValues, TimeRange, Timestamp,
};

use super::contract::{Failure, Outcome, StoreFactory, Wrapping, same, same_rows};

/// One thing that is done to a store.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names are the operations of the port")]
pub enum Step {
    InsertTicks(Vec<PriceTick>),
    InsertQuotes(Vec<Quote>),
    InsertBars(Vec<Ohlcv>),
    InsertSnapshots(Vec<MarketSnapshot>),
    Delete(DeleteQuery),
    Purge(Dataset, Timestamp),
    /// Reads everything that can be read, in pages of this limit.
    Look(Look),
}

/// A question to every reading method at once.
#[derive(Debug, Clone)]
pub struct Look {
    /// In this range.
    pub range: TimeRange,
    /// Newest first.
    pub descending: bool,
    /// In pages of so many.
    pub limit: usize,
    /// As it was known then.
    pub as_of: Option<Timestamp>,
    /// Bars of this interval.
    pub interval: Interval,
    /// Which of the instruments and scopes.
    pub which: usize,
}

/// The instruments of the histories, in order.
const INSTRUMENTS: [&str; 3] = ["a:AB", "a-b:A-B", "a1:A.B"];
/// The scopes of the histories, in order.
const SCOPES: [&str; 3] = ["global", "asset:BTC", "exchange:a"];
/// The intervals of the histories: of one bucket some neighbours, of the other all.
const INTERVALS: [Interval; 3] = [Interval::S1, Interval::S5, Interval::M1];

fn instrument(n: usize) -> Instrument {
    INSTRUMENTS[n % INSTRUMENTS.len()].parse().expect("a valid name")
}

fn scope(n: usize) -> Scope {
    SCOPES[n % SCOPES.len()].parse().expect("a valid scope")
}

/// Half a second times `n` after a fixed moment that is aligned to every interval above.
fn moment(n: i64) -> Timestamp {
    Timestamp::from_micros(1_709_510_400_000_000 + n * 500_000).expect("a time of 2024")
}

// ---- the plain model ----

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
    fn change(&mut self, step: &Step) {
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
    fn answers(&self, look: &Look) -> Answers {
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

// ---- playing a history ----

/// What a store says to a look, every page put together.
#[derive(Debug, Clone, PartialEq)]
struct Answers {
    ticks: Vec<PriceTick>,
    quotes: Vec<Quote>,
    bars: Vec<Ohlcv>,
    snapshots: Vec<MarketSnapshot>,
    latest_ticks: Vec<PriceTick>,
    latest_quotes: Vec<Quote>,
    latest_bars: Vec<Ohlcv>,
    latest_snapshots: Vec<MarketSnapshot>,
    derived: Vec<Ohlcv>,
    figures: Option<String>,
    instruments: [Vec<InstrumentSummary>; 3],
}

impl Answers {
    fn same_as(&self, expected: &Self) -> Outcome {
        same_rows("ticks", &self.ticks, &expected.ticks)?;
        same_rows("quotes", &self.quotes, &expected.quotes)?;
        same_rows("bars", &self.bars, &expected.bars)?;
        same_rows("snapshots", &self.snapshots, &expected.snapshots)?;
        same_rows("latest_ticks", &self.latest_ticks, &expected.latest_ticks)?;
        same_rows("latest_quotes", &self.latest_quotes, &expected.latest_quotes)?;
        same_rows("latest_bars", &self.latest_bars, &expected.latest_bars)?;
        same_rows("latest_snapshots", &self.latest_snapshots, &expected.latest_snapshots)?;
        same_rows("derived_bars", &self.derived, &expected.derived)?;
        same("stats", &self.figures, &expected.figures)?;
        for (found, expected) in self.instruments.iter().zip(&expected.instruments) {
            same_rows("instruments", found, expected)?;
        }
        Ok(())
    }
}

/// Page after page; each one but the last is full, and none is larger than its limit.
async fn paged<T, F>(
    limit: usize,
    cursors: &mut Vec<Cursor>,
    ask: impl Fn(PageRequest) -> F,
) -> std::result::Result<Vec<T>, Failure>
where
    F: Future<Output = Result<Page<T>>>,
{
    let mut request = PageRequest::first(limit)?;
    let mut found = Vec::new();
    loop {
        let page = ask(request.clone()).await?;
        let (count, more) = (page.items.len(), page.next.is_some());
        if count > limit || (more && count < limit) {
            let text = format!("a page of {limit} holds {count}, and a next page is {more}");
            return Err(Failure::new(text));
        }
        found.extend(page.items);
        cursors.extend(page.next.clone());
        cursors.push(page.resume);
        let Some(next) = page.next else { return Ok(found) };
        request = request.after(next);
    }
}

/// Asks everything, and keeps the cursors of all pages.
async fn look_at(
    store: &dyn PriceStore,
    look: &Look,
) -> std::result::Result<(Answers, Vec<Cursor>), Failure> {
    let Look { range, descending, limit, as_of, interval, which } = look.clone();
    let own = instrument(which);
    let mut cursors = Vec::new();
    let at = &mut cursors;
    let range_query = |page: PageRequest| {
        let query = RangeQuery::new(own.clone(), range).with_page(page);
        if descending { query.descending() } else { query }
    };
    let bar_query = |page: PageRequest| {
        let query = BarQuery::new(own.clone(), interval, range).with_page(page);
        if descending { query.descending() } else { query }
    };
    let snapshot_query = |page: PageRequest| {
        let query = SnapshotQuery::new(scope(which), range).with_page(page);
        if descending { query.descending() } else { query }
    };
    // Of half of the looks by name, which must be the same as of all.
    let named = |all: bool| {
        if all { Selection::All } else { Selection::these((0..3).map(instrument)).expect("three") }
    };
    let latest = |page: PageRequest| {
        let mut query = LatestQuery::new(named(descending)).with_page(page);
        query.as_of = as_of;
        query
    };
    let latest_bars = |page: PageRequest| {
        let mut query = LatestBarsQuery::new(interval, named(descending)).with_page(page);
        query.as_of = as_of;
        query
    };
    let latest_snapshots = |page: PageRequest| {
        let mut query = LatestQuery::<Scope>::new(Selection::All).with_page(page);
        query.as_of = as_of;
        query
    };
    let instruments = |dataset| move |page: PageRequest| InstrumentQuery::new(dataset).with_page(page);
    let stats = store.stats(&StatsQuery::new(own.clone(), range)).await?;
    let figures = stats.map(|s| {
        let place = |point: qi_core::store::PricePoint| (point.ts, point.seq, point.price);
        let figures =
            (place(s.first()), place(s.last()), s.min(), s.max(), s.volume(), s.quote_volume(), s.count());
        format!("{figures:?}")
    });
    macro_rules! all {
        ($method:ident($query:expr)) => {
            paged(limit, at, |page| {
                let query = $query(page);
                async move { store.$method(&query).await }
            })
            .await
            .map_err(|failure| failure.within(stringify!($method)))?
        };
    }
    let answers = Answers {
        ticks: all!(ticks(range_query)),
        quotes: all!(quotes(range_query)),
        bars: all!(bars(bar_query)),
        snapshots: all!(snapshots(snapshot_query)),
        latest_ticks: all!(latest_ticks(latest)),
        latest_quotes: all!(latest_quotes(latest)),
        latest_bars: all!(latest_bars(latest_bars)),
        latest_snapshots: all!(latest_snapshots(latest_snapshots)),
        derived: all!(derived_bars(bar_query)),
        figures,
        instruments: [
            all!(instruments(instruments(InstrumentDataset::Ticks))),
            all!(instruments(instruments(InstrumentDataset::Quotes))),
            all!(instruments(instruments(InstrumentDataset::Bars))),
        ],
    };
    Ok((answers, cursors))
}

/// Plays a step that changes; gives the number of duplicates where there is one.
async fn change(store: &dyn PriceStore, step: &Step) -> Result<Option<u64>> {
    let report = match step {
        Step::InsertTicks(batch) => store.insert_ticks(batch).await?,
        Step::InsertQuotes(batch) => store.insert_quotes(batch).await?,
        Step::InsertBars(batch) => store.insert_bars(batch).await?,
        Step::InsertSnapshots(batch) => store.insert_snapshots(batch).await?,
        Step::Delete(query) => return store.delete_range(query).await.map(|()| None),
        Step::Purge(dataset, cutoff) => return store.purge_before(*dataset, *cutoff).await.map(|()| None),
        Step::Look(_) => return Ok(None),
    };
    Ok(Some(report.duplicates_in_batch))
}

/// How many elements of a batch a later one replaces.
fn duplicates<R: Record>(batch: &[R]) -> u64 {
    let later = |n: usize| {
        batch[n + 1..].iter().any(|row| row.series() == batch[n].series() && row.place() == batch[n].place())
    };
    (0..batch.len()).filter(|n| later(*n)).count() as u64
}

fn duplicates_of(step: &Step) -> Option<u64> {
    match step {
        Step::InsertTicks(batch) => Some(duplicates(batch)),
        Step::InsertQuotes(batch) => Some(duplicates(batch)),
        Step::InsertBars(batch) => Some(duplicates(batch)),
        Step::InsertSnapshots(batch) => Some(duplicates(batch)),
        Step::Delete(_) | Step::Purge(..) | Step::Look(_) => None,
    }
}

/// Plays a history on a fresh store beside the model, and compares every answer and every report.
///
/// # Errors
/// The first step whose outcome differs, and how.
pub async fn run_history(store: &dyn PriceStore, history: &[Step]) -> Outcome {
    let mut model = Model::default();
    for (n, step) in history.iter().enumerate() {
        let within = |failure: Failure| failure.within(format_args!("step {n}, {}", short(step)));
        if let Step::Look(look) = step {
            let (found, _) = look_at(store, look).await.map_err(within)?;
            found.same_as(&model.answers(look)).map_err(within)?;
        } else {
            model.change(step);
            let reported = change(store, step).await.map_err(|error| within(error.into()))?;
            same("duplicates_in_batch", &reported, &duplicates_of(step)).map_err(within)?;
        }
    }
    Ok(())
}

/// Plays a history on two fresh stores, and compares every answer, report and cursor of them.
///
/// # Errors
/// The first step whose outcome differs, and how.
pub async fn compare(one: &dyn PriceStore, two: &dyn PriceStore, history: &[Step]) -> Outcome {
    for (n, step) in history.iter().enumerate() {
        let within = |failure: Failure| failure.within(format_args!("step {n}, {}", short(step)));
        if let Step::Look(look) = step {
            let (first, first_cursors) = look_at(one, look).await.map_err(within)?;
            let (second, second_cursors) = look_at(two, look).await.map_err(within)?;
            second.same_as(&first).map_err(within)?;
            same_rows("cursors", &second_cursors, &first_cursors).map_err(within)?;
        } else {
            let first = change(one, step).await.map_err(|error| within(error.into()))?;
            let second = change(two, step).await.map_err(|error| within(error.into()))?;
            same("duplicates_in_batch", &second, &first).map_err(within)?;
        }
    }
    Ok(())
}

fn short(step: &Step) -> &'static str {
    match step {
        Step::InsertTicks(_) => "insert_ticks",
        Step::InsertQuotes(_) => "insert_quotes",
        Step::InsertBars(_) => "insert_bars",
        Step::InsertSnapshots(_) => "insert_snapshots",
        Step::Delete(_) => "delete_range",
        Step::Purge(..) => "purge_before",
        Step::Look(_) => "a look",
    }
}

// ---- drawing histories ----

/// Prices and quantities in units of 10^-18: whose products lie half way at the 18th place, and with all 18 places.
const UNITS: [i128; 6] = [
    1,
    500_000_000_000_000_000,
    1_500_000_000_000_000_000,
    3,
    1_000_000_000_000_000_000,
    987_654_321_012_345_678,
];

fn a_price() -> impl Strategy<Value = Price> {
    (0..UNITS.len(), 1..40i128).prop_map(|(n, times)| Price::from_units(UNITS[n] * times).expect("positive"))
}

fn a_quantity() -> impl Strategy<Value = Option<Quantity>> {
    prop_oneof![
        2 => Just(None),
        1 => Just(Some(Quantity::ZERO)),
        5 => a_price().prop_map(|price| Quantity::new(price.get()).ok()),
    ]
}

/// Few places, so that keys meet again.
fn a_moment() -> impl Strategy<Value = i64> {
    prop_oneof![8 => 0..30i64, 1 => 115..125i64, 1 => Just(-7i64)]
}

fn a_tick() -> impl Strategy<Value = PriceTick> {
    (0..3usize, a_moment(), 0..3u64, a_price(), a_quantity()).prop_map(|(of, at, seq, price, quantity)| {
        PriceTick::new(instrument(of), moment(at), seq, price).expect("a valid tick").with_quantity(quantity)
    })
}

fn a_quote() -> impl Strategy<Value = Quote> {
    (0..3usize, a_moment(), 0..3u64, a_price(), a_quantity(), any::<bool>()).prop_map(
        |(of, at, seq, price, size, bid)| {
            let (ask_price, bid_price) = if bid { (None, Some(price)) } else { (Some(price), None) };
            let values = QuoteValues { bid_price, bid_size: size, ask_price, ask_size: None };
            Quote::new(instrument(of), moment(at), seq, values).expect("a valid quote")
        },
    )
}

fn a_bar() -> impl Strategy<Value = Ohlcv> {
    (0..3usize, 0..3usize, a_moment(), a_price(), a_quantity(), proptest::option::of(0..9u64)).prop_map(
        |(of, interval, at, price, volume, count)| {
            let values = BarValues { volume, quote_volume: volume, count, ..BarValues::flat(price) };
            let interval = INTERVALS[interval];
            Ohlcv::new(instrument(of), interval, interval.floor(moment(at)), values).expect("a valid bar")
        },
    )
}

fn a_snapshot() -> impl Strategy<Value = MarketSnapshot> {
    (0..3usize, a_moment(), a_quantity(), 0..9u64).prop_map(|(of, at, cap, markets)| {
        let values =
            SnapshotValues { market_cap_usd: cap, markets: Some(markets), ..SnapshotValues::default() };
        MarketSnapshot::new(scope(of), moment(at), values).expect("a valid snapshot")
    })
}

/// Ends on, beside and between records, and both ends of time.
fn a_range() -> impl Strategy<Value = TimeRange> {
    let an_end = || {
        (a_moment(), -1..2i64).prop_map(|(at, beside)| {
            Timestamp::from_micros(moment(at).as_micros() + beside).expect("a time of 2024")
        })
    };
    prop_oneof![
        1 => Just(TimeRange::ALL),
        4 => (an_end(), an_end())
            .prop_map(|(a, b)| TimeRange::new(a.min(b), a.max(b)).expect("in order")),
    ]
}

fn a_selection<K: Ord + Clone + Debug + 'static>(of: fn(usize) -> K) -> impl Strategy<Value = Selection<K>> {
    prop_oneof![
        1 => Just(Selection::All),
        3 => prop::collection::vec(0..3usize, 1..3)
            .prop_map(move |keys| Selection::these(keys.into_iter().map(of)).expect("at least one")),
    ]
}

fn a_delete() -> impl Strategy<Value = DeleteQuery> {
    prop_oneof![
        (a_selection(instrument), a_range()).prop_map(|(of, range)| DeleteQuery::Ticks(of, range)),
        (a_selection(instrument), a_range()).prop_map(|(of, range)| DeleteQuery::Quotes(of, range)),
        (0..3usize, a_selection(instrument), a_range()).prop_map(|(n, of, range)| DeleteQuery::Bars(
            INTERVALS[n],
            of,
            range
        )),
        (a_selection(scope), a_range()).prop_map(|(of, range)| DeleteQuery::Snapshots(of, range)),
    ]
}

fn a_look() -> impl Strategy<Value = Look> {
    let as_of = proptest::option::of((a_moment(), -1..2i64));
    (a_range(), any::<bool>(), 1..8usize, as_of, 0..3usize, 0..3usize).prop_map(
        |(range, descending, limit, as_of, interval, which)| Look {
            range,
            descending,
            limit,
            as_of: as_of.map(|(at, beside)| {
                Timestamp::from_micros(moment(at).as_micros() + beside).expect("a time of 2024")
            }),
            interval: INTERVALS[interval],
            which,
        },
    )
}

fn a_step() -> impl Strategy<Value = Step> {
    use prop::collection::vec;
    prop_oneof![
        4 => vec(a_tick(), 0..12).prop_map(Step::InsertTicks),
        2 => vec(a_quote(), 0..8).prop_map(Step::InsertQuotes),
        2 => vec(a_bar(), 0..8).prop_map(Step::InsertBars),
        2 => vec(a_snapshot(), 0..8).prop_map(Step::InsertSnapshots),
        2 => a_delete().prop_map(Step::Delete),
        1 => (0..4usize, a_moment(), -1..2i64).prop_map(|(n, at, beside)| {
            let cutoff = Timestamp::from_micros(moment(at).as_micros() + beside).expect("a time of 2024");
            Step::Purge(Dataset::ALL[n], cutoff)
        }),
        4 => a_look().prop_map(Step::Look),
    ]
}

/// Histories of 1 to 16 steps that end with a look at everything.
pub fn histories() -> impl Strategy<Value = Vec<Step>> {
    (prop::collection::vec(a_step(), 1..16), a_look()).prop_map(|(mut steps, look)| {
        steps.push(Step::Look(Look { range: TimeRange::ALL, as_of: None, ..look }));
        steps
    })
}

/// Draws `count` histories with a fixed seed and plays each one beside the model, on a fresh store of the
/// factory.
///
/// # Errors
/// The shortest history that was found to differ, and how it differs.
pub fn check_histories(factory: &Arc<dyn StoreFactory>, wrapping: Wrapping, count: u32) -> Outcome {
    draw(count, |history, runtime| {
        runtime.block_on(async {
            let fresh = factory.fresh().await?;
            let outcome = run_history(&*(wrapping.wrap)(fresh.store), history).await;
            let cleaned = fresh.cleanup.await.map_err(Failure::from);
            outcome.and(cleaned)
        })
    })
}

/// Draws `count` histories with a fixed seed and plays each one on two stores.
///
/// # Errors
/// The shortest history on which the two were found to differ, and how they differ.
pub fn check_differences(one: &Arc<dyn StoreFactory>, two: &Arc<dyn StoreFactory>, count: u32) -> Outcome {
    draw(count, |history, runtime| {
        runtime.block_on(async {
            let (first, second) = (one.fresh().await?, two.fresh().await?);
            let outcome = compare(&*first.store, &*second.store, history).await;
            let cleaned = first.cleanup.await.and(second.cleanup.await).map_err(Failure::from);
            outcome.and(cleaned)
        })
    })
}

fn draw(count: u32, play: impl Fn(&[Step], &tokio::runtime::Runtime) -> Outcome) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format_args!("no runtime: {error}")))?;
    let config = Config { cases: count, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let outcome = TestRunner::new_with_rng(config, rng).run(&histories(), |history| {
        play(&history, &runtime).map_err(|failure| TestCaseError::fail(failure.to_string()))
    });
    match outcome {
        Ok(()) => Ok(()),
        Err(TestError::Fail(why, history)) => {
            let steps: Vec<String> =
                history.iter().enumerate().map(|(n, step)| format!("  {n}: {step:?}")).collect();
            Err(Failure::new(format_args!("{why}\nthe shortest history that fails:\n{}", steps.join("\n"))))
        }
        Err(other) => Err(Failure::new(other)),
    }
}
