//! Latest: the newest record of each series, now and as of a time.

use qi_core::store::{LatestBarsQuery, PriceStoreExt};
use qi_core::{Bar, Interval, PriceTick, Selection, TimeRange, Timestamp};

use super::dataset_ops::{DatasetOps, LatestParams, micros, minute, range};
use super::expect::{CheckResult, expect_same, expect_same_rows, expect_true};
use super::{Sample, TestContext, promises};

promises! { "latest";
    every latest_returns_one_record_per_series:
        "the newest record of each series, in the order of the series",
    tied highest_seq_of_one_time_is_latest:
        "of records of one time, the record with the highest seq is the latest",
    every series_without_records_is_omitted:
        "a series without records is omitted; without any records the page is empty",
    every as_of_is_inclusive: "as_of includes records known at that time, and no later records",
    once as_of_uses_the_close_time_of_bars: "as_of uses the close time of a bar",
    once latest_bar_has_the_requested_interval: "the latest bar has the requested interval",
    every late_insert_is_not_the_latest: "a late record does not replace a newer one",
    every corrected_latest_record_is_returned: "a corrected latest record is returned immediately",
    every previous_record_is_latest_after_a_deletion: "after a deletion the previous record is the latest",
    every repeated_owner_is_returned_once: "an owner selected twice is returned once",
    bulk old_latest_record_is_found_among_newer_series:
        "a series whose last record is years old is found among newer series",
    every pages_are_ordered_by_series: "latest is paged in the order of the series",
    once single_record_methods_return_the_latest: "the methods for one series return its latest record",
}

async fn latest_returns_one_record_per_series<D: Sample>(context: &TestContext) -> CheckResult {
    let batch: Vec<D> = (0..300).map(|n| D::at((n * 7 % 50) as usize, i64::from(n), n)).collect();
    D::insert(context.store(), &batch).await?;
    let newest: Vec<D> = (0..50)
        .filter_map(|n| batch.iter().rfind(|record| record.series() == D::series_no(n)).cloned())
        .collect();
    expect_same("the number of series", &newest.len(), &50)?;
    expect_same_rows("all", &D::scan_latest(context.store(), LatestParams::all()).await?, &newest)?;
    let some = LatestParams::only(vec![D::series_no(30), D::series_no(3), D::series_no(49)]);
    let expected = [newest[3].clone(), newest[30].clone(), newest[49].clone()];
    expect_same_rows(
        "the latest records of three series",
        &D::scan_latest(context.store(), some).await?,
        &expected,
    )
}

async fn highest_seq_of_one_time_is_latest<D: Sample>(context: &TestContext) -> CheckResult {
    let series = D::series_no(0);
    let batch = [9, 100, 11, 2].map(|seq| D::make(&series, minute(0), seq, 1));
    D::insert(context.store(), &batch).await?;
    expect_same_rows(
        "the latest",
        &D::scan_latest(context.store(), LatestParams::all()).await?,
        &batch[1..2],
    )?;
    let params = LatestParams::only(vec![series]).known_at(minute(0));
    expect_same_rows(
        "the latest record as of that time",
        &D::scan_latest(context.store(), params).await?,
        &batch[1..2],
    )
}

async fn series_without_records_is_omitted<D: Sample>(context: &TestContext) -> CheckResult {
    expect_same_rows("in an empty store", &D::scan_latest(context.store(), LatestParams::all()).await?, &[])?;
    let record = D::at(5, 0, 1);
    D::insert(context.store(), std::slice::from_ref(&record)).await?;
    let params = LatestParams::only(vec![D::series_no(4), D::series_no(5), D::series_no(6)]);
    expect_same_rows(
        "the latest records of three series, two without records",
        &D::scan_latest(context.store(), params).await?,
        &[record],
    )?;
    let page = D::latest(context.store(), &LatestParams::only(vec![D::series_no(4)])).await?;
    expect_same_rows("the latest record of a series without records", &page.items, &[])?;
    expect_true("an empty page has no next page", page.next.is_none())
}

