//! The main job: sends market data through a bus topic and a writer agent into a store, then reads bars and latest
//! prices back.
//!
//! The binary `pipeline` runs this job with the settings of its command line.

mod counters;
mod export;
mod feed;
mod live;
mod read_back;
mod record;
pub mod report;
pub mod source;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qi_core::agent::{
    AgentRuntime, AgentSpec, AgentStatus, MetricsObserver, Observer, RuntimeHandle, RuntimeReport,
};
use qi_core::bus::{
    GroupId, GroupInstanceId, GroupQuery, MessageBus, MessageBusExt, SubscribeRequest, TopicCatalogue,
    TopicName, TopicPartition,
};
use qi_core::health::HealthChecker;
use qi_core::{
    Backoff, Bar, Error, Ingest, IngestConfig, Instrument, Interval, PriceStore, PriceTick, Result, Selection,
};
use qi_files::{Numbering, Source};
use tokio_util::sync::CancellationToken;

pub use counters::JobCounters;
pub use feed::Feed;
pub use live::{Addresses, Live};
pub use record::Record;
pub use report::{InstrumentRow, Summary};

pub(crate) use feed::PublishTask;

use export::Export;
use feed::NumberedFeed;

/// The input of a job.
pub enum Data {
    /// Ticks. The store derives bars from them.
    Ticks(Source<PriceTick>),
    /// Bars of this interval. They are stored unchanged and merged into coarser bars.
    Bars(Source<Bar>, Interval),
    /// Live trades of exchanges, until a stop. The store has the dataset of [`qi_files::coverage::Coverage`].
    Live(Box<Live>),
}

impl From<qi_files::Data> for Data {
    fn from(data: qi_files::Data) -> Self {
        match data {
            qi_files::Data::Trades(trades) => Self::Ticks(trades),
            qi_files::Data::Candles(candles, interval) => Self::Bars(candles, interval),
        }
    }
}

/// The inputs and settings of a job.
pub struct Job {
    /// The store of the records.
    pub store: Arc<dyn PriceStore>,
    /// The bus between feed and writer.
    pub bus: Arc<dyn MessageBus>,
    /// The topics that the job creates.
    pub catalogue: TopicCatalogue,
    /// The input data.
    pub data: Data,
    /// The interval of the bars that are read back.
    pub interval: Interval,
    /// The CSV file to which the bars of one instrument are exported. An existing file is not changed if there are no
    /// bars, or if the input has more bad lines than records.
    pub export: Option<(PathBuf, Instrument)>,
    /// True to stop at the first bad line.
    pub strict: bool,
    /// The settings of the writer.
    pub ingest: IngestConfig,
    /// The writer's name in its group, as a static member.
    pub member: Option<GroupInstanceId>,
    /// The counters of the job, which can be read while the job runs.
    pub counters: Arc<JobCounters>,
    /// The signals that stop the job.
    pub stop: Stop,
    /// The observer of the agents' transitions.
    pub observer: Option<Box<dyn Observer>>,
    /// The health report that the job adds its agents to.
    pub health: Option<Arc<HealthChecker>>,
    /// The callback for agents that do not end by the deadline. A program can exit in this callback.
    pub on_deadline_exceeded: Option<OnDeadlineExceeded>,
}

/// A callback with the report of a runtime that did not end in time.
pub type OnDeadlineExceeded = Box<dyn FnOnce(&RuntimeReport) + Send>;

/// The signals that stop a job.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// A graceful stop: received records are stored and committed.
    pub graceful: CancellationToken,
    /// An immediate stop: hooks are aborted, but cleanups still run.
    pub immediate: CancellationToken,
}

/// The consumer group of the writer.
const GROUP: &str = "pipeline-writer";
/// The first and the longest delay between two requests for the writer's lag after the feed has ended. Delays double.
const LAG_CHECK_DELAYS: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];
/// The number of requests after which a warning is logged, if the lag is still unknown or above 0.
const CHECKS_PER_WARNING: u32 = 30;

impl Job {
    /// Creates a job with default settings.
    ///
    /// # Errors
    /// None in practice, because the names of the standard topics are valid.
    pub fn new(store: Arc<dyn PriceStore>, bus: Arc<dyn MessageBus>, data: Data) -> Result<Self> {
        Ok(Self {
            store,
            bus,
            catalogue: TopicCatalogue::standard()?,
            data,
            interval: Interval::M1,
            export: None,
            strict: false,
            ingest: IngestConfig::default(),
            member: None,
            counters: Arc::default(),
            stop: Stop::default(),
            observer: None,
            health: None,
            on_deadline_exceeded: None,
        })
    }

