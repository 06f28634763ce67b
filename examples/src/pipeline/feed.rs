//! The feed: publishes a source to its end, and then ends.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use qi_core::agent::{Agent, AgentContext};
use qi_core::bus::{DeliveryState, Json, Message, MessageBus, PublishOptions, TopicName, encode_message};
use qi_core::{Error, Result};

use super::record::Record;
use super::source::{Input, Source};
use super::tally::Tally;

/// How many records are published at once.
const BATCH: usize = 1_000;
/// How long to wait before what is not delivered is sent again; the bus's own retries lie inside of a publish.
const PAUSE: Duration = Duration::from_millis(100);

/// Publishes every record of a source. What the bus did not take is sent again until it has it; what it may or may
/// not have (`Unknown`) is sent again too and counted, which the store's keys make harmless.
pub struct Feed<T> {
    /// Where records go.
    pub bus: Arc<dyn MessageBus>,
    /// The topic.
    pub topic: TopicName,
    /// Where they come from.
    pub source: Source<T>,
    /// What is counted.
    pub tally: Arc<Tally>,
    /// Whether a bad line ends the feed.
    pub strict: bool,
}

#[async_trait]
impl<T: Record> Agent for Feed<T> {
    async fn run(&mut self, cx: &AgentContext) -> Result<()> {
        loop {
            let records = self.next_batch()?;
            if records.is_empty() {
                return Ok(());
            }
            let batch: Vec<Message> = records
                .iter()
                .map(|record| encode_message::<Json, T>(record, Some(&self.topic)))
                .collect::<Result<_>>()?;
            if !self.deliver(cx, batch).await? {
                return Ok(());
            }
            self.tally.sent(records.iter().map(Record::instrument));
            // Parsing and encoding take no `.await`: others get their turn here.
            tokio::task::yield_now().await;
        }
    }
}

impl<T: Record> Feed<T> {
    /// The next records. Reading 1,000 lines of a local file blocks for less than a millisecond.
    fn next_batch(&mut self) -> Result<Vec<T>> {
        let mut records = Vec::with_capacity(BATCH);
        while records.len() < BATCH {
            match self.source.next() {
                Some(Ok(record)) => records.push(record),
                Some(Err(Input::BadLine(error))) if !self.strict => self.tally.bad_line(error),
                Some(Err(Input::BadLine(error))) => {
                    self.tally.bad_line(error.clone());
                    return Err(error);
                }
                Some(Err(Input::Broken(error))) => return Err(error),
                None => break,
            }
        }
        Ok(records)
    }

    /// Sends until every message is acknowledged; false if the feed is to end before.
    async fn deliver(&mut self, cx: &AgentContext, mut batch: Vec<Message>) -> Result<bool> {
        loop {
            let Some(report) = cx.until_cancelled(self.bus.publish(&batch, PublishOptions::NONE)).await
            else {
                return Ok(false);
            };
            let unknown = match report {
                Ok(report) => {
                    let outcomes = report.outcomes();
                    if let Some(error) = outcomes.iter().filter_map(|o| o.as_ref().err()).find_map(for_good) {
                        return Err(error);
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
                return Ok(true);
            }
            self.tally.again(unknown);
            cx.degraded(format_args!("{} messages are sent again", batch.len()));
            if cx.sleep(PAUSE).await.is_none() {
                return Ok(false);
            }
            cx.healthy();
        }
    }
}

/// The error of a message that sending again cannot help.
fn for_good(failure: &qi_core::bus::DeliveryError) -> Option<Error> {
    let refused = failure.state == DeliveryState::NotSent && !failure.error.retry().is_retryable();
    refused.then(|| failure.error.clone())
}
