//! `qi check`: checks that the backends answer, and that schema and topics are complete.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use qi_core::Datasets;
use qi_core::bus::{GroupInfo, GroupQuery, GroupState, TopicCatalogue};
use qi_core::record::Dataset;
use qi_core::store::{DeleteQuery, RangeQuery, SeriesRequest};
use qi_core::{
    Clock as _, Error, ErrorKind, Instrument, MessageBus, PriceStore, PriceStoreExt, PriceTick, Result,
    Selection, SystemClock, TimeRange, Timestamp,
};

use crate::migrate;
use crate::output::{Listing, maybe, text};

/// The number of pings whose median is the latency.
const PINGS: usize = 5;

/// The instrument of the tick that [`Findings::check_write`] writes.
const PROBE: &str = "qi-check:PROBE";

/// The results of the checks, one row for each check.
#[derive(Debug)]
pub struct Findings {
    rows: Vec<Finding>,
    migrate_command: String,
}

impl Default for Findings {
    fn default() -> Self {
        Self { rows: Vec::new(), migrate_command: "qi migrate".to_owned() }
    }
}

#[derive(Debug)]
struct Finding {
    target: String,
    what: &'static str,
    passed: bool,
    detail: Option<String>,
}

impl Findings {
    /// Sets the command that hints name for a missing schema. Defaults to `qi migrate`.
    #[must_use]
    pub fn with_migrate_command(self, command: impl Into<String>) -> Self {
        Self { migrate_command: command.into(), ..self }
    }

    /// Returns true if no check failed.
    pub fn passed(&self) -> bool {
        self.rows.iter().all(|row| row.passed)
    }

    /// Returns the rows: target, check, `ok` or `FAILED`, and detail.
    pub fn listing(&self) -> Listing {
        let mut listing = Listing::new(["target", "check", "result", "detail"]);
        for Finding { target, what, passed, detail } in &self.rows {
            let result = if *passed { "ok" } else { "FAILED" };
            listing.push([text(target), text(what), text(result), maybe(detail.as_ref())]);
        }
        listing
    }

    fn push(&mut self, target: &str, what: &'static str, result: Result<Option<String>, String>) {
        let (passed, detail) = match result {
            Ok(detail) => (true, detail),
            Err(problem) => (false, Some(problem)),
        };
        self.rows.push(Finding { target: target.to_owned(), what, passed, detail });
    }

    /// Records a backend that could not be opened.
    pub fn open_failed(&mut self, target: &str, error: &Error) {
        self.push(target, "open", Err(error.report()));
    }

    /// Checks that a store answers, has its schema and may be read. Writes nothing. Returns false without a response.
    pub async fn store(&mut self, target: &str, store: &Arc<dyn PriceStore>, datasets: &Datasets) -> bool {
        let pings = pings(|| async { Ok(store.ping().await?.round_trip) }).await;
        let pings = match pings {
            Ok(pings) => Ok(pings),
            Err(error) => Err(self.with_hint(&**store, &error).await),
        };
        let answered = pings.is_ok();
        self.push(target, "ping", pings);
        if !answered {
            return false;
        }
        let version = store.ping().await.ok().and_then(|status| status.version);
        let info = store.info();
        let version = [version.or(info.version), info.edition].into_iter().flatten().collect::<Vec<_>>();
        self.push(target, "version", Ok((!version.is_empty()).then(|| version.join(", "))));

        let readable = match read_access(&**store, datasets.iter()).await {
            Ok(()) => Ok(None),
            Err(error) => Err(self.with_hint(&**store, &error).await),
        };
        let complete = readable.is_ok();
        self.push(target, "schema and read access", readable);
        if complete {
            // A difference is not a failure: another version of a service may have other settings.
            let settings = match store.plan_schema().await {
                Ok(statements) if statements.is_empty() => Ok(None),
                Ok(statements) => {
                    let command = &self.migrate_command;
                    Ok(Some(format!("differ; `{command}` would run: {}", statements.join("; "))))
                }
                // The principal may lack the privilege to read the settings, and a store may have no plan.
                Err(error) if matches!(error.kind(), ErrorKind::Unauthorized | ErrorKind::Unsupported) => {
                    Ok(Some(error.report()))
                }
                Err(error) => Err(error.report()),
            };
            self.push(target, "schema settings", settings);
        }
        true
    }

    /// Returns the report of an error, after the command that resolves it.
    async fn with_hint(&self, store: &dyn PriceStore, error: &Error) -> String {
        let hint = migrate::hint(store, error, &self.migrate_command).await;
        hint.map_or_else(|| error.report(), |hint| format!("{hint}: {}", error.report()))
    }

    /// Writes a tick of the instrument `qi-check:PROBE` into a store, reads it and deletes it.
    pub async fn check_write(&mut self, target: &str, store: &Arc<dyn PriceStore>) {
        let result = match write_and_delete(&**store).await {
            Ok((Ok(true), Ok(()))) => Ok(Some(format!("wrote, read and deleted a tick of {PROBE}"))),
            Ok((Ok(false), Ok(()))) => Err(format!("the written tick of {PROBE} was not found")),
            Ok((Err(error), Ok(()))) | Err(error) => Err(error.report()),
            Ok((_, Err(error))) => Err(format!("{}; a tick of {PROBE} was not deleted", error.report())),
        };
        self.push(target, "write access", result);
    }

