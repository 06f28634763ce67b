//! Reads: half-open ranges, a total order, pages and cursors.

use futures::TryStreamExt;
use qi_core::store::{
    BarQuery, InstrumentQuery, LatestQuery, MAX_PAGE, Order, PageRequest, PriceStore, PriceStoreExt,
    RangeQuery,
};
use qi_core::{Bar, ErrorKind, Interval, PriceTick, Record, Selection, TimeRange, Timestamp};

use super::dataset_ops::{DatasetOps, RangeParams, micros, minute, range};
use super::expect::{CheckResult, Failure, expect_error, expect_same, expect_same_rows, expect_true};
use super::{Sample, TestContext, promises};

promises! { "read";
    every range_start_is_inclusive: "a range includes its start",
    every range_end_is_exclusive: "a range excludes its end",
    every empty_range_returns_an_empty_page: "an empty range returns an empty page, never an error",
    every unknown_series_returns_an_empty_page: "an unknown series returns an empty page, never an error",
    every ascending_is_oldest_first: "ascending is oldest first",
    every descending_is_newest_first: "descending is the same records, newest first",
    tied records_of_one_time_are_ordered_by_seq: "records of one time are ordered by seq, in both directions",
    bulk pages_equal_the_full_scan:
        "pages of 1, 2, 7 and 1,000 records equal the full scan, in both directions",
    tied page_boundary_within_one_time_loses_nothing:
        "a page boundary between records of one time loses and repeats no record",
    every last_full_page_has_no_next: "the page with the last record has no next page",
    bulk page_holds_up_to_max_page_records: "a page holds up to `MAX_PAGE` records",
    every cursor_sees_records_inserted_after_it:
        "records inserted after a cursor are returned, records before it are not",
    every cursor_survives_deletion_of_its_record:
        "a cursor continues after its record, even if the record is deleted",
    every cursor_of_another_query_is_rejected:
        "a cursor of another series, range or order fails with InvalidInput",
    once cursor_of_another_dataset_is_rejected:
        "a cursor of another dataset or method fails with InvalidInput",
    every cursor_is_valid_for_another_limit: "a cursor is valid for another limit",
    every resume_returns_later_records:
        "every page, even an empty one, has a resume cursor that returns later records",
    every limit_must_be_1_to_max_page: "limits 0 and `MAX_PAGE` + 1 are rejected, 1 and `MAX_PAGE` are accepted",
    every stream_equals_its_pages: "the stream returns the records of the pages in order",
}

/// Inserts and returns ten records of one series, one minute apart.
async fn insert_ten<D: Sample>(store: &dyn PriceStore) -> std::result::Result<Vec<D>, Failure> {
    let batch: Vec<D> = (0..10).map(|n| D::at(1, n.into(), n)).collect();
    // Records of other series, which no response may contain.
    let others = [D::at(0, 3, 99), D::at(2, 4, 98)];
    D::insert(store, &[&batch[..], &others[..]].concat()).await?;
    Ok(batch)
}

fn params<D: Sample>() -> RangeParams<D> {
    RangeParams::all(&D::series_no(1))
}

async fn range_start_is_inclusive<D: Sample>(context: &TestContext) -> CheckResult {
    let all = insert_ten::<D>(context.store()).await?;
    for order in [params::<D>(), params().descending()] {
        let mut found = D::scan(context.store(), order.within(TimeRange::since(minute(3)))).await?;
        found.sort_by_key(Record::sort_key);
        expect_same_rows("from the time of the fourth record", &found, &all[3..])?;
    }
    let just_after = micros(3 * 60_000_000 + 1);
    let found = D::scan(context.store(), params().within(TimeRange::since(just_after))).await?;
    expect_same_rows("from a microsecond later", &found, &all[4..])
}

async fn range_end_is_exclusive<D: Sample>(context: &TestContext) -> CheckResult {
    let all = insert_ten::<D>(context.store()).await?;
    for order in [params::<D>(), params().descending()] {
        let mut found = D::scan(context.store(), order.within(TimeRange::before(minute(3)))).await?;
        found.sort_by_key(Record::sort_key);
        expect_same_rows("up to the time of the fourth record", &found, &all[..3])?;
    }
    let just_after = micros(3 * 60_000_000 + 1);
    let found = D::scan(context.store(), params().within(TimeRange::before(just_after))).await?;
    expect_same_rows("up to a microsecond later", &found, &all[..4])
}

