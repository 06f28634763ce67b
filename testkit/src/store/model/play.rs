//! Playing a history: on a store beside the model, or on two stores.

use qi_core::store::{
    BarQuery, Cursor, InstrumentDataset, InstrumentQuery, InstrumentSummary, LatestBarsQuery, LatestQuery,
    Page, PageRequest, PriceStore, RangeQuery, Record, SnapshotQuery, StatsQuery,
};
use qi_core::{MarketSnapshot, Ohlcv, PriceTick, Quote, Result, Scope, Selection};

use super::{Look, Model, Step, instrument, scope};
use crate::store::contract::{Failure, Outcome, same, same_rows};

/// What a store says to a look, every page put together.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answers {
    pub(super) ticks: Vec<PriceTick>,
    pub(super) quotes: Vec<Quote>,
    pub(super) bars: Vec<Ohlcv>,
    pub(super) snapshots: Vec<MarketSnapshot>,
    pub(super) latest_ticks: Vec<PriceTick>,
    pub(super) latest_quotes: Vec<Quote>,
    pub(super) latest_bars: Vec<Ohlcv>,
    pub(super) latest_snapshots: Vec<MarketSnapshot>,
    pub(super) derived: Vec<Ohlcv>,
    pub(super) figures: Option<String>,
    pub(super) instruments: [Vec<InstrumentSummary>; 3],
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
