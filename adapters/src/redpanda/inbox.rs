//! What librdkafka tells a reader's thread in the middle of a poll. Assignments that come and go are kept here and
//! carried out by the thread, inside `recv` only.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use qi_core::bus::{TopicName, TopicPartition};
use rdkafka::ClientContext;
use rdkafka::TopicPartitionList;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;

use super::link::Link;
use super::offsets;

/// A change of the assignment that librdkafka waits for.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Gain(Vec<TopicPartition>),
    Lose(Vec<TopicPartition>),
}

/// The context of a reader's client.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) link: Link,
    changes: Mutex<VecDeque<Change>>,
    /// Whether there are any: asked for every message.
    due: AtomicBool,
    leaving: AtomicBool,
    resting: AtomicBool,
}

pub(super) type Client = BaseConsumer<Inbox>;

impl Inbox {
    pub(super) fn new(link: Link) -> Self {
        Self {
            link,
            changes: Mutex::default(),
            due: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            resting: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Change>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The change that is due.
    pub(super) fn due(&self) -> Option<Change> {
        self.lock().front().cloned()
    }

    pub(super) fn is_due(&self) -> bool {
        self.due.load(Ordering::Acquire)
    }

    pub(super) fn done(&self) {
        let mut changes = self.lock();
        changes.pop_front();
        self.due.store(!changes.is_empty(), Ordering::Release);
    }

    /// From now on changes are answered at once: nobody reads any more.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// Likewise, while nobody reads.
    pub(super) fn rest(&self, resting: bool) {
        self.resting.store(resting, Ordering::Release);
    }

    /// Answers the changes that librdkafka still waits for, and takes nothing.
    pub(super) fn dismiss(&self, client: &Client) {
        while let Some(change) = self.due() {
            let (partitions, gain) = match &change {
                Change::Gain(partitions) => (partitions, true),
                Change::Lose(partitions) => (partitions, false),
            };
            let list = offsets::list(partitions.iter().map(|p| (p, rdkafka::Offset::Invalid)));
            // What it refused is said in the log, and there is nobody else to tell.
            let _ = list.and_then(|list| acknowledge(client, &list, gain));
            self.done();
        }
    }
}

/// Does to librdkafka's assignment what it asked for.
pub(super) fn acknowledge(client: &Client, change: &TopicPartitionList, gain: bool) -> KafkaResult<()> {
    let cooperative = matches!(client.rebalance_protocol(), RebalanceProtocol::Cooperative);
    let done = match (gain, cooperative) {
        (true, true) => client.incremental_assign(change),
        (true, false) => client.assign(change),
        (false, true) => client.incremental_unassign(change),
        (false, false) => client.unassign(),
    };
    if let Err(error) = &done {
        tracing::warn!(%error, gain, "librdkafka refused a change of the assignment that it had asked for");
    }
    done
}

/// Our own copy; a list of the driver that lives on would hang the end of its client.
pub(super) fn partitions(list: &TopicPartitionList) -> Vec<TopicPartition> {
    let elements = list.elements();
    let ours = elements.iter().filter_map(|element| {
        let topic = TopicName::new(element.topic()).ok()?;
        Some(TopicPartition::new(topic, u32::try_from(element.partition()).ok()?))
    });
    ours.collect()
}

impl ClientContext for Inbox {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.link.log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        self.link.stats(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.link.error(error, reason);
    }
}

impl ConsumerContext for Inbox {
    fn rebalance(&self, client: &Client, event: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let gain = event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.leaving.load(Ordering::Acquire) || self.resting.load(Ordering::Acquire) {
            // librdkafka waits for just this answer; what it gave it takes back by itself.
            let _ = acknowledge(client, list, gain);
            return;
        }
        let partitions = partitions(list);
        tracing::debug!(?partitions, gain, "the assignment is to change");
        let mut changes = self.lock();
        changes.push_back(if gain { Change::Gain(partitions) } else { Change::Lose(partitions) });
        self.due.store(true, Ordering::Release);
    }
}

/// Wakes a thread; a ring is remembered until the thread has heard it.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    pub(super) fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }

    /// Waits for a ring, at most so long.
    pub(super) fn wait(&self, limit: Duration) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(rung, limit, |rung| !*rung);
        let (mut rung, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}
