//! Generation of histories, and shrinking of histories that fail.

use std::fmt;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use qi_core::Datasets;
use qi_core::record::{Dataset, Description, RecordVec, Row};
use qi_core::store::DeleteQuery;
use qi_core::{
    Bar, BarValues, Instrument, MarketSnapshot, Price, PriceTick, Quantity, Quote, QuoteValues, Selection,
    SnapshotValues, TimeRange, Timestamp,
};

use super::{
    HOURS, History, ReadParams, SECONDS, Step, TimeScale, compare, descriptions, instrument, interval_of,
    owner, run_history, scope, series, values_of,
};
use crate::store::contract::{CheckResult, Failure, StoreFactory, Wrapper};

/// Prices and quantities in units of 10^-18. Some have products halfway between two values of the 18th decimal place,
/// and one has all 18 places.
const UNITS: [i128; 6] = [
    1,
    500_000_000_000_000_000,
    1_500_000_000_000_000_000,
    3,
    1_000_000_000_000_000_000,
    987_654_321_012_345_678,
];

fn a_price() -> impl Strategy<Value = Price> {
    (0..UNITS.len(), 1..40i128).prop_map(|(n, times)| Price::from_units(UNITS[n] * times).expect("positive"))
}

fn a_quantity() -> impl Strategy<Value = Option<Quantity>> {
    prop_oneof![
        2 => Just(None),
        1 => Just(Some(Quantity::ZERO)),
        5 => a_price().prop_map(|price| Quantity::new(price.decimal()).ok()),
    ]
}

/// Few different times, so that keys repeat.
fn a_moment() -> impl Strategy<Value = i64> {
    prop_oneof![8 => 0..30i64, 1 => 115..125i64, 1 => Just(-7i64)]
}

fn a_tick(scale: TimeScale) -> impl Strategy<Value = PriceTick> {
    (0..3usize, a_moment(), 0..3u64, a_price(), a_quantity()).prop_map(
        move |(of, at, seq, price, quantity)| {
            PriceTick::new(instrument(of), scale.moment(at), seq, price)
                .expect("a valid tick")
                .with_quantity(quantity)
        },
    )
}

fn a_quote(scale: TimeScale) -> impl Strategy<Value = Quote> {
    (0..3usize, a_moment(), 0..3u64, a_price(), a_quantity(), any::<bool>()).prop_map(
        move |(of, at, seq, price, size, bid)| {
            let (ask_price, bid_price) = if bid { (None, Some(price)) } else { (Some(price), None) };
            let values = QuoteValues { bid_price, bid_size: size, ask_price, ask_size: None };
            Quote::new(instrument(of), scale.moment(at), seq, values).expect("a valid quote")
        },
    )
}

fn a_bar(scale: TimeScale) -> impl Strategy<Value = Bar> {
    (0..3usize, 0..3usize, a_moment(), a_price(), a_quantity(), proptest::option::of(0..9u64)).prop_map(
        move |(of, interval, at, price, volume, count)| {
            let values = BarValues { volume, quote_volume: volume, count, ..BarValues::flat(price) };
            let interval = scale.intervals[interval];
            Bar::new(instrument(of), interval, interval.floor(scale.moment(at)), values).expect("a valid bar")
        },
    )
}

fn a_snapshot(scale: TimeScale) -> impl Strategy<Value = MarketSnapshot> {
    (0..3usize, a_moment(), a_quantity(), 0..9u64).prop_map(move |(of, at, cap, markets)| {
        let values =
            SnapshotValues { market_cap_usd: cap, markets: Some(markets), ..SnapshotValues::default() };
        MarketSnapshot::new(scope(of), scale.moment(at), values).expect("a valid snapshot")
    })
}

/// Ranges whose ends are at, next to or between record times, and the complete time range.
fn a_range(scale: TimeScale) -> impl Strategy<Value = TimeRange> {
    let an_end = move || {
        (a_moment(), -1..2i64).prop_map(move |(at, beside)| {
            Timestamp::from_micros(scale.moment(at).as_micros() + beside).expect("a time of 2024")
        })
    };
    prop_oneof![
        1 => Just(TimeRange::ALL),
        4 => (an_end(), an_end())
            .prop_map(|(a, b)| TimeRange::new(a.min(b), a.max(b)).expect("in order")),
    ]
}

