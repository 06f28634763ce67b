//! Runs of a history: on a store and the model, or on two stores.

use qi_core::Datasets;
use qi_core::record::Row;
use qi_core::store::{
    BarQuery, Cursor, LatestRequest, Page, PageRequest, PriceStore, RangeRequest, RecordPage, SeriesRequest,
    SeriesSummary, StatsQuery,
};
use qi_core::{Bar, Result, Selection};

use super::{History, Model, ReadParams, Step, instrument, interval_of, owner, series};
use crate::store::contract::{CheckResult, Failure, expect_same, expect_same_rows};

/// The responses of a store to one read, with all pages joined.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ReadResults {
    /// The rows in the range, by dataset in the order of the datasets.
    pub(super) ranges: Vec<Vec<Row>>,
    pub(super) latest: Vec<Vec<Row>>,
    pub(super) series: Vec<Vec<SeriesSummary>>,
    pub(super) derived: Vec<Bar>,
    pub(super) stats: Option<String>,
}

impl ReadResults {
    fn expect_same_as(&self, expected: &Self, datasets: &Datasets) -> CheckResult {
        for (at, dataset) in datasets.iter().enumerate() {
            expect_same_rows(&format!("range of {dataset}"), &self.ranges[at], &expected.ranges[at])?;
            expect_same_rows(&format!("latest of {dataset}"), &self.latest[at], &expected.latest[at])?;
            expect_same_rows(&format!("series of {dataset}"), &self.series[at], &expected.series[at])?;
        }
        expect_same_rows("derived_bars", &self.derived, &expected.derived)?;
        expect_same("stats", &self.stats, &expected.stats)
    }
}

/// Reads all pages. Checks that each page except the last is full, and that no page exceeds its limit.
async fn read_all_pages<T, F>(
    limit: usize,
    cursors: &mut Vec<Cursor>,
    read_page: impl Fn(PageRequest) -> F,
) -> std::result::Result<Vec<T>, Failure>
where
    F: Future<Output = Result<Page<T>>>,
{
    let mut request = PageRequest::first(limit)?;
    let mut found = Vec::new();
    loop {
        let page = read_page(request.clone()).await?;
        let (count, more) = (page.items.len(), page.next.is_some());
        if count > limit || (more && count < limit) {
            let text = format!("a page with limit {limit} has {count} items (next page: {more})");
            return Err(Failure::new(text));
        }
        found.extend(page.items);
        cursors.extend(page.next.clone());
        cursors.push(page.resume);
        let Some(next) = page.next else { return Ok(found) };
        request = request.after(next);
    }
}

fn rows(page: RecordPage) -> Result<Page<Row>> {
    let RecordPage { records, next, resume } = page;
    Ok(Page { items: Row::copy_of(records.as_records())?, next, resume })
}

/// Calls all read methods, and returns the responses with the cursors of all pages.
async fn read_all_methods(
    store: &dyn PriceStore,
    params: &ReadParams,
    datasets: &Datasets,
) -> std::result::Result<(ReadResults, Vec<Cursor>), Failure> {
    let ReadParams { range, descending, limit, as_of, interval, which } = params.clone();
    let (mut cursors, own) = (Vec::new(), instrument(which));
    let at = &mut cursors;
    let (mut ranges, mut latest, mut listed) = (Vec::new(), Vec::new(), Vec::new());
    for dataset in datasets.iter() {
        let within = |call: &str| format!("{call} of {dataset}");
        let found = read_all_pages(limit, at, |page| async move {
            let request = RangeRequest::new(dataset, series(dataset, which, interval), range).with_page(page);
            rows(store.range(&if descending { request.descending() } else { request }).await?)
        });
        ranges.push(found.await.map_err(|failure| failure.within(within("range")))?);
        let found = read_all_pages(limit, at, |page| async move {
            // Ascending reads select the owners by name. Both selections must give the same result.
            let selection = if descending {
                Selection::All
            } else {
                Selection::only((0..3).map(|n| owner(dataset, n))).expect("three")
            };
            let mut request = LatestRequest::new(dataset, selection).with_page(page);
            (request.as_of, request.interval) = (as_of, interval_of(dataset, interval));
            rows(store.latest(&request).await?)
        });
        latest.push(found.await.map_err(|failure| failure.within(within("latest")))?);
        let found = read_all_pages(limit, at, |page| async move {
            store.series(&SeriesRequest::new(dataset).with_page(page)).await
        });
        listed.push(found.await.map_err(|failure| failure.within(within("series")))?);
    }
    let stats = store.stats(&StatsQuery::new(own.clone(), range)).await?;
    let stats = stats.map(|s| {
        let parts = |point: qi_core::store::PricePoint| (point.ts, point.seq, point.price);
        let stats =
            (parts(s.first()), parts(s.last()), s.min(), s.max(), s.volume(), s.quote_volume(), s.count());
        format!("{stats:?}")
    });
    let own = &own;
    let derived = read_all_pages(limit, at, |page| async move {
        let query = BarQuery::new(own.clone(), interval, range).with_page(page);
        store.derived_bars(&if descending { query.descending() } else { query }).await
    });
    let derived = derived.await.map_err(|failure| failure.within("derived_bars"))?;
    Ok((ReadResults { ranges, latest, series: listed, derived, stats }, cursors))
}