async fn empty_range_returns_an_empty_page<D: Sample>(context: &TestContext) -> CheckResult {
    insert_ten::<D>(context.store()).await?;
    let ranges = [
        range(minute(3), minute(3)),
        range(micros(1), minute(1)),
        range(minute(100), minute(200)),
        range(Timestamp::MAX, Timestamp::MAX),
    ];
    for range in ranges {
        for params in [params::<D>(), params().descending()] {
            let page = D::page(context.store(), &params.within(range)).await?;
            expect_same_rows("an empty range", &page.items, &[])?;
            expect_true("an empty page has no next page", page.next.is_none())?;
        }
    }
    Ok(())
}

async fn unknown_series_returns_an_empty_page<D: Sample>(context: &TestContext) -> CheckResult {
    for round in ["in an empty store", "with other series"] {
        let page = D::page(context.store(), &RangeParams::all(&D::series_no(7))).await?;
        expect_same_rows(round, &page.items, &[])?;
        expect_true("an empty page has no next page", page.next.is_none())?;
        insert_ten::<D>(context.store()).await?;
    }
    Ok(())
}

async fn ascending_is_oldest_first<D: Sample>(context: &TestContext) -> CheckResult {
    let all = insert_ten::<D>(context.store()).await?;
    expect_same_rows("the series", &D::page(context.store(), &params()).await?.items, &all)
}

async fn descending_is_newest_first<D: Sample>(context: &TestContext) -> CheckResult {
    let mut all = insert_ten::<D>(context.store()).await?;
    all.reverse();
    expect_same_rows("the series", &D::page(context.store(), &params().descending()).await?.items, &all)
}

/// Inserts records at three times: 1, 5 and 2 records. The numeric order of their sequence numbers differs
/// from the text order.
async fn insert_tied_records<D: Sample>(store: &dyn PriceStore) -> std::result::Result<Vec<D>, Failure> {
    let sort_keys = [(0, 0), (1, 2), (1, 9), (1, 10), (1, 11), (1, 100), (2, 0), (2, 1)];
    let mut batch: Vec<D> = (0..)
        .zip(sort_keys)
        .map(|(value, (minutes, seq))| D::make(&D::series_no(1), minute(minutes), seq, value))
        .collect();
    let sorted = batch.clone();
    batch.reverse();
    batch.swap(1, 4);
    D::insert(store, &batch).await?;
    Ok(sorted)
}

async fn records_of_one_time_are_ordered_by_seq<D: Sample>(context: &TestContext) -> CheckResult {
    let mut all = insert_tied_records::<D>(context.store()).await?;
    expect_same_rows("ascending", &D::page(context.store(), &params()).await?.items, &all)?;
    all.reverse();
    expect_same_rows("descending", &D::page(context.store(), &params().descending()).await?.items, &all)
}

/// Checks that the pages of each limit, put together, equal the full scan.
async fn expect_pages_equal<D: Sample>(context: &TestContext, all: &[D], limits: &[usize]) -> CheckResult {
    let reversed: Vec<D> = all.iter().rev().cloned().collect();
    for &limit in limits {
        let found = D::scan(context.store(), params().limit(limit)).await?;
        expect_same_rows(&format!("pages of {limit}, ascending"), &found, all)?;
        let found = D::scan(context.store(), params().descending().limit(limit)).await?;
        expect_same_rows(&format!("pages of {limit}, descending"), &found, &reversed)?;
    }
    Ok(())
}

async fn pages_equal_the_full_scan<D: Sample>(context: &TestContext) -> CheckResult {
    let mut all = insert_ten::<D>(context.store()).await?;
    expect_pages_equal(context, &all, &[1, 2, 7]).await?;
    let more: Vec<D> = (10..2_003).map(|n| D::at(1, n.into(), n)).collect();
    D::insert(context.store(), &more).await?;
    all.extend(more);
    expect_pages_equal(context, &all, &[1_000]).await?;
    let part = range(minute(2), minute(6));
    let found = D::scan(context.store(), params().within(part).limit(3)).await?;
    expect_same_rows("pages of a part", &found, &all[2..6])
}

async fn page_boundary_within_one_time_loses_nothing<D: Sample>(context: &TestContext) -> CheckResult {
    let all = insert_tied_records::<D>(context.store()).await?;
    expect_pages_equal(context, &all, &[1, 2, 3, 4, 5]).await
}

