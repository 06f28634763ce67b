//! Writes: by key, in batches, concurrent, interrupted and repeated.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use qi_core::record::SortKey;
use qi_core::store::{InsertReport, PriceStoreExt};
use qi_core::{Bar, ErrorKind, Interval, MarketSnapshot, PriceTick, Quote};

use super::dataset_ops::{DatasetOps as _, instrument, minute};
use super::expect::{Failure, expect_error, expect_same, expect_same_rows, expect_true};
use super::{CheckResult, Sample, TestContext, promises};

promises! { "write";
    every empty_batch_writes_nothing: "an empty batch succeeds and writes nothing",
    every one_record_is_stored: "one record is written and read back",
    bulk large_batch_is_stored: "a batch of 25,000 ticks (2,500 other records) is stored completely",
    every repeated_batch_changes_nothing: "a repeated batch changes nothing",
    every last_write_wins: "a write that starts after an acknowledged write replaces all its fields",
    every rewriting_an_earlier_value_takes_effect:
        "after writes of A, B and A, the store returns A: no deduplication by content",
    every last_duplicate_in_a_batch_wins:
        "within a batch the last record of a key wins, and duplicates are counted",
    tied seq_distinguishes_records_of_one_time: "seq distinguishes records of one time",
    every same_time_in_two_series_is_two_records: "the same time in two series is two records",
    once same_symbol_on_two_exchanges_is_two_instruments:
        "the same symbol on two exchanges is two instruments",
    bulk batch_may_span_150_months: "one batch may span 150 months",
    bulk batch_may_span_4000_days: "4,000 daily records of one series in one batch",
    every unsorted_batch_is_read_in_order: "a batch may have any order",
    every late_record_is_read_in_order: "a record older than all others is read in order",
    every concurrent_writers_of_one_key_leave_one_value:
        "concurrent writers of one key leave exactly one of the values, never a mixture",
    every concurrent_writers_of_separate_keys_lose_nothing:
        "concurrent writers of separate keys lose nothing",
    every writers_in_opposite_orders_do_not_deadlock:
        "writers of the same keys in opposite orders do not deadlock",
    every acknowledged_write_is_readable: "the next read returns an acknowledged write",
    every retry_completes_a_partial_write: "a retry after a partial write completes the batch",
    bulk dropped_insert_leaves_complete_records:
        "an insert dropped at any point leaves only complete records",
    bulk batch_above_max_batch_is_rejected:
        "a batch above max_batch fails with InvalidInput and writes nothing",
}

async fn empty_batch_writes_nothing<D: Sample>(context: &TestContext) -> CheckResult {
    let report = D::insert(context.store(), &[]).await?;
    expect_same("the report", &report, &InsertReport::new(0, 0))?;
    expect_same_rows("the series", &D::all(context.store(), &D::series_no(0)).await?, &[])
}

async fn one_record_is_stored<D: Sample>(context: &TestContext) -> CheckResult {
    let record = D::at(0, 0, 7);
    let report = D::insert(context.store(), std::slice::from_ref(&record)).await?;
    expect_same("the report", &report, &InsertReport::new(1, 0))?;
    expect_same_rows("the series", &D::all(context.store(), &record.series()).await?, &[record])
}

async fn large_batch_is_stored<D: Sample>(context: &TestContext) -> CheckResult {
    let series = [D::series_no(0), D::series_no(1)];
    let count = if D::DATASET == PriceTick::DATASET { 25_000 } else { 2_500 };
    let batch: Vec<D> =
        (0..count).map(|n| D::make(&series[n as usize % 2], minute(n.into()), 0, n)).collect();
    expect_same(
        "the report",
        &D::insert(context.store(), &batch).await?,
        &InsertReport::new(batch.len(), 0),
    )?;
    for (n, series) in series.iter().enumerate() {
        let own: Vec<D> = batch.iter().skip(n).step_by(2).cloned().collect();
        expect_same_rows("the series", &D::all(context.store(), series).await?, &own)?;
    }
    Ok(())
}

