//! Faults of bars derived from ticks, and of statistics. Each entry is a type, its fault, and the contract check that
//! must detect the fault.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use qi_core::record::Records;
use qi_core::store::{
    Anchor, BarQuery, Derived, InsertReport, MAX_PAGE, Order, Page, Paged, PriceStore, PriceStoreExt,
    RangeQuery, RangeStats, StatsQuery,
};
use qi_core::{Bar, BarValues, ErrorKind, PriceTick, Quantity, Result, TimeRange};

use super::fault::Fault;
use super::faults;
use super::ticks_of_batch;
use crate::store::model::reference_bars;

faults! {
    BucketCutByRange: "a bar ignores the ticks of its bucket outside the range"
        => "bars::partially_covered_bucket_is_computed_completely",
    UnknownVolumeIsZero: "an unknown volume is zero" => "bars::unknown_volume_is_not_zero",
    EmptyBars: "an empty bucket has a flat bar" => "bars::empty_bucket_has_no_bar",
    WrappingSums: "a sum beyond the limit wraps" => "bars::sum_of_1e20_is_out_of_range",
    OverflowFailsPreviousPage: "an overflow on the next page fails the current page"
        => "bars::overflow_fails_only_its_own_page",
    HalfEven: "halves are rounded to even" => "bars::halves_round_away_from_zero",
    Truncates: "digits beyond the 18th place are truncated" => "bars::halves_round_away_from_zero",
    FloatQuoteVolume: "a quote volume is computed as a float" => "bars::quote_volume_is_exact",
    AddsUpWrites: "repeated writes are added up" => "bars::repeated_batch_counts_once",
    StaleBars: "a bar is computed once and cached" => "bars::late_tick_changes_its_bar",
    EqualTimesByWriteOrder: "ticks of one time are ordered by write time"
        => "bars::open_and_close_are_ordered_by_seq",
    StoredForDerived: "stored bars are returned as derived bars"
        => "bars::stored_bars_are_independent_of_ticks",
    ResumePassesCutBar: "the resume cursor passes a bar that the end of the range cuts"
        => "bars::resume_stays_before_an_open_bar",
    ResumeChecksLastBarOnly: "the resume cursor considers only the last bar of a descending page, but the first is cut"
        => "bars::descending_resume_stays_before_an_open_bar",
    StopsAtAGap: "a page of bars ends at the first gap" => "bars::pages_cross_gaps",
    StatsOfOneTick: "a range without ticks has the statistics of one invented tick"
        => "analytics::stats_without_ticks_are_none",
}

/// Returns the response to a query if `bars` are the bars of its instrument, oldest first.
fn page_of_bars(query: &BarQuery, mut bars: Vec<Bar>) -> Result<Page<Bar>> {
    let derived_query = Derived(query);
    bars.retain(|bar| query.range.contains(bar.open_time()));
    if query.order == Order::Descending {
        bars.reverse();
    }
    if let Anchor::Time(open) = derived_query.anchor()? {
        bars.retain(|bar| match query.order {
            Order::Ascending => bar.open_time() > open,
            Order::Descending => bar.open_time() < open,
        });
    }
    derived_query.page_of(bars)
}

async fn ticks_of(inner: &dyn PriceStore, query: &BarQuery, range: TimeRange) -> Result<Vec<PriceTick>> {
    let query = RangeQuery::new(query.instrument.clone(), range).with_limit(MAX_PAGE)?;
    Ok(inner.ticks(&query).await?.items)
}

/// Returns the same bars with other values.
fn with_values(mut page: Page<Bar>, alter: impl Fn(&Bar) -> BarValues) -> Result<Page<Bar>> {
    page.items = page
        .items
        .iter()
        .map(|bar| Bar::new(bar.instrument().clone(), bar.interval(), bar.open_time(), alter(bar)))
        .collect::<Result<_>>()?;
    Ok(page)
}

/// Returns the response of the store with another sum of the quote volume. `sum` gets the ticks of each bar.
async fn with_quote_volume(
    inner: &dyn PriceStore,
    query: &BarQuery,
    sum: impl Fn(&[PriceTick]) -> Option<Quantity> + Send,
) -> Result<Page<Bar>> {
    let page = inner.derived_bars(query).await?;
    let ticks = ticks_of(inner, query, TimeRange::ALL).await?;
    with_values(page, |bar| {
        let bucket: Vec<PriceTick> =
            ticks.iter().filter(|tick| bar.interval().floor(tick.ts()) == bar.open_time()).cloned().collect();
        BarValues { quote_volume: sum(&bucket), ..*bar.values() }
    })
}

const ONE: i128 = qi_core::Decimal::UNITS_PER_ONE;

/// Returns the sum of price times quantity, in units of 10^-36. None on overflow or for an unknown quantity.
fn small_sum(ticks: &[PriceTick]) -> Option<i128> {
    ticks.iter().try_fold(0i128, |sum, tick| {
        sum.checked_add(tick.price().units().checked_mul(tick.quantity()?.units())?)
    })
}

