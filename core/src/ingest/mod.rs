//! [`Ingest`]: moves the records of a topic into a store.

mod batch;
mod config;
mod progress;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument as _, Span};

pub use config::IngestConfig;
pub use progress::IngestProgress;

use crate::agent::{Agent, AgentContext, ExitReason};
use crate::bus::{
    MessageBus, MessageBusExt as _, Offsets, RejectedMessage, SubscribeRequest, Subscription,
    SubscriptionEvent, TopicPartition, TopicState,
};
use crate::deadline::later;
use crate::telemetry::{
    INGEST_BATCH, INGEST_BYTES, INGEST_DELAY, INGEST_RECORDS, INGEST_RETRIES, INGEST_STAGE,
};
use crate::{Clock as _, Dataset, Error, ErrorKind, PriceStore, Result, RetryAdvice, SystemClock};
use batch::Batch;

/// The maximum number of messages that one `recv` returns. Decoding them takes about a millisecond.
const MAX_RECV: usize = 1_000;
/// The time that a `recv` waits for messages.
const RECV_WAIT: Duration = Duration::from_secs(1);

/// An ingest that moves the records of one dataset from a bus to a store, as a member of a consumer group.
///
/// # Guarantees
/// - The order for every message is: store the record, publish a dead letter if the message has no valid record,
///   commit. No record and no dead letter is lost. After a crash some are written again. The repetition is harmless,
///   because records have keys and dead letters have their origin.
/// - Only one insert is in progress at a time, so the records of a series are stored in the order of their partition.
/// - A retryable error of the store or the bus is retried with backoff until it succeeds or the ingest must stop.
///   Meanwhile at most one further batch is received.
/// - When partitions are revoked, received records are stored and committed first.
/// - Dropping the future of [`Ingest::run_until`] aborts the insert in progress, whose outcome is then unknown. Nothing
///   more is committed, so no message is lost.
///
/// # Usage
/// Run the ingest as an [`Agent`] under the runtime, or call [`Ingest::run_until`]. An agent reports itself
/// as degraded while it retries. [`guide::ingest`](crate::guide::ingest) shows an agent, and describes the settings and
/// the metrics.
///
/// The stages overlap: while one batch is stored, the next messages are received and decoded. A batch consists of the
/// messages that arrived while the previous batch was stored. An idle topic therefore has the delay of one insert, and
/// a backlog has the throughput of large inserts.
///
/// ```no_run
/// use std::sync::Arc;
/// use qi_core::bus::{GroupId, MessageBus, SubscribeRequest, TopicName};
/// use qi_core::{Ingest, IngestConfig, PriceStore, PriceTick, Result};
///
/// async fn store_ticks(bus: Arc<dyn MessageBus>, store: Arc<dyn PriceStore>) -> Result<()> {
///     let request = SubscribeRequest::new(GroupId::new("writer")?, [TopicName::new("crypto-prices")?])?;
///     let mut ingest =
///         Ingest::open(bus, store, PriceTick::DATASET, request, IngestConfig::default()).await?;
///     ingest.run_until(async { drop(tokio::signal::ctrl_c().await) }).await?;
///     ingest.close().await
/// }
/// ```
#[derive(Debug)]
pub struct Ingest {
    shared: Arc<Context>,
    subscription: Box<dyn Subscription>,
    context: Option<AgentContext>,
    /// True after a run that was dropped or failed. Its received messages are not stored, and the subscription has
    /// passed them.
    ended: bool,
}

/// The values that the stages share.
#[derive(Debug)]
struct Context {
    bus: Arc<dyn MessageBus>,
    store: Arc<dyn PriceStore>,
    dataset: Dataset,
    config: IngestConfig,
    progress: Arc<IngestProgress>,
}

impl Context {
    /// Records the duration of a stage.
    fn observe(&self, stage: &'static str, began: Instant) {
        metrics::histogram!(INGEST_STAGE.name, "dataset" => self.dataset.name(), "stage" => stage)
            .record(began.elapsed().as_secs_f64());
    }

