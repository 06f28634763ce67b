//! Administration: lists of instruments, deletions and purges.

use qi_core::record::Dataset;
use qi_core::store::{DeleteQuery, InstrumentQuery, InstrumentSummary, PriceStore, PriceStoreExt};
use qi_core::{
    Bar, Instrument, Interval, MarketSnapshot, PriceTick, Quote, Record, Selection, TimeRange, Timestamp,
};

use super::dataset_ops::{DatasetOps, LatestParams, instrument, micros, minute, range};
use super::expect::{CheckResult, Failure, expect_same, expect_same_rows};
use super::{Sample, TestContext, promises};

promises! { "administration";
    once instruments_are_ordered_by_bytes:
        "instruments are ordered by the bytes of the exchange, then of the symbol",
    once instruments_belong_to_their_dataset:
        "each dataset lists its own instruments with the times of the first and last record",
    once instruments_need_a_record: "an instrument without records is not listed",
    once instruments_are_filtered_by_exchange_and_paged: "the list can be filtered by exchange and is paged",
    every deletion_is_half_open: "a deletion includes the start and excludes the end",
    every deletion_leaves_other_series: "a deletion affects only the selected series",
    every deletion_may_select_all_series: "a deletion may select all series",
    once deletion_leaves_other_intervals: "a deletion of bars affects only their interval",
    every deleted_records_can_be_inserted_again:
        "deleted records can be inserted again, even as the identical batch",
    every deletion_is_idempotent: "a repeated deletion, or a deletion of unknown records, succeeds",
    every purge_cutoff_is_exact: "a purge removes the records before the cutoff, to the microsecond",
    every purged_batch_can_be_inserted_again: "purged records can be inserted again",
    once purge_leaves_other_datasets: "a purge of one dataset does not affect other datasets",
}

/// Reads all pages of a list of instruments.
async fn all_instruments(
    store: &dyn PriceStore,
    query: InstrumentQuery,
) -> qi_core::Result<Vec<InstrumentSummary>> {
    let (mut query, mut found) = (query, Vec::new());
    loop {
        let page = store.instruments(&query).await?;
        found.extend(page.items);
        let Some(next) = page.next else { return Ok(found) };
        query = query.after(next);
    }
}

const DATASETS: [Dataset; 3] = [PriceTick::DATASET, Quote::DATASET, Bar::DATASET];

async fn instruments_are_ordered_by_bytes(context: &TestContext) -> CheckResult {
    // In byte order, '-' and '.' precede the digits, and '_' lies between upper-case and lower-case letters. The
    // collations of databases use other orders.
    let ordered: Vec<Instrument> = ["a", "a-b", "a1", "a_b", "ab"]
        .iter()
        .flat_map(|exchange| {
            ["A-B", "A.B", "A1", "AB", "A_B"].map(|symbol| instrument(&format!("{exchange}:{symbol}")))
        })
        .collect();
    // The inserts have another order. 7 and 25 have no common factor, so every index occurs once.
    for n in 0..ordered.len() {
        let name = &ordered[n * 7 % ordered.len()];
        context.store().insert_ticks(&[PriceTick::make(name, minute(0), 0, 1)]).await?;
        context.store().insert_quotes(&[Quote::make(name, minute(0), 0, 1)]).await?;
        context.store().insert_bars(&[Bar::make(&(name.clone(), Interval::M1), minute(0), 0, 1)]).await?;
    }
    for dataset in DATASETS {
        let found = all_instruments(context.store(), InstrumentQuery::new(dataset)).await?;
        let found: Vec<Instrument> = found.into_iter().map(|summary| summary.instrument).collect();
        expect_same_rows(&format!("instruments of {dataset:?}"), &found, &ordered)?;
    }
    let latest = PriceTick::scan_latest(context.store(), LatestParams::all()).await?;
    let latest: Vec<Instrument> = latest.into_iter().map(|tick| tick.instrument().clone()).collect();
    expect_same_rows("latest ticks", &latest, &ordered)
}

