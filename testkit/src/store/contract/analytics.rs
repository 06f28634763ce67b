//! Analytics: values that the library computes from any store, checked against hand-computed results.

use futures::TryStreamExt;
use qi_core::store::{
    BarQuery, BarSource, InstrumentQuery, MoversQuery, PriceStore, PriceStoreExt, RangeStats, StatsQuery,
};
use qi_core::{Instrument, Interval, PriceTick, Result, Selection, TimeRange};

use super::dataset_ops::{DatasetOps as _, instrument, micros, minute, range};
use super::expect::{CheckResult, expect_same, expect_same_rows, expect_true};
use super::{Sample, TestContext, promises};

promises! { "analytics";
    once stats_equal_a_fold_over_the_ticks: "the statistics of a range equal a fold over its ticks",
    once stats_without_ticks_are_none: "a range without ticks has no statistics and is not an error",
    once vwap_matches_a_hand_computed_value: "the volume-weighted average price, rounded once",
    once change_matches_a_hand_computed_value: "the last price divided by the first, minus 1",
    once volatility_matches_a_hand_computed_value: "the sample standard deviation of the log returns",
    once sma_matches_hand_computed_values: "the mean of the last close prices, rounded once",
    once gaps_match_hand_computed_ranges: "the ranges without bars",
    once gaps_end_with_the_last_open_time: "a range that ends inside a bucket expects the bar of that bucket",
    once filled_bars_match_hand_computed_bars:
        "flat bars between bars, none before the first or after the last bar",
    once movers_match_a_hand_computed_ranking: "the instruments with the largest gains and losses",
    once equal_movers_are_ordered_by_instrument: "equal changes are ordered by instrument",
    once chunked_insert_writes_all_records: "a long batch is split and written completely",
}

fn name() -> Instrument {
    PriceTick::series_no(0)
}

fn tick(of: &Instrument, seconds: i64, price: &str, quantity: Option<&str>) -> Result<PriceTick> {
    let quantity = quantity.map(str::parse).transpose()?;
    Ok(PriceTick::new(of.clone(), micros(seconds * 1_000_000), 0, price.parse()?)?.with_quantity(quantity))
}

/// Inserts one tick per minute with the given prices and a quantity of 1.
async fn insert_ticks_by_minute(store: &dyn PriceStore, of: &Instrument, prices: &[&str]) -> Result<()> {
    let ticks: Vec<PriceTick> =
        (0..).zip(prices).map(|(n, price)| tick(of, 60 * n, price, Some("1"))).collect::<Result<_>>()?;
    store.insert_ticks(&ticks).await.map(drop)
}

async fn stats_equal_a_fold_over_the_ticks(context: &TestContext) -> CheckResult {
    let ticks: Vec<PriceTick> = (0..300)
        .map(|n| {
            let quantity = (n % 3 != 0).then(|| format!("0.00000000000000{}", n + 1));
            tick(&name(), n, &format!("{}.000000000000007", n * 31 % 97 + 1), quantity.as_deref())
        })
        .collect::<Result<_>>()?;
    context.store().insert_ticks(&ticks).await?;
    for (from, to) in [(0, 300), (10, 20), (0, 1), (299, 300), (4, 4)] {
        let part = range(micros(from * 1_000_000), micros(to * 1_000_000));
        let found = context.store().stats(&StatsQuery::new(name(), part)).await?;
        let within = ticks.iter().filter(|tick| part.contains(tick.ts()));
        let expected = RangeStats::of(within)?;
        expect_same(&format!("seconds {from} to {to}"), &found, &expected)?;
    }
    let stats = context.store().stats(&StatsQuery::new(name(), TimeRange::ALL)).await?;
    let stats = stats.ok_or_else(|| super::Failure::new("300 ticks have no statistics"))?;
    expect_same("the count", &stats.count(), &300)?;
    expect_same("the first", &stats.first().ts, &micros(0))?;
    expect_same("the last", &stats.last().ts, &micros(299_000_000))
}

async fn stats_without_ticks_are_none(context: &TestContext) -> CheckResult {
    let query = StatsQuery::new(name(), range(minute(5), minute(9)));
    for round in ["in an empty store", "with other series", "with records outside the range"] {
        expect_same(round, &context.store().stats(&query).await?, &None)?;
        expect_same(round, &context.store().vwap(&query).await?, &None)?;
        expect_same(round, &context.store().change(&query).await?, &None)?;
        let other = if round == "in an empty store" { PriceTick::series_no(1) } else { name() };
        context.store().insert_ticks(&[tick(&other, 9 * 60, "1", None)?]).await?;
    }
    Ok(())
}

