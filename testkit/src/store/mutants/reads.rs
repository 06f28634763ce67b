//! Faults of ranges, pages, cursors and the latest records.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use qi_core::record::{Owner, RecordVec, Records, SortKey};
use qi_core::store::{
    Anchor, InsertReport, LatestRequest, MAX_PAGE, Order, Page, PageRequest, Paged, PriceStore, RangeRequest,
    RecordPage, SeriesRequest, SeriesSummary,
};
use qi_core::{ErrorKind, Result, Selection, TimeRange, Timestamp};

use super::fault::Fault;
use super::{faults, indices, kept, sorted_by_key};
use crate::store::rows::pick;

faults! {
    InclusiveEnd: "a range includes its end" => "read::range_end_is_exclusive",
    ExclusiveStart: "a range excludes its start" => "read::range_start_is_inclusive",
    WrongTieOrder: "records of one time are in the opposite order"
        => "read::records_of_one_time_are_ordered_by_seq",
    SeqAsText: "seq is ordered as text" => "read::records_of_one_time_are_ordered_by_seq",
    IgnoresDescending: "descending is ascending" => "read::descending_is_newest_first",
    CursorSkipsTies: "a cursor skips the other records of its time"
        => "read::page_boundary_within_one_time_loses_nothing",
    PageDropsItsLast: "a full page drops its last record" => "read::pages_equal_the_full_scan",
    EndsEarly: "the second page is always the last one" => "read::pages_equal_the_full_scan",
    PagesByOffset: "a cursor is a record count instead of a sort key"
        => "read::cursor_sees_records_inserted_after_it",
    TakesForeignCursors: "a cursor of another query starts from the beginning"
        => "read::cursor_of_another_query_is_rejected",
    ErrorAsEmpty: "an error is returned as an empty page" => "schema::missing_schema_is_rejected",
    UnknownIsAnError: "an unknown instrument is an error" => "read::unknown_series_returns_an_empty_page",
    AsOfExclusive: "as_of excludes its time" => "latest::as_of_is_inclusive",
    IgnoresAsOf: "the latest snapshot ignores as_of" => "latest::as_of_is_inclusive",
    BarsByOpenTime: "as_of uses the open time of bars" => "latest::as_of_uses_the_close_time_of_bars",
    LastWrittenIsLatest: "the last written tick is the latest" => "latest::late_insert_is_not_the_latest",
    LooksBackAWeek: "latest reads only the newest week"
        => "latest::old_latest_record_is_found_among_newer_series",
    OrdersByName: "instruments are ordered by their displayed name"
        => "administration::instruments_are_ordered_by_bytes",
    NeverForgets: "lists an instrument without records" => "administration::instruments_need_a_record",
}

fn shifted(time: Timestamp, micros: i64) -> Timestamp {
    Timestamp::from_micros(time.as_micros() + micros).unwrap_or(time)
}

/// Returns the records of another range as the page for `asked`. Reads one page of at most `MAX_PAGE` records.
async fn page_of(inner: &dyn PriceStore, asked: &RangeRequest, range: TimeRange) -> Result<RecordPage> {
    let mut other = asked.clone().with_page(PageRequest::first(MAX_PAGE)?);
    other.range = range;
    let found = inner.range(&other).await?.records;
    let after = match asked.anchor()? {
        Anchor::SortKey(time, seq) => Some((time, seq)),
        Anchor::Time(time) => Some((time, 0)),
        _ => None,
    };
    let records = found.as_records();
    let ahead = |at: usize| {
        after.is_none_or(|after| match asked.order {
            Order::Ascending => records.sort_key(at) > after,
            Order::Descending => records.sort_key(at) < after,
        })
    };
    asked.page_of(kept(records, ahead)?)
}

/// Returns the page in the order of a function of the sort keys.
fn reordered<K: Ord>(page: RecordPage, key: impl Fn(SortKey) -> K) -> Result<RecordPage> {
    let records = sorted_by_key(&page.records, |at| key(page.records.as_records().sort_key(at)))?;
    Ok(RecordPage { records, ..page })
}

#[derive(Debug, Default)]
struct InclusiveEnd;

#[async_trait]
impl Fault for InclusiveEnd {
    async fn range(&self, inner: &dyn PriceStore, request: &RangeRequest) -> Result<RecordPage> {
        let end = shifted(request.range.end(), 1);
        page_of(inner, request, TimeRange::new(request.range.start(), end)?).await
    }
}

#[derive(Debug, Default)]
struct ExclusiveStart;

