//! The feed: publishes a source completely, and then ends.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use qi_core::agent::{Agent, AgentContext};
use qi_core::bus::{
    DeliveryState, GroupQuery, Message, MessageBus, PublishOptions, TopicName, encode_records,
};
use qi_core::record::Slice;
use qi_core::{Error, ErrorKind, Instrument, Result, ResultExt as _};
use qi_files::{Batch, Numbering, Source};
use tokio_util::task::AbortOnDropHandle;

use super::counters::JobCounters;
use super::record::Record;
use super::wait_until_caught_up;

/// The number of records of one publish.
const BATCH: usize = 4_096;
/// The pause before undelivered messages are sent again. The bus's own retries happen within a publish.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// An agent that publishes every record of a source. It reads and encodes the next batch while one batch is published,
/// so the records of an instrument keep their order.
///
/// A message without an acknowledgement is published again. If its outcome is unknown, it may be on the topic twice.
/// Such messages are counted, and the store's keys make them harmless.
pub struct Feed<T> {
    /// The bus.
    pub bus: Arc<dyn MessageBus>,
    /// The topic.
    pub topic: TopicName,
    /// The source of the records.
    pub source: Source<T>,
    /// The counters.
    pub counters: Arc<JobCounters>,
    /// True to stop at the first bad line.
    pub strict: bool,
}

#[async_trait]
impl<T: Record> Agent for Feed<T> {
    async fn run(&mut self, cx: &AgentContext) -> Result<()> {
        self.publish(cx, None).await
    }
}

/// A feed that numbers the trades of a source without ids after those in the store.
pub(super) struct NumberedFeed<T> {
    pub(super) feed: Feed<T>,
    pub(super) numbering: Numbering,
    /// The group that stores what the feed publishes.
    pub(super) query: GroupQuery,
}

#[async_trait]
impl<T: Record> Agent for NumberedFeed<T> {
    async fn run(&mut self, cx: &AgentContext) -> Result<()> {
        self.feed.publish(cx, Some((&mut self.numbering, &self.query))).await
    }
}

impl<T: Record> Feed<T> {
    async fn publish(
        &mut self,
        cx: &AgentContext,
        mut numbering: Option<(&mut Numbering, &GroupQuery)>,
    ) -> Result<()> {
        let mut in_progress = None;
        let mut batch = Batch::default();
        while !batch.ended {
            let Some(read) = cx.until_cancelled(self.read(batch)).await else { return Ok(()) };
            batch = match read {
                Ok(batch) => batch,
                Err(error) => {
                    // The records before the fault are published.
                    wait_delivered(in_progress).await?;
                    return Err(error);
                }
            };
            if let Some((numbering, query)) = numbering.as_mut().filter(|_| batch.has_ordinals) {
                if batch.begins.is_some() {
                    // The numbers of a file continue those of the files before it, whose records must be stored.
                    if !wait_delivered(in_progress.take()).await? {
                        return Ok(());
                    }
                    if cx
                        .until_cancelled(wait_until_caught_up(&*self.bus, query, &self.counters))
                        .await
                        .is_none()
                    {
                        return Ok(());
                    }
                    numbering.restart();
                }
                if !number(cx, numbering, &mut batch).await? {
                    return Ok(());
                }
            }
            for records in std::mem::take(&mut batch.records).chunks(BATCH) {
                let encoding = self.bus.info().encoding;
                let batch = encode_records(&encoding, &Slice::new(records)?, Some(&self.topic))?;
                if !wait_delivered(in_progress.take()).await? {
                    return Ok(());
                }
                let delivery = PublishTask {
                    cx: cx.clone(),
                    bus: self.bus.clone(),
                    counters: self.counters.clone(),
                    instruments: records.iter().map(|record| record.instrument().clone()).collect(),
                };
                in_progress = Some(AbortOnDropHandle::new(tokio::spawn(delivery.publish(batch, set_health))));
            }
            // On a runtime with one thread, its main future runs only while tasks yield.
            tokio::task::yield_now().await;
        }
        wait_delivered(in_progress).await.map(drop)
    }