async fn vwap_matches_a_hand_computed_value(context: &TestContext) -> CheckResult {
    let (store, query) = (context.store(), StatsQuery::new(name(), TimeRange::ALL));
    store.insert_ticks(&[tick(&name(), 0, "10", None)?]).await?;
    expect_same("no known quantity", &store.vwap(&query).await?, &None)?;
    store.insert_ticks(&[tick(&name(), 1, "50", Some("0"))?]).await?;
    expect_same("a volume of zero", &store.vwap(&query).await?, &None)?;
    store.insert_ticks(&[tick(&name(), 2, "10", Some("1"))?, tick(&name(), 3, "20", Some("2"))?]).await?;
    // 50 / 3, rounded up at the 18th decimal place.
    expect_same("50 / 3", &store.vwap(&query).await?, &Some("16.666666666666666667".parse()?))
}

async fn change_matches_a_hand_computed_value(context: &TestContext) -> CheckResult {
    insert_ticks_by_minute(context.store(), &name(), &["80", "200", "60", "100"]).await?;
    let query = StatsQuery::new(name(), TimeRange::ALL);
    let ratio = context.store().change(&query).await?.map(|change| change.ratio);
    expect_same("from 80 to 100", &ratio, &Some("0.25".parse()?))?;
    let down = StatsQuery::new(name(), range(minute(1), minute(3)));
    let ratio = context.store().change(&down).await?.map(|change| change.ratio);
    expect_same("from 200 to 60", &ratio, &Some("-0.7".parse()?))
}

fn bars() -> BarQuery {
    BarQuery::new(name(), Interval::M1, TimeRange::ALL)
}

async fn volatility_matches_a_hand_computed_value(context: &TestContext) -> CheckResult {
    let store = context.store();
    insert_ticks_by_minute(store, &name(), &["100", "110"]).await?;
    let found = store.volatility(bars(), BarSource::Derived, None).await?;
    expect_same("the volatility of two bars", &found, &None)?;
    insert_ticks_by_minute(store, &name(), &["100", "110", "99"]).await?;
    // The returns are ln 1.1 and ln 0.9. The sample deviation of two values is their difference divided by the
    // square root of two.
    let expected = (1.1f64.ln() - 0.9f64.ln()) / 2f64.sqrt();
    let near = |found: Option<f64>, want: f64| found.is_some_and(|found| (found - want).abs() < 1e-12);
    let found = store.volatility(bars(), BarSource::Derived, None).await?;
    expect_true(format_args!("the volatility {expected}, found {found:?}"), near(found, expected))?;
    let found = store.volatility(bars(), BarSource::Derived, Some(365.0)).await?;
    expect_true(
        format_args!("the annualized volatility, found {found:?}"),
        near(found, expected * 365f64.sqrt()),
    )
}

async fn sma_matches_hand_computed_values(context: &TestContext) -> CheckResult {
    insert_ticks_by_minute(context.store(), &name(), &["1", "2", "4", "8"]).await?;
    let found: Vec<_> =
        context.store().sma(bars().with_limit(1)?, BarSource::Derived, 3)?.try_collect().await?;
    let expected =
        [(minute(2), "2.333333333333333333".parse()?), (minute(3), "4.666666666666666667".parse()?)];
    expect_same_rows("means of three", &found, &expected)
}

async fn gaps_match_hand_computed_ranges(context: &TestContext) -> CheckResult {
    let ticks = [2, 3, 6].map(|m| tick(&name(), m * 60 + 30, "1", None));
    context.store().insert_ticks(&ticks.into_iter().collect::<Result<Vec<_>>>()?).await?;
    let query = BarQuery::new(name(), Interval::M1, range(minute(0), minute(9))).with_limit(1)?;
    let found: Vec<TimeRange> = context.store().gaps(query, BarSource::Derived)?.try_collect().await?;
    let expected = [(0, 2), (4, 6), (7, 9)].map(|(from, to)| range(minute(from), minute(to)));
    expect_same_rows("the gaps", &found, &expected)
}