async fn last_full_page_has_no_next<D: Sample>(context: &TestContext) -> CheckResult {
    let all = insert_ten::<D>(context.store()).await?;
    for params in [params::<D>().limit(5), params().limit(5).descending()] {
        let first = D::page(context.store(), &params).await?;
        let Some(next) = first.next else {
            return Err(Failure::new("the first of two pages has no next page"));
        };
        let second = D::page(context.store(), &params.after(next)).await?;
        expect_same("the second page", &second.items.len(), &5)?;
        expect_true("the second page has no next page", second.next.is_none())?;
    }
    let whole = D::page(context.store(), &params().limit(10)).await?;
    expect_same_rows("one page with all records", &whole.items, &all)?;
    expect_true("a page with all records has no next page", whole.next.is_none())
}

async fn page_holds_up_to_max_page_records<D: Sample>(context: &TestContext) -> CheckResult {
    let batch: Vec<D> = (0u32..).take(MAX_PAGE + 1).map(|n| D::at(1, n.into(), n)).collect();
    for part in batch.chunks(20_000) {
        D::insert(context.store(), part).await?;
    }
    let page = D::page(context.store(), &params()).await?;
    expect_same_rows("the first page", &page.items, &batch[..MAX_PAGE])?;
    let Some(next) = page.next else {
        return Err(Failure::new("one record remains, but there is no next page"));
    };
    expect_same_rows(
        "the second page",
        &D::page(context.store(), &params().after(next)).await?.items,
        &batch[MAX_PAGE..],
    )
}

async fn cursor_sees_records_inserted_after_it<D: Sample>(context: &TestContext) -> CheckResult {
    let at = |n: i64| D::at(1, n, 1);
    D::insert(context.store(), &[0, 2, 4, 6, 8].map(at)).await?;
    let ascending = D::page(context.store(), &params().limit(2)).await?;
    let descending = D::page(context.store(), &params().descending().limit(2)).await?;
    expect_same_rows("the first page", &ascending.items, &[0, 2].map(at))?;
    D::insert(context.store(), &[1, 3, 5, 7].map(at)).await?;
    let (Some(up), Some(down)) = (ascending.next, descending.next) else {
        return Err(Failure::new("a page with two of five records has no next page"));
    };
    let found = D::scan(context.store(), params().limit(2).after(up)).await?;
    expect_same_rows("after 2, ascending", &found, &[3, 4, 5, 6, 7, 8].map(at))?;
    let found = D::scan(context.store(), params().descending().limit(2).after(down)).await?;
    expect_same_rows("after 6, descending", &found, &[5, 4, 3, 2, 1, 0].map(at))
}

async fn cursor_survives_deletion_of_its_record<D: Sample>(context: &TestContext) -> CheckResult {
    let all = insert_ten::<D>(context.store()).await?;
    let page = D::page(context.store(), &params().limit(4)).await?;
    let Some(next) = page.next else {
        return Err(Failure::new("a page with four of ten records has no next page"));
    };
    let gone = D::deletion(Some(vec![D::series_no(1)]), range(minute(3), minute(5)));
    context.store().delete_range(&gone).await?;
    expect_same_rows(
        "after a deleted record",
        &D::scan(context.store(), params().after(next)).await?,
        &all[5..],
    )
}

async fn cursor_of_another_query_is_rejected<D: Sample>(context: &TestContext) -> CheckResult {
    insert_ten::<D>(context.store()).await?;
    let page = D::page(context.store(), &params().limit(2)).await?;
    let Some(next) = page.next else {
        return Err(Failure::new("a page with two of ten records has no next page"));
    };
    for cursor in [next, page.resume] {
        let foreign = [
            ("another series", RangeParams::<D>::all(&D::series_no(2))),
            ("another range", params().within(TimeRange::since(minute(0)))),
            ("another order", params().descending()),
        ];
        for (what, params) in foreign {
            let answer = D::page(context.store(), &params.after(cursor.clone())).await;
            expect_error(what, answer, ErrorKind::InvalidInput)?;
        }
    }
    let nonsense = "not a cursor".parse()?;
    expect_error(
        "an invalid cursor",
        D::page(context.store(), &params().after(nonsense)).await,
        ErrorKind::InvalidInput,
    )?;
    Ok(())
}