#[async_trait]
impl Fault for ExclusiveStart {
    async fn range(&self, inner: &dyn PriceStore, request: &RangeRequest) -> Result<RecordPage> {
        let start = shifted(request.range.start(), 1);
        page_of(inner, request, TimeRange::new(start.min(request.range.end()), request.range.end())?).await
    }
}

#[derive(Debug, Default)]
struct WrongTieOrder;

#[async_trait]
impl Fault for WrongTieOrder {
    async fn range(&self, inner: &dyn PriceStore, request: &RangeRequest) -> Result<RecordPage> {
        let page = inner.range(request).await?;
        match request.order {
            Order::Ascending => reordered(page, |(time, seq)| (time, Reverse(seq))),
            Order::Descending => reordered(page, |(time, seq)| (Reverse(time), seq)),
        }
    }
}

#[derive(Debug, Default)]
struct SeqAsText;

#[async_trait]
impl Fault for SeqAsText {
    async fn range(&self, inner: &dyn PriceStore, request: &RangeRequest) -> Result<RecordPage> {
        reordered(inner.range(request).await?, |(time, seq)| (time, seq.to_string()))
    }
}

#[derive(Debug, Default)]
struct IgnoresDescending;

#[async_trait]
impl Fault for IgnoresDescending {
    async fn range(&self, inner: &dyn PriceStore, request: &RangeRequest) -> Result<RecordPage> {
        reordered(inner.range(request).await?, |sort_key| sort_key)
    }
}

#[derive(Debug, Default)]
struct CursorSkipsTies;

#[async_trait]
impl Fault for CursorSkipsTies {
    async fn range(&self, inner: &dyn PriceStore, request: &RangeRequest) -> Result<RecordPage> {
        let page = inner.range(request).await?;
        let Anchor::SortKey(time, _) = request.anchor()? else { return Ok(page) };
        let records = page.records.as_records();
        let records = kept(records, |at| records.sort_key(at).0 != time)?;
        Ok(RecordPage { records, ..page })
    }
}

#[derive(Debug, Default)]
struct PageDropsItsLast;

