//! Faults of ranges, pages, cursors and the latest.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use qi_core::store::{
    Anchor, InsertReport, InstrumentQuery, InstrumentSummary, LatestBarsQuery, LatestQuery, Order, Page,
    PageRequest, Paged, PriceStore, RangeQuery,
};
use qi_core::{ErrorKind, Instrument, MarketSnapshot, Ohlcv, PriceTick, Result, Scope, TimeRange, Timestamp};

use super::faults;
use super::spoil::Spoil;

faults! {
    InclusiveEnd: "a range includes its end" => "read::the_end_is_exclusive",
    ExclusiveStart: "a range excludes its start" => "read::the_start_is_inclusive",
    WrongTieOrder: "records of one time come in the opposite order" => "read::ties_are_ordered_by_seq",
    SeqAsText: "seq is ordered as text" => "read::ties_are_ordered_by_seq",
    IgnoresDescending: "descending is ascending" => "read::descending_is_newest_first",
    CursorSkipsTies: "a cursor skips the other records of its time" => "read::pages_part_records_of_one_time",
    PageDropsItsLast: "a full page drops its last record" => "read::pages_make_up_the_full_scan",
    EndsEarly: "the second page is always the last one" => "read::pages_make_up_the_full_scan",
    PagesByOffset: "a cursor counts records instead of naming one" => "read::a_cursor_sees_what_came_ahead_of_it",
    TakesForeignCursors: "a foreign cursor begins from the start" => "read::a_foreign_cursor_is_refused",
    ErrorAsEmpty: "an error is an empty page" => "schema::a_missing_schema_is_refused",
    UnknownIsAnError: "an unknown instrument is an error" => "read::an_unknown_series_is_an_empty_page",
    AsOfExclusive: "as_of excludes its moment" => "latest::as_of_is_inclusive",
    IgnoresAsOf: "the latest snapshot ignores as_of" => "latest::as_of_is_inclusive",
    BarsByOpenTime: "as_of looks at the open time of bars" => "latest::a_bar_is_known_when_it_has_closed",
    LastWrittenIsLatest: "the tick that was written last is the latest" => "latest::a_late_insert_is_not_the_latest",
    LooksBackAWeek: "latest looks at the newest week only" => "latest::old_behind_many_newer_of_others",
    OrdersByName: "instruments are ordered by their displayed name" => "administration::instruments_are_ordered_by_bytes",
    NeverForgets: "lists an instrument whose records are gone" => "administration::instruments_need_a_record",
}

fn moved(time: Timestamp, micros: i64) -> Timestamp {
    Timestamp::from_micros(time.as_micros() + micros).unwrap_or(time)
}

/// The answer to another query as the page of this one, as far as one page goes.
async fn page_of(inner: &dyn PriceStore, asked: &RangeQuery, range: TimeRange) -> Result<Page<PriceTick>> {
    let mut other = RangeQuery::new(asked.instrument.clone(), range).with_page(PageRequest::first(10_000)?);
    other.order = asked.order;
    let after = Paged::<PriceTick>::anchor(asked)?;
    let mut found = inner.ticks(&other).await?.items;
    if let Anchor::Place(ts, seq) = after {
        found.retain(|tick| match asked.order {
            Order::Ascending => (tick.ts(), tick.seq()) > (ts, seq),
            Order::Descending => (tick.ts(), tick.seq()) < (ts, seq),
        });
    }
    asked.page_of(found)
}

#[derive(Debug, Default)]
struct InclusiveEnd;

#[async_trait]
impl Spoil for InclusiveEnd {
    async fn ticks(&self, inner: &dyn PriceStore, query: &RangeQuery) -> Result<Page<PriceTick>> {
        page_of(inner, query, TimeRange::new(query.range.start(), moved(query.range.end(), 1))?).await
    }
}

#[derive(Debug, Default)]
struct ExclusiveStart;

#[async_trait]
impl Spoil for ExclusiveStart {
    async fn ticks(&self, inner: &dyn PriceStore, query: &RangeQuery) -> Result<Page<PriceTick>> {
        let start = moved(query.range.start(), 1);
        page_of(inner, query, TimeRange::new(start.min(query.range.end()), query.range.end())?).await
    }
}

#[derive(Debug, Default)]
struct WrongTieOrder;