    /// Checks that a bus in the memory of this process answers. Such a bus is empty at the start of every process, so the
    /// catalogue's topics are not expected.
    pub async fn bus_in_memory(&mut self, target: &str, bus: &Arc<dyn MessageBus>) {
        let pings = pings(|| async { Ok(bus.ping().await?.round_trip) }).await;
        self.push(target, "ping", pings.map_err(|e| e.report()));
        self.push(
            target,
            "topics",
            Ok(Some("not checked: the bus is in the memory of this process".to_owned())),
        );
    }

    /// Checks that a bus answers, that topics and groups may be listed, and that the catalogue's topics are complete.
    pub async fn bus(&mut self, target: &str, bus: &Arc<dyn MessageBus>, catalogue: &TopicCatalogue) {
        let pings = pings(|| async { Ok(bus.ping().await?.round_trip) }).await;
        let answered = pings.is_ok();
        self.push(target, "ping", pings.map_err(|e| e.report()));
        if !answered {
            return;
        }
        let cluster = bus.ping().await.map(|status| {
            let id = status.cluster_id.map_or_else(String::new, |id| format!(", cluster {id}"));
            Some(format!("{} broker(s){id}", status.brokers))
        });
        self.push(target, "cluster", cluster.map_err(|e| e.report()));
        let groups = bus.groups(&GroupQuery::new(Selection::All)).await;
        self.push(target, "groups", groups.map(|all| Some(counted_groups(&all))).map_err(|e| e.report()));
        let found = match bus.topics().await {
            Ok(found) => found,
            Err(error) => return self.push(target, "topics", Err(error.report())),
        };
        let specs = match catalogue.specs() {
            Ok(specs) => specs,
            Err(error) => return self.push(target, "topics", Err(error.report())),
        };
        let mut wrong = Vec::new();
        for spec in &specs {
            match found.iter().find(|topic| topic.name == spec.name) {
                None => wrong.push(format!(
                    "{} is missing or may not be described; `qi migrate` creates it",
                    spec.name
                )),
                Some(topic) if topic.partitions.len() != spec.partitions as usize => {
                    let (has, wanted) = (topic.partitions.len(), spec.partitions);
                    wrong.push(format!("{} has {has} partitions, not {wanted}", spec.name));
                }
                Some(topic) => {
                    let leaderless = topic.partitions.iter().filter(|p| p.leader.is_none()).count();
                    if leaderless > 0 {
                        wrong.push(format!("{} has {leaderless} partitions without a leader", spec.name));
                    }
                }
            }
        }
        let mut summary = format!(
            "{} of {} catalogue topics complete; {} topics in total",
            specs.len() - wrong.len(),
            specs.len(),
            found.len()
        );
        let hidden = found.iter().filter(|topic| topic.settings.is_none()).count();
        if hidden > 0 {
            let _ = write!(summary, ", settings of {hidden} hidden");
        }
        self.push(target, "topics", Ok(Some(summary)));
        for problem in wrong {
            self.push(target, "topic", Err(problem));
        }
    }
}

/// Checks that the tables of these datasets exist and can be read.
///
/// # Errors
/// The first error of the store.
pub(crate) async fn read_access(
    store: &dyn PriceStore,
    datasets: impl Iterator<Item = Dataset>,
) -> Result<()> {
    for dataset in datasets {
        store.series(&SeriesRequest::new(dataset).with_limit(1)?).await?;
    }
    Ok(())
}

/// Returns whether the written tick was found, and the result of its deletion. The deletion is tried even if the
/// principal may not read, or if the outcome of the write is unknown, so that no tick remains.
async fn write_and_delete(store: &dyn PriceStore) -> Result<(Result<bool>, Result<()>)> {
    let instrument: Instrument = PROBE.parse()?;
    // The retention of a store may remove an old tick before it is read.
    let tick = PriceTick::new(instrument.clone(), SystemClock.now(), 0, "1".parse()?)?;
    // Only this tick: another process may check the store at the same time.
    let end = tick.ts().checked_add(Duration::from_micros(1)).unwrap_or(Timestamp::MAX);
    let range = TimeRange::new(tick.ts(), end)?;
    let found = match store.insert_ticks(std::slice::from_ref(&tick)).await {
        Ok(_) => {
            let query = RangeQuery::new(instrument.clone(), range);
            store.ticks(&query).await.map(|found| found.items == [tick])
        }
        Err(error) if error.retry().is_retryable() => Err(error),
        Err(error) => return Err(error),
    };
    let probe = DeleteQuery::ticks(Selection::one(instrument), range);
    Ok((found, store.delete_range(&probe).await))
}

/// Returns the number of groups, and of groups that cannot be described. These belong to others and are not a failure.
fn counted_groups(groups: &[GroupInfo]) -> String {
    let mut counted = format!("{} groups", groups.len());
    for (state, word) in [(GroupState::NotDescribed, "not described"), (GroupState::Hidden, "hidden")] {
        let count = groups.iter().filter(|group| group.state == state).count();
        if count > 0 {
            let _ = write!(counted, ", {count} {word}");
        }
    }
    counted
}

/// Pings several times and returns the median latency as text.
async fn pings<F: Future<Output = Result<Duration>>>(ping: impl Fn() -> F) -> Result<Option<String>> {
    let mut took = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        took.push(ping().await?);
    }
    took.sort_unstable();
    let ms = took[PINGS / 2].as_secs_f64() * 1e3;
    Ok(Some(format!("{ms:.2} ms, the median of {PINGS}")))
}
