//! Bars: bars derived from ticks at every call, and stored bars.

use futures::TryStreamExt;
use qi_core::datasets::resample;
use qi_core::store::{BarQuery, BarSource, PriceStore, PriceStoreExt};
use qi_core::{Bar, BarValues, ErrorKind, Instrument, Interval, PriceTick, Result, TimeRange, Timestamp};

use super::dataset_ops::{DatasetOps as _, micros, minute, range};
use super::expect::{CheckResult, Failure, expect_error, expect_same, expect_same_rows, expect_true};
use super::{Sample, TestContext, promises};
use crate::store::model::reference_bars;

promises! { "bars";
    once bar_matches_a_hand_computed_bar: "open, high, low, close, volumes and count of one bar",
    once tick_on_the_boundary_opens_the_next_bar: "a bucket excludes its end",
    once open_and_close_are_ordered_by_seq:
        "open and close follow (ts, seq), even after a correction of a tick with equal ts",
    once empty_bucket_has_no_bar: "a bucket without ticks has no bar",
    once partially_covered_bucket_is_computed_completely:
        "a bar that opens in the range is computed from its complete bucket",
    once weeks_begin_on_monday: "a week begins on Monday",
    once every_interval_works_at_the_limits_of_time:
        "every interval works from the first to the last valid time",
    once late_tick_changes_its_bar: "late and corrected ticks change derived bars immediately",
    once deleted_tick_changes_its_bar: "a deleted tick no longer counts in its bar",
    once repeated_batch_counts_once: "a repeated batch counts once",
    once unknown_volume_is_not_zero: "volume is the sum of the known quantities, None if none is known",
    once quote_volume_is_exact: "100.5 x 2.25 = 226.125",
    once halves_round_away_from_zero:
        "a quote volume is summed exactly and rounded once, half away from zero",
    once sum_of_1e20_is_out_of_range: "a sum of 1e20 fails with OutOfRange, one unit less does not",
    once overflow_fails_only_its_own_page: "a sum out of range fails only the page of its bar",
    once stored_bar_is_replaced_by_its_final_form: "a stored bar is replaced by its final form",
    once stored_bars_are_independent_of_ticks: "stored bars are independent of ticks",
    once pages_cross_gaps: "pages of derived bars equal the full result, in both directions, across gaps",
    once resume_stays_before_an_open_bar: "resume stays before a bar that the end of the range cuts",
    once descending_resume_stays_before_an_open_bar:
        "in descending order, resume stays before the open bar, which is the first bar",
    once stored_bars_resample_exactly: "stored bars resample into coarser bars exactly",
}

fn name() -> Instrument {
    PriceTick::series_no(0)
}

/// Returns a tick at a number of seconds after the base time.
fn tick(seconds: i64, seq: u64, price: &str, quantity: Option<&str>) -> Result<PriceTick> {
    let quantity = quantity.map(str::parse).transpose()?;
    Ok(PriceTick::new(name(), micros(seconds * 1_000_000), seq, price.parse()?)?.with_quantity(quantity))
}

async fn derived_bars_of(store: &dyn PriceStore, interval: Interval, range: TimeRange) -> Result<Vec<Bar>> {
    let query = BarQuery::new(name(), interval, range);
    store.bar_stream(query, BarSource::Derived).try_collect().await
}

/// Returns the bars of all ticks of the instrument. Fails if they differ from the reference bars.
async fn expect_reference_bars(
    store: &dyn PriceStore,
    interval: Interval,
) -> std::result::Result<Vec<Bar>, Failure> {
    let ticks = PriceTick::all(store, &name()).await?;
    let found = derived_bars_of(store, interval, TimeRange::ALL).await?;
    expect_same_rows(&format!("bars of {interval}"), &found, &reference_bars(&ticks, interval))?;
    Ok(found)
}

