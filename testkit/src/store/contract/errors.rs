//! Errors: kind, code, operation and backend, without secrets.

use std::error::Error as _;

use qi_core::store::{BarQuery, PriceStore, PriceStoreExt, SeriesRequest, StatsQuery};
use qi_core::{Error, ErrorKind, Instrument, Interval, PriceTick, Result, TimeRange};

use super::dataset_ops::{DatasetOps, LatestParams, RangeParams, minute};
use super::expect::{CheckResult, Failure, expect_error, expect_same, expect_true};
use super::factory::SECRET;
use super::{Sample, TestContext, promises};

promises! { "errors";
    once errors_name_the_called_method:
        "the operation of an error is the called method, through every wrapper",
    once errors_have_kind_code_operation_and_backend: "a rejected call has kind, code, operation and backend",
    once info_names_the_backend_and_its_limits: "info returns the backend and its limits without I/O",
    once secrets_are_never_shown: "no password in Debug, Display, info, errors or their sources",
}

/// Calls every method that needs a schema or an open store, and returns the results by method name.
async fn results_by_method(store: &dyn PriceStore) -> Vec<(&'static str, Result<()>)> {
    let name: Instrument = PriceTick::series_no(0);
    let bars = BarQuery::new(name.clone(), Interval::M1, TimeRange::ALL);
    let range = RangeParams::<PriceTick>::all(&name);
    vec![
        ("insert", store.insert_ticks(&[PriceTick::at(0, 0, 1)]).await.map(drop)),
        ("range", PriceTick::page(store, &range).await.map(drop)),
        ("latest", PriceTick::latest(store, &LatestParams::all()).await.map(drop)),
        ("series", store.series(&SeriesRequest::new(PriceTick::DATASET)).await.map(drop)),
        ("derived_bars", store.derived_bars(&bars).await.map(drop)),
        ("stats", store.stats(&StatsQuery::new(name, TimeRange::ALL)).await.map(drop)),
        ("delete_range", store.delete_range(&PriceTick::deletion(None, TimeRange::ALL)).await),
        ("purge_before", store.purge_before(PriceTick::DATASET, minute(0)).await),
    ]
}

async fn errors_name_the_called_method(context: &TestContext) -> CheckResult {
    let store = context.without_schema().await?;
    for (method, result) in results_by_method(&*store).await {
        let error = expect_error(method, result, ErrorKind::SchemaMismatch)?;
        expect_same("the operation", &error.operation(), &method)?;
    }
    for (method, result) in results_by_method(context.store()).await {
        result.map_err(|error| Failure::from(error).within(method))?;
    }
    store.close().await?;
    let mut calls = results_by_method(&*store).await;
    calls.push(("ping", store.ping().await.map(drop)));
    calls.push(("plan_schema", store.plan_schema().await.map(drop)));
    calls.push(("ensure_schema", store.ensure_schema().await.map(drop)));
    for (method, result) in calls {
        let error = expect_error(method, result, ErrorKind::Closed)?;
        expect_same("the operation", &error.operation(), &method)?;
    }
    Ok(())
}

async fn errors_have_kind_code_operation_and_backend(context: &TestContext) -> CheckResult {
    let (store, backend) = (context.store(), context.store().info().backend);
    let says = |error: &Error, operation: &str| {
        expect_same("the operation", &error.operation(), &operation)?;
        expect_same("the backend", &error.backend(), &Some(backend))?;
        expect_true("an error that is not retryable", !error.retry().is_retryable())?;
        expect_true("a code that starts with store.", error.code().starts_with("store."))?;
        let shown = error.to_string();
        expect_true(format_args!("Display names the code: {shown}"), shown.contains(error.code()))
    };
    let batch = vec![PriceTick::at(0, 0, 1); store.info().max_batch + 1];
    says(&expect_error("a batch", store.insert_ticks(&batch).await, ErrorKind::InvalidInput)?, "insert")?;
    let foreign = RangeParams::<PriceTick>::all(&PriceTick::series_no(0)).after("123".parse()?);
    let error = expect_error("a cursor", PriceTick::page(store, &foreign).await, ErrorKind::InvalidInput)?;
    says(&error, "range")?;
    expect_same("the field", &error.context_value("field"), &Some("cursor"))?;
    let store = context.without_schema().await?;
    let error = expect_error(
        "no schema",
        store.insert_ticks(&[PriceTick::at(0, 0, 1)]).await,
        ErrorKind::SchemaMismatch,
    )?;
    says(&error, "insert")
}

async fn info_names_the_backend_and_its_limits(context: &TestContext) -> CheckResult {
    let info = context.store().info();
    expect_true("a backend name that is not empty", !info.backend.is_empty())?;
    let bounds = 1..=qi_core::store::StoreInfo::MAX_BATCH;
    expect_true(
        format_args!("max_batch from 1 to 1,000,000, found {}", info.max_batch),
        bounds.contains(&info.max_batch),
    )?;
    expect_true("a Display that is not empty", !context.store().to_string().is_empty())
}

async fn secrets_are_never_shown(context: &TestContext) -> CheckResult {
    let store = context.unreachable().await?;
    let mut shown = vec![format!("{store:?}"), store.to_string(), format!("{:?}", store.info())];
    let ping = expect_error("ping", store.ping().await, ErrorKind::Unavailable)?;
    let insert = store.insert_ticks(&[PriceTick::at(0, 0, 1)]).await;
    let insert = expect_error("insert", insert, ErrorKind::Unavailable)?;
    for error in [ping, insert] {
        shown.extend([error.to_string(), format!("{error:?}"), error.report()]);
        let mut source = error.source();
        while let Some(error) = source {
            shown.extend([error.to_string(), format!("{error:?}")]);
            source = error.source();
        }
    }
    for text in shown {
        expect_true(
            format_args!("no password in: {}", text.replace(SECRET, "(THE PASSWORD)")),
            !text.contains(SECRET),
        )?;
    }
    Ok(())
}