async fn as_of_is_inclusive<D: Sample>(context: &TestContext) -> CheckResult {
    let batch = [D::at(0, 0, 1), D::at(0, 10, 2), D::at(0, 20, 3)];
    D::insert(context.store(), &batch).await?;
    for (n, record) in batch.iter().enumerate() {
        let known = record.known_at();
        let before = Timestamp::from_micros(known.as_micros() - 1)?;
        for params in [LatestParams::<D>::all(), LatestParams::only(vec![D::series_no(0)])] {
            let found = D::scan_latest(context.store(), params.clone().known_at(known)).await?;
            expect_same_rows("as of that time", &found, &batch[n..=n])?;
            let found = D::scan_latest(context.store(), params.known_at(before)).await?;
            expect_same_rows("as of one microsecond before", &found, &batch[n.saturating_sub(1)..n])?;
        }
    }
    let found = D::scan_latest(context.store(), LatestParams::all().known_at(Timestamp::MIN)).await?;
    expect_same_rows("as of the first timestamp", &found, &[])?;
    let found = D::scan_latest(context.store(), LatestParams::all().known_at(Timestamp::MAX)).await?;
    expect_same_rows("as of the last timestamp", &found, &batch[2..])
}

async fn as_of_uses_the_close_time_of_bars(context: &TestContext) -> CheckResult {
    let bars = [Bar::at(0, 0, 1), Bar::at(0, 1, 2)];
    context.store().insert_bars(&bars).await?;
    let query = LatestBarsQuery::new(Interval::M1, Selection::All);
    for (when, expected) in [
        (minute(0), &bars[..0]),
        (micros(59_999_999), &bars[..0]),
        (minute(1), &bars[..1]),
        (micros(119_999_999), &bars[..1]),
        (minute(2), &bars[1..]),
    ] {
        let found = context.store().latest_bars(&query.clone().as_of(when)).await?.items;
        expect_same_rows(&format!("as of {when}"), &found, expected)?;
    }
    Ok(())
}

async fn latest_bar_has_the_requested_interval(context: &TestContext) -> CheckResult {
    let name = PriceTick::series_no(0);
    let series = |interval| (name.clone(), interval);
    let minutes = Bar::make(&series(Interval::M1), minute(0), 0, 1);
    let seconds = Bar::make(&series(Interval::S1), minute(90), 0, 2);
    let hours = Bar::make(&series(Interval::H1), minute(60), 0, 3);
    context.store().insert_bars(&[minutes.clone(), seconds.clone(), hours.clone()]).await?;
    for bar in [minutes, seconds, hours] {
        for selection in [Selection::All, Selection::one(name.clone())] {
            let query = LatestBarsQuery::new(bar.interval(), selection);
            expect_same_rows(
                "the latest",
                &context.store().latest_bars(&query).await?.items,
                std::slice::from_ref(&bar),
            )?;
        }
        let found = Bar::all(context.store(), &series(bar.interval())).await?;
        expect_same_rows("the series", &found, &[bar])?;
    }
    Ok(())
}

async fn late_insert_is_not_the_latest<D: Sample>(context: &TestContext) -> CheckResult {
    let newest = D::at(0, 100, 1);
    D::insert(context.store(), std::slice::from_ref(&newest)).await?;
    D::insert(context.store(), &[D::at(0, 50, 2), D::at(0, -900_000, 3)]).await?;
    expect_same_rows("the latest", &D::scan_latest(context.store(), LatestParams::all()).await?, &[newest])?;
    let found = D::scan_latest(context.store(), LatestParams::all().known_at(minute(99))).await?;
    expect_same_rows("as of an earlier time", &found, &[D::at(0, 50, 2)])
}

async fn corrected_latest_record_is_returned<D: Sample>(context: &TestContext) -> CheckResult {
    for value in [1, 9, 4] {
        let batch = [D::at(0, 0, 1), D::at(0, 5, value)];
        D::insert(context.store(), &batch).await?;
        expect_same_rows(
            "the latest",
            &D::scan_latest(context.store(), LatestParams::all()).await?,
            &batch[1..],
        )?;
    }
    Ok(())
}