async fn bar_matches_a_hand_computed_bar(context: &TestContext) -> CheckResult {
    let ticks = [
        tick(0, 0, "100", Some("1"))?,
        tick(20, 0, "103.5", Some("0.5"))?,
        tick(40, 0, "99.25", Some("2"))?,
        tick(59, 0, "101", Some("0"))?,
    ];
    context.store().insert_ticks(&ticks).await?;
    let values = BarValues {
        open: "100".parse()?,
        high: "103.5".parse()?,
        low: "99.25".parse()?,
        close: "101".parse()?,
        volume: Some("3.5".parse()?),
        quote_volume: Some("350.25".parse()?),
        count: Some(4),
    };
    let expected = Bar::new(name(), Interval::M1, minute(0), values)?;
    expect_same_rows(
        "the bar",
        &derived_bars_of(context.store(), Interval::M1, TimeRange::ALL).await?,
        &[expected],
    )
}

async fn tick_on_the_boundary_opens_the_next_bar(context: &TestContext) -> CheckResult {
    let at = |n, price: &str| PriceTick::new(name(), micros(n), 0, price.parse()?);
    context.store().insert_ticks(&[at(0, "1")?, at(59_999_999, "2")?, at(60_000_000, "3")?]).await?;
    let bars = derived_bars_of(context.store(), Interval::M1, TimeRange::ALL).await?;
    let found: Vec<_> =
        bars.iter().map(|bar| (bar.open_time(), bar.close().to_string(), bar.values().count)).collect();
    let expected = [(minute(0), "2".to_owned(), Some(2)), (minute(1), "3".to_owned(), Some(1))];
    expect_same_rows("open time, close and count", &found, &expected)
}

async fn open_and_close_are_ordered_by_seq(context: &TestContext) -> CheckResult {
    let ends = |bars: &[Bar]| -> Vec<String> {
        bars.iter().flat_map(|bar| [bar.values().open.to_string(), bar.close().to_string()]).collect()
    };
    let seqs = [(9, "2"), (10, "3"), (2, "1"), (100, "4")];
    for (seq, price) in seqs {
        context.store().insert_ticks(&[tick(5, seq, price, None)?]).await?;
    }
    let bars = expect_reference_bars(context.store(), Interval::M1).await?;
    expect_same_rows("open and close", &ends(&bars), &["1".to_owned(), "4".to_owned()])?;
    // The corrected tick is written last, which must not make it the first or the last tick of the bar.
    context.store().insert_ticks(&[tick(5, 10, "50", None)?]).await?;
    let bars = expect_reference_bars(context.store(), Interval::M1).await?;
    expect_same_rows("after a correction of a middle tick", &ends(&bars), &["1".to_owned(), "4".to_owned()])?;
    context.store().insert_ticks(&[tick(5, 2, "60", None)?, tick(5, 100, "70", None)?]).await?;
    let bars = expect_reference_bars(context.store(), Interval::M1).await?;
    expect_same_rows(
        "after a correction of the first and last tick",
        &ends(&bars),
        &["60".to_owned(), "70".to_owned()],
    )
}

async fn empty_bucket_has_no_bar(context: &TestContext) -> CheckResult {
    context.store().insert_ticks(&[tick(0, 0, "1", Some("1"))?, tick(600, 0, "2", Some("1"))?]).await?;
    let bars = derived_bars_of(context.store(), Interval::M1, TimeRange::ALL).await?;
    let found: Vec<Timestamp> = bars.iter().map(Bar::open_time).collect();
    expect_same_rows("open times", &found, &[minute(0), minute(10)])?;
    let between = range(minute(1), minute(10));
    expect_same_rows(
        "the bars between the ticks",
        &derived_bars_of(context.store(), Interval::M1, between).await?,
        &[],
    )
}

