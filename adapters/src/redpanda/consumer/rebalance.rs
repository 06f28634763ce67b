//! Rebalance events of librdkafka. They arrive during a poll and wait in a queue. The consumer thread carries them out
//! only inside `recv`.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};

use qi_core::bus::TopicPartition;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::unreadable::UnreadableBatch;
use crate::redpanda::connect::KafkaContext;
use crate::redpanda::offsets;

/// A change of the assignment. librdkafka waits until it is acknowledged.
#[derive(Debug, Clone)]
pub(super) struct Rebalance {
    pub(super) partitions: Vec<TopicPartition>,
    /// True for an assignment, false for a revocation.
    pub(super) assigns: bool,
}

/// The context of a consumer's client.
#[derive(Debug)]
pub(super) struct RebalanceContext {
    pub(super) connection: KafkaContext,
    events: Sender<Rebalance>,
    /// The batch that the error of the current poll names.
    unreadable: Mutex<Option<UnreadableBatch>>,
}

pub(super) type Client = BaseConsumer<RebalanceContext>;

impl RebalanceContext {
    /// Creates a context, and the queue of its rebalance events. If the queue is dropped,
    /// events are acknowledged immediately.
    pub(super) fn new(connection: KafkaContext) -> (Self, Receiver<Rebalance>) {
        let (events, queue) = mpsc::channel();
        (Self { connection, events, unreadable: Mutex::default() }, queue)
    }

    /// Takes the batch that the error of the last poll names. None for any other error.
    pub(super) fn take_unreadable(&self) -> Option<UnreadableBatch> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Acknowledges an event to librdkafka. The adapter's own assignment is unchanged.
pub(super) fn dismiss(client: &Client, event: &Rebalance) {
    let list = offsets::list(event.partitions.iter().map(|partition| (partition, Offset::Invalid)));
    // A rejection is logged, and no caller waits for it.
    let _ = list.and_then(|list| acknowledge(client, &list, event.assigns));
}

/// Applies a change to librdkafka's assignment that librdkafka requested.
pub(super) fn acknowledge(client: &Client, change: &TopicPartitionList, assigns: bool) -> KafkaResult<()> {
    let cooperative = matches!(client.rebalance_protocol(), RebalanceProtocol::Cooperative);
    let done = match (assigns, cooperative) {
        (true, true) => client.incremental_assign(change),
        (true, false) => client.assign(change),
        (false, true) => client.incremental_unassign(change),
        (false, false) => client.unassign(),
    };
    if let Err(error) = &done {
        tracing::warn!(%error, assigns, "librdkafka rejected the acknowledgement of a rebalance");
    }
    done
}

impl ClientContext for RebalanceContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.connection.log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        self.connection.stats(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        *self.unreadable.lock().unwrap_or_else(PoisonError::into_inner) = UnreadableBatch::of(reason);
        self.connection.error(error, reason);
    }
}

impl ConsumerContext for RebalanceContext {
    fn rebalance(&self, client: &Client, event: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let assigns = event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        // A copy, because a list of the driver that stays alive blocks the drop of its client.
        let partitions = offsets::partitions(list);
        tracing::debug!(?partitions, assigns, "rebalance event");
        if self.events.send(Rebalance { partitions, assigns }).is_err() {
            let _ = acknowledge(client, list, assigns);
        }
    }
}