    /// Reads on a thread for blocking work, so that a slow file or a file of bad lines delays no other task.
    async fn read(&mut self, batch: Batch<T>) -> Result<Batch<T>> {
        let mut source = std::mem::replace(&mut self.source, Box::new(std::iter::empty()));
        let (counters, strict) = (Arc::clone(&self.counters), self.strict);
        let work = move || {
            let batch = batch.read_next(&mut source, |error| {
                counters.bad_line(error.clone());
                if strict { Err(error) } else { Ok(()) }
            });
            (source, batch)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok((source, batch)) => {
                self.source = source;
                batch
            }
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => Err(error).permanent("pipeline.feed", "read"),
            },
        }
    }
}

/// Waits for the batch in progress. Returns false if the feed must stop before.
async fn wait_delivered(in_progress: Option<AbortOnDropHandle<Result<bool>>>) -> Result<bool> {
    let Some(in_progress) = in_progress else { return Ok(true) };
    match in_progress.await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(Error::new(ErrorKind::Closed, "pipeline.feed", "publish").with_source(error)),
        },
    }
}

/// A publish in progress.
pub(crate) struct PublishTask {
    pub(crate) cx: AgentContext,
    pub(crate) bus: Arc<dyn MessageBus>,
    pub(crate) counters: Arc<JobCounters>,
    pub(crate) instruments: Vec<Instrument>,
}

impl PublishTask {
    /// Publishes until every message is acknowledged. Returns false if the feed must stop before. `set_degraded` receives
    /// the reason before messages are sent again, and then None.
    pub(crate) async fn publish(
        self,
        mut batch: Vec<Message>,
        set_degraded: impl Fn(&AgentContext, Option<String>),
    ) -> Result<bool> {
        let cx = &self.cx;
        loop {
            let Some(report) = cx.until_cancelled(self.bus.publish(&batch, PublishOptions::NONE)).await
            else {
                return Ok(false);
            };
            let unknown = match report {
                Ok(report) => {
                    let outcomes = report.outcomes();
                    if let Some(error) =
                        outcomes.iter().filter_map(|o| o.as_ref().err()).find_map(permanent_error)
                    {
                        return Err(error);
                    }
                    if let Some(topic) = batch.first().map(|message| &message.topic) {
                        self.counters.record_deliveries(topic, outcomes.iter().flatten());
                    }
                    let unknown = report.failed(DeliveryState::Unknown).count() as u64;
                    let mut outcomes = outcomes.iter();
                    batch.retain(|_| outcomes.next().is_some_and(Result::is_err));
                    unknown
                }
                Err(error) if error.retry().is_retryable() => 0,
                Err(error) => return Err(error),
            };
            if batch.is_empty() {
                self.counters.count_published(self.instruments.iter());
                return Ok(true);
            }
            self.counters.count_resent(unknown);
            set_degraded(cx, Some(format!("{} messages are sent again", batch.len())));
            if cx.sleep(RETRY_DELAY).await.is_none() {
                return Ok(false);
            }
            set_degraded(cx, None);
        }
    }
}

/// Reports the agent as degraded for a reason, or as healthy.
fn set_health(cx: &AgentContext, reason: Option<String>) {
    match reason {
        Some(reason) => cx.degraded(reason),
        None => cx.healthy(),
    }
}

/// Numbers the records of a part. Returns false if the feed must stop before. Retries while the store is unavailable.
async fn number<T: Record>(
    cx: &AgentContext,
    numbering: &mut Numbering,
    batch: &mut Batch<T>,
) -> Result<bool> {
    loop {
        let numbered = T::number(numbering, &mut batch.records, batch.ahead.as_ref());
        match cx.until_cancelled(numbered).await {
            None => return Ok(false),
            Some(Ok(())) => {
                cx.healthy();
                return Ok(true);
            }
            Some(Err(error)) if error.retry().is_retryable() => cx.degraded(error.code()),
            Some(Err(error)) => return Err(error),
        }
        if cx.sleep(RETRY_DELAY).await.is_none() {
            return Ok(false);
        }
    }
}

/// Returns the error of a message that was rejected permanently.
fn permanent_error(failure: &qi_core::bus::DeliveryError) -> Option<Error> {
    let is_permanent = failure.state == DeliveryState::NotSent && !failure.error.retry().is_retryable();
    is_permanent.then(|| failure.error.clone())
}