async fn partially_covered_bucket_is_computed_completely(context: &TestContext) -> CheckResult {
    let ticks: Vec<_> =
        (0..40).map(|n| tick(n * 15, 0, &(n + 1).to_string(), Some("1"))).collect::<Result<_>>()?;
    context.store().insert_ticks(&ticks).await?;
    let all = reference_bars(&ticks, Interval::M1);
    for (what, start, end, expected) in [
        ("a start inside a bucket leaves that bar out", 30, 120, &all[1..2]),
        ("an end inside a bucket cuts nothing off its bar", 60, 121, &all[1..3]),
        ("a range within one bucket, without its open time", 61, 119, &all[..0]),
        ("a microsecond is enough for a whole bar", 60, 61, &all[1..2]),
    ] {
        let part = range(micros(start * 1_000_000), micros(end * 1_000_000));
        expect_same_rows(what, &derived_bars_of(context.store(), Interval::M1, part).await?, expected)?;
        let query = BarQuery::new(name(), Interval::M1, part).descending();
        let mut found = context.store().derived_bars(&query).await?.items;
        found.reverse();
        expect_same_rows(what, &found, expected)?;
    }
    Ok(())
}

async fn weeks_begin_on_monday(context: &TestContext) -> CheckResult {
    // The base is Monday, 2024-03-04.
    context
        .store()
        .insert_ticks(&[tick(-1, 0, "1", None)?, tick(0, 0, "2", None)?, tick(604_799, 0, "3", None)?])
        .await?;
    let bars = expect_reference_bars(context.store(), Interval::W1).await?;
    let found: Vec<String> = bars.iter().map(|bar| bar.open_time().to_string()).collect();
    let expected = ["2024-02-26T00:00:00Z".to_owned(), "2024-03-04T00:00:00Z".to_owned()];
    expect_same_rows("open times", &found, &expected)
}

async fn every_interval_works_at_the_limits_of_time(context: &TestContext) -> CheckResult {
    let mut ticks = Vec::new();
    for interval in Interval::ALL {
        let (length, last) = (interval.as_micros(), interval.floor(Timestamp::MAX_RECORD).as_micros());
        let first = Timestamp::MIN.as_micros();
        for at in [first, first + length - 1, first + length, last - 1, last, last + length / 3] {
            let at = at.min(Timestamp::MAX_RECORD.as_micros());
            let price = (at % 1_000 + 1).to_string().parse()?;
            let tick = PriceTick::new(name(), Timestamp::from_micros(at)?, 0, price)?;
            ticks.push(tick.with_quantity("0.5".parse::<qi_core::Quantity>()?));
        }
    }
    context.store().insert_ticks(&ticks).await?;
    for interval in Interval::ALL {
        let bars = expect_reference_bars(context.store(), *interval).await?;
        expect_true("bars at both limits", bars.len() >= 4)?;
    }
    Ok(())
}

async fn late_tick_changes_its_bar(context: &TestContext) -> CheckResult {
    let store = context.store();
    store.insert_ticks(&[tick(10, 0, "5", Some("1"))?, tick(70, 0, "6", Some("1"))?]).await?;
    expect_reference_bars(store, Interval::M1).await?;
    for (seconds, seq, price) in [(5, 0, "4"), (50, 0, "9"), (10, 0, "7"), (10, 1, "1"), (-30, 0, "3")] {
        store.insert_ticks(&[tick(seconds, seq, price, Some("2"))?]).await?;
        expect_reference_bars(store, Interval::M1).await?;
    }
    let found: Vec<_> =
        expect_reference_bars(store, Interval::M1).await?.iter().map(|bar| bar.values().count).collect();
    expect_same_rows("counts", &found, &[Some(1), Some(4), Some(1)])
}

async fn deleted_tick_changes_its_bar(context: &TestContext) -> CheckResult {
    let ticks = [tick(0, 0, "9", Some("1"))?, tick(10, 0, "5", Some("1"))?, tick(70, 0, "6", Some("1"))?];
    context.store().insert_ticks(&ticks).await?;
    let gone = PriceTick::deletion(Some(vec![name()]), range(micros(0), micros(1)));
    context.store().delete_range(&gone).await?;
    let expected = reference_bars(&ticks[1..], Interval::M1);
    expect_same_rows(
        "the bars",
        &derived_bars_of(context.store(), Interval::M1, TimeRange::ALL).await?,
        &expected,
    )
}