    /// Returns the delay after a number of failures.
    fn retry_delay(&self, failures: u32, error: &Error) -> Duration {
        let delay = self.config.backoff.delay(failures, fastrand::f64());
        if let RetryAdvice::After(min) = error.retry() { delay.max(min) } else { delay }
    }

    /// Repeats a call until it succeeds, fails with an error that is not retryable, or fails after `stop`.
    async fn retry<'a>(
        &'a self,
        stages: &Stages,
        stage: Stage,
        stop: &CancellationToken,
        call: impl Fn() -> BoxFuture<'a, Result<()>> + Send,
    ) -> Result<()> {
        let began = Instant::now();
        let mut failures = 0;
        while let Err(error) = call().await {
            if !error.retry().is_retryable() || stop.is_cancelled() {
                return Err(error);
            }
            stages.failed(self.dataset, stage, &error);
            failures += 1;
            let delay = tokio::time::sleep(self.retry_delay(failures, &error));
            stop.run_until_cancelled(delay).await;
        }
        stages.succeeded(stage);
        self.observe(stage.as_str(), began);
        Ok(())
    }
}

/// Stores a batch, then publishes its dead letters.
async fn write(
    shared: Arc<Context>,
    stages: Arc<Stages>,
    batch: Batch,
    stop: CancellationToken,
) -> Result<()> {
    let Context { bus, store, dataset, config, progress } = &*shared;
    let records = batch.records.as_records();
    if !records.is_empty() {
        let insert = || -> BoxFuture<'_, Result<()>> {
            Box::pin(async { store.insert(batch.records.as_records()).await.map(drop) })
        };
        shared.retry(&stages, Stage::Store, &stop, insert).await?;
        progress.add(records.len(), 0);
        let dataset = dataset.name();
        metrics::counter!(INGEST_RECORDS.name, "dataset" => dataset).increment(records.len() as u64);
        metrics::counter!(INGEST_BYTES.name, "dataset" => dataset).increment(batch.bytes as u64);
        #[expect(clippy::cast_precision_loss, reason = "a batch is far below 2^52 records")]
        metrics::histogram!(INGEST_BATCH.name, "dataset" => dataset).record(records.len() as f64);
        if let Some(oldest) = batch.oldest {
            let delay = SystemClock.now().duration_since(oldest);
            metrics::histogram!(INGEST_DELAY.name, "dataset" => dataset).record(delay.as_secs_f64());
        }
    }
    if !batch.rejected.is_empty() {
        let publish =
            || -> BoxFuture<'_, Result<()>> { Box::pin(send_dead_letters(&**bus, &batch.rejected, config)) };
        shared.retry(&stages, Stage::DeadLetters, &stop, publish).await?;
    }
    progress.add(0, batch.rejected.len());
    Ok(())
}

/// Publishes dead letters. If their topic was deleted, it is created again and the error is retryable.
async fn send_dead_letters(
    bus: &dyn MessageBus,
    rejected: &[RejectedMessage],
    config: &IngestConfig,
) -> Result<()> {
    let sent = bus.send_dead_letters(rejected, &config.dead_letters).await;
    let (Err(error), Some(topic)) = (&sent, &config.dead_letter_topic) else { return sent };
    if error.kind() != ErrorKind::NotFound {
        return sent;
    }
    for outcome in bus.create_topics(std::slice::from_ref(topic)).await? {
        if outcome.result? == TopicState::Created {
            tracing::warn!(topic = %topic.name, "the dead letter topic did not exist and was created");
        }
    }
    sent.map_err(|error| error.with_retry(RetryAdvice::Backoff))
}

/// Waits for the write in progress.
async fn written(write: &mut Option<AbortOnDropHandle<Result<()>>>) -> Result<()> {
    let Some(write) = write else { return std::future::pending().await };
    match write.await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The task was cancelled, because the runtime shuts down.
            Err(error) => Err(Error::new(ErrorKind::Closed, "ingest.write", "ingest").with_source(error)),
        },
    }
}