#[async_trait]
impl Spoil for WrongTieOrder {
    async fn ticks(&self, inner: &dyn PriceStore, query: &RangeQuery) -> Result<Page<PriceTick>> {
        let mut page = inner.ticks(query).await?;
        match query.order {
            Order::Ascending => page.items.sort_by_key(|tick| (tick.ts(), Reverse(tick.seq()))),
            Order::Descending => page.items.sort_by_key(|tick| (Reverse(tick.ts()), tick.seq())),
        }
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct SeqAsText;

#[async_trait]
impl Spoil for SeqAsText {
    async fn ticks(&self, inner: &dyn PriceStore, query: &RangeQuery) -> Result<Page<PriceTick>> {
        let mut page = inner.ticks(query).await?;
        page.items.sort_by_key(|tick| (tick.ts(), tick.seq().to_string()));
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct IgnoresDescending;

#[async_trait]
impl Spoil for IgnoresDescending {
    async fn ticks(&self, inner: &dyn PriceStore, query: &RangeQuery) -> Result<Page<PriceTick>> {
        let mut page = inner.ticks(query).await?;
        page.items.sort_by_key(|tick| (tick.ts(), tick.seq()));
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct CursorSkipsTies;

#[async_trait]
impl Spoil for CursorSkipsTies {
    async fn ticks(&self, inner: &dyn PriceStore, query: &RangeQuery) -> Result<Page<PriceTick>> {
        let mut page = inner.ticks(query).await?;
        if let Anchor::Place(ts, _) = Paged::<PriceTick>::anchor(query)? {
            page.items.retain(|tick| tick.ts() != ts);
        }
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct PageDropsItsLast;

#[async_trait]
impl Spoil for PageDropsItsLast {
    async fn ticks(&self, inner: &dyn PriceStore, query: &RangeQuery) -> Result<Page<PriceTick>> {
        let mut page = inner.ticks(query).await?;
        if page.next.is_some() {
            page.items.pop();
        }
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct EndsEarly;

#[async_trait]
impl Spoil for EndsEarly {
    async fn snapshots(
        &self,
        inner: &dyn PriceStore,
        query: &qi_core::store::SnapshotQuery,
    ) -> Result<Page<MarketSnapshot>> {
        let mut page = inner.snapshots(query).await?;
        if query.page.cursor().is_some() {
            page.next = None;
        }
        Ok(page)
    }
}

/// How many records each cursor stands for.
#[derive(Debug, Default)]
struct PagesByOffset(Mutex<BTreeMap<String, usize>>);

#[async_trait]
impl Spoil for PagesByOffset {
    async fn ticks(&self, inner: &dyn PriceStore, query: &RangeQuery) -> Result<Page<PriceTick>> {
        let limit = query.page.limit();
        let offset = {
            let offsets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            query.page.cursor().and_then(|cursor| offsets.get(&cursor.to_string()).copied()).unwrap_or(0)
        };
        let mut whole = RangeQuery::new(query.instrument.clone(), query.range).with_limit(10_000)?;
        whole.order = query.order;
        let found = inner.ticks(&whole).await?.items;
        let page = query.page_of(found.into_iter().skip(offset).take(limit + 1).collect())?;
        let mut offsets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        offsets.insert(page.resume.to_string(), offset + page.items.len());
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct TakesForeignCursors;

#[async_trait]
impl Spoil for TakesForeignCursors {
    async fn ticks(&self, inner: &dyn PriceStore, query: &RangeQuery) -> Result<Page<PriceTick>> {
        match inner.ticks(query).await {
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                let first = PageRequest::first(query.page.limit())?;
                inner.ticks(&query.clone().with_page(first)).await
            }
            other => other,
        }
    }
}

#[derive(Debug, Default)]
struct ErrorAsEmpty;

#[async_trait]
impl Spoil for ErrorAsEmpty {
    async fn ticks(&self, inner: &dyn PriceStore, query: &RangeQuery) -> Result<Page<PriceTick>> {
        match inner.ticks(query).await {
            Err(_) => query.page_of(Vec::new()),
            page => page,
        }
    }
}

#[derive(Debug, Default)]
struct UnknownIsAnError;

#[async_trait]
impl Spoil for UnknownIsAnError {
    async fn ticks(&self, inner: &dyn PriceStore, query: &RangeQuery) -> Result<Page<PriceTick>> {
        let page = inner.ticks(query).await?;
        if page.items.is_empty() {
            return Err(qi_core::Error::new(ErrorKind::NotFound, "store.mutant.unknown", "ticks"));
        }
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct AsOfExclusive;

#[async_trait]
impl Spoil for AsOfExclusive {
    async fn latest_ticks(&self, inner: &dyn PriceStore, query: &LatestQuery) -> Result<Page<PriceTick>> {
        let mut earlier = query.clone();
        earlier.as_of = query.as_of.map(|time| moved(time, -1));
        inner.latest_ticks(&earlier).await
    }
}

#[derive(Debug, Default)]
struct IgnoresAsOf;

#[async_trait]
impl Spoil for IgnoresAsOf {
    async fn latest_snapshots(
        &self,
        inner: &dyn PriceStore,
        query: &LatestQuery<Scope>,
    ) -> Result<Page<MarketSnapshot>> {
        let mut now = query.clone();
        now.as_of = None;
        inner.latest_snapshots(&now).await
    }
}

#[derive(Debug, Default)]
struct BarsByOpenTime;

#[async_trait]
impl Spoil for BarsByOpenTime {
    async fn latest_bars(&self, inner: &dyn PriceStore, query: &LatestBarsQuery) -> Result<Page<Ohlcv>> {
        let mut later = query.clone();
        later.as_of = query.as_of.and_then(|time| time.checked_add(query.interval.duration()));
        inner.latest_bars(&later).await
    }
}

#[derive(Debug, Default)]
struct LastWrittenIsLatest(Mutex<BTreeMap<Instrument, PriceTick>>);

#[async_trait]
impl Spoil for LastWrittenIsLatest {
    async fn insert_ticks(&self, inner: &dyn PriceStore, batch: &[PriceTick]) -> Result<InsertReport> {
        let report = inner.insert_ticks(batch).await?;
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.extend(batch.iter().map(|tick| (tick.instrument().clone(), tick.clone())));
        Ok(report)
    }

    async fn latest_ticks(&self, inner: &dyn PriceStore, query: &LatestQuery) -> Result<Page<PriceTick>> {
        inner.latest_ticks(query).await?;
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let chosen = last.iter().filter(|(instrument, _)| query.selection.contains(instrument));
        query.page_of(chosen.map(|(_, tick)| tick.clone()).collect())
    }
}

#[derive(Debug, Default)]
struct LooksBackAWeek;

#[async_trait]
impl Spoil for LooksBackAWeek {
    async fn latest_ticks(&self, inner: &dyn PriceStore, query: &LatestQuery) -> Result<Page<PriceTick>> {
        let mut page = inner.latest_ticks(query).await?;
        let all = inner.latest_ticks(&LatestQuery::new(qi_core::Selection::All)).await?;
        let newest = all.items.iter().map(PriceTick::ts).max().unwrap_or(Timestamp::MIN);
        let week = qi_core::Interval::W1.duration();
        page.items.retain(|tick| newest.since(tick.ts()) <= week);
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct OrdersByName;

#[async_trait]
impl Spoil for OrdersByName {
    async fn instruments(
        &self,
        inner: &dyn PriceStore,
        query: &InstrumentQuery,
    ) -> Result<Page<InstrumentSummary>> {
        let mut page = inner.instruments(query).await?;
        page.items.sort_by_key(|summary| summary.instrument.to_string());
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct NeverForgets(Mutex<BTreeMap<Instrument, InstrumentSummary>>);

#[async_trait]
impl Spoil for NeverForgets {
    async fn insert_ticks(&self, inner: &dyn PriceStore, batch: &[PriceTick]) -> Result<InsertReport> {
        let report = inner.insert_ticks(batch).await?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for tick in batch {
            let instrument = tick.instrument().clone();
            let summary =
                InstrumentSummary { instrument: instrument.clone(), first: tick.ts(), last: tick.ts() };
            known.entry(instrument).or_insert(summary);
        }
        Ok(report)
    }

    async fn instruments(
        &self,
        inner: &dyn PriceStore,
        query: &InstrumentQuery,
    ) -> Result<Page<InstrumentSummary>> {
        inner.instruments(query).await?;
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        query.page_of(known.values().cloned().collect())
    }
}