async fn repeated_batch_counts_once(context: &TestContext) -> CheckResult {
    let ticks: Vec<_> = (0..100).map(|n| tick(n, 0, "2", Some("1.5"))).collect::<Result<_>>()?;
    let expected = reference_bars(&ticks, Interval::M1);
    for _ in 0..3 {
        context.store().insert_ticks(&ticks).await?;
        expect_same_rows(
            "the bars",
            &derived_bars_of(context.store(), Interval::M1, TimeRange::ALL).await?,
            &expected,
        )?;
    }
    Ok(())
}

async fn unknown_volume_is_not_zero(context: &TestContext) -> CheckResult {
    let ticks = [
        tick(0, 0, "10", None)?,
        tick(1, 0, "20", None)?,
        tick(60, 0, "10", None)?,
        tick(61, 0, "20", Some("3"))?,
        tick(120, 0, "10", Some("0"))?,
    ];
    context.store().insert_ticks(&ticks).await?;
    let bars = expect_reference_bars(context.store(), Interval::M1).await?;
    let found: Vec<_> =
        bars.iter().map(|bar| (bar.values().volume, bar.values().quote_volume, bar.values().count)).collect();
    let zero = Some(qi_core::Quantity::ZERO);
    let expected =
        [(None, None, Some(2)), (Some("3".parse()?), Some("60".parse()?), Some(2)), (zero, zero, Some(1))];
    expect_same_rows("volume, quote volume and count", &found, &expected)
}

/// Returns the quote volume of the only bar of the given ticks.
async fn quote_volume(context: &TestContext, ticks: &[PriceTick]) -> std::result::Result<String, Failure> {
    context.store().purge_before(PriceTick::DATASET, Timestamp::MAX).await?;
    context.store().insert_ticks(ticks).await?;
    let bars = derived_bars_of(context.store(), Interval::M1, TimeRange::ALL).await?;
    let volume = bars.first().and_then(|bar| bar.values().quote_volume);
    Ok(volume.map_or_else(|| "none".to_owned(), |volume| volume.to_string()))
}

async fn quote_volume_is_exact(context: &TestContext) -> CheckResult {
    let one = [tick(0, 0, "100.5", Some("2.25"))?];
    expect_same("100.5 x 2.25", &quote_volume(context, &one).await?, &"226.125".to_owned())?;
    let digits = [tick(0, 0, "1234567.890123456789", Some("0.000000987654321"))?];
    let expected = "1.219326311248285321".to_owned();
    expect_same("a product with 27 decimal places", &quote_volume(context, &digits).await?, &expected)
}

async fn halves_round_away_from_zero(context: &TestContext) -> CheckResult {
    // Each product is half a unit of the last place. A sum is rounded once, not for each product.
    let half = |n| tick(n, 0, "0.5", Some("0.000000000000000001"));
    let unit = "0.000000000000000001".to_owned();
    expect_same("0.5 of a unit", &quote_volume(context, &[half(0)?]).await?, &unit)?;
    expect_same("1 unit", &quote_volume(context, &[half(0)?, half(1)?]).await?, &unit)?;
    let three = [half(0)?, half(1)?, half(2)?];
    expect_same("1.5 units", &quote_volume(context, &three).await?, &"0.000000000000000002".to_owned())?;
    let five: Vec<_> = (0..5).map(half).collect::<Result<_>>()?;
    expect_same("2.5 units", &quote_volume(context, &five).await?, &"0.000000000000000003".to_owned())?;
    let below = [tick(0, 0, "0.499999999999999999", Some("0.000000000000000001"))?];
    expect_same("slightly less than half a unit", &quote_volume(context, &below).await?, &"0".to_owned())
}