impl Ingest {
    /// Subscribes to the bus and creates the ingest of `dataset`.
    ///
    /// # Errors
    /// `InvalidInput` for a limit of 0; the errors of [`MessageBus::subscribe`], which the ingest does not retry.
    ///
    /// In an agent that [`AgentSpec::new_async`](crate::agent::AgentSpec::new_async) creates, a retryable error
    /// restarts the agent with backoff, without a limit. An expired init timeout counts as a crash instead, and the
    /// number of crashes is limited. The default of
    /// [`AgentSpec::init_timeout`](crate::agent::AgentSpec::init_timeout) is above the longest wait of `subscribe`, which
    /// [`guide::operations`](crate::guide::operations) lists.
    pub async fn open(
        bus: Arc<dyn MessageBus>,
        store: Arc<dyn PriceStore>,
        dataset: Dataset,
        request: SubscribeRequest,
        mut config: IngestConfig,
    ) -> Result<Self> {
        config.check()?;
        // The store would reject a larger batch at every attempt.
        config.max_records = config.max_records.min(store.info().max_batch.max(1));
        let subscription = bus.subscribe(request.with_announced_revocations()).await?;
        let shared = Context { bus, store, dataset, config, progress: Arc::default() };
        Ok(Self { shared: Arc::new(shared), subscription, context: None, ended: false })
    }

    /// Sets the counters. Several ingests may share them, for example the ingests before and after a restart.
    #[must_use]
    pub fn with_progress(mut self, progress: Arc<IngestProgress>) -> Self {
        // The parts are not shared before a run, so the call succeeds.
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.progress = progress;
        }
        self
    }

    /// Returns the dataset of the stored records.
    pub fn dataset(&self) -> Dataset {
        self.shared.dataset
    }

    /// Returns the settings.
    pub fn config(&self) -> &IngestConfig {
        &self.shared.config
    }

    /// Returns the counters of processed messages.
    pub fn progress(&self) -> &Arc<IngestProgress> {
        &self.shared.progress
    }

    /// Moves records until `stop` completes. Received records are stored and committed before the method returns.
    ///
    /// # Errors
    /// A store or bus error that is not retryable. After `stop`, any error while the received records are stored.
    /// Uncommitted messages are redelivered to the next member, so open a new ingest after an error.
    ///
    /// `Closed` after a run that failed or was dropped.
    pub async fn run_until(&mut self, stop: impl Future<Output = ()> + Send) -> Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Err(Error::closed("ingest.ended", "ingest")
                .with_message("an earlier run failed or was dropped; open the ingest again"));
        }
        let stages = Stages { failing: AtomicU8::new(0), context: self.context.clone() };
        let mut run = Run::new(self.shared.clone(), stages);
        let result = run.receive(&mut *self.subscription, stop).await;
        let result = result.and(run.drain(&mut *self.subscription).await);
        self.ended = result.is_err();
        result
    }

    /// Leaves the consumer group. The bus and the store stay open.
    ///
    /// # Errors
    /// The errors of [`Subscription::close`].
    pub async fn close(&mut self) -> Result<()> {
        self.subscription.close().await
    }
}

/// Runs until the agent must stop, and leaves the group in `cleanup`.
#[async_trait]
impl Agent for Ingest {
    async fn run(&mut self, cx: &AgentContext) -> Result<()> {
        self.context = Some(cx.clone());
        self.run_until(cx.cancelled()).await
    }

    async fn cleanup(&mut self, _cx: &AgentContext, _exit: &ExitReason) -> Result<()> {
        self.close().await
    }
}

/// A stage that can fail and recover.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Receive,
    Store,
    DeadLetters,
    Commit,
}