#[async_trait]
impl Fault for PageDropsItsLast {
    async fn range(&self, inner: &dyn PriceStore, request: &RangeRequest) -> Result<RecordPage> {
        let mut page = inner.range(request).await?;
        if page.next.is_some() {
            page.records.truncate(page.records.len() - 1);
        }
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct EndsEarly;

#[async_trait]
impl Fault for EndsEarly {
    async fn range(&self, inner: &dyn PriceStore, request: &RangeRequest) -> Result<RecordPage> {
        let mut page = inner.range(request).await?;
        if request.page.cursor().is_some() {
            page.next = None;
        }
        Ok(page)
    }
}

/// The number of records before each cursor.
#[derive(Debug, Default)]
struct PagesByOffset(Mutex<BTreeMap<String, usize>>);

#[async_trait]
impl Fault for PagesByOffset {
    async fn range(&self, inner: &dyn PriceStore, request: &RangeRequest) -> Result<RecordPage> {
        let limit = request.page.limit();
        let offset = {
            let offsets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            request.page.cursor().and_then(|cursor| offsets.get(&cursor.to_string()).copied()).unwrap_or(0)
        };
        let whole = request.clone().with_page(PageRequest::first(MAX_PAGE)?);
        let found = inner.range(&whole).await?.records;
        let part = pick(found.as_records(), (0..found.len()).skip(offset).take(limit + 1))?;
        let page = request.page_of(part)?;
        let mut offsets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        offsets.insert(page.resume.to_string(), offset + page.records.len());
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct TakesForeignCursors;

#[async_trait]
impl Fault for TakesForeignCursors {
    async fn range(&self, inner: &dyn PriceStore, request: &RangeRequest) -> Result<RecordPage> {
        match inner.range(request).await {
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                let first = PageRequest::first(request.page.limit())?;
                inner.range(&request.clone().with_page(first)).await
            }
            other => other,
        }
    }
}

#[derive(Debug, Default)]
struct ErrorAsEmpty;

#[async_trait]
impl Fault for ErrorAsEmpty {
    async fn range(&self, inner: &dyn PriceStore, request: &RangeRequest) -> Result<RecordPage> {
        match inner.range(request).await {
            Err(_) => request.page_of(request.dataset.new_vec()),
            page => page,
        }
    }
}

#[derive(Debug, Default)]
struct UnknownIsAnError;

#[async_trait]
impl Fault for UnknownIsAnError {
    async fn range(&self, inner: &dyn PriceStore, request: &RangeRequest) -> Result<RecordPage> {
        let page = inner.range(request).await?;
        if page.records.is_empty() {
            return Err(qi_core::Error::new(ErrorKind::NotFound, "store.mutant.unknown", "range"));
        }
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct AsOfExclusive;

#[async_trait]
impl Fault for AsOfExclusive {
    async fn latest(&self, inner: &dyn PriceStore, request: &LatestRequest) -> Result<RecordPage> {
        let mut earlier = request.clone();
        earlier.as_of = request.as_of.map(|time| shifted(time, -1));
        inner.latest(&earlier).await
    }
}

#[derive(Debug, Default)]
struct IgnoresAsOf;

#[async_trait]
impl Fault for IgnoresAsOf {
    async fn latest(&self, inner: &dyn PriceStore, request: &LatestRequest) -> Result<RecordPage> {
        let mut now = request.clone();
        now.as_of = None;
        inner.latest(&now).await
    }
}

#[derive(Debug, Default)]
struct BarsByOpenTime;

#[async_trait]
impl Fault for BarsByOpenTime {
    async fn latest(&self, inner: &dyn PriceStore, request: &LatestRequest) -> Result<RecordPage> {
        let mut later = request.clone();
        if let (Some(as_of), Some(interval)) = (request.as_of, request.interval) {
            later.as_of = as_of.checked_add(interval.duration());
        }
        inner.latest(&later).await
    }
}

#[derive(Debug, Default)]
struct LastWrittenIsLatest(Mutex<BTreeMap<(&'static str, Owner), RecordVec>>);

#[async_trait]
impl Fault for LastWrittenIsLatest {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let report = inner.insert(batch).await?;
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for at in indices(batch) {
            let key = (batch.dataset().name(), batch.series(at).owner.to_owned());
            last.insert(key, pick(batch, [at])?);
        }
        Ok(report)
    }

    async fn latest(&self, inner: &dyn PriceStore, request: &LatestRequest) -> Result<RecordPage> {
        inner.latest(request).await?;
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = request.dataset.new_vec();
        for ((dataset, owner), record) in &*last {
            if *dataset == request.dataset.name() && request.selection.contains(owner) {
                found.push_copy(record.as_records(), 0)?;
            }
        }
        request.page_of(found)
    }
}

#[derive(Debug, Default)]
struct LooksBackAWeek;

#[async_trait]
impl Fault for LooksBackAWeek {
    async fn latest(&self, inner: &dyn PriceStore, request: &LatestRequest) -> Result<RecordPage> {
        let page = inner.latest(request).await?;
        let mut all = request.clone().with_page(PageRequest::first(MAX_PAGE)?);
        all.selection = Selection::All;
        let all = inner.latest(&all).await?.records;
        let newest = (0..all.len()).map(|at| all.as_records().sort_key(at).0).max().unwrap_or(Timestamp::MIN);
        let week = qi_core::Interval::W1.duration();
        let records = page.records.as_records();
        let records = kept(records, |at| newest.duration_since(records.sort_key(at).0) <= week)?;
        Ok(RecordPage { records, ..page })
    }
}

#[derive(Debug, Default)]
struct OrdersByName;

#[async_trait]
impl Fault for OrdersByName {
    async fn series(&self, inner: &dyn PriceStore, request: &SeriesRequest) -> Result<Page<SeriesSummary>> {
        let mut page = inner.series(request).await?;
        page.items.sort_by_key(|summary| summary.owner.to_string());
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct NeverForgets(Mutex<BTreeMap<(&'static str, Owner), SeriesSummary>>);

#[async_trait]
impl Fault for NeverForgets {
    async fn insert(&self, inner: &dyn PriceStore, batch: &dyn Records) -> Result<InsertReport> {
        let report = inner.insert(batch).await?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for at in indices(batch) {
            let (owner, time) = (batch.series(at).owner.to_owned(), batch.sort_key(at).0);
            let summary = SeriesSummary::new(owner.clone(), time, time);
            known.entry((batch.dataset().name(), owner)).or_insert(summary);
        }
        Ok(report)
    }

    async fn series(&self, inner: &dyn PriceStore, request: &SeriesRequest) -> Result<Page<SeriesSummary>> {
        inner.series(request).await?;
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = known.iter().filter(|((dataset, _), _)| *dataset == request.dataset.name());
        request.page_of(own.map(|(_, summary)| summary.clone()).collect())
    }
}