/// Returns `count` records of one series, one minute apart.
fn minute_records<D: Sample>(count: u32) -> Vec<D> {
    (0..count).map(|n| D::at(0, n.into(), n)).collect()
}

async fn repeated_batch_changes_nothing<D: Sample>(context: &TestContext) -> CheckResult {
    let batch = minute_records::<D>(500);
    for _ in 0..3 {
        let report = D::insert(context.store(), &batch).await?;
        expect_same("the report", &report, &InsertReport::new(500, 0))?;
        expect_same_rows("the series", &D::all(context.store(), &D::series_no(0)).await?, &batch)?;
    }
    Ok(())
}

async fn last_write_wins<D: Sample>(context: &TestContext) -> CheckResult {
    for value in [3, 8, 5] {
        let batch = [D::at(0, 0, 1), D::at(0, 1, value), D::at(0, 2, 1)];
        D::insert(context.store(), &batch).await?;
        expect_same_rows(
            "the series after each write",
            &D::all(context.store(), &D::series_no(0)).await?,
            &batch,
        )?;
    }
    Ok(())
}

async fn rewriting_an_earlier_value_takes_effect<D: Sample>(context: &TestContext) -> CheckResult {
    let (a, b) = (D::at(0, 0, 1), D::at(0, 0, 2));
    for record in [&a, &b, &a] {
        D::insert(context.store(), std::slice::from_ref(record)).await?;
    }
    expect_same_rows("the series", &D::all(context.store(), &a.series()).await?, &[a])
}

async fn last_duplicate_in_a_batch_wins<D: Sample>(context: &TestContext) -> CheckResult {
    let other = D::at(0, 1, 1);
    let batch = [D::at(0, 0, 1), other.clone(), D::at(0, 0, 2), D::at(0, 0, 3)];
    for round in ["new keys", "known keys"] {
        let report = D::insert(context.store(), &batch).await?;
        expect_same(round, &report, &InsertReport::new(4, 2))?;
        let expected = [D::at(0, 0, 3), other.clone()];
        expect_same_rows(round, &D::all(context.store(), &other.series()).await?, &expected)?;
    }
    Ok(())
}

async fn seq_distinguishes_records_of_one_time<D: Sample>(context: &TestContext) -> CheckResult {
    let series = D::series_no(0);
    let last = qi_core::domain::MAX_COUNTER;
    let batch = [0, 1, 2, 10, last].map(|seq| D::make(&series, minute(0), seq, 4));
    D::insert(context.store(), &batch).await?;
    expect_same_rows("the series", &D::all(context.store(), &series).await?, &batch)
}

async fn same_time_in_two_series_is_two_records<D: Sample>(context: &TestContext) -> CheckResult {
    let batch = [D::at(0, 0, 1), D::at(1, 0, 2)];
    D::insert(context.store(), &batch).await?;
    for record in batch {
        expect_same_rows("the series", &D::all(context.store(), &record.series()).await?, &[record])?;
    }
    Ok(())
}

async fn same_symbol_on_two_exchanges_is_two_instruments(context: &TestContext) -> CheckResult {
    let names = ["alpha:BTC-USDT", "beta:BTC-USDT", "alpha:BTC:USDT"].map(instrument);
    for (value, name) in (1..).zip(&names) {
        context.store().insert_ticks(&[PriceTick::make(name, minute(0), 0, value)]).await?;
        context.store().insert_quotes(&[Quote::make(name, minute(0), 0, value)]).await?;
        context.store().insert_bars(&[Bar::make(&(name.clone(), Interval::M1), minute(0), 0, value)]).await?;
    }
    for (value, name) in (1..).zip(&names) {
        let tick = PriceTick::make(name, minute(0), 0, value);
        expect_same_rows("ticks", &PriceTick::all(context.store(), name).await?, &[tick])?;
        let quote = Quote::make(name, minute(0), 0, value);
        expect_same_rows("quotes", &Quote::all(context.store(), name).await?, &[quote])?;
        let series = (name.clone(), Interval::M1);
        let bar = Bar::make(&series, minute(0), 0, value);
        expect_same_rows("bars", &Bar::all(context.store(), &series).await?, &[bar])?;
    }
    let scopes = ["global", "asset:ALPHA", "exchange:alpha"].map(|s| s.parse().expect("a scope"));
    let snapshots: Vec<_> =
        (1..).zip(&scopes).map(|(value, scope)| MarketSnapshot::make(scope, minute(0), 0, value)).collect();
    context.store().insert_snapshots(&snapshots).await?;
    for (scope, snapshot) in scopes.iter().zip(snapshots) {
        expect_same_rows("snapshots", &MarketSnapshot::all(context.store(), scope).await?, &[snapshot])?;
    }
    Ok(())
}