fn summary(instrument: Instrument, first: i64, last: i64) -> InstrumentSummary {
    InstrumentSummary::new(instrument, minute(first), minute(last))
}

async fn instruments_belong_to_their_dataset(context: &TestContext) -> CheckResult {
    let (store, instrument_no) = (context.store(), PriceTick::series_no);
    store.insert_ticks(&[PriceTick::at(1, 5, 1), PriceTick::at(1, 3, 1), PriceTick::at(2, 9, 1)]).await?;
    store.insert_quotes(&[Quote::at(2, 4, 1), Quote::at(2, 1, 1)]).await?;
    let hourly_series = (instrument_no(3), Interval::H1);
    store.insert_bars(&[Bar::at(3, 90, 1), Bar::make(&hourly_series, minute(180), 0, 1)]).await?;
    store.insert_bars(&[Bar::at(4, 30, 1), Bar::make(&hourly_series, minute(0), 0, 1)]).await?;
    let expected = [
        vec![summary(instrument_no(1), 3, 5), summary(instrument_no(2), 9, 9)],
        vec![summary(instrument_no(2), 1, 4)],
        vec![summary(instrument_no(3), 0, 180), summary(instrument_no(4), 30, 30)],
    ];
    for (dataset, expected) in DATASETS.into_iter().zip(expected) {
        let found = all_instruments(store, InstrumentQuery::new(dataset)).await?;
        expect_same_rows(&format!("instruments of {dataset:?}"), &found, &expected)?;
    }
    Ok(())
}

async fn instruments_need_a_record(context: &TestContext) -> CheckResult {
    let (store, query) = (context.store(), InstrumentQuery::new(PriceTick::DATASET));
    expect_same_rows("in an empty store", &all_instruments(store, query.clone()).await?, &[])?;
    store.insert_ticks(&[PriceTick::at(1, 5, 1), PriceTick::at(2, 9, 1)]).await?;
    store.delete_range(&PriceTick::deletion(Some(vec![PriceTick::series_no(1)]), TimeRange::ALL)).await?;
    expect_same_rows(
        "after a deletion of one instrument",
        &all_instruments(store, query.clone()).await?,
        &[summary(PriceTick::series_no(2), 9, 9)],
    )?;
    store.purge_before(PriceTick::DATASET, Timestamp::MAX).await?;
    expect_same_rows("after a purge of the other instrument", &all_instruments(store, query).await?, &[])
}

async fn instruments_are_filtered_by_exchange_and_paged(context: &TestContext) -> CheckResult {
    let names: Vec<Instrument> = (0..7).map(|n| instrument(&format!("beta:S{n}"))).collect();
    // `betab` and `bet` detect a comparison by prefix.
    let others = ["alpha:S1", "betab:S1", "bet:S1", "zeta:S1"].map(instrument);
    let batch: Vec<PriceTick> =
        names.iter().chain(&others).map(|name| PriceTick::make(name, minute(0), 0, 1)).collect();
    context.store().insert_ticks(&batch).await?;
    let expected: Vec<_> = names.into_iter().map(|name| summary(name, 0, 0)).collect();
    for limit in [1, 2, 7, 100] {
        let query = InstrumentQuery::new(PriceTick::DATASET);
        let all = all_instruments(context.store(), query.clone().with_limit(limit)?).await?;
        expect_same("the number of all instruments", &all.len(), &11)?;
        let query = query.of_exchange("beta".parse()?).with_limit(limit)?;
        expect_same_rows(
            &format!("pages of {limit}"),
            &all_instruments(context.store(), query).await?,
            &expected,
        )?;
    }
    Ok(())
}

/// Inserts four records of one series at the first four [`step`]s, and returns them.
async fn insert_four<D: Sample>(context: &TestContext) -> std::result::Result<Vec<D>, Failure> {
    let series = D::series_no(0);
    let batch: Vec<D> = (0..4).map(|n| D::make(&series, step::<D>(n.into()), 0, n)).collect();
    D::insert(context.store(), &batch).await?;
    Ok(batch)
}