async fn gaps_end_with_the_last_open_time(context: &TestContext) -> CheckResult {
    let ticks = [2, 3, 6].map(|m| tick(&name(), m * 60 + 30, "1", None));
    context.store().insert_ticks(&ticks.into_iter().collect::<Result<Vec<_>>>()?).await?;
    // The range in seconds, and the gaps in minutes. Both ends are rounded up to the next open time.
    let ranges = [
        (0, 570, vec![(0, 2), (4, 6), (7, 10)]),
        (30, 421, vec![(1, 2), (4, 6), (7, 8)]),
        (0, 420, vec![(0, 2), (4, 6)]),
        (0, 370, vec![(0, 2), (4, 6)]),
    ];
    for (from, to, expected) in ranges {
        let part = range(micros(from * 1_000_000), micros(to * 1_000_000));
        let query = BarQuery::new(name(), Interval::M1, part);
        let found: Vec<TimeRange> = context.store().gaps(query, BarSource::Derived)?.try_collect().await?;
        let expected: Vec<_> =
            expected.into_iter().map(|(from, to)| range(minute(from), minute(to))).collect();
        expect_same_rows(&format!("the gaps of seconds {from} to {to}"), &found, &expected)?;
    }
    Ok(())
}

async fn filled_bars_match_hand_computed_bars(context: &TestContext) -> CheckResult {
    let ticks = [tick(&name(), 60, "5", Some("1"))?, tick(&name(), 240, "9", Some("1"))?];
    context.store().insert_ticks(&ticks).await?;
    let found: Vec<_> = context.store().bars_filled(bars(), BarSource::Derived)?.try_collect().await?;
    let found: Vec<_> =
        found.iter().map(|b| (b.bar.open_time(), b.bar.close().to_string(), b.filled)).collect();
    let expected = [(1, "5", false), (2, "5", true), (3, "5", true), (4, "9", false)]
        .map(|(m, close, filled)| (minute(m), close.to_owned(), filled));
    expect_same_rows("open time, close, filled", &found, &expected)
}

async fn movers_match_a_hand_computed_ranking(context: &TestContext) -> CheckResult {
    let store = context.store();
    let names = ["a:UP1", "a:UP50", "a:DOWN9", "a:FLAT", "a:UP2", "a:DOWN50"].map(instrument);
    let prices =
        [["100", "101"], ["100", "150"], ["100", "91"], ["100", "100"], ["100", "102"], ["100", "50"]];
    for (name, prices) in names.iter().zip(prices) {
        insert_ticks_by_minute(store, name, &prices).await?;
    }
    let query = MoversQuery::new(Selection::All, TimeRange::ALL, 2)?;
    let movers = store.movers(&query).await?;
    let names_of = |side: &[(Instrument, _)]| -> Vec<String> {
        side.iter().map(|(name, _): &(Instrument, qi_core::store::Change)| name.to_string()).collect()
    };
    expect_same_rows("gainers", &names_of(&movers.gainers), &["a:UP50".to_owned(), "a:UP2".to_owned()])?;
    expect_same_rows("losers", &names_of(&movers.losers), &["a:DOWN50".to_owned(), "a:DOWN9".to_owned()])
}

async fn equal_movers_are_ordered_by_instrument(context: &TestContext) -> CheckResult {
    let rising = ["a:C", "b:A", "a:A", "a:D", "a:B"];
    let falling = ["c:C", "d:A", "c:A", "c:D", "c:B"];
    for (names, prices) in [(rising, ["2", "3"]), (falling, ["4", "2"])] {
        for name in names {
            insert_ticks_by_minute(context.store(), &instrument(name), &prices).await?;
        }
    }
    let all = rising.into_iter().chain(falling).map(instrument);
    for selection in [Selection::All, Selection::only(all)?] {
        for limit in [2, 3, 10] {
            let query = MoversQuery::new(selection.clone(), TimeRange::ALL, limit)?;
            let movers = context.store().movers(&query).await?;
            for (side, found, mut names) in
                [("gainers", movers.gainers, rising), ("losers", movers.losers, falling)]
            {
                names.sort_unstable();
                let found: Vec<String> = found.iter().map(|(name, _)| name.to_string()).collect();
                let expected: Vec<String> = names.iter().take(limit).map(ToString::to_string).collect();
                expect_same_rows(&format!("{limit} {side}"), &found, &expected)?;
            }
        }
    }
    Ok(())
}

async fn chunked_insert_writes_all_records(context: &TestContext) -> CheckResult {
    let (store, series) = (context.store(), name());
    let ticks: Vec<PriceTick> = (0..105).map(|n| PriceTick::at(0, n, 1)).collect();
    let report = store.insert_ticks_chunked(&ticks, 10).await?;
    expect_same("the number of received records", &report.received, &105)?;
    expect_same_rows("the series", &PriceTick::all(store, &series).await?, &ticks)?;
    for chunk in [0, store.info().max_batch + 1] {
        expect_true(
            "a chunk size out of range is rejected",
            store.insert_ticks_chunked(&ticks, chunk).await.is_err(),
        )?;
    }
    let list = store.instruments(&InstrumentQuery::new(PriceTick::DATASET)).await?;
    expect_same("instruments", &list.items.len(), &1)
}