async fn sum_of_1e20_is_out_of_range(context: &TestContext) -> CheckResult {
    const KIND: ErrorKind = ErrorKind::OutOfRange;
    let store = context.store();
    let query = BarQuery::new(name(), Interval::M1, TimeRange::ALL);
    let stats = qi_core::store::StatsQuery::new(name(), TimeRange::ALL);
    let largest = "99999999999999999999.999999999999999999";
    let fits = [tick(0, 0, "1", Some(largest))?];
    expect_same("the largest sum", &quote_volume(context, &fits).await?, &largest.to_owned())?;
    store.stats(&stats).await?;
    let over = [
        ("a volume", vec![tick(1, 0, "1", Some("0.000000000000000001"))?]),
        ("a quote volume", vec![tick(0, 0, "10000000000", Some("10000000000"))?]),
        // 1e40 is 1e76 units of 10^-36. Eight of these overflow 256 bits.
        ("many products", (0..40).map(|n| tick(n, 0, largest, Some(largest))).collect::<Result<_>>()?),
    ];
    for (what, ticks) in over {
        store.insert_ticks(&ticks).await?;
        let error = expect_error(what, store.derived_bars(&query).await, KIND)?;
        expect_true(format_args!("the error of {what} is not retryable"), !error.retry().is_retryable())?;
        expect_error(what, store.stats(&stats).await, KIND)?;
        expect_error(what, store.change(&stats).await, KIND)?;
        store.purge_before(PriceTick::DATASET, Timestamp::MAX).await?;
    }
    Ok(())
}

async fn overflow_fails_only_its_own_page(context: &TestContext) -> CheckResult {
    let store = context.store();
    let largest = "99999999999999999999";
    let mut ticks = vec![tick(0, 0, "1", Some("1"))?, tick(120, 0, "1", Some("1"))?];
    // The quote volume exceeds 256 bits.
    for n in 0..8 {
        ticks.push(tick(60 + n, 0, largest, Some(largest))?);
    }
    store.insert_ticks(&ticks).await?;
    let ascending = BarQuery::new(name(), Interval::M1, TimeRange::ALL).with_limit(1)?;
    for (query, first) in [(ascending.clone(), minute(0)), (ascending.descending(), minute(2))] {
        let what = format!("{:?}", query.order);
        let page = store.derived_bars(&query).await?;
        let found: Vec<_> = page.items.iter().map(Bar::open_time).collect();
        expect_same_rows(&format!("{what}: the previous page"), &found, &[first])?;
        let Some(next) = page.next else {
            return Err(Failure::new(format_args!("{what}: the first page has no next page")));
        };
        let page = store.derived_bars(&query.after(next)).await;
        expect_error(&format!("{what}: the page of the bar"), page, ErrorKind::OutOfRange)?;
    }
    Ok(())
}

async fn stored_bar_is_replaced_by_its_final_form(context: &TestContext) -> CheckResult {
    for value in [1, 5, 9] {
        let bar = Bar::at(0, 0, value);
        context.store().insert_bars(std::slice::from_ref(&bar)).await?;
        expect_same_rows("the bar", &Bar::all(context.store(), &Bar::series_no(0)).await?, &[bar])?;
    }
    Ok(())
}

async fn stored_bars_are_independent_of_ticks(context: &TestContext) -> CheckResult {
    let (store, stored) = (context.store(), Bar::at(0, 0, 500));
    store.insert_bars(std::slice::from_ref(&stored)).await?;
    expect_same_rows(
        "the bars without ticks",
        &derived_bars_of(store, Interval::M1, TimeRange::ALL).await?,
        &[],
    )?;
    store.insert_ticks(&[tick(0, 0, "1", None)?, tick(60, 0, "2", None)?]).await?;
    expect_reference_bars(store, Interval::M1).await?;
    let found = Bar::all(store, &Bar::series_no(0)).await?;
    expect_same_rows("the stored bar", &found, std::slice::from_ref(&stored))?;
    store.purge_before(PriceTick::DATASET, Timestamp::MAX).await?;
    expect_same_rows("the stored bar", &Bar::all(store, &Bar::series_no(0)).await?, &[stored])
}