/// Returns the n-th time of a series whose records have the smallest possible distance.
fn step<D: Sample>(n: i64) -> Timestamp {
    micros(n * D::STEP)
}

async fn deletion_is_half_open<D: Sample>(context: &TestContext) -> CheckResult {
    let all = insert_four::<D>(context).await?;
    let deleted_range = range(step::<D>(1), step::<D>(3));
    context.store().delete_range(&D::deletion(Some(vec![D::series_no(0)]), deleted_range)).await?;
    let expected = [all[0].clone(), all[3].clone()];
    expect_same_rows("the remaining records", &D::all(context.store(), &D::series_no(0)).await?, &expected)?;
    let empty_range = range(step::<D>(3), step::<D>(3));
    context.store().delete_range(&D::deletion(None, empty_range)).await?;
    expect_same_rows("after an empty range", &D::all(context.store(), &D::series_no(0)).await?, &expected)
}

async fn deletion_leaves_other_series<D: Sample>(context: &TestContext) -> CheckResult {
    let batch: Vec<D> = (0..5).map(|n| D::at(n, 0, 1)).collect();
    D::insert(context.store(), &batch).await?;
    let named = vec![D::series_no(1), D::series_no(3), D::series_no(9)];
    context.store().delete_range(&D::deletion(Some(named), TimeRange::ALL)).await?;
    let expected = [batch[0].clone(), batch[2].clone(), batch[4].clone()];
    expect_same_rows(
        "the remaining records",
        &D::scan_latest(context.store(), LatestParams::all()).await?,
        &expected,
    )
}

async fn deletion_may_select_all_series<D: Sample>(context: &TestContext) -> CheckResult {
    let batch: Vec<D> = (0..5).flat_map(|n| [D::at(n, 0, 1), D::at(n, 10, 2)]).collect();
    D::insert(context.store(), &batch).await?;
    context.store().delete_range(&D::deletion(None, TimeRange::before(minute(10)))).await?;
    for n in 0..5 {
        let found = D::all(context.store(), &D::series_no(n)).await?;
        expect_same_rows("the remaining records", &found, &[D::at(n, 10, 2)])?;
    }
    Ok(())
}

async fn deletion_leaves_other_intervals(context: &TestContext) -> CheckResult {
    let name = PriceTick::series_no(0);
    let bars = [Interval::S1, Interval::M1, Interval::H1]
        .map(|interval| Bar::make(&(name.clone(), interval), minute(0), 0, 1));
    context.store().insert_bars(&bars).await?;
    context.store().insert_ticks(&[PriceTick::at(0, 0, 1)]).await?;
    let deletion = DeleteQuery::bars(Interval::M1, Selection::All, TimeRange::ALL);
    context.store().delete_range(&deletion).await?;
    for (bar, remains) in bars.iter().zip([true, false, true]) {
        let found = Bar::all(context.store(), &bar.series()).await?;
        expect_same_rows("the bars", &found, if remains { std::slice::from_ref(bar) } else { &[] })?;
    }
    let ticks = PriceTick::all(context.store(), &name).await?;
    expect_same_rows("the ticks", &ticks, &[PriceTick::at(0, 0, 1)])
}

async fn deleted_records_can_be_inserted_again<D: Sample>(context: &TestContext) -> CheckResult {
    let all = insert_four::<D>(context).await?;
    let deletion = D::deletion(Some(vec![D::series_no(0)]), TimeRange::ALL);
    for _ in 0..2 {
        context.store().delete_range(&deletion).await?;
        expect_same_rows("after deletion", &D::all(context.store(), &D::series_no(0)).await?, &[])?;
        D::insert(context.store(), &all).await?;
        expect_same_rows(
            "the series after the second insert",
            &D::all(context.store(), &D::series_no(0)).await?,
            &all,
        )?;
    }
    context.store().delete_range(&deletion).await?;
    let other = D::make(&D::series_no(0), step::<D>(1), 0, 77);
    D::insert(context.store(), std::slice::from_ref(&other)).await?;
    expect_same_rows("another value", &D::all(context.store(), &D::series_no(0)).await?, &[other])
}