impl Stage {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Store => "store",
            Self::DeadLetters => "dead_letters",
            Self::Commit => "commit",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The stages that currently fail.
#[derive(Debug)]
struct Stages {
    failing: AtomicU8,
    context: Option<AgentContext>,
}

impl Stages {
    fn failed(&self, dataset: Dataset, stage: Stage, error: &Error) {
        let (dataset, kind) = (dataset.name(), error.kind().as_str());
        metrics::counter!(INGEST_RETRIES.name, "dataset" => dataset, "stage" => stage.as_str(), "kind" => kind)
            .increment(1);
        if self.failing.fetch_or(stage.bit(), Ordering::Relaxed) & stage.bit() == 0 {
            tracing::warn!(dataset, stage = stage.as_str(), error = %error.report(), "ingest stage failed and is retried");
        }
        if let Some(context) = &self.context {
            // A repeated call is progress. The agent must outlast an outage.
            context.heartbeat();
            context.degraded(format_args!("{}: {}", stage.as_str(), error.code()));
        }
    }

    fn succeeded(&self, stage: Stage) {
        if let Some(context) = &self.context {
            context.heartbeat();
        }
        let before = self.failing.fetch_and(!stage.bit(), Ordering::Relaxed);
        if before == stage.bit()
            && let Some(context) = &self.context
        {
            context.healthy();
        }
    }
}

/// The state of one call of [`Ingest::run_until`].
struct Run {
    shared: Arc<Context>,
    stages: Arc<Stages>,
    /// The decoded messages that are not being stored yet.
    pending: Batch,
    /// The write of the current batch.
    write: Option<AbortOnDropHandle<Result<()>>>,
    /// The offsets after the batch that is being stored.
    writing: Offsets,
    /// The stored offsets that are not committed.
    stored: Offsets,
    commit_at: Instant,
    /// The earliest time of the next `recv`, after failed calls of the subscription.
    receive_at: Instant,
    failures: u32,
    /// True while a revocation waits until everything is stored and committed.
    revoking: bool,
    /// Ends the retries of the write.
    stop: CancellationToken,
    failed: bool,
}

impl Run {
    fn new(shared: Arc<Context>, stages: Stages) -> Self {
        let pending = Batch::new(shared.dataset);
        Self {
            shared,
            stages: Arc::new(stages),
            pending,
            write: None,
            writing: Offsets::new(),
            stored: Offsets::new(),
            commit_at: Instant::now(),
            receive_at: Instant::now(),
            failures: 0,
            revoking: false,
            stop: CancellationToken::new(),
            failed: false,
        }
    }