#[derive(Debug, Default)]
struct BucketCutByRange;

#[async_trait]
impl Fault for BucketCutByRange {
    async fn derived_bars(&self, inner: &dyn PriceStore, query: &BarQuery) -> Result<Page<Bar>> {
        let ticks = ticks_of(inner, query, query.range).await?;
        page_of_bars(query, reference_bars(&ticks, query.interval))
    }
}

#[derive(Debug, Default)]
struct UnknownVolumeIsZero;

#[async_trait]
impl Fault for UnknownVolumeIsZero {
    async fn derived_bars(&self, inner: &dyn PriceStore, query: &BarQuery) -> Result<Page<Bar>> {
        with_values(inner.derived_bars(query).await?, |bar| {
            let values = *bar.values();
            BarValues { volume: values.volume.or(Some(Quantity::ZERO)), ..values }
        })
    }
}

#[derive(Debug, Default)]
struct EmptyBars;

#[async_trait]
impl Fault for EmptyBars {
    async fn derived_bars(&self, inner: &dyn PriceStore, query: &BarQuery) -> Result<Page<Bar>> {
        let mut page = inner.derived_bars(query).await?;
        let mut filled: Vec<Bar> = Vec::new();
        for bar in page.items {
            while let Some(last) = filled.last().filter(|last| last.close_time() < bar.open_time()) {
                let flat = BarValues::flat(last.close());
                filled.push(Bar::new(bar.instrument().clone(), bar.interval(), last.close_time(), flat)?);
            }
            filled.push(bar);
        }
        page.items = filled;
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct WrappingSums;

#[async_trait]
impl Fault for WrappingSums {
    async fn derived_bars(&self, inner: &dyn PriceStore, query: &BarQuery) -> Result<Page<Bar>> {
        let error = match inner.derived_bars(query).await {
            Err(error) if error.kind() == ErrorKind::OutOfRange => error,
            other => return other,
        };
        let ticks = ticks_of(inner, query, TimeRange::ALL).await?;
        let Some(first) = ticks.first() else { return Err(error) };
        let wrapped = ticks.iter().fold(0i128, |sum, tick| {
            let quantity = tick.quantity().unwrap_or(Quantity::ZERO).units();
            sum.wrapping_add(tick.price().units().wrapping_mul(quantity))
        });
        let wrapped = Quantity::from_units(wrapped.rem_euclid(qi_core::Decimal::MAX_UNITS))?;
        let values = BarValues { quote_volume: Some(wrapped), ..BarValues::flat(first.price()) };
        let open = query.interval.floor(first.ts());
        page_of_bars(query, vec![Bar::new(query.instrument.clone(), query.interval, open, values)?])
    }
}

#[derive(Debug, Default)]
struct OverflowFailsPreviousPage;

#[async_trait]
impl Fault for OverflowFailsPreviousPage {
    async fn derived_bars(&self, inner: &dyn PriceStore, query: &BarQuery) -> Result<Page<Bar>> {
        let page = inner.derived_bars(query).await?;
        if let Some(next) = page.next.clone() {
            inner.derived_bars(&query.clone().after(next)).await?;
        }
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct HalfEven;

#[async_trait]
impl Fault for HalfEven {
    async fn derived_bars(&self, inner: &dyn PriceStore, query: &BarQuery) -> Result<Page<Bar>> {
        with_quote_volume(inner, query, |ticks| {
            let sum = small_sum(ticks)?;
            let (units, rest) = (sum / ONE, sum % ONE);
            let up = rest > ONE / 2 || (rest == ONE / 2 && units % 2 == 1);
            Quantity::from_units(units + i128::from(up)).ok()
        })
        .await
    }
}

#[derive(Debug, Default)]
struct Truncates;

#[async_trait]
impl Fault for Truncates {
    async fn derived_bars(&self, inner: &dyn PriceStore, query: &BarQuery) -> Result<Page<Bar>> {
        with_quote_volume(inner, query, |ticks| Quantity::from_units(small_sum(ticks)? / ONE).ok()).await
    }
}

#[derive(Debug, Default)]
struct FloatQuoteVolume;

#[async_trait]
impl Fault for FloatQuoteVolume {
    async fn derived_bars(&self, inner: &dyn PriceStore, query: &BarQuery) -> Result<Page<Bar>> {
        with_quote_volume(inner, query, |ticks| {
            let products = ticks.iter().map(|tick| {
                let quantity = tick.quantity().map_or(0.0, |quantity| quantity.decimal().to_f64_lossy());
                tick.price().decimal().to_f64_lossy() * quantity
            });
            format!("{:.18}", products.sum::<f64>()).parse().ok()
        })
        .await
    }
}

/// Keeps every tick that was ever written, in the order of the writes.
#[derive(Debug, Default)]
struct AddsUpWrites(Mutex<Vec<PriceTick>>);

#[async_trait]
impl Fault for AddsUpWrites {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let report = inner.insert(batch).await?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(ticks_of_batch(batch)?);
        Ok(report)
    }

    async fn derived_bars(&self, inner: &dyn PriceStore, query: &BarQuery) -> Result<Page<Bar>> {
        // Returns the store's errors. reference_bars panics on a sum out of range.
        inner.derived_bars(query).await?;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.retain(|tick| *tick.instrument() == query.instrument);
        all.sort_by_key(|tick| (tick.ts(), tick.seq()));
        page_of_bars(query, reference_bars(&all, query.interval))
    }
}

#[derive(Debug, Default)]
struct StaleBars(Mutex<BTreeMap<String, Bar>>);

#[async_trait]
impl Fault for StaleBars {
    async fn derived_bars(&self, inner: &dyn PriceStore, query: &BarQuery) -> Result<Page<Bar>> {
        let mut page = inner.derived_bars(query).await?;
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for bar in &mut page.items {
            let key = format!("{} {} {}", bar.instrument(), bar.interval(), bar.open_time());
            *bar = kept.entry(key).or_insert_with(|| bar.clone()).clone();
        }
        Ok(page)
    }
}

/// Keeps the ticks in the order of the writes. A correction moves its tick to the end.
#[derive(Debug, Default)]
struct EqualTimesByWriteOrder(Mutex<Vec<PriceTick>>);

#[async_trait]
impl Fault for EqualTimesByWriteOrder {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let report = inner.insert(batch).await?;
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for tick in ticks_of_batch(batch)? {
            written.retain(|old| (old.ts(), old.seq()) != (tick.ts(), tick.seq()));
            written.push(tick);
        }
        Ok(report)
    }

    async fn derived_bars(&self, inner: &dyn PriceStore, query: &BarQuery) -> Result<Page<Bar>> {
        // Returns the store's errors. reference_bars panics on a sum out of range.
        inner.derived_bars(query).await?;
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        written.sort_by_key(PriceTick::ts);
        page_of_bars(query, reference_bars(&written, query.interval))
    }
}

#[derive(Debug, Default)]
struct StoredForDerived;

#[async_trait]
impl Fault for StoredForDerived {
    async fn derived_bars(&self, inner: &dyn PriceStore, query: &BarQuery) -> Result<Page<Bar>> {
        let derived = inner.derived_bars(query).await?;
        let stored = inner.bars(query).await?;
        if stored.items.is_empty() { Ok(derived) } else { page_of_bars(query, stored.items) }
    }
}

#[derive(Debug, Default)]
struct ResumePassesCutBar;

/// Returns the page with a `resume` cursor after its last bar.
fn resumed_after_the_last(query: &BarQuery, mut page: Page<Bar>) -> Result<Page<Bar>> {
    if let Some(last) = page.items.last() {
        // The cursor after the last bar is the `next` cursor of a page that ends with this bar and has a successor.
        let limited = query.clone().with_limit(page.items.len())?;
        let mut found = page.items.clone();
        found.push(last.clone());
        if let Some(next) = Derived(&limited).page_of(found)?.next {
            page.resume = next;
        }
    }
    Ok(page)
}

#[async_trait]
impl Fault for ResumePassesCutBar {
    async fn derived_bars(&self, inner: &dyn PriceStore, query: &BarQuery) -> Result<Page<Bar>> {
        resumed_after_the_last(query, inner.derived_bars(query).await?)
    }
}

#[derive(Debug, Default)]
struct ResumeChecksLastBarOnly;

#[async_trait]
impl Fault for ResumeChecksLastBarOnly {
    async fn derived_bars(&self, inner: &dyn PriceStore, query: &BarQuery) -> Result<Page<Bar>> {
        let page = inner.derived_bars(query).await?;
        match page.items.last() {
            Some(last) if last.close_time() <= query.range.end() => resumed_after_the_last(query, page),
            _ => Ok(page),
        }
    }
}

#[derive(Debug, Default)]
struct StopsAtAGap;

#[async_trait]
impl Fault for StopsAtAGap {
    async fn derived_bars(&self, inner: &dyn PriceStore, query: &BarQuery) -> Result<Page<Bar>> {
        let page = inner.derived_bars(query).await?;
        let gap = page.items.windows(2).position(|pair| pair[0].close_time() != pair[1].open_time());
        match gap {
            Some(gap) if query.order == Order::Ascending => page_of_bars(query, page.items[..=gap].to_vec()),
            _ => Ok(page),
        }
    }
}

#[derive(Debug, Default)]
struct StatsOfOneTick;

#[async_trait]
impl Fault for StatsOfOneTick {
    async fn stats(&self, inner: &dyn PriceStore, query: &StatsQuery) -> Result<Option<RangeStats>> {
        if let Some(stats) = inner.stats(query).await? {
            return Ok(Some(stats));
        }
        let invented = PriceTick::new(query.instrument.clone(), query.range.start(), 0, "1".parse()?)?;
        RangeStats::of([&invented])
    }
}