async fn deletion_is_idempotent<D: Sample>(context: &TestContext) -> CheckResult {
    let deletion = D::deletion(None, range(minute(0), minute(5)));
    context.store().delete_range(&deletion).await?;
    D::insert(context.store(), &[D::at(0, 0, 1), D::at(0, 5, 1)]).await?;
    for _ in 0..2 {
        context.store().delete_range(&deletion).await?;
        expect_same_rows(
            "the remaining records",
            &D::all(context.store(), &D::series_no(0)).await?,
            &[D::at(0, 5, 1)],
        )?;
    }
    let unknown = D::deletion(Some(vec![D::series_no(8)]), TimeRange::ALL);
    Ok(context.store().delete_range(&unknown).await?)
}

async fn purge_cutoff_is_exact<D: Sample>(context: &TestContext) -> CheckResult {
    let mut all = insert_four::<D>(context).await?;
    let other = D::make(&D::series_no(1), step::<D>(1), 0, 9);
    D::insert(context.store(), std::slice::from_ref(&other)).await?;
    context.store().purge_before(D::DATASET, step::<D>(0)).await?;
    expect_same_rows(
        "after a purge without matching records",
        &D::all(context.store(), &D::series_no(0)).await?,
        &all,
    )?;
    for cutoff in [1, 2] {
        all.remove(0);
        for _ in 0..2 {
            context.store().purge_before(D::DATASET, step::<D>(cutoff)).await?;
            expect_same_rows(
                "the remaining records",
                &D::all(context.store(), &D::series_no(0)).await?,
                &all,
            )?;
        }
        // The only record of the other series is at step 1.
        let remaining = if cutoff == 1 { std::slice::from_ref(&other) } else { &[] };
        expect_same_rows(
            "the records of another series",
            &D::all(context.store(), &D::series_no(1)).await?,
            remaining,
        )?;
    }
    context.store().purge_before(D::DATASET, Timestamp::MAX).await?;
    expect_same_rows(
        "after a purge of all records",
        &D::scan_latest(context.store(), LatestParams::all()).await?,
        &[],
    )
}

async fn purged_batch_can_be_inserted_again<D: Sample>(context: &TestContext) -> CheckResult {
    let all = insert_four::<D>(context).await?;
    context.store().purge_before(D::DATASET, minute(1_000)).await?;
    expect_same_rows("after the purge", &D::all(context.store(), &D::series_no(0)).await?, &[])?;
    D::insert(context.store(), &all).await?;
    expect_same_rows(
        "the series after the second insert",
        &D::all(context.store(), &D::series_no(0)).await?,
        &all,
    )
}

async fn purge_leaves_other_datasets(context: &TestContext) -> CheckResult {
    let store = context.store();
    let all = [PriceTick::DATASET, Quote::DATASET, Bar::DATASET, MarketSnapshot::DATASET];
    for purged in all {
        store.insert_ticks(&[PriceTick::at(0, 0, 1)]).await?;
        store.insert_quotes(&[Quote::at(0, 0, 1)]).await?;
        store.insert_bars(&[Bar::at(0, 0, 1)]).await?;
        store.insert_snapshots(&[MarketSnapshot::at(0, 0, 1)]).await?;
        store.purge_before(purged, minute(10)).await?;
        let counts = [
            PriceTick::all(store, &PriceTick::series_no(0)).await?.len(),
            Quote::all(store, &Quote::series_no(0)).await?.len(),
            Bar::all(store, &Bar::series_no(0)).await?.len(),
            MarketSnapshot::all(store, &MarketSnapshot::series_no(0)).await?.len(),
        ];
        let expected = all.map(|dataset| usize::from(dataset != purged));
        expect_same_rows(
            &format!("ticks, quotes, bars and snapshots after a purge of {purged}"),
            &counts,
            &expected,
        )?;
    }
    Ok(())
}