async fn pages_cross_gaps(context: &TestContext) -> CheckResult {
    // Bars at minutes 0, 1 and 2, a day later, and half a year later, with several ticks each.
    let minutes = [0, 1, 2, 1_440, 1_441, 260_000, 260_003];
    let ticks: Vec<_> = minutes
        .iter()
        .flat_map(|m| (0..3).map(move |n| tick(m * 60 + 7 * n, 0, &(m + n + 1).to_string(), Some("1"))))
        .collect::<Result<_>>()?;
    context.store().insert_ticks(&ticks).await?;
    let all = expect_reference_bars(context.store(), Interval::M1).await?;
    let reversed: Vec<Bar> = all.iter().rev().cloned().collect();
    for limit in [1, 2, 3, 7, 1_000] {
        let query = BarQuery::new(name(), Interval::M1, TimeRange::ALL).with_limit(limit)?;
        let found: Vec<Bar> =
            context.store().bar_stream(query.clone(), BarSource::Derived).try_collect().await?;
        expect_same_rows(&format!("pages of {limit}, ascending"), &found, &all)?;
        let found: Vec<Bar> =
            context.store().bar_stream(query.descending(), BarSource::Derived).try_collect().await?;
        expect_same_rows(&format!("pages of {limit}, descending"), &found, &reversed)?;
    }
    Ok(())
}

async fn resume_stays_before_an_open_bar(context: &TestContext) -> CheckResult {
    let store = context.store();
    let query = BarQuery::new(name(), Interval::M1, TimeRange::before(micros(90_000_000)));
    store.insert_ticks(&[tick(0, 0, "1", None)?, tick(60, 0, "2", None)?]).await?;
    let page = store.derived_bars(&query).await?;
    expect_same("bars", &page.items.len(), &2)?;
    store.insert_ticks(&[tick(80, 0, "3", None)?]).await?;
    let again = store.derived_bars(&query.clone().after(page.resume)).await?;
    let found: Vec<_> = again.items.iter().map(|bar| (bar.open_time(), bar.close().to_string())).collect();
    expect_same_rows("the open bar after another tick", &found, &[(minute(1), "3".to_owned())])
}

async fn descending_resume_stays_before_an_open_bar(context: &TestContext) -> CheckResult {
    let store = context.store();
    let query = BarQuery::new(name(), Interval::M1, TimeRange::before(micros(90_000_000))).descending();
    store.insert_ticks(&[tick(0, 0, "1", None)?, tick(60, 0, "2", None)?]).await?;
    let whole = store.derived_bars(&query).await?;
    expect_same("bars", &whole.items.len(), &2)?;
    let limited = query.clone().with_limit(1)?;
    let first = store.derived_bars(&limited).await?;
    expect_same("bars of the first page", &first.items.len(), &1)?;
    store.insert_ticks(&[tick(80, 0, "3", None)?]).await?;
    let expected = [(minute(1), "3".to_owned()), (minute(0), "1".to_owned())];
    for (what, query, expected) in [
        ("after the complete result", query.after(whole.resume), &expected[..]),
        ("after the first page", limited.after(first.resume), &expected[..1]),
    ] {
        let again = store.derived_bars(&query).await?;
        let found: Vec<_> =
            again.items.iter().map(|bar| (bar.open_time(), bar.close().to_string())).collect();
        expect_same_rows(what, &found, expected)?;
    }
    Ok(())
}

async fn stored_bars_resample_exactly(context: &TestContext) -> CheckResult {
    let store = context.store();
    let ticks: Vec<_> = (0..500)
        .map(|n| tick(n * 37, 0, &format!("{}.{n}", n % 13 + 1), Some(&format!("0.{}", n + 1))))
        .collect::<Result<_>>()?;
    store.insert_ticks(&ticks).await?;
    let fine = derived_bars_of(store, Interval::M1, TimeRange::ALL).await?;
    store.insert_bars(&fine).await?;
    let stored = Bar::all(store, &Bar::series_no(0)).await?;
    expect_same_rows("the stored bars", &stored, &fine)?;
    for coarser in [Interval::M5, Interval::H1, Interval::D1] {
        // Products of prices and quantities have at most 6 decimal places here, so no bar was rounded.
        let expected = derived_bars_of(store, coarser, TimeRange::ALL).await?;
        expect_same_rows(&format!("bars of {coarser}"), &resample(&stored, coarser)?, &expected)?;
    }
    Ok(())
}