fn read_params(scale: TimeScale) -> impl Strategy<Value = ReadParams> {
    let as_of = proptest::option::of((a_moment(), -1..2i64));
    (a_range(scale), any::<bool>(), 1..8usize, as_of, 0..3usize, 0..3usize).prop_map(
        move |(range, descending, limit, as_of, interval, which)| ReadParams {
            range,
            descending,
            limit,
            as_of: as_of.map(|(at, beside)| {
                Timestamp::from_micros(scale.moment(at).as_micros() + beside).expect("a time of 2024")
            }),
            interval: scale.intervals[interval],
            which,
        },
    )
}

/// A step that refers to its dataset by an index, because the datasets of the history are not known yet.
#[derive(Debug, Clone)]
enum StepDraft {
    Typed(RecordVec),
    Rows(Vec<RowDraft>),
    Delete(usize, usize, Option<Vec<usize>>, TimeRange),
    Purge(usize, Timestamp),
    Read(ReadParams),
}

/// The index of the owner, the index of the interval, the time, the sequence number, and the seed of the values.
type RowDraft = (usize, usize, i64, u64, u32);

impl StepDraft {
    fn step(self, datasets: &[Dataset], scale: TimeScale) -> Step {
        match self {
            Self::Typed(batch) => Step::Insert(batch),
            Self::Rows(rows) => {
                let dataset = datasets[datasets.len() - 1];
                let rows = rows.into_iter().map(|draft| row(dataset, draft, scale)).collect();
                Step::Insert(Row::collect(dataset, rows).expect("rows of one dataset"))
            }
            Self::Delete(n, interval, owners, range) => {
                let dataset = datasets[n % datasets.len()];
                let selection = owners.map_or(Selection::All, |owners| {
                    Selection::only(owners.into_iter().map(|n| owner(dataset, n))).expect("at least one")
                });
                let mut query = DeleteQuery::of::<PriceTick>(&Selection::<Instrument>::All, range);
                (query.dataset, query.selection) = (dataset, selection);
                query.interval = interval_of(dataset, scale.intervals[interval]);
                Step::Delete(query)
            }
            Self::Purge(n, cutoff) => Step::Purge(datasets[n % datasets.len()], cutoff),
            Self::Read(params) => Step::Read(params),
        }
    }
}

fn row(dataset: Dataset, (of, interval, at, seq, seed): RowDraft, scale: TimeScale) -> Row {
    let seq = if dataset.seq().is_some() { seq } else { 0 };
    Row::new(
        dataset,
        series(dataset, of, scale.intervals[interval]),
        (scale.moment(at), seq),
        values_of(dataset, seed),
    )
    .expect("a valid row")
}

fn a_row() -> impl Strategy<Value = RowDraft> {
    (0..3usize, 0..3usize, a_moment(), 0..3u64, any::<u32>())
}

fn a_step(scale: TimeScale) -> impl Strategy<Value = StepDraft> {
    use prop::collection::vec;
    let owners = proptest::option::weighted(0.75, vec(0..3usize, 1..3));
    prop_oneof![
        4 => vec(a_tick(scale), 0..12).prop_map(|batch| StepDraft::Typed(RecordVec::from_vec(batch))),
        2 => vec(a_quote(scale), 0..8).prop_map(|batch| StepDraft::Typed(RecordVec::from_vec(batch))),
        2 => vec(a_bar(scale), 0..8).prop_map(|batch| StepDraft::Typed(RecordVec::from_vec(batch))),
        2 => vec(a_snapshot(scale), 0..8).prop_map(|batch| StepDraft::Typed(RecordVec::from_vec(batch))),
        4 => vec(a_row(), 0..8).prop_map(StepDraft::Rows),
        2 => (0..5usize, 0..3usize, owners, a_range(scale))
            .prop_map(|(n, interval, owners, range)| StepDraft::Delete(n, interval, owners, range)),
        1 => (0..5usize, a_moment(), -1..2i64).prop_map(move |(n, at, beside)| {
            let cutoff = Timestamp::from_micros(scale.moment(at).as_micros() + beside).expect("a time of 2024");
            StepDraft::Purge(n, cutoff)
        }),
        4 => read_params(scale).prop_map(StepDraft::Read),
    ]
}

