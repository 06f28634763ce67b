//! Schema: created when asked, by many at once, never assumed.

use futures::future::join_all;
use qi_core::store::{BarQuery, InstrumentDataset, InstrumentQuery, StatsQuery};
use qi_core::{ErrorKind, Interval, PriceTick, TimeRange};

use super::expect::{holds, refused, same_rows};
use super::shelf::{Ask, AskLatest, Shelf, minute};
use super::{Case, Outcome, promises};

promises! { "schema";
    every ensure_schema_twice_keeps_the_data: "ensure_schema is idempotent and never destructive",
    once eight_callers_at_once: "ensure_schema is safe to run from many tasks at once",
    every a_missing_schema_is_refused: "nothing exists before ensure_schema",
    once reads_of_the_ticks_need_a_schema: "nothing exists before ensure_schema: bars, stats, instruments, purge",
    once newer_schema_is_refused: "a schema of a later version is refused",
    once unreachable_is_retryable: "a server that does not answer is Unavailable, which may pass",
    once ping_answers: "ping answers, before and after ensure_schema",
    every closed_stays_closed: "after close every call is Closed, and closing again is Ok",
}

async fn ensure_schema_twice_keeps_the_data<D: Shelf>(case: &Case) -> Outcome {
    let (store, record) = (case.store(), D::at(0, 0, 1));
    D::insert(store, std::slice::from_ref(&record)).await?;
    let report = store.ensure_schema().await?;
    holds("the second ensure_schema applies nothing", report.applied.is_empty())?;
    same_rows("after ensure_schema again", &D::all(store, &record.series()).await?, &[record])
}

async fn eight_callers_at_once(case: &Case) -> Outcome {
    let store = case.without_schema().await?;
    let tasks = (0..8).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { store.ensure_schema().await })
    });
    let mut versions = Vec::new();
    for report in join_all(tasks).await {
        versions.push(report.expect("ensure_schema does not panic")?.version);
    }
    holds(format_args!("one version, found {versions:?}"), versions.iter().all(|v| *v == versions[0]))?;
    let tick = PriceTick::at(0, 0, 1);
    store.insert_ticks(std::slice::from_ref(&tick)).await?;
    same_rows("the schema works", &PriceTick::all(&*store, tick.instrument()).await?, &[tick])
}

async fn a_missing_schema_is_refused<D: Shelf>(case: &Case) -> Outcome {
    const KIND: ErrorKind = ErrorKind::SchemaMismatch;
    let (store, record) = (case.without_schema().await?, D::at(0, 0, 1));
    let store = &*store;
    refused("insert", D::insert(store, std::slice::from_ref(&record)).await, KIND)?;
    refused("a range", D::page(store, &Ask::all(&record.series())).await, KIND)?;
    refused("latest", D::latest(store, &AskLatest::all()).await, KIND)?;
    refused("delete_range", store.delete_range(&D::deletion(None, TimeRange::ALL)).await, KIND)?;
    refused("purge_before", store.purge_before(D::DATASET, minute(0)).await, KIND)?;
    Ok(())
}

async fn reads_of_the_ticks_need_a_schema(case: &Case) -> Outcome {
    const KIND: ErrorKind = ErrorKind::SchemaMismatch;
    let store = case.without_schema().await?;
    let instrument = PriceTick::series_no(0);
    let bars = BarQuery::new(instrument.clone(), Interval::M1, TimeRange::ALL);
    refused("derived_bars", store.derived_bars(&bars).await, KIND)?;
    refused("stats", store.stats(&StatsQuery::new(instrument, TimeRange::ALL)).await, KIND)?;
    let list = InstrumentQuery::new(InstrumentDataset::Ticks);
    refused("instruments", store.instruments(&list).await, KIND)?;
    Ok(())
}

async fn newer_schema_is_refused(case: &Case) -> Outcome {
    let store = case.newer_schema().await?;
    refused("ensure_schema", store.ensure_schema().await, ErrorKind::SchemaMismatch)?;
    Ok(())
}

async fn unreachable_is_retryable(case: &Case) -> Outcome {
    let store = case.unreachable().await?;
    let tick = PriceTick::at(0, 0, 1);
    for (what, result) in [
        ("ping", store.ping().await.map(drop)),
        ("ensure_schema", store.ensure_schema().await.map(drop)),
        ("insert_ticks", store.insert_ticks(std::slice::from_ref(&tick)).await.map(drop)),
        ("ticks", PriceTick::page(&*store, &Ask::all(tick.instrument())).await.map(drop)),
    ] {
        let error = refused(what, result, ErrorKind::Unavailable)?;
        holds(format_args!("{what} says that trying again can help"), error.retry().is_retryable())?;
    }
    Ok(())
}

async fn ping_answers(case: &Case) -> Outcome {
    case.store().ping().await?;
    case.without_schema().await?.ping().await?;
    Ok(())
}

async fn closed_stays_closed<D: Shelf>(case: &Case) -> Outcome {
    const KIND: ErrorKind = ErrorKind::Closed;
    // A store of its own, because every dataset runs on the same case.
    let (store, record) = (case.without_schema().await?, D::at(0, 0, 1));
    store.ensure_schema().await?;
    D::insert(&*store, std::slice::from_ref(&record)).await?;
    store.close().await?;
    store.close().await?;
    let store = &*store;
    refused("insert", D::insert(store, std::slice::from_ref(&record)).await, KIND)?;
    refused("an empty insert", D::insert(store, &[]).await, KIND)?;
    refused("a range", D::page(store, &Ask::all(&record.series())).await, KIND)?;
    refused("latest", D::latest(store, &AskLatest::all()).await, KIND)?;
    refused("delete_range", store.delete_range(&D::deletion(None, TimeRange::ALL)).await, KIND)?;
    refused("purge_before", store.purge_before(D::DATASET, minute(0)).await, KIND)?;
    refused("ping", store.ping().await, KIND)?;
    refused("ensure_schema", store.ensure_schema().await, KIND)?;
    let instrument = PriceTick::series_no(0);
    let bars = BarQuery::new(instrument.clone(), Interval::M1, TimeRange::ALL);
    refused("derived_bars", store.derived_bars(&bars).await, KIND)?;
    refused("stats", store.stats(&StatsQuery::new(instrument, TimeRange::ALL)).await, KIND)?;
    for dataset in [InstrumentDataset::Ticks, InstrumentDataset::Quotes, InstrumentDataset::Bars] {
        refused("instruments", store.instruments(&InstrumentQuery::new(dataset)).await, KIND)?;
    }
    Ok(())
}