    /// Validates the settings.
    ///
    /// # Errors
    /// `InvalidInput` if the bars of the input cannot be merged into the requested interval, or if the export file
    /// cannot be created.
    pub fn check(&self) -> Result<()> {
        if let Data::Bars(_, interval) = &self.data
            && !interval.divides(self.interval)
        {
            let rule = format!("must be a multiple of the input's interval, {interval}");
            return Err(Error::invalid("pipeline.interval", "interval", self.interval, rule));
        }
        if let Some((path, _)) = &self.export {
            let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let special = path.exists() && !path.is_file();
            if folder.is_some_and(|folder| !folder.is_dir())
                || special
                || path.to_string_lossy().ends_with('/')
            {
                return Err(Error::invalid(
                    "pipeline.export",
                    "export",
                    path.display(),
                    "must be an ordinary file in a folder that exists",
                ));
            }
        }
        Ok(())
    }

    /// Runs the job until the feed has ended, the writer's lag is 0, and the results were read back. After a stop, the
    /// job shuts down in order, and its summary is marked as interrupted and has no rows. Live feeds end only by a stop.
    ///
    /// # Errors
    /// Errors of an agent that failed permanently, and errors of a backend.
    pub async fn run(mut self) -> Result<Summary> {
        self.check()?;
        let stop = self.stop.clone();
        // The file is created before any record is sent, so that an error is detected early.
        let export = self.export.as_ref().map(|(path, _)| Export::create(path)).transpose()?;
        let since = Instant::now();
        let work = async {
            self.store.ensure_schema().await?;
            self.bus.create_catalogue(&self.catalogue).await
        };
        let Some(outcomes) = stop.graceful.run_until_cancelled(work).await else {
            return Ok(Summary::interrupted(&self.counters, since.elapsed()));
        };
        outcomes?;
        let input = match &self.data {
            Data::Ticks(_) | Data::Live(_) => None,
            Data::Bars(_, interval) => Some(*interval),
        };
        let empty = Data::Ticks(Box::new(std::iter::empty()));
        match std::mem::replace(&mut self.data, empty) {
            Data::Ticks(source) => self.run_source(source).await?,
            Data::Bars(source, _) => self.run_source(source).await?,
            Data::Live(live) => {
                let query = writer_query::<PriceTick>()?;
                let feeds = live.agents(&self, &query)?;
                self.run_agents::<PriceTick>(feeds, query, false).await?;
            }
        }
        let elapsed = since.elapsed();
        let export = export.filter(|_| self.counters.bad_lines() <= self.counters.published());
        let rows = stop.graceful.run_until_cancelled(read_back::rows(&self, input, export)).await;
        match rows {
            Some(rows) => Ok(Summary::done(&self.counters, elapsed, rows?)),
            None => Ok(Summary::interrupted(&self.counters, elapsed)),
        }
    }

    /// Runs the feed of a source and the writer until every published record is stored, or until a stop.
    async fn run_source<T: Record>(&mut self, source: Source<T>) -> Result<()> {
        let topic = TopicName::new(T::DATASET.topic())?;
        let (bus, counters, strict) = (self.bus.clone(), self.counters.clone(), self.strict);
        let (numbering, query) = (Numbering::new(self.store.clone()), writer_query::<T>()?);
        let feed = NumberedFeed {
            feed: Feed { bus, topic, source, counters, strict },
            numbering,
            query: query.clone(),
        };
        let feed = AgentSpec::once("feed", feed).depends_on(["writer"]).run_to_completion();
        self.run_agents::<T>(vec![feed], query, true).await
    }