/// Returns a strategy for histories of 2 to 16 steps on the datasets of this library and a generated one. The last step
/// of a history reads the complete time range.
///
/// # Panics
/// Never, because a generated description is valid.
pub fn histories() -> impl Strategy<Value = History> {
    prop_oneof![histories_of(SECONDS), histories_of(HOURS)]
}

fn histories_of(scale: TimeScale) -> impl Strategy<Value = History> {
    let drafts = prop::collection::vec(a_step(scale), 1..16);
    (drafts, read_params(scale), descriptions()).prop_map(
        move |(mut drafts, params, description): (_, _, Description)| {
            drafts.push(StepDraft::Read(ReadParams { range: TimeRange::ALL, as_of: None, ..params }));
            let drawn = Dataset::declare(description).expect("a valid description");
            let datasets = Datasets::standard().with_dataset(drawn).expect("a name of its own");
            let all: Vec<Dataset> = datasets.iter().collect();
            let steps = drafts.into_iter().map(|draft| draft.step(&all, scale)).collect();
            History { datasets, steps }
        },
    )
}

/// Generates `count` histories with a fixed seed. Runs each one in parallel with the model, on a new
/// store of the factory.
///
/// # Errors
/// The shortest history that was found to differ, and the difference.
pub fn check_histories(factory: &Arc<dyn StoreFactory>, wrapper: Wrapper, count: u32) -> CheckResult {
    let run = async |history: &History| {
        let created = factory.with_schema(&history.datasets).await?;
        let outcome = run_history(&*(wrapper.wrap)(created.store), history).await;
        outcome.and(created.cleanup.await.map_err(Failure::from))
    };
    run_cases(count, &histories(), &run, describe_history)
}

/// Generates `count` histories with a fixed seed and runs each one on two stores.
///
/// # Errors
/// The shortest history on which the two stores were found to differ, and the difference.
pub fn check_differences(
    one: &Arc<dyn StoreFactory>,
    two: &Arc<dyn StoreFactory>,
    count: u32,
) -> CheckResult {
    let run = async |history: &History| {
        let datasets = &history.datasets;
        let (first, second) = (one.with_schema(datasets).await?, two.with_schema(datasets).await?);
        let outcome = compare(&*first.store, &*second.store, history).await;
        outcome.and(first.cleanup.await.and(second.cleanup.await).map_err(Failure::from))
    };
    run_cases(count, &histories(), &run, describe_history)
}

/// Generates `count` cases with a fixed seed and runs each one. `explain` describes the simplest case that fails.
pub(super) fn run_cases<T: fmt::Debug>(
    count: u32,
    cases: &impl Strategy<Value = T>,
    run: &impl AsyncFn(&T) -> CheckResult,
    explain: impl Fn(&T) -> String,
) -> CheckResult {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format_args!("no runtime: {error}")))?;
    let config = Config { cases: count, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let outcome = TestRunner::new_with_rng(config, rng).run(cases, |case| {
        runtime.block_on(run(&case)).map_err(|failure| TestCaseError::fail(failure.to_string()))
    });
    match outcome {
        Ok(()) => Ok(()),
        Err(TestError::Fail(why, case)) => Err(Failure::new(format_args!("{why}\n{}", explain(&case)))),
        Err(other) => Err(Failure::new(other)),
    }
}

fn describe_history(history: &History) -> String {
    let steps: Vec<String> =
        history.steps.iter().enumerate().map(|(n, step)| format!("  {n}: {step:?}")).collect();
    let drawn = history.datasets.get("drawn").map(Dataset::values);
    let steps = steps.join("\n");
    format!("columns of the drawn dataset: {drawn:?}\nthe shortest history that fails:\n{steps}")
}