/// Runs a step that changes the store. Returns the number of duplicates of an insert.
async fn change(store: &dyn PriceStore, step: &Step) -> Result<Option<u64>> {
    match step {
        Step::Insert(batch) => Ok(Some(store.insert(batch.as_records()).await?.duplicates_in_batch)),
        Step::Delete(query) => store.delete_range(query).await.map(|()| None),
        Step::Purge(dataset, cutoff) => store.purge_before(*dataset, *cutoff).await.map(|()| None),
        Step::Read(_) => Ok(None),
    }
}

/// Returns the number of records of a batch that a later record replaces.
fn duplicates_of(step: &Step) -> Result<Option<u64>> {
    let Step::Insert(batch) = step else { return Ok(None) };
    let rows = Row::copy_of(batch.as_records())?;
    let key = |row: &Row| (row.series().clone(), row.sort_key());
    let later = |n: &usize| rows[n + 1..].iter().any(|row| key(row) == key(&rows[*n]));
    Ok(Some((0..rows.len()).filter(later).count() as u64))
}

/// Runs each step of a history on a new store and on the model, and compares every response and report.
///
/// # Errors
/// The first step with a difference, and the difference.
pub async fn run_history(store: &dyn PriceStore, history: &History) -> CheckResult {
    let mut model = Model::default();
    for (n, step) in history.steps.iter().enumerate() {
        let within = |failure: Failure| failure.within(format_args!("step {n}, {}", operation_name(step)));
        if let Step::Read(params) = step {
            let (found, _) = read_all_methods(store, params, &history.datasets).await.map_err(within)?;
            found
                .expect_same_as(&model.read(params, &history.datasets)?, &history.datasets)
                .map_err(within)?;
        } else {
            model.change(step)?;
            let reported = change(store, step).await.map_err(|error| within(error.into()))?;
            expect_same("duplicates_in_batch", &reported, &duplicates_of(step)?).map_err(within)?;
        }
    }
    Ok(())
}

/// Runs a history on two new stores, and compares all their responses, reports and cursors.
///
/// # Errors
/// The first step with a difference, and the difference.
pub async fn compare(one: &dyn PriceStore, two: &dyn PriceStore, history: &History) -> CheckResult {
    let datasets = &history.datasets;
    for (n, step) in history.steps.iter().enumerate() {
        let within = |failure: Failure| failure.within(format_args!("step {n}, {}", operation_name(step)));
        if let Step::Read(params) = step {
            let (first, first_cursors) = read_all_methods(one, params, datasets).await.map_err(within)?;
            let (second, second_cursors) = read_all_methods(two, params, datasets).await.map_err(within)?;
            second.expect_same_as(&first, datasets).map_err(within)?;
            expect_same_rows("cursors", &second_cursors, &first_cursors).map_err(within)?;
        } else {
            let first = change(one, step).await.map_err(|error| within(error.into()))?;
            let second = change(two, step).await.map_err(|error| within(error.into()))?;
            expect_same("duplicates_in_batch", &second, &first).map_err(within)?;
        }
    }
    Ok(())
}

fn operation_name(step: &Step) -> &'static str {
    match step {
        Step::Insert(_) => "insert",
        Step::Delete(_) => "delete_range",
        Step::Purge(..) => "purge_before",
        Step::Read(_) => "read",
    }
}