    /// Runs feeds and their writer until a stop. If the feeds are finite, also until every published record is stored.
    async fn run_agents<T: Record>(
        &mut self,
        feeds: Vec<AgentSpec>,
        query: GroupQuery,
        is_finite: bool,
    ) -> Result<()> {
        let (topic, group) = (TopicName::new(T::DATASET.topic())?, GroupId::new(GROUP)?);
        let writer = {
            let (bus, store, progress) = (self.bus.clone(), self.store.clone(), self.counters.ingest.clone());
            let mut config = self.ingest.clone();
            let dead_letters = config.dead_letters.topic_for(&topic)?;
            let specs = self.catalogue.specs()?;
            config.dead_letter_topic = specs.into_iter().find(|spec| spec.name == dead_letters);
            let mut request = SubscribeRequest::new(group, [topic])?;
            // After a kill, the next writer with this name continues without waiting for the session timeout.
            request.group_instance_id.clone_from(&self.member);
            move |_cx| {
                let (bus, store) = (bus.clone(), store.clone());
                let ingest = Ingest::open(bus, store, T::DATASET, request.clone(), config.clone());
                let progress = progress.clone();
                async move { Ok(ingest.await?.with_progress(progress)) }
            }
        };
        let mut runtime = AgentRuntime::builder()
            .agent(AgentSpec::new_async("writer", writer))
            .agents(feeds)
            .observer(MetricsObserver::default());
        if let Some(observer) = self.observer.take() {
            runtime = runtime.observer(observer);
        }
        if let Some(call) = self.on_deadline_exceeded.take() {
            runtime = runtime.on_deadline_exceeded(call);
        }
        let runtime = runtime.build()?;
        let handle = runtime.handle();
        if let Some(health) = &self.health {
            health.watch(handle.clone());
        }
        let now = self.stop.immediate.clone();
        let force = tokio::spawn({
            let handle = handle.clone();
            async move {
                now.cancelled().await;
                handle.shutdown_now();
            }
        });
        let report = runtime
            .run_until(async {
                tokio::select! {
                    () = self.stop.graceful.cancelled() => {}
                    () = drained(&handle, &*self.bus, &query, &self.counters), if is_finite => {}
                }
            })
            .await;
        force.abort();
        report.result()
    }
}

/// Returns the query for the writer's offsets on the topic of its records.
fn writer_query<T: Record>() -> Result<GroupQuery> {
    let topic = TopicName::new(T::DATASET.topic())?;
    Ok(GroupQuery::one(GroupId::new(GROUP)?).with_topics(Selection::one(topic)))
}

/// Waits until the feed has ended and the writer's lag on its topic is 0. Commits of the group in other topics do not
/// count. Failed requests are repeated: if the error is permanent, the writer fails for the same reason and ends the
/// job.
async fn drained(handle: &RuntimeHandle, bus: &dyn MessageBus, query: &GroupQuery, counters: &JobCounters) {
    let ended = handle.wait_for("feed", |agent| agent.status == AgentStatus::Stopped).await;
    if ended.is_err() {
        return std::future::pending().await;
    }
    wait_until_caught_up(bus, query, counters).await;
}

/// Waits until the group has committed all messages that the topics of the query had at the first successful request.
/// Later messages of other producers do not count. The group cannot receive messages after the start of an open
/// transaction, so they count only up to the last message that the feed published.
pub(crate) async fn wait_until_caught_up(bus: &dyn MessageBus, query: &GroupQuery, counters: &JobCounters) {
    let backoff = Backoff::new(LAG_CHECK_DELAYS[0], LAG_CHECK_DELAYS[1]);
    let mut ends: Option<BTreeMap<TopicPartition, u64>> = None;
    for checks in 1.. {
        match bus.groups(query).await.as_deref() {
            // The lag is known only if each partition has a commit and an end.
            Ok([group, ..]) if group.lag().is_some() => {
                let each = || group.partitions.iter();
                let ends = ends.get_or_insert_with(|| {
                    each().filter_map(|found| Some((found.partition.clone(), found.end?))).collect()
                });
                let mut behind = each().filter(|found| {
                    // The end of a topic that was deleted and created again is below the end of the first request.
                    let end =
                        ends.get(&found.partition).map_or(found.end, |first| found.end.min(Some(*first)));
                    let stable = found.last_stable.map(|offset| offset.max(counters.end(&found.partition)));
                    found.committed < stable.map_or(end, |stable| end.min(Some(stable)))
                });
                if behind.next().is_none() {
                    return;
                }
                if checks % CHECKS_PER_WARNING == 0 {
                    tracing::warn!(?query, lag = ?group.lag(), "records are not stored yet");
                }
            }
            Ok(_) if checks % CHECKS_PER_WARNING == 0 => {
                tracing::warn!(?query, "the lag of the writer's group is unknown");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = %error.report(), "the lag of the writer's group is unknown");
            }
        }
        tokio::time::sleep(backoff.delay(checks, 0.0)).await;
    }
}

#[cfg(test)]
mod tests {
    use qi_core::ErrorKind;
    use qi_core::bus::{Delivery, GroupInfo, GroupPartition, GroupState};
    use qi_testkit::mock::MockBus;
    use tokio::time::Instant;

    use super::*;

    /// The result of one request: the commits and ends of all partitions. None is an error.
    type GroupResponse = Option<&'static [(Option<u64>, Option<u64>)]>;

