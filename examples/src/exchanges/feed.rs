//! The agent of one instrument.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use qi_core::agent::{Agent, AgentContext};
use qi_core::bus::{GroupQuery, MessageBus, TopicName, encode_records};
use qi_core::record::Slice;
use qi_core::{Error, Instrument, PriceStore, PriceTick, Result};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::audit::Audit;
use super::config::{LiveConfig, LiveCounters};
use super::protocol::{Protocol, Trade};
use super::published::Published;
use super::rest::RestClient;
use crate::pipeline::{JobCounters, PublishTask, wait_until_caught_up};

/// The largest number of ticks that wait for the bus. A full queue delays the reading of the stream.
const QUEUE: usize = 8_192;
/// The largest number of ticks in one publish.
const BATCH: usize = 4_096;

/// An agent that publishes the trades of one instrument of an exchange, without gaps.
///
/// - Every id is published once, in any order. The order of new trades is the order of the stream; trades of a gap follow
///   later.
/// - Missing ids are fetched from the exchange's history.
/// - The ledger of the store states which ids are complete. The agent derives it from the trades in the store.
/// - A restart continues from the ledger.
pub struct LiveFeed {
    /// The instrument.
    pub instrument: Instrument,
    /// The protocol of the exchange.
    pub protocol: Arc<dyn Protocol>,
    /// The address of the stream.
    pub stream_url: String,
    /// The history of the exchange.
    pub rest: Arc<RestClient>,
    /// The store that the writer moves the ticks to. It knows the dataset of [`qi_files::coverage::Coverage`].
    pub store: Arc<dyn PriceStore>,
    /// The bus.
    pub bus: Arc<dyn MessageBus>,
    /// The topic.
    pub topic: TopicName,
    /// The group of the writer. The agent waits at its start until the group has stored the messages of earlier runs.
    pub writer: Option<GroupQuery>,
    /// The settings.
    pub config: LiveConfig,
    /// The counters of the job.
    pub counters: Arc<JobCounters>,
    /// The counters of the feed.
    pub live: Arc<LiveCounters>,
}

/// A cause for which an agent is degraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DegradedCause {
    Connection,
    Exchange,
    Bus,
    History,
    Ledger,
}

/// The values that the parts of a running agent share.
pub(super) struct Channel<'a> {
    /// The exchange's symbol.
    pub(super) symbol: &'a str,
    published: &'a Mutex<Published>,
    queue: mpsc::Sender<PriceTick>,
    /// Ends the pause before the next search for gaps.
    pub(super) reconnected: &'a Notify,
    causes: &'a Mutex<BTreeMap<DegradedCause, String>>,
}

impl Channel<'_> {
    pub(super) fn published(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a search for the trades that the stream missed before this subscription.
    pub(super) fn subscribed(&self) {
        let mut published = self.published();
        (published.is_latest_wanted, published.is_stream_behind) = (true, false);
        published.gap_since.get_or_insert_with(Instant::now);
        drop(published);
        self.reconnected.notify_one();
    }

    /// Sets or clears the reason of a cause. The agent is healthy if no cause has a reason.
    pub(super) fn set_degraded(&self, cx: &AgentContext, cause: DegradedCause, reason: Option<String>) {
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        match reason {
            Some(reason) => drop(causes.insert(cause, reason)),
            None if causes.remove(&cause).is_none() => return,
            None => {}
        }
        match causes.values().next() {
            Some(reason) => cx.degraded(reason),
            None => cx.healthy(),
        }
    }
}

#[async_trait]
impl Agent for LiveFeed {
    async fn run(&mut self, cx: &AgentContext) -> Result<()> {
        let symbol = self.protocol.symbol(&self.instrument)?;
        if let Some(writer) = &self.writer
            && cx.until_cancelled(wait_until_caught_up(&*self.bus, writer, &self.counters)).await.is_none()
        {
            return Ok(());
        }
        let Some(audit) = cx.until_cancelled(Audit::begin(self, &symbol)).await else { return Ok(()) };
        let audit = audit?;
        let published = Mutex::new(Published::new(audit.ledger()));
        let (queue, ticks) = mpsc::channel(QUEUE);
        let (causes, reconnected) = (Mutex::default(), Notify::new());
        let channel = Channel {
            symbol: &symbol,
            published: &published,
            queue,
            reconnected: &reconnected,
            causes: &causes,
        };
        tokio::try_join!(
            self.read_stream(cx, &channel),
            self.fill_gaps(cx, &channel),
            audit.run(cx, &channel),
            self.send(cx, &channel, ticks),
        )
        .map(drop)
    }
}

impl LiveFeed {
    /// Queues the trades that were not published before, and returns their number.
    pub(super) async fn publish(
        &self,
        channel: &Channel<'_>,
        trades: impl IntoIterator<Item = Trade>,
    ) -> Result<u64> {
        let mut count = 0;
        for trade in trades {
            let Ok(tick) = trade.tick(&self.instrument) else {
                self.live.bad_frame();
                continue;
            };
            if !channel.published().insert(trade.id, trade.time) {
                self.live.duplicate();
                continue;
            }
            let closed = |_| Error::closed("live.queue", "publish");
            channel.queue.send(tick).await.map_err(closed)?;
            count += 1;
        }
        Ok(count)
    }

    /// Publishes the queued ticks to the bus, one batch at a time and in their order.
    async fn send(
        &self,
        cx: &AgentContext,
        channel: &Channel<'_>,
        mut ticks: mpsc::Receiver<PriceTick>,
    ) -> Result<()> {
        let set_degraded = |cx: &AgentContext, reason| channel.set_degraded(cx, DegradedCause::Bus, reason);
        let mut batch = Vec::new();
        loop {
            if cx.until_cancelled(ticks.recv_many(&mut batch, BATCH)).await.is_none_or(|count| count == 0) {
                return Ok(());
            }
            let encoding = self.bus.info().encoding;
            let messages = encode_records(&encoding, &Slice::new(&batch)?, Some(&self.topic))?;
            let task = PublishTask {
                cx: cx.clone(),
                bus: self.bus.clone(),
                counters: self.counters.clone(),
                instruments: batch.iter().map(|tick| tick.instrument().clone()).collect(),
            };
            if !task.publish(messages, set_degraded).await? {
                return Ok(());
            }
            batch.clear();
        }
    }
}