const MINUTES_OF_A_DAY: i64 = 24 * 60;

async fn batch_may_span_150_months<D: Sample>(context: &TestContext) -> CheckResult {
    let batch: Vec<D> = (0..150).map(|n| D::at(0, i64::from(n) * 31 * MINUTES_OF_A_DAY, n)).collect();
    D::insert(context.store(), &batch).await?;
    expect_same_rows("the series", &D::all(context.store(), &D::series_no(0)).await?, &batch)
}

async fn batch_may_span_4000_days<D: Sample>(context: &TestContext) -> CheckResult {
    let batch: Vec<D> = (0..4_000).map(|n| D::at(0, i64::from(n) * MINUTES_OF_A_DAY, n)).collect();
    D::insert(context.store(), &batch).await?;
    expect_same_rows("the series", &D::all(context.store(), &D::series_no(0)).await?, &batch)
}

async fn unsorted_batch_is_read_in_order<D: Sample>(context: &TestContext) -> CheckResult {
    let sorted = minute_records::<D>(1_000);
    // 387 and 1,000 have no common factor, so every index occurs once.
    let batch: Vec<D> = (0..1_000).map(|n| sorted[n * 387 % 1_000].clone()).collect();
    D::insert(context.store(), &batch).await?;
    expect_same_rows("the series", &D::all(context.store(), &D::series_no(0)).await?, &sorted)
}

async fn late_record_is_read_in_order<D: Sample>(context: &TestContext) -> CheckResult {
    let all = [D::at(0, -900_000, 1), D::at(0, 0, 2), D::at(0, 5, 3), D::at(0, 9, 4)];
    for n in [1, 3, 0, 2] {
        D::insert(context.store(), std::slice::from_ref(&all[n])).await?;
    }
    expect_same_rows("the series", &D::all(context.store(), &D::series_no(0)).await?, &all)
}

async fn concurrent_writers_of_one_key_leave_one_value<D: Sample>(context: &TestContext) -> CheckResult {
    for round in 0..10 {
        let value = move |writer: u32| 10 * writer + round;
        let batch = move |writer: u32| -> Vec<D> { (0..8).map(|n| D::at(0, n, value(writer))).collect() };
        let begin = Arc::new(tokio::sync::Barrier::new(4));
        let writers = (0..4).map(|writer| {
            let (store, begin) = (context.shared_store(), begin.clone());
            tokio::spawn(async move {
                begin.wait().await;
                D::insert(&*store, &batch(writer)).await
            })
        });
        for ended in join_all(writers).await {
            ended.expect("an insert does not panic")?;
        }
        let found = D::all(context.store(), &D::series_no(0)).await?;
        expect_same("the number of records", &found.len(), &8)?;
        for (minute, record) in (0..).zip(found) {
            let written = (0..4).any(|writer| D::at(0, minute, value(writer)) == record);
            expect_true(format_args!("one of the four values, complete; found {record:?}"), written)?;
        }
    }
    Ok(())
}