    /// Receives, stores and commits until `stop` completes.
    async fn receive(
        &mut self,
        subscription: &mut dyn Subscription,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<()> {
        let mut stop = pin!(stop);
        loop {
            self.begin_write();
            if self.revoking && self.write.is_none() {
                // The next `recv` gives up the partitions, after everything is committed.
                self.revoking = !self.stored.is_empty();
                self.commit_at = self.receive_at;
            }
            let (receive_limit, receive_at, commit_at) =
                (self.receive_limit(), self.receive_at, self.commit_at);
            tokio::select! {
                biased;
                () = &mut stop => return Ok(()),
                written = written(&mut self.write), if self.write.is_some() => self.end_write(written)?,
                () = sleep_until(commit_at), if !self.stored.is_empty() => self.commit(subscription).await?,
                received = async {
                    sleep_until(receive_at).await;
                    subscription.recv(receive_limit, RECV_WAIT).await
                }, if receive_limit > 0 => self.add(received)?,
            }
        }
    }

    /// Stores and commits the received messages.
    async fn drain(&mut self, subscription: &mut dyn Subscription) -> Result<()> {
        self.stop.cancel();
        let mut result = Ok(());
        while !self.failed {
            self.begin_write();
            let Some(_) = self.write else { break };
            let written = written(&mut self.write).await;
            result = self.end_write(written);
        }
        // Also after a failed write, for the batches before it.
        if self.stored.is_empty() {
            result
        } else {
            result.and(subscription.commit(&self.stored).await.map(drop))
        }
    }

    /// Returns the number of messages that may be received now.
    fn receive_limit(&self) -> usize {
        let IngestConfig { max_records, max_bytes, .. } = self.shared.config;
        if self.revoking || self.pending.bytes >= max_bytes {
            return 0;
        }
        max_records.saturating_sub(self.pending.messages).min(MAX_RECV)
    }

    fn add(&mut self, received: Result<crate::bus::Batch>) -> Result<()> {
        let batch = match received {
            Ok(batch) => batch,
            Err(error) => return self.back_off(Stage::Receive, error),
        };
        self.succeeded(Stage::Receive);
        for event in batch.events() {
            self.apply(event);
        }
        let began = Instant::now();
        self.pending.add(&batch, &self.shared.config.codecs);
        self.shared.observe("decode", began);
        self.add_offsets_without_messages();
        Ok(())
    }

    /// Adds offsets without messages, such as transaction markers, to the stored offsets once all earlier messages are
    /// stored.
    fn add_offsets_without_messages(&mut self) {
        if self.pending.messages == 0 && self.write.is_none() {
            let offsets = std::mem::take(&mut self.pending.offsets);
            self.add_stored(&offsets);
        }
    }

    /// Applies an event of the subscription to the uncommitted offsets.
    fn apply(&mut self, event: &SubscriptionEvent) {
        match event {
            SubscriptionEvent::RevocationPending => self.revoking = true,
            SubscriptionEvent::AssignmentChanged { lost, .. } => {
                self.drop_offsets(|partition| lost.contains(partition));
            }
            SubscriptionEvent::Reset { partition, .. } => self.drop_offsets(|other| other == partition),
            SubscriptionEvent::MaxPollIntervalExceeded => self.drop_offsets(|_| true),
            SubscriptionEvent::TopicDeleted { topic } => {
                self.drop_offsets(|partition| partition.topic == *topic);
            }
        }
    }

    /// Drops the offsets of lost or reset partitions, which must not be committed.
    fn drop_offsets(&mut self, is_lost: impl Fn(&TopicPartition) -> bool) {
        for offsets in [&mut self.pending.offsets, &mut self.writing, &mut self.stored] {
            offsets.retain(|partition| !is_lost(partition));
        }
    }

    fn begin_write(&mut self) {
        if self.write.is_some() || self.pending.messages == 0 {
            return;
        }
        let mut batch = std::mem::replace(&mut self.pending, Batch::new(self.shared.dataset));
        self.writing = std::mem::take(&mut batch.offsets);
        let span = batch.span.take();
        let write = write(self.shared.clone(), self.stages.clone(), batch, self.stop.clone());
        let write = write.instrument(span.unwrap_or_else(Span::none));
        self.write = Some(AbortOnDropHandle::new(tokio::spawn(write)));
    }

    fn end_write(&mut self, written: Result<()>) -> Result<()> {
        self.write = None;
        let offsets = std::mem::take(&mut self.writing);
        self.failed = written.is_err();
        written?;
        self.add_stored(&offsets);
        self.add_offsets_without_messages();
        Ok(())
    }

    /// Adds offsets to the next commit.
    fn add_stored(&mut self, offsets: &Offsets) {
        if self.stored.is_empty() {
            self.commit_at = self.commit_at.max(Instant::now());
        }
        self.stored.merge(offsets);
    }

    async fn commit(&mut self, subscription: &mut dyn Subscription) -> Result<()> {
        let began = Instant::now();
        self.commit_at = later(self.shared.config.commit_interval);
        if self.stored.is_empty() {
            return Ok(());
        }
        match subscription.commit(&self.stored).await {
            Ok(_) => {
                self.shared.observe(Stage::Commit.as_str(), began);
                self.stored = Offsets::new();
                self.succeeded(Stage::Commit);
                Ok(())
            }
            Err(error) => self.back_off(Stage::Commit, error),
        }
    }

    /// Delays the next call of the subscription. Returns the error if it is not retryable.
    fn back_off(&mut self, stage: Stage, error: Error) -> Result<()> {
        if !error.retry().is_retryable() {
            return Err(error);
        }
        self.stages.failed(self.shared.dataset, stage, &error);
        self.failures = self.failures.saturating_add(1);
        self.receive_at = later(self.shared.retry_delay(self.failures, &error));
        self.commit_at = self.commit_at.max(self.receive_at);
        Ok(())
    }

    fn succeeded(&mut self, stage: Stage) {
        self.failures = 0;
        self.stages.succeeded(stage);
    }
}