async fn previous_record_is_latest_after_a_deletion<D: Sample>(context: &TestContext) -> CheckResult {
    let batch = [D::at(0, 0, 1), D::at(0, 5, 2), D::at(1, 3, 3)];
    D::insert(context.store(), &batch).await?;
    let gone = D::deletion(Some(vec![D::series_no(0)]), range(minute(5), minute(6)));
    context.store().delete_range(&gone).await?;
    let found = D::scan_latest(context.store(), LatestParams::all()).await?;
    expect_same_rows("one deleted", &found, &[batch[0].clone(), batch[2].clone()])?;
    context.store().delete_range(&D::deletion(Some(vec![D::series_no(0)]), TimeRange::ALL)).await?;
    expect_same_rows("all deleted", &D::scan_latest(context.store(), LatestParams::all()).await?, &batch[2..])
}

async fn repeated_owner_is_returned_once<D: Sample>(context: &TestContext) -> CheckResult {
    let record = D::at(3, 0, 1);
    D::insert(context.store(), std::slice::from_ref(&record)).await?;
    let params = LatestParams::only(vec![D::series_no(3), D::series_no(3), D::series_no(3)]);
    expect_same_rows("the latest", &D::scan_latest(context.store(), params).await?, &[record])
}

async fn old_latest_record_is_found_among_newer_series<D: Sample>(context: &TestContext) -> CheckResult {
    const WEEK: i64 = 7 * 24 * 60;
    let old = D::at(0, 0, 1);
    let mut batch = vec![old.clone()];
    batch.extend((1..200).map(|n| D::at(1 + n as usize % 3, i64::from(n) * WEEK, n)));
    D::insert(context.store(), &batch).await?;
    let params = LatestParams::only(vec![D::series_no(0)]);
    expect_same_rows(
        "the latest record of the selected series",
        &D::scan_latest(context.store(), params).await?,
        std::slice::from_ref(&old),
    )?;
    let found = D::scan_latest(context.store(), LatestParams::all()).await?;
    expect_same_rows("the first latest record", &found[..1.min(found.len())], &[old])?;
    expect_same("the number of series", &found.len(), &4)
}

async fn pages_are_ordered_by_series<D: Sample>(context: &TestContext) -> CheckResult {
    let batch: Vec<D> = (0..10).map(|n| D::at(n as usize, i64::from(20 - n), n)).collect();
    D::insert(context.store(), &batch).await?;
    let named = || LatestParams::<D>::only((0..10).map(D::series_no).collect());
    for limit in [1, 3, 5, 10, 100] {
        for params in [LatestParams::all(), named()] {
            let found = D::scan_latest(context.store(), params.limit(limit)).await?;
            expect_same_rows(&format!("pages of {limit}"), &found, &batch)?;
        }
    }
    let whole = D::latest(context.store(), &LatestParams::all().limit(10)).await?;
    expect_true("the page with the last series has no next page", whole.next.is_none())
}

async fn single_record_methods_return_the_latest(context: &TestContext) -> CheckResult {
    use qi_core::{MarketSnapshot, Quote};
    let (store, name) = (context.store(), PriceTick::series_no(0));
    expect_same("no tick", &store.latest_tick(&name).await?, &None)?;
    let (tick, quote) = (PriceTick::at(0, 0, 1), Quote::at(0, 0, 2));
    let (bar, snapshot) = (Bar::at(0, 0, 3), MarketSnapshot::at(0, 0, 4));
    store.insert_tick(&tick).await?;
    store.insert_quote(&quote).await?;
    store.insert_bar(&bar).await?;
    store.insert_snapshot(&snapshot).await?;
    expect_same("the tick", &store.latest_tick(&name).await?, &Some(tick))?;
    expect_same("the quote", &store.latest_quote(&name).await?, &Some(quote))?;
    expect_same("the bar", &store.latest_bar(&name, Interval::M1).await?, &Some(bar))?;
    expect_same("no bar of five minutes", &store.latest_bar(&name, Interval::M5).await?, &None)?;
    expect_same("the snapshot", &store.latest_snapshot(&MarketSnapshot::series_no(0)).await?, &Some(snapshot))
}