async fn concurrent_writers_of_separate_keys_lose_nothing<D: Sample>(context: &TestContext) -> CheckResult {
    let batch = |writer: i64| -> Vec<D> {
        (0..200).map(|n| D::at(usize::from(n % 2 == 0), 4 * n + writer, 1)).collect()
    };
    let writers = (0..4).map(|writer| {
        let (store, batch) = (context.shared_store(), batch(writer));
        tokio::spawn(async move {
            for part in batch.chunks(20) {
                D::insert(&*store, part).await?;
            }
            Ok::<_, qi_core::Error>(())
        })
    });
    for ended in join_all(writers).await {
        ended.expect("an insert does not panic")?;
    }
    let mut expected: Vec<D> = (0..4).flat_map(batch).collect();
    expected.sort_by_key(|record| (record.series(), record.sort_key()));
    let mut found = D::all(context.store(), &D::series_no(0)).await?;
    found.extend(D::all(context.store(), &D::series_no(1)).await?);
    expect_same_rows("both series", &found, &expected)
}

async fn writers_in_opposite_orders_do_not_deadlock<D: Sample>(context: &TestContext) -> CheckResult {
    let batch = minute_records::<D>(300);
    let mut reversed = batch.clone();
    reversed.reverse();
    let writers = [batch.clone(), reversed.clone(), batch.clone(), reversed].map(|batch| {
        let store = context.shared_store();
        tokio::spawn(async move {
            for _ in 0..5 {
                D::insert(&*store, &batch).await?;
            }
            Ok::<_, qi_core::Error>(())
        })
    });
    for ended in join_all(writers).await {
        ended.expect("an insert does not panic")?;
    }
    expect_same_rows("the series", &D::all(context.store(), &D::series_no(0)).await?, &batch)
}

async fn acknowledged_write_is_readable<D: Sample>(context: &TestContext) -> CheckResult {
    let batch = minute_records::<D>(20);
    for n in 0..batch.len() {
        D::insert(context.store(), std::slice::from_ref(&batch[n])).await?;
        expect_same_rows(
            "the series after each insert",
            &D::all(context.store(), &D::series_no(0)).await?,
            &batch[..=n],
        )?;
    }
    Ok(())
}

async fn retry_completes_a_partial_write<D: Sample>(context: &TestContext) -> CheckResult {
    let batch = minute_records::<D>(600);
    // A failure during the write could leave any part of the batch.
    let part: Vec<D> = batch.iter().step_by(3).cloned().collect();
    D::insert(context.store(), &part).await?;
    D::insert(context.store(), &batch).await?;
    expect_same_rows("the series", &D::all(context.store(), &D::series_no(0)).await?, &batch)
}

async fn dropped_insert_leaves_complete_records<D: Sample>(context: &TestContext) -> CheckResult {
    // The batch is long enough that a store that writes in parts can be dropped between two parts.
    let batch = minute_records::<D>(if D::DATASET == PriceTick::DATASET { 25_000 } else { 2_000 });
    let written: BTreeMap<SortKey, &D> = batch.iter().map(|record| (record.sort_key(), record)).collect();
    for polls in 0..8 {
        let mut insert = Box::pin(D::insert(context.store(), &batch));
        for _ in 0..polls {
            if futures::poll!(&mut insert).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(insert);
        for record in D::all(context.store(), &D::series_no(0)).await? {
            if written.get(&record.sort_key()) != Some(&&record) {
                return Err(Failure::new(format_args!(
                    "after a dropped insert: the record {record:?} was not written"
                )));
            }
        }
    }
    D::insert(context.store(), &batch).await?;
    expect_same_rows("the series", &D::all(context.store(), &D::series_no(0)).await?, &batch)
}

async fn batch_above_max_batch_is_rejected<D: Sample>(context: &TestContext) -> CheckResult {
    let most = context.store().info().max_batch;
    let batch = vec![D::at(0, 0, 1); most + 1];
    expect_error(
        "the error of a batch above max_batch",
        D::insert(context.store(), &batch).await,
        ErrorKind::InvalidInput,
    )?;
    expect_same_rows("the series", &D::all(context.store(), &D::series_no(0)).await?, &[])?;
    let report = D::insert(context.store(), &batch[..most]).await?;
    expect_same("the report of the largest batch", &report, &InsertReport::new(most, most - 1))?;
    Ok(())
}