    /// Calls `wait_until_caught_up` on a bus that returns these results and repeats the last result. Returns the number of
    /// requests and the waiting time, or None after a day.
    async fn wait_until_done(checks: &'static [GroupResponse]) -> Option<(usize, Duration)> {
        let requests = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (counted, mut bus) = (requests.clone(), MockBus::new());
        bus.expect_groups().returning(move |query| {
            let index = counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst).min(checks.len() - 1);
            let Some(offsets) = checks[index] else {
                return Err(Error::new(ErrorKind::Unavailable, "test", "groups"));
            };
            let Selection::Only(topics) = &query.topics else { panic!("the lag of every topic") };
            let partition = |id| TopicPartition::new(topics[0].clone(), id);
            let of = |(id, (committed, end)): (u32, &(Option<u64>, Option<u64>))| {
                GroupPartition::new(partition(id), *committed, *end)
            };
            let partitions = (0..).zip(offsets).map(of).collect();
            Ok(vec![GroupInfo::new(GroupId::new("g")?, GroupState::Stable, Vec::new(), partitions)])
        });
        let topic = TopicName::new("t").unwrap();
        let query = GroupQuery::one(GroupId::new("g").unwrap()).with_topics(Selection::one(topic));
        let since = Instant::now();
        tokio::time::timeout(
            Duration::from_hours(24),
            wait_until_caught_up(&bus, &query, &JobCounters::default()),
        )
        .await
        .ok()?;
        Some((requests.load(std::sync::atomic::Ordering::SeqCst), since.elapsed()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_job_waits_for_the_end_offsets_of_its_first_check() {
        // Another producer publishes faster than the writer stores.
        let busy: &[GroupResponse] =
            &[Some(&[(Some(5), Some(10))]), Some(&[(Some(9), Some(20))]), Some(&[(Some(10), Some(30))])];
        assert_eq!(wait_until_done(busy).await.unwrap().0, 3);
        // The topic was deleted and created again, and has other offsets.
        let recreated: &[GroupResponse] =
            &[Some(&[(Some(5), Some(10))]), Some(&[(Some(1), Some(3))]), Some(&[(Some(3), Some(3))])];
        assert_eq!(wait_until_done(recreated).await.unwrap().0, 3);
        // The topic was deleted.
        assert_eq!(wait_until_done(&[Some(&[(Some(5), Some(10))]), Some(&[])]).await.unwrap().0, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_transaction_delays_the_job_only_before_its_own_records() {
        let topic = TopicName::new("t").unwrap();
        let partition = TopicPartition::new(topic.clone(), 0);
        let (found, mut bus) = (partition.clone(), MockBus::new());
        bus.expect_groups().returning(move |_| {
            let found = GroupPartition::new(found.clone(), Some(5), 9).with_last_stable(Some(5));
            Ok(vec![GroupInfo::new(GroupId::new("g")?, GroupState::Stable, Vec::new(), vec![found])])
        });
        let query = GroupQuery::one(GroupId::new("g").unwrap()).with_topics(Selection::one(topic.clone()));
        let counters = JobCounters::default();
        let wait = async |counters: &JobCounters| {
            tokio::time::timeout(Duration::from_hours(1), wait_until_caught_up(&bus, &query, counters))
                .await
                .is_ok()
        };
        let delivery = |offset| Delivery::new(0, offset, None);
        counters.record_deliveries(&topic, [delivery(4), delivery(3)].iter());
        assert!(wait(&counters).await, "everything before the transaction is committed");
        counters.record_deliveries(&topic, [delivery(7)].iter());
        assert!(!wait(&counters).await, "the message at offset 7 is not stored");
    }

    #[tokio::test(start_paused = true)]
    async fn the_job_waits_for_unknown_commits_and_end_offsets() {
        let incomplete: &[GroupResponse] = &[
            None,
            Some(&[(Some(3), Some(3)), (None, Some(3))]),
            Some(&[(Some(3), Some(3)), (Some(0), None)]),
            Some(&[(Some(3), Some(3)), (Some(3), Some(3))]),
        ];
        assert_eq!(wait_until_done(incomplete).await.unwrap().0, 4);
        assert!(wait_until_done(&[Some(&[(Some(3), Some(4))])]).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_delay_between_lag_checks_grows_to_one_second() {
        const BEHIND: GroupResponse = Some(&[(Some(0), Some(1))]);
        const DONE: GroupResponse = Some(&[(Some(1), Some(1))]);
        const RESPONSES: [GroupResponse; 101] = {
            let mut checks = [BEHIND; 101];
            checks[100] = DONE;
            checks
        };
        let (requests, waited) = wait_until_done(&RESPONSES).await.unwrap();
        assert_eq!(requests, 101);
        // The delays double from 20 ms up to 1 s.
        assert!(waited > Duration::from_secs(90) && waited < Duration::from_secs(100), "{waited:?}");
    }
}