async fn cursor_of_another_dataset_is_rejected(context: &TestContext) -> CheckResult {
    const KIND: ErrorKind = ErrorKind::InvalidInput;
    let (store, name) = (context.store(), PriceTick::series_no(1));
    insert_ten::<PriceTick>(store).await?;
    insert_ten::<Bar>(store).await?;
    let ticks = RangeQuery::new(name.clone(), TimeRange::ALL);
    let of_ticks = store.ticks(&ticks).await?.resume;
    expect_error(
        "a cursor of ticks for quotes",
        store.quotes(&ticks.clone().after(of_ticks.clone())).await,
        KIND,
    )?;
    let bars = BarQuery::new(name.clone(), Interval::M1, TimeRange::ALL);
    let of_bars = store.bars(&bars).await?.resume;
    expect_error(
        "a cursor of bars for derived_bars",
        store.derived_bars(&bars.clone().after(of_bars.clone())).await,
        KIND,
    )?;
    let of_derived = store.derived_bars(&bars).await?.resume;
    expect_error(
        "a cursor of derived_bars for bars",
        store.bars(&bars.clone().after(of_derived)).await,
        KIND,
    )?;
    let longer = BarQuery::new(name, Interval::M3, TimeRange::ALL);
    expect_error("a cursor of another interval", store.bars(&longer.after(of_bars)).await, KIND)?;
    let latest: LatestQuery = LatestQuery::new(Selection::All);
    expect_error(
        "a cursor of ticks for latest_ticks",
        store.latest_ticks(&latest.clone().after(of_ticks)).await,
        KIND,
    )?;
    let of_latest = store.latest_ticks(&latest).await?.resume;
    let earlier = latest.clone().as_of(minute(5)).after(of_latest.clone());
    expect_error("a cursor of latest_ticks with another as_of", store.latest_ticks(&earlier).await, KIND)?;
    expect_error(
        "a cursor of latest_ticks for latest_quotes",
        store.latest_quotes(&latest.after(of_latest.clone())).await,
        KIND,
    )?;
    let list = InstrumentQuery::new(PriceTick::DATASET);
    expect_error(
        "a cursor of latest_ticks for instruments",
        store.instruments(&list.clone().after(of_latest)).await,
        KIND,
    )?;
    let of_list = store.instruments(&list).await?.resume;
    let other = InstrumentQuery::new(Bar::DATASET).after(of_list);
    expect_error("a cursor of instruments of another dataset", store.instruments(&other).await, KIND)?;
    Ok(())
}

async fn cursor_is_valid_for_another_limit<D: Sample>(context: &TestContext) -> CheckResult {
    let all = insert_ten::<D>(context.store()).await?;
    let page = D::page(context.store(), &params().limit(3)).await?;
    let Some(next) = page.next else {
        return Err(Failure::new("a page with three of ten records has no next page"));
    };
    let rest = D::page(context.store(), &params().limit(100).after(next)).await?;
    expect_same_rows("the rest", &rest.items, &all[3..])
}

async fn resume_returns_later_records<D: Sample>(context: &TestContext) -> CheckResult {
    let mut params = params::<D>();
    for round in 0..4u32 {
        let page = D::page(context.store(), &params).await?;
        expect_same_rows("the page without new records", &page.items, &[])?;
        let new: Vec<D> = (0..round).map(|n| D::at(1, i64::from(10 * round + n), n)).collect();
        D::insert(context.store(), &new).await?;
        let page = D::page(context.store(), &params.clone().after(page.resume)).await?;
        expect_same_rows("the records since the last page", &page.items, &new)?;
        params = params.after(page.resume);
    }
    Ok(())
}

async fn limit_must_be_1_to_max_page<D: Sample>(context: &TestContext) -> CheckResult {
    for limit in [0, MAX_PAGE + 1, usize::MAX] {
        let error = expect_error("a limit", PageRequest::first(limit), ErrorKind::InvalidInput)?;
        expect_same("the field", &error.context_value("field"), &Some("limit"))?;
    }
    for limit in [1, MAX_PAGE] {
        D::page(context.store(), &params().limit(limit)).await?;
    }
    expect_same("the default order", &params::<D>().order, &Order::Ascending)
}

async fn stream_equals_its_pages<D: Sample>(context: &TestContext) -> CheckResult {
    let mut all = insert_ten::<D>(context.store()).await?;
    let found: Vec<D> = D::stream(context.store(), params().limit(3)).try_collect().await?;
    expect_same_rows("ascending", &found, &all)?;
    all.reverse();
    let found: Vec<D> = D::stream(context.store(), params().descending().limit(3)).try_collect().await?;
    expect_same_rows("descending", &found, &all)
}
